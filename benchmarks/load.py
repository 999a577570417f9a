"""The load generator: raw HTTP/1.1 on asyncio protocols over uvloop, lean enough to load a C proxy from one core.

A program of its own, so that it can stay on a core of its own. It prints JSON lines, the last of which is the result.
Where wrk is installed, plain request rows use that instead (see windows.py); everything about streams, cancels, slow
readers and slow senders is done here.

    python load.py KIND '{"port": 5282, ...}'

Kinds: requests, events, first, paced, cancels, mixed, readers, drips. Their options are the fields of `Options`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import processes
import upstreams
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 30.0
"""Seconds that a connection may be silent before it counts as broken."""


@dataclass(frozen=True)
class Options:
    """What to do to whom. Not every kind reads every field."""

    port: int
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 1
    seconds: float = 1.0
    #: Requests in all (cancels, mixed, first); connections each make their share.
    count: int = 0
    #: Bytes of the request's body beside the usual ones (0: the usual body).
    upload: int = 0
    #: Bytes of an answer (readers).
    size: int = 0
    #: Events per second and stream (paced).
    rate: float = 20.0
    #: Seconds over which the connections are opened (paced, drips).
    ramp: float = 1.0
    cancels: float = 0.0
    faults: float = 0.0


def request(options: Options, how: str = "") -> bytes:
    """A whole request, the same each time; ``how`` is for the upstream (upstreams.py)."""
    body = upstreams.REQUEST
    if options.upload:
        body = body[:-1] + b',"user":"' + b"A" * max(0, options.upload - len(body) - 10) + b'"}'
    headers = {
        "host": f"127.0.0.1:{options.port}",
        "user-agent": "lava-proxy-benchmark",
        "accept": "application/json",
        "content-type": "application/json",
        **options.headers,
        "content-length": str(len(body)),
    }
    if how:
        headers["x-mock"] = how
    lines = [f"POST {options.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class Client(asyncio.Protocol):
    """One connection that makes one request at a time.

    ``on_end(client, whole)`` is called when an answer is over: ``whole`` says that it had its end. ``on_data`` gets the
    bytes of the body, with the chunked coding still in them.
    """

    def __init__(self, on_end: Callable[[Client, bool], None], on_data: Callable[[Client, bytes], None] | None = None):
        self.on_end = on_end
        self.on_data = on_data
        self.transport: Any = None
        self.status = 0
        self.head = b""
        self.started = 0.0
        self.busy = False
        self.lost = False
        self.body_bytes = 0
        self._left = 0  # -1: chunked, -2: until the connection ends
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.busy:
            self._end(self._left == -2 and self.status > 0 and exc is None)

    def send(self, data: bytes) -> None:
        """Begin a request."""
        self.status, self.head, self.body_bytes, self.busy = 0, b"", 0, True
        self.started = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.status == 0:
            if self.head:
                data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return
            if not data.startswith(b"HTTP/1."):
                self.transport.abort()
                return
            self.head, data = data[: end + 2], data[end + 4 :]
            self.status = int(self.head[9:12])
            self._begin_body(self.head.lower())
        left = self._left
        if left >= 0:
            self.body_bytes += len(data)
            if data and self.on_data is not None:
                self.on_data(self, data)
            self._left = left - len(data)
            if self._left <= 0:
                self._end(self._left == 0)
            return
        self.body_bytes += len(data)
        if data and self.on_data is not None:
            self.on_data(self, data)
        if left == -1:
            # Good enough here: no chunk of the upstream ends like the end of the coding.
            tail = self._tail = (self._tail + data)[-7:]
            if tail == b"\r\n0\r\n\r\n":
                self._end(True)

    def _begin_body(self, head: bytes) -> None:
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            self._left = int(head[at + 17 : head.index(b"\r\n", at + 2)])
        elif b"\r\ntransfer-encoding: chunked" in head:
            self._left, self._tail = -1, b"\r\n"
        else:
            self._left = -2

    def _end(self, whole: bool) -> None:
        self.busy = False
        if b"\r\nconnection: close" in self.head.lower() and not self.lost:
            self.transport.close()
            self.lost = True
        self.on_end(self, whole)

    def abort(self) -> None:
        """Leave at once, without an ending of ours being reported."""
        self.busy = False
        self.lost = True
        if self.transport is not None:
            self.transport.abort()


async def connect(options: Options, client: Client) -> Client:
    """Open the client's connection."""
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", options.port)
    return client


def say(document: dict[str, Any]) -> None:
    """One line for whoever started this program."""
    print(json.dumps(document), flush=True)


def percentiles(values: array[float]) -> dict[str, float]:
    """p50, p99 and the largest, in the unit of the values."""
    if not values:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[min(last, int(len(ordered) * 0.99))], "max": ordered[-1]}


class Tally:
    """What came of requests: latencies in ms of the good ones, the others by what was wrong with them."""

    def __init__(self) -> None:
        self.latencies = array("d")
        self.wrong: Counter[str] = Counter()

    def take(self, client: Client, whole: bool) -> None:
        """Count one answer."""
        if whole and client.status == 200:
            self.latencies.append((time.perf_counter() - client.started) * 1000)
        else:
            self.wrong[_what(client, whole)] += 1


def _what(client: Client, whole: bool) -> str:
    if client.status == 0:
        return "no answer"
    return f"{client.status} whole" if whole else f"{client.status} cut"


class Rows:
    """``connections`` clients that ask again as soon as they are answered, until told to stop."""

    def __init__(self, options: Options, data: bytes, on_data: Callable[[Client, bytes], None] | None = None) -> None:
        self.options = options
        self.data = data
        self.tally = Tally()
        self.stopping = False
        self.on_data = on_data
        self._clients: list[Client] = []
        self._reopening: set[asyncio.Task[Client]] = set()
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Connect all and let them run."""
        for _ in range(self.options.connections):
            self._clients.append(await connect(self.options, Client(self._ended, self.on_data)))
        for client in self._clients:
            client.send(self.data)

    def _ended(self, client: Client, whole: bool) -> None:
        if self.stopping:
            return
        self.tally.take(client, whole)
        if not client.lost:
            client.send(self.data)
            return
        task = self._loop.create_task(connect(self.options, Client(self._ended, self.on_data)))
        self._reopening.add(task)
        task.add_done_callback(self._reopened)

    def _reopened(self, task: asyncio.Task[Client]) -> None:
        self._reopening.discard(task)
        if task.cancelled() or task.exception() is not None:
            self.tally.wrong["connect"] += 1
        elif not self.stopping:
            self._clients.append(task.result())
            task.result().send(self.data)

    async def close(self) -> None:
        """End it."""
        self.stopping = True
        for task in self._reopening:
            task.cancel()
        for client in self._clients:
            client.abort()
        await asyncio.sleep(0)


async def requests(options: Options) -> dict[str, Any]:
    """Plain requests for some seconds: count, seconds, faults, latencies in ms."""
    rows = Rows(options, request(options, f"bytes {options.size}" if options.size else ""))
    started = time.perf_counter()
    await rows.open()
    await asyncio.sleep(options.seconds)
    seconds = time.perf_counter() - started
    await rows.close()
    tally = rows.tally
    return {
        "requests": len(tally.latencies),
        "seconds": seconds,
        "wrong": sum(tally.wrong.values()),
        "wrong_by_kind": tally.wrong,
        **percentiles(tally.latencies),
    }


async def events(options: Options) -> dict[str, Any]:
    """Unpaced streams for some seconds: events, and streams that were whole or cut."""
    counted = 0

    def count(client: Client, data: bytes) -> None:
        nonlocal counted
        counted += data.count(upstreams.EVENT_MARK)

    rows = Rows(options, request(options, "events 5000"), count)
    started = time.perf_counter()
    await rows.open()
    await asyncio.sleep(options.seconds)
    seconds, total = time.perf_counter() - started, counted
    await rows.close()
    wrong = rows.tally.wrong
    return {"events": total, "seconds": seconds, "wrong": sum(wrong.values()), "wrong_by_kind": wrong}


async def first(options: Options) -> dict[str, Any]:
    """Time to the first event in ms: one stream after the other, a few paced events each."""
    data = request(options, "paced 100 3")
    loop = asyncio.get_running_loop()
    times = array("d")
    wrong = 0
    client: Client | None = None
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until:
        over: asyncio.Future[bool] = loop.create_future()
        seen: list[float] = []

        def ended(client: Client, whole: bool, over: asyncio.Future[bool] = over) -> None:
            if not over.done():
                over.set_result(whole)

        def came(client: Client, data: bytes, seen: list[float] = seen) -> None:
            if not seen and upstreams.EVENT_MARK in data:
                seen.append((time.perf_counter() - client.started) * 1000)

        if client is None or client.lost:
            client = await connect(options, Client(ended, came))
        client.on_end, client.on_data = ended, came
        client.send(data)
        whole = await over
        if whole and client.status == 200 and seen:
            times.append(seen[0])
        else:
            wrong += 1
    if client is not None:
        client.abort()
    return {"streams": len(times), "wrong": wrong, **percentiles(times)}


class Delays:
    """Event delays in ms: how long each event was on its way, by the time that stands in it."""

    def __init__(self) -> None:
        self.recording = False
        self.values = array("f")
        self._tails: dict[Client, bytes] = {}

    def take(self, client: Client, data: bytes) -> None:
        """One segment of a stream."""
        if not self.recording:
            self._tails.clear()
            return
        now = time.monotonic()
        tail = self._tails.pop(client, b"")
        if tail:
            data = tail + data
        mark, width = upstreams.TIME_MARK, upstreams.TIME_WIDTH
        at = data.find(mark)
        while at >= 0:
            end = at + len(mark) + width
            if end > len(data):
                self._tails[client] = data[at:]
                return
            self.values.append((now - float(data[at + len(mark) : end])) * 1000)
            at = data.find(mark, end)


async def paced(options: Options) -> dict[str, Any]:
    """Many slow streams at once, each to its end.

    Says ``steady`` when all are open and ``over`` when the window ends; the streams go on to their own ends. Answers that
    are no stream (a refusal) are counted by status, with the time they took.
    """
    loop = asyncio.get_running_loop()
    delays = Delays()
    whole_count, wrong = 0, Counter[str]()
    refusals = array("d")
    refused: Counter[str] = Counter()
    open_now = 0
    all_over: asyncio.Future[None] = loop.create_future()
    all_begun = asyncio.Event()
    left = options.connections
    # Long enough that the first stream still runs when the last has begun and the window has passed.
    length = int(options.rate * (options.seconds + options.ramp + min(2.0, options.seconds)))

    def ended(client: Client, whole: bool) -> None:
        nonlocal whole_count, left, open_now
        left -= 1
        if client.status == 200:
            open_now -= 1
            whole_count += whole
            if not whole:
                wrong["cut"] += 1
        elif whole:
            code = _header(client.head, b"x-lava-proxy-error")
            after = _header(client.head, b"retry-after")
            refused[f"{client.status} {code} retry-after={after}"] += 1
            refusals.append((time.perf_counter() - client.started) * 1000)
        else:
            wrong[_what(client, whole)] += 1
        begun()
        if left == 0 and not all_over.done():
            all_over.set_result(None)

    counted: set[Client] = set()

    def begun() -> None:
        if len(counted) + refused.total() + wrong.total() >= options.connections:
            all_begun.set()

    def came(client: Client, data: bytes) -> None:
        nonlocal open_now
        if client not in counted and client.status == 200:
            counted.add(client)
            open_now += 1
            begun()
        delays.take(client, data)

    data = request(options, f"paced {options.rate:g} {length}")
    clients = []
    started = loop.time()
    for number in range(options.connections):
        ahead = started + options.ramp * number / options.connections - loop.time()
        if ahead > 0:
            await asyncio.sleep(ahead)
        try:
            client = await connect(options, Client(ended, came))
        except OSError:
            wrong["connect"] += 1
            left -= 1
            continue
        clients.append(client)
        client.send(data)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_begun.wait(), _PATIENCE)
    delays.recording = True
    say({"phase": "steady", "open": open_now})
    await asyncio.sleep(options.seconds)
    delays.recording = False
    at_once = open_now
    say({"phase": "over", "open": open_now})
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_over, options.ramp + 2 + _PATIENCE)
    for client in clients:
        client.abort()
    return {
        "streams": len(counted),
        "at_once": at_once,
        "whole": whole_count,
        "cut": sum(wrong.values()) + left,
        "wrong_by_kind": wrong,
        "refused": sum(refused.values()),
        "refused_by_kind": refused,
        "refusal_ms": percentiles(refusals),
        "events": len(delays.values),
        "delay_ms": percentiles(delays.values),
    }


def _header(head: bytes, name: bytes) -> str:
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return "-"
    return head[at + len(name) + 3 : head.index(b"\r\n", at + 2)].strip().decode("ascii", "replace")


async def cancels(options: Options) -> dict[str, Any]:
    """``count`` requests, each left at some moment: in the head, in the body, before the answer, in a stream, in a download."""
    dice = random.Random(7)
    done: Counter[str] = Counter()
    numbers = iter(range(options.count))

    async def one(kind: str) -> None:
        came: asyncio.Event = asyncio.Event()
        client = await connect(options, Client(lambda client, whole: came.set(), lambda client, data: came.set()))
        how = {"stream": "paced 20 2000", "download": f"bytes {4 << 20}"}.get(kind, "slow 30")
        data = request(options, how)
        body_at = data.index(b"\r\n\r\n") + 4
        if kind == "head":
            data = data[: dice.randrange(1, body_at)]
        elif kind == "body":
            data = data[: dice.randrange(body_at, len(data))]
        client.send(data)
        if kind in ("stream", "download"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(came.wait(), _PATIENCE)
            if client.status != 200:
                kind = f"{kind} refused {client.status}"
        else:
            await asyncio.sleep(dice.random() * 0.02)
        client.abort()
        done[kind] += 1

    async def worker() -> None:
        kinds = ("head", "body", "waiting", "stream", "download")
        for number in numbers:
            try:
                await one(kinds[number % len(kinds)])
            except OSError:
                done["connect failed"] += 1

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(options.connections)))
    return {"cancelled": sum(done.values()), "by_kind": done, "seconds": time.perf_counter() - started}


async def mixed(options: Options) -> dict[str, Any]:
    """``count`` short requests: a share of them cancelled, a share met by a fault of the upstream, the others good.

    Wrong is: a good one without its whole 200, and a fault that was not told as one.
    """
    dice = random.Random(11)
    good = request(options)
    slow = request(options, "slow 5")
    kinds = ("error500", "cut-head", "cut-body", "cut-stream", "garbage")
    faulty = {kind: request(options, f"fault {kind}") for kind in kinds}
    outcome: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    latencies = array("d")
    numbers = iter(range(options.count))

    async def ask(client: Client | None, data: bytes) -> tuple[Client, bool]:
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def ended(client: Client, whole: bool) -> None:
            if not over.done():
                over.set_result(whole)

        if client is None or client.lost:
            client = await connect(options, Client(ended))
        client.on_end = ended
        client.send(data)
        return client, await asyncio.wait_for(over, _PATIENCE)

    async def worker() -> None:
        client: Client | None = None
        for _ in numbers:
            throw = dice.random()
            try:
                if throw < options.cancels:
                    if client is None or client.lost:
                        client = await connect(options, Client(lambda client, whole: None))
                    client.send(slow if throw < options.cancels / 2 else good)
                    await asyncio.sleep(dice.random() * 0.003)
                    client.abort()
                    outcome["cancelled"] += 1
                elif throw < options.cancels + options.faults:
                    kind = dice.choice(kinds)
                    client, whole = await ask(client, faulty[kind])
                    outcome[f"{kind}: {_what(client, whole)}"] += 1
                    if whole and client.status == 200:
                        wrong[f"{kind} looks good"] += 1
                else:
                    client, whole = await ask(client, good)
                    if whole and client.status == 200:
                        outcome["good"] += 1
                        latencies.append((time.perf_counter() - client.started) * 1000)
                    else:
                        wrong[_what(client, whole)] += 1
            except (OSError, TimeoutError) as error:
                wrong[type(error).__name__] += 1
                client = None
        if client is not None:
            client.abort()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(options.connections)))
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "by_kind": outcome,
        "wrong": sum(wrong.values()),
        "wrong_by_kind": wrong,
        **percentiles(latencies),
    }


class SlowReader(Client):
    """Reads one segment, then nothing for a while, until it is told to hurry."""

    hurry = False
    pause = 0.2

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.hurry and self.busy:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self.pause, self.go_on)

    def go_on(self) -> None:
        """Read again."""
        if self.busy and not self.lost:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()


async def readers(options: Options) -> dict[str, Any]:
    """Large answers read slowly for some seconds (``steady`` to ``over``), then to their ends at full speed."""
    loop = asyncio.get_running_loop()
    whole_bytes = Counter[int]()
    wrong: Counter[str] = Counter()
    left = options.connections
    all_over: asyncio.Future[None] = loop.create_future()

    def ended(client: Client, whole: bool) -> None:
        nonlocal left
        left -= 1
        if whole and client.status == 200:
            whole_bytes[client.body_bytes] += 1
        else:
            wrong[_what(client, whole)] += 1
        if left == 0 and not all_over.done():
            all_over.set_result(None)

    data = request(options, f"bytes {options.size}")
    clients = [SlowReader(ended) for _ in range(options.connections)]
    for client in clients:
        await connect(options, client)
        client.send(data)
    await asyncio.sleep(min(1.0, options.seconds / 2))
    say({"phase": "steady", "read": sum(client.body_bytes for client in clients)})
    await asyncio.sleep(options.seconds)
    slowly = sum(client.body_bytes for client in clients)
    say({"phase": "over", "read": slowly})
    started = time.perf_counter()
    for client in clients:
        client.hurry = True
        client.go_on()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_over, 120 + options.connections * options.size / 50e6)
    for client in clients:
        client.abort()
    return {
        "whole": whole_bytes[options.size],
        "wrong": sum(wrong.values()) + left,
        "wrong_by_kind": wrong,
        "read_slowly": slowly,
        "mib_per_s_at_the_end": (options.connections * options.size - slowly) / 2**20 / (time.perf_counter() - started),
    }


async def drips(options: Options) -> dict[str, Any]:
    """Connections that send their head a byte at a time, and again when they are cut: ``steady`` when all are open."""
    loop = asyncio.get_running_loop()
    data = request(options)
    answered: Counter[str] = Counter()
    lives = array("d")
    until = loop.time() + options.ramp + options.seconds
    steady = False

    async def one(number: int) -> None:
        await asyncio.sleep(options.ramp * number / options.connections)
        while loop.time() < until:
            over: asyncio.Future[bool] = loop.create_future()

            def ended(client: Client, whole: bool, over: asyncio.Future[bool] = over) -> None:
                if not over.done():
                    over.set_result(whole)

            try:
                client = await connect(options, Client(ended))
            except OSError:
                answered["connect failed"] += 1
                await asyncio.sleep(0.5)
                continue
            client.send(data[:1])
            opened, at = loop.time(), 1
            while not over.done() and loop.time() < until:
                await asyncio.wait([over], timeout=1.0)
                if not client.lost and not over.done():
                    client.transport.write(data[at : at + 1])
                    at += 1
            if over.done():
                answered[str(client.status or "closed")] += 1
                lives.append(loop.time() - opened)
            client.abort()

    workers = [loop.create_task(one(number)) for number in range(options.connections)]
    await asyncio.sleep(options.ramp)
    steady = True
    say({"phase": "steady", "open": options.connections})
    await asyncio.gather(*workers)
    return {"ends": answered, "life_s": percentiles(lives), "steady": steady}


KINDS = {
    "requests": requests,
    "events": events,
    "first": first,
    "paced": paced,
    "cancels": cancels,
    "mixed": mixed,
    "readers": readers,
    "drips": drips,
}


if __name__ == "__main__":
    processes.raise_descriptor_limit()
    say(uvloop.run(KINDS[sys.argv[1]](Options(**json.loads(sys.argv[2])))))
