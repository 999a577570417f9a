"""Requests in flight: each limit strikes where it should, and a request is ended once, settled once and counted once."""

from __future__ import annotations

import asyncio
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.gateway.active_request import ActiveRequest, Deadlines, EndReason, Phase, Registry, RequestEnded
from proxy.gateway.ending import conclude
from proxy.gateway.request_body import BodyBudget
from proxy.http.exchange import ClientDisconnected
from proxy.protocol.dialects import Ending
from proxy.protocol.record import Outcome, Record
from proxy.protocol.tasks import RequestTask
from proxy.protocol.usage import Scanner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONG = Deadlines(first_byte=600.0, idle=600.0, total=600.0, write_stall=600.0)


def opened(registry: Registry, deadlines: Deadlines = LONG) -> ActiveRequest:
    """A request that ``registry`` watches."""
    config: Any = SimpleNamespace(deadlines=deadlines)
    record = Record("req_0", "POST", "/", monotonic())
    task = RequestTask()
    active = ActiveRequest(cast("Any", None), config, record, task, registry, BodyBudget())
    registry.add(active)
    return active


async def waiting(active: ActiveRequest, reasons: list[EndReason]) -> None:
    """Wait for something that never comes."""
    try:
        await asyncio.get_running_loop().create_future()
    except RequestEnded as ended:
        reasons.append(ended.reason)
    finally:
        active.registry.remove(active)


def run(test: Callable[[Registry], Awaitable[None]]) -> None:
    async def main() -> None:
        registry = Registry()
        try:
            await asyncio.wait_for(test(registry), 30)
        finally:
            registry.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (the sweep tells nobody)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("phase", "deadlines", "reason"),
    [
        (Phase.HEAD, LONG._replace(first_byte=0.1), "first_byte"),
        (Phase.READ, LONG._replace(idle=0.1), "idle"),
        (Phase.UPLOAD, LONG._replace(idle=0.1), "idle"),
        (Phase.WRITE, LONG._replace(write_stall=0.1), "write_stall"),
        *((phase, LONG._replace(total=0.1), "total") for phase in Phase),
    ],
)
def test_a_limit_strikes(phase: Phase, deadlines: Deadlines, reason: EndReason) -> None:
    """Each wait has its own limit, and all of them together the total one; the reason is raised where it waits."""

    async def test(registry: Registry) -> None:
        reasons: list[EndReason] = []
        active = opened(registry, deadlines)
        active.wait(phase)
        active.task.start(waiting(active, reasons))
        await until(lambda: bool(reasons))
        assert reasons == [reason]
        assert monotonic() - active.started >= 0.1

    run(test)


@pytest.mark.parametrize(
    ("phase", "deadlines"),
    [
        (Phase.HEAD, LONG._replace(idle=0.1, write_stall=0.1)),
        (Phase.READ, LONG._replace(first_byte=0.1, write_stall=0.1)),
        (Phase.WRITE, LONG._replace(first_byte=0.1, idle=0.1)),
        (Phase.UPLOAD, LONG._replace(first_byte=0.1, write_stall=0.1)),
        # The HTTP server side has its own limit for a client that sends slowly.
        (Phase.CLIENT, LONG._replace(first_byte=0.1, idle=0.1, write_stall=0.1)),
    ],
)
def test_another_limit_does_not_strike(phase: Phase, deadlines: Deadlines) -> None:
    """However long it waits, only its own limit counts."""

    async def test(registry: Registry) -> None:
        active = opened(registry, deadlines)
        active.wait(phase)
        assert active.overdue(active.started + 500) is None
        assert active.overdue(active.started + 700) == "total"

    run(test)


def test_what_moves_is_not_idle() -> None:
    """Each wait starts its limit anew; only the total one runs on."""

    async def test(registry: Registry) -> None:
        active = opened(registry, LONG._replace(idle=1.0))
        late = active.started + 5
        active.wait(Phase.READ)
        assert active.overdue(late) == "idle"
        active.since = late
        assert active.overdue(late) is None
        active.since = active.started + 599
        assert active.overdue(active.started + 599) is None
        assert active.overdue(active.started + 601) == "total"

    run(test)


def test_the_first_reason_is_kept() -> None:
    """What comes second changes nothing, and ends nothing a second time."""

    async def test(registry: Registry) -> None:
        reasons: list[EndReason] = []
        active = opened(registry)

        async def twice() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except RequestEnded as ended:
                reasons.append(ended.reason)
                active.end("shutdown")
                registry.end_all("shutdown")
                await asyncio.sleep(0)
                reasons.append("total")

        active.task.start(twice())
        active.end("client_gone")
        await until(lambda: active.task.done)
        assert reasons == ["client_gone", "total"]

    run(test)


def test_nothing_ends_a_request_whose_disconnect_was_noticed_while_reading() -> None:
    """The rest of its response is still read: a shutdown meanwhile must not cost its outcome."""

    async def test(registry: Registry) -> None:
        active, rest = opened(registry), asyncio.Event()

        class Response:
            async def read(self) -> bytes:
                await rest.wait()
                return b""

        active.exchange = cast("Any", SimpleNamespace(client_error=None))
        active.response = cast("Any", Response())
        active.answering = True
        scanner = active.record.scanner = Scanner(Ending.CHAT, True)
        scanner.feed(b"data: [DONE]\n\n")
        active.task.start(conclude(active, ClientDisconnected()))
        registry.end_all("shutdown")
        rest.set()
        await until(lambda: active.task.done)
        assert active.record.outcome is Outcome.OK

    run(test)


def test_what_is_over_cannot_be_ended() -> None:
    """A late disconnect strikes nothing."""

    async def test(registry: Registry) -> None:
        active = opened(registry)

        async def over() -> None:
            registry.remove(active)

        active.task.start(over())
        active.end("client_gone")
        registry.end_all("shutdown")
        assert len(registry) == 0

    run(test)


def test_all_are_ended_at_once() -> None:
    """A shutdown ends every request with its reason, in the same call."""

    async def test(registry: Registry) -> None:
        reasons: list[EndReason] = []
        for _ in range(50):
            active = opened(registry)
            active.task.start(waiting(active, reasons))
        assert len(registry) == 50
        registry.end_all("shutdown")
        assert reasons == ["shutdown"] * 50
        assert len(registry) == 0

    run(test)


def test_the_sweep_runs_only_while_there_are_requests() -> None:
    """An idle daemon sleeps; the sweep starts again with the next request."""

    async def test(registry: Registry) -> None:
        assert registry._timer is None
        for _ in range(2):
            active = opened(registry, LONG._replace(idle=0.05))
            assert registry._timer is not None
            registry.remove(active)
            await until(lambda: registry._timer is None)

    run(test)


def test_one_sweep_watches_all_by_their_own_limits() -> None:
    """A short limit strikes beside long ones, whichever came first."""

    async def test(registry: Registry) -> None:
        found: dict[float, list[EndReason]] = {}
        requests = []
        for idle in (600.0, 0.05, 600.0):
            active = opened(registry, LONG._replace(idle=idle))
            active.wait(Phase.READ)
            active.task.start(waiting(active, found.setdefault(idle, [])))
            requests.append(active)
        await until(lambda: bool(found[0.05]))
        assert found == {0.05: ["idle"], 600.0: []}
        assert len(registry) == 2
        registry.end_all("shutdown")

    run(test)


def test_permits_are_counted_by_project_until_their_requests_are_over() -> None:
    """A request gives its permit back once, whatever removes it twice; a project without any leaves nothing behind."""

    async def test(registry: Registry) -> None:
        one, two, other = opened(registry), opened(registry), opened(registry)
        registry.permit(one, "a")
        registry.permit(two, "a")
        registry.permit(other, "b")
        assert (registry.permitted, registry.total_permitted) == ({"a": 2, "b": 1}, 3)
        registry.remove(one)
        registry.remove(one)
        assert (registry.permitted, registry.total_permitted) == ({"a": 1, "b": 1}, 2)
        registry.remove(two)
        registry.remove(other)
        assert (registry.permitted, registry.total_permitted) == ({}, 0)

    run(test)


def test_an_outcome_is_unset_until_it_is_settled_once() -> None:
    async def test(registry: Registry) -> None:
        active = opened(registry)
        assert active.record.outcome is None
        active.settle(Outcome.TRUNCATED)
        with pytest.raises(RuntimeError, match="truncated"):
            active.settle(Outcome.OK)
        assert active.record.outcome is Outcome.TRUNCATED

    run(test)
