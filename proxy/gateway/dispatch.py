"""Dispatch: attempts, each to one target. There is one target today, so there is one attempt."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from proxy.gateway.active_request import Phase
from proxy.protocol.errors import ProxyError
from proxy.protocol.record import Attempt
from proxy.upstream import UpstreamError

if TYPE_CHECKING:
    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.destinations import Destination
    from proxy.gateway.request_body import RequestBody
    from proxy.gateway.template import Prepared
    from proxy.upstream import UpstreamResponse


async def dispatch(active: ActiveRequest, prepared: Prepared, body: RequestBody) -> UpstreamResponse:
    """Send the request and return the response at its head. Raises ``ProxyError`` if there is none."""
    if not body.streams:
        active.wait(Phase.HEAD)
    route = prepared.route
    attempt = Attempt(route.provider.name, route.replace or route.model, monotonic())
    active.record.attempts.append(attempt)
    try:
        response = await active.config.engine.open(prepared.outgoing, body.take(), body.length)
    except UpstreamError as error:
        active.record.upstream_error = error.detail
        attempt.ended, attempt.sent, attempt.reason = monotonic(), error.sent, error.kind
        # Without its traceback: the engine keeps the error, and the frames in it would keep the whole request.
        raise unreachable(error, prepared.destination) from error.with_traceback(None)
    attempt.status = response.status
    active.response = response
    return response


def unreachable(error: UpstreamError, destination: Destination) -> ProxyError:
    """Return the client's error for an attempt that ended without a response."""
    name = destination.name
    details = {"upstream_message": error.detail}
    if error.kind == "proxy":
        return ProxyError(
            "upstream_unreachable",
            f"{name} cannot be reached: {error.detail}. Nothing was sent.",
            "Check proxy under [upstream].",
            details=details,
        )
    if error.kind == "tls":
        return ProxyError(
            "upstream_tls",
            f"{name}'s certificate could not be verified: {error.detail}. Nothing was sent.",
            "Check the clock of this machine, a network that inspects TLS, or ca_file under [upstream].",
            details=details,
        )
    if error.kind == "connect_timeout":
        return ProxyError(
            "upstream_timeout",
            f"{name} could not be reached in time. Nothing was sent.",
            f"Check the network and {destination.address_setting}; the limit is connect under [upstream].",
            retry=True,
            details=details,
        )
    if error.kind == "protocol":
        return ProxyError(
            "upstream_protocol",
            f"What answered is not sound HTTP: {error.detail}.",
            f"Check {destination.address_setting} and any proxy in between; the request may have been charged.",
            details=details,
        )
    if error.kind == "closed" and error.sent:
        return ProxyError(
            "upstream_closed",
            f"{name} closed the connection before it answered.",
            "Ask again if you accept that the request may have been charged twice.",
            details=details,
        )
    return ProxyError(
        "upstream_unreachable",
        f"{name} cannot be reached: {error.detail}. Nothing was sent.",
        f"Check the network and {destination.address_setting}.",
        details=details,
    )
