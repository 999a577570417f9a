"""Which provider answers at a target address, and the error function of each dialect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.emulator import anthropic, elevenlabs, google, openai, provider_errors
from proxy.emulator.exchange import EmulatedCall, EmulatedReply
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import BUILTIN

Answer = Callable[[EmulatedCall], EmulatedReply]


@dataclass(frozen=True, slots=True)
class ProviderTarget:
    """The parts of a target address; ``rest`` is the path below the base address, still encoded."""

    provider: str
    dialect: Dialect
    rest: str
    query: str
    answer: Answer


ANSWERS: Mapping[Dialect, Answer] = {
    Dialect.OPENAI: openai.answer,
    Dialect.ANTHROPIC: anthropic.answer,
    Dialect.GOOGLE: google.answer,
    Dialect.OTHER: elevenlabs.answer,
}

ERRORS: Mapping[Dialect, Callable[[int, str], EmulatedReply]] = {
    Dialect.OPENAI: provider_errors.openai_error,
    Dialect.ANTHROPIC: provider_errors.anthropic_error,
    Dialect.GOOGLE: provider_errors.google_error,
    Dialect.OTHER: elevenlabs.error,
}

_GOOGLE_VERSION = re.compile(r"/(?:upload/)?v1(?:beta|alpha)?/(.+)")


def find(url: str, extra_hosts: set[str]) -> ProviderTarget | None:
    """Return the target of ``url``; ``None`` if Lava does not support it.

    Only https is supported, without user information, and with a port only on an extra host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme != "https" or "@" in parts.netloc:
        return None
    if host in extra_hosts:
        return _custom(parts.path, parts.query, host)
    return _builtin(host, parts.path, parts.query) if port in (None, 443) else None


def _builtin(host: str, path: str, query: str) -> ProviderTarget | None:
    """Return a built-in provider: the longest base path wins, as Google has two interfaces on one host."""
    bases = [(urlsplit(provider.base_url), provider) for provider in BUILTIN.values()]
    found = sorted((pair for pair in bases if pair[0].hostname == host), key=lambda pair: -len(pair[0].path))
    if not found:
        return None
    for base, provider in found:
        if path.startswith(base.path + "/"):
            rest = path[len(base.path) + 1 :]
            return ProviderTarget(provider.name, provider.dialect, rest, query, ANSWERS[provider.dialect])
    provider = found[-1][1]
    named = _GOOGLE_VERSION.fullmatch(path) if provider.dialect is Dialect.GOOGLE else None
    # The provider refuses a path outside its base address: none of its endpoints begins with a slash.
    return ProviderTarget(
        provider.name, provider.dialect, named[1] if named else path, query, ANSWERS[provider.dialect]
    )


def _custom(path: str, query: str, host: str) -> ProviderTarget:
    """Return a provider of the user's own; its path decides the dialect, and any other path is echoed."""
    named = _GOOGLE_VERSION.fullmatch(path)
    if named and re.match(r"models/[^/]+:", named[1]):
        return ProviderTarget(host, Dialect.GOOGLE, named[1], query, google.answer)
    rest = re.sub(r"^/(?:.*/)?v\d\w*/(?:openai/)?", "", path).lstrip("/")
    if re.fullmatch(r"messages(?:/count_tokens)?", rest):
        return ProviderTarget(host, Dialect.ANTHROPIC, rest, query, anthropic.answer)
    if rest.partition("/")[0] in openai.FIRST_WORDS:
        return ProviderTarget(host, Dialect.OPENAI, rest, query, openai.answer)
    return ProviderTarget(host, Dialect.OPENAI, path.lstrip("/"), query, openai.echo)
