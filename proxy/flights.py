"""Requests in flight: what each one waits for, how long it may, and who may end it.

Theory. A forwarded request waits in five places, and each wait has a limit of its own. A timer per wait would cost a timer
per chunk; instead each ``Flight`` notes what it waits for and since when (two assignments), and one sweep over all of them
looks a few times per limit. Whoever ends a flight (the sweep, a client that left, a shutdown) gives the reason first and
then cancels its task; the forwarder reads the reason where the cancellation arrives. A cancellation without a reason is
somebody else's and passes on. (A flight that has no task yet, an ``express.Ride``, gets one when it is ended.)
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from time import monotonic
from typing import Any, Literal, NamedTuple

Reason = Literal["client_gone", "client_error", "first_byte", "idle", "total", "write_stall", "shutdown"]


class Phase(IntEnum):
    """What a flight waits for."""

    CLIENT = 0  # the client's next piece of body; the HTTP front has its own limit for that
    UPLOAD = 1  # the upstream to take a piece of body
    HEAD = 2  # the upstream's answer
    READ = 3  # the upstream's next piece of body
    WRITE = 4  # the client to take a piece


class Limits(NamedTuple):
    """All in seconds."""

    first_byte: float
    idle: float
    total: float
    write_stall: float


class Flight:
    """One request in flight."""

    __slots__ = ("answered", "limits", "over", "phase", "project", "reason", "since", "started", "task", "told")

    def __init__(self, task: asyncio.Task[Any], limits: Limits, project: str) -> None:
        self.task = task
        self.begin(limits, project, Phase.CLIENT)

    def begin(self, limits: Limits, project: str, phase: Phase) -> None:
        """It starts now, and waits for ``phase``."""
        self.limits = limits
        self.project = project
        self.phase = phase
        self.started = self.since = monotonic()
        self.answered = False
        self.reason: Reason | None = None
        self.told = False  # the cancellation has arrived
        self.over = False

    def wait(self, phase: Phase) -> None:
        """From now on this flight waits for ``phase``."""
        self.phase = phase
        self.since = monotonic()

    def end(self, reason: Reason) -> None:
        """End this flight: its task is cancelled, with a reason, unless it is over or being ended already."""
        if not self.over and self.reason is None:
            self.reason = reason
            self.task.cancel()

    def overdue(self, now: float) -> Reason | None:
        """The limit that has struck, if any."""
        limits, waited = self.limits, now - self.since
        if now - self.started > limits.total:
            return "total"
        if self.phase is Phase.HEAD:
            return "first_byte" if waited > limits.first_byte else None
        if self.phase is Phase.WRITE:
            return "write_stall" if waited > limits.write_stall else None
        if self.phase is Phase.CLIENT:
            return None
        return "idle" if waited > limits.idle else None


class Flights:
    """All flights of the daemon, and the sweep over them. The sweep runs only while there are any.

    ``draining``: the daemon goes down, and no flight shall begin what can be left out.
    """

    def __init__(self) -> None:
        self.draining = False
        self._flights: set[Flight] = set()
        self._of: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def of(self, project: str) -> int:
        """How many are this project's, whatever configuration they began with."""
        return self._of.get(project, 0)

    def add(self, flight: Flight) -> None:
        """Watch this flight."""
        self._flights.add(flight)
        self._of[flight.project] = self._of.get(flight.project, 0) + 1
        if self._timer is None:
            self._schedule(flight.limits)

    def remove(self, flight: Flight) -> None:
        """This flight is over: nothing may end it any more."""
        flight.over = True
        if flight not in self._flights:
            return
        self._flights.remove(flight)
        left = self._of[flight.project] - 1
        if left:
            self._of[flight.project] = left
        else:  # a project that is configured no more leaves nothing behind
            del self._of[flight.project]

    def end_all(self, reason: Reason) -> None:
        """End every flight."""
        for flight in list(self._flights):
            flight.end(reason)

    def _schedule(self, limits: Limits) -> None:
        pause = min(1.0, max(0.02, min(limits) / 4))
        self._timer = asyncio.get_running_loop().call_later(pause, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = monotonic()
        shortest: Limits | None = None
        for flight in list(self._flights):
            reason = flight.overdue(now)
            if reason is not None:
                flight.end(reason)
            if shortest is None or min(flight.limits) < min(shortest):
                shortest = flight.limits
        if shortest is not None:
            self._schedule(shortest)

    def close(self) -> None:
        """Stop sweeping."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
