"""What the security tests share: daemons and one recording upstream, and a client that keeps all it receives.

A ``Stand`` lives for a module (fixture ``stand`` in conftest.py). Its daemons start when the first test asks for them; all but
``patient`` share one ``Upstream`` that does what ``play`` says. Whatever a daemon sent to any client is kept until the test
ends and searched for secrets then; the daemons log at level debug, and their output is searched at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import psutil
import pytest
from daemons import Daemon
from rawclient import PATIENCE, RawClient, Response
from upstream import Peer, Received, Upstream, answer

from proxy.lava.tokens import mint_token
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def made_up(prefix: str, seed: str) -> str:
    """A key that is nobody's, without repeats in it, so that every part of it can be recognised."""
    return (
        prefix + b64encode(hashlib.sha256(seed.encode()).digest()).decode().translate({43: "x", 47: "y", 61: None})[:28]
    )


LAVA_KEY = made_up("aks_live_", "lava")
OTHER_LAVA_KEY = made_up("aks_live_", "another")
PROVIDER_KEY = made_up("sk-", "provider")
LOCAL_KEY = made_up("local-", "server")
KEY_A = made_up("local-", "project a")
KEY_B = made_up("local-", "project b")
SECRETS = (LAVA_KEY, OTHER_LAVA_KEY, PROVIDER_KEY, LOCAL_KEY, KEY_A, KEY_B)
TOKEN = mint_token(LAVA_KEY)
BEARER = f"Bearer {TOKEN}".encode()

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**CHAT, "stream": True}
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE_SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

# --- marks -----------------------------------------------------------------------------------------------------------


def case(name: str) -> pytest.MarkDecorator:
    """Mark the test of one case of hostile-cases.json: the case's id stands in the test's name."""
    return pytest.mark.parametrize("stand", [pytest.param(name, id=name)], indirect=True)


FULL = bool(os.environ.get("SECURITY_FULL_SIZE"))
"""Whether cases that have a size run at the size of the list (a test marked ``slow`` sets it)."""


# --- the upstream's part ---------------------------------------------------------------------------------------------

Play = Callable[[Peer, Received], object]
"""What the upstream does with a request whose head has come. ``False`` ends the connection."""


def echo(peer: Peer, received: Received) -> None:
    """Read the body, answer 200 with what came."""
    peer.body(received)
    said = {"target": received.target.decode(), "length": len(received.body), "sha256": sha256(received.body)}
    body = b"" if received.method == b"HEAD" else json.dumps(said).encode()
    peer.send(answer(200, body, [(b"Content-Type", b"application/json")]))


def says(raw: bytes, *, then: Callable[[Peer], object] | None = None) -> Play:
    """Read the request, send ``raw``; then close the connection, or do ``then`` before that."""

    def play(peer: Peer, received: Received) -> bool:
        peer.body(received)
        peer.send(raw)
        if then is not None:
            then(peer)
        return False

    return play


def answers(status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()) -> Play:
    """Read the request, answer it, keep the connection."""

    def play(peer: Peer, received: Received) -> None:
        peer.body(received)
        peer.send(answer(status, body, headers))

    return play


def error_body(message: str, shape: str = "provider") -> bytes:
    """A JSON error as a provider or (``lava``) Lava writes it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return json.dumps({"error": error if shape == "provider" else {"message": message, "status": int(shape)}}).encode()


def event(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def drain(peer: Peer, received: Received) -> tuple[int, str]:
    """Read a body of declared length without keeping it: its length and SHA-256. ConnectionError when it is cut."""
    left = int(received.header(b"content-length") or b"0")
    hashed, size = hashlib.sha256(), 0
    data = peer._exactly(min(left, len(peer._unread)))
    while True:
        hashed.update(data)
        size += len(data)
        if size == left:
            return size, hashed.hexdigest()
        data = peer.sock.recv(min(1 << 18, left - size))
        if not data:
            raise ConnectionError("the client closed inside a request")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the client's part -----------------------------------------------------------------------------------------------


class _Taped(socket.socket):
    """A socket that keeps what it receives."""

    tape: list[bytes] | None = None

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        if self.tape is not None:
            self.tape.append(data[:65_536])
        return data


class Client(RawClient):
    """A raw client whose every received byte is searched for secrets when the case is over."""

    def __init__(
        self, port: int, tape: list[bytes] | None, *, receive_buffer: int = 0, host: str = "127.0.0.1"
    ) -> None:
        super().__init__(port, host=host, receive_buffer=receive_buffer)
        taped = _Taped(fileno=self.sock.detach())
        taped.tape = tape
        taped.settimeout(PATIENCE)
        self.sock = taped

    def __enter__(self) -> Client:
        return self

    def rest(self) -> bytes:
        """Everything until the daemon ends the connection, which it must."""
        said, self._unread = self._unread, b""
        try:
            while data := self.sock.recv(65_536):
                said += data
        except ConnectionError:
            pass
        return said

    def push(self, data: bytes) -> None:
        """Send what may be cut off by an early answer."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


def head(
    port: int, line: str | bytes = "GET /openai/v1/files HTTP/1.1", *fields: str | bytes, host: bool = True
) -> bytes:
    """The bytes of a head, its empty line included; ``fields`` as they stand, without their CRLF."""
    lines = [line, *([f"Host: 127.0.0.1:{port}"] if host else []), *fields]
    return b"\r\n".join(each if isinstance(each, bytes) else each.encode("latin-1") for each in [*lines, "", ""])


def until(condition: Callable[[], object], seconds: float = PATIENCE, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain {what}"
        time.sleep(0.01)


# --- the stand -------------------------------------------------------------------------------------------------------

_DEBUG = '[log]\nlevel = "debug"\nformat = "json"\n'
_TWO_PROJECTS = """
default_project = "a"
[projects.a]
keys = ["env:KEY_A"]
meter = "meter-a"
[projects.b]
keys = ["env:KEY_B"]
meter = "meter-b"
"""
CONFIGS: dict[str, str] = {
    # No local keys: everything by default.
    "plain": "",
    # Keys of the server and of two projects, a listed web page, a listed host name.
    "keyed": '[server]\nkeys = ["env:LOCAL_KEY"]\nallowed_origins = ["https://app.example"]\n'
    'allowed_hosts = ["gateway.internal:8080", "proxy.internal"]\n',
    # Behind a wildcard address, as in a container.
    "wide": '[server]\nhost = "0.0.0.0"\nkeys = ["env:LOCAL_KEY"]\n',
    # Short limits.
    "brief": "[server]\nmax_body_bytes = 100000\nmax_concurrent = 4\n"
    "[upstream]\nfirst_byte = 0.7\nidle = 0.7\nwrite_stall = 1.0\n",
    # The tool's own provider key is used.
    "byok": '[projects.byok]\nbyok = "client"\n',
    # For what takes as long as the default limits: an upstream of its own.
    "patient": "",
}


class Stand:
    """Daemons, the upstream they share, and what was heard of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.play: Play = echo
        self.faults: list[str] = []
        self.tape: list[bytes] = []
        self.cut_requests = 0
        """Requests that the upstream saw begin and never end."""
        self.cut_patiently: list[bytes] = []
        """The targets of such requests at the upstream of ``patient``."""
        self._daemons: dict[str, Daemon] = {}
        self._plays = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._exit = contextlib.ExitStack()
        self.upstream = self._exit.enter_context(Upstream(self._serve))
        self.others = self._exit.enter_context(Upstream(self._serve_patiently))
        self.pool = ThreadPoolExecutor(16)

    # daemons

    def daemon(self, name: str = "plain") -> Daemon:
        """The running daemon of that configuration."""
        if name not in self._daemons:
            upstream = self.others if name == "patient" else self.upstream
            self._daemons[name] = self.start(CONFIGS[name], upstream=upstream, projects=name == "keyed")
        running = self._daemons[name]
        assert running.process.poll() is None, f"the daemon {name} has ended:\n{running.output()[-3000:]}"
        return running

    def start(
        self,
        config: str = "",
        *,
        upstream: Upstream | None = None,
        base_url: str = "",
        projects: bool = False,
        env: dict[str, str] | None = None,
        ready: bool = True,
        **options: Any,
    ) -> Daemon:
        """A daemon of its own, stopped with the stand (or by the case)."""
        folder = self.folder / f"daemon-{next(self._numbers)}"
        folder.mkdir(mode=0o700)
        lava = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{base_url or (upstream or self.upstream).url}"\n'
        top, tables = (_TWO_PROJECTS, "") if projects else ("", "")
        given = {"KEY": LAVA_KEY, "LOCAL_KEY": LOCAL_KEY, "KEY_A": KEY_A, "KEY_B": KEY_B, **(env or {})}
        running = Daemon(folder, f"{top}{lava}{tables}{_DEBUG}{config}", env=given, secrets=SECRETS, **options)
        self._exit.callback(running.close)
        if ready:
            running.wait_until_up()
        return running

    def client(self, name: str | Daemon = "plain", **options: Any) -> Client:
        """A new connection to a daemon."""
        return Client(self._at(name).port, self.tape, **options)

    def _at(self, name: str | Daemon) -> Daemon:
        return self.daemon(name) if isinstance(name, str) else name

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        *,
        at: str | Daemon = "plain",
        host: str | None = None,
    ) -> Response:
        """One well-formed request on its own connection."""
        with self.client(at) as client:
            client.request(method, target, body, headers, host=host)
            return client.response(head_only=method == "HEAD")

    def post(
        self, target: str, document: object = CHAT, headers: dict[str, str] | None = None, *, at: str | Daemon = "plain"
    ) -> Response:
        """One JSON request."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", target, body, {"Content-Type": "application/json", **(headers or {})}, at=at)

    def raw(self, data: bytes, at: str | Daemon = "plain") -> tuple[Response, bytes]:
        """Send bytes on a new connection: the first response, and all that follows it until the daemon closes."""
        with self.client(at) as client:
            client.push(data)
            response = client.response()
            return response, client.rest()

    # what is known of what happened

    @contextlib.contextmanager
    def untouched(self, at: str | Daemon = "plain") -> Iterator[None]:
        """Nothing reaches the upstream inside: no connection, no request. The daemon serves on afterwards."""
        before = self.upstream.accepted, len(self.upstream.requests)
        yield
        assert (self.upstream.accepted, len(self.upstream.requests)) == before, "something went upstream"
        # What was begun before this request must show before it: the daemon has one event loop.
        served = self.ask("GET", "/healthz", at=at)
        assert served.status == 200
        assert (self.upstream.accepted, len(self.upstream.requests)) == before, "something went upstream"

    @contextlib.contextmanager
    def playing(self, play: Play) -> Iterator[None]:
        """Let the upstream do something else inside.

        At the end its connections are gone on both sides: a request written just when a kept connection closes is lost, and
        rightly not repeated.
        """
        self.play = play
        try:
            yield
        finally:
            self.play = echo
            end = time.monotonic() + 2.0
            while self._plays and time.monotonic() < end:
                time.sleep(0.001)

    @property
    def last(self) -> Received:
        """The newest request upstream."""
        return self.upstream.requests[-1]

    def since(self) -> Callable[[], list[Received]]:
        """Remembers how many requests there were; call what it returns for those since."""
        before = len(self.upstream.requests)
        return lambda: self.upstream.requests[before:]

    def nonce(self) -> str:
        """A word for a path, to find its line in the log."""
        return f"n{next(self._numbers)}x{os.urandom(4).hex()}"

    def line(self, word: str, at: str | Daemon = "plain") -> dict[str, Any]:
        """The one request line of the log whose path has ``word``."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            for text in log_lines(self._at(at)):
                if word in text:
                    line = json.loads(text)
                    if line.get("event") == "request" and line not in found:
                        found.append(line)
            return bool(found)

        until(look, what=f"for the log line of {word}")
        assert len(found) == 1, found
        return found[0]

    def outcome(self, word: str, at: str | Daemon = "plain") -> str:
        return str(self.line(word, at)["outcome"])

    def begin_case(self) -> None:
        """Wait for what the case before left on its way, and forget the rest, should it have failed."""
        self.play = echo
        # The upstream accepts in order: once it has this connection, it has all that were abandoned before.
        before = self.upstream.accepted
        with socket.create_connection(("127.0.0.1", self.upstream.port), PATIENCE):
            self.upstream.wait(lambda: self.upstream.accepted > before)
        seen, quiet = (0, 0, 0), 0
        end = time.monotonic() + 5.0
        while quiet < 3 and time.monotonic() < end:
            now = self.upstream.accepted, len(self.upstream.requests), self.upstream.connected
            quiet = quiet + 1 if now == seen and not self._plays else 0
            seen = now
            time.sleep(0.005)
        self.faults.clear()
        self.tape.clear()

    def finish_case(self) -> None:
        """After every case: the upstream saw nothing malformed, and no client heard a secret."""
        faults, self.faults = self.faults, []
        assert not faults, faults
        heard = b"".join(self.tape)
        self.tape.clear()
        assert not leaks(heard, SECRETS), "a client heard a secret"

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._exit.close()

    # the upstream's loops

    def _serve(self, peer: Peer) -> None:
        try:
            while (received := peer.head()) is not None:
                with self._playing_now():
                    if self.play(peer, received) is False:
                        with contextlib.suppress(OSError):
                            peer.fin()
                        peer.gone()
                        return
        except OSError:  # the daemon left, inside a request or an answer
            self.cut_requests += 1
        except Exception as fault:  # noqa: BLE001  (told to the case: the daemon sent what is no HTTP)
            self.faults.append(f"{type(fault).__name__}: {fault}")

    @contextlib.contextmanager
    def _playing_now(self) -> Iterator[None]:
        with self._lock:
            self._plays += 1
        try:
            yield
        finally:
            with self._lock:
                self._plays -= 1

    def _serve_patiently(self, peer: Peer) -> None:
        received: Received | None = None
        try:
            while (received := peer.head()) is not None:
                if b"wait-six-seconds" in received.target:
                    time.sleep(6)
                echo(peer, received)
        except OSError:
            if received is not None:
                self.cut_patiently.append(received.target)


def target_url(received: Received) -> str:
    """The provider URL that Lava is asked to call: the only ``u`` of the query."""
    path, _, query = received.target.decode("ascii").partition("?")
    assert path == "/v1/forward", received.target
    items = parse_qsl(query, strict_parsing=True, keep_blank_values=True)
    assert [name for name, _ in items] == ["u"], received.target
    return items[0][1]


def sound(received: Received, credential: bytes = BEARER) -> None:
    """What every request that goes to Lava has: one host, one credential, one framing, nothing of the hop before."""
    names = [name.lower() for name, _ in received.headers]
    assert names.count(b"host") == 1
    assert names.count(b"authorization") == 1
    assert received.header(b"authorization") == credential
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    banned = {b"x-api-key", b"x-goog-api-key", b"api-key", b"xi-api-key", b"cookie", b"forwarded", b"te", b"trailer"}
    banned |= {b"upgrade", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"expect", b"http2-settings"}
    banned |= {b"x-original-url", b"x-rewrite-url"}
    assert not banned & set(names), banned & set(names)
    for name in names:
        assert b"_" not in name
        assert name == b"x-lava-metadata" or not name.startswith((b"x-lava-", b"x-forwarded-")), name


def log_lines(daemon: Daemon) -> list[str]:
    """What it logged so far, without a last line that is still being written."""
    return daemon.output().split("\n")[:-1]


def rss(daemon: Daemon) -> int:
    """Bytes of memory that the daemon holds, once its ledger is open."""
    return daemon.rss()


def descriptors(daemon: Daemon) -> int:
    return psutil.Process(daemon.process.pid).num_fds()


def room_for(sockets: int) -> None:
    """Let this process open so many sockets."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < sockets and (hard == resource.RLIM_INFINITY or hard >= sockets):
        resource.setrlimit(resource.RLIMIT_NOFILE, (sockets, hard))


class Together:
    """Runs calls in threads and gives their results in order; the first exception is raised."""

    def __init__(self, threads: int = 16) -> None:
        self.threads = threads

    def run(self, calls: Iterable[Callable[[], Any]]) -> list[Any]:
        with ThreadPoolExecutor(self.threads) as pool:
            return [each.result(timeout=PATIENCE * 2) for each in [pool.submit(call) for call in calls]]


def opened(flag: threading.Event, seconds: float = 10.0) -> None:
    assert flag.wait(seconds), "waited in vain"


def our_error(response: Response, status: int, code: str | None = None) -> None:
    """The response is an error of ours: its status, its code in header and body, a hint, no retry."""
    assert response.status == status, (response.status, response.body)
    assert response.complete
    assert response.code is not None
    assert code is None or response.code == code, response.code
    ours = response.json()["error"]["lava_proxy"]
    assert ours["code"] == response.code
    assert ours["hint"]
    assert response.header("x-should-retry") == "false"


def refuse(stand: Stand, raw: bytes, status: int, code: str | None = None, *, at: str = "plain") -> Response:
    """These bytes are answered once, with that error, and the connection is closed; nothing goes upstream."""
    with stand.untouched(at):
        response, rest = stand.raw(raw, at)
        our_error(response, status, code)
        assert response.header("connection") is not None
        assert "close" in (response.header("connection") or "").lower()
        assert rest == b"", rest[:300]
    return response


def ends(stand: Stand, config: str, *, env: dict[str, str] | None = None, seconds: float = 20.0) -> tuple[int, str]:
    """Start a daemon that must not stay: its exit code and what it said."""
    running = stand.start(config, ready=False, env=env)
    code = running.process.wait(seconds)
    return code, running.output()


def with_site(stand: Stand, name: str, source: str) -> dict[str, str]:
    """An environment in which every Python runs ``source`` first."""
    import proxy

    folder = stand.folder / name
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(source)
    from pathlib import Path

    return {"PYTHONPATH": f"{folder}:{Path(proxy.__file__).parent.parent}"}


def settled(stand: Stand, running: Daemon) -> bool:
    """Nothing is in flight."""
    text = stand.ask("GET", "/metrics", at=running).body.decode()
    value = next(line for line in text.splitlines() if line.startswith("lava_proxy_streams_in_flight "))
    return float(value.split()[1]) <= 1.0  # this question itself
