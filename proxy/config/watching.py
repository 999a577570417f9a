"""Watching the files of a configuration (its own, and those of ``file:`` references), and reloading it when they change.

A file may be replaced by a rename, by changing a link (as Kubernetes does), or be written in place. While it is written in
place it can be empty or incomplete, so it is loaded only when it is stable, and again if it changed while it was read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from proxy.config.settings import Settings

REST_SECONDS = 0.1
"""A file that did not change for this time is considered complete."""
_MAX_LOOKS = 20


class Unusable(Exception):
    """The files cannot be loaded. ``faults`` has the sentence for the user."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.faults = (sentence,)


class Seen(NamedTuple):
    """The result of ``stat`` for a file. It differs after every change, including mode and owner."""

    changed: int
    modified: int
    size: int
    inode: int
    device: int


class Reloader:
    """Reloads a configuration. ``load`` runs in a thread; its error may have ``files``, which are watched from then on."""

    def __init__(self, load: Callable[[], Settings], settings: Settings) -> None:
        self._load = load
        self._adopt(settings)
        self._seen = _look(self._files)

    def _adopt(self, settings: Settings) -> None:
        self._path = settings.path
        self._files = {*settings.files, *([settings.path] if settings.path is not None else [])}
        found = _look(self._files).get(settings.path) if settings.path is not None else None
        self._had_text = found is not None and found.size > 0

    async def changed(self) -> bool:
        """Whether a file has changed since the last ``load``, successful or not."""
        return await self._looked() != self._seen

    async def load(self) -> Settings:
        """Return the current configuration. Raises ``Unusable`` and what ``load`` raises."""
        loop = asyncio.get_running_loop()
        for _ in range(_MAX_LOOKS):
            self._seen = seen = await self._at_rest()
            self._require_text(seen)
            try:
                loaded = await loop.run_in_executor(None, self._load)
            except Exception as fault:
                if await self._looked() == seen:
                    self._watch_too(getattr(fault, "files", ()))
                    raise
            else:
                if await self._looked() == seen:
                    self._adopt(loaded)
                    self._seen = await self._looked()
                    return loaded
        raise Unusable("its files change faster than they can be read")

    def _watch_too(self, files: Iterable[Path]) -> None:
        more = set(files) - self._files
        self._files |= more
        self._seen = {**self._seen, **_look(more)}

    def _require_text(self, seen: Mapping[Path, Seen | None]) -> None:
        """Require the configuration file: without it another configuration, or none, would apply, perhaps without keys."""
        if self._path is None:
            return
        found = seen[self._path]
        if found is None:
            raise Unusable(f"{self._path} is gone")
        if found.size == 0 and self._had_text:
            raise Unusable(f"{self._path} is empty")

    async def _at_rest(self) -> dict[Path, Seen | None]:
        seen = await self._looked()
        for _ in range(_MAX_LOOKS):
            await asyncio.sleep(REST_SECONDS)
            before, seen = seen, await self._looked()
            if seen == before:
                break
        return seen

    async def _looked(self) -> dict[Path, Seen | None]:
        return await asyncio.get_running_loop().run_in_executor(None, _look, set(self._files))


def _look(files: Iterable[Path]) -> dict[Path, Seen | None]:
    return {path: _stat(path) for path in files}


def _stat(path: Path) -> Seen | None:
    try:
        found = path.stat()  # of the target of a link
    except (OSError, ValueError):
        return None
    return Seen(found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
