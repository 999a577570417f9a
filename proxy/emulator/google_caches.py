"""Emulates Google's cached contents."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, count_tokens, json_reply, plain_text
from proxy.emulator.google_files import page, unexpired
from proxy.emulator.provider_errors import google_error
from proxy.emulator.shapes import instant
from proxy.emulator.structured_output import as_object, as_objects

_HOUR_SECONDS = 3600.0
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


def answer(call: EmulatedCall) -> EmulatedReply:
    name = call.rest
    if name == "cachedContents":
        match call.method:
            case "GET":
                return page(call, "cachedContents", list(_unexpired(call).values()))
            case "POST":
                return _create(call)
        return google_error(404, f"{call.method} is not served for {name}.")
    found = find(call, name)
    if found is None:
        return missing(name)
    match call.method:
        case "GET":
            return json_reply(found)
        case "PATCH":
            return _update(call, found)
        case "DELETE":
            del call.objects.google_caches[name]
            return json_reply({})
    return google_error(404, f"{call.method} is not served for {name}.")


def find(call: EmulatedCall, name: Any) -> dict[str, Any] | None:
    return _unexpired(call).get(name) if isinstance(name, str) else None


def missing(name: Any) -> EmulatedReply:
    return google_error(403, f"CachedContent not found (or permission denied): {str(name)[:200]}")


def _unexpired(call: EmulatedCall) -> dict[str, dict[str, Any]]:
    return unexpired(call, call.objects.google_caches, "expireTime")


def _create(call: EmulatedCall) -> EmulatedReply:
    given = as_object(call.document)
    model = given.get("model")
    if not isinstance(model, str) or not model.startswith("models/"):
        return google_error(400, "CachedContent.model: models/NAME is required.")
    contents = as_objects(given.get("contents"))
    system = as_object(given.get("systemInstruction"))
    if not contents and not system:
        return google_error(400, "CachedContent: contents or systemInstruction is required.")
    now = call.now
    expires = _expiry(given, now) if "ttl" in given or "expireTime" in given else now + _HOUR_SECONDS
    if expires is None:
        return google_error(400, "CachedContent: ttl (such as 300s) or expireTime is not valid.")
    counted = sum(count_tokens(plain_text(one.get("parts"))) for one in [*contents, *([system] if system else [])])
    made: dict[str, Any] = {
        "name": call.objects.next_id("cachedContents/"),
        "model": model,
        "createTime": instant(now),
        "updateTime": instant(now),
        "expireTime": instant(expires),
        "usageMetadata": {"totalTokenCount": counted},
    }
    if isinstance(given.get("displayName"), str):
        made["displayName"] = given["displayName"]
    call.objects.google_caches[made["name"]] = made
    return json_reply(made)


def _update(call: EmulatedCall, found: dict[str, Any]) -> EmulatedReply:
    now = call.now
    expires = _expiry(as_object(call.document), now)
    if expires is None:
        return google_error(400, "CachedContent: only ttl (such as 300s) or expireTime can be changed.")
    found |= {"updateTime": instant(now), "expireTime": instant(expires)}
    return json_reply(found)


def _expiry(given: dict[str, Any], now: float) -> float | None:
    """Return the expiry in a request, or ``None`` if it is missing or invalid."""
    ttl, at = given.get("ttl"), given.get("expireTime")
    if isinstance(ttl, str):
        duration = _DURATION.fullmatch(ttl)
        return now + float(duration[1]) if duration else None
    if not isinstance(at, str):
        return None
    try:
        found = datetime.fromisoformat(at)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
