"""Which player stands behind a target address, and how each of them words its errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.emulator import anthropic, elevenlabs, google, openai, wording
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.emulator.exchange import EmulatedCall, EmulatedReply


@dataclass(frozen=True, slots=True)
class PlayerTarget:
    """A provider's address, taken apart. ``rest`` is the path below the base address, without a leading
    slash, still encoded.
    """

    provider: str
    dialect: Dialect
    rest: str
    query: str
    player: Callable[[EmulatedCall], EmulatedReply]


PLAYERS: Mapping[Dialect, Callable[[EmulatedCall], EmulatedReply]] = {
    Dialect.OPENAI: openai.answer,
    Dialect.ANTHROPIC: anthropic.answer,
    Dialect.GOOGLE: google.answer,
    Dialect.OTHER: elevenlabs.answer,
}

ERRORS: Mapping[Dialect, Callable[[int, str], EmulatedReply]] = {
    Dialect.OPENAI: wording.openai_error,
    Dialect.ANTHROPIC: wording.anthropic_error,
    Dialect.GOOGLE: wording.google_error,
    Dialect.OTHER: elevenlabs.error,
}

_GOOGLE_VERSION = re.compile(r"/(?:upload/)?v1(?:beta|alpha)?/(.+)")


def find(url: str, extra_hosts: set[str]) -> PlayerTarget | None:
    """The player for ``url``; ``None`` when Lava would not know the target.

    Only https counts, without user information; a port only on an extra host (a provider of one's own may
    have one).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme != "https" or "@" in parts.netloc:
        return None
    if host in extra_hosts:
        return _free(parts.path, parts.query, host)
    if port not in (None, 443):
        return None
    return _known(host, parts.path, parts.query)


def _known(host: str, path: str, query: str) -> PlayerTarget | None:
    """A provider of the table: the longest base path wins, as Google's two faces share a host."""
    found = [(urlsplit(provider.base_url), provider) for provider in BUILTIN.values()]
    here = sorted((pair for pair in found if pair[0].hostname == host), key=lambda pair: -len(pair[0].path))
    if not here:
        return None
    for base, provider in here:
        if path.startswith(base.path + "/"):
            rest = path[len(base.path) + 1 :]
            return PlayerTarget(provider.name, provider.dialect, rest, query, PLAYERS[provider.dialect])
    provider = here[-1][1]
    named = _GOOGLE_VERSION.fullmatch(path) if provider.dialect is Dialect.GOOGLE else None
    # A path outside the base address is the provider's to refuse: its player knows no endpoint with a leading
    # slash.
    return PlayerTarget(provider.name, provider.dialect, named[1] if named else path, query, PLAYERS[provider.dialect])


def _free(path: str, query: str, host: str) -> PlayerTarget:
    """A provider of the user's own may speak any dialect, which its path tells; anything else is echoed."""
    named = _GOOGLE_VERSION.fullmatch(path)
    if named and re.match(r"models/[^/]+:", named[1]):
        return PlayerTarget(host, Dialect.GOOGLE, named[1], query, google.answer)
    rest = re.sub(r"^/(?:.*/)?v\d\w*/(?:openai/)?", "", path).lstrip("/")
    if re.fullmatch(r"messages(?:/count_tokens)?", rest):
        return PlayerTarget(host, Dialect.ANTHROPIC, rest, query, anthropic.answer)
    if rest.partition("/")[0] in openai.FIRST_WORDS:
        return PlayerTarget(host, Dialect.OPENAI, rest, query, openai.answer)
    return PlayerTarget(host, Dialect.OPENAI, path.lstrip("/"), query, openai.echo)
