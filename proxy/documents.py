"""JSON, read fast: the one door to msgspec.

msgspec is stricter than the standard library in two harmless ways (no ``NaN``, no half surrogate pairs), so where it refuses,
the standard library is asked; what neither reads is ``None``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

_decode = msgspec.json.decode
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


_Count = Annotated[int, msgspec.Meta(ge=0)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count = None


class Counts(msgspec.Struct):
    """A ``usage`` object in the words of OpenAI's and Anthropic's dialects; what it does not have is ``None``."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    total_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    prompt_cache_hit_tokens: _Count = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class Answer(msgspec.Struct):
    """What most answers say of themselves."""

    model: str
    usage: Counts
    type: str | None = None
    error: None = None


_answer = msgspec.json.Decoder(Answer)


def answer(document: bytes) -> Answer | None:
    """The model and the counts of an answer that has both and no error; the rest of it is skipped, not built.

    ``None`` for everything else, be it sound or not. Never raises.
    """
    try:
        return _answer.decode(document)
    except _Unreadable:
        return None


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
