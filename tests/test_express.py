"""The short way and the long way are told apart by nothing: the same bytes to both sides, the same record.

Each check runs the same conversation twice over real sockets, in front of the same scripted upstream: once with the short way
closed, once with it open, and the request in question is one that takes it. Then everything that can be seen from outside is
compared: what the client got and how it ended, what the upstream got and what became of its connection, the log and the counts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import pytest
import uvloop
from configurations import LAVA_KEY, loaded
from conversations import conversation
from rawclient import PATIENCE, RawClient
from upstream import Peer, Upstream, answer, certificate, chunked

from proxy import express
from proxy.app import App, create_app
from proxy.express import Ride
from proxy.framing import Limits
from proxy.guard import Exchange, GuardedProtocol, Watch
from proxy.logs import configure
from proxy.record import Record
from proxy.redaction import Redactor
from proxy.server import _uvicorn

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from daemons import StartDaemon

SSE = [(b"Content-Type", b"text/event-stream")]
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = answer(body=b'{"model":"gpt-4o","usage":{"prompt_tokens":1,"completion_tokens":2}}')
JSON = [(b"Content-Type", b"application/json")]


class House:
    """A daemon's inside, served on a loopback port by a thread of its own. ``short`` opens the short way."""

    def __init__(self, folder: Path, upstream: Upstream, more: str = "", *, short: bool = True) -> None:
        self._file = folder / f"{'short' if short else 'long'}.log"
        text = f'[lava]\nsecret_key = "{LAVA_KEY}"\nbase_url = "{upstream.url}"\n{more}\n'
        self.settings = loaded(folder, text + f'[log]\nformat = "json"\nfile = "{self._file}"\n')
        self.rides = 0
        self._short = short
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        logs = configure(self.settings.log, Redactor(self.settings.secrets()))
        self.app: App = create_app(self.settings, log=logs)
        express = self.app._express
        take = express.take

        def counted(*request: Any) -> bool:
            taken = self._short and take(*request)
            self.rides += taken
            return taken

        express.take = counted  # type: ignore[method-assign, assignment]
        watch = self._watch = Watch(Limits())
        watch.start(self._loop)
        config, state = _uvicorn(self.app, watch)
        server = await self._loop.create_server(lambda: GuardedProtocol(config, state, {}, watch=watch), "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await self.app.runtime.aclose()
        watch.cut()
        watch.stop()
        logs.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, called in the house's loop."""

        async def done() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(PATIENCE)

    def idle(self) -> bool:
        """Whether nothing is on its way."""
        runtime = self.app.runtime
        return bool(self.do(lambda: len(runtime.flights) == runtime.generation.in_flight == 0))

    def held(self) -> int:
        """Bytes of request bodies that wait for somebody to take them."""
        exchanges = [each._exchange for each in self._watch.connections if each._exchange is not None]
        return sum(len(piece) for exchange in exchanges for piece in exchange._chunks)

    def told(self, count: int) -> list[dict[str, Any]]:
        """The log lines of the first ``count`` requests, once they are there."""
        end = time.monotonic() + PATIENCE
        while True:
            lines = self._file.read_text().splitlines() if self._file.exists() else []
            told = [line for line in map(json.loads, lines) if line["event"] == "request"]
            if len(told) >= count:
                return told[:count]
            assert time.monotonic() < end, f"{len(told)} of {count} requests were logged"
            time.sleep(0.01)


class Client(RawClient):
    """A tool that sends the same head over and over."""

    def ask(
        self, content: str = "hello", more: str = "", model: str = "gpt-4o", path: str = "/v1/chat/completions"
    ) -> None:
        """Send a request. ``content`` tells the upstream which one it is."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n{more}"
        self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def prime(self, **how: str) -> Self:
        """Send what makes the next request take the short way."""
        for _ in range(2):
            self.ask(**how)
            assert self.response().status == 200
        return self

    def seen(self, *, further: bool = True) -> object:
        """What comes back, as far as it comes, and whether the connection serves a further request."""
        try:
            response = self.response()
        except ConnectionError:
            return "closed without an answer"
        serves_on = False
        if further and response.complete and response.header("connection") != "close":
            try:
                self.ask()
                serves_on = self.response().status == 200
            except OSError:
                serves_on = False
        headers = sorted((name, plain(value)) for name, value in response.headers if name != "date")
        return response.status, headers, plain(response.body.decode("latin-1")), response.complete, serves_on


def plain(text: str) -> str:
    """``text`` without what is another each time."""
    text = re.sub(r"req_[0-9a-f]{24}", "req_*", text)
    return re.sub(r"127\.0\.0\.1:[0-9]+|127\.0\.0\.1%3A[0-9]+", "here", text)


Case = Callable[[Peer], object]
Act = Callable[[House, Upstream, Client], object]


def before(case: Case) -> Callable[[Peer], None]:
    """A script that answers well, but to a request that says "case"."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if b"case" in received.body:
                case(peer)
            else:
                peer.send(GOOD)

    return script


def ends(case: Case) -> Case:
    """``case``, then the end of the connection."""

    def script(peer: Peer) -> None:
        case(peer)
        peer.fin()
        peer.gone()

    return script


def steps(*cases: Case) -> Case:
    """One after the other."""

    def script(peer: Peer) -> None:
        for case in cases:
            case(peer)

    return script


def pause(peer: Peer) -> None:
    time.sleep(0.05)


def ask_the_case(house: House, upstream: Upstream, client: Client) -> object:
    client.ask("case")
    return client.seen()


def both_ways(
    folder: Path, case: Case, act: Act = ask_the_case, more: str = "", tls: Any = None, rides: int = 2
) -> Any:
    """Do ``act`` on a primed connection, the long way and the short way. What it returns, the same both times.

    ``rides``: how many requests take the short way at least, where it is open.
    """
    found = []
    for short in (False, True):
        with Upstream(before(case), tls=tls) as upstream, House(folder, upstream, more, short=short) as house:
            with Client(house.port) as client:
                seen = act(house, upstream, client.prime())
                upstream.wait(house.idle)
            told = house.told(len(upstream.requests))
            for line in told:
                assert line.pop("duration_ms") >= 0
                assert (line.pop("first_byte_ms") or 0) >= 0
                del line["timestamp"], line["request_id"]
            counted = house.app.runtime.metrics
            kinds = {where: dict(each.requests) for where, each in counted._series.items()}
            firsts = {where: sum(each.first_byte[:-1]) for where, each in counted._series.items()}
            sent = [plain(each.raw.decode("latin-1")) for each in upstream.requests]
            found.append((seen, told, sent, kinds, firsts, counted._in_flight))
            assert house.rides >= rides if short else house.rides == 0
            assert len(told) == len(upstream.requests)
    assert found[0] == found[1]
    return found[1][0]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Type: text/event-stream\r\n\r\n")
STOPPED = [
    (b"Set-Cookie", b"a=b"),
    (b"Connection", b"x-hop"),
    (b"X-Hop", b"1"),
    (b"X-Lava-Proxy-Error", b"forged"),
    (b"Alt-Svc", b"h3"),
]
ANSWERS: dict[str, Case] = {
    "small": lambda peer: peer.send(GOOD),
    "without a body": lambda peer: peer.send(answer(204, length=False)),
    "an empty body": lambda peer: peer.send(answer(200)),
    "chunked, at once": lambda peer: peer.send(CHUNKED, chunked(b'{"model":', b'"m"}')),
    "chunked, by halves": steps(
        lambda peer: peer.send(CHUNKED, chunked(b"{", end=False)),
        lambda peer: peer.drip(chunked(b"}"), 3),
    ),
    "head and body apart": lambda peer: peer.drip(GOOD, GOOD.index(b"{")),
    "byte by byte": lambda peer: peer.drip(GOOD, 1, 0.0002),
    "hints before": lambda peer: peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 2, GOOD),
    "too many hints": ends(lambda peer: peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 21, GOOD)),
    "to the end of the connection": ends(lambda peer: peer.send(answer(body=b"abc", length=False))),
    "said to be the last": ends(lambda peer: peer.send(answer(body=b"abc", headers=[(b"Connection", b"close")]))),
    "more than announced": lambda peer: peer.send(GOOD, b"x"),
    "a second answer": lambda peer: peer.send(GOOD, GOOD),
    "less than announced": ends(lambda peer: peer.send(GOOD[:-1])),
    "a broken connection": steps(lambda peer: peer.send(GOOD[:-1]), pause, Peer.rst),
    "no answer": ends(lambda peer: None),
    "a reset": lambda peer: peer.rst(),
    "no HTTP": ends(lambda peer: peer.send(b"hello\r\n\r\n")),
    "a broken chunk": ends(lambda peer: peer.send(CHUNKED, b"zz\r\n")),
    "a broken head": ends(lambda peer: peer.send(GOOD.replace(b"content-length", b"content length"))),
    "two lengths": ends(
        lambda peer: peer.send(GOOD.replace(b"content-length", b"content-length: 1\r\ncontent-length"))
    ),
    "Lava: 401": lambda peer: peer.send(
        answer(401, b'{"error":{"code":"unauthorized","message":"no","status":401}}', JSON)
    ),
    "Lava: 402": lambda peer: peer.send(
        answer(402, b'{"error":{"code":"wallet","message":"empty","status":402}}', JSON)
    ),
    "a provider's 400": lambda peer: peer.send(answer(400, b'{"error":{"message":"m","type":"t","param":null}}', JSON)),
    "a page, 502": lambda peer: peer.send(answer(502, b"<html>", [(b"Content-Type", b"text/html")])),
    "a redirect": lambda peer: peer.send(answer(302, b"", [(b"Location", b"http://127.0.0.1/")])),
    "not modified": lambda peer: peer.send(answer(304, length=False)),
    "headers that stay here": lambda peer: peer.send(
        answer(200, b"{}", [*JSON, *STOPPED, (b"X-Lava-Request-Id", b"r_1")])
    ),
    "an echo of the token": lambda peer: peer.send(answer(400, peer.upstream.requests[-1].raw[:300], JSON)),
    "compressed": lambda peer: peer.send(answer(200, b"\x1f\x8bnot really", [*JSON, (b"Content-Encoding", b"gzip")])),
    "events, at once": lambda peer: peer.send(answer(200, DELTA + DONE, SSE)),
    "events, chunked": steps(lambda peer: peer.send(EVENTS), lambda peer: peer.drip(chunked(DELTA, DELTA, DONE), 20)),
    "events without an end": lambda peer: peer.send(answer(200, DELTA, SSE)),
    "events that break off": ends(steps(lambda peer: peer.send(EVENTS, chunked(DELTA, end=False)), pause)),
    "events to the end of the connection": ends(lambda peer: peer.send(answer(200, DELTA + DONE, SSE, length=False))),
    "an error inside": lambda peer: peer.send(
        answer(200, b'data: {"error":{"type":"t","message":"m"}}\n\n' + DONE, SSE)
    ),
    "a megabyte": lambda peer: peer.send(answer(200, b"x" * 1_000_000)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_the_same(tmp_path: Path, name: str) -> None:
    """Every kind of answer, sound or not: the same bytes, the same end, the same error, log line and counts."""
    both_ways(tmp_path, ANSWERS[name], more="diagnose = false")


def test_a_good_answer_is_one(tmp_path: Path) -> None:
    """What all is compared with: a request that rode got its answer, and was recorded once, with everything known of it."""
    with Upstream(before(ANSWERS["small"])) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port) as client:
            client.prime().ask("case")
            response = client.response()
        assert response.status == 200
        assert response.body == GOOD[GOOD.index(b"{") :]
        assert response.header("x-lava-proxy-project") == "default"
        lines = house.told(3)
        assert house.rides == 2
    line = lines[2]
    assert line["request_id"] == response.header("x-lava-proxy-request-id")
    assert len({each["request_id"] for each in lines}) == 3
    told = {"outcome": "ok", "status": 200, "input_tokens": 1, "output_tokens": 2, "model": "gpt-4o", "error": None}
    assert {name: line.get(name) for name in told} == told
    assert line["bytes_in"] == len(upstream.requests[2].body)
    assert line["bytes_out"] == len(response.body)
    assert 0 <= line["first_byte_ms"] <= line["duration_ms"]


def conversations(folder: Path, seeds: range) -> int:
    """Hold every conversation both ways. How many went the short way to their end."""
    found: list[list[object]] = []

    def case(peer: Peer) -> None:
        number = re.search(rb"case ([0-9]+)", peer.upstream.requests[-1].body)
        assert number is not None
        for segment in conversation(int(number[1])).segments:
            peer.drip(segment, len(segment), 0.0002)
        peer.fin()
        peer.gone()

    for short in (False, True):
        found.append([])
        with Upstream(before(case)) as upstream, House(folder, upstream, "diagnose = false", short=short) as house:
            for seed in seeds:
                with Client(house.port) as client:
                    client.prime().ask(f"case {seed}")
                    found[-1].append(client.seen(further=False))
                upstream.wait(lambda: upstream.connected == 0)  # it closes without a word
            told = house.told(len(upstream.requests))
            for line in told:
                for name in ("timestamp", "request_id", "duration_ms", "first_byte_ms"):
                    del line[name]
            found[-1] += told
            upstream.wait(house.idle)
        rides = house.rides
    assert len(found[0]) == len(found[1])
    for place, (long, short_) in enumerate(zip(*found, strict=True)):
        assert long == short_, f"seed {seeds[place]}" if place < len(seeds) else f"log line {place - len(seeds)}"
    return rides


def test_random_conversations_are_the_same(tmp_path: Path) -> None:
    """Random answers, a third of them damaged, in random segments."""
    assert conversations(tmp_path, range(150)) >= 300


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_random_conversations_are_the_same(tmp_path: Path) -> None:
    """The same with 3,000 further seeds."""
    assert conversations(tmp_path, range(20_000, 23_000)) >= 6000


# --- ends that are not the answer's own ------------------------------------------------------------------------------


def waits(peer: Peer) -> None:
    """Says nothing until the daemon leaves."""
    peer.gone()


def begins(peer: Peer) -> None:
    """Says the beginning of a stream, then nothing until the daemon leaves."""
    peer.send(EVENTS, chunked(DELTA, end=False))
    peer.gone()


def came(upstream: Upstream) -> Callable[[], bool]:
    return lambda: b"case" in upstream.requests[-1].body


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("case", [waits, begins])
def test_a_client_that_leaves_ends_its_request(tmp_path: Path, case: Case, how: str) -> None:
    """The upstream's connection goes within a second, and the record says who left."""

    def act(house: House, upstream: Upstream, client: Client) -> object:
        client.ask("case")
        upstream.wait(came(upstream))
        if case is begins:
            assert client.head().status == 200
            assert client.chunk() == DELTA
        assert house.do(house.held) == 0
        left = time.monotonic()
        if how == "half":
            client.sock.shutdown(1)
        else:
            client.close() if how == "close" else client.reset()
        upstream.wait(lambda: upstream.connected == 0, 1.5)
        assert time.monotonic() - left < 1.0
        return house.told(3)[2]["outcome"]

    assert both_ways(tmp_path, case, act) == "client_gone"


@pytest.mark.parametrize(
    ("case", "limit", "outcome"),
    [
        (waits, "first_byte", "timeout"),
        (waits, "total", "timeout"),
        (begins, "idle", "stalled"),
        (begins, "total", "timeout"),
    ],
)
def test_limits_strike(tmp_path: Path, case: Case, limit: str, outcome: str) -> None:
    """First byte, idle and total: 504 before the answer, an error inside the stream and a broken connection after."""

    def act(house: House, upstream: Upstream, client: Client) -> object:
        client.ask("case")
        seen = client.seen(further=False)
        upstream.wait(lambda: upstream.connected == 0)
        assert house.told(3)[2]["outcome"] == outcome
        return seen

    status, _, body, complete, _ = both_ways(tmp_path, case, act, f"[upstream]\n{limit} = 0.3")
    assert (status, complete) == ((504, True) if case is waits else (200, False))
    assert "upstream_timeout" in body


@pytest.mark.parametrize("case", [waits, begins])
def test_a_shutdown_ends_what_is_on_its_way(tmp_path: Path, case: Case) -> None:
    """The end of a drain: 503 where nothing was answered yet, else an error inside the stream; the record says why."""

    def act(house: House, upstream: Upstream, client: Client) -> object:
        client.ask("case")
        upstream.wait(came(upstream))
        if case is begins:
            upstream.wait(lambda: house.do(lambda: next(iter(house.app.runtime.flights._flights)).answered))
        house.do(house.app.runtime.begin_drain)
        house.do(house.app.runtime.cut)
        seen = client.seen()
        assert house.told(3)[2]["outcome"] == "shutdown"
        return seen

    status, _, body, complete, _ = both_ways(tmp_path, case, act)
    assert (status, complete) == ((503, True) if case is waits else (200, False))
    assert "shutting_down" in body


def fails(peer: Peer) -> None:
    """Says the head of an error, then nothing until the daemon leaves."""
    peer.send(answer(400, b"{}", JSON)[:-2])
    peer.gone()


def test_a_daemon_waits_for_what_took_the_short_way(daemon: StartDaemon) -> None:
    """SIGTERM: a drain counts and awaits such a request, gives it its whole answer, and tells of it in the log."""
    go = threading.Event()

    def late(peer: Peer) -> None:
        peer.upstream.wait(go.is_set)
        peer.send(GOOD)

    with Upstream(before(late)) as upstream:
        running = daemon(f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"', env={"KEY": LAVA_KEY})
        with Client(running.port) as client:
            client.prime().ask("case")
            upstream.wait(came(upstream))
            running.process.send_signal(signal.SIGTERM)
            upstream.wait(lambda: "finishing 1 request" in running.output())
            go.set()
            assert client.response().status == 200
            assert client.closed()
        assert running.process.wait(PATIENCE) == 0
    told = [json.loads(line) for line in running.output().splitlines() if '"event":"request"' in line]
    assert [line["outcome"] for line in told] == ["ok"] * 3


@pytest.mark.parametrize("signals", [1, 2])
def test_a_daemon_that_waits_no_longer_tells_what_took_the_short_way(daemon: StartDaemon, signals: int) -> None:
    """Past drain_seconds it gets 503 and exit code 0; at a second signal the daemon ends at once, with 1."""
    more = "[server]\ndrain_seconds = " + ("0.3" if signals == 1 else "30.0")
    with Upstream(before(waits)) as upstream:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{more}'
        running = daemon(config, env={"KEY": LAVA_KEY})
        with Client(running.port) as client:
            client.prime().ask("case")
            upstream.wait(came(upstream))
            running.process.send_signal(signal.SIGTERM)
            upstream.wait(lambda: "stopping: finishing" in running.output())
            if signals == 1:
                assert client.response().code == "shutting_down"
            else:
                running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE) == signals - 1


@pytest.mark.parametrize(("case", "status"), [(begins, 200), (fails, 503)])
def test_a_request_that_is_ended_as_its_answer_comes_is_ended_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, status: int
) -> None:
    """Between the head of an answer and the task that goes on with it, whoever ends the request is heard, and nothing leaks."""
    told_of_it = Ride.set_result

    def ended_at_once(ride: Ride, answered: Any) -> None:
        told_of_it(ride, answered)
        ride.end("shutdown")
        ride.end("client_gone")

    with Upstream(before(case)) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port) as client:
            client.prime()
            monkeypatch.setattr(Ride, "set_result", ended_at_once)
            client.ask("case")
            response = client.response()
            assert (response.status, response.complete) == (status, status == 503)
            assert b"shutting_down" in response.body
        assert [line["outcome"] for line in house.told(3)] == ["ok", "ok", "shutdown"]
        upstream.wait(lambda: upstream.connected == 0)
        upstream.wait(house.idle)


def test_a_fault_of_our_own_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the short way itself fail, the client gets our internal_error, and the log a place in the code."""

    def failing(*request: object) -> bool:
        raise RuntimeError("on purpose")

    with Upstream(before(ANSWERS["small"])) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port) as client:
            client.prime()
            monkeypatch.setattr(express, "give_whole", failing)
            client.ask("case")
            response = client.response()
        assert (response.status, response.code) == (500, "internal_error")
        assert [line["outcome"] for line in house.told(3)] == ["ok", "ok", "refused"]
        upstream.wait(house.idle)


def test_nothing_is_left_for_the_collector(tmp_path: Path) -> None:
    """Requests that took the short way die by reference count, whole answers and streams alike: the collector rarely looks."""

    def remaining() -> int:
        return sum(isinstance(each, (Ride, Exchange, Record)) for each in gc.get_objects())

    with Upstream(before(ANSWERS["events, chunked"])) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port) as client:
            client.prime()
            gc.collect()
            gc.disable()
            try:
                there = remaining()
                for number in range(10):
                    client.ask("case" if number % 2 else "")
                    assert client.response().complete
                house.told(12)
                upstream.wait(house.idle)
                assert remaining() == there
            finally:
                gc.enable()
        assert house.rides == 11


# --- what does not take the short way --------------------------------------------------------------------------------


def test_only_what_is_known_rides(tmp_path: Path) -> None:
    """Another head, another model, an alias, a first request, a page: each is judged whole, and then judged again."""
    more = '[models]\nfast = "groq/llama"\n[server]\nallowed_origins = ["https://a.test"]'
    with Upstream(GOOD) as upstream, House(tmp_path, upstream, more) as house, Client(house.port) as client:

        def rides(**how: str) -> bool:
            ridden = house.rides
            client.ask(**how)
            assert client.response().status == 200
            return house.rides > ridden

        assert [rides() for _ in range(3)] == [False, True, True]
        assert [rides(model="o3") for _ in range(2)] == [False, True]
        assert [rides(model="fast") for _ in range(3)] == [False, False, False]
        assert [rides(), rides(more="X-A: b\r\n"), rides(more="X-A: b\r\n"), rides()] == [True, False, True, False]
        assert [rides(path="/groq/v1/chat/completions") for _ in range(2)] == [False, True]
        assert [rides(more="Origin: https://a.test\r\n") for _ in range(3)] == [False, False, False]
        assert [each.method for each in upstream.requests] == [b"POST"] * len(upstream.requests)
        sent = [json.loads(each.body)["model"] for each in upstream.requests]
        assert sent[3:8] == ["o3", "o3", "llama", "llama", "llama"]


def test_a_reload_is_heeded_at_once(tmp_path: Path) -> None:
    """The next request is judged by the new configuration; one that rides ends by the old one, whose connections are closed."""

    def late(peer: Peer) -> None:
        peer.upstream.wait(go.is_set)
        peer.send(GOOD)

    go = threading.Event()
    with Upstream(before(late)) as upstream, House(tmp_path, upstream) as house:
        changed = house.settings.model_copy(
            update={"upstream": house.settings.upstream.model_copy(update={"first_byte": 77.0})}
        )
        with Client(house.port) as riding, Client(house.port) as other:
            riding.prime().ask("case")
            other.prime()
            upstream.wait(lambda: any(b"case" in each.body for each in upstream.requests))
            rides, old = house.rides, house.app.runtime.generation
            house.do(lambda: house.app.runtime.reload(changed))
            other.ask()
            assert other.response().status == 200
            assert house.rides == rides
            go.set()
            assert riding.response().status == 200
        upstream.wait(lambda: house.do(lambda: not house.app.runtime.retired))
        engine: Any = old.engine
        assert house.do(lambda: engine.live) == 0
        assert old.in_flight == 0


def test_a_reload_that_keeps_the_engine_is_heeded_at_once(tmp_path: Path) -> None:
    """Another key in the configuration: the very next request carries it, on a connection of its own."""
    other_key = LAVA_KEY.replace("c4n", "n4c")
    (tmp_path / "other").mkdir()
    with Upstream(GOOD) as upstream, House(tmp_path, upstream) as house, Client(house.port) as client:
        client.prime()
        changed = loaded(tmp_path / "other", f'[lava]\nsecret_key = "{other_key}"\nbase_url = "{upstream.url}"')
        house.do(lambda: house.app.runtime.reload(changed))
        rides = house.rides
        for _ in range(2):
            client.ask()
            assert client.response().status == 200
            upstream.wait(house.idle)
        assert house.rides == rides + 1
        tokens = [each.header(b"authorization") for each in upstream.requests]
        assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
        assert [each.connection for each in upstream.requests] == [0, 0, 1, 1]


def test_what_is_kept_for_an_idle_connection_is_bounded_in_bytes(tmp_path: Path) -> None:
    """However many models a client asks for, with however long an address, head and metadata."""
    with Upstream(before(lambda peer: peer.send(GOOD))) as upstream, House(tmp_path, upstream) as house:
        path = "/openai/v1/chat/completions?" + "&".join(f"q{number}=%2F%2F%2F%2F" for number in range(160))
        more = "".join(f"X-Header-{number}: {'v' * 20}\r\n" for number in range(12))
        clients = [Client(house.port) for _ in range(5)]
        for client in clients[:2]:  # whatever is made once
            client.prime(path=path, more=more)
        tracemalloc.start()
        try:
            for client in clients[2:]:
                for number in range(24):
                    client.ask(model=f"model-{number}", path="/v1" + path.removeprefix("/openai/v1"), more=more)
                    assert client.response().status == 200
            upstream.wait(house.idle)
            gc.collect()
            kept = sum(
                each.size
                for each in tracemalloc.take_snapshot().statistics("filename")
                if "/proxy/" in each.traceback[0].filename and "/tests/" not in each.traceback[0].filename
            )
        finally:
            tracemalloc.stop()
        assert kept / 3 < 64 * 1024
        for client in clients:
            client.close()


def test_a_full_or_draining_daemon_refuses(tmp_path: Path) -> None:
    """Over max_concurrent or max_body_bytes, and while draining, a request that could ride is refused as any other."""

    def slow(peer: Peer) -> None:
        peer.upstream.wait(lambda: len(peer.upstream.requests) > 3)
        peer.send(GOOD)

    cases: list[Case] = [waits, slow]
    with Upstream(before(lambda peer: cases.pop()(peer))) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port) as one, Client(house.port) as other:
            one.prime().ask("case")
            other.ask()  # meanwhile: from now on two connections to the upstream stand ready
            assert one.response().status == other.response().status == 200
            server = house.settings.server.model_copy(update={"max_concurrent": 1, "max_body_bytes": 300})
            house.do(lambda: house.app.runtime.reload(house.settings.model_copy(update={"server": server})))
            one.prime()
            other.prime()
            one.ask("case")
            upstream.wait(lambda: not cases)
            other.ask()
            assert other.response().code == "overloaded"
        upstream.wait(house.idle)
        with Client(house.port) as client:
            client.prime().ask("x" * 400)
            assert client.response().code == "body_too_large"
        with Client(house.port) as client:
            rides = house.rides
            client.prime()
            assert house.rides > rides
            house.do(house.app.runtime.begin_drain)
            client.ask()
            assert client.response().code == "shutting_down"


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """Requests sent in one go: each answered in turn, though the next begins within the end of the one before."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            peer.send(answer(body=received.body))

    with Upstream(script) as upstream, House(tmp_path, upstream) as house, Client(house.port) as client:
        client.prime()
        for number in range(200):
            client.ask(f"number {number:04}")
        for number in range(200):
            assert f"number {number:04}".encode() in client.response().body
        assert house.rides >= 199


def test_a_client_that_reads_slowly_gets_everything(tmp_path: Path) -> None:
    """Answers for a client that does not read wait for it, in order and whole, and no memory is filled with them."""
    body = b"y" * 30_000
    big = answer(body=body)
    with Upstream(big) as upstream, House(tmp_path, upstream) as house:
        with Client(house.port, receive_buffer=4096) as client:
            client.prime()
            for _ in range(400):
                client.ask()
            seen = 0
            while seen != len(upstream.requests):  # until it stops
                seen = len(upstream.requests)
                time.sleep(0.3)
            assert seen < 400
            for _ in range(400):
                assert client.response().body == body
        assert house.rides > 300


def test_over_tls_as_well(tmp_path: Path) -> None:
    """A connection with TLS may have session tickets to read first: then the request takes the long way, on it."""
    made = certificate(tmp_path)
    more = f'[upstream]\nca_file = "{made.ca_file}"'
    status, *_ = both_ways(tmp_path, ANSWERS["small"], more=more, tls=made.server, rides=1)
    assert status == 200


def test_a_connection_that_the_upstream_closed_is_not_used(tmp_path: Path) -> None:
    """An idle connection that ended in the meantime: the request goes out once, on another one."""

    def script(peer: Peer) -> None:
        for _ in range(2):
            if peer.request() is None:
                return
            peer.send(GOOD)
        peer.fin()

    with Upstream(script) as upstream, House(tmp_path, upstream) as house, Client(house.port) as client:
        for number in range(1, 20):
            client.ask()
            assert client.response().status == 200
            assert len(upstream.requests) == number
            if number % 2 == 0:
                upstream.wait(lambda: upstream.connected == 0)
