"""A mutation run: good conversations with random damage, against a daemon in front of a recording upstream.

Whatever the bytes are, the daemon and the upstream must not disagree with each other, nor with an independent parser, on
the number, the boundaries or the credential of requests. The daemon is the real ``serve`` with short deadlines, so that it
ends every conversation itself; a conversation is over when it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11
import pytest
from security_stand import LAVA_KEY, Stand, sound, with_site
from upstream import Peer, Received, Upstream

if TYPE_CHECKING:
    from daemons import Daemon

DEADLINE = 45.0
"""Seconds after which a conversation hangs; the daemon's own deadlines for a client are under one in this run."""
CONCURRENT = 96

QUICK_LIMITS = """
import inspect
from proxy.http.framing import Limits
quick = {"header_seconds": 0.5, "keep_alive_seconds": 0.5, "body_grace_seconds": 0.5, "linger_seconds": 0.5, "sweep_seconds": 0.05}
Limits.__init__.__defaults__ = tuple(
    quick.get(name, each.default) for name, each in inspect.signature(Limits).parameters.items()
)
"""


def conversations() -> list[bytes]:
    """Well-formed ones: one or several requests, every framing, small."""
    host = b"Host: 127.0.0.1:PORT\r\n"
    close = b"Connection: close\r\n"

    def get(path: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, path, host, b"".join(each + b"\r\n" for each in fields))

    def sized(path: bytes, body: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
        return get(path, b"Content-Length: %d" % len(body), *fields, method=method) + body

    def chunked(path: bytes, *pieces: bytes, fields: tuple[bytes, ...] = (), end: bytes = b"0\r\n\r\n") -> bytes:
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end
        return get(path, b"Transfer-Encoding: chunked", *fields, method=b"POST") + body

    def last(raw: bytes) -> bytes:
        """With ``Connection: close``, so that the conversation is over after it."""
        return raw.replace(host, host + close, 1)

    chat = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    claude = json.dumps({"model": "claude-opus-4-6", "max_tokens": 1, "messages": []}).encode()
    json_type = b"Content-Type: application/json"
    files, inner = b"/openai/v1/files", b"GET /openai/v1/inner HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
    return [
        last(get(files)),
        get(files),
        last(get(files + b"?limit=2&after=x%20y")),
        last(get(b"/openai/v1/files/a%2Fb")),
        last(get(files, method=b"HEAD")),
        last(get(files + b"/x", method=b"DELETE")),
        last(get(files, b"X-A: one", b"X-A: two", b"Accept: */*", b"User-Agent: tool/1 (x)")),
        last(get(files, b"Authorization: Bearer tool", b"x-api-key: tool", b"Cookie: a=b", b"TE: trailers")),
        last(get(files, b'x-lava-metadata: {"a":"b"}')),
        last(sized(files, b"hello")),
        sized(files, b"hello"),
        last(sized(files, b"")),
        last(sized(files, b"hello", method=b"PUT")),
        last(sized(files, bytes(range(256)))),
        last(sized(files, inner)),
        last(chunked(files, b"hello")),
        chunked(files, b"hello", b" world"),
        last(chunked(files, b"hello", end=b"0\r\nX-Late: 1\r\nAuthorization: Bearer evil\r\n\r\n")),
        last(chunked(files, inner, inner)),
        last(chunked(files, b"x" * 300).replace(b"12c\r\n", b"12C;a=b\r\n", 1)),
        last(sized(b"/v1/chat/completions", chat, json_type)),
        last(chunked(b"/v1/chat/completions", chat[:20], chat[20:], fields=(json_type,))),
        last(sized(b"/v1/messages?beta=true", claude, json_type, b"anthropic-version: 2023-06-01")),
        last(sized(b"/v1/audio/transcriptions", form, b"Content-Type: multipart/form-data; boundary=b")),
        last(sized(b"/v1beta/models/gemini-2.5-flash:generateContent?alt=sse", b'{"contents":[]}', json_type)),
        last(sized(files, b"hello", b"Expect: 100-continue")),
        get(files) + get(files + b"/2") + last(get(files + b"/3")),
        sized(files, b"first") + sized(files, b"second") + last(get(files)),
        chunked(files, b"first") + last(chunked(files, b"second", b"more")),
        get(files) + chunked(files, inner) + sized(files, inner) + last(get(files + b"/4")),
        sized(files, inner) + last(sized(b"/v1/chat/completions", chat, json_type)),
        last(get(files)).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ]


FRAGMENTS = (
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"content-length : 3\r\n",
    b"Host: evil\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, host, content-length\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n",
    b"Authorization: Bearer other\r\n",
    b"X_Api_Key: x\r\n",
    b" folded: x\r\n",
    b"GET /openai/v1/injected HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"..",
    b"/../",
    b"%2e%2e",
    b"%0d%0a",
    b"http://evil",
    b"@evil",
    b"#",
    b"?",
)
BYTES = b"\r\n\0\t :;,=/%\\\"'0159afAFxzZ\x0b\x0c\x1f\x7f\x80\x85\xa0\xc3\xff"


def mutate(raw: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four pieces of damage."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.3:  # the places where framing is decided
            places = [match.start() for match in re.finditer(rb"\r\n|: |HTTP/|[0-9]+\r", bytes(data))]
            at = rng.choice(places) + rng.randrange(3) if places else at
            at = min(at, len(data))
        what = rng.randrange(11)
        end = min(len(data), at + rng.choice((1, 1, 1, 2, 4, 16)))
        if what == 0:
            data[at:end] = bytes([rng.choice(BYTES)])
        elif what == 1:
            data[at:at] = bytes([rng.choice(BYTES)])
        elif what == 2:
            del data[at:end]
        elif what == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 4:
            data[at:at] = data[at:end] * rng.randrange(1, 3)
        elif what == 5:
            del data[at:]
        elif what == 6:
            data[at:at] = rng.choice(FRAGMENTS)
        elif what == 7:
            lines = bytes(data).split(b"\r\n")
            if rng.random() < 0.5:
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            else:
                rng.shuffle(lines)
            data = bytearray(b"\r\n".join(lines))
        elif what == 8:
            starts = [match.end() for match in re.finditer(rb"\r\n", bytes(data))]
            place = rng.choice(starts) if starts else 0
            data[place:place] = rng.choice(FRAGMENTS)
        elif what == 9:
            numbers = list(re.finditer(rb"[0-9]+", bytes(data)))
            if numbers:
                number = rng.choice(numbers)
                new = rng.choice(
                    (b"0", b"1", b"4", b"6", b"00", b"+5", b"-1", b"0x5", b"5 ", b"99999999999999999999", b"5,5")
                )
                data[number.start() : number.end()] = new
        else:
            other = rng.choice(others)
            data[at:at] = other[: rng.randrange(len(other))] if rng.random() < 0.5 else other
    return bytes(data)


# --- the two sides ---------------------------------------------------------------------------------------------------


class Recorder:
    """The upstream: answers every whole request with its number."""

    def __init__(self) -> None:
        self.whole: dict[int, Received] = {}
        self.malformed: list[str] = []
        self._lock = threading.Lock()

    def script(self, peer: Peer) -> None:
        try:
            while (received := peer.request()) is not None:
                with self._lock:
                    serial = len(self.whole)
                    self.whole[serial] = received
                body = b"" if received.method == b"HEAD" else b'{"data":[]}'
                peer.send(b"HTTP/1.1 200 OK\r\nx-serial: %d\r\ncontent-length: 11\r\n\r\n%b" % (serial, body))
        except OSError:
            return  # cut in the middle, as the client's own request was
        except Exception as fault:  # noqa: BLE001  (judged by the test)
            self.malformed.append(f"{type(fault).__name__}: {fault}")


@dataclass(slots=True)
class Heard:
    """What one conversation came to."""

    sent: bytes
    received: bytes = b""
    ended: bool = False
    statuses: list[int] = field(default_factory=list)
    serials: list[tuple[int, int]] = field(default_factory=list)
    """Which answers, counted from 0, came from the upstream, and the numbers that it gave them."""
    request_ids: dict[int, str] = field(default_factory=dict)
    """The daemon's id of each of these requests, by the upstream's number."""


_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[!-9;-~]+: ?[^\r\n\0]*\r\n)*)\r\n")


def read_answers(heard: Heard) -> str | None:
    """Take the answers apart, strictly; what is wrong with them, or None."""
    data, at = heard.received, 0
    while at < len(data):
        matched = _HEAD.match(data, at)
        if matched is None:
            return f"no response at {at}: {data[at : at + 100]!r}"
        at = matched.end()
        status = int(matched[1])
        fields = dict(line.lower().split(b": ", 1) for line in matched[2].split(b"\r\n") if line)
        if status < 200:
            continue
        heard.statuses.append(status)
        if b"x-serial" in fields:
            heard.serials.append((len(heard.statuses) - 1, int(fields[b"x-serial"])))
            heard.request_ids[int(fields[b"x-serial"])] = fields[b"x-lava-proxy-request-id"].decode()
            if b"x-lava-proxy-error" in fields:
                return "an error has the upstream's headers"
        elif b"x-lava-proxy-error" not in fields and status >= 400:
            return f"a {status} is neither ours nor the upstream's"
        length = int(fields.get(b"content-length", b"0"))
        if b"content-length" not in fields and b"transfer-encoding" in fields:
            return "an answer of this run is chunked"
        # After HEAD no body comes: the next head, or the end, stands where it would begin.
        if data[at : at + 9] != b"HTTP/1.1 " and at < len(data):
            at += length
            if at > len(data):
                return "the last answer is cut short"
    return None


async def converse(port: int, heard: Heard, cuts: list[int], gate: asyncio.Semaphore) -> None:
    """Send, in segments, and read until the daemon closes.

    On plain sockets, because asyncio's streams drop received bytes when a reset comes: the daemon may close while this side
    still sends, and the answers before that count.
    """
    loop = asyncio.get_running_loop()
    async with gate:
        with contextlib.suppress(TimeoutError), socket.socket() as sock:
            sock.setblocking(False)
            async with asyncio.timeout(DEADLINE):
                await loop.sock_connect(sock, ("127.0.0.1", port))
                with contextlib.suppress(ConnectionError):  # the daemon closed already
                    for start, end in zip([0, *cuts], [*cuts, len(heard.sent)], strict=True):
                        await loop.sock_sendall(sock, heard.sent[start:end])
                        if cuts:
                            await asyncio.sleep(0.002)
                with contextlib.suppress(ConnectionError):  # a reset is an end as well
                    while data := await loop.sock_recv(sock, 65_536):
                        heard.received += data
                heard.ended = True


_FRAMING_IN_TRAILERS = re.compile(
    rb"(\r\n0+\r\n(?:[!-9;-~]+:[^\r\n]*\r\n)*?)(?:transfer-encoding|content-length|host):[ \t!-~]*\r\n", re.IGNORECASE
)


def independent(raw: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The requests that h11 reads in these bytes: method, target, body. It forgives more than the daemon does."""
    found: list[tuple[bytes, bytes, bytes]] = []
    while raw:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        # One empty line before a request is forgiven (RFC 9112, 2.2); h11 does not.
        # And it reads trailers as headers, where framing fields are an error; here they are discarded (PAR-23).
        connection.receive_data(_FRAMING_IN_TRAILERS.sub(rb"\1", raw.removeprefix(b"\r\n")))
        method = target = body = b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    method, target = event.method, event.target
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return found
        except h11.ProtocolError:
            return found
        found.append((method, target, body))
        if connection.their_state is h11.MUST_CLOSE:
            return found
        raw = connection.trailing_data[0]
    return found


HOSTS = ("api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com")


def judge(heard: Heard, recorder: Recorder) -> list[str]:
    """What is wrong with this conversation."""
    if not heard.ended:
        return ["it hangs"]
    wrong = []
    unreadable = read_answers(heard)
    if unreadable is not None:
        wrong.append(unreadable)
    if 500 in heard.statuses:
        wrong.append("a 500")
    # Every answer belongs to the request at its place, and what was forwarded is that request.
    read = independent(heard.sent)
    for place, serial in heard.serials:
        received = recorder.whole[serial]
        if place >= len(read):
            wrong.append(
                f"an independent parser reads {len(read)} requests; more were forwarded: {received.raw[:200]!r}"
            )
            break
        method, target, body = read[place]
        if (received.method, received.body) != (method, body):
            wrong.append(f"forwarded {received.method!r} {received.body[:60]!r} for {method!r} {body[:60]!r}")
        wrong += [f"{each} in {received.target!r}" for each in _wrong_target(received.target, target)]
    return wrong


def _wrong_target(outbound: bytes, asked: bytes) -> list[str]:
    from urllib.parse import unquote_to_bytes, urlsplit

    if outbound == b"/v1/models" or outbound.startswith(b"/v1/rewrite/"):
        return []
    if not outbound.startswith(b"/v1/forward?u=") or outbound.count(b"u=") != 1 or b"&" in outbound:
        return ["not Lava's forward address"]
    url = unquote_to_bytes(outbound.removeprefix(b"/v1/forward?u="))
    parts = urlsplit(url.decode("latin-1"))
    wrong = []
    if parts.scheme != "https" or not parts.netloc or parts.netloc in ("evil",) or "@" in parts.netloc:
        wrong.append("a wrong host")
    if b"openai/" in asked[:9] and parts.netloc != HOSTS[0]:
        wrong.append("another provider")
    tail = asked.rstrip(b"/").rpartition(b"/")[2]
    if b"key" not in asked.lower() and tail not in (b"", b"v1") and not url.rstrip(b"/").endswith(tail):
        wrong.append(f"not the path that was asked for ({asked!r})")
    return wrong


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    conversations: int
    forwarded: int
    refused: int
    wrong: list[str]


def start(stand: Stand, upstream: Upstream, name: str) -> Daemon:
    """The daemon of a run, with short deadlines."""
    return stand.start(
        "[server]\nmax_concurrent = 500\n[upstream]\nfirst_byte = 40.0\nidle = 40.0\n",
        upstream=upstream,
        env=with_site(stand, name, QUICK_LIMITS),
    )


def run(stand: Stand, count: int, seed: int) -> Report:
    """``count`` mutated conversations, each from a seed of its own (``seed`` + its number), after the sound ones."""
    recorder = Recorder()
    with Upstream(recorder.script) as upstream:
        running = start(stand, upstream, f"mutations-{seed}-{count}")
        sound_ones = [raw.replace(b"PORT", b"%d" % running.port) for raw in conversations()]
        wrong: list[str] = []
        for raw, heard in zip(
            sound_ones, asyncio.run(_all(running.port, [(raw, []) for raw in sound_ones])), strict=True
        ):
            faults = judge(heard, recorder)
            if len(heard.serials) != len(independent(raw)):
                faults.append(f"{len(heard.serials)} forwarded")
            wrong += [f"unchanged: {each}: {raw!r}" for each in faults]
        prepared = []
        for number in range(count):
            rng = random.Random(seed + number)
            before_damage = rng.choice(sound_ones)
            raw = mutate(before_damage, rng, sound_ones).replace(b"PORT", b"%d" % running.port)
            if rng.random() < 0.3:  # what is remembered of the sound one must not decide on the damaged one behind it
                raw = before_damage.replace(b"Connection: close\r\n", b"") + raw
            size = len(raw)
            cuts = (
                sorted(rng.sample(range(1, size), min(size - 1, rng.randrange(3))))
                if size > 3 and rng.random() < 0.5
                else []
            )
            prepared.append((raw, cuts))
        everything = asyncio.run(_all(running.port, prepared))
        for number, heard in enumerate(everything):
            wrong += [f"seed {seed + number}: {each}: {heard.sent!r}" for each in judge(heard, recorder)]
        told = [serial for heard in everything for _, serial in heard.serials]
        before = sum(len(independent(raw)) for raw in sound_ones)
        if sorted(told) != [serial for serial in sorted(recorder.whole) if serial >= before]:
            wrong.append(f"{len(told)} answers of the upstream were heard, {len(recorder.whole) - before} were given")
        wrong += [f"the upstream got what is no HTTP: {each}" for each in recorder.malformed]
        for received in recorder.whole.values():
            try:
                sound(received)
                assert received.header(b"host") == upstream.url.removeprefix("http://").encode()
                assert re.fullmatch(rb"[!-~]+", received.target)
                assert received.version == b"HTTP/1.1"
                assert received.method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
                assert LAVA_KEY.encode() not in received.raw
                for name, value in received.headers:
                    assert re.fullmatch(rb"[!#-'*+.0-9A-Z^_`a-z|~-]+", name), name
                    assert not re.search(rb"[\r\n\0]", value)
            except AssertionError as fault:
                wrong.append(f"unsound upstream: {fault}: {received.head!r}")
        if running.stop() != 0:
            wrong.append("the daemon ended badly")
        wrong += compare_with_log(running, recorder, everything)
    statuses = [status for heard in everything for status in heard.statuses]
    return Report(count, len(told), sum(status >= 400 for status in statuses), wrong)


def compare_with_log(running: Daemon, recorder: Recorder, everything: list[Heard]) -> list[str]:
    """What the daemon says that it forwarded is what arrived: the number, and the bytes of each body."""
    lines = [json.loads(line) for line in running.output().splitlines() if '"event":"request"' in line]
    forwarded = {line["request_id"]: line for line in lines if line["provider"] is not None}
    wrong = []
    succeeded = sum(line["outcome"] == "ok" for line in forwarded.values())
    if not succeeded <= len(recorder.whole) <= len(forwarded):
        wrong.append(f"{len(recorder.whole)} requests arrived; logged: {len(forwarded)}, of these ok: {succeeded}")
    for heard in everything:
        for serial, request_id in heard.request_ids.items():
            line = forwarded[request_id]
            if (line["outcome"], line["bytes_in"]) != ("ok", len(recorder.whole[serial].body)):
                wrong.append(
                    f"logged {line['outcome']}, {line['bytes_in']} bytes: {recorder.whole[serial].raw[:200]!r}"
                )
    return wrong


async def _all(port: int, prepared: list[tuple[bytes, list[int]]]) -> list[Heard]:
    gate = asyncio.Semaphore(CONCURRENT)
    heard = [Heard(raw) for raw, _ in prepared]
    async with asyncio.TaskGroup() as group:
        for each, (_, cuts) in zip(heard, prepared, strict=True):
            group.create_task(converse(port, each, cuts, gate))
    return heard


# --- the tests -------------------------------------------------------------------------------------------------------

SEED = 20_261_123


def check(report: Report) -> None:
    assert not report.wrong, "\n".join(report.wrong[:20])
    # The damage is neither always nor never fatal, or the run would show nothing.
    assert report.forwarded > report.conversations // 8
    assert report.refused > report.conversations // 8


def test_mutations(stand: Stand) -> None:
    """Damaged requests: no 500, no hang, and no disagreement on number, boundaries or credential of what goes upstream."""
    check(run(stand, 1_500, SEED))


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_many_mutations(stand: Stand) -> None:
    """The same with more than ten thousand."""
    check(run(stand, 12_000, SEED + 1_000_000))
