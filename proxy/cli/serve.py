"""``lava-proxy serve``: run the daemon, with its log and the reload of its configuration."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from proxy.cli import loading, payers
from proxy.cli.terminal import Exit, say
from proxy.lava.prefixes import of_settings
from proxy.ledger.lock import AlreadyRunningError, FileLock
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.config.settings import Settings
    from proxy.ledger.writer import Ledger
    from proxy.observe.logs import Logs

_MAX_PROJECTS_SHOWN = 20


def run(config: Path | None, hosts: Sequence[str], port: int | None) -> int:
    """Run the daemon until a signal stops it, and return the exit code."""
    flags = {"server.host": list(hosts) or None, "server.port": port}
    settings = loading.settings(config, flags)

    from proxy import daemon
    from proxy.app import create_app
    from proxy.observe import logs
    from proxy.protocol.redaction import Redactor

    try:
        log = logs.configure(settings.log, Redactor(settings.secrets()))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        say(f"lava-proxy: log.file: {settings.log.file} cannot be written ({why}): name another file, or leave it out")
        return Exit.CONFIGURATION

    def reload() -> Settings:
        from proxy.config.settings import load

        loaded = load(config, flags=flags)
        log.reopen()
        if loaded.ledger != settings.ledger:
            log.warning("[ledger] has changed: that needs a restart")
        for key in ("format", "file"):
            if getattr(loaded.log, key) != getattr(settings.log, key):
                log.warning(f"log.{key} has changed: that needs a restart")
        _introduce(log, loaded)
        return loaded

    try:
        from proxy import __version__

        log.info(f"lava-proxy {__version__}, configuration: {settings.path or 'no file, environment and defaults'}")
        _introduce(log, settings)
        with ExitStack() as stack:
            try:
                ledger = _ledger(settings, log, stack)
            except AlreadyRunningError as error:
                log.error(str(error))
                return daemon.EXIT_UNAVAILABLE
            return daemon.serve(
                settings, create_app=lambda given: create_app(given, log=log, ledger=ledger), reload=reload
            )
    finally:
        log.close()


def _ledger(settings: Settings, log: Logs, stack: ExitStack) -> Ledger | None:
    """Return the ledger of this daemon, with its file locked until ``stack`` is closed; ``None`` without one.

    Raises ``AlreadyRunningError``. A place that cannot be used is a warning: requests are served without a ledger, too.
    """
    from proxy.ledger.writer import Ledger

    if not settings.ledger.enabled:
        return None
    if settings.ledger.url is None:
        try:
            path = settings.ledger.file()
            lock = FileLock(path)
        except (OSError, RuntimeError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            where = getattr(error, "filename", None) or "the user's data directory"
            log.warning(
                f"requests are not recorded: the ledger cannot be kept at {where} ({why}). "
                "Name another place (path under [ledger]), or switch it off (enabled = false)."
            )
            return None
        stack.callback(lock.release)
    return Ledger(settings, log, log.mask)


def _introduce(log: Logs, settings: Settings) -> None:
    """Log the projects with their payers, and every warning."""
    accounts = list(payers.accounts(settings))
    for account in accounts[:_MAX_PROJECTS_SHOWN]:
        log.info(
            f'project "{account.name}"{" (default)" if account.is_default else ""}, paid by {"; ".join(account.sentences())}'
        )
    if len(accounts) > _MAX_PROJECTS_SHOWN:
        more = counted(len(accounts) - _MAX_PROJECTS_SHOWN, "more project")
        log.info(f"and {more}: `lava-proxy check` shows them all")
    for warning in (*settings.warnings, *of_settings(settings)):
        log.warning(warning)
    reason = payers.prepared(settings).usable()
    if reason is not None:
        log.warning(f"not ready: {reason}")
