"""A real daemon in a process of its own, as the tests start it (fixture ``daemon`` in conftest.py).

The process gets a clean environment: no proxy variables, no LAVA_* variables, not the developer's home.
So a test means the same on every machine.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Protocol

import forked
import psutil
from ports import free_port

import proxy
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Seconds. Start-up is well under one on an idle machine; the tests share theirs with others.
START_LIMIT = 20.0
STOP_LIMIT = 15.0

#: What a healthy daemon never says, whatever its clients and upstreams do.
SIGNS_OF_TROUBLE = ("Traceback", "was never awaited", "exception was never retrieved", "Task was destroyed")


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program under test; ``proxy`` is importable from wherever this process has it."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(Path(proxy.__file__).parent.parent),
        "PYTHONUNBUFFERED": "1",
        # Shown, not raised: a warning of a third-party library must not change how the daemon behaves.
        "PYTHONWARNINGS": "default",
        **(extra or {}),
    }


def run_command(
    words: Sequence[str], *, home: Path, env: Mapping[str, str] | None = None, timeout: float = 50.0, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of ``lava-proxy`` to its end, in a clean environment whose home and current directory is ``home``.
    ``options`` are those of ``subprocess.run``."""
    environment = clean_environment(home, env)
    arguments = [sys.executable, "-m", "proxy", *words]
    if options or not forked.possible(env or {}):
        return subprocess.run(
            arguments,
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )
    with TemporaryFile() as out, TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        files = [nothing.fileno(), out.fileno(), err.fileno()]
        process = forked.start(words, env=environment, folder=home, files=files)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


class Daemon:
    """One running ``lava-proxy serve``. ``url`` is ``http://127.0.0.1:<port>``."""

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        secrets: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
        umask: int = -1,
        fork: bool = True,
    ) -> None:
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = directory / "config.toml"
        self.config.touch(mode=0o600)
        self.config.write_text(config, encoding="utf-8")
        #: Values that must stand in nothing this daemon prints; a test may add to them while it runs.
        self.secrets = list(secrets)
        #: Set by a test that provokes one on purpose.
        self.trouble_expected = False
        self._log = directory / "daemon.log"
        #: Its ledger, unless the configuration names another: in its own home.
        self.ledger = directory / ".local" / "share" / "lava-proxy" / "ledger.sqlite"
        words = ["serve", "--config", str(self.config), "--port", str(self.port), *args]
        environment = clean_environment(directory, env)
        self.process: subprocess.Popen[bytes] | forked.Forked
        with self._log.open("wb") as log, open(os.devnull, "rb") as nothing:
            if fork and umask < 0 and forked.possible(env or {}):
                files = [nothing.fileno(), log.fileno(), log.fileno()]
                self.process = forked.start(words, env=environment, folder=directory, files=files)
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "proxy", *words],
                    stdin=nothing,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,  # no terminal, wherever the tests run
                    umask=umask,
                )

    def output(self) -> str:
        """Everything it printed so far, standard output and standard error together."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def rss(self) -> int:
        """Bytes of memory that it holds, once its ledger is open: what that imports is not what a test measures."""
        log = self.ledger.with_name(f"{self.ledger.name}-wal")
        deadline = time.monotonic() + START_LIMIT
        while "[ledger]" not in self.config.read_text(encoding="utf-8") and not log.exists():
            assert time.monotonic() < deadline, f"the ledger was not opened:\n{self.output()}"
            time.sleep(0.02)
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def get(self, path: str) -> int:
        """The status of a GET on the daemon's own port; OSError or HTTPException when no answer comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def wait_until_up(self, path: str = "/healthz") -> None:
        """Return once a GET of ``path`` answers 200; AssertionError with the output when none comes."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.output()}")
            try:
                if self.get(path) == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"no 200 on {path} within {START_LIMIT:.0f} s:\n{self.output()}")
            time.sleep(0.02)

    def stop(self, signum: int = signal.SIGTERM, limit: float = STOP_LIMIT) -> int:
        """Send the signal (unless it has ended already), wait for the end, and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(limit)

    def close(self) -> None:
        """End it and check what holds for every daemon: a clean stop, no trouble, no secret in its output."""
        stopped_by_test = self.process.poll() is not None
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end the daemon in {STOP_LIMIT:.0f} s:\n{self.output()}") from None
        output = self.output()
        if not stopped_by_test:
            assert code == 0, f"the daemon ended with {code}:\n{output}"
        if not self.trouble_expected:
            signs = [sign for sign in SIGNS_OF_TROUBLE if sign in output]
            assert not signs, f"{signs} in the daemon's output:\n{output}"
        # The output itself is not shown here: it holds the secret.
        assert not leaks(output, self.secrets), "a secret stands in the daemon's output"


class StartDaemon(Protocol):
    """The type of the fixture ``daemon``: call it as often as daemons are needed."""

    def __call__(
        self,
        config: str = "",
        *,
        secrets: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
        umask: int = -1,
        fork: bool = True,
        ready: str | None = "/healthz",
    ) -> Daemon:
        """Start one with this TOML text; ``ready`` is what must answer 200 first (``None``: do not wait).

        ``fork=False``: as a child of this process, whose limits it inherits (see ``forked``).
        """
        ...
