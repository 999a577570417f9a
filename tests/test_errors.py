"""Errors: the table of codes, their bodies in three dialects, and whose fault an answer is."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.dialects import Dialect
from proxy.protocol.errors import (
    TABLE,
    Payment,
    ProxyError,
    body_of,
    from_answer,
    new_request_id,
    refusal,
    render,
    shorten,
    with_hint,
)

INVALID = ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT")
UNAUTHENTICATED = ("authentication_error", "authentication_error", "UNAUTHENTICATED")
BROKE = ("insufficient_quota", "billing_error", "FAILED_PRECONDITION")
PERMISSION = ("permission_error", "permission_error", "PERMISSION_DENIED")
MISSING = ("not_found_error", "not_found_error", "NOT_FOUND")
OVERLOADED = ("overloaded_error", "overloaded_error", "UNAVAILABLE")
API = ("api_error", "api_error", "UNAVAILABLE")

#: The contract's table: code → status, types (OpenAI, Anthropic, Google), ``x-should-retry`` (None: not set).
CONTRACT: dict[str, tuple[int, tuple[str, str, str], bool | None]] = {
    "lava_unauthorized": (401, UNAUTHENTICATED, False),
    "lava_key_missing": (401, UNAUTHENTICATED, False),
    "provider_key_rejected": (401, UNAUTHENTICATED, False),
    "lava_insufficient_balance": (402, BROKE, False),
    "provider_payment_required": (402, BROKE, False),
    "lava_spend_limit": (402, ("insufficient_quota", "billing_error", "RESOURCE_EXHAUSTED"), False),
    "lava_forbidden": (403, PERMISSION, False),
    "lava_unsupported_target": (400, INVALID, False),
    "lava_error": (502, API, None),
    "local_key_required": (401, UNAUTHENTICATED, False),
    "local_key_invalid": (401, UNAUTHENTICATED, False),
    "host_not_allowed": (421, INVALID, False),
    "origin_not_allowed": (403, PERMISSION, False),
    "project_not_found": (404, MISSING, False),
    "provider_not_found": (404, MISSING, False),
    "path_not_found": (404, MISSING, False),
    "project_not_allowed": (403, PERMISSION, False),
    "project_stopped": (403, PERMISSION, False),
    "budget_exceeded": (429, ("insufficient_quota", "rate_limit_error", "RESOURCE_EXHAUSTED"), False),
    "crossing_unsupported": (400, INVALID, False),
    "byok_key_missing": (400, INVALID, False),
    "bad_target": (400, INVALID, False),
    "bad_request": (400, INVALID, False),
    "body_too_large": (413, ("invalid_request_error", "request_too_large", "INVALID_ARGUMENT"), False),
    "method_not_allowed": (405, INVALID, False),
    "request_timeout": (408, INVALID, False),
    "target_too_long": (414, INVALID, False),
    "expectation_failed": (417, INVALID, False),
    "upgrade_required": (426, INVALID, False),
    "headers_too_large": (431, INVALID, False),
    "not_implemented": (501, INVALID, False),
    "http_version_unsupported": (505, INVALID, False),
    "overloaded": (503, OVERLOADED, True),
    "ledger_unavailable": (503, OVERLOADED, True),
    "shutting_down": (503, OVERLOADED, True),
    "upstream_unreachable": (502, API, True),
    "upstream_tls": (502, API, False),
    "upstream_protocol": (502, API, False),
    "upstream_redirect": (502, API, False),
    "upstream_closed": (502, API, False),
    "upstream_timeout": (504, ("api_error", "timeout_error", "DEADLINE_EXCEEDED"), False),
}


def test_the_table_is_the_contracts() -> None:
    """Every code of the contract, with its status, its type in each dialect and its word on trying again."""
    ours = {code: (kind.status, (kind.openai, kind.anthropic, kind.google), kind.retry) for code, kind in TABLE.items()}
    # Beside these only the one that must never be seen: a fault of our own code.
    assert ours.pop("internal_error")[0] == 500
    assert ours == CONTRACT


DIALECTS = [Dialect.OPENAI, Dialect.ANTHROPIC, Dialect.GOOGLE, Dialect.OTHER]


@pytest.mark.parametrize("code", CONTRACT)
def test_a_fault_in_three_dialects(code: str) -> None:
    """Each dialect's own body with ``lava_proxy`` inside ``error``, and headers that SDKs show and obey."""
    status, (openai, anthropic, google), retry = CONTRACT[code]
    fault = ProxyError(code, "What is wrong.", "What to do.", details={"payer": "merchant", "upstream_status": 402})
    ours = {
        "code": code,
        "fault": TABLE[code].owner,
        "project": "site",
        "provider": "groq",
        "hint": "What to do.",
        "request_id": "req_1",
        "payer": "merchant",
        "upstream_status": 402,
    }
    expected: dict[Dialect, dict[str, Any]] = {
        Dialect.OPENAI: {
            "error": {
                "message": "What is wrong.",
                "type": openai,
                "param": None,
                "code": code,
                "lava_proxy": ours,
            }
        },
        Dialect.ANTHROPIC: {
            "type": "error",
            "error": {"type": anthropic, "message": "What is wrong.", "lava_proxy": ours},
            "request_id": "req_1",
        },
        Dialect.GOOGLE: {
            "error": {"code": status, "message": "What is wrong.", "status": google, "lava_proxy": ours},
        },
    }
    expected[Dialect.OTHER] = expected[Dialect.OPENAI]
    for dialect in DIALECTS:
        reply = render(fault, dialect, "req_1", project="site", provider="groq")
        assert reply.status == status
        assert json.loads(reply.body) == expected[dialect]
        head = dict(reply.headers)
        assert len(head) == len(reply.headers), "no header stands twice"
        assert head[b"content-type"] == b"application/json"
        assert head[b"content-length"] == str(len(reply.body)).encode()
        assert head[b"x-lava-proxy-error"] == code.encode()
        assert head[b"x-lava-proxy-request-id"] == head[b"x-request-id"] == head[b"request-id"] == b"req_1"
        assert (head[b"x-lava-proxy-project"], head[b"x-lava-proxy-provider"]) == (b"site", b"groq")
        assert head.get(b"x-should-retry") == {True: b"true", False: b"false", None: None}[retry]
        assert b"date" in head


def test_what_is_not_known_is_null() -> None:
    """Before a project or provider is chosen the members are there and say ``null``; no header claims one."""
    reply = render(ProxyError("bad_target", "m", "h"), Dialect.OPENAI, "req_1")
    ours = json.loads(reply.body)["error"]["lava_proxy"]
    assert (ours["project"], ours["provider"]) == (None, None)
    assert not {b"x-lava-proxy-project", b"x-lava-proxy-provider"} & set(dict(reply.headers))


def test_a_connect_timeout_may_be_tried_again() -> None:
    """Where a site knows better than the table, it says so; the status stays."""
    head = dict(render(ProxyError("upstream_timeout", "m", "h", retry=True), Dialect.OPENAI, "req_1").headers)
    assert head[b"x-should-retry"] == b"true"


@pytest.mark.parametrize(
    ("status", "openai", "anthropic", "google"),
    [
        (400, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (404, "not_found_error", "not_found_error", "NOT_FOUND"),
        (409, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (413, "invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
        (429, "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        (500, "api_error", "api_error", "INTERNAL"),
        (502, "api_error", "api_error", "UNAVAILABLE"),
        (503, "overloaded_error", "overloaded_error", "UNAVAILABLE"),
        (504, "api_error", "timeout_error", "DEADLINE_EXCEEDED"),
        (529, "overloaded_error", "overloaded_error", "UNAVAILABLE"),
    ],
)
def test_another_error_of_lava_has_the_type_of_its_status(
    status: int, openai: str, anthropic: str, google: str
) -> None:
    """``lava_error`` keeps Lava's status, and its type in each dialect goes by it."""
    fault = ProxyError("lava_error", "m", "h", status=status)
    assert body_of(fault, Dialect.OPENAI, "r")["error"]["type"] == openai
    assert body_of(fault, Dialect.ANTHROPIC, "r")["error"]["type"] == anthropic
    assert body_of(fault, Dialect.GOOGLE, "r")["error"]["status"] == google
    assert b"x-should-retry" not in dict(render(fault, Dialect.OPENAI, "r").headers)


@pytest.mark.parametrize("code", [code for code in CONTRACT if TABLE[code].owner == "client"])
def test_a_refusal_is_in_openais_shape(code: str) -> None:
    """Bytes that never became a request get a whole answer too."""
    status, headers, body = refusal(code, "No.")
    assert status == CONTRACT[code][0]
    error = json.loads(body)["error"]
    assert (error["message"], error["code"]) == ("No.", code)
    assert error["lava_proxy"]["hint"].endswith(".")
    assert dict(headers)[b"x-request-id"] == error["lava_proxy"]["request_id"].encode()


def test_a_refusal_says_when_or_how_to_come_back() -> None:
    """``Retry-After`` where we are full, ``Allow`` where the method is wrong."""
    assert dict(refusal("overloaded", "Full.")[1])[b"retry-after"] == b"1"
    assert b"POST" in dict(refusal("method_not_allowed", "No.")[1])[b"allow"]


def test_request_ids_differ() -> None:
    """``req_`` and 24 hexadecimal digits."""
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 28 and each.startswith("req_") and int(each[4:], 16) >= 0 for each in ids)


# --- whose fault an answer is ----------------------------------------------------------------------------------------

MERCHANT = Payment("main", "openai", "merchant", "secret key", "…abcd")
CUSTOMER = Payment(
    "website",
    "openai",
    "customer",
    "secret key",
    "…abcd",
    connection_id="conn_abc123",
    meter="website-chat",
    explicit=("connection", "meter"),
)
BYOK = Payment("lab", "openai", "provider_account", "secret key", "…abcd", byok=True)
CLIENT_BYOK = Payment("lab", "openai", "provider_account", "secret key", "…abcd", byok=True, byok_from_client=True)
SPEND = Payment("agent", "anthropic", "spend_key", "spend key", "…wxyz")
READY_BYOK = Payment("ready", "openai", "provider_account", "forward token", "…abcd", byok=True)
UNREADABLE = Payment("ready", "openai", None, "forward token", "…abcd")


def lava(status: int, code: str = "some_code", message: str = "Lava's words.") -> bytes:
    """Lava's own envelope."""
    return json.dumps({"error": {"message": message, "code": code, "status": status}}).encode()


def openai(message: str = "OpenAI's words.") -> bytes:
    """An error in OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": "c"}}).encode()


def anthropic(message: str = "Anthropic's words.") -> bytes:
    """An error in Anthropic's shape."""
    return json.dumps({"type": "error", "error": {"type": "t", "message": message}}).encode()


def google(status: int, message: str = "Google's words.") -> bytes:
    """An error in Google's shape."""
    return json.dumps({"error": {"code": status, "message": message, "status": "PERMISSION_DENIED"}}).encode()


PROVIDER_SHAPES = [
    openai(),
    anthropic(),
    google(400),
    b"[" + google(400) + b"]",
    b'{"type":"error","error":"text"}',
    b'{"type":"error"}',
]
SHAPELESS = [
    b"",
    b" ",
    b"<html><body>Bad gateway</body></html>",
    b"<!doctype html>",
    b"plain text",
    b'{"error":"text"}',
    b'{"error":{"message":"m"}}',
    b'{"error":{"message":"m","type":"t"}}',
    b'{"error":{"message":"m","code":401}}',
    b'{"error":{"message":["m"],"code":{},"status":null}}',
    b'{"error":{"status":true}}',
    b'{"error":null}',
    b'{"error":[]}',
    b'{"error":{}}',
    b'{"message":"m"}',
    b'{"detail":"m"}',
    b'{"detail":[{"msg":"m"}]}',
    b'{"status":401}',
    b"[]",
    b"[1,2]",
    b'["text"]',
    b'"text"',
    b"null",
    b"true",
    b"401",
    b"1" * 6000,
    b"[" * 100_000,
    b'{"error":' * 50_000,
    b"\xff\xfe\x00binary",
    b"\x1f\x8b\x08\x00truncated",
    b'{"error":{"message":"\xff"}}',
    '{"error":{"message":"m"}}'.encode("utf-16"),
    b'{"error":{"message":"\\ud800"}}',
    b'{"truncated',
]
STATUSES = [400, 401, 402, 403, 404, 405, 408, 409, 413, 418, 422, 429, 451, 499, 500, 501, 502, 503, 504, 520, 529]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("payment", [MERCHANT, CUSTOMER, BYOK, CLIENT_BYOK, SPEND, READY_BYOK, UNREADABLE])
def test_lavas_envelope_is_always_lavas_fault(status: int, payment: Payment) -> None:
    """The number of the status in ``error.status`` tells Lava, whoever pays; each status has its code."""
    codes = {401: "lava_unauthorized", 402: "lava_insufficient_balance", 403: "lava_forbidden"}
    for envelope in (lava(status), lava(status).replace(b"some_code", b"forward_x").replace(b'"status"', b'"s"')):
        fault = from_answer(status, [], envelope, payment)
        assert fault is not None
        assert (fault.code, fault.owner) == (codes.get(status, "lava_error"), "lava")
        assert fault.status == status
        assert "Lava's words." in fault.message
        assert fault.details["upstream_message"] == "Lava's words."
        assert fault.details["upstream_status"] == status
        assert "network" not in fault.message


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", PROVIDER_SHAPES)
def test_a_providers_own_shape_is_the_providers(status: int, body: bytes) -> None:
    """401 and 402 are mapped, with the words of a BYOK key or of Lava's own; everything else passes untouched."""
    for payment in (MERCHANT, CUSTOMER, BYOK, CLIENT_BYOK, SPEND, READY_BYOK, UNREADABLE):
        fault = from_answer(status, [], body, payment)
        if status not in (401, 402):
            assert fault is None
            continue
        assert fault is not None
        assert fault.code == {401: "provider_key_rejected", 402: "provider_payment_required"}[status]
        assert (fault.owner, fault.status) == ("provider", status)
        assert f'"{payment.provider}"' in fault.message
        assert ("Lava itself" in fault.message) == (not payment.byok)


@pytest.mark.parametrize("body", SHAPELESS, ids=lambda body: repr(body[:30]))
def test_without_a_shape_both_possibilities_are_named(body: bytes) -> None:
    """HTML, nothing, a plain string and every other oddity: no crash, ``unknown``, and nothing claimed."""
    for status, payment in itertools.product(STATUSES, [MERCHANT, CUSTOMER, BYOK, CLIENT_BYOK, SPEND, UNREADABLE]):
        fault = from_answer(status, [], body, payment)
        if status not in (401, 402, 403) or (status == 403 and payment.byok):
            assert fault is None
            continue
        assert fault is not None
        assert (fault.owner, fault.status) == ("unknown", status)
        if payment.byok:
            assert fault.code == {401: "provider_key_rejected", 402: "provider_payment_required"}[status]
            assert "the secret key …abcd" in fault.message
            assert "either" in fault.message
            assert ("provider key" in fault.message) or ("account" in fault.message)
        else:
            codes = {401: "lava_unauthorized", 402: "lava_insufficient_balance", 403: "lava_forbidden"}
            assert fault.code == codes[status]
            assert "Lava, or a network in front of it," in fault.message
        for dialect in DIALECTS:
            json.loads(render(fault, dialect, "req_1").body)


@pytest.mark.parametrize(
    "word", ["wallet", "Spend key", "service key", "service_key", "meter", "connection", "Customers"]
)
@pytest.mark.parametrize("status", [402, 403])
def test_lavas_own_words_decide_a_doubt(word: str, status: int) -> None:
    """A 402 or 403 in doubt is Lava's where its message mentions what only Lava has."""
    body = json.dumps({"error": f"Your {word} cannot do this."}).encode()
    fault = from_answer(status, [], body, BYOK)
    assert fault is not None
    assert (fault.owner, fault.code[:5]) == ("lava", "lava_")
    # A shape leaves no doubt, and a 401 is not decided by words.
    provider = from_answer(402, [], openai(f"Your {word} cannot do this."), BYOK)
    assert provider is not None
    assert provider.owner == "provider"
    unauthorized = from_answer(401, [], body, BYOK)
    assert unauthorized is not None
    assert unauthorized.owner == "unknown"


@pytest.mark.parametrize("word", ["parameter", "diameter", "walletless", "reconnections"])
def test_a_word_within_a_word_decides_nothing(word: str) -> None:
    """A refused «parameter» is the provider's, and passes."""
    assert from_answer(403, [], json.dumps({"error": f"Bad {word}."}).encode(), BYOK) is None


@pytest.mark.parametrize(
    "code", ["forward_endpoint_not_supported", "forward_model_not_supported", "forward_model_invalid"]
)
@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_unsupported_target(code: str, status: int) -> None:
    """Lava's three codes, always as 400, in the envelope or beside other members."""
    for body in (lava(status, code), json.dumps({"error": {"code": code, "type": "x", "param": None}}).encode()):
        fault = from_answer(status, [], body, MERCHANT)
        assert fault is not None
        assert (fault.code, fault.status) == ("lava_unsupported_target", 400)
        assert fault.details["upstream_status"] == status
        assert '"openai"' in fault.message


@pytest.mark.parametrize("status", [402, 403, 429])
@pytest.mark.parametrize("payment", [SPEND, MERCHANT, UNREADABLE])
def test_a_spend_keys_cap(status: int, payment: Payment) -> None:
    """Known by Lava's words for it, with Lava's own status, and not to be tried again."""
    fault = from_answer(status, [], lava(status, "c", "Service key spend limit exceeded."), payment)
    assert fault is not None
    assert (fault.code, fault.status, fault.retry) == ("lava_spend_limit", status, False)
    assert payment.key_hint in fault.message


@pytest.mark.parametrize(
    ("status", "message", "payment", "code"),
    [
        (402, "spend_limit reached", SPEND, "lava_spend_limit"),
        (403, "Request limit of this key exceeded", SPEND, "lava_spend_limit"),
        (402, "Budget used up", SPEND, "lava_spend_limit"),
        (402, "Insufficient balance", SPEND, "lava_insufficient_balance"),
        (403, "This spend key is limited to the openai shape", SPEND, "lava_forbidden"),
        (403, "Model lacks this capability", SPEND, "lava_forbidden"),
        (429, "Spend key rate limit exceeded", SPEND, "lava_error"),
        (429, "60 requests per minute exceeded", SPEND, "lava_error"),
        (429, "Too many requests for this key", SPEND, "lava_error"),
        (402, "Credit limit exceeded", CUSTOMER, "lava_insufficient_balance"),
        (401, "Service key limit exceeded", SPEND, "lava_unauthorized"),
        (500, "Service key limit exceeded", SPEND, "lava_error"),
    ],
)
def test_a_cap_is_not_a_rate_nor_an_empty_wallet(status: int, message: str, payment: Payment, code: str) -> None:
    """A cap lasts until the next cycle; a rate limit is over in a moment and stays an error to be tried again."""
    fault = from_answer(status, [], lava(status, "c", message), payment)
    assert fault is not None
    assert fault.code == code


def test_headers_that_a_client_needs_are_kept() -> None:
    """``Retry-After``, the figures of a rate limit and Lava's request id, of every refusal; nothing else of the answer."""
    headers = [
        (b"Retry-After", b"7"),
        (b"X-RateLimit-Reset", b"99"),
        (b"x-lava-request-id", b"req_lava"),
        (b"set-cookie", b"a=b"),
        (b"content-encoding", b"gzip"),
    ]
    fault = from_answer(429, headers, lava(429), MERCHANT, lava_request_id="req_lava")
    assert fault is not None
    kept = ((b"Retry-After", b"7"), (b"X-RateLimit-Reset", b"99"), (b"x-lava-request-id", b"req_lava"))
    assert fault.headers == kept
    assert fault.details["lava_request_id"] == "req_lava"
    assert fault.retry is None
    broke = from_answer(402, headers, lava(402), MERCHANT)
    assert broke is not None
    assert broke.headers == kept


@settings(deadline=None)  # the machine may be busy
@given(
    st.integers(400, 599),
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["error", "message", "code", "status", "type", "param"]), inner)
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.sampled_from([MERCHANT, CUSTOMER, BYOK, SPEND, UNREADABLE]),
)
def test_no_body_is_too_strange(status: int, body: bytes, payment: Payment) -> None:
    """Whatever answers: a fault that can be told, or none; every 401 and 402 is one."""
    fault = from_answer(status, [], body, payment)
    assert fault is not None or status not in (401, 402)
    if fault is not None:
        for dialect in DIALECTS:
            json.loads(render(fault, dialect, "req_1").body.decode("utf-8"))


# --- what the sentences say ------------------------------------------------------------------------------------------


def said(status: int, payment: Payment, body: bytes | None = None) -> str:
    """The message of Lava's refusal without words of its own."""
    fault = from_answer(status, [], lava(status, message="") if body is None else body, payment)
    assert fault is not None
    assert fault.hint.endswith(".")
    assert "None" not in fault.message + fault.hint
    return fault.message


def test_the_sentence_of_a_customers_402() -> None:
    """Whose wallet, which project and meter, and what to do: word for word."""
    assert said(402, CUSTOMER) == (
        'Lava says the wallet behind connection conn_abc…123 (project "website", meter "website-chat") is out of funds. '
        "Top up that customer's wallet, or give the project your own provider key under [projects.website.byok]."
    )


def test_what_lava_said_is_quoted() -> None:
    """Lava's own words stand at the end, marked as such."""
    assert said(402, CUSTOMER, lava(402, message="Balance 0.00")).endswith("byok]. Lava said: «Balance 0.00»")
    assert "said:" not in said(402, CUSTOMER)


def test_each_payer_is_named() -> None:
    """Merchant, customer by the name that was written, spend key; of an unreadable token nobody."""
    assert "the merchant wallet behind the secret key …abcd" in said(402, MERCHANT)
    named = Payment("w", "openai", "customer", "secret key", "…abcd", customer_id="cus_1", meter="m")
    assert "behind customer cus_1" in said(402, named)
    assert "behind the spend key …wxyz" in said(402, SPEND)
    unknown = said(402, UNREADABLE)
    assert "merchant" not in unknown
    assert "customer" not in unknown
    assert "the wallet that pays for this request" in unknown


def test_a_401_of_lava_names_the_key_and_what_was_checked() -> None:
    """The last four, the project, and the names that were in the token."""
    assert said(401, CUSTOMER) == (
        'Lava rejects the secret key …abcd (project "website"); what was checked: the key, connection conn_abc…123, meter '
        '"website-chat". Check that the key is active and of the right environment (live or test), and that the names sent '
        "with it exist in Lava."
    )
    assert "; what was checked: the key alone. Check" in said(401, MERCHANT)
    assert "what was checked" not in said(401, MERCHANT, b"")
    assert "the spend key …wxyz" in said(401, SPEND)


def test_a_provider_key_is_named_by_where_it_stands() -> None:
    """In the settings, in the tool, or inside a ready token: each hint leads to the right place."""
    for payment, words in (
        (BYOK, "[projects.lab.byok]"),
        (CLIENT_BYOK, "in your tool"),
        (READY_BYOK, "in the forward token"),
    ):
        for body in (openai(), b""):
            fault = from_answer(401, [], body, payment)
            assert fault is not None
            assert words in fault.hint


def test_no_advice_that_the_configuration_would_refuse() -> None:
    """A ready token or a spend key has no place for ``byok`` beside it."""
    for status, payment, body in itertools.product(
        (401, 402), (UNREADABLE, SPEND, READY_BYOK), (lava(401), lava(402), openai(), b"")
    ):
        fault = from_answer(status, [], body, payment)
        assert fault is not None
        assert ".byok]" not in fault.message + fault.hint


def test_lavas_own_key_at_the_provider_is_said_so() -> None:
    """The user's wallet and keys are not blamed for the account of Lava at the provider."""
    assert "the key that Lava itself uses there" in said(401, MERCHANT, openai())
    assert "on the account that Lava itself uses there" in said(402, MERCHANT, openai())


def test_an_id_is_shortened() -> None:
    """Enough to recognise it, not enough to use it; short ones stay."""
    assert shorten("conn_abc123") == "conn_abc…123"
    assert shorten("conn_0123456789abcdef") == "conn_012…def"
    assert shorten("cus_1") == "cus_1"
    assert shorten("") == ""


def test_details_hold_only_what_is_known() -> None:
    """Whole ids for programs, and no member for what is unknown."""
    assert CUSTOMER.details() == {"payer": "customer", "connection_id": "conn_abc123", "meter": "website-chat"}
    assert UNREADABLE.details() == {}


@pytest.mark.parametrize(
    "body",
    [
        {
            "error": {
                "message": "No such model",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            }
        },
        {"type": "error", "error": {"type": "not_found_error", "message": "No such model"}, "request_id": "r"},
        {"error": {"code": 404, "message": "No such model", "status": "NOT_FOUND"}},
    ],
)
def test_a_hint_stands_behind_the_providers_message(body: dict[str, Any]) -> None:
    """In each vendor's shape; everything else of the body stays."""
    told = json.loads(with_hint(json.dumps(body).encode(), "did you mean it?"))
    assert told["error"]["message"] == "No such model (lava-proxy: did you mean it?)"
    told["error"]["message"] = "No such model"
    assert told == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'"x"',
        b'{"error":"text"}',
        b'{"error":{}}',
        b'{"error":{"message":[]}}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_a_body_without_a_message_gets_no_hint(body: bytes) -> None:
    """It passes as it came."""
    assert with_hint(body, "x") is body
