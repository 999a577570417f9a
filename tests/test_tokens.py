"""Credentials: byte-equal to the tokens of Lava's own SDK, and for each kind of project the right one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.settings import Project
from proxy.lava.tokens import PRODUCTION, SANDBOX, base_url_for, credential, mint_token, needs_client_key, read_token
from proxy.protocol.errors import ProxyError
from proxy.protocol.redaction import Secret

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "forward_tokens.json").read_text(encoding="utf-8")
)
LIVE = "aks_live_" + "x1" * 8
TEST = "aks_test_" + "x2" * 8
OWN = "aks_live_" + "own" * 6
SPEND = "lava_sk_" + "x3" * 8
OPENAI_KEY = "sk" + "-" + "provider" * 2
ANTHROPIC_KEY = "sk" + "-ant-" + "provider" * 2


def decoded(token: str) -> str:
    """The JSON text in a token: standard alphabet, padded."""
    return base64.b64decode(token, validate=True).decode("utf-8")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['sdk']} {vector['case']}")
def test_every_recorded_token_of_the_sdk(vector: dict[str, Any]) -> None:
    """The same key and options make the same bytes as ``generateForwardToken`` of SDK 8.1.0 and 11.2.0."""
    token = mint_token(vector["secret_key"], **vector["options"])
    assert token == vector["token"]
    assert decoded(token) == vector["json"]


def test_there_are_enough_vectors() -> None:
    """Both generations of names, with more than fifty tokens."""
    assert len(VECTORS) >= 50
    assert {vector["sdk"] for vector in VECTORS} == {"8.1.0", "11.2.0"}


def test_a_field_is_absent_null_or_a_value() -> None:
    """What is not given does not stand there; ``None`` stands there as ``null``; ``false`` is a value."""
    assert decoded(mint_token("k")) == '{"secret_key":"k"}'
    assert decoded(mint_token("k", provider_key=None)) == '{"secret_key":"k","provider_key":null}'
    whole = mint_token(
        "k", disable_billing=False, provider_key="p", meter_slug="m", customer_id="c", connection_id=None
    )
    assert decoded(whole) == (
        '{"secret_key":"k","connection_id":null,"customer_id":"c","meter_slug":"m","provider_key":"p",'
        '"disable_billing":false}'
    )


def test_characters_are_escaped_as_json_stringify_does() -> None:
    """Quotes, backslashes and control characters are escaped; everything else, U+2028 and DEL too, is UTF-8 as it is;
    half a surrogate pair is escaped in lower case."""
    raw = '"\\/\b\f\n\r\t\x00\x1f\x7f\u2028é鍵🔑\ud83d'
    expected = '"\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\u2028é鍵🔑\\ud83d"'
    assert decoded(mint_token(raw)) == f'{{"secret_key":{expected}}}'


@settings(deadline=None)  # the machine may be busy
@given(st.text(), st.none() | st.text(), st.none() | st.booleans())
def test_what_is_minted_can_be_read(key: str, meter: str | None, billing: bool | None) -> None:
    """A token is padded base64 of compact JSON that says what was put in."""
    token = mint_token(key, meter_slug=meter, disable_billing=billing)
    assert read_token(token) == {"secret_key": key, "meter_slug": meter, "disable_billing": billing}
    assert len(token) % 4 == 0


def project(**fields: Any) -> Project:
    """A project with its secrets as the settings hold them."""
    for name in ("secret_key", "forward_token", "spend_key"):
        if name in fields:
            fields[name] = Secret(fields[name])
    if isinstance(fields.get("byok"), dict):
        fields["byok"] = {name: key if key == "client" else Secret(key) for name, key in fields["byok"].items()}
    return Project(**fields)


def sent(made: Project, provider: str = "openai", client_key: str | None = None, account: str | None = LIVE) -> str:
    """What stands behind ``Bearer``."""
    key = Secret(account) if account is not None else None
    return credential("site", made, provider, key, client_key).authorization.decode().removeprefix("Bearer ")


BYOK = {"openai": OPENAI_KEY, "anthropic": "client"}

#: (the project, the provider, the key of the client, the JSON in the token, who pays)
ROWS: list[tuple[dict[str, Any], str, str | None, dict[str, Any], str]] = [
    # connection_id + meter (+ BYOK)
    (
        {"connection_id": "conn_1", "meter": "m"},
        "openai",
        None,
        {"secret_key": LIVE, "connection_id": "conn_1", "meter_slug": "m"},
        "customer",
    ),
    (
        {"connection_id": "conn_1", "meter": "m", "byok": BYOK},
        "openai",
        None,
        {"secret_key": LIVE, "connection_id": "conn_1", "meter_slug": "m", "provider_key": OPENAI_KEY},
        "provider_account",
    ),
    (
        {"connection_id": "conn_1", "meter": "m", "byok": BYOK},
        "groq",
        None,
        {"secret_key": LIVE, "connection_id": "conn_1", "meter_slug": "m"},
        "customer",
    ),
    # customer_id + meter (+ BYOK, disable_billing)
    (
        {"customer_id": "c", "meter": "m"},
        "openai",
        None,
        {"secret_key": LIVE, "customer_id": "c", "meter_slug": "m"},
        "customer",
    ),
    (
        {"customer_id": "c", "meter": "m", "disable_billing": True},
        "openai",
        None,
        {"secret_key": LIVE, "customer_id": "c", "meter_slug": "m", "disable_billing": True},
        "merchant",
    ),
    (
        {"customer_id": "c", "meter": "m", "disable_billing": False},
        "openai",
        None,
        {"secret_key": LIVE, "customer_id": "c", "meter_slug": "m", "disable_billing": False},
        "customer",
    ),
    (
        {"customer_id": "c", "meter": "m", "disable_billing": True, "byok": BYOK},
        "anthropic",
        ANTHROPIC_KEY,
        {
            "secret_key": LIVE,
            "customer_id": "c",
            "meter_slug": "m",
            "provider_key": ANTHROPIC_KEY,
            "disable_billing": True,
        },
        "provider_account",
    ),
    # meter only (+ BYOK)
    ({"meter": "m"}, "openai", None, {"secret_key": LIVE, "meter_slug": "m"}, "merchant"),
    (
        {"meter": "m", "byok": BYOK},
        "openai",
        None,
        {"secret_key": LIVE, "meter_slug": "m", "provider_key": OPENAI_KEY},
        "provider_account",
    ),
    ({"meter": "m", "byok": BYOK}, "groq", None, {"secret_key": LIVE, "meter_slug": "m"}, "merchant"),
    # BYOK only
    (
        {"byok": BYOK},
        "openai",
        None,
        {"secret_key": LIVE, "connection_id": None, "meter_slug": None, "provider_key": OPENAI_KEY},
        "provider_account",
    ),
    (
        {"byok": "client"},
        "elevenlabs",
        "from-the-tool",
        {"secret_key": LIVE, "connection_id": None, "meter_slug": None, "provider_key": "from-the-tool"},
        "provider_account",
    ),
    (
        {"byok": {"google": "one-account"}},
        "googleOpenaiCompatible",
        None,
        {"secret_key": LIVE, "connection_id": None, "meter_slug": None, "provider_key": "one-account"},
        "provider_account",
    ),
    (
        {"byok": {"googleOpenaiCompatible": "one-account"}},
        "google",
        None,
        {"secret_key": LIVE, "connection_id": None, "meter_slug": None, "provider_key": "one-account"},
        "provider_account",
    ),
    (
        {"byok": {"google": "this-account", "googleOpenaiCompatible": "other-account"}},
        "google",
        None,
        {"secret_key": LIVE, "connection_id": None, "meter_slug": None, "provider_key": "this-account"},
        "provider_account",
    ),
    # nothing; and a key of the project's own
    ({}, "openai", None, {"secret_key": LIVE}, "merchant"),
    ({"secret_key": OWN}, "openai", None, {"secret_key": OWN}, "merchant"),
    ({"secret_key": OWN, "meter": "m"}, "openai", None, {"secret_key": OWN, "meter_slug": "m"}, "merchant"),
]


@pytest.mark.parametrize(("fields", "provider", "client_key", "expected", "payer"), ROWS)
def test_a_project_has_its_row(
    fields: dict[str, Any], provider: str, client_key: str | None, expected: dict[str, Any], payer: str
) -> None:
    """The fields of each kind of project, in the order of the table, and who pays."""
    made = project(**fields)
    token = sent(made, provider, client_key)
    assert decoded(token) == json.dumps(expected, separators=(",", ":"))
    found = credential("site", made, provider, Secret(LIVE), client_key)
    assert found.payment.payer == payer
    assert found.payment.key_hint == "…" + expected["secret_key"][-4:]
    assert set(found.secrets) == {token, expected["secret_key"], *filter(None, [expected.get("provider_key")])}


def test_a_ready_token_is_sent_as_it_is() -> None:
    """Not decoded and encoded again; it is read only to say who pays."""
    token = mint_token(TEST, customer_id="c", meter_slug="m")
    made = project(forward_token=token)
    assert sent(made, account=None) == token
    payment = credential("site", made, "openai", None).payment
    assert (payment.payer, payment.customer_id, payment.meter, payment.key_kind) == (
        "customer",
        "c",
        "m",
        "forward token",
    )


@pytest.mark.parametrize(
    ("token", "payer"),
    [
        (mint_token(LIVE), "merchant"),
        (mint_token(LIVE, meter_slug="m"), "merchant"),
        (mint_token(LIVE, connection_id="c", meter_slug="m"), "customer"),
        (mint_token(LIVE, customer_id="c", meter_slug="m", disable_billing=True), "merchant"),
        (mint_token(LIVE, connection_id=None, meter_slug=None, provider_key="p"), "provider_account"),
        (LIVE, "merchant"),
        (base64.b64encode(f"{LIVE}.secret.openai".encode()).decode(), "merchant"),
        ("!!not-base64!!", None),
        (base64.b64encode(b"[1]").decode(), None),
        (base64.b64encode(b"[" * 100_000).decode(), None),
        (base64.b64encode(b"\xff\xfe").decode(), None),
    ],
)
def test_who_pays_by_a_ready_token(token: str, payer: str | None) -> None:
    """Said where the token tells it; nothing is claimed where it does not."""
    assert credential("site", project(forward_token=token), "openai", None).payment.payer == payer


def test_a_spend_key_is_sent_as_it_is() -> None:
    """The spend key itself, and its wallet pays."""
    made = project(spend_key=SPEND)
    assert sent(made, account=LIVE) == SPEND
    assert credential("site", made, "openai", None).payment.payer == "spend_key"


@pytest.mark.parametrize("fields", [{}, {"meter": "m"}, {"connection_id": "c", "meter": "m"}, {"byok": BYOK}])
def test_without_a_lava_key_nothing_is_minted(fields: dict[str, Any]) -> None:
    """``lava_key_missing``, and how to give one."""
    with pytest.raises(ProxyError) as caught:
        sent(project(**fields), account=None)
    assert (caught.value.code, caught.value.status) == ("lava_key_missing", 401)
    assert "LAVA_SECRET_KEY" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "provider"),
    [({"byok": BYOK}, "groq"), ({"byok": BYOK}, "anthropic"), ({"byok": "client"}, "openai")],
)
def test_a_byok_project_without_a_key_for_the_provider(fields: dict[str, Any], provider: str) -> None:
    """No key of ours steps in for a provider key that is missing: ``byok_key_missing``."""
    made = project(**fields)
    for client_key in (None, ""):
        with pytest.raises(ProxyError) as caught:
            sent(made, provider, client_key)
        assert (caught.value.code, caught.value.status) == ("byok_key_missing", 400)


def test_the_clients_key_is_taken_only_where_the_project_says_so() -> None:
    """A key that a tool sends is otherwise dropped."""
    assert needs_client_key(project(byok="client"), "anything")
    assert needs_client_key(project(byok=BYOK), "anthropic")
    assert not needs_client_key(project(byok=BYOK), "openai")
    assert not needs_client_key(project(byok=BYOK), "groq")
    assert not needs_client_key(project(meter="m"), "openai")
    assert "from-the-tool" not in decoded(sent(project(meter="m"), client_key="from-the-tool"))
    assert read_token(sent(project(byok=BYOK), client_key="from-the-tool"))["provider_key"] == OPENAI_KEY


@pytest.mark.parametrize(
    ("key", "base"),
    [
        (LIVE, PRODUCTION),
        (TEST, SANDBOX),
        (SPEND, PRODUCTION),
        (None, PRODUCTION),
        ("", PRODUCTION),
        (mint_token(TEST, meter_slug="m"), SANDBOX),
        (mint_token(TEST).rstrip("="), SANDBOX),
        (mint_token(LIVE, meter_slug="m"), PRODUCTION),
        (mint_token(LIVE, meter_slug=TEST), PRODUCTION),
        (base64.b64encode(f"{TEST}.secret".encode()).decode(), SANDBOX),
        (base64.b64encode(b'{"secret_key":5}').decode(), PRODUCTION),
        ("%%%", PRODUCTION),
        ("é", PRODUCTION),
    ],
)
def test_lavas_address_follows_the_key(key: str | None, base: str) -> None:
    """Sandbox for ``aks_test_``, also inside a ready token; production for everything else."""
    assert base_url_for(key) == base


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_text_can_be_tried_as_a_token(text: str) -> None:
    """Reading a token never raises."""
    assert isinstance(read_token(text), dict)


def test_a_credential_does_not_show_itself() -> None:
    """``repr`` has the masked key alone."""
    shown = repr(credential("site", project(meter="m"), "openai", Secret(LIVE)))
    assert LIVE not in shown
    assert sent(project(meter="m")) not in shown
    assert "…" + LIVE[-4:] in shown
