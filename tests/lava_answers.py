"""Answers of an account API for the tests of ``proxy.lava``, over raw sockets."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

from upstream import Upstream, answer

from proxy.lava import Lava, LavaError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from upstream import Peer, Script

KEY = "aks_live_" + "k1" * 10

#: Good enough for every record: each has its id in here.
ANYTHING: dict[str, Any] = {
    "id": "i",
    "data": [],
    "items": [],
    "key": "lava_sk_" + "n1" * 8,
    "secret_key": "aks_live_" + "n2" * 8,
    "webhook_secret": "n3" * 8,
    **{
        f"{one}_id": "i"
        for one in (
            "checkout_session",
            "connection",
            "customer",
            "request",
            "subscription",
            "subscription_config",
            "plan",
            "meter",
            "credit_bundle",
            "webhook",
            "secret_key",
            "spend_key",
            "wallet_key",
            "wallet",
        )
    },
}


def json_answer(value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole JSON answer."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return answer(status, body, [(b"content-type", b"application/json"), *headers])


def in_turn(*answers: bytes) -> Script:
    """A script that gives the answers one after the other, over all connections, the last one again and again. An empty
    answer closes the connection instead."""
    turns: Iterator[bytes] = iter(answers[:-1])
    lock = threading.Lock()

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            with lock:
                given = next(turns, answers[-1])
            if not given:
                return
            peer.send(given)

    return script


def client(upstream: Upstream, key: str = KEY, **options: Any) -> Lava:
    """A client of this upstream that does not wait long before it tries again."""
    return Lava(key, base_url=f"{upstream.url}/v1", **{"backoff": 0.001, **options})


def asked(script: Script | bytes, ask: Callable[[Lava], Awaitable[Any]], **options: Any) -> tuple[Any, Upstream]:
    """What ``ask`` gives (or the ``LavaError`` it raises) from an upstream with this script."""

    async def run() -> Any:
        async with client(upstream, **options) as lava:
            try:
                return await ask(lava)
            except LavaError as exc:
                return exc

    with Upstream(script) as upstream:
        return asyncio.run(run()), upstream
