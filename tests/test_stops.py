"""The stop button: real daemons whose streams are ended, whose requests are refused, and that remember it after a kill -9."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import sqlite3
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING

import pytest
from configurations import LAVA_KEY, LOCAL_KEY
from daemons import Daemon
from ledgers import rows_of, wait_for_output
from rawclient import RawClient, ask, post
from test_cli import called
from upstream import Peer, Upstream, answer

from proxy.protocol import clients
from proxy.protocol.record import RequestFacts
from proxy.protocol.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from daemons import StartDaemon
    from postgres import Server
    from test_cli import Ran

pytestmark = pytest.mark.skipif(os.name == "nt", reason="unix sockets and signals")

ENV = {"KEY": LAVA_KEY, "LOCAL": LOCAL_KEY, "BOUND": "bound-" + "b" * 20}
CHAT = {"model": "gpt-4o", "messages": []}
SESSION = "7d1f9c0e-2b4a-4f6e-9a61-0c5b1f1c2d3e"
CLAUDE = {"User-Agent": "claude-cli/2.0", "X-Claude-Code-Session-Id": SESSION}
CODEX = {"User-Agent": "codex_cli_rs/0.1", "session_id": "another"}

EVENTS = {
    "openai": ("/v1/chat/completions", b'data: {"choices":[]}\n\n'),
    "anthropic": ("/v1/messages", b'event: ping\ndata: {"type":"ping"}\n\n'),
    "google": ("/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", b'data: {"candidates":[]}\n\n'),
}


class Lava(Upstream):
    """Answers what asks for a stream with one event, and then with nothing; never, if the model is ``silent``; else at once.

    ``left`` counts the connections that the daemon closed in the middle.
    """

    def __init__(self) -> None:
        super().__init__(self._serve_one)
        self.left = 0

    def _serve_one(self, peer: Peer) -> None:
        while (received := peer.request()) is not None:
            event = next(
                (event for path, event in EVENTS.values() if path.partition("?")[0].encode() in _at(received.target)),
                b"",
            )
            if b"silent" in received.body:
                self._wait(peer)
            elif b'"stream"' not in received.body:
                peer.send(answer(200, b"{}", [(b"content-type", b"application/json")]))
            else:
                coding = b"content-encoding: gzip\r\n" if b'"gzip"' in received.body else b""
                body = gzip.compress(event) if coding else event
                peer.send(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%btransfer-encoding: chunked\r\n\r\n"
                    % coding,
                    b"%x\r\n%b\r\n" % (len(body), body),
                )
                self._wait(peer)

    def _wait(self, peer: Peer) -> None:
        if peer.gone():
            self.left += 1


def _at(target: bytes) -> bytes:
    return target.replace(b"%2F", b"/").replace(b"%3A", b":")


@pytest.fixture
def lava() -> Iterator[Lava]:
    with Lava() as running:
        yield running


@pytest.fixture
def start(daemon: StartDaemon, lava: Lava, tmp_path: Path) -> Callable[..., Daemon]:
    """Start a daemon with the projects ``website`` (the default), ``lab`` and ``keyed``, a unix socket, and one ledger for all."""

    def run(server: str = "", ledger: str | None = None, projects: str = "") -> Daemon:
        ledger = f'path = "{tmp_path}/ledger.sqlite"' if ledger is None else ledger
        config = (
            f'default_project = "website"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{lava.url}"\n'
            f"[projects.website]\n[projects.lab]\n{projects}[ledger]\n{ledger}\n[server]\n{server}"
        )
        started = daemon(config + f'unix_socket = "{tmp_path}/s"\n', env=ENV, secrets=ENV.values())
        # For the commands; the daemon has the same by its arguments.
        started.config.write_text(config + f'unix_socket = "{tmp_path}/s"\nport = {started.port}\n', encoding="utf-8")
        return started

    return run


def command(running: Daemon, *words: str, code: int = 0) -> Ran:
    """Run a command on the configuration of ``running``."""
    ran = called(running.config.parent, *words, "--config", running.config, env=ENV)
    assert ran.code == code, ran
    return ran


def stopped(running: Daemon, path: str = EVENTS["openai"][0], headers: Mapping[str, str] | None = None) -> bool:
    """Whether a new request is refused because it is stopped; any other answer than that or 200 is a fault."""
    came = post(running.port, path, CHAT, headers)
    assert (came.status, came.code) in ((200, None), (403, "project_stopped")), came
    return came.status == 403


@contextlib.contextmanager
def streaming(
    running: Daemon, path: str, headers: Mapping[str, str] | None = None, **fields: str
) -> Iterator[RawClient]:
    """A stream whose first event has come."""
    with RawClient(running.port) as client:
        client.post_json(path, {**CHAT, "stream": True, **fields}, headers)
        assert client.head().status == 200
        client.chunk()
        yield client


def rest(client: RawClient) -> bytes:
    """What comes until the connection breaks: an AssertionError if the body ends properly."""
    got = b""
    while True:
        try:
            chunk = client.chunk()
        except ConnectionError:
            return got
        assert chunk, "the stream has a clean end"
        got += chunk


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.02)


def in_flight(running: Daemon) -> int:
    """How many requests the daemon says are in flight."""
    text = ask(running.port, "GET", "/metrics").body.decode()
    return int(float(re.findall(r"^lava_proxy_streams_in_flight (\S+)$", text, re.MULTILINE)[0]))


def ended_as(ledger: Path, count: int = 1) -> list[tuple[str, str | None]]:
    """The outcomes and errors in the ledger once so many requests are settled."""
    statement = (
        "SELECT o.text, e.text FROM requests r JOIN names o ON o.id = r.outcome LEFT JOIN names e ON e.id = r.error "
        "WHERE r.state = 1 ORDER BY r.seq"
    )
    found: list[tuple[str, str | None]] = []

    def there() -> bool:
        nonlocal found
        with contextlib.suppress(sqlite3.OperationalError):
            found = [(row[0], row[1]) for row in rows_of(ledger, statement)]
        return len(found) >= count

    until(there)
    return found


def begun(running: Daemon, folder: Path) -> Daemon:
    """The same, once it has begun its ledger there."""
    assert not stopped(running)
    ended_as(folder / "ledger.sqlite")
    return running


# What a stop matches


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (Stop.named("website"), (True, True, False)),
        (Stop.named("website", "claude-code"), (True, False, False)),
        (Stop.named(None, "Claude-Code"), (True, False, True)),
        (Stop.named(None, None, SESSION), (True, False, True)),
        (Stop.named("lab", None, SESSION), (False, False, True)),
        (Stop.named(None, None, clients.hashed(SESSION)), (True, False, True)),
        (Stop.named(None, "codex", SESSION), (False, False, False)),
    ],
    ids=lambda value: value.command() if isinstance(value, Stop) else "",
)
def test_what_a_stop_matches(stop: Stop, expected: tuple[bool, bool, bool]) -> None:
    claude = RequestFacts("claude-code", SESSION, None, None, "anthropic", "messages")
    codex = RequestFacts("codex", None, None, None, "openai", "responses")
    assert (stop.matches("website", claude), stop.matches("website", codex), stop.matches("lab", claude)) == expected


def test_a_session_is_named_by_its_hash_alone() -> None:
    assert (
        Stop.named(session=SESSION)
        == Stop(session=clients.hashed(SESSION))
        == Stop.named(session=clients.hashed(SESSION))
    )


def test_a_project_is_resumed_with_all_that_is_stopped_in_it() -> None:
    project = Stop.named("website")
    assert project.includes(Stop("website", "codex"))
    assert not project.includes(Stop("", "codex"))
    assert not Stop.named(tool="codex").includes(Stop("website", "codex"))


def test_the_command_of_a_stop_can_be_pasted() -> None:
    assert Stop.named("website", "my tool").command() == "website --tool 'my tool'"


# Requests in flight


@pytest.mark.parametrize("dialect", EVENTS)
def test_a_stream_ends_with_an_error_event_and_a_break(
    start: Callable[..., Daemon], lava: Lava, tmp_path: Path, dialect: str
) -> None:
    """The event has the client's dialect, the upstream is cancelled, and the ledger says how it ended."""
    running = start()
    path = EVENTS[dialect][0]
    with streaming(running, path) as client:
        told = command(running, "stop", "website").out
        event = rest(client).decode()
    assert 'Stopped: project "website". 1 request in flight was ended, 1 of them streaming.' in told
    assert "lava-proxy resume website" in told
    assert event.endswith("\n\n")
    assert event.startswith("event: error\ndata: " if dialect == "anthropic" else "data: ")
    error = json.loads(event.partition("data: ")[2])["error"]
    assert error["lava_proxy"]["code"] == "project_stopped"
    assert 'Project "website" is stopped' in error["message"]
    until(lambda: lava.left == 1)
    assert ended_as(tmp_path / "ledger.sqlite") == [("shutdown", "project_stopped")]
    assert stopped(running, path)


def test_a_compressed_stream_breaks(start: Callable[..., Daemon], lava: Lava, tmp_path: Path) -> None:
    """An event inside it could not be read: the broken connection has to do."""
    running = start()
    with streaming(running, EVENTS["openai"][0], coding="gzip") as client:
        command(running, "stop", "website")
        assert rest(client) == b""
    until(lambda: lava.left == 1)
    assert ended_as(tmp_path / "ledger.sqlite") == [("shutdown", "project_stopped")]


def test_a_request_without_an_answer_is_answered_with_the_error(
    start: Callable[..., Daemon], lava: Lava, tmp_path: Path
) -> None:
    running = start()
    with RawClient(running.port) as client:
        client.post_json(EVENTS["openai"][0], {**CHAT, "user": "silent"})
        lava.wait(lambda: len(lava.requests) == 1)
        ended = command(running, "stop", "website", "--json").json
        response = client.response()
    assert (ended["ended"], ended["streams"]) == (1, 0)
    assert (response.status, response.code) == (403, "project_stopped")
    assert response.header("x-should-retry") == "false"
    until(lambda: lava.left == 1)
    assert ended_as(tmp_path / "ledger.sqlite") == [("shutdown", "project_stopped")]


def test_a_request_whose_body_has_not_come_is_refused(start: Callable[..., Daemon], lava: Lava, tmp_path: Path) -> None:
    """Nothing of it was sent: it has the outcome of a refused one, which costs nothing."""
    running = start()
    assert not stopped(running)  # what is stored is known, so the next request is admitted at once
    with RawClient(running.port) as client:
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"model":' % running.port
        )
        until(lambda: in_flight(running) == 2)  # this one, and the question itself
        assert command(running, "stop", "website", "--json").json["ended"] == 1
        response = client.response()
    assert (response.status, response.code) == (403, "project_stopped")
    assert ended_as(tmp_path / "ledger.sqlite", 2) == [("ok", None), ("refused", "project_stopped")]
    assert len(lava.requests) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("website",),
        ("--tool", "claude-code"),
        ("website", "--tool", "Claude-Code"),
        ("--session", SESSION),
        ("--session", clients.hashed(SESSION)),
        ("website", "--session", SESSION),
    ],
    ids=" ".join,
)
def test_only_what_is_named_is_stopped_and_resumed(start: Callable[..., Daemon], words: tuple[str, ...]) -> None:
    """The stream that matches is ended; another one goes on, and new requests like it are served."""
    running = start()
    other = ("/p/lab" + EVENTS["openai"][0], CODEX)
    with (
        streaming(running, EVENTS["anthropic"][0], CLAUDE) as client,
        streaming(running, *other) as unharmed,
    ):
        assert command(running, "stop", *words, "--json").json["ended"] == 1
        assert b"project_stopped" in rest(client)
        assert stopped(running, EVENTS["anthropic"][0], CLAUDE)
        assert not stopped(running, *other)
        unharmed.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            unharmed.sock.recv(1)
        resumed = command(running, "resume", *words).out
        assert resumed.startswith("Resumed: ")
        assert not stopped(running, EVENTS["anthropic"][0], CLAUDE)


def test_resuming_a_project_resumes_its_tools_and_names_what_is_still_stopped(start: Callable[..., Daemon]) -> None:
    running = start()
    for words in (("website",), ("website", "--tool", "codex"), ("--tool", "claude-code")):
        command(running, "stop", *words)
    assert command(running, "stop").out == (
        'Stopped: project "website"; project "website", tool "codex"; tool "claude-code".\n'
    )
    assert command(running, "resume", "website").out == (
        'Resumed: project "website"; project "website", tool "codex".\nStill stopped: tool "claude-code".\n'
    )
    assert not stopped(running, headers=CODEX)
    assert stopped(running, headers=CLAUDE)
    again = command(running, "resume", "website", code=1)
    assert again.err == 'lava-proxy: project "website" is not stopped. Stopped: tool "claude-code".\n'
    assert command(running, "resume", "webste", "--json", code=1).json["code"] == "project_not_found"
    assert command(running, "resume", "--tool", "claude-code", "--json").json["stops"] == []
    assert command(running, "stop").out == "Nothing is stopped.\n"


# Where it is kept


def test_a_stop_survives_kill_9(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Stopped by one daemon, which is killed; the next one refuses its first request. A session is kept by its hash alone."""
    first = start()
    assert command(first, "stop", "website", "--json").json["problem"] is None
    command(first, "stop", "--session", SESSION)
    first.process.kill()
    first.process.wait()
    second = start()
    assert stopped(second)
    assert stopped(second, "/p/lab/v1/messages", CLAUDE)
    assert not stopped(second, "/p/lab/v1/messages", CODEX)
    assert SESSION.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))
    command(second, "resume", "website")
    second.process.kill()
    second.process.wait()
    third = start()
    assert not stopped(third)
    assert stopped(third, "/p/lab/v1/messages", CLAUDE)


def test_without_a_daemon_the_next_one_finds_it(start: Callable[..., Daemon], tmp_path: Path) -> None:
    first = begun(start(), tmp_path)
    first.stop()
    told = command(first, "stop", "website").out
    assert told.endswith("No daemon answers: this is what the ledger has. It counts from the next start on.\n")
    assert "in flight" not in told
    as_json = command(first, "stop", "lab", "--json").json
    assert (as_json["at"], as_json["ended"], len(as_json["stops"])) == (None, None, 2)
    assert command(first, "resume", "lab", "--json").json["resumed"] == [
        {"project": "lab", "tool": None, "session": None}
    ]
    assert "Did you mean" in command(first, "stop", "websit", code=1).err
    second = start()
    assert stopped(second)
    assert not stopped(second, "/p/lab/v1/chat/completions")


def test_without_a_daemon_and_a_ledger_it_says_so(start: Callable[..., Daemon], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    for text, code in (
        ("[server]\nport = 1\n[ledger]\nenabled = false\n", "not_running"),
        (f'[server]\nport = 1\n[ledger]\npath = "{tmp_path}/none.sqlite"\n', "ledger_unreadable"),
    ):
        config.write_text(text)
        config.chmod(0o600)
        ran = called(tmp_path, "stop", "default", "--json", "--config", config, env={"LAVA_SECRET_KEY": LAVA_KEY})
        assert (ran.code, ran.json["code"]) == (1, code)
        assert "No daemon answers" in ran.err
    assert not (tmp_path / "none.sqlite").exists()


def test_a_daemon_that_is_elsewhere_is_named(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """It has the ledger, and the configuration of the command has neither its port nor its socket."""
    begun(start(), tmp_path)
    config = tmp_path / "c.toml"
    config.write_text(f'[server]\nport = 1\n[ledger]\npath = "{tmp_path}/ledger.sqlite"\n')
    config.chmod(0o600)
    ran = called(tmp_path, "stop", "default", "--config", config, env={"LAVA_SECRET_KEY": LAVA_KEY})
    assert ran.code == 1
    assert "A daemon has the ledger (pid " in ran.err


def test_without_a_ledger_it_works_until_the_daemon_ends(start: Callable[..., Daemon]) -> None:
    running = start(ledger="enabled = false")
    told = command(running, "stop", "website").out
    assert "It does not survive a restart: this daemon has no ledger." in told
    assert stopped(running)
    assert "After a restart" not in command(running, "resume", "website").out
    assert not stopped(running)


@pytest.mark.full
def test_while_the_ledger_is_locked_it_works_and_is_stored_afterwards(
    start: Callable[..., Daemon], tmp_path: Path
) -> None:
    running = begun(start(), tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        told = command(running, "stop", "website").out
        assert "It does not survive a restart: the ledger cannot be written now; this is tried again." in told
        assert stopped(running)
        other.execute("ROLLBACK")
    until(lambda: rows_of(tmp_path / "ledger.sqlite", "SELECT project FROM stops") == [("website",)])
    until(lambda: json.loads(by_socket(tmp_path / "s", "GET", "/api/stops")[1])["problem"] is None)
    assert "what is stopped cannot be read or stored" in running.output()


def test_a_broken_table_stops_nobody(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The stops cannot be read: requests are served, the log says so, and the button works."""
    first = begun(start(), tmp_path)
    first.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.execute("DROP TABLE stops")
    second = start()
    assert not stopped(second)
    wait_for_output(second, "the stored stops cannot be read: requests are admitted")
    assert command(second, "stop", "website", "--json").json["problem"] is not None
    assert stopped(second)


@pytest.mark.full
def test_in_a_new_file_it_is_stored_again(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The ledger's file is removed while the daemon runs: who is stopped stays so, also after the next start."""
    running = start()
    command(running, "stop", "website")
    for path in tmp_path.glob("ledger.sqlite*"):
        if not path.name.endswith(".lock"):
            path.unlink()
    wait_for_output(running, "was removed or replaced")

    def stored() -> bool:
        with contextlib.suppress(sqlite3.OperationalError):
            return rows_of(tmp_path / "ledger.sqlite", "SELECT project FROM stops") == [("website",)]
        return False

    until(stored)
    assert stopped(running)


@pytest.mark.postgres
def test_on_one_postgres_a_stop_reaches_every_daemon(
    start: Callable[..., Daemon], lava: Lava, postgres_server: Server, tmp_path: Path
) -> None:
    """Given to one daemon it ends the streams of the other; resumed at the other, it is resumed here; and without a daemon."""
    ledger = f'url = "{postgres_server.new_database()}"'
    first = start(ledger=ledger, server='keys = ["env:LOCAL"]\n')
    (tmp_path / "s").unlink()
    second = start(ledger=ledger, server='keys = ["env:LOCAL"]\n')
    key = {"Authorization": f"Bearer {LOCAL_KEY}"}
    with streaming(second, EVENTS["openai"][0], key) as client:
        told = called(first.config.parent, "stop", "website", "--config", by_port(first), env=ENV)
        assert "Nothing of it was in flight" in told.out, told
        assert "Other daemons on the same database follow" in told.out
        assert b"project_stopped" in rest(client)
    assert stopped(first, headers=key)
    assert stopped(second, headers=key)
    assert called(second.config.parent, "resume", "website", "--config", by_port(second), env=ENV).code == 0
    assert not stopped(second, headers=key)
    until(lambda: not stopped(first, headers=key))
    first.stop()
    told = called(first.config.parent, "stop", "website", "--config", by_port(first), env=ENV)
    assert told.out.endswith(
        "No daemon answers: this is what the ledger has. Daemons on it follow within a few seconds.\n"
    )
    until(lambda: stopped(second, headers=key))
    second.process.kill()
    second.process.wait()
    assert stopped(start(ledger=ledger, server='keys = ["env:LOCAL"]\n'), headers=key)


def by_port(running: Daemon) -> Path:
    """A configuration for commands that has no unix socket, which both daemons of a test share."""
    lines = running.config.read_text().splitlines(keepends=True)
    found = running.config.with_name("by-port.toml")
    found.write_text("".join(line for line in lines if not line.startswith("unix_socket")))
    found.chmod(0o600)
    return found


# The control address


def by_socket(
    path: Path, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request over the unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.connect(str(path))
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        return response, response.read()


def socket_of(running: Daemon) -> Path:
    return running.config.with_name("s")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Daemon]]:
    """Daemons without a ledger for what leaves nothing behind: one for each pair of more settings of [server] and more projects."""
    started: dict[tuple[str, str], Daemon] = {}

    def one(server: str, projects: str) -> Daemon:
        if (server, projects) not in started:
            folder = tmp_path_factory.mktemp("asked")
            config = (
                f'default_project = "website"\n[lava]\nsecret_key = "env:KEY"\n[projects.website]\n[projects.lab]\n{projects}'
                f'[ledger]\nenabled = false\n[server]\n{server}unix_socket = "{folder}/s"\n'
            )
            running = started[server, projects] = Daemon(folder, config, env=ENV, secrets=ENV.values())
            running.wait_until_up()
        return started[server, projects]

    yield one
    for each in started.values():
        each.close()


KEYED = 'keys = ["env:LOCAL"]\nallowed_origins = ["http://page.example"]\n'
BOUND = '[projects.keyed]\nkeys = ["env:BOUND"]\n'
SERVER_KEY = {"Authorization": f"Bearer {LOCAL_KEY}"}
PROJECT_KEY = {"X-Api-Key": ENV["BOUND"]}


@pytest.mark.parametrize(
    ("server", "projects", "headers", "over", "expected"),
    [
        ("", "", {}, "port", (401, "local_key_required")),
        ("", "", SERVER_KEY, "port", (401, "local_key_required")),
        ("", BOUND, {}, "port", (401, "local_key_required")),
        ("", BOUND, PROJECT_KEY, "port", (403, "project_not_allowed")),
        (KEYED, BOUND, PROJECT_KEY, "port", (403, "project_not_allowed")),
        (KEYED, BOUND, PROJECT_KEY, "socket", (403, "project_not_allowed")),
        (KEYED, "", {}, "port", (401, "local_key_required")),
        (KEYED, "", {"X-Api-Key": "wrong-" + "w" * 20}, "port", (401, "local_key_invalid")),
        (KEYED, "", {"X-Api-Key": "wrong-" + "w" * 20}, "socket", (401, "local_key_invalid")),
        (KEYED, "", {**SERVER_KEY, "Origin": "http://evil.example"}, "port", (403, "origin_not_allowed")),
        (KEYED, "", {**SERVER_KEY, "Origin": "http://page.example"}, "port", (403, "origin_not_allowed")),
        (KEYED, "", {**SERVER_KEY, "Origin": "OWN"}, "port", (403, "origin_not_allowed")),
        (KEYED, "", {**SERVER_KEY, "Sec-Fetch-Site": "none"}, "port", (403, "origin_not_allowed")),
        ("", "", {"Origin": "http://localhost"}, "socket", (403, "origin_not_allowed")),
        (KEYED, "", {**SERVER_KEY, "Host": "other.example"}, "port", (421, "host_not_allowed")),
        (KEYED, "", SERVER_KEY, "port", (200, None)),
        (KEYED, BOUND, {}, "socket", (200, None)),
        ("", BOUND, {}, "socket", (200, None)),
        ("", "", {}, "socket", (200, None)),
    ],
)
def test_the_control_address_is_for_the_owner(
    asked: Callable[[str, str], Daemon],
    server: str,
    projects: str,
    headers: dict[str, str],
    over: str,
    expected: tuple[int, str | None],
) -> None:
    """Over the unix socket, or with a key under [server]; what is refused stops nothing."""
    running = asked(server, projects)
    headers = {name: running.url if value == "OWN" else value for name, value in headers.items()}
    stops: list[int] = []
    for method, path in (("POST", "/api/stop"), ("POST", "/api/resume"), ("GET", "/api/stops")):
        body = b'{"project": "lab"}' if method == "POST" else None
        if over == "port":
            host = headers.get("Host")
            others = {name: value for name, value in headers.items() if name != "Host"}
            came = ask(running.port, method, path, body, others, host=host)
            assert (came.status, came.code) == expected, path
        else:
            response, _ = by_socket(socket_of(running), method, path, body, headers)
            assert (response.status, response.headers["x-lava-proxy-error"]) == expected, path
        stops.append(len(json.loads(by_socket(socket_of(running), "GET", "/api/stops")[1])["stops"]))
    assert stops == ([1, 0, 0] if expected[0] == 200 else [0, 0, 0])


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "not a JSON object"),
        (b"{}", 400, "Name a project, a tool or a session"),
        (b'[["project", "lab"]]', 400, "not a JSON object"),
        (b'"lab"', 400, "not a JSON object"),
        (b"\xff{}", 400, "not a JSON object"),
        (b"[" * 4000, 400, "not a JSON object"),
        (b'{"projct": "lab"}', 400, 'Did you mean "project"?'),
        (b'{"x": "lab"}', 400, "Known are project, tool, session"),
        (b'{"project": "lab", "project": "website"}', 400, "stands twice"),
        (b'{"project": null}', 400, "project is not a text"),
        (b'{"project": {"tool": "x"}}', 400, "project is not a text"),
        (b'{"project": ""}', 400, "1 to 200"),
        (b'{"tool": ""}', 400, "1 to 200"),
        (b'{"tool": "a\\nb"}', 400, "1 to 200"),
        (b'{"session": "%b"}' % (b"s" * 201), 400, "1 to 200"),
        (b'{"project": "webste"}', 404, 'Did you mean "website"?'),
        (b'{"project": "%b"}' % (b" " * 5000), 413, "longer than 4096 bytes"),
    ],
    ids=range(17),
)
def test_a_body_that_is_none(asked: Callable[[str, str], Daemon], body: bytes, status: int, told: str) -> None:
    """Refused in a sentence, and nothing is stopped or resumed."""
    at = socket_of(asked("", ""))
    for path in ("/api/stop", "/api/resume"):
        response, text = by_socket(at, "POST", path, body)
        assert response.status == status
        assert told in json.loads(text)["error"]["message"]
    assert json.loads(by_socket(at, "GET", "/api/stops")[1])["stops"] == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/stop"), ("PUT", "/api/resume"), ("POST", "/api/stops")])
def test_another_method(asked: Callable[[str, str], Daemon], method: str, path: str) -> None:
    response, _ = by_socket(socket_of(asked("", "")), method, path, b"{}")
    assert (response.status, response.headers["x-lava-proxy-error"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == ("GET, HEAD" if path == "/api/stops" else "POST")


def test_a_caller_that_leaves_in_its_body_leaves_no_trace(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Nothing is stopped, and the log has no fault of ours (the fixture looks)."""
    running = start(ledger="enabled = false")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(b'POST /api/stop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18\r\n\r\n{"project": ')
        sleep(0.1)
    assert not stopped(running)


def test_the_command_without_a_way_to_the_daemon_says_what_to_add(start: Callable[..., Daemon]) -> None:
    running = start(ledger="enabled = false")
    ran = called(running.config.parent, "stop", "website", "--json", "--config", by_port(running), env=ENV)
    assert (ran.code, ran.json["code"]) == (1, "local_key_required")
    assert "Add keys under [server]" in ran.err


def test_the_command_uses_a_server_key_where_there_is_no_socket(start: Callable[..., Daemon]) -> None:
    running = start(server='keys = ["env:LOCAL"]\n', ledger="enabled = false")
    ran = called(running.config.parent, "stop", "website", "--json", "--config", by_port(running), env=ENV)
    assert (ran.code, ran.json["at"]) == (0, running.url)
    assert stopped(running, headers=SERVER_KEY)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("resume",), "Name a project, a tool or a session."),
        (("stop", ""), "The project is not a text"),
        (("stop", "--tool", ""), "The tool is not a text"),
        (("resume", "--session", "x" * 201), "The session is not a text"),
    ],
)
def test_wrong_arguments_are_exit_code_2(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    ran = called(tmp_path, *words)
    assert ran.code == 2
    assert told in ran.err


@pytest.mark.parametrize("reply", [b"SSH-2.0-x\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])
def test_another_program_on_the_port_is_not_taken_for_the_daemon(tmp_path: Path, reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        config = tmp_path / "c.toml"
        config.write_text(f'[server]\nhost = "127.0.0.1"\nport = {listener.getsockname()[1]}\n')
        config.chmod(0o600)
        ran = called(tmp_path, "stop", "default", "--json", "--config", config, env={"LAVA_SECRET_KEY": LAVA_KEY})
        thread.join()
    assert (ran.code, ran.json["code"]) == (1, "not_lava_proxy")
