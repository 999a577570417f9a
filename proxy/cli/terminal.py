"""How things are shown: styled at a terminal, plain in a pipe, or as JSON.

Nothing printed here can move the cursor or turn text round: what is not printable is shown as its escape. Letters that
the output's encoding does not have are spelled in ASCII.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import unicodedata
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from rich.console import Console

Style = Literal["plain", "title", "good", "bad", "note", "code"]

_RICH = {"plain": "", "title": "bold", "good": "bold green", "bad": "bold red", "note": "dim", "code": "cyan"}
_IN_ASCII = str.maketrans(
    {"…": "...", "→": "->", "«": '"', "»": '"', "–": "-", "—": "-", "✓": "ok", "✗": "FAILED", "█": "#", "▌": "-"}
    | dict(zip("▁▂▃▄▅▆▇", "_.-=+*%", strict=True))
)


class Exit(IntEnum):
    """The exit codes of every command; 2, for wrong usage, is the command line library's."""

    OK = 0
    FAILED = 1
    MISUSED = 2
    UNAVAILABLE = 75
    CONFIGURATION = 78


class Screen:
    """Standard output, for people. ``indent`` counts characters."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._console: Console | None = None
        if self._stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: Style = "plain", *, indent: int = 0) -> None:
        """One or more whole lines. They are never broken, so that a command can be copied."""
        for each in text.split("\n"):
            self.write(" " * indent + each, style)
            self.write("\n")
        self._stream.flush()

    def write(self, text: str, style: Style = "plain") -> None:
        """A piece of a line, seen at once."""
        shown = self._shown(text)
        if self._console is not None and style != "plain":
            self._console.print(shown, style=_RICH[style], end="", soft_wrap=True)
        else:
            self._stream.write(shown)
        self._stream.flush()

    def prose(self, text: str, style: Style = "plain", *, lead: str = "", indent: int = 0) -> None:
        """Sentences, broken at the width of the terminal; ``lead`` stands before the first line."""
        width = min(shutil.get_terminal_size((100, 0)).columns, 100)
        room = max(width - indent - len(lead), 20)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        for number, each in enumerate(lines):
            self.write(" " * indent + (" " * len(lead) if number else lead), style)
            self.line(each, style if style == "note" else "plain")

    def title(self, text: str) -> None:
        """The beginning of a part."""
        self.line()
        self.line(text, "title")

    def pairs(self, rows: Iterable[tuple[str, str]], *, indent: int = 2) -> None:
        """Names and values, the values in one column."""
        known = [(name, value) for name, value in rows if value]
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            self.write(" " * indent)
            self.write(name.ljust(width), "note")
            first, *more = value.split("\n")
            self.line("  " + first)
            for each in more:
                self.line(each, indent=indent + width + 2)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        numbers: Collection[int] | None = None,
        indent: int = 2,
    ) -> None:
        """Rows under headings. ``numbers`` are the columns that hold some: all but the first, unless it is said.

        Where a terminal is too narrow for it, each row is shown as pairs: broken cells could be neither read nor copied.
        """
        right = range(1, len(columns)) if numbers is None else numbers
        rows = [[self._shown(cell) for cell in row] for row in rows]
        widths = [max(map(_cells, (column, *cells))) for column, *cells in zip(columns, *rows, strict=True)]
        if self._stream.isatty() and table_width(widths, indent) > shutil.get_terminal_size().columns:
            for number, row in enumerate(rows):
                if number:
                    self.line()
                self.pairs(zip(columns, row, strict=True), indent=indent)
            return
        if self._console is not None:
            from rich.box import SIMPLE_HEAD
            from rich.padding import Padding
            from rich.table import Table

            drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
            for number, column in enumerate(columns):
                drawn.add_column(column, justify="right" if number in right else "left", overflow="fold")
            for row in rows:
                drawn.add_row(*row)
            self._console.print(Padding(drawn, (0, 0, 0, indent)))
            return
        for row in (columns, *rows):
            cells = []
            for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
                room = " " * (width - _cells(cell))
                cells.append(room + cell if number in right else cell + room)
            self.line("  ".join(cells).rstrip(), indent=indent)

    def _shown(self, text: str) -> str:
        return spelled(printable(text), self._stream)


def table_width(widths: Sequence[int], indent: int = 2) -> int:
    """How wide ``Screen.table`` draws columns of these widths at a terminal: with their rules and edges."""
    return indent + sum(widths) + 3 * len(widths) - 1


def _cells(text: str) -> int:
    """How many columns of a terminal it takes: two for a wide letter, none for a mark over another."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def say(text: str) -> None:
    """A sentence for a person, beside the output: on standard error."""
    try:
        sys.stderr.write(spelled(printable(text), sys.stderr) + "\n")
        sys.stderr.flush()
    except OSError:
        return  # nobody to tell


def put_json(document: Any) -> None:
    """A document for scripts, on standard output: ASCII only, so that no locale can spoil it."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """``text`` with everything that is not simply shown (control characters, direction marks) as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 0x7F else f"\\x{ord(letter):02x}"


def spelled(text: str, stream: TextIO) -> str:
    """``text`` with our typography in ASCII where the encoding of ``stream`` lacks it."""
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_IN_ASCII)
    return text
