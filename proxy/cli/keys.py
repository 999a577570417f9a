"""``lava-proxy keys``: spend keys, each for one tool and with limits of its own."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from proxy.cli import account, arguments
from proxy.cli.terminal import Exit, Screen, misused, put_json, say
from proxy.protocol.providers import ALIASES, BUILTIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.lava import LavaSync
    from proxy.lava.records import SpendKey

_CYCLES = {
    "daily": "daily",
    "day": "daily",
    "weekly": "weekly",
    "week": "weekly",
    "monthly": "monthly",
    "month": "monthly",
    "total": "total",
}


def create(
    config: Path | None,
    *,
    name: str | None,
    providers: Sequence[str],
    models: Sequence[str],
    limit: str | None,
    requests: str | None,
    rpm: int | None,
    burst: int | None,
    expires: str | None,
    shape: str | None,
    as_json: bool,
) -> int:
    """Create a spend key, show it, and return the exit code."""
    now = datetime.now(UTC).astimezone()
    try:
        allowed = [_provider(each) for each in _several(providers)]
        fields: dict[str, Any] = {
            "name": name or f"{' '.join(allowed) or 'lava-proxy'} {now:%Y-%m-%d %H:%M}",
            # A key accepts one shape of request, and Anthropic's own tools send no other.
            "request_shape": shape or ("anthropic" if allowed == ["anthropic"] else "openai"),
            "allowed_providers": allowed,
            "allowed_models": _several(models),
        }
        if limit is not None:
            amount, cycle = _per(limit, "--limit", "50/monthly")
            dollars = arguments.parse_money(amount, "--limit")
            if dollars <= 0:
                raise arguments.UsageError("--limit must be more than 0: with no limit at all, leave it out")
            fields["spend_limit"] = {"amount": dollars, "cycle": cycle}
        if requests is not None:
            count, cycle = _per(requests, "--requests", "1000/daily")
            if not re.fullmatch("0*[1-9][0-9]{0,11}", count):
                raise arguments.UsageError(
                    f"--requests is a whole number and a cycle such as 1000/daily, not {requests!r}"
                )
            fields["request_limit"] = {"count": int(count), "cycle": cycle}
        if burst is not None and rpm is None:
            raise arguments.UsageError("--burst goes with --rpm")
        if rpm is not None:
            fields["rate_limit"] = {"rpm": rpm, **({"burst": burst} if burst is not None else {})}
        if expires is not None:
            fields["expires_at"] = arguments.parse_time(expires, now, "--expires", ahead=True)
            if fields["expires_at"] <= now:
                raise arguments.UsageError(f"--expires is in the past: {expires}")
    except arguments.UsageError as error:
        return misused(str(error))

    def make(lava: LavaSync) -> int:
        from proxy.cli import api, rendering
        from proxy.lava.resources import rows

        (row,) = rows("spend_keys.create")
        shows = rendering.revealed(row)
        key = lava.call(row, fields={field: value for field, value in fields.items() if value not in (None, [])})
        if as_json:
            put_json(rendering.plain(key, shows))
        else:
            screen = Screen()
            rendering.show_one(screen, key, shows)
            screen.title("To use it with a project of lava-proxy:")
            screen.line("[projects.NAME]", "code", indent=2)
            screen.line('spend_key = "env:LAVA_SPEND_KEY"', "code", indent=2)
            screen.line()
        say(f"{api.ONCE}.")
        return Exit.OK

    return account.ask(config, make, as_json=as_json)


def show(config: Path | None, *, as_json: bool) -> int:
    """List the spend keys with what they have spent, and return the exit code."""

    def list_keys(lava: LavaSync) -> int:
        from proxy.cli import rendering

        keys = list(lava.spend_keys.list())
        if as_json:
            put_json({"data": [rendering.plain(key) for key in keys]})
        elif not keys:
            Screen().line("There are none.")
        else:
            Screen().records([_row(key) for key in keys], numbers=("spent",))
        return Exit.OK

    return account.ask(config, list_keys, as_json=as_json)


def _row(key: SpendKey) -> dict[str, str]:
    from proxy.cli.rendering import text
    from proxy.lava.money import dollars

    spend, requests, rate = key.spend_limit, key.request_limit, key.rate_limit
    limits = (
        f"{dollars(spend.amount)} {spend.cycle or ''}" if spend is not None else "",
        f"{text(requests.count)} {'request' if requests.count == 1 else 'requests'} {requests.cycle or ''}"
        if requests is not None
        else "",
        f"{text(rate.rpm)} a minute" if rate is not None else "",
    )
    return {
        "id": key.spend_key_id,
        "name": " ".join((key.name or "").split()),
        "status": key.status or "",
        "key": key.key_preview or "",
        "speaks": key.request_shape or "",
        "limits": ", ".join(limit.strip() for limit in limits if limit),
        "spent": dollars(key.current_spend),
        "expires": text(key.expires_at),
        "last used": text(key.last_used_at),
    }


def _several(given: Sequence[str]) -> list[str]:
    return [each.strip() for value in given for each in value.split(",") if each.strip()]


def _provider(name: str) -> str:
    """Return the provider's name. Only what looks like a typing error is refused: Lava may have other providers."""
    known = {each.lower(): each for each in BUILTIN} | {each.lower(): other for each, other in ALIASES.items()}
    if name.lower() in known:
        return known[name.lower()]
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    if close:
        raise arguments.UsageError(f"there is no provider {name!r}; did you mean {known[close[0]]}?")
    return name


def _per(text: str, name: str, example: str) -> tuple[str, str]:
    """Return the two parts of ``50/monthly``. The default cycle is ``total``."""
    amount, slash, cycle = text.partition("/")
    cycle = cycle.strip().lower() if slash else "total"
    if cycle not in _CYCLES:
        close = get_close_matches(cycle, _CYCLES, n=1, cutoff=0.5)
        hint = f"did you mean {_CYCLES[close[0]]}?" if close else "there are: daily, weekly, monthly, total"
        raise arguments.UsageError(f"{name} is written {example}; there is no cycle {cycle!r}, {hint}")
    return amount.strip(), _CYCLES[cycle]
