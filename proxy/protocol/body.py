"""Finding ``model`` in a request body, and replacing it without changing any other byte.

Theory. If the address does not name the provider, ``model`` in the body decides it. The document is not built for that. For a
small one, msgspec decodes one member and skips the rest. A large document, a form or a compressed body is read in chunks and
in one pass by ``search``, which yields to the loop between any two of them, and stores nothing but the position of the name.
An unreadable body (broken JSON, another encoding, extreme nesting) has no model: it is forwarded unchanged, and the provider
decides about it. A compressed body is decoded for the search, within a limit, and forwarded unchanged unless the name must be
replaced: then it is decoded again while it is sent.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proxy.protocol import fast_json
from proxy.protocol.errors import ProxyError


@dataclass(frozen=True, slots=True)
class BodyModel:
    """The model of a body: ``name`` (``None``: unknown), and its position.

    ``raw`` is the name as written, and ``span`` its position in the readable body of ``size`` bytes (decoded if it was
    compressed: ``decoded``). ``form``: it is a field of a form, not a JSON string.
    """

    name: str | None
    raw: bytes = b""
    span: tuple[int, int] | None = None
    size: int = 0
    decoded: bool = False
    form: bool = False


_BINARY = (
    b"application/octet-stream",
    b"audio/",
    b"image/",
    b"video/",
    b"application/zip",
    b"application/pdf",
)
_FORM = b"multipart/form-data"
FREE_BYTES = 16 * 1024 * 1024  # decoded of any response, whatever it is packed into
MAX_RATIO = 32  # above which more of a response is not decoded; JSON and event streams are packed 3 to 15 times smaller
MAX_WAITING_BYTES = 1024 * 1024  # of a response that arrives faster than it is decoded
WINDOW = 64 * 1024  # bytes searched in one step: a few milliseconds at worst, in which the loop is blocked


def search(
    pieces: Iterable[bytes], content_type: bytes | None, content_encoding: bytes | None, limit: int
) -> Generator[None, None, BodyModel]:
    """Search for the ``model`` of a request body, step by step; the last step returns it. Never raises.

    ``limit`` (bytes) bounds the decoded size of a compressed body; beyond it the model is unknown.
    """
    finder = _finder(content_type or b"")
    if finder is None:
        return BodyModel(None)
    size = yield from _fed(finder, pieces, content_encoding, limit)
    if size is None:
        return BodyModel(None)
    raw, span = finder.found()
    form = isinstance(finder, _Form)
    decoded = bool(_names(content_encoding or b""))
    return BodyModel(_name_in(raw) if form else _text(raw), raw, span, size, decoded, form)


class Edit(NamedTuple):
    """One change of a body: ``new`` takes the place of ``span`` in the readable body of ``size`` bytes (see ``BodyModel``)."""

    span: tuple[int, int]
    new: bytes
    size: int
    decoded: bool


def search_usage_option(
    pieces: Iterable[bytes], content_type: bytes | None, content_encoding: bytes | None, limit: int
) -> Generator[None, None, Edit | None]:
    """Search, step by step, how a chat request must be changed so that its stream has the usage. Never raises.

    The last step returns ``None`` if nothing must be changed: it is no stream, it asks for ``include_usage`` itself, or it
    cannot be read. Else ``stream_options.include_usage`` is added, or becomes true.
    """
    if not isinstance(_finder(content_type or b""), _Json):
        return None
    members = _Members(_STREAMING)
    size = yield from _fed(members, pieces, content_encoding, limit)
    change = _usage_change(members) if size is not None else None
    return None if change is None or size is None else Edit(*change, size, bool(_names(content_encoding or b"")))


def usage_option(body: bytes) -> Edit | None:
    """Return what ``search_usage_option`` finds in a small body of plain JSON."""
    if body.find(b"stream") < 0 and body.find(b"\\u") < 0:
        return None
    members = _Members(_STREAMING)
    change = _usage_change(members) if members.feed(body) else None
    return None if change is None else Edit(*change, len(body), False)


def _fed(
    finder: _Finder, pieces: Iterable[bytes], content_encoding: bytes | None, limit: int
) -> Generator[None, None, int | None]:
    """Feed a body to ``finder``, step by step; the last one returns its size, ``None`` if nothing can be found in it."""
    names = _names(content_encoding or b"")
    size = 0
    try:
        for piece in _decoded(pieces, names, limit) if names else pieces:
            size += len(piece)
            yield
            for at in range(0, len(piece), WINDOW):
                if not finder.feed(piece[at : at + WINDOW]):
                    return None
                yield
    except _Unreadable:
        return None
    return size


def is_plain_json(content_type: bytes | None, content_encoding: bytes | None) -> bool:
    """Whether a body with these headers is uncompressed JSON for ``search``: ``raw_model`` may then be used."""
    return not _names(content_encoding or b"") and not (content_type or b"").lower().startswith((_FORM, *_BINARY))


def raw_model(body: bytes) -> bytes:
    """Return the raw JSON value of ``model`` in a small JSON body, ``b""`` if there is none. Never raises."""
    found = fast_json.raw_model(body)
    if found or _SURROGATE.search(body) is None:
        return found
    # Half a surrogate pair (an emoji that a tool cut in two) is valid JSON, but msgspec refuses it.
    return fast_json.raw_model(_SURROGATE.sub(rb"\\u0000", body, _MAX_SURROGATES))


def model_of(body: bytes, raw: bytes) -> BodyModel:
    """Return the model of a small JSON body in which ``raw_model`` found it; ``place_of`` returns its position."""
    return BodyModel(_text(raw), raw, None, len(body))


def place_of(body: bytes, found: BodyModel) -> tuple[int, int]:
    """Return the position of the name that ``model_of`` found. Raises ``ProxyError`` ``bad_request`` if it is ambiguous."""
    finder = _Json()
    finder.feed(body)
    raw, span = finder.found()
    if span is None or raw != found.raw:
        raise ProxyError(
            "bad_request",
            "The model's name must be replaced in this body, but its place there is ambiguous.",
            "Send the model's own name, or use an address that names its provider.",
        )
    return span


def written(found: BodyModel, name: str) -> bytes:
    """Return ``name`` in the form that replaces ``found``."""
    return (name if found.form else json.dumps(name, ensure_ascii=False)).encode("utf-8")


def replaced(pieces: Iterable[bytes], span: tuple[int, int], new: bytes) -> Iterator[bytes]:
    """Yield the (decoded) body with ``new`` at ``span`` and every other byte unchanged."""
    start, end = span
    at = 0
    for piece in pieces:
        after = at + len(piece)
        if at <= start < after:
            yield piece[: start - at] + new + piece[max(0, end - at) :]
        elif after <= start or at >= end:
            yield piece
        else:
            yield piece[end - at :]
        at = after


# Half a surrogate pair. Not a whole one, which may be part of the name. Both kinds begin with the same two bytes, so that a
# search skips from one backslash to the next.
_HIGH, _LOW = rb"[dD][89abAB][0-9a-fA-F]{2}", rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATE = re.compile(rb"\\u(?:%b(?!\\u%b)|(?<!\\u%b\\u)%b)" % (_HIGH, _LOW, _HIGH, _LOW))
_MAX_SURROGATES = 10_000
_MAX_NAME = 1024  # characters; no model is called that, and names go into the log
_MAX_RAW = 12 * _MAX_NAME + 2  # bytes, with every character escaped


def _name(text: str) -> str | None:
    return text if 0 < len(text) <= _MAX_NAME and "\0" not in text else None


def _text(raw: bytes) -> str | None:
    if raw[:1] != b'"':
        return None
    try:
        text = raw.decode("utf-8")
        return _name(json.loads(text) if "\\" in text else text[1:-1])
    except ValueError:
        return None


def _name_in(value: bytes) -> str | None:
    try:
        return _name(value.decode("utf-8"))
    except UnicodeDecodeError:
        return None


class _Finder(Protocol):
    def feed(self, piece: bytes) -> bool:
        """Search the next bytes. Return False if nothing can be found any more."""

    def found(self) -> tuple[bytes, tuple[int, int] | None]:
        """Return the last model as written, and its position. Called at the end."""


def _finder(content_type: bytes) -> _Finder | None:
    kind = content_type.lower()
    if kind.startswith(_BINARY):
        return None
    if not kind.startswith(_FORM):
        # Some tools send JSON as text/plain or without a type: the body itself is the best evidence.
        return _Json()
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    return _Form(boundary) if boundary else None


# --- JSON ------------------------------------------------------------------------------------------------------------

# Possessive throughout: there is no backtracking, so the time of a search is linear.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'(?:[^"{}\[\]]++|%b)*+' % _STRING
_NESTED = _FLAT
for _ in range(4):
    _NESTED = rb'(?:[^"{}\[\]]++|%b|[{\[]%b[}\]])*+' % (_STRING, _NESTED)


def _spelled(word: str) -> bytes:
    """Return a pattern of ``word`` in which any letter may be escaped."""
    return b"".join(rb"(?:%b|\\u(?i:%04x))" % (letter.encode(), ord(letter)) for letter in word)


_SCALAR = rb'[^ \t\r\n,:"{}\[\]]++'
_SPACE = rb"[ \t\r\n]*+"
_string = re.compile(_STRING, re.DOTALL).match
_rest_of_string = re.compile(rb'(?:\\.[^"\\]*+)*+', re.DOTALL).match
_values = re.compile(_NESTED, re.DOTALL).match  # values that are not nested deeper
_many_marks = re.compile(rb"[{}\[\], \t\r\n]{8,}+").match
_space = re.compile(_SPACE).match
_scalar = re.compile(_SCALAR).match


class _Grammar:
    """The patterns of a search for some members."""

    def __init__(self, *words: str, strings: bool) -> None:
        key = rb'"(?:%b)"' % b"|".join(map(_spelled, words))
        other = rb"%b(?!%b)%b%b:%b(?:%b|%b|\{%b\}|\[%b\])%b," % (
            *(_SPACE, key, _STRING, _SPACE, _SPACE),
            *(_STRING, _SCALAR, _FLAT, _FLAT, _SPACE),
        )
        # Ours with a string; without ``strings`` nothing matches, and each of ours is read in steps.
        ours = rb"%b%b%b:%b%b%b," % (_SPACE, key, _SPACE, _SPACE, _STRING, _SPACE)
        ours = ours if strings else rb"(?!)" + ours
        self.is_key = re.compile(key).fullmatch
        self.max_key = 6 * max(map(len, words)) + 2
        """Bytes of a key with each letter escaped."""
        self.others = re.compile(rb"(?:%b|%b(?=%b))*+" % (other, ours, ours), re.DOTALL).match
        """Whole members without effect: other keys, and ours if the same follows."""
        self.ours = re.compile(ours.replace(_STRING, b"(%b)" % _STRING), re.DOTALL).match


_MODEL = _Grammar("model", strings=True)
_DEEPEST = 1000
_QUOTE, _COMMA, _COLON, _OPENED, _CLOSED = b'",:{}'
_OPENING = b"{["
_DEEPER = [(mark in b"{[") - (mark in b"]}") for mark in range(256)]
_Before, _AtKey, _AtColon, _AtValue, _InScalar, _After, _Behind = range(7)


class _Json:
    """The member ``model`` of the outermost JSON object, in chunks; the last one if it occurs twice.

    Every byte is read once or twice, with few calls per chunk: strings and nested values are skipped. The document is not
    validated, but if it is valid, this is the member that every parser sees.
    """

    __slots__ = ("_at", "_depth", "_grammar", "_in_string", "_key", "_raw", "_rest", "_span", "_state", "_waits")

    def __init__(self, grammar: _Grammar = _MODEL) -> None:
        self._grammar = grammar
        self._rest = b""  # of the last chunk, to be searched together with the next
        self._at = 0  # its position in the document
        self._depth = 0
        self._state = _Before
        self._in_string = False
        self._waits = False  # for the next chunk
        self._key = b""  # of the member being read, if it is searched for
        self._raw = b""
        self._span: tuple[int, int] | None = None

    def found(self) -> tuple[bytes, tuple[int, int] | None]:
        return (self._raw, self._span) if self._state == _Behind else (b"", None)

    def feed(self, piece: bytes) -> bool:
        text = self._rest + piece if self._rest else piece
        at = 0
        self._waits = False
        while at < len(text) and not self._waits:
            if self._in_string:
                at = self._pass_string(text, at)
            elif self._depth > 1:
                at = self._pass_values(text, at)
            else:
                at = self._member(text, at)
            if at < 0 or self._depth > _DEEPEST:
                return False
        self._at += at
        self._rest = text[at:]
        return True

    def _pass_string(self, text: bytes, at: int) -> int:
        """Return the position after the open string, or the end of the available text."""
        quote = text.find(b'"', at)
        slash = text.find(b"\\", at, quote if quote >= 0 else len(text))
        if slash >= 0:
            quote = _rest_of_string(text, slash).end()  # type: ignore[union-attr]  # it matches nothing at least
            if text[quote : quote + 1] != b'"':
                self._waits = True
                return quote
        elif quote < 0:
            return len(text)
        self._in_string = False
        return quote + 1

    def _pass_values(self, text: bytes, at: int) -> int:
        at = _values(text, at).end()  # type: ignore[union-attr]  # it matches nothing at least
        if at == len(text):
            return at
        if text[at] == _QUOTE:
            self._in_string = True
            return at + 1
        depth = self._depth
        many = _many_marks(text, at)
        for mark in many[0] if many else text[at : at + 1]:
            at += 1
            depth += _DEEPER[mark]
            if not 1 < depth <= _DEEPEST:
                break
        self._depth = depth
        return at

    def _member(self, text: bytes, at: int) -> int:
        """Take one step in the outermost object. Return the next position; -1 if this is not an object."""
        state = self._state
        if state == _InScalar:
            scalar = _scalar(text, at)
            at = scalar.end() if scalar else at
            if at < len(text):
                self._state = _After
            return at
        if state == _AtKey:
            # Whole members that another one follows: many with one call, and one "model".
            others = self._grammar.others
            at = others(text, at).end()  # type: ignore[union-attr]  # it matches nothing at least
            while ours := self._grammar.ours(text, at):
                self._take(*ours.span(1), text)
                at = others(text, ours.end()).end()  # type: ignore[union-attr]  # so does this
        at = _space(text, at).end()  # type: ignore[union-attr]  # and this
        if at == len(text):
            return at
        mark = text[at]
        if state == _AtKey and mark == _QUOTE:
            key = _string(text, at)
            if key is None and len(text) - at <= self._grammar.max_key:
                self._waits = True
                return at
            self._state = _AtColon
            self._key = key[0] if key is not None and self._grammar.is_key(key[0]) else b""
            if key is not None:
                return key.end()
            self._in_string = True
        elif state == _AtValue:
            return self._value(text, at, mark)
        elif state == _AtColon and mark == _COLON:
            self._state = _AtValue
        elif state == _After and mark == _COMMA:
            self._state = _AtKey
        elif state in (_After, _AtKey) and mark == _CLOSED:
            self._state, self._depth = _Behind, 0
        elif state == _Before and mark == _OPENED:
            self._state, self._depth = _AtKey, 1
        else:
            return -1
        return at + 1

    def _value(self, text: bytes, at: int, mark: int) -> int:
        if self._key and not self._begin(text, at, mark):
            self._waits = True
            return at
        self._state = _After
        if mark == _QUOTE:
            self._in_string = True
        elif mark in _OPENING:
            self._depth = 2
        elif _scalar(text, at):
            self._state = _InScalar
            return at
        else:
            return -1
        return at + 1

    def _begin(self, text: bytes, at: int, mark: int) -> bool:
        """Take the value of a member that is searched for. Return False if it needs more text."""
        self._raw, self._span = b"", None  # unless it is a string
        if mark == _QUOTE:
            value = _string(text, at)
            if value is None:
                return len(text) - at > _MAX_RAW
            self._take(*value.span(), text)
        return True

    def _take(self, start: int, end: int, text: bytes) -> None:
        """Store this model until another one follows."""
        fits = end - start <= _MAX_RAW
        self._raw, self._span = (text[start:end], (self._at + start, self._at + end)) if fits else (b"", None)


_MAX_KEPT = 16 * 1024  # bytes of a value
_STREAMING = _Grammar("stream", "stream_options", strings=False)
_INCLUDE_USAGE = _Grammar("include_usage", strings=False)


class _Members(_Json):
    """The values of some members of the outermost object, as written; the last one of each if it occurs twice."""

    __slots__ = ("_from", "_kept", "_opening", "_start", "_values")

    def __init__(self, grammar: _Grammar) -> None:
        super().__init__(grammar)
        self._opening = 0  # the position after the outermost brace
        self._values: dict[str, tuple[int, bytes]] = {}  # position and raw value; b"": too long
        self._start = 0  # the position of the value being read
        self._from = -1  # its start, or that of its next part, in the text; -1: there is none
        self._kept = b""  # its parts in earlier chunks

    def value(self, name: str) -> tuple[int, bytes | None]:
        """Return the position and the raw value of a member; without one, the position after the brace and ``None``."""
        return self._values.get(name, (self._opening, None)) if self._state == _Behind else (0, None)

    def feed(self, piece: bytes) -> bool:
        text = self._rest + piece
        if not super().feed(piece):
            return False
        if self._from >= 0:
            self._kept += text[self._from : len(text) - len(self._rest)]
            self._from = 0
        return len(self._kept) <= _MAX_KEPT

    def _member(self, text: bytes, at: int) -> int:
        state = self._state
        if self._from >= 0 and state == _After:
            raw = self._kept + text[self._from : at]
            raw = raw.rstrip(b" \t\r\n") if len(raw) <= _MAX_KEPT else b""
            self._values[json.loads(self._key)] = self._start, raw
            self._from, self._kept = -1, b""
        at = super()._member(text, at)
        if state == _Before and self._state == _AtKey:
            self._opening = self._at + at
        return at

    def _begin(self, text: bytes, at: int, mark: int) -> bool:
        self._start, self._from, self._kept = self._at + at, at, b""
        return True


def _usage_change(members: _Members) -> tuple[tuple[int, int], bytes] | None:
    """Return the span to replace so that a stream is asked for its usage, and what takes its place."""
    if members.value("stream")[1] != b"true":
        return None
    at, raw = members.value("stream_options")
    option = b'"include_usage":true'
    if raw is None:
        return (at, at), b'"stream_options":{%b},' % option
    if raw == b"null":
        return (at, at + 4), b"{%b}" % option
    options = fast_json.read(raw)
    if not isinstance(options, dict) or not (options.get("include_usage") is None or options["include_usage"] is False):
        return None
    inner = _Members(_INCLUDE_USAGE)
    inner.feed(raw)
    start, value = inner.value("include_usage")
    if value is None:
        return (at + start, at + start), option + b"," * bool(options)
    return (at + start, at + start + len(value)), b"true"


# --- multipart -------------------------------------------------------------------------------------------------------

_MAX_PARTS = 1000  # of a form: each costs some microseconds
_MAX_VALUE = 4 * _MAX_NAME


class _Form:
    """The last field ``model`` of a form, in chunks."""

    def __init__(self, boundary: bytes) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        self._at = 0  # position of the chunk in the form
        self._piece = b""
        self._parts = 0
        self._header = self._said = b""
        self._ours = False
        self._value = b""
        self._start = -1
        self._found: tuple[bytes, tuple[int, int]] | None = None
        self._faults = (FormParserError, ValueError)
        callbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
        }
        self._parser: MultipartParser | None
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # its TypedDict wants all
        except self._faults:
            self._parser = None

    def feed(self, piece: bytes) -> bool:
        if self._parser is None:
            return False
        self._piece = piece
        try:
            self._parser.write(piece)
        except self._faults:
            return False
        self._at += len(piece)
        return self._parts <= _MAX_PARTS

    def found(self) -> tuple[bytes, tuple[int, int] | None]:
        try:
            if self._parser is not None:
                self._parser.finalize()
        except self._faults:
            return b"", None
        return self._found or (b"", None)

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise ValueError("too many parts")
        self._ours, self._value, self._start = False, b"", -1

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._said += data[start:end]

    def _header_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._said)
            self._ours = options.get(b"name") == b"model" and b"filename" not in options
        self._header = self._said = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._ours:
            return
        if data is not self._piece or len(self._value) + end - start > _MAX_VALUE:
            # The parser's own buffer (a value that begins like the boundary has no known position), or too long a name.
            self._ours = False
            return
        if self._start < 0:
            self._start = self._at + start
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._ours and self._start >= 0:
            self._found = self._value, (self._start, self._start + len(self._value))


# --- compression -----------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """A body does not match its content encoding, or is too large."""


def decoded(pieces: Iterable[bytes], content_encoding: bytes, limit: int) -> Iterator[bytes]:
    """Yield the decoded body in chunks; some are empty, because each is one step. For a body that ``search`` could read."""
    return _decoded(pieces, _names(content_encoding), limit)


def decode(body: bytes, content_encoding: bytes, limit: int) -> bytes | None:
    """Return ``body`` without its content encodings; ``None`` if that fails or exceeds ``limit`` bytes. Never raises.

    Supports gzip, deflate (with and without zlib's wrapper), br and zstd, and chains of two.
    """
    try:
        return b"".join(decoded([body], content_encoding, limit))
    except _Unreadable:
        return None


class Decoding:
    """Decodes a body while it arrives, for reading along with it. What is not decoded at once waits for the next call.

    It ends at a fault, at more than ``MAX_RATIO`` times what arrived (beyond some MiB), or when too much waits: then nothing
    more is returned.
    """

    __slots__ = ("_arriving", "_left", "_plain")

    def __init__(self, content_encoding: bytes) -> None:
        self._arriving = _Arriving()
        self._left = FREE_BYTES
        self._plain = _decoded(self._arriving, _names(content_encoding), sys.maxsize)

    def feed(self, chunk: bytes, at_once: int) -> list[bytes]:
        """Return the next decoded bytes, some more than ``at_once`` at most. Never raises."""
        arriving = self._arriving
        arriving.add(chunk)
        self._left += MAX_RATIO * len(chunk)
        plain: list[bytes] = []
        size = 0
        try:
            while not arriving.asked and size <= at_once:
                plain.append(next(self._plain))
                size += len(plain[-1])
        except (_Unreadable, StopIteration):
            self._left = -1
        self._left -= size
        if self._left < 0 or arriving.waiting > MAX_WAITING_BYTES:
            self._plain = iter(())
            arriving.chunks.clear()
        return plain


class _Arriving:
    """Iterates over a body's chunks, and over empty ones when there is no other (``asked``): the last chunk is decoded then."""

    __slots__ = ("asked", "chunks", "waiting")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.waiting = 0
        self.asked = False

    def add(self, chunk: bytes) -> None:
        self.asked = False
        if chunk:
            self.chunks.append(chunk)
            self.waiting += len(chunk)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.asked = not self.chunks
        chunk = self.chunks.popleft() if self.chunks else b""
        self.waiting -= len(chunk)
        return chunk


def _decoded(pieces: Iterable[bytes], names: list[bytes], limit: int) -> Iterator[bytes]:
    if len(names) > 2 or any(name not in _STARTS for name in names):
        raise _Unreadable
    for name in reversed(names):
        start = _deflating if name == b"deflate" else _STARTS[name][0]
        pieces = _undone(pieces, start, _MAX_MEMBERS if name in _IN_MEMBERS else 1, limit)
    yield from pieces


def _undone(pieces: Iterable[bytes], start: Callable[[], _Feed], most_members: int, limit: int) -> Iterator[bytes]:
    """Decode one content encoding. Raises ``_Unreadable`` for data that is broken, incomplete, or longer than ``limit``."""
    feed: _Feed | None = None
    members = size = 0
    for piece in pieces:
        plain: list[bytes] = []
        held = 0
        for at in range(0, len(piece), _STEP):
            rest = piece[at : at + _STEP]
            while rest:
                if feed is None:
                    members += 1
                    if members > most_members:
                        raise _Unreadable
                    feed = start()
                more = True
                while more:
                    room = min(_ROOM, limit + 1 - size)
                    try:
                        got, unused = feed(rest, room)
                    except Exception as error:
                        raise _Unreadable from error
                    size += len(got)
                    if size > limit:
                        raise _Unreadable
                    plain.append(got)
                    held += len(got)
                    if held >= WINDOW:
                        yield b"".join(plain)
                        plain.clear()
                        held = 0
                    more, rest = unused is None and len(got) >= room, b""
                if unused is not None:
                    feed, rest = None, unused
        yield b"".join(plain)
    if feed is not None:
        raise _Unreadable


def decode_prefix(body: bytes, content_encoding: bytes, limit: int) -> bytes:
    """Return the longest decodable prefix of a ``body`` that ``decode`` refused: broken, incomplete, too long, too deep.

    At most ``limit`` bytes, for searching only. Empty if the label is wrong (plain text that is called gzip) or unknown.
    Never raises.
    """
    undone = b""
    for name in reversed(_names(content_encoding)):
        found = [_prefix(body, start, limit) for start in _STARTS.get(name, ())]
        if not found:
            break
        body = undone = max(found, key=len)[:limit]
    return undone


def _names(content_encoding: bytes) -> list[bytes]:
    names = [name.strip().lower() for name in content_encoding.split(b",")]
    return [name for name in names if name not in (b"", b"identity")]


def _prefix(body: bytes, start: Callable[[], _Feed], limit: int) -> bytes:
    plain = bytearray()
    for _ in range(4 * _MAX_MEMBERS):
        feed = start()
        for at in range(0, len(body), _STEP):
            try:
                piece, unused = feed(body[at : at + _STEP], limit - len(plain))
            except Exception:  # noqa: BLE001  (four libraries, each with errors of its own)
                return bytes(plain + _until_the_fault(body, at, start, limit))
            plain += piece
            if len(plain) >= limit:
                return bytes(plain)
            if unused is not None:
                body = unused + body[at + _STEP :]
                break
        else:
            break
    return bytes(plain)


def _until_the_fault(body: bytes, at: int, start: Callable[[], _Feed], limit: int) -> bytes:
    """Decode the step at ``at`` byte by byte, up to the fault in it."""
    feed, plain = start(), b""
    try:
        feed(body[:at], limit)
        for each in range(at, at + _STEP):
            plain += feed(body[each : each + 1], limit)[0]
    except Exception:  # noqa: BLE001, S110  (the fault itself)
        pass
    return plain


_STEP = 64  # bytes per call: zstandard has no output limit, and they decode to two MiB at worst
_ROOM = 2 * WINDOW  # output limit of the others per call; a step of deflate cannot reach it

_Feed = Callable[[bytes, int], tuple[bytes, bytes | None]]
"""Takes a chunk and an output limit; returns the output and, if the stream has ended, the bytes after it."""


def _inflating(window: int) -> Callable[[], _Feed]:
    def start() -> _Feed:
        inflater = zlib.decompressobj(window)

        def feed(piece: bytes, room: int) -> tuple[bytes, bytes | None]:
            return inflater.decompress(piece, room), inflater.unused_data if inflater.eof else None

        return feed

    return start


def _unbrotling() -> _Feed:
    import brotli  # type: ignore[import-untyped]  # it has no stubs

    decoder = brotli.Decompressor()

    def feed(piece: bytes, room: int) -> tuple[bytes, bytes | None]:
        plain = decoder.process(piece, output_buffer_limit=room)
        while not decoder.is_finished() and len(plain) < room:
            more = decoder.process(b"", output_buffer_limit=room - len(plain))
            if not more:
                return plain, None
            plain += more
        return plain, b"" if decoder.is_finished() else None

    return feed


def _unzstding() -> _Feed:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompressobj()

    def feed(piece: bytes, room: int) -> tuple[bytes, bytes | None]:
        return decoder.decompress(piece), decoder.unused_data if decoder.eof else None

    return feed


_GZIP = 31  # zlib's number for «gzip, with the largest window»


def _deflating() -> _Feed:
    """Return a decoder for deflate. RFC 9110 means zlib's format; some clients send a bare stream. Two bytes decide."""
    begin = b""
    inner: _Feed | None = None

    def feed(piece: bytes, room: int) -> tuple[bytes, bytes | None]:
        nonlocal begin, inner
        if inner is None:
            begin += piece
            if len(begin) < 2:
                return b"", None
            wrapped = begin[0] & 15 == 8 and int.from_bytes(begin[:2], "big") % 31 == 0
            inner, piece = _inflating(15 if wrapped else -15)(), begin
        return inner(piece, room)

    return feed


_STARTS: dict[bytes, tuple[Callable[[], _Feed], ...]] = {
    b"gzip": (_inflating(_GZIP),),
    b"x-gzip": (_inflating(_GZIP),),
    b"deflate": (_inflating(15), _inflating(-15)),
    b"br": (_unbrotling,),
    b"zstd": (_unzstding,),
}

_IN_MEMBERS = frozenset({b"gzip", b"x-gzip", b"zstd"})  # may be several streams in a row (RFC 1952, RFC 8878)
_MAX_MEMBERS = 16
