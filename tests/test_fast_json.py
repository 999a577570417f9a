"""JSON, read fast, and never with an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from proxy.protocol import fast_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@examples(200)
@given(JSON)
def test_reads_what_the_standard_library_reads(value: object) -> None:
    """Whatever JSON says, also where msgspec alone would refuse it (half a surrogate pair, a huge number)."""
    document = json.dumps(value).encode()
    assert fast_json.read(document) == json.loads(document)


@examples(200)
@given(st.binary(max_size=60))
def test_never_raises(document: bytes) -> None:
    """Broken bytes are None, or what the standard library makes of them."""
    try:
        expected = json.loads(document)
    except (ValueError, RecursionError):
        expected = None
    assert repr(fast_json.read(document)) == repr(expected)
    fast_json.raw_model(document)


@pytest.mark.parametrize("document", [b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"\xff", b""])
def test_bombs_are_survived(document: bytes) -> None:
    """Absurd nesting and other encodings end in None or a number, not in a crash."""
    read = fast_json.read(document)
    assert read is None or read != read  # NaN is no JSON, but the standard library's
    assert fast_json.raw_model(document) == b""


def test_the_last_model_counts_and_only_the_top_level_one() -> None:
    """As it stands in the document, escapes included."""
    document = b'{"model":"a","x":{"model":"b"},"model" : "c\\u0064","y":[{"model":"e"}]}'
    assert fast_json.raw_model(document) == b'"c\\u0064"'
    assert fast_json.raw_model(b'{"model":{"a":1}}') == b'{"a":1}'
    assert fast_json.raw_model(b'[{"model":"a"}]') == b""


def test_an_answer_is_its_model_and_its_counts() -> None:
    """Both dialects' words; what has no model, no counts or an error is for the general way."""
    found = fast_json.answer(
        b'{"x":[{"usage":1}],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1}},"model":"m"}'
    )
    assert found is not None
    assert (found.model, found.usage) == ("m", {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}})
    for other in (
        b'{"model":"m"}',
        b'{"usage":{}}',
        b'{"model":null,"usage":{}}',
        b'{"model":"m","usage":{},"error":{"type":"x"}}',
        b'{"model":"m","usage":[]}',
        b'[{"model":"m","usage":{}}]',
        b'{"model":"m","usage":{}',
        b"",
    ):
        assert fast_json.answer(other) is None
