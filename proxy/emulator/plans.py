"""Plans (SDK 8: subscription configurations), their credit bundles, subscriptions, and the account's fallback chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator import meters, shapes
from proxy.emulator.account_call import AccountCall, Fields, conflict, created, deleted, find, invalid, missing, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Interval, Rollover, StoredBundle, StoredPlan, StoredSubscription, new_id

if TYPE_CHECKING:
    from proxy.emulator.state import World

MAX_FALLBACKS = 5


def listed(call: AccountCall) -> EmulatedReply:
    records = call.world.account.plans.values()
    return call.page(records, lambda one: one.plan_id, lambda one: shapes.plan(call.world, one, old=call.old))


def create(call: AccountCall) -> EmulatedReply:
    fields = call.fields
    record = StoredPlan(
        new_id("plan_"),
        fields.text("name"),
        fields.money("period_amount"),
        call.now,
        fields.choice("billing_interval", Interval),
        fields.choice("rollover_type", Rollover, "none"),
        fields.choice("bundle_rollover_type", Rollover, "full"),
        fields.money("included_credit", "0"),
        meter_ids=_linked(call.world, fields),
        bundles=[_new_bundle(one, call.now) for one in fields.each("credit_bundles")],
    )
    if fields.given("default_auto_top_up_bundle_index"):
        at = fields.whole("default_auto_top_up_bundle_index")
        if at >= len(record.bundles):
            raise invalid("default_auto_top_up_bundle_index has to be the index of one of credit_bundles.")
        record.default_auto_top_up_bundle_id = record.bundles[at].credit_bundle_id
    call.world.account.plans[record.plan_id] = record
    return created(shapes.plan(call.world, record, old=call.old))


def _linked(world: World, fields: Fields) -> tuple[str, ...]:
    found = fields.texts("meter_ids")
    for name in found:
        meters.find(world, name)
    return tuple(found)


def _new_bundle(fields: Fields, now: float) -> StoredBundle:
    return StoredBundle(
        new_id("bundle_"), fields.text("name"), fields.money("cost"), fields.money("credit_amount"), now
    )


def _find(call: AccountCall) -> StoredPlan:
    return find(call.world.account.plans, "plan", call.name)


def retrieve(call: AccountCall) -> EmulatedReply:
    return json_reply(shapes.plan(call.world, _find(call), old=call.old))


def update(call: AccountCall) -> EmulatedReply:
    """Change a plan, but not its price. A bundle with an id is changed or deleted, one without is added."""
    record, fields = _find(call), call.fields
    name = fields.maybe_text("name") or record.name
    rollover = fields.choice("rollover_type", Rollover, record.rollover_type)
    bundle_rollover = fields.choice("bundle_rollover_type", Rollover, record.bundle_rollover_type)
    credit = fields.money("included_credit", shapes.money(record.included_credit))
    linked = _linked(call.world, fields) if "meter_ids" in fields else record.meter_ids
    found = _changed(record, fields, call.now)
    top_up = record.default_auto_top_up_bundle_id
    if "default_auto_top_up_bundle_id" in fields:
        top_up = fields.maybe_text("default_auto_top_up_bundle_id")
    if top_up is not None and top_up not in {one.credit_bundle_id for one in found}:
        if "default_auto_top_up_bundle_id" in fields:
            raise missing("credit_bundle", top_up)
        top_up = None
    record.name, record.included_credit, record.meter_ids = name, credit, linked
    record.rollover_type, record.bundle_rollover_type = rollover, bundle_rollover
    record.bundles, record.default_auto_top_up_bundle_id = found, top_up
    return json_reply(shapes.plan(call.world, record, old=call.old))


def _changed(record: StoredPlan, fields: Fields, now: float) -> list[StoredBundle]:
    found = list(record.bundles)
    for one in fields.each("credit_bundles"):
        name = one.maybe_text("credit_bundle_id")
        new_key = _new_bundle(one, now)
        if name is None:
            found.append(new_key)
            continue
        known = record.bundle(name)
        if known is None:
            raise missing("credit_bundle", name)
        new_key.credit_bundle_id, new_key.created_at = name, known.created_at
        at = [each.credit_bundle_id for each in found].index(name)
        found[at : at + 1] = [] if one.flag("is_deleted") else [new_key]
    return found


def delete(call: AccountCall) -> EmulatedReply:
    """Delete a plan that has no active subscription."""
    record = _find(call)
    if any(each.plan is record and each.active(call.now) for each in call.world.account.subscriptions.values()):
        raise conflict("plan_in_use", "The plan has active subscriptions.")
    del call.world.account.plans[record.plan_id]
    return deleted(record.plan_id)


# Credit bundles ---


def bundles(call: AccountCall) -> EmulatedReply:
    """List the bundles of all plans or of one."""
    plan_id = call.plan_id()
    found = [
        (plan.plan_id, one)
        for plan in call.world.account.plans.values()
        for one in plan.bundles
        if plan_id in (None, plan.plan_id)
    ]
    return call.page(
        found, lambda pair: pair[1].credit_bundle_id, lambda pair: shapes.credit_bundle(*pair, old=call.old)
    )


def bundle(call: AccountCall) -> EmulatedReply:
    plan, record = find_bundle(call.world, call.name)
    return json_reply(shapes.credit_bundle(plan.plan_id, record, old=call.old))


def find_bundle(world: World, name: str) -> tuple[StoredPlan, StoredBundle]:
    """Return the bundle of an id, and its plan; raise the 404."""
    for plan in world.account.plans.values():
        record = plan.bundle(name)
        if record is not None:
            return plan, record
    raise missing("credit_bundle", name)


# Subscriptions ---


def subscriptions(call: AccountCall) -> EmulatedReply:
    """List subscriptions; by default the active ones."""
    status = Fields(dict(call.query)).choice("status", Literal["active", "cancelled", "all"], "active")
    customer = call.customer_id()
    found = []
    for each in call.world.account.subscriptions.values():
        each.renew(call.now)
        fits = status == "all" or (status == "active") is each.active(call.now)
        if fits and customer in (None, each.customer_id):
            found.append(each)
    return call.page(
        found,
        lambda one: one.subscription_id,
        lambda one: shapes.subscription(call.world, one, old=call.old, listed=True),
    )


def of_customer(call: AccountCall) -> EmulatedReply:
    find(call.world.account.connections, "customer", call.name)
    found = call.world.account.subscription_of(call.name, call.now)
    return json_reply({"subscription": found and shapes.subscription(call.world, found, old=call.old)})


def subscribe(call: AccountCall) -> EmulatedReply:
    """Subscribe a customer to a free plan; a paid one needs a checkout."""
    fields = call.fields
    account = call.world.account
    customer = find(account.connections, "customer", fields.text("connection_id" if call.old else "customer_id"))
    plan = find(account.plans, "plan", fields.text("subscription_config_id" if call.old else "plan_id"))
    if plan.period_amount > 0:
        raise invalid("Only a free plan can be given away; a paid one needs a checkout.", "paid_plan_requires_checkout")
    return created(
        {"subscription": shapes.subscription(call.world, begin(call.world, plan, customer.connection_id), old=call.old)}
    )


def begin(world: World, plan: StoredPlan, customer_id: str) -> StoredSubscription:
    """Subscribe a customer; raise the 409 if it has a subscription."""
    if world.account.subscription_of(customer_id, world.clock()) is not None:
        raise conflict("subscription_exists", "The customer has an active subscription already.")
    record = StoredSubscription.begin(plan, customer_id, world.clock())
    world.account.subscriptions[record.subscription_id] = record
    return record


def _find_subscription(call: AccountCall) -> StoredSubscription:
    record = call.world.account.subscriptions.get(call.name)
    if record is None or not record.active(call.now):
        raise missing("subscription", call.name)
    record.renew(call.now)
    return record


def change(call: AccountCall) -> EmulatedReply:
    """Change the bundle that is bought when the credit is used up; null means none."""
    record, fields = _find_subscription(call), call.fields
    if "auto_top_up_bundle_id" in fields:
        bundle_id = fields.maybe_text("auto_top_up_bundle_id")
        if bundle_id is not None and record.plan.bundle(bundle_id) is None:
            raise missing("credit_bundle", bundle_id)
        record.auto_top_up_bundle_id = bundle_id
    return success()


def cancel(call: AccountCall) -> EmulatedReply:
    _find_subscription(call).cancel(call.now)
    return success()


# The fallback chain of the rewrite address ---


def fallback(call: AccountCall) -> EmulatedReply:
    return json_reply({"chain": call.world.account.fallbacks})


def set_fallback(call: AccountCall) -> EmulatedReply:
    """Set a chain of up to five ``{url, model}``, or null. The member's real name is not known: four are accepted."""
    fields = call.fields
    name = next((one for one in ("chain", "fallbacks", "fallback", "fallback_chain") if one in fields), None)
    if name is None:
        raise invalid("chain has to be a list of objects or null.")
    chain: list[dict[str, Any]] | None = None
    if fields.given(name):
        chain = [{"url": one.text("url"), "model": one.text("model")} for one in fields.each(name)]
        if not 1 <= len(chain) <= MAX_FALLBACKS:
            raise invalid(f"A fallback chain has 1 to {MAX_FALLBACKS} entries.")
    call.world.account.fallbacks = chain
    return fallback(call)
