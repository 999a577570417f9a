"""``lava-proxy check``: is the configuration good, who pays, and what to give to a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import addresses, loading, payers
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.lava.prefixes import of_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from proxy.cli.payers import PayingAccount
    from proxy.config.settings import Settings
    from proxy.gateway.destinations.diagnosis import Report

_TOOLS = {"openai": "OpenAI tools", "anthropic": "Anthropic tools", "google": "Google tools"}


def run(config: Path | None, *, as_json: bool, online: bool = False) -> int:
    """Tell about the configuration; returns the exit code (exits with 78 where it cannot be used).

    1 where no request could be paid, where a key seems to be in the wrong place, and with ``online``, which asks Lava's
    account about each project, where something is wrong there or could not be found out.
    """
    settings = loading.settings(config, as_json=as_json)
    report = describe(settings)
    said: Mapping[str, Report] = {}
    if online:
        from proxy.cli import online as asking

        said = asking.reports(settings)
        report["ok"] = report["ok"] and not any(each.wrong or each.open for each in said.values())
        for row in report["projects"]:
            row["online"] = asking.document(said[row["name"]])
    code = Exit.OK if report["ok"] else Exit.FAILED
    if as_json:
        put_json(report)
        return code
    screen = Screen()
    wrong = report["misplaced_keys"]
    verdict = "has a key in the wrong place" if wrong else "is not ready" if report["not_ready"] else "is good"
    screen.write(f"The configuration {verdict}", "bad" if wrong or report["not_ready"] else "good")
    screen.line(f": {report['config']}" if report["config"] else " (no file; environment and defaults only).")
    for each in wrong:
        screen.prose(each, "bad", lead="✗ ", indent=2)
    screen.line()
    screen.pairs(
        [
            ("listens on", ", ".join(report["listen"])),
            ("not ready" if report["not_ready"] else "ready", report["not_ready"] or "yes"),
        ]
    )
    for account in payers.accounts(settings):
        _show(screen, settings, account)
        if online:
            asking.show(screen, said[account.name])
    aliases = [row for row in report["models"] if row["later"]]
    if aliases:
        screen.title("Models with several choices: for now only the first is used (fallbacks come later)")
        screen.pairs([(row["name"], f"{row['used']}   (not yet: {', '.join(row['later'])})") for row in aliases])
    if report["warnings"]:
        screen.title("Warnings")
        for warning in report["warnings"]:
            screen.line(f"- {warning}", indent=2)
    if online:
        asking.conclude(screen, said)
    return code


def _show(screen: Screen, settings: Settings, account: PayingAccount) -> None:
    screen.title(f'Project "{account.name}"' + (" (the default)" if account.is_default else ""))
    ways = payers.ways(account, addresses.base(settings.server))
    screen.pairs(
        [
            ("pays", "\n".join(account.sentences())),
            ("Lava", f"{account.lava} ({account.credential})"),
            *((_TOOLS[tool], url) for tool, url in ways.items()),
            ("API key", account.local_key),
            ("metadata", ", ".join(f"{name}={value}" for name, value in account.metadata.items())),
        ]
    )


def describe(settings: Settings) -> dict[str, Any]:
    """The whole report, as ``--json`` prints it. No secret is in it."""
    base = addresses.base(settings.server)
    found = list(payers.accounts(settings))
    warnings = list(settings.warnings)
    warnings += [
        f'no local key is good for project "{account.name}", so no request reaches it: '
        f"add keys under [projects.{account.name}] or [server]"
        for account in found
        if not account.reachable
    ]
    active_config = payers.prepared(settings)
    not_ready, misplaced = active_config.usable(), list(of_settings(settings))
    return {
        "ok": not_ready is None and not misplaced,
        "config": str(settings.path) if settings.path else None,
        "not_ready": not_ready,
        "misplaced_keys": misplaced,
        "listen": addresses.listening(settings.server),
        "default_project": active_config.table.default_project,
        "projects": [_project(account, base) for account in found],
        "models": [
            {"name": name, "used": targets[0], "later": list(targets[1:])} for name, targets in settings.models.items()
        ],
        "warnings": warnings,
    }


def _project(account: PayingAccount, base: str) -> dict[str, Any]:
    return {
        "name": account.name,
        "default": account.is_default,
        "pays": [
            {
                "providers": list(share.providers) or ["*"],
                "payer": share.payment.payer if share.payment else None,
                "words": share.words,
                **(share.payment.details() if share.payment else {}),
            }
            for share in account.shares
        ],
        "lava": account.lava,
        "credential": account.credential,
        "base_urls": payers.ways(account, base),
        "api_key": account.local_key,
        "metadata": account.metadata,
    }
