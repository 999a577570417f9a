"""One daemon per ledger file: a lock file beside it, locked for as long as the process lives.

The lock is the kernel's, so a lock file that a killed daemon left is harmless. It is a file of its own because SQLite locks
the database itself with POSIX locks, which a process loses as soon as it closes any other descriptor of that file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class AlreadyRunningError(Exception):
    """Another daemon has the ledger. ``pid`` is its process id, if known."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self.pid = pid
        by = f"already running pid {pid}" if pid is not None else "a daemon is already running"
        super().__init__(
            f"{by} with the ledger {path}. Stop that daemon, or give this one another ledger (path under [ledger])."
        )


def make_folder(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, for this user alone under any umask. Raises ``OSError``."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
            each.chmod(0o700)


class FileLock:
    """The lock of a ledger file. Raises ``AlreadyRunningError``, and ``OSError`` if it cannot be made."""

    def __init__(self, database: Path) -> None:
        make_folder(database.parent)
        self._path = database.with_name(database.name + ".lock")
        self._descriptor = os.open(
            self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o600
        )
        try:
            _lock(self._descriptor)
        except OSError:
            pid = _pid_in(self._descriptor)
            os.close(self._descriptor)
            raise AlreadyRunningError(database, pid) from None
        # The number is for the message above alone; the lock decides.
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0) if sys.platform != "win32" else None

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two daemons lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _pid_in(descriptor: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.lseek(descriptor, 0, os.SEEK_SET)
            return int(os.read(descriptor, 32))
    return None
