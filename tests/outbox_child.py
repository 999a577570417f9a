"""A process with a ledger and its outbox, that ends itself with SIGKILL at a named point. Run by ``test_security_outbox.py``.

Arguments: the ledger's file, the address of Lava, the point (or ``none``), the number of requests, the seconds after which it
ends if the outbox is not empty by then. It prints ``empty`` when nothing is left to be delivered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from ledgers import record

from proxy.config.settings import Settings
from proxy.ledger import outbox, outbox_rows
from proxy.ledger.outbox import Outbox
from proxy.ledger.writer import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.lava.client import ApiSender
    from proxy.lava.replies import ApiReply

POINTS = (
    "in the transaction of the intent",
    "after the intent",
    "in the transaction of the usage",
    "after the usage",
    "in the transaction of the mark",
    "before the call",
    "after the call",
    "in the transaction of the end",
    "after the end",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, and the end of the process before its transaction is committed."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        function(*arguments, **options)
        die()

    return wrapped


class Sender:
    """Sends as the client does, and dies before or after a report."""

    def __init__(self, inner: ApiSender, point: str) -> None:
        self._inner = inner
        self._point = point

    async def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, limit: float
    ) -> ApiReply:
        if method == "POST" and self._point == "before the call":
            die()
        reply = await self._inner.send(method, target, headers, body, limit)
        if method == "POST" and self._point == "after the call":
            die()
        return reply


async def main(path: str, url: str, point: str, count: int, limit: float) -> None:
    key = os.environ["KEY"]
    settings = Settings.model_validate(
        {
            "lava": {"secret_key": key, "base_url": url},
            "ledger": {"path": path},
            "projects": {"website": {"customer_id": "conn_demo", "meter": "demo-chat"}},
        }
    )
    outbox.START_SECONDS = 0.0  # type: ignore[misc]
    outbox_rows.ASK_AFTER_US = 100_000  # type: ignore[misc]
    ledger = Ledger(settings)

    def sender(account: Any) -> Any:
        client = account.client(settings)
        return Sender(client._transport, point)

    box = Outbox(ledger, lambda: settings, sender)
    for name, module, function in (
        ("in the transaction of the intent", outbox_rows, "add_intent"),
        ("in the transaction of the usage", outbox_rows, "complete"),
        ("in the transaction of the mark", outbox_rows, "take"),
        ("in the transaction of the end", outbox_rows, "settle"),
    ):
        if name == point:
            setattr(module, function, dies_after(getattr(module, function)))
    ledger.start()
    if point not in POINTS[:4]:
        box.start()
    for _ in range(count):
        made = record(outcome=None)
        await box.begin(made)
        if point == "after the intent":
            die()
        made.outcome = "ok"  # type: ignore[assignment]
        ledger.observe(made)
    if point == "after the usage":
        while ledger.status().written < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        die()
    deadline = monotonic() + limit
    while monotonic() < deadline:
        if ledger.status().written >= count:
            left = await ledger.run(outbox_rows.waiting)
            if left.ready + left.intents == 0:
                if point == "after the end":
                    die()
                print("empty", flush=True)
                break
        await asyncio.sleep(0.02)
    await box.aclose()
    await ledger.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5])))  # type: ignore[call-arg, arg-type]
