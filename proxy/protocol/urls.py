"""Strict parsing of addresses in the configuration, and classification of hosts.

Strict on purpose. `urllib.parse` drops tabs and line ends, keeps userinfo and accepts ``..``. If two parsers
of one URL differ, a key can be sent to the wrong host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote

_ADDRESS = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
# Endings that no public resolver knows (RFC 6761, 6762, 7686, 8375, .internal), or that home routers use.
_PRIVATE_ENDINGS = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "onion", "home.arpa")


@dataclass(frozen=True, slots=True)
class Address:
    """An http(s) address without userinfo, query, fragment; ``host`` is lower-case, IPv6 without brackets."""

    scheme: str
    host: str
    port: int | None
    path: str

    def base(self, default_path: str = "") -> str:
        """Return it as text, without a trailing slash; ``default_path`` replaces a missing path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path.rstrip('/') or default_path}"


def parse_address(text: str) -> Address:
    """Parse an address. Raises ValueError with a sentence that contains nothing of the text."""
    if not re.fullmatch(r"[\x21-\x7e]*", text) or "\\" in text:
        raise ValueError(
            "must not hold spaces, backslashes, control or non-ASCII characters (write a name as punycode)"
        )
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment (? or #)")
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("must be an address that begins with https:// (or http://)")
    scheme, authority, path = match[1].lower(), match[2], match[3] or ""
    if "@" in authority:
        raise ValueError("must not hold a user name or password (what stands before the @)")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise ValueError("must have a host, and at most a port after it")
    port = None if parts[2] is None else int(parts[2])
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("must have a port between 1 and 65535")
    if not _PATH.fullmatch(path) or "//" in path:
        raise ValueError("must have a plain path: letters, digits and single slashes, other characters percent-encoded")
    if any(unquote(segment) in (".", "..") or "/" in unquote(segment) for segment in path.split("/")):
        raise ValueError("must have a path without . and .. segments")
    return Address(scheme, _host(parts[1].lower()), port, path)


def lava_address(text: str) -> str:
    """Return the address of Lava's API: https, or http on a loopback host; ``/v1`` replaces a missing path.

    Raises ValueError with a sentence that contains nothing of the text.
    """
    address = parse_address(text)
    if address.scheme == "http" and not is_loopback(address.host):
        raise ValueError("must be https: http is for loopback hosts only, your key would travel in the clear")
    return address.base(default_path="/v1")


def _host(text: str) -> str:
    plain = text.strip("[]")
    try:
        address = ip_address(plain)
    except ValueError:
        address = None
    if (address is not None and address.version == 6) == text.startswith("["):
        if address is not None:
            return str(address)
        labels = text.split(".")
        # If the last label is a number, browsers and libc parse the name as an IP address (0x7f.1, 2130706433).
        numeric = re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1])
        if len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not numeric:
            return text
    raise ValueError("must have a valid host name or IP address (an IPv6 address stands in brackets)")


def is_bindable(host: str) -> bool:
    """Whether a host can be listened on: an IP address or a host name, without brackets and port."""
    return re.fullmatch(r"[0-9A-Za-z._:%-]+", host) is not None and (":" not in host or _ip(host) is not None)


def is_loopback(host: str) -> bool:
    """Whether a host (without brackets) is this machine alone: ``localhost`` or a loopback address."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_listed(host: str, port: int, no_proxy: str) -> bool:
    """Whether ``NO_PROXY`` names a host (without brackets): by name, by a name it ends with, by address or network, or
    all (``*``); an entry may end with a port."""
    address = _ip(host)
    for entry in re.split(r"[\s,]+", no_proxy.lower().strip()):
        name, colon, number = entry.rpartition(":")
        if not (colon and number.isdigit()) or (":" in name and not name.endswith("]")):
            name = entry
        elif int(number) != port:
            continue
        name = name.strip("[]").lstrip(".")
        if name == "*":
            return True
        if address is None:
            if name and (host.lower() == name or host.lower().endswith("." + name)):
                return True
            continue
        try:
            network = ip_network(name, strict=False)
        except ValueError:
            continue
        if address in network:
            return True
    return False


def is_public_name(host: str) -> bool:
    """Whether a host from `parse_address` can be a name on the internet. Resolves nothing."""
    if _ip(host) is not None or "." not in host:
        return False
    return not any(host == ending or host.endswith("." + ending) for ending in _PRIVATE_ENDINGS)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
