"""``lava-proxy health``: is the running daemon ready? For containers: no curl needed, and no HTTP library loaded."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import TYPE_CHECKING

from proxy.cli import loading, running
from proxy.cli.terminal import Exit, Screen, put_json, say

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 3.0
"""Time limit for one address. The health check of a container usually ends after 30 seconds."""
_MOST = 64 * 1024
_NO_ANSWER = "no answer"


def run(config: Path | None, host: str | None, port: int | None, *, as_json: bool) -> int:
    """Return 0 if the daemon of this configuration is ready, else 1 after printing the reason."""
    settings = loading.settings(config, {"server.host": host, "server.port": port}, as_json=as_json)
    at, reason = "", "port = 0 lets the system choose, so the port is not known: use --port or unix_socket"
    asked: dict[str, str] = {}
    for at, connection in running.ways(settings.server, SECONDS):
        reason = asked[at] = _ask(connection)
        if not reason.startswith(_NO_ANSWER):
            break
    else:
        if asked:
            reason = "; ".join(f"{why} at {place}" for place, why in asked.items())
            at = ", ".join(asked)
    if as_json:
        put_json({"ready": not reason, "at": at or None, "reason": reason or None})
    elif reason.startswith(_NO_ANSWER):
        say(f"lava-proxy is not ready: {reason}. `lava-proxy serve` starts it")
    elif reason:
        say(f"lava-proxy is not ready: {reason}" + (f" ({at})" if at else ""))
    else:
        Screen().line(f"ready: {at}")
    return Exit.FAILED if reason else Exit.OK


def _ask(connection: http.client.HTTPConnection) -> str:
    """Return why the daemon is not ready, or an empty string."""
    try:
        connection.request("GET", "/readyz", headers=running.headers(connection))
        response = connection.getresponse()
        status, body = response.status, response.read(_MOST)
    except TimeoutError:
        return f"no answer within {SECONDS:g} seconds"
    except ConnectionResetError:  # also what http.client calls RemoteDisconnected
        return "the program there closes the connection"
    except socket.gaierror:
        return f"{_NO_ANSWER} (unknown host)"
    except OSError as error:
        return f"{_NO_ANSWER} ({os.strerror(error.errno or 0)})"
    except http.client.HTTPException:
        return "the program there does not speak HTTP"
    finally:
        connection.close()
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    state = found.get("status") if isinstance(found, dict) else None
    if status == 200 and state == "ok":
        return ""
    if state == "not ready" and isinstance(found, dict):
        return str(found.get("reason") or "it gives no reason")
    return f"the program there is not lava-proxy (status {status} on /readyz)"
