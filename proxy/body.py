"""Where ``model`` stands in a request body, and how to put another name there without touching any other byte.

Theory. On an address that does not name its provider, ``model`` in the body does. The document is not built for that:
msgspec decodes one member and skips the rest, as raw bytes, the last one where it stands twice. What cannot be read
(broken JSON, another encoding, absurd nesting) has no model: it travels as it came, and the provider judges it. A
compressed body is decoded into a copy with a bound, only to be read; it is sent as it came unless the name must be
replaced, and then decoded.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from proxy import documents
from proxy.errors import Fault


@dataclass(slots=True)
class Model:
    """What was found: ``name`` (``None``: unknown), and where to replace it.

    ``body`` is the readable body (decoded where it was compressed: ``decoded``); ``raw`` is the JSON string as it stands
    there, and ``span`` its place in a multipart body.
    """

    name: str | None
    body: bytes
    decoded: bool = False
    raw: bytes = b""
    span: tuple[int, int] | None = None
    boundary: bytes | None = None


_BINARY = (
    b"application/octet-stream",
    b"audio/",
    b"image/",
    b"video/",
    b"application/zip",
    b"application/pdf",
)


def find_model(body: bytes, content_type: bytes | None, content_encoding: bytes | None, limit: int) -> Model:
    """The ``model`` of a whole request body; never raises.

    ``limit`` (bytes) bounds the decoded copy of a compressed body; beyond it the model is unknown.
    """
    decoded = False
    if content_encoding is not None and content_encoding.strip().lower() not in (b"", b"identity"):
        plain = decode(body, content_encoding, limit)
        if plain is None:
            return Model(None, body)
        body, decoded = plain, True
    kind = (content_type or b"").lower()
    if kind.startswith(b"multipart/form-data"):
        return _in_multipart(body, content_type or b"", decoded)
    if kind.startswith(_BINARY):
        return Model(None, body, decoded)
    # Some tools send JSON as text/plain or with no type at all; the body says best what it is.
    return _in_json(body, decoded)


def is_plain_json(content_type: bytes | None, content_encoding: bytes | None) -> bool:
    """Whether ``find_model`` takes a body with these headers for JSON as it stands: ``raw_model`` is its model then."""
    if content_encoding is not None and content_encoding.strip().lower() not in (b"", b"identity"):
        return False
    return not (content_type or b"").lower().startswith((b"multipart/form-data", *_BINARY))


def raw_model(body: bytes) -> bytes:
    """The JSON value of ``model`` as it stands in a JSON body, ``b""`` where there is none. Never raises."""
    if len(body) > _LARGE:
        body = _without_long_strings(body)
    found = documents.raw_model(body)
    if found or _SURROGATE.search(body) is None:
        return found
    # Half a surrogate pair (an emoji that a tool cut in two) is sound JSON, but msgspec refuses it.
    return documents.raw_model(_SURROGATE.sub(rb"\\u0000", body, _MOST_SURROGATES))


_LARGE = 256 * 1024
_LONG = 8 * 1024  # longer than any name, however it is escaped
_MOST_QUOTES = 128
_MOST_SLASHES = 64  # in a row before a quote


def _without_long_strings(body: bytes) -> bytes:
    """A JSON document with its first long strings emptied: pictures and files, of which a large body mostly consists.

    msgspec goes through them byte by byte, a search for the quote behind them is twenty times as fast. Gives up after as
    many quotes as say that the body is short strings.
    """
    pieces: list[bytes] = []
    kept = at = 0
    start = -1  # of the string that is open
    for _ in range(_MOST_QUOTES):
        quote = body.find(b'"', at)
        if quote < 0:
            break
        at = quote + 1
        if start < 0:
            start = quote
            continue
        before = body[max(start + 1, quote - _MOST_SLASHES) : quote]
        slashes = len(before) - len(before.rstrip(b"\\"))
        if slashes == _MOST_SLASHES:
            break
        if slashes % 2:
            continue  # the quote is escaped
        if quote - start > _LONG:
            pieces.append(body[kept : start + 1])
            kept = quote
        start = -1
    return b"".join((*pieces, body[kept:])) if pieces else body


_HIGH, _LOW = rb"[dD][89abAB][0-9a-fA-F]{2}", rb"[dD][c-fC-F][0-9a-fA-F]{2}"
# Not a whole pair: that may be a part of the very name. Both kinds begin with the same two bytes, so that a search leaps
# from one backslash to the next.
_SURROGATE = re.compile(rb"\\u(?:%b(?!\\u%b)|(?<!\\u%b\\u)%b)" % (_HIGH, _LOW, _HIGH, _LOW))
_MOST_SURROGATES = 10_000
_LONGEST_NAME = 1024  # characters; no model is called that, and names go into the log


def _name(text: str) -> str | None:
    return text if 0 < len(text) <= _LONGEST_NAME and "\0" not in text else None


def _text(raw: bytes) -> str | None:
    if raw[:1] != b'"':
        return None
    try:
        text = raw.decode("utf-8")
        return _name(json.loads(text) if "\\" in text else text[1:-1])
    except ValueError:
        return None


def _in_json(body: bytes, decoded: bool) -> Model:
    return model_of(body, raw_model(body), decoded=decoded)


def model_of(body: bytes, raw: bytes, *, decoded: bool = False) -> Model:
    """The model of a JSON body where ``raw_model`` has found it."""
    return Model(_text(raw), body, decoded, raw)


_MOST_PLACES = 4096  # where the name might stand; each round of the search below reads the whole document
_KEY = rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"[ \t\r\n]*:[ \t\r\n]*'


def replace_model(found: Model, name: str) -> bytes:
    """The (decoded) body with ``name`` as its model and every other byte as it was.

    Raises ``Fault`` ``bad_request`` where the place cannot be told from the rest of the document with certainty.
    """
    if found.span is not None:
        start, end = found.span
        changed = found.body[:start] + name.encode("utf-8") + found.body[end:]
        if found.boundary is not None and _fields(changed, found.boundary)[0] == name:
            return changed
        raise _ambiguous()
    new = json.dumps(name, ensure_ascii=False).encode("utf-8")
    # msgspec tells the value, not its place. Every place where that member could stand gets a value that no client sends,
    # by halves, and the reader itself says in which half the one is that it reads (of duplicates the last).
    body = found.body
    matches = re.finditer(_KEY + rb"(" + re.escape(found.raw) + rb")", body)
    places = [match.span(1) for match in islice(matches, _MOST_PLACES + 1)]
    if len(places) > _MOST_PLACES:
        raise _ambiguous()
    probe = b'"\\u0000' + new[1:-1] + b'\\u0000"'
    while len(places) > 1:
        half = places[: len(places) // 2]
        places = half if raw_model(_put(body, half, probe)) == probe else places[len(half) :]
    if not places or raw_model(_put(body, places, probe)) != probe:
        raise _ambiguous()
    return _put(body, places, new)


def _put(body: bytes, places: list[tuple[int, int]], value: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    for start, end in places:
        pieces += (body[at:start], value)
        at = end
    return b"".join((*pieces, body[at:]))


def _ambiguous() -> Fault:
    return Fault(
        "bad_request",
        "The model's name must be replaced in this body, but its place there is ambiguous.",
        "Send the model's own name, or use an address that names its provider.",
    )


# --- multipart -------------------------------------------------------------------------------------------------------


def _in_multipart(body: bytes, content_type: bytes, decoded: bool) -> Model:
    from python_multipart.multipart import parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        return Model(None, body, decoded)
    name, span = _fields(body, boundary)
    return Model(name, body, decoded, span=span, boundary=boundary)


_MOST_PARTS = 1000  # of a form: each costs some microseconds, in which nobody else is served


def _fields(body: bytes, boundary: bytes) -> tuple[str | None, tuple[int, int] | None]:
    """The last form field named ``model``: its value, and its place in ``body``."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    state: dict[str, Any] = {"header": b"", "value": b"", "ours": False, "start": None, "end": None, "parts": 0}
    found: tuple[bytes, int, int] | None = None

    def part_begin() -> None:
        state["parts"] += 1
        if state["parts"] > _MOST_PARTS:
            raise FormParserError("too many parts")
        state.update(ours=False, start=None, end=None)

    def header_field(data: bytes, start: int, end: int) -> None:
        state["header"] += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        state["value"] += data[start:end]

    def header_end() -> None:
        if state["header"].lower() == b"content-disposition":
            _, options = parse_options_header(state["value"])
            state["ours"] = options.get(b"name") == b"model" and b"filename" not in options
        state.update(header=b"", value=b"")

    def part_data(data: bytes, start: int, end: int) -> None:
        if data is not body:
            state["ours"] = False  # the parser's own buffer: a value that begins like the boundary has no place to tell
        elif state["ours"]:
            state["start"] = start if state["start"] is None else state["start"]
            state["end"] = end

    def part_end() -> None:
        nonlocal found
        if state["ours"] and state["start"] is not None:
            found = (body[state["start"] : state["end"]], state["start"], state["end"])

    callbacks = {
        "on_part_begin": part_begin,
        "on_header_field": header_field,
        "on_header_value": header_value,
        "on_header_end": header_end,
        "on_part_data": part_data,
        "on_part_end": part_end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # its TypedDict wants all callbacks
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        return None, None
    if found is None:
        return None, None
    value, start, end = found
    try:
        return _name(value.decode("utf-8")), (start, end)
    except UnicodeDecodeError:
        return None, None


# --- compression -----------------------------------------------------------------------------------------------------


def decode(body: bytes, content_encoding: bytes, limit: int) -> bytes | None:
    """``body`` with its content encodings undone, at most ``limit`` bytes; ``None`` where that fails or is too large.

    Knows gzip, deflate (with and without zlib's wrapper), br and zstd, and chains of two. Never raises.
    """
    names = _names(content_encoding)
    if len(names) > 2:
        return None
    for name in reversed(names):
        plain = _decode_one(body, name, limit)
        if plain is None:
            return None
        body = plain
    return body


def decode_prefix(body: bytes, content_encoding: bytes, limit: int) -> bytes:
    """As much as any reader gets out of a ``body`` that ``decode`` gave up: broken, cut short, too long, too deep.

    At most ``limit`` bytes; only to be searched. Empty where the label lies (plain text that is called gzip) or is
    none that is known here. Never raises.
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
    for _ in range(4 * _MOST_MEMBERS):
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
    """What the step at ``at`` would have given had it not met the fault: byte by byte."""
    feed, plain = start(), b""
    try:
        feed(body[:at], limit)
        for each in range(at, at + _STEP):
            plain += feed(body[each : each + 1], limit)[0]
    except Exception:  # noqa: BLE001, S110  (the fault itself)
        pass
    return plain


_STEP = 64  # bytes fed at once: zstandard has no bound for what they may become, some two MiB at worst

_Feed = Callable[[bytes, int], tuple[bytes, bytes | None]]
"""Takes a piece and how much may come out of it; gives that, and, where the stream has ended, the bytes behind it."""


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
        while len(plain) < room and (more := decoder.process(b"", output_buffer_limit=room - len(plain))):
            plain += more
        return plain, None

    return feed


def _unzstding() -> _Feed:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompressobj()

    def feed(piece: bytes, room: int) -> tuple[bytes, bytes | None]:
        return decoder.decompress(piece), decoder.unused_data if decoder.eof else None

    return feed


_GZIP = 31  # zlib's number for «gzip, with the largest window»


def _decode_one(body: bytes, name: bytes, limit: int) -> bytes | None:
    try:
        if name in (b"gzip", b"x-gzip"):
            return _inflate(body, _GZIP, limit)
        if name == b"deflate":
            # RFC 9110 means zlib's format; some clients send a bare deflate stream.
            plain = _inflate(body, 15, limit)
            return plain if plain is not None else _inflate(body, -15, limit)
        if name == b"br":
            return _unbrotli(body, limit)
        if name == b"zstd":
            return _unzstd(body, limit)
    except Exception:  # noqa: BLE001  (four libraries, each with errors of its own; an unreadable body is no fault)
        return None
    return None


_STARTS: dict[bytes, tuple[Callable[[], _Feed], ...]] = {
    b"gzip": (_inflating(_GZIP),),
    b"x-gzip": (_inflating(_GZIP),),
    b"deflate": (_inflating(15), _inflating(-15)),
    b"br": (_unbrotling,),
    b"zstd": (_unzstding,),
}

_MOST_MEMBERS = 16  # pieces of one gzip or zstd body; each costs a copy of what follows it


def _inflate(body: bytes, window: int, limit: int) -> bytes | None:
    plain = b""
    for _ in range(_MOST_MEMBERS):
        inflater = zlib.decompressobj(window)
        try:
            plain += inflater.decompress(body, limit + 1 - len(plain))
        except zlib.error:
            return None
        if not inflater.eof or len(plain) > limit:
            return None
        body = inflater.unused_data
        if not body:
            return plain
        if window != _GZIP:
            return None  # only gzip may have several members (RFC 1952, 2.2)
    return None


def _unbrotli(body: bytes, limit: int) -> bytes | None:
    import brotli

    decoder = brotli.Decompressor()
    plain = b""
    piece = decoder.process(body, output_buffer_limit=limit + 1)
    while piece:
        plain += piece
        if len(plain) > limit:
            return None
        piece = decoder.process(b"", output_buffer_limit=limit + 1 - len(plain)) if not decoder.is_finished() else b""
    return plain if decoder.is_finished() else None


def _unzstd(body: bytes, limit: int) -> bytes | None:
    import zstandard

    # 8 MiB is the largest window that this content encoding may have (RFC 9659).
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    plain = b""
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        while len(plain) <= limit and (piece := reader.read(limit + 1 - len(plain))):
            plain += piece
    if len(plain) > limit:
        return None
    # The reader takes a frame cut short for an early end. Now that the size is known to be harmless, each frame is asked
    # for its end.
    for _ in range(_MOST_MEMBERS):
        frame = decompressor.decompressobj()
        frame.decompress(body)
        if not frame.eof:
            return None
        body = frame.unused_data
        if not body:
            return plain
    return None
