"""Every answer, three ways: to a first request, to one whose like was served before, and on stock uvicorn.

Each check holds the same conversation over real sockets, in front of the same scripted upstream. Everything that can be seen
from outside must be the same: what the client got and how it ended, what the upstream got and what became of its connection,
the log and the counts. And each check pins what it must be, so that a fault of all ways is noticed, too.

- ``first``: a fresh gateway and a fresh connection; nothing is remembered.
- ``repeated``: the same head was served twice on this connection. Its template and its prepared request are remembered, and an
  idle connection to the upstream is at hand.
- ``uvicorn-strict``: the strict protocol in the slot of an unmodified ``uvicorn.Server``.
- ``httptools``, ``h11``: ``create_app()`` as an ASGI application of an unmodified ``uvicorn.Server`` with that parser.
"""

from __future__ import annotations

import gc
import json
import re
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from configurations import LAVA_KEY, loaded
from conversations import conversation
from rawclient import PATIENCE
from served import Client, Served, plain
from upstream import Peer, Upstream, answer, certificate, chunked

from proxy.gateway import admit, relay, serve
from proxy.gateway.active_request import ActiveRequest
from proxy.gateway.destinations.lava import LavaDestination
from proxy.gateway.request_body import RequestBody
from proxy.gateway.template import PREPARED_BYTES, Prepared, Template
from proxy.http.asgi import ASGIExchange
from proxy.http.connection import HTTPExchange
from proxy.http.framing import _MAX_REMEMBERED
from proxy.protocol.record import Record
from proxy.protocol.tasks import RequestTask, Signal
from proxy.upstream.heads import MAX_LINE_BYTES, MAX_LINES

if TYPE_CHECKING:
    from pathlib import Path

    from daemons import StartDaemon
    from served import Server

SSE = [(b"Content-Type", b"text/event-stream")]
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = answer(body=b'{"model":"gpt-4o","usage":{"prompt_tokens":1,"completion_tokens":2}}')
JSON = [(b"Content-Type", b"application/json")]
Way = tuple[bool, "Server"]
WAYS: dict[str, Way] = {
    "first": (False, "strict"),
    "repeated": (True, "strict"),
    "httptools": (False, "httptools"),
    "uvicorn-strict": (False, "uvicorn-strict"),
}


class Seen(NamedTuple):
    """What a client gets."""

    status: int | None
    """``None``: the connection was closed without an answer."""
    headers: list[tuple[str, str]]
    body: str
    complete: bool
    serves_on: bool
    """Whether the connection serves a further request."""

    @property
    def code(self) -> str | None:
        """Our own error code."""
        return dict(self.headers).get("x-lava-proxy-error")


def see(client: Client, *, further: bool = True) -> Seen:
    """What comes back, as far as it comes."""
    try:
        response = client.response()
    except ConnectionError:
        return Seen(None, [], "", False, False)
    serves_on = False
    if further and response.complete and response.header("connection") != "close":
        try:
            client.ask()
            serves_on = client.response().status == 200
        except OSError:
            serves_on = False
    headers = sorted((name, plain(value)) for name, value in response.headers if name != "date")
    return Seen(response.status, headers, plain(response.body.decode("latin-1")), response.complete, serves_on)


Case = Callable[[Peer], object]
Act = Callable[[Served, Upstream, Client], Seen]


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


def ask_the_case(served: Served, upstream: Upstream, client: Client) -> Seen:
    client.ask("case")
    return see(client)


class Found(NamedTuple):
    """What is compared between the ways."""

    seen: Seen
    lines: list[dict[str, Any]]
    sent: list[str]
    connections: list[int]
    """To the upstream, of each request, counted from that of the first."""
    counts: dict[tuple[str, str, object], float]
    in_flight: int


def counts(served: Served) -> dict[tuple[str, str, object], float]:
    """The counters of requests by (project, provider), and how many first bytes were counted."""
    found: dict[tuple[str, str, object], float] = {}
    metrics: Any = served.app.runtime.metrics
    for where, series in metrics._series.items():
        found.update({(*where, ended): count for ended, count in series.requests.items()})
        found[*where, "first bytes"] = sum(series.first_byte[:-1])
    return found


def found_by(way: Way, folder: Path, case: Case, act: Act, more: str, tls: Any) -> Found:
    """Do ``act`` in one way."""
    repeated, server = way
    with Upstream(before(case), tls=tls) as upstream, Served(folder, upstream, more, server=server) as served:
        with Client(served.port) as client:
            template: Template | None = None
            if repeated:
                client.prime()
                served.primed = 2
                served.told(2)
                (template,) = served.templates()
                assert template is not None
                assert b'"gpt-4o"' in template.prepared
            begun = counts(served)
            seen = act(served, upstream, client)
            upstream.wait(served.idle)
            if repeated:
                # It was served by what is remembered, on the connection that was idle (with TLS it may have to be another).
                assert all(each is template for each in served.templates())
                assert tls is not None or upstream.requests[2].connection == 0
        lines = served.told(len(upstream.requests))[served.primed :]
        for line in lines:
            assert line.pop("duration_ms") >= 0
            assert (line.pop("first_byte_ms") or 0) >= 0
            del line["timestamp"], line["request_id"]
        told = {what: count - begun.get(what, 0) for what, count in counts(served).items()}
        ended = {what: count for what, count in told.items() if count}
        requests = upstream.requests[served.primed :]
        sent = [plain(each.raw.decode("latin-1")) for each in requests]
        connections = [each.connection - requests[0].connection for each in requests]
        metrics: Any = served.app.runtime.metrics
        return Found(seen, lines, sent, connections, ended, metrics._in_flight())


def in_every_way(
    folder: Path, case: Case, act: Act = ask_the_case, more: str = "", tls: Any = None, others: tuple[Server, ...] = ()
) -> Found:
    """Do ``act`` in every way, and return what was found, the same each time."""
    ways = [*WAYS.values(), *((False, other) for other in others)]
    first, *rest = (found_by(way, folder, case, act, more, tls) for way in ways)
    for way, found in zip(ways[1:], rest, strict=True):
        assert found == first, way
    assert first.in_flight == 0
    return first


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
    "an echo of the token": lambda peer: peer.send(answer(400, peer.upstream.requests[-1].raw[:220], JSON)),
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


class Ending(NamedTuple):
    """How a request ends: at the client, and in the log."""

    status: int
    outcome: str
    code: str | None = None
    complete: bool = True
    reuses: bool = True
    """Whether the connection to the upstream serves the next request."""


NO_HEAD = frozenset({"upstream_protocol", "upstream_closed"})
"""Errors of an answer whose head never came."""
BROKEN = Ending(200, "truncated", complete=False, reuses=False)
ENDINGS: dict[str, Ending] = {
    "small": Ending(200, "ok"),
    "without a body": Ending(204, "ok"),
    "an empty body": Ending(200, "ok"),
    "chunked, at once": Ending(200, "ok"),
    "chunked, by halves": Ending(200, "ok"),
    "head and body apart": Ending(200, "ok"),
    "byte by byte": Ending(200, "ok"),
    "hints before": Ending(200, "ok"),
    "too many hints": Ending(502, "upstream_error", "upstream_protocol", reuses=False),
    "to the end of the connection": Ending(200, "ok", reuses=False),
    "said to be the last": Ending(200, "ok", reuses=False),
    "more than announced": Ending(200, "ok", reuses=False),
    "a second answer": Ending(200, "ok", reuses=False),
    "less than announced": BROKEN,
    "a broken connection": BROKEN,
    "no answer": Ending(502, "upstream_error", "upstream_closed", reuses=False),
    "a reset": Ending(502, "upstream_error", "upstream_closed", reuses=False),
    "no HTTP": Ending(502, "upstream_error", "upstream_protocol", reuses=False),
    "a broken chunk": BROKEN,
    "a broken head": Ending(502, "upstream_error", "upstream_protocol", reuses=False),
    "two lengths": Ending(502, "upstream_error", "upstream_protocol", reuses=False),
    "Lava: 401": Ending(401, "lava_error", "lava_unauthorized"),
    "Lava: 402": Ending(402, "lava_error", "lava_insufficient_balance"),
    "a provider's 400": Ending(400, "provider_error"),
    "a page, 502": Ending(502, "provider_error"),
    "a redirect": Ending(502, "upstream_error", "upstream_redirect"),
    "not modified": Ending(304, "ok"),
    "headers that stay here": Ending(200, "ok"),
    "an echo of the token": Ending(400, "provider_error"),
    "compressed": Ending(200, "ok"),
    "events, at once": Ending(200, "ok"),
    "events, chunked": Ending(200, "ok"),
    "events without an end": Ending(200, "incomplete"),
    "events that break off": BROKEN,
    "events to the end of the connection": Ending(200, "ok", reuses=False),
    "an error inside": Ending(200, "provider_error"),
    "a megabyte": Ending(200, "ok"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_the_same(tmp_path: Path, name: str) -> None:
    """Every kind of answer, sound or not: the same bytes, the same end, the same error, log line and counts."""
    found = in_every_way(tmp_path, ANSWERS[name], more="diagnose = false", others=("h11",))
    seen, line, ending = found.seen, found.lines[0], ENDINGS[name]
    assert (seen.status, seen.code, seen.complete) == (ending.status, ending.code, ending.complete)
    error = ending.code if ending.complete else "upstream_closed"
    assert (line["status"], line["outcome"], line.get("error")) == (ending.status, ending.outcome, error)
    # Only a broken answer ends the client's connection; the next request goes out once, as well as this one.
    assert seen.serves_on == ending.complete
    assert found.connections == ([0, 0] if ending.reuses else [0, 1] if ending.complete else [0])
    assert found.counts["default", "openai", (ending.status, ending.outcome)] >= 1
    assert found.counts["default", "openai", "first bytes"] == len(found.sent) - (ending.code in NO_HEAD)


def test_a_good_answer_is_recorded_once_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    """What all is compared with: its bytes, its headers, and its line of the log."""
    with Upstream(before(ANSWERS["small"])) as upstream, Served(tmp_path, upstream) as served:
        with Client(served.port) as client:
            client.prime().ask("case")
            response = client.response()
        assert response.status == 200
        assert response.body == GOOD[GOOD.index(b"{") :]
        assert response.header("x-lava-proxy-project") == "default"
        lines = served.told(3)
    line = lines[2]
    assert line["request_id"] == response.header("x-lava-proxy-request-id")
    assert len({each["request_id"] for each in lines}) == 3
    told = {"outcome": "ok", "status": 200, "input_tokens": 1, "output_tokens": 2, "model": "gpt-4o", "error": None}
    assert {name: line.get(name) for name in told} == told
    assert line["bytes_in"] == len(upstream.requests[2].body)
    assert line["bytes_out"] == len(response.body)
    assert 0 <= line["first_byte_ms"] <= line["duration_ms"]


def hold_conversations(folder: Path, seeds: range) -> None:
    """Hold every conversation on a fresh connection, on one that served its like, and there once more."""
    found: list[list[object]] = []

    def case(peer: Peer) -> None:
        number = re.search(rb"case ([0-9]+)", peer.upstream.requests[-1].body)
        assert number is not None
        for segment in conversation(int(number[1])).segments:
            peer.drip(segment, len(segment), 0.0002)
        peer.fin()
        peer.gone()

    for primes in (0, 2):
        with Upstream(before(case)) as upstream, Served(folder, upstream, "diagnose = false") as served:
            for again in range(1 + (primes > 0)):
                seen: list[object] = []
                for seed in seeds:
                    with Client(served.port) as client:
                        client.prime(primes).ask(f"case {seed}")
                        seen.append(see(client, further=False))
                    upstream.wait(lambda: upstream.connected == 0)  # it closes without a word
                lines = served.told((1 + again) * len(seeds) * (primes + 1))[again * len(seeds) * (primes + 1) :]
                for line in lines[primes :: primes + 1]:
                    for name in ("timestamp", "request_id", "duration_ms", "first_byte_ms"):
                        del line[name]
                    seen.append(line)
                found.append(seen)
            upstream.wait(served.idle)
    first, *others = found
    assert len(first) == 2 * len(seeds)
    for other in others:
        for place, (expected, got) in enumerate(zip(first, other, strict=True)):
            assert got == expected, f"seed {seeds[place % len(seeds)]}"


def test_random_conversations_are_the_same(tmp_path: Path) -> None:
    """Random answers, a third of them damaged, in random segments: what was served before changes none."""
    hold_conversations(tmp_path, range(100))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_random_conversations_are_the_same(tmp_path: Path) -> None:
    """The same with 3,000 further seeds."""
    hold_conversations(tmp_path, range(20_000, 23_000))


# --- ends that are not the answer's own ------------------------------------------------------------------------------


def waits(peer: Peer) -> None:
    """Says nothing until the daemon leaves."""
    peer.gone()


def begins(peer: Peer) -> None:
    """Says the beginning of a stream, then nothing until the daemon leaves."""
    peer.send(EVENTS, chunked(DELTA, end=False))
    peer.gone()


def fails(peer: Peer) -> None:
    """Says the head of an error, then nothing until the daemon leaves."""
    peer.send(answer(400, b"{}", JSON)[:-2])
    peer.gone()


def came(upstream: Upstream) -> Callable[[], bool]:
    return lambda: any(b"case" in each.body for each in upstream.requests)


def answering(served: Served) -> Callable[[], bool]:
    return lambda: served.do(lambda: served.active().answering)


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("case", [waits, begins])
def test_a_client_that_leaves_ends_its_request(tmp_path: Path, case: Case, how: str) -> None:
    """The upstream's connection is closed long before a limit strikes; nothing of a body is held until then."""

    def act(served: Served, upstream: Upstream, client: Client) -> Seen:
        client.ask("case")
        upstream.wait(came(upstream))
        if case is begins:
            assert client.head().status == 200
            assert client.chunk() == DELTA
        assert served.do(served.held) == 0
        if how == "half":
            client.sock.shutdown(1)
        else:
            client.close() if how == "close" else client.reset()
        upstream.wait(lambda: upstream.connected == 0)
        return NOTHING

    (line,) = in_every_way(tmp_path, case, act).lines
    assert (line["outcome"], line["status"]) == ("client_gone", None if case is waits else 200)


NOTHING = Seen(None, [], "", False, False)


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

    def act(served: Served, upstream: Upstream, client: Client) -> Seen:
        client.ask("case")
        seen = see(client, further=False)
        upstream.wait(lambda: upstream.connected == 0)
        return seen

    found = in_every_way(tmp_path, case, act, f"[upstream]\n{limit} = 0.5")
    seen, (line,) = found.seen, found.lines
    assert (seen.status, seen.complete) == ((504, True) if case is waits else (200, False))
    assert "upstream_timeout" in seen.body
    assert (line["outcome"], line["error"]) == (outcome, "upstream_timeout")


@pytest.mark.parametrize("case", [waits, begins])
def test_a_shutdown_ends_what_is_on_its_way(tmp_path: Path, case: Case) -> None:
    """The end of a drain: 503 if nothing was answered yet, else an error inside the stream; the record says why."""

    def act(served: Served, upstream: Upstream, client: Client) -> Seen:
        client.ask("case")
        upstream.wait(came(upstream))
        if case is begins:
            upstream.wait(answering(served))
        served.do(served.app.runtime.begin_drain)
        served.do(served.app.runtime.cut)
        return see(client)

    found = in_every_way(tmp_path, case, act)
    seen, (line,) = found.seen, found.lines
    assert (seen.status, seen.complete, seen.serves_on) == (
        (503, True, False) if case is waits else (200, False, False)
    )
    assert "shutting_down" in seen.body
    assert (line["outcome"], line["error"]) == ("shutdown", "shutting_down")


def test_a_daemon_waits_for_requests_on_their_way(daemon: StartDaemon) -> None:
    """SIGTERM: a drain counts and awaits such a request, gives it its whole answer, and logs it."""
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
def test_a_daemon_that_waits_no_longer_answers_what_is_on_its_way(daemon: StartDaemon, signals: int) -> None:
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
    """What ends a request while its code runs counts at its next wait: the first reason, once, and nothing leaks."""

    async def ended_at_once(active: ActiveRequest, *more: Any) -> None:
        if active.record.bytes_in == in_question:
            active.end("shutdown")
            active.end("client_gone")
        await relay.relay(active, *more)

    in_question = len(b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "case"}]}')
    monkeypatch.setattr(serve, "relay", ended_at_once)

    def act(served: Served, upstream: Upstream, client: Client) -> Seen:
        client.ask("case")
        seen = see(client, further=False)
        upstream.wait(lambda: upstream.connected == 0)
        return seen

    found = in_every_way(tmp_path, case, act)
    assert (found.seen.status, found.seen.complete) == (status, status == 503)
    assert "shutting_down" in found.seen.body
    assert found.lines[0]["outcome"] == "shutdown"


def test_a_fault_of_our_own_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If our code fails, the client gets our internal_error, and the next request is served."""

    async def failing(active: ActiveRequest, *more: Any) -> None:
        if active.record.bytes_in == in_question:
            raise RuntimeError("on purpose")
        await relay.relay(active, *more)

    in_question = len(b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "case"}]}')
    monkeypatch.setattr(serve, "relay", failing)
    found = in_every_way(tmp_path, ANSWERS["small"])
    assert (found.seen.status, found.seen.code, found.seen.serves_on) == (500, "internal_error", True)
    assert [line["outcome"] for line in found.lines] == ["refused", "ok"]
    assert found.counts["default", "openai", (500, "refused")] == 1


def leaves(served: Served, upstream: Upstream, client: Client) -> Seen:
    client.ask("case")
    upstream.wait(came(upstream))
    client.reset()
    return NOTHING


LEFT: dict[str, tuple[Case, Act]] = {
    **{
        name: (ANSWERS[name], ask_the_case)
        for name in (
            "small",
            "events, chunked",
            "a megabyte",
            "Lava: 402",
            "an echo of the token",
            "less than announced",
        )
    },
    **{
        name: (ANSWERS[name], ask_the_case) for name in ("no answer", "a broken chunk", "a redirect", "an error inside")
    },
    "too slow before the head": (waits, ask_the_case),
    "too slow after the head": (begins, ask_the_case),
    "a client that leaves before the head": (waits, leaves),
    "a client that leaves after the head": (begins, leaves),
}
OF_ONE_REQUEST = (ActiveRequest, HTTPExchange, ASGIExchange, Record, RequestBody, RequestTask, Signal)


@pytest.mark.parametrize("server", ["strict", "httptools"])
@pytest.mark.parametrize("name", LEFT)
def test_nothing_is_left_for_the_collector(tmp_path: Path, name: str, server: Server) -> None:
    """However a request ends, all that belongs to it dies by reference count: the collector rarely looks."""

    def remaining() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, OF_ONE_REQUEST)]

    case, act = LEFT[name]
    more = "diagnose = false\n[upstream]\nfirst_byte = 0.3\nidle = 0.3"
    with Upstream(before(case)) as upstream, Served(tmp_path, upstream, more, server=server) as served:

        def once() -> None:
            with Client(served.port) as client:
                act(served, upstream, client.prime(1))
            upstream.wait(served.idle)
            served.told(len(upstream.requests))
            served.do(lambda: None)  # the turn of the loop in which the observers were called is over

        once()
        gc.collect()
        gc.disable()
        try:
            there = len(remaining())
            once()
            end = time.monotonic() + PATIENCE
            while len(remaining()) > there:
                assert time.monotonic() < end, {type(each).__name__ for each in remaining()}
                time.sleep(0.02)
        finally:
            gc.enable()


# --- what is remembered -----------------------------------------------------------------------------------------------


class Work:
    """How often a head was judged, and a request prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.judged = self.prepared = 0
        judge, prepare = admit._judge, LavaDestination.prepare

        def judging(active: ActiveRequest) -> Template:
            self.judged += 1
            return judge(active)

        def preparing(*given: Any, **options: Any) -> Prepared:
            self.prepared += 1
            return prepare(*given, **options)

        monkeypatch.setattr(admit, "_judge", judging)
        monkeypatch.setattr(LavaDestination, "prepare", preparing)

    def of(self, client: Client, **how: str) -> tuple[int, int]:
        """(heads judged, requests prepared) for one request that is answered 200."""
        before = self.judged, self.prepared
        client.ask(**how)
        assert client.response().status == 200
        return self.judged - before[0], self.prepared - before[1]


def test_only_what_is_alike_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another head is judged, another model is prepared, and the same ones are not."""
    more = '[models]\nfast = "groq/llama"\n[server]\nallowed_origins = ["https://a.test"]'
    work = Work(monkeypatch)
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream, more) as served, Client(served.port) as client:
        assert [work.of(client) for _ in range(3)] == [(1, 1), (0, 0), (0, 0)]
        assert [work.of(client, model="o3") for _ in range(2)] == [(0, 1), (0, 0)]
        assert [work.of(client, model="fast") for _ in range(3)] == [(0, 1), (0, 0), (0, 0)]
        assert work.of(client) == (0, 0)
        assert [work.of(client, more="X-A: b\r\n") for _ in range(2)] == [(1, 1), (0, 0)]
        assert work.of(client) == (1, 1)
        assert [work.of(client, path="/groq/v1/chat/completions") for _ in range(2)] == [(1, 1), (0, 0)]
        assert [work.of(client, more="Origin: https://a.test\r\n") for _ in range(2)] == [(1, 1), (0, 0)]
        sent = [json.loads(each.body)["model"] for each in upstream.requests]
        assert sent[3:8] == ["o3", "o3", "llama", "llama", "llama"]


def test_the_tools_own_key_is_remembered_in_nothing_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With byok = "client" each request is prepared anew, and carries the key that it came with."""
    work = Work(monkeypatch)
    own = ["own-" + letter * 20 for letter in "kq"]
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream, '[projects.a]\nbyok = "client"') as served:
        with Client(served.port) as client:
            heads = [f"Authorization: Bearer {key}\r\n" for key in own]
            assert [work.of(client, more=heads[0]) for _ in range(3)] == [(1, 1), (0, 1), (0, 1)]
            (template,) = served.templates()
            assert template is not None
            assert len(template.prepared) == 0
            assert work.of(client, more=heads[1]) == (1, 1)
        assert served.app.runtime.config.destination._credentials == {}
        tokens = [each.header(b"authorization") for each in upstream.requests]
        assert tokens[0] == tokens[1] == tokens[2] != tokens[3]


def test_what_is_remembered_shows_no_secret(tmp_path: Path) -> None:
    """Nothing remembered shows a key or a token when it is printed, as a log or a traceback may do."""
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        client.prime(more="X-Api-Key: " + "local-" + "w" * 20 + "\r\n")
        (template,) = served.templates()
        assert template is not None
        token = upstream.requests[-1].header(b"authorization")
        assert token is not None
        for each in (template, *template.prepared.values(), template.received):
            shown = f"{each!r} {each!s}"
            assert token.decode().removeprefix("Bearer ") not in shown
            assert LAVA_KEY not in shown
            assert "local-w" not in shown


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


def test_a_connection_remembers_one_head(tmp_path: Path) -> None:
    """Head to template: the last head of each connection, and none that is long."""
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        there = alive(Template)
        for number in range(50):
            client.prime(1, more=f"X-A: {number}\r\n")
        assert alive(Template) == there + 1
        client.prime(1, more="".join(f"X-{number}: {'v' * 90}\r\n" for number in range(_MAX_REMEMBERED // 90)))
        upstream.wait(served.idle)
        assert served.templates() == [None]
        assert alive(Template) == there


def test_a_template_remembers_prepared_requests_up_to_a_size(tmp_path: Path) -> None:
    """(Template, model) to prepared request: bounded in bytes, whatever models a client asks for."""
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        there = alive(Prepared)
        for number in range(200):
            client.prime(1, model=f"model-{number}")
        (template,) = served.templates()
        assert template is not None
        assert 0 < len(template.prepared) < 50
        # An entry for the model, and one for the JSON string of it, of the same request.
        assert alive(Prepared) == there + len(set(map(id, template.prepared.values())))
        held = sum(each.size + len(model or "") for model, each in template.prepared.items())
        assert held == template.prepared.held <= PREPARED_BYTES
        client.prime(1, model="m" * PREPARED_BYTES)
        assert all(len(model or "") < PREPARED_BYTES for model in template.prepared)


def test_lines_of_answers_are_remembered_up_to_a_number(tmp_path: Path) -> None:
    """Response line to header: so many lines, and none that is long."""
    numbers = iter(range(10_000))

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            lines = [(b"X-%d" % next(numbers), b"v") for _ in range(60)]
            peer.send(answer(200, b"{}", [*lines, (b"X-Long", b"v" * MAX_LINE_BYTES)]))

    with Upstream(script) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        engine: Any = served.app.runtime.config.engine
        most = 0
        for _ in range(20):
            client.ask()
            assert client.response().header("x-long") == "v" * MAX_LINE_BYTES
            most = max(most, len(engine.heads._fields))
        assert MAX_LINES - 62 < most <= MAX_LINES
        assert all(len(line) <= MAX_LINE_BYTES for line in engine.heads._fields)


def test_a_reload_is_heeded_at_once(tmp_path: Path) -> None:
    """The next request is judged by the new configuration; one in flight ends by the old one, whose connections are closed."""

    def late(peer: Peer) -> None:
        peer.upstream.wait(go.is_set)
        peer.send(GOOD)

    go = threading.Event()
    with Upstream(before(late)) as upstream, Served(tmp_path, upstream) as served:
        changed = served.settings.model_copy(
            update={"upstream": served.settings.upstream.model_copy(update={"first_byte": 77.0})}
        )
        with Client(served.port) as riding, Client(served.port) as other:
            riding.prime().ask("case")
            other.prime()
            upstream.wait(lambda: any(b"case" in each.body for each in upstream.requests))
            old = served.app.runtime.config
            served.do(lambda: served.app.runtime.reload(changed))
            other.ask()
            assert other.response().status == 200
            assert {each.config for each in served.templates() if each is not None} > {old}
            go.set()
            assert riding.response().status == 200
        upstream.wait(lambda: served.do(lambda: not served.app.runtime._retired))
        engine: Any = old.engine
        assert served.do(lambda: engine.live) == 0
        assert served.app.runtime.config.deadlines.first_byte == 77


def test_a_reload_that_keeps_the_engine_is_heeded_at_once(tmp_path: Path) -> None:
    """Another key in the configuration: the very next request carries it, on a connection of its own."""
    other_key = LAVA_KEY.replace("c4n", "n4c")
    (tmp_path / "other").mkdir()
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        client.prime()
        changed = loaded(tmp_path / "other", f'[lava]\nsecret_key = "{other_key}"\nbase_url = "{upstream.url}"')
        served.do(lambda: served.app.runtime.reload(changed))
        for _ in range(2):
            client.ask()
            assert client.response().status == 200
            upstream.wait(served.idle)
        tokens = [each.header(b"authorization") for each in upstream.requests]
        assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
        assert [each.connection for each in upstream.requests] == [0, 0, 1, 1]


def test_what_is_kept_for_an_idle_connection_is_bounded_in_bytes(tmp_path: Path) -> None:
    """However many models a client asks for, with however long an address, head and metadata."""
    with Upstream(before(lambda peer: peer.send(GOOD))) as upstream, Served(tmp_path, upstream) as served:
        path = "/openai/v1/chat/completions?" + "&".join(f"q{number}=%2F%2F%2F%2F" for number in range(160))
        more = "".join(f"X-Header-{number}: {'v' * 20}\r\n" for number in range(12))
        clients = [Client(served.port) for _ in range(5)]
        for client in clients[:2]:  # whatever is made once
            client.prime(path=path, more=more)
        tracemalloc.start()
        try:
            for client in clients[2:]:
                for number in range(24):
                    client.ask(model=f"model-{number}", path="/v1" + path.removeprefix("/openai/v1"), more=more)
                    assert client.response().status == 200
            upstream.wait(served.idle)
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
    """Over max_concurrent or max_body_bytes, and while draining, a request of which all is remembered is refused as any other."""

    def slow(peer: Peer) -> None:
        peer.upstream.wait(lambda: len(peer.upstream.requests) > 3)
        peer.send(GOOD)

    cases: list[Case] = [waits, slow]
    with Upstream(before(lambda peer: cases.pop()(peer))) as upstream, Served(tmp_path, upstream) as served:
        with Client(served.port) as one, Client(served.port) as other:
            one.prime().ask("case")
            other.ask()  # meanwhile: from now on two connections to the upstream stand ready
            assert one.response().status == other.response().status == 200
            server = served.settings.server.model_copy(update={"max_concurrent": 1, "max_body_bytes": 300})
            served.do(lambda: served.app.runtime.reload(served.settings.model_copy(update={"server": server})))
            one.prime()
            other.prime()
            one.ask("case")
            upstream.wait(lambda: not cases)
            other.ask()
            assert other.response().code == "overloaded"
        upstream.wait(served.idle)
        with Client(served.port) as client:
            client.prime().ask("x" * 400)
            assert client.response().code == "body_too_large"
        with Client(served.port) as client:
            client.prime()
            served.do(served.app.runtime.begin_drain)
            client.ask()
            assert client.response().code == "shutting_down"


@pytest.mark.parametrize("server", ["strict", "httptools"])
def test_pipelined_requests_are_answered_in_order(tmp_path: Path, server: Server) -> None:
    """Requests sent in one go: each answered in turn, though the next begins within the end of the one before."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            peer.send(answer(body=received.body))

    with (
        Upstream(script) as upstream,
        Served(tmp_path, upstream, server=server) as served,
        Client(served.port) as client,
    ):
        client.prime()
        for number in range(200):
            client.ask(f"number {number:04}")
        for number in range(200):
            assert f"number {number:04}".encode() in client.response().body


@pytest.mark.parametrize("server", ["strict", "httptools"])
def test_a_client_that_reads_slowly_gets_everything(tmp_path: Path, server: Server) -> None:
    """Answers for a client that does not read wait for it, in order and whole, and no memory is filled with them."""
    body = b"y" * 30_000
    big = answer(body=body)
    with (
        Upstream(big) as upstream,
        Served(tmp_path, upstream, server=server) as served,
        Client(served.port, receive_buffer=4096) as client,
    ):
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


def test_over_tls_as_well(tmp_path: Path) -> None:
    """A connection with TLS may have session tickets to read before it can be used again."""
    made = certificate(tmp_path)
    found = in_every_way(tmp_path, ANSWERS["small"], more=f'[upstream]\nca_file = "{made.ca_file}"', tls=made.server)
    assert (found.seen.status, found.lines[0]["outcome"]) == (200, "ok")


def test_a_connection_that_the_upstream_closed_is_not_used(tmp_path: Path) -> None:
    """An idle connection that ended in the meantime: the request goes out once, on another one."""

    def script(peer: Peer) -> None:
        for _ in range(2):
            if peer.request() is None:
                return
            peer.send(GOOD)
        peer.fin()

    with Upstream(script) as upstream, Served(tmp_path, upstream) as served, Client(served.port) as client:
        for number in range(1, 20):
            client.ask()
            assert client.response().status == 200
            assert len(upstream.requests) == number
            if number % 2 == 0:
                upstream.wait(lambda: upstream.connected == 0)


def test_the_strict_protocol_judges_in_uvicorns_server_as_in_ours(tmp_path: Path) -> None:
    """A head without Host is refused before the application; at the end uvicorn closes connections that are idle."""
    with Upstream(GOOD) as upstream, Served(tmp_path, upstream, server="uvicorn-strict") as served:
        with Client(served.port) as client:
            client.send(b"GET /healthz HTTP/1.1\r\n\r\n")
            response = client.response()
            assert (response.status, response.code) == (400, "bad_request")
            assert client.closed()
        idle = Client(served.port).prime(1)
    assert idle.closed()
    idle.close()
