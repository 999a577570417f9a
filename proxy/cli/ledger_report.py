"""What ``lava-proxy check`` says of the ledger: where it is, whether it can be written, what was lost, prices that changed."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.cli import ledger_status
from proxy.cli.ledger_asking import money, requests, time_of
from proxy.ledger import queries, reading
from proxy.ledger.learning import CHANGED_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.cli.ledger_status import Writer
    from proxy.config.settings import LedgerSettings, Settings
    from proxy.ledger.queries import LeftPrice

_SHOWN = 10


class LedgerReport(NamedTuple):
    """The ledger of a configuration. ``writer`` is what its daemon says, or why it says nothing."""

    place: str
    enabled: bool
    problem: str | None
    writer: Writer | str
    left: list[LeftPrice]

    def document(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "enabled": self.enabled,
            "place": self.place,
            "problem": self.problem,
            "dropped": None if isinstance(self.writer, str) else self.writer.dropped,
        }

    def pairs(self) -> list[tuple[str, str]]:
        """Return it for people."""
        if not self.enabled:
            return [("place", self.place), ("written", "no: enabled = false under [ledger]")]
        daemon = self.writer if isinstance(self.writer, str) else self.writer.words()
        return [
            ("place", self.place),
            ("can be written", f"no: {self.problem}" if self.problem else "yes"),
            ("daemon", daemon),
        ]

    def warnings(self) -> Iterator[str]:
        """Yield what a person should know."""
        if self.problem is not None:
            yield f"the ledger is not written, so no cost is recorded: {self.problem}"
        if not isinstance(self.writer, str) and self.writer.dropped:
            yield (
                f"{requests(self.writer.dropped)} could not be written to the ledger since the daemon's start; its log says "
                "why, and `lava-proxy ledger heal` rebuilds what Lava has records of"
            )
        for each in self.left[-_SHOWN:]:
            yield (
                f"{each.provider}/{each.model}: {CHANGED_ROWS} bills in a row from {time_of(each.started_us):%Y-%m-%d %H:%M} on "
                f"left the learned price: {money(each.billed)} instead of {money(each.estimated)}"
            )


def report(settings: Settings) -> LedgerReport:
    """Look at the ledger and ask its daemon. Creates nothing."""
    ledger = settings.ledger
    place = reading.place(ledger)
    if not ledger.enabled:
        return LedgerReport(place, False, None, "not asked", [])
    problem, left = _look(ledger)
    return LedgerReport(place, True, problem, ledger_status.ask_daemon(settings), left)


def _look(ledger: LedgerSettings) -> tuple[str | None, list[LeftPrice]]:
    """Return why it cannot be written, and the prices that bills left."""
    try:
        if ledger.url is None:
            path = reading.file_of(ledger)
            problem = _unwritable(path)
            if problem is not None or not path.exists():
                return problem, []
        with reading.open_readonly(ledger)() as connection:
            if not isinstance(connection, sqlite3.Connection):
                [(allowed,)] = queries.ask(connection, "SELECT has_table_privilege('requests', 'INSERT')")
                if not allowed:
                    return "this user of PostgreSQL may not write there", []
            return None, queries.left_prices(connection)
    except reading.LedgerUnreadableError as error:
        return str(error), []


def _unwritable(path: Path) -> str | None:
    """Return why the file, or the files that SQLite makes beside it, cannot be written by this user."""
    if path.exists() and not path.is_file():
        return f"{path} is no file"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} may not be written by this user"
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be made in {folder} by this user"
    return None
