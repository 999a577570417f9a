"""Text that repeats, by number: the table ``names`` and a bounded memory of it."""

from __future__ import annotations

import re
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select, text, tuple_

from proxy.ledger.schema import Kind, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

MAX_REMEMBERED: Final = 20_000
REMEMBERED_SECONDS: Final = 1800.0
MAX_LENGTH: Final = 500
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

STALE_US: Final = 86_400_000_000
"""The time of the last use is renewed when it is older than this."""

_INSERT = text("INSERT INTO names (kind, text, used_us) VALUES (:kind, :text, :used_us) ON CONFLICT DO NOTHING")
_USED = text("UPDATE names SET used_us = :used_us WHERE id = :id")
_FIND = select(names.c.kind, names.c.text, names.c.id, names.c.used_us).where(
    tuple_(names.c.kind, names.c.text).in_(bindparam("wanted", expanding=True))
)

Name = tuple[Kind, str]


def storable(value: str) -> str:
    """Return ``value`` as every database takes it: without NUL and lone surrogates, and bounded."""
    return _UNSTORABLE.sub("\ufffd", value[:MAX_LENGTH])


class Names:
    """Numbers of names. ``mask`` hides secrets: a client may send its key as a model. What is remembered is forgotten after half an hour, so that ``used_us`` of a name in use is renewed."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._known: dict[Name, int] = {}
        self._since = monotonic()

    def forget(self) -> None:
        """Forget all. Needed after a rollback, which undid insertions."""
        self._known.clear()
        self._since = monotonic()

    def learn(self, connection: Connection, wanted: Iterable[Name]) -> None:
        """Insert and remember the names that are missing, in the caller's transaction.

        In the order of the names, so that two daemons on one database wait for each other in turn.
        """
        if monotonic() - self._since > REMEMBERED_SECONDS:
            self.forget()
        missing = sorted({name for name in wanted if name not in self._known})
        if len(self._known) + len(missing) > MAX_REMEMBERED:
            self._known.clear()
        for start in range(0, len(missing), 100):
            part = missing[start : start + 100]
            stored = {name: (name[0], storable(self._mask(name[1]))) for name in part}
            numbers = _numbers(connection, sorted(set(stored.values())))
            self._known |= {name: numbers[stored[name]] for name in part}

    def number(self, connection: Connection, kind: Kind, value: str) -> int:
        """Return the number of a name, and insert it if it is missing."""
        name = (kind, value)
        found = self._known.get(name)
        if found is None:
            self.learn(connection, [name])
            found = self._known[name]
        return found


def _numbers(connection: Connection, wanted: list[Name]) -> dict[Name, int]:
    now = int(time() * 1e6)
    found = _find(connection, wanted, now)
    absent = [name for name in wanted if name not in found]
    if absent:
        rows = [{"kind": int(kind), "text": value, "used_us": now} for kind, value in absent]
        connection.execute(_INSERT, rows)
        found |= _find(connection, absent, now)
    return found


def _find(connection: Connection, wanted: list[Name], now: int) -> dict[Name, int]:
    rows = connection.execute(_FIND, {"wanted": [(int(kind), value) for kind, value in wanted]}).all()
    stale = [{"id": number, "used_us": now} for _, _, number, used_us in rows if used_us < now - STALE_US]
    if stale:
        connection.execute(_USED, stale)
    return {(Kind(kind), value): number for kind, value, number, _ in rows}
