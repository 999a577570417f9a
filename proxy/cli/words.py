"""The words behind ``lava-proxy api``, read by the one table of the account API: ids, fields and their values.

Pure, but for the local time zone. Whatever is wrong is a ``Misused`` with a sentence and, for a name, the nearest one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from proxy.lava.resources import ParameterKind, UnknownName, names, parameters, resolve, resources, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.lava.resources import Action, Param

OPTIONS = ("--all", "--config", "--help", "--json", "--yes")
"""What is no field. None of the table's fields has one of these names."""

_MONEY_NAMES = frozenset({"amount", "rate", "start", "cost", "credit_amount"})
"""In tables: decimal strings on the wire, where any other whole number is a number."""

_SPAN = re.compile(r"([0-9]{1,6})\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Misused(Exception):
    """What is wrong with the words, as a sentence."""


@dataclass(slots=True)
class Said:
    """What was said, sorted but not yet judged. ``fields`` has each field's values in the order they came."""

    places: list[str] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)
    config: str | None = None
    everything: bool = False
    help: bool = False
    as_json: bool = False
    yes: bool = False

    @property
    def resource(self) -> str | None:
        """As the table has it: ``-`` is ``_``."""
        return self.places[0].replace("-", "_") if self.places else None

    @property
    def action(self) -> str | None:
        """The same."""
        return self.places[1].replace("-", "_") if len(self.places) > 1 else None


def sort(words: Sequence[str]) -> Said:
    """Tell places from fields and options; ``--name value`` and ``--name=value`` are one. Raises ``Misused``."""
    said = Said()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            said.places += rest
            break
        if word in ("-h", "--help"):
            said.help = True
        elif word in ("--json", "--all", "--yes", "-y"):
            said.as_json |= word == "--json"
            said.everything |= word == "--all"
            said.yes |= word in ("--yes", "-y")
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise Misused(f"--{name} needs a value" + _mistyped(name))
                value = rest.pop(0)
            if name == "config":
                said.config = value
            else:
                said.fields.setdefault(name.replace("-", "_"), []).append(value)
        elif len(word) > 1 and word[0] == "-" and not word[1].isdigit():
            raise Misused(f"there is no option {word}; fields have two dashes")
        else:
            said.places.append(word)
    return said


def _mistyped(name: str) -> str:
    close = get_close_matches(f"--{name}", OPTIONS, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def chosen(said: Said, now: datetime) -> tuple[Action, tuple[str, ...], dict[str, Any]]:
    """The row that is meant, its ids and its fields. Raises ``Misused``."""
    resource, action = said.resource or "", said.action or ""
    check(resource, action)
    key = f"{resource}.{action}"
    ids = tuple(said.places[2:])
    known = {param.name: param for param in parameters(key)}
    try:
        row = resolve(key, list(said.fields))
    except UnknownName as error:
        name = error.name.replace("_", "-")
        hint = _nearest(error.nearest and option(error.nearest)) or (
            f"known are: {', '.join(map(option, known))}" if known else "this action has no fields"
        )
        raise Misused(f"{resource} {action} has no field --{name}; {hint}") from None
    except ValueError as error:
        raise Misused(str(error)) from None
    if len(ids) != len(row.ids):
        wanted = " ".join(name.upper() for name in row.ids) or "no id"
        raise Misused(
            f"{resource} {action} needs {wanted}, and {len(ids) or 'none'} {'was' if len(ids) < 2 else 'were'} given"
            if row.ids
            else f"{resource} {action} takes no id"
        )
    for name, value in zip(row.ids, ids, strict=True):
        if value in ("", ".", ".."):
            raise Misused(f"{name.upper()} is {value!r}, which is no id")
    in_query = {param.name for param in row.query}
    fields = {
        name: value_of(known[name], values, now, ahead=name not in in_query) for name, values in said.fields.items()
    }
    missing = [option(param.name) for param in row.params if param.required and param.name not in fields]
    if missing:
        raise Misused(f"{resource} {action} needs {' and '.join(missing)}")
    if action == "update" and not fields:
        raise Misused(f"{resource} {action} needs something to change: {', '.join(map(option, known))}")
    return row, ids, fields


def check(resource: str, action: str | None = None) -> None:
    """Raises ``Misused`` with the nearest name where there is no such resource, or no such action of it."""
    try:
        known = names(resource)
        # The table also knows the SDK's own names (subscriptions.retrievePlan), under which ours is found.
        meant = rows(f"{resource}.{action}")[0] if action is not None and action not in known else None
    except UnknownName as error:
        unknown = "resource" if error.name == resource else f"action of {resource}"
        listed = ", ".join(resources() if unknown == "resource" else names(resource))
        raise Misused(
            f"there is no {unknown} {error.name!r}; {_nearest(error.nearest) or f'there are: {listed}'}"
        ) from None
    if meant is not None:
        raise Misused(f"there is no action of {resource} {action!r}; did you mean {meant.resource} {meant.name}?")


def _nearest(name: str | None) -> str:
    return f"did you mean {name}?" if name else ""


def option(name: str) -> str:
    """A field as it is typed."""
    return "--" + name.replace("_", "-")


def value_of(param: Param, values: Sequence[str], now: datetime, *, ahead: bool) -> Any:
    """The value of a field from what was typed. ``ahead``: a span of time lies in the future. Raises ``Misused``."""
    name = option(param.name)
    if param.nullable and list(values) == ["null"]:
        return None
    if param.kind in (ParameterKind.NAMES, ParameterKind.PAIRS, ParameterKind.TABLE, ParameterKind.TABLES):
        return _many(param, values)
    if len(values) > 1:
        raise Misused(f"{name} is given twice")
    value = values[0]
    if param.choices and value not in param.choices:
        close = get_close_matches(value.lower(), param.choices, n=1, cutoff=0.5)
        raise Misused(
            f"{name} is one of {', '.join(param.choices)}, not {value!r}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    match param.kind:
        case ParameterKind.WHOLE:
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
                raise Misused(f"{name} is a whole number, not {value!r}")
            return int(value)
        case ParameterKind.MONEY:
            return money(value, name)
        case ParameterKind.TIME:
            return moment(value, now, name, ahead=ahead)
        case ParameterKind.FLAG:
            if value not in ("true", "false"):
                raise Misused(f"{name} is true or false, not {value!r}")
            return value == "true"
    return value


def money(text: str, name: str) -> Decimal:
    """An amount, with or without a dollar sign. Raises ``Misused``."""
    try:
        found = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or abs(found.adjusted()) > 18:
        raise Misused(f"{name} is an amount such as 12.50, not {text!r}")
    return found


def moment(text: str, now: datetime, name: str, *, ahead: bool) -> datetime:
    """A time: ISO 8601 (without an offset it is local), or a span such as ``30d`` from ``now``. Raises ``Misused``."""
    try:
        if span := _SPAN.fullmatch(text.strip().lower()):
            delta = timedelta(**{_UNITS[span[2]]: int(span[1])})
            return now + delta if ahead else now - delta
        found = datetime.fromisoformat(text.strip())
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError, OSError):
        raise Misused(f"{name} is a time such as 2026-11-30, 2026-11-30T12:00:00Z or 30d, not {text!r}") from None


def _many(param: Param, values: Sequence[str]) -> Any:
    name = option(param.name)
    if len(values) == 1 and values[0].lstrip()[:1] in ("[", "{"):
        return _document(param, values[0])
    if param.kind is ParameterKind.NAMES:
        return [each.strip() for value in values for each in value.split(",") if each.strip()]
    if param.kind is ParameterKind.PAIRS:
        return dict(_pair(value, name) for value in values)
    if param.kind is ParameterKind.TABLE:
        # Keys and values of the user's own are texts; the limits of a key are not.
        plain = param.name == "metadata"
        return {key: value if plain else _scalar(key, value) for key, value in (_pair(each, name) for each in values)}
    return [_entry(value, name) for value in values]


def _entry(value: str, name: str) -> dict[str, Any]:
    return {key: _scalar(key, text) for key, text in (_pair(each, name) for each in value.split(","))}


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Misused(f"{name} is written KEY=VALUE (again for each), or as JSON; {text!r} is neither")
    return key.strip(), value


def _scalar(key: str, text: str) -> Any:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) and key not in _MONEY_NAMES else text


def _document(param: Param, text: str) -> Any:
    wanted = list if param.kind in (ParameterKind.NAMES, ParameterKind.TABLES) else dict
    try:
        found = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError, ArithmeticError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Misused(f"{option(param.name)} is not valid JSON{where}") from None
    if not isinstance(found, wanted):
        raise Misused(f"{option(param.name)} is a JSON {'list' if wanted is list else 'object'}")
    return found


def synopsis(row: Action) -> str:
    """How an action is called."""
    ids = "".join(f" {name.upper()}" for name in row.ids)
    needed = "".join(f" {option(param.name)} {meta(param)}" for param in row.params if param.required)
    return f"lava-proxy api {row.resource} {row.name}{ids}{needed}"


def meta(param: Param) -> str:
    """What stands behind a field in a help text."""
    if param.choices:
        return "|".join(param.choices)
    return {
        ParameterKind.WHOLE: "N",
        ParameterKind.MONEY: "AMOUNT",
        ParameterKind.TIME: "TIME",
        ParameterKind.FLAG: "true|false",
        ParameterKind.NAMES: "A,B",
        ParameterKind.PAIRS: "KEY=VALUE",
        ParameterKind.TABLE: "KEY=VALUE",
        ParameterKind.TABLES: "KEY=VALUE,…",
    }.get(param.kind, "TEXT")


def kinds(params: Iterable[Param]) -> list[str]:
    """How the kinds of value among these fields are written, a sentence each."""
    found = {param.kind for param in params}
    notes = []
    if ParameterKind.TIME in found:
        notes.append("TIME: 2026-11-30, 2026-11-30T12:00:00Z, or a span such as 12h, 30d or 4w from now.")
    if found & {ParameterKind.TABLE, ParameterKind.PAIRS}:
        notes.append("KEY=VALUE: give the field again for each key, or once as a JSON object.")
    if ParameterKind.TABLES in found:
        notes.append("KEY=VALUE,…: give the field again for each entry, or once as a JSON list.")
    if any(param.nullable for param in params):
        notes.append("null takes a value away, where the field says so.")
    return notes
