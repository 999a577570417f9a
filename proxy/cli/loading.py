"""The configuration for a command, or all its faults on standard error and exit code 78."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.cli.terminal import Exit, put_json, say
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.config.settings import ConfigError, Settings


def settings(config: Path | None, flags: Mapping[str, object] | None = None, *, as_json: bool = False) -> Settings:
    """Return the settings of `config`, or of the default places. Exits with 78 if they cannot be used."""
    from proxy.config.settings import ConfigError, load

    try:
        return load(config, flags=flags)
    except ConfigError as error:
        # Reported outside of the handler, which frees the exception and what it refers to.
        faults = error
    report(faults, as_json=as_json)
    raise SystemExit(Exit.CONFIGURATION)


def report(faults: ConfigError, *, as_json: bool = False) -> None:
    """Print the faults, for scripts on standard output as well."""
    say(f"lava-proxy: the configuration cannot be used ({counted(len(faults.faults), 'fault')}):")
    for fault in faults.faults:
        say(f"  {fault}")
    if as_json:
        put_json({"ok": False, "faults": list(faults.faults)})
