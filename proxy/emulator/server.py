"""Runs an emulator, in a thread or as the whole program.

uvicorn's httptools protocol is used without uvicorn's ``Server``, which polls every 0.1 s, catches
signals, uses the loggers of the daemon when both run in one process (``demo``), and waits at
shutdown for a stalled stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from proxy.emulator import state_file
from proxy.emulator.application import create_emulator
from proxy.emulator.responder import CONNECTION
from proxy.emulator.state import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from starlette.types import ASGIApp


class _HttptoolsConnection:
    """Implements ``responder.ClientConnection``."""

    def __init__(self, protocol: HttpToolsProtocol, headers: list[tuple[bytes, bytes]]) -> None:
        self._protocol = protocol
        self.target = bytes(protocol.url)
        self.headers = headers

    def close(self) -> None:
        self._protocol.transport.close()

    def abort(self) -> None:
        self._protocol.transport.abort()


class EmulatorProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the request head as it was written and a way to close the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's loggers are the daemon's. This one is outside the tree of loggers and silent.
        self.logger = logging.Logger("lava_emulator", logging.CRITICAL + 1)
        self.access_log = False
        self._pairs: list[tuple[bytes, bytes]] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio does this only for sockets created with IPPROTO_TCP, and ``create_server`` creates others. Without it
        # each event of a stream may wait 40 ms for an acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        self._pairs = []
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._pairs.append((name, value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.scope["extensions"] = {CONNECTION: _HttptoolsConnection(self, self._pairs)}  # type: ignore[dict-item]
        # A new list, or a trailer would be appended to the request's headers.
        self._pairs = []
        super().on_headers_complete()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise ``OSError`` when the address is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


async def serve(app: ASGIApp, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve ``listener`` until ``stop`` is set; then abort every connection."""
    config = uvicorn.Config(
        app, loop="asyncio", http=EmulatorProtocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=75
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: EmulatorProtocol(config=config, server_state=state, app_state={}, _loop=loop), sock=listener
    )
    try:
        await stop.wait()
    finally:
        server.close()
        for protocol in list(state.connections):
            with contextlib.suppress(AttributeError):
                protocol.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)


class Emulator:
    """A running emulator in a thread of its own; a context manager. Raises ``OSError`` when the
    port is in use.

    ``base_url`` is the ``baseUrl`` of Lava's SDK ("http://127.0.0.1:PORT/v1/").
    """

    def __init__(self, world: World | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.world = world = World.demo() if world is None else world
        listener = listen(host, port)
        self.port: int = listener.getsockname()[1]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1/"
        self._app = create_emulator(world)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="lava-emulator", daemon=True)
        # Connections that come before the loop runs wait in the listener's backlog.
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        # A Runner also cancels the tasks that still run at the end, such as webhook deliveries.
        with contextlib.closing(listener), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve(self._app, listener, self._stop))

    def close(self) -> None:
        """Stop at once and abort open connections. May be called twice."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10.0)

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def serve_forever(
    world: World,
    host: str = "127.0.0.1",
    port: int = 5283,
    ready: Callable[[str], None] | None = None,
    write: Callable[[bytes], None] | None = None,
) -> None:
    """Run until SIGINT or SIGTERM; raise ``OSError`` when the port is in use.

    ``ready`` is called with the base URL, ``write`` (in a thread) with every state of the world.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.closing(listen(host, port)) as listener:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Windows has no such handlers; there it is a KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, stop.set)
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listener.getsockname()[1]}/v1/")
        async with asyncio.TaskGroup() as tasks:
            if write is not None:
                tasks.create_task(state_file.keep(world, write, stop))
            await serve(create_emulator(world), listener, stop)
