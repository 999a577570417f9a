"""How long one hostile body holds the loop: the longest step of looking through 52 MB, for every kind of request and answer.

    python benchmarks/blocks.py [MB]

Plain, and compressed by each encoding that is undone. A step is what is done before the loop goes on; it should take less than
50 ms. Also told: what the whole costs.
"""

from __future__ import annotations

import gzip
import sys
import time
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it has no stubs
import zstandard

from proxy.protocol.body import search
from proxy.protocol.dialects import Ending
from proxy.protocol.usage import EncodedScanner, Scanner

if TYPE_CHECKING:
    from collections.abc import Callable

JSON, FORM = b"application/json", b"multipart/form-data; boundary=XX"
PIECE = 256 * 1024  # as it comes from a connection

KINDS: dict[str, tuple[bytes, bytes, bytes, bytes]] = {
    # before, what is repeated, behind, type
    "models in a list": (b'{"model":"groq/x","z":[', b'{"model":"groq/x"},', b"0]}", JSON),
    "models": (b"{", b'"model":"groq/x",', b'"z":1}', JSON),
    "models and others by turns": (b'{"a":0', b',"model":"groq/x","a":1', b"}", JSON),
    "nesting": (b'{"model":"groq/x","z":[', b"[[[[[[[[]]]]]]]],", b"0]}", JSON),
    "escapes": (b'{"model":"groq/x","z":"', b'\\"', b'"}', JSON),
    "half surrogates": (b'{"model":"groq/x","z":"', b"\\ud800", b'"}', JSON),
    "empty strings": (b'{"model":"groq/x","z":[', b'"",', b"0]}", JSON),
    "a picture": (b'{"model":"groq/x","z":"', b"iVBO", b'"}', JSON),
    "near-boundaries": (b"--XX\r\na: b\r\n\r\n", b"\r\n--X", b"\r\n--XX--\r\n", FORM),
}
#: Answers: whether it is an event stream, before, what is repeated, behind.
ANSWERS: dict[str, tuple[bool, bytes, bytes, bytes]] = {
    "chat": (True, b"", b'data: {"model":"m","choices":[{"delta":{"content":"x"}}],"usage":null}\n\n', b""),
    "usage in vain": (True, b"", b'data: {"usage":1}\n\n', b""),
    "errors in vain": (True, b"", b'data: error "usage":{\n\n', b""),
    "usages": (True, b"", b'data: {"usage":{"prompt_tokens":1}}\n\n', b""),
    "a long event": (True, b"data: ", b"iVBO", b"\n\n"),
    "a long event of lines": (True, b"", b"data: x\r\n", b"\r\n"),
    "empty lines": (True, b"data: x", b"\r\n", b""),
    "a document": (False, b'{"model":"m","z":"', b"iVBO", b'","usage":{"prompt_tokens":1}}'),
    "a nested document": (False, b'{"model":"m","z":', b"[", b""),
    "a document of usages": (False, b"[", b'{"usage":{"a":1}},', b"0]"),
}
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": lambda body: gzip.compress(body, 6),
    "br": lambda body: bytes(brotli.compress(body, quality=1)),
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
}


def measured(body: bytes, content_type: bytes, encoding: str) -> tuple[float, float]:
    """Processor seconds: of the longest step, and of all."""
    pieces = [body[at : at + PIECE] for at in range(0, len(body), PIECE)]
    steps = search(pieces, content_type, encoding.encode(), 1 << 27)
    longest = whole = 0.0
    over = False
    while not over:
        began = time.thread_time()
        over = next(steps, steps) is steps  # a step gives nothing
        took = time.thread_time() - began
        longest, whole = max(longest, took), whole + took
    return longest, whole


def measured_answer(body: bytes, sse: bool, encoding: str) -> tuple[float, float]:
    """The same of an answer that is relayed: a step is one piece, the last one with the end and the reading of what was found."""
    scanner = (
        Scanner(Ending.CHAT, sse) if encoding == "identity" else EncodedScanner(Ending.CHAT, sse, encoding.encode())
    )
    longest = whole = 0.0
    for at in range(0, len(body), PIECE):
        began = time.thread_time()
        scanner.feed(body[at : at + PIECE])
        if at + PIECE >= len(body):
            scanner.finish()
            scanner.error, scanner.raw_usage  # noqa: B018
        took = time.thread_time() - began
        longest, whole = max(longest, took), whole + took
    return longest, whole


def main() -> None:
    """Print a table, and exit with 1 where a step took longer than it should."""
    size = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 52_000_000
    worst = 0.0
    for kind, (before, unit, behind, content_type) in KINDS.items():
        body = before + unit * (size // len(unit)) + behind
        for encoding, encode in ENCODERS.items():
            longest, whole = measured(encode(body), content_type, encoding)
            worst = max(worst, longest)
            print(f"{kind:27} {encoding:9} longest step {longest * 1e3:5.1f} ms, all {whole:5.2f} s", flush=True)
    for kind, (sse, before, unit, behind) in ANSWERS.items():
        body = before + unit * (size // len(unit)) + behind
        for encoding, encode in ENCODERS.items():
            longest, whole = measured_answer(encode(body), sse, encoding)
            worst = max(worst, longest)
            print(
                f"answer: {kind:27} {encoding:9} longest step {longest * 1e3:5.1f} ms, all {whole:5.2f} s", flush=True
            )
    sys.exit(worst > 0.05)


if __name__ == "__main__":
    main()
