"""Emulates ElevenLabs, as the example of a provider with an interface of its own."""

from __future__ import annotations

import re

from proxy.emulator.exchange import FLAT_COST, EmulatedCall, EmulatedReply, json_reply, reply_text
from proxy.emulator.openai_media import sound

_WORDS = {
    400: "invalid_request",
    401: "invalid_api_key",
    402: "payment_required",
    404: "not_found",
    429: "too_many_requests",
}

VOICES = ("21m00Tcm4TlvDq8ikWAM",)


def error(status: int, message: str) -> EmulatedReply:
    return json_reply({"detail": {"status": _WORDS.get(status, "error"), "message": message}}, status)


def answer(call: EmulatedCall) -> EmulatedReply:
    if call.method == "POST" and re.fullmatch("text-to-speech/[^/]+(?:/stream)?", call.rest):
        if not isinstance(call.document, dict) or not isinstance(call.document.get("text"), str):
            return error(400, "A text is required.")
        reply = sound(call.document["text"], "audio/mpeg")
        reply.headers.append(("x-character-count", str(len(call.document["text"]))))
        return reply
    if call.method == "POST" and call.rest == "speech-to-text":
        upload = next((part for part in call.form if part.name == "file"), None)
        if upload is None:
            return error(400, "A file is required.")
        text = reply_text(f"{len(upload.content)} bytes of {upload.filename}")
        return json_reply({"language_code": "eng", "text": text, "words": []}, cost=FLAT_COST)
    if call.method == "GET" and call.rest == "voices":
        return json_reply({"voices": [{"voice_id": voice, "name": "Demo"} for voice in VOICES]})
    if call.method == "GET" and call.rest == "models":
        return json_reply([{"model_id": "eleven_multilingual_v2", "name": "Multilingual"}])
    return error(404, "Not Found")
