"""The errors of OpenAI, Anthropic and Google, in their own forms."""

from __future__ import annotations

from typing import Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, data_event, json_reply

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_OPENAI_CODES = {
    401: "invalid_api_key",
    402: "insufficient_balance",
    404: "model_not_found",
    429: "rate_limit_exceeded",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def openai_error(status: int, message: str, param: str | None = None) -> EmulatedReply:
    reply = json_reply({"error": openai_error_body(status, message, param)}, status)
    reply.headers.append(("x-request-id", "req_openai_emulated"))
    return reply


def openai_error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the ``error`` member."""
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": _OPENAI_CODES.get(status)}


def openai_stream_error() -> bytes:
    """Return an error as an event of an OpenAI stream whose events have no names."""
    message = "The server had an error while processing your request. Sorry about that!"
    return data_event({"error": openai_error_body(500, message)})


def openai_body_error(call: EmulatedCall, *needed: str) -> EmulatedReply | None:
    """Return OpenAI's 400 for a body that is not JSON or lacks a member."""
    if not isinstance(call.document, dict):
        return openai_error(400, "We could not parse the JSON body of your request.")
    for name in needed:
        if name not in call.document:
            return openai_error(400, f"Missing required parameter: '{name}'.", name)
    return None


def openai_missing(kind: str, name: str) -> EmulatedReply:
    return openai_error(404, f"No such {kind} object: {name}", "id")


def anthropic_error(status: int, message: str) -> EmulatedReply:
    reply = json_reply({**anthropic_error_body(status, message), "request_id": "req_anthropic_emulated"}, status)
    reply.headers.append(("request-id", "req_anthropic_emulated"))
    return reply


def anthropic_error_body(status: int, message: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def google_error(status: int, message: str) -> EmulatedReply:
    return json_reply(google_error_body(status, message), status)


def google_error_body(status: int, message: str) -> dict[str, Any]:
    word = _GOOGLE_STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")
    return {"error": {"code": status, "message": message, "status": word}}
