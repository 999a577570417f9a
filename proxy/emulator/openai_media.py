"""Emulates OpenAI's images and audio: whole, and as streams of events."""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import (
    FLAT_COST,
    Cost,
    EmulatedCall,
    EmulatedReply,
    count_tokens,
    data_event,
    event_stream,
    json_reply,
    named_event,
    pieces,
    reply_text,
)
from proxy.emulator.provider_errors import openai_error, openai_error_body, openai_stream_error
from proxy.emulator.records import Consumption

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A PNG of one grey pixel.
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")

_MAX_IMAGES = 10
_MAX_PARTIAL_IMAGES = 3

_SOUNDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def images(call: EmulatedCall, endpoint: str) -> EmulatedReply:
    """Answer ``images/generations``, ``edits`` and ``variations``; the first two also stream."""
    fields = call.document if isinstance(call.document, dict) else {part.name: part.text for part in call.form}
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        return openai_error(400, "Missing required parameter: 'prompt'.", "prompt")
    read = count_tokens(prompt)
    usage = {
        "input_tokens": read,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
        "output_tokens": 1,
        "total_tokens": read + 1,
    }
    now = int(call.now)
    if endpoint != "variations" and _is_true(fields.get("stream")):
        kind = "image_edit" if endpoint == "edits" else "image_generation"
        partial = _count(fields.get("partial_images"), 0, _MAX_PARTIAL_IMAGES)
        events = map(named_event, _image_events(kind, partial, now, usage))
        fault = openai_error_body(500, "The server had an error while processing your request.")
        failed = named_event({"type": "error", "error": fault})
        return event_stream(events, marker=1, error_event=failed, cost=FLAT_COST)
    image: dict[str, Any] = {"b64_json": base64.b64encode(PIXEL).decode()}
    if fields.get("response_format") == "url":
        image = {"url": "https://images.example.com/pixel.png"}
    data = [{**image, "revised_prompt": reply_text(prompt)}] * _count(fields.get("n"), 1, _MAX_IMAGES)
    return json_reply({"created": now, "data": data, "usage": usage}, cost=FLAT_COST)


def _is_true(value: Any) -> bool:
    """Return whether a flag is true, in JSON or in a form."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _count(value: Any, least: int, most: int) -> int:
    """Return a number from JSON or a form; ``least`` if it is not one or out of range."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 9:
        value = int(value)
    return value if isinstance(value, int) and least <= value <= most else least


def _image_events(kind: str, partial: int, now: int, usage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    picture = {
        "b64_json": base64.b64encode(PIXEL).decode(),
        "background": "opaque",
        "created_at": now,
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    for index in range(partial):
        yield {"type": f"{kind}.partial_image", **picture, "partial_image_index": index}
    yield {"type": f"{kind}.completed", **picture, "usage": usage}


def speech(call: EmulatedCall) -> EmulatedReply:
    """Return sound, or with ``stream_format`` "sse" events that contain it."""
    kind = str(call.document.get("response_format") or "mp3")
    if kind not in _SOUNDS:
        return openai_error(
            400, f"Invalid value: '{kind}'. Supported values are: {', '.join(_SOUNDS)}.", "response_format"
        )
    text = str(call.document["input"])
    whole = sound(text, _SOUNDS[kind])
    if call.document.get("stream_format") != "sse":
        return whole
    audio = [{"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()} for chunk in whole.chunks]
    read = count_tokens(text)
    usage = {"input_tokens": read, "output_tokens": len(audio), "total_tokens": read + len(audio)}
    events = map(data_event, [*audio, {"type": "speech.audio.done", "usage": usage}])
    return event_stream(events, marker=1, error_event=openai_stream_error(), cost=whole.cost)


def sound(text: str, content_type: str) -> EmulatedReply:
    """Return binary chunks with every byte value: a proxy that decodes or re-encodes would damage them."""
    noise = bytes(range(256)) * 4
    chunks = [b"ID3" + text.encode("utf-8", "replace")[:256] + noise, noise, noise[::-1]]
    cost = Cost(FLAT_COST.amount, Consumption(input_characters=len(text)))
    return EmulatedReply(200, chunks, content_type, streamed=True, cost=cost)


def transcription(call: EmulatedCall, endpoint: str) -> EmulatedReply:
    """Answer ``audio/transcriptions`` and ``translations``; the first also streams."""
    fields = {part.name: part for part in call.form}
    upload = fields.get("file")
    if upload is None or upload.filename is None:
        return openai_error(400, "Missing required parameter: 'file' (as multipart/form-data).", "file")
    if "model" not in fields:
        return openai_error(400, "you must provide a model parameter", "model")
    text = reply_text(f"{len(upload.content)} bytes of {upload.filename}")
    cost = Cost(FLAT_COST.amount, Consumption(input_seconds=Decimal(1)))
    if endpoint == "transcriptions" and "stream" in fields and _is_true(fields["stream"].text):
        deltas = [{"type": "transcript.text.delta", "delta": piece} for piece in pieces(text)]
        written = count_tokens(text)
        usage = {"type": "tokens", "input_tokens": 10, "output_tokens": written, "total_tokens": 10 + written}
        events = map(data_event, [*deltas, {"type": "transcript.text.done", "text": text, "usage": usage}])
        return event_stream(events, marker=1, error_event=openai_stream_error(), cost=cost)
    form = fields["response_format"].text if "response_format" in fields else "json"
    if form in ("text", "srt", "vtt"):
        return EmulatedReply(200, [text.encode() + b"\n"], "text/plain; charset=utf-8", cost=cost)
    reply: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": 1}}
    if form == "verbose_json":
        reply |= {"task": "transcribe", "language": "english", "duration": 1.0, "segments": [], "words": []}
    return json_reply(reply, cost=cost)
