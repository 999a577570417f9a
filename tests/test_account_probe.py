"""Lava's account, asked by a real daemon why a request was refused: what is found, when, how often, and for how long."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from rawclient import RawClient, Response, ask, listening, post
from upstream import Peer, Upstream, answer

from proxy.config.settings import Settings
from proxy.emulator.records import StoredSubscription
from proxy.gateway.active_config import ActiveConfig
from proxy.lava.tokens import mint_token
from proxy.protocol.errors import ProxyError
from proxy.protocol.redaction import leaks
from proxy.upstream import Body, UpstreamError, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import Daemon, StartDaemon

    from proxy.emulator import Emulator, World

KEY = "aks_live_" + "q" * 24
LIVE, TEST, OWN = "aks_live_" + "Kq7c" * 5, "aks_test_" + "Zt4n" * 5, "own-provider-" + "w8Rm" * 5
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}

CONFIG = """
default_project = "main"
[lava]
secret_key = "env:SECRET"
base_url = "{base_url}"
{lava}
[projects.main]
[projects.typo]
connection_id = "conn_demo"
meter = "websit-chat"
[projects.other]
connection_id = "conn_demo"
meter = "zzz"
[projects.empty]
connection_id = "conn_empty"
meter = "website-chat"
[projects.customer]
customer_id = "conn_demo"
meter = "website-chat"
[projects.free]
customer_id = "conn_demo"
meter = "website-chat"
disable_billing = true
[projects.sandbox]
secret_key = "env:TEST"
[projects.lab.byok]
openai = "env:REJECTED"
[projects.unfunded.byok]
openai = "env:UNFUNDED"
[projects.ready]
forward_token = "env:TOKEN"
[projects.agent]
spend_key = "env:SPEND"
"""


@dataclass
class Stand:
    """A daemon in front of an emulator."""

    world: World
    daemon: Daemon

    def chat(self, project: str, model: str = "gpt-4o") -> Response:
        return post(self.daemon.port, f"/p/{project}/v1/chat/completions", {**CHAT, "model": model})

    def error(self, project: str, status: int, model: str = "gpt-4o") -> dict[str, Any]:
        """The error object of a refused request."""
        refused = self.chat(project, model)
        assert refused.status == status, refused.body
        found: dict[str, Any] = refused.json()["error"]
        return found

    @property
    def questions(self) -> list[str]:
        """What the account API was asked so far."""
        return [each.path for each in self.world.received if each.method == "GET"]


@pytest.fixture
def start(emulator: Emulator, daemon: StartDaemon) -> Callable[..., Stand]:
    """Start a daemon with every kind of project; ``lava`` are further lines of ``[lava]``."""
    world = emulator.world

    def run(lava: str = "") -> Stand:
        env = {
            "SECRET": world.secret_key,
            "TEST": world.test_key,
            "REJECTED": next(iter(world.keys.rejected_provider_keys)),
            "UNFUNDED": next(iter(world.keys.unfunded_provider_keys)),
            "TOKEN": mint_token(world.secret_key, customer_id="conn_demo", meter_slug="demo-cha"),
            "SPEND": world.keys.spend_keys["openai"],
        }
        config = CONFIG.format(base_url=emulator.base_url, lava=lava)
        return Stand(world, daemon(config, env=env, secrets=env.values()))

    return run


@pytest.fixture
def stand(start: Callable[..., Stand]) -> Stand:
    return start()


def parts(error: dict[str, Any]) -> list[str]:
    return [each["part"] for each in error["lava_proxy"]["diagnosis"]]


# --- what is found ---------------------------------------------------------------------------------------------------


def test_an_unknown_meter_and_the_nearest_name(stand: Stand) -> None:
    """The sentence of the issue: which name is wrong, and which was probably meant."""
    error = stand.error("typo", 401)
    assert 'meter "websit-chat" does not exist; did you mean "website-chat"?' in error["message"]
    assert "Meter websit-chat does not exist." in error["message"]  # what Lava itself said stays
    ours = error["lava_proxy"]
    assert (error["code"], ours["upstream_status"], parts(error)) == ("lava_unauthorized", 401, ["meter"])
    assert ours["hint"] == 'Write "website-chat" as meter under [projects.typo].'
    assert ours["diagnosis"][0]["suggestion"] == ours["hint"]


def test_an_unknown_meter_with_no_name_near(stand: Stand) -> None:
    """A tool is told where to look, and not what the account has for others."""
    error = stand.error("other", 401)
    assert 'meter "zzz" does not exist in the account of the key …' in error["message"]
    assert "check --online" in error["lava_proxy"]["hint"]
    assert "internal" not in json.dumps(error)


@pytest.mark.parametrize("generation", [None, 8, 9, 11])
def test_a_deleted_connection(stand: Stand, generation: Any) -> None:
    """Under either name, whichever generation of names Lava speaks."""
    stand.world.behaviour.generation = generation
    assert stand.chat("customer").status == 200
    del stand.world.account.connections["conn_demo"]
    error = stand.error("customer", 401)
    assert "customer conn_demo does not exist: it was deleted, or it is of another account" in error["message"]
    assert parts(error) == ["customer"]
    assert "lava-proxy connections" in error["lava_proxy"]["hint"]


def test_a_revoked_key(stand: Stand) -> None:
    """Told apart from everything else that is a 401, by the last four of the key alone."""
    assert stand.chat("main").status == 200
    stand.world.keys.revoked_keys.add(stand.world.secret_key)
    error = stand.error("main", 401)
    assert f"Lava does not know the secret key …{stand.world.secret_key[-4:]}: it was revoked" in error["message"]
    assert (parts(error), "lava-proxy login" in error["lava_proxy"]["hint"]) == (["key"], True)


def test_a_key_of_the_other_environment(stand: Stand) -> None:
    """A test key at an address that serves the live environment."""
    stand.world.behaviour.environment = "live"
    error = stand.error("sandbox", 401)
    assert "or it is of another account or environment (it is a test key)" in error["message"]
    assert "secret_key under [projects.sandbox]" in error["lava_proxy"]["hint"]


def test_a_connection_of_the_other_environment(stand: Stand) -> None:
    """What was made with a live key, a test key does not see: the sentence says which kind the key is."""
    assert stand.world.sandbox is not None
    del stand.world.account.connections["conn_demo"]
    assert "(the key …" in (message := stand.error("customer", 401)["message"])
    assert "is a live key)" in message


def test_a_key_inside_a_ready_token(stand: Stand) -> None:
    """It asks as any other, and the suggestion is about the token."""
    error = stand.error("ready", 401)
    assert 'meter "demo-cha" does not exist; did you mean "demo-chat"?' in error["message"]
    assert "forward_token under [projects.ready]" in error["lava_proxy"]["hint"]


def test_an_empty_wallet(stand: Stand) -> None:
    """Whose it is, that nothing is in it, and that no plan pays beside it."""
    error = stand.error("empty", 402)
    assert "is out of funds: it holds no credit, and there is no plan beside it. Top up" in error["message"]
    problem = "the wallet behind connection conn_empty holds no credit, and there is no plan beside it"
    assert error["lava_proxy"]["diagnosis"][0]["problem"] == problem
    assert (error["code"], parts(error)) == ("lava_insufficient_balance", ["wallet"])


@pytest.mark.parametrize("project", ["main", "free"])
def test_an_empty_merchant_wallet(stand: Stand, project: str) -> None:
    """With the balance, also where a customer is tracked but not billed."""
    stand.world.account.wallet_balance -= stand.world.account.wallet_balance
    error = stand.error(project, 402)
    assert "is out of funds: it holds $0.00. Top up" in error["message"]
    assert error["lava_proxy"]["diagnosis"][0]["left"] == "0.00"


def test_what_is_left_of_a_plan(stand: Stand) -> None:
    """Plan, credit and the day on which it begins anew."""
    world = stand.world
    plan = StoredSubscription.begin(world.account.plans["plan_pro"], "conn_empty", world.clock())
    plan.cycle_remaining -= plan.cycle_remaining
    world.account.subscriptions[plan.subscription_id] = plan
    error = stand.error("empty", 402)
    assert 'it holds no credit, and the plan "Pro" has $0.00 of credit left until 2' in error["message"]
    assert [each.get("left") for each in error["lava_proxy"]["diagnosis"]] == [None, "0.00"]


def test_nothing_wrong_is_said_too(stand: Stand) -> None:
    """A 401 that the account does not explain."""
    error = stand.error("customer", 401, "fault-lava-401")
    assert 'customer conn_demo exists and meter "website-chat" exists. Check' in error["message"]
    assert error["lava_proxy"]["diagnosis"] == []


def test_the_list_of_models_is_diagnosed_too(daemon: StartDaemon) -> None:
    """``GET /v1/models`` is answered here, and its 401 is Lava's all the same."""
    refusal = answer(401, b'{"error":{"message":"no","code":"invalid_secret_key","status":401}}')
    with Upstream(refusal) as upstream:
        running = daemon(f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n', env={"KEY": KEY})
        refused = ask(running.port, "GET", "/v1/models")
        assert (refused.status, refused.code) == (401, "lava_unauthorized")
        assert "Lava does not know the secret key …qqqq" in refused.json()["error"]["message"]


# --- when it is asked ------------------------------------------------------------------------------------------------


def test_it_is_not_asked_without_need(stand: Stand) -> None:
    """Not on success, not for what the provider says, not for other refusals, and not with a spend key."""
    for project, model, status in (
        ("main", "gpt-4o", 200),
        ("main", "fault-provider-401", 401),
        ("main", "fault-provider-402", 402),
        ("lab", "gpt-4o", 401),
        ("unfunded", "gpt-4o", 402),
        ("main", "fault-lava-403", 403),
        ("main", "fault-lava-429", 429),
        ("main", "fault-lava-500", 500),
        ("main", "fault-spend-limit", 402),
        ("agent", "fault-lava-401", 401),
        ("agent", "fault-lava-402", 402),
    ):
        assert stand.chat(project, model).status == status, (project, model)
    assert stand.questions == []


def test_it_can_be_switched_off(start: Callable[..., Stand]) -> None:
    """diagnose = false: the sentences of before, and no question."""
    stand = start("diagnose = false")
    error = stand.error("typo", 401)
    assert error["message"].startswith("Lava rejects the secret key")
    assert "diagnosis" not in error["lava_proxy"]
    assert stand.questions == []


def test_many_that_fail_at_once_ask_once(stand: Stand) -> None:
    """Twenty requests, one inquiry, twenty answers with its sentences."""
    stand.world.behaviour.account_faults = ["slow-0.4"] * 5
    with ThreadPoolExecutor(20) as pool:
        errors = list(pool.map(lambda _: stand.error("typo", 401), range(20)))
    assert all("did you mean" in each["message"] for each in errors)
    assert sorted(stand.questions) == [
        "/v1/connections/conn_demo",
        "/v1/customers/conn_demo",
        "/v1/customers/conn_demo/subscription",
        "/v1/meters",
        "/v1/wallet",
    ]


def test_within_the_minute_the_answers_are_used_again(stand: Stand) -> None:
    """Once per project: the same one is not asked again, another one is."""
    first = stand.error("typo", 401)
    asked = len(stand.questions)
    assert stand.error("typo", 401)["lava_proxy"]["diagnosis"] == first["lava_proxy"]["diagnosis"]
    assert len(stand.questions) == asked
    stand.error("other", 401)
    assert len(stand.questions) > asked


def test_a_success_takes_the_answers_back(stand: Stand) -> None:
    """Mended and broken in another way within the minute: what was found out is not told again, and nothing is asked."""
    assert "websit-chat" in stand.error("typo", 401)["lava_proxy"]["diagnosis"][0]["problem"]
    asked = len(stand.questions)
    stand.world.account.add_meter("websit-chat")
    assert stand.chat("typo").status == 200
    del stand.world.account.connections["conn_demo"]
    error = stand.error("typo", 401)
    assert "diagnosis" not in error["lava_proxy"]
    assert error["message"].startswith("Lava rejects the secret key")
    assert len(stand.questions) == asked


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")
def test_a_reload_begins_anew(stand: Stand) -> None:
    """A new configuration is asked about at once."""
    stand.error("typo", 401)
    asked = len(stand.questions)
    config = stand.daemon.config
    config.write_text(config.read_text().replace("websit-chat", "webste-chat"))
    stand.daemon.process.send_signal(signal.SIGHUP)
    while "websit-chat" in (message := stand.error("typo", 401)["message"]):
        time.sleep(0.05)
    assert 'meter "webste-chat" does not exist; did you mean "website-chat"?' in message
    assert len(stand.questions) == 2 * asked


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")
def test_a_minute_outlives_a_reload(stand: Stand) -> None:
    """What did not change is not asked about again: neither after a reload, nor when a change is taken back."""
    stand.error("typo", 401)
    asked = len(stand.questions)
    config, before = stand.daemon.config, stand.daemon.config.read_text()

    def reload(text: str, marked: str) -> None:
        config.write_text(text)
        stand.daemon.process.send_signal(signal.SIGHUP)
        while ask(stand.daemon.port, "GET", f"/p/{marked}/").status != 200:
            time.sleep(0.05)

    reload(f"{before}[projects.second]\n", "second")
    assert 'did you mean "website-chat"?' in stand.error("typo", 401)["message"]
    assert len(stand.questions) == asked
    reload(before.replace("websit-chat", "webste-chat") + "[projects.third]\n", "third")
    assert 'meter "webste-chat" does not exist' in stand.error("typo", 401)["message"]
    assert len(stand.questions) == 2 * asked
    reload(f"{before}[projects.fourth]\n", "fourth")
    assert "diagnosis" not in stand.error("typo", 401)["lava_proxy"]
    assert len(stand.questions) == 2 * asked


class Noting:
    """An engine that keeps what is sent, and reaches nobody."""

    def __init__(self) -> None:
        self.sent: list[tuple[UpstreamRequest, Body]] = []

    async def open(self, out: UpstreamRequest, body: Body = None, content_length: int | None = None) -> NoReturn:
        self.sent.append((out, body))
        raise UpstreamError("unreachable", False, "nobody is there")

    def close(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("project", "base_url", "host", "path", "key"),
    [
        ({}, "auto", b"api.lavapayments.com", b"/v1/", LIVE),
        ({"secret_key": TEST}, "auto", b"sandbox-api.lavapayments.com", b"/v1/", TEST),
        ({"forward_token": mint_token(TEST, provider_key=OWN)}, "auto", b"sandbox-api.lavapayments.com", b"/v1/", TEST),
        ({"byok": {"openai": OWN}}, "https://lava.example.com:8443/a/b", b"lava.example.com:8443", b"/a/b/", LIVE),
    ],
)
def test_the_questions_go_where_the_requests_go(
    project: dict[str, Any], base_url: str, host: bytes, path: bytes, key: str
) -> None:
    """By the daemon's own engine (and so its outbound proxy and certificates), to the Lava of the project's own key, with
    that key and nothing else of the project's secrets."""
    settings = Settings.model_validate(
        {"lava": {"secret_key": LIVE, "base_url": base_url}, "projects": {"web": project}}
    )
    engine = Noting()
    config = ActiveConfig(settings, engine)
    fault = ProxyError("lava_unauthorized", "No.", "Look.", owner="lava")
    asyncio.run(config.destination.explain(fault, "web", None))
    assert fault.details["diagnosis_failed"] == "Lava's account API cannot be reached: nobody is there"
    [(out, body)] = engine.sent
    assert (out.method, out.target, body) == (b"GET", path + b"wallet", None)
    assert (out.origin.scheme, out.origin.host.encode()) == ("https", host.partition(b":")[0])
    names = [name for name, _ in out.headers]
    assert (names[0], names.count(b"authorization")) == (b"host", 1)
    assert dict(out.headers)[b"host"] == host
    assert dict(out.headers)[b"authorization"] == b"Bearer " + key.encode()
    assert not leaks(repr([out.target, out.headers]), [OWN])


# --- when it goes wrong ----------------------------------------------------------------------------------------------

REFUSAL = answer(401, b'{"error":{"message":"No such token","code":"invalid_token","status":401}}')


class Account:
    """A scripted Lava: refuses every request at the gateway, and treats questions as ``said``."""

    def __init__(self, said: Callable[[Peer], None]) -> None:
        self.said = said

    def __call__(self, peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                peer.send(REFUSAL)
            else:
                self.said(peer)


@pytest.fixture
def before(daemon: StartDaemon) -> Callable[..., Daemon]:
    """A daemon before a scripted Lava."""

    def run(upstream: Upstream, more: str = "") -> Daemon:
        config = (
            f'default_project = "web"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{more}\n'
            '[projects.web]\nmeter = "m"\n'
        )
        return daemon(config, env={"KEY": KEY}, secrets=[KEY])

    return run


def hang(peer: Peer) -> None:
    peer.gone()


FAILURES: dict[str, tuple[Callable[[Peer], None], str]] = {
    "it hangs": (hang, "Lava's account API did not answer within 2 s"),
    "it closes": (lambda peer: peer.rst(), "Lava's account API cannot be reached"),
    "a page": (lambda peer: peer.send(answer(200, b"<html>log in</html>")), "a web page"),
    "a page that says 401": (lambda peer: peer.send(answer(401, b"<html>log in</html>")), "a web page"),
    "a page that says 404": (lambda peer: peer.send(answer(404, b"<html>nothing</html>")), "nothing of use"),
    "another JSON": (lambda peer: peer.send(answer(200, b"[1,2]")), "cannot be used"),
    "too many": (
        lambda peer: peer.send(answer(429, b'{"error":{"message":"slow down"}}', [(b"retry-after", b"7")])),
        "1000 requests a minute for a key, and this one has had them: try again in 7 seconds",
    ),
    "it fails": (lambda peer: peer.send(answer(500, b'{"error":{"message":"oops"}}')), "does not say"),
    "no HTTP": (lambda peer: peer.send(b"what?\r\n\r\n"), "cannot be reached"),
    "endless": (lambda peer: peer.send(answer(200, b"x" * 3_000_000)), "cannot be reached"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_where_nothing_is_found_out_the_401_is_as_it_was(before: Callable[..., Daemon], name: str) -> None:
    """At most two seconds later: the same status, code, message and hint, with a sentence on what failed beside them."""
    said, why = FAILURES[name]
    with Upstream(Account(said)) as upstream:
        port = before(upstream).port
        began = time.monotonic()
        refused = post(port, "/v1/chat/completions", CHAT)
        assert time.monotonic() - began < 2.5  # two, and what a busy machine adds
        assert (refused.status, refused.code) == (401, "lava_unauthorized")
        error = refused.json()["error"]
        assert error["message"].startswith("Lava rejects the secret key")
        assert error["message"].endswith("«No such token»")
        assert why in error["lava_proxy"].get("diagnosis_failed", "")
        assert "diagnosis" not in error["lava_proxy"]
        # Nothing is made again: one question each about the wallet and the meters.
        assert sorted(each.target for each in upstream.requests[1:]) in (
            [b"/v1/meters?limit=100", b"/v1/wallet"],
            [b"/v1/wallet"],
        )


@pytest.mark.parametrize(
    ("new", "old", "gone"),
    [
        ('{"error":{"code":"not_found","message":"No such customer"}}', "<html>", True),
        ('{"error":{"code":"not_found","message":"No such customer"}}', '{"error":"no such route"}', True),
        ("<html>", '{"error":{"code":"not_found","message":"No such connection"}}', True),
        ("<html>", "<html>", False),
        ("", "", False),
    ],
)
def test_a_page_that_is_not_there_is_no_missing_customer(
    before: Callable[..., Daemon], new: str, old: str, gone: bool
) -> None:
    """A Lava that knows one name only may answer the other with a page; two pages say nothing of the customer."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                peer.send(REFUSAL)
            elif b"wallet" in received.target:
                peer.send(answer(200, b'{"wallet_id":"wal_1","balance":"1"}'))
            else:
                peer.send(answer(404, (new if b"customers" in received.target else old).encode()))

    with Upstream(script) as upstream:
        more = '[projects.one]\ncustomer_id = "cus_1"\nmeter = "m"\n'
        port = before(upstream, more).port
        error = post(port, "/p/one/v1/chat/completions", CHAT).json()["error"]
        assert ("customer cus_1 does not exist" in error["message"]) is gone


def test_what_came_in_time_is_used(before: Callable[..., Daemon]) -> None:
    """The wallet hangs, but the list of meters came: the meter is the answer."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                peer.send(REFUSAL)
            elif b"meters" in received.target:
                meters = [{"meter_id": "met_1", "meter_slug": "mm"}]
                peer.send(answer(200, json.dumps({"data": meters, "has_more": False}).encode()))
            else:
                peer.gone()

    with Upstream(script) as upstream:
        error = post(before(upstream).port, "/v1/chat/completions", CHAT).json()["error"]
        assert 'meter "m" does not exist; did you mean "mm"?' in error["message"]
        assert "did not answer within 2 s" in error["lava_proxy"]["diagnosis_failed"]


def test_secrets_that_lava_repeats_come_out_nowhere(before: Callable[..., Daemon]) -> None:
    """Neither as the name of a meter nor in what the account API complains of; the key may be inside a ready token."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                peer.send(REFUSAL)
            elif b"meters" in received.target:
                meters = [{"meter_id": key, "meter_slug": key} for key in (KEY, TEST)]
                peer.send(answer(200, json.dumps(meters).encode()))
            else:
                peer.send(answer(500, json.dumps({"error": f"no {KEY}"}).encode()))

    with Upstream(script) as upstream:
        near = KEY[:-1]  # so that it is the nearest name
        inside = mint_token(TEST, meter_slug=TEST[:-1])
        more = f'[projects.near]\nmeter = "{near}"\n[projects.ready]\nforward_token = "{inside}"\n'
        port = before(upstream, more).port
        for project in ("web", "near", "ready"):
            refused = post(port, f"/p/{project}/v1/chat/completions", CHAT)
            assert "does not exist" in refused.json()["error"]["message"], project
            assert not leaks(refused.body.decode(), [KEY, TEST]), project


@pytest.mark.parametrize(("project", "questions"), [('meter = "m"', 7), ('meter = "m"\ncustomer_id = "cus_1"', 7)])
def test_no_list_is_followed_far(daemon: StartDaemon, project: str, questions: int) -> None:
    """Page after page with a new cursor each: after seven questions in all nothing is claimed of the meter."""
    numbers = itertools.count()

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                peer.send(REFUSAL)
            elif b"meters" in received.target:
                page = {"data": [], "has_more": True, "next_cursor": f"cursor-{next(numbers)}"}
                peer.send(answer(200, json.dumps(page).encode()))
            elif b"wallet" in received.target:
                peer.send(answer(200, b'{"wallet_id":"wal_1","balance":"1"}'))
            else:
                peer.send(answer(404, b"<html>"))

    with Upstream(script) as upstream:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[projects.web]\n{project}\n'
        port = daemon(config, env={"KEY": KEY}, secrets=[KEY]).port
        error = post(port, "/v1/chat/completions", CHAT).json()["error"]
        assert "does not exist" not in error["message"]
        assert error["lava_proxy"]["diagnosis_failed"] == "Lava's list of meters is too long to be looked through"
        assert len(upstream.requests) - 1 == questions


def test_a_question_that_is_given_up_closes_its_connection(before: Callable[..., Daemon]) -> None:
    """Also where its answer has begun: the rest of it must reach no other request."""

    def half(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        peer.gone()

    with Upstream(Account(half)) as upstream:
        port = before(upstream).port
        with RawClient(port) as leaves:
            leaves.post_json("/v1/chat/completions", CHAT)
            upstream.wait(lambda: len(upstream.requests) == 3)
        upstream.wait(lambda: upstream.connected <= 1)  # the one on which the request itself was refused
        asked = upstream.accepted
        assert post(port, "/v1/chat/completions", CHAT).status == 401
        assert upstream.accepted <= asked + 1


def test_a_client_that_leaves_ends_the_asking(before: Callable[..., Daemon]) -> None:
    """Its questions are cancelled within a second; while another one still waits, they go on for that one."""
    with Upstream(Account(hang)) as upstream:
        running = before(upstream)
        with RawClient(running.port) as stays:
            with RawClient(running.port) as leaves:
                leaves.post_json("/v1/chat/completions", CHAT)
                upstream.wait(lambda: len(upstream.requests) == 3)
                stays.post_json("/v1/chat/completions", CHAT)
                upstream.wait(lambda: len(upstream.requests) == 4)
                for _ in range(50):  # its refusal is on its way: many turns of the daemon's loop
                    assert ask(running.port, "GET", "/healthz").status == 200
            wait_for(lambda: '"outcome":"client_gone"' in running.output())
            assert "did not answer" in stays.response().json()["error"]["lava_proxy"]["diagnosis_failed"]
    with Upstream(Account(hang)) as upstream:
        running = before(upstream)
        with RawClient(running.port) as leaves:
            leaves.post_json("/v1/chat/completions", CHAT)
            upstream.wait(lambda: len(upstream.requests) == 3)
            asking = upstream.connected
        began = time.monotonic()
        upstream.wait(lambda: upstream.connected < asking)
        assert time.monotonic() - began < 1.2
        # A minute is a minute: what was given up is not begun again by the next one, who hears Lava's own words at once.
        refused = post(running.port, "/v1/chat/completions", CHAT)
        assert "diagnosis_failed" not in refused.json()["error"]["lava_proxy"]


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_nothing_is_asked_on_the_way_down(before: Callable[..., Daemon]) -> None:
    """A request that is refused while the daemon drains gets Lava's own words at once."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request() is not None
        assert go.wait(20)
        peer.send(REFUSAL)
        peer.gone()

    with Upstream(script) as upstream:
        running = before(upstream)
        with RawClient(running.port) as client:
            client.post_json("/v1/chat/completions", CHAT)
            upstream.wait(lambda: len(upstream.requests) == 1)
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not listening(running.port))
            go.set()
            refused = client.response()
            assert (refused.status, refused.code) == (401, "lava_unauthorized")
        assert running.process.wait(10) == 0
        assert len(upstream.requests) == 1


def test_the_drain_deadline_does_not_change_the_answer(before: Callable[..., Daemon]) -> None:
    """Cut while it asks: the client still gets the 401, not a 503 that it would try again."""
    with Upstream(Account(hang)) as upstream:
        running = before(upstream, "[server]\ndrain_seconds = 0.2\n")
        with RawClient(running.port) as client:
            client.post_json("/v1/chat/completions", CHAT)
            upstream.wait(lambda: len(upstream.requests) == 3)
            running.process.send_signal(signal.SIGTERM)
            refused = client.response()
            assert (refused.status, refused.code) == (401, "lava_unauthorized")
        assert running.process.wait(10) == 0


def test_time_limits_of_the_request_do_not_change_the_answer(before: Callable[..., Daemon]) -> None:
    """A limit of [upstream] that strikes meanwhile ends the asking."""
    with Upstream(Account(hang)) as upstream:
        port = before(upstream, "[upstream]\nidle = 0.2\n").port
        refused = post(port, "/v1/chat/completions", CHAT)
        assert (refused.status, refused.code) == (401, "lava_unauthorized")


_NOT_LOADED = """
import asyncio, json, sys
import proxy.app
early = sorted(set(sys.modules) & {"httpx2", "proxy.lava.client", "proxy.lava.records"})
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.destinations.account_probe import ProbeSender, ask
from proxy.config.settings import load
from proxy.upstream import create_engine
async def main():
    settings = load(None)
    engine = create_engine(settings.upstream)
    config = ActiveConfig(settings, engine)
    account = await ask(config.destination.subject("default"), ProbeSender(engine, config.destination.address("default")), 10.0)
    await engine.aclose()
    return account
account = asyncio.run(main())
print(json.dumps([early, str(account.balance), "httpx2" in sys.modules]))
"""


def test_the_account_client_is_loaded_when_it_is_needed(emulator: Emulator) -> None:
    """Not at the start; and when it is, it goes by the daemon's own engine and no second HTTP library."""
    env = {"LAVA_SECRET_KEY": emulator.world.secret_key, "LAVA_PROXY_LAVA__BASE_URL": emulator.base_url}
    done = subprocess.run(
        [sys.executable, "-c", _NOT_LOADED], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], "20.00", False]
