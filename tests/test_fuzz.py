"""Generated input for everything that reads what a stranger wrote.

The modules' own tests have properties of one function each. Here stand those of whole ways (the bytes of a head to the line
that goes to Lava), and those that compare with a reader that is not ours: h11, httptools, the standard library's JSON, a
plain reader of event streams. The number of examples is chosen by HYPOTHESIS_PROFILE (profiles.py). Damaged bytes against a running daemon:
test_security_mutations.py.

The same properties can be driven by coverage: ``pip install atheris`` (wheels for Linux), then
``pytest -m slow tests/test_fuzz.py``. Without it that test says so and is skipped; it is not among the daily ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import examples
from searching import find_model, replace_model

from proxy.config.settings import ConfigError, Settings, known_keys, load
from proxy.gateway import admit, targets
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.active_request import ActiveRequest, Registry
from proxy.gateway.request_body import BodyBudget, RequestBody
from proxy.http.framing import ChunkedBody, Head, Limits, RefusalError, read_head
from proxy.lava import tokens
from proxy.protocol import errors, headers
from proxy.protocol.dialects import Dialect, Ending, error_event
from proxy.protocol.errors import Payment, ProxyError
from proxy.protocol.record import Record
from proxy.protocol.redaction import Secret, leaks
from proxy.protocol.usage import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.gateway.template import Prepared
    from proxy.upstream import Body, UpstreamRequest, UpstreamResponse

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

    async def open(
        self, out: UpstreamRequest, body: Body = None, content_length: int | None = None
    ) -> UpstreamResponse:
        raise AssertionError("nothing may be sent here")

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


class Daemon:
    """A configuration, and what is kept of each head that came: nothing yet."""

    def __init__(self) -> None:
        self.config = ActiveConfig(CONFIGURED, NoEngine())
        self.heads: dict[bytes, Head] = {}


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


class Unanswered:
    """An exchange with this head, which nothing is read from and nothing is written to."""

    server = ("127.0.0.1", 4000)

    def __init__(self, head: Head) -> None:
        self.head = head

    def passed_access(self) -> None: ...


def prepared(daemon: Daemon, asked: Asked) -> Prepared | str | None:
    """What leaves for one request: its head is read and admitted, its body looked through, its target prepared.

    A code where it is refused, None where it is answered here.
    """
    method, target, model, project = asked
    raw = b"%b %b HTTP/1.1\r\nHost: localhost:4000\r\nContent-Type: application/json\r\n" % (method.encode(), target)
    if project is not None:
        raw += b"x-lava-proxy-project: %b\r\n" % project
    try:
        head = daemon.heads.get(raw) or daemon.heads.setdefault(raw, read_head(raw, Limits()))
    except RefusalError as refusal:
        return refusal.code
    exchange: Any = Unanswered(head)
    unused: Any = None
    active = ActiveRequest(exchange, daemon.config, Record("", method, "", 0.0), unused, Registry(), BodyBudget())
    try:
        template = admit.admit(active)
        if template.page is not None:
            return None
        body = RequestBody(active.bodies)
        if template.endpoint.reads_body:
            body.add(json.dumps({} if model is None else {"model": model}).encode())
            body.collected = True
        asyncio.run(targets.prepare(active, template, body))
    except ProxyError as fault:
        return fault.code
    assert active.prepared is not None
    return active.prepared


def host_of(url: str) -> str:
    """What a browser takes for the host: everything up to the first slash, backslash, question mark or hash."""
    scheme, mark, rest = url.partition("://")
    assert mark
    assert scheme == "https"
    return re.split(r"[/\\?#]", rest, maxsplit=1)[0]


@examples(1200)
@given(st.tuples(METHODS, TARGETS | KNOWN, MODELS, PROJECTS))
@example(("GET", b"/v1/models/groq%2f..", None, None))
@example(("DELETE", b"/p/site/models/mine%2F%2e%2E", None, None))
@example(("POST", b"/groq/v1/chat/completions?u=https://evil.example&key=x&u%3d", None, None))
@example(("POST", b"/p/agent/v1/chat/completions?%75=https://evil.example&metadata={}&a=b", "fast", None))
def test_whatever_address_comes_one_line_leaves_for_the_providers_own_host(asked: Asked) -> None:
    """From the bytes of a head to the line for Lava: one ``u``, the configured host, the project's credential, no odd byte."""
    sent = prepared(Daemon(), asked)
    if sent is None or isinstance(sent, str):
        assert sent is None or sent in errors.TABLE
        return
    target, route = sent.outgoing.target, sent.route
    assert re.fullmatch(rb"/gate/v1/[\x21-\x7e]+", target)
    line = h11.Connection(h11.SERVER)
    line.receive_data(b"POST %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
    seen = line.next_event()
    assert isinstance(seen, h11.Request)
    assert seen.target == target

    path, _, query = target.decode("ascii").removeprefix("/gate/v1/").partition("?")
    base = route.provider.base_url
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
        assert route.project == "agent"
        assert not {"key", "u", "metadata"} & {name for name, _ in items}

    project = route.project
    credential = [value for name, value in sent.outgoing.headers if name == b"authorization"]
    own = KEYS[project].encode()
    assert len(credential) == 1
    token = credential[0].removeprefix(b"Bearer ")
    said = tokens.read_token(token.decode())
    assert token == own if project == "agent" else said["secret_key"].encode() == own
    assert [pair for pair in sent.outgoing.headers if pair[0] == b"host"] == [(b"host", b"lava.example:8443")]


@examples(150)
@given(st.lists(st.tuples(METHODS, KNOWN | TARGETS, MODELS, PROJECTS), min_size=2, max_size=8))
def test_what_is_remembered_of_one_request_never_changes_another(conversation: list[Asked]) -> None:
    """Templates, prepared requests and credentials are kept between requests: each gets what it would have got alone."""
    shared = Daemon()
    for asked in [*conversation, *conversation]:
        kept, alone = prepared(shared, asked), prepared(Daemon(), asked)
        if kept is None or alone is None or isinstance(kept, str) or isinstance(alone, str):
            assert kept == alone
        else:
            assert (kept.route, kept.response_headers) == (alone.route, alone.response_headers)
            assert (kept.outgoing.target, kept.outgoing.headers) == (alone.outgoing.target, alone.outgoing.headers)


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


@examples(500)
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


@examples(700)
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
    except ProxyError as fault:
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


@examples(400)
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
    assert (scanner.raw_usage is not None) == ("usage" in kinds)
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


@examples(500)
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


@examples(800)
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
    except RefusalError as refusal:
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


@examples(800)
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
    except RefusalError as refusal:
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
        # ``files`` are watched until they are right; nothing shows them.
        kept = {name: value for name, value in error.__dict__.items() if name != "files"}
        told = "".join(traceback.format_exception(error)) + repr(error) + repr(kept)
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


@examples(250)
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


@examples(150)
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


@examples(500)
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
