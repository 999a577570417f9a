"""The rows of an account at Lava: meters, plans, subscriptions, keys, requests.

Money is ``Decimal`` US dollars, instants are seconds since the epoch (UTC). ``shapes.py`` has their
JSON. Rules that Lava's documents leave open are decided here and marked.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection  # noqa: TC003 - state_file.py reads these annotations while the program runs
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

RateType = Literal["fixed", "percentage"]
TierType = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
Interval = Literal["day", "week", "month", "year"]
Rollover = Literal["full", "none"]
Cycle = Literal["daily", "weekly", "monthly", "total"]
Shape = Literal["openai", "anthropic"]

_SMALLEST = Decimal("0.000000000001")


def new_id(prefix: str) -> str:
    """Return a new identifier, such as ``plan_5f0c9a1b22d3``."""
    return prefix + secrets.token_hex(6)


def new_key(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Consumption:
    """What one request used. ``input_tokens`` includes the cached and the cache-written ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_seconds: Decimal = Decimal(0)
    output_seconds: Decimal = Decimal(0)
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0

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
    start: Decimal
    rate: Decimal


@dataclass(slots=True)
class StoredMeter:
    """The price of a request for a customer.

    ``fixed``: the rate is dollars per unit of ``tier_type``. ``percentage``: the rate is added to
    the provider's cost, in percent. The tier is the last one whose start the request's own units
    reach. (Lava documents only ``fixed``.)
    """

    meter_id: str
    meter_slug: str
    name: str
    created_at: float
    rate_type: RateType = "percentage"
    tier_type: TierType = "tokens_1m"
    tiers: tuple[StoredTier, ...] = (StoredTier(Decimal(0), Decimal(0)),)

    def units(self, used: Consumption) -> Decimal:
        """Return the number of used units of ``tier_type``."""
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
        units = self.units(used)
        reached = [tier for tier in self.tiers if tier.start <= units]
        return reached[-1] if reached else self.tiers[0]

    def price(self, cost: Decimal, used: Consumption) -> Decimal:
        """Return the customer's charge in dollars for a request that costs ``cost`` at the provider."""
        rate = self.tier(used).rate
        if self.rate_type == "percentage":
            return cost if rate == 0 else (cost * (1 + rate / 100)).quantize(_SMALLEST).normalize()
        return (rate * self.units(used)).quantize(_SMALLEST).normalize()


@dataclass(slots=True)
class StoredConnection:
    """A customer with a wallet; a connection up to SDK 8.x, a customer from 9.0."""

    connection_id: str
    balance: Decimal
    reference_id: str | None = None
    phone: str = ""
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    metadata: dict[str, object] | None = None
    created_at: float = 0.0

    def set_name(self, name: str | None) -> None:
        self.first_name, _, self.last_name = (name or "").strip().partition(" ")


@dataclass(slots=True)
class StoredBundle:
    """Extra credit that subscribers of a plan can buy."""

    credit_bundle_id: str
    name: str
    cost: Decimal
    credit_amount: Decimal
    created_at: float


@dataclass(slots=True)
class StoredPlan:
    """A subscription plan (SDK 8: subscription configuration). Without meter ids it covers every meter."""

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
    bundles: list[StoredBundle] = field(default_factory=list)

    def bundle(self, bundle_id: str | None) -> StoredBundle | None:
        return next((bundle for bundle in self.bundles if bundle.credit_bundle_id == bundle_id), None)

    def after(self, instant: float) -> float:
        """Return the instant one billing interval later; a month without that day ends on its last day."""
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
    """A customer on a plan. Credits are used before the wallet: first the cycle's, then those of
    bundles.

    ``ends_at`` is set by a cancellation: a paid plan lasts to the end of its cycle, a free one ends
    at once. (Lava documents that there are pending cancellations, not for which plans.)
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
        return self.ends_at is None or now < self.ends_at

    def covers(self, meter: StoredMeter | None) -> bool:
        """Return whether its credits pay for requests on ``meter``."""
        return not self.plan.meter_ids or (meter is not None and meter.meter_id in self.plan.meter_ids)

    def renew(self, now: float) -> None:
        """Begin the due cycles, with the credit that the plan's rollover leaves."""
        while self.active(now) and now >= self.cycle_end:
            self.cycle_start, self.cycle_end = self.cycle_end, self.plan.after(self.cycle_end)
            kept = self.cycle_remaining if self.plan.rollover_type == "full" else Decimal(0)
            self.cycle_remaining = kept + self.plan.included_credit
            if self.plan.bundle_rollover_type == "none":
                self.bundle_remaining = Decimal(0)

    def cancel(self, now: float) -> None:
        self.ends_at = self.cycle_end if self.plan.period_amount > 0 else now

    def draw(self, amount: Decimal) -> Decimal:
        """Take up to ``amount`` from the credits; return the rest that is still to pay."""
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
class StoredFile:
    """A file uploaded through OpenAI's files endpoint."""

    file_id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int


@dataclass(slots=True)
class StoredCheckoutSession:
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
class StoredRequest:
    """A request that went through the gateway or was reported.

    ``cost`` is the provider's price, ``charge`` what the customer owes by the meter, ``paid`` what
    a wallet or credit at Lava was charged.
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
    output_cost: Decimal = Decimal(0)
    charge: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    metadata: dict[str, str] = field(default_factory=dict)
    reported: bool = False
    listed_at: float = 0.0
    final_at: float = 0.0
    lost: bool = False

    def seen(self, now: float) -> StoredRequest | None:
        """Return the record as the account API has it at ``now``; before ``final_at`` it is pending and not metered."""
        if self.lost or now < self.listed_at:
            return None
        if now >= self.final_at:
            return self
        zero = Decimal(0)
        return replace(self, status="pending", used=Consumption(), cost=zero, output_cost=zero, charge=zero)


@dataclass(slots=True)
class WebhookDelivery:
    """One webhook call: ``status`` of the receiver's response, or ``error``; both ``None`` while it runs."""

    webhook_id: str
    url: str
    event: str
    body: bytes
    signature: tuple[str, str]
    status: int | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        return self.status is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class LoginCode:
    """A code of the login flow; ``legacy``: issued by the page of SDK 9.0 to 11.1."""

    issued_at: float
    legacy: bool


# Spend keys ---


@dataclass(slots=True)
class Limit:
    """A limit of requests within a cycle (days, ISO weeks and months of UTC)."""

    amount: Decimal
    cycle: Cycle = "total"


def window(now: float, cycle: Cycle) -> str:
    """Return the name of the cycle that contains ``now``."""
    today = datetime.fromtimestamp(now, UTC)
    return today.strftime({"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "total": "all"}[cycle])


@dataclass(slots=True)
class PeriodCount:
    """A count within the present cycle, and before it."""

    current: Decimal = Decimal(0)
    before: Decimal = Decimal(0)
    window: str = ""

    @property
    def total(self) -> Decimal:
        return self.before + self.current

    def roll(self, now: float, cycle: Cycle) -> None:
        """Begin the cycle of ``now`` if it is a new one."""
        name = window(now, cycle)
        if self.window and self.window != name:
            self.before, self.current = self.total, Decimal(0)
        self.window = name


@dataclass(slots=True)
class StoredSpendKey:
    """A key for Lava's own endpoints, for one request shape. ``None`` means no limit; ``spent`` is
    the present cycle's.
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
    requests: PeriodCount = field(default_factory=PeriodCount)
    # The rest of the rate limit in requests, and the time of that count.
    allowance: tuple[float, float] | None = None

    def roll(self, now: float) -> None:
        """Begin the cycles of ``now`` if they are new ones."""
        name = window(now, self.spend_cycle)
        if self.spend_window and self.spend_window != name:
            self.spent_before, self.spent = self.spent_before + self.spent, Decimal(0)
        self.spend_window = name
        self.requests.roll(now, self.request_limit.cycle if self.request_limit else "total")

    def wait(self, now: float) -> float:
        """Return the seconds until the rate limit allows a request; 0 counts one now.

        A token bucket of size ``burst`` (or ``rpm``), filled at ``rpm`` per minute. (Lava documents
        only the numbers.)
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
