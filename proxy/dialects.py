"""The client dialects: how an address, a stream's end and an error in mid-stream look in each.

A dialect belongs to the *client's* side of a request (what the tool speaks) and to a provider (what it speaks). ``OTHER``
is a provider with an interface of its own (speech, search); its clients get errors in OpenAI's shape.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

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
    IMAGES = "images"  # image_generation.completed | image_edit.completed
    TRANSCRIPT = "transcript"  # transcript.text.done
    SPEECH = "speech"  # speech.audio.done
    UNKNOWN = "unknown"


_LAST_WORDS: Mapping[bytes, Ending] = {
    b"completions": Ending.CHAT,
    b"responses": Ending.RESPONSES,
    b"messages": Ending.MESSAGES,
}
_LAST_TWO_WORDS: Mapping[tuple[bytes, bytes], Ending] = {
    (b"images", b"generations"): Ending.IMAGES,
    (b"images", b"edits"): Ending.IMAGES,
    (b"audio", b"transcriptions"): Ending.TRANSCRIPT,
    (b"audio", b"speech"): Ending.SPEECH,
}


def ending_of(path: bytes) -> Ending:
    """The end marker owed by a stream from ``path`` (a raw path without query, at the provider or at Lava)."""
    before, _, last = path.rstrip(b"/").rpartition(b"/")
    if b":" in last and last.rpartition(b":")[2] in (b"streamGenerateContent", b"generateContent"):
        return Ending.GOOGLE
    known = _LAST_WORDS.get(last)
    if known is not None:
        return known
    word = before.rstrip(b"/").rpartition(b"/")[2]
    if word == b"responses":
        return Ending.RESPONSES  # one that is resumed, by its id
    return _LAST_TWO_WORDS.get((word, last), Ending.UNKNOWN)


GOOGLE_VERSIONS = frozenset({b"v1beta", b"v1alpha"})
_BASE_VERSIONS = GOOGLE_VERSIONS | {b"v1"}

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
"""First words of the endpoints that are also served without ``/v1`` in front."""

_OPENAIS_OWN = OPENAI_WORDS - {b"chat", b"models", b"files", b"batches"} | {b"realtime"}
"""First words of the endpoints that OpenAI alone has."""

VERSION = re.compile(rb"v\d+[a-z]*\d*\Z")
"""A version segment of an address: ``v1``, ``v1beta``, ``v2`` …"""

BEFORE_ENDPOINTS = frozenset({b"openai", b"inference", b"compatibility"})
"""Words that stand, beside versions, in the base addresses of OpenAI-compatible interfaces."""


def words_of(path: bytes) -> list[bytes]:
    """The words of a raw path between its slashes, doubled ones forgiven."""
    return [word for word in path.split(b"/") if word]


def at_provider(dialect: Dialect, words: Sequence[bytes]) -> Dialect:
    """What a client speaks at a provider of this dialect; ``words`` are the path behind the provider's name."""
    index = 0
    while index < len(words) and (VERSION.match(words[index]) or words[index] in BEFORE_ENDPOINTS):
        index += 1
    if words[index : index + 1] == [b"messages"]:
        return Dialect.ANTHROPIC
    if dialect is Dialect.GOOGLE and b"openai" in words[:index]:
        return Dialect.OPENAI  # Google's own OpenAI-compatible face, reached through Google's address
    return Dialect.OPENAI if dialect is Dialect.OTHER else dialect


def of_endpoint(method: str, words: Sequence[bytes]) -> Dialect | None:
    """Whose API an endpoint is, or ``None`` where several companies have one of that name: the request's headers decide.

    ``words`` are the path behind its version, at least one. A method after a colon is Google's; names of OpenAI's
    fine-tuned models (``ft:…``) have colons too.
    """
    first = words[0]
    if first == b"messages":
        return Dialect.ANTHROPIC
    if first in _OPENAIS_OWN or (first == b"chat" and words[1:2] == [b"completions"]):
        return Dialect.OPENAI
    if first == b"models" and len(words) > 1 and method == "POST" and b":" in words[-1] and words[-1][:3] != b"ft:":
        return Dialect.GOOGLE
    return None


def at_google(words: list[bytes]) -> list[bytes] | None:
    """The path at Google of an address that is Google's by its version, else ``None``.

    Where a tool's base URL has a version and the tool adds its own, the tool's counts.
    """
    lead = 0
    while lead < len(words) and words[lead] in _BASE_VERSIONS:
        lead += 1
    if words[lead : lead + 1] == [b"upload"] and any(VERSION.match(word) for word in words[lead + 1 : lead + 2]):
        return words[lead:]
    if any(word in GOOGLE_VERSIONS for word in words[:lead]):
        return words[lead - 1 :]
    return None


class Speaker(Protocol):
    """What is asked here of a provider (``providers.Provider``)."""

    @property
    def dialect(self) -> Dialect: ...
    def face(self, words: list[bytes]) -> tuple[Speaker, list[bytes]]: ...


def of_path(path: bytes, providers: Mapping[bytes, Speaker], method: str = "POST") -> Dialect | None:
    """The dialect a client of ``path`` speaks, or ``None`` where the path says nothing.

    ``path`` is raw (undecoded, no query); ``providers`` are those in use by name. Pure, never raises: the gate asks it before
    anything is known to be well formed.
    """
    words = words_of(path)
    if len(words) > 1 and words[0] == b"p":
        words = words[2:]
    if not words:
        return None
    first = words[0]
    if first in providers:
        provider, words = providers[first].face(words[1:])
        return at_provider(provider.dialect, words)
    google = at_google(words)
    if google is not None:
        if google[1:2] == [b"openai"]:
            return Dialect.OPENAI
        return (of_endpoint(method, google[1:]) if google[1:] else None) or Dialect.GOOGLE
    while words[:1] == [b"v1"]:
        words = words[1:]
    if first != b"v1" and first != b"messages" and first not in OPENAI_WORDS:
        return None
    return of_endpoint(method, words) if words else None


def of_headers(headers: Mapping[bytes, object]) -> Dialect:
    """What a request speaks whose address does not tell: ``headers`` is keyed by lower-case name.

    Every Anthropic SDK sends ``anthropic-version`` and every Google SDK one of the two headers of its own, so the key alone
    decides last.
    """
    if b"anthropic-version" in headers:
        return Dialect.ANTHROPIC
    if b"x-goog-api-key" in headers or b"x-goog-api-client" in headers:
        return Dialect.GOOGLE
    if b"x-api-key" in headers and b"authorization" not in headers:
        return Dialect.ANTHROPIC
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
