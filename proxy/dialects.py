"""The client dialects: how an address, a stream's end and an error in mid-stream look in each.

A dialect belongs to the *client's* side of a request (what the tool speaks) and to a provider (what it speaks). ``OTHER``
is a provider with an interface of its own (speech, search); its clients get errors in OpenAI's shape.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Dialect(StrEnum):
    """What a client or a provider speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    OTHER = "other"


class Ending(StrEnum):
    """Which end marker a stream of this endpoint owes its reader; ``UNKNOWN`` owes none."""

    CHAT = "chat"  # data: [DONE]
    RESPONSES = "responses"  # response.completed | failed | incomplete
    MESSAGES = "messages"  # message_stop
    GOOGLE = "google"  # a finish reason or prompt feedback
    UNKNOWN = "unknown"


_LAST_WORDS: Mapping[bytes, Ending] = {
    b"completions": Ending.CHAT,
    b"responses": Ending.RESPONSES,
    b"messages": Ending.MESSAGES,
}


def ending_of(path: bytes) -> Ending:
    """The end marker owed by a stream from ``path`` (a raw path without query, at the provider or at Lava)."""
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if b":" in last and last.rpartition(b":")[2] in (b"streamGenerateContent", b"generateContent"):
        return Ending.GOOGLE
    return _LAST_WORDS.get(last, Ending.UNKNOWN)


GOOGLE_VERSIONS = frozenset({b"v1beta", b"v1alpha"})

OPENAI_WORDS = frozenset(
    {
        b"chat",
        b"completions",
        b"responses",
        b"embeddings",
        b"models",
        b"images",
        b"audio",
        b"moderations",
        b"files",
        b"batches",
    }
)
"""First words of the OpenAI endpoints that are also served without ``/v1`` in front."""


VERSION = re.compile(rb"v\d+[a-z]*\d*\Z")
"""A version segment of an address: ``v1``, ``v1beta``, ``v2`` …"""

_BEFORE_ENDPOINTS = frozenset({b"openai", b"inference", b"compatibility"})
"""Words that stand, beside versions, in the base addresses of OpenAI-compatible interfaces."""


def at_provider(dialect: Dialect, words: Sequence[bytes]) -> Dialect:
    """What a client speaks at a provider of this dialect; ``words`` are the path behind the provider's name."""
    index = 0
    while index < len(words) and (VERSION.match(words[index]) or words[index] in _BEFORE_ENDPOINTS):
        index += 1
    if words[index : index + 1] == [b"messages"]:
        return Dialect.ANTHROPIC
    if dialect is Dialect.GOOGLE and b"openai" in words[:index]:
        return Dialect.OPENAI  # Google's own OpenAI-compatible face, reached through Google's address
    return Dialect.OPENAI if dialect is Dialect.OTHER else dialect


def of_path(path: bytes, providers: Mapping[bytes, Dialect]) -> Dialect | None:
    """The dialect a client of ``path`` speaks, or ``None`` where the path says nothing.

    ``path`` is raw (undecoded, no query); ``providers`` maps every provider name in use to its dialect. Pure, never raises:
    the gate asks it before anything is known to be well formed.
    """
    words = [word for word in path.split(b"/") if word]
    if len(words) > 1 and words[0] == b"p":
        words = words[2:]
    if not words:
        return None
    first, rest = words[0], words[1:]
    if first in providers:
        return at_provider(providers[first], rest)
    if first in GOOGLE_VERSIONS or first == b"upload":
        return Dialect.OPENAI if rest[:1] == [b"openai"] else Dialect.GOOGLE
    if first == b"v1":
        while rest[:1] == [b"v1"]:
            rest = rest[1:]
        if rest[:1] == [b"messages"]:
            return Dialect.ANTHROPIC
        if rest[:1] == [b"models"]:
            # GET /v1/models is asked in two dialects (the headers decide); a method after a colon is Google's.
            # (Names of OpenAI's fine-tuned models, ft:…, have colons too.)
            return Dialect.GOOGLE if any(b":" in word and word[:3] != b"ft:" for word in rest[1:]) else None
        return Dialect.OPENAI if rest else None
    if first == b"models" and not rest:
        return None
    if first == b"messages":
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if first in OPENAI_WORDS else None


def of_headers(headers: Mapping[bytes, object]) -> Dialect:
    """The dialect of a client on an address that does not tell: ``headers`` is keyed by lower-case name."""
    if b"anthropic-version" in headers:
        return Dialect.ANTHROPIC
    if b"x-goog-api-key" in headers:
        return Dialect.GOOGLE
    return Dialect.OPENAI


def compact(value: object) -> bytes:
    """``value`` as compact JSON in UTF-8; escaped where it holds half a surrogate pair, which UTF-8 has no bytes for."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def error_event(dialect: Dialect, ending: Ending, error_body: Mapping[str, Any]) -> bytes:
    """One SSE event that tells a client in mid-stream that its stream broke.

    ``error_body`` is the body of the same error in this dialect, as ``errors.render`` makes it. The official SDKs raise on
    each of these forms: openai-python on a truthy ``error`` in a ``data:`` line, anthropic on ``event: error``, google-genai
    on a chunk that starts with ``{"error":``.
    """
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + compact(error_body) + b"\n\n"
    if ending is Ending.RESPONSES:
        error = error_body["error"]
        event = {
            "type": "error",
            "code": error["code"],
            "message": error["message"],
            "param": None,
            "error": error,
        }
        return b"event: error\ndata: " + compact(event) + b"\n\n"
    return b"data: " + compact(error_body) + b"\n\n"
