"""What a request wants beside words: JSON that fits a schema, or the call of a tool.

Agents and libraries for structured answers give up on (or ask for ever for) an answer of another shape. So a schema gets the
smallest value that fits it, and a tool is called when the request forces one, or when its last message says ``call NAME``,
with or without arguments as JSON behind it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.emulator.exchange import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = ""
"""The name of a forced tool where any of them will do."""

_CALL = re.compile(r"\s*call ([\w.-]{1,128})\s*(\{.*\})?\s*", re.DOTALL)
_DEEPEST = 12
_MOST = 1000
# Google takes snake case as well, and its SDK sends it.
_SPELLED = {"min_items": "minItems", "max_length": "maxLength", "any_of": "anyOf"}
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "nobody@example.com",
    "uri": "https://www.example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; ``arguments`` is what its schema allows."""

    name: str
    arguments: Any

    @property
    def text(self) -> str:
        """The arguments as JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)


def tool_call(tools: Iterable[tuple[Any, Any]], forced: Any, messages: Any, text: str, content: str) -> ToolCall | None:
    """The call that a request wants, or ``None``.

    ``tools`` are pairs of a name and a schema. ``forced`` is the name of one, ``ANY``, or ``None``. ``content`` names the
    member of ``messages`` that holds their text; ``text`` is what strings are filled with.
    """
    known = {name: schema for name, schema in tools if isinstance(name, str)}
    last = messages[-1] if isinstance(messages, list) and messages else messages
    said = plain_text(last.get(content) if isinstance(last, dict) and last.get("role", "user") == "user" else last)
    asked = _CALL.fullmatch(said)
    if asked is not None and asked[1] in known and forced in (None, ANY, asked[1]):
        return ToolCall(asked[1], _given(asked[2]) or fitting(known[asked[1]], text))
    name = next(iter(known), None) if forced == ANY else forced
    return ToolCall(name, fitting(known[name], text)) if isinstance(name, str) and name in known else None


def json_text(schema: Any, text: str) -> str:
    """JSON that fits ``schema``; without one (any JSON will do), an object with ``text`` in it."""
    return json.dumps(fitting(schema, text) if isinstance(schema, dict) else {"answer": text}, ensure_ascii=False)


def table(value: Any) -> dict[str, Any]:
    """``value`` where it is a JSON object, else an empty one: a request may hold anything anywhere."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """The JSON objects in a list, else none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _given(arguments: str | None) -> Any:
    try:
        return json.loads(arguments) if arguments else None
    except (ValueError, RecursionError):
        return None


def fitting(schema: Any, text: str) -> Any:
    """The smallest value that fits a JSON schema, in Google's spelling too; ``text`` where a string is wanted.

    Patterns, and what only a solver could do, are left alone.
    """
    return _Filling(table(schema), text).value(table(schema), 0)


class _Filling:
    """One value in the making. A schema that never ends (it may refer to itself) ends in nulls."""

    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._left = _MOST

    def value(self, schema: dict[str, Any], depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return None
        found = self._whole(schema, 0)
        if "const" in found:
            return found["const"]
        if isinstance(found.get("enum"), list) and found["enum"]:
            return found["enum"][0]
        choices = tables(found.get("anyOf") or found.get("oneOf"))
        if choices:
            return self.value(next((one for one in choices if one.get("type") != "null"), choices[0]), depth + 1)
        kind = found.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind.lower() if isinstance(kind, str) else None:
            case "string":
                return self._string(found)
            case "integer":
                return math.ceil(_number(found))
            case "number":
                return _number(found)
            case "boolean":
                return True
            case "null":
                return None
            case "array":
                least = str(found.get("minItems"))  # Google writes it as a string
                size = min(int(least), _MOST) if least.isascii() and least.isdecimal() and len(least) < 9 else 0
                items = table(found.get("items"))
                return [self.value(items, depth + 1) for _ in range(size) if self._left > 0]
        properties, required = table(found.get("properties")), found.get("required")
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        return {name: self.value(table(properties.get(name)), depth + 1) for name in names}

    def _whole(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """The schema with its reference and its ``allOf`` put in."""
        found = {_SPELLED.get(name, name): value for name, value in schema.items()}
        reference = found.pop("$ref", None)
        parts = tables(found.pop("allOf", None))
        if isinstance(reference, str):
            target: Any = self._root
            for word in reference.removeprefix("#").strip("/").split("/"):
                target = table(target).get(word)
            parts.append(table(target))
        for part in parts if depth < _DEEPEST else ():
            self._left -= 1
            if self._left > 0:
                found = self._whole(part, depth + 1) | found
        return found

    def _string(self, schema: dict[str, Any]) -> str:
        kind = schema.get("format")
        if isinstance(kind, str) and kind in _FORMATS:
            return _FORMATS[kind]
        longest = schema.get("maxLength")
        return self._text[:longest] if isinstance(longest, int) and longest >= 0 else self._text


def _number(schema: dict[str, Any]) -> int | float:
    """Its least, else 1 or what is allowed below: some SDKs keep limits to themselves, and 0 breaks more of them than 1."""
    limits = {
        name: limit
        for name in ("exclusiveMinimum", "minimum", "maximum")
        if isinstance(limit := schema.get(name), int) or (isinstance(limit, float) and math.isfinite(limit))
    }
    if "exclusiveMinimum" in limits:
        return limits["exclusiveMinimum"] + 1
    return limits.get("minimum", min(1, limits.get("maximum", 1)))
