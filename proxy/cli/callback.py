"""The HTTP server of a login, on this machine: where the browser starts, and where it returns with the code.

``GET /`` redirects to Lava's page. The browser is started with this address, because all users of the machine can read a
command line, and Lava's address contains the state of the login. ``GET /callback`` takes the code, once: a wrong state is
400 and changes nothing, because any page can request this address; a missing code is 400 and ends the login. Another
method is 405, another path 404.

With the state, another program could end the login with a code of another account. So the first address answers only this
user's own programs, if the system shows the owner of a connection (Linux does), and no web page.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 30rem; margin: 15vh auto; padding: 0 1rem; }}</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Connection": "close",
}
_PATIENCE_S = 10.0
"""Time limit for a connection without a request: browsers open some in advance."""
_MAX_BODY = 64 * 1024


class LoginError(Exception):
    """There is no code. The message says why."""


class Callback:
    """Listens while it is open (``with``), on a port that the system chose. Raises ``OSError`` if it cannot.

    ``page`` makes Lava's address from the port; ``start`` is the address on this machine that redirects to it, if
    ``leads`` is set.
    """

    def __init__(self, state: str, page: Callable[[int], str], *, leads: bool = True) -> None:
        self._server = _Server(state)
        self.port: int = self._server.server_address[1]
        self.page = page(self.port)
        self._server.page = self.page if leads else ""
        self.start = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="callback", daemon=True)

    def __enter__(self) -> Callback:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, seconds: float) -> str:
        """Return the code with which the browser returns. Raises ``LoginError``."""
        try:
            outcome = self._server.outcomes.get(timeout=seconds)
        except queue.Empty:
            raise LoginError(f"the browser did not return within {counted(seconds, 'second')}") from None
        if isinstance(outcome, LoginError):
            raise outcome
        return outcome


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silent connection must not hold the command up
    # No other program may listen on the port of the code.
    allow_reuse_address = False
    allow_reuse_port = False

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _CallbackHandler)
        self.outcomes: queue.SimpleQueue[str | LoginError] = queue.SimpleQueue()
        self.page = ""
        self._state = state
        self._lock = threading.Lock()
        self._over = False

    def server_bind(self) -> None:
        # Not the library's own, which asks the network for this machine's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def judge(self, query: str) -> tuple[int, str, str, str | LoginError | None]:
        """Return status, title and text of the page, and the outcome of the login, or None if this does not end it."""
        given = parse_qs(query, keep_blank_values=True)
        states, codes = given.get("state", []), given.get("code", [])
        with self._lock:
            if self._over:
                return 400, "This login is over", "Start it again in the terminal if it is still needed.", None
            if len(states) != 1 or not compare_digest(states[0].encode("utf-8", "replace"), self._state.encode()):
                return (
                    400,
                    "Not this login",
                    "This answer belongs to another login. The one in the terminal is still waiting.",
                    None,
                )
            self._over = True
        failed = "The login failed"
        if not codes and given.get("error") == ["access_denied"]:  # OAuth's word for it (RFC 6749, 4.1.2.1)
            why = LoginError("access was refused in the browser")
            return 400, failed, "Access was refused. Go back to the terminal.", why
        if len(codes) != 1 or not codes[0]:
            what = "two codes" if len(codes) > 1 else "no code"
            return (
                400,
                failed,
                f"The answer contains {what}. Go back to the terminal.",
                LoginError(f"the browser returned with {what}"),
            )
        return 200, "You can close this tab", "lava-proxy has its answer. Go back to the terminal.", codes[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing if the browser closes a connection early."""


class _CallbackHandler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "lava-proxy"
    sys_version = ""
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        if self.path == "/" and self.server.page:
            self._redirect()
            return
        address = urlsplit(self.path)
        if address.path != "/callback":
            self._answer(404, "Not found", "There is nothing here.")
            return
        status, title, text, outcome = self.server.judge(address.query)
        try:
            self._answer(status, title, text)
        finally:
            # After the answer: the command may exit as soon as it has the outcome.
            if outcome is not None:
                self.server.outcomes.put(outcome)

    def _redirect(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self._answer(421, "Not here", "This server does not have that name.")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._answer(403, "Not allowed", "A web page may not begin a login.")
        elif (
            user := user_of(self.client_address, self.connection.getsockname())
        ) is not None and user not in _trusted_users():
            self._answer(403, "Not allowed", "This login is another user's.")
        else:
            self._answer(302, "Log in at Lava", "The browser is redirected.", {"Location": self.server.page})

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The library looks up ``do_METHOD``; all methods but GET get the same answer.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():
            self.rfile.read(min(int(length), _MAX_BODY))  # unread bytes would reset the connection below the answer
        self._answer(405, "Not allowed", "Only GET is served here.", {"Allow": "GET"})

    def _answer(self, status: int, title: str, text: str, more: dict[str, str] | None = None) -> None:
        body = _PAGE.format(title=title, text=text).encode()
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address contains the code."""


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return the user of the other end of a local connection, or None if the system does not show it."""
    local, remote = (f"{_as_listed(host)}:{port:04X}" for host, port in (client, server))
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            with open(table, encoding="ascii") as lines:
                for line in lines:
                    fields = line.split()
                    if fields[1].endswith(local) and fields[2].endswith(remote):
                        return int(fields[7])
        except (OSError, ValueError, IndexError):
            continue
    return None


def _as_listed(host: str) -> str:
    """Return an IPv4 address as Linux lists it, also at the end of an IPv6 one: its bytes as a native number."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


def _trusted_users() -> set[int]:
    """Return this user, root, and the user who started this with sudo."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    sudo = os.environ.get("SUDO_UID", "")
    return {0, user, *([int(sudo)] if user == 0 and sudo.isdecimal() else [])}
