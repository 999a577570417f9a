"""Targets: a client decides what is asked of a provider, never where the request goes or who pays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest
from security_stand import (
    LAVA_KEY,
    Stand,
    case,
    head,
    made_up,
    our_error,
    refuse,
    sound,
    target_url,
)

from proxy.config.settings import ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path


OPENAI = "https://api.openai.com/v1"


def refuse_path(stand: Stand, path: str | bytes, status: int = 400, code: str | None = "bad_target") -> None:
    """This target gets our error and goes nowhere. (The connection may live on: the framing is sound.)"""
    line = b"GET %b HTTP/1.1" % (path.encode("latin-1") if isinstance(path, str) else path)
    with stand.untouched(), stand.client() as client:
        client.push(head(client.port, line))
        our_error(client.response(), status, code)


def went_to(stand: Stand, path: str, host: str = "api.openai.com") -> str:
    """This path is forwarded: the whole URL that Lava is asked to call, always at ``host``."""
    before = len(stand.upstream.requests)
    response = stand.ask("GET", path)
    assert response.status == 200, response.body
    assert len(stand.upstream.requests) == before + 1
    sound(stand.last)
    url = target_url(stand.last)
    # The outbound target is exactly the encoded URL: nothing that a second decoder could find in it.
    assert stand.last.target == b"/v1/forward?u=" + quote(url, safe="!'()*-._~").encode()
    assert urlsplit(url).netloc == host, url
    assert url.startswith(f"https://{host}/")
    return url


@case("PTH-01")
def test_dot_segments(stand: Stand) -> None:
    for path in ("/openai/v1/../../x", "/a/./b", "/openai/v1/..", "/..", "/openai/./v1/files", "/openai/v1/files/."):
        refuse_path(stand, path)


@case("PTH-02")
def test_encoded_dots(stand: Stand) -> None:
    for path in ("/openai/v1/%2e%2e/%2e%2e/x", "/openai/v1/%2E%2e/x", "/openai/v1/.%2e/x", "/openai/%2e/v1/files"):
        refuse_path(stand, path)
    assert went_to(stand, "/openai/v1/%252e%252e/%252e%252e/x") == f"{OPENAI}/%252e%252e/%252e%252e/x"


@case("PTH-03")
def test_encoded_slashes(stand: Stand) -> None:
    for path in ("/openai/v1/a\\b", "/openai/v1/a%5cb", "/openai/v1/a%5Cb", "/openai\\v1\\files", "/openai%5cv1/files"):
        refuse_path(stand, path)
    assert went_to(stand, "/openai/v1/files%2f..%2fx") == f"{OPENAI}/files%2f..%2fx"
    assert went_to(stand, "/openai/v1/a%2Fb/c") == f"{OPENAI}/a%2Fb/c"
    for path in ("/openai%2fv1/files", "/p%2fx/v1/files", "/p/def%2Fault/v1/files", "/%2fopenai/v1/files"):
        refuse_path(stand, path, 404, "project_not_found" if path.startswith("/p/") else "provider_not_found")


@case("PTH-04")
def test_doubled_slashes(stand: Stand) -> None:
    refuse_path(stand, "//evil.example/x", 404, "provider_not_found")
    refuse_path(stand, "///evil.example//x", 404, None)
    before = len(stand.upstream.requests)
    assert stand.post("///v1/chat/completions").status == 200
    assert stand.post("//v1//chat//completions").status == 200
    assert [target_url(each) for each in stand.upstream.requests[before:]] == [f"{OPENAI}/chat/completions"] * 2
    assert went_to(stand, "//openai//v1/files") == f"{OPENAI}/files"
    assert urlsplit(went_to(stand, "/openai//evil.example/x")).netloc == "api.openai.com"


@case("PTH-05")
def test_control_bytes(stand: Stand) -> None:
    for sign in ("%00", "%0d%0a", "%0D%0A", "%09", "%1f", "%7f"):
        refuse_path(stand, f"/openai/v1/a{sign}b")
        query = f"x=a{sign}b"
        assert went_to(stand, f"/openai/v1/files?{query}") == f"{OPENAI}/files?{query}"
    for byte in (b"\x00", b"\x09", b"\x0d", b"\x1f", b"\x7f"):
        refuse(stand, head(stand.daemon().port, b"GET /openai/v1/a%bb HTTP/1.1" % byte), 400)
    word = stand.nonce()
    went_to(stand, f"/openai/v1/{word}?x=%0d%0aInjected:%20yes%0d%0a%0d%0a")
    assert stand.line(word)["path"] == f"/openai/v1/{word}"


@case("PTH-08")
def test_client_u(stand: Stand) -> None:
    for query in (
        "u=https://evil/",
        "x&u=http://169.254.169.254/",
        "u=https%3A%2F%2Fevil%2F&u=b",
        "%75=https://evil/",
        "x=1&amp;u=https://evil/",
        "x=1;u=https://evil/",
        "u",
    ):
        # target_url asserts that there is one u
        assert went_to(stand, f"/openai/v1/files?{query}") == f"{OPENAI}/files?{query}"
    before = len(stand.upstream.requests)
    assert stand.post("/v1/chat/completions?u=https://evil/").status == 200
    assert target_url(stand.upstream.requests[before]) == f"{OPENAI}/chat/completions?u=https://evil/"


@case("PTH-09")
def test_userinfo(stand: Stand) -> None:
    assert went_to(stand, "/openai/@evil.example/") == f"{OPENAI}/@evil.example/"
    assert went_to(stand, "/openai/..@evil") == f"{OPENAI}/..@evil"
    refuse_path(stand, "/openai:80@evil/", 404, None)
    refuse_path(stand, "/openai@evil/x", 404, None)
    assert went_to(stand, "/openai/:443@evil/x") == f"{OPENAI}/:443@evil/x"
    assert went_to(stand, "/anthropic/v1@evil.example/x", "api.anthropic.com").startswith("https://api.anthropic.com/")
    assert went_to(stand, "/google/v1beta/@evil/x", "generativelanguage.googleapis.com")


@case("PTH-10")
def test_body_cannot_route(stand: Stand) -> None:
    document = {
        "model": "gpt-4o",
        "api_base": "http://evil",
        "base_url": "http://evil",
        "provider": "groq",
        "user_config": {"api_key": "x"},
        "extra_headers": {"Authorization": "Bearer evil", "X-Injected": "1"},
        "callbacks": ["http://evil"],
        "metadata": {"u": "http://evil"},
        "model_list": [{"model": "anthropic/claude"}],
    }
    body = json.dumps(document).encode()
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
        assert stand.post(path, body).status == 200
        sound(stand.last)
        assert stand.last.body == body
        assert target_url(stand.last) == f"{OPENAI}/chat/completions"
        assert stand.last.header(b"x-injected") is None


@case("PTH-11")
def test_forwarding_headers(stand: Stand) -> None:
    evil = {
        "X-Lava-Proxy-Anything": "evil",
        "X-Lava-Connection-Id": "evil",
        "X-Lava-Request-Id": "evil",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Uri": "/metrics",
        "X-Forwarded-Prefix": "/groq",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Original-URL": "/groq/v1/models",
        "X-Rewrite-URL": "/groq/v1/models",
        "Forwarded": "for=127.0.0.1;host=evil.example",
        "X-HTTP-Method-Override": "DELETE",
    }
    answer = stand.ask("GET", "/openai/v1/files", headers={**evil, "x-lava-metadata": '{"team":"web"}'})
    assert answer.status == 200
    sound(stand.last)
    assert stand.last.method == b"GET"
    assert target_url(stand.last) == f"{OPENAI}/files"
    assert (b"x-lava-metadata", b'{"team":"web"}') in stand.last.others()
    assert b"evil" not in stand.last.raw
    # They open nothing, either.
    with stand.untouched("keyed"):
        our_error(stand.ask("GET", "/openai/v1/files", headers=evil, at="keyed"), 401, "local_key_required")
    with stand.untouched():
        our_error(stand.ask("GET", "/openai/v1/files", headers={"x-lava-metadata": '{"a":1'}), 400, "bad_request")


@case("PTH-12")
def test_queries_survive(stand: Stand) -> None:
    for query in (
        "limit=2&after=x+y%20z%2B%26",
        "a=&&b&=c&a=1",
        "x=y+z%20&plus=+&pct=%25",
        "alt=sse",
        "q=%C3%A4%ff%zz",
        "a[]=1&b={}|^`<>\"'",
        "?",
        "",
    ):
        wanted = f"{OPENAI}/files?{query}" if query else f"{OPENAI}/files"
        assert went_to(stand, f"/openai/v1/files?{query}" if query else "/openai/v1/files") == wanted


PROVIDERS = {
    "http": "http://api.example.com/v1",
    "ip": "https://93.184.216.34/v1",
    "ipv6": "https://[2606:2800:220:1::1]/v1",
    "localhost": "https://localhost/v1",
    "sub-localhost": "https://a.localhost/v1",
    "loopback": "https://127.0.0.1/v1",
    "decimal": "https://2130706433/v1",
    "hex": "https://0x7f.1/v1",
    "userinfo": "https://user:pass-word-1@api.example.com/v1",
    "dots": "https://api.example.com/v1/../v2",
    "encoded dots": "https://api.example.com/v1/%2e%2e/v2",
    "internal": "https://metadata/v1",
    "query": "https://api.example.com/v1?u=x",
    "ftp": "ftp://api.example.com/v1",
}


def _config(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@case("PTH-14")
def test_provider_addresses(stand: Stand) -> None:
    folder = stand.folder / "provider-addresses"
    folder.mkdir()
    for name, url in PROVIDERS.items():
        text = f'[lava]\nsecret_key = "{LAVA_KEY}"\n[providers.own]\ndialect = "openai"\nbase_url = "{url}"\n'
        with pytest.raises(ConfigError) as raised:
            load(_config(folder, text), {})
        said = str(raised.value)
        assert "providers.own.base_url" in said, (name, said)
        assert "pass-word-1" not in said
        assert LAVA_KEY not in said
    for url in ("https://api.example.com/v1", "https://api.example.com:8443/v1"):
        text = f'[lava]\nsecret_key = "{LAVA_KEY}"\n[providers.own]\ndialect = "openai"\nbase_url = "{url}"\n'
        assert load(_config(folder, text), {}).providers["own"].base_url == url


@case("PTH-15")
def test_google_key(stand: Stand) -> None:
    key = made_up("AIza", "google")
    for query, left in (
        (f"key={key}", ""),
        (f"alt=sse&key={key}", "?alt=sse"),
        (f"key={key}&alt=sse&key={key}", "?alt=sse"),
        (f"k%65y={key}&x=1", "?x=1"),
    ):
        path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
        host = "generativelanguage.googleapis.com"
        assert went_to(stand, f"{path}?{query}", host) == f"https://{host}{path}{left}"
        assert key.encode() not in stand.last.raw
    stand.ask("GET", f"/no/such/path?key={key}")
    stand.ask("GET", f"/v1beta/%00?key={key}")
    word = stand.nonce()
    stand.ask("GET", f"/openai/v1/{word}?key={key}")
    stand.line(word)
    assert key not in stand.daemon().output()


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_other_ways_up_and_out(stand: Stand) -> None:
    """Dots, slashes and hosts in more spellings: refused, or harmless data behind the provider's own host."""
    for path in (
        "/openai/v1/..;/x",
        "/openai/..;a=b/x",
        "/openai/v1/%2e%2e;/x",
        "/openai/v1/...",
        "/openai/v1/%c0%ae%c0%ae/x",
        "/openai/v1/%uff0e%uff0e/x",
        "/openai/v1/.%252e/x",
    ):
        if "%c0" in path or "%u" in path:
            refuse_path(stand, path)
        else:
            assert went_to(stand, path) == OPENAI + path.removeprefix("/openai/v1").removeprefix("/openai"), path
    for path in (
        "/openai/v1/%2e./x",
        "/p/../openai/v1/files",
        "/p/%2e%2e/v1/files",
        "/./openai/v1/files",
        "/openai/v1/%",
        "/openai/v1/%2",
        "/openai/v1/%zz",
        "/openai/v1/%u002e",
    ):
        refuse_path(stand, path)
    # Dots joined to an encoded slash are one segment for us; the host and the base path stay what they are.
    assert went_to(stand, "/openai/%2e%2e%2fx") == f"{OPENAI}/%2e%2e%2fx"


def test_no_way_up_behind_a_prefix(stand: Stand) -> None:
    """A provider's prefix that goes leaves no dot segment behind, whichever way its slash and the dots are written."""
    for prefix in ("/v1", "", "/p/default/v1", "//v1/"):
        for name in ("groq%2f..", "groq%2F%2e%2E", "groq%2f.", "groq%2f%2e", "openai%2F..", "mistral%2f.%2e"):
            for method in ("GET", "DELETE", "HEAD"):
                with stand.untouched():
                    response = stand.ask(method, f"{prefix}/models/{name}")
                    assert (response.status, response.code) == (400, "bad_target"), (prefix, name)
    assert stand.ask("GET", "/v1/models/groq%2fa..b").status == 200
    assert target_url(stand.last) == "https://api.groq.com/openai/v1/models/a..b"


def test_names_that_are_not_providers(stand: Stand) -> None:
    """Whatever stands first in a path is a provider's name or nothing: no host, no port, no property of an object."""
    for first in (
        "api.openai.com",
        "openai.",
        "openai%00",
        "OPENAI",
        "openai,groq",
        "__class__",
        "constructor",
        "https:",
        "http%3A",
        "169.254.169.254",
        "[::1]",
        "p",
        "v2",
        "forward",
        "rewrite",
        "dashboard",
    ):
        if first == "openai%00":
            refuse_path(stand, f"/{first}/v1/x")
        else:
            code = "path_not_found" if first in ("p", "v2") else "provider_not_found"
            refuse_path(stand, f"/{first}/v1/x", 404, code)


def test_models_cannot_leave_their_provider(stand: Stand) -> None:
    """A model's name decides between known providers and is otherwise data."""
    for model in (
        "https://evil/x",
        "//evil/x",
        "../../x",
        "openai/../../x",
        "evil.example/gpt",
        "openai@evil/gpt",
        "gpt-4o\r\nX-Evil: 1",
        "gpt-4o\x00",
        "ä" * 300,
        "a" * 5000,
        "openai/openai/openai/x",
    ):
        response = stand.post("/v1/chat/completions", {"model": model, "messages": []})
        assert response.status == 200, (model, response.body)
        sound(stand.last)
        assert target_url(stand.last) == f"{OPENAI}/chat/completions"
        assert stand.last.header(b"x-evil") is None
        assert json.loads(stand.last.body)["model"] == model.removeprefix("openai/")
    for model in ("models/../x", "%2e%2e", "gpt-4o%2f..", "..", "x/../../y", "@evil"):
        if model in ("gpt-4o%2f..", "@evil"):
            assert stand.ask("GET", f"/v1/models/{model}").status == 200
            assert target_url(stand.last).startswith(f"{OPENAI}/models/")
        else:
            refuse_path(stand, f"/v1/models/{model}")


def test_projects_cannot_be_guessed_out_of_paths(stand: Stand) -> None:
    """A project's name in path or header is a name: unknown ones are 404, odd ones nothing else."""
    for name in ("..", "%2e%2e", "default%00", "DEFAULT", "default/../default", "*", "default,default", "__proto__"):
        response = stand.ask("GET", f"/p/{name}/openai/v1/files")
        if name in ("..", "%2e%2e", "default%00", "default/../default"):
            our_error(response, 400, "bad_target")
        else:
            our_error(response, 404, "project_not_found")
        response = stand.ask("GET", "/openai/v1/files", headers={"x-lava-proxy-project": name})
        our_error(response, 404, "project_not_found")
    response = stand.ask(
        "GET", "/openai/v1/files", headers=[("x-lava-proxy-project", "default"), ("x-lava-proxy-project", "other")]
    )
    our_error(response, 400)


def test_metadata_is_judged(stand: Stand) -> None:
    """What is no object of short strings is refused; what is, arrives as ASCII and once."""
    for value in (
        "[]",
        '"x"',
        "{",
        '{"a":1}',
        '{"a":null}',
        '{"a":{}}',
        '{"a b":"x"}',
        '{"a":"' + "x" * 300 + '"}',
        '{"":"x"}',
        "{" + ",".join(f'"k{n}":"v"' for n in range(101)) + "}",
        "[" * 5000,
        "NaN",
    ):
        with stand.untouched():
            our_error(stand.ask("GET", "/openai/v1/files", headers={"x-lava-metadata": value}), 400, "bad_request")
    escaped = {"x-lava-metadata": '{"a":"\\u00e4\\r\\nX-Evil: 1"}'}
    assert stand.ask("GET", "/openai/v1/files", headers=escaped).status == 200
    assert stand.last.header(b"x-evil") is None
    with stand.untouched():
        twice = [("x-lava-metadata", '{"a":"1"}'), ("x-lava-metadata", '{"b":"2"}')]
        our_error(stand.ask("GET", "/openai/v1/files", headers=twice), 400, "bad_request")
