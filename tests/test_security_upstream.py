"""An upstream that is absent, slow, broken, hostile or right: what the client is answered is true."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no stubs
import zstandard
from ports import free_port
from security_stand import (
    CHAT,
    CLOSE_SSE_HEAD,
    DELTA,
    DONE,
    LAVA_KEY,
    SSE_HEAD,
    STREAM,
    TOKEN,
    Play,
    Stand,
    answers,
    case,
    echo,
    error_body,
    event,
    log_lines,
    our_error,
    says,
    sha256,
    sound,
    until,
    with_site,
)
from upstream import Peer, Received, Upstream, answer, certificate, chunked

from proxy.protocol.usage import Scanner

if TYPE_CHECKING:
    from pathlib import Path

    from daemons import Daemon
    from rawclient import Response


OK = answer(200, b"{}")


def bad_gateway(response: Response, status: int, code: str, retry: str) -> None:
    """An error of ours about the upstream, with what an SDK may do, and no invitation to wait."""
    assert (response.status, response.code) == (status, code), response.body
    assert response.complete
    assert response.header("x-should-retry") == retry
    assert response.header("retry-after") is None
    assert response.json()["error"]["lava_proxy"]["code"] == code


def asked_once(stand: Stand, play: Play, document: object = CHAT, *, at: str = "plain") -> tuple[Response, str]:
    """One request while the upstream plays: the response and the recorded outcome. Exactly one request went upstream."""
    word = stand.nonce()
    path = f"/openai/v1/{word}/chat/completions"
    with stand.playing(play):
        response = stand.post(path, document, at=at)
        outcome = stand.outcome(word, at)
        # A second request, tried behind our back, would have come by now. (A question to Lava's account is none.)
        assert stand.ask("GET", "/healthz", at=at).status == 200
        assert sum(word.encode() in each.target for each in stand.upstream.requests) == 1
    return response, outcome


def told(response: Response, before: bytes, code: str = "upstream_closed") -> None:
    """A broken stream: what came, one error event of ours, and no end."""
    assert response.status == 200
    assert not response.complete
    assert response.body.startswith(before)
    said = response.body[len(before) :]
    assert said.startswith(b"data: {")
    assert said.endswith(b"\n\n")
    assert json.loads(said[6:])["error"]["lava_proxy"]["code"] == code
    assert b"[DONE]" not in said


@case("UPS-01")
def test_refused(stand: Stand) -> None:
    running = stand.start(base_url=f"http://127.0.0.1:{free_port()}")
    word = stand.nonce()
    begun = time.monotonic()
    bad_gateway(stand.post(f"/openai/v1/{word}", at=running), 502, "upstream_unreachable", "true")
    assert time.monotonic() - begun < 10.0
    assert stand.outcome(word, running) == "upstream_error"
    assert running.stop() == 0


HANGING_NAMES = """
import socket, time
_real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if isinstance(host, (bytes, bytearray)):
        host = host.decode()
    if host and host.endswith("hang.invalid"):
        time.sleep(60)
    return _real(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""


@case("UPS-02")
def test_names(stand: Stand) -> None:
    env = with_site(stand, "hanging-names", HANGING_NAMES)
    unknown = stand.start("[upstream]\nconnect = 5.0\n", base_url="https://no-such-name.invalid/v1", ready=False)
    hanging = stand.start("[upstream]\nconnect = 1.0\n", base_url="https://hang.invalid/v1", env=env)
    unknown.wait_until_up()
    begun = time.monotonic()
    response = stand.post("/v1/chat/completions", at=unknown)
    assert time.monotonic() - begun < 7.0
    assert (response.status, response.code) in ((502, "upstream_unreachable"), (504, "upstream_timeout"))
    assert response.header("x-should-retry") == "true"
    asking = [stand.pool.submit(lambda: stand.post("/v1/chat/completions", at=hanging)) for _ in range(8)]
    begun = time.monotonic()
    for _ in range(20):
        asked = time.monotonic()
        assert stand.ask("GET", "/healthz", at=hanging).status == 200
        assert time.monotonic() - asked < 0.8, "the event loop waits for a name"
    for each in asking:
        bad_gateway(each.result(10), 504, "upstream_timeout", "true")
    assert time.monotonic() - begun < 5.0
    begun = time.monotonic()
    assert hanging.stop() == 0
    assert time.monotonic() - begun < 5.0, "a hanging name holds up the end"
    assert unknown.stop() == 0


@case("UPS-03")
def test_certificates(stand: Stand) -> None:
    folder = stand.folder / "certificates"
    folder.mkdir()
    good, unknown = certificate(folder), certificate(folder)
    servers = {
        "expired": (certificate(folder, expired=True), None),
        "wrong host": (certificate(folder, "api.lavapayments.com"), None),
        "unknown authority": (unknown, good.ca_file),
    }
    running: dict[str, tuple[Upstream, Daemon]] = {}
    with contextlib.ExitStack() as stack:
        for name, (made, trusted) in servers.items():
            upstream = stack.enter_context(Upstream(OK, tls=made.server))
            config = f'[upstream]\nca_file = "{trusted or made.ca_file}"\n'
            running[name] = upstream, stand.start(config, upstream=upstream, ready=False)
        own = _self_signed(folder)
        upstream = stack.enter_context(Upstream(OK, tls=own))
        running["self-signed"] = upstream, stand.start(upstream=upstream, ready=False)
        for name, (upstream, daemon) in running.items():
            daemon.wait_until_up()
            word = stand.nonce()
            bad_gateway(stand.post(f"/openai/v1/{word}", at=daemon), 502, "upstream_tls", "false")
            upstream.wait(lambda upstream=upstream: upstream.connected == 0)  # type: ignore[misc]
            assert upstream.accepted == 1, name
            # The handshake never ended, so nothing of the request was written.
            assert len(upstream.tls_faults) == 1
            assert upstream.requests == []
            assert stand.outcome(word, daemon) == "upstream_error"
            assert daemon.stop() == 0


def _self_signed(folder: Path) -> Any:
    """A certificate that nobody but itself vouches for: the authority's own, used by a server."""
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = folder / "self-signed.pem"
    pem.write_bytes(authority.private_key_pem.bytes() + authority.cert_pem.bytes())
    context.load_cert_chain(pem)
    return context


@case("UPS-05")
def test_closed_before_a_head(stand: Stand) -> None:
    def reads_and_closes(peer: Peer, received: Received) -> bool:
        peer.body(received)
        return False

    def reads_and_resets(peer: Peer, received: Received) -> bool:
        peer.body(received)
        peer.rst()
        return False

    for play in (reads_and_closes, reads_and_resets, says(b"HTTP/1.1 200 OK\r\nContent-Le")):
        response, outcome = asked_once(stand, play)
        bad_gateway(response, 502, "upstream_closed", "false")
        assert outcome == "upstream_error"
    # Closed before it could be asked: whether a byte was sent decides what may be tried again.
    with Upstream(lambda peer: None) as closing:
        running = stand.start(upstream=closing)
        for _ in range(5):
            before = closing.accepted
            response = stand.post("/v1/chat/completions", at=running)
            assert closing.accepted == before + 1
            assert (response.status, response.code) in ((502, "upstream_closed"), (502, "upstream_unreachable"))
            assert response.header("x-should-retry") == ("true" if response.code == "upstream_unreachable" else "false")
        assert running.stop() == 0


@case("UPS-07")
def test_reset_in_a_body(stand: Stand) -> None:
    def play(peer: Peer, received: Received) -> bool:
        peer.body(received)
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.2)  # a reset would overtake what was sent just before it
        peer.rst()
        return False

    response, outcome = asked_once(stand, play)
    assert response.status == 200
    assert response.header("content-length") == "100"
    assert not response.complete
    assert response.body == b"{"
    assert outcome == "truncated"


@case("UPS-08")
def test_reset_in_a_stream(stand: Stand) -> None:
    half = b'data: {"choices":[{"ind'
    for sent, at_boundary in ((DELTA, True), (DELTA + half, False)):

        def play(peer: Peer, received: Received, sent: bytes = sent) -> bool:
            peer.body(received)
            peer.send(SSE_HEAD, event(sent))
            time.sleep(0.2)
            peer.rst()
            return False

        response, outcome = asked_once(stand, play, STREAM)
        if at_boundary:
            told(response, DELTA)
        else:
            assert response.body == DELTA + half
            assert not response.complete
        assert outcome == "truncated"


@case("UPS-09")
def test_clean_end_without_marker(stand: Stand) -> None:
    response, outcome = asked_once(stand, says(CLOSE_SSE_HEAD + DELTA), STREAM)
    told(response, DELTA)
    assert outcome == "truncated"
    response, outcome = asked_once(stand, says(CLOSE_SSE_HEAD + DELTA + DONE), STREAM)
    assert response.complete
    assert response.body == DELTA + DONE
    assert outcome == "ok"


MARKERS = {
    "/openai/v1/chat/completions": DONE,
    "/openai/v1/responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    "/anthropic/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/google/v1beta/models/x:streamGenerateContent": b'data: {"candidates":[{"finishReason":"STOP"}]}\r\n\r\n',
}


@case("UPS-10")
def test_proper_end_without_marker(stand: Stand) -> None:
    for path, marker in MARKERS.items():
        for body, wanted in ((b": hello\n\n", "incomplete"), (b": hello\n\n" + marker, "ok")):
            word = stand.nonce()
            first, _, rest = path.removeprefix("/").partition("/")
            before = len(stand.tape)
            with stand.playing(says(SSE_HEAD + event(body) + b"0\r\n\r\n")):
                if first == "google":
                    response = stand.post(f"/google/v1beta/models/{word}:streamGenerateContent?alt=sse", STREAM)
                elif first == "anthropic":
                    response = stand.post(f"/anthropic/v1/messages?{word}", STREAM)
                    word = ""
                else:
                    response = stand.post(f"/openai/v1/{word}/{rest.removeprefix('v1/')}", STREAM)
            assert response.complete
            assert response.body == body
            assert len(stand.tape) > before
            if word:
                assert stand.outcome(word) == wanted, path
            else:
                request_id = response.header("x-lava-proxy-request-id") or "none"
                until(lambda request_id=request_id: request_id in stand.daemon().output())  # type: ignore[misc]
                line = next(text for text in log_lines(stand.daemon()) if request_id in text)
                assert json.loads(line)["outcome"] == wanted


@case("UPS-11")
def test_error_in_band(stand: Stand) -> None:
    said = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    for sent in (said, DELTA + said):
        response, outcome = asked_once(stand, says(SSE_HEAD + event(sent) + b"0\r\n\r\n"), STREAM)
        assert response.status == 200
        assert response.complete
        assert response.body == sent
        assert response.code is None
        assert outcome in ("provider_error", "upstream_error")
        request_id = response.header("x-lava-proxy-request-id") or "none"
        line = next(text for text in log_lines(stand.daemon()) if request_id in text)
        assert json.loads(line)["upstream_error"] == "overloaded_error"


def silent(peer: Peer, received: Received) -> bool:
    """Take the request and never answer."""
    peer.body(received)
    peer.gone()
    return False


@case("UPS-13")
def test_no_head_at_all(stand: Stand) -> None:
    for document in (CHAT, STREAM):
        response, outcome = asked_once(stand, silent, document, at="brief")
        bad_gateway(response, 504, "upstream_timeout", "false")
        assert outcome == "timeout"
    stand.upstream.wait(lambda: stand.upstream.connected <= 40)


@case("UPS-14")
def test_trickle(stand: Stand) -> None:
    seen = threading.Semaphore(0)
    pieces = [DELTA[at : at + 1] for at in range(12)]

    def play(peer: Peer, received: Received) -> bool:
        peer.body(received)
        peer.send(SSE_HEAD)
        for number, piece in enumerate(pieces):
            if number == 3:
                time.sleep(1.5)  # longer than any limit of a sweep, shorter than idle
            peer.send(event(piece))
            assert seen.acquire(timeout=10)  # the next byte is made only when the client has this one
        peer.send(event(DELTA[12:] + DONE), b"0\r\n\r\n")
        return False

    with stand.playing(play), stand.client() as client:
        client.post_json("/v1/chat/completions", STREAM)
        assert client.head().status == 200
        for piece in pieces:
            assert client.chunk() == piece
            seen.release()
        assert client.chunk() == DELTA[12:] + DONE
        assert client.line() == b"0"


@case("UPS-15")
def test_stalled(stand: Stand) -> None:
    half = b'data: {"choices"'
    for sent, at_boundary in ((DELTA, True), (DELTA + half, False)):

        def play(peer: Peer, received: Received, sent: bytes = sent) -> bool:
            peer.body(received)
            peer.send(SSE_HEAD, event(sent))
            peer.gone()
            return False

        response, outcome = asked_once(stand, play, STREAM, at="brief")
        if at_boundary:
            told(response, DELTA, "upstream_timeout")
        else:
            assert response.body == sent
            assert not response.complete
        assert outcome == "stalled"


PROTOCOL_FAULTS: dict[str, bytes] = {
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "bad status line": b"HTTP/1.1 2x0 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status 99": b"HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "200 KB header": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "two codings": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "length with a plus": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n{}",
    "unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\n{}",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\ncontent-length: 2\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000 + b"content-length: 0\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46" + b"\0" * 20,
    "endless 1xx": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200 + OK,
}


@case("UPS-17")
def test_not_http(stand: Stand) -> None:
    for name, raw in PROTOCOL_FAULTS.items():
        response, outcome = asked_once(stand, says(raw))
        assert response.status == 502, (name, response.status, response.body)
        bad_gateway(response, 502, "upstream_protocol", "false")
        assert outcome == "upstream_error"
        assert b"SSH" not in response.body
        # The connection is gone, and the next request finds a good one.
        assert stand.post("/v1/chat/completions").status == 200


@case("UPS-19")
def test_shorter_than_its_length(stand: Stand) -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n" + b"x" * 99
    response, outcome = asked_once(stand, says(raw))
    assert response.body == b"x" * 99
    assert not response.complete
    assert outcome == "truncated"


EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"


@case("UPS-20")
def test_second_response(stand: Stand) -> None:
    first = answer(200, b"first")
    for raw, split in (
        (first + EVIL, 0),
        (first + EVIL, len(first)),
        (first + b"x", 0),
        (first + b"\r\n\r\n" + EVIL, 0),
    ):

        def play(peer: Peer, received: Received, raw: bytes = raw, split: int = split) -> None:
            peer.body(received)
            peer.send(raw[:split] if split else raw)
            if split:
                time.sleep(0.05)
                peer.send(raw[split:])

        before = stand.upstream.accepted
        with stand.playing(play):
            assert stand.post("/v1/chat/completions").body == b"first"
        if split:
            time.sleep(0.1)  # the extra bytes must have arrived
        for _ in range(3):
            response = stand.post("/v1/chat/completions")
            assert response.status == 200
            assert b"EVIL" not in response.body
            assert response.json()["length"] > 0
        assert stand.upstream.accepted > before


@case("UPS-21")
def test_bodies_that_may_not_be(stand: Stand) -> None:
    for status in (204, 304):
        for raw in (
            b"HTTP/1.1 %d X\r\n\r\nhello" % status,
            b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\nhello" % status,
            b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % status,
        ):

            def play(peer: Peer, received: Received, raw: bytes = raw) -> None:
                peer.body(received)
                peer.send(raw)

            with stand.client() as client:
                with stand.playing(play):
                    client.request("GET", "/openai/v1/files")
                    assert client.response().status == status
                # The same connection of the client, another of ours: both are clean.
                client.request("GET", "/openai/v1/files")
                response = client.response()
                assert response.status == 200
                assert b"hello" not in response.body
    with stand.playing(says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")), stand.client() as client:
        client.request("HEAD", "/openai/v1/files")
        assert client.response(head_only=True).status == 200
        client.request("GET", "/healthz")
        assert client.response().status == 200


@case("UPS-23")
def test_switching(stand: Stand) -> None:
    for raw in (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK,
    ):
        response, _ = asked_once(stand, says(raw))
        bad_gateway(response, 502, "upstream_protocol", "false")


@case("UPS-24")
def test_redirects(stand: Stand) -> None:
    with Upstream(OK) as other:
        for status in (300, 301, 302, 303, 305, 307, 308):
            for place in (
                other.url + "/x",
                "https://evil.example/",
                "http://127.0.0.1:1/",
                "//evil.example/",
                "/v1/forward",
            ):
                play = answers(status, b"moved", [(b"Location", place.encode()), (b"Refresh", b"0; url=/x")])
                response, outcome = asked_once(stand, play)
                bad_gateway(response, 502, "upstream_redirect", "false")
                assert outcome == "upstream_error"
                assert response.header("location") is None
                assert response.header("refresh") is None
        assert other.accepted == 0


@case("UPS-25")
def test_encodings(stand: Stand) -> None:
    plain = json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}).encode() * 50
    bodies = {
        "gzip": gzip.compress(plain),
        "br": brotli.compress(plain),
        "zstd": zstandard.ZstdCompressor().compress(plain),
        "deflate": zlib.compress(plain),
    }
    for name, body in bodies.items():
        for raw in (
            answer(200, body, [(b"Content-Encoding", name.encode())]),
            answer(200, b"", [(b"Content-Encoding", name.encode()), (b"Transfer-Encoding", b"chunked")], length=False)
            + chunked(body[:7], body[7:]),
        ):
            with stand.playing(says(raw)):
                response = stand.post("/v1/chat/completions", headers={"Accept-Encoding": "br;q=1.0, gzip"})
            assert response.status == 200
            assert response.header("content-encoding") == name
            assert sha256(response.body) == sha256(body)
            assert stand.last.header(b"accept-encoding") == b"br;q=1.0, gzip"


@case("UPS-26")
def test_broken_encodings(stand: Stand) -> None:
    squeezer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeezer.compress(b"\0" * (1 << 20)) for _ in range(50)) + squeezer.flush()
    whole = gzip.compress(b'{"usage":{"prompt_tokens":1}}' * 100)
    for body in (whole[:-20], b'{"usage":{"prompt_tokens":1}}', bomb):
        for kind in (b"application/json", b"text/event-stream"):
            for status in (200, 400):
                pairs = [(b"Content-Encoding", b"gzip"), (b"Content-Type", kind)]
                response, outcome = asked_once(stand, answers(status, body, pairs))
                assert response.status == status
                assert sha256(response.body) == sha256(body)
                assert response.header("content-encoding") == "gzip"
                assert outcome in ("ok", "incomplete") if status == 200 else outcome == "provider_error"
                request_id = response.header("x-lava-proxy-request-id") or "none"
                line = json.loads(next(text for text in log_lines(stand.daemon()) if request_id in text))
                assert line["input_tokens"] is None


@case("UPS-27")
def test_unauthorized(stand: Stand) -> None:
    lava = json.dumps({"error": {"message": "Invalid forward token", "status": 401, "code": "invalid_token"}}).encode()
    response, outcome = asked_once(stand, answers(401, lava))
    assert (response.status, response.code) == (401, "lava_unauthorized")
    assert response.header("x-should-retry") == "false"
    ours = response.json()["error"]["lava_proxy"]
    assert ours["upstream_message"] == "Invalid forward token"
    assert LAVA_KEY[-4:] in response.json()["error"]["message"]
    assert outcome == "lava_error"
    response, outcome = asked_once(stand, answers(401, error_body("Incorrect API key provided: your key")))
    assert (response.status, response.code) == (401, "provider_key_rejected")
    assert response.json()["error"]["lava_proxy"]["upstream_message"] == "Incorrect API key provided: your key"
    assert outcome == "provider_error"


@case("UPS-28")
def test_empty_wallet(stand: Stand) -> None:
    body = json.dumps({"error": {"message": "Insufficient wallet balance", "status": 402}}).encode()
    for document in (CHAT, STREAM):
        response, outcome = asked_once(stand, answers(402, body), document)
        assert (response.status, response.code) == (402, "lava_insufficient_balance")
        assert response.header("x-should-retry") == "false"
        assert response.json()["error"]["type"] == "insufficient_quota"
        assert response.json()["error"]["lava_proxy"]["payer"] == "merchant"
        assert outcome == "lava_error"


@case("UPS-29")
def test_other_client_errors(stand: Stand) -> None:
    for status in (400, 403, 404, 409, 413, 422):
        said = error_body(f"the provider says {status}")
        pairs = [
            (b"Content-Type", b"application/json"),
            (b"x-request-id", b"req_provider"),
            (b"x-lava-request-id", b"req_lava"),
        ]
        response, outcome = asked_once(stand, answers(status, said, pairs))
        assert (response.status, response.body, response.code) == (status, said, None)
        assert response.header("x-request-id") == "req_provider"
        assert response.header("x-lava-request-id") == "req_lava"
        assert outcome == "provider_error"
        lava = error_body("Lava says no", str(status))
        response, outcome = asked_once(stand, answers(status, lava, pairs))
        assert (response.status, response.code) == (status, "lava_forbidden" if status == 403 else "lava_error")
        assert response.json()["error"]["lava_proxy"]["lava_request_id"] == "req_lava"
        assert response.header("x-lava-request-id") == "req_lava"
        assert outcome == "lava_error"


@case("UPS-30")
def test_rate_limits(stand: Stand) -> None:
    said = error_body("slow down")
    for value in (b"7", b"Wed, 21 Oct 2026 07:28:00 GMT", b"-5", b"99999999999999", None):
        pairs = [] if value is None else [(b"Retry-After", value)]
        response, outcome = asked_once(stand, answers(429, said, [*pairs, (b"x-ratelimit-remaining-requests", b"0")]))
        assert (response.status, response.body, response.code) == (429, said, None)
        assert response.header("retry-after") == (None if value is None else value.decode())
        assert response.header("x-ratelimit-remaining-requests") == "0"
        assert outcome == "provider_error"
        lava = error_body("Too many requests", "429")
        response, _ = asked_once(stand, answers(429, lava, pairs))
        assert (response.status, response.code) == (429, "lava_error")
        assert response.header("retry-after") == (None if value is None else value.decode())


@case("UPS-31")
def test_server_errors(stand: Stand) -> None:
    for status in (500, 502, 503, 504, 520, 529):
        for body in (error_body("down"), b"<html>bad gateway</html>", b""):
            response, outcome = asked_once(stand, answers(status, body, [(b"Retry-After", b"1")]))
            assert (response.status, response.body, response.code) == (status, body, None)
            assert response.header("retry-after") == "1"
            assert outcome == "provider_error"


ERROR_BODIES: dict[str, tuple[bytes, bytes]] = {
    "HTML": (b"<!doctype html><title>Error</title>\xff", b"text/html"),
    "empty": (b"", b"application/json"),
    "not UTF-8": (b'{"error":"\xff\xfe"}', b"application/json"),
    "wrong type": (error_body("x"), b"text/plain"),
    "JSON said, text meant": (b"upstream connect error", b"application/json"),
    "a string": (b'{"error":"text"}', b"application/json"),
    "a number": (b"42", b"application/json"),
    "null": (b'{"error":null}', b"application/json"),
    "a list": (b'[{"error":{"code":400,"message":"x","status":"INVALID_ARGUMENT"}}]', b"application/json"),
    "deep": (b"[" * 100_000, b"application/json"),
    "strange members": (b'{"error":{"message":{"a":[]},"status":true,"code":{}}}', b"application/json"),
    "long": (b"x" * 600_000, b"text/plain"),
}


@case("UPS-33")
def test_odd_error_bodies(stand: Stand) -> None:
    for name, (body, kind) in ERROR_BODIES.items():
        for status in (400, 500):
            response, outcome = asked_once(stand, answers(status, body, [(b"Content-Type", kind)]))
            assert response.status == status, name
            assert response.body == body, name
            assert response.code is None
            assert response.header("content-type") == kind.decode()
            assert outcome == "provider_error"
        for status in (401, 402, 403):
            response, _ = asked_once(stand, answers(status, body, [(b"Content-Type", kind)]))
            assert response.status == status, name
            if name not in ("wrong type", "a list"):
                assert response.json()["error"]["lava_proxy"]["fault"] == "unknown", name
    # A 200 that is no JSON counts nothing and breaks nothing.
    for body, kind in ERROR_BODIES.values():
        response, outcome = asked_once(stand, answers(200, body, [(b"Content-Type", kind)]))
        assert (response.status, response.body) == (200, body)
        assert outcome in ("ok", "provider_error")  # an error that is told with status 200 is one


@case("UPS-34")
def test_echoed_secrets(stand: Stand) -> None:
    import base64

    spellings = {
        "token": TOKEN,
        "header": f"Bearer {TOKEN}",
        "key": LAVA_KEY,
        "base64 of the key": base64.b64encode(f"x{LAVA_KEY}y".encode()).decode(),
        "base64url": base64.urlsafe_b64encode(f"ab{LAVA_KEY}".encode()).decode(),
        "inside base64 JSON": base64.b64encode(json.dumps({"a": 1, "secret_key": LAVA_KEY}).encode()).decode(),
        "hex": LAVA_KEY.encode().hex(),
    }
    for name, echoed in spellings.items():
        for status in (400, 401, 402, 404, 429, 500):
            for encoding in (None, "gzip"):
                body = error_body(f"you sent {echoed}, which is wrong")
                sent = gzip.compress(body) if encoding else body
                pairs = [(b"X-Echo", echoed.encode()), (b"Retry-After", b"1")]
                pairs += [(b"Content-Encoding", b"gzip")] if encoding else []
                response, _ = asked_once(stand, answers(status, sent, pairs))
                assert response.status == status
                assert response.complete
                assert echoed.encode() not in response.body, name
                assert echoed not in str(response.headers), name
                if status == 400 and not encoding:
                    assert len(response.body) == len(body)
                    assert b"*" * 20 in response.body
    # Long, and cut in two by its framing.
    body = b"x" * 300_000 + TOKEN.encode() + b"y" * 300_000
    raw = (
        b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n"
        + event(body[:300_020])
        + event(body[300_020:])
        + b"0\r\n\r\n"
    )
    response, _ = asked_once(stand, says(raw))
    assert response.body == body.replace(TOKEN.encode(), b"*" * len(TOKEN))
    # What every case's client heard is searched for the key and all its spellings when the case ends.


BROWSER_ACTIVE = {
    "Set-Cookie": "a=b; " + "x" * 8000,
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "*",
    "Clear-Site-Data": '"*"',
    "Refresh": "0; url=https://evil/",
    "Link": "<https://evil/>; rel=preload",
    "Alt-Svc": 'h3="evil:443"',
    "Strict-Transport-Security": "max-age=31536000",
}


@case("UPS-35")
def test_active_headers(stand: Stand) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in BROWSER_ACTIVE.items()]
    for status in (200, 400, 401, 500):
        for origin in (None, "https://app.example"):
            from security_stand import LOCAL_KEY

            headers = {"Authorization": f"Bearer {LOCAL_KEY}", **({"Origin": origin} if origin else {})}
            with stand.playing(answers(status, error_body("x"), pairs)):
                response = stand.post("/v1/chat/completions", headers=headers, at="keyed")
            assert response.status == status
            cors = [(name, value) for name, value in response.headers if name.startswith("access-control-")]
            assert dict(cors).get("access-control-allow-origin") == origin
            assert "access-control-allow-credentials" not in dict(cors)
            for name in BROWSER_ACTIVE:
                if not name.startswith("Access"):
                    assert response.header(name.lower()) is None, name
    # A header cannot split the answer.
    for raw in (
        b"HTTP/1.1 200 OK\r\nx-a: b\rset-cookie: evil\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx-a: b\nset-cookie: evil\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx-a: b\r\n set-cookie: evil\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx-a\x0b: b\r\ncontent-length: 2\r\n\r\n{}",
    ):
        with stand.playing(says(raw)):
            response = stand.post("/v1/chat/completions")
        assert (response.status, response.code) == (502, "upstream_protocol"), raw
        assert response.header("set-cookie") is None


USAGE = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"h\xc3\xa9llo"}}]}\n\n'
    b": a comment\n\n"
    b'data: {"id":"c",\ndata: "choices":[],"usage":{"prompt_tokens":11,"completion_tokens":22,"total_tokens":33}}\n\n'
    b"data: [DONE]\n\n"
)


@case("UPS-36")
def test_event_streams_in_pieces(stand: Stand) -> None:
    from proxy.protocol.dialects import Ending

    forms = {"LF": USAGE, "CRLF": USAGE.replace(b"\n", b"\r\n"), "CR": USAGE.replace(b"\n", b"\r")}
    big = b"data: " + b"x" * (1 << 20) + b"\n\n"
    # Every offset, through the scanner itself; then some of them over the wire, and every byte alone.
    for stream in forms.values():
        for cut in range(len(stream) + 1):
            scanner = Scanner(Ending.CHAT, sse=True)
            scanner.feed(stream[:cut])
            scanner.feed(stream[cut:])
            scanner.finish()
            assert scanner.ended
            assert scanner.tokens == (11, 22), cut
    for stream in (*forms.values(), big + forms["LF"], forms["CRLF"][:-16] + big + forms["CRLF"][-16:]):
        size = len(stream)
        for cuts in ([], [1], [size // 3], [size - 1], list(range(1, size)) if size < 1000 else [size // 2]):

            def play(peer: Peer, received: Received, cuts: list[int] = cuts, stream: bytes = stream) -> bool:
                peer.body(received)
                peer.send(CLOSE_SSE_HEAD)
                for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                    peer.send(stream[start:end])
                    time.sleep(0.0003)
                return False

            response, outcome = asked_once(stand, play, STREAM)
            assert response.complete
            assert response.body == stream
            assert outcome == "ok"
            request_id = response.header("x-lava-proxy-request-id") or "none"
            line = json.loads(next(text for text in log_lines(stand.daemon()) if request_id in text))
            assert (line["input_tokens"], line["output_tokens"]) == (11, 22)


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_chunked_answers_that_go_wrong(stand: Stand) -> None:
    """Broken framing after the head: never a clean end for the client, whatever is broken and however."""
    for wrong in (
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"ffffffffffffffffff\r\nhello",
        b"5\r\nhel",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n",
        b"5\r\nhello\r\n0\r\nbroken trailer",
        b"",
    ):
        for head in (SSE_HEAD, SSE_HEAD.replace(b"text/event-stream", b"application/json")):
            response, outcome = asked_once(stand, says(head + event(DELTA) + wrong))
            assert response.status == 200
            assert not response.complete, wrong
            assert response.body.startswith(DELTA)
            assert outcome == "truncated", (wrong, outcome)


def test_answers_before_they_were_asked(stand: Stand) -> None:
    """An upstream that speaks first: the answer that is then one too many reaches no other request."""

    def speaks_first(peer: Peer) -> None:
        peer.send(EVIL)
        while (received := peer.request()) is not None:
            peer.send(answer(200, received.body))

    with Upstream(speaks_first) as eager:
        running = stand.start(upstream=eager)
        for number in range(6):
            response = stand.post("/v1/chat/completions", {**CHAT, "n": number}, at=running)
            # On a fresh connection nobody can tell; what then answers the last request must not reach the next one.
            assert response.status == 502 or response.body in (b"EVIL", json.dumps({**CHAT, "n": number}).encode())
            time.sleep(0.1)  # what still comes must have come
        assert running.stop() == 0


def test_trailers_of_the_upstream(stand: Stand) -> None:
    """Trailers and chunk extensions of an answer end here."""
    raw = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-late\r\n\r\n"
        b"5;ext=1\r\nhello\r\n0\r\nx-late: 1\r\nset-cookie: evil=1\r\nx-lava-proxy-error: forged\r\n\r\n"
    )
    with stand.playing(says(raw)), stand.client() as client:
        client.request("GET", "/openai/v1/files")
        response = client.response()
        assert response.body == b"hello"
        assert response.complete
        assert b"evil" not in b"".join(stand.tape)
        assert b"ext=1" not in b"".join(stand.tape)
        client.request("GET", "/healthz")
        assert client.response().status == 200


def test_informational_answers(stand: Stand) -> None:
    """1xx before the answer are taken in, up to a number; a 100 before our body is sent changes nothing."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n"
    with stand.playing(says(early + OK)):
        response = stand.post("/v1/chat/completions")
    assert (response.status, response.body) == (200, b"{}")
    assert response.header("link") is None


def test_http_1_0_upstream(stand: Stand) -> None:
    """An HTTP/1.0 upstream is served from, and its connection used once."""
    for raw in (b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"):
        with stand.playing(says(raw)):
            response = stand.post("/v1/chat/completions")
        assert (response.status, response.body, response.complete) == (200, b"hello", True)
    sound(stand.last)
    with stand.playing(echo):
        assert stand.post("/v1/chat/completions").status == 200


def test_streams_of_a_declared_length(stand: Stand) -> None:
    """An event stream with a Content-Length that breaks: told where there is room for it, broken in any case, never filled up."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"

    def cut(left: int) -> Response:
        response, outcome = asked_once(stand, says(head % (len(DELTA) + left) + DELTA), STREAM)
        assert outcome == "truncated"
        return response

    broken = cut(5000)
    told(broken, DELTA)
    event = len(broken.body) - len(DELTA)
    told(cut(event + 1), DELTA)
    for left in (1, 10, event // 2, event - 1, event):
        silent = cut(left)
        assert not silent.complete
        assert silent.body == DELTA


def test_the_list_of_models_is_not_redirected(stand: Stand) -> None:
    """``GET /v1/models``, which Lava is asked for with the bare key, follows no redirect either, and says so."""
    for status in (301, 302, 303, 307, 308):
        for place in (stand.upstream.url.encode() + b"/elsewhere", b"http://evil.example/", b"/v1/other"):
            seen = stand.since()
            with stand.playing(answers(status, b"", [(b"Location", place), (b"Set-Cookie", b"a=b")])):
                response = stand.ask("GET", "/v1/models")
            our_error(response, 502, "upstream_redirect")
            assert response.header("x-should-retry") == "false"
            assert response.header("location") is None
            assert [each.target for each in seen()] == [b"/v1/models"]
