"""What the ledger stores, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from time import time
from typing import TYPE_CHECKING, Any

import pytest
from ledgers import FACTS, Place, in_flight, record
from sqlalchemy import inspect

from proxy.ledger import columns, histogram, prune, schema
from proxy.ledger.columns import Bill, Kind, State
from proxy.ledger.in_flight import Opened
from proxy.ledger.names import MAX_NAMES, Names
from proxy.ledger.rows import id_bytes, request_id_of
from proxy.protocol.clients import hashed
from proxy.protocol.record import Attempt, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY_US = 86_400_000_000


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Makes places of one kind of database with the given keys of ``[ledger]``."""
    made: list[Place] = []

    def place(**options: Any) -> Place:
        if request.param == "sqlite":
            made.append(Place(tmp_path / f"ledger-{len(made)}.sqlite", **options))
        else:
            made.append(Place(url=request.getfixturevalue("postgres_server").new_database(), **options))
        return made[-1]

    yield place
    for each in made:
        each.close()


@pytest.fixture
def place(make: Any) -> Place:
    """An empty database."""
    found: Place = make()
    return found


REQUESTS = """SELECT r.*, p.text AS project_name, o.text AS outcome_name, a.text AS asked_name, s.text AS served_name,
    t.text AS tool_name, e.text AS error_name, n.text AS session_name FROM requests r
    LEFT JOIN names p ON p.id = r.project LEFT JOIN names o ON o.id = r.outcome LEFT JOIN names a ON a.id = r.asked
    LEFT JOIN names s ON s.id = r.served LEFT JOIN names t ON t.id = r.tool LEFT JOIN names e ON e.id = r.error
    LEFT JOIN names n ON n.id = r.session ORDER BY r.seq"""


def test_a_settled_request_is_one_row(place: Place) -> None:
    """With the values of its record; what is unknown is NULL."""
    made = record()
    before = int(time() * 1e6)
    assert place.store().write([made], again=False) == 1
    [row] = place.rows(REQUESTS)
    assert request_id_of(bytes(row["id"])) == made.request_id
    assert row["project_name"] == "website"
    assert (row["asked_name"], row["served_name"]) == ("gpt-4o-mini", "gpt-4o-mini-2026")
    assert (row["outcome_name"], row["status"], row["state"]) == ("ok", 200, State.SETTLED)
    assert (row["tool_name"], row["error_name"], row["session_name"]) == ("openai-python", None, None)
    assert (row["first_byte_us"], row["duration_us"]) == (250_000, 500_000)
    assert abs(row["received_us"] + 500_000 - before) < 5_000_000
    assert (row["bytes_in"], row["bytes_out"]) == (100, 300)
    assert (row["input"], row["output"], row["reasoning"], row["images"]) == (10, 5, None, None)


def test_an_upstream_call_is_one_row(place: Place) -> None:
    """The cost of one that was sent is pending; one that was not sent has none."""
    made = record()
    refused = Attempt("groq", "llama", made.started, ended=made.started + 0.125, sent=False, reason="connect")
    made.attempts.insert(0, refused)
    place.store().write([made], again=False)
    first, second = place.rows(
        "SELECT a.*, p.text AS provider_name, e.text AS ended_name FROM attempts a JOIN names p ON p.id = a.provider "
        "LEFT JOIN names e ON e.id = a.ended ORDER BY number"
    )
    assert (first["provider_name"], first["sent"], first["ended_name"], first["status"]) == ("groq", 0, "connect", None)
    assert (first["duration_us"], first["lava_id"]) == (125_000, None)
    assert (second["provider_name"], second["sent"], second["ended_name"], second["status"]) == ("openai", 1, None, 200)
    assert second["lava_id"] == made.lava_request_id
    assert (second["billed"], second["bill"], second["estimated"]) == (None, Bill.PENDING, 4500)
    assert first["bill"] is None


def test_a_refused_request_is_recorded_without_a_cost(place: Place) -> None:
    place.store().write(
        [record(sent=False, outcome=Outcome.REFUSED, status=503, error_code="overloaded", first_byte_s=None)],
        again=False,
    )
    [row] = place.rows(REQUESTS)
    assert (row["outcome_name"], row["error_name"], row["input"]) == ("refused", "overloaded", None)
    assert place.rows("SELECT * FROM attempts") == []
    [rollup] = place.rows("SELECT * FROM rollups")
    assert (rollup["requests"], rollup["pending_requests"], rollup["unknown_requests"]) == (1, 0, 0)


def test_rows_are_in_the_order_in_which_the_requests_ended(place: Place) -> None:
    """Whatever they have in common, and whatever the clock said."""
    batch = [record(model=f"m{number % 3}") for number in range(250)]
    place.store().write(batch, again=False)
    assert [bytes(row["id"]) for row in place.rows(REQUESTS)] == [id_bytes(each.request_id) for each in batch]


def test_rollups_agree_with_the_rows(place: Place) -> None:
    """On random data, over several batches: every sum, and the histogram."""
    chance = random.Random(5282)
    store = place.store()
    for _ in range(4):
        batch = []
        for _ in range(chance.randrange(1, 120)):
            batch.append(
                record(
                    model=chance.choice(["a", "b"]),
                    project=chance.choice(["website", "lab"]),
                    outcome=chance.choice([Outcome.OK, Outcome.TRUNCATED]),
                    streamed=chance.random() < 0.5,
                    first_byte_s=chance.choice([None, chance.random() * 10]),
                    bytes_out=chance.randrange(10_000),
                    started=chance.uniform(-20_000, 0),
                    usage=f'{{"prompt_tokens":{chance.randrange(99)},"completion_tokens":{chance.randrange(99)}}}',
                )
            )
        store.write(batch, again=False)
    expected: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in place.rows("SELECT * FROM requests"):
        key = (
            row["received_us"] // 3_600_000_000,
            row["project"],
            row["provider"],
            row["served"],
            row["tool"],
            row["outcome"],
        )
        expected.setdefault(key, []).append(row)
    rollups = {tuple(row[name] for name in columns.ROLLUP_KEY): row for row in place.rows("SELECT * FROM rollups")}
    assert set(rollups) == set(expected)
    for key, rows in expected.items():
        rollup = rollups[key]
        assert rollup["requests"] == rollup["pending_requests"] == len(rows)
        for name in (*columns.TOKENS, "bytes_in", "bytes_out"):
            assert rollup[name] == sum(row[name] or 0 for row in rows)
        assert rollup["streamed_requests"] == sum(row["streamed"] for row in rows)
        assert histogram.unpack(rollup["first_byte"]) == histogram.count(row["first_byte_us"] for row in rows)


def test_a_request_in_flight_has_a_row_and_keeps_it(place: Place) -> None:
    """The row is open, then settled; it is counted once, when it is settled."""
    store = place.store()
    made = in_flight()
    made.stored = 2
    store.write([Opened(made), Opened(made)], again=False)
    [row] = place.rows(REQUESTS)
    assert (row["state"], row["outcome"], row["duration_us"]) == (State.OPEN, None, None)
    assert len(place.rows("SELECT * FROM attempts WHERE sent = 1")) == 1
    assert place.rows("SELECT * FROM rollups") == []
    made.outcome, made.status, made.duration_s = Outcome.OK, 200, 3.0
    assert store.write([made], again=False) == 1
    [after] = place.rows(REQUESTS)
    assert (after["seq"], after["state"], after["outcome_name"]) == (row["seq"], State.SETTLED, "ok")
    assert len(place.rows("SELECT * FROM attempts")) == 1
    assert [row["requests"] for row in place.rows("SELECT * FROM rollups")] == [1]


def test_a_batch_that_may_have_been_committed_is_stored_once(place: Place) -> None:
    """Its commit failed, and nothing says whether it was done."""
    store = place.store()
    batch = [record() for _ in range(3)]
    store.write(batch, again=False)
    store.close()
    assert store.write([*batch, record()], again=True) == 1
    assert len(place.rows("SELECT * FROM requests")) == 4
    assert sum(row["requests"] for row in place.rows("SELECT * FROM rollups")) == 4


def test_open_rows_of_a_daemon_that_died_are_interrupted(place: Place) -> None:
    """Their outcome says so, their usage and cost are unknown, and they are counted."""
    first = place.store("first")
    made = in_flight()
    first.write([Opened(made), record()], again=False)
    first.close()
    if place.path is None:
        place.execute("UPDATE meta SET value = '0' WHERE name = 'daemon first'")
    place.store("second").write([record()], again=False)
    [row] = [row for row in place.rows(REQUESTS) if bytes(row["id"]) == id_bytes(made.request_id)]
    assert (row["state"], row["outcome_name"], row["input"]) == (State.INTERRUPTED, "interrupted", None)
    assert place.warnings == [
        "1 request did not end before the daemon did: marked as interrupted in the ledger, cost unknown."
    ]
    rollups = place.rows(
        "SELECT r.requests, r.pending_requests, n.text FROM rollups r JOIN names n ON n.id = r.outcome"
    )
    assert {row["text"]: (row["requests"], row["pending_requests"]) for row in rollups} == {
        "ok": (2, 2),
        "interrupted": (1, 1),
    }


@pytest.mark.parametrize("make", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_a_daemon_that_lives_keeps_its_open_rows(place: Place) -> None:
    """And one that was cut off for longer than its lease corrects what another made of its rows."""
    first, second = place.store("first"), place.store("second")
    made = in_flight()
    made.stored = 2
    first.write([Opened(made)], again=False)
    second.write([record()], again=False)
    [row] = [row for row in place.rows(REQUESTS) if bytes(row["id"]) == id_bytes(made.request_id)]
    assert row["state"] == State.OPEN
    place.execute("UPDATE meta SET value = '0' WHERE name = 'daemon first'")
    place.store("third").connection()
    [row] = [row for row in place.rows(REQUESTS) if bytes(row["id"]) == id_bytes(made.request_id)]
    assert row["state"] == State.INTERRUPTED
    made.outcome = Outcome.OK
    first.write([made], again=False)
    rollups = place.rows("SELECT r.requests, n.text FROM rollups r JOIN names n ON n.id = r.outcome")
    assert sorted((row["text"], row["requests"]) for row in rollups if row["requests"]) == [("ok", 1), ("ok", 1)]
    assert [row["state"] for row in place.rows(REQUESTS)] == [State.SETTLED] * 2


def test_names_are_stored_once_and_bounded(place: Place) -> None:
    """A client chooses them: also NUL, half a character, and thousands of letters."""
    store = place.store()
    odd = ["m\x00l", "m\ud800l", "x" * 10_000]
    store.write([record(sent=False, model=name) for name in odd], again=False)
    store.close()
    place.store().write([record(sent=False, model=name) for name in odd], again=False)
    rows = place.rows(f"SELECT text FROM names WHERE kind = {int(Kind.MODEL)}")
    assert sorted(row["text"] for row in rows) == ["m\ufffdl", "x" * 500]


def test_a_client_cannot_fill_the_names(place: Place) -> None:
    """After the most of a kind, the rest are one name; those that are known stay what they are."""
    store = place.store()
    tools = [f"tool-{number}" for number in range(MAX_NAMES[Kind.TOOL] + 300)]
    for start in range(0, len(tools), 500):
        store.write([record(facts=FACTS._replace(tool=tool)) for tool in tools[start : start + 500]], again=False)
    store.close()
    place.store().write([record(facts=FACTS._replace(tool=tool)) for tool in ("tool-1", "new")], again=False)
    [count] = place.rows(f"SELECT count(*) AS names FROM names WHERE kind = {int(Kind.TOOL)}")
    assert count["names"] == MAX_NAMES[Kind.TOOL] + 1
    tally = Counter(row["tool_name"] for row in place.rows(REQUESTS))
    assert (tally["other"], tally["tool-0"], tally["tool-1"]) == (301, 1, 2)
    [rollup] = place.rows(
        "SELECT sum(r.requests) AS sums FROM rollups r JOIN names n ON n.id = r.tool WHERE n.text = 'other'"
    )
    assert rollup["sums"] == 301


def test_a_new_ledger_knows_when_it_was_begun(place: Place) -> None:
    """And keeps that time."""
    before = int(time() * 1e6)
    place.store().connection()
    [first] = place.rows("SELECT value FROM meta WHERE name = 'created'")
    assert before <= int(first["value"]) <= time() * 1e6
    place.store("two").connection()
    assert place.rows("SELECT value FROM meta WHERE name = 'created'") == [first]


def test_sessions_are_hashed_unless_they_are_wanted_plain(make: Any) -> None:
    facts = FACTS._replace(session="session-1", agent="agent-1")
    for option, session, agent in (
        ("hashed", hashed("session-1"), hashed("agent-1")),
        ("plain", "session-1", "agent-1"),
    ):
        place: Place = make(sessions=option)
        place.store().write([record(facts=facts)], again=False)
        found = place.rows(f"SELECT text FROM names WHERE kind IN ({int(Kind.SESSION)}, {int(Kind.AGENT)})")
        assert {row["text"] for row in found} == {session, agent}


def test_secrets_are_masked(place: Place) -> None:
    """A client may send its key in the place of a model's name."""
    store = place.store(mask=lambda text: text.replace("secret", "***"))
    store.write([record(model="my-secret", lava_request_id="secret")], again=False)
    texts = [row["text"] for row in place.rows("SELECT text FROM names")]
    texts += [row["lava_id"] for row in place.rows("SELECT lava_id FROM attempts")]
    assert "my-***" in texts
    assert not [text for text in texts if "secret" in text]


def test_the_hooks_of_a_batch_are_part_of_its_transaction(make: Any) -> None:
    place: Place = make()
    store = place.store()
    seen: list[tuple[int, str]] = []

    def hook(connection: Any, stored: Any) -> None:
        seen.extend((each.seq, each.record.request_id) for each in stored)
        if len(seen) > 1:
            raise OSError("no")

    store._hooks.append(hook)
    made = record()
    store.write([made, Opened(in_flight())], again=False)
    assert seen == [(1, made.request_id)]
    with pytest.raises(OSError, match="no"):
        store.write([record()], again=False)
    assert len(place.rows("SELECT * FROM requests")) == 2


# --- retention -------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_checked_is_a_fault_of_the_database(tmp_path: Path) -> None:
    """So the batch is kept, and what waits for the ledger is told that it is away. A folder cannot be opened as a database."""
    path = tmp_path / "ledger.sqlite"
    path.mkdir()
    store = Place(path).store()
    with pytest.raises(sqlite3.OperationalError) as raised:
        store.run(lambda connection: None)
    assert store.is_fault_of_database(raised.value)
    assert not store.is_fault_of_data(raised.value)


def test_every_table_has_a_retention_rule(place: Place) -> None:
    """A table that was added without one fails here."""
    connection = place.store().connection()
    tables = set(inspect(connection).get_table_names())
    connection.rollback()
    assert tables == set(schema.RETENTION)
    assert all(rule.rule for rule in schema.RETENTION.values())


def test_old_requests_are_pruned_and_their_sums_stay(make: Any) -> None:
    place: Place = make(keep="1d")
    store = place.store()
    facts = FACTS._replace(session="gone")
    store.write([record(facts=facts) for _ in range(1200)] + [Opened(in_flight())], again=False)
    place.execute(
        f"UPDATE requests SET received_us = received_us - {DAY_US + 1_000_000}",
        f"UPDATE names SET used_us = used_us - {4 * DAY_US}",
    )
    store.write([record()], again=False)
    connection = store.connection()
    steps = 0
    while True:
        with connection.begin():
            found = prune.requests_step(connection, 86_400)
            assert found <= prune.ROWS_PER_STEP
            if not found:
                break
            steps += 1
    assert steps == 3
    with connection.begin():
        assert prune.unused_names(connection, 86_400) > 0
    assert sorted(row["state"] for row in place.rows("SELECT state FROM requests")) == [State.OPEN, State.SETTLED]
    assert len(place.rows("SELECT * FROM attempts")) == 2
    assert sum(row["requests"] for row in place.rows("SELECT * FROM rollups")) == 1201
    kinds = {row["kind"] for row in place.rows("SELECT kind FROM names")}
    assert Kind.SESSION not in kinds
    assert {Kind.PROJECT, Kind.MODEL, Kind.TOOL, Kind.OUTCOME} <= kinds


def test_a_name_in_use_is_noted_as_used(place: Place) -> None:
    """Within a day of its use: what is pruned is older than that."""
    store = place.store()
    store.write([record()], again=False)
    place.execute(f"UPDATE names SET used_us = used_us - {2 * DAY_US}")
    names = Names(str)
    connection = store.connection()
    with connection.begin():
        names.number(connection, Kind.PROJECT, "website")
    [row] = place.rows("SELECT used_us FROM names WHERE text = 'website'")
    assert row["used_us"] > (time() - 60) * 1e6


def test_the_file_shrinks(tmp_path: Path) -> None:
    place = Place(tmp_path / "ledger.sqlite", keep="1h")
    store = place.store()
    for _ in range(8):
        store.write([record() for _ in range(500)], again=False)
    assert place.path is not None

    def pages() -> int:
        return int(place.rows("PRAGMA page_count")[0]["page_count"])

    before = pages()
    place.execute("DELETE FROM requests", "DELETE FROM attempts")
    connection = store.connection()
    more = True
    while more:
        more = prune.shrink_step(connection)
    assert pages() < before / 4
    place.close()


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_row_takes_at_most_250_bytes(tmp_path: Path, count: int) -> None:
    """A row of ``requests`` with its indexes; its upstream call stands beside it. As an agent makes them: with a session each
    fifty requests, a cached prompt, and ids like Lava's and the provider's.
    """
    place = Place(tmp_path / "ledger.sqlite")
    store = place.store()
    chance = random.Random(5282)
    for _ in range(count // 500):
        batch = []
        for number in range(500):
            if number % 50 == 0:
                facts = FACTS._replace(session=f"{chance.getrandbits(128):x}")
            counts = [chance.randrange(100_000), chance.randrange(2_000)]
            cached = counts[0] - chance.randrange(1 + counts[0] // 4)
            usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
            usage["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
            made = record(
                facts=facts,
                usage=json.dumps(usage),
                response_id=f"chatcmpl-{chance.getrandbits(144):036x}"[:38],
                bytes_in=counts[0] * 4,
                bytes_out=counts[1] * 60,
            )
            made.lava_request_id = f"req_{chance.getrandbits(96):024x}"
            batch.append(made)
        store.write(batch, again=False)
    store.close()
    assert place.path is not None
    sizes: Counter[str] = Counter()
    for row in place.rows("SELECT name, SUM(pgsize) AS bytes FROM dbstat WHERE aggregate = TRUE GROUP BY name"):
        sizes[row["name"].partition("_")[0].removeprefix("sqlite")] += row["bytes"]
    print({name: round(size / count, 1) for name, size in sizes.items()}, place.path.stat().st_size / count)
    assert sizes["requests"] / count <= 250
    assert sizes["attempts"] / count <= 190
    place.close()
