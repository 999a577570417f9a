"""learning.py: prices from bills, exactly, and a warning when they change."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import examples
from sqlalchemy import create_engine, select
from sqlalchemy.pool import NullPool

from proxy.ledger import columns, price_store, schema
from proxy.ledger.learning import CHANGED_ROWS, COLUMNS, Learning, PriceChange, solve
from proxy.ledger.pricing import Prices
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from pathlib import Path

GPT = {"input": 1_250_000_000, "cache_read": 125_000_000, "output": 10_000_000_000}


def _cost(prices: dict[str, int], classes: TokenClasses, digits: int = 9, rounding: str = ROUND_HALF_UP) -> int:
    """What a biller with these prices charges, in dollars with so many digits; returned in billionths."""
    total = sum((getattr(classes, name) or 0) * price for name, price in prices.items())
    dollars = (Decimal(total) / 10**15).quantize(Decimal(1).scaleb(-digits), rounding=rounding)
    return int(dollars * 10**9)


def _rows(number: int) -> list[TokenClasses]:
    """Requests as they come: different sizes, some with a cache, reasoning in the output."""
    return [
        TokenClasses(
            input=100 + 37 * each % 911,
            cache_read=1024 * (each % 3),
            output=20 + 53 * each % 307,
            reasoning=each % 20,
        )
        for each in range(number)
    ]


def _learned(
    prices: dict[str, int], rows: list[TokenClasses], digits: int = 9, rounding: str = ROUND_HALF_UP
) -> Learning:
    learning = Learning(Prices())
    for classes in rows:
        assert learning.observe("p", "m", classes, _cost(prices, classes, digits, rounding)) is None
    return learning


def test_five_bills_are_enough_and_four_are_not() -> None:
    """With different counts; the price is then the one charged, to the last digit."""
    rows = _rows(5)
    assert _learned(GPT, rows[:4]).changed() == {}
    assert _learned(GPT, rows).changed() == {("p", "m"): (GPT, 5)}
    assert _learned(GPT, rows[:4] * 5).changed() == {}


def test_a_learned_price_is_used_for_estimates() -> None:
    """Also of a size that was never billed, and reasoning is not charged twice."""
    prices = Prices()
    learning = Learning(prices)
    for classes in _rows(6):
        learning.observe("p", "m", classes, _cost(GPT, classes))
    asked = TokenClasses(input=1_000_001, cache_read=77, output=55_555, reasoning=55_000)
    assert prices.estimate("p", "m", asked, 0) == (_cost(GPT, asked), "learned")


@pytest.mark.parametrize("rounding", [ROUND_HALF_UP, ROUND_DOWN])
@pytest.mark.parametrize("digits", [9, 8, 6])
def test_a_biller_that_rounds_is_understood(digits: int, rounding: str) -> None:
    """To nanodollars or to microdollars, half up or down: many bills determine the price all the same."""
    rows = [
        TokenClasses(input=1000 + 1037 * each % 9911, cache_read=0, output=200 + 533 * each % 3071)
        for each in range(60)
    ]
    prices = {"input": 1_250_000_000, "output": 10_000_000_000}
    learned = _learned(prices, rows, digits, rounding).changed()["p", "m"]
    for name, price in prices.items():
        assert abs(learned.prices[name] - price) <= price // 1000


def test_what_bills_do_not_determine_is_not_learned() -> None:
    """Input and output always in the same ratio; a class that occurred once."""
    same = [TokenClasses(input=2 * each, output=each) for each in range(1, 30)]
    assert _learned(GPT, same).changed() == {}
    rows = [TokenClasses(input=10 * each, output=each * each, cache_read=0) for each in range(1, 8)]
    rare = [*rows, TokenClasses(input=50, output=3, cache_read=4096)]
    learned = _learned(GPT, rare).changed()["p", "m"]
    assert learned.prices == {"input": GPT["input"], "output": GPT["output"]}


def test_a_further_class_is_learned_when_it_occurs_again() -> None:
    """The others keep their prices meanwhile."""
    learning = _learned(GPT, [TokenClasses(input=10 * each, output=each * each) for each in range(1, 8)])
    assert set(learning.changed()["p", "m"].prices) == {"input", "output"}
    for cached in (4096, 8192):
        classes = TokenClasses(input=5, cache_read=cached, output=7)
        learning.observe("p", "m", classes, _cost(GPT, classes))
    assert learning.changed()["p", "m"].prices == GPT


def test_bills_that_no_price_explains_teach_nothing() -> None:
    """A constant in each, or noise."""
    learning = Learning(Prices())
    for number, classes in enumerate(_rows(60)):
        learning.observe("p", "m", classes, _cost(GPT, classes) * (100 + number * 7 % 40) // 100)
    assert learning.changed() == {}


def test_a_cut_stream_is_left_out() -> None:
    """It is billed in full, and its output was not counted."""
    rows = _rows(8)
    learning = Learning(Prices())
    for classes in rows:
        learning.observe("p", "m", classes, _cost(GPT, classes))
        learning.observe("p", "m", classes._replace(output=None), _cost(GPT, classes))
        learning.observe("p", "m", TokenClasses(), _cost(GPT, classes))
    assert learning.changed()["p", "m"].prices == GPT


def test_embeddings_have_input_alone() -> None:
    """One class is a price too."""
    rows = [TokenClasses(input=each * 17) for each in range(1, 6)]
    assert _learned({"input": 20_000_000}, rows).changed()["p", "m"].prices == {"input": 20_000_000}


def test_a_free_model_costs_nothing() -> None:
    """0 is a price, and the first bill above it is no change yet."""
    learning = _learned({}, _rows(6))
    assert set(learning.changed()["p", "m"].prices.values()) == {0}
    assert learning.observe("p", "m", TokenClasses(input=10, output=10), 5_000) is None


@pytest.mark.parametrize("percent", [90, 98, 102, 150])
def test_a_change_of_price_is_reported_once_and_learned(percent: int) -> None:
    """At the tenth bill in a row; afterwards the new price is known."""
    rows = _rows(60)
    learning = _learned(GPT, rows[:20])
    learning.changed()
    dearer = {name: price * percent // 100 for name, price in GPT.items()}
    changes = [learning.observe("p", "m", classes, _cost(dearer, classes)) for classes in rows[20:]]
    assert [number for number, change in enumerate(changes) if change] == [CHANGED_ROWS - 1]
    change = changes[CHANGED_ROWS - 1]
    assert isinstance(change, PriceChange)
    assert (change.provider, change.model) == ("p", "m")
    assert change.percent == pytest.approx(percent - 100, abs=0.01)
    assert learning.changed()["p", "m"].prices == dearer


def test_single_odd_bills_are_no_change() -> None:
    """Nine in a row, then one as usual, again and again."""
    learning = _learned(GPT, _rows(20))
    for _ in range(5):
        for classes in _rows(9):
            assert learning.observe("p", "m", classes, 2 * _cost(GPT, classes)) is None
        assert learning.observe("p", "m", _rows(1)[0], _cost(GPT, _rows(1)[0])) is None
    assert learning.changed()["p", "m"].prices == GPT


def test_less_than_a_percent_is_no_change() -> None:
    """Half a percent more, for ever."""
    learning = _learned(GPT, _rows(20))
    for classes in _rows(200):
        assert learning.observe("p", "m", classes, _cost(GPT, classes) * 1005 // 1000) is None


def test_the_rounding_of_small_bills_is_no_change_after_a_restart() -> None:
    """A biller in microdollars, requests of a few tokens, prices from the database."""
    learning = Learning(Prices())
    learning.load("p", "m", GPT, 50)
    for each in range(1, 40):
        classes = TokenClasses(input=each, output=1 + each % 3)
        assert learning.observe("p", "m", classes, _cost(GPT, classes, digits=6)) is None


def test_models_are_apart() -> None:
    """By provider and name."""
    learning = Learning(Prices())
    other = {"input": 3_000_000_000, "cache_read": 0, "output": 15_000_000_000}
    for classes in _rows(6):
        learning.observe("p", "m", classes, _cost(GPT, classes))
        learning.observe("q", "m", classes, _cost(other, classes))
    assert {key: learned.prices for key, learned in learning.changed().items()} == {("p", "m"): GPT, ("q", "m"): other}
    assert learning.changed() == {}


# Published prices have at most four decimals: 0.0001 dollars per million tokens.
_PUBLISHED = st.integers(0, 2_000_000).map(lambda price: price * 100_000)
_COUNT = st.just(0) | st.integers(1, 200_000)


@examples(150)
@given(
    prices=st.lists(_PUBLISHED, min_size=len(COLUMNS), max_size=len(COLUMNS)),
    rows=st.lists(st.lists(_COUNT, min_size=len(COLUMNS), max_size=len(COLUMNS)), min_size=5, max_size=24),
    used=st.sets(st.integers(0, len(COLUMNS) - 1), min_size=1, max_size=5),
)
def test_any_prices_are_recovered_to_the_nanodollar(prices: list[int], rows: list[list[int]], used: set[int]) -> None:
    """Where the bills determine them: an estimate of each of these requests is its bill."""
    counted = [tuple(count if each in used else 0 for each, count in enumerate(row)) for row in rows]
    billed = [(sum(map(int.__mul__, counts, prices)) + 500_000) // 1_000_000 for counts in counted]
    found = solve(list(zip(counted, billed, strict=True)))
    assume(found is not None)
    assert found is not None
    learned, step = found
    assert step == 1
    for counts, cost in zip(counted, billed, strict=True):
        if all(not count or name in learned for name, count in zip(COLUMNS, counts, strict=True)):
            total = sum(learned.get(name, 0) * count for name, count in zip(COLUMNS, counts, strict=True))
            assert abs((total + 500_000) // 1_000_000 - cost) <= 1
    for name, price in learned.items():
        assert abs(price - prices[COLUMNS.index(name)]) <= max(100_000, price // 250)


@examples(150)
@given(st.lists(_PUBLISHED, min_size=4, max_size=4), st.integers(0, 2**32))
def test_usual_requests_give_the_exact_prices(prices: list[int], seed: int) -> None:
    """A dozen requests of usual sizes determine each price to its last digit."""
    random = Random(seed)
    names = ("input", "cache_read", "output", "audio_in")
    rows = []
    for _ in range(12):
        classes = TokenClasses(**{name: random.randrange(500, 50_000) for name in names})
        cost = (
            sum((getattr(classes, name)) * price for name, price in zip(names, prices, strict=True)) + 500_000
        ) // 10**6
        rows.append((tuple(getattr(classes, name) or 0 for name in COLUMNS), cost))
    found = solve(rows)
    assert found == (dict(zip(names, prices, strict=True)), 1)


def test_prices_outlive_a_restart(tmp_path: Path) -> None:
    """Stored by name, loaded, replaced, and deleted when a change leaves nothing known."""
    engine = create_engine(f"sqlite:///{tmp_path / 'ledger.sqlite'}", poolclass=NullPool)
    numbers: dict[tuple[int, str], int] = {}
    with engine.begin() as connection:
        schema.migrate(connection)

        def number_of(kind: columns.Kind, name: str) -> int:
            if (kind, name) not in numbers:
                numbers[kind, name] = len(numbers) + 1
                row = {"id": numbers[kind, name], "kind": kind, "text": name}
                connection.execute(schema.names.insert(), row)
            return numbers[kind, name]

        learning = _learned(GPT, _rows(6))
        price_store.store(connection, learning.changed(), number_of, 7)
        prices = Prices()
        again = Learning(prices)
        price_store.load(connection, again)
        assert again.changed() == {}
        asked = TokenClasses(input=10, cache_read=10, output=10)
        assert prices.estimate("p", "m", asked, 0) == (_cost(GPT, asked), "learned")
        for _ in range(CHANGED_ROWS):  # one size alone does not determine the new price
            again.observe("p", "m", asked, 2 * _cost(GPT, asked))
        price_store.store(connection, again.changed(), number_of, 8)
        assert connection.execute(select(schema.prices)).all() == []


def test_billed_calls_are_read_from_the_ledger(tmp_path: Path) -> None:
    """Of requests with one call, that the biller completed; learning goes on with them at start."""
    engine = create_engine(f"sqlite:///{tmp_path / 'ledger.sqlite'}", poolclass=NullPool)
    with engine.begin() as connection:
        schema.migrate(connection)
        connection.execute(
            schema.names.insert(),
            [
                {"id": 1, "kind": columns.Kind.PROVIDER, "text": "p"},
                {"id": 2, "kind": columns.Kind.MODEL, "text": "m"},
                {"id": 3, "kind": columns.Kind.PROJECT, "text": "project"},
            ],
        )
        for seq, classes in enumerate(_rows(9), start=1):
            row = {"seq": seq, "id": b"%d" % seq, "received_us": seq, "project": 3, "state": columns.State.SETTLED}
            connection.execute(schema.requests.insert(), {**row, **classes._asdict()})
            call = {"request": seq, "number": 1, "provider": 1, "model": 2, "started_us": seq}
            bill = columns.Bill.UNMETERED if seq == 8 else columns.Bill.COMPLETED
            cost = _cost(GPT, classes)
            connection.execute(schema.attempts.insert(), {**call, "billed": cost, "bill": bill})
            if seq == 9:
                connection.execute(schema.attempts.insert(), {**call, "number": 2, "billed": cost, "bill": bill})
        calls = price_store.billed_calls(connection, 100)
        assert [(call.provider, call.model, call.billed) for call in calls] == [
            ("p", "m", _cost(GPT, classes)) for classes in _rows(7)
        ]
        assert [call.classes for call in calls] == _rows(7)
        learning = Learning(Prices())
        price_store.load(connection, learning)
        assert learning.changed()["p", "m"].prices == GPT
