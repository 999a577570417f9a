"""Write a call: path, query and body, byte for byte as the SDK does (``URL``, ``URLSearchParams``, ``JSON.stringify``,
``encodeURIComponent``). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from proxy import __version__
from proxy.lava.resources import ParameterKind, resolve

# The marker of the package for an absent value (None is an explicit null).
from proxy.lava.tokens import UNSET, Unset
from proxy.protocol.dialects import compact

if TYPE_CHECKING:
    from proxy.lava.resources import Action

__all__ = ["UNSET", "USER_AGENT", "ApiCall", "Unset", "body_of", "component", "form", "write"]

USER_AGENT = f"lava-proxy/{__version__}"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One request, relative to the base address: ``target`` follows its last slash. ``repeatable``: sending it twice has
    the same effect as once."""

    method: str
    target: str
    body: bytes | None = None
    repeatable: bool = False


def component(text: str) -> str:
    """Encode as ``encodeURIComponent``. A lone surrogate, which JavaScript refuses, becomes U+FFFD."""
    return quote(_LONE_SURROGATE.sub("\ufffd", text), safe="-_.!~*'()")


def form(pairs: list[tuple[str, str]]) -> str:
    """Encode as ``URLSearchParams``: a space is ``+``, and ``~`` is encoded."""
    return "&".join(f"{_form(name)}={_form(value)}" for name, value in pairs)


def _form(text: str) -> str:
    return quote(_LONE_SURROGATE.sub("\ufffd", text), safe="*-._ ").replace("~", "%7E").replace(" ", "+")


def write(
    key: str | Action, ids: tuple[str, ...], fields: Mapping[str, Any], extra: Mapping[str, Any] | None
) -> ApiCall:
    """Return the call of this action (``resource.action`` or a row of the table).

    ``fields`` are its parameters by name, in the order of the body; ``UNSET`` ones are left out. ``extra`` is added to the
    body as it is. Raises ``UnknownName``, ``ValueError``, ``TypeError``.
    """
    given = {name: value for name, value in fields.items() if value is not UNSET}
    # None for an optional parameter means absent, unless it can be null.
    row = resolve(key, [name for name in given if given[name] is not None]) if isinstance(key, str) else key
    known = {param.name: param for param in row.params}
    given = {
        name: value for name, value in given.items() if value is not None or (name in known and known[name].nullable)
    }
    target = _path(row, ids)
    query = [
        (param.name, _item(param.name, param.kind, given[param.name])) for param in row.query if param.name in given
    ]
    if query:
        target += "?" + form(query)
    if row.body is None:
        if extra:
            raise ValueError(f"{row.key} has no body")
        return ApiCall(row.method, target, None, row.method == "GET")
    document: dict[str, Any] = {}
    for name, value in given.items():
        param = known.get(name)
        if param is None:
            resolve(row.key, [name])
            raise ValueError(f"{name} belongs to another generation of {row.key}")
        if param.kind is ParameterKind.MONEY and isinstance(value, float):
            raise TypeError(f"{name} is money: give a Decimal or a string, not a float")
        spelt = {ParameterKind.MONEY: _money, ParameterKind.TIME: _time}.get(param.kind)
        document[name] = value if value is None or spelt is None else spelt(value)
    document |= extra or {}
    return ApiCall(row.method, target, body_of(document))


def body_of(document: object) -> bytes:
    """Return `document` as ``JSON.stringify`` writes it; Decimals as decimal strings, aware datetimes as ISO 8601.

    Raises ``TypeError`` and ``ValueError`` for what JSON cannot represent.
    """
    return compact(_plain(document))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Decimal):
        return _money(value)
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None  # as JSON.stringify does
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"JSON has no form for a {type(value).__name__}")


def _path(row: Action, ids: tuple[str, ...]) -> str:
    if len(ids) != len(row.ids):
        raise ValueError(f"{row.key} needs {' and '.join(row.ids) or 'no id'}, {len(ids)} given")
    path = row.path
    for name, value in zip(row.ids, ids, strict=True):
        if not isinstance(value, str):
            raise TypeError(f"{name} is a string")
        # A dot segment would name another resource.
        if value in ("", ".", ".."):
            raise ValueError(f"{name} is {value!r}, which is no id")
        path = path.replace(f"{{{name}}}", component(value))
    return path


def _item(name: str, kind: ParameterKind, value: Any) -> str:
    """Return one query value as text."""
    if kind is ParameterKind.TIME:
        return _time(value)
    if kind is ParameterKind.PAIRS:
        pairs = [[str(key), each] for key, each in (value.items() if hasattr(value, "items") else value)]
        return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{name} is a text or a whole number, not a {type(value).__name__}")


def _money(value: object) -> str:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("money is a finite number")
        return format(value, "f")
    return str(value)


def _time(value: object) -> str:
    if not isinstance(value, datetime):
        return str(value)
    if value.tzinfo is None:
        raise ValueError("a time needs a time zone: datetime(…, tzinfo=UTC)")
    if value.tzinfo is UTC:
        return value.isoformat().removesuffix("+00:00") + "Z"
    return value.isoformat()
