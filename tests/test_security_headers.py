"""Headers: what is forwarded in both directions, and what ends at this hop."""

from __future__ import annotations

import gzip
import json

from security_stand import (
    CHAT,
    KEY_A,
    KEY_B,
    LAVA_KEY,
    Stand,
    answers,
    case,
    head,
    sound,
    target_url,
    until,
)
from upstream import Upstream, answer, certificate

from proxy.lava.tokens import mint_token

POST = "POST /openai/v1/files HTTP/1.1"
CLAUDE = {**CHAT, "model": "claude-opus-4-6"}

# --- hop-by-hop ------------------------------------------------------------------------------------------------------


@case("HOP-01")
def test_nominated_authorization(stand: Stand) -> None:
    for value in ("close, Authorization", "AUTHORIZATION", "host, authorization, content-length, transfer-encoding"):
        response = stand.post(
            "/v1/chat/completions", headers={"Connection": value, "Authorization": "Bearer of-the-tool"}
        )
        assert response.status == 200
        sound(stand.last)
        assert json.loads(stand.last.body) == CHAT
        assert b"of-the-tool" not in stand.last.raw


@case("HOP-02")
def test_nominated_others(stand: Stand) -> None:
    response = stand.post(
        "/v1/messages",
        CLAUDE,
        headers={
            "Connection": "content-type, x-lava-metadata, anthropic-version, x-mine",
            "x-lava-metadata": '{"a":"b"}',
            "anthropic-version": "1999-01-01",
            "X-Mine": "1",
            "X-Other": "2",
        },
    )
    assert response.status == 200
    sound(stand.last)
    for name in (b"content-type", b"x-mine"):
        assert stand.last.header(name) is None, name
    assert list(stand.last.metadata()) == ["lava_proxy_id"]  # ours
    assert stand.last.header(b"anthropic-version") == b"2023-06-01"  # ours, as the client's is not there
    assert stand.last.header(b"x-other") == b"2"


HOP_BY_HOP = {
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "Proxy-Authorization": "Basic eDp5",
    "Proxy-Authenticate": "Basic",
    "TE": "trailers",
    "Trailer": "X-Late",
}


@case("HOP-04")
def test_hop_by_hop(stand: Stand) -> None:
    upstreams = [(name.encode(), value.encode()) for name, value in HOP_BY_HOP.items()]
    with stand.playing(answers(200, b"{}", [*upstreams, (b"Upgrade", b"h2c"), (b"Connection", b"keep-alive")])):
        response = stand.ask("GET", "/openai/v1/files", headers=HOP_BY_HOP)
    assert response.status == 200
    sound(stand.last)
    came = {name for name, _ in response.headers}
    assert not came & {name.lower() for name in (*HOP_BY_HOP, "Upgrade")}
    for name in HOP_BY_HOP:
        assert stand.last.header(name.lower().encode()) is None
    assert stand.last.header(b"connection") in (None, b"keep-alive")
    # Transfer-Encoding is each side's own: one length upstream becomes one here.
    with stand.client() as client:
        client.send(
            head(client.port, POST, "Transfer-Encoding: chunked", "TE: trailers, deflate") + b"5\r\nhello\r\n0\r\n\r\n"
        )
        assert client.response().status == 200
    sound(stand.last)


@case("HOP-05")
def test_nominated_by_the_upstream(stand: Stand) -> None:
    pairs = [
        (b"Connection", b"X-Secret, keep-alive"),
        (b"X-Secret", b"1"),
        (b"Connection", b"x-more"),
        (b"X-More", b"2"),
    ]
    with stand.playing(answers(200, b"{}", [*pairs, (b"X-Public", b"3")])):
        response = stand.ask("GET", "/openai/v1/files")
    assert response.status == 200
    assert response.header("x-secret") is None
    assert response.header("x-more") is None
    assert response.header("x-public") == "3"
    assert response.header("connection") is None


@case("HOP-07")
def test_cookies_of_the_upstream(stand: Stand) -> None:
    jar = [(b"Set-Cookie", b"session=of-a; Path=/; Domain=127.0.0.1"), (b"set-cookie", b"second=1")]
    with stand.playing(answers(200, b"{}", jar)):
        for key in (KEY_A, KEY_B, KEY_A):
            response = stand.post("/v1/chat/completions", headers={"x-api-key": key}, at="keyed")
            assert response.status == 200
            assert response.header("set-cookie") is None
            meter = "meter-a" if key is KEY_A else "meter-b"
            sound(stand.last, b"Bearer " + mint_token(LAVA_KEY, meter_slug=meter).encode())
            assert b"session" not in stand.last.raw


@case("HOP-08")
def test_no_accept_encoding(stand: Stand) -> None:
    assert stand.post("/v1/chat/completions").status == 200
    assert stand.last.header(b"accept-encoding") in (None, b"identity")
    assert stand.last.header(b"user-agent") is None
    assert stand.last.header(b"accept") is None
    for value in ("gzip, br", "", "identity;q=0"):
        assert stand.post("/v1/chat/completions", headers={"Accept-Encoding": value}).status == 200
        assert stand.last.header(b"accept-encoding") == value.encode()


@case("HOP-10")
def test_one_date_one_server(stand: Stand) -> None:
    for pairs in (
        [(b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"), (b"Server", b"cloud")],
        [(b"Server", b"cloud")],
        [],
        [(b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"), (b"DATE", b"x"), (b"Server", b"a"), (b"server", b"b")],
    ):
        with stand.playing(answers(200, b"{}", pairs)):
            names = [name for name, _ in stand.ask("GET", "/openai/v1/files").headers]
        assert names.count("date") == 1
        assert names.count("server") <= 1
    for path in ("/healthz", "/readyz", "/metrics", "/", "/no/such/path"):
        names = [name for name, _ in stand.ask("GET", path).headers]
        assert names.count("date") == 1, path
        assert names.count("server") <= 1


@case("HOP-11")
def test_length_of_a_changed_body(stand: Stand) -> None:
    body = json.dumps({"model": "groq/llama-3.1-8b-instant", "messages": [], "x": "ä"}, ensure_ascii=False).encode()
    changed = body.replace(b"groq/", b"")
    framings: list[tuple[tuple[str, ...], bytes]] = [
        ((f"Content-Length: {len(body)}",), body),
        (("Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
    ]
    for fields, sent in framings:
        with stand.client() as client:
            client.send(head(client.port, "POST /v1/chat/completions HTTP/1.1", *fields) + sent)
            assert client.response().status == 200
        sound(stand.last)
        assert stand.last.body == changed
        assert stand.last.header(b"content-length") == b"%d" % len(changed)
        assert target_url(stand.last) == "https://api.groq.com/openai/v1/chat/completions"
    squeezed = gzip.compress(body)
    assert stand.post("/v1/chat/completions", squeezed, {"Content-Encoding": "gzip"}).status == 200
    sound(stand.last)
    assert stand.last.body == changed
    assert stand.last.header(b"content-encoding") is None


@case("HOP-13")
def test_proxies_of_the_environment(stand: Stand) -> None:
    folder = stand.folder / "environment"
    folder.mkdir()
    (folder / ".netrc").write_text("machine 127.0.0.1 login netrc-user password netrc-password\n")
    (folder / ".netrc").chmod(0o600)
    keylog = folder / "keylog"
    certificates = certificate(folder)
    with Upstream(answer(body=b'{"data":[]}'), tls=certificates.server) as secure, Upstream(answer(status=418)) as trap:
        variables = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), trap.url)
        socks = f"socks5://127.0.0.1:{trap.port}"
        running = stand.start(
            f'[upstream]\nca_file = "{certificates.ca_file}"\n',
            upstream=secure,
            env={
                **variables,
                "ALL_PROXY": socks,
                "all_proxy": socks,
                "NETRC": str(folder / ".netrc"),
                "SSLKEYLOGFILE": str(keylog),
                "SSL_CERT_FILE": "/nonexistent",
                "REQUESTS_CA_BUNDLE": "/nonexistent",
            },
        )
        assert stand.post("/v1/chat/completions", at=running).status == 200
        assert stand.ask("GET", "/v1/models", at=running).status == 200
        assert trap.accepted == 0
        sound(secure.requests[0])
        assert b"netrc" not in b"".join(each.raw for each in secure.requests)
        # The keys of the connection that carries our token are written nowhere.
        assert not keylog.exists() or keylog.read_bytes().strip() == b""
        until(lambda: "HTTPS_PROXY" in running.output(), what="for the warning that the variables are ignored")
        assert running.stop() == 0


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_connection_names_what_it_likes(stand: Stand) -> None:
    """Whatever Connection nominates, the request that goes out is whole and ours."""
    for value in (
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "close, keep-alive, close",
        ", ,",
        "x" * 5000,
        "authorization;q=1, x-lava-metadata",
        "\x80\xff",
        "*",
        "anthropic-version,anthropic-beta",
    ):
        headers = {"Connection": value, "x-lava-metadata": '{"a":"b"}'}
        response = stand.post("/v1/messages", CLAUDE, headers)
        assert response.status == 200, value
        sound(stand.last)
        assert json.loads(stand.last.body) == CLAUDE
        assert stand.last.header(b"anthropic-version") == b"2023-06-01"
    # Several lines of it are one list.
    with stand.client() as client:
        fields = ("Connection: x-one", "X-One: 1", "Connection: x-two", "X-Two: 2", "X-Three: 3")
        client.send(head(client.port, "GET /openai/v1/files HTTP/1.1", *fields))
        assert client.response().status == 200
    assert [stand.last.header(name) for name in (b"x-one", b"x-two", b"x-three")] == [None, None, b"3"]


def test_what_the_upstream_nominates(stand: Stand) -> None:
    """An upstream cannot nominate away what frames or marks the answer; odd framing headers never double."""
    pairs = [
        (b"Connection", b"content-length, content-type, x-lava-proxy-request-id, date"),
        (b"Content-Type", b"text/x"),
    ]
    with stand.playing(answers(200, b"hello", pairs)):
        response = stand.ask("GET", "/openai/v1/files")
    assert response.body == b"hello"
    assert response.complete
    assert response.header("content-type") == "text/x"
    assert response.header("x-lava-proxy-request-id") is not None
    ours = [
        (b"X-Lava-Proxy-Error", b"forged"),
        (b"X-Lava-Proxy-Project", b"forged"),
        (b"X-Lava-Proxy-Request-Id", b"forged"),
    ]
    with stand.playing(answers(200, b"{}", ours)):
        response = stand.ask("GET", "/openai/v1/files")
    assert response.code is None
    assert "forged" not in str(response.headers)
