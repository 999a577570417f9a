"""Signals and request tasks: a coroutine goes on in the call that sets what it waits for, and may be ended where it waits."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from proxy.protocol.tasks import RequestTask, Signal, in_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

Steps = list[str]


class Stop(Exception):
    """Ends a coroutine of these tests."""


class Task(RequestTask):
    """One that must not fail."""

    __slots__ = ()

    def failed(self, error: Exception) -> None:
        raise AssertionError from error


def run(test: Callable[[asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(asyncio.get_running_loop()), 30)

    asyncio.run(main())


def test_a_request_task_goes_on_in_the_call_that_sets_its_signal() -> None:
    """Neither its first step nor a later one waits for the loop to turn."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []
        signal: Signal[str] = Signal(loop)

        async def request() -> None:
            steps.append("begun")
            steps.append(await signal)

        task = Task()
        task.start(request())
        assert (steps, task.done) == (["begun"], False)
        signal.set_result("set")
        assert (steps, task.done) == (["begun", "set"], True)

    run(test)


@pytest.mark.parametrize("end", ["returns", "raises", "fails", "ended"])
def test_what_is_over_is_free_without_the_garbage_collector(end: str) -> None:
    """A request holds keys and bodies: nothing of it waits for the next collection."""

    class Held:
        """Belongs to the request."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        held = Held()
        freed = weakref.ref(held)
        signal: Signal[None] = Signal(loop)

        async def request(mine: Held, signal: Signal[None]) -> None:
            await signal
            if end == "raises":
                raise Stop

        class Over(RequestTask):
            def failed(self, error: Exception) -> None:
                assert isinstance(error, Stop)

        task = Over()
        task.start(request(held, signal))
        del request, held
        if end == "fails":
            signal.set_exception(Stop())
        elif end == "ended":
            task.throw(Stop())
        else:
            signal.set_result(None)
        del signal
        assert freed() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_a_signal_that_is_set_first_is_not_waited_for() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        signal: Signal[int] = Signal(loop)
        signal.set_result(1)
        signal.set_result(2)
        signal.set_exception(Stop())
        found: list[int] = []

        async def request() -> None:
            found.append(await signal)

        Task().start(request())
        assert found == [1]
        assert signal.succeeded

    run(test)


def test_the_error_of_a_signal_is_raised_where_it_is_waited_for() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        signal: Signal[None] = Signal(loop)
        steps: Steps = []

        async def request() -> None:
            try:
                await signal
            except Stop:
                steps.append("stopped")

        Task().start(request())
        signal.set_exception(Stop())
        assert steps == ["stopped"]
        assert not signal.succeeded

    run(test)


def test_asyncio_tasks_wait_for_signals_too() -> None:
    """They go on when the loop turns, and a cancellation reaches them."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        first: Signal[str] = Signal(loop)
        second: Signal[str] = Signal(loop)

        async def wait(signal: Signal[str]) -> str:
            return await signal

        one, two = loop.create_task(wait(first)), loop.create_task(wait(second))
        await asyncio.sleep(0)
        first.set_result("set")
        assert not one.done()
        assert await one == "set"
        two.cancel()
        with pytest.raises(asyncio.CancelledError):
            await two
        assert second.done()
        assert not second.cancel()

    run(test)


@pytest.mark.parametrize("what", ["signal", "future", "task", "turn"])
def test_a_request_task_is_ended_where_it_waits(what: str) -> None:
    """Whatever it waits for, the error is raised there at once, and what comes later changes nothing."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []
        signal: Signal[None] = Signal(loop)
        future: asyncio.Future[None] = loop.create_future()
        inner = loop.create_task(asyncio.sleep(0.01))
        waits: dict[str, Callable[[], Awaitable[None]]] = {
            "signal": lambda: signal,
            "future": lambda: future,
            "task": lambda: inner,
            "turn": lambda: asyncio.sleep(0),
        }

        async def request() -> None:
            try:
                await waits[what]()
            except Stop:
                steps.append("stopped")
                await asyncio.sleep(0)
                steps.append("went on")

        task = Task()
        task.start(request())
        task.throw(Stop())
        assert steps == ["stopped"]
        signal.set_result(None)
        future.set_result(None)
        await inner
        await asyncio.sleep(0.01)
        assert steps == ["stopped", "went on"]
        assert task.done

    run(test)


def test_what_ends_a_request_task_while_it_runs_is_raised_at_its_next_wait() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []
        task = Task()

        async def request() -> None:
            task.throw(Stop())
            task.throw(ValueError())  # the first one counts
            steps.append("went on")
            try:
                await Signal(loop)
            except Stop:
                steps.append("stopped")

        task.start(request())
        assert steps == ["went on", "stopped"]
        assert task.done

    run(test)


def test_a_request_task_that_waits_no_more_cannot_be_ended() -> None:
    """What comes after its last wait is too late, and strikes nothing."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        task = Task()

        async def request() -> None:
            task.throw(Stop())

        task.start(request())
        assert task.done
        task.throw(Stop())

    run(test)


def test_an_error_of_the_coroutine_does_not_reach_what_resumes_it() -> None:
    """``failed`` gets it: what sets a signal is not to blame, and goes on."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        signal: Signal[None] = Signal(loop)
        errors: list[Exception] = []

        async def request() -> None:
            await signal
            raise Stop

        class Failing(RequestTask):
            def failed(self, error: Exception) -> None:
                errors.append(error)

        task = Failing()
        task.start(request())
        signal.set_result(None)
        assert [type(error) for error in errors] == [Stop]
        assert task.done

    run(test)


def test_what_cannot_be_waited_for_is_an_error_there() -> None:
    class Foreign:
        def __await__(self):  # type: ignore[no-untyped-def]
            yield "something"

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []

        async def request() -> None:
            try:
                await Foreign()
            except RuntimeError:
                steps.append("refused")

        Task().start(request())
        assert steps == ["refused"]

    run(test)


async def _answer(steps: Steps, seconds: float) -> str:
    try:
        async with asyncio.timeout(30):
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        steps.append("cancelled")
        raise
    return "answer"


def test_code_that_needs_an_asyncio_task_gets_one() -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []
        over: asyncio.Future[None] = loop.create_future()

        async def request() -> None:
            steps.append(await in_task(_answer(steps, 0)))
            over.set_result(None)

        Task().start(request())
        await over
        assert steps == ["answer"]

    run(test)


def test_an_asyncio_task_ends_with_the_request_that_waits_for_it() -> None:
    """It is cancelled; a result that comes all the same is given to ``discard``."""

    async def test(loop: asyncio.AbstractEventLoop) -> None:
        steps: Steps = []
        stubborn: asyncio.Future[str] = loop.create_future()

        async def late() -> str:
            try:
                return await asyncio.shield(stubborn)
            except asyncio.CancelledError:
                return await stubborn

        async def request(waited: Coroutine[object, None, str]) -> None:
            try:
                await in_task(waited, discard=steps.append)
            except Stop:
                steps.append("stopped")

        for waited in (_answer(steps, 600), late()):
            task = Task()
            task.start(request(waited))
            await asyncio.sleep(0)
            task.throw(Stop())
            await asyncio.sleep(0)
        stubborn.set_result("late")
        await asyncio.sleep(0.01)
        assert steps == ["stopped", "cancelled", "stopped", "late"]

    run(test)
