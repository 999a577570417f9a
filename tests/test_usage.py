"""usage.py: the scanner tells the same truth however the bytes are cut, never raises and stays small."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
import tracemalloc
import zlib
from threading import Thread
from typing import Any

import brotli  # type: ignore[import-untyped]  # it has no stubs
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from searching import cut as _cut

from proxy.protocol import body as bodies
from proxy.protocol.body import Decoding
from proxy.protocol.dialects import Ending
from proxy.protocol.token_classes import classes_of
from proxy.protocol.usage import EncodedScanner, Scanner

Usage = tuple[int | None, int | None, int | None]
"""Input, output, read from the cache."""


def _data(value: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _chat_chunk(text: str, **more: object) -> dict[str, Any]:
    return {"id": "c1", "model": "gpt-x", "choices": [{"index": 0, "delta": {"content": text}}], **more}


CHAT = (
    _data(_chat_chunk("Hé", usage=None))
    + b": keep-alive\n\n"
    + _data(_chat_chunk('"usage": {"prompt_tokens": 1} [DONE] error "error": {} 🎈', usage=None))
    + _data(
        {
            "id": "c1",
            "model": "gpt-x",
            "choices": [],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
        }
    )
    + b"data: [DONE]\n\n"
)
MESSAGES = (
    _data(
        {
            "type": "message_start",
            "message": {"model": "claude-x", "usage": {"input_tokens": 25, "output_tokens": 1}},
        },
        "message_start",
    )
    + _data({"type": "ping"}, "ping")
    + _data({"type": "content_block_delta", "delta": {"text": "message_stop ü"}}, "content_block_delta")
    + _data(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 15, "cache_read_input_tokens": 5, "input_tokens": None},
        },
        "message_delta",
    )
    + _data({"type": "message_stop"}, "message_stop")
)
RESPONSES = (
    _data(
        {"type": "response.created", "response": {"model": "gpt-r", "error": None, "usage": None}}, "response.created"
    )
    + _data({"type": "response.output_text.delta", "delta": "response.completed"}, "response.output_text.delta")
    + _data(
        {
            "type": "response.completed",
            "response": {
                "model": "gpt-r",
                "error": None,
                "usage": {
                    "input_tokens": 7,
                    "input_tokens_details": {"cached_tokens": 2},
                    "output_tokens": 8,
                    "total_tokens": 15,
                },
            },
        },
        "response.completed",
    )
)
GOOGLE = _data(
    {
        "candidates": [{"content": {"parts": [{"text": "ö finishReason"}]}}],
        "usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4},
        "modelVersion": "gemini-x",
    }
) + _data(
    {
        "candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 4,
            "candidatesTokenCount": 6,
            "cachedContentTokenCount": 1,
            "totalTokenCount": 10,
        },
        "modelVersion": "gemini-x",
    }
)

STREAMS = {
    Ending.CHAT: (CHAT, (9, 4, 3), "gpt-x"),
    Ending.MESSAGES: (MESSAGES, (25, 15, 5), "claude-x"),
    Ending.RESPONSES: (RESPONSES, (7, 8, 2), "gpt-r"),
    Ending.GOOGLE: (GOOGLE, (4, 6, 1), "gemini-x"),
}


def _scan(ending: Ending, *chunks: bytes, sse: bool = True, encoding: bytes | None = None) -> Scanner:
    scanner = Scanner(ending, sse) if encoding is None else EncodedScanner(ending, sse, encoding)
    for chunk in chunks:
        scanner.feed(chunk)
    scanner.finish()
    return scanner


def _told(scanner: Scanner) -> tuple[object, ...]:
    return scanner.ended, scanner.error, _usage(scanner), scanner.model, scanner.at_boundary


def _usage(scanner: Scanner) -> Usage | None:
    raw = scanner.raw_usage
    return None if raw is None else (*scanner.tokens, classes_of(raw, "other", "other").cache_read)


@pytest.mark.parametrize("ending", STREAMS)
def test_each_dialects_stream_is_read(ending: Ending) -> None:
    """Usage, model and end marker of a whole stream are found, and no error is seen where none is."""
    body, usage, model = STREAMS[ending]
    assert _told(_scan(ending, body)) == (True, None, usage, model, True)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("ending", STREAMS)
def test_every_split_and_line_end_gives_the_same(ending: Ending, line_end: bytes) -> None:
    """Cut in two at every byte offset, cut into single bytes, with LF, CR LF or CR: the same is told."""
    body, usage, model = STREAMS[ending]
    body = b"\xef\xbb\xbf" + body.replace(b"\n", line_end)
    expected = (True, None, usage, model, True)
    assert _told(_scan(ending, body)) == expected
    for cut in range(len(body) + 1):
        assert _told(_scan(ending, body[:cut], body[cut:])) == expected, cut
    assert _told(_scan(ending, *(body[at : at + 1] for at in range(len(body))))) == expected


@pytest.mark.parametrize("ending", STREAMS)
def test_json_over_several_data_lines_is_joined(ending: Ending) -> None:
    """An event whose data is broken over lines (at any white space JSON allows) counts like one on a line."""
    body, usage, model = STREAMS[ending]
    broken = []
    for event in body.split(b"\n\n"):
        name, _, data = event.rpartition(b"data: ")
        if data.startswith(b"{"):
            pretty = json.dumps(json.loads(data), indent=1).replace(": ", ":\n")
            data = b"\ndata:".join(line.encode() for line in pretty.split("\n"))
        broken.append(name + b"data:" * data.startswith((b"{", b"[")) + data if data else event)
    lines = b"\n\n".join(broken)
    for size in (1, 7, len(lines)):
        chunks = [lines[at : at + size] for at in range(0, len(lines), size)]
        assert _told(_scan(ending, *chunks)) == (True, None, usage, model, True)


@examples(300)
@given(
    ending=st.sampled_from(list(Ending)),
    pieces=st.lists(
        st.one_of(
            st.sampled_from(
                [*(stream[0] for stream in STREAMS.values()), b"\n", b"\r", b"\n\n", b"\r\n", b":", b"data: "]
            ),
            st.sampled_from(
                [
                    b'data: {"usage":{"prompt_tokens":1}}\n\n',
                    b'data: {"usage":null}\n\n',
                    b'data: "usage"\n\n',
                    b': "usage":{"input_tokens":3}\n\n',
                    b'data: {"usage":\ndata: {"input_tokens":4}}\n\n',
                    b'event: error\ndata: {"error":{"type":"t"}}\n\n',
                    b'data: {"model":"m","error":null}\n\n',
                    b"data: [DONE]\n\n",
                    b"data: " + b"[" * 5000 + b"\n\n",
                ]
            ),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 5000), max_size=10),
)
def test_any_bytes_cut_anywhere_never_raise_and_tell_the_same(
    ending: Ending, pieces: list[bytes], cuts: list[int]
) -> None:
    """Whatever arrives and however it is cut: no exception, and the same answer as from one piece."""
    body = b"".join(pieces)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:end] for start, end in itertools.pairwise(places)]
    for sse in (True, False):
        whole = _scan(ending, body, sse=sse)
        assert _told(_scan(ending, *chunks, sse=sse)) == _told(whole)


def test_the_boundary_is_known_after_every_byte() -> None:
    """at_boundary is true exactly between events: at the start, after an empty line, after whole comments."""
    assert Scanner(Ending.CHAT, True).at_boundary
    scanner = Scanner(Ending.CHAT, True)
    told = []
    for byte in b"data: 1\n\n: c\ndata: 2\r\n\r\ndata: 3\r\r: x\r\n":
        scanner.feed(bytes((byte,)))
        told.append("1" if scanner.at_boundary else "0")
    assert (
        "".join(told)
        == (
            "000000001"  # data: 1 LF LF
            "0001"  # a comment and its line end
            "0000000001" + "1"  # data: 2 CR LF CR LF: the second CR ends it, its LF adds nothing
            "000000001"  # data: 3 CR CR
            "00011"  # a comment, CR LF
        )
    )


def test_the_boundary_is_the_same_in_whole_chunks() -> None:
    """Chunks of whole events, half events, and a second half: the flag follows."""
    scanner = Scanner(Ending.CHAT, True)
    for chunk, boundary in (
        (b"data: {}\n\ndata: {}\n\n", True),
        (b"data: {", False),
        (b"}\n\n", True),
        (b"data: {}\n\ndata: ", False),
        (b"x\r\n\r\n", True),
        (b"", True),
        (b"\n", True),
        (b"data: x\n", False),
        (b"\n", True),
    ):
        scanner.feed(chunk)
        assert scanner.at_boundary is boundary, chunk


@pytest.mark.parametrize(
    ("ending", "event", "kind"),
    [
        (Ending.CHAT, b'data: {"error":{"message":"m","type":"server_error","code":"x"}}\n\n', "server_error"),
        (Ending.CHAT, b'data: {"error": "text"}\n\n', "error"),
        (Ending.CHAT, b'data: {"error":{"code":502,"message":"m"}}\n\n', "error"),
        (Ending.CHAT, b'data: {"error":null,"choices":[]}\n\n', None),
        (Ending.CHAT, b'data: {"error": {}, "choices":[]}\n\n', None),
        (Ending.CHAT, b'data: {"choices":[{"delta":{"content":"\\"error\\": {}"}}]}\n\n', None),
        (
            Ending.MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
            "overloaded_error",
        ),
        (Ending.MESSAGES, b"event: error\ndata: broken\n\n", "error"),
        (Ending.MESSAGES, b'event:error\r\ndata:{"type":"error"}\r\n\r\n', "error"),
        (Ending.RESPONSES, b'event: error\ndata: {"type":"error","code":"rate_limit","message":"m"}\n\n', "rate_limit"),
        (
            Ending.RESPONSES,
            b'data: {"type":"response.failed","response":{"error":{"code":"server_error","message":"m"}}}\n\n',
            "server_error",
        ),
        (Ending.GOOGLE, b'data: {"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}}\n\n', "UNAVAILABLE"),
        (Ending.GOOGLE, b'data: {"error":{"code":503}}', "error"),
        (Ending.UNKNOWN, b'data: {"error":{"type":"' + b"x" * 100 + b'"}}\n\n', "x" * 64),
    ],
)
def test_errors_in_mid_stream_are_seen(ending: Ending, event: bytes, kind: str | None) -> None:
    """Each form of an in-band error that the official SDKs raise on is told by its type; others are not."""
    first = _data({"choices": []})
    assert _scan(ending, first, event).error == kind
    assert _scan(ending, first + event[:30], event[30:]).error == kind


@pytest.mark.parametrize(
    ("ending", "event", "ended"),
    [
        (Ending.CHAT, b"data: [DONE]\n\n", True),
        (Ending.CHAT, b"data:[DONE]\n\n: bye\n\n", True),
        (Ending.CHAT, b"data: [DONE]\n", True),
        (Ending.CHAT, b"data: [DONE]", True),
        (Ending.CHAT, b"data: [DON", False),
        (Ending.CHAT, b": [DONE]\n\n", False),
        (Ending.CHAT, b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', False),
        (Ending.MESSAGES, b'data: {"type": "message_stop"}\n\n', True),
        (Ending.MESSAGES, b"event: message_stop\ndata: {}\n\n", True),
        (Ending.MESSAGES, b'data: {"type":"x","text":"message_stop"}\n\n', False),
        (Ending.RESPONSES, b'data: {"type":"response.incomplete"}\n\n', True),
        (Ending.RESPONSES, b'event: response.failed\ndata: {"type":"response.failed"}\n\n', True),
        (Ending.RESPONSES, b'data: {"type":["response.failed"]}\n\n', False),
        (Ending.GOOGLE, b'data: {"promptFeedback":{"blockReason":"SAFETY"}}\n\n', True),
        (Ending.GOOGLE, b'data: {"candidates":[{"finishReason":"MAX_TOKENS"}]}\n\n', True),
        (Ending.GOOGLE, b'data: {"candidates":[{"finishReason":null}]}\n\n', False),
        (Ending.GOOGLE, b'data: {"candidates":[{"finishReason":"FINISH_REASON_UNSPECIFIED"}]}\n\n', False),
        (Ending.IMAGES, b'data: {"type":"image_generation.completed","b64_json":"eA=="}\n\n', True),
        (Ending.IMAGES, b'event: image_edit.completed\ndata: {"type":"image_edit.completed"}\n\n', True),
        (Ending.IMAGES, b'data: {"type":"image_generation.partial_image","b64_json":"eA=="}\n\n', False),
        (Ending.IMAGES, b'data: {"type":"image_edit.completed","b64_json":"' + b"A" * 200_000 + b'"}\n\n', True),
        (Ending.IMAGES, b'data: {"b64_json":"' + b"A" * 200_000 + b'","type":"image_generation.completed"}\n\n', True),
        (Ending.IMAGES, b'data: {"type":"image_edit.partial_image","b64_json":"' + b"A" * 200_000 + b'"}\n\n', False),
        (Ending.TRANSCRIPT, b'data: {"type":"transcript.text.done","text":"x"}\n\n', True),
        (Ending.TRANSCRIPT, b'data: {"type":"transcript.text.delta","delta":"transcript.text.done"}\n\n', False),
        (Ending.SPEECH, b'data: {"type":"speech.audio.done","usage":{}}\n\n', True),
        (Ending.SPEECH, b'data: {"type":"speech.audio.delta","audio":"eA=="}\n\n', False),
        (Ending.UNKNOWN, b"data: [DONE]\n\n", False),
    ],
)
def test_only_the_dialects_own_marker_ends_a_stream(ending: Ending, event: bytes, ended: bool) -> None:
    """The end marker counts in each of its forms; its text somewhere else does not."""
    assert _scan(ending, event).ended is ended


def test_unknown_is_none_and_never_zero() -> None:
    """What the provider did not count is None: no usage, half a usage, wrong types, a stream cut before its end."""
    assert _usage(_scan(Ending.CHAT, _data(_chat_chunk("x")))) is None
    assert _usage(_scan(Ending.CHAT, _data({"usage": {"prompt_tokens": 3}}))) == (3, None, None)
    odd = {"prompt_tokens": True, "completion_tokens": -1, "total_tokens": "7", "prompt_tokens_details": 3}
    assert _usage(_scan(Ending.CHAT, _data({"usage": odd}))) == (None, None, None)
    cut = MESSAGES[: MESSAGES.index(b"event: message_delta")]
    assert _usage(_scan(Ending.MESSAGES, cut)) == (25, None, None)
    assert _usage(_scan(Ending.CHAT, b'data: {"usage":{"prompt_tokens":1' + b"0" * 5000 + b"}}\n\n")) is None


def test_the_last_count_wins() -> None:
    """Providers that count in every chunk, or say null after the count, are read right."""
    chunks = [_data({"usage": {"prompt_tokens": 5, "completion_tokens": n}}) for n in (1, 2, 3)]
    for body in (
        chunks,
        [b"".join(chunks)],
        [*chunks, _data({"usage": None})],
        [b"".join(chunks) + _data({"usage": None})],
    ):
        assert _usage(_scan(Ending.CHAT, *body)) == (5, 3, None)
    groq = _scan(Ending.CHAT, _data({"x_groq": {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}}))
    assert _usage(groq) == (1, 2, None)
    deepseek = _scan(Ending.CHAT, _data({"usage": {"prompt_tokens": 4, "prompt_cache_hit_tokens": 2}}))
    assert _usage(deepseek) == (4, None, 2)


DOCUMENTS = [
    (
        Ending.CHAT,
        {"model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        (1, 2, None),
    ),
    (Ending.UNKNOWN, {"model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}, (1, None, None)),
    (
        Ending.RESPONSES,
        {"model": "m", "error": None, "usage": {"input_tokens": 1, "output_tokens": 2}},
        (1, 2, None),
    ),
    (
        Ending.MESSAGES,
        {
            "model": "m",
            "usage": {
                "input_tokens": 1,
                "output_tokens": 2,
                "cache_read_input_tokens": 10,
                "cache_creation_input_tokens": 20,
            },
        },
        (1, 2, 10),
    ),
    (
        Ending.GOOGLE,
        {"modelVersion": "m", "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}},
        (1, None, None),
    ),
]


@pytest.mark.parametrize(("ending", "document", "usage"), DOCUMENTS)
def test_documents_are_read_too(ending: Ending, document: dict[str, Any], usage: Usage) -> None:
    """A JSON answer tells usage and model in every dialect, in any cutting, also with a BOM and indented."""
    for raw in (json.dumps(document).encode(), b"\xef\xbb\xbf \n" + json.dumps(document, indent=2).encode()):
        for size in (1, 5, len(raw)):
            scanner = _scan(ending, *(raw[at : at + size] for at in range(0, len(raw), size)), sse=False)
            assert _told(scanner) == (False, None, usage, "m", False)


def test_googles_stream_as_a_json_array() -> None:
    """streamGenerateContent without alt=sse: the array's last counts and its finish reason are found."""
    chunks = [json.loads(part[6:]) for part in GOOGLE.split(b"\n\n") if part]
    raw = json.dumps(chunks, indent=2).encode()
    scanner = _scan(Ending.GOOGLE, raw[:100], raw[100:], sse=False)
    assert (scanner.ended, _usage(scanner), scanner.model) == (True, (4, 6, 1), "gemini-x")
    assert not _scan(Ending.GOOGLE, raw[:-1], sse=False).ended
    assert not _scan(Ending.GOOGLE, json.dumps(chunks[:1]).encode(), sse=False).ended
    failed = _scan(Ending.GOOGLE, b'[{"error":{"code":500,"status":"INTERNAL"}}]', sse=False)
    assert (failed.error, failed.ended) == ("INTERNAL", False)


def test_a_document_above_the_limit_is_read_at_both_ends() -> None:
    """Of a long answer (embeddings) the model at its head and the usage at its tail are still found."""
    vectors = [{"embedding": [0.123456789] * 1500} for _ in range(100)]
    raw = json.dumps({"model": "big", "data": vectors, "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()
    assert len(raw) > 1024 * 1024
    for size in (1000, 65536, len(raw)):
        scanner = _scan(Ending.UNKNOWN, *(raw[at : at + size] for at in range(0, len(raw), size)), sse=False)
        assert (_usage(scanner), scanner.model) == ((5, None, None), "big")


def test_a_long_document_may_count_first_and_name_its_model_last() -> None:
    """Whichever end the usage and the model stand at."""
    raw = json.dumps({"usage": {"prompt_tokens": 5}, "data": "x" * 300_000, "model": "big"}).encode()
    for size in (1000, 65536, len(raw)):
        scanner = _scan(Ending.UNKNOWN, *(raw[at : at + size] for at in range(0, len(raw), size)), sse=False)
        assert (_usage(scanner), scanner.model) == ((5, None, None), "big")


@pytest.mark.parametrize("extra", range(-8, 9))
def test_events_about_the_limit_tell_the_same_in_any_cutting(extra: int) -> None:
    """Around 64 KiB, where an event begins to be too long, the cutting still makes no difference."""
    for line_end in (b"\n", b"\r\n"):
        shell = b'data: {"model":"m","pad":"%s","usage":{"prompt_tokens":5}}'
        event = shell % (b"x" * (64 * 1024 + extra - len(shell) + 2))
        body = event + line_end * 2 + b"data: [DONE]" + line_end * 2
        whole = _told(_scan(Ending.CHAT, body))
        assert whole[0] is True
        assert whole[2] == (5, None, None)
        for cut in range(len(event) - 3, len(event) + 6):
            assert _told(_scan(Ending.CHAT, body[:cut], body[cut:])) == whole
            assert _told(_scan(Ending.CHAT, body[:cut], body[cut : cut + 1], body[cut + 1 :])) == whole


def test_a_megabyte_event_is_bounded_and_the_stream_goes_on() -> None:
    """An event of 1 MB: little memory, the boundary stays right, its type and usage and the next event are seen."""
    answer = {"model": "m", "output": "x" * 1_000_000, "usage": {"input_tokens": 1, "output_tokens": 2}, "user": None}
    big = _data({"type": "response.completed", "response": answer}, "response.completed")
    tail = b"data: {}\n\n"
    expected = (True, None, (1, 2, None), True)
    for size in (997, 64 * 1024, len(big) + len(tail)):
        body = big + tail
        scanner = Scanner(Ending.RESPONSES, True)
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        tracemalloc.start()
        for chunk in chunks:
            scanner.feed(chunk)
            if size < 1000:
                assert scanner.at_boundary is (chunk is chunks[-1])
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        scanner.finish()
        assert (scanner.ended, scanner.error, _usage(scanner), scanner.at_boundary) == expected
        assert held < 200_000
        assert size > 100_000 or peak < 600_000


def test_long_bodies_of_any_kind_hold_little_memory() -> None:
    """An endless event, an endless document and an endless binary are held within their limits."""
    rng = random.Random(1)
    noise = rng.randbytes(8192).replace(b"\n", b".").replace(b"\r", b".")
    for sse, first, limit in ((True, b"data: ", 300_000), (False, b"{", 1_500_000), (False, b"RIFF", 20_000)):
        scanner = Scanner(Ending.UNKNOWN, sse)
        tracemalloc.start()
        scanner.feed(first)
        for _ in range(1000):
            scanner.feed(noise[:4000] + noise[4000:])
        held, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        scanner.finish()
        assert held < limit, (sse, first)
        assert _usage(scanner) is None


def _packed(body: bytes, encoding: bytes) -> bytes:
    pack = {
        b"gzip": gzip.compress,
        b"deflate": zlib.compress,
        b"br": lambda plain: brotli.compress(plain, quality=1),
        b"zstd": zstandard.ZstdCompressor().compress,
    }
    for name in encoding.split(b", "):
        body = pack[name](body)
    return body


ENCODINGS = [b"gzip", b"deflate", b"br", b"zstd", b"br, gzip"]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.decode)
@pytest.mark.parametrize("ending", STREAMS)
def test_a_compressed_stream_tells_its_usage_but_no_end(ending: Ending, encoding: bytes) -> None:
    """Usage, model and id are found however it is cut; the end and the boundaries stay unknown to the relay."""
    body, usage, model = STREAMS[ending]
    packed = _packed(body, encoding)
    for size in (1, 7, len(packed)):
        scanner = _scan(ending, *(packed[at : at + size] for at in range(0, len(packed), size)), encoding=encoding)
        assert _told(scanner) == (False, None, usage, model, False)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.decode)
def test_a_compressed_document_tells_its_usage(encoding: bytes) -> None:
    """Small, and above the limit of a document."""
    for pad in ("", "x" * 300_000):
        document = {"id": "r1", "model": "m", "data": pad, "usage": {"prompt_tokens": 5}}
        scanner = _scan(Ending.CHAT, _packed(json.dumps(document).encode(), encoding), sse=False, encoding=encoding)
        assert (scanner.tokens, scanner.model, scanner.response_id) == ((5, None), "m", "r1")


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"compress", b"gzip, gzip, gzip"], ids=bytes.decode)
def test_a_wrong_or_unknown_encoding_tells_nothing(encoding: bytes) -> None:
    """Plain text with the label of an encoding, and encodings that are not supported."""
    for sse, body in ((True, CHAT), (False, b'{"usage":{"prompt_tokens":1}}')):
        scanner = _scan(Ending.CHAT, body, body, sse=sse, encoding=encoding)
        assert (_told(scanner), scanner.response_id) == ((False, None, None, None, False), None)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.decode)
def test_a_bomb_is_not_decoded(encoding: bytes) -> None:
    """48 MiB in some bytes: decoding stops within its limits, whatever the size of the chunks."""
    bomb = _packed(b"data: " + b"x" * (48 << 20), encoding)
    for size in (512, len(bomb)):
        decoding, most, whole = Decoding(encoding), 0, 0
        for chunk in _cut(bomb, size):
            decoded = sum(map(len, decoding.feed(chunk, 1 << 20)))
            most, whole = max(most, decoded), whole + decoded
        assert most <= 4 << 20  # zstandard decodes up to 2 MiB in one call
        assert whole <= bodies.FREE_BYTES + bodies.MAX_RATIO * len(bomb) + most


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.decode)
def test_a_bomb_holds_little_memory(encoding: bytes) -> None:
    """As an event and as a document."""
    for sse, before in ((True, b"data: "), (False, b"{")):
        bomb = _packed(before + b"x" * (24 << 20), encoding)
        scanner = EncodedScanner(Ending.CHAT, sse, encoding)
        tracemalloc.start()
        for chunk in _cut(bomb, 512):
            scanner.feed(chunk)
        scanner.finish()
        _held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert scanner.raw_usage is None
        assert peak < 24 << 20


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.decode)
def test_a_compressed_body_may_arrive_faster_than_it_is_decoded(encoding: bytes) -> None:
    """A document of some MiB, in few chunks: the counts at its end are found."""
    rng = random.Random(5282)
    tokens = "".join(f'{{"token":"{rng.randrange(999)}","logprob":-0.{rng.randrange(99)}}},' for _ in range(9000))
    document = b'{"id":"r1","model":"m","data":[%b0],"usage":{"prompt_tokens":5}}' % (tokens * 10).encode()
    scanner = _scan(Ending.CHAT, *_cut(_packed(document, encoding), 256 << 10), sse=False, encoding=encoding)
    assert (scanner.tokens, scanner.model, scanner.response_id) == ((5, None), "m", "r1")


def test_a_large_compressed_body_is_decoded() -> None:
    """Twenty MiB that are packed as usual are no bomb."""
    document = (
        b'{"model":"m","data":"%b","usage":{"prompt_tokens":5}}' % random.Random(1).randbytes(10 << 20).hex().encode()
    )
    packed = gzip.compress(document, 1)
    scanner = _scan(Ending.CHAT, *_cut(packed, 64 << 10), sse=False, encoding=b"gzip")
    assert scanner.tokens == (5, None)


def test_several_threads_read_the_same() -> None:
    """The log's and the ledger's read a scanner when the request is over, at the same time."""
    interval = sys.getswitchinterval()
    document = json.dumps({"id": "r1", "model": "m", "usage": {"prompt_tokens": 5}, "x": "y" * 3000}).encode()
    made = [
        _scan(Ending.MESSAGES, MESSAGES) if each % 2 else _scan(Ending.CHAT, document, sse=False)
        for each in range(4000)
    ]
    read: list[list[tuple[object, ...]]] = [[], []]

    def work(into: list[tuple[object, ...]]) -> None:
        into.extend((scanner.raw_usage, scanner.tokens, scanner.model, scanner.response_id) for scanner in made)

    threads = [Thread(target=work, args=(into,)) for into in read]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    expected: list[tuple[object, ...]] = []
    work(expected)
    assert read == [expected, expected]
    assert all(usage is not None for usage, *_ in expected)


@pytest.mark.parametrize(
    ("ending", "document", "expected"),
    [
        (Ending.CHAT, {"id": "chatcmpl-1", "model": "m", "usage": {"prompt_tokens": 1}}, "chatcmpl-1"),
        (Ending.CHAT, {"id": "chatcmpl-1", "model": "m"}, "chatcmpl-1"),
        (Ending.CHAT, {"id": 7, "model": "m", "usage": {}}, None),
        (Ending.CHAT, {"id": "x" * 201, "model": "m", "usage": {}}, None),
        (Ending.RESPONSES, {"id": "resp_1", "object": "response", "model": "m"}, "resp_1"),
        (Ending.MESSAGES, {"id": "msg_1", "type": "message", "model": "m", "usage": {}}, "msg_1"),
        (Ending.GOOGLE, {"candidates": [{"id": 1}], "modelVersion": "m", "responseId": "g1"}, "g1"),
        (Ending.UNKNOWN, {"object": "list", "data": [{"id": "no"}], "model": "m"}, None),
    ],
)
@pytest.mark.parametrize("pad", ["", "x" * 5_000, "x" * 300_000], ids=["small", "long", "too-long"])
def test_the_id_of_a_response_is_read(ending: Ending, document: dict[str, Any], expected: str | None, pad: str) -> None:
    """From a document of any size."""
    padded = {"pad": pad, **document} if ending is Ending.GOOGLE else {**document, "pad": pad}
    assert _scan(ending, json.dumps(padded).encode(), sse=False).response_id == expected


@pytest.mark.parametrize("pad", [0, 5_000, 100_000])
def test_the_id_stands_in_the_first_event(pad: int) -> None:
    """Of each dialect; with instructions of any length before the first text."""
    chunk = {"id": "chatcmpl-1", "model": "m", "choices": [{"delta": {"content": "x" * pad}}]}
    assert _scan(Ending.CHAT, _data(chunk), b"data: [DONE]\n\n").response_id == "chatcmpl-1"
    generated = {"candidates": [], "responseId": "g1", "modelVersion": "m"}
    assert _scan(Ending.GOOGLE, _data(generated), _data({"candidates": []})).response_id == "g1"
    started = {"type": "response.created", "response": {"id": "resp_1", "instructions": "x" * pad, "model": "m"}}
    assert _scan(Ending.RESPONSES, _data(started, "response.created")).response_id == "resp_1"
    message = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "content": "x" * pad}}
    assert _scan(Ending.MESSAGES, _data(message, "message_start")).response_id == "msg_1"


def test_coheres_counts_are_found_where_they_stand() -> None:
    """In the last event of a stream, and in ``meta`` of its other endpoints, also behind a long document."""
    usage = {"billed_units": {"input_tokens": 5, "output_tokens": 2}, "tokens": {"input_tokens": 9, "output_tokens": 3}}
    end = {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}}
    assert _scan(Ending.UNKNOWN, _data(end)).raw_usage == usage
    for pad in ("", "x" * 300_000):
        document = {"id": "e1", "embeddings": pad, "meta": {"billed_units": {"input_tokens": 5}}}
        scanner = _scan(Ending.UNKNOWN, json.dumps(document).encode(), sse=False)
        assert (scanner.raw_usage, scanner.tokens) == ({"billed_units": {"input_tokens": 5}}, (5, None))


def test_finish_twice_and_feeding_afterwards_change_nothing() -> None:
    """The end of a body is told once; asking again gives the same."""
    scanner = _scan(Ending.CHAT, CHAT)
    told = _told(scanner)
    scanner.finish()
    assert _told(scanner) == told
    assert _usage(scanner) == _usage(scanner)


_NAMES = [
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "prompt_cache_hit_tokens",
]
_COUNT = st.none() | st.integers(-2, 2**40) | st.booleans() | st.floats(0, 9, allow_nan=False) | st.text(max_size=2)
_DETAILS = st.none() | st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens"]), _COUNT)
_USAGE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(_NAMES, _COUNT),
        "prompt_tokens_details": _DETAILS,
        "input_tokens_details": _DETAILS,
    },
)


@examples(500)
@given(_USAGE, st.sampled_from([Ending.CHAT, Ending.RESPONSES, Ending.MESSAGES, Ending.UNKNOWN]))
def test_the_short_way_counts_what_the_general_way_counts(usage: dict[str, Any], ending: Ending) -> None:
    """A document in the usual words is read by a shorter way, and no number comes out otherwise."""
    told = []
    for more in ({}, {"type": "something_else"}):  # which only the general way reads
        scanner = _scan_document(ending, {"model": "m", "usage": usage, **more})
        told.append((_usage(scanner), scanner.model, scanner.error, scanner.ended))
    assert told[0] == told[1]


_PLACES = [
    *(
        "usage",
        "usageMetadata",
        "response",
        "message",
        "delta",
        "x_groq",
        "meta",
        "billed_units",
        "model",
        "id",
        "type",
    ),
    *("error", "candidates", "finishReason"),
    *_NAMES,
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(_PLACES),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@examples(300)
@given(st.sampled_from(list(Ending)), _JSON, st.booleans())
def test_any_json_is_read_without_an_error(ending: Ending, document: Any, pretty: bool) -> None:
    """As a document and as an event: what is found is a usage object, a name, an id, or nothing."""
    text = json.dumps(document, indent=1 if pretty else None).replace("\n", "\ndata: ").encode()
    for sse, body in ((False, text.replace(b"\ndata: ", b"\n")), (True, b"data: " + text + b"\n\n")):
        scanner = _scan(ending, body, sse=sse)
        assert isinstance(scanner.raw_usage, dict | None)
        for found in (scanner.model, scanner.response_id, scanner.error):
            assert found is None or 0 < len(found) <= 200
        if scanner.raw_usage is not None:
            classes = classes_of(scanner.raw_usage, "other", "other")
            assert all(count is None or count >= 0 for count in classes)


def _scan_document(ending: Ending, document: dict[str, Any]) -> Scanner:
    scanner = Scanner(ending, False)
    scanner.feed(json.dumps(document).encode())
    scanner.finish()
    return scanner


# --- hostile streams -------------------------------------------------------------------------------------------------

IN_VAIN = [
    b'data: {"error":null}\n\n',
    b"data: error\n\n",
    b"error\r\r",
    b'data: {"error":0}\n\n',
    b'data: {"model":1}\n\n',
    b"data: [DONE] x\n\n",
    b'data: "usage"\n\n',
    b'data: "usage":\ndata: {\n\n',
]


class Counting(Scanner):
    """Counts the events that are taken apart."""

    __slots__ = ("looked",)

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending, True)
        self.looked = 0

    def _event(self, event: bytes) -> None:
        self.looked += 1
        super()._event(event)


@pytest.mark.parametrize("size", [997, 49_152])
@pytest.mark.parametrize("unit", IN_VAIN, ids=repr)
def test_events_that_look_like_something_are_not_taken_apart_for_ever(unit: bytes, size: int) -> None:
    """A few thousand at most; the end marker and the usage behind them are seen all the same."""
    stream = unit * ((2 << 20) // len(unit)) + b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    stream += b"data: [DONE]\n\n"
    scanner = Counting(Ending.CHAT)
    for at in range(0, len(stream), size):
        scanner.feed(stream[at : at + size])
    scanner.finish()
    assert scanner.looked <= 5000
    assert scanner.ended
    assert scanner.tokens == (3, 4)


@pytest.mark.parametrize("ending", [each for each in Ending if each is not Ending.UNKNOWN])
def test_an_end_marker_is_seen_behind_thousands_that_were_none(ending: Ending) -> None:
    """In every dialect; what only looks like one is none there either."""
    ends = {
        Ending.CHAT: b"data: [DONE]\n\n",
        Ending.RESPONSES: b'data: {"type":"response.failed"}\n\n',
        Ending.MESSAGES: b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        Ending.GOOGLE: b'data: {"candidates":[{"finishReason":"STOP"}]}\n\n',
        Ending.IMAGES: b'data: {"type":"image_edit.completed"}\n\n',
        Ending.TRANSCRIPT: b'data: {"type": "transcript.text.done"}\n\n',
        Ending.SPEECH: b"event: speech.audio.done\ndata: {}\n\n",
    }
    before = b'data: {"error":0}\n\n' * 6000
    text = b'data: {"text":"[DONE] response.failed message_stop image_edit.completed error"}\n\n'
    assert not _scan(ending, before, text).ended
    assert _scan(ending, before, text, ends[ending]).ended
