"""Loading again: when the files rest, and never what is half there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.config.settings import ConfigError, load
from proxy.config.watching import Reloader, Unusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.config.settings import Settings

FIRST, SECOND = "aks_live_" + "first0123456789", "aks_live_" + "second0123456789"


class Watched:
    """A configuration with a secret in a file, and what loads it."""

    def __init__(self, folder: Path, written: str = "file:secret") -> None:
        self.config = folder / "config.toml"
        self.secret = folder / "secret"
        self.secret.touch(mode=0o600)
        self.secret.write_text(FIRST)
        self.config.touch(mode=0o600)
        self.config.write_text(f'[lava]\nsecret_key = "{written}"\n')
        self.loads = 0
        self.while_loading: Callable[[], object] = lambda: None
        self.reloader = Reloader(self._load, load(self.config, {}))

    def _load(self) -> Settings:
        self.loads += 1
        try:
            return load(self.config, {})
        finally:
            if self.loads == 1:
                self.while_loading()

    def key(self) -> str:
        """The key after loading again."""
        loaded = asyncio.run(self.reloader.load())
        assert loaded.lava.secret_key is not None
        return loaded.lava.secret_key.reveal()

    def changed(self) -> bool:
        """Whether there is something to load."""
        return asyncio.run(self.reloader.changed())


def in_place(path: Path, text: str) -> None:
    """As an editor that truncates and writes."""
    path.write_text(text)


def renamed(path: Path, text: str) -> None:
    """As an editor that writes beside it and renames; with the times and the size of the old file."""
    fresh = path.with_name("fresh")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(path)


@pytest.mark.parametrize("write", [in_place, renamed])
def test_a_changed_secret_is_noticed_and_used(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """Once, however it was written; nothing is noticed where nothing has changed."""
    watched = Watched(tmp_path)
    assert not watched.changed()
    write(watched.secret, SECOND)
    assert watched.changed()
    assert watched.key() == SECOND
    assert not watched.changed()


def test_a_secret_switched_behind_links_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted secret: ``secret -> ..data/secret``, ``..data -> ..<time>``."""
    for name, key in (("..1", FIRST), ("..2", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").touch(mode=0o600)
        (tmp_path / name / "key").write_text(key)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "link").symlink_to("..data/key")
    watched = Watched(tmp_path, "file:link")
    (tmp_path / "new").symlink_to("..2")
    (tmp_path / "new").rename(tmp_path / "..data")
    assert watched.changed()
    assert watched.key() == SECOND


@pytest.mark.parametrize("fault", ["empty", "half a character", "gone", "a directory", "open to others"])
def test_a_secret_that_cannot_be_used_is_told_once_and_again_when_it_can(tmp_path: Path, fault: str) -> None:
    """It is a fault of the reload; after that nothing has changed until the file does."""
    watched = Watched(tmp_path)
    if fault == "empty":
        watched.secret.write_text("")
    elif fault == "half a character":
        watched.secret.write_bytes(b"\xc3")
    elif fault == "open to others":
        watched.secret.chmod(0o666)
    else:
        watched.secret.unlink()
        if fault == "a directory":
            watched.secret.mkdir()
    assert watched.changed()
    with pytest.raises(ConfigError, match=r"lava\.secret_key"):
        watched.key()
    assert not watched.changed()
    if fault == "a directory":
        watched.secret.rmdir()
    watched.secret.touch(mode=0o600)
    watched.secret.chmod(0o600)
    watched.secret.write_text(SECOND)
    assert watched.changed()
    assert watched.key() == SECOND


@pytest.mark.parametrize("fault", ["empty", "gone"])
def test_a_configuration_without_its_file_is_not_loaded(tmp_path: Path, fault: str) -> None:
    """An editor has truncated or moved it and not yet written it, perhaps: what stands in no file is not taken for it."""
    watched = Watched(tmp_path)
    text = watched.config.read_text()
    if fault == "empty":
        watched.config.write_text("")
    else:
        watched.config.unlink()
    assert watched.changed()
    with pytest.raises(Unusable, match=fault):
        watched.key()
    assert watched.loads == 0
    assert not watched.changed()
    watched.config.touch(mode=0o600)
    watched.config.write_text(text)
    assert watched.changed()
    assert watched.key() == FIRST


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    """The last of it counts, also where the first reading was a fault."""
    for text in (
        '[lava]\nsecret_key = "env:NONE"\n',
        "[lava]\nsecret_key =",
        '[lava]\nsecret_key = "something else"\n',
    ):
        watched = Watched(tmp_path)
        whole = watched.config.read_text()
        watched.config.write_text(text)
        watched.while_loading = lambda watched=watched, whole=whole: watched.config.write_text(whole)  # type: ignore[misc]
        assert watched.key() == FIRST
        assert watched.loads == 2
        assert not watched.changed()


def test_a_secret_that_a_faulty_configuration_names_is_watched_too(tmp_path: Path) -> None:
    """The file that was missing comes later: nobody need touch the configuration again."""
    watched = Watched(tmp_path)
    watched.config.write_text('[lava]\nsecret_key = "file:later"\n')
    with pytest.raises(ConfigError, match="does not exist"):
        watched.key()
    assert not watched.changed()
    (tmp_path / "later").touch(mode=0o600)
    (tmp_path / "later").write_text(SECOND)
    assert watched.changed()
    assert watched.key() == SECOND
