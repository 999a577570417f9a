"""The account client says on the wire what Lava's own SDK says, in every version of it that was recorded."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lava_methods
import pytest
from lava_answers import ANYTHING, KEY, client, json_answer
from upstream import Received, Upstream

import proxy.lava
from proxy.lava import Lava, MissingKey, UnknownName, records
from proxy.lava.resources import ACTIONS, GUIDE, Action, Version, names, parameters, resolve, resources, rows
from proxy.protocol.redaction import Secret

VECTORS = Path(__file__).parent / "vectors"
CALLS: dict[str, dict[str, dict[str, Any]]] = json.loads((VECTORS / "rest_calls.json").read_text(encoding="utf-8"))
TOKENS: list[dict[str, Any]] = json.loads((VECTORS / "forward_tokens.json").read_text(encoding="utf-8"))
PROVIDERS: dict[str, dict[str, str]] = json.loads((VECTORS / "provider_urls.json").read_text(encoding="utf-8"))


def version_of(text: str) -> Version:
    """``11.2.0`` → (11, 2)."""
    major, minor, _ = text.split(".")
    return int(major), int(minor)


def alive(sdk: str) -> dict[str, Action]:
    """The table as this version of the SDK has it: its own name → row."""
    return {row.sdk: row for row in ACTIONS if row.sdk is not None and row.alive(version_of(sdk))}


def arguments(row: Action, args: list[Any]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Ids, known fields and the rest of a recorded call's arguments. The SDK ignores what is no parameter of a query."""
    ids = [each for each in args if isinstance(each, str)]
    given = next((each for each in args if isinstance(each, dict)), {})
    known = {param.name for param in row.params}
    extra = {} if row.body is None else {name: value for name, value in given.items() if name not in known}
    return ids, {name: value for name, value in given.items() if name in known}, extra


async def replay(lava: Lava, row: Action | None, name: str, recorded: dict[str, Any]) -> None:
    """Make one recorded call."""
    args = recorded["args"]
    if name.startswith("gateway "):
        await lava.gateway(args[0], **args[1])
    elif name == "exchangeAuthCode":
        await Lava.exchange_code(args[0]["code"], base_url=lava.base_url)
    else:
        assert row is not None, f"the table has no {name}"
        ids, fields, extra = arguments(row, args)
        await lava.call(row, *ids, fields=fields, extra_body=extra)


@pytest.mark.parametrize(("sdk", "name"), [(sdk, name) for sdk, calls in CALLS.items() for name in calls])
def test_every_recorded_call_of_the_sdk(sdk: str, name: str) -> None:
    """Method, path, query, body, authorization and content type are equal byte for byte. (The SDK sends no
    ``Idempotency-Key``; that we do is another test's.)"""
    recorded = CALLS[sdk][name]

    async def run() -> None:
        async with client(upstream, "aks_live_x") as lava:
            await replay(lava, alive(sdk).get(name), name, recorded)

    with Upstream(json_answer(ANYTHING)) as upstream:
        asyncio.run(run())
    (got,) = upstream.requests
    assert got.method.decode() == recorded["method"]
    assert got.target.decode() == recorded["path"] + recorded["raw_query"]
    assert (got.header(b"authorization") or b"").decode() == recorded.get("authorization", "")
    assert (got.header(b"content-type") or b"").decode() == recorded["content_type"]
    body = recorded["body"]
    assert got.body == (b"" if body is None else json.dumps(body, separators=(",", ":")).encode())


@pytest.mark.parametrize("sdk", CALLS)
def test_the_table_has_the_sdks_surface_and_no_more(sdk: str) -> None:
    """In each recorded version exactly the recorded methods are alive."""
    assert set(alive(sdk)) == {name for name in CALLS[sdk] if not name.startswith("gateway ")}


def test_the_recording_is_whole() -> None:
    """Four versions, every method of each."""
    assert {sdk: len(calls) for sdk, calls in CALLS.items()} == {"8.1.0": 17, "9.0.0": 43, "10.1.0": 43, "11.2.0": 46}


def test_what_no_recording_has() -> None:
    """The rest of the table: the wallet, the fallbacks, and what the SDK's guide says between 8.1 and 9.0."""
    unrecorded = {row.key for row in ACTIONS if not any(row.alive(version_of(sdk)) for sdk in CALLS)}
    assert unrecorded == {
        "wallet.retrieve",
        "fallback.retrieve",
        "fallback.update",
        "subscription_configs.create",
        "subscription_configs.update",
        "subscription_configs.delete",
    }
    assert {row.method for row in ACTIONS if row.alive(GUIDE) and row.resource == "subscription_configs"} == {
        "GET",
        "POST",
        "PATCH",
        "DELETE",
    }


def test_the_table_is_sound() -> None:
    """Destructive is what cannot be undone, secrets are fields of type Secret, and every record exists."""
    for row in ACTIONS:
        kind = getattr(records, row.record)
        assert row.destructive == (row.method == "DELETE" or row.name == "rotate"), row.key
        assert (row.body is not None) <= (row.method in ("POST", "PUT", "PATCH")), row.key
        assert not (row.query and row.body), row.key
        for name in row.reveals:
            assert "Secret" in str(kind.model_fields[name].annotation), row.key
        secret = {name for name, field in kind.model_fields.items() if "Secret" in str(field.annotation)}
        assert secret - {"connection_secret"} == set(row.reveals), row.key
        assert row.doc
        assert all(param.doc for param in row.params)
        assert row.paged == (row.name == "list")
    assert {row.key for row in ACTIONS if row.once} == {
        "webhooks.create",
        "secret_keys.create",
        "spend_keys.create",
        "spend_keys.rotate",
        "wallet_keys.rotate",
        "auth.exchange_code",
    }
    assert resources()[0] == "checkout_sessions"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("meter.list",), "did you mean 'meters'?"),
        (("meters.lst",), "did you mean 'list'?"),
        (("meters.create", "nme"), "did you mean 'name'?"),
        (("zzzzz.list",), "known are: auth, checkout_sessions"),
    ],
)
def test_the_nearest_name_is_told(given: tuple[str, ...], said: str) -> None:
    """An unknown resource, action or field."""
    with pytest.raises(UnknownName) as caught:
        resolve(given[0], given[1:])
    assert said in str(caught.value)


def test_the_generation_follows_from_the_names() -> None:
    """connection_id means the rows of SDK 8, customer_id those of SDK 9; both together are refused."""
    assert resolve("subscriptions.list").query[0].name == "cursor"
    assert resolve("subscriptions.list", ["connection_id"]).query[0].name == "status"
    assert resolve("requests.list", ["customer_id"]).since == (9, 0)
    with pytest.raises(ValueError, match="do not go together"):
        resolve("requests.list", ["customer_id", "connection_id"])
    assert [row.key for row in rows("subscriptions.createPlan")] == ["plans.create"]
    assert {param.name: param.required for param in parameters("requests.create")}["customer_id"] is False


def test_the_typed_methods_are_the_tables() -> None:
    """Both files are what the generator writes from the table (else run tests/lava_methods.py)."""
    for name, write in lava_methods.FILES.items():
        assert (lava_methods.FOLDER / name).read_text(encoding="utf-8") == write(), name


SAMPLES = {
    "text": "t",
    "whole number": 3,
    "money": "1.50",
    "time": "2026-01-01T00:00:00Z",
    "flag": True,
    "list of texts": ["a"],
    "table of texts": {"a": "b c"},
    "table": {"a": 1},
    "list of tables": [{"a": "1"}],
}


@pytest.mark.parametrize("key", sorted({row.key for row in ACTIONS if row.key != "auth.exchange_code"}))
def test_each_typed_method_says_what_the_table_says(key: str) -> None:
    """Called with every parameter of its newest row, a method sends that row's path, query and body."""
    row = rows(key)[0]
    fields = {param.name: param.choices[0] if param.choices else SAMPLES[param.kind] for param in row.params}

    async def run() -> None:
        async with client(upstream) as lava:
            method = getattr(getattr(lava, row.resource), row.name)
            assert method.__doc__
            await method(*("i/d" for _ in row.ids), **fields)

    with Upstream(json_answer(ANYTHING)) as upstream:
        asyncio.run(run())
    (got,) = upstream.requests
    path, _, query = got.target.decode().partition("?")
    assert got.method.decode() == row.method
    assert path == "/v1/" + row.path.replace(f"{{{row.ids[0]}}}" if row.ids else "-", "i%2Fd")
    assert [item.partition("=")[0] for item in query.split("&") if item] == [param.name for param in row.query]
    assert (json.loads(got.body) if got.body else None) == (fields if row.body is not None else None)


@pytest.mark.parametrize("vector", TOKENS, ids=lambda vector: f"{vector['sdk']} {vector['case']}")
def test_every_recorded_token(vector: dict[str, Any]) -> None:
    """``Lava().forward_token`` is the SDK's ``generateForwardToken``."""
    assert Lava(vector["secret_key"]).forward_token(**vector["options"]) == vector["token"]


@pytest.mark.parametrize("key", ["aks_live_x", "aks_test_x"])
def test_the_providers_are_the_sdks(key: str) -> None:
    """All 28 addresses, production and sandbox, as attributes and as a mapping."""
    expected = PROVIDERS[f"11.2.0 {key}"]
    providers = Lava(key).providers
    assert dict(providers) == expected
    assert {name: getattr(providers, name) for name in expected} == expected
    assert providers["google-openai"] == expected["googleOpenaiCompatible"]
    assert set(expected) <= set(dir(providers))
    with pytest.raises(AttributeError, match="did you mean 'anthropic'"):
        _ = providers.antropic


def test_where_the_key_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, Secret, environment; an empty one is none; without one the message says what to do."""
    monkeypatch.delenv("LAVA_SECRET_KEY", raising=False)
    with pytest.raises(MissingKey, match="LAVA_SECRET_KEY"):
        Lava()
    with pytest.raises(MissingKey):
        Lava("")
    monkeypatch.setenv("LAVA_SECRET_KEY", "aks_test_e")
    assert json.loads(base64.b64decode(Lava().forward_token())) == {"secret_key": "aks_test_e"}
    assert json.loads(base64.b64decode(Lava("").forward_token())) == {"secret_key": "aks_test_e"}
    assert json.loads(base64.b64decode(Lava(Secret("aks_live_a")).forward_token())) == {"secret_key": "aks_live_a"}


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("aks_live_x", "auto", "https://api.lavapayments.com/v1"),
        ("aks_test_x", "auto", "https://sandbox-api.lavapayments.com/v1"),
        ("lava_sk_x", "auto", "https://api.lavapayments.com/v1"),
        ("aks_test_x", "https://api.lava.so", "https://api.lava.so/v1"),
        ("aks_live_x", "https://api.lava.so/v1/", "https://api.lava.so/v1"),
        ("aks_live_x", "http://127.0.0.1:99", "http://127.0.0.1:99/v1"),
    ],
)
def test_the_base_address(key: str, given: str, expected: str) -> None:
    """By the key's prefix, or as given."""
    assert Lava(key, base_url=given).base_url == expected


@pytest.mark.parametrize("address", ["http://api.lava.so/v1", "api.lava.so", "https://x@y/", "https://a/?b", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """Plain http to a foreign host would show the key."""
    with pytest.raises(ValueError, match=r"^base_url must"):
        Lava("aks_live_x", base_url=address)


def test_a_key_that_is_none_is_sent_nowhere() -> None:
    """A line end in it would make a header of its own; the message does not show it."""
    key = "aks_live_" + "x" * 12 + "\nX-Evil: 1"
    with pytest.raises(ValueError, match="another character that no key has") as caught:
        asyncio.run(Lava(key, base_url="http://127.0.0.1:9").wallet.retrieve())
    assert "x" * 12 not in str(caught.value)


def test_a_post_carries_an_idempotency_key() -> None:
    """A new one each time, the caller's own where given, none with ``idempotency=False`` and none on other methods."""

    async def run() -> None:
        async with client(upstream) as lava, client(upstream, idempotency=False) as plain:
            await lava.secret_keys.create(name="n")
            await lava.secret_keys.create(name="n")
            await lava.secret_keys.create(name="n", idempotency_key="mine")
            await plain.secret_keys.create(name="n")
            await plain.secret_keys.create(name="n", idempotency_key="mine")
            await lava.meters.delete("m")
            await lava.meters.list()

    with Upstream(json_answer(ANYTHING)) as upstream:
        asyncio.run(run())
    first, second, third, *rest = (request.header(b"idempotency-key") for request in upstream.requests)
    assert first is not None
    assert len(first) == 36
    assert second not in (None, first)
    assert third == b"mine"
    assert rest == [None, b"mine", None, None]


def test_the_headers_of_a_call() -> None:
    """Those and no others: nothing is added by a library unasked."""

    async def run() -> None:
        async with client(upstream) as lava:
            await lava.wallet.retrieve()

    with Upstream(json_answer(ANYTHING)) as upstream:
        asyncio.run(run())
    got: Received = upstream.requests[0]
    assert sorted(name.lower().decode() for name, _ in got.headers) == [
        "accept",
        "accept-encoding",
        "authorization",
        "content-type",
        "host",
        "user-agent",
    ]
    assert got.header(b"authorization") == b"Bearer " + KEY.encode()


def test_the_package_exports_what_it_says() -> None:
    """Every public name is there, and the table alone loads neither the client nor pydantic nor httpx2."""
    assert all(getattr(proxy.lava, name).__doc__ for name in proxy.lava.__all__)
    with pytest.raises(AttributeError):
        _ = proxy.lava.nothing  # type: ignore[attr-defined]  # that is what is tested
    code = "import sys, proxy.lava.resources; print([m for m in ('pydantic', 'httpx2', 'proxy.lava.client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_every_resource_is_on_the_client() -> None:
    """In both generations of names."""
    lava = Lava("aks_live_x")
    for resource in resources():
        assert all(callable(getattr(getattr(lava, resource), name)) for name in names(resource))
