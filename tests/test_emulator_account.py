"""The offline Lava's account API, login pages and webhooks, over real sockets; the Node SDK's whole surface against it.

The clients here are httpx2, raw sockets and the Node SDK; the program's own client meets the emulator in its own tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import socket
import stat
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from profiles import examples

from proxy.emulator import Emulator, World
from proxy.emulator.account import RESOURCES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import NodeSDK

CALLS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "rest_calls.json").read_text("utf-8")
)
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "one two three four"}]}
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Account:
    """A client of one emulator's account API and gateway, for one key."""

    def __init__(self, emulator: Emulator, key: str | None = None) -> None:
        self.world = emulator.world
        self.emulator = emulator
        self.root = f"http://127.0.0.1:{emulator.port}"
        self.http = httpx2.Client(base_url=emulator.base_url, trust_env=False, timeout=20.0)
        self.key = key or emulator.world.secret_key

    def send(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> httpx2.Response:
        """One call. Underscores in header names become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {"authorization": f"Bearer {key or self.key}"}
        return self.http.request(method, path, json=body, headers=bearer | named)

    def get(self, path: str, **rest: Any) -> Any:
        answer = self.send("GET", path, **rest)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any, **rest: Any) -> Any:
        answer = self.send("POST", path, body, **rest)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def refused(self, method: str, path: str, body: Any = None, **rest: Any) -> tuple[int, str]:
        """Status and code of a refusal, whose envelope has to be whole."""
        answer = self.send(method, path, body, **rest)
        error = answer.json()["error"]
        assert set(error) == {"message", "code", "status"}
        assert error["status"] == answer.status_code
        assert error["message"]
        assert answer.headers["x-lava-request-id"].startswith("req_")
        return answer.status_code, error["code"]

    def token(self, **fields: Any) -> str:
        """A forward token of this key."""
        return base64.b64encode(json.dumps({"secret_key": self.key, **fields}).encode()).decode()

    def chat(self, key: str | None = None, *, url: str | None = None, **more: Any) -> httpx2.Response:
        """A chat completion through the forward address."""
        headers = {"x-lava-metadata": json.dumps(more.pop("metadata"))} if "metadata" in more else {}
        fault = more.pop("fault", None)
        headers |= {"x-emulator-fault": fault} if fault else {}
        target = quote(url or "https://api.openai.com/v1/chat/completions", safe="")
        bearer = {"authorization": f"Bearer {key or self.key}"}
        return self.http.post(f"forward?u={target}", json={**CHAT, **more}, headers=bearer | headers)

    def bill(self, customer: str = "conn_demo", meter: str = "demo-chat", **more: Any) -> httpx2.Response:
        """The same on a customer's account."""
        return self.chat(self.token(customer_id=customer, meter_slug=meter), **more)

    def spend(self, key: str, path: str = "chat/completions", **more: Any) -> httpx2.Response:
        """A chat completion at Lava's own address."""
        return self.http.post(path, json={**CHAT, "max_tokens": 9, **more}, headers={"authorization": f"Bearer {key}"})


@pytest.fixture
def account(emulator: Emulator) -> Iterator[Account]:
    client = Account(emulator)
    with client.http:
        yield client


@pytest.fixture
def clock(emulator: Emulator) -> Clock:
    """The emulator's clock, in the test's hands."""
    found = Clock()
    for world in (emulator.world, emulator.world.sandbox):
        assert world is not None
        world.clock = found
    return found


# What every call goes through ---


@pytest.mark.parametrize("version", sorted(CALLS))
def test_every_recorded_call_of_the_sdks_has_an_answer(account: Account, version: str) -> None:
    """Each call that SDK 8.1 to 11.2 makes reaches a handler: it may lack a record or a field, never an address."""
    for name, call in CALLS[version].items():
        if name.startswith("gateway"):
            continue
        path = call["path"].removeprefix("/v1/") + call["raw_query"].replace("cursor=", "was=")
        answer = account.send(call["method"], path, call["body"])
        code = answer.json().get("error", {}).get("code", "")
        assert answer.status_code in (200, 201, 400, 404), (name, answer.text)
        assert code not in ("not_found", "method_not_allowed", "emulator_failed"), (name, answer.text)


def test_the_account_wants_a_secret_key_as_bearer(account: Account) -> None:
    """Nothing, another place, another scheme, a spend key, a forward token, an unknown and a revoked key: all 401."""
    for path in (pattern.replace("*", "x") for pattern in RESOURCES):
        answer = account.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_credentials"), path
    assert account.http.get("meters", headers={"x-api-key": account.key}).status_code == 401
    assert account.http.get("meters", headers={"authorization": f"Basic {account.key}"}).status_code == 401
    unknown = "aks_live_" + "0" * 24
    for key in (account.world.keys.spend_keys["openai"], account.token(), unknown):
        assert account.refused("GET", "meters", key=key) == (401, "invalid_secret_key")
    account.world.keys.revoked_keys.add(account.key)
    assert account.refused("GET", "meters") == (401, "invalid_secret_key")


def test_test_keys_see_a_sandbox_of_their_own(account: Account) -> None:
    """What a live key makes, a test key does not see, and the other way round; money is apart too."""
    world = account.world
    assert world.sandbox is not None
    made = account.post("customers", {"name": "Live"})["customer_id"]
    assert account.refused("GET", f"customers/{made}", key=world.test_key) == (404, "customer_not_found")
    key = account.post("secret_keys", {"name": "more"}, key=world.test_key)["secret_key"]
    assert key.startswith("aks_test_")
    assert account.get("wallet", key=key)["wallet_id"] == "wal_sandbox"
    assert account.chat(key).status_code == 200
    token = base64.b64encode(json.dumps({"secret_key": key}).encode()).decode()
    assert account.chat(token).status_code == 200
    assert world.account.wallet_balance == Decimal("20.00") > world.sandbox.account.wallet_balance
    assert account.get("requests")["data"] == []
    assert len(account.get("requests", key=key)["data"]) == 2


def test_an_address_may_serve_one_environment_only(account: Account) -> None:
    """As Lava's own two addresses do: the keys of the other one are unknown there."""
    world = account.world
    keys = (world.secret_key, world.test_key)
    world.behaviour.environment = "live"
    for own, other in (keys, keys[::-1]):
        assert account.send("GET", "wallet", key=own).status_code == 200
        assert account.chat(own).status_code == 200
        assert account.refused("GET", "wallet", key=other) == (401, "invalid_secret_key")
        assert account.chat(other).status_code == 401
        world.behaviour.environment = "test"


@pytest.mark.parametrize("generation", [None, 8, 9, 10, 11])
def test_a_generation_has_its_own_names_and_keys(account: Account, generation: Any) -> None:
    """With a generation set, only its resources are there and spend keys want that generation's kind of key."""
    account.world.behaviour.generation = generation
    wallet_key = account.world.keys.wallet_key_records[0].key

    def status(path: str, key: str) -> int:
        return account.send("GET", path, key=key).status_code

    by_secret, by_wallet = 200 if generation in (None, 11) else 401, 401 if generation == 11 else 200
    old, new = 200 if generation in (None, 8) else 404, 404 if generation == 8 else 200
    assert (status("connections", account.key), status("subscription_configs", account.key)) == (old, old)
    assert (status("customers", account.key), status("plans", account.key)) == (new, new)
    if generation == 8:
        by_secret = by_wallet = 404
    assert (status("spend_keys", account.key), status("spend_keys", wallet_key)) == (by_secret, by_wallet)
    if generation == 11:
        by_secret = by_wallet = 404
    assert (status("wallet_keys", account.key), status("wallet_keys", wallet_key)) == (by_secret, by_wallet)
    assert status("meters", wallet_key) == 401


def test_the_rate_limit_is_told_and_kept(account: Account, clock: Clock) -> None:
    """1000 calls per key and minute, told in headers; then 429 until the minute is over. It can be switched off."""
    headers = account.send("GET", "wallet").headers
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("1000", "999")
    assert headers["x-ratelimit-reset"] == str(int(NOON + 60))
    account.world.behaviour.rest_limit = 3
    assert [account.send("GET", "wallet").status_code for _ in range(3)] == [200, 200, 429]
    answer = account.send("GET", "wallet")
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    assert account.refused("GET", "wallet") == (429, "rate_limit_exceeded")
    assert account.chat().status_code == 200
    assert account.send("GET", "wallet", key=account.world.test_key).status_code == 200
    clock.now += 60
    assert account.send("GET", "wallet").headers["x-ratelimit-remaining"] == "2"
    account.world.behaviour.rest_limit = None
    assert "x-ratelimit-limit" not in account.send("GET", "wallet").headers


def test_unknown_addresses_and_methods(account: Account) -> None:
    """404 for what is no resource, 405 with Allow for a method that a resource lacks."""
    assert account.refused("GET", "meter") == (404, "not_found")
    assert account.refused("GET", "meters/a%2Fb") == (404, "not_found")
    answer = account.send("PUT", "meters")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


def test_faults_on_demand_for_account_calls(account: Account) -> None:
    """By header for one call, or queued in the world for clients that cannot send one."""
    assert account.refused("GET", "wallet", x_emulator_fault="lava-500") == (500, "internal_error")
    account.world.behaviour.account_faults += ["lava-429", "html-502", "no-answer"]
    assert account.send("GET", "wallet").headers["retry-after"] == "1"
    assert account.send("GET", "wallet").headers["content-type"] == "text/html"
    with pytest.raises(httpx2.RemoteProtocolError):
        account.send("GET", "wallet")
    assert account.send("GET", "wallet").status_code == 200


def test_a_repeated_post_with_an_idempotency_key_happens_once(account: Account) -> None:
    """The same request gives the first answer again, another one with the key is refused."""
    first = account.post("customers", {"name": "Once"}, idempotency_key="k1")
    assert account.post("customers", {"name": "Once"}, idempotency_key="k1") == first
    assert account.post("customers", {"name": "Once"}, idempotency_key="k2") != first
    assert account.refused("POST", "customers", {"name": "Other"}, idempotency_key="k1") == (
        409,
        "idempotency_key_reused",
    )


def test_lists_come_in_pages(account: Account) -> None:
    """Newest first, 50 unless limited, at most 100, and the cursor leads through all of them exactly once."""
    made = [
        account.post("webhooks", {"name": str(at), "url": "http://127.0.0.1:1/"})["webhook_id"] for at in range(120)
    ]
    first = account.get("webhooks")
    assert len(first["data"]) == 50
    seen, cursor = [], None
    while True:
        page = account.get("webhooks?limit=40" + (f"&cursor={cursor}" if cursor else ""))
        seen += [one["webhook_id"] for one in page["data"]]
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
    assert seen == made[::-1]
    assert "next_cursor" not in page
    account.world.behaviour.null_cursor = True
    assert account.get("webhooks?limit=1&cursor=" + made[1])["next_cursor"] is None
    for bad in ("limit=0", "limit=101", "limit=x", "limit="):
        assert account.refused("GET", f"webhooks?{bad}") == (400, "invalid_limit")
    assert account.refused("GET", "webhooks?cursor=nothing") == (400, "invalid_cursor")


BAD_INPUT: list[tuple[str, str, Any, str]] = [
    ("POST", "customers", None, "JSON object"),
    ("POST", "customers", [1], "JSON object"),
    ("POST", "customers", {"email": 5}, "email"),
    ("POST", "customers", {"metadata": "x"}, "metadata"),
    ("POST", "meters", {"name": "n"}, "rate_type"),
    ("POST", "meters", {"name": "n", "rate_type": "fixed", "tier_type": "hours"}, "tier_type"),
    ("POST", "meters", {"name": "n", "rate_type": "fixed", "tier_type": "minutes", "tiers": []}, "tiers"),
    (
        "POST",
        "meters",
        {"name": "n", "rate_type": "fixed", "tier_type": "minutes", "tiers": [{"start": "0", "rate": 1.5}]},
        "tiers[0].rate",
    ),
    ("POST", "plans", {"name": "n", "period_amount": "ten", "billing_interval": "month"}, "period_amount"),
    ("POST", "plans", {"name": "n", "period_amount": "10", "billing_interval": "moon"}, "billing_interval"),
    ("POST", "webhooks", {"name": "n", "url": "ftp://127.0.0.1/"}, "url"),
    ("POST", "webhooks", {"name": "n", "url": "http://127.0.0.1/a b"}, "url"),
    ("POST", "secret_keys", {}, "name"),
    ("POST", "spend_keys", {"name": "n", "request_shape": "google"}, "request_shape"),
    ("POST", "spend_keys", {"name": "n", "spend_limit": {"amount": "1"}}, "spend_limit.cycle"),
    ("POST", "spend_keys", {"name": "n", "rate_limit": {"rpm": 0}}, "rate_limit.rpm"),
    ("POST", "spend_keys", {"name": "n", "expires_at": "soon"}, "expires_at"),
    ("POST", "spend_keys", {"name": "n", "allowed_models": "gpt-5"}, "allowed_models"),
    ("POST", "checkout_sessions", {"checkout_mode": "gift", "origin_url": "https://a.example"}, "checkout_mode"),
    ("POST", "checkout_sessions", {"checkout_mode": "subscription", "origin_url": "x", "plan_id": "p"}, "origin_url"),
    ("POST", "checkout_sessions", {"checkout_mode": "subscription", "origin_url": "https://a.example"}, "plan"),
    ("POST", "requests", {"request_id": "r", "customer_id": "conn_demo"}, "meter_slug"),
    ("GET", "usage", None, "start"),
    ("GET", "usage?start=yesterday", None, "start"),
    ("GET", "usage?start=2026-03-02T00:00:00Z&end=2026-03-01T00:00:00Z", None, "end"),
    ("GET", "requests?metadata_filters=%7B%22a%22%3A%22b%22%7D", None, "metadata_filters"),
    ("GET", "subscriptions?status=paused", None, "status"),
    ("PATCH", "account/fallback", {"chain": [{"url": "x"}]}, "chain[0].model"),
    ("PATCH", "account/fallback", {}, "chain"),
]


@pytest.mark.parametrize(("method", "path", "body", "named"), BAD_INPUT)
def test_bad_input_is_a_400_that_names_the_fault(
    account: Account, method: str, path: str, body: Any, named: str
) -> None:
    """Every malformed thing is refused with the field's name, and nothing is made of it."""
    answer = account.send(method, path, body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert len(account.world.account.connections) == 2
    assert not account.world.account.webhooks


def test_a_refused_change_changes_nothing(account: Account) -> None:
    """A bad field beside a good one leaves the record as it was."""
    before = account.get("customers/conn_demo")
    assert account.refused("PATCH", "customers/conn_demo", {"name": "New", "email": 7})[0] == 400
    assert account.get("customers/conn_demo") == before
    key = account.get("spend_keys")["data"][0]
    path = f"spend_keys/{key['spend_key_id']}"
    assert account.refused("PUT", path, {"status": "paused", "rate_limit": {"rpm": "x"}})[0] == 400
    assert account.get(path) == key


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"metadata":{"a":NaN}}', b'{"name":"\\ud800"}', b"[" * 100_000])
def test_bodies_that_are_no_json(account: Account, body: bytes) -> None:
    """Broken text, numbers that JSON has not, half a surrogate pair and absurd nesting are 400."""
    answer = account.http.post("customers", content=body, headers={"authorization": f"Bearer {account.key}"})
    assert code_of(answer) == (400, "invalid_json")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELD_NAMES = st.sampled_from(
    [
        "name",
        "url",
        "metadata",
        "tiers",
        "rate_type",
        "tier_type",
        "meter_slug",
        "meter_ids",
        "credit_bundles",
        "period_amount",
        "billing_interval",
        "included_credit",
        "spend_limit",
        "request_limit",
        "rate_limit",
        "expires_at",
        "allowed_models",
        "status",
        "request_shape",
        "customer_id",
        "plan_id",
        "request_id",
        "input_tokens",
        "input_seconds",
        "checkout_mode",
        "origin_url",
        "chain",
        "email",
        "connection_id",
    ]
)
LIKELY = st.sampled_from(
    ["x", "1.50", "fixed", "minutes", "month", "subscription", "https://a.example", "conn_demo", 7]
)


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_makes_the_account_fail(account: Account, data: st.DataObject) -> None:
    """Random bodies and queries at every address are answered with JSON below 500."""
    account.world.behaviour.rest_limit = None
    pattern = data.draw(st.sampled_from(sorted(RESOURCES)))
    method = data.draw(st.sampled_from(sorted(RESOURCES[pattern])))
    name = data.draw(st.sampled_from(["conn_demo", "plan_pro", "bundle_extra", "key_default", "%00", "%FF", "a"]))
    body = data.draw(st.dictionaries(FIELD_NAMES, LIKELY | JSON_VALUES, max_size=8) | JSON_VALUES)
    query = data.draw(
        st.dictionaries(st.sampled_from(["limit", "cursor", "start", "end", "metadata_filters", "status"]), st.text())
    )
    encoded = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
    if pattern == "secret_keys/*":
        name = "key_other"
    answer = account.send(method, f"{pattern.replace('*', name)}?{encoded}", body)
    assert answer.status_code < 500, answer.text
    answer.json()


# Customers, meters, plans ---


def test_customers_and_connections_are_the_same_records(account: Account) -> None:
    """One record under both names, each in its generation's shape; deleting it kills its tokens."""
    made = account.post(
        "customers",
        {"name": "Grace Hopper", "email": "g@example.com", "reference_id": "u-9", "metadata": {"team": "navy"}},
    )
    name = made["customer_id"]
    assert made["contact"] == {"phone": "", "email": "g@example.com", "first_name": "Grace", "last_name": "Hopper"}
    assert (made["reference_id"], made["metadata"], made["subscription"]) == ("u-9", {"team": "navy"}, None)
    old = account.get(f"connections/{name}")
    assert set(old) == {"connection_id", "has_lava_credit_balance", "customer", "subscription", "created_at"}
    assert old["customer"] == made["contact"]
    assert next(one["connection_id"] for one in account.get("connections")["data"]) == name
    changed = account.send("PATCH", f"customers/{name}", {"name": None, "phone": "+1", "metadata": None}).json()
    assert (changed["contact"]["first_name"], changed["contact"]["phone"], changed["metadata"]) == ("", "+1", None)
    account.world.account.connections[name].balance = Decimal(1)
    assert account.get(f"connections/{name}")["has_lava_credit_balance"] is True
    assert account.bill(name).status_code == 200
    assert account.send("DELETE", f"connections/{name}").json() == {"success": True}
    assert account.refused("GET", f"customers/{name}") == (404, "customer_not_found")
    assert account.bill(name).status_code == 401


def test_meters_decide_what_a_customer_pays(account: Account) -> None:
    """A meter made over the API prices the gateway's calls: at cost, with a percentage on top, per unit, by tiers."""
    customer = account.world.account.connections["conn_demo"]
    paid: dict[str, Decimal] = {}
    made = [
        ("at-cost", "percentage", "tokens_1m", [{"start": "0", "rate": "0"}]),
        ("half-more", "percentage", "tokens_1m", [{"start": "0", "rate": "50"}]),
        ("per-request", "fixed", "requests", [{"start": "0", "rate": "0.25"}]),
        ("tiers", "fixed", "requests", [{"start": "5", "rate": "9"}, {"start": "0", "rate": "0.10"}]),
    ]
    for slug, rate, kind, tiers in made:
        record = account.post("meters", {"name": slug, "rate_type": rate, "tier_type": kind, "tiers": tiers})
        assert record["meter_slug"] == slug
        before = customer.balance
        assert account.bill(meter=slug).status_code == 200
        paid[slug] = before - customer.balance
        line = account.get(f"requests?meter_id={record['meter_id']}")["data"][0]
        assert Decimal(line["charge"]["amount"]) == paid[slug]
        assert line["charge"]["breakdown"][0]["tier"]["type"] == kind
    assert paid["half-more"] == paid["at-cost"] * Decimal("1.5") > 0
    assert (paid["per-request"], paid["tiers"]) == (Decimal("0.25"), Decimal("0.10"))
    assert account.refused(
        "POST",
        "meters",
        {"name": "Tiers", "rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": "0", "rate": "1"}]},
    ) == (409, "meter_slug_taken")


def test_a_deleted_meter_is_unknown_to_the_gateway(account: Account) -> None:
    """PATCH changes name and price, DELETE answers with the id, and the slug stops working."""
    record = next(one for one in account.get("meters")["data"] if one["meter_slug"] == "website-chat")
    path = f"meters/{record['meter_id']}"
    changed = account.send("PATCH", path, {"name": "Shop", "tiers": [{"start": "0", "rate": "10"}]}).json()
    assert (changed["name"], changed["tiers"][0]["rate"], changed["meter_slug"]) == ("Shop", "10", "website-chat")
    assert account.bill(meter="website-chat").status_code == 200
    assert account.send("DELETE", path).json() == {"id": record["meter_id"], "deleted": True}
    assert account.bill(meter="website-chat").status_code == 401


def plan_of(account: Account, **more: Any) -> dict[str, Any]:
    """A plan as just created."""
    body = {"name": "P", "period_amount": "0", "billing_interval": "month", "included_credit": "0.00002", **more}
    made: dict[str, Any] = account.post("plans", body)
    return made


def test_plans_under_both_names(account: Account) -> None:
    """A plan with bundles is made, changed, listed as a subscription configuration, and deleted when nobody is on it."""
    meter = account.get("meters")["data"][0]["meter_id"]
    bundles = [{"name": "a", "cost": "1", "credit_amount": "2"}, {"name": "b", "cost": "3", "credit_amount": "4"}]
    made = plan_of(account, meter_ids=[meter], credit_bundles=bundles, default_auto_top_up_bundle_index=1)
    name, (first, second) = made["plan_id"], made["credit_bundles"]
    assert made["default_auto_top_up_bundle_id"] == second["credit_bundle_id"]
    assert made["linked_meters"][0]["meter_id"] == meter
    old = account.get(f"subscription_configs/{name}")
    assert old["subscription_config_id"] == name
    assert "default_auto_top_up_bundle_id" not in old
    gone = {**second, "is_deleted": True}
    more = {"name": "c", "cost": "5", "credit_amount": "6"}
    dearer = {**first, "cost": "9"}
    changed = account.send("PATCH", f"plans/{name}", {"name": "Q", "credit_bundles": [dearer, gone, more]}).json()
    assert [(one["name"], one["cost"]) for one in changed["credit_bundles"]] == [("a", "9"), ("c", "5")]
    assert (changed["name"], changed["default_auto_top_up_bundle_id"]) == ("Q", None)
    listed = account.get(f"credit_bundles?plan_id={name}")["data"]
    assert {one["plan_id"] for one in listed} == {name}
    assert account.get(f"credit_bundles?subscription_config_id={name}")["data"][0]["subscription_config_id"] == name
    assert account.get(f"credit_bundles/{first['credit_bundle_id']}")["cost"] == "9"
    account.post("subscriptions", {"customer_id": "conn_demo", "plan_id": name})
    assert account.refused("DELETE", f"plans/{name}") == (409, "plan_in_use")
    subscribed = account.get("customers/conn_demo/subscription")["subscription"]["subscription_id"]
    assert account.send("DELETE", f"subscriptions/{subscribed}").json() == {"success": True}
    assert account.send("DELETE", f"plans/{name}").json() == {"id": name, "deleted": True}


def test_only_free_plans_are_given_away(account: Account) -> None:
    """A paid plan is refused with a code of its own, a second subscription with another."""
    body = {"customer_id": "conn_demo", "plan_id": "plan_pro"}
    assert account.refused("POST", "subscriptions", body) == (400, "paid_plan_requires_checkout")
    body["plan_id"] = "plan_free"
    assert account.post("subscriptions", body)["subscription"]["credits"]["total_remaining"] == "1.00"
    assert account.refused("POST", "subscriptions", body) == (409, "subscription_exists")
    assert account.get("customers/conn_demo")["subscription"]["plan_id"] == "plan_free"


def test_plan_credit_is_used_before_the_wallet(account: Account) -> None:
    """First the cycle's credit, then a bundle bought by itself, then the wallet; all amounts add up exactly."""
    bundle = {"name": "b", "cost": "1", "credit_amount": "0.00005"}
    made = plan_of(account, credit_bundles=[bundle])
    subscribed = account.post("subscriptions", {"customer_id": "conn_empty", "plan_id": made["plan_id"]})[
        "subscription"
    ]
    path = f"subscriptions/{subscribed['subscription_id']}"
    assert account.bill("conn_empty").status_code == 402
    top_up = {"auto_top_up_bundle_id": made["credit_bundles"][0]["credit_bundle_id"]}
    assert account.send("PATCH", path, top_up).json() == {"success": True}
    assert account.bill("conn_empty").status_code == 200
    price = Decimal(account.get("requests?customer_id=conn_empty")["data"][0]["charge"]["amount"])
    credits = account.get("customers/conn_empty/subscription")["subscription"]["credits"]
    assert Decimal(credits["total_remaining"]) == Decimal("0.00007") - price
    assert Decimal(credits["cycle_remaining"]) == 0
    assert account.send("PATCH", path, {"auto_top_up_bundle_id": None}).json() == {"success": True}
    customer = account.world.account.connections["conn_empty"]
    customer.balance = Decimal(1)
    assert account.bill("conn_empty").status_code == 200
    assert account.bill("conn_empty").status_code == 200
    left = account.world.account.subscription_of("conn_empty", account.world.clock())
    assert left is not None
    assert customer.balance + left.credits == Decimal("1.00007") - 3 * price
    assert account.refused("PATCH", path, {"auto_top_up_bundle_id": "bundle_extra"}) == (404, "credit_bundle_not_found")


def test_cycles_renew_and_subscriptions_end(account: Account, clock: Clock) -> None:
    """A month later the credit is there again; a cancelled paid plan lasts to its cycle's end, a free one ends at once."""
    world = account.world
    customer = account.post("customers", {})["customer_id"]
    token = account.post(
        "checkout_sessions",
        {
            "checkout_mode": "subscription",
            "origin_url": "https://a.example",
            "customer_id": customer,
            "plan_id": "plan_pro",
        },
    )
    assert account.http.post(f"{account.root}/checkout/{token['checkout_session_token']}").status_code == 200
    record = world.account.subscription_of(customer, world.clock())
    assert record is not None
    record.cycle_remaining, record.bundle_remaining = Decimal(1), Decimal(3)
    clock.now = datetime(2026, 4, 10, 12, tzinfo=UTC).timestamp()
    shown = account.get(f"customers/{customer}/subscription")["subscription"]
    assert shown["credits"] == {"total_remaining": "23.00", "cycle_remaining": "20.00", "bundle_remaining": "3"}
    assert (shown["cycle_start_at"], shown["cycle_end_at"]) == ("2026-04-10T12:00:00.000Z", "2026-05-10T12:00:00.000Z")
    account.send("DELETE", f"subscriptions/{shown['subscription_id']}")
    shown = account.get(f"customers/{customer}/subscription")["subscription"]
    assert shown["status"] == "active"
    assert shown["pending_change"] == {"type": "cancellation", "effective_at": "2026-05-10T12:00:00.000Z"}
    clock.now += 31 * 86400
    assert account.get(f"customers/{customer}/subscription") == {"subscription": None}
    assert account.get("subscriptions")["data"] == []
    ended = account.get("subscriptions?status=cancelled")["data"][0]
    assert (ended["status"], ended["cancelled_at"]) == ("cancelled", "2026-05-10T12:00:00.000Z")
    account.post("subscriptions", {"customer_id": customer, "plan_id": "plan_free"})
    assert account.get(f"subscriptions?customer_id={customer}")["data"][0]["customer_id"] == customer
    assert account.get(f"subscriptions?connection_id={customer}")["data"][0]["connection_id"] == customer
    free = world.account.subscription_of(customer, world.clock())
    assert free is not None
    account.send("DELETE", f"subscriptions/{free.subscription_id}")
    assert account.refused("DELETE", f"subscriptions/{free.subscription_id}") == (404, "subscription_not_found")
    assert len(account.get("subscriptions?status=all")["data"]) == 2


def test_checkouts_are_completed_on_their_page(account: Account) -> None:
    """A subscription, then a credit bundle, then SDK 8's onboarding and top-up: each page pays once."""

    def pay(session: dict[str, Any]) -> httpx2.Response:
        url = f"{account.root}/checkout/{session['checkout_session_token']}"
        assert 'method="post"' in account.http.get(url).text
        return account.http.post(url)

    base = {"origin_url": "https://shop.example"}
    bundle = {**base, "checkout_mode": "credit_bundle", "customer_id": "conn_demo", "credit_bundle_id": "bundle_extra"}
    early = account.post("checkout_sessions", bundle)
    assert pay(early).json()["error"]["code"] == "subscription_not_found"
    session = account.post(
        "checkout_sessions",
        {**base, "checkout_mode": "subscription", "customer_id": "conn_demo", "plan_id": "plan_pro"},
    )
    assert (session["customer_id"], session["plan_id"]) == ("conn_demo", "plan_pro")
    assert "completed_at" not in session
    assert pay(session).status_code == 200
    again = account.http.post(f"{account.root}/checkout/{session['checkout_session_token']}")
    assert again.json()["error"]["code"] == "checkout_completed"
    assert pay(account.post("checkout_sessions", bundle)).status_code == 200
    credits = account.get("customers/conn_demo/subscription")["subscription"]["credits"]
    assert credits["total_remaining"] == "30.00"
    old = account.post("checkout_sessions", {**base, "checkout_mode": "onboarding"})
    assert pay(old).status_code == 200
    assert len(account.world.account.connections) == 3
    top_up = account.post("checkout_sessions", {**base, "checkout_mode": "topup", "connection_id": "conn_empty"})
    assert top_up["connection_id"] == "conn_empty"
    assert pay(top_up).status_code == 200
    assert account.bill("conn_empty").status_code == 200
    assert account.http.get(f"{account.root}/checkout/unknown").status_code == 404


def test_the_fallback_chain_is_set_and_cleared(account: Account) -> None:
    """None at first, up to five entries, and null clears it."""
    entry = {"url": "api.anthropic.com/v1/messages", "model": "claude-opus-4-6"}
    assert account.get("account/fallback") == {"chain": None}
    for name in ("chain", "fallbacks"):
        assert account.send("PATCH", "account/fallback", {name: [entry] * 5}).json() == {"chain": [entry] * 5}
    assert account.refused("PATCH", "account/fallback", {"chain": [entry] * 6}) == (400, "invalid_request")
    assert account.get("account/fallback") == {"chain": [entry] * 5}
    assert account.send("PATCH", "account/fallback", {"chain": None}).json() == {"chain": None}


# Requests and usage ---


def test_every_gateway_call_is_a_request_record(account: Account) -> None:
    """Plain, streamed, translated, own key, meter-only, native, failed: each is there under its Lava request id."""
    answers = [
        account.chat(),
        account.bill(stream=True, metadata={"feature": "search"}),
        account.chat(account.token(meter_slug="internal")),
        account.chat(account.token(customer_id="conn_demo", meter_slug="demo-chat", provider_key="mine")),
        account.spend(account.world.keys.spend_keys["openai"], model="claude-opus-4-6"),
        account.bill(fault="provider-401"),
        account.bill("conn_empty"),
    ]
    rewritten = account.http.post(
        "rewrite/openai/api.anthropic.com/v1/messages",
        json={**CHAT, "model": "claude-opus-4-6"},
        headers={"authorization": f"Bearer {account.key}"},
    )
    answers.append(rewritten)
    lines = account.get("requests")["data"][::-1]
    assert [line["request_id"] for line in lines] == [answer.headers["x-lava-request-id"] for answer in answers]
    assert [line["status"] for line in lines] == ["completed"] * 5 + ["error"] * 2 + ["completed"]
    plain, streamed, metered, own, native, failed, poor, crossed = lines
    answer = answers[0].json()
    assert plain["model_usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]
    assert plain["model_usage"]["output_tokens"] == answer["usage"]["completion_tokens"]
    usage = plain["model_usage"]
    assert Decimal(usage["input_cost"]) + Decimal(usage["output_cost"]) == Decimal(plain["cost"]) > 0
    assert (plain["provider"], plain["model"], plain["response_id"]) == ("openai", "gpt-4o-mini", answer["id"])
    assert plain["endpoint"] == "POST https://api.openai.com/v1/chat/completions"
    assert (plain["charge"]["amount"], "customer_id" in plain) == ("0", False)
    assert (streamed["customer_id"], streamed["metadata"]) == ("conn_demo", {"feature": "search"})
    assert streamed["cost"] == plain["cost"] == streamed["charge"]["amount"]
    assert metered["meter_id"] == streamed["meter_id"] or "customer_id" not in metered
    assert (own["provider_key_type"], own["charge"]["amount"]) == ("unmanaged", "0")
    assert (native["provider"], native["endpoint"]) == (
        "anthropic",
        "POST https://api.anthropic.com/v1/chat/completions",
    )
    assert (failed["cost"], poor["cost"], poor["customer_id"]) == ("0", "0", "conn_empty")
    assert crossed["provider"] == "anthropic"
    assert account.get(f"requests/{streamed['request_id']}") == streamed
    assert account.refused("GET", "requests/req_none") == (404, "request_not_found")


def test_requests_are_filtered(account: Account) -> None:
    """By customer under both names, by meter, by all of several metadata pairs; SDK 8's name gives SDK 8's shape."""
    account.bill(metadata={"feature": "x", "user": "y z"})
    account.bill(metadata={"feature": "x"})
    account.chat()
    filters = quote(json.dumps([["feature", "x"], ["user", "y z"]]))
    assert len(account.get(f"requests?metadata_filters={filters}")["data"]) == 1
    assert len(account.get("requests?customer_id=conn_demo")["data"]) == 2
    old = account.get("requests?connection_id=conn_demo")["data"]
    assert len(old) == 2
    assert old[0]["connection_id"] == "conn_demo"
    assert {"fee", "service_charge", "total_request_cost", "total_wallet_cost", "total_merchant_cost"} <= set(old[0])
    assert not {"cost", "charge", "customer_id"} & set(old[0])
    assert old[0]["total_request_cost"] == old[0]["total_wallet_cost"] == old[0]["model_usage"]["total_cost"]
    assert Decimal(old[0]["total_merchant_cost"]) == Decimal(old[0]["fee"]["amount"]) == 0
    meter = account.world.account.meters["demo-chat"].meter_id
    assert len(account.get(f"requests?meter_id={meter}")["data"]) == 2
    assert account.get("requests?meter_id=none")["data"] == []


def test_use_beside_the_gateway_is_reported(account: Account) -> None:
    """A reported request is charged by its meter and shown; an unknown meter or customer and a known id are refused."""
    meter = {"name": "Calls", "rate_type": "fixed", "tier_type": "minutes", "tiers": [{"start": "0", "rate": "0.60"}]}
    account.post("meters", meter)
    body = {
        "request_id": "mine-1",
        "customer_id": "conn_demo",
        "meter_slug": "calls",
        "input_seconds": 30.5,
        "metadata": {"a": "b"},
    }
    made = account.post("requests", body)
    assert (made["status"], made["charge"]["amount"], made["metadata"]) == ("completed", "0.305", {"a": "b"})
    assert made["model_usage"]["total_seconds"] == 30.5
    assert account.world.account.connections["conn_demo"].balance == Decimal("4.695")
    assert account.get("requests/mine-1") == made
    assert account.refused("POST", "requests", body) == (409, "request_already_exists")
    assert account.refused("POST", "requests", {**body, "request_id": "2", "meter_slug": "no"}) == (
        404,
        "meter_not_found",
    )
    assert account.refused("POST", "requests", {**body, "request_id": "2", "customer_id": "no"}) == (
        404,
        "customer_not_found",
    )
    poor = {**body, "request_id": "3", "customer_id": "conn_empty"}
    assert account.refused("POST", "requests", poor) == (402, "insufficient_balance")
    assert account.refused("GET", "requests/3") == (404, "request_not_found")


def test_usage_is_grouped_by_the_days_of_the_start(account: Account, clock: Clock) -> None:
    """Two requests an hour apart are one day or two, as the offset of ``start`` says; sums equal the requests'."""
    clock.now = datetime(2026, 3, 10, 22, 30, tzinfo=UTC).timestamp()
    account.bill()
    clock.now += 3600
    account.bill()
    clock.now += 86400 * 3
    account.chat()
    account.bill("conn_empty")

    def days(start: str, rest: str = "") -> list[tuple[str, int]]:
        report = account.get(f"usage?start={quote(start)}{rest}")
        assert report["totals"]["total_requests"] == sum(one["total_requests"] for one in report["items"])
        return [(one["date"], one["total_requests"]) for one in report["items"]]

    assert days("2026-03-01T00:00:00Z") == [("2026-03-10", 2), ("2026-03-13", 1)]
    assert days("2026-03-01T00:00:00+01:00") == [("2026-03-10", 1), ("2026-03-11", 1), ("2026-03-14", 1)]
    assert days("2026-03-10T23:00:00Z") == [("2026-03-10", 1), ("2026-03-13", 1)]
    assert days("2026-03-01T00:00:00Z", "&end=2026-03-10T23:00:00Z") == [("2026-03-10", 1)]
    assert days("2026-03-01T00:00:00Z", "&customer_id=conn_demo") == [("2026-03-10", 2)]
    report = account.get("usage?start=2026-03-01T00:00:00Z")
    lines = [one for one in account.get("requests")["data"] if one["status"] == "completed"]
    assert Decimal(report["totals"]["total_cost"]) == sum(Decimal(one["cost"]) for one in lines)
    assert Decimal(report["totals"]["total_charge"]) == sum(Decimal(one["charge"]["amount"]) for one in lines)
    assert report["totals"]["total_usage_tokens"] == sum(one["model_usage"]["total_tokens"] for one in lines)
    assert report["items"][0]["start"] == "2026-03-10T00:00:00.000+00:00"
    old = account.get("usage?start=2026-03-01T00:00:00Z&connection_id=conn_demo")
    assert {"total_usage_cost", "total_wallet_cost", "total_net_volume"} <= set(old["totals"])


# Keys ---


def test_secret_keys_are_told_once_and_really_work(account: Account) -> None:
    """The new key opens gateway and account, the list has only a hint of it, and a deleted key opens nothing."""
    made = account.post("secret_keys", {"name": "ci"})
    key = made["secret_key"]
    assert account.get("wallet", key=key)["balance"] == "20.00"
    assert account.chat(key).status_code == 200
    listed = account.get("secret_keys")
    assert key not in json.dumps(listed)
    newest = listed["data"][0]
    assert newest["secret_key_hint"].endswith(key[-4:])
    assert set(newest) == {"secret_key_id", "name", "secret_key_hint", "created_at"}
    assert account.send("DELETE", f"secret_keys/{made['secret_key_id']}").json() == {
        "id": made["secret_key_id"],
        "deleted": True,
    }
    assert account.refused("GET", "wallet", key=key) == (401, "invalid_secret_key")
    assert account.chat(key).status_code == 401
    assert key in set(account.world.key_values())
    assert account.send("DELETE", "secret_keys/key_default").status_code == 200
    assert account.refused("GET", "wallet") == (401, "invalid_secret_key")


def spend_key(account: Account, **fields: Any) -> tuple[str, str]:
    """A new spend key: its path and its value."""
    made = account.post("spend_keys", {"name": "k", **fields})
    return f"spend_keys/{made['spend_key_id']}", made["key"]


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_spend_keys_are_told_once_rotated_and_revoked(account: Account) -> None:
    """Create and rotate tell the key, nothing else does; the old value dies with the rotation, the new with the revocation."""
    path, key = spend_key(account, request_shape="anthropic")
    assert account.spend(key, "messages").status_code == 200
    shown = account.get(path)
    assert "key" not in shown
    assert shown["key_preview"].endswith(key[-4:])
    assert (shown["current_requests"], shown["total_requests"]) == (1, 1)
    assert Decimal(shown["current_spend"]) == Decimal(shown["total_spend"]) > 0
    assert shown["last_used_at"] is not None
    rotated = account.post(f"{path}/rotate", None)
    assert code_of(account.spend(key, "messages")) == (401, "invalid_spend_key")
    assert account.spend(rotated["key"], "messages").status_code == 200
    assert account.get(path)["total_requests"] == 2
    assert rotated["key"] not in account.send("GET", "spend_keys").text
    assert account.send("DELETE", path).json() == {"success": True}
    assert code_of(account.spend(rotated["key"], "messages")) == (401, "invalid_spend_key")
    assert account.refused("GET", path) == (404, "spend_key_not_found")
    assert account.refused("POST", f"{path}/rotate") == (404, "spend_key_not_found")


def test_spend_keys_are_paused_and_expire(account: Account, clock: Clock) -> None:
    """A paused key is refused and works again when active; an expired one is refused for good."""
    path, key = spend_key(account)
    account.send("PUT", path, {"status": "paused"})
    assert code_of(account.spend(key)) == (403, "spend_key_paused")
    account.send("PUT", path, {"status": "active", "expires_at": "2026-03-10T12:01:00Z"})
    assert account.spend(key).status_code == 200
    clock.now += 60
    assert code_of(account.spend(key)) == (401, "spend_key_expired")
    assert account.send("PUT", path, {"expires_at": None}).json()["expires_at"] is None
    assert account.spend(key).status_code == 200


def test_spend_keys_keep_to_their_models_and_providers(account: Account) -> None:
    """Allowed names count with and without the provider, and narrow the model list."""
    path, key = spend_key(account, allowed_models=["gpt-5", "anthropic/claude-opus-4-6"], allowed_providers=None)
    assert account.spend(key, model="gpt-5").status_code == 200
    assert account.spend(key, model="openai/gpt-5").status_code == 200
    assert account.spend(key, model="claude-opus-4-6").status_code == 200
    assert code_of(account.spend(key, model="gpt-4o-mini")) == (403, "model_not_allowed")
    listed = account.get("models", key=key)["data"]
    assert {one["id"] for one in listed} == {"gpt-5", "claude-opus-4-6"}
    changed = account.send("PUT", path, {"allowed_models": None, "allowed_providers": ["openai"]}).json()
    assert (changed["allowed_models"], changed["allowed_providers"]) == (None, ["openai"])
    assert code_of(account.spend(key, model="claude-opus-4-6")) == (403, "provider_not_allowed")
    assert account.spend(key, model="gpt-4o-mini").status_code == 200
    account.send("PUT", path, {"request_shape": "anthropic"})
    assert code_of(account.spend(key, model="gpt-4o-mini")) == (403, "request_shape_not_allowed")


def test_spend_keys_keep_to_their_limits(account: Account, clock: Clock) -> None:
    """Money and requests per cycle and requests per minute: reached, refused, and open again in the next cycle."""
    path, key = spend_key(account, spend_limit={"amount": "0.00005", "cycle": "daily"})
    assert account.spend(key).status_code == 200
    assert code_of(account.spend(key)) == (402, "spend_limit_exceeded")
    clock.now += 86400
    assert account.get(path)["current_spend"] == "0"
    assert account.spend(key).status_code == 200
    assert Decimal(account.get(path)["total_spend"]) == 2 * Decimal(account.get(path)["current_spend"])
    _, key = spend_key(account, request_limit={"count": 2, "cycle": "monthly"})
    assert [account.spend(key).status_code for _ in range(3)] == [200, 200, 403]
    clock.now += 31 * 86400
    assert account.spend(key).status_code == 200
    path, key = spend_key(account, rate_limit={"rpm": 6, "burst": 2})
    assert account.get(path)["rate_limit"] == {"rpm": 6, "burst": 2}
    assert [account.spend(key).status_code for _ in range(2)] == [200, 200]
    answer = account.spend(key)
    assert (code_of(answer), answer.headers["retry-after"]) == ((429, "rate_limit_exceeded"), "10")
    clock.now += 10
    assert [account.spend(key).status_code for _ in range(2)] == [200, 429]


def test_wallet_keys_are_listed_rotated_and_revoked(account: Account) -> None:
    """A wallet key manages itself, as in SDK 9 and 10; its value is told by the rotation only."""
    key = account.world.keys.wallet_key_records[0].key
    listed = account.get("wallet_keys", key=key)["data"]
    assert set(listed[0]) == {"wallet_key_id", "key_preview", "name", "wallet_id", "last_used_at", "created_at"}
    assert listed[0]["last_used_at"] is not None
    path = f"wallet_keys/{listed[0]['wallet_key_id']}"
    rotated = account.post(f"{path}/rotate", None, key=key)["key"]
    assert account.refused("GET", "wallet_keys", key=key)[0] == 401
    assert account.send("DELETE", path, key=rotated).json() == {"success": True}
    assert account.refused("GET", "spend_keys", key=rotated)[0] == 401


# Webhooks ---


class Mailbox:
    """A webhook receiver on a free port: keeps what came, answers with ``status``, or never with ``None``."""

    def __init__(self, status: int | None = 200) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/hook?x=1"
        self.status = status
        self.letters: list[tuple[str, dict[str, str], bytes]] = []
        self.held: list[socket.socket] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.held.append(connection)
            with connection.makefile("rb") as stream:
                line = stream.readline().decode().strip()
                headers = {}
                while pair := stream.readline().strip():
                    name, _, value = pair.decode().partition(": ")
                    headers[name.lower()] = value
                body = stream.read(int(headers["content-length"]))
            self.letters.append((line, headers, body))
            if self.status is not None:
                connection.sendall(f"HTTP/1.1 {self.status} Fine\r\ncontent-length: 0\r\n\r\n".encode())
                connection.close()

    def close(self) -> None:
        # Closing alone does not wake the thread in accept.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)
        for connection in self.held:
            connection.close()


@contextmanager
def mailbox(status: int | None = 200) -> Iterator[Mailbox]:
    box = Mailbox(status)
    try:
        yield box
    finally:
        box.close()


def hook(account: Account, url: str) -> dict[str, Any]:
    made: dict[str, Any] = account.post("webhooks", {"name": "w", "url": url})
    return made


def delivered(account: Account, count: int) -> None:
    """Wait until this many deliveries are over."""
    assert account.world.until(lambda: sum(one.over for one in account.world.history.deliveries) >= count), (
        account.world.history.deliveries
    )


def test_webhooks_are_managed_and_their_secret_is_told_once(account: Account) -> None:
    """Only the creation tells the secret; name and address can be changed; a deleted one hears nothing."""
    made = hook(account, "http://127.0.0.1:1/")
    path = f"webhooks/{made['webhook_id']}"
    assert made.pop("webhook_secret")
    assert account.get(path) == made
    changed = account.send("PATCH", path, {"name": "new", "url": "https://shop.example/hook"}).json()
    assert changed == {**made, "name": "new", "url": "https://shop.example/hook"}
    assert account.refused("PATCH", path, {"url": "nowhere"})[0] == 400
    assert account.send("DELETE", path).json() == {"id": made["webhook_id"], "deleted": True}
    account.post("customers", {})
    assert account.world.history.deliveries == []


def test_events_are_delivered_signed_and_in_order(account: Account) -> None:
    """A customer made, charged and deleted: three events to each webhook, each signed over its raw body."""
    with mailbox() as first, mailbox(500) as second:
        secrets = {box.url: hook(account, box.url)["webhook_secret"] for box in (first, second)}
        name = account.post("customers", {"email": "h@example.com"})["customer_id"]
        account.world.account.connections[name].balance = Decimal(1)
        assert account.bill(name).status_code == 200
        account.send("DELETE", f"customers/{name}")
        delivered(account, 6)
        for box in (first, second):
            for line, headers, body in box.letters:
                assert line == "POST /hook?x=1 HTTP/1.1"
                wanted = hmac.new(secrets[box.url].encode(), body, hashlib.sha256).hexdigest()
                assert headers["x-webhook-signature"] == wanted
                assert headers["content-type"] == "application/json"
            events = [json.loads(body) for _, _, body in box.letters]
            assert [one["event"] for one in events] == [
                "customer.created",
                "customer.wallet.balance.updated",
                "customer.deleted",
            ]
            assert {one["data"]["customer"]["customer_id"] for one in events} == {name}
    assert sorted(one.status or 0 for one in account.world.history.deliveries) == [200] * 3 + [500] * 3


@pytest.mark.parametrize("scheme", ["2025", "flex"])
def test_the_older_signatures(account: Account, clock: Clock, scheme: Any) -> None:
    """The two earlier eras sign in x-lava-signature: the body, or the time and the body."""
    account.world.behaviour.webhook_scheme = scheme
    with mailbox() as box:
        secret = hook(account, box.url)["webhook_secret"].encode()
        account.post("customers", {})
        delivered(account, 1)
        _, headers, body = box.letters[0]
    stamp = str(int(clock.now))
    signed = body if scheme == "2025" else stamp.encode() + b"." + body
    wanted = hmac.new(secret, signed, hashlib.sha256).hexdigest()
    assert headers["x-lava-signature"] == (wanted if scheme == "2025" else f"t={stamp},v1={wanted}")
    assert "x-webhook-signature" not in headers


def test_a_receiver_that_never_answers_holds_up_nothing(account: Account) -> None:
    """Gateway calls go on while a delivery waits, and the emulator ends at once with one under way."""
    with mailbox(None) as box:
        hook(account, box.url)
        assert account.bill().status_code == 200
        assert account.bill().status_code == 200
        assert account.world.until(lambda: box.letters)
        assert not account.world.history.deliveries[0].over
        account.emulator.close()
    assert [one.error for one in account.world.history.deliveries] == ["the emulator ended"] * 2


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://192.0.2.1/hook", "no other machine"),
        ("http://shop.example/hook", "no other machine"),
        ("https://127.0.0.1/hook", "http only"),
        ("http://127.0.0.1:{closed}/", "refused|Connect"),
    ],
)
def test_only_this_machine_is_called(account: Account, free_port: int, url: str, why: str) -> None:
    """Another machine's address is never called; that, and a closed port, are told in the record of the delivery."""
    hook(account, url.format(closed=free_port))
    account.post("customers", {})
    delivered(account, 1)
    assert re.search(why, account.world.history.deliveries[0].error or "")


# Login ---


def allow(account: Account, page: str, state: str = "s" * 32, port: int = 4321) -> str:
    """Press "Allow"; the code that goes back to the program."""
    asked = account.http.get(f"{account.root}{page}?state={quote(state)}&port={port}")
    assert asked.status_code == 200
    assert asked.headers["content-type"].startswith("text/html")
    assert ">Allow</button>" in asked.text
    answer = account.http.post(f"{account.root}{page}", data={"state": state, "port": str(port)})
    assert answer.status_code == 303
    back = urlsplit(answer.headers["location"])
    assert (back.scheme, back.netloc, back.path) == ("http", f"127.0.0.1:{port}", "/callback")
    given = parse_qs(back.query, strict_parsing=True)
    assert given["state"] == [state]
    return given["code"][0]


def exchange(account: Account, code: str) -> httpx2.Response:
    return account.http.post("auth/callback", json={"code": code})


NEW = {"wallet_id", "secret_key_id", "secret_key", "merchant_id"}
WITH_WALLET_KEY = NEW | {"wallet_key_id", "wallet_key"}


@pytest.mark.parametrize(
    ("page", "generation", "members"),
    [
        ("/auth/connect", None, NEW | {"account_id"}),
        ("/auth/cli", None, WITH_WALLET_KEY),
        ("/auth/cli", 9, WITH_WALLET_KEY),
        ("/auth/cli", 10, WITH_WALLET_KEY),
        ("/auth/cli", 11, NEW),
        ("/auth/connect", 11, NEW | {"account_id"}),
    ],
)
def test_the_login_flow_gives_working_keys(account: Account, page: str, generation: Any, members: set[str]) -> None:
    """Page, click, code, credentials: those of the SDK that opens this page, and the keys in them work."""
    account.world.behaviour.generation = generation
    found = exchange(account, allow(account, page, state="a&b=<c>")).json()
    assert set(found) == members
    assert account.get("wallet", key=found["secret_key"])["wallet_id"] == found["wallet_id"]
    assert account.get("secret_keys")["data"][0]["secret_key_id"] == found["secret_key_id"]
    if "wallet_key" in found:
        assert account.get("wallet_keys", key=found["wallet_key"])["data"][0]["wallet_key_id"] == found["wallet_key_id"]


def test_the_login_page_can_be_refused(account: Account) -> None:
    """ "Deny" goes back to the program as OAuth tells it, and there is no code."""
    shown = account.http.get(f"{account.root}/auth/connect?state=abc&port=4321").text
    assert '<button type="submit" name="refuse">Deny</button>' in shown
    answer = account.http.post(f"{account.root}/auth/connect", data={"state": "abc", "port": "4321", "refuse": ""})
    assert answer.status_code == 303
    assert answer.headers["location"] == "http://127.0.0.1:4321/callback?error=access_denied&state=abc"
    assert account.world.pending.login_codes == {}


def test_a_code_works_once_and_for_a_minute(account: Account, clock: Clock) -> None:
    """A used, an expired, an unknown and a missing code are refused in the envelope that the SDK reads."""
    code = allow(account, "/auth/connect")
    clock.now += 59.9
    assert exchange(account, code).status_code == 200
    assert code_of(exchange(account, code)) == (400, "invalid_code")
    code = allow(account, "/auth/connect")
    clock.now += 60
    assert code_of(exchange(account, code)) == (400, "expired_code")
    assert code_of(exchange(account, "x")) == (400, "invalid_code")
    assert code_of(account.http.post("auth/callback", content=b"{")) == (400, "invalid_request")
    assert account.http.get("auth/callback").status_code == 405


@pytest.mark.parametrize(
    "query", ["", "state=s", "port=80", "state=&port=80", "state=s&port=0", "state=s&port=65536", "state=s&port=x@evil"]
)
def test_a_broken_login_link_says_so(account: Account, query: str) -> None:
    """Without a state and a possible port there is a page with status 400 and no button, and no code."""
    for method in ("GET", "POST"):
        answer = account.http.request(
            method,
            f"{account.root}/auth/connect" + (f"?{query}" if method == "GET" else ""),
            content=query.encode() if method == "POST" else None,
        )
        assert answer.status_code == 400
        assert "<button" not in answer.text
    assert account.world.pending.login_codes == {}


def test_the_login_page_escapes_what_it_shows(account: Account) -> None:
    """A state with markup in it stays text."""
    text = account.http.get(f"{account.root}/auth/cli?port=80&state=" + quote('"><script>alert(1)</script>')).text
    assert "<script" not in text


# The Node SDK ---

WALK = """
import { Lava } from '@lavapayments/nodejs';
const lava = new Lava(process.env.KEY, { baseUrl: process.env.BASE });
const out = {};
const failed = async (promise) => { try { await promise; return null; } catch (error) { return error.message; } };
const done = async (name, promise) => (out[name] = await promise);

const customer = await done('customers.create', lava.customers.create({ name: 'Ada L', email: 'a@example.com', metadata: { a: 1 } }));
const id = customer.customer_id;
await done('customers.list', lava.customers.list({ limit: 2 }));
await done('customers.next', lava.customers.list({ limit: 2, cursor: out['customers.list'].next_cursor }));
await done('customers.retrieve', lava.customers.retrieve(id));
await done('customers.update', lava.customers.update(id, { name: 'Ada Lovelace', phone: '+1' }));
await done('customers.getSubscription', lava.customers.getSubscription(id));

const meter = await done('meters.create', lava.meters.create({ name: 'Node', rate_type: 'fixed', tier_type: 'tokens_1m', tiers: [{ start: '0', rate: '2.50' }] }));
await done('meters.list', lava.meters.list({ limit: 1 }));
await done('meters.retrieve', lava.meters.retrieve(meter.meter_id));
await done('meters.update', lava.meters.update(meter.meter_id, { name: 'Node 2' }));

const plan = await done('subscriptions.createPlan', lava.subscriptions.createPlan({ name: 'Gift', period_amount: '0', billing_interval: 'week', included_credit: '3', meter_ids: [meter.meter_id], credit_bundles: [{ name: 'b', cost: '1', credit_amount: '2' }], default_auto_top_up_bundle_index: 0 }));
await done('subscriptions.listPlans', lava.subscriptions.listPlans());
await done('subscriptions.retrievePlan', lava.subscriptions.retrievePlan(plan.plan_id));
await done('subscriptions.updatePlan', lava.subscriptions.updatePlan(plan.plan_id, { included_credit: '4' }));
await done('subscriptions.create', lava.subscriptions.create({ customer_id: id, plan_id: plan.plan_id }));
await done('subscriptions.list', lava.subscriptions.list({ status: 'active', customer_id: id }));
const subscription = out['subscriptions.create'].subscription.subscription_id;
await done('subscriptions.update', lava.subscriptions.update(subscription, { auto_top_up_bundle_id: null }));
await done('creditBundles.list', lava.creditBundles.list({ plan_id: plan.plan_id }));
await done('creditBundles.retrieve', lava.creditBundles.retrieve(plan.credit_bundles[0].credit_bundle_id));

const body = { model: 'gpt-4o-mini', messages: [{ role: 'user', content: 'hello there' }] };
const chat = 'https://api.openai.com/v1/chat/completions';
await done('gateway.plain', lava.gateway(chat, { body }));
await done('gateway.customer', lava.gateway(chat, { body, customer_id: id, meter_slug: meter.meter_slug, headers: { 'x-lava-metadata': '{"k":"v w"}' } }));
await done('gateway.metered', lava.gateway(chat, { body, meter_slug: meter.meter_slug }));
await done('gateway.own', lava.gateway(chat, { body, provider_key: 'mine' }));
await done('gateway.format', lava.gateway('https://api.anthropic.com/v1/messages', { body: { ...body, model: 'claude-opus-4-6' }, format: 'openai' }));
await done('requests.create', lava.requests.create({ request_id: 'mine', customer_id: id, meter_slug: meter.meter_slug, input_tokens: 100000 }));
await done('requests.list', lava.requests.list({ customer_id: id, meter_id: meter.meter_id, metadata_filters: { k: 'v w' } }));
await done('requests.retrieve', lava.requests.retrieve('mine'));
await done('requests.all', lava.requests.list());
await done('usage.retrieve', lava.usage.retrieve({ start: '2020-01-01T00:00:00Z', customer_id: id }));
await done('customers.credits', lava.customers.getSubscription(id));

await done('checkoutSessions.create', lava.checkoutSessions.create({ checkout_mode: 'subscription', origin_url: 'https://shop.example', plan_id: 'plan_pro' }));

const webhook = await done('webhooks.create', lava.webhooks.create({ name: 'w', url: 'http://127.0.0.1:9/hook' }));
await done('webhooks.list', lava.webhooks.list());
await done('webhooks.retrieve', lava.webhooks.retrieve(webhook.webhook_id));
await done('webhooks.update', lava.webhooks.update(webhook.webhook_id, { name: 'v' }));
await done('webhooks.delete', lava.webhooks.delete(webhook.webhook_id));

const secret = await done('secretKeys.create', lava.secretKeys.create({ name: 's' }));
await done('secretKeys.list', lava.secretKeys.list());
const second = new Lava(secret.secret_key, { baseUrl: process.env.BASE });
await done('secretKeys.works', second.meters.list());
await done('secretKeys.delete', lava.secretKeys.delete(secret.secret_key_id));
out['secretKeys.dead'] = await failed(second.meters.list());

const spend = await done('spendKeys.create', lava.spendKeys.create({ name: 'k', allowed_models: ['gpt-5'], spend_limit: { amount: '1', cycle: 'daily' }, rate_limit: { rpm: 60 } }));
await done('spendKeys.list', lava.spendKeys.list({ limit: 1 }));
await done('spendKeys.retrieve', lava.spendKeys.retrieve(spend.spend_key_id));
await done('spendKeys.update', lava.spendKeys.update(spend.spend_key_id, { status: 'paused' }));
await done('spendKeys.rotate', lava.spendKeys.rotate(spend.spend_key_id));
await done('models.list', new Lava(out['spendKeys.rotate'].key, { baseUrl: process.env.BASE }).models.list());
await done('spendKeys.revoke', lava.spendKeys.revoke(spend.spend_key_id));

await done('subscriptions.cancel', lava.subscriptions.cancel(subscription));
await done('subscriptions.deletePlan', lava.subscriptions.deletePlan(plan.plan_id));
await done('meters.delete', lava.meters.delete(meter.meter_id));
await done('customers.delete', lava.customers.delete(id));
out['customers.gone'] = await failed(lava.customers.retrieve(id));
console.log(JSON.stringify(out));
"""


@pytest.mark.node
def test_the_whole_surface_of_the_node_sdk_runs(emulator: Emulator, node_sdk: NodeSDK) -> None:
    """Every method of @lavapayments/nodejs 11.2.0 works against the emulator, and what it returns hangs together."""
    done = node_sdk.run(WALK, KEY=emulator.world.secret_key, BASE=emulator.base_url)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    methods = {name for name in CALLS["11.2.0"] if "." in name}
    assert methods <= set(out), sorted(methods - set(out))
    customer = out["customers.create"]["customer_id"]
    assert len(out["customers.list"]["data"]) == 2
    assert out["customers.list"]["has_more"] is True
    assert [one["customer_id"] for one in out["customers.next"]["data"]] == ["conn_demo"]
    assert out["customers.update"]["contact"]["last_name"] == "Lovelace"
    assert out["customers.getSubscription"] == {"subscription": None}
    assert out["meters.update"]["name"] == "Node 2"
    assert out["subscriptions.updatePlan"]["included_credit"] == "4"
    assert out["subscriptions.list"]["data"][0]["customer_id"] == customer
    assert [one["plan_id"] for one in out["creditBundles.list"]["data"]] == [out["subscriptions.createPlan"]["plan_id"]]
    assert {one["provider"] for one in out["requests.all"]["data"]} == {"openai", "anthropic", "custom"}
    assert len(out["requests.all"]["data"]) == 6
    assert [one["metadata"] for one in out["requests.list"]["data"]] == [{"k": "v w"}]
    assert out["requests.create"]["charge"]["amount"] == "0.25"
    assert out["requests.retrieve"] == out["requests.create"]
    usage = out["gateway.customer"]["usage"]["total_tokens"]
    assert out["usage.retrieve"]["totals"]["total_requests"] == 2
    assert out["usage.retrieve"]["totals"]["total_usage_tokens"] == 100_000 + usage
    charge = Decimal(out["usage.retrieve"]["totals"]["total_charge"])
    assert Decimal(out["customers.credits"]["subscription"]["credits"]["total_remaining"]) == 4 - charge
    assert out["gateway.format"]["choices"][0]["message"]["content"] == "You said: hello there"
    assert "webhook_secret" in out["webhooks.create"]
    assert "webhook_secret" not in out["webhooks.retrieve"]
    assert "invalid_secret_key" in out["secretKeys.dead"]
    assert out["spendKeys.update"]["status"] == "paused"
    assert [one["id"] for one in out["models.list"]["data"]] == ["gpt-5"]
    assert out["customers.delete"] == {"success": True}
    assert "customer_not_found" in out["customers.gone"]


BROWSER = """
import sys, urllib.parse, urllib.request
from html.parser import HTMLParser

class Form(HTMLParser):
    fields, action = {}, None
    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "form":
            self.action = found["action"]
        if tag == "input":
            self.fields[found["name"]] = found["value"]

url = sys.argv[1]
form = Form()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
form.feed(opener.open(url, timeout=20).read().decode())
body = urllib.parse.urlencode(form.fields).encode()
# Follows the redirect to the waiting program, as a browser does.
opener.open(urllib.parse.urljoin(url, form.action), body, timeout=20).read()
"""

LOGIN = """
import { Lava } from '@lavapayments/nodejs';
const found = await Lava.login({ baseUrl: process.env.APP });
const meters = await new Lava(found.secret_key, { baseUrl: process.env.BASE }).meters.list();
let again = '';
try { await Lava.exchangeAuthCode({ code: 'used', baseUrl: process.env.BASE }); } catch (error) { again = error.message; }
console.log(JSON.stringify({ found, meters: meters.data.length, again }));
"""


@pytest.mark.node
def test_the_node_sdk_logs_in(emulator: Emulator, node_sdk: NodeSDK, tmp_path: Path) -> None:
    """``Lava.login`` goes through the pages with a stand-in for the browser and comes back with working keys."""
    (tmp_path / "browser.py").write_text(BROWSER)
    for name in ("xdg-open", "open"):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "browser.py"}" "$1"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    app = f"http://127.0.0.1:{emulator.port}"
    done = node_sdk.run(LOGIN, PATH=path, APP=app, BASE=emulator.base_url)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert set(out["found"]) == NEW | {"account_id"}
    assert out["meters"] == 3
    assert "unknown or was used" in out["again"]


def test_worlds_share_nothing(account: Account) -> None:
    """Two emulators in one process have keys and records of their own."""
    made: Callable[[], World] = World.demo
    with Emulator(made()) as other:
        second = Account(other)
        with second.http:
            account.post("customers", {})
            assert len(second.get("customers")["data"]) == 2
            assert second.refused("GET", "wallet", key=account.key) == (401, "invalid_secret_key")
