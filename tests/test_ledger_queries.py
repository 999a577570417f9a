"""The queries of the ledger against plain Python, on random rows: rows and rollups say the same, and so do all commands."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import HOUR_US, ORDER, START_US, Filler, Made, expected, made_up, writable
from profiles import examples
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from test_cli import called

from proxy.cli import ledger_report
from proxy.config.settings import LedgerSettings, Settings
from proxy.ledger import histogram, queries, reading
from proxy.ledger.columns import TOKENS, Bill, State
from proxy.ledger.costs import AttemptCost, Source, cost_of, source_of
from proxy.ledger.queries import Filter, Totals
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from postgres import Server

    from proxy.ledger.queries import Connection

HOURS = 30
PROJECTS = ("main", "website", "lab")
MADE = made_up(seed=20, count=1500, hours=HOURS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with ``MADE``."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    engine = writable(path)
    Filler(engine).fill(MADE)
    engine.dispose()
    return path


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    with reading.open_readonly(LedgerSettings(path=str(path)))() as opened:
        yield opened


def added(made: Iterable[Made]) -> Totals:
    """The sums of those requests that have ended, by hand."""
    total = dict.fromkeys(Totals._fields, 0)
    for each in made:
        if each.state is State.OPEN:
            continue
        total["requests"] += 1
        for name in TOKENS:
            total[name] += each.tokens.get(name) or 0
        total["bytes_in"] += each.bytes_in or 0
        total["bytes_out"] += each.bytes_out or 0
        total["streamed_requests"] += each.streamed or 0
        found = [expected(*attempt) for attempt in each.attempts]
        for word, amount in found:
            if amount is not None:
                total[word] += amount
        least_known = max((word for word, _ in found), key=ORDER.index, default="none")
        if least_known != "none":
            total[f"{least_known}_requests"] += 1
    return Totals(**total)


def chosen(wanted: Filter) -> list[Made]:
    """What a filter selects, by hand."""
    return [
        each
        for each in MADE
        if wanted.project in (None, each.project)
        and wanted.provider in (None, each.provider)
        and (wanted.model is None or wanted.model in (each.asked, each.served))
        and wanted.tool in (None, each.tool)
        and wanted.session in (None, each.session)
        and wanted.outcome in (None, each.outcome)
        and (wanted.since_us is None or each.received_us >= wanted.since_us)
        and (wanted.until_us is None or each.received_us < wanted.until_us)
    ]


MOMENTS = st.none() | st.integers(START_US - HOUR_US, START_US + (HOURS + 1) * HOUR_US)
FILTERS = st.builds(
    Filter,
    project=st.sampled_from((None, "main", "lab")),
    provider=st.sampled_from((None, None, "openai")),
    model=st.sampled_from((None, None, "gpt-4o")),
    tool=st.sampled_from((None, None, "codex")),
    session=st.sampled_from((None, None, "s1")),
    outcome=st.sampled_from((None, None, "ok", "refused")),
    since_us=MOMENTS,
    until_us=MOMENTS,
)


@given(FILTERS)
@examples(40)
def test_sums_are_those_of_the_rows(path: Path, wanted: Filter) -> None:
    """Whole hours from rollups, their edges from rows: exact for any window and any filter."""
    with reading.open_readonly(LedgerSettings(path=str(path)))() as connection:
        assert queries.sums(connection, wanted) == added(chosen(wanted))


@pytest.mark.parametrize("by", ["project", "provider", "model", "tool", "session", "agent", "day", "hour"])
def test_groups_add_up(connection: Connection, by: queries.By) -> None:
    """Each group is the sum of its rows, and all together are the sum of all."""
    groups = queries.stats(connection, by, Filter(), START_US + HOURS * HOUR_US, zone=UTC)

    def name_of(each: Made) -> str | int | None:
        if by in ("day", "hour"):
            width = 24 * HOUR_US if by == "day" else HOUR_US
            return each.received_us // width * width
        return (each.served or each.asked) if by == "model" else getattr(each, by)

    ended = [each for each in MADE if each.state is not State.OPEN]
    assert {group.name for group in groups} == {name_of(each) for each in ended}
    for group in groups:
        own = [each for each in ended if name_of(each) == group.name]
        assert group.sums == added(own), group.name
        assert group.errors == sum(each.outcome not in ("ok", "client_gone") for each in own)
        waits = histogram.count(each.first_byte_us for each in own)
        assert group.first_byte_p50_us == histogram.percentile(waits, 0.5)
        assert group.first_byte_p95_us == histogram.percentile(waits, 0.95)
        assert by in ("day", "hour") or sum(group.course) == group.sums.requests


def test_days_are_those_of_the_zone(connection: Connection) -> None:
    """A day begins at local midnight, also where that is no whole hour of UTC's days."""
    zone = ZoneInfo("America/New_York")
    groups = queries.stats(connection, "day", Filter(), START_US + HOURS * HOUR_US, zone=zone)
    assert sum(group.sums.requests for group in groups) == added(MADE).requests
    for group in groups:
        assert isinstance(group.name, int)
        local = datetime.fromtimestamp(group.name / 1e6, zone)
        assert (local.hour, local.minute) == (0, 0)


def test_spent_is_the_sum_of_a_project(connection: Connection) -> None:
    """What a budget counts: requests that were sent, tokens once each, and all dollars that are known, billed or estimated."""
    since = START_US + 5 * HOUR_US + 12_345_678
    found = queries.spent(connection, "website", since)
    own = added(chosen(Filter(project="website", since_us=since)))
    sent = sum(getattr(own, f"{source.word}_requests") for source in Source if source is not Source.NONE)
    assert found == (sent, own.tokens, own.billed + own.pending + own.estimated, own.unknown_requests)
    assert queries.spent(connection, "no such project", since) == (0, 0, 0, 0)


def test_pages_are_all_rows_once_in_order(connection: Connection) -> None:
    """Page after page: every row once, by time, whatever the size of a page."""
    for size in (7, 100, 2000):
        rows: list[queries.Row] = []
        after = None
        while found := queries.page(connection, Filter(), after, size):
            rows += found
            after = (found[-1].received_us, found[-1].seq)
        assert [(row.received_us, row.seq) for row in rows] == sorted((row.received_us, row.seq) for row in rows)
        assert len({row.seq for row in rows}) == len(rows) == len(MADE)


def test_newest_rows_come_last(connection: Connection) -> None:
    """The newest of the filtered ones, in the order of time, with their names and costs."""
    rows = queries.newest(connection, Filter(project="lab", outcome="ok"), 5)
    own = sorted(chosen(Filter(project="lab", outcome="ok")), key=lambda each: each.received_us)[-5:]
    assert [row.received_us for row in rows] == [each.received_us for each in own]
    for row, each in zip(rows, own, strict=True):
        assert (row.project, row.asked, row.served, row.tool) == ("lab", each.asked, each.served, each.tool)
        assert row.tokens == {name: each.tokens.get(name) for name in TOKENS}
        assert row.cost == cost_of(AttemptCost(*attempt) for attempt in each.attempts)


@given(FILTERS, st.sampled_from((1, 20, 5000)))
@examples(40)
def test_the_newest_are_those_of_all_rows(path: Path, wanted: Filter, limit: int) -> None:
    """Whatever a filter leaves of them, and also where they are searched by the sums per hour."""
    with reading.open_readonly(LedgerSettings(path=str(path)))() as connection:
        rows = queries.newest(connection, wanted, limit)
    assert [row.received_us for row in rows] == sorted(each.received_us for each in chosen(wanted))[-limit:]


@pytest.mark.parametrize("bill", [None, *Bill])
@pytest.mark.parametrize("sent", [None, True, False])
@pytest.mark.parametrize("amounts", [(None, None), (5, None), (None, 7), (5, 7), (0, 0)])
def test_the_source_of_a_cost(sent: bool | None, bill: Bill | None, amounts: tuple[int | None, int | None]) -> None:
    """In Python as in the tests' own table; that SQL says the same is ``test_sums_are_those_of_the_rows``."""
    word, _ = expected(sent, bill, *amounts)
    assert source_of(AttemptCost(sent, bill, *amounts)).word == word


def test_a_known_zero_is_no_unknown_cost() -> None:
    """Zero dollars are a bill; none at all is unknown."""
    free = cost_of([AttemptCost(True, Bill.COMPLETED, 0, None)])
    assert (free.source, free.nano) == (Source.BILLED, 0)
    unknown = cost_of([AttemptCost(True, None, None, None)])
    assert (unknown.source, unknown.nano) == (Source.UNKNOWN, None)


def test_a_request_is_as_uncertain_as_its_least_known_attempt() -> None:
    """Billed once and pending once is pending; both amounts count, each under its own name."""
    mixed = cost_of([AttemptCost(True, Bill.COMPLETED, 5, 4), AttemptCost(True, Bill.PENDING, None, 7)])
    assert (mixed.source, mixed.billed, mixed.pending, mixed.nano) == (Source.PENDING, 5, 7, 12)


def test_a_name_that_is_not_there_names_those_that_are(connection: Connection) -> None:
    """A typing error is no empty result."""
    with pytest.raises(queries.UnknownNameError) as raised:
        queries.newest(connection, Filter(project="webiste"), 5)
    assert set(raised.value.known) == {"main", "website", "lab"}


def test_bills_that_leave_the_learned_price_are_found(tmp_path: Path) -> None:
    """Ten in a row by more than 1 %; nine are none, nor are rounded bills, nor estimates by another table."""
    path = tmp_path / "ledger.sqlite"
    calls = [
        *(("gpt-4o", 1_000_000, 1_100_100),) * 10,
        *(("gpt-4o", 1_000_000, 1_005_000),) * 5,
        *(("gpt-5", 1_000_000, 1_100_100),) * 9,
        ("gpt-5", 1_000_000, 1_000_000),
        *(("gpt-4", 27_400, 27_000),) * 10,
    ]
    made = [
        Made("main", START_US + at, asked=model, prices="learned", attempts=[(True, Bill.COMPLETED, billed, estimated)])
        for at, (model, estimated, billed) in enumerate(calls)
    ]
    packaged = [Made("main", START_US, asked="o3", attempts=[(True, Bill.COMPLETED, 2, 1)]) for _ in range(10)]
    engine = writable(path)
    Filler(engine).fill([*made, *packaged])
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE attempts SET model = (SELECT asked FROM requests WHERE requests.seq = attempts.request)"
        )
    engine.dispose()
    with reading.open_readonly(LedgerSettings(path=str(path)))() as connection:
        assert queries.left_prices(connection) == [("openai", "gpt-4o", START_US, 10_000_000, 11_001_000)]


def test_the_check_finds_a_changed_sum(path: Path, tmp_path: Path) -> None:
    """Untouched, all hours agree; one count changed by hand is found with its hour and name."""
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    engine = writable(copy)
    with engine.begin() as connection:
        hours = queries.checked_hours(connection)
        assert hours == (START_US // HOUR_US, START_US // HOUR_US + HOURS)
        assert queries.differences(connection, hours) == []
        hour = hours[0] + 3
        connection.exec_driver_sql(f"UPDATE rollups SET output = output + 1 WHERE hour = {hour}")
        found = queries.differences(connection, hours)
        assert {(each.hour_us, each.name, each.rollups - each.rows) for each in found} == {
            (hour * HOUR_US, "output", 1)
        }
    engine.dispose()


# Commands: the same ledger by four commands


@pytest.fixture
def settings(path: Path) -> LedgerSettings:
    return LedgerSettings(path=str(path))


def configuration(folder: Path, settings: LedgerSettings) -> Path:
    """A file that names the ledger."""
    config = folder / "config.toml"
    config.touch(mode=0o600)
    where = (
        f"path = {json.dumps(settings.path)}" if settings.url is None else f"url = {json.dumps(settings.url.reveal())}"
    )
    config.write_text(f"[ledger]\n{where}\n", encoding="utf-8")
    return config


def dollars_of(rows: list[dict[str, Any]]) -> dict[str, Decimal]:
    """The dollars of rows, by source."""
    return {
        name: sum((Decimal(row[name]) for row in rows if row[name]), Decimal())
        for name in ("billed_usd", "pending_usd", "estimated_usd")
    }


@pytest.mark.parametrize("project", [None, "website"])
def test_logs_stats_export_cost_and_budgets_agree(
    settings: LedgerSettings, tmp_path: Path, project: str | None
) -> None:
    """Requests, tokens and dollars by source are the same by each of them."""
    config = configuration(tmp_path, settings)
    since = ["--since", datetime.fromtimestamp(START_US / 1e6, UTC).isoformat()]
    common = [*since, *(["--project", project] if project else []), "--config", str(config)]

    def ran(*words: str) -> str:
        done = called(tmp_path, *words, *common)
        assert done.code == 0, done
        return done.out

    logs = [json.loads(line) for line in ran("logs", "--json", "--limit", "100000").splitlines()]
    exported = [json.loads(line) for line in ran("export", "--format", "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(ran("export", "--format", "csv"))))
    cost = json.loads(ran("cost", "--json"))
    assert logs == exported
    assert table == [{name: _as_csv(value) for name, value in row.items()} for row in exported]
    ended = [row for row in logs if row["state"] != "open"]
    by_rows = {
        "requests": len(ended),
        **{name: sum(row[name] or 0 for row in ended) for name in TOKENS},
        **dollars_of(ended),
        **{
            f"{word}_requests": sum(row["cost_source"] == word for row in ended)
            for word in ("billed", "pending", "unmetered", "estimated", "unknown")
        },
    }
    assert {name: _number(cost[name]) for name in by_rows} == by_rows
    for by in ("project", "provider", "model", "tool", "session", "day", "hour"):
        groups = json.loads(ran("stats", "--json", "--by", by))["groups"]
        total = {name: sum((_number(group[name]) for group in groups), Decimal()) for name in by_rows}
        assert total == by_rows, by
    with reading.open_readonly(settings)() as connection:
        spent = [queries.spent(connection, each, START_US) for each in ([project] if project else PROJECTS)]
    for name, amount in (
        ("requests", sum(by_rows[f"{source.word}_requests"] for source in Source if source is not Source.NONE)),
        ("tokens", sum(by_rows[token] for token in queries.BILLED_TOKENS)),
        ("nano", sum(by_rows[source] for source in ("billed_usd", "pending_usd", "estimated_usd")) * 10**9),
        ("unknown_requests", by_rows["unknown_requests"]),
    ):
        assert sum(getattr(each, name) for each in spent) == amount, name


def _number(value: str | int | None) -> Decimal:
    return Decimal(value or 0)


def _as_csv(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def test_the_sum_of_rows_by_any_zone_is_one(settings: LedgerSettings, tmp_path: Path) -> None:
    """Days of another zone are other days, and add up to the same."""
    config = configuration(tmp_path, settings)
    totals = []
    for zone in ("UTC", "Asia/Kolkata"):
        ran = called(
            tmp_path, "stats", "--by", "day", "--since", "2020-01-01", "--json", "--config", config, env={"TZ": zone}
        )
        totals.append(sum(group["requests"] for group in ran.json["groups"]))
    assert totals[0] == totals[1] == added(MADE).requests


def test_what_arrives_is_seen_when_it_ends(tmp_path: Path) -> None:
    """A request in flight is asked for again by its number until it has ended."""
    path = tmp_path / "ledger.sqlite"
    engine = writable(path)
    filler = Filler(engine)
    filler.fill([Made("main", START_US), Made("main", START_US + 1, state=State.OPEN, outcome=None)])
    with engine.begin() as connection:
        first = queries.arrived(connection, Filter(), 0, set())
        assert [row.state for row in first] == [State.SETTLED, State.OPEN]
        assert queries.arrived(connection, Filter(), 2, set()) == []
        connection.exec_driver_sql("UPDATE requests SET state = 1 WHERE seq = 2")
        assert [row.seq for row in queries.arrived(connection, Filter(), 2, {2})] == [2]
        assert queries.arrived(connection, replace(Filter(), project="other"), 0, set()) == []
    engine.dispose()


def test_histograms_add_up() -> None:
    """Adding stored forms is counting all durations together."""
    pieces = [[1, 50, 10_000], [], [10_000, 9_999_999_999_999], [0]]
    stored = [histogram.pack(histogram.count(piece)) for piece in pieces]
    assert histogram.added(stored) == histogram.count(each for piece in pieces for each in piece)
    assert histogram.added([]) == {}


@pytest.mark.postgres
def test_postgresql_answers_the_same(postgres_server: Server, path: Path, tmp_path: Path) -> None:
    """The same rows in both databases: every query and command says the same of them; and its connection cannot write."""
    url = postgres_server.new_database()
    engine = create_engine(url, poolclass=NullPool)
    Filler(engine).fill(MADE)
    engine.dispose()
    settings = LedgerSettings(url=Secret(url))
    here = reading.open_readonly(LedgerSettings(path=str(path)))
    there = reading.open_readonly(settings)
    end = START_US + HOURS * HOUR_US
    windows = [
        Filter(),
        Filter(project="main", since_us=START_US + 12_345_678, until_us=end - HOUR_US - 1),
        Filter(session="s1", model="gpt-4o"),
    ]
    with here() as one, there() as other:
        for wanted in windows:
            assert queries.sums(one, wanted) == queries.sums(other, wanted)
            assert queries.newest(one, wanted, 50) == queries.newest(other, wanted, 50)
            assert queries.page(one, wanted, None, 50) == queries.page(other, wanted, None, 50)
        for by in get_args(queries.By):
            assert queries.stats(one, by, Filter(), end) == queries.stats(other, by, Filter(), end)
        assert queries.sums_by_agent(one, windows[2]) == queries.sums_by_agent(other, windows[2])
        assert queries.extent(one) == queries.extent(other)
        hours = queries.checked_hours(other)
        assert hours is not None
        assert queries.differences(other, hours) == []
        with pytest.raises(DBAPIError, match="read-only"):
            queries.ask(other, "DELETE FROM requests")
    config = configuration(tmp_path, settings)
    for words in (
        ("logs", "--limit", "5"),
        ("stats", "--since", "2020-01-01"),
        ("ledger", "check"),
        ("ledger", "status"),
    ):
        ran = called(tmp_path, *words, "--config", config)
        assert ran.code == 0, ran
    assert "postgresql+psycopg://postgres@127.0.0.1" in ran.out
    whole = Settings(ledger=settings)
    assert (ledger_report.report(whole).place, ledger_report.report(whole).problem) == (reading.place(settings), None)
    for project in (None, "website"):
        test_logs_stats_export_cost_and_budgets_agree(settings, tmp_path, project)


def test_the_edge_of_a_window_reads_no_other_rows(connection: Connection) -> None:
    """A budget reads an hour at most of the rows: SQLite searches them by number, and sorts nothing to add each one up."""
    [costed] = queries._batches(connection, {}, START_US + 1, START_US + HOUR_US)
    plan = [row[3] for row in queries.ask(connection, f"EXPLAIN QUERY PLAN {costed}")]
    assert any(step.startswith("SEARCH requests USING INTEGER PRIMARY KEY") for step in plan), plan
    assert not any("SCAN requests" in step or "TEMP B-TREE" in step for step in plan), plan
