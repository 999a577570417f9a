"""Delivers the letters of the outbox: asks before it repeats, and decides what each answer means."""

from __future__ import annotations

import random
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.lava.errors import (
    Conflict,
    Forbidden,
    LavaError,
    NotFound,
    RateLimited,
    Refused,
    ServerError,
    Unauthorized,
    Unreachable,
)
from proxy.ledger import outbox_rows
from proxy.ledger.accounts import accounts_of
from proxy.ledger.columns import OutboxState
from proxy.ledger.outbox_rows import Result
from proxy.protocol.headers import PROXY_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config.settings import Settings
    from proxy.lava import Lava
    from proxy.lava.client import ApiSender
    from proxy.lava.records import Request
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.outbox_rows import Letter
    from proxy.ledger.reconcile import Runner

MAX_TRIES: Final = 8
FIRST_PAUSE_SECONDS: Final = 5.0
MAX_PAUSE_SECONDS: Final = 300.0
_USED: Final = (
    "input_tokens",
    "output_tokens",
    "input_characters",
    "output_characters",
    "input_seconds",
    "output_seconds",
)


def pause(failures: int, luck: float, asked: float | None = None) -> float:
    """Return the seconds to the next try after so many failures, at most five minutes; ``luck`` is in [0, 1).

    ``asked`` is Lava's ``Retry-After``.
    """
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16))
    own = longest * (0.5 + luck / 2)
    return own if asked is None else min(MAX_PAUSE_SECONDS, max(own, asked))


class Held(NamedTuple):
    """An account whose letters wait: Lava or the network fails."""

    failures: int
    until: float


class _Unavailable(Exception):
    """Lava cannot be used now; no letter's fault."""

    def __init__(self, error: LavaError) -> None:
        super().__init__(str(error))
        self.retry_after = error.retry_after


class Delivery:
    """Delivers what is due. ``runner`` is the ledger; ``say`` logs a sentence; ``mask`` hides secrets in what Lava says."""

    def __init__(
        self,
        runner: Runner,
        settings: Callable[[], Settings],
        sender: Callable[[BillingAccount], ApiSender | None],
        say: Callable[[str], object],
        mask: Callable[[str], str] = str,
    ) -> None:
        self._runner = runner
        self._settings = settings
        self._sender = sender
        self._say = say
        self._mask = mask
        self._held: dict[str, Held] = {}
        self._homeless: set[str] = set()

    async def deliver(self) -> float | None:
        """Deliver what is due. Return the seconds until more is, ``None`` if nothing waits.

        Raises ``LedgerUnavailableError``.
        """
        while True:
            pauses = await self._round()
            if None not in pauses:
                return min((each for each in pauses if each is not None), default=None)

    async def _round(self) -> list[float | None]:
        """Deliver a page of each project: one that has a million letters does not hold the others.

        Return for each project the seconds until more is due; ``None``: more may be due now.
        """
        settings = self._settings()
        accounts = {project: each for each in accounts_of(settings) for project in each.projects}
        pauses: list[float | None] = []
        for number, name in await self._runner.run(outbox_rows.projects):
            account = accounts.get(name)
            if account is not None:
                pauses.append(await self._of_project(settings, account, number))
                continue
            if name not in self._homeless:
                self._homeless.add(name)
                self._say(f'Usage of project "{name}" cannot be reported: no Lava secret key is configured for it.')
            pauses.append(MAX_PAUSE_SECONDS)
        return pauses

    async def _of_project(self, settings: Settings, account: BillingAccount, project: int) -> float | None:
        held = self._held.get(account.scope)
        if held is not None and held.until > monotonic():
            return held.until - monotonic()
        now = int(time() * 1e6)
        letters = await self._runner.run(lambda connection: outbox_rows.take(connection, project, now))
        if not letters:
            due = await self._runner.run(lambda connection: outbox_rows.next_us(connection, project))
            return MAX_PAUSE_SECONDS if due is None else min(MAX_PAUSE_SECONDS, max(0.0, due / 1e6 - time()))
        async with account.client(settings, self._sender(account)) as lava:
            results, fault = await self._page(lava, letters, correlate=settings.ledger.correlate)
        await self._runner.run(lambda connection: outbox_rows.settle(connection, results))
        if fault is not None:
            return self._hold(account.scope, fault)
        if self._held.pop(account.scope, None) is not None:
            self._say(f"Usage is reported to Lava again ({account.scope}).")
        return None

    async def _page(
        self, lava: Lava, letters: list[Letter], *, correlate: bool
    ) -> tuple[list[Result], _Unavailable | None]:
        """Send letters in their order, up to the first that cannot be sent now."""
        results: list[Result] = []
        for at, letter in enumerate(letters):
            try:
                result = await self._one(lava, letter, correlate)
                results.append(result._replace(problem=result.problem and self._mask(result.problem)))
            except _Unavailable as fault:
                # Whether this one arrived is not known: it is asked for next time. The others were not sent. None was refused.
                later = int(time() * 1e6) + outbox_rows.ASK_AFTER_US
                results.append(Result(letter.seq, OutboxState.READY, None, later, max(1, letter.tries)))
                results += [Result(each.seq, OutboxState.READY, tries=each.tries) for each in letters[at + 1 :]]
                return results, fault
        return results, None

    def _hold(self, scope: str, fault: _Unavailable) -> float:
        failures = self._held[scope].failures + 1 if scope in self._held else 1
        left = pause(failures, random.random(), fault.retry_after)  # noqa: S311 - spreads
        self._held[scope] = Held(failures, monotonic() + left)
        if failures == 1:
            self._say(f"Usage cannot be reported to Lava now, and waits in the outbox ({scope}: {fault}).")
        return left

    async def _one(self, lava: Lava, letter: Letter, correlate: bool) -> Result:
        """Deliver a letter. Raises ``_Unavailable``."""
        try:
            if letter.tries:
                existing = await _retrieve(lava, letter.id)
                if existing is not None:
                    return _judged(letter, existing)
            fields = _fields(letter) | ({"metadata": {PROXY_ID: letter.id}} if correlate else {})
            return _judged(letter, await lava.requests.create(**fields, idempotency_key=letter.id))
        except Conflict as error:
            try:
                existing = await _retrieve(lava, letter.id)
            except LavaError as again:
                raise _Unavailable(again) from None
            return _judged(letter, existing) if existing is not None else _refused(letter, error)
        except (Unauthorized, Forbidden, RateLimited, ServerError, Unreachable) as error:
            raise _Unavailable(error) from None
        except (LavaError, ValueError, TypeError) as error:
            if isinstance(error, Refused) and error.status is not None and error.status < 400:
                raise _Unavailable(error) from None
            return _refused(letter, error)


async def _retrieve(lava: Lava, request_id: str) -> Request | None:
    try:
        return await lava.requests.retrieve(request_id)
    except NotFound:
        return None


def _fields(letter: Letter) -> dict[str, Any]:
    known = {name: letter.body[name] for name in (*_USED, "customer_id") if letter.body.get(name) is not None}
    return {"request_id": letter.id, "meter_slug": letter.body.get("meter_slug") or "", **known}


def _judged(letter: Letter, record: Request) -> Result:
    """Return delivered if the record is this letter's, else that it is dead."""
    if record.request_id != letter.id:
        return Result(letter.seq, OutboxState.DEAD, f"Lava has billed it under another id, {record.request_id}")
    used = record.model_usage
    for name in _USED:
        ours, theirs = letter.body.get(name), getattr(used, name) if used is not None else None
        if theirs is not None and theirs != (ours or 0):
            return Result(
                letter.seq, OutboxState.DEAD, f"Lava has this id with other numbers: {name} is {theirs}, not {ours}"
            )
    customer = record.customer_id or record.connection_id
    if customer is not None and letter.body.get("customer_id") not in (None, customer):
        return Result(letter.seq, OutboxState.DEAD, f"Lava has this id for another customer, {customer}")
    return Result(letter.seq, None)


def _refused(letter: Letter, error: Exception) -> Result:
    tries = letter.tries + 1
    if tries >= MAX_TRIES:
        return Result(letter.seq, OutboxState.DEAD, f"refused {tries} times: {error}")
    next_us = int((time() + pause(tries, random.random())) * 1e6)  # noqa: S311 - spreads
    return Result(letter.seq, OutboxState.READY, str(error), next_us)
