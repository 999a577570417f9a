"""Token classes: what a provider counted, in disjoint classes that each have one price.

Theory. Providers count the same things in different sums. OpenAI's and Google's prompts include what was read from the cache,
Anthropic's do not; Google counts reasoning beside the output, OpenAI inside it. A price per class needs classes that do not
overlap, so ``classes_of`` subtracts what is part of something else. It reads the names of all APIs, because gateways and
OpenAI-compatible providers mix them; the endpoint decides only where one name has two meanings. Where the documentation of a
provider and its numbers disagree (reasoning that is not part of the completion), the provider's own total decides.

``None`` means that the provider did not count it; 0 only comes from a 0 in its answer, or from a difference of its counts.

Sources: the usage types of the official SDKs (openai 3.54, anthropic 2.12, google-genai 3.4) and the API references of the
providers named in ``tests/test_token_classes.py``, where each rule stands beside a usage object.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NUMBERS = 40
"""Of one usage object, that are kept. The largest that is documented has 30."""
_MAX_COUNT = 10**15  # far above any request, and far below what a database's integer holds
_MAX_DEPTH = 4
_MAX_LIST = 16
_MAX_PATHS = 2000  # cached
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")


class TokenClasses(NamedTuple):
    """Counts by class. They are disjoint, but for ``reasoning``, which is a part of ``output``. ``None`` means unknown.

    ``input`` is neither from a cache nor audio. ``cache_write_5m`` is the shorter and ``cache_write_1h`` the longer retention
    of a provider with two. ``output`` is everything but audio. ``images`` are pieces, not tokens.
    """

    input: int | None = None
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    output: int | None = None
    reasoning: int | None = None
    audio_in: int | None = None
    audio_out: int | None = None
    images: int | None = None
    characters: int | None = None


NOTHING = TokenClasses()


def classes_of(raw: Mapping[str, object], dialect: str, endpoint: str) -> TokenClasses:
    """Return the classes of a usage object. Never raises.

    ``dialect`` is a ``Dialect``, ``endpoint`` one of ``dialects.ENDPOINT_NAMES``.
    """
    return _usual(raw, endpoint) or _classes_of(raw, dialect, endpoint)


def columns_of(raw: Mapping[str, object], dialect: str, endpoint: str) -> tuple[TokenClasses, str | None, str | None]:
    """Return the classes of a usage object, and the paths and the numbers of ``flat``, each joined by commas. Never raises."""
    usual = _usual(raw, endpoint)
    if usual is not None:
        return usual, ",".join(raw), ",".join(map(str, raw.values()))
    paths, numbers = flat(raw)
    return _classes_of(raw, dialect, endpoint), ",".join(paths) or None, ",".join(map(str, numbers)) or None


def _usual(raw: Mapping[str, object], endpoint: str) -> TokenClasses | None:
    """Return the classes of the usage of most OpenAI-compatible providers: input, output and their sum. A shortcut."""
    if len(raw) != 3 or endpoint == "speech":
        return None
    inputs, outputs, total = raw.get("prompt_tokens"), raw.get("completion_tokens"), raw.get("total_tokens")
    if type(inputs) is not int or type(outputs) is not int or type(total) is not int:
        return None
    if inputs + outputs != total or min(inputs, outputs) < 0 or total > _MAX_COUNT:
        return None
    return TokenClasses(inputs, output=outputs)


def _classes_of(raw: Mapping[str, object], dialect: str, endpoint: str) -> TokenClasses:
    if isinstance(raw.get("billed_units"), dict) or isinstance(raw.get("tokens"), dict):
        return _cohere(raw)
    if not _GOOGLE.isdisjoint(raw):
        return _google(raw)
    if _is_anthropic(raw, dialect, endpoint):
        return _anthropic(raw)
    return _openai(raw, endpoint)


def counted(raw: Mapping[str, object]) -> tuple[int | None, int | None]:
    """Return input and output tokens as the provider counts them: the words of its own pages, for people. Never raises."""
    inputs = _count(raw, "prompt_tokens", "input_tokens", "promptTokenCount")
    outputs = _count(raw, "completion_tokens", "output_tokens", "candidatesTokenCount")
    if inputs is None and outputs is None and "billed_units" in raw:
        found = _cohere(raw)
        return found.input, found.output
    return inputs, outputs


def flat(raw: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[int | float, ...]]:
    """Return the paths and the numbers of a usage object, at most ``MAX_NUMBERS``. It holds no other values, and no odd names."""
    paths: list[str] = []
    numbers: list[int | float] = []
    _flatten(dict(raw), "", paths, numbers, _MAX_DEPTH)
    return tuple(paths), tuple(numbers)


def _flatten(value: object, path: str, paths: list[str], numbers: list[int | float], depth: int) -> None:
    members = value.items() if isinstance(value, dict) else _named(value)
    for key, each in members:
        if len(numbers) >= MAX_NUMBERS:
            return
        kind = type(each)
        if each is None or kind is str or (place := _path(path, key)) is None:
            continue
        if (kind is int or kind is float) and -_MAX_COUNT <= each <= _MAX_COUNT:
            paths.append(place)
            numbers.append(int(each) if each == int(each) else each)
        elif depth and (kind is dict or kind is list):
            _flatten(each, place, paths, numbers, depth - 1)


def _named(items: object) -> list[tuple[str, Any]]:
    """Return the items of a list with a name each: Google's by their modality, others by their index."""
    return [
        (each["modality"] if isinstance(each, dict) and isinstance(each.get("modality"), str) else str(index), each)
        for index, each in enumerate(items[:_MAX_LIST] if isinstance(items, list) else ())
    ]


@lru_cache(_MAX_PATHS)
def _path(before: str, name: str) -> str | None:
    """Return the path of a member, ``None`` if its name is odd. Cached, because every request asks for the same."""
    if not _NAME.fullmatch(name):
        return None
    return f"{before}.{name}" if before else name


# --- by API ----------------------------------------------------------------------------------------------------------

_GOOGLE = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "responseTokenCount", "thoughtsTokenCount", "totalTokenCount"}
)
_PIECES = frozenset({"images", "image_count", "generated_images", "characters", "total_characters", "usage_characters"})
_ANTHROPICS_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens")
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_NONE: Mapping[str, Any] = MappingProxyType({})
_ONLY_INPUT = frozenset({"embeddings", "rerank", "moderations"})


def _openai(raw: Mapping[str, object], endpoint: str) -> TokenClasses:
    """The cache's tokens, audio and reasoning are parts of input and output."""
    details, made = _first(raw, _INPUT_DETAILS) or _NONE, _first(raw, _OUTPUT_DETAILS) or _NONE
    total = _count(raw, "total_tokens")
    inputs = _count(raw, "prompt_tokens", "input_tokens")
    if inputs is None and endpoint in _ONLY_INPUT:
        inputs = total  # Voyage counts nothing else
    # DeepSeek, then Moonshot and Together, have one beside the details.
    read = _count(details, "cached_tokens")
    read = read if read is not None else _count(raw, "prompt_cache_hit_tokens", "cached_tokens", _ANTHROPICS_CACHE[0])
    short, long = _openais_writes(raw, details)
    audio_in = _less(_count(details, "audio_tokens"), _count(_object(details, "cached_tokens_details"), "audio_tokens"))

    outputs = _count(raw, "completion_tokens", "output_tokens")
    reasoning = _count(made, "reasoning_tokens")
    reasoning = reasoning if reasoning is not None else _count(raw, "reasoning_tokens")
    if inputs is not None and outputs is not None:
        outputs, reasoning = _with_reasoning(raw, endpoint, inputs, outputs, reasoning, total)
    audio_out = _count(made, "audio_tokens")
    if endpoint == "speech" and audio_out is None:
        outputs, audio_out = None, outputs  # a speech model's output is audio
    images = characters = None
    if not _PIECES.isdisjoint(raw):
        images = _count(raw, "images", "image_count", "generated_images")
        characters = _count(raw, "characters", "total_characters", "usage_characters")
    return TokenClasses(
        _less(inputs, read, short, long, audio_in),
        read,
        short,
        long,
        _less(outputs, audio_out),
        reasoning,
        audio_in,
        audio_out,
        images,
        characters,
    )


def _openais_writes(raw: Mapping[str, object], details: Mapping[str, object]) -> tuple[int | None, int | None]:
    """What was written to the cache, by the shorter and the longer retention."""
    written = _count(details, "cache_write_tokens", "cache_creation_tokens", _ANTHROPICS_CACHE[1])
    written = written if written is not None else _count(raw, _ANTHROPICS_CACHE[1])
    parts = _object(details, "cache_write_tokens_details")
    short, long = _count(parts, "ttl_30m_tokens"), _count(parts, "ttl_12h_tokens")
    if short is None and long is None:
        return written, None
    return (short, long) if written is None else (_less(written, long), long)


def _with_reasoning(
    raw: Mapping[str, object], endpoint: str, inputs: int, outputs: int, reasoning: int | None, total: int | None
) -> tuple[int, int | None]:
    """Return the output with its reasoning, and the reasoning.

    xAI's chat completions and Google's OpenAI-compatible API count reasoning beside ``completion_tokens``; the latter shows
    it in ``total_tokens`` alone. Mistral's total has the audio of the input, which is no reasoning.
    """
    if reasoning is None:
        beside = (total or 0) - inputs - outputs
        if (
            endpoint != "chat"
            or beside <= 0
            or raw.get("prompt_audio_seconds")
            or _first(raw, _OUTPUT_DETAILS) is not None
        ):
            return outputs, None
        return outputs + beside, beside
    if reasoning and (reasoning > outputs or total == inputs + outputs + reasoning):
        return outputs + reasoning, reasoning
    return outputs, reasoning


def _is_anthropic(raw: Mapping[str, object], dialect: str, endpoint: str) -> bool:
    if "prompt_tokens" in raw:
        return False
    if endpoint == "messages":
        return True
    if _first(raw, _INPUT_DETAILS) is not None:
        return False
    return dialect == "anthropic" or any(name in raw for name in _ANTHROPICS_CACHE)


def _anthropic(raw: Mapping[str, object]) -> TokenClasses:
    """The cache's tokens stand beside the input. What a compaction took is not in the sums."""
    found = _anthropics_own(raw)
    iterations = raw.get("iterations")
    for each in iterations[:_MAX_LIST] if isinstance(iterations, list) else ():
        if isinstance(each, dict) and each.get("type") == "compaction":
            found = TokenClasses(*map(_sum, found, _anthropics_own(each)))
    return found


def _anthropics_own(raw: Mapping[str, object]) -> TokenClasses:
    parts = _object(raw, "cache_creation")
    short, long = _count(parts, "ephemeral_5m_input_tokens"), _count(parts, "ephemeral_1h_input_tokens")
    written = _count(raw, "cache_creation_input_tokens")
    if written is not None:
        short = _less(written, long)  # 5 minutes unless the request says otherwise
    return TokenClasses(
        input=_count(raw, "input_tokens"),
        cache_read=_count(raw, "cache_read_input_tokens"),
        cache_write_5m=short,
        cache_write_1h=long,
        output=_count(raw, "output_tokens"),
        reasoning=_count(_object(raw, "output_tokens_details"), "thinking_tokens"),
    )


def _google(raw: Mapping[str, object]) -> TokenClasses:
    """The cache's tokens are a part of the prompt; thoughts and the results of tools stand beside it and the output."""
    prompt, read = _count(raw, "promptTokenCount"), _count(raw, "cachedContentTokenCount")
    thoughts = _count(raw, "thoughtsTokenCount")
    asked = _sum(prompt, _count(raw, "toolUsePromptTokenCount"))
    made = _count(raw, "candidatesTokenCount", "responseTokenCount")
    if made is None and asked is not None and _count(raw, "totalTokenCount") == asked + (thoughts or 0):
        made = 0  # Google leaves out what is 0
    heard = _modality(raw, "promptTokensDetails", "AUDIO")
    audio_in = _less(heard, _modality(raw, "cacheTokensDetails", "AUDIO"))
    audio_out = _modality(raw, "candidatesTokensDetails", "AUDIO")
    if audio_out is None:
        audio_out = _modality(raw, "responseTokensDetails", "AUDIO")
    return TokenClasses(
        input=_less(asked, read, audio_in),
        cache_read=read,
        output=_sum(_less(made, audio_out), thoughts),
        reasoning=thoughts,
        audio_in=audio_in,
        audio_out=audio_out,
    )


def _cohere(raw: Mapping[str, object]) -> TokenClasses:
    """Billed units where there are some: Cohere does not charge what it adds to a prompt."""
    billed, used = _object(raw, "billed_units"), _object(raw, "tokens")

    def number(name: str) -> int | None:
        found = _count(billed, name)
        return found if found is not None else _count(used, name)

    return TokenClasses(input=number("input_tokens"), output=number("output_tokens"), images=_count(billed, "images"))


# --- reading ---------------------------------------------------------------------------------------------------------


def _count(of: Mapping[str, object], *names: str) -> int | None:
    """Return the first of these members that is a count."""
    for name in names:
        value = of.get(name)
        if type(value) is float and value.is_integer():  # Cohere's
            value = int(value)
        if type(value) is int and 0 <= value <= _MAX_COUNT:
            return value
    return None


def _object(of: Mapping[str, object], name: str) -> Mapping[str, Any]:
    value = of.get(name)
    return value if isinstance(value, dict) else _NONE


def _first(of: Mapping[str, object], names: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the first of these members that is an object."""
    for name in names:
        value = of.get(name)
        if isinstance(value, dict):
            return value
    return None


def _modality(of: Mapping[str, object], name: str, modality: str) -> int | None:
    """Return the tokens of one modality in Google's list of them."""
    found = of.get(name)
    counts = [
        _count(each, "tokenCount")
        for each in (found[:_MAX_LIST] if isinstance(found, list) else ())
        if isinstance(each, dict) and each.get("modality") == modality
    ]
    return counts[0] if counts else None


def _less(whole: int | None, *parts: int | None) -> int | None:
    """Return the rest of ``whole``, and 0 if the parts are more: a provider's counts may be inconsistent."""
    if whole is None:
        return None
    for part in parts:
        if part:
            whole -= part
    return max(0, whole)


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
