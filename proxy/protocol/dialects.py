"""The dialects: addresses, end markers and in-stream errors of each.

Both the *client's* side of a request and a provider have a dialect. ``OTHER`` is a provider with an API of its own (speech,
search); its clients get errors in OpenAI's shape.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Dialect(StrEnum):
    """The API of a client or a provider."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    OTHER = "other"


class Ending(StrEnum):
    """The end marker of a complete stream of an endpoint; ``UNKNOWN`` has none."""

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
    """Return the end marker of a stream from ``path`` (a raw path without query, at the provider or at Lava)."""
    before, _, last = path.rstrip(b"/").rpartition(b"/")
    if b":" in last and last.rpartition(b":")[2] in (b"streamGenerateContent", b"generateContent"):
        return Ending.GOOGLE
    known = _LAST_WORDS.get(last)
    if known is not None:
        return known
    word = before.rstrip(b"/").rpartition(b"/")[2]
    if word == b"responses":
        return Ending.RESPONSES  # a stream that is resumed by its id
    return _LAST_TWO_WORDS.get((word, last), Ending.UNKNOWN)


_ENDPOINT_NAMES: Mapping[bytes, str] = {
    b"completions": "completions",
    b"responses": "responses",
    b"messages": "messages",
    b"embeddings": "embeddings",
    b"moderations": "moderations",
    b"rerank": "rerank",
    b"count_tokens": "count_tokens",
    b"transcriptions": "transcriptions",
    b"translations": "translations",
    b"speech": "speech",
    b"files": "files",
    b"uploads": "files",
    b"parts": "files",  # of an upload
}
_IMAGE_WORDS = frozenset({b"generations", b"edits", b"variations"})
_GOOGLE_METHODS: Mapping[bytes, str] = {
    b"generateContent": "generate",
    b"streamGenerateContent": "generate",
    b"embedContent": "embeddings",
    b"batchEmbedContents": "embeddings",
    b"countTokens": "count_tokens",
    b"predict": "images",
}
ENDPOINT_NAMES = frozenset({*_ENDPOINT_NAMES.values(), *_GOOGLE_METHODS.values(), "chat", "images", "other"})


def endpoint_name(path: bytes) -> str:
    """Return the kind of endpoint at ``path`` (raw, without query), one of ``ENDPOINT_NAMES``."""
    before, _, last = path.rstrip(b"/").rpartition(b"/")
    if b":" in last:
        return _GOOGLE_METHODS.get(last.rpartition(b":")[2], "other")
    word = before.rpartition(b"/")[2]
    if last == b"completions" and word == b"chat":
        return "chat"
    if word == b"images" and last in _IMAGE_WORDS:
        return "images"
    if word == b"responses":
        return "responses"
    return _ENDPOINT_NAMES.get(last, "other")


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
"""First segments of the endpoints that are also served without ``/v1``."""

_OPENAIS_OWN = OPENAI_WORDS - {b"chat", b"models", b"files", b"batches"} | {b"realtime"}
"""First segments of the endpoints that only OpenAI has."""

VERSION = re.compile(rb"v\d+[a-z]*\d*\Z")
"""A version segment of an address: ``v1``, ``v1beta``, ``v2`` …"""

BEFORE_ENDPOINTS = frozenset({b"openai", b"inference", b"compatibility"})
"""Segments, beside versions, in the base addresses of OpenAI-compatible APIs."""


def words_of(path: bytes) -> list[bytes]:
    """Return the segments of a raw path, without empty ones."""
    return [word for word in path.split(b"/") if word]


def at_provider(dialect: Dialect, words: Sequence[bytes]) -> Dialect:
    """Return the client's dialect at a provider of this dialect; ``words`` are the path after the provider's name."""
    index = 0
    while index < len(words) and (VERSION.match(words[index]) or words[index] in BEFORE_ENDPOINTS):
        index += 1
    if words[index : index + 1] == [b"messages"]:
        return Dialect.ANTHROPIC
    if dialect is Dialect.GOOGLE and b"openai" in words[:index]:
        return Dialect.OPENAI  # Google's own OpenAI-compatible API, at Google's address
    return Dialect.OPENAI if dialect is Dialect.OTHER else dialect


def of_endpoint(method: str, words: Sequence[bytes]) -> Dialect | None:
    """Return the dialect of an endpoint, or ``None`` if several companies have it: the request's headers decide then.

    ``words`` are the path after its version, at least one. A method after a colon is Google's; names of OpenAI's fine-tuned
    models (``ft:…``) have colons too.
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
    """Return the path at Google if the version of an address is Google's, else ``None``.

    If a tool's base URL has a version and the tool adds its own, the tool's version is used.
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
    """What this module needs from a provider (``providers.Provider``)."""

    @property
    def dialect(self) -> Dialect: ...
    def face(self, words: list[bytes]) -> tuple[Speaker, list[bytes]]: ...


def of_path(path: bytes, providers: Mapping[bytes, Speaker], method: str = "POST") -> Dialect | None:
    """Return the dialect of a client of ``path``, or ``None`` if the path does not decide it.

    ``path`` is raw (undecoded, no query); ``providers`` are those in use by name. Never raises: the access checks use it
    before the path is validated.
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
    """Return the dialect of a request whose address does not decide it; ``headers`` is keyed by lower-case name.

    Every Anthropic SDK sends ``anthropic-version``, and every Google SDK one of two headers of its own, so the key header
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
    """Return ``value`` as compact JSON in UTF-8; escaped if it has half a surrogate pair, which UTF-8 cannot encode."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def error_event(dialect: Dialect, ending: Ending, error_body: Mapping[str, Any]) -> bytes:
    """Return an SSE event that reports an error inside a stream.

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
