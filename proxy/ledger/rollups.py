"""Sums per hour, added in the transaction of the rows that they count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger import histogram
from proxy.ledger.columns import ROLLUP_KEY, ROLLUP_SUMS, State
from proxy.ledger.rows import OWN_COLUMNS, SHARED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from proxy.ledger.rows import Group

HOUR_US: Final = 3_600_000_000


class Key(NamedTuple):
    """The key of a rollup. A missing name is 0. ``model`` is the one that answered, else the one that was asked for."""

    hour: int
    project: int
    provider: int
    model: int
    tool: int
    outcome: int


class Sums(NamedTuple):
    """What is added to a rollup: columns of ``ROLLUP_SUMS``, and counts by bucket of ``histogram``."""

    columns: dict[str, int]
    first_byte: dict[int, int]


Changes = dict[Key, Sums]


class _Statements(NamedTuple):
    add: str
    histogram: str
    set_histogram: str


def _statements(mark: str) -> _Statements:
    """Return the statements of a driver whose parameters are written ``mark``."""
    columns = (*ROLLUP_KEY, *ROLLUP_SUMS)
    summed = ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in ROLLUP_SUMS)
    where = " AND ".join(f"{name} = {mark}" for name in ROLLUP_KEY)
    return _Statements(
        f"INSERT INTO rollups ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))}) "  # noqa: S608  (names of columns)
        f"ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET {summed}",
        f"SELECT first_byte FROM rollups WHERE {where}",  # noqa: S608
        f"UPDATE rollups SET first_byte = {mark} WHERE {where}",  # noqa: S608
    )


_SQLITE: Final = _statements("?")
_POSTGRES: Final = _statements("%s")

_SHARED: Final = {name: number for number, name in enumerate(SHARED_COLUMNS)}
_OWN: Final[dict[str, int]] = {name: number for number, name in enumerate(OWN_COLUMNS)}
_OWN_SUMS: Final[tuple[str, ...]] = tuple(name for name in OWN_COLUMNS if name in ROLLUP_SUMS)
_SHARED_SUMS: Final = tuple(name for name in SHARED_COLUMNS if name in ROLLUP_SUMS)


def merge(
    changes: Changes, key: Key, columns: Mapping[str, int], first_byte: Mapping[int, int], times: int = 1
) -> None:
    """Add ``times`` these sums to ``changes``: -1 takes them away."""
    sums = changes.get(key)
    if sums is None:
        sums = changes[key] = Sums({}, {})
    for name, value in columns.items():
        sums.columns[name] = sums.columns.get(name, 0) + times * value
    for bucket, number in first_byte.items():
        sums.first_byte[bucket] = sums.first_byte.get(bucket, 0) + times * number


def cost_columns(kind: str | None, requests: int, nano: int) -> dict[str, int]:
    """Return the sums of requests whose cost is of this kind (``rows.cost_kind``) and, in all, ``nano``."""
    if kind is None:
        return {}
    counted = {f"{kind}_requests": requests}
    if kind in ("billed", "pending", "estimated"):
        counted[kind] = nano
    elif kind == "unknown" and nano:
        counted["estimated"] = nano  # of its other attempts
    return counted


def add_group(changes: Changes, shared: tuple[int | None, ...], cost: str | None, group: Group) -> None:
    """Add a group of settled requests. ``shared`` has the values of ``SHARED_COLUMNS``."""
    if shared[_SHARED["state"]] == State.OPEN:
        return
    served, asked = shared[_SHARED["served"]], shared[_SHARED["asked"]]
    names = [shared[_SHARED["project"]], shared[_SHARED["provider"]], served or asked]
    names += [shared[_SHARED["tool"]], shared[_SHARED["outcome"]]]
    hours = [received // HOUR_US for received in group.received]
    for hour in set(hours):
        chosen = [number for number, each in enumerate(hours) if each == hour]
        rows = group.rows if len(chosen) == len(hours) else [group.rows[number] for number in chosen]
        count = len(rows)
        values = list(zip(*rows, strict=True))
        columns: dict[str, int] = {"requests": count}
        for name in _OWN_SUMS:
            columns[name] = sum(filter(None, values[_OWN[name]]))
        for name in _SHARED_SUMS:
            columns[name] = count * (shared[_SHARED[name]] or 0)
        columns["streamed_requests"] = count * (shared[_SHARED["streamed"]] or 0)
        columns |= cost_columns(cost, count, sum(group.estimates[number] for number in chosen))
        key = Key(hour, *(name or 0 for name in names))
        merge(changes, key, columns, histogram.count(values[_OWN["first_byte_us"]]))


def apply(connection: Connection, changes: Changes) -> None:
    """Add ``changes`` in the caller's transaction. In the order of the keys, so that two daemons wait for each other in turn."""
    # As the driver takes them: SQLAlchemy's own parameters would take longer than the statements.
    add, histogram_of, set_histogram = _SQLITE if connection.dialect.name == "sqlite" else _POSTGRES
    for key in sorted(changes):
        columns, first_byte = changes[key]
        where = tuple(key)
        connection.exec_driver_sql(add, (*where, *(columns.get(name, 0) for name in ROLLUP_SUMS)))
        if any(first_byte.values()):
            # Read after the row was written, and so locked.
            counts = histogram.unpack(connection.exec_driver_sql(histogram_of, where).scalar_one())
            histogram.merge(counts, first_byte)
            connection.exec_driver_sql(set_histogram, (histogram.pack(counts), *where))
