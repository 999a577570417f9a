"""Secret references (``env:``, ``file:``, ``keyring:``) and the files that a configuration points to.

Everything here is read once, at start or reload. A file is opened without blocking and checked before it is
read: a FIFO would hang the start, a directory or a device is no configuration. No message of this module
contains a value.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SECRET_BYTES = 64 * 1024

_SCHEMES = ("env:", "file:", "keyring:")
# Only a name in the usual capitals is quoted in a message: a key pasted after "env:" must not be printed.
_PRINTABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableReference(Exception):
    """A file or a reference without a value. The message has the reason and never contains a value."""


@dataclass(frozen=True, slots=True)
class File:
    """The contents of a file, with its permission bits and owner (a symbolic link is followed)."""

    path: Path
    data: bytes
    mode: int
    owner: int

    @property
    def readable_by_others(self) -> bool:
        """Whether group or others may read it. Always false on systems without modes (Windows)."""
        return os.name == "posix" and bool(self.mode & (stat.S_IRGRP | stat.S_IROTH))

    @property
    def writable_by_others(self) -> bool:
        """Whether group or others may write it. Always false on systems without modes (Windows)."""
        return os.name == "posix" and bool(self.mode & (stat.S_IWGRP | stat.S_IWOTH))

    def require_own(self) -> None:
        """Raise UnreadableReference if another user may change it: by its mode, or as its owner (except root)."""
        if self.writable_by_others:
            raise UnreadableReference(f"can be changed by other users (mode {self.mode:04o}): chmod go-w {self.path}")
        if os.name == "posix" and self.owner not in (0, os.geteuid()):
            raise UnreadableReference(
                f"belongs to another user (uid {self.owner}, mode {self.mode:04o}), who can change it: "
                f"chown {os.geteuid()} {self.path}, or make a copy with mode 0600 (chmod 600)"
            )


def read_file(path: Path, limit: int) -> File:
    """Read a regular file of at most ``limit`` bytes.

    Raises FileNotFoundError (also for a missing parent directory), UnreadableReference for anything else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except (OSError, ValueError) as error:
        # Windows refuses to open a directory at all.
        if path.is_dir():
            raise UnreadableReference("is a directory, not a file") from None
        raise UnreadableReference(f"cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "something special")
            raise UnreadableReference(f"is {kind}, not a file")
        with open(descriptor, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UnreadableReference(f"cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise UnreadableReference(f"is larger than {limit // 1024} KiB")
    return File(path, data, stat.S_IMODE(status.st_mode), status.st_uid)


def decode(file: File) -> str:
    """Return the text of a file in UTF-8, without a byte order mark. Raises UnreadableReference."""
    if b"\0" in file.data:
        raise UnreadableReference("holds a NUL byte, so it is not UTF-8 text")
    try:
        return file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.data.count(b"\n", 0, error.start) + 1
        raise UnreadableReference(f"is not UTF-8 text (line {line})") from None


def is_reference(written: str) -> bool:
    """Whether a secret is written as a reference; anything else is the secret itself."""
    return written.startswith(_SCHEMES)


def locate(written: str, base: Path, environ: Mapping[str, str]) -> Path:
    """Return the path that the user wrote: ``~/`` is the home directory, a relative path starts at ``base``."""
    if written == "~" or written.startswith(("~/", "~\\")):
        home = environ.get("HOME") or environ.get("USERPROFILE") or str(Path.home())
        return Path(home) / written[2:]
    return base / written


def resolve(written: str, base: Path, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the value of a secret that is written in the configuration, and a warning if there is one.

    Raises UnreadableReference for a reference without a value.
    """
    scheme, _, name = written.partition(":")
    if not is_reference(written):
        return written, None
    if scheme == "env":
        return _from_environment(name, environ), None
    if scheme == "keyring":
        return _from_keyring(name), None
    return _from_file(name, base, environ)


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if not value:
        shown = name if _PRINTABLE_NAME.fullmatch(name) else "named after env:"
        state = "is empty" if value is not None else "is not set"
        raise UnreadableReference(f"the environment variable {shown} {state}")
    return value


def _from_keyring(name: str) -> str:
    service, _, user = name.rpartition("/")
    if not service or not user:
        raise UnreadableReference("a keyring reference is written keyring:SERVICE/USER")
    import keyring  # late: half a second on some machines, and most configurations have no such reference

    try:
        value = keyring.get_password(service, user)
    except Exception as error:  # noqa: BLE001 - a backend is foreign code (D-Bus, the system's own) and raises anything
        raise UnreadableReference(f"the keyring of this machine cannot be used ({type(error).__name__})") from None
    if not value:
        raise UnreadableReference(f"the keyring has no password of {user!r} for {service!r}")
    return value


def _from_file(name: str, base: Path, environ: Mapping[str, str]) -> tuple[str, str | None]:
    # A key pasted after "file:" has no separator; a path with one may be quoted.
    shown = f"the file {name}" if "/" in name or "\\" in name else "the file named after file:"
    if not name:
        raise UnreadableReference("a file reference is written file:PATH")
    try:
        file = read_file(locate(name, base, environ), MAX_SECRET_BYTES)
        file.require_own()
        value = decode(file)
    except FileNotFoundError:
        raise UnreadableReference(f"{shown} does not exist") from None
    except UnreadableReference as error:
        raise UnreadableReference(f"{shown} {error}") from None
    # Exactly one line end is removed: editors and `echo` add one, and a secret may end in another.
    value = value.removesuffix("\n").removesuffix("\r") if value.endswith("\n") else value
    if not value:
        raise UnreadableReference(f"{shown} is empty")
    warning = None
    if file.readable_by_others:
        warning = f"{shown} holds a secret and is readable by group or others (mode {file.mode:04o}): chmod 600 it"
    return value, warning
