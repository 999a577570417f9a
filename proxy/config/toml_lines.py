"""The lines of keys and array elements in a TOML text: `tomllib` returns values without positions.

A scanner for text that `tomllib` has already accepted. It recognises keys, brackets, strings and comments,
but no values, and so needs no error handling. Its test compares every path with those of `tomllib` itself.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Where = tuple[str | int, ...]
"""A path in a configuration: keys, and numbers for array elements."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t\r]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
# The last quotes of a multi-line string may belong to its text: up to two precede the three that close it.
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""{1,3}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'''{1,3}", re.DOTALL)


def key_lines(text: str) -> dict[Where, int]:
    """Return the line (from 1) of the first occurrence of each table, key and array element in valid TOML."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.ends = [match.start() for match in re.finditer("\n", text)]
        self.found: dict[Where, int] = {}
        self.arrays: dict[Where, int] = {}  # arrays of tables, with the index of their last element

    def run(self) -> dict[Where, int]:
        table: Where = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                self.at += 2
                *parents, last = self.key()
                array = (*self.inside((), parents), last)
                self.note(array)
                self.arrays[array] = self.arrays.get(array, -1) + 1
                table = (*array, self.arrays[array])
                self.note(table)
                self.at += 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.inside((), self.key())
                self.at += 1
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.found

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def note(self, where: Where) -> None:
        self.found.setdefault(where, bisect_right(self.ends, self.at - 1) + 1)

    def inside(self, table: Where, parts: list[str]) -> Where:
        """Follow a dotted key from a table, and record each table; of an array of tables, its last element."""
        for part in parts:
            table = (*table, part)
            self.note(table)
            if table in self.arrays:
                table = (*table, self.arrays[table])
        return table

    def key(self) -> list[str]:
        """Read a dotted key with the space around it."""
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            if self.text[self.at] == '"':
                parts.append(str(tomllib.loads(f"key = {self.skip(_BASIC)}")["key"]))
            elif self.text[self.at] == "'":
                parts.append(self.skip(_LITERAL)[1:-1])
            else:
                parts.append(self.skip(_BARE))
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def pair(self, table: Where) -> None:
        where = self.inside(table, self.key())
        self.at += 1  # the "="
        self.skip(_SPACE)
        self.value(where)

    def value(self, where: Where) -> None:
        self.note(where)
        opening = self.text[self.at]
        if opening == "[":
            self.items(where, "]")
        elif opening == "{":
            self.items(where, "}")
        elif opening == '"':
            self.skip(_LONG_BASIC if self.text.startswith('"""', self.at) else _BASIC)
        elif opening == "'":
            self.skip(_LONG_LITERAL if self.text.startswith("'''", self.at) else _LITERAL)
        else:
            self.skip(_SCALAR)

    def items(self, where: Where, closing: str) -> None:
        self.at += 1
        number = 0
        self.skip(_BLANK)
        while self.text[self.at] != closing:
            if closing == "]":
                self.value((*where, number))
            else:
                self.pair(where)
            number += 1
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_BLANK)
        self.at += 1
