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


def make_folder(folder: Path) -> list[Path]:
    """Make ``folder`` and what is missing above it, for this user alone under any umask. Return what was made, the deepest last.

    Raises ``OSError``.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    missing.reverse()
    for each in missing:
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
            each.chmod(0o700)
    return missing


class FileLock:
    """The lock of a ledger file. Raises ``AlreadyRunningError``, and ``OSError`` if it cannot be made."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._made = make_folder(database.parent)
        self._path = database.with_name(database.name + ".lock")
        self._descriptor = _locked(self._path, database)
        # The number is for the message above alone; the lock decides.
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, b"%d\n" % os.getpid())

    def release(self) -> None:
        """Give the lock back. Its file stays beside a ledger; where none was begun, nothing is left."""
        if self._descriptor < 0:
            return
        if not self._database.exists():
            with contextlib.suppress(OSError):
                self._path.unlink()
                for folder in reversed(self._made):
                    folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1


def _locked(path: Path, database: Path) -> int:
    """Return a descriptor of the file at ``path`` with its lock."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            _lock(descriptor)
        except OSError:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            raise AlreadyRunningError(database, pid) from None
        # Another daemon may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


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
