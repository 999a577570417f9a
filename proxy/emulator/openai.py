"""Plays OpenAI, and every provider that speaks like it: the endpoints of one account, streaming and not."""

from __future__ import annotations

import base64
import re
import struct
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import (
    FLAT_COST,
    FREE,
    Call,
    Cost,
    Reply,
    compact,
    count_tokens,
    data_event,
    event_stream,
    json_reply,
    last_text,
    named_event,
    pieces,
    plain_text,
    said,
    token_cost,
)
from proxy.emulator.records import Consumption
from proxy.emulator.state import StoredFile
from proxy.emulator.wanted import ANY, ToolCall, json_text, table, tables, tool_call

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

# A PNG of one grey pixel.
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES = {
    401: "invalid_api_key",
    402: "insufficient_balance",
    404: "model_not_found",
    429: "rate_limit_exceeded",
}


def error(status: int, message: str, param: str | None = None) -> Reply:
    """An error in OpenAI's own shape."""
    reply = json_reply({"error": _fault(status, message, param)}, status)
    reply.headers.append(("x-request-id", "req_openai_emulated"))
    return reply


def _fault(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": _CODES.get(status)}


def answer(call: Call) -> Reply:
    """What this provider answers; never raises."""
    allowed = []
    for method, pattern, play in _ENDPOINTS:
        match = re.fullmatch(pattern, call.rest)
        if match is None:
            continue
        if method == call.method:
            reply = play(call, *match.groups())
            reply.headers += [
                ("x-request-id", call.world.next_id("req_openai_")),
                ("openai-version", "2020-10-01"),
            ]
            return reply
        allowed.append(method)
    if allowed:
        return error(405, f"Not allowed to {call.method} on /v1/{call.rest} (HINT: Perhaps you meant {allowed[0]}?)")
    return json_reply({"error": {**_fault(404, f"Invalid URL ({call.method} /v1/{call.rest})"), "code": None}}, 404)


def _wrong(call: Call, *needed: str) -> Reply | None:
    """The 400 for a body that is not JSON or lacks a member."""
    if not isinstance(call.document, dict):
        return error(400, "We could not parse the JSON body of your request.")
    for name in needed:
        if name not in call.document:
            return error(400, f"Missing required parameter: '{name}'.", name)
    return None


# Chat and completions ---


def _tokens(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _chat(call: Call) -> Reply:
    wrong = _wrong(call, "model", "messages")
    if wrong:
        return wrong
    body = call.document
    if not isinstance(body["messages"], list) or not body["messages"]:
        return error(400, "Invalid type for 'messages': expected a non-empty array of objects.", "messages")
    prompt = sum(count_tokens(plain_text(m.get("content"))) for m in body["messages"] if isinstance(m, dict))
    text = said(last_text(body["messages"]))
    tools = [table(tool.get("function")) for tool in tables(body.get("tools"))]
    choice = body.get("tool_choice")
    forced = ANY if choice == "required" else table(table(choice).get("function")).get("name")
    pairs = [(tool.get("name"), tool.get("parameters")) for tool in tools]
    wanted = tool_call(pairs, forced, body["messages"], text, "content")
    shape = table(body.get("response_format"))
    if shape.get("type") in ("json_schema", "json_object"):
        text = json_text(table(shape.get("json_schema")).get("schema"), text)
    return _completion(call, text, prompt, chat=True, wanted=wanted)


def _text_completion(call: Call) -> Reply:
    wrong = _wrong(call, "model", "prompt")
    if wrong:
        return wrong
    prompt = plain_text(call.document["prompt"])
    return _completion(call, said(prompt), count_tokens(prompt), chat=False)


def _completion(call: Call, text: str, prompt: int, *, chat: bool, wanted: ToolCall | None = None) -> Reply:
    """A completion of either kind, whole or as a stream; ``wanted`` is called instead of answering ``text``."""
    usage = _tokens(prompt, count_tokens(wanted.text if wanted else text))
    cost = token_cost(prompt, usage["completion_tokens"])
    head = {
        "id": call.world.next_id("chatcmpl-" if chat else "cmpl-"),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(call.world.clock()),
        "model": call.model,
        "system_fingerprint": "fp_emulated",
    }
    if not call.document.get("stream"):
        content: dict[str, Any] = {"text": text}
        if chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None, "annotations": []}}
        if wanted:
            content["message"] |= {"content": None, "tool_calls": [_function(call, wanted)]}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": "tool_calls" if wanted else "stop"}
        return json_reply({**head, "choices": [choice], "usage": usage}, cost=cost)
    options = call.document.get("stream_options")
    counted = isinstance(options, dict) and bool(options.get("include_usage"))
    deltas = _call_deltas(_function(call, wanted)) if wanted else [{"content": piece} for piece in pieces(text)]
    contents = [{"delta": delta} for delta in deltas] if chat else [{"text": piece} for piece in pieces(text)]
    finish = "tool_calls" if wanted else "stop"
    events = _completion_events(head, contents, finish, usage if counted else None, chat=chat)
    return event_stream(events, marker=1, error_event=_stream_error(), cost=cost)


def _function(call: Call, wanted: ToolCall) -> dict[str, Any]:
    name = {"name": wanted.name, "arguments": wanted.text}
    return {"id": call.world.next_id("call_"), "type": "function", "function": name}


def _call_deltas(function: dict[str, Any]) -> list[dict[str, Any]]:
    """A call in a stream: its name first, its arguments piece by piece."""
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


def _stream_error() -> bytes:
    return data_event(
        {"error": _fault(500, "The server had an error while processing your request. Sorry about that!")}
    )


# Responses ---


def _responses(call: Call) -> Reply:
    wrong = _wrong(call, "model", "input")
    if wrong:
        return wrong
    given = call.document["input"]
    question = last_text(given)
    prompt = count_tokens(given if isinstance(given, str) else question)
    text = said(question)
    choice = call.document.get("tool_choice")
    forced = ANY if choice == "required" else table(choice).get("name")
    pairs = [(tool.get("name"), tool.get("parameters")) for tool in tables(call.document.get("tools"))]
    wanted = tool_call(pairs, forced, given, text, "content")
    shape = table(table(call.document.get("text")).get("format"))
    if shape.get("type") in ("json_schema", "json_object"):
        text = json_text(shape.get("schema"), text)
    answered = count_tokens(wanted.text if wanted else text)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answered,
    }
    response = {
        "id": call.world.next_id("resp_"),
        "object": "response",
        "created_at": int(call.world.clock()),
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
    item = _called(call, wanted) if wanted else _spoken(call, text)
    if not call.document.get("stream"):
        return json_reply({**response, "output": [item]}, cost=cost)
    events = [
        named_event({**event, "sequence_number": at}) for at, event in enumerate(_response_events(response, item))
    ]
    fault = _fault(500, "The server had an error while processing your request.")
    # The reference puts code and message at the top, the service inside "error": both are here.
    failed = {**fault, "type": "error", "error": fault, "sequence_number": 2}
    return event_stream(events, marker=1, error_event=named_event(failed), cost=cost)


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _spoken(call: Call, text: str) -> dict[str, Any]:
    item = {"id": call.world.next_id("msg_"), "type": "message", "status": "completed", "role": "assistant"}
    return {**item, "content": [_output_text(text)]}


def _called(call: Call, wanted: ToolCall) -> dict[str, Any]:
    item = {"id": call.world.next_id("fc_"), "type": "function_call", "status": "completed"}
    return {**item, "call_id": call.world.next_id("call_"), "name": wanted.name, "arguments": wanted.text}


def _response_events(response: dict[str, Any], item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    empty: dict[str, Any] = {"content": []} if "content" in item else {"arguments": ""}
    started = {**item, "status": "in_progress", **empty}
    yield {"type": "response.output_item.added", "output_index": 0, "item": started}
    yield from _text_events(item) if "content" in item else _argument_events(item)
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": {**response, "output": [item]}}


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


# Everything that counts no completion ---


def _embeddings(call: Call) -> Reply:
    wrong = _wrong(call, "model", "input")
    if wrong:
        return wrong
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
    """A vector that depends on ``text`` alone; its numbers are exact in 32 bits."""
    seed = sum(text.encode("utf-8", "replace")) + 1
    return [((seed * (at + 3)) % 256 - 128) / 128 for at in range(width)]


def _images(call: Call) -> Reply:
    asked = call.document if isinstance(call.document, dict) else {}
    prompt = asked.get("prompt") or next((part.text for part in call.form if part.name == "prompt"), None)
    if not isinstance(prompt, str):
        return error(400, "Missing required parameter: 'prompt'.", "prompt")
    count = asked.get("n")
    image: dict[str, Any] = {"b64_json": base64.b64encode(PIXEL).decode()}
    if asked.get("response_format") == "url":
        image = {"url": "https://images.example.com/pixel.png"}
    read = count_tokens(prompt)
    counted = {
        "input_tokens": read,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
        "output_tokens": 1,
        "total_tokens": read + 1,
    }
    data = [{**image, "revised_prompt": said(prompt)}] * (count if isinstance(count, int) and 1 <= count <= 10 else 1)
    return json_reply({"created": int(call.world.clock()), "data": data, "usage": counted}, cost=FLAT_COST)


_SOUNDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def _speech(call: Call) -> Reply:
    wrong = _wrong(call, "model", "input")
    if wrong:
        return wrong
    kind = str(call.document.get("response_format") or "mp3")
    if kind not in _SOUNDS:
        return error(400, f"Invalid value: '{kind}'. Supported values are: {', '.join(_SOUNDS)}.", "response_format")
    return sound(str(call.document["input"]), _SOUNDS[kind])


def sound(text: str, content_type: str) -> Reply:
    """Binary in several chunks with every byte value in it: what a proxy that decodes or re-codes would
    damage.
    """
    noise = bytes(range(256)) * 4
    chunks = [b"ID3" + text.encode("utf-8", "replace")[:256] + noise, noise, noise[::-1]]
    cost = Cost(FLAT_COST.amount, Consumption(input_characters=len(text)))
    return Reply(200, chunks, content_type, streamed=True, cost=cost)


def _transcription(call: Call) -> Reply:
    fields = {part.name: part for part in call.form}
    upload = fields.get("file")
    if upload is None or upload.filename is None:
        return error(400, "Missing required parameter: 'file' (as multipart/form-data).", "file")
    if "model" not in fields:
        return error(400, "you must provide a model parameter", "model")
    text = said(f"{len(upload.content)} bytes of {upload.filename}")
    cost = Cost(FLAT_COST.amount, Consumption(input_seconds=Decimal(1)))
    wanted = fields["response_format"].text if "response_format" in fields else "json"
    if wanted in ("text", "srt", "vtt"):
        return Reply(200, [text.encode() + b"\n"], "text/plain; charset=utf-8", cost=cost)
    usage = {"type": "duration", "seconds": 1}
    reply: dict[str, Any] = {"text": text, "usage": usage}
    if wanted == "verbose_json":
        reply |= {"task": "transcribe", "language": "english", "duration": 1.0, "segments": [], "words": []}
    return json_reply(reply, cost=cost)


_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


def _moderations(call: Call) -> Reply:
    wrong = _wrong(call, "input")
    if wrong:
        return wrong
    given = call.document["input"]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
    }
    results = [result] * (len(given) if isinstance(given, list) else 1)
    return json_reply({"id": call.world.next_id("modr-"), "model": call.model, "results": results})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_735_689_600, "owned_by": "emulator"}


def _models(call: Call) -> Reply:
    return json_reply({"object": "list", "data": [_model(name) for name in MODELS]})


def _one_model(call: Call, name: str) -> Reply:
    if name not in MODELS:
        return error(404, f"The model '{name}' does not exist or you do not have access to it.", "model")
    return json_reply(_model(name))


# Files and batches ---


def _file(stored: StoredFile) -> dict[str, Any]:
    return {
        "id": stored.file_id,
        "object": "file",
        "bytes": len(stored.content),
        "created_at": stored.created_at,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
    }


def _upload(call: Call) -> Reply:
    fields = {part.name: part for part in call.form}
    upload = fields.get("file")
    if upload is None or upload.filename is None:
        return error(400, "Missing required parameter: 'file' (as multipart/form-data).", "file")
    purpose = fields["purpose"].text if "purpose" in fields else "user_data"
    stored = StoredFile(call.world.next_id("file-"), upload.filename, purpose, upload.content, int(call.world.clock()))
    call.world.files[stored.file_id] = stored
    return json_reply(_file(stored))


def _page(data: list[dict[str, Any]]) -> Reply:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return json_reply({"object": "list", "data": data, **ends, "has_more": False})


def _files(call: Call) -> Reply:
    purpose = call.query.get("purpose")
    return _page([_file(stored) for stored in call.world.files.values() if purpose in (None, stored.purpose)])


def _no_such(kind: str, name: str) -> Reply:
    return error(404, f"No such {kind} object: {name}", "id")


def _one_file(call: Call, file_id: str) -> Reply:
    stored = call.world.files.get(file_id)
    return json_reply(_file(stored)) if stored else _no_such("File", file_id)


def _file_content(call: Call, file_id: str) -> Reply:
    stored = call.world.files.get(file_id)
    return Reply(200, [stored.content], "application/octet-stream") if stored else _no_such("File", file_id)


def _delete_file(call: Call, file_id: str) -> Reply:
    if call.world.files.pop(file_id, None) is None:
        return _no_such("File", file_id)
    return json_reply({"id": file_id, "object": "file", "deleted": True})


def _create_batch(call: Call) -> Reply:
    wrong = _wrong(call, "input_file_id", "endpoint", "completion_window")
    if wrong:
        return wrong
    given = {name: call.document[name] for name in ("input_file_id", "endpoint", "completion_window")}
    if str(given["input_file_id"]) not in call.world.files:
        return _no_such("File", str(given["input_file_id"]))
    batch: dict[str, Any] = {
        "id": call.world.next_id("batch_"),
        "object": "batch",
        **given,
        "status": "validating",
        "created_at": int(call.world.clock()),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": call.document.get("metadata"),
    }
    call.world.batches[batch["id"]] = batch
    return json_reply(batch)


def _batches(call: Call) -> Reply:
    return _page(list(call.world.batches.values()))


def _one_batch(call: Call, batch_id: str) -> Reply:
    batch = call.world.batches.get(batch_id)
    return json_reply(batch) if batch else _no_such("Batch", batch_id)


def _cancel_batch(call: Call, batch_id: str) -> Reply:
    batch = call.world.batches.get(batch_id)
    if batch is None:
        return _no_such("Batch", batch_id)
    batch["status"] = "cancelling"
    return json_reply(batch)


_ENDPOINTS: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("POST", "chat/completions", _chat),
    ("POST", "completions", _text_completion),
    ("POST", "responses", _responses),
    ("POST", "embeddings", _embeddings),
    ("POST", "images/(?:generations|edits|variations)", _images),
    ("POST", "audio/speech", _speech),
    ("POST", "audio/(?:transcriptions|translations)", _transcription),
    ("POST", "moderations", _moderations),
    ("GET", "models", _models),
    ("GET", "models/(.+)", _one_model),
    ("POST", "files", _upload),
    ("GET", "files", _files),
    ("GET", "files/([^/]+)", _one_file),
    ("DELETE", "files/([^/]+)", _delete_file),
    ("GET", "files/([^/]+)/content", _file_content),
    ("POST", "batches", _create_batch),
    ("GET", "batches", _batches),
    ("GET", "batches/([^/]+)", _one_batch),
    ("POST", "batches/([^/]+)/cancel", _cancel_batch),
)

FIRST_WORDS = frozenset(re.split(r"[/(]", pattern)[0] for _, pattern, _ in _ENDPOINTS)
"""First words of the endpoints above."""


def echo(call: Call) -> Reply:
    """A service that is no model: it tells what reached it."""
    told = {
        "method": call.method,
        "path": "/" + call.rest,
        "query": call.query,
        "bytes": len(call.received.body),
    }
    return Reply(
        200,
        [compact(told)],
        "application/json",
        cost=FLAT_COST if call.method == "POST" else FREE,
    )
