"""The life of a real ``lava-proxy serve``, where it differs from that of its parts (``test_server.py``) and from the cases of
the hostile list: kept connections while it drains, files that are replaced, poor surroundings, systemd, a hundred streams."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment
from ports import free_port
from rawclient import RawClient, Response, ask, post
from upstream import Peer, Upstream, answer, chunked

from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from daemons import Daemon, StartDaemon

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and unix sockets")

KEY = "aks_live_" + "L" * 24
LOCAL = "local-" + "q" * 20
CHAT = {"model": "gpt-4o", "messages": []}
STREAM = {**CHAT, "stream": True}
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAMS = 100


def config(upstream: Upstream, more: str = "") -> str:
    """A daemon whose Lava is the scripted upstream."""
    return f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{more}'


def wait_for(condition: Callable[[], object], seconds: float = 15.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain {what}"
        time.sleep(0.02)


def listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        RawClient(port).close()
        return True
    return False


def held_back(go: threading.Event) -> Callable[[Peer], None]:
    """Streams say one event, and their end when told; anything else is answered at once."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if b'"stream": true' not in received.body:
                peer.send(answer(body=b"{}"))
                continue
            peer.send(SSE_HEAD, chunked(DELTA, end=False))
            assert go.wait(40)
            peer.send(chunked(DELTA, DONE))

    return script


def rest(client: RawClient) -> bytes:
    """What comes of a chunked body to its proper end; ConnectionError where it has none."""
    body = b""
    while piece := client.chunk():
        body += piece
    return body


def events(running: Daemon) -> list[dict[str, Any]]:
    """The daemon's log, whole lines only."""
    return [json.loads(line) for line in running.output().splitlines(keepends=True) if line.endswith("\n")]


def said(running: Daemon, text: str) -> bool:
    return any(text in str(event["event"]) for event in events(running))


# --- on the way down -------------------------------------------------------------------------------------------------


def test_what_comes_on_open_connections_while_draining_is_told_to_come_again(daemon: StartDaemon) -> None:
    """While a stream finishes, new requests on connections that are still open get 503 ``shutting_down``, in their dialect
    and to be tried again, and ``/readyz`` says why it is not ready; nobody gets a 500, and the stream its end."""
    go = threading.Event()
    with Upstream(held_back(go)) as upstream, contextlib.ExitStack() as stack:
        running = daemon(config(upstream), env={"KEY": KEY}, secrets=[KEY])
        streaming, *others = [stack.enter_context(RawClient(running.port)) for _ in range(5)]
        streaming.post_json("/v1/chat/completions", STREAM)
        assert streaming.head().status == 200
        assert streaming.chunk() == DELTA
        # Half a head each: busy connections, which the drain leaves open.
        targets = ["/readyz", "/v1/chat/completions", "/v1/messages", "/v1beta/models/x:generateContent"]
        for client, target in zip(others, targets, strict=True):
            client.send(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (target.encode(), running.port))
        assert ask(running.port, "GET", "/healthz").status == 200  # the halves have been read
        running.process.send_signal(signal.SIGINT)
        wait_for(lambda: not listening(running.port), what="for the listener to close")
        before = len(upstream.requests)
        refused: list[Response] = []
        for client in others:
            client.send(b"\r\n")
            refused.append(client.response())
            assert client.closed(5)
        assert refused[0].status == 503
        assert refused[0].json() == {"status": "not ready", "reason": "draining"}
        for response in refused[1:]:
            assert (response.status, response.code) == (503, "shutting_down")
            assert response.header("x-should-retry") == "true"
            assert response.header("retry-after") is not None
            assert response.header("connection") == "close"
        assert refused[2].json()["error"]["type"] == "overloaded_error"
        assert refused[3].json()["error"]["status"] == "UNAVAILABLE"
        assert len(upstream.requests) == before
        assert running.process.poll() is None
        go.set()
        assert rest(streaming) == DELTA + DONE
        assert running.process.wait(10) == 0


def test_what_a_second_signal_ends_is_a_shutdown(daemon: StartDaemon) -> None:
    """Waiting or streaming: the clients did not leave, and the log must not say so. The exit code is 1."""
    go = threading.Event()
    with Upstream(held_back(go)) as upstream, contextlib.ExitStack() as last:
        last.callback(go.set)
        running = daemon(config(upstream), env={"KEY": KEY}, secrets=[KEY])
        clients = [RawClient(running.port) for _ in range(3)]
        for client in clients:
            client.post_json("/v1/chat/completions", STREAM)
            assert client.head().status == 200
            assert client.chunk() == DELTA
        running.process.send_signal(signal.SIGINT)
        wait_for(lambda: said(running, "stopping"))
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 1
        assert [event["outcome"] for event in events(running) if "outcome" in event] == ["shutdown"] * 3
        go.set()
        for client in clients:
            client.close()


def test_signals_that_come_late_do_not_change_the_exit_code(daemon: StartDaemon) -> None:
    """Once the drain is over, more signals (a service manager's second try) find a process that ends as it was asked to."""
    codes = set()
    for _ in range(5):
        running = daemon('[lava]\nsecret_key = "env:KEY"\n', env={"KEY": KEY}, secrets=[KEY])
        running.process.send_signal(signal.SIGTERM)
        # Its last line, and the beginning of the moment in question.
        wait_for(lambda running=running: not listening(running.port))  # type: ignore[misc]
        wait_for(lambda running=running: said(running, "stopping"))  # type: ignore[misc]
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        codes.add(running.process.returncode)
    # 1 where one of them came before the drain was over: that is the second signal.
    assert codes <= {0, 1}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_the_main_thread_takes_signals(daemon: StartDaemon) -> None:
    """Another one would take a signal while the main thread exchanges its handlers, and end the process by it."""
    running = daemon('[lava]\nsecret_key = "env:KEY"\n', env={"KEY": KEY}, secrets=[KEY])
    tasks = Path(f"/proc/{running.process.pid}/task")
    wait_for(lambda: len(list(tasks.iterdir())) >= 4)  # with the log's, the ledger's, and one that looks at files
    blocked = {
        int(task.name): int(re.findall(r"^SigBlk:\t(\w+)$", (task / "status").read_text(), re.MULTILINE)[0], 16)
        for task in tasks.iterdir()
    }
    term = 1 << (signal.SIGTERM - 1)
    assert [task for task, mask in blocked.items() if not mask & term] == [running.process.pid]


def test_a_client_between_two_requests_is_let_go_at_once(daemon: StartDaemon) -> None:
    """Kept connections without a request do not hold up the end, however long the drain may take."""
    with Upstream(answer(body=b"{}")) as upstream, contextlib.ExitStack() as stack:
        running = daemon(config(upstream, "[server]\ndrain_seconds = 60.0\n"), env={"KEY": KEY}, secrets=[KEY])
        clients = [stack.enter_context(RawClient(running.port)) for _ in range(10)]
        for client in clients[:5]:
            client.post_json("/v1/chat/completions", CHAT)
            assert client.response().status == 200
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 5
        assert all(client.closed(5) for client in clients)


@pytest.mark.timeout(120)
def test_a_hundred_streams_live_through_a_reload_and_a_stop(daemon: StartDaemon) -> None:
    """100 open streams: SIGHUP with a good configuration, then SIGTERM: every stream gets every event and its proper end, a
    request after the reload goes by the new configuration, and the exit code is 0."""
    go = threading.Event()
    with Upstream(held_back(go)) as upstream, contextlib.ExitStack() as stack:
        running = daemon(config(upstream), env={"KEY": KEY}, secrets=[KEY])
        clients = [stack.enter_context(RawClient(running.port)) for _ in range(STREAMS)]
        for client in clients:
            client.post_json("/v1/chat/completions", STREAM)
        for client in clients:
            assert client.head().status == 200
            assert client.chunk() == DELTA
        running.config.write_text(config(upstream, '[models]\nquick = "groq/small"\n[upstream]\nidle = 299.0\n'))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: said(running, "configuration reloaded"))
        assert post(running.port, "/v1/chat/completions", {**CHAT, "model": "quick"}).status == 200
        assert b"api.groq.com" in upstream.requests[-1].target
        assert json.loads(upstream.requests[-1].body)["model"] == "small"
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listening(running.port))
        go.set()
        for client in clients:
            assert rest(client) == DELTA + DONE
        assert running.process.wait(15) == 0
    outcomes = [event["outcome"] for event in events(running) if event["event"] == "request"]
    assert outcomes == ["ok"] * (STREAMS + 1)


# --- a configuration that changes ------------------------------------------------------------------------------------


def test_a_replaced_file_is_noticed_however_it_is_replaced(daemon: StartDaemon, tmp_path: Path) -> None:
    """No signal: written in place, renamed over as editors do, switched behind a link as Kubernetes does. A file that is
    gone for a while changes nothing."""
    with Upstream(answer(body=b"{}")) as upstream:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        link, real = tmp_path / "current", tmp_path / "one" / "config.toml"
        link.symlink_to(tmp_path / "one")

        def write(path: Path, alias: str) -> None:
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(config(upstream, f'[models]\n{alias} = "groq/{alias}-model"\n'))
            fresh.rename(path)

        def goes_by(alias: str) -> bool:
            assert post(running.port, "/v1/chat/completions", {**CHAT, "model": alias}).status == 200
            return f"{alias}-model".encode() in upstream.requests[-1].body

        write(real, "first")
        running = daemon(
            "",
            env={"KEY": KEY},
            secrets=[KEY],
            args=["--config", str(link / "config.toml")],
        )
        assert goes_by("first")
        real.write_text(real.read_text().replace("first", "second"))
        wait_for(lambda: goes_by("second"), what="for the file written in place")
        write(real, "third")
        wait_for(lambda: goes_by("third"), what="for the file renamed over")
        write(tmp_path / "two" / "config.toml", "fourth")
        (tmp_path / "next").symlink_to(tmp_path / "two")
        (tmp_path / "next").rename(link)
        wait_for(lambda: goes_by("fourth"), what="for the link that was switched")
        (tmp_path / "two" / "config.toml").unlink()
        looks = time.monotonic() + 2.5  # longer than between two looks at the file
        wait_for(lambda: time.monotonic() > looks)
        assert goes_by("fourth")
        write(tmp_path / "two" / "config.toml", "fifth")
        wait_for(lambda: goes_by("fifth"), what="for the file that came back")


def test_a_rotated_secret_is_used_without_a_signal(daemon: StartDaemon, tmp_path: Path) -> None:
    """Behind ``file:``, also where a variable names it and there is no configuration file. While it is empty the old one is
    used, and the log says why, once."""
    secret = tmp_path / "secret"

    def rotate(key: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.touch(mode=0o600)
        fresh.write_text(key + "\n")
        fresh.rename(secret)

    def sends(key: str) -> bool:
        assert post(running.port, "/v1/chat/completions", CHAT).status == 200
        token = (upstream.requests[-1].header(b"authorization") or b"").removeprefix(b"Bearer ")
        return bool(json.loads(base64.b64decode(token))["secret_key"] == key)

    keys = ["aks_live_" + letter * 24 for letter in "ABC"]
    rotate(keys[0])
    with Upstream(answer(body=b"{}")) as upstream:
        variables = {"LAVA_PROXY_LAVA__SECRET_KEY": f"file:{secret}", "LAVA_PROXY_LAVA__BASE_URL": upstream.url}
        running = daemon("", env=variables, secrets=keys)
        assert sends(keys[0])
        rotate(keys[1])
        wait_for(lambda: sends(keys[1]), what="for the secret renamed over")
        secret.write_text("")
        wait_for(lambda: said(running, "is empty"), what="for a word about the empty file")
        assert sends(keys[1])
        looks = time.monotonic() + 2.5  # longer than between two looks at the file
        wait_for(lambda: time.monotonic() > looks)
        assert sum("is empty" in str(event["event"]) for event in events(running)) == 1
        secret.write_text(keys[2])
        wait_for(lambda: sends(keys[2]), what="for the secret written in place")


def test_what_cannot_change_while_it_runs_is_said_so(daemon: StartDaemon, tmp_path: Path) -> None:
    """A changed host, port, socket or log file: the rest of the new configuration is used, and the log names what needs a
    restart; the old address goes on being served."""
    with Upstream(answer(body=b"{}")) as upstream:
        running = daemon(config(upstream), env={"KEY": KEY}, secrets=[KEY], args=["--host", "127.0.0.1"])
        server = f'[server]\nunix_socket = "{tmp_path}/s"\nmax_body_bytes = 100\n'
        running.config.write_text(config(upstream, f'{server}[log]\nfile = "{tmp_path}/new.log"\nformat = "console"\n'))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: said(running, "configuration reloaded"))
        for key in ("server.unix_socket", "log.file", "log.format"):
            assert said(running, f"{key} has changed: that needs a restart"), key
        # The address came from the command line, which a file does not override.
        assert not said(running, "server.port has changed")
        assert not (tmp_path / "new.log").exists()
        assert post(running.port, "/openai/v1/x", {"long": "x" * 200}).code == "body_too_large"


def test_keys_of_former_configurations_stay_masked(daemon: StartDaemon) -> None:
    """Several reloads with a new key each: what is told later of a request that has an old one in it does not show it."""
    keys = [f"aks_live_{number}{'M' * 20}" for number in range(4)]
    with Upstream(answer(body=b"{}")) as upstream:

        def with_key(key: str) -> str:
            return config(upstream).replace("env:KEY", key)

        running = daemon(with_key(keys[0]), secrets=keys)
        for number, key in enumerate(keys[1:], start=1):
            running.config.write_text(with_key(key))
            running.process.send_signal(signal.SIGHUP)
            wait_for(lambda number=number: running.output().count("configuration reloaded") >= number)  # type: ignore[misc]
        for key in keys:
            assert ask(running.port, "GET", f"/openai/v1/files/{key}").status == 200
        assert running.stop() == 0
        told = [event["path"] for event in events(running) if event["event"] == "request"]
        assert told == ["/openai/v1/files/" + "*" * len(keys[0])] * 4 or told == ["/openai/v1/files/***"] * 4


# --- poor surroundings -----------------------------------------------------------------------------------------------


class Bare:
    """A ``serve`` in surroundings of the test's own making. ``env`` is everything it gets beside PATH and PYTHONPATH."""

    def __init__(self, folder: Path, env: Mapping[str, str], words: list[str], **options: Any) -> None:
        kept = clean_environment(folder)
        for name in ("HOME", "TMPDIR", "LC_ALL"):
            kept.pop(name, None)
        # Else all of them had the ledger in the home that the system knows of this user, and only one daemon has it at a time.
        kept["LAVA_PROXY_LEDGER__PATH"] = str(folder / "ledger.sqlite")
        self._log = folder / "bare.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", *words],
                env={**kept, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **options,
            )

    def output(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Callable[..., Bare]]:
    """Starts such processes; at the end none is left, and none has told a secret."""
    started: list[Bare] = []

    def start(env: Mapping[str, str], *words: str, **options: Any) -> Bare:
        folder = tmp_path / f"bare-{len(started)}"
        folder.mkdir()
        started.append(Bare(folder, env, list(words), **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait(10)
        assert not leaks(each.output(), [KEY, LOCAL])
        assert "Traceback" not in each.output()


def by_socket(path: Path, raw: bytes) -> bytes:
    """Everything that is answered at a unix socket until the connection closes."""
    received = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(15)
        client.connect(str(path))
        client.sendall(raw)
        while data := client.recv(65_536):
            received += data
    return received


def by_variables(upstream: Upstream, port: int, **more: str) -> dict[str, str]:
    """The whole configuration as variables."""
    named = {"LAVA__BASE_URL": upstream.url, "SERVER__PORT": str(port), **more}
    return {"LAVA_SECRET_KEY": KEY} | {f"LAVA_PROXY_{name}": value for name, value in named.items()}


def test_without_home_file_and_umask_it_serves_and_closes_what_it_makes(
    bare: Callable[..., Bare], tmp_path: Path
) -> None:
    """No home, no file, a working directory that may not be written, umask 000: all by variables. The log file and the unix
    socket are for their owner alone, the socket serves whole requests behind the same gate, and nothing else is written."""
    writable, here = tmp_path / "run", tmp_path / "here"
    writable.mkdir()
    here.mkdir(mode=0o555)
    with Upstream(held_back(threading.Event())) as upstream:
        port = free_port()
        env = by_variables(upstream, port, SERVER__UNIX_SOCKET=str(writable / "sock"), LOG__FILE=str(writable / "log"))
        running = bare(env, cwd=here, umask=0)
        wait_for(lambda: running.process.poll() is not None or listening(port), 20, "for the port")
        assert running.process.poll() is None, running.output()
        assert ask(port, "GET", "/readyz").status == 200
        assert post(port, "/v1/chat/completions", CHAT).status == 200
        for name in ("sock", "log"):
            assert stat.S_IMODE((writable / name).stat().st_mode) == 0o600, name
        content = json.dumps(CHAT).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        came = by_socket(writable / "sock", head % len(content) + content)
        assert came.startswith(b"HTTP/1.1 200")
        assert b"x-lava-proxy-project: default" in came
        assert len(upstream.requests) == 2
        page = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: https://evil.example\r\n\r\n"
        assert b"origin_not_allowed" in by_socket(writable / "sock", page)
        assert running.stop() == 0
    assert running.output() == ""
    lines = [json.loads(line) for line in (writable / "log").read_text().splitlines()]
    assert sum(line["event"] == "request" for line in lines) == 3
    assert [path.name for path in writable.iterdir()] == ["log"]
    assert list(here.iterdir()) == []


def test_where_no_file_can_be_written_it_serves_on(bare: Callable[..., Bare], tmp_path: Path) -> None:
    """As on a full or read-only disk, every write to a file fails: requests are answered all the same, and the end is clean."""
    import resource

    with Upstream(answer(body=b"{}")) as upstream:
        port = free_port()
        env = by_variables(upstream, port, LOG__FILE=str(tmp_path / "log"))
        running = bare(env, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
        wait_for(lambda: running.process.poll() is not None or listening(port), 20, "for the port")
        for _ in range(50):
            assert post(port, "/v1/chat/completions", CHAT).status == 200
        assert running.stop() == 0
        assert (tmp_path / "log").read_bytes() == b""


# --- systemd ---------------------------------------------------------------------------------------------------------

#: Puts itself in the place of systemd's child: the variables name this very process, which becomes the daemon.
AS_SERVICE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "proxy", "serve", *sys.argv[1:]])
"""


def test_systemd_opens_the_sockets_and_is_told(tmp_path: Path) -> None:
    """Type=notify with two sockets by descriptor: both are served, the configured port is not bound; READY, RELOADING, READY
    and STOPPING are told; the sockets are systemd's, so the unix one's file stays."""
    path = tmp_path / "notify"
    unix_path = tmp_path / "activated"
    with (
        Upstream(answer(body=b"{}")) as upstream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        systemd.bind(str(path))
        systemd.settimeout(20)
        unix.bind(str(unix_path))
        unix.listen()
        port, other = tcp.getsockname()[1], free_port()
        configuration = tmp_path / "config.toml"
        configuration.touch(mode=0o600)
        configuration.write_text(config(upstream, f"[server]\nport = {other}\n"))
        given = [tcp.fileno(), unix.fileno()]

        def place() -> None:
            # Out of the way first: one of them may stand where the other has to go.
            copies = [os.dup(descriptor) for descriptor in given]
            high = [os.dup2(copy, 100 + number) for number, copy in enumerate(copies)]
            for number, descriptor in enumerate(high):
                os.dup2(descriptor, 3 + number, inheritable=True)

        env = {"KEY": KEY, "NOTIFY_SOCKET": str(path), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:local"}
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SERVICE, "--config", str(configuration)],
            env=clean_environment(tmp_path, env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=place,
            close_fds=False,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            assert post(port, "/v1/chat/completions", CHAT).status == 200
            head = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert by_socket(unix_path, head).startswith(b"HTTP/1.1 200")
            assert not listening(other)
            process.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.recv(100))
            assert systemd.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            output, _ = process.communicate(timeout=15)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        assert process.returncode == 0, output
        assert leaks(output, [KEY]) == []
        assert unix_path.exists()


def test_descriptors_meant_for_another_process_are_left_alone(daemon: StartDaemon) -> None:
    """LISTEN_FDS with somebody else's LISTEN_PID says nothing to us: the configured port is bound."""
    running = daemon("", env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    assert ask(running.port, "GET", "/healthz").status == 200


# --- few descriptors -------------------------------------------------------------------------------------------------


def test_with_256_descriptors_idle_connections_cannot_shut_others_out(
    bare: Callable[..., Bare],
) -> None:
    """Soft limit 64, hard limit 256, 600 connections that say nothing or ask for the health alone: they give way to whoever
    comes, a connection that has passed the gate is kept, and the log says what was fitted."""
    import resource

    with Upstream(answer(body=b"{}")) as upstream:
        port = free_port()
        env = by_variables(upstream, port)
        running = bare(env, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256)))
        wait_for(lambda: running.process.poll() is not None or listening(port), 20, "for the port")
        wait_for(lambda: "max_concurrent is 96 instead of 1000" in running.output())
        with contextlib.ExitStack() as idle, RawClient(port) as known:
            known.post_json("/v1/chat/completions", CHAT)
            assert known.response().status == 200
            for number in range(600):
                client = idle.enter_context(RawClient(port))
                if number % 2:
                    client.request("GET", "/healthz")
                    assert client.response().status == 200
            assert ask(port, "GET", "/healthz").status == 200
            assert post(port, "/v1/chat/completions", CHAT).status == 200
            known.post_json("/v1/chat/completions", CHAT)
            assert known.response().status == 200
        assert running.process.poll() is None
        assert running.stop() == 0
