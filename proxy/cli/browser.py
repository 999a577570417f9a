"""Open an address in the user's browser."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 2.0
"""A command that fails does so at once; one that still runs after this time has opened something."""


def opened(url: str) -> bool:
    """Open `url`. Return False if no command opens it. Show the address as well: it is not known what the command opens."""
    return any(_ran(command) for command in _commands(url))


def _ran(command: list[str]) -> bool:
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own browser, and one address as an argument, by no shell
            command,
            stdin=subprocess.DEVNULL,  # a text browser does not get the terminal
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        code = process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        # Some commands run as long as the browser does. The thread collects the exit status.
        threading.Thread(target=process.wait, daemon=True).start()
        return True
    # The explorer of Windows returns 1 on success, too.
    return code == 0 or os.name == "nt"


def _commands(url: str) -> Iterator[list[str]]:
    """Yield the commands of ``$BROWSER`` (each with or without ``%s`` for the address), then that of the platform."""
    for choice in filter(None, os.environ.get("BROWSER", "").split(os.pathsep)):
        try:
            words = [choice] if shutil.which(choice) else shlex.split(choice)
        except ValueError:  # a quotation mark alone
            continue
        if words:
            filled = [word.replace("%s", url) for word in words]
            yield filled if filled != words else [*words, url]
    if os.name == "nt":
        usual = shutil.which("explorer")
    elif sys.platform == "darwin":
        usual = shutil.which("open")
    else:
        usual = shutil.which("xdg-open") if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") else None
    if usual is not None:
        yield [usual, url]
