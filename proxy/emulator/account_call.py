"""A call of the account API as its handlers see it, and its fields; a wrong field is a 400."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from proxy.emulator.exchange import EmulatedReply, RequestRefusedError, json_reply, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Reversible

    from proxy.emulator.state import ReceivedRequest, World

Record = TypeVar("Record")

_OLD_NAMES = frozenset({"connection_id", "subscription_config_id"})
DEFAULT_PAGE, MAX_PAGE = 50, 100


def invalid(message: str, code: str = "invalid_request") -> RequestRefusedError:
    return refusal(400, code, message)


def missing(what: str, name: str) -> RequestRefusedError:
    """Return the 404 for a record; ``what`` is its kind in snake case."""
    return refusal(404, f"{what}_not_found", f"There is no {what.replace('_', ' ')} {name[:200]!r}.")


def conflict(code: str, message: str) -> RequestRefusedError:
    return refusal(409, code, message)


def find(records: Mapping[str, Record], what: str, name: str) -> Record:
    """Return the record of an id; raise the 404 if there is none."""
    if name not in records:
        raise missing(what, name)
    return records[name]


class Fields:
    """The members of a JSON object, read with their types; ``where`` names the object in messages."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def given(self, name: str) -> bool:
        """Return whether it is present and not null."""
        return self._values.get(name) is not None

    def wrong(self, name: str, expected: str) -> RequestRefusedError:
        return invalid(f"{self._where}{name} has to be {expected}.")

    def text(self, name: str) -> str:
        """Return a required string that is not empty."""
        value = self._values.get(name)
        if not isinstance(value, str) or not value.strip() or len(value) > 2000:
            raise self.wrong(name, "a string that is not empty")
        return value

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self.given(name) else None

    def choice(self, name: str, kind: Any, default: str | None = None) -> Any:
        """Return one of the words of a ``Literal``; without a ``default`` it is required."""
        value = self._values.get(name, default)
        options = get_args(kind)
        if value not in options:
            raise self.wrong(name, f"one of {', '.join(options)}")
        return value

    def money(self, name: str, default: str | None = None) -> Decimal:
        """Return an amount from a decimal string, not negative; without a ``default`` it is required."""
        value = self._values.get(name, default)
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,12})?", value):
            raise self.wrong(name, 'an amount as a decimal string such as "5.00"')
        return Decimal(value)

    def number(self, name: str) -> Decimal:
        """Return a number that is not negative, from a number or a decimal string; 0 by default."""
        value = self._values.get(name)
        if value is None:
            return Decimal(0)
        text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        if not re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{1,15})?", text):
            raise self.wrong(name, "a number that is not negative")
        return Decimal(text)

    def whole(self, name: str, smallest: int = 0) -> int:
        value = self._values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= 10**15:
            raise self.wrong(name, f"a whole number from {smallest} on")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def instant(self, name: str) -> float:
        """Return an ISO 8601 instant in seconds since the epoch."""
        found = parsed(self.text(name))
        if found is None:
            raise self.wrong(name, "an instant as ISO 8601")
        return found.timestamp()

    def within(self, name: str) -> Fields:
        """Return a required object inside this one."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self._where}{name}.")

    def each(self, name: str) -> list[Fields]:
        """Return a list of objects, empty by default."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.wrong(name, "a list of objects")
        return [Fields(one, f"{self._where}{name}[{at}].") for at, one in enumerate(value)]

    def texts(self, name: str) -> list[str]:
        """Return a list of strings, empty by default."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise self.wrong(name, "a list of strings")
        return value

    def pairs(self, name: str) -> dict[str, Any] | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value


def parsed(text: str) -> datetime | None:
    """Return an ISO 8601 instant with its offset (default UTC), or ``None``."""
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


@dataclass(slots=True)
class AccountCall:
    """One call. ``names`` are the ids in its path; ``old``: it uses the names of SDK 8."""

    world: World
    received: ReceivedRequest
    query: dict[str, str]
    names: tuple[str, ...]
    old: bool
    document: Any = None

    @property
    def now(self) -> float:
        return self.world.clock()

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def fields(self) -> Fields:
        """The body's members; raises ``RequestRefusedError`` (400) if it is not a JSON object."""
        if not isinstance(self.document, dict):
            raise invalid("The request body has to be a JSON object.", "invalid_json")
        return Fields(self.document)

    def customer_id(self) -> str | None:
        return self.query.get("customer_id") or self.query.get("connection_id")

    def plan_id(self) -> str | None:
        return self.query.get("plan_id") or self.query.get("subscription_config_id")

    def filters(self) -> list[tuple[str, str]]:
        """Return ``metadata_filters``: a JSON array of ``[key, value]`` pairs."""
        given = self.query.get("metadata_filters")
        if given is None:
            return []
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = None
        good = isinstance(found, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in found
        )
        if not good:
            raise invalid("metadata_filters has to be a JSON array of [key, value] pairs.")
        return [(pair[0], pair[1]) for pair in found]

    def page(
        self,
        records: Reversible[Record],
        name: Callable[[Record], str],
        shape: Callable[[Record], Any],
        included: Callable[[Record], bool] = lambda record: True,
    ) -> EmulatedReply:
        """Return one page of a list: newest first, ``limit`` records after the one with the id ``cursor``."""
        limit = self.query.get("limit", str(DEFAULT_PAGE))
        if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_PAGE:
            raise invalid(f"limit has to be a number from 1 to {MAX_PAGE}.", "invalid_limit")
        rest, cursor = iter(reversed(records)), self.query.get("cursor")
        if cursor is not None and cursor not in map(name, rest):
            raise invalid("The cursor is not one of this list.", "invalid_cursor")
        found = list(islice(filter(included, rest), int(limit) + 1))
        part, more = found[: int(limit)], len(found) > int(limit)
        answer: dict[str, Any] = {"data": [shape(record) for record in part], "has_more": more}
        if more:
            answer["next_cursor"] = name(part[-1])
        elif self.world.behaviour.null_cursor:
            answer["next_cursor"] = None
        return json_reply(answer)


def uses_old_names(generation: int | None, resource: str, query: dict[str, str], document: Any) -> bool:
    """Return whether a call is of SDK 8: by generation, resource, or a name in query or body."""
    if generation is not None:
        return generation == 8
    given = set(query) | (set(document) if isinstance(document, dict) else set())
    return resource in ("connections", "subscription_configs") or bool(_OLD_NAMES & given)


def created(record: Any) -> EmulatedReply:
    return json_reply(record, 201)


def deleted(name: str) -> EmulatedReply:
    return json_reply({"id": name, "deleted": True})


def success() -> EmulatedReply:
    """Answer the other deletions, and changes of a subscription."""
    return json_reply({"success": True})
