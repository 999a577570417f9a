"""Plays Google's files: the resumable upload, and the files that came of it.

A file's content is counted and hashed, not kept: Google gives none of it back either. As at Google, the address of an upload
names Google's own host, whoever asked; who reaches Google by way of another address has to put that one in.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply
from proxy.emulator.shapes import instant
from proxy.emulator.wanted import table
from proxy.emulator.wording import google_error

if TYPE_CHECKING:
    from proxy.emulator.state import World

HOST = "https://generativelanguage.googleapis.com"
_LIFE_S = 48 * 3600
_GRANULARITY = 262_144
_NAME = re.compile("files/[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MAX_UPLOADS = 1000


@dataclass(slots=True)
class Upload:
    """An upload that began. ``size`` is what was announced, ``received`` what came; ``made`` is the file, once it is whole."""

    told: dict[str, Any]
    mime_type: str
    size: int | None
    received: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    status: str = "active"
    made: dict[str, Any] | None = None


def answer(call: EmulatedCall) -> EmulatedReply:
    """Everything below ``files`` and ``upload/…/files``."""
    url = call.received.url or ""
    if re.match(f"{re.escape(HOST)}/+upload/", url):
        return _upload(call, url) if call.rest == "files" else google_error(404, f"{call.rest} takes no upload.")
    name = call.rest
    if name == "files":
        match call.method:
            case "GET":
                return page(call, "files", list(_alive(call.world).values()))
            case "POST":
                # Without an upload there is nothing but what was told.
                return _made(call, Upload(_told(call), "application/octet-stream", 0))
        return google_error(404, f"{call.method} is not served for files.")
    found = _alive(call.world).get(name)
    if found is None:
        return google_error(403, f"You do not have permission to access the File {name} or it may not exist.")
    match call.method:
        case "GET":
            return json_reply(found)
        case "DELETE":
            del call.world.google_files[name]
            return json_reply({})
    return google_error(404, f"{call.method} is not served for {name}.")


def page(call: EmulatedCall, kind: str, found: list[dict[str, Any]]) -> EmulatedReply:
    """One page of a list, as ``pageSize`` and ``pageToken`` say; the token is a position."""
    size, token = call.query.get("pageSize", ""), call.query.get("pageToken", "")
    count = int(size) if re.fullmatch("[1-9][0-9]{0,3}", size) else 100
    start = int(token) if re.fullmatch("[0-9]{1,9}", token) else 0
    # An empty list is left out, as Google does.
    told: dict[str, Any] = {kind: found[start : start + count]} if found[start:] else {}
    if len(found) > start + count:
        told["nextPageToken"] = str(start + count)
    return json_reply(told)


def unexpired(world: World, kept: dict[str, dict[str, Any]], until: str) -> dict[str, dict[str, Any]]:
    """``kept`` without what has expired by now; ``until`` names the member that says when."""
    now = instant(world.clock())
    for name in [name for name, one in kept.items() if one[until] <= now]:
        del kept[name]
    return kept


def _alive(world: World) -> dict[str, dict[str, Any]]:
    return unexpired(world, world.google_files, "expirationTime")


def _told(call: EmulatedCall) -> dict[str, Any]:
    """What the request says of the file; Google takes snake case as well."""
    given = table(table(call.document).get("file"))
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
        return _go_on(call, call.query["upload_id"])
    if (call.received.header("x-goog-upload-protocol") or "").lower() == "resumable":
        return _start(call, url)
    upload = Upload(_told(call), call.received.header("content-type") or "application/octet-stream", None)
    _take(upload, call.received.body)
    return _made(call, upload)


def _start(call: EmulatedCall, url: str) -> EmulatedReply:
    if _commands(call) != {"start"}:
        return google_error(400, "X-Goog-Upload-Command: an upload begins with start.")
    told = _told(call)
    wrong = _wrong_name(call.world, told["name"])
    if wrong:
        return wrong
    announced = call.received.header("x-goog-upload-header-content-length") or ""
    kind = call.received.header("x-goog-upload-header-content-type") or "application/octet-stream"
    size = int(announced) if re.fullmatch("[0-9]{1,15}", announced) else None
    name = secrets.token_urlsafe(24)
    call.world.uploads[name] = Upload(told, kind, size)
    while len(call.world.uploads) > _MAX_UPLOADS:
        del call.world.uploads[next(iter(call.world.uploads))]
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


def _go_on(call: EmulatedCall, name: str) -> EmulatedReply:
    upload = call.world.uploads.get(name)
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
        _take(upload, call.received.body)
    if upload.size is not None and upload.received > upload.size:
        upload.status = "cancelled"
        return _state(upload, google_error(400, "More came than X-Goog-Upload-Header-Content-Length announced."))
    if "finalize" not in commands:
        return _state(upload)
    if upload.size is not None and upload.received < upload.size:
        return _state(upload, google_error(400, "Less came than X-Goog-Upload-Header-Content-Length announced."))
    upload.status = "final"
    return _state(upload, _made(call, upload))


def _commands(call: EmulatedCall) -> set[str]:
    given = call.received.header("x-goog-upload-command") or ""
    return {word.strip().lower() for word in given.split(",") if word.strip()}


def _state(upload: Upload, reply: EmulatedReply | None = None) -> EmulatedReply:
    """``reply``, or an empty answer, with where the upload stands."""
    if reply is None:
        reply = (
            json_reply({"file": upload.made}) if upload.made else EmulatedReply(200, [b""], "text/plain; charset=utf-8")
        )
    reply.headers += [
        ("x-goog-upload-status", upload.status),
        ("x-goog-upload-size-received", str(upload.received)),
        ("x-goog-upload-chunk-granularity", str(_GRANULARITY)),
    ]
    return reply


def _take(upload: Upload, content: bytes) -> None:
    upload.received += len(content)
    upload.digest.update(content)


def _wrong_name(world: World, name: Any) -> EmulatedReply | None:
    if name is None:
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return google_error(400, f"File.name: must match {_NAME.pattern}.")
    return google_error(409, f"The File {name} exists already.") if name in _alive(world) else None


def _made(call: EmulatedCall, upload: Upload) -> EmulatedReply:
    """The file that an upload makes."""
    wrong = _wrong_name(call.world, upload.told["name"])
    if wrong:
        return wrong
    now = call.world.clock()
    name = upload.told["name"] or f"files/{secrets.token_hex(6)}"
    made: dict[str, Any] = {
        "name": name,
        "displayName": upload.told["displayName"],
        "mimeType": upload.told["mimeType"] or upload.mime_type,
        "sizeBytes": str(upload.received),
        "createTime": instant(now),
        "updateTime": instant(now),
        "expirationTime": instant(now + _LIFE_S),
        # The base64 of the hexadecimal digest: so says Google.
        "sha256Hash": base64.b64encode(upload.digest.hexdigest().encode()).decode(),
        "uri": f"{HOST}/v1beta/{name}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    upload.made = {key: value for key, value in made.items() if value is not None}
    call.world.google_files[name] = upload.made
    return json_reply({"file": upload.made})
