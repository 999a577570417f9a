"""The provider table: the same 28 names and addresses as Lava's SDK."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.lava.tokens import base_url_for
from proxy.protocol.dialects import Dialect
from proxy.protocol.providers import ALIASES, BUILTIN

RECORDED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "vectors" / "provider_urls.json").read_text(encoding="utf-8")
)
NEWEST = [name for name in RECORDED if name.startswith("11.2.0 ")]


@pytest.mark.parametrize("recorded", NEWEST)
def test_the_table_is_the_sdks(recorded: str) -> None:
    """Lava's address by the key's prefix, ``forward?u=`` and each provider's base address: SDK 11.2.0's own map."""
    base = base_url_for(recorded.partition(" ")[2] + "abc")
    ours = {name: f"{base}/forward?u={provider.base_url}" for name, provider in BUILTIN.items()}
    assert ours == RECORDED[recorded]


@pytest.mark.parametrize("recorded", [name for name in RECORDED if name not in NEWEST])
def test_the_older_sdks_names_are_all_there(recorded: str) -> None:
    """SDK 8.1.0 had one provider fewer, and the same addresses."""
    base = base_url_for(recorded.partition(" ")[2] + "abc")
    for name, url in RECORDED[recorded].items():
        assert f"{base}/forward?u={BUILTIN[name].base_url}" == url


def test_there_are_production_and_sandbox() -> None:
    """The recording tells both hosts, and 28 providers."""
    assert len(BUILTIN) == 28
    hosts = {urlsplit(url).hostname for name in NEWEST for url in RECORDED[name].values()}
    assert hosts == {"api.lavapayments.com", "sandbox-api.lavapayments.com"}


def test_a_provider_knows_its_name_and_has_a_sound_address() -> None:
    """https, a host, a path without a slash at its end; everything goes through Lava."""
    for name, provider in BUILTIN.items():
        parts = urlsplit(provider.base_url)
        assert provider.name == name
        assert provider.via == "lava"
        assert parts.scheme == "https"
        assert parts.netloc == parts.hostname
        assert parts.path.startswith("/")
        assert not provider.base_url.endswith("/")
        assert not parts.query


def test_what_each_provider_speaks() -> None:
    """Anthropic, Google and ElevenLabs have interfaces of their own; all others have OpenAI's."""
    others = {name: provider.dialect for name, provider in BUILTIN.items() if provider.dialect is not Dialect.OPENAI}
    assert others == {"anthropic": Dialect.ANTHROPIC, "google": Dialect.GOOGLE, "elevenlabs": Dialect.OTHER}


def test_an_alias_is_another_name_of_a_provider() -> None:
    """It leads to one that exists, and hides none."""
    assert ALIASES["google-openai"] == "googleOpenaiCompatible"
    assert set(ALIASES.values()) <= set(BUILTIN)
    assert not set(ALIASES) & set(BUILTIN)


def test_the_table_cannot_be_changed() -> None:
    """It is shared by everything that runs."""
    with pytest.raises(TypeError):
        BUILTIN["x"] = BUILTIN["openai"]  # type: ignore[index]  # that it is refused is the point
