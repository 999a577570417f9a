"""Faults of the ledger's database under a real daemon: requests are served as before, and what can be kept is kept."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING

import psutil
import pytest
from ledgers import ANSWER, Load, recorded, rows_of, wait_for_output, wait_until_recorded
from upstream import Upstream, answer, serve

from proxy.ledger.schema import State

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


@pytest.mark.full
@LINUX
def test_a_full_disk(daemon: StartDaemon, upstream: Upstream, tmp_path: Path) -> None:
    """On a file system of its own, which is filled, and then emptied."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(place)], check=True, timeout=10)
    try:
        ledger = place / "ledger.sqlite"
        running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
        load = Load(running, 2, 0.005)
        load.wait_for(50)
        wait_until_recorded(ledger, load.ids)
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        wait_for_output(running, "The ledger cannot be written")
        unharmed(load, running)
        (place / "filler").unlink()
        wait_until_recorded(ledger, load.stop())
        assert rows_of(ledger, "PRAGMA quick_check") == [("ok",)]
        running.stop()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


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


@pytest.mark.parametrize(
    "kills",
    [pytest.param(20, marks=pytest.mark.full), pytest.param(200, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(1800)
def test_kill_under_load(daemon: StartDaemon, upstream: Upstream, tmp_path: Path, kills: int) -> None:
    """At random points: what ended before the last batch is there, and nothing is open and unmarked after the next start."""
    ledger = tmp_path / "ledger.sqlite"
    chance = random.Random()
    worst = 0.0
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
        settled = {each for each, state in recorded(ledger).items() if state == State.SETTLED}
        lost = [killed - when for each, when in load.done if each not in settled]
        worst = max(worst, *lost, 0.0)
        assert rows_of(ledger, "PRAGMA quick_check") == [("ok",)]
    print(f"the oldest request that was lost had ended {worst * 1000:.0f} ms before the kill")
    # 100 ms on an idle machine; this one may be busy.
    assert worst < 1.5
    running = daemon(config(upstream, f'path = "{ledger}"'), env=ENV)
    load = Load(running, 1)
    load.wait_for(1)
    wait_until_recorded(ledger, load.stop())
    assert State.OPEN not in recorded(ledger).values()
    [(sums,)] = rows_of(ledger, "SELECT sum(requests) FROM rollups")
    assert sums == len(recorded(ledger))


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
