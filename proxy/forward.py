"""The hot path: one forwarded request, from its route to its record. Read it downward.

``Forwarder.__call__`` is the story of ``proxy/__init__.py`` in code. It is a plain ASGI callable over raw header pairs: no
request or response objects, nothing logged or allocated per chunk beyond the chunk itself. After the first byte of an answer
it is honest: a broken answer never ends cleanly, and no end is invented.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from proxy import body as bodies
from proxy import errors, headers, routing, tokens, uploads
from proxy.catalog import Catalog
from proxy.dialects import Dialect, Ending, error_event
from proxy.errors import Fault
from proxy.flights import Flight, Flights, Phase, Reason
from proxy.gate import Admission, key_of
from proxy.holding import Budget, Held
from proxy.keeping import Kept
from proxy.record import Outcome, Record
from proxy.redaction import Unshown
from proxy.routing import Kind, Place, Route
from proxy.upstream import Answer, Outgoing, UpstreamError, Wire
from proxy.usage import Scanner
from proxy.wording import counted

if TYPE_CHECKING:
    from proxy.generation import Generation, Plan
    from proxy.headers import Received
    from proxy.redaction import Redactor, StreamMask

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_ERROR_BODY = 256 * 1024  # bytes of an error answer that are collected to be understood and masked
_ERROR_SEARCHED = 1024 * 1024  # of a compressed one that cannot be read in whole, decoded
_MASKED_AT_ONCE = 16 * 1024
_COLLECTING_FLOOR = 256 * 1024 * 1024
_SMALL_BODY = 256 * 1024  # is looked through in one go, and faster
_ONE_PIECE = 64 * 1024  # is sent as it is; a larger body is given up piece by piece
_HAS_BODY = frozenset({"POST", "PUT", "PATCH"})
_SENDINGS_BYTES = 32 * 1024
"""What one connection may hold of requests made ready: some ten, two for each model that a client uses by turns."""
_NOBODY = Admission()


class Connection(Protocol):
    """What the HTTP front tells of the client's connection (``guard.py``)."""

    client_error: str | None
    task: asyncio.Task[None] | None
    """The one that runs us."""
    length: int | None
    """Bytes of the body as its head declares them, ``None`` where it is chunked."""
    memory: Any
    """``memory.application`` is ours, and the same for every request with this head (``framing.Heads``)."""
    ride: Any
    """The ``express.Ride`` in which this request began, where it did."""
    ready: bool
    """Whether the client has read so much that it may be given more."""

    def on_disconnect(self, callback: Callable[[], None]) -> None: ...
    def passed_gate(self) -> None: ...
    def abort(self) -> None: ...
    def take_body(self) -> bytes | None: ...
    def start(self, status: int, headers: headers.Pairs) -> None: ...
    def respond(self, status: int, headers: headers.Pairs, body: bytes) -> None: ...
    def pass_on(self, piece: bytes) -> bool: ...
    async def drain(self) -> None: ...


class Sending(Unshown):
    """A plan made ready for requests with the same head: what travels of it to Lava, and its form on the wire."""

    __slots__ = ("headers", "method", "plan", "wire")

    def __init__(self, plan: Plan, method: bytes, pairs: headers.Pairs) -> None:
        self.plan = plan
        self.method = method
        self.headers = pairs
        self.wire = Wire()

    @property
    def size(self) -> int:
        """About how many bytes it takes, its form on the wire included."""
        said = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return 512 + 2 * (len(self.plan.target) + said)


class Admitted(Unshown):
    """What gate and router found out about a request. It holds for every request with the same head (``framing.Heads``),
    as long as the configuration is the same.
    """

    __slots__ = (
        "admission",
        "generation",
        "json",
        "method",
        "path",
        "place",
        "project",
        "query",
        "received",
        "sendings",
    )

    def __init__(
        self,
        generation: Generation,
        received: Received,
        admission: Admission,
        place: Place,
        project: str,
        method: str,
        path: str,
        query: bytes = b"",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.generation = generation
        self.received = received
        self.admission = admission
        self.place = place
        self.project = project
        self.json = bodies.is_plain_json(received.noted.get(b"content-type"), received.noted.get(b"content-encoding"))
        self.sendings: Kept[str | bytes | None, Sending] = Kept(_SENDINGS_BYTES)
        """By the body's model, or by the raw JSON string of it where nothing of the body is to be replaced."""

    @property
    def repeats(self) -> bool:
        """Whether requests with this head are worth a shorter way: their body, whole, is all that need be looked at."""
        plain = self.json or not self.place.reads_body
        return plain and self.method in _HAS_BODY and self.place.kind is not Kind.CATALOG

    def known(self, body: bytes) -> Sending | None:
        """What a request like this with this whole body became before, where no byte of it was to be changed."""
        if not self.place.reads_body:
            return self.sendings.get(None)
        raw = bodies.raw_model(body)
        return self.sendings.get(raw) if raw else None

    def keep(self, model: str | bytes | None, sending: Sending) -> None:
        """For the next request with this model."""
        self.sendings.keep(model, sending, sending.size + len(model or ""))


class Call:
    """One request on its way through, and what became of it so far."""

    __slots__ = (
        "admission",
        "answering",
        "connection",
        "dialect",
        "direct",
        "flight",
        "generation",
        "held",
        "opened",
        "path",
        "plan",
        "receive",
        "received",
        "record",
        "scope",
        "send",
        "total",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        generation: Generation,
        received: Received,
        record: Record,
        connection: Connection | None,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.generation = generation
        self.received = received
        self.record = record
        self.connection = connection
        self.direct = connection
        """Where a whole answer may be given at once; ``None`` where every answer must pass ``send``."""
        self.path: bytes = scope.get("raw_path") or b"/"
        self.admission = _NOBODY
        self.dialect: Dialect | None = None
        self.flight: Flight | None = None
        self.plan: Plan | None = None
        self.held: Held | None = None
        """The body, where it is needed to say where it goes."""
        self.opened: Answer | None = None
        self.answering = False
        self.total: int | None = None
        """The length that the answer has declared."""

    def begin_answer(self, answered: headers.Answered, answer: Answer) -> None:
        """From now on a fault cannot be told but inside the answer."""
        self.answering = True
        self.total = answered.length if answer.framing == "length" else None


class _AnyFront:
    """For a front that knows ASGI alone: it takes a piece, and sends it where there is time to wait."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._piece = b""

    def pass_on(self, piece: bytes) -> bool:
        self._piece = piece
        return False

    async def drain(self) -> None:
        await self._send({"type": "http.response.body", "body": self._piece, "more_body": True})


class ClientGone(Exception):
    """The client left while its request was being read."""


class Broken(Exception):
    """An answer broke after its head was sent on: the client's connection must break as well."""


class Forwarder:
    """Forwards requests that the gate has admitted. ``flights`` are shared with whoever drains the daemon."""

    def __init__(self, flights: Flights) -> None:
        self.flights = flights
        self.budget = Budget()
        self._turn = asyncio.Lock()
        self._masking = asyncio.Lock()
        self._catalog = Catalog()

    async def __call__(self, call: Call, admitted: Admitted) -> None:
        """Forward one admitted request and answer it. Raises ``Fault`` where we answer ourselves, and ``Broken``."""
        generation, connection = call.generation, call.connection
        task = connection.task if connection is not None else asyncio.current_task()
        assert task is not None  # noqa: S101  (a coroutine that runs is run by a task)
        ride = connection.ride if connection is not None else None
        if ride is not None:
            flight = call.flight = ride
        else:
            call.record.project = admitted.project
            crowded = generation.crowded(self.flights, admitted.project)
            if crowded is not None:
                raise crowded
            declared = _declared_length(call)
            flight = call.flight = Flight(task, generation.limits, admitted.project)
            if connection is not None:
                connection.on_disconnect(lambda: flight.end("client_gone"))
            self.flights.add(flight)
            generation.in_flight += 1
        try:
            given: headers.Answered | None = None
            if ride is not None:
                call.plan, call.opened, given = ride.plan, ride.answer, ride.given
                if given is not None:
                    call.begin_answer(given, ride.answer)
                answer = ride.resume(task)
            elif admitted.place.kind is Kind.CATALOG and await self._send_catalog(call, admitted):
                return
            else:
                # Not kept here: it holds the body, or what is left of it.
                answer = call.opened = await generation.engine.open(await self._outgoing(call, admitted, declared))
            flight.answered = True
            if given is None:
                await self._answer(call, admitted, answer)
            else:
                await self._relay(call, answer, given)
        except asyncio.CancelledError:
            if flight.reason is None:
                raise
            flight.told = True
            task.uncancel()
            await self._ended(call, flight.reason)
        except UpstreamError as error:
            raise _upstream_fault(error, call) from error
        except ClientGone:
            broke = connection is not None and connection.client_error is not None
            call.record.outcome = Outcome.CLIENT_ERROR if broke else Outcome.CLIENT_GONE
        finally:
            self.flights.remove(flight)
            generation.in_flight -= 1
            if call.held is not None:
                call.held.close()
            if flight.reason is not None and not flight.told:
                await _absorb(task)

    # --- the request -------------------------------------------------------------------------------------------------

    async def _outgoing(self, call: Call, admitted: Admitted, declared: int | None) -> Outgoing:
        """What goes to Lava: a new request beside the received one. Waits for a body that decides where it goes."""
        record, flight = call.record, call.flight
        assert flight is not None  # noqa: S101  (made by the caller)
        content: bytes | AsyncIterator[bytes] | None
        if admitted.place.reads_body and (record.method in _HAS_BODY or declared):
            sending, content, length = await self._sending_by_body(call, admitted, await self._collect(call))
            flight.wait(Phase.HEAD)
        else:
            sending = self._sending(call, admitted, None)
            content = await self._stream(call, declared)
            length = None
            if content is None or isinstance(content, bytes):
                flight.wait(Phase.HEAD)
            else:
                length = declared
        plan = sending.plan
        return Outgoing(sending.method, plan.origin, plan.target, sending.headers, content, length, sending.wire)

    def _sending(self, call: Call, admitted: Admitted, model: str | None, *, decoded: bool = False) -> Sending:
        """Where the request goes, with which credential and headers: worked out once for the same request."""
        sending = admitted.sendings.get(model) if not decoded else None
        if sending is None:
            plan = self._plan(call, admitted, model)
            onward = call.received.onward
            if decoded:
                onward = headers.without(onward, b"content-encoding")
            sending = Sending(plan, call.record.method.encode("ascii"), self._to_lava(call, plan, onward))
            if plan.kept and not decoded:
                admitted.keep(model, sending)
        return _chosen(call, sending)

    def _plan(self, call: Call, admitted: Admitted, model: str | None) -> Plan:
        generation, record, place, project = call.generation, call.record, admitted.place, admitted.project
        query = routing.without_key(call.scope.get("query_string", b""))  # what is remembered must not hold it
        key = (record.method, call.path, query, project, model, place.dialect)
        plan = generation.plans.get(key)
        if plan is None:
            route = routing.route(record.method, place, query, project, model, generation.table)
            record.provider, record.model = route.provider.name, route.model
            plan = generation.plan(route, self._client_key(call, route))
            generation.remember(key, plan)
        return plan

    async def _search(self, call: Call, pieces: Iterable[bytes]) -> bodies.Model:
        """The model of a body that is large or no plain JSON. All searches together take one step for each turn of the
        loop: none waits for another to end, and nobody else for more than a step."""
        noted, limit = call.received.noted, call.generation.settings.server.max_body_bytes
        steps = bodies.search(pieces, noted.get(b"content-type"), noted.get(b"content-encoding"), limit)
        while True:
            async with self._turn:
                try:
                    next(steps)
                except StopIteration as over:
                    found: bodies.Model = over.value
                    return found
                await asyncio.sleep(0)

    async def _sending_by_body(
        self, call: Call, admitted: Admitted, held: Held
    ) -> tuple[Sending, bytes | AsyncIterator[bytes], int | None]:
        """Where ``model`` in the body sends it, and the body to send: as it came unless the name must be replaced."""
        whole = b""
        if admitted.json and held.size <= _SMALL_BODY:
            whole = b"".join(held)
            raw = bodies.raw_model(whole)
            known = admitted.sendings.get(raw) if raw else None
            if known is not None:
                return _chosen(call, known), *self._content(call, held, held.taken(), held.size)
            found = bodies.model_of(whole, raw)
        else:
            found = await self._search(call, held)
        sending = self._sending(call, admitted, found.name)
        replace = sending.plan.route.replace
        pieces, size = held.taken(), held.size
        if replace is None:
            if admitted.json and found.name is not None and sending.plan.kept:
                admitted.keep(found.raw, sending)
        else:
            if found.span is None:
                found = bodies.located(whole, found)
            assert found.span is not None  # noqa: S101  (or it is refused)
            if found.decoded:
                sending = self._sending(call, admitted, found.name, decoded=True)
                encoding, limit = (
                    call.received.noted[b"content-encoding"],
                    call.generation.settings.server.max_body_bytes,
                )
                pieces = bodies.decoded(pieces, encoding, limit)
            new = bodies.written(found, replace)
            pieces = bodies.replaced(pieces, found.span, new)
            size = found.size + len(new) - (found.span[1] - found.span[0])
        return sending, *self._content(call, held, pieces, size)

    def _content(
        self, call: Call, held: Held, pieces: Iterator[bytes], size: int
    ) -> tuple[bytes | AsyncIterator[bytes], int | None]:
        """A body of ``size`` bytes to send, and its length where that is yet to be told."""
        if max(size, held.size) <= _ONE_PIECE:
            return b"".join(pieces), None
        return self._sent(call, pieces), size

    async def _sent(self, call: Call, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces of a body that was held: the engine asks for the next one when the upstream has taken the last one."""
        flight = call.flight
        assert flight is not None  # noqa: S101  (made before the body is touched)
        for piece in pieces:
            if piece:
                if not flight.answered:
                    flight.wait(Phase.UPLOAD)
                yield piece
            await asyncio.sleep(0)  # the next one may have to be decoded
        if not flight.answered:
            flight.wait(Phase.HEAD)

    async def _collect(self, call: Call) -> Held:
        """The whole body, within ``max_body_bytes`` and the budget of all requests together."""
        limit = call.generation.settings.server.max_body_bytes
        held = call.held = Held(self.budget)
        whole = call.connection.take_body() if call.connection is not None else None
        more = whole is None
        piece = whole or b""
        while True:
            if more:
                message = await call.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece, more = message.get("body", b""), message.get("more_body", False)
            held.add(piece)
            if held.size > limit:
                raise _too_large(limit)
            if self.budget.held > max(_COLLECTING_FLOOR, 2 * limit):
                raise Fault(
                    "overloaded",
                    "Too many large requests are being read at once.",
                    "Try again in a moment, or use an address that names its provider: those are not collected.",
                    headers=[(b"retry-after", b"1")],
                )
            if not more:
                call.record.bytes_in = held.size
                return held

    async def _stream(self, call: Call, declared: int | None) -> bytes | AsyncIterator[bytes] | None:
        """The body to send on: ``None`` where there is none, bytes where it came in one piece, else an iterator."""
        if declared is None and not _is_chunked(call):
            return b"" if call.record.method in _HAS_BODY else None
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            limit = call.generation.settings.server.max_body_bytes
            if len(first) > limit:
                raise _too_large(limit)
            call.record.bytes_in = len(first)
            return first
        return self._pieces(call, first)

    async def _pieces(self, call: Call, piece: bytes) -> AsyncIterator[bytes]:
        """The body as it comes. The engine asks for the next piece when the upstream has taken the last one."""
        flight, limit = call.flight, call.generation.settings.server.max_body_bytes
        assert flight is not None  # noqa: S101  (made before the body is touched)
        size, more = 0, True
        while True:
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            call.record.bytes_in = size
            if piece:
                if not flight.answered:
                    flight.wait(Phase.UPLOAD)
                yield piece
            if not more:
                break
            if not flight.answered:
                flight.wait(Phase.CLIENT)
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece, more = message.get("body", b""), message.get("more_body", False)
        if not flight.answered:
            flight.wait(Phase.HEAD)

    def _client_key(self, call: Call, route: Route) -> str | None:
        """The provider key that the tool itself sent, where the project says that it is to be used."""
        generation = call.generation
        if not tokens.needs_client_key(generation.project(route.project), route.provider.name):
            return None
        query = call.scope.get("query_string", b"")
        sent = key_of(
            call.received,
            call.path,
            generation,
            but=call.admission.key_header,
            method=call.record.method,
            query=query,
        )
        if sent is None:
            return None
        key = sent[1].decode("utf-8", "replace")
        # A space: another scheme than Bearer, or two words in a header for a key. Neither is one, and a local key may stand in it.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise Fault(
                "bad_request",
                "The provider key of this request has characters that no key has.",
                "Send the key alone in its header, or as `Authorization: Bearer <key>`.",
            )
        return key

    def _to_lava(self, call: Call, plan: Plan, onward: headers.Pairs) -> headers.Pairs:
        """New headers beside the received ones: ours first, then what may travel of the client's."""
        noted, single = call.received.noted, call.received.metadata
        if not plan.credential.payment.byok:
            onward = headers.without(onward, *headers.ACCOUNTS)
        pairs = plan.head + onward
        asked = noted.get(headers.METADATA)
        if asked is not None or single or plan.metadata:
            metadata = headers.merge_metadata(asked, single, plan.metadata)
            if metadata is not None:
                pairs.append((headers.METADATA, metadata))
        if plan.route.wants_anthropic_version and b"anthropic-version" not in noted:
            pairs.append((b"anthropic-version", b"2023-06-01"))
        return pairs

    # --- the answer --------------------------------------------------------------------------------------------------

    async def _answer(self, call: Call, admitted: Admitted, answer: Answer) -> None:
        record, plan, status = call.record, call.plan, answer.status
        assert plan is not None  # noqa: S101  (made before the request was opened)
        answered = sort_head(record, plan, answer, admitted)
        if status >= 400:
            await self._error_answer(call, plan, answer, answered)
            return
        if status == 304:  # no 2xx either, and without a body
            answered.onward = _masked(call.generation.redactor(plan.credential), answered.onward)
        if call.generation.inquiries.known:
            call.generation.inquiries.forget(plan.route.project)
        call.begin_answer(answered, answer)
        if call.direct is not None and give_whole(call.direct, record, plan.route, answer, answered):
            return
        assert call.flight is not None  # noqa: S101  (made before the request was opened)
        call.flight.wait(Phase.WRITE)
        await call.send({"type": "http.response.start", "status": status, "headers": answered.onward})
        record.scanner = _scanner(plan.route, answered)
        await self._relay(call, answer, answered)

    async def _relay(self, call: Call, answer: Answer, answered: headers.Answered) -> None:
        """Bytes out as they come in. One chunk is held at a time."""
        record, plan, scanner, flight, send = call.record, call.plan, call.record.scanner, call.flight, call.send
        assert plan is not None  # noqa: S101  (made before the request was opened, as was the flight)
        assert flight is not None  # noqa: S101
        assert scanner is not None  # noqa: S101  (made with the answer's head)
        client, feed = call.connection or _AnyFront(send), scanner.feed

        def take(chunk: bytes) -> bool:
            # Every chunk of every stream, in the very turn of the loop in which it came.
            flight.since = monotonic()
            if flight.reason is not None:
                return True  # it is being ended: what the client did not get is not noted
            feed(chunk)
            record.bytes_out += len(chunk)
            return client.pass_on(chunk)

        flight.wait(Phase.READ)
        try:
            while not await answer.pour(take):
                flight.wait(Phase.WRITE)
                await client.drain()
                flight.wait(Phase.READ)
        except UpstreamError as error:
            record.outcome, record.upstream_error = Outcome.TRUNCATED, error.detail
            await self._break(call, _cut_off("Lava's connection broke in the middle of the answer."))
        scanner.finish()
        if _lacks_its_end(plan.route, answered, scanner):
            if answer.framing == "close":
                record.outcome = Outcome.TRUNCATED
                await self._break(call, _cut_off("The answer ended before its own end marker."))
            record.outcome = Outcome.INCOMPLETE
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        _note_error(record, answered, scanner)

    async def _break(self, call: Call, fault: Fault) -> NoReturn:
        """Tell a client in mid-stream that its stream broke, where it can be told; then break its connection too.

        Inside an event nothing is said: half an event and then another makes SDKs fail to parse instead of reporting.
        """
        record, plan, scanner = call.record, call.plan, call.record.scanner
        record.error_code = fault.code
        if plan is not None and scanner is not None and scanner.at_boundary:
            route = plan.route
            error = errors.body_of(
                fault, route.dialect, record.request_id, project=route.project, provider=route.provider.name
            )
            event = error_event(route.dialect, route.ending, error)
            # It must not be cut by the declared length, and not fill it up either: then the answer would look whole.
            if call.total is None or record.bytes_out + len(event) < call.total:
                record.bytes_out += len(event)
                await call.send({"type": "http.response.body", "body": event, "more_body": True})
        raise Broken(fault.message)

    async def _error_answer(self, call: Call, plan: Plan, answer: Answer, answered: headers.Answered) -> None:
        """An answer that is an error: read, masked, and either explained or passed on."""
        record, flight = call.record, call.flight
        assert flight is not None  # noqa: S101  (made before the request was opened)
        pieces, size, whole = [], 0, False
        while size < _ERROR_BODY:
            flight.wait(Phase.READ)
            chunk = await answer.read()
            if not chunk:
                whole = True
                break
            pieces.append(chunk)
            size += len(chunk)
        content = b"".join(pieces)
        redactor = call.generation.redactor(plan.credential)
        readable: bytes | None = content
        if answered.encoding is not None:
            readable = bodies.decode(content, answered.encoding, 4 * _ERROR_BODY) if whole else None
        masked = await self._apart(redactor.data, readable) if readable is not None else None
        head = _masked(redactor, answered.onward)
        fault = errors.from_answer(
            answer.status, head, masked or b"", plan.credential.payment, lava_request_id=record.lava_request_id
        )
        hint = plan.route.hint if answer.status in (400, 404) else None
        if fault is not None:
            if hint is not None:
                fault.what = f"{fault.what} {hint}"
            raise await self._explained(call, fault, plan.route.project)
        if readable is None:
            await self._search_unreadable(answer, answered.encoding or b"", content, whole, redactor)
        record.outcome = Outcome.PROVIDER_ERROR
        raw, shown = content, masked
        if masked is not None and whole and hint is not None and answer.status == 404:
            shown = errors.with_hint(masked, hint)
        if shown is None:  # labelled with what it is not, perhaps
            content = await self._apart(redactor.data, content)
        elif answered.encoding is None and shown is masked:
            content = shown
        elif shown != readable:
            # The echo stood inside a compressed body: it can only be masked in the open. With a hint it is longer.
            content = shown
            head = [pair for pair in head if pair[0] not in (b"content-encoding", b"content-length")]
            head.append((b"content-length", b"%d" % len(content)))
        call.answering = True
        flight.wait(Phase.WRITE)
        await call.send({"type": "http.response.start", "status": answer.status, "headers": head})
        record.bytes_out = len(content)
        if not whole:
            await self._rest_of_error(call, answer, redactor.stream(), raw)
            return
        await call.send({"type": "http.response.body", "body": content, "more_body": False})

    async def _apart(self, mask: Callable[[bytes], bytes], data: bytes) -> bytes:
        """``mask(data)``; much of it beside the loop, which goes on every few milliseconds. One at a time, for each shares
        the processor with the loop."""
        if len(data) <= _MASKED_AT_ONCE:
            return mask(data)
        async with self._masking:
            return await asyncio.to_thread(mask, data)

    async def _explained(self, call: Call, fault: Fault, project: str) -> Fault:
        """The fault with what Lava's account says of it. Whoever ends the flight meanwhile ends the asking, not the fault."""
        flight = call.flight
        assert flight is not None  # noqa: S101  (made before the request was opened)
        if self.flights.draining:
            return fault
        flight.wait(Phase.READ)
        try:
            await call.generation.explain(fault, project, call.record.provider)
        except asyncio.CancelledError:
            if flight.reason is None or flight.reason in ("client_gone", "client_error"):
                raise
            flight.told = True
            flight.task.uncancel()
        return fault

    async def _search_unreadable(
        self, answer: Answer, encoding: bytes, content: bytes, whole: bool, redactor: Redactor
    ) -> None:
        """Raise ``Fault`` where a compressed error that cannot be read in whole shows our credential to whoever reads a part.

        Where it does not, it passes as it came; one too long to be collected does not pass unsearched.
        """
        part = bodies.decode_prefix(content, encoding, _ERROR_SEARCHED)
        if part and (not whole or await self._apart(redactor.data, part) != part):
            raise Fault(
                "upstream_protocol",
                f"The answer is an error ({answer.status}) whose compressed body cannot be read in whole here; it is not "
                "passed on, as it may repeat your credential.",
                'Ask again with "Accept-Encoding: identity" to see it.',
                details={"upstream_status": answer.status},
            )

    async def _rest_of_error(self, call: Call, answer: Answer, masking: StreamMask, content: bytes) -> None:
        """An error answer too long to be collected: masked as it passes, also across its chunks."""
        record, flight = call.record, call.flight
        assert flight is not None  # noqa: S101  (made before the request was opened)
        record.bytes_out = 0
        while content:
            piece = await self._apart(masking.feed, content)
            record.bytes_out += len(piece)
            flight.wait(Phase.WRITE)
            await call.send({"type": "http.response.body", "body": piece, "more_body": True})
            flight.wait(Phase.READ)
            try:
                content = await answer.read()
            except UpstreamError as error:
                record.outcome, record.upstream_error = Outcome.TRUNCATED, error.detail
                raise Broken("the error answer broke off") from error
        piece = masking.flush()
        record.bytes_out += len(piece)
        await call.send({"type": "http.response.body", "body": piece, "more_body": False})

    async def _send_catalog(self, call: Call, admitted: Admitted) -> bool:
        """``GET /v1/models`` and its members, as far as they are listed; False where the request is to be forwarded."""
        assert call.flight is not None  # noqa: S101  (made by the caller)
        call.flight.wait(Phase.CLIENT)  # the asking has a limit of its own
        try:
            reply = await self._catalog.answer(call.generation, admitted.place, admitted.project, call.record)
        except Fault as fault:
            raise await self._explained(call, fault, admitted.project) from None
        if reply is None:
            return False
        call.answering = True
        await call.send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await call.send({"type": "http.response.body", "body": reply.body, "more_body": False})
        return True

    # --- ends that are not the answer's own --------------------------------------------------------------------------

    async def _ended(self, call: Call, reason: Reason) -> None:
        """Somebody ended this flight: say so, as far as the client can still hear it."""
        record = call.record
        if reason in ("client_gone", "write_stall"):
            broke = call.connection is not None and call.connection.client_error is not None
            if not broke and reason == "client_gone" and await _had_all(call):
                return
            record.outcome = Outcome.CLIENT_ERROR if broke else Outcome.CLIENT_GONE
            if reason == "write_stall":
                raise Broken("the client stopped reading")
            return
        fault = _ending_fault(reason, call)
        streaming = call.answering
        if reason == "shutdown":
            record.outcome = Outcome.SHUTDOWN
        else:
            record.outcome = Outcome.STALLED if streaming and reason == "idle" else Outcome.TIMEOUT
        if not streaming:
            raise fault
        try:
            # Not waiting long for room: a client that does not read must not hold up the end.
            async with asyncio.timeout(0.2):
                await self._break(call, fault)
        except TimeoutError:
            raise Broken(fault.message) from None


_REST_SECONDS = 1.0
_REST_BYTES = 4096


async def _had_all(call: Call) -> bool:
    """Whether a client that left had its whole stream: it was sent the end marker, and SDKs close there.

    The last bytes of such an answer are taken in if they come soon, so that the connection to Lava can be used again.
    """
    record, answer, scanner = call.record, call.opened, call.record.scanner
    if not call.answering or answer is None or scanner is None or not scanner.ended:
        return False
    size = 0
    try:
        async with asyncio.timeout(_REST_SECONDS):
            while size < _REST_BYTES and (piece := await answer.read()):
                size += len(piece)
    except (TimeoutError, UpstreamError):
        pass  # then it is closed
    if record.outcome is Outcome.OK and scanner.error is not None:
        record.outcome, record.upstream_error = Outcome.PROVIDER_ERROR, scanner.error
    return True


def _chosen(call: Call, sending: Sending) -> Sending:
    plan = call.plan = sending.plan
    call.record.provider, call.record.model = plan.route.provider.name, plan.route.model
    call.record.hint = plan.route.hint
    return sending


def sort_head(record: Record, plan: Plan, answer: Answer, admitted: Admitted) -> headers.Answered:
    """The head of an answer as the client gets it; what it says is recorded. Raises ``Fault`` for a redirect."""
    record.first_byte_s = monotonic() - record.started
    status = record.status = answer.status
    if 300 <= status < 400 and status != 304:
        raise errors.redirected(status)
    answered = headers.to_client(answer.headers, keep_length=answer.framing == "length" or record.method == "HEAD")
    if answered.lava_request_id is not None:
        record.lava_request_id = answered.lava_request_id.decode("ascii", "replace")[:200]
    if answered.upload:
        answered.onward = uploads.lead_here(answered.onward, plan, admitted)
    if not answered.inert:
        answered.onward.append(headers.SANDBOX)
    answered.onward += plan.ours
    answered.onward.append((b"x-lava-proxy-request-id", record.request_id.encode("ascii")))
    return answered


def give_whole(client: Connection, record: Record, route: Route, answer: Answer, answered: headers.Answered) -> bool:
    """The usual small answer: where it is here already, it leaves in one piece. False, and nothing done, where not."""
    whole = answer.whole() if client.ready else None
    if whole is None:
        return False
    client.respond(answer.status, answered.onward, whole)
    record.bytes_out = len(whole)
    scanner = record.scanner = _scanner(route, answered)
    scanner.feed(whole)
    scanner.finish()
    if _lacks_its_end(route, answered, scanner):
        record.outcome = Outcome.INCOMPLETE
    _note_error(record, answered, scanner)
    return True


def begin_stream(client: Connection, record: Record, route: Route, answer: Answer, answered: headers.Answered) -> bool:
    """Send on the head of an answer that is not here whole, and what is here of its body. False, and nothing done, where
    the client reads too slowly."""
    if not client.ready:
        return False
    scanner = record.scanner = _scanner(route, answered)
    client.start(answer.status, answered.onward)
    piece = answer.now()
    if piece:
        scanner.feed(piece)
        record.bytes_out += len(piece)
        client.pass_on(piece)
    return True


def _scanner(route: Route, answered: headers.Answered) -> Scanner:
    return Scanner(route.ending, answered.event_stream, answered.encoding is not None)


def _note_error(record: Record, answered: headers.Answered, scanner: Scanner) -> None:
    """An error that came inside a stream is the provider's, and how the request ended."""
    if answered.event_stream and record.outcome is Outcome.OK and scanner.error is not None:
        record.outcome, record.upstream_error = Outcome.PROVIDER_ERROR, scanner.error


def _lacks_its_end(route: Route, answered: headers.Answered, scanner: Scanner) -> bool:
    """Whether a stream that is over ended without the end marker that its dialect has."""
    readable = answered.event_stream and answered.encoding is None
    return readable and route.ending is not Ending.UNKNOWN and not scanner.ended and scanner.error is None


def _masked(redactor: Redactor, pairs: headers.Pairs) -> headers.Pairs:
    return [(redactor.data(name), redactor.data(value)) for name, value in pairs]


def _declared_length(call: Call) -> int | None:
    """The request's ``Content-Length``, checked against the limit before anything is read."""
    value = call.received.noted.get(b"content-length")
    if value is None:
        return None
    # Of heads alike only the length differs, and the front has read it.
    declared = call.connection.length if call.connection is not None else None
    if declared is None:
        if not value.isdigit() or len(value) > 18:
            raise Fault(
                "bad_request",
                "The Content-Length of this request is not a number.",
                "Send a plain decimal length.",
            )
        declared = int(value)
    limit = call.generation.settings.server.max_body_bytes
    if declared > limit:
        raise _too_large(limit)
    return declared


def _too_large(limit: int) -> Fault:
    return Fault(
        "body_too_large",
        f"The request body is larger than {counted(limit, 'byte')}.",
        "Send less, or raise max_body_bytes under [server].",
        # What is still coming of the body must not be read as the next request.
        headers=[(b"connection", b"close")],
    )


def _cut_off(message: str) -> Fault:
    return Fault("upstream_closed", message, "Ask again; what came so far may have been charged.")


def _is_chunked(call: Call) -> bool:
    return any(name == b"transfer-encoding" for name, _ in call.scope["headers"])


def _upstream_fault(error: UpstreamError, call: Call) -> Fault:
    """What an engine's error means to the client; sets the outcome."""
    call.record.outcome = Outcome.TIMEOUT if error.kind == "connect_timeout" else Outcome.UPSTREAM_ERROR
    call.record.upstream_error = error.detail
    said = {"upstream_message": error.detail}
    if error.kind == "proxy":
        return Fault(
            "upstream_unreachable",
            f"Lava cannot be reached: {error.detail}. Nothing was sent.",
            "Check proxy under [upstream].",
            details=said,
        )
    if error.kind == "tls":
        return Fault(
            "upstream_tls",
            f"Lava's certificate could not be verified: {error.detail}. Nothing was sent.",
            "Check the clock of this machine, a network that inspects TLS, or ca_file under [upstream].",
            details=said,
        )
    if error.kind == "connect_timeout":
        return Fault(
            "upstream_timeout",
            "Lava could not be reached in time. Nothing was sent.",
            "Check the network and lava.base_url; the limit is connect under [upstream].",
            retry=True,
            details=said,
        )
    if error.kind == "protocol":
        return Fault(
            "upstream_protocol",
            f"What answered is not sound HTTP: {error.detail}.",
            "Check lava.base_url and any proxy in between; the request may have been charged.",
            details=said,
        )
    if error.kind == "closed" and error.sent:
        return Fault(
            "upstream_closed",
            "Lava closed the connection before it answered.",
            "Ask again if you accept that the request may have been charged twice.",
            details=said,
        )
    return Fault(
        "upstream_unreachable",
        f"Lava cannot be reached: {error.detail}. Nothing was sent.",
        "Check the network and lava.base_url.",
        details=said,
    )


def shutting_down() -> Fault:
    """What a request is told that comes, or still waits, while the daemon goes down."""
    return Fault(
        "shutting_down",
        "This daemon is shutting down.",
        "Try again in a moment.",
        headers=[(b"retry-after", b"1"), (b"connection", b"close")],
    )


def _ending_fault(reason: Reason, call: Call) -> Fault:
    if reason == "shutdown":
        return shutting_down()
    limits = call.generation.limits
    seconds = {"first_byte": limits.first_byte, "idle": limits.idle, "total": limits.total}.get(reason, 0.0)
    what = {
        "first_byte": "did not begin to answer",
        "idle": "stopped moving",
        "total": "took longer than allowed",
    }
    return Fault(
        "upstream_timeout",
        f"Lava {what.get(reason, 'was too slow')} (limit: {seconds:g} s).",
        f"The limit is {reason} under [upstream]; the request may have been charged.",
        retry=False,
    )


async def _absorb(task: asyncio.Task[Any]) -> None:
    """Take in a cancellation of ours that was asked for too late to arrive: it must not strike what comes after."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        task.uncancel()
