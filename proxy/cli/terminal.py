"""Output: styled in a terminal, plain in a pipe, or as JSON.

Nothing printed here can move the cursor or change the direction of text: unprintable characters are shown as escapes.
Typographic characters that the output's encoding does not have are replaced by ASCII.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import unicodedata
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from rich.console import Console

Style = Literal["plain", "title", "good", "bad", "note", "code"]

_CODES = {"title": "1", "good": "1;32", "bad": "1;31", "note": "2", "code": "36"}
"""By style, as ECMA-48 has them (SGR)."""
_RICH = {"title": "bold", "good": "bold green", "bad": "bold red", "note": "dim", "code": "cyan"}
_IN_ASCII = str.maketrans(
    {"…": "...", "→": "->", "«": '"', "»": '"', "–": "-", "—": "-", "✓": "ok", "✗": "FAILED", "█": "#", "▌": "-"}
    | dict(zip("▁▂▃▄▅▆▇", "_.-=+*%", strict=True))
)


class Exit(IntEnum):
    """The exit codes of every command. 2, for wrong usage, is that of the command line library."""

    OK = 0
    FAILED = 1
    MISUSED = 2
    UNAVAILABLE = 75
    CONFIGURATION = 78


class Screen:
    """Standard output for people. ``indent`` counts characters."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._styled = self._stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @cached_property
    def _console(self) -> Console:
        # Made for tables only: loading rich takes longer than most commands take to answer.
        from rich.console import Console

        return Console(file=self._stream, highlight=False, markup=False, emoji=False)

    def room(self) -> int | None:
        """Return the width of the terminal; ``None`` if there is none, and so no limit."""
        return shutil.get_terminal_size().columns if self._stream.isatty() else None

    def line(self, text: str = "", style: Style = "plain", *, indent: int = 0) -> None:
        """Print one or more lines. They are not wrapped, so that a command can be copied."""
        for each in text.split("\n"):
            self.write(" " * indent + each, style)
            self.write("\n")
        self._stream.flush()

    def write(self, text: str, style: Style = "plain") -> None:
        """Print a part of a line, at once."""
        shown = self._shown(text)
        if not self._styled or style == "plain" or not shown:
            self._stream.write(shown)
        elif os.name == "nt":  # whose consoles do not all read the codes
            self._console.print(shown, style=_RICH[style], end="", soft_wrap=True)
        else:
            self._stream.write(f"\x1b[{_CODES[style]}m{shown}\x1b[0m")
        self._stream.flush()

    def prose(self, text: str, style: Style = "plain", *, lead: str = "", indent: int = 0) -> None:
        """Print sentences, wrapped at the width of the terminal. `lead` is put before the first line."""
        width = min(shutil.get_terminal_size((100, 0)).columns, 100)
        left = max(width - indent - len(lead), 20)
        lines = textwrap.wrap(text, left, break_long_words=False, break_on_hyphens=False) or [""]
        for number, each in enumerate(lines):
            self.write(" " * indent + (" " * len(lead) if number else lead), style)
            self.line(each, style if style == "note" else "plain")

    def title(self, text: str) -> None:
        """Print the title of a section."""
        self.line()
        self.line(text, "title")

    def pairs(self, rows: Iterable[tuple[str, str]], *, indent: int = 2) -> None:
        """Print names and values, the values in one column."""
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
        """Print rows under headings. `numbers` are the columns of numbers: by default all but the first.

        If the terminal is too narrow, each row is printed as pairs: wrapped cells could be neither read nor copied.
        """
        right = range(1, len(columns)) if numbers is None else numbers
        rows = [[self._shown(cell) for cell in row] for row in rows]
        widths = [max(map(_cells, (column, *cells))) for column, *cells in zip(columns, *rows, strict=True)]
        room = self.room()
        if room is not None and table_width(widths, indent) > room:
            for number, row in enumerate(rows):
                if number:
                    self.line()
                self.pairs(zip(columns, row, strict=True), indent=indent)
            return
        if self._styled:
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
                space = " " * (width - _cells(cell))
                cells.append(space + cell if number in right else cell + space)
            self.line("  ".join(cells).rstrip(), indent=indent)

    def records(self, rows: Sequence[Mapping[str, str]], numbers: Collection[str]) -> None:
        """Print rows by their headings, without columns that are empty in all rows. `numbers` are the columns of numbers."""
        heads = [head for head in rows[0] if any(row[head] for row in rows)]
        cells = [[" ".join(row[head].split("\n")) for head in heads] for row in rows]
        self.table(heads, cells, numbers={at for at, head in enumerate(heads) if head in numbers})

    def _shown(self, text: str) -> str:
        return spelled(printable(text), self._stream)


def table_width(widths: Sequence[int], indent: int = 2) -> int:
    """Return the width of a table with columns of these widths in a terminal, with its lines and edges."""
    return indent + sum(widths) + 3 * len(widths) - 1


def _cells(text: str) -> int:
    """Return the columns that `text` takes in a terminal: two for a wide letter, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def say(text: str) -> None:
    """Print a sentence for a person on standard error."""
    try:
        sys.stderr.write(spelled(printable(text), sys.stderr) + "\n")
        sys.stderr.flush()
    except OSError:
        return  # there is no reader


def failed(text: str, *, as_json: bool, code: str | None = None, **facts: object) -> int:
    """Print why the command failed, for scripts with `facts` on standard output as well. Return exit code 1."""
    if as_json:
        put_json({"ok": False, "code": code, "error": text, **facts})
    say(f"lava-proxy: {text}" + ("" if text.endswith((".", "!", "?")) else "."))
    return Exit.FAILED


def misused(text: str) -> int:
    """Print what is wrong with the arguments. Return exit code 2, as the command line library does."""
    say(f"Error: {text}")
    return Exit.MISUSED


def put_json(document: Any) -> None:
    """Print a JSON document on standard output, in ASCII, so that it does not depend on the locale."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """Return `text` with unprintable characters (control characters, direction marks) as escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 0x7F else f"\\x{ord(letter):02x}"


def spelled(text: str, stream: TextIO) -> str:
    """Return `text` with typographic characters in ASCII if the encoding of `stream` lacks them."""
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_IN_ASCII)
    return text
