"""The provider table: names, base addresses and the dialect each one speaks.

The 28 names and addresses are those of the ``providers`` map of ``@lavapayments/nodejs`` 11.2.0; a test compares them with
the recorded map of the SDK itself, for production and sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from proxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider. ``base_url`` has no trailing slash."""

    name: str
    base_url: str
    dialect: Dialect
    via: Literal["lava", "direct"] = "lava"
    faces: Mapping[bytes, Provider] = field(default_factory=dict)
    """Additional APIs of the same provider, by their path on the same host."""

    def face(self, words: list[bytes]) -> tuple[Provider, list[bytes]]:
        """Return the API that a path after this provider's name selects, and the rest of the path."""
        for length in (1, 2) if self.faces else ():
            found = self.faces.get(b"/".join(words[:length])) if len(words) >= length else None
            if found is not None:
                return found, words[length:]
        return self, words


_ADDRESSES: tuple[tuple[str, str, Dialect], ...] = (
    ("openai", "https://api.openai.com/v1", Dialect.OPENAI),
    ("anthropic", "https://api.anthropic.com/v1", Dialect.ANTHROPIC),
    ("mistral", "https://api.mistral.ai/v1", Dialect.OPENAI),
    ("deepseek", "https://api.deepseek.com/v1", Dialect.OPENAI),
    ("xai", "https://api.x.ai/v1", Dialect.OPENAI),
    ("google", "https://generativelanguage.googleapis.com/v1beta", Dialect.GOOGLE),
    ("googleOpenaiCompatible", "https://generativelanguage.googleapis.com/v1beta/openai", Dialect.OPENAI),
    ("kluster", "https://api.kluster.ai/v1", Dialect.OPENAI),
    ("inference", "https://api.inference.net/v1", Dialect.OPENAI),
    ("groq", "https://api.groq.com/openai/v1", Dialect.OPENAI),
    ("novita", "https://api.novita.ai/v3/openai", Dialect.OPENAI),
    ("vercel", "https://api.v0.dev/v1", Dialect.OPENAI),
    ("together", "https://api.together.xyz/v1", Dialect.OPENAI),
    ("hyperbolic", "https://api.hyperbolic.xyz/v1", Dialect.OPENAI),
    ("elevenlabs", "https://api.elevenlabs.io/v1", Dialect.OTHER),
    ("sambanova", "https://api.sambanova.ai/v1", Dialect.OPENAI),
    ("deepinfra", "https://api.deepinfra.com/v1/openai", Dialect.OPENAI),
    ("cohere", "https://api.cohere.ai/compatibility/v1", Dialect.OPENAI),
    ("parasail", "https://api.parasail.io/v1", Dialect.OPENAI),
    ("nebius", "https://api.studio.nebius.com/v1", Dialect.OPENAI),
    ("fireworks", "https://api.fireworks.ai/inference/v1", Dialect.OPENAI),
    ("embercloud", "https://api.embercloud.ai/v1", Dialect.OPENAI),
    ("cerebras", "https://api.cerebras.ai/v1", Dialect.OPENAI),
    ("targon", "https://api.targon.com/v1", Dialect.OPENAI),
    ("gmicloud", "https://api.gmi-serving.com/v1", Dialect.OPENAI),
    ("chutes", "https://llm.chutes.ai/v1", Dialect.OPENAI),
    ("baseten", "https://inference.baseten.co/v1", Dialect.OPENAI),
    ("moonshot", "https://api.moonshot.ai/v1", Dialect.OPENAI),
)

_FACES: Mapping[str, Mapping[str, Dialect]] = {
    "cohere": {"v2": Dialect.OTHER},
    "deepinfra": {"anthropic": Dialect.ANTHROPIC, "v1/inference": Dialect.OTHER},
    "deepseek": {"anthropic": Dialect.ANTHROPIC, "beta": Dialect.OPENAI, "user": Dialect.OTHER},
    "fireworks": {"v1/accounts": Dialect.OTHER},
    "moonshot": {"anthropic": Dialect.ANTHROPIC},
    "novita": {"anthropic": Dialect.ANTHROPIC, "openai": Dialect.OPENAI, "v3/async": Dialect.OTHER},
}
"""Paths on a provider's host at which it documents another API than that of its main address."""


def _built_in(name: str, url: str, dialect: Dialect) -> Provider:
    host = "/".join(url.split("/", 3)[:3])
    faces = {
        path.encode("ascii"): Provider(name, f"{host}/{path}", spoken) for path, spoken in _FACES.get(name, {}).items()
    }
    return Provider(name, url, dialect, faces=faces)


BUILTIN: Mapping[str, Provider] = MappingProxyType(
    {name: _built_in(name, url, dialect) for name, url, dialect in _ADDRESSES}
)

ALIASES: Mapping[str, str] = MappingProxyType({"google-openai": "googleOpenaiCompatible"})
"""Other spellings of a provider's name, without capital letters."""
