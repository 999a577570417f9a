"""JSON that fits a schema, and tool calls.

Agents and libraries for structured answers fail on (or repeat) a request that gets plain text. So a
schema gets the smallest value that fits it. A tool is called when the request forces one, or when
its last message is ``call NAME`` with optional arguments as JSON.
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
"""Stands for any tool where the request forces a call but names no tool."""

_CALL = re.compile(r"\s*call ([\w.-]{1,128})\s*(\{.*\})?\s*", re.DOTALL)
_MAX_DEPTH = 12
_MAX_VALUES = 1000
# Google accepts snake case as well, and its SDK sends it.
_CAMEL_CASE = {"min_items": "minItems", "max_length": "maxLength", "any_of": "anyOf"}
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
    name: str
    arguments: Any

    @property
    def text(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


def tool_call(tools: Iterable[tuple[Any, Any]], forced: Any, messages: Any, text: str, content: str) -> ToolCall | None:
    """Return the call that a request wants, or ``None``.

    ``tools`` are pairs of a name and a schema. ``forced`` is the name of one, ``ANY``, or ``None``.
    ``content`` names the member of ``messages`` that holds their text; ``text`` is the value of
    strings.
    """
    known = {name: schema for name, schema in tools if isinstance(name, str)}
    last = messages[-1] if isinstance(messages, list) and messages else messages
    from_user = isinstance(last, dict) and last.get("role", "user") == "user"
    match = _CALL.fullmatch(plain_text(last.get(content) if from_user else last))
    if match is not None and match[1] in known and forced in (None, ANY, match[1]):
        return ToolCall(match[1], _parsed(match[2]) or smallest_value(known[match[1]], text))
    name = next(iter(known), None) if forced == ANY else forced
    return ToolCall(name, smallest_value(known[name], text)) if isinstance(name, str) and name in known else None


def json_text(schema: Any, text: str) -> str:
    """Return JSON that fits ``schema``; without one, an object that contains ``text``."""
    return json.dumps(
        smallest_value(schema, text) if isinstance(schema, dict) else {"answer": text}, ensure_ascii=False
    )


def as_object(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list, else none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _parsed(arguments: str | None) -> Any:
    try:
        return json.loads(arguments) if arguments else None
    except (ValueError, RecursionError):
        return None


def smallest_value(schema: Any, text: str) -> Any:
    """Return the smallest value that fits a JSON schema, Google's too, with ``text`` for strings.
    Patterns are ignored.
    """
    return _ValueBuilder(as_object(schema), text).value(as_object(schema), 0)


class _ValueBuilder:
    """Builds one value. A schema that refers to itself ends in nulls."""

    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._left = _MAX_VALUES

    def value(self, schema: dict[str, Any], depth: int) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            return None
        found = self._resolved(schema, 0)
        if "const" in found:
            return found["const"]
        if isinstance(found.get("enum"), list) and found["enum"]:
            return found["enum"][0]
        choices = as_objects(found.get("anyOf") or found.get("oneOf"))
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
                size = min(int(least), _MAX_VALUES) if least.isascii() and least.isdecimal() and len(least) < 9 else 0
                items = as_object(found.get("items"))
                return [self.value(items, depth + 1) for _ in range(size) if self._left > 0]
        properties, required = as_object(found.get("properties")), found.get("required")
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        return {name: self.value(as_object(properties.get(name)), depth + 1) for name in names}

    def _resolved(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return the schema with its reference and its ``allOf`` resolved."""
        found = {_CAMEL_CASE.get(name, name): value for name, value in schema.items()}
        reference = found.pop("$ref", None)
        parts = as_objects(found.pop("allOf", None))
        if isinstance(reference, str):
            target: Any = self._root
            for word in reference.removeprefix("#").strip("/").split("/"):
                target = as_object(target).get(word)
            parts.append(as_object(target))
        for part in parts if depth < _MAX_DEPTH else ():
            self._left -= 1
            if self._left > 0:
                found = self._resolved(part, depth + 1) | found
        return found

    def _string(self, schema: dict[str, Any]) -> str:
        kind = schema.get("format")
        if isinstance(kind, str) and kind in _FORMATS:
            return _FORMATS[kind]
        longest = schema.get("maxLength")
        return self._text[:longest] if isinstance(longest, int) and longest >= 0 else self._text


def _number(schema: dict[str, Any]) -> int | float:
    """Return the minimum, else 1 or a lower maximum: some SDKs do not send limits, and more of
    those reject 0 than 1.
    """
    limits = {
        name: limit
        for name in ("exclusiveMinimum", "minimum", "maximum")
        if isinstance(limit := schema.get(name), int) or (isinstance(limit, float) and math.isfinite(limit))
    }
    if "exclusiveMinimum" in limits:
        return limits["exclusiveMinimum"] + 1
    return limits.get("minimum", min(1, limits.get("maximum", 1)))
