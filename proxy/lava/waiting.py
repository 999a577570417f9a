"""The base of the blocking client: an event loop in a separate thread, so that it works inside a running loop, too."""

from __future__ import annotations

import asyncio
import threading
import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from proxy.lava.records import ApiRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from proxy.lava.paging import PagedResource, Pages
    from proxy.lava.records import Page

R = TypeVar("R", bound=ApiRecord)
T = TypeVar("T")
P = ParamSpec("P")

_END: Any = object()


class Waiter:
    """Runs coroutines in its own thread and waits for them. The thread starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: weakref.finalize[Any, Waiter] | None = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items of an async iterator."""

        async def step() -> T:
            return await anext(source, _END)

        # What ends a step (an error, Ctrl-C) ends the source as well; only leaving between two steps does not.
        while (item := self.wait(step())) is not _END:
            try:
                yield item
            except GeneratorExit:
                close = getattr(source, "aclose", None)
                if close is not None:
                    self.wait(close())
                raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """End the thread, after it has run `last`. May be called twice; does nothing without a thread."""
        with self._lock:
            loop, stop = self._loop, self._stop
            self._stop = self._loop = None
        if loop is None or stop is None:
            return
        try:
            if last is not None:
                asyncio.run_coroutine_threadsafe(last(), loop).result()
        finally:
            stop()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_turn, args=(loop,), name="lava", daemon=True)
                thread.start()
                self._loop = loop
                # A script that does not call close() ends, too.
                self._stop = weakref.finalize(self, _end, loop, thread)
            return self._loop


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(5.0)


class BlockingPages(Generic[R]):
    """A list that is requested when it is used: ``for record in pages`` yields the records of all pages, ``pages.first()``
    returns the first page, ``pages.by_page()`` yields the pages."""

    def __init__(self, waiter: Waiter, pages: Pages[R]) -> None:
        self._waiter = waiter
        self._pages = pages

    def __iter__(self) -> Iterator[R]:
        return self._waiter.each(aiter(self._pages))

    def by_page(self) -> Iterator[Page[R]]:
        """Yield the pages."""
        return self._waiter.each(self._pages.by_page())

    def first(self) -> Page[R]:
        """Return the first page, with its ``next_cursor``."""

        async def ask() -> Page[R]:
            return await self._pages

        return self._waiter.wait(ask())


class BlockingResource:
    """A resource of ``methods``, and the thread that waits for it."""

    def __init__(self, resource: PagedResource, waiter: Waiter) -> None:
        self.resource = resource
        self.waiter = waiter


def waits(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingResource, P], T]:
    """Return the method of a ``BlockingResource`` that waits for `method` of its resource."""

    @wraps(method)
    def call(self: BlockingResource, /, *args: P.args, **options: P.kwargs) -> T:
        return self.waiter.wait(method(self.resource, *args, **options))

    return call


def lists(
    method: Callable[Concatenate[Any, P], Pages[R]],
) -> Callable[Concatenate[BlockingResource, P], BlockingPages[R]]:
    """Return the method of a ``BlockingResource`` that lists what `method` of its resource lists."""

    @wraps(method)
    def call(self: BlockingResource, /, *args: P.args, **options: P.kwargs) -> BlockingPages[R]:
        return BlockingPages(self.waiter, method(self.resource, *args, **options))

    return call
