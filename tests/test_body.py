"""``model`` in a request body: found, and replaced without touching another byte."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no stubs
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples
from searching import cut, find_model, replace_model, run

from proxy.protocol import fast_json
from proxy.protocol.body import WINDOW, BodyModel, decode, decode_prefix, search
from proxy.protocol.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1 << 20
JSON_TYPE = b"application/json"


def bare_deflate(data: bytes) -> bytes:
    """Deflate without zlib's wrapper, as some clients mean it."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def zstd_stream(data: bytes) -> bytes:
    """A zstd frame that does not say its size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b" GZip ": gzip.compress,
    b"deflate": zlib.compress,
    b"deflate ": bare_deflate,
    b"br": brotli.compress,
    b"zstd": zstd,
    b"zstd ": zstd_stream,
    b"identity": bytes,
    b"": bytes,
    b"gzip, identity": gzip.compress,
    b"gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}


def model_of(body: bytes, content_type: bytes | None = JSON_TYPE, encoding: bytes | None = None) -> str | None:
    """The name that routing would go by."""
    return find_model(body, content_type, encoding, LIMIT).name


def replaced(body: bytes, name: str, content_type: bytes | None = JSON_TYPE, encoding: bytes | None = None) -> bytes:
    """The body with another model."""
    found = find_model(body, content_type, encoding, LIMIT)
    return replace_model(body, found, name, encoding)


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"gpt-5"}', "gpt-5"),
        (b' \r\n\t{ "messages" : [] , "model" : "gpt-5" } \n', "gpt-5"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"model":"a","x":{"model":"b"}}', "a"),
        (b'{"x":[{"model":"b"}],"model":"a"}', "a"),
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"model":"a","\\u006Dodel":"b"}', "b"),
        (b'{"Model":"b","model":"a","MODEL":"c"}', "a"),
        (b'{"model":"caf\\u00e9"}', "café"),
        ('{"model":"café"}'.encode(), "café"),
        (b'{"model":"a\\/b"}', "a/b"),
        (b'{"model":"\\ud83d\\udd11"}', "🔑"),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', "a"),
        (b'{"model":"a","x":"half an emoji \\ud83d"}', "a"),
        (b'{"x":"\\udd11 \\\\ud83d","model":"a"}', "a"),
        (b'{"x":' + b"9" * 5000 + b',"model":"a"}', "a"),
        (b'{"x":1e999,"model":"a"}', "a"),
        (b'{"x":' + b"[" * 500 + b"]" * 500 + b',"model":"a"}', "a"),
        (b'{"model":"' + b"a" * 1024 + b'"}', "a" * 1024),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_the_model_of_a_json_body(body: bytes, name: str) -> None:
    """The member of the outermost object, the last one if it stands twice, with escapes undone."""
    assert model_of(body) == name
    for size in (1, 5, len(body)):
        assert find_model(body, JSON_TYPE, None, LIMIT, size).name == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b'"model"',
        b'["model","a"]',
        b"{}",
        b'{"x":{"model":"a"}}',
        b'{"model":null}',
        b'{"model":5}',
        b'{"model":["a"]}',
        b'{"model":{"model":"a"}}',
        b'{"model":""}',
        b'{"model":"a","model":null}',
        b'{"model":"a"',
        b'{"model":"a',
        b'{"model":"a"} x',
        b'{"model":"a"}{"model":"b"}',
        b'{"model":"a",}',
        b"{'model':'a'}",
        b"model=a",
        b'{"model":"a\x00b"}',
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"model":"\\q"}',
        b'{"model":NaN}',
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        '{"model":"a"}'.encode("utf-16-le"),
        '{"model":"a"}'.encode("utf-32"),
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"a"}',
        b'{"model":' + b"[" * 100_000,
        b"[" * 1_000_000,
        b'{"model":"' + b"a" * 1025 + b'"}',
        b"\x1f\x8b\x08garbage",
        bytes(range(256)),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_cannot_be_read_has_no_model(body: bytes) -> None:
    """It is unknown, never a fault: the body travels as it came."""
    found = find_model(body, JSON_TYPE, None, LIMIT)
    assert found.name is None


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", b"application/json; charset=utf-8", b"nonsense"])
def test_json_is_known_by_itself(content_type: bytes | None) -> None:
    """Some tools send JSON under another name, or none."""
    assert model_of(b'{"model":"a"}', content_type) == "a"


@pytest.mark.parametrize("content_type", [b"application/octet-stream", b"audio/wav", b"Image/PNG", b"application/pdf"])
def test_a_file_is_not_looked_into(content_type: bytes) -> None:
    """What says that it is data of another kind is not read."""
    assert model_of(b'{"model":"a"}', content_type) is None


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=200), st.sampled_from([None, JSON_TYPE, b"multipart/form-data; boundary=b", b"\xff;;="]))
def test_any_bytes_are_looked_at_safely(body: bytes, content_type: bytes | None) -> None:
    """No body and no description of one raises."""
    for encoding in (None, *ENCODERS, b"gzip, gzip, gzip", b"nonsense", b"\xff"):
        found = find_model(body, content_type, encoding, 1000)
        assert found.name is None or 0 < len(found.name) <= 1024


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"fast"}', b'{"model":"NEW"}'),
        (b'{ "x" : 1 , "model"\t:\r\n "fast" ,"y":2 }\n', b'{ "x" : 1 , "model"\t:\r\n "NEW" ,"y":2 }\n'),
        (b'{"mod\\u0065l":"f\\u0061st"}', b'{"mod\\u0065l":"NEW"}'),
        (b'{"model":"fast","model":"fast"}', b'{"model":"fast","model":"NEW"}'),
        (b'{"model":"a","model":"fast","x":{"model":"fast"}}', b'{"model":"a","model":"NEW","x":{"model":"fast"}}'),
        (b'{"x":{"model":"fast"},"model":"fast"}', b'{"x":{"model":"fast"},"model":"NEW"}'),
        (b'{"model":"fast","x":[{"model":"fast"}]}', b'{"model":"NEW","x":[{"model":"fast"}]}'),
        (b'{"x":"\\"model\\":\\"fast\\"","model":"fast"}', b'{"x":"\\"model\\":\\"fast\\"","model":"NEW"}'),
        (b'{"model":"fast","x":"\\ud83d"}', b'{"model":"NEW","x":"\\ud83d"}'),
        (b'{"model":"fast","x":"\xff\xfe"}', b'{"model":"NEW","x":"\xff\xfe"}'),
        (b'{"x":"model","model":"fast"}', b'{"x":"model","model":"NEW"}'),
    ],
)
def test_only_the_models_own_string_changes(body: bytes, expected: bytes) -> None:
    """Spaces, order, escapes and every other ``model`` stay."""
    assert model_of(body) == "fast"
    assert replaced(body, "NEW") == expected


def test_the_right_one_of_a_thousand_is_found() -> None:
    """However many other members of the same name and value there are, on either side."""
    others = b'{"model":"fast"},' * 1000
    body = b'{"a":[' + others + b'0],"model":"fast","b":[' + others + b"0]}"
    expected = b'{"a":[' + others + b'0],"model":"NEW","b":[' + others + b"0]}"
    assert replaced(body, "NEW") == expected


def test_a_name_is_escaped() -> None:
    """Whatever an alias expands to, the document stays sound."""
    assert json.loads(replaced(b'{"model":"fast"}', 'a"b\\c\né')) == {"model": 'a"b\\c\né'}


KEYS = st.sampled_from(["model", "Model", "messages", "x", 'mo"del', "mödel"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    # The same name elsewhere, as a value and hidden in texts.
    | st.sampled_from(["fast", '"model":"fast"', '{"model": "fast"}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.sampled_from(["messages", "x", "Model", 'mo"del']), VALUES), max_size=4),
    st.integers(0, 4),
    st.sampled_from([(",", ":"), (" , ", " : "), (",\n\t", ":\r\n")]),
    st.booleans(),
    st.text(min_size=1, max_size=12),
)
def test_replacing_is_exact(
    members: list[tuple[str, Any]], place: int, marks: tuple[str, str], ascii_only: bool, name: str
) -> None:
    """For any document: all bytes but the string are the same, and reading it gives the same document with the new name."""
    comma, colon = marks

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, separators=marks)

    parts = [text(key) + colon + text(value) for key, value in members]
    place = min(place, len(parts))
    before = "{" + "".join(part + comma for part in parts[:place]) + '"model"' + colon
    after = "".join(comma + part for part in parts[place:]) + "}"
    body = f'{before}"fast"{after}'.encode()
    changed = replaced(body, name)
    head, tail = before.encode(), after.encode()
    assert changed.startswith(head)
    assert changed.endswith(tail)
    assert json.loads(changed[len(head) : len(changed) - len(tail)]) == name
    assert json.loads(changed) == json.loads(body) | {"model": name}


# --- multipart -------------------------------------------------------------------------------------------------------

FORM = b"multipart/form-data; boundary=XX"


def form(*parts: bytes, end: bytes = b"--XX--\r\n") -> bytes:
    """A form of these parts (headers, an empty line, the value)."""
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + end


MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-1'
FILE = (
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n\x00\xff\r\n--X'
)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(MODEL), FORM),
        (form(FILE, MODEL), FORM),
        (form(MODEL, FILE), FORM),
        (form(MODEL.replace(b"whisper-1", b"first"), MODEL), FORM),
        (form(b"content-disposition:form-data;name=model\r\nX: y\r\n\r\nwhisper-1"), FORM),
        (form(b'X: y\r\nCONTENT-DISPOSITION: form-data; name="model"\r\n\r\nwhisper-1'), FORM),
        (form(MODEL), b'Multipart/Form-Data; charset=utf-8; boundary="XX"'),
        (b"a preamble\r\n" + form(MODEL), FORM),
        (form(MODEL) + b"an epilogue", FORM),
        # A file that is called like the field is not the field.
        (form(MODEL, b'Content-Disposition: form-data; name="model"; filename="m"\r\n\r\nother'), FORM),
        (form(MODEL, b'Content-Disposition: form-data; name="models"\r\n\r\nother'), FORM),
        (form(MODEL, b'Content-Disposition: form-data; name="x"\r\n\r\nname="model"'), FORM),
    ],
)
def test_the_model_of_a_form(body: bytes, content_type: bytes) -> None:
    """The field of that name, the last if it stands twice; replaced where it stands, and nothing else."""
    preamble = body.startswith(b"a preamble")
    found = find_model(body, content_type, None, LIMIT)
    if preamble and found.name is None:
        return  # a preamble is not read: nobody sends one; unknown is allowed, wrong is not
    assert found.name == "whisper-1"
    place = body.rindex(b"whisper-1")
    assert replace_model(body, found, "né") == body[:place] + "né".encode() + body[place + 9 :]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", FORM),
        (form(), FORM),
        (form(FILE), FORM),
        (form(MODEL), b"multipart/form-data"),
        (form(MODEL), b"multipart/form-data; boundary="),
        (form(MODEL), b"multipart/form-data; boundary=YY"),
        (form(MODEL), b"multipart/form-data; boundary=" + b"Y" * 5000),
        (form(MODEL), b"multipart/mixed; boundary=XX"),
        (form(MODEL, end=b""), FORM),
        (form(MODEL)[:-12], FORM),
        (form(MODEL.replace(b"whisper-1", b"")), FORM),
        (form(MODEL.replace(b"whisper-1", b"\xff\xfe")), FORM),
        (form(MODEL.replace(b"whisper-1", b"w" * 1025)), FORM),
        (form(b"no header at all"), FORM),
        (form(b"\r\nwhisper-1"), FORM),
        (b'{"model":"a"}', FORM),
        (b"\r\n" * 10_000, FORM),
        (form(MODEL).replace(b"\r\n", b"\n"), FORM),
    ],
    ids=lambda value: repr(value[-30:]),
)
def test_a_form_that_cannot_be_read_has_no_model(body: bytes, content_type: bytes) -> None:
    """Broken, cut short, or without the field: unknown, and no fault."""
    assert model_of(body, content_type) is None


@settings(deadline=None)  # the machine may be busy
@given(
    st.binary(max_size=60), st.binary(max_size=60), st.sampled_from([b"a", b"groq/x", b"--X", b"\r\n", b"\r\n--", b""])
)
def test_replacing_in_a_form_is_exact(before: bytes, after: bytes, name: bytes) -> None:
    """Files of any bytes around it, and values that begin like a boundary: the same bytes but for the name, or unknown."""
    head = form(FILE + before, end=b"") + b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    tail = b"\r\n" + form(FILE + after)
    found = find_model(head + name + tail, FORM, None, LIMIT)
    if b"--XX" in before + after or found.name is None:
        return
    assert found.name.encode() == name
    assert replace_model(head + name + tail, found, "new/name") == head + b"new/name" + tail


def test_a_large_form_is_read_in_reasonable_time() -> None:
    """20 MiB with many near-boundaries: seconds at most, whatever the machine does beside."""
    noise = b"\r\n--X" * 1_000_000 + b"\0" * (16 << 20)
    began = time.monotonic()
    assert model_of(form(FILE + noise, MODEL), FORM) == "whisper-1"
    assert time.monotonic() - began < 20


def steps_of(body: bytes, content_type: bytes, encoding: bytes | None = None) -> tuple[int, float]:
    """How many steps a search takes, and the processor time of the longest."""
    steps, longest = 0, 0.0
    search_of = search(cut(body, 256 * 1024), content_type, encoding, 64 << 20)
    while True:
        began = time.thread_time()
        try:
            next(search_of)
        except StopIteration:
            return steps, longest
        finally:
            longest = max(longest, time.thread_time() - began)
        steps += 1


HOSTILE: dict[str, tuple[bytes, bytes, bytes, bytes]] = {
    # before, the unit, behind, type
    "twice": (b'{"messages":[],', b'"model":"fast",', b'"z":1}', JSON_TYPE),
    "other members": (b'{"model":"fast"', b',"a":1', b"}", JSON_TYPE),
    "by turns": (b'{"a":0', b',"model":"fast","a":1', b"}", JSON_TYPE),
    "nested": (b'{"model":"fast","z":[', b'{"model":"fast"},', b"0]}", JSON_TYPE),
    "nested deeper": (b'{"model":"fast","z":[', b'[[{"model":["fast"]}]],', b"0]}", JSON_TYPE),
    "up and down": (b'{"model":"fast","z":[', b"[[[[[[[[]]]]]]]],", b"0]}", JSON_TYPE),
    "halves": (b'{"model":"fast","z":"', b"\\ud800", b'"}', JSON_TYPE),
    "escapes": (b'{"model":"fast","z":["', b'\\"', b'"]}', JSON_TYPE),
    "backslashes": (b'{"model":"fast","z":"', b"\\\\", b'"}', JSON_TYPE),
    "short strings": (b'{"model":"fast","z":[', b'"a",', b"0]}", JSON_TYPE),
    "quotes": (b'{"model":"fast","z":[', b'"",', b"0]}", JSON_TYPE),
    "a long string": (b'{"model":"fast","z":"', b"aaaa", b'"}', JSON_TYPE),
    "a long key": (b'{"model":"fast","', b"aaaa", b'":1}', JSON_TYPE),
    "a long name": (b'{"model":"', b"aaaa", b'"}', JSON_TYPE),
    "deep": (b"", b"[", b"", JSON_TYPE),
    "deeper": (b"", b'{"z":', b"", JSON_TYPE),
    "digits": (b'{"model":"fast","z":', b"9", b"}", JSON_TYPE),
    "spaces": (b'{"model"', b" ", b':"fast"}', JSON_TYPE),
    "line ends": (b"", b"\r\n", b'{"model":"fast"}', JSON_TYPE),
    "parts": (b"", b"--XX\r\n\r\nx\r\n", b"--XX--\r\n", FORM),
    "models": (b"", b'--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\nfast\r\n', b"--XX--\r\n", FORM),
    "headers": (b"--XX\r\n", b"a: b\r\n", b"", FORM),
    "a long header": (b"--XX\r\ncontent-disposition: ", b"a;", b"", FORM),
    "near-boundaries": (b"--XX\r\na: b\r\n\r\n", b"\r\n--X", b"\r\n--XX--\r\n", FORM),
    "carriage returns": (b"--XX\r\na: b\r\n\r\n", b"\r", b"\r\n--XX--\r\n", FORM),
}


@pytest.mark.parametrize("encoding", [None, b"gzip", b"br", b"zstd"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_body_holds_the_loop(kind: str, encoding: bytes | None) -> None:
    """Whatever a stranger packs into a body, plain or compressed, the search gives the loop back every few milliseconds."""
    before, unit, behind, content_type = HOSTILE[kind]
    body = before + unit * ((2 << 20) // len(unit)) + behind
    if encoding == b"br":
        body = brotli.compress(body, quality=1)
    elif encoding is not None:
        body = ENCODERS[encoding](body)
    _, longest = steps_of(body, content_type, encoding)
    assert longest < 0.05


@pytest.mark.parametrize("encoding", [None, b"gzip"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_search_is_linear(kind: str, encoding: bytes | None) -> None:
    """Each byte of a body of any kind is looked at in one step or two: the steps are as many as the windows."""
    before, unit, behind, content_type = HOSTILE[kind]
    plain = before + unit * ((1 << 20) // len(unit)) + behind
    steps, _ = steps_of(plain if encoding is None else gzip.compress(plain, 1), content_type, encoding)
    assert steps <= 3 * len(plain) // WINDOW + 10


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (
            b' {"a":{"model":"x"},"model" : "fa\\u0073t", "b":["\\\\","]\\"",{"model":1}],"c":-1.5e3 , "model":"fast"}\n',
            JSON_TYPE,
        ),
        (form(FILE, MODEL.replace(b"whisper-1", b"fast"), FILE), FORM),
    ],
)
def test_pieces_of_any_size_tell_the_same(size: int, body: bytes, content_type: bytes) -> None:
    """However a body is cut on its way, the same name is found at the same place, and replaced there."""
    found = find_model(body, content_type, None, LIMIT, size)
    assert found == find_model(body, content_type, None, LIMIT, len(body))
    assert (found.name, found.size) == ("fast", len(body))
    at = body.rindex(b"fast")
    expected = body[:at] + b"a longer name" + body[at + 4 :]
    assert replace_model(body, found, "a longer name", pieces=cut(body, size)) == expected


PIECES = st.sampled_from(['"', "\\", '\\"', "model", '"model":"evil"', "a", "é", "\n", "\ud83d\ude00", "{", "}"])


@given(
    st.lists(st.tuples(PIECES, st.sampled_from([1, 3, 63, 64, 65, 9_000, 150_000])), max_size=6),
    st.sampled_from([None, "gpt-4o", 'a"b', "x\\", "é"]),
    st.booleans(),
    st.integers(0, 3),
)
@examples(150)
def test_long_strings_are_passed_over_and_nothing_else(
    strings: list[tuple[str, int]], model: str | None, ascii_only: bool, place: int
) -> None:
    """In a large body, full of pictures or of whatever a string may hold, the model is the one that a parser reads."""
    fields: list[tuple[str, object]] = [(f"f{number}", piece * times) for number, (piece, times) in enumerate(strings)]
    fields.append(("numbers", [0] * 9_000))
    fields.append(("messages", [{"model": "inner", "pad": "p" * 300_000}]))
    if model is not None:
        fields.insert(min(place, len(fields)), ("model", model))
    body = json.dumps(dict(fields), ensure_ascii=ascii_only).encode("utf-8", "replace")
    found = run(search([body], JSON_TYPE, None, LIMIT))
    assert found.raw == fast_json.raw_model(body)
    assert found.raw == (b"" if model is None else json.dumps(model, ensure_ascii=ascii_only).encode())


# --- compression -----------------------------------------------------------------------------------------------------

BODY = b'{"messages":[],"model":"fast","x":1}'


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_body_is_read_and_replaced_in_the_open(encoding: bytes) -> None:
    """A copy is decoded to be read; only a replaced body is the decoded one."""
    body = ENCODERS[encoding](BODY)
    found = find_model(body, JSON_TYPE, encoding, LIMIT)
    assert found.name == "fast"
    assert found.decoded == (encoding not in (b"identity", b""))
    assert replace_model(body, found, "NEW", encoding) == BODY.replace(b"fast", b"NEW")


def test_a_compressed_form_is_read_too() -> None:
    """Forms are forms, whatever they travelled in."""
    body = gzip.compress(form(MODEL))
    found = find_model(body, FORM, b"gzip", LIMIT)
    assert (found.name, found.decoded) == ("whisper-1", True)
    assert replace_model(body, found, "x", b"gzip") == form(MODEL.replace(b"whisper-1", b"x"))


@pytest.mark.parametrize("encoding", [name for name in ENCODERS if name.strip() not in (b"identity", b"")])
def test_a_body_cut_short_or_with_a_tail_is_unknown(encoding: bytes) -> None:
    """Half a stream must not be taken for the whole: its replaced copy would lose the rest."""
    whole = ENCODERS[encoding](BODY)
    for size in range(1, len(whole)):
        assert decode(whole[:size], encoding, LIMIT) is None, size
    assert decode(whole + b"tail", encoding, LIMIT) is None
    assert decode(whole, encoding, LIMIT) == BODY
    assert decode(b"", encoding, LIMIT) in (None, b"")


def test_several_members_are_one_body() -> None:
    """gzip and zstd may be several pieces in a row (RFC 1952, RFC 8878); none is lost."""
    assert decode(gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), b"gzip", LIMIT) == BODY
    assert decode(zstd(BODY[:9]) + zstd(BODY[9:]), b"zstd", LIMIT) == BODY
    assert decode(gzip.compress(b"") * 1000, b"gzip", LIMIT) is None, "so many are an attack on the processor"
    assert decode(zlib.compress(BODY) * 2, b"deflate", LIMIT) is None


@pytest.mark.parametrize(
    "encoding", [b"compress", b"nonsense", b"gzip, gzip, gzip", b"br, nonsense", b"\xff", b"GZIP;q=1"]
)
def test_an_unknown_encoding_is_unknown(encoding: bytes) -> None:
    """It travels as it came."""
    body = gzip.compress(BODY)
    found = find_model(body, JSON_TYPE, encoding, LIMIT)
    assert (found.name, found.decoded) == (None, False)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"deflate ", b"br", b"zstd", b"zstd "])
def test_a_bomb_is_bounded(encoding: bytes) -> None:
    """200 MB in a few kilobytes: given up at the limit, in memory of that order."""
    data = b'{"model":"a","x":"' + b"\0" * 200_000_000
    bomb = brotli.compress(data, quality=1) if encoding == b"br" else ENCODERS[encoding](data)
    assert len(bomb) < 300_000
    tracemalloc.start()
    try:
        assert decode(bomb, encoding, LIMIT) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * LIMIT


def test_a_bomb_in_a_bomb_is_bounded() -> None:
    """Each layer has the limit."""
    bomb = gzip.compress(gzip.compress(b"\0" * 20_000_000))
    assert decode(bomb, b"gzip, gzip", LIMIT) is None


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_the_limit_itself_is_allowed(encoding: bytes) -> None:
    """Exactly as many bytes as allowed, and not one more."""
    data = base64.b64encode(bytes(range(256)) * 40)
    whole = ENCODERS[encoding](data)
    assert decode(whole, encoding, len(data)) == data
    assert decode(whole, encoding, len(data) - 1) is None


def test_a_place_that_is_not_certain_is_refused() -> None:
    """Should reader and writer ever disagree, nothing is guessed: 400."""
    with pytest.raises(ProxyError) as caught:
        replace_model(b'{"model":"a"}', BodyModel("b", b'"b"'), "x")
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("encoding", [name for name in ENCODERS if name.strip() not in (b"identity", b"")])
def test_of_a_broken_body_the_beginning_is_read(encoding: bytes) -> None:
    """What stands before a fault, a cut or the limit is found; behind a second member and in an inner coding, too."""
    start, noise = b'{"error":"the beginning"}', random.Random(1).randbytes(3000)
    encode = ENCODERS[encoding]
    whole = encode(start + noise)
    for broken in (whole[:-500], whole + b"tail", whole[:-30] + bytes(30)):
        assert decode_prefix(broken, encoding, LIMIT).startswith(start)
    bomb = decode_prefix(encode(start + bytes(4 * LIMIT)), encoding, LIMIT)
    assert bomb.startswith(start)
    assert len(bomb) == LIMIT
    assert decode_prefix(encode(encode(start)), encoding + b", " + encoding, LIMIT) == start
    assert decode_prefix(start, b"gzip", LIMIT) == b""
    assert decode_prefix(whole, b"nonsense", LIMIT) == b""
    assert decode_prefix(gzip.compress(start) * 3, b"gzip", LIMIT) == start * 3


@given(st.binary(max_size=300), st.sampled_from([*ENCODERS, b"gzip, br", b"br, gzip, zstd", b"x, gzip", b"", b","]))
def test_any_bytes_are_read_in_part_safely(body: bytes, encoding: bytes) -> None:
    """Whatever is called compressed is read within the limit, without an error."""
    assert len(decode_prefix(body, encoding, 100)) <= 100
