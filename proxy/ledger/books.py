"""Both books of a time side by side, and every difference by its cause.

Theory. The biller's book has its records by the time it gives them, ours the calls by the time their requests were received. A
record and a call that are joined are the same charge, and the amount is the biller's. What is in one book only has a cause:

- a second record of one call (*duplicate*), a record of no call (*phantom*), a call whose record lies on the other side of the
  time's border, a call that the biller does not know, for one of several reasons, or a record of a call that is in the books of
  another account, because the configuration gives its project another key now (or two keys are of one account).

The biller's own sums per day are the checksum: what they have beyond its list can only be calls that it charged and keeps no
record of. What is left over is *unexplained*: phantoms, calls that are undecided or cannot be asked for, and any amount that
the causes do not add up to.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from sqlalchemy import case, func, select

from proxy.ledger import biller
from proxy.ledger.columns import Bill, OutboxState, State
from proxy.ledger.matching import Verdict
from proxy.ledger.reconcile import SECOND_US
from proxy.ledger.schema import attempts, outbox, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy import ColumnElement, Connection

    from proxy.lava.records import UsageReport
    from proxy.ledger.biller import BillerRecord
    from proxy.ledger.matching import Taken
    from proxy.ledger.reconcile import Progress, Reconciler, Runner

T = TypeVar("T")

DAY_US: Final = 86_400 * SECOND_US
MARGIN_US: Final = DAY_US
"""Records this far outside of a time are read, too: their requests may lie inside."""
MAX_NAMED: Final = 1000
_FINAL: Final = (Bill.COMPLETED, Bill.UNMETERED)


class Period(NamedTuple):
    """From ``start_us`` on, before ``end_us``."""

    start_us: int
    end_us: int

    def has(self, us: int | None) -> bool:
        """Whether it contains this time."""
        return us is not None and self.start_us <= us < self.end_us


class Cause(StrEnum):
    """Why something is in one book only."""

    DUPLICATE = "duplicate record at Lava"
    PHANTOM = "at Lava only"
    BORDER_ATLAVA = "received before or after this time"
    BORDER_HERE = "Lava's record lies before or after this time"
    ELSEWHERE_BOOKED = "of a project that this key does not bill, by the configuration"
    LOST = "Lava answered, and has no record of it"
    REFUSED = "an error that Lava has no record of"
    UNANSWERED = "no answer came, and Lava has no record of it"
    INTERRUPTED = "the daemon ended during it, and Lava has no record of it"
    ELSEWHERE = "answered without an id of Lava's, which has no record of it"
    UNREPORTED = "not reported to Lava: see `lava-proxy ledger dead-letters`"
    CHARGED_UNRECORDED = "charged by Lava without a record"
    UNDECIDED = "not decided yet"
    NOTASKED = "its project has no secret key, so Lava cannot be asked"
    VANISHED = "billed earlier, and no longer in Lava's list"
    CHECKSUM = "Lava's sums differ from its list"
    SUMS = "the causes do not add up"


UNEXPLAINED: Final = frozenset(
    {
        Cause.PHANTOM,
        Cause.UNREPORTED,
        Cause.UNDECIDED,
        Cause.NOTASKED,
        Cause.VANISHED,
        Cause.CHECKSUM,
        Cause.SUMS,
    }
)
ONLY_HERE: Final = (Cause.LOST, Cause.REFUSED, Cause.UNANSWERED, Cause.INTERRUPTED, Cause.ELSEWHERE)


class Subtotal(NamedTuple):
    """A number of requests, and billionths of a dollar."""

    requests: int = 0
    nano: int = 0

    def __add__(self, other: object) -> Subtotal:
        if not isinstance(other, tuple):
            return NotImplemented
        return Subtotal(self.requests + other[0], self.nano + other[1])

    def __sub__(self, other: Subtotal) -> Subtotal:
        return Subtotal(self.requests - other.requests, self.nano - other.nano)


NOTHING: Final = Subtotal()


@dataclass
class Day:
    """One day of UTC."""

    matched: Subtotal = NOTHING
    unmetered: int = 0
    only_here: Counter[Cause] = field(default_factory=Counter)
    phantoms: Subtotal = NOTHING
    duplicates: Subtotal = NOTHING
    differing: int = 0
    usage: Subtotal | None = None


class Differing(NamedTuple):
    """A joined record that says other things than the ledger: another amount than before, or other tokens."""

    record: BillerRecord
    request_id: str
    corrected: bool
    tokens: tuple[int | None, int | None]


class BookDifference(NamedTuple):
    """One cause. ``at_lava``: in whose book it is."""

    cause: Cause
    at_lava: bool
    amount: Subtotal

    @property
    def explained(self) -> bool:
        """Whether nothing has to be looked into."""
        return self.cause not in UNEXPLAINED


class BookTotals(NamedTuple):
    """One book: all, what has an amount, what was not metered, what is not decided."""

    requests: int
    billed: Subtotal
    unmetered: int
    pending: int


@dataclass
class Books:
    """Both books of one account."""

    scope: str
    period: Period
    lava: BookTotals
    here: BookTotals
    usage: Subtotal | None
    differences: list[BookDifference]
    phantoms: list[Taken]
    duplicates: list[Taken]
    differing: list[Differing]
    days: dict[str, Day]

    @property
    def unexplained(self) -> Subtotal:
        """Requests and billionths of a dollar without a cause."""
        return _total(each.amount for each in self.differences if not each.explained)


def _total(amounts: Iterable[Subtotal]) -> Subtotal:
    total = Subtotal()
    for each in amounts:
        total += each
    return total


class Comparison:
    """Adds up what becomes of the records."""

    def __init__(self, period: Period, projects: Collection[int]) -> None:
        self.period = period
        self.projects = frozenset(projects)
        """The numbers of those in these books."""
        self.days: dict[str, Day] = {}
        self.lava = Subtotal()
        """Completed records of the time."""
        self.unmetered = 0
        self.pending: dict[str, Verdict] = {}
        """By the record's id."""
        self.joined = Subtotal()
        """Final records of requests received in the time, also if the record's own time is another."""
        self.border_at_lava = self.border_here = self.of_others = Subtotal()
        self.phantoms: list[Taken] = []
        self.duplicates: list[Taken] = []
        self.differing: list[Differing] = []
        self.all_phantoms = self.all_duplicates = Subtotal()
        self._seen: set[int] = set()

    def take(self, page: Sequence[Taken]) -> None:
        """Add records. One that comes twice counts once, with its last state if the first was not final."""
        for taken in page:
            record = taken.record
            at_lava = self.period.has(record.created_us)
            if record.bill is Bill.PENDING:
                if at_lava:
                    self.pending[record.id] = taken.verdict
                continue
            self.pending.pop(record.id, None)
            if hash(record.id) in self._seen:
                continue
            self._seen.add(hash(record.id))
            self._add(taken, at_lava)

    def _add(self, taken: Taken, at_lava: bool) -> None:
        record = taken.record
        amount = Subtotal(1, record.nano or 0)
        if at_lava:
            if record.bill is Bill.COMPLETED:
                self.lava += amount
            else:
                self.unmetered += 1
        if taken.verdict is Verdict.MATCHED and taken.project not in self.projects:
            if at_lava:
                self.of_others += amount
        elif taken.verdict is Verdict.MATCHED:
            here = self.period.has(taken.received_us)
            if here:
                self.joined += amount
            if at_lava and not here:
                self.border_at_lava += amount
            if here and not at_lava:
                self.border_here += amount
        if not at_lava:
            return
        day = self.day(record.created_us)
        if taken.verdict is Verdict.PHANTOM:
            self.all_phantoms += amount
            day.phantoms += amount
            _name(self.phantoms, taken)
        elif taken.verdict is Verdict.DUPLICATE:
            self.all_duplicates += amount
            day.duplicates += amount
            _name(self.duplicates, taken)
        else:
            day.matched += amount
            day.unmetered += record.bill is Bill.UNMETERED
            counted = _differ(taken)
            if taken.corrected or counted:
                day.differing += 1
                _name(self.differing, Differing(record, taken.request_id or "", taken.corrected, taken.tokens))

    def day(self, us: int) -> Day:
        """Return the day of a time."""
        return self.days.setdefault(f"{datetime.fromtimestamp(us // SECOND_US, UTC):%Y-%m-%d}", Day())


async def compare(
    reconciler: Reconciler,
    period: Period,
    *,
    missing_before_us: int,
    on_progress: Callable[[Progress], object] = lambda progress: None,
) -> Comparison:
    """Book the records of a time and ask for each undecided call of it. Return what was found.

    Calls received before ``missing_before_us`` that Lava does not know are booked as missing. Raises ``LavaError`` and
    ``LedgerUnavailableError``.
    """
    comparison = Comparison(period, await reconciler.own_projects())
    await reconciler.recheck()
    await reconciler.read_list(period.start_us - MARGIN_US, on_page=comparison.take, on_progress=on_progress)
    await reconciler.ask(
        missing_before_us=missing_before_us,
        since_us=period.start_us - MARGIN_US,
        until_us=period.end_us,
        on_page=comparison.take,
    )
    return comparison


async def balance(
    reconciler: Reconciler,
    runner: Runner,
    comparison: Comparison,
    *,
    missing_before_us: int,
    not_asked: Collection[int] = (),
) -> Books:
    """Return both books after a comparison. ``not_asked`` are the numbers of projects that no account bills."""
    period, projects = comparison.period, comparison.projects
    usage = await reconciler.usage(*period)
    here = await runner.run(lambda connection: _here(connection, projects, period))
    causes: Counter[tuple[Cause, str]] = Counter()
    for group in await runner.run(lambda connection: _only_here(connection, projects, not_asked, period)):
        cause = _cause(group, missing_before_us)
        causes[cause, group.day] += group.calls
    for (cause, name), count in causes.items():
        comparison.days.setdefault(name, Day()).only_here[cause] += count
    sums = _usage(usage, comparison)
    by_cause: Counter[Cause] = Counter()
    for (cause, _), count in causes.items():
        by_cause[cause] += count
    differences = _differences(comparison, here, by_cause, sums)
    lava = BookTotals(
        comparison.lava.requests + comparison.unmetered + len(comparison.pending),
        comparison.lava,
        comparison.unmetered,
        len(comparison.pending),
    )
    return Books(
        reconciler.scope,
        period,
        lava,
        here,
        sums,
        differences,
        comparison.phantoms,
        comparison.duplicates,
        comparison.differing,
        dict(sorted(comparison.days.items())),
    )


def _differences(
    comparison: Comparison, here: BookTotals, only_here: Counter[Cause], usage: Subtotal | None
) -> list[BookDifference]:
    found = [
        BookDifference(Cause.DUPLICATE, True, comparison.all_duplicates),
        BookDifference(Cause.PHANTOM, True, comparison.all_phantoms),
        BookDifference(Cause.BORDER_ATLAVA, True, comparison.border_at_lava),
        BookDifference(Cause.BORDER_HERE, False, comparison.border_here),
        BookDifference(Cause.ELSEWHERE_BOOKED, True, comparison.of_others),
        *(
            BookDifference(cause, False, Subtotal(only_here[cause]))
            for cause in (*ONLY_HERE, Cause.UNREPORTED, Cause.UNDECIDED, Cause.NOTASKED)
        ),
    ]
    vanished = Subtotal(here.billed.requests + here.unmetered, here.billed.nano) - comparison.joined
    found.append(BookDifference(Cause.VANISHED, False, vanished))
    undecided = Subtotal(sum(each is not Verdict.MATCHED for each in comparison.pending.values()))
    if usage is not None:
        beyond = usage - comparison.lava
        if abs(beyond.nano) <= usage.requests:  # each of two sums rounds by half a billionth per record
            beyond = beyond._replace(nano=0)
        may_be_lost = sum(only_here[cause] for cause in (Cause.LOST, Cause.UNANSWERED, Cause.INTERRUPTED))
        sound = beyond.requests > 0 and beyond.nano >= 0
        if sound and may_be_lost < beyond.requests <= may_be_lost + only_here[Cause.UNDECIDED]:
            undecided += Subtotal(0, beyond.nano)  # the calls stand in our book
        else:
            lost = sound and beyond.requests <= may_be_lost
            found.append(BookDifference(Cause.CHARGED_UNRECORDED if lost else Cause.CHECKSUM, True, beyond))
    found.append(BookDifference(Cause.UNDECIDED, True, undecided))
    in_lava = comparison.all_duplicates + comparison.all_phantoms + comparison.border_at_lava + comparison.of_others
    rest = comparison.lava.nano - here.billed.nano - (in_lava - comparison.border_here - vanished).nano
    found.append(BookDifference(Cause.SUMS, True, Subtotal(0, rest)))
    return [each for each in found if each.amount != NOTHING]


def _differ(taken: Taken) -> bool:
    """Whether Lava counted other tokens than the ledger; what one of them does not know is no difference."""
    record = taken.record
    pairs = zip((record.input_tokens, record.output_tokens), taken.tokens, strict=True)
    return record.bill is Bill.COMPLETED and any(
        theirs is not None and ours is not None and theirs != ours for theirs, ours in pairs
    )


def _usage(report: UsageReport, comparison: Comparison) -> Subtotal | None:
    known = False
    total = Subtotal()
    for each in report.items:
        cost = each.total_cost if each.total_cost is not None else each.total_request_cost
        if each.total_requests is None or cost is None or each.date is None:
            continue
        known = True
        amount = Subtotal(each.total_requests, biller.nano_of(cost))
        comparison.days.setdefault(each.date[:10], Day()).usage = amount
        total += amount
    return total if known or not report.items else None


# Our book


class _Group(NamedTuple):
    """Calls that no record was found for, and what they have in common."""

    day: str
    bill: int | None
    has_id: bool
    status: int | None
    state: int
    asked: bool
    letter: int | None
    newest_us: int
    calls: int


def _here(connection: Connection, projects: Collection[int], period: Period) -> BookTotals:
    completed = (attempts.c.bill == int(Bill.COMPLETED)) & attempts.c.billed.is_not(None)
    row = connection.execute(
        select(
            func.count(),
            func.count(case((attempts.c.bill == int(Bill.COMPLETED), 1))),
            func.coalesce(func.sum(case((completed, attempts.c.billed))), 0),
            func.count(case((attempts.c.bill == int(Bill.UNMETERED), 1))),
            func.count(case((attempts.c.bill == int(Bill.PENDING), 1))),
        )
        .select_from(attempts.join(requests, requests.c.seq == attempts.c.request))
        .where(attempts.c.sent == 1, requests.c.project.in_(projects), *_within(period))
    ).one()
    return BookTotals(row[0], Subtotal(row[1], int(row[2])), row[3], row[4])


def _only_here(
    connection: Connection, projects: Collection[int], not_asked: Collection[int], period: Period
) -> list[_Group]:
    day = (requests.c.received_us // DAY_US).label("day")
    has_id = case((attempts.c.lava_id.is_(None), 0), else_=1).label("has_id")
    asked = case((requests.c.project.in_(projects), 1), else_=0).label("asked")
    key = (day, attempts.c.bill, has_id, attempts.c.status, requests.c.state, asked, outbox.c.state)
    rows = connection.execute(
        select(*key, func.max(requests.c.received_us), func.count())
        .select_from(
            attempts.join(requests, requests.c.seq == attempts.c.request).outerjoin(
                outbox, outbox.c.id == requests.c.id
            )
        )
        .where(attempts.c.sent == 1, requests.c.project.in_([*projects, *not_asked]), *_within(period))
        .where(attempts.c.bill.is_(None) | attempts.c.bill.not_in([int(each) for each in _FINAL]))
        .group_by(*key)
    )
    return [
        _Group(
            f"{datetime.fromtimestamp(number * 86_400, UTC):%Y-%m-%d}",
            bill,
            bool(known),
            status,
            state,
            bool(own),
            letter,
            newest,
            count,
        )
        for number, bill, known, status, state, own, letter, newest, count in rows
    ]


def _cause(group: _Group, missing_before_us: int) -> Cause:
    if not group.asked:
        return Cause.NOTASKED
    recent = group.bill is None and group.newest_us >= missing_before_us
    if group.letter == OutboxState.DEAD:
        return Cause.UNREPORTED
    if group.bill == Bill.PENDING or group.state == State.OPEN or recent or group.letter is not None:
        return Cause.UNDECIDED
    if group.status is not None and group.status >= 400:
        return Cause.REFUSED
    if group.state == State.INTERRUPTED:
        return Cause.INTERRUPTED
    if group.has_id:
        return Cause.LOST
    return Cause.UNANSWERED if group.status is None else Cause.ELSEWHERE


def _within(period: Period) -> tuple[ColumnElement[bool], ...]:
    received = requests.c.received_us
    return received >= period.start_us, received < period.end_us


def _name(named: list[T], one: T) -> None:
    if len(named) < MAX_NAMED:
        named.append(one)
