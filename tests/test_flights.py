"""Requests in flight: each limit strikes where it should, and whoever ends a request gives the reason first."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy.flights import Flight, Flights, Limits, Phase, Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONG = Limits(first_byte=600.0, idle=600.0, total=600.0, write_stall=600.0)


def in_flight(body: Callable[[Flights, Flight], Awaitable[None]], limits: Limits = LONG) -> Flight:
    """Run ``body`` as a request in flight; the flight when it is over."""

    async def request(flights: Flights) -> Flight:
        task = asyncio.current_task()
        assert task is not None
        flight = Flight(task, limits, "main")
        flights.add(flight)
        try:
            await body(flights, flight)
        except asyncio.CancelledError:
            if flight.reason is None:
                raise
            task.uncancel()
        finally:
            flights.remove(flight)
        return flight

    async def main() -> Flight:
        flights = Flights()
        try:
            return await asyncio.wait_for(asyncio.create_task(request(flights)), 30)
        finally:
            flights.close()

    return asyncio.run(main())


async def for_ever() -> None:
    """Wait for something that never comes."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("phase", "limits", "reason"),
    [
        (Phase.HEAD, LONG._replace(first_byte=0.1), "first_byte"),
        (Phase.READ, LONG._replace(idle=0.1), "idle"),
        (Phase.UPLOAD, LONG._replace(idle=0.1), "idle"),
        (Phase.WRITE, LONG._replace(write_stall=0.1), "write_stall"),
        *((phase, LONG._replace(total=0.1), "total") for phase in Phase),
    ],
)
def test_a_limit_strikes(phase: Phase, limits: Limits, reason: Reason) -> None:
    """Each wait has its own limit, and all of them together the total one; the task is cancelled with the reason known."""

    async def wait(flights: Flights, flight: Flight) -> None:
        flight.wait(phase)
        await for_ever()

    began = monotonic()
    assert in_flight(wait, limits).reason == reason
    assert monotonic() - began >= 0.1


@pytest.mark.parametrize(
    ("phase", "limits"),
    [
        (Phase.HEAD, LONG._replace(idle=0.1, write_stall=0.1)),
        (Phase.READ, LONG._replace(first_byte=0.1, write_stall=0.1)),
        (Phase.WRITE, LONG._replace(first_byte=0.1, idle=0.1)),
        (Phase.UPLOAD, LONG._replace(first_byte=0.1, write_stall=0.1)),
        # The HTTP front has its own limit for a client that sends slowly.
        (Phase.CLIENT, LONG._replace(first_byte=0.1, idle=0.1, write_stall=0.1)),
    ],
)
def test_another_limit_does_not_strike(phase: Phase, limits: Limits) -> None:
    """However long it waits, only its own limit counts."""

    async def nothing(flights: Flights, flight: Flight) -> None:
        flight.wait(phase)
        assert flight.overdue(monotonic() + 500) is None
        assert flight.overdue(monotonic() + 700) == "total"

    assert in_flight(nothing, limits).reason is None


def test_what_moves_is_not_idle() -> None:
    """Each wait starts its limit anew; only the total one runs on."""

    async def move(flights: Flights, flight: Flight) -> None:
        late = monotonic() + 5
        flight.wait(Phase.READ)
        assert flight.overdue(late) == "idle"
        flight.since = late
        assert flight.overdue(late) is None
        assert flight.overdue(flight.started + 599) == "idle"
        flight.since = flight.started + 599
        assert flight.overdue(flight.started + 599) is None
        assert flight.overdue(flight.started + 601) == "total"

    in_flight(move, LONG._replace(idle=1.0))


def test_the_first_reason_is_kept() -> None:
    """Whoever comes second changes nothing, and cancels nothing a second time."""

    async def twice(flights: Flights, flight: Flight) -> None:
        flight.end("client_gone")
        flight.end("shutdown")
        flights.end_all("shutdown")
        assert flight.task.cancelling() == 1
        await for_ever()

    assert in_flight(twice).reason == "client_gone"


def test_what_is_over_cannot_be_ended() -> None:
    """A late disconnect must not strike what the task does next."""

    async def over(flights: Flights, flight: Flight) -> None:
        flights.remove(flight)
        flight.end("client_gone")
        assert flight.task.cancelling() == 0
        assert len(flights) == 0

    flight = in_flight(over)
    assert flight.over
    assert flight.reason is None


def test_a_cancellation_without_a_reason_is_somebody_elses() -> None:
    """It passes on."""

    async def cancelled(flights: Flights, flight: Flight) -> None:
        flight.task.cancel()
        await for_ever()

    with pytest.raises(asyncio.CancelledError):
        in_flight(cancelled)


def test_all_are_ended_at_once() -> None:
    """A shutdown ends every request with its reason."""

    async def main() -> list[Flight]:
        flights = Flights()
        ended: list[Flight] = []

        async def request() -> None:
            task = asyncio.current_task()
            assert task is not None
            flight = Flight(task, LONG, "main")
            flights.add(flight)
            try:
                await for_ever()
            except asyncio.CancelledError:
                ended.append(flight)
            finally:
                flights.remove(flight)

        tasks = [asyncio.create_task(request()) for _ in range(50)]
        await asyncio.sleep(0)  # each task begins before this one goes on
        assert len(flights) == 50
        flights.end_all("shutdown")
        await asyncio.gather(*tasks)
        assert len(flights) == 0
        flights.close()
        return ended

    ended = asyncio.run(main())
    assert [flight.reason for flight in ended] == ["shutdown"] * 50


def test_nothing_is_swept_when_nothing_flies() -> None:
    """The timer runs only while there are requests: an idle daemon sleeps."""

    async def main() -> None:
        flights = Flights()
        assert flights._timer is None
        task = asyncio.current_task()
        assert task is not None
        limits = LONG._replace(idle=0.05)
        for _ in range(2):  # and it starts again
            flight = Flight(task, limits, "main")
            flights.add(flight)
            assert flights._timer is not None
            flights.remove(flight)
            deadline = monotonic() + 10
            while flights._timer is not None:
                assert monotonic() < deadline
                await asyncio.sleep(0.01)
        flights.add(Flight(task, limits, "main"))
        flights.close()
        assert flights._timer is None
        flights.close()

    asyncio.run(main())


def test_each_projects_flights_are_counted() -> None:
    """From add to remove, whatever is removed twice; a project without any leaves nothing behind."""

    async def main() -> None:
        flights = Flights()
        task = asyncio.current_task()
        assert task is not None
        one, two, other = Flight(task, LONG, "a"), Flight(task, LONG, "a"), Flight(task, LONG, "b")
        for flight in (one, two, other):
            flights.add(flight)
        assert (flights.of("a"), flights.of("b"), flights.of("c"), len(flights)) == (2, 1, 0, 3)
        flights.remove(one)
        flights.remove(one)
        assert (flights.of("a"), flights.of("b")) == (1, 1)
        flights.remove(two)
        flights.remove(other)
        assert flights._of == {}
        flights.close()

    asyncio.run(main())


def test_one_sweep_watches_all_by_their_own_limits() -> None:
    """A short limit strikes beside long ones, whichever came first."""

    async def main() -> dict[float, Reason | None]:
        flights = Flights()
        found: dict[float, Reason | None] = {}

        async def request(idle: float) -> None:
            task = asyncio.current_task()
            assert task is not None
            flight = Flight(task, LONG._replace(idle=idle), "main")
            flight.wait(Phase.READ)
            flights.add(flight)
            try:
                await for_ever()
            except asyncio.CancelledError:
                found[idle] = flight.reason
            finally:
                flights.remove(flight)

        slow = asyncio.create_task(request(500.0))
        fast = [asyncio.create_task(request(idle)) for idle in (0.1, 0.2)]
        await asyncio.wait_for(asyncio.gather(*fast), 30)
        assert len(flights) == 1
        slow.cancel()
        await asyncio.gather(slow)
        flights.close()
        return found

    assert asyncio.run(main()) == {0.1: "idle", 0.2: "idle", 500.0: None}
