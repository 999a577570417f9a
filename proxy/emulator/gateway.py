"""Lava's gateway: forward, rewrite, the native endpoints and the model list, as ASGI routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, unquote_plus

from starlette.routing import Route

from proxy.emulator import anthropic, bodies, credentials, faults, google, openai, outbox, players, rewriting
from proxy.emulator.credentials import CredentialRefused, EmulatedCaller
from proxy.emulator.delivery import CONNECTION, DeliveryConnection, deliver, read_body
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply, lava_error
from proxy.emulator.faults import Chosen, FaultPlan
from proxy.emulator.records import Entry, StoredSpendKey
from proxy.emulator.state import ReceivedRequest, World
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Handler = Callable[[World, ReceivedRequest], tuple[EmulatedReply, FaultPlan]]
"""Decides the answer to a request whose body has come; raises ``CredentialRefused``."""


def routes(world: World) -> list[Route]:
    """The gateway's part of the address space."""
    table: list[tuple[str, Handler]] = [
        ("/v1/forward", _forward),
        ("/v1/forward/{rest:path}", _forward),
        ("/v1/rewrite/{rest:path}", _rewrite),
        ("/v1/chat/completions", _chat_completions),
        ("/v1/messages", _messages),
        ("/v1/models", _models),
    ]
    return [Route(path, endpoint=Door(world, handler)) for path, handler in table]


class Door:
    """One ASGI endpoint: records the request, reads it, lets ``handler`` decide, delivers the answer."""

    def __init__(self, world: World, handler: Handler) -> None:
        self._world = world
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: DeliveryConnection | None = (scope.get("extensions") or {}).get(CONNECTION)
        target, headers = _head(scope, connection)
        received = self._world.remember(scope["method"], target, headers)
        whole = await read_body(receive, received, self._world.max_body_bytes)
        if received.cancelled:
            self._world.touch()
            return
        if whole:
            reply, plan = self._decide(received)
        else:
            reply, plan = lava_error(413, "request_too_large", "The request body is too large."), FaultPlan()
            reply.headers.append(("connection", "close"))
        await deliver(self._world, received, reply, plan, receive, send, connection)

    def _decide(self, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
        try:
            query = dict(parse_qsl(received.target.partition("?")[2], keep_blank_values=True))
            return self._handler(credentials.environment(self._world, received, query), received)
        except CredentialRefused as refused:
            return refused.reply, FaultPlan()
        except Exception as fault:  # noqa: BLE001 - a fault of the emulator's own shows in its answer, not in a log
            what = f"The emulator failed: {type(fault).__name__}: {fault}"
            return lava_error(500, "emulator_failed", what), FaultPlan()


def _head(scope: Scope, connection: DeliveryConnection | None) -> tuple[str, list[tuple[bytes, bytes]]]:
    if connection is not None:
        return connection.target.decode("latin-1"), list(connection.headers)
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return target.decode("latin-1"), list(scope["headers"])


def not_found(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    """Any address that Lava does not have."""
    return lava_error(404, "not_found", f"{received.method} {received.path} does not exist."), FaultPlan()


# The credential, the fault, the player, the charge: in this order for every call that costs money


def _admit(world: World, received: ReceivedRequest) -> tuple[EmulatedCaller, dict[str, str]]:
    """The checked caller and Lava's own query items."""
    query = dict(parse_qsl(received.target.partition("?")[2], keep_blank_values=True))
    credentials.present(received, query)
    caller = credentials.check(world, received)
    received.payer = caller.payer
    received.metadata = _metadata(received.header("x-lava-metadata") or query.get("metadata"))
    return caller, query


def _metadata(given: str | None) -> dict[str, str] | None:
    """Pairs for Lava's request log; the limits are those of its reference."""
    if given is None:
        return None
    pairs = bodies.document(given.encode("latin-1", "replace"))
    if not isinstance(pairs, dict) or len(pairs) > 100:
        raise CredentialRefused(
            lava_error(400, "invalid_metadata", "x-lava-metadata is not a JSON object of up to 100 pairs.")
        )
    for key, value in pairs.items():
        if not isinstance(value, str) or not 1 <= len(value) <= 255 or not re.fullmatch(r"[A-Za-z0-9_]{1,255}", key):
            raise CredentialRefused(
                lava_error(400, "invalid_metadata", f"x-lava-metadata has a bad pair: {json.dumps(key)}.")
            )
    return pairs


def _settle(
    world: World,
    caller: EmulatedCaller,
    call: EmulatedCall,
    play: Callable[[EmulatedCall], EmulatedReply],
    chosen: Chosen,
    provider: str,
    endpoint: str,
) -> tuple[EmulatedReply, FaultPlan]:
    """The provider's answer or the fault's, paid for when it is a good one, and written into the ledger."""
    received = call.received
    received.fault = ", ".join(chosen.names) or None
    entry = Entry(received.request_id, "error", provider, f"{call.method} {endpoint}", world.clock())
    entry.customer_id = caller.connection.connection_id if caller.connection else None
    entry.meter, entry.model, entry.metadata = caller.meter, received.model, received.metadata or {}
    entry.provider_key_type = "unmanaged" if caller.provider_key else "managed"
    # Written first: a client that has read its answer finds the line.
    world.write(entry)
    reply = _answer(world, caller, call, play, chosen)
    if reply.status < 400:
        entry.charge = caller.owed(reply.cost)
        # Charged before the first byte, so that a client that has read its answer finds the balance changed.
        received.charged = entry.paid = caller.charge(world, reply.cost)
        entry.status, entry.used = "completed", reply.cost.used
        entry.cost = reply.cost.amount
        entry.response_id = _response_id(reply)
        if received.charged and caller.payer == "customer" and caller.connection is not None:
            outbox.announce(world, "wallet.balance.updated", caller.connection)
    return reply, chosen.plan


def _answer(
    world: World,
    caller: EmulatedCaller,
    call: EmulatedCall,
    play: Callable[[EmulatedCall], EmulatedReply],
    chosen: Chosen,
) -> EmulatedReply:
    if chosen.reply is not None:
        return chosen.reply(call)
    own = caller.provider_key
    if own in world.rejected_provider_keys:
        return players.ERRORS[call.dialect](401, "The provider key is not valid.")
    if own in world.unfunded_provider_keys:
        return players.ERRORS[call.dialect](402, "The provider account has no credit left.")
    return play(call)


def _response_id(reply: EmulatedReply) -> str | None:
    """The provider's own id for its answer, if the beginning of it tells one."""
    named = re.search(rb'"(?:id|responseId)":"([^"]{1,200})"', b"".join(reply.chunks[:2])[:65536])
    return named[1].decode("utf-8", "replace") if named else None


def _call(
    world: World, received: ReceivedRequest, rest: str, query: str, dialect: Dialect
) -> tuple[EmulatedCall, Chosen]:
    """The request as a provider sees it, and the faults it asks for; raises ``CredentialRefused``."""
    call = EmulatedCall(world, received, received.method, rest, dict(parse_qsl(query, keep_blank_values=True)), dialect)
    try:
        body = bodies.decoded(received.body, ", ".join(received.header_values("content-encoding")))
    except bodies.UnreadableBody as cause:
        raise CredentialRefused(players.ERRORS[dialect](400, str(cause))) from cause
    kind = received.header("content-type") or ""
    call.form = bodies.form(body, kind)
    if body and not call.form:
        call.document = bodies.document(body)
    received.model = _model(call)
    chosen = faults.chosen(received)
    if isinstance(chosen, EmulatedReply):
        raise CredentialRefused(chosen)
    return call, chosen


def _model(call: EmulatedCall) -> str | None:
    """The model's name: from Google's path, the JSON body or the form."""
    if call.dialect is Dialect.GOOGLE:
        named = re.match("(?:models|tunedModels)/([^/:]+(?:/[^/:]+)*):", call.rest)
        return unquote(named[1]) if named else None
    name = call.document.get("model") if isinstance(call.document, dict) else None
    name = name or next((part.text for part in call.form if part.name == "model"), None)
    return name if isinstance(name, str) else None


# The addresses ---


def _unsupported(url: str) -> CredentialRefused:
    return CredentialRefused(
        lava_error(400, "forward_endpoint_not_supported", f"The endpoint {url[:200]} is not supported.")
    )


def _forward(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    """``/v1/forward?u=<provider URL>``; a path segment behind ``forward`` is ignored, as in Lava's first
    sample.
    """
    caller, _ = _admit(world, received)
    items = received.target.partition("?")[2].split("&")
    # Not from the decoded query: the SDK's own addresses carry u unencoded, with "=" and "?" inside.
    url = next((unquote_plus(item[2:]) for item in items if item.startswith("u=")), None)
    if not url:
        raise CredentialRefused(
            lava_error(400, "missing_url", "The query parameter u, the provider's URL, is missing.")
        )
    received.url = url
    target = players.find(url, world.extra_hosts)
    if target is None:
        raise _unsupported(url)
    call, chosen = _call(world, received, target.rest, target.query, target.dialect)
    credentials.within_allowance(caller.spend_key, received.model, target.provider)
    return _settle(world, caller, call, target.player, chosen, target.provider, url)


def _rewrite(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    """``/v1/rewrite/<client format>/<provider URL>``, the URL raw or encoded, with or without its scheme."""
    caller, _ = _admit(world, received)
    if received.method != "POST":
        raise CredentialRefused(lava_error(405, "method_not_allowed", "Only POST is rewritten."))
    format_name, _, url = received.path.removeprefix("/v1/rewrite/").partition("/")
    if "%3a%2f%2f" in url.lower():
        url = unquote(url)
    # Some URL libraries fold the double slash of a path.
    url = re.sub(r"^(?:(https?):/+)?", lambda match: f"{match[1] or 'https'}://", url, count=1)
    received.url = url
    if format_name not in rewriting.SUFFIXES:
        raise CredentialRefused(
            lava_error(400, "rewrite_format_not_supported", f"The format {format_name!r} is not emulated.")
        )
    client = Dialect(format_name)
    target = _rewrite_target(world, client, url)
    if target is None or target.rest not in _CROSSING:
        raise _unsupported(url)
    call, chosen = _call(world, received, target.rest, "", client)
    play = _translated(client, _CROSSING[target.rest])
    credentials.within_allowance(caller.spend_key, received.model, target.provider)
    return _settle(world, caller, call, play, chosen, target.provider, url)


_CROSSING = {"chat/completions": Dialect.OPENAI, "messages": Dialect.ANTHROPIC}


def _rewrite_target(world: World, client: Dialect, url: str) -> players.PlayerTarget | None:
    """The target without what a client of the format appends to it. A target that ends so by itself is left
    as it is.
    """
    for suffix in rewriting.SUFFIXES[client]:
        if url.endswith(suffix):
            target = players.find(url.removesuffix(suffix), world.extra_hosts)
            if target is not None and target.rest in _CROSSING:
                return target
    return players.find(url, world.extra_hosts)


def _translated(client: Dialect, provider: Dialect) -> Callable[[EmulatedCall], EmulatedReply]:
    if client is provider:
        return anthropic.play if client is Dialect.ANTHROPIC else openai.answer

    def play(call: EmulatedCall) -> EmulatedReply:
        body = call.document
        if not isinstance(body, dict):
            return players.ERRORS[client](400, "The request body is not valid JSON.")
        if client is Dialect.OPENAI:
            call.document, call.rest = rewriting.request_for_anthropic(body), "messages"
            options = body.get("stream_options")
            counted = isinstance(options, dict) and bool(options.get("include_usage"))
            return rewriting.reply_for_openai(anthropic.play(call), call.world.clock(), counted=counted)
        call.document, call.rest = rewriting.request_for_openai(body), "chat/completions"
        return rewriting.reply_for_anthropic(openai.answer(call))

    return play


def _chat_completions(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    return _native(world, received, "chat/completions", Dialect.OPENAI, openai.answer)


def _messages(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    return _native(world, received, "messages", Dialect.ANTHROPIC, anthropic.play)


def _native(
    world: World, received: ReceivedRequest, rest: str, dialect: Dialect, play: Callable[[EmulatedCall], EmulatedReply]
) -> tuple[EmulatedReply, FaultPlan]:
    """Lava's own endpoints, where spend keys are at home; every model is served in the endpoint's shape."""
    caller, _ = _admit(world, received)
    if received.method != "POST":
        raise CredentialRefused(lava_error(405, "method_not_allowed", f"{received.method} is not served here."))
    key = caller.spend_key
    if key is not None and key.shape != dialect.value:
        message = f"This spend key takes requests of the shape {key.shape}, not {dialect.value}."
        raise CredentialRefused(lava_error(403, "request_shape_not_allowed", message))
    call, chosen = _call(world, received, rest, "", dialect)
    provider = _owner(received.model, dialect.value)
    credentials.within_allowance(key, received.model, provider)
    return _settle(world, caller, call, play, chosen, provider, f"{BUILTIN[provider].base_url}/{rest}")


def _owner(model: str | None, otherwise: str) -> str:
    """The provider that a model's name leads to."""
    first, _, name = (model or "").rpartition("/")
    if first in BUILTIN:
        return first
    return next((owner for owner, names in _OWNERS.items() if name in names and owner in BUILTIN), otherwise)


_OWNERS: Mapping[str, tuple[str, ...]] = {
    "openai": openai.MODELS,
    "anthropic": anthropic.MODELS,
    "google": google.MODELS,
    "groq": ("llama-3.1-8b-instant",),
    "deepseek": ("deepseek-chat",),
    # Lava lists its API services beside the models.
    "serper": ("serper-search",),
}


def _models(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    """Needs no credential; a spend key narrows the list to what it may use."""
    if received.method not in ("GET", "HEAD"):
        raise CredentialRefused(lava_error(405, "method_not_allowed", f"{received.method} is not served here."))
    query = dict(parse_qsl(received.target.partition("?")[2], keep_blank_values=True))
    credentials.present(received, query)
    record = world.spend_key(received.credential or "")
    data: list[dict[str, Any]] = [
        {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": owner}
        for owner, names in _OWNERS.items()
        for name in names
        if _listed(record, name, owner)
    ]
    call, chosen = _call(world, received, "", "", Dialect.OPENAI)
    received.fault = ", ".join(chosen.names) or None
    return chosen.reply(call) if chosen.reply else json_reply({"object": "list", "data": data}), chosen.plan


def _listed(key: StoredSpendKey | None, name: str, owner: str) -> bool:
    try:
        credentials.within_allowance(key, name, owner)
    except CredentialRefused:
        return False
    return True
