"""Where the time of the hot path goes: py-spy's samples of a daemon under load, added up by function.

py-spy samples without stopping the daemon (``--nonblocking``), so a sample now and then is torn and left out by it. The
daemon is not dumpable, so only root may look into it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import processes
import windows

if TYPE_CHECKING:
    from windows import Target

RATE = 400
_LOOP = "run_loop "
_NATIVE = "the event loop's own C code and system calls (uvloop)"


@dataclass(frozen=True)
class Profile:
    """Shares of the samples in which the loop was busy: by function itself, and with all that it called."""

    samples: int
    own: list[tuple[str, float]]
    inclusive: list[tuple[str, float]]
    #: By module of ours: the share spent in its own lines.
    modules: list[tuple[str, float]]


def profile(target: Target, folder: Path, seconds: float, kind: str = "requests", top: int = 15) -> Profile:
    """Sample the target's process while 16 connections load it: small requests, or unpaced ``events``.

    Raises `processes.Unavailable`.
    """
    beside = Path(sys.executable).with_name("py-spy")
    program = shutil.which("py-spy") or (str(beside) if beside.exists() else None)
    if program is None:
        raise processes.Unavailable("py-spy is not installed")
    assert target.process is not None
    raw = folder / "profile.txt"
    load = threading.Thread(target=_load, args=(target, folder, seconds + 2, kind))
    load.start()
    try:
        how = ["--nonblocking", "--format", "raw", "--rate", str(RATE), "--duration", str(int(seconds))]
        done = subprocess.run(
            [program, "record", *how, "--output", str(raw), "--pid", str(target.process.child.pid)],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
            env=processes.environment(),
            preexec_fn=processes.pinned(processes.load_core()),
        )
    finally:
        load.join()
    if not raw.exists():
        raise processes.Unavailable(f"py-spy gave nothing: {(done.stderr or done.stdout).strip()[-300:]}")
    return added_up(raw.read_text(encoding="utf-8"), top)


def _load(target: Target, folder: Path, seconds: float, kind: str) -> None:
    if kind == "requests":
        windows.requests(target, folder, connections=16, seconds=seconds)
    else:
        windows.with_load(kind, target, connections=16, seconds=seconds)


def added_up(text: str, top: int) -> Profile:
    """From py-spy's raw format: ``frame;frame;frame count`` per line, outermost first."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    total = 0
    for line in text.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";") if "(" in frame]
        if not frames or any("(threading.py)" in frame or "/threading.py)" in frame for frame in frames):
            continue  # the thread that writes the log is not the loop's
        at = next((place for place, frame in enumerate(frames) if frame.startswith(_LOOP)), -1)
        # What leads to the loop is in every stack and says nothing; the loop's own lines are what the C code below costs.
        frames = frames[at + 1 :] or [_NATIVE]
        count = int(number)
        total += count
        own[frames[-1]] += count
        modules[frames[-1].rpartition("(")[2].rstrip(")")] += count
        for frame in set(frames):
            inclusive[frame] += count

    def shares(counts: Counter[str]) -> list[tuple[str, float]]:
        return [(name, count / max(1, total)) for name, count in counts.most_common(top)]

    return Profile(total, shares(own), shares(inclusive), shares(modules))


def _function(frame: str) -> str:
    """``name (folder/file.py:12)`` without the line and with the file's last two parts."""
    name, _, place = frame.strip().rpartition(" (")
    file = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({'/'.join(Path(file).parts[-2:])})"
