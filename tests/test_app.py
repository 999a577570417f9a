"""The application as a whole, over real sockets: control addresses, browsers, refusals, reload, what is recorded."""

from __future__ import annotations

import gc
import json
import signal
import threading
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from configurations import loaded
from ports import free_port
from rawclient import RawClient, ask, post
from upstream import Peer, Upstream, answer, chunked, serve

from proxy import daemon as server
from proxy.app import create_app
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.routing import locate, route
from proxy.gateway.template import Prepared, Template
from proxy.http.framing import Head
from proxy.protocol.headers import read
from proxy.upstream import create_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import Daemon, StartDaemon


KEY = "aks_live_" + "a" * 24
LOCAL = "local-" + "l" * 20
BOUND = "bound-" + "b" * 20
CHAT = {"model": "gpt-4o", "messages": []}


@pytest.fixture
def keyed(daemon: StartDaemon) -> Callable[..., Daemon]:
    """A daemon that wants a local key, before an upstream that is Lava."""

    def start(upstream: Upstream, more: str = "") -> Daemon:
        config = (
            f'default_project = "main"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n'
            '[projects.main]\n[projects.web]\nmeter = "m"\nkeys = ["env:BOUND"]\n'
            f'[server]\nkeys = ["env:LOCAL"]\n{more}'
        )
        env = {"KEY": KEY, "LOCAL": LOCAL, "BOUND": BOUND}
        return daemon(config, env=env, secrets=[KEY, LOCAL, BOUND])

    return start


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# --- control addresses -----------------------------------------------------------------------------------------------


def test_health_needs_no_key_and_metrics_do(keyed: Callable[..., Daemon]) -> None:
    """/, /healthz and /readyz are open; /metrics wants a key that is good for every project; /dashboard is to come."""
    with Upstream(answer()) as upstream:
        port = keyed(upstream).port
        assert ask(port, "GET", "/healthz").json() == {"status": "ok"}
        assert ask(port, "GET", "/readyz").json() == {"status": "ok"}
        assert ask(port, "HEAD", "/").status == 200
        assert ask(port, "GET", "/metrics").code == "local_key_required"
        assert ask(port, "GET", "/metrics", headers=bearer(BOUND)).code == "project_not_allowed"
        metrics = ask(port, "GET", "/metrics", headers=bearer(LOCAL))
        assert metrics.status == 200
        assert b"lava_proxy_build_info" in metrics.body
        assert ask(port, "GET", "/dashboard", headers=bearer(LOCAL)).status == 404
        assert ask(port, "POST", "/healthz", b"", bearer(LOCAL)).code == "method_not_allowed"


@pytest.mark.parametrize("path", ["/", "/p/main", "/p/main/", "/openai", "/groq/v1", "/v1", "/p/main/v1"])
def test_a_base_address_says_what_this_is(keyed: Callable[..., Daemon], path: str) -> None:
    """Tools that ask their base URL get an answer, with GET and HEAD; browsers get a page without scripts."""
    with Upstream(answer()) as upstream:
        port = keyed(upstream).port
        assert ask(port, "GET", path, headers=bearer(LOCAL)).json()["name"] == "lava-proxy"
        assert ask(port, "HEAD", path, headers=bearer(LOCAL)).status == 200
        page = ask(port, "GET", path, headers={**bearer(LOCAL), "Accept": "text/html"})
        assert (page.header("content-type") or "").startswith("text/html")
        assert page.header("content-security-policy") == "default-src 'none'"
        assert upstream.accepted == 0


def test_a_base_address_links_our_own_documentation(keyed: Callable[..., Daemon]) -> None:
    """To the page that the package's own metadata names, and to Lava's beside it."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    home = project["urls"]["Homepage"]
    with Upstream(answer()) as upstream:
        port = keyed(upstream).port
        about = ask(port, "GET", "/").json()
        assert (about["docs"], about["lava_docs"]) == (home, "https://www.lava.so/docs")
        page = ask(port, "GET", "/", headers={"Accept": "text/html"}).body.decode()
        assert f'href="{home}"' in page
        assert 'href="https://www.lava.so/docs"' in page


def test_a_socket_for_realtime_is_told_in_the_log(keyed: Callable[..., Daemon]) -> None:
    """A client of a realtime or live API shows the status alone: the log says what it means, and where it came."""
    with Upstream(answer()) as upstream:
        daemon = keyed(upstream)
        opening = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        refused = ask(daemon.port, "GET", "/v1/realtime?model=gpt-realtime", headers={**bearer(LOCAL), **opening})
        assert (refused.status, refused.code, upstream.accepted) == (426, "upgrade_required", 0)
        eventually(lambda: "realtime and Gemini's live API cannot be used here" in daemon.output())
        assert "GET /v1/realtime" in daemon.output()


def test_ready_says_why_not(daemon: StartDaemon) -> None:
    """Without any Lava key the daemon runs, says why it is not ready, and requests get 401 lava_key_missing."""
    port = daemon("").port
    ready = ask(port, "GET", "/readyz")
    assert ready.status == 503
    assert "LAVA_SECRET_KEY" in ready.json()["reason"]
    refused = post(port, "/v1/chat/completions", CHAT)
    assert (refused.status, refused.code) == (401, "lava_key_missing")
    assert "LAVA_SECRET_KEY" in refused.json()["error"]["lava_proxy"]["hint"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "shape"),
    [
        ("/v1/chat/completions", {}, "openai"),
        ("/v1/messages", {}, "anthropic"),
        ("/anthropic/v1/complete", {}, "anthropic"),
        ("/v1beta/models/x:generateContent", {}, "google"),
        ("/google/v1beta/models", {}, "google"),
        ("/elevenlabs/v1/voices", {}, "openai"),
        ("/nothing/at/all", {}, "openai"),
        ("/nothing/at/all", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/nothing/at/all", {"x-goog-api-key": "wrong"}, "google"),
    ],
)
def test_refusals_speak_the_routes_dialect(
    keyed: Callable[..., Daemon], path: str, headers: dict[str, str], shape: str
) -> None:
    """The same refusal for known and unknown addresses, each in the dialect that its client reads, with ids to quote."""
    with Upstream(answer()) as upstream:
        refused = ask(keyed(upstream).port, "POST", path, b"{}", headers)
        body = refused.json()
        assert refused.status == 401
        assert refused.code in ("local_key_required", "local_key_invalid")
        assert refused.header("www-authenticate") == "Bearer"
        request_id = refused.header("x-lava-proxy-request-id")
        assert refused.header("x-request-id") == refused.header("request-id") == request_id
        if shape == "anthropic":
            assert body["type"] == "error"
            assert body["request_id"] == request_id
        elif shape == "google":
            assert body["error"]["code"] == 401
            assert body["error"]["status"] == "UNAUTHENTICATED"
        else:
            assert body["error"]["code"] == refused.code
        assert body["error"]["lava_proxy"]["code"] == refused.code
        assert upstream.accepted == 0


def test_a_page_gets_nothing_and_a_listed_one_gets_cors(keyed: Callable[..., Daemon]) -> None:
    """A foreign Origin is refused before anything else; a listed one passes, and may read what it gets."""
    with Upstream(answer(body=b"{}", headers=[(b"Access-Control-Allow-Origin", b"*")])) as upstream:
        port = keyed(upstream, 'allowed_origins = ["https://good.example", "vscode-webview://*"]\n').port
        foreign = ask(port, "POST", "/v1/chat/completions", b"{}", {**bearer(LOCAL), "Origin": "https://evil.example"})
        assert (foreign.status, foreign.code) == (403, "origin_not_allowed")
        assert foreign.header("access-control-allow-origin") is None
        assert upstream.accepted == 0
        for origin in ("https://good.example", "vscode-webview://abc"):
            came = ask(
                port,
                "POST",
                "/openai/v1/chat/completions",
                b"{}",
                {**bearer(LOCAL), "Origin": origin, "Sec-Fetch-Site": "cross-site"},
            )
            assert came.status == 200
            assert came.header("access-control-allow-origin") == origin
            assert came.header("vary") == "Origin"
        unkeyed = ask(port, "POST", "/openai/v1/x", b"{}", {"Origin": "https://good.example"})
        assert unkeyed.code == "local_key_required"
        assert unkeyed.header("access-control-allow-origin") == "https://good.example"


LIMITED = answer(
    429,
    b'{"a": 1}',
    [
        (b"retry-after", b"7"),
        (b"retry-after-ms", b"7000"),
        (b"x-should-retry", b"true"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"request-id", b"req_1"),
        (b"access-control-expose-headers", b"*"),
    ],
)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-custom: 1\r\ntransfer-encoding: chunked\r\n\r\n"
UNAUTHORIZED = answer(401, b'{"error":{"message":"no","code":"x","status":401}}')
MODELS = answer(body=b'{"object":"list","data":[]}')


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (400, "forward_endpoint_not_supported", "lava_unsupported_target"),
        (400, "forward_bad_model", "lava_error"),
        (404, "forward_not_found", "lava_error"),
    ],
)
@pytest.mark.parametrize(("model", "hint"), [("antropic/claude-x", 'did you mean "anthropic/..."?'), ("gpt-9", "")])
def test_a_refusal_by_lava_itself_has_the_hint_on_the_models_name(
    keyed: Callable[..., Daemon], status: int, code: str, ours: str, model: str, hint: str
) -> None:
    """Lava refuses what nothing here knows either: what was perhaps meant stands behind what is wrong, before Lava's words.
    A name that is known has no hint."""
    error = {"error": {"message": "No such thing.", "code": code, "status": status}}
    with Upstream(answer(status, json.dumps(error).encode(), [(b"content-type", b"application/json")])) as upstream:
        port = keyed(upstream, "").port
        came = ask(port, "POST", "/v1/chat/completions", json.dumps({**CHAT, "model": model}).encode(), bearer(LOCAL))
    told = came.json()["error"]
    assert (came.status, told["code"], came.header("x-lava-proxy-error")) == (status, ours, ours)
    what, _, said = told["message"].partition(told["lava_proxy"]["hint"])
    assert said == " Lava said: «No such thing.»"
    meant = f'No alias, provider or pattern fits this model\'s name, so it went to "openai": {hint} ' if hint else ""
    assert what.endswith(f". {meant}")


PAGE = "https://good.example"


@pytest.mark.parametrize(
    ("comes", "method", "path", "headers", "status", "exposed"),
    [
        (answer(body=b"{}"), "POST", "/v1/chat/completions", bearer(LOCAL), 200, "x-lava-proxy-request-id"),
        (LIMITED, "POST", "/v1/chat/completions", bearer(LOCAL), 429, "retry-after-ms"),
        (LIMITED, "POST", "/v1/chat/completions", bearer(LOCAL), 429, "x-should-retry"),
        (LIMITED, "POST", "/v1/chat/completions", bearer(LOCAL), 429, "x-ratelimit-remaining-requests"),
        (LIMITED, "POST", "/v1/chat/completions", bearer(LOCAL), 429, "request-id"),
        (STREAM + chunked(b"data: [DONE]\n\n"), "POST", "/openai/v1/x", bearer(LOCAL), 200, "x-custom"),
        (UNAUTHORIZED, "POST", "/v1/chat/completions", bearer(LOCAL), 401, "x-should-retry"),
        (b"nonsense\r\n\r\n", "POST", "/v1/chat/completions", bearer(LOCAL), 502, "x-should-retry"),
        (MODELS, "GET", "/v1/models", bearer(LOCAL), 200, "x-lava-proxy-project"),
        (b"", "POST", "/v1/chat/completions", {}, 401, "www-authenticate"),
        (b"", "POST", "/nothing/at/all", bearer(LOCAL), 404, "x-request-id"),
        (b"", "POST", "/v1/chat/completions", {**bearer(LOCAL), "Host": "other"}, 421, "x-should-retry"),
        (b"", "POST", "/v1/chat/completions", {**bearer(LOCAL), "Content-Length": "99999999"}, 413, "request-id"),
        (b"", "GET", "/", {}, 200, "content-type"),
        (b"", "GET", "/healthz", {}, 200, "content-type"),
        (b"", "GET", "/metrics", bearer(LOCAL), 200, "content-type"),
        # Refused before there is a request.
        (b"", "GET", "/v1/models?key=" + "a" * 9000, {}, 414, "x-should-retry"),
        (b"", "PROPFIND", "/v1/models", {}, 405, "allow"),
        (b"", "GET", "/v1/models", {f"x-{number}": "" for number in range(101)}, 431, "request-id"),
    ],
)
def test_a_listed_page_sees_every_header_of_every_answer(
    keyed: Callable[..., Daemon],
    comes: bytes,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    exposed: str,
) -> None:
    """Whoever made it: all names of that answer are exposed, and nothing else of CORS stands in it than ours."""
    sent = {**headers, "Origin": PAGE}
    host = sent.pop("Host", None)
    content = b"{}" if method == "POST" and "Content-Length" not in sent else None
    with Upstream(serve(comes)) as upstream:
        came = ask(keyed(upstream, f'allowed_origins = ["{PAGE}"]\n').port, method, path, content, sent, host=host)
    assert came.status == status
    assert came.header("access-control-allow-origin") == PAGE
    assert "Origin" in [value for name, value in came.headers if name == "vary"]
    named = set((came.header("access-control-expose-headers") or "").split(", "))
    assert exposed in named
    cors = {"access-control-allow-origin", "access-control-expose-headers", "vary"}
    framing = {"transfer-encoding", "connection"}
    assert {name for name, _ in came.headers} - cors - framing <= named


@pytest.mark.parametrize(
    "origins",
    [[], ["https://evil.example"], [PAGE, "https://evil.example"], [PAGE, PAGE], [f"{PAGE} {PAGE}"], [PAGE + "x"]],
)
def test_no_other_page_reads_what_was_refused_early(keyed: Callable[..., Daemon], origins: list[str]) -> None:
    """Only the one listed origin of a head makes its refusal readable."""
    with Upstream(answer()) as upstream:
        port = keyed(upstream, f'allowed_origins = ["{PAGE}"]\n').port
        came = ask(port, "PROPFIND", "/v1/models", headers=[("Origin", each) for each in origins])
    assert came.status == 405
    assert not [name for name, _ in came.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("listed", [True, False])
def test_a_listed_page_reads_what_is_refused_inside_its_body(keyed: Callable[..., Daemon], listed: bool) -> None:
    """The request was good, and is on its way to Lava, when its body breaks: what that is answered the page may read."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.gone()
        gone.set()

    with Upstream(script) as upstream:
        running = keyed(upstream, f'allowed_origins = ["{PAGE}"]\n')
        head = [*bearer(LOCAL).items(), ("Transfer-Encoding", "chunked"), *([("Origin", PAGE)] if listed else [])]
        with RawClient(running.port) as client:
            client.request("POST", "/openai/v1/files", None, head)
            client.send(b"1\r\nx\r\n")
            upstream.wait(lambda: len(upstream.requests) == 1)
            client.send(b"zz\r\n")
            came = client.response()
        assert gone.wait(20)
    assert (came.status, came.code) == (400, "bad_request")
    cors = {name: value for name, value in came.headers if name.startswith("access-control-")}
    if listed:
        assert cors["access-control-allow-origin"] == PAGE
        assert {"x-should-retry", "request-id"} <= {*cors["access-control-expose-headers"].split(", ")}
    else:
        assert not cors


@pytest.mark.parametrize(
    ("comes", "method", "path", "headers", "status"),
    [
        (UNAUTHORIZED, "POST", "/v1/chat/completions", bearer(LOCAL), 401),
        (b"nonsense\r\n\r\n", "POST", "/v1/chat/completions", bearer(LOCAL), 502),
        (MODELS, "GET", "/v1/models", bearer(LOCAL), 200),
        (b"", "POST", "/v1/chat/completions", {}, 401),
        (b"", "GET", "/nothing/at/all", bearer(LOCAL), 404),
        (b"", "GET", "/healthz", {"Origin": "https://evil.example"}, 403),
        (b"", "GET", "/", {"Sec-Fetch-Site": "cross-site"}, 403),
        (b"", "TRACE", "/", {}, 405),
        (b"", "GET", "/" + "a" * 9000, {}, 414),
        (b"", "GET", "/v1/realtime", {**bearer(LOCAL), "Upgrade": "websocket", "Connection": "Upgrade"}, 426),
        (b"", "GET", "/", {}, 200),
        (b"", "GET", "/", {"Accept": "text/html"}, 200),
        (b"", "HEAD", "/openai", bearer(LOCAL), 200),
        (b"", "GET", "/healthz", {}, 200),
        (b"", "GET", "/readyz", {}, 200),
        (b"", "GET", "/metrics", bearer(LOCAL), 200),
    ],
)
def test_what_we_say_ourselves_is_for_no_other_page(
    keyed: Callable[..., Daemon], comes: bytes, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """Refusals, explained errors, lists and control pages: not sniffed, and not embedded elsewhere. What is forwarded is not
    ours to restrict."""
    with Upstream(serve(comes)) as upstream:
        came = ask(keyed(upstream).port, method, path, b"{}" if method == "POST" else None, headers)
    assert came.status == status
    assert came.header("x-content-type-options") == "nosniff"
    assert came.header("cross-origin-resource-policy") == "same-origin"


def test_a_preflight_of_a_listed_origin(keyed: Callable[..., Daemon]) -> None:
    """204 without a key: that exact origin, the asked headers echoed, no credentials; anybody else gets no CORS header."""
    with Upstream(answer()) as upstream:
        port = keyed(upstream, 'allowed_origins = ["https://good.example"]\n').port
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-y"}
        good = ask(port, "OPTIONS", "/v1/chat/completions", None, {**asked, "Origin": "https://good.example"})
        assert good.status == 204
        assert good.header("access-control-allow-origin") == "https://good.example"
        assert good.header("access-control-allow-headers") == "authorization, x-y"
        assert good.header("access-control-allow-credentials") is None
        assert "POST" in (good.header("access-control-allow-methods") or "")
        evil = ask(port, "OPTIONS", "/v1/chat/completions", None, {**asked, "Origin": "https://evil.example"})
        assert evil.status == 403
        assert not [name for name, _ in evil.headers if name.startswith("access-control-")]


def test_expect_continue_is_answered_only_for_those_who_may(keyed: Callable[..., Daemon]) -> None:
    """A wrong key: 401 at once, no 100, closed. A good one: one 100, then the answer."""
    with Upstream(answer(body=b"{}")) as upstream:
        port = keyed(upstream).port
        head = (
            b"POST /openai/v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 2\r\nExpect: 100-continue\r\n" % port
        )
        with RawClient(port) as wrong:
            wrong.send(head + b"Authorization: Bearer wrong\r\n\r\n")
            assert wrong.response().code == "local_key_invalid"
            assert wrong.closed(5)
        with RawClient(port) as good:
            good.send(head + b"Authorization: Bearer " + LOCAL.encode() + b"\r\n\r\n")
            assert good.head().status == 100
            good.send(b"{}")
            assert good.response().status == 200
        assert len(upstream.requests) == 1
        assert upstream.requests[0].header(b"expect") is None


# --- reload ----------------------------------------------------------------------------------------------------------


def test_reload_swaps_for_new_requests_and_leaves_streams_alone(keyed: Callable[..., Daemon]) -> None:
    """SIGHUP: an open stream goes on, a removed key is dead at once, a new one works; a bad file changes nothing."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            received = peer.request()
            if received is None:
                return
            if b'"stream"' in received.body:
                peer.send(
                    answer(200, b"", [(b"Transfer-Encoding", b"chunked")], length=False), chunked(b"one", end=False)
                )
                assert go.wait(20)
                peer.send(chunked(b"two"))
            else:
                peer.send(answer(body=b"{}"))

    with Upstream(script) as upstream:
        running = keyed(upstream)
        port, old = running.port, running.config.read_text()
        with RawClient(port) as streaming:
            streaming.post_json("/openai/v1/chat/completions", {**CHAT, "stream": True}, bearer(LOCAL))
            streaming.head()
            assert streaming.chunk() == b"one"

            running.config.write_text(old.replace('keys = ["env:LOCAL"]', 'keys = ["second-local-key-0123456789"]'))
            running.process.send_signal(signal.SIGHUP)
            eventually(lambda: post(port, "/openai/v1/x", {}, bearer(LOCAL)).code == "local_key_invalid")
            second = bearer("second-local-key-0123456789")
            assert post(port, "/openai/v1/x", {}, second).status == 200

            running.config.write_text(old + "\nnonsense = 1\n")
            running.process.send_signal(signal.SIGHUP)
            eventually(lambda: "nonsense" in running.output())
            assert post(port, "/openai/v1/x", {}, second).status == 200
            counted = ask(port, "GET", "/metrics", headers=second).body.decode()
            failures = [
                line for line in counted.splitlines() if line.startswith("lava_proxy_config_reload_failures_total")
            ]
            assert float(failures[0].split()[1]) >= 1

            go.set()
            assert streaming.chunk() == b"two"
        running.config.write_text(old)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_every_request_is_one_line_and_one_count(keyed: Callable[..., Daemon]) -> None:
    """Forwarded and refused requests alike: one JSON line with the contract's fields, one count with bounded labels."""
    said = {"model": "gpt-4o", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    raw = answer(
        body=json.dumps(said).encode(),
        headers=[(b"Content-Type", b"application/json"), (b"x-lava-request-id", b"req_l")],
    )
    with Upstream(raw) as upstream:
        running = keyed(upstream)
        came = post(running.port, "/p/web/v1/chat/completions?key=secret-in-query", CHAT, bearer(LOCAL))
        post(running.port, "/v1/chat/completions", CHAT, bearer("wrong-key"))
        ask(running.port, "GET", "/healthz")

        def lines() -> list[dict[str, Any]]:
            events = [json.loads(line) for line in running.output().splitlines() if line.startswith("{")]
            return [event for event in events if event["event"] == "request"]

        eventually(lambda: len(lines()) >= 2)
        forwarded, refused = lines()
        assert forwarded["path"] == "/p/web/v1/chat/completions"
        assert (forwarded["project"], forwarded["provider"], forwarded["model"]) == ("web", "openai", "gpt-4o")
        assert (forwarded["status"], forwarded["outcome"], forwarded["lava_request_id"]) == (200, "ok", "req_l")
        assert (forwarded["input_tokens"], forwarded["output_tokens"]) == (3, 4)
        assert forwarded["request_id"] == came.header("x-lava-proxy-request-id")
        assert (refused["status"], refused["outcome"], refused["error"]) == (401, "refused", "local_key_invalid")
        assert "secret-in-query" not in running.output()
        counted = ask(running.port, "GET", "/metrics", headers=bearer(LOCAL)).body.decode()
        assert 'lava_proxy_requests_total{outcome="ok",project="web",provider="openai",status="200"} 1.0' in counted
        assert "lava_proxy_streams_in_flight 1.0" in counted  # the request for the metrics itself


def test_one_connection_cannot_fill_the_memory(tmp_path: Path) -> None:
    """However many spellings of however many models come on a connection, only a few are remembered with it."""
    settings = loaded(tmp_path, f'[lava]\nsecret_key = "{KEY}"\n')
    config = ActiveConfig(settings, create_engine(settings.upstream))
    template = Template(config, "POST", b"/v1/chat/completions", b"", read([]))
    template.endpoint = locate("POST", template.path, {}, config.table)
    found = route("POST", template.endpoint, b"", "default", "gpt-4o", config.table)
    prepared = config.destination.prepare(template, found)
    for number in range(10_000):
        template.keep(b'"gpt-%d"' % number, prepared)
    assert 0 < len(template.prepared) <= 32


@pytest.mark.parametrize("path", ["/v1beta/models/x:countTokens", "/v1/chat/completions", "/openai/v1/files"])
def test_a_key_in_the_address_is_not_remembered(tmp_path: Path, path: str) -> None:
    """It travels nowhere as part of an address, and what is kept of its head ends with its connection."""

    def kept() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, Head | Template | Prepared)]

    gc.collect()  # what earlier tests left
    before = len(kept())
    with Upstream(serve(answer(200, b"{}"))) as upstream:
        text = f'[lava]\nsecret_key = "{KEY}"\nbase_url = "{upstream.url}"\n[server]\nport = {free_port()}\n'
        with server.background(loaded(tmp_path, text), create_app=create_app) as running:
            for query in ("key=AIza-one&a=1", "a=1&k%65y=AIza-two"):
                assert ask(running.settings.server.port, "POST", f"{path}?{query}", b"{}").status == 200
                assert b"a%3D1" in upstream.requests[-1].target
                assert b"AIza" not in upstream.requests[-1].raw
            eventually(lambda: len(kept()) == before)
