"""Admission: the limits on active requests, and the refusal of new ones during a shutdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocol.errors import ProxyError

if TYPE_CHECKING:
    from proxy.gateway.active_request import ActiveRequest, Registry
    from proxy.gateway.stops import Stops


class Admission:
    """Grants permits. The registry counts a permit until its request is removed."""

    def __init__(self, registry: Registry, stops: Stops) -> None:
        self._registry = registry
        self._stops = stops

    async def permit(self, active: ActiveRequest, project: str) -> None:
        """Count ``active`` against the limits of ``project``.

        Raises ``ProxyError`` ``overloaded``, ``shutting_down`` or ``project_stopped``.
        """
        registry, config = self._registry, active.config
        active.record.project = project
        if registry.draining:
            raise shutting_down()
        if not self._stops.ready:
            await self._stops.load()
        if active.record.facts is not None:
            self._stops.check(project, active.record.facts)
        limit = config.max_concurrent_in_all
        if registry.total_permitted >= limit:
            raise _overloaded("This daemon has", limit, "[server]")
        limit = config.max_concurrent[project]
        if registry.permitted.get(project, 0) >= limit:
            raise _overloaded(f'Project "{project}" has', limit, f"[projects.{project}]")
        registry.permit(active, project)


def shutting_down() -> ProxyError:
    """Return the error for a request that arrives or still waits while the daemon shuts down."""
    return ProxyError(
        "shutting_down",
        "This daemon is shutting down.",
        "Try again in a moment.",
        headers=[(b"retry-after", b"1"), (b"connection", b"close")],
    )


def _overloaded(subject: str, limit: int, table: str) -> ProxyError:
    return ProxyError(
        "overloaded",
        f"{subject} as many requests in flight as max_concurrent under {table} allows ({limit}).",
        f"Try again in a moment, or raise max_concurrent under {table}.",
        headers=[(b"retry-after", b"1")],
    )
