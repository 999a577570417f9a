"""One request between ``open`` and ``release``, and the registry of all of them.

Theory. A request has five kinds of wait, each with its own limit. One timer per wait would mean one timer per chunk. Instead
each ``ActiveRequest`` stores what it waits for and since when (two assignments), and one sweep over all of them runs a few
times per limit. Everything that ends a request from outside (a limit, a disconnected client, a shutdown) calls ``end``, which
raises ``RequestEnded`` at the point where the request waits.

The outcome is unset until ``settle``, which is called once. ``release`` is called last, once, and does not wait. It removes
the request from the registry, closes the rest of the response, and passes the record to the observers.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from proxy.gateway.access import readable_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.admission import ProjectBudget
    from proxy.gateway.budgets import Hold
    from proxy.gateway.request_body import BodyBudget, RequestBody
    from proxy.gateway.template import Prepared, Template
    from proxy.http.exchange import Exchange, Pairs
    from proxy.protocol.record import Outcome, Record
    from proxy.protocol.stop import Stop
    from proxy.protocol.tasks import RequestTask
    from proxy.upstream import UpstreamResponse

EndReason = Literal["client_gone", "first_byte", "idle", "total", "write_stall", "shutdown", "stopped"]


WATCH_SECONDS: Final = 0.1


class RequestEnded(Exception):
    """The request was ended from outside while it waited."""

    def __init__(self, reason: EndReason) -> None:
        super().__init__(reason)
        self.reason: EndReason = reason


class Phase(IntEnum):
    """What a request waits for."""

    CLIENT = 0  # the client sends the next chunk of the body; the HTTP server side has its own limit for this
    UPLOAD = 1  # the upstream accepts a chunk of the body
    HEAD = 2  # the upstream sends the head of its response
    READ = 3  # the upstream sends the next chunk of the body
    WRITE = 4  # the client accepts a chunk


class Deadlines(NamedTuple):
    """The limit of each wait of a request, in seconds."""

    first_byte: float
    idle: float
    total: float
    write_stall: float


class ActiveRequest:
    """One request between ``open`` and ``release``."""

    # Set as soon as they are known.
    template: Template | None = None
    prepared: Prepared | None = None
    body: RequestBody | None = None
    response: UpstreamResponse | None = None
    """The upstream response, once its head has arrived."""
    answering = False
    """Whether the head of a response was sent. From then on an error can only be reported inside the body."""
    declared_length: int | None = None
    """The ``Content-Length`` sent to the client."""
    hides_usage = False
    """Whether the stream was asked for its usage in place of the client, which must not see it."""
    permitted: str | None = None
    """The project whose limits count this request."""
    budget: ProjectBudget | None = None
    """The budget of its project, if that has one."""
    hold: Hold | None = None
    """What it holds of the budget while it is in flight."""
    ended: EndReason | None = None
    stop: Stop | None = None
    """What stopped it."""
    phase = Phase.CLIENT

    def __init__(
        self,
        exchange: Exchange,
        config: ActiveConfig,
        record: Record,
        task: RequestTask,
        registry: Registry,
        bodies: BodyBudget,
    ) -> None:
        self.exchange = exchange
        self.config = config
        self.record = record
        self.task = task
        self.registry = registry
        self.bodies = bodies
        self.started = self.since = record.started

    def wait(self, phase: Phase) -> None:
        """Start the wait for ``phase``."""
        self.phase = phase
        self.since = monotonic()

    def end(self, reason: EndReason) -> None:
        """Raise ``RequestEnded`` where this request waits. Do nothing if it is already ending or released."""
        if self.ended is None:
            self.ended = reason
            self.task.throw(RequestEnded(reason))

    def client_left(self) -> None:
        """End the request because the client disconnected or violated HTTP."""
        self.end("client_gone")

    def overdue(self, now: float) -> EndReason | None:
        """Return the limit that is exceeded, if any."""
        deadlines, waited = self.config.deadlines, now - self.since
        if now - self.started > deadlines.total:
            return "total"
        if self.phase is Phase.HEAD:
            return "first_byte" if waited > deadlines.first_byte else None
        if self.phase is Phase.WRITE:
            return "write_stall" if waited > deadlines.write_stall else None
        if self.phase is Phase.CLIENT:
            return None
        return "idle" if waited > deadlines.idle else None

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome. Raises ``RuntimeError`` if it is already set: a request has one outcome."""
        if self.record.outcome is not None:
            raise RuntimeError(f"the request was settled as {self.record.outcome}, and again as {outcome}")
        self.record.outcome = outcome

    def start(self, status: int, headers: Pairs) -> None:
        """Start the response to the client."""
        self.answering = True
        self.exchange.start(status, self._completed(headers))

    def respond(self, status: int, headers: Pairs, body: bytes) -> None:
        """Send a whole response to the client."""
        self.answering = True
        self.record.bytes_out = len(body)
        self.exchange.respond(status, self._completed(headers), body)

    def _completed(self, headers: Pairs) -> Pairs:
        if self.budget is not None:
            headers = [*headers, *self.budget.headers()]
        template = self.template
        if template is not None and template.origin is not None:
            headers = readable_by(template.origin, headers)
        return headers


class Registry:
    """All active requests, and the sweep over them, which runs only while there are any."""

    def __init__(self) -> None:
        self.draining = False
        self.permitted: dict[str, int] = {}
        """Number of permits (``admission.py``) by project. Projects without one are left out."""
        self.total_permitted = 0
        self.watch: Callable[[Record, float], None] | None = None
        """Called by the sweep, at least ten times a second, with the record of each active request and the time."""
        self._requests: set[ActiveRequest] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: ActiveRequest) -> None:
        """Add ``request`` to the sweep."""
        self._requests.add(request)
        if self._timer is None:
            self._schedule(request.config.deadlines)

    def remove(self, request: ActiveRequest) -> None:
        """Remove ``request`` and its permit. It cannot be ended from outside any more."""
        self._requests.discard(request)
        project = request.permitted
        if project is not None:
            request.permitted = None
            self.total_permitted -= 1
            left = self.permitted[project] - 1
            if left:
                self.permitted[project] = left
            else:
                del self.permitted[project]

    def permit(self, request: ActiveRequest, project: str) -> None:
        """Count this request against the limits of ``project`` until it is removed."""
        request.permitted = project
        self.total_permitted += 1
        self.permitted[project] = self.permitted.get(project, 0) + 1

    def holds(self, project: str) -> list[Hold]:
        """Return what the active requests of ``project`` hold of its budget."""
        return [
            request.hold for request in self._requests if request.hold is not None and request.record.project == project
        ]

    def uses(self, config: ActiveConfig) -> bool:
        """Whether an active request uses ``config``."""
        return any(request.config is config for request in self._requests)

    def stop(self, stop: Stop) -> list[Record]:
        """End the active requests that ``stop`` matches. Return their records."""
        ended = []
        for request in list(self._requests):
            record, project = request.record, request.permitted
            if (
                request.ended is None
                and record.facts is not None
                and project is not None
                and stop.matches(project, record.facts)
            ):
                request.stop = stop
                request.end("stopped")
                ended.append(record)
        return ended

    def end_all(self, reason: EndReason) -> None:
        """End every active request."""
        for request in list(self._requests):
            request.end(reason)

    def close(self) -> None:
        """Stop the sweep."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, deadlines: Deadlines) -> None:
        longest = 1.0 if self.watch is None else WATCH_SECONDS
        pause = min(longest, max(0.02, min(deadlines) / 4))
        self._timer = asyncio.get_running_loop().call_later(pause, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now, watch = monotonic(), self.watch
        shortest: Deadlines | None = None
        for request in list(self._requests):
            if watch is not None:
                watch(request.record, now)
            deadlines = request.config.deadlines
            if shortest is None or min(deadlines) < min(shortest):
                shortest = deadlines
            reason = request.overdue(now)
            if reason is not None:
                request.end(reason)
        if shortest is not None and self._timer is None:
            self._schedule(shortest)
