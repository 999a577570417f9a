"""Outbound proxies: tunnels to Lava (``CONNECT``, RFC 9110, section 9.3.6).

Every request uses such a tunnel, so the proxy sees host and port and nothing else: TLS with Lava runs inside it, and is
verified as without a proxy. Only the ``CONNECT`` request contains the proxy's credentials.
"""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote_to_bytes, urlsplit

from proxy.protocol.redaction import Unshown
from proxy.upstream import Origin


class OutboundProxy(Unshown):
    """A proxy, parsed from its URL: ``http://`` or ``https://``, with or without ``user:password@`` (percent-encoded)."""

    __slots__ = ("_credentials", "origin")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("an outbound proxy must be an http:// or https:// URL")
        self.origin = Origin(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self._credentials: bytes | None = None
        if parts.username is not None:
            self._credentials = b"%b:%b" % (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or ""))

    def request(self, origin: Origin) -> bytes:
        """Return the ``CONNECT`` request for ``origin``."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        authority = f"{host}:{origin.port}".encode("idna" if not host.isascii() else "ascii")
        lines = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
        if self._credentials is not None:
            lines += b"Proxy-Authorization: Basic %b\r\n" % b64encode(self._credentials)
        return lines + b"\r\n"

    def refusal(self, status: int) -> str:
        """Return why the proxy refused the tunnel, by its status."""
        if status != 407:
            return f"the outbound proxy refused to connect (status {status})"
        if self._credentials is None:
            return "the outbound proxy asks for a user name and password (status 407)"
        return "the outbound proxy did not accept its user name and password (status 407)"
