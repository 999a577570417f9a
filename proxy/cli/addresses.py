"""The addresses of the configured daemon on this machine. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config.settings import Server

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


def hosts(server: Server) -> list[str]:
    """Return the hosts to connect to, loopback first. A wildcard address becomes the loopback address."""
    dialled = [_WILDCARDS.get(host, host) for host in server.host]
    return sorted(dict.fromkeys(dialled), key=lambda host: host not in ("127.0.0.1", "localhost"))


def url(host: str, port: int | str) -> str:
    """Return ``http://host:port``, without a trailing slash."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def base(server: Server) -> str:
    """Return the base URL for tools, without ``/v1``. Port 0 is not known before the start: ``PORT``."""
    return url(hosts(server)[0], server.port or "PORT")


def listening(server: Server) -> list[str]:
    """Return every address on which the daemon will listen."""
    places = [url(host, server.port or "PORT") for host in server.host]
    return [*places, f"unix:{server.unix_socket}"] if server.unix_socket else places
