"""The tables of the ledger, as SQLAlchemy Core objects, and the numbered migrations that create them.

A migration is frozen: a later change of a table is a migration of its own. ``tests/test_ledger_schema.py`` compares the tables
below with what the migrations create.

What the columns hold is in ``columns.py``, which needs no SQLAlchemy.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, SmallInteger, Table, Text, text

from proxy.ledger.columns import (
    ROLLUP_KEY,
    ROLLUP_SUMS,
    TOKENS,
    VERSION,
    NewerSchemaError,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

metadata = MetaData()

names = Table(
    "names",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("used_us", BigInteger, nullable=False, server_default="0"),
)
"""``used_us`` is the time of the last use, right within a day and a half."""

requests = Table(
    "requests",
    metadata,
    Column("seq", BigInteger, primary_key=True),
    Column("id", LargeBinary, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("first_byte_us", BigInteger),
    Column("duration_us", BigInteger),
    Column("project", Integer, nullable=False),
    Column("provider", Integer),
    Column("asked", Integer),
    Column("served", Integer),
    Column("dialect", Integer),
    Column("endpoint", Integer),
    Column("streamed", SmallInteger),
    Column("outcome", Integer),
    Column("status", SmallInteger),
    Column("error", Integer),
    Column("bytes_in", BigInteger),
    Column("bytes_out", BigInteger),
    Column("tool", Integer),
    Column("session", Integer),
    Column("agent", Integer),
    Column("tags", Integer),
    Column("usage_names", Integer),
    Column("usage_numbers", Text),
    *(Column(name, BigInteger) for name in TOKENS),
    Column("state", SmallInteger, nullable=False),
    Column("daemon", Integer),
)
"""``first_byte_us`` and ``duration_us`` count from ``received_us``. ``outcome`` of an interrupted request is ``interrupted``."""

attempts = Table(
    "attempts",
    metadata,
    Column("request", BigInteger, primary_key=True),
    Column("number", SmallInteger, primary_key=True),
    Column("provider", Integer),
    Column("model", Integer),
    Column("started_us", BigInteger, nullable=False),
    Column("duration_us", BigInteger),
    Column("status", SmallInteger),
    Column("ended", Integer),
    Column("sent", SmallInteger),
    Column("lava_id", Text),
    Column("response_id", Text),
    Column("estimated", BigInteger),
    Column("prices", Integer),
    Column("billed", BigInteger),
    Column("bill", SmallInteger),
)
"""``ended`` is why there was no response head (a name of kind ``ERROR``), ``NULL`` if there was one. ``started_us`` is absolute."""

rollups = Table(
    "rollups",
    metadata,
    *(Column(name, Integer, primary_key=True) for name in ROLLUP_KEY),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in ROLLUP_SUMS),
    Column("first_byte", LargeBinary),
)
"""Sums per hour since the epoch. A missing name is 0 in the key. ``pending`` and ``estimated`` are estimates in billionths of a
dollar: of requests that the biller has not decided, and of those that it is not asked about. ``first_byte`` is a histogram
(``proxy/ledger/histogram.py``)."""

outbox = Table(
    "outbox",
    metadata,
    Column("seq", BigInteger, primary_key=True),
    Column("id", LargeBinary, nullable=False),
    Column("project", Integer, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("body", Text),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_us", BigInteger, nullable=False, server_default="0"),
    Column("problem", Text),
)

reconciliation = Table(
    "reconciliation",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Per scope (a Lava account's host and the last characters of its key): the newest record seen, daily checksums, phantoms."""

prices = Table(
    "prices",
    metadata,
    Column("provider", Integer, primary_key=True),
    Column("model", Integer, primary_key=True),
    Column("token_class", Text, primary_key=True),
    Column("nano", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("learned_us", BigInteger, nullable=False),
)
"""Learned from billed requests: billionths of a dollar per million tokens of a class."""

stops = Table(
    "stops",
    metadata,
    Column("project", Text, primary_key=True),
    Column("tool", Text, primary_key=True),
    Column("session", Text, primary_key=True),
    Column("stopped_us", BigInteger, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("daemon", Integer),
    Column("at_us", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("nano", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
)
"""Estimates that count against a budget, by request id: of requests in flight, where several daemons share the database (until
``expires_us`` by its clock, which their daemon extends), and without end of requests whose usage never became known."""

meta = Table("meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
"""``schema``: the version; ``created``: when this ledger was begun; leases (``leases.py``)."""


class Retention(NamedTuple):
    """How long the rows of a table are kept. ``seconds_setting`` names the setting, ``until`` the event."""

    rule: str


RETENTION: Final = {
    "requests": Retention("ledger.keep"),
    "attempts": Retention("ledger.keep, with their request"),
    "rollups": Retention("forever"),
    "names": Retention("ledger.keep after their last use; those of rollups forever"),
    "outbox": Retention("until acknowledged; dead letters until deleted by hand"),
    "reconciliation": Retention("forever: a few rows per account and day"),
    "prices": Retention("forever: one row per model and token class"),
    "stops": Retention("until resumed"),
    "holds": Retention(
        "until settled, or their lease ends; estimates that stay: 32 days, as long as any budget's period"
    ),
    "meta": Retention("forever"),
}

_FIRST: Final = (
    "CREATE TABLE names (id {serial}, kind SMALLINT NOT NULL, text TEXT NOT NULL, used_us BIGINT NOT NULL DEFAULT 0)",
    "CREATE UNIQUE INDEX names_text ON names (kind, text)",
    "CREATE TABLE requests (seq {bigserial}, id {blob} NOT NULL, received_us BIGINT NOT NULL, first_byte_us BIGINT, "
    "duration_us BIGINT, project INTEGER NOT NULL, provider INTEGER, asked INTEGER, served INTEGER, dialect INTEGER, "
    "endpoint INTEGER, streamed SMALLINT, outcome INTEGER, status SMALLINT, error INTEGER, bytes_in BIGINT, "
    "bytes_out BIGINT, tool INTEGER, session INTEGER, agent INTEGER, tags INTEGER, usage_names INTEGER, "
    "usage_numbers TEXT, input BIGINT, cache_read BIGINT, cache_write_5m BIGINT, cache_write_1h BIGINT, output BIGINT, "
    "reasoning BIGINT, audio_in BIGINT, audio_out BIGINT, images BIGINT, characters BIGINT, state SMALLINT NOT NULL, "
    "daemon INTEGER)",
    "CREATE UNIQUE INDEX requests_id ON requests (id)",
    "CREATE INDEX requests_received ON requests (received_us)",
    "CREATE INDEX requests_session ON requests (session) WHERE session IS NOT NULL",
    "CREATE INDEX requests_open ON requests (state) WHERE state = 0",
    "CREATE TABLE attempts (request BIGINT NOT NULL, number SMALLINT NOT NULL, provider INTEGER, model INTEGER, "
    "started_us BIGINT NOT NULL, duration_us BIGINT, status SMALLINT, ended INTEGER, sent SMALLINT, lava_id TEXT, "
    "response_id TEXT, estimated BIGINT, prices INTEGER, billed BIGINT, bill SMALLINT, "
    "PRIMARY KEY (request, number)){without_rowid}",
    "CREATE INDEX attempts_lava ON attempts (lava_id) WHERE lava_id IS NOT NULL",
    "CREATE INDEX attempts_pending ON attempts (request) WHERE bill = 1",
    "CREATE TABLE rollups (hour INTEGER NOT NULL, project INTEGER NOT NULL, provider INTEGER NOT NULL, "
    "model INTEGER NOT NULL, tool INTEGER NOT NULL, outcome INTEGER NOT NULL, {sums}, first_byte {blob}, "
    "PRIMARY KEY (hour, project, provider, model, tool, outcome)){without_rowid}",
    "CREATE TABLE outbox (seq {bigserial}, id {blob} NOT NULL, project INTEGER NOT NULL, created_us BIGINT NOT NULL, "
    "state SMALLINT NOT NULL, body TEXT, attempts INTEGER NOT NULL DEFAULT 0, next_us BIGINT NOT NULL DEFAULT 0, "
    "problem TEXT)",
    "CREATE UNIQUE INDEX outbox_id ON outbox (id)",
    "CREATE INDEX outbox_ready ON outbox (project, seq) WHERE state = 1",
    "CREATE TABLE reconciliation (scope TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, "
    "PRIMARY KEY (scope, name)){without_rowid}",
    "CREATE TABLE prices (provider INTEGER NOT NULL, model INTEGER NOT NULL, token_class TEXT NOT NULL, "
    "nano BIGINT NOT NULL, rows INTEGER NOT NULL, learned_us BIGINT NOT NULL, "
    "PRIMARY KEY (provider, model, token_class)){without_rowid}",
    "CREATE TABLE stops (project TEXT NOT NULL, tool TEXT NOT NULL, session TEXT NOT NULL, stopped_us BIGINT NOT NULL, "
    "PRIMARY KEY (project, tool, session)){without_rowid}",
    "CREATE TABLE holds (id {blob} NOT NULL PRIMARY KEY, project INTEGER NOT NULL, daemon INTEGER NOT NULL, "
    "requests BIGINT NOT NULL, tokens BIGINT NOT NULL, nano BIGINT NOT NULL, expires_us BIGINT NOT NULL)",
)

_SECOND: Final = (
    "DROP TABLE holds",  # never written before
    "CREATE TABLE holds (id {blob} NOT NULL PRIMARY KEY, project INTEGER NOT NULL, daemon INTEGER, "
    "at_us BIGINT NOT NULL, requests BIGINT NOT NULL, tokens BIGINT NOT NULL, nano BIGINT NOT NULL, expires_us BIGINT){without_rowid}",
    "CREATE INDEX holds_project ON holds (project, at_us)",
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_FIRST, _SECOND)
"""By version, the first is version 1; ``columns.VERSION`` is the last."""

_SQLITE: Final = {
    "serial": "INTEGER PRIMARY KEY",
    "bigserial": "INTEGER PRIMARY KEY",
    "blob": "BLOB",
    "without_rowid": " WITHOUT ROWID",
}
_POSTGRES: Final = {
    "serial": "INTEGER GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    "bigserial": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    "blob": "BYTEA",
    "without_rowid": "",
}
_SUMS: Final = ", ".join(f"{name} BIGINT NOT NULL DEFAULT 0" for name in ROLLUP_SUMS)


def version_of(connection: Connection) -> int:
    """Return the schema's version; 0 for an empty database."""
    found = connection.execute(text("SELECT value FROM meta WHERE name = 'schema'")).scalar_one_or_none()
    return int(found) if found is not None else 0


def migrate(connection: Connection) -> int:
    """Bring the schema to ``VERSION`` inside the caller's transaction. Return the version that was found.

    Raises ``NewerSchemaError``: nothing is ever downgraded.
    """
    words = _SQLITE if connection.dialect.name == "sqlite" else _POSTGRES
    without_rowid = words["without_rowid"]
    connection.execute(
        text(f"CREATE TABLE IF NOT EXISTS meta (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL){without_rowid}")
    )
    found = version_of(connection)
    if found > VERSION:
        raise NewerSchemaError(found)
    for statements in MIGRATIONS[found:]:
        for statement in statements:
            connection.execute(text(statement.format(**words, sums=_SUMS)))
    if not found:
        connection.execute(
            text("INSERT INTO meta (name, value) VALUES ('created', :now)"), {"now": str(int(time() * 1e6))}
        )
    if found < VERSION:
        connection.execute(text("DELETE FROM meta WHERE name = 'schema'"))
        connection.execute(
            text("INSERT INTO meta (name, value) VALUES ('schema', :version)"), {"version": str(VERSION)}
        )
    return found
