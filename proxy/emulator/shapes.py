"""The account's records as JSON, in the names of SDK 9 to 11 and, with ``old``, of SDK 8.

Amounts of money are decimal strings, instants ISO 8601 in UTC with milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from proxy.emulator.records import StoredConnection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.emulator.records import (
        IssuedKey,
        StoredBundle,
        StoredCheckoutSession,
        StoredMeter,
        StoredPlan,
        StoredRequest,
        StoredSpendKey,
        StoredSubscription,
        StoredWebhook,
    )
    from proxy.emulator.state import World

Json = dict[str, Any]


def money(amount: Decimal) -> str:
    """Return an amount as Lava writes it: digits and a point, no exponent."""
    return f"{amount:f}"


def instant(seconds: float) -> str:
    """Return an instant as JavaScript writes it: ``2026-11-23T16:55:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def maybe(seconds: float | None) -> str | None:
    return None if seconds is None else instant(seconds)


def hint(key: str) -> str:
    """Return the part of a key that may be shown: its prefix and last four characters."""
    return f"{key[: key.rfind('_') + 1]}...{key[-4:]}"


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


# Customers ---


def customer(world: World, record: StoredConnection, *, old: bool, credits: bool = False) -> Json:
    """Return a customer or connection; ``credits`` adds the rest of the plan's credit, as in webhooks."""
    contact = _contact(record)
    subscribed = world.account.subscription_of(record.connection_id, world.clock())
    summary: Json | None = None
    if subscribed is not None:
        summary = {
            "subscription_id": subscribed.subscription_id,
            _plan_id(old): subscribed.plan.plan_id,
            "name": subscribed.plan.name,
            "status": "active",
        }
        if credits:
            summary["credits"] = _credits(subscribed)
    if old:
        return {
            "connection_id": record.connection_id,
            "has_lava_credit_balance": record.balance > 0,
            "customer": contact,
            "subscription": summary,
            "created_at": instant(record.created_at),
        }
    return {
        "customer_id": record.connection_id,
        "reference_id": record.reference_id,
        "contact": contact,
        "subscription": summary,
        "metadata": record.metadata,
        "created_at": instant(record.created_at),
    }


def _contact(record: StoredConnection) -> Json:
    return {name: getattr(record, name) for name in ("phone", "email", "first_name", "last_name")}


def checkout(record: StoredCheckoutSession, *, old: bool) -> Json:
    """Return a checkout session; absent ids are left out."""
    found: Json = {
        "checkout_session_id": record.checkout_session_id,
        "checkout_session_token": record.token,
        "checkout_mode": record.mode,
        "origin_url": record.origin_url,
        _customer_id(old): record.customer_id,
        _plan_id(old): record.plan_id,
        "credit_bundle_id": record.credit_bundle_id,
        "created_at": instant(record.created_at),
        "completed_at": maybe(record.completed_at),
    }
    return {name: value for name, value in found.items() if value is not None}


# Plans ---


def _plan_id(old: bool) -> str:
    return "subscription_config_id" if old else "plan_id"


def _customer_id(old: bool) -> str:
    return "connection_id" if old else "customer_id"


def plan(world: World, record: StoredPlan, *, old: bool) -> Json:
    linked = [meter for meter in world.account.meters.values() if meter.meter_id in record.meter_ids]
    found: Json = {
        _plan_id(old): record.plan_id,
        "merchant_id": world.account.merchant_id,
        "name": record.name,
        "period_amount": money(record.period_amount),
        "included_credit": money(record.included_credit),
        **_terms(record),
        "default_auto_top_up_bundle_id": record.default_auto_top_up_bundle_id,
        "linked_meters": [{"meter_id": meter.meter_id, "name": meter.name} for meter in linked],
        "credit_bundles": [_bundle(one) for one in record.bundles],
        "created_at": instant(record.created_at),
    }
    if old:
        del found["default_auto_top_up_bundle_id"]
    return found


def _terms(record: StoredPlan) -> Json:
    return {
        "billing_interval": record.billing_interval,
        "rollover_type": record.rollover_type,
        "bundle_rollover_type": record.bundle_rollover_type,
    }


def _bundle(record: StoredBundle) -> Json:
    return {
        "credit_bundle_id": record.credit_bundle_id,
        "name": record.name,
        "cost": money(record.cost),
        "credit_amount": money(record.credit_amount),
    }


def credit_bundle(plan_id: str, record: StoredBundle, *, old: bool) -> Json:
    return {**_bundle(record), _plan_id(old): plan_id, "created_at": instant(record.created_at)}


def _credits(record: StoredSubscription) -> Json:
    return {
        "total_remaining": money(record.credits),
        "cycle_remaining": money(record.cycle_remaining),
        "bundle_remaining": money(record.bundle_remaining),
    }


def subscription(world: World, record: StoredSubscription, *, old: bool, listed: bool = False) -> Json:
    """Return a subscription; ``listed`` adds the customer."""
    now = world.clock()
    active = record.active(now)
    pending = {"type": "cancellation", "effective_at": maybe(record.ends_at)}
    found: Json = {
        "subscription_id": record.subscription_id,
        _plan_id(old): record.plan.plan_id,
        "status": "active" if active else "cancelled",
        "auto_top_up_bundle_id": record.auto_top_up_bundle_id,
        "started_at": instant(record.started_at),
        "cancelled_at": None if active else maybe(record.ends_at),
        "cycle_start_at": instant(record.cycle_start) if active else None,
        "cycle_end_at": instant(record.cycle_end) if active else None,
        "plan": {
            "name": record.plan.name,
            "period_amount": money(record.plan.period_amount),
            "included_credit": money(record.plan.included_credit),
            **_terms(record.plan),
        },
        "credits": _credits(record),
        "pending_change": pending if active and record.ends_at is not None else None,
    }
    if old:
        del found["auto_top_up_bundle_id"]
    if listed:
        found[_customer_id(old)] = record.customer_id
        person = world.account.connections.get(record.customer_id)
        found["customer"] = _contact(person or StoredConnection("", Decimal(0)))
    return found


# Meters and requests ---


def meter(record: StoredMeter, *, old: bool) -> Json:
    found: Json = {
        "meter_id": record.meter_id,
        "meter_slug": record.meter_slug,
        "name": record.name,
        "rate_type": record.rate_type,
        "tiers": [
            {"start": _number(tier.start), "rate": money(tier.rate), "type": record.tier_type} for tier in record.tiers
        ],
        "created_at": instant(record.created_at),
    }
    if old:
        found |= {"token_basis": "input+output", "base_cost_payer": "wallet", "service_charge_payer": "wallet"}
    return found


def request(record: StoredRequest, *, old: bool) -> Json:
    used = record.used
    found: Json = {
        "request_id": record.request_id,
        "status": record.status,
        _customer_id(old): record.customer_id,
        "meter_id": record.meter.meter_id if record.meter else None,
        "provider": record.provider,
        "provider_key_type": record.provider_key_type,
        "model": record.model,
        "endpoint": record.endpoint,
        "response_id": record.response_id,
        "model_usage": {
            "input_tokens": used.input_tokens,
            "output_tokens": used.output_tokens,
            "total_tokens": used.tokens,
            "input_characters": used.input_characters,
            "output_characters": used.output_characters,
            "total_characters": used.characters,
            "input_seconds": _number(used.input_seconds),
            "output_seconds": _number(used.output_seconds),
            "total_seconds": _number(used.seconds),
            "input_cost": money(record.cost - record.output_cost),
            "output_cost": money(record.output_cost),
            "total_cost": money(record.cost),
        },
        "metadata": record.metadata,
        "timestamp": instant(record.created_at) if record.reported else None,
        "created_at": instant(record.created_at),
    }
    if old:
        fee, wallet, merchant = _sides(record)
        payer = "wallet" if wallet else "merchant"
        found["model_usage"]["payer"] = payer
        found["fee"] = {**_charge(record, fee), "token_basis": "input+output"}
        found["service_charge"] = {"amount": "0", "payer": payer}
        found["total_request_cost"] = money(wallet + merchant)
        found["total_wallet_cost"] = money(wallet)
        found["total_merchant_cost"] = money(merchant)
    else:
        found |= {"cost": money(record.cost), "charge": _charge(record, record.charge)}
    return {name: value for name, value in found.items() if value is not None}


def _sides(record: StoredRequest) -> tuple[Decimal, Decimal, Decimal]:
    """Return SDK 8's amounts of a request: the merchant's fee, the wallet's part and the merchant's part."""
    fee = max(Decimal(0), record.charge - record.cost)
    return fee, record.charge, record.cost + fee - record.charge


def _charge(record: StoredRequest, amount: Decimal) -> Json:
    breakdown = []
    if record.meter is not None:
        tier = record.meter.tier(record.used)
        breakdown.append(
            {
                "tier": {"start": _number(tier.start), "rate": money(tier.rate), "type": record.meter.tier_type},
                "tokens": record.used.tokens,
                "characters": record.used.characters,
                "seconds": _number(record.used.seconds),
                "cost": money(amount),
            }
        )
    kind = record.meter.rate_type if record.meter else "percentage"
    return {"amount": money(amount), "rate_type": kind, "breakdown": breakdown}


def totals(records: Iterable[StoredRequest], *, old: bool) -> Json:
    """Return the sums of requests as in the usage report."""
    found = list(records)
    cost = sum((record.cost for record in found), start=Decimal(0))
    charge = sum((record.charge for record in found), start=Decimal(0))
    counted: Json = {"total_requests": len(found), "total_usage_tokens": sum(record.used.tokens for record in found)}
    if not old:
        return {**counted, "total_cost": money(cost), "total_charge": money(charge)}
    fees = sum((_sides(record)[0] for record in found), start=Decimal(0))
    return {
        **counted,
        "total_usage_cost": money(cost),
        "total_fee_amount": money(fees),
        "total_service_charge_amount": "0",
        "total_request_cost": money(cost + fees),
        "total_wallet_cost": money(charge),
        "total_merchant_cost": money(cost + fees - charge),
        "total_gross_volume": money(charge),
        "total_net_volume": money(fees),
    }


# Keys and webhooks ---


def webhook(record: StoredWebhook) -> Json:
    return {
        "webhook_id": record.webhook_id,
        "name": record.name,
        "url": record.url,
        "created_at": instant(record.created_at),
    }


def secret_key(record: IssuedKey) -> Json:
    return {
        "secret_key_id": record.key_id,
        "name": record.name,
        "secret_key_hint": hint(record.key),
        "created_at": instant(record.created_at),
    }


def wallet_key(world: World, record: IssuedKey) -> Json:
    return {
        "wallet_key_id": record.key_id,
        "key_preview": hint(record.key),
        "name": record.name,
        "wallet_id": world.account.wallet_id,
        "last_used_at": maybe(record.last_used_at),
        "created_at": instant(record.created_at),
    }


def spend_key(world: World, record: StoredSpendKey) -> Json:
    record.roll(world.clock())
    limit, requests = record.spend_limit, record.request_limit
    return {
        "spend_key_id": record.spend_key_id,
        "key_preview": hint(record.key),
        "name": record.name,
        "status": record.status,
        "request_shape": record.shape,
        "wallet_id": world.account.wallet_id,
        "allowed_models": None if record.allowed_models is None else list(record.allowed_models),
        "allowed_providers": None if record.allowed_providers is None else list(record.allowed_providers),
        "spend_limit": None if limit is None else {"amount": money(limit), "cycle": record.spend_cycle},
        "current_spend": money(record.spent),
        "total_spend": money(record.spent_before + record.spent),
        "request_limit": None if requests is None else {"count": int(requests.amount), "cycle": requests.cycle},
        "current_requests": int(record.requests.current),
        "total_requests": int(record.requests.total),
        "rate_limit": None if record.rpm is None else {"rpm": record.rpm, "burst": record.burst},
        "expires_at": maybe(record.expires_at),
        "last_used_at": maybe(record.last_used_at),
        "created_at": instant(record.created_at),
    }
