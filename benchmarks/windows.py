"""One window of load on one port, in a process on the load's core, with what the measured program spent meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import processes
from upstreams import REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
%s
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "seconds": %%.6f, "wrong": %%d, "p50": %%.4f, "p99": %%.4f, "max": %%.4f}\\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and how: one column of a row. ``process`` is what the processor time is charged to."""

    name: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    process: processes.Process | None = None


@dataclass(frozen=True)
class Window:
    """What a window gave. ``cpu`` is in seconds; ``phases`` are the lines that the load said on its way."""

    result: dict[str, Any]
    cpu: float
    phases: list[dict[str, Any]]

    def number(self, name: str) -> float:
        """A field of the result."""
        return float(self.result[name])


def with_load(
    kind: str,
    target: Target,
    *,
    on_phase: Callable[[dict[str, Any]], None] | None = None,
    limit: float = 900.0,
    **options: Any,
) -> Window:
    """A window by our own generator (load.py). ``on_phase`` is called for each line before the result."""
    given = {"port": target.port, "path": target.path, "headers": dict(target.headers), **options}
    command = [sys.executable, str(processes.HERE / "load.py"), kind, json.dumps(given)]
    return _run(command, target, on_phase, limit)


def with_wrk(
    target: Target, folder: Path, *, connections: int, seconds: float, upload: int = 0, size: int = 0
) -> Window:
    """A window of plain requests by wrk. ``size`` asks for an answer of that many bytes."""
    wrk = processes.find("wrk")
    assert wrk is not None
    headers = {"content-type": "application/json", **target.headers}
    if size:
        headers["x-mock"] = f"bytes {size}"
    body = REQUEST.decode("ascii")
    if upload:
        body = f'{body[:-1]},"user":"{"A" * max(0, upload - len(body) - 10)}"}}'
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{target.name.replace(' ', '-').replace('/', '-')}-{upload}-{size}.lua"
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    script.write_text(_SCRIPT % (body, lines), encoding="utf-8")
    url = f"http://127.0.0.1:{target.port}{target.path}"
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    return _run([*command, "-s", str(script), url], target, None, seconds + 60)


def requests(
    target: Target, folder: Path, *, connections: int, seconds: float, upload: int = 0, size: int = 0
) -> Window:
    """A window of plain requests: by wrk where there is one and the window is one of whole seconds, else by our own."""
    if processes.find("wrk") is None or seconds < 1:
        return with_load("requests", target, connections=connections, seconds=seconds, upload=upload, size=size)
    return with_wrk(target, folder, connections=connections, seconds=seconds, upload=upload, size=size)


def _run(command: list[str], target: Target, on_phase: Callable[[dict[str, Any]], None] | None, limit: float) -> Window:
    before = target.process.cpu_seconds() if target.process is not None else 0.0
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=processes.environment(),
        preexec_fn=processes.pinned(processes.load_core()),
    )
    watchdog = threading.Timer(limit, child.kill)
    watchdog.start()
    documents: list[dict[str, Any]] = []
    said: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if not line.startswith("{"):
                said.append(line)
                continue
            documents.append(json.loads(line))
            if on_phase is not None and "phase" in documents[-1]:
                on_phase(documents[-1])
        child.wait()
    finally:
        watchdog.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
    after = target.process.cpu_seconds() if target.process is not None else 0.0
    if child.returncode != 0 or not documents or "phase" in documents[-1]:
        why = "".join(said)[-1500:]
        raise processes.Unavailable(f"the load on {target.name} failed ({child.returncode}): {why}")
    return Window(documents[-1], after - before, documents[:-1])
