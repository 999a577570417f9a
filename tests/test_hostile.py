"""Nothing gets in, nothing leaks, nothing lies: every case of hostile-cases.json, against real daemons on real sockets.

The checks stand in ``hostile_*.py``, by group; what they share is in ``hostile_setup.py``. Cases that need a ledger wait for
it. The cases of the group load run here in a short form; the test marked ``slow`` runs them as large as the list says, and
HOSTILE_FULL does so for one of them alone (``HOSTILE_FULL=1 pytest -k LOD-01``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(
    "hostile_setup",
    "hostile_access",
    "hostile_alike",
    "hostile_clients",
    "hostile_lifecycle",
    "hostile_mutations",
    "hostile_parsing",
    "hostile_secrets",
    "hostile_targets",
    "hostile_travel",
    "hostile_upstream",
)

import hostile_access  # noqa: E402, F401  (fills the register, as the next ones do)
import hostile_alike  # noqa: E402, F401
import hostile_clients  # noqa: E402, F401
import hostile_lifecycle  # noqa: E402, F401
import hostile_mutations  # noqa: E402
import hostile_parsing  # noqa: E402, F401
import hostile_secrets  # noqa: E402, F401
import hostile_targets  # noqa: E402, F401
import hostile_travel  # noqa: E402
import hostile_upstream  # noqa: E402, F401
from hostile_setup import BEYOND, CASES, Stand  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, FIFOs and file modes")

LIST = Path(__file__).parent / "hostile-cases.json"
WAITING = frozenset(
    [f"LIF-{number:02}" for number in (8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20)] + ["LOD-08", "SEC-09"]
)
"""Cases about the ledger and its outbox, which come with them."""
LARGE = ("BOD-09", "CLI-06", "LOD-01", "LOD-02", "LOD-05", "LOD-09", "LIF-01", "LIF-02", "LIF-06")
"""Cases that have a size; their full form takes minutes."""
SEED = 20_261_123


@pytest.fixture(scope="session")
def stand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The daemons and the upstream of all cases."""
    made = Stand(tmp_path_factory.mktemp("hostile"))
    hostile_travel.begin_slow(made, {item.name for item in request.session.items})
    yield made
    made.close()


def test_every_case_is_run_or_waits_for_the_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    """The checks and the list are the same set; how many run and how many wait is printed."""
    listed = [each["id"] for each in json.loads(LIST.read_text())["cases"]]
    assert len(listed) == len(set(listed))
    assert set(CASES).isdisjoint(WAITING)
    assert set(CASES) | WAITING == set(listed)
    with capsys.disabled():
        print(f"\n{len(CASES)} hostile cases run, {len(WAITING)} wait for the ledger")


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name: str, stand: Stand) -> None:
    """The case has the outcome that the list demands, for each of its inputs."""
    stand.begin_case()
    CASES[name](stand)
    stand.finish_case()


@pytest.mark.parametrize("name", sorted(BEYOND))
def test_beyond_the_list(name: str, stand: Stand) -> None:
    """So have neighbours of the listed cases: other spellings, places and combinations."""
    stand.begin_case()
    BEYOND[name](stand)
    stand.finish_case()


def test_mutations(stand: Stand) -> None:
    """Damaged requests: no 500, no hang, and no disagreement on number, boundaries or credential of what goes upstream."""
    check(hostile_mutations.run(stand, 1_500, SEED))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutations(stand: Stand) -> None:
    """The same with more than ten thousand."""
    check(hostile_mutations.run(stand, 12_000, SEED + 1_000_000))


def check(report: hostile_mutations.Report) -> None:
    assert not report.wrong, "\n".join(report.wrong[:20])
    # The damage is neither always nor never fatal, or the run would show nothing.
    assert report.forwarded > report.conversations // 8
    assert report.refused > report.conversations // 8


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", LARGE)
def test_full_size(name: str) -> None:
    """The cases of the group load as large as the list has them, in a run of their own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(Path(__file__)),
            "-q",
            "-k",
            f"test_case and {name}",
            "-o",
            "timeout=7000",
        ],
        env={**os.environ, "HOSTILE_FULL": "1", "HOSTILE_SLOW_HEADS": "1000"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=7100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
