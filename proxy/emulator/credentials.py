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
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator.exchange import Reply, lava_error

if TYPE_CHECKING:
    from decimal import Decimal

    from proxy.emulator.state import Connection, Received, SpendKey, World

PLACES = ("authorization", "x-api-key", "x-goog-api-key", "xi-api-key")

TOKEN_FIELDS = frozenset(
    {"secret_key", "connection_id", "customer_id", "meter_slug", "provider_key", "disable_billing"}
)


class Refused(Exception):
    """The request goes no further; ``reply`` says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(slots=True)
class Caller:
    """A checked credential. ``payer`` is whose account the call is charged to."""

    payer: Literal["merchant", "customer", "provider_account", "spend_key"]
    connection: Connection | None = None
    spend_key: SpendKey | None = None
    provider_key: str | None = None

    def balance(self, world: World) -> Decimal | None:
        """What the payer has left, in dollars; ``None`` where Lava's money is not touched."""
        if self.payer == "customer" and self.connection is not None:
            return self.connection.balance
        return None if self.payer == "provider_account" else world.wallet_balance

    def charge(self, world: World, cost: Decimal) -> None:
        """Take ``cost`` from the payer; raises ``Refused`` (402) when it is not there."""
        if cost == 0:
            return
        if self.spend_key is not None:
            limit = self.spend_key.spend_limit
            if limit is not None and self.spend_key.spent + cost > limit:
                raise Refused(spend_limit_reached())
        balance = self.balance(world)
        if balance is None:
            return
        if balance < cost:
            raise Refused(insufficient_balance(self.connection if self.payer == "customer" else None, balance))
        if self.payer == "customer" and self.connection is not None:
            self.connection.balance -= cost
        else:
            world.wallet_balance -= cost
        if self.spend_key is not None:
            self.spend_key.spent += cost


def spend_limit_reached(status: int = 402) -> Reply:
    """The message is Lava's (spend keys are service keys inside); its status is not known."""
    return lava_error(status, "spend_limit_exceeded", "Service key spend limit exceeded.")


def insufficient_balance(connection: Connection | None, balance: Decimal) -> Reply:
    """402: whose wallet is empty, and what is in it (dollars)."""
    whose = f"Connection {connection.connection_id}" if connection else "The merchant wallet"
    message = f"{whose} has an insufficient balance ({balance:f} USD) for this request."
    return lava_error(402, "insufficient_balance", message)


def unauthorized(code: str, message: str) -> Refused:
    """401, to be raised."""
    return Refused(lava_error(401, code, message))


def present(received: Received, query: dict[str, str]) -> None:
    """Note the credential Lava would read, and where it stood, in ``received``."""
    for place in PLACES:
        value = received.header(place)
        if value is None:
            continue
        if place == "authorization":
            scheme, _, rest = value.strip().partition(" ")
            value = rest.strip() if scheme.lower() == "bearer" else value
        received.credential, received.credential_place = value.strip(), place
        return
    if "key" in query:
        received.credential, received.credential_place = query["key"], "key"


def check(world: World, received: Received) -> Caller:
    """The caller behind the noted credential; raises ``Refused``."""
    value = received.credential
    if not value:
        raise unauthorized("missing_credentials", "No credential was sent. Send a forward token or a secret key.")
    if value.startswith("lava_sk_"):
        record = world.spend_key(value)
        if record is None:
            raise unauthorized("invalid_spend_key", "The spend key is unknown or was revoked.")
        return Caller("spend_key", spend_key=record)
    if value.startswith("aks_"):
        _known_secret(world, value)
        return Caller("merchant")
    received.token = _token(value)
    return _caller_of_token(world, received.token)


def secret_key_only(world: World, received: Received) -> None:
    """For the account API: the raw merchant secret key and nothing else; raises ``Refused``."""
    if not received.credential:
        raise unauthorized("missing_credentials", "No credential was sent. Send a secret key.")
    _known_secret(world, received.credential)


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


def _caller_of_token(world: World, token: dict[str, Any]) -> Caller:
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
            raise Refused(lava_error(400, "meter_required", message))
    if meter and meter not in world.meters:
        raise unauthorized("meter_not_found", f"Meter {meter} does not exist.")
    provider_key = token.get("provider_key")
    if provider_key:
        return Caller("provider_account", connection, provider_key=provider_key)
    if connection is not None and not token.get("disable_billing"):
        return Caller("customer", connection)
    return Caller("merchant", connection)
