"""Host, Origin and local keys: who may ask is decided before the body is read."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import stat
from typing import TYPE_CHECKING

from daemons import Daemon
from security_stand import (
    CHAT,
    KEY_A,
    KEY_B,
    LAVA_KEY,
    LOCAL_KEY,
    SECRETS,
    STREAM,
    Stand,
    answers,
    case,
    ends,
    head,
    made_up,
    our_error,
    sound,
)

from proxy.lava.tokens import mint_token

if TYPE_CHECKING:
    from rawclient import Response


ROUTES = (
    "/v1/chat/completions",
    "/openai/v1/files",
    "/healthz",
    "/readyz",
    "/metrics",
    "/",
    "/dashboard",
    "/no/such/path",
)
PROBES = ("/healthz", "/readyz")  # answered under any name
APP = "https://app.example"
WITH_KEY = {"Authorization": f"Bearer {LOCAL_KEY}"}


def no_cors(response: Response) -> None:
    assert not [name for name, _ in response.headers if name.startswith("access-control-")], response.headers


def refused_unread(
    stand: Stand, fields: list[str], status: int, code: str, *, at: str = "plain", path: str = "/v1/chat/completions"
) -> Response:
    """A POST whose body never comes is refused all the same: the decision needs no body."""
    with stand.untouched(at), stand.client(at) as client:
        client.send(head(client.port, f"POST {path} HTTP/1.1", *fields, "Content-Length: 2000000"))
        response = client.response()
        our_error(response, status, code)
        no_cors(response)
        return response


def forbidden(stand: Stand, headers: dict[str, str], *, at: str = "plain", method: str = "GET") -> None:
    """Every address answers these headers with 403, the same for known and unknown ones."""
    for path in ROUTES:
        with stand.untouched(at):
            response = stand.ask(method, path, headers=headers, at=at)
            assert (response.status, response.code) == (403, "origin_not_allowed"), (path, response.status)
            no_cors(response)


@case("BRW-01")
def test_simple_post(stand: Stand) -> None:
    fields = [
        "Origin: https://evil",
        "Content-Type: text/plain",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Mode: no-cors",
    ]
    refused_unread(stand, fields, 403, "origin_not_allowed")
    refused_unread(stand, fields, 403, "origin_not_allowed", at="keyed")
    with stand.untouched():
        response = stand.ask("POST", "/v1/chat/completions", json.dumps(CHAT).encode(), {"Origin": "https://evil"})
        our_error(response, 403, "origin_not_allowed")
        no_cors(response)
    forbidden(stand, {"Origin": "https://evil"})


@case("BRW-02")
def test_origin_wins_over_key(stand: Stand) -> None:
    body = json.dumps({**CHAT, "key": LOCAL_KEY, "api_key": LOCAL_KEY}).encode()
    headers = {"Origin": "https://evil", "Content-Type": "text/plain"}
    for more in ({}, WITH_KEY, {"x-lava-proxy-key": LOCAL_KEY}, {"x-api-key": LOCAL_KEY}):
        for query in ("", f"?key={LOCAL_KEY}", f"?api_key={LOCAL_KEY}"):
            with stand.untouched("keyed"):
                response = stand.ask("POST", f"/v1/chat/completions{query}", body, {**headers, **more}, at="keyed")
                our_error(response, 403, "origin_not_allowed")
                no_cors(response)


@case("BRW-03")
def test_fetch_site(stand: Stand) -> None:
    for site in ("cross-site", "same-site", "SAME-SITE", "nonsense", "", "none, cross-site"):
        forbidden(stand, {"Sec-Fetch-Site": site})
        refused_unread(stand, [f"Sec-Fetch-Site: {site}"], 403, "origin_not_allowed")
    for headers in ({"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert stand.ask("GET", "/openai/v1/files", headers=headers).status == 200
        assert stand.ask("GET", "/healthz", headers=headers).status == 200


@case("BRW-04")
def test_rebinding(stand: Stand) -> None:
    for at in ("plain", "keyed"):
        port = stand.daemon(at).port
        host = f"rebind.evil:{port}"
        for path in ROUTES:
            for headers in ({"Origin": f"http://{host}"}, {"Origin": f"http://{host}", **WITH_KEY}, {}):
                with stand.untouched(at):
                    response = stand.ask("GET", path, headers=headers, at=at, host=host)
                    no_cors(response)
                    if path not in PROBES:
                        our_error(response, 421, "host_not_allowed")
                    elif headers:  # a page is refused by its origin
                        our_error(response, 403, "origin_not_allowed")
                    else:
                        assert response.status == 200


@case("BRW-05")
def test_other_names_of_this_machine(stand: Stand) -> None:
    port = stand.daemon().port
    for name in ("0.0.0.0", "[::]", "127.1", "2130706433", "0x7f.1", "0x7f000001", "017700000001", "127.0.0.2"):
        for path in ROUTES:
            with stand.untouched():
                response = stand.ask("GET", path, host=f"{name}:{port}")
                if path in PROBES:
                    assert response.status == 200
                else:
                    our_error(response, 421, "host_not_allowed")
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert stand.ask("GET", "/", host=f"{name}:{port}").status == 200
    # Listed exactly: with its own port only, or without one with any.
    for host, allowed in (
        ("gateway.internal:8080", True),
        ("GATEWAY.internal:8080", True),
        ("gateway.internal", False),
        ("gateway.internal:8081", False),
        ("proxy.internal", True),
        ("proxy.internal:1234", True),
        ("x.proxy.internal", False),
        ("proxy.internal.evil", False),
    ):
        assert stand.ask("GET", "/", at="keyed", host=host).status == (200 if allowed else 421), host


@case("BRW-07")
def test_wildcard_bind(stand: Stand) -> None:
    port = stand.daemon("wide").port
    for name in ("rebind.evil", "0.0.0.0", "172.17.0.2", "[::]"):
        for headers in ({}, WITH_KEY):
            with stand.untouched("wide"):
                response = stand.ask("GET", "/openai/v1/files", headers=headers, at="wide", host=f"{name}:{port}")
                our_error(response, 421, "host_not_allowed")
                assert f"{name}:{port}" in response.json()["error"]["lava_proxy"]["hint"]
    assert stand.ask("GET", "/openai/v1/files", headers=WITH_KEY, at="wide").status == 200


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


@case("BRW-08")
def test_preflight_of_evil(stand: Stand) -> None:
    for at in ("plain", "keyed"):
        for origin in (
            "https://evil",
            "https://app.example.evil",
            "http://app.example",
            "https://app.example:8443",
            "null",
        ):
            for path in ROUTES:
                with stand.untouched(at):
                    response = stand.ask("OPTIONS", path, headers={"Origin": origin, **PREFLIGHT}, at=at)
                    assert (response.status, response.code) == (403, "origin_not_allowed")
                    no_cors(response)


@case("BRW-10")
def test_null_origin(stand: Stand) -> None:
    forbidden(stand, {"Origin": "null"})
    forbidden(stand, {"Origin": "null", **WITH_KEY}, at="keyed")
    refused_unread(stand, ["Origin: null"], 403, "origin_not_allowed")


@case("BRW-15")
def test_cookies(stand: Stand) -> None:
    for value in (f"key={LOCAL_KEY}", f"authorization=Bearer {LOCAL_KEY}", LOCAL_KEY):
        with stand.untouched("keyed"):
            our_error(
                stand.ask("GET", "/openai/v1/files", headers={"Cookie": value}, at="keyed"), 401, "local_key_required"
            )
    with stand.playing(answers(200, b"{}", [(b"Set-Cookie", b"session=1"), (b"Set-Cookie2", b"old=1")])):
        response = stand.ask("GET", "/openai/v1/files", headers={"Cookie": "a=b", "Cookie2": "$Version=1"})
    assert response.status == 200
    assert not [name for name, _ in response.headers if "cookie" in name]
    sound(stand.last)
    assert b"cookie" not in stand.last.raw.lower()
    for path in ROUTES:
        response = stand.ask("GET", path, headers={"Cookie": "a=b"})
        assert not [name for name, _ in response.headers if "cookie" in name]


@case("BRW-16")
def test_allowed_origin(stand: Stand) -> None:
    with stand.untouched("keyed"):
        site = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        response = stand.ask(
            "OPTIONS", "/v1/chat/completions", headers={"Origin": APP, **site, **PREFLIGHT}, at="keyed"
        )
        assert response.status == 204
        assert response.header("access-control-allow-origin") == APP
        assert response.header("vary") == "Origin"
        assert "POST" in (response.header("access-control-allow-methods") or "")
        assert response.header("access-control-allow-headers") == PREFLIGHT["Access-Control-Request-Headers"]
        assert response.header("access-control-allow-credentials") is None
        assert int(response.header("access-control-max-age") or "9999") <= 600
    # The request itself: readable by that page alone, with the key as for everybody; errors too.
    response = stand.post("/v1/chat/completions", headers={"Origin": APP, **site, **WITH_KEY}, at="keyed")
    assert response.status == 200
    assert response.header("access-control-allow-origin") == APP
    assert response.header("vary") == "Origin"
    assert response.header("access-control-allow-credentials") is None
    assert "x-lava-proxy-error" in (response.header("access-control-expose-headers") or "")
    assert stand.last.header(b"access-control-request-method") is None
    response = stand.post("/v1/chat/completions", headers={"Origin": APP, **site}, at="keyed")
    our_error(response, 401, "local_key_required")
    assert response.header("access-control-allow-origin") == APP


# --- auth ------------------------------------------------------------------------------------------------------------


def anonymous(response: Response) -> str:
    """A body without what differs between two requests."""
    return re.sub(r"req_[0-9a-f]{24}", "req", response.body.decode())


@case("AUT-01")
def test_no_key(stand: Stand) -> None:
    members: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"type": "authentication_error", "code": "local_key_required"},
        "/v1/messages": {"type": "authentication_error"},
        "/v1beta/models/gemini-2.5-flash:generateContent": {"status": "UNAUTHENTICATED", "code": 401},
        "/no/such/path": {"type": "authentication_error", "code": "local_key_required"},
    }
    for path, wanted in members.items():
        response = refused_unread(stand, [], 401, "local_key_required", at="keyed", path=path)
        assert response.header("www-authenticate") == "Bearer"
        document = response.json()
        assert document.get("type") == ("error" if path == "/v1/messages" else None)
        assert {name: document["error"][name] for name in wanted} == wanted


@case("AUT-02")
def test_wrong_keys(stand: Stand) -> None:
    bodies = set()
    near = LOCAL_KEY[:-1] + ("a" if LOCAL_KEY[-1] != "a" else "b")
    for value in ("n" * len(LOCAL_KEY), near, LOCAL_KEY[:-1], LOCAL_KEY + "x", LOCAL_KEY.upper(), ""):
        response = refused_unread(stand, [f"Authorization: Bearer {value}"], 401, "local_key_invalid", at="keyed")
        assert response.header("www-authenticate") == "Bearer"
        bodies.add(anonymous(response))
    assert len(bodies) == 1
    with stand.untouched("keyed"), stand.client("keyed") as client:
        client.push(head(client.port, "GET /openai/v1/files HTTP/1.1", "Authorization: Bearer " + "k" * 1_000_000))
        assert client.response().status == 431
    for odd in (b"\xff\xfe" * 12, "schlüssel-zum-haus".encode(), b"\x80"):
        with stand.untouched("keyed"), stand.client("keyed") as client:
            client.push(head(client.port, "GET /openai/v1/files HTTP/1.1", b"Authorization: Bearer " + odd))
            our_error(client.response(), 401, "local_key_invalid")


@case("AUT-04")
def test_key_in_query(stand: Stand) -> None:
    for name in ("key", "api_key", "apikey", "access_token"):
        for path in ("/openai/v1/files", "/v1/files", "/v1beta/models", "/healthz", "/no/such/path"):
            if (name, path) == ("key", "/v1beta/models"):
                continue
            with stand.untouched("keyed"):
                response = stand.ask("GET", f"{path}?{name}={LOCAL_KEY}", at="keyed")
                assert response.status == (200 if path == "/healthz" else 401)
    # Google's tools send theirs so: on its routes it is a credential like one in a header, right or wrong, and stays here.
    assert stand.ask("GET", f"/v1beta/models?key={LOCAL_KEY}", at="keyed").status == 200
    assert LOCAL_KEY.encode() not in stand.last.raw
    with stand.untouched("keyed"):
        our_error(stand.ask("GET", f"/v1beta/models?key={LOCAL_KEY}x", at="keyed"), 401, "local_key_invalid")
    # The output of every daemon is searched for the key when it ends; here is the present one.
    assert LOCAL_KEY not in stand.daemon("keyed").output()


@case("AUT-05")
def test_keys_of_every_sdk(stand: Stand) -> None:
    for name, path in (
        ("Authorization", "/v1/chat/completions"),
        ("x-api-key", "/v1/messages"),
        ("x-goog-api-key", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("api-key", "/openai/v1/chat/completions"),
        ("xi-api-key", "/elevenlabs/v1/text-to-speech/x"),
        ("x-lava-proxy-key", "/v1/chat/completions"),
    ):
        value = f"Bearer {LOCAL_KEY}" if name == "Authorization" else LOCAL_KEY
        assert stand.post(path, headers={name: value}, at="keyed").status == 200, name
        sound(stand.last, b"Bearer " + mint_token(LAVA_KEY, meter_slug="meter-a").encode())
        assert LOCAL_KEY.encode() not in stand.last.raw
        assert b"x-lava-proxy-key" not in stand.last.raw.lower()
        with stand.untouched("keyed"):
            our_error(stand.post(path, headers={name: value[:-1] + "!"}, at="keyed"), 401, "local_key_invalid")


@case("AUT-06")
def test_real_provider_keys(stand: Stand) -> None:
    for number, prefix in enumerate(("sk-", "sk-" + "ant-api03-", "AIza", "sk-proj-")):
        key = made_up(prefix, f"real {number}")
        for name, value in (("Authorization", f"Bearer {key}"), ("x-api-key", key), ("x-goog-api-key", key)):
            response = refused_unread(stand, [f"{name}: {value}"], 401, "local_key_invalid", at="keyed")
            assert "lava-proxy" in response.json()["error"]["lava_proxy"]["hint"]
            assert key.encode() not in response.body
            # Without local keys it is ignored, and stays here.
            assert stand.post("/v1/messages", headers={name: value}).status == 200
            assert key.encode() not in stand.last.raw
            sound(stand.last)
            for at in ("plain", "keyed"):
                assert key not in stand.daemon(at).output()
    # Where the project says so, the key goes into the token, and only there; the local key's header never does.
    key = made_up("sk-", "byok")
    response = stand.post("/v1/chat/completions", headers={"Authorization": f"Bearer {key}"}, at="byok")
    assert response.status == 200
    token = mint_token(LAVA_KEY, connection_id=None, meter_slug=None, provider_key=key)
    sound(stand.last, b"Bearer " + token.encode())
    assert key.encode() not in stand.last.raw
    assert key not in stand.daemon("byok").output()


@case("AUT-08")
def test_key_of_another_project(stand: Stand) -> None:
    bearer = {"Authorization": f"Bearer {KEY_A}"}
    with stand.untouched("keyed"):
        for path in ("/p/b/v1/chat/completions", "/p/b/openai/v1/files", "/p/nobody/v1/chat/completions"):
            our_error(stand.post(path, headers=bearer, at="keyed"), 403, "project_not_allowed")
        for name in ("b", "nobody", "A", ""):
            headers = {**bearer, "x-lava-proxy-project": name}
            our_error(stand.post("/v1/chat/completions", headers=headers, at="keyed"), 403, "project_not_allowed")
    for key, meter in ((KEY_A, "meter-a"), (KEY_B, "meter-b")):
        assert stand.post("/v1/chat/completions", headers={"x-api-key": key}, at="keyed").status == 200
        sound(stand.last, b"Bearer " + mint_token(LAVA_KEY, meter_slug=meter).encode())


@case("AUT-09")
def test_odd_keys(stand: Stand) -> None:
    for value in (
        "' OR 1=1--",
        "%s%s%n",
        "{0.__class__}",
        "${jndi:ldap://evil}",
        "*",
        "../../etc/passwd",
        "null",
        "\t",
    ):
        refused_unread(stand, [f"Authorization: Bearer {value}"], 401, "local_key_invalid", at="keyed")
        refused_unread(stand, [f"x-lava-proxy-key: {value}"], 401, "local_key_invalid", at="keyed")


@case("AUT-11")
def test_control_addresses(stand: Stand) -> None:
    for path in ("/metrics", "/dashboard", "/dashboard/data", "/api/requests", "/config"):
        response = stand.ask("GET", path, at="keyed")
        our_error(response, 401, "local_key_required")
    for path in ("/healthz", "/readyz"):
        response = stand.ask("GET", path, at="keyed")
        assert response.status == 200
        assert response.json() == {"status": "ok"}
        for method in ("POST", "DELETE", "PUT"):
            our_error(stand.ask(method, path, b"", at="keyed"), 405)
    assert stand.ask("GET", "/metrics", headers=WITH_KEY, at="keyed").status == 200
    our_error(stand.ask("GET", "/metrics", headers={"x-api-key": KEY_A}, at="keyed"), 403, "project_not_allowed")


@case("AUT-14")
def test_public_without_keys(stand: Stand) -> None:
    for host in ('"0.0.0.0"', '"::"', '["127.0.0.1", "0.0.0.0"]'):
        code, said = ends(stand, f"[server]\nhost = {host}\n")
        assert code == 78, said
        assert "keys" in said
        assert "host" in said


@case("AUT-15")
def test_other_local_users(stand: Stand) -> None:
    response = stand.post("/v1/chat/completions", at="keyed")
    our_error(response, 401, "local_key_required")
    path = stand.folder / "stand.sock"
    old = os.umask(0)
    try:
        running = stand.start(f'[server]\nunix_socket = "{path}"\nkeys = ["env:LOCAL_KEY"]\n')
    finally:
        os.umask(old)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET /openai/v1/files HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 401 " in sock.recv(65_536)
    assert running.stop() == 0
    assert not path.exists()
    # A configuration that others can read may not hold a key.
    folder = stand.folder / "open-config"
    folder.mkdir()
    exposed = Daemon(folder, f'[lava]\nsecret_key = "{LAVA_KEY}"\n', secrets=SECRETS)
    exposed.process.kill()
    exposed.process.wait()
    exposed.config.chmod(0o644)
    code, said = _run_serve(exposed)
    assert code == 78
    assert str(exposed.config) in said
    assert "0644" in said
    assert LAVA_KEY not in said


def _run_serve(like: Daemon) -> tuple[int, str]:
    import subprocess
    import sys

    from daemons import clean_environment

    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--config", str(like.config), "--port", str(like.port)],
        env=clean_environment(like.config.parent),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_other_hosts(stand: Stand) -> None:
    """Hosts that look like ours and are not, on every kind of address."""
    port = stand.daemon().port
    for host in (
        f"localhost:{port}.evil",
        f"localhost.evil:{port}",
        f"127.0.0.1.evil:{port}",
        f"evil.localhost:{port}",
        f"localhost.:{port}",
        f"localhost:{port}0",
        f"localhost:0{port}",
        f"localhost:+{port}",
        "localhost:",
        "localhost:80",
        "localhost",
        f"127.0.0.1:{port}:1",
        f"127.0.0.01:{port}",
        f"[::ffff:127.0.0.1]:{port}",
        f"[0:0:0:0:0:0:0:1]:{port}",
        f"[::1%lo]:{port}",
        f"[::1:{port}",
        f"::1:{port}",
        f"localhost:{port} evil",
        f"evil\\@localhost:{port}",
        f"localhost%00.evil:{port}",
        f"xn--localhost-:{port}",
        "*",
        f":{port}",
    ):
        for path in ("/", "/openai/v1/files"):
            with stand.untouched(), stand.client() as client:
                client.push(head(port, f"GET {path} HTTP/1.1", f"Host: {host}", host=False))
                our_error(client.response(), 421, "host_not_allowed")


def test_other_origins(stand: Stand) -> None:
    """Origins that look like the listed one or like our own, alone and doubled."""
    port = stand.daemon("keyed").port
    for origin in (
        "https://app.example.",
        "https://app.example/",
        "https://app.example, https://evil",
        "https://evil https://app.example",
        "https://APP.example.evil",
        "https://xapp.example",
        "https://app.example:443",
        "HTTPS://app.example.evil",
        "app.example",
        "://app.example",
        "file://",
        "chrome-extension://abcdef",
        "vscode-webview://x",
        "",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        f"http://localhost:{port}",  # the page's own host was 127.0.0.1
    ):
        with stand.untouched("keyed"):
            response = stand.post("/v1/chat/completions", headers={"Origin": origin, **WITH_KEY}, at="keyed")
            our_error(response, 403, "origin_not_allowed")
            no_cors(response)
    doubled = [("Origin", APP), ("Origin", "https://evil")]
    for pairs in (doubled, doubled[::-1], [("Origin", APP), ("Origin", APP)]):
        with stand.untouched("keyed"):
            response = stand.ask("GET", "/openai/v1/files", headers=[*pairs, *WITH_KEY.items()], at="keyed")
            our_error(response, 403, "origin_not_allowed")
            no_cors(response)
    # A page of our own may ask, also by our other names; a foreign site header beside it may not.
    own = {"Origin": f"http://127.0.0.1:{port}"}
    assert stand.post("/v1/chat/completions", headers={**own, **WITH_KEY}, at="keyed").status == 200
    response = stand.post(
        "/v1/chat/completions", headers={**own, "Sec-Fetch-Site": "cross-site", **WITH_KEY}, at="keyed"
    )
    our_error(response, 403, "origin_not_allowed")


def test_other_places_for_keys(stand: Stand) -> None:
    """A key counts in its headers alone, once each, whole, and the chosen one decides without a second try."""
    wrong = "n" * len(LOCAL_KEY)
    for value in (LOCAL_KEY, f"bearer {LOCAL_KEY}", f"BEARER {LOCAL_KEY}", f"Bearer  {LOCAL_KEY}"):
        assert stand.post("/v1/chat/completions", headers={"Authorization": value}, at="keyed").status == 200, value
    refused: list[dict[str, str]] = [
        {"Authorization": f"Basic {LOCAL_KEY}"},
        {"Authorization": f"Bearer: {LOCAL_KEY}"},
        {"Authorization": f"Bearer {LOCAL_KEY} x"},
        {"Authorization": f"Token {LOCAL_KEY}"},
        {"Proxy-Authorization": f"Bearer {LOCAL_KEY}"},
        {"X-Key": LOCAL_KEY},
        {"Cookie": LOCAL_KEY},
        {"Referer": f"http://127.0.0.1/?key={LOCAL_KEY}"},
        {"x-lava-proxy-key": wrong, "Authorization": f"Bearer {LOCAL_KEY}"},
        {"x-lava-proxy-key": "", "Authorization": f"Bearer {LOCAL_KEY}"},
        {"Authorization": f"Bearer {wrong}", "x-api-key": LOCAL_KEY},
        {"Authorization": f"Bearer {LAVA_KEY}"},
    ]
    for headers in refused:
        with stand.untouched("keyed"):
            response = stand.post("/v1/chat/completions", headers=headers, at="keyed")
            our_error(response, 401)
    # On Anthropic's and Google's addresses their own header decides.
    assert (
        stand.post("/v1/messages", headers={"x-api-key": LOCAL_KEY, "Authorization": wrong}, at="keyed").status == 200
    )
    with stand.untouched("keyed"):
        response = stand.post("/v1/messages", headers={"x-api-key": wrong, "Authorization": LOCAL_KEY}, at="keyed")
        our_error(response, 401)
        for pairs in (
            [("x-api-key", LOCAL_KEY), ("X-Api-Key", LOCAL_KEY)],
            [("x-lava-proxy-key", LOCAL_KEY), ("x-lava-proxy-key", wrong)],
            [("Authorization", f"Bearer {LOCAL_KEY}, Bearer {wrong}")],
            [("x-api-key", f"{wrong},{LOCAL_KEY}")],
        ):
            our_error(stand.ask("GET", "/openai/v1/files", headers=pairs, at="keyed"), 400, "bad_request")


def test_a_listed_page_is_named_in_every_answer(stand: Stand) -> None:
    """Whatever the upstream says of CORS and caches, an answer to a listed page names it once and varies by it."""
    page = "https://app.example"
    asked = {"Origin": page, "Authorization": f"Bearer {LOCAL_KEY}"}
    for sent in (
        [(b"Vary", b"Accept-Encoding")],
        [(b"Vary", b"accept"), (b"Vary", b"accept-language")],
        [(b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Allow-Credentials", b"true")],
        [(b"Access-Control-Expose-Headers", b"*"), (b"Connection", b"vary, access-control-allow-origin")],
        [],
    ):
        for status in (200, 404, 401):
            with stand.playing(answers(status, b"{}", sent)):
                response = stand.post("/v1/chat/completions", headers=asked, at="keyed")
            assert response.status == status
            assert response.header("access-control-allow-origin") == page
            assert response.header("access-control-allow-credentials") is None
            assert response.header("access-control-expose-headers") != "*"
            varies = [value.lower() for name, value in response.headers if name == "vary"]
            assert varies.count("origin") == 1, (sent, varies)


def test_a_tools_own_key_is_one_word(stand: Stand) -> None:
    """With ``byok = "client"`` what is no key is not sent to Lava as one; least of all a local key in another dress."""
    running = stand.start('[server]\nkeys = ["env:LOCAL_KEY"]\n[projects.byok]\nbyok = "client"\n')
    basic = base64.b64encode(f"user:{LOCAL_KEY}".encode()).decode()
    own = {"x-lava-proxy-key": LOCAL_KEY}
    for headers in (
        {"Authorization": f"Basic {basic}"},
        {"Authorization": f"Token {LOCAL_KEY}"},
        {"x-api-key": f"Bearer {LOCAL_KEY}"},
        {"Authorization": "Bearer two words"},
    ):
        with stand.untouched(running):
            our_error(stand.post("/openai/v1/x", headers={**own, **headers}, at=running), 400, "bad_request")
    assert stand.post("/openai/v1/x", headers={**own, "Authorization": "Bearer oneword"}, at=running).status == 200
    sound(
        stand.last,
        f"Bearer {mint_token(LAVA_KEY, connection_id=None, meter_slug=None, provider_key='oneword')}".encode(),
    )


def test_the_gate_comes_first(stand: Stand) -> None:
    """Host before Origin before key before routing: the first that fails answers, on known and unknown paths."""
    port = stand.daemon("keyed").port
    for path in ROUTES:
        everything_wrong = {"Origin": "https://evil", "Authorization": "Bearer nobody"}
        response = stand.ask("GET", path, headers=everything_wrong, at="keyed", host=f"evil:{port}")
        if path in PROBES:
            our_error(response, 403, "origin_not_allowed")
        else:
            our_error(response, 421, "host_not_allowed")
        our_error(stand.ask("GET", path, headers=everything_wrong, at="keyed"), 403, "origin_not_allowed")
        if path not in ("/", "/healthz", "/readyz"):
            our_error(stand.ask("GET", path, headers={"Authorization": "Bearer nobody"}, at="keyed"), 401)
    stream = stand.post("/v1/chat/completions", STREAM, {"Authorization": "Bearer nobody"}, at="keyed")
    our_error(stream, 401, "local_key_invalid")
