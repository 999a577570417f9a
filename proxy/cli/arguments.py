"""The arguments of ``lava-proxy api``, parsed by the table of the account API: ids, fields and their values.

Pure, except for the local time zone. Every fault is a ``UsageError``: a sentence and, for a name, the nearest one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from proxy.cli.times import UsageError as UsageError
from proxy.cli.times import parse_time as parse_time
from proxy.lava.resources import ParameterKind, UnknownName, names, parameters, resolve, resources, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from proxy.lava.resources import Action, Param

OPTIONS = ("--all", "--config", "--help", "--json", "--yes")
"""The options that are no fields. No field of the table has one of these names."""

_MONEY_NAMES = frozenset({"amount", "rate", "start", "cost", "credit_amount"})
"""In tables these are decimal strings on the wire; any other whole number is a number."""


@dataclass(slots=True)
class Arguments:
    """The arguments, sorted but not yet checked. ``fields`` has the values of each field in their order."""

    positional: list[str] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)
    config: str | None = None
    everything: bool = False
    help: bool = False
    as_json: bool = False
    yes: bool = False

    @property
    def resource(self) -> str | None:
        """Return the resource as the table has it, with ``_`` for ``-``."""
        return self.positional[0].replace("-", "_") if self.positional else None

    @property
    def action(self) -> str | None:
        """Return the action in the same way."""
        return self.positional[1].replace("-", "_") if len(self.positional) > 1 else None


def parse(words: Sequence[str]) -> Arguments:
    """Sort positional arguments, fields and options. ``--name value`` is ``--name=value``. Raises ``UsageError``."""
    found = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            found.positional += rest
            break
        if word in ("-h", "--help"):
            found.help = True
        elif word in ("--json", "--all", "--yes", "-y"):
            found.as_json |= word == "--json"
            found.everything |= word == "--all"
            found.yes |= word in ("--yes", "-y")
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"--{name} needs a value" + _mistyped(name))
                value = rest.pop(0)
            if name == "config":
                found.config = value
            else:
                found.fields.setdefault(name.replace("-", "_"), []).append(value)
        elif len(word) > 1 and word[0] == "-" and not word[1].isdigit():
            raise UsageError(f"there is no option {word}; fields have two dashes")
        else:
            found.positional.append(word)
    return found


def _mistyped(name: str) -> str:
    close = get_close_matches(f"--{name}", OPTIONS, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def resolve_call(found: Arguments, now: datetime) -> tuple[Action, tuple[str, ...], dict[str, Any]]:
    """Return the row of the table, its ids and its fields. Raises ``UsageError``."""
    resource, action = found.resource or "", found.action or ""
    check(resource, action)
    key = f"{resource}.{action}"
    ids = tuple(found.positional[2:])
    known = {param.name: param for param in parameters(key)}
    try:
        row = resolve(key, list(found.fields))
    except UnknownName as error:
        name = error.name.replace("_", "-")
        hint = _nearest(error.nearest and option_name(error.nearest)) or (
            f"known are: {', '.join(map(option_name, known))}" if known else "this action has no fields"
        )
        raise UsageError(f"{resource} {action} has no field --{name}; {hint}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if len(ids) != len(row.ids):
        wanted = " ".join(name.upper() for name in row.ids) or "no id"
        raise UsageError(
            f"{resource} {action} needs {wanted}, and {len(ids) or 'none'} {'was' if len(ids) < 2 else 'were'} given"
            if row.ids
            else f"{resource} {action} takes no id"
        )
    for name, value in zip(row.ids, ids, strict=True):
        if value in ("", ".", ".."):
            raise UsageError(f"{name.upper()} is {value!r}, which is no id")
    in_query = {param.name for param in row.query}
    fields = {
        name: parse_value(known[name], values, now, ahead=name not in in_query) for name, values in found.fields.items()
    }
    missing = [option_name(param.name) for param in row.params if param.required and param.name not in fields]
    if missing:
        raise UsageError(f"{resource} {action} needs {' and '.join(missing)}")
    if action == "update" and not fields:
        raise UsageError(f"{resource} {action} needs something to change: {', '.join(map(option_name, known))}")
    return row, ids, fields


def check(resource: str, action: str | None = None) -> None:
    """Raise ``UsageError`` with the nearest name if there is no such resource, or no such action of it."""
    try:
        known = names(resource)
        # The table also has the SDK's own names (subscriptions.retrievePlan).
        meant = rows(f"{resource}.{action}")[0] if action is not None and action not in known else None
    except UnknownName as error:
        unknown = "resource" if error.name == resource else f"action of {resource}"
        listed = ", ".join(resources() if unknown == "resource" else names(resource))
        raise UsageError(
            f"there is no {unknown} {error.name!r}; {_nearest(error.nearest) or f'there are: {listed}'}"
        ) from None
    if meant is not None:
        raise UsageError(f"there is no action of {resource} {action!r}; did you mean {meant.resource} {meant.name}?")


def _nearest(name: str | None) -> str:
    return f"did you mean {name}?" if name else ""


def option_name(name: str) -> str:
    """Return a field as an option of the command line."""
    return "--" + name.replace("_", "-")


def parse_value(param: Param, values: Sequence[str], now: datetime, *, ahead: bool) -> Any:
    """Return the value of a field. ``ahead``: a span of time is in the future. Raises ``UsageError``."""
    name = option_name(param.name)
    if param.nullable and list(values) == ["null"]:
        return None
    if param.kind in (ParameterKind.NAMES, ParameterKind.PAIRS, ParameterKind.TABLE, ParameterKind.TABLES):
        return _many(param, values)
    if len(values) > 1:
        raise UsageError(f"{name} is given twice")
    value = values[0]
    if param.choices and value not in param.choices:
        close = get_close_matches(value.lower(), param.choices, n=1, cutoff=0.5)
        raise UsageError(
            f"{name} is one of {', '.join(param.choices)}, not {value!r}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    match param.kind:
        case ParameterKind.WHOLE:
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
                raise UsageError(f"{name} is a whole number, not {value!r}")
            return int(value)
        case ParameterKind.MONEY:
            return parse_money(value, name)
        case ParameterKind.TIME:
            return parse_time(value, now, name, ahead=ahead)
        case ParameterKind.FLAG:
            if value not in ("true", "false"):
                raise UsageError(f"{name} is true or false, not {value!r}")
            return value == "true"
    return value


def parse_money(text: str, name: str) -> Decimal:
    """Return an amount, given with or without a dollar sign. Raises ``UsageError``."""
    try:
        found = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or abs(found.adjusted()) > 18:
        raise UsageError(f"{name} is an amount such as 12.50, not {text!r}")
    return found


def _many(param: Param, values: Sequence[str]) -> Any:
    name = option_name(param.name)
    if len(values) == 1 and values[0].lstrip()[:1] in ("[", "{"):
        return _document(param, values[0])
    if param.kind is ParameterKind.NAMES:
        return [each.strip() for value in values for each in value.split(",") if each.strip()]
    if param.kind is ParameterKind.PAIRS:
        return dict(_pair(value, name) for value in values)
    if param.kind is ParameterKind.TABLE:
        # The user's own keys and values are strings; the limits of a key are not.
        plain = param.name == "metadata"
        return {key: value if plain else _scalar(key, value) for key, value in (_pair(each, name) for each in values)}
    return [_entry(value, name) for value in values]


def _entry(value: str, name: str) -> dict[str, Any]:
    return {key: _scalar(key, text) for key, text in (_pair(each, name) for each in value.split(","))}


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{name} is written KEY=VALUE (again for each), or as JSON; {text!r} is neither")
    return key.strip(), value


def _scalar(key: str, text: str) -> Any:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) and key not in _MONEY_NAMES else text


def _document(param: Param, text: str) -> Any:
    wanted = list if param.kind in (ParameterKind.NAMES, ParameterKind.TABLES) else dict
    try:
        found = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError, ArithmeticError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{option_name(param.name)} is not valid JSON{where}") from None
    if not isinstance(found, wanted):
        raise UsageError(f"{option_name(param.name)} is a JSON {'list' if wanted is list else 'object'}")
    return found


def synopsis(row: Action) -> str:
    """Return the command line of an action."""
    ids = "".join(f" {name.upper()}" for name in row.ids)
    needed = "".join(f" {option_name(param.name)} {placeholder(param)}" for param in row.params if param.required)
    return f"lava-proxy api {row.resource} {row.name}{ids}{needed}"


def placeholder(param: Param) -> str:
    """Return the placeholder of a field's value in a help text."""
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


def value_notes(params: Iterable[Param]) -> list[str]:
    """Return how the values of these fields are written, one sentence for each kind."""
    found = {param.kind for param in params}
    notes = []
    if ParameterKind.TIME in found:
        notes.append("TIME: 2026-11-30, 2026-11-30T12:00:00Z, or a span such as 12h, 30d or 4w from now.")
    if found & {ParameterKind.TABLE, ParameterKind.PAIRS}:
        notes.append("KEY=VALUE: give the field again for each key, or once as a JSON object.")
    if ParameterKind.TABLES in found:
        notes.append("KEY=VALUE,…: give the field again for each entry, or once as a JSON list.")
    if any(param.nullable for param in params):
        notes.append("null removes a value, if the field allows it.")
    return notes
