"""The face for scripts, the signatures of webhooks, and the page that explains both."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import inspect
import io
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from lava_answers import ANYTHING, KEY, in_turn, json_answer
from test_emulator_account import mailbox
from upstream import Peer, Upstream, answer, chunked

import proxy.lava
from proxy.emulator import Emulator, World
from proxy.lava import (
    BadSignature,
    Interrupted,
    Lava,
    LavaSync,
    MissingKey,
    NotFound,
    Unauthorized,
    Unreachable,
    verify_webhook,
)
from proxy.lava.resources import names, resources
from proxy.protocol.redaction import Secret, leaks

PAGE = (Path(__file__).parent.parent / "docs" / "lava.md").read_text(encoding="utf-8")
URL = "https://api.openai.com/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\nx-lava-request-id: req_9\r\n\r\n"


def client(upstream: Upstream, **options: Any) -> LavaSync:
    """A blocking client of this upstream."""
    return LavaSync(KEY, base_url=f"{upstream.url}/v1", **{"backoff": 0.001, **options})


def threads() -> int:
    """Our threads that run."""
    return sum(thread.name == "lava" for thread in threading.enumerate())


# The blocking face


def test_a_script() -> None:
    """Records, lists, pages, errors and calls by name, without ``await``; the thread ends with the client."""
    pages = [
        json_answer({"data": [{"meter_id": "1"}], "has_more": True, "next_cursor": "c"}),
        json_answer({"data": [{"meter_id": "2"}], "has_more": False}),
    ]
    script = in_turn(
        json_answer({"wallet_id": "w"}),
        *pages,
        *pages,
        pages[0],
        json_answer({"error": "none"}, 404),
        json_answer(ANYTHING),
    )
    before = threads()
    with Upstream(script) as upstream, client(upstream) as lava:
        assert lava.wallet.retrieve().wallet_id == "w"
        assert threads() == before + 1
        assert [meter.meter_id for meter in lava.meters.list()] == ["1", "2"]
        assert [len(page.data) for page in lava.pages("meters.list").by_page()] == [1, 1]
        assert lava.meters.list(limit=1).first().next_cursor == "c"
        with pytest.raises(NotFound):
            lava.meters.retrieve("m")
        assert lava.call("spend_keys.create", fields={"name": "n"}).spend_key_id == "i"
        assert not leaks(repr(lava), [KEY])
    assert threads() == before
    lava.close()


def test_it_has_every_method_of_the_async_client() -> None:
    """Both faces come from one table."""
    lava = LavaSync(KEY)
    for resource in resources():
        for name in names(resource):
            assert callable(getattr(getattr(lava, resource), name))
    assert lava.providers.openai.startswith(lava.base_url)
    assert lava.forward_token()
    lava.close()
    assert threads() == 0


def test_inside_a_running_event_loop() -> None:
    """In a coroutine (a notebook is one), and from several threads at once."""
    with Upstream(json_answer({"wallet_id": "w"})) as upstream, client(upstream) as lava:

        async def main() -> str:
            await asyncio.gather(*(asyncio.to_thread(lava.wallet.retrieve) for _ in range(8)))
            return lava.wallet.retrieve().wallet_id

        assert asyncio.run(main()) == "w"
    with Upstream(json_answer(ANYTHING)) as upstream:
        found = LavaSync.exchange_code("abc", base_url=f"{upstream.url}/v1")
        assert found.secret_key == Secret(ANYTHING["secret_key"])
        assert upstream.requests[0].header(b"authorization") is None


def test_leaving_a_list_early() -> None:
    """The rest is not asked for, and the client goes on."""
    more = json_answer({"data": [{"meter_id": "1"}, {"meter_id": "2"}], "has_more": True, "next_cursor": "c"})
    with Upstream(in_turn(more, json_answer({"wallet_id": "w"}))) as upstream, client(upstream) as lava:
        for meter in lava.meters.list():
            assert meter.meter_id == "1"
            break
        assert lava.wallet.retrieve().wallet_id == "w"
        assert len(upstream.requests) == 2


def test_streaming_in_a_script() -> None:
    """Lines, chunks, the whole, an error in the middle, and leaving."""
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        turn = peer.number
        if turn < 3:
            peer.send(HEAD + chunked(b"a\n", b"b"))
        elif turn == 3:
            peer.send(HEAD + chunked(b"a\n", end=False))
        else:
            peer.send(HEAD + chunked(b"a\n", end=False))
            if peer.gone():
                left.set()

    with Upstream(script) as upstream, client(upstream) as lava:
        with lava.gateway(URL, stream=True) as stream:
            assert (stream.status, stream.request_id) == (200, "req_9")
            assert list(stream.lines()) == ["a", "b"]
        with lava.gateway(URL, stream=True) as stream:
            assert b"".join(stream) == b"a\nb"
        with lava.gateway(URL, stream=True) as stream:
            assert stream.read() == b"a\nb"
        with lava.gateway(URL, stream=True) as stream, pytest.raises(Interrupted):
            list(stream.lines())
        with lava.gateway(URL, stream=True) as stream:
            assert next(iter(stream)) == b"a\n"
        assert left.wait(10)


def test_a_script_that_closes_nothing_ends() -> None:
    """With its connection open and in the middle of a list; nothing is printed."""
    code = f"""
from proxy.lava import LavaSync
lava = LavaSync({KEY!r}, base_url=URL)
for meter in lava.meters.list():
    break
"""
    more = json_answer({"data": [{"meter_id": "1"}, {"meter_id": "2"}], "has_more": True, "next_cursor": "c"})
    with Upstream(more) as upstream:
        code = code.replace("URL", repr(f"{upstream.url}/v1"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_key_nothing_starts() -> None:
    """No thread is left behind."""
    with pytest.raises(MissingKey):
        LavaSync()
    assert threads() == 0


# Against the offline Lava


def test_the_offline_lava_and_the_client_agree() -> None:
    """Real records over real sockets: what is made is found, listed, changed and gone."""
    with Emulator(World.demo()) as emulator, LavaSync(emulator.world.secret_key, base_url=emulator.base_url) as lava:
        assert lava.wallet.retrieve().balance is not None
        tiers = [{"start": "0", "rate": "0.5"}]
        made = lava.meters.create(name="Chat", rate_type="fixed", tier_type="tokens_1m", tiers=tiers)
        assert lava.meters.retrieve(made.meter_id) == made
        assert made.meter_id in [meter.meter_id for meter in lava.meters.list(limit=1)]
        assert lava.meters.update(made.meter_id, name="Talk").name == "Talk"
        assert lava.meters.delete(made.meter_id).deleted is True
        with pytest.raises(NotFound):
            lava.meters.retrieve(made.meter_id)
        key = lava.spend_keys.create(name="k", rate_limit={"rpm": 60})
        assert lava.spend_keys.rotate(key.spend_key_id).key != key.key
        assert [each.id for each in lava.models.list()]
        assert [each.customer_id for each in lava.customers.list()]
        with LavaSync(KEY, base_url=emulator.base_url) as stranger, pytest.raises(Unauthorized):
            stranger.wallet.retrieve()


# Webhooks

BODY = b'{"event":"customer.created","data":{"customer_id":"c","balance":"0.10"},"later":1}'
SECRET = "whsec-" + "s" * 20
NOW = 1_800_000_000.0


def signed(data: bytes, secret: str = SECRET) -> str:
    """Hex HMAC-SHA256."""
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def flex(body: bytes = BODY, at: float = NOW) -> str:
    """The signature with a time."""
    return f"t={int(at)},v1={signed(b'%d.' % int(at) + body)}"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Webhook-Signature": signed(BODY)},
        {"x-webhook-signature": f" {signed(BODY).upper()} "},
        {"X-Lava-Signature": signed(BODY)},
        {"x-lava-signature": flex()},
        {"x-lava-signature": flex(at=NOW - 300)},
        {"x-lava-signature": flex(at=NOW + 300)},
        {"x-lava-signature": f"v1={'0' * 64}, {flex()}"},
        {"x-lava-signature": "0" * 64, "x-webhook-signature": signed(BODY), "other": "x"},
    ],
)
def test_a_good_signature(headers: dict[str, str]) -> None:
    """All three schemes, in any spelling of the header, as a mapping or as pairs."""
    for secret in (SECRET, Secret(SECRET)):
        event = verify_webhook(BODY, headers, secret, now=NOW)
        assert (event.event, event.data["customer_id"]) == ("customer.created", "c")
        assert (event.model_extra or {}) == {"later": 1}
    assert verify_webhook(BODY, list(headers.items()), SECRET, now=NOW) == event


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "x"},
        {"x-webhook-signature": ""},
        {"x-webhook-signature": signed(BODY + b" ")},
        {"x-webhook-signature": signed(BODY, "other")},
        {"x-webhook-signature": signed(BODY)[:-1]},
        {"x-webhook-signature": signed(BODY) + "00"},
        {"x-webhook-signature": "é" * 64},
        # The timed scheme belongs to the other header only.
        {"x-webhook-signature": flex()},
        {"x-lava-signature": flex(at=NOW - 301)},
        {"x-lava-signature": flex(at=NOW + 301)},
        {"x-lava-signature": flex().replace("t=", "t=0")},
        {"x-lava-signature": f"t={int(NOW)},v1={signed(BODY)}"},
        {"x-lava-signature": f"t={int(NOW)}"},
        {"x-lava-signature": f"t={int(NOW)},t=1,{flex().partition(',')[2]}"},
        {"x-lava-signature": flex().replace("t=1", "t=-1")},
        {"x-lava-signature": "t=x,v1=y"},
        {"x-lava-signature": f"v0={signed(BODY)}"},
    ],
)
def test_a_bad_signature(headers: dict[str, str]) -> None:
    """Missing, wrong, cut, of another body, of another time, malformed: refused, and the secret is not shown."""
    with pytest.raises(BadSignature) as caught:
        verify_webhook(BODY, headers, SECRET, now=NOW)
    assert not leaks(str(caught.value), [SECRET])


def test_the_clock_and_the_body() -> None:
    """The real time is used where none is given; a signed body that is no event, and an empty secret, are refused."""
    assert verify_webhook(BODY, {"x-lava-signature": flex(at=time.time())}, SECRET).event
    with pytest.raises(BadSignature, match="too old"):
        verify_webhook(BODY, {"x-lava-signature": flex(at=1)}, SECRET)
    assert verify_webhook(BODY, {"x-lava-signature": flex(at=1)}, SECRET, tolerance=float("inf")).event
    for body in (b"", b"[]", b"{}", b"x"):
        with pytest.raises(ValueError, match="no event"):
            verify_webhook(body, {"x-webhook-signature": signed(body)}, SECRET)
    with pytest.raises(ValueError, match="secret is empty"):
        verify_webhook(BODY, {"x-webhook-signature": signed(BODY, "")}, "")


@pytest.mark.parametrize("scheme", ["current", "2025", "flex"])
def test_an_event_that_was_really_delivered(scheme: Literal["current", "2025", "flex"]) -> None:
    """Registered by the client, sent by the offline Lava, verified as it came; anything changed on the way is refused, and an
    old one where the scheme has a time in it."""
    world = World.demo()
    world.behaviour.webhook_scheme = scheme
    with (
        Emulator(world) as emulator,
        mailbox() as box,
        LavaSync(world.secret_key, base_url=emulator.base_url) as lava,
    ):
        hook = lava.webhooks.create(name="w", url=box.url)
        made = lava.customers.create(email="grace@example.com")
        world.clock = lambda: time.time() - 301
        lava.customers.delete(made.customer_id)
        assert world.until(lambda: sum(each.over for each in world.history.deliveries) == 2)
    (_, headers, body), (_, old_headers, old_body) = box.letters
    event = verify_webhook(body, headers, hook.webhook_secret)
    assert event.event == "customer.created"
    assert event.data["customer"]["customer_id"] == made.customer_id

    (name,) = {"x-webhook-signature", "x-lava-signature"} & {*headers}
    digit = "0" if headers[name][-1] != "0" else "1"
    for bad_body, bad_headers, secret in (
        (body.replace(b"grace@", b"eve@"), headers, hook.webhook_secret),
        (body + b" ", headers, hook.webhook_secret),
        (body, {**headers, name: headers[name][:-1] + digit}, hook.webhook_secret),
        (body, {**headers, name: old_headers[name]}, hook.webhook_secret),
        (body, headers, "whsec_" + "0" * 32),
        (body, {"content-type": "application/json"}, hook.webhook_secret),
    ):
        with pytest.raises(BadSignature):
            verify_webhook(bad_body, bad_headers, secret)
    if scheme == "flex":
        with pytest.raises(BadSignature, match="too old"):
            verify_webhook(old_body, old_headers, hook.webhook_secret)
    assert verify_webhook(old_body, old_headers, hook.webhook_secret, tolerance=900).event == "customer.deleted"


# The page


EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it stands there, against the offline Lava."""
    printed = io.StringIO()
    with Emulator(World.demo()) as emulator:
        monkeypatch.setenv("LAVA_SECRET_KEY", emulator.world.secret_key)
        code = EXAMPLES[number].replace("Lava()", f"Lava(base_url={emulator.base_url!r})")
        code = code.replace("LavaSync()", f"LavaSync(base_url={emulator.base_url!r})")
        namespace: dict[str, Any] = {"__name__": "example"}
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/lava.md", "exec"), namespace)  # the page's own code
    if "handle" in namespace:
        assert namespace["handle"](BODY, {"x-webhook-signature": signed(BODY)}, SECRET) == 200
        assert namespace["handle"](BODY, {}, SECRET) == 401
    assert not leaks(printed.getvalue(), [value for value in (namespace.get("key"),) if value])
    assert len(EXAMPLES) == 7


CALLS = re.findall(r"`(?:await )?(lava\.[^`]+\))`", PAGE)


def test_the_calls_between_the_lines_run() -> None:
    """What the page's sentences call does what they say: a page of a list, a limit cleared, an action by either of its names;
    and the constructor takes what it says."""
    world = World.demo()
    world.account.plans["plan_1"] = dataclasses.replace(world.account.plans["plan_free"], plan_id="plan_1")
    key = world.keys.spend_key_records[0]
    key.expires_at = time.time() + 1000

    async def run() -> list[Any]:
        async with Lava(world.secret_key, base_url=emulator.base_url) as lava:
            return [await eval(call, {"lava": lava, "id": key.spend_key_id}) for call in CALLS]  # the page's own code

    with Emulator(world) as emulator:
        listed, cleared, *plans = asyncio.run(run())
    assert (len(listed.data), listed.has_more, listed.next_cursor) == (3, False, None)
    assert cleared.expires_at is None
    assert world.keys.spend_key_records[0].expires_at is None
    assert [plan.plan_id for plan in plans] == ["plan_1", "plan_1"]
    assert len(CALLS) == 4
    taken = inspect.signature(Lava).parameters
    assert (taken["secret_key"].default, taken["base_url"].default, taken["retries"].default) == (None, "auto", 2)
    assert '`Lava(secret_key=None, *, base_url="auto", …)`' in PAGE
    assert "twice by default (`retries=`)" in PAGE
    assert re.fullmatch(r"Secret\('\*\*\*:.*'\)", repr(Secret(SECRET)))


def test_the_tables_are_true() -> None:
    """Resources with their actions, and every public error."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|$", PAGE, re.MULTILINE))
    assert {name: tuple(re.findall(r"\w+", actions)) for name, actions in rows.items()} == {
        resource: names(resource) for resource in resources()
    }
    kinds = {
        name
        for name in proxy.lava.__all__
        if isinstance(getattr(proxy.lava, name), type) and issubclass(getattr(proxy.lava, name), Exception)
    }
    assert all(f"`{name}`" in PAGE for name in kinds - {"BadSignature"})
    assert issubclass(Unreachable, proxy.lava.LavaError)
    assert answer(200)
