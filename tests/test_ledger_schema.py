"""The tables as they are declared, and the migrations that make them; and the estimates that budgets keep in ``holds``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from ledgers import Place, record
from sqlalchemy import inspect

from proxy.ledger import bills, columns, holds, opening, prune, queries, schema
from proxy.ledger.columns import Bill
from proxy.ledger.store import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

DAY_US = 86_400_000_000


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty database."""
    if request.param == "sqlite":
        made = Place(tmp_path / "ledger.sqlite")
    else:
        made = Place(url=request.getfixturevalue("postgres_server").new_database())
    yield made
    made.close()


def _columns(connection: Connection) -> dict[str, list[tuple[str, bool]]]:
    """The columns of each table, and whether they may be empty."""
    found = inspect(connection)
    keys = {name: found.get_pk_constraint(name)["constrained_columns"] for name in found.get_table_names()}
    return {
        name: [(each["name"], each["nullable"] and each["name"] not in key) for each in found.get_columns(name)]
        for name, key in keys.items()
    }


def _declared() -> dict[str, list[tuple[str, bool]]]:
    return {
        name: [(column.name, bool(column.nullable)) for column in table.columns]
        for name, table in schema.metadata.tables.items()
    }


def test_the_migrations_make_the_declared_tables(place: Place) -> None:
    with place.store().connection() as connection:
        assert _columns(connection) == _declared()


def test_an_old_ledger_is_brought_up_to_date(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first version, with what is in it."""
    store = place.store()
    with monkeypatch.context() as old:
        old.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        old.setattr(schema, "VERSION", 1)
        assert "expires_us" in dict(_columns(store.connection())["holds"])
        assert "at_us" not in dict(_columns(store.connection())["holds"])
        store.connection().rollback()
        store.close()
    store.write([record()], again=False)
    with store.connection() as connection:
        opening.migrate(connection)
        assert _columns(connection) == _declared()
        assert schema.version_of(connection) == columns.VERSION
    assert len(place.rows("SELECT * FROM requests")) == 1


# Estimates that stay


def _keep(place: Place, *kept: tuple[int, int]) -> Connection:
    """A ledger with settled requests of ten and five tokens, and what a budget keeps of each."""
    store = place.store()
    made = [record(estimate_kept=each) for each in kept]
    for each in made:
        if any(each.estimate_kept or ()):
            each.scanner = None
    store.write(made, again=False)
    connection = store.connection()
    now = int(time.time() * 1e6)
    with connection.begin():
        holds.settle(connection, [Stored(number, each, now) for number, each in enumerate(made, 1)])
    return connection


def test_an_estimate_that_stays_counts_until_it_is_billed(place: Place) -> None:
    connection = _keep(place, (0, 0), (700, 9000), (40, 100))
    since = int(time.time() * 1e6) - DAY_US
    (row,) = place.rows("SELECT sum(estimated) AS nano FROM attempts")  # of the request with usage
    estimated = int(row["nano"])
    with connection.begin():
        assert queries.spent(connection, "website", since)[:3] == (3, 15 + 740, 9100 + estimated)
        bookings = bills.Bookings(connection)
        loaded = bookings.load([2])
        bookings.book(loaded[2], loaded[2].calls[0], Bill.COMPLETED, 55, "req_1", None)
        bookings.close()
        # The bill says what it cost, and nothing of tokens.
        assert queries.spent(connection, "website", since)[:3] == (3, 15 + 740, 55 + 100 + estimated)


def test_estimates_are_removed_when_no_budget_can_need_them(place: Place) -> None:
    connection = _keep(place, (1, 1), (2, 2))
    place.execute(f"UPDATE holds SET at_us = at_us - {32 * DAY_US} - 1000000 WHERE tokens = 1")
    with connection.begin():
        assert prune.old_holds(connection) == 1
    assert [row["tokens"] for row in place.rows("SELECT tokens FROM holds")] == [2]


def test_what_was_not_sent_is_no_request_of_a_budget(place: Place) -> None:
    store = place.store()
    store.write([record(), record(sent=False), record(sent=False, outcome="refused")], again=False)
    connection = store.connection()
    with connection.begin():
        assert queries.spent(connection, "website", int(time.time() * 1e6) - DAY_US).requests == 1
