"""The lifecycle of the daemon: sockets, one event loop, signals, drain, reload, and the exit code.

Theory. uvicorn provides the configuration object and the lifespan. Its ``Server`` is not used: at its shutdown timeout it
responds to waiting requests with 500 (an SDK repeats those, and the user pays twice), it waits without limit for a client that
sends its body slowly, and it exits by raising the signal again. The lifecycle here:

1. **Prepare** the process: more descriptors, no core dumps (a core contains the key).
2. **Listen** on systemd's sockets or our own. A port in use ends the start here, without side effects.
3. **Start** the application's lifespan, then accept connections, then report readiness.
4. **Serve** until a signal, or until the controlling terminal is closed. Without one, SIGHUP reloads the configuration; so does
   a changed file (``watching.py``). The new configuration is validated first and then swapped in; on any fault the old one stays.
5. **Drain**: listeners and idle connections are closed at once, requests finish. At ``drain_seconds`` the application ends the
   remaining ones (with an error inside the stream). A second signal ends everything at once.

Exit codes: 0 clean stop (also after the drain deadline), 1 second signal or a failed start, 75 port in use, 78 an
address that cannot be used as configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import gc
import inspect
import ipaddress
import logging
import math
import os
import signal
import socket
import stat
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from proxy.config.watching import Reloader
from proxy.http.connection import ConnectionSet, StrictProtocol
from proxy.http.framing import Limits
from proxy.protocol.threads import signals_left_to_main
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, MutableMapping, Sequence

    from uvicorn import Config
    from uvicorn.server import ServerState

    from proxy.config.settings import Server, Settings
    from proxy.http.asgi import Message, Scope

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 75
EXIT_CONFIGURATION = 78

BACKLOG = 2048
SPARE_DESCRIPTORS = 64
"""Descriptors that the process needs beside its streams: listeners, logs, the event loop, name resolution, a reload."""
DESCRIPTORS_PER_STREAM = 2
CONFIG_POLL_SECONDS = 2.0
YOUNG_OBJECTS = 20_000
"""Threshold of the garbage collector: allocations minus deallocations until it examines the young objects."""
CUT_SECONDS = 1.0
"""Time after the drain's deadline in which ended requests may send an error inside their streams."""


class Runtime(Protocol):
    """What the daemon needs from the application. ``reload`` may be a coroutine function.

    Three more are called if they exist: ``refused(code)`` when the HTTP protocol refuses bytes that are no request,
    ``readable_by(origin, headers)`` for the headers of that response, and ``reload_failed(exception)``.
    """

    def begin_drain(self) -> object: ...
    def cut(self) -> object: ...
    def reload(self, settings: Settings) -> object: ...


class App(Protocol):
    """An ASGI 3 application with a ``runtime``."""

    @property
    def runtime(self) -> Runtime: ...
    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Coroutine[Any, Any, Message]],
        send: Callable[[Message], Coroutine[Any, Any, None]],
    ) -> None: ...


class CannotListen(Exception):
    """A configured address cannot be listened on. ``exit_code`` is 75 (in use) or 78 (impossible)."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def serve(
    settings: Settings,
    *,
    create_app: Callable[[Settings], App],
    limits: Limits | None = None,
    on_ready: Callable[[tuple[str, ...]], object] | None = None,
    reload: Callable[[], Settings] | None = None,
) -> int:
    """Run the daemon in this process until it is stopped, and return the exit code.

    ``on_ready`` gets the addresses once connections are accepted (``http://127.0.0.1:5282``, ``unix:/path``).
    ``reload`` loads the settings again and raises if they are invalid; it runs in a thread. After a forced drain, a timer
    ends the process within two seconds even if the caller does not.
    """
    descriptors = raise_descriptor_limit()
    forbid_core_dumps()
    try:
        listeners = listen(settings, os.environ)
    except CannotListen as fault:
        _log().error("%s", fault)
        return fault.exit_code
    daemon = Daemon(
        settings,
        listeners,
        create_app=create_app,
        limits=limits or Limits(),
        descriptors=descriptors,
        on_ready=on_ready,
        reload=reload,
        owns_process=threading.current_thread() is threading.main_thread(),
    )
    return run_loop(daemon.run())


@contextlib.contextmanager
def background(
    settings: Settings,
    *,
    create_app: Callable[[Settings], App],
    limits: Limits | None = None,
    reload: Callable[[], Settings] | None = None,
) -> Iterator[Daemon]:
    """Run the daemon in a thread, inside another program: without signals and without process-wide changes.

    Yields the running ``Daemon``. At the end it is stopped like by a signal, and waited for.
    Raises ``CannotListen``, and ``RuntimeError`` if it does not start.
    """
    ready = threading.Event()
    daemon = Daemon(
        settings,
        listen(settings, {}),
        create_app=create_app,
        limits=limits or Limits(),
        on_ready=lambda _: ready.set(),
        reload=reload,
    )

    def run() -> None:
        try:
            daemon.exit_code = run_loop(daemon.run())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="lava-proxy")
    thread.start()
    ready.wait()
    try:
        if not daemon.addresses:
            raise RuntimeError("the daemon did not start; its log says why")
        yield daemon
    finally:
        daemon.stop()
        thread.join()


# --- the running daemon ----------------------------------------------------------------------------------------


class Daemon:
    """One running server. ``addresses`` is filled once it accepts connections."""

    def __init__(
        self,
        settings: Settings,
        listeners: list[Listener],
        *,
        create_app: Callable[[Settings], App],
        limits: Limits,
        descriptors: int | None = None,
        on_ready: Callable[[tuple[str, ...]], object] | None = None,
        reload: Callable[[], Settings] | None = None,
        owns_process: bool = False,
    ) -> None:
        self.settings = settings
        self.addresses: tuple[str, ...] = ()
        self.exit_code: int | None = None
        self._listeners = listeners
        self._started_with = settings.server
        self._create_app = create_app
        self._limits = limits
        self._descriptors = descriptors
        self._on_ready = on_ready
        self._reloader = Reloader(reload, settings) if reload is not None else None
        self._owns_process = owns_process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._forced = False
        self._reload_wanted = asyncio.Event()

    async def run(self) -> int:
        """Serve until stopped, and return the exit code."""
        loop = self._loop = asyncio.get_running_loop()
        self._catch_signals(loop)
        loop.set_exception_handler(_Reporter())
        try:
            return await self._run(loop)
        finally:
            self._close_listeners()
            self._release_signals(loop)
            self._loop = None

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        self.settings, limits = self._fit(self.settings)
        app = self._create_app(self.settings)
        watch = ConnectionSet(limits, getattr(app.runtime, "refused", None), getattr(app.runtime, "readable_by", None))
        config, state = _uvicorn(app, watch)
        lifespan = config.lifespan_class(config)
        await lifespan.startup()
        if lifespan.should_exit:
            return EXIT_FAILED

        def connection() -> StrictProtocol:
            return StrictProtocol(config, state, lifespan.state, loop, watch=watch)

        servers = [await _accept(loop, connection, listener.sock) for listener in self._listeners]
        watch.start(loop)
        self.addresses = tuple(describe(listener.sock) for listener in self._listeners)
        _log().info("listening on %s", ", ".join(self.addresses))
        notify_systemd("READY=1")
        if self._on_ready is not None:
            self._on_ready(self.addresses)
        if self._owns_process:
            # The objects loaded so far stay alive. A full collection would traverse all of them, 40,000 in 15 ms, while
            # every stream is blocked; few are added later. Requests make no garbage that needs the collector, but active
            # ones are many objects, and examining the young ones after every 700 costs a tenth of the processor time.
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS)
        chores = [loop.create_task(self._reload_when_wanted(app)), loop.create_task(self._poll_files())]
        await self._stop.wait()

        for chore in chores:
            chore.cancel()
        for server in servers:
            server.close()
        finished = await self._drain(app, watch, state.tasks)
        watch.stop()
        if self._forced:
            return EXIT_FAILED
        try:
            await asyncio.wait_for(lifespan.shutdown(), 5.0 if finished else 0.5)
        except TimeoutError:
            _log().warning("the application did not shut down in time")
        return EXIT_OK

    # called from outside

    def stop(self) -> None:
        """Begin the drain, from any thread; the second time, end at once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: already stopped
                self._loop.call_soon_threadsafe(self._on_stop)

    def request_reload(self) -> None:
        """Load the configuration again, from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._reload_wanted.set)

    def _on_stop(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            return
        self._forced = True
        _log().warning("stopping at once, as asked a second time")
        self._end_process_after(0.5, EXIT_FAILED)

    def _on_hangup(self) -> None:
        _log().info("the terminal was closed")
        if not self._stop.is_set():  # a shell may send the signal once more
            self._on_stop()

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._owns_process:
            return
        for name in _STOP_SIGNALS:
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, self._on_stop)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: self.stop())
        if hasattr(signal, "SIGHUP"):
            ignored = (
                signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            )  # by nohup: the daemon must outlive its terminal
            hangs_up = has_terminal() and not ignored
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup if hangs_up else self._reload_wanted.set)

    def _release_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ignore later signals: the process is ending as requested, and they must not change its exit code."""
        if not self._owns_process:
            return
        numbers = [getattr(signal, name) for name in (*_STOP_SIGNALS, "SIGHUP") if hasattr(signal, name)]
        if hasattr(signal, "pthread_sigmask"):
            # Otherwise a signal between two of these lines would kill the process.
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    # reload

    async def _reload_when_wanted(self, app: App) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self._reload(app)

    async def _reload(self, app: App) -> None:
        """Validate the new configuration, then swap it in. On any fault the old one stays in use."""
        if self._reloader is None:
            _log().warning("asked to reload, but this daemon runs without a configuration that could be reloaded")
            return
        notify_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            loaded = await self._reloader.load()
            fitted, _ = self._fit(loaded)
            answer = app.runtime.reload(fitted)
            if inspect.isawaitable(answer):
                await answer
        except Exception as fault:  # noqa: BLE001 -- no fault of a configuration, of whatever kind, may stop the daemon
            # Only a fault with sentences for people is shown; any other could quote the file.
            faults: Sequence[str] = getattr(fault, "faults", None) or (f"{type(fault).__name__} while loading it",)
            for sentence in faults:
                _log().error("the configuration was not reloaded, the old one stays in use: %s", sentence)
            failed = getattr(app.runtime, "reload_failed", None)
            if failed is not None:
                failed(fault)
        else:
            for key in ("host", "port", "unix_socket"):
                if getattr(self._started_with, key) != getattr(fitted.server, key):
                    _log().warning("server.%s has changed: that needs a restart", key)
            self.settings = fitted
            _log().info("configuration reloaded")
        finally:
            notify_systemd("READY=1")

    async def _poll_files(self) -> None:
        """Request a reload when a file of the configuration has changed."""
        while self._reloader is not None:
            await asyncio.sleep(CONFIG_POLL_SECONDS)
            if await self._reloader.changed():
                self._reload_wanted.set()

    # shutdown

    async def _drain(self, app: App, watch: ConnectionSet, tasks: set[asyncio.Task[None]]) -> bool:
        """Drain the daemon. Return whether every request ended by itself."""
        notify_systemd("STOPPING=1")
        self._close_listeners()
        app.runtime.begin_drain()
        watch.begin_drain()
        _log().info("stopping%s", f": finishing {counted(watch.requests, 'request')}" if watch.requests else "")
        seconds = self.settings.server.drain_seconds
        if await self._until(lambda: not tasks and not watch.busy(), seconds):
            # The remaining connections have a complete response and only wait for the client to close.
            await self._until(lambda: not watch.connections, 0.2)
            return True
        if not self._forced:
            _log().warning(
                "not finished within %s: cutting %s", counted(seconds, "second"), counted(watch.requests, "request")
            )
            self._end_process_after(CUT_SECONDS + 0.9, EXIT_OK)
        app.runtime.cut()  # also for an immediate stop: it gives the requests their reason
        if not self._forced:
            await self._until(lambda: not tasks and not watch.busy(), CUT_SECONDS)
        watch.cut()
        await self._until(lambda: not tasks, 0.1, heed_force=False)
        for task in list(tasks):
            task.cancel()
        await self._until(lambda: not tasks, 0.1 if self._forced else 0.2, heed_force=False)
        return False

    async def _until(self, condition: Callable[[], bool], seconds: float, *, heed_force: bool = True) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            if loop.time() >= deadline or (heed_force and self._forced):
                return False
            await asyncio.sleep(0.02)
        return True

    def _end_process_after(self, seconds: float, code: int) -> None:
        """End the process after ``seconds``: a hanging name lookup or task must not delay the exit."""
        if self._owns_process:
            timer = threading.Timer(seconds, os._exit, (code,))
            timer.daemon = True
            with signals_left_to_main():
                timer.start()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            if listener.path:
                with contextlib.suppress(OSError):
                    Path(listener.path).unlink()
            listener.sock.close()
        self._listeners.clear()

    def _fit(self, settings: Settings) -> tuple[Settings, Limits]:
        """Fit the limits on open connections to the available descriptors. Log it if they are below the configuration."""
        wanted = settings.server.max_concurrent
        granted = wanted
        most_connections = max(4 * wanted, 1024)
        if self._descriptors is not None:
            granted = max(1, min(wanted, (self._descriptors - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_STREAM))
            most_connections = max(granted, min(most_connections, self._descriptors - SPARE_DESCRIPTORS - granted))
        if granted < wanted:
            _log().warning(
                "max_concurrent is %d instead of %d: only %d files may be open (ulimit -n, LimitNOFILE)",
                granted,
                wanted,
                self._descriptors,
            )
            server = settings.server.model_copy(update={"max_concurrent": granted})
            settings = settings.model_copy(update={"server": server})
        limits = self._limits
        return settings, limits if limits.connections else replace(limits, connections=most_connections)


class _Reporter:
    """The loop's exception handler: asyncio's own loop reports a lack of descriptors thousands of times a second."""

    def __init__(self) -> None:
        self._said = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        if not isinstance(fault, OSError) or fault.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            _log().error("out of file descriptors: new connections wait until others end")


_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGBREAK")


class _Threads(ThreadPoolExecutor):
    """Starts its threads in the calls of ``submit``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with signals_left_to_main():
            return super().submit(fn, *args, **kwargs)


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` in its own loop (uvloop's if installed), without anything that could delay the exit.

    Unlike ``asyncio.run`` it waits neither without limit for tasks that ignore their cancellation, nor for threads.
    """
    loop = _new_loop()
    threads = _Threads(4, thread_name_prefix="lava-proxy")
    loop.set_default_executor(threads)
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=0.3))
        loop.run_until_complete(loop.shutdown_asyncgens())
        threads.shutdown(wait=False, cancel_futures=True)
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        _log().info("uvloop is not installed: asyncio's own event loop is used, which is slower")
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _uvicorn(app: App, watch: ConnectionSet) -> tuple[Config, ServerState]:
    from uvicorn import Config
    from uvicorn.server import ServerState

    config = Config(
        cast("Any", app),
        http=cast("Any", functools.partial(StrictProtocol, watch=watch)),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        workers=1,
    )
    config.load()
    return config, ServerState()


async def _accept(
    loop: asyncio.AbstractEventLoop, connection: Callable[[], StrictProtocol], sock: socket.socket
) -> asyncio.AbstractServer:
    if not _is_unix(sock):
        return await loop.create_server(connection, sock=sock, backlog=BACKLOG)
    # From Python 3.13 on, a loop removes the file by itself, even one that belongs to systemd.
    own_cleanup: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    return await loop.create_unix_server(connection, sock=sock, backlog=BACKLOG, **own_cleanup)


# --- sockets ---------------------------------------------------------------------------------------------------


class Listener(NamedTuple):
    """A listening socket; ``path`` is the file of a unix socket that the daemon must remove."""

    sock: socket.socket
    path: str = ""


def listen(settings: Settings, environ: MutableMapping[str, str]) -> list[Listener]:
    """Return all sockets for ``settings``; those of systemd replace ``host`` and ``port``.

    Raises ``CannotListen``.
    """
    sockets = inherited_sockets(environ) or open_listeners(settings.server)
    listeners = [Listener(sock) for sock in sockets]
    path = settings.server.unix_socket
    try:
        require_keys(sockets, settings)
        if path and f"unix:{path}" not in map(describe, sockets):
            listeners.append(Listener(open_unix_listener(path), path))
    except CannotListen:
        _close_all(sockets)
        raise
    return listeners


def open_listeners(server: Server) -> list[socket.socket]:
    """Bind and listen on every host of ``server``, all on one port. Raises ``CannotListen``."""
    for _ in range(20):
        opened: list[socket.socket] = []
        try:
            port = server.port
            seen: set[tuple[socket.AddressFamily, str]] = set()
            for host in server.host:
                for family, address in _resolve(host, port):
                    if (family, address[0]) in seen:
                        continue  # two names of one address, such as localhost and 127.0.0.1
                    seen.add((family, address[0]))
                    listener = _open(family, (address[0], port, *address[2:]), host)
                    if listener is not None:
                        opened.append(listener)
                        port = listener.getsockname()[1]
        except CannotListen as fault:
            _close_all(opened)
            if server.port == 0 and fault.exit_code == EXIT_UNAVAILABLE:
                continue  # the free port of one host is in use on the next: try another one
            raise
        if opened:
            return opened
        break
    raise CannotListen(
        EXIT_CONFIGURATION, f"none of the hosts {', '.join(server.host)} of [server] can be listened on here."
    )


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        if _is_loopback6(host):
            return []
        raise CannotListen(EXIT_CONFIGURATION, f'the host "{host}" of [server] is not a known name.') from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _open(family: socket.AddressFamily, address: Any, host: str) -> socket.socket | None:
    """Return a listening socket, or ``None`` for ``::1`` if the machine has no IPv6."""
    try:
        # With IPPROTO_TCP: otherwise asyncio's own loop does not set TCP_NODELAY on accepted connections.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError:
        if family == socket.AF_INET6:
            return None
        raise
    try:
        if os.name == "nt":
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", 0), 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Detects a client machine that vanished without a FIN; accepted connections inherit it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as fault:
        listener.close()
        if _is_loopback6(address[0]) and fault.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        port = address[1]
        if fault.errno == errno.EADDRINUSE:
            raise CannotListen(
                EXIT_UNAVAILABLE,
                f"port {port} on {host} is in use{_by(port)}. Stop that program, or choose another port "
                f"(--port N, or port under [server]).",
            ) from None
        if fault.errno in (errno.EACCES, errno.EPERM):
            raise CannotListen(
                EXIT_CONFIGURATION, f"port {port} on {host} may not be used by this user; choose one above 1023."
            ) from None
        raise CannotListen(
            EXIT_CONFIGURATION, f'the host "{host}" of [server] cannot be listened on: {os.strerror(fault.errno or 0)}.'
        ) from None
    return listener


def open_unix_listener(path: str) -> socket.socket:
    """Listen on a unix socket that only this user may use, and replace a stale one. Raises ``CannotListen``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # so that others can never connect, not even for a moment
    try:
        _remove_dead(path)
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, ValueError) as fault:  # ValueError: an impossible path, such as one with a NUL
        listener.close()
        number = getattr(fault, "errno", None)
        why = os.strerror(number) if number else str(fault)
        raise CannotListen(
            EXIT_UNAVAILABLE if number == errno.EADDRINUSE else EXIT_CONFIGURATION,
            f"cannot listen on {path} (unix_socket under [server]): {why}. {_remedy(path, number)}",
        ) from None
    except CannotListen:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remedy(path: str, number: int | None) -> str:
    folder = os.path.dirname(path) or "."
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"Make the directory {folder}, or choose another path."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Choose a path in a directory that this user may write to; {folder} is none."
    return "Choose another path."


def _remove_dead(path: str) -> None:
    """Remove a stale socket at ``path``. Raises ``CannotListen`` for anything else there, and ``OSError``."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(EXIT_CONFIGURATION, f"{path} (unix_socket under [server]) exists and is no socket.")
    if _answers(path):
        raise CannotListen(EXIT_UNAVAILABLE, f"another program answers at {path} (unix_socket under [server]).")
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except PermissionError:
            raise  # another user's, stale or not
        except OSError:
            return True  # too busy to accept: a program is listening
    return True


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that systemd opened for us (``sd_listen_fds(3)``), if any.

    Removes the variables from ``environ``, so that no child process uses them. Raises ``CannotListen``.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count.isdigit() or pid != str(os.getpid()):
        return []
    first = 3
    sockets: list[socket.socket] = []
    for descriptor in range(first, first + int(count)):
        try:
            given = socket.socket(fileno=descriptor)
        except OSError:
            _close_all(sockets)
            raise CannotListen(EXIT_CONFIGURATION, "LISTEN_FDS names a descriptor that is no socket.") from None
        sockets.append(given)
        if given.type != socket.SOCK_STREAM:
            _close_all(sockets)
            raise CannotListen(EXIT_CONFIGURATION, "systemd gave a socket that is not ListenStream=.")
        given.setblocking(False)
        given.set_inheritable(False)
        if not _is_unix(given):
            given.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def require_keys(sockets: Sequence[socket.socket], settings: Settings) -> None:
    """Require local keys for any address but loopback. Settings contain names; the sockets have the resolved addresses.

    Raises ``CannotListen``.
    """
    if settings.server.keys or any(project.keys for project in settings.projects.values()):
        return
    for sock in sockets:
        if not _is_unix(sock) and not ipaddress.ip_address(sock.getsockname()[0].split("%")[0]).is_loopback:
            raise CannotListen(
                EXIT_CONFIGURATION,
                f"{describe(sock)} can be reached from other machines, and no local key is configured: "
                "add keys under [server], or listen on 127.0.0.1.",
            )


def describe(sock: socket.socket) -> str:
    """Return ``http://127.0.0.1:5282``, ``http://[::1]:5282`` or ``unix:/path``."""
    name = sock.getsockname()
    if _is_unix(sock):
        return f"unix:{os.fsdecode(name)}"
    host, port = name[0], name[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_unix(sock: socket.socket) -> bool:
    return hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX


def _is_loopback6(host: str) -> bool:
    return host == "::1"


def _close_all(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


# --- who has the port ------------------------------------------------------------------------------------------


def _by(port: int) -> str:
    holder = find_holder(port)
    if holder is None:
        return ""
    pid, name = holder
    return f" by {name} (process {pid})"


def find_holder(port: int) -> tuple[int, str] | None:
    """Return process id and name of the listener on TCP ``port``, if Linux shows it.

    Our own daemons hide their descriptors even from their user (see ``forbid_core_dumps``), so a process with our command
    line is the second choice.
    """
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    ours: int | None = None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            with os.scandir(process / "fd") as descriptors:
                if any(os.readlink(each) in inodes for each in descriptors):
                    return int(process.name), _name_of(process)
        except OSError:
            if _is_lava_proxy(process) and int(process.name) != os.getpid():
                ours = int(process.name)
    return None if ours is None else (ours, "lava-proxy")


def _name_of(process: Path) -> str:
    if _is_lava_proxy(process):
        return "lava-proxy"
    try:
        name = (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "a program"
    return "".join(character if character.isprintable() else "?" for character in name)


def _is_lava_proxy(process: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    names = [word.rpartition(b"/")[2] for word in words]
    return b"lava-proxy" in names[:3] or any(names[i : i + 2] == [b"-m", b"proxy"] for i in range(4))


# --- the process -----------------------------------------------------------------------------------------------


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit of open files to the hard one. Return the new limit, ``None`` if unknown."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maximum = 1 << 20  # some systems have a hard limit of 2**30, and some libraries loop over all of them
    goal = maximum if hard == resource.RLIM_INFINITY else min(hard, maximum)
    for limit in (goal, 10_240):  # macOS reports «infinity» but allows this
        if soft != resource.RLIM_INFINITY and soft >= limit:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        soft = limit
        break
    return maximum if soft == resource.RLIM_INFINITY else soft


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, which sends SIGHUP when it is closed."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0))
    except OSError:
        return False
    os.close(descriptor)
    return True


def forbid_core_dumps() -> None:
    """Protect core dumps and ``/proc/<pid>/environ``, which contain the key, from other programs.

    Linux pipes cores into a collector regardless of the limit, unless the process is not dumpable.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pr_set_dumpable = 4
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)


def notify_systemd(state: str) -> None:
    """Send ``state`` to systemd (``sd_notify(3)``); do nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode("ascii"), f"\0{address[1:]}" if address.startswith("@") else address)


def _log() -> logging.Logger:
    return logging.getLogger("proxy.daemon")
