"""Emulates Anthropic's message batches.

A batch is in progress in the response to its creation, and ended at the next request: independent
of time, and a client that polls sees both. Its requests are answered then and are free.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, compact, json_reply
from proxy.emulator.provider_errors import anthropic_error
from proxy.emulator.shapes import instant
from proxy.emulator.structured_output import as_object

if TYPE_CHECKING:
    from proxy.emulator.providers import Answer

_DAY_SECONDS = 24 * 3600
_CUSTOM_ID = re.compile("[a-zA-Z0-9_-]{1,64}")
_MAX_REQUESTS = 10_000
_RESULTS = ("succeeded", "errored", "canceled", "expired")


def answer(call: EmulatedCall, messages: Answer) -> EmulatedReply:
    """Answer every path below ``messages/batches``; ``messages`` answers one of its requests."""
    _, _, below = call.rest.partition("messages/batches")
    name, _, action = below.strip("/").partition("/")
    if not name:
        match call.method:
            case "POST":
                return _create(call)
            case "GET":
                return _listed(call, messages)
        return anthropic_error(405, "Method Not Allowed")
    kept = call.objects.message_batches.get(name)
    if kept is None:
        return anthropic_error(404, f"Message Batch {name} not found.")
    if (call.method, action) == ("POST", "cancel"):
        return _cancel(call, kept)
    _finish(call, kept, messages)
    match (call.method, action):
        case ("GET", ""):
            return json_reply(kept["batch"])
        case ("DELETE", ""):
            del call.objects.message_batches[name]
            return json_reply({"id": name, "type": "message_batch_deleted"})
        case ("GET", "results"):
            lines = [compact(result) + b"\n" for result in kept["results"]]
            return EmulatedReply(200, lines, "application/x-jsonl", streamed=True)
    return anthropic_error(404, "Not Found")


def _create(call: EmulatedCall) -> EmulatedReply:
    requests = as_object(call.document).get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= _MAX_REQUESTS:
        return anthropic_error(400, f"requests: a list of 1 to {_MAX_REQUESTS} requests is required")
    seen = set()
    for at, one in enumerate(requests):
        custom_id = as_object(one).get("custom_id")
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id) or custom_id in seen:
            return anthropic_error(400, f"requests.{at}.custom_id: must match {_CUSTOM_ID.pattern} and be unique")
        if not isinstance(one.get("params"), dict):
            return anthropic_error(400, f"requests.{at}.params: Field required")
        seen.add(custom_id)
    now = call.now
    batch: dict[str, Any] = {
        "id": call.objects.next_id("msgbatch_"),
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": len(requests), **dict.fromkeys(_RESULTS, 0)},
        "created_at": instant(now),
        "expires_at": instant(now + _DAY_SECONDS),
        "ended_at": None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    call.objects.message_batches[batch["id"]] = {"batch": batch, "requests": requests, "results": []}
    return json_reply(batch)


def _finish(call: EmulatedCall, kept: dict[str, Any], messages: Answer) -> None:
    batch = kept["batch"]
    if batch["processing_status"] == "ended":
        return
    canceled = batch["processing_status"] == "canceling"
    results = [
        {
            "custom_id": one["custom_id"],
            "result": {"type": "canceled"} if canceled else _result(call, one["params"], messages),
        }
        for one in kept["requests"]
    ]
    kinds = [result["result"]["type"] for result in results]
    kept["requests"], kept["results"] = [], results
    kept["batch"] = {
        **batch,
        "processing_status": "ended",
        "request_counts": {"processing": 0, **{kind: kinds.count(kind) for kind in _RESULTS}},
        "ended_at": instant(call.now),
        # Anthropic has its own host here, and its SDKs request exactly that address. A path is resolved against the
        # client's base address, so that an offline batch stays offline.
        "results_url": f"/v1/messages/batches/{batch['id']}/results",
    }


def _result(call: EmulatedCall, params: dict[str, Any], messages: Answer) -> dict[str, Any]:
    model = params.get("model")
    received = replace(call.received, model=model if isinstance(model, str) else None)
    document = {**params, "stream": False}
    message = json.loads(b"".join(messages(replace(call, received=received, method="POST", document=document)).chunks))
    if message.get("type") == "error":
        return {"type": "errored", "error": message}
    return {"type": "succeeded", "message": message}


def _cancel(call: EmulatedCall, kept: dict[str, Any]) -> EmulatedReply:
    batch = kept["batch"]
    if batch["processing_status"] == "in_progress":
        batch |= {"processing_status": "canceling", "cancel_initiated_at": instant(call.now)}
    return json_reply(batch)


def _listed(call: EmulatedCall, messages: Answer) -> EmulatedReply:
    """Return one page, newest first."""
    for kept in call.objects.message_batches.values():
        _finish(call, kept, messages)
    found = [kept["batch"] for kept in reversed(call.objects.message_batches.values())]
    names = [batch["id"] for batch in found]
    limit = call.query.get("limit", "")
    size = int(limit) if re.fullmatch("[1-9][0-9]{0,2}|1000", limit) else 20
    start, end = 0, len(found)
    if call.query.get("after_id") in names:
        start = names.index(call.query["after_id"]) + 1
    if call.query.get("before_id") in names:
        end = names.index(call.query["before_id"])
        start = max(start, end - size)
    page = found[start : min(end, start + size)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    more = start > 0 if "before_id" in call.query else start + len(page) < end
    return json_reply({"data": page, **ends, "has_more": more})
