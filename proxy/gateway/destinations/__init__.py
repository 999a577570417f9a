"""The only interface between the gateway and a destination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy.gateway.routing import Target
    from proxy.gateway.template import Prepared, Template
    from proxy.protocol.errors import ProxyError
    from proxy.protocol.headers import Pairs


class Destination(Protocol):
    """One kind of upstream, with its addresses, credentials and error shapes."""

    @property
    def name(self) -> str:
        """The name in messages: "Lava"."""

    @property
    def address_setting(self) -> str:
        """The setting with its address, for hints."""

    def prepare(self, template: Template, route: Target, *, decoded: bool = False) -> Prepared:
        """Return the request for ``route``; ``decoded``: the body is sent without its content encoding.

        Raises ``ProxyError`` if there is no credential, or if a header of the client cannot be sent.
        """

    def classify(
        self, prepared: Prepared, status: int, headers: Pairs, body: bytes, request_id: str | None
    ) -> ProxyError | None:
        """Return the client's error for an error response, or ``None`` if it is relayed unchanged.

        ``request_id`` is the destination's.
        """

    def succeeded(self, project: str) -> None:
        """Forget what was found out about earlier errors of ``project``, because a request of it succeeded."""

    async def explain(self, fault: ProxyError, project: str, provider: str | None) -> None:
        """Add what the destination itself reports about the cause of ``fault``. It may wait, but not for long."""
