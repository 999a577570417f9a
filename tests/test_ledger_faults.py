"""Faults of the ledger's database under a real daemon: requests are served as before, and what can be kept is kept."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import psutil
import pytest
from daemons import clean_environment
from ledgers import ANSWER, Load, Place, record, recorded, rows_of, wait_for_output, wait_until_recorded
from upstream import Peer, Upstream, answer, serve

from proxy.ledger.columns import ROLLUP_KEY, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemons import Daemon, StartDaemon
    from postgres import Server

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and resource limits")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prlimit and tmpfs")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Answers every request."""
    with Upstream(serve(answer(200, ANSWER, [(b"content-type", b"application/json")]))) as running:
        yield running


def config(upstream: Upstream, ledger: str = "") -> str:
    return f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[log]\nformat = "json"\n[ledger]\n{ledger}\n'


ENV = {"KEY": "aks_live_" + "x1" * 12}


def unharmed(load: Load, daemon: Daemon) -> None:
    """More requests are answered, all with 200, and the daemon is ready."""
    load.wait_for(20)
    assert load.statuses == {200}
    assert daemon.get("/readyz") == 200


@LINUX
def test_a_disk_that_takes_no_more(daemon: StartDaemon, upstream: Upstream) -> None:
    """Writes fail (as with EIO), then work again: nothing is lost, and the database is sound."""
    running = daemon(config(upstream), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(200)
    wait_until_recorded(running.ledger, load.ids)
    size = running.ledger.with_name("ledger.sqlite-wal").stat().st_size
    process = psutil.Process(running.process.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (size, resource_maximum()))
    wait_for_output(running, "The ledger cannot be written")
    unharmed(load, running)
    process.rlimit(psutil.RLIMIT_FSIZE, (resource_maximum(), resource_maximum()))
    wait_for_output(running, "The ledger is written again")
    wait_until_recorded(running.ledger, load.stop())
    assert rows_of(running.ledger, "PRAGMA quick_check") == [("ok",)]


def resource_maximum() -> int:
    return psutil.RLIM_INFINITY


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own, of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(place)], check=True, timeout=10)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


@pytest.mark.full
@LINUX
def test_a_full_disk(daemon: StartDaemon, upstream: Upstream, small_disk: Path) -> None:
    """It is filled under load, and then emptied."""
    ledger = small_disk / "ledger.sqlite"
    running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(50)
    wait_until_recorded(ledger, load.ids)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    wait_for_output(running, "The ledger cannot be written")
    unharmed(load, running)
    (small_disk / "filler").unlink()
    wait_until_recorded(ledger, load.stop())
    assert rows_of(ledger, "PRAGMA quick_check") == [("ok",)]
    running.stop()


@pytest.mark.full
@pytest.mark.timeout(180)
def test_what_is_lost_is_counted(daemon: StartDaemon, upstream: Upstream) -> None:
    """The database is locked for longer than the queue lasts: each request is recorded or counted as dropped, and the log says so."""
    running = daemon(config(upstream), env=ENV)
    load = Load(running, 4)
    load.wait_for(5)
    wait_until_recorded(running.ledger, load.ids)
    with contextlib.closing(sqlite3.connect(running.ledger, isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN EXCLUSIVE")
        while metric(running, "lava_proxy_ledger_dropped_total") < 50:
            load.wait_for(100)
        other.execute("ROLLBACK")
    wait_for_output(running, "The ledger is written again")
    made = len(load.stop())
    assert load.statuses == {200}
    deadline = monotonic() + 30
    while metric(running, "lava_proxy_ledger_queue"):
        assert monotonic() < deadline
        sleep(0.05)
    dropped = metric(running, "lava_proxy_ledger_dropped_total")
    assert len(recorded(running.ledger)) == metric(running, "lava_proxy_ledger_written_total") == made - dropped
    assert re.search(r"[\d,]+ requests were not recorded since the start", running.output())


def metric(daemon: Daemon, name: str) -> int:
    """A value of the daemon's own metrics."""
    with urlopen(f"{daemon.url}/metrics", timeout=20) as response:
        [line] = [line for line in response.read().decode().splitlines() if line.startswith(f"{name} ")]
    return int(float(line.split()[1]))


@pytest.mark.full
@LINUX
def test_a_read_only_disk(daemon: StartDaemon, upstream: Upstream, small_disk: Path) -> None:
    """Requests are served without a ledger, and the log says why; what was recorded before stays."""
    ledger = small_disk / "ledger.sqlite"
    first = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
    load = Load(first, 1)
    load.wait_for(5)
    before = load.stop()
    wait_until_recorded(ledger, before)
    first.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=10)
    second = daemon(config(upstream, f'path = "{ledger}"'), env=ENV, ready="/readyz")
    wait_for_output(second, "requests are not recorded")
    assert "Read-only file system" in second.output()
    load = Load(second, 1)
    unharmed(load, second)
    load.stop()
    second.stop()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True, timeout=10)
    assert set(recorded(ledger)) == before


@pytest.mark.full
def test_a_file_that_is_damaged_under_load(daemon: StartDaemon, upstream: Upstream) -> None:
    """It is set aside, and a new one is begun; no request notices."""
    running = daemon(config(upstream), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(200)
    wait_until_recorded(running.ledger, load.ids)
    # So that the pages are in the file, not in the log.
    with contextlib.closing(sqlite3.connect(running.ledger)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    os.truncate(running.ledger, 4096)
    wait_for_output(running, "is damaged")
    unharmed(load, running)
    later = load.ids
    load.wait_for(50)
    wait_until_recorded(running.ledger, load.stop() - later)
    assert [path for path in running.ledger.parent.iterdir() if ".damaged-" in path.name]


@pytest.mark.full
def test_a_damaged_file_is_set_aside(daemon: StartDaemon, upstream: Upstream) -> None:
    """It keeps its content under another name, and a new one is begun; the log says so."""
    running = daemon(config(upstream), env=ENV)
    load = Load(running, 2)
    load.wait_for(300)
    first = load.stop()
    wait_until_recorded(running.ledger, first)
    running.stop()
    damaged = bytearray(running.ledger.read_bytes())
    assert len(damaged) > 5 * 4096
    for page in range(2, len(damaged) // 4096):  # all but the schema
        damaged[page * 4096 : page * 4096 + 2048] = b"\xa5" * 2048
    running.ledger.write_bytes(damaged)
    again = daemon(config(upstream, f'path = "{running.ledger}"'), env=ENV)
    load = Load(again, 2)
    load.wait_for(50)
    second = load.stop()
    found = wait_until_recorded(running.ledger, second)
    assert not first & set(found)
    [aside] = [path for path in running.ledger.parent.iterdir() if ".damaged-" in path.name]
    assert aside.read_bytes() == damaged
    assert "is damaged" in again.output()
    assert str(aside) in again.output()


def test_a_file_that_is_no_database_is_set_aside(daemon: StartDaemon, upstream: Upstream, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    ledger.write_bytes(b"not a database\n" * 1000)
    running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
    load = Load(running, 1)
    load.wait_for(5)
    wait_until_recorded(ledger, load.stop())
    assert "is damaged" in running.output()


@pytest.mark.full
def test_a_file_that_is_deleted_under_load(daemon: StartDaemon, upstream: Upstream) -> None:
    """A new one is begun within a second or so; the log says so, once."""
    running = daemon(config(upstream), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(50)
    wait_until_recorded(running.ledger, load.ids)
    for suffix in ("", "-wal", "-shm"):
        running.ledger.with_name(running.ledger.name + suffix).unlink()
    wait_for_output(running, "was removed or replaced while the daemon runs")
    unharmed(load, running)
    later = load.ids
    sleep(0.2)
    load.wait_for(50)
    wait_until_recorded(running.ledger, load.stop() - later)
    assert running.output().count("was removed or replaced") == 1


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def in_order(daemon: StartDaemon, upstream: Upstream, ledger: Path, since_hour: int = 0) -> None:
    """After the next start: the file is sound, nothing is open, and the sums per hour (since then) are those of the rows."""
    running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
    load = Load(running, 1)
    load.wait_for(1)
    wait_until_recorded(ledger, load.stop())
    assert rows_of(ledger, "PRAGMA quick_check") == [("ok",)]
    assert State.OPEN not in recorded(ledger).values()
    sums = "count(*), sum(bytes_in), sum(bytes_out), sum(input), sum(output), sum(streamed)"
    keys = "received_us / 3600000000 AS hour, project, provider, coalesce(served, asked) AS model, coalesce(tool, 0), outcome"
    rolled = "requests, bytes_in, bytes_out, input, output, streamed_requests"
    order = "ORDER BY 1, 2, 3, 4, 5, 6"
    rows = rows_of(
        ledger,
        f"SELECT {keys}, {sums} FROM requests WHERE received_us >= {since_hour * 3_600_000_000} GROUP BY 1, 2, 3, 4, 5, 6 {order}",
    )
    rollups = rows_of(
        ledger, f"SELECT {', '.join(ROLLUP_KEY)}, {rolled} FROM rollups WHERE hour >= {since_hour} {order}"
    )
    assert rollups == [tuple(value or 0 for value in row) for row in rows]
    assert rows_of(ledger, "SELECT count(*) FROM attempts WHERE request NOT IN (SELECT seq FROM requests)") == [(0,)]
    unmarked = f"state = {State.SETTLED} AND seq NOT IN (SELECT request FROM attempts)"
    assert rows_of(ledger, f"SELECT count(*) FROM requests WHERE {unmarked}") == [(0,)]
    running.stop()


@pytest.mark.parametrize(
    "kills",
    [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_kill_under_load(daemon: StartDaemon, upstream: Upstream, tmp_path: Path, kills: int) -> None:
    """At random points: what ended before the last batch is there, and nothing is open and unmarked after the next start."""
    ledger = tmp_path / "ledger.sqlite"
    chance = random.Random()
    ages = []
    asked = 0
    for _ in range(kills):
        running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
        load = Load(running, 4)
        load.wait_for(30)
        wait_until_recorded(ledger, {load.done[0][0]})  # the ledger is opened in the daemon's first second
        sleep(chance.random() * 0.3)
        killed = monotonic()
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        load.stop()
        asked += len(load.done)
        settled = {each for each, state in recorded(ledger).items() if state == State.SETTLED}
        lost = [killed - when for each, when in load.done if each not in settled]
        ages.append(max([*lost, 0.0]))
        assert rows_of(ledger, "PRAGMA quick_check") == [("ok",)]
    late = sum(age > 0.1 for age in ages)
    print(
        f"{kills} kills, {asked} requests: what was lost had ended at most {max(ages) * 1000:.0f} ms before; {late} above 100"
    )
    # 100 ms on an idle machine; this one may be busy.
    assert max(ages) < 1.5
    in_order(daemon, upstream, ledger)


#: Kills the daemon where the writer executes the n-th statement that begins so, before or after it.
_KILL = """
import os, signal, sqlite3
_words, _place, _count = os.environ["TEST_KILL"].rsplit(":", 2)
_left = [int(_count)]
def _step(words, place):
    if place == _place and words.startswith(_words):
        _left[0] -= 1
        if not _left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
def _around(words, call, *given):
    _step(words, "before")
    result = call(*given)
    _step(words, "after")
    return result
class _Cursor(sqlite3.Cursor):
    def execute(self, sql, *more):
        return _around(sql, super().execute, sql, *more)
    def executemany(self, sql, *more):
        return _around(sql, super().executemany, sql, *more)
class _Connection(sqlite3.Connection):
    def cursor(self):
        return super().cursor(_Cursor)
    def commit(self):
        return _around("COMMIT", super().commit)
    def executescript(self, sql):
        return _around(sql, super().executescript, sql)
_connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: _connect(*a, factory=_Connection, **k)
"""

#: In the order in which a batch runs through them. The first number of a step is in the daemon's start.
STEPS = [
    "CREATE TABLE requests:before:1",
    "CREATE TABLE outbox:after:1",
    "COMMIT:before:1",
    "COMMIT:after:1",
    "INSERT INTO names:before:2",
    "INSERT INTO names:after:2",
    "INSERT INTO requests:before:3",
    "INSERT INTO requests:after:3",
    "INSERT INTO attempts:after:3",
    "INSERT INTO rollups:after:3",
    "UPDATE rollups SET first_byte:after:3",
    "COMMIT:before:6",
    "COMMIT:after:6",
]
MARKING = ["UPDATE requests SET state:before:1", "UPDATE requests SET state:after:1"]
PRUNING = ["DELETE FROM attempts:after:1", "DELETE FROM requests:after:2", "PRAGMA incremental_vacuum:after:1"]
SHORT = ("INSERT INTO attempts:after:3", "COMMIT:before:6", "UPDATE requests SET state:after:1")


def steps(names: list[str]) -> list[Any]:
    """As parameters: a few in the default tier."""
    return [pytest.param(name, marks=[] if name in SHORT else pytest.mark.full) for name in names]


def killed_at(step: str, daemon: StartDaemon, upstream: Upstream, ledger: Path, tmp_path: Path) -> dict[str, float]:
    """Load a daemon until it kills itself at this step. Return the requests that were answered, and how long before the end."""
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(_KILL)
    path = f"{patch}{os.pathsep}{clean_environment(tmp_path)['PYTHONPATH']}"
    running = daemon(
        config(upstream, f'path = "{ledger}"\nkeep = "1h"'),
        env={**ENV, "PYTHONPATH": path, "TEST_KILL": step},
        ready=None,
    )
    deadline = monotonic() + 30
    load = None
    while running.process.poll() is None:
        if load is None and "listening on" in running.output():
            load = Load(running, 2, 0.002)
        assert monotonic() < deadline, f"{step} was not reached:\n{running.output()}"
        sleep(0.01)
    ended = monotonic()
    assert running.process.wait() == -signal.SIGKILL
    if load is None:
        return {}
    load.stop()
    return {each: ended - when for each, when in load.done}


@pytest.mark.parametrize("step", steps(STEPS))
def test_kill_at_a_step(daemon: StartDaemon, upstream: Upstream, tmp_path: Path, step: str) -> None:
    """A batch is there or not, whole; the next start finds a sound file."""
    ledger = tmp_path / "ledger.sqlite"
    killed_at(step, daemon, upstream, ledger, tmp_path)
    in_order(daemon, upstream, ledger)


@pytest.mark.parametrize("step", steps(MARKING))
def test_kill_while_marking(daemon: StartDaemon, upstream: Upstream, tmp_path: Path, step: str) -> None:
    """The open rows of an earlier daemon: the next start marks them, and counts each once."""
    ledger = tmp_path / "ledger.sqlite"
    with Upstream(silent) as slow:
        first = daemon(config(slow, f'path = "{ledger}"'), env=ENV)
        load = Load(first, 3)
        deadline = monotonic() + 20
        while list(recorded(ledger).values()) != [State.OPEN] * 3:
            assert monotonic() < deadline
            sleep(0.02)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        load.stop()
    killed_at(step, daemon, upstream, ledger, tmp_path)
    in_order(daemon, upstream, ledger)
    assert list(recorded(ledger).values()).count(State.INTERRUPTED) == 3
    sums = "SELECT sum(r.requests) FROM rollups r JOIN names n ON n.id = r.outcome WHERE n.text = 'interrupted'"
    assert rows_of(ledger, sums) == [(3,)]


@pytest.mark.parametrize("step", steps(PRUNING))
def test_kill_while_pruning(daemon: StartDaemon, upstream: Upstream, tmp_path: Path, step: str) -> None:
    """No request is left without its calls, nor the other way round; the sums stay."""
    ledger = tmp_path / "ledger.sqlite"
    place = Place(ledger)
    store = place.store()
    for _ in range(4):
        store.write([record(started=monotonic() - 7200) for _ in range(500)], again=False)
    place.close()
    this_hour = int(time() / 3600)
    killed_at(step, daemon, upstream, ledger, tmp_path)
    in_order(daemon, upstream, ledger, this_hour - 1)
    assert rows_of(ledger, f"SELECT sum(requests) FROM rollups WHERE hour < {this_hour - 1}") == [(2000,)]


def silent(peer: Peer) -> None:
    """Read the request and never answer."""
    peer.request()
    peer.request()


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_postgres_is_down_for_a_while(daemon: StartDaemon, upstream: Upstream, postgres_server: Server) -> None:
    """What came meanwhile is written when it is back, once."""
    url = postgres_server.new_database()
    running = daemon(config(upstream, f'url = "{url}"'), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(50)
    try:
        postgres_server.stop()
        wait_for_output(running, "The ledger cannot be written")
        unharmed(load, running)
    finally:
        postgres_server.start()
    wait_for_output(running, "The ledger is written again")
    assert running.stop() is not None
    ids = load.stop()
    assert count(url) >= len(ids)


@pytest.mark.postgres
def test_a_daemon_starts_without_postgres(daemon: StartDaemon, upstream: Upstream) -> None:
    """It is ready, and says what is missing."""
    running = daemon(config(upstream, 'url = "postgresql+psycopg://x@127.0.0.1:1/x"'), env=ENV, ready="/readyz")
    load = Load(running, 1)
    wait_for_output(running, "The ledger cannot be written")
    unharmed(load, running)
    load.stop()


@pytest.mark.postgres
def test_postgres_is_slow(daemon: StartDaemon, upstream: Upstream, postgres_server: Server) -> None:
    """Two seconds for each transaction: requests do not wait for it, and all are recorded."""
    url = postgres_server.new_database()
    running = daemon(config(upstream, f'url = "{url}"'), env=ENV)
    load = Load(running, 2, 0.005)
    load.wait_for(20)
    deadline = monotonic() + 20
    while "requests" not in tables(url):
        assert monotonic() < deadline
        sleep(0.05)
    name = url.rpartition("/")[2]
    postgres_server.execute(
        "CREATE FUNCTION slow() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$ LANGUAGE plpgsql;"
        "CREATE TRIGGER slow AFTER INSERT ON rollups FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        name,
    )
    before = count(url)
    load.wait_for(400)
    unharmed(load, running)
    ids = load.stop()
    postgres_server.execute("DROP TRIGGER slow ON rollups", name)
    deadline = monotonic() + 20
    while count(url) < len(ids):
        assert monotonic() < deadline
        sleep(0.1)
    assert before < len(ids)


def tables(url: str) -> set[str]:
    """The tables of a database."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        return {name for (name,) in rows.fetchall()}


def count(url: str) -> int:
    """The number of requests in a database."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT count(*) FROM requests").fetchone()
    return int(row[0]) if row is not None else 0
