"""Insertion of many rows that have most of their values in common.

Binding a value costs Python more than storing it costs SQLite. So the values that rows share are bound once per statement:
``VALUES (?20, ?1, ?2), (?21, ?1, ?2)``. That takes a third of the time of ``executemany``, and the interpreter's lock is
released for a hundred rows at once.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

SIZES: Final = (100, 10, 1)
"""Rows per statement. Few sizes, so that the driver keeps the prepared statements."""

Value = int | str | bytes | None


class BulkInsert:
    """Inserts into one table. ``own`` are the columns that differ from row to row, ``shared`` the others."""

    def __init__(self, table: str, own: Sequence[str], shared: Sequence[str]) -> None:
        self._head = f"INSERT INTO {table} ({', '.join((*own, *shared))}) VALUES "  # noqa: S608  (names of columns)
        self._own = len(own)
        self._shared = len(shared)
        self._statements: dict[tuple[str, int], str] = {}

    def insert(self, connection: Connection, shared: tuple[Value, ...], rows: Sequence[tuple[Value, ...]]) -> None:
        """Insert ``rows``, the values of the own columns, each with the values ``shared``."""
        numbered = connection.dialect.name == "sqlite"
        at, left = 0, len(rows)
        for size in SIZES:
            while left >= size:
                part = rows[at : at + size]
                at += size
                left -= size
                statement = self._statement(connection.dialect.name, size)
                if numbered:
                    values = (*shared, *chain.from_iterable(part))
                else:
                    values = tuple(chain.from_iterable((*row, *shared) for row in part))
                connection.exec_driver_sql(statement, values)

    def _statement(self, dialect: str, size: int) -> str:
        statement = self._statements.get((dialect, size))
        if statement is None:
            if dialect == "sqlite":
                shared = ", ".join(f"?{1 + number}" for number in range(self._shared))
                tuples = [
                    "("
                    + ", ".join(f"?{1 + self._shared + row * self._own + n}" for n in range(self._own))
                    + f", {shared})"
                    for row in range(size)
                ]
            else:
                tuples = ["(" + ", ".join(["%s"] * (self._own + self._shared)) + ")"] * size
            statement = self._statements[dialect, size] = self._head + ", ".join(tuples)
        return statement
