"""How a stream ends: decided by its dialect, the same for the client and the log."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from rawclient import RawClient
from upstream import Peer, Upstream, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import Daemon, StartDaemon

KEY = "aks_live_" + "e" * 24


@pytest.fixture
def start(daemon: StartDaemon) -> Callable[..., Daemon]:
    """Start a daemon in front of an upstream."""

    def run(upstream: Upstream) -> Daemon:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[log]\nformat = "json"\n'
        return daemon(config, env={"KEY": KEY}, secrets=[KEY])

    return run


def outcomes(running: Daemon, count: int) -> list[str]:
    """The outcomes of the requests that were logged, as soon as there are so many."""
    end = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in running.output().splitlines() if line.startswith("{")]
        found = [str(line["outcome"]) for line in lines if "outcome" in line]
        if len(found) >= count or time.monotonic() > end:
            return found
        time.sleep(0.02)


def sse(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


#: Method, path, an event in the middle, the event at the end.
KINDS: dict[str, tuple[str, str, bytes, bytes]] = {
    "chat": ("POST", "/v1/chat/completions", b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"),
    "responses": ("POST", "/v1/responses", sse("response.created"), sse("response.completed", response={})),
    "resumed": (
        "GET",
        "/v1/responses/resp_1?stream=true",
        sse("response.created"),
        sse("response.incomplete", response={}),
    ),
    "messages": ("POST", "/v1/messages", sse("ping"), sse("message_stop")),
    "images": (
        "POST",
        "/v1/images/generations",
        sse("image_generation.partial_image"),
        sse("image_generation.completed"),
    ),
    "edits": ("POST", "/v1/images/edits", sse("image_edit.partial_image"), sse("image_edit.completed")),
    "transcript": ("POST", "/v1/audio/transcriptions", sse("transcript.text.delta"), sse("transcript.text.done")),
    "speech": ("POST", "/v1/audio/speech", sse("speech.audio.delta"), sse("speech.audio.done")),
}
HEADS = {
    "chunked": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
}


def piece(data: bytes, framing: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data


def ask(client: RawClient, method: str, path: str) -> None:
    body = json.dumps({"model": "gpt-4o", "stream": True}).encode() if method == "POST" else None
    client.request(method, path, body, {"Content-Type": "application/json"} if body else {})


@pytest.mark.parametrize("framing", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_without_its_end_marker_is_no_whole_one(start: Callable[..., Daemon], kind: str, framing: str) -> None:
    """Delimited by the close it is broken and told so; one whose framing ends well is passed, and recorded as incomplete.
    With the marker both are whole."""
    method, path, middle, end = KINDS[kind]

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            events = (middle, end) if len(upstream.requests) == 2 else (middle,)
            peer.send(HEADS[framing], *(piece(each, framing) for each in events))
            if framing == "close":
                return
            peer.send(b"0\r\n\r\n")

    with Upstream(script) as upstream:
        running = start(upstream)
        with RawClient(running.port) as client:
            ask(client, method, path)
            broken = client.response()
        with RawClient(running.port) as client:
            ask(client, method, path)
            whole = client.response()
        assert (whole.complete, whole.body) == (True, middle + end)
        if framing == "chunked":
            assert (broken.complete, broken.body) == (True, middle)
            assert outcomes(running, 2) == ["incomplete", "ok"]
        else:
            assert not broken.complete
            assert broken.body.startswith(middle)
            assert b"upstream_closed" in broken.body[len(middle) :]
            assert outcomes(running, 2) == ["truncated", "ok"]


@pytest.mark.parametrize("twice", [False, True], ids=["first", "like one before"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_closes_at_the_end_marker_had_everything(
    start: Callable[..., Daemon], kind: str, twice: bool
) -> None:
    """Its outcome is ok, and the connection to Lava serves the next request once the last chunk has come."""
    method, path, middle, end = KINDS[kind]
    left = threading.Event()

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            left.clear()
            peer.send(HEADS["chunked"], piece(middle, "chunked"), piece(end, "chunked"))
            assert left.wait(10)
            time.sleep(0.1)  # the daemon knows that the client left
            peer.send(b"0\r\n\r\n")

    with Upstream(script) as upstream:
        running = start(upstream)
        count = 3 if twice else 2
        for number in range(count):
            with RawClient(running.port) as client:
                ask(client, method, path)
                client.head()
                got = b""
                while len(got) < len(middle + end):
                    got += client.chunk()
                assert got == middle + end
            left.set()
            assert outcomes(running, number + 1) == ["ok"] * (number + 1)
        assert upstream.accepted == 1


def test_a_last_chunk_that_does_not_come_is_not_waited_for(start: Callable[..., Daemon]) -> None:
    """The client has everything and closes; Lava never ends the message: the connection is closed after a second."""
    gone = threading.Event()
    _, _, middle, end = KINDS["chat"]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEADS["chunked"], piece(middle, "chunked"), piece(end, "chunked"))
        if peer.gone():
            gone.set()

    with Upstream(script) as upstream:
        running = start(upstream)
        with RawClient(running.port) as client:
            ask(client, "POST", "/v1/chat/completions")
            client.head()
            got = b""
            while not got.endswith(end):
                got += client.chunk()
        assert gone.wait(10)
        assert outcomes(running, 1) == ["ok"]


def test_a_client_that_closes_before_the_end_marker_is_gone(start: Callable[..., Daemon]) -> None:
    """What Lava sends afterwards, the end marker even, does not make it whole."""
    left = threading.Event()
    _, _, middle, end = KINDS["chat"]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEADS["chunked"], piece(middle, "chunked"))
        assert left.wait(10)
        peer.send(piece(end, "chunked"), b"0\r\n\r\n")

    with Upstream(script) as upstream:
        running = start(upstream)
        with RawClient(running.port) as client:
            ask(client, "POST", "/v1/chat/completions")
            client.head()
            client.chunk()
        time.sleep(0.1)
        left.set()
        assert outcomes(running, 1) == ["client_gone"]


# --- the official SDK ------------------------------------------------------------------------------------------------


def _images(client: openai.OpenAI) -> Any:
    return client.images.generate(model="gpt-image-1", prompt="x", stream=True)


def _edits(client: openai.OpenAI) -> Any:
    return client.images.edit(model="gpt-image-1", image=b"x", prompt="x", stream=True)


def _transcript(client: openai.OpenAI) -> Any:
    return client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"x"), stream=True)


def _resumed(client: openai.OpenAI) -> Any:
    return client.responses.retrieve("resp_1", stream=True)


@pytest.mark.parametrize(
    ("kind", "call"), [("images", _images), ("edits", _edits), ("transcript", _transcript), ("resumed", _resumed)]
)
def test_openai_python_raises_where_such_a_stream_broke(
    start: Callable[..., Daemon], kind: str, call: Callable[[openai.OpenAI], Any]
) -> None:
    """The in-band error is one that the SDK reads: it raises, with our words."""
    middle = KINDS[kind][2]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEADS["close"], middle)

    with Upstream(script) as upstream:
        client = openai.OpenAI(base_url=f"{start(upstream).url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError) as caught:
            list(call(client))
    assert "ended before its own end marker" in str(caught.value)


# --- an answer with a length -----------------------------------------------------------------------------------------


def test_the_error_event_fits_into_the_declared_length_without_filling_it(start: Callable[..., Daemon]) -> None:
    """An answer with a length that breaks: the event is sent where at least one byte of the length is left behind it."""
    _, path, middle, _ = KINDS["chat"]
    lengths = [100_000]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % lengths[-1], middle
        )

    with Upstream(script) as upstream:
        running = start(upstream)

        def broken(length: int) -> bytes:
            lengths.append(length)
            with RawClient(running.port) as client:
                ask(client, "POST", path)
                response = client.response()
                assert not response.complete
                assert response.header("content-length") == str(length)
                assert response.body.startswith(middle)
                return response.body[len(middle) :]

        event = broken(100_000)
        assert b"upstream_closed" in event
        size = len(middle) + len(event)
        assert len(broken(size + 1)) == len(event)
        assert broken(size) == b""
        assert broken(size - 1) == b""


def test_an_http_1_0_client_sees_a_reset_where_the_answer_broke(start: Callable[..., Daemon]) -> None:
    """Without a length or chunks an end of the connection would look like the answer's own."""
    _, path, middle, _ = KINDS["chat"]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(HEADS["chunked"], piece(middle, "chunked"))
        time.sleep(0.3)

    body = b'{"model":"gpt-4o"}'
    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.send(
            b"POST %b HTTP/1.0\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), client.port, len(body), body)
        )
        came = iter(lambda: client.sock.recv(65_536), b"")
        with pytest.raises(ConnectionResetError):
            b"".join(came)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_announced_length_without_a_body_holds_nothing_up(start: Callable[..., Daemon], method: str) -> None:
    """A HEAD's length is passed on, a 204's is not; no body is waited for, and both connections go on sound."""

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if received.method == b"HEAD":
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1234\r\n\r\n")
            elif b"nothing" in received.target:
                peer.send(b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n")
            else:
                peer.send(answer(200, b"whole", [(b"content-type", b"text/plain")]))

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        for _ in range(2):
            client.request(method, "/openai/v1/files/nothing")
            response = client.response(head_only=True)
            assert response.status == (200 if method == "HEAD" else 204)
            assert response.header("content-length") == ("1234" if method == "HEAD" else None)
            assert response.header("transfer-encoding") is None
            client.request("GET", "/openai/v1/files/x")
            response = client.response()
            assert (response.status, response.body) == (200, b"whole")
        # Whoever announces a body may send it after all, late: such a connection is not used again.
        assert upstream.accepted == 3
