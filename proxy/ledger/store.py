"""The database as the writer's thread uses it: one connection, one transaction per batch.

A transaction whose commit failed may have been committed. So a batch that is written again first asks which of its requests
are there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from threading import Thread
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy import bindparam, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from proxy.config.settings import seconds_of
from proxy.ledger import opening, price_store, prune, rollups
from proxy.ledger.bulk import BulkInsert
from proxy.ledger.columns import Kind, NewerSchemaError, State
from proxy.ledger.in_flight import Opened
from proxy.ledger.interrupted import mark_interrupted, subtract
from proxy.ledger.learning import CHANGED_ROWS, Learning
from proxy.ledger.leases import LEASE_SECONDS, renew
from proxy.ledger.names import Names
from proxy.ledger.rows import (
    ATTEMPT_NAMES,
    ATTEMPT_OWN,
    ATTEMPT_SHARED,
    OWN_COLUMNS,
    SHARED_COLUMNS,
    SHARED_NAMES,
    Batch,
    id_bytes,
)
from proxy.ledger.schema import requests
from proxy.protocol.clients import hashed
from proxy.protocol.threads import signals_left_to_main
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from proxy.config.settings import LedgerSettings
    from proxy.ledger.bills import NewBill
    from proxy.ledger.pricing import Prices
    from proxy.ledger.rows import Texts
    from proxy.protocol.record import Record

T = TypeVar("T")

RECORDS_AT_ONCE: Final = 16
"""Records that are made into rows before the event loop gets the interpreter."""
LOOK_SECONDS: Final = 1.0
"""How often the file is compared with the one at its path."""
PRUNE_SECONDS: Final = 60.0
PRUNE_PAUSE_SECONDS: Final = 0.1
"""Between two steps of a pruning that is not done."""

_FIND: Final = select(requests.c.id, requests.c.seq, requests.c.state).where(
    requests.c.id.in_(bindparam("ids", expanding=True))
)
_FORGET: Final = tuple(
    text(f"DELETE FROM {table} WHERE {column} IN :seqs").bindparams(bindparam("seqs", expanding=True))  # noqa: S608
    for table, column in (("attempts", "request"), ("requests", "seq"))
)
_LAST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM requests"
_NEXT_SEQS: Final = text(
    "SELECT nextval(pg_get_serial_sequence('requests', 'seq')) FROM generate_series(1, :count) ORDER BY 1"
)
_INTO_REQUESTS: Final = BulkInsert("requests", OWN_COLUMNS, SHARED_COLUMNS)
_INTO_ATTEMPTS: Final = BulkInsert("attempts", ATTEMPT_OWN, ATTEMPT_SHARED)


class Stored(NamedTuple):
    """A settled request of a batch, as the hooks of the batch get it."""

    seq: int
    record: Record
    received_us: int


class Store:
    """Opens and writes the database. All methods but ``__init__`` are called in the writer's thread, and raise its errors.

    ``breathe`` is called often during a batch, and lets other threads run.
    """

    def __init__(
        self,
        settings: LedgerSettings,
        daemon: str,
        warn: Callable[[str], object],
        hooks: list[Callable[[Connection, Sequence[Stored]], None]],
        mask: Callable[[str], str],
        prices: Prices,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self._breathe = breathe
        self._prices = prices
        self._learning: Learning | None = None
        self.names = Names(mask)
        self._mask = mask
        self._settings = settings
        self._keep_seconds = seconds_of(settings.keep)
        self._daemon_name = daemon
        self._daemon = 0
        self._warn = warn
        self._hooks = hooks
        self._path: Path | None = settings.file() if settings.url is None else None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._looked = self._leased = self._marked = 0.0
        self._prune_at = monotonic() + 1.0
        self._checked = False
        self._found_damage: str | None = None

    # opening

    def connection(self) -> Connection:
        """Return the connection; open the database first if it is not open."""
        if self._connection is None:
            self._open()
        if self._connection is None:
            raise RuntimeError("the ledger is not open")
        return self._connection

    def _open(self) -> None:
        path = self._path
        if path is not None:
            self._check(path)
        engine = self._engine = opening.sqlite_engine(path) if path is not None else self._postgres()
        connection = engine.connect()
        try:
            opening.migrate(connection)
            if path is not None:
                self._identity = _identity(path)
            self.names.forget()
            with connection.begin():
                self._daemon = self.names.number(connection, Kind.DAEMON, self._daemon_name)
                self._load_prices(connection)
                self._look_for_interrupted(connection)
        except BaseException:
            self.names.forget()
            _close(connection, engine)
            raise
        self._connection = connection
        self._looked = monotonic()

    def _postgres(self) -> Engine:
        if self._settings.url is None:
            raise RuntimeError("no database is configured")
        return opening.postgres_engine(self._settings.url.reveal())

    def _check(self, path: Path) -> None:
        """Set a damaged file aside. A large one is checked in a thread of its own, once."""
        if self._found_damage is not None:
            self._set_aside(path, self._found_damage)
            return
        if self._checked or not path.exists():
            return
        if path.stat().st_size > opening.MAX_CHECKED_AT_ONCE:
            self._checked = True
            with signals_left_to_main():
                Thread(target=self._check_beside, args=(path,), name="ledger-check", daemon=True).start()
            return
        try:
            opening.check(path)
        except opening.DamagedError as error:
            self._set_aside(path, str(error))
        self._checked = True

    def _check_beside(self, path: Path) -> None:
        try:
            opening.check(path)
        except opening.DamagedError as error:
            self._found_damage = str(error)
        except (OSError, sqlite3.Error) as error:
            self._warn(f"The ledger {path} could not be checked: {error}.")

    def _set_aside(self, path: Path, why: str) -> None:
        aside = opening.set_aside(path)
        self._found_damage = None
        self._warn(f"The ledger {path} is damaged ({why}). It is kept as {aside}, and a new one is begun.")

    def close(self) -> None:
        """Close the connection; the next use opens the database again and reads its state anew."""
        connection, engine = self._connection, self._engine
        self._connection = self._engine = None
        self.names.forget()
        if connection is not None and engine is not None:
            _close(connection, engine)

    def failed(self, error: BaseException) -> None:
        """Close after an error. A damaged file is set aside when the database is opened again."""
        self.close()
        if self._path is not None and opening.is_damage(error):
            origin = getattr(error, "orig", None) or error
            self._found_damage = str(origin)

    @staticmethod
    def is_fault_of_database(error: BaseException) -> bool:
        """Whether the database or its disk is at fault, not what was asked of it."""
        return isinstance(
            # sqlite3's own come from the check of the file before it is opened.
            error,
            (OSError, opening.DamagedError, sqlite3.Error, InterfaceError, OperationalError, NewerSchemaError),
        ) or (isinstance(error, DBAPIError) and (error.connection_invalidated or opening.is_damage(error)))

    @classmethod
    def is_fault_of_data(cls, error: BaseException) -> bool:
        """Whether the same batch would fail again and again."""
        return not cls.is_fault_of_database(error)

    # writing

    def write(self, batch: Sequence[Record | Opened], *, again: bool) -> int:
        """Write a batch in one transaction. Return the number of requests that were settled by it.

        ``again``: an attempt to write it has failed, and may have been committed.
        """
        self._look()
        connection = self.connection()
        if any(not isinstance(each, Opened) and each.attempts for each in batch):
            self._prices.load()  # before the transaction: it takes a tenth of a second the first time
        try:
            with connection.begin():
                return self._write(connection, batch, again)
        except BaseException:
            self.names.forget()
            raise

    def _write(self, connection: Connection, batch: Sequence[Record | Opened], again: bool) -> int:
        items = _states(batch)
        seqs: dict[bytes, int] = {}
        asked = [record for record, _ in items if again or record.stored]
        if asked:
            seqs, done = self._find(connection, asked)
            if done:
                items = [item for item in items if id_bytes(item[0].request_id) not in done]
        new = new_seqs(connection, len(items))
        rows = Batch(biller_asked=self._settings.reconcile, estimate=self._prices.estimate, mask=self._mask)
        stored: list[Stored] = []
        settled = 0
        for number, (record, state) in enumerate(items):
            seq = new[number]
            if seqs:
                seq = seqs.get(id_bytes(record.request_id), seq)
            received = rows.add(record, seq, state)
            if number % RECORDS_AT_ONCE == RECORDS_AT_ONCE - 1:
                self._breathe()
            if state is State.SETTLED:
                settled += 1
                if self._hooks:
                    stored.append(Stored(seq, record, received))
        self._insert(connection, rows)
        for hook in self._hooks:
            hook(connection, stored)
        return settled

    def _find(self, connection: Connection, records: list[Record]) -> tuple[dict[bytes, int], set[bytes]]:
        """Return the numbers of rows to be replaced, which are deleted, and the ids of those that are settled already."""
        found = connection.execute(_FIND, {"ids": [id_bytes(record.request_id) for record in records]}).all()
        done = {bytes(request_id) for request_id, _, state in found if state in (State.SETTLED, State.HEALED)}
        replaced = {bytes(request_id): seq for request_id, seq, _ in found if bytes(request_id) not in done}
        # Another daemon took this one for dead and counted its requests.
        early = [seq for _, seq, state in found if state == State.INTERRUPTED]
        if early:
            subtract(connection, early, self._settings.reconcile)
        if replaced:
            for statement in _FORGET:
                connection.execute(statement, {"seqs": list(replaced.values())})
        return replaced, done

    def _insert(self, connection: Connection, rows: Batch) -> None:
        plain = self._settings.sessions == "plain"

        def texts_of(texts: Texts) -> Texts:
            if plain or (texts[9] is None and texts[10] is None):
                return texts
            session, agent = (None if value is None else hashed(value) for value in texts[9:11])
            return (*texts[:9], session, agent, *texts[11:])

        named = [(texts_of(texts), numbers, cost, group) for (texts, numbers, cost), group in rows.requests.items()]
        wanted = {
            (kind, value)
            for texts, _, _, _ in named
            for (_, kind), value in zip(SHARED_NAMES, texts, strict=True)
            if value is not None
        }
        for texts, _ in rows.attempts:
            wanted |= {
                (kind, value) for (_, kind), value in zip(ATTEMPT_NAMES, texts, strict=True) if value is not None
            }
        self.names.learn(connection, wanted)

        def numbers_of(names: tuple[tuple[str, Kind], ...], texts: Texts) -> tuple[int | None, ...]:
            return tuple(
                None if value is None else self.names.number(connection, kind, value)
                for (_, kind), value in zip(names, texts, strict=True)
            )

        changes: rollups.Changes = {}
        for texts, numbers, cost, group in named:
            shared = (*numbers_of(SHARED_NAMES, texts), *map(_number, numbers), self._daemon)
            _INTO_REQUESTS.insert(connection, shared, group.rows, self._breathe)
            rollups.add_group(changes, shared, cost, group)
        for (texts, numbers), own in rows.attempts.items():
            shared = (*numbers_of(ATTEMPT_NAMES, texts), *map(_number, numbers))
            _INTO_ATTEMPTS.insert(connection, shared, own, self._breathe)
        rollups.apply(connection, changes)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, done in one transaction."""
        self._look()
        connection = self.connection()
        try:
            with connection.begin():
                return work(connection)
        except BaseException:
            self.names.forget()
            self._learning = None  # it may have seen bills that were not booked
            raise

    # prices

    def learn(self, connection: Connection, bills: Sequence[NewBill]) -> None:
        """Learn from bills, in the transaction of ``run`` that books them. Warn if a model's price has changed."""
        learning = self._learning or self._load_prices(connection)
        for call in price_store.named(connection, bills):
            change = learning.observe(*call)
            if change is not None:
                self._warn(
                    f"{self._mask(f'{change.provider}/{change.model}')}: its last {CHANGED_ROWS} bills are {abs(change.percent):.1f} % "
                    f"{'above' if change.percent > 0 else 'below'} the price that was learned. "
                    "If you did not expect that, ask the provider or Lava; estimates follow the new price."
                )
        price_store.store(
            connection,
            learning.changed(),
            lambda kind, name: self.names.number(connection, kind, name),
            int(time() * 1e6),
        )

    def _load_prices(self, connection: Connection) -> Learning:
        learning = self._learning = Learning(self._prices)
        price_store.load(connection, learning)
        return learning

    # upkeep

    def upkeep(self) -> float:
        """Do a step of what is due: the lease, the interrupted requests of dead daemons, pruning. Return the seconds to the next."""
        self._look()
        connection = self.connection()
        now = monotonic()
        pauses = [LOOK_SECONDS if self._path is not None else LEASE_SECONDS / 3]
        if self._path is None and now - self._leased >= LEASE_SECONDS / 3:
            with connection.begin():
                self._look_for_interrupted(connection)
        if now >= self._prune_at:
            self._prune_at = now + (PRUNE_PAUSE_SECONDS if self._prune(connection) else PRUNE_SECONDS)
        pauses.append(self._prune_at - now)
        return max(0.05, min(pauses))

    def _prune(self, connection: Connection) -> bool:
        """Do one step of pruning. Return whether there is more."""
        with connection.begin():
            if prune.requests_step(connection, self._keep_seconds) == prune.ROWS_PER_STEP:
                return True
        with connection.begin():
            prune.old_holds(connection)
            if prune.unused_names(connection, self._keep_seconds):
                self.names.forget()
        return prune.shrink_step(connection)

    def _look_for_interrupted(self, connection: Connection) -> None:
        """Mark the open requests of daemons that have ended: all others', of a file that one daemon has at a time."""
        if self._path is None:
            renew(connection, self._daemon_name)
            self._leased = monotonic()
        count = mark_interrupted(connection, self.names, self._daemon, biller_asked=self._settings.reconcile)
        if count:
            self._warn(
                f"{counted(count, 'request')} did not end before the daemon did: marked as interrupted in the ledger, cost unknown."
            )

    def _look(self) -> None:
        """Notice that the file at the path is another one, or that a check found damage: then open it again."""
        if self._path is None or self._connection is None:
            return
        if self._found_damage is not None:
            self.close()
        elif monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = monotonic()
            if _identity(self._path) != self._identity:
                self.close()
                self._checked = False
                self._warn(
                    f"The ledger {self._path} was removed or replaced while the daemon runs. A new one is begun."
                )


def new_seqs(connection: Connection, count: int) -> Sequence[int]:
    """Return numbers for new rows of ``requests``."""
    if connection.dialect.name == "sqlite":
        first = int(connection.exec_driver_sql(_LAST_SEQ).scalar_one()) + 1
        return range(first, first + count)
    return connection.execute(_NEXT_SEQS, {"count": count}).scalars().all()


def _states(batch: Sequence[Record | Opened]) -> list[tuple[Record, State]]:
    """Return each request of a batch once. One that was settled meanwhile comes as such later in the queue."""
    items: list[tuple[Record, State]] = []
    opened: dict[str, Record] = {}
    for item in batch:
        if not isinstance(item, Opened):
            items.append((item, State.SETTLED))
        elif item.record.outcome is None:
            opened[item.record.request_id] = item.record
    if opened:
        items += [(record, State.OPEN) for record in opened.values()]
    return items


def _number(value: int | None) -> int | None:
    # psycopg stores no boolean and no enumeration in a number's column.
    return None if value is None else int(value)


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _close(connection: Any, engine: Any) -> None:
    with contextlib.suppress(Exception):
        connection.close()
    with contextlib.suppress(Exception):
        engine.dispose()
