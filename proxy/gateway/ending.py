"""The ends of a request other than a complete response: refused, aborted, ended from outside, failed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from proxy.gateway.active_request import RequestEnded
from proxy.gateway.admission import shutting_down
from proxy.gateway.stops import stopped
from proxy.protocol import errors
from proxy.protocol.dialects import Dialect, error_event
from proxy.protocol.errors import ProxyError
from proxy.protocol.record import Outcome
from proxy.protocol.tasks import in_task
from proxy.upstream import UpstreamError

if TYPE_CHECKING:
    from proxy.gateway.active_request import ActiveRequest, EndReason
    from proxy.http.exchange import ClientDisconnected
    from proxy.upstream import UpstreamResponse

REST_SECONDS: Final = 1.0
REST_BYTES: Final = 4096
"""Limits for reading the rest of a response if the client disconnected after the end marker."""


class StreamAborted(Exception):
    """A response broke after its head was relayed, so the client's connection must be aborted as well.

    ``fault`` is first sent inside the stream, if the client can parse it there.
    """

    def __init__(self, outcome: Outcome, fault: ProxyError | None = None) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.fault = fault


def refuse(active: ActiveRequest, fault: ProxyError, outcome: Outcome | None = None) -> None:
    """Respond with ``fault``, in the client's dialect."""
    record, config = active.record, active.config
    record.error_code, record.status = fault.code, fault.status
    active.settle(outcome or fault.outcome)
    if active.answering:  # after the head was sent an error response is impossible
        active.exchange.abort()
        return
    # A message may quote the request, which may hold a key in the wrong place; tools log our messages.
    fault.mask(config.redactor_of_all().text)
    reply = errors.render(
        fault,
        active.template.dialect if active.template is not None else Dialect.OPENAI,
        record.request_id,
        project=record.project,
        provider=record.provider,
    )
    active.respond(reply.status, reply.headers, reply.body)


def abort_stream(active: ActiveRequest, aborted: StreamAborted) -> None:
    """Abort the client's connection, after an error event if the stream is at an event boundary.

    Inside an event nothing is sent: with half an event before an error event, SDKs report a parse failure, not the error.
    """
    record, prepared, scanner, fault = active.record, active.prepared, active.record.scanner, aborted.fault
    active.settle(aborted.outcome)
    if fault is not None:
        record.error_code = fault.code
        if prepared is not None and scanner is not None and scanner.at_boundary:
            route = prepared.route
            error = errors.body_of(
                fault, route.dialect, record.request_id, project=route.project, provider=route.provider.name
            )
            event = error_event(route.dialect, route.ending, error)
            # The event must neither be cut by the declared length nor complete it: the response would look complete.
            if active.declared_length is None or record.bytes_out + len(event) < active.declared_length:
                record.bytes_out += len(event)
                active.exchange.write(event)
    active.exchange.abort()


async def conclude(active: ActiveRequest, error: RequestEnded | ClientDisconnected) -> None:
    """Settle a request that was ended from outside, and report the reason if the client can still receive it."""
    reason = error.reason if isinstance(error, RequestEnded) else "client_gone"
    active.ended = reason  # from here on nothing else ends it: it would lose its outcome
    if reason in ("client_gone", "write_stall"):
        broke = active.exchange.client_error is not None
        if not broke and reason == "client_gone" and await _had_all(active):
            return
        active.settle(Outcome.CLIENT_ERROR if broke else Outcome.CLIENT_GONE)
        if reason == "write_stall":
            active.exchange.abort()
        return
    if reason == "shutdown":
        outcome, fault = Outcome.SHUTDOWN, shutting_down()
    elif reason == "stopped" and active.stop is not None:
        # What was not sent has cost nothing, like any request that is refused.
        outcome = Outcome.SHUTDOWN if active.record.attempts else Outcome.REFUSED
        fault = stopped(active.stop, active.record.project)
    else:
        outcome = Outcome.STALLED if active.answering and reason == "idle" else Outcome.TIMEOUT
        fault = _overdue(reason, active)
    if active.answering:
        abort_stream(active, StreamAborted(outcome, fault))
    else:
        refuse(active, fault, outcome)


async def _had_all(active: ActiveRequest) -> bool:
    """Whether a disconnected client had the whole stream: the end marker was sent, and SDKs close there.

    The last bytes of such a response are read if they arrive soon, so that its connection can be reused.
    """
    response, scanner = active.response, active.record.scanner
    if not active.answering or response is None or scanner is None or not scanner.ended:
        return False
    with contextlib.suppress(TimeoutError, UpstreamError):  # the connection is then closed
        await in_task(_take_rest(response))
    if scanner.error is not None:
        active.record.upstream_error = scanner.error
    active.settle(Outcome.OK if scanner.error is None else Outcome.PROVIDER_ERROR)
    return True


async def _take_rest(response: UpstreamResponse) -> None:
    size = 0
    async with asyncio.timeout(REST_SECONDS):
        while size < REST_BYTES and (piece := await response.read()):
            size += len(piece)


def fail(active: ActiveRequest) -> None:
    """Report a fault of our own code to the client: by an error response, or by aborting one that was sent or started."""
    if active.record.outcome is not None:
        active.exchange.abort()
        return
    fault = ProxyError(
        "internal_error",
        "lava-proxy itself failed on this request.",
        "Look into its log for this request id, and report it.",
    )
    refuse(active, fault)


_OVERDUE: Final = {
    "first_byte": "did not begin to answer",
    "idle": "stopped moving",
    "total": "took longer than allowed",
}


def _overdue(reason: EndReason, active: ActiveRequest) -> ProxyError:
    """Return the error for an exceeded limit of [upstream]."""
    prepared, seconds = active.prepared, getattr(active.config.deadlines, reason)
    subject, charged = "The request", ""
    if prepared is not None:  # else nothing was sent
        subject, charged = prepared.destination.name, "; the request may have been charged"
    return ProxyError(
        "upstream_timeout",
        f"{subject} {_OVERDUE[reason]} (limit: {seconds:g} s).",
        f"The limit is {reason} under [upstream]{charged}.",
        retry=False,
    )
