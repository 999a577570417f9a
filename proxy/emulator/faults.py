"""Faults on demand: one table from a name to what goes wrong.

A fault is chosen by the request header ``x-emulator-fault`` (several with commas), or by a model
called ``fault-NAME``, also ``provider/fault-NAME`` and in Google's path. A fault either replaces
the provider's reply or changes how it is sent. Credentials are checked before, so that a fault
never hides a wrong token.

In the names below ``NNN`` is a status, ``N`` a number of events and ``S`` a number of seconds. For
a response that is not a stream, ``N`` of 0 stops after the head, any other in the middle of the
body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.emulator.credentials import spend_limit_reached
from proxy.emulator.exchange import EmulatedCall, EmulatedReply, FaultPlan, json_reply, lava_error, refusal
from proxy.emulator.providers import ERRORS, Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.emulator.state import ReceivedRequest

HEADER = "x-emulator-fault"
PREFIX = "fault-"

_Reply = Callable[[EmulatedCall, float], EmulatedReply]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One row of the table; ``what`` describes it for people."""

    what: str
    reply: _Reply | None = None
    plan: Callable[[float], FaultPlan] | None = None


@dataclass(frozen=True, slots=True)
class ChosenFaults:
    """The faults of one request. ``reply`` is ``None`` when the provider answers."""

    reply: Answer | None = None
    plan: FaultPlan = field(default_factory=FaultPlan)


def _provider(status: int, message: str) -> _Reply:
    return lambda call, _: ERRORS[call.dialect](status, message)


def _lava(status: int, code: str, message: str) -> _Reply:
    return lambda call, _: lava_error(status, code, message)


def _any_status(call: EmulatedCall, number: float) -> EmulatedReply:
    status = int(number)
    message = f"Status {status} as requested."
    if status < 400:
        return json_reply({"message": message}, status)
    reply = ERRORS[call.dialect](status, message)
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
    """Repeat the credential in the body and in headers, as a careless service does."""
    token = call.received.token or {}
    authorization = call.received.header("authorization") or call.received.credential or ""
    secret = str(token.get("secret_key") or call.received.credential)
    reply = ERRORS[call.dialect](400, f"Bad request with authorization {authorization} and key {secret}.")
    reply.headers += [("x-echo-authorization", authorization), ("x-echo-key", secret)]
    return reply


_UNSUPPORTED = "This endpoint is not supported by the gateway."

FAULTS: Mapping[str, FaultKind] = {
    "status-NNN": FaultKind("answers with this status, in the provider's own shape", reply=_any_status),
    "provider-401": FaultKind("the provider rejects the key", reply=_provider(401, "Incorrect API key provided.")),
    "provider-402": FaultKind("the provider wants money", reply=_provider(402, "Insufficient Balance")),
    "lava-401": FaultKind(
        "Lava rejects", reply=_lava(401, "unauthorized", "The secret key or forward token is invalid.")
    ),
    "lava-402": FaultKind(
        "Lava wants money", reply=_lava(402, "insufficient_balance", "The wallet balance is too low.")
    ),
    "lava-403": FaultKind("Lava refuses", reply=_lava(403, "forbidden", "This key may not use this request shape.")),
    "lava-404": FaultKind("Lava has no such model", reply=_lava(404, "model_not_found", "The model is not available.")),
    "lava-429": FaultKind("Lava limits the rate, with Retry-After", reply=_rate_limited),
    "lava-500": FaultKind("Lava fails", reply=_lava(500, "internal_error", "An unexpected error occurred.")),
    "lava-unsupported": FaultKind("no such target", reply=_lava(400, "forward_endpoint_not_supported", _UNSUPPORTED)),
    "spend-limit": FaultKind("a spend key's cap, with status 402", reply=lambda call, _: spend_limit_reached()),
    "spend-limit-NNN": FaultKind(
        "the same with another status", reply=lambda call, number: spend_limit_reached(int(number))
    ),
    "html-502": FaultKind("an HTML page from an edge in front of Lava, without a request id", reply=_html),
    "empty-500": FaultKind("a 500 from the edge with no body, no content type and no request id", reply=_empty),
    "redirect": FaultKind("302 to another host", reply=_redirect),
    "echo-token": FaultKind("400 that repeats the credential and the secret key in body and headers", reply=_echo),
    "no-answer": FaultKind(
        "the connection is closed before a byte of the answer", plan=lambda n: FaultPlan(no_answer=True)
    ),
    "cut-after-N": FaultKind("N whole events, then the connection breaks", plan=lambda n: FaultPlan(cut_after=int(n))),
    "cut-inside-N": FaultKind(
        "N whole events and half of the next, then it breaks", plan=lambda n: FaultPlan(cut_inside=int(n))
    ),
    "no-end": FaultKind("ends properly, without the end marker of its dialect", plan=lambda n: FaultPlan(no_end=True)),
    "stall-after-N": FaultKind(
        "N events, then silence until the client leaves", plan=lambda n: FaultPlan(stall_after=int(n))
    ),
    "slow-S": FaultKind("S seconds before the first byte", plan=lambda n: FaultPlan(delay=n)),
    "drip": FaultKind("byte by byte", plan=lambda n: FaultPlan(drip=True)),
    "inband-error": FaultKind(
        "two events, then an error event in the stream", plan=lambda n: FaultPlan(inband_error=True)
    ),
    "record-lost": FaultKind("charged, but never in the list of requests", plan=lambda n: FaultPlan(record="lost")),
    "record-doubled": FaultKind("charged and listed twice", plan=lambda n: FaultPlan(record="doubled")),
    "record-unmetered": FaultKind("not charged: its record is an error", plan=lambda n: FaultPlan(record="unmetered")),
    "set-cookie": FaultKind(
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


def find(name: str) -> tuple[FaultKind, float] | None:
    """Return the row for ``name`` and the number in it (0 without one); ``None`` for an unknown name."""
    if name in FAULTS and not name.endswith(("-N", "-NNN", "-S")):
        return FAULTS[name], 0.0
    stem, _, tail = name.rpartition("-")
    for placeholder in ("NNN", "N", "S"):
        row = FAULTS.get(f"{stem}-{placeholder}")
        if row is None:
            continue
        if len(tail) > 9 or not tail.isascii():
            return None
        good = (tail.replace(".", "", 1) if placeholder == "S" else tail).isdecimal()
        if placeholder == "NNN":
            good = good and 200 <= int(tail) <= 599
        return (row, float(tail)) if good else None
    return None


def chosen(received: ReceivedRequest) -> ChosenFaults:
    """Return the faults that a request names; raise ``RequestRefusedError`` (400) for an unknown name."""
    names = [name.strip() for name in (received.header(HEADER) or "").split(",") if name.strip()]
    model = (received.model or "").rpartition("/")[2]
    if not names and model.startswith(PREFIX):
        names = [model.removeprefix(PREFIX)]
    return by_names(received, names)


def by_names(received: ReceivedRequest, names: list[str]) -> ChosenFaults:
    """Return the faults with these names; raise ``RequestRefusedError`` (400) for an unknown name."""
    answer: Answer | None = None
    plan = FaultPlan()
    for name in names:
        found = find(name)
        if found is None:
            known = ", ".join(FAULTS)
            raise refusal(400, "emulator_unknown_fault", f"There is no fault {name!r}. There are: {known}.")
        row, number = found
        if row.plan is not None:
            plan = plan.merged(row.plan(number))
        elif row.reply is not None and answer is None:
            answer = _bound(row.reply, number)
    received.fault = ", ".join(names) or None
    return ChosenFaults(answer, plan)


def _bound(reply: _Reply, number: float) -> Answer:
    return lambda call: reply(call, number)
