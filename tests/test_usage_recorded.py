"""From an SDK's call to the ledger's row: what a provider counted, in each API, form and encoding.

The official Python SDKs, unmodified, through a real daemon. The upstream answers with each vendor's own usage object (the
sources are beside the same objects in ``test_token_classes.py``); the emulator answers the rest. Every call is made before the
first test, so that the ledger is waited for once.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import queue
import socket
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import anthropic
import brotli  # type: ignore[import-untyped]  # it has no stubs
import openai
import pytest
import zstandard
from daemons import Daemon
from google import genai
from ledgers import rows_of
from rawclient import RawClient
from searching import cut
from security_stand import rss
from upstream import Peer, Received, Upstream, answer, chunked

from proxy.ledger.columns import TOKENS
from proxy.protocol.token_classes import TokenClasses, flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proxy.emulator import Emulator

KEY = "aks_live_" + "u" * 24
CONFIG = """
default_project = "main"
[lava]
secret_key = "env:KEY"
base_url = "{url}"
[ledger]
sessions = "plain"
[projects.main]
[projects.counted]
include_usage = true
"""
JSON, SSE = "application/json", "text/event-stream"
PACK: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "br": lambda body: bytes(brotli.compress(body)),
    "zstd": zstandard.ZstdCompressor().compress,
}


SPOKEN = ("identity", "gzip", "br")
"""The encodings that the SDKs ask for."""


class Clients:
    """The SDKs of one daemon. Each call sends its name as the session, by which its row is found."""

    def __init__(self, url: str) -> None:
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0)
        self.google = genai.Client(api_key="unused", http_options=genai.types.HttpOptions(base_url=url))

    def close(self) -> None:
        self.openai.close()
        self.anthropic.close()
        self.google.close()


@dataclass(frozen=True)
class Case:
    """A call, the answer to it, and what the ledger must have of it."""

    call: Callable[[Clients, dict[str, str]], Any]
    body: bytes
    usage: dict[str, Any] | None
    classes: TokenClasses
    served: str | None
    response_id: str | None
    form: str = JSON


def _document(**members: Any) -> bytes:
    return json.dumps(members).encode()


def _events(*events: Any, named: bool = False) -> bytes:
    """An event stream; ``named``: each event has its type as its name."""
    lines = []
    for each in events:
        if named:
            lines.append(f"event: {each['type']}\n")
        lines.append(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n")
    return "".join(lines).encode()


SAY: Any = [{"role": "user", "content": "Hello"}]
CHAT_USAGE = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 6},
    "completion_tokens_details": {"reasoning_tokens": 128, "audio_tokens": 100},
}
CHAT_CLASSES = TokenClasses(input=80, cache_read=1920, output=200, reasoning=128, audio_in=6, audio_out=100)
PLAIN_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
RESPONSES_USAGE = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 11},
    "output_tokens": 1186,
    "output_tokens_details": {"reasoning_tokens": 1024},
    "total_tokens": 1261,
}
RESPONSES_CLASSES = TokenClasses(input=64, cache_read=11, output=1186, reasoning=1024)
IMAGE_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 50,
    "total_tokens": 100,
}
HEARD_USAGE = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
    "output_tokens": 45,
    "total_tokens": 59,
}
SPOKEN_USAGE = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
CLAUDE_USAGE = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 188,
    "cache_read_input_tokens": 1111,
    "cache_creation": {"ephemeral_5m_input_tokens": 88, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 393,
    "service_tier": "standard",
}
CLAUDE_CLASSES = TokenClasses(input=21, cache_read=1111, cache_write_5m=88, cache_write_1h=100, output=393)
GOOGLE_USAGE = {
    "promptTokenCount": 1500,
    "cachedContentTokenCount": 1000,
    "candidatesTokenCount": 40,
    "thoughtsTokenCount": 60,
    "totalTokenCount": 1600,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1500}],
}
GOOGLE_CLASSES = TokenClasses(input=500, cache_read=1000, output=100, reasoning=60)


def _chat(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.openai.chat.completions.create(
        model="gpt-4o", messages=SAY, extra_headers=headers, **more
    )


def _chunk(**more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06"}
    return {**head, "choices": [], **more}


def _completion(by: Clients, headers: dict[str, str]) -> Any:
    return by.openai.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello", extra_headers=headers)


def _response(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.openai.responses.create(model="gpt-5", input="Hi", extra_headers=headers, **more)


def _embedding(by: Clients, headers: dict[str, str]) -> Any:
    return by.openai.embeddings.create(model="text-embedding-3-small", input="Hello", extra_headers=headers)


def _image(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.openai.images.generate(
        model="gpt-image-1", prompt="a cat", extra_headers=headers, **more
    )


def _hear(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.openai.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", io.BytesIO(b"RIFF" * 99)), extra_headers=headers, **more
    )


def _speak(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.openai.audio.speech.create(
        model="gpt-4o-mini-tts", voice="alloy", input="Hello", extra_headers=headers, **more
    ).read()


def _message(**more: Any) -> Callable[[Clients, dict[str, str]], Any]:
    return lambda by, headers: by.anthropic.messages.create(
        model="claude-opus-4-6", max_tokens=9, messages=SAY, extra_headers=headers, **more
    )


def _generate(by: Clients, headers: dict[str, str]) -> Any:
    config = genai.types.GenerateContentConfig(http_options=genai.types.HttpOptions(headers=headers))
    return by.google.models.generate_content(model="gemini-2.5-flash", contents="Hello", config=config)


def _generate_stream(by: Clients, headers: dict[str, str]) -> Any:
    config = genai.types.GenerateContentConfig(http_options=genai.types.HttpOptions(headers=headers))
    return by.google.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello", config=config)


RESPONSE = {"id": "resp_9", "object": "response", "model": "gpt-5-2025-08-07", "output": [], "tools": []}
MESSAGE: dict[str, Any] = {
    "id": "msg_9",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-6-20260101",
    "content": [],
    "stop_reason": "end_turn",
    "stop_sequence": None,
}
CANDIDATE = {"content": {"parts": [{"text": "Hi"}], "role": "model"}, "index": 0}
GEMINI = {"modelVersion": "gemini-2.5-flash-002", "responseId": "gen-9"}
GPT, GPT_5, CLAUDE, GEMINI_2 = (
    "gpt-4o-2024-08-06",
    "gpt-5-2025-08-07",
    "claude-opus-4-6-20260101",
    "gemini-2.5-flash-002",
)
VECTOR = {"object": "embedding", "index": 0, "embedding": "AAAAAA=="}
NOTHING = TokenClasses()

CASES: dict[str, Case] = {
    "chat": Case(
        _chat(),
        _document(id="chatcmpl-9", object="chat.completion", created=1, model=GPT, choices=[], usage=CHAT_USAGE),
        *(CHAT_USAGE, CHAT_CLASSES, GPT, "chatcmpl-9"),
    ),
    "chat stream": Case(
        _chat(stream=True, stream_options={"include_usage": True}),
        _events(_chunk(usage=None), _chunk(usage=None), _chunk(usage=CHAT_USAGE), "[DONE]"),
        *(CHAT_USAGE, CHAT_CLASSES, GPT, "chatcmpl-9", SSE),
    ),
    "chat stream that counts nothing": Case(
        _chat(stream=True), _events(_chunk(), _chunk(), "[DONE]"), *(None, NOTHING, GPT, "chatcmpl-9", SSE)
    ),
    "completions": Case(
        _completion,
        _document(id="cmpl-9", object="text_completion", created=1, model="gpt-3.5", choices=[], usage=PLAIN_USAGE),
        *(PLAIN_USAGE, TokenClasses(input=5, output=7), "gpt-3.5", "cmpl-9"),
    ),
    "responses": Case(
        _response(),
        _document(**RESPONSE, usage=RESPONSES_USAGE),
        *(RESPONSES_USAGE, RESPONSES_CLASSES, GPT_5, "resp_9"),
    ),
    "responses stream": Case(
        _response(stream=True),
        _events(
            {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "usage": None}},
            {"type": "response.completed", "sequence_number": 1, "response": {**RESPONSE, "usage": RESPONSES_USAGE}},
            named=True,
        ),
        *(RESPONSES_USAGE, RESPONSES_CLASSES, GPT_5, "resp_9", SSE),
    ),
    "embeddings": Case(
        _embedding,
        _document(
            object="list", data=[VECTOR], model="text-embedding-3-small", usage={"prompt_tokens": 8, "total_tokens": 8}
        ),
        *({"prompt_tokens": 8, "total_tokens": 8}, TokenClasses(input=8), "text-embedding-3-small", None),
    ),
    "images": Case(
        _image(),
        _document(created=1, data=[], usage=IMAGE_USAGE),
        *(IMAGE_USAGE, TokenClasses(input=50, output=50), None, None),
    ),
    "images by piece": Case(
        _image(),
        _document(created=1, model="seedream-4", data=[], usage={"generated_images": 2, "output_tokens": 32768}),
        *({"generated_images": 2, "output_tokens": 32768}, TokenClasses(output=32768, images=2), "seedream-4", None),
    ),
    "images stream": Case(
        _image(stream=True),
        _events({"type": "image_generation.completed", "b64_json": "AAAA", "usage": IMAGE_USAGE}, named=True),
        *(IMAGE_USAGE, TokenClasses(input=50, output=50), None, None, SSE),
    ),
    "transcription": Case(
        _hear(),
        _document(text="Hello", usage=HEARD_USAGE),
        *(HEARD_USAGE, TokenClasses(input=4, audio_in=10, output=45), None, None),
    ),
    "transcription by duration": Case(
        _hear(),
        _document(text="Hello", usage={"type": "duration", "seconds": 3}),
        *({"type": "duration", "seconds": 3}, NOTHING, None, None),
    ),
    "transcription stream": Case(
        _hear(stream=True),
        _events({"type": "transcript.text.done", "text": "Hello", "usage": HEARD_USAGE}),
        *(HEARD_USAGE, TokenClasses(input=4, audio_in=10, output=45), None, None, SSE),
    ),
    "speech": Case(_speak(), b"ID3" + bytes(range(256)) * 9, *(None, NOTHING, None, None, "audio/mpeg")),
    "speech stream": Case(
        _speak(stream_format="sse"),
        _events({"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": SPOKEN_USAGE}),
        *(SPOKEN_USAGE, TokenClasses(input=14, audio_out=101), None, None, SSE),
    ),
    "speech by character": Case(
        _speak(),
        _document(audio="AAAA", model="speech-02", usage={"characters": 5}),
        *({"characters": 5}, TokenClasses(characters=5), "speech-02", None),
    ),
    "messages": Case(
        _message(),
        _document(**MESSAGE, usage=CLAUDE_USAGE),
        *(CLAUDE_USAGE, CLAUDE_CLASSES, CLAUDE, "msg_9"),
    ),
    "messages stream": Case(
        _message(stream=True),
        _events(
            {"type": "message_start", "message": {**MESSAGE, "usage": {**CLAUDE_USAGE, "output_tokens": 1}}},
            {"type": "ping"},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 393}},
            {"type": "message_stop"},
            named=True,
        ),
        *(CLAUDE_USAGE, CLAUDE_CLASSES, CLAUDE, "msg_9", SSE),
    ),
    "generate": Case(
        _generate,
        _document(candidates=[{**CANDIDATE, "finishReason": "STOP"}], usageMetadata=GOOGLE_USAGE, **GEMINI),
        *(GOOGLE_USAGE, GOOGLE_CLASSES, GEMINI_2, "gen-9"),
    ),
    "generate stream": Case(
        _generate_stream,
        _events(
            {"candidates": [CANDIDATE], "usageMetadata": {"promptTokenCount": 1500, "totalTokenCount": 1500}, **GEMINI},
            {"candidates": [{**CANDIDATE, "finishReason": "STOP"}], "usageMetadata": GOOGLE_USAGE, **GEMINI},
        ).replace(b"\n", b"\r\n"),
        *(GOOGLE_USAGE, GOOGLE_CLASSES, GEMINI_2, "gen-9", SSE),
    ),
}


# --- the calls -------------------------------------------------------------------------------------------------------

COLUMNS = ("served", "names", "numbers", "response_id", "streamed", *TOKENS)
_ROWS = f"""
SELECT session.text, served.text, paths.text, r.usage_numbers,
  (SELECT response_id FROM attempts WHERE request = r.seq), r.streamed, {", ".join(f"r.{name}" for name in TOKENS)}
FROM requests r JOIN names session ON session.id = r.session
LEFT JOIN names served ON served.id = r.served LEFT JOIN names paths ON paths.id = r.usage_names
"""
Row = dict[str, Any]


def _rows(daemon: Daemon) -> dict[str, Row]:
    """End a daemon, and return its rows by their session."""
    daemon.close()
    return {session: dict(zip(COLUMNS, row, strict=True)) for session, *row in rows_of(daemon.ledger, _ROWS)}


def _packed(body: bytes, form: str, encoding: str) -> bytes:
    """The whole response: a document with its length, a stream in many chunks."""
    body = PACK[encoding](body)
    headers = [(b"content-type", form.encode())]
    if encoding != "identity":
        headers.append((b"content-encoding", encoding.encode()))
    if form != SSE:
        return answer(200, body, headers)
    headers.append((b"transfer-encoding", b"chunked"))
    return answer(200, b"", headers, length=False) + chunked(*cut(body, 61))


@contextlib.contextmanager
def _running(folder: Path, url: str, key: str) -> Iterator[tuple[Daemon, Clients]]:
    daemon = Daemon(folder, CONFIG.format(url=url), env={"KEY": key}, secrets=[key])
    try:
        daemon.wait_until_up()
        with contextlib.closing(Clients(daemon.url)) as clients:
            yield daemon, clients
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """The rows of all cases in all encodings, by ``case encoding``."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            forwarded = received.method == b"POST"  # else the daemon asks Lava about its account
            peer.send(waiting.get(timeout=10) if forwarded else answer(404, b"{}"))

    with (
        Upstream(script) as upstream,
        _running(tmp_path_factory.mktemp("recorded"), upstream.url, KEY) as (daemon, clients),
    ):
        for name, case in CASES.items():
            for encoding in SPOKEN:
                waiting.put(_packed(case.body, case.form, encoding))
                result = case.call(clients, {"x-session-id": f"{name} {encoding}"})
                if case.form == SSE and not isinstance(result, bytes):
                    list(result)
            waiting.put(_packed(case.body, case.form, "zstd"))
            assert _again(daemon, upstream.requests[-1], f"{name} zstd") == PACK["zstd"](case.body)
        return _rows(daemon)


def _again(daemon: Daemon, received: Received, session: str) -> bytes:
    """Send a request once more, to the address that names its provider: the SDKs read no zstd. Return the answer's bytes."""
    url = urlsplit(parse_qs(urlsplit(received.target.decode()).query)["u"][0])
    provider = next(name for name in ("openai", "anthropic", "google") if name in url.netloc)
    headers = {"Content-Type": (received.header(b"content-type") or b"").decode(), "x-session-id": session}
    with RawClient(daemon.port) as client:
        query = f"?{url.query}" if url.query else ""
        client.request("POST", f"/{provider}{url.path}{query}", received.body, headers)
        return client.response().body


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("name", CASES)
def test_what_the_provider_counted_is_recorded(recorded: dict[str, Row], name: str, encoding: str) -> None:
    """Its numbers as it wrote them, and in classes; its id and its model; and nothing that it does not say."""
    case, row = CASES[name], recorded[f"{name} {encoding}"]
    paths, numbers = flat(case.usage or {})
    expected = {
        "served": case.served,
        "names": ",".join(paths) or None,
        "numbers": ",".join(map(str, numbers)) or None,
        "response_id": case.response_id,
        "streamed": case.form == SSE,
        **case.classes._asdict(),
    }
    assert row == expected


def test_every_call_has_its_row(recorded: dict[str, Row]) -> None:
    """And no other."""
    assert sorted(recorded) == sorted(f"{name} {encoding}" for name in CASES for encoding in PACK)


# --- the emulator ----------------------------------------------------------------------------------------------------


def test_the_emulators_usage_is_recorded(tmp_path: Path, emulator: Emulator) -> None:
    """What the SDKs are told, and what a stream was asked for in their place, is what the ledger has."""
    with _running(tmp_path, emulator.base_url, emulator.world.secret_key) as (daemon, by):
        told: dict[str, dict[str, int | None]] = {}
        counted = by.openai.with_options(base_url=f"{daemon.url}/p/counted/v1")

        def named(name: str) -> dict[str, str]:
            return {"x-session-id": name}

        usage: Any = by.openai.chat.completions.create(model="gpt-4o", messages=SAY, extra_headers=named("chat")).usage
        told["chat"] = told["counted"] = {"input": usage.prompt_tokens, "output": usage.completion_tokens}
        for name, model in (("counted", "gpt-4o"), ("crossing", "claude-opus-4-6")):
            chunks = counted.chat.completions.create(model=model, messages=SAY, stream=True, extra_headers=named(name))
            assert all(chunk.choices for chunk in chunks)
        usage = by.openai.responses.create(model="gpt-5", input="Hello", extra_headers=named("responses")).usage
        told["responses"] = {"input": usage.input_tokens, "output": usage.output_tokens, "cache_read": 0}

        prompt: Any = [{"type": "text", "text": "long " * 2000, "cache_control": {"type": "ephemeral"}}]
        for name in ("cache written", "cache read"):
            usage = by.anthropic.messages.create(
                model="claude-opus-4-6", max_tokens=9, system=prompt, messages=SAY, extra_headers=named(name)
            ).usage
            told[name] = {
                "input": usage.input_tokens,
                "cache_write_5m": usage.cache_creation_input_tokens,
                "cache_read": usage.cache_read_input_tokens,
                "output": usage.output_tokens,
            }
        assert told["cache written"]["cache_write_5m"]
        assert told["cache read"]["cache_read"] == told["cache written"]["cache_write_5m"]

        usage = by.anthropic.messages.create(
            model="claude-opus-4-6", max_tokens=9, messages=SAY, extra_headers=named("claude")
        ).usage
        told["crossing"] = {"input": usage.input_tokens, "output": usage.output_tokens}

        types = genai.types
        cache = by.google.caches.create(
            model="gemini-2.5-flash", config=types.CreateCachedContentConfig(contents="long " * 2000)
        )
        config = types.GenerateContentConfig(
            cached_content=cache.name, http_options=types.HttpOptions(headers=named("google cache"))
        )
        usage = by.google.models.generate_content(
            model="gemini-2.5-flash", contents="Hello", config=config
        ).usage_metadata
        assert usage.cached_content_token_count
        told["google cache"] = {
            "input": usage.prompt_token_count - usage.cached_content_token_count,
            "cache_read": usage.cached_content_token_count,
            "output": usage.candidates_token_count,
        }
        by.openai.audio.speech.create(model="tts-1", voice="alloy", input="Hello", extra_headers=named("speech"))
        told["speech"] = dict.fromkeys(TOKENS)
        with RawClient(daemon.port) as client:
            client.post_json("/elevenlabs/v1/text-to-speech/voice", {"text": "Hello"}, named("spoken by character"))
            assert client.response().status == 200
        told["spoken by character"] = {**dict.fromkeys(TOKENS), "characters": 5}
        rows = _rows(daemon)
    for name, classes in told.items():
        row = rows[name]
        assert {each: row[each] for each in classes} == classes, name
        rest = [row[each] for each in TOKENS if each not in classes]
        assert not any(rest), name


# --- bounds ----------------------------------------------------------------------------------------------------------

MIB = 1 << 20
STREAM_MIB = 256
MOST_RSS = 64 * MIB
"""That a hostile answer may add to the memory of a daemon."""


def _bomb(encoding: str, before: bytes, mebibytes: int) -> bytes:
    """A body that decodes to so many MiB."""
    if encoding == "br":
        return bytes(brotli.compress(before + b"x" * (mebibytes * MIB), quality=1))
    packer: Any = zlib.compressobj(1, wbits=31) if encoding == "gzip" else zstandard.ZstdCompressor(1).compressobj()
    block = b"x" * MIB
    parts = [packer.compress(before), *(packer.compress(block) for _ in range(mebibytes)), packer.flush()]
    return b"".join(parts)


def _sending(whole: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.send(whole)


def _stream_of(peer: Peer, mebibytes: int, event: bytes) -> None:
    """Send so many MiB of ``event``, without a length."""
    peer.send(answer(200, b"", [(b"content-type", SSE.encode()), (b"connection", b"close")], length=False))
    block = event * (MIB // len(event))
    for _ in range(mebibytes):
        peer.send(block)
    peer.send(b"\n\n" + _events(_chunk(usage=PLAIN_USAGE), "[DONE]"))
    peer.fin()


@pytest.mark.full
def test_a_hostile_answer_is_relayed_and_costs_little(tmp_path: Path) -> None:
    """Bombs of 1 GiB in every encoding, and long plain streams: every byte arrives, and the memory stays as it was."""
    bombs = {
        f"{form} {encoding}": (form, encoding, _bomb(encoding, before, 1024))
        for encoding in ("gzip", "br", "zstd")
        for form, before in ((JSON, b'{"x":"'), (SSE, b"data: "))
    }
    streams = {"events": b'data: {"model":"m","choices":[]}\n\n', "lines": b"data: x\n", "one event": b"x" * 1024}
    waiting: queue.SimpleQueue[Callable[[Peer], None]] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"POST":
                waiting.get(timeout=10)(peer)
            else:
                peer.send(answer(404, b"{}"))

    with Upstream(script) as upstream, _running(tmp_path, upstream.url, KEY) as (daemon, _):
        before = rss(daemon)

        def ask(session: str, play: Callable[[Peer], None]) -> int:
            waiting.put(play)
            size = 0
            with socket.create_connection(("127.0.0.1", daemon.port), 60) as client:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\nConnection: close\r\n"
                head += f"Content-Type: {JSON}\r\nContent-Length: 20\r\nX-Session-Id: {session}\r\n\r\n"
                client.sendall(head.encode() + b'{"model": "gpt-4o"} ')
                while data := client.recv(MIB):
                    size += len(data)
            return size

        for name, (form, encoding, body) in bombs.items():
            headers = [(b"content-type", form.encode()), (b"content-encoding", encoding.encode())]
            assert ask(name, _sending(answer(200, body, headers))) > len(body)
            assert rss(daemon) - before < MOST_RSS
        for name, event in streams.items():
            assert ask(name, partial(_stream_of, event=event, mebibytes=STREAM_MIB)) > STREAM_MIB * MIB
            assert rss(daemon) - before < MOST_RSS
        rows = _rows(daemon)
    for name in bombs:
        assert rows[name]["numbers"] is None
    assert rows["events"]["numbers"] == "5,7,12"
