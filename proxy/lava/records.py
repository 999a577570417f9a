"""Lava's answers, as pydantic models that accept missing fields and keep unknown ones.

Only the id of a thing is required: Lava's pages and SDKs disagree about the rest, and a missing field is ``None``, never
0. Money is ``Decimal``, read from decimal strings (or from JSON numbers, without a float between); times are aware
datetimes. Secrets are ``Secret``: no ``repr``, dump or log shows them, only ``reveal()`` does. Unknown fields are kept, as
attributes and in ``model_extra``.

Source: the type declarations of ``@lavapayments/nodejs`` 8.1.0, 9.0.0, 10.1.0 and 11.2.0.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

# A field that a later version of Lava adds may contain a key, which only its name shows.
_SECRET_NAME = re.compile(r"(?:^|_)(?:secret|token|password|key)$")


def _exact(value: object) -> object:
    if isinstance(value, (bool, float)):
        raise ValueError("money is a decimal string, not a float")
    return value


def _whole(value: object) -> object:
    # JSON's 3.0 and 3e2 are read as Decimal, and are whole numbers for JavaScript. 1e999999 would be too large.
    if isinstance(value, bool) or (isinstance(value, Decimal) and not (value.is_finite() and value.adjusted() < 19)):
        raise ValueError("not a whole number")
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


Money = Annotated[Decimal, BeforeValidator(_exact)]
"""An amount, exactly; also used for rates and other quantities that may have a fraction."""

Count = Annotated[int, BeforeValidator(_whole)]

Time = Annotated[datetime, AfterValidator(_aware)]
"""An aware datetime; Lava's times are UTC, so one without an offset is read as UTC."""


class ApiRecord(BaseModel):
    """The base of all records. Frozen; unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, defer_build=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Mask unknown fields that are named like a secret."""
        known = type(self).model_fields
        for name, value in super().__repr_args__():
            hidden = name is not None and name not in known and isinstance(value, str) and _SECRET_NAME.search(name)
            yield name, Secret(value) if hidden else value


R = TypeVar("R", bound=ApiRecord)


class Page(ApiRecord, Generic[R]):
    """One page of a list."""

    data: tuple[R, ...]
    has_more: bool | None = None
    next_cursor: str | None = None

    @property
    def last(self) -> bool:
        """Whether this is the last page. A list without ``has_more`` and cursor has one page; null and empty are absent."""
        return self.has_more is False or not (self.has_more or self.next_cursor)


class Done(ApiRecord):
    """The answer of a call without a record."""

    success: bool | None = None


class Deleted(ApiRecord):
    """The answer of a deletion."""

    id: str | None = None
    deleted: bool | None = None


class CheckoutSession(ApiRecord):
    """A checkout: ``checkout_session_token`` opens it in the customer's browser."""

    checkout_session_id: str
    checkout_session_token: Secret | None = None
    checkout_mode: str | None = None
    origin_url: str | None = None
    customer_id: str | None = None
    connection_id: str | None = None
    plan_id: str | None = None
    subscription_config_id: str | None = None
    credit_bundle_id: str | None = None
    created_at: Time | None = None
    completed_at: Time | None = None


class Contact(ApiRecord):
    """How to reach a customer."""

    phone: str | None = None
    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None


class SubscriptionSummary(ApiRecord):
    """A customer's subscription in short."""

    subscription_id: str
    plan_id: str | None = None
    subscription_config_id: str | None = None
    name: str | None = None
    status: str | None = None


class Connection(ApiRecord):
    """A customer under the name of SDK 8."""

    connection_id: str
    has_lava_credit_balance: bool | None = None
    customer: Contact | None = None
    subscription: SubscriptionSummary | None = None
    # Tokens of 2025 contain it.
    connection_secret: Secret | None = None
    created_at: Time | None = None


class Customer(ApiRecord):
    """A customer, whose wallet or plan pays for usage."""

    customer_id: str
    reference_id: str | None = None
    contact: Contact | None = None
    subscription: SubscriptionSummary | None = None
    metadata: dict[str, Any] | None = None
    created_at: Time | None = None


class SubscribedPlan(ApiRecord):
    """A plan as a subscription has it."""

    name: str | None = None
    period_amount: Money | None = None
    included_credit: Money | None = None
    billing_interval: str | None = None
    rollover_type: str | None = None
    bundle_rollover_type: str | None = None


class Credits(ApiRecord):
    """The remaining credit of a plan."""

    total_remaining: Money | None = None
    cycle_remaining: Money | None = None
    bundle_remaining: Money | None = None


class PendingChange(ApiRecord):
    """A cancellation or downgrade that is still to come."""

    type: str | None = None
    effective_at: Time | None = None
    plan_id: str | None = None
    subscription_config_id: str | None = None
    name: str | None = None
    period_amount: Money | None = None
    included_credit: Money | None = None


class Subscription(ApiRecord):
    """A customer's plan: its state, its cycle, its credits."""

    subscription_id: str
    customer_id: str | None = None
    connection_id: str | None = None
    plan_id: str | None = None
    subscription_config_id: str | None = None
    status: str | None = None
    auto_top_up_bundle_id: str | None = None
    started_at: Time | None = None
    cancelled_at: Time | None = None
    cycle_start_at: Time | None = None
    cycle_end_at: Time | None = None
    plan: SubscribedPlan | None = None
    credits: Credits | None = None
    pending_change: PendingChange | None = None
    customer: Contact | None = None


class CurrentSubscription(ApiRecord):
    """A customer's subscription, or ``None`` without one."""

    subscription: Subscription | None = None


class Tier(ApiRecord):
    """From ``start`` on, ``rate`` per unit."""

    start: Money | None = None
    rate: Money | None = None
    type: str | None = None


class ModelUsage(ApiRecord):
    """The usage of a request, and its cost at the model's provider."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    input_characters: Count | None = None
    output_characters: Count | None = None
    total_characters: Count | None = None
    input_seconds: Money | None = None
    output_seconds: Money | None = None
    total_seconds: Money | None = None
    input_cost: Money | None = None
    output_cost: Money | None = None
    total_cost: Money | None = None
    payer: str | None = None


class ChargePart(ApiRecord):
    """The part of a charge by one tier."""

    tier: Tier | None = None
    tokens: Count | None = None
    characters: Count | None = None
    seconds: Money | None = None
    cost: Money | None = None


class Charge(ApiRecord):
    """The charge of the customer (SDK 8: the fee)."""

    amount: Money | None = None
    rate_type: str | None = None
    token_basis: str | None = None
    breakdown: tuple[ChargePart, ...] | None = None
    payer: str | None = None


class Request(ApiRecord):
    """One request through the gateway, or a reported one.

    ``cost`` and ``charge`` are names of SDK 9 and later; ``fee``, ``service_charge`` and ``total_…_cost`` of SDK 8.
    """

    request_id: str
    status: str | None = None
    customer_id: str | None = None
    connection_id: str | None = None
    meter_id: str | None = None
    provider: str | None = None
    provider_key_type: str | None = None
    model: str | None = None
    endpoint: str | None = None
    response_id: str | None = None
    model_usage: ModelUsage | None = None
    cost: Money | None = None
    charge: Charge | None = None
    fee: Charge | None = None
    service_charge: Charge | None = None
    total_request_cost: Money | None = None
    total_wallet_cost: Money | None = None
    total_merchant_cost: Money | None = None
    metadata: dict[str, Any] | None = None
    timestamp: Time | None = None
    created_at: Time | None = None


class UsageTotals(ApiRecord):
    """Sums over a day or over all of them. Fields after ``total_charge`` are names of SDK 8."""

    total_requests: Count | None = None
    total_usage_tokens: Count | None = None
    total_cost: Money | None = None
    total_charge: Money | None = None
    total_usage_cost: Money | None = None
    total_fee_amount: Money | None = None
    total_service_charge_amount: Money | None = None
    total_request_cost: Money | None = None
    total_wallet_cost: Money | None = None
    total_merchant_cost: Money | None = None
    total_gross_volume: Money | None = None
    total_net_volume: Money | None = None


class UsageDay(UsageTotals):
    """One day, in the time zone of the question's ``start``; ``date`` is its name as Lava writes it."""

    date: str | None = None
    start: Time | None = None
    end: Time | None = None


class UsageReport(ApiRecord):
    """Usage by day."""

    items: tuple[UsageDay, ...]
    totals: UsageTotals | None = None


class LinkedMeter(ApiRecord):
    """A meter whose usage a plan's credit pays."""

    meter_id: str
    name: str | None = None


class CreditBundle(ApiRecord):
    """Credit that is sold beside a plan."""

    credit_bundle_id: str
    plan_id: str | None = None
    subscription_config_id: str | None = None
    name: str | None = None
    cost: Money | None = None
    credit_amount: Money | None = None
    created_at: Time | None = None


class _PlanTerms(ApiRecord):
    merchant_id: str | None = None
    name: str | None = None
    period_amount: Money | None = None
    included_credit: Money | None = None
    billing_interval: str | None = None
    rollover_type: str | None = None
    bundle_rollover_type: str | None = None
    linked_meters: tuple[LinkedMeter, ...] | None = None
    credit_bundles: tuple[CreditBundle, ...] | None = None
    created_at: Time | None = None


class SubscriptionConfig(_PlanTerms):
    """A plan under the name of SDK 8."""

    subscription_config_id: str


class Plan(_PlanTerms):
    """What customers can subscribe to."""

    plan_id: str
    default_auto_top_up_bundle_id: str | None = None


class Meter(ApiRecord):
    """The rates by which usage is charged."""

    meter_id: str
    meter_slug: str | None = None
    name: str | None = None
    rate_type: str | None = None
    token_basis: str | None = None
    base_cost_payer: str | None = None
    service_charge_payer: str | None = None
    tiers: tuple[Tier, ...] | None = None
    created_at: Time | None = None


class Webhook(ApiRecord):
    """An address to which Lava sends events."""

    webhook_id: str
    name: str | None = None
    url: str | None = None
    created_at: Time | None = None


class WebhookCreated(Webhook):
    """A new webhook, with the secret for the signatures of its events: shown only once."""

    webhook_secret: Secret


class SecretKey(ApiRecord):
    """A merchant's key; only a hint of it is shown."""

    secret_key_id: str
    name: str | None = None
    secret_key_hint: str | None = None
    created_at: Time | None = None


class SecretKeyCreated(SecretKey):
    """A new secret key: shown only once."""

    secret_key: Secret


class SpendLimit(ApiRecord):
    """A limit of money in a cycle."""

    amount: Money | None = None
    cycle: str | None = None


class RequestLimit(ApiRecord):
    """A limit of requests in a cycle."""

    count: Count | None = None
    cycle: str | None = None


class RateLimit(ApiRecord):
    """A limit of requests in a minute."""

    rpm: Count | None = None
    burst: Count | None = None


class SpendKey(ApiRecord):
    """A key for one tool, with limits, and what it has spent."""

    spend_key_id: str
    key_preview: str | None = None
    name: str | None = None
    status: str | None = None
    request_shape: str | None = None
    wallet_id: str | None = None
    allowed_models: tuple[str, ...] | None = None
    allowed_providers: tuple[str, ...] | None = None
    spend_limit: SpendLimit | None = None
    current_spend: Money | None = None
    total_spend: Money | None = None
    request_limit: RequestLimit | None = None
    current_requests: Count | None = None
    total_requests: Count | None = None
    rate_limit: RateLimit | None = None
    expires_at: Time | None = None
    last_used_at: Time | None = None
    created_at: Time | None = None


class SpendKeyCreated(SpendKey):
    """A new or rotated spend key: shown only once."""

    key: Secret


class WalletKey(ApiRecord):
    """A key that manages a wallet's spend keys; gone in SDK 11."""

    wallet_key_id: str
    key_preview: str | None = None
    name: str | None = None
    wallet_id: str | None = None
    last_used_at: Time | None = None
    created_at: Time | None = None


class WalletKeyCreated(WalletKey):
    """A rotated wallet key: shown only once."""

    key: Secret


class ApiModel(ApiRecord):
    """A model (or another service) that the gateway knows."""

    id: str
    object: str | None = None
    created: Time | None = None
    owned_by: str | None = None


class WalletBalance(ApiRecord):
    """The wallet behind a key."""

    wallet_id: str
    balance: Money | None = None


class FallbackChain(ApiRecord):
    """The account's chain of fallbacks. Its form is not documented: see ``model_extra``."""

    chain: tuple[dict[str, Any], ...] | None = None


class AuthCredentials(ApiRecord):
    """The result of a login. Only SDK 9 and 10 have the wallet key."""

    secret_key: Secret
    secret_key_id: str | None = None
    wallet_id: str | None = None
    merchant_id: str | None = None
    account_id: str | None = None
    wallet_key_id: str | None = None
    wallet_key: Secret | None = None


class WebhookEvent(ApiRecord):
    """One event of a webhook: ``customer.created``, ``customer.deleted``, ``customer.wallet.balance.updated`` …"""

    event: str
    data: dict[str, Any] = Field(default_factory=dict)
