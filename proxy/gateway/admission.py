"""Admission: the limits on active requests, the budgets, and the refusal of new requests during a shutdown.

Theory of the budgets. ``hold`` checks the limits of a project and sets ``ActiveRequest.hold`` in one step of the loop's thread,
so that no two requests take the same rest. What is held is the sum over the requests in flight. ``settle`` is called when a
request is released: it replaces the hold by what was used, in one step too. Sums of what was used are read from the ledger when
a period is first needed, and counted here from then on. Limits are read from the configuration each time.

Where several daemons share the ledger, it decides: the request claims its estimate there, in one transaction for all daemons
(``ledger/holds.py``). What is counted here then serves the header, and decides only while the ledger is away.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

from proxy.gateway import budgets
from proxy.gateway.budgets import UNITS, Amount, Hold, Standing, Usual
from proxy.protocol.errors import ProxyError
from proxy.protocol.record import Outcome
from proxy.protocol.token_classes import TokenClasses, classes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.config.settings import Period
    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.active_request import ActiveRequest, Registry
    from proxy.gateway.budgets import BudgetPlan
    from proxy.gateway.request_body import RequestBody
    from proxy.gateway.stops import Stops
    from proxy.gateway.template import Prepared
    from proxy.protocol.record import Record

LOAD_SECONDS: Final = 5.0
"""How long a request waits for the sums that the ledger has."""
AGAIN_SECONDS: Final = 5.0
"""After which the ledger is asked again that did not answer."""
RETRY_SECONDS: Final = 60
"""A budget that resets within this time is worth a retry."""
UNKNOWN_NANO_PER_TOKEN: Final = 100_000
"""Billionths of a dollar per token (100 dollars per million) at a provider none of whose prices is known."""
MAX_USUAL: Final = 1000
"""Pairs of project and model whose usual size is remembered."""
_THRESHOLDS: Final = (80, 100)


Sums = tuple[int, int, int]
"""The fields of an ``Amount``."""


class Spending(Protocol):
    """Sums of stored requests, and room for one. Raises ``OSError`` if the ledger does not answer now."""

    @property
    def shared(self) -> bool:
        """Whether other daemons write there, too."""

    async def spent(self, project: str, since_us: int) -> Sums:
        """Return what was used by requests received at or after ``since_us``."""

    async def claim(
        self, project: str, request_id: str, at_us: int, amount: Sums, limits: Sequence[tuple[int, int, int]]
    ) -> tuple[bool, dict[int, tuple[Sums, Sums, Sums]]]:
        """Hold ``amount`` in the shared ledger, if there is room under each of ``limits``.

        A limit is the beginning of its period, the index of its unit, and the most. Return whether there was, and what was used,
        held, and held by other daemons before, by the beginning of the period.
        """

    def release(self, request_id: str) -> None:
        """End the claim of a request. ``Record.estimate_kept`` says what stays of it."""


class Pricer(Protocol):
    """Prices. ``load`` is awaited before the others are called."""

    async def load(self) -> None: ...

    def nano(self, provider: str, model: str | None, tokens: TokenClasses) -> int | None:
        """Return the cost in billionths of a dollar; ``None`` if it is unknown."""

    def dearest(self, provider: str) -> int | None:
        """Return the highest known price of a provider, in billionths of a dollar per million tokens."""


class Admission:
    """Grants permits and holds. The registry counts a permit until its request is removed, and has its hold until then."""

    def __init__(
        self,
        registry: Registry,
        stops: Stops,
        warn: Callable[[str], None],
        spending: Spending | None = None,
        pricer: Pricer | None = None,
    ) -> None:
        self._registry = registry
        self._stops = stops
        self._warn = warn
        self._spending = spending
        self._pricer = pricer
        self._projects: dict[str, ProjectBudget] = {}

    async def permit(self, active: ActiveRequest, project: str) -> None:
        """Count ``active`` against the limits of ``project``.

        Raises ``ProxyError`` ``overloaded``, ``shutting_down`` or ``project_stopped``.
        """
        registry, config = self._registry, active.config
        active.record.project = project
        if config.plans or self._projects:
            budget = active.budget = self._budget(config, project)
            if budget is not None and not budget.ready():
                await budget.load()
        if registry.draining:
            raise shutting_down()
        if not self._stops.ready:
            await self._stops.load()
        if active.record.facts is not None:
            self._stops.check(project, active.record.facts)
        limit = config.max_concurrent_in_all
        if registry.total_permitted >= limit:
            raise _overloaded("This daemon has", limit, "[server]")
        limit = config.max_concurrent[project]
        if registry.permitted.get(project, 0) >= limit:
            raise _overloaded(f'Project "{project}" has', limit, f"[projects.{project}]")
        registry.permit(active, project)

    def _budget(self, config: ActiveConfig, project: str) -> ProjectBudget | None:
        plan = config.plans.get(project)
        if plan is None:
            self._projects.pop(project, None)  # what is used from now on would be missing if the budget came back
            return None
        budget = self._projects.get(project)
        if budget is None:
            budget = self._projects[project] = ProjectBudget(
                plan, self._registry, self._warn, self._spending, self._pricer
            )
        budget.use(config, plan)
        return budget


class ProjectBudget:
    """The budget of one project: its limits as they are now, and what was used of it. It lives as long as the daemon."""

    def __init__(
        self,
        plan: BudgetPlan,
        registry: Registry,
        warn: Callable[[str], None],
        spending: Spending | None,
        pricer: Pricer | None,
    ) -> None:
        self.config: ActiveConfig | None = None
        self._plan = plan
        self._registry = registry
        self._warn = warn
        self._spending = spending
        self._pricer = pricer
        self._priced = False
        """Whether the prices are loaded. They are only needed for a limit in dollars."""
        self._used: dict[tuple[Period, str, int], tuple[BudgetPlan, budgets.Used]] = {}
        self._usual: OrderedDict[tuple[str, str | None], Usual] = OrderedDict()
        self._loading: asyncio.Task[None] | None = None
        self._again: dict[tuple[Period, str, int], float] = {}
        """When to read sums again (by the monotonic clock) that could not be read."""
        self._unread: set[tuple[Period, str, int]] = set()
        self._elsewhere: dict[Period, tuple[int, Amount]] = {}
        """What other daemons held at the last admission, by period: its beginning, and the amount."""
        self._alone = False
        """Whether the shared ledger is away, so that this daemon decides by what it knows."""
        self._known = (0, 0)
        """From when to when it is known what was used in the current periods, in microseconds UTC."""
        self._warned: dict[tuple[str, str], tuple[int, int]] = {}
        """The period and the threshold of the last warning about each limit."""

    def use(self, config: ActiveConfig, plan: BudgetPlan) -> None:
        """Use the limits of a configuration from now on. What was used stays as it is."""
        if self.config is None or config.number > self.config.number:
            self.config, self._plan, self._known = config, plan, (0, 0)

    # what is used

    def ready(self) -> bool:
        """Whether what was used in each current period is known."""
        now = _now_us()
        begin, end = self._known
        if begin <= now < end and not self._again:
            return True
        if self._plan.counts_money and not self._priced:
            return False
        again = False
        windows = [self._plan.window(period, now) for period in self._plan.periods]
        for period, window in zip(self._plan.periods, windows, strict=True):
            key = self._plan.key(period)
            known = self._used.get(key)
            if known is None or not known[1].knows(window.start):
                return False
            again = again or self._is_due(key)
        if again and self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())  # nothing waits for it
        self._known = max(each.start for each in windows), min(each.end for each in windows)
        return True

    def _is_due(self, key: tuple[Period, str, int]) -> bool:
        return key in self._again and self._again[key] <= monotonic()

    async def load(self) -> None:
        """Wait until what was used is known. If the ledger cannot be read, counting begins at 0, and the log says so."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
        await self._loading

    async def _load(self) -> None:
        try:
            plan, now = self._plan, _now_us()
            if plan.counts_money and not self._priced:
                if self._pricer is not None:
                    await self._pricer.load()
                self._priced = True
            await asyncio.sleep(0)  # the ledger gets the records of this turn first
            for period in plan.periods:
                await self._seed(plan, period, plan.window(period, now).start)
        finally:
            self._loading = None

    async def _seed(self, plan: BudgetPlan, period: Period, start: int) -> None:
        key = plan.key(period)
        used = self._used.setdefault(key, (plan, budgets.Used()))[1]
        if used.knows(start) and not self._is_due(key):
            return
        try:
            if self._spending is None:
                raise OSError
            async with asyncio.timeout(LOAD_SECONDS):
                stored = await self._spending.spent(plan.project, start)
        except OSError:  # TimeoutError is one
            if key not in self._unread:
                self._warn(
                    f'The budget of project "{plan.project}" per {period} counts from 0 now: '
                    "the ledger with what was used before cannot be read."
                )
                self._unread.add(key)
            self._again[key] = monotonic() + AGAIN_SECONDS
            used.enter(start)
        else:
            self._unread.discard(key)
            self._again.pop(key, None)
            used.seed(start, Amount(*stored))
            self._alone = False

    # one request

    async def hold(self, active: ActiveRequest, prepared: Prepared, body: RequestBody) -> None:
        """Set what ``active`` holds. Raises ``ProxyError`` ``budget_exceeded`` if the budget has no room for it."""
        while not self.ready():
            await self.load()
        hold = Hold(_now_us(), self._estimate(active.record, prepared, body))
        if self._spending is not None and self._spending.shared and not self._alone:
            await self._claim(active, hold, self._spending)
        if active.hold is None:
            self._refuse(self.standing(hold.at_us), hold)
            active.hold = hold

    def _refuse(self, standing: list[Standing], hold: Hold) -> None:
        """Raise ``ProxyError`` if one of the limits has no room for ``hold``."""
        refused = [
            each for each in standing if each.used + each.held + hold.amount.of(each.limit.unit) > each.limit.most
        ]
        if refused:
            last = max(refused, key=lambda each: each.resets_us)
            if not last.held:
                self._warn_once(last, 100)
            raise _exceeded(self._plan, last, hold.amount, hold.at_us)

    async def _claim(self, active: ActiveRequest, hold: Hold, spending: Spending) -> None:
        """Hold ``hold`` in the shared ledger. Raises ``ProxyError`` if there is no room; sets no hold if the ledger is away."""
        plan, record = self._plan, active.record
        windows = {period: plan.window(period, hold.at_us) for period in plan.periods}
        limits = [(windows[each.period].start, UNITS.index(each.unit), each.most) for each in plan.limits]
        record.estimate_kept = (0, 0)
        active.hold = hold  # before it waits: what it claims meanwhile is released with it
        try:
            granted, sums = await spending.claim(plan.project, record.request_id, hold.at_us, hold.amount, limits)
        except OSError:
            active.hold = None
            self._be_alone()
            return
        standing = []
        for limit in plan.limits:
            start, end = windows[limit.period]
            used, held, elsewhere = (Amount(*each) for each in sums[start])
            self._used[plan.key(limit.period)][1].seed(start, used)
            self._elsewhere[limit.period] = start, elsewhere
            standing.append(Standing(limit, used.of(limit.unit), held.of(limit.unit), end))
        if not granted:
            active.hold = None
            self._refuse(standing, hold)

    def _be_alone(self) -> None:
        if not self._alone:
            self._alone = True
            self._warn(
                f'The budget of project "{self._plan.project}" counts only what this daemon knows until the ledger answers: '
                "what other daemons use meanwhile is not counted."
            )
        for period in self._plan.periods:
            self._again[self._plan.key(period)] = monotonic() + AGAIN_SECONDS

    def standing(self, now: int) -> list[Standing]:
        """Return each limit with what is used and held of it."""
        plan = self._plan
        holds = self._registry.holds(plan.project)
        all_held, earliest = budgets.held(holds, 0), min((hold.at_us for hold in holds), default=now)
        found = {}
        for period in plan.periods:
            known = self._used.get(plan.key(period))
            if known is None:  # it came with a new configuration, and no request has needed it yet
                continue
            window = plan.window(period, now)
            held = all_held if earliest >= window.start else budgets.held(holds, window.start)
            start, elsewhere = self._elsewhere.get(period, (0, budgets.NOTHING))
            if start == window.start:
                held = held.plus(elsewhere)
            known[1].enter(window.start)
            found[period] = known[1].of(window.start), held, window.end
        return [
            Standing(limit, used.of(limit.unit), held.of(limit.unit), end)
            for limit in plan.limits
            if limit.period in found
            for used, held, end in (found[limit.period],)
        ]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the header with what is left of the tightest limit; none before what was used is known."""
        if any(self._plan.key(period) not in self._used for period in self._plan.periods):
            return []
        tightest = min(self.standing(_now_us()), key=lambda each: each.left / each.limit.most)
        left = f"{tightest.limit.name} {tightest.limit.shown(tightest.left)}"
        return [(b"x-lava-proxy-budget-left", left.encode("ascii"))]

    def settle(self, active: ActiveRequest) -> None:
        """Count what ``active`` used. Its hold ends in the same step."""
        hold, active.hold = active.hold, None
        record = active.record
        if record.estimate_kept is not None and self._spending is not None:
            self._spending.release(record.request_id)
        if hold is None or not any(attempt.sent for attempt in record.attempts):
            return
        known, whole = self._measured(record)
        amount = known if whole else Amount(*map(max, hold.amount, known))
        if amount != known:
            record.estimate_kept = amount.tokens - known.tokens, amount.nano - known.nano
        for (period, _, _), (plan, used) in self._used.items():
            used.add(plan.window(period, hold.at_us).start, amount)
        self._warn_of(hold.at_us)

    def _warn_of(self, at_us: int) -> None:
        """Warn of each limit that is used to a threshold in the period of ``at_us``."""
        plan = self._plan
        for limit in plan.limits:
            known = self._used.get(plan.key(limit.period))
            if known is None:
                continue
            window = plan.window(limit.period, at_us)
            used = known[1].of(window.start).of(limit.unit)
            if used * 100 >= _THRESHOLDS[0] * limit.most:
                reached = max(mark for mark in _THRESHOLDS if used * 100 >= mark * limit.most)
                self._warn_once(Standing(limit, used, 0, window.end), reached)

    def _measured(self, record: Record) -> tuple[Amount, bool]:
        """Return what is known of what a request used, and whether that is all: a stream that broke may say what it used so far."""
        attempt, scanner, facts = record.attempts[-1], record.scanner, record.facts
        if facts is None or _is_free(record):
            return Amount(1), True
        raw = scanner.raw_usage if scanner is not None else None
        if scanner is None or raw is None:
            return Amount(1), budgets.costs_nothing(attempt.status)
        classes = classes_of(raw, facts.dialect, facts.endpoint)
        inputs = _sum(
            classes.input, classes.cache_read, classes.cache_write_5m, classes.cache_write_1h, classes.audio_in
        )
        outputs = _sum(classes.output, classes.audio_out)
        whole = record.outcome is Outcome.OK
        if whole:
            usual = self._usual_of(attempt.provider, record.model)
            usual.learn(record.bytes_in, inputs, outputs)
            usual.served = scanner.model or usual.served
        nano = self._nano(attempt.provider, attempt.model or scanner.model, [classes], inputs + outputs)
        return Amount(1, inputs + outputs, nano or 0), whole

    def _estimate(self, record: Record, prepared: Prepared, body: RequestBody) -> Amount:
        if _is_free(record):
            return Amount(1)
        plan, route = self._plan, prepared.route
        usual = self._usual_of(route.provider.name, record.model)
        size = max(record.bytes_in, body.size, body.length or 0)
        inputs, outputs = budgets.estimate(usual, size, *body.output_limit(), strict=plan.strict)
        model = route.replace or route.model
        uses = [TokenClasses(input=inputs, output=outputs)]
        if plan.strict:  # whatever model an address is used with that only names a provider
            uses = budgets.dearest_uses(inputs, outputs)
        else:
            model = model or usual.served
        nano = self._nano(route.provider.name, model, uses, inputs + outputs)
        if nano is None:
            standing = next(each for each in self.standing(_now_us()) if each.limit.unit == "usd")
            raise ProxyError(
                "budget_exceeded",
                f'The cost of model "{model or "?"}" at provider "{route.provider.name}" is unknown, and the budget of project '
                f'"{plan.project}" refuses such requests.',
                f'Use another model, or set on_unknown_cost to "count" under [projects.{plan.project}.budget].',
                details=standing.details(),
            )
        return Amount(1, inputs + outputs, nano)

    def _nano(self, provider: str, model: str | None, uses: list[TokenClasses], tokens: int) -> int | None:
        """Return the highest cost of ``uses``; ``None`` if it is unknown and requests of unknown cost are refused."""
        plan, pricer = self._plan, self._pricer if self._priced else None
        if not plan.counts_money:
            return 0
        costs = [pricer.nano(provider, model, each) for each in uses] if pricer is not None else []
        known = [each for each in costs if each is not None]
        if known:
            return max(known)
        if plan.on_unknown_cost == "ignore":
            return 0
        if plan.on_unknown_cost == "refuse":
            return None
        dearest = pricer.dearest(provider) if pricer is not None else None
        return tokens * UNKNOWN_NANO_PER_TOKEN if dearest is None else -(-tokens * dearest // 1_000_000)

    def _usual_of(self, provider: str, model: str | None) -> Usual:
        key = provider, model
        usual = self._usual.get(key)
        if usual is None:
            usual = self._usual[key] = Usual()
            if len(self._usual) > MAX_USUAL:
                self._usual.popitem(last=False)
        else:
            self._usual.move_to_end(key)
        return usual

    def _warn_once(self, standing: Standing, reached: int) -> None:
        limit = standing.limit
        key, period = (limit.unit, limit.period), standing.resets_us
        if reached and (period, reached) > self._warned.get(key, (0, 0)):
            self._warned[key] = period, reached
            self._warn(
                f'The budget of project "{self._plan.project}", {limit.shown(limit.most)} {limit.name}, is '
                f"{'used up' if reached == 100 else f'used to {reached} %'}: {limit.shown(standing.used)} are used, "
                f"until {standing.resets_at}."
            )


def _is_free(record: Record) -> bool:
    """Whether a request costs neither tokens nor dollars. One that reads an answer again may have its usage."""
    return record.method != "POST" or (record.facts is not None and record.facts.endpoint in budgets.FREE_ENDPOINTS)


def _sum(*counts: int | None) -> int:
    return sum(count or 0 for count in counts)


def _now_us() -> int:
    return int(time() * 1_000_000)


def _exceeded(plan: BudgetPlan, standing: Standing, amount: Amount, now_us: int) -> ProxyError:
    limit = standing.limit
    seconds = max(1, -(-(standing.resets_us - now_us) // 1_000_000))
    used, held = limit.shown(standing.used), limit.shown(standing.held)
    needs = "" if limit.unit == "requests" else f", and this request needs about {limit.shown(amount.of(limit.unit))}"
    return ProxyError(
        "budget_exceeded",
        f'The budget of project "{plan.project}" ({limit.shown(limit.most)} {limit.name}) has no room for this request: {used} '
        f"are used and {held} are held by requests in flight{needs}.",
        f"It resets at {standing.resets_at}; or raise {limit.unit} under [projects.{plan.project}.budget].",
        retry=seconds <= RETRY_SECONDS,
        details=standing.details(),
        headers=[(b"retry-after", b"%d" % seconds)],
    )


def shutting_down() -> ProxyError:
    """Return the error for a request that arrives or still waits while the daemon shuts down."""
    return ProxyError(
        "shutting_down",
        "This daemon is shutting down.",
        "Try again in a moment.",
        headers=[(b"retry-after", b"1"), (b"connection", b"close")],
    )


def _overloaded(subject: str, limit: int, table: str) -> ProxyError:
    return ProxyError(
        "overloaded",
        f"{subject} as many requests in flight as max_concurrent under {table} allows ({limit}).",
        f"Try again in a moment, or raise max_concurrent under {table}.",
        headers=[(b"retry-after", b"1")],
    )
