"""The account API's addresses: one table of resources, and what every call goes through before its handler.

That is, in this order: the key (``Authorization: Bearer`` and nothing else), the rate limit, a fault on demand, the method,
the body, a repeated ``Idempotency-Key``. The table is read from Lava's documents and SDKs 8.1 to 11.2; it shares nothing with
the client of this program, so that each can show the other's mistakes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from starlette.routing import Route

from proxy.emulator import bodies, checkout, customers, faults, keys, ledger, meters, plans, webhooks
from proxy.emulator.asking import Ask, speaks_old
from proxy.emulator.credentials import CredentialRefused, unauthorized
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply, lava_error
from proxy.emulator.faults import FaultPlan
from proxy.emulator.gateway import Door
from proxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from proxy.emulator.state import ReceivedRequest, World

Answer = Callable[[Ask], EmulatedReply]
"""Answers a call that was let in; raises ``CredentialRefused``."""

Methods = Mapping[str, Answer]


def _wallet(ask: Ask) -> EmulatedReply:
    return json_reply({"wallet_id": ask.world.wallet_id, "balance": f"{ask.world.wallet_balance:f}"})


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
    "requests": {"GET": ledger.listed, "POST": ledger.report},
    "requests/*": {"GET": ledger.retrieve},
    "usage": {"GET": ledger.usage},
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
"""Path below ``/v1/`` (``*`` is an id) -> what answers which method."""

_SINCE_9 = frozenset({"customers", "plans", "webhooks", "secret_keys", "spend_keys", "wallet_keys"})
_UNTIL_8 = frozenset({"connections", "subscription_configs"})
_BY_WALLET_KEY = frozenset({"spend_keys", "wallet_keys"})
_BODIES = frozenset({"POST", "PUT", "PATCH"})
_MINUTE_S = 60.0
_KEPT_ANSWERS = 1000


def routes(world: World) -> list[Route]:
    """The account API's part of the address space."""
    found = []
    for pattern, methods in RESOURCES.items():
        parts = [f"{{id{at}}}" if part == "*" else part for at, part in enumerate(pattern.split("/"))]
        found.append(Route(f"/v1/{'/'.join(parts)}", endpoint=Door(world, _handler(pattern, methods))))
    return found


def _handler(pattern: str, methods: Methods) -> Callable[[World, ReceivedRequest], tuple[EmulatedReply, FaultPlan]]:
    return lambda world, received: _serve(world, received, pattern, methods)


def _serve(world: World, received: ReceivedRequest, pattern: str, methods: Methods) -> tuple[EmulatedReply, FaultPlan]:
    resource = pattern.partition("/")[0]
    limits: list[tuple[str, str]] = []
    plan = FaultPlan()
    try:
        _exists(world, resource, received)
        key = _key(world, resource, received)
        limits = _counted(world, key)
        spoiled, plan = _fault(world, received)
        reply = spoiled or _answered(world, received, pattern, methods, key)
    except CredentialRefused as refused:
        reply = refused.reply
    # A copy: a repeated answer keeps the limits of its first time otherwise.
    return replace(reply, headers=[*reply.headers, *limits]), plan


def _exists(world: World, resource: str, received: ReceivedRequest) -> None:
    """Raises ``CredentialRefused`` (404) where the world's generation does not know the resource."""
    generation = world.generation
    if generation is None:
        return
    known = generation >= 9 if resource in _SINCE_9 else generation == 8 or resource not in _UNTIL_8
    if not known or (resource == "wallet_keys" and generation > 10):
        raise CredentialRefused(lava_error(404, "not_found", f"{received.method} {received.path} does not exist."))


def _key(world: World, resource: str, received: ReceivedRequest) -> str:
    """The checked key; raises ``CredentialRefused`` (401).

    Spend keys and wallet keys were managed with a wallet key in SDK 9 and 10 and are with the secret key in 11; without a
    generation both do.
    """
    scheme, _, key = (received.header("authorization") or "").strip().partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise unauthorized(
            "missing_credentials", "No credential was sent. Send Authorization: Bearer and a secret key."
        )
    received.credential, received.credential_place = key, "authorization"
    by_wallet_key = resource in _BY_WALLET_KEY and world.generation != 11
    found = world.wallet_key(key) if by_wallet_key else None
    if found is not None:
        found.last_used_at = world.clock()
        return key
    if by_wallet_key and world.generation is not None:
        raise unauthorized("invalid_wallet_key", "The wallet key is unknown or was revoked.")
    if not world.is_secret_key(key):
        raise unauthorized("invalid_secret_key", "The secret key is unknown or was revoked.")
    return key


def _counted(world: World, key: str) -> list[tuple[str, str]]:
    """Count a call of ``key`` and tell the limit in headers; raises ``CredentialRefused`` (429). Fixed windows of a minute."""
    if world.rest_limit is None:
        return []
    now = world.clock()
    start, count = world.rest_windows.get(key, (now, 0))
    if not start <= now < start + _MINUTE_S:
        start, count = now, 0
    world.rest_windows[key] = (start, count + 1)
    headers = [
        ("x-ratelimit-limit", str(world.rest_limit)),
        ("x-ratelimit-remaining", str(max(0, world.rest_limit - count - 1))),
        ("x-ratelimit-reset", str(int(start + _MINUTE_S))),
    ]
    if count >= world.rest_limit:
        reply = lava_error(429, "rate_limit_exceeded", "Too many requests for this key. Try again later.")
        wait = max(1, int(start + _MINUTE_S - now) + 1)
        reply.headers += [*headers, ("retry-after", str(wait))]
        raise CredentialRefused(reply)
    return headers


def _fault(world: World, received: ReceivedRequest) -> tuple[EmulatedReply | None, FaultPlan]:
    """The next of ``World.account_faults``, or what the request's own header asks for."""
    if world.account_faults:
        name = world.account_faults.pop(0)
        chosen = faults.by_names([name])
    else:
        chosen = faults.chosen(received)
    if isinstance(chosen, EmulatedReply):
        raise CredentialRefused(chosen)
    received.fault = ", ".join(chosen.names) or None
    call = EmulatedCall(world, received, received.method, "", {}, Dialect.OPENAI)
    return (chosen.reply(call) if chosen.reply else None), chosen.plan


def _answered(world: World, received: ReceivedRequest, pattern: str, methods: Methods, key: str) -> EmulatedReply:
    method = "GET" if received.method == "HEAD" else received.method
    answer = methods.get(method)
    if answer is None:
        reply = lava_error(405, "method_not_allowed", f"{received.method} is not served here.")
        reply.headers.append(("allow", ", ".join(methods)))
        raise CredentialRefused(reply)
    given = tuple(map(unquote, received.path.removeprefix("/v1/").split("/")))
    wanted = pattern.split("/")
    if len(given) != len(wanted):
        # An encoded slash inside an id: the router sees another path than the wire.
        raise CredentialRefused(lava_error(404, "not_found", f"{received.method} {received.path} does not exist."))
    document = _document(received) if method in _BODIES else None
    query = dict(parse_qsl(received.target.partition("?")[2], keep_blank_values=True))
    names = tuple(part for part, place in zip(given, wanted, strict=True) if place == "*")
    old = speaks_old(world, wanted[0], query, document)
    ask = Ask(world, received, query, names, old, document)
    repeat = received.header("idempotency-key") if method == "POST" else None
    return answer(ask) if repeat is None else _once(ask, answer, (key, repeat))


def _document(received: ReceivedRequest) -> object:
    try:
        body = bodies.decoded(received.body, ", ".join(received.header_values("content-encoding")))
    except bodies.UnreadableBody as cause:
        raise CredentialRefused(lava_error(400, "invalid_json", str(cause))) from cause
    document = bodies.document(body) if body else None
    try:
        # What cannot be written again (NaN, half a surrogate pair) would come back as something that is no JSON.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as cause:
        raise CredentialRefused(lava_error(400, "invalid_json", "The request body is not valid JSON.")) from cause
    return document


def _once(ask: Ask, answer: Answer, name: tuple[str, str]) -> EmulatedReply:
    """The answer of the first time, when this is a repetition; raises ``CredentialRefused`` (409) when it is another request.

    Lava says that POSTs take an ``Idempotency-Key``; the rest is this emulator's reading.
    """
    kept = ask.world.answered
    mark = hashlib.sha256(f"{ask.received.path}\n".encode() + ask.received.body).hexdigest()
    before = kept.get(name)
    if before is None:
        reply = answer(ask)
        kept[name] = (mark, reply)
        while len(kept) > _KEPT_ANSWERS:
            del kept[next(iter(kept))]
        return reply
    if before[0] != mark:
        message = "This Idempotency-Key was used for another request."
        raise CredentialRefused(lava_error(409, "idempotency_key_reused", message))
    return before[1]
