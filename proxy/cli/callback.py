"""Where the browser comes back to at the end of a login: one address on this machine, for one visit.

As Lava's own SDK has it: ``GET /callback`` alone; another method is 405, another path 404, a wrong state 400 and the end of
the login, and so is a missing code.
"""

from __future__ import annotations

import queue
import threading
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

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
"""For a browser that connects and says nothing (they do, to be quick later)."""
_MOST_BODY = 64 * 1024


class LoginFailed(Exception):
    """Why there is no code, as a sentence."""


class Callback:
    """Listens while it is open (``with``). ``port`` was chosen by the system. Raises ``OSError`` where it cannot."""

    def __init__(self, state: str) -> None:
        self._server = _Server(state)
        self.port: int = self._server.server_address[1]
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
        """The code that the browser brings. Raises ``LoginFailed``."""
        try:
            outcome = self._server.outcomes.get(timeout=seconds)
        except queue.Empty:
            raise LoginFailed(f"nobody came back from the browser within {seconds:g} seconds") from None
        if isinstance(outcome, LoginFailed):
            raise outcome
        return outcome


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silent connection must not hold the command up
    # Nobody else may listen where the code arrives.
    allow_reuse_address = False
    allow_reuse_port = False

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outcomes: queue.SimpleQueue[str | LoginFailed] = queue.SimpleQueue()
        self._state = state
        self._lock = threading.Lock()
        self._over = False

    def server_bind(self) -> None:
        # Not the library's own, which asks the network for this machine's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def judge(self, query: str) -> tuple[int, str, str, str | LoginFailed | None]:
        """Status, title and text of the page, and what this visit means for the login: nothing once it is over."""
        given = parse_qs(query, keep_blank_values=True)
        states, codes = given.get("state", []), given.get("code", [])
        with self._lock:
            if self._over:
                return 400, "This login is over", "Start it again in the terminal if it is still needed.", None
            self._over = True
        failed = "The login failed"
        if len(states) != 1 or not compare_digest(states[0].encode("utf-8", "replace"), self._state.encode()):
            why = LoginFailed("what came back from the browser belongs to another login (its state is wrong)")
            return 400, failed, "This answer belongs to another login. Go back to the terminal.", why
        if not codes and given.get("error") == ["access_denied"]:  # OAuth's word for it (RFC 6749, 4.1.2.1)
            why = LoginFailed("access was refused in the browser")
            return 400, failed, "Access was refused. Go back to the terminal.", why
        if len(codes) != 1 or not codes[0]:
            what = "two codes" if len(codes) > 1 else "no code"
            return (
                400,
                failed,
                f"The answer holds {what}. Go back to the terminal.",
                LoginFailed(f"what came back from the browser holds {what}"),
            )
        return 200, "You can close this tab", "lava-proxy has its answer. Go back to the terminal.", codes[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor that left early is nothing to tell about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "lava-proxy"
    sys_version = ""
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path != "/callback":
            self._answer(404, "Not found", "There is nothing here.")
            return
        status, title, text, outcome = self.server.judge(address.query)
        try:
            self._answer(status, title, text)
        finally:
            # Afterwards: the command may end as soon as it knows.
            if outcome is not None:
                self.server.outcomes.put(outcome)

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The library looks up a method for each word of HTTP; all but GET are the same to us.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():
            self.rfile.read(min(int(length), _MOST_BODY))  # unread bytes would reset the connection below the answer
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
        """Nothing: the address holds the code."""
