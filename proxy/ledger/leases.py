"""Which daemons live, on a database that several share: each renews a row of ``meta``, by the database's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

LEASE_SECONDS: Final = 30
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
