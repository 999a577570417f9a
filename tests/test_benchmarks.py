"""The benchmark commands run, in their shortest form; what they measure on a busy machine proves nothing and is not checked."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"

#: Windows shorter than a second are made by the generator of our own, so this needs neither wrk nor nginx.
SHORTEST = ["--quick", "--rounds", "1", "--seconds", "0.2", "--streams", "20", "--stream-seconds", "0.5"]
SHORTEST += ["--requests", "200", "--cancels", "25", "--starts", "1", "--profile-seconds", "1"]
SHORTEST += ["--connections", "1,16"]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform == "win32", reason="the benchmarks pin processes to cores and need uvloop"),
]


def command(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts."""
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *words],
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which are scripts in a folder and no package."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in [name for name, found in sys.modules.items() if str(FOLDER) in str(getattr(found, "__file__", ""))]:
        del sys.modules[name]


def test_run_prints_its_table(tmp_path: Path) -> None:
    """One window of each kind: the goals and the rows are printed, no request went wrong, and all of it is kept as JSON."""
    kept = tmp_path / "figures.json"
    groups = "requests,events,first-event,start,paced"
    done = command("run.py", *SHORTEST, "--only", groups, "--json", str(kept), "--write", str(tmp_path / "RESULTS.md"))
    assert done.returncode == 0, done.stderr[-3000:]
    for said in ("requests/s at c=16, small JSON", "cold start to ready", "not in this run", "requests c=1 "):
        assert said in done.stdout
    found = json.loads(kept.read_text(encoding="utf-8"))
    ours = {row["row"]: row["rounds"][0] for row in found["rows"] if row["column"] == "lava-proxy"}
    assert {"requests c=1", "requests c=16", "SSE events, 16 streams", "time to first event"} <= set(ours)
    assert [row for row, figures in ours.items() if figures["wrong"]] == []
    assert found["facts"]["paced lava-proxy"]["whole"] == 20
    document = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## Figures to reach" in document
    assert "the next thing to cut" in document


def test_cancelled_requests_leave_nothing() -> None:
    """The row of cancelled requests runs and finds the daemon as it was."""
    done = command("run.py", *SHORTEST, "--only", "cancels")
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("after 25 cancelled"))
    assert line.rstrip().endswith(" met"), line


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("streams", ["--streams", "50"]),
        ("overload", ["--streams", "30", "--beyond", "5", "--seconds", "2"]),
        ("slow-readers", ["--readers", "5", "--bytes", "3000000"]),
        ("short-requests", ["--requests", "1000"]),
    ],
)
def test_soak_holds(case: str, more: list[str]) -> None:
    """The short form of each long load: nothing cut, nothing wrong, everything given back."""
    done = command("soak.py", case, "--short", "--seconds", "1", *more)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["case"] for line in lines] == [case], done.stderr[-3000:]
    if case == "streams":
        # Its delays are a matter of the machine; that every stream came whole is not.
        assert lines[0]["figures"]["whole"] == 50
        return
    if case == "overload":
        assert lines[0]["figures"]["refused_by_kind"] == {"503 overloaded retry-after=1": 5}, lines[0]
        assert lines[0]["figures"]["whole"] == 30, lines[0]
        return
    assert lines[0]["ok"], lines[0]
    assert done.returncode == 0


def test_slow_heads_end() -> None:
    """Sockets that send a byte a second are ended with 408 while good clients are served."""
    done = command("soak.py", "slow-headers", "--short", "--sockets", "50")
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(line["figures"]["ends"]) == {"408"}, line
    assert line["figures"]["among_slow"]["wrong"] == 0


def test_the_ledgers_table_is_printed_and_kept(tmp_path: Path) -> None:
    """A small ledger is made and measured; its section of RESULTS.md is replaced, and the rest stays."""
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\n## Notes: profile of the hot path and the next thing to cut\n\nBy hand.\n")
    for _ in range(2):
        done = command("ledger.py", "--rows", "2000", "--times", "1", "--write", str(results))
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2,000 rows, `stats --since 30d`: the query" in done.stdout
    written = results.read_text(encoding="utf-8")
    assert written.count("## Ledger") == 1
    assert written.rstrip().endswith("By hand.")


def test_the_books_close(tmp_path: Path) -> None:
    """Some hundred requests, cut at every stage, with late, lost and doubled records: every goal is met, and kept."""
    results = tmp_path / "RESULTS.md"
    done = command("books.py", "--requests", "300", "--write", str(results))
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
    assert "300 requests, `close` beside the daemon" in done.stdout
    assert "req_planted; exit 1" in done.stdout
    assert results.read_text(encoding="utf-8").count("## Books") == 1


@pytest.mark.timeout(300)
def test_a_row_takes_at_most_250_bytes(module: Any, tmp_path: Path) -> None:
    """``requests`` with its indexes, at a million rows with ids, sessions and token counts of usual length."""
    ledger = module("ledger")
    path = tmp_path / "ledger.sqlite"
    ledger.make(path, 1_000_000, lambda _: None)
    own, _ = ledger.bytes_a_row(path, 1_000_000)
    assert own <= ledger.GOALS["bytes a row"]


def test_what_was_written_by_hand_is_kept(module: Any) -> None:
    """A new RESULTS.md keeps the notes of the one before."""
    report, book = module("report"), module("book")
    first = report.document(book.Book(), "nginx", {"machine": "any"}, {}, "run.py", "")
    noted = first.replace("(No notes yet.)", "The parser is next.")
    again = report.document(book.Book(), "nginx", {"machine": "another"}, {}, "run.py", noted)
    assert again.rstrip().endswith("The parser is next.")
    assert "another" in again
    assert again.count(report.KEEP) == 1


def test_ratios_are_taken_round_by_round(module: Any) -> None:
    """A machine that is slow in one round is slow for both sides of the ratio."""
    book = module("book").Book()
    for ours, theirs in ((10.0, 100.0), (2.0, 20.0), (30.0, 100.0)):
        book.add("row", "lava-proxy", {"per_s": ours})
        book.add("row", "nginx", {"per_s": theirs})
    assert book.ratio("row", "lava-proxy", "nginx", "per_s") == pytest.approx(0.1)
    assert book.median("row", "lava-proxy", "per_s") == 10.0
    assert book.ratio("row", "lava-proxy", "absent", "per_s") is None


def test_a_profile_is_added_up(module: Any) -> None:
    """Samples count for the innermost function, and once for each function above it; what leads to the loop is left out."""
    text = (
        "main (/x/cli/serve.py:1);run_loop (/x/proxy/daemon.py:9);call (/x/proxy/app.py:3);read (/x/proxy/http/connection.py:4) 3\n"
        "main (/x/cli/serve.py:1);run_loop (/x/proxy/daemon.py:9) 1\n"
        "Condition.wait (/x/threading.py:320) 50\n"
    )
    found = module("hotpath").added_up(text, 5)
    assert found.samples == 4
    assert found.own[0] == ("read (http/connection.py)", 0.75)
    assert ("call (proxy/app.py)", 0.75) in found.inclusive
