"""The stop button: projects, or one tool or session of them, whose requests are refused until they are resumed.

Stops are kept by a ``StopStore`` so that they survive a restart. They are loaded before the first request is admitted.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from proxy.protocol import clients
from proxy.protocol.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.protocol.record import RequestFacts


LOAD_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 5.0


class Stop(NamedTuple):
    """What is stopped. An empty field matches everything; ``session`` is as the tool sends it, or its hash (``clients.hashed``)."""

    project: str = ""
    tool: str = ""
    session: str = ""

    def matches(self, project: str, facts: RequestFacts) -> bool:
        """Whether a request is stopped."""
        if self.project and self.project != project:
            return False
        if self.tool and self.tool != facts.tool:
            return False
        if not self.session:
            return True
        return facts.session is not None and self.session in (facts.session, clients.hashed(facts.session))

    def describe(self) -> str:
        """Return the words for messages: ``project "website", tool "codex"``."""
        parts = [f'{name} "{value}"' for name, value in self._asdict().items() if value]
        return ", ".join(parts)

    def command(self) -> str:
        """Return the arguments of ``lava-proxy stop`` and ``resume`` for it."""
        options = [f"--{name} {value}" for name, value in (("tool", self.tool), ("session", self.session)) if value]
        return " ".join(filter(None, [self.project, *options]))


class StopStore(Protocol):
    """Keeps stops over a restart. Both methods raise ``OSError`` if that is impossible now."""

    async def load(self) -> list[Stop]: ...
    async def save(self, stops: list[Stop]) -> None: ...


class Stops:
    """The stops of this daemon. ``warn`` logs one sentence."""

    def __init__(self, store: StopStore | None, warn: Callable[[str], None]) -> None:
        self.ready = store is None
        """Whether the stored stops are known, or are known to be unavailable."""
        self.lasting = store is not None
        """Whether the last change survives a restart."""
        self._store = store
        self._warn = warn
        self._stops: list[Stop] = []
        self._loading: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Stop]:
        return iter(self._stops)

    def check(self, project: str, facts: RequestFacts) -> None:
        """Raise ``ProxyError`` ``project_stopped`` for a request that is stopped."""
        for stop in self._stops:
            if stop.matches(project, facts):
                raise stopped(stop, project)

    async def load(self) -> None:
        """Wait until the stored stops are known. If they cannot be read, requests are admitted, and the log says so."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
        await self._loading

    async def _load(self) -> None:
        if self._store is None:
            return
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                stored = await self._store.load()
        except (OSError, TimeoutError):  # TimeoutError without words of its own
            self._warn("the stored stops cannot be read: requests are admitted until the ledger is available")
            self._loading = None
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._load_again)
        else:
            self._stops += [stop for stop in stored if stop not in self._stops]
        self.ready = True

    def _load_again(self) -> None:
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def add(self, stop: Stop) -> None:
        """Refuse what matches ``stop`` from now on, and store it."""
        await self.load()
        if stop not in self._stops:
            self._stops.append(stop)
        await self._save()

    async def remove(self, stop: Stop) -> list[Stop]:
        """Resume ``stop``, and with only a project every stop in it. Return what was resumed."""
        await self.load()
        whole = stop.project and not stop.tool and not stop.session
        removed = [each for each in self._stops if each == stop or (whole and each.project == stop.project)]
        self._stops = [each for each in self._stops if each not in removed]
        if removed:
            await self._save()
        return removed

    async def _save(self) -> None:
        if self._store is None:
            self.lasting = False
            return
        try:
            await self._store.save(list(self._stops))
            self.lasting = True
        except OSError:
            self.lasting = False
            self._warn("the stops cannot be stored: they end when this daemon ends")


def stopped(stop: Stop, project: str | None) -> ProxyError:
    """Return the error for a request that ``stop`` matches."""
    what = (
        f'Project "{project}" is stopped'
        if stop == Stop(project or "")
        else f"Requests of {stop.describe()} are stopped"
    )
    return ProxyError(
        "project_stopped", f"{what} by `lava-proxy stop`.", f"To allow them again: lava-proxy resume {stop.command()}"
    )
