"""On which line a key stands: told rightly for every spelling that TOML has."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from proxy.config.toml_lines import key_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.toml_lines import Where

TEXT = '''# a comment with "quotes" and [brackets]
top = 1
"quoted key" = "a # no comment"   # a comment
'literal.key' = 'C:\\no\\escape'
dotted.inner . "deep one" = true

[server]
host = [ # first
  "127.0.0.1", # [1]
  "::1",

  "x]", ]
keys = [["a"], [
  "b"]]
long = """
[not.a.table]
no = "key" \\"""
and ""two quotes"""""
raw = \'\'\'
[neither]
it''s\'\'\'\'
date = 1979-05-27 07:32:00 # a space inside
inline = { a = 1, "b.c" = [1, {d = 2}], e.f = "}" }
[ projects . "web\\u0073ite" ]
meter = "m"
[projects.lab.byok]
openai = "x"
[[many]]
a = 1
[many.sub]
b = 2
[[many]]
a = 3
[many.sub]
b = 4
'''

LINES: dict[tuple[str | int, ...], int] = {
    ("top",): 2,
    ("quoted key",): 3,
    ("literal.key",): 4,
    ("dotted",): 5,
    ("dotted", "inner", "deep one"): 5,
    ("server",): 7,
    ("server", "host"): 8,
    ("server", "host", 0): 9,
    ("server", "host", 1): 10,
    ("server", "host", 2): 12,
    ("server", "keys"): 13,
    ("server", "keys", 1): 13,
    ("server", "keys", 1, 0): 14,
    ("server", "long"): 15,
    ("server", "raw"): 19,
    ("server", "date"): 22,
    ("server", "inline", "b.c", 1, "d"): 23,
    ("server", "inline", "e", "f"): 23,
    ("projects", "website"): 24,
    ("projects", "website", "meter"): 25,
    ("projects", "lab"): 26,
    ("projects", "lab", "byok", "openai"): 27,
    ("many", 0, "a"): 29,
    ("many", 0, "sub", "b"): 31,
    ("many", 1): 32,
    ("many", 1, "a"): 33,
    ("many", 1, "sub", "b"): 35,
}


def paths(value: object, above: Where = ()) -> Iterator[Where]:
    """Every path in parsed TOML."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*above, key)
        yield from paths(item, (*above, key))


@pytest.mark.parametrize("where", LINES, ids=str)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_line(where: Where, line_end: str) -> None:
    """Every way to write a key has its right line, with the line ends of Unix and of Windows."""
    assert key_lines(TEXT.replace("\n", line_end))[where] == LINES[where]


def test_every_path_is_found() -> None:
    """What `tomllib` sees in the text is exactly what has a line."""
    assert set(key_lines(TEXT)) == set(paths(tomllib.loads(TEXT)))


def test_statements_begin_where_the_parser_says() -> None:
    """A statement begins after the longest shorter text that is TOML by itself: the parser's own word on lines."""
    lines = TEXT.split("\n")
    ends = [0]
    for number in range(1, len(lines) + 1):
        try:
            parsed = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        known = key_lines("\n".join(lines[: ends[-1]]))
        for where in set(paths(parsed)) - set(known):
            assert ends[-1] < key_lines(TEXT)[where] <= number
        ends.append(number)


def test_nothing() -> None:
    """Text without keys has no lines, with or without a line end."""
    assert key_lines("") == key_lines("\n \t\n# only a comment") == {}


def test_no_line_end_at_the_end() -> None:
    """The last line counts without its line end."""
    assert key_lines("[a]\nb=[]") == {("a",): 1, ("a", "b"): 2}


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=5)
STRINGS = st.text(st.sampled_from("ab#=[]{},.'\"\\\n\t "), max_size=12)
VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    """A TOML basic string."""
    return '"' + "".join(f"\\u{ord(c):04x}" if c in '"\\\n\t' else c for c in text) + '"'


def shown(value: object, draw: st.DrawFn) -> str:
    """A value in TOML, in one of its spellings."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if draw(st.booleans()) and "'''" not in value and not value.endswith("'"):
            return "'''\n" + value + "'''"
        if draw(st.booleans()):
            return '"""' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""'
        return quoted(value)
    if isinstance(value, list):
        gap = draw(st.sampled_from(["", " ", "\n", "# ] no end\n\t"]))
        return "[" + "".join(f"{gap}{shown(item, draw)}{gap}," for item in value) + gap + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {shown(item, draw)}" for key, item in value.items()) + "}"
    return str(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """TOML texts with tables, and with values that look like structure."""
    tables = draw(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
    text = ""
    for name, table in tables.items():
        text += f"[{quoted(name)}]\n"
        for key, value in table.items():
            text += f"{quoted(key)} = {shown(value, draw)}{draw(st.sampled_from(['', ' # x']))}\n"
    return text


@examples(150)
@given(documents())
def test_any_document(text: str) -> None:
    """For any TOML, the paths are those of `tomllib`, and each stands on a line that the text has."""
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
