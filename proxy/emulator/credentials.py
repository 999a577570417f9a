"""Who calls and who pays: the credential of a request, decoded and checked against the world.

Places and forms are those of Lava's documentation (a forward token, a raw secret key or a spend key; as a
Bearer token, in a provider's own key header, or as ``?key=``). Which one wins when several are sent is not
documented; here it is the order of ``PLACES``. The wording of the refusals is this emulator's: Lava's own is
not known.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator.exchange import EmulatedReply, lava_error

if TYPE_CHECKING:
    from proxy.emulator.exchange import Cost
    from proxy.emulator.records import StoredConnection, StoredMeter, StoredSpendKey, StoredSubscription
    from proxy.emulator.state import ReceivedRequest, World

PLACES = ("authorization", "x-api-key", "x-goog-api-key", "xi-api-key")

TOKEN_FIELDS = frozenset(
    {"secret_key", "connection_id", "customer_id", "meter_slug", "provider_key", "disable_billing"}
)


class CredentialRefused(Exception):
    """The request goes no further; ``reply`` says why."""

    def __init__(self, reply: EmulatedReply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(slots=True)
class EmulatedCaller:
    """A checked credential. ``payer`` is whose account the call is charged to."""

    payer: Literal["merchant", "customer", "provider_account", "spend_key"]
    connection: StoredConnection | None = None
    spend_key: StoredSpendKey | None = None
    provider_key: str | None = None
    meter: StoredMeter | None = None

    def owed(self, cost: Cost) -> Decimal:
        """What the meter charges the customer, in dollars; 0 where no customer pays. A free call stays free."""
        if self.payer != "customer" or self.meter is None or cost.amount == 0:
            return Decimal(0)
        return self.meter.price(cost.amount, cost.used)

    def balance(self, world: World) -> Decimal | None:
        """What the payer has left, in dollars; ``None`` where Lava's money is not touched."""
        if self.payer == "customer" and self.connection is not None:
            credit = self._credit(world)
            return self.connection.balance + (credit.credits if credit else 0)
        return None if self.payer == "provider_account" else world.wallet_balance

    def charge(self, world: World, cost: Cost) -> Decimal:
        """Take what a call costs from the payer; the amount that left. Raises ``CredentialRefused`` (402) when it is not there."""
        amount = self.owed(cost) if self.payer == "customer" else cost.amount
        key = self.spend_key
        if key is not None:
            if cost.amount and key.spend_limit is not None and key.spent + amount > key.spend_limit:
                raise CredentialRefused(spend_limit_reached())
            key.requests.current += 1
        balance = self.balance(world)
        if balance is None or amount == 0:
            return Decimal(0)
        if self.payer == "customer" and self.connection is not None:
            take(world, self.connection, self.meter, amount)
        elif balance < amount:
            raise CredentialRefused(insufficient_balance(None, balance))
        else:
            world.wallet_balance -= amount
        if key is not None:
            key.spent += amount
        return amount

    def _credit(self, world: World) -> StoredSubscription | None:
        return None if self.connection is None else _credit(world, self.connection, self.meter)


def _credit(world: World, connection: StoredConnection, meter: StoredMeter | None) -> StoredSubscription | None:
    found = world.subscription_of(connection.connection_id)
    return found if found is not None and found.covers(meter) else None


def take(world: World, connection: StoredConnection, meter: StoredMeter | None, amount: Decimal) -> None:
    """Let a customer pay for a request on ``meter``: first with the plan's credit, then from the wallet.

    Raises ``CredentialRefused`` (402) when both together are too little; nothing is taken then.
    """
    credit = _credit(world, connection, meter)
    if credit is None:
        if connection.balance < amount:
            raise CredentialRefused(insufficient_balance(connection, connection.balance))
        connection.balance -= amount
        return
    tops_up = credit.plan.bundle(credit.auto_top_up_bundle_id)
    reach = credit.credits + connection.balance + (tops_up.credit_amount if tops_up else 0)
    if reach < amount:
        raise CredentialRefused(insufficient_balance(connection, credit.credits + connection.balance))
    connection.balance -= credit.draw(amount)


def spend_limit_reached(status: int = 402) -> EmulatedReply:
    """The message is Lava's (spend keys are service keys inside); its status is not known."""
    return lava_error(status, "spend_limit_exceeded", "Service key spend limit exceeded.")


def insufficient_balance(connection: StoredConnection | None, balance: Decimal) -> EmulatedReply:
    """402: whose wallet is empty, and what is in it (dollars)."""
    whose = f"Connection {connection.connection_id}" if connection else "The merchant wallet"
    message = f"{whose} has an insufficient balance ({balance:f} USD) for this request."
    return lava_error(402, "insufficient_balance", message)


def unauthorized(code: str, message: str) -> CredentialRefused:
    """401, to be raised."""
    return CredentialRefused(lava_error(401, code, message))


def read(received: ReceivedRequest, query: dict[str, str]) -> tuple[str, str] | None:
    """The credential Lava would read, and where it stands; ``None`` without one."""
    for place in PLACES:
        value = received.header(place)
        if value is None:
            continue
        if place == "authorization":
            scheme, _, rest = value.strip().partition(" ")
            value = rest.strip() if scheme.lower() == "bearer" else value
        return value.strip(), place
    return (query["key"], "key") if "key" in query else None


def present(received: ReceivedRequest, query: dict[str, str]) -> None:
    """Note the credential Lava would read, and where it stood, in ``received``."""
    found = read(received, query)
    if found is not None:
        received.credential, received.credential_place = found


def environment(world: World, received: ReceivedRequest, query: dict[str, str]) -> World:
    """The world that the request's credential belongs to: ``world``, or its sandbox."""
    found = read(received, query)
    if found is None or world.sandbox is None:
        return world
    value = found[0]
    if not value.startswith(("aks_", "lava_")):
        try:
            value = str(_token(value).get("secret_key"))
        except CredentialRefused:
            return world
    return world.of_key(value)


def check(world: World, received: ReceivedRequest) -> EmulatedCaller:
    """The caller behind the noted credential; raises ``CredentialRefused``."""
    value = received.credential
    if not value:
        raise unauthorized("missing_credentials", "No credential was sent. Send a forward token or a secret key.")
    if value.startswith("lava_sk_"):
        record = world.spend_key(value)
        if record is None:
            raise unauthorized("invalid_spend_key", "The spend key is unknown or was revoked.")
        _usable(record, world.clock())
        return EmulatedCaller("spend_key", spend_key=record)
    if value.startswith("aks_"):
        _known_secret(world, value)
        return EmulatedCaller("merchant")
    received.token = _token(value)
    return _caller_of_token(world, received.token)


def _usable(key: StoredSpendKey, now: float) -> None:
    """Raises ``CredentialRefused`` for a spend key that takes nothing at the moment. Lava's codes for this are not known."""
    key.roll(now)
    if key.status == "paused":
        raise CredentialRefused(lava_error(403, "spend_key_paused", "The spend key is paused."))
    if key.expires_at is not None and now >= key.expires_at:
        raise unauthorized("spend_key_expired", "The spend key has expired.")
    if key.request_limit is not None and key.requests.current >= key.request_limit.amount:
        raise CredentialRefused(lava_error(403, "request_limit_exceeded", "Service key request limit exceeded."))
    wait = key.wait(now)
    if wait:
        reply = lava_error(429, "rate_limit_exceeded", "Service key rate limit exceeded. Try again later.")
        reply.headers.append(("retry-after", str(max(1, -int(-wait // 1)))))
        raise CredentialRefused(reply)
    key.last_used_at = now


def within_allowance(key: StoredSpendKey | None, model: str | None, provider: str) -> None:
    """Raises ``CredentialRefused`` (403) when a spend key may not use this model or provider. Names count with and without the
    provider before them.
    """
    if key is None:
        return
    if key.allowed_providers is not None and provider not in key.allowed_providers:
        raise CredentialRefused(
            lava_error(403, "provider_not_allowed", f"This spend key may not use the provider {provider}.")
        )
    names = {model, (model or "").rpartition("/")[2], f"{provider}/{model}"}
    if key.allowed_models is not None and names.isdisjoint(key.allowed_models):
        raise CredentialRefused(lava_error(403, "model_not_allowed", f"This spend key may not use the model {model}."))


def _known_secret(world: World, key: str) -> None:
    if not world.is_secret_key(key):
        raise unauthorized("invalid_secret_key", "The secret key is unknown or was revoked.")


def _token(value: str) -> dict[str, Any]:
    """The JSON of a forward token: standard base64, padded. Whether Lava takes the url-safe alphabet is not
    known: refused.
    """
    try:
        token = json.loads(base64.b64decode(value, validate=True))
    except (ValueError, binascii.Error, RecursionError):
        token = None
    if not isinstance(token, dict):
        raise unauthorized("invalid_forward_token", "The forward token is not base64 of a JSON object.")
    unknown = sorted(set(token) - TOKEN_FIELDS)
    if unknown:
        names = ", ".join(unknown)
        raise unauthorized("invalid_forward_token", f"The forward token has fields that are not known here: {names}.")
    for name, member in token.items():
        wanted = bool if name == "disable_billing" else str
        if member is not None and not isinstance(member, wanted):
            raise unauthorized("invalid_forward_token", f"In the forward token, {name} is not a {wanted.__name__}.")
    if "connection_id" in token and "customer_id" in token:
        raise unauthorized("invalid_forward_token", "The forward token names both connection_id and customer_id.")
    return token


def _caller_of_token(world: World, token: dict[str, Any]) -> EmulatedCaller:
    secret = token.get("secret_key")
    if not secret:
        raise unauthorized("invalid_forward_token", "The forward token has no secret_key.")
    _known_secret(world, secret)
    name = token.get("customer_id") or token.get("connection_id")
    meter = token.get("meter_slug")
    connection = None
    if name:
        connection = world.connections.get(name)
        if connection is None:
            raise unauthorized("connection_not_found", f"Connection {name} does not exist.")
        if not meter:
            message = "A connection needs a meter: meter_slug is missing in the forward token."
            raise CredentialRefused(lava_error(400, "meter_required", message))
    if meter and meter not in world.meters:
        raise unauthorized("meter_not_found", f"Meter {meter} does not exist.")
    known = world.meters.get(meter) if meter else None
    provider_key = token.get("provider_key")
    if provider_key:
        return EmulatedCaller("provider_account", connection, provider_key=provider_key, meter=known)
    if connection is not None and not token.get("disable_billing"):
        return EmulatedCaller("customer", connection, meter=known)
    return EmulatedCaller("merchant", connection, meter=known)
