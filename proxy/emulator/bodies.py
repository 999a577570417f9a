"""Request bodies: content codings undone, JSON and multipart forms read. Pure; nothing here raises on a
malformed body.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any


class UnreadableBody(Exception):
    """A body that is not what its headers say; the text says in which way."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart form; ``filename`` is ``None`` for a plain field."""

    name: str
    filename: str | None
    content_type: str
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


def decoded(body: bytes, content_encoding: str | None) -> bytes:
    """``body`` without its content codings (gzip, deflate, br, zstd, in the order they were applied).

    Raises ``UnreadableBody``: providers do accept compressed requests, and some tools send them (Codex: zstd).
    """
    codings = [coding.strip().lower() for coding in (content_encoding or "").split(",")]
    for coding in reversed([coding for coding in codings if coding and coding != "identity"]):
        body = _undo(coding, body)
    return body


def _undo(coding: str, body: bytes) -> bytes:
    try:
        match coding:
            case "gzip" | "x-gzip":
                return gzip.decompress(body)
            case "deflate":
                return zlib.decompress(body)
            case "br":
                import brotli  # type: ignore[import-untyped]

                return bytes(brotli.decompress(body))
            case "zstd":
                import zstandard

                # decompressobj, not decompress: a streamed frame does not tell its size.
                return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except Exception as cause:
        raise UnreadableBody(f"The body is not valid {coding}.") from cause
    raise UnreadableBody(f"Content-Encoding {coding!r} is not supported.")


def document(body: bytes) -> Any:
    """The JSON value of ``body``, or ``None`` when it is none (``null`` is no request either)."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def form(body: bytes, content_type: str) -> list[Part]:
    """The parts of a ``multipart/form-data`` body, in order; an empty list when it is something else."""
    boundary = re.search(r"""boundary=(?:"([^"]+)"|([^\s;,]+))""", content_type, re.IGNORECASE)
    if boundary is None or not content_type.lower().lstrip().startswith("multipart/form-data"):
        return []
    fence = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1")
    pieces = (b"\r\n" + body).split(fence)
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        head, gap, content = piece.partition(b"\r\n\r\n")
        if not gap:
            continue
        fields = head.decode("utf-8", "replace")
        name = re.search(r'[;\s]name="([^"]*)"', fields)
        filename = re.search(r'[;\s]filename="([^"]*)"', fields)
        kind = re.search(r"^content-type:[ \t]*(.*?)[ \t]*$", fields, re.IGNORECASE | re.MULTILINE)
        parts.append(
            Part(
                name=name[1] if name else "",
                filename=filename[1] if filename else None,
                content_type=kind[1].strip() if kind else "text/plain",
                content=content,
            )
        )
    return parts
