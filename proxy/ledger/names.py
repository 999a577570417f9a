"""Text that repeats, by number: the table ``names`` and a bounded memory of it."""

from __future__ import annotations

import re
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select, text, tuple_

from proxy.ledger.columns import Kind
from proxy.ledger.schema import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

MAX_REMEMBERED: Final = 5_000
REMEMBERED_SECONDS: Final = 1800.0
MAX_LENGTH: Final = 500
MAX_NAMES: Final = {
    Kind.MODEL: 10_000,
    Kind.ERROR: 1_000,
    Kind.TOOL: 1_000,
    Kind.SESSION: 100_000,
    Kind.AGENT: 100_000,
    Kind.TAGS: 10_000,
    Kind.USAGE: 1_000,
}
"""Names of a kind that a client or an upstream chooses. Those above are stored as ``OTHER``; the other kinds are our own."""
OTHER: Final = "other"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

STALE_US: Final = 86_400_000_000
"""The time of the last use is renewed when it is older than this."""

_INSERT = text("INSERT INTO names (kind, text, used_us) VALUES (:kind, :text, :used_us) ON CONFLICT DO NOTHING")
_COUNT = text("SELECT count(*) FROM names WHERE kind = :kind")
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
        self._counts: dict[Kind, int] = {}
        self._since = monotonic()

    def forget(self) -> None:
        """Forget all. Needed after a rollback, which undid insertions."""
        self._known.clear()
        self._counts.clear()
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
            numbers = _numbers(connection, sorted(set(stored.values())), self._counts)
            self._known |= {name: numbers[stored[name]] for name in part}

    def number(self, connection: Connection, kind: Kind, value: str) -> int:
        """Return the number of a name, and insert it if it is missing."""
        name = (kind, value)
        found = self._known.get(name)
        if found is None:
            self.learn(connection, [name])
            found = self._known[name]
        return found


def _numbers(connection: Connection, wanted: list[Name], counts: dict[Kind, int]) -> dict[Name, int]:
    """Return the numbers of names, which are inserted if they are missing. ``counts``: how many there are of a kind, if known."""
    now = int(time() * 1e6)
    found = _find(connection, wanted, now)
    absent = [name for name in wanted if name not in found]
    beyond = {name: (name[0], OTHER) for name in absent if not _has_room(connection, name, counts)}
    new = [name for name in absent if name not in beyond]
    if new:
        rows = [{"kind": int(kind), "text": value, "used_us": now} for kind, value in new]
        connection.execute(_INSERT, rows)
        found |= _find(connection, new, now)
    if beyond:
        others = _numbers(connection, sorted(set(beyond.values())), counts)
        found |= {name: others[other] for name, other in beyond.items()}
    return found


def _has_room(connection: Connection, name: Name, counts: dict[Kind, int]) -> bool:
    """Whether one more name may be inserted. Counts it."""
    kind, value = name
    most = MAX_NAMES.get(kind)
    if most is None or value == OTHER:
        return True
    if kind not in counts:
        counts[kind] = connection.execute(_COUNT, {"kind": int(kind)}).scalar_one()
    if counts[kind] >= most:
        return False
    counts[kind] += 1
    return True


def _find(connection: Connection, wanted: list[Name], now: int) -> dict[Name, int]:
    rows = connection.execute(_FIND, {"wanted": [(int(kind), value) for kind, value in wanted]}).all()
    stale = [{"id": number, "used_us": now} for _, _, number, used_us in rows if used_us < now - STALE_US]
    if stale:
        connection.execute(_USED, stale)
    return {(Kind(kind), value): number for kind, value, number, _ in rows}


def find_numbers(connection: Connection, *wanted: tuple[Kind, str | None]) -> list[int | None]:
    """Return the numbers of names, which are inserted if they are missing; ``None`` for none. In the caller's transaction."""
    stored = [None if value is None else (kind, storable(value)) for kind, value in wanted]
    numbers = _numbers(connection, sorted({name for name in stored if name is not None}), {})
    return [None if name is None else numbers[name] for name in stored]
