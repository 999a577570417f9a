"""Plays what OpenAI keeps: files, batches and responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply
from proxy.emulator.state import StoredFile
from proxy.emulator.wording import openai_error, openai_no_such, openai_wrong

if TYPE_CHECKING:
    from proxy.emulator.state import World

_KEPT_RESPONSES = 1000


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


def upload(call: EmulatedCall) -> EmulatedReply:
    """``POST files``"""
    fields = {part.name: part for part in call.form}
    upload = fields.get("file")
    if upload is None or upload.filename is None:
        return openai_error(400, "Missing required parameter: 'file' (as multipart/form-data).", "file")
    purpose = fields["purpose"].text if "purpose" in fields else "user_data"
    stored = StoredFile(call.world.next_id("file-"), upload.filename, purpose, upload.content, int(call.world.clock()))
    call.world.files[stored.file_id] = stored
    return json_reply(_file(stored))


def _page(data: list[dict[str, Any]]) -> EmulatedReply:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return json_reply({"object": "list", "data": data, **ends, "has_more": False})


def files(call: EmulatedCall) -> EmulatedReply:
    """``GET files``"""
    purpose = call.query.get("purpose")
    return _page([_file(stored) for stored in call.world.files.values() if purpose in (None, stored.purpose)])


def one_file(call: EmulatedCall, file_id: str) -> EmulatedReply:
    """``GET files/{id}``"""
    stored = call.world.files.get(file_id)
    return json_reply(_file(stored)) if stored else openai_no_such("File", file_id)


def file_content(call: EmulatedCall, file_id: str) -> EmulatedReply:
    """``GET files/{id}/content``"""
    stored = call.world.files.get(file_id)
    return (
        EmulatedReply(200, [stored.content], "application/octet-stream") if stored else openai_no_such("File", file_id)
    )


def delete_file(call: EmulatedCall, file_id: str) -> EmulatedReply:
    """``DELETE files/{id}``"""
    if call.world.files.pop(file_id, None) is None:
        return openai_no_such("File", file_id)
    return json_reply({"id": file_id, "object": "file", "deleted": True})


def create_batch(call: EmulatedCall) -> EmulatedReply:
    """``POST batches``"""
    wrong = openai_wrong(call, "input_file_id", "endpoint", "completion_window")
    if wrong:
        return wrong
    given = {name: call.document[name] for name in ("input_file_id", "endpoint", "completion_window")}
    if str(given["input_file_id"]) not in call.world.files:
        return openai_no_such("File", str(given["input_file_id"]))
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


def batches(call: EmulatedCall) -> EmulatedReply:
    """``GET batches``"""
    return _page(list(call.world.batches.values()))


def one_batch(call: EmulatedCall, batch_id: str) -> EmulatedReply:
    """``GET batches/{id}``"""
    batch = call.world.batches.get(batch_id)
    return json_reply(batch) if batch else openai_no_such("Batch", batch_id)


def cancel_batch(call: EmulatedCall, batch_id: str) -> EmulatedReply:
    """``POST batches/{id}/cancel``"""
    batch = call.world.batches.get(batch_id)
    if batch is None:
        return openai_no_such("Batch", batch_id)
    batch["status"] = "cancelling"
    return json_reply(batch)


def keep_response(world: World, response: dict[str, Any]) -> None:
    """Keep a response for whoever asks for it later; the oldest go first."""
    world.responses[response["id"]] = response
    while len(world.responses) > _KEPT_RESPONSES:
        del world.responses[next(iter(world.responses))]


def delete_response(call: EmulatedCall, response_id: str) -> EmulatedReply:
    """``DELETE responses/{id}``"""
    if call.world.responses.pop(response_id, None) is None:
        return openai_error(404, f"Response with id '{response_id}' not found.")
    return json_reply({"id": response_id, "object": "response", "deleted": True})


def cancel_response(call: EmulatedCall, response_id: str) -> EmulatedReply:
    """``POST responses/{id}/cancel``: every response here is complete from the start."""
    if response_id not in call.world.responses:
        return openai_error(404, f"Response with id '{response_id}' not found.")
    return openai_error(400, "Cannot cancel a completed response.")
