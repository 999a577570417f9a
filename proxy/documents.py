"""JSON, read and written fast: the one door to msgspec.

msgspec is stricter than the standard library in two harmless ways (no ``NaN``, no half surrogate pairs), so where it refuses,
the standard library is asked; what neither reads is ``None``.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode
_Unreadable = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def read(document: bytes) -> Any:
    """The value of a JSON document, or ``None`` where it is none (or nested beyond reason). Never raises."""
    try:
        return _decode(document)
    except _Unreadable:
        try:
            return json.loads(document)
        except (ValueError, RecursionError):
            return None


def write(value: Any) -> bytes:
    """``value`` as compact JSON in UTF-8."""
    return _encode(value)


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_named = msgspec.json.Decoder(_Named)


def raw_model(document: bytes) -> bytes:
    """The top-level member ``model`` of a JSON object as it stands there, the last one where it stands twice.

    The rest is skipped, not built. ``b""`` where there is none or the document cannot be read.
    """
    try:
        return bytes(_named.decode(document).model)
    except _Unreadable:
        return b""
