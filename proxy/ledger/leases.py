"""A database that several daemons share: which of them live, and which one does what only one should do.

Each renews a row of ``meta``, by the database's clock. Of what only one does (``Duty``), the first daemon that wants it holds an
advisory lock for as long as its connection lasts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Duty(IntEnum):
    """What only one daemon does. The values are the second numbers of the locks; the first is the proxy's default port."""

    DELIVER = 3
    RECONCILE = 4


LEASE_SECONDS: Final = 30
_LEAD: Final = text("SELECT pg_try_advisory_lock(5282, :duty)")
_PREFIX: Final = "daemon "
_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)"
_RENEW: Final = text(
    f"INSERT INTO meta (name, value) VALUES (:name, CAST({_NOW} + {LEASE_SECONDS} AS TEXT)) "  # noqa: S608
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_LIVING: Final = text(f"SELECT name FROM meta WHERE name LIKE '{_PREFIX}%' AND CAST(value AS BIGINT) > {_NOW}")  # noqa: S608
_DROP: Final = text(f"DELETE FROM meta WHERE name LIKE '{_PREFIX}%' AND CAST(value AS BIGINT) < {_NOW} - 86400")  # noqa: S608


def renew(connection: Connection, daemon: str) -> None:
    """Extend the lease of ``daemon``, and drop those that ended a day ago."""
    connection.execute(_RENEW, {"name": _PREFIX + daemon})
    connection.execute(_DROP)


def living(connection: Connection) -> list[str]:
    """Return the daemons whose lease has not ended."""
    return [name.removeprefix(_PREFIX) for name in connection.execute(_LIVING).scalars()]


def leads(connection: Connection, duty: Duty) -> bool:
    """Whether this connection's daemon has this duty: always, where the database is its own."""
    return connection.dialect.name != "postgresql" or bool(connection.execute(_LEAD, {"duty": int(duty)}).scalar_one())
