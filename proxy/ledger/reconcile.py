"""Asks the biller what requests cost, and books it.

Theory. Lava's list of records has no filter by time, so it is read from its newest record back: once to ``reconcile_since``,
later until a page has only known records. Records may be listed late, or never; so each call that no record was found for is
asked for by itself, by Lava's id, else by our id in the metadata. One that Lava does not know after an hour is *missing*; if a
record turns up later, it is booked all the same. Every page is one transaction of the ledger's writer, and taking a page twice
changes nothing. Nothing here is on the way of a request.
"""

from __future__ import annotations

import asyncio
import json
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import bindparam, delete, select, update

from proxy.ledger import biller, matching
from proxy.ledger.bills import Bookings
from proxy.ledger.columns import Bill, Kind, State
from proxy.ledger.matching import Verdict
from proxy.ledger.names import storable
from proxy.ledger.rows import request_id_of
from proxy.ledger.schema import attempts, names, reconciliation, requests
from proxy.protocol.headers import PROXY_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Connection

    from proxy.lava import Lava
    from proxy.lava.records import UsageReport
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.biller import BillerRecord
    from proxy.ledger.bills import Learn
    from proxy.ledger.matching import Taken

T = TypeVar("T")

SECOND_US: Final = 1_000_000
OVERLAP_US: Final = 60 * SECOND_US
"""Records this much older than the newest one are read again: some come late into the list."""
MISSING_AFTER_US: Final = 3600 * SECOND_US
ASK_AFTER_US: Final = 60 * SECOND_US
"""A call is asked for by itself when it is older: the list will have it by then."""
_ASK_AT_ONCE: Final = 8
_PER_STEP: Final = 100

_UNNAME: Final = (
    update(attempts)
    .where(attempts.c.request == bindparam("seq"), attempts.c.number == bindparam("which"))
    .values(lava_id=None)
)


class Runner(Protocol):
    """Runs work on the database, in one transaction (``writer.Ledger``, or a command's own connection)."""

    async def run(self, work: Callable[[Connection], T]) -> T: ...


class Progress(NamedTuple):
    """How far the list was read."""

    records: int
    oldest_us: int


class PendingCall(NamedTuple):
    """A call that the biller has not decided."""

    seq: int
    number: int
    request_id: str
    received_us: int
    lava_id: str | None


class Reconciler:
    """Reconciles one account. ``correlate``: requests carry our id. ``learn`` is passed the new bills."""

    def __init__(
        self,
        lava: Lava,
        account: BillingAccount,
        runner: Runner,
        *,
        correlate: bool = True,
        learn: Learn | None = None,
    ) -> None:
        self._lava = lava
        self.scope = account.scope
        self._account = account
        self._runner = runner
        self._correlate = correlate
        self._learn = learn

    async def read_list(
        self,
        oldest_us: int,
        *,
        on_page: Callable[[Sequence[Taken]], object] = lambda page: None,
        on_progress: Callable[[Progress], object] = lambda progress: None,
        known_before_us: int | None = None,
    ) -> int | None:
        """Book the records back to ``oldest_us``, or to a page of known ones older than ``known_before_us``.

        Return the time of the newest record, ``None`` without one. Raises ``LavaError`` and ``LedgerUnavailableError``.
        """
        newest = None
        seen = 0
        async for page in self._lava.requests.list(limit=_PER_STEP).by_page():
            now = _now_us()
            records = [biller.read(each, now) for each in page.data]
            if not records:
                break
            taken = await self._take([each for each in records if each.created_us >= oldest_us])
            on_page(taken)
            seen += len(records)
            oldest = min(each.created_us for each in records)
            newest = max(newest or 0, *(each.created_us for each in records))
            on_progress(Progress(seen, oldest))
            old = known_before_us is not None and oldest < known_before_us
            if oldest < oldest_us or (old and all(each.known for each in taken)):
                break
        return newest

    async def ask(
        self,
        *,
        missing_before_us: int,
        since_us: int = 0,
        until_us: int | None = None,
        on_page: Callable[[Sequence[Taken]], object] = lambda page: None,
    ) -> int:
        """Ask for each undecided call received in this time; book those before ``missing_before_us`` that Lava does not know
        as missing. Return how many were asked for. Raises ``LavaError`` and ``LedgerUnavailableError``.
        """
        asked = 0
        after = (0, 0)
        until = until_us if until_us is not None else _now_us() - ASK_AFTER_US
        while True:
            start = after
            calls = await self._runner.run(lambda connection: self._pending(connection, start, since_us, until))  # noqa: B023
            if not calls:
                return asked
            for first in range(0, len(calls), _ASK_AT_ONCE):
                part = calls[first : first + _ASK_AT_ONCE]
                answers = await asyncio.gather(*map(self._ask, part))
                answered = list(zip(part, answers, strict=True))
                on_page(await self._runner.run(lambda connection: self._book(connection, answered, missing_before_us)))  # noqa: B023
            asked += len(calls)
            after = calls[-1].seq, calls[-1].number

    async def recheck(self) -> None:
        """Join kept records whose request has been written since."""
        after: str | None = ""
        while after is not None:
            start = after
            after = await self._runner.run(lambda connection: self._recheck(connection, start))  # noqa: B023

    async def usage(self, start_us: int, end_us: int) -> UsageReport:
        """Return Lava's own sums, by days of UTC. ``end_us`` is the first moment after the time."""
        from datetime import UTC, datetime, timedelta

        start = datetime.fromtimestamp(start_us / SECOND_US, UTC)
        end = datetime.fromtimestamp(end_us / SECOND_US, UTC) - timedelta(milliseconds=1)
        return await self._lava.usage.retrieve(start=start, end=end)

    async def cycle(self, since_us: int, on_progress: Callable[[Progress], object] = lambda progress: None) -> None:
        """Do what is due: new records, undecided calls, the sums of today and yesterday."""
        newest_text = await self._runner.run(lambda connection: value_of(connection, self.scope, "newest"))
        known = int(newest_text) - OVERLAP_US if newest_text is not None else None
        newest = await self.read_list(since_us, known_before_us=known, on_progress=on_progress)
        now = _now_us()
        await self.recheck()
        await self.ask(missing_before_us=now - MISSING_AFTER_US, since_us=since_us)
        day = 86_400 * SECOND_US
        usage = await self.usage(now // day * day - day, now)

        def done(connection: Connection) -> None:
            if newest is not None:
                set_value(connection, self.scope, "newest", str(newest))
            set_value(connection, self.scope, "checked", str(now))
            for each in usage.items:
                cost = each.total_cost if each.total_cost is not None else each.total_request_cost
                sums = {"requests": each.total_requests, "nano": None if cost is None else biller.nano_of(cost)}
                if each.date is not None:
                    set_value(connection, self.scope, f"usage {each.date[:10]}", json.dumps(sums))
            _drop_old(connection, self.scope, since_us)

        await self._runner.run(done)

    async def own_projects(self) -> list[int]:
        """Return the numbers of the projects that the account bills. Raises ``LedgerUnavailableError``."""
        return await self._runner.run(lambda connection: own_projects(connection, self._account))

    # the database's side

    async def _take(self, records: Sequence[BillerRecord]) -> list[Taken]:
        if not records:
            return []
        return await self._runner.run(lambda connection: matching.take(connection, self.scope, records, self._learn))

    def _pending(
        self, connection: Connection, after: tuple[int, int], since_us: int, until_us: int
    ) -> list[PendingCall]:
        projects = own_projects(connection, self._account)
        rows = connection.execute(
            select(attempts.c.request, attempts.c.number, requests.c.id, requests.c.received_us, attempts.c.lava_id)
            .select_from(attempts.join(requests, requests.c.seq == attempts.c.request))
            .where(*is_undecided(), requests.c.project.in_(projects))
            .where(requests.c.received_us >= since_us, requests.c.received_us < until_us)
            .where(
                (attempts.c.request > after[0]) | ((attempts.c.request == after[0]) & (attempts.c.number > after[1]))
            )
            .order_by(attempts.c.request, attempts.c.number)
            .limit(_PER_STEP)
        )
        return [
            PendingCall(seq, number, request_id_of(bytes(stored)), received, lava_id)
            for seq, number, stored, received, lava_id in rows
        ]

    async def _ask(self, call: PendingCall) -> list[BillerRecord]:
        """Return Lava's records of a call."""
        from proxy.lava.errors import NotFound

        now = _now_us()
        if call.lava_id is not None:
            try:
                return [biller.read(await self._lava.requests.retrieve(call.lava_id), now)]
            except NotFound:
                pass
        if not self._correlate:
            return []
        page = await self._lava.requests.list(limit=10, metadata_filters={PROXY_ID: call.request_id})
        # Only those that have our id: a biller without the filter would send all.
        found = [biller.read(each, now) for each in page.data]
        return [each for each in found if each.proxy_id == call.request_id]

    def _book(
        self,
        connection: Connection,
        answered: Sequence[tuple[PendingCall, list[BillerRecord]]],
        missing_before_us: int,
    ) -> list[Taken]:
        found: list[BillerRecord] = []
        missing = []
        for call, records in answered:
            found += records
            if not records and call.received_us < missing_before_us:
                missing.append(call)
            elif records and call.lava_id is not None and call.lava_id not in {each.id for each in records}:
                # Lava does not know the id that it gave; the record with our id is this call's.
                connection.execute(_UNNAME, {"seq": call.seq, "which": call.number})
        taken = matching.take(connection, self.scope, found, self._learn) if found else []
        if missing:
            bookings = Bookings(connection)
            loaded = bookings.load(each.seq for each in missing)
            for call in missing:
                request = loaded[call.seq]
                for each in list(request.calls):
                    if each.number == call.number and each.bill == Bill.PENDING:
                        bookings.book(request, each, Bill.MISSING, None, None, None)
            bookings.close()
        return taken

    def _recheck(self, connection: Connection, after: str) -> str | None:
        kept = list(matching.extras(connection, self.scope, after, 500, ours=True))
        records = [each.record for each in kept if each.verdict is Verdict.PHANTOM]
        for start in range(0, len(records), _PER_STEP):
            matching.take(connection, self.scope, records[start : start + _PER_STEP], self._learn)
        return kept[-1].record.id if kept else None


def is_undecided() -> tuple[ColumnElement[bool], ...]:
    """The conditions of a call that the biller shall decide and has not."""
    return attempts.c.bill == int(Bill.PENDING), requests.c.state != int(State.OPEN)


def has_pending(connection: Connection) -> bool:
    """Whether a call waits for its bill."""
    found = select(attempts.c.request).select_from(attempts.join(requests, requests.c.seq == attempts.c.request))
    return connection.execute(found.where(*is_undecided()).limit(1)).first() is not None


def own_projects(connection: Connection, account: BillingAccount) -> list[int]:
    """Return the numbers of the projects in the ledger that ``account`` bills."""
    if account.alone:
        chosen = names.c.text.not_in([storable(each) for each in account.others])
    else:
        chosen = names.c.text.in_([storable(each) for each in account.projects])
    return list(connection.execute(select(names.c.id).where(names.c.kind == int(Kind.PROJECT), chosen)).scalars())


def unbilled_projects(connection: Connection, accounts: Sequence[BillingAccount]) -> list[int]:
    """Return the numbers of the projects in the ledger that none of ``accounts`` bills."""
    billed = {number for each in accounts for number in own_projects(connection, each)}
    known = connection.execute(select(names.c.id).where(names.c.kind == int(Kind.PROJECT))).scalars()
    return [number for number in known if number not in billed]


def value_of(connection: Connection, scope: str, name: str) -> str | None:
    """Return a value of ``reconciliation``."""
    where = (reconciliation.c.scope == scope, reconciliation.c.name == name)
    return connection.execute(select(reconciliation.c.value).where(*where)).scalar_one_or_none()


def set_value(connection: Connection, scope: str, name: str, value: str) -> None:
    """Set a value of ``reconciliation``."""
    connection.execute(delete(reconciliation).where(reconciliation.c.scope == scope, reconciliation.c.name == name))
    connection.execute(reconciliation.insert(), {"scope": scope, "name": name, "value": value})


def _drop_old(connection: Connection, scope: str, before_us: int) -> None:
    """Delete a thousand kept records that are older than what is reconciled."""
    for each in list(matching.extras(connection, scope)):
        if each.record.created_us < before_us:
            matching.forget(connection, scope, each.record.id)


def _now_us() -> int:
    return int(time() * 1e6)
