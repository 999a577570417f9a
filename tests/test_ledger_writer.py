"""The ledger on the loop's side: its queue, its thread, and its end."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from ledgers import in_flight, record, rows_of

from proxy.config.settings import Settings
from proxy.ledger import columns, writer
from proxy.ledger.writer import Ledger, LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sqlalchemy import Connection


class Said:
    """Keeps what the ledger reports."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str) -> None:
        self.events.append(event)

    warning = info


def run(path: Path, work: Callable[[Ledger], Awaitable[None]], **options: Any) -> list[str]:
    """Run ``work`` with a ledger, close it, and return what it reported."""
    said = Said()

    async def main() -> None:
        ledger = Ledger(Settings.model_validate({"ledger": {"path": str(path), **options}}), said)
        try:
            await work(ledger)
        finally:
            await ledger.aclose()

    asyncio.run(main())
    return said.events


def test_all_that_is_queued_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    async def work(ledger: Ledger) -> None:
        ledger.start()
        for _ in range(1234):
            ledger.observe(record())
        assert ledger.status().queued == 1234

    assert run(path, work) == []
    assert rows_of(path, "SELECT count(*) FROM requests") == [(1234,)]


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    async def work(ledger: Ledger) -> None:
        for _ in range(writer.MAX_QUEUE + 7):
            ledger.observe(record(sent=False))
        assert ledger.status()[:2] == (writer.MAX_QUEUE, 7)
        ledger.start()

    assert run(path, work) == []
    assert rows_of(path, "SELECT count(*) FROM requests") == [(writer.MAX_QUEUE,)]


def test_only_requests_that_may_be_forwarded_are_recorded(tmp_path: Path) -> None:
    """Pages of our own, and requests that were refused before they were admitted, have no facts."""

    async def work(ledger: Ledger) -> None:
        ledger.observe(record(facts=None))
        ledger.observe(record(project=None))
        assert ledger.status().queued == 0

    run(tmp_path / "ledger.sqlite", work)


def test_a_request_in_flight_is_handed_over_once_per_attempt(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        made = in_flight()
        attempts, made.attempts = made.attempts, []
        queued = []
        for now in (made.started + 0.05, made.started + 0.2, made.started + 0.3):
            ledger.watch(made, now)
            queued.append(ledger.status().queued)
        made.attempts = attempts
        for now in (made.started + 0.4, made.started + 0.5):
            ledger.watch(made, now)
            queued.append(ledger.status().queued)
        assert queued == [0, 1, 1, 2, 2]

    run(tmp_path / "ledger.sqlite", work)


def test_work_is_done_in_one_transaction_after_the_records_so_far(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    def count(connection: Connection) -> int:
        return int(connection.exec_driver_sql("SELECT count(*) FROM requests").scalar_one())

    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("DELETE FROM requests")
        raise KeyError("mine")

    async def work(ledger: Ledger) -> None:
        ledger.start()
        ledger.observe(record())
        assert await ledger.run(count) == 1
        with pytest.raises(KeyError, match="mine"):
            await ledger.run(fail)
        assert await ledger.run(count) == 1

    assert run(path, work) == []


def test_work_that_waits_is_done_together(tmp_path: Path) -> None:
    """In one transaction; if one fails, the others are done nevertheless, and what nobody waits for is not."""

    def insert(value: str, *, fails: bool = False) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            connection.exec_driver_sql("INSERT INTO meta (name, value) VALUES (?, '')", (value,))
            if fails:
                raise KeyError(value)

        return work

    def found(connection: Connection) -> list[str]:
        return list(connection.exec_driver_sql("SELECT name FROM meta WHERE name LIKE 'job%'").scalars())

    async def work(ledger: Ledger) -> None:
        ledger.start()
        given_up = asyncio.create_task(ledger.run(insert("job given up")))
        waiting = [
            asyncio.create_task(ledger.run(each))
            for each in (insert("job 1"), insert("job 2", fails=True), insert("job 3"))
        ]
        await asyncio.sleep(0)
        given_up.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in done] == [type(None), KeyError, type(None)]
        assert sorted(await ledger.run(found)) == ["job 1", "job 3"]

    assert run(tmp_path / "ledger.sqlite", work) == []


def test_a_record_that_is_to_be_billed_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its intent is committed, so there are few of them."""
    monkeypatch.setattr(writer, "MAX_QUEUE", 2)

    async def work(ledger: Ledger) -> None:
        for _ in range(3):
            ledger.observe(record())
        ledger.observe(record(intent=True))
        ledger.observe(record(intent=True, sent=False))
        assert (ledger.status().queued, ledger.status().dropped) == (3, 2)
        ledger.start()

    run(tmp_path / "ledger.sqlite", work)


def test_work_without_a_database_is_refused(tmp_path: Path) -> None:
    """And before the start, and after the end."""
    (tmp_path / "file").write_bytes(b"")

    async def work(ledger: Ledger) -> None:
        with pytest.raises(LedgerUnavailableError, match="not running"):
            await ledger.run(lambda connection: None)
        ledger.start()
        with pytest.raises(LedgerUnavailableError):
            await ledger.run(lambda connection: None)
        await ledger.aclose()
        with pytest.raises(LedgerUnavailableError, match="not running"):
            await ledger.run(lambda connection: None)

    run(tmp_path / "file" / "ledger.sqlite", work)


def test_a_database_that_is_away_is_reported_once_and_when_it_is_back(tmp_path: Path) -> None:
    """What came meanwhile is written."""
    folder = tmp_path / "folder"
    folder.write_bytes(b"")
    path = folder / "ledger.sqlite"

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("waited in vain")

    async def work(ledger: Ledger) -> None:
        ledger.start()
        for _ in range(3):
            ledger.observe(record())
        await until(lambda: ledger.status().problem is not None)
        await asyncio.sleep(0.5)
        folder.unlink()
        await until(lambda: ledger.status().written == 3)
        assert ledger.status().problem is None

    events = run(path, work)
    assert [event.split(":")[0].split(",")[0] for event in events] == [
        "The ledger cannot be written",
        "The ledger is written again",
    ]


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    """The report names both versions."""
    path = tmp_path / "ledger.sqlite"

    async def work(ledger: Ledger) -> None:
        ledger.start()
        ledger.observe(record())

    run(path, work)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    events = run(path, work)
    assert f"has schema 99, and this lava-proxy knows schemas up to {columns.VERSION}" in events[0]
    assert rows_of(path, "SELECT count(*) FROM requests") == [(1,)]


def test_a_record_that_the_database_refuses_does_not_keep_the_others(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    async def work(ledger: Ledger) -> None:
        ledger.start()
        ledger.observe(record())
        ledger.observe(record(bytes_in=2**70))
        ledger.observe(record())

    [event] = run(path, work)
    assert event.startswith("The ledger did not take 1 request:")
    assert rows_of(path, "SELECT count(*) FROM requests") == [(2,)]
