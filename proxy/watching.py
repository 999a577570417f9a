"""The files that a configuration came from (its own, and those behind ``file:``), and loading it again when they change.

A file may be replaced by a rename, switched behind a link (as Kubernetes does) or written in place. While it is written in
place it can be empty or half there, so it is loaded only once it rests, and again where it changed while it was read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from proxy.settings import Settings

REST_SECONDS = 0.1
"""What did not change for so long is taken as written."""
_MOST_LOOKS = 20


class Unusable(Exception):
    """The files are not there to be loaded. ``faults`` has the sentence to be told."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.faults = (sentence,)


class Seen(NamedTuple):
    """What ``stat`` says of a file; it differs after every change, of mode and owner too."""

    changed: int
    modified: int
    size: int
    inode: int
    device: int


class Reloader:
    """Loads a configuration again. ``load`` runs in a thread; what it raises may name ``files`` to be watched from then on."""

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
        """Whether a file differs from what the last ``load`` saw, successful or not."""
        return await self._looked() != self._seen

    async def load(self) -> Settings:
        """The configuration as it is now. Raises ``Unusable`` and what ``load`` raises."""
        loop = asyncio.get_running_loop()
        for _ in range(_MOST_LOOKS):
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
        """Without its file another configuration would be found, or none: no keys asked for, say."""
        if self._path is None:
            return
        found = seen[self._path]
        if found is None:
            raise Unusable(f"{self._path} is gone")
        if found.size == 0 and self._had_text:
            raise Unusable(f"{self._path} is empty")

    async def _at_rest(self) -> dict[Path, Seen | None]:
        seen = await self._looked()
        for _ in range(_MOST_LOOKS):
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
        found = path.stat()  # of what a link leads to
    except (OSError, ValueError):
        return None
    return Seen(found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
