"""The heads of responses, read strictly and purely: bytes in, status and headers out.

Two expressions see every byte of every line, or the head is refused. An upstream says most lines again and again (its
name, its limits, the kind of its answers), and a dictionary finds one faster than an expression reads it: in heads of twenty
lines three times as fast.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar, cast

from proxy.redaction import Unshown

Pair = tuple[bytes, bytes]
Said = TypeVar("Said")

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)")
"""One header line without its end. White space after the value is left to be cut."""

MOST_LINES: Final = 512
LONGEST_LINE: Final = 256
"""How much is remembered: so many lines, each of so many bytes."""


class Heads(Unshown):
    """Reads heads, and remembers their lines."""

    __slots__ = ("_fields", "_statuses")

    def __init__(self) -> None:
        self._fields: dict[bytes, Pair] = {}
        self._statuses: dict[bytes, tuple[bool, int]] = {}

    def read(self, head: bytes) -> tuple[bool, int, list[Pair]]:
        """(whether it is HTTP/1.1, status, headers with lower-case names) of a head without its last two line ends.

        Raises ``ValueError`` with what is wrong, in words that hold nothing of the head.
        """
        first, *lines = head.split(b"\r\n")
        http11, status = self._statuses.get(first) or self._status(first)
        headers = list(map(self._fields.get, lines))
        if not all(headers):
            for place, pair in enumerate(headers):
                if pair is None:
                    headers[place] = self._field(lines[place])
        return http11, status, cast("list[Pair]", headers)

    def _status(self, line: bytes) -> tuple[bool, int]:
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise ValueError("malformed status line")
        said = match[1] == b"1", int(match[2])
        _remember(self._statuses, line, said)
        return said

    def _field(self, line: bytes) -> Pair:
        match = FIELD.fullmatch(line)
        if match is None:
            raise ValueError("malformed response head")
        pair = match[1].lower(), match[2].rstrip()
        _remember(self._fields, line, pair)
        return pair


def may_begin(lines: list[bytes], *, first: bool) -> str | None:
    """What is wrong with ``lines`` of a head that is still coming, or ``None``; ``first``: the first is the status line."""
    if first and STATUS_LINE.fullmatch(lines[0]) is None:
        return "malformed status line"
    return None if all(map(FIELD.fullmatch, lines[first:])) else "malformed response head"


def _remember(known: dict[bytes, Said], line: bytes, said: Said) -> None:
    if len(line) <= LONGEST_LINE:
        if len(known) >= MOST_LINES:
            known.clear()
        known[line] = said
