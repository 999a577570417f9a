"""The routes of the account API, and what every call passes before its handler.

In order: the key (``Authorization: Bearer`` only), the rate limit, a fault on demand, the method,
the body, a repeated ``Idempotency-Key``. The table is read from Lava's documents and SDKs 8.1 to
11.2. It shares nothing with this program's own client, so that each can show the other's mistakes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from proxy.emulator import billing, bodies, checkout, customers, faults, keys, meters, plans, webhooks
from proxy.emulator.account_call import AccountCall, conflict, uses_old_names
from proxy.emulator.credentials import unauthorized
from proxy.emulator.endpoint import Handler, not_found, query_of, wrong_method
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, FaultPlan, RequestRefusedError, json_reply, refusal
from proxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from proxy.emulator.state import ReceivedRequest, World

Methods = Mapping[str, Callable[[AccountCall], EmulatedReply]]


def _wallet(call: AccountCall) -> EmulatedReply:
    account = call.world.account
    return json_reply({"wallet_id": account.wallet_id, "balance": f"{account.wallet_balance:f}"})


_CUSTOMERS: Methods = {"GET": customers.listed, "POST": customers.create}
_CUSTOMER: Methods = {"GET": customers.retrieve, "PATCH": customers.update, "DELETE": customers.delete}
_PLANS: Methods = {"GET": plans.listed, "POST": plans.create}
_PLAN: Methods = {"GET": plans.retrieve, "PATCH": plans.update, "DELETE": plans.delete}

RESOURCES: Mapping[str, Methods] = {
    "checkout_sessions": {"POST": checkout.create},
    "customers": _CUSTOMERS,
    "customers/*": _CUSTOMER,
    "customers/*/subscription": {"GET": plans.of_customer},
    "connections": _CUSTOMERS,
    "connections/*": _CUSTOMER,
    "connections/*/subscription": {"GET": plans.of_customer},
    "requests": {"GET": billing.listed, "POST": billing.report},
    "requests/*": {"GET": billing.retrieve},
    "usage": {"GET": billing.usage},
    "plans": _PLANS,
    "plans/*": _PLAN,
    "subscription_configs": _PLANS,
    "subscription_configs/*": _PLAN,
    "subscriptions": {"GET": plans.subscriptions, "POST": plans.subscribe},
    "subscriptions/*": {"PATCH": plans.change, "DELETE": plans.cancel},
    "meters": {"GET": meters.listed, "POST": meters.create},
    "meters/*": {"GET": meters.retrieve, "PATCH": meters.update, "DELETE": meters.delete},
    "credit_bundles": {"GET": plans.bundles},
    "credit_bundles/*": {"GET": plans.bundle},
    "webhooks": {"GET": webhooks.listed, "POST": webhooks.create},
    "webhooks/*": {"GET": webhooks.retrieve, "PATCH": webhooks.update, "DELETE": webhooks.delete},
    "secret_keys": {"GET": keys.secret_keys, "POST": keys.create_secret_key},
    "secret_keys/*": {"DELETE": keys.delete_secret_key},
    "spend_keys": {"GET": keys.spend_keys, "POST": keys.create_spend_key},
    "spend_keys/*": {"GET": keys.spend_key, "PUT": keys.update_spend_key, "DELETE": keys.revoke_spend_key},
    "spend_keys/*/rotate": {"POST": keys.rotate_spend_key},
    "wallet_keys": {"GET": keys.wallet_keys},
    "wallet_keys/*": {"DELETE": keys.revoke_wallet_key},
    "wallet_keys/*/rotate": {"POST": keys.rotate_wallet_key},
    "wallet": {"GET": _wallet},
    "account/fallback": {"GET": plans.fallback, "PATCH": plans.set_fallback},
}
"""Path below ``/v1/`` (``*`` is an id) -> handler of each method."""

_SINCE_9 = frozenset({"customers", "plans", "webhooks", "secret_keys", "spend_keys", "wallet_keys"})
_UNTIL_8 = frozenset({"connections", "subscription_configs"})
_BY_WALLET_KEY = frozenset({"spend_keys", "wallet_keys"})
_BODIES = frozenset({"POST", "PUT", "PATCH"})
_MINUTE_SECONDS = 60.0
_MAX_ANSWERS = 1000


def _serve(pattern: str, world: World, received: ReceivedRequest) -> EmulatedReply:
    resource = pattern.partition("/")[0]
    limits: list[tuple[str, str]] = []
    plan = FaultPlan()
    try:
        if not _exists(world.behaviour.generation, resource):
            raise RequestRefusedError(not_found(world, received))
        key = _key(world, resource, received)
        limits = _count(world, key)
        faulty, plan = _fault(world, received)
        reply = faulty or _answer(world, received, pattern, key)
    except RequestRefusedError as refused:
        reply = refused.reply
    # A copy: a reply for a repeated Idempotency-Key is kept without these headers.
    return replace(reply, headers=[*reply.headers, *limits], plan=plan)


def _exists(generation: int | None, resource: str) -> bool:
    if generation is None:
        return True
    if resource == "wallet_keys" and generation > 10:
        return False
    return generation >= 9 if resource in _SINCE_9 else generation == 8 or resource not in _UNTIL_8


def _key(world: World, resource: str, received: ReceivedRequest) -> str:
    """Return the checked key; raise ``RequestRefusedError`` (401).

    Spend keys and wallet keys are managed with a wallet key in SDK 9 and 10 and with the secret key
    in 11; without a generation both work.
    """
    scheme, _, key = (received.header("authorization") or "").strip().partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise unauthorized(
            "missing_credentials", "No credential was sent. Send Authorization: Bearer and a secret key."
        )
    received.credential, received.credential_place = key, "authorization"
    generation = world.behaviour.generation
    by_wallet_key = resource in _BY_WALLET_KEY and generation != 11
    found = world.keys.wallet_key(key) if by_wallet_key else None
    if found is not None:
        found.last_used_at = world.clock()
        return key
    if by_wallet_key and generation is not None:
        raise unauthorized("invalid_wallet_key", "The wallet key is unknown or was revoked.")
    if not world.is_secret_key(key):
        raise unauthorized("invalid_secret_key", "The secret key is unknown or was revoked.")
    return key


def _count(world: World, key: str) -> list[tuple[str, str]]:
    """Count a call of ``key`` in its window of a minute; return the headers or raise ``RequestRefusedError`` (429)."""
    limit = world.behaviour.rest_limit
    if limit is None:
        return []
    now, windows = world.clock(), world.pending.rate_windows
    start, count = windows.get(key, (now, 0))
    if not start <= now < start + _MINUTE_SECONDS:
        start, count = now, 0
    windows[key] = (start, count + 1)
    headers = [
        ("x-ratelimit-limit", str(limit)),
        ("x-ratelimit-remaining", str(max(0, limit - count - 1))),
        ("x-ratelimit-reset", str(int(start + _MINUTE_SECONDS))),
    ]
    if count >= limit:
        wait = str(max(1, int(start + _MINUTE_SECONDS - now) + 1))
        message = "Too many requests for this key. Try again later."
        raise refusal(429, "rate_limit_exceeded", message, *headers, ("retry-after", wait))
    return headers


def _fault(world: World, received: ReceivedRequest) -> tuple[EmulatedReply | None, FaultPlan]:
    """Return the next of ``account_faults``, or the fault of the request's own header."""
    names = world.behaviour.account_faults
    chosen = faults.by_names(received, [names.pop(0)]) if names else faults.chosen(received)
    reply = chosen.reply(EmulatedCall.of(world, received, Dialect.OPENAI)) if chosen.reply else None
    return reply, chosen.plan


def _answer(world: World, received: ReceivedRequest, pattern: str, key: str) -> EmulatedReply:
    methods = RESOURCES[pattern]
    answer = methods.get("GET" if received.method == "HEAD" else received.method)
    if answer is None:
        reply = wrong_method(received)
        reply.headers.append(("allow", ", ".join(methods)))
        return reply
    parts, places = [unquote(part) for part in received.path.removeprefix("/v1/").split("/")], pattern.split("/")
    if len(parts) != len(places):
        # An encoded slash inside an id: the router sees another path than the wire.
        return not_found(world, received)
    document = _document(received) if received.method in _BODIES else None
    query = query_of(received)
    names = tuple(part for part, place in zip(parts, places, strict=True) if place == "*")
    old = uses_old_names(world.behaviour.generation, places[0], query, document)
    call = AccountCall(world, received, query, names, old, document)
    repeat = received.header("idempotency-key") if received.method == "POST" else None
    return answer(call) if repeat is None else _once(call, answer, (key, repeat))


def _document(received: ReceivedRequest) -> object:
    try:
        body = bodies.decoded(received.body, ", ".join(received.header_values("content-encoding")))
    except bodies.UnreadableBodyError as error:
        raise refusal(400, "invalid_json", str(error)) from error
    document = bodies.document(body) if body else None
    try:
        # A value that cannot be written (NaN, half a surrogate pair) would make the response invalid JSON.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise refusal(400, "invalid_json", "The request body is not valid JSON.") from error
    return document


def _once(call: AccountCall, answer: Callable[[AccountCall], EmulatedReply], name: tuple[str, str]) -> EmulatedReply:
    """Return the first reply for a repeated request; raise ``RequestRefusedError`` (409) if it is
    another request.

    Lava documents that POSTs take an ``Idempotency-Key``; the rest is this emulator's reading.
    """
    replies = call.world.pending.idempotent_replies
    digest = hashlib.sha256(f"{call.received.path}\n".encode() + call.received.body).hexdigest()
    if name not in replies:
        replies[name] = (digest, answer(call))
        while len(replies) > _MAX_ANSWERS:
            del replies[next(iter(replies))]
    elif replies[name][0] != digest:
        raise conflict("idempotency_key_reused", "This Idempotency-Key was used for another request.")
    return replies[name][1]


def _path(pattern: str) -> str:
    parts = [f"{{id{at}}}" if part == "*" else part for at, part in enumerate(pattern.split("/"))]
    return f"/v1/{'/'.join(parts)}"


HANDLERS: Mapping[str, Handler] = {_path(pattern): partial(_serve, pattern) for pattern in RESOURCES}
