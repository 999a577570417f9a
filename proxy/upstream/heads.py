"""Strict parsing of response heads. Pure: bytes in, status and headers out.

Two expressions match every byte of every line, or the head is refused. An upstream repeats most lines (its name, its limits,
its content type), and a dictionary finds a line faster than an expression parses it: three times as fast in heads of twenty
lines.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar, cast

from proxy.protocol.redaction import Unshown

Pair = tuple[bytes, bytes]
Said = TypeVar("Said")

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)")
"""One header line without its line end. White space after the value is stripped later."""

MAX_LINES: Final = 512
MAX_LINE_BYTES: Final = 256
"""Limits of the line cache: the number of lines, and the bytes of each."""


class ResponseHeads(Unshown):
    """Parses heads, and caches their lines."""

    __slots__ = ("_fields", "_statuses")

    def __init__(self) -> None:
        self._fields: dict[bytes, Pair] = {}
        self._statuses: dict[bytes, tuple[bool, int]] = {}

    def read(self, head: bytes) -> tuple[bool, int, list[Pair]]:
        """Return (whether it is HTTP/1.1, status, headers with lower-case names) of a head without its last two line ends.

        Raises ``ValueError`` with a reason that contains nothing of the head.
        """
        first, *lines = head.split(b"\r\n")
        http11, status = self._statuses.get(first) or self._status(first)
        headers = list(map(self._fields.get, lines))
        if not all(headers):
            for index, pair in enumerate(headers):
                if pair is None:
                    headers[index] = self._field(lines[index])
        return http11, status, cast("list[Pair]", headers)

    def _status(self, line: bytes) -> tuple[bool, int]:
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            # The first reason is that of an incomplete head, too: how a head is cut into segments does not change the error.
            raise ValueError("malformed status line" if line.startswith(b"HTTP/1.") else "the answer is not HTTP/1")
        parsed = match[1] == b"1", int(match[2])
        _remember(self._statuses, line, parsed)
        return parsed

    def _field(self, line: bytes) -> Pair:
        match = FIELD.fullmatch(line)
        if match is None:
            raise ValueError("malformed response head")
        pair = match[1].lower(), match[2].rstrip()
        _remember(self._fields, line, pair)
        return pair


def may_begin(lines: list[bytes], *, first: bool) -> str | None:
    """Return what is wrong with ``lines`` of an incomplete head, or ``None``; ``first``: they begin with the status line."""
    if first and STATUS_LINE.fullmatch(lines[0]) is None:
        return "malformed status line"
    return None if all(map(FIELD.fullmatch, lines[first:])) else "malformed response head"


def _remember(known: dict[bytes, Said], line: bytes, parsed: Said) -> None:
    if len(line) <= MAX_LINE_BYTES:
        if len(known) >= MAX_LINES:
            known.clear()
        known[line] = parsed
