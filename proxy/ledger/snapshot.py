"""A copy of a ledger's file, made while a daemon writes it: one process writes a file, so a command that has to write takes a copy.

SQLite's backup reads the file in one transaction, which never makes the daemon wait.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from proxy.ledger import opening
from proxy.ledger.reading import LedgerUnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

BUSY_SECONDS: Final = 10.0


@contextmanager
def copied(path: Path) -> Iterator[Connection]:
    """A connection to a copy of ``path``, for this user alone, which is deleted afterwards. Raises ``LedgerUnreadableError``."""
    with TemporaryDirectory(prefix="lava-proxy-") as folder:
        copy = Path(folder) / "ledger.sqlite"
        try:
            source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
            with closing(source), closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        except (sqlite3.Error, OSError) as error:
            raise LedgerUnreadableError(
                f"The ledger cannot be copied to {folder} ({error}). Stop the daemon, or point TMPDIR at a folder with room."
            ) from None
        with opening.sqlite_engine(copy).connect() as connection:
            yield connection
