"""Lava's rewrite address: chat completions and messages translated into each other, for plain text.

A stream is translated event by event, so that a cut or a stall looks to the client as it would at
Lava. Tools and images are left out; what Lava does with them is not documented.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy.emulator import openai
from proxy.emulator.exchange import EmulatedReply, data_event, event_stream, json_reply, named_event, plain_text
from proxy.emulator.provider_errors import anthropic_error, openai_error
from proxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SUFFIXES = {
    Dialect.OPENAI: ("/v1/chat/completions", "/chat/completions"),
    Dialect.ANTHROPIC: ("/v1/messages", "/messages"),
}
"""What a client of the dialect appends to its base address. Lava documents that it removes the first one."""

_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def request_for_anthropic(body: dict[str, Any]) -> dict[str, Any]:
    given = _messages_of(body)
    system = [plain_text(message.get("content")) for message in given if message.get("role") in ("system", "developer")]
    others = [
        {
            "role": "assistant" if message.get("role") == "assistant" else "user",
            "content": plain_text(message.get("content")),
        }
        for message in given
        if message.get("role") not in ("system", "developer")
    ]
    out: dict[str, Any] = {"model": body.get("model"), "messages": others}
    out["max_tokens"] = body.get("max_completion_tokens") or body.get("max_tokens") or 4096
    if system:
        out["system"] = "\n".join(system)
    if body.get("stop"):
        out["stop_sequences"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    return out | {name: body[name] for name in ("stream", "temperature", "top_p") if name in body}


def _messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    given = body.get("messages")
    return [message for message in given if isinstance(message, dict)] if isinstance(given, list) else []


def request_for_openai(body: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "system", "content": plain_text(body["system"])}] if body.get("system") else []
    for message in _messages_of(body):
        messages.append({"role": str(message.get("role")), "content": plain_text(message.get("content"))})
    out: dict[str, Any] = {"model": body.get("model"), "messages": messages, "max_tokens": body.get("max_tokens")}
    if body.get("stop_sequences"):
        out["stop"] = body["stop_sequences"]
    if body.get("stream"):
        # Anthropic always sends usage at the end of a stream, so the translation has to request it.
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    return out | {name: body[name] for name in ("temperature", "top_p") if name in body}


def reply_for_openai(reply: EmulatedReply, now: float, *, with_usage: bool) -> EmulatedReply:
    """Return a messages reply as a chat completion; ``with_usage``: with the usage of a stream."""
    if reply.status >= 400:
        return openai_error(reply.status, _message_of(reply))
    if reply.streamed:
        fault = data_event(
            {"error": {"message": "Overloaded", "type": "overloaded_error", "param": None, "code": None}}
        )
        events = _chat_events(_events_of(reply.chunks), now, with_usage=with_usage)
        return event_stream(events, marker=1, error_event=fault, cost=reply.cost)
    message = json.loads(reply.chunks[0])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": plain_text(message["content"]), "refusal": None},
        "logprobs": None,
        "finish_reason": _FINISH.get(message["stop_reason"], "stop"),
    }
    usage = _chat_usage(_input_tokens(message), message["usage"]["output_tokens"])
    head = _chat_head(message, "chat.completion", now)
    return json_reply({**head, "choices": [choice], "usage": usage}, cost=reply.cost)


def reply_for_anthropic(reply: EmulatedReply) -> EmulatedReply:
    if reply.status >= 400:
        return anthropic_error(reply.status, _message_of(reply))
    if reply.streamed:
        fault = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        events = map(named_event, _message_events(_events_of(reply.chunks)))
        return event_stream(events, marker=1, error_event=named_event(fault), cost=reply.cost)
    completion = json.loads(reply.chunks[0])
    choice = completion["choices"][0]
    message = _message_head(completion)
    message["content"] = [{"type": "text", "text": choice["message"]["content"]}]
    message["stop_reason"] = _STOP.get(choice["finish_reason"], "end_turn")
    message["usage"] = _message_usage(completion["usage"])
    return json_reply(message, cost=reply.cost)


def _message_of(reply: EmulatedReply) -> str:
    return str(json.loads(reply.chunks[0])["error"]["message"])


def _events_of(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each event, without OpenAI's ``[DONE]``."""
    for chunk in chunks:
        text = chunk.decode().rpartition("data: ")[2].strip()
        if text != "[DONE]":
            yield json.loads(text)


def _chat_head(message: dict[str, Any], kind: str, now: float) -> dict[str, Any]:
    name = str(message["id"]).replace("msg_", "chatcmpl-")
    return {"id": name, "object": kind, "created": int(now), "model": message["model"]}


def _input_tokens(message: dict[str, Any]) -> int:
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(message["usage"][name] for name in names)


def _chat_usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _chat_events(events: Iterable[dict[str, Any]], now: float, *, with_usage: bool) -> Iterator[bytes]:
    head: dict[str, Any] = {}
    read = written = 0

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return data_event(
            {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        )

    for event in events:
        match event["type"]:
            case "message_start":
                head = _chat_head(event["message"], "chat.completion.chunk", now)
                read = _input_tokens(event["message"])
                yield chunk({"role": "assistant", "content": ""})
            case "content_block_delta":
                yield chunk({"content": event["delta"]["text"]})
            case "message_delta":
                written = event["usage"]["output_tokens"]
                yield chunk({}, _FINISH.get(event["delta"]["stop_reason"], "stop"))
            case "message_stop":
                if with_usage:
                    yield data_event({**head, "choices": [], "usage": _chat_usage(read, written)})
                yield openai.DONE


def _message_head(completion: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(completion["id"]).replace("chatcmpl-", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": completion["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _message_usage(usage: dict[str, Any]) -> dict[str, int]:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


def _message_events(chunks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    begun = False
    reason, usage = "end_turn", {"input_tokens": 0, "output_tokens": 0}
    for chunk in chunks:
        if not begun:
            begun = True
            yield {"type": "message_start", "message": _message_head(chunk)}
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        if chunk.get("usage"):
            usage = _message_usage(chunk["usage"])
        for choice in chunk["choices"]:
            text = choice["delta"].get("content")
            if text:
                yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            reason = _STOP.get(choice["finish_reason"], reason)
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}
