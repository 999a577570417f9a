"""The ledger on the event loop's side, and the thread that writes it.

Theory. The loop appends finished records to a bounded queue, and never waits; what does not fit is dropped and counted. The
writer wakes 80 ms after the first record, or when 500 are there, and writes them in one transaction. While the database is
away, it keeps the batch at hand and tries again; the queue fills meanwhile. Whether a request may be served never depends on
any of this.

SQLAlchemy is imported by the thread, when the daemon already serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections import deque
from secrets import token_hex
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from proxy.ledger.in_flight import Opened
from proxy.ledger.pricing import Prices
from proxy.protocol.threads import signals_left_to_main
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from proxy.config.settings import Settings
    from proxy.ledger.bills import NewBill
    from proxy.ledger.store import Store, Stored
    from proxy.protocol.record import Record

T = TypeVar("T")

MAX_QUEUE: Final = 10_000
BATCH: Final = 500
JOBS: Final = 100
"""Done in one transaction."""
GATHER_SECONDS: Final = 0.08
BREATH_SECONDS: Final = 0.0002
HURRY: Final = 100
"""Waiting records from which the writer takes no pauses: they would cost more than the requests in flight gain."""
OPEN_AFTER_SECONDS: Final = 0.1
"""A request in flight for longer has a row before it ends."""
START_SECONDS: Final = 0.1
"""Pause before SQLAlchemy is imported: the daemon becomes ready meanwhile."""
MAX_RETRY_SECONDS: Final = 2.0
WARN_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 5.0


class LedgerUnavailableError(Exception):
    """The database cannot be used now. The message says why."""


class LedgerLog(Protocol):
    """Where the ledger reports its faults. Called in the writer's thread."""

    def info(self, event: str) -> object: ...
    def warning(self, event: str) -> object: ...


class Status(NamedTuple):
    """The state of the ledger. ``lag_s`` is how long the oldest record in the queue has waited, about; ``problem`` in words."""

    queued: int
    dropped: int
    written: int
    lag_s: float
    problem: str | None
    schema: int | None


class _Job(NamedTuple, Generic[T]):
    work: Callable[[Connection], T]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[T]


class Ledger:
    """Records requests. All methods are called in the event loop's thread.

    ``mask`` hides secrets in text. ``in_batch`` are called in the transaction of each batch, with the settled requests in it; they must not wait.
    ``prices`` estimate the rows; what the biller charges is learned into them.
    """

    def __init__(self, settings: Settings, log: LedgerLog | None = None, mask: Callable[[str], str] = str) -> None:
        self.in_batch: list[Callable[[Connection, Sequence[Stored]], None]] = []
        self.prices = Prices()
        self.daemon = token_hex(8)
        """Names this process in the database."""
        self._settings = settings.ledger
        self._log = log
        self.mask = mask
        self._queue: deque[Record | Opened] = deque()
        self._jobs: deque[_Job[Any]] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        # Of the writer's thread; read by any.
        self._written = 0
        self._held = 0
        self._failed_since: float | None = None
        self._oldest: float | None = None
        self._problem: str | None = None
        self._schema: int | None = None
        self._warned = -WARN_SECONDS
        self._store: Store | None = None
        self._ended = False
        self._on_end: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Start the writer's thread. Do nothing if it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
            with signals_left_to_main():
                self._thread.start()

    def observe(self, record: Record) -> None:
        """Record a finished request. An observer of the gateway: never waits, never raises."""
        if record.facts is not None and record.project is not None:
            self._put(record)

    def watch(self, record: Record, now: float) -> None:
        """Record a request in flight, if it lasts and its row does not say so yet. Called for each, ten times a second."""
        if (
            record.stored <= len(record.attempts)
            and record.facts is not None
            and record.project is not None
            and now - record.started >= OPEN_AFTER_SECONDS
        ):
            record.stored = 1 + len(record.attempts)
            self._put(Opened(record))

    def say(self, sentence: str) -> None:
        """Log a sentence about the ledger."""
        if self._log is not None:
            self._log.info(sentence)

    def _put(self, item: Record | Opened) -> None:
        queue = self._queue
        waiting = len(queue)
        if waiting >= MAX_QUEUE and (isinstance(item, Opened) or not (item.intent and item.attempts)):
            # What is to be billed is never dropped: it was sent, so its intent is committed, and there are few in flight.
            self._dropped += 1
            return
        queue.append(item)
        if waiting == 0 or waiting == BATCH - 1:
            self._wake.set()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, done in one transaction in the writer's thread, after the records so far.

        Raises ``LedgerUnavailableError``, and what ``work`` raises.
        """
        if self._thread is None or self._ended or self._stopping:
            raise LedgerUnavailableError("the ledger is not running")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.append(_Job(work, loop, done))
        self._wake.set()
        return await done

    def learn(self, connection: Connection, bills: Sequence[NewBill]) -> None:
        """Learn prices from bills, in the transaction that books them. Called in the writer's thread, by the work of ``run``."""
        if self._store is not None:
            self._store.learn(connection, bills)

    def status(self) -> Status:
        """Return the state of the ledger."""
        oldest = self._oldest
        lag = monotonic() - oldest if oldest is not None else 0.0
        return Status(len(self._queue) + self._held, self._dropped, self._written, lag, self._problem, self._schema)

    async def aclose(self) -> None:
        """Write what is queued, within five seconds, and end the thread."""
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._on_end = lambda: loop.call_soon_threadsafe(ended.set)
        self._stopping = True
        self._wake.set()
        if self._thread is not None and not self._ended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), CLOSE_SECONDS)
        left = len(self._queue) + self._held
        if left:
            self._warn(f"{counted(left, 'request')} could not be recorded in the ledger before the end.")

    # the writer's thread

    def _run(self) -> None:
        try:
            self._wait(START_SECONDS)
            self._store = self._import()
            while not self._stopping:
                self._wait(self._upkeep())
                self._gather()
                self._write_batch()
                self._do_jobs()
            while self._queue and self._write_batch():
                pass
            self._dropped += len(self._queue)
            self._store.close()
        except Exception as error:  # noqa: BLE001  (the border of the thread)
            self._problem = f"the writer ended: {type(error).__name__}: {error}"
            self._warn(f"The ledger is not written any more: {_words(error)}.")
        finally:
            self._ended = True
            self._refuse_jobs()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._on_end()

    def _import(self) -> Store:
        from proxy.ledger import columns
        from proxy.ledger.store import Store

        store = Store(self._settings, self.daemon, self._warn, self.in_batch, self.mask, self.prices, self._breathe)
        self._schema = columns.VERSION
        if gc.get_freeze_count():
            # As for the other modules: they stay, and no collection shall traverse them (``daemon.py``).
            gc.freeze()
        return store

    def _breathe(self) -> None:
        """Let the event loop run. A batch takes ten milliseconds; without this, requests would wait for it on a busy processor."""
        if len(self._queue) < HURRY:
            sleep(BREATH_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait until there is something to do, at most ``seconds``."""
        if not self._queue and not self._jobs and not self._stopping:
            self._wake.wait(seconds)

    def _gather(self) -> None:
        """Wait until a batch is full, jobs wait, or the first record has waited long enough."""
        deadline = monotonic() + GATHER_SECONDS
        while self._queue and len(self._queue) < BATCH and not self._jobs and not self._stopping:
            self._wake.clear()
            left = deadline - monotonic()
            if left <= 0 or len(self._queue) >= BATCH:
                break
            self._wake.wait(left)
        self._wake.clear()

    def _upkeep(self) -> float:
        """Do what is due. Return the seconds until more is due."""
        store = self._store
        if store is None:
            return MAX_RETRY_SECONDS
        try:
            pause = store.upkeep()
        except Exception as error:  # noqa: BLE001  (any fault of a database or a disk: tried again)
            self._fail(store, error)
            return self._pause()
        self._recover()
        return pause

    def _write_batch(self) -> bool:
        """Write the next batch, however long that takes. At the end of the daemon, give up after the second failure.

        Return whether it was written.
        """
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        if not batch:
            return True
        self._held = len(batch)
        self._oldest = monotonic()
        again = False
        while not (written := self._write(batch, again)):
            if self._stopping and again:
                self._queue.extendleft(reversed(batch))
                break
            again = True
            self._refuse_jobs()
            self._pause_after_fault()
        self._held = 0
        self._oldest = None
        return written

    def _write(self, batch: list[Record | Opened], again: bool) -> bool:
        """Write a batch. Return whether it is done with."""
        store = self._store
        if store is None:
            return False
        try:
            self._written += store.write(batch, again=again)
        except Exception as error:  # noqa: BLE001  (any fault of a database or a disk: tried again)
            if store.is_fault_of_data(error):
                self._write_singly(store, batch, error)
                return True
            self._fail(store, error)
            return False
        self._recover()
        return True

    def _write_singly(self, store: Store, batch: list[Record | Opened], error: Exception) -> None:
        """Write the requests of a batch that the database refused for its values one by one; drop those it refuses again."""
        refused = 0
        for item in batch:
            try:
                self._written += store.write([item], again=True)
            except Exception as each:  # noqa: BLE001  (as above)
                error, refused = each, refused + 1
        self._dropped += refused
        if refused:
            self._warn_sometimes(f"The ledger did not take {counted(refused, 'request')}: {_words(error)}.")

    def _do_jobs(self) -> None:
        """Do what waits: together, because a commit takes longer than most work; one by one if that fails."""
        store = self._store
        while self._jobs and store is not None:
            taken = [self._jobs.popleft() for _ in range(min(JOBS, len(self._jobs)))]
            jobs = [each for each in taken if not each.done.cancelled()]
            if jobs and not self._do(store, jobs):
                for each in jobs:
                    self._do(store, [each])

    def _do(self, store: Store, jobs: Sequence[_Job[Any]]) -> bool:
        """Do jobs in one transaction. Return ``False`` if one of several is at fault: nothing is done then."""
        try:
            results = store.run(lambda connection: [each.work(connection) for each in jobs])
        except Exception as error:  # noqa: BLE001  (is raised where the job is awaited)
            if store.is_fault_of_database(error):
                self._fail(store, error)
                error = LedgerUnavailableError(_words(error))
            elif len(jobs) > 1:
                return False
            for each in jobs:
                self._settle(each, error=error)
        else:
            for each, result in zip(jobs, results, strict=True):
                self._settle(each, result=result)
        return True

    def _refuse_jobs(self) -> None:
        while self._jobs:
            self._settle(
                self._jobs.popleft(), error=LedgerUnavailableError(self._problem or "the ledger is not running")
            )

    @staticmethod
    def _settle(job: _Job[Any], *, result: object = None, error: Exception | None = None) -> None:
        def settle() -> None:
            if job.done.done():
                return
            if error is not None:
                job.done.set_exception(error)
            else:
                job.done.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            job.loop.call_soon_threadsafe(settle)

    # faults

    def _fail(self, store: Store, error: Exception) -> None:
        store.failed(error)
        self._problem = _words(error)
        if self._failed_since is None:
            self._failed_since = monotonic()
        self._warn_sometimes(
            f"The ledger cannot be written: {self._problem}. Requests are served as before; "
            f"up to {MAX_QUEUE:,} are kept until it can be written again ({self._dropped:,} were not recorded so far)."
        )

    def _recover(self) -> None:
        if self._failed_since is None:
            return
        away = monotonic() - self._failed_since
        self._failed_since = self._problem = None
        self._warned = -WARN_SECONDS
        if self._log is not None:
            self._log.info(
                f"The ledger is written again, after {away:.1f} s; {self._dropped:,} requests were not recorded since the start."
            )

    def _pause(self) -> float:
        since = self._failed_since
        return 0.1 if since is None else min(MAX_RETRY_SECONDS, max(0.1, (monotonic() - since) / 2))

    def _pause_after_fault(self) -> None:
        """Wait before the next try, but not at the end of the daemon."""
        deadline = monotonic() + self._pause()
        while not self._stopping and (left := deadline - monotonic()) > 0:
            self._wake.clear()
            if self._jobs:
                self._refuse_jobs()
            self._wake.wait(left)

    def _warn_sometimes(self, text: str) -> None:
        if monotonic() - self._warned >= WARN_SECONDS:
            self._warned = monotonic()
            self._warn(text)

    def _warn(self, text: str) -> None:
        if self._log is not None:
            self._log.warning(text)


def _words(error: BaseException) -> str:
    """Return an error in one line, without the statement and the values that SQLAlchemy adds."""
    origin = getattr(error, "orig", None) or error
    return f"{str(origin).strip().partition(chr(10))[0].rstrip('.') or type(origin).__name__}"
