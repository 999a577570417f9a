"""Where the configured daemon is reached from this machine: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config.settings import Server

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


def hosts(server: Server) -> list[str]:
    """The hosts to dial, loopback first; ``127.0.0.1`` for "every address"."""
    dialled = [_WILDCARDS.get(host, host) for host in server.host]
    return sorted(dict.fromkeys(dialled), key=lambda host: host not in ("127.0.0.1", "localhost"))


def url(host: str, port: int | str) -> str:
    """``http://host:port``, without a slash at its end."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def base(server: Server) -> str:
    """What tools put before ``/v1``. With port 0 nobody knows it before the start: ``PORT``."""
    return url(hosts(server)[0], server.port or "PORT")


def listening(server: Server) -> list[str]:
    """Every place the daemon will listen at."""
    places = [url(host, server.port or "PORT") for host in server.host]
    return [*places, f"unix:{server.unix_socket}"] if server.unix_socket else places
