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

from proxy.providers import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Shape = Literal["openai", "anthropic"]


@dataclass(slots=True)
class Connection:
    """A customer with a wallet of their own; Lava's SDK calls it a connection up to 8.x and a customer from
    9.0.
    """

    connection_id: str
    balance: Decimal


@dataclass(slots=True)
class SpendKey:
    """A key for Lava's own endpoints, tied to one request shape; ``spend_limit`` of ``None`` means no cap."""

    name: str
    key: str
    shape: Shape
    spend_limit: Decimal | None = None
    spent: Decimal = Decimal(0)
    allowed_providers: frozenset[str] | None = None


@dataclass(slots=True)
class StoredFile:
    """A file uploaded through OpenAI's files endpoint."""

    file_id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int


@dataclass(slots=True)
class Received:
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

    ``keep`` bounds ``received`` (the oldest go first). ``pace`` is the pause between two events of a stream,
    in seconds. ``extra_hosts`` are targets that Lava would know beside the providers of the table.
    """

    secret_key: str
    test_key: str
    wallet_balance: Decimal
    connections: dict[str, Connection] = field(default_factory=dict)
    meters: set[str] = field(default_factory=set)
    spend_key_records: list[SpendKey] = field(default_factory=list)
    revoked_keys: set[str] = field(default_factory=set)
    rejected_provider_keys: set[str] = field(default_factory=set)
    unfunded_provider_keys: set[str] = field(default_factory=set)
    extra_hosts: set[str] = field(default_factory=lambda: {"api.example.com"})
    files: dict[str, StoredFile] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    wallet_id: str = "wal_demo"
    keep: int = 10_000
    pace: float = 0.0
    max_body_bytes: int = 128 * 1024 * 1024

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = 0

    @classmethod
    def demo(cls, *, secret_key: str | None = None, test_key: str | None = None) -> World:
        """A small merchant with one of everything. Keys are new each time unless given."""

        def fresh(prefix: str) -> str:
            return prefix + secrets.token_hex(12)

        return cls(
            secret_key=secret_key or fresh("aks_live_"),
            test_key=test_key or fresh("aks_test_"),
            wallet_balance=Decimal("20.00"),
            connections={
                "conn_demo": Connection("conn_demo", Decimal("5.00")),
                "conn_empty": Connection("conn_empty", Decimal("0.00")),
            },
            meters={"demo-chat", "website-chat", "internal"},
            spend_key_records=[
                SpendKey("openai", fresh("lava_sk_"), "openai"),
                SpendKey("anthropic", fresh("lava_sk_"), "anthropic"),
                SpendKey("exhausted", fresh("lava_sk_"), "openai", Decimal("1.00"), Decimal("1.00")),
            ],
            rejected_provider_keys={fresh("provider-rejected-")},
            unfunded_provider_keys={fresh("provider-unfunded-")},
        )

    @property
    def spend_keys(self) -> dict[str, str]:
        """The key values of the spend keys, by name."""
        return {record.name: record.key for record in self.spend_key_records}

    def spend_key(self, key: str) -> SpendKey | None:
        """The record of a spend key value, unless there is none or it was revoked."""
        if key in self.revoked_keys:
            return None
        return next((record for record in self.spend_key_records if record.key == key), None)

    def is_secret_key(self, key: str) -> bool:
        """Whether ``key`` is one of the merchant's own keys, production or sandbox, and still good."""
        return key in (self.secret_key, self.test_key) and key not in self.revoked_keys

    def key_values(self) -> Iterable[str]:
        """Every key of this merchant: what must appear in nobody's log."""
        return [self.secret_key, self.test_key, *self.spend_keys.values()]

    def hosts(self) -> set[str]:
        """Host names a target may have: the provider table's and ``extra_hosts``."""
        # A provider's base address has the form https://host/path.
        return {provider.base_url.split("/")[2] for provider in BUILTIN.values()} | self.extra_hosts

    # Requests ---

    def next_id(self, prefix: str) -> str:
        """A new identifier, numbered so that the same conversation gives the same identifiers."""
        with self._changed:
            self._numbers += 1
            return f"{prefix}{self._numbers:08d}"

    def remember(self, method: str, target: str, headers: list[tuple[bytes, bytes]]) -> Received:
        """Begin the record of a request; it is in ``received`` before its body has come."""
        with self._changed:
            self._numbers += 1
            received = Received(self._numbers, "req_" + secrets.token_hex(12), method, target, headers)
            self.received.append(received)
            del self.received[: -self.keep]
            self._changed.notify_all()
        return received

    def touch(self) -> None:
        """Wake everyone who waits in ``until``."""
        with self._changed:
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
