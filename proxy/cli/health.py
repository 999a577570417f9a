"""``lava-proxy health``: is the running daemon ready? For containers: no curl needed, and no HTTP library loaded."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import TYPE_CHECKING

from proxy.cli import addresses, loading
from proxy.cli.terminal import Exit, Screen, put_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.config.settings import Server

SECONDS = 3.0
"""For one address; a container's health check gives up after 30 seconds as a rule."""
_MOST = 64 * 1024
_NOBODY = "nobody answers"


def run(config: Path | None, host: str | None, port: int | None, *, as_json: bool) -> int:
    """0 when the daemon of this configuration says that it is ready, else 1 and the reason."""
    settings = loading.settings(config, {"server.host": host, "server.port": port}, as_json=as_json)
    at, reason = "", "port = 0 lets the system choose, so nobody can know where it is: use --port or unix_socket"
    asked: dict[str, str] = {}
    for at, connection in _ways(settings.server):
        reason = asked[at] = _ask(connection)
        if not reason.startswith(_NOBODY):
            break
    else:
        if asked:
            reason = "; ".join(f"{why} at {place}" for place, why in asked.items())
            at = ", ".join(asked)
    if as_json:
        put_json({"ready": not reason, "at": at or None, "reason": reason or None})
    elif reason.startswith(_NOBODY):
        say(f"lava-proxy is not ready: {reason}. `lava-proxy serve` starts it")
    elif reason:
        say(f"lava-proxy is not ready: {reason}" + (f" ({at})" if at else ""))
    else:
        Screen().line(f"ready: {at}")
    return Exit.FAILED if reason else Exit.OK


class _Unix(http.client.HTTPConnection):
    """A connection by a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def _ways(server: Server) -> Iterator[tuple[str, http.client.HTTPConnection]]:
    """Where it may be asked, in order; every one of them leads to the same daemon."""
    if server.port:
        for host in addresses.hosts(server):
            yield addresses.url(host, server.port), http.client.HTTPConnection(host, server.port, timeout=SECONDS)
    if server.unix_socket and hasattr(socket, "AF_UNIX"):
        yield f"unix:{server.unix_socket}", _Unix(server.unix_socket)


def _ask(connection: http.client.HTTPConnection) -> str:
    """Why it is not ready; empty when it is."""
    # This name is always ours, whatever address was dialled.
    name = "localhost" if isinstance(connection, _Unix) or connection.port == 80 else f"localhost:{connection.port}"
    try:
        connection.request("GET", "/readyz", headers={"Host": name, "Connection": "close"})
        response = connection.getresponse()
        status, body = response.status, response.read(_MOST)
    except TimeoutError:
        return f"no answer within {SECONDS:g} seconds"
    except ConnectionResetError:  # also what http.client calls RemoteDisconnected
        return "what answers there ends the connection"
    except socket.gaierror:
        return f"{_NOBODY} (unknown host)"
    except OSError as error:
        return f"{_NOBODY} ({os.strerror(error.errno or 0)})"
    except http.client.HTTPException:
        return "what answers there does not speak HTTP"
    finally:
        connection.close()
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    state = said.get("status") if isinstance(said, dict) else None
    if status == 200 and state == "ok":
        return ""
    if state == "not ready" and isinstance(said, dict):
        return str(said.get("reason") or "it does not say why")
    return f"what answers there is not lava-proxy (status {status} on /readyz)"
