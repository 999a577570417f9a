"""Lava's own SDK for Node and this program's client, side by side against the offline Lava: equal records.

The same calls, as data, are made by the real ``@lavapayments/nodejs`` (every generation of it, unmodified) and by both faces
of ``proxy.lava``. What is read goes to one world and has to be equal to the letter; what is written goes to three worlds that
began alike, and is equal but for the ids and keys that each world makes up. ``lava-proxy api`` has to print the same.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from test_lava import CALLS, alive, arguments
from test_login import code_of

from proxy.cli.api import run
from proxy.cli.rendering import plain
from proxy.emulator import Emulator, World
from proxy.lava import Lava, LavaError, LavaSync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import NodeSDK

PACKAGES = {"8.1.0": "lava-8", "9.0.0": "lava-9", "10.1.0": "lava-10", "11.2.0": "@lavapayments/nodejs"}
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
CHAT = "https://api.openai.com/v1/chat/completions"
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "one two three"}]}


@dataclass(frozen=True)
class Step:
    """A call by the SDK's name. A text ``$LABEL.member.0`` in ``args`` stands for that part of an earlier answer."""

    method: str
    args: tuple[Any, ...]
    label: str


def step(method: str, *args: Any, label: str = "") -> Step:
    return Step(method, args, label or method)


#: Makes the calls that it is given, in order, and prints what each of them gave, or the message of its error.
NODE = """
const { Lava } = await import(process.env.PACKAGE);
const { steps, out } = JSON.parse(process.env.STEPS);
const lava = new Lava(process.env.KEY, { baseUrl: process.env.BASE });
const part = (text) => text.slice(1).split('/').reduce((found, name) => found[name], out);
const filled = (value) => JSON.parse(JSON.stringify(value), (_, each) =>
  typeof each === 'string' && each.startsWith('$') ? part(each) : each);
for (const { method, args, label } of steps) {
  const [resource, action] = method.split('.');
  const given = filled(args);
  try {
    if (method === 'exchangeAuthCode') out[label] = await Lava.exchangeAuthCode({ ...given[0], baseUrl: process.env.BASE });
    else if (action === undefined) out[label] = await lava[resource](...given);
    else out[label] = await lava[resource][action](...given);
  } catch (error) {
    out[label] = { error: error.message };
  }
}
console.log(JSON.stringify(out));
"""


def by_node(node: NodeSDK, sdk: str, emulator: Emulator, steps: list[Step], known: dict[str, Any]) -> dict[str, Any]:
    """What the SDK for Node gives."""
    told = json.dumps({"steps": [vars(each) for each in steps], "out": known})
    done = node.run(NODE, PACKAGE=PACKAGES[sdk], KEY=emulator.world.secret_key, BASE=emulator.base_url, STEPS=told)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {label: _worded(each) for label, each in found.items() if label not in known}


def _worded(found: Any) -> Any:
    """An error as SDK 11 words it; the ones before print Lava's whole error there, and so does the gateway of all."""
    match found:
        case {"error": str(text)} if (at := text.find(" - {")) > 0:
            return {"error": f"{text[:at]} - {json.loads(text[at + 3 :])['message']}"}
    return found


def filled(value: Any, out: dict[str, Any]) -> Any:
    """``value`` with the parts of earlier answers in it."""
    if isinstance(value, str) and value.startswith("$"):
        found: Any = out
        for name in value[1:].split("/"):
            found = found[int(name) if isinstance(found, list) else name]
        return found
    if isinstance(value, (list, tuple)):
        return [filled(each, out) for each in value]
    if isinstance(value, dict):
        return {name: filled(each, out) for name, each in value.items()}
    return value


def asked(lava: Any, sdk: str, method: str, args: list[Any]) -> Any:
    """One call by the typed methods of either face; of lists the first page."""
    if method == "gateway":
        return lava.gateway(args[0], **args[1])
    if method == "generateForwardToken":
        return lava.forward_token(**args[0])
    if method == "exchangeAuthCode":
        return type(lava).exchange_code(args[0]["code"], base_url=lava.base_url)
    row = alive(sdk)[method]
    ids, fields, extra = arguments(row, args)
    assert not extra
    found = getattr(getattr(lava, row.resource), row.name)(*ids, **fields)
    return found.first() if row.paged and isinstance(lava, LavaSync) else found


def told(error: LavaError) -> dict[str, str]:
    """An error as the SDK words it."""
    reason = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}[error.status or 0]
    return {"error": f"Lava API Error: {error.status} {reason} - {error.message}"}


def by_script(sdk: str, emulator: Emulator, steps: list[Step], known: dict[str, Any]) -> dict[str, Any]:
    """What the blocking face gives."""
    out = dict(known)
    with LavaSync(emulator.world.secret_key, base_url=emulator.base_url) as lava:
        for each in steps:
            try:
                found = asked(lava, sdk, each.method, filled(each.args, out))
                out[each.label] = plain(found, lambda name: True)
            except LavaError as error:
                out[each.label] = told(error)
    return {label: found for label, found in out.items() if label not in known}


def by_async(sdk: str, emulator: Emulator, steps: list[Step], known: dict[str, Any]) -> dict[str, Any]:
    """What the async face gives."""

    async def talk() -> dict[str, Any]:
        out = dict(known)
        async with Lava(emulator.world.secret_key, base_url=emulator.base_url) as lava:
            for each in steps:
                try:
                    found = asked(lava, sdk, each.method, filled(each.args, out))
                    found = found if isinstance(found, str) else await found
                    out[each.label] = plain(found, lambda name: True)
                except LavaError as error:
                    out[each.label] = told(error)
        return {label: found for label, found in out.items() if label not in known}

    return asyncio.run(talk())


#: How ``by_async`` and ``by_script`` look from outside.
FACES: tuple[Callable[..., dict[str, Any]], ...] = (by_async, by_script)


@contextmanager
def offline() -> Iterator[Emulator]:
    """A Lava whose clock stands."""
    world = World.demo()
    world.clock = lambda: NOON
    for wallet_key in world.wallet_key_records:
        wallet_key.created_at = NOON
    with Emulator(world) as running:
        yield running


def seeded(emulator: Emulator) -> dict[str, Any]:
    """One of everything that a generation of the SDK may not be able to make itself, and a code of the login pages."""
    with LavaSync(emulator.world.secret_key, base_url=emulator.base_url) as lava:
        customer = lava.customers.create(name="Ada Lovelace", email="ada@example.com", metadata={"team": "web"})
        rates = [{"start": "0", "rate": "2.50"}]
        meter = lava.meters.create(
            name="Seed", meter_slug="seed", rate_type="fixed", tier_type="tokens_1m", tiers=rates
        )
        bundles = [{"name": "More", "cost": "1", "credit_amount": "2"}]
        plan = lava.plans.create(
            name="Seed",
            period_amount="0",
            billing_interval="week",
            included_credit="3",
            meter_ids=[meter.meter_id],
            credit_bundles=bundles,
        )
        given = lava.subscriptions.create(customer_id=customer.customer_id, plan_id=plan.plan_id).subscription
        lava.gateway(CHAT, body=BODY, customer_id=customer.customer_id, meter_slug="seed")
        lava.requests.create(
            request_id="seed",
            customer_id=customer.customer_id,
            meter_slug="seed",
            input_tokens=9,
            metadata={"k": "v w"},
        )
        hook = lava.webhooks.create(name="Seed", url="https://shop.example/hook")
        spend = lava.spend_keys.create(
            name="Seed", spend_limit={"amount": "5", "cycle": "daily"}, rate_limit={"rpm": 9}
        )
        assert given is not None
        assert plan.credit_bundles is not None
        found = {
            "customer": customer.customer_id,
            "meter": meter.meter_id,
            "plan": plan.plan_id,
            "bundle": plan.credit_bundles[0].credit_bundle_id,
            "subscription": given.subscription_id,
            "webhook": hook.webhook_id,
            "spend": spend.spend_key_id,
            "wallet": lava.wallet_keys.list().first().data[0].wallet_key_id,
        }
    return {"seed": {**found, "code": code_of(f"http://127.0.0.1:{emulator.port}")}}


def names(sdk: str) -> dict[str, str]:
    """What this generation calls things."""
    if sdk.startswith("8."):
        return {"who": "connections", "id": "connection_id", "plan": "subscription_config_id", "Plan": "Config"}
    return {"who": "customers", "id": "customer_id", "plan": "plan_id", "Plan": "Plan"}


def readings(sdk: str) -> list[Step]:
    """Every call of this version that changes nothing, with and without its parameters, and some that fail."""
    say = names(sdk)
    who, mine = say["who"], {say["id"]: "$seed/customer"}
    span = {"start": "2026-03-01T00:00:00+02:00", "end": "2026-04-01T00:00:00Z"}
    wanted = [
        step(f"{who}.list", {"limit": 2}),
        step(f"{who}.list", {"limit": 2, "cursor": f"${who}.list/next_cursor"}, label="the next page"),
        step(f"{who}.retrieve", "$seed/customer"),
        step(f"{who}.retrieve", "conn_nobody", label="an unknown one"),
        step(f"{who}.getSubscription", "$seed/customer"),
        step(f"{who}.getSubscription", "conn_empty", label="no subscription"),
        step("requests.list", {**mine, "meter_id": "$seed/meter", "metadata_filters": {"k": "v w"}}),
        step("requests.list", label="all requests"),
        step("requests.list", {"limit": 1000}, label="too many"),
        step("requests.retrieve", "seed"),
        step("usage.retrieve", {**span, **mine, "meter_id": "$seed/meter"}),
        step("usage.retrieve", {"start": "2026-03-10T00:00:00Z", "metadata_filters": {"k": "v w"}}, label="some usage"),
        step(f"subscriptions.list{say['Plan']}s", {"limit": 2}),
        step(f"subscriptions.retrieve{say['Plan']}", "$seed/plan"),
        step("subscriptions.list", {"status": "all", **mine, "limit": 3}),
        step("meters.list"),
        step("meters.retrieve", "$seed/meter"),
        step("creditBundles.list", {say["plan"]: "$seed/plan", "limit": 5}),
        step("creditBundles.retrieve", "$seed/bundle"),
        step("webhooks.list", {"limit": 1}),
        step("webhooks.retrieve", "$seed/webhook"),
        step("secretKeys.list"),
        step("spendKeys.list", {"limit": 1}),
        step("spendKeys.retrieve", "$seed/spend"),
        step("walletKeys.list"),
        step("models.list"),
    ]
    return [each for each in wanted if each.method in CALLS[sdk]]


def writings(sdk: str) -> list[Step]:
    """Every call of this version that makes, changes or ends something, what it changed read back, and the gateway."""
    say = names(sdk)
    mine = {say["id"]: "$seed/customer"}
    rates = [{"start": "0", "rate": "0.25"}, {"start": "2.5", "rate": "0.125"}]
    limits = {
        "allowed_models": ["gpt-5"],
        "spend_limit": {"amount": "12.50", "cycle": "monthly"},
        "request_limit": {"count": 9, "cycle": "daily"},
        "rate_limit": {"rpm": 60, "burst": 5},
        "expires_at": "2027-01-01T00:00:00.000Z",
    }
    gift = "$subscriptions.create/subscription/subscription_id"
    plan = {"name": "Gift", "period_amount": "0", "billing_interval": "month", "included_credit": "1.50"}
    wanted = [
        step(
            "checkoutSessions.create",
            {"checkout_mode": "subscription", "origin_url": "https://x.example", **mine, say["plan"]: "plan_pro"},
        ),
        step("customers.create", {"name": "Grace Hopper", "reference_id": "r-1", "metadata": {"a": {"b": [1, None]}}}),
        step("customers.update", "$customers.create/customer_id", {"email": "g@example.com", "reference_id": None}),
        step("requests.create", {"request_id": "mine", **mine, "meter_slug": "seed", "input_tokens": 100_000}),
        step("requests.create", {"request_id": "mine", **mine, "meter_slug": "none"}, label="an unknown meter"),
        step("requests.retrieve", "mine"),
        step("usage.retrieve", {"start": "2026-03-10T00:00:00Z", **mine}),
        step("meters.create", {"name": "Mine", "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": rates}),
        step("meters.update", "$meters.create/meter_id", {"name": "Yours", "tiers": rates[:1]}),
        step(
            "subscriptions.createPlan", {**plan, "credit_bundles": [{"name": "b", "cost": "1", "credit_amount": "2"}]}
        ),
        step("subscriptions.updatePlan", "$subscriptions.createPlan/plan_id", {"included_credit": "4"}),
        step(
            "subscriptions.create",
            {"customer_id": "$customers.create/customer_id", "plan_id": "$subscriptions.createPlan/plan_id"},
        ),
        step(
            "subscriptions.update",
            "$seed/subscription",
            {"auto_top_up_bundle_id": "$seed/bundle"},
        ),
        step("subscriptions.update", "$seed/subscription", {"auto_top_up_bundle_id": None}, label="no top-up"),
        step("webhooks.create", {"name": "w", "url": "https://shop.example/other"}),
        step("webhooks.update", "$webhooks.create/webhook_id", {"name": "v"}),
        step("webhooks.delete", "$webhooks.create/webhook_id"),
        step("secretKeys.create", {"name": "s"}),
        step("secretKeys.delete", "$secretKeys.create/secret_key_id"),
        step("spendKeys.create", {"name": "k", **limits}),
        step("spendKeys.update", "$spendKeys.create/spend_key_id", {"status": "paused", "expires_at": None}),
        step("spendKeys.rotate", "$spendKeys.create/spend_key_id"),
        step("spendKeys.revoke", "$spendKeys.create/spend_key_id"),
        step("spendKeys.retrieve", "$spendKeys.create/spend_key_id"),
        step("walletKeys.rotate", "$seed/wallet"),
        step("walletKeys.revoke", "$seed/wallet"),
        step("gateway", CHAT, {"body": BODY}),
        step("gateway", CHAT, {"body": BODY, "meter_slug": "seed"}, label="metered"),
        step("gateway", CHAT, {"body": BODY, "customer_id": "$seed/customer", "meter_slug": "seed"}, label="billed"),
        step("gateway", CHAT, {"body": BODY, "provider_key": "mine"}, label="own key"),
        step("gateway", CHAT, {"body": BODY, "meter_slug": "no-such"}, label="no such meter"),
        step(
            "gateway",
            "https://api.anthropic.com/v1/messages",
            {"body": {**BODY, "model": "claude-opus-4-6"}, "format": "openai"},
            label="translated",
        ),
        step("subscriptions.cancel", "$seed/subscription"),
        *([step("subscriptions.cancel", gift, label="the gift")] if "subscriptions.create" in CALLS[sdk] else []),
        step("subscriptions.list", {"status": "all", **mine, "limit": 3}),
        step("subscriptions.deletePlan", "$subscriptions.createPlan/plan_id"),
        step("meters.delete", "$meters.create/meter_id"),
        step(f"{say['who']}.delete", "$seed/customer"),
        step(f"{say['who']}.retrieve", "$seed/customer"),
        step("exchangeAuthCode", {"code": "$seed/code"}),
        step("exchangeAuthCode", {"code": "$seed/code"}, label="a code used twice"),
        step("generateForwardToken", {"meter_slug": "seed"}),
        step("generateForwardToken", {**mine, "meter_slug": "seed", "provider_key": "k"}, label="a customer's token"),
    ]
    there = {*CALLS[sdk], "generateForwardToken", *(["gateway"] if "gateway plain" in CALLS[sdk] else [])}
    return [each for each in wanted if each.method in there]


#: What a world makes up: ids, keys and the last digits of them that are shown.
_MADE_UP = re.compile(r"[a-z]+[a-z_-]*[_-][0-9a-f]{12,}|…[0-9a-f]{4}\b|\.\.\.[0-9a-f]{4}\b")
_TOKEN = re.compile(r"eyJ[A-Za-z0-9+/]+=*")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")


def spelt(value: Any, name: str = "") -> Any:
    """In one spelling: the client reads moments as datetimes and amounts, also those that came as numbers, as Decimals."""
    if isinstance(value, dict):
        return {key: spelt(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [spelt(each) for each in value]
    if isinstance(value, int) and name == "created":
        return datetime.fromtimestamp(value, UTC).isoformat()
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def without_chance(value: dict[str, Any]) -> dict[str, Any]:
    """Whatever is made up is called by its kind and by when it turned up first: equal where it hangs together equally."""
    seen: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        kind = re.sub(r"[0-9a-f]{4,}$", "", match[0])
        if kind in ("…", "..."):
            return f"{kind}last four"  # so few that two may be the same by chance
        return seen.setdefault(match[0], f"{kind}{len(seen)}")

    text = json.dumps(spelt(value), ensure_ascii=False, sort_keys=True)
    text = _TOKEN.sub(lambda match: base64.b64decode(match[0]).decode().replace('"', "'"), text)
    found: dict[str, Any] = json.loads(_MADE_UP.sub(name, text))
    return found


@pytest.mark.parametrize("sdk", CALLS)
def test_every_call_of_the_sdk_is_compared(sdk: str) -> None:
    """No method of any version is left out below."""
    calls = {each.method for each in (*readings(sdk), *writings(sdk))} - {"gateway", "generateForwardToken"}
    assert calls == {name for name in CALLS[sdk] if not name.startswith("gateway ")}


@pytest.mark.parametrize("sdk", CALLS)
def test_what_is_read_is_equal(node_sdk: NodeSDK, sdk: str) -> None:
    """One world, three readers: each record, page and error is the same to the letter, money and times included."""
    with offline() as emulator:
        known = seeded(emulator)
        theirs = by_node(node_sdk, sdk, emulator, readings(sdk), known)
        assert [label for label, each in theirs.items() if "error" in each] == ["an unknown one", "too many"]
        for face in FACES:
            assert spelt(face(sdk, emulator, readings(sdk), known)) == spelt(theirs), face


@pytest.mark.parametrize("sdk", CALLS)
def test_what_is_written_is_equal(node_sdk: NodeSDK, sdk: str) -> None:
    """Three worlds, three writers: what each call answers, and what it did, is the same; only made-up values differ."""
    with offline() as emulator:
        theirs = by_node(node_sdk, sdk, emulator, writings(sdk), seeded(emulator))
    refused = {f"{names(sdk)['who']}.retrieve", "spendKeys.retrieve", "an unknown meter", "no such meter"}
    refused |= {"a code used twice"}
    assert {label for label, each in theirs.items() if "error" in each} == refused & {*theirs}
    for face in FACES:
        with offline() as emulator:
            ours = face(sdk, emulator, writings(sdk), seeded(emulator))
        assert without_chance(ours) == without_chance(theirs), face


def by_command(
    sdk: str, steps: list[Step], known: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """What ``lava-proxy api`` prints as JSON; of an error its status."""
    out = dict(known)
    for each in steps:
        row = alive(sdk)[each.method]
        ids, fields, _ = arguments(row, filled(each.args, out))
        typed = {
            name: "null" if value is None else value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        options = [f"--{name.replace('_', '-')}={value}" for name, value in typed.items()]
        code = run(None, [row.resource, row.name, *ids, *options, "--json", "--yes"])
        said = capsys.readouterr()
        assert ("only now" in said.err) == (row.once and code == 0)
        found = json.loads(said.out)
        out[each.label] = found if code == 0 else {"error": found["status"]}
    return {label: found for label, found in out.items() if label not in known}


def as_printed(value: dict[str, Any]) -> dict[str, Any]:
    """Answers as the command prints them: of a page only the records and where the next one begins, of an error the status."""
    found = {}
    for label, each in value.items():
        if "error" in each:
            found[label] = {"error": int(each["error"].split()[3])}
        elif "data" in each:
            cursor = each.get("next_cursor")
            found[label] = {"data": each["data"], "has_more": bool(cursor), "next_cursor": cursor}
        else:
            found[label] = each
    return found


@pytest.mark.parametrize("sdk", CALLS)
def test_the_command_line_gives_the_same(
    sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every action, read and written, by ``lava-proxy api … --json``: what the client gives, secrets where it tells them."""
    monkeypatch.setenv("HOME", str(tmp_path))

    @contextmanager
    def configured() -> Iterator[Emulator]:
        with offline() as emulator:
            monkeypatch.setenv("LAVA_SECRET_KEY", emulator.world.secret_key)
            monkeypatch.setenv("LAVA_PROXY_LAVA__BASE_URL", emulator.base_url)
            yield emulator

    with configured() as emulator:
        known = seeded(emulator)
        theirs = spelt(as_printed(by_script(sdk, emulator, readings(sdk), known)))
        assert spelt(by_command(sdk, readings(sdk), known, capsys)) == theirs

    steps = [each for each in writings(sdk) if each.method not in ("gateway", "generateForwardToken")]
    with configured() as emulator:
        theirs = without_chance(as_printed(by_script(sdk, emulator, steps, seeded(emulator))))
    with configured() as emulator:
        assert without_chance(by_command(sdk, steps, seeded(emulator), capsys)) == theirs
