"""Faults on demand: one table from a name to what goes wrong.

A fault is chosen by the request header ``x-emulator-fault`` (several with commas), or by a model called
``fault-NAME``, also ``provider/fault-NAME`` and in Google's path. Faults are of two kinds: those with a
``reply`` answer instead of the provider, those with a ``plan`` spoil how the provider's answer is delivered.
Credentials are checked before, so that a fault never hides a wrong token.

In the names below ``NNN`` is a status, ``N`` a number of events and ``S`` a number of seconds. In an answer
that is not a stream, ``N`` counts nothing: 0 stops after the head, anything else in the middle of the body.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from proxy.emulator.credentials import spend_limit_reached
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, json_reply, lava_error
from proxy.emulator.players import ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.emulator.state import ReceivedRequest

HEADER = "x-emulator-fault"
PREFIX = "fault-"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How an answer is delivered. ``None`` and ``False`` mean: as it should be."""

    delay: float = 0.0
    cut_after: int | None = None
    cut_inside: int | None = None
    stall_after: int | None = None
    no_answer: bool = False
    no_end: bool = False
    inband_error: bool = False
    drip: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    def beside(self, other: FaultPlan) -> FaultPlan:
        """Both plans in one; where both speak, ``other`` wins."""
        spoken = {row.name: getattr(other, row.name) for row in fields(self) if getattr(other, row.name) != row.default}
        return replace(self, **spoken)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One row of the table; ``what`` is for people."""

    what: str
    reply: Callable[[EmulatedCall, float], EmulatedReply] | None = None
    plan: Callable[[float], FaultPlan] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The faults of one request. ``reply`` is ``None`` when the provider answers."""

    names: tuple[str, ...] = ()
    reply: Callable[[EmulatedCall], EmulatedReply] | None = None
    plan: FaultPlan = field(default_factory=FaultPlan)


def _provider(status: int, message: str) -> Callable[[EmulatedCall, float], EmulatedReply]:
    return lambda call, _: ERRORS[call.dialect](status, message)


def _lava(status: int, code: str, message: str) -> Callable[[EmulatedCall, float], EmulatedReply]:
    return lambda call, _: lava_error(status, code, message)


def _any_status(call: EmulatedCall, number: float) -> EmulatedReply:
    status = int(number)
    if status < 400:
        return json_reply({"message": f"Status {status} as asked."}, status)
    reply = ERRORS[call.dialect](status, f"Status {status} as asked.")
    if status in (429, 503, 529):
        reply.headers.append(("retry-after", "1"))
    return reply


def _rate_limited(call: EmulatedCall, number: float) -> EmulatedReply:
    reply = lava_error(429, "rate_limit_exceeded", "Too many requests for this key. Try again later.")
    reply.headers.append(("retry-after", "1"))
    return reply


def _html(call: EmulatedCall, number: float) -> EmulatedReply:
    page = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>Bad Gateway</body>\r\n</html>\r\n"
    return EmulatedReply(502, [page], "text/html", from_edge=True)


def _empty(call: EmulatedCall, number: float) -> EmulatedReply:
    return EmulatedReply(500, [b""], "", from_edge=True)


def _redirect(call: EmulatedCall, number: float) -> EmulatedReply:
    return EmulatedReply(302, [b""], "text/plain", headers=[("location", "https://elsewhere.example.com/v1/other")])


def _echo(call: EmulatedCall, number: float) -> EmulatedReply:
    """What a careless service does: the credential comes back, in the body and in a header."""
    token = call.received.token or {}
    authorization = call.received.header("authorization") or call.received.credential or ""
    secret = str(token.get("secret_key") or call.received.credential)
    reply = ERRORS[call.dialect](400, f"Bad request with authorization {authorization} and key {secret}.")
    reply.headers += [("x-echo-authorization", authorization), ("x-echo-key", secret)]
    return reply


_UNSUPPORTED = "This endpoint is not supported by the gateway."

FAULTS: Mapping[str, PlannedFault] = {
    "status-NNN": PlannedFault("answers with this status, in the provider's own shape", reply=_any_status),
    "provider-401": PlannedFault("the provider rejects the key", reply=_provider(401, "Incorrect API key provided.")),
    "provider-402": PlannedFault("the provider wants money", reply=_provider(402, "Insufficient Balance")),
    "lava-401": PlannedFault(
        "Lava rejects", reply=_lava(401, "unauthorized", "The secret key or forward token is invalid.")
    ),
    "lava-402": PlannedFault(
        "Lava wants money", reply=_lava(402, "insufficient_balance", "The wallet balance is too low.")
    ),
    "lava-403": PlannedFault("Lava refuses", reply=_lava(403, "forbidden", "This key may not use this request shape.")),
    "lava-404": PlannedFault(
        "Lava has no such model", reply=_lava(404, "model_not_found", "The model is not available.")
    ),
    "lava-429": PlannedFault("Lava limits the rate, with Retry-After", reply=_rate_limited),
    "lava-500": PlannedFault("Lava fails", reply=_lava(500, "internal_error", "An unexpected error occurred.")),
    "lava-unsupported": PlannedFault(
        "no such target", reply=_lava(400, "forward_endpoint_not_supported", _UNSUPPORTED)
    ),
    "spend-limit": PlannedFault("a spend key's cap, with status 402", reply=lambda call, _: spend_limit_reached()),
    "spend-limit-NNN": PlannedFault(
        "the same with another status", reply=lambda call, number: spend_limit_reached(int(number))
    ),
    "html-502": PlannedFault("an HTML page from an edge in front of Lava, without a request id", reply=_html),
    "empty-500": PlannedFault("a 500 from the edge with no body, no content type and no request id", reply=_empty),
    "redirect": PlannedFault("302 to another host", reply=_redirect),
    "echo-token": PlannedFault("400 that repeats the credential and the secret key in body and headers", reply=_echo),
    "no-answer": PlannedFault(
        "the connection is closed before a byte of the answer", plan=lambda n: FaultPlan(no_answer=True)
    ),
    "cut-after-N": PlannedFault(
        "N whole events, then the connection breaks", plan=lambda n: FaultPlan(cut_after=int(n))
    ),
    "cut-inside-N": PlannedFault(
        "N whole events and half of the next, then it breaks", plan=lambda n: FaultPlan(cut_inside=int(n))
    ),
    "no-end": PlannedFault(
        "ends properly, without the end marker of its dialect", plan=lambda n: FaultPlan(no_end=True)
    ),
    "stall-after-N": PlannedFault(
        "N events, then silence until the client leaves", plan=lambda n: FaultPlan(stall_after=int(n))
    ),
    "slow-S": PlannedFault("S seconds before the first byte", plan=lambda n: FaultPlan(delay=n)),
    "drip": PlannedFault("byte by byte", plan=lambda n: FaultPlan(drip=True)),
    "inband-error": PlannedFault(
        "two events, then an error event in the stream", plan=lambda n: FaultPlan(inband_error=True)
    ),
    "set-cookie": PlannedFault(
        "answers with a cookie and with headers meant for browsers",
        plan=lambda n: FaultPlan(
            headers=(
                ("set-cookie", "session=emulator; Path=/; HttpOnly"),
                ("access-control-allow-origin", "*"),
                ("alt-svc", 'h3=":443"'),
            )
        ),
    ),
}


def find(name: str) -> tuple[PlannedFault, float] | None:
    """The row for ``name`` and the number in it (0 when it has none); ``None`` for an unknown name."""
    if name in FAULTS and not name.endswith(("-N", "-NNN", "-S")):
        return FAULTS[name], 0.0
    stem, _, tail = name.rpartition("-")
    for placeholder in ("NNN", "N", "S"):
        row = FAULTS.get(f"{stem}-{placeholder}")
        if row is None:
            continue
        if len(tail) > 9 or not tail.isascii():
            return None
        whole = tail.isdecimal()
        if placeholder == "NNN":
            good = whole and 200 <= int(tail) <= 599
        elif placeholder == "N":
            good = whole
        else:
            good = tail.replace(".", "", 1).isdecimal()
        return (row, float(tail)) if good else None
    return None


def chosen(received: ReceivedRequest) -> Chosen | EmulatedReply:
    """The faults a request asks for, or the 400 for a name that is not in the table."""
    names = [name.strip() for name in (received.header(HEADER) or "").split(",") if name.strip()]
    model = (received.model or "").rpartition("/")[2]
    if not names and model.startswith(PREFIX):
        names = [model.removeprefix(PREFIX)]
    return by_names(names)


def by_names(names: list[str]) -> Chosen | EmulatedReply:
    """The faults with these names, or the 400 for a name that is not in the table."""
    answer: Callable[[EmulatedCall], EmulatedReply] | None = None
    plan = FaultPlan()
    for name in names:
        found = find(name)
        if found is None:
            known = ", ".join(FAULTS)
            return lava_error(400, "emulator_unknown_fault", f"There is no fault {name!r}. There are: {known}.")
        row, number = found
        if row.plan is not None:
            plan = plan.beside(row.plan(number))
        elif row.reply is not None and answer is None:
            answer = _bound(row.reply, number)
    return Chosen(tuple(names), answer, plan)


def _bound(
    reply: Callable[[EmulatedCall, float], EmulatedReply], number: float
) -> Callable[[EmulatedCall], EmulatedReply]:
    return lambda call: reply(call, number)
