"""``GET /v1/models``: Lava's list and the aliases, in the shape that the client reads."""

from __future__ import annotations

import gzip
import json
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from rawclient import ask
from upstream import Upstream, answer

from proxy.lava.tokens import mint_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import Daemon, StartDaemon

KEY = "aks_live_" + "c" * 24
SPEND = "lava_sk_" + "c" * 24
LIST = {
    "object": "list",
    "data": [
        {"id": "gpt-5", "object": "model", "created": 1_700_000_000, "owned_by": "openai"},
        {"id": "fast", "object": "model", "created": 1, "owned_by": "somebody"},
        {"no": "id"},
    ],
}


@pytest.fixture
def start(daemon: StartDaemon) -> Callable[[Upstream], Daemon]:
    """A daemon with two aliases and a project with a spend key."""

    def run(upstream: Upstream) -> Daemon:
        config = (
            f'default_project = "main"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[projects.main]\n'
            '[projects.agent]\nspend_key = "env:SPEND"\n'
            '[models]\nfast = "groq/llama"\nsmart = "anthropic/claude"\n"x-*" = "together"\n'
        )
        return daemon(config, env={"KEY": KEY, "SPEND": SPEND}, secrets=[KEY, SPEND])

    return run


def listed(body: Any = LIST, **headers: bytes) -> bytes:
    pairs = [(b"Content-Type", b"application/json"), (b"x-lava-request-id", b"req_list")]
    return answer(200, json.dumps(body).encode(), [*pairs, *((k.encode(), v) for k, v in headers.items())])


def test_openais_shape(start: Callable[[Upstream], Daemon]) -> None:
    """Aliases first, each once; patterns are no models; entries without an id are left out."""
    with Upstream(listed()) as upstream:
        came = ask(start(upstream).port, "GET", "/v1/models/")
        assert came.json()["object"] == "list"
        assert [entry["id"] for entry in came.json()["data"]] == ["fast", "smart", "gpt-5"]
        assert came.json()["data"][0]["owned_by"] == "lava-proxy"
        assert came.header("x-lava-request-id") == "req_list"
        assert came.header("x-lava-proxy-provider") == "lava"
        sent = upstream.requests[0]
        assert (sent.method, sent.target) == (b"GET", b"/v1/models")
        assert sent.header(b"authorization") == b"Bearer " + KEY.encode()


def test_codex_accepts_the_list(start: Callable[[Upstream], Daemon]) -> None:
    """Codex names its version and wants ``models``, whose entries would replace its own instructions: there are none. What
    every other tool reads is there as well, and only Codex gets the field."""
    with Upstream(listed()) as upstream:
        port = start(upstream).port
        usual = ask(port, "GET", "/v1/models?version=1&x_client_version=1").json()
        assert ask(port, "GET", "/v1/models?client_version=0.130.0").json() == {**usual, "models": []}
        assert ask(port, "GET", "/p/main/v1/models?a=b&client_version=0.130.0").json() == {**usual, "models": []}
        assert [entry["id"] for entry in usual["data"]] == ["fast", "smart", "gpt-5"]
        assert "models" not in usual


def test_anthropics_shape(start: Callable[[Upstream], Daemon]) -> None:
    """One page with everything on it, dates in RFC 3339."""
    with Upstream(listed()) as upstream:
        page = ask(
            start(upstream).port, "GET", "/v1/models?limit=5", headers={"anthropic-version": "2023-06-01"}
        ).json()
        assert [entry["id"] for entry in page["data"]] == ["fast", "smart", "gpt-5"]
        assert page["data"][2]["created_at"] == "2023-11-14T22:13:20Z"
        assert all(entry["type"] == "model" for entry in page["data"])
        assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "fast", "gpt-5")


def test_googles_shape(start: Callable[[Upstream], Daemon]) -> None:
    """Google's own client asks the same address with its own header."""
    with Upstream(listed()) as upstream:
        page = ask(start(upstream).port, "GET", "/v1/models", headers={"x-goog-api-key": "any"}).json()
        assert [entry["name"] for entry in page["models"]] == ["models/fast", "models/smart", "models/gpt-5"]


def test_the_projects_own_credential_asks(start: Callable[[Upstream], Daemon]) -> None:
    """A spend key sees the list that it may use."""
    with Upstream(listed()) as upstream:
        assert ask(start(upstream).port, "GET", "/p/agent/v1/models").status == 200
        assert upstream.requests[0].header(b"authorization") == b"Bearer " + SPEND.encode()


def test_without_a_key_the_list_is_asked_for_without_one(daemon: StartDaemon) -> None:
    """Lava gives its list to anybody."""
    with Upstream(listed()) as upstream:
        port = daemon(f'[lava]\nbase_url = "{upstream.url}"\n').port
        assert ask(port, "GET", "/v1/models").status == 200
        assert upstream.requests[0].header(b"authorization") is None


def test_a_compressed_list_is_read(start: Callable[[Upstream], Daemon]) -> None:
    """Nobody asked for compression, but somebody in between may do it."""
    body = gzip.compress(json.dumps(LIST).encode())
    with Upstream(answer(200, body, [(b"Content-Encoding", b"gzip")])) as upstream:
        assert len(ask(start(upstream).port, "GET", "/v1/models").json()["data"]) == 3


# --- one model -------------------------------------------------------------------------------------------------------

ANTHROPIC = {"anthropic-version": "2023-06-01"}
GOOGLE = {"x-goog-api-key": "any"}


SPELLINGS = [
    ("gpt-5", "gpt-5"),
    ("fast", "fast"),
    ("claude-opus-4-6", "claude-opus-4-6"),
    ("gemini-2.5-flash", "gemini-2.5-flash"),
    ("Qwen%2FQwen3-Coder", "Qwen/Qwen3-Coder"),
    ("Qwen/Qwen3-Coder", "Qwen/Qwen3-Coder"),
    ("openai%2Fgpt-5", "openai/gpt-5"),
    ("groq/Qwen/Qwen3-Coder", "groq/Qwen/Qwen3-Coder"),
    ("llama3.2:latest", "llama3.2:latest"),
    ("g%C3%BCnstig", "g\u00fcnstig"),
    ("gpt%2D5/", "gpt-5"),
]


def test_a_listed_model_is_retrieved_under_the_name_that_was_asked(start: Callable[[Upstream], Daemon]) -> None:
    """Whoever made it, whatever the client speaks, and however its name is spelled in the address."""
    names = ["gpt-5", "claude-opus-4-6", "gemini-2.5-flash", "Qwen/Qwen3-Coder", "llama3.2:latest", "g\u00fcnstig"]
    with Upstream(listed({"data": [{"id": each, "created": 5, "owned_by": "x"} for each in names]})) as upstream:
        port = start(upstream).port
        for path, name in SPELLINGS:
            for base in ("/v1", "", "/v1/v1", "/p/main/v1"):
                model = ask(port, "GET", f"{base}/models/{path}").json()
                owner = "lava-proxy" if name == "fast" else "x"
                assert (model["id"], model["owned_by"]) == (name, owner), f"{base}/models/{path}"
            page = ask(port, "GET", f"/v1/models/{path}", headers=ANTHROPIC).json()
            assert (page["type"], page["id"]) == ("model", name)
            assert ask(port, "GET", f"/v1/models/{path}", headers=GOOGLE).json()["name"] == f"models/{name}"
        assert {request.target for request in upstream.requests} == {b"/v1/models"}


def test_head_is_answered_as_get_without_a_body(start: Callable[[Upstream], Daemon]) -> None:
    """For the list and for one of it."""
    with Upstream(listed()) as upstream:
        port = start(upstream).port
        for path in ("/v1/models", "/v1/models/gpt-5", "/v1/models/fast"):
            came, whole = ask(port, "HEAD", path), ask(port, "GET", path)
            assert (came.status, came.body) == (200, b"")
            assert came.header("content-length") == str(len(whole.body))


def test_an_unlisted_model_is_asked_of_its_provider(start: Callable[[Upstream], Daemon]) -> None:
    """A fine-tuned model is in nobody's list but the provider's; what the provider says passes as it came."""

    def script(peer: Any) -> None:
        while (request := peer.request()) is not None:
            theirs = b"forward" in request.target
            peer.send(answer(404, b'{"error":{"message":"no","type":"t","param":null}}') if theirs else listed())

    with Upstream(script) as upstream:
        port = start(upstream).port
        for headers, path, url in (
            ({}, "ft:gpt-4o:org::id", "https://api.openai.com/v1/models/ft:gpt-4o:org::id"),
            ({}, "groq/new", "https://api.groq.com/openai/v1/models/new"),
            (ANTHROPIC, "claude-new", "https://api.anthropic.com/v1/models/claude-new"),
            (GOOGLE, "gemini-new", "https://generativelanguage.googleapis.com/v1/models/gemini-new"),
        ):
            came = ask(port, "GET", f"/v1/models/{path}", headers=headers)
            assert (came.status, came.code) == (404, None)
            assert [unquote(request.target.decode()) for request in upstream.requests[-2:]] == [
                "/v1/models",
                f"/v1/forward?u={url}",
            ]


def test_an_unlisted_model_of_another_dialect_is_not_found(start: Callable[[Upstream], Daemon]) -> None:
    """Its provider could not be asked in the client's dialect: 404, and the nearest name that is listed."""
    with Upstream(listed({"data": [{"id": "claude-opus-4-6"}, {"id": "gpt-5"}]})) as upstream:
        port = start(upstream).port
        for headers, name, near in (
            ({}, "anthropic/claude-opus-4-7", "claude-opus-4-6"),
            ({}, "claude-opus-4-7", "claude-opus-4-6"),
            (ANTHROPIC, "gpt-6", "gpt-5"),
        ):
            came = ask(port, "GET", f"/v1/models/{name}", headers=headers)
            assert (came.status, came.code, came.header("x-should-retry")) == (404, "path_not_found", "false")
            assert ("type" in came.json()) == bool(headers)
            assert f'"{near}"' in came.json()["error"]["message"]
        assert {request.target for request in upstream.requests} == {b"/v1/models"}


# --- with which key --------------------------------------------------------------------------------------------------


def test_a_ready_token_asks_without_a_key(daemon: StartDaemon) -> None:
    """It is for forwarding; and the account's key is not this project's, nor meant for the token's host."""
    token = mint_token("aks_live_" + "t" * 24)
    with Upstream(listed()) as upstream:
        config = (
            f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n[projects.ready]\nforward_token = "env:TOKEN"\n'
            '[projects.own]\nsecret_key = "env:OWN"\n[projects.agent]\nspend_key = "env:SPEND"\n[projects.main]\n'
        )
        own = "aks_live_" + "o" * 24
        keys = {"KEY": KEY, "TOKEN": token, "OWN": own, "SPEND": SPEND}
        port = daemon(config, env=keys, secrets=keys.values()).port
        for project, key in (("ready", None), ("own", own), ("agent", SPEND), ("main", KEY)):
            assert ask(port, "GET", f"/p/{project}/v1/models").status == 200
            sent = upstream.requests[-1].header(b"authorization")
            assert sent == (f"Bearer {key}".encode() if key else None), project


# --- while Lava is away ----------------------------------------------------------------------------------------------


def cut(peer: Any) -> None:
    peer.request()


HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"


def cut_inside(peer: Any) -> None:
    peer.request()
    peer.send(HALF)


def says(raw: bytes) -> Callable[[Any], None]:
    def script(peer: Any) -> None:
        while peer.request() is not None:
            peer.send(raw)

    return script


AWAY: dict[str, Callable[[Any], None]] = {
    "closed": cut,
    "html": says(answer(200, b"<html>")),
    "no list": says(answer(200, b'{"data": 7}')),
    "500": says(answer(500, b"oops")),
    "503": says(answer(503, b'{"error":{"message":"down","code":"down","status":503}}')),
    "redirect": says(answer(302, b"", [(b"location", b"https://example.com/")])),
    "half": cut_inside,
    "no HTTP": says(b"SSH-2.0-OpenSSH\r\n"),
}


def test_the_aliases_alone_while_lava_is_away(start: Callable[[Upstream], Daemon]) -> None:
    """Marked as incomplete: a tool can go on with what is configured."""
    with Upstream(cut) as upstream:
        port = start(upstream).port
        for how, upstream.script in AWAY.items():
            upstream.hang_up()
            came = ask(port, "GET", "/v1/models")
            assert [entry["id"] for entry in came.json()["data"]] == ["fast", "smart"], how
            assert came.header("x-lava-proxy-incomplete") == "models"
            assert ask(port, "GET", "/v1/models/fast").json()["id"] == "fast"


def test_the_last_good_list_while_lava_is_away(start: Callable[[Upstream], Daemon]) -> None:
    """Also for one model of it; complete again when Lava is back."""
    with Upstream(listed()) as upstream:
        port = start(upstream).port

        def names() -> tuple[list[str], str | None]:
            came = ask(port, "GET", "/v1/models")
            return [entry["id"] for entry in came.json()["data"]], came.header("x-lava-proxy-incomplete")

        for how, away in AWAY.items():
            assert names() == (["fast", "smart", "gpt-5"], None), how
            upstream.script = away
            upstream.hang_up()
            assert names() == (["fast", "smart", "gpt-5"], "models"), how
            one = ask(port, "GET", "/v1/models/gpt-5")
            assert (one.json()["id"], one.header("x-lava-proxy-incomplete")) == ("gpt-5", "models")
            upstream.script = says(listed())
            upstream.hang_up()


def test_a_list_is_kept_for_the_credential_that_it_was_given_to(start: Callable[[Upstream], Daemon]) -> None:
    """A spend key's list never serves another project, nor the account's list a spend key."""
    with Upstream(listed()) as upstream:
        port = start(upstream).port
        assert len(ask(port, "GET", "/p/main/v1/models").json()["data"]) == 3
        upstream.script = cut
        upstream.hang_up()
        assert [entry["id"] for entry in ask(port, "GET", "/p/agent/v1/models").json()["data"]] == ["fast", "smart"]


def test_the_last_good_list_outlives_a_reload(start: Callable[[Upstream], Daemon]) -> None:
    """New aliases, the same list."""
    with Upstream(listed()) as upstream:
        running = start(upstream)
        assert ask(running.port, "GET", "/v1/models").status == 200
        upstream.script = cut
        upstream.hang_up()
        running.config.write_text(running.config.read_text().replace("smart =", "clever ="))
        running.process.send_signal(signal.SIGHUP)
        upstream.wait(lambda: ask(running.port, "GET", "/v1/models/clever").status == 200)
        names = [entry["id"] for entry in ask(running.port, "GET", "/v1/models").json()["data"]]
        assert names == ["fast", "clever", "gpt-5"]


@pytest.mark.parametrize("begun", [b"", HALF], ids=["nothing", "half an answer"])
def test_a_lava_that_does_not_answer_is_not_waited_for_as_a_completion_is(daemon: StartDaemon, begun: bytes) -> None:
    """The limit for a first byte, and never more than a quarter of a minute."""

    def script(peer: Any) -> None:
        peer.request()
        peer.send(begun)
        peer.gone()

    with Upstream(script) as upstream:
        config = f'[lava]\nbase_url = "{upstream.url}"\n[upstream]\nfirst_byte = 0.3\n'
        port = daemon(config).port
        came = ask(port, "GET", "/v1/models")
        assert (came.status, came.code) == (504, "upstream_timeout")
        port = daemon(config + '[models]\nfast = "groq/llama"\n').port
        came = ask(port, "GET", "/v1/models")
        assert [entry["id"] for entry in came.json()["data"]] == ["fast"]
        assert came.header("x-lava-proxy-incomplete") == "models"


def test_without_list_and_aliases_it_is_an_error(daemon: StartDaemon) -> None:
    """An empty list would say that there are no models."""
    with Upstream(cut) as upstream:
        port = daemon(f'[lava]\nbase_url = "{upstream.url}"\n').port
        came = ask(port, "GET", "/v1/models")
        assert (came.status, came.code) == (502, "upstream_closed")


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (answer(401, b'{"error":{"message":"bad key","code":"unauthorized","status":401}}'), 401, "lava_unauthorized"),
        (answer(429, b'{"error":{"message":"slow","code":"rate","status":429}}'), 429, "lava_error"),
    ],
)
def test_a_refusal_is_told(start: Callable[[Upstream], Daemon], raw: bytes, status: int, code: str) -> None:
    """Lava is there and says no: the aliases alone would hide that the key is wrong."""
    with Upstream(says(raw)) as upstream:
        came = ask(start(upstream).port, "GET", "/v1/models")
        assert (came.status, came.code) == (status, code)
