"""The emulator as biller: late, lost, doubled and unmetered records, prices, repeated reports, the usage report."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from daemons import clean_environment
from test_emulator_account import Account, Clock

from proxy.emulator.biller import Biller, TokenPrices

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.emulator import Emulator
    from proxy.emulator.biller import RecordOutcome, Repeated

START = "usage?start=" + quote("2026-03-01T00:00:00+00:00")
LONG = "word " * 900
"""1,125 tokens."""


@pytest.fixture
def account(emulator: Emulator) -> Iterator[Account]:
    client = Account(emulator)
    with client.http:
        yield client


@pytest.fixture
def clock(emulator: Emulator) -> Clock:
    found = Clock()
    emulator.world.clock = found
    return found


@pytest.fixture
def biller(emulator: Emulator) -> Biller:
    return emulator.world.behaviour.biller


def listed(account: Account) -> list[dict[str, Any]]:
    """Every record, over all pages, newest first."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = account.get(f"requests?limit=7{cursor}")
        found += page["data"]
        if not page["has_more"]:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def cost(records: list[dict[str, Any]]) -> Decimal:
    return sum((Decimal(each["cost"]) for each in records), start=Decimal(0))


def spent(account: Account) -> Decimal:
    return Decimal("20.00") - account.world.account.wallet_balance


def test_a_record_comes_late_and_is_pending_first(account: Account, clock: Clock, biller: Biller) -> None:
    biller.delay_seconds, biller.pending_seconds = 2, 30
    request_id = account.chat().headers["x-lava-request-id"]
    assert spent(account) > 0
    assert listed(account) == []
    assert account.refused("GET", f"requests/{request_id}") == (404, "request_not_found")
    clock.now += 2
    (record,) = listed(account)
    assert record == account.get(f"requests/{request_id}")
    assert (record["status"], record["cost"], record["model_usage"]["total_tokens"]) == ("pending", "0", 0)
    assert account.get(START)["totals"]["total_requests"] == 0
    clock.now += 30
    record = account.get(f"requests/{request_id}")
    assert (record["status"], Decimal(record["cost"])) == ("completed", spent(account))
    assert account.get(START)["totals"]["total_requests"] == 1


@pytest.mark.parametrize("by", ["list", "fault"])
@pytest.mark.parametrize(
    ("outcome", "statuses", "charges"),
    [("billed", ["completed"], 1), ("lost", [], 1), ("doubled", ["completed"] * 2, 2), ("unmetered", ["error"], 0)],
)
def test_the_outcome_of_one_record(
    account: Account, biller: Biller, by: str, outcome: RecordOutcome, statuses: list[str], charges: int
) -> None:
    """Named in the list of outcomes, or by the fault of one request; the next record is billed again."""
    account.chat()
    price = spent(account)
    if by == "list":
        biller.outcomes.append(outcome)
    answer = account.chat(fault=None if by == "list" or outcome == "billed" else f"record-{outcome}")
    assert answer.status_code == 200
    assert spent(account) == price * (1 + charges)
    account.chat()
    newest, *others = listed(account)
    assert newest["status"] == "completed"
    assert [each["status"] for each in others[:-1]] == statuses
    assert cost(listed(account)) == spent(account) - (price if outcome == "lost" else 0)


def test_a_doubled_record_is_the_same_charge_with_another_id(account: Account) -> None:
    answer = account.bill(fault="record-doubled", metadata={"lava_proxy_id": "one"})
    second, first = listed(account)
    assert first["request_id"] == answer.headers["x-lava-request-id"] != second["request_id"]
    assert {**first, "request_id": ""} == {**second, "request_id": ""}
    assert account.world.account.connections["conn_demo"].balance == Decimal("5.00") - 2 * Decimal(first["cost"])
    assert account.get(f"requests/{second['request_id']}") == second


def test_shares_of_lost_doubled_and_unmetered_records(account: Account, biller: Biller) -> None:
    """Shares are exact over a hundred requests, and fall on different requests."""
    biller.lost, biller.doubled, biller.unmetered = 0.05, 0.1, 0.02
    sent = [account.chat().headers["x-lava-request-id"] for _ in range(100)]
    records = listed(account)
    assert len(set(sent) - {each["request_id"] for each in records}) == 5
    assert len({each["request_id"] for each in records} - set(sent)) == 10
    assert sum(each["status"] == "error" for each in records) == 2


@pytest.mark.parametrize("lost_in_usage", [True, False])
def test_usage_is_the_checksum_of_the_records(
    account: Account, clock: Clock, biller: Biller, lost_in_usage: bool
) -> None:
    """Per day: completed records, doubled ones twice, unmetered ones not, lost ones as the option says."""
    biller.lost_in_usage = lost_in_usage
    outcomes: tuple[RecordOutcome, ...] = ("billed", "lost", "doubled", "unmetered")
    for day in range(3):
        biller.outcomes += outcomes[: day + 2]
        for _ in range(day + 2):
            account.bill()
        clock.now += 86_400
    usage, records = account.get(START), listed(account)
    billed = [each for each in records if each["status"] == "completed"]
    lost = 3 if lost_in_usage else 0
    price = Decimal(billed[0]["cost"])
    assert usage["totals"]["total_requests"] == len(billed) + lost
    assert Decimal(usage["totals"]["total_cost"]) == cost(billed) + lost * price
    assert Decimal(usage["totals"]["total_charge"]) == sum(Decimal(each["charge"]["amount"]) for each in billed) + (
        lost * price
    )
    for item in usage["items"]:
        day_records = [each for each in billed if each["created_at"].startswith(item["date"])]
        assert item["total_requests"] == len(day_records) + (1 if lost_in_usage else 0)
    assert len(usage["items"]) == 3


def test_a_price_change_at_a_moment(account: Account, clock: Clock, biller: Biller) -> None:
    """Later requests of this model only are billed by the new prices; records before it stay as they are."""
    new = TokenPrices(input=Decimal("0.00001"), output=Decimal("0.00002"))
    biller.set_prices(new, "gpt-4o-mini", start=clock.now + 60)
    account.chat()
    clock.now += 60
    account.chat()
    account.chat(model="gpt-5")
    other, after, before = (Decimal(each["cost"]) for each in listed(account))
    usage = listed(account)[0]["model_usage"]
    tokens = usage["input_tokens"], usage["output_tokens"]
    assert before == other == tokens[0] * TokenPrices().input + tokens[1] * TokenPrices().output
    assert after == tokens[0] * new.input + tokens[1] * new.output
    biller.set_prices(TokenPrices(output=Decimal(1)))
    account.chat(model="gpt-5")
    assert Decimal(listed(account)[0]["model_usage"]["output_cost"]) == tokens[1]


def openai(account: Account, system: str) -> dict[str, int]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "hi"}]
    usage = account.chat(messages=messages).json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input": usage["prompt_tokens"] - cached,
        "cached_input": cached,
        "output": usage["completion_tokens"],
    }


def anthropic(account: Account, system: str) -> dict[str, int]:
    block = {"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}
    body = {"model": "claude-opus-4-6", "max_tokens": 9, "system": [block]}
    url = quote("https://api.anthropic.com/v1/messages", safe="")
    messages = [{"role": "user", "content": "hi"}]
    usage = account.post(f"forward?u={url}", {**body, "messages": messages}, anthropic_version="2023-06-01")["usage"]
    return {
        "input": usage["input_tokens"],
        "cached_input": usage["cache_read_input_tokens"],
        "cache_write": usage["cache_creation_input_tokens"],
        "output": usage["output_tokens"],
    }


def google(account: Account, system: str) -> dict[str, int]:
    google = "https://generativelanguage.googleapis.com/v1beta"
    made = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [{"text": system}]}]}
    cache = account.post("forward?u=" + quote(f"{google}/cachedContents", safe=""), made)["name"]
    url = quote(f"{google}/models/gemini-2.5-flash:generateContent", safe="")
    body = {"cachedContent": cache, "contents": [{"parts": [{"text": "hi"}]}]}
    usage = account.post(f"forward?u={url}", body)["usageMetadata"]
    cached = usage["cachedContentTokenCount"]
    return {
        "input": usage["promptTokenCount"] - cached,
        "cached_input": cached,
        "output": usage["candidatesTokenCount"],
    }


@pytest.mark.parametrize("provider", [openai, anthropic, google])
def test_the_cost_is_linear_in_the_token_classes_of_the_response(
    account: Account, biller: Biller, provider: Any
) -> None:
    """Prices are of four scales, so that each class can be read from the cost; a repeated prompt is cached."""
    scales = {"input": 0, "cached_input": 5, "cache_write": 10, "output": 15}
    biller.set_prices(TokenPrices(**{name: Decimal(10) ** (scale - 20) for name, scale in scales.items()}))
    seen = []
    for _ in range(2):
        classes = provider(account, LONG)
        found = int(Decimal(listed(account)[0]["cost"]).scaleb(20))
        assert found == sum(classes.get(name, 0) * 10**scale for name, scale in scales.items())
        seen.append(classes)
    assert seen[1]["cached_input"] >= 1125
    if provider is not google:
        assert seen[0]["cached_input"] == 0
    if provider is anthropic:
        assert (seen[0]["cache_write"], seen[1]["cache_write"]) == (seen[1]["cached_input"], 0)


REPORT = {"request_id": "mine-1", "customer_id": "conn_demo", "meter_slug": "fixed", "input_tokens": 7}


@pytest.mark.parametrize(
    ("repeated", "status", "charges"), [("conflict", 409, 1), ("first", 200, 1), ("twice", 201, 2)]
)
def test_a_repeated_report(account: Account, biller: Biller, repeated: Repeated, status: int, charges: int) -> None:
    """The first record answers whatever the second report says; billed twice, the second has its own id."""
    biller.repeated = repeated
    tiers = [{"start": "0", "rate": "0.25"}]
    account.post("meters", {"name": "Fixed", "rate_type": "fixed", "tier_type": "requests", "tiers": tiers})
    first = account.post("requests", REPORT)
    answer = account.send("POST", "requests", {**REPORT, "input_tokens": 8})
    assert answer.status_code == status
    if repeated == "first":
        assert answer.json() == first
    if repeated == "twice":
        assert answer.json()["request_id"] != "mine-1"
        assert answer.json()["model_usage"]["input_tokens"] == 8
    assert account.get("requests/mine-1") == first
    assert len(listed(account)) == charges
    assert account.world.account.connections["conn_demo"].balance == 5 - charges * Decimal("0.25")


def test_the_metadata_pair_is_kept_with_the_record(account: Account) -> None:
    """In the list, by id and as a filter; for a response with an error as well."""
    pair = {"lava_proxy_id": "0197f0"}
    answers = [account.chat(metadata=pair), account.chat(metadata=pair, fault="status-500"), account.chat()]
    for answer in answers[:2]:
        assert account.get(f"requests/{answer.headers['x-lava-request-id']}")["metadata"] == pair
    found = account.get("requests?metadata_filters=" + quote(json.dumps([["lava_proxy_id", "0197f0"]])))["data"]
    assert [each["status"] for each in found] == ["error", "completed"]
    assert [each["metadata"] for each in listed(account)] == [{}, pair, pair]


def test_the_options_at_start(tmp_path: Path) -> None:
    """Every option is accepted in words; an unknown one is 2 and the others are named."""
    biller = Biller()
    options = ["lost=0.05", "doubled=1", "unmetered=0", "delay_seconds=1.5", "pending_seconds=2", "keep=7"]
    for option in [*options, "lost_in_usage=false", "repeated=twice", "outcomes=lost,billed", "price.gpt-5=1,2,3,4"]:
        biller.set(option)
    assert (biller.lost, biller.doubled, biller.delay_seconds, biller.pending_seconds) == (0.05, 1, 1.5, 2)
    assert (biller.keep, biller.lost_in_usage, biller.repeated, biller.outcomes) == (
        7,
        False,
        "twice",
        ["lost", "billed"],
    )
    assert biller.prices("gpt-5", 0).output == Decimal("0.000004")
    for wrong in ("lost=2", "lost=x", "repeated=never", "price.x=1", "price.x=a,b,c,d", "color=red", "delay_seconds="):
        with pytest.raises(ValueError):  # noqa: PT011 - of several libraries
            biller.set(wrong)
    command = [sys.executable, "-m", "proxy", "emulator", "--port", "0", "--biller", "color=red"]
    ran = subprocess.run(
        command, env=clean_environment(tmp_path), capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "pending_seconds" in ran.stderr
