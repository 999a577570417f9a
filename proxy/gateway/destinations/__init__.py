"""The only interface between the gateway and a destination."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.gateway.routing import Target
    from proxy.gateway.template import Prepared, Template
    from proxy.protocol.errors import Payment, ProxyError
    from proxy.protocol.headers import Pairs
    from proxy.protocol.redaction import Secret
    from proxy.upstream import UpstreamRequest


class ModelsQuery(NamedTuple):
    """The request for a destination's list of models, with the key in it, if any."""

    outgoing: UpstreamRequest
    secret: Secret | None
    payment: Payment


class Destination(Protocol):
    """One kind of upstream, with its addresses, credentials and error shapes."""

    @property
    def name(self) -> str:
        """The name in messages: "Lava"."""

    @property
    def provider(self) -> str:
        """The provider in the record of a request that the destination itself answers: "lava"."""

    @property
    def address_setting(self) -> str:
        """The setting with its address, for hints."""

    @property
    def docs(self) -> str:
        """The address of its documentation."""

    def unusable(self, projects: Iterable[str]) -> str | None:
        """Return why requests of none of these projects can be served; ``None`` if those of one can."""

    def prepare(
        self, template: Template, route: Target, *, decoded: bool = False, hides_usage: bool = False
    ) -> Prepared:
        """Return the request for ``route``.

        ``decoded``: the body is sent without its content encoding. ``hides_usage``: an event may have to be removed from the
        response, which must therefore not be compressed.

        Raises ``ProxyError`` if there is no credential, or if a header of the client cannot be sent.
        """

    def models_query(self, project: str) -> ModelsQuery:
        """Return the request for the list of models, with the project's own key."""

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
