"""Checkout sessions, and the page where a person pays with nothing.

Lava shows its own checkout inside the merchant's page; here ``/checkout/{checkout_session_token}`` stands for it, so that a
session can be completed offline and its events follow.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from starlette.routing import Route

from proxy.emulator import customers, outbox, pages, plans, shapes
from proxy.emulator.asking import Ask, Fields, conflict, created, invalid, missing
from proxy.emulator.credentials import CredentialRefused
from proxy.emulator.exchange import EmulatedReply, lava_error
from proxy.emulator.faults import FaultPlan
from proxy.emulator.gateway import Door
from proxy.emulator.records import StoredCheckoutSession, new_id

if TYPE_CHECKING:
    from proxy.emulator.records import StoredConnection
    from proxy.emulator.state import ReceivedRequest, World

Mode = Literal["subscription", "credit_bundle"]
OldMode = Literal["onboarding", "topup", "subscription", "credit_bundle"]

TOP_UP = Decimal("10.00")
"""What a top-up session of SDK 8 adds to the wallet; on Lava's page the person chooses."""


def routes(world: World) -> list[Route]:
    """The payment page."""
    return [Route("/checkout/{token}", endpoint=Door(world, _page))]


def create(ask: Ask) -> EmulatedReply:
    """``POST checkout_sessions``"""
    fields = ask.fields
    # Without a generation the two modes of SDK 8 that name nothing old are taken as well.
    old = ask.old or ask.world.generation is None
    mode = fields.choice("checkout_mode", OldMode if old else Mode)
    origin = fields.text("origin_url")
    if urlsplit(origin).scheme not in ("http", "https"):
        raise invalid("origin_url has to be an http or https URL.")
    customer = fields.maybe_text("connection_id" if ask.old else "customer_id")
    plan = fields.maybe_text("subscription_config_id" if ask.old else "plan_id")
    bundle = fields.maybe_text("credit_bundle_id")
    if customer is not None:
        customers.find(ask.world, customer)
    if mode == "subscription":
        if plan is None:
            raise invalid("A checkout of a subscription needs a plan.")
        plans.find(ask.world, plan)
    if mode == "credit_bundle":
        if bundle is None or customer is None:
            raise invalid("A checkout of a credit bundle needs credit_bundle_id and a customer.")
        plans.find_bundle(ask.world, bundle)
    if mode == "topup" and customer is None:
        raise invalid("A top-up needs a connection.")
    record = StoredCheckoutSession(
        new_id("cs_"), new_id("cst_") + new_id(""), mode, origin, ask.now, customer, plan, bundle
    )
    ask.world.checkouts[record.checkout_session_id] = record
    return created(shapes.checkout(record, old=ask.old))


def _page(world: World, received: ReceivedRequest) -> tuple[EmulatedReply, FaultPlan]:
    token = received.path.rpartition("/")[2]
    worlds = [world] if world.sandbox is None else [world, world.sandbox]
    for each in worlds:
        for record in each.checkouts.values():
            if record.token == token:
                return _shown(each, received, record), FaultPlan()
    return pages.message("Not found", "There is no such checkout session.", 404), FaultPlan()


def _shown(world: World, received: ReceivedRequest, record: StoredCheckoutSession) -> EmulatedReply:
    if received.method == "POST":
        try:
            complete(world, record)
        except CredentialRefused as refused:
            return refused.reply
        return pages.message("Paid", "The checkout is complete. You can close this tab.")
    if received.method not in ("GET", "HEAD"):
        return lava_error(405, "method_not_allowed", f"{received.method} is not served here.")
    if record.completed_at is not None:
        return pages.message("Paid", "This checkout is complete.")
    what = {"subscription": record.plan_id, "credit_bundle": record.credit_bundle_id}.get(record.mode) or record.mode
    return pages.form(f"Check out {what}", "Nothing is charged: this is the offline Lava.", received.path, {}, "Pay")


def complete(world: World, record: StoredCheckoutSession) -> None:
    """What follows a payment; raises ``CredentialRefused`` when it cannot be."""
    if record.completed_at is not None:
        raise conflict("checkout_completed", "The checkout session is complete already.")
    if record.customer_id is None:
        customer = customers.add(world, Fields({}))
        record.customer_id = customer.connection_id
    else:
        customer = customers.find(world, record.customer_id)
    if record.mode == "subscription":
        plans.begin(world, plans.find(world, record.plan_id or ""), customer.connection_id)
    elif record.mode == "credit_bundle":
        _add_credit(world, record, customer)
    elif record.mode == "topup":
        customer.balance += TOP_UP
    record.completed_at = world.clock()
    if record.mode != "onboarding":
        outbox.announce(world, "wallet.balance.updated", customer)


def _add_credit(world: World, record: StoredCheckoutSession, customer: StoredConnection) -> None:
    bundle = plans.find_bundle(world, record.credit_bundle_id or "")[1]
    subscribed = world.subscription_of(customer.connection_id)
    if subscribed is None:
        raise missing("subscription", customer.connection_id)
    subscribed.bundle_remaining += bundle.credit_amount
