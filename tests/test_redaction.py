"""redaction.py: a secret is found in every spelling, and the type that holds one never shows it."""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import itertools
import json
import pickle
import pprint
import random
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from proxy.protocol.redaction import Redactor, Secret, leaks

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "aks_live_" + "Qx7+Zp/9Rt2_mK" + "w4L"


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


def _percent_all(raw: bytes, rng: random.Random) -> str:
    return "".join(rng.choice((f"%{byte:02x}", f"%{byte:02X}", chr(byte))) for byte in raw)


def _spellings(rng: random.Random) -> dict[str, Callable[[str], str]]:
    """Independent encoders (the library's own windows play no part), each with random neighbours."""

    def around(value: str) -> bytes:
        return rng.randbytes(rng.randrange(5)) + value.encode() + rng.randbytes(rng.randrange(5))

    return {
        "raw": lambda v: v,
        "base64": lambda v: base64.b64encode(around(v)).decode(),
        "base64url": lambda v: _url_safe(around(v)).rstrip("="),
        "hex": lambda v: v.encode().hex(),
        "HEX": lambda v: v.encode().hex().upper(),
        "percent": lambda v: quote(v, safe=""),
        "percent-all": lambda v: _percent_all(v.encode(), rng),
        "percent-twice": lambda v: quote(quote(v, safe=""), safe=""),
        "json": lambda v: json.dumps({"x": v}),
        "json-unicode": lambda v: "".join(f"\\u{ord(c):04x}" for c in v),
        "token": lambda v: base64.b64encode(json.dumps({"secret_key": v}).encode()).decode(),
        "token-in-url": lambda v: quote(base64.b64encode(json.dumps({"a": v}).encode()).decode(), safe=""),
    }


def test_the_scanner_finds_fifty_planted_leaks_of_fifty() -> None:
    """The control of canary tests: leaks in random spelling, phase and place are found 50 of 50, others 0."""
    rng = random.Random(20261123)
    kinds = list(_spellings(rng).items())
    found = 0
    for number in range(50):
        value = "aks_test_" + "".join(rng.choices("abcXYZ0189_-+/", k=rng.randrange(12, 40)))
        kind, encode = kinds[number % len(kinds)]
        hay = rng.randbytes(rng.randrange(3000)) + encode(value).encode() + rng.randbytes(rng.randrange(300))
        hits = leaks(hay, [value])
        assert hits, (kind, value)
        assert value not in "".join(hits)
        assert leaks(hay, ["aks_test_" + "n" * 30]) == []
        found += len(hits)
    assert found == 50


@pytest.mark.parametrize("kind", list(_spellings(random.Random(0))))
def test_every_spelling_is_masked_in_text_and_in_bytes_of_the_same_length(kind: str) -> None:
    """text() hides the value with ***, data() with as many stars; nothing of it can be found afterwards."""
    rng = random.Random(kind)
    redactor = Redactor(["another-value-entirely", CANARY])
    for _ in range(30):
        line = "before " + _spellings(rng)[kind](CANARY) + " after"
        assert leaks(line, [CANARY])
        masked = redactor.text(line)
        assert "***" in masked
        assert masked.startswith("before ")
        assert masked.endswith(" after")
        assert leaks(masked, [CANARY]) == []
        data = redactor.data(line.encode())
        assert len(data) == len(line.encode())
        assert data.startswith(b"before ")
        assert data.endswith(b" after")
        assert leaks(data, [CANARY]) == []


@examples(200)
@given(
    value=st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=30),
    before=st.binary(max_size=7),
    after=st.binary(max_size=7),
)
def test_any_value_of_six_characters_is_found_in_any_phase(value: str, before: bytes, after: bytes) -> None:
    """Every value of six characters or more, whatever they are, is masked raw, in base64 and hex."""
    redactor = Redactor([value])
    raw = value.encode()
    for hay in (
        base64.b64encode(before + raw + after),
        base64.urlsafe_b64encode(before + raw + after),
        base64.b64encode(before + json.dumps(value).encode() + after),
        json.dumps([value]).encode(),
        raw.hex().encode(),
        quote(value, safe="").encode(),
        raw,
    ):
        masked = redactor.data(hay)
        assert len(masked) == len(hay)
        assert masked != hay or set(raw) == {42}
        assert leaks(hay, [value])


def test_short_values_do_not_destroy_ordinary_text() -> None:
    """Under six characters only the value itself is masked, under four nothing is."""
    assert Redactor(["abc"]).text("abc abcd") == "abc abcd"
    redactor = Redactor(["abcd"])
    encoded = base64.b64encode(b"abcd").decode()
    assert redactor.text(f"abcd {encoded}") == f"*** {encoded}"
    assert Redactor([""]).text("nothing") == "nothing"
    assert Redactor().data(b"nothing") == b"nothing"


def test_overlapping_secrets_leave_nothing_of_either() -> None:
    """Where two values overlap, both are masked whole: one hit does not hide the other from the search."""
    first, second = "abcdefgh-SHARED", "SHARED-ijklmnop"
    assert Redactor([first, second]).text("x abcdefgh-SHARED-ijklmnop y") == "x *** y"
    assert Redactor([second, first]).data(b"abcdefgh-SHARED-ijklmnop") == b"*" * 24
    assert Redactor(["longer-than-short", "longer-than"]).text("longer-than-short") == "***"


def test_the_keys_inside_a_ready_token_are_masked_too() -> None:
    """A configured token is hidden as it is, and so are the keys it holds where they stand alone."""
    token = base64.b64encode(json.dumps({"secret_key": CANARY, "provider_key": "prov-key-123"}).encode()).decode()
    redactor = Redactor([token])
    assert redactor.text(f"Bearer {token}") == "Bearer ***"
    assert redactor.text(f"key {CANARY} or prov-key-123") == "key *** or ***"


def test_escapes_around_a_secret_stay_as_they_are() -> None:
    """Only the hit is replaced: other escapes, wide characters and broken UTF-8 in the text are kept."""
    redactor = Redactor([CANARY])
    line = f"%41%zz é \\u0041 {quote(CANARY, safe='')} %2F€ \\\\ 100%"
    assert redactor.text(line) == "%41%zz é \\u0041 *** %2F€ \\\\ 100%"
    assert redactor.text("lone \ud800 surrogate") == "lone \ud800 surrogate"
    data = b"\xff%41\xfe" + quote(CANARY, safe="").encode() + b"%"
    masked = redactor.data(data)
    assert masked == b"\xff%41\xfe" + b"*" * (len(data) - 6) + b"%"


@examples(150)
@given(cuts=st.lists(st.integers(0, 400), max_size=12), kind=st.sampled_from(list(_spellings(random.Random(0)))))
def test_a_stream_is_masked_across_chunks(cuts: list[int], kind: str) -> None:
    """A body in pieces is masked as if it had come in one, however a secret is cut."""
    rng = random.Random(1)
    body = b"A" * 50 + _spellings(rng)[kind](CANARY).encode() + b"B" * 120
    redactor = Redactor([CANARY])
    mask = redactor.stream()
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    out = b"".join(mask.feed(body[a:b]) for a, b in itertools.pairwise(places)) + mask.flush()
    assert out == redactor.data(body)
    assert leaks(out, [CANARY]) == []


def test_log_events_are_masked_at_any_depth() -> None:
    """A log event is masked: keys, values, nested containers, bytes, exceptions, any object."""

    class Rude:
        def __str__(self) -> str:
            raise RuntimeError(CANARY)

    redactor = Redactor([CANARY])
    deep: object = CANARY
    for _ in range(40):
        deep = [deep]
    event = redactor.event(
        {
            "event": f"sent {CANARY}",
            CANARY: 1,
            "nested": {"list": [CANARY, (CANARY, {CANARY})], "n": 3, "none": None, "f": 1.5, "b": True},
            "bytes": CANARY.encode(),
            "error": ValueError(CANARY),
            "rude": Rude(),
            "deep": deep,
            "secret": Secret(CANARY),
        },
    )
    assert leaks(repr(event), [CANARY]) == []
    assert event["event"] == "sent ***"
    assert event["nested"]["n"] == 3
    assert event["nested"]["b"] is True
    assert event["rude"] == "<Rude>"


def test_a_secret_never_shows_itself() -> None:
    """repr, str, format, containers, dataclasses, vars, pprint, pickle and copies give nothing away."""

    @dataclasses.dataclass
    class Holder:
        key: Secret

    secret = Secret(CANARY)
    holder = Holder(secret)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>80}",
        f"{secret:>80}",
        f"{[secret]} {holder}",
    ]
    shown += [repr(dataclasses.asdict(holder)), repr(dataclasses.astuple(holder)), repr(vars(holder))]
    shown += [
        pprint.pformat(holder),
        repr({secret: 1}),
        repr(copy.copy(secret)),
        repr(copy.deepcopy([secret])),
    ]
    shown += [repr([getattr(secret, name, None) for name in dir(secret)])]
    shown += [json.dumps({"x": secret}, default=str)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(secret, protocol)
        shown.append(repr(caught.value))
    with pytest.raises(TypeError):
        vars(secret)
    with pytest.raises(TypeError):
        secret.__getstate__()
    for text in shown:
        assert leaks(text, [CANARY]) == []
    assert secret.reveal() == CANARY
    assert copy.deepcopy(secret) is secret
    assert str(secret).startswith("***")


def test_a_secret_compares_by_value_and_does_not_change() -> None:
    """Equal values are equal and hash alike, a string never equals a Secret, attributes cannot be set."""
    assert Secret(CANARY) == Secret(CANARY)
    assert Secret(CANARY) != Secret(CANARY + "x")
    assert Secret(CANARY) != CANARY
    assert len({Secret(CANARY), Secret(CANARY), Secret("other")}) == 2
    secret = Secret(CANARY)
    for name in ("hint", "_take", "fresh"):
        with pytest.raises(AttributeError):
            setattr(secret, name, lambda: "x")
        with pytest.raises(AttributeError):
            delattr(secret, name)
    with pytest.raises(TypeError):
        Secret(b"bytes")  # type: ignore[arg-type]


def test_the_hint_is_four_characters_of_a_long_value_only() -> None:
    """Messages may name the last four characters, but not of a short value, nor control characters."""
    assert Secret("abcdefghijkl").hint == "…ijkl"
    assert Secret("abcdefghijk").hint == "…"
    assert Secret("").hint == "…"
    assert Secret("abcdefghijkl\n").hint == "…"


def test_a_settings_model_can_hold_a_secret() -> None:
    """pydantic takes a string or a Secret, and dumps, repr and errors of the model show only the mask."""

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True, hide_input_in_errors=True)
        key: Secret
        keys: tuple[Secret, ...] = ()
        table: dict[str, Secret] = {}

    model = Model.model_validate({"key": CANARY, "keys": [Secret(CANARY)], "table": {"x": CANARY}})
    assert model.key.reveal() == CANARY
    shown = [repr(model), str(model), repr(model.model_dump()), model.model_dump_json(), repr(vars(model))]
    shown += [
        repr(model.model_dump(mode="json")),
        repr(model.model_copy(deep=True)),
        json.dumps(model.model_dump()),
    ]
    for wrong in ({"key": [CANARY]}, {"key": 1, "keys": CANARY}, {"keys": [CANARY]}):
        with pytest.raises(pydantic.ValidationError) as caught:
            Model.model_validate(wrong)
        shown.append(str(caught.value))
    with contextlib.suppress(TypeError, AttributeError):
        shown.append(repr(pickle.dumps(model)))
    for text in shown:
        assert leaks(text, [CANARY]) == []
    assert json.loads(model.model_dump_json())["key"].startswith("***")


class Counting(Redactor):
    """Counts the bytes that are looked through."""

    __slots__ = ("looked",)

    def __init__(self, values: list[str]) -> None:
        super().__init__(values)
        self.looked = 0

    def data(self, data: bytes) -> bytes:
        self.looked += len(data)
        return super().data(data)


@pytest.mark.parametrize("size", [1, 7, 1000, 49_152])
def test_a_stream_is_looked_through_twice_at_most(size: int) -> None:
    """However small the pieces are in which it comes."""
    key = "aks_live_" + "r" * 40
    redactor = Counting([key])
    body = (b"\\u0025" * 500 + key.encode()) * 20
    masking = redactor.stream()
    masked = b"".join(masking.feed(body[at : at + size]) for at in range(0, len(body), size)) + masking.flush()
    assert redactor.looked <= 3 * len(body)
    assert masked == body.replace(key.encode(), b"*" * len(key))


@pytest.mark.parametrize("unit", [b"a", b"\\", b"%41", b"\\u0041", b"%2525", b"aks_", b"aks_live", b'\\"%', b"YWtz"])
def test_masking_is_linear(unit: bytes) -> None:
    """Four times the text takes about four times as long, whatever it consists of."""
    redactor = Redactor(["aks_live_" + "r" * 40])

    def took(size: int) -> float:
        data = unit * (size // len(unit))
        times = []
        for _ in range(3):
            began = time.thread_time()
            redactor.data(data)
            times.append(time.thread_time() - began)
        return min(times)

    small = took(64 * 1024)
    assert took(256 * 1024) < 10 * small + 0.01
