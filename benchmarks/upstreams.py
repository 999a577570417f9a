"""The upstream of the benchmarks: a program that answers as the header ``x-mock`` of each request says.

    (none)                the small JSON chat completion
    events N              an SSE answer of N events, as fast as the socket takes them, one write each
    paced RATE N          an SSE answer of N events, RATE per second; each carries the time at which it left
    bytes N               a JSON answer of about N bytes
    slow SECONDS          the small answer, later
    fault KIND            error500, cut-head, cut-body, cut-stream or garbage
    stats                 its own counts, as JSON

It is asyncio protocols over uvloop with a parser by hand that knows just enough HTTP for the clients at hand, so that the
upstream is not what limits a measurement. For the plain JSON rows nginx serves the same answer where there is one (see
proxies.py): that is cheaper still.

    python upstreams.py PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import processes
import uvloop

EVENT_MARK = b"~"
"""Stands exactly once in each event and nowhere else in an SSE answer, so that events can be counted in any segments."""

TIME_MARK = b'"t":"'
TIME_WIDTH = 17

ANSWER = json.dumps(
    {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion",
        "created": 1741570283,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The quick brown fox jumps over the lazy dog, and nobody minds. " * 2,
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 19, "completion_tokens": 32, "total_tokens": 51},
        "service_tier": "default",
        "system_fingerprint": "fp_06737a9306",
    },
    separators=(",", ":"),
).encode()

REQUEST = json.dumps(
    {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant that answers in one short paragraph. " * 4},
            {"role": "user", "content": "Say something about a fox, a dog, and what happens between the two. " * 3},
        ],
        "temperature": 0.7,
        "max_tokens": 200,
    },
    separators=(",", ":"),
).encode()


def _head(length: int, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (content_type, length)


_JSON = _head(len(ANSWER)) + ANSWER
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
_DONE = b"data: [DONE]\n\n"
_STREAM_END = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_DONE), _DONE)
_ERROR = b'{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}'
_FAULTS = {
    b"error500": b"HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ERROR)
    + _ERROR,
    b"cut-head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    b"cut-body": _head(len(ANSWER)) + ANSWER[: len(ANSWER) // 2],
    b"garbage": b"220 mail.example.com ESMTP ready\r\n",
}


def _event() -> bytes:
    """One event of a stream, as one chunk, with the present time (``time.monotonic``, which all processes share)."""
    event = (
        b'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,'
        b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" word~"},"finish_reason":null}],"t":"%017.6f"}\n\n'
        % time.monotonic()
    )
    return b"%x\r\n%b\r\n" % (len(event), event)


def _large(size: int) -> bytes:
    """A JSON document of ``size`` bytes with an embedding-like body and the usage at its end."""
    start = b'{"object":"list","model":"text-embedding-3-large","data":[{"object":"embedding","index":0,"embedding":"'
    end = b'"}],"usage":{"prompt_tokens":8,"total_tokens":8}}'
    return start + b"A" * max(0, size - len(start) - len(end)) + end


class Pump:
    """Sends unpaced streams: one event to each in turn, as long as their sockets take it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[Peer, int] = {}
        self._running = False

    def add(self, peer: Peer, events: int) -> None:
        """Send that many events to ``peer``."""
        self._streams[peer] = events
        self.wake()

    def drop(self, peer: Peer) -> None:
        """It left."""
        self._streams.pop(peer, None)

    def wake(self) -> None:
        """There may be room again."""
        if not self._running:
            self._running = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        event = _event()
        moved = False
        for peer, left in list(self._streams.items()):
            if peer.paused:
                continue
            moved = True
            if left > 0:
                peer.write(event)
                self._streams[peer] = left - 1
            else:
                del self._streams[peer]
                peer.write(_STREAM_END)
                peer.answered()
        self._running = moved
        if moved:
            self._loop.call_soon(self._turn)


class Wheel:
    """Sends paced streams of one rate. They are spread over the period, so that a thousand do not all send at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float) -> None:
        self._loop = loop
        self._slots: list[dict[Peer, int]] = [{} for _ in range(max(1, round(1000 / rate)))]
        self._next = 0
        self._due = 0.0
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, peer: Peer, events: int) -> None:
        """The first event leaves at once, the others at their times."""
        peer.write(_event())
        if self._timer is None:
            self._due = self._loop.time()
            self._timer = self._loop.call_later(0.001, self._turn)
        # A stride that visits every slot: neighbours in time get slots far apart.
        slot = (self._next + len(self._slots) - 1 - (self._count * 7) % len(self._slots)) % len(self._slots)
        self._slots[slot][peer] = events - 1
        peer.slot = self._slots[slot]
        self._count += 1

    def _turn(self) -> None:
        now = self._loop.time()
        while self._due <= now:
            slot = self._slots[self._next]
            self._next = (self._next + 1) % len(self._slots)
            self._due += 0.001
            if not slot:
                continue
            event = _event()
            for peer, left in list(slot.items()):
                if left > 0:
                    slot[peer] = left - 1
                    peer.write(event)
                else:
                    del slot[peer]
                    peer.slot = None
                    peer.write(_STREAM_END)
                    peer.answered()
        if any(self._slots):
            # Never less than the clock's step: a delay that rounds to nothing would spin.
            self._timer = self._loop.call_later(max(0.001, self._due - self._loop.time()), self._turn)
        else:
            self._timer = None


class Mock:
    """What all connections share."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pump = Pump(self.loop)
        self.wheels: dict[float, Wheel] = {}
        self.large: dict[int, bytes] = {}
        self.peers: set[Peer] = set()
        self.busy: set[Peer] = set()
        self.requests = 0

    def stats(self) -> bytes:
        """Connections, exchanges that are not over, requests so far; the one that asks is not counted."""
        return json.dumps(
            {"connections": len(self.peers) - 1, "busy": len(self.busy) - 1, "requests": self.requests - 1}
        ).encode()


class Peer(asyncio.Protocol):
    """One connection. An answer is decided when the whole request has come."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.paused = False
        self.slot: dict[Peer, int] | None = None
        self._transport: Any = None
        self._data = b""
        self._left = 0  # bytes of the request's body that are still to come; -1: chunked
        self._how = b""
        self._timer: asyncio.TimerHandle | None = None
        self._source: tuple[memoryview, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.mock.peers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.mock.peers.discard(self)
        self.mock.busy.discard(self)
        self.mock.pump.drop(self)
        if self.slot is not None:
            self.slot.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        self._source = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._source is not None:
            self._send_more()
        self.mock.pump.wake()

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                data = self._body(data)
                continue
            data = self._data + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._data = data
                return
            self._data = b""
            head = data[: end + 2].lower()
            data = data[end + 4 :]
            self.mock.busy.add(self)
            self._how = _value(head, b"\r\nx-mock:")
            length = _value(head, b"\r\ncontent-length:")
            self._left = int(length) if length else -1 if b"\r\ntransfer-encoding:" in head else 0
            if self._left == 0:
                self._answer()

    def _body(self, data: bytes) -> bytes:
        """Take what belongs to the body; gives what comes after it."""
        if self._left < 0:
            self._data = (self._data + data)[-7:]
            if self._data.endswith(b"0\r\n\r\n"):
                self._data, self._left = b"", 0
                self._answer()
            return b""
        taken = min(self._left, len(data))
        self._left -= taken
        if self._left == 0:
            self._answer()
        return data[taken:]

    def write(self, data: bytes | memoryview) -> None:
        """Send; a client that is gone is not news here."""
        self._transport.write(data)

    def answered(self) -> None:
        """The exchange is over."""
        self.mock.busy.discard(self)

    def _answer(self) -> None:
        mock = self.mock
        mock.requests += 1
        if not self._how:
            self.write(_JSON)
            self.answered()
            return
        verb, *rest = self._how.split()
        match verb:
            case b"events":
                self.write(_STREAM_HEAD)
                mock.pump.add(self, int(rest[0]))
            case b"paced":
                rate = float(rest[0])
                self.write(_STREAM_HEAD)
                wheel = mock.wheels.get(rate) or mock.wheels.setdefault(rate, Wheel(mock.loop, rate))
                wheel.add(self, int(rest[1]))
            case b"bytes":
                size = int(rest[0])
                body = mock.large.get(size) or mock.large.setdefault(size, _large(size))
                self.write(_head(len(body)))
                self._source = (memoryview(body), 0)
                self._send_more()
            case b"slow":
                self._timer = mock.loop.call_later(float(rest[0]), self._late)
            case b"fault":
                self._fail(rest[0])
            case b"stats":
                said = mock.stats()
                self.write(_head(len(said)) + said)
                self.answered()
            case _:
                self._transport.abort()

    def _send_more(self) -> None:
        """As much of a large answer as the socket takes: never a copy of all of it per client."""
        while self._source is not None and not self.paused:
            body, at = self._source
            if at >= len(body):
                self._source = None
                self.answered()
                return
            self._source = (body, at + 262_144)
            self.write(body[at : at + 262_144])

    def _late(self) -> None:
        self.write(_JSON)
        self.answered()

    def _fail(self, kind: bytes) -> None:
        if kind == b"cut-stream":
            self.write(_STREAM_HEAD + _event() + _event()[:-20])
        else:
            self.write(_FAULTS[kind])
        self.answered()
        if kind != b"error500":
            self._transport.close()


def _value(head: bytes, name: bytes) -> bytes:
    at = head.find(name)
    if at < 0:
        return b""
    at += len(name)
    return head[at : head.index(b"\r\n", at)].strip()


async def serve(port: int) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    mock = Mock()
    server = await mock.loop.create_server(lambda: Peer(mock), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    processes.raise_descriptor_limit()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(int(sys.argv[1])))
