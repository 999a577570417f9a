"""Request bodies: content codings, JSON and multipart forms."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any


class UnreadableBodyError(Exception):
    """The body does not match its headers; the text says why."""


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of a multipart form; ``filename`` is ``None`` for a text field."""

    name: str
    filename: str | None
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


def decoded(body: bytes, content_encoding: str | None) -> bytes:
    """Return ``body`` without its content codings (gzip, deflate, br, zstd); raise
    ``UnreadableBodyError``.

    Providers accept compressed requests, and some tools send them (Codex: zstd).
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

                # decompressobj, not decompress: a streamed frame does not contain its size.
                return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except Exception as cause:
        raise UnreadableBodyError(f"The body is not valid {coding}.") from cause
    raise UnreadableBodyError(f"Content-Encoding {coding!r} is not supported.")


def document(body: bytes) -> Any:
    """Return the JSON value of ``body``, or ``None`` if it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def form(body: bytes, content_type: str) -> list[FormPart]:
    """Return the parts of a ``multipart/form-data`` body, in order; an empty list for another type."""
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
        parts.append(
            FormPart(name=name[1] if name else "", filename=filename[1] if filename else None, content=content)
        )
    return parts
