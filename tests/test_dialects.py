"""The client dialects: which one an address speaks, which end its stream owes, how a broken stream is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol import dialects
from proxy.protocol.dialects import Dialect, Ending, compact, ending_of, error_event, of_headers, of_path
from proxy.protocol.providers import ALIASES, BUILTIN

PROVIDERS = {name.encode(): provider for name, provider in BUILTIN.items()}
PROVIDERS |= {alias.encode(): BUILTIN[name] for alias, name in ALIASES.items()}

OPENAI, ANTHROPIC, GOOGLE = Dialect.OPENAI, Dialect.ANTHROPIC, Dialect.GOOGLE


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/v1/chat/completions", OPENAI),
        (b"//v1//chat/completions/", OPENAI),
        (b"/v1/v1/chat/completions", OPENAI),
        (b"/chat/completions", OPENAI),
        (b"/v1/anything", None),
        (b"/v1/files", None),
        (b"/v1/v1/skills/s_1", None),
        (b"/files", None),
        (b"/v1/realtime/sessions", OPENAI),
        (b"/v1/chat", None),
        (b"/deepseek/anthropic/v1/messages", ANTHROPIC),
        (b"/deepseek/anthropic/v1/models", ANTHROPIC),
        (b"/deepseek/beta/completions", OPENAI),
        (b"/cohere/v2/chat", OPENAI),
        (b"/v1beta/v1beta/files", GOOGLE),
        (b"/v1beta/upload/v1beta/files", GOOGLE),
        (b"/v1/v1beta/models/x:generateContent", GOOGLE),
        (b"/v1beta/v1/files", GOOGLE),
        (b"/upload", None),
        (b"/v1beta/chat/completions", OPENAI),
        (b"/v1/messages", ANTHROPIC),
        (b"/v1/messages/count_tokens", ANTHROPIC),
        (b"/v1/v1/messages", ANTHROPIC),
        (b"/p/website/v1/messages", ANTHROPIC),
        (b"/p/website/v1/responses", OPENAI),
        (b"/anthropic/v1/messages", ANTHROPIC),
        (b"/anthropic/v1/anything", ANTHROPIC),
        (b"/anthropic", ANTHROPIC),
        (b"/p/website/anthropic/v1/complete", ANTHROPIC),
        (b"/groq/v1/messages", ANTHROPIC),
        (b"/groq/messages", ANTHROPIC),
        (b"/groq/openai/v1/messages", ANTHROPIC),
        (b"/novita/v3/openai/messages", ANTHROPIC),
        (b"/openai/v1/threads/x/messages", OPENAI),
        (b"/openai/threads/x/messages", OPENAI),
        (b"/groq/v1/chat/completions", OPENAI),
        (b"/elevenlabs/v1/voices", OPENAI),
        (b"/google/v1beta/models/x:generateContent", GOOGLE),
        (b"/google/v1beta/openai/chat/completions", OPENAI),
        (b"/googleOpenaiCompatible/chat/completions", OPENAI),
        (b"/google-openai/chat/completions", OPENAI),
        (b"/v1beta/models/x:streamGenerateContent", GOOGLE),
        (b"/v1beta/openai/chat/completions", OPENAI),
        (b"/v1alpha/models", GOOGLE),
        (b"/upload/v1beta/files", GOOGLE),
        (b"/v1/models/gemini-pro:generateContent", GOOGLE),
        (b"/v1/models/ft:gpt-4o:acme::x", None),
        (b"/v1/models", None),
        (b"/v1/models/gpt-4o", None),
        (b"/models", None),
        (b"/", None),
        (b"", None),
        (b"/v1", None),
        (b"/p", None),
        (b"/p/website", None),
        (b"/nobody/v1/chat", None),
        (b"/messages", ANTHROPIC),
        (b"/p/website/messages/count_tokens", ANTHROPIC),
    ],
)
def test_the_dialect_of_an_address(path: bytes, dialect: Dialect | None) -> None:
    """Anthropic's for messages and Anthropic's provider, Google's for Google's, OpenAI's for what is known beside these."""
    assert of_path(path, PROVIDERS) is dialect


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_any_bytes_have_a_dialect_or_none(path: bytes) -> None:
    """The gate asks before anything is known to be well formed: nothing is raised."""
    assert of_path(path, PROVIDERS) in (None, OPENAI, ANTHROPIC, GOOGLE)
    assert isinstance(ending_of(path), Ending)


@pytest.mark.parametrize(
    ("names", "dialect"),
    [
        ([b"anthropic-version"], ANTHROPIC),
        ([b"x-goog-api-key"], GOOGLE),
        ([b"x-goog-api-key", b"anthropic-version"], ANTHROPIC),
        ([b"x-goog-api-client"], GOOGLE),
        ([b"x-goog-api-client", b"x-api-key"], GOOGLE),
        ([b"x-api-key"], ANTHROPIC),
        ([b"x-api-key", b"authorization"], OPENAI),
        ([b"x-api-key", b"authorization", b"anthropic-version"], ANTHROPIC),
        ([b"api-key"], OPENAI),
        ([b"authorization"], OPENAI),
        ([], OPENAI),
    ],
)
def test_the_dialect_of_an_unknown_address_is_told_by_headers(names: list[bytes], dialect: Dialect) -> None:
    """Each SDK's own header decides, then the one that a key came in; otherwise it is OpenAI's."""
    assert of_headers(dict.fromkeys(names, b"x")) is dialect


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        (b"/v1/chat/completions", Ending.CHAT),
        (b"chat/completions/", Ending.CHAT),
        (b"/openai/v1/completions", Ending.CHAT),
        (b"v1/responses", Ending.RESPONSES),
        (b"/v1/messages", Ending.MESSAGES),
        (b"v1beta/models/gemini-pro:streamGenerateContent", Ending.GOOGLE),
        (b"v1beta/models/gemini-pro:generateContent", Ending.GOOGLE),
        (b"v1beta/models/gemini-pro:countTokens", Ending.UNKNOWN),
        (b"v1/messages/count_tokens", Ending.UNKNOWN),
        (b"v1/responses/resp_123", Ending.RESPONSES),
        (b"v1/responses/resp_123/", Ending.RESPONSES),
        (b"v1/responses/resp_123/input_items", Ending.UNKNOWN),
        (b"v1/images/generations", Ending.IMAGES),
        (b"v1/images/edits", Ending.IMAGES),
        (b"v1/images/variations", Ending.UNKNOWN),
        (b"v1/audio/transcriptions", Ending.TRANSCRIPT),
        (b"openai//audio//transcriptions//", Ending.TRANSCRIPT),
        (b"v1/audio/speech", Ending.SPEECH),
        (b"v1/speech", Ending.UNKNOWN),
        (b"", Ending.UNKNOWN),
    ],
)
def test_the_end_marker_that_a_stream_owes(path: bytes, ending: Ending) -> None:
    """Each endpoint with a known end marker, and nothing claimed of the others."""
    assert ending_of(path) is ending


OPENAI_BODY = {"error": {"message": "broke", "type": "api_error", "param": None, "code": "upstream_closed"}}
ANTHROPIC_BODY = {"type": "error", "error": {"type": "api_error", "message": "broke"}, "request_id": "r"}
GOOGLE_BODY = {"error": {"code": 502, "message": "broke", "status": "UNAVAILABLE"}}


def test_a_chat_client_is_told_in_a_data_line() -> None:
    """openai-python raises on a truthy ``error`` in a ``data:`` line."""
    event = error_event(OPENAI, Ending.CHAT, OPENAI_BODY)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event[6:]) == OPENAI_BODY


def test_a_responses_client_is_told_by_an_error_event() -> None:
    """The event has the members of OpenAI's own ``error`` event, and ``error`` for the SDK to raise on."""
    event = error_event(OPENAI, Ending.RESPONSES, OPENAI_BODY)
    name, data, *rest = event.split(b"\n")
    assert name == b"event: error"
    assert rest == [b"", b""]
    told = json.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["code"], told["message"]) == ("error", "upstream_closed", "broke")
    assert told["error"] == OPENAI_BODY["error"]


def test_an_anthropic_client_is_told_by_an_error_event() -> None:
    """anthropic raises on ``event: error``."""
    event = error_event(ANTHROPIC, Ending.MESSAGES, ANTHROPIC_BODY)
    assert event.startswith(b"event: error\ndata: {")
    assert json.loads(event.split(b"data: ")[1]) == ANTHROPIC_BODY


def test_a_google_client_is_told_by_a_chunk_that_starts_with_error() -> None:
    """google-genai raises on a chunk that *starts* with ``{"error":``."""
    assert error_event(GOOGLE, Ending.GOOGLE, GOOGLE_BODY).startswith(b'data: {"error":{')


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(exclude_categories=[])))
def test_whatever_is_said_fits_into_one_event(message: str) -> None:
    """A message with line ends, or with half a surrogate pair, does not end the event early and is sound UTF-8."""
    body = {"error": {"code": 502, "message": message, "status": "UNAVAILABLE"}}
    event = error_event(GOOGLE, Ending.GOOGLE, body)
    assert event.count(b"\n") == 2
    assert b"\r" not in event
    assert json.loads(event[6:].decode("utf-8")) == body
    assert json.loads(compact(message)) == message


def test_openai_words_are_reserved() -> None:
    """A provider of the user's own may not take the first word of an endpoint, or its address would be lost."""
    from proxy.config.rules import RESERVED

    assert {word.decode() for word in dialects.OPENAI_WORDS | dialects.GOOGLE_VERSIONS | {b"messages"}} < RESERVED
