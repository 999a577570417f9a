"""Budgets: the calendar, what a request holds and uses, and the refusal; with real daemons in front of the emulator."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from configurations import LAVA_KEY, only_fault
from hypothesis import given, settings
from hypothesis import strategies as st
from rawclient import ask
from served import Client, Served
from upstream import Peer, Upstream, answer, chunked

from proxy.config.settings import Budget
from proxy.gateway import admission, budgets
from proxy.gateway.active_request import Registry
from proxy.gateway.admission import ProjectBudget
from proxy.gateway.budgets import Amount, BudgetLimit, BudgetPlan, Hold, Standing, Usual, window
from proxy.gateway.request_body import RequestBody
from proxy.ledger.budgeting import LedgerPricer
from proxy.protocol.stop import Stop
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemons import Daemon, StartDaemon

    from proxy.config.settings import Period
    from proxy.emulator import Emulator

BERLIN = ZoneInfo("Europe/Berlin")
SECOND = 1_000_000
BODY = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}'
JSON = {"Content-Type": "application/json"}


def _us(text: str, zone: Any = UTC) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * SECOND


def _day_of(text: str, zone: Any = BERLIN, period: Period = "day", reset_hour: int = 0) -> tuple[str, float]:
    """The beginning of the period of a time on the clock of ``zone``, and its length in hours."""
    found = window(period, _us(text, zone), zone, reset_hour)
    begin = datetime.fromtimestamp(found.start / SECOND, zone)
    return begin.strftime("%Y-%m-%dT%H:%M"), (found.end - found.start) / SECOND / 3600


# The calendar


@pytest.mark.parametrize(
    ("at", "period", "reset_hour", "begin", "hours"),
    [
        ("2026-03-29T12:00", "day", 0, "2026-03-29T00:00", 23),  # the clock skips an hour
        ("2026-10-25T12:00", "day", 0, "2026-10-25T00:00", 25),  # an hour occurs twice
        ("2026-03-29T12:00", "day", 2, "2026-03-29T03:00", 23),  # the hour that is skipped: the moment of the change
        ("2026-03-29T01:59", "day", 2, "2026-03-28T02:00", 24),
        ("2026-10-25T12:00", "day", 2, "2026-10-25T02:00", 25),  # the first of the two
        ("2026-01-31T23:59", "month", 0, "2026-01-01T00:00", 744),
        ("2026-04-30T23:59", "month", 0, "2026-04-01T00:00", 720),
        ("2028-02-29T12:00", "day", 0, "2028-02-29T00:00", 24),
        ("2028-02-29T12:00", "month", 0, "2028-02-01T00:00", 696),
        ("2027-02-28T12:00", "month", 0, "2027-02-01T00:00", 672),
        ("2026-03-01T03:00", "month", 4, "2026-02-01T04:00", 672),
        ("2026-12-31T12:00", "week", 0, "2026-12-28T00:00", 168),
        ("2026-01-01T12:00", "day", 0, "2026-01-01T00:00", 24),
    ],
)
def test_a_period_is_one_of_the_calendar(at: str, period: Period, reset_hour: int, begin: str, hours: float) -> None:
    assert _day_of(at, period=period, reset_hour=reset_hour) == (begin, hours)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["minute", "hour", "day", "week", "month"]),
    st.integers(_us("1990-01-01"), _us("2060-01-01")),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]),
    st.integers(0, 23),
)
def test_periods_are_adjacent(period: Period, at: int, zone: str, reset_hour: int) -> None:
    """Each moment is in exactly one period, and the next one begins where it ends."""
    found = window(period, at, ZoneInfo(zone), reset_hour)
    assert found.start <= at < found.end
    assert window(period, found.start, ZoneInfo(zone), reset_hour) == found
    assert window(period, found.end, ZoneInfo(zone), reset_hour).start == found.end


def test_the_period_that_is_remembered_ends_in_time_and_follows_a_clock_that_is_set_back() -> None:
    plan = BudgetPlan("main", Budget(requests={"day": 1}, timezone="Europe/Berlin"))
    times = ["2026-03-28T12:00", "2026-03-28T23:59", "2026-03-29T00:00", "2026-03-28T12:00", "2026-04-05T12:00"]
    for at in times:
        now = _us(at, BERLIN)
        assert plan.window("day", now) == window("day", now, BERLIN)


# Sums and estimates


def test_what_was_used_is_known_again_when_the_clock_is_set_back() -> None:
    used = budgets.Used()
    assert not used.knows(100)
    used.seed(100, Amount(3, 30, 300))
    used.add(100, Amount(1, 10, 100))
    assert used.knows(200)  # a later period begins with nothing
    used.add(200, Amount(1))
    assert (used.of(100), used.of(200)) == (Amount(4, 40, 400), Amount(1))
    assert not used.knows(50)  # before all of them: only the ledger knows it
    used.seed(50, Amount(7))
    used.add(300, Amount(1))
    assert used.of(50) == Amount(7)


def test_sums_from_the_ledger_do_not_lower_what_was_counted() -> None:
    used = budgets.Used()
    used.enter(100)
    used.add(100, Amount(5, 50, 500))
    used.seed(100, Amount(3, 80, 500))
    assert used.of(100) == Amount(5, 80, 500)


def test_a_request_holds_in_the_period_in_which_it_was_admitted() -> None:
    holds = [Hold(90, Amount(1, 10, 100)), Hold(100, Amount(1, 20, 200)), Hold(110, Amount(1, 30, 300))]
    assert budgets.held(holds, 100) == Amount(2, 50, 500)
    assert budgets.held([], 0) == budgets.NOTHING


def test_an_estimate_follows_recent_requests() -> None:
    usual = Usual()
    assert budgets.estimate(usual, 400, None, 3, strict=False) == (100, budgets.OUTPUT_TOKENS)
    for outputs in range(1, 101):
        usual.learn(300, 100, outputs)
    assert budgets.estimate(usual, 600, None, 1, strict=False) == (200, 95)
    assert budgets.estimate(usual, 600, 5000, 1, strict=False) == (200, 5000)
    assert budgets.estimate(usual, 600, 40, 3, strict=False) == (200, 120)
    assert budgets.estimate(usual, 600, None, 2, strict=True) == (600, 2 * budgets.STRICT_OUTPUT_TOKENS)
    assert budgets.estimate(usual, 600, 30, 1, strict=True) == (600, 30)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (b'{"max_tokens":7}', (7, 1)),
        (b'{"max_completion_tokens" : 8, "max_tokens": 3}', (8, 1)),
        (b'{"max_output_tokens":9}', (9, 1)),
        (b'{"generationConfig":{"maxOutputTokens":10,"candidateCount":2}}', (10, 2)),
        (b'{"n":3,"max_tokens":7}', (7, 3)),
        (b'{"messages":[{"content":"\\"max_tokens\\": 99"}]}', (None, 1)),
        (b'{"messages":"' + b"x" * 300_000 + b'","max_tokens":11}', (11, 1)),
        (b'{"n":4}', (None, 4)),
        (b"", (None, 1)),
    ],
)
def test_the_clients_limit_is_found_in_the_body(body: bytes, limit: tuple[int | None, int]) -> None:
    content = RequestBody(None)  # type: ignore[arg-type]
    content.send(body)
    assert content.output_limit() == limit


@pytest.mark.parametrize(
    ("nano", "shown"), [(12_340_000_000, "12.34"), (0, "0.00"), (1, "0.000000001"), (50_000_000_000, "50.00")]
)
def test_dollars_are_shown_exactly(nano: int, shown: str) -> None:
    assert BudgetLimit("usd", "month", 1).shown(nano) == shown


def test_a_budget_needs_the_ledger(tmp_path: Path) -> None:
    text = "[ledger]\nenabled = false\n[projects.main.budget]\nrequests = { day = 1 }\n"
    fault = only_fault(tmp_path, text)
    assert "projects.main.budget" in fault
    assert "set enabled = true under [ledger]" in fault


# A real daemon


def _start(daemon: StartDaemon, emulator: Emulator, budget: str, path: Path | None = None) -> Daemon:
    ledger = f"[ledger]\npath = {json.dumps(str(path))}\n" if path is not None else ""
    return daemon(
        f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n{ledger}'
        f'[projects.main.budget]\ntimezone = "UTC"\n{budget}\n',
        env={"KEY": emulator.world.secret_key},
        secrets=[emulator.world.secret_key],
    )


def _ask_all(running: Daemon, count: int, body: bytes = BODY) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ask(running.port, "POST", "/v1/chat/completions", body, JSON), range(count)))


def test_a_hundred_at_once_get_what_there_is_room_for(daemon: StartDaemon, emulator: Emulator) -> None:
    """Forty of a hundred, never more and never fewer; the log says once that 80 % are used, and once that all is."""
    running = _start(daemon, emulator, "requests = { month = 40 }")
    answers = _ask_all(running, 100)
    assert sorted(each.status for each in answers) == [200] * 40 + [429] * 60
    assert ask(running.port, "POST", "/v1/chat/completions", BODY, JSON).status == 429
    assert running.stop() == 0
    output = running.output()
    assert output.count("is used to 80 %") == 1
    assert output.count("is used up") == 1


def test_a_hundred_at_once_never_use_more_tokens_than_the_limit(daemon: StartDaemon, emulator: Emulator) -> None:
    running = _start(daemon, emulator, "tokens = { month = 2000 }\nstrict = true")
    answers = _ask_all(running, 100)
    used = [each.json()["usage"]["total_tokens"] for each in answers if each.status == 200]
    assert 0 < sum(used) <= 2000
    assert 2000 // (len(BODY) + 20) <= len(used) < 100  # all that there is room for at the highest possible use
    left = ask(running.port, "POST", "/v1/chat/completions", BODY, JSON).header("x-lava-proxy-budget-left")
    assert left is not None
    assert left.startswith("tokens per month ")


def test_a_hundred_at_once_never_cost_more_than_the_limit(daemon: StartDaemon, emulator: Emulator) -> None:
    """By the prices that the budget counts with: 2.50 dollars per million tokens in, 10 out."""
    running = _start(daemon, emulator, 'usd = { month = "0.01" }\nstrict = true')
    answers = _ask_all(running, 100)
    served = [each.json()["usage"] for each in answers if each.status == 200]
    assert 0 < len(served) < 100
    cost = sum(each["prompt_tokens"] * 2500 + each["completion_tokens"] * 10_000 for each in served)
    assert cost <= 10_000_000
    error = next(each for each in answers if each.status == 429).json()["error"]["lava_proxy"]
    assert (error["budget"], error["limit"]) == ("usd per month", "0.01")


def test_what_was_used_is_known_after_a_restart_and_a_new_limit_changes_nothing_else(
    daemon: StartDaemon, emulator: Emulator, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    first = _start(daemon, emulator, "requests = { month = 3 }\ntokens = { month = 100_000 }", path)
    answers = [ask(first.port, "POST", "/v1/chat/completions", BODY, JSON) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 200, 429]  # the refused one does not count
    first.stop()
    second = _start(daemon, emulator, "requests = { month = 5 }\ntokens = { month = 100_000 }", path)
    answers = [ask(second.port, "POST", "/v1/chat/completions", BODY, JSON) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["lava_proxy"]["used"] == 5
    assert second.stop() == 0
    tokens = sum(each.json()["usage"]["total_tokens"] for each in answers[:2])
    third = _start(daemon, emulator, "tokens = { month = 1 }", path)
    refused = ask(third.port, "POST", "/v1/chat/completions", BODY, JSON)
    assert refused.json()["error"]["lava_proxy"]["used"] == tokens // 2 * 5


def test_dollars_are_known_after_a_restart(daemon: StartDaemon, emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = _start(daemon, emulator, 'usd = { month = "50.00" }', path)
    usage = ask(first.port, "POST", "/v1/chat/completions", BODY, JSON).json()["usage"]
    assert first.stop() == 0
    second = _start(daemon, emulator, 'usd = { month = "0.000000001" }', path)
    refused = ask(second.port, "POST", "/v1/chat/completions", BODY, JSON)
    cost = usage["prompt_tokens"] * 2500 + usage["completion_tokens"] * 10_000
    assert refused.json()["error"]["lava_proxy"]["used"] == f"{cost / 1e9:.9f}".rstrip("0").ljust(4, "0")


# Refusals


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/messages", {"anthropic-version": "2023-06-01"}),
        ("/v1beta/models/gemini-2.5-flash:generateContent", {}),
    ],
)
def test_a_refusal_says_which_budget_and_when_it_resets(tmp_path: Path, target: str, headers: dict[str, str]) -> None:
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { month = 1 }") as gateway:
        assert ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON).status == 200
        refused = ask(gateway.port, "POST", target, BODY, {**JSON, **headers})
    assert refused.status == 429
    assert refused.header("x-lava-proxy-error") == "budget_exceeded"
    assert refused.header("x-lava-proxy-budget-left") == "requests per month 0"
    body = refused.json()
    error = body["error"]
    if target.endswith("completions"):
        assert (error["type"], error["code"]) == ("insufficient_quota", "budget_exceeded")
    elif target.endswith("messages"):
        assert (body["type"], error["type"]) == ("error", "rate_limit_error")
    else:
        assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    ours = error["lava_proxy"]
    assert [ours[name] for name in ("code", "project", "fault")] == ["budget_exceeded", "main", "proxy"]
    assert [ours[name] for name in ("budget", "limit", "used", "held")] == ["requests per month", 1, 1, 0]
    resets = datetime.fromisoformat(ours["resets_at"])
    assert resets.day == 1
    assert resets > datetime.now(UTC)
    waits = timedelta(seconds=int(refused.header("retry-after") or 0))
    assert abs(datetime.now(UTC) + waits - resets) < timedelta(seconds=30)
    assert refused.header("x-should-retry") == ("true" if waits <= timedelta(seconds=60) else "false")


def test_a_budget_that_resets_within_a_minute_is_worth_a_retry(tmp_path: Path) -> None:
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "tokens = { minute = 1 }") as gateway:
        refused = ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON)
    assert refused.status == 429
    assert refused.header("x-should-retry") == "true"
    assert 1 <= int(refused.header("retry-after") or 0) <= 60
    assert upstream.requests == []


_UNHEARD_OF = BODY.replace(b"gpt-4o", b"gpt-unheard-of")


def _say_unheard_of(peer: Peer) -> None:
    while peer.request() is not None:
        peer.send(answer(200, _USAGE.replace(b"gpt-4o", b"gpt-unheard-of"), _TYPE))


@pytest.mark.parametrize(("rule", "status"), [("count", 429), ("ignore", 200), ("refuse", 429)])
def test_a_cost_that_is_unknown_follows_its_rule(tmp_path: Path, rule: str, status: int) -> None:
    budget = _BUDGET % f'usd = {{ month = "0.0001" }}\non_unknown_cost = "{rule}"'
    with Upstream(_say_unheard_of) as upstream, Served(tmp_path, upstream, budget) as gateway:
        answered = ask(gateway.port, "POST", "/openai/v1/chat/completions", _UNHEARD_OF, JSON)
        _until(gateway.idle)
        (standing,) = _standing(gateway)
    assert (answered.status, standing.used) == (status, 0)
    if status == 429:
        ours = answered.json()["error"]["lava_proxy"]
        assert ("is unknown" in answered.json()["error"]["message"]) == (rule == "refuse")
        assert [ours[name] for name in ("budget", "limit", "used", "held")] == [
            "usd per month",
            "0.0001",
            "0.00",
            "0.00",
        ]
        assert answered.header("x-should-retry") == "false"


def test_a_cost_that_is_unknown_counts_by_the_dearest_price_of_the_provider(tmp_path: Path) -> None:
    """The answer's fifteen tokens, not the estimate."""
    with (
        Upstream(_say_unheard_of) as upstream,
        Served(tmp_path, upstream, _BUDGET % 'usd = { month = "9.00" }') as gateway,
    ):
        assert ask(gateway.port, "POST", "/v1/chat/completions", _UNHEARD_OF, JSON).status == 200
        _until(gateway.idle)
        (standing,) = _standing(gateway)
        dearest = LedgerPricer().dearest("openai")
    assert dearest is not None
    assert standing.used == 15 * dearest // 1_000_000


def test_no_address_goes_around_a_budget_and_other_projects_have_none(tmp_path: Path) -> None:
    more = _BUDGET % "requests = { month = 1 }" + "\n[projects.other]\n"
    with Upstream(_say) as upstream, Served(tmp_path, upstream, more) as gateway:
        assert ask(gateway.port, "POST", "/p/main/v1/chat/completions", BODY, JSON).status == 200
        for path in (
            "/v1/chat/completions",
            "/openai/v1/chat/completions",
            "/anthropic/v1/messages",
            "/v1beta/models/gemini-2.5-flash:generateContent",
            "/openai/v1/files",
            "/google/upload/v1beta/files",
            "/upload/v1beta/files",
            "/google/v1beta/models/gemini-2.5-flash:streamGenerateContent",
            "/openai/v1/anything",
        ):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                refused = ask(gateway.port, method, f"/p/main{path}", BODY, JSON)
                assert refused.header("x-lava-proxy-error") == "budget_exceeded", (method, path)
        crossing = BODY.replace(b"gpt-4o", b"anthropic/claude-sonnet-4-5")
        assert ask(gateway.port, "POST", "/p/main/v1/chat/completions", crossing, JSON).status == 429
        assert ask(gateway.port, "GET", "/p/main/openai/v1/files", None, {}).status == 429
        free = ask(gateway.port, "POST", "/p/other/v1/chat/completions", BODY, JSON)
    assert free.status == 200
    assert free.header("x-lava-proxy-budget-left") is None
    assert len(upstream.requests) == 2


# Holds at rest

_BUDGET = """[projects.main.budget]
timezone = "UTC"
%s
"""
_SSE = [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")]
_USAGE = b'{"id":"x","object":"chat.completion","model":"gpt-4o","usage":{"prompt_tokens":10,"completion_tokens":5}}'


def _say(peer: Peer) -> None:
    """Answer as the request says."""
    while (received := peer.request()) is not None:
        if b"cut" in received.body:
            return
        if (failed := re.search(rb"fail (\d+)", received.body)) is not None:
            error = b'{"error":{"message":"broken","type":"server_error","param":null}}'
            peer.send(answer(int(failed[1]), error, _TYPE))
        elif b"stream" in received.body:
            event = b'data: {"id":"x","object":"chat.completion.chunk","choices":[]}\n\n'
            peer.send(answer(200, chunked(event, b"data: [DONE]\n\n"), _SSE, length=False))
        elif b"lava" in received.body:
            peer.send(answer(404, b'{"error":{"code":"forward_x","message":"no","status":404}}', _TYPE))
        elif b"open" in received.body:
            peer.send(answer(200, chunked(b"data: {}\n\n"), _SSE, length=False))
        elif b"stall" in received.body:
            peer.send(answer(200, chunked(b"data: {}\n\n", end=False), _SSE, length=False))
            peer.request()
            return
        elif b"half" in received.body:
            peer.send(answer(200, chunked(b"data: {}\n\n", end=False), _SSE, length=False))
            return
        elif b"wait" in received.body:
            peer.request()  # until the daemon gives up
            return
        else:
            peer.send(answer(200, _USAGE, _TYPE))


_TYPE = [(b"content-type", b"application/json")]


_LIMITS_OF_TIME = "[upstream]\nfirst_byte = 0.2\nidle = 0.2\n"
_OUTCOMES = {
    *(
        "ok",
        "provider_error",
        "lava_error",
        "refused",
        "upstream_error",
        "truncated",
        "incomplete",
        "stalled",
        "timeout",
    ),
    *("client_gone", "client_error"),
}


def _play(port: int, number: int) -> None:
    """One request with one of the ends that there are, and with one of the moments at which a client can leave."""
    ends = ("hello", "fail 400", "fail 504", "lava", "stream", "open", "half", "cut", "wait", "stall")
    leaves = ("wait", "stall", "stream", "hello")
    number %= len(ends) + len(leaves) + 5
    with Client(port) as client:
        if number < len(ends):
            client.ask(ends[number])
            client.response()
            return
        number -= len(ends)
        if number < len(leaves):  # with a reset, without looking at the answer
            client.ask(leaves[number])
            time.sleep(random.choice((0.0, 0.001, 0.01)))
            client.reset()
            return
        head = "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        whole = (head + "Content-Length: %d\r\n\r\n") % ("/v1/chat/completions", port, len(BODY))
        named = (head + "Content-Length: %d\r\n\r\n") % ("/openai/v1/chat/completions", port, 9999)
        broken = (head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n") % ("/openai/v1/chat/completions", port)
        match number - len(leaves):
            case 0:  # before the body is there, so nothing is held yet
                client.send(whole.encode() + BODY[:20])
            case 1:  # during an upload
                client.send(named.encode() + BODY)
            case 2:
                client.send(broken.encode())
                time.sleep(0.05)
                client.send(b"zz\r\n")
                client.closed()
            case 3:
                client.ask(model="elevenlabs/x")
                assert client.response().status == 400
            case _:
                client.ask("stream")
                client.head()


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_nothing_is_held_at_rest_after_every_outcome(tmp_path: Path, count: int) -> None:
    limits = 'requests = { month = 1_000_000 }\ntokens = { month = 1_000_000_000 }\nusd = { month = "90000.00" }'
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits + _LIMITS_OF_TIME) as gateway:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda number: _play(gateway.port, number), range(count)))
        _until(gateway.idle)
        with Client(gateway.port) as last:
            last.ask("wait")
            _until(lambda: gateway.do(lambda: len(gateway.app.runtime.registry.holds("main"))) == 1)
            assert [each.held > 0 for each in _standing(gateway)] == [True] * 3
            gateway.do(gateway.app.runtime.cut)
            assert last.response().status == 503
        _until(gateway.idle)
        assert gateway.app.runtime.registry.holds("main") == []
        assert [each.held for each in _standing(gateway)] == [0, 0, 0]
        seen = {line["outcome"] for line in gateway.told(count // 2)}
    assert seen == _OUTCOMES


def test_what_ran_counts_as_a_request_even_if_its_answer_never_came(tmp_path: Path) -> None:
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { month = 5 }") as gateway:
        for content in ("hello", "fail 500", "half", "cut", "wait", "hello"):
            with Client(gateway.port) as client:
                before = len(upstream.requests)
                client.ask(content)
                if content == "wait":  # the client leaves while the upstream is silent
                    _until(lambda: len(upstream.requests) > before)  # noqa: B023  (called here)
                else:
                    status = client.response().status
            _until(gateway.idle)
        (standing,) = _standing(gateway)
    assert (status, standing.held, standing.used, standing.left) == (429, 0, 5, 0)
    assert len(upstream.requests) == 5


def test_what_is_in_flight_is_held(tmp_path: Path) -> None:
    """One request waits for its answer: the next is refused for what that one holds, and for what it used once it has gone."""
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { month = 1 }") as gateway:
        with Client(gateway.port) as waiting:
            waiting.ask("wait")
            _until(lambda: len(upstream.requests) == 1)
            ours = ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON).json()["error"]["lava_proxy"]
            assert (ours["used"], ours["held"]) == (0, 1)
        _until(gateway.idle)
        ours = ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON).json()["error"]["lava_proxy"]
        assert (ours["used"], ours["held"]) == (1, 0)


def test_a_request_that_was_never_sent_uses_nothing(daemon: StartDaemon, free_port: int) -> None:
    running = daemon(
        f'[lava]\nsecret_key = "env:KEY"\nbase_url = "http://127.0.0.1:{free_port}"\n'
        "[projects.main.budget]\nrequests = { month = 1 }\ntokens = { month = 5000 }\n",
        env={"KEY": LAVA_KEY},
        secrets=[LAVA_KEY],
    )
    for _ in range(3):
        answered = ask(running.port, "POST", "/v1/chat/completions", BODY, JSON)
        assert answered.status == 502
    assert answered.header("x-lava-proxy-error") == "upstream_unreachable"


def test_a_sent_request_without_usage_keeps_its_estimate(tmp_path: Path) -> None:
    """A request whose answer never came counts what it held: by then, what the one before it used."""
    limits = f"tokens = {{ month = {budgets.OUTPUT_TOKENS * 3 // 2} }}"
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits) as gateway:
        statuses = []
        for content in ("hello", "cut", "hello"):
            with Client(gateway.port) as client:
                client.ask(content)
                statuses.append(client.response().status)
        assert statuses[:2] == [200, 502]
        # The first answer had five tokens: from then on that is what is held.
        assert statuses[2] == 200
        (standing,) = _standing(gateway)
    assert 15 + 5 + 15 < standing.used < 100


@pytest.mark.parametrize("strict", [True, False])
def test_a_strict_budget_holds_the_dearest_use(tmp_path: Path, strict: bool) -> None:
    """The whole body written to a cache for an hour costs twice what input does; and whatever model the address is used with."""
    limits = f'usd = {{ month = "90.00" }}\nstrict = {str(strict).lower()}'
    body = BODY.replace(b"gpt-4o", b"claude-sonnet-4-5").replace(b'"hi"', b'"wait"')
    pricer = LedgerPricer()
    inputs = len(body) if strict else -(-len(body) // budgets.BYTES_PER_TOKEN)
    outputs = 20 if strict else budgets.OUTPUT_TOKENS
    uses = TokenClasses(cache_write_1h=inputs, output=outputs) if strict else TokenClasses(inputs, output=outputs)
    expected = pricer.nano("anthropic", "claude-sonnet-4-5", uses)
    assert expected is not None
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits) as gateway:
        for path in ("/v1/messages", "/anthropic/v1/messages"):
            with Client(gateway.port) as client:
                client.request("POST", path, body, JSON)
                _until(lambda: gateway.do(lambda: len(gateway.app.runtime.registry.holds("main"))) == 1)
                held = _standing(gateway)[0].held
            _until(gateway.idle)
            dearest = pricer.dearest("anthropic")
            assert dearest is not None
            named = -(-(inputs + outputs) * dearest // 1_000_000)
            assert held == (named if path.startswith("/anthropic") else expected)


@pytest.mark.parametrize(
    ("status", "kept"), [(400, False), (404, False), (429, False), (500, False), (503, False), (502, True), (504, True)]
)
def test_an_error_costs_nothing_unless_the_answer_was_lost(tmp_path: Path, status: int, kept: bool) -> None:
    """It is a request all the same."""
    limits = 'requests = { month = 9 }\ntokens = { month = 90_000 }\nusd = { month = "9.00" }'
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits) as gateway:
        with Client(gateway.port) as client:
            client.ask(f"fail {status}")
            assert client.response().status == status
        _until(gateway.idle)
        requests, tokens, dollars = _standing(gateway)
    assert (requests.used, tokens.used > 0, dollars.used > 0) == (1, kept, kept)


def test_a_stream_that_broke_counts_its_estimate_although_it_began_with_a_usage(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    """Anthropic's streams begin with the input and one token of output. After a restart it counts the same."""
    path = tmp_path / "ledger.sqlite"
    start = {
        "type": "message",
        "id": "m",
        "model": "claude-sonnet-4-5",
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
    event = b"event: message_start\ndata: " + json.dumps({"type": "message_start", "message": start}).encode() + b"\n\n"

    def say(peer: Peer) -> None:
        if peer.request() is not None:
            peer.send(answer(200, chunked(event, end=False), _SSE, length=False))

    body = BODY.replace(b"gpt-4o", b"claude-sonnet-4-5").replace(b'"max_tokens"', b'"stream": true, "max_tokens"')
    with Upstream(say) as upstream:
        for limit in (5000, 1):
            running = daemon(
                f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[ledger]\npath = {json.dumps(str(path))}\n'
                f"[projects.main.budget]\nstrict = true\ntokens = {{ month = {limit} }}\n",
                env={"KEY": LAVA_KEY},
                secrets=[LAVA_KEY],
            )
            if limit > 1:
                assert not ask(running.port, "POST", "/v1/messages", body, JSON).complete
            refused = ask(running.port, "POST", "/v1/messages", body.replace(b": 20}", b": 9000}"), JSON)
            assert refused.json()["error"]["lava_proxy"]["used"] == len(body) + 20
            assert running.stop() == 0


def test_an_estimate_that_stays_is_known_after_a_restart(daemon: StartDaemon, tmp_path: Path) -> None:
    """Of a request whose answer was lost: its usage never becomes known."""
    path = tmp_path / "ledger.sqlite"
    with Upstream(_say) as upstream:

        def start(limits: str) -> Daemon:
            return daemon(
                f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[ledger]\npath = {json.dumps(str(path))}\n'
                f"[projects.main.budget]\nstrict = true\n{limits}\n",
                env={"KEY": LAVA_KEY},
                secrets=[LAVA_KEY],
            )

        body = BODY.replace(b'"hi"', b'"cut"')
        first = start('tokens = { month = 5000 }\nusd = { month = "5.00" }')
        assert [ask(first.port, "POST", "/v1/chat/completions", each, JSON).status for each in (body, BODY)] == [
            502,
            200,
        ]
        assert first.stop() == 0
        expected = {"tokens = { month = 1 }": len(body) + 20 + 15, 'usd = { month = "0.000001" }': None}
        for limits, used in expected.items():
            running = start(limits)
            refused = ask(running.port, "POST", "/v1/chat/completions", BODY, JSON).json()["error"]["lava_proxy"]
            assert running.stop() == 0
            if used is not None:
                assert refused["used"] == used
            else:
                nano = len(body) * 2500 + 20 * 10_000 + 10 * 2500 + 5 * 10_000
                assert refused["used"] == f"{nano / 1e9:.9f}".rstrip("0")


@pytest.mark.parametrize(
    "path", ["/openai/v1/files", "/anthropic/v1/messages/count_tokens", "/openai/v1/uploads/x/parts"]
)
def test_what_costs_nothing_needs_no_room_for_tokens(tmp_path: Path, path: str) -> None:
    limits = 'requests = { month = 2 }\ntokens = { month = 1 }\nusd = { month = "0.000000001" }'
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits) as gateway:
        assert ask(gateway.port, "POST", path, BODY, JSON).status == 200
        _until(gateway.idle)
        assert [each.used for each in _standing(gateway)] == [1, 0, 0]
        assert ask(gateway.port, "GET", "/openai/v1/responses/x").status == 200  # it repeats the usage of another one
        _until(gateway.idle)
        assert [each.used for each in _standing(gateway)] == [2, 0, 0]


def test_a_new_limit_holds_from_the_reload_on(daemon: StartDaemon, emulator: Emulator) -> None:
    running = _start(daemon, emulator, "requests = { month = 1 }")
    assert [ask(running.port, "POST", "/v1/chat/completions", BODY, JSON).status for _ in range(2)] == [200, 429]
    running.config.write_text(running.config.read_text().replace("month = 1", "month = 2"))
    running.process.send_signal(signal.SIGHUP)
    _until(lambda: "configuration reloaded" in running.output())
    answers = [ask(running.port, "POST", "/v1/chat/completions", BODY, JSON) for _ in range(2)]
    assert [each.status for each in answers] == [200, 429]
    ours = answers[1].json()["error"]["lava_proxy"]
    assert (ours["limit"], ours["used"]) == (2, 2)


def _standing(gateway: Served) -> list[Standing]:
    """The limits of the project, in the order of the configuration."""
    budget = gateway.app.runtime.admission._projects["main"]
    return gateway.do(lambda: budget.standing(time.time_ns() // 1000))


def test_a_limit_in_dollars_that_came_with_a_reload_is_known_after_a_restart(
    daemon: StartDaemon, emulator: Emulator, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    first = _start(daemon, emulator, "requests = { month = 9 }", path)
    first.config.write_text(first.config.read_text() + 'usd = { month = "50.00" }\n')
    first.process.send_signal(signal.SIGHUP)
    _until(lambda: "configuration reloaded" in first.output())
    usage = ask(first.port, "POST", "/v1/chat/completions", BODY, JSON).json()["usage"]
    assert first.stop() == 0
    second = _start(daemon, emulator, 'usd = { month = "0.000000001" }', path)
    refused = ask(second.port, "POST", "/v1/chat/completions", BODY, JSON)
    cost = usage["prompt_tokens"] * 2500 + usage["completion_tokens"] * 10_000
    assert refused.json()["error"]["lava_proxy"]["used"] == f"{cost / 1e9:.9f}".rstrip("0").ljust(4, "0")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# The ledger away, or shared


class _Stored:
    """A ledger of a test: ``sums`` are what it has, ``None`` while it is away."""

    shared = False

    def __init__(self, sums: tuple[int, int, int] | None) -> None:
        self.sums = sums

    async def spent(self, project: str, since_us: int) -> tuple[int, int, int]:
        assert project == "main"
        if self.sums is None:
            raise OSError("away")
        return self.sums

    async def claim(self, *_: object) -> tuple[bool, dict[int, Any]]:
        raise OSError("away")

    def release(self, request_id: str) -> None:
        """Nothing is claimed here."""


def _budget_of(stored: _Stored, warnings: list[str]) -> ProjectBudget:
    plan = BudgetPlan("main", Budget(requests={"month": 10}, timezone="UTC"))
    budget = ProjectBudget(plan, Registry(), warnings.append, stored, None)
    asyncio.run(budget.load())
    return budget


def _used(budget: ProjectBudget) -> int:
    return budget.standing(time.time_ns() // 1000)[0].used


def test_while_the_ledger_is_away_a_budget_counts_from_0_and_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "AGAIN_SECONDS", 0.0)
    warnings: list[str] = []
    stored = _Stored(None)
    budget = _budget_of(stored, warnings)
    asyncio.run(budget.load())
    assert _used(budget) == 0
    assert len(warnings) == 1
    assert "counts from 0 now" in warnings[0]
    stored.sums = (7, 0, 0)
    asyncio.run(budget.load())
    assert _used(budget) == 7


# What answers and the log say


def test_every_answer_says_what_is_left_of_the_tightest_limit(tmp_path: Path) -> None:
    limits = 'requests = { month = 4, day = 100 }\nusd = { month = "100.00" }'
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % limits) as gateway:
        left = []
        for content in ("hello", "fail 500", "stream", "cut", "hello"):
            with Client(gateway.port) as client:
                client.ask(content)
                left.append(client.response().header("x-lava-proxy-budget-left"))
    assert left == [f"requests per month {number}" for number in (3, 2, 1, 0, 0)]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("POST", "/v1/chat/completions", 400),
        ("POST", "/openai/v1/chat/completions", 200),
    ],
)
def test_the_first_answer_says_it_too(tmp_path: Path, method: str, path: str, status: int) -> None:
    """Also one that is refused before anything is counted."""
    body = None if method == "GET" else BODY.replace(b"gpt-4o", b"elevenlabs/x")

    def say(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            listed = b'{"object":"list","data":[]}'
            peer.send(answer(200, listed if received.target.endswith(b"models") else _USAGE, _TYPE))

    with Upstream(say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { month = 4 }") as gateway:
        answered = ask(gateway.port, method, path, body, JSON)
    assert answered.status == status
    left = 3 if path.startswith("/openai") else 4
    assert answered.header("x-lava-proxy-budget-left") == f"requests per month {left}"


def test_a_stopped_project_says_it_too(tmp_path: Path) -> None:
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { month = 4 }") as gateway:
        asyncio.run_coroutine_threadsafe(gateway.app.runtime.stops.add(Stop("main")), gateway._loop).result(20)
        answered = ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON)
    assert answered.status == 403
    assert answered.header("x-lava-proxy-budget-left") == "requests per month 4"


def test_the_log_warns_once_per_threshold_and_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the next minute again; not once more when the clock is set back, where what was used still counts."""
    now = [_us("2026-11-29T12:00:30")]
    monkeypatch.setattr(admission, "_now_us", lambda: now[0])
    with Upstream(_say) as upstream, Served(tmp_path, upstream, _BUDGET % "requests = { minute = 5 }") as gateway:
        statuses = []
        for step in (0, 60, -60):
            now[0] += step * SECOND
            for _ in range(7):
                statuses.append(ask(gateway.port, "POST", "/v1/chat/completions", BODY, JSON).status)
                _until(gateway.idle)
        log = gateway._log
    assert statuses == ([200] * 5 + [429] * 2) * 2 + [429] * 7
    text = log.read_text()
    assert (text.count("is used to 80 %"), text.count("is used up")) == (2, 2)
