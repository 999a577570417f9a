"""Lava's gateway: forward, rewrite, the native endpoints and the model list."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, unquote_plus

from proxy.emulator import anthropic, bodies, credentials, faults, google, openai, providers, rewrite, webhooks
from proxy.emulator.endpoint import Handler, query_of, wrong_method
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, RequestRefusedError, json_reply, refusal
from proxy.emulator.records import StoredRequest, StoredSpendKey
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.emulator.credentials import EmulatedCaller
    from proxy.emulator.exchange import Cost
    from proxy.emulator.providers import Answer
    from proxy.emulator.state import ReceivedRequest, World

# A call that costs money: credential, body, allowance, fault or provider, charge.


def _admit(world: World, received: ReceivedRequest) -> EmulatedCaller:
    query = query_of(received)
    credentials.note(received, query)
    caller = credentials.check(world, received)
    received.payer = caller.payer
    received.metadata = _metadata(received.header("x-lava-metadata") or query.get("metadata"))
    return caller


def _metadata(text: str | None) -> dict[str, str] | None:
    """Return the pairs of ``x-lava-metadata``; the limits are those of Lava's reference."""
    if text is None:
        return None
    pairs = bodies.document(text.encode("latin-1", "replace"))
    if not isinstance(pairs, dict) or len(pairs) > 100:
        raise refusal(400, "invalid_metadata", "x-lava-metadata is not a JSON object of up to 100 pairs.")
    for key, value in pairs.items():
        if not isinstance(value, str) or not 1 <= len(value) <= 255 or not re.fullmatch(r"[A-Za-z0-9_]{1,255}", key):
            raise refusal(400, "invalid_metadata", f"x-lava-metadata has a bad pair: {json.dumps(key)}.")
    return pairs


def _call(world: World, received: ReceivedRequest, rest: str, query: str, dialect: Dialect) -> EmulatedCall:
    """Return the request as a provider sees it; raise ``RequestRefusedError`` for an unreadable body."""
    call = EmulatedCall.of(world, received, dialect, rest, dict(parse_qsl(query, keep_blank_values=True)))
    try:
        body = bodies.decoded(received.body, ", ".join(received.header_values("content-encoding")))
    except bodies.UnreadableBodyError as error:
        raise RequestRefusedError(providers.ERRORS[dialect](400, str(error))) from error
    call.form = bodies.form(body, received.header("content-type") or "")
    if body and not call.form:
        call.document = bodies.document(body)
    received.model = _model(call)
    return call


def _model(call: EmulatedCall) -> str | None:
    """Return the model's name from Google's path, the JSON body or the form."""
    if call.dialect is Dialect.GOOGLE:
        named = re.match("(?:models|tunedModels)/([^/:]+(?:/[^/:]+)*):", call.rest)
        return unquote(named[1]) if named else None
    name = call.document.get("model") if isinstance(call.document, dict) else None
    name = name or next((part.text for part in call.form if part.name == "model"), None)
    return name if isinstance(name, str) else None


def _provide(
    world: World, caller: EmulatedCaller, call: EmulatedCall, answer: Answer, provider: str, endpoint: str
) -> EmulatedReply:
    """Return the reply of the provider or of a fault; charge for a good one, and add the record."""
    received = call.received
    credentials.check_allowance(caller.spend_key, received.model, provider)
    chosen = faults.chosen(received)
    record = StoredRequest(received.request_id, "error", provider, f"{call.method} {endpoint}", call.now)
    record.customer_id = caller.connection.connection_id if caller.connection else None
    record.meter, record.model, record.metadata = caller.meter, received.model, received.metadata or {}
    record.provider_key_type = "unmanaged" if caller.provider_key else "managed"
    biller = world.behaviour.biller
    record.listed_at = call.now + biller.delay_seconds
    record.final_at = record.listed_at + biller.pending_seconds
    world.billing.add(record, biller.keep)
    if chosen.reply is not None:
        reply = chosen.reply(call)
    elif caller.provider_key in world.keys.rejected_provider_keys:
        reply = providers.ERRORS[call.dialect](401, "The provider key is not valid.")
    elif caller.provider_key in world.keys.unfunded_provider_keys:
        reply = providers.ERRORS[call.dialect](402, "The provider account has no credit left.")
    else:
        reply = answer(call)
    if reply.status < 400:
        # Charged and recorded before the first byte: a client that has read the response finds both.
        record.response_id = _response_id(reply)
        outcome = chosen.plan.record or biller.next_outcome()
        if outcome != "unmetered":
            _bill(world, caller, record, reply.cost, received)
        if outcome == "doubled":
            second = replace(record, request_id="req_" + secrets.token_hex(12))
            with suppress(RequestRefusedError):
                _bill(world, caller, second, reply.cost, received)
                world.billing.add(second, biller.keep)
        record.lost = outcome == "lost"
    reply.plan = chosen.plan
    return reply


def _bill(world: World, caller: EmulatedCaller, record: StoredRequest, cost: Cost, received: ReceivedRequest) -> None:
    """Charge the payer for a request and complete its record; raise ``RequestRefusedError`` (402)."""
    prices = world.behaviour.biller.prices(record.model, record.created_at)
    input_cost, output_cost = prices.cost(cost.used)
    cost = replace(cost, amount=cost.amount + input_cost + output_cost)
    record.charge = caller.owed(cost)
    record.paid = caller.charge(world, cost)
    received.charged += record.paid
    record.status, record.used, record.cost, record.output_cost = "completed", cost.used, cost.amount, output_cost
    if record.paid and caller.payer == "customer" and caller.connection is not None:
        webhooks.send_event(world, "wallet.balance.updated", caller.connection)


def _response_id(reply: EmulatedReply) -> str | None:
    """Return the provider's own id of the response, if it is near the beginning."""
    named = re.search(rb'"(?:id|responseId)":"([^"]{1,200})"', b"".join(reply.chunks[:2])[:65536])
    return named[1].decode("utf-8", "replace") if named else None


# Forward and rewrite ---


def _unsupported(url: str) -> RequestRefusedError:
    return refusal(400, "forward_endpoint_not_supported", f"The endpoint {url[:200]} is not supported.")


def _forward(world: World, received: ReceivedRequest) -> EmulatedReply:
    """Answer ``/v1/forward?u=<provider URL>``; as in Lava's first sample, a path behind ``forward`` is ignored."""
    caller = _admit(world, received)
    items = received.target.partition("?")[2].split("&")
    # Not from the decoded query: the SDK's own addresses carry u unencoded, with "=" and "?" inside.
    url = next((unquote_plus(item[2:]) for item in items if item.startswith("u=")), None)
    if not url:
        raise refusal(400, "missing_url", "The query parameter u, the provider's URL, is missing.")
    received.url = url
    target = providers.find(url, world.behaviour.extra_hosts)
    if target is None:
        raise _unsupported(url)
    call = _call(world, received, target.rest, target.query, target.dialect)
    return _provide(world, caller, call, target.answer, target.provider, url)


_REWRITTEN = {"chat/completions": Dialect.OPENAI, "messages": Dialect.ANTHROPIC}


def _rewrite(world: World, received: ReceivedRequest) -> EmulatedReply:
    """Answer ``/v1/rewrite/<client format>/<provider URL>``, the URL raw or encoded, with or without its scheme."""
    caller = _admit(world, received)
    if received.method != "POST":
        raise refusal(405, "method_not_allowed", "Only POST is rewritten.")
    format_name, _, url = received.path.removeprefix("/v1/rewrite/").partition("/")
    if "%3a%2f%2f" in url.lower():
        url = unquote(url)
    # Some URL libraries merge the double slash of a path.
    url = re.sub(r"^(?:(https?):/+)?", lambda match: f"{match[1] or 'https'}://", url, count=1)
    received.url = url
    if format_name not in rewrite.SUFFIXES:
        raise refusal(400, "rewrite_format_not_supported", f"The format {format_name!r} is not emulated.")
    client = Dialect(format_name)
    target = _rewrite_target(world, client, url)
    if target is None or target.rest not in _REWRITTEN:
        raise _unsupported(url)
    answer = partial(_translated, client, _REWRITTEN[target.rest])
    return _provide(world, caller, _call(world, received, target.rest, "", client), answer, target.provider, url)


def _rewrite_target(world: World, client: Dialect, url: str) -> providers.ProviderTarget | None:
    """Return the target without what a client of the format appends, unless the target itself ends so."""
    for suffix in rewrite.SUFFIXES[client]:
        if url.endswith(suffix):
            target = providers.find(url.removesuffix(suffix), world.behaviour.extra_hosts)
            if target is not None and target.rest in _REWRITTEN:
                return target
    return providers.find(url, world.behaviour.extra_hosts)


def _translated(client: Dialect, provider: Dialect, call: EmulatedCall) -> EmulatedReply:
    if client is provider:
        return anthropic.respond(call) if client is Dialect.ANTHROPIC else openai.answer(call)
    body = call.document
    if not isinstance(body, dict):
        return providers.ERRORS[client](400, "The request body is not valid JSON.")
    if client is Dialect.OPENAI:
        call.document, call.rest = rewrite.request_for_anthropic(body), "messages"
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return rewrite.reply_for_openai(anthropic.respond(call), call.now, with_usage=with_usage)
    call.document, call.rest = rewrite.request_for_openai(body), "chat/completions"
    return rewrite.reply_for_anthropic(openai.answer(call))


# Lava's own endpoints ---


def _native(rest: str, dialect: Dialect, answer: Answer, world: World, received: ReceivedRequest) -> EmulatedReply:
    """Answer one of Lava's own endpoints; it serves every model in its own dialect."""
    caller = _admit(world, received)
    if received.method != "POST":
        return wrong_method(received)
    key = caller.spend_key
    if key is not None and key.shape != dialect.value:
        message = f"This spend key takes requests of the shape {key.shape}, not {dialect.value}."
        raise refusal(403, "request_shape_not_allowed", message)
    call = _call(world, received, rest, "", dialect)
    provider = _owner(received.model, dialect.value)
    return _provide(world, caller, call, answer, provider, f"{BUILTIN[provider].base_url}/{rest}")


def _owner(model: str | None, default: str) -> str:
    """Return the provider of a model."""
    first, _, name = (model or "").rpartition("/")
    if first in BUILTIN:
        return first
    return next((owner for owner, names in _MODELS.items() if name in names and owner in BUILTIN), default)


_MODELS: Mapping[str, tuple[str, ...]] = {
    "openai": openai.MODELS,
    "anthropic": anthropic.MODELS,
    "google": google.MODELS,
    "groq": ("llama-3.1-8b-instant",),
    "deepseek": ("deepseek-chat",),
    # Lava lists its API services beside the models.
    "serper": ("serper-search",),
}


def _models(world: World, received: ReceivedRequest) -> EmulatedReply:
    """Answer the model list, which needs no credential; a spend key gets only its models."""
    if received.method not in ("GET", "HEAD"):
        return wrong_method(received)
    credentials.note(received, query_of(received))
    key = world.keys.spend_key(received.credential or "")
    data: list[dict[str, Any]] = [
        {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": owner}
        for owner, names in _MODELS.items()
        for name in names
        if _listed(key, name, owner)
    ]
    call = _call(world, received, "", "", Dialect.OPENAI)
    chosen = faults.chosen(received)
    reply = chosen.reply(call) if chosen.reply else json_reply({"object": "list", "data": data})
    reply.plan = chosen.plan
    return reply


def _listed(key: StoredSpendKey | None, name: str, owner: str) -> bool:
    try:
        credentials.check_allowance(key, name, owner)
    except RequestRefusedError:
        return False
    return True


HANDLERS: Mapping[str, Handler] = {
    "/v1/forward": _forward,
    "/v1/forward/{rest:path}": _forward,
    "/v1/rewrite/{rest:path}": _rewrite,
    "/v1/chat/completions": partial(_native, "chat/completions", Dialect.OPENAI, openai.answer),
    "/v1/messages": partial(_native, "messages", Dialect.ANTHROPIC, anthropic.respond),
    "/v1/models": _models,
}
