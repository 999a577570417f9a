"""How a command that has to write gets at the ledger: by itself, if no daemon has the file, else on a copy of it.

One process writes a file. SQLite's backup reads it in one transaction, which never makes the daemon wait.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVar

from proxy.ledger import opening, upkeep
from proxy.ledger.lock import AlreadyRunningError
from proxy.ledger.reading import LedgerUnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from proxy.config.settings import LedgerSettings

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0


class Direct:
    """Runs work with a command's own connection, as the ledger does with the writer's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, done in one transaction."""
        with self._connection.begin():
            return work(self._connection)


@contextmanager
def opened(settings: LedgerSettings) -> Iterator[tuple[Direct, bool]]:
    """What runs work on the ledger, and whether that is kept. Raises ``LedgerUnreadableError``."""
    try:
        with upkeep.writing(settings) as connection:
            yield Direct(connection), True
        return
    except AlreadyRunningError:
        pass
    with _copied(settings.file()) as connection:
        yield Direct(connection), False


@contextmanager
def _copied(path: Path) -> Iterator[Connection]:
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
