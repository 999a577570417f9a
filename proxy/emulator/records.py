"""What an account at Lava consists of, as plain records: meters, plans, subscriptions, keys, the ledger of requests.

Money is ``Decimal`` US dollars, instants are seconds since the epoch (UTC). How these look as JSON is told in
``shapes.py``; where they are kept, in ``state.py``. Rules that Lava's documents leave open are decided here and said so.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection  # noqa: TC003 - keeping.py reads these annotations while the program runs
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

RateType = Literal["fixed", "percentage"]
TierType = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
Interval = Literal["day", "week", "month", "year"]
Rollover = Literal["full", "none"]
Cycle = Literal["daily", "weekly", "monthly", "total"]
Shape = Literal["openai", "anthropic"]

_SMALLEST = Decimal("0.000000000001")


def new_id(prefix: str) -> str:
    """A fresh identifier, such as ``plan_5f0c9a1b22d3``."""
    return prefix + secrets.token_hex(6)


@dataclass(frozen=True, slots=True)
class Consumption:
    """What one request used."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_seconds: Decimal = Decimal(0)
    output_seconds: Decimal = Decimal(0)

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def characters(self) -> int:
        return self.input_characters + self.output_characters

    @property
    def seconds(self) -> Decimal:
        return self.input_seconds + self.output_seconds


@dataclass(frozen=True, slots=True)
class StoredTier:
    """From ``start`` units on, ``rate`` holds."""

    start: Decimal
    rate: Decimal


@dataclass(slots=True)
class StoredMeter:
    """What a customer is charged for a request.

    ``fixed``: the rate is dollars per unit of ``tier_type``. ``percentage``: the rate is what is added to the provider's
    cost, in percent, so that 0 charges the cost itself. The tier is the last one whose start the request's own units
    reach. (Lava's documents say the first of these three.)
    """

    meter_id: str
    meter_slug: str
    name: str
    created_at: float
    rate_type: RateType = "percentage"
    tier_type: TierType = "tokens_1m"
    tiers: tuple[StoredTier, ...] = (StoredTier(Decimal(0), Decimal(0)),)

    def units(self, used: Consumption) -> Decimal:
        """How many of the units of ``tier_type`` were used."""
        match self.tier_type:
            case "tokens_1m":
                return Decimal(used.tokens) / 1_000_000
            case "characters_1m":
                return Decimal(used.characters) / 1_000_000
            case "minutes":
                return used.seconds / 60
            case "requests":
                return Decimal(1)

    def tier(self, used: Consumption) -> StoredTier:
        """The tier that a request falls into."""
        units = self.units(used)
        reached = [tier for tier in self.tiers if tier.start <= units]
        return reached[-1] if reached else self.tiers[0]

    def price(self, cost: Decimal, used: Consumption) -> Decimal:
        """The customer's charge for a request that costs ``cost`` at the provider, in dollars."""
        rate = self.tier(used).rate
        if self.rate_type == "percentage":
            return cost if rate == 0 else (cost * (1 + rate / 100)).quantize(_SMALLEST).normalize()
        return (rate * self.units(used)).quantize(_SMALLEST).normalize()


class StoredMeters(dict[str, StoredMeter]):
    """Meters by slug. ``add`` takes a bare slug, as a set would."""

    @classmethod
    def of(cls, slugs: Iterable[str], now: float) -> StoredMeters:
        """Default meters with these slugs, in alphabetical order."""
        found = cls()
        for slug in sorted(slugs):
            found.add(slug, now)
        return found

    def add(self, slug: str, now: float = 0.0) -> StoredMeter:
        """The meter of ``slug``, made with default rates if there is none."""
        name = slug.replace("-", " ").title()
        return self.setdefault(slug, StoredMeter(new_id("met_"), slug, name, now))

    def discard(self, slug: str) -> None:
        """Forget a slug, known or not."""
        self.pop(slug, None)

    def by_id(self, meter_id: str) -> StoredMeter | None:
        """The meter with this id, or ``None``."""
        return next((meter for meter in self.values() if meter.meter_id == meter_id), None)


@dataclass(slots=True)
class StoredConnection:
    """A customer with a wallet of their own; Lava's SDK calls it a connection up to 8.x and a customer from 9.0."""

    connection_id: str
    balance: Decimal
    reference_id: str | None = None
    phone: str = ""
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    metadata: dict[str, object] | None = None
    created_at: float = 0.0

    def called(self, name: str | None) -> None:
        """Take a full name apart."""
        self.first_name, _, self.last_name = (name or "").strip().partition(" ")


@dataclass(slots=True)
class Bundle:
    """Extra credit that subscribers of a plan can buy."""

    credit_bundle_id: str
    name: str
    cost: Decimal
    credit_amount: Decimal
    created_at: float


@dataclass(slots=True)
class StoredPlan:
    """A subscription plan; SDK 8 calls it a subscription configuration. No meter ids: every meter."""

    plan_id: str
    name: str
    period_amount: Decimal
    created_at: float
    billing_interval: Interval = "month"
    rollover_type: Rollover = "none"
    bundle_rollover_type: Rollover = "full"
    included_credit: Decimal = Decimal(0)
    default_auto_top_up_bundle_id: str | None = None
    meter_ids: tuple[str, ...] = ()
    bundles: list[Bundle] = field(default_factory=list)

    def bundle(self, bundle_id: str | None) -> Bundle | None:
        """One of this plan's bundles, or ``None``."""
        return next((bundle for bundle in self.bundles if bundle.credit_bundle_id == bundle_id), None)

    def after(self, instant: float) -> float:
        """One billing interval later; a month or a year that lacks the day ends on its last one."""
        start = datetime.fromtimestamp(instant, UTC)
        match self.billing_interval:
            case "day":
                return (start + timedelta(days=1)).timestamp()
            case "week":
                return (start + timedelta(days=7)).timestamp()
            case "month":
                months = start.year * 12 + start.month
            case "year":
                months = start.year * 12 + start.month + 11
        year, month = divmod(months, 12)
        for day in (start.day, 30, 29, 28):
            try:
                return start.replace(year=year, month=month + 1, day=day).timestamp()
            except ValueError:
                continue
        raise AssertionError("every month has 28 days")


@dataclass(slots=True)
class StoredSubscription:
    """A customer on a plan. Credits are used before the wallet: first the cycle's, then those of bundles.

    ``ends_at`` is when a cancelled subscription really ends: a paid plan lasts to the end of its cycle, a free one ends
    at once. (Lava documents pending cancellations, not when there is one.)
    """

    subscription_id: str
    plan: StoredPlan
    customer_id: str
    started_at: float
    cycle_start: float
    cycle_end: float
    cycle_remaining: Decimal
    bundle_remaining: Decimal = Decimal(0)
    auto_top_up_bundle_id: str | None = None
    ends_at: float | None = None

    @classmethod
    def begin(cls, plan: StoredPlan, customer_id: str, now: float) -> StoredSubscription:
        """A new one with the plan's credit, from now on."""
        return cls(
            new_id("sub_"),
            plan,
            customer_id,
            now,
            now,
            plan.after(now),
            plan.included_credit,
            auto_top_up_bundle_id=plan.default_auto_top_up_bundle_id,
        )

    @property
    def credits(self) -> Decimal:
        return self.cycle_remaining + self.bundle_remaining

    def active(self, now: float) -> bool:
        """Whether it has not ended yet."""
        return self.ends_at is None or now < self.ends_at

    def covers(self, meter: StoredMeter | None) -> bool:
        """Whether its credits pay for requests on ``meter``."""
        return not self.plan.meter_ids or (meter is not None and meter.meter_id in self.plan.meter_ids)

    def renew(self, now: float) -> None:
        """Begin the cycles that are due: paid without a word, credit as the plan's rollover says."""
        while self.active(now) and now >= self.cycle_end:
            self.cycle_start, self.cycle_end = self.cycle_end, self.plan.after(self.cycle_end)
            kept = self.cycle_remaining if self.plan.rollover_type == "full" else Decimal(0)
            self.cycle_remaining = kept + self.plan.included_credit
            if self.plan.bundle_rollover_type == "none":
                self.bundle_remaining = Decimal(0)

    def cancel(self, now: float) -> None:
        """End it, at once or with its cycle."""
        self.ends_at = self.cycle_end if self.plan.period_amount > 0 else now

    def draw(self, amount: Decimal) -> Decimal:
        """Take up to ``amount`` from the credits; what is left to pay."""
        bundle = self.plan.bundle(self.auto_top_up_bundle_id)
        if amount > self.credits and bundle is not None:
            self.bundle_remaining += bundle.credit_amount
        taken = min(amount, self.cycle_remaining)
        self.cycle_remaining -= taken
        rest = min(amount - taken, self.bundle_remaining)
        self.bundle_remaining -= rest
        return amount - taken - rest


@dataclass(slots=True)
class StoredWebhook:
    """Where events go. The secret is told once."""

    webhook_id: str
    name: str
    url: str
    webhook_secret: str
    created_at: float


@dataclass(slots=True)
class IssuedKey:
    """A merchant secret key or a wallet key."""

    key_id: str
    name: str
    key: str
    created_at: float
    last_used_at: float | None = None


@dataclass(slots=True)
class StoredCheckoutSession:
    """A customer's way to a plan, a bundle or (up to SDK 8) an account or more money."""

    checkout_session_id: str
    token: str
    mode: str
    origin_url: str
    created_at: float
    customer_id: str | None = None
    plan_id: str | None = None
    credit_bundle_id: str | None = None
    completed_at: float | None = None


@dataclass(slots=True)
class Entry:
    """One line of the ledger: a request that went through the gateway or was reported.

    ``cost`` is the provider's price, ``charge`` what the customer owes by the meter, ``paid`` what really left a wallet or
    credit at Lava.
    """

    request_id: str
    status: Literal["pending", "completed", "error"]
    provider: str
    endpoint: str
    created_at: float
    customer_id: str | None = None
    meter: StoredMeter | None = None
    provider_key_type: Literal["managed", "unmanaged", "stored"] = "managed"
    model: str | None = None
    response_id: str | None = None
    used: Consumption = field(default_factory=Consumption)
    cost: Decimal = Decimal(0)
    charge: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    metadata: dict[str, str] = field(default_factory=dict)
    reported: bool = False


@dataclass(slots=True)
class Delivery:
    """One webhook call. ``status`` is the receiver's answer, ``error`` why there is none; both ``None`` while it lasts."""

    webhook_id: str
    url: str
    event: str
    body: bytes
    signature: tuple[str, str]
    status: int | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class LoginCode:
    """A code of the login flow; ``legacy`` when the page of SDK 9.0 to 11.1 gave it out."""

    issued_at: float
    legacy: bool


# Spend keys ---


@dataclass(slots=True)
class Limit:
    """A cap on money or requests within a cycle (days, ISO weeks and months of UTC)."""

    amount: Decimal
    cycle: Cycle = "total"


def window(now: float, cycle: Cycle) -> str:
    """The name of the cycle that ``now`` lies in."""
    today = datetime.fromtimestamp(now, UTC)
    return today.strftime({"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "total": "all"}[cycle])


@dataclass(slots=True)
class Tally:
    """What was counted within the present cycle, and before it."""

    current: Decimal = Decimal(0)
    before: Decimal = Decimal(0)
    window: str = ""

    @property
    def total(self) -> Decimal:
        return self.before + self.current

    def roll(self, now: float, cycle: Cycle) -> None:
        """Begin the cycle of ``now`` if it is another one."""
        name = window(now, cycle)
        if self.window and self.window != name:
            self.before, self.current = self.total, Decimal(0)
        self.window = name


@dataclass(slots=True)
class StoredSpendKey:
    """A key for Lava's own endpoints, tied to one request shape; ``spend_limit`` of ``None`` means no cap.

    ``spent`` is the present cycle's. ``allowed_models`` and ``allowed_providers`` of ``None`` mean all.
    """

    name: str
    key: str
    shape: Shape
    spend_limit: Decimal | None = None
    spent: Decimal = Decimal(0)
    allowed_providers: Collection[str] | None = None
    allowed_models: Collection[str] | None = None
    spend_cycle: Cycle = "total"
    request_limit: Limit | None = None
    rpm: int | None = None
    burst: int | None = None
    status: Literal["active", "paused"] = "active"
    expires_at: float | None = None
    last_used_at: float | None = None
    created_at: float = 0.0
    spend_key_id: str = field(default_factory=lambda: new_id("spk_"))
    spent_before: Decimal = Decimal(0)
    spend_window: str = ""
    requests: Tally = field(default_factory=Tally)
    # What is left of the rate, in requests, and when that was.
    allowance: tuple[float, float] | None = None

    def roll(self, now: float) -> None:
        """Begin the cycles of ``now`` where they are others than the last ones."""
        name = window(now, self.spend_cycle)
        if self.spend_window and self.spend_window != name:
            self.spent_before, self.spent = self.spent_before + self.spent, Decimal(0)
        self.spend_window = name
        self.requests.roll(now, self.request_limit.cycle if self.request_limit else "total")

    def wait(self, now: float) -> float:
        """Seconds until the rate allows another request; 0 takes one now.

        A bucket of ``burst`` (or a minute's worth), filled at ``rpm`` per minute. (Lava documents the numbers only.)
        """
        if self.rpm is None:
            return 0.0
        size = float(self.burst or self.rpm)
        left, then = self.allowance or (size, now)
        left = min(size, left + (now - then) * self.rpm / 60)
        if left < 1:
            self.allowance = (left, now)
            return (1 - left) * 60 / self.rpm
        self.allowance = (left - 1, now)
        return 0.0
