"""The table of Lava's account API: every resource and action, in both generations of names.

It is used by the client (``client``), its typed methods (``methods`` and ``blocking_methods`` are generated from it) and
the command ``api``. Only facts: no network, no pydantic.

Sources: method, path and query order are those that ``@lavapayments/nodejs`` 8.1.0, 9.0.0, 10.1.0 and 11.2.0 send
(recorded in ``tests/vectors/rest_calls.json``); ``wallet`` and ``account/fallback`` are only in Lava's reference; the
writing actions of ``subscription_configs`` are inferred from the SDK's guide of a version between 8.1 and 9.0.

An action may have two rows, one for each generation (``customer_id`` of SDK 9 was ``connection_id`` before). The given
names decide between them, see ``resolve``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Version = tuple[int, int]

GUIDE: Version = (8, 9)
"""The version that the SDK's guide describes. Its number is not known, only that it is between 8.1 and 9.0."""


class ParameterKind(StrEnum):
    """The type of a parameter's value."""

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
    """Retrieve one query item or body field. ``nullable``: an explicit ``null`` is sent for ``None`` and clears the value."""

    name: str
    doc: str
    kind: ParameterKind = ParameterKind.TEXT
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """Retrieve one call. ``path`` is a template relative to the base address; ``record`` names the class of the answer in
    ``records`` (of each item if ``paged``); ``reveals`` are its fields with a secret, shown only once if ``once``;
    ``sdk`` is the SDK's own name for it, ``since`` and ``until`` are the first and the last version of the SDK with it."""

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
        """``resource.action``, the name in the client and on the command line."""
        return f"{self.resource}.{self.name}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the ids in the path, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    @property
    def params(self) -> tuple[Param, ...]:
        """All parameters except the ids."""
        return (*self.query, *(self.body or ()))

    def alive(self, version: Version) -> bool:
        """Return whether this version of the SDK has it. An action without an SDK name is in no version."""
        if self.sdk is None:
            return False
        return (self.since is None or self.since <= version) and (self.until is None or version <= self.until)


class UnknownName(LookupError):
    """There is no such resource, action or field. ``nearest`` is the nearest known name, or ``None``."""

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


# Parameters of several actions.
_CURSOR = Param("cursor", "the start of the page: next_cursor of the page before")
_LIMIT = Param("limit", "records on a page, 1 to 100", ParameterKind.WHOLE)
_PAGE = (_CURSOR, _LIMIT)
_CUSTOMER = Param("customer_id", "the customer (SDK 9 and later)")
_CONNECTION = Param("connection_id", "the connection (SDK 8; later a customer)")
_METER = Param("meter_id", "only of this meter")
_FILTERS = Param("metadata_filters", "only with these values in the metadata", ParameterKind.PAIRS)
_STATUS = Param("status", "the status; the default is Lava's", choices=("active", "cancelled", "all"))
_NAME = Param("name", "a name for people", required=True)
_URL = Param("url", "the https address that Lava calls", required=True)
_INTERVALS = ("day", "week", "month", "year")
_ROLLOVERS = ("full", "none")

_REPORTED = (
    Param("meter_slug", "the meter's slug", required=True),
    Param("metadata", "keys and values of your own", ParameterKind.PAIRS),
    *(
        Param(f"{side}_{unit}", f"{unit} of the {side}", ParameterKind.WHOLE)
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
    Param("metadata", "keys and values of your own", ParameterKind.TABLE, nullable=True),
)

_PLAN_WRITES = (
    Param("rollover_type", "use of the remaining credit at the end of a cycle", choices=_ROLLOVERS),
    Param("bundle_rollover_type", "use of the remaining credit of bundles", choices=_ROLLOVERS),
    Param("included_credit", "the credit of each cycle", ParameterKind.MONEY),
)
_PLAN_PARTS = (
    Param("meter_ids", "meters whose usage the credit pays for", ParameterKind.NAMES),
    Param("credit_bundles", "bundles to sell: name, cost, credit_amount", ParameterKind.TABLES),
)
_PLAN_CREATE = (
    _NAME,
    Param("period_amount", "the price of one cycle", ParameterKind.MONEY, required=True),
    Param("billing_interval", "the length of a cycle", required=True, choices=_INTERVALS),
    *_PLAN_WRITES,
    Param(
        "default_auto_top_up_bundle_index",
        "the index of the bundle for automatic top-ups",
        ParameterKind.WHOLE,
        nullable=True,
    ),
    *_PLAN_PARTS,
)
_PLAN_UPDATE = (
    replace(_NAME, required=False),
    *_PLAN_WRITES,
    Param("default_auto_top_up_bundle_id", "the bundle for automatic top-ups", nullable=True),
    *_PLAN_PARTS,
)

_RATE = Param("rate_type", "the type of the rates", required=True, choices=("fixed", "percentage"))
_TIER_TYPE = Param(
    "tier_type", "the unit of the tiers", required=True, choices=("tokens_1m", "characters_1m", "minutes", "requests")
)
_TIERS = Param("tiers", "the tiers, each with start and rate", ParameterKind.TABLES, required=True)

_SPEND_KEY = (
    Param("status", "a paused key refuses every request", choices=("active", "paused")),
    Param("request_shape", "the only shape of request that it accepts", choices=("openai", "anthropic")),
    Param("allowed_models", "only these models", ParameterKind.NAMES, nullable=True),
    Param("allowed_providers", "only these providers", ParameterKind.NAMES, nullable=True),
    Param(
        "spend_limit", "amount (money) and cycle (daily, weekly, monthly, total)", ParameterKind.TABLE, nullable=True
    ),
    Param("request_limit", "count and cycle (daily, weekly, monthly, total)", ParameterKind.TABLE, nullable=True),
    Param("rate_limit", "rpm, and optionally burst", ParameterKind.TABLE, nullable=True),
    Param("expires_at", "the end of its validity", ParameterKind.TIME, nullable=True),
)

_ORIGIN = Param("origin_url", "the page in which the checkout opens", required=True)
_BUNDLE = Param("credit_bundle_id", "the bundle to buy")


# The first and the last version of the SDK with an action.
_Span = tuple[Version | None, Version | None]
_ALWAYS: _Span = (None, None)
_OLD: _Span = (None, GUIDE)
_NEW: _Span = ((9, 0), None)
_LATE: _Span = (GUIDE, None)
_LATEST: _Span = ((11, 2), None)
_GUIDE_ONLY: _Span = (GUIDE, GUIDE)
_WALLET_KEYS: _Span = (GUIDE, (10, 1))


def _action(
    resource: str,
    name: str,
    method: str,
    span: _Span,
    doc: str,
    record: str,
    *,
    below: str = "",
    single: bool = True,
    sdk: str | None = None,
    **rest: Any,
) -> Action:
    """Return a row by the rules of most actions: ``RESOURCE`` or ``RESOURCE/{ID}``, then ``below``; the SDK's names are the
    same in camel case."""
    path = f"{resource}/{{{resource.removesuffix('s')}_id}}" if single else resource
    named = re.sub(r"_(.)", lambda match: match[1].upper(), f"{resource}.{name}")
    since, until = span
    return Action(resource, name, method, path + below, doc, record, sdk or named, since=since, until=until, **rest)


def _listing(
    resource: str, span: _Span, doc: str, record: str, query: tuple[Param, ...] = _PAGE, sdk: str | None = None
) -> Action:
    return _action(resource, "list", "GET", span, doc, record, single=False, sdk=sdk, query=query, paged=True)


def _single(resource: str, span: _Span, doc: str, record: str, sdk: str | None = None) -> Action:
    return _action(resource, "retrieve", "GET", span, doc, record, sdk=sdk)


def _creation(
    resource: str,
    span: _Span,
    doc: str,
    record: str,
    body: tuple[Param, ...],
    *,
    sdk: str | None = None,
    once: str | None = None,
    reveals: tuple[str, ...] = (),
) -> Action:
    secrets = (once,) if once else reveals
    return _action(
        resource,
        "create",
        "POST",
        span,
        doc,
        record,
        single=False,
        sdk=sdk,
        body=body,
        reveals=secrets,
        once=bool(once),
    )


def _change(
    resource: str,
    span: _Span,
    doc: str,
    record: str,
    body: tuple[Param, ...],
    *,
    method: str = "PATCH",
    sdk: str | None = None,
) -> Action:
    return _action(resource, "update", method, span, doc, record, sdk=sdk, body=body)


def _end(
    resource: str, span: _Span, doc: str, record: str = "Deleted", *, name: str = "delete", sdk: str | None = None
) -> Action:
    return _action(resource, name, "DELETE", span, doc, record, sdk=sdk, destructive=True)


def _rotation(resource: str, span: _Span, doc: str, record: str) -> Action:
    return _action(
        resource, "rotate", "POST", span, doc, record, below="/rotate", destructive=True, reveals=("key",), once=True
    )


def _subscription_of(resource: str, span: _Span) -> Action:
    one = resource.removesuffix("s")
    doc = f"Retrieve the {one}'s subscription, with plan and remaining credits"
    return _action(resource, "get_subscription", "GET", span, doc, "CurrentSubscription", below="/subscription")


def _optional(params: tuple[Param, ...]) -> tuple[Param, ...]:
    return tuple(replace(param, required=False) for param in params)


def _needed(param: Param) -> Param:
    return replace(param, required=True)


_WEBHOOK = (_NAME, _URL)
_SHAPE = (_NAME, Param("meter_slug", "its slug; by default Lava makes one"), _RATE, _TIER_TYPE, _TIERS)
_PLAN = Param("plan_id", "the plan (SDK 9 and later)")
_CONFIG = Param("subscription_config_id", "the plan (SDK 8)")
_MODE = Param("checkout_mode", "the thing to sell", required=True, choices=("subscription", "credit_bundle"))
_OLD_MODE = replace(_MODE, choices=("onboarding", "topup", "subscription", "credit_bundle"))
_START = Param("start", "the start; its offset is the time zone of the days", ParameterKind.TIME, required=True)
_END_TIME = Param("end", "the end; by default now", ParameterKind.TIME)
_TOP_UP = Param("auto_top_up_bundle_id", "the bundle for automatic top-ups", nullable=True)
_CHAIN = Param("chain", "up to five, each with url and model; null clears it", ParameterKind.TABLES, nullable=True)
_CODE = Param("code", "the code; it is valid for 60 seconds", required=True)

ACTIONS: tuple[Action, ...] = (
    _creation(
        "checkout_sessions",
        _NEW,
        "Create a checkout, where a customer subscribes or buys credit",
        "CheckoutSession",
        (_MODE, _ORIGIN, _CUSTOMER, _PLAN, _BUNDLE),
        reveals=("checkout_session_token",),
    ),
    _creation(
        "checkout_sessions",
        _OLD,
        "Create a checkout, where a connection is made, tops up, subscribes or buys credit",
        "CheckoutSession",
        (_OLD_MODE, _ORIGIN, _CONNECTION, _CONFIG, _BUNDLE),
        reveals=("checkout_session_token",),
    ),
    _listing("connections", _OLD, "List connections", "Connection"),
    _single("connections", _OLD, "Retrieve one connection", "Connection"),
    _subscription_of("connections", _OLD),
    _end("connections", _OLD, "Delete a connection", "Done"),
    _creation(
        "customers", _LATEST, "Create a customer", "Customer", tuple(replace(p, nullable=False) for p in _CONTACT)
    ),
    _listing("customers", _NEW, "List customers", "Customer"),
    _single("customers", _NEW, "Retrieve one customer", "Customer"),
    _change("customers", _LATEST, "Change a customer", "Customer", _CONTACT),
    _subscription_of("customers", _NEW),
    _end("customers", _NEW, "Delete a customer", "Done"),
    _listing("requests", _NEW, "List requests", "Request", (*_PAGE, _CUSTOMER, _METER, _FILTERS)),
    _listing("requests", _OLD, "List requests", "Request", (*_PAGE, _CONNECTION, _METER, _FILTERS)),
    _creation(
        "requests",
        _NEW,
        "Report usage that did not go through the gateway",
        "Request",
        (_REQUEST_ID, _needed(_CUSTOMER), *_REPORTED),
    ),
    _creation(
        "requests",
        _OLD,
        "Report usage that did not go through the gateway",
        "Request",
        (_REQUEST_ID, _needed(_CONNECTION), *_REPORTED),
    ),
    _single("requests", _ALWAYS, "Retrieve one request", "Request"),
    *(
        _action(
            "usage",
            "retrieve",
            "GET",
            span,
            "Retrieve usage and costs by day, with totals",
            "UsageReport",
            single=False,
            query=(_START, _END_TIME, who, _METER, _FILTERS),
        )
        for who, span in ((_CUSTOMER, _NEW), (_CONNECTION, _OLD))
    ),
    _listing("subscriptions", _NEW, "List subscriptions", "Subscription", (*_PAGE, _STATUS, _CUSTOMER)),
    _listing("subscriptions", _OLD, "List subscriptions", "Subscription", (_STATUS, _CONNECTION, *_PAGE)),
    _creation(
        "subscriptions",
        _LATEST,
        "Give a customer a plan (Lava: free plans only, the others need a checkout)",
        "CurrentSubscription",
        (_needed(_CUSTOMER), _needed(_PLAN)),
    ),
    _change("subscriptions", _NEW, "Change a subscription", "Done", (_TOP_UP,)),
    _end("subscriptions", _ALWAYS, "Cancel a subscription", "Done", name="cancel"),
    *(
        row
        for resource, record, word, span, writing in (
            ("subscription_configs", "SubscriptionConfig", "Config", _OLD, _GUIDE_ONLY),
            ("plans", "Plan", "Plan", _NEW, _NEW),
        )
        for row in (
            _listing(resource, span, "List plans", record, sdk=f"subscriptions.list{word}s"),
            _single(resource, span, "Retrieve one plan", record, sdk=f"subscriptions.retrieve{word}"),
            _creation(resource, writing, "Create a plan", record, _PLAN_CREATE, sdk=f"subscriptions.create{word}"),
            _change(resource, writing, "Change a plan", record, _PLAN_UPDATE, sdk=f"subscriptions.update{word}"),
            _end(resource, writing, "Delete a plan", sdk=f"subscriptions.delete{word}"),
        )
    ),
    _listing("meters", _ALWAYS, "List meters", "Meter"),
    _single("meters", _ALWAYS, "Retrieve one meter", "Meter"),
    _creation("meters", _LATE, "Create a meter", "Meter", _SHAPE),
    _change("meters", _LATE, "Change a meter", "Meter", _optional((_NAME, _TIERS))),
    _end("meters", _LATE, "Delete a meter"),
    _listing("credit_bundles", _NEW, "List credit bundles", "CreditBundle", (*_PAGE, _PLAN)),
    _listing("credit_bundles", _OLD, "List credit bundles", "CreditBundle", (_CONFIG, *_PAGE)),
    _single("credit_bundles", _ALWAYS, "Retrieve one credit bundle", "CreditBundle"),
    _listing("webhooks", _LATE, "List webhooks", "Webhook"),
    _single("webhooks", _LATE, "Retrieve one webhook", "Webhook"),
    _creation("webhooks", _LATE, "Create a webhook", "WebhookCreated", _WEBHOOK, once="webhook_secret"),
    _change("webhooks", _LATE, "Change a webhook", "Webhook", _optional(_WEBHOOK)),
    _end("webhooks", _LATE, "Delete a webhook"),
    _listing("secret_keys", _LATE, "List secret keys, with hints instead of the keys", "SecretKey"),
    _creation("secret_keys", _LATE, "Create a secret key", "SecretKeyCreated", (_NAME,), once="secret_key"),
    _end("secret_keys", _LATE, "Revoke a secret key"),
    _creation(
        "spend_keys",
        _LATE,
        "Create a spend key: for one tool, with limits",
        "SpendKeyCreated",
        (_NAME, *_SPEND_KEY),
        once="key",
    ),
    _listing("spend_keys", _LATE, "List spend keys, with what they have spent", "SpendKey"),
    _single("spend_keys", _LATE, "Retrieve one spend key", "SpendKey"),
    _change("spend_keys", _LATE, "Change a spend key", "SpendKey", _optional((_NAME, *_SPEND_KEY)), method="PUT"),
    _end("spend_keys", _LATE, "Revoke a spend key", "Done", name="revoke"),
    _rotation("spend_keys", _LATE, "Give a spend key a new secret; the old one stops working", "SpendKeyCreated"),
    _listing("wallet_keys", _WALLET_KEYS, "List wallet keys", "WalletKey"),
    _end("wallet_keys", _WALLET_KEYS, "Revoke a wallet key", "Done", name="revoke"),
    _rotation(
        "wallet_keys", _WALLET_KEYS, "Give a wallet key a new secret; the old one stops working", "WalletKeyCreated"
    ),
    _listing("models", _LATE, "List models", "ApiModel", ()),
    # In Lava's reference, in no SDK.
    Action(
        "wallet", "retrieve", "GET", "wallet", "Retrieve the wallet behind this key, with its balance", "WalletBalance"
    ),
    Action(
        "fallback", "retrieve", "GET", "account/fallback", "Retrieve the account's chain of fallbacks", "FallbackChain"
    ),
    Action(
        "fallback",
        "update",
        "PATCH",
        "account/fallback",
        "Set the account's chain of fallbacks",
        "FallbackChain",
        body=(_CHAIN,),
    ),
    # The end of the login flow: the code is the credential.
    Action(
        "auth",
        "exchange_code",
        "POST",
        "auth/callback",
        "Exchange the one-time code of a login for credentials",
        "AuthCredentials",
        "exchangeAuthCode",
        body=(_CODE,),
        reveals=("secret_key", "wallet_key"),
        once=True,
        keyless=True,
        since=(9, 0),
    ),
)


def resources() -> tuple[str, ...]:
    """Return the names of all resources, in the table's order."""
    return tuple(dict.fromkeys(action.resource for action in ACTIONS))


def names(resource: str) -> tuple[str, ...]:
    """Return the names of a resource's actions. Raises ``UnknownName``."""
    found = tuple(dict.fromkeys(action.name for action in ACTIONS if action.resource == resource))
    if not found:
        raise UnknownName("resource", resource, resources())
    return found


def rows(key: str) -> tuple[Action, ...]:
    """Return the rows of ``resource.action``, or of the SDK's own name for it, the newest generation first.

    Raises ``UnknownName`` for the part that is not known.
    """
    found = tuple(action for action in ACTIONS if key in (action.key, action.sdk))
    if not found:
        resource, _, name = key.partition(".")
        raise UnknownName(f"action of {resource}", name, names(resource))
    return found


def resolve(key: str, given: Collection[str] = ()) -> Action:
    """Return the newest row of this action that has all the `given` parameters.

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
    """Return the parameters of an action in all its generations. Required is what each of them requires."""
    found = rows(key)
    merged: dict[str, Param] = {}
    for row in found:
        for param in row.params:
            before = merged.get(param.name)
            choices = tuple(dict.fromkeys((*(before.choices if before else ()), *param.choices)))
            merged[param.name] = replace(before or param, choices=choices)
    needed = [{param.name for param in row.params if param.required} for row in found]
    return tuple(replace(param, required=all(param.name in names for names in needed)) for param in merged.values())
