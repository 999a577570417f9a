"""Runs ``python -m proxy`` by a fork of a process that has imported the package already.

Each start of Python with this package takes half a second of CPU time, most of it for imports, and the tests start hundreds.
Such a run is a process like any other: with arguments, an environment, a folder, a umask, standard files and a session of its
own. Only its imports were made before it began, and the limits of this process are not inherited. What depends on them,
or on the interpreter's own start, is tested with a real start: ``possible`` refuses environments that the interpreter
reads when it starts, and systems other than Linux.

This file is both sides: the tests import it, and the process that forks runs it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_MESSAGE = 1 << 20
_READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC", "OPENSSL", "SSL_", "NO_COLOR", "FORCE_COLOR", "TERM")
#: All that a daemon and the commands import, also late.
_PRELOADED = (
    "genai_prices.data",
    "http.server",
    "httptools",
    "prometheus_client",
    "proxy.app",
    "proxy.cli.commands",
    "proxy.cli.loading",
    "proxy.cli.serve",
    "proxy.config.settings",
    "proxy.daemon",
    "proxy.ledger.pricing",
    "proxy.ledger.store",
    "proxy.observe.logs",
    "proxy.upstream.native",
    "shellingham",
    "structlog",
    "uvicorn.lifespan.on",
    "uvloop",
)


def possible(more: Iterable[str]) -> bool:
    """Whether a run with these further variables is the same forked as started."""
    names = [name.upper() for name in more if name != "PYTHON_KEYRING_BACKEND"]  # keyring is imported in the run
    return sys.platform == "linux" and not any(name.startswith(_READ_AT_START) for name in names)


class Forked:
    """One run, with what the tests use of ``subprocess.Popen``."""

    def __init__(self, server: _Server, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = pidfd

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("python -m proxy", timeout or 0.0)
            self.returncode = self._server.code_of(self.pid)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._pidfd)


class _Server:
    """The process that forks, from the tests' side."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self._stop)

    def _stop(self) -> None:
        self._socket.close()
        self._process.wait()

    def start(self, words: Sequence[str], env: Mapping[str, str], folder: Path, files: Sequence[int]) -> Forked:
        what = {"words": list(words), "env": dict(env), "folder": str(folder), "umask": _umask()}
        request = json.dumps(what).encode()
        with self._lock:
            socket.send_fds(self._socket, [request], list(files))
            while True:
                message, pidfds = self._receive()
                if pidfds:
                    return Forked(self, message["pid"], pidfds[0])

    def code_of(self, pid: int) -> int:
        """The exit code of a run that has ended."""
        with self._lock:
            while pid not in self._codes:
                self._receive()
            return self._codes.pop(pid)

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, 1)
        assert data, "the process that forks has ended"
        message: dict[str, Any] = json.loads(data)
        if not fds:
            self._codes[message["pid"]] = message["code"]
        return message, fds


def _umask() -> int:
    """The umask of this process, which a run inherits. To ask the system for it would set it, for other threads as well."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


_server: _Server | None = None
_starting = threading.Lock()


def start(words: Sequence[str], *, env: Mapping[str, str], folder: Path, files: Sequence[int]) -> Forked:
    """Run ``python -m proxy`` with these words, in this environment and folder; ``files`` are its standard input, output
    and error. What the interpreter reads when it starts must be the same in every environment, see ``possible``."""
    global _server
    with _starting:
        if _server is None:
            _server = _Server({name: value for name, value in env.items() if not possible([name]) or name == "PATH"})
    return _server.start(words, env, folder, files)


# --- the process that forks ------------------------------------------------------------------------------------------


def _serve(number: int) -> list[str]:
    """Fork for each request until the tests close their side. Return, in a fork, the words to run."""
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    # A run neither traverses what is imported nor copies its pages.
    gc.collect()
    gc.freeze()
    sock = socket.socket(fileno=number)
    running: dict[int, int] = {}  # descriptors and processes
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != number:
                pid = running.pop(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                poll.unregister(fd)
                os.close(fd)
                with contextlib.suppress(OSError):  # the tests have ended
                    sock.send(json.dumps({"pid": pid, "code": code}).encode())
                continue
            data, files, _, _ = socket.recv_fds(sock, _MESSAGE, 3)
            if not data:
                for pid in running.values():
                    os.kill(pid, signal.SIGKILL)
                sock.close()
                sys.exit()
            pid = os.fork()
            if pid == 0:
                sock.detach()
                return _become(json.loads(data), files)
            for file in files:
                os.close(file)
            pidfd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
            running[pidfd] = pid
            poll.register(pidfd, select.POLLIN)
            socket.send_fds(sock, [json.dumps({"pid": pid}).encode()], [pidfd])


def _become(request: dict[str, Any], files: list[int]) -> list[str]:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    words: list[str] = request["words"]
    return words


if __name__ == "__main__":
    sys.path[0] = ""  # the current directory, as with -m
    sys.argv = ["proxy", *_serve(int(sys.argv[1]))]
    runpy.run_module("proxy", run_name="__main__", alter_sys=True)
