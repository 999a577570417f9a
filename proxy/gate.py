"""The gate: who may ask at all. Host, Origin, local key, in this order, before the body is read and before routing.

Any web page can send requests to a loopback port, and with DNS rebinding read the answers; so the name we are called by and
the page that calls are checked before anything else, with the same answer for known and unknown addresses. Plain functions
over raw header bytes: nothing here waits.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from proxy import dialects, routing
from proxy.dialects import Dialect
from proxy.errors import Fault
from proxy.generation import Generation, digest
from proxy.headers import CREDENTIALS, PROXY_KEY, PROXY_PROJECT, Pairs, Received

OPEN_PATHS = frozenset({b"/", b"/healthz", b"/readyz"})
"""Served without a local key: nothing there is worth one."""

PROBES = frozenset({b"/healthz", b"/readyz"})
"""Answered under any name: an orchestrator's probe comes by the address of the moment."""

_CORS = b"access-control-"
_PREFLIGHT_SECONDS = b"600"
_AUTHORITY = re.compile(rb"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]{1,5})?\Z")
_PLAIN_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_ONE_HOST = "Send exactly one Host header, as every HTTP client does."


@dataclass(slots=True)
class Admission:
    """What the gate found out about a request that may go on."""

    project: str | None = None
    """The project that the local key is bound to."""
    key_header: bytes | None = None
    """The header that carried the local key (or ``QUERY_KEY``): it must not serve as anything else."""


def check_host(received: Received, path: bytes, server: tuple[str, int | None] | None, generation: Generation) -> bytes:
    """The ``Host`` we were called by; empty where a probe came by a name that is not ours, which is no origin of ours.

    Raises ``Fault`` ``bad_request`` or ``host_not_allowed``.
    """
    host = received.noted.get(b"host")
    if host is None or b"host" in received.repeated:
        raise Fault(
            "bad_request",
            "The request has no Host header, or more than one.",
            _ONE_HOST,
        )
    port = server[1] if server is not None else None
    own = generation.own_hosts.get(port or 0)
    if own is None:
        own = generation.own_hosts[port or 0] = _own_hosts(generation, port)
    if host in own:
        return host
    lowered = host.lower()
    match = _AUTHORITY.match(lowered)
    name = match[1] if match is not None else b""
    if lowered in own or lowered in generation.allowed_hosts or name in generation.allowed_hosts:
        return host
    if port is None and name == b"localhost":  # a unix socket: no browser can reach it
        return host
    if path in PROBES:
        if _PLAIN_HOST.fullmatch(host) is None:
            raise Fault("bad_request", "The Host header is not a name or an address with a port.", _ONE_HOST)
        return b""
    shown = host.decode("ascii", "replace")[:100]
    advice = "Call it localhost or 127.0.0.1, with its port."
    if _PLAIN_HOST.fullmatch(host) and len(host) <= 100:
        advice = f'Call it localhost or 127.0.0.1, or, if that name is yours, add allowed_hosts = ["{shown}"] under [server].'
    raise Fault("host_not_allowed", f'This daemon is not called "{shown}". {advice}', advice)


def _own_hosts(generation: Generation, port: int | None) -> frozenset[bytes]:
    names = {"localhost", "127.0.0.1", "[::1]"}
    for host in generation.settings.server.host:
        names |= _spellings(host)
    if port is None:
        return frozenset()
    own = {f"{name}:{port}".encode("ascii") for name in names}
    if port == 80:
        own |= {name.encode("ascii") for name in names}
    return frozenset(own)


def _spellings(bound: str) -> set[str]:
    """The names in a ``Host`` for an address that we are bound to: none for a wildcard, which names no machine."""
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


def listed_origin(received: Received, generation: Generation) -> bytes | None:
    """The origin of a page that the configuration lists, ``None`` for our own pages, foreign ones and programs."""
    origin = received.noted.get(b"origin")
    if origin is None or b"origin" in received.repeated or not is_listed(origin, generation):
        return None
    return origin


def is_listed(origin: bytes, generation: Generation) -> bool:
    """Whether the configuration lists this origin."""
    lowered = origin.lower()
    return lowered in generation.allowed_origins or (
        bool(generation.allowed_schemes) and lowered.startswith(generation.allowed_schemes)
    )


def check_origin(received: Received, host: bytes) -> None:
    """That no page calls which is not listed. Raises ``Fault`` ``origin_not_allowed``."""
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


def _foreign(message: str, advice: str) -> Fault:
    hint = f"If that page is yours, {advice} under [server]."
    return Fault("origin_not_allowed", f"{message} {hint}", hint)


def preflight(received: Received) -> Pairs:
    """The headers of the answer (204) to a preflight of a listed origin, beside those of ``readable_by``: no key, no
    credentials."""
    headers: Pairs = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    asked = received.noted.get(b"access-control-request-headers")
    if asked is not None:
        headers.append((b"access-control-allow-headers", asked))
    return headers


def readable_by(origin: bytes, answer: Pairs) -> Pairs:
    """The headers of an answer and those that let a page of a listed origin read it: every header by its name, for the SDK
    in a page acts on ``x-should-retry``, ``retry-after``, ``request-id`` and ``x-ratelimit-*`` as anywhere else."""
    names = dict.fromkeys([b"x-lava-proxy-error", *(name for name, _ in answer if not name.startswith(_CORS))])
    more: Pairs = [
        (b"access-control-allow-origin", origin),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", b", ".join(names)),
    ]
    # By pair: an upstream's own Vary says nothing of the origin.
    return [*answer, *(pair for pair in more if pair not in answer)]


_OWN_HEADER = {Dialect.ANTHROPIC: b"x-api-key", Dialect.GOOGLE: b"x-goog-api-key"}
QUERY_KEY = b"?key"
"""Stands for Google's ``?key=`` where a header's name is asked for; no header has such a name."""


def key_of(
    received: Received,
    path: bytes,
    generation: Generation,
    *,
    but: bytes | None = None,
    method: str = "POST",
    query: bytes = b"",
) -> tuple[bytes, bytes] | None:
    """The credential that a tool sent: the header's name and the key in it, or ``None``.

    The header of the route's own dialect comes first, then the others in their order, then, on Google's routes, ``?key=``.
    ``but`` is what carried the local key: it is left out, and so is everything else that holds a local key. Raises ``Fault``
    ``bad_request`` where the same header stands twice or holds two values.
    """
    noted = received.noted
    if received.repeated:
        _refuse_repeated(received)
    present = [name for name in CREDENTIALS if name in noted and name != but]
    if not present and not query:
        return None
    if len(present) == 1 and but is None and not query:
        return present[0], _key_in(present[0], noted[present[0]], generation)
    dialect = dialects.of_path(path, generation.table.providers, method) or dialects.of_headers(noted)
    own = _OWN_HEADER.get(dialect, b"authorization")
    present.sort(key=lambda name: name != own)  # stable: the others keep their order
    keys = [(name, _key_in(name, noted[name], generation)) for name in present]
    if dialect is Dialect.GOOGLE and but != QUERY_KEY and (sent := routing.key_in(query)):
        if len(set(sent)) > 1:
            raise _two_values(QUERY_KEY)
        keys.append((QUERY_KEY, sent[0]))
    if but is not None:
        keys = [pair for pair in keys if digest(pair[1]) not in generation.keys]
    return next((pair for pair in keys if pair[1]), keys[0] if keys else None)


def _refuse_repeated(received: Received) -> None:
    for name in received.repeated:
        if name in CREDENTIALS or name == PROXY_KEY:
            raise _two_values(name)


def _key_in(name: bytes, value: bytes, generation: Generation) -> bytes:
    """The key in the value of a credential header."""
    if value[:7] == b"Bearer " and name == b"authorization" and b"," not in value and b" " not in value[7:]:
        return value[7:]  # what nearly every tool sends
    key = value.strip()
    if name == b"authorization":
        scheme, _, rest = key.partition(b" ")
        if scheme.lower() == b"bearer":
            key = rest.strip()
        elif rest and b"," not in scheme:
            return key  # another scheme: its parameters may have commas, and it is no key of ours
    if b"," in key and all(piece.strip() for piece in key.split(b",")) and digest(key) not in generation.keys:
        raise _two_values(name)
    return key


def _two_values(name: bytes) -> Fault:
    what = "?key= in the address" if name == QUERY_KEY else f"The header {name.decode('ascii')}"
    return Fault(
        "bad_request",
        f"{what} has two values.",
        "Send one key in one header; a local key beside a provider key goes into x-lava-proxy-key.",
    )


def check_key(
    received: Received, path: bytes, generation: Generation, *, method: str = "POST", query: bytes = b""
) -> Admission:
    """The local key of a request, where keys are configured.

    Raises ``Fault`` ``local_key_required``, ``local_key_invalid`` or ``bad_request``.
    """
    own = received.noted.get(PROXY_KEY)
    if own is not None:
        _refuse_repeated(received)
        found: tuple[bytes, bytes] | None = (PROXY_KEY, _key_in(PROXY_KEY, own, generation))
    else:
        found = key_of(received, path, generation, method=method, query=query)
    if PROXY_PROJECT in received.repeated:
        raise Fault("bad_request", "The header x-lava-proxy-project has two values.", "Name one project.")
    if not generation.keys or path in OPEN_PATHS:
        return Admission()
    if found is None:
        raise Fault(
            "local_key_required",
            "This daemon wants a local key, and the request has none: give the tool one from lava-proxy's configuration.",
            "Give the tool one of the keys under [server] or [projects.<name>] in lava-proxy's configuration as its API key.",
            headers=[(b"www-authenticate", b"Bearer")],
        )
    name, key = found
    hashed = digest(key)
    if hashed not in generation.keys:
        raise Fault(
            "local_key_invalid",
            "The API key of this request is none of this daemon's local keys: give the tool one from lava-proxy's configuration.",
            "Give the tool a key from lava-proxy's own configuration: a provider's or Lava's key does not belong in the tool.",
            headers=[(b"www-authenticate", b"Bearer")],
        )
    return Admission(generation.keys[hashed], name)
