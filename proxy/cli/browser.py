"""Opening an address in the user's browser, where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

_SECONDS = 2.0
"""An opener that fails does so at once; one that still runs then has found something to open."""


def opened(url: str) -> bool:
    """Whether a browser was found for ``url``. No text browser: it would take the terminal."""
    command = _command()
    if command is None:
        return False
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed program, and one address as its argument
            [command, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        code = process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        # Some openers stay as long as the browser does; whoever waits for it leaves no zombie.
        threading.Thread(target=process.wait, daemon=True).start()
        return True
    # Windows' own returns 1 also when all is well.
    return code == 0 or os.name == "nt"


def _command() -> str | None:
    if os.name == "nt":
        return shutil.which("explorer")
    if sys.platform == "darwin":
        return shutil.which("open")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    return shutil.which("xdg-open")
