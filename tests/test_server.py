"""The daemon's life, in processes of their own: listening, draining, reloading, and the exit codes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment

from proxy import daemon as server
from proxy.config.settings import Server, Settings
from proxy.daemon import CannotListen, background, find_holder, open_listeners, open_unix_listener, require_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and unix sockets")

# The program under test: the real ``serve`` around an application that shows what happens to its requests. It reads its
# settings from a JSON file (a fault of which is a sentence), and says on stdout, line by line, what it did.
PROGRAM = r"""
import asyncio, json, logging, os, sys
from pathlib import Path
from proxy import daemon as server
from proxy.http.framing import Limits
from proxy.config.settings import Server, Settings

config = Path(sys.argv[1])

class Faulty(Exception):
    def __init__(self, fault):
        super().__init__(fault)
        self.faults = (fault,)

def load():
    try:
        given = json.loads(config.read_text())
    except ValueError:
        raise Faulty("line 1: not JSON") from None
    return Settings(server=Server(**given), path=config)

def say(*words):
    print(*words, flush=True)

class App:
    def __init__(self, settings):
        self.settings, self.draining, self.streams = settings, False, set()
        say("max_concurrent", settings.server.max_concurrent)
    runtime = property(lambda self: self)
    def begin_drain(self):
        self.draining = True
        say("draining")
    def cut(self):
        say("cut", len(self.streams))
        for stream in list(self.streams):
            stream.set()
    def reload(self, settings):
        self.settings = settings
        say("reloaded", settings.server.max_body_bytes)
    def reload_failed(self, fault):
        say("kept", type(fault).__name__)
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                say(kind)
                if os.environ.get("TINY_FAIL_AT") == kind:
                    raise RuntimeError("asked to fail")
                await send({"type": kind + ".complete"})
                if kind == "lifespan.shutdown":
                    return
        path = scope["path"]
        say("request", path)
        if self.draining:
            await self.answer(send, 503, b"shutting down")
        elif path == "/upload":
            while (await receive()).get("more_body"):
                pass
            await self.answer(send, 200, b"received")
        elif path in ("/stream", "/silent"):
            await self.stream(receive, send, silent=path == "/silent")
        elif path == "/stubborn":
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    say("not yet")
        else:
            await self.answer(send, 200, b"%d" % self.settings.server.max_body_bytes)
    async def answer(self, send, status, body):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
    async def left(self, receive, cut):
        while (await receive())["type"] != "http.disconnect":
            pass
        cut.set()
    async def stream(self, receive, send, silent):
        cut = asyncio.Event()
        left = asyncio.create_task(self.left(receive, cut))
        self.streams.add(cut)
        try:
            if not silent:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
            finish = config.with_suffix(".finish")
            while not cut.is_set() and not finish.exists():
                await asyncio.sleep(0.02)
            if silent:
                await self.answer(send, 503 if cut.is_set() else 200, b"late")
            elif cut.is_set():
                # Left incomplete: the connection is broken off.
                await send({"type": "http.response.body", "body": b"data: cut\n\n", "more_body": True})
            else:
                await send({"type": "http.response.body", "body": b"data: last\n\n", "more_body": False})
        finally:
            left.cancel()
            self.streams.discard(cut)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if os.environ.get("TINY_ACTIVATED"):
        os.environ["LISTEN_PID"] = str(os.getpid())
    code = server.serve(load(), create_app=App, reload=load, limits=Limits(sweep_seconds=0.05),
                        on_ready=lambda addresses: say("ready", *addresses))
    sys.exit(code)
"""


class Running:
    """One process of ``PROGRAM``. ``said`` are the lines of its stdout, ``log`` the text of its stderr."""

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        ready: bool = True,
        **options: Any,
    ) -> None:
        self.config = folder / "config.json"
        self.write({"host": ["127.0.0.1"], "port": 0, "drain_seconds": 5.0, **(config or {})})
        self.said: list[str] = []
        self._stderr = folder / "stderr"
        program = folder / "program.py"
        program.write_text(PROGRAM)
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, str(program), str(self.config)],
                env=clean_environment(folder, env),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                **{"start_new_session": True, **options},  # no terminal, wherever the tests run
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if ready:
            self.wait_for("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said.append(line.strip())

    def write(self, config: dict[str, Any]) -> None:
        self._values = config
        self.config.write_text(json.dumps(config))

    def change(self, **values: Any) -> None:
        self.write({**self._values, **values})

    @property
    def log(self) -> str:
        return self._stderr.read_text()

    @property
    def addresses(self) -> list[str]:
        return next(line for line in self.said if line.startswith("ready")).split()[1:]

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    def wait_for(self, line: str, seconds: float = 20.0) -> None:
        assert eventually(
            lambda: (
                any(said == line or said.startswith(f"{line} ") for said in self.said)
                or self.process.poll() is not None
            ),
            seconds,
        ), (self.said, self.log)
        assert any(said == line or said.startswith(f"{line} ") for said in self.said), (self.said, self.log)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def get(self, path: str = "/") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def open(self, path: str) -> socket.socket:
        """A connection with a request for ``path`` that the application has begun."""
        client = self.connect()
        before = self.said.count(f"request {path}")
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert eventually(lambda: self.said.count(f"request {path}") > before), self.said
        return client

    def signal(self, number: int) -> float:
        self.process.send_signal(number)
        return time.monotonic()

    def exit_code(self, seconds: float = 20.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts processes of ``PROGRAM``; none is left at the end."""
    started: list[Running] = []

    def start(**options: Any) -> Running:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        process = Running(folder, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError), client:
        while data := client.recv(65536):
            received += data
    return received


def refuses(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return False
    except ConnectionRefusedError:
        return True


# --- the end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon_cleanly(run: Callable[..., Running], number: int) -> None:
    """Exit code 0, the lifespan ended, idle connections closed, nothing said that sounds like trouble."""
    daemon = run()
    client = daemon.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b""
    while not received.endswith(b"\r\n\r\n52428800"):
        received += client.recv(65536)
    began = daemon.signal(number)
    assert read_to_end(client) == b""
    assert daemon.exit_code() == 0
    assert time.monotonic() - began < 4
    assert daemon.said[-1] == "lifespan.shutdown"
    assert "Traceback" not in daemon.log
    assert "WARNING" not in daemon.log


def test_streams_finish_while_nobody_new_is_let_in(run: Callable[..., Running]) -> None:
    """LIF-01: the listener is closed at once, open streams end as they would have, exit 0."""
    daemon = run()
    clients = [daemon.open("/stream") for _ in range(20)]
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining")
    assert eventually(lambda: refuses(daemon.port))
    daemon.config.with_suffix(".finish").touch()
    for client in clients:
        assert read_to_end(client).endswith(b"data: last\n\n\r\n0\r\n\r\n")
    assert daemon.exit_code() == 0
    assert "cut" not in " ".join(daemon.said)


def test_a_request_on_a_kept_connection_is_answered_during_the_drain(run: Callable[..., Running]) -> None:
    """What is pipelined behind a stream meets an application that says 503, or a connection announced as closing."""
    daemon = run()
    client = daemon.connect()
    client.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n")
    stream = daemon.open("/stream")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining")
    client.sendall(b"\r\n")
    received = read_to_end(client)
    assert received.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in received
    daemon.config.with_suffix(".finish").touch()
    assert read_to_end(stream).endswith(b"0\r\n\r\n")
    assert daemon.exit_code() == 0


def test_at_the_deadline_streams_are_cut_with_an_error_inside(run: Callable[..., Running]) -> None:
    """LIF-02: the error arrives, no clean end follows, waiting requests get no 500; exit 0 within two seconds more."""
    daemon = run(config={"drain_seconds": 0.5})
    stream, waiting = daemon.open("/stream"), daemon.open("/silent")
    began = daemon.signal(signal.SIGTERM)
    received = read_to_end(stream)
    assert b"data: cut\n\n" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert read_to_end(waiting).startswith(b"HTTP/1.1 503")
    assert daemon.exit_code() == 0
    assert time.monotonic() - began < 0.5 + 2 + 2
    assert "cut 2" in daemon.said
    assert daemon.said[-1] == "lifespan.shutdown"


def test_a_slow_upload_does_not_hold_up_the_end(run: Callable[..., Running]) -> None:
    """LIF-03: a client that never finishes its body is cut at the deadline."""
    daemon = run(config={"drain_seconds": 0.5})
    client = daemon.connect()
    client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
    daemon.wait_for("request /upload")
    began = daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0
    assert time.monotonic() - began < 0.5 + 2 + 2
    assert b"500" not in read_to_end(client)


def test_a_task_that_will_not_die_does_not_hold_up_the_end(run: Callable[..., Running]) -> None:
    """Within two seconds of the deadline the process is gone, whatever still runs in it."""
    daemon = run(config={"drain_seconds": 0.3})
    client = daemon.open("/stubborn")
    began = daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0
    assert time.monotonic() - began < 0.3 + 2 + 2
    client.close()


def test_a_second_signal_ends_at_once(run: Callable[..., Running]) -> None:
    """LIF-04: exit code 1, no waiting, no lifespan shutdown."""
    daemon = run(config={"drain_seconds": 60.0})
    client = daemon.open("/stream")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining")
    began = daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 1
    assert time.monotonic() - began < 3
    assert "lifespan.shutdown" not in daemon.said
    assert not read_to_end(client).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("nohup", [False, True])
def test_closing_the_terminal_ends_the_daemon(run: Callable[..., Running], *, nohup: bool) -> None:
    """A controlling terminal that goes away counts as SIGTERM: what is in flight finishes. Under nohup it stays, and
    reloads."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        # Set in both cases: a suite that is itself run under nohup inherits an ignored SIGHUP.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    daemon = run(preexec_fn=take_terminal, stdin=slave, start_new_session=False)
    os.close(slave)
    stream = daemon.open("/stream")
    os.close(master)
    if nohup:
        daemon.wait_for("reloaded")
        assert "draining" not in daemon.said
        daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining")
    daemon.config.with_suffix(".finish").touch()
    assert read_to_end_of_stream(stream).endswith(b"data: last\n\n\r\n0\r\n\r\n")
    assert daemon.exit_code() == 0


def test_without_uvloop_the_log_says_so(run: Callable[..., Running], tmp_path: Path) -> None:
    """It serves all the same."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "uvloop.py").write_text("raise ImportError")
    paths = clean_environment(tmp_path)["PYTHONPATH"]
    daemon = run(env={"PYTHONPATH": f"{tmp_path / 'none'}{os.pathsep}{paths}"})
    assert daemon.get()[0] == 200
    assert "uvloop is not installed" in daemon.log


def test_a_failed_start_is_exit_1(run: Callable[..., Running]) -> None:
    """An application that does not start ends the process, and the port is free again."""
    daemon = run(env={"TINY_FAIL_AT": "lifespan.startup"}, ready=False)
    assert daemon.exit_code() == 1


# --- listening -------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_75_and_names_the_program(run: Callable[..., Running]) -> None:
    """LIF-07: the message has the port, and on Linux who holds it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = run(config={"port": port}, ready=False)
        began = time.monotonic()
        assert daemon.exit_code() == 75
        assert time.monotonic() - began < 10
    assert f"port {port} on 127.0.0.1 is in use" in daemon.log
    if sys.platform == "linux":
        assert f"process {os.getpid()}" in daemon.log
    assert "lifespan.startup" not in daemon.said


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_who_holds_a_port_is_found_or_nobody() -> None:
    """The process of the listening socket, and nothing where no one listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = find_holder(port)
        assert found is not None
        assert found[0] == os.getpid()
    assert find_holder(port) is None


def test_all_hosts_share_one_port() -> None:
    """Port 0 means one free port for every host; ``::1`` is left out where there is no IPv6."""
    listeners = open_listeners(Server(host=("127.0.0.1", "::1"), port=0))
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        assert len(listeners) == (2 if has_ipv6() else 1)
    finally:
        for listener in listeners:
            listener.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_78(host: str) -> None:
    """An address of another machine and a name that nobody knows are faults of the configuration."""
    with pytest.raises(CannotListen, match=host) as caught:
        open_listeners(Server(host=(host,), port=0))
    assert caught.value.exit_code == 78


def test_a_name_that_means_another_address_needs_keys() -> None:
    """What counts is the address that was bound, not the name in the configuration."""
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        with pytest.raises(CannotListen, match="no local key") as caught:
            require_keys([everywhere], Settings())
        assert caught.value.exit_code == 78
    with socket.create_server(("127.0.0.2" if sys.platform == "linux" else "127.0.0.1", 0)) as loopback:
        require_keys([loopback], Settings())


def test_the_unix_socket_is_ours_alone(run: Callable[..., Running], tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; served; a dead one is replaced, a live one is 75; removed at the end."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    daemon = run(config={"unix_socket": str(path)}, umask=0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert f"unix:{path}" in daemon.addresses
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    second = run(config={"unix_socket": str(path)}, ready=False)
    assert second.exit_code() == 75
    assert str(path) in second.log
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0
    assert not path.exists()


def test_a_file_in_place_of_the_unix_socket_is_kept(tmp_path: Path) -> None:
    """Only sockets are replaced."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotListen) as caught:
        open_unix_listener(str(path))
    assert caught.value.exit_code == 78
    assert path.read_text() == "data"


@pytest.mark.parametrize("place", ["missing/s", "file/s", "folder", "x" * 200, "no\0path", "long/" + "x/" * 60 + "s"])
def test_a_unix_socket_that_cannot_be_made_is_78(tmp_path: Path, place: str) -> None:
    """Whatever is wrong with the path: a sentence that names it and says what to do, and nothing is made or removed."""
    (tmp_path / "file").write_text("data")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CannotListen) as caught:
        open_unix_listener(str(tmp_path / place))
    assert caught.value.exit_code == 78
    assert str(tmp_path / place) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_unix_socket_where_we_may_not_write_is_78(tmp_path: Path) -> None:
    """A directory of somebody else's; a dead socket in it; a socket that only another user may use."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as dead:
        here = Path(folder)
        here.chmod(0o755)
        dead.bind(str(here / "dead"))
        (here / "dead").chmod(0o666)
        with open_unix_listener(str(here / "live")):
            program = (
                "import os, sys; from proxy.daemon import CannotListen, open_unix_listener\n"
                "os.setuid(65534)\n"
                "try: open_unix_listener(sys.argv[1])\n"
                "except CannotListen as fault: print(fault); sys.exit(fault.exit_code)"
            )
            for name in ("new", "dead", "live"):
                done = subprocess.run([sys.executable, "-c", program, str(here / name)], capture_output=True, text=True)
                assert (done.returncode, done.stderr) == (78, ""), name
                assert str(here / name) in done.stdout
                assert "this user may write to" in done.stdout
        assert (here / "dead").exists()


def test_sockets_of_systemd_are_used(run: Callable[..., Running]) -> None:
    """LISTEN_FDS: the given socket is served, ``host`` and ``port`` are not bound."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]

        def place() -> None:
            os.dup2(given.fileno(), 3)

        daemon = run(
            config={"port": 1},
            env={"LISTEN_FDS": "1", "TINY_ACTIVATED": "1"},
            preexec_fn=place,
            close_fds=False,
        )
        assert daemon.addresses == [f"http://127.0.0.1:{port}"]
        assert daemon.get()[0] == 200
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code() == 0


def test_systemd_is_told(run: Callable[..., Running], tmp_path: Path) -> None:
    """READY once requests are accepted, RELOADING and READY around a reload, STOPPING at the drain."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(10)
        daemon = run(env={"NOTIFY_SOCKET": str(path)})
        assert systemd.recv(100) == b"READY=1"
        daemon.signal(signal.SIGHUP)
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"
        daemon.signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        assert daemon.exit_code() == 0


# --- reload ----------------------------------------------------------------------------------------------------


def test_sighup_loads_again_and_leaves_streams_alone(run: Callable[..., Running]) -> None:
    """LIF-06: new requests use the new configuration; a stream that was open ends as it would have."""
    daemon = run()
    stream = daemon.open("/stream")
    daemon.change(max_body_bytes=1234)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded 1234")
    assert daemon.get() == (200, b"1234")
    daemon.config.with_suffix(".finish").touch()
    assert read_to_end_of_stream(stream).endswith(b"data: last\n\n\r\n0\r\n\r\n")


def read_to_end_of_stream(client: socket.socket) -> bytes:
    received = b""
    with client:
        while not received.endswith(b"0\r\n\r\n"):
            data = client.recv(65536)
            assert data
            received += data
    return received


def test_a_bad_configuration_changes_nothing(run: Callable[..., Running]) -> None:
    """LIF-05: the old one stays, the log has the fault, and the next good one is taken."""
    daemon = run(config={"max_body_bytes": 1000})
    daemon.config.write_text("{")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("kept Faulty")
    assert daemon.get() == (200, b"1000")
    assert "old one stays in use: line 1: not JSON" in daemon.log
    daemon.change(max_body_bytes=2000)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded 2000")


def test_faults_that_could_quote_a_value_are_named_by_type_only(run: Callable[..., Running]) -> None:
    """A reload error not made for people never puts the configuration's text into the log."""
    daemon = run()
    daemon.config.write_text('{"port": "not-for-the-log"}')
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("kept ValidationError")
    assert "not-for-the-log" not in daemon.log


def test_a_changed_file_is_noticed(run: Callable[..., Running]) -> None:
    """No signal needed: within some seconds the new file is in use; an address that changed needs a restart."""
    daemon = run()
    daemon.change(max_body_bytes=4321, host=["127.0.0.1", "::1"])
    daemon.wait_for("reloaded 4321")
    assert "server.host has changed: that needs a restart" in daemon.log
    assert daemon.get() == (200, b"4321")


# --- the process -----------------------------------------------------------------------------------------------


def limit_files(soft: int, hard: int) -> Callable[[], None]:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return limit


def test_the_descriptor_limit_is_raised_and_fitted(run: Callable[..., Running]) -> None:
    """LOD-03: soft is raised to hard; two descriptors per stream, some spare; less than configured is said."""
    daemon = run(preexec_fn=limit_files(64, 256))
    assert "max_concurrent 96" in daemon.said
    assert "max_concurrent is 96 instead of 1000" in daemon.log


def test_more_connections_than_descriptors_are_survived(run: Callable[..., Running]) -> None:
    """LOD-03: at a limit of 256 files, 400 connections: the last ones are served in place of those before, and afterwards everybody."""
    daemon = run(preexec_fn=limit_files(256, 256))
    clients = [daemon.connect() for _ in range(400)]
    answers = []
    for client in clients:
        client.settimeout(0.05)
        with contextlib.suppress(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answers.append(client.recv(65536)[:12])
    assert answers.count(b"HTTP/1.1 200") >= 90
    for client in clients:
        client.close()

    def serves() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return daemon.get()[0] == 200
        return False

    assert eventually(serves)
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_core_is_ever_written(run: Callable[..., Running]) -> None:
    """The core limit is 0, and the process is not dumpable: its memory and environment are root's to read."""
    daemon = run()
    limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
    assert Path(f"/proc/{daemon.process.pid}/environ").stat().st_uid == 0


def test_it_works_without_a_home(run: Callable[..., Running]) -> None:
    """No HOME, no USER, a folder that is not writable: nothing of that is needed."""
    env = shutil.which("env")
    assert env is not None
    daemon = run(prefix=[env, "-u", "HOME", "-u", "USER"], cwd="/")
    assert daemon.get()[0] == 200


def test_beside_something_else_it_runs_in_a_thread() -> None:
    """``background`` serves, ends with its block, and touches no signal handler of the process."""
    before = signal.getsignal(signal.SIGTERM)

    class App:
        runtime: Any

        def __init__(self, settings: Settings) -> None:
            self.runtime = self

        def begin_drain(self) -> None: ...
        def cut(self) -> None: ...
        def reload(self, settings: Settings) -> None: ...

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for _ in range(2):
                    await send({"type": (await receive())["type"] + ".complete"})
                return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    with background(Settings(server=Server(host=("127.0.0.1",), port=0)), create_app=App) as daemon:
        port = int(daemon.addresses[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 204
        connection.close()
        assert signal.getsignal(signal.SIGTERM) == before
    assert daemon.exit_code == server.EXIT_OK
    with pytest.raises(OSError, match=os.strerror(errno.ECONNREFUSED)):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_two_names_of_one_address_are_listened_on_once() -> None:
    """localhost beside 127.0.0.1 is no collision with ourselves."""
    opened = open_listeners(Server(host=("127.0.0.1", "localhost", "127.0.0.1"), port=0))
    try:
        places = [listener.getsockname()[0] for listener in opened]
        assert sorted(set(places)) == sorted(places)
        assert "127.0.0.1" in places
    finally:
        for listener in opened:
            listener.close()
