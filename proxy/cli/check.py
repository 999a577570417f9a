"""``lava-proxy check``: is the configuration good, who pays, what to give to a tool, and is the ledger well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import addresses, ledger_report, loading, payers
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
    """Report on the configuration and return the exit code. Exits with 78 if the configuration cannot be used.

    The code is 1 if no request could be paid or a key seems to be in the wrong place, and with ``online``, which asks
    Lava's account about each project, if something is wrong there or could not be checked.
    """
    settings = loading.settings(config, as_json=as_json)
    ledger = ledger_report.report(settings)
    report = describe(settings)
    report["ledger"] = ledger.document()
    report["warnings"] += ledger.warnings()
    answers: Mapping[str, Report] = {}
    if online:
        from proxy.cli import online as asking

        answers = asking.reports(settings)
        report["ok"] = report["ok"] and not any(each.wrong or each.open for each in answers.values())
        for row in report["projects"]:
            row["online"] = asking.document(answers[row["name"]])
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
            asking.show(screen, answers[account.name])
    screen.title("Ledger")
    screen.pairs(ledger.pairs())
    aliases = [row for row in report["models"] if row["later"]]
    if aliases:
        screen.title("Models with several choices: for now only the first is used (fallbacks come later)")
        screen.pairs([(row["name"], f"{row['used']}   (not yet: {', '.join(row['later'])})") for row in aliases])
    if report["warnings"]:
        screen.title("Warnings")
        for warning in report["warnings"]:
            screen.line(f"- {warning}", indent=2)
    if online:
        asking.conclude(screen, answers)
    return code


def _show(screen: Screen, settings: Settings, account: PayingAccount) -> None:
    screen.title(f'Project "{account.name}"' + (" (the default)" if account.is_default else ""))
    urls = payers.base_urls(account, addresses.base(settings.server))
    screen.pairs(
        [
            ("pays", "\n".join(account.sentences())),
            ("Lava", f"{account.lava} ({account.credential})"),
            *((_TOOLS[tool], url) for tool, url in urls.items()),
            ("API key", account.local_key),
            ("metadata", ", ".join(f"{name}={value}" for name, value in account.metadata.items())),
        ]
    )


def describe(settings: Settings) -> dict[str, Any]:
    """Return the whole report, as ``--json`` prints it. It contains no secret."""
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
        "base_urls": payers.base_urls(account, base),
        "api_key": account.local_key,
        "metadata": account.metadata,
    }
