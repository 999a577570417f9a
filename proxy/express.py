"""The short way: a request like one before, forwarded by plain calls, without a task, a scope or a future.

A tool sends the same head over and over (``framing.Heads``), to the same model, over a connection to Lava that stands ready,
and the answer comes in one piece. Then every step of ``forward.py`` is known beforehand or takes no waiting, and half of the
time would go into waking tasks up. ``Express`` does these steps, in the same order and by the same functions.

Nothing is decided here. Whatever is in the least unusual goes the long way: before a byte was sent by declining the request,
which is then as if it had just come; afterwards by handing the ``Ride`` over to the application, where ``Forwarder`` goes on
with it: an answer that is not here whole, an error of any kind, a limit that strikes, a client that leaves, the end of the
daemon. ``tests/test_express.py`` holds both ways to the same bytes and the same record.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from proxy.flights import Flight, Flights, Limits, Phase, Reason
from proxy.forward import Admitted, Connection, Sending, begin_stream, give_whole, sort_head
from proxy.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.errors import RequestIds
    from proxy.generation import Generation, Plan
    from proxy.headers import Answered
    from proxy.metrics import Metrics
    from proxy.upstream import Answer, Begun


class Runtime(Protocol):
    """What the short way asks the daemon."""

    generation: Generation
    flights: Flights
    draining: bool
    metrics: Metrics
    retired: list[Generation]


class Exchange(Connection, Protocol):
    """The front's side of a request (``guard.Exchange``)."""

    ride: Ride | None

    def call(self, head: Any) -> None: ...


class Ride(Flight):
    """One request on the short way. It waits for the answer's head as a future does (``upstream.Waiter``)."""

    __slots__ = (
        "_begun",
        "_exchange",
        "_express",
        "_fault",
        "_handed_over",
        "_head",
        "_resumed",
        "admitted",
        "answer",
        "given",
        "plan",
        "record",
    )

    def __init__(
        self, express: Express, limits: Limits, admitted: Admitted, sending: Sending, exchange: Exchange, head: Any
    ) -> None:
        self.begin(limits, admitted.project, Phase.HEAD)  # there is no task yet
        self.admitted = admitted
        self.plan: Plan = sending.plan
        self.answer: Answer | None = None
        self.given: Answered | None = None
        """The head that the client was given, where it was given one."""
        record = self.record = Record(express.ids.next(), admitted.method, admitted.path, self.started)
        record.project = admitted.project
        record.provider, record.model = self.plan.route.provider.name, self.plan.route.model
        record.hint = self.plan.route.hint
        self._express = express
        self._exchange = exchange
        self._head = head
        self._begun: Begun | None = None
        self._fault: Exception | None = None
        self._handed_over = self._resumed = False

    def sent(self, begun: Begun, size: int) -> None:
        """The request has left, with a body of ``size`` bytes."""
        self._begun = begun
        self.record.bytes_in = size
        self._exchange.on_disconnect(self._client_left)

    # What the connection to Lava calls.

    def done(self) -> bool:
        return self.over

    def set_result(self, answer: Answer) -> None:
        """The head of the answer is there, and perhaps all of it."""
        try:
            if 200 <= answer.status < 300 and not self._express.runtime.retired:
                answered = sort_head(self.record, self.plan, answer, self.admitted)
                inquiries = self.admitted.generation.inquiries
                if inquiries.known:
                    inquiries.forget(self.admitted.project)
                what = self._exchange, self.record, self.plan.route, answer, answered
                if give_whole(*what):
                    self._express.arrived(self)
                    return
                self.given = answered
                if begin_stream(*what):
                    self.wait(Phase.READ)
                else:
                    self.given = None
        except Exception as error:  # noqa: BLE001  (raised again where the long way goes on)
            self._fault = error
        self.answer = answer
        self._hand_over()

    def set_exception(self, error: Exception) -> None:
        """There will be no answer."""
        self._fault = error
        self._hand_over()

    # The long way.

    def end(self, reason: Reason) -> None:
        if self._resumed:
            super().end(reason)
        elif not self.over and self.reason is None:
            self.reason = reason
            if not self._handed_over:
                if self._begun is not None:
                    self._begun.abandon(self)
                self._hand_over()

    def resume(self, task: asyncio.Task[Any]) -> Answer:
        """From now on the request is ``task``'s. Raises what has happened to it on the way, ``CancelledError`` where it was ended."""
        self.task, self._resumed = task, True
        self._exchange.ride = None  # or each would keep the other alive
        if self.reason is not None:
            raise asyncio.CancelledError
        if self._fault is not None:
            raise self._fault
        assert self.answer is not None  # noqa: S101  (without a fault there is one)
        return self.answer

    def _client_left(self) -> None:
        self.end("client_gone")

    def _hand_over(self) -> None:
        self._handed_over = True
        self._exchange.ride = self
        # Not before the loop turns: what was given to the client leaves first.
        asyncio.get_running_loop().call_soon(self._exchange.call, self._head)


class Express:
    """Takes requests like those before it."""

    def __init__(self, runtime: Runtime, ids: RequestIds, record: Callable[[Record], None]) -> None:
        self.runtime = runtime
        self.ids = ids
        self._record = record

    def take(self, admitted: Admitted, exchange: Exchange, head: Any, body: bytes) -> bool:
        """Begin a request that is like ``admitted``; False, and nothing was done, where it must go the long way."""
        runtime = self.runtime
        generation, flights = admitted.generation, runtime.flights
        if (
            generation is not runtime.generation
            or runtime.draining
            or generation.crowded(flights, admitted.project) is not None
            or len(body) > generation.settings.server.max_body_bytes
        ):
            return False
        sending = admitted.known(body)
        if sending is None:
            return False
        ride = Ride(self, generation.limits, admitted, sending, exchange, head)
        begun = generation.engine.begin(sending.plan.origin, sending.wire, body, ride)
        if begun is None:
            return False
        runtime.metrics.started()
        flights.add(ride)
        generation.in_flight += 1
        exchange.take_body()  # nobody else needs it
        ride.sent(begun, len(body))
        return True

    def arrived(self, ride: Ride) -> None:
        """The ride is over: everything is said and done."""
        runtime = self.runtime
        runtime.flights.remove(ride)
        generation = ride.admitted.generation
        generation.in_flight -= 1
        self._record(ride.record)
