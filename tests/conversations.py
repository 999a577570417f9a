"""What an upstream may say to one request: random conversations, well-formed and not, each known by its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Conversation:
    """What an upstream says to one request: ``segments`` one after the other, then the end of the connection."""

    method: bytes
    segments: list[bytes]
    body: bytes | None
    """What must be delivered; None where only the engines' agreement is asked for."""


INTERESTING = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"9", b"f", b"-", b"+", b"\xff", b"x"]
NAMES = [
    b"x-a",
    b"X-Request-Id",
    b"content-type",
    b"Set-Cookie",
    b"Date",
    b"via",
    b"Trailer",
    b"Upgrade",
    b"Keep-Alive",
]
VALUES = [b"", b"v", b"text/event-stream", b"a=b; c", b"\xe4\xff", b'"q"', b"1, 2", b"a\tb", b"x" * 900]


def conversation(seed: int) -> Conversation:
    """The conversation of that seed. Two thirds are well-formed, the rest has bytes changed, lost or doubled."""
    rng = random.Random(seed)
    method = rng.choice([b"GET", b"POST", b"POST", b"HEAD"])
    status = rng.choice([200, 200, 200, 201, 204, 206, 304, 401, 404, 429, 500, 529, 599])
    framing = rng.choice(["length", "chunked", "close"])
    version = rng.choice([b"1.1", b"1.1", b"1.1", b"1.0"]) if framing != "chunked" else b"1.1"
    body = rng.randbytes(rng.choice([0, 1, 2, 15, 16, 100, 255, 256, 3000, 70_000]))
    empty = method == b"HEAD" or status in {204, 304}
    lines = [b"HTTP/%b %d%b" % (version, status, rng.choice([b"", b" ", b" OK", b" Not a Word", b" \xfc"]))]
    pairs = [(rng.choice(NAMES), rng.choice(VALUES)) for _ in range(rng.randrange(8))]
    if framing == "length":
        pairs.append((rng.choice([b"Content-Length", b"content-length"]), b"%d" % len(body)))
    elif framing == "chunked":
        pairs.append((b"Transfer-Encoding", rng.choice([b"chunked", b"Chunked"])))
    if rng.random() < 0.3:
        pairs.append((b"Connection", rng.choice([b"close", b"keep-alive", b"Keep-Alive, x-a"])))
    rng.shuffle(pairs)
    lines += [name + b":" + rng.choice([b"", b" ", b" \t"]) + value + rng.choice([b"", b" "]) for name, value in pairs]
    hints = rng.choice([0, 0, 0, 1, 2, 20, 21])
    wire = b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * hints + b"\r\n".join(lines) + b"\r\n\r\n"
    if not empty:
        wire += chunks(rng, body) if framing == "chunked" else body
    expected: bytes | None = b"" if empty else body
    if hints > 20:
        expected = None
    if rng.random() < 0.33:
        expected = None
        wire = mutated(rng, wire)
    if rng.random() < 0.15:
        expected = None
        wire = wire[: rng.randrange(len(wire) + 1)]
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
    segments = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    return Conversation(method, [one for one in segments if one], expected)


def chunks(rng: random.Random, body: bytes) -> bytes:
    """``body`` in chunks of many sizes, with extensions and trailers that mean nothing."""
    wire = b""
    while body:
        size = min(len(body), rng.choice([1, 2, 15, 16, 200, 5000, 70_000]))
        size = max(size, len(body) // 50)
        spelled = rng.choice([b"%x", b"%X", b"0%x", b"%04x"]) % size
        wire += spelled + rng.choice([b"", b"", b";a", b";a=b", b';a="b c"']) + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    return wire + rng.choice([b"0", b"0", b"000", b"0;x"]) + b"\r\n" + rng.choice([b"", b"", b"X-T: v\r\n"]) + b"\r\n"


def mutated(rng: random.Random, wire: bytes) -> bytes:
    """``wire`` with one to three places changed, most of them in its first 600 bytes."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(min(len(wire), rng.choice([40, 600, 100_000])) + 1)
        long = rng.choice([1, 1, 2, 8])
        how = rng.randrange(4)
        if how == 0:
            wire = wire[:at] + rng.choice(INTERESTING) + wire[at:]
        elif how == 1:
            wire = wire[:at] + wire[at + long :]
        elif how == 2:
            wire = wire[:at] + rng.choice(INTERESTING) + wire[at + 1 :]
        else:
            wire = wire[: at + long] + wire[at:]
    return wire
