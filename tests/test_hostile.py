"""Nothing gets in, nothing leaks, nothing lies: every case of hostile-cases.json, against real daemons on real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

GROUPS = ["hostile_parsing", "hostile_targets", "hostile_access", "hostile_travel", "hostile_upstream", "hostile_clients", "hostile_lifecycle", "hostile_secrets"]
pytest.register_assert_rewrite("hostile_setup", *GROUPS)

import hostile_clients  # noqa: E402,F401
import hostile_lifecycle  # noqa: E402,F401
import hostile_secrets  # noqa: E402,F401
import hostile_parsing  # noqa: E402,F401
import hostile_upstream  # noqa: E402,F401
import hostile_travel  # noqa: E402,F401
import hostile_access  # noqa: E402,F401
import hostile_targets  # noqa: E402,F401
from hostile_setup import BEYOND, CASES, Stand  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("hostile"))
    hostile_travel.begin_slow(made, {item.name for item in request.session.items})
    yield made
    made.close()


@pytest.mark.parametrize("name", list(CASES))
def test_case(name: str, stand: Stand) -> None:
    """The outcome that the list demands."""
    stand.begin_case()
    CASES[name](stand)
    stand.finish_case()


@pytest.mark.parametrize("name", list(BEYOND))
def test_beyond_the_list(name: str, stand: Stand) -> None:
    """The outcome for neighbours of the listed cases."""
    stand.begin_case()
    BEYOND[name](stand)
    stand.finish_case()
