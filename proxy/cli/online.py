"""``lava-proxy check --online``: check each project at Lava's account, before a request fails.

The same requests and sentences as for the daemon's 401 and 402, through the outbound proxy of ``[upstream]``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.destinations.account_probe import ProbeSender, ask
from proxy.gateway.destinations.diagnosis import AccountReport, report
from proxy.upstream import create_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.cli.terminal import Screen
    from proxy.config.settings import Settings
    from proxy.gateway.destinations.account_probe import ProbeAddress
    from proxy.gateway.destinations.diagnosis import Report
    from proxy.lava.replies import ApiReply
    from proxy.upstream import Engine

_LIMIT_S = 15.0
_MAX_QUESTIONS = 25  # about one project: accounts may have many pages of meters
_AT_ONCE = 8


def reports(settings: Settings) -> Mapping[str, Report]:
    """Return a report for each project, in the order of the file. Never raises for faults of the network or of Lava."""
    return asyncio.run(_reports(settings))


async def _reports(settings: Settings) -> Mapping[str, Report]:
    engine = create_engine(settings.upstream)
    config = ActiveConfig(settings, engine)
    senders: dict[tuple[str, str], _Once] = {}
    limit = asyncio.Semaphore(_AT_ONCE)

    async def about(name: str) -> Report:
        subject = config.destination.subject(name)
        mask = config.destination.mask_of(subject)
        if subject.key is None or (subject.silent is not None and subject.kind != "spend key"):
            return report(subject, AccountReport(), mask)
        who = (subject.key.reveal(), subject.base_url)
        sender = senders.get(who) or senders.setdefault(who, _Once(engine, config.destination.address(name)))
        async with limit:
            return report(subject, await ask(subject, sender, _LIMIT_S, _MAX_QUESTIONS), mask)

    try:
        names = list(config.table.projects)
        return dict(zip(names, await asyncio.gather(*map(about, names)), strict=True))
    finally:
        await engine.aclose()


class _Once(ProbeSender):
    """Sends each request once for a key: many projects share wallet and meters, and Lava counts the calls of a key."""

    def __init__(self, engine: Engine, place: ProbeAddress) -> None:
        super().__init__(engine, place)
        self._asked: dict[str, asyncio.Task[ApiReply]] = {}

    async def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, limit: float
    ) -> ApiReply:
        """Send the request, or return the answer of an earlier one with the same target."""
        asked = self._asked.get(target)
        if asked is None:
            asked = asyncio.ensure_future(super().send(method, target, headers, body, limit))
            self._asked[target] = asked
        return await asyncio.shield(asked)


def document(found: Report) -> dict[str, Any]:
    """Return the report of one project for scripts."""
    return {
        "ok": not (found.wrong or found.open),
        "wrong": [each.document() for each in found.wrong],
        "good": found.good,
        "not_known": "; ".join(found.open) or None,
    }


def show(screen: Screen, found: Report) -> None:
    """Print the report of one project."""
    for each in found.good:
        screen.prose(f"{each}.", lead="✓ ", indent=2)
    for finding in found.wrong:
        end = "" if finding.problem.endswith("?") else "."
        screen.prose(f"{finding.problem}{end} {finding.suggestion}", "bad", lead="✗ ", indent=2)
    for each in found.open:
        screen.prose(f"{each}.", "bad", lead="? ", indent=2)


def conclude(screen: Screen, answers: Mapping[str, Report]) -> None:
    """Print the summary of all reports."""
    wrong = [name for name, each in answers.items() if each.wrong]
    open_ = [name for name, each in answers.items() if each.open and not each.wrong]
    screen.line()
    if wrong:
        screen.line(f"Something is wrong in: {', '.join(wrong)}.", "bad")
    if open_:
        screen.line(f"Could not be checked: {', '.join(open_)}.", "bad")
    if not wrong and not open_:
        screen.line("Lava finds no fault with any project.", "good")
