"""What travels: header policy in both directions, as pure functions over raw byte pairs.

A deny-list, not an allow-list: beta and vendor headers must pass. Order and duplicates are kept. What came in is never
changed; each function makes a new list. ``read`` passes over a request's headers once and sorts out what the gate, the
router and the outgoing request each need, because this is done for every request.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from proxy.errors import Fault

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
"""Headers in which tools send keys, in the order in which they are looked at."""

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
        # What the gate has judged: whoever reads it behind us would judge the page again, by other rules.
        b"origin",
        b"referer",
        # What a proxy in front says of the caller and of the request it got. Nothing of it is true of what leaves here.
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
"""How names end that hold the caller's address: ``x-real-ip``, ``cf-connecting-ipv6``, ``x-azure-clientip`` …"""
ACCOUNTS = (b"openai-organization", b"openai-project", b"x-goog-user-project")
"""Headers that name an account of the client's own at a provider: they go with the client's own key alone."""

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

# Names that ``read`` stores instead of, or beside, sending on.
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
# Lists by nature, or judged as a whole: what came in several lines is read as one value (RFC 9110, 5.3).
_JOINED = frozenset({b"connection", b"content-encoding", b"sec-fetch-site", METADATA})
_STOPPED = _HOP_BY_HOP | _KEPT_FROM_LAVA | frozenset(CREDENTIALS)


class Received:
    """The headers of one request, sorted: ``noted`` by name (lower case), ``repeated`` names that may stand only once but
    came twice, ``onward``, the pairs that may travel to Lava, and ``metadata``, those of ``x-lava-metadata-<key>`` by key."""

    __slots__ = ("metadata", "noted", "onward", "repeated")

    def __init__(self, noted: dict[bytes, bytes], repeated: tuple[bytes, ...], onward: Pairs, metadata: Pairs) -> None:
        self.noted = noted
        self.repeated = repeated
        self.onward = onward
        self.metadata = metadata

    def get(self, name: bytes) -> bytes | None:
        """The (first) value of a noted header."""
        return self.noted.get(name)


def read(headers: Iterable[tuple[bytes, bytes]]) -> Received:
    """Sort the headers of a request (names in lower case, as ASGI has them). Never raises."""
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
        # Before our own headers are set, so that a client can never nominate those away.
        drop = _tokens(nominated)
        onward = [pair for pair in onward if pair[0] not in drop]
        metadata = [pair for pair in metadata if _METADATA_OF + pair[0] not in drop]
        for name in drop & {METADATA, b"anthropic-version"}:
            noted.pop(name, None)
    return Received(noted, repeated, onward, metadata)


def _tokens(value: bytes) -> set[bytes]:
    return {token.strip().lower() for token in value.split(b",")}


def without(pairs: Pairs, *names: bytes) -> Pairs:
    """``pairs`` without these names."""
    return [pair for pair in pairs if pair[0] not in names]


class Answered:
    """The headers of an answer, sorted: ``onward`` may travel to the client, the rest is what the forwarder asks for."""

    __slots__ = ("encoding", "event_stream", "inert", "lava_request_id", "length", "onward", "upload")

    def __init__(self) -> None:
        self.onward: Pairs = []
        self.event_stream = False
        self.inert: bool | None = None
        """Whether the type is one of which no browser makes a page that runs scripts; ``None`` without a type."""
        self.encoding: bytes | None = None
        """``Content-Encoding``, unless it is empty or ``identity``."""
        self.length: int | None = None
        self.lava_request_id: bytes | None = None
        self.upload = False
        """Whether it names an address that takes a file (``uploads.py``)."""


def to_client(headers: Iterable[tuple[bytes, bytes]], *, keep_length: bool) -> Answered:
    """Sort the headers of an upstream's answer (names in lower case); a ``date`` is added where there is none.

    ``keep_length`` says whether ``content-length`` frames the body that is sent on; equal duplicates of it become one.
    """
    answered = Answered()
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
                # One that is no number frames nothing: an answer to HEAD may have it.
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
            elif value.strip().lower() not in (b"", b"identity"):
                answered.encoding = value if answered.encoding is None else answered.encoding + b"," + value
            onward.append(pair)
        elif name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            nominated = (nominated or set()) | _tokens(value)
    if not date_seen:
        onward.append((b"date", formatdate(usegmt=True).encode("ascii")))
    if nominated:
        nominated -= _FRAMING
        answered.onward = [pair for pair in onward if pair[0] not in nominated]
    return answered


# What becomes of a header of an answer; one that is asked is passed on, too, unless its value speaks against it.
_PASS, _DROP, _ASK = range(3)


@lru_cache(maxsize=1024)
def _fate(name: bytes) -> int:
    if name in _ASKED:
        return _ASK
    dropped = name in _DROPPED or name.startswith((b"access-control-", b"x-lava-proxy-"))
    return _DROP if dropped else _PASS


UPLOADS = frozenset({b"x-goog-upload-url", b"x-goog-upload-control-url"})
_ASKED = UPLOADS | frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"date", b"server", b"x-lava-request-id"}
)
_DROPPED = _HOP_BY_HOP | _KEPT_FROM_CLIENT
SANDBOX = (b"content-security-policy", b"sandbox")
"""Added to an answer that a browser might run as a page of this daemon. A policy of the upstream's own stays beside it:
browsers obey both."""
# The types of ``Answered.inert``. XML may come under any name that ends in «+xml»; two types in one value are none.
_INERT = re.compile(
    rb"(application/(json|[a-z0-9.-]+\+json|jsonl|x-ndjson|octet-stream|zip|gzip)|text/(event-stream|plain|csv)"
    rb"|image/(?!svg)[a-z0-9.-]+|(audio|video)/[a-z0-9.-]+)[ \t]*(;[^,]*)?\Z",
    re.IGNORECASE,
)
# What an upstream cannot take away by naming it in Connection: the body could not be read without it.
_FRAMING = frozenset({b"keep-alive", b"close", b"content-length", b"content-type", b"content-encoding", b"date", b""})


# --- x-lava-metadata -------------------------------------------------------------------------------------------------

_KEY = re.compile(r"[A-Za-z0-9_]{1,255}\Z")
MAX_PAIRS = 100


def merge_metadata(client: bytes | None, single: Pairs, project: Mapping[str, str]) -> bytes | None:
    """The value of ``x-lava-metadata`` to send, or ``None``: the client's pairs under the project's, which win.

    ``client`` is the value of that header, ``single`` are the pairs of ``x-lava-metadata-<key>``, which go before it.
    Lava's limits: at most 100 pairs, keys of ASCII letters, digits and underscore, keys and values of 1 to 255 characters.
    Raises ``Fault`` ``bad_request`` when a header of the client breaks them. Every character beyond ASCII is escaped: a
    header is no place for UTF-8.
    """
    pairs: dict[str, str] = {}
    if client is not None:
        pairs = _parse_metadata(client)
    if single:
        pairs.update(_single_metadata(single))
    pairs.update(project)
    if len(pairs) > MAX_PAIRS:
        raise _bad_metadata(f"together with the project's own it has more than {MAX_PAIRS} pairs")
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


def _bad_metadata(why: str) -> Fault:
    return Fault(
        "bad_request",
        f"The header x-lava-metadata cannot be sent: {why}.",
        'Send a JSON object of strings, such as {"team": "web"}, or single pairs, such as x-lava-metadata-team: web.',
    )
