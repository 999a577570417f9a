"""Measure this checkout and print the table of PERFORMANCE's goals.

    python benchmarks/run.py                                    all of it: about half an hour, on a quiet machine
    python benchmarks/run.py --quick                            a minute or two: does everything still work, roughly how fast
    python benchmarks/run.py --only requests,features
    python benchmarks/run.py --write benchmarks/RESULTS.md

See README.md here for what each group measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import hotpath
import measurements
import processes
import proxies
import report
from book import Book
from measurements import FULL, QUICK, Scale
from peers import PEERS, VERSIONS

GROUPS = (
    "requests",
    "peers",
    "features",
    "recording",
    "tls",
    "bodies",
    "events",
    "first-event",
    "start",
    "memory",
    "cancels",
    "paced",
)
NOT_QUICK = ("peers",)


def numbers(text: str) -> tuple[int, ...]:
    """``1,16`` as numbers. Raises ValueError."""
    return tuple(int(each) for each in text.split(","))


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure this checkout.")
    parser.add_argument("--quick", action="store_true", help="short windows, one round, no peers to install")
    parser.add_argument("--only", metavar="GROUPS", help=f"of {', '.join(GROUPS)}; with commas between")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of all windows")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a window")
    parser.add_argument("--connections", type=numbers, metavar="N,N", help="connections of the plain rows")
    parser.add_argument("--streams", type=int, metavar="N", help="paced streams at once")
    parser.add_argument("--stream-seconds", type=float, metavar="S", help="how long these are watched")
    parser.add_argument("--requests", type=int, metavar="N", help="requests of the memory row")
    parser.add_argument("--cancels", type=int, metavar="N", help="cancelled requests")
    parser.add_argument("--starts", type=int, metavar="N", help="starts to take the median of")
    parser.add_argument("--peers-folder", type=Path, metavar="DIR", help="where peers are installed, to be used again")
    parser.add_argument("--profile", action="store_true", help="a profile of the hot path too; --write implies it")
    parser.add_argument("--profile-seconds", type=float, metavar="S", help="how long that samples")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the report as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    return parser.parse_args(words)


def chosen(options: argparse.Namespace) -> tuple[list[str], Scale]:
    """The groups and the amount. SystemExit where a group is unknown."""
    base = QUICK if options.quick else FULL
    given = {name: value for name, value in vars(options).items() if value is not None}
    scale = dataclasses.replace(
        base, **{field.name: given[field.name] for field in dataclasses.fields(Scale) if field.name in given}
    )
    groups = [group for group in GROUPS if not (options.quick and group in NOT_QUICK)]
    if options.only is not None:
        groups = [each.strip() for each in options.only.split(",") if each.strip()]
        unknown = sorted(set(groups) - set(GROUPS))
        if unknown:
            raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return groups, scale


def tell(text: str) -> None:
    """What goes on, for whoever waits; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def start_peers(stage: proxies.Stage, folder: Path) -> list[str]:
    """Install and start the peers; the names of those that run."""
    running = []
    for name, start in PEERS.items():
        tell(f"{name} {VERSIONS[name]}: installing and starting …")
        try:
            stage.add(name, start(folder / name.replace(" ", "-").lower(), stage.json().port))
        except processes.Unavailable as why:
            stage.unavailable[name] = str(why)
            tell(f"  skipped: {report.one_line(str(why))}")
        else:
            running.append(name)
    return running


def profile(stage: proxies.Stage, folder: Path, scale: Scale, book: Book) -> dict[str, hotpath.Profile]:
    """Where the time goes: small requests, and streams."""
    found = {}
    for what, name, kind in (
        ("small requests", "lava-proxy", "requests"),
        ("SSE events", "lava-proxy streams", "events"),
    ):
        tell(f"profile of {what} …")
        target = stage.target(name)
        if target is None:
            continue
        try:
            found[what] = hotpath.profile(target, folder, scale.profile_seconds, kind)
        except processes.Unavailable as why:
            book.reasons[f"profile of {what}"] = str(why)
    return found


def main(words: list[str]) -> int:
    """Measure, print, write."""
    options = arguments(words)
    groups, scale = chosen(options)
    about = {**processes.machine(), "date": time.strftime("%Y-%m-%d")}
    processes.stay_off_the_measured_core()
    processes.raise_descriptor_limit()
    book = Book()
    profiles: dict[str, hotpath.Profile] = {}
    reference = "nginx" if processes.find("nginx") or not processes.find("haproxy") else "haproxy"
    with tempfile.TemporaryDirectory(prefix="lava-proxy-benchmark-") as name:
        folder = Path(name)
        stage = proxies.Stage(folder)
        try:
            peers = start_peers(stage, options.peers_folder or folder / "peers") if "peers" in groups else []
            planned = list(measurements.jobs(groups, scale, folder, peers, reference))
            measurements.measure(book, stage, planned, scale, tell)
            measurements.once(book, stage, groups, scale, reference, tell)
            if options.profile or options.write:
                profiles = profile(stage, folder, scale, book)
        finally:
            stage.close()
        book.reasons.update(stage.unavailable)

    versions = proxies.versions()
    if "peers" in groups:
        versions.update(VERSIONS)
    about["versions"] = "; ".join(f"{name}: {version}" for name, version in versions.items())
    about["measured"] = (
        f"{scale.rounds} interleaved rounds, windows of {scale.seconds:g} s; groups: {', '.join(groups)}"
    )
    about["plain requests by"] = (
        "wrk" if processes.find("wrk") and scale.seconds >= 1 else "load.py (no wrk, or windows under 1 s)"
    )
    about["upstream of the small JSON"] = "nginx" if processes.find("nginx") else "upstreams.py"
    show(book, reference, about, profiles)
    if options.write:
        former = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        command = " ".join(["python benchmarks/run.py", *words])
        options.write.write_text(report.document(book, reference, about, profiles, command, former), encoding="utf-8")
        tell(f"written: {options.write}")
    if options.json:
        rows = [{"row": row, "column": column, "rounds": rounds} for (row, column), rounds in book.values.items()]
        document = {"about": about, "rows": rows, "facts": book.facts, "reasons": book.reasons}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    ours = [name for name in book.reasons if "lava-proxy" in name and name not in stage.unavailable]
    return 1 if ours or "lava-proxy" in stage.unavailable else 0


def show(book: Book, reference: str, about: dict[str, str], profiles: dict[str, hotpath.Profile]) -> None:
    """The report for a terminal."""
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += ["", *report.goals(report.figures(book, reference), markdown=False)]
    lines += ["", *report.features(book, markdown=False), "", *report.rows(book, reference, markdown=False)]
    for what, found in profiles.items():
        lines += ["", f"{what}: {found.samples} samples", *report.hot_path(found, markdown=False)]
    lines += ["", *(f"not measured: {name}: {report.one_line(why)}" for name, why in book.reasons.items())]
    lines += [f"wrong answers: {name}: {count}" for name, count in book.wrong.items()]
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
