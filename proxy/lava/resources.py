"""The one table of Lava's account API: every resource and action, in both generations of names.

It drives the client (``client``), its typed methods (``methods`` and ``blocking_methods`` are written from it), and
whoever else speaks this API. Facts only: no network, no pydantic.

Sources: method, path and query order are those that ``@lavapayments/nodejs`` 8.1.0, 9.0.0, 10.1.0 and 11.2.0 really
send (recorded in ``tests/vectors/rest_calls.json``); ``wallet`` and ``account/fallback`` stand in Lava's reference only;
the writing actions of ``subscription_configs`` are inferred from the SDK's guide of a version between 8.1 and 9.0.

An action may stand here twice, once per generation (``customer_id`` of SDK 9 was ``connection_id`` before); which row is
meant follows from the names that are given, see ``resolve``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Version = tuple[int, int]

GUIDE: Version = (8, 9)
"""The version that the SDK's guide describes: its number is not known, only that it lies between 8.1 and 9.0."""


class Kind(StrEnum):
    """What a parameter holds."""

    TEXT = "text"
    WHOLE = "whole number"
    MONEY = "money"  # a decimal string on the wire
    TIME = "time"  # ISO 8601 with an offset on the wire
    FLAG = "flag"
    NAMES = "list of texts"
    PAIRS = "table of texts"  # in a query: JSON [[key, value], …]
    TABLE = "table"
    TABLES = "list of tables"


@dataclass(frozen=True, slots=True)
class Param:
    """One query item or body field. ``nullable``: an explicit ``null`` is sent for ``None`` and clears the value."""

    name: str
    doc: str
    kind: Kind = Kind.TEXT
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """One call. ``path`` is a template under the base address; ``record`` names the class in ``records`` of the answer
    (of each item where ``paged``); ``reveals`` are its fields that hold a secret, shown this once where ``once``;
    ``sdk`` is the SDK's own name for it, ``since`` and ``until`` the first and last version of the SDK that has it."""

    resource: str
    name: str
    method: str
    path: str
    doc: str
    record: str
    sdk: str | None = None
    query: tuple[Param, ...] = ()
    body: tuple[Param, ...] | None = None
    paged: bool = False
    destructive: bool = False
    reveals: tuple[str, ...] = ()
    once: bool = False
    keyless: bool = False
    since: Version | None = None
    until: Version | None = None

    @property
    def key(self) -> str:
        """``resource.action``, as the client and the command line call it."""
        return f"{self.resource}.{self.name}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the ids in the path, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    @property
    def params(self) -> tuple[Param, ...]:
        """Everything but the ids."""
        return (*self.query, *(self.body or ()))

    def alive(self, version: Version) -> bool:
        """Whether this version of the SDK has it; what stands in no SDK is in none."""
        if self.sdk is None:
            return False
        return (self.since is None or self.since <= version) and (self.until is None or version <= self.until)


class UnknownName(LookupError):
    """No such resource, action or field. ``nearest`` is the known name that was probably meant, or ``None``."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        from difflib import get_close_matches

        listed = sorted(set(known))
        close = get_close_matches(name.lower(), listed, n=1, cutoff=0.5)
        self.name = name
        self.nearest: str | None = close[0] if close else None
        hint = f"did you mean {self.nearest!r}?" if self.nearest else f"known are: {', '.join(listed) or 'none'}"
        super().__init__(f"unknown {what} {name!r}; {hint}")

    def __str__(self) -> str:
        return str(self.args[0])


# Parameters that stand in several places.
_CURSOR = Param("cursor", "where the page begins: next_cursor of the page before")
_LIMIT = Param("limit", "records on a page, 1 to 100", Kind.WHOLE)
_PAGE = (_CURSOR, _LIMIT)
_CUSTOMER = Param("customer_id", "the customer (SDK 9 and later)")
_CONNECTION = Param("connection_id", "the connection (SDK 8; later a customer)")
_METER = Param("meter_id", "only of this meter")
_FILTERS = Param("metadata_filters", "only where the metadata has these values", Kind.PAIRS)
_STATUS = Param("status", "which ones; Lava's default is its own", choices=("active", "cancelled", "all"))
_NAME = Param("name", "a name for people", required=True)
_URL = Param("url", "the https address that Lava calls", required=True)
_INTERVALS = ("day", "week", "month", "year")
_ROLLOVERS = ("full", "none")

_REPORTED = (
    Param("meter_slug", "the meter's slug", required=True),
    Param("metadata", "keys and values of your own", Kind.PAIRS),
    *(
        Param(f"{side}_{unit}", f"{unit} of the {side}", Kind.WHOLE)
        for unit in ("tokens", "characters", "seconds")
        for side in ("input", "output")
    ),
)
_REQUEST_ID = Param("request_id", "an id of your own for this request", required=True)

_CONTACT = (
    Param("reference_id", "your own id of this customer", nullable=True),
    Param("email", "an e-mail address", nullable=True),
    Param("phone", "a telephone number", nullable=True),
    Param("name", "the customer's name", nullable=True),
    Param("metadata", "keys and values of your own", Kind.TABLE, nullable=True),
)

_PLAN_WRITES = (
    Param("rollover_type", "what becomes of unused credit at a cycle's end", choices=_ROLLOVERS),
    Param("bundle_rollover_type", "what becomes of unused bundle credit", choices=_ROLLOVERS),
    Param("included_credit", "credit that each cycle brings", Kind.MONEY),
)
_PLAN_PARTS = (
    Param("meter_ids", "meters whose usage the credit pays", Kind.NAMES),
    Param("credit_bundles", "bundles to sell: name, cost, credit_amount", Kind.TABLES),
)
_PLAN_CREATE = (
    _NAME,
    Param("period_amount", "the price of one cycle", Kind.MONEY, required=True),
    Param("billing_interval", "the length of a cycle", required=True, choices=_INTERVALS),
    *_PLAN_WRITES,
    Param("default_auto_top_up_bundle_index", "which of the bundles tops up by itself", Kind.WHOLE, nullable=True),
    *_PLAN_PARTS,
)
_PLAN_UPDATE = (
    replace(_NAME, required=False),
    *_PLAN_WRITES,
    Param("default_auto_top_up_bundle_id", "the bundle that tops up by itself", nullable=True),
    *_PLAN_PARTS,
)

_RATE = Param("rate_type", "what the rates are", required=True, choices=("fixed", "percentage"))
_TIER_TYPE = Param(
    "tier_type", "what is counted", required=True, choices=("tokens_1m", "characters_1m", "minutes", "requests")
)
_TIERS = Param("tiers", "the tiers, each with start and rate", Kind.TABLES, required=True)

_SPEND_KEY = (
    Param("status", "paused refuses every request", choices=("active", "paused")),
    Param("request_shape", "the one shape of request it is good for", choices=("openai", "anthropic")),
    Param("allowed_models", "only these models", Kind.NAMES, nullable=True),
    Param("allowed_providers", "only these providers", Kind.NAMES, nullable=True),
    Param("spend_limit", "amount (money) and cycle (daily, weekly, monthly, total)", Kind.TABLE, nullable=True),
    Param("request_limit", "count and cycle (daily, weekly, monthly, total)", Kind.TABLE, nullable=True),
    Param("rate_limit", "rpm, and burst where wanted", Kind.TABLE, nullable=True),
    Param("expires_at", "when it ends by itself", Kind.TIME, nullable=True),
)

_MODES = ("onboarding", "topup", "subscription", "credit_bundle")
_ORIGIN = Param("origin_url", "the page that the checkout opens in", required=True)
_BUNDLE = Param("credit_bundle_id", "the bundle to buy")


def _customers(
    resource: str, one: str, record: str, since: Version | None, until: Version | None
) -> tuple[Action, ...]:
    """The actions that connections and customers have in common."""
    sdk, place = resource, f"{resource}/{{{one}_id}}"
    return (
        Action(
            resource,
            "list",
            "GET",
            resource,
            f"List {resource}",
            record,
            f"{sdk}.list",
            _PAGE,
            paged=True,
            since=since,
            until=until,
        ),
        Action(resource, "retrieve", "GET", place, f"One {one}", record, f"{sdk}.retrieve", since=since, until=until),
        Action(
            resource,
            "get_subscription",
            "GET",
            f"{place}/subscription",
            f"The {one}'s subscription, with plan and remaining credits",
            "CurrentSubscription",
            f"{sdk}.getSubscription",
            since=since,
            until=until,
        ),
        Action(
            resource,
            "delete",
            "DELETE",
            place,
            f"Delete a {one}",
            "Done",
            f"{sdk}.delete",
            destructive=True,
            since=since,
            until=until,
        ),
    )


def _plans(
    resource: str, one: str, word: str, record: str, since: Version, until: Version | None
) -> tuple[Action, ...]:
    """Plans, which SDK 8 called subscription configs. ``word`` is the SDK's."""
    sdk, place = "subscriptions", f"{resource}/{{{one}_id}}"
    written = GUIDE if until == GUIDE else since
    listed = Action(
        resource,
        "list",
        "GET",
        resource,
        "List plans",
        record,
        f"{sdk}.list{word}s",
        _PAGE,
        paged=True,
        since=since,
        until=until,
    )
    return (
        listed,
        replace(
            listed,
            name="retrieve",
            path=place,
            doc="One plan",
            sdk=f"{sdk}.retrieve{word}",
            query=(),
            paged=False,
        ),
        Action(
            resource,
            "create",
            "POST",
            resource,
            "Create a plan",
            record,
            f"{sdk}.create{word}",
            body=_PLAN_CREATE,
            since=written,
            until=until,
        ),
        Action(
            resource,
            "update",
            "PATCH",
            place,
            "Change a plan",
            record,
            f"{sdk}.update{word}",
            body=_PLAN_UPDATE,
            since=written,
            until=until,
        ),
        Action(
            resource,
            "delete",
            "DELETE",
            place,
            "Delete a plan",
            "Deleted",
            f"{sdk}.delete{word}",
            destructive=True,
            since=written,
            until=until,
        ),
    )


ACTIONS: tuple[Action, ...] = (
    # checkout_sessions
    Action(
        "checkout_sessions",
        "create",
        "POST",
        "checkout_sessions",
        "Create a checkout: a customer buys a plan or a credit bundle",
        "CheckoutSession",
        "checkoutSessions.create",
        body=(
            Param("checkout_mode", "what is sold", required=True, choices=_MODES[2:]),
            _ORIGIN,
            _CUSTOMER,
            Param("plan_id", "the plan to subscribe to"),
            _BUNDLE,
        ),
        reveals=("checkout_session_token",),
        since=(9, 0),
    ),
    Action(
        "checkout_sessions",
        "create",
        "POST",
        "checkout_sessions",
        "Create a checkout: a connection is made or topped up, or buys a plan or a credit bundle",
        "CheckoutSession",
        "checkoutSessions.create",
        body=(
            Param("checkout_mode", "what is sold", required=True, choices=_MODES),
            _ORIGIN,
            _CONNECTION,
            Param("subscription_config_id", "the plan to subscribe to (SDK 8)"),
            _BUNDLE,
        ),
        reveals=("checkout_session_token",),
        until=GUIDE,
    ),
    # connections (SDK 8), customers (SDK 9 and later)
    *_customers("connections", "connection", "Connection", None, GUIDE),
    *_customers("customers", "customer", "Customer", (9, 0), None),
    Action(
        "customers",
        "create",
        "POST",
        "customers",
        "Create a customer",
        "Customer",
        "customers.create",
        body=tuple(replace(each, nullable=False) for each in _CONTACT),
        since=(11, 2),
    ),
    Action(
        "customers",
        "update",
        "PATCH",
        "customers/{customer_id}",
        "Change a customer",
        "Customer",
        "customers.update",
        body=_CONTACT,
        since=(11, 2),
    ),
    # requests
    Action(
        "requests",
        "list",
        "GET",
        "requests",
        "List requests",
        "Request",
        "requests.list",
        (*_PAGE, _CUSTOMER, _METER, _FILTERS),
        paged=True,
        since=(9, 0),
    ),
    Action(
        "requests",
        "list",
        "GET",
        "requests",
        "List requests",
        "Request",
        "requests.list",
        (*_PAGE, _CONNECTION, _METER, _FILTERS),
        paged=True,
        until=GUIDE,
    ),
    Action(
        "requests",
        "create",
        "POST",
        "requests",
        "Report usage that did not go through the gateway",
        "Request",
        "requests.create",
        body=(_REQUEST_ID, replace(_CUSTOMER, required=True), *_REPORTED),
        since=(9, 0),
    ),
    Action(
        "requests",
        "create",
        "POST",
        "requests",
        "Report usage that did not go through the gateway",
        "Request",
        "requests.create",
        body=(_REQUEST_ID, replace(_CONNECTION, required=True), *_REPORTED),
        until=GUIDE,
    ),
    Action("requests", "retrieve", "GET", "requests/{request_id}", "One request", "Request", "requests.retrieve"),
    # usage
    *(
        Action(
            "usage",
            "retrieve",
            "GET",
            "usage",
            "Usage and costs by day, with totals",
            "Usage",
            "usage.retrieve",
            (
                Param("start", "first moment; its offset is the time zone of the days", Kind.TIME, required=True),
                Param("end", "last moment; without it, now", Kind.TIME),
                who,
                _METER,
                _FILTERS,
            ),
            since=since,
            until=until,
        )
        for who, since, until in ((_CUSTOMER, (9, 0), None), (_CONNECTION, None, GUIDE))
    ),
    # subscriptions
    Action(
        "subscriptions",
        "list",
        "GET",
        "subscriptions",
        "List subscriptions",
        "Subscription",
        "subscriptions.list",
        (*_PAGE, _STATUS, _CUSTOMER),
        paged=True,
        since=(9, 0),
    ),
    Action(
        "subscriptions",
        "list",
        "GET",
        "subscriptions",
        "List subscriptions",
        "Subscription",
        "subscriptions.list",
        (_STATUS, _CONNECTION, *_PAGE),
        paged=True,
        until=GUIDE,
    ),
    Action(
        "subscriptions",
        "create",
        "POST",
        "subscriptions",
        "Give a customer a plan; Lava allows this for free plans only, the others need a checkout",
        "CurrentSubscription",
        "subscriptions.create",
        body=(replace(_CUSTOMER, required=True), Param("plan_id", "the plan", required=True)),
        since=(11, 2),
    ),
    Action(
        "subscriptions",
        "update",
        "PATCH",
        "subscriptions/{subscription_id}",
        "Change a subscription",
        "Done",
        "subscriptions.update",
        body=(Param("auto_top_up_bundle_id", "the bundle that tops up by itself", nullable=True),),
        since=(9, 0),
    ),
    Action(
        "subscriptions",
        "cancel",
        "DELETE",
        "subscriptions/{subscription_id}",
        "Cancel a subscription",
        "Done",
        "subscriptions.cancel",
        destructive=True,
    ),
    # subscription_configs (SDK 8), plans (SDK 9 and later)
    *_plans("subscription_configs", "subscription_config", "Config", "SubscriptionConfig", (8, 0), GUIDE),
    *_plans("plans", "plan", "Plan", "Plan", (9, 0), None),
    # meters
    Action("meters", "list", "GET", "meters", "List meters", "Meter", "meters.list", _PAGE, paged=True),
    Action("meters", "retrieve", "GET", "meters/{meter_id}", "One meter", "Meter", "meters.retrieve"),
    Action(
        "meters",
        "create",
        "POST",
        "meters",
        "Create a meter",
        "Meter",
        "meters.create",
        body=(_NAME, Param("meter_slug", "its slug; without it Lava makes one"), _RATE, _TIER_TYPE, _TIERS),
        since=GUIDE,
    ),
    Action(
        "meters",
        "update",
        "PATCH",
        "meters/{meter_id}",
        "Change a meter",
        "Meter",
        "meters.update",
        body=(replace(_NAME, required=False), replace(_TIERS, required=False)),
        since=GUIDE,
    ),
    Action(
        "meters",
        "delete",
        "DELETE",
        "meters/{meter_id}",
        "Delete a meter",
        "Deleted",
        "meters.delete",
        destructive=True,
        since=GUIDE,
    ),
    # credit_bundles
    Action(
        "credit_bundles",
        "list",
        "GET",
        "credit_bundles",
        "List credit bundles",
        "CreditBundle",
        "creditBundles.list",
        (*_PAGE, Param("plan_id", "only of this plan")),
        paged=True,
        since=(9, 0),
    ),
    Action(
        "credit_bundles",
        "list",
        "GET",
        "credit_bundles",
        "List credit bundles",
        "CreditBundle",
        "creditBundles.list",
        (Param("subscription_config_id", "only of this plan (SDK 8)"), *_PAGE),
        paged=True,
        until=GUIDE,
    ),
    Action(
        "credit_bundles",
        "retrieve",
        "GET",
        "credit_bundles/{credit_bundle_id}",
        "One credit bundle",
        "CreditBundle",
        "creditBundles.retrieve",
    ),
    # webhooks
    Action(
        "webhooks",
        "list",
        "GET",
        "webhooks",
        "List webhooks",
        "Webhook",
        "webhooks.list",
        _PAGE,
        paged=True,
        since=GUIDE,
    ),
    Action(
        "webhooks",
        "retrieve",
        "GET",
        "webhooks/{webhook_id}",
        "One webhook",
        "Webhook",
        "webhooks.retrieve",
        since=GUIDE,
    ),
    Action(
        "webhooks",
        "create",
        "POST",
        "webhooks",
        "Create a webhook",
        "WebhookCreated",
        "webhooks.create",
        body=(_NAME, _URL),
        reveals=("webhook_secret",),
        once=True,
        since=GUIDE,
    ),
    Action(
        "webhooks",
        "update",
        "PATCH",
        "webhooks/{webhook_id}",
        "Change a webhook",
        "Webhook",
        "webhooks.update",
        body=(replace(_NAME, required=False), replace(_URL, required=False)),
        since=GUIDE,
    ),
    Action(
        "webhooks",
        "delete",
        "DELETE",
        "webhooks/{webhook_id}",
        "Delete a webhook",
        "Deleted",
        "webhooks.delete",
        destructive=True,
        since=GUIDE,
    ),
    # secret_keys
    Action(
        "secret_keys",
        "list",
        "GET",
        "secret_keys",
        "List secret keys, with hints instead of the keys",
        "SecretKey",
        "secretKeys.list",
        _PAGE,
        paged=True,
        since=GUIDE,
    ),
    Action(
        "secret_keys",
        "create",
        "POST",
        "secret_keys",
        "Create a secret key",
        "SecretKeyCreated",
        "secretKeys.create",
        body=(_NAME,),
        reveals=("secret_key",),
        once=True,
        since=GUIDE,
    ),
    Action(
        "secret_keys",
        "delete",
        "DELETE",
        "secret_keys/{secret_key_id}",
        "Revoke a secret key",
        "Deleted",
        "secretKeys.delete",
        destructive=True,
        since=GUIDE,
    ),
    # spend_keys
    Action(
        "spend_keys",
        "create",
        "POST",
        "spend_keys",
        "Create a spend key: a key for one tool, with limits",
        "SpendKeyCreated",
        "spendKeys.create",
        body=(_NAME, *_SPEND_KEY),
        reveals=("key",),
        once=True,
        since=GUIDE,
    ),
    Action(
        "spend_keys",
        "list",
        "GET",
        "spend_keys",
        "List spend keys, with what they have spent",
        "SpendKey",
        "spendKeys.list",
        _PAGE,
        paged=True,
        since=GUIDE,
    ),
    Action(
        "spend_keys",
        "retrieve",
        "GET",
        "spend_keys/{spend_key_id}",
        "One spend key",
        "SpendKey",
        "spendKeys.retrieve",
        since=GUIDE,
    ),
    Action(
        "spend_keys",
        "update",
        "PUT",
        "spend_keys/{spend_key_id}",
        "Change a spend key",
        "SpendKey",
        "spendKeys.update",
        body=(replace(_NAME, required=False), *_SPEND_KEY),
        since=GUIDE,
    ),
    Action(
        "spend_keys",
        "revoke",
        "DELETE",
        "spend_keys/{spend_key_id}",
        "Revoke a spend key",
        "Done",
        "spendKeys.revoke",
        destructive=True,
        since=GUIDE,
    ),
    Action(
        "spend_keys",
        "rotate",
        "POST",
        "spend_keys/{spend_key_id}/rotate",
        "Give a spend key a new secret; the old one stops working",
        "SpendKeyCreated",
        "spendKeys.rotate",
        destructive=True,
        reveals=("key",),
        once=True,
        since=GUIDE,
    ),
    # wallet_keys (gone in SDK 11)
    Action(
        "wallet_keys",
        "list",
        "GET",
        "wallet_keys",
        "List wallet keys",
        "WalletKey",
        "walletKeys.list",
        _PAGE,
        paged=True,
        since=GUIDE,
        until=(10, 1),
    ),
    Action(
        "wallet_keys",
        "revoke",
        "DELETE",
        "wallet_keys/{wallet_key_id}",
        "Revoke a wallet key",
        "Done",
        "walletKeys.revoke",
        destructive=True,
        since=GUIDE,
        until=(10, 1),
    ),
    Action(
        "wallet_keys",
        "rotate",
        "POST",
        "wallet_keys/{wallet_key_id}/rotate",
        "Give a wallet key a new secret; the old one stops working",
        "WalletKeyCreated",
        "walletKeys.rotate",
        destructive=True,
        reveals=("key",),
        once=True,
        since=GUIDE,
        until=(10, 1),
    ),
    # models
    Action("models", "list", "GET", "models", "List models", "Model", "models.list", paged=True, since=GUIDE),
    # In Lava's reference, in no SDK.
    Action("wallet", "retrieve", "GET", "wallet", "The wallet behind this key, with its balance", "Wallet"),
    Action("fallback", "retrieve", "GET", "account/fallback", "The account's chain of fallbacks", "Fallback"),
    Action(
        "fallback",
        "update",
        "PATCH",
        "account/fallback",
        "Set the account's chain of fallbacks",
        "Fallback",
        body=(Param("chain", "up to five, each with url and model; none clears it", Kind.TABLES, nullable=True),),
    ),
    # The end of the login flow: the code stands for the credential.
    Action(
        "auth",
        "exchange_code",
        "POST",
        "auth/callback",
        "Exchange the one-time code of a login for credentials",
        "AuthCredentials",
        "exchangeAuthCode",
        body=(Param("code", "the code; it lives for 60 seconds", required=True),),
        reveals=("secret_key", "wallet_key"),
        once=True,
        keyless=True,
        since=(9, 0),
    ),
)


def resources() -> tuple[str, ...]:
    """Every resource's name, in the table's order."""
    return tuple(dict.fromkeys(action.resource for action in ACTIONS))


def names(resource: str) -> tuple[str, ...]:
    """The names of a resource's actions. Raises ``UnknownName``."""
    found = tuple(dict.fromkeys(action.name for action in ACTIONS if action.resource == resource))
    if not found:
        raise UnknownName("resource", resource, resources())
    return found


def rows(key: str) -> tuple[Action, ...]:
    """The rows of ``resource.action``, or of the SDK's own name for it, the newest generation first.

    Raises ``UnknownName`` for the part that is not known.
    """
    found = tuple(action for action in ACTIONS if key in (action.key, action.sdk))
    if not found:
        resource, _, name = key.partition(".")
        raise UnknownName(f"action of {resource}", name, names(resource))
    return found


def resolve(key: str, given: Collection[str] = ()) -> Action:
    """The row of this action that has all the ``given`` parameters: the newest one where several do.

    Raises ``UnknownName`` for an action or a parameter that does not exist, ``ValueError`` for parameters of different
    generations.
    """
    found = rows(key)
    for row in found:
        if {param.name for param in row.params}.issuperset(given):
            return row
    known = {param.name for row in found for param in row.params}
    for name in given:
        if name not in known:
            raise UnknownName(f"field of {found[0].key}", name, known)
    newest = {param.name for param in found[0].params}
    older = [name for name in given if name not in newest]
    newer = [name for name in given if not any(name == param.name for row in found[1:] for param in row.params)]
    raise ValueError(f"{key}: {', '.join(newer)} (SDK 9 and later) and {', '.join(older)} (SDK 8) do not go together")


def parameters(key: str) -> tuple[Param, ...]:
    """The parameters of an action over all its generations; required is what is so in each of them."""
    found = rows(key)
    merged: dict[str, Param] = {}
    for row in found:
        for param in row.params:
            before = merged.get(param.name)
            choices = tuple(dict.fromkeys((*(before.choices if before else ()), *param.choices)))
            merged[param.name] = replace(before or param, choices=choices)
    needed = [{param.name for param in row.params if param.required} for row in found]
    return tuple(replace(param, required=all(param.name in names for names in needed)) for param in merged.values())
