"""How each row is measured: windows that every round repeats, and measurements that are made once."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import processes
import psutil
import windows
from proxies import SERVER_KEY, VARIANTS, WITHOUT_LEDGER, Stage, lava_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from book import Book
    from windows import Target

MIB = 2**20
CONNECTIONS = (1, 16, 64, 256)
SETTLE_SECONDS = 45.0
"""The pool keeps idle connections for 15 s; then everything should be as it was."""


@dataclass(frozen=True)
class Scale:
    """How much of everything. `FULL` is what PERFORMANCE's goals are about."""

    seconds: float = 5.0
    rounds: int = 5
    streams: int = 1000
    stream_seconds: float = 60.0
    requests: int = 100_000
    cancels: int = 10_000
    starts: int = 7
    profile_seconds: float = 10.0
    connections: tuple[int, ...] = CONNECTIONS


FULL = Scale()
QUICK = Scale(
    seconds=1.0, rounds=1, streams=200, stream_seconds=3.0, requests=5_000, cancels=500, starts=2, profile_seconds=4.0
)


@dataclass(frozen=True)
class Job:
    """One window of a row: ``target`` is a name that the stage knows, ``column`` the name in the report."""

    row: str
    target: str
    column: str
    run: Callable[[Target], dict[str, float]]


def jobs(groups: list[str], scale: Scale, folder: Path, peers: list[str], reference: str) -> Iterator[Job]:
    """The windows of one round, in order. ``reference`` is the C proxy that ratios are taken against."""

    def plain(connections: int, **options: int) -> Callable[[Target], dict[str, float]]:
        return lambda target: _requests(target, folder, connections, scale.seconds, **options)

    if "requests" in groups:
        for connections in scale.connections:
            for name in dict.fromkeys(("direct", reference, "lava-proxy", "haproxy")):
                if name == "direct" and connections > 16:
                    continue
                if name == "haproxy" and name != reference and connections != 16:
                    continue
                yield Job(f"requests c={connections}", name, name, plain(connections))
    elif "peers" in groups:
        for name in (reference, "lava-proxy"):
            yield Job("requests c=16", name, name, plain(16))
    if "peers" in groups:
        for name in peers:
            yield Job("requests c=1", name, name, plain(1))
            yield Job("requests c=16", name, name, plain(16))
    if "features" in groups:
        for name in VARIANTS:
            yield Job("features c=16", name, name, plain(16))
    if "recording" in groups:
        for connections in (1, 16):
            for name, column in (("everything on", "ledger on"), ("without the ledger", "ledger off")):
                yield Job(f"recording c={connections}", name, column, plain(connections))
    if "tls" in groups:
        for name in ("nginx", "lava-proxy"):
            yield Job("TLS upstream c=16", f"{name} TLS", name, plain(16))
    if "bodies" in groups:
        for name, target in ((reference, f"{reference} bodies"), ("lava-proxy", "lava-proxy streams")):
            yield Job("1 MiB request c=8", target, name, plain(8, upload=MIB))
            yield Job("1 MiB answer c=8", target, name, plain(8, size=MIB))
    if "events" in groups:
        for name in ("direct", reference, "lava-proxy"):
            yield Job("SSE events, 16 streams", f"{name} streams", name, lambda target: _events(target, scale.seconds))
    if "first-event" in groups:
        for name in ("direct", reference, "lava-proxy"):
            yield Job("time to first event", f"{name} streams", name, lambda target: _first(target, scale.seconds))


def measure(book: Book, stage: Stage, planned: list[Job], scale: Scale, tell: Callable[[str], None]) -> None:
    """Run all windows of all rounds, one row's targets close together, every second round in reverse."""
    for name in dict.fromkeys(job.target for job in planned):
        target = stage.target(name)
        if target is None:
            tell(f"{name}: not measured: {stage.unavailable[name]}")
            continue
        if scale.seconds < 1:
            continue  # no measurement worth a warm-up
        with contextlib.suppress(processes.Unavailable):  # the windows will say what is wrong
            windows.with_load("requests", target, connections=8, seconds=0.3)
    for number in range(scale.rounds):
        tell(f"round {number + 1} of {scale.rounds}")
        for job in planned if number % 2 == 0 else list(reversed(planned)):
            target = stage.target(job.target)
            if target is None:
                continue
            try:
                figures = job.run(target)
            except processes.Unavailable as why:
                book.reasons[f"{job.row}, {job.column}"] = str(why)
                continue
            book.add(job.row, job.column, figures)
            shown = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())
            tell(f"  {job.row}: {job.column}: {shown}")


def _requests(
    target: Target, folder: Path, connections: int, seconds: float, *, upload: int = 0, size: int = 0
) -> dict[str, float]:
    window = windows.requests(target, folder, connections=connections, seconds=seconds, upload=upload, size=size)
    count = window.number("requests")
    wrong = window.number("wrong")
    good = max(0.0, count - wrong) if window.result.get("wrong_by_kind") is None else count  # wrk counts both
    return {
        "per_s": good / window.number("seconds"),
        "p50_ms": window.number("p50"),
        "p99_ms": window.number("p99"),
        "cpu_us": window.cpu * 1e6 / max(1.0, count),
        "wrong": wrong,
    }


def _events(target: Target, seconds: float) -> dict[str, float]:
    window = windows.with_load("events", target, connections=16, seconds=seconds)
    events = window.number("events")
    return {
        "per_s": events / window.number("seconds"),
        "cpu_us": window.cpu * 1e6 / max(1.0, events),
        "wrong": window.number("wrong"),
    }


def _first(target: Target, seconds: float) -> dict[str, float]:
    window = windows.with_load("first", target, seconds=seconds)
    return {"p50_ms": window.number("p50"), "p99_ms": window.number("p99"), "wrong": window.number("wrong")}


# --- made once -------------------------------------------------------------------------------------------------------


class Watch:
    """Samples a process's memory while a load runs, and its processor time between ``steady`` and ``over``."""

    def __init__(self, target: Target) -> None:
        assert target.process is not None
        self.process = target.process
        self.before_mib = self.process.rss_mib()
        self.peak_mib = self.before_mib
        self.cpu_share = 0.0
        self._from: tuple[float, float] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def phase(self, said: dict[str, Any]) -> None:
        """The load said where it is."""
        now = (time.monotonic(), self.process.cpu_seconds())
        if said["phase"] == "steady":
            self._from = now
        elif self._from is not None:
            self.cpu_share = (now[1] - self._from[1]) / (now[0] - self._from[0])

    def close(self) -> None:
        """No more samples."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_mib = max(self.peak_mib, self.process.rss_mib())


def paced(target: Target, streams: int, seconds: float, rate: float = 20.0) -> dict[str, Any]:
    """Many paced streams through one target: processor share, memory, event delays, cuts."""
    watch = Watch(target)
    try:
        window = windows.with_load(
            "paced",
            target,
            on_phase=watch.phase,
            connections=streams,
            seconds=seconds,
            rate=rate,
            ramp=streams / 500,
            limit=seconds + 180,
        )
    finally:
        watch.close()
    return {
        **window.result,
        "cpu_share": watch.cpu_share,
        "rss_before_mib": watch.before_mib,
        "rss_peak_mib": watch.peak_mib,
    }


def starts(stage: Stage, count: int) -> list[float]:
    """Seconds from the start of the process to ready, warm disk. The first start is not counted."""
    found = []
    upstream = f"http://127.0.0.1:{stage.json().port}"
    for number in range(count + 1):
        started = time.monotonic()
        target = lava_proxy(stage.folder / "starts", upstream)
        seconds = time.monotonic() - started
        assert target.process is not None
        target.process.stop()
        if number:
            found.append(seconds)
    return found


def help_seconds(stage: Stage, count: int) -> list[float]:
    """Seconds that ``lava-proxy --help`` takes. The first is not counted."""
    found = []
    for number in range(count + 1):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "proxy", "--help"],
            cwd=stage.folder,
            env=processes.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
            preexec_fn=processes.pinned(processes.measured_core()),
        )
        if number:
            found.append(time.monotonic() - started)
    return found


def memory(stage: Stage, requests: int) -> dict[str, float]:
    """Resident memory in MiB of a fresh daemon: idle (also without the ledger), after its first requests, after many."""
    upstream = f"http://127.0.0.1:{stage.json().port}"
    without = lava_proxy(stage.folder / "memory-off", upstream, WITHOUT_LEDGER).process
    assert without is not None
    time.sleep(1.0)
    off = without.rss_mib()
    without.stop()
    target = lava_proxy(stage.folder / "memory", upstream)
    process = target.process
    assert process is not None
    try:
        time.sleep(3.0)  # the ledger is opened after the start
        idle = process.rss_mib()
        made = wrong = 0.0
        warm = 0.0
        while made < requests:
            seconds = 0.3 if not made else 3.0 if requests >= 50_000 else 1.0
            window = windows.requests(target, stage.folder, connections=16, seconds=seconds)
            made += window.number("requests")
            wrong += window.number("wrong")
            warm = warm or process.rss_mib()
            if not window.number("requests"):
                break
        time.sleep(1.0)
        return {
            "off_mib": off,
            "idle_mib": idle,
            "warm_mib": warm,
            "after_mib": process.rss_mib(),
            "requests": made,
            "wrong": wrong,
        }
    finally:
        process.stop()


@dataclass(frozen=True)
class State:
    """What a daemon holds. ``upstream`` are the connections that the upstream sees; ``None``: cannot be told."""

    descriptors: int | None
    in_flight: int
    threads: int
    rss_mib: float
    upstream: int

    @property
    def own(self) -> int:
        """Descriptors but for the connections to the upstream: the pool keeps some of those for a while."""
        return 0 if self.descriptors is None else self.descriptors - self.upstream

    def no_more_than(self, other: State, *, pool: int) -> bool:
        """Whether this is what `other` was; of idle connections to the upstream it may have ``pool`` more."""
        return (
            self.in_flight <= other.in_flight
            and self.threads <= other.threads
            and self.own <= other.own
            and self.upstream <= other.upstream + pool
        )

    def as_dict(self) -> dict[str, float | None]:
        """For the report."""
        return dict(vars(self))


def metrics(target: Target) -> dict[str, float]:
    """The daemon's own /metrics, by name with labels."""
    status, text = processes.get(target.port, "/metrics", {"authorization": f"Bearer {SERVER_KEY}"})
    if status != 200:
        raise processes.Unavailable(f"/metrics answered {status}")
    told = {}
    for line in text.decode("utf-8").splitlines():
        name, _, value = line.rpartition(" ")
        if name and not name.startswith("#"):
            told[name] = float(value)
    return told


def state(target: Target, mock: Target) -> State:
    """What the daemon holds now, by the system, by its own /metrics, and by the upstream."""
    process = target.process
    assert process is not None
    told = metrics(target)
    descriptors = process.descriptors()
    if descriptors is None:  # not our user's to see; the daemon counts its own
        own = told.get("process_open_fds")
        descriptors = None if own is None else int(own)
    _, seen = processes.get(mock.port, "/", {"x-mock": "stats"})
    return State(
        descriptors,
        int(told["lava_proxy_streams_in_flight"]),
        _threads(process),
        process.rss_mib(),
        int(json.loads(seen)["connections"]),
    )


def _threads(process: processes.Process) -> int:
    return int(psutil.Process(process.child.pid).num_threads())


def started(target: Target, mock: Target) -> State:
    """The state of a daemon once it has all its threads and its ledger is open.

    Two seconds on, it looks at its files for the first time, in a thread that it keeps.
    """
    assert target.process is not None
    windows.with_load("requests", target, connections=1, seconds=0.1)
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and (
        _threads(target.process) < 4  # the loop's, the log's, the ledger's, the files'
        or not metrics(target).get("lava_proxy_ledger_written_total")
    ):
        time.sleep(0.1)
    return state(target, mock)


def settled(target: Target, mock: Target, base: State, *, pool: int = 0, seconds: float = SETTLE_SECONDS) -> State:
    """The daemon's state once it is as `base` was, or when the time is over. ``pool``: see `State.no_more_than`."""
    deadline = time.monotonic() + seconds
    while True:
        now = state(target, mock)
        if now.no_more_than(base, pool=pool) or time.monotonic() > deadline:
            return now
        time.sleep(0.25)


def cancelled(stage: Stage, count: int) -> dict[str, Any]:
    """A fresh daemon before and after many requests that their clients left, and whether it still serves.

    Before is: warm, all its libraries loaded, its pool run dry.
    """
    mock = stage.fresh_mock()  # nobody else's connections in its counts
    target = lava_proxy(stage.folder / "cancelled", f"http://127.0.0.1:{mock.port}")
    assert target.process is not None
    try:
        fresh = started(target, mock)
        windows.with_load("cancels", target, connections=50, count=min(count, 250))
        before = settled(target, mock, fresh)
        window = windows.with_load("cancels", target, connections=50, count=count)
        after = settled(target, mock, before)
        good = windows.with_load("requests", target, connections=16, seconds=0.5)
        return {
            "cancelled": window.result["cancelled"],
            "by_kind": window.result["by_kind"],
            "seconds": window.result["seconds"],
            "fresh": fresh.as_dict(),
            "before": before.as_dict(),
            "after": after.as_dict(),
            "as_before": after.no_more_than(before, pool=0),
            "good_after": good.result["requests"],
            "wrong_after": good.result["wrong"],
        }
    finally:
        target.process.stop()


def once(
    book: Book, stage: Stage, groups: list[str], scale: Scale, reference: str, tell: Callable[[str], None]
) -> None:
    """The measurements that are made once, into the book's facts."""

    def keep(name: str, make: Callable[[], Any]) -> None:
        tell(f"{name} …")
        try:
            book.facts[name] = make()
        except processes.Unavailable as why:
            book.reasons[name] = str(why)
            tell(f"  not measured: {why}")
        else:
            tell(f"  {book.facts[name]}")

    if "start" in groups:
        keep("start", lambda: median(starts(stage, scale.starts)))
        keep("help", lambda: median(help_seconds(stage, scale.starts)))
    if "memory" in groups:
        keep("memory", lambda: memory(stage, scale.requests))
    if "cancels" in groups:
        keep("cancels", lambda: cancelled(stage, scale.cancels))
    if "paced" in groups:
        for name in ("direct", reference, "lava-proxy"):
            target = stage.target(f"{name} streams")
            if target is None:
                book.reasons[f"paced {name}"] = stage.unavailable[f"{name} streams"]
                continue
            keep(f"paced {name}", functools.partial(paced, target, scale.streams, scale.stream_seconds))
