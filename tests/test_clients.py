"""The official SDKs, unmodified, through a real daemon to the emulator: what works, and what they raise.

Nobody here patches a client: each gets a base URL and a key, as a user would give it. The tables count calls at the
emulator, because the worst fault of a gateway is a request that is silently paid twice.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as google_errors
from pydantic import BaseModel, Field
from rawclient import ask
from served import Served

from proxy.lava.tokens import mint_token

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import NodeSDK
    from daemons import Daemon, StartDaemon
    from served import Server

    from proxy.emulator import Emulator

LOCAL_KEY = "local-" + "k" * 20
WEBSITE_KEY = "website-" + "k" * 20
OWN_KEY = "own-provider-" + "k" * 20

CONFIG = """
default_project = "main"

[server]
keys = ["env:LOCAL_KEY"]

[lava]
secret_key = "env:SECRET"
base_url = "{base_url}"

[projects.main]

[projects.website]
connection_id = "conn_demo"
meter = "website-chat"
keys = ["env:WEBSITE_KEY"]

[projects.customer]
customer_id = "conn_demo"
meter = "website-chat"
disable_billing = true

[projects.internal]
meter = "internal"

[projects.empty]
connection_id = "conn_empty"
meter = "website-chat"

[projects.unknown]
connection_id = "conn_nobody"
meter = "website-chat"

[projects.typo]
connection_id = "conn_demo"
meter = "websit-chat"

[projects.revoked]
secret_key = "env:REVOKED"

[projects.lab.byok]
openai = "env:OWN_KEY"
anthropic = "env:OWN_KEY"

[projects.rejected.byok]
openai = "env:REJECTED"

[projects.unfunded.byok]
openai = "env:UNFUNDED"

[projects.tool]
byok = "client"

[projects.agent]
spend_key = "env:SPEND"

[projects.claude-agent]
spend_key = "env:SPEND_ANTHROPIC"

[projects.spent]
spend_key = "env:SPENT"

[projects.ready]
forward_token = "env:TOKEN"

[models]
fast = "groq/llama-3.1-8b-instant"
claude = "anthropic/claude-opus-4-6"
whisper = "groq/whisper-large-v3"
"gemma-*" = "google"
"""


@dataclass
class Stand:
    """A daemon in front of an emulator."""

    emulator: Emulator
    daemon: Daemon

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def world(self) -> Any:
        return self.emulator.world

    @property
    def paid(self) -> list[Any]:
        """What the emulator got of requests that cost money: not the questions about a refused one."""
        return [each for each in self.world.received if each.method == "POST"]

    def openai(self, project: str | None = None, key: str = LOCAL_KEY, **options: Any) -> openai.OpenAI:
        base = f"{self.url}/p/{project}/v1" if project else f"{self.url}/v1"
        return openai.OpenAI(base_url=base, api_key=key, **options)

    def anthropic(self, project: str | None = None, key: str = LOCAL_KEY, **options: Any) -> anthropic.Anthropic:
        base = f"{self.url}/p/{project}" if project else self.url
        return anthropic.Anthropic(base_url=base, api_key=key, **options)

    def google(self, project: str | None = None, key: str = LOCAL_KEY) -> genai.Client:
        base = f"{self.url}/p/{project}" if project else self.url
        return genai.Client(api_key=key, http_options=genai.types.HttpOptions(base_url=base))


@pytest.fixture
def stand(emulator: Emulator, daemon: StartDaemon) -> Stand:
    """One daemon, every kind of project."""
    world = emulator.world
    revoked = "aks_live_" + "r" * 20
    env = {
        "LOCAL_KEY": LOCAL_KEY,
        "WEBSITE_KEY": WEBSITE_KEY,
        "SECRET": world.secret_key,
        "REVOKED": revoked,
        "OWN_KEY": OWN_KEY,
        "REJECTED": next(iter(world.keys.rejected_provider_keys)),
        "UNFUNDED": next(iter(world.keys.unfunded_provider_keys)),
        "SPEND": world.keys.spend_keys["openai"],
        "SPEND_ANTHROPIC": world.keys.spend_keys["anthropic"],
        "SPENT": world.keys.spend_keys["exhausted"],
        "TOKEN": mint_token(world.secret_key, customer_id="conn_demo", meter_slug="demo-chat"),
    }
    running = daemon(CONFIG.replace("{base_url}", emulator.base_url), env=env, secrets=env.values())
    return Stand(emulator, running)


def say(text: str = "hello") -> list[Any]:
    return [{"role": "user", "content": text}]


# --- what works ------------------------------------------------------------------------------------------------------


def test_openai_chat_plain_and_streaming(stand: Stand) -> None:
    """The base URL is all that changes: chat completions answer, and stream, with usage."""
    with stand.openai() as client:
        plain = client.chat.completions.create(model="gpt-4o", messages=say())
        assert plain.choices[0].message.content == "You said: hello"
        assert plain.usage is not None
        stream = client.chat.completions.create(
            model="gpt-4o", messages=say(), stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "You said: hello"
        assert chunks[-1].usage is not None


def test_openai_responses_plain_and_streaming(stand: Stand) -> None:
    """The Responses API, which Codex speaks, works the same."""
    with stand.openai() as client:
        assert client.responses.create(model="gpt-5", input="hello").output_text == "You said: hello"
        events = list(client.responses.create(model="gpt-5", input="hello", stream=True))
        assert events[-1].type == "response.completed"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == "You said: hello"


def test_openai_other_endpoints(stand: Stand) -> None:
    """Embeddings, images, speech, transcription (multipart), moderation, files and the list of models."""
    with stand.openai() as client:
        assert len(client.embeddings.create(model="text-embedding-3-small", input="hello").data) == 1
        assert client.images.generate(model="gpt-image-1", prompt="a cat").data
        assert client.audio.speech.create(model="tts-1", voice="alloy", input="hello").read()
        said = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", io.BytesIO(b"RIFF" * 100)))
        assert said.text
        assert client.moderations.create(model="omni-moderation-latest", input="hello").results
        stored = client.files.create(file=("a.jsonl", io.BytesIO(b"{}\n")), purpose="batch")
        assert client.files.retrieve(stored.id).id == stored.id
        names = [model.id for model in client.models.list()]
        assert names[:3] == ["fast", "claude", "whisper"]
        assert "gpt-5" in names


def test_an_alias_in_a_multipart_form_is_replaced(stand: Stand) -> None:
    """A transcription asked of an alias reaches its provider under the real name, the file untouched."""
    content = bytes(range(256)) * 200
    with stand.openai() as client:
        client.audio.transcriptions.create(model="whisper", file=("a.wav", io.BytesIO(content)))
    received = stand.world.received[-1]
    assert "api.groq.com" in received.url
    assert b"whisper-large-v3" in received.body
    assert content in received.body


def test_anthropic_messages_plain_and_streaming(stand: Stand) -> None:
    """Anthropic's SDK with the bare base URL: messages, streams, token counts and models."""
    with stand.anthropic() as client:
        plain = client.messages.create(model="claude-opus-4-6", max_tokens=50, messages=say())
        assert plain.content[0].text == "You said: hello"  # type: ignore[union-attr]
        with client.messages.stream(model="claude-opus-4-6", max_tokens=50, messages=say()) as stream:
            assert "".join(stream.text_stream) == "You said: hello"
            assert stream.get_final_message().usage.output_tokens > 0
        assert client.messages.count_tokens(model="claude-opus-4-6", messages=say()).input_tokens > 0
        assert [model.id for model in client.models.list()][:2] == ["fast", "claude"]


@pytest.mark.parametrize("server", ["httptools", "h11", "uvicorn-strict"])
def test_openai_and_anthropic_on_stock_uvicorn(tmp_path: Path, emulator: Emulator, server: Server) -> None:
    """An unmodified uvicorn.Server runs the application, with its own parsers and with ours: the SDKs see no difference."""
    lava: Any = SimpleNamespace(url=emulator.base_url, port=0)
    with Served(tmp_path, lava, server=server, key=emulator.world.secret_key) as served:
        url = f"http://127.0.0.1:{served.port}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key=LOCAL_KEY, max_retries=0) as client:
            plain = client.chat.completions.create(model="gpt-4o", messages=say())
            assert plain.choices[0].message.content == "You said: hello"
            pieces = list(client.chat.completions.create(model="gpt-4o", messages=say(), stream=True))
            assert "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == "You said: hello"
            with pytest.raises(openai.NotFoundError):
                client.post("/nothing", cast_to=object)
        with anthropic.Anthropic(base_url=url, api_key=LOCAL_KEY, max_retries=0) as other:
            message = other.messages.create(model="claude-opus-4-6", max_tokens=9, messages=say())
            assert message.content[0].text == "You said: hello"  # type: ignore[union-attr]
            with other.messages.stream(model="claude-opus-4-6", max_tokens=9, messages=say()) as stream:
                assert stream.get_final_text() == "You said: hello"
        assert [line["outcome"] for line in served.told(5)] == ["ok", "ok", "provider_error", "ok", "ok"]


def test_google_plain_and_streaming(stand: Stand) -> None:
    """Google's SDK with the bare base URL: its key becomes the local key and goes no further."""
    with stand.google() as client:
        assert client.models.generate_content(model="gemini-2.5-flash", contents="hello").text == "You said: hello"
        stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
        assert "".join(chunk.text or "" for chunk in stream) == "You said: hello"
    for received in stand.world.received:
        assert received.header("x-goog-api-key") is None


ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
CALL = 'call add {"a": 20, "b": 22}'
NAMED = {"name": "add", "description": "Add two numbers."}


class Person(BaseModel):
    """What a structured answer is read into."""

    name: str
    age: int = Field(ge=1)
    tags: list[str] = Field(min_length=2)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_of_every_sdk(stand: Stand, stream: bool) -> None:
    """A tool is called with its arguments whole, plain and streamed, and the usage of such an answer is logged."""
    with stand.openai() as client:
        functions: Any = [{"type": "function", "function": {**NAMED, "parameters": ADD}}]
        with client.chat.completions.stream(model="gpt-4o", messages=say(CALL), tools=functions) as chat:
            final: Any = chat.get_final_completion()
        if not stream:
            final = client.chat.completions.create(model="gpt-4o", messages=say(CALL), tools=functions)
        called: Any = final.choices[0].message.tool_calls
        assert final.choices[0].finish_reason == "tool_calls"
        assert (called[0].function.name, json.loads(called[0].function.arguments)) == ("add", {"a": 20, "b": 22})

        flat: Any = [{"type": "function", **NAMED, "parameters": ADD, "strict": False}]
        if stream:
            with client.responses.stream(model="gpt-5", input=CALL, tools=flat) as events:
                response: Any = events.get_final_response()
        else:
            response = client.responses.create(model="gpt-5", input=CALL, tools=flat)
        assert json.loads(response.output[0].arguments) == {"a": 20, "b": 22}
    with stand.anthropic() as claude:
        tools: Any = [{**NAMED, "input_schema": ADD}]
        asked: Any = {"model": "claude-opus-4-6", "max_tokens": 50, "messages": say(CALL), "tools": tools}
        if stream:
            with claude.messages.stream(**asked) as message:
                block: Any = message.get_final_message().content[0]
        else:
            block = claude.messages.create(**asked).content[0]
        assert (block.name, block.input) == ("add", {"a": 20, "b": 22})
    with stand.google() as google:
        config = genai.types.GenerateContentConfig(
            tools=[genai.types.Tool(function_declarations=[{**NAMED, "parameters_json_schema": ADD}])]  # type: ignore[list-item]
        )
        generate = google.models.generate_content_stream if stream else google.models.generate_content
        came: Any = generate(model="gemini-2.5-flash", contents=CALL, config=config)
        answers = list(came) if stream else [came]
        (call,) = [call for answer in answers for call in answer.function_calls or ()]
        assert (call.name, call.args) == ("add", {"a": 20, "b": 22})


def test_structured_answers_of_every_sdk(stand: Stand) -> None:
    """What asks for JSON after a schema, or forces a tool (as libraries for structured answers do), gets what fits."""
    with stand.openai() as client:
        chat = client.chat.completions.parse(model="gpt-4o", messages=say("Bob"), response_format=Person)
        assert chat.choices[0].message.parsed == Person(name="You said: Bob", age=1, tags=["You said: Bob"] * 2)
        response = client.responses.parse(model="gpt-5", input="Bob", text_format=Person)
        assert response.output_parsed == chat.choices[0].message.parsed
        forced: Any = {
            "tools": [{"type": "function", "function": {**NAMED, "parameters": ADD}}],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        }
        called: Any = client.chat.completions.create(model="gpt-4o", messages=say("Bob"), **forced)
        assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"a": 1, "b": 1}
    with stand.anthropic() as claude:
        asked: Any = {
            "model": "claude-opus-4-6",
            "max_tokens": 50,
            "messages": say("Bob"),
            "tools": [{**NAMED, "input_schema": ADD}],
            "tool_choice": {"type": "any"},
        }
        block: Any = claude.messages.create(**asked).content[0]
        assert (block.type, block.input) == ("tool_use", {"a": 1, "b": 1})
    with stand.google() as google:
        config = genai.types.GenerateContentConfig(response_mime_type="application/json", response_schema=Person)
        found = google.models.generate_content(model="gemini-2.5-flash", contents="Bob", config=config)
        assert found.parsed == Person(name="You said: Bob", age=1, tags=["You said: Bob"] * 2)


def test_aliases_patterns_and_prefixes_find_their_provider(stand: Stand) -> None:
    """The model's name decides: an alias, provider/model, a pattern of the configuration, a built-in pattern."""
    with stand.openai() as client:
        for model, host, sent in (
            ("fast", "api.groq.com", "llama-3.1-8b-instant"),
            ("mistral/mistral-small", "api.mistral.ai", "mistral-small"),
            ("gemma-3-27b", "generativelanguage.googleapis.com/v1beta/openai", "gemma-3-27b"),
            ("deepseek-chat", "api.deepseek.com", "deepseek-chat"),
        ):
            client.chat.completions.create(model=model, messages=say())
            received = stand.world.received[-1]
            assert host in received.url
            assert json.loads(received.body)["model"] == sent


def test_dialects_cross_by_lavas_translation(stand: Stand) -> None:
    """An OpenAI client asks for Claude, an Anthropic client for GPT: Lava's rewrite address is used, and answers."""
    with stand.openai() as client:
        plain = client.chat.completions.create(model="claude", messages=say())
        assert plain.choices[0].message.content == "You said: hello"
        stream = client.chat.completions.create(model="claude-opus-4-6", messages=say(), stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "You said: hello"
    assert stand.world.received[-1].path == "/v1/rewrite/openai/https://api.anthropic.com/v1/messages"
    with stand.anthropic() as other:
        answer = other.messages.create(model="gpt-4o", max_tokens=50, messages=say())
        assert answer.content[0].text == "You said: hello"  # type: ignore[union-attr]
    assert stand.world.received[-1].path == "/v1/rewrite/anthropic/https://api.openai.com/v1/chat/completions"


def test_every_kind_of_project_sends_its_own_credential(stand: Stand) -> None:
    """The token on the wire is the SDK's own for each kind of project, and the right one pays."""
    world = stand.world
    key = world.secret_key
    expected: dict[str, tuple[str, str]] = {
        "main": (mint_token(key), "merchant"),
        "website": (mint_token(key, connection_id="conn_demo", meter_slug="website-chat"), "customer"),
        "customer": (
            mint_token(key, customer_id="conn_demo", meter_slug="website-chat", disable_billing=True),
            "merchant",
        ),
        "internal": (mint_token(key, meter_slug="internal"), "merchant"),
        "lab": (mint_token(key, connection_id=None, meter_slug=None, provider_key=OWN_KEY), "provider_account"),
        "ready": (mint_token(key, customer_id="conn_demo", meter_slug="demo-chat"), "customer"),
        "agent": (world.keys.spend_keys["openai"], "spend_key"),
    }
    for project, (token, _) in expected.items():
        with stand.openai(project) as client:
            client.chat.completions.create(model="gpt-4o", messages=say())
        received = world.received[-1]
        assert received.header_values("authorization") == [f"Bearer {token}"], project
        assert received.header("x-api-key") is None
    assert world.received[-1].path == "/v1/chat/completions"  # a spend key goes to Lava's own endpoint


def test_the_tools_own_key_is_used_only_where_the_project_says_so(stand: Stand) -> None:
    """byok = "client": the provider key travels inside the token; the local key, in its own header, never does."""
    own = "tool-own-" + "k" * 20
    with stand.openai("tool", key=own, default_headers={"x-lava-proxy-key": LOCAL_KEY}) as client:
        client.chat.completions.create(model="gpt-4o", messages=say())
    received = stand.world.received[-1]
    assert received.token["provider_key"] == own
    assert received.header("x-lava-proxy-key") is None
    with stand.openai("tool") as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=say())
    assert caught.value.code == "byok_key_missing"


def test_a_key_selects_its_project_and_no_other(stand: Stand) -> None:
    """A key bound to a project selects it without a prefix, and is refused on another's address, known or not."""
    with stand.openai(key=WEBSITE_KEY) as client:
        client.chat.completions.create(model="gpt-4o", messages=say())
    assert stand.world.received[-1].token["connection_id"] == "conn_demo"
    before = len(stand.world.received)
    for project in ("main", "nothing-like-it"):
        with stand.openai(project, key=WEBSITE_KEY) as client, pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="gpt-4o", messages=say())
        assert caught.value.code == "project_not_allowed"
    assert len(stand.world.received) == before


# --- what they raise -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request that must fail: project, model, what OpenAI's SDK raises, our code (``None``: passed untouched)."""

    project: str
    model: str
    raises: type[openai.APIError]
    status: int
    code: str | None
    calls: int
    """Requests that reach Lava: 1 where retrying would cost money, more where the provider's own error may be retried."""


CASES: dict[str, Case] = {
    "Lava rejects the key": Case("revoked", "gpt-4o", openai.AuthenticationError, 401, "lava_unauthorized", 1),
    "Lava rejects the connection": Case("unknown", "gpt-4o", openai.AuthenticationError, 401, "lava_unauthorized", 1),
    "Lava rejects, says the table": Case(
        "main", "fault-lava-401", openai.AuthenticationError, 401, "lava_unauthorized", 1
    ),
    "the wallet is empty": Case("empty", "gpt-4o", openai.APIStatusError, 402, "lava_insufficient_balance", 1),
    "Lava wants money": Case("main", "fault-lava-402", openai.APIStatusError, 402, "lava_insufficient_balance", 1),
    "the own key is rejected": Case("rejected", "gpt-4o", openai.AuthenticationError, 401, "provider_key_rejected", 1),
    "the own account is empty": Case("unfunded", "gpt-4o", openai.APIStatusError, 402, "provider_payment_required", 1),
    "Lava's key is rejected": Case(
        "main", "fault-provider-401", openai.AuthenticationError, 401, "provider_key_rejected", 1
    ),
    "Lava's account is empty": Case(
        "main", "fault-provider-402", openai.APIStatusError, 402, "provider_payment_required", 1
    ),
    "the spend key is spent": Case("spent", "gpt-4o", openai.APIStatusError, 402, "lava_spend_limit", 1),
    "the cap comes as 403": Case(
        "main", "fault-spend-limit-403", openai.PermissionDeniedError, 403, "lava_spend_limit", 1
    ),
    "the wrong request shape": Case("claude-agent", "gpt-4o", openai.PermissionDeniedError, 403, "lava_forbidden", 1),
    "Lava refuses": Case("main", "fault-lava-403", openai.PermissionDeniedError, 403, "lava_forbidden", 1),
    "Lava does not serve it": Case(
        "main", "fault-lava-unsupported", openai.BadRequestError, 400, "lava_unsupported_target", 1
    ),
    "Lava has no such model": Case("main", "fault-lava-404", openai.NotFoundError, 404, "lava_error", 1),
    "Lava limits the rate": Case("main", "fault-lava-429", openai.RateLimitError, 429, "lava_error", 2),
    "Lava fails": Case("main", "fault-lava-500", openai.InternalServerError, 500, "lava_error", 2),
    "a provider's 400": Case("main", "fault-status-400", openai.BadRequestError, 400, None, 1),
    "a provider's 422": Case("main", "fault-status-422", openai.UnprocessableEntityError, 422, None, 1),
    "a provider's 429": Case("main", "fault-status-429", openai.RateLimitError, 429, None, 2),
    "a provider's 503": Case("main", "fault-status-503", openai.InternalServerError, 503, None, 2),
    "a page from the edge": Case("main", "fault-html-502", openai.InternalServerError, 502, None, 2),
    "an empty 500": Case("main", "fault-empty-500", openai.InternalServerError, 500, None, 2),
    "a redirect": Case("main", "fault-redirect", openai.InternalServerError, 502, "upstream_redirect", 1),
    "no answer": Case("main", "fault-no-answer", openai.InternalServerError, 502, "upstream_closed", 1),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_openai_raises(stand: Stand, stream: bool) -> None:
    """Class, status, code, request id and number of calls, for every way in which Lava or a provider says no."""
    for name, case in CASES.items():
        before = len(stand.paid)
        with stand.openai(case.project, max_retries=1) as client, pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=case.model, messages=say(), stream=stream)
        error = caught.value
        assert type(error) is case.raises, name
        assert error.status_code == case.status, name
        assert error.response.headers.get("x-lava-proxy-error") == case.code, name
        assert len(stand.paid) - before == case.calls, name
        if case.code is not None:
            assert error.code == case.code, name
            assert (error.request_id or "").startswith("req_"), name
            body = error.body
            assert isinstance(body, dict)
            assert body["lava_proxy"]["project"] == case.project, name
            assert body["lava_proxy"]["hint"], name
            should_retry = error.response.headers.get("x-should-retry")
            assert should_retry == (None if case.code == "lava_error" else "false"), name


ANTHROPIC: dict[str, tuple[str, str, type[anthropic.APIError], int, str | None, str]] = {
    "Lava rejects the key": (
        "revoked",
        "claude-opus-4-6",
        anthropic.AuthenticationError,
        401,
        "lava_unauthorized",
        "authentication_error",
    ),
    "the wallet is empty": (
        "empty",
        "claude-opus-4-6",
        anthropic.APIStatusError,
        402,
        "lava_insufficient_balance",
        "billing_error",
    ),
    "Lava refuses": (
        "main",
        "fault-lava-403",
        anthropic.PermissionDeniedError,
        403,
        "lava_forbidden",
        "permission_error",
    ),
    "a provider's 400": ("main", "fault-status-400", anthropic.BadRequestError, 400, None, "invalid_request_error"),
    "no answer": ("main", "fault-no-answer", anthropic.InternalServerError, 502, "upstream_closed", "api_error"),
}


def test_what_anthropic_raises(stand: Stand) -> None:
    """The same in Anthropic's dialect, with the request id where its SDK looks for it."""
    for name, (project, model, raises, status, code, kind) in ANTHROPIC.items():
        before = len(stand.paid)
        with stand.anthropic(project, max_retries=1) as client, pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model=model, max_tokens=10, messages=say())
        error = caught.value
        assert isinstance(error, raises), name
        assert error.status_code == status, name
        assert error.response.headers.get("x-lava-proxy-error") == code, name
        body = error.body
        assert isinstance(body, dict)
        assert body["type"] == "error"
        assert body["error"]["type"] == kind, name
        assert len(stand.paid) - before == 1, name
        if code is not None:
            assert (error.request_id or "").startswith("req_"), name


def test_what_google_raises(stand: Stand) -> None:
    """The same in Google's dialect: code, status word and message are where its SDK reads them."""
    with stand.google("empty") as client, pytest.raises(google_errors.ClientError) as caught:
        client.models.generate_content(model="gemini-2.5-flash", contents="hello")
    assert (caught.value.code, caught.value.status) == (402, "FAILED_PRECONDITION")
    assert "out of funds" in (caught.value.message or "")
    with stand.google("revoked") as client, pytest.raises(google_errors.ClientError) as caught:
        client.models.generate_content(model="gemini-2.5-flash", contents="hello")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")


def test_the_402_reads_like_a_sentence(stand: Stand) -> None:
    """It names connection, project and meter, and says what to do."""
    with stand.openai("empty") as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=say())
    assert (
        'Lava says the wallet behind connection conn_empty (project "empty", meter "website-chat") is out of funds: it holds '
        "no credit, and there is no plan beside it. Top up that customer's wallet, or give the project your own provider key under [projects.empty.byok]."
    ) in caught.value.message
    body = caught.value.body
    assert isinstance(body, dict)
    ours = body["lava_proxy"]
    assert (ours["payer"], ours["connection_id"], ours["meter"]) == ("customer", "conn_empty", "website-chat")
    assert ours["lava_request_id"] == stand.paid[-1].request_id


def test_every_sdk_shows_what_exactly_is_wrong(stand: Stand) -> None:
    """What Lava's account says stands in the exception that a user reads, whichever SDK raises it."""
    sentence = 'meter "websit-chat" does not exist; did you mean "website-chat"?'
    with stand.openai("typo") as client, pytest.raises(openai.AuthenticationError) as from_openai:
        client.chat.completions.create(model="gpt-4o", messages=say())
    with stand.openai("typo") as client, pytest.raises(openai.AuthenticationError) as from_stream:
        client.chat.completions.create(model="gpt-4o", messages=say(), stream=True)
    with stand.anthropic("typo") as other, pytest.raises(anthropic.AuthenticationError) as from_anthropic:
        other.messages.create(model="claude-opus-4-6", max_tokens=10, messages=say())
    with stand.google("typo") as third, pytest.raises(google_errors.ClientError) as from_google:
        third.models.generate_content(model="gemini-2.5-flash", contents="hello")
    for caught in (from_openai.value, from_stream.value, from_anthropic.value, from_google.value):
        assert sentence in str(caught).replace('\\"', '"'), type(caught)
    # The Python SDKs' str() is the whole body; what programs read is there too.
    body = from_openai.value.body
    assert isinstance(body, dict)
    assert [each["part"] for each in body["lava_proxy"]["diagnosis"]] == ["meter"]
    body = from_anthropic.value.body
    assert isinstance(body, dict)
    assert sentence in body["error"]["message"]
    assert len([each for each in stand.world.received if each.path == "/v1/wallet"]) == 1


def test_local_keys_are_asked_for_in_every_sdk(stand: Stand) -> None:
    """A wrong local key is a 401 of ours in each dialect, and nothing reaches Lava."""
    with stand.openai(key="wrong") as client, pytest.raises(openai.AuthenticationError) as openai_error:
        client.chat.completions.create(model="gpt-4o", messages=say())
    assert openai_error.value.code == "local_key_invalid"
    with stand.anthropic(key="wrong") as other, pytest.raises(anthropic.AuthenticationError):
        other.messages.create(model="claude-opus-4-6", max_tokens=10, messages=say())
    with stand.google(key="wrong") as third, pytest.raises(google_errors.ClientError) as google_error:
        third.models.generate_content(model="gemini-2.5-flash", contents="hello")
    assert google_error.value.status == "UNAUTHENTICATED"
    assert stand.world.received == []


STREAM_FAULTS: dict[str, tuple[str, type[Exception] | None]] = {
    "cut between events": ("fault-cut-after-3", openai.APIError),
    "cut inside an event": ("fault-cut-inside-3", openai.APIConnectionError),
    "an error in the stream": ("fault-inband-error", openai.APIError),
    "no end marker": ("fault-no-end", None),
}


def test_broken_streams_raise_in_openai(stand: Stand) -> None:
    """No broken stream looks finished to the SDK: each raises, after the events that came."""
    for name, (model, raises) in STREAM_FAULTS.items():
        chunks = []
        with stand.openai(max_retries=0) as client:
            stream = client.chat.completions.create(model=model, messages=say("a b c d e f g"), stream=True)
            if raises is None:
                chunks = list(stream)
            else:
                with pytest.raises(raises) as caught:
                    chunks.extend(stream)
                assert type(caught.value) is raises, name
        assert chunks or raises is not None, name


def test_broken_streams_raise_in_anthropic_and_google(stand: Stand) -> None:
    """The same promise in the other two dialects."""
    with stand.anthropic(max_retries=0) as client, pytest.raises(anthropic.APIError):
        list(client.messages.create(model="fault-cut-after-3", max_tokens=10, messages=say("a b c d e"), stream=True))
    with stand.google() as other, pytest.raises(google_errors.APIError):
        list(other.models.generate_content_stream(model="fault-cut-after-1", contents="a b c d e"))


# --- Node ------------------------------------------------------------------------------------------------------------


def run_node(node_sdk: NodeSDK, script: str, *, BASE: str, KEY: str) -> Any:
    done = node_sdk.run(script, BASE=BASE, KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.node
def test_openai_for_node(stand: Stand, node_sdk: NodeSDK) -> None:
    """The OpenAI SDK for Node: plain, streaming, and a 402 that it does not retry."""
    script = """
    import OpenAI from "openai";
    const client = new OpenAI({baseURL: process.env.BASE + "/v1", apiKey: process.env.KEY});
    const ask = {model: "gpt-4o", messages: [{role: "user", content: "hello"}]};
    const plain = await client.chat.completions.create(ask);
    let text = "";
    for await (const chunk of await client.chat.completions.create({...ask, stream: true}))
      text += chunk.choices[0]?.delta?.content ?? "";
    const empty = new OpenAI({baseURL: process.env.BASE + "/p/empty/v1", apiKey: process.env.KEY, maxRetries: 2});
    let error = null;
    try { await empty.chat.completions.create(ask); } catch (e) { error = {status: e.status, code: e.code, id: e.requestID}; }
    console.log(JSON.stringify({plain: plain.choices[0].message.content, text, error}));
    """
    said = run_node(node_sdk, script, BASE=stand.url, KEY=LOCAL_KEY)
    assert said["plain"] == said["text"] == "You said: hello"
    assert (said["error"]["status"], said["error"]["code"]) == (402, "lava_insufficient_balance")
    assert said["error"]["id"].startswith("req_")
    assert len(stand.paid) == 3


@pytest.mark.node
def test_lavas_own_sdk_against_the_emulator(emulator: Emulator, node_sdk: NodeSDK) -> None:
    """The real Lava SDK takes the emulator for Lava: gateway() answers, and its tokens are the ones that we mint."""
    script = """
    import { Lava } from "@lavapayments/nodejs";
    const lava = new Lava(process.env.KEY, {baseUrl: process.env.BASE});
    const token = lava.generateForwardToken({customer_id: "conn_demo", meter_slug: "website-chat"});
    const answer = await lava.gateway("https://api.openai.com/v1/chat/completions",
      {body: {model: "gpt-4o", messages: [{role: "user", content: "hello"}]}, customer_id: "conn_demo", meter_slug: "website-chat"});
    console.log(JSON.stringify({token, answer}));
    """
    world = emulator.world
    said = run_node(node_sdk, script, BASE=emulator.base_url, KEY=world.secret_key)
    assert said["token"] == mint_token(world.secret_key, customer_id="conn_demo", meter_slug="website-chat")
    assert said["answer"]["choices"][0]["message"]["content"] == "You said: hello"


# --- tools that are no SDK -------------------------------------------------------------------------------------------


def test_what_claude_code_and_open_webui_ask_first(stand: Stand) -> None:
    """HEAD / answers without a key; GET /v1/models with one."""
    port = stand.daemon.port
    assert ask(port, "HEAD", "/").status == 200
    assert ask(port, "GET", "/").json()["name"] == "lava-proxy"
    listed = ask(port, "GET", "/v1/models", headers={"Authorization": f"Bearer {LOCAL_KEY}"})
    assert listed.json()["object"] == "list"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("model", ["gpt-5", "fast"])
def test_a_compressed_request_body_is_understood(stand: Stand, encoding: str, model: str) -> None:
    """Codex compresses: the body goes on as it came, unless the model's name must be replaced: then decoded."""
    import gzip
    import zlib

    import brotli  # type: ignore[import-untyped]  # it has no stubs
    import zstandard

    compress = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "br": brotli.compress,
        "zstd": zstandard.compress,
    }[encoding]
    plain = json.dumps({"model": model, "input": "hello"}).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Encoding": encoding,
        "Authorization": f"Bearer {LOCAL_KEY}",
    }
    path = "/v1/responses" if model == "gpt-5" else "/v1/chat/completions"
    if model == "fast":
        plain = json.dumps({"model": model, "messages": say()}).encode()
    ask(stand.daemon.port, "POST", path, compress(plain), headers)
    received = stand.world.received[-1]
    if model == "gpt-5":
        assert received.body == compress(plain)
        assert received.header("content-encoding") == encoding
    else:
        assert received.header("content-encoding") is None
        assert json.loads(received.body) == {"model": "llama-3.1-8b-instant", "messages": say()}
        assert "api.groq.com" in received.url
