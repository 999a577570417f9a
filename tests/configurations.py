"""Configurations for tests: write a file, load it, or get the faults it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.config.settings import ConfigError, Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Key-shaped text is put together here, so that no file of this repository looks as if it held a key.
LAVA_KEY = "aks_live_" + "c4naryQ7" * 4
LOCAL_KEY = "local-" + "w8Zr" * 6


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    """A configuration file with this text, for us alone unless said otherwise."""
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def loaded(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a file with this text, and of these variables alone."""
    return load(written(folder, text), environ or {})


def faults(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What is wrong with a file with this text."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, environ)
    # An exception that hangs on this one would carry the values that pydantic was given.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.faults


def only_fault(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    """The one thing that is wrong with a file with this text."""
    found = faults(folder, text, environ)
    assert len(found) == 1, found
    return found[0]
