"""OpenAI's SDK inside a page, in a real browser: what a page of a listed origin may read of an answer, and what the SDK makes of
it."""

from __future__ import annotations

import contextlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from chromium import Chromium, chromium
from upstream import Peer, Upstream, answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import NodeSDK
    from daemons import Daemon, StartDaemon

KEY = "aks_live_" + "b" * 24
LOCAL = "local-" + "b" * 24

#: What each model's provider, or Lava, answers.
EMPTY = {"error": {"message": "Insufficient wallet balance", "code": "insufficient_balance"}}
BUSY = {"error": {"message": "Slow down", "type": "requests", "code": "rate_limit_exceeded"}}
LIMITS = [(b"x-ratelimit-limit-requests", b"60"), (b"x-ratelimit-remaining-requests", b"0")]
MARKED = [*LIMITS, (b"request-id", b"req_theirs"), (b"content-type", b"application/json")]
ANSWERS = {
    "paid-by-nobody": answer(402, json.dumps(EMPTY).encode(), [*MARKED, (b"retry-after", b"30")]),
    "never-again": answer(
        429, json.dumps(BUSY).encode(), [*MARKED, (b"x-should-retry", b"false"), (b"retry-after", b"1")]
    ),
    "again-at-once": answer(429, json.dumps(BUSY).encode(), [*MARKED, (b"retry-after-ms", b"1")]),
}

#: Asks once with the SDK as it comes, which tries three times where it may.
ASK = """
const {default: OpenAI} = await import('openai');
const [baseURL, apiKey, model] = arguments_;
const client = new OpenAI({baseURL, apiKey, dangerouslyAllowBrowser: true});
try { await client.chat.completions.create({model, messages: [{role: 'user', content: 'hello'}]}); }
catch (error) {
    return {status: error.status ?? null, code: error.code ?? null, id: error.requestID ?? null,
            kind: error.constructor.name, headers: Object.fromEntries(error.headers ?? [])};
}
"""


class Files(SimpleHTTPRequestHandler):
    """The SDK's own modules, and a page that knows where they are."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def site(folder: Path) -> Iterator[str]:
    """The origin of a small web server for this folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def modules(node_sdk: NodeSDK) -> Path:
    """The folder of the SDK's package, with the page."""
    folder = node_sdk.folder / "node_modules" / "openai"
    imports = json.dumps({"imports": {"openai": "/index.mjs"}})
    page = f'<!doctype html><link rel="icon" href="data:,"><script type="importmap">{imports}</script><h1>A page</h1>'
    (folder / "page.html").write_text(page)
    return folder


@pytest.fixture
def lava() -> Iterator[Upstream]:
    """Answers by the model that is asked for."""

    def script(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            peer.send(ANSWERS[json.loads(request.body)["model"]])

    with Upstream(script) as upstream:
        yield upstream


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with chromium(tmp_path / "browser") as found:
        yield found


def started(daemon: StartDaemon, lava: Upstream, origin: str) -> Daemon:
    config = (
        f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{lava.url}"\ndiagnose = false\n[projects.main]\n'
        f'[server]\nkeys = ["env:LOCAL"]\nallowed_origins = ["{origin}"]\n'
    )
    return daemon(config, env={"KEY": KEY, "LOCAL": LOCAL}, secrets=[KEY, LOCAL])


@pytest.mark.browser
@pytest.mark.node
def test_the_sdk_in_a_listed_page(daemon: StartDaemon, lava: Upstream, browser: Chromium, modules: Path) -> None:
    """It reads what it decides by: a 402, and a 429 that says so, are asked once; a 429 that does not is asked three times."""
    with site(modules) as origin:
        url = started(daemon, lava, origin).url + "/v1"
        browser.visit(f"{origin}/page.html")
        told = {}
        for model, times in (("paid-by-nobody", 1), ("never-again", 1), ("again-at-once", 3)):
            before = len(lava.requests)
            told[model] = browser.run(ASK, url, LOCAL, model)
            assert len(lava.requests) - before == times, (model, told[model])
    empty, never, again = told.values()
    assert (empty["status"], empty["code"]) == (402, "lava_insufficient_balance")
    assert empty["headers"]["x-should-retry"] == "false"
    assert empty["headers"]["request-id"].startswith("req_")
    assert empty["id"] == empty["headers"]["x-request-id"]
    assert (never["status"], never["kind"]) == (again["status"], again["kind"]) == (429, "RateLimitError")
    assert (never["headers"]["x-should-retry"], never["headers"]["retry-after"]) == ("false", "1")
    assert never["headers"]["request-id"] == "req_theirs"
    assert again["headers"]["retry-after-ms"] == "1"
    for each in told.values():
        assert each["headers"]["x-ratelimit-limit-requests"] == "60"
        assert each["headers"]["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.browser
@pytest.mark.node
def test_the_sdk_in_a_page_that_is_not_listed(
    daemon: StartDaemon, lava: Upstream, browser: Chromium, modules: Path
) -> None:
    """The browser asks for permission first, gets none, and the page has neither an answer nor a header of it; Lava is not
    asked."""
    with site(modules) as listed, site(modules) as other:
        running = started(daemon, lava, listed)
        browser.visit(f"{other}/page.html")
        told = browser.run(ASK, running.url + "/v1", LOCAL, "paid-by-nobody")
        assert told == {"status": None, "code": None, "id": None, "kind": "APIConnectionError", "headers": {}}
        # Without a preflight: the browser sends it, and keeps what comes from the page.
        plain = browser.run("return await (await fetch(arguments_[0])).text();", f"{running.url}/healthz")
        assert plain == {"fault": "TypeError: Failed to fetch"}
    assert lava.requests == []
