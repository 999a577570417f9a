"""The reason of a refusal by Lava, in sentences: what a project sends, compared with what Lava's account says. Pure.

``account_probe.py`` makes the calls; this module interprets the results. Nothing is claimed that Lava did not report: a missing
fact is ``None`` in an ``AccountReport``, and not mentioned. No sentence contains more of a key than its last four characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from proxy.lava.money import dollars
from proxy.lava.tokens import PRODUCTION, SANDBOX, read_token
from proxy.protocol.errors import shorten
from proxy.protocol.redaction import Secret
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from decimal import Decimal

    from proxy.config.settings import Project
    from proxy.protocol.errors import ProxyError

Environment = Literal["live", "test"]

_KEY = re.compile(r"[\x21-\x7e]+")
_MAX_NAME_LENGTH = 100
_MAX_NAMED = 5
# The similarity of two names that counts as near. In a short name, one letter may differ.
_NEAR, _NEAR_SHORT, _SHORT = 0.75, 0.66, 3


@dataclass(frozen=True, slots=True)
class Subject:
    """What a project sends to Lava.

    ``kind`` and ``hint`` describe its credential. ``key`` is the key for the account API (``None``: there is none), ``place``
    the setting with the credential, ``base_url`` the address of Lava.
    """

    project: str
    base_url: str
    kind: Literal["secret key", "forward token", "spend key"]
    key: Secret | None
    hint: str
    place: str
    payer: Literal["merchant", "customer", "spend_key"]
    byok: bool = False
    connection_id: str | None = None
    customer_id: str | None = None
    meter: str | None = None
    provider_key: bool = False
    """Whether it has its own provider key (with a tool's key, ``byok`` is set as well)."""

    @property
    def person(self) -> str | None:
        """The id of the customer, as connection or customer."""
        return self.connection_id or self.customer_id

    @property
    def silent(self) -> str | None:
        """Why the account API cannot be called, or ``None`` if it can."""
        if self.kind == "spend key":
            return "a spend key cannot ask Lava's account"
        if self.key is None:
            unread = "the key in its forward token cannot be read"
            return unread if self.kind == "forward token" else "it has no Lava key"
        if self.key.reveal().startswith("lava_"):
            return f"the key {self.key.hint} is no secret key (aks_…), and no other can ask Lava's account"
        return None

    @property
    def environment(self) -> Environment | None:
        """The environment of the key, by its prefix."""
        key = self.key.reveal() if self.key is not None else ""
        return "live" if key.startswith("aks_live_") else "test" if key.startswith("aks_test_") else None


def subject_of(name: str, project: Project, account_key: Secret | None, base_url: str) -> Subject:
    """Return what project ``name`` sends. ``account_key`` is the key of ``[lava]``; the project's own comes first."""
    table = f"[projects.{name}]"
    if project.spend_key is not None:
        place = f"spend_key under {table}"
        return Subject(name, base_url, "spend key", project.spend_key, project.spend_key.hint, place, "spend_key")
    if project.forward_token is not None:
        fields = read_token(project.forward_token.reveal())

        def text(member: str) -> str | None:
            value = fields.get(member)
            return value if isinstance(value, str) and value else None

        key, connection, customer = text("secret_key"), text("connection_id"), text("customer_id")
        billed = bool(connection or customer) and fields.get("disable_billing") is not True
        return Subject(
            name,
            base_url,
            "forward token",
            Secret(key) if key is not None else None,
            project.forward_token.hint,
            f"forward_token under {table}",
            "customer" if billed else "merchant",
            text("provider_key") is not None,
            connection,
            customer,
            text("meter_slug"),
            text("provider_key") is not None,
        )
    secret = project.secret_key or account_key
    billed = bool(project.connection_id or project.customer_id) and project.disable_billing is not True
    return Subject(
        name,
        base_url,
        "secret key",
        secret,
        secret.hint if secret is not None else "",
        f"secret_key under {table}" if project.secret_key is not None else "secret_key under [lava]",
        "customer" if billed else "merchant",
        bool(project.byok),
        project.connection_id,
        project.customer_id,
        project.meter,
        any(isinstance(key, Secret) for key in project.byok.values()),
    )


@dataclass(slots=True)
class AccountReport:
    """What Lava's account says about a subject; ``None`` for what it did not report.

    ``key``, ``customer`` and ``meter``: whether Lava knows them. ``near`` is a meter with a similar name, ``meters`` are the
    first existing ones. In dollars: ``balance`` of the merchant wallet, ``customer_balance`` of the customer (few versions of
    Lava report it), ``credit`` left in the customer's plan. ``models`` is the number of models listed for a spend key.
    ``failure`` is a sentence about what could not be found out.
    """

    key: bool | None = None
    customer: bool | None = None
    meter: bool | None = None
    near: str | None = None
    meters: tuple[str, ...] = ()
    balance: Decimal | None = None
    customer_balance: Decimal | None = None
    has_credit: bool | None = None
    subscribed: bool | None = None
    plan: str | None = None
    credit: Decimal | None = None
    renews: datetime | None = None
    models: int | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    ``part`` is ``key``, ``environment``, ``connection``, ``customer``, ``meter``, ``wallet`` or ``plan``. ``suggestion`` is a
    sentence that says what to do. ``left`` is the remaining money in dollars.
    """

    part: str
    problem: str
    suggestion: str
    left: str | None = None

    def masked(self, mask: Callable[[str], str]) -> Finding:
        """Return a copy without the secrets that ``mask`` knows: names at Lava are free text and may contain one."""
        return Finding(self.part, mask(self.problem), mask(self.suggestion), self.left)

    def document(self) -> dict[str, str]:
        """Return it as a JSON object."""
        found = {"part": self.part, "problem": self.problem, "suggestion": self.suggestion}
        return found if self.left is None else {**found, "left": self.left}


@dataclass(frozen=True, slots=True)
class Report:
    """The check of a project: what is wrong, what is good, and what could not be found out."""

    wrong: list[Finding] = field(default_factory=list)
    good: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def nearest(slug: str, slugs: Iterable[str]) -> str | None:
    """Return the slug that was probably meant: one that hardly differs, or ``None``."""
    spelled = {_plain(each): each for each in showable(slugs)}
    cutoff = _NEAR if len(slug) > _SHORT else _NEAR_SHORT
    close = get_close_matches(_plain(slug), spelled, n=1, cutoff=cutoff)
    return spelled[close[0]] if close else None


def _plain(slug: str) -> str:
    return slug.casefold().replace("_", "-")


def showable(slugs: Iterable[str]) -> list[str]:
    """Return the slugs that are printable and not too long."""
    return [each for each in slugs if each.isprintable() and len(each) <= _MAX_NAME_LENGTH]


# --- what is wrong ---------------------------------------------------------------------------------------------------


def wrong(subject: Subject, account: AccountReport, *, owner: bool = False) -> list[Finding]:
    """Return the faults of key, environment, customer and meter.

    ``owner``: the reader is the account's owner. A tool with a local key gets a name that hardly differs from its own, but
    no other names of the account.
    """
    key = subject.key
    if key is not None and not _KEY.fullmatch(key.reveal()):
        what = f"{_credential(subject)} holds a space, a line end or another character that no key has"
        return [Finding("key", what, f"Write it again, without that character: {subject.place}.")]
    if account.key is False:
        return [_bad_key(subject)]
    found = []
    if account.customer is False and subject.person is not None:
        found.append(_no_customer(subject))
    if account.meter is False and subject.meter is not None:
        found.append(_no_meter(subject, account, owner))
    return found


def _bad_key(subject: Subject) -> Finding:
    name, own = _credential(subject), subject.environment
    there = _environment_at(subject.base_url)
    if own is not None and there is not None and own != there:
        what = f"{name} is of the {own} environment, but {subject.base_url} is Lava's {there} one"
        return Finding("environment", what, f'Leave base_url under [lava] at "auto", or use a {there} key.')
    of_one = f" (it is a {own} key)" if own is not None else ""
    what = f"Lava does not know {name}: it was revoked, or it is of another account or environment{of_one}"
    if subject.kind == "spend key":
        return Finding("key", what, f"Make a new spend key at Lava (`lava-proxy keys create`): {subject.place}.")
    new = "Make a new forward token" if subject.kind == "forward token" else "Make a new secret key at Lava"
    login = ", or run `lava-proxy login`" if subject.place == "secret_key under [lava]" else ""
    return Finding("key", what, f"{new} and write it in place of this one ({subject.place}){login}.")


def _no_customer(subject: Subject) -> Finding:
    part = "connection" if subject.connection_id else "customer"
    what = (
        f"{_person(subject)} does not exist: it was deleted, or it is of another account or environment{_of(subject)}"
    )
    return Finding(
        part, what, f"List those there are with `lava-proxy connections`, and correct {_where(subject, part)}."
    )


def _no_meter(subject: Subject, account: AccountReport, owner: bool) -> Finding:
    what, where = f'meter "{subject.meter}" does not exist', _where(subject, "meter")
    if account.near is not None:
        return Finding("meter", f'{what}; did you mean "{account.near}"?', f'Write "{account.near}" as {where}.')
    what += f" in the account of the key {_hint(subject.key)}{_kind(subject)}"
    if not owner:
        how = f"Create the meter at Lava, or correct {where}: `lava-proxy check --online` says which there are."
        return Finding("meter", what, how)
    there = ", ".join(f'"{each}"' for each in account.meters[:_MAX_NAMED]) or "none"
    more = " and more" if len(account.meters) > _MAX_NAMED else ""
    return Finding("meter", f"{what}; it has {there}{more}", f"Create the meter at Lava, or correct {where}.")


# --- money -----------------------------------------------------------------------------------------------------------


def money(subject: Subject, account: AccountReport, *, named: bool = True) -> tuple[list[Finding], bool]:
    """Return the payer's wallet or plan with the money left, as far as Lava reports it, and whether it is certainly empty.

    ``named=False``: for a sentence that already names the wallet.
    """
    if subject.payer == "merchant":
        if account.balance is None:
            return [], False
        what = f"{'the merchant wallet' if named else 'it'} holds {dollars(account.balance)}"
        return [Finding("wallet", what, "Top up your wallet at Lava.", f"{account.balance:f}")], account.balance <= 0
    if subject.payer != "customer":
        return [], False
    found, person = [], _person(subject)
    wallet = f"the wallet behind {person}" if named else "it"
    up = "Top up that customer's wallet (`lava-proxy checkout` makes a checkout for it)."
    balance = account.customer_balance
    empty = balance <= 0 if balance is not None else account.has_credit is False
    no_plan = ", and there is no plan beside it" if empty and account.subscribed is False else ""
    if balance is not None:
        found.append(Finding("wallet", f"{wallet} holds {dollars(balance)}{no_plan}", up, f"{balance:f}"))
    elif account.has_credit is not None:
        found.append(Finding("wallet", f"{wallet} holds {'no ' if empty else ''}credit{no_plan}", up))
    elif account.subscribed is False:
        found.append(Finding("plan", f"{person if named else 'the customer'} has no plan", up))
    if account.subscribed and account.credit is not None:
        until = f" until {account.renews:%Y-%m-%d}" if account.renews is not None else ""
        plan = f'the plan "{account.plan}"' if account.plan else "the plan"
        of = f" of {person}" if named else ""
        what = f"{plan}{of} has {dollars(account.credit)} of credit left{until}"
        found.append(Finding("plan", what, up, f"{account.credit:f}"))
    used_up = account.subscribed is False or (account.credit is not None and account.credit <= 0)
    return found, empty and used_up


# --- sentences -------------------------------------------------------------------------------------------------------


def wanted(fault: ProxyError) -> bool:
    """Whether this fault is a 401 or 402 from Lava, or possibly from Lava. The account API explains no other."""
    if fault.status not in (401, 402):
        return False
    return fault.code in ("lava_unauthorized", "lava_insufficient_balance") or fault.owner == "unknown"


def explain(
    fault: ProxyError, subject: Subject, account: AccountReport, age_s: float, mask: Callable[[str], str]
) -> None:
    """Add the account's report to the fault: to its sentence, as its hint, and as ``diagnosis`` for machines.

    A finding replaces an earlier guess in the sentence. Status, code and Lava's own message are unchanged. ``age_s`` is the age
    of the report in seconds. ``mask`` removes secrets from names at Lava.
    """
    broken = [each.masked(mask) for each in wrong(subject, account)]
    state = [each.masked(mask) for each in money(subject, account)[0]] if fault.status == 402 else []
    ago = f"{age_s:.0f} s ago" if age_s >= 1 else ""
    if broken:
        problems = "; also, ".join(each.problem for each in broken + state)
        # The sentence names the key once.
        aside = [_credential(subject)] if _hint(subject.key) not in problems else []
        aside += [ago] if ago else []
        fault.what = f'Project "{subject.project}"{_aside(aside)}: {_ended(problems)}'
        fault.hint = broken[0].suggestion
    elif state:
        named = fault.code != "lava_insufficient_balance"
        problems = ", and ".join(mask(each.problem) for each in money(subject, account, named=named)[0])
        fault.what = f"{fault.what.removesuffix('.')}: {problems}{_aside([ago] if ago else [])}."
    elif account.key and not account.failure:
        statement = f"Asked{_aside([ago] if ago else [])}, Lava's account finds no fault"
        fault.what += f" {statement}: {_list(good(subject, account))}."
    if broken or state or account.key is not None:
        fault.details["diagnosis"] = [each.document() for each in broken + state]
    if account.failure:
        fault.details["diagnosis_failed"] = mask(account.failure)


def _aside(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def good(subject: Subject, account: AccountReport) -> list[str]:
    """Return what is good, one clause each."""
    found = []
    if account.key and subject.kind != "spend key":  # the list of models, its only call, is public
        found.append(f"Lava knows {_credential(subject)}{_kind(subject)}")
    if account.customer:
        found.append(f"{_person(subject)} exists")
    if account.meter:
        found.append(f'meter "{subject.meter}" exists')
    if account.models is not None:
        found.append(f"Lava lists {counted(account.models, 'model')} for this spend key, and tells no more of it")
    return found


def report(subject: Subject, account: AccountReport, mask: Callable[[str], str]) -> Report:
    """Return the whole check, without a failed request: an empty wallet is wrong, and remaining money is good."""
    if subject.key is None and subject.kind == "secret key":
        log_in = "Run `lava-proxy login`, or set LAVA_SECRET_KEY, or write secret_key under [lava]."
        return Report([Finding("key", "no Lava secret key is configured", log_in)])
    found, fine = wrong(subject, account, owner=True), good(subject, account)
    unknown = _unknown(subject, account)
    state, gone = money(subject, account)
    # With an own provider key Lava charges little: it is not certain that an empty wallet stops a request.
    if gone and not subject.byok:
        found += state
    else:
        fine += [each.problem for each in state]
    if subject.provider_key:
        unknown.append("the provider's key is not checked: it leaves this machine with a request only")
    return Report([each.masked(mask) for each in found], [*map(mask, fine)], [*map(mask, unknown)])


def _unknown(subject: Subject, account: AccountReport) -> list[str]:
    """Return what Lava did not report, one clause each: without a report nothing counts as good."""
    if subject.silent is not None:
        return [f"not checked: {subject.silent}"]
    if account.failure:
        return [account.failure]
    if account.key is False:
        return []
    found = []
    if subject.person is not None and account.customer is None:
        found.append(f"not checked: Lava does not say whether {_person(subject)} exists")
    if subject.meter is not None and account.meter is None:
        found.append(f'not checked: Lava does not say whether meter "{subject.meter}" exists')
    reported = (account.customer_balance, account.has_credit, account.subscribed)
    if subject.payer == "merchant" and account.balance is None:
        found.append("not checked: Lava does not say what the merchant wallet holds")
    elif subject.payer == "customer" and account.customer and all(each is None for each in reported):
        found.append(f"not checked: Lava does not say what the wallet behind {_person(subject)} holds")
    return found


def _credential(subject: Subject) -> str:
    inside = subject.kind == "forward token" and subject.key is not None
    return (
        f"the key {_hint(subject.key)} in the forward token"
        if inside
        else f"the {subject.kind} {subject.hint}".rstrip()
    )


def _hint(key: Secret | None) -> str:
    return key.hint if key is not None else ""


def _person(subject: Subject) -> str:
    kind = "connection" if subject.connection_id else "customer"
    return f"{kind} {shorten(subject.person or '')}"


def _of(subject: Subject) -> str:
    own = subject.environment
    return f" (the key {_hint(subject.key)} is a {own} key)" if own is not None else ""


def _kind(subject: Subject) -> str:
    return f" (a {subject.environment} key)" if subject.environment is not None else ""


def _where(subject: Subject, part: str) -> str:
    """Return the setting with a name."""
    if subject.kind == "forward token":
        return f"the {part} of the forward token ({subject.place}), by making a new one"
    return f"{part if part == 'meter' else f'{part}_id'} under [projects.{subject.project}]"


def _environment_at(base_url: str) -> Environment | None:
    host = urlsplit(base_url).hostname or ""
    if host.startswith("sandbox") or host == urlsplit(SANDBOX).hostname:
        return "test"
    return "live" if host in (urlsplit(PRODUCTION).hostname, "api.lava.so") else None


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def _list(clauses: list[str]) -> str:
    *first, last = clauses
    return f"{', '.join(first)} and {last}" if first else last
