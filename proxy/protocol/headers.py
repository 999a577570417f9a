"""Header policy in both directions, as pure functions over raw byte pairs.

It is a deny-list, not an allow-list: beta and vendor headers must pass. Order and duplicates are kept. Inputs are never
changed; each function makes a new list. ``read`` iterates over a request's headers once, and collects what access, routing and
the outgoing request need, because it runs for every request.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any

from proxy.protocol.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Pairs = list[tuple[bytes, bytes]]

CREDENTIALS: tuple[bytes, ...] = (
    b"authorization",
    b"x-api-key",
    b"x-goog-api-key",
    b"api-key",
    b"xi-api-key",
)
"""Headers in which tools send keys, in the order of their precedence."""

PROXY_KEY = b"x-lava-proxy-key"
PROXY_PROJECT = b"x-lava-proxy-project"
METADATA = b"x-lava-metadata"
_METADATA_OF = METADATA + b"-"

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"te",
        b"trailer",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_KEPT_FROM_LAVA = frozenset(
    {
        b"host",
        b"content-length",
        b"expect",
        b"cookie",
        b"cookie2",
        # Already used by the access checks: a later server would check the page again, by other rules.
        b"origin",
        b"referer",
        # A proxy's information about its caller and the request it received. It is wrong for the outgoing request.
        b"forwarded",
        b"front-end-https",
        b"x-host",
        b"x-host-override",
        b"x-method-override",
        b"x-scheme",
        b"x-url-scheme",
    }
)
_KINDS_KEPT_FROM_LAVA = (
    b"sec-fetch-",
    b"access-control-request-",
    b"x-forward",
    b"x-original-",
    b"x-rewrite-",
    b"x-http-",
    b"x-envoy-",
    b"x-appengine-",
)
_ADDRESSES_KEPT_FROM_LAVA = (b"-ip", b"-ipv4", b"-ipv6", b"-addr", b"clientip", b"socketip")
"""Endings of header names with the caller's address: ``x-real-ip``, ``cf-connecting-ipv6``, ``x-azure-clientip`` …"""
ACCOUNTS = (b"openai-organization", b"openai-project", b"x-goog-user-project")
"""Headers with the client's own account at a provider: they are sent only with the client's own key."""

_KEPT_FROM_CLIENT = frozenset(
    {
        b"set-cookie",
        b"set-cookie2",
        b"alt-svc",
        b"clear-site-data",
        b"strict-transport-security",
        b"refresh",
        b"link",
    }
)

# Names that ``read`` stores, instead of or in addition to forwarding them.
_NOTED = frozenset(
    {
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"connection",
    }
)
_NOTED |= frozenset(
    {
        b"accept",
        b"anthropic-version",
        b"x-goog-api-client",
        b"access-control-request-method",
        b"access-control-request-headers",
    }
)
_NOTED |= frozenset({PROXY_KEY, PROXY_PROJECT, METADATA, *CREDENTIALS})
_SINGLE = frozenset({b"host", b"origin", b"content-length", PROXY_KEY, PROXY_PROJECT, *CREDENTIALS})
# Lists by definition, or checked as a whole: several lines are read as one value (RFC 9110, 5.3).
_JOINED = frozenset({b"connection", b"content-encoding", b"sec-fetch-site", METADATA})
_STOPPED = _HOP_BY_HOP | _KEPT_FROM_LAVA | frozenset(CREDENTIALS)


class RequestHeaders:
    """The headers of one request.

    ``noted``: those used here, by lower-case name. ``repeated``: names that must be unique but occur twice. ``onward``: the
    pairs to forward. ``metadata``: the ``x-lava-metadata-<key>`` headers by key.
    """

    __slots__ = ("metadata", "noted", "onward", "repeated")

    def __init__(self, noted: dict[bytes, bytes], repeated: tuple[bytes, ...], onward: Pairs, metadata: Pairs) -> None:
        self.noted = noted
        self.repeated = repeated
        self.onward = onward
        self.metadata = metadata

    def get(self, name: bytes) -> bytes | None:
        """Return the (first) value of a noted header."""
        return self.noted.get(name)


def read(headers: Iterable[tuple[bytes, bytes]]) -> RequestHeaders:
    """Return the headers of a request (names in lower case, as in ASGI). Never raises."""
    noted: dict[bytes, bytes] = {}
    repeated: tuple[bytes, ...] = ()
    onward: Pairs = []
    metadata: Pairs = []
    for pair in headers:
        name = pair[0]
        if name in _NOTED:
            if name in noted:
                if name in _SINGLE:
                    repeated += (name,)
                elif name in _JOINED:
                    noted[name] += b"," + pair[1]
            else:
                noted[name] = pair[1]
        if name in _STOPPED:
            continue
        if name.startswith(b"x-lava-"):
            if name.startswith(_METADATA_OF):
                metadata.append((name[len(_METADATA_OF) :], pair[1]))
            continue
        if b"_" in name or name.startswith(_KINDS_KEPT_FROM_LAVA) or name.endswith(_ADDRESSES_KEPT_FROM_LAVA):
            continue
        onward.append(pair)
    nominated = noted.get(b"connection")
    if nominated is not None and nominated.lower() not in (b"keep-alive", b"close"):
        # Before our own headers are set, so that a client cannot remove those by naming them in Connection.
        drop = _tokens(nominated)
        onward = [pair for pair in onward if pair[0] not in drop]
        metadata = [pair for pair in metadata if _METADATA_OF + pair[0] not in drop]
        for name in drop & {METADATA, b"anthropic-version"}:
            noted.pop(name, None)
    return RequestHeaders(noted, repeated, onward, metadata)


def http_date() -> bytes:
    """Return the current time as the value of a ``date`` header (RFC 9110, section 5.6.7)."""
    return _date_of(int(time()))


@lru_cache(maxsize=2)
def _date_of(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")


def _tokens(value: bytes) -> set[bytes]:
    return {token.strip().lower() for token in value.split(b",")}


def without(pairs: Pairs, *names: bytes) -> Pairs:
    """Return ``pairs`` without these names."""
    return [pair for pair in pairs if pair[0] not in names]


class ResponseHeaders:
    """The headers of a response: ``onward`` is relayed to the client, the rest is used by the relay."""

    __slots__ = ("characters", "encoding", "event_stream", "inert", "lava_request_id", "length", "onward", "upload")

    def __init__(self) -> None:
        self.onward: Pairs = []
        self.event_stream = False
        self.inert: bool | None = None
        """Whether no browser runs scripts in a document of this content type; ``None`` without a type."""
        self.encoding: bytes | None = None
        """``Content-Encoding``, unless it is empty or ``identity``."""
        self.length: int | None = None
        self.lava_request_id: bytes | None = None
        self.characters: int | None = None
        """The characters of a text that was spoken, as ElevenLabs counts them: its response is audio alone."""
        self.upload = False
        """Whether it contains an upload address (``uploads.py``)."""


def to_client(headers: Iterable[tuple[bytes, bytes]], *, keep_length: bool) -> ResponseHeaders:
    """Return the headers of an upstream response (names in lower case); a ``date`` is added if there is none.

    ``keep_length``: ``content-length`` is the length of the relayed body; equal duplicates of it become one.
    """
    answered = ResponseHeaders()
    onward = answered.onward
    nominated: set[bytes] | None = None
    date_seen = server_seen = False
    for pair in headers:
        fate = _fate(pair[0])
        if fate == _PASS:
            onward.append(pair)
            continue
        name, value = pair
        if fate == _ASK:
            if name == b"content-length":
                # A value that is not a number frames nothing: a response to HEAD may have one.
                if not keep_length or answered.length is not None or not value.isdigit():
                    continue
                answered.length = int(value)
            elif name == b"content-type":
                answered.event_stream = value[:17].lower() == b"text/event-stream"
                if not (answered.event_stream or value == b"application/json" or _INERT.match(value)):
                    answered.inert = False
                elif answered.inert is None:
                    answered.inert = True
            elif name == b"date":
                if date_seen:
                    continue
                date_seen = True
            elif name == b"server":
                if server_seen:
                    continue
                server_seen = True
            elif name == b"x-lava-request-id":
                answered.lava_request_id = value
            elif name in UPLOADS:
                answered.upload = True
            elif name in _CHARACTERS:
                if value.isdigit() and len(value) < 16 and (answered.characters is None or name == _CHARACTERS[0]):
                    answered.characters = int(value)
            elif value.strip().lower() not in (b"", b"identity"):
                answered.encoding = value if answered.encoding is None else answered.encoding + b"," + value
            onward.append(pair)
        elif name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            nominated = (nominated or set()) | _tokens(value)
    if not date_seen:
        onward.append((b"date", http_date()))
    if nominated:
        nominated -= _FRAMING
        answered.onward = [pair for pair in onward if pair[0] not in nominated]
    return answered


# The treatment of a response header; one whose value is used here is relayed, too, unless the value forbids it.
_PASS, _DROP, _ASK = range(3)


@lru_cache(maxsize=1024)
def _fate(name: bytes) -> int:
    if name in _ASKED:
        return _ASK
    dropped = name in _DROPPED or name.startswith((b"access-control-", b"x-lava-proxy-"))
    return _DROP if dropped else _PASS


UPLOADS = frozenset({b"x-goog-upload-url", b"x-goog-upload-control-url"})
_CHARACTERS = (b"x-character-count", b"character-cost")  # the first where both are there: the other is in credits
_ASKED = UPLOADS | frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"date", b"server", b"x-lava-request-id", *_CHARACTERS}
)
_DROPPED = _HOP_BY_HOP | _KEPT_FROM_CLIENT
SANDBOX = (b"content-security-policy", b"sandbox")
"""Added to a response that a browser might run as a page of this daemon. A policy of the upstream is kept: browsers apply
both."""
# The types of ``ResponseHeaders.inert``. XML may come under any name that ends in «+xml»; two types in one value are none.
_INERT = re.compile(
    rb"(application/(json|[a-z0-9.-]+\+json|jsonl|x-ndjson|octet-stream|zip|gzip)|text/(event-stream|plain|csv)"
    rb"|image/(?!svg)[a-z0-9.-]+|(audio|video)/[a-z0-9.-]+)[ \t]*(;[^,]*)?\Z",
    re.IGNORECASE,
)
# An upstream cannot remove these by naming them in Connection: the body would be unreadable without them.
_FRAMING = frozenset({b"keep-alive", b"close", b"content-length", b"content-type", b"content-encoding", b"date", b""})


# --- x-lava-metadata -------------------------------------------------------------------------------------------------

_KEY = re.compile(r"[A-Za-z0-9_]{1,255}\Z")
MAX_PAIRS = 100
PROXY_ID = "lava_proxy_id"
"""The key of the pair with our request id. Lava's record of the request then has it, too."""
ID_PLACEHOLDER = "req_000000000000000000000000"
AFTER_ID = b'"}'
"""What follows the id in a value with our pair, which is the last one."""


def merge_metadata(
    client: bytes | None, single: Pairs, project: Mapping[str, str], *, correlate: bool = False
) -> bytes | None:
    """Return the value of ``x-lava-metadata`` to send, or ``None``: the client's pairs and the project's, which win.

    ``client`` is the value of that header, ``single`` are the pairs of ``x-lava-metadata-<key>``, which take precedence.
    ``correlate`` adds ``PROXY_ID`` with ``ID_PLACEHOLDER`` as the last pair, if there is room for it and the project has no
    pair of that name; a client's is removed.
    Lava's limits: at most 100 pairs, keys of ASCII letters, digits and underscore, keys and values of 1 to 255 characters.
    Raises ``ProxyError`` ``bad_request`` if a header of the client exceeds them. Non-ASCII characters are escaped, because
    headers are not UTF-8.
    """
    pairs: dict[str, str] = {}
    if client is not None:
        pairs = _parse_metadata(client)
    if single:
        pairs.update(_single_metadata(single))
    pairs.update(project)
    if len(pairs) > MAX_PAIRS:
        raise _bad_metadata(f"together with the project's own it has more than {MAX_PAIRS} pairs")
    if correlate and PROXY_ID not in project:
        pairs.pop(PROXY_ID, None)
        if len(pairs) < MAX_PAIRS:
            pairs[PROXY_ID] = ID_PLACEHOLDER
    return json.dumps(pairs, separators=(",", ":")).encode("ascii") if pairs else None


def _parse_metadata(value: bytes) -> dict[str, str]:
    try:
        document: Any = json.loads(value)
    except (ValueError, RecursionError):
        raise _bad_metadata("it is not JSON") from None
    if not isinstance(document, dict):
        raise _bad_metadata("it is not a JSON object")
    if len(document) > MAX_PAIRS:
        raise _bad_metadata(f"it has more than {MAX_PAIRS} pairs")
    for key, entry in document.items():
        _check_pair(key, entry)
    return document


def _single_metadata(single: Pairs) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name, value in single:
        try:
            key, entry = name.decode("ascii"), value.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad_metadata("a value of x-lava-metadata-<key> is not UTF-8") from None
        _check_pair(key, entry)
        if key in pairs:
            raise _bad_metadata("x-lava-metadata-<key> stands twice with the same key")
        pairs[key] = entry
    return pairs


def _check_pair(key: str, entry: object) -> None:
    if not _KEY.match(key):
        raise _bad_metadata(
            "a key has other characters than ASCII letters, digits and underscore, or is not 1 to 255 long"
        )
    if not isinstance(entry, str) or not 1 <= len(entry) <= 255:
        raise _bad_metadata("a value is not a string of 1 to 255 characters")


def _bad_metadata(why: str) -> ProxyError:
    return ProxyError(
        "bad_request",
        f"The header x-lava-metadata cannot be sent: {why}.",
        'Send a JSON object of strings, such as {"team": "web"}, or single pairs, such as x-lava-metadata-team: web.',
    )
