"""Checkout sessions, and a payment page that charges nothing.

Lava shows its own checkout inside the merchant's page. Here ``/checkout/{checkout_session_token}``
replaces it, so that a session can be completed offline and its events are sent.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from proxy.emulator import customers, pages, plans, shapes, webhooks
from proxy.emulator.account_call import AccountCall, Fields, conflict, created, find, invalid, missing
from proxy.emulator.endpoint import Handler, wrong_method
from proxy.emulator.records import StoredCheckoutSession, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.emulator.exchange import EmulatedReply
    from proxy.emulator.records import StoredConnection
    from proxy.emulator.state import ReceivedRequest, World

Mode = Literal["subscription", "credit_bundle"]
OldMode = Literal["onboarding", "topup", "subscription", "credit_bundle"]

TOP_UP = Decimal("10.00")
"""Added to the wallet by a top-up session of SDK 8; on Lava's page the user chooses the amount."""


def create(call: AccountCall) -> EmulatedReply:
    fields = call.fields
    # Without a generation, the two modes of SDK 8 are accepted as well.
    old = call.old or call.world.behaviour.generation is None
    mode = fields.choice("checkout_mode", OldMode if old else Mode)
    origin = fields.text("origin_url")
    if urlsplit(origin).scheme not in ("http", "https"):
        raise invalid("origin_url has to be an http or https URL.")
    customer = fields.maybe_text("connection_id" if call.old else "customer_id")
    plan = fields.maybe_text("subscription_config_id" if call.old else "plan_id")
    bundle = fields.maybe_text("credit_bundle_id")
    if customer is not None:
        find(call.world.account.connections, "customer", customer)
    if mode == "subscription":
        if plan is None:
            raise invalid("A checkout of a subscription needs a plan.")
        find(call.world.account.plans, "plan", plan)
    if mode == "credit_bundle":
        if bundle is None or customer is None:
            raise invalid("A checkout of a credit bundle needs credit_bundle_id and a customer.")
        plans.find_bundle(call.world, bundle)
    if mode == "topup" and customer is None:
        raise invalid("A top-up needs a connection.")
    record = StoredCheckoutSession(
        new_id("cs_"), new_id("cst_") + new_id(""), mode, origin, call.now, customer, plan, bundle
    )
    call.world.account.checkouts[record.checkout_session_id] = record
    return created(shapes.checkout(record, old=call.old))


def _page(world: World, received: ReceivedRequest) -> EmulatedReply:
    token = received.path.rpartition("/")[2]
    worlds = [world] if world.sandbox is None else [world, world.sandbox]
    for each in worlds:
        for record in each.account.checkouts.values():
            if record.token == token:
                return _shown(each, received, record)
    return pages.message("Not found", "There is no such checkout session.", 404)


def _shown(world: World, received: ReceivedRequest, record: StoredCheckoutSession) -> EmulatedReply:
    if received.method == "POST":
        complete(world, record)
        return pages.message("Paid", "The checkout is complete. You can close this tab.")
    if received.method not in ("GET", "HEAD"):
        return wrong_method(received)
    if record.completed_at is not None:
        return pages.message("Paid", "This checkout is complete.")
    what = {"subscription": record.plan_id, "credit_bundle": record.credit_bundle_id}.get(record.mode) or record.mode
    return pages.form(f"Check out {what}", "Nothing is charged: this is the offline Lava.", received.path, {}, "Pay")


def complete(world: World, record: StoredCheckoutSession) -> None:
    """Do what follows a payment; raise ``RequestRefusedError`` if it is not possible."""
    if record.completed_at is not None:
        raise conflict("checkout_completed", "The checkout session is complete already.")
    if record.customer_id is None:
        customer = customers.add(world, Fields({}))
        record.customer_id = customer.connection_id
    else:
        customer = find(world.account.connections, "customer", record.customer_id)
    if record.mode == "subscription":
        plans.begin(world, find(world.account.plans, "plan", record.plan_id or ""), customer.connection_id)
    elif record.mode == "credit_bundle":
        _add_credit(world, record, customer)
    elif record.mode == "topup":
        customer.balance += TOP_UP
    record.completed_at = world.clock()
    if record.mode != "onboarding":
        webhooks.send_event(world, "wallet.balance.updated", customer)


def _add_credit(world: World, record: StoredCheckoutSession, customer: StoredConnection) -> None:
    bundle = plans.find_bundle(world, record.credit_bundle_id or "")[1]
    subscribed = world.account.subscription_of(customer.connection_id, world.clock())
    if subscribed is None:
        raise missing("subscription", customer.connection_id)
    subscribed.bundle_remaining += bundle.credit_amount


HANDLERS: Mapping[str, Handler] = {"/checkout/{token}": _page}
