"""Coroutines of requests, driven without the event loop's queue.

Theory. An ``asyncio.Task`` runs its first step in the next turn of the loop, and each later step one turn after the awaited
result is set. A request waits two or three times, and those turns were a tenth of its cost. ``RequestTask`` runs the same
coroutine by plain calls: its first step when it is started, each later step in the call that sets the awaited ``Signal``. The
code of the coroutine is the same either way.

Two consequences for code that runs in a ``RequestTask``:

- It may be ended by ``throw``: the given error is raised where the coroutine waits. There is no cancellation to distinguish
  from another one, and none that arrives late: after the last wait nothing is raised any more.
- There is no current asyncio task. What needs one (``asyncio.timeout``, httpx2) is awaited through ``in_task``.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context

T = TypeVar("T")


class Signal(Generic[T]):
    """One result, or one error, that one coroutine waits for.

    Setting it resumes the coroutine of a ``RequestTask`` in the same call, that of an asyncio task in the next turn of the loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_done", "_error", "_failed", "_loop", "_result", "_resume")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._done = False
        self._error: BaseException | None = None
        self._failed = False
        self._loop = loop
        self._result: T
        self._resume: Callable[[], object] | None = None

    def done(self) -> bool:
        """Whether it is set."""
        return self._done

    @property
    def succeeded(self) -> bool:
        """Whether a result is set."""
        return self._done and not self._failed

    def set_result(self, result: T) -> None:
        """Resume the coroutine with ``result``. Nothing happens if the signal is set already."""
        if not self._done:
            self._done = True
            self._result = result
            if self._resume is not None:
                self._resume()

    def set_exception(self, error: BaseException) -> None:
        """Raise ``error`` in the coroutine. Nothing happens if the signal is set already."""
        if not self._done:
            self._done = self._failed = True
            self._error = error
            if self._resume is not None:
                self._resume()

    def result(self) -> T:
        """Return the result. Raises the error that was set, once."""
        if not self._failed:
            return self._result
        # The error refers to the frames that it passes, which refer to this signal: neither may refer to the error.
        error, self._error = self._error, None
        if error is None:
            raise RuntimeError("the error of this signal was raised before")
        try:
            raise error
        finally:
            del error

    def __await__(self) -> Generator[Signal[T], None, T]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        return self.result() if self._failed else self._result

    def resume_with(self, resume: Callable[[], object] | None) -> None:
        """Call ``resume`` when the signal is set; ``None``: call nothing."""
        self._resume = resume

    # The part of a future's interface that an asyncio task uses.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the waiting coroutine."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Signal[T]], object], *, context: Context | None = None) -> None:
        """Call ``callback`` in the next turn of the loop after the signal is set."""
        self._resume = lambda: self._loop.call_soon(callback, self, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Raise ``CancelledError`` in the coroutine. False if the signal is set already."""
        if self._done:
            return False
        self.set_exception(asyncio.CancelledError())
        return True


class RequestTask:
    """Runs one coroutine to its end. See the module's docstring."""

    __slots__ = ("_coroutine", "_running", "_thrown", "_waited")

    def __init__(self) -> None:
        self._coroutine: Coroutine[object, None, None] | None = None
        self._running = False
        self._thrown: BaseException | None = None
        self._waited: object = None

    def start(self, coroutine: Coroutine[object, None, None]) -> None:
        """Run ``coroutine`` to its first wait."""
        self._coroutine = coroutine
        self._step()

    @property
    def done(self) -> bool:
        """Whether the coroutine has ended, or was never started."""
        return self._coroutine is None

    def failed(self, error: Exception) -> None:
        """Handle an error that ended the coroutine. Overridden by subclasses; must not raise."""
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "a request's coroutine failed", "exception": error})

    def throw(self, error: BaseException) -> None:
        """Raise ``error`` in the coroutine where it waits now, or where it waits next."""
        if self._coroutine is None:
            return
        if self._running:
            self._thrown = self._thrown or error
            return
        waited = self._waited
        if isinstance(waited, Signal):
            waited.resume_with(None)
        elif isinstance(waited, asyncio.Future):
            waited.remove_done_callback(self._turned)
        self._step(error)

    def _turned(self, waited: object) -> None:
        if self._waited is waited:
            self._step()

    def _step(self, error: BaseException | None = None) -> None:
        coroutine = self._coroutine
        if coroutine is None or self._running:
            raise RuntimeError("a request's coroutine was resumed while it does not wait")
        self._waited = None
        self._running = True
        try:
            waited = coroutine.send(None) if error is None else coroutine.throw(error)
            while self._thrown is not None:
                thrown, self._thrown = self._thrown, None
                waited = coroutine.throw(thrown)
        except StopIteration:
            self._coroutine = None
            return
        except Exception as failure:  # noqa: BLE001  (the caller that resumes it is not at fault, and must continue)
            self._coroutine = None
            # Without this frame, whose callers may reference the error.
            failure.__traceback__ = failure.__traceback__ and failure.__traceback__.tb_next
            self.failed(failure)
            # In CPython 3.12 the frames of a failure refer to the frames of callers, which may refer to the error.
            traceback.clear_frames(failure.__traceback__)
            return
        finally:
            self._running = False
        self._waited = waited
        if type(waited) is Signal:
            waited.resume_with(self._step)  # made anew: kept here it would be a cycle
        elif isinstance(waited, asyncio.Future):
            waited._asyncio_future_blocking = False
            waited.add_done_callback(self._turned)
        elif waited is None:  # asyncio.sleep(0)
            self._waited = turn = object()
            asyncio.get_running_loop().call_soon(self._turned, turn)
        else:
            self.throw(RuntimeError(f"a request's coroutine cannot wait for {type(waited).__name__}"))


async def in_task(coroutine: Coroutine[object, None, T], *, discard: Callable[[T], object] | None = None) -> T:
    """Run ``coroutine`` in an asyncio task of its own, which is cancelled if the caller is ended first.

    ``discard`` gets its result if it finished nevertheless.
    """

    def ended(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None and discard is not None:
            discard(task.result())

    task = asyncio.get_running_loop().create_task(coroutine)
    try:
        return await task
    except BaseException:
        task.cancel()
        task.add_done_callback(ended)
        raise


class BackgroundTask:
    """An asyncio task that runs ``work()`` beside the requests, from ``start`` to ``aclose``."""

    def __init__(self, work: Callable[[], Coroutine[object, None, None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it. Do nothing if it runs."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def aclose(self) -> None:
        """Cancel it, and wait for its end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
