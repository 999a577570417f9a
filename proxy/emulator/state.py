"""The emulator's state: one merchant at Lava, in one object for each concern.

``World`` is made by the caller that starts an emulator, so that a test can run several side by
side. Its parts may be changed while an emulator runs: the next request sees the change. What
survives a restart (``state_file.py``) is a msgspec struct, all other state a dataclass. Money is
``Decimal`` US dollars, as Lava's own amounts are decimal strings.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec import field as default

from proxy.emulator.biller import Biller
from proxy.emulator.records import (
    IssuedKey,
    LoginCode,
    StoredBundle,
    StoredCheckoutSession,
    StoredConnection,
    StoredFile,
    StoredMeter,
    StoredPlan,
    StoredRequest,
    StoredSpendKey,
    StoredSubscription,
    StoredWebhook,
    WebhookDelivery,
    new_id,
    new_key,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from proxy.emulator.exchange import EmulatedReply
    from proxy.emulator.google_files import Upload

MAX_CACHED_PROMPTS = 10_000


@dataclass(slots=True)
class ReceivedRequest:
    """One request as it arrived, and how its response went.

    ``target`` is the raw request target and ``headers`` the raw pairs in the spelling and order of
    the wire. ``url`` is the requested provider address (forward and rewrite only). ``credential``
    is the value Lava would read, ``credential_place`` its header or query name, ``token`` the
    decoded JSON of a forward token. ``sent`` holds the bytes of the response's body that were given
    to the connection. ``cancelled``: the client left before the response was complete.
    ``finished``: the whole response was sent. ``cut``: a fault closed the connection.
    """

    number: int
    request_id: str
    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    url: str | None = None
    model: str | None = None
    credential: str | None = None
    credential_place: str | None = None
    token: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    payer: str | None = None
    charged: Decimal = Decimal(0)
    fault: str | None = None
    status: int | None = None
    sent: bytearray = field(default_factory=bytearray)
    cancelled: bool = False
    finished: bool = False
    cut: bool = False

    def header(self, name: str) -> str | None:
        """Return the first value of a header, by name in any case."""
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: str) -> list[str]:
        """Return every value of a header in the order of the wire, so that a doubled header can be seen."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    @property
    def path(self) -> str:
        """The target without its query, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to this request."""
        return self.finished or self.cancelled or self.cut


class Keys(Struct, forbid_unknown_fields=True):
    """The merchant's keys, and the provider keys that a provider does not accept."""

    secret_key: str
    test_key: str
    spend_key_records: list[StoredSpendKey] = []
    secret_key_records: list[IssuedKey] = []
    wallet_key_records: list[IssuedKey] = []
    revoked_keys: set[str] = set()
    rejected_provider_keys: set[str] = set()
    unfunded_provider_keys: set[str] = set()

    @property
    def spend_keys(self) -> dict[str, str]:
        """The values of the spend keys, by name."""
        return {record.name: record.key for record in self.spend_key_records}

    def spend_key(self, key: str) -> StoredSpendKey | None:
        """Return the record of a spend key that is not revoked."""
        return next((each for each in self.spend_key_records if each.key == key and key not in self.revoked_keys), None)

    def wallet_key(self, key: str) -> IssuedKey | None:
        """Return the record of a wallet key that is not revoked."""
        return next(
            (each for each in self.wallet_key_records if each.key == key and key not in self.revoked_keys), None
        )

    def values(self) -> list[str]:
        issued = (*self.secret_key_records, *self.wallet_key_records)
        return [self.secret_key, self.test_key, *self.spend_keys.values(), *(each.key for each in issued)]


class Account(Struct, forbid_unknown_fields=True):
    """The merchant's wallet, customers, meters, plans, checkouts and webhooks."""

    wallet_balance: Decimal = Decimal(0)
    wallet_id: str = "wal_demo"
    merchant_id: str = "mer_demo"
    account_id: str = "acc_demo"
    created_at: float = default(default_factory=time.time)
    connections: dict[str, StoredConnection] = {}
    meters: dict[str, StoredMeter] = {}
    """By slug."""
    plans: dict[str, StoredPlan] = {}
    subscriptions: dict[str, StoredSubscription] = {}
    checkouts: dict[str, StoredCheckoutSession] = {}
    webhooks: dict[str, StoredWebhook] = {}
    fallbacks: list[dict[str, Any]] | None = None

    def add_meter(self, slug: str, now: float = 0.0) -> StoredMeter:
        """Return the meter of ``slug``; create it with default rates if there is none."""
        name = slug.replace("-", " ").title()
        return self.meters.setdefault(slug, StoredMeter(new_id("met_"), slug, name, now))

    def meter_by_id(self, meter_id: str) -> StoredMeter | None:
        return next((meter for meter in self.meters.values() if meter.meter_id == meter_id), None)

    def subscription_of(self, customer_id: str, now: float) -> StoredSubscription | None:
        """Return the customer's active subscription, with its due cycles begun."""
        for each in self.subscriptions.values():
            if each.customer_id == customer_id and each.active(now):
                each.renew(now)
                return each
        return None


class ProviderObjects(Struct, forbid_unknown_fields=True):
    """What the emulated providers store for their callers."""

    last_number: int = 0
    files: dict[str, StoredFile] = {}
    batches: dict[str, dict[str, Any]] = {}
    responses: dict[str, dict[str, Any]] = {}
    message_batches: dict[str, dict[str, Any]] = {}
    google_files: dict[str, dict[str, Any]] = {}
    google_caches: dict[str, dict[str, Any]] = {}
    prompt_cache: set[str] = set()

    def cache_prompt(self, model: str, texts: list[str]) -> bool:
        """Cache the beginning of a prompt; return whether it was cached before."""
        key = hashlib.sha256(json.dumps([model, *texts]).encode()).hexdigest()
        if key in self.prompt_cache:
            return True
        if len(self.prompt_cache) >= MAX_CACHED_PROMPTS:
            self.prompt_cache.clear()
        self.prompt_cache.add(key)
        return False

    def next_id(self, prefix: str) -> str:
        """Return a new identifier, numbered so that the same conversation gives the same identifiers."""
        self.last_number += 1
        return f"{prefix}{self.last_number:08d}"


class Billing(Struct, forbid_unknown_fields=True):
    """The records of requests by id, oldest first."""

    records: dict[str, StoredRequest] = {}

    def add(self, record: StoredRequest, limit: int) -> None:
        self.records[record.request_id] = record
        while len(self.records) > limit:
            del self.records[next(iter(self.records))]


@dataclass
class Behaviour:
    """How this Lava behaves; set by the caller, not by requests.

    ``keep`` bounds the histories; the oldest go first. ``pace`` is the
    pause between two events of a stream, in seconds. ``extra_hosts`` are targets that Lava knows
    beside the built-in providers. ``environment`` is the one served at this address: keys of the
    other one are unknown (``None``: both). ``generation`` is the SDK generation whose names, shapes
    and key rules hold (``None``: all of them). ``rest_limit`` is the number of account calls per
    key and minute. ``account_faults`` are names of faults; each is used for one account call, in
    order. ``null_cursor`` ends a list with ``"next_cursor": null`` instead of leaving it out.
    ``webhook_scheme`` is the scheme of webhook signatures. ``biller`` is how requests are billed.
    """

    keep: int = 10_000
    pace: float = 0.0
    max_body_bytes: int = 128 * 1024 * 1024
    extra_hosts: set[str] = field(default_factory=lambda: {"api.example.com"})
    environment: Literal["live", "test"] | None = None
    generation: Literal[8, 9, 10, 11] | None = None
    rest_limit: int | None = 1000
    account_faults: list[str] = field(default_factory=list)
    null_cursor: bool = False
    webhook_scheme: Literal["current", "2025", "flex"] = "current"
    biller: Biller = field(default_factory=Biller)


@dataclass
class Pending:
    """Short-lived state: what a later request completes or a task still does."""

    login_codes: dict[str, LoginCode] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    rate_windows: dict[str, tuple[float, int]] = field(default_factory=dict)
    idempotent_replies: dict[tuple[str, str], tuple[str, EmulatedReply]] = field(default_factory=dict)
    webhook_tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)


class History:
    """Every request received and every webhook delivered, and a way to wait for them.

    ``changes`` grows with everything that may have changed the state.
    """

    def __init__(self) -> None:
        self.received: list[ReceivedRequest] = []
        self.deliveries: list[WebhookDelivery] = []
        self.changes = 0
        self._last_number = 0
        self._changed = threading.Condition()

    def add(self, method: str, target: str, headers: list[tuple[bytes, bytes]], limit: int) -> ReceivedRequest:
        """Begin the record of a request; it is in ``received`` before its body has come."""
        self._last_number += 1
        received = ReceivedRequest(self._last_number, "req_" + secrets.token_hex(12), method, target, headers)
        self.received.append(received)
        del self.received[:-limit]
        self.touch()
        return received

    def touch(self) -> None:
        """Wake every thread that waits in ``wait``."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object], limit: float) -> bool:
        """Wait until ``condition`` holds; return ``False`` after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                # The condition may depend on more than the history; the short wait covers that.
                self._changed.wait(min(left, 0.05))
        return True


@dataclass(eq=False, repr=False)
class World:
    """One merchant at Lava; ``sandbox`` is what its test keys see (``None``: the same)."""

    keys: Keys
    account: Account = field(default_factory=Account)
    objects: ProviderObjects = field(default_factory=ProviderObjects)
    billing: Billing = field(default_factory=Billing)
    behaviour: Behaviour = field(default_factory=Behaviour)
    pending: Pending = field(default_factory=Pending)
    history: History = field(default_factory=History)
    sandbox: World | None = None
    clock: Callable[[], float] = time.time

    @classmethod
    def demo(cls, *, secret_key: str | None = None, test_key: str | None = None) -> World:
        """Return a small merchant with one of everything, and its sandbox. Keys are new each time unless given."""
        live = cls._merchant(secret_key or new_key("aks_live_"), test_key or new_key("aks_test_"), "wal_demo")
        live.share_with(cls._merchant(live.test_key, live.test_key, "wal_sandbox"))
        return live

    def share_with(self, sandbox: World) -> None:
        """Make ``sandbox`` the sandbox of this world; both share these sets."""
        self.sandbox = sandbox
        sandbox.keys.revoked_keys = self.keys.revoked_keys
        sandbox.keys.rejected_provider_keys = self.keys.rejected_provider_keys
        sandbox.keys.unfunded_provider_keys = self.keys.unfunded_provider_keys
        sandbox.behaviour.extra_hosts = self.behaviour.extra_hosts
        sandbox.behaviour.biller = self.behaviour.biller

    @classmethod
    def _merchant(cls, secret_key: str, test_key: str, wallet_id: str) -> World:
        now = time.time()
        connections = (
            StoredConnection(
                "conn_demo", Decimal("5.00"), "user-1", "+15550100", "ada@example.com", "Ada", "Demo", None, now
            ),
            StoredConnection(
                "conn_empty", Decimal("0.00"), "user-2", "", "nobody@example.com", "No", "Money", None, now
            ),
        )
        free = StoredPlan("plan_free", "Free", Decimal("0.00"), now, included_credit=Decimal("1.00"))
        pro = StoredPlan("plan_pro", "Pro", Decimal("20.00"), now, included_credit=Decimal("20.00"))
        pro.bundles.append(StoredBundle("bundle_extra", "Extra 10", Decimal("10.00"), Decimal("10.00"), now))
        account = Account(Decimal("20.00"), wallet_id, created_at=now, plans={"plan_free": free, "plan_pro": pro})
        account.connections = {each.connection_id: each for each in connections}
        for slug in ("demo-chat", "internal", "website-chat"):
            account.add_meter(slug, now)
        keys = Keys(secret_key, test_key)
        one = Decimal("1.00")
        keys.spend_key_records += [
            StoredSpendKey("openai", new_key("lava_sk_"), "openai", created_at=now),
            StoredSpendKey("anthropic", new_key("lava_sk_"), "anthropic", created_at=now),
            StoredSpendKey("exhausted", new_key("lava_sk_"), "openai", one, one, created_at=now),
        ]
        keys.wallet_key_records.append(IssuedKey(new_id("wk_"), "Default", new_key("lava_wk_"), now))
        keys.rejected_provider_keys.add(new_key("provider-rejected-"))
        keys.unfunded_provider_keys.add(new_key("provider-unfunded-"))
        return cls(keys, account)

    @property
    def secret_key(self) -> str:
        return self.keys.secret_key

    @property
    def test_key(self) -> str:
        return self.keys.test_key

    @property
    def received(self) -> list[ReceivedRequest]:
        return self.history.received

    def until(self, condition: Callable[[], object], limit: float = 10.0) -> bool:
        """Wait, in another thread than the emulator's, until ``condition`` holds; ``False`` after ``limit`` seconds."""
        return self.history.wait(condition, limit)

    def secret_keys(self) -> list[IssuedKey]:
        """Return the merchant's secret keys that are not revoked: the first ones, then those created since."""
        keys, created = self.keys, self.account.created_at
        first = [IssuedKey("key_default", "Default", keys.secret_key, created)]
        if self.sandbox is None and keys.test_key != keys.secret_key:
            first.append(IssuedKey("key_sandbox", "Sandbox", keys.test_key, created))
        return [each for each in (*first, *keys.secret_key_records) if each.key not in keys.revoked_keys]

    def is_secret_key(self, key: str) -> bool:
        return any(each.key == key for each in self.secret_keys())

    def key_values(self) -> Iterable[str]:
        """Return every key of this merchant and its sandbox: what must appear in no log."""
        return [*self.keys.values(), *(self.sandbox.key_values() if self.sandbox else ())]

    def of_key(self, key: str | None) -> World:
        """Return the world that ``key`` belongs to: this one, or the sandbox."""
        if self.sandbox is None or self.behaviour.environment == "live":
            return self
        test = self.behaviour.environment == "test" or key in set(self.sandbox.key_values())
        return self.sandbox if test else self
