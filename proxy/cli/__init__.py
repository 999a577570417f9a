"""The command ``lava-proxy``: the only place that prints or exits.

- ``commands.py``   the commands and their options, for people; loads nothing that one of them alone needs
- ``terminal.py``   how things are shown: a terminal, a pipe, JSON
- ``loading.py``    the configuration, or its faults and exit code 78
- ``addresses.py``  the addresses of the configured daemon; ``running.py`` connections to it; ``payers.py`` who pays for what
- one module for each command: ``serve``, ``demo`` (with ``demo_client.py``), ``init``, ``check``, ``token``, ``health``,
  ``emulator``; ``login`` (also ``logout`` and ``whoami``; with ``callback.py`` and ``browser.py``)
- ``account.py``    calls Lava's account API for a command; ``rendering.py`` shows its records. ``api`` (with
  ``arguments.py``) has every action of the table; ``wallet``, ``connections``, ``usage``, ``models``, ``keys`` and
  ``checkout`` are commands for frequent ones

``main`` always ends in an exit code and never in a traceback, because the message of an exception of a library may quote
a secret.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import NoReturn

FAILED = 1
_YOUNG_OBJECTS = 50_000
"""Importing makes many objects that stay: to look through them again and again takes a twentieth of a command's start."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EIO)


def main() -> NoReturn:
    """Run the command line and exit: 0, 1, 2 (wrong usage), 75 (already running) or 78 (configuration)."""
    _open_standard_streams()
    code = _run(sys.argv[1:])
    raise SystemExit(code if _flushed() else code or FAILED)


def _run(words: list[str]) -> int:
    gc.set_threshold(_YOUNG_OBJECTS)
    try:
        from proxy.cli.commands import application

        application()(words, prog_name="lava-proxy")
    except SystemExit as end:
        # The command line library says 130 for Ctrl-C; our exit codes (1: other) know no such number.
        return FAILED if end.code == 130 else end.code if isinstance(end.code, int) else FAILED if end.code else 0
    except (KeyboardInterrupt, BrokenPipeError):
        return FAILED
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            _say(f"lava-proxy: the output cannot be written: {os.strerror(error.errno or 0)}")
        else:
            _print_failure(error)
        return FAILED
    except Exception as error:  # noqa: BLE001 - the border: see above
        _print_failure(error)
        return FAILED
    return 0


def _print_failure(error: Exception) -> None:
    """Print the type of the exception and its places in the code, without its message."""
    import traceback

    why = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        why += f", {os.strerror(error.errno)}"
    places = [
        f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    _say("\n".join([f"lava-proxy failed ({why}). Please report it with these lines:", *places[-8:]]))


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:
        return  # there is no reader


def _open_standard_streams() -> None:
    """Open descriptors 0 to 2 if they are closed: otherwise the next file or socket gets them, and what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    # Python sets these to None at its start if they were closed.
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale that cannot spell a letter must not end the program


def _flushed() -> bool:
    """Write what is buffered. Return False if the reader is gone (``| head -1``) or the disk is full."""
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            whole = False
            # Python flushes again when it exits, and would print an error.
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            except (OSError, ValueError):
                continue
    return whole
