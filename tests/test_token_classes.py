"""token_classes.py: each vendor's own usage objects, in disjoint classes.

Names and structure are those of the source beside each object. The numbers are the source's where it prints an example; where
it has only types or a table, they are made so that its rule can be seen.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from proxy.ledger import columns
from proxy.protocol.token_classes import MAX_NUMBERS, TokenClasses, classes_of, columns_of, counted, flat

# dialect, endpoint, usage, classes; the source stands above each.
VENDORS: dict[str, tuple[str, str, dict[str, Any], TokenClasses]] = {
    # platform.openai.com/docs/api-reference/chat/object
    "openai chat": (
        "openai",
        "chat",
        {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        TokenClasses(input=19, cache_read=0, output=10, reasoning=0, audio_in=0, audio_out=0),
    ),
    # platform.openai.com/docs/guides/prompt-caching
    "openai prompt caching": (
        "openai",
        "chat",
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        TokenClasses(input=86, cache_read=1920, output=300, reasoning=0),
    ),
    # platform.openai.com/docs/guides/audio: gpt-4o-audio-preview
    "openai audio chat": (
        "openai",
        "chat",
        {
            "prompt_tokens": 103,
            "completion_tokens": 160,
            "total_tokens": 263,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 83, "text_tokens": 20, "image_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 124, "text_tokens": 36},
        },
        TokenClasses(input=20, cache_read=0, output=36, reasoning=0, audio_in=83, audio_out=124),
    ),
    # openai-python 3.54, types/completion_usage.py: cache_write_tokens
    "openai chat, cache written": (
        "openai",
        "chat",
        {
            "prompt_tokens": 3000,
            "completion_tokens": 20,
            "total_tokens": 3020,
            "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 1900},
        },
        TokenClasses(input=76, cache_read=1024, cache_write_5m=1900, output=20),
    ),
    # platform.openai.com/docs/api-reference/completions/object
    "openai completions": (
        "openai",
        "completions",
        {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        TokenClasses(input=5, output=7),
    ),
    # platform.openai.com/docs/api-reference/responses/object
    "openai responses": (
        "openai",
        "responses",
        {
            "input_tokens": 328,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 52,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 380,
        },
        TokenClasses(input=328, cache_read=0, output=52, reasoning=0),
    ),
    # platform.openai.com/docs/guides/reasoning
    "openai reasoning": (
        "openai",
        "responses",
        {
            "input_tokens": 75,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1186,
            "output_tokens_details": {"reasoning_tokens": 1024},
            "total_tokens": 1261,
        },
        TokenClasses(input=75, cache_read=0, output=1186, reasoning=1024),
    ),
    # openai-python 3.54, types/responses/response_usage.py
    "openai responses, cache written": (
        "openai",
        "responses",
        {
            "input_tokens": 5000,
            "input_tokens_details": {
                "cached_tokens": 1000,
                "cache_write_tokens": 3500,
                "cache_write_tokens_details": {"ttl_12h_tokens": 1500, "ttl_30m_tokens": 2000},
            },
            "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5010,
        },
        TokenClasses(input=500, cache_read=1000, cache_write_5m=2000, cache_write_1h=1500, output=10, reasoning=0),
    ),
    # platform.openai.com/docs/api-reference/embeddings/create
    "openai embeddings": (
        "openai",
        "embeddings",
        {"prompt_tokens": 8, "total_tokens": 8},
        TokenClasses(input=8),
    ),
    # platform.openai.com/docs/api-reference/images/create: gpt-image-1
    "openai images": (
        "openai",
        "images",
        {
            "total_tokens": 100,
            "input_tokens": 50,
            "output_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        },
        TokenClasses(input=50, output=50),
    ),
    # platform.openai.com/docs/api-reference/audio/json-object: gpt-4o-transcribe
    "openai transcription by tokens": (
        "openai",
        "transcriptions",
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
            "output_tokens": 101,
            "total_tokens": 115,
        },
        TokenClasses(input=10, output=101, audio_in=4),
    ),
    # platform.openai.com/docs/api-reference/audio/verbose-json-object: whisper-1
    "openai transcription by duration": (
        "openai",
        "transcriptions",
        {"type": "duration", "seconds": 9},
        TokenClasses(),
    ),
    # platform.openai.com/docs/api-reference/audio/speech-audio-done-event (only as events; audio has no usage)
    "openai speech": (
        "openai",
        "speech",
        {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
        TokenClasses(input=14, audio_out=101),
    ),
    # platform.openai.com/docs/api-reference/realtime-server-events/response/done
    "openai realtime": (
        "openai",
        "other",
        {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "image_tokens": 0,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        TokenClasses(input=55, cache_read=64, output=30, audio_in=13, audio_out=91),
    ),
    # docs.anthropic.com/en/api/messages
    "anthropic messages": (
        "anthropic",
        "messages",
        {
            "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
            "cache_creation_input_tokens": 2051,
            "cache_read_input_tokens": 2051,
            "input_tokens": 2095,
            "output_tokens": 503,
            "server_tool_use": {"web_search_requests": 0},
            "service_tier": "standard",
        },
        TokenClasses(input=2095, cache_read=2051, cache_write_5m=2051, cache_write_1h=0, output=503),
    ),
    # docs.anthropic.com/en/docs/build-with-claude/prompt-caching: "1-hour cache duration"
    "anthropic cache of two durations": (
        "anthropic",
        "messages",
        {
            "input_tokens": 2048,
            "cache_read_input_tokens": 1800,
            "cache_creation_input_tokens": 248,
            "output_tokens": 503,
            "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
        },
        TokenClasses(input=2048, cache_read=1800, cache_write_5m=148, cache_write_1h=100, output=503),
    ),
    # docs.anthropic.com/en/docs/agents-and-tools/tool-use/web-search-tool
    "anthropic web search": (
        "anthropic",
        "messages",
        {
            "input_tokens": 6039,
            "output_tokens": 931,
            "server_tool_use": {"web_search_requests": 1},
        },
        TokenClasses(input=6039, output=931),
    ),
    # anthropic-sdk-python 2.12, types/usage.py and types/output_tokens_details.py
    "anthropic thinking": (
        "anthropic",
        "messages",
        {"input_tokens": 50, "output_tokens": 900, "output_tokens_details": {"thinking_tokens": 700}},
        TokenClasses(input=50, output=900, reasoning=700),
    ),
    # docs.anthropic.com/en/docs/build-with-claude/compaction; anthropic-sdk-python 2.12, types/beta/beta_usage.py
    "anthropic compaction": (
        "anthropic",
        "messages",
        {
            "input_tokens": 23000,
            "output_tokens": 1000,
            "iterations": [
                {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
                {"type": "message", "input_tokens": 23000, "output_tokens": 1000},
            ],
        },
        TokenClasses(input=203000, output=4500),
    ),
    # api-docs.deepseek.com/guides/anthropic_api: the same names at another provider
    "deepseek, anthropic's face": (
        "anthropic",
        "messages",
        {"input_tokens": 5, "cache_read_input_tokens": 128, "output_tokens": 9, "service_tier": "standard"},
        TokenClasses(input=5, cache_read=128, output=9),
    ),
    # ai.google.dev/api/generate-content#UsageMetadata, with an answer of gemini-2.5-pro
    "google": (
        "google",
        "generate",
        {
            "promptTokenCount": 8,
            "candidatesTokenCount": 22,
            "totalTokenCount": 1142,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}],
            "thoughtsTokenCount": 1112,
        },
        TokenClasses(input=8, output=1134, reasoning=1112),
    ),
    # ai.google.dev/gemini-api/docs/caching
    "google cached": (
        "google",
        "generate",
        {
            "promptTokenCount": 696219,
            "candidatesTokenCount": 214,
            "totalTokenCount": 696433,
            "cachedContentTokenCount": 696190,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 29},
                {"modality": "AUDIO", "tokenCount": 696190},
            ],
            "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 696190}],
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 214}],
        },
        TokenClasses(input=29, cache_read=696190, output=214, audio_in=0),
    ),
    # ai.google.dev/gemini-api/docs/google-search and /url-context
    "google tools": (
        "google",
        "generate",
        {
            "candidatesTokenCount": 45,
            "promptTokenCount": 27,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 27}],
            "thoughtsTokenCount": 31,
            "toolUsePromptTokenCount": 10309,
            "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 10309}],
            "totalTokenCount": 10412,
        },
        TokenClasses(input=10336, output=76, reasoning=31),
    ),
    # ai.google.dev/gemini-api/docs/speech-generation and /audio
    "google audio": (
        "google",
        "generate",
        {
            "promptTokenCount": 1200,
            "candidatesTokenCount": 300,
            "totalTokenCount": 1500,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 40},
                {"modality": "AUDIO", "tokenCount": 1160},
            ],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 300}],
        },
        TokenClasses(input=40, output=0, audio_in=1160, audio_out=300),
    ),
    # Google leaves out what is 0: an answer cut at maxOutputTokens while the model was thinking.
    "google cut while thinking": (
        "google",
        "generate",
        {"promptTokenCount": 8, "totalTokenCount": 107, "thoughtsTokenCount": 99},
        TokenClasses(input=8, output=99, reasoning=99),
    ),
    # The same, of a prompt that was blocked.
    "google blocked": (
        "google",
        "generate",
        {"promptTokenCount": 8, "totalTokenCount": 8, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}]},
        TokenClasses(input=8, output=0),
    ),
    # ai.google.dev/gemini-api/docs/openai with gemini-2.5: thoughts are in the total alone
    "google, openai's face": (
        "openai",
        "chat",
        {"completion_tokens": 11, "prompt_tokens": 7, "total_tokens": 618},
        TokenClasses(input=7, output=611, reasoning=600),
    ),
    # api-docs.deepseek.com/api/create-chat-completion and /guides/kv_cache
    "deepseek": (
        "openai",
        "chat",
        {
            "prompt_tokens": 1030,
            "completion_tokens": 210,
            "total_tokens": 1240,
            "prompt_tokens_details": {"cached_tokens": 960},
            "completion_tokens_details": {"reasoning_tokens": 128},
            "prompt_cache_hit_tokens": 960,
            "prompt_cache_miss_tokens": 70,
        },
        TokenClasses(input=70, cache_read=960, output=210, reasoning=128),
    ),
    "deepseek without details": (
        "openai",
        "chat",
        {
            "completion_tokens": 10,
            "prompt_tokens": 16,
            "total_tokens": 26,
            "prompt_cache_hit_tokens": 0,
            "prompt_cache_miss_tokens": 16,
        },
        TokenClasses(input=16, cache_read=0, output=10),
    ),
    # console.groq.com/docs/api-reference#chat-create
    "groq": (
        "openai",
        "chat",
        {
            "queue_time": 0.037493756,
            "prompt_tokens": 18,
            "prompt_time": 0.000680594,
            "completion_tokens": 556,
            "completion_time": 0.463333333,
            "total_tokens": 574,
            "total_time": 0.464013927,
        },
        TokenClasses(input=18, output=556),
    ),
    # docs.x.ai/docs/api-reference#chat-completions: the total has the reasoning, the completion has not
    "xai": (
        "openai",
        "chat",
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
            "completion_tokens_details": {
                "reasoning_tokens": 94,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            "num_sources_used": 0,
        },
        TokenClasses(input=26, cache_read=6, output=103, reasoning=94, audio_in=0, audio_out=0),
    ),
    # docs.x.ai: responses count like OpenAI's
    "xai responses": (
        "openai",
        "responses",
        {
            "input_tokens": 32,
            "input_tokens_details": {"cached_tokens": 6},
            "output_tokens": 103,
            "output_tokens_details": {"reasoning_tokens": 94},
            "total_tokens": 135,
            "num_sources_used": 0,
            "num_server_side_tools_used": 0,
        },
        TokenClasses(input=26, cache_read=6, output=103, reasoning=94),
    ),
    # docs.mistral.ai/api/endpoint/chat
    "mistral": (
        "openai",
        "chat",
        {"prompt_tokens": 16, "completion_tokens": 34, "total_tokens": 50},
        TokenClasses(input=16, output=34),
    ),
    # docs.mistral.ai/api/endpoint/audio/transcriptions: the total has audio that no other number has
    "mistral transcription": (
        "openai",
        "transcriptions",
        {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635},
        TokenClasses(input=4, output=635),
    ),
    "mistral audio chat": (
        "openai",
        "chat",
        {"prompt_audio_seconds": 17, "prompt_tokens": 4, "total_tokens": 264, "completion_tokens": 35},
        TokenClasses(input=4, output=35),
    ),
    # docs.cohere.com/docs/how-does-cohere-pricing-work; docs.cohere.com/reference/chat (v2)
    "cohere v2": (
        "other",
        "chat",
        {
            "billed_units": {"input_tokens": 6772, "output_tokens": 248},
            "tokens": {"input_tokens": 7596, "output_tokens": 645},
            "cached_tokens": 0,
        },
        TokenClasses(input=6772, output=248),
    ),
    "cohere without billed units": (
        "other",
        "chat",
        {"tokens": {"input_tokens": 7596.0, "output_tokens": 645.0}},
        TokenClasses(input=7596, output=645),
    ),
    # docs.cohere.com/reference/embed (v2)
    "cohere embed": (
        "other",
        "embeddings",
        {"billed_units": {"input_tokens": 2, "images": 1}},
        TokenClasses(input=2, images=1),
    ),
    # openrouter.ai/docs/use-cases/usage-accounting
    "openrouter": (
        "openai",
        "chat",
        {
            "completion_tokens": 2,
            "completion_tokens_details": {"reasoning_tokens": 0},
            "cost": 0.95,
            "cost_details": {"upstream_inference_cost": 19},
            "prompt_tokens": 194,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 100, "audio_tokens": 0},
            "total_tokens": 196,
        },
        TokenClasses(input=94, cache_read=0, cache_write_5m=100, output=2, reasoning=0, audio_in=0),
    ),
    # docs.perplexity.ai/api-reference/chat-completions-post: reasoning beside the rest
    "perplexity": (
        "openai",
        "chat",
        {
            "prompt_tokens": 33,
            "completion_tokens": 7163,
            "total_tokens": 7196,
            "citation_tokens": 20016,
            "num_search_queries": 18,
            "reasoning_tokens": 73997,
        },
        TokenClasses(input=33, output=81160, reasoning=73997),
    ),
    # docs.voyageai.com/reference/embeddings-api
    "voyage": ("openai", "embeddings", {"total_tokens": 10}, TokenClasses(input=10)),
    # platform.moonshot.ai/docs/api/chat
    "moonshot": (
        "openai",
        "chat",
        {"prompt_tokens": 19, "completion_tokens": 21, "total_tokens": 40, "cached_tokens": 10},
        TokenClasses(input=9, cache_read=10, output=21),
    ),
    # platform.minimax.io/docs/api-reference/text-post
    "minimax": (
        "openai",
        "chat",
        {"total_tokens": 249, "total_characters": 0, "prompt_tokens": 26, "completion_tokens": 223},
        TokenClasses(input=26, output=223, characters=0),
    ),
    # docs.byteplus.com/en/docs/ModelArk/1541523: images are counted by piece
    "byteplus images": (
        "openai",
        "images",
        {"generated_images": 1, "output_tokens": 16384, "total_tokens": 16384},
        TokenClasses(output=16384, images=1),
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_vendors_usage_in_classes(vendor: str) -> None:
    """Each token in one class."""
    dialect, endpoint, raw, expected = VENDORS[vendor]
    assert classes_of(raw, dialect, endpoint) == expected


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_number_of_a_vendor_is_lost(vendor: str) -> None:
    """``flat`` keeps every number under its path, and nothing that is text."""
    raw = VENDORS[vendor][2]
    paths, numbers = flat(raw)
    assert len(paths) == len(set(paths)) == len(numbers)
    assert sorted(numbers) == sorted(_numbers(raw))


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []


def test_paths_name_their_place() -> None:
    """Members by name, Google's lists by modality, other lists by index."""
    raw = VENDORS["google audio"][2] | {"iterations": [{"input_tokens": 3.0}], "seconds": 1.5}
    assert flat(raw) == (
        (
            "promptTokenCount",
            "candidatesTokenCount",
            "totalTokenCount",
            "promptTokensDetails.TEXT.tokenCount",
            "promptTokensDetails.AUDIO.tokenCount",
            "candidatesTokensDetails.AUDIO.tokenCount",
            "iterations.0.input_tokens",
            "seconds",
        ),
        (1200, 300, 1500, 40, 1160, 300, 3, 1.5),
    )


def test_the_classes_are_the_ledgers_columns() -> None:
    """In the same order."""
    assert TokenClasses._fields == columns.TOKENS


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, TokenClasses()),
        ({"prompt_tokens": None, "completion_tokens": "7"}, TokenClasses()),
        ({"prompt_tokens": True, "completion_tokens": -1}, TokenClasses()),
        ({"prompt_tokens": 1.5, "completion_tokens": 10**400}, TokenClasses()),
        ({"prompt_tokens": 3, "prompt_tokens_details": 4}, TokenClasses(input=3)),
        # More cached than there is: the provider's counts are inconsistent.
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}, TokenClasses(input=0, cache_read=5)),
        (
            {"completion_tokens": 3, "completion_tokens_details": {"audio_tokens": 5}},
            TokenClasses(output=0, audio_out=5),
        ),
    ],
)
def test_unknown_is_none_and_nothing_is_negative(raw: dict[str, Any], expected: TokenClasses) -> None:
    """What is no count is not counted."""
    assert classes_of(raw, "openai", "chat") == expected


def test_a_repeated_zero_beside_the_count_is_ignored() -> None:
    """Gateways add the other API's names with 0 (seen at resellers of OpenAI-compatible APIs)."""
    raw = {
        "prompt_tokens": 206,
        "completion_tokens": 208,
        "total_tokens": 414,
        "prompt_tokens_details": {"cached_tokens": 194},
        "input_tokens": 0,
        "output_tokens": 0,
        "input_tokens_details": None,
    }
    assert classes_of(raw, "openai", "chat") == TokenClasses(input=12, cache_read=194, output=208)
    assert counted(raw) == (206, 208)


# --- properties ------------------------------------------------------------------------------------------------------

Documented = tuple[str, str, dict[str, Any], TokenClasses]
"""Dialect, endpoint, a usage object with a total, and the classes that were put into it."""
_N = st.integers(0, 10**6)
_MAYBE = st.none() | _N


def _said(**counts: Any) -> dict[str, Any]:
    return {name: count for name, count in counts.items() if count is not None}


def _sum(*counts: int | None) -> int:
    return sum(count or 0 for count in counts)


@st.composite
def _openai(draw: st.DrawFn) -> Documented:
    """openai-python 3.54, types/completion_usage.py and types/responses/response_usage.py: all parts are in the sums."""
    chat = draw(st.booleans())
    text, read, write, audio, cached_audio = draw(_N), draw(_MAYBE), draw(_MAYBE), draw(_MAYBE), draw(st.integers(0, 9))
    output, reasoning, audio_out = draw(_N), draw(_MAYBE), draw(_MAYBE if chat else st.none())
    cached_audio = cached_audio if read and audio is not None and read >= cached_audio else 0
    output += reasoning or 0
    inputs, outputs = _sum(text, read, write, audio), _sum(output, audio_out)
    details = _said(
        cached_tokens=read,
        cache_write_tokens=write,
        audio_tokens=None if audio is None else audio + cached_audio,
        cached_tokens_details={"audio_tokens": cached_audio} if cached_audio else None,
    )
    made = _said(reasoning_tokens=reasoning, audio_tokens=audio_out)
    raw: dict[str, Any] = {"total_tokens": inputs + outputs}
    if chat:
        raw |= {"prompt_tokens": inputs, "completion_tokens": outputs}
        raw |= {"prompt_tokens_details": details, "completion_tokens_details": made}
    else:
        raw |= {"input_tokens": inputs, "output_tokens": outputs}
        raw |= {"input_tokens_details": details, "output_tokens_details": made}
    expected = TokenClasses(text, read, write, None, output, reasoning, audio, audio_out)
    return "openai", "chat" if chat else "responses", raw, expected


@st.composite
def _reasoning_beside(draw: st.DrawFn) -> Documented:
    """docs.x.ai, "Reasoning": the reasoning is in the total, and not in the completion."""
    inputs, shown, reasoning = draw(_N), draw(_N), draw(st.integers(1, 10**6))
    raw = {
        "prompt_tokens": inputs,
        "completion_tokens": shown,
        "total_tokens": inputs + shown + reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    return "openai", "chat", raw, TokenClasses(inputs, output=shown + reasoning, reasoning=reasoning)


@st.composite
def _anthropic(draw: st.DrawFn) -> Documented:
    """anthropic-python 2.12, types/usage.py: the cache stands beside the input. The total is of this test."""
    inputs, read, short, long = draw(_N), draw(_MAYBE), draw(_MAYBE), draw(_MAYBE)
    thinking = draw(_MAYBE)
    output = draw(_N) + (thinking or 0)
    split = None
    if long is not None:
        short = short or 0
        split = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    raw = _said(
        input_tokens=inputs,
        cache_read_input_tokens=read,
        cache_creation_input_tokens=None if short is None else _sum(short, long),
        cache_creation=split,
        output_tokens=output,
        output_tokens_details=None if thinking is None else {"thinking_tokens": thinking},
    )
    expected = TokenClasses(inputs, read, short, long, output, thinking)
    return "anthropic", "messages", raw | {"total_tokens": _sum(*expected[:5])}, expected


@st.composite
def _google(draw: st.DrawFn) -> Documented:
    """ai.google.dev/api/generate-content, UsageMetadata: the cache is in the prompt, tools and thoughts are beside it."""
    text, read, audio, tools = draw(_N), draw(_MAYBE), draw(_MAYBE), draw(_MAYBE)
    shown, thoughts = draw(_N), draw(_MAYBE)
    prompt = _sum(text, read, audio)
    raw = _said(
        promptTokenCount=prompt,
        cachedContentTokenCount=read,
        toolUsePromptTokenCount=tools,
        candidatesTokenCount=shown or None,  # what is 0 is left out
        thoughtsTokenCount=thoughts,
        totalTokenCount=_sum(prompt, tools, shown, thoughts),
        promptTokensDetails=None if audio is None else [{"modality": "AUDIO", "tokenCount": audio}],
    )
    output = _sum(shown, thoughts)
    return "google", "generate", raw, TokenClasses(_sum(text, tools), read, None, None, output, thoughts, audio)


@st.composite
def _only_input(draw: st.DrawFn) -> Documented:
    """platform.openai.com/docs/api-reference/embeddings."""
    count = draw(_N)
    return "openai", "embeddings", {"prompt_tokens": count, "total_tokens": count}, TokenClasses(count)


@st.composite
def _transcription(draw: st.DrawFn) -> Documented:
    """platform.openai.com/docs/api-reference/audio/json-object."""
    text, audio, output = draw(_N), draw(_N), draw(_N)
    raw = {
        "type": "tokens",
        "input_tokens": text + audio,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        "output_tokens": output,
        "total_tokens": text + audio + output,
    }
    return "openai", "transcriptions", raw, TokenClasses(text, output=output, audio_in=audio)


@st.composite
def _speech(draw: st.DrawFn) -> Documented:
    """platform.openai.com/docs/api-reference/audio/speech-audio-done-event: the output is audio."""
    inputs, audio = draw(_N), draw(_N)
    raw = {"input_tokens": inputs, "output_tokens": audio, "total_tokens": inputs + audio}
    return "openai", "speech", raw, TokenClasses(inputs, audio_out=audio)


_DOCUMENTED = {
    "openai": _openai(),
    "reasoning beside": _reasoning_beside(),
    "anthropic": _anthropic(),
    "google": _google(),
    "embeddings": _only_input(),
    "transcription": _transcription(),
    "speech": _speech(),
}


@pytest.mark.parametrize("vendor", _DOCUMENTED)
@examples(200)
@given(data=st.data())
def test_the_classes_of_a_documented_object_add_up_to_its_total(vendor: str, data: st.DataObject) -> None:
    """Each token is in one class, in the one where it was put, whatever the counts are."""
    dialect, endpoint, raw, expected = data.draw(_DOCUMENTED[vendor])
    found = classes_of(raw, dialect, endpoint)
    assert found == expected
    tokens = found._replace(reasoning=None, images=None, characters=None)
    assert _sum(*tokens) == raw.get("total_tokens", raw.get("totalTokenCount"))
    assert (found.reasoning or 0) <= (found.output or 0)


_USUAL_COUNT = st.sampled_from([0, 1, -1, 10**15, 10**15 + 1, 2**70]) | _N | st.none() | st.booleans() | st.just(1.0)


@examples(500)
@given(
    inputs=_USUAL_COUNT,
    outputs=_USUAL_COUNT,
    more=st.sampled_from([0, 0, 0, 1]),
    endpoint=st.sampled_from(["chat", "completions", "embeddings", "messages", "speech"]),
)
def test_the_usual_usage_is_read_as_any_other(inputs: Any, outputs: Any, more: int, endpoint: str) -> None:
    """The shortcut for it and the general way give the same. One more member keeps an object from the shortcut."""
    total = (inputs or 0) + (outputs or 0) + more
    raw = {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": total}
    assert columns_of(raw, "openai", endpoint) == columns_of({**raw, "x": None}, "openai", endpoint)
    assert columns_of(raw, "openai", endpoint)[0] == classes_of(raw, "openai", endpoint)


_NAMES = st.sampled_from(sorted({name for _, _, raw, _ in VENDORS.values() for name in raw}))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3)
            | st.sampled_from(
                ["cached_tokens", "audio_tokens", "reasoning_tokens", "tokenCount", "modality", "input_tokens"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@examples(500)
@given(
    raw=st.dictionaries(st.text(max_size=3) | _NAMES, _JSON),
    dialect=st.sampled_from(["openai", "anthropic", "google", "other"]),
    endpoint=st.sampled_from(["chat", "messages", "responses", "embeddings", "speech", "generate", "other"]),
)
def test_anything_is_read_without_an_error(raw: dict[str, Any], dialect: str, endpoint: str) -> None:
    """No exception, no negative number, and bounds on what is kept of a hostile object."""
    assert all(count is None or count >= 0 for count in classes_of(raw, dialect, endpoint))
    counted(raw)
    columns_of(raw, dialect, endpoint)
    paths, numbers = flat(raw)
    assert len(paths) == len(numbers) <= MAX_NUMBERS
    assert all(abs(number) <= 10**15 for number in numbers)
    assert all(path.replace(".", "").replace("_", "").replace("-", "").isalnum() and path.isascii() for path in paths)


def test_a_hostile_object_is_bounded() -> None:
    """Many members, deep and wide, and long names."""
    deep: dict[str, Any] = {"a": 1}
    for _ in range(500):
        deep = {"a": deep}
    for raw in ({f"n{each}": each for each in range(10_000)}, {"list": [1] * 10_000}, deep, {"x" * 1000: 1, "a,b": 2}):
        paths, numbers = flat(raw)
        assert len(numbers) <= MAX_NUMBERS
        assert len(",".join(paths)) < 4000
