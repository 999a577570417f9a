"""Relay of a response to the client: filtered headers, unchanged bytes.

A broken response never ends cleanly, and no end is made up for it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from proxy.gateway import uploads
from proxy.gateway.active_request import Phase, RequestEnded
from proxy.gateway.dispatch import unreachable
from proxy.gateway.ending import StreamAborted
from proxy.protocol import body as bodies
from proxy.protocol import errors, headers
from proxy.protocol.dialects import Ending
from proxy.protocol.errors import ProxyError
from proxy.protocol.record import Outcome
from proxy.protocol.usage import EncodedScanner, Scanner
from proxy.protocol.usage_filter import UsageFilter
from proxy.upstream import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.destinations import Destination
    from proxy.gateway.template import Prepared
    from proxy.protocol.headers import Pairs, ResponseHeaders
    from proxy.protocol.redaction import Redactor, StreamMask
    from proxy.upstream import UpstreamResponse

_MAX_ERROR_BYTES = 256 * 1024  # of an error response that are collected for classification and masking
_MAX_DECODED_BYTES = 1024 * 1024  # searched in a compressed error response that cannot be decoded completely
_MASKED_AT_ONCE = 16 * 1024


async def relay(active: ActiveRequest, prepared: Prepared, response: UpstreamResponse) -> None:
    """Relay the response and settle the request. Raises ``ProxyError`` for a response that is explained instead."""
    response_headers = _head(active, prepared, response)
    if response.status >= 400:
        await _relay_error(active, prepared, response, response_headers)
        return
    if response.status == 304:  # no 2xx either, and without a body
        response_headers.onward = _masked(active.config.redactor(prepared.credential), response_headers.onward)
    prepared.destination.succeeded(prepared.route.project)
    if response.framing == "length":
        active.declared_length = response_headers.length
    usage_filter = None
    if active.hides_usage and response_headers.event_stream and response_headers.encoding is None:
        usage_filter = UsageFilter()
        active.declared_length = None  # an event may be missing
        response_headers.onward = headers.without(response_headers.onward, b"content-length")
    scanner = active.record.scanner = _scanner(prepared.route.ending, response_headers)
    if response_headers.characters is not None:
        scanner.note({"characters": response_headers.characters})
    whole = response.whole() if active.exchange.ready else None
    if whole is None:
        active.start(response.status, response_headers.onward)
        await _relay_body(active, prepared.destination.name, response, scanner, usage_filter)
    else:
        # The usual small response: it has arrived completely, and is sent in one write.
        shown = whole if usage_filter is None else usage_filter.feed(whole) + usage_filter.finish()
        active.respond(response.status, response_headers.onward, shown)
        scanner.feed(whole)
    _settle(active, prepared, response, response_headers, scanner)
    if whole is None:
        active.exchange.finish()


def _scanner(ending: Ending, response_headers: ResponseHeaders) -> Scanner:
    if response_headers.encoding is None:
        return Scanner(ending, response_headers.event_stream)
    return EncodedScanner(ending, response_headers.event_stream, response_headers.encoding)


def _head(active: ActiveRequest, prepared: Prepared, response: UpstreamResponse) -> ResponseHeaders:
    """Return the response headers for the client, and record what they contain. Raises ``ProxyError`` for a redirect."""
    record, status = active.record, response.status
    record.first_byte_s = monotonic() - record.started
    record.status = status
    if 300 <= status < 400 and status != 304:
        raise errors.redirected(status)
    response_headers = headers.to_client(
        response.headers, keep_length=response.framing == "length" or record.method == "HEAD"
    )
    if response_headers.lava_request_id is not None:
        record.lava_request_id = response_headers.lava_request_id.decode("ascii", "replace")[:200]
    if response_headers.upload and active.template is not None:
        response_headers.onward = uploads.lead_here(response_headers.onward, prepared, active.template)
    if not response_headers.inert:
        response_headers.onward.append(headers.SANDBOX)
    record.streamed = response_headers.event_stream
    response_headers.onward += prepared.response_headers
    response_headers.onward.append((b"x-lava-proxy-request-id", record.request_id.encode("ascii")))
    return response_headers


async def _relay_body(
    active: ActiveRequest, name: str, response: UpstreamResponse, scanner: Scanner, usage_filter: UsageFilter | None
) -> None:
    """Write every chunk as it arrives. One chunk is held at a time. ``name`` is the destination's."""
    record, write, feed = active.record, active.exchange.write, scanner.feed

    def take(chunk: bytes) -> bool:
        # Called for every chunk, in the turn of the loop in which it arrived.
        active.since = monotonic()
        feed(chunk)
        record.bytes_out += len(chunk)
        return write(chunk)

    taken = take if usage_filter is None else _take_filtered(active, scanner, usage_filter)
    active.wait(Phase.READ)
    try:
        while not await response.pour(taken):
            active.wait(Phase.WRITE)
            await active.exchange.drain()
            active.wait(Phase.READ)
    except UpstreamError as error:
        record.upstream_error = error.detail
        raise StreamAborted(
            Outcome.TRUNCATED, _cut_off(f"{name}'s connection broke in the middle of the answer.")
        ) from error.with_traceback(None)
    finally:
        if usage_filter is not None:
            _write_shown(active, usage_filter.finish())


def _take_filtered(active: ActiveRequest, scanner: Scanner, usage_filter: UsageFilter) -> Callable[[bytes], bool]:
    def take(chunk: bytes) -> bool:
        active.since = monotonic()
        scanner.feed(chunk)
        return _write_shown(active, usage_filter.feed(chunk))

    return take


def _write_shown(active: ActiveRequest, shown: bytes) -> bool:
    """Write what the filter passed on, perhaps nothing. Return whether more may be written without waiting."""
    active.record.bytes_out += len(shown)
    return active.exchange.write(shown) if shown else active.exchange.ready


def _settle(
    active: ActiveRequest,
    prepared: Prepared,
    response: UpstreamResponse,
    response_headers: ResponseHeaders,
    scanner: Scanner,
) -> None:
    """Settle a response whose framing is complete. Raises ``StreamAborted`` if its stream is incomplete."""
    scanner.finish()
    outcome = Outcome.OK
    if response_headers.event_stream:
        has_marker = response_headers.encoding is None and prepared.route.ending is not Ending.UNKNOWN
        if scanner.error is not None:
            # An error event inside a stream is the provider's, and decides the outcome.
            active.record.upstream_error = scanner.error
            outcome = Outcome.PROVIDER_ERROR
        elif has_marker and not scanner.ended:
            if response.framing == "close":
                raise StreamAborted(Outcome.TRUNCATED, _cut_off("The answer ended before its own end marker."))
            outcome = Outcome.INCOMPLETE
    active.settle(outcome)


# --- responses that are errors ---------------------------------------------------------------------------------------


async def _relay_error(
    active: ActiveRequest, prepared: Prepared, response: UpstreamResponse, response_headers: ResponseHeaders
) -> None:
    """Read and mask an error response, and either explain it or relay it."""
    content, whole = await _read_error(active, prepared, response)
    redactor = active.config.redactor(prepared.credential)
    readable: bytes | None = content
    if response_headers.encoding is not None:
        readable = bodies.decode(content, response_headers.encoding, 4 * _MAX_ERROR_BYTES) if whole else None
    masked = await _mask_large(active, redactor.data, readable) if readable is not None else None
    head = _masked(redactor, response_headers.onward)
    request_id = active.record.lava_request_id
    fault = prepared.destination.classify(prepared, response.status, head, masked or b"", request_id)
    hint = prepared.route.hint if response.status in (400, 404) else None
    if fault is not None:
        if hint is not None:
            fault.what = f"{fault.what} {hint}"
        await explain(active, fault, prepared.destination, prepared.route.project)
        try:
            raise fault
        finally:
            del fault  # its traceback holds this frame: a cycle, and all of the request in it
    if readable is None:
        await _search_unreadable(active, response, response_headers.encoding or b"", content, whole, redactor)
    raw, shown = content, masked
    if masked is not None and whole and hint is not None and response.status == 404:
        shown = errors.with_hint(masked, hint)
    if shown is None:  # perhaps with a wrong Content-Encoding
        content = await _mask_large(active, redactor.data, content)
    elif response_headers.encoding is None and shown is masked:
        content = shown
    elif shown != readable:
        # The secret is inside a compressed body and can only be masked in the decoded form. A hint makes it longer.
        content = shown
        head = [pair for pair in head if pair[0] not in (b"content-encoding", b"content-length")]
        head.append((b"content-length", b"%d" % len(content)))
    if whole:
        active.respond(response.status, head, content)
    else:
        active.start(response.status, head)
        await _relay_long_error(active, response, redactor.stream(), raw)
    active.settle(Outcome.PROVIDER_ERROR)
    if not whole:
        active.exchange.finish()


async def _read_error(active: ActiveRequest, prepared: Prepared, response: UpstreamResponse) -> tuple[bytes, bool]:
    """Return the body of an error response, and whether it is complete."""
    pieces: list[bytes] = []
    size = 0
    while size < _MAX_ERROR_BYTES:
        active.wait(Phase.READ)
        try:
            piece = await response.read()
        except UpstreamError as error:
            active.record.upstream_error = error.detail
            raise unreachable(error, prepared.destination) from error.with_traceback(None)
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False


async def _mask_large(active: ActiveRequest, mask: Callable[[bytes], bytes], data: bytes) -> bytes:
    """Return ``mask(data)``. Large data is masked in a thread, so that the loop runs every few milliseconds.

    One at a time, because each shares the processor with the loop.
    """
    if len(data) <= _MASKED_AT_ONCE:
        return mask(data)
    async with active.config.masking:
        return await asyncio.to_thread(mask, data)


async def explain(active: ActiveRequest, fault: ProxyError, destination: Destination, project: str) -> None:
    """Add what the destination reports about the cause. If the request is ended meanwhile, ``fault`` stays as it is."""
    if active.registry.draining:
        return
    active.wait(Phase.READ)
    try:
        await destination.explain(fault, project, active.record.provider)
    except RequestEnded as ended:
        if ended.reason == "client_gone":
            raise


async def _search_unreadable(
    active: ActiveRequest, response: UpstreamResponse, encoding: bytes, content: bytes, whole: bool, redactor: Redactor
) -> None:
    """Raise ``ProxyError`` if a readable part of an incompletely decodable error response shows our credential.

    Without it, the response is relayed unchanged. A response too long to be collected is never relayed unsearched.
    """
    part = bodies.decode_prefix(content, encoding, _MAX_DECODED_BYTES)
    if part and (not whole or await _mask_large(active, redactor.data, part) != part):
        raise ProxyError(
            "upstream_protocol",
            f"The answer is an error ({response.status}) whose compressed body cannot be read in whole here; it is not "
            "passed on, as it may repeat your credential.",
            'Ask again with "Accept-Encoding: identity" to see it.',
            details={"upstream_status": response.status},
        )


async def _relay_long_error(
    active: ActiveRequest, response: UpstreamResponse, masking: StreamMask, content: bytes
) -> None:
    """Relay an error response too long to be collected. It is masked as a stream, also across chunks."""
    record, exchange = active.record, active.exchange
    while content:
        piece = await _mask_large(active, masking.feed, content)
        record.bytes_out += len(piece)
        if piece and not exchange.write(piece):
            active.wait(Phase.WRITE)
            await exchange.drain()
        active.wait(Phase.READ)
        try:
            content = await response.read()
        except UpstreamError as error:
            record.upstream_error = error.detail
            raise StreamAborted(Outcome.TRUNCATED) from error.with_traceback(None)
    piece = masking.flush()
    if piece:
        record.bytes_out += len(piece)
        exchange.write(piece)


def _masked(redactor: Redactor, pairs: Pairs) -> Pairs:
    return [(redactor.data(name), redactor.data(value)) for name, value in pairs]


def _cut_off(message: str) -> ProxyError:
    return ProxyError("upstream_closed", message, "Ask again; what came so far may have been charged.")
