"""Cached results for requests with the same head.

A tool sends the same head again and again. ``Template`` holds the results of access checks and routing for a head; the HTTP
server side stores it with the head (``framing.HeadMemory``). ``Prepared`` is the upstream request for one model of a template, ready
to be written. Both are valid for one configuration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from proxy.gateway.access import Caller
from proxy.gateway.routing import Endpoint, EndpointKind
from proxy.protocol import body as bodies
from proxy.protocol.bounded import BoundedDict
from proxy.protocol.dialects import Dialect
from proxy.protocol.redaction import Unshown

if TYPE_CHECKING:
    from proxy.gateway.active_config import ActiveConfig
    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.destinations import Destination
    from proxy.gateway.gateway import Gateway
    from proxy.gateway.routing import Target
    from proxy.lava.tokens import Credential
    from proxy.protocol.headers import Pairs, RequestHeaders
    from proxy.protocol.record import RequestFacts
    from proxy.upstream import UpstreamRequest

Page = Callable[["Gateway", "ActiveRequest", "Template"], Awaitable[bool]]
"""Answers a request without an upstream. Returns False if it does not answer; the request is then forwarded."""
NOWHERE: Final = Endpoint(EndpointKind.INFO, Dialect.OPENAI)
"""The endpoint of a request that is answered before it is routed."""

PREPARED_BYTES: Final = 32 * 1024
"""Limit for the prepared requests of one template: about ten, two for each model that a client alternates between."""


PreparedKey = str | bytes | tuple[str | None] | None
"""The body's model; its raw JSON string, if nothing in the body is replaced; in a tuple, if usage is hidden from the client."""


class Prepared(Unshown):
    """One request to a destination, complete except for its body.

    ``response_headers`` are added to every response. ``reusable``: a later request may use it. It is false if it holds the
    tool's own key, which must not be stored.
    """

    __slots__ = ("credential", "destination", "outgoing", "report_usage", "response_headers", "reusable", "route")

    def __init__(
        self,
        route: Target,
        destination: Destination,
        credential: Credential,
        outgoing: UpstreamRequest,
        response_headers: Pairs,
    ) -> None:
        self.route = route
        self.destination = destination
        self.credential = credential
        self.outgoing = outgoing
        self.response_headers = response_headers
        self.report_usage = False
        """Whether Lava does not see this request, and its usage is reported afterwards (``dispatch.Intents``)."""
        self.reusable = not credential.payment.byok_from_client

    @property
    def size(self) -> int:
        """Approximate size in bytes, including its serialized form."""
        headers = sum(len(name) + len(value) + 4 for name, value in self.outgoing.headers)
        return 512 + 2 * (len(self.outgoing.target) + headers)


class Template(Unshown):
    """What holds for every request with this head. ``admit`` fills it step by step."""

    __slots__ = (
        "caller",
        "config",
        "dialect",
        "endpoint",
        "facts",
        "limited",
        "method",
        "origin",
        "page",
        "path",
        "plain_json",
        "prepared",
        "project",
        "query",
        "reads_body",
        "received",
        "shown_path",
        "usage_option",
    )

    def __init__(self, config: ActiveConfig, method: str, path: bytes, query: bytes, received: RequestHeaders) -> None:
        self.config = config
        self.method = method
        self.path = path
        self.shown_path = path.decode("ascii", "replace")
        self.query = query
        self.received = received
        self.origin: bytes | None = None
        """The listed browser origin that may read the response."""
        self.caller = Caller()
        self.endpoint = NOWHERE
        self.dialect = Dialect.OPENAI
        self.project = ""
        self.reads_body = False
        """Whether the body is collected and searched, for ``model`` or for what asks a stream for its usage."""
        self.usage_option = False
        """Whether streams are asked for their usage (``include_usage`` of the project)."""
        self.limited = False
        """Whether the limits on active requests apply."""
        self.facts: RequestFacts | None = None
        """For the record, if the request is forwarded."""
        self.page: Page | None = None
        """The page that answers without an upstream, if any."""
        noted = received.noted
        self.plain_json = bodies.is_plain_json(noted.get(b"content-type"), noted.get(b"content-encoding"))
        self.prepared: BoundedDict[PreparedKey, Prepared] = BoundedDict(PREPARED_BYTES)

    def keep(self, key: PreparedKey, prepared: Prepared) -> None:
        """Store ``prepared`` for the next request with this key."""
        self.prepared.keep(key, prepared, prepared.size + len(key or ""))
