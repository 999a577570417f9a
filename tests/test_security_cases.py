"""Every case of hostile-cases.json has a test in one of the files test_security_*.py, or waits for the ledger."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LIST = TESTS / "hostile-cases.json"
WAITING = frozenset(f"LIF-{number:02}" for number in (15,))
"""Cases that come with a later part."""
LARGE = (
    "BOD-09",
    "CLI-06",
    "LOD-01",
    "LOD-02",
    "LOD-05",
    "LOD-09",
    "LIF-01",
    "LIF-02",
    "LIF-06",
    "LIF-09",
    "LIF-14",
    "LIF-18",
)
"""Cases that have a size; their full form takes minutes."""


def files_of_cases() -> dict[str, Path]:
    """The file of each case that has a test."""
    found: dict[str, Path] = {}
    for path in sorted(TESTS.glob("test_security_*.py")):
        for name in re.findall(r'^@case\("([A-Z]+-\d+)"\)$', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert name not in found, f"{name} stands twice"
            found[name] = path
    return found


def test_every_case_has_a_test_or_waits_for_the_ledger() -> None:
    """The tests and the list are the same set."""
    listed = [each["id"] for each in json.loads(LIST.read_text())["cases"]]
    assert len(listed) == len(set(listed))
    assert set(files_of_cases()).isdisjoint(WAITING)
    assert set(files_of_cases()) | WAITING == set(listed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", LARGE)
def test_full_size(name: str) -> None:
    """The cases that have a size, as large as the list has them, in a run of their own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(files_of_cases()[name]),
        "-q",
        "-n",
        "0",
        "-k",
        name,
        "-o",
        "timeout=7000",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "SECURITY_FULL_SIZE": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=7100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
