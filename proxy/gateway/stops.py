"""The stop button: projects, or tools or sessions, whose requests are ended, and refused until they are resumed.

Theory. A stop counts from the moment of the command; storing it comes afterwards. ``_changes`` has what is not stored yet, and
``_sync`` writes it and reads all stops in one step. It runs at the start, with each command, and every few seconds if other
daemons write the store, too, or if there is something that it could lack. The first request waits for its first result.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from proxy.protocol.errors import ProxyError
from proxy.protocol.stop import Stop
from proxy.protocol.tasks import BackgroundTask
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from proxy.protocol.record import Record, RequestFacts

SYNC_SECONDS: Final = 5.0
"""How long a request or a command waits for the store."""
POLL_SECONDS: Final = 2.0
SLOWER: Final = 3.0
"""A slow store is asked less often: the pause is at least so many times what the last answer took."""
START_SECONDS: Final = 0.5
"""Pause before the store is first asked, unless a request comes: the daemon becomes ready meanwhile."""


class StopStore(Protocol):
    """Keeps stops over a restart."""

    @property
    def shared(self) -> bool:
        """Whether other daemons write there, too."""

    async def sync(self, changes: Mapping[Stop, bool]) -> list[Stop]:
        """Store what was stopped (True) and resumed (False). Return all stops. Raises ``OSError`` if that is impossible now."""


class Stops:
    """The stops of this daemon.

    ``end`` ends the requests that a stop matches and returns their records; ``warn`` logs one sentence.
    """

    def __init__(
        self, store: StopStore | None, end: Callable[[Stop], list[Record]], warn: Callable[[str], None]
    ) -> None:
        self.ready = store is None
        """Whether the stored stops are known, or are known to be unavailable."""
        self.shared = store is not None and store.shared
        self._store = store
        self._end = end
        self._warn = warn
        self._stops: list[Stop] = []
        self._changes: dict[Stop, bool] = {}
        self._failing = False
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._following = BackgroundTask(self._follow)

    def __iter__(self) -> Iterator[Stop]:
        return iter(self._stops)

    @property
    def problem(self) -> str | None:
        """Why the last changes do not survive a restart; ``None`` if they do."""
        if self._store is None:
            return "this daemon has no ledger" if self._stops else None
        return "the ledger cannot be written now; this is tried again" if self._changes else None

    def check(self, project: str, facts: RequestFacts) -> None:
        """Raise ``ProxyError`` ``project_stopped`` for a request that is stopped."""
        for stop in self._stops:
            if stop.matches(project, facts):
                raise stopped(stop, project)

    def start(self) -> None:
        """Begin to follow the store. Do nothing if it is followed."""
        self._following.start()

    async def aclose(self) -> None:
        """End following the store."""
        await self._following.aclose()

    async def load(self) -> None:
        """Wait until the stored stops are known. If they cannot be read, requests are admitted, and the log says so."""
        self.start()
        self._wanted.set()
        await self._tried.wait()

    async def refresh(self) -> None:
        """Learn what other daemons have stopped and resumed."""
        if self._store is not None:
            await self._sync(self._store)

    async def add(self, stop: Stop) -> list[Record]:
        """Refuse what matches ``stop`` from now on, end what is in flight, and store it. Return the records of what was ended."""
        if stop not in self._stops:
            self._stops.append(stop)
        self._changes[stop] = True
        ended = self._end(stop)
        self._warn(
            f"{stop.describe()} is stopped: {counted(len(ended), 'request')} in flight ended. `lava-proxy resume {stop.command()}` ends that."
        )
        await self.refresh()
        return ended

    async def remove(self, stop: Stop) -> list[Stop]:
        """Resume ``stop``, and with only a project every stop in it. Return what was resumed."""
        await self.refresh()
        removed = [each for each in self._stops if stop.includes(each)]
        for each in removed:
            self._stops.remove(each)
            self._changes[each] = False
            self._warn(f"{each.describe()} is resumed.")
        if removed:
            await self.refresh()
        return removed

    async def _follow(self) -> None:
        store = self._store
        if store is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), START_SECONDS)
        while True:
            pause = POLL_SECONDS
            if store.shared or self._stops or self._changes or self._failing or not self.ready:
                begun = monotonic()
                await self._sync(store)
                pause = max(pause, SLOWER * (monotonic() - begun))
            await asyncio.sleep(pause)

    async def _sync(self, store: StopStore) -> None:
        async with self._lock:
            changes = dict(self._changes)
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    stored = await store.sync(changes)
            except Exception:  # noqa: BLE001  (whatever is wrong with the store, the button works and requests are served)
                self._failed()
            else:
                self._failing = False
                self._adopt(changes, stored, store.shared)
            self.ready = True
            self._tried.set()

    def _failed(self) -> None:
        if not self._failing:
            self._failing = True
            if self.ready:
                self._warn(
                    "what is stopped cannot be read or stored: this daemon keeps it until the ledger is available."
                )
            else:
                self._warn("the stored stops cannot be read: requests are admitted until the ledger is available.")

    def _adopt(self, written: Mapping[Stop, bool], stored: list[Stop], shared: bool) -> None:
        for stop, is_stopped in written.items():
            if self._changes.get(stop) is is_stopped:
                del self._changes[stop]
        if not shared:
            # Only this daemon writes there: what is missing was lost with its file, and is written again.
            self._changes |= {stop: True for stop in self._stops if stop not in stored and stop not in self._changes}
        known, self._stops = self._stops, [stop for stop in stored if self._changes.get(stop, True)]
        self._stops += [stop for stop, is_stopped in self._changes.items() if is_stopped and stop not in stored]
        for stop in self._stops:
            if stop not in known:
                ended = self._end(stop)
                self._warn(
                    f"{stop.describe()} is stopped, as stored: {counted(len(ended), 'request')} in flight ended."
                )
        for stop in known:
            if stop not in self._stops:
                self._warn(f"{stop.describe()} was resumed by another daemon.")


def stopped(stop: Stop, project: str | None) -> ProxyError:
    """Return the error for a request that ``stop`` matches."""
    what = (
        f'Project "{project}" is stopped'
        if stop == Stop(project or "")
        else f"Requests of {stop.describe()} are stopped"
    )
    hint = f"To allow this again: lava-proxy resume {stop.command()}"
    return ProxyError("project_stopped", f"{what} by `lava-proxy stop`. {hint}", hint)
