"""Emulates what OpenAI stores: files, batches and responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply
from proxy.emulator.provider_errors import openai_error, openai_missing
from proxy.emulator.records import StoredFile

if TYPE_CHECKING:
    from proxy.emulator.state import ProviderObjects

_MAX_RESPONSES = 1000


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
    fields = {part.name: part for part in call.form}
    upload = fields.get("file")
    if upload is None or upload.filename is None:
        return openai_error(400, "Missing required parameter: 'file' (as multipart/form-data).", "file")
    purpose = fields["purpose"].text if "purpose" in fields else "user_data"
    stored = StoredFile(call.objects.next_id("file-"), upload.filename, purpose, upload.content, int(call.now))
    call.objects.files[stored.file_id] = stored
    return json_reply(_file(stored))


def _page(data: list[dict[str, Any]]) -> EmulatedReply:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return json_reply({"object": "list", "data": data, **ends, "has_more": False})


def files(call: EmulatedCall) -> EmulatedReply:
    purpose = call.query.get("purpose")
    return _page([_file(stored) for stored in call.objects.files.values() if purpose in (None, stored.purpose)])


def one_file(call: EmulatedCall, file_id: str) -> EmulatedReply:
    stored = call.objects.files.get(file_id)
    return json_reply(_file(stored)) if stored else openai_missing("File", file_id)


def file_content(call: EmulatedCall, file_id: str) -> EmulatedReply:
    stored = call.objects.files.get(file_id)
    return (
        EmulatedReply(200, [stored.content], "application/octet-stream") if stored else openai_missing("File", file_id)
    )


def delete_file(call: EmulatedCall, file_id: str) -> EmulatedReply:
    if call.objects.files.pop(file_id, None) is None:
        return openai_missing("File", file_id)
    return json_reply({"id": file_id, "object": "file", "deleted": True})


def create_batch(call: EmulatedCall) -> EmulatedReply:
    given = {name: call.document[name] for name in ("input_file_id", "endpoint", "completion_window")}
    if str(given["input_file_id"]) not in call.objects.files:
        return openai_missing("File", str(given["input_file_id"]))
    batch: dict[str, Any] = {
        "id": call.objects.next_id("batch_"),
        "object": "batch",
        **given,
        "status": "validating",
        "created_at": int(call.now),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": call.document.get("metadata"),
    }
    call.objects.batches[batch["id"]] = batch
    return json_reply(batch)


def batches(call: EmulatedCall) -> EmulatedReply:
    return _page(list(call.objects.batches.values()))


def one_batch(call: EmulatedCall, batch_id: str) -> EmulatedReply:
    batch = call.objects.batches.get(batch_id)
    return json_reply(batch) if batch else openai_missing("Batch", batch_id)


def cancel_batch(call: EmulatedCall, batch_id: str) -> EmulatedReply:
    batch = call.objects.batches.get(batch_id)
    if batch is None:
        return openai_missing("Batch", batch_id)
    batch["status"] = "cancelling"
    return json_reply(batch)


def store_response(objects: ProviderObjects, response: dict[str, Any]) -> None:
    """Store a response; the oldest are deleted."""
    objects.responses[response["id"]] = response
    while len(objects.responses) > _MAX_RESPONSES:
        del objects.responses[next(iter(objects.responses))]


def delete_response(call: EmulatedCall, response_id: str) -> EmulatedReply:
    if call.objects.responses.pop(response_id, None) is None:
        return openai_error(404, f"Response with id '{response_id}' not found.")
    return json_reply({"id": response_id, "object": "response", "deleted": True})


def cancel_response(call: EmulatedCall, response_id: str) -> EmulatedReply:
    """Refuse to cancel: every response here is complete at once."""
    if response_id not in call.objects.responses:
        return openai_error(404, f"Response with id '{response_id}' not found.")
    return openai_error(400, "Cannot cancel a completed response.")
