"""The rows of ``holds``: room that requests have claimed in their project's budget, and estimates that stay.

Theory. Where several daemons share the database, a request in flight has a row from its admission on. The row goes in the
transaction that writes the request's own row, so that it counts as held or as used, never as neither or both. Both transactions
take the lock of the project: one that admits sees the state before or after one that settles, though it reads in several
statements. A row that its daemon does not extend any more expires.

All functions work in the caller's transaction.
"""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import bindparam, text

from proxy.ledger import queries
from proxy.ledger.budgeting import Claimed
from proxy.ledger.columns import Kind
from proxy.ledger.leases import LEASE_SECONDS
from proxy.ledger.names import Names, find_numbers
from proxy.ledger.rows import id_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from proxy.ledger.budgeting import Claim, Sums
    from proxy.ledger.store import Stored

_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
_LEASE_US: Final = LEASE_SECONDS * 1_000_000
_LOCK: Final = text("SELECT pg_advisory_xact_lock(5283, :project)")
_HELD: Final = text(
    "SELECT daemon, at_us, requests, tokens, nano FROM holds "  # noqa: S608  (constants)
    f"WHERE project = :project AND at_us >= :since_us AND expires_us > {_NOW}"
)
_CLAIM: Final = text(
    "INSERT INTO holds (id, project, daemon, at_us, requests, tokens, nano, expires_us) "  # noqa: S608  (constants)
    f"VALUES (:id, :project, :daemon, :at_us, :requests, :tokens, :nano, {_NOW} + {_LEASE_US}) ON CONFLICT (id) DO NOTHING"
)
_EXTEND: Final = text(f"UPDATE holds SET expires_us = {_NOW} + {_LEASE_US} WHERE id IN :ids").bindparams(  # noqa: S608
    bindparam("ids", expanding=True)
)
_RELEASE: Final = text("DELETE FROM holds WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
_KEEP: Final = text(
    "INSERT INTO holds (id, project, at_us, requests, tokens, nano) VALUES (:id, :project, :at_us, 0, :tokens, :nano)"
)


OLD_HOURS: Final = 2
"""Requests that were received before have ended (``total`` under ``[upstream]`` is an hour)."""
OLD_SECONDS: Final = 5.0
MAX_OLD: Final = 1000


class _Old(NamedTuple):
    """What was spent up to ``border``, to be read again at ``until`` (by the monotonic clock)."""

    border: int
    until: float
    sums: Sums


class _Hold(NamedTuple):
    daemon: int | None
    at_us: int
    amount: Sums


class Claims:
    """Grants claims of one daemon. PostgreSQL only."""

    def __init__(self, daemon: str) -> None:
        self._daemon = daemon
        self._names = Names(str)
        self._old: dict[tuple[int, int], _Old] = {}

    def grant(self, connection: Connection, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Check the limits for each of ``claims`` in turn, and store the hold of each that fits.

        ``None`` for one whose request does not wait any more.
        """
        by_project: dict[str, list[int]] = {}
        for index, each in enumerate(claims):
            by_project.setdefault(each.project, []).append(index)
        answers: list[Claimed | None] = [None] * len(claims)
        rows: list[dict[str, object]] = []
        owner = self._names.number(connection, Kind.DAEMON, self._daemon)
        numbers = {project: self._names.number(connection, Kind.PROJECT, project) for project in sorted(by_project)}
        _lock(connection, numbers.values())
        for project, indexes in by_project.items():
            number = numbers[project]
            starts = sorted({limit.since_us for index in indexes for limit in claims[index].limits})
            found = connection.execute(_HELD, {"project": number, "since_us": starts[0]})
            held = [_Hold(holder, at_us, (*amount,)) for holder, at_us, *amount in found]
            used = {start: self._spent(connection, number, start) for start in starts}
            for index in indexes:
                each = claims[index]
                if each.answer.done():
                    continue
                answer = answers[index] = _decide(each, owner, used, held)
                if answer.granted:
                    held.append(_Hold(owner, each.at_us, each.amount))
                    row = {"id": id_bytes(each.request_id), "project": number, "daemon": owner, "at_us": each.at_us}
                    rows.append({**row, **dict(zip(("requests", "tokens", "nano"), each.amount, strict=True))})
        if rows:
            connection.execute(_CLAIM, rows)
        return answers

    def _spent(self, connection: Connection, project: int, since_us: int) -> Sums:
        """Return what was spent since then. What ended hours ago is read every few seconds: only bills change it."""
        border = int(time()) * 1_000_000 // queries.HOUR_US * queries.HOUR_US - OLD_HOURS * queries.HOUR_US
        if since_us >= border:
            return queries.spent_by(connection, project, since_us, queries.FOREVER_US)[:3]
        old = self._old.get((project, since_us))
        if old is None or old.border != border or monotonic() >= old.until:
            sums = queries.spent_by(connection, project, since_us, border)[:3]
            if len(self._old) >= MAX_OLD:
                self._old.clear()
            old = self._old[project, since_us] = _Old(border, monotonic() + OLD_SECONDS, sums)
        new = queries.spent_by(connection, project, border, queries.FOREVER_US)
        return old.sums[0] + new.requests, old.sums[1] + new.tokens, old.sums[2] + new.nano


def _decide(asked: Claim, owner: int, used: dict[int, Sums], holds: Sequence[_Hold]) -> Claimed:
    sums: dict[int, tuple[Sums, Sums, Sums]] = {}
    for start in {limit.since_us for limit in asked.limits}:
        held = [each for each in holds if each.at_us >= start]
        sums[start] = used[start], _sum(held), _sum([each for each in held if each.daemon != owner])
    granted = all(
        sum(each[limit.unit] for each in sums[limit.since_us][:2]) + asked.amount[limit.unit] <= limit.most
        for limit in asked.limits
    )
    return Claimed(granted, sums)


def _sum(holds: Sequence[_Hold]) -> Sums:
    requests, tokens, nano = (sum(each.amount[unit] for each in holds) for unit in range(3))
    return requests, tokens, nano


def extend(connection: Connection, request_ids: Iterable[str]) -> None:
    """Extend the lease of these requests' holds."""
    connection.execute(_EXTEND, {"ids": [id_bytes(each) for each in request_ids]})


def settle(connection: Connection, ended: Sequence[Stored]) -> None:
    """Remove the holds of requests whose own rows are written in this transaction, and keep the estimates that stay."""
    shared = connection.dialect.name == "postgresql"
    kept = [each for each in ended if any(each.record.estimate_kept or ())]
    if not shared and not kept:
        return
    projects = sorted({each.record.project or "" for each in (ended if shared else kept)})
    found = find_numbers(connection, *((Kind.PROJECT, project) for project in projects))
    numbers = dict(zip(projects, found, strict=True))
    if shared:
        _lock(connection, [number for number in found if number is not None])
        connection.execute(_RELEASE, {"ids": [id_bytes(each.record.request_id) for each in ended]})
    rows = []
    for each in kept:
        tokens, nano = each.record.estimate_kept or (0, 0)
        number = numbers[each.record.project or ""]
        row = {"id": id_bytes(each.record.request_id), "project": number, "at_us": each.received_us}
        rows.append({**row, "tokens": tokens, "nano": nano})
    if rows:
        connection.execute(_KEEP, rows)


def _lock(connection: Connection, projects: Iterable[int]) -> None:
    """Take the locks of projects, in the order of their numbers."""
    for number in sorted(projects):
        connection.execute(_LOCK, {"project": number})
