"""Emulates Google's files and their resumable upload.

A file's content is counted and hashed, not stored: Google does not return it either. As at Google,
the address of an upload has Google's own host; a client with another base address has to replace
it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply
from proxy.emulator.provider_errors import google_error
from proxy.emulator.shapes import instant
from proxy.emulator.structured_output import as_object

HOST = "https://generativelanguage.googleapis.com"
_LIFETIME_SECONDS = 48 * 3600
_GRANULARITY = 262_144
_NAME = re.compile("files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MAX_UPLOADS = 1000


@dataclass(slots=True)
class Upload:
    """An upload. ``size`` is the announced size, ``received`` the present one, ``file`` the file
    once it is complete.
    """

    metadata: dict[str, Any]
    mime_type: str
    size: int | None
    received: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    status: str = "active"
    file: dict[str, Any] | None = None


def answer(call: EmulatedCall) -> EmulatedReply:
    """Answer every path below ``files`` and ``upload/…/files``."""
    url = call.received.url or ""
    if re.match(f"{re.escape(HOST)}/+upload/", url):
        return _upload(call, url) if call.rest == "files" else google_error(404, f"{call.rest} takes no upload.")
    name = call.rest
    if name == "files":
        match call.method:
            case "GET":
                return page(call, "files", list(_unexpired(call).values()))
            case "POST":
                return _create(call, Upload(_metadata(call), "application/octet-stream", 0))
        return google_error(404, f"{call.method} is not served for files.")
    found = _unexpired(call).get(name)
    if found is None:
        return google_error(403, f"You do not have permission to access the File {name} or it may not exist.")
    match call.method:
        case "GET":
            return json_reply(found)
        case "DELETE":
            del call.objects.google_files[name]
            return json_reply({})
    return google_error(404, f"{call.method} is not served for {name}.")


def page(call: EmulatedCall, kind: str, found: list[dict[str, Any]]) -> EmulatedReply:
    """Return one page of a list; ``pageToken`` is a position."""
    size, token = call.query.get("pageSize", ""), call.query.get("pageToken", "")
    count = int(size) if re.fullmatch("[1-9][0-9]{0,3}", size) else 100
    start = int(token) if re.fullmatch("[0-9]{1,9}", token) else 0
    # An empty list is left out, as Google does.
    body: dict[str, Any] = {kind: found[start : start + count]} if found[start:] else {}
    if len(found) > start + count:
        body["nextPageToken"] = str(start + count)
    return json_reply(body)


def unexpired(call: EmulatedCall, kept: dict[str, dict[str, Any]], until: str) -> dict[str, dict[str, Any]]:
    """Return ``kept`` without expired objects; ``until`` names the member with the expiry."""
    now = instant(call.now)
    for name in [name for name, one in kept.items() if one[until] <= now]:
        del kept[name]
    return kept


def _unexpired(call: EmulatedCall) -> dict[str, dict[str, Any]]:
    return unexpired(call, call.objects.google_files, "expirationTime")


def _metadata(call: EmulatedCall) -> dict[str, Any]:
    """Return the file's metadata in the request; Google accepts snake case as well."""
    given = as_object(as_object(call.document).get("file"))
    return {
        "name": given.get("name"),
        "displayName": given.get("displayName", given.get("display_name")),
        "mimeType": given.get("mimeType", given.get("mime_type")),
    }


# The upload ---


def _upload(call: EmulatedCall, url: str) -> EmulatedReply:
    if call.method not in ("POST", "PUT"):
        return google_error(404, f"{call.method} is not served for uploads.")
    if "upload_id" in call.query:
        return _continue(call, call.query["upload_id"])
    if (call.received.header("x-goog-upload-protocol") or "").lower() == "resumable":
        return _start(call, url)
    upload = Upload(_metadata(call), call.received.header("content-type") or "application/octet-stream", None)
    _append(upload, call.received.body)
    return _create(call, upload)


def _start(call: EmulatedCall, url: str) -> EmulatedReply:
    if _commands(call) != {"start"}:
        return google_error(400, "X-Goog-Upload-Command: an upload begins with start.")
    metadata = _metadata(call)
    wrong = _name_error(call, metadata["name"])
    if wrong:
        return wrong
    announced = call.received.header("x-goog-upload-header-content-length") or ""
    kind = call.received.header("x-goog-upload-header-content-type") or "application/octet-stream"
    size = int(announced) if re.fullmatch("[0-9]{1,15}", announced) else None
    name = secrets.token_urlsafe(24)
    call.uploads[name] = Upload(metadata, kind, size)
    while len(call.uploads) > _MAX_UPLOADS:
        del call.uploads[next(iter(call.uploads))]
    address = f"{url.partition('?')[0]}?upload_id={name}&upload_protocol=resumable"
    reply = EmulatedReply(200, [b""], "text/plain; charset=utf-8")
    reply.headers += [
        ("x-goog-upload-status", "active"),
        ("x-goog-upload-url", address),
        ("x-goog-upload-control-url", address),
        ("x-goog-upload-chunk-granularity", str(_GRANULARITY)),
        ("x-guploader-uploadid", name),
    ]
    return reply


def _continue(call: EmulatedCall, name: str) -> EmulatedReply:
    upload = call.uploads.get(name)
    if upload is None:
        return google_error(404, "The upload does not exist.")
    commands = _commands(call)
    if commands == {"query"}:
        return _state(upload)
    if upload.status != "active":
        return _state(upload, google_error(400, f"The upload is {upload.status}."))
    if commands == {"cancel"}:
        upload.status = "cancelled"
        return _state(upload)
    if not commands or commands - {"upload", "finalize"}:
        return _state(upload, google_error(400, "X-Goog-Upload-Command: upload, finalize, query or cancel."))
    if "upload" in commands:
        offset = call.received.header("x-goog-upload-offset")
        if offset != str(upload.received):
            return _state(upload, google_error(400, f"X-Goog-Upload-Offset: {upload.received} was expected."))
        _append(upload, call.received.body)
    if upload.size is not None and upload.received > upload.size:
        upload.status = "cancelled"
        return _state(upload, google_error(400, "More came than X-Goog-Upload-Header-Content-Length announced."))
    if "finalize" not in commands:
        return _state(upload)
    if upload.size is not None and upload.received < upload.size:
        return _state(upload, google_error(400, "Less came than X-Goog-Upload-Header-Content-Length announced."))
    upload.status = "final"
    return _state(upload, _create(call, upload))


def _commands(call: EmulatedCall) -> set[str]:
    given = call.received.header("x-goog-upload-command") or ""
    return {word.strip().lower() for word in given.split(",") if word.strip()}


def _state(upload: Upload, reply: EmulatedReply | None = None) -> EmulatedReply:
    """Return ``reply``, or an empty reply, with the state of the upload."""
    if reply is None:
        reply = (
            json_reply({"file": upload.file}) if upload.file else EmulatedReply(200, [b""], "text/plain; charset=utf-8")
        )
    reply.headers += [
        ("x-goog-upload-status", upload.status),
        ("x-goog-upload-size-received", str(upload.received)),
        ("x-goog-upload-chunk-granularity", str(_GRANULARITY)),
    ]
    return reply


def _append(upload: Upload, content: bytes) -> None:
    upload.received += len(content)
    upload.digest.update(content)


def _name_error(call: EmulatedCall, name: Any) -> EmulatedReply | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return google_error(400, f"File.name: must match {_NAME.pattern}.")
    return google_error(409, f"The File {name} exists already.") if name in _unexpired(call) else None


def _create(call: EmulatedCall, upload: Upload) -> EmulatedReply:
    wrong = _name_error(call, upload.metadata["name"])
    if wrong:
        return wrong
    now = call.now
    name = upload.metadata["name"] or f"files/{secrets.token_hex(6)}"
    made: dict[str, Any] = {
        "name": name,
        "displayName": upload.metadata["displayName"],
        "mimeType": upload.metadata["mimeType"] or upload.mime_type,
        "sizeBytes": str(upload.received),
        "createTime": instant(now),
        "updateTime": instant(now),
        "expirationTime": instant(now + _LIFETIME_SECONDS),
        # The base64 of the hexadecimal digest, as Google documents.
        "sha256Hash": base64.b64encode(upload.digest.hexdigest().encode()).decode(),
        "uri": f"{HOST}/v1beta/{name}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    upload.file = {key: value for key, value in made.items() if value is not None}
    call.objects.google_files[name] = upload.file
    return json_reply({"file": upload.file})
