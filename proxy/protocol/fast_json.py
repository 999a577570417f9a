"""Fast JSON parsing: the only module that uses msgspec.

msgspec is stricter than the standard library in two harmless ways (no ``NaN``, no half surrogate pairs). If it refuses a
document, the standard library parses it; if that fails as well, the result is ``None``.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_decode = msgspec.json.decode
_Unreadable = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def read(document: bytes) -> Any:
    """Return the value of a JSON document, or ``None`` if it is invalid (or nested too deeply). Never raises."""
    try:
        return _decode(document)
    except _Unreadable:
        try:
            return json.loads(document)
        except (ValueError, RecursionError):
            return None


class ParsedResponse(msgspec.Struct):
    """The common fields of most responses. ``usage`` is the provider's own object."""

    model: str
    usage: dict[str, Any]
    type: str | None = None
    id: str | None = None
    error: None = None


_answer = msgspec.json.Decoder(ParsedResponse)


def answer(document: bytes) -> ParsedResponse | None:
    """Return the model, the usage and the id of a response that has a model, usage and no error. The rest is skipped.

    ``None`` for everything else, valid or not. Never raises.
    """
    try:
        return _answer.decode(document)
    except _Unreadable:
        return None


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_named = msgspec.json.Decoder(_Named)


def raw_model(document: bytes) -> bytes:
    """Return the raw top-level member ``model`` of a JSON object, the last one if it occurs twice.

    The rest is skipped, not built. ``b""`` if there is none or the document is invalid.
    """
    try:
        return bytes(_named.decode(document).model)
    except _Unreadable:
        return b""
