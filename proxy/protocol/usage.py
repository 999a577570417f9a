"""Scanning of a response without changing it: token usage, end marker, in-stream error, event boundaries.

Sans-I/O: `Scanner.feed` takes the relayed bytes, in chunks of any size, and never raises. Its cost matters,
because it gets every chunk of every stream. A chunk of whole events gets a few substring searches. JSON is
parsed only for the events that matter (an end marker, an error, the model), or once, at the end, for the last
event with token counts. Quotes inside JSON strings are escaped, so ``"usage"`` with its quotes is never a part
of a generated text.

After ``finish`` the properties are read by several threads at once (the log's, the ledger's): what is parsed on demand may be
parsed twice, and its source is cleared only after its results are set.

The line and event rules are those of the HTML standard, section "Server-sent events": a line ends with CR
LF, CR or LF, an event with an empty line; a line that begins with a colon is a comment; one space after the
field's colon is dropped.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any

from proxy.protocol import fast_json, token_classes
from proxy.protocol.body import Decoding
from proxy.protocol.dialects import Ending

_EVENT_LIMIT = 64 * 1024
_DOCUMENT_LIMIT = 128 * 1024
# The parts that are kept of an event or document above its limit: head for the type, tail for the usage.
_HEAD = 1024
_TAIL = 8 * 1024
_DOCUMENT_HEAD = 4 * 1024
_DOCUMENT_TAIL = 64 * 1024
# Events up to this size are kept raw and parsed at the end. Larger ones are parsed at once, or a thousand streams
# would each hold a long event.
_KEEP = 4 * 1024
_MAX_ID = 200  # characters
# Bytes of a compressed body that are decoded in one go: at most some ten milliseconds, with their scanning. At the end of a
# document, which is not scanned while it arrives, more.
_DECODED_AT_ONCE = 1024 * 1024
_DECODED_AT_THE_END = 4 * 1024 * 1024

# Atomic groups: without them "\r\n" could be read as two line ends.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)+")
_LINE = re.compile(rb"\r\n|\n|\r")
_COMMENTS = re.compile(rb"(?::[^\r\n]*(?:\r\n|\n|\r))*")
_COUNTS = re.compile(rb'"usage(?:Metadata)?"[ \t]*:[ \t]*\{')
_COUNTS_TEXT = re.compile(r'"usage(?:Metadata)?"\s*:\s*\{')
_COUNTS_AT_THE_END = re.compile(rb'"(?:usage(?:Metadata)?|(billed_units))"[ \t]*:[ \t]*\{')
_ERROR = re.compile(rb'"error"(?!\s*:\s*null)')
_FINISH = re.compile(rb'"finishReason"\s*:\s*"(?!FINISH_REASON_UNSPECIFIED")[^"]|"promptFeedback"\s*:\s*\{')
_MODEL = re.compile(rb'"model(?:Version)?"\s*:\s*"([^"\\]{1,200})"')
# The id of the outermost object, or of the one in it that is the response: nothing else is opened or closed before it.
_ID = re.compile(rb'\A[^{]{0,64}\{[^{}\[\]]*(?:"(?:response|message)"\s*:\s*\{[^{}\[\]]*)?"id"\s*:\s*"([^"\\]{1,200})"')
_GOOGLES_ID = re.compile(rb'"responseId"\s*:\s*"([^"\\]{1,200})"')
_TYPE = re.compile(rb'"type"\s*:\s*"([^"\\]*)"')
_NAME = re.compile(rb"(?:^|[\r\n])event: ?([^\r\n]*)")

# The types of the events that end a stream. Tuples, not sets: the value to look up is from JSON and may be a list.
_ENDS: dict[Ending, tuple[str, ...]] = {
    Ending.MESSAGES: ("message_stop",),
    Ending.RESPONSES: ("response.completed", "response.failed", "response.incomplete"),
    Ending.IMAGES: ("image_generation.completed", "image_edit.completed"),
    Ending.TRANSCRIPT: ("transcript.text.done",),
    Ending.SPEECH: ("speech.audio.done",),
}
# Substrings of an event to be parsed, beside its usage: a fast filter, after which `_event` decides.
_MARKS: dict[Ending, tuple[bytes, ...]] = {
    Ending.CHAT: (b"error", b"[DONE]"),
    Ending.GOOGLE: (b"error", b"finishReason", b"promptFeedback"),
    Ending.UNKNOWN: (b"error",),
    **{ending: (b"error", *(name.encode() for name in names)) for ending, names in _ENDS.items()},
}


# Events of one stream that may be parsed without a result; after that, only patterns are searched.
_MAX_IN_VAIN = 5000
# An end marker, as far as a pattern can detect it.
_ROUGH: dict[Ending, re.Pattern[bytes]] = {
    Ending.CHAT: re.compile(rb"(?:^|[\r\n])data: ?\[DONE\] *(?:[\r\n]|$)"),
    Ending.GOOGLE: _FINISH,
    Ending.UNKNOWN: re.compile(rb"(?!)"),
    **{
        ending: re.compile(
            rb'(?:(?:^|[\r\n])event: ?|"type" ?: ?")(?:%b)(?:["\r\n]|$)'
            % b"|".join(re.escape(name.encode()) for name in names)
        )
        for ending, names in _ENDS.items()
    },
}
# Until the model has been named.
_FIRST_MARKS = {ending: (b'"model', *marks) for ending, marks in _MARKS.items()}


class Scanner:
    """Scans one response body.

    `sse`: it is an event stream, not a JSON document. Memory is bounded: 64 KiB of an unfinished event, 128 KiB of a
    document; of longer ones only head and tail are scanned.
    """

    __slots__ = (
        "_blind",
        "_document",
        "_done",
        "_ended",
        "_ending",
        "_error",
        "_first",
        "_head",
        "_id",
        "_in_vain",
        "_last",
        "_marks",
        "_model",
        "_pending",
        "_size",
        "_sse",
        "_unread",
        "_usage",
    )

    def __init__(self, ending: Ending, sse: bool) -> None:
        self._ending = ending
        self._sse = sse
        self._blind = False
        self._done = False
        self._ended = False
        self._in_vain = 0
        self._error: str | None = None
        self._model: str | None = None
        self._id: str | None = None
        self._usage: dict[str, Any] | None = None  # of a complete body, once it was read, or what was noted
        # Events with token counts: raw (parsed on demand), or their usage object.
        self._first: bytes | dict[str, Any] | None = None
        self._last: bytes | dict[str, Any] | None = None
        self._marks = _FIRST_MARKS[ending]
        self._pending = bytearray()
        self._head: bytes | None = None  # of an event or document above its limit; only the tail is kept then
        self._document: deque[bytes] = deque()
        self._unread: bytes | None = None
        self._size = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two SSE events or before the first."""
        if self._blind or not self._sse or self._head is not None:
            return False
        return not self._pending or _COMMENTS.fullmatch(self._pending) is not None

    @property
    def ended(self) -> bool:
        """Whether the dialect's end marker was seen. Of documents, only Google's have one."""
        if self._ending is Ending.GOOGLE:
            self._read()
        return self._ended

    @property
    def error(self) -> str | None:
        """The type of the first error inside the stream (the provider's value, at most 64 characters)."""
        if self._unread and b'"error"' in self._unread:
            self._read()
        return self._error

    @property
    def model(self) -> str | None:
        """The model that answered, as the response names it."""
        self._read()
        return self._model

    @property
    def response_id(self) -> str | None:
        """The provider's id of the response (at most 200 characters)."""
        self._read()
        return self._id

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """Input and output tokens as the provider counts them (``token_classes.counted``)."""
        usage = self.raw_usage
        return (None, None) if usage is None else token_classes.counted(usage)

    @property
    def raw_usage(self) -> dict[str, Any] | None:
        """The usage object as the provider wrote it: of the last event (or document) with one; Anthropic's two joined."""
        self._read()
        first, last = self._first, self._last  # in this order: they are cleared in the other
        if last is None:
            return self._usage
        usage = _counted(last, -1)
        if self._ending in (Ending.MESSAGES, Ending.UNKNOWN):
            usage = _counted(first, 0) | {name: value for name, value in usage.items() if value is not None}
        if self._done:
            self._usage = usage or self._usage
            self._last = None
            self._first = None
        return usage or self._usage

    def note(self, usage: dict[str, Any]) -> None:
        """Take a usage object that stands outside of the body. One in the body replaces it."""
        self._usage = usage

    def feed(self, chunk: bytes) -> None:
        """Scan the next bytes of the body. Never raises."""
        if self._blind:
            return
        if not self._sse:
            self._collect(chunk)
        elif not self._pending and chunk.endswith((b"\n\n", b"\r\n\r\n")) and len(chunk) <= _EVENT_LIMIT:
            # The common case, one chunk of one or more whole events: nothing is copied or split.
            self._take(chunk)
        else:
            self._join(chunk)

    def _take(self, block: bytes) -> None:
        """Scan whole events: parse them only if a fast search shows that one may matter."""
        # `find`, because `in` first creates and discards an exception (it checks whether the bytes are a number).
        find = block.find
        for mark in self._marks:
            if find(mark) >= 0:
                self._look(block)
                return
        if find(b'"usage') >= 0:
            self._note(block)

    def finish(self) -> None:
        """End the body, complete or not: an event without its empty line counts too. Never raises."""
        if self._blind or self._done:
            return
        self._done = True
        if not self._sse:
            # Parsed on demand, after the request; a long one now, because thousands may wait for the ledger.
            self._unread = b"".join(self._document)
            self._document.clear()
            if len(self._unread) > _KEEP:
                self._read()
        elif self._head is not None:
            self._long(self._head, bytes(self._pending).rstrip(b"\r\n")[-_TAIL:])
        elif self._pending:
            # Clients accept a last "data: [DONE]" without its empty line, so it counts here.
            self._look(bytes(self._pending))

    def _join(self, chunk: bytes) -> None:
        """Scan a `chunk` that begins or ends anywhere in an event."""
        pending = self._pending
        if self._head is not None:
            seen = max(0, len(pending) - 3)
            pending += chunk
            # Without one of these there is no empty line; the pattern alone would be much slower.
            maybe = any(pending.find(ends, seen) >= 0 for ends in (b"\n\n", b"\n\r", b"\r\r"))
            blank = _BLANK.search(pending, seen) if maybe else None
            if blank is None:
                del pending[: -(_TAIL + 4)]
                return
            self._long(self._head, bytes(pending[max(0, blank.start() - _TAIL) : blank.start()]))
            self._head = None
            chunk = bytes(pending[blank.end() :])
            pending.clear()
        if not pending:
            chunk = chunk.lstrip(b"\r\n")  # an empty line there (or the LF of a cut CR LF) means nothing
        # An empty line has at most four bytes, of which three may have come before.
        seen = max(0, len(pending) - 3)
        pending += chunk
        end = 0
        if b"\r" in pending:
            for blank in _BLANK.finditer(pending, seen):
                end = blank.end()
        elif (last := pending.rfind(b"\n\n", seen)) >= 0:
            end = last + 2
        if end:
            self._take(bytes(pending[:end]))
            del pending[:end]
        if len(pending) > _EVENT_LIMIT + 4:
            self._head = bytes(pending[:_HEAD])
            del pending[: -(_TAIL + 4)]

    def _look(self, block: bytes) -> None:
        """Parse a block of whole events one by one."""
        if self._in_vain >= _MAX_IN_VAIN:
            self._skim(block)
            return
        for event in _events(block):
            if len(event) > _EVENT_LIMIT:
                self._long(event[:_HEAD], event[-_TAIL:])
            else:
                before = self._model, self._error, self._ended
                self._event(event)
                if before == (self._model, self._error, self._ended):
                    self._in_vain += 1
                    if self._in_vain >= _MAX_IN_VAIN:
                        self._skim(block)  # the rest of it, and what was already parsed
                        return

    def _skim(self, block: bytes) -> None:
        """Scan whole events by pattern, in a stream with thousands of events that were parsed without a result."""
        ending = self._ending
        if (
            not self._ended
            and any(block.find(mark) >= 0 for mark in _MARKS[ending][1:])
            and _ROUGH[ending].search(block)
        ):
            self._ended = True
        if block.find(b'"usage') >= 0 and _COUNTS.search(block):
            self._keep(block[-_KEEP:])

    def _event(self, event: bytes) -> None:
        if self._model is None and b'"model' in event:
            self._identify(event)
        if b'"usage' in event and _counts(event):
            self._keep(event if len(event) <= _KEEP else _count(_parsed(event)))
        if self._error is None and b"error" in event:
            self._error = _event_error(event)
        if not self._ended and self._owed(event):
            self._ended = True

    def _owed(self, event: bytes) -> bool:
        """Whether this event is the end marker of the dialect."""
        ending = self._ending
        if ending is Ending.UNKNOWN or not any(mark in event for mark in _MARKS[ending][1:]):
            return False
        name, data = _fields(event)
        if ending is Ending.CHAT:
            return data.strip() == "[DONE]"
        if ending is Ending.GOOGLE:
            return _finished(_parsed(event))
        ends = _ENDS[ending]
        if name in ends:
            return True
        body = _parsed(event)
        return isinstance(body, dict) and body.get("type") in ends

    def _note(self, block: bytes) -> None:
        """Keep a block of which only the usage matters: raw if that is safe, else parsed."""
        if block.count(b'"usage') == block.count(b'"usage":null'):
            return  # OpenAI's chunks before the last, if usage was requested
        if len(block) <= _KEEP and _COUNTS.search(block):
            self._keep(block)
        else:
            self._look(block)

    def _keep(self, counted: bytes | dict[str, Any]) -> None:
        if self._first is None:
            self._first = counted
        self._last = counted

    def _identify(self, event: bytes) -> None:
        """Take the model and the response's id from the first event that names a model."""
        if len(event) <= _KEEP:
            body = _parsed(event)
            self._model, found = _model(body), _id(body)
        else:
            self._model, found = _first_model(event), self._first_id(event)
        self._id = self._id or found
        if self._model is not None:
            self._marks = _MARKS[self._ending]

    def _first_id(self, raw: bytes) -> str | None:
        """Return the response's id in an event or document that is too long to parse."""
        found = _GOOGLES_ID.search(raw) if self._ending is Ending.GOOGLE else _ID.match(raw)
        return found[1].decode("utf-8", "replace") if found else None

    def _long(self, head: bytes, tail: bytes) -> None:
        """Scan an event above the limit (``response.completed`` repeats the whole response, others have an image)."""
        names = {match[1].decode("utf-8", "replace") for find in (_NAME, _TYPE) if (match := find.search(head))}
        if self._ending is Ending.IMAGES:  # the image may precede the type
            names.update(match[1].decode("utf-8", "replace") for match in _TYPE.finditer(tail))
        if not names.isdisjoint(_ENDS.get(self._ending, ())) or (
            self._ending is Ending.GOOGLE and _FINISH.search(tail)
        ):
            self._ended = True
        if self._error is None and "error" in names:
            self._error = "error"
        if self._id is None:
            self._id = self._first_id(head)
        if counted := _tail_count(tail):
            self._keep(counted)

    def _collect(self, chunk: bytes) -> None:
        """Keep a document: whole up to its limit, then its head and tail."""
        if not self._size:
            chunk = chunk.lstrip(b"\xef\xbb\xbf \t\r\n")
            if chunk and chunk[0] not in b"{[":
                self._blind = True  # audio, an image, a web page
        if not chunk or self._blind or self._done:
            return
        kept = self._document
        kept.append(chunk)
        self._size += len(chunk)
        if self._head is None:
            if self._size <= _DOCUMENT_LIMIT:
                return
            self._head = b"".join(kept)[:_DOCUMENT_HEAD]
        while self._size - len(kept[0]) >= _DOCUMENT_TAIL:
            self._size -= len(kept.popleft())
        if self._size > _DOCUMENT_LIMIT:  # one chunk of megabytes
            kept[0] = kept[0][-_DOCUMENT_TAIL:]
            self._size = sum(map(len, kept))

    def _read(self) -> None:
        """Parse the complete document, unless that was done."""
        whole = self._unread
        if whole is not None:
            self._parse(whole)
            self._unread = None

    def _parse(self, whole: bytes) -> None:
        if self._head is not None:
            tail = whole[-_DOCUMENT_TAIL:]
            self._model = _first_model(self._head) or _first_model(tail)
            self._id = self._first_id(self._head)
            if self._ending is Ending.GOOGLE and self._id is None:
                self._id = self._first_id(tail)
            self._last = _tail_count(tail) or _tail_count(self._head)
            self._ended = self._ending is Ending.GOOGLE and _FINISH.search(tail) is not None
            return
        if self._ending is not Ending.GOOGLE:
            answer = fast_json.answer(whole)
            if answer is not None and answer.model and answer.type in (None, "message"):
                self._model, self._id, self._last = answer.model[:200], _short(answer.id), answer.usage
                return
        body = _loaded(whole)
        self._model, self._id = _model(body), _id(body)
        self._last = _count(body)
        self._error = _error(body)
        self._ended = self._ending is Ending.GOOGLE and _finished(body)


class EncodedScanner(Scanner):
    """Scans a response body with a Content-Encoding, in a copy that is decoded while it arrives.

    It finds no end marker and no boundary: nothing can be put between the events of a compressed stream, so the relay treats
    it like a stream that it cannot read. A body that is broken or decodes to too much is scanned up to there (``Decoding``).
    """

    __slots__ = ("_decoding",)

    def __init__(self, ending: Ending, sse: bool, encoding: bytes) -> None:
        super().__init__(ending, sse)
        self._decoding = Decoding(encoding)

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def ended(self) -> bool:
        return False

    def feed(self, chunk: bytes) -> None:
        """Scan the next bytes of the body. Never raises."""
        self._decode(chunk, _DECODED_AT_ONCE)

    def finish(self) -> None:
        """End the body, complete or not. Never raises."""
        # What is left of a body that arrived faster than it was decoded.
        self._decode(b"", _DECODED_AT_ONCE if self._sse else _DECODED_AT_THE_END)
        super().finish()

    def _decode(self, chunk: bytes, at_once: int) -> None:
        if not self._blind and not self._done:
            for piece in self._decoding.feed(chunk, at_once):
                super().feed(piece)


def _events(block: bytes) -> list[bytes]:
    """Return the events of a block, without line ends around them and without empty ones."""
    parts = _BLANK.split(block) if b"\r" in block else block.split(b"\n\n")
    return [event for part in parts if (event := part.strip(b"\r\n"))]


def _fields(event: bytes) -> tuple[str, str]:
    """Return (event name, data) of one event; the lines of its data are joined with a line feed."""
    name = ""
    data = []
    for line in _LINE.split(event.removeprefix(b"\xef\xbb\xbf")):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        elif field == b"event":
            name = value.removeprefix(b" ").decode("utf-8", "replace")
    return name, "\n".join(data)


def _loaded(text: str | bytes) -> Any:
    """Return the JSON value, or None if it is invalid (or nested too deeply)."""
    try:
        return fast_json.read(text) if isinstance(text, bytes) else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parsed(event: bytes) -> Any:
    return _loaded(_fields(event)[1])


def _counts(event: bytes) -> bool:
    """Whether an event has a usage object, even in JSON over several lines."""
    if _COUNTS.search(event):
        return True
    return event.count(b"data") > 1 and _COUNTS_TEXT.search(_fields(event)[1]) is not None


def _counted(kept: bytes | dict[str, Any] | None, which: int) -> dict[str, Any]:
    """Return the usage object of a kept event; of a block, that of its first (0) or last (-1) event with one."""
    if isinstance(kept, bytes):
        counting = [event for event in _events(kept) if _counts(event)]
        return _count(_parsed(counting[which])) if counting else {}
    return kept or {}


def _count(body: Any) -> dict[str, Any]:
    """Return the usage object of an event's data or of a document, in any dialect's position; else empty."""
    if isinstance(body, list):  # Google's stream without alt=sse
        return next((counted for each in reversed(body) if isinstance(each, dict) and (counted := _count(each))), {})
    if not isinstance(body, dict):
        return {}
    for name in ("usage", "usageMetadata"):
        if isinstance(body.get(name), dict):
            return dict(body[name])
    # OpenAI's responses; Groq if the client did not request usage; the end of Cohere's streams.
    for holder in ("response", "x_groq", "delta"):
        inner = body.get(holder)
        if isinstance(inner, dict) and isinstance(inner.get("usage"), dict):
            return dict(inner["usage"])
    meta = body.get("meta")
    if isinstance(meta, dict) and isinstance(meta.get("billed_units"), dict):
        return {name: meta[name] for name in ("billed_units", "tokens") if name in meta}  # Cohere's other endpoints
    message = body.get("message")
    if isinstance(message, dict) and isinstance(message.get("usage"), dict):
        # Anthropic's message_start: its output count is preliminary and not used.
        return {name: value for name, value in message["usage"].items() if name != "output_tokens"}
    return {}


def _tail_count(tail: bytes) -> dict[str, Any]:
    """Return the last usage object in the last bytes of an event or document."""
    found = list(_COUNTS_AT_THE_END.finditer(tail))
    if not found:
        return {}
    last = found[-1]
    try:
        value = json.JSONDecoder().raw_decode(tail[last.end() - 1 :].decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {"billed_units": value} if last[1] else value


def _model(body: Any) -> str | None:
    if isinstance(body, list):
        return next((name for each in body if isinstance(each, dict) and (name := _model(each))), None)
    if not isinstance(body, dict):
        return None
    for holder in (body, body.get("response"), body.get("message")):
        if isinstance(holder, dict):
            for name in ("model", "modelVersion"):
                if isinstance(holder.get(name), str) and holder[name]:
                    return str(holder[name][:200])
    return None


def _id(body: Any) -> str | None:
    """Return the id of a response, in any dialect's position."""
    if isinstance(body, list):
        return next((found for each in body if isinstance(each, dict) and (found := _id(each))), None)
    if not isinstance(body, dict):
        return None
    for holder in (body, body.get("response"), body.get("message")):
        if isinstance(holder, dict):
            for name in ("id", "responseId"):
                found = _short(holder.get(name))
                if found:
                    return found
    return None


def _short(found: object) -> str | None:
    return found if isinstance(found, str) and 0 < len(found) <= _MAX_ID else None


def _first_model(raw: bytes) -> str | None:
    """Return the first model in an event or document that is too long to parse."""
    found = _MODEL.search(raw)
    return found[1].decode("utf-8", "replace") if found else None


def _finished(body: Any) -> bool:
    """Whether a chunk of Google's has a finish reason or a prompt feedback."""
    if isinstance(body, list):
        return any(isinstance(each, dict) and _finished(each) for each in body)
    if not isinstance(body, dict):
        return False
    if body.get("promptFeedback"):
        return True
    candidates = body.get("candidates")
    return isinstance(candidates, list) and any(
        isinstance(each, dict) and each.get("finishReason") not in (None, "", "FINISH_REASON_UNSPECIFIED")
        for each in candidates
    )


def _event_error(event: bytes) -> str | None:
    """Return the type of the error in an event, None if there is none."""
    name, data = _fields(event)
    if name != "error" and not _ERROR.search(event):
        return None
    return _error(_loaded(data)) or ("error" if name == "error" else None)


def _error(body: Any) -> str | None:
    """Return the type of the error in an event's data or in a document, None if there is none."""
    if isinstance(body, list):
        return next((kind for each in body if isinstance(each, dict) and (kind := _error(each))), None)
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    response = body.get("response")
    if not error and body.get("type") == "response.failed" and isinstance(response, dict):
        error = response.get("error") or "error"
    if not error and body.get("type") == "error":
        error = body  # the responses dialect: code and message beside the type
    if not error:
        return None
    if isinstance(error, dict):
        for name in ("type", "status", "code"):
            kind = error.get(name)
            if isinstance(kind, str) and kind and not (error is body and name == "type"):
                return kind[:64]
    return "error"
