"""pricing.py: estimates from learned prices, else from the packaged tables, in whole billionths of a dollar."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from proxy.ledger.pricing import LEARNED, Estimate, Prices
from proxy.protocol.token_classes import TokenClasses

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
AT_US = int(NOON.timestamp() * 1_000_000)


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


def _charged(provider: str, model: str, **units: int) -> int:
    """What the package itself says."""
    dollars = calc_price(Usage(**units), model, provider_id=provider, genai_request_timestamp=NOON).total_price
    return int((dollars * 1_000_000_000).to_integral_value("ROUND_HALF_UP"))


CASES = {
    "openai": ("openai", "gpt-5", TokenClasses(input=1000, output=100)),
    "openai cached": ("openai", "gpt-5", TokenClasses(input=1001, cache_read=2003, output=7, reasoning=5)),
    "anthropic both caches": (
        "anthropic",
        "claude-sonnet-4-20250514",
        TokenClasses(input=5, cache_read=4000, cache_write_5m=300, cache_write_1h=200, output=255),
    ),
    "google above 200,000 tokens": (
        "google",
        "gemini-2.5-pro",
        TokenClasses(input=150_000, cache_read=100_000, output=1000, reasoning=900),
    ),
    "google at 200,000 tokens": ("google", "gemini-2.5-pro", TokenClasses(input=200_000, output=1000)),
    "google audio": ("google", "gemini-2.5-flash", TokenClasses(input=100, audio_in=5000, output=50)),
    "openai embeddings": ("openai", "text-embedding-3-small", TokenClasses(input=8)),
    "xai": ("xai", "grok-3", TokenClasses(input=26, cache_read=6, output=103, reasoning=94)),
    "groq": ("groq", "llama-3.1-8b-instant", TokenClasses(input=18, output=556)),
    "deepseek": ("deepseek", "deepseek-chat", TokenClasses(input=70, cache_read=960, output=210)),
    "mistral": ("mistral", "mistral-large-latest", TokenClasses(input=16, output=34)),
    "google, openai's face": ("googleOpenaiCompatible", "gemini-2.5-flash", TokenClasses(input=7, output=611)),
    "google, with its prefix": ("google", "models/gemini-2.5-flash", TokenClasses(input=7, output=611)),
}


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_those_of_the_package(prices: Prices, name: str) -> None:
    """For each provider under our name; caches by their own price, reasoning once, tiers by the whole input."""
    provider, model, classes = CASES[name]
    input_tokens = sum(each or 0 for each in (*classes[:4], classes.audio_in))
    units = {
        "input_tokens": input_tokens,
        "cache_read_tokens": classes.cache_read,
        "cache_write_tokens": (classes.cache_write_5m or 0) + (classes.cache_write_1h or 0) or None,
        "cache_write_5m_tokens": classes.cache_write_5m,
        "cache_write_1h_tokens": classes.cache_write_1h,
        "input_audio_tokens": classes.audio_in,
        "output_tokens": classes.output,
        "output_reasoning_tokens": classes.reasoning,
    }
    there = {"xai": "x-ai", "googleOpenaiCompatible": "google"}.get(provider, provider)
    known = {name: count for name, count in units.items() if count is not None}
    expected = _charged(there, model.removeprefix("models/"), **known)
    estimate = prices.estimate(provider, model, classes, AT_US)
    assert estimate is not None
    assert abs(estimate.nano - expected) <= 1
    assert estimate.nano > 0


def test_reasoning_is_not_charged_twice(prices: Prices) -> None:
    """It is a part of the output."""
    without = prices.estimate("openai", "gpt-5", TokenClasses(input=10, output=500), AT_US)
    assert prices.estimate("openai", "gpt-5", TokenClasses(input=10, output=500, reasoning=400), AT_US) == without


def test_the_source_is_the_tables_version_and_date(prices: Prices) -> None:
    """``genai-prices``, its version, and the newest date on which it was checked."""
    estimate = prices.estimate("openai", "gpt-5", TokenClasses(input=1, output=1), AT_US)
    assert estimate is not None
    name, version, date = estimate.source.split()
    assert (name, version.count(".")) == ("genai-prices", 2)
    assert datetime.fromisoformat(date).year >= 2026


@pytest.mark.parametrize(
    ("provider", "model", "classes"),
    [
        ("openai", "gpt-5", TokenClasses()),
        ("openai", "gpt-5", TokenClasses(input=10)),  # cut before its output was counted
        ("openai", "gpt-5", TokenClasses(output=10)),
        ("openai", "gpt-5", TokenClasses(input=10, output=10, images=1)),
        ("openai", "no such model", TokenClasses(input=10, output=10)),
        ("no such provider", "gpt-5", TokenClasses(input=10, output=10)),
        ("openai", "whisper-1", TokenClasses(input=10, output=10)),  # priced by duration
        ("openai", "text-embedding-3-small", TokenClasses(input=8, output=1)),
    ],
)
def test_what_is_partly_unknown_is_unknown(prices: Prices, provider: str, model: str, classes: TokenClasses) -> None:
    """Never a part of a cost, and never 0 for what nothing is known of."""
    assert prices.estimate(provider, model, classes, AT_US) is None


def test_learned_prices_come_first() -> None:
    """For the classes that were learned; another class falls back to the tables, and so does a price that is forgotten."""
    prices = Prices()
    packaged = prices.estimate("openai", "gpt-5", TokenClasses(input=10, output=10), AT_US)
    prices.learn("openai", "gpt-5", {"input": 1_000_000, "output": 2_500_000})
    assert prices.estimate("openai", "gpt-5", TokenClasses(input=3, cache_read=0, output=1, reasoning=1), AT_US) == (
        6,  # 3 + 2.5, half up
        LEARNED,
    )
    cached = prices.estimate("openai", "gpt-5", TokenClasses(input=3, cache_read=1, output=1), AT_US)
    assert cached is not None
    assert cached.source.startswith("genai-prices")
    assert prices.estimate("acme", "own", TokenClasses(input=1, output=1), AT_US) is None
    prices.learn("openai", "gpt-5", {})
    assert prices.estimate("openai", "gpt-5", TokenClasses(input=10, output=10), AT_US) == packaged


@examples(200)
@given(
    st.dictionaries(
        st.sampled_from(["input", "cache_read", "output", "audio_out"]), st.integers(0, 10**13), min_size=1
    ),
    st.lists(st.integers(0, 10**9), min_size=4, max_size=4),
)
def test_rounding_is_exact(learned: dict[str, int], counts: list[int]) -> None:
    """Half up, from whole numbers, whatever their size."""
    prices = Prices()
    prices.learn("acme", "own", learned)
    names = ["input", "cache_read", "output", "audio_out"]
    classes = TokenClasses(**{name: count for name, count in zip(names, counts, strict=True) if name in learned})
    total = sum(count * learned.get(name, 0) for name, count in zip(names, counts, strict=True))
    expected = (Decimal(total) / 1_000_000).to_integral_value("ROUND_HALF_UP")
    assert prices.estimate("acme", "own", classes, AT_US) == Estimate(int(expected), LEARNED)


def test_every_model_of_the_package_has_a_price_list(prices: Prices) -> None:
    """No model and no time of the day raises, and no price is negative."""
    classes = TokenClasses(input=10, cache_read=10, output=10, reasoning=10)
    estimated = 0
    for provider in providers:
        for model in provider.models:
            for hour in range(0, 24, 6):
                estimate = prices.estimate(provider.id, model.id, classes, AT_US + hour * 3600 * 1_000_000)
                assert estimate is None or estimate.nano >= 0
                estimated += estimate is not None
    assert estimated > 4000


def test_the_highest_price_of_a_provider(prices: Prices) -> None:
    """Of all its models and classes, learned or packaged."""
    own = Prices()
    highest = prices.highest("openai")
    assert highest is not None
    assert highest >= 60 * 1_000_000_000  # o1 and older ones
    assert prices.highest("no such provider") is None
    own.learn("acme", "own", {"input": 5, "output": 7})
    own.learn("openai", "own", {"output": highest + 1})
    assert (own.highest("acme"), own.highest("openai")) == (7, highest + 1)


def test_nothing_is_fetched_and_nothing_is_imported_before_the_first_estimate() -> None:
    """Without a network; learned prices need no tables at all."""
    program = f"""
import socket, sys
def refuse(*_, **__): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from proxy.ledger.pricing import Prices
from proxy.protocol.token_classes import TokenClasses
prices = Prices()
prices.learn("acme", "own", {{"input": 1, "output": 1}})
assert prices.estimate("acme", "own", TokenClasses(input=1, output=1), {AT_US}) is not None
assert "genai_prices" not in sys.modules and "sqlalchemy" not in sys.modules
assert prices.estimate("openai", "gpt-5", TokenClasses(input=1, output=1), {AT_US}) is not None
import threading
assert threading.active_count() == 1
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
