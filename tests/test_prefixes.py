"""What the first characters of a key tell: whether it is in the right place, and what is said of it in a 401."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from configurations import loaded

from proxy.config.settings import Project
from proxy.lava.prefixes import explain, misplaced, of_settings
from proxy.lava.tokens import mint_token
from proxy.protocol.errors import ProxyError
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.lava.prefixes import Role

TAIL = "Qx7vT2nB" * 4


@pytest.mark.parametrize(
    ("role", "provider", "prefix", "suggestion"),
    [
        ("secret_key", "", "lava_sk_", "spend_key of a project"),
        ("secret_key", "", "lava_wk_", "make a secret key at Lava"),
        ("secret_key", "", "local_", "under keys"),
        ("secret_key", "", "eyJ", "forward_token of a project"),
        ("secret_key", "", "sk-", "byok.openai"),
        ("secret_key", "", "sk-proj-", "byok.openai"),
        ("secret_key", "", "sk-ant-", "byok.anthropic"),
        ("secret_key", "", "AIza", "byok.google"),
        ("secret_key", "", "gsk_", "byok.groq"),
        ("secret_key", "", "xai-", "byok.xai"),
        ("secret_key", "", "hf_", "the right key here"),
        ("spend_key", "", "aks_", "secret_key, under [lava]"),
        ("spend_key", "", "lava_wk_", "make a secret key at Lava"),
        ("spend_key", "", "sk-ant-", "byok.anthropic"),
        ("spend_key", "", "eyJ", "forward_token"),
        ("forward_token", "", "aks_", "secret_key, under [lava]"),
        ("forward_token", "", "lava_sk_", "spend_key of a project"),
        ("forward_token", "", "sk-", "byok.openai"),
        ("byok", "openai", "sk-ant-", "byok.anthropic"),
        ("byok", "anthropic", "sk-proj-", "byok.openai"),
        ("byok", "anthropic", "sk-", "byok.openai"),
        ("byok", "google", "sk-", "byok.openai"),
        ("byok", "openai", "AIza", "byok.google"),
        ("byok", "mistral", "AIza", "byok.google"),
        ("byok", "mistral", "gsk_", "byok.groq"),
        ("byok", "groq", "xai-", "byok.xai"),
        ("byok", "xai", "gsk_", "byok.groq"),
        ("byok", "elevenlabs", "sk-", "byok.openai"),
        ("byok", "openai", "sk-or-", "the right key here"),
        ("byok", "openai", "aks_", "secret_key"),
        ("byok", "acme", "aks_", "secret_key"),
        ("byok", "acme", "lava_sk_", "spend_key"),
        ("byok", "openai", "local_", "under keys"),
        ("local", "", "aks_", "secret_key"),
        ("local", "", "lava_sk_", "spend_key"),
    ],
)
def test_a_key_in_the_wrong_place_is_named_by_its_prefix(
    role: Role, provider: str, prefix: str, suggestion: str
) -> None:
    """What it begins with, whose keys do, and where it belongs; never more of it than the prefix."""
    found = misplaced(role, prefix + TAIL, provider)
    assert found is not None
    assert found.problem.startswith(f"begins with {prefix}, as ")
    assert suggestion in found.suggestion
    assert not leaks(" ".join(found), [TAIL])
    assert TAIL[:3] not in " ".join(found)


@pytest.mark.parametrize(
    ("role", "provider", "key"),
    [
        ("secret_key", "", "aks_live_" + TAIL),
        ("secret_key", "", "aks_test_" + TAIL),
        ("secret_key", "", TAIL),
        ("spend_key", "", "lava_sk_" + TAIL),
        ("spend_key", "", TAIL),
        ("forward_token", "", mint_token("aks_live_" + TAIL, meter_slug="m")),
        ("forward_token", "", TAIL),
        ("byok", "openai", "sk-" + TAIL),
        ("byok", "openai", "sk-proj-" + TAIL),
        *(("byok", "openai", f"sk-{kind}-{TAIL}") for kind in ("svcacct", "admin")),
        ("byok", "deepseek", "sk-" + TAIL),
        ("byok", "moonshot", "sk-" + TAIL),
        ("byok", "deepinfra", "sk-" + TAIL),  # how its keys begin is not known
        ("byok", "anthropic", "sk-ant-" + TAIL),
        ("byok", "google", "AIza" + TAIL),
        ("byok", "googleOpenaiCompatible", "AIza" + TAIL),
        ("byok", "groq", "gsk_" + TAIL),
        ("byok", "novita", "sk_" + TAIL),
        ("byok", "nebius", "eyJhbGciOiJIUzI1NiJ9." + TAIL),  # a JSON Web Token
        ("byok", "acme", "sk-ant-" + TAIL),  # a provider of one's own takes what it takes
        ("byok", "openai", TAIL),
        ("local", "", "sk-ant-" + TAIL),  # some tools want a key that looks like their provider's
        ("local", "", "local_" + TAIL),
    ],
)
def test_a_key_that_may_be_in_the_right_place_is_not_judged(role: Role, provider: str, key: str) -> None:
    """The right prefix, an unknown one, or a place whose keys may begin in any way."""
    assert misplaced(role, key, provider) is None


def test_the_secret_key_inside_a_forward_token() -> None:
    """A token made with the wrong key is named, too."""
    found = misplaced("forward_token", mint_token("lava_sk_" + TAIL, meter_slug="m"))
    assert found is not None
    assert found.problem.startswith("holds a secret_key that begins with lava_sk_")
    assert not leaks(" ".join(found), [TAIL])


def test_every_place_of_a_configuration(tmp_path: Path) -> None:
    """Each misplaced key with the name of its place, and none of the good ones."""
    text = f"""
    default_project = "a"
    [server]
    keys = ["aks_live_{TAIL}", "local_{TAIL}"]
    [lava]
    secret_key = "sk-{TAIL}"
    [projects.a]
    secret_key = "lava_wk_{TAIL}"
    keys = ["lava_sk_{TAIL}"]
    byok.openai = "AIza{TAIL}"
    byok.google = "AIza{TAIL}"
    byok.groq = "client"
    [projects.b]
    spend_key = "aks_test_{TAIL}"
    [projects.c]
    forward_token = "sk-ant-{TAIL}"
    """
    assert [sentence.split()[0] for sentence in of_settings(loaded(tmp_path, text))] == [
        "lava.secret_key",
        "server.keys[0]",
        "projects.a.secret_key",
        "projects.a.byok.openai",
        "projects.a.keys[0]",
        "projects.b.spend_key",
        "projects.c.forward_token",
    ]


@pytest.mark.parametrize(
    ("project", "account", "provider", "said"),
    [
        ({}, "lava_sk_", "openai", "secret_key under [lava] begins with lava_sk_"),
        ({"secret_key": "sk-"}, "aks_", "openai", "secret_key under [projects.web] begins with sk-"),
        ({"spend_key": "aks_"}, "aks_", "openai", "spend_key under [projects.web] begins with aks_"),
        ({"forward_token": "lava_sk_"}, None, "openai", "forward_token under [projects.web] begins with lava_sk_"),
        ({"byok": {"openai": "sk-ant-"}}, "aks_", "openai", "byok.openai under [projects.web] begins with sk-ant-"),
        ({"byok": {"openai": "sk-ant-"}}, "aks_", "groq", None),
        ({}, "aks_", "openai", None),
    ],
)
def test_a_refused_request_names_the_key_that_it_was_sent_with(
    project: dict[str, Any], account: str | None, provider: str, said: str | None
) -> None:
    """The 401 begins with it and its hint says what to do; only the keys of that request count."""

    def keyed(value: Any) -> Any:
        return (
            {name: Secret(each + TAIL) for name, each in value.items()}
            if isinstance(value, dict)
            else Secret(value + TAIL)
        )

    made = Project.model_validate({name: keyed(value) for name, value in project.items()})
    fault = ProxyError("lava_unauthorized", "Lava rejects it.", "Check the key.", owner="lava")
    found = explain(fault, "web", made, Secret(account + TAIL) if account else None, provider)
    assert found == (said is not None)
    if said is None:
        assert (fault.message, fault.hint) == ("Lava rejects it.", "Check the key.")
    else:
        assert fault.message.startswith(f'Project "web": {said}, as ')
        assert fault.message.endswith(". Lava rejects it.")
        assert fault.hint.startswith("Write it as ")
        assert not leaks(fault.message + fault.hint, [TAIL])


@pytest.mark.parametrize("code", ["local_key_invalid", "project_not_allowed", "origin_not_allowed"])
def test_our_own_refusals_say_nothing_of_it(code: str) -> None:
    """A request that reached nobody was not refused for that key."""
    fault = ProxyError(code, "No.", "Do this.")
    assert not explain(fault, "web", Project(), Secret("lava_sk_" + TAIL), "openai")
    assert fault.message == "No."
