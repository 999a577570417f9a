"""The caller and payer of a request: its credential, decoded and checked.

Places and forms are those of Lava's documentation: a forward token, a raw secret key or a spend
key; as a Bearer token, in a provider's own key header, or as ``?key=``. Which one wins when several
are sent is not documented; here it is the order of ``PLACES``. Lava's own text of the refusals is
not known.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator.exchange import EmulatedReply, RequestRefusedError, lava_error, refusal

if TYPE_CHECKING:
    from proxy.emulator.exchange import Cost
    from proxy.emulator.records import StoredConnection, StoredMeter, StoredSpendKey, StoredSubscription
    from proxy.emulator.state import ReceivedRequest, World

PLACES = ("authorization", "x-api-key", "x-goog-api-key", "xi-api-key")

TOKEN_FIELDS = frozenset(
    {"secret_key", "connection_id", "customer_id", "meter_slug", "provider_key", "disable_billing"}
)


@dataclass(slots=True)
class EmulatedCaller:
    """A checked credential. ``payer`` is wallet account the call is charged to."""

    payer: Literal["merchant", "customer", "provider_account", "spend_key"]
    connection: StoredConnection | None = None
    spend_key: StoredSpendKey | None = None
    provider_key: str | None = None
    meter: StoredMeter | None = None

    def owed(self, cost: Cost) -> Decimal:
        """Return what the meter charges the customer, in dollars; 0 if no customer pays or the call is free."""
        if self.payer != "customer" or self.meter is None or cost.amount == 0:
            return Decimal(0)
        return self.meter.price(cost.amount, cost.used)

    def balance(self, world: World) -> Decimal | None:
        """Return the payer's balance in dollars; ``None`` if Lava charges no wallet."""
        if self.payer == "customer" and self.connection is not None:
            credit = _credit(world, self.connection, self.meter)
            return self.connection.balance + (credit.credits if credit else 0)
        return None if self.payer == "provider_account" else world.account.wallet_balance

    def charge(self, world: World, cost: Cost) -> Decimal:
        """Charge the payer and return the amount; raise ``RequestRefusedError`` (402) if the balance is too low."""
        amount = self.owed(cost) if self.payer == "customer" else cost.amount
        key = self.spend_key
        if key is not None:
            if cost.amount and key.spend_limit is not None and key.spent + amount > key.spend_limit:
                raise RequestRefusedError(spend_limit_reached())
            key.requests.current += 1
        balance = self.balance(world)
        if balance is None or amount == 0:
            return Decimal(0)
        if self.payer == "customer" and self.connection is not None:
            charge_customer(world, self.connection, self.meter, amount)
        elif balance < amount:
            raise RequestRefusedError(insufficient_balance(None, balance))
        else:
            world.account.wallet_balance -= amount
        if key is not None:
            key.spent += amount
        return amount


def _credit(world: World, connection: StoredConnection, meter: StoredMeter | None) -> StoredSubscription | None:
    found = world.account.subscription_of(connection.connection_id, world.clock())
    return found if found is not None and found.covers(meter) else None


def charge_customer(world: World, connection: StoredConnection, meter: StoredMeter | None, amount: Decimal) -> None:
    """Charge a customer for a request on ``meter``: first the plan's credit, then the wallet.

    Raises ``RequestRefusedError`` (402) and charges nothing when both together are too low.
    """
    credit = _credit(world, connection, meter)
    if credit is None:
        if connection.balance < amount:
            raise RequestRefusedError(insufficient_balance(connection, connection.balance))
        connection.balance -= amount
        return
    top_up = credit.plan.bundle(credit.auto_top_up_bundle_id)
    if credit.credits + connection.balance + (top_up.credit_amount if top_up else 0) < amount:
        raise RequestRefusedError(insufficient_balance(connection, credit.credits + connection.balance))
    connection.balance -= credit.draw(amount)


def spend_limit_reached(status: int = 402) -> EmulatedReply:
    """Return the error of a spent key. The message is Lava's (a spend key is a service key there),
    the status not known.
    """
    return lava_error(status, "spend_limit_exceeded", "Service key spend limit exceeded.")


def insufficient_balance(connection: StoredConnection | None, balance: Decimal) -> EmulatedReply:
    wallet = f"Connection {connection.connection_id}" if connection else "The merchant wallet"
    message = f"{wallet} has an insufficient balance ({balance:f} USD) for this request."
    return lava_error(402, "insufficient_balance", message)


def unauthorized(code: str, message: str) -> RequestRefusedError:
    return refusal(401, code, message)


def read(received: ReceivedRequest, query: dict[str, str]) -> tuple[str, str] | None:
    """Return the credential that Lava would read, and its place."""
    for place in PLACES:
        value = received.header(place)
        if value is None:
            continue
        if place == "authorization":
            scheme, _, rest = value.strip().partition(" ")
            value = rest.strip() if scheme.lower() == "bearer" else value
        return value.strip(), place
    return (query["key"], "key") if "key" in query else None


def note(received: ReceivedRequest, query: dict[str, str]) -> None:
    """Store the credential that Lava would read, and its place, in ``received``."""
    found = read(received, query)
    if found is not None:
        received.credential, received.credential_place = found


def environment(world: World, received: ReceivedRequest, query: dict[str, str]) -> World:
    """Return the world of the request's credential: ``world``, or its sandbox."""
    found = read(received, query)
    if found is None or world.sandbox is None:
        return world
    value = found[0]
    if not value.startswith(("aks_", "lava_")):
        try:
            value = str(_token(value).get("secret_key"))
        except RequestRefusedError:
            return world
    return world.of_key(value)


def check(world: World, received: ReceivedRequest) -> EmulatedCaller:
    """Return the caller of the stored credential; raise ``RequestRefusedError``."""
    value = received.credential
    if not value:
        raise unauthorized("missing_credentials", "No credential was sent. Send a forward token or a secret key.")
    if value.startswith("lava_sk_"):
        record = world.keys.spend_key(value)
        if record is None:
            raise unauthorized("invalid_spend_key", "The spend key is unknown or was revoked.")
        _check_spend_key(record, world.clock())
        return EmulatedCaller("spend_key", spend_key=record)
    if value.startswith("aks_"):
        _known_secret(world, value)
        return EmulatedCaller("merchant")
    received.token = _token(value)
    return _caller_of_token(world, received.token)


def _check_spend_key(key: StoredSpendKey, now: float) -> None:
    """Raise ``RequestRefusedError`` for a spend key that may not be used now. Lava's codes for this are not known."""
    key.roll(now)
    if key.status == "paused":
        raise refusal(403, "spend_key_paused", "The spend key is paused.")
    if key.expires_at is not None and now >= key.expires_at:
        raise unauthorized("spend_key_expired", "The spend key has expired.")
    if key.request_limit is not None and key.requests.current >= key.request_limit.amount:
        raise refusal(403, "request_limit_exceeded", "Service key request limit exceeded.")
    wait = key.wait(now)
    if wait:
        message = "Service key rate limit exceeded. Try again later."
        raise refusal(429, "rate_limit_exceeded", message, ("retry-after", str(max(1, -int(-wait // 1)))))
    key.last_used_at = now


def check_allowance(key: StoredSpendKey | None, model: str | None, provider: str) -> None:
    """Raise ``RequestRefusedError`` (403) if a spend key may not use this model or provider.

    A model's name is accepted with and without the provider before it.
    """
    if key is None:
        return
    if key.allowed_providers is not None and provider not in key.allowed_providers:
        raise refusal(403, "provider_not_allowed", f"This spend key may not use the provider {provider}.")
    names = {model, (model or "").rpartition("/")[2], f"{provider}/{model}"}
    if key.allowed_models is not None and names.isdisjoint(key.allowed_models):
        raise refusal(403, "model_not_allowed", f"This spend key may not use the model {model}.")


def _known_secret(world: World, key: str) -> None:
    if not world.is_secret_key(key):
        raise unauthorized("invalid_secret_key", "The secret key is unknown or was revoked.")


def _token(value: str) -> dict[str, Any]:
    """Return the JSON of a forward token: padded standard base64. Whether Lava takes the url-safe
    alphabet is not known.
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
        kind = bool if name == "disable_billing" else str
        if member is not None and not isinstance(member, kind):
            raise unauthorized("invalid_forward_token", f"In the forward token, {name} is not a {kind.__name__}.")
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
        connection = world.account.connections.get(name)
        if connection is None:
            raise unauthorized("connection_not_found", f"Connection {name} does not exist.")
        if not meter:
            message = "A connection needs a meter: meter_slug is missing in the forward token."
            raise refusal(400, "meter_required", message)
    if meter and meter not in world.account.meters:
        raise unauthorized("meter_not_found", f"Meter {meter} does not exist.")
    known = world.account.meters.get(meter or "")
    provider_key = token.get("provider_key")
    if provider_key:
        return EmulatedCaller("provider_account", connection, provider_key=provider_key, meter=known)
    if connection is not None and not token.get("disable_billing"):
        return EmulatedCaller("customer", connection, meter=known)
    return EmulatedCaller("merchant", connection, meter=known)
