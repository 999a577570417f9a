"""The ledger under hostile circumstances: never in the way of a request, and nothing in it that must not be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest
from ledgers import Load, recorded, rows_of, wait_for_output, wait_until_recorded
from security_stand import (
    CHAT,
    CLOSE_SSE_HEAD,
    DELTA,
    DONE,
    FULL,
    LAVA_KEY,
    PROVIDER_KEY,
    SECRETS,
    SSE_HEAD,
    STREAM,
    TOKEN,
    Client,
    Stand,
    answers,
    case,
    error_body,
    event,
    opened,
    says,
    until,
)
from upstream import Peer, Received, Upstream, answer, serve

from proxy.ledger.columns import State
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from pathlib import Path

    from daemons import Daemon

#: Patches the daemon's Python where its clock or its disk is to be another; found by the interpreter at its start.
_CLOCK = """
import os, time
_true, _file = time.time, os.environ["TEST_CLOCK"]
def _time():
    try:
        with open(_file) as file:
            return _true() + float(file.read() or 0)
    except OSError:
        return _true()
time.time = _time
"""
_SLOW = """
import os, sqlite3, time
_connect, _blocked = sqlite3.connect, os.environ["TEST_BLOCKED"]
class Slow(sqlite3.Connection):
    def commit(self):
        time.sleep(0.1)
        while os.path.exists(_blocked):
            time.sleep(0.01)
        super().commit()
sqlite3.connect = lambda *a, **k: _connect(*a, factory=Slow, **k)
"""
_SMALL = """
import proxy.ledger.outbox, proxy.ledger.writer
proxy.ledger.outbox.COMMIT_SECONDS = 1.0
proxy.ledger.writer.MAX_QUEUE = 300
"""
_FAILING = """
import os, sqlite3
_connect, _how = sqlite3.connect, os.environ["TEST_HOW"]
class Failing(sqlite3.Connection):
    def commit(self):
        try:
            with open(_how) as file:
                how = file.read()
        except OSError:
            return super().commit()
        os.unlink(_how)
        if how == "after":
            super().commit()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error
sqlite3.connect = lambda *a, **k: _connect(*a, factory=Failing, **k)
"""
REPORTS = """
import proxy.gateway.template as template
_init = template.Prepared.__init__
def _reports(self, *arguments, **options):
    _init(self, *arguments, **options)
    self.report_usage = True
template.Prepared.__init__ = _reports
"""
#: In billing mode: all requests are reported. (Providers that need it come later.)


def patched(stand: Stand, code: str, **env: str) -> dict[str, str]:
    """The environment of a daemon whose Python runs ``code`` first."""
    folder = stand.folder / f"patch-{stand.nonce()}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    from daemons import clean_environment

    path = clean_environment(folder)["PYTHONPATH"]
    return {"PYTHONPATH": f"{folder}{os.pathsep}{path}", **env}


def quick() -> Upstream:
    """An upstream that answers every request."""
    return Upstream(serve(answer(200, b'{"object": "chat.completion", "model": "m", "usage": {}}')))


@case("LIF-08")
def test_second_start(stand: Stand) -> None:
    first = stand.start()
    path = f'[ledger]\npath = "{first.ledger}"\n'
    second = stand.start(path, ready=False)
    assert second.process.wait(15) == 75
    assert f"already running pid {first.process.pid}" in second.output()
    stand.start()  # another ledger, another port
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert first.ledger.with_name("ledger.sqlite.lock").exists()
    third = stand.start(path)  # the lock file is stale
    stand.post("/v1/chat/completions", at=third)
    until(lambda: len(recorded(first.ledger)) == 1)


@case("LIF-11")
def test_killed_in_a_stream(stand: Stand) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SSE_HEAD, event(b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":5}}\n\n'))
        opened(go, 30)

    with Upstream(script) as upstream:
        running = stand.start(upstream=upstream)
        with Client(running.port, None) as client:
            client.post_json("/v1/chat/completions", STREAM)
            assert client.head().status == 200
            until(lambda: State.OPEN in recorded(running.ledger).values(), 20, "for the row of the stream")
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
            go.set()
    again = stand.start(f'[ledger]\npath = "{running.ledger}"\n')
    wait_for_output(again, "1 request did not end before the daemon did")
    row = "SELECT r.state, n.text, r.status, r.output, r.input FROM requests r JOIN names n ON n.id = r.outcome"
    assert rows_of(running.ledger, row) == [(State.INTERRUPTED, "interrupted", 200, None, None)]
    assert rows_of(running.ledger, "SELECT sent, billed, estimated FROM attempts") == [(1, None, None)]


@case("LIF-13")
def test_place_that_cannot_be_written(stand: Stand) -> None:
    blocked = stand.folder / f"no-folder-{stand.nonce()}"
    blocked.write_bytes(b"")
    with quick() as upstream:
        running = stand.start(f'[ledger]\npath = "{blocked}/ledger.sqlite"\n', upstream=upstream)
        assert stand.post("/v1/chat/completions", at=running).status == 200
        wait_for_output(running, "requests are not recorded")
        assert stand.ask("GET", "/readyz", at=running).status == 200
        # A folder that becomes one later: reported, tried again.
        later = stand.start(upstream=upstream)
        stand.post("/v1/chat/completions", at=later)
        until(lambda: len(recorded(later.ledger)) == 1)
        aside = later.ledger.parent.with_name("aside")
        later.ledger.parent.rename(aside)
        later.ledger.parent.write_bytes(b"")
        wait_for_output(later, "The ledger cannot be written")
        assert stand.post("/v1/chat/completions", at=later).status == 200
        later.ledger.parent.unlink()
        aside.rename(later.ledger.parent)
        until(lambda: len(recorded(later.ledger)) == 2)
        billing = stand.start(
            f'[ledger]\npath = "{blocked}/ledger.sqlite"\n', upstream=upstream, env=patched(stand, REPORTS)
        )
        assert stand.post("/v1/chat/completions", at=billing).code == "ledger_unavailable"
        # An fsync that fails: whether the batch is stored is not known. It is stored once.
        how = stand.folder / f"how-{stand.nonce()}"
        failing = stand.start(upstream=upstream, env=patched(stand, _FAILING, TEST_HOW=str(how)))
        for number, what in enumerate(("before", "after"), 1):
            stand.post("/v1/chat/completions", at=failing)
            until(lambda number=number: len(recorded(failing.ledger)) == 2 * number - 1)  # type: ignore[misc]
            how.with_suffix(".new").write_text(what)
            how.with_suffix(".new").rename(how)
            stand.post("/v1/chat/completions", at=failing)
            until(lambda number=number: len(recorded(failing.ledger)) == 2 * number)  # type: ignore[misc]
            wait_for_output(failing, "disk I/O error")
        until(lambda: failing.output().count("The ledger is written again") == 2)
        assert rows_of(failing.ledger, "SELECT sum(requests) FROM rollups") == [(4,)]


@case("LIF-14")
def test_locked_by_another_program(stand: Stand) -> None:
    with quick() as upstream:
        running = stand.start(upstream=upstream)
        load = Load(running, 2, 0.005)
        load.wait_for(5)
        wait_until_recorded(running.ledger, load.ids)
        with contextlib.closing(sqlite3.connect(running.ledger, isolation_level=None, timeout=20)) as other:
            other.execute("BEGIN EXCLUSIVE")
            end = time.monotonic() + (30 if FULL else 3)
            while time.monotonic() < end:
                load.wait_for(5)
            assert stand.ask("GET", "/readyz", at=running).status == 200
            wait_for_output(running, "database is locked")
            other.execute("ROLLBACK")
        ids = load.stop()
        assert load.statuses == {200}
        wait_until_recorded(running.ledger, ids)
        assert running.output().count("database is locked") == 1
        billing = stand.start(upstream=upstream, env=patched(stand, REPORTS))
        until(lambda: stand.post("/v1/chat/completions", at=billing).status == 200)
        with contextlib.closing(sqlite3.connect(billing.ledger, isolation_level=None, timeout=20)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert stand.post("/v1/chat/completions", at=billing).code == "ledger_unavailable"
            other.execute("ROLLBACK")
        until(lambda: stand.post("/v1/chat/completions", at=billing).status == 200)


@case("LIF-17")
def test_clock_jumps(stand: Stand) -> None:
    clock = stand.folder / f"clock-{stand.nonce()}"
    env = patched(stand, _CLOCK, TEST_CLOCK=str(clock))
    day = 86_400
    with quick() as upstream:
        running = stand.start('[ledger]\nkeep = "10y"\n', upstream=upstream, env=env)
        for number, offset in enumerate((0, day, -day, 15 * 365 * day), 1):  # the last is after 2038
            clock.with_suffix(".new").write_text(str(offset))
            clock.with_suffix(".new").replace(clock)
            assert stand.post("/v1/chat/completions", at=running).status == 200
            until(lambda number=number: len(recorded(running.ledger)) == number)  # type: ignore[misc]
    found = rows_of(running.ledger, "SELECT seq, received_us / 1000000, duration_us FROM requests ORDER BY seq")
    assert [seq for seq, _, _ in found] == [1, 2, 3, 4]
    days = [round((received - found[0][1]) / day) for _, received, _ in found]
    assert days == [0, 1, -1, 15 * 365]
    assert all(0 <= duration < 60_000_000 for _, _, duration in found)


@case("LOD-08")
@pytest.mark.full
def test_slow_writer(stand: Stand) -> None:
    blocked = stand.folder / f"blocked-{stand.nonce()}"
    slow = patched(stand, _SLOW, TEST_BLOCKED=str(blocked))
    with quick() as upstream:
        running = stand.start(upstream=upstream, env=slow)
        load = Load(running, 4)
        load.wait_for(500)
        ids = load.stop()
        assert load.statuses == {200}
        wait_until_recorded(running.ledger, ids)
        metrics = stand.ask("GET", "/metrics", at=running).body.decode()
        assert "lava_proxy_ledger_dropped_total 0.0" in metrics
        assert "lava_proxy_outbox_dead_letters 0.0" in metrics
        assert f"lava_proxy_ledger_written_total {float(len(ids))}" in metrics
        assert "lava_proxy_ledger_queue 0.0" in metrics
        # A commit that does not end: served as before, streams too; as many wait as may, the others are counted.
        small = stand.start(upstream=upstream, env=patched(stand, _SLOW + _SMALL, TEST_BLOCKED=str(blocked)))
        stand.post("/v1/chat/completions", at=small)
        until(lambda: len(recorded(small.ledger)) == 1)
        blocked.touch()
        load = Load(small, 4)
        load.wait_for(900)
        with stand.playing(says(CLOSE_SSE_HEAD + 20 * DELTA + DONE)):
            assert stand.post("/v1/chat/completions", STREAM, at=stand.start(env=slow)).body.endswith(DONE)
        ids = load.stop()
        assert load.statuses == {200}
        waiting, dropped = numbers(stand, small)
        assert 300 <= waiting <= 300 + 300  # the queue, and the batch at hand
        assert waiting + dropped == len(ids)
        blocked.unlink()
        until(lambda: len(recorded(small.ledger)) == 1 + waiting)
        # What cannot be billed is refused, and served again.
        billing = stand.start(
            upstream=upstream, env=patched(stand, _SLOW + _SMALL + REPORTS, TEST_BLOCKED=str(blocked))
        )
        until(lambda: stand.post("/v1/chat/completions", at=billing).status == 200)
        blocked.touch()
        assert stand.post("/v1/chat/completions", at=billing).code == "ledger_unavailable"
        blocked.unlink()
        until(lambda: stand.post("/v1/chat/completions", at=billing).status == 200)


def numbers(stand: Stand, running: Daemon) -> tuple[int, int]:
    """How many requests wait to be recorded, and how many were dropped."""
    metrics = stand.ask("GET", "/metrics", at=running).body.decode()
    queue, dropped = (
        float(line.rpartition(" ")[2])
        for name in ("lava_proxy_ledger_queue ", "lava_proxy_ledger_dropped_total ")
        for line in metrics.splitlines()
        if line.startswith(name)
    )
    return int(queue), int(dropped)


def contents(folder: Path) -> bytes:
    """Every byte of every file in ``folder``."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@case("SEC-09")
def test_files_hold_no_secret(stand: Stand) -> None:
    config = '[projects.billed]\ncustomer_id = "conn_demo"\nmeter = "demo"\n[ledger]\nsessions = "plain"\n'
    running: Daemon = stand.start(config, umask=0, env=patched(stand, REPORTS))
    prompt = f"prompt-{stand.nonce()}"
    chat = {**CHAT, "messages": [{"role": "user", "content": prompt}]}
    headers = [("Content-Type", "application/json"), ("Authorization", f"Bearer {PROVIDER_KEY}")]
    odd = [("X-Session-Id", LAVA_KEY), ("X-Agent-Id", TOKEN), ("User-Agent", f"{LAVA_KEY}/1")]
    reply = json.dumps(
        {"object": "chat.completion", "model": LAVA_KEY, "usage": {TOKEN[:60]: 1, "prompt_tokens": 3}, "id": LAVA_KEY}
    ).encode()
    lava = [(b"Content-Type", b"application/json"), (b"X-Lava-Request-Id", LAVA_KEY.encode())]

    def play(peer: Peer, received: Received) -> None:
        peer.body(received)
        if received.target.startswith(b"/v1/requests"):  # refused, with the secrets that it quotes
            peer.send(answer(422, error_body(f"{LAVA_KEY} {TOKEN}", "422"), lava))
        else:
            peer.send(answer(200, reply, lava))

    with stand.playing(play):
        for body in (chat, {**chat, "model": LAVA_KEY}, {**chat, "model": f"openai/{TOKEN[:150]}"}):
            stand.ask(
                "POST", f"/v1/chat/completions?key={LAVA_KEY}", json.dumps(body).encode(), headers + odd, at=running
            )
        refused = "SELECT count(*) FROM outbox WHERE problem LIKE 'Lava answered 422%'"
        until(lambda: rows_of(running.ledger, refused) == [(3,)], 20, "for the outbox")
    with stand.playing(answers(401, TOKEN.encode())):
        stand.ask("POST", "/v1/chat/completions", json.dumps(chat).encode(), headers, at=running)
    stand.tape.clear()  # the answers above quote what was sent
    folder = running.ledger.parent
    until(lambda: len(recorded(running.ledger)) == 4)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock"), 0o600
    )
    hidden = (*SECRETS, TOKEN)
    assert not leaks(contents(folder), hidden)
    assert prompt.encode() not in contents(folder)
    running.stop()
    assert not leaks(contents(folder), hidden)
    # The control: what is looked for would be found.
    assert leaks(contents(folder) + LAVA_KEY.encode(), hidden)
