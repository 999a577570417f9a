"""Threads beside the main one."""

from __future__ import annotations

import signal


def leave_signals_to_main() -> None:
    """Block all signals in the calling thread. Called first in every thread that the daemon starts.

    The main thread blocks them for the moment in which it exchanges its handlers. Another thread that does not would take a
    signal of that moment by the default action, which kills the process.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
