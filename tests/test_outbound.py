"""Outbound proxies: every request goes through a tunnel, and a proxy that opens none has cost nothing and learned nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from configurations import LAVA_KEY, faults, loaded
from outbound import OPENED, OutboundProxy, refusing
from test_upstream import HEADERS, NATIVE, Kind, fetch, get, named, native, pieces
from upstream import Certificate, Peer, Script, Upstream, answer, certificate, chunked

from proxy.config.settings import Upstream as Table
from proxy.upstream import Engine, Origin, UpstreamError

if TYPE_CHECKING:
    from daemons import StartDaemon

native_engine = pytest.mark.parametrize("kind", NATIVE, ids=named)

LAVA = Origin("https", "api.test", 443)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for Lava and for a proxy on loopback, both by one authority."""
    return certificate(tmp_path_factory.mktemp("tls"), "api.test", "127.0.0.1", "localhost")


def basic(credentials: bytes) -> bytes:
    return b"Proxy-Authorization: Basic " + b64encode(credentials) + b"\r\n"


def connect(place: bytes, more: bytes = b"") -> bytes:
    return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, more)


# What is sent.


# TLS inside TLS breaks now and then on asyncio's own loop before Python 3.11.8 and 3.12.2 (gh-113214).
TLS_IN_TLS = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)
TUNNELS = [
    (kind, scheme)
    for scheme in ("http", "https")
    for kind in NATIVE
    if scheme == "http" or kind.loop == "uvloop" or TLS_IN_TLS
]


@pytest.mark.parametrize(("kind", "scheme"), TUNNELS, ids=[f"{scheme}-{named(kind)}" for kind, scheme in TUNNELS])
def test_a_request_goes_through_a_tunnel(kind: Kind, scheme: str, trusted: Certificate) -> None:
    """The proxy sees host and port alone; TLS with Lava runs inside; the tunnel is kept and used again."""

    async def use(engine: Engine) -> None:
        for turn in range(4):
            body = pieces(b"a" * 100_000, b"b") if turn % 2 else b"{}"
            outcome = await fetch(engine, get(LAVA, b"/a//b?%d" % turn, b"POST", body=body))
            assert (outcome.end, outcome.body) == ("ok", b"x" * 200_000)
            assert native(engine).idle == 1

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            head = answer(headers=[(b"Transfer-Encoding", b"chunked")], length=False)
            peer.send(head + chunked(b"x" * 100_000, b"x" * 100_000))

    with (
        Upstream(script, tls=trusted.server) as upstream,
        OutboundProxy(upstream.port, tls=trusted.server if scheme == "https" else None) as proxy,
    ):
        kind.run(use, proxy=f"{scheme}://{proxy.address}", ca_file=trusted.ca_file)
        assert proxy.asked == [connect(b"api.test:443")]
        assert [one.target for one in upstream.requests] == [b"/a//b?0", b"/a//b?1", b"/a//b?2", b"/a//b?3"]
        assert upstream.accepted == 1
        for one in upstream.requests:
            assert one.headers[: len(HEADERS)] == HEADERS


@native_engine
@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("user:word", b"user:word"),
        ("user", b"user:"),
        ("user:", b"user:"),
        (":word", b":word"),
        ("me%40corp:p%3Aw%2F%25", b"me@corp:p:w/%"),
        ("user:a:b", b"user:a:b"),
        ("u%0d%0aX:%c3%a9", b"u\r\nX:\xc3\xa9"),
    ],
)
def test_the_proxy_gets_its_credentials(kind: Kind, written: str, sent: bytes, trusted: Certificate) -> None:
    """Basic, percent-decoded, in the CONNECT alone."""
    with Upstream(answer(body=b"x"), tls=trusted.server) as upstream, OutboundProxy(upstream.port) as proxy:
        settings: dict[str, Any] = {"proxy": f"http://{written}@{proxy.address}", "ca_file": trusted.ca_file}
        assert kind.run(lambda engine: fetch(engine, get(LAVA)), **settings).body == b"x"
        assert proxy.asked == [connect(b"api.test:443", basic(sent))]
        assert b"roxy" not in upstream.requests[0].raw


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        (Origin("https", "api.test", 8443), b"api.test:8443"),
        (Origin("http", "plain.test", 80), b"plain.test:80"),
        (Origin("https", "2001:db8::1", 443), b"[2001:db8::1]:443"),
        (Origin("https", "192.0.2.1", 443), b"192.0.2.1:443"),
    ],
)
def test_the_target_has_host_and_port(origin: Origin, place: bytes) -> None:
    """An IPv6 address stands in brackets. What is not https goes through a tunnel as well."""
    with Upstream(refusing(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as proxy:
        NATIVE[0].run(lambda engine: fetch(engine, get(origin)), proxy=f"http://127.0.0.1:{proxy.port}")
        assert [request.raw for request in proxy.requests] == [connect(place)]


def test_loopback_is_never_asked_of_a_proxy() -> None:
    """To a proxy that name means its own machine."""
    with Upstream(answer(body=b"direct")) as upstream, OutboundProxy(upstream.port) as proxy:

        async def use(engine: Engine) -> None:
            for host in ("127.0.0.1", "localhost"):
                assert (await fetch(engine, get(Origin("http", host, upstream.port)))).body == b"direct"

        NATIVE[0].run(use, proxy=f"http://{proxy.address}")
        assert proxy.asked == []


@pytest.mark.parametrize("written", ["http://{}", "{}", "http://{}/", "HTTP://{}"])
def test_env_follows_the_variable(written: str, trusted: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY, with or without a scheme; the lower-case spelling wins."""
    with Upstream(answer(body=b"x"), tls=trusted.server) as upstream, OutboundProxy(upstream.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("https_proxy", written.format("user:word@" + proxy.address))
        monkeypatch.setenv("NO_PROXY", "")
        outcome = NATIVE[0].run(lambda engine: fetch(engine, get(LAVA)), proxy="env", ca_file=trusted.ca_file)
        assert outcome.body == b"x"
        assert proxy.asked == [connect(b"api.test:443", basic(b"user:word"))]


@pytest.mark.parametrize(
    ("no_proxy", "origin", "asked"),
    [
        ("", ("https", "api.test", 443), True),
        ("api.test", ("https", "api.test", 443), False),
        (".test", ("https", "api.test", 443), False),
        ("other.test, api.test", ("https", "api.test", 443), False),
        ("*", ("https", "api.test", 443), False),
        ("api.test:8443", ("https", "api.test", 443), True),
        ("api.test:443", ("https", "api.test", 443), False),
        (" a.test\tAPI.TEST ", ("https", "api.test", 443), False),
        ("192.0.2.0/24", ("https", "192.0.2.9", 443), False),
        ("192.0.2.1", ("https", "192.0.2.9", 443), True),
        ("[2001:db8::1]:443", ("https", "2001:db8::1", 443), False),
        ("2001:db8::/32", ("https", "2001:db8::1", 443), False),
        (",.,", ("https", "api.test", 443), True),
        ("pi.test", ("https", "api.test", 443), True),
        ("", ("http", "api.test", 80), False),
        ("", ("https", "127.0.0.1", 443), False),
        ("", ("https", "::1", 443), False),
        ("", ("https", "localhost", 443), False),
    ],
)
def test_env_is_for_https_and_heeds_no_proxy(
    no_proxy: str, origin: tuple[str, str, int], asked: bool, tmp_path: Path
) -> None:
    """The variables of the very environment that the configuration was read with."""
    environ = {"HTTPS_PROXY": "http://u:secret-word@proxy.test:3128", "NO_PROXY": no_proxy}
    table = loaded(tmp_path, '[upstream]\nproxy = "env"', environ).upstream
    assert table.proxy_for(*origin) == ("http://u:secret-word@proxy.test:3128" if asked else "")


def test_env_without_the_variable_is_no_proxy(tmp_path: Path) -> None:
    """Also where it is empty; ALL_PROXY and HTTP_PROXY are not followed."""
    for environ in ({}, {"HTTPS_PROXY": ""}, {"ALL_PROXY": "http://x.test:1", "HTTP_PROXY": "http://x.test:1"}):
        assert loaded(tmp_path, '[upstream]\nproxy = "env"', environ).upstream.proxy_for("https", "api.test", 443) == ""


# What is refused.

TOO_LONG = b"HTTP/1.1 200 OK\r\n" + b"X-Pad: " + b"y" * 70_000 + b"\r\n\r\n"
ANSWERS = {
    "407": (
        b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\ncontent-length: 6\r\n\r\nsesame",
        "asks for a user name",
    ),
    "403": (b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", "refused to connect (status 403)"),
    "502": (b"HTTP/1.1 502 No\r\n\r\nsesame", "refused to connect (status 502)"),
    "302": (b"HTTP/1.1 302 Go\r\nLocation: http://sesame/\r\n\r\n", "refused to connect (status 302)"),
    "101": (b"HTTP/1.1 101 Switch\r\n\r\n", "switched protocols"),
    "another protocol": (b"220 sesame ESMTP\r\n", "not HTTP/1"),
    "SOCKS": (b"\x05\x00", "not HTTP/1"),
    "nothing": (b"", "ended too early"),
    "half a head": (b"HTTP/1.1 200 OK\r\nX: ", "ended too early"),
    "bare line feeds": (b"HTTP/1.1 200 OK\n\n", ""),
    "too long": (TOO_LONG, ""),
    "endless 1xx": (b"HTTP/1.1 102 Wait\r\n\r\n" * 30, "too many informational"),
    "a smuggled answer": (OPENED + answer(body=b"sesame"), "bytes after its answer"),
}


CASES = [pytest.param(reply, why, "fin", id=name) for name, (reply, why) in ANSWERS.items()]
CASES += [
    pytest.param(*ANSWERS[name], then, id=f"{name}, {then}") for name in ("407", "403") for then in ("rst", "wait")
]


@native_engine
@pytest.mark.parametrize(("reply", "why", "then"), CASES)
def test_a_proxy_that_opens_no_tunnel_is_told_as_such(kind: Kind, reply: bytes, why: str, then: str) -> None:
    """Nothing was sent, and no byte of the proxy's is quoted."""

    async def use(engine: Engine) -> None:
        with pytest.raises(UpstreamError) as caught:
            await engine.open(*get(LAVA))
        assert (caught.value.kind, caught.value.sent) == ("proxy", False)
        assert "outbound proxy" in caught.value.detail
        assert why in caught.value.detail
        assert "sesame" not in str(caught.value)
        while native(engine).live:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)

    with Upstream(refusing(reply, then=then)) as proxy:
        kind.run(use, proxy=proxy.url)
        assert [one.raw for one in proxy.requests] == [connect(b"api.test:443")]


@native_engine
def test_credentials_that_the_proxy_refuses_are_told_from_missing_ones(kind: Kind) -> None:
    """407 although a user name and password were sent."""

    async def use(engine: Engine) -> None:
        with pytest.raises(UpstreamError, match="did not accept its user name and password"):
            await engine.open(*get(LAVA))

    with Upstream(refusing(b"HTTP/1.1 407 Who\r\n\r\n")) as proxy:
        kind.run(use, proxy=f"http://user:word@127.0.0.1:{proxy.port}")


@native_engine
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(
    "reply",
    [
        OPENED,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 204 Yes\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_an_answer_in_pieces_opens_the_tunnel(kind: Kind, reply: bytes, size: int, trusted: Certificate) -> None:
    """Any 2xx does; a length that it announces means nothing."""

    class Dripping(OutboundProxy):
        def _tunnel(self, peer: Peer) -> None:
            send = peer.send
            peer.send = lambda *parts: peer.drip(b"".join(parts), size)  # type: ignore[method-assign]
            super()._tunnel(peer)
            peer.send = send  # type: ignore[method-assign]

    with Upstream(answer(body=b"x"), tls=trusted.server) as upstream, Dripping(upstream.port, answer=reply) as proxy:
        outcome = kind.run(
            lambda engine: fetch(engine, get(LAVA)), proxy=f"http://{proxy.address}", ca_file=trusted.ca_file
        )
        assert outcome.body == b"x"


def silent(peer: Peer) -> None:
    peer.gone()


@native_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_hangs_ends_with_the_connect_timeout(kind: Kind, scheme: str) -> None:
    """Before TLS or before its answer: one deadline covers the whole."""

    async def use(engine: Engine) -> None:
        with pytest.raises(UpstreamError) as caught:
            await engine.open(*get(LAVA))
        assert (caught.value.kind, caught.value.sent) == ("proxy", False)
        assert caught.value.detail == "no way through the outbound proxy: no connection within 0.3 s"

    with Upstream(silent) as proxy:
        kind.run(use, proxy=f"{scheme}://127.0.0.1:{proxy.port}", connect=0.3)


@native_engine
def test_a_silent_target_behind_the_proxy_ends_with_the_connect_timeout(kind: Kind) -> None:
    """The tunnel stands, Lava's TLS does not answer: that is no fault of the proxy. The limit is for both, and must be long
    enough for a proxy on a busy machine."""
    with Upstream(silent) as upstream, OutboundProxy(upstream.port) as proxy:
        outcome = kind.run(lambda engine: fetch(engine, get(LAVA)), proxy=f"http://{proxy.address}", connect=5.0)
    assert (outcome.end, outcome.sent) == ("refused connect_timeout", False)


@native_engine
@pytest.mark.parametrize("fault", ["expired", "wrong host", "unknown authority", "no TLS"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_lavas_certificate_is_verified_inside_the_tunnel(
    kind: Kind, fault: str, scheme: str, tmp_path: Path, trusted: Certificate
) -> None:
    """As without a proxy: nothing is sent to what does not prove to be Lava."""
    made = {
        "expired": lambda: certificate(tmp_path, "api.test", expired=True),
        "wrong host": lambda: certificate(tmp_path, "other.test"),
    }.get(fault, lambda: certificate(tmp_path, "api.test"))()
    bundle = tmp_path / "bundle.pem"
    authorities = [trusted.ca_file] + [made.ca_file] * (fault != "unknown authority")
    bundle.write_text("".join(Path(path).read_text() for path in authorities))
    tls = None if fault == "no TLS" else made.server

    def script(peer: Peer) -> None:
        assert peer.sock.recv(1) == b"\x16", "something else than a TLS handshake was sent"
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with (
        Upstream(script, tls=tls) as upstream,
        OutboundProxy(upstream.port, tls=trusted.server if scheme == "https" else None) as proxy,
    ):
        settings: dict[str, Any] = {"proxy": f"{scheme}://{proxy.address}", "ca_file": str(bundle)}
        outcome = kind.run(lambda engine: fetch(engine, get(LAVA)), **settings)
    assert (outcome.end, outcome.sent) == ("refused tls", False)
    assert upstream.requests == []


@native_engine
def test_the_certificate_of_the_proxy_itself_is_verified(kind: Kind, tmp_path: Path, trusted: Certificate) -> None:
    """Its credentials are not sent to what does not prove to be the proxy; and the fault is the proxy's."""
    with Upstream(silent, tls=certificate(tmp_path, "127.0.0.1").server) as proxy:
        outcome = kind.run(
            lambda engine: fetch(engine, get(LAVA)),
            proxy=f"https://user:word@127.0.0.1:{proxy.port}",
            ca_file=trusted.ca_file,
        )
        assert (outcome.end, outcome.sent) == ("refused proxy", False)
        assert proxy.requests == []


@native_engine
def test_a_proxy_that_is_not_there_is_told_as_such(kind: Kind) -> None:
    """Refused, or a name that nobody knows."""

    async def use(engine: Engine) -> None:
        with pytest.raises(UpstreamError) as caught:
            await engine.open(*get(LAVA))
        assert (caught.value.kind, caught.value.sent) == ("proxy", False)

    for address in ("127.0.0.1:1", "no-such-proxy.invalid:3128"):
        kind.run(use, proxy=f"http://{address}")


@native_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_tunnel_that_breaks_is_a_closed_connection(kind: Kind, scheme: str, trusted: Certificate) -> None:
    """After the request: it was sent, so it is not unreachable and not asked again."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.rst()

    with (
        Upstream(script, tls=trusted.server) as upstream,
        OutboundProxy(upstream.port, tls=trusted.server if scheme == "https" else None) as proxy,
    ):
        settings: dict[str, Any] = {"proxy": f"{scheme}://{proxy.address}", "ca_file": trusted.ca_file}
        outcome = kind.run(lambda engine: fetch(engine, get(LAVA)), **settings)
        assert (outcome.end, outcome.sent) == ("refused closed", True)
        assert len(proxy.asked) == 1


@native_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_cancelled_on_their_way_leave_nothing_behind(kind: Kind, scheme: str, trusted: Certificate) -> None:
    """At any moment of the tunnel's making: no socket, no task, and the next request works."""

    async def use(engine: Engine) -> None:
        for turn in range(30):
            task = asyncio.ensure_future(engine.open(*get(LAVA)))
            for _ in range(turn):
                await asyncio.sleep(0.0005)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(result, BaseException):
                result.close()
        assert (await fetch(engine, get(LAVA))).body == b"x"

    with (
        Upstream(answer(body=b"x"), tls=trusted.server) as upstream,
        OutboundProxy(upstream.port, tls=trusted.server if scheme == "https" else None) as proxy,
    ):
        kind.run(use, proxy=f"{scheme}://{proxy.address}", ca_file=trusted.ca_file)
        proxy.wait(lambda: proxy.connected == 0)


# The daemon.


def ask(port: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "gpt-4o"}))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("by", ["file", "variable"])
def test_the_daemon_goes_out_by_the_proxy(daemon: StartDaemon, by: str, trusted: Certificate) -> None:
    """From the configuration, or from HTTPS_PROXY where it says so; the credentials stand in no log."""
    good = answer(body=b'{"fine":true}', headers=[(b"Content-Type", b"application/json")])
    with Upstream(good, tls=trusted.server) as upstream, OutboundProxy(upstream.port) as proxy:
        url = f"http://user:Sesame-0pen@{proxy.address}"
        config = f"""
            [lava]
            secret_key = "env:KEY"
            base_url = "https://api.test/v1"
            [upstream]
            ca_file = "{trusted.ca_file}"
            proxy = "{url if by == "file" else "env"}"
            [log]
            level = "debug"
        """
        env = {"KEY": LAVA_KEY} | ({"HTTPS_PROXY": url} if by == "variable" else {})
        basic_value = b64encode(b"user:Sesame-0pen").decode()
        running = daemon(config, env=env, secrets=[LAVA_KEY, "Sesame-0pen", basic_value])
        assert ask(running.port) == (200, {"fine": True})
        assert proxy.asked == [connect(b"api.test:443", basic(b"user:Sesame-0pen"))]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (refusing(b"HTTP/1.1 407 Sesame-0pen\r\n\r\n"), "did not accept its user name and password (status 407)"),
        (refusing(b"HTTP/1.1 403 No\r\n\r\nuser:Sesame-0pen"), "refused to connect (status 403)"),
        (refusing(b"HTTP/1.1 502 No\r\n\r\n"), "refused to connect (status 502)"),
        (silent, "no connection within 1 s"),
        (refusing(b"garbage Sesame-0pen\r\n\r\n"), "did not answer properly"),
        (refusing(b"", then="rst"), "did not answer properly"),
    ],
    ids=["407", "403", "502", "silent", "garbage", "reset"],
)
def test_a_refusal_of_the_proxy_names_the_setting(daemon: StartDaemon, script: Script, said: str) -> None:
    """502 upstream_unreachable: nothing was sent, a client may try again, and the credentials stand nowhere."""
    with Upstream(script) as proxy:
        config = f"""
            [lava]
            secret_key = "env:KEY"
            base_url = "https://api.test/v1"
            [upstream]
            connect = 1.0
            proxy = "http://user:Sesame-0pen@127.0.0.1:{proxy.port}"
        """
        running = daemon(config, env={"KEY": LAVA_KEY}, secrets=[LAVA_KEY, "Sesame-0pen"])
        status, document = ask(running.port)
        error = document["error"]
        assert (status, error["code"]) == (502, "upstream_unreachable")
        assert said in error["message"]
        assert "Nothing was sent" in error["message"]
        assert "Check proxy under [upstream]." in json.dumps(document)
        assert "Sesame" not in json.dumps(document)


# The configuration.


@pytest.mark.parametrize(
    ("written", "environ", "said"),
    [
        ("socks5://proxy.test:1080", {}, "SOCKS is not supported"),
        ("SOCKS5h://u:sesame@proxy.test:1080", {}, "SOCKS is not supported"),
        ("ftp://proxy.test", {}, "must be an address that begins with https:// (or http://)"),
        ("proxy.test:3128", {}, "must be an address that begins with https:// (or http://)"),
        (
            "env",
            {"HTTPS_PROXY": "socks5://u:sesame@proxy.test:1080"},
            "HTTPS_PROXY, which must be an http:// or https:// proxy",
        ),
        (
            "env",
            {"HTTPS_PROXY": "http://u:sesame@proxy.test/path"},
            "HTTPS_PROXY, which must be an address without a path",
        ),
        ("env", {"HTTPS_PROXY": "http://u:sesame@"}, "HTTPS_PROXY, which must have a host"),
    ],
)
def test_an_outbound_proxy_of_another_kind_is_refused_at_the_start(
    tmp_path: Path, written: str, environ: dict[str, str], said: str
) -> None:
    """Not at the first request; and the value, which may hold a password, is not shown."""
    (fault,) = faults(tmp_path, f'[upstream]\nproxy = "{written}"', environ)
    assert "upstream.proxy" in fault
    assert said in fault
    assert "sesame" not in fault


@pytest.mark.parametrize("value", ["true", "false", '"yes"'])
def test_http2_is_gone(tmp_path: Path, value: str) -> None:
    """Whatever its value, by file and by variable: the message says why, and what to do."""
    (by_file,) = faults(tmp_path, f"[upstream]\nhttp2 = {value}")
    (by_variable,) = faults(tmp_path, "", {"LAVA_PROXY_UPSTREAM__HTTP2": value})
    assert ":2: upstream.http2: is gone: HTTP/2 was slower" in by_file
    assert by_variable.startswith("LAVA_PROXY_UPSTREAM__HTTP2")
    for fault in (by_file, by_variable):
        assert fault.endswith("remove it")


def test_the_password_of_the_environments_proxy_is_masked(tmp_path: Path) -> None:
    """With "env" it is one of ours to hide, as written and decoded."""
    environ = {"HTTPS_PROXY": "http://u:Ses%61me-0pen@proxy.test:3128"}
    settings = loaded(tmp_path, '[upstream]\nproxy = "env"', environ)
    assert {"u:Ses%61me-0pen", "Ses%61me-0pen", "Sesame-0pen"} <= set(settings.secrets())
    assert "0pen" not in repr(settings)
    assert "0pen" not in settings.model_dump_json()
    assert Table(proxy="").proxy_for("https", "api.test", 443) == ""
