"""Plans (SDK 8: subscription configurations), their credit bundles, subscriptions, and the account's fallback chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator import customers, meters, shapes
from proxy.emulator.asking import Ask, Fields, conflict, created, deleted, invalid, missing, success
from proxy.emulator.exchange import EmulatedReply, json_reply
from proxy.emulator.records import Bundle, Interval, Rollover, StoredPlan, StoredSubscription, new_id

if TYPE_CHECKING:
    from proxy.emulator.state import World

LONGEST_CHAIN = 5


def listed(ask: Ask) -> EmulatedReply:
    """``GET plans``"""
    records = ask.world.plans.values()
    return ask.page(records, lambda one: one.plan_id, lambda one: shapes.plan(ask.world, one, old=ask.old))


def create(ask: Ask) -> EmulatedReply:
    """``POST plans``"""
    fields = ask.fields
    record = StoredPlan(
        new_id("plan_"),
        fields.text("name"),
        fields.money("period_amount"),
        ask.now,
        fields.choice("billing_interval", Interval),
        fields.choice("rollover_type", Rollover, "none"),
        fields.choice("bundle_rollover_type", Rollover, "full"),
        fields.money("included_credit", "0"),
        meter_ids=_linked(ask.world, fields),
        bundles=[_new_bundle(one, ask.now) for one in fields.each("credit_bundles")],
    )
    if fields.given("default_auto_top_up_bundle_index"):
        at = fields.whole("default_auto_top_up_bundle_index")
        if at >= len(record.bundles):
            raise invalid("default_auto_top_up_bundle_index has to be the index of one of credit_bundles.")
        record.default_auto_top_up_bundle_id = record.bundles[at].credit_bundle_id
    ask.world.plans[record.plan_id] = record
    return created(shapes.plan(ask.world, record, old=ask.old))


def _linked(world: World, fields: Fields) -> tuple[str, ...]:
    found = fields.texts("meter_ids")
    for name in found:
        meters.find(world, name)
    return tuple(found)


def _new_bundle(fields: Fields, now: float) -> Bundle:
    return Bundle(new_id("bundle_"), fields.text("name"), fields.money("cost"), fields.money("credit_amount"), now)


def find(world: World, name: str) -> StoredPlan:
    """The plan with this id; raises ``Refused`` (404)."""
    record = world.plans.get(name)
    if record is None:
        raise missing("plan", name)
    return record


def retrieve(ask: Ask) -> EmulatedReply:
    """``GET plans/{id}``"""
    return json_reply(shapes.plan(ask.world, find(ask.world, ask.name), old=ask.old))


def update(ask: Ask) -> EmulatedReply:
    """``PATCH plans/{id}``: the price stays. A bundle with an id is changed or taken away, one without is added."""
    record, fields = find(ask.world, ask.name), ask.fields
    name = fields.maybe_text("name") or record.name
    rollover = fields.choice("rollover_type", Rollover, record.rollover_type)
    bundle_rollover = fields.choice("bundle_rollover_type", Rollover, record.bundle_rollover_type)
    credit = fields.money("included_credit", shapes.money(record.included_credit))
    linked = _linked(ask.world, fields) if "meter_ids" in fields else record.meter_ids
    found = _changed(record, fields, ask.now)
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
    return json_reply(shapes.plan(ask.world, record, old=ask.old))


def _changed(record: StoredPlan, fields: Fields, now: float) -> list[Bundle]:
    found = list(record.bundles)
    for one in fields.each("credit_bundles"):
        name = one.maybe_text("credit_bundle_id")
        fresh = _new_bundle(one, now)
        if name is None:
            found.append(fresh)
            continue
        known = record.bundle(name)
        if known is None:
            raise missing("credit_bundle", name)
        fresh.credit_bundle_id, fresh.created_at = name, known.created_at
        at = [each.credit_bundle_id for each in found].index(name)
        found[at : at + 1] = [] if one.flag("is_deleted") else [fresh]
    return found


def delete(ask: Ask) -> EmulatedReply:
    """``DELETE plans/{id}``: refused while someone is on it."""
    record = find(ask.world, ask.name)
    if any(each.plan is record and each.active(ask.now) for each in ask.world.subscriptions.values()):
        raise conflict("plan_in_use", "The plan has active subscriptions.")
    del ask.world.plans[record.plan_id]
    return deleted(record.plan_id)


# Credit bundles ---


def bundles(ask: Ask) -> EmulatedReply:
    """``GET credit_bundles``, of all plans or of one."""
    wanted = ask.plan_id()
    found = [
        (plan.plan_id, one)
        for plan in ask.world.plans.values()
        for one in plan.bundles
        if wanted in (None, plan.plan_id)
    ]
    return ask.page(found, lambda pair: pair[1].credit_bundle_id, lambda pair: shapes.credit_bundle(*pair, old=ask.old))


def bundle(ask: Ask) -> EmulatedReply:
    """``GET credit_bundles/{id}``"""
    plan, record = find_bundle(ask.world, ask.name)
    return json_reply(shapes.credit_bundle(plan.plan_id, record, old=ask.old))


def find_bundle(world: World, name: str) -> tuple[StoredPlan, Bundle]:
    """The bundle with this id, and its plan; raises ``Refused`` (404)."""
    for plan in world.plans.values():
        record = plan.bundle(name)
        if record is not None:
            return plan, record
    raise missing("credit_bundle", name)


# Subscriptions ---


def subscriptions(ask: Ask) -> EmulatedReply:
    """``GET subscriptions``: the active ones unless ``status`` says otherwise."""
    status = Fields(dict(ask.query)).choice("status", Literal["active", "cancelled", "all"], "active")
    customer = ask.customer_id()
    found = []
    for each in ask.world.subscriptions.values():
        each.renew(ask.now)
        fits = status == "all" or (status == "active") is each.active(ask.now)
        if fits and customer in (None, each.customer_id):
            found.append(each)
    return ask.page(
        found,
        lambda one: one.subscription_id,
        lambda one: shapes.subscription(ask.world, one, old=ask.old, listed=True),
    )


def of_customer(ask: Ask) -> EmulatedReply:
    """``GET customers/{id}/subscription``"""
    customers.find(ask.world, ask.name)
    found = ask.world.subscription_of(ask.name)
    return json_reply({"subscription": found and shapes.subscription(ask.world, found, old=ask.old)})


def subscribe(ask: Ask) -> EmulatedReply:
    """``POST subscriptions``: puts a customer on a free plan; a paid one needs a checkout."""
    fields = ask.fields
    customer = customers.find(ask.world, fields.text("connection_id" if ask.old else "customer_id"))
    plan = find(ask.world, fields.text("subscription_config_id" if ask.old else "plan_id"))
    if plan.period_amount > 0:
        raise invalid("Only a free plan can be given away; a paid one needs a checkout.", "paid_plan_requires_checkout")
    return created(
        {"subscription": shapes.subscription(ask.world, begin(ask.world, plan, customer.connection_id), old=ask.old)}
    )


def begin(world: World, plan: StoredPlan, customer_id: str) -> StoredSubscription:
    """A new subscription; raises ``Refused`` (409) when the customer has one."""
    if world.subscription_of(customer_id) is not None:
        raise conflict("subscription_exists", "The customer has an active subscription already.")
    record = StoredSubscription.begin(plan, customer_id, world.clock())
    world.subscriptions[record.subscription_id] = record
    return record


def _find_subscription(ask: Ask) -> StoredSubscription:
    record = ask.world.subscriptions.get(ask.name)
    if record is None or not record.active(ask.now):
        raise missing("subscription", ask.name)
    record.renew(ask.now)
    return record


def change(ask: Ask) -> EmulatedReply:
    """``PATCH subscriptions/{id}``: the bundle that is bought when the credit is used up; null buys none."""
    record, fields = _find_subscription(ask), ask.fields
    if "auto_top_up_bundle_id" in fields:
        wanted = fields.maybe_text("auto_top_up_bundle_id")
        if wanted is not None and record.plan.bundle(wanted) is None:
            raise missing("credit_bundle", wanted)
        record.auto_top_up_bundle_id = wanted
    return success()


def cancel(ask: Ask) -> EmulatedReply:
    """``DELETE subscriptions/{id}``"""
    _find_subscription(ask).cancel(ask.now)
    return success()


# The fallback chain of the rewrite address ---


def fallback(ask: Ask) -> EmulatedReply:
    """``GET account/fallback``"""
    return json_reply({"chain": ask.world.fallbacks})


def set_fallback(ask: Ask) -> EmulatedReply:
    """``PATCH account/fallback``: a chain of up to five ``{url, model}``, or null for none.

    What the member is really called is not known: ``chain``, ``fallbacks``, ``fallback`` and ``fallback_chain`` will do.
    """
    fields = ask.fields
    name = next((one for one in ("chain", "fallbacks", "fallback", "fallback_chain") if one in fields), None)
    if name is None:
        raise invalid("chain has to be a list of objects or null.")
    chain: list[dict[str, Any]] | None = None
    if fields.given(name):
        chain = [{"url": one.text("url"), "model": one.text("model")} for one in fields.each(name)]
        if not 1 <= len(chain) <= LONGEST_CHAIN:
            raise invalid(f"A fallback chain has 1 to {LONGEST_CHAIN} entries.")
    ask.world.fallbacks = chain
    return fallback(ask)
