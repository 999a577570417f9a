"""What the offline providers keep, and the streams that are no chat: by the official SDKs through a real daemon.

The answers of Anthropic's batches, Google's files and caches, OpenAI's stored responses, pictures and sound are read by the
vendors' own models, so a member that an SDK wants and does not get shows here.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai import errors as google_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemons import Daemon, StartDaemon

    from proxy.emulator import Emulator

GOOGLE = "https://generativelanguage.googleapis.com"
OPENAI = "https://api.openai.com/v1"
PNG = b"\x89PNG"


@pytest.fixture
def proxied(emulator: Emulator, daemon: StartDaemon) -> Daemon:
    """A daemon before the emulator, without local keys."""
    config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
    return daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[emulator.world.secret_key])


@pytest.fixture
def claude(proxied: Daemon) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=proxied.url, api_key="unused", max_retries=0)


@pytest.fixture
def gemini(proxied: Daemon) -> genai.Client:
    return genai.Client(api_key="unused", http_options={"base_url": proxied.url})


@pytest.fixture
def gpt(proxied: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxied.url}/v1", api_key="unused", max_retries=0)


class Direct:
    """A client of the emulator itself, for what no SDK says: it calls ``forward``."""

    def __init__(self, emulator: Emulator) -> None:
        self.http = httpx2.Client(base_url=emulator.base_url, trust_env=False, timeout=20.0)
        self._key = emulator.world.secret_key

    def __call__(self, method: str, url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
        bearer = {"authorization": f"Bearer {self._key}", "anthropic-version": "2023-06-01"}
        return self.http.request(method, "forward?u=" + quote(url, safe=""), headers=bearer | (headers or {}), **body)


@pytest.fixture
def forward(emulator: Emulator) -> Iterator[Direct]:
    direct = Direct(emulator)
    with direct.http:
        yield direct


# Anthropic's batches ---


def asked(custom_id: str, **params: Any) -> Any:
    """One request of a batch."""
    whole = {"model": "claude-opus-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "params": {**whole, **params}}


def test_a_message_batch_is_made_polled_and_read(claude: anthropic.Anthropic) -> None:
    """In progress when it is made, ended when it is looked at; a result for each request, a wrong one among them."""
    requests = [asked("one"), asked("two"), asked("bad", messages=[])]
    made = claude.messages.batches.create(requests=requests)
    assert (made.processing_status, made.request_counts.processing, made.results_url) == ("in_progress", 3, None)
    ended = claude.messages.batches.retrieve(made.id)
    assert (ended.processing_status, ended.request_counts.succeeded, ended.request_counts.errored) == ("ended", 2, 1)
    results = {one.custom_id: one.result for one in claude.messages.batches.results(made.id)}
    assert list(results) == ["one", "two", "bad"]
    assert results["one"].type == "succeeded"
    assert getattr(results["one"].message.content[0], "text", None) == "You said: one"
    assert results["one"].message.model == "claude-opus-4-6"
    assert results["bad"].type == "errored"
    assert results["bad"].error.error.type == "invalid_request_error"
    assert claude.messages.batches.delete(made.id).id == made.id
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(made.id)


def test_a_message_batch_is_cancelled(claude: anthropic.Anthropic) -> None:
    """Cancelling first, then ended with every result cancelled; one that ended stays as it is."""
    made = claude.messages.batches.create(requests=[asked("one")])
    assert claude.messages.batches.cancel(made.id).processing_status == "canceling"
    ended = claude.messages.batches.retrieve(made.id)
    assert (ended.processing_status, ended.request_counts.canceled) == ("ended", 1)
    assert [one.result.type for one in claude.messages.batches.results(made.id)] == ["canceled"]
    assert claude.messages.batches.cancel(made.id).processing_status == "ended"


def test_message_batches_are_listed_by_pages(claude: anthropic.Anthropic) -> None:
    """The newest first; an SDK that asks for more gets each once; the beta's address is the same."""
    made = [claude.messages.batches.create(requests=[asked("one")]).id for _ in range(5)]
    assert [one.id for one in claude.messages.batches.list(limit=2)] == made[::-1]
    assert [one.id for one in claude.messages.batches.list(limit=2).data] == made[:2:-1]
    assert [one.id for one in claude.messages.batches.list(before_id=made[0], limit=2).data] == made[2:0:-1]
    assert [one.id for one in claude.beta.messages.batches.list()] == made[::-1]


@pytest.mark.parametrize(
    "requests",
    [[], [asked("with space")], [asked("twice"), asked("twice")], [{"custom_id": "one"}], "text", None],
    ids=["none", "name", "twice", "params", "text", "null"],
)
def test_a_message_batch_that_is_none_is_400(claude: anthropic.Anthropic, requests: Any) -> None:
    """In Anthropic's words, and nothing is kept."""
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.batches.create(requests=requests)
    assert claude.messages.batches.list().data == []


# Google's files ---


def test_a_file_is_uploaded_listed_and_deleted(gemini: genai.Client) -> None:
    """By the SDK's resumable upload: name, type, size and state are those of what was sent."""
    content = bytes(range(256)) * 40
    made = gemini.files.upload(
        file=io.BytesIO(content),
        config={
            "mime_type": "text/plain",
            "display_name": "notes",
            "name": "my-notes",
        },
    )
    assert (made.name, made.display_name, made.mime_type) == ("files/my-notes", "notes", "text/plain")
    assert made.size_bytes == len(content)
    assert made.state is not None
    assert made.state.name == "ACTIVE"
    assert made.uri == f"{GOOGLE}/v1beta/files/my-notes"
    other = gemini.files.upload(file=io.BytesIO(b""), config={"mime_type": "text/plain"})
    assert other.size_bytes in (0, None)
    assert gemini.files.get(name="my-notes").name == made.name
    assert {one.name for one in gemini.files.list(config={"page_size": 1})} == {made.name, other.name}
    gemini.files.delete(name="my-notes")
    with pytest.raises(google_errors.ClientError):
        gemini.files.get(name="my-notes")


def test_a_large_file_goes_up_in_pieces(gemini: genai.Client, emulator: Emulator) -> None:
    """More than the SDK sends at once (8 MiB): every piece arrives once, at its offset."""
    content = b"0123456789abcdef" * (9 * 65536)
    made = gemini.files.upload(file=io.BytesIO(content), config={"mime_type": "video/mp4"})
    assert made.size_bytes == len(content)
    offsets = [one.header("x-goog-upload-offset") for one in emulator.world.received]
    assert [int(offset) for offset in offsets if offset] == [0, 8 * 1024 * 1024]


def start(forward: Direct, size: int | None = None) -> str:
    """Begin an upload; its address."""
    headers = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    if size is not None:
        headers["x-goog-upload-header-content-length"] = str(size)
    begun = forward("POST", f"{GOOGLE}/upload/v1beta/files", headers, json={"file": {"display_name": "x"}})
    assert begun.headers["x-goog-upload-status"] == "active"
    return begun.headers["x-goog-upload-url"]


def send(forward: Direct, url: str, command: str, offset: int | None = None, content: bytes = b"") -> httpx2.Response:
    """One request of an upload."""
    headers = {"x-goog-upload-command": command}
    if offset is not None:
        headers["x-goog-upload-offset"] = str(offset)
    return forward("POST", url, headers, content=content)


def test_an_upload_names_googles_own_host(forward: Direct) -> None:
    """As Google does: putting another address in its place is the business of whoever stands between."""
    assert start(forward).startswith(f"{GOOGLE}/upload/v1beta/files?upload_id=")


def test_an_upload_goes_on_where_it_stopped(forward: Direct) -> None:
    """A wrong offset is refused and changes nothing; the state tells the right one; after the end nothing more goes in."""
    url = start(forward, 10)
    assert send(forward, url, "upload", 0, b"01234").headers["x-goog-upload-size-received"] == "5"
    refused = send(forward, url, "upload, finalize", 3, b"34567")
    assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    asked_for = send(forward, url, "query")
    assert (asked_for.headers["x-goog-upload-status"], asked_for.headers["x-goog-upload-size-received"]) == (
        "active",
        "5",
    )
    assert send(forward, url, "finalize").status_code == 400
    done = send(forward, url, "upload, finalize", 5, b"56789")
    assert (done.headers["x-goog-upload-status"], done.json()["file"]["sizeBytes"]) == ("final", "10")
    assert send(forward, url, "upload", 10, b"x").status_code == 400
    assert send(forward, url, "query").headers["x-goog-upload-status"] == "final"


def test_an_upload_can_be_cancelled_and_cannot_grow(forward: Direct) -> None:
    """Nothing comes of either; an upload that never began is 404."""
    url = start(forward)
    assert send(forward, url, "cancel").headers["x-goog-upload-status"] == "cancelled"
    assert send(forward, url, "upload, finalize", 0, b"x").status_code == 400
    assert send(forward, start(forward, 2), "upload, finalize", 0, b"123").status_code == 400
    assert send(forward, url.replace("upload_id=", "upload_id=no"), "query").status_code == 404
    assert forward("GET", f"{GOOGLE}/v1beta/files").json() == {}


# Google's caches ---


def test_a_cache_is_made_used_changed_and_deleted(gemini: genai.Client) -> None:
    """What a request on it costs counts the cached part; its expiry is what can be changed."""
    made = gemini.caches.create(
        model="gemini-2.5-flash",
        config={"contents": ["a long text"], "system_instruction": "be brief", "ttl": "600s", "display_name": "book"},
    )
    assert made.name is not None
    assert (made.model, made.display_name) == ("models/gemini-2.5-flash", "book")
    assert made.create_time is not None
    assert made.expire_time is not None
    assert (made.expire_time - made.create_time).total_seconds() == 600
    answer = gemini.models.generate_content(
        model="gemini-2.5-flash", contents="hi", config={"cached_content": made.name}
    )
    assert answer.usage_metadata is not None
    assert made.usage_metadata is not None
    assert answer.usage_metadata.cached_content_token_count == made.usage_metadata.total_token_count
    changed = gemini.caches.update(name=made.name, config={"ttl": "7200s"})
    assert changed.expire_time is not None
    assert changed.expire_time > made.expire_time
    assert [one.name for one in gemini.caches.list()] == [made.name]
    assert gemini.caches.get(name=made.name).expire_time == changed.expire_time
    gemini.caches.delete(name=made.name)
    for gone in (lambda: gemini.caches.get(name=str(made.name)), lambda: gemini.caches.delete(name=str(made.name))):
        with pytest.raises(google_errors.ClientError):
            gone()
    with pytest.raises(google_errors.ClientError, match="CachedContent not found"):
        gemini.models.generate_content(model="gemini-2.5-flash", contents="hi", config={"cached_content": made.name})


def test_a_cache_expires(forward: Direct, emulator: Emulator) -> None:
    """By the emulator's clock, like a file after two days."""
    url = f"{GOOGLE}/v1beta/cachedContents"
    document = {"model": "models/gemini-2.5-flash", "contents": [{"parts": [{"text": "x"}]}], "ttl": "60s"}
    made = forward("POST", url, json=document).json()
    forward("POST", f"{GOOGLE}/upload/v1beta/files", content=b"x")
    now = emulator.world.clock()
    emulator.world.clock = lambda: now + 61
    assert forward("GET", f"{GOOGLE}/v1beta/{made['name']}").status_code == 403
    assert len(forward("GET", f"{GOOGLE}/v1beta/files").json()["files"]) == 1
    emulator.world.clock = lambda: now + 48 * 3600 + 1
    assert forward("GET", f"{GOOGLE}/v1beta/files").json() == {}
    unsound: tuple[Any, ...] = ({"ttl": "soon"}, {"ttl": None, "expireTime": "soon"}, {"model": "x"}, {"contents": []})
    for wrong in (*({**document, **one} for one in unsound), []):
        assert forward("POST", url, json=wrong).status_code == 400


# OpenAI's stored responses, pictures and sound ---


def test_a_response_is_read_again_and_its_stream_resumed(gpt: openai.OpenAI) -> None:
    """From the event after the one that a client saw last, with the same numbers, to the same end."""
    first = list(gpt.responses.create(model="gpt-5", input="one two three", stream=True))
    assert first[-1].type == "response.completed"
    name = first[-1].response.id
    assert gpt.responses.retrieve(name).output_text == "You said: one two three"
    assert list(gpt.responses.retrieve(name, stream=True)) == first
    assert list(gpt.responses.retrieve(name, stream=True, starting_after=3)) == first[4:]
    with pytest.raises(openai.BadRequestError):
        gpt.responses.cancel(name)
    gpt.responses.delete(name)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(name)
    unkept = gpt.responses.create(model="gpt-5", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(unkept.id)


def test_a_picture_comes_as_a_stream(gpt: openai.OpenAI) -> None:
    """As many drafts as were asked for, then the picture with its usage; an edit in words of its own."""
    made = list(gpt.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=2))
    assert [one.type for one in made] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert getattr(made[-1], "usage", None) is not None
    edited = list(gpt.images.edit(model="gpt-image-1", prompt="x", image=("a.png", PNG), stream=True, partial_images=1))
    assert [one.type for one in edited] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_transcription_comes_as_a_stream(gpt: openai.OpenAI) -> None:
    """The pieces join to the text of the last event, which is what the plain answer says."""
    plain = gpt.audio.transcriptions.create(model="gpt-4o-mini-transcribe", file=("a.wav", b"RIFF"))
    stream = gpt.audio.transcriptions.create(model="gpt-4o-mini-transcribe", file=("a.wav", b"RIFF"), stream=True)
    *deltas, done = list(stream)
    assert (done.type, getattr(done, "text", None)) == ("transcript.text.done", plain.text)
    assert "".join(getattr(one, "delta", "") for one in deltas) == plain.text
    assert len(deltas) > 1


def test_speech_comes_as_events(gpt: openai.OpenAI, forward: Direct) -> None:
    """The pieces of sound in Base64, then the usage; the SDK hands it over as bytes."""
    asked_for: dict[str, Any] = {"model": "gpt-4o-mini-tts", "input": "hi", "voice": "alloy"}
    raw = gpt.audio.speech.create(**asked_for, stream_format="sse").read()
    events = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: ")]
    assert [one["type"] for one in events] == [*["speech.audio.delta"] * (len(events) - 1), "speech.audio.done"]
    assert len(events) > 2


STREAMS: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "image": ("images/generations", {"json": {"prompt": "x", "stream": True, "partial_images": 3}}, b".completed"),
    "edit": (
        "images/edits",
        {"data": {"prompt": "x", "stream": "true", "partial_images": "3"}, "files": {"image": ("a.png", PNG)}},
        b".completed",
    ),
    "transcription": (
        "audio/transcriptions",
        {"data": {"model": "m", "stream": "true"}, "files": {"file": ("a.wav", b"RIFF")}},
        b".done",
    ),
    "speech": ("audio/speech", {"json": {"model": "m", "input": "x", "stream_format": "sse"}}, b".done"),
}


@pytest.mark.parametrize("which", STREAMS)
def test_streams_of_pictures_and_sound_break_on_demand(forward: Direct, which: str) -> None:
    """Without their end marker, or with an error inside: the faults of the table know these streams too."""
    path, body, end = STREAMS[which]
    assert end in forward("POST", f"{OPENAI}/{path}", **body).content
    for fault in ("no-end", "inband-error"):
        spoiled = forward("POST", f"{OPENAI}/{path}", {"x-emulator-fault": fault}, **body).content
        assert end not in spoiled
        assert (b'"error"' in spoiled) is (fault == "inband-error")
    with pytest.raises(httpx2.RemoteProtocolError):
        forward("POST", f"{OPENAI}/{path}", {"x-emulator-fault": "cut-after-1"}, **body)
