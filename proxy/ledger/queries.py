"""Every question to the ledger: the one module behind ``logs``, ``stats``, ``export``, ``cost``, dashboard and budgets.

Theory. The same sums stand twice in the ledger: in the rows, which are kept for ``ledger.keep``, and in ``rollups``, per hour,
which stay. ``sums`` reads whole hours from the rollups and what is left at both ends of the window from the rows; so it is
exact to the microsecond and fast over months. What only the rows know (session, agent) is summed from the rows, a day at a
time, so that no transaction is long. A request counts from when it has ended, in the hour in which it was received.

What a request cost is decided in ``costs.py``; the expressions below say the same in SQL, and a test holds both together.

The questions are written in the SQL that SQLite and PostgreSQL share, because SQLAlchemy takes a quarter of a second to import,
longer than most questions take: a command asks a file by ``sqlite3`` alone. What is put into the text is names of columns and
integers; other values are bound.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from proxy.ledger import histogram
from proxy.ledger.columns import INTENT_BODY, ROLLUP_KEY, ROLLUP_SUMS, TOKENS, Bill, Kind, OutboxState, State
from proxy.ledger.costs import AttemptCost, RequestCost, Source, cost_of, source_of
from proxy.ledger.rows import request_id_of
from proxy.protocol.clients import hashed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import tzinfo

    import sqlalchemy

    Connection = sqlite3.Connection | sqlalchemy.Connection

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_MANY: Final = 500
"""Numbers asked for at once."""

_RECENT: Final = 50_000
"""Requests that ``left_prices`` looks at."""

_ROUNDED: Final = tuple(10**digits for digits in range(7, 0, -1))

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


class Answer(Protocol):
    """Rows: a cursor of ``sqlite3``, or a result of SQLAlchemy."""

    def __iter__(self) -> Iterator[Any]: ...
    def fetchmany(self, size: int, /) -> Sequence[Any]: ...


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
    prices: str | None
    """The price table, with its version and date, of the last estimate in ``cost``."""
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


def ask(connection: Connection, query: str, values: Mapping[str, object] | None = None) -> Answer:
    """Return the rows of the answer. ``values`` are bound to ``:names``."""
    if isinstance(connection, sqlite3.Connection):
        return connection.execute(query, values or {})
    from sqlalchemy import text

    return connection.execute(text(query), values or {})


def _one(connection: Connection, query: str) -> Sequence[Any]:
    """The only row."""
    found: tuple[Any, ...]
    [found] = ask(connection, query)
    return found


def _number(connection: Connection, query: str) -> int:
    """The only value."""
    [(found,)] = ask(connection, query)
    return int(found)


# Names


def texts(connection: Connection, ids: Iterable[int | None]) -> dict[int, str]:
    """Return the text of each number; a number without a row is left out."""
    wanted = sorted({each for each in ids if each})
    found: dict[int, str] = {}
    for start in range(0, len(wanted), _MANY):
        query = f"SELECT id, text FROM names WHERE {_among('id', wanted[start : start + _MANY])}"
        found.update((number, text) for number, text in ask(connection, query))
    return found


def known(connection: Connection, kind: Kind, limit: int = 10) -> list[str]:
    """Return names of this kind, the newest first."""
    query = f"SELECT text FROM names WHERE kind = {kind} ORDER BY id DESC LIMIT {int(limit)}"
    return [text for (text,) in ask(connection, query)]


def number_of(connection: Connection, kind: Kind, text: str) -> int | None:
    """Return the number of a name, or ``None`` if the ledger has no such name."""
    query = f"SELECT id FROM names WHERE kind = {kind} AND text = :text"
    return next((number for (number,) in ask(connection, query, {"text": text})), None)


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


def price_tables(connection: Connection) -> list[str]:
    """Return the price tables that estimates in the ledger are by, with version and date, the newest first."""
    return known(connection, Kind.PRICES, 3)


# Rows


def _among(column: str, numbers: Iterable[int]) -> str:
    return f"{column} IN ({', '.join(str(int(each)) for each in numbers) or 'NULL'})"


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _within(column: str, first: int | None, end: int | None) -> list[str]:
    bounds = ((">=", first), ("<", end))
    return [f"{column} {sign} {int(bound)}" for sign, bound in bounds if bound is not None]


def _row_conditions(numbers: Mapping[str, int], since_us: int | None, until_us: int | None) -> list[str]:
    conditions = [
        f"(requests.asked = {number} OR requests.served = {number})"
        if what == "model"
        else f"requests.{what} = {number}"
        for what, number in numbers.items()
    ]
    return conditions + _within("requests.received_us", since_us, until_us)


_COLUMNS: Final = (
    *("seq", "id", "received_us", "first_byte_us", "duration_us", "project", "provider", "asked", "served", "dialect"),
    *("endpoint", "streamed", "outcome", "status", "error", "bytes_in", "bytes_out", "tool", "session", "agent"),
    *("tags", *TOKENS, "state"),
)


def _select_rows(conditions: Sequence[str], order: str, limit: int) -> str:
    return f"SELECT {', '.join(_COLUMNS)} FROM requests{_where(conditions)} ORDER BY {order} LIMIT {int(limit)}"


def newest(connection: Connection, wanted: Filter, limit: int) -> list[Row]:
    """Return the newest requests, the newest last. Raises ``UnknownNameError``."""
    numbers = _numbers(connection, wanted)
    order = "received_us DESC, seq DESC"
    if "session" in numbers or not numbers.keys() - {"model"}:
        conditions = _row_conditions(numbers, wanted.since_us, wanted.until_us)
        return _rows(connection, list(ask(connection, _select_rows(conditions, order, limit)))[::-1])
    # The sums per hour say where such requests are: to search for the few of a project may take a walk through all rows.
    conditions = [*_row_conditions(numbers, wanted.since_us, wanted.until_us), f"state = {State.OPEN}"]
    running = list(ask(connection, _select_rows(conditions, order, limit)))
    ended: list[Sequence[Any]] = []
    for since_us, until_us in _spans(connection, numbers, wanted, limit):
        conditions = [*_row_conditions(numbers, since_us, until_us), f"state <> {State.OPEN}"]
        ended += ask(connection, _select_rows(conditions, order, limit - len(ended)))
        if len(ended) == limit:
            break
    place = itemgetter(_COLUMNS.index("received_us"), _COLUMNS.index("seq"))
    return _rows(connection, sorted([*running, *ended], key=place)[-limit:])


def _spans(
    connection: Connection, numbers: Mapping[str, int], wanted: Filter, limit: int
) -> Iterator[tuple[int | None, int | None]]:
    """Yield windows that have ``limit`` such requests that have ended, or all of them, the newest first.

    (If a model is asked for, they may be fewer: rollups have the model that served alone.)
    """
    first = None if wanted.since_us is None else wanted.since_us // HOUR_US
    end = None if wanted.until_us is None else -(-wanted.until_us // HOUR_US)
    keys = {name: number for name, number in numbers.items() if name != "model"}
    where = _where(_rollup_conditions(keys, (first, end)))
    hours = ask(connection, f"SELECT hour, SUM(requests) FROM rollups{where} GROUP BY hour ORDER BY hour DESC")

    def window(oldest: int, newest: int) -> tuple[int | None, int | None]:
        start, stop = oldest * HOUR_US, (newest + 1) * HOUR_US
        return max(start, wanted.since_us or start), stop if wanted.until_us is None else min(stop, wanted.until_us)

    span: tuple[int, int] | None = None
    count = 0
    for hour, requests in hours:
        if span is not None and (hour != span[0] - 1 or count >= limit):
            yield window(*span)
            span, count = None, 0
        span = (hour, hour if span is None else span[1])
        count += requests
    if span is not None:
        yield window(*span)


def page(connection: Connection, wanted: Filter, after: tuple[int, int] | None, limit: int) -> list[Row]:
    """Return the next requests, the oldest first: those behind ``after``, which is (``received_us``, ``seq``).

    Raises ``UnknownNameError``. A caller that reads page by page keeps no transaction open between two pages.
    """
    conditions = _row_conditions(_numbers(connection, wanted), wanted.since_us, wanted.until_us)
    if after is not None:
        received_us, seq = after
        # The first condition alone is what an index can use.
        conditions.append(f"received_us >= {received_us}")
        conditions.append(f"(received_us > {received_us} OR seq > {seq})")
    return _rows(connection, list(ask(connection, _select_rows(conditions, "received_us, seq", limit))))


def arrived(connection: Connection, wanted: Filter, after: int, running: Iterable[int], limit: int = 1000) -> list[Row]:
    """Return the requests with a ``seq`` above ``after``, and those of ``running`` as they are now, by ``seq``.

    A name that the ledger does not have yet matches nothing.
    """
    try:
        numbers = _numbers(connection, wanted)
    except UnknownNameError:
        return []
    newer = f"(seq > {after} OR {_among('seq', sorted(running))})"
    conditions = [newer, *_row_conditions(numbers, wanted.since_us, wanted.until_us)]
    return _rows(connection, list(ask(connection, _select_rows(conditions, "seq", limit))))


def last_seq(connection: Connection) -> int:
    """Return the largest ``seq``; 0 in an empty ledger."""
    return _number(connection, "SELECT COALESCE(MAX(seq), 0) FROM requests")


def running(connection: Connection) -> set[int]:
    """Return the ``seq`` of the requests that have not ended."""
    return {seq for (seq,) in ask(connection, f"SELECT seq FROM requests WHERE state = {State.OPEN}")}


def id_at(connection: Connection, seq: int) -> str | None:
    """Return the id of the request with this ``seq``: another one, or none, if a new ledger has begun."""
    found = ask(connection, f"SELECT id FROM requests WHERE seq = {int(seq)}")
    return next((request_id_of(bytes(stored)) for (stored,) in found), None)


_NAMED: Final = (
    *("project", "provider", "asked", "served", "dialect", "endpoint", "outcome", "error"),
    *("tool", "session", "agent", "tags"),
)


def _rows(connection: Connection, found: Iterable[Sequence[Any]]) -> list[Row]:
    columns = [dict(zip(_COLUMNS, each, strict=True)) for each in found]
    calls = _attempts(connection, [each["seq"] for each in columns])
    used = [each[name] for each in columns for name in _NAMED]
    named = texts(connection, (*used, *(call.prices for own in calls.values() for call in own)))
    rows = []
    for each in columns:
        own = calls.get(each["seq"], [])
        with_id = [call.lava_id for call in own if call.lava_id]
        estimates = [call.prices for call in own if source_of(call.cost) in (Source.PENDING, Source.ESTIMATED)]
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
                prices=named.get(estimates[-1] or 0) if estimates else None,
                cost=cost_of(call.cost for call in own),
            )
        )
    return rows


class _Call(NamedTuple):
    lava_id: str | None
    prices: int | None
    cost: AttemptCost


def _attempts(connection: Connection, seqs: Sequence[int]) -> dict[int, list[_Call]]:
    found: dict[int, list[_Call]] = {}
    for start in range(0, len(seqs), _MANY):
        query = (
            "SELECT request, lava_id, prices, sent, bill, billed, estimated FROM attempts "
            f"WHERE {_among('request', seqs[start : start + _MANY])} ORDER BY request, number"
        )
        for request, lava_id, prices, sent, bill, billed, estimated in ask(connection, query):
            cost = AttemptCost(None if sent is None else bool(sent), bill, billed, estimated)
            found.setdefault(request, []).append(_Call(lava_id, prices, cost))
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
        query = f"SELECT {_SUMS} FROM rollups{_where(_rollup_conditions(numbers, hours))}"
        total = _sums(_one(connection, query))
    for since_us, until_us in edges:
        for costed in _batches(connection, numbers, since_us, until_us):
            total = total.plus(_sums(_one(connection, f"SELECT {_COSTED_SUMS} FROM ({costed}) AS costed")))
    return total


def sums_by_agent(connection: Connection, wanted: Filter) -> dict[str | None, Totals]:
    """Return the sums of each agent, by its name: ``None`` is what was asked by no sub-agent. Raises ``UnknownNameError``."""
    found: dict[int, Totals] = {}
    numbers = _numbers(connection, wanted)
    for costed in _batches(connection, numbers, wanted.since_us, wanted.until_us):
        query = f"SELECT agent, {_COSTED_SUMS} FROM ({costed}) AS costed GROUP BY agent"
        for agent, *columns in ask(connection, query):
            found[agent] = found.get(agent, Totals()).plus(_sums(columns))
    named = texts(connection, found)
    return {named.get(agent): each for agent, each in found.items()}


def spent(connection: Connection, project: str, since_us: int) -> Spent:
    """Return what a project has spent on requests received at or after ``since_us``, with the estimates that stay."""
    number = number_of(connection, Kind.PROJECT, project)
    return Spent(0, 0, 0, 0) if number is None else spent_by(connection, number, since_us, FOREVER_US)


def spent_by(connection: Connection, project: int, since_us: int, until_us: int) -> Spent:
    """Return what a project, by its number, has spent on requests received from ``since_us`` up to and without ``until_us``."""
    hours, edges = parts(since_us, until_us)
    windows = [] if hours is None or hours[0] == hours[1] else [(_SPENT_IN_ROLLUPS, hours)]
    found = [0, 0, 0, 0]
    for query, (begin, end) in [*windows, *((_SPENT_IN_ROWS, edge) for edge in edges)]:
        [row] = ask(connection, query, {"project": project, "begin": begin, "end": end})
        found = [total + int(each) for total, each in zip(found, row, strict=True)]
    [(tokens, nano)] = ask(connection, _STAYING, {"project": project, "begin": since_us, "end": until_us})
    return Spent(found[0], found[1] + int(tokens), found[2] + int(nano), found[3])


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


def _rollup_conditions(numbers: Mapping[str, int], hours: _Hours) -> list[str]:
    return [*(f"rollups.{what} = {number}" for what, number in numbers.items()), *_within("rollups.hour", *hours)]


_SUMS: Final = ", ".join(f"COALESCE(SUM({name}), 0) AS {name}" for name in ROLLUP_SUMS)


def _sums(columns: Iterable[Any]) -> Totals:
    # PostgreSQL adds bigints up to a decimal.
    return Totals(*(int(each) for each in columns))


_ROW_KEY: Final = {
    "hour": f"requests.received_us / {HOUR_US}",
    "project": "requests.project",
    "provider": "COALESCE(requests.provider, 0)",
    "model": "COALESCE(requests.served, requests.asked, 0)",
    "tool": "COALESCE(requests.tool, 0)",
    "outcome": "COALESCE(requests.outcome, 0)",
    "session": "COALESCE(requests.session, 0)",
    "agent": "COALESCE(requests.agent, 0)",
}
"""How a row's key in ``rollups`` follows from the row; and what only rows have."""

_SOURCE: Final = (
    # The same as ``costs.source_of``. An attempt that is not there (an outer join) has no source.
    f"CASE WHEN attempts.request IS NULL THEN {Source.NONE} "
    f"WHEN attempts.bill = {Bill.COMPLETED} AND attempts.billed IS NOT NULL THEN {Source.BILLED} "
    f"WHEN attempts.bill = {Bill.UNMETERED} THEN {Source.UNMETERED} "
    f"WHEN attempts.bill = {Bill.PENDING} THEN {Source.PENDING} "
    f"WHEN attempts.sent = 0 THEN {Source.NONE} "
    f"WHEN attempts.estimated IS NULL THEN {Source.UNKNOWN} ELSE {Source.ESTIMATED} END"
)


def _amount(of: Source, column: str) -> str:
    return f"COALESCE(SUM(CASE WHEN {_SOURCE} = {of} THEN attempts.{column} END), 0) AS {of.word}"


_COSTED_COLUMNS: Final = ", ".join(
    [
        *(f"{expression} AS {name}" for name, expression in _ROW_KEY.items()),
        *(f"requests.{name}" for name in (*TOKENS, "streamed", "bytes_in", "bytes_out", "first_byte_us")),
        f"MAX({_SOURCE}) AS source",
        _amount(Source.BILLED, "billed"),
        _amount(Source.PENDING, "estimated"),
        _amount(Source.ESTIMATED, "estimated"),
    ]
)


def _costed(connection: Connection, numbers: Mapping[str, int], since_us: int | None, until_us: int | None) -> str:
    """One line per request that has ended: its key, what ``rollups`` add up of it, and the source of its cost."""
    conditions = [f"requests.state <> {State.OPEN}", *_row_conditions(numbers, None, None)]
    if since_us is not None or until_us is not None:
        if "session" not in numbers:
            # By seq, and not by time: grouping by seq then needs no sorting, and without bounds it would read the whole table.
            window = _where(_row_conditions({}, since_us, until_us))
            first, last = _one(connection, f"SELECT MIN(seq), MAX(seq) FROM requests{window}")
            conditions += [f"requests.seq >= {first or 0}", f"requests.seq <= {last or 0}"]
        conditions += _within("requests.received_us + 0", since_us, until_us)  # no index of it
    return _costed_where(conditions)


def _costed_where(conditions: Sequence[str]) -> str:
    return (
        f"SELECT {_COSTED_COLUMNS} FROM requests LEFT JOIN attempts ON attempts.request = requests.seq"
        f"{_where(conditions)} GROUP BY requests.seq"
    )


_COUNTED: Final = {
    "requests": "COUNT(*)",
    "streamed_requests": "SUM(CASE WHEN streamed = 1 THEN 1 ELSE 0 END)",
    **{
        f"{source.word}_requests": f"SUM(CASE WHEN source = {source} THEN 1 ELSE 0 END)"
        for source in Source
        if source is not Source.NONE
    },
}
_COSTED_SUMS: Final = ", ".join(f"COALESCE({_COUNTED.get(name, f'SUM({name})')}, 0) AS {name}" for name in ROLLUP_SUMS)


def _of_project(project: str, time: str) -> list[str]:
    return [f"{project} = :project", f"{time} >= :begin", f"{time} < :end"]


_SPENT: Final = ", ".join(
    [
        " + ".join(f"{source.word}_requests" for source in Source if source is not Source.NONE),
        " + ".join(BILLED_TOKENS),
        "billed + pending + estimated",
        "unknown_requests",
    ]
)
_SPENT_IN_ROLLUPS: Final = (
    f"SELECT {_SPENT} FROM (SELECT {_SUMS} FROM rollups{_where(_of_project('project', 'hour'))}) AS summed"
)
_SPENT_ROWS: Final = _costed_where(
    [f"requests.state <> {State.OPEN}", *_of_project("requests.project", "requests.received_us")]
)
_SPENT_IN_ROWS: Final = f"SELECT {_SPENT} FROM (SELECT {_COSTED_SUMS} FROM ({_SPENT_ROWS}) AS costed) AS summed"
_STAYING: Final = (
    "SELECT COALESCE(SUM(tokens), 0), COALESCE(SUM(nano), 0) FROM holds"
    f"{_where([*_of_project('project', 'at_us'), 'expires_us IS NULL'])}"
)
"""The sums of a project over rollups and over rows; and of the estimates that stay."""


def _batches(
    connection: Connection, numbers: Mapping[str, int], since_us: int | None, until_us: int | None
) -> Iterator[str]:
    """Cover a window of rows with ``_costed`` queries, of a day each: sorting a year at once would need a year's memory."""
    if "session" in numbers:  # few, and found by their index
        yield _costed(connection, numbers, since_us, until_us)
        return
    # Apart: SQLite finds each at an end of the index, and both at once only by reading all of it.
    [oldest], [youngest] = (_one(connection, f"SELECT {end}(received_us) FROM requests") for end in ("MIN", "MAX"))
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
    [hour] = _one(connection, "SELECT MIN(hour) FROM rollups")
    [row] = _one(connection, "SELECT MIN(received_us) FROM requests")
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


def _no_errors(connection: Connection) -> str:
    """The condition that an outcome is no error."""
    outcomes = ", ".join(f"'{each}'" for each in NO_ERROR)
    query = f"SELECT id FROM names WHERE kind = {Kind.OUTCOME} AND text IN ({outcomes})"
    return _among("outcome", [number for (number,) in ask(connection, query)])


def _gather_rollups(connection: Connection, gathering: _Gathering, numbers: Mapping[str, int], hours: _Hours) -> None:
    key = "hour" if gathering.in_time else gathering.by
    where = _where(_rollup_conditions(numbers, hours))
    errors = f"COALESCE(SUM(CASE WHEN {_no_errors(connection)} THEN 0 ELSE requests END), 0) AS errors"
    # Per hour first: of projects that needs no sorting, which takes more time than adding.
    hourly = f"SELECT hour, {key} AS grouped, {errors}, {_SUMS} FROM rollups{where} GROUP BY hour, {key}"
    part = f"(hour - {gathering.first}) / {gathering.width}"
    totals = ", ".join(f"SUM({name})" for name in ("errors", *ROLLUP_SUMS))
    query = f"SELECT grouped, {part} AS part, {totals} FROM ({hourly}) AS hourly GROUP BY grouped, {part}"
    for found, at, failed, *columns in ask(connection, query):
        gathering.add(found, min(at, gathering.columns - 1), int(failed), columns)
    waited = _where(["first_byte IS NOT NULL", *_rollup_conditions(numbers, hours)])
    packed: dict[int, list[bytes]] = {}
    answer = ask(connection, f"SELECT {key}, first_byte FROM rollups{waited}")
    while rows := answer.fetchmany(_FETCHED):  # one by one takes twice the time
        for found, each in rows:
            packed.setdefault(found, []).append(each)
    for found, several in packed.items():
        gathering.of(found).first_byte += several


def _gather_rows(
    connection: Connection, gathering: _Gathering, numbers: Mapping[str, int], first: int, end: int
) -> None:
    name = "hour" if gathering.in_time else gathering.by
    part = f"(hour - {gathering.first}) / {gathering.width}"
    errors = f"SUM(CASE WHEN {_no_errors(connection)} THEN 0 ELSE 1 END)"
    for costed in _batches(connection, numbers, first * HOUR_US, end * HOUR_US):
        query = (
            f"SELECT {name}, {part} AS part, {errors}, {_COSTED_SUMS} FROM ({costed}) AS costed GROUP BY {name}, {part}"
        )
        for found, at, failed, *columns in ask(connection, query):
            gathering.add(found, at, int(failed), columns)
    conditions = _row_conditions(numbers, first * HOUR_US, end * HOUR_US)
    conditions += [f"requests.state <> {State.OPEN}", "first_byte_us IS NOT NULL"]
    waits: dict[int, list[int]] = {}
    for found, wait in ask(connection, f"SELECT {_ROW_KEY[name]}, first_byte_us FROM requests{_where(conditions)}"):
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
    count, oldest, youngest = _one(connection, "SELECT COUNT(*), MIN(received_us), MAX(received_us) FROM requests")
    running = _number(connection, f"SELECT COUNT(*) FROM requests WHERE state = {State.OPEN}")
    hours, first_hour = _one(connection, "SELECT COUNT(DISTINCT hour), MIN(hour) FROM rollups")
    waiting = _number(connection, "SELECT COUNT(*) FROM outbox")
    return Extent(count, running, oldest, youngest, hours, first_hour, waiting)


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
    columns = "id, project, created_us, attempts, problem, body"
    found = list(ask(connection, f"SELECT {columns} FROM outbox WHERE state = {OutboxState.DEAD} ORDER BY seq"))
    named = texts(connection, (project for _, project, *_ in found))
    return [
        DeadLetter(
            request_id_of(bytes(stored)),
            named.get(project, "?"),
            created_us,
            tries,
            problem,
            not (body or "").startswith(INTENT_BODY),
        )
        for stored, project, created_us, tries, problem, body in found
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
    key = ", ".join(ROLLUP_KEY)
    columns = f"{key}, {', '.join(ROLLUP_SUMS)}"
    width = len(ROLLUP_KEY)
    query = f"SELECT {columns}, first_byte FROM rollups{_where(_within('hour', first, end))}"
    for *found, packed in ask(connection, query):
        if any(found[width:]):  # one that was emptied again is like none
            stored[tuple(found[:width])] = found[width:], histogram.unpack(packed)
    counted: dict[tuple[int, ...], tuple[list[int], dict[int, int]]] = {}
    costed = f"({_costed(connection, {}, first * HOUR_US, end * HOUR_US)}) AS costed"
    for line in ask(connection, f"SELECT {key}, {_COSTED_SUMS} FROM {costed} GROUP BY {key}"):
        counted[tuple(line[:width])] = [int(each) for each in line[width:]], {}
    waits = f"SELECT {key}, first_byte_us FROM {costed} WHERE first_byte_us IS NOT NULL"
    for *found, wait in ask(connection, waits):
        histogram.merge(counted[tuple(found)][1], {histogram.bucket_of(wait): 1})
    return list(_compared(stored, counted))


class LeftPrice(NamedTuple):
    """Bills in a row that left the learned price of a model. Amounts in billionths of a dollar."""

    provider: str
    model: str
    started_us: int
    """Of the first call."""
    estimated: int
    billed: int


def left_prices(connection: Connection) -> list[LeftPrice]:
    """Return where the bills of the newest calls left the learned prices, the oldest first. (The daemon learns from them.)"""
    from proxy.ledger.learning import CHANGED_PERCENT, CHANGED_ROWS
    from proxy.ledger.pricing import LEARNED

    learned = number_of(connection, Kind.PRICES, LEARNED)
    if learned is None:
        return []
    calls = ask(
        connection,
        "SELECT provider, model, started_us, estimated, billed FROM attempts "
        f"WHERE request > (SELECT COALESCE(MAX(request), 0) - {_RECENT} FROM attempts) AND prices = {learned} "
        f"AND bill = {Bill.COMPLETED} AND estimated IS NOT NULL AND billed IS NOT NULL ORDER BY request, number",
    )
    rows: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    found = []
    for provider, model, *call in calls:
        _, estimated, billed = call
        in_row = rows.setdefault((provider, model), [])
        # What the biller's rounding can explain is no other price.
        step = next((each for each in _ROUNDED if billed % each == 0), 1) if billed else 1
        if 100 * abs(billed - estimated) <= CHANGED_PERCENT * estimated + 100 * step:
            in_row.clear()
            continue
        in_row.append(tuple(call))
        if len(in_row) == CHANGED_ROWS:
            sums = (sum(each[column] for each in in_row) for column in (1, 2))
            found.append((provider, model, in_row[0][0], *sums))
            in_row.clear()
    named = texts(connection, (number for each in found for number in each[:2]))
    return [LeftPrice(named.get(each[0], "?"), named.get(each[1], "?"), *each[2:]) for each in found]


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
    query = f"SELECT COUNT(*) FROM requests WHERE received_us < {int(before_us)} AND state <> {State.OPEN}"
    return _number(connection, query)
