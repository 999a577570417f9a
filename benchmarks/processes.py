"""Programs under measurement: started, pinned to a core, watched and stopped; and the machine they run on.

Core 0 is for the program that is measured, core 1 for the load and the upstream, as PERFORMANCE's figures were taken.
Where the machine has one core, or no pinning, everything shares what there is, and the report says so.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
START_SECONDS = 90.0
"""Some peers take long to start."""


class Unavailable(Exception):
    """Something that cannot be measured here; the message says why."""


def find(program: str) -> str | None:
    """The path of a program: on the PATH, or where Debian keeps servers."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def raise_descriptor_limit() -> None:
    """A thousand streams are two thousand sockets. Children inherit this."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@functools.cache
def cores() -> tuple[int | None, int | None]:
    """(core of what is measured, core of the load); ``None``: not pinned. As it was when first asked."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (usable[0], usable[0])


def measured_core() -> int | None:
    """The core of the program that is measured."""
    return cores()[0]


def load_core() -> int | None:
    """The core of the load and the upstream."""
    return cores()[1]


def stay_off_the_measured_core() -> None:
    """This program itself belongs to the load."""
    core = load_core()
    if core is not None:
        os.sched_setaffinity(0, {core})


def pinned(core: int | None) -> Callable[[], None] | None:
    """For ``preexec_fn``: the child, and all that it starts, stays on this core. The same as ``taskset -c``."""
    if core is None:
        return None
    return lambda: os.sched_setaffinity(0, {core})


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """For children: nothing of the user's that would change what they do (keys, proxies, warnings)."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT), **(extra or {})}


@dataclass
class Process:
    """A running program. Figures are of the whole tree below it."""

    name: str
    command: Sequence[str]
    folder: Path
    core: int | None = field(default_factory=measured_core)
    env: Mapping[str, str] | None = None
    started: float = field(init=False)
    child: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log = self.folder / "output.txt"
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=pinned(self.core),
                start_new_session=True,
            )
        self._process = psutil.Process(self.child.pid)

    def output(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def wait_for(self, port: int, path: str | None = None, seconds: float = START_SECONDS) -> float:
        """Wait until it listens, or answers 200 at ``path``; gives the seconds since its start.

        Raises `Unavailable` with what it said where it ends or does not come up.
        """
        deadline = self.started + seconds
        while True:
            if self.child.poll() is not None:
                raise Unavailable(f"{self.name} ended with {self.child.returncode}: {self.output()}")
            if _answers(port, path):
                return time.monotonic() - self.started
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name} was not ready after {seconds:.0f} s: {self.output()}")
            time.sleep(0.002)

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Processor time so far, user and system."""
        total = 0.0
        for each in self._tree():
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    def rss_mib(self) -> float:
        """Resident memory, shared pages included."""
        total = 0
        for each in self._tree():
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
        return total / 2**20

    def descriptors(self) -> int | None:
        """Open files and sockets; ``None`` where the system does not tell us."""
        try:
            return sum(each.num_fds() for each in self._tree())
        except psutil.Error:
            return None

    def stop(self, seconds: float = 15.0) -> int | None:
        """End it and what it started; gives its exit code."""
        tree = self._tree()
        if self.child.poll() is None:
            self.child.terminate()
        try:
            code: int | None = self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            code = None
        for each in tree[1:]:
            with contextlib.suppress(psutil.Error):
                each.kill()
        return code


def _answers(port: int, path: str | None) -> bool:
    try:
        if path is None:
            with socket.create_connection(("127.0.0.1", port), 1.0):
                return True
        return get(port, path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of one GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def version_of(command: Sequence[str]) -> str:
    """The first line of what a program says of its version."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=environment(),
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    measured, load = cores()
    pinning = "not pinned" if measured is None else f"measured program on core {measured}, load and upstream on {load}"
    if measured is not None and measured == load:
        pinning += " (one core for all: the figures are too low)"
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.platform})",
        "pinning": pinning,
        "load average before": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
    }
