"""Emulates Google's native Gemini API: generation (streams in both framings), embeddings, counting,
models.

Files are in ``google_files.py``, caches in ``google_caches.py``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from proxy.emulator import google_caches, google_files
from proxy.emulator.exchange import (
    EmulatedCall,
    EmulatedReply,
    compact,
    count_tokens,
    data_event,
    event_stream,
    json_reply,
    last_text,
    pieces,
    reply_text,
    token_cost,
)
from proxy.emulator.openai import embedding
from proxy.emulator.provider_errors import google_error, google_error_body
from proxy.emulator.structured_output import ANY, ToolCall, as_object, as_objects, json_text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001")


def answer(call: EmulatedCall) -> EmulatedReply:
    if call.method == "GET" and call.rest == "models":
        return json_reply({"models": [_model(name) for name in MODELS]})
    match call.rest.partition("/")[0]:
        case "files":
            return google_files.answer(call)
        case "cachedContents":
            return google_caches.answer(call)
    named = re.fullmatch("(?:models|tunedModels)/([^/:]+)(?::([A-Za-z]+))?", call.rest)
    if named is None:
        return google_error(404, f"{call.method} {call.rest} was not found.")
    name, method = named[1], named[2]
    if method is None:
        if call.method != "GET":
            return google_error(404, "A method after a colon is missing.")
        if name not in MODELS:
            return google_error(404, f"models/{name} is not found for this API version.")
        return json_reply(_model(name))
    if call.method != "POST":
        return google_error(404, f"{call.method} is not served for :{method}.")
    if not isinstance(call.document, dict):
        return google_error(400, "Invalid JSON payload received.")
    match method:
        case "generateContent":
            return _generate(call, name, streamed=False)
        case "streamGenerateContent":
            return _generate(call, name, streamed=True)
        case "embedContent":
            values = _embedding(call.document)
            return json_reply({"embedding": values}, cost=token_cost(1, 0))
        case "batchEmbedContents":
            requests = call.document.get("requests")
            if not isinstance(requests, list) or not requests:
                return google_error(400, "BatchEmbedContentsRequest.requests: at least one request is required.")
            found = [_embedding(one if isinstance(one, dict) else {}) for one in requests]
            return json_reply({"embeddings": found}, cost=token_cost(len(found), 0))
        case "countTokens":
            inner = call.document.get("generateContentRequest")
            body = inner if isinstance(inner, dict) else call.document
            return json_reply({"totalTokens": count_tokens(_question(body))})
    return google_error(404, f"models/{name} has no method {method}.")


def _model(name: str) -> dict[str, Any]:
    embeds = "embedding" in name
    methods = ["embedContent", "batchEmbedContents"] if embeds else ["generateContent", "countTokens"]
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": methods,
    }


def _question(body: dict[str, Any]) -> str:
    return last_text(body.get("contents"), content="parts")


def _embedding(body: dict[str, Any]) -> dict[str, Any]:
    content = body.get("content")
    text = last_text([content] if isinstance(content, dict) else [], content="parts")
    size = body.get("outputDimensionality")
    width = size if isinstance(size, int) and 0 < size <= 4096 else 8
    return {"values": embedding(text, width)}


def _generate(call: EmulatedCall, model: str, *, streamed: bool) -> EmulatedReply:
    if not isinstance(call.document.get("contents"), list) or not call.document["contents"]:
        return google_error(400, "* GenerateContentRequest.contents: contents is not specified")
    cache_name = call.document.get("cachedContent", call.document.get("cached_content"))
    cache = google_caches.find(call, cache_name)
    if cache_name is not None and cache is None:
        return google_caches.missing(cache_name)
    question = _question(call.document)
    text = reply_text(question)
    config = as_object(call.document.get("generationConfig"))
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    tool_use = _tool_use(call.document, text)
    if schema or config.get("responseMimeType") == "application/json":
        text = json_text(schema, text)
    read, written = count_tokens(question), count_tokens(tool_use.text if tool_use else text)
    parts: list[dict[str, Any]] = [{"text": piece} for piece in pieces(text)]
    if tool_use:
        parts = [{"functionCall": {"name": tool_use.name, "args": tool_use.arguments}}]
    usage: dict[str, Any] = {
        "promptTokenCount": read,
        "candidatesTokenCount": written,
        "totalTokenCount": read + written,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": read}],
    }
    cached = 0
    if cache is not None:
        cached = cache["usageMetadata"]["totalTokenCount"]
        usage |= {"cachedContentTokenCount": cached, "promptTokenCount": read + cached}
        usage["totalTokenCount"] += cached
    cost = token_cost(read + cached, written, cached)
    tail = {"modelVersion": model, "responseId": call.objects.next_id("gen")}
    if not streamed:
        candidate = {
            "content": {"parts": parts if tool_use else [{"text": text}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
        }
        return json_reply({"candidates": [candidate], "usageMetadata": usage, **tail}, cost=cost)
    fault = google_error_body(503, "The model is overloaded. Please try again later.")
    found = list(_stream(parts, usage, tail))
    if call.query.get("alt") == "sse":
        # Google ends its lines with CR LF, which a reader of SSE must accept as well.
        *events, broken = [data_event(one).replace(b"\n", b"\r\n") for one in [*found, fault]]
        return event_stream(events, marker=1, error_event=broken, cost=cost)
    return _array(found, fault, cost=cost)


def _array(found: list[dict[str, Any]], fault: dict[str, Any], **rest: Any) -> EmulatedReply:
    """Return the stream without ``alt=sse``: one JSON array whose elements come one by one."""
    last = len(found) - 1
    chunks = [(b"[" if at == 0 else b",\r\n") + compact(one) for at, one in enumerate(found)]
    # The closing bracket is a chunk of its own, so that a stream without its last element is still a whole array.
    chunks.append(b"]\n")
    reply = EmulatedReply(
        200, chunks, "application/json; charset=UTF-8", streamed=True, marker=frozenset({last}), **rest
    )
    reply.error_event = b",\r\n" + compact(fault) + b"]"
    return reply


def _tool_use(body: dict[str, Any], text: str) -> ToolCall | None:
    tools = [one for tool in as_objects(body.get("tools")) for one in as_objects(tool.get("functionDeclarations"))]
    config = as_object(as_object(body.get("toolConfig")).get("functionCallingConfig"))
    allowed = config.get("allowedFunctionNames")
    forced = (allowed[0] if isinstance(allowed, list) and allowed else ANY) if config.get("mode") == "ANY" else None
    pairs = [(tool.get("name"), tool.get("parametersJsonSchema") or tool.get("parameters")) for tool in tools]
    return tool_call(pairs, forced, body["contents"], text, "parts")


def _stream(parts: list[dict[str, Any]], usage: dict[str, Any], tail: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for at, part in enumerate(parts):
        candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        counted = {"promptTokenCount": usage["promptTokenCount"], "totalTokenCount": usage["promptTokenCount"]}
        if at == len(parts) - 1:
            candidate["finishReason"] = "STOP"
            counted = usage
        yield {"candidates": [candidate], "usageMetadata": counted, **tail}
