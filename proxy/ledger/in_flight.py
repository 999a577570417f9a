"""A request in flight, as it waits in the writer's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxy.protocol.record import Record


class Opened(NamedTuple):
    """A request that is still in flight."""

    record: Record
