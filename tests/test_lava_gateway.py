"""The client's calls through the gateway: where they go, with which token, and how their answers stream."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from lava_answers import KEY, asked, client, in_turn, json_answer
from upstream import Peer, Upstream, answer, chunked

from proxy.lava import (
    Interrupted,
    Lava,
    NotJson,
    ServerError,
    TimedOut,
    Unauthorized,
    Unreachable,
    Unsupported,
)
from proxy.lava.gateway import target_of
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstream import Received

URL = "https://api.openai.com/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-lava-request-id: req_9\r\n\r\n"
EVENTS = [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n"]


def token_in(request: Received) -> dict[str, Any]:
    """The forward token's fields."""
    value = (request.header(b"authorization") or b"").removeprefix(b"Bearer ")
    found: dict[str, Any] = json.loads(base64.b64decode(value, validate=True))
    return found


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"provider_key": "p"}, {"provider_key": "p"}),
        ({"meter_slug": "m"}, {"customer_id": None, "meter_slug": "m"}),
        ({"meter_slug": "m", "disable_billing": True}, {"customer_id": None, "meter_slug": "m"}),
        ({"customer_id": "c", "meter_slug": "m"}, {"customer_id": "c", "meter_slug": "m"}),
        (
            {"customer_id": "c", "meter_slug": "m", "provider_key": "p", "disable_billing": False},
            {"customer_id": "c", "meter_slug": "m", "provider_key": "p", "disable_billing": False},
        ),
        ({"connection_id": "c", "meter_slug": "m"}, {"connection_id": "c", "meter_slug": "m"}),
    ],
)
def test_who_pays(options: dict[str, Any], fields: dict[str, Any]) -> None:
    """The token has the SDK's fields, nulls and order."""
    _, upstream = asked(json_answer({}), lambda lava: lava.gateway(URL, **options))
    assert list(token_in(upstream.requests[0]).items()) == [("secret_key", KEY), *fields.items()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"customer_id": "c"}, "needs meter_slug"),
        ({"connection_id": "c"}, "needs meter_slug"),
        ({"customer_id": "c", "connection_id": "c", "meter_slug": "m"}, "give one"),
        ({"format": "openia"}, "format is one of"),
        ({"headers": {"X-A": "b\r\nX-Evil: 1"}}, "cannot be written as HTTP"),
        ({"headers": {"X-A": "é\u0100"}}, "cannot be written as HTTP"),
    ],
)
def test_what_is_refused_before_it_is_sent(options: dict[str, Any], said: str) -> None:
    """Each with a sentence."""

    async def ask(lava: Lava) -> None:
        with pytest.raises(ValueError, match=said):
            await lava.gateway(URL, **options)

    _, upstream = asked(json_answer({}), ask)
    assert not upstream.requests


@pytest.mark.parametrize("address", ["api.openai.com/v1", "ftp://a/b", "https://", "https:// a/"])
def test_an_address_that_is_none(address: str) -> None:
    """The provider's whole address is needed."""
    with pytest.raises(ValueError, match="must begin with https"):
        target_of(address, None)


def test_where_it_goes() -> None:
    """Forward: all of it encoded as ``encodeURIComponent`` does. Rewrite: as it is, but never out of ``rewrite/``."""
    assert target_of("https://a.b/c?x=1&key=é#f", None) == "forward?u=https%3A%2F%2Fa.b%2Fc%3Fx%3D1%26key%3D%C3%A9%23f"
    assert target_of("https://a.b/m:go?x=é y#f", "google") == "rewrite/google/https://a.b/m:go?x=%C3%A9%20y"
    for address in ("https://a.b/../x", "https://a.b/%2e%2E/x", "https://a.b/..", "https://a.b/.\\x"):
        with pytest.raises(ValueError, match="segments"):
            target_of(address, "openai")
    # In a query, dots are data.
    assert target_of("https://a.b/c?../x", "openai").endswith("/c?../x")


def test_headers_and_bodies() -> None:
    """The caller's Authorization is dropped, other headers pass; JSON says so unless the caller says otherwise."""

    async def ask(lava: Lava) -> None:
        headers = {"AUTHORIZATION": "Bearer evil", "anthropic-version": "2023-06-01"}
        await lava.gateway(URL, headers=headers, body={"a": "é", "b": [1, None]})
        await lava.gateway(URL, body=[1], headers={"content-type": "application/x-ndjson"})
        await lava.gateway(URL, body="text é")
        await lava.gateway(URL, body=b"\x00\xff", method="PUT")
        await lava.gateway(URL, method="GET")

    found, upstream = asked(json_answer({}), ask)
    assert found is None
    first, second, third, fourth, fifth = upstream.requests
    assert b"evil" not in first.raw
    assert first.header(b"anthropic-version") == b"2023-06-01"
    assert (first.method, first.header(b"content-type")) == (b"POST", b"application/json")
    assert first.body == '{"a":"é","b":[1,null]}'.encode()
    assert (second.body, second.header(b"content-type")) == (b"[1]", b"application/x-ndjson")
    assert (third.body, third.header(b"content-type")) == ("text é".encode(), None)
    assert (fourth.method, fourth.body) == (b"PUT", b"\x00\xff")
    assert (fifth.method, fifth.body, fifth.header(b"content-type")) == (b"GET", b"", None)
    assert all(request.header(b"idempotency-key") is None for request in upstream.requests)


def test_the_answer_is_python_json() -> None:
    """Numbers are floats here: it is the provider's answer, not money."""
    found, _ = asked(json_answer(b'{"a": 0.5}'), lambda lava: lava.gateway(URL))
    assert found == {"a": 0.5}
    assert type(found["a"]) is float
    nothing, _ = asked(answer(204, length=False), lambda lava: lava.gateway(URL))
    assert nothing is None
    speech, _ = asked(answer(200, b"\xff\xfb", [(b"content-type", b"audio/mpeg")]), lambda lava: lava.gateway(URL))
    assert isinstance(speech, NotJson)
    assert "stream=True" in str(speech)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_typed_with_and_without_streaming(stream: bool) -> None:
    """Read whole, masked, and not repeated, whatever it says: it may have cost money."""
    own = "own-" + "q" * 20
    told = {"error": {"message": f"no {KEY} {own}", "code": "forward_endpoint_not_supported"}}

    async def ask(lava: Lava) -> Any:
        return await lava.gateway(URL, provider_key=own, stream=stream)  # type: ignore[call-overload]  # both

    found, upstream = asked(json_answer(told, 400, [(b"x-lava-request-id", b"req_1")]), ask)
    assert type(found) is Unsupported
    assert found.request_id == "req_1"
    assert not leaks(str(found), [KEY, own])
    for status, kind in ((401, Unauthorized), (503, ServerError)):
        found, upstream = asked(json_answer({}, status), ask)
        assert type(found) is kind
        assert len(upstream.requests) == 1
    found, upstream = asked(in_turn(b""), ask)
    assert isinstance(found, Unreachable)
    assert found.sent
    assert len(upstream.requests) == 1


def test_chunks_come_as_they_are_sent() -> None:
    """The second is sent only after the first has reached the caller: nothing is held back."""
    got: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD)
        for number, event in enumerate(EVENTS):
            peer.upstream.wait(lambda number=number: len(got) == number)  # type: ignore[misc]  # a default argument
            peer.send(chunked(event, end=False))
        peer.send(b"0\r\n\r\n")

    async def ask(lava: Lava) -> Any:
        async with await lava.gateway(URL, body={"stream": True}, stream=True) as stream:
            assert (stream.status, stream.request_id) == (200, "req_9")
            assert stream.headers["content-type"] == "text/event-stream"
            async for chunk in stream:
                got.append(chunk)
            return repr(stream)

    found, _ = asked(script, ask)
    assert got == EVENTS
    assert found == "<Stream 200 req_9>"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_of_sse(size: int) -> None:
    """LF, CRLF and CR end a line, wherever a chunk ends; half a last line comes too; UTF-8 is not torn."""
    body = "data: é1\r\n\r\ndata: 2\rdata: 3\n\n\ndata: 4\r".encode() + b"data: \xff"
    parts = [body[start : start + size] for start in range(0, len(body), size)]

    async def ask(lava: Lava) -> list[str]:
        async with await lava.gateway(URL, stream=True) as stream:
            return [line async for line in stream.lines()]

    found, _ = asked(HEAD + chunked(*parts), ask)
    assert found == ["data: é1", "", "data: 2", "data: 3", "", "", "data: 4", "data: \ufffd"]


def test_lines_that_end_with_a_carriage_return() -> None:
    """The last one of the answer is a line's end like any other."""

    async def ask(lava: Lava) -> list[str]:
        async with await lava.gateway(URL, stream=True) as stream:
            return [line async for line in stream.lines()]

    assert asked(HEAD + chunked(b"a\r"), ask)[0] == ["a"]
    assert asked(HEAD + chunked(b"a\r", b"\nb\n"), ask)[0] == ["a", "b"]
    assert asked(HEAD + chunked(), ask)[0] == []


def test_a_broken_stream_never_ends_cleanly() -> None:
    """What came is given, then ``Interrupted``."""
    got: list[bytes] = []

    async def ask(lava: Lava) -> None:
        async with await lava.gateway(URL, stream=True) as stream:
            async for chunk in stream:
                got.append(chunk)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD + chunked(EVENTS[0], end=False))

    found, _ = asked(script, ask)
    assert isinstance(found, Interrupted)
    assert found.request_id == "req_9"
    assert got == EVENTS[:1]


def test_silence_is_limited() -> None:
    """``silence`` is the time between two bytes."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD + chunked(EVENTS[0], end=False))
        peer.gone()

    async def ask(lava: Lava) -> None:
        async with await lava.gateway(URL, stream=True, silence=0.2) as stream:
            async for _ in stream:
                pass

    found, _ = asked(script, ask)
    assert isinstance(found, TimedOut)


def test_leaving_closes_the_connection() -> None:
    """At once, so that the provider stops: by ``async with``, by ``aclose``, and by cancellation."""
    left: list[bool] = []

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD + chunked(EVENTS[0], end=False))
        left.append(peer.gone())

    async def ask(lava: Lava) -> None:
        async with await lava.gateway(URL, stream=True) as stream:
            assert await anext(aiter(stream)) == EVENTS[0]
        await asyncio.to_thread(upstream_of(lava), 1)
        other = await lava.gateway(URL, stream=True)
        await other.aclose()
        await other.aclose()
        await asyncio.to_thread(upstream_of(lava), 2)

        async def reading() -> None:
            async with await lava.gateway(URL, stream=True) as stream:
                async for _ in stream:
                    begun.set()

        begun = asyncio.Event()
        task = asyncio.ensure_future(reading())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(upstream_of(lava), 3)

    running: list[Upstream] = []

    def upstream_of(lava: Lava) -> Callable[[int], None]:
        return lambda count: running[0].wait(lambda: len(left) == count)

    async def run() -> None:
        async with client(running[0]) as lava:
            await ask(lava)

    with Upstream(script) as upstream:
        running.append(upstream)
        asyncio.run(run())
    assert left == [True, True, True]


def test_a_compressed_answer() -> None:
    """Chunks are raw, lines and the whole are decoded."""
    import gzip

    packed = gzip.compress(b"one\ntwo")
    script = answer(200, packed, [(b"content-encoding", b"gzip")])

    async def ask(lava: Lava) -> Any:
        async with await lava.gateway(URL, stream=True) as stream:
            raw = b"".join([chunk async for chunk in stream])
        async with await lava.gateway(URL, stream=True) as stream:
            lines = [line async for line in stream.lines()]
        async with await lava.gateway(URL, stream=True) as stream:
            return raw, lines, await stream.read()

    found, _ = asked(script, ask)
    assert found == (packed, ["one", "two"], b"one\ntwo")


def test_a_connection_that_never_came_about_is_tried_again(free_port: int) -> None:
    """Nothing was sent, so nothing was paid."""

    async def run() -> None:
        async with Lava(KEY, base_url=f"http://127.0.0.1:{free_port}/v1", backoff=0.001) as lava:
            with pytest.raises(Unreachable) as caught:
                await lava.gateway(URL)
            assert not caught.value.sent

    asyncio.run(run())


def test_the_emulator_takes_it() -> None:
    """A real conversation with the offline Lava: charged customer, translation, stream, 401."""
    from proxy.emulator import Emulator, World

    with Emulator(World.demo()) as emulator:

        async def run() -> None:
            key = emulator.world.secret_key
            async with Lava(key, base_url=emulator.base_url) as lava:
                body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
                told = await lava.gateway(URL, body=body)
                assert told["choices"][0]["message"]["content"]
                async with await lava.gateway(URL, body={**body, "stream": True}, stream=True) as stream:
                    lines = [line async for line in stream.lines()]
                assert "data: [DONE]" in lines
            async with Lava(KEY, base_url=emulator.base_url) as stranger:
                with pytest.raises(Unauthorized):
                    await stranger.gateway(URL, body=body)

        asyncio.run(run())
