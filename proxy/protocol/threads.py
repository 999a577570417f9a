"""Threads beside the main one."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def signals_left_to_main() -> Iterator[None]:
    """Within it, threads are started with all signals blocked. Every thread of the daemon is.

    The main thread blocks them for the moment in which it exchanges its handlers. Another thread that does not would take a
    signal of that moment by the default action, which kills the process. A thread that blocks them itself may be too late.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
