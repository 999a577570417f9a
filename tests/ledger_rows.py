"""A ledger filled with made-up requests, directly by SQL: for the tests of what reads it.

Its sums per hour are added up here, in plain Python, and not by the code under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, event, insert
from sqlalchemy.pool import NullPool

from proxy.ledger import histogram
from proxy.ledger.columns import ROLLUP_KEY, ROLLUP_SUMS, TOKENS, Bill, Kind, State
from proxy.ledger.schema import attempts, migrate, names, requests, rollups

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sqlalchemy import Engine

HOUR_US: Final = 3_600_000_000
START_US: Final = 1_790_000_000_000_000 // HOUR_US * HOUR_US
OUTCOMES: Final = ("ok", "ok", "ok", "provider_error", "refused", "client_gone", "timeout")


def writable(path: Path) -> Engine:
    """An engine on a new or old SQLite file, as the writer sets it up."""
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")

    return engine


@dataclass
class Made:
    """One made-up request. Amounts in billionths of a dollar."""

    project: str
    received_us: int
    outcome: str | None = "ok"
    provider: str | None = "openai"
    asked: str | None = "gpt-4o"
    served: str | None = None
    tool: str | None = None
    session: str | None = None
    agent: str | None = None
    state: State = State.SETTLED
    first_byte_us: int | None = 250_000
    duration_us: int | None = 900_000
    tokens: dict[str, int | None] = field(default_factory=dict)
    streamed: bool | None = False
    bytes_in: int | None = 100
    bytes_out: int | None = 1000
    status: int | None = 200
    #: (sent, bill, billed, estimated) of each upstream call.
    attempts: list[tuple[bool | None, Bill | None, int | None, int | None]] = field(default_factory=list)
    #: The price table of their estimates.
    prices: str = "genai-prices 0.0.66 2026-11-20"


def made_up(seed: int, count: int, hours: int = 30) -> list[Made]:
    """Random requests over some hours, of every source of cost."""
    dice = random.Random(seed)

    def maybe(*values: Any) -> Any:
        return dice.choice((None, *values))

    def attempt() -> tuple[bool | None, Bill | None, int | None, int | None]:
        bill = maybe(*Bill)
        billed = dice.randrange(10**9) if bill is Bill.COMPLETED else None
        return maybe(True, True, False), bill, billed, maybe(dice.randrange(10**9), dice.randrange(1000))

    found = []
    for _ in range(count):
        state = dice.choice((State.SETTLED, State.SETTLED, State.SETTLED, State.INTERRUPTED, State.HEALED, State.OPEN))
        found.append(
            Made(
                project=dice.choice(("main", "website", "lab")),
                received_us=START_US + dice.randrange(hours * HOUR_US),
                outcome=None if state is State.OPEN else dice.choice(OUTCOMES),
                provider=maybe("openai", "anthropic"),
                asked=maybe("gpt-4o", "claude-opus-4-6", "fast"),
                served=maybe("gpt-4o", "llama-3"),
                tool=maybe("codex", "claude-code"),
                session=maybe("s1", "s2"),
                agent=maybe("a1", "a2"),
                state=state,
                first_byte_us=maybe(dice.randrange(10**7)),
                duration_us=maybe(dice.randrange(10**7)),
                tokens={name: maybe(0, dice.randrange(5000)) for name in TOKENS},
                streamed=maybe(True, False),
                bytes_in=maybe(dice.randrange(10**6)),
                bytes_out=maybe(dice.randrange(10**6)),
                attempts=[attempt() for _ in range(dice.choice((0, 1, 1, 1, 2)))],
            )
        )
    return found


class Filler:
    """Writes made-up requests into a database with the ledger's schema."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers: dict[tuple[Kind, str], int] = {}
        self._seq = 0
        with engine.begin() as connection:
            migrate(connection)

    def _number(self, kind: Kind, text: str | None) -> int | None:
        if text is None:
            return None
        return self._numbers.setdefault((kind, text), len(self._numbers) + 1)

    def fill(self, made: Iterable[Made]) -> None:
        """Write rows, attempts and the sums per hour, in one transaction."""
        before = set(self._numbers)
        rows, calls, sums = [], [], dict[tuple[int, ...], dict[str, Any]]()
        for each in made:
            self._seq += 1
            row = self._row(each)
            rows.append(row)
            for number, (sent, bill, billed, estimated) in enumerate(each.attempts):
                prices = None if estimated is None else self._number(Kind.PRICES, each.prices)
                calls.append(
                    {
                        "request": self._seq,
                        "number": number,
                        "provider": row["provider"],
                        "started_us": each.received_us,
                        "sent": None if sent is None else int(sent),
                        "bill": bill,
                        "billed": billed,
                        "estimated": estimated,
                        "prices": prices,
                        "lava_id": f"lava-{self._seq}-{number}" if bill else None,
                    }
                )
            if each.state is not State.OPEN:
                self._add(sums, row, each)
        with self._engine.begin() as connection:
            new = [key for key in self._numbers if key not in before]
            for table, values in (
                (names, [{"id": self._numbers[key], "kind": int(key[0]), "text": key[1]} for key in new]),
                (requests, rows),
                (attempts, calls),
                (rollups, [self._packed(each) for each in sums.values()]),
            ):
                if values:
                    connection.execute(insert(table), values)

    def _row(self, each: Made) -> dict[str, Any]:
        return {
            "seq": self._seq,
            "id": self._seq.to_bytes(12, "big"),
            "received_us": each.received_us,
            "first_byte_us": each.first_byte_us,
            "duration_us": each.duration_us,
            "project": self._number(Kind.PROJECT, each.project),
            "provider": self._number(Kind.PROVIDER, each.provider),
            "asked": self._number(Kind.MODEL, each.asked),
            "served": self._number(Kind.MODEL, each.served),
            "outcome": self._number(Kind.OUTCOME, each.outcome),
            "tool": self._number(Kind.TOOL, each.tool),
            "session": self._number(Kind.SESSION, each.session),
            "agent": self._number(Kind.AGENT, each.agent),
            "streamed": None if each.streamed is None else int(each.streamed),
            "status": each.status,
            "bytes_in": each.bytes_in,
            "bytes_out": each.bytes_out,
            **{name: each.tokens.get(name) for name in TOKENS},
            "state": int(each.state),
        }

    @staticmethod
    def _add(sums: dict[tuple[int, ...], dict[str, Any]], row: dict[str, Any], each: Made) -> None:
        key = {
            "hour": row["received_us"] // HOUR_US,
            "project": row["project"],
            "provider": row["provider"] or 0,
            "model": row["served"] or row["asked"] or 0,
            "tool": row["tool"] or 0,
            "outcome": row["outcome"] or 0,
        }
        own = sums.setdefault(tuple(key.values()), {**key, **dict.fromkeys(ROLLUP_SUMS, 0), "waits": []})
        own["requests"] += 1
        for name in (*TOKENS, "bytes_in", "bytes_out"):
            own[name] += row[name] or 0
        own["streamed_requests"] += row["streamed"] or 0
        if row["first_byte_us"] is not None:
            own["waits"].append(row["first_byte_us"])
        least_known = "none"
        for sent, bill, billed, estimated in each.attempts:
            word, amount = expected(sent, bill, billed, estimated)
            if ORDER.index(word) > ORDER.index(least_known):
                least_known = word
            if amount is not None:
                own[word] += amount
        if least_known != "none":
            own[f"{least_known}_requests"] += 1

    @staticmethod
    def _packed(sums: dict[str, Any]) -> dict[str, Any]:
        waits = sums.pop("waits")
        return {
            **{name: sums[name] for name in (*ROLLUP_KEY, *ROLLUP_SUMS)},
            "first_byte": histogram.pack(histogram.count(waits)),
        }


ORDER: Final = ("none", "billed", "unmetered", "estimated", "pending", "unknown")


def expected(sent: bool | None, bill: Bill | None, billed: int | None, estimated: int | None) -> tuple[str, int | None]:
    """The source of an attempt's cost and its amount, written down once more, as a table."""
    if bill is Bill.COMPLETED and billed is not None:
        return "billed", billed
    if bill is Bill.UNMETERED:
        return "unmetered", None
    if bill is Bill.PENDING:
        return "pending", estimated
    if sent is False:
        return "none", None
    return ("unknown", None) if estimated is None else ("estimated", estimated)
