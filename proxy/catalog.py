"""``GET /v1/models`` and ``GET /v1/models/<name>``: Lava's own list and the configured aliases, in the shape that the client
reads.

Tools ask for the list before anything else, some at every start: while Lava cannot be reached they get the last good list,
or the aliases alone, marked as incomplete. A refusal by Lava is told as it is: then the key is wrong, not the network.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy import body as bodies
from proxy import errors, routing
from proxy.dialects import Dialect, compact
from proxy.errors import Fault, Payment, Reply
from proxy.generation import digest
from proxy.upstream import Outgoing, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.generation import Generation, Lava
    from proxy.record import Record
    from proxy.redaction import Secret
    from proxy.routing import Place
    from proxy.settings import Project

PROVIDER = "lava"
INCOMPLETE = (b"x-lava-proxy-incomplete", b"models")
_MOST_BYTES = 16 * 1024 * 1024
_MOST_LISTS = 32
_LARGEST_KEPT = 4 * 1024 * 1024
_PATIENCE = 15.0
"""Seconds that Lava's list is waited for; a page that lists models is no place for the ten minutes of a completion."""
_EPOCH = "1970-01-01T00:00:00Z"

Entries = list[dict[str, Any]]


class Catalog:
    """Answers both addresses, and keeps the last good list of each credential at each address of Lava."""

    def __init__(self) -> None:
        self._lists: OrderedDict[tuple[object, ...], Entries] = OrderedDict()

    async def answer(self, generation: Generation, place: Place, project: str, record: Record) -> Reply | None:
        """The list, or the one model that ``place`` names; ``None`` for a model that is in no list, but may be known to the
        provider that its name leads to (a fine-tuned one, say).

        Raises ``Fault`` where Lava refuses, or cannot be reached and nothing is known.
        """
        table, elsewhere = generation.table, True
        aliases = list(table.aliases)
        record.provider = PROVIDER
        if place.model is not None:
            if place.model in table.aliases:
                return _reply(_one(_own(place.model), place.model, place.dialect), project, record)
            try:
                routing.route("GET", place, b"", project, None, table)
            except Fault as fault:
                if fault.code != "crossing_unsupported":
                    raise
                elsewhere = False
        needed = not aliases and (place.model is None or not elsewhere)
        entries, complete = await self._entries(generation, project, record, needed=needed)
        entries = [*map(_own, aliases), *(entry for entry in entries if entry["id"] not in table.aliases)]
        if place.model is None:
            return _reply(_all(entries, place.dialect), project, record, complete=complete)
        found = _find(place.model, entries, table)
        if found is not None:
            return _reply(_one(found, place.model, place.dialect), project, record, complete=complete)
        if not elsewhere:
            raise _unlisted(place.model, [entry["id"] for entry in entries])
        record.provider = record.lava_request_id = None
        return None

    async def _entries(
        self, generation: Generation, project_name: str, record: Record, *, needed: bool
    ) -> tuple[Entries, bool]:
        """Lava's list, or what is known of it (nothing only where it is not ``needed``), and whether it is all of it."""
        project, lava = generation.project(project_name), generation.lava(project_name)
        secret = _asking(generation, project)
        # What a spend key may use is nobody else's business: a list belongs to the credential that it was given to.
        key = (lava.origin, lava.base_path, digest(secret.reveal().encode("utf-8")) if secret is not None else None)
        try:
            async with asyncio.timeout(min(_PATIENCE, generation.limits.first_byte)):
                content = await _ask(generation, lava, secret, project_name, record)
            entries = _parsed(content)
        except (Fault, UpstreamError, TimeoutError) as trouble:
            if isinstance(trouble, Fault) and not trouble.code.startswith("upstream_") and trouble.status < 500:
                raise
            kept = self._lists.get(key)
            if kept is None and needed:
                if isinstance(trouble, TimeoutError):
                    raise _too_late() from None
                raise
            record.upstream_error = trouble.detail if isinstance(trouble, UpstreamError) else str(trouble) or "timeout"
            return kept or [], False
        if len(content) <= _LARGEST_KEPT:
            self._lists[key] = entries
            self._lists.move_to_end(key)
            if len(self._lists) > _MOST_LISTS:
                self._lists.popitem(last=False)
        return entries, True


def _asking(generation: Generation, project: Project) -> Secret | None:
    """The key that asks: the project's own, and none where it has only a ready token, which is for forwarding."""
    if project.spend_key is not None:
        return project.spend_key
    return None if project.forward_token is not None else project.secret_key or generation.account_key


async def _ask(generation: Generation, lava: Lava, secret: Secret | None, project_name: str, record: Record) -> bytes:
    """The body of Lava's list. Raises ``Fault`` where Lava refuses or answers something else, and ``UpstreamError``."""
    sent: list[tuple[bytes, bytes]] = [(b"host", lava.host), (b"accept", b"application/json")]
    if secret is not None:
        sent.append((b"authorization", b"Bearer " + secret.reveal().encode("utf-8")))
    opened = await generation.engine.open(Outgoing(b"GET", lava.origin, lava.base_path + b"/models", sent))
    try:
        record.first_byte_s = monotonic() - record.started
        pieces, size = [], 0
        while piece := await opened.read():
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_BYTES:
                raise _not_a_list(opened.status)
        content = b"".join(pieces)
    finally:
        await opened.aclose()
    lookup = dict(reversed(opened.headers))
    encoding = lookup.get(b"content-encoding")
    if encoding is not None:
        content = bodies.decode(content, encoding, _MOST_BYTES) or b""
    request_id = lookup.get(b"x-lava-request-id")
    record.lava_request_id = request_id.decode("ascii", "replace")[:200] if request_id is not None else None
    if 300 <= opened.status < 400:
        raise errors.redirected(opened.status)
    if opened.status != 200:
        from proxy.redaction import Redactor

        spends = generation.project(project_name).spend_key is not None
        payment = Payment(
            project_name,
            PROVIDER,
            "spend_key" if spends else "merchant",
            "spend key" if spends else "secret key",
            secret.hint if secret is not None else "",
        )
        mask = Redactor([secret.reveal()] if secret is not None else []).data
        told = [(name, mask(value)) for name, value in opened.headers]
        fault = errors.from_answer(opened.status, told, mask(content), payment, lava_request_id=record.lava_request_id)
        raise fault or _not_a_list(opened.status)
    return content


def _reply(document: dict[str, Any], project: str, record: Record, *, complete: bool = True) -> Reply:
    record.status = 200
    body = compact(document)
    record.bytes_out = len(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"date", formatdate(usegmt=True).encode("ascii")),
        *errors.GUARDED,
        (b"x-lava-proxy-request-id", record.request_id.encode("ascii")),
        (b"x-lava-proxy-project", project.encode("ascii")),
        (b"x-lava-proxy-provider", PROVIDER.encode("ascii")),
    ]
    if complete and record.lava_request_id is not None:  # else it is of an answer that was not used
        headers.append((b"x-lava-request-id", record.lava_request_id.encode("ascii", "replace")))
    if not complete:
        headers.append(INCOMPLETE)
    return Reply(200, headers, body)


def _parsed(content: bytes) -> Entries:
    try:
        document = json.loads(content)
        entries = document["data"] if isinstance(document, dict) else document
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _not_a_list(200) from None


def _own(alias: str) -> dict[str, Any]:
    return {"id": alias, "object": "model", "created": 0, "owned_by": "lava-proxy"}


def _find(name: str, entries: Entries, table: routing.Table) -> dict[str, Any] | None:
    """The entry that ``name`` means: of that name, or of the name behind a provider's prefix."""
    by_name = {entry["id"]: entry for entry in reversed(entries)}
    prefix, _, bare = name.partition("/")
    return by_name.get(name) or (by_name.get(bare) if table.provider(prefix) is not None else None)


def _all(entries: Entries, dialect: Dialect) -> dict[str, Any]:
    """OpenAI's list, or Anthropic's or Google's page with everything on it."""
    shown = [_one(entry, entry["id"], dialect) for entry in entries]
    if dialect is Dialect.GOOGLE:
        return {"models": shown}
    if dialect is not Dialect.ANTHROPIC:
        return {"object": "list", "data": shown}
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"data": shown, "has_more": False, "first_id": first, "last_id": last}


def _one(entry: dict[str, Any], name: str, dialect: Dialect) -> dict[str, Any]:
    """One model under the name that the client asked for."""
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


def _unlisted(name: str, known: Iterable[str]) -> Fault:
    close = routing.nearest(name, known)
    meant = f'Did you mean "{close}"?' if close else "GET /v1/models lists the names there are."
    return Fault("path_not_found", f'There is no model "{name[:200]}" in Lava\'s list. {meant}', meant)


def _too_late() -> Fault:
    return Fault(
        "upstream_timeout",
        "Lava did not give its list of models in time.",
        "Check the network and lava.base_url, and try again.",
        retry=True,
    )


def _moment(seconds: object) -> str:
    """RFC 3339 of a UNIX time; the epoch where it is unknown, as Anthropic itself documents."""
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < 1 << 33:
        return _EPOCH
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _not_a_list(status: int) -> Fault:
    return Fault(
        "upstream_protocol",
        f"Lava's list of models could not be read (status {status}).",
        "Check lava.base_url; other requests may still work.",
        details={"upstream_status": status},
    )
