"""Every question to the ledger: the one module behind ``logs``, ``stats``, ``export``, ``cost``, dashboard and budgets.

Theory. The same sums stand twice in the ledger: in the rows, which are kept for ``ledger.keep``, and in ``rollups``, per hour,
which stay. ``sums`` reads whole hours from the rollups and what is left at both ends of the window from the rows; so it is
exact to the microsecond and fast over months. What only the rows know (session, agent) is summed from the rows, a day at a
time, so that no transaction is long. A request counts from when it has ended, in the hour in which it was received.

What a request cost is decided in ``costs.py``; the expressions below say the same in SQL, and a test holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sqlalchemy import and_, bindparam, case, func, literal, or_, select

from proxy.ledger import histogram
from proxy.ledger.costs import AttemptCost, RequestCost, Source, cost_of
from proxy.ledger.outbox_rows import INTENT_BODY
from proxy.ledger.rows import request_id_of
from proxy.ledger.schema import (
    ROLLUP_KEY,
    ROLLUP_SUMS,
    TOKENS,
    Bill,
    Kind,
    OutboxState,
    State,
    attempts,
    holds,
    names,
    outbox,
    requests,
    rollups,
)
from proxy.protocol.clients import hashed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import tzinfo

    from sqlalchemy import ColumnElement, Connection, Select

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_MANY: Final = 500
"""Names asked for at once: SQLite takes 999 parameters in its oldest versions."""

_FETCHED: Final = 20_000
"""Rows of rollups fetched at once."""

BILLED_TOKENS: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "audio_in", "audio_out")
"""The token classes that are tokens and disjoint: their sum is a request's tokens."""

NO_ERROR: Final = ("ok", "client_gone")
"""Outcomes that are no error: it went well, or the client left."""

By = Literal["project", "provider", "model", "tool", "session", "agent", "day", "hour"]

_KINDS: Final = {
    "project": Kind.PROJECT,
    "provider": Kind.PROVIDER,
    "model": Kind.MODEL,
    "tool": Kind.TOOL,
    "session": Kind.SESSION,
    "agent": Kind.AGENT,
    "outcome": Kind.OUTCOME,
}


_ONLY_IN_ROWS: Final = {"session", "model"}
"""Filters that rollups cannot answer: a request has a model that was asked for and one that served."""

_Hours = tuple[int | None, int | None]


class UnknownNameError(Exception):
    """A filter names what is not in the ledger. ``known`` has up to ten names that are, the newest first."""

    def __init__(self, what: str, name: str, known: Sequence[str]) -> None:
        super().__init__(f"The ledger has no {what} {name!r}.")
        self.what = what
        self.name = name
        self.known = known


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests are meant. Times in microseconds UTC, ``since_us`` included, ``until_us`` not; ``None`` is any."""

    project: str | None = None
    provider: str | None = None
    model: str | None = None
    """As asked for, or as served."""
    tool: str | None = None
    session: str | None = None
    outcome: str | None = None
    since_us: int | None = None
    until_us: int | None = None


class Row(NamedTuple):
    """One request. Times in microseconds; ``first_byte_us`` and ``duration_us`` count from ``received_us``."""

    seq: int
    id: str
    received_us: int
    first_byte_us: int | None
    duration_us: int | None
    project: str
    provider: str | None
    asked: str | None
    served: str | None
    dialect: str | None
    endpoint: str | None
    streamed: bool | None
    outcome: str | None
    status: int | None
    error: str | None
    bytes_in: int | None
    bytes_out: int | None
    tool: str | None
    session: str | None
    agent: str | None
    tags: str | None
    state: State
    tokens: Mapping[str, int | None]
    attempts: int
    lava_id: str | None
    """Of the last attempt that has one."""
    cost: RequestCost


class Totals(NamedTuple):
    """The sums of ``rollups``, in their order. Amounts in billionths of a dollar, sizes in bytes."""

    requests: int = 0
    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    audio_in: int = 0
    audio_out: int = 0
    images: int = 0
    characters: int = 0
    billed: int = 0
    pending: int = 0
    estimated: int = 0
    billed_requests: int = 0
    pending_requests: int = 0
    unmetered_requests: int = 0
    estimated_requests: int = 0
    unknown_requests: int = 0
    streamed_requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, other: Totals) -> Totals:
        """Return the sum of both."""
        return Totals(*map(int.__add__, self, other))

    @property
    def tokens(self) -> int:
        """All tokens, each counted once."""
        return sum(getattr(self, name) for name in BILLED_TOKENS)

    @property
    def nano(self) -> int:
        """Billed, and estimates of what is not billed yet or not there, in billionths of a dollar."""
        return self.billed + self.pending + self.estimated


class StatsLine(NamedTuple):
    """One line of ``stats``. ``name`` is ``None`` for requests without one; of a day or hour it is its first microsecond."""

    name: str | int | None
    sums: Totals
    errors: int
    first_byte_p50_us: int | None
    first_byte_p95_us: int | None
    course: tuple[int, ...]
    """Requests in equal parts of the window, the oldest first; empty for days and hours."""


FOREVER_US: Final = 2**62 // HOUR_US * HOUR_US
"""Later than any request; a whole hour, so that a window up to it has no rest."""


class Spent(NamedTuple):
    """What counts against a budget. ``requests`` were sent; ``unknown_requests`` of them have no price."""

    requests: int
    tokens: int
    nano: int
    unknown_requests: int


# Names


def texts(connection: Connection, ids: Iterable[int | None]) -> dict[int, str]:
    """Return the text of each number; a number without a row is left out."""
    wanted = sorted({each for each in ids if each})
    found: dict[int, str] = {}
    for start in range(0, len(wanted), _MANY):
        query = select(names.c.id, names.c.text).where(names.c.id.in_(wanted[start : start + _MANY]))
        found.update((row.id, row.text) for row in connection.execute(query))
    return found


def known(connection: Connection, kind: Kind, limit: int = 10) -> list[str]:
    """Return names of this kind, the newest first."""
    query = select(names.c.text).where(names.c.kind == int(kind)).order_by(names.c.id.desc()).limit(limit)
    return list(connection.scalars(query))


def number_of(connection: Connection, kind: Kind, text: str) -> int | None:
    """Return the number of a name, or ``None`` if the ledger has no such name."""
    query = select(names.c.id).where(names.c.kind == int(kind), names.c.text == text)
    return connection.execute(query).scalar_one_or_none()


def stored_session(connection: Connection, session: str) -> str:
    """Return the name that the ledger has for a session: as it is written, or hashed; if it has neither, ``session``."""
    for each in (session, hashed(session)):
        if number_of(connection, Kind.SESSION, each) is not None:
            return each
    return session


def _numbers(connection: Connection, wanted: Filter) -> dict[str, int]:
    """The numbers of the names in a filter. Raises ``UnknownNameError``."""
    found = {}
    for what in ("project", "provider", "model", "tool", "session", "outcome"):
        text = getattr(wanted, what)
        if text is None:
            continue
        number = number_of(connection, _KINDS[what], text)
        if number is None:
            raise UnknownNameError(what, text, known(connection, _KINDS[what]))
        found[what] = number
    return found


# Rows


def _row_conditions(
    numbers: Mapping[str, int], since_us: int | None, until_us: int | None
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for what, number in numbers.items():
        if what == "model":
            conditions.append(or_(requests.c.asked == number, requests.c.served == number))
        else:
            conditions.append(requests.c[what] == number)
    if since_us is not None:
        conditions.append(requests.c.received_us >= since_us)
    if until_us is not None:
        conditions.append(requests.c.received_us < until_us)
    return conditions


def newest(connection: Connection, wanted: Filter, limit: int) -> list[Row]:
    """Return the newest requests, the newest last. Raises ``UnknownNameError``."""
    conditions = _row_conditions(_numbers(connection, wanted), wanted.since_us, wanted.until_us)
    query = select(requests).where(*conditions).order_by(requests.c.received_us.desc(), requests.c.seq.desc())
    return _rows(connection, connection.execute(query.limit(limit)).all()[::-1])


def page(connection: Connection, wanted: Filter, after: tuple[int, int] | None, limit: int) -> list[Row]:
    """Return the next requests, the oldest first: those behind ``after``, which is (``received_us``, ``seq``).

    Raises ``UnknownNameError``. A caller that reads page by page keeps no transaction open between two pages.
    """
    conditions = _row_conditions(_numbers(connection, wanted), wanted.since_us, wanted.until_us)
    if after is not None:
        received_us, seq = after
        # The first condition alone is what an index can use.
        conditions.append(requests.c.received_us >= received_us)
        conditions.append(or_(requests.c.received_us > received_us, requests.c.seq > seq))
    query = select(requests).where(*conditions).order_by(requests.c.received_us, requests.c.seq)
    return _rows(connection, connection.execute(query.limit(limit)).all())


def arrived(connection: Connection, wanted: Filter, after: int, running: Iterable[int], limit: int = 1000) -> list[Row]:
    """Return the requests with a ``seq`` above ``after``, and those of ``running`` as they are now, by ``seq``.

    A name that the ledger does not have yet matches nothing.
    """
    try:
        numbers = _numbers(connection, wanted)
    except UnknownNameError:
        return []
    conditions = _row_conditions(numbers, wanted.since_us, wanted.until_us)
    newer = or_(requests.c.seq > after, requests.c.seq.in_(sorted(running)[:_MANY]))
    query = select(requests).where(newer, *conditions).order_by(requests.c.seq).limit(limit)
    return _rows(connection, connection.execute(query).all())


def last_seq(connection: Connection) -> int:
    """Return the largest ``seq``; 0 in an empty ledger."""
    return connection.execute(select(func.max(requests.c.seq))).scalar_one() or 0


_NAMED: Final = (
    *("project", "provider", "asked", "served", "dialect", "endpoint", "outcome", "error"),
    *("tool", "session", "agent", "tags"),
)


def _rows(connection: Connection, found: Sequence[Any]) -> list[Row]:
    columns = [each._mapping for each in found]
    named = texts(connection, (each[name] for each in columns for name in _NAMED))
    calls = _attempts(connection, [each["seq"] for each in columns])
    rows = []
    for each in columns:
        own = calls.get(each["seq"], [])
        with_id = [call.lava_id for call in own if call.lava_id]
        text = {name: named.get(each[name] or 0) for name in _NAMED}
        rows.append(
            Row(
                seq=each["seq"],
                id=request_id_of(bytes(each["id"])),
                received_us=each["received_us"],
                first_byte_us=each["first_byte_us"],
                duration_us=each["duration_us"],
                project=text["project"] or "?",
                provider=text["provider"],
                asked=text["asked"],
                served=text["served"],
                dialect=text["dialect"],
                endpoint=text["endpoint"],
                streamed=None if each["streamed"] is None else bool(each["streamed"]),
                outcome=text["outcome"],
                status=each["status"],
                error=text["error"],
                bytes_in=each["bytes_in"],
                bytes_out=each["bytes_out"],
                tool=text["tool"],
                session=text["session"],
                agent=text["agent"],
                tags=text["tags"],
                state=State(each["state"]),
                tokens={name: each[name] for name in TOKENS},
                attempts=len(own),
                lava_id=with_id[-1] if with_id else None,
                cost=cost_of(call.cost for call in own),
            )
        )
    return rows


class _Call(NamedTuple):
    lava_id: str | None
    cost: AttemptCost


def _attempts(connection: Connection, seqs: Sequence[int]) -> dict[int, list[_Call]]:
    columns = attempts.c
    found: dict[int, list[_Call]] = {}
    for start in range(0, len(seqs), _MANY):
        query = (
            select(columns.request, columns.lava_id, columns.sent, columns.bill, columns.billed, columns.estimated)
            .where(columns.request.in_(seqs[start : start + _MANY]))
            .order_by(columns.request, columns.number)
        )
        for request, lava_id, sent, bill, billed, estimated in connection.execute(query):
            cost = AttemptCost(None if sent is None else bool(sent), bill, billed, estimated)
            found.setdefault(request, []).append(_Call(lava_id, cost))
    return found


# Totals


def sums(connection: Connection, wanted: Filter) -> Totals:
    """Return the sums of the requests that have ended. Raises ``UnknownNameError``."""
    numbers = _numbers(connection, wanted)
    hours: _Hours | None
    if numbers.keys() & _ONLY_IN_ROWS:
        hours, edges = None, [(wanted.since_us, wanted.until_us)]
    else:
        hours, edges = parts(wanted.since_us, wanted.until_us)
    total = Totals()
    if hours is not None:
        query = select(*_rollup_sums()).where(*_rollup_conditions(numbers, hours))
        total = _sums(connection.execute(query).one())
    for since_us, until_us in edges:
        for query in _batches(connection, numbers, since_us, until_us):
            total = total.plus(_sums(connection.execute(select(*_costed_sums(query))).one()))
    return total


def sums_by_agent(connection: Connection, wanted: Filter) -> dict[str | None, Totals]:
    """Return the sums of each agent, by its name: ``None`` is what was asked by no sub-agent. Raises ``UnknownNameError``."""
    found: dict[int, Totals] = {}
    numbers = _numbers(connection, wanted)
    for query in _batches(connection, numbers, wanted.since_us, wanted.until_us):
        for agent, *columns in connection.execute(select(query.c.agent, *_costed_sums(query)).group_by(query.c.agent)):
            found[agent] = found.get(agent, Totals()).plus(_sums(columns))
    named = texts(connection, found)
    return {named.get(agent): each for agent, each in found.items()}


def spent(connection: Connection, project: str, since_us: int) -> Spent:
    """Return what a project has spent on requests received at or after ``since_us``, with the estimates that stay."""
    number = number_of(connection, Kind.PROJECT, project)
    return Spent(0, 0, 0, 0) if number is None else spent_by(connection, number, since_us, FOREVER_US)


def spent_by(connection: Connection, project: int, since_us: int, until_us: int) -> Spent:
    """Return what a project, by its number, has spent on requests received from ``since_us`` up to and without ``until_us``."""
    sums, staying = _spent_statements()
    hours, edges = parts(since_us, until_us)
    windows = [(rollups, hours)] if hours is not None and hours[0] != hours[1] else []
    found = [0, 0, 0, 0]
    for table, (begin, end) in [*windows, *((requests, edge) for edge in edges)]:
        row = connection.execute(sums[table.name], {"project": project, "begin": begin, "end": end}).one()
        found = [total + int(each) for total, each in zip(found, row, strict=True)]
    tokens, nano = connection.execute(staying, {"project": project, "begin": since_us, "end": until_us}).one()
    return Spent(found[0], found[1] + int(tokens), found[2] + int(nano), found[3])


@cache
def _spent_statements() -> tuple[dict[str, Select[Any]], Select[Any]]:
    """Return the sums over the rollups and over the rows of a window, and those of the estimates that stay. Made once."""

    def window(project: ColumnElement[int], time: ColumnElement[int]) -> list[ColumnElement[bool]]:
        return [project == bindparam("project"), time >= bindparam("begin"), time < bindparam("end")]

    rows = _costed_where([requests.c.state != int(State.OPEN), *window(requests.c.project, requests.c.received_us)])
    tables = {
        rollups.name: select(*_rollup_sums()).where(*window(rollups.c.project, rollups.c.hour)).subquery(),
        requests.name: select(*_costed_sums(rows)).subquery(),
    }
    statements = {}
    for name, table in tables.items():
        sent = sum((table.c[f"{each.word}_requests"] for each in Source if each is not Source.NONE), literal(0))
        tokens = sum((table.c[each] for each in BILLED_TOKENS), literal(0))
        statements[name] = select(
            sent, tokens, table.c.billed + table.c.pending + table.c.estimated, table.c.unknown_requests
        )
    staying = select(func.coalesce(func.sum(holds.c.tokens), 0), func.coalesce(func.sum(holds.c.nano), 0))
    return statements, staying.where(*window(holds.c.project, holds.c.at_us), holds.c.expires_us.is_(None))


def parts(since_us: int | None, until_us: int | None) -> tuple[_Hours | None, list[tuple[int | None, int | None]]]:
    """Split a window into whole hours (the first one, the one behind the last) and the pieces before and behind them."""
    first = None if since_us is None else -(-since_us // HOUR_US)
    end = None if until_us is None else until_us // HOUR_US
    if since_us is not None and until_us is not None and first is not None and end is not None and first > end:
        return None, [(since_us, until_us)]  # inside one hour
    edges: list[tuple[int | None, int | None]] = []
    if since_us is not None and first is not None and since_us < first * HOUR_US:
        edges.append((since_us, first * HOUR_US))
    if until_us is not None and end is not None and end * HOUR_US < until_us:
        edges.append((end * HOUR_US, until_us))
    return (first, end), edges


def _rollup_conditions(numbers: Mapping[str, int], hours: _Hours) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [rollups.c[what] == number for what, number in numbers.items()]
    first, end = hours
    if first is not None:
        conditions.append(rollups.c.hour >= first)
    if end is not None:
        conditions.append(rollups.c.hour < end)
    return conditions


def _rollup_sums() -> list[ColumnElement[int]]:
    return [func.coalesce(func.sum(rollups.c[name]), 0).label(name) for name in ROLLUP_SUMS]


def _sums(columns: Iterable[Any]) -> Totals:
    # PostgreSQL adds bigints up to a decimal.
    return Totals(*(int(each) for each in columns))


ROW_KEY: Final[Mapping[str, ColumnElement[int]]] = {
    "hour": (requests.c.received_us // HOUR_US).label("hour"),
    "project": requests.c.project.label("project"),
    "provider": func.coalesce(requests.c.provider, 0).label("provider"),
    "model": func.coalesce(requests.c.served, requests.c.asked, 0).label("model"),
    "tool": func.coalesce(requests.c.tool, 0).label("tool"),
    "outcome": func.coalesce(requests.c.outcome, 0).label("outcome"),
    "session": func.coalesce(requests.c.session, 0).label("session"),
    "agent": func.coalesce(requests.c.agent, 0).label("agent"),
}
"""How a row's key in ``rollups`` follows from the row; and what only rows have."""


def _source() -> ColumnElement[int]:
    """The same as ``costs.source_of``, in SQL. An attempt that is not there (an outer join) has no source."""
    columns = attempts.c
    return case(
        (columns.request.is_(None), int(Source.NONE)),
        (and_(columns.bill == int(Bill.COMPLETED), columns.billed.is_not(None)), int(Source.BILLED)),
        (columns.bill == int(Bill.UNMETERED), int(Source.UNMETERED)),
        (columns.bill == int(Bill.PENDING), int(Source.PENDING)),
        (columns.sent == 0, int(Source.NONE)),
        (columns.estimated.is_(None), int(Source.UNKNOWN)),
        else_=int(Source.ESTIMATED),
    )


def _costed(connection: Connection, numbers: Mapping[str, int], since_us: int | None, until_us: int | None) -> Any:
    """One line per request that has ended: its key, what ``rollups`` add up of it, and the source of its cost."""
    conditions = _row_conditions(numbers, None, None)
    if since_us is not None or until_us is not None:
        window = _row_conditions({}, since_us, until_us)
        if "session" not in numbers:
            # By seq, and not by time: grouping by seq then needs no sorting, and without bounds it would read the whole table.
            bounds = select(func.min(requests.c.seq), func.max(requests.c.seq)).where(*window)
            first, last = connection.execute(bounds).one()
            conditions += [requests.c.seq >= (first or 0), requests.c.seq <= (last or 0)]
        received = requests.c.received_us + 0  # no index of it
        if since_us is not None:
            conditions.append(received >= since_us)
        if until_us is not None:
            conditions.append(received < until_us)
    return _costed_where([requests.c.state != int(State.OPEN), *conditions])


def _costed_where(conditions: Sequence[ColumnElement[bool]]) -> Any:
    source = _source()

    def amount(of: Source, column: ColumnElement[int | None]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((source == int(of), column), else_=None)), 0)

    return (
        select(
            *ROW_KEY.values(),
            *(requests.c[name] for name in TOKENS),
            *(requests.c[name] for name in ("streamed", "bytes_in", "bytes_out", "first_byte_us")),
            func.max(source).label("source"),
            amount(Source.BILLED, attempts.c.billed).label("billed"),
            amount(Source.PENDING, attempts.c.estimated).label("pending"),
            amount(Source.ESTIMATED, attempts.c.estimated).label("estimated"),
        )
        .select_from(requests.outerjoin(attempts, attempts.c.request == requests.c.seq))
        .where(*conditions)
        .group_by(requests.c.seq)
        .subquery()
    )


def _costed_sums(costed: Any) -> list[ColumnElement[int]]:
    columns = costed.c
    counted = {
        "requests": func.count(),
        "streamed_requests": func.sum(case((columns.streamed == 1, 1), else_=0)),
        **{
            f"{source.word}_requests": func.sum(case((columns.source == int(source), 1), else_=0))
            for source in Source
            if source is not Source.NONE
        },
    }
    return [
        func.coalesce(counted[name] if name in counted else func.sum(columns[name]), 0).label(name)
        for name in ROLLUP_SUMS
    ]


def _batches(
    connection: Connection, numbers: Mapping[str, int], since_us: int | None, until_us: int | None
) -> Iterator[Any]:
    """Cover a window of rows with ``_costed`` queries, of a day each: sorting a year at once would need a year's memory."""
    if "session" in numbers:  # few, and found by their index
        yield _costed(connection, numbers, since_us, until_us)
        return
    oldest, youngest = connection.execute(
        select(func.min(requests.c.received_us), func.max(requests.c.received_us))
    ).one()
    if oldest is None:
        return
    start = oldest if since_us is None else max(since_us, oldest)
    end = youngest + 1 if until_us is None else min(until_us, youngest + 1)
    while start < end:
        behind = min(end, (start // DAY_US + 1) * DAY_US)
        yield _costed(connection, numbers, start, behind)
        start = behind


# Groups


def stats(
    connection: Connection, by: By, wanted: Filter, now_us: int, columns: int = 24, zone: tzinfo | None = None
) -> list[StatsLine]:
    """Return the sums of each ``by``: the dearest first, days and hours in order.

    The window begins with the hour of ``since_us``, and ``columns`` is how many parts ``course`` has. Days are those of
    ``zone``, by default the machine's. Raises ``UnknownNameError``.
    """
    numbers = _numbers(connection, wanted)
    since_us = wanted.since_us if wanted.since_us is not None else _first_us(connection)
    if since_us is None:
        return []
    end = -(-(wanted.until_us if wanted.until_us is not None else now_us + 1) // HOUR_US)
    first = since_us // HOUR_US
    gathering = _Gathering(first, max(end - first, 1), columns, by, zone)
    if by in ("session", "agent") or numbers.keys() & _ONLY_IN_ROWS:
        _gather_rows(connection, gathering, numbers, first, end)
    else:
        _gather_rollups(connection, gathering, numbers, (first, end if wanted.until_us is not None else None))
    return gathering.groups(connection)


def _first_us(connection: Connection) -> int | None:
    """The beginning of the ledger: rollups stay when rows are pruned."""
    hour = connection.execute(select(func.min(rollups.c.hour))).scalar_one()
    row = connection.execute(select(func.min(requests.c.received_us))).scalar_one()
    known = [each for each in (None if hour is None else hour * HOUR_US, row) if each is not None]
    return min(known) if known else None


@dataclass(slots=True)
class _Gathered:
    sums: Totals = field(default_factory=Totals)
    errors: int = 0
    first_byte: list[bytes] = field(default_factory=list)
    course: dict[int, int] = field(default_factory=dict)


class _Gathering:
    """Puts pieces (key, part of the window, sums) together to groups."""

    def __init__(self, first: int, hours: int, columns: int, by: By, zone: tzinfo | None) -> None:
        self.first = first
        self.by = by
        self.in_time = by in ("day", "hour")
        self.width = 1 if self.in_time else -(-hours // columns)
        self.columns = -(-hours // self.width)
        self._zone = zone
        self._found: dict[int, _Gathered] = {}
        self._days: dict[int, int] = {}

    def add(self, key: int, part: int, errors: int, columns: Sequence[Any]) -> None:
        each = self.of(key)
        found = _sums(columns)
        each.sums = each.sums.plus(found)
        each.errors += errors
        each.course[part] = each.course.get(part, 0) + found.requests

    def of(self, key: int) -> _Gathered:
        """The group of a number, or of an hour since the epoch."""
        if self.by == "day":
            key = self._days.get(key) or self._days.setdefault(key, self._day(key))
        elif self.by == "hour":
            key *= HOUR_US
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = _Gathered()
        return found

    def _day(self, hour: int) -> int:
        moment = datetime.fromtimestamp(hour * 3600, UTC).astimezone(self._zone)
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self._zone is None:  # the machine's: a fixed offset, which may have been another one at midnight
            midnight = datetime(moment.year, moment.month, moment.day).astimezone()
        return int(midnight.timestamp()) * 1_000_000

    def groups(self, connection: Connection) -> list[StatsLine]:
        named = {} if self.in_time else texts(connection, self._found)
        found = []
        for key, each in self._found.items():
            counts = histogram.added(each.first_byte)
            course = () if self.in_time else tuple(each.course.get(part, 0) for part in range(self.columns))
            name = key if self.in_time else named.get(key)
            p50, p95 = histogram.percentile(counts, 0.5), histogram.percentile(counts, 0.95)
            found.append(StatsLine(name, each.sums, each.errors, p50, p95, course))
        if self.in_time:
            return sorted(found, key=lambda group: group.name if isinstance(group.name, int) else 0)
        return sorted(found, key=lambda group: (-group.sums.nano, -group.sums.requests, str(group.name)))


def _no_errors(connection: Connection) -> list[int]:
    query = select(names.c.id).where(names.c.kind == int(Kind.OUTCOME), names.c.text.in_(NO_ERROR))
    return list(connection.scalars(query))


def _gather_rollups(connection: Connection, gathering: _Gathering, numbers: Mapping[str, int], hours: _Hours) -> None:
    key = rollups.c.hour if gathering.in_time else rollups.c[gathering.by]
    conditions = _rollup_conditions(numbers, hours)
    good = rollups.c.outcome.in_(_no_errors(connection))
    errors = func.sum(case((good, 0), else_=rollups.c.requests)).label("errors")
    # Per hour first: of projects that needs no sorting, which takes more time than adding.
    hourly = (
        select(rollups.c.hour, key.label("key"), errors, *_rollup_sums())
        .where(*conditions)
        .group_by(rollups.c.hour, key)
        .subquery()
    )
    part = ((hourly.c.hour - gathering.first) // gathering.width).label("part")
    totals = [func.sum(hourly.c[name]) for name in ("errors", *ROLLUP_SUMS)]
    for found, at, failed, *columns in connection.execute(
        select(hourly.c.key, part, *totals).group_by(hourly.c.key, part)
    ):
        gathering.add(found, min(at, gathering.columns - 1), int(failed), columns)
    query = select(key, rollups.c.first_byte).where(rollups.c.first_byte.is_not(None), *conditions)
    packed: dict[int, list[bytes]] = {}
    for rows in connection.execute(query).partitions(_FETCHED):  # one by one takes twice the time
        for found, each in rows:
            packed.setdefault(found, []).append(each)
    for found, several in packed.items():
        gathering.of(found).first_byte += several


def _gather_rows(
    connection: Connection, gathering: _Gathering, numbers: Mapping[str, int], first: int, end: int
) -> None:
    no_errors = _no_errors(connection)
    for costed in _batches(connection, numbers, first * HOUR_US, end * HOUR_US):
        key = costed.c.hour if gathering.in_time else costed.c[gathering.by]
        part = ((costed.c.hour - gathering.first) // gathering.width).label("part")
        errors = func.sum(case((costed.c.outcome.in_(no_errors), 0), else_=1))
        query = select(key, part, errors, *_costed_sums(costed)).group_by(key, part)
        for found, at, failed, *columns in connection.execute(query):
            gathering.add(found, at, int(failed), columns)
    conditions = _row_conditions(numbers, first * HOUR_US, end * HOUR_US)
    conditions.append(requests.c.state != int(State.OPEN))
    row_key = ROW_KEY["hour" if gathering.in_time else gathering.by]
    query = select(row_key, requests.c.first_byte_us).where(requests.c.first_byte_us.is_not(None), *conditions)
    waits: dict[int, list[int]] = {}
    for found, wait in connection.execute(query):
        kept = waits.setdefault(found, [])
        kept.append(wait)
        if len(kept) == _MANY:
            gathering.of(found).first_byte.append(histogram.pack(histogram.count(kept)))
            kept.clear()
    for found, kept in waits.items():
        gathering.of(found).first_byte.append(histogram.pack(histogram.count(kept)))


# The ledger itself


class Extent(NamedTuple):
    """What the ledger holds. Times in microseconds UTC; ``None`` in an empty ledger."""

    rows: int
    running: int
    oldest_us: int | None
    newest_us: int | None
    hours: int
    first_hour: int | None
    waiting: int
    """Rows of the outbox."""


def extent(connection: Connection) -> Extent:
    """Return how much the ledger holds, and since when."""
    received = requests.c.received_us
    count, oldest, youngest = connection.execute(select(func.count(), func.min(received), func.max(received))).one()
    running = select(func.count()).where(requests.c.state == int(State.OPEN))
    hours, first_hour = connection.execute(
        select(func.count(func.distinct(rollups.c.hour)), func.min(rollups.c.hour))
    ).one()
    waiting = connection.execute(select(func.count()).select_from(outbox)).scalar_one()
    return Extent(count, connection.execute(running).scalar_one(), oldest, youngest, hours, first_hour, waiting)


class DeadLetter(NamedTuple):
    """A usage record that is not delivered by itself any more. ``known``: what was used is known, so it can be replayed."""

    id: str
    project: str
    created_us: int
    attempts: int
    problem: str | None
    known: bool


def dead_letters(connection: Connection) -> list[DeadLetter]:
    """Return the dead letters, the oldest first."""
    query = select(outbox).where(outbox.c.state == int(OutboxState.DEAD)).order_by(outbox.c.seq)
    found = connection.execute(query).all()
    named = texts(connection, (row.project for row in found))
    return [
        DeadLetter(
            request_id_of(bytes(row.id)),
            named.get(row.project, "?"),
            row.created_us,
            row.attempts,
            row.problem,
            not (row.body or "").startswith(INTENT_BODY),
        )
        for row in found
    ]


class Difference(NamedTuple):
    """A sum of one hour that is not that of its rows."""

    hour_us: int
    name: str
    rollups: int
    rows: int


def checked_hours(connection: Connection) -> tuple[int, int] | None:
    """Return the hours whose rows are all there (the first one, the one behind the last); ``None`` if there is none.

    Of the oldest hour, rows may have been pruned, unless the ledger never had an older one.
    """
    found = extent(connection)
    if found.oldest_us is None or found.newest_us is None:
        return None
    oldest = found.oldest_us // HOUR_US
    first = oldest if found.first_hour == oldest else oldest + 1
    end = found.newest_us // HOUR_US + 1
    return (first, end) if first < end else None


def differences(connection: Connection, hours: tuple[int, int]) -> list[Difference]:
    """Compare the rollups of these hours with the sums of their rows, by their whole key, and with the rows' histograms."""
    first, end = hours
    stored: dict[tuple[int, ...], tuple[list[int], dict[int, int]]] = {}
    columns = (*(rollups.c[name] for name in ROLLUP_KEY), *(rollups.c[name] for name in ROLLUP_SUMS))
    query = select(*columns, rollups.c.first_byte).where(rollups.c.hour >= first, rollups.c.hour < end)
    width = len(ROLLUP_KEY)
    for *found, packed in connection.execute(query):
        if any(found[width:]):  # one that was emptied again is like none
            stored[tuple(found[:width])] = found[width:], histogram.unpack(packed)
    counted: dict[tuple[int, ...], tuple[list[int], dict[int, int]]] = {}
    costed = _costed(connection, {}, first * HOUR_US, end * HOUR_US)
    key = [costed.c[name] for name in ROLLUP_KEY]
    for line in connection.execute(select(*key, *_costed_sums(costed)).group_by(*key)):
        counted[tuple(line[:width])] = [int(each) for each in line[width:]], {}
    waits = select(*key, costed.c.first_byte_us).where(costed.c.first_byte_us.is_not(None))
    for *found, wait in connection.execute(waits):
        histogram.merge(counted[tuple(found)][1], {histogram.bucket_of(wait): 1})
    return list(_compared(stored, counted))


def _compared(
    stored: Mapping[tuple[int, ...], tuple[list[int], dict[int, int]]],
    counted: Mapping[tuple[int, ...], tuple[list[int], dict[int, int]]],
) -> Iterator[Difference]:
    nothing: tuple[list[int], dict[int, int]] = ([0] * len(ROLLUP_SUMS), {})
    for key in sorted({*stored, *counted}):
        (left, left_waits), (right, right_waits) = stored.get(key, nothing), counted.get(key, nothing)
        for name, one, other in zip(ROLLUP_SUMS, left, right, strict=True):
            if one != other:
                yield Difference(key[0] * HOUR_US, name, one, other)
        if left_waits != right_waits:
            yield Difference(key[0] * HOUR_US, "first_byte", sum(left_waits.values()), sum(right_waits.values()))


def older(connection: Connection, before_us: int) -> int:
    """Return how many requests that have ended were received before a time: those that pruning removes."""
    condition = (requests.c.received_us < before_us, requests.c.state != int(State.OPEN))
    return connection.execute(select(func.count()).where(*condition)).scalar_one()
