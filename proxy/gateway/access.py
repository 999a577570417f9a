"""Access checks: Host, Origin, local key, in this order, before the body is read and before routing.

Any web page can send requests to a loopback port, and with DNS rebinding it can read the responses. Host and Origin are
therefore checked first, with the same response for known and unknown paths. All functions are synchronous and work on raw
header bytes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.gateway import routing
from proxy.protocol import dialects
from proxy.protocol.dialects import Dialect
from proxy.protocol.errors import ProxyError
from proxy.protocol.headers import CREDENTIALS, PROXY_KEY, PROXY_PROJECT, Pairs, RequestHeaders

if TYPE_CHECKING:
    from proxy.gateway.active_config import ActiveConfig

OPEN_PATHS = frozenset({b"/", b"/healthz", b"/readyz"})
"""Served without a local key: these pages hold nothing private."""

OWNER_PATHS = frozenset({b"/api/stop", b"/api/resume", b"/api/stops"})
"""Served over the unix socket without a local key: that socket is its owner's alone (``control.py``)."""

PROBES = frozenset({b"/healthz", b"/readyz"})
"""Served for any ``Host``: an orchestrator's probe uses the current address of the container."""

_CORS = b"access-control-"
_PREFLIGHT_SECONDS = b"600"
_AUTHORITY = re.compile(rb"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]{1,5})?\Z")
_PLAIN_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_ONE_HOST = "Send exactly one Host header, as every HTTP client does."


@dataclass(slots=True)
class Caller:
    """The result of the access checks for a permitted request."""

    project: str | None = None
    """The project that the local key is bound to."""
    key_header: bytes | None = None
    """The header that carried the local key (or ``QUERY_KEY``). It must not be used for anything else."""


def check_host(
    received: RequestHeaders, path: bytes, server: tuple[str, int | None] | None, config: ActiveConfig
) -> bytes:
    """Return the ``Host`` of the request; empty if a probe used a name that is not ours, as that is no origin of ours.

    Raises ``ProxyError`` ``bad_request`` or ``host_not_allowed``.
    """
    host = received.noted.get(b"host")
    if host is None or b"host" in received.repeated:
        raise ProxyError(
            "bad_request",
            "The request has no Host header, or more than one.",
            _ONE_HOST,
        )
    port = server[1] if server is not None else None
    own = config.own_hosts.get(port or 0)
    if own is None:
        own = config.own_hosts[port or 0] = _own_hosts(config, port)
    if host in own:
        return host
    lowered = host.lower()
    match = _AUTHORITY.match(lowered)
    name = match[1] if match is not None else b""
    if lowered in own or lowered in config.allowed_hosts or name in config.allowed_hosts:
        return host
    if port is None and name == b"localhost":  # a unix socket: no browser can reach it
        return host
    if path in PROBES:
        if _PLAIN_HOST.fullmatch(host) is None:
            raise ProxyError("bad_request", "The Host header is not a name or an address with a port.", _ONE_HOST)
        return b""
    shown = host.decode("ascii", "replace")[:100]
    advice = "Call it localhost or 127.0.0.1, with its port."
    if _PLAIN_HOST.fullmatch(host) and len(host) <= 100:
        advice = f'Call it localhost or 127.0.0.1, or, if that name is yours, add allowed_hosts = ["{shown}"] under [server].'
    raise ProxyError("host_not_allowed", f'This daemon is not called "{shown}". {advice}', advice)


def _own_hosts(config: ActiveConfig, port: int | None) -> frozenset[bytes]:
    names = {"localhost", "127.0.0.1", "[::1]"}
    for host in config.settings.server.host:
        names |= _spellings(host)
    if port is None:
        return frozenset()
    own = {f"{name}:{port}".encode("ascii") for name in names}
    if port == 80:
        own |= {name.encode("ascii") for name in names}
    return frozenset(own)


def _spellings(bound: str) -> set[str]:
    """Return the names that ``Host`` may have for a bound address: none for a wildcard, which names no machine."""
    written = bound.strip("[]").partition("%")[0].lower()
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(written)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(written))  # 0, 127.1 and 0x7f000001 are addresses, too
        except OSError:
            return {written} if written else set()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if address.is_unspecified or (mapped is not None and mapped.is_unspecified):
        return set()
    return {f"[{name}]" if ":" in name else name for name in (written, str(address))}


def listed_origin(received: RequestHeaders, config: ActiveConfig) -> bytes | None:
    """Return the origin of a page if the configuration lists it. ``None`` for our own pages, other pages and programs."""
    origin = received.noted.get(b"origin")
    if origin is None or b"origin" in received.repeated or not is_listed(origin, config):
        return None
    return origin


def is_listed(origin: bytes, config: ActiveConfig) -> bool:
    """Whether the configuration lists this origin."""
    lowered = origin.lower()
    return lowered in config.allowed_origins or (
        bool(config.allowed_schemes) and lowered.startswith(config.allowed_schemes)
    )


def check_origin(received: RequestHeaders, host: bytes) -> None:
    """Check that the request is not from a page that is not listed. Raises ``ProxyError`` ``origin_not_allowed``."""
    origin = received.noted.get(b"origin")
    site = received.noted.get(b"sec-fetch-site")
    if origin is not None and (origin.lower() != b"http://" + host.lower() or b"origin" in received.repeated):
        shown = origin.decode("ascii", "replace")[:100]
        advice = f'add allowed_origins = ["{shown}"]'
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+", shown) is None:
            advice = "give it an origin of its own and add that to allowed_origins"
        raise _foreign(f'A page of "{shown}" may not call this daemon.', advice)
    if site is not None and site.lower() not in (b"none", b"same-origin"):
        raise _foreign("A page of another site may not call this daemon.", "add the page's origin to allowed_origins")


def _foreign(message: str, advice: str) -> ProxyError:
    hint = f"If that page is yours, {advice} under [server]."
    return ProxyError("origin_not_allowed", f"{message} {hint}", hint)


def preflight(received: RequestHeaders) -> Pairs:
    """Return the headers of the response (204) to a preflight of a listed origin, without those of ``readable_by``.

    A preflight needs no key, and the response allows no credentials.
    """
    headers: Pairs = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    requested = received.noted.get(b"access-control-request-headers")
    if requested is not None:
        headers.append((b"access-control-allow-headers", requested))
    return headers


def readable_by(origin: bytes, answer: Pairs) -> Pairs:
    """Return ``answer`` with the headers that let a page of a listed origin read it.

    Every header is exposed by name: an SDK in a page acts on ``x-should-retry``, ``retry-after``, ``request-id`` and
    ``x-ratelimit-*`` as it does elsewhere.
    """
    names = dict.fromkeys([b"x-lava-proxy-error", *(name for name, _ in answer if not name.startswith(_CORS))])
    more: Pairs = [
        (b"access-control-allow-origin", origin),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", b", ".join(names)),
    ]
    # Compared as a pair: an upstream's own Vary does not mention the origin.
    return [*answer, *(pair for pair in more if pair not in answer)]


_OWN_HEADER = {Dialect.ANTHROPIC: b"x-api-key", Dialect.GOOGLE: b"x-goog-api-key"}
QUERY_KEY = b"?key"
"""Used in place of a header name for Google's ``?key=``. It is not a valid header name."""


def key_of(
    received: RequestHeaders,
    path: bytes,
    config: ActiveConfig,
    *,
    but: bytes | None = None,
    method: str = "POST",
    query: bytes = b"",
) -> tuple[bytes, bytes] | None:
    """Return the credential that a tool sent: the header's name and its key, or ``None``.

    The header of the route's own dialect comes first, then the others in their order, then, on Google's routes, ``?key=``.
    ``but`` is the header that carried the local key. It is left out, and so is every other header with a local key. Raises
    ``ProxyError`` ``bad_request`` if a header occurs twice or has two values.
    """
    noted = received.noted
    if received.repeated:
        _refuse_repeated(received)
    present = [name for name in CREDENTIALS if name in noted and name != but]
    if not present and not query:
        return None
    if len(present) == 1 and but is None and not query:
        return present[0], _key_in(present[0], noted[present[0]], config)
    dialect = dialects.of_path(path, config.table.providers, method) or dialects.of_headers(noted)
    own = _OWN_HEADER.get(dialect, b"authorization")
    present.sort(key=lambda name: name != own)  # stable: the others keep their order
    keys = [(name, _key_in(name, noted[name], config)) for name in present]
    if dialect is Dialect.GOOGLE and but != QUERY_KEY and (sent := routing.key_in(query)):
        if len(set(sent)) > 1:
            raise _two_values(QUERY_KEY)
        keys.append((QUERY_KEY, sent[0]))
    if but is not None:
        keys = [pair for pair in keys if digest(pair[1]) not in config.keys]
    return next((pair for pair in keys if pair[1]), keys[0] if keys else None)


def _refuse_repeated(received: RequestHeaders) -> None:
    for name in received.repeated:
        if name in CREDENTIALS or name == PROXY_KEY:
            raise _two_values(name)


def _key_in(name: bytes, value: bytes, config: ActiveConfig) -> bytes:
    """Return the key in the value of a credential header."""
    if value[:7] == b"Bearer " and name == b"authorization" and b"," not in value and b" " not in value[7:]:
        return value[7:]  # what nearly every tool sends
    key = value.strip()
    if name == b"authorization":
        scheme, _, rest = key.partition(b" ")
        if scheme.lower() == b"bearer":
            key = rest.strip()
        elif rest and b"," not in scheme:
            return key  # another scheme: its parameters may have commas, and it is not a local key
    if b"," in key and all(piece.strip() for piece in key.split(b",")) and digest(key) not in config.keys:
        raise _two_values(name)
    return key


def _two_values(name: bytes) -> ProxyError:
    what = "?key= in the address" if name == QUERY_KEY else f"The header {name.decode('ascii')}"
    return ProxyError(
        "bad_request",
        f"{what} has two values.",
        "Send one key in one header; a local key beside a provider key goes into x-lava-proxy-key.",
    )


def check_key(
    received: RequestHeaders,
    path: bytes,
    config: ActiveConfig,
    *,
    method: str = "POST",
    query: bytes = b"",
    by_socket: bool = False,
) -> Caller:
    """Check the local key of a request, if keys are configured. ``by_socket``: it came over the unix socket.

    Raises ``ProxyError`` ``local_key_required``, ``local_key_invalid`` or ``bad_request``.
    """
    own = received.noted.get(PROXY_KEY)
    if own is not None:
        _refuse_repeated(received)
        found: tuple[bytes, bytes] | None = (PROXY_KEY, _key_in(PROXY_KEY, own, config))
    else:
        found = key_of(received, path, config, method=method, query=query)
    if PROXY_PROJECT in received.repeated:
        raise ProxyError("bad_request", "The header x-lava-proxy-project has two values.", "Name one project.")
    if not config.keys or path in OPEN_PATHS:
        return Caller()
    if found is None and by_socket and path in OWNER_PATHS:
        return Caller()
    if found is None:
        raise ProxyError(
            "local_key_required",
            "This daemon wants a local key, and the request has none: give the tool one from lava-proxy's configuration.",
            "Give the tool one of the keys under [server] or [projects.<name>] in lava-proxy's configuration as its API key.",
            headers=[(b"www-authenticate", b"Bearer")],
        )
    name, key = found
    hashed = digest(key)
    if hashed not in config.keys:
        raise ProxyError(
            "local_key_invalid",
            "The API key of this request is none of this daemon's local keys: give the tool one from lava-proxy's configuration.",
            "Give the tool a key from lava-proxy's own configuration: "
            f"a provider's or {config.destination.name}'s key does not belong in the tool.",
            headers=[(b"www-authenticate", b"Bearer")],
        )
    return Caller(config.keys[hashed], name)


def digest(key: bytes) -> bytes:
    """Return the form in which local keys are stored and compared, so that a lookup leaks no timing about the key."""
    return hashlib.sha256(key).digest()
