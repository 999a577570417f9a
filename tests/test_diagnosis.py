"""What is made of the answers of Lava's account: pure, no network."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import Project
from proxy.gateway.destinations.diagnosis import (
    AccountReport,
    Subject,
    explain,
    good,
    money,
    nearest,
    report,
    subject_of,
    wanted,
    wrong,
)
from proxy.lava.tokens import mint_token
from proxy.protocol.errors import Payment, ProxyError, from_answer
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from proxy.protocol.errors import Owner

LIVE = "aks_live_" + "c4naryQ7" * 3
TEST = "aks_test_" + "c4naryQ7" * 3
SPEND = "lava_sk_" + "c4naryQ7" * 3
LAVA = "https://api.lavapayments.com/v1"
SANDBOX = "https://sandbox-api.lavapayments.com/v1"


def subject(project: dict[str, Any] | None = None, key: str | None = LIVE, base_url: str = LAVA) -> Subject:
    """What the project ``web`` sends."""
    made = Project.model_validate(project or {})
    return subject_of("web", made, Secret(key) if key is not None else None, base_url)


CUSTOMER = {"connection_id": "conn_demo", "meter": "websit-chat"}


def unauthorized(status: int = 401, code: str = "lava_unauthorized", owner: Owner = "lava") -> ProxyError:
    return ProxyError(code, "Lava rejects it.", "Check the key.", quote="Lava said: «No.»", status=status, owner=owner)


def explained(said: AccountReport, about: Subject, status: int = 401, age_s: float = 0.0) -> ProxyError:
    fault = unauthorized(status, "lava_unauthorized" if status == 401 else "lava_insufficient_balance")
    explain(fault, about, said, age_s, lambda text: text)
    return fault


# --- what a project sends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "payer", "silent"),
    [
        ({}, "merchant", None),
        ({"meter": "m"}, "merchant", None),
        ({"connection_id": "c", "meter": "m"}, "customer", None),
        ({"customer_id": "c", "meter": "m"}, "customer", None),
        ({"customer_id": "c", "meter": "m", "disable_billing": True}, "merchant", None),
        ({"byok": {"openai": "x" * 20}}, "merchant", None),
        ({"spend_key": SPEND}, "spend_key", "a spend key cannot ask"),
        ({"secret_key": SPEND}, "merchant", "is no secret key"),
        ({"forward_token": "no token"}, "merchant", "cannot be read"),
        ({"forward_token": mint_token(LIVE)}, "merchant", None),
        ({"forward_token": LIVE}, "merchant", None),
        ({"forward_token": mint_token(SPEND)}, "merchant", "is no secret key"),
        ({"forward_token": mint_token(LIVE, customer_id="c", meter_slug="m")}, "customer", None),
        (
            {"forward_token": mint_token(LIVE, customer_id="c", meter_slug="m", disable_billing=True)},
            "merchant",
            None,
        ),
    ],
)
def test_whose_money_it_is_and_who_can_be_asked(project: dict[str, Any], payer: str, silent: str | None) -> None:
    """The key that may ask is the project's own, [lava]'s, or the one inside a ready token; a spend key may not."""
    about = subject(project)
    assert about.payer == payer
    assert (silent in (about.silent or "")) if silent else about.silent is None


def test_the_projects_own_key_goes_first_and_a_token_says_its_names() -> None:
    """What is asked about is what was sent."""
    about = subject({"secret_key": TEST})
    assert (about.key, about.environment, about.place) == (Secret(TEST), "test", "secret_key under [projects.web]")
    token = mint_token(TEST, connection_id="conn_a", meter_slug="m", provider_key="p" * 20)
    about = subject({"forward_token": token})
    assert (about.key, about.connection_id, about.meter, about.byok) == (Secret(TEST), "conn_a", "m", True)
    assert subject(key=None).silent == "it has no Lava key"


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "key", "base_url", "said", "part", "problem", "suggestion"),
    [
        (CUSTOMER, LIVE, LAVA, AccountReport(key=True, customer=True, meter=False, near="website-chat"), "meter",
         'meter "websit-chat" does not exist; did you mean "website-chat"?',
         'Write "website-chat" as meter under [projects.web].'),
        (CUSTOMER, LIVE, LAVA, AccountReport(key=True, meter=False, meters=("a", "b")), "meter",
         'meter "websit-chat" does not exist in the account of the key …ryQ7 (a live key)',
         "Create the meter at Lava, or correct meter under [projects.web]: `lava-proxy check --online` says which there are."),
        (CUSTOMER, TEST, SANDBOX, AccountReport(key=True, customer=False, meter=True), "connection",
         "connection conn_demo does not exist: it was deleted, or it is of another account or environment "
         "(the key …ryQ7 is a test key)",
         "List those there are with `lava-proxy connections`, and correct connection_id under [projects.web]."),
        ({}, LIVE, LAVA, AccountReport(key=False), "key",
         "Lava does not know the secret key …ryQ7: it was revoked, or it is of another account or environment "
         "(it is a live key)",
         "Make a new secret key at Lava and write it in place of this one (secret_key under [lava]), "
         "or run `lava-proxy login`."),
        ({}, TEST, LAVA, AccountReport(key=False), "environment",
         "the secret key …ryQ7 is of the test environment, but https://api.lavapayments.com/v1 is Lava's live one",
         'Leave base_url under [lava] at "auto", or use a live key.'),
        ({}, LIVE, "https://sandbox-api.lava.so/v1", AccountReport(key=False), "environment",
         "the secret key …ryQ7 is of the live environment, but https://sandbox-api.lava.so/v1 is Lava's test one",
         'Leave base_url under [lava] at "auto", or use a test key.'),
        ({}, LIVE + " ", LAVA, AccountReport(), "key",
         "the secret key …yQ7 holds a space, a line end or another character that no key has",
         "Write it again, without that character: secret_key under [lava]."),
        ({"forward_token": mint_token(LIVE, customer_id="conn_demo", meter_slug="mete")}, None, LAVA,
         AccountReport(key=True, customer=True, meter=False, near="meter"), "meter",
         'meter "mete" does not exist; did you mean "meter"?',
         'Write "meter" as the meter of the forward token (forward_token under [projects.web]), by making a new one.'),
    ],
)  # fmt: skip
def test_each_thing_that_can_be_wrong_is_a_sentence(
    project: dict[str, Any],
    key: str | None,
    base_url: str,
    said: AccountReport,
    part: str,
    problem: str,
    suggestion: str,
) -> None:
    """Which part, what is wrong with it, and what to do; of a key only the last four."""
    [found] = wrong(subject(project, key, base_url), said)
    assert (found.part, found.problem, found.suggestion) == (part, problem, suggestion)
    assert not leaks(problem + suggestion, [LIVE, TEST])


def test_the_owner_alone_is_told_what_else_there_is() -> None:
    """A tool with a local key of one project does not learn the names of others."""
    told = report(subject(CUSTOMER), AccountReport(key=True, meter=False, meters=("a", "b")), str)
    assert 'does not exist in the account of the key …ryQ7 (a live key); it has "a", "b"' in told.wrong[0].problem
    none = report(subject(CUSTOMER), AccountReport(key=True, meter=False), str)
    assert none.wrong[0].problem.endswith("it has none")


def test_a_name_that_is_not_near_is_suggested_to_nobody() -> None:
    """An account's only meter, or the first of its list, was not meant: no tool is told it, and nobody to bill it."""
    for meters in (("internal-billing",), ("a", "b", "c")):
        said = AccountReport(key=True, customer=True, meter=False, meters=meters)
        fault = explained(said, subject(CUSTOMER))
        assert not [name for name in meters if f'"{name}"' in f"{fault.message} {fault.hint} {fault.details}"]
        [told] = report(subject(CUSTOMER), said, str).wrong
        assert "did you mean" not in told.problem
        assert not [name for name in meters if f'"{name}"' in told.suggestion]


def test_what_lava_left_open_is_not_claimed() -> None:
    """No answer is no finding; a key that is not known says nothing of names."""
    assert wrong(subject(CUSTOMER), AccountReport()) == []
    assert [each.part for each in wrong(subject(CUSTOMER), AccountReport(key=False, customer=False, meter=False))] == [
        "key"
    ]
    assert good(subject(CUSTOMER), AccountReport()) == []
    assert money(subject(CUSTOMER), AccountReport()) == ([], False)
    assert money(subject(), AccountReport()) == ([], False)


@pytest.mark.parametrize(
    ("slug", "slugs", "found"),
    [
        ("websit-chat", ["internal", "website-chat"], "website-chat"),
        ("Website_Chat", ["website-chat"], "website-chat"),
        ("chat", ["chats"], "chats"),
        ("m", ["mm"], "mm"),
        ("zzz", ["website-chat", "internal"], None),
        ("zzz", ["internal"], None),
        ("zzz", [], None),
        ("support-chat", ["website-chat"], None),
        ("wiki-chat", ["website-chat"], None),
        ("website", ["website-internal-billing"], None),
        ("main", ["marketing"], None),
        ("m", ["internal"], None),
        ("chat\x1b[2J", ["chat\x1b[2Jx"], None),
        ("a" * 190, ["a" * 200], None),
    ],
)
def test_the_nearest_name(slug: str, slugs: list[str], found: str | None) -> None:
    """One that hardly differs, or none; never one that would move a cursor or fill a screen."""
    assert nearest(slug, slugs) == found


# --- money -----------------------------------------------------------------------------------------------------------

ZERO, SOME = Decimal("0.00"), Decimal("12.50")
RENEWS = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("project", "said", "told", "gone"),
    [
        ({}, AccountReport(balance=ZERO), ["the merchant wallet holds $0.00"], True),
        ({}, AccountReport(balance=Decimal("-1.5")), ["the merchant wallet holds -$1.50"], True),
        ({"meter": "m"}, AccountReport(balance=Decimal("0.02")), ["the merchant wallet holds $0.02"], False),
        (CUSTOMER, AccountReport(balance=ZERO), [], False),
        (CUSTOMER, AccountReport(has_credit=False, subscribed=False),
         ["the wallet behind connection conn_demo holds no credit, and there is no plan beside it"], True),
        (CUSTOMER, AccountReport(has_credit=False), ["the wallet behind connection conn_demo holds no credit"], False),
        (CUSTOMER, AccountReport(customer_balance=ZERO, subscribed=True, plan="Pro", credit=SOME, renews=RENEWS),
         ["the wallet behind connection conn_demo holds $0.00",
          'the plan "Pro" of connection conn_demo has $12.50 of credit left until 2026-12-01'], False),
        (CUSTOMER, AccountReport(has_credit=False, subscribed=True, credit=ZERO),
         ["the wallet behind connection conn_demo holds no credit",
          "the plan of connection conn_demo has $0.00 of credit left"], True),
        (CUSTOMER, AccountReport(subscribed=False), ["connection conn_demo has no plan"], False),
        ({"customer_id": "c", "meter": "m", "disable_billing": True}, AccountReport(balance=SOME, has_credit=False),
         ["the merchant wallet holds $12.50"], False),
        ({"spend_key": SPEND}, AccountReport(balance=SOME), [], False),
    ],
)  # fmt: skip
def test_whose_wallet_holds_how_much(project: dict[str, Any], said: AccountReport, told: list[str], gone: bool) -> None:
    """The payer's own wallet and plan, and nobody else's."""
    found, is_gone = money(subject(project), said)
    assert ([each.problem for each in found], is_gone) == (told, gone)


# --- said ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "owner", "asked"),
    [
        ("lava_unauthorized", 401, "lava", True),
        ("lava_unauthorized", 401, "unknown", True),
        ("lava_insufficient_balance", 402, "lava", True),
        ("provider_key_rejected", 401, "unknown", True),
        ("provider_payment_required", 402, "unknown", True),
        ("provider_key_rejected", 401, "provider", False),
        ("provider_payment_required", 402, "provider", False),
        ("lava_forbidden", 403, "unknown", False),
        ("lava_spend_limit", 402, "lava", False),
        ("lava_error", 429, "lava", False),
        ("local_key_required", 401, "client", False),
        ("lava_key_missing", 401, "proxy", False),
    ],
)
def test_which_faults_are_worth_asking_about(code: str, status: int, owner: Owner, asked: bool) -> None:
    """A 401 or 402 that is Lava's, or may be; never the provider's own, and none of ours."""
    assert wanted(unauthorized(status, code, owner)) is asked


def test_the_finding_comes_first_and_nothing_is_lost() -> None:
    """Message, hint and what machines read; status, code and Lava's own words stay."""
    said = AccountReport(key=True, customer=False, meter=False, near="website-chat")
    fault = explained(said, subject(CUSTOMER))
    assert (fault.status, fault.code, fault.retry) == (401, "lava_unauthorized", False)
    assert fault.message.startswith('Project "web": connection conn_demo does not exist: it was deleted, or ')
    assert (
        '; also, meter "websit-chat" does not exist; did you mean "website-chat"? List those there are' in fault.message
    )
    assert fault.message.endswith("under [projects.web]. Lava said: «No.»")
    assert fault.hint.startswith("List those there are")
    parts = fault.details["diagnosis"]
    assert isinstance(parts, list)
    assert [each["part"] for each in parts] == ["connection", "meter"]
    assert all(set(each) == {"part", "problem", "suggestion"} for each in parts)


def test_a_402_tells_the_money_and_keeps_its_hint() -> None:
    """What is left, as words and as a number."""
    fault = explained(AccountReport(key=True, balance=ZERO), subject(), 402)
    assert fault.message == "Lava rejects it: it holds $0.00. Check the key. Lava said: «No.»"
    assert fault.hint == "Check the key."
    assert fault.details["diagnosis"] == [
        {
            "part": "wallet",
            "problem": "the merchant wallet holds $0.00",
            "suggestion": "Top up your wallet at Lava.",
            "left": "0.00",
        }
    ]


CUSTOMERS_402 = Payment(
    "web",
    "openai",
    "customer",
    "secret key",
    "…ryQ7",
    connection_id="conn_demo",
    meter="m",
    explicit=("connection", "meter"),
)


@pytest.mark.parametrize(
    ("status", "payment", "about", "said", "message"),
    [
        (402, CUSTOMERS_402, {"connection_id": "conn_demo", "meter": "m"},
         AccountReport(key=True, customer=True, meter=True, has_credit=False, subscribed=False),
         'Lava says the wallet behind connection conn_demo (project "web", meter "m") is out of funds: it holds no credit, and '
         "there is no plan beside it. Top up that customer's wallet, or give the project your own provider key under "
         "[projects.web.byok]. Lava said: «No.»"),
        (402, CUSTOMERS_402, {"connection_id": "conn_demo", "meter": "m"},
         AccountReport(key=True, customer=True, meter=True, customer_balance=Decimal(0), subscribed=True, plan="Pro", credit=Decimal(0)),
         'Lava says the wallet behind connection conn_demo (project "web", meter "m") is out of funds: it holds $0.00, and the '
         "plan \"Pro\" has $0.00 of credit left. Top up that customer's wallet, or give the project your own provider key under "
         "[projects.web.byok]. Lava said: «No.»"),
        (402, Payment("web", "openai", "merchant", "secret key", "…ryQ7"), {}, AccountReport(key=True, balance=Decimal(0)),
         'Lava says the merchant wallet behind the secret key …ryQ7 (project "web") is out of funds: it holds $0.00. Top up your '
         "wallet at Lava, or give the project your own provider key under [projects.web.byok]. Lava said: «No.»"),
        (401, CUSTOMERS_402, {"connection_id": "conn_demo", "meter": "websit-chat"},
         AccountReport(key=True, customer=True, meter=False, near="website-chat"),
         'Project "web" (the secret key …ryQ7): meter "websit-chat" does not exist; did you mean "website-chat"? Write '
         '"website-chat" as meter under [projects.web]. Lava said: «No.»'),
        (401, Payment("web", "openai", "merchant", "secret key", "…ryQ7"), {}, AccountReport(key=False),
         'Project "web": Lava does not know the secret key …ryQ7: it was revoked, or it is of another account or environment '
         "(it is a live key). Make a new secret key at Lava and write it in place of this one (secret_key under [lava]), or run "
         "`lava-proxy login`. Lava said: «No.»"),
    ],
)  # fmt: skip
def test_everything_is_said_once(
    status: int, payment: Payment, about: dict[str, Any], said: AccountReport, message: str
) -> None:
    """What is wrong in one sentence, what to do in one, and then Lava's own words."""
    body = json.dumps({"error": {"message": "No.", "code": "x", "status": status}}).encode()
    fault = from_answer(status, [], body, payment)
    assert fault is not None
    explain(fault, subject(about), said, 0.0, str)
    assert fault.message == message
    assert fault.message.count(fault.hint) == 1


def test_a_401_is_not_about_money() -> None:
    """An empty wallet does not explain a 401."""
    assert "holds" not in explained(AccountReport(key=True, balance=ZERO), subject()).message


def test_where_nothing_is_wrong_it_says_so() -> None:
    """Then the cause lies elsewhere, which is worth knowing."""
    fault = explained(AccountReport(key=True, customer=True, meter=True), subject(CUSTOMER))
    assert fault.message == (
        "Lava rejects it. Asked, Lava's account finds no fault: Lava knows the secret key …ryQ7 (a live key), "
        'connection conn_demo exists and meter "websit-chat" exists. Check the key. Lava said: «No.»'
    )
    assert fault.details["diagnosis"] == []


def test_an_older_answer_says_how_old_it_is() -> None:
    """What was true forty seconds ago is told as that."""
    fault = explained(AccountReport(key=False), subject(), age_s=40.2)
    assert fault.message.startswith('Project "web" (40 s ago): Lava does not know')
    fault = explained(AccountReport(key=True), subject(), age_s=40.2)
    assert "Asked (40 s ago), Lava's account" in fault.message
    fault = explained(AccountReport(key=True, balance=ZERO), subject(), 402, age_s=40.2)
    assert fault.message.startswith("Lava rejects it: it holds $0.00 (40 s ago). Check the key.")


def test_where_nothing_could_be_found_out_the_fault_is_as_it_was() -> None:
    """Beside it stands why."""
    fault = explained(AccountReport(failure="Lava's account API did not answer within 2 s"), subject(CUSTOMER))
    assert (fault.message, fault.hint) == ("Lava rejects it. Check the key. Lava said: «No.»", "Check the key.")
    assert fault.details == {"diagnosis_failed": "Lava's account API did not answer within 2 s"}


def test_what_lava_calls_things_is_masked() -> None:
    """A secret in the name of a meter or a plan comes out nowhere."""
    said = AccountReport(key=True, meter=False, near=LIVE, has_credit=False, subscribed=True, plan=LIVE, credit=ZERO)
    for status in (401, 402):
        fault = unauthorized(status, "lava_unauthorized" if status == 401 else "lava_insufficient_balance")
        explain(fault, subject(CUSTOMER), said, 0.0, lambda text: text.replace(LIVE, "*"))
        assert not leaks(f"{fault.message} {fault.hint} {fault.details}", [LIVE])
    told = report(subject(CUSTOMER), said, lambda text: text.replace(LIVE, "*"))
    assert not leaks(repr(told), [LIVE])


def test_before_anything_fails() -> None:
    """The report of ``check --online``: an empty wallet is wrong, one with money is good; BYOK needs none."""
    assert [each.problem for each in report(subject(), AccountReport(key=True, balance=ZERO), str).wrong] == [
        "the merchant wallet holds $0.00"
    ]
    fine = report(subject(), AccountReport(key=True, balance=SOME), str)
    assert (fine.wrong, fine.good[-1], fine.open) == ([], "the merchant wallet holds $12.50", [])
    own = report(subject({"byok": {"openai": "x" * 20}}), AccountReport(key=True, balance=ZERO), str)
    assert own.wrong == []
    assert own.open == ["the provider's key is not checked: it leaves this machine with a request only"]
    assert [each.part for each in report(subject(key=None), AccountReport(), str).wrong] == ["key"]
    unread = report(subject({"forward_token": "no token"}), AccountReport(), str)
    assert (unread.wrong, unread.good) == ([], [])
    assert unread.open == ["not checked: the key in its forward token cannot be read"]


@pytest.mark.parametrize(
    ("project", "said", "unknown"),
    [
        ({}, AccountReport(key=True), ["what the merchant wallet holds"]),
        ({"meter": "m"}, AccountReport(key=True, balance=SOME), ['whether meter "m" exists']),
        (CUSTOMER, AccountReport(key=True, meter=True), ["whether connection conn_demo exists"]),
        (
            CUSTOMER,
            AccountReport(key=True, meter=True, customer=True),
            ["what the wallet behind connection conn_demo holds"],
        ),
        (
            {"spend_key": "lava_sk_" + "x" * 20},
            AccountReport(key=True, models=3),
            ["a spend key cannot ask Lava's account"],
        ),
        ({"byok": {"openai": "client"}}, AccountReport(key=True, balance=SOME), []),
    ],
)
def test_what_lava_left_open_is_not_good(project: dict[str, Any], said: AccountReport, unknown: list[str]) -> None:
    """Each thing that could not be checked is told as such, and nothing of it among what is good."""
    told = report(subject(project), said, str)
    assert told.wrong == []
    assert len(told.open) == len(unknown)
    assert all(words in each for each, words in zip(told.open, unknown, strict=True))
    assert not any("not checked" in each or "knows the spend key" in each for each in told.good)
