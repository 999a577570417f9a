"""Emulates OpenAI, and every provider with its dialect."""

from __future__ import annotations

import base64
import re
import struct
from typing import TYPE_CHECKING, Any

from proxy.emulator import openai_media as media
from proxy.emulator import openai_stored as stored
from proxy.emulator.exchange import (
    FLAT_COST,
    FREE,
    Cost,
    EmulatedCall,
    EmulatedReply,
    count_tokens,
    data_event,
    event_stream,
    json_reply,
    last_text,
    named_event,
    pieces,
    plain_text,
    reply_text,
    token_cost,
)
from proxy.emulator.provider_errors import openai_body_error, openai_error, openai_error_body, openai_stream_error
from proxy.emulator.structured_output import ANY, ToolCall, as_object, as_objects, json_text, tool_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODELS = (
    "gpt-5",
    "gpt-4o-mini",
    "text-embedding-3-small",
    "gpt-image-1",
    "tts-1",
    "whisper-1",
    "omni-moderation-latest",
)

DONE = b"data: [DONE]\n\n"
MIN_CACHED = 1024
"""Tokens before the last message from which on OpenAI caches them."""


def answer(call: EmulatedCall) -> EmulatedReply:
    allowed = []
    for method, pattern, endpoint, *required in _ENDPOINTS:
        match = re.fullmatch(pattern, call.rest)
        if match is None:
            continue
        if method == call.method:
            wrong = openai_body_error(call, *required) if required else None
            reply = wrong or endpoint(call, *match.groups())
            request_id = call.objects.next_id("req_openai_")
            reply.headers += [("x-request-id", request_id), ("openai-version", "2020-10-01")]
            return reply
        allowed.append(method)
    where = f"{call.method} on /v1/{call.rest}"
    if allowed:
        return openai_error(405, f"Not allowed to {where} (HINT: Perhaps you meant {allowed[0]}?)")
    error = openai_error_body(404, f"Invalid URL ({call.method} /v1/{call.rest})")
    return json_reply({"error": {**error, "code": None}}, 404)


# Chat and completions ---


def _tokens(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _chat(call: EmulatedCall) -> EmulatedReply:
    body = call.document
    if not isinstance(body["messages"], list) or not body["messages"]:
        return openai_error(400, "Invalid type for 'messages': expected a non-empty array of objects.", "messages")
    texts = [plain_text(message.get("content")) for message in as_objects(body["messages"])]
    prompt, before = sum(map(count_tokens, texts)), sum(map(count_tokens, texts[:-1]))
    cached = before if before >= MIN_CACHED and call.objects.cache_prompt(call.model, texts[:-1]) else 0
    text = reply_text(last_text(body["messages"]))
    tools = [as_object(tool.get("function")) for tool in as_objects(body.get("tools"))]
    choice = body.get("tool_choice")
    forced = ANY if choice == "required" else as_object(as_object(choice).get("function")).get("name")
    pairs = [(tool.get("name"), tool.get("parameters")) for tool in tools]
    tool_use = tool_call(pairs, forced, body["messages"], text, "content")
    shape = as_object(body.get("response_format"))
    if shape.get("type") in ("json_schema", "json_object"):
        text = json_text(as_object(shape.get("json_schema")).get("schema"), text)
    return _completion(call, text, prompt, cached, chat=True, tool_use=tool_use)


def _text_completion(call: EmulatedCall) -> EmulatedReply:
    prompt = plain_text(call.document["prompt"])
    return _completion(call, reply_text(prompt), count_tokens(prompt), chat=False)


def _completion(
    call: EmulatedCall, text: str, prompt: int, cached: int = 0, *, chat: bool, tool_use: ToolCall | None = None
) -> EmulatedReply:
    """Return a completion of either kind, whole or streamed; ``tool_use`` is a call instead of ``text``."""
    usage = _tokens(prompt, count_tokens(tool_use.text if tool_use else text), cached)
    cost = token_cost(prompt, usage["completion_tokens"], cached)
    head = {
        "id": call.objects.next_id("chatcmpl-" if chat else "cmpl-"),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(call.now),
        "model": call.model,
        "system_fingerprint": "fp_emulated",
    }
    if not call.document.get("stream"):
        content: dict[str, Any] = {"text": text}
        if chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None, "annotations": []}}
        if tool_use:
            content["message"] |= {"content": None, "tool_calls": [_function(call, tool_use)]}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": "tool_calls" if tool_use else "stop"}
        return json_reply({**head, "choices": [choice], "usage": usage}, cost=cost)
    options = call.document.get("stream_options")
    with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    deltas = _call_deltas(_function(call, tool_use)) if tool_use else [{"content": piece} for piece in pieces(text)]
    contents = [{"delta": delta} for delta in deltas] if chat else [{"text": piece} for piece in pieces(text)]
    finish = "tool_calls" if tool_use else "stop"
    events = _completion_events(head, contents, finish, usage if with_usage else None, chat=chat)
    return event_stream(events, marker=1, error_event=openai_stream_error(), cost=cost)


def _function(call: EmulatedCall, tool_use: ToolCall) -> dict[str, Any]:
    name = {"name": tool_use.name, "arguments": tool_use.text}
    return {"id": call.objects.next_id("call_"), "type": "function", "function": name}


def _call_deltas(function: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the deltas of a call: first its name, then its arguments in pieces."""
    named = {**function["function"], "arguments": ""}
    rest = [{"index": 0, "function": {"arguments": one}} for one in pieces(function["function"]["arguments"])]
    return [{"tool_calls": [one]} for one in ({"index": 0, **function, "function": named}, *rest)]


def _completion_events(
    head: dict[str, Any], contents: list[dict[str, Any]], finish: str, usage: dict[str, Any] | None, *, chat: bool
) -> Iterator[bytes]:
    if chat:
        head = {**head, "object": "chat.completion.chunk"}
    # With include_usage every chunk but the last has an explicit null, as OpenAI's reference says.
    tail: dict[str, Any] = {} if usage is None else {"usage": None}

    def chunk(content: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return data_event({**head, "choices": [choice], **tail})

    if chat:
        yield chunk({"delta": {"role": "assistant", "content": "", "refusal": None}}, None)
    for content in contents:
        yield chunk(content, None)
    yield chunk({"delta": {}} if chat else {"text": ""}, finish)
    if usage is not None:
        yield data_event({**head, "choices": [], "usage": usage})
    yield DONE


# Responses ---


def _responses(call: EmulatedCall) -> EmulatedReply:
    given = call.document["input"]
    question = last_text(given)
    prompt = count_tokens(given if isinstance(given, str) else question)
    text = reply_text(question)
    choice = call.document.get("tool_choice")
    forced = ANY if choice == "required" else as_object(choice).get("name")
    pairs = [(tool.get("name"), tool.get("parameters")) for tool in as_objects(call.document.get("tools"))]
    tool_use = tool_call(pairs, forced, given, text, "content")
    shape = as_object(as_object(call.document.get("text")).get("format"))
    if shape.get("type") in ("json_schema", "json_object"):
        text = json_text(shape.get("schema"), text)
    answered = count_tokens(tool_use.text if tool_use else text)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answered,
    }
    response = {
        "id": call.objects.next_id("resp_"),
        "object": "response",
        "created_at": int(call.now),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": call.document.get("instructions"),
        "metadata": call.document.get("metadata") or {},
        "model": call.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "text": {"format": {"type": "text"}},
        "usage": usage,
    }
    cost = token_cost(prompt, answered)
    item = _call_item(call, tool_use) if tool_use else _message_item(call, text)
    response["output"] = [item]
    if call.document.get("store") is not False:
        stored.store_response(call.objects, response)
    return _response_stream(response, cost) if call.document.get("stream") else json_reply(response, cost=cost)


def _response_stream(response: dict[str, Any], cost: Cost, after: int = -1) -> EmulatedReply:
    """Return the events of a response after the number ``after``."""
    numbered = [{**event, "sequence_number": at} for at, event in enumerate(_response_events(response))]
    fault = openai_error_body(500, "The server had an error while processing your request.")
    # The reference has code and message at the top, the service inside "error": both are here.
    failed = {**fault, "type": "error", "error": fault, "sequence_number": 2}
    events = map(named_event, numbered[after + 1 :])
    return event_stream(events, marker=1, error_event=named_event(failed), cost=cost)


def _one_response(call: EmulatedCall, response_id: str) -> EmulatedReply:
    """Return a stored response, or its stream again from a given event."""
    response = call.objects.responses.get(response_id)
    if response is None:
        return openai_error(404, f"Response with id '{response_id}' not found.")
    if call.query.get("stream") != "true":
        return json_reply(response)
    after = call.query.get("starting_after", "")
    return _response_stream(response, FREE, int(after) if re.fullmatch("[0-9]{1,9}", after) else -1)


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(call: EmulatedCall, text: str) -> dict[str, Any]:
    item = {"id": call.objects.next_id("msg_"), "type": "message", "status": "completed", "role": "assistant"}
    return {**item, "content": [_output_text(text)]}


def _call_item(call: EmulatedCall, tool_use: ToolCall) -> dict[str, Any]:
    item = {"id": call.objects.next_id("fc_"), "type": "function_call", "status": "completed"}
    return {**item, "call_id": call.objects.next_id("call_"), "name": tool_use.name, "arguments": tool_use.text}


def _response_events(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    item = response["output"][0]
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    empty: dict[str, Any] = {"content": []} if "content" in item else {"arguments": ""}
    started = {**item, "status": "in_progress", **empty}
    yield {"type": "response.output_item.added", "output_index": 0, "item": started}
    yield from _text_events(item) if "content" in item else _argument_events(item)
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}


def _argument_events(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": 0}
    for piece in pieces(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
    whole = {"name": item["name"], "arguments": item["arguments"]}
    yield {"type": "response.function_call_arguments.done", **place, **whole}


def _text_events(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    text = item["content"][0]["text"]
    yield {"type": "response.content_part.added", **place, "part": _output_text("")}
    for piece in pieces(text):
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": _output_text(text)}


# Other endpoints ---


def _embeddings(call: EmulatedCall) -> EmulatedReply:
    given = call.document["input"]
    # One text, one list of token numbers, or a list of either.
    many = isinstance(given, list) and not all(isinstance(one, int) for one in given)
    inputs = given if many else [given]
    size = call.document.get("dimensions")
    width = size if isinstance(size, int) and 0 < size <= 4096 else 8
    packed = call.document.get("encoding_format") == "base64"
    data = []
    for index, one in enumerate(inputs):
        vector = embedding(one if isinstance(one, str) else str(one), width)
        value: Any = vector
        if packed:
            value = base64.b64encode(struct.pack(f"<{width}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": value})
    prompt = sum(count_tokens(str(one)) for one in inputs)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    reply = {"object": "list", "data": data, "model": call.model, "usage": usage}
    return json_reply(reply, cost=token_cost(prompt, 0))


def embedding(text: str, width: int) -> list[float]:
    """Return a vector that depends only on ``text``; its numbers are exact in 32 bits."""
    seed = sum(text.encode("utf-8", "replace")) + 1
    return [((seed * (at + 3)) % 256 - 128) / 128 for at in range(width)]


_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


def _moderations(call: EmulatedCall) -> EmulatedReply:
    given = call.document["input"]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
    }
    results = [result] * (len(given) if isinstance(given, list) else 1)
    return json_reply({"id": call.objects.next_id("modr-"), "model": call.model, "results": results})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_735_689_600, "owned_by": "emulator"}


def _models(call: EmulatedCall) -> EmulatedReply:
    return json_reply({"object": "list", "data": [_model(name) for name in MODELS]})


def _one_model(call: EmulatedCall, name: str) -> EmulatedReply:
    if name not in MODELS:
        return openai_error(404, f"The model '{name}' does not exist or you do not have access to it.", "model")
    return json_reply(_model(name))


# Method, path, function, required members of the body.
_ENDPOINTS: tuple[tuple[str, str, Callable[..., EmulatedReply], *tuple[str, ...]], ...] = (
    ("POST", "chat/completions", _chat, "model", "messages"),
    ("POST", "completions", _text_completion, "model", "prompt"),
    ("POST", "responses", _responses, "model", "input"),
    ("GET", "responses/([^/]+)", _one_response),
    ("DELETE", "responses/([^/]+)", stored.delete_response),
    ("POST", "responses/([^/]+)/cancel", stored.cancel_response),
    ("POST", "embeddings", _embeddings, "model", "input"),
    ("POST", "images/(generations|edits|variations)", media.images),
    ("POST", "audio/speech", media.speech, "model", "input"),
    ("POST", "audio/(transcriptions|translations)", media.transcription),
    ("POST", "moderations", _moderations, "input"),
    ("GET", "models", _models),
    ("GET", "models/(.+)", _one_model),
    ("POST", "files", stored.upload),
    ("GET", "files", stored.files),
    ("GET", "files/([^/]+)", stored.one_file),
    ("DELETE", "files/([^/]+)", stored.delete_file),
    ("GET", "files/([^/]+)/content", stored.file_content),
    ("POST", "batches", stored.create_batch, "input_file_id", "endpoint", "completion_window"),
    ("GET", "batches", stored.batches),
    ("GET", "batches/([^/]+)", stored.one_batch),
    ("POST", "batches/([^/]+)/cancel", stored.cancel_batch),
)

FIRST_WORDS = frozenset(re.split(r"[/(]", pattern)[0] for _, pattern, *_ in _ENDPOINTS)


def echo(call: EmulatedCall) -> EmulatedReply:
    """Answer for a service that is not a model: return what was received."""
    size = len(call.received.body)
    document = {"method": call.method, "path": "/" + call.rest, "query": call.query, "bytes": size}
    return json_reply(document, cost=FLAT_COST if call.method == "POST" else FREE)
