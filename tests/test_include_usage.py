"""include_usage: streams are asked for their usage, and a client that did not ask does not see it."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no stubs
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from rawclient import RawClient
from searching import cut
from upstream import Peer, Upstream, answer, chunked

from proxy.protocol.body import Edit, decode, replaced, search_usage_option, usage_option
from proxy.protocol.usage_filter import UsageFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from daemons import Daemon, StartDaemon

    from proxy.emulator import Emulator

LIMIT = 1 << 20

# --- the request's body ----------------------------------------------------------------------------------------------


def _run(steps: Generator[None, None, Edit | None]) -> Edit | None:
    while True:
        try:
            next(steps)
        except StopIteration as over:
            found: Edit | None = over.value
            return found


def _asking(body: bytes, size: int | None = None) -> bytes | None:
    """The body that is sent; ``None``: unchanged. ``size``: it comes in such pieces."""
    pieces = cut(body, size or len(body) or 1)
    edit = _run(search_usage_option(pieces, b"application/json", None, LIMIT)) if size else usage_option(body)
    return None if edit is None else b"".join(replaced(pieces, edit.span, edit.new))


CHANGED = {
    b'{"stream":true}': b'{"stream_options":{"include_usage":true},"stream":true}',
    b' {\n "a": [1, {"stream": false}], "stream" : true }\n': (
        b' {"stream_options":{"include_usage":true},\n "a": [1, {"stream": false}], "stream" : true }\n'
    ),
    b'{"stream":true,"stream_options":null}': b'{"stream":true,"stream_options":{"include_usage":true}}',
    b'{"stream_options":{},"stream":true}': b'{"stream_options":{"include_usage":true},"stream":true}',
    b'{"stream_options": { "include_obfuscation" : false} ,"stream":true}': (
        b'{"stream_options": {"include_usage":true, "include_obfuscation" : false} ,"stream":true}'
    ),
    b'{"stream":true,"stream_options":{"include_usage":false}}': (
        b'{"stream":true,"stream_options":{"include_usage":true}}'
    ),
    b'{"stream":true,"stream_options": {"a":1,"include_us\\u0061ge" :  null }}': (
        b'{"stream":true,"stream_options": {"a":1,"include_us\\u0061ge" :  true }}'
    ),
    b'{"stream":true,"stream_options":{"include_usage":true,"x":{"include_usage":true},"include_usage":false}}': (
        b'{"stream":true,"stream_options":{"include_usage":true,"x":{"include_usage":true},"include_usage":true}}'
    ),
    b'{"stream_options":{"include_usage":true},"stream":true,"stream_options":{}}': (
        b'{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true}}'
    ),
    b'{"\\u0073tream":true}': b'{"stream_options":{"include_usage":true},"\\u0073tream":true}',
    b'{"stream":false,"stream":true}': b'{"stream_options":{"include_usage":true},"stream":false,"stream":true}',
    b'{"x":"\\"stream\\":false}","stream":true}': (
        b'{"stream_options":{"include_usage":true},"x":"\\"stream\\":false}","stream":true}'
    ),
}
UNCHANGED = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b'{"stream":false}',
    b'{"stream":"true"}',
    b'{"stream":1}',
    b'{"stream":true,"stream":false}',
    b'{"stream":true,"stream":"x","a":1}',
    b'{"stream":true,"stream_options":{"include_usage":true}}',
    b'{"stream":true,"stream_options":{"include_usage":0}}',
    b'{"stream":true,"stream_options":{"include_us\\u0061ge":"no"}}',
    b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":true}}',
    b'{"stream":true,"stream_options":{},"stream_options":{"include_usage":true}}',
    b'{"stream":true,"stream_options":{"include_usage":false}',
    b'{"stream":true,"stream_options":"x"}',
    b'{"stream":true,"stream_options":[]}',
    b'{"stream":true',
    b'{"a":{"stream":true}}',
    b'{"stream":true,"stream_options":{"a":"' + b"x" * 20_000 + b'"}}',
]


@pytest.mark.parametrize("body", CHANGED, ids=repr)
def test_a_stream_is_asked_for_its_usage_and_no_other_byte_changes(body: bytes) -> None:
    """Wherever the members stand, in any pieces."""
    assert {_asking(body, size) for size in range(len(body) + 1)} == {CHANGED[body]}


@pytest.mark.parametrize("body", UNCHANGED, ids=lambda body: repr(body[:70]))
def test_other_bodies_stay_as_they_are(body: bytes) -> None:
    """No stream, a client that asks for it itself, or nothing that can be read."""
    assert [_asking(body, size) for size in (0, 1, 3, len(body) or 1)] == [None] * 4


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@examples(300)
@given(
    st.dictionaries(
        st.text(max_size=5) | st.sampled_from(["stream", "stream_options", "model", "messages"]), _VALUES, max_size=5
    ),
    st.sampled_from([None, True, False]),
    st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}]),
    st.integers(0, 40),
)
def test_any_body_means_the_same_afterwards(
    document: dict[str, Any], stream: bool | None, style: dict[str, Any], size: int
) -> None:
    """Only the option is added; a body that needs none is left alone."""
    if stream is not None:
        document["stream"] = stream
    changed = _asking(json.dumps(document, **style).encode(), size)
    options = document.get("stream_options")
    wanted = document.get("stream") is True and (
        options is None or (isinstance(options, dict) and (options.get("include_usage") or False) is False)
    )
    if wanted:
        assert changed is not None
        assert json.loads(changed) == {**document, "stream_options": {**(options or {}), "include_usage": True}}
    else:
        assert changed is None


def test_a_large_body_is_searched_in_linear_time() -> None:
    """4 MiB of messages before the member, in steps that are counted."""
    body = b'{"messages":[' + b'{"role":"user","content":"[{x"},' * 131_072 + b'{}],"stream":true}'
    search = search_usage_option([body], None, None, len(body))
    assert sum(1 for _ in search) <= len(body) // 65_536 + 3
    edit = _run(search_usage_option([body], None, None, len(body)))
    assert edit is not None
    assert edit.span == (1, 1)


# --- the response ----------------------------------------------------------------------------------------------------

DELTA = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"x \\"usage\\":{"}}],"usage":null}'
USAGE = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
FILTERED_FIRST = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}],"usage":null}'
DONE = b"data: [DONE]"
EVENTS = [FILTERED_FIRST, DELTA, b": comment", DELTA, USAGE, DONE]


def _filtered(*chunks: bytes) -> bytes:
    usage_filter = UsageFilter()
    return b"".join([*map(usage_filter.feed, chunks), usage_filter.finish()])


def _stream(events: Iterable[bytes], line_end: bytes) -> bytes:
    return b"".join(event + 2 * line_end for event in events)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_the_usage_chunk_alone_is_removed_however_it_is_cut(line_end: bytes) -> None:
    """In two pieces at every byte, in three, and in single bytes."""
    whole = _stream(EVENTS, line_end)
    expected = _stream([event for event in EVENTS if event is not USAGE], line_end)
    assert _filtered(whole) == expected
    assert _filtered(*cut(whole, 1)) == expected
    for at in range(len(whole) + 1):
        assert _filtered(whole[:at], whole[at:]) == expected
        assert _filtered(whole[:at], whole[at : at + 2], whole[at + 2 :]) == expected


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}',
        b'data: {"choices":[],"usage":null}',
        b'data: {"choices":[]}',
        b'data: {"usage":{"prompt_tokens":1}}',
        b': {"choices":[],"usage":{}}',
        b'data: {"choices":[],"usage":{"prompt_tokens":1}',
        b'data: {"choices":[],"usage":{},"x":"' + b"x" * 40_000 + b'"}',
        b'data: {"error":{"message":"\\"choices\\":[],\\"usage\\":{}"}}',
    ],
    ids=lambda event: repr(event[:60]),
)
def test_every_other_event_stays(event: bytes) -> None:
    """Usage in a chunk with text, no usage, broken JSON, errors, comments, and events too long to be held."""
    for line_end in (b"\n", b"\r\n", b"\r"):
        whole = _stream([event, DONE], line_end)
        for size in (1, 7, len(whole)):
            assert _filtered(*cut(whole, size)) == whole


def test_a_cut_stream_keeps_what_came() -> None:
    """Half of an event, also half of the usage chunk; a usage chunk without its empty line is whole."""
    assert _filtered(DELTA[:-9]) == DELTA[:-9]
    assert _filtered(USAGE[:-9]) == USAGE[:-9]
    assert _filtered(USAGE) == b""
    assert _filtered(USAGE + b"\n") == b""


def test_an_event_is_passed_on_when_it_is_whole() -> None:
    """Not later, and an endless event is not held."""
    usage_filter = UsageFilter()
    assert usage_filter.feed(DELTA + b"\n\n" + DONE) == DELTA + b"\n\n"
    assert usage_filter.feed(b"\n\n") == DONE + b"\n\n"
    passed = b"".join(usage_filter.feed(b"x" * 1000) for _ in range(100))
    assert len(passed) >= 99_000


@examples(300)
@given(
    st.lists(
        st.sampled_from([*EVENTS, b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"x"]) | st.binary(max_size=9), max_size=12
    ),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_any_bytes_give_the_same_in_any_pieces(parts: list[bytes], cuts: list[int]) -> None:
    """And nothing is lost where there is no usage chunk."""
    whole = b"".join(parts)
    places = sorted({0, len(whole), *(at for at in cuts if at < len(whole))})
    filtered = _filtered(*(whole[start:end] for start, end in itertools.pairwise(places)))
    assert filtered == _filtered(*cut(whole, 1)) == _filtered(whole)
    if USAGE not in whole:
        assert filtered == whole


# --- over the wire ---------------------------------------------------------------------------------------------------

KEY = "aks_live_" + "u" * 24
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
CONFIG = """
[lava]
secret_key = "env:KEY"
base_url = "{url}"
[projects.counted]
include_usage = true
[projects.plain]
[models]
fast = "groq/llama-3.1-8b-instant"
"""
SSE = [(b"content-type", b"text/event-stream")]
STREAM = _stream(EVENTS, b"\n")
SHOWN = _stream([event for event in EVENTS if event is not USAGE], b"\n")


@pytest.fixture
def start(daemon: StartDaemon) -> Callable[[Upstream | Emulator], Daemon]:
    """Start a daemon with a project that wants its usage, and one that does not."""

    def run(upstream: Upstream | Emulator) -> Daemon:
        url = upstream.url if isinstance(upstream, Upstream) else upstream.base_url
        key = KEY if isinstance(upstream, Upstream) else upstream.world.secret_key
        return daemon(CONFIG.format(url=url), env={"KEY": key}, secrets=[key])

    return run


def _streams(peer: Peer) -> None:
    """A stream in single bytes, one in one piece with its length, and so on."""
    for way in itertools.cycle(("bytes", "whole", "events")):
        if peer.request() is None:
            return
        if way == "whole":
            peer.send(answer(200, STREAM, SSE))
            continue
        peer.send(answer(200, b"", [*SSE, (b"transfer-encoding", b"chunked")], length=False))
        if way == "bytes":
            peer.drip(chunked(*cut(STREAM, 1)), size=6)
        else:
            peer.send(chunked(*(event + b"\n\n" for event in EVENTS)))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/chat/completions"])
def test_streams_are_asked_and_their_usage_is_hidden(start: Callable[..., Daemon], path: str) -> None:
    """By model and by provider's name; every other byte of request and response is the same. The log has the tokens."""
    body = b'{ "model":"gpt-4o","messages":[], "stream":true}'
    asked = b'{"stream_options":{"include_usage":true}, "model":"gpt-4o","messages":[], "stream":true}'
    with Upstream(_streams) as upstream:
        running = start(upstream)
        with RawClient(running.port) as client:
            for _ in range(3):
                client.request(
                    "POST",
                    f"/p/counted{path}",
                    body,
                    {"Content-Type": "application/json", "Accept-Encoding": "gzip, br"},
                )
                response = client.response()
                assert (response.status, response.body, response.complete) == (200, SHOWN, True)
        assert [(each.body, each.header(b"accept-encoding")) for each in upstream.requests] == [
            (asked, b"identity")
        ] * 3
        running.stop()
        lines = [json.loads(line) for line in running.output().splitlines() if '"input_tokens"' in line]
        assert [(line["input_tokens"], line["output_tokens"], line["outcome"]) for line in lines] == [(9, 4, "ok")] * 3


@pytest.mark.parametrize(
    ("project", "more"),
    [
        ("plain", {"stream": True}),
        ("counted", {"stream": True, "stream_options": {"include_usage": True}}),
        ("counted", {"stream": False}),
        ("counted", {}),
    ],
)
def test_other_requests_and_their_streams_stay_as_they_are(
    start: Callable[..., Daemon], project: str, more: dict[str, Any]
) -> None:
    """Of other projects, of clients that ask for it themselves, and of no stream."""
    body = json.dumps({**CHAT, **more}).encode()
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip, br", "Content-Digest": "sha-256=:AA==:"}
    with Upstream(_streams) as upstream, RawClient(start(upstream).port) as client:
        for path in ("v1", "openai/v1"):
            client.request("POST", f"/p/{project}/{path}/chat/completions", body, headers)
            assert client.response().body == STREAM
        for received in upstream.requests:
            assert (received.body, received.header(b"accept-encoding")) == (body, b"gzip, br")
            assert received.header(b"content-digest") == b"sha-256=:AA==:"


@pytest.mark.parametrize("path", ["v1", "openai/v1"])
def test_what_the_client_says_of_its_request_stays(start: Callable[..., Daemon], path: str) -> None:
    """Also of a chunked upload, and of a client that wants no usage. The length is that of the new body."""
    body = json.dumps({**CHAT, "stream": True, "stream_options": {"include_usage": False}}).encode()
    said = {"Idempotency-Key": "key-1", "Content-Digest": "sha-256=:AA==:", "Content-MD5": "AA==", "Accept": "*/*"}
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", **said}
    with Upstream(_streams) as upstream, RawClient(start(upstream).port) as client:
        client.request("POST", f"/p/counted/{path}/chat/completions", None, headers)
        for piece in cut(chunked(*cut(body, 7)), 50):
            client.send(piece)
        assert client.response().body == SHOWN
        (received,) = upstream.requests
        assert received.body == body.replace(b"false", b"true")
        assert received.header(b"content-length") == b"%d" % len(received.body)
        assert received.header(b"transfer-encoding") is None
        for name, value in said.items():
            assert received.header(name.encode()) == value.encode()


def test_other_endpoints_stay_as_they_are(start: Callable[..., Daemon]) -> None:
    """A form, and streams of other APIs, of a project that wants its usage."""
    body = b'{"model":"gpt-4o","stream":true}'
    form = b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--x--\r\n'
    calls = [
        ("v1/completions", "application/json", body),
        ("v1/responses", "application/json", body),
        ("v1/messages", "application/json", body.replace(b"gpt-4o", b"claude-opus-4-6")),
        ("openai/v1/chat/completions", "multipart/form-data; boundary=x", form),
        ("openai/v1/audio/transcriptions", "multipart/form-data; boundary=x", form),
    ]
    with Upstream(_streams) as upstream, RawClient(start(upstream).port) as client:
        for path, kind, content in calls:
            client.request("POST", f"/p/counted/{path}", content, {"Content-Type": kind})
            assert client.response().body == STREAM
        assert [each.body for each in upstream.requests] == [content for _, _, content in calls]


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_body_is_sent_decoded(start: Callable[..., Daemon], encoding: str) -> None:
    """As for a replaced model, and both changes together."""
    body = json.dumps({**CHAT, "model": "fast", "stream": True}).encode()
    packed = gzip.compress(body) if encoding == "gzip" else brotli.compress(body)
    assert decode(packed, encoding.encode(), LIMIT) == body
    with Upstream(_streams) as upstream, RawClient(start(upstream).port) as client:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        client.request("POST", "/p/counted/v1/chat/completions", packed, headers)
        assert client.response().body == SHOWN
        (received,) = upstream.requests
        assert received.header(b"content-encoding") is None
        expected = {**CHAT, "model": "llama-3.1-8b-instant", "stream": True, "stream_options": {"include_usage": True}}
        assert json.loads(received.body) == expected


def test_a_large_body_is_changed_while_it_is_sent(start: Callable[..., Daemon]) -> None:
    """A megabyte, with an alias: two changes in one pass."""
    document = {"messages": [{"role": "user", "content": "x" * 1_000_000}], "model": "fast", "stream": True}
    with Upstream(_streams) as upstream, RawClient(start(upstream).port) as client:
        client.post_json("/p/counted/v1/chat/completions", document)
        assert client.response().body == SHOWN
        expected = {**document, "model": "llama-3.1-8b-instant", "stream_options": {"include_usage": True}}
        assert json.loads(upstream.requests[0].body) == expected


@pytest.mark.parametrize(
    ("sent", "begins"),
    [
        (DELTA + b"\n\n", DELTA + b'\n\ndata: {"error"'),
        (DELTA + b"\n\n" + USAGE + b"\n\n", DELTA + b'\n\ndata: {"error"'),
        (DELTA + b"\n\n" + USAGE[:40], DELTA + b"\n\n" + USAGE[:40]),
    ],
    ids=["between events", "after the usage", "inside an event"],
)
def test_a_broken_stream_is_still_a_broken_stream(start: Callable[..., Daemon], sent: bytes, begins: bytes) -> None:
    """Between two events the client gets an error event; inside one, what came of it."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(200, b"", [*SSE, (b"transfer-encoding", b"chunked")], length=False))
        peer.send(chunked(sent, end=False))
        peer.fin()

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.post_json("/p/counted/v1/chat/completions", {**CHAT, "stream": True})
        response = client.response()
        assert not response.complete
        assert response.body.startswith(begins)
        assert (b'"error"' in response.body) == begins.endswith(b'"error"')


def test_the_official_sdk_sees_its_own_stream(start: Callable[..., Daemon], emulator: Emulator) -> None:
    """Without the option no chunk has an empty list of choices; with it the usage is in the last one."""
    running = start(emulator)
    with openai.OpenAI(base_url=f"{running.url}/p/counted/v1", api_key="unused", max_retries=0) as client:
        messages: Any = CHAT["messages"]
        chunks = list(client.chat.completions.create(model="gpt-4o", messages=messages, stream=True))
        assert chunks
        assert all(chunk.choices for chunk in chunks)
        assert all(chunk.usage is None for chunk in chunks)
        asked = list(
            client.chat.completions.create(
                model="gpt-4o", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        assert asked[-1].choices == []
        assert asked[-1].usage is not None
    running.stop()
    lines = [json.loads(line) for line in running.output().splitlines() if '"input_tokens"' in line]
    assert len(lines) == 2
    assert lines[0]["input_tokens"] == lines[1]["input_tokens"] == asked[-1].usage.prompt_tokens
