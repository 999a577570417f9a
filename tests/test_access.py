"""Access: the host name that a request uses, the page that sends it, and its key."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.settings import Settings
from proxy.gateway.access import check_host, check_key, check_origin, key_of, listed_origin, preflight, readable_by
from proxy.gateway.active_config import ActiveConfig
from proxy.protocol.errors import ProxyError
from proxy.protocol.headers import CREDENTIALS, RequestHeaders, read

if TYPE_CHECKING:
    from proxy.upstream import Body, UpstreamRequest, UpstreamResponse

PORT = 5282
SERVER = ("127.0.0.1", PORT)
MASTER = "local-" + "master-0123456789"
WEBSITE = "local-" + "website-0123456789"
COMMA = "local-" + "with,commas,0123456789"


class Nowhere:
    """An engine that must not be used: the gate lets nothing out."""

    async def open(
        self, out: UpstreamRequest, body: Body = None, content_length: int | None = None
    ) -> UpstreamResponse:
        raise AssertionError("the gate does not call anybody")

    def close(self) -> None:
        raise AssertionError("nothing was opened")

    async def aclose(self) -> None:
        raise AssertionError("nothing was opened")


def configured(**server: Any) -> ActiveConfig:
    """A configuration with these settings under [server]; with keys also a project with a key of its own."""
    projects: dict[str, Any] = {"main": {}, "website": {}}
    if server.get("keys"):
        projects["website"] = {"keys": [WEBSITE]}
    return ActiveConfig(Settings.model_validate({"server": server, "projects": projects}), Nowhere())


PLAIN = configured()
KEYED = configured(keys=[MASTER, COMMA])
LISTED = configured(
    allowed_origins=["https://app.example", "http://localhost:3000", "vscode-webview://*"],
    allowed_hosts=["lava-proxy", "proxy.internal:8443", "[fd00::1]"],
)


def code(caught: pytest.ExceptionInfo[ProxyError]) -> tuple[str, int]:
    """What the client gets."""
    return caught.value.code, caught.value.status


# --- Host ------------------------------------------------------------------------------------------------------------


def called(
    host: bytes, where: ActiveConfig = PLAIN, port: int | None = PORT, path: bytes = b"/v1/chat/completions"
) -> bytes:
    """A request that calls us so."""
    return check_host(read([(b"host", host)]), path, ("127.0.0.1", port), where)


@pytest.mark.parametrize(
    "host", [b"localhost:5282", b"LocalHost:5282", b"127.0.0.1:5282", b"[::1]:5282", b"LOCALHOST:5282"]
)
def test_our_names(host: bytes) -> None:
    """Loopback by name and address, with our port."""
    assert called(host) == host


FOREIGN = [
    b"rebind.evil:5282",
    b"localhost.evil:5282",
    b"evil.localhost:5282",
    b"127.0.0.1.evil.example:5282",
    b"localhost.:5282",
    b"0.0.0.0:5282",
    b"[::]:5282",
    b"[::ffff:127.0.0.1]:5282",
    b"[0:0:0:0:0:0:0:1]:5282",
    b"127.1:5282",
    b"127.0.0.2:5282",
    b"2130706433:5282",
    b"0x7f.1:5282",
    b"0x7f000001:5282",
    b"0177.0.0.1:5282",
    b"017700000001:5282",
    b"0:5282",
    b"::1",
    b"::1:5282",
    b"localhost",
    b"127.0.0.1",
    b"[::1]",
    b"localhost:5283",
    b"localhost:80",
    b"localhost:",
    b"localhost:05282",
    b"localhost:5282:5282",
    b"localhost :5282",
    b" localhost:5282",
    b"user@localhost:5282",
    b"localhost:5282@evil",
    b"localhost:5282/",
    b"localhost:5282,evil",
    b"http://localhost:5282",
    b"localhost%00:5282",
    "lοcalhost:5282".encode(),
    "127。0。0。1:5282".encode(),
    b"\xff\xfe",
    b"",
    b":5282",
    b"x" * 8000,
]


@pytest.mark.parametrize("host", FOREIGN, ids=lambda host: repr(host[:40]))
def test_other_names_are_refused(host: bytes) -> None:
    """Rebinding names, other spellings of loopback, other ports, and everything malformed: 421, whatever we are bound to."""
    for where in (
        PLAIN,
        KEYED,
        LISTED,
        configured(host="0.0.0.0", keys=[MASTER]),
        configured(host="::", keys=[MASTER]),
    ):
        with pytest.raises(ProxyError) as caught:
            called(host, where)
        assert code(caught) == ("host_not_allowed", 421)
        assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "wildcard", ["0.0.0.0", "::", "[::]", "0", "0.0", "0x0", "::0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0"]
)
def test_a_wildcard_is_no_name(wildcard: str) -> None:
    """However it is written: behind it only loopback and what is listed."""
    where = configured(host=wildcard, keys=[MASTER])
    bare = wildcard.strip("[]")
    for host in (f"{bare}:{PORT}", f"[{bare}]:{PORT}", f"0.0.0.0:{PORT}", f"[::]:{PORT}", f"192.168.1.5:{PORT}"):
        with pytest.raises(ProxyError):
            called(host.encode(), where)
    assert called(b"localhost:5282", where)


@pytest.mark.parametrize(
    ("bound", "host"),
    [
        ("192.168.1.5", b"192.168.1.5:5282"),
        ("127.0.0.5", b"127.0.0.5:5282"),
        ("fd00::0005", b"[fd00::5]:5282"),
        ("[fd00::5]", b"[FD00::5]:5282"),
        ("fe80::1%eth0", b"[fe80::1]:5282"),
        ("Box.lan", b"box.lan:5282"),
    ],
)
def test_the_bound_address_is_a_name_of_ours(bound: str, host: bytes) -> None:
    """As it is written and as clients write it."""
    assert called(host, configured(host=bound, keys=[MASTER])) == host
    with pytest.raises(ProxyError):
        called(host)


def test_without_a_port_only_where_ours_is_80() -> None:
    """Clients leave the port out there, and only there."""
    for host in (b"localhost", b"127.0.0.1", b"[::1]", b"localhost:80"):
        assert called(host, configured(), 80) == host
    with pytest.raises(ProxyError):
        called(b"localhost", configured(), 443)


@pytest.mark.parametrize(
    "host",
    [b"lava-proxy", b"lava-proxy:1", b"Lava-Proxy:5282", b"lava-proxy:65535", b"proxy.internal:8443", b"[fd00::1]:99"],
)
def test_listed_names(host: bytes) -> None:
    """An entry without a port means any port, one with a port that one."""
    assert called(host, LISTED) == host
    with pytest.raises(ProxyError):
        called(host)


@pytest.mark.parametrize(
    "host",
    [
        b"proxy.internal",
        b"proxy.internal:5282",
        b"proxy.internal:8443:1",
        b"lava-proxy:",
        b"lava-proxy:123456",
        b"lava-proxy:80:80",
        b"lava-proxy.evil",
        b"x.lava-proxy",
        b"evil@lava-proxy",
        b"lava-proxy:x",
        b"[lava-proxy]:80",
        b"fd00::1",
    ],
)
def test_what_looks_like_a_listed_name_is_none(host: bytes) -> None:
    """Exactly those."""
    with pytest.raises(ProxyError) as caught:
        called(host, LISTED)
    assert code(caught) == ("host_not_allowed", 421)


def test_the_refusal_gives_the_line_to_add() -> None:
    """A container's mapped port, say: the message has the setting; of bytes that are no name it makes no line."""
    with pytest.raises(ProxyError) as caught:
        called(b"127.0.0.1:8080")
    assert 'allowed_hosts = ["127.0.0.1:8080"]' in caught.value.message
    with pytest.raises(ProxyError) as caught:
        called(b'evil"]\nkeys = []#:5282')
    assert "allowed_hosts" not in caught.value.message


@pytest.mark.parametrize("hosts", [[], [b"localhost:5282", b"localhost:5282"], [b"localhost:5282", b"evil"]])
def test_one_host_there_must_be(hosts: list[bytes]) -> None:
    """None or several is 400: what names whom would be a guess."""
    with pytest.raises(ProxyError) as caught:
        check_host(read([(b"host", host) for host in hosts]), b"/healthz", SERVER, PLAIN)
    assert code(caught) == ("bad_request", 400)


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz"])
def test_a_probe_may_come_under_any_name(path: bytes) -> None:
    """By the address of a pod, say. It is no origin of ours then, and what is no Host at all is 400."""
    for host in (b"10.1.2.3:5282", b"10.1.2.3", b"[fd00::7]:5282", b"lava-proxy.prod.svc:80", b"rebind.evil:5282"):
        assert called(host, path=path) == b""
        with pytest.raises(ProxyError) as caught:
            check_origin(read([(b"host", host), (b"origin", b"http://" + host)]), b"")
        assert code(caught) == ("origin_not_allowed", 403)
    for host in (
        b"",
        b"a b",
        b"user@10.1.2.3",
        b"10.1.2.3/x",
        b"10.1.2.3:x",
        b"10.1.2.3, evil",
        b"http://10.1.2.3",
        b"\xff",
    ):
        with pytest.raises(ProxyError) as caught:
            called(host, path=path)
        assert code(caught) == ("bad_request", 400)
    for other in (b"/", b"/metrics", b"/healthz/", b"//healthz", b"/readyz/x", b"/dashboard"):
        with pytest.raises(ProxyError) as caught:
            called(b"10.1.2.3:5282", path=other)
        assert code(caught) == ("host_not_allowed", 421)


def test_a_unix_socket_is_called_localhost() -> None:
    """No browser reaches it; with or without a port."""
    for server in (None, ("/run/lava.sock", None)):
        for host in (b"localhost", b"localhost:1"):
            assert check_host(read([(b"host", host)]), b"/metrics", server, PLAIN) == host
        with pytest.raises(ProxyError):
            check_host(read([(b"host", b"evil")]), b"/metrics", server, PLAIN)


# --- Origin ----------------------------------------------------------------------------------------------------------


def page(
    origin: bytes | None, site: bytes | None = None, where: ActiveConfig = LISTED, host: bytes = b"localhost:5282"
) -> bytes | None:
    """A request of a page with this origin."""
    pairs = [(b"host", host)]
    if origin is not None:
        pairs.append((b"origin", origin))
    if site is not None:
        pairs.append((b"sec-fetch-site", site))
    return judged(read(pairs), host, where)


def judged(received: RequestHeaders, host: bytes, where: ActiveConfig) -> bytes | None:
    """What the gate does with an origin."""
    listed = listed_origin(received, where)
    if listed is None:
        check_origin(received, host)
    return listed


@pytest.mark.parametrize("site", [None, b"none", b"same-origin", b"Same-Origin"])
def test_programs_and_our_own_pages(site: bytes | None) -> None:
    """No origin, or ours as it was called."""
    assert page(None, site) is None
    assert page(b"http://localhost:5282", site) is None
    assert page(b"http://127.0.0.1:5282", site, host=b"127.0.0.1:5282") is None
    assert page(b"http://LOCALHOST:5282", site) is None


@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"null",
        b"NULL",
        b"",
        b"file://",
        b"https://localhost:5282",
        b"http://localhost",
        b"http://localhost:5283",
        b"http://127.0.0.1:5282",
        b"http://localhost:5282/",
        b"http://localhost:5282.evil.example",
        b"http://evil@localhost:5282",
        b"localhost:5282",
        b"https://app.example.evil",
        b"https://app.example:8443",
        b"http://app.example",
        b"https://app.example/",
        b"https://app.example https://evil.example",
        b"https://xapp.example",
        b"http://localhost:3001",
        b"vscode-webview:",
        b"vscode-webview",
        b"xvscode-webview://a",
        b"vscode-webviewer://a",
        b"chrome-extension://abcdef",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("site", [None, b"none", b"same-origin", b"cross-site"])
def test_other_pages_are_refused(origin: bytes, site: bytes | None) -> None:
    """403, and the message names the setting; a friendly ``Sec-Fetch-Site`` does not help."""
    with pytest.raises(ProxyError) as caught:
        page(origin, site)
    assert code(caught) == ("origin_not_allowed", 403)
    assert "allowed_origins" in caught.value.message
    assert not caught.value.headers


@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"Cross-Site", b"", b"whatever", b"none,cross-site"])
@pytest.mark.parametrize("origin", [None, b"http://localhost:5282"])
def test_another_site_is_refused_by_its_mark_alone(origin: bytes | None, site: bytes) -> None:
    """Forms, images and scripts send no Origin; another local port is «same-site»."""
    with pytest.raises(ProxyError) as caught:
        page(origin, site)
    assert code(caught) == ("origin_not_allowed", 403)


@pytest.mark.parametrize(
    "origin", [b"https://app.example", b"https://App.Example", b"http://localhost:3000", b"vscode-webview://1a2b"]
)
@pytest.mark.parametrize("site", [None, b"cross-site", b"same-site", b"none"])
def test_listed_pages(origin: bytes, site: bytes | None) -> None:
    """Exact, or any of a scheme that is not http; then the mark does not matter."""
    assert page(origin, site) == origin
    with pytest.raises(ProxyError):
        page(origin, site, PLAIN)


@pytest.mark.parametrize("first", [b"https://app.example", b"http://localhost:5282"])
def test_two_origins_are_refused(first: bytes) -> None:
    """Even where the first is listed or our own."""
    for second in (b"https://evil.example", first):
        received = read([(b"origin", first), (b"origin", second)])
        with pytest.raises(ProxyError) as caught:
            judged(received, b"localhost:5282", LISTED)
        assert code(caught) == ("origin_not_allowed", 403)


def test_two_marks_are_refused() -> None:
    """The second cannot hide behind the first."""
    received = read([(b"sec-fetch-site", b"none"), (b"sec-fetch-site", b"cross-site")])
    with pytest.raises(ProxyError):
        judged(received, b"localhost:5282", PLAIN)


def test_a_preflight_of_a_listed_page() -> None:
    """The headers it asks for, ten minutes at most, no credentials."""
    pairs = preflight(read([(b"access-control-request-headers", b"authorization, x-a")]))
    head = dict(pairs)
    assert len(head) == len(pairs)
    assert b"POST" in head[b"access-control-allow-methods"]
    assert head[b"access-control-allow-headers"] == b"authorization, x-a"
    assert int(head[b"access-control-max-age"]) <= 600
    assert b"access-control-allow-credentials" not in head
    assert b"access-control-allow-headers" not in dict(preflight(read([])))


def test_an_answer_that_a_listed_page_may_read() -> None:
    """That exact origin, ``Vary``, and every header of the answer exposed by its name, once."""
    answer = [(b"x-a", b"1"), (b"retry-after", b"2"), (b"x-a", b"3"), (b"vary", b"Accept")]
    pairs = readable_by(b"https://app.example", answer)
    assert pairs[:4] == answer
    assert pairs[4:] == [
        (b"access-control-allow-origin", b"https://app.example"),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", b"x-lava-proxy-error, x-a, retry-after, vary"),
    ]
    assert readable_by(b"https://app.example", [(b"vary", b"Origin")]).count((b"vary", b"Origin")) == 1


# --- local keys ------------------------------------------------------------------------------------------------------

LOCAL_HEADERS = (*CREDENTIALS, b"x-lava-proxy-key")


def carrying(name: bytes, key: str | bytes) -> tuple[bytes, bytes]:
    """This key in this header, as SDKs put it there."""
    raw = key.encode() if isinstance(key, str) else key
    return name, (b"Bearer " + raw if name == b"authorization" else raw)


def received(*pairs: tuple[bytes, bytes]) -> RequestHeaders:
    """A request with these headers."""
    return read(pairs)


@pytest.mark.parametrize("name", LOCAL_HEADERS)
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages", b"/v1beta/models", b"/nobody", b"/metrics"])
def test_a_key_in_any_header_on_any_address(name: bytes, path: bytes) -> None:
    """Whatever an SDK calls it; a project's key binds the request to it."""
    admitted = check_key(received(carrying(name, MASTER)), path, KEYED)
    assert (admitted.project, admitted.key_header) == (None, name)
    bound = check_key(received(carrying(name, WEBSITE)), path, KEYED)
    assert (bound.project, bound.key_header) == ("website", name)


@pytest.mark.parametrize("value", [MASTER, f"Bearer {MASTER}", f"bearer  {MASTER} ", f"BEARER {MASTER}"])
def test_the_scheme_may_be_written_anyhow(value: str) -> None:
    """``Bearer`` in any case, or left out."""
    assert check_key(received((b"authorization", value.encode())), b"/v1/x", KEYED).key_header == b"authorization"


@pytest.mark.parametrize(
    "path", [b"/v1/chat/completions", b"/nobody/x", b"/metrics", b"/dashboard", b"//", b"/p/website"]
)
def test_no_key(path: bytes) -> None:
    """401 with ``WWW-Authenticate``, the same for known and unknown addresses."""
    for pairs in ([], [(b"authorization", b"")], [(b"authorization", b"Bearer")], [(b"cookie", MASTER.encode())]):
        with pytest.raises(ProxyError) as caught:
            check_key(received(*pairs), path, KEYED)
        assert caught.value.status == 401
        assert caught.value.code in ("local_key_required", "local_key_invalid")
        assert (b"www-authenticate", b"Bearer") in caught.value.headers


@pytest.mark.parametrize("path", [b"/", b"/healthz", b"/readyz"])
def test_open_addresses_need_no_key(path: bytes) -> None:
    """And a wrong one does not matter there."""
    for pairs in ([], [carrying(b"x-api-key", "wrong")]):
        assert check_key(received(*pairs), path, KEYED).key_header is None


WRONG = [
    "x" * len(MASTER),
    MASTER[:-1],
    MASTER + "x",
    MASTER.upper(),
    "' OR 1=1--",
    "%s%n",
    "{0.__class__}",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "\u00e9" * 20,
    "\x00" * 20,
    "x" * 1_000_000,
    "sk" + "-proj-" + "x" * 20,
    "Basic dXNlcjpwYXNz",
]


@pytest.mark.parametrize("key", WRONG, ids=lambda key: repr(key[:20]))
@pytest.mark.parametrize("name", LOCAL_HEADERS)
def test_a_wrong_key(name: bytes, key: str) -> None:
    """401, the very same words for every wrong one, and nothing of it in them."""
    for raw in (key.encode(), key.encode("latin-1")):
        with pytest.raises(ProxyError) as caught:
            check_key(received(carrying(name, raw)), b"/v1/chat/completions", KEYED)
        assert code(caught) == ("local_key_invalid", 401)
        assert caught.value.message == (
            "The API key of this request is none of this daemon's local keys: give the tool one from lava-proxy's configuration."
        )


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=40), st.sampled_from(LOCAL_HEADERS))
def test_any_bytes_are_a_wrong_key(value: bytes, name: bytes) -> None:
    """No value of a header raises anything but a refusal."""
    with pytest.raises(ProxyError) as caught:
        check_key(received((name, value)), b"/v1/chat/completions", KEYED)
    assert code(caught) in (("local_key_invalid", 401), ("bad_request", 400))


@pytest.mark.parametrize("name", LOCAL_HEADERS)
def test_two_values_in_one_header(name: bytes) -> None:
    """Repeated, or in one line: 400, with and without configured keys, also where one is right."""
    twice = [carrying(name, MASTER), carrying(name, "other-key")]
    joined = (name, b", ".join(value for _, value in twice))
    for pairs in (twice, twice[::-1], [twice[0], twice[0]], [joined]):
        for where in (KEYED, PLAIN):
            with pytest.raises(ProxyError) as caught:
                check_key(received(*pairs), b"/v1/chat/completions", where)
            assert code(caught) == ("bad_request", 400)
            assert name.decode() in caught.value.message


def test_two_values_beside_the_proxys_own_key() -> None:
    """A doubled credential is refused wherever it stands."""
    pairs = [carrying(b"x-lava-proxy-key", MASTER), carrying(b"x-api-key", "a"), carrying(b"x-api-key", "b")]
    with pytest.raises(ProxyError) as caught:
        check_key(received(*pairs), b"/v1/x", KEYED)
    assert code(caught) == ("bad_request", 400)


def test_two_projects_are_refused() -> None:
    """The header that names the project stands once."""
    with pytest.raises(ProxyError) as caught:
        check_key(received((b"x-lava-proxy-project", b"a"), (b"x-lava-proxy-project", b"a")), b"/v1/x", PLAIN)
    assert code(caught) == ("bad_request", 400)


@pytest.mark.parametrize("name", LOCAL_HEADERS)
def test_a_key_may_have_commas(name: bytes) -> None:
    """Keys are kept exactly, whatever characters they have."""
    assert check_key(received(carrying(name, COMMA)), b"/v1/x", KEYED).key_header == name


def test_another_scheme_is_one_value() -> None:
    """Its parameters have commas: no key of ours, but not malformed either; without keys nobody minds it."""
    digest = (b"authorization", b'Digest username="a", realm="b", nonce="c"')
    assert check_key(received(digest), b"/v1/x", PLAIN).key_header is None
    with pytest.raises(ProxyError) as caught:
        check_key(received(digest), b"/v1/x", KEYED)
    assert code(caught) == ("local_key_invalid", 401)


@pytest.mark.parametrize(
    ("path", "extra", "own"),
    [
        (b"/v1/chat/completions", (), b"authorization"),
        (b"/v1/messages", (), b"x-api-key"),
        (b"/anthropic/v1/x", (), b"x-api-key"),
        (b"/groq/v1/messages", (), b"x-api-key"),
        (b"/v1beta/models/x:y", (), b"x-goog-api-key"),
        (b"/google/v1beta/models", (), b"x-goog-api-key"),
        (b"/elevenlabs/v1/voices", (), b"authorization"),
        (b"/nobody", (), b"x-goog-api-key"),  # the header itself tells the dialect
        (b"/nobody", ((b"anthropic-version", b"1"),), b"x-api-key"),
    ],
)
def test_which_of_several_keys_decides(path: bytes, extra: tuple[tuple[bytes, bytes], ...], own: bytes) -> None:
    """The header of the route's own dialect, else the fixed order; there is no second try."""
    names = list(CREDENTIALS)
    for order in (names, names[::-1]):
        pairs = [carrying(name, MASTER if name == own else f"key-of-{name.decode()}") for name in order]
        assert check_key(received(*pairs, *extra), path, KEYED).key_header == own
        wrong = [carrying(name, "wrong" if name == own else MASTER) for name in order]
        with pytest.raises(ProxyError) as caught:
            check_key(received(*wrong, *extra), path, KEYED)
        assert code(caught) == ("local_key_invalid", 401)


def test_the_others_follow_in_their_order() -> None:
    """Of any two headers that are not the route's own, the first of the order decides."""
    for first, second in itertools.combinations(CREDENTIALS[1:], 2):
        pairs = [carrying(second, "wrong"), carrying(first, MASTER)]
        assert check_key(received(*pairs), b"/v1/chat/completions", KEYED).key_header == first


def test_the_proxys_own_header_wins() -> None:
    """Right or wrong: the others stay free for a provider key."""
    others = [carrying(name, "provider-key") for name in CREDENTIALS]
    assert check_key(received(*others, carrying(b"x-lava-proxy-key", MASTER)), b"/v1/x", KEYED).project is None
    right = [carrying(name, MASTER) for name in CREDENTIALS]
    for wrong in ("wrong", ""):
        with pytest.raises(ProxyError) as caught:
            check_key(received(*right, carrying(b"x-lava-proxy-key", wrong)), b"/v1/x", KEYED)
        assert code(caught) == ("local_key_invalid", 401)


@pytest.mark.parametrize("name", LOCAL_HEADERS)
def test_without_configured_keys_any_key_is_dropped(name: bytes) -> None:
    """Local programs may call; what they send as a key is not judged."""
    admitted = check_key(received(carrying(name, "anything")), b"/v1/x", PLAIN)
    assert (admitted.project, admitted.key_header) == (None, None)


# --- the provider key of the tool itself -----------------------------------------------------------------------------


def test_the_tools_own_key_is_another_than_the_local_one() -> None:
    """The header that carried the local key is left out, and so is any other that repeats a local key."""
    pairs = [carrying(b"x-lava-proxy-key", MASTER), carrying(b"authorization", "provider-key")]
    assert key_of(received(*pairs), b"/v1/x", KEYED, but=b"x-lava-proxy-key") == (b"authorization", b"provider-key")
    pairs = [carrying(b"authorization", MASTER), carrying(b"x-api-key", "provider-key")]
    assert key_of(received(*pairs), b"/v1/x", KEYED, but=b"authorization") == (b"x-api-key", b"provider-key")
    assert key_of(received(pairs[0]), b"/v1/x", KEYED, but=b"authorization") is None
    twice = [carrying(b"x-lava-proxy-key", MASTER), carrying(b"x-api-key", MASTER), carrying(b"authorization", WEBSITE)]
    assert key_of(received(*twice), b"/v1/x", KEYED, but=b"x-lava-proxy-key") is None


def test_the_tools_own_key_without_local_keys() -> None:
    """The header of the route's dialect first, empty ones passed over."""
    pairs = [carrying(b"authorization", "a"), carrying(b"x-api-key", "b")]
    assert key_of(received(*pairs), b"/v1/x", PLAIN) == (b"authorization", b"a")
    assert key_of(received(*pairs), b"/v1/messages", PLAIN) == (b"x-api-key", b"b")
    assert key_of(received((b"authorization", b"Bearer "), pairs[1]), b"/v1/x", PLAIN) == (b"x-api-key", b"b")
    assert key_of(received(), b"/v1/x", PLAIN) is None


GOOGLES = ["/v1beta/models/x:generateContent", "/upload/v1beta/files", "/p/main/v1alpha/files", "/google/v1/files"]
GOOGLES += ["/v1/models/x:generateContent", "/v1beta/v1beta/files"]


@pytest.mark.parametrize("path", GOOGLES)
def test_a_key_in_the_address_counts_on_googles_routes(path: str) -> None:
    """As Google's own tools send it, where no header has one."""
    raw = path.encode()
    for query in (f"key={MASTER}", f"alt=sse&k%65y={MASTER}&x=1", f"key={MASTER}&key={MASTER}"):
        admitted = check_key(received(), raw, KEYED, query=query.encode())
        assert (admitted.project, admitted.key_header) == (None, b"?key")
        assert key_of(received(), raw, PLAIN, query=query.encode()) == (b"?key", MASTER.encode())
    assert check_key(received(), raw, KEYED, query=f"key={WEBSITE}".encode()).project == "website"
    with pytest.raises(ProxyError) as caught:
        check_key(received(), raw, KEYED, query=b"key=AIza-wrong")
    assert code(caught) == ("local_key_invalid", 401)
    with pytest.raises(ProxyError) as caught:
        check_key(received(), raw, KEYED, query=b"alt=sse&monkey=1")
    assert code(caught) == ("local_key_required", 401)
    with pytest.raises(ProxyError) as caught:
        check_key(received(), raw, KEYED, query=f"key={MASTER}&key=other".encode())
    assert code(caught) == ("bad_request", 400)


@pytest.mark.parametrize("header", [b"authorization", b"x-goog-api-key", b"x-api-key", b"x-lava-proxy-key"])
def test_a_header_wins_over_the_address(header: bytes) -> None:
    """There is no second try: a wrong key in a header stays wrong."""
    right, wrong = f"key={MASTER}".encode(), b"key=wrong"
    path = b"/v1beta/models/x:generateContent"
    assert check_key(received(carrying(header, MASTER)), path, KEYED, query=wrong).key_header == header
    with pytest.raises(ProxyError) as caught:
        check_key(received(carrying(header, "wrong-key-0123456789")), path, KEYED, query=right)
    assert code(caught) == ("local_key_invalid", 401)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/openai/v1/files", "/v1/files", "/elevenlabs/v1/x"]
)
def test_a_key_in_the_address_is_data_elsewhere(path: str) -> None:
    """Nobody but Google has keys there."""
    with pytest.raises(ProxyError) as caught:
        check_key(received(), path.encode(), KEYED, query=f"key={MASTER}".encode())
    assert code(caught) == ("local_key_required", 401)


def test_a_key_in_the_address_may_be_the_tools_own() -> None:
    """Beside a local key in a header it is the provider's; a local key it never is."""
    path = b"/v1beta/models/x:generateContent"
    local = received((b"x-lava-proxy-key", MASTER.encode()))
    assert key_of(local, path, KEYED, but=b"x-lava-proxy-key", query=b"key=AIza+x") == (b"?key", b"AIza+x")
    assert key_of(local, path, KEYED, but=b"x-lava-proxy-key", query=f"key={MASTER}".encode()) is None
    assert key_of(received(), path, KEYED, but=b"?key", query=b"key=AIza") is None
