"""Collected bodies, whose ``model`` decides on the target: no request waits for another, and no body is kept."""

from __future__ import annotations

import gzip
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it has no stubs
import pytest
import zstandard
from daemons import clean_environment
from rawclient import RawClient, ask
from upstream import Peer, Upstream, answer

from proxy.gateway.request_body import BodyBudget, RequestBody

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemons import Daemon, StartDaemon

KEY = "aks_live_" + "h" * 24
TARGET = "/v1/chat/completions"
MIB = 1 << 20
MOST = 52_428_800
BODY = answer(
    200, b'{"model":"x","usage":{"prompt_tokens":1,"completion_tokens":1}}', [(b"Content-Type", b"application/json")]
)


@pytest.fixture
def start(daemon: StartDaemon) -> Callable[..., Daemon]:
    """Start a daemon in front of an upstream; ``more`` is further TOML."""

    def run(upstream: Upstream, more: str = "") -> Daemon:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{more}'
        return daemon(config, env={"KEY": KEY}, secrets=[KEY])

    return run


def packed(unit: bytes, size: int = 52_000_000) -> bytes:
    """A JSON body of this size with a prefix to be taken off its model, and full of ``unit``."""
    return b'{"model":"groq/x","list":[' + unit * (size // len(unit)) + b"0]}"


NESTED = b'{"model":"groq/x"},'
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
}


def served_during(port: int, work: Callable[[], None]) -> int:
    """Return how many requests of another client are answered while ``work`` runs. Raises what ``work`` raises."""
    served = 0
    with ThreadPoolExecutor(1) as pool, RawClient(port) as client:
        done = pool.submit(work)
        while not done.done():
            client.request("GET", "/healthz")
            assert client.response().status == 200
            served += 1
        done.result()
    return served


# --- nobody waits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODERS)
def test_others_are_served_while_a_hostile_body_is_looked_through(start: Callable[..., Daemon], encoding: str) -> None:
    """52 MB full of models, or a few KB that become them: many other answers come before its own, and it is right."""
    body = packed(NESTED)
    sent = ENCODERS[encoding](body)
    with Upstream(BODY) as upstream:
        port = start(upstream).port
        head = {"Content-Type": "application/json", "Content-Encoding": encoding}

        def work() -> None:
            assert ask(port, "POST", TARGET, sent, head).status == 200

        served = served_during(port, work)
        came = upstream.requests[0]
    # It takes a second or so; were the loop held for a tenth of it at a time, this would be ten.
    assert served > 50
    assert b"api.groq.com" in came.target
    assert came.body == body.replace(b'"groq/x"', b'"x"', 1)
    assert came.header(b"content-encoding") in (None, b"identity")


def test_a_small_compressed_body_does_not_wait_for_a_large_one(start: Callable[..., Daemon]) -> None:
    """Of two that are being read the small one is through first, whichever came first."""
    order: list[str] = []

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            order.append("small" if len(received.body) < 1000 else "large")
            peer.send(BODY)

    head = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with Upstream(script) as upstream:
        port = start(upstream).port
        ask(port, "POST", TARGET, gzip.compress(packed(NESTED, 100)), head)
        large = [
            threading.Thread(target=ask, args=(port, "POST", TARGET, gzip.compress(packed(NESTED)), head))
            for _ in range(2)
        ]
        for thread in large:
            thread.start()
        # Each of these comes while the large ones are on their way.
        for _ in range(3):
            ask(port, "POST", TARGET, gzip.compress(packed(NESTED, 100)), head)
        for thread in large:
            thread.join()
    assert order[:4] == ["small"] * 4
    assert order.count("large") == 2


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_large_body_arrives_as_it_was_sent(start: Callable[..., Daemon], encoding: str) -> None:
    """Nothing to replace: every byte and the encoding stay; a name to replace: every other byte stays."""
    head = {"Content-Type": "application/json", "Content-Encoding": encoding}
    with Upstream(BODY) as upstream:
        port = start(upstream, '[models]\nfast = "groq/llama-3.1-8b-instant"\n').port
        for size in (1000, 70_000, 300_000, 3 * MIB):
            for model in ("gpt-4o", "groq/x", "fast"):
                document = {"pad": "p" * size, "model": model, "end": [1, {"model": "groq/x"}]}
                body = json.dumps(document).encode()
                sent = ENCODERS[encoding](body)
                assert ask(port, "POST", TARGET, sent, head).status == 200
                came = upstream.requests[-1]
                new = {"groq/x": "x", "fast": "llama-3.1-8b-instant"}.get(model)
                if new is None:
                    assert came.body == sent
                else:
                    assert json.loads(came.body) == document | {"model": new}
                    assert came.body == body.replace(f'"{model}", "end"'.encode(), f'"{new}", "end"'.encode())


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_others_are_served_while_a_hostile_error_is_masked(start: Callable[..., Daemon], encoding: str) -> None:
    """An error answer full of escapes, each of which might hide the credential: other answers come meanwhile."""
    noise = b"%2525\\\\u0041" * (200_000 // 11 if encoding == "identity" else 900_000 // 11)
    head = [(b"Content-Type", b"text/plain"), (b"Content-Encoding", encoding.encode())]
    with Upstream(answer(500, ENCODERS[encoding](noise), head)) as upstream:
        port = start(upstream).port

        def work() -> None:
            for _ in range(5):
                response = ask(port, "GET", "/openai/v1/files/x")
                assert response.status == 500
                assert response.complete

        served = served_during(port, work)
    # Were the loop held, each of the five would let through one or two.
    assert served > 15


# --- none is kept ----------------------------------------------------------------------------------------------------


def test_a_body_that_was_written_is_not_kept(start: Callable[..., Daemon]) -> None:
    """16 bodies of 40 MiB have gone to Lava and their answers stream: the daemon holds 64 MiB more than before at most."""
    go = threading.Event()
    came: list[int] = []

    def script(peer: Peer) -> None:
        received = peer.head()
        if received is None:
            return
        size, left = 0, int(received.header(b"content-length") or b"0")
        size += len(peer._unread)
        while size < left:
            size += len(peer.sock.recv(1 << 20))
        came.append(size)
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        peer.send(b"8\r\ndata: 1\n\r\n")
        assert go.wait(120)
        peer.send(b"0\r\n\r\n")

    with Upstream(script) as upstream:
        running = start(upstream)
        body = b'{"model":"groq/x","pad":"' + b"x" * (40 * MIB) + b'"}'
        ask(running.port, "GET", "/healthz")
        idle = running.rss()
        clients = []
        try:
            for _ in range(16):
                client = RawClient(running.port)
                clients.append(client)
                client.request("POST", TARGET, body, {"Content-Type": "application/json"})
                assert client.head().status == 200
            grown = running.rss() - idle
        finally:
            go.set()
            for client in clients:
                client.close()
    assert came == [len(body) - len("groq/")] * 16
    assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB"


def test_bodies_that_are_held_count_against_one_budget(start: Callable[..., Daemon]) -> None:
    """As long as Lava takes nothing they are held: what goes beyond the budget is 503; all is given back in the end."""
    taking = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            received = peer.head()
            if received is None:
                return
            assert taking.wait(120)
            peer.body(received)
            peer.send(BODY)

    body = b'{"model":"groq/x","pad":"' + b"x" * (40 * MIB) + b'"}'
    head = {"Content-Type": "application/json"}
    statuses: list[int] = []

    def work(port: int) -> None:
        statuses.append(ask(port, "POST", TARGET, body, head).status)

    with Upstream(script) as upstream:
        running = start(upstream)
        # 256 MiB hold six of them.
        clients = [RawClient(running.port) for _ in range(6)]
        for client in clients:
            client.request("POST", TARGET, body, head)
        upstream.wait(lambda: len(upstream.requests) == 6)
        refused = ask(running.port, "POST", TARGET, body, head)
        assert (refused.status, refused.code, refused.header("retry-after")) == (503, "overloaded", "1")
        # Two that leave make room for two.
        for client in clients[:2]:
            client.reset()
        threads = [threading.Thread(target=work, args=(running.port,)) for _ in range(2)]
        taking.set()
        for thread in threads:
            thread.start()
        for client in clients[2:]:
            assert client.response().status == 200
            client.close()
        for thread in threads:
            thread.join()
        # And all of it is free again.
        again = [threading.Thread(target=work, args=(running.port,)) for _ in range(5)]
        for thread in again:
            thread.start()
        for thread in again:
            thread.join()
    assert statuses == [200] * 7


def test_what_is_taken_or_closed_is_given_back() -> None:
    """A piece counts until the next one is asked for; closing gives back the rest, once."""
    budget = BodyBudget()
    held, other = RequestBody(budget), RequestBody(budget)
    for piece in (b"abc", b"de", b"f"):
        held.add(piece)
    other.add(b"1234")
    assert (budget.held, held.size, b"".join(held)) == (10, 6, b"abcdef")
    taken = held.taken()
    assert next(taken) == b"abc"
    assert budget.held == 10
    assert next(taken) == b"de"
    assert budget.held == 7
    held.close()
    held.close()
    assert list(taken) == []
    assert (budget.held, held.size) == (4, 6)
    assert b"".join(other.taken()) == b"1234"
    other.close()
    assert budget.held == 0


# --- an upload that the upstream holds back --------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_waits_for_a_slow_upstream_without_uvloop(daemon: StartDaemon, tmp_path: Path, framing: str) -> None:
    """200 MiB for an upstream that takes nothing until the client is held up: the daemon holds next to nothing of it on
    asyncio's own event loop either. The test ends itself where it holds more."""
    size = 200 * MIB
    stuck, came = threading.Event(), [0]

    def script(peer: Peer) -> None:
        while (received := peer.head()) is not None:
            assert stuck.wait(60)
            plain, tail = received.header(b"content-length") is not None, b""
            data = peer._unread
            while True:
                came[0], tail = came[0] + len(data), (tail + data)[-5:]
                if came[0] == size if plain else tail == b"0\r\n\r\n":
                    break
                data = peer.sock.recv(MIB)
                if not data:
                    return
            peer.send(BODY)

    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "uvloop.py").write_text("raise ImportError")
    paths = f"{tmp_path / 'none'}{os.pathsep}{clean_environment(tmp_path)['PYTHONPATH']}"
    with Upstream(script) as upstream:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[server]\nmax_body_bytes = {2 * size}\n'
        running = daemon(config, env={"KEY": KEY, "PYTHONPATH": paths}, secrets=[KEY])
        idle = running.rss()
        piece = b"x" * MIB
        head = {"Content-Length": str(size)} if framing == "length" else {"Transfer-Encoding": "chunked"}
        with RawClient(running.port) as client:
            client.request("POST", "/openai/v1/files", None, head)
            client.sock.settimeout(1.0)  # so long nothing moves: everything between is full
            coded = piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece)
            waited, left = 0, memoryview(coded * (size // len(piece)))
            if framing == "chunked":
                left = memoryview(bytes(left) + b"0\r\n\r\n")
            while left:
                try:
                    left = left[client.sock.send(left[: len(coded)]) :]
                except TimeoutError:
                    waited += 1
                    stuck.set()
                    client.sock.settimeout(60)
                grown = running.rss() - idle
                if grown > 64 * MIB:
                    stuck.set()
                    pytest.fail(f"the daemon holds {grown / MIB:.0f} MiB of {came[0] / MIB:.0f} that arrived")
            client.sock.settimeout(60)
            assert waited == 1
            assert client.response().status == 200
        assert running.stop() == 0
        assert "uvloop is not installed" in running.output()
