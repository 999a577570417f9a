"""``lava-proxy reconcile``, ``close`` and ``ledger heal``: the ledger beside Lava's records.

They store what they find if no daemon has the ledger's file. Beside a running daemon, which is the one writer of the file, they
work on a copy that is deleted afterwards; the daemon books the same by itself within ``ledger.reconcile_seconds``.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from proxy.cli import account, ledger_asking
from proxy.cli.arguments import UsageError
from proxy.cli.ledger_asking import iso, money, short, usd
from proxy.cli.terminal import Exit, Screen, failed, put_json, say
from proxy.ledger import books
from proxy.ledger.accounts import LIST_RETRIES, accounts_of
from proxy.ledger.books import Cause, Period, Subtotal
from proxy.ledger.direct import opened
from proxy.ledger.heal import Healed, Healing
from proxy.ledger.reconcile import MISSING_AFTER_US, Reconciler, unbilled_projects
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from proxy.config.settings import Settings
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.books import Books, BookTotals, Differing
    from proxy.ledger.direct import Direct
    from proxy.ledger.matching import Taken
    from proxy.ledger.reading import Book
    from proxy.ledger.reconcile import Progress

T = TypeVar("T")

NO_ACCOUNT: Final = "no project has a Lava secret key, and Lava shows its records to nobody else: run `lava-proxy login`, or set LAVA_SECRET_KEY"
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_SPAN = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHOWN = 20
_PROGRESS = 10_000


def run_reconcile(config: Path | None, *, since: str, settled_after: str | None, as_json: bool) -> int:
    """Compare the ledger with Lava's records, day by day; returns the exit code."""

    def work(book: Book) -> int:
        start = ledger_asking.begin_us(since) or 0
        period = Period(start, ledger_asking.now_us())
        found, kept = _balance(book, period, settled_after)
        if as_json:
            put_json({"stored": kept, "accounts": [_for_scripts(each, days=True) for each in found]})
            return Exit.OK
        screen = Screen()
        for each in found:
            _show_days(screen, each, title=len(found) > 1)
        if not kept:
            screen.prose(
                "A daemon has the ledger, so this was done on a copy. The daemon stores the same by itself.", "note"
            )
        return Exit.OK

    return _ask(config, work, as_json=as_json)


def run_close(config: Path | None, month: str, *, settled_after: str | None, as_json: bool) -> int:
    """Print both books of a month and every difference; returns 0 only if nothing is unexplained."""

    def work(book: Book) -> int:
        period = _month(month)
        found, _ = _balance(book, period, settled_after)
        unexplained = Subtotal()
        for each in found:
            unexplained += each.unexplained
        closed = unexplained == Subtotal()
        if as_json:
            put_json(
                {
                    "month": month,
                    "closed": closed,
                    "unexplained_requests": unexplained.requests,
                    "unexplained_usd": usd(unexplained.nano),
                    "accounts": [_for_scripts(each, days=False) for each in found],
                }
            )
            return Exit.OK if closed else Exit.FAILED
        screen = Screen()
        for each in found:
            _show_books(screen, each, month)
        screen.line()
        screen.line(f"Unexplained: {ledger_asking.requests(unexplained.requests)}, {money(unexplained.nano)}.")
        if any(each.cause is Cause.UNDECIDED for account in found for each in account.differences):
            screen.prose(
                "Lava may still record what is not decided yet. Close the month an hour after its end.", "note"
            )
        return Exit.OK if closed else Exit.FAILED

    return _ask(config, work, as_json=as_json)


def run_heal(config: Path | None, *, since: str | None, everything: bool, as_json: bool) -> int:
    """Rebuild the requests that Lava has records of and the ledger has not; returns the exit code."""

    def work(book: Book) -> int:
        start = ledger_asking.begin_us(since or book.settings.ledger.reconcile_since) or 0
        customers = {name: each.customer_id or each.connection_id for name, each in book.settings.projects.items()}
        amount, left = Subtotal(), 0
        with opened(book.settings.ledger) as (runner, kept):

            async def heal(reconciler: Reconciler, billing: BillingAccount) -> Healed:
                await reconciler.read_list(start, on_progress=_progress())
                await reconciler.recheck()
                projects = {name: customers.get(name) for name in billing.projects}
                return await Healing(runner, billing.scope, projects, everything=everything).heal()

            for each in _each_account(book.settings, runner, heal):
                amount, left = amount + each.amount, left + each.left
        if as_json:
            put_json(
                {
                    "stored": kept,
                    "healed": amount.requests,
                    "billed_usd": usd(amount.nano),
                    "without_our_id": left,
                }
            )
        else:
            _show_healed(Screen(), Healed(amount, left), kept=kept)
        return Exit.OK if kept or not amount.requests else Exit.FAILED

    return _ask(config, work, as_json=as_json, make=True)


# Asking


def _ask(config: Path | None, work: Callable[[Book], int], *, as_json: bool, make: bool = False) -> int:
    """Do ``work``; turn what Lava refuses into one sentence and exit code 1."""
    from proxy.lava.errors import LavaError

    def guarded(book: Book) -> int:
        billing = accounts_of(book.settings)
        if not billing:
            return failed(NO_ACCOUNT, as_json=as_json, code="lava_key_missing")
        try:
            return work(book)
        except LavaError as error:
            return account.refused(error, account.sentence(error, billing[0].base_url), as_json=as_json)

    return ledger_asking.ask(config, guarded, as_json=as_json, make=make)


def _each_account(
    settings: Settings, runner: Direct, work: Callable[[Reconciler, BillingAccount], Coroutine[Any, Any, T]]
) -> list[T]:
    """Do ``work`` for each account, one after the other."""

    async def do() -> list[T]:
        found = []
        for billing in accounts_of(settings):
            async with billing.client(settings, retries=LIST_RETRIES) as lava:
                correlate = settings.ledger.correlate
                reconciler = Reconciler(lava, billing, runner, correlate=correlate)
                found.append(await work(reconciler, billing))
        return found

    return asyncio.run(do())


def _balance(book: Book, period: Period, settled_after: str | None) -> tuple[list[Books], bool]:
    missing = ledger_asking.now_us() - (_microseconds(settled_after) if settled_after is not None else MISSING_AFTER_US)
    accounts = accounts_of(book.settings)
    with opened(book.settings.ledger) as (runner, kept):

        async def work(reconciler: Reconciler, billing: BillingAccount) -> Books:
            compared = await books.compare(reconciler, period, missing_before_us=missing, on_progress=_progress())
            # What no key can ask for stands in the first books.
            rest = await runner.run(lambda connection: unbilled_projects(connection, accounts))
            not_asked = rest if billing == accounts[0] else []
            return await books.balance(reconciler, runner, compared, missing_before_us=missing, not_asked=not_asked)

        return _each_account(book.settings, runner, work), kept


def _progress() -> Callable[[Progress], object]:
    """Say on standard error how far the list was read, every 10,000 records."""
    shown = 0

    def show(progress: Progress) -> None:
        nonlocal shown
        if progress.records // _PROGRESS > shown:
            shown = progress.records // _PROGRESS
            say(f"{progress.records:,} records read, back to {iso(progress.oldest_us)[:10]}")

    return show


def _microseconds(span: str) -> int:
    match = _SPAN.fullmatch(span)
    if match is None:
        raise UsageError(f'--settled-after must be a number and a unit, such as "30m" or "1h", not {span!r}')
    return int(match[1]) * _UNITS[match[2]] * 1_000_000


def _month(text: str) -> Period:
    """The month of UTC, of the present one what has passed. Raises ``UsageError``."""
    match = _MONTH.fullmatch(text)
    if match is None:
        raise UsageError(f"the month must be written as 2026-11, not {text!r}")
    months = int(match[1]) * 12 + int(match[2]) - 1
    start, end = (
        ledger_asking.microseconds(datetime(each // 12, each % 12 + 1, 1, tzinfo=UTC)) for each in (months, months + 1)
    )
    now = ledger_asking.now_us()
    if start > now:
        raise UsageError(f"{text} has not begun")
    return Period(start, min(end, now))


# Showing


def _show_days(screen: Screen, found: Books, *, title: bool) -> None:
    if title:
        screen.title(found.scope)
    if not found.days:
        screen.line("Neither Lava nor the ledger has a request of this time.")
        return
    rows = []
    for name, day in found.days.items():
        here = sum(day.only_here[cause] for cause in day.only_here)
        rows.append(
            [
                name,
                f"{day.matched.requests:,}",
                money(day.matched.nano),
                f"{here:,}",
                _with_money(day.phantoms),
                _with_money(day.duplicates),
                f"{day.differing:,}",
                _with_money(day.usage) if day.usage is not None else "–",
            ]
        )
    heads = ["day (UTC)", "matched", "billed", "only here", "only at Lava", "duplicates", "differing", "Lava's sums"]
    screen.table(heads, rows)
    reasons = [
        [name, f"{count:,}", _why(cause)]
        for name, day in found.days.items()
        for cause, count in sorted(day.only_here.items())
    ]
    if reasons:
        screen.title("Only here")
        screen.table(["day (UTC)", "requests", "likely reason"], reasons, numbers={1})
    _show_named(screen, found)


def _show_books(screen: Screen, found: Books, month: str) -> None:
    screen.title(f"{month} (UTC), {found.scope}")
    lava, here = found.lava, found.here
    screen.table(
        ["", "requests", "billed", "unmetered", "undecided", "dollars"],
        [
            ["at Lava", *_line(lava)],
            ["here", *_line(here)],
            ["Lava's sums", "", f"{found.usage.requests:,}", "", "", money(found.usage.nano)]
            if found.usage is not None
            else ["Lava's sums", "–", "–", "–", "–", "–"],
        ],
    )
    if found.differences:
        screen.title("Differences")
        screen.table(
            ["book", "requests", "dollars", "cause", ""],
            [
                [
                    "Lava" if each.at_lava else "here",
                    f"{each.amount.requests:,}",
                    money(each.amount.nano),
                    each.cause.value,
                    "" if each.explained else "UNEXPLAINED",
                ]
                for each in found.differences
            ],
            numbers={1, 2},
        )
    _show_named(screen, found)


def _show_named(screen: Screen, found: Books) -> None:
    for title, taken in (("Only at Lava", found.phantoms), ("Duplicates at Lava", found.duplicates)):
        if taken:
            screen.title(title)
            screen.table(
                ["record", "created", "model", "dollars", "request"],
                [
                    [
                        each.record.id,
                        iso(each.record.created_us)[:19],
                        short(each.record.model or "–"),
                        money(each.record.nano or 0),
                        each.request_id or "–",
                    ]
                    for each in taken[:_SHOWN]
                ],
                numbers={3},
            )
            if len(taken) > _SHOWN:
                screen.line(f"… and {len(taken) - _SHOWN:,} more: --json has them.", indent=2)
    if found.differing:
        screen.title("Differing")
        screen.table(
            ["request", "record", "what"],
            [[each.request_id, each.record.id, _what(each)] for each in found.differing[:_SHOWN]],
            numbers=(),
        )


def _show_healed(screen: Screen, found: Healed, *, kept: bool) -> None:
    count = counted(found.amount.requests, "request")
    if not found.amount.requests:
        screen.line("There is nothing to rebuild.")
    elif kept:
        screen.line(
            f"{count} rebuilt from Lava's records, {money(found.amount.nano)}; without timings, marked as healed."
        )
    else:
        screen.prose(
            f"{count} would be rebuilt, {money(found.amount.nano)}. A daemon has the ledger, and one process writes it: stop the "
            "daemon, and run this again."
        )
    if found.left:
        screen.prose(
            f"{counted(found.left, 'record')} without an id of ours left out: of other programs, or sent with "
            "ledger.correlate = false. --all takes them in.",
            "note",
        )


def _line(totals: BookTotals) -> list[str]:
    numbers = (totals.requests, totals.billed.requests, totals.unmetered, totals.pending)
    return [*(f"{each:,}" for each in numbers), money(totals.billed.nano)]


def _with_money(amount: Subtotal) -> str:
    return f"{amount.requests:,} ({money(amount.nano)})" if amount.requests else "0"


def _why(cause: Cause) -> str:
    return f"{cause.value} (ask again later)" if cause is Cause.UNDECIDED else cause.value


def _what(each: Differing) -> str:
    if each.corrected:
        return f"Lava has changed the amount, to {money(each.record.nano or 0)}"
    ours, theirs = each.tokens, (each.record.input_tokens, each.record.output_tokens)
    return f"tokens in and out: {ours[0]} and {ours[1]} here, {theirs[0]} and {theirs[1]} at Lava"


# For scripts


def _amount(amount: Subtotal) -> dict[str, Any]:
    return {"requests": amount.requests, "usd": usd(amount.nano)}


def _taken(taken: Taken) -> dict[str, Any]:
    record = taken.record
    return {
        "record": record.id,
        "created": iso(record.created_us),
        "provider": record.provider,
        "model": record.model,
        "status": record.bill.name.lower(),
        "usd": usd(record.nano),
        "request": taken.request_id,
    }


def _totals(totals: BookTotals) -> dict[str, Any]:
    return {
        "requests": totals.requests,
        "billed": totals.billed.requests,
        "usd": usd(totals.billed.nano),
        "unmetered": totals.unmetered,
        "pending": totals.pending,
    }


def _for_scripts(found: Books, *, days: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "account": found.scope,
        "from": iso(found.period.start_us),
        "until": iso(found.period.end_us),
        "at_lava": _totals(found.lava),
        "here": _totals(found.here),
        "lavas_sums": _amount(found.usage) if found.usage is not None else None,
        "differences": [
            {
                "cause": each.cause.name.lower(),
                "book": "lava" if each.at_lava else "here",
                "explained": each.explained,
                **_amount(each.amount),
            }
            for each in found.differences
        ],
        "unexplained": _amount(found.unexplained),
        "phantoms": [_taken(each) for each in found.phantoms],
        "duplicates": [_taken(each) for each in found.duplicates],
        "differing": [
            {"request": each.request_id, "record": each.record.id, "what": _what(each)} for each in found.differing
        ],
    }
    if days:
        document["days"] = [
            {
                "day": name,
                "matched": _amount(day.matched),
                "unmetered": day.unmetered,
                "only_here": {cause.name.lower(): count for cause, count in sorted(day.only_here.items())},
                "only_at_lava": _amount(day.phantoms),
                "duplicates": _amount(day.duplicates),
                "differing": day.differing,
                "lavas_sums": _amount(day.usage) if day.usage is not None else None,
            }
            for name, day in found.days.items()
        ]
    return document
