"""``GET /v1/models``: Lava's list and the aliases, in the shape that the client reads."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from rawclient import ask
from upstream import Upstream, answer

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


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (answer(200, b"<html>"), 502, "upstream_protocol"),
        (answer(200, b'{"data": 7}'), 502, "upstream_protocol"),
        (answer(500, b"oops"), 502, "upstream_protocol"),
        (answer(401, b'{"error":{"message":"bad key","code":"unauthorized","status":401}}'), 401, "lava_unauthorized"),
        (answer(429, b'{"error":{"message":"slow","code":"rate","status":429}}'), 429, "lava_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", 502, "upstream_closed"),
    ],
)
def test_a_list_that_cannot_be_read_is_an_error(
    start: Callable[[Upstream], Daemon], raw: bytes, status: int, code: str
) -> None:
    """Never half a list, and never the aliases alone as if they were all."""

    def script(peer: Any) -> None:
        peer.request()
        peer.send(raw)

    with Upstream(script) as upstream:
        came = ask(start(upstream).port, "GET", "/v1/models")
        assert (came.status, came.code) == (status, code)
