"""Secrets by value: a type that hides its value, and a redactor that finds a value in every spelling.

Theory. A forward token is ``base64(JSON)`` with the secret key inside, so a search for the key misses it:
base64 works on groups of three bytes, and the same key looks different at each of the three places it can
start in a group. Of each of these three *phases* only the characters made of the key's bits alone are
always the same (the *window*); neighbours spoil the one at either end. The redactor looks for all windows
(both alphabets), for the raw value, its JSON-escaped form and its hex forms. A second search runs on the
text with percent and backslash escapes undone, which covers every mixture of them. Hits are collected as
spans and merged before anything is replaced, because two secrets may overlap (a ready token holds a key)
and replacing one first would leave half of the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from bisect import bisect_right
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence

    from pydantic_core import CoreSchema

_MASK = "***"
_WORD = re.compile(rb"[A-Za-z0-9_-]+")
# Below four characters a "secret" is part of ordinary words: masking it would destroy lines and protect nothing.
_SHORTEST_RAW = 4
# Below six bytes the windows get so short that innocent text would match.
_SHORTEST_ENCODED = 6
_SHORTEST_WINDOW = 7
# The escapes that the second search undoes: %XX, \u00XX (some JSON writers use it for "+", "=", "&"), and \" \\ \/.
_ESCAPE = re.compile(rb'%([0-9A-Fa-f]{2})|\\u00([0-9A-Fa-f]{2})|\\(["\\/])')
# Escapes of escapes (a URL in a URL in a JSON string); deeper nesting is not undone.
_UNDO_ROUNDS = 3
_DEEPEST = 8
_PROBE = 8


class Secret:
    """A value that must not be shown: only `reveal` returns it.

    It has no ``__dict__``, and its slots hold a function and a digest, not the value, so that dumpers which
    walk attributes find nothing. Copies are the object itself (it is immutable). Pickling raises TypeError: a
    pickle would hold the value.
    """

    __slots__ = ("_digest", "_take", "hint")

    #: "…" and the last four characters, for messages; "…" alone where four would be too much of it.
    hint: str
    _digest: bytes
    _take: Callable[[], str]

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError("a secret is a string")
        raw = value.encode("utf-8", "surrogatepass")
        last = value[-4:] if len(value) >= 12 and value[-4:].isprintable() else ""
        object.__setattr__(self, "_take", lambda: value)
        object.__setattr__(self, "_digest", hashlib.sha256(raw).digest())
        object.__setattr__(self, "hint", "…" + last)

    def reveal(self) -> str:
        """Return the value. The caller is responsible for it."""
        return self._take()

    def __repr__(self) -> str:
        return f"Secret('{self}')"

    def __str__(self) -> str:
        # Two bytes of a digest: enough to see whether two dumps mean the same secret, too little to guess it.
        return f"{_MASK}:{self._digest[:2].hex()}"

    def __format__(self, spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self._digest, other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Support fields of this type in a model: accept a str or a Secret, dump the mask in every mode.

        The model itself must set ``hide_input_in_errors``: pydantic adds the input to a model's errors.
        """
        from pydantic_core import PydanticCustomError, core_schema

        def parse(value: object) -> Secret:
            if isinstance(value, Secret):
                return value
            if isinstance(value, str):
                return cls(value)
            raise PydanticCustomError("secret_type", "a secret is a string")

        return core_schema.no_info_plain_validator_function(
            parse, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="always")
        )


class Unshown:
    """A base for classes that hold secrets in plain form, because they are used for every request.

    It shows only its name. It has no ``__dict__``, is no dataclass that ``asdict`` could take apart, and is not pickled.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not pickled")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not pickled")


class Redactor(Unshown):
    """Masks the given values in every spelling in text, bytes and log events. Immutable.

    Of a value that is itself a forward token (base64 of a JSON object) the keys inside are masked as well.
    Values under 4 characters are not masked, those under 6 only as they are.
    """

    __slots__ = ("_forms", "_probe", "_reach", "_words", "crosses_values")

    def __init__(self, values: Iterable[str] = ()) -> None:
        wanted: dict[bytes, None] = {}
        for value in values:
            for each in (value, *_inside(value)):
                wanted.update(dict.fromkeys(_forms(each)))
        self._forms = tuple(wanted)
        self._words = sorted((form.decode("ascii") for form in wanted if _WORD.fullmatch(form)), key=len)
        self.crosses_values = any(b'"' in form for form in self._forms)
        """Whether a hit can begin in one value of a JSON object and end in another: a quote separates two values."""
        self._probe = _probe(self._forms)
        # An escape makes up to six bytes out of one (\u00XX).
        self._reach = 6 * max((len(form) for form in self._forms), default=0)

    def text(self, text: str) -> str:
        """Return `text` with every hit replaced by ``***``."""
        if not self._forms:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        spans = _spans(raw, self._forms, self._probe)
        if not spans:
            return text
        parts: list[bytes] = []
        done = 0
        for start, end in spans:
            parts += (raw[done:start], _MASK.encode())
            done = end
        parts.append(raw[done:])
        return b"".join(parts).decode("utf-8", "replace")

    def stands_in(self, word: str) -> bool:
        """Whether a short `word` contains a value. It has ASCII letters, digits, hyphens and underscores: no escapes."""
        size = len(word)
        for form in self._words:  # the shortest first
            if len(form) > size:
                break
            if form in word:
                return True
        return False

    def data(self, data: bytes) -> bytes:
        """Return `data` with every byte of every hit replaced by ``*``, so that length and Content-Length stay valid."""
        if not self._forms:
            return data
        spans = _spans(data, self._forms, self._probe)
        if not spans:
            return data
        masked = bytearray(data)
        for start, end in spans:
            masked[start:end] = b"*" * (end - start)
        return bytes(masked)

    def stream(self) -> StreamMask:
        """Return the equivalent of `data` for a body in chunks (a secret may be split)."""
        return StreamMask(self, self._reach)

    def event(self, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Mask every string in the event, including keys, at any depth."""
        return {self._any(key): self._any(value) for key, value in event.items()}

    def _any(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (bytes, bytearray)):
            return self.data(bytes(value))
        if depth >= _DEEPEST:
            return "…"
        if isinstance(value, dict):
            return {self._any(key, depth + 1): self._any(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._any(each, depth + 1) for each in value]
        try:
            return self.text(str(value))
        except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything, and a log line must not
            return f"<{type(value).__name__}>"


class StreamMask(Unshown):
    """Masks a body in chunks: holds back as many bytes as the longest hit can have, until `flush`."""

    __slots__ = ("_held", "_reach", "_redactor")

    def __init__(self, redactor: Redactor, reach: int) -> None:
        self._redactor = redactor
        self._reach = reach
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Add the next bytes. Return those that no later byte can make part of a hit (possibly none)."""
        self._held += chunk
        # Searched only when it is twice as much as is held back: with chunks of any size, each byte is searched twice.
        if len(self._held) <= 2 * self._reach:
            return b""
        masked = self._redactor.data(bytes(self._held))
        cut = len(masked) - self._reach
        self._held = bytearray(masked[cut:])
        return masked[:cut]

    def flush(self) -> bytes:
        """Return the rest, at the end of the body."""
        rest = self._redactor.data(bytes(self._held))
        self._held.clear()
        return rest


def leaks(haystack: bytes | str, values: Iterable[str]) -> list[str]:
    """Return which of `values` are in `haystack`, in any spelling: a line for each, safe to print."""
    raw = haystack.encode("utf-8", "surrogatepass") if isinstance(haystack, str) else haystack
    found = []
    for number, value in enumerate(values):
        forms = tuple(_forms(value))
        spans = _spans(raw, forms, _probe(forms))
        if spans:
            start, end = spans[0]
            found.append(f"value {number} ({Secret(value).hint}): {len(spans)} hit(s), first at bytes {start} to {end}")
    return found


def _forms(value: str) -> Iterator[bytes]:
    """Yield every literal spelling of `value` to search for, as bytes."""
    raw = value.encode("utf-8", "surrogatepass")
    if len(value) < _SHORTEST_RAW:
        return
    yield raw
    if len(raw) < _SHORTEST_ENCODED:
        return
    if not value.isascii():
        # Header bytes are shown as latin-1 by many libraries.
        yield raw.decode("latin-1").encode()
    spellings = {raw}
    for ascii_only in (True, False):
        spellings.add(json.dumps(value, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogatepass"))
    for spelling in spellings:
        yield spelling
        yield spelling.hex().encode()
        yield spelling.hex().upper().encode()
        for phase in range(3):
            window = _window(spelling, phase)
            if len(window) >= _SHORTEST_WINDOW:
                yield window
                yield window.translate(_TO_URL_SAFE)


_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _window(raw: bytes, phase: int) -> bytes:
    """Return the base64 characters that depend on `raw` alone if `phase` bytes precede it in its group."""
    bits = 8 * (phase + len(raw))
    return base64.b64encode(bytes(phase) + raw)[-(-8 * phase // 6) : bits // 6]


def _inside(value: str) -> Iterator[str]:
    """Yield the keys in a value that is a forward token (base64 of a JSON object); else nothing."""
    try:
        content = json.loads(base64.b64decode(value.replace("-", "+").replace("_", "/") + "==", validate=False))
    except (ValueError, binascii.Error, RecursionError):
        return
    if isinstance(content, dict):
        for name in ("secret_key", "provider_key"):
            if isinstance(content.get(name), str):
                yield content[name]


def _probe(forms: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a pattern that matches wherever one of `forms` may begin.

    Searching for each form costs a quarter of a microsecond per log line. This costs one for all of them,
    because keys share their prefixes and a regex of few short literals is quick to build and to run.
    """
    heads = sorted({form[:_PROBE] for form in forms})
    return re.compile(b"|".join(map(re.escape, heads)) or b"(?!)")


def _spans(raw: bytes, forms: Sequence[bytes], probe: re.Pattern[bytes]) -> list[tuple[int, int]]:
    """Return the positions of the forms in `raw`, with or without escapes: merged, in order, as (start, end)."""
    hits = _find(raw, forms) if probe.search(raw) else []
    if b"%" in raw or b"\\" in raw:
        layers = [raw]
        for _ in range(_UNDO_ROUNDS):
            plain = _ESCAPE.sub(_unescape, layers[-1])
            if plain == layers[-1]:
                break
            found = _find(plain, forms) if probe.search(plain) else []
            for layer in reversed(layers) if found else ():
                found = _back(layer, found)
            hits += found
            layers.append(plain)
    if len(hits) < 2:
        return hits
    hits.sort()
    merged = [hits[0]]
    for start, end in hits[1:]:
        if start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _find(raw: bytes, forms: Sequence[bytes]) -> list[tuple[int, int]]:
    hits = []
    for form in forms:
        if form in raw:  # usually it is not, and `in` is the fastest check
            at = raw.find(form)
            while at >= 0:
                hits.append((at, at + len(form)))
                at = raw.find(form, at + 1)
    return hits


def _unescape(match: re.Match[bytes]) -> bytes:
    digits = match[1] or match[2]
    return bytes((int(digits, 16),)) if digits else match[3]


def _back(text: bytes, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of `text` with its escapes undone as spans of `text` itself."""
    made: list[int] = []  # position of the byte made from each escape
    escapes: list[tuple[int, int]] = []
    shift = 0
    for match in _ESCAPE.finditer(text):
        made.append(match.start() - shift)
        escapes.append(match.span())
        shift += match.end() - match.start() - 1

    def origin(at: int) -> tuple[int, int]:
        before = bisect_right(made, at) - 1
        if before < 0:
            return at, at + 1
        if made[before] == at:
            return escapes[before]
        start = escapes[before][1] + at - made[before] - 1
        return start, start + 1

    return [(origin(start)[0], origin(end - 1)[1]) for start, end in spans]
