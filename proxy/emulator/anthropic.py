"""Emulates Anthropic: messages, token counting, models. Batches are in ``anthropic_batches.py``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from proxy.emulator import anthropic_batches
from proxy.emulator.exchange import (
    EmulatedCall,
    EmulatedReply,
    count_tokens,
    event_stream,
    json_reply,
    last_text,
    named_event,
    pieces,
    plain_text,
    reply_text,
    token_cost,
)
from proxy.emulator.provider_errors import anthropic_error, anthropic_error_body
from proxy.emulator.structured_output import ANY, ToolCall, as_object, as_objects, json_text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = ("claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5")


def answer(call: EmulatedCall) -> EmulatedReply:
    if call.received.header("anthropic-version") is None:
        return anthropic_error(400, "anthropic-version: header is required")
    return respond(call)


def respond(call: EmulatedCall) -> EmulatedReply:
    """Answer without the version header, for Lava's own ``/v1/messages`` and the rewrite address."""
    reply = _dispatch(call)
    if not any(name == "request-id" for name, _ in reply.headers):
        reply.headers.append(("request-id", call.objects.next_id("req_anthropic_")))
    return reply


def _dispatch(call: EmulatedCall) -> EmulatedReply:
    match (call.method, call.rest):
        case ("POST", "messages"):
            return _messages(call)
        case ("POST", "messages/count_tokens"):
            return _count_tokens(call)
        case ("GET", "models"):
            data = [_model(name) for name in MODELS]
            return json_reply({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})
    if re.match("messages/batches(/|$)", call.rest):
        return anthropic_batches.answer(call, _messages)
    one = re.fullmatch("models/([^/]+)", call.rest)
    if call.method == "GET" and one:
        return json_reply(_model(one[1])) if one[1] in MODELS else anthropic_error(404, f"model: {one[1]}")
    if call.rest in ("messages", "messages/count_tokens", "models"):
        return anthropic_error(405, "Method Not Allowed")
    return anthropic_error(404, "Not Found")


def _model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}


def _wrong(call: EmulatedCall, *needed: str) -> EmulatedReply | None:
    if not isinstance(call.document, dict):
        return anthropic_error(400, "The request body is not valid JSON.")
    for name in needed:
        if name not in call.document:
            return anthropic_error(400, f"{name}: Field required")
    if not isinstance(call.document["messages"], list) or not call.document["messages"]:
        return anthropic_error(400, "messages: at least one message is required")
    return None


def _prompt(body: dict[str, Any]) -> list[str]:
    messages = [plain_text(message.get("content")) for message in as_objects(body["messages"])]
    return [text for text in (plain_text(body.get("system")), *messages) if text]


def _cacheable(body: dict[str, Any]) -> bool:
    """Return whether a block of the prompt has ``cache_control``."""
    contents = [body.get("system"), *(message.get("content") for message in as_objects(body["messages"]))]
    return any("cache_control" in block for content in contents for block in as_objects(content))


def _count_tokens(call: EmulatedCall) -> EmulatedReply:
    return _wrong(call, "model", "messages") or json_reply(
        {"input_tokens": sum(map(count_tokens, _prompt(call.document)))}
    )


def _messages(call: EmulatedCall) -> EmulatedReply:
    wrong = _wrong(call, "model", "max_tokens", "messages")
    if wrong:
        return wrong
    text = reply_text(last_text(call.document["messages"]))
    choice = as_object(call.document.get("tool_choice"))
    forced = ANY if choice.get("type") == "any" else choice.get("name")
    pairs = [(tool.get("name"), tool.get("input_schema")) for tool in as_objects(call.document.get("tools"))]
    tool_use = tool_call(pairs, forced, call.document["messages"], text, "content")
    shape = as_object(as_object(call.document.get("output_config")).get("format") or call.document.get("output_format"))
    if shape.get("type") == "json_schema":
        text = json_text(shape.get("schema"), text)
    prompt, written = _prompt(call.document), count_tokens(tool_use.text if tool_use else text)
    read, cached, cache_write = sum(map(count_tokens, prompt)), 0, 0
    if _cacheable(call.document):
        # All before the last text is cached, wherever the mark stands.
        before = sum(map(count_tokens, prompt[:-1]))
        known = call.objects.cache_prompt(call.model, prompt[:-1])
        cached, cache_write = (before, 0) if known else (0, before)
    block = {"type": "text", "text": text}
    if tool_use:
        block = {
            "type": "tool_use",
            "id": call.objects.next_id("toolu_"),
            "name": tool_use.name,
            "input": tool_use.arguments,
        }
    cost = token_cost(read, written, cached, cache_write)
    usage = {
        "input_tokens": read - cached - cache_write,
        "cache_creation_input_tokens": cache_write,
        "cache_read_input_tokens": cached,
        "output_tokens": written,
        "service_tier": "standard",
    }
    message = {
        "id": call.objects.next_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [block],
        "stop_reason": "tool_use" if tool_use else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    if not call.document.get("stream"):
        return json_reply(message, cost=cost)
    fault = named_event(anthropic_error_body(529, "Overloaded"))
    return event_stream(map(named_event, _events(message, tool_use)), marker=1, error_event=fault, cost=cost)


def _events(message: dict[str, Any], tool_use: ToolCall | None) -> Iterator[dict[str, Any]]:
    usage, block = message["usage"], message["content"][0]
    kind, name = ("input_json_delta", "partial_json") if tool_use else ("text_delta", "text")
    begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    empty: dict[str, Any] = {"input": {}} if tool_use else {"text": ""}
    yield {"type": "content_block_start", "index": 0, "content_block": {**block, **empty}}
    yield {"type": "ping"}
    for piece in pieces(tool_use.text if tool_use else block["text"]):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: piece}}
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}
