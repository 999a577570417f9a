"""Long loads: what must hold for minutes, not how fast it is. One JSON line per case; exit code 1 when one did not hold.

    python benchmarks/soak.py                                       all cases at full length: about half an hour
    python benchmarks/soak.py --short                               the same cases, some seconds each
    python benchmarks/soak.py streams --seconds 300
    python benchmarks/soak.py short-requests --requests 1000000

Cases: streams, overload, slow-readers, slow-headers, short-requests. Each starts a daemon of its own with a default
configuration (local key, project with connection and meter, log to a file) and an upstream of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measurements
import processes
import proxies
import windows
from measurements import Watch, settled, started
from proxies import lava_proxy
from windows import Target

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Length:
    """How much of each case."""

    seconds: float = 300.0
    streams: int = 1000
    beyond: int = 200
    readers: int = 50
    bytes: int = 200_000_000
    sockets: int = 1000
    requests: int = 1_000_000


FULL = Length()
SHORT = Length(seconds=4.0, streams=200, beyond=40, readers=20, bytes=8_000_000, sockets=200, requests=4_000)

Pair = tuple[Target, Target]
"""The daemon and its upstream."""


def streams(pair: Pair, length: Length) -> tuple[bool, str, dict[str, Any]]:
    """Many paced streams at once for minutes (hostile case LOD-01)."""
    found = measurements.paced(pair[0], length.streams, length.seconds)
    bound = found["rss_before_mib"] + length.streams * 64 / 1024 + 64
    ok = found["cut"] == 0 and found["refused"] == 0 and found["whole"] == length.streams
    ok = ok and found["rss_peak_mib"] <= bound and found["delay_ms"]["p99"] < 50
    goal = f"{length.streams} whole, 0 cut, RSS <= {bound:.0f} MiB, p99 event delay < 50 ms"
    return ok, goal, found


def overload(pair: Pair, length: Length) -> tuple[bool, str, dict[str, Any]]:
    """More streams than ``max_concurrent`` (LOD-02): those beyond it are told so at once, the others do not notice."""
    found = measurements.paced(pair[0], length.streams + length.beyond, min(length.seconds, 60.0))
    told = "503 overloaded retry-after=1"
    ok = found["refused_by_kind"] == {told: length.beyond} and found["whole"] == length.streams and found["cut"] == 0
    ok = ok and found["refusal_ms"]["p99"] < 100
    goal = f"{length.streams} whole, {length.beyond} get {told} within 100 ms (p99), 0 cut"
    return ok, goal, found


def slow_readers(pair: Pair, length: Length) -> tuple[bool, str, dict[str, Any]]:
    """Large answers that their clients read slowly, then to the end: nothing piles up, nothing is lost."""
    daemon = pair[0]
    watch = Watch(daemon)
    # Each reader may hold what stands between the two sockets; the sockets' own buffers are the kernel's.
    bound = watch.before_mib + length.readers * 1.0 + 64
    try:
        window = windows.with_load(
            "readers",
            daemon,
            on_phase=watch.phase,
            limit=1800,
            connections=length.readers,
            size=length.bytes,
            seconds=min(length.seconds, 60.0),
        )
    finally:
        watch.close()
    found = {**window.result, "rss_before_mib": watch.before_mib, "rss_peak_mib": watch.peak_mib}
    found["cpu_share_while_slow"] = watch.cpu_share
    ok = found["whole"] == length.readers and found["wrong"] == 0 and found["rss_peak_mib"] <= bound
    return ok, f"{length.readers} whole answers of {length.bytes:,} bytes, RSS <= {bound:.0f} MiB", found


def slow_headers(pair: Pair, length: Length) -> tuple[bool, str, dict[str, Any]]:
    """Sockets that send their head a byte a second, while good clients keep their times."""
    daemon, mock = pair
    clients, long = 4, length.seconds >= 60
    seconds = max(11.5, min(length.seconds, 60.0))  # beyond the ten that a head may take
    alone = windows.with_load("requests", daemon, connections=clients, seconds=5.0 if long else 1.0)
    fresh = started(daemon, mock)
    good: list[windows.Window] = []

    def among_them(said: dict[str, Any]) -> None:
        good.append(windows.with_load("requests", daemon, connections=clients, seconds=seconds - 1.0))

    window = windows.with_load(
        "drips",
        daemon,
        on_phase=among_them,
        connections=length.sockets,
        seconds=seconds,
        ramp=length.sockets / 500,
        limit=seconds + 60,
    )
    after = settled(daemon, mock, fresh, pool=clients)
    among = good[0].result
    found = {
        "alone": {name: alone.result[name] for name in ("requests", "p50", "p99", "wrong")},
        "among_slow": {name: among[name] for name in ("requests", "p50", "p99", "wrong")},
        **window.result,
        "before": fresh.as_dict(),
        "after": after.as_dict(),
    }
    # Noise of a shared machine counts in milliseconds; a slow sender's harm would count in seconds.
    bound = 3 * float(alone.result["p99"]) + 25
    ended = window.result["ends"]
    ok = among["wrong"] == 0 and among["p99"] <= bound and set(ended) <= {"408", "503", "closed"} and bool(ended)
    ok = ok and after.no_more_than(fresh, pool=clients)
    return (
        ok,
        f"good clients: p99 <= {bound:.0f} ms, none refused; slow heads end with 408; descriptors as before",
        found,
    )


def short_requests(pair: Pair, length: Length) -> tuple[bool, str, dict[str, Any]]:
    """Short requests, 10 % of them cancelled and 5 % met by an upstream's fault (LOD-05): all is given back."""
    daemon, mock = pair
    clients = 32
    # The pool runs dry in fifteen seconds: at full length that is waited for.
    pool = 0 if length.requests >= 100_000 else clients
    share: dict[str, Any] = {"cancels": 0.10, "faults": 0.05, "connections": clients}
    fresh = started(daemon, mock)
    # The base is a warm daemon: libraries loaded, caches filled.
    windows.with_load("mixed", daemon, count=min(20_000, max(500, length.requests // 20)), **share)
    before = settled(daemon, mock, fresh, pool=pool)
    window = windows.with_load("mixed", daemon, count=length.requests, limit=3600, **share)
    after = settled(daemon, mock, fresh, pool=pool)
    found = {**window.result, "fresh": fresh.as_dict(), "before": before.as_dict(), "after": after.as_dict()}
    bound = before.rss_mib * 1.05
    ok = window.result["wrong"] == 0 and after.no_more_than(fresh, pool=pool) and after.rss_mib <= bound
    goal = f"0 wrong; descriptors, threads, requests in flight, upstream connections as before; RSS <= {bound:.1f} MiB"
    return ok, goal, found


CASES: dict[str, Callable[[Pair, Length], tuple[bool, str, dict[str, Any]]]] = {
    "streams": streams,
    "overload": overload,
    "slow-readers": slow_readers,
    "slow-headers": slow_headers,
    "short-requests": short_requests,
}


def run(name: str, length: Length, stage: proxies.Stage) -> bool:
    """One case with a daemon and an upstream of its own; prints its line."""
    mock = stage.fresh_mock()
    limit = length.streams if name == "overload" else None
    document: dict[str, Any] = {"case": name}
    daemon = None
    try:
        daemon = lava_proxy(stage.folder / name, f"http://127.0.0.1:{mock.port}", max_concurrent=limit)
        ok, goal, figures = CASES[name]((daemon, mock), length)
        document.update(ok=ok, goal=goal, figures=figures)
    except processes.Unavailable as why:
        document.update(ok=False, goal="", error=str(why))
    finally:
        if daemon is not None and daemon.process is not None:
            code = daemon.process.stop(90.0)
            document["exit_code"] = code
            trouble = [sign for sign in ("Traceback", "internal error") if sign in said(daemon.process)]
            if code != 0 or trouble:
                document.update(ok=False, trouble=trouble)
    print(json.dumps(document), flush=True)
    return bool(document["ok"])


def said(process: processes.Process) -> str:
    """The daemon's output and the faults in its log; the lines of requests are left out."""
    text = process.log.read_text(encoding="utf-8", errors="replace")
    log = process.folder / "requests.log"
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as lines:
            text += "".join(line for line in lines if '"event":"request"' not in line)
    return text


def main(words: list[str]) -> int:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks/soak.py", description="Long loads, as JSON lines.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--short", action="store_true", help="some seconds each")
    for field in dataclasses.fields(Length):
        kind = float if field.name == "seconds" else int
        parser.add_argument(f"--{field.name}", type=kind, metavar="N", help=f"default {field.default:,}")
    options = parser.parse_args(words)
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Length)}
    given = {name: value for name, value in given.items() if value is not None}
    length = dataclasses.replace(SHORT if options.short else FULL, **given)
    processes.cores()
    processes.stay_off_the_measured_core()
    processes.raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="lava-proxy-soak-") as folder:
        stage = proxies.Stage(Path(folder))
        try:
            results = [run(name, length, stage) for name in options.cases or CASES]
        finally:
            stage.close()
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
