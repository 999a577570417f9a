"""Header policy in both directions, and ``x-lava-metadata``."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.errors import ProxyError
from proxy.protocol.headers import (
    AFTER_ID,
    CREDENTIALS,
    ID_PLACEHOLDER,
    Pairs,
    merge_metadata,
    read,
    to_client,
    without,
)

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authorization",
    b"proxy-authenticate",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
]
NOT_TO_LAVA = [
    *CREDENTIALS,
    b"x-lava-metadata",
    b"x-lava-fallbacks",
    b"x-lava-proxy-key",
    b"x-lava-proxy-project",
    b"x-lava-anything",
    b"cookie",
    b"host",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-anything",
    # What the gate has judged.
    b"origin",
    b"referer",
    b"sec-fetch-site",
    b"sec-fetch-mode",
    b"sec-fetch-anything",
    b"access-control-request-method",
    b"access-control-request-headers",
    b"access-control-request-private-network",
    # What a proxy in front says of the caller and the request.
    b"x-forwarded",
    b"x-forwarded-client-cert",
    b"x-forward-for",
    b"x-real-ip",
    b"x-client-ip",
    b"client-ip",
    b"x-cluster-client-ip",
    b"cf-connecting-ip",
    b"cf-connecting-ipv6",
    b"cf-pseudo-ipv4",
    b"true-client-ip",
    b"fastly-client-ip",
    b"fly-client-ip",
    b"do-connecting-ip",
    b"x-nf-client-connection-ip",
    b"x-appengine-user-ip",
    b"x-appengine-city",
    b"x-azure-clientip",
    b"x-azure-socketip",
    b"x-remote-ip",
    b"x-remote-addr",
    b"x-originating-ip",
    b"x-proxyuser-ip",
    b"wl-proxy-client-ip",
    b"x-envoy-external-address",
    b"x-envoy-original-path",
    b"x-original-url",
    b"x-original-uri",
    b"x-original-host",
    b"x-original-forwarded-for",
    b"x-rewrite-url",
    b"x-host",
    b"x-host-override",
    b"x-http-host-override",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-scheme",
    b"x-url-scheme",
    b"front-end-https",
    b"x-lava-metadata-team",
    b"x_lava_metadata",
    b"x_real_ip",
    b"content_type",
    b"a_b",
    # Framing is the engine's.
    b"content-length",
    b"expect",
]
NOT_TO_CLIENT = [
    b"set-cookie",
    b"access-control-allow-origin",
    b"access-control-anything",
    b"alt-svc",
    b"clear-site-data",
    b"strict-transport-security",
    b"refresh",
    b"link",
    # Ours to say.
    b"x-lava-proxy-error",
]
TO_LAVA = [
    b"accept",
    b"accept-encoding",
    b"anthropic-beta",
    b"anthropic-version",
    b"content-encoding",
    b"content-type",
    b"idempotency-key",
    b"openai-organization",
    b"user-agent",
    b"x-claude-code-session-id",
    b"x-goog-api-client",
    b"x-goog-upload-protocol",
    b"x-request-id",
    b"x-session-id",
    b"x-stainless-lang",
    b"anthropic-dangerous-direct-browser-access",
    b"openai-beta",
    b"openrouter-zip",
    b"x-custom",
]
TO_CLIENT = [
    b"content-encoding",
    b"content-type",
    b"etag",
    b"openai-processing-ms",
    b"request-id",
    b"retry-after",
    b"vary",
    b"www-authenticate",
    b"x-lava-request-id",
    b"x-ratelimit-remaining",
    b"x-request-id",
    b"x_odd",
]

#: An answer that has a date gets none of ours.
DATE = (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")


def relayed(pairs: Pairs, *, keep_length: bool = True) -> Pairs:
    """What the client gets of these headers."""
    onward = to_client([*pairs, DATE], keep_length=keep_length).onward
    assert onward[-1] == DATE
    return onward[:-1]


@pytest.mark.parametrize("name", HOP_BY_HOP + NOT_TO_LAVA)
def test_what_never_goes_to_lava(name: bytes) -> None:
    """Hop-by-hop headers, credentials, Lava's own, cookies, addresses, and names with an underscore."""
    assert read([(name, b"x"), (b"accept", b"y")]).onward == [(b"accept", b"y")]


@pytest.mark.parametrize("name", TO_LAVA)
def test_everything_else_goes_to_lava(name: bytes) -> None:
    """A deny-list: beta and vendor headers pass."""
    assert read([(name, b"x")]).onward == [(name, b"x")]


@pytest.mark.parametrize("name", HOP_BY_HOP + NOT_TO_CLIENT)
def test_what_never_goes_to_the_client(name: bytes) -> None:
    """Hop-by-hop headers, cookies, permissions of other sites, and what would bind a browser."""
    assert relayed([(name, b"x"), (b"etag", b"y")]) == [(b"etag", b"y")]


@pytest.mark.parametrize("name", TO_CLIENT)
def test_everything_else_goes_to_the_client(name: bytes) -> None:
    """With its value untouched."""
    assert relayed([(name, b" X ")], keep_length=False) == [(name, b" X ")]


def test_order_and_duplicates_are_kept() -> None:
    """In both directions, with nothing joined."""
    pairs = [(b"b", b"1"), (b"a", b"2"), (b"b", b"1"), (b"accept", b"x"), (b"c", b""), (b"accept", b"y")]
    assert read(pairs).onward == pairs
    assert relayed(pairs) == pairs


def test_what_came_in_is_not_changed() -> None:
    """A new list, whatever is dropped."""
    pairs = [(b"host", b"h"), (b"connection", b"x-a"), (b"x-a", b"1"), (b"authorization", b"k")]
    before = list(pairs)
    read(pairs)
    to_client(pairs, keep_length=True)
    assert pairs == before


@pytest.mark.parametrize(
    "nominations",
    [
        [b"X-Custom"],
        [b"close, x-custom"],
        [b"keep-alive,\tX-CUSTOM , foo"],
        [b"keep-alive", b"x-custom"],
        [b",,x-custom,"],
    ],
)
def test_headers_named_by_connection_are_dropped(nominations: list[bytes]) -> None:
    """In one line or several, in any case, in both directions."""
    pairs = [(b"connection", line) for line in nominations] + [(b"x-custom", b"1"), (b"x-other", b"2")]
    assert read(pairs).onward == [(b"x-other", b"2")]
    assert relayed(pairs) == [(b"x-other", b"2")]


def test_a_client_cannot_nominate_our_headers_away() -> None:
    """Ours are set after the nominated ones are gone; the gate still sees what it judges by."""
    received = read(
        [
            (b"host", b"localhost:5282"),
            (b"origin", b"https://evil.example"),
            (b"connection", b"authorization, host, origin, content-type, x-lava-metadata, anthropic-version"),
            (b"authorization", b"Bearer local"),
            (b"content-type", b"application/json"),
            (b"x-lava-metadata", b"{}"),
            (b"anthropic-version", b"2099-01-01"),
        ]
    )
    assert received.onward == []
    assert received.get(b"x-lava-metadata") is None
    assert received.get(b"anthropic-version") is None
    assert received.get(b"origin") == b"https://evil.example"
    assert received.get(b"host") == b"localhost:5282"


def test_an_upstream_cannot_nominate_the_bodys_description_away() -> None:
    """Without its type or encoding a body would be read wrongly."""
    pairs = [(b"connection", b"content-type, content-encoding, content-length"), (b"content-type", b"x")]
    pairs += [(b"content-encoding", b"gzip"), (b"content-length", b"3")]
    assert relayed(pairs) == pairs[1:]


@pytest.mark.parametrize("name", [b"host", b"origin", b"content-length", b"x-lava-proxy-key", *CREDENTIALS])
def test_a_header_that_may_stand_once_is_noticed_twice(name: bytes) -> None:
    """The first value is kept for reading, and the repetition for refusing."""
    received = read([(name, b"1"), (b"accept", b"x"), (name, b"2")])
    assert received.repeated == (name,)
    assert received.get(name) == b"1"
    assert read([(name, b"1")]).repeated == ()


@pytest.mark.parametrize("name", [b"content-encoding", b"sec-fetch-site", b"x-lava-metadata", b"connection"])
def test_a_list_in_several_lines_is_one_value(name: bytes) -> None:
    """Judged as a whole, so that no second line slips through unread."""
    assert read([(name, b"a"), (name, b"b")]).get(name) == b"a,b"


def test_the_length_travels_only_where_it_frames() -> None:
    """And once; ``server`` once too."""
    pairs = [(b"content-length", b"5"), (b"server", b"s"), (b"content-length", b"5"), (b"server", b"t")]
    assert relayed(pairs) == pairs[:2]
    assert relayed(pairs, keep_length=False) == pairs[1:2]
    assert to_client(pairs, keep_length=True).length == 5
    assert to_client(pairs, keep_length=False).length is None


def test_there_is_exactly_one_date() -> None:
    """The upstream's (its first), else ours: the server in front of us adds none."""
    assert to_client([DATE, (b"date", b"x")], keep_length=True).onward == [DATE]
    ((name, value),) = to_client([], keep_length=True).onward
    assert name == b"date"
    assert parsedate_to_datetime(value.decode()).year >= 2025
    assert len(to_client([(b"connection", b"date"), (b"a", b"b")], keep_length=True).onward) == 2


@pytest.mark.parametrize(
    ("pairs", "stream", "encoding"),
    [
        ([], False, None),
        ([(b"content-type", b"text/event-stream")], True, None),
        ([(b"content-type", b"Text/Event-Stream; charset=utf-8")], True, None),
        ([(b"content-type", b"application/json")], False, None),
        ([(b"content-encoding", b"identity"), (b"content-encoding", b" ")], False, None),
        ([(b"content-encoding", b"gzip")], False, b"gzip"),
        ([(b"content-encoding", b"gzip"), (b"content-encoding", b"br")], False, b"gzip,br"),
    ],
)
def test_what_the_forwarder_asks_of_an_answer(pairs: Pairs, stream: bool, encoding: bytes | None) -> None:
    """Whether it is an event stream, whether it is encoded, and Lava's request id; all of it travels on as well."""
    answered = to_client([*pairs, (b"x-lava-request-id", b"req_1"), DATE], keep_length=True)
    assert (answered.event_stream, answered.encoding, answered.lava_request_id) == (stream, encoding, b"req_1")
    assert answered.onward == [*pairs, (b"x-lava-request-id", b"req_1"), DATE]


@pytest.mark.parametrize(
    ("types", "inert"),
    [
        ([], None),
        ([b"application/json"], True),
        ([b"Application/JSON; charset=utf-8"], True),
        ([b"application/problem+json"], True),
        ([b"application/x-ndjson"], True),
        ([b"application/octet-stream"], True),
        ([b"text/event-stream"], True),
        ([b"text/plain; charset=utf-8"], True),
        ([b"audio/mpeg"], True),
        ([b"video/mp4"], True),
        ([b"image/png"], True),
        ([b""], False),
        ([b"*/*"], False),
        ([b"unknown/unknown"], False),
        ([b"html"], False),
        ([b"text/html"], False),
        ([b"TEXT/HTML;charset=utf-8"], False),
        ([b"text/html, application/json"], False),
        ([b"application/json, text/html"], False),
        ([b"application/json;a=b,text/html"], False),
        ([b"application/json", b"text/html"], False),
        ([b"text/html", b"application/json"], False),
        ([b"application/xhtml+xml"], False),
        ([b"application/xml"], False),
        ([b"text/xml"], False),
        ([b"text/xsl"], False),
        ([b"image/svg+xml"], False),
        ([b"Image/SVG"], False),
        ([b"audio/x+xml"], False),
        ([b"application/rss+xml"], False),
        ([b"application/pdf"], False),
        ([b"multipart/x-mixed-replace; boundary=a"], False),
        ([b"multipart/related"], False),
        ([b"message/rfc822"], False),
        ([b"application/jsonp"], False),
        ([b"text/javascript"], False),
    ],
)
def test_what_a_browser_might_run(types: list[bytes], inert: bool | None) -> None:
    """Everything that is not known to be data, and what has several types, of which browsers take the last."""
    assert to_client([(b"content-type", each) for each in types], keep_length=True).inert is inert


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], None),
        ([(b"x-character-count", b"12")], 12),
        ([(b"character-cost", b"6")], 6),
        ([(b"x-character-count", b"12"), (b"character-cost", b"6")], 12),
        ([(b"character-cost", b"6"), (b"x-character-count", b"12")], 12),
        ([(b"x-character-count", b"0")], 0),
        ([(b"x-character-count", b"-1")], None),
        ([(b"x-character-count", b"1.5"), (b"character-cost", b"")], None),
        ([(b"x-character-count", b"9" * 16)], None),
    ],
)
def test_spoken_characters_are_counted(pairs: Pairs, expected: int | None) -> None:
    """ElevenLabs counts in headers (elevenlabs.io/docs/api-reference, "Tracking generation costs"), which are relayed, too."""
    answered = to_client([*pairs, DATE], keep_length=True)
    assert answered.characters == expected
    assert answered.onward == [*pairs, DATE]


def test_without_leaves_the_rest() -> None:
    """These names gone, all their lines, in a new list."""
    pairs = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert without(pairs, b"a") == [(b"b", b"2")]
    assert without(pairs, b"a", b"b") == []
    assert len(pairs) == 3


NAMES = st.sampled_from([*HOP_BY_HOP, *NOT_TO_LAVA, *TO_LAVA, *TO_CLIENT, *NOT_TO_CLIENT])
VALUES = st.sampled_from([b"", b"x", b"close", b"x-custom, accept", b"authorization", b"gzip"])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_policy_is_a_filter(pairs: list[tuple[bytes, bytes]]) -> None:
    """What goes out is a subsequence of what came in, without anything from the deny-lists or named by Connection."""
    nominated = {token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}
    kept = [pair for pair in pairs if pair[0] in {*TO_LAVA, *TO_CLIENT, *NOT_TO_CLIENT} and pair[0] not in nominated]
    kept = [pair for pair in kept if b"_" not in pair[0] and not pair[0].startswith(b"x-lava-")]
    assert read(pairs).onward == kept


# --- x-lava-metadata -------------------------------------------------------------------------------------------------


def test_the_clients_pairs_and_the_projects() -> None:
    """Merged, and the project's win."""
    merged = merge_metadata(b'{"team":"client","user":"u 1"}', [], {"team": "web", "site": "x"})
    assert merged is not None
    assert json.loads(merged) == {"team": "web", "user": "u 1", "site": "x"}


def single(*pairs: tuple[bytes, bytes]) -> Pairs:
    """What ``read`` makes of these ``x-lava-metadata-<key>``."""
    received = read([(b"x-lava-metadata-" + key, value) for key, value in pairs])
    assert not received.onward
    return received.metadata


def test_single_pairs_are_the_clients_too() -> None:
    """Beside the JSON object, before it where both name a key, and under the project's."""
    pairs = single((b"team", b"single"), (b"user", b"u 2"), (b"user_id", "é".encode()))
    merged = merge_metadata(b'{"user":"u 1","more":"x"}', pairs, {"team": "web"})
    assert merged is not None
    assert json.loads(merged) == {"team": "web", "user": "u 2", "more": "x", "user_id": "é"}
    assert merge_metadata(None, single((b"a", b"b")), {}) == b'{"a":"b"}'


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"", b"v")],
        [(b"a", b"")],
        [(b"a-b", b"v")],
        [(b"a.b", b"v")],
        [(b"k" * 256, b"v")],
        [(b"a", b"v" * 256)],
        [(b"a", b"\xff")],
        [(b"a", b"1"), (b"a", b"2")],
        [(b"a%d" % number, b"v") for number in range(101)],
    ],
    ids=lambda pairs: repr(pairs[0])[:24],
)
def test_malformed_single_pairs_are_refused(pairs: Pairs) -> None:
    """By the same rules, and one that stands twice says two things."""
    for project in ({}, {"a": "web"}):
        with pytest.raises(ProxyError) as caught:
            merge_metadata(None, single(*pairs), project)
        assert (caught.value.code, caught.value.status) == ("bad_request", 400)
        assert "x-lava-metadata" in caught.value.message


def test_single_pairs_can_be_nominated_away() -> None:
    """By the client that sent them, as any header of its own."""
    pairs = [(b"connection", b"X-Lava-Metadata-A"), (b"x-lava-metadata-a", b"1"), (b"x-lava-metadata-b", b"2")]
    assert read(pairs).metadata == [(b"b", b"2")]


def test_the_id_is_the_last_pair_where_there_is_room() -> None:
    """A client cannot set it; the project can, and then it is the project's."""
    end = b'"lava_proxy_id":"' + ID_PLACEHOLDER.encode() + AFTER_ID
    assert merge_metadata(None, [], {}, correlate=True) == b"{" + end
    forged = b'{"lava_proxy_id":"req_1","a":"b"}'
    assert merge_metadata(forged, [], {"c": "d"}, correlate=True) == b'{"a":"b","c":"d",' + end
    assert merge_metadata(forged, [], {"lava_proxy_id": "x"}, correlate=True) == b'{"lava_proxy_id":"x","a":"b"}'
    full = json.dumps({f"k{number}": "v" for number in range(100)}, separators=(",", ":")).encode()
    assert merge_metadata(full, [], {}, correlate=True) == full


def test_no_pairs_no_header() -> None:
    """Nothing is sent where neither side says something."""
    assert merge_metadata(None, [], {}) is None
    assert merge_metadata(b"{}", [], {}) is None
    assert merge_metadata(None, [], {"team": "web"}) == b'{"team":"web"}'


def test_a_header_is_ascii() -> None:
    """Other characters are escaped on their way out, however they came."""
    for came in ('{"k":"é鍵🔑"}'.encode(), b'{"k":"\\u00e9\\u9375\\ud83d\\udd11"}'):
        sent = merge_metadata(came, [], {"p": "ü"})
        assert sent is not None
        assert sent.isascii()
        assert json.loads(sent) == {"k": "é鍵🔑", "p": "ü"}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"team=web",
        b"{",
        b"[]",
        b'["a"]',
        b"null",
        b'"text"',
        b"5",
        b'{"a":1}',
        b'{"a":null}',
        b'{"a":true}',
        b'{"a":["b"]}',
        b'{"a":{"b":"c"}}',
        b'{"a":""}',
        b'{"":"b"}',
        b'{"a b":"c"}',
        b'{"a-b":"c"}',
        '{"é":"c"}'.encode(),
        b'{"a\\n":"c"}',
        b'{"' + b"k" * 256 + b'":"v"}',
        b'{"k":"' + b"v" * 256 + b'"}',
        json.dumps({f"k{number}": "v" for number in range(101)}).encode(),
        b'{"a":"\xff"}',
        b'{"a":"b"},{"c":"d"}',
        b"[" * 50_000,
        b"1" * 6000,
    ],
    ids=lambda value: repr(value[:24]),
)
def test_malformed_metadata_is_refused(value: bytes) -> None:
    """400 ``bad_request`` that names the header, with or without pairs of the project."""
    for project in ({}, {"team": "web"}):
        with pytest.raises(ProxyError) as caught:
            merge_metadata(value, [], project)
        assert (caught.value.code, caught.value.status) == ("bad_request", 400)
        assert "x-lava-metadata" in caught.value.message


def test_the_limits_themselves_are_allowed() -> None:
    """100 pairs, 255 characters on either side; together with the project's never more than 100."""
    pairs = {f"{number:0255d}": "é" * 255 for number in range(100)}
    value = json.dumps(pairs).encode()
    assert merge_metadata(value, [], {}) is not None
    assert merge_metadata(value, [], {f"{5:0255d}": "replaced"}) is not None
    with pytest.raises(ProxyError, match="100 pairs"):
        merge_metadata(value, [], {"one_more": "x"})


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=80), st.booleans())
def test_metadata_is_refused_or_sound(value: bytes, project: bool) -> None:
    """Whatever a client sends: 400, or a JSON object of strings in ASCII."""
    try:
        sent = merge_metadata(value, [], {"team": "web"} if project else {})
    except ProxyError as fault:
        assert fault.code == "bad_request"  # noqa: PT017  (either is right)
    else:
        assert sent is None or (sent.isascii() and all(isinstance(each, str) for each in json.loads(sent).values()))
