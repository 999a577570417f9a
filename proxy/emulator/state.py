"""The emulator's whole state: one merchant, its customers' connections, meters, keys, money, and what was
received.

Everything lives in one ``World`` that is made by whoever starts an emulator and handed down by argument, so
that a test can run several side by side. Money is ``Decimal`` US dollars, as Lava's own amounts are decimal
strings.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from proxy.emulator.records import (
    Bundle,
    Delivery,
    Entry,
    IssuedKey,
    LoginCode,
    StoredCheckoutSession,
    StoredConnection,
    StoredMeters,
    StoredPlan,
    StoredSpendKey,
    StoredSubscription,
    StoredWebhook,
    new_id,
)
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from proxy.emulator.exchange import EmulatedReply
    from proxy.emulator.google_files import Upload

__all__ = ["ReceivedRequest", "StoredConnection", "StoredFile", "StoredSpendKey", "World"]


@dataclass(slots=True)
class StoredFile:
    """A file uploaded through OpenAI's files endpoint."""

    file_id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int


@dataclass(slots=True)
class ReceivedRequest:
    """One request as it arrived, and how its answer went.

    ``target`` is the raw request target and ``headers`` the raw pairs with the spelling and order of the
    wire. ``url`` is the provider address that was asked for (forward and rewrite only). ``credential`` is the
    value Lava would read and ``credential_place`` where it stood; ``token`` is the decoded JSON when it is a
    forward token. ``sent`` holds the bytes of the answer's body as they were handed to the connection.
    ``cancelled`` means that the client went away before the answer was complete, ``finished`` that the whole
    answer was sent; a connection cut by a fault is neither.
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
        """The first value of a header, by name in any case; ``None`` when it did not come."""
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: str) -> list[str]:
        """Every value of a header in the order of the wire: a proxy that doubles a header shows here."""
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


@dataclass(eq=False, repr=False)
class World:
    """One merchant at Lava. Attributes may be changed while an emulator runs: the next request sees the
    change.

    ``changes`` grows with whatever may have changed something. ``keep`` bounds ``received``, ``ledger`` and ``deliveries`` (the oldest go first). ``pace`` is the pause between two
    events of a stream, in seconds. ``extra_hosts`` are targets that Lava would know beside the providers of the table.

    Of the account API: ``sandbox`` is the world that test keys see (``None``: both kinds of key see this one).
    ``environment`` is the one that is served here, so that keys of the other are unknown, as at Lava's own two addresses
    (``None``: this one address serves both).
    ``generation`` is the SDK generation whose names, shapes and key rules hold (``None``: all at once, as a service must
    that old clients still call). ``rest_limit`` is the number of account calls per key and minute (``None``: no limit).
    ``account_faults`` are names of the fault table, each spoiling one account call, in order. ``null_cursor`` ends a list
    with ``"next_cursor": null`` instead of leaving it out. ``webhook_scheme`` is the era of the webhooks' signature.
    """

    secret_key: str
    test_key: str
    wallet_balance: Decimal
    connections: dict[str, StoredConnection] = field(default_factory=dict)
    meters: StoredMeters = field(default_factory=StoredMeters)
    spend_key_records: list[StoredSpendKey] = field(default_factory=list)
    revoked_keys: set[str] = field(default_factory=set)
    rejected_provider_keys: set[str] = field(default_factory=set)
    unfunded_provider_keys: set[str] = field(default_factory=set)
    extra_hosts: set[str] = field(default_factory=lambda: {"api.example.com"})
    files: dict[str, StoredFile] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    message_batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    google_files: dict[str, dict[str, Any]] = field(default_factory=dict)
    google_caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    received: list[ReceivedRequest] = field(default_factory=list)
    wallet_id: str = "wal_demo"
    born: float = 0.0
    numbers: int = 0
    keep: int = 10_000
    pace: float = 0.0
    max_body_bytes: int = 128 * 1024 * 1024
    # The account ---
    merchant_id: str = "mer_demo"
    account_id: str = "acc_demo"
    sandbox: World | None = None
    environment: Literal["live", "test"] | None = None
    generation: Literal[8, 9, 10, 11] | None = None
    clock: Callable[[], float] = time.time
    rest_limit: int | None = 1000
    account_faults: list[str] = field(default_factory=list)
    null_cursor: bool = False
    webhook_scheme: Literal["current", "2025", "flex"] = "current"
    plans: dict[str, StoredPlan] = field(default_factory=dict)
    subscriptions: dict[str, StoredSubscription] = field(default_factory=dict)
    checkouts: dict[str, StoredCheckoutSession] = field(default_factory=dict)
    webhooks: dict[str, StoredWebhook] = field(default_factory=dict)
    secret_key_records: list[IssuedKey] = field(default_factory=list)
    wallet_key_records: list[IssuedKey] = field(default_factory=list)
    fallbacks: list[dict[str, Any]] | None = None
    ledger: list[Entry] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    login_codes: dict[str, LoginCode] = field(default_factory=dict)
    rest_windows: dict[str, tuple[float, int]] = field(default_factory=dict)
    answered: dict[tuple[str, str], tuple[str, EmulatedReply]] = field(default_factory=dict)
    mail: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self.changes = 0
        self.born = self.born or self.clock()
        if not isinstance(self.meters, StoredMeters):
            found = self.meters
            self.meters = StoredMeters(found) if isinstance(found, dict) else StoredMeters.of(found, self.born)

    @classmethod
    def demo(cls, *, secret_key: str | None = None, test_key: str | None = None) -> World:
        """A small merchant with one of everything, and the same merchant's sandbox. Keys are new each time unless given."""
        live = cls._merchant(secret_key or _fresh("aks_live_"), test_key or _fresh("aks_test_"), "wal_demo")
        live.share_with(cls._merchant(live.test_key, live.test_key, "wal_sandbox"))
        return live

    def share_with(self, sandbox: World) -> None:
        """Take ``sandbox`` as one's own; a merchant has one set of these, whichever key calls."""
        self.sandbox = sandbox
        sandbox.revoked_keys = self.revoked_keys
        sandbox.rejected_provider_keys = self.rejected_provider_keys
        sandbox.unfunded_provider_keys = self.unfunded_provider_keys
        sandbox.extra_hosts = self.extra_hosts

    @classmethod
    def _merchant(cls, secret_key: str, test_key: str, wallet_id: str) -> World:
        now = time.time()
        demo = StoredConnection(
            "conn_demo", Decimal("5.00"), "user-1", "+15550100", "ada@example.com", "Ada", "Demo", None, now
        )
        empty = StoredConnection(
            "conn_empty", Decimal("0.00"), "user-2", "", "nobody@example.com", "No", "Money", None, now
        )
        pro = StoredPlan("plan_pro", "Pro", Decimal("20.00"), now, included_credit=Decimal("20.00"))
        pro.bundles.append(Bundle("bundle_extra", "Extra 10", Decimal("10.00"), Decimal("10.00"), now))
        free = StoredPlan("plan_free", "Free", Decimal("0.00"), now, included_credit=Decimal("1.00"))
        return cls(
            secret_key=secret_key,
            test_key=test_key,
            wallet_balance=Decimal("20.00"),
            connections={each.connection_id: each for each in (demo, empty)},
            meters=StoredMeters.of(("demo-chat", "website-chat", "internal"), now),
            spend_key_records=[
                StoredSpendKey("openai", _fresh("lava_sk_"), "openai", created_at=now),
                StoredSpendKey("anthropic", _fresh("lava_sk_"), "anthropic", created_at=now),
                StoredSpendKey(
                    "exhausted", _fresh("lava_sk_"), "openai", Decimal("1.00"), Decimal("1.00"), created_at=now
                ),
            ],
            rejected_provider_keys={_fresh("provider-rejected-")},
            unfunded_provider_keys={_fresh("provider-unfunded-")},
            wallet_id=wallet_id,
            plans={plan.plan_id: plan for plan in (free, pro)},
            wallet_key_records=[IssuedKey(new_id("wk_"), "Default", _fresh("lava_wk_"), now)],
        )

    # Keys ---

    @property
    def spend_keys(self) -> dict[str, str]:
        """The key values of the spend keys, by name."""
        return {record.name: record.key for record in self.spend_key_records}

    def spend_key(self, key: str) -> StoredSpendKey | None:
        """The record of a spend key value, unless there is none or it was revoked."""
        if key in self.revoked_keys:
            return None
        return next((record for record in self.spend_key_records if record.key == key), None)

    def wallet_key(self, key: str) -> IssuedKey | None:
        """The record of a wallet key value, unless there is none or it was revoked."""
        if key in self.revoked_keys:
            return None
        return next((record for record in self.wallet_key_records if record.key == key), None)

    def secret_keys(self) -> list[IssuedKey]:
        """The merchant's own keys that are still good: the first ones of this world, then those made since."""
        first = [IssuedKey("key_default", "Default", self.secret_key, self.born)]
        if self.sandbox is None and self.test_key != self.secret_key:
            first.append(IssuedKey("key_sandbox", "Sandbox", self.test_key, self.born))
        return [each for each in (*first, *self.secret_key_records) if each.key not in self.revoked_keys]

    def is_secret_key(self, key: str) -> bool:
        """Whether ``key`` is one of the merchant's own keys, production or sandbox, and still good."""
        return any(each.key == key for each in self.secret_keys())

    def key_values(self) -> Iterable[str]:
        """Every key of this merchant: what must appear in nobody's log."""
        issued = (*self.secret_key_records, *self.wallet_key_records)
        found = [self.secret_key, self.test_key, *self.spend_keys.values(), *(each.key for each in issued)]
        return found if self.sandbox is None else [*found, *self.sandbox.key_values()]

    def of_key(self, key: str | None) -> World:
        """The world that the bearer of ``key`` sees: this one, or the sandbox."""
        if self.sandbox is None or self.environment == "live":
            return self
        return self.sandbox if self.environment == "test" or key in set(self.sandbox.key_values()) else self

    def hosts(self) -> set[str]:
        """Host names a target may have: the provider table's and ``extra_hosts``."""
        # A provider's base address has the form https://host/path.
        return {provider.base_url.split("/")[2] for provider in BUILTIN.values()} | self.extra_hosts

    # The account ---

    def subscription_of(self, customer_id: str) -> StoredSubscription | None:
        """The customer's active subscription, its due cycles begun; ``None`` without one."""
        now = self.clock()
        for each in self.subscriptions.values():
            if each.customer_id == customer_id and each.active(now):
                each.renew(now)
                return each
        return None

    def write(self, entry: Entry) -> None:
        """Add a line to the ledger."""
        self.ledger.append(entry)
        del self.ledger[: -self.keep]

    def entry(self, request_id: str) -> Entry | None:
        """The line of the ledger with this id."""
        return next((entry for entry in reversed(self.ledger) if entry.request_id == request_id), None)

    # Requests ---

    def next_id(self, prefix: str) -> str:
        """A new identifier, numbered so that the same conversation gives the same identifiers."""
        with self._changed:
            self.numbers += 1
            self.changes += 1
            return f"{prefix}{self.numbers:08d}"

    def remember(self, method: str, target: str, headers: list[tuple[bytes, bytes]]) -> ReceivedRequest:
        """Begin the record of a request; it is in ``received`` before its body has come."""
        with self._changed:
            self.numbers += 1
            self.changes += 1
            received = ReceivedRequest(self.numbers, "req_" + secrets.token_hex(12), method, target, headers)
            self.received.append(received)
            del self.received[: -self.keep]
            self._changed.notify_all()
        return received

    def touch(self) -> None:
        """Wake everyone who waits in ``until``."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def until(self, condition: Callable[[], object], limit: float = 10.0) -> bool:
        """Wait, in another thread than the emulator's, until ``condition`` holds; ``False`` after ``limit``
        seconds.
        """
        deadline = time.monotonic() + limit
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                # Woken at every change of a record; the short wait covers conditions over anything else.
                self._changed.wait(min(left, 0.05))
        return True


def _fresh(prefix: str) -> str:
    return prefix + secrets.token_hex(12)
