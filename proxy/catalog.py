"""``GET /v1/models``: Lava's own list and the configured aliases, in the shape that the client reads."""

from __future__ import annotations

import json
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy import body as bodies
from proxy import errors
from proxy.dialects import Dialect, compact
from proxy.errors import Fault, Payment, Reply
from proxy.upstream import Outgoing

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.record import Record

PROVIDER = "lava"
_MOST_BYTES = 16 * 1024 * 1024
_EPOCH = "1970-01-01T00:00:00Z"


async def answer(generation: Generation, dialect: Dialect, project_name: str, record: Record) -> Reply:
    """The whole list. Raises ``Fault`` where Lava refuses or answers something else, and ``UpstreamError``."""
    project, lava = generation.project(project_name), generation.lava(project_name)
    secret = project.spend_key or project.secret_key or generation.account_key
    sent: list[tuple[bytes, bytes]] = [(b"host", lava.host), (b"accept", b"application/json")]
    if secret is not None:
        sent.append((b"authorization", b"Bearer " + secret.reveal().encode("utf-8")))
    out = Outgoing(b"GET", lava.origin, lava.base_path + b"/models", sent)
    opened = await generation.engine.open(out)
    try:
        record.first_byte_s = monotonic() - record.started
        content = b""
        while chunk := await opened.read():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise _not_a_list(opened.status)
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

        payment = Payment(
            project_name,
            PROVIDER,
            "spend_key" if project.spend_key is not None else "merchant",
            "spend key" if project.spend_key is not None else "secret key",
            secret.hint if secret is not None else "",
        )
        mask = Redactor([secret.reveal()] if secret is not None else []).data
        told = [(name, mask(value)) for name, value in opened.headers]
        fault = errors.from_answer(opened.status, told, mask(content), payment, lava_request_id=record.lava_request_id)
        raise fault or _not_a_list(opened.status)
    record.status = 200
    body = compact(_shape(_entries(content), list(generation.table.aliases), dialect))
    record.bytes_out = len(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"date", formatdate(usegmt=True).encode("ascii")),
        *errors.GUARDED,
        (b"x-lava-proxy-request-id", record.request_id.encode("ascii")),
        (b"x-lava-proxy-project", project_name.encode("ascii")),
        (b"x-lava-proxy-provider", PROVIDER.encode("ascii")),
    ]
    if request_id is not None:
        headers.append((b"x-lava-request-id", request_id))
    return Reply(200, headers, body)


def _entries(content: bytes) -> list[dict[str, Any]]:
    try:
        document = json.loads(content)
        entries = document["data"] if isinstance(document, dict) else document
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _not_a_list(200) from None


def _shape(entries: list[dict[str, Any]], aliases: list[str], dialect: Dialect) -> dict[str, Any]:
    """OpenAI's list, or Anthropic's or Google's page with everything on it; the aliases stand first."""
    own = [{"id": alias, "object": "model", "created": 0, "owned_by": "lava-proxy"} for alias in aliases]
    theirs = [entry for entry in entries if entry["id"] not in aliases]
    if dialect is Dialect.GOOGLE:
        return {"models": [{"name": f"models/{entry['id']}", "displayName": entry["id"]} for entry in [*own, *theirs]]}
    if dialect is not Dialect.ANTHROPIC:
        return {"object": "list", "data": [*own, *theirs]}
    data = [
        {
            "type": "model",
            "id": entry["id"],
            "display_name": entry.get("display_name") or entry.get("name") or entry["id"],
            "created_at": _moment(entry.get("created")),
        }
        for entry in [*own, *theirs]
    ]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


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
