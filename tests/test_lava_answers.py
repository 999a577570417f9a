"""What the account client makes of answers: records, lists, typed errors, and when it asks again."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import time
import traceback
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lava_answers import ANYTHING, KEY, asked, client, in_turn, json_answer
from upstream import Peer, Upstream, answer, certificate

from proxy.lava import (
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientBalance,
    Interrupted,
    Lava,
    LavaError,
    NotFound,
    NotJson,
    RateLimited,
    Refused,
    ServerError,
    TimedOut,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
    Unsupported,
    records,
)
from proxy.lava.replies import ApiReply, document, read
from proxy.lava.wire import body_of, form
from proxy.protocol.redaction import Redactor, leaks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Ask = Callable[[Lava], Awaitable[Any]]

HTML = b"<!doctype html><title>Bad gateway</title><h1>502</h1>"


def wallet(lava: Lava) -> Awaitable[Any]:
    """A GET."""
    return lava.wallet.retrieve()


def creation(lava: Lava) -> Awaitable[Any]:
    """A POST."""
    return lava.secret_keys.create(name="n")


# Records


def test_money_is_exact_and_times_are_aware() -> None:
    """Decimal strings and JSON numbers keep every digit; a time without an offset is UTC; unknown fields stay."""
    told = (
        b'{"wallet_id": "w", "balance": "0.1000000000000000055511151231", "limit": 0.1000000000000000055511151231,'
        b' "since": "x"}'
    )
    found, _ = asked(json_answer(told), wallet)
    assert found.balance == Decimal("0.1000000000000000055511151231")
    assert found.limit == Decimal("0.1000000000000000055511151231")
    assert found.since == "x"
    numeric, _ = asked(json_answer(b'{"wallet_id": "w", "balance": 12.340}'), wallet)
    assert str(numeric.balance) == "12.340"

    created = {"customer_id": "c", "created_at": "2026-01-02T03:04:05"}
    customer, _ = asked(json_answer(created), lambda lava: lava.customers.retrieve("c"))
    assert customer.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    offset, _ = asked(
        json_answer({**created, "created_at": "2026-01-02T03:04:05.500+02:00"}),
        lambda lava: lava.customers.retrieve("c"),
    )
    assert offset.created_at.utcoffset() == timedelta(hours=2)
    assert customer.reference_id is None


def test_a_whole_request_of_either_generation() -> None:
    """The nested records, with the fields of SDK 8 and of SDK 11."""
    told = {
        "request_id": "req_1",
        "status": "completed",
        "customer_id": "conn_1",
        "model_usage": {"input_tokens": 1000000, "input_seconds": 1.5, "total_cost": "0.0581000000"},
        "charge": {"amount": "0.01", "breakdown": [{"tier": {"start": 0, "rate": "0.5"}, "tokens": 3.0, "cost": "1"}]},
        "fee": {"amount": "0.0058100000", "token_basis": "output"},
        "total_wallet_cost": "0.0639100000",
        "metadata": {"a": "b"},
        "created_at": "2023-05-15T14:22:31.000Z",
        "later_field": {"n": 1.25},
    }
    found, _ = asked(json_answer(told), lambda lava: lava.requests.retrieve("req_1"))
    assert isinstance(found, records.Request)
    assert found.model_usage is not None
    assert found.model_usage.input_tokens == 1000000
    assert found.model_usage.output_tokens is None
    assert found.model_usage.input_seconds == Decimal("1.5")
    assert found.charge is not None
    assert found.charge.breakdown is not None
    assert found.charge.breakdown[0].tokens == 3
    assert found.total_wallet_cost == Decimal("0.0639100000")
    assert (found.model_extra or {})["later_field"] == {"n": Decimal("1.25")}
    assert json.loads(found.model_dump_json(exclude_unset=True))["total_wallet_cost"] == "0.0639100000"


def test_money_never_goes_through_a_float() -> None:
    """Neither in nor out."""
    with pytest.raises(ValueError, match="not a float"):
        records.WalletBalance.model_validate({"wallet_id": "w", "balance": 0.1})
    lava = Lava(KEY, base_url="http://127.0.0.1:9")
    with pytest.raises(TypeError, match="not a float"):
        asyncio.run(lava.plans.create(name="n", period_amount=9.99, billing_interval="month"))  # type: ignore[arg-type]
    assert body_of({"a": Decimal("1E+2"), "b": [Decimal("0.10")]}) == b'{"a":"100","b":["0.10"]}'


def test_times_and_nulls_in_a_body() -> None:
    """An aware datetime is ISO 8601; ``None`` clears what can be cleared and is left out elsewhere; a naive time is
    refused."""

    async def ask(lava: Lava) -> None:
        await lava.spend_keys.update("k", expires_at=datetime(2026, 1, 1, tzinfo=UTC), spend_limit=None, name=None)
        zone = timezone(timedelta(hours=-5))
        await lava.usage.retrieve(start=datetime(2026, 1, 1, tzinfo=zone), end=None, metadata_filters={"a": "b c"})
        with pytest.raises(ValueError, match="needs a time zone"):
            await lava.usage.retrieve(start=datetime(2026, 1, 1))
        await lava.fallback.update(chain=None)
        await lava.customers.update("c", extra_body={"new": [1]})
        await lava.spend_keys.update("k", expires_at=None)

    found, upstream = asked(json_answer(ANYTHING), ask)
    assert found is None
    first, second, third, fourth, fifth = upstream.requests
    assert first.body == b'{"spend_limit":null,"expires_at":"2026-01-01T00:00:00Z"}'
    query = b"start=2026-01-01T00%3A00%3A00-05%3A00&metadata_filters=%5B%5B%22a%22%2C%22b+c%22%5D%5D"
    assert second.target == b"/v1/usage?" + query
    assert third.body == b'{"chain":null}'
    assert fourth.body == b'{"new":[1]}'
    assert fifth.body == b'{"expires_at":null}'


def test_a_query_is_written_as_the_sdk_does() -> None:
    """``URLSearchParams``: + for a space, ~ and ! encoded, * not, UTF-8; half a surrogate pair becomes U+FFFD."""
    assert form([("a b", "~!*()'-._é/&="), ("c", "\ud800")]) == "a+b=%7E%21*%28%29%27-._%C3%A9%2F%26%3D&c=%EF%BF%BD"


@pytest.mark.parametrize("bad", ["", ".", ".."])
def test_an_id_is_never_a_path(bad: str) -> None:
    """It would be another resource."""
    with pytest.raises(ValueError, match="which is no id"):
        asyncio.run(Lava(KEY, base_url="http://127.0.0.1:9").meters.delete(bad))


def test_secrets_do_not_show() -> None:
    """What is shown once is a Secret; a field that is new and called like one is masked in the repr."""
    fresh = "lava_sk_" + "f1" * 12
    told = {"spend_key_id": "s", "key": fresh, "next_secret": "n" * 30, "key_preview": "lava_sk_…", "note": "plain"}
    found, _ = asked(json_answer(told), lambda lava: lava.spend_keys.rotate("s"))
    assert found.key.reveal() == fresh
    shown = f"{found!r} {found} {found.model_dump()!r} {found.model_dump_json()}"
    assert not leaks(shown, [fresh])
    assert "n" * 30 not in repr(found)
    assert "plain" in repr(found)
    assert copy.deepcopy(found) == found


# Lists


def page(items: list[str], **more: Any) -> bytes:
    """A page of meters."""
    return json_answer({"data": [{"meter_id": each} for each in items], **more})


async def collected(lava: Lava) -> list[str]:
    """The ids of every meter."""
    return [meter.meter_id async for meter in lava.meters.list()]


@pytest.mark.parametrize(
    "end", [{"next_cursor": None}, {}, {"next_cursor": ""}, {"has_more": False, "next_cursor": "z"}]
)
def test_a_list_goes_through_all_pages(end: dict[str, Any]) -> None:
    """By the cursor as it came; null, absent and empty are one; has_more = false ends it."""
    cursor = "a+b/c=~ é"
    script = in_turn(page(["1", "2"], has_more=True, next_cursor=cursor), page([], next_cursor="k"), page(["3"], **end))
    found, upstream = asked(script, collected)
    assert found == ["1", "2", "3"]
    assert [request.target for request in upstream.requests] == [
        b"/v1/meters?limit=100",
        b"/v1/meters?cursor=a%2Bb%2Fc%3D%7E+%C3%A9&limit=100",
        b"/v1/meters?cursor=k&limit=100",
    ]


def test_one_page_alone() -> None:
    """``await`` gives the first page with its cursor; limit and cursor are the caller's."""

    async def ask(lava: Lava) -> Any:
        first = await lava.customers.list(limit=7, cursor="cur_1")
        return first.data, first.has_more, first.next_cursor

    found, upstream = asked(json_answer({"data": [], "has_more": True, "next_cursor": "x"}), ask)
    assert found == ((), True, "x")
    assert upstream.requests[0].target == b"/v1/customers?cursor=cur_1&limit=7"


@pytest.mark.parametrize("turns", [["a", "a"], ["a", "b", "a"]])
def test_a_cursor_that_repeats_ends_in_an_error(turns: list[str]) -> None:
    """It must neither go on for ever nor look like a whole list."""
    found, _ = asked(in_turn(*(page(["1"], has_more=True, next_cursor=turn) for turn in turns)), collected)
    assert isinstance(found, UnexpectedAnswer)
    assert "same cursor" in str(found)


def test_a_circle_back_to_the_callers_own_cursor_ends_at_once() -> None:
    """The cursor that the list began with is one of the circle: its page is not asked for twice."""
    seen: list[str] = []

    async def collect(lava: Lava) -> None:
        async for each in lava.customers.list(cursor="cur_1"):
            seen.append(each.customer_id or "")

    found, upstream = asked(
        json_answer({"data": [{"customer_id": "c"}], "has_more": True, "next_cursor": "cur_1"}), collect
    )
    assert isinstance(found, UnexpectedAnswer)
    assert "same cursor" in str(found)
    assert (seen, len(upstream.requests)) == (["c"], 1)


def test_more_without_a_cursor_is_an_error() -> None:
    """Records would be missing."""
    found, _ = asked(page(["1"], has_more=True, next_cursor=None), collected)
    assert isinstance(found, UnexpectedAnswer)


def test_lists_of_other_shapes() -> None:
    """The models' list has no pages; a bare array is a list."""

    async def models(lava: Lava) -> list[Any]:
        return [model async for model in lava.models.list()]

    told = {
        "object": "list",
        "data": [{"id": "gpt-4o-mini", "object": "model", "created": 1715367049, "owned_by": "x"}],
    }
    found, upstream = asked(json_answer(told), models)
    assert upstream.requests[0].target == b"/v1/models"
    assert found[0].created == datetime(2024, 5, 10, 18, 50, 49, tzinfo=UTC)
    bare, _ = asked(json_answer([{"id": "m"}]), models)
    assert bare[0].id == "m"


def test_misspelt_fields_are_told_before_anything_is_sent() -> None:
    """With the nearest name."""

    async def ask(lava: Lava) -> None:
        with pytest.raises(LookupError, match="did you mean 'limit'"):
            lava.pages("meters.list", {"limti": 3})
        with pytest.raises(LookupError, match="did you mean 'tiers'"):
            await lava.call("meters.update", "m", fields={"teirs": []})
        with pytest.raises(ValueError, match="needs meter_id"):
            await lava.call("meters.update")
        with pytest.raises(ValueError, match="is no list"):
            lava.pages("meters.create")

    found, upstream = asked(json_answer({}), ask)
    assert found is None
    assert upstream.accepted == 0


# Errors


def envelope(message: str, code: str, status: int) -> dict[str, Any]:
    """Lava's documented one."""
    return {"error": {"message": message, "code": code, "status": status}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "message"),
    [
        (400, envelope("no", "invalid", 400), BadRequest, "invalid", "no"),
        (400, envelope("no", "forward_model_not_supported", 400), Unsupported, "forward_model_not_supported", "no"),
        (400, {"error": "Endpoint not supported"}, Unsupported, None, "Endpoint not supported"),
        (401, envelope("bad key", "unauthorized", 401), Unauthorized, "unauthorized", "bad key"),
        (401, b"", Unauthorized, None, "an empty answer, without a reason"),
        (402, {"error": "out of funds"}, InsufficientBalance, None, "out of funds"),
        (403, {"error": {"type": "forbidden", "message": "shape"}}, Forbidden, "forbidden", "shape"),
        (404, {"message": "none", "code": "not_found"}, NotFound, "not_found", "none"),
        (404, HTML, NotFound, None, "a web page (some network in front of Lava, perhaps), without a reason"),
        (405, b"plain\r\ntext", Refused, None, "plain text"),
        (409, {"error": None}, Conflict, None, "an answer, without a reason"),
        (409, b'["?"]', Conflict, None, "an answer, without a reason"),
        (409, b'"said"', Conflict, None, "said"),
        (422, {"error": {"message": ["a"], "code": 7}}, BadRequest, None, "an answer, without a reason"),
        (500, {"code": "oops", "error": "text"}, ServerError, "oops", "text"),
        (503, b"\xff\xfe", ServerError, None, "\ufffd\ufffd"),
        (302, b"", Refused, None, "a redirect, which is not followed: is base_url right?"),
        (400, b"[" * 100_000, BadRequest, None, "[" * 500 + "…"),
    ],
)
def test_every_shape_of_error(status: int, body: Any, kind: type[LavaError], code: str | None, message: str) -> None:
    """Object, string, HTML, text, empty or broken: a typed error with what is known."""
    headers = [(b"x-lava-request-id", b"req_7"), (b"location", b"http://127.0.0.1:1/")]
    script = json_answer(body, status, headers) if isinstance(body, dict) else answer(status, body, headers)
    found, _ = asked(script, wallet, retries=0)
    assert type(found) is kind
    assert (found.status, found.code, found.message, found.request_id) == (status, code, message, "req_7")
    assert str(found).startswith(f"Lava answered {status}: ")
    assert "req_7" in str(found)
    again = pickle.loads(pickle.dumps(found))
    assert (type(again), str(again), again.status) == (kind, str(found), status)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (HTML, NotJson, "a web page"),
        (b"ok", NotJson, "instead of JSON"),
        (b'{"wallet_id": NaN}', NotJson, "instead of JSON"),
        (b"[]", UnexpectedAnswer, "no proper Wallet"),
        (b"null", UnexpectedAnswer, "no proper Wallet"),
        (b"{}", UnexpectedAnswer, "wallet_id"),
        (b'{"wallet_id": "w", "balance": "much"}', UnexpectedAnswer, "balance"),
    ],
)
def test_success_that_is_none(body: bytes, kind: type[LavaError], said: str) -> None:
    """Lava agreed, but its answer is not what it should be; the value is not shown."""
    found, upstream = asked(answer(200, body, [(b"x-lava-request-id", b"req_8")]), wallet)
    assert type(found) is kind
    assert said in str(found)
    assert "much" not in str(found)
    assert (found.status, found.request_id) == (200, "req_8")
    assert len(upstream.requests) == 1


def test_an_empty_success_says_nothing_more() -> None:
    """204 for a deletion."""
    found, _ = asked(answer(204, length=False), lambda lava: lava.meters.delete("m"))
    assert found == records.Deleted()


def test_an_answer_wrapped_in_data() -> None:
    """As the reference of 2025 has it."""
    found, _ = asked(json_answer({"data": {"wallet_id": "w"}}), wallet)
    assert found.wallet_id == "w"


def test_what_lava_echoes_is_masked() -> None:
    """Not even Lava can put the key into a message, plain or inside a token."""
    token = Lava(KEY).forward_token(meter_slug="m")
    told = {"error": {"message": f"bad key {KEY} in {token}", "code": KEY}}
    found, _ = asked(json_answer(told, 401), wallet)
    text = "".join(traceback.format_exception(found)) + repr(found) + repr(vars(found))
    assert not leaks(text, [KEY])
    assert "bad key ***" in str(found)


def test_nothing_is_logged_and_nothing_hangs_on_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Of a failed call no log line, no repr and no cause has the key."""
    with caplog.at_level(logging.DEBUG):
        found, _ = asked(in_turn(json_answer({"error": "no"}, 401)), wallet)
        broken, _ = asked(in_turn(b""), wallet)
    seen = caplog.text
    for exc in (found, broken):
        seen += "".join(traceback.format_exception(exc)) + repr(exc) + repr(exc.__cause__) + repr(vars(exc))
    assert not leaks(seen, [KEY])
    assert not leaks(repr(Lava(KEY)) + repr(vars(Lava(KEY))), [KEY])


# Again or not


def test_a_get_is_asked_again() -> None:
    """After 429, 5xx and a broken connection."""
    script = in_turn(json_answer({}, 503), b"", json_answer({}, 429), json_answer({"wallet_id": "w"}))
    found, upstream = asked(script, wallet, retries=3)
    assert found.wallet_id == "w"
    assert len(upstream.requests) == 4


def test_patience_ends() -> None:
    """After ``retries`` the last error is raised."""
    found, upstream = asked(json_answer({"error": "busy"}, 503), wallet)
    assert isinstance(found, ServerError)
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 501])
def test_what_will_not_change_is_not_asked_again(status: int) -> None:
    """One call exactly."""
    _, upstream = asked(json_answer({}, status), wallet)
    assert len(upstream.requests) == 1


def test_a_post_goes_again_with_the_same_idempotency_key() -> None:
    """That is what makes it safe."""
    found, upstream = asked(in_turn(json_answer({}, 500), b"", json_answer(ANYTHING)), creation)
    assert found.secret_key_id == "i"
    keys = {request.header(b"idempotency-key") for request in upstream.requests}
    assert len(upstream.requests) == 3
    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize("first", [json_answer({}, 500), b""])
@pytest.mark.parametrize("ask", [creation, lambda lava: lava.meters.delete("m"), lambda lava: lava.meters.update("m")])
def test_what_may_have_had_an_effect_is_not_repeated(first: bytes, ask: Ask) -> None:
    """POST without the key, PATCH, DELETE: after 5xx or a connection that broke after sending."""
    found, upstream = asked(in_turn(first, json_answer(ANYTHING)), ask, idempotency=False)
    assert isinstance(found, ServerError | Unreachable)
    assert len(upstream.requests) == 1
    if isinstance(found, Unreachable):
        assert found.sent


def test_429_is_refused_unread_and_so_goes_again() -> None:
    """Whatever the method."""
    found, upstream = asked(in_turn(json_answer({}, 429), json_answer({})), lambda lava: lava.meters.delete("m"))
    assert found == records.Deleted()
    assert len(upstream.requests) == 2


def test_nothing_sent_is_tried_again(free_port: int) -> None:
    """A refused connection, for a POST too; then a typed error that says so."""

    async def run() -> None:
        async with Lava(KEY, base_url=f"http://127.0.0.1:{free_port}", backoff=0.001, idempotency=False) as lava:
            with pytest.raises(Unreachable) as caught:
                await creation(lava)
            assert not caught.value.sent
            assert "refused" in str(caught.value).lower()

    asyncio.run(run())


@pytest.mark.parametrize("told", [b"0", b"0.01", b"Wed, 01 Jan 2020 00:00:00 GMT"])
def test_retry_after_is_kept(told: bytes) -> None:
    """Seconds or a date; one in the past is now."""
    found, upstream = asked(
        in_turn(json_answer({}, 429, [(b"retry-after", told)]), json_answer({"wallet_id": "w"})), wallet
    )
    assert found.wallet_id == "w"
    assert len(upstream.requests) == 2


def test_a_long_retry_after_is_told_and_not_waited_for() -> None:
    """Seconds, a date, or the documented X-RateLimit-Reset."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True).encode()
    reset = b"%d" % (time.time() + 3600)
    for header in [(b"retry-after", b"3600"), (b"retry-after", later), (b"x-ratelimit-reset", reset)]:
        found, upstream = asked(json_answer({}, 429, [header]), wallet)
        assert isinstance(found, RateLimited)
        assert found.retry_after == pytest.approx(3600, abs=60)
        assert len(upstream.requests) == 1
    odd, _ = asked(json_answer({}, 429, [(b"retry-after", b"soon")]), wallet, retries=0)
    assert odd.retry_after is None


def test_a_silent_server() -> None:
    """The time of one try is limited; the call is told as sent."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.gone()

    found, _ = asked(script, wallet, timeout=0.2, retries=0)
    assert isinstance(found, TimedOut)
    assert found.sent


def test_an_answer_that_breaks_off() -> None:
    """Never a short record."""
    whole = answer(200, b'{"wallet_id": "w"}')

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(whole[:-4])

    found, _ = asked(script, wallet, retries=0)
    assert isinstance(found, Interrupted)
    assert found.sent


def test_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    """Refused with a sentence; accepted where ``ca_file`` names its authority."""
    made = certificate(tmp_path)

    async def ask(**options: Any) -> Any:
        async with Lava(KEY, base_url=f"{upstream.url}/v1", retries=0, **options) as lava:
            return await lava.wallet.retrieve()

    with Upstream(json_answer({"wallet_id": "w"}), tls=made.server) as upstream:
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            asyncio.run(ask())
        assert asyncio.run(ask(ca_file=made.ca_file)).wallet_id == "w"
        with pytest.raises(Unreachable, match="ca_file cannot be used"):
            asyncio.run(ask(ca_file=str(tmp_path / "none.pem")))


def test_only_a_named_proxy_is_asked(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """No proxy variable is followed; ``proxy=`` is, and sees the whole address."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port}")
    found, direct = asked(json_answer({"wallet_id": "w"}), wallet)
    assert (found.wallet_id, direct.requests[0].target) == ("w", b"/v1/wallet")

    async def ask() -> Any:
        async with Lava(KEY, base_url=f"http://127.0.0.1:{free_port}", proxy=between.url) as lava:
            return await lava.wallet.retrieve()

    with Upstream(json_answer({"wallet_id": "w"})) as between:
        assert asyncio.run(ask()).wallet_id == "w"
    assert between.requests[0].target == f"http://127.0.0.1:{free_port}/v1/wallet".encode()


def test_a_client_outlives_its_event_loop() -> None:
    """Two runs of one client; connections are closed in each."""
    with Upstream(json_answer({"wallet_id": "w"})) as upstream:
        lava = client(upstream)

        async def run() -> str:
            async with lava:
                return (await lava.wallet.retrieve()).wallet_id

        assert asyncio.run(run()) == asyncio.run(run()) == "w"


def test_many_calls_share_connections() -> None:
    """And a cancelled one leaves the client working."""

    async def ask(lava: Lava) -> None:
        await asyncio.gather(*(lava.wallet.retrieve() for _ in range(20)))
        for _ in range(5):
            task = asyncio.ensure_future(lava.wallet.retrieve())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.gather(*(lava.wallet.retrieve() for _ in range(20)))

    found, upstream = asked(json_answer({"wallet_id": "w"}), ask)
    assert found is None
    assert upstream.accepted < 60


def test_json_is_read_strictly() -> None:
    """What is not JSON is none."""
    for bad in (b"NaN", b"Infinity", b"1e9999999999999999999", b"[" * 200_000, b"{'a': 1}", b"9" * 5000):
        with pytest.raises(ValueError):  # noqa: PT011 - any reason will do
            document(bad)
    assert document(b"[1.10]") == [Decimal("1.10")]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False).map(str) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "error", "message", "code", "id"]), inner),
    max_leaves=8,
)
_BODIES = (
    st.binary()
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([HTML, b"1e99999999", b"[1e999]"])
)


@given(
    status=st.integers(200, 599),
    body=_BODIES,
    headers=st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset", "content-type"]), st.text()),
    kind=st.sampled_from(
        [records.ApiModel, records.Request, records.Page[records.Meter], records.UsageReport, records.Done]
    ),
)
def test_any_answer_is_a_record_or_a_typed_error(
    status: int, body: bytes, headers: dict[str, str], kind: type[records.ApiRecord]
) -> None:
    """Whatever comes, nothing but a LavaError is raised, and its line has no line end in it."""
    raised: LavaError | None = None
    try:
        assert type(read(kind, ApiReply(status, headers, body), Redactor([KEY]), time.time())) is kind
    except LavaError as exc:
        raised = exc
    if raised is not None:
        assert "\n" not in str(raised)
        assert raised.status == status


@pytest.mark.parametrize("count", [b"1e999999", b"1.5", b'"x"', b"true", b"[]"])
def test_a_count_that_is_none(count: bytes) -> None:
    """Refused, and no number of a million digits is made of it."""
    found, _ = asked(
        json_answer(b'{"items": [{"total_requests": %b}]}' % count), lambda lava: lava.usage.retrieve(start="x")
    )
    assert isinstance(found, UnexpectedAnswer)
