"""Insertion of many rows that have most of their values in common.

Binding a value costs Python more than storing it costs SQLite. So the values that rows share are bound once per statement:
``SELECT * FROM (VALUES (?), (?)), (SELECT ?, ?)``, and columns that are ``NULL`` in all rows are left out. That takes less than
half the time of ``executemany``, and the interpreter's lock is released for many rows at once. (Numbered placeholders would do
the same, but CPython takes no sequence for them from 3.14 on.)
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

SIZES: Final = (32, 8, 1)
"""Rows per statement. Few sizes, so that the driver keeps the prepared statements."""
_MAX_STATEMENTS: Final = 100

Value = int | str | bytes | bytearray | None


class BulkInsert:
    """Inserts into one table. ``own`` are the columns that differ from row to row, ``shared`` the others."""

    def __init__(self, table: str, own: Sequence[str], shared: Sequence[str]) -> None:
        self._table = table
        self._own = own
        self._shared = shared
        self._statements: dict[tuple[object, ...], str] = {}

    def insert(
        self,
        connection: Connection,
        shared: tuple[Value, ...],
        rows: Sequence[tuple[Value, ...]],
        between: Callable[[], None],
    ) -> None:
        """Insert ``rows``, the values of the own columns, each with the values ``shared``. ``between`` is called after each large statement."""
        columns = list(zip(*rows, strict=True))
        count = len(rows)
        own = tuple(name for name, values in zip(self._own, columns, strict=True) if values.count(None) < count)
        if len(own) < len(columns):
            rows = list(zip(*(values for values in columns if values.count(None) < count), strict=True))
        named = tuple(name for name, value in zip(self._shared, shared, strict=True) if value is not None)
        shared = tuple(value for value in shared if value is not None)
        dialect = connection.dialect.name
        at = 0
        for size in SIZES:
            while count - at >= size:
                part = rows[at : at + size]
                at += size
                if dialect == "sqlite":
                    values = (*chain.from_iterable(part), *shared)
                else:
                    values = tuple(chain.from_iterable((*row, *shared) for row in part))
                connection.exec_driver_sql(self._statement(dialect, size, own, named), values)
                if size == SIZES[0]:
                    between()

    def _statement(self, dialect: str, size: int, own: tuple[str, ...], shared: tuple[str, ...]) -> str:
        key = (dialect, size, own, shared)
        statement = self._statements.get(key)
        if statement is None:
            if len(self._statements) >= _MAX_STATEMENTS:
                self._statements.clear()
            into = f"INSERT INTO {self._table} ({', '.join((*own, *shared))})"
            if dialect == "sqlite":
                row, common = (", ".join("?" * len(columns)) for columns in (own, shared))
                rows = ", ".join([f"({row})"] * size)
                statement = f"{into} SELECT * FROM (VALUES {rows}), (SELECT {common})"  # noqa: S608  (own names)
            else:
                row = ", ".join(["%s"] * (len(own) + len(shared)))
                statement = f"{into} VALUES {', '.join([f'({row})'] * size)}"
            self._statements[key] = statement
        return statement
