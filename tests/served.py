"""A gateway in a thread of the test's own process, on the strict protocol or on stock uvicorn: its inside can be looked at."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import uvicorn
import uvloop
from configurations import LAVA_KEY, loaded
from rawclient import PATIENCE, RawClient

from proxy.app import Application, create_app
from proxy.daemon import _uvicorn
from proxy.http.connection import ConnectionSet, StrictProtocol
from proxy.http.framing import Limits
from proxy.observe.logs import configure
from proxy.protocol.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from upstream import Upstream

    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.template import Template

T = TypeVar("T")
Server = Literal["strict", "httptools", "h11", "uvicorn-strict"]
"""The strict protocol, an unmodified ``uvicorn.Server`` with one of its own, or that server with the strict one."""


class Served:
    """A gateway in front of ``upstream``, on a loopback port, with an event loop in a thread of its own."""

    def __init__(
        self, folder: Path, upstream: Upstream, more: str = "", *, server: Server = "strict", key: str = LAVA_KEY
    ) -> None:
        self._log = folder / f"{server}-{upstream.port}.log"
        text = f'[lava]\nsecret_key = "{key}"\nbase_url = "{upstream.url}"\n{more}\n'
        self.settings = loaded(folder, text + f'[log]\nformat = "json"\nfile = "{self._log}"\n')
        self.primed = 0
        """Requests that were sent only so that the one in question is not the first."""
        self._server = server
        self._watch = ConnectionSet(Limits())
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        logs = configure(self.settings.log, Redactor(self.settings.secrets()))
        self.app: Application = create_app(self.settings, log=logs)
        try:
            await (self._serve_strictly() if self._server == "strict" else self._serve_by_uvicorn())
        finally:
            logs.close()

    async def _serve_strictly(self) -> None:
        watch = self._watch
        watch.start(self._loop)
        config, state = _uvicorn(self.app, watch)
        server = await self._loop.create_server(lambda: StrictProtocol(config, state, {}, watch=watch), "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await self.app.runtime.aclose()
        watch.cut()
        watch.stop()

    async def _serve_by_uvicorn(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            http=StrictProtocol if self._server == "uvicorn-strict" else self._server,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        server = uvicorn.Server(config)
        serving = self._loop.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110  (uvicorn tells in no other way)
            await asyncio.sleep(0.005)
        self._ready.set()
        await self._over.wait()
        server.should_exit = True
        await serving

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, called in the gateway's loop."""

        async def done() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(PATIENCE)

    def idle(self) -> bool:
        """Whether no request is in flight, and nothing of one is left: no permit, no byte of a body."""
        registry, bodies = self.app.runtime.registry, self.app.runtime.bodies
        return self.do(
            lambda: (len(registry), registry.total_permitted, registry.permitted, bodies.held) == (0, 0, {}, 0)
        )

    def active(self) -> ActiveRequest:
        """The only request in flight."""
        (active,) = self.app.runtime.registry._requests
        return active

    def held(self) -> int:
        """Bytes of bodies of the only request in flight that wait to be taken."""
        active = self.active()
        exchange: Any = active.exchange
        body = active.body
        assert body is not None
        return int(exchange._waiting) + sum(map(len, body)) + len(body.take() or b"") + active.bodies.held  # type: ignore[arg-type]

    def templates(self) -> list[Template | None]:
        """What is remembered with the last head of each connection."""
        heads = [connection._heads._head for connection in self._watch.connections]
        return [None if head is None else head.memory.template for head in heads]  # type: ignore[misc]

    def told(self, count: int) -> list[dict[str, Any]]:
        """The log lines of the first ``count`` requests, once they are there."""
        end = time.monotonic() + PATIENCE
        while True:
            lines = self._log.read_text().splitlines() if self._log.exists() else []
            told = [line for line in map(json.loads, lines) if line["event"] == "request"]
            if len(told) >= count:
                return told[:count]
            assert time.monotonic() < end, f"{len(told)} of {count} requests were logged"
            time.sleep(0.01)

    def line(self) -> dict[str, Any]:
        """The log line of the request in question."""
        return self.told(self.primed + 1)[-1]


class Client(RawClient):
    """A tool that sends the same head over and over."""

    def ask(
        self, content: str = "hello", more: str = "", model: str = "gpt-4o", path: str = "/v1/chat/completions"
    ) -> None:
        """Send a request. ``content`` tells the upstream which one it is."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n{more}"
        self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def prime(self, count: int = 2, **how: str) -> Self:
        """Have ``count`` requests answered, so that everything of the next one is remembered."""
        for _ in range(count):
            self.ask(**how)
            assert self.response().status == 200
        return self


def plain(text: str) -> str:
    """``text`` without what is another each time."""
    text = re.sub(r"req_[0-9a-f]{24}", "req_*", text)
    return re.sub(r"127\.0\.0\.1:[0-9]+|127\.0\.0\.1%3A[0-9]+", "here", text)
