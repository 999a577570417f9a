"""Connections to Lava are never shared: one project's late answer cannot reach another project.

The upstream of these tests is confused: it sends an answer too many, and only when the next request is already on the same
connection. No client can tell such an answer from the right one, so only separate connections help.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest
from configurations import LAVA_KEY
from test_upstream import NATIVE, Asked, Kind, fetch, named, native
from upstream import Peer, Upstream, answer

from proxy.upstream import Engine, Origin, UpstreamRequest, pool_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import StartDaemon

native_engine = pytest.mark.parametrize("kind", NATIVE, ids=named)

JSON = [(b"Content-Type", b"application/json")]
OTHER_KEY = LAVA_KEY.replace("c4n", "n4c")
KEYS = {"KEY": LAVA_KEY, "OTHER": OTHER_KEY, "SPEND": "lava_sk_" + "spendQ7" * 4}


def confused(peer: Peer) -> None:
    """Answer with the number of the connection; from the second request on, send the answer to the one before again first."""
    late = b""
    while peer.request() is not None:
        body = json.dumps({"connection": peer.number, "data": [], "late": bool(late)}).encode()
        peer.send(late or answer(body=body, headers=JSON))
        late = answer(body=json.dumps({"connection": peer.number, "data": [], "late": True}).encode(), headers=JSON)


def ask(
    port: int, path: str, headers: dict[str, str] | None = None, model: str = "openai/gpt-4o"
) -> tuple[int, dict[str, Any]]:
    """Status and body of one request; a GET if the path is that of the model list."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        if path.endswith("/models"):
            connection.request("GET", path, headers=headers or {})
        else:
            connection.request("POST", path, json.dumps({"model": model}), headers=headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


A, B = "/p/a/v1/chat/completions", "/p/b/v1/chat/completions"
KEYED_A, KEYED_B = {"Authorization": "Bearer tool-a"}, {"Authorization": "Bearer tool-b"}


@pytest.mark.parametrize(
    ("projects", "first", "second"),
    [
        ('[projects.a]\nmeter = "a"\n[projects.b]\nmeter = "b"', (A, {}), (B, {})),
        ('[projects.a]\nsecret_key = "env:KEY"\n[projects.b]\nsecret_key = "env:OTHER"', (A, {}), (B, {})),
        ('[projects.a]\nspend_key = "env:SPEND"\n[projects.b]', (A, {}), (B, {})),
        ("[projects.a]\n[projects.b]", (A, {}), (B, {})),
        ('[projects.a]\nbyok = "client"', (A, KEYED_A), (A, KEYED_B)),
        ('[projects.a.byok]\nopenai = "sk-one"\ngroq = "sk-two"', (A, {}), ("/p/a/groq/v1/chat/completions", {})),
        ("[projects.a]\n[projects.b]", (A, {}), ("/p/a/v1/models", {})),
        ("[projects.a]\n[projects.b]", ("/p/a/v1/models", {}), (B, {})),
        ("[projects.a]\n[projects.b]", (A, {}), ("/p/b/v1/models", {})),
    ],
    ids=[
        "two meters",
        "two secret keys",
        "a spend key",
        "two projects with one credential",
        "two keys of tools",
        "two provider keys",
        "the model list of the same project",
        "after the model list",
        "the model list of another project",
    ],
)
def test_a_late_second_answer_reaches_nobody_with_another_credential(
    daemon: StartDaemon, projects: str, first: tuple[str, dict[str, str]], second: tuple[str, dict[str, str]]
) -> None:
    """Its connection stays with the project and credential that it was opened for, and these use it again."""
    with Upstream(confused) as upstream:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{projects}'
        running = daemon(config, env=KEYS, secrets=KEYS.values())
        assert ask(running.port, *first)[0] == 200
        assert ask(running.port, *second)[0] == 200
        assert [one.connection for one in upstream.requests] == [0, 1]
        # The same caller again: his connection was kept.
        assert ask(running.port, *first)[0] == 200
        assert upstream.requests[2].connection == 0
        assert upstream.accepted == 2


def test_providers_of_one_credential_share_connections(daemon: StartDaemon) -> None:
    """Lava's managed keys: one token for all providers, so one connection serves them."""
    with Upstream(answer(body=b"{}", headers=JSON)) as upstream:
        running = daemon(f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"', env=KEYS)
        for provider in ("openai", "groq", "anthropic", "mistral", "openai"):
            ask(running.port, f"/{provider}/v1/chat/completions")
        assert upstream.accepted == 1


def test_questions_about_accounts_share_no_connection_between_projects(daemon: StartDaemon) -> None:
    """What a 402 makes us ask with the account's key: each project asks on connections of its own."""

    def script(peer: Peer) -> None:
        while received := peer.request():
            paid = received.method == b"POST"
            peer.send(answer(402 if paid else 404, b'{"error":{"message":"no","status":402}}', JSON))

    def connections(path: str) -> set[int]:
        before = len(upstream.requests)
        assert ask(running.port, path)[0] == 402
        asked = upstream.requests[before:]
        assert {one.method for one in asked} == {b"POST", b"GET"}
        return {one.connection for one in asked}

    with Upstream(script) as upstream:
        projects = '[projects.a]\nmeter = "m"\n[projects.b]\nmeter = "m"'
        running = daemon(f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{projects}', env=KEYS)
        assert not connections(A) & connections(B)


def test_a_pool_key_tells_nothing_of_the_credential() -> None:
    """It differs by project and by credential, is no plain digest, and is not shown."""
    keys = [pool_key("a", b"x"), pool_key("b", b"x"), pool_key("a", b"y"), pool_key("a", b"")]
    assert len(set(keys)) == 4
    assert pool_key("a", b"x") == keys[0]
    origin = Origin("https", "api.test", 443, keys[0])
    assert repr(origin) == "Origin(scheme='https', host='api.test', port=443)"
    assert repr(keys[0]) not in repr(origin)


def keyed(upstream: Upstream, number: int) -> Asked:
    origin = Origin("http", "127.0.0.1", upstream.port, pool_key("a", b"%d" % number))
    return UpstreamRequest(b"GET", origin, b"/%d" % number, [(b"Host", b"api.test")]), None, None


@native_engine
def test_the_limit_of_idle_connections_holds_for_all_pools_together(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one idle longest goes, and its pool with it: any number of keys leave a bounded number of pools."""
    monkeypatch.setattr("proxy.upstream.native.MAX_IDLE", 4)

    async def use(engine: Engine) -> None:
        for number in range(50):
            assert (await fetch(engine, keyed(upstream, number))).end == "ok"
            assert native(engine).idle == min(number + 1, 4)
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 4)
        await asyncio.sleep(0.05)
        assert native(engine).pools == native(engine).live == 4
        for number in (49, 46, 47, 48):
            assert (await fetch(engine, keyed(upstream, number))).end == "ok"
        assert upstream.accepted == 50
        assert (await fetch(engine, keyed(upstream, 45))).end == "ok"
        assert upstream.accepted == 51

    with Upstream(answer()) as upstream:
        kind.run(use)


@native_engine
def test_a_new_connection_takes_the_place_of_the_one_idle_longest(kind: Kind) -> None:
    """The limit of open connections holds for all pools together; connections in use are never taken away."""

    async def use(engine: Engine) -> None:
        held = [await engine.open(*keyed(upstream, number)) for number in (100, 101)]
        for number in range(10):
            assert (await fetch(engine, keyed(upstream, number))).end == "ok"
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 3)
        assert native(engine).idle == 1
        for got in held:
            assert await got.read() == b"x"
            got.close()

    def script(peer: Peer) -> None:
        while received := peer.request():
            if len(received.target) == 4:
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx")
                peer.gone()
                return
            peer.send(answer())

    with Upstream(script) as upstream:
        kind.run(use, more={"max_connections": 3})


@native_engine
@pytest.mark.parametrize("how", ["used", "too old", "closed by the upstream"])
def test_a_pool_ends_with_its_last_connection(kind: Kind, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A credential that is used no more leaves nothing behind, however its last connection ended."""
    monkeypatch.setattr("proxy.upstream.native.IDLE_SECONDS", 0.2 if how == "too old" else 15.0)

    async def empty(engine: Engine, *, count: Callable[[Engine], int]) -> None:
        async with asyncio.timeout(10):
            while count(engine):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    async def use(engine: Engine) -> None:
        for number in range(5):
            assert (await fetch(engine, keyed(upstream, number))).end == "ok"
        await empty(engine, count=lambda engine: native(engine).pools)
        assert native(engine).idle == native(engine).live == 0
        # And a new one begins where the old one was.
        assert (await fetch(engine, keyed(upstream, 4))).end == "ok"

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(headers=[(b"Connection", b"close")] if how == "used" else ()))
        if how == "too old":
            peer.gone()

    with Upstream(script) as upstream:
        kind.run(use)
