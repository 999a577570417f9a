"""The outbox: usage is reported once, whatever happens to the process, to Lava, or to the letters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment
from ledgers import rows_of
from outbox_child import POINTS
from security_stand import case

from proxy.ledger.schema import OutboxState

if TYPE_CHECKING:
    from proxy.emulator import Emulator
    from proxy.emulator.biller import Repeated

CHILD = Path(__file__).with_name("outbox_child.py")


class OutboxStand:
    """An emulator that bills, and the file of a ledger."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.emulator = emulator
        self.path = folder / "ledger.sqlite"

    def run(self, point: str = "none", count: int = 0, limit: float = 20.0) -> str:
        """Run the process to its end. Return what it printed; it must have died if it should."""
        process = self.start(point, count, limit)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (0 if point == "none" else -signal.SIGKILL), err
        return str(out)

    def start(self, point: str = "none", count: int = 0, limit: float = 20.0) -> Any:
        env = clean_environment(self.path.parent, {"KEY": self.emulator.world.secret_key})
        env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(CHILD.parent)])
        words = [sys.executable, str(CHILD), str(self.path), self.emulator.base_url, point, str(count), str(limit)]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def billed(self) -> list[str]:
        """The ids of the reported records, one for each time something was billed."""
        return [each.request_id for each in self.emulator.world.billing.records.values() if each.reported]

    def states(self) -> list[int]:
        return [state for (state,) in rows_of(self.path, "SELECT state FROM outbox ORDER BY seq")]

    def ids(self, state: OutboxState) -> set[str]:
        """The ids of the requests in this state."""
        rows = rows_of(self.path, f"SELECT lower(hex(id)) FROM outbox WHERE state = {int(state)}")
        return {f"req_{each}" for (each,) in rows}


@pytest.fixture
def stand(request: pytest.FixtureRequest, emulator: Emulator, tmp_path: Path) -> OutboxStand:
    """The parameter is the name of the case."""
    return OutboxStand(emulator, tmp_path)


BEFORE, INTENT = POINTS[:1], POINTS[1:3]
"""Points where nothing is stored, and where an intent is: what its call used is not known."""
CASES = [
    pytest.param(
        point, repeated, id=f"{point}, {repeated}", marks=() if (point, repeated) in QUICK else pytest.mark.full
    )
    for QUICK in [{("after the intent", "conflict"), ("after the call", "twice")}]
    for point in POINTS
    for repeated in (("conflict", "first", "twice") if point in POINTS[4:] else ("conflict",))
]


@case("LIF-10")
@pytest.mark.parametrize(("point", "repeated"), CASES)
def test_a_process_that_is_killed_bills_once(stand: OutboxStand, point: str, repeated: Repeated) -> None:
    """At each step, whatever Lava does with a repeated id: not lost, and not billed twice."""
    stand.emulator.world.behaviour.biller.repeated = repeated
    stand.run(point, 1)
    assert stand.run() == "empty\n"
    if point in BEFORE:
        assert (stand.states(), stand.billed()) == ([], [])
    elif point in INTENT:
        assert (stand.states(), stand.billed()) == ([OutboxState.DEAD], [])
    else:
        assert stand.states() == []
        assert len(stand.billed()) == 1
