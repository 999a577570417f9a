"""``GET /v1/models`` and ``GET /v1/models/<name>``: the destination's list and the aliases, in the client's dialect.

Tools request the list before anything else, some at every start. While the destination cannot be reached they get the last
good list, or the aliases alone, marked as incomplete. A refusal is relayed as an error: the key is wrong then, not the network.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.gateway import routing
from proxy.gateway.access import digest
from proxy.gateway.active_request import Phase
from proxy.gateway.dispatch import unreachable
from proxy.gateway.relay import explain
from proxy.protocol import body as bodies
from proxy.protocol import errors
from proxy.protocol.dialects import Dialect, compact
from proxy.protocol.errors import ErrorReply, ProxyError
from proxy.protocol.headers import http_date
from proxy.protocol.record import Outcome
from proxy.protocol.redaction import Redactor
from proxy.protocol.tasks import in_task
from proxy.upstream import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.destinations import Destination, ModelsQuery
    from proxy.gateway.gateway import Gateway
    from proxy.gateway.routing import Endpoint
    from proxy.gateway.template import Template
    from proxy.protocol.record import Record

INCOMPLETE = (b"x-lava-proxy-incomplete", b"models")
_MAX_BYTES = 16 * 1024 * 1024
_MAX_LISTS = 32
_LARGEST_KEPT = 4 * 1024 * 1024
_LIST_TIMEOUT_SECONDS = 15.0
"""Limit for the list. It is far below the ten minutes of a completion, because a list of models is quick."""
_EPOCH = "1970-01-01T00:00:00Z"

Entries = list[dict[str, Any]]


async def answer(gateway: Gateway, active: ActiveRequest, template: Template) -> bool:
    """Respond with the list and the aliases; False for a model that only its provider may know. Raises ``ProxyError``."""
    config, record = active.config, active.record
    active.wait(Phase.CLIENT)  # the query has its own limit
    try:
        reply = await in_task(
            gateway.models.answer(config, template.endpoint, template.project, record, template.query)
        )
    except UpstreamError as error:
        record.upstream_error = error.detail
        raise unreachable(error, config.destination) from error.with_traceback(None)
    except ProxyError as fault:
        await explain(active, fault, config.destination, template.project)
        raise
    if reply is None:
        return False
    active.respond(reply.status, reply.headers, reply.body)
    active.settle(Outcome.OK)
    return True


class ModelList:
    """Serves both addresses, and stores the last good list of each credential at each address."""

    def __init__(self) -> None:
        self._lists: OrderedDict[tuple[object, ...], Entries] = OrderedDict()

    async def answer(
        self, config: ActiveConfig, endpoint: Endpoint, project: str, record: Record, query: bytes = b""
    ) -> ErrorReply | None:
        """Return the list, or the one model that ``endpoint`` names.

        ``None`` for a model that is in no list but may be known to its provider (a fine-tuned one, for example). Raises
        ``ProxyError`` if the destination refuses, or if it cannot be reached and no earlier list is known.
        """
        table, elsewhere = config.table, True
        aliases = list(table.aliases)
        record.provider = config.destination.provider
        if endpoint.model is not None:
            if endpoint.model in table.aliases:
                return _reply(_one(_own(endpoint.model), endpoint.model, endpoint.dialect), project, record)
            try:
                routing.route("GET", endpoint, b"", project, None, table)
            except ProxyError as fault:
                if fault.code != "crossing_unsupported":
                    raise
                elsewhere = False
        needed = not aliases and (endpoint.model is None or not elsewhere)
        entries, complete = await self._entries(config, project, record, needed=needed)
        entries = [*map(_own, aliases), *(entry for entry in entries if entry["id"] not in table.aliases)]
        if endpoint.model is None:
            document = _all(entries, endpoint.dialect)
            if _asked_by_codex(query):
                document.setdefault("models", [])
            return _reply(document, project, record, complete=complete)
        found = _find(endpoint.model, entries, table)
        if found is not None:
            return _reply(_one(found, endpoint.model, endpoint.dialect), project, record, complete=complete)
        if not elsewhere:
            raise _unlisted(config.destination, endpoint.model, [entry["id"] for entry in entries])
        record.provider = record.lava_request_id = None
        return None

    async def _entries(
        self, config: ActiveConfig, project_name: str, record: Record, *, needed: bool
    ) -> tuple[Entries, bool]:
        """Return the list, and whether it is complete: if there is none, the last good one, or none if not ``needed``."""
        destination = config.destination
        query = destination.models_query(project_name)
        secret = query.secret
        # A list belongs to one credential: the models that a spend key may use must not show in another project.
        key = (
            query.outgoing.origin,
            query.outgoing.target,
            digest(secret.reveal().encode("utf-8")) if secret is not None else None,
        )
        try:
            async with asyncio.timeout(min(_LIST_TIMEOUT_SECONDS, config.deadlines.first_byte)):
                content = await _ask(config, query, record)
            entries = _parsed(destination, content)
        except (ProxyError, UpstreamError, TimeoutError) as trouble:
            if isinstance(trouble, ProxyError) and not trouble.code.startswith("upstream_") and trouble.status < 500:
                raise
            kept = self._lists.get(key)
            if kept is None and needed:
                if isinstance(trouble, TimeoutError):
                    raise _too_late(destination) from None
                raise
            record.upstream_error = trouble.detail if isinstance(trouble, UpstreamError) else str(trouble) or "timeout"
            return kept or [], False
        if len(content) <= _LARGEST_KEPT:
            self._lists[key] = entries
            self._lists.move_to_end(key)
            if len(self._lists) > _MAX_LISTS:
                self._lists.popitem(last=False)
        return entries, True


async def _ask(config: ActiveConfig, query: ModelsQuery, record: Record) -> bytes:
    """Return the body of the list. Raises ``ProxyError`` for a refusal or an unusable response, and ``UpstreamError``."""
    opened = await config.engine.open(query.outgoing)
    try:
        record.first_byte_s = monotonic() - record.started
        pieces, size = [], 0
        while piece := await opened.read():
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_BYTES:
                raise _not_a_list(config.destination, opened.status)
        content = b"".join(pieces)
    finally:
        opened.close()
    lookup = dict(reversed(opened.headers))
    encoding = lookup.get(b"content-encoding")
    if encoding is not None:
        content = bodies.decode(content, encoding, _MAX_BYTES) or b""
    request_id = lookup.get(b"x-lava-request-id")
    record.lava_request_id = request_id.decode("ascii", "replace")[:200] if request_id is not None else None
    if 300 <= opened.status < 400:
        raise errors.redirected(opened.status)
    if opened.status != 200:
        mask = Redactor([query.secret.reveal()] if query.secret is not None else []).data
        masked = [(name, mask(value)) for name, value in opened.headers]
        fault = errors.from_answer(
            opened.status, masked, mask(content), query.payment, lava_request_id=record.lava_request_id
        )
        raise fault or _not_a_list(config.destination, opened.status)
    return content


def _reply(document: dict[str, Any], project: str, record: Record, *, complete: bool = True) -> ErrorReply:
    record.status = 200
    body = compact(document)
    record.bytes_out = len(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"date", http_date()),
        *errors.GUARDED,
        (b"x-lava-proxy-request-id", record.request_id.encode("ascii")),
        (b"x-lava-proxy-project", project.encode("ascii")),
        (b"x-lava-proxy-provider", (record.provider or "").encode("ascii")),
    ]
    if complete and record.lava_request_id is not None:  # else the id belongs to a response that was not used
        headers.append((b"x-lava-request-id", record.lava_request_id.encode("ascii", "replace")))
    if not complete:
        headers.append(INCOMPLETE)
    return ErrorReply(200, headers, body)


def _parsed(destination: Destination, content: bytes) -> Entries:
    try:
        document = json.loads(content)
        entries = document["data"] if isinstance(document, dict) else document
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _not_a_list(destination, 200) from None


def _own(alias: str) -> dict[str, Any]:
    return {"id": alias, "object": "model", "created": 0, "owned_by": "lava-proxy"}


def _find(name: str, entries: Entries, table: routing.RoutingTable) -> dict[str, Any] | None:
    """Return the entry with this name, or with the name after a provider's prefix."""
    by_name = {entry["id"]: entry for entry in reversed(entries)}
    prefix, _, bare = name.partition("/")
    return by_name.get(name) or (by_name.get(bare) if table.provider(prefix) is not None else None)


def _all(entries: Entries, dialect: Dialect) -> dict[str, Any]:
    """Return OpenAI's list, or one page of Anthropic's or Google's list with every entry."""
    shown = [_one(entry, entry["id"], dialect) for entry in entries]
    if dialect is Dialect.GOOGLE:
        return {"models": shown}
    if dialect is not Dialect.ANTHROPIC:
        return {"object": "list", "data": shown}
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"data": shown, "has_more": False, "first_id": first, "last_id": last}


def _asked_by_codex(query: bytes) -> bool:
    """Whether the list is read by Codex, which names its version and does not accept a list without ``models``.

    It gets an empty one. An entry there needs ``base_instructions``, and Codex takes them, and the entry's settings for its
    tools, in place of its own, also for every model whose name begins with that entry's. With none it keeps what it knows.
    """
    return any(item.partition(b"=")[0] == b"client_version" for item in query.split(b"&"))


def _one(entry: dict[str, Any], name: str, dialect: Dialect) -> dict[str, Any]:
    """Return one model, with the name that the client requested."""
    if dialect is Dialect.GOOGLE:
        return {"name": f"models/{name}", "displayName": entry["id"]}
    if dialect is not Dialect.ANTHROPIC:
        return {**entry, "id": name}
    return {
        "type": "model",
        "id": name,
        "display_name": entry.get("display_name") or entry.get("name") or entry["id"],
        "created_at": _moment(entry.get("created")),
    }


def _unlisted(destination: Destination, name: str, known: Iterable[str]) -> ProxyError:
    close = routing.nearest(name, known)
    meant = f'Did you mean "{close}"?' if close else "GET /v1/models lists the names there are."
    return ProxyError(
        "path_not_found", f'There is no model "{name[:200]}" in {destination.name}\'s list. {meant}', meant
    )


def _too_late(destination: Destination) -> ProxyError:
    return ProxyError(
        "upstream_timeout",
        f"{destination.name} did not give its list of models in time.",
        f"Check the network and {destination.address_setting}, and try again.",
        retry=True,
    )


def _moment(seconds: object) -> str:
    """Return a UNIX time as RFC 3339; the epoch if it is unknown, as Anthropic documents."""
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < 1 << 33:
        return _EPOCH
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _not_a_list(destination: Destination, status: int) -> ProxyError:
    return ProxyError(
        "upstream_protocol",
        f"{destination.name}'s list of models could not be read (status {status}).",
        f"Check {destination.address_setting}; other requests may still work.",
        details={"upstream_status": status},
    )
