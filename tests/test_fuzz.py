"""Generated input for everything that reads what a stranger wrote, and ten thousand mutants against a running daemon.

The modules' own tests have properties of one function each. Here stand those of whole ways (the bytes of a head to the line
that goes to Lava), and those that compare with a reader that is not ours: h11, httptools, the standard library's JSON, a
plain reader of event streams. Each property is bounded; together they take well under forty seconds.

The same properties can be driven by coverage: ``pip install atheris`` (wheels for Linux), then
``pytest -m slow tests/test_fuzz.py``. Without it that test says so and is skipped; it is not among the daily ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rawclient import RawClient
from searching import find_model, replace_model
from upstream import Peer, Upstream, answer

from proxy import errors, headers, routing, tokens
from proxy.dialects import Dialect, Ending, error_event
from proxy.errors import Fault, Payment
from proxy.framing import ChunkedBody, Limits, Refusal, read_head
from proxy.generation import Generation
from proxy.redaction import Secret, leaks
from proxy.routing import Kind
from proxy.settings import ConfigError, Settings, known_keys, load
from proxy.usage import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from daemons import StartDaemon

    from proxy.generation import Plan
    from proxy.upstream import Answer, Outgoing

ROOT = Path(__file__).parent.parent


def made_up(prefix: str, seed: str) -> str:
    """A key that is nobody's, another for each seed."""
    return prefix + hashlib.sha256(seed.encode()).hexdigest()[:24]


# --- addresses -------------------------------------------------------------------------------------------------------

KEYS = {name: made_up("aks_live_", name) for name in ("main", "site", "agent", "ready")}
CONFIGURED = Settings.model_validate(
    {
        "default_project": "main",
        "lava": {"base_url": "https://lava.example:8443/gate/v1"},
        "projects": {
            "main": {"secret_key": Secret(KEYS["main"])},
            "site": {"secret_key": Secret(KEYS["site"]), "connection_id": "conn_1", "meter": "m"},
            "agent": {"spend_key": Secret(KEYS["agent"])},
            "ready": {"forward_token": Secret(tokens.mint_token(KEYS["ready"]))},
        },
        "models": {"fast": "groq/llama-3.1-8b-instant", "smart": "anthropic/claude-opus-4-6", "qwen-*": "together"},
        "providers": {
            "mine": {"base_url": "https://llm.mine.example:444/api/v1", "dialect": "openai"},
            "claudish": {"base_url": "https://claudish.example/v1", "dialect": "anthropic"},
            "speech": {"base_url": "https://speech.example", "dialect": "other"},
        },
    }
)


class NoEngine:
    """Nothing is sent in these properties."""

    async def open(self, out: Outgoing) -> Answer:
        raise AssertionError("nothing may be sent here")

    def begin(self, *request: object) -> None:
        raise AssertionError("nothing may be sent here")

    async def aclose(self) -> None: ...


def fresh() -> Generation:
    """The configuration, made ready anew: it remembers nothing yet."""
    return Generation(CONFIGURED, NoEngine())


PIECES = [
    *(b"/", b"/", b"/", b"//", b"?", b"&", b"=", b"#", b"@", b":", b";", b"\\", b"%", b"%2f", b"%2e", b".", b".."),
    *(b"%00", b"%0d%0a", b"%5c", b"\xff", b" ", b"+", b"%25", b"*", b"http://evil.example/", b"@evil.example", b"u="),
    *(b"key=", b"k%65y=", b"metadata=", b"v1", b"v1beta", b"v2", b"p", b"upload", b"openai", b"anthropic", b"google"),
    *(b"googleOpenaiCompatible", b"google-openai", b"groq", b"mine", b"claudish", b"speech", b"main", b"site"),
    *(b"agent", b"ready", b"chat/completions", b"messages", b"models", b"x:generateContent", b"embeddings", b"files"),
]
TARGETS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12).map(
    lambda parts: b"/" + b"".join(parts)
)
# Mutated addresses that are certain to lead somewhere.
KNOWN = st.tuples(
    st.sampled_from(
        [
            *(b"/v1/chat/completions", b"/p/site/v1/messages", b"/groq/v1/chat/completions", b"/p/ready/mine/files"),
            *(b"/p/agent/v1/chat/completions", b"/v1beta/models/x:generateContent", b"/speech/say", b"/v1/models/fast"),
        ]
    ),
    TARGETS.map(lambda tail: tail[1:]),
).map(b"".join)
METHODS = st.sampled_from(["GET", "POST", "POST", "POST", "DELETE", "HEAD", "OPTIONS"])
MODELS = (
    st.none()
    | st.text(max_size=20)
    | st.sampled_from(["fast", "smart", "claude-x", "groq/a b", "mine/../x", "speech/x"])
)
PROJECTS = st.sampled_from([None, b"main", b"site", b"agent", b"ready"])

Asked = tuple[str, bytes, str | None, bytes | None]


def planned(generation: Generation, asked: Asked) -> Plan | str | None:
    """The way of one request as the application goes it: the head is read, located, routed and given its credential.

    A code where it is refused, None where it is answered here.
    """
    method, target, model, project = asked
    try:
        head = read_head(b"%b %b HTTP/1.1\r\nHost: h\r\n" % (method.encode(), target), Limits())
    except Refusal as refusal:
        return refusal.code
    path, _, query = head.target.partition(b"?")
    try:
        place = generation.locate(method, path, {})
        if place.kind in (Kind.INFO, Kind.CATALOG):
            return None
        chosen = routing.choose_project(None, place.project, project, generation.table)
        named = model if place.reads_body else None
        key = (method, path, query, chosen, named, place.dialect)
        plan = generation.plans.get(key)
        if plan is None:
            found = routing.route(method, place, query, chosen, named, generation.table)
            plan = generation.plan(found, None)
            generation.remember(key, plan)
        return plan
    except Fault as fault:
        return fault.code


def host_of(url: str) -> str:
    """What a browser takes for the host: everything up to the first slash, backslash, question mark or hash."""
    scheme, mark, rest = url.partition("://")
    assert mark
    assert scheme == "https"
    return re.split(r"[/\\?#]", rest, maxsplit=1)[0]


@settings(max_examples=1200, deadline=None)
@given(st.tuples(METHODS, TARGETS | KNOWN, MODELS, PROJECTS))
@example(("GET", b"/v1/models/groq%2f..", None, None))
@example(("DELETE", b"/p/site/models/mine%2F%2e%2E", None, None))
@example(("POST", b"/groq/v1/chat/completions?u=https://evil.example&key=x&u%3d", None, None))
@example(("POST", b"/p/agent/v1/chat/completions?%75=https://evil.example&metadata={}&a=b", "fast", None))
def test_whatever_address_comes_one_line_leaves_for_the_providers_own_host(asked: Asked) -> None:
    """From the bytes of a head to the line for Lava: one ``u``, the configured host, the project's credential, no odd byte."""
    plan = planned(fresh(), asked)
    if plan is None or isinstance(plan, str):
        assert plan is None or plan in errors.TABLE
        return
    assert re.fullmatch(rb"/gate/v1/[\x21-\x7e]+", plan.target)
    line = h11.Connection(h11.SERVER)
    line.receive_data(b"POST %b HTTP/1.1\r\nHost: h\r\n\r\n" % plan.target)
    seen = line.next_event()
    assert isinstance(seen, h11.Request)
    assert seen.target == plan.target

    path, _, query = plan.target.decode("ascii").removeprefix("/gate/v1/").partition("?")
    base = plan.route.provider.base_url
    items = parse_qsl(query, keep_blank_values=True)
    if path == "forward":
        assert [name for name, _ in items] == ["u"]
        url = items[0][1]
        assert host_of(url) == host_of(base) == urlsplit(url).netloc
        assert not re.search(r"/(\.|%2e){1,2}(/|$)", url.partition("?")[0], re.IGNORECASE)
        names = [unquote_plus(item.partition("=")[0]) for item in url.partition("?")[2].split("&")]
        assert "key" not in names
    elif path.startswith("rewrite/"):
        assert path.split("/", 2)[2].startswith(base + "/")
        assert not query
    else:
        assert path in ("chat/completions", "messages")
        assert plan.route.project == "agent"
        assert not {"key", "u", "metadata"} & {name for name, _ in items}

    project = plan.route.project
    credential = [value for name, value in plan.head if name == b"authorization"]
    own = KEYS[project].encode()
    assert len(credential) == 1
    token = credential[0].removeprefix(b"Bearer ")
    said = tokens.read_token(token.decode())
    assert token == own if project == "agent" else said["secret_key"].encode() == own
    assert [pair for pair in plan.head if pair[0] == b"host"] == [(b"host", b"lava.example:8443")]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(METHODS, KNOWN | TARGETS, MODELS, PROJECTS), min_size=2, max_size=8))
def test_what_is_remembered_of_one_request_never_changes_another(conversation: list[Asked]) -> None:
    """Places, plans and credentials are kept between requests: each gets what it would have got alone."""
    shared = fresh()
    for asked in [*conversation, *conversation]:
        kept, alone = planned(shared, asked), planned(fresh(), asked)
        if kept is None or alone is None or isinstance(kept, str) or isinstance(alone, str):
            assert kept == alone
        else:
            assert (kept.route, kept.target, kept.head, kept.ours) == (
                alone.route,
                alone.target,
                alone.head,
                alone.ours,
            )


# --- headers ---------------------------------------------------------------------------------------------------------

TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
NAME_STARTS = [b"", b"x-lava-", b"x-forwarded-", b"x-lava-proxy-", b"access-control-", b"sec-fetch-", b"content-"]
NAME_STARTS += [b"x-", b"access-control-request-"]
WHOLE_NAMES = [
    *headers.CREDENTIALS,
    *(b"cookie", b"set-cookie", b"connection", b"host", b"te", b"upgrade", b"transfer-encoding", b"content-length"),
    *(b"x-lava-metadata", b"forwarded", b"x_lava_metadata", b"keep-alive", b"date", b"server", b"content-encoding"),
    *(
        b"proxy-authorization",
        b"x-original-url",
        b"x-real-ip",
        b"x-http-method-override",
        b"origin",
        b"referer",
        b"expect",
        b"anthropic-version",
        b"content-type",
        b"x-lava-request-id",
    ),
]
NAMES = st.one_of(
    st.sampled_from(WHOLE_NAMES),
    st.tuples(st.sampled_from(NAME_STARTS), st.text(TOKEN_BYTES.decode(), min_size=1, max_size=6)).map(
        lambda pair: pair[0] + pair[1].encode()
    ),
)
VALUES = st.one_of(
    st.lists(st.sampled_from([*WHOLE_NAMES, b"close", b"keep-alive", b"x-a", b""]), max_size=3).map(b", ".join),
    st.binary(max_size=12).map(lambda raw: re.sub(rb"[\x00-\x1f\x7f]", b"", raw)),
)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=14)


def in_order(part: Sequence[object], whole: Sequence[object]) -> bool:
    """Whether ``part`` is ``whole`` with some left out."""
    rest: Iterator[object] = iter(whole)
    return all(any(each == other for other in rest) for each in part)


def nominated(pairs: headers.Pairs) -> set[bytes]:
    return {token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}


@settings(max_examples=500, deadline=None)
@given(PAIRS, st.booleans())
def test_no_header_gets_through_that_may_not(pairs: headers.Pairs, keep_length: bool) -> None:
    """Any names and values: what travels is a part of what came, in its order, and nothing that ends here is in it."""
    to_lava = headers.read(pairs).onward
    assert in_order(to_lava, pairs)
    names = {name for name, _ in to_lava}
    stopped = {*headers.CREDENTIALS, b"cookie", b"host", b"te", b"upgrade", b"forwarded", b"expect", b"content-length"}
    stopped |= {
        b"connection",
        b"transfer-encoding",
        b"proxy-authorization",
        b"x-original-url",
        b"keep-alive",
        b"origin",
    }
    stopped |= {b"referer", b"x-real-ip", b"x-http-method-override"}
    assert not names & (stopped | nominated(pairs))
    kinds = (b"x-lava-", b"x-forwarded-", b"sec-fetch-", b"access-control-request-")
    assert not [name for name in names if name.startswith(kinds) or b"_" in name]

    answered = headers.to_client(pairs, keep_length=keep_length)
    to_client = [pair for pair in answered.onward if pair[0] != b"date"]
    assert in_order(to_client, pairs)
    names = {name for name, _ in to_client}
    assert not names & {b"set-cookie", b"connection", b"transfer-encoding", b"keep-alive", b"te", b"upgrade"}
    assert not [name for name in names if name.startswith((b"access-control-", b"x-lava-proxy-"))]
    assert [name for name, _ in answered.onward].count(b"date") == 1
    lengths = [value for name, value in answered.onward if name == b"content-length"]
    assert len(lengths) <= (1 if keep_length else 0)


# --- the model in a body ---------------------------------------------------------------------------------------------

SPACE = st.sampled_from(["", "", " ", "\n", "\t", "\r\n "])
MODEL_KEYS = st.sampled_from(
    ['"model"', '"model"', '"mod\\u0065l"', '"\\u006dodel"', '"Model"', '"messages"', '"x"', '""']
)
STRINGS = st.text(max_size=6).map(json.dumps) | st.sampled_from(
    ['"fast"', '"f\\u0061st"', '"\\"model\\":\\"fast\\""', '"\\ud83d"']
)


def documents(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects as text: members may stand twice, spaces anywhere."""
    member = st.tuples(SPACE, MODEL_KEYS, SPACE, values, SPACE).map(lambda m: f"{m[0]}{m[1]}{m[2]}:{m[3]}{m[4]}")
    return st.lists(member, max_size=5).map(lambda members: "{" + ",".join(members) + "}")


VALUE_TEXTS = st.recursive(
    STRINGS | st.sampled_from(["1", "-0.5e3", "true", "null", "12345678901234567890123", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]") | documents(inner),
    max_leaves=6,
)
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from([b"", b'"', b"\\", b"{", b"}", b",", b"\xff", b"\0", b"model"])),
    max_size=2,
)


def mutated(raw: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """``raw`` with a byte replaced at some places: by nothing, or by what parsers quarrel about."""
    for at, new in changes:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + 1 :]
    return raw


def read_by_the_standard_library(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


@settings(max_examples=700, deadline=None)
@given(documents(VALUE_TEXTS), MUTATIONS)
@example('{"model":"fast","x":{"model":"fast"},"mod\\u0065l":"fast"}', [])
@example('{"x":"\\ud83d","model":"fast"}', [])
@example('{"model":":"}', [])
def test_the_model_is_what_other_readers_read_and_only_it_is_replaced(
    text: str, changes: list[tuple[int, bytes]]
) -> None:
    """What the standard library reads as ``model`` is found, and replaced without a trace elsewhere, or it is 400."""
    body = mutated(text.encode("utf-8", "surrogatepass"), changes)
    found = find_model(body, b"application/json", None, 1 << 20)
    document = read_by_the_standard_library(body)
    if not isinstance(document, dict):
        return
    expected = document.get("model")
    if not isinstance(expected, str) or not expected or "\0" in expected:
        assert found.name is None
        return
    if found.name is None and (re.search(rb"NaN|Infinity", body) or re.search("[\ud800-\udfff]", expected)):
        return  # no JSON by its RFC, and no name that any provider has
    assert found.name == expected
    try:
        changed = replace_model(body, found, "new/näme")
    except Fault as fault:
        assert fault.code == "bad_request"  # noqa: PT017  (either is right)
        return
    assert read_by_the_standard_library(changed) == document | {"model": "new/näme"}
    # Every byte before and after that one string is as it was.
    new = json.dumps("new/näme", ensure_ascii=False).encode()
    places = [at.start() for at in re.finditer(b"(?=" + re.escape(found.raw) + b")", body)]  # they may overlap
    assert changed in [body[:at] + new + body[at + len(found.raw) :] for at in places]


# --- event streams ---------------------------------------------------------------------------------------------------

LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])
EVENTS: dict[str, list[bytes]] = {
    "delta": [b'data: {"choices":[{"delta":{"content":"usage error [DONE]"}}]}'],
    "spread": [b'data: {"choices":', b"data: [],", b'data:"model":"gpt-x"}'],
    "usage": [b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'],
    "null": [b'data: {"choices":[],"usage":null}'],
    "error": [b'data: {"error":{"type":"overloaded_error","message":"x"}}'],
    "done": [b"data: [DONE]"],
    "almost": [b"data: [DONE] not"],
    "comment": [b": [DONE]"],
    "other": [b"id: 7", b"retry: 10", b"data"],
}


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(EVENTS)), LINE_END, LINE_END), max_size=8),
    st.lists(st.integers(0, 700), max_size=8),
    st.booleans(),
)
def test_a_stream_tells_what_was_put_into_it(
    told: list[tuple[str, bytes, bytes]], cuts: list[int], unfinished: bool
) -> None:
    """Events in any mixture of line ends, cut anywhere: end marker, usage, error and boundaries as they were written."""
    stream, boundaries = b"", {0}
    for kind, line_end, blank in told:
        # CR before LF would be one line end: such a pair is written as CR LF twice.
        ends = (b"\r\n", b"\r\n") if (line_end, blank) == (b"\r", b"\n") else (line_end, blank)
        stream += ends[0].join(EVENTS[kind]) + ends[0] + ends[1]
        boundaries.add(len(stream))
    if unfinished:
        stream += b'data: {"x":'
    scanner = Scanner(Ending.CHAT, sse=True)
    done = 0
    for cut in sorted({*(cut for cut in cuts if cut < len(stream)), len(stream)}):
        scanner.feed(stream[done:cut])
        done = cut
        if cut in boundaries and not (unfinished and cut == len(stream)):
            assert scanner.at_boundary
    if unfinished:
        assert not scanner.at_boundary
    scanner.finish()
    kinds = [kind for kind, _, _ in told]
    assert scanner.ended == ("done" in kinds)
    assert scanner.error == ("overloaded_error" if "error" in kinds else None)
    assert (scanner.usage is not None) == ("usage" in kinds)
    assert scanner.model == ("gpt-x" if "spread" in kinds else None)


def events_of(stream: bytes) -> list[tuple[str, str]]:
    """(event, data) of a stream, by the rules of the HTML standard, line by line: the plain reader to compare with."""
    found: list[tuple[str, str]] = []
    name = ""
    data: list[str] = []
    for line in re.split(r"\r\n|\n|\r", stream.decode("utf-8")):
        if not line:
            if data:
                found.append((name, "\n".join(data)))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    return found


# --- errors ----------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["error", "NOT_FOUND", "forward_x", 402]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "status", "type", "param", "detail"]), inner, max_size=5
        )
    ),
    max_leaves=10,
)
PAYMENTS = st.builds(
    Payment,
    ANY_TEXT,
    ANY_TEXT,
    st.sampled_from(["merchant", "customer", "provider_account", "spend_key", None]),
    st.sampled_from(["secret key", "spend key", "forward token"]),
    st.just("…abcd"),
    st.booleans(),
    st.booleans(),
    st.none() | ANY_TEXT,
    st.none() | ANY_TEXT,
    st.none() | ANY_TEXT,
    st.lists(st.sampled_from(["connection", "customer", "meter"]), max_size=3).map(tuple),
)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(400, 999),
    PAIRS,
    st.binary(max_size=80) | ANY_JSON.map(lambda value: json.dumps(value).encode()),
    PAYMENTS,
)
def test_any_answer_becomes_an_error_that_every_client_can_read(
    status: int, pairs: headers.Pairs, body: bytes, payment: Payment
) -> None:
    """No status, header or body is too strange: a known code, sound JSON and headers in three dialects, one event in a stream."""
    fault = errors.from_answer(status, pairs, body, payment)
    if fault is None:
        assert status not in (401, 402)
        return
    assert fault.code in errors.TABLE
    assert fault.status in (status, 400)
    for dialect in Dialect:
        reply = errors.render(fault, dialect, "req_1", project="main", provider="openai")
        said = json.loads(reply.body)["error"]
        assert said["lava_proxy"]["code"] == fault.code
        assert said["message"]
        assert dict(reply.headers)[b"content-length"] == b"%d" % len(reply.body)
        assert [name for name, _ in reply.headers].count(b"x-lava-proxy-error") == 1
        for name, value in reply.headers:
            assert not re.search(rb"[\x00-\x1f\x7f]", name + value)
        for ending in Ending:
            told = events_of(error_event(dialect, ending, errors.body_of(fault, dialect, "req_1")))
            assert len(told) == 1
            assert json.loads(told[0][1])["error"]


# --- the HTTP front, beside other readers ----------------------------------------------------------------------------

HEAD_LINES = [
    *(
        b"Host: a",
        b"Host: b",
        b"Content-Length: 3",
        b"Content-Length: 03",
        b"Content-Length: +3",
        b"Content-Length: 3, 3",
    ),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"transfer-encoding:chunked", b"TE: x"),
    *(
        b"Connection: close",
        b"Connection: keep-alive, x",
        b"X-A: caf\xe9",
        b"X-B:\t a \t",
        b"X-C:",
        b"X-D: a,b",
        b" folded",
    ),
    *(b"Transfer-Encoding : chunked", b"Content_Length: 9", b"Expect: 100-continue", b"X\x00: a", b"X-E: \x0b"),
]
LINES = st.lists(
    st.sampled_from(HEAD_LINES) | st.tuples(NAMES, VALUES).map(lambda pair: pair[0] + b": " + pair[1]), max_size=5
)
LINE_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n "])


@settings(max_examples=800, deadline=None)
@given(
    METHODS,
    TARGETS,
    st.sampled_from([b"1.1", b"1.1", b"1.0", b"2.0"]),
    LINES,
    st.lists(LINE_ENDS, min_size=6, max_size=6),
)
def test_an_accepted_head_is_the_same_to_h11(
    method: str, target: bytes, version: bytes, lines: list[bytes], ends: list[bytes]
) -> None:
    """What is let in, h11 reads as the same method, target, headers, and the same kind of body."""
    raw = b"%b %b HTTP/%b" % (method.encode(), target, version)
    for line, end in zip([*lines, b"Host: h"], ends, strict=False):
        raw += end + line
    raw += b"\r\n"
    if b"\r\n\r\n" in raw:
        return  # the protocol cuts there
    try:
        ours = read_head(raw, Limits())
    except Refusal as refusal:
        assert refusal.code in errors.TABLE  # noqa: PT017  (either is right)
        return
    seen = h11_reads(raw + b"\r\n")
    assert (seen.method.decode(), seen.target) == (ours.method, ours.target)
    assert seen.http_version.decode() == ours.version
    # To h11 an equal length in several headers is one; we take no second one at all.
    assert [(name.lower(), value) for name, value in seen.headers] == [
        (name, value.strip(b" \t")) for name, value in ours.headers
    ]
    framed = dict(seen.headers)
    assert (ours.length is None) == (framed.get(b"transfer-encoding") == b"chunked")
    assert ours.length is None or ours.length == int(framed.get(b"content-length", b"0"))


def h11_reads(raw: bytes) -> h11.Request:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    return event


CHUNKS = st.lists(
    st.tuples(
        st.binary(max_size=20), st.sampled_from([b"", b"", b";a", b";a=b", b';q="x y"', b";a=\xff"]), st.booleans()
    ),
    max_size=5,
)
NOISE = st.lists(
    st.tuples(
        st.integers(0, 400), st.sampled_from([b"", b"\r", b"\n", b"0", b"f", b";", b" ", b"\r\n", b"-", b"x", b"\0"])
    ),
    max_size=2,
)


@settings(max_examples=800, deadline=None)
@given(CHUNKS, st.sampled_from([b"", b"X-T: 1\r\n", b"Authorization: x\r\nHost: evil\r\n", b"bad\r\n"]), NOISE)
def test_an_accepted_chunked_body_is_the_same_to_h11_and_httptools(
    chunks: list[tuple[bytes, bytes, bool]], trailers: bytes, noise: list[tuple[int, bytes]]
) -> None:
    """Bodies with a slip here and there: what is let in has the same bytes and the same end for other readers."""
    raw = b"".join(b"%x%b\r\n%b\r\n" % (len(data), more, data) for data, more, _ in chunks if data)
    raw = mutated(raw + b"0\r\n" + trailers + b"\r\n", noise) + b"GET /next"
    reader = ChunkedBody(Limits())
    try:
        end, ours = reader.feed(raw, 0)
    except Refusal as refusal:
        assert refusal.code in errors.TABLE  # noqa: PT017  (either is right)
        return
    if not reader.done:
        return
    head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + raw)
    assert whole_body(connection) == ours
    assert connection.trailing_data[0] == raw[end:]
    judge = Collector()
    parser = httptools.HttpRequestParser(judge)
    try:
        parser.feed_data(head + raw[:end])
    except httptools.HttpParserError as error:
        if "chunk extensions" in str(error):
            return  # stricter about what nobody reads and what is not sent on
        raise
    assert judge.over == 1
    assert judge.body == ours


def whole_body(connection: h11.Connection) -> bytes | None:
    """The body of the request that this connection has received; None where its end has not come."""
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if not isinstance(event, h11.Request | h11.Data):
            return None
        body += bytes(event.data) if isinstance(event, h11.Data) else b""
    return body


class Collector:
    """What httptools makes of a body."""

    def __init__(self) -> None:
        self.body = b""
        self.over = 0

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.over += 1


# --- the configuration -----------------------------------------------------------------------------------------------

CANARY = "canary" + hashlib.sha256(b"configuration").hexdigest()[:16]
USER_NAMES = st.sampled_from(
    ["website", "lab", "openai", "groq", "fast", "qwen-*", "team", "Bad Name", "a__b", "v1", ""]
)
KEY_PATHS = st.sampled_from(sorted(known_keys())).flatmap(
    lambda key: USER_NAMES.map(lambda name: tuple(name if part == "*" else part for part in key.split(".")))
)
STRAY_PATHS = st.lists(
    st.sampled_from(["server", "projects", "website", "byok", "keys", "prot", "models", "x"]), min_size=1, max_size=4
)
SHAPES = [
    "{}",
    "{}{}",
    "env:{}",
    "file:{}",
    "https://{}.example/v1",
    "http://{}",
    "https://u:{}@h",
    "{}/m",
    " {} ",
    "\n{}",
    "{}\u00e9",
]
CANARIES = st.sampled_from(SHAPES).map(lambda shape: shape.replace("{}", CANARY))
CONFIG_VALUES = st.recursive(
    CANARIES
    | st.sampled_from(
        ["client", "auto", "127.0.0.1", "0.0.0.0", "debug", "https://api.mine.example/v1", "openai", "openai/gpt-5"]
    )
    | st.integers(-2, 70_000)
    | st.sampled_from([10**30, 1.5, float("inf"), float("nan"), True, False]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(USER_NAMES, inner, max_size=2),
    max_leaves=4,
)


def as_toml(value: Any) -> str:
    """A value in TOML, inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return {"inf": "inf", "nan": "nan"}.get(repr(value), repr(value))
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    return str(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the configurations of these properties are written."""
    return tmp_path_factory.mktemp("configurations")


def loads_or_tells(folder: Path, text: bytes, environ: dict[str, str]) -> None:
    """A configuration is loaded or refused in sentences; its values are shown in neither case."""
    path = folder / "config.toml"
    path.write_bytes(text)
    path.chmod(0o600)
    try:
        settings_made = load(path, environ)
    except ConfigError as error:
        told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__)
        refused: ConfigError | None = error
    else:
        refused = None
        masked = [secret for secret in settings_made.secrets() if CANARY in secret]
        shown = [repr(settings_made), settings_made.model_dump_json()]
        told = (
            "".join(shown) if masked and not any(CANARY in str(value) for value in open_values(settings_made)) else ""
        )
    if refused is not None:
        assert refused.faults
        assert refused.__cause__ is None
        assert refused.__context__ is None
    # The folder's name has no canary, and what is no secret is not shown in a fault either.
    assert not leaks(told, [CANARY])


def open_values(made: Settings) -> Iterator[object]:
    """Everything that is no secret and may be shown."""
    yield from (made.server.host, made.server.allowed_hosts, made.server.unix_socket, made.lava.base_url, made.log.file)
    yield from (made.upstream.proxy, made.upstream.ca_file, made.models, made.providers, made.default_project)
    for project in made.projects.values():
        yield from (
            project.connection_id,
            project.customer_id,
            project.meter,
            project.metadata,
            project.default_provider,
        )


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.tuples(KEY_PATHS | STRAY_PATHS.map(tuple), CONFIG_VALUES), max_size=8),
    st.dictionaries(
        KEY_PATHS, CANARIES | st.sampled_from(["[", "{}", "1", '["' + CANARY, '{"a":"' + CANARY + '"}']), max_size=3
    ),
)
def test_any_configuration_is_loaded_or_told_in_sentences(
    folder: Path, settled: list[tuple[tuple[str, ...], Any]], variables: dict[tuple[str, ...], str]
) -> None:
    """Any key with any value, from file and environment: settings or ``ConfigError``, and no fault shows a value."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for where, value in settled:
        tables.setdefault(where[:-1], []).append(f"{json.dumps(where[-1])} = {as_toml(value)}\n")
    text = ""
    for table, lines in sorted(tables.items()):
        text += "[" + ".".join(map(json.dumps, table)) + "]\n" if table else ""
        text += "".join(dict.fromkeys(lines))
    environ = {"LAVA_PROXY_" + "__".join(where).upper(): value for where, value in variables.items()}
    loads_or_tells(folder, text.encode("utf-8", "surrogatepass"), environ)


EXAMPLE = re.sub(r"^#(?=[a-z\[\"])", "", (ROOT / "config.example.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EXAMPLE)),
            st.sampled_from(
                [b"", b'"', b"[", b"]", b"=", b"\n", b"\0", b"\xff", b"{", b"#", b".", b"'''", CANARY.encode()]
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_slip_of_the_pen_is_told_in_sentences(folder: Path, changes: list[tuple[int, bytes]]) -> None:
    """The example with all its keys, damaged here and there: settings or ``ConfigError``, nothing else."""
    environ = {
        name: CANARY + name for name in ("LAVA_SECRET_KEY", "WEBSITE_PROXY_KEY", "OPENAI_API_KEY", "LAVA_SPEND_KEY")
    }
    raw = EXAMPLE.encode()
    # A canary put into a name or a path would be shown: names and paths are.
    loads_or_tells(folder, mutated(raw, [(at, new) for at, new in changes if CANARY.encode() not in new]), environ)


# --- tokens ----------------------------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(ANY_JSON, st.text(max_size=4), st.booleans(), st.booleans())
def test_any_ready_token_can_be_used_and_shows_nothing(document: Any, key: str, padded: bool, url_safe: bool) -> None:
    """Whatever JSON stands in a token: who pays is said or not, nothing raises, and the key in it is not shown."""
    from base64 import b64encode

    secret = made_up("aks_test_", "token") + key
    if isinstance(document, dict):
        document = {**document, "secret_key": secret, "provider_key": secret[::-1]}
    token = b64encode(json.dumps(document).encode()).decode()
    token = token if padded else token.rstrip("=")
    token = token.replace("+", "-").replace("/", "_") if url_safe else token
    said = tokens.read_token(token)
    assert said == (
        read_by_the_standard_library(json.dumps(document).encode()) if isinstance(document, dict) else {}
    ) or isinstance(said, dict)
    project = CONFIGURED.projects["ready"].model_copy(update={"forward_token": Secret(token)})
    made = tokens.credential("ready", project, "openai", None)
    assert made.authorization == b"Bearer " + token.encode()
    if isinstance(document, dict):
        assert tokens.base_url_for(token) == tokens.SANDBOX
        assert {token, secret, secret[::-1]} <= set(made.secrets)
        assert not leaks(repr(made) + json.dumps(made.payment.details()), [secret, secret[::-1]])


# --- ten thousand mutants --------------------------------------------------------------------------------------------

LAVA_KEY = made_up("aks_live_", "mutants")
BEARER = b"Bearer " + tokens.mint_token(LAVA_KEY).encode()
MUTANTS = 10_000

INSIDE = b"GET /openai/v1/inside HTTP/1.1\r\nHost: localhost\r\n\r\n"
SEEDS: list[Callable[[bytes], bytes]] = [
    lambda mark: b"GET /openai/v1/files/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % mark,
    lambda mark: (
        b"POST /openai/v1/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (mark, len(INSIDE)) + INSIDE
    ),
    lambda mark: (
        b"POST /groq/%b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % mark
        + b"5\r\nhello\r\n%x;a=b\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(INSIDE), INSIDE)
    ),
    lambda mark: (
        b"POST /p/default/anthropic/v1/messages?k=%b HTTP/1.1\r\nHost: localhost\r\nx-api-key: mine\r\n" % mark
        + b'Authorization: Bearer other\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"model":"x"}'
    ),
    lambda mark: (
        b"POST /v1/chat/completions?%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n" % mark
        + b'Connection: x\r\n\r\n{"model":"gpt"}'
    ),
]
SPLICES = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"1",
        b"ff",
        b"\x80",
        b"%0d%0a",
        b"%2e%2e/",
        b"//",
    ),
    *(b"\r\nContent-Length: 5\r\n", b"\r\nTransfer-Encoding: chunked\r\n", b"\r\nTransfer-Encoding:\x0bchunked\r\n"),
    *(
        b"\r\nHost: evil\r\n",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"\r\nExpect: 100-continue\r\n",
        b"\r\nConnection: authorization\r\n",
    ),
    *(
        b"\r\nauthorization: Bearer stolen\r\n",
        b"\r\n x\r\n",
        b"HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
]


def mutant(rng: random.Random, mark: bytes) -> bytes:
    """A request with a few of its bytes dropped, doubled or spliced."""
    wire = rng.choice(SEEDS)(mark)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(wire) + 1)
        match rng.randrange(4):
            case 0:
                wire = wire[:at] + wire[at + rng.randrange(1, 6) :]
            case 1:
                wire = wire[:at] + wire[at : at + rng.randrange(1, 30)] + wire[at:]
            case 2 if at < len(wire):
                wire = wire[:at] + bytes((wire[at] ^ (1 << rng.randrange(8)),)) + wire[at + 1 :]
            case _:
                wire = wire[:at] + rng.choice(SPLICES) + wire[at:]
    return wire


def bodies_h11_reads(raw: bytes) -> list[bytes]:
    """The bodies of the pipelined requests in these bytes, as far as h11 understands them."""
    found: list[bytes] = []
    while raw:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        # One empty line before a request is forgiven (RFC 9112, 2.2), which h11 does not do.
        connection.receive_data(raw.removeprefix(b"\r\n"))
        try:
            body = whole_body(connection)
        except h11.RemoteProtocolError:
            break
        if body is None:
            break
        found.append(body)
        raw = connection.trailing_data[0]
    return found


@dataclass
class Arrived:
    """One request at the upstream."""

    target: bytes
    body: bytes
    request_id: str | None = None


@pytest.mark.timeout(240)
def test_daemon_and_upstream_agree_on_ten_thousand_mutants(daemon: StartDaemon) -> None:
    """10,000 damaged requests, a sound one behind each: as many as the daemon says it sent arrived, with the bytes that it
    counted and h11 reads, our one credential and one framing; the answers come in order."""
    arrived: list[Arrived] = []
    lock = threading.Lock()
    faults: list[str] = []

    def script(peer: Peer) -> None:
        try:
            while (received := peer.head()) is not None:
                peer.body(received)
                names = Counter(name.lower() for name, _ in received.headers)
                if received.header(b"authorization") != BEARER or names[b"host"] != 1:
                    faults.append(f"credential or host: {received.head!r}")
                if names[b"content-length"] + names[b"transfer-encoding"] > 1 or received.version != b"HTTP/1.1":
                    faults.append(f"framing: {received.head!r}")
                with lock:
                    mark = b"%d" % len(arrived)
                    arrived.append(Arrived(received.target, received.body))
                peer.send(answer(200, b"ok", [(b"x-mark", mark)]))
        except ConnectionError:
            return  # an upload that the daemon broke off: no request
        except Exception as fault:  # noqa: BLE001  (the daemon sent what is no HTTP)
            faults.append(f"{type(fault).__name__}: {fault}")

    def converse(number: int) -> bool:
        """Whether the sound request of this connection was answered."""
        rng = random.Random(number)
        last = b"GET /openai/v1/s%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % number
        wire = mutant(rng, b"m%d" % number) + last
        expected = bodies_h11_reads(wire)
        with RawClient(port) as client:
            client.send(wire)
            # A mutant that waits for more of its body is let go.
            client.sock.settimeout(0.25)
            for body in itertools.chain(expected, itertools.repeat(None)):
                try:
                    while (response := client.response()).status == 100:
                        pass
                except (ConnectionError, TimeoutError):
                    return False
                if response.header("x-mark") is None:
                    continue  # answered by the daemon itself
                found = arrived[int(response.header("x-mark") or "")]
                found.request_id = response.header("x-lava-proxy-request-id")
                if found.body != body:
                    faults.append(f"h11 reads another body: {wire!r}")
                if b"s%d" % number in found.target:
                    return True
        raise AssertionError("unreachable")

    with Upstream(script) as upstream:
        config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n'
        more = '[server]\nallowed_hosts = ["localhost"]\n'
        running = daemon(config + more, env={"KEY": LAVA_KEY}, secrets=[LAVA_KEY])
        port = running.port
        with ThreadPoolExecutor(8) as pool:
            reached = sum(pool.map(converse, range(MUTANTS)))
        assert running.stop() == 0
    assert not faults, faults[:3]
    lines = [json.loads(line) for line in running.output().splitlines() if '"event":"request"' in line]
    # Number: what the daemon says it sent and got answered arrived, and nothing arrived that it does not know of.
    sent = {line["request_id"]: line for line in lines if line["provider"] is not None}
    assert sum(line["outcome"] == "ok" for line in sent.values()) <= len(arrived) <= len(sent)
    answered = [each for each in arrived if each.request_id is not None]
    assert len({each.request_id for each in answered}) == len(answered)
    for each in answered:
        line = sent[each.request_id or ""]
        # Boundaries: as many bytes as the daemon counted.
        assert (line["outcome"], line["bytes_in"]) == ("ok", len(each.body)), line
    # The run is worth something: many mutants are refused, and many get through with what follows them.
    assert len(answered) > MUTANTS / 2
    assert MUTANTS / 10 < reached < MUTANTS


# --- by coverage -----------------------------------------------------------------------------------------------------

DRIVEN = [
    "test_whatever_address_comes_one_line_leaves_for_the_providers_own_host",
    "test_no_header_gets_through_that_may_not",
    "test_the_model_is_what_other_readers_read_and_only_it_is_replaced",
    "test_a_stream_tells_what_was_put_into_it",
    "test_any_answer_becomes_an_error_that_every_client_can_read",
    "test_an_accepted_head_is_the_same_to_h11",
    "test_an_accepted_chunked_body_is_the_same_to_h11_and_httptools",
    "test_any_ready_token_can_be_used_and_shows_nothing",
]
DRIVER = """
import sys
import atheris
with atheris.instrument_imports(include=["proxy"]):
    import test_fuzz
drive = getattr(test_fuzz, sys.argv[1]).hypothesis.fuzz_one_input
options = ["-runs=20000", "-max_total_time=40", "-max_len=4096", "-len_control=0"]
atheris.Setup([sys.argv[0], *options], lambda data: drive(data) and None)
atheris.Fuzz()
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", DRIVEN)
def test_driven_by_coverage(name: str, tmp_path: Path) -> None:
    """The same properties, with inputs that a fuzzer grows towards code that no input has reached yet."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("no atheris: pip install atheris (wheels for Linux)")
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "NEW" in done.stderr, "no input reached new code: is it instrumented?"


def test_the_driven_properties_exist() -> None:
    """Each name in the list is a property that can be driven."""
    for name in DRIVEN:
        assert callable(globals()[name].hypothesis.fuzz_one_input)
