"""HTTP parsing: bytes that two programs could read in two ways become no request."""

from __future__ import annotations

import json
import re

from security_stand import (
    BEARER,
    LOCAL_KEY,
    Stand,
    case,
    echo,
    head,
    our_error,
    refuse,
    rss,
    sha256,
    sound,
    target_url,
)
from upstream import Peer, Received, answer

POST = "POST /openai/v1/files HTTP/1.1"
GET = "GET /openai/v1/files HTTP/1.1"
CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = b"GET /openai/v1/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def port(stand: Stand, at: str = "plain") -> int:
    return stand.daemon(at).port


@case("PAR-01")
def test_length_and_chunked(stand: Stand) -> None:
    p = port(stand)
    body = b"0\r\n\r\n" + SMUGGLED
    refuse(stand, head(p, POST, "Content-Length: 5", CHUNKED) + body, 400, "bad_request")
    refuse(stand, head(p, POST, CHUNKED, "Content-Length: 5") + body, 400, "bad_request")


@case("PAR-03")
def test_two_lengths(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, POST, "Content-Length: 5", "Content-Length: 6") + b"hello!", 400)
    refuse(stand, head(p, POST, "Content-Length: 6", "Content-Length: 5") + b"hello!", 400)


@case("PAR-05")
def test_odd_lengths(stand: Stand) -> None:
    for value in ("+5", "-5", "0x5", "1_0", "5 5", "", "9" * 23):
        refuse(stand, head(port(stand), POST, f"Content-Length: {value}") + b"hello", 400)


@case("PAR-06")
def test_xchunked(stand: Stand) -> None:
    refuse(stand, head(port(stand), POST, "Transfer-Encoding: xchunked") + b"0\r\n\r\n" + SMUGGLED, 400, "bad_request")


@case("PAR-08")
def test_chunked_identity(stand: Stand) -> None:
    refuse(stand, head(port(stand), POST, "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n", 400)


@case("PAR-10")
def test_space_before_colon(stand: Stand) -> None:
    refuse(stand, head(port(stand), POST, "Transfer-Encoding : chunked", "Content-Length: 5") + b"0\r\n\r\n", 400)


@case("PAR-12")
def test_folded_header(stand: Stand) -> None:
    refuse(stand, head(port(stand), GET, "X-A: one\r\n two"), 400)


@case("PAR-14")
def test_chunked_in_1_0(stand: Stand) -> None:
    refuse(stand, head(port(stand), "POST /openai/v1/files HTTP/1.0", CHUNKED) + b"0\r\n\r\n", 400, "bad_request")


def _broken_chunk(stand: Stand, wrong: bytes, first: bytes = b"5\r\nhello\r\n") -> None:
    """A chunked body that goes wrong after ``first`` was streamed upstream: 400 there, and a request that never ends here."""
    p = port(stand)
    word = stand.nonce()
    whole: list[bytes] = []

    def play(peer: Peer, received: Received) -> None:
        peer.body(received)
        whole.append(received.raw)
        peer.send(answer(body=b"taken"))

    line = f"POST /openai/v1/files/{word} HTTP/1.1"
    began = len(stand.upstream.requests)
    cut = stand.cut_requests
    with stand.playing(play), stand.client() as client:
        client.send(head(p, line, CHUNKED) + first)
        stand.upstream.wait(lambda: len(stand.upstream.requests) == began + 1)
        client.send(wrong)
        response = client.response()
        our_error(response, 400, "bad_request")
        assert response.header("connection") == "close"
        assert client.rest() == b""
        stand.upstream.wait(lambda: stand.cut_requests == cut + 1)
    assert whole == []
    assert len(stand.upstream.requests) == began + 1
    assert stand.outcome(word) == "client_error"


@case("PAR-16")
def test_bad_chunk_sizes(stand: Stand) -> None:
    for size in (b"zz", b"0x5", b"-5"):
        # At once: nothing is ever begun upstream. Later: what was begun is broken off.
        refuse(stand, head(port(stand), POST, CHUNKED) + size + b"\r\nhello\r\n0\r\n\r\n", 400)
        _broken_chunk(stand, size + b"\r\nhello\r\n0\r\n\r\n")


@case("PAR-18")
def test_chunk_longer_than_its_size(stand: Stand) -> None:
    _broken_chunk(stand, b"5\r\nhello, and more\r\n0\r\n\r\n")


@case("PAR-20")
def test_chunk_extensions(stand: Stand) -> None:
    p = port(stand)
    with stand.client() as client:
        client.send(head(p, POST, CHUNKED) + b"5;a=b\r\nhello\r\n0;last=1\r\n\r\n")
        assert client.response().status == 200
        assert stand.last.body == b"hello"
        assert b"a=b" not in stand.last.raw
        assert b"last" not in stand.last.raw
        # Together 4 KiB at most: 40 x 100 bytes pass, 50 x 100 do not.
        client.send(head(p, POST, CHUNKED) + b"1;%b\r\nx\r\n" % (b"e" * 99) * 40 + b"0\r\n\r\n")
        assert client.response().status == 200
        assert stand.last.body == b"x" * 40
    _broken_chunk(stand, b"1;%b\r\nx\r\n" % (b"e" * 99) * 50 + b"0\r\n\r\n")
    refuse(stand, head(p, POST, CHUNKED) + b"5;" + b"e" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", 400)


@case("PAR-23")
def test_trailers(stand: Stand) -> None:
    trailer = (
        b"Authorization: Bearer %b\r\nHost: evil\r\nContent-Length: 7\r\nConnection: content-type\r\nX-Late: 1\r\n\r\n"
    )
    trailer %= LOCAL_KEY.encode()
    for body in (b"0\r\n", b"5\r\nhello\r\n0\r\n"):
        with stand.client() as client:
            client.send(head(client.port, POST, CHUNKED, "Content-Type: text/x", "X-Api-Key: dropped") + body + trailer)
            assert client.response().status == 200
        sound(stand.last)
        assert stand.last.header(b"host") == stand.upstream.url.removeprefix("http://").encode()
        assert stand.last.header(b"content-type") == b"text/x"
        assert stand.last.header(b"x-late") is None
        assert b"evil" not in stand.last.raw
        # A key in a trailer opens nothing.
        raw = head(port(stand, "keyed"), POST, CHUNKED) + body + trailer
        with stand.untouched("keyed"), stand.client("keyed") as client:
            client.push(raw)
            our_error(client.response(), 401, "local_key_required")


@case("PAR-24")
def test_lf_only(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p).replace(b"\r\n", b"\n"), 400)
    refuse(stand, head(p, GET, "X-A: b\nX-B: c"), 400)
    refuse(stand, head(p)[:-2] + b"\n", 400)


@case("PAR-25")
def test_bare_cr(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, GET, "X-A: one\rtwo"), 400)
    refuse(stand, head(p, GET, "X-A: one\rX-B: two"), 400)
    # Lines that end in CR alone: no head ever ends. Refused at once.
    with stand.untouched(), stand.client() as client:
        client.push(head(p).replace(b"\r\n", b"\r"))
        our_error(client.response(), 400, "bad_request")
        assert client.rest() == b""


@case("PAR-26")
def test_nul_bytes(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, "GET /openai/v1/\0files HTTP/1.1"), 400)
    refuse(stand, head(p, GET, "X-\0A: b"), 400)
    refuse(stand, head(p, GET, "X-A: b\0c"), 400)


@case("PAR-28")
def test_high_bytes(stand: Stand) -> None:
    with stand.client() as client:
        client.send(head(client.port, GET, b"X-High: \xff\xfe end"))
        response = client.response()
        assert response.status == 200
        assert stand.last.header(b"x-high") == b"\xff\xfe end"


@case("PAR-30")
def test_no_host(stand: Stand) -> None:
    refuse(stand, head(0, GET, host=False), 400)


@case("PAR-31")
def test_two_hosts(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, GET, "Host: evil"), 400)
    refuse(stand, head(p, GET, f"Host: 127.0.0.1:{p}"), 400)
    refuse(stand, head(p, GET, "Host: evil", f"Host: 127.0.0.1:{p}", host=False), 400)


@case("PAR-32")
def test_odd_hosts(stand: Stand) -> None:
    p = port(stand)
    for value in ("127.0.0.1, evil", "u@127.0.0.1", "", "127.0.0.1/x?", "127.0.0.1#"):
        for suffix in ("", f":{p}") if value else ("",):
            with stand.untouched(), stand.client() as client:
                client.push(head(p, GET, f"Host: {value}{suffix}", host=False))
                our_error(client.response(), 421 if value else 400, "host_not_allowed" if value else "bad_request")


@case("PAR-33")
def test_absolute_form(stand: Stand) -> None:
    p = port(stand)
    for target in ("http://evil/a", f"http://127.0.0.1:{p}/openai/v1/files", "HTTP://evil/openai/v1/files", "//evil"):
        line = f"GET {target} HTTP/1.1"
        if target.startswith("//"):
            with stand.untouched():
                assert stand.ask("GET", target).status == 404  # origin-form with doubled slashes: see PTH-04
        else:
            refuse(stand, head(p, line), 400, "bad_target")


@case("PAR-35")
def test_connect(stand: Stand) -> None:
    refuse(stand, head(port(stand), "CONNECT evil:443 HTTP/1.1") + SMUGGLED, 405, "method_not_allowed")


@case("PAR-37")
def test_trace(stand: Stand) -> None:
    response = refuse(stand, head(port(stand), "TRACE /openai/v1/files HTTP/1.1", "X-Mine: to-be-echoed"), 405)
    assert b"to-be-echoed" not in response.body
    assert "to-be-echoed" not in str(response.headers)


@case("PAR-39")
def test_h2c(stand: Stand) -> None:
    with stand.client() as client:
        fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
        client.send(head(client.port, GET, *fields))
        response = client.response()
        assert response.status == 200
        sound(stand.last)


@case("PAR-40")
def test_websocket(stand: Stand) -> None:
    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eHg=")
    response = refuse(stand, head(port(stand), GET, *fields), 426, "upgrade_required")
    assert "realtime" in response.json()["error"]["message"]


@case("PAR-43")
def test_versions(stand: Stand) -> None:
    for version in ("HTTP/2.0", "HTTP/1.2"):
        refuse(stand, head(port(stand), f"GET /openai/v1/files {version}"), 505, "http_version_unsupported")
    for version in ("HTTP/1.1x", "http/1.1"):
        refuse(stand, head(port(stand), f"GET /openai/v1/files {version}"), 400, "bad_request")


@case("PAR-45")
def test_expect_without_key(stand: Stand) -> None:
    p = port(stand, "keyed")
    wrong = "Authorization: Bearer " + "n" * len(LOCAL_KEY)
    for fields, code in (((), "local_key_required"), ((wrong,), "local_key_invalid")):
        for framing in ("Content-Length: 5", CHUNKED):
            with stand.untouched("keyed"), stand.client("keyed") as client:
                client.send(head(p, POST, "Expect: 100-continue", framing, *fields))
                response = client.response()  # the first thing said: no 100 before it
                our_error(response, 401, code)
                assert response.header("connection") == "close"
                assert client.rest() == b""


@case("PAR-46")
def test_expect_with_key(stand: Stand) -> None:
    p = port(stand, "keyed")
    for framing, body in (("Content-Length: 5", b"hello"), (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")):
        with stand.client("keyed") as client:
            client.send(head(p, POST, "Expect: 100-continue", framing, f"Authorization: Bearer {LOCAL_KEY}"))
            assert client.response().status == 100
            client.send(body)
            assert client.response().status == 200
            assert stand.last.header(b"expect") is None
            assert stand.last.body == b"hello"
            client.send(head(p, GET, f"Authorization: Bearer {LOCAL_KEY}"))
            assert client.response().status == 200  # exactly one 100, and the connection goes on


@case("PAR-48")
def test_huge_header(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, GET, "X-Big: " + "a" * 66_000), 431)
    before = rss(stand.daemon())
    for _ in range(10):
        refuse(stand, head(p, GET, "X-Big: " + "a" * 1_000_000), 431)
    assert rss(stand.daemon()) - before < 10 * 2_000_000


@case("PAR-49")
def test_many_headers(stand: Stand) -> None:
    p = port(stand)
    refuse(stand, head(p, GET, *(f"X-{n}: 1" for n in range(5000))), 431)
    refuse(stand, head(p, GET, *(f"X-{n}: 1" for n in range(100))), 431)  # with Host one too many
    with stand.client() as client:
        client.send(head(p, GET, *(f"X-{n}: 1" for n in range(99))))
        assert client.response().status == 200
        assert len([1 for name, _ in stand.last.headers if re.fullmatch(rb"x-\d+", name, re.IGNORECASE)]) == 99


@case("PAR-51")
def test_bad_names(stand: Stand) -> None:
    p = port(stand)
    for field in ("X A: b", "no colon here", ": no name", "X-A : b", "X(A): b"):
        refuse(stand, head(p, GET, field), 400)


@case("PAR-52")
def test_underscore_twins(stand: Stand) -> None:
    with stand.client() as client:
        fields = ("X_Api_Key: evil-1", 'X_Lava_Metadata: {"evil":"2"}', "Transfer_Encoding: chunked", "X-Ok: yes")
        client.send(head(client.port, POST, *fields, "Content-Length: 5") + b"hello")
        assert client.response().status == 200
    sound(stand.last)
    assert stand.last.body == b"hello"
    assert stand.last.header(b"x-ok") == b"yes"
    assert b"evil" not in stand.last.raw
    # Ours alone, with the request's id.
    assert [name for name, _ in stand.last.headers].count(b"x-lava-metadata") == 1
    assert re.fullmatch(rb'\{"lava_proxy_id":"req_\w+"\}', stand.last.header(b"x-lava-metadata") or b"")


@case("PAR-53")
def test_two_authorizations(stand: Stand) -> None:
    good, bad = f"Authorization: Bearer {LOCAL_KEY}", "Authorization: Bearer " + "n" * len(LOCAL_KEY)
    for fields in ((good, bad), (bad, good), (good, good)):
        with stand.untouched("keyed"), stand.client("keyed") as client:
            client.send(head(client.port, GET, *fields))
            our_error(client.response(), 400, "bad_request")


@case("PAR-55")
def test_pipelining(stand: Stand) -> None:
    p = port(stand)
    since = stand.since()
    with stand.client() as client:
        client.send(b"".join(head(p, f"GET /openai/v1/files/{n} HTTP/1.1") for n in (1, 2, 3)))
        answered = [json.loads(client.response().body)["target"][-1] for _ in range(3)]
    assert answered == ["1", "2", "3"]
    assert [target_url(each)[-1] for each in since()] == ["1", "2", "3"]
    # A body that was refused by its length is never read as the next request.
    refuse(stand, head(p, POST, "Content-Length: 99999999") + SMUGGLED + head(p, POST), 413, "body_too_large")
    # A body that was refused before it was read and is small: the request behind it is served, the body is not.
    since = stand.since()
    with stand.client() as client:
        body = SMUGGLED
        client.send(head(p, "POST /nowhere/at/all HTTP/1.1", f"Content-Length: {len(body)}") + body + head(p))
        refused = client.response()
        assert refused.status == 404
        if refused.header("connection") == "close":
            assert client.rest() == b""
            assert since() == []
        else:
            assert client.response().status == 200
            assert [target_url(each) for each in since()] == ["https://api.openai.com/v1/files"]


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_other_spellings_of_framing(stand: Stand) -> None:
    """Two framings, or one that is not plainly chunked, in other spellings, places and orders."""
    p = port(stand)
    for fields in (
        ("Content-Length: 5", "transfer-encoding: CHUNKED"),
        ("Content-Length: 0", CHUNKED),
        ("Content-Length: 5", "Transfer-Encoding:\tchunked"),
        ("Content-Length: 5", "Transfer-Encoding: chunked, chunked"),
        (CHUNKED, CHUNKED),
        (CHUNKED, "Transfer-Encoding: identity"),
        ("Transfer-Encoding: chunked;q=1",),
        ("Transfer-Encoding: ,chunked",),
        ("Transfer-Encoding: chunked,",),
        ('Transfer-Encoding: "chunked"',),
        ("Transfer-Encoding: chunked\x0b",),
        ("Transfer-Encoding:",),
        ("Transfer\x00-Encoding: chunked",),
        ("\x0bTransfer-Encoding: chunked",),
        ("Content-Length: 5, 5",),
        ("Content-Length: 5,6",),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5", "content-length: 5"),
        ("Content-Length:\x0c5",),
        ("Content-Length: 5\x0b",),
        ("Content-Length: 5.0",),
        ("Content-Length: 5e0",),
        (b"Content-Length: \xd9\xa5",),
        (b"Content-Length: \xb2",),
    ):
        refuse(stand, head(p, POST, *fields) + b"0\r\n\r\n" + SMUGGLED, 400, "bad_request")
    for fields in (
        ("Transfer-Encoding: identity", CHUNKED),
        ("Transfer-Encoding: chunk ed",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: identity",),
    ):
        refuse(stand, head(p, POST, *fields) + b"0\r\n\r\n" + SMUGGLED, 501, "not_implemented")


def test_other_line_ends(stand: Stand) -> None:
    """Every way to end a line but CRLF, in every place of a head."""
    p = port(stand)
    good = head(p, GET, "X-A: b")
    for number in range(good.count(b"\r\n")):
        pieces = good.split(b"\r\n")
        for wrong in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\x0b\r\n", b"\r \n"):
            left, right = b"\r\n".join(pieces[: number + 1]), b"\r\n".join(pieces[number + 1 :])
            with stand.untouched(), stand.client() as client:
                client.push(left + wrong + right + b"\r\n")
                our_error(client.response(), 400, "bad_request")
                assert client.rest() == b""


def test_other_request_lines(stand: Stand) -> None:
    """Request lines that are nearly one."""
    p = port(stand)
    for line, status, code in (
        (" GET /openai/v1/files HTTP/1.1", 400, "bad_request"),
        ("GET  /openai/v1/files HTTP/1.1", 400, "bad_request"),
        ("GET /openai/v1/files  HTTP/1.1", 400, "bad_request"),
        ("GET /openai/v1/files HTTP/1.1 ", 400, "bad_request"),
        ("GET\t/openai/v1/files\tHTTP/1.1", 400, "bad_request"),
        ("GET /openai/v1/files\x0bHTTP/1.1", 400, "bad_request"),
        ("GET /openai/v1/files", 400, "bad_request"),
        ("GET", 400, "bad_request"),
        ("GET /openai/v1/fi les HTTP/1.1", 400, "bad_request"),
        ("GET /openai/v1/files HTTP/0.9", 505, "http_version_unsupported"),
        ("GET /openai/v1/files HTTP/1.10", 505, "http_version_unsupported"),
        ("GET /openai/v1/files HTTP/01.1", 400, "bad_request"),
        ("GET /openai/v1/files HTTP/1,1", 400, "bad_request"),
        ("GET /openai/v1/files HTTP/3", 400, "bad_request"),
        ("GET /openai/v1/files ICE/1.0", 400, "bad_request"),
        ("G\x00T /openai/v1/files HTTP/1.1", 400, "bad_request"),
        ("get /openai/v1/files HTTP/1.1", 405, "method_not_allowed"),
        ("GETX /openai/v1/files HTTP/1.1", 405, "method_not_allowed"),
        ("PRI * HTTP/2.0", 505, "http_version_unsupported"),
        ("OPTIONS * HTTP/1.1", 400, "bad_target"),
        ("GET * HTTP/1.1", 400, "bad_target"),
        ("GET openai/v1/files HTTP/1.1", 400, "bad_target"),
        ("GET ?x HTTP/1.1", 400, "bad_target"),
        ("GET evil:443 HTTP/1.1", 400, "bad_target"),
        ("GET ftp://evil/x HTTP/1.1", 400, "bad_target"),
        ("GET /openai/v1/files#frag HTTP/1.1", 400, "bad_target"),
        (b"GET /openai/v1/\xc3\xa4 HTTP/1.1", 400, "bad_target"),
        (b"GET /openai/v1/files?\xff HTTP/1.1", 400, "bad_target"),
        ("PROPFIND /openai/v1/files HTTP/1.1", 405, "method_not_allowed"),
        ("PURGE /openai/v1/files HTTP/1.1", 405, "method_not_allowed"),
    ):
        refuse(stand, head(p, line), status, code)
    refuse(stand, head(p, "GET /openai/v1/" + "a" * 9000 + " HTTP/1.1"), 414, "target_too_long")
    refuse(stand, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, 400)
    refuse(stand, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_unsupported")


def test_other_chunk_faults(stand: Stand) -> None:
    """Chunked framing that goes wrong after a good chunk: the request upstream never ends."""
    for wrong in (
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"10000000000000000\r\n",
        b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\nX-A: b\n\r\n",
        b"0\r\n\n",
    ):
        _broken_chunk(stand, wrong)


def test_sound_neighbours_pass(stand: Stand) -> None:
    """What is unusual and right is served as it stands: strictness costs no good client."""
    p = port(stand)
    good = (
        (head(p, POST, "content-length: 005") + b"hello", b"hello"),
        (head(p, POST, "CONTENT-LENGTH:5") + b"hello", b"hello"),
        (head(p, POST, "Transfer-Encoding: Chunked") + b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (head(p, POST, CHUNKED) + b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (head(p, POST, CHUNKED) + b'5;a="b\tc"\r\nhello\r\n0\r\nX-Checksum: 1\r\n\r\n', b"hello"),
        (head(p, POST, "Content-Length: 0"), b""),
        (head(p, "POST /openai/v1/files HTTP/1.0", "Content-Length: 5") + b"hello", b"hello"),
        (head(p, POST, "X-Empty:", "X-Space: a  b ", "Content-Length: 5") + b"hello", b"hello"),
        (b"\r\n" + head(p, POST, "Content-Length: 5") + b"hello", b"hello"),
    )
    for raw, body in good:
        with stand.client() as client:
            client.send(raw)
            response = client.response()
            assert response.status == 200, (raw, response.body)
            assert response.json()["sha256"] == sha256(body)
        assert stand.last.body == body
        sound(stand.last)


def test_other_upgrades_and_expectations(stand: Stand) -> None:
    """Other protocols are not switched to, other expectations not met."""
    p = port(stand)
    refuse(stand, head(p, GET, "Connection: upgrade", "Upgrade: WebSocket"), 426)
    refuse(stand, head(p, GET, "Connection: upgrade", "Upgrade: h2c, websocket"), 426)
    refuse(stand, head(p, POST, "Expect: 200-ok", "Content-Length: 5") + b"hello", 417)
    refuse(stand, head(p, POST, "Expect: 100-continue, x", "Content-Length: 5") + b"hello", 417)
    for protocol in ("TLS/1.0", "HTTP/3", "connect-udp"):
        with stand.client() as client:
            client.send(head(p, GET, "Connection: upgrade", f"Upgrade: {protocol}"))
            assert client.response().status == 200
        sound(stand.last)


def test_smuggling_through_the_answer(stand: Stand) -> None:
    """Requests that stand in a body, a query, a header value, stay data on both sides, keep-alive or not."""
    p = port(stand)
    since = stand.since()
    inner = head(p, "DELETE /openai/v1/files/victim HTTP/1.1")
    with stand.client() as client:
        for _ in range(3):
            client.send(head(p, POST, f"Content-Length: {len(inner)}") + inner)
            assert client.response().status == 200
            client.send(head(p, POST, CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
            assert client.response().status == 200
        client.send(
            head(p, "GET /openai/v1/files?q=%0d%0aDELETE%20/openai/v1/files/victim%20HTTP/1.1%0d%0a%0d%0a HTTP/1.1")
        )
        assert client.response().status == 200
    assert [each.method for each in since()] == [b"POST"] * 6 + [b"GET"]
    assert [each.body for each in since()[:6]] == [inner] * 6
    for each in since():
        sound(each, BEARER)
        assert re.fullmatch(rb"[!-~]+", each.target)


def test_head_in_pieces(stand: Stand) -> None:
    """A head and a body cut at every byte are one request."""
    p = port(stand)
    raw = head(p, POST, CHUNKED, "X-A: b") + b"5;x\r\nhello\r\n0\r\nT: 1\r\n\r\n"
    with stand.playing(echo):
        for cut in range(1, len(raw), 3):
            with stand.client() as client:
                client.send(raw[:cut])
                client.send(raw[cut:])
                assert client.response().json()["sha256"] == sha256(b"hello")
