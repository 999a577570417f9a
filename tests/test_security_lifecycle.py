"""How a daemon starts, changes and ends while clients are connected."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from daemons import run_command
from ports import free_port
from security_stand import (
    CHAT,
    DELTA,
    DONE,
    LAVA_KEY,
    OTHER_LAVA_KEY,
    SECRETS,
    SSE_HEAD,
    STREAM,
    Client,
    Stand,
    case,
    ends,
    event,
    head,
    log_lines,
    opened,
    sound,
    until,
)
from upstream import Peer, Upstream

from proxy.lava.tokens import mint_token
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from daemons import Daemon


STREAMS = 100 if os.environ.get("SECURITY_FULL_SIZE") else 25


def held(go: threading.Event, streaming: bool = True) -> Upstream:
    """An upstream whose streams say one event and end when told."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if b'"stream": true' not in received.body:
                if not streaming:
                    peer.gone()
                    return
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            peer.send(SSE_HEAD, event(DELTA))
            opened(go, 30)
            peer.send(event(DONE), b"0\r\n\r\n")

    return Upstream(script)


def open_streams(running: Daemon, count: int, stack: contextlib.ExitStack) -> list[Client]:
    """So many streams that have said their first event."""
    clients = [stack.enter_context(Client(running.port, None)) for _ in range(count)]
    for client in clients:
        client.post_json("/v1/chat/completions", STREAM)
    for client in clients:
        assert client.head().status == 200
        assert client.chunk() == DELTA
    return clients


def listening(running: Daemon) -> bool:
    try:
        socket.create_connection(("127.0.0.1", running.port), 2).close()
    except OSError:
        return False
    return True


@case("LIF-01")
def test_drain(stand: Stand) -> None:
    go = threading.Event()
    with held(go) as upstream, contextlib.ExitStack() as stack:
        running = stand.start("[server]\ndrain_seconds = 60.0\n", upstream=upstream)
        clients = open_streams(running, STREAMS, stack)
        idle = stack.enter_context(Client(running.port, None))
        idle.request("GET", "/readyz")
        assert idle.response().status == 200
        running.process.send_signal(signal.SIGTERM)
        until(lambda: not listening(running), 5, "for the listener to close")
        # A kept connection learns it too: closed, or told 503.
        with contextlib.suppress(ConnectionError):
            idle.request("GET", "/readyz")
            response = idle.response()
            assert response.status == 503
            assert "draining" in response.json()["reason"]
        time.sleep(0.3)
        assert running.process.poll() is None
        go.set()
        for client in clients:
            assert client.chunk() == DONE
            assert client.line() == b"0"
        assert running.process.wait(10) == 0
    lines = [json.loads(line) for line in log_lines(running) if '"event":"request"' in line.replace(" ", "")]
    assert [line["outcome"] for line in lines if line["path"] != "/readyz"] == ["ok"] * STREAMS


@case("LIF-02")
def test_drain_deadline(stand: Stand) -> None:
    never = threading.Event()
    with held(never, streaming=False) as upstream, contextlib.ExitStack() as stack:
        running = stand.start("[server]\ndrain_seconds = 1.0\n", upstream=upstream)
        clients = open_streams(running, STREAMS, stack)
        waiting = stack.enter_context(Client(running.port, None))
        waiting.post_json("/v1/chat/completions", CHAT)
        upstream.wait(lambda: len(upstream.requests) == STREAMS + 1)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        for client in clients:
            told = client.chunk()
            assert json.loads(told.removeprefix(b"data: "))["error"]["lava_proxy"]["code"] == "shutting_down"
            assert client.closed(5)
        refused = waiting.response()
        assert (refused.status, refused.code) == (503, "shutting_down")
        assert refused.header("x-should-retry") == "true"
        assert refused.header("retry-after") is not None
        assert running.process.wait(5) == 0
        assert time.monotonic() - begun < 1.0 + 2.0 + 1.0
        outcomes = [json.loads(line).get("outcome") for line in log_lines(running)]
        assert outcomes.count("shutdown") == STREAMS + 1
        never.set()


@case("LIF-03")
def test_slow_body_at_the_end(stand: Stand) -> None:
    running = stand.start("[server]\ndrain_seconds = 1.0\n")
    with stand.client(running) as client, stand.client(running) as half, stand.client(running) as silent:
        client.send(head(client.port, "POST /openai/v1/files HTTP/1.1", "Content-Length: 1000") + b"x")
        half.send(b"POST /openai/v1/files HTTP/1.1\r\nHost:")
        assert stand.ask("GET", "/healthz", at=running).status == 200
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert time.monotonic() - begun < 4.0
        assert silent.closed(5)


@case("LIF-04")
def test_second_signal(stand: Stand) -> None:
    never = threading.Event()
    for first, second in (
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ):
        with held(never) as upstream, contextlib.ExitStack() as stack:
            running = stand.start("[server]\ndrain_seconds = 60.0\n", upstream=upstream)
            (client,) = open_streams(running, 1, stack)
            running.process.send_signal(first)
            until(lambda running=running: not listening(running), 5)  # type: ignore[misc]
            assert running.process.poll() is None
            begun = time.monotonic()
            running.process.send_signal(second)
            assert running.process.wait(5) == 1
            assert time.monotonic() - begun < 3.0
            assert DONE not in client.rest()
            never.set()
        never.clear()


BAD_CONFIGS = {
    "syntax": ("[server\n", "config.toml"),
    "unknown field": ("[server]\nprot = 1\n", "prot"),
    "wrong type": ('[server]\nmax_concurrent = "many"\n', "max_concurrent"),
    "missing secret file": ('[projects.x]\nsecret_key = "file:/nonexistent/secret"\n', "/nonexistent/secret"),
    "missing variable": ('[projects.x]\nsecret_key = "env:NO_SUCH_VARIABLE"\n', "NO_SUCH_VARIABLE"),
    "contradiction": ('[projects.x]\nconnection_id = "conn_1"\n', "meter"),
}


def failures(stand: Stand, running: Daemon) -> float:
    text = stand.ask("GET", "/metrics", at=running).body.decode()
    return float(
        next(line for line in text.splitlines() if line.startswith("lava_proxy_config_reload_failures_total")).split()[
            1
        ]
    )


@case("LIF-05")
def test_bad_reload(stand: Stand) -> None:
    go = threading.Event()
    with held(go) as upstream, contextlib.ExitStack() as stack:
        running = stand.start(upstream=upstream)
        (client,) = open_streams(running, 1, stack)
        good = running.config.read_text()
        for name, (text, said) in BAD_CONFIGS.items():
            before, failed = len(running.output()), failures(stand, running)

            def told(before: int = before, said: str = said) -> list[str]:
                lines = [
                    json.loads(line)
                    for line in running.output()[before:].splitlines(keepends=True)
                    if line.endswith("\n")
                ]
                return [line["event"] for line in lines if line["level"] == "error" and said in line["event"]]

            running.config.write_text(f"{good}\n{text}" if name != "syntax" else text)
            running.process.send_signal(signal.SIGHUP)
            until(told, 10, f"for the failed reload ({name})")
            assert stand.post("/v1/chat/completions", at=running).status == 200
            sound(upstream.requests[-1])
            running.config.write_text(good)
            running.process.send_signal(signal.SIGHUP)
            until(lambda before=before: "configuration reloaded" in running.output()[before:], 10)  # type: ignore[misc]
            # One line for each failure; the daemon's own look at the file may have come between.
            assert len(told()) == failures(stand, running) - failed, name
            assert all("the old one stays" in each for each in told())
        go.set()
        assert client.chunk() == DONE
        assert client.line() == b"0"
        assert running.stop() == 0


@case("LIF-06")
def test_good_reload(stand: Stand) -> None:
    go = threading.Event()
    with held(go) as upstream, contextlib.ExitStack() as stack:
        running = stand.start(upstream=upstream)
        clients = open_streams(running, STREAMS, stack)
        for received in upstream.requests:
            sound(received)
        running.config.write_text(
            f'{running.config.read_text()}\n[projects.new]\nsecret_key = "{OTHER_LAVA_KEY}"\nmeter = "m"\n'
        )
        running.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in running.output())
        assert stand.post("/v1/chat/completions", at=running).status == 200
        sound(upstream.requests[-1], b"Bearer " + mint_token(OTHER_LAVA_KEY, meter_slug="m").encode())
        go.set()
        for client in clients:
            assert client.chunk() == DONE
            assert client.line() == b"0"
        assert running.stop() == 0
        assert running.output().count('"outcome":"ok"') + running.output().count('"outcome": "ok"') == STREAMS + 1


@case("LIF-07")
def test_port_in_use(stand: Stand) -> None:
    running = stand.daemon()
    folder = stand.folder / "port-in-use"
    folder.mkdir()
    begun = time.monotonic()
    done = _serve(folder, '[lava]\nsecret_key = "env:KEY"\n', port=running.port)
    assert time.monotonic() - begun < 5.0  # the promise is one second on an idle machine
    assert done.returncode == 75
    assert str(running.port) in done.stderr + done.stdout
    assert str(running.process.pid) in done.stderr + done.stdout or "lava-proxy" in done.stderr + done.stdout
    assert sorted(path.name for path in folder.rglob("*")) == ["config.toml"]
    assert stand.ask("GET", "/healthz").status == 200


def _serve(
    folder: Path, config: str | None, *, port: int = 0, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``serve`` on a configuration with which it must end by itself."""
    if config is not None:
        path = folder / "config.toml"
        path.touch(mode=0o600)
        path.write_text(config)
    words = ["serve", "--config", str(path), "--port", str(port or free_port())]
    done = run_command(words, home=folder, env={"KEY": LAVA_KEY}, timeout=30)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@case("LIF-24")
def test_odd_files(stand: Stand) -> None:
    folder = stand.folder / "odd-files"
    folder.mkdir()
    literal = f'[lava]\nsecret_key = "{LAVA_KEY}"\n'
    config = folder / "config.toml"

    def refused(what: str, *wanted: str, path: Path = config) -> None:
        done = _serve(folder, None, path=path)
        said = done.stdout + done.stderr
        assert done.returncode == 78, (what, done.returncode, said)
        assert str(path) in said, what
        for each in wanted:
            assert each in said, (what, said)
        assert not leaks(said, SECRETS), what
        assert "Traceback" not in said

    config.touch(mode=0o600)
    config.write_text(literal)
    for mode in (0o644, 0o640, 0o604):
        config.chmod(mode)
        refused(f"mode {mode:o}", f"{mode:04o}")
    config.chmod(0o600)
    link = folder / "link.toml"
    link.symlink_to(config)
    config.chmod(0o644)
    refused("a link to an open file", path=link)
    config.unlink()
    refused("a link into nothing", path=link)
    os.mkfifo(folder / "fifo.toml")
    refused("a FIFO", path=folder / "fifo.toml")
    (folder / "folder.toml").mkdir()
    refused("a directory", path=folder / "folder.toml")
    config.touch(mode=0o600)
    config.write_text(literal + "# " + "x" * (10 << 20))
    refused("10 MB")
    config.write_bytes(literal.encode() + b"# \x00\n")
    refused("NUL")
    config.write_bytes(literal.encode() + b'x = "\xff\xfe"\n')
    refused("no UTF-8")
    refused("a device", path=Path("/dev/zero"))
    # Secrets from files: one line end goes, all else that is odd is told without the value.
    secret = folder / "secret"
    config.write_text(f'[lava]\nsecret_key = "file:{secret}"\n')
    for content, what in (
        (b"", "empty"),
        (b"\n", "a line end alone"),
        (b"a\x00b" + LAVA_KEY.encode(), "NUL"),
        (b"x" * (10 << 20), "10 MB"),
    ):
        secret.touch(mode=0o600)
        secret.write_bytes(content)
        refused(f"a secret file: {what}", str(secret))
    secret.unlink()
    os.mkfifo(secret)
    refused("a secret FIFO", str(secret))
    secret.unlink()
    secret.mkdir()
    refused("a secret directory", str(secret))
    secret.rmdir()
    for ending in (b"\n", b"\r\n", b""):
        secret.write_bytes(LAVA_KEY.encode() + ending)
        secret.chmod(0o444)  # as Docker mounts secrets: a warning
        running = stand.start(f'[projects.x]\nsecret_key = "file:{secret}"\n')
        assert stand.post("/v1/chat/completions", at=running).status == 200
        sound(stand.last)
        until(lambda running=running: "0444" in running.output(), 5, "for the warning")  # type: ignore[misc]
        assert running.stop() == 0
        secret.unlink()


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_reloads_without_end(stand: Stand) -> None:
    """A storm of signals, good and bad files in turns, while requests run: none fails, and the last good one holds."""
    running = stand.start()
    good = running.config.read_text()
    over = threading.Event()

    def ask() -> int:
        count = 0
        while not over.is_set():
            assert stand.post("/v1/chat/completions", at=running).status == 200
            count += 1
        return count

    def swap(text: str) -> None:
        # In one step, as editors do: a file that is truncated and not yet written is a sound one without a key.
        fresh = running.config.with_name("fresh.toml")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.replace(running.config)

    asking = [stand.pool.submit(ask) for _ in range(3)]
    for number in range(40):
        swap(good if number % 2 else good + "\nnonsense")
        running.process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    swap(good)
    over.set()
    assert all(each.result(20) > 0 for each in asking)
    assert running.stop() == 0


def test_removed_keys_are_dead(stand: Stand) -> None:
    """A local key that a reload removed opens nothing more, on kept connections neither; a stream begun with it goes on."""
    go = threading.Event()
    with held(go) as upstream, contextlib.ExitStack() as stack:
        old, new = "old-local-key-1234567890", "new-local-key-1234567890"
        running = stand.start(f'[server]\nkeys = ["{old}"]\n', upstream=upstream)
        client = stack.enter_context(Client(running.port, None))
        kept = stack.enter_context(Client(running.port, None))
        client.post_json("/v1/chat/completions", STREAM, {"Authorization": f"Bearer {old}"})
        assert client.head().status == 200
        kept.post_json("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {old}"})
        assert kept.response().status == 200
        running.config.write_text(running.config.read_text().replace(old, new))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in running.output())
        kept.post_json("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {old}"})
        assert kept.response().code == "local_key_invalid"
        assert stand.post("/v1/chat/completions", headers={"Authorization": f"Bearer {new}"}, at=running).status == 200
        go.set()
        assert client.chunk() == DELTA
        assert client.chunk() == DONE
        assert running.stop() == 0
        assert old not in running.output()


def test_other_bad_starts(stand: Stand) -> None:
    """A daemon that cannot start says so in words, with the right code, and leaves nothing behind."""
    for config, code in (
        ('[server]\nhost = "203.0.113.7"\nkeys = ["env:LOCAL_KEY"]\n', 78),
        ('[server]\nhost = "no-such-host.invalid"\nkeys = ["env:LOCAL_KEY"]\n', 78),
        ("[server]\nmax_concurrent = 0\n", 78),
        ('[server]\nkeys = ["short"]\n', 78),
        ('[server]\nkeys = ["env:LOCAL_KEY", "env:LOCAL_KEY"]\n', 78),
        ('[upstream]\nca_file = "/nonexistent.pem"\n', 78),
        ("[upstream]\nidle = -1.0\n", 78),
        ('[server]\nunix_socket = "/nonexistent/folder/sock"\n', 78),
    ):
        got, said = ends(stand, config)
        assert got == code, (config, got, said)
        assert "Traceback" not in said
        assert said.strip()
    # A path that ends in the socket of a living daemon is not taken away from it.
    path = stand.folder / "taken.sock"
    first = stand.start(f'[server]\nunix_socket = "{path}"\n')
    got, said = ends(stand, f'[server]\nunix_socket = "{path}"\n')
    assert got == 75, said
    assert path.exists()
    assert first.stop() == 0
