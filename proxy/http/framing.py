"""Strict parsing of HTTP/1 requests: heads and bodies. Pure, without network access.

``read_head`` turns one head into a ``Head`` or a ``RefusalError``; two regular expressions match every byte. ``LengthBody`` and
``ChunkedBody`` are sans-I/O: bytes in, body bytes out; they drop extensions and trailers. ``connection.py`` is the connection
around them, and ``tests/test_connection.py`` compares them with httptools as an oracle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a connection. Times in seconds, sizes in bytes."""

    header_seconds: float = 10.0
    """From the first byte of a head to its end, and from the start of a connection to its first byte."""
    keep_alive_seconds: float = 75.0
    """Between two requests. Longer than in the pools of common clients, so that they close first."""
    body_grace_seconds: float = 30.0
    body_rate: float = 1024.0
    """Minimum bytes per second while we wait for the body, averaged over each ``body_grace_seconds``."""
    linger_seconds: float = 5.0
    """How long a connection that we close is still read, so that a reset cannot overtake our response."""
    flush_seconds: float = 120.0
    """How long the last bytes of a complete response may make no progress."""
    sweep_seconds: float = 0.5
    """Interval of the sweep. Every deadline above is accurate to this."""
    target_bytes: int = 8 * 1024
    header_bytes: int = 32 * 1024
    header_count: int = 100
    extension_bytes: int = 4 * 1024
    """Chunk extensions of one body, together."""
    read_ahead_bytes: int = HIGH_WATER_LIMIT
    """Body or pipelined bytes that may wait for the application before reading pauses."""
    connections: int = 0
    """Connections above this number get a 503 and are closed; 0 means no limit."""


# --- reading a head -----------------------------------------------------------------------------------------


class RefusalError(Exception):
    """Bytes that are no valid request: a code of ``errors.TABLE`` and a sentence without any of the bytes."""

    def __init__(self, code: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = headers or []


class HeadMemory:
    """Results that hold for every head like this one (see ``RequestHeads``). ``template`` is the gateway's."""

    __slots__ = ("template",)

    def __init__(self) -> None:
        self.template: object = None


class Head(NamedTuple):
    """A request head with validated framing. ``length`` is ``None`` for a chunked body."""

    method: str
    target: bytes
    version: str
    headers: Headers
    keep_alive: bool
    length: int | None
    expects_continue: bool
    memory: HeadMemory


_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"++) ([\x21-\x7e]++) HTTP/1\.([01])\r\n")
# One whole header line, from after one LF to its own CRLF; white space after the value is stripped later.
# Possessive, so that a line that does not match costs one pass. Bare CR or LF, NUL, folding, a space before the
# colon: none of them ever matches.
_FIELD = re.compile(rb"(?<=\n)(" + _TOKEN + rb"++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n")
_LOOSE = "Lines must end in CRLF, and no other CR or LF may stand in a head."
_LOOSE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_VERSION_AT_END = re.compile(rb" HTTP/(\d{1,3})\.(\d{1,3})\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*+;[\t\x20-\x7e\x80-\xff]*+)?+)\r\n\Z")

_ORIGIN = re.compile(rb"\r\norigin:[ \t]*([^\r\n \t]*)[ \t]*(?=\r\n)", re.IGNORECASE)
_ASKED_FOR = re.compile(rb"(?:\r\n)?(" + _TOKEN + rb"{1,32} /[^\x00-\x20?#]{0,200})")

_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,6})\r\n")

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))
_REQUEST_LINE_SLACK = 64  # method, version and spaces of a request line, beside its target
_CONTENT_LENGTH_DIGITS = 15  # just under a petabyte; more digits are an integer overflow attack


def origin_of(head: bytes) -> bytes | None:
    """Return the ``Origin`` of a refused head; ``None`` if there is none, or more than one."""
    found = _ORIGIN.findall(head)
    return found[0] if len(found) == 1 else None


def only_origin(headers: Headers) -> bytes | None:
    """Return the same of a head that was read."""
    found = [value for name, value in headers if name == b"origin"]
    return found[0] if len(found) == 1 else None


def method_and_path(head: bytes) -> str:
    """Return method and path of a refused head, for the log; empty if unreadable. Without the query: it may hold a key."""
    found = _ASKED_FOR.match(head)
    return found[1].decode("ascii", "replace") if found is not None else ""


def read_head(head: bytes, limits: Limits) -> Head:
    """Parse one head: request line and fields, each with its CRLF, without the empty line; ``head`` ends in CRLF.

    Raises ``RefusalError``. The order of the checks decides which error a wrong head gets: syntax of the request line,
    version, method, target, then the fields, then the framing of the body.
    """
    matched = _REQUEST_LINE.match(head)
    if matched is None:
        raise _refuse_request_line(head[: head.find(b"\r\n")])
    method_bytes, target, minor = matched.groups()
    method = _METHODS.get(method_bytes)
    if method is None:
        raise RefusalError("method_not_allowed", "This method is not served here.")
    if len(target) > limits.target_bytes:
        raise RefusalError("target_too_long", f"The request target is longer than {limits.target_bytes} bytes.")
    if target[0] != 0x2F:
        raise RefusalError(
            "bad_target", "The request target must begin with a slash; a full URL or * is not served here."
        )
    if b"#" in target:
        raise RefusalError("bad_target", "The request target holds a #; a fragment is never sent.")
    start = matched.end()
    if len(head) - start > limits.header_bytes:
        raise RefusalError("headers_too_large", f"The headers are larger than {limits.header_bytes} bytes.")
    fields = _FIELD.findall(head, start)
    # Every match is one whole line with one LF: equal numbers mean that no byte is outside a match.
    if len(fields) != head.count(b"\n", start):
        raise _refuse_fields(head[start:])
    if len(fields) > limits.header_count:
        raise RefusalError("headers_too_large", f"There are more than {limits.header_count} headers.")

    headers = [(name.lower(), value.rstrip()) for name, value in fields]
    version = "1.1" if minor == b"1" else "1.0"
    keep_alive = version == "1.1"
    hosts = 0
    length: int | None = 0
    measured = chunked = expects_continue = False
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            hosts += 1
            if not value:
                raise RefusalError("bad_request", "The Host header is empty.")
        elif name == b"content-length":
            if measured:
                raise RefusalError("bad_request", "There is more than one Content-Length header.")
            if not value.isdigit() or len(value) > _CONTENT_LENGTH_DIGITS:
                raise RefusalError("bad_request", "The Content-Length header is not a number.")
            measured, length = True, int(value)
        elif name == b"transfer-encoding":
            if chunked:
                raise RefusalError("bad_request", "There is more than one Transfer-Encoding header.")
            _require_chunked(value, version)
            chunked = True
        elif name == b"connection":
            keep_alive = keep_alive and b"close" not in tokens(value)
        elif name == b"upgrade":
            if b"websocket" in tokens(value):
                raise RefusalError(
                    "upgrade_required",
                    "WebSockets are not forwarded, so OpenAI's realtime and Gemini's live API cannot be used here.",
                    [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")],
                )
        elif value.lower() == b"100-continue":
            expects_continue = True
        else:
            raise RefusalError("expectation_failed", "The only expectation that is met here is 100-continue.")
    if hosts != 1:
        raise RefusalError("bad_request", "There must be exactly one Host header.")
    if chunked:
        if measured:
            raise RefusalError("bad_request", "Content-Length and Transfer-Encoding must not stand together.")
        length = None
    # RFC 9110 section 10.1.1: an HTTP/1.0 client's expectation is ignored; so is one without a body.
    expects_continue = expects_continue and version == "1.1" and length != 0
    return Head(method, target, version, headers, keep_alive, length, expects_continue, HeadMemory())


_LENGTH_LINE = re.compile(rb"\n[Cc]ontent-[Ll]ength:[ \t]*+([0-9]++)[ \t]*+\r\n")
_MAX_REMEMBERED = 4 * 1024


class RequestHeads:
    """The heads of one connection. A tool sends the same head again and again, and only the body length changes.

    Such a head is not parsed again: it is like the previous one if every byte is the same, except for the digits of
    ``Content-Length``, and only the length depends on those.
    """

    __slots__ = ("_after", "_before", "_head", "_length_index", "_limits", "_raw")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._raw = b""
        self._head: Head | None = None
        self._before = self._after = b""  # around the digits; empty if there are none
        self._length_index = 0  # of Content-Length among the headers

    def read(self, raw: bytes) -> Head:
        """Return the result of ``read_head``; heads alike share one ``memory``. Raises ``RefusalError``."""
        last = self._head
        if last is not None:
            if raw == self._raw:
                return last
            before, after = self._before, self._after
            if before and raw.startswith(before) and raw.endswith(after):
                digits = raw[len(before) : len(raw) - len(after)]
                if digits.isdigit() and len(digits) <= _CONTENT_LENGTH_DIGITS:
                    headers = last.headers.copy()
                    headers[self._length_index] = (b"content-length", digits)
                    head = Head(
                        last.method,
                        last.target,
                        last.version,
                        headers,
                        last.keep_alive,
                        int(digits),
                        False,
                        last.memory,
                    )
                    self._raw, self._head = raw, head
                    return head
            self._head = None
        head = read_head(raw, self._limits)
        if len(raw) <= _MAX_REMEMBERED and not head.expects_continue:
            self._raw, self._head = raw, head
            self._before = self._after = b""
            # Every line of a parsed head is a whole field, so this can only be the one that was counted.
            digits_at = _LENGTH_LINE.search(raw)
            if digits_at is not None and not any(name == b"expect" for name, _ in head.headers):
                start, end = digits_at.span(1)
                self._before, self._after = raw[:start], raw[end:]
                self._length_index = [name for name, _ in head.headers].index(b"content-length")
        return head


def tokens(value: bytes) -> list[bytes]:
    """Return the comma-separated words of a header's value, in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def _require_chunked(value: bytes, version: str) -> None:
    if version == "1.0":
        raise RefusalError("bad_request", "HTTP/1.0 has no Transfer-Encoding.")
    codings = tokens(value)
    if codings == [b"chunked"]:
        return
    if codings[-1] == b"chunked" and codings.count(b"chunked") == 1 and b"" not in codings:
        raise RefusalError("not_implemented", "The only transfer coding understood here is chunked, alone.")
    if any(b"chunked" in coding for coding in codings) or b"" in codings:
        raise RefusalError("bad_request", "The Transfer-Encoding header does not end in exactly one chunked.")
    raise RefusalError("not_implemented", "The only transfer coding understood here is chunked.")


def _refuse_request_line(line: bytes) -> RefusalError:
    if line[:3] in (b"\x16\x03\x01", b"\x16\x03\x03"):
        return RefusalError(
            "bad_request", "This is a TLS handshake; the port speaks plain HTTP: use http://, not https://."
        )
    if _LOOSE_LINE_END.search(line):
        return RefusalError("bad_request", _LOOSE)
    version = _VERSION_AT_END.search(line)
    if version is not None and (int(version[1]), int(version[2])) not in ((1, 0), (1, 1)):
        return RefusalError("http_version_unsupported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    parts = line.split(b" ")
    if version is not None and len(parts) == 3 and re.search(rb"[^\x21-\x7e]", parts[1]):
        return RefusalError("bad_target", "The request target holds bytes that must be percent-encoded.")
    return RefusalError("bad_request", "This is not an HTTP request line.")


def _refuse_fields(fields: bytes) -> RefusalError:
    if _LOOSE_LINE_END.search(fields):
        return RefusalError("bad_request", _LOOSE)
    for line in fields.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return RefusalError("bad_request", "A header line begins with white space; folded headers are not served.")
        if line and not re.match(_TOKEN + rb"+:", line):
            return RefusalError("bad_request", "A header line has no valid name before its colon.")
    return RefusalError("bad_request", "A header value holds a control character.")


def refuse_early(partial: bytes, seen: int, limits: Limits) -> RefusalError | None:
    """Check an incomplete head, so that a client does not wait for a deadline if the refusal is already certain.

    ``seen`` is the number of bytes of ``partial`` that were checked before.
    """
    if partial == b"\r":
        return None  # half of an empty line, which is accepted
    if not re.match(_TOKEN, partial):
        return _refuse_request_line(partial)
    if _LOOSE_LINE_END.search(partial, max(0, seen - 1)):
        return RefusalError("bad_request", _LOOSE)
    line_end = partial.find(b"\r\n", 0, limits.target_bytes + _REQUEST_LINE_SLACK + 2)
    if line_end < 0:
        if len(partial) <= limits.target_bytes + _REQUEST_LINE_SLACK:
            return None
        if b" " not in partial[:_REQUEST_LINE_SLACK]:
            return RefusalError("bad_request", "This is not an HTTP request line.")
        return RefusalError("target_too_long", f"The request target is longer than {limits.target_bytes} bytes.")
    if len(partial) - line_end - 2 > limits.header_bytes + 2:
        return RefusalError("headers_too_large", f"The headers are larger than {limits.header_bytes} bytes.")
    return None


# --- reading a body -----------------------------------------------------------------------------------------


class LengthBody:
    """A body of a declared length. ``feed`` returns the position at which it stopped, and the body bytes."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def worth_draining(self) -> bool:
        """Whether the rest is small enough to be read and discarded, so that the connection can be reused."""
        return self.left <= HIGH_WATER_LIMIT

    def feed(self, data: bytes, position: int) -> tuple[int, bytes]:
        piece = data[position : position + self.left]
        self.left -= len(piece)
        return position + len(piece), piece


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1), parsed strictly: CRLF only, extensions counted, trailers dropped."""

    __slots__ = (
        "_after_data",
        "_extensions",
        "_in_trailers",
        "_left",
        "_limits",
        "_line",
        "_trailers",
        "done",
    )
    worth_draining = False

    def __init__(self, limits: Limits) -> None:
        self.done = False
        self._limits = limits
        self._line = b""
        self._left = 0
        self._after_data = False
        self._in_trailers = False
        self._extensions = 0
        self._trailers = 0

    def feed(self, data: bytes, position: int) -> tuple[int, bytes]:
        """Parse ``data``. Raises ``RefusalError`` at the first byte that cannot belong to a chunked body."""
        pieces = []
        size = len(data)
        while position < size and not self.done:
            if not (self._line or self._left or self._after_data or self._in_trailers):
                # A complete small chunk: a body of many small chunks must not block the loop.
                line = _PLAIN_SIZE.match(data, position)
                start, length = (line.end(), int(line[1], 16)) if line is not None else (position, 0)
                if length and data.startswith(b"\r\n", start + length):
                    pieces.append(data[start : start + length])
                    position = start + length + 2
                    continue
            if self._left:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                self._after_data = not self._left
                continue
            line_end = data.find(b"\n", position) + 1
            self._line += data[position : line_end or size]
            position = line_end or size
            self._judge_line(whole=bool(line_end))
        return position, pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _judge_line(self, whole: bool) -> None:
        line = self._line
        if self._after_data:
            if not b"\r\n".startswith(line):
                raise RefusalError("bad_request", "A chunk is longer than its size.")
            if whole:
                self._after_data, self._line = False, b""
        elif self._in_trailers:
            self._judge_trailer(line, whole)
        elif whole:
            size = _CHUNK_SIZE.match(line)
            if size is None:
                raise RefusalError("bad_request", "A chunk size is not a hexadecimal number followed by CRLF.")
            self._extensions += len(size[2])
            self._left = int(size[1], 16)
            self._in_trailers = not self._left
            self._line = b""
        elif line[0] not in b"0123456789abcdefABCDEF":
            raise RefusalError("bad_request", "A chunk size is not a hexadecimal number followed by CRLF.")
        unfinished = len(self._line) - 17 if not self._in_trailers else 0
        if self._extensions + max(0, unfinished) > self._limits.extension_bytes:
            raise RefusalError("bad_request", f"Chunk extensions exceed {self._limits.extension_bytes} bytes.")

    def _judge_trailer(self, line: bytes, whole: bool) -> None:
        if self._trailers + len(line) > self._limits.header_bytes:
            raise RefusalError("headers_too_large", f"The trailers are larger than {self._limits.header_bytes} bytes.")
        if not whole:
            return
        self._trailers += len(line)
        self._line = b""
        if line == b"\r\n":
            self.done = True
        elif _FIELD.fullmatch(b"\n" + line, 1) is None:
            raise RefusalError("bad_request", "A trailer line is malformed.")
