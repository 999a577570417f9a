"""Make a ledger of ten million requests and measure what reads it.

    nice python benchmarks/ledger.py                                  ten million rows: about ten minutes, 6 GB of disk
    python benchmarks/ledger.py --rows 100000                         a few seconds
    python benchmarks/ledger.py --file F                              keep the file, and use it again within the day
    python benchmarks/ledger.py --write benchmarks/RESULTS.md         the section "Ledger" there

The rows are written directly into the product's schema, 30 days of them up to now, with ids, sessions, token counts and costs of
usual length. Run it with the Python of an environment that has this checkout installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import report
from sqlalchemy import create_engine

from proxy.config.settings import LedgerSettings
from proxy.ledger import histogram, queries, reading
from proxy.ledger.columns import ROLLUP_KEY, ROLLUP_SUMS, Bill, Kind, State
from proxy.ledger.schema import attempts, migrate, requests, rollups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 10_000_000
DAYS = 30
HOUR_US = 3_600_000_000
#: Beyond these the section says "not met". Seconds and bytes.
GOALS = {"stats --since 30d": 1.0, "logs, first line": 0.2, "bytes a row": 250.0}

PROJECTS = ("main", "website", "lab", "support", "research", "batch")
SERVED = {
    "openai": ("gpt-4o", "gpt-4o-mini", "gpt-5"),
    "anthropic": ("claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-6"),
    "google": ("gemini-2.5-flash", "gemini-2.5-pro"),
    "groq": ("llama-3.1-8b-instant", "llama-3.3-70b-versatile"),
}
TOOLS = ("claude-code", "codex", "openai-python", "anthropic-python", "cursor")
OUTCOMES = ("ok",) * 47 + ("provider_error", "client_gone", "timeout")
CALLS = 20_000
IN_SESSION = 150
"""Requests of a session of an agent."""


class Numbers:
    """The table ``names`` while it is being made."""

    def __init__(self) -> None:
        self._known: dict[tuple[Kind, str], int] = {}
        self.new: list[tuple[int, int, str]] = []

    def of(self, kind: Kind, text: str) -> int:
        """The number of a name, a new one if need be."""
        found = self._known.get((kind, text))
        if found is None:
            found = self._known[kind, text] = len(self._known) + 1
            self.new.append((found, int(kind), text))
        return found

    def taken(self) -> list[tuple[int, int, str]]:
        """The names that are new since the last call."""
        new, self.new = self.new, []
        return new


class Mix(NamedTuple):
    """What one program on one project asks for. Numbers of names."""

    project: int
    provider: int
    model: int
    tool: int
    in_sessions: bool


class Call(NamedTuple):
    """One of the upstream calls that are taken again and again: making ten million different ones takes an hour."""

    asked: int
    cached: int
    said: int
    wait: int
    nano: int
    usage: str
    lava_id: str
    response_id: str


class Maker:
    """Makes rows, an hour at a time."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.numbers = Numbers()
        of = self.numbers.of
        self.outcomes = [of(Kind.OUTCOME, name) for name in OUTCOMES]
        self.fixed = {
            "dialect": of(Kind.DIALECT, "openai"),
            "endpoint": of(Kind.ENDPOINT, "chat"),
            "usage_names": of(
                Kind.USAGE, "prompt_tokens,completion_tokens,prompt_tokens_details.cached_tokens,total_tokens"
            ),
            "daemon": of(Kind.DAEMON, "d1"),
        }
        self.prices = of(Kind.PRICES, "learned")
        models = [(provider, model) for provider, served in SERVED.items() for model in served]
        self.mixes = [
            Mix(
                of(Kind.PROJECT, project),
                of(Kind.PROVIDER, provider),
                of(Kind.MODEL, model),
                of(Kind.TOOL, tool),
                tool in ("claude-code", "codex"),
            )
            for project in PROJECTS
            for tool in self.dice.sample(TOOLS, 2)
            for provider, model in self.dice.sample(models, 4)
        ]
        self.sessions: dict[Mix, tuple[int, int, int]] = {}
        """The session and the sub-agent of each mix, and how many requests they still have."""
        self.calls = [self._call() for _ in range(CALLS)]
        self.seq = 0

    def _call(self) -> Call:
        dice = self.dice
        asked, cached, said = dice.randrange(40_000), dice.randrange(20_000), dice.randrange(2000)
        return Call(
            asked,
            cached,
            said,
            int(dice.lognormvariate(13, 0.8)),
            asked * 250 + said * 1000,
            f"{asked + cached},{said},{cached},{asked + cached + said}",
            f"req_{dice.getrandbits(96):024x}",
            f"chatcmpl-{dice.getrandbits(116):029x}",
        )

    def _session(self, mix: Mix) -> tuple[int | None, int | None]:
        if not mix.in_sessions:
            return None, None
        session, agent, left = self.sessions.get(mix, (0, 0, 0))
        if not left:
            session = self.numbers.of(Kind.SESSION, f"{self.dice.getrandbits(96):024x}")
            agent, left = self.numbers.of(Kind.AGENT, f"{self.dice.getrandbits(96):024x}"), IN_SESSION
        self.sessions[mix] = session, agent, left - 1
        return session, agent if left % 3 == 0 else None

    def hour(
        self, start_us: int, count: int
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], list[dict[str, Any]]]:
        """Rows of ``requests`` and ``attempts``, and the sums of ``rollups``, for the requests of one hour."""
        rows, calls = [], []
        sums: dict[tuple[int, ...], dict[str, Any]] = {}
        fixed = self.fixed
        for each in range(count):
            self.seq += 1
            mix, call = self.dice.choice(self.mixes), self.dice.choice(self.calls)
            outcome = self.dice.choice(self.outcomes)
            done = outcome == self.outcomes[0]
            received = start_us + each * HOUR_US // count
            key = (start_us // HOUR_US, mix.project, mix.provider, mix.model, mix.tool, outcome)
            own = sums.get(key)
            if own is None:
                own = sums[key] = (
                    dict(zip(ROLLUP_KEY, key, strict=True)) | dict.fromkeys(ROLLUP_SUMS, 0) | {"waits": []}
                )
            own["requests"] += 1
            own["streamed_requests"] += 1
            own["bytes_in"] += 4 * call.asked
            own["waits"].append(call.wait)
            status, size = (200, 5 * call.said) if done else (503, 0)
            usage: tuple[Any, ...] = (None,) * 8
            ids: tuple[Any, ...] = (None,) * 2
            cost: tuple[Any, ...] = (None,) * 4
            if done:
                usage = (fixed["usage_names"], call.usage, call.asked, call.cached, 0, 0, call.said, 0)
                ids, cost = (call.lava_id, call.response_id), (call.nano, self.prices, call.nano, int(Bill.COMPLETED))
                own["bytes_out"] += size
                own["input"] += call.asked
                own["cache_read"] += call.cached
                own["output"] += call.said
                own["billed"] += call.nano
                own["billed_requests"] += 1
            else:
                own["unknown_requests"] += 1
            rows.append(
                (
                    *(self.seq, (received // 1000 << 48 | self.seq).to_bytes(12, "big"), received, call.wait),
                    *(call.wait + 20_000 * call.said, mix.project, mix.provider, mix.model, mix.model),
                    *(fixed["dialect"], fixed["endpoint"], 1, outcome, status, None, 4 * call.asked, size),
                    *(mix.tool, *self._session(mix), None, *usage),
                    *(None, None, None, None, int(State.SETTLED), fixed["daemon"]),
                )
            )
            calls.append(
                (self.seq, 1, mix.provider, mix.model, received + 300, call.wait, status, None, 1, *ids, *cost)
            )
        return rows, calls, list(sums.values())


def make(path: Path, rows: int, tell: Callable[[str], None], seed: int = 1) -> None:
    """Write a ledger of ``rows`` requests: 30 days of them, up to now."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    with engine.begin() as connection:
        migrate(connection)
    maker = Maker(seed)
    hours = DAYS * 24
    first = time.time_ns() // 1000 // HOUR_US - hours + 1
    written = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Nothing of this survives a crash, and need not.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-400000")
        for hour in range(hours):
            many = rows * (hour + 1) // hours - written
            made, calls, sums = maker.hour((first + hour) * HOUR_US, many)
            for each in sums:
                each["first_byte"] = histogram.pack(histogram.count(each.pop("waits")))
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO names (id, kind, text) VALUES (?, ?, ?)", maker.numbers.taken())
            _insert(connection, requests.name, len(requests.columns), made)
            _insert(connection, attempts.name, len(attempts.columns), calls)
            _insert(
                connection,
                rollups.name,
                len(rollups.columns),
                [tuple(each[column.name] for column in rollups.columns) for each in sums],
            )
            connection.execute("COMMIT")
            written += many
            if hour % 72 == 71:
                tell(f"{written:,} rows …")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _insert(connection: sqlite3.Connection, table: str, columns: int, rows: list[tuple[Any, ...]]) -> None:
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)


def sizes(path: Path) -> dict[str, int]:
    """Bytes of each table and index."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT name, SUM(pgsize) FROM dbstat WHERE aggregate = TRUE GROUP BY name"))


def bytes_a_row(path: Path, rows: int) -> tuple[float, float]:
    """Bytes of ``requests`` with its indexes per row; and of the whole file."""
    found = sizes(path)
    own = sum(size for name, size in found.items() if name == "requests" or name.startswith("requests_"))
    return own / rows, sum(found.values()) / rows


class Taken(NamedTuple):
    """Seconds: the median of some runs, by the clock and of processor time (which other programs disturb less)."""

    clock: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.3f} s ({self.processor:.3f} s of processor time)"


def seconds(work: Callable[[], float | None], times: int) -> Taken:
    """Do ``work`` some times, in this process or in ones it starts. It may return how long it took until what counts."""
    clock, processor = [], []
    for _ in range(times):
        start, before = time.perf_counter(), sum(os.times()[:4])
        until = work()
        clock.append(time.perf_counter() - start if until is None else until)
        processor.append(sum(os.times()[:4]) - before)
    return Taken(statistics.median(clock), statistics.median(processor))


def query_seconds(path: Path, times: int) -> dict[str, Taken]:
    """The queries alone: with a new connection each time, as a command has it."""
    begin = reading.open_readonly(LedgerSettings(path=str(path)))

    def stats() -> None:
        now_us = time.time_ns() // 1000
        with begin() as connection:
            queries.stats(connection, "project", queries.Filter(since_us=now_us - DAYS * 24 * HOUR_US), now_us)

    def logs() -> None:
        with begin() as connection:
            queries.newest(connection, queries.Filter(), 50)

    return {"stats --since 30d": seconds(stats, times), "logs, first line": seconds(logs, times)}


def process_seconds(path: Path, folder: Path, times: int) -> dict[str, Taken]:
    """The commands as a user starts them, from the start of the process to their first line; and on an empty ledger."""
    empty = folder / "empty.sqlite"
    make(empty, 0, lambda _: None)

    # With compiled modules, as an installed program has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def first_line(file: Path, *words: str) -> float:
        config = folder / "config.toml"
        config.touch(mode=0o600)
        config.write_text(f"[ledger]\npath = {json.dumps(str(file.absolute()))}\n", encoding="utf-8")
        command = [sys.executable, "-m", "proxy", *words, "--config", str(config)]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, env=environment) as process:
            if process.stdout is None or not process.stdout.readline():
                raise SystemExit(f"{' '.join(words)} printed nothing")
            until = time.perf_counter() - start
            process.stdout.read()
        return until

    found = {"--help": seconds(lambda: first_line(empty, "--help"), times)}
    for name, words in (("stats --since 30d", ("stats", "--since", "30d")), ("logs, first line", ("logs",))):
        for file, what in ((path, name), (empty, f"{name}, empty")):
            found[what] = seconds(lambda file=file, words=words: first_line(file, *words), times)  # type: ignore[misc]
    return found


def figures(path: Path, rows: int, folder: Path, times: int) -> Iterator[report.Figure]:
    """What was measured, against the goals."""
    alone, whole = query_seconds(path, times), process_seconds(path, folder, times)
    for name in ("stats --since 30d", "logs, first line"):
        goal = GOALS[name]
        query, command = alone[name], whole[name]
        yield report.Figure(f"{rows:,} rows, `{name}`: the query", f"< {goal:g} s", str(query), query.clock < goal)
        start = f"on an empty ledger {whole[f'{name}, empty'].clock:.3f} s, `--help` {whole['--help'].clock:.3f} s"
        yield report.Figure(
            "… the command, from the start of Python to its first line",
            f"< {goal:g} s",
            f"{command}; {start}",
            command.clock < goal,
        )
    own, all_ = bytes_a_row(path, rows)
    measured = f"{own:.0f}; {all_:.0f} with attempts, their indexes, rollups and names"
    yield report.Figure(
        "bytes a row of `requests` with its indexes",
        f"≤ {GOALS['bytes a row']:g}",
        measured,
        own <= GOALS["bytes a row"],
    )


def tell(text: str) -> None:
    """What goes on; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks/ledger.py", description="Measure what reads a large ledger.")
    parser.add_argument("--rows", type=int, metavar="N", default=ROWS)
    parser.add_argument("--file", type=Path, metavar="F", help="keep the ledger here; one that is there is used again")
    parser.add_argument("--times", type=int, metavar="N", default=5, help="runs to take the median of")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the section into this Markdown file")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="lava-proxy-benchmark-") as name:
        folder = Path(name)
        path = options.file or folder / "ledger.sqlite"
        if not path.exists():
            tell(f"making {options.rows:,} rows …")
            start = time.perf_counter()
            make(path, options.rows, tell)
            tell(f"made in {time.perf_counter() - start:.0f} s")
        found = list(figures(path, options.rows, folder, options.times))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (hours,) = connection.execute("SELECT COUNT(*) FROM rollups").fetchone()
    print("\n".join(report.goals(found, markdown=False)))
    if options.write:
        about = (
            f"Written by `python benchmarks/ledger.py --rows {options.rows}`, {time.strftime('%Y-%m-%d')}, at a load average of "
            f"{os.getloadavg()[0]:.1f}. The rows are of {DAYS} days, with {hours:,} sums per hour."
        )
        body = "\n".join(["## Ledger", "", about, "", *report.goals(found, markdown=True)])
        former = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(report.with_section(former, report.LEDGER, body), encoding="utf-8")
        tell(f"written: {options.write}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
