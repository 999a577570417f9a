"""The prefixes of keys: to whom a key belongs, and whether it is in the right place. Pure.

A prefix is a hint. A key with an unknown prefix is not checked, and a wrong one prevents nothing: ``check`` and the first
401 name it. No sentence contains more of a key than its prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from proxy.lava.tokens import read_token
from proxy.protocol.providers import BUILTIN
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.settings import Project, Settings
    from proxy.protocol.errors import ProxyError

Role = Literal["secret_key", "spend_key", "forward_token", "byok", "local"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Keys with the same prefix. ``role`` is where they belong; ``providers`` are the owners of ``byok`` keys (none: a
    company that is not built in). ``sure``: no other keys have this prefix."""

    prefix: str
    owner: str
    role: Role | None
    providers: tuple[str, ...] = ()
    sure: bool = True


_GOOGLE = ("google", "googleOpenaiCompatible")
# A longer prefix precedes the shorter one that it begins with.
_KINDS = (
    _Kind("aks_", "Lava's secret keys", "secret_key"),
    _Kind("lava_sk_", "Lava's spend keys", "spend_key"),
    _Kind("lava_wk_", "Lava's wallet keys", None),
    _Kind("local_", "lava-proxy's local keys", "local"),
    _Kind("eyJ", "Lava's forward tokens", "forward_token"),
    _Kind("sk-ant-", "Anthropic's keys", "byok", ("anthropic",)),
    _Kind("sk-or-", "OpenRouter's keys", "byok"),
    *(_Kind(f"sk-{kind}-", "OpenAI's keys", "byok", ("openai",)) for kind in ("proj", "svcacct", "admin")),
    _Kind("sk-", "OpenAI's keys", "byok", ("openai", "deepseek", "moonshot"), sure=False),
    _Kind("sk_", "ElevenLabs' keys", "byok", ("elevenlabs", "novita"), sure=False),
    _Kind("AIza", "Google's keys", "byok", _GOOGLE),
    _Kind("AQ.", "Google's keys", "byok", _GOOGLE),
    _Kind("gsk_", "Groq's keys", "byok", ("groq",)),
    _Kind("xai-", "xAI's keys", "byok", ("xai",)),
    _Kind("csk-", "Cerebras' keys", "byok", ("cerebras",)),
    _Kind("fw_", "Fireworks' keys", "byok", ("fireworks",)),
    _Kind("tgp_v1_", "Together's keys", "byok", ("together",)),
    _Kind("cpk_", "Chutes' keys", "byok", ("chutes",)),
    _Kind("pplx-", "Perplexity's keys", "byok"),
    _Kind("nvapi-", "NVIDIA's keys", "byok"),
    _Kind("hf_", "Hugging Face's keys", "byok"),
    _Kind("r8_", "Replicate's keys", "byok"),
    _Kind("ghp_", "GitHub's tokens", "byok"),
    _Kind("github_pat_", "GitHub's tokens", "byok"),
    _Kind("AKIA", "Amazon's access keys", "byok"),
)

_WANTED: dict[Role, str] = {
    "secret_key": "a Lava secret key begins with aks_",
    "spend_key": "a spend key begins with lava_sk_",
    "forward_token": "a forward token begins with eyJ",
    "local": "tools would then hold it",
}
_MOVE: dict[Role | None, str] = {
    "secret_key": "Write it as secret_key, under [lava] or the project",
    "spend_key": "Write it as spend_key of a project",
    "forward_token": "Write it as forward_token of a project",
    "local": "Write it under keys: it opens this daemon and nothing else",
    None: "No setting takes a wallet key: make a secret key at Lava",
}


class Misplaced(NamedTuple):
    """A key that seems to be in the wrong place. ``problem`` follows the name of the place, ``suggestion`` is a sentence."""

    problem: str
    suggestion: str


def misplaced(role: Role, key: str, provider: str = "") -> Misplaced | None:
    """Return why `key` does not belong to `role` (``byok``: as the key of `provider`), or None."""
    kind = _kind(key)
    if role == "forward_token" and (kind is None or kind.role == role):
        return _inside(key)
    if kind is None or kind.role == role != "byok":
        return None
    if role == "byok" and (_may_be_of(kind, provider) or (kind.role == "forward_token" and not read_token(key))):
        return None  # some providers' keys are JSON Web Tokens, which begin like forward tokens
    if role == "local" and not kind.owner.startswith("Lava's"):
        return None  # some tools want a key that looks like their provider's
    problem = f"begins with {kind.prefix}, as {kind.owner} do"
    wanted = _shape_of(provider) if role == "byok" else _WANTED[role]
    if wanted:
        problem += f"; {wanted}"
    if kind.role != "byok":
        return Misplaced(problem, f"{_MOVE[kind.role]}.")
    if kind.providers:
        return Misplaced(problem, f"Write it as byok.{kind.providers[0]} of a project, and the right key here.")
    return Misplaced(problem, "Write the right key here.")


def of_settings(settings: Settings) -> Iterator[str]:
    """Yield a sentence, with a suggestion, for every key of a configuration that seems to be in the wrong place."""
    for place, role, key in _keys(settings):
        found = misplaced(role, key.reveal(), place.rpartition(".")[2] if role == "byok" else "")
        if found is not None:
            yield f"{place} {found.problem}. {found.suggestion}"


def explain(fault: ProxyError, name: str, project: Project, account_key: Secret | None, provider: str) -> bool:
    """Add to a 401 or 403 which key of project `name` seems to be in the wrong place. Return False if none does."""
    if fault.status not in (401, 403) or fault.owner not in ("lava", "provider", "unknown"):
        return False
    found = list(_of_request(name, project, account_key, provider))
    if found:
        problems = " ".join(f"{place} {each.problem}." for place, each in found)
        fault.what = f'Project "{name}": {problems} {fault.what}'
        fault.hint = found[0][1].suggestion
    return bool(found)


def _of_request(
    name: str, project: Project, account_key: Secret | None, provider: str
) -> Iterator[tuple[str, Misplaced]]:
    """Yield the misplaced keys of those in a request to `provider`, with their places."""
    table = f"[projects.{name}]"
    if project.spend_key is not None:
        found = misplaced("spend_key", project.spend_key.reveal())
        place = f"spend_key under {table}"
    elif project.forward_token is not None:
        token = project.forward_token.reveal()
        found = misplaced("forward_token", token)
        place = f"forward_token under {table}"
    else:
        key = project.secret_key or account_key
        found = misplaced("secret_key", key.reveal()) if key is not None else None
        place = f"secret_key under {table if project.secret_key is not None else '[lava]'}"
    if found is not None:
        yield place, found
    own = project.byok.get(provider)
    if isinstance(own, Secret) and (found := misplaced("byok", own.reveal(), provider)) is not None:
        yield f"byok.{provider} under {table}", found


def _keys(settings: Settings) -> Iterator[tuple[str, Role, Secret]]:
    """Yield every key of a configuration, with its place, except that of a login."""
    if settings.lava.secret_key is not None and settings.account_key_from:
        yield settings.account_key_from, "secret_key", settings.lava.secret_key
    for number, key in enumerate(settings.server.keys):
        yield f"server.keys[{number}]", "local", key
    for name, project in settings.projects.items():
        here = f"projects.{name}"
        ready: tuple[tuple[Role, Secret | None], ...] = (
            ("secret_key", project.secret_key),
            ("forward_token", project.forward_token),
            ("spend_key", project.spend_key),
        )
        for role, secret in ready:
            if secret is not None:
                yield f"{here}.{role}", role, secret
        for provider, own in project.byok.items():
            if isinstance(own, Secret):
                yield f"{here}.byok.{provider}", "byok", own
        for number, key in enumerate(project.keys):
            yield f"{here}.keys[{number}]", "local", key


def _inside(token: str) -> Misplaced | None:
    """Check the secret key in a forward token. A provider key in it cannot be checked: its provider is not known."""
    key = read_token(token).get("secret_key")
    found = misplaced("secret_key", key) if isinstance(key, str) else None
    if found is None:
        return None
    return Misplaced(
        f"holds a secret_key that {found.problem}", "Make a new forward token, with a Lava secret key in it."
    )


def _kind(key: str) -> _Kind | None:
    return next((kind for kind in _KINDS if key.startswith(kind.prefix)), None)


def _may_be_of(kind: _Kind, provider: str) -> bool:
    """Return whether a key of this kind may be this provider's."""
    if kind.role != "byok":
        return False
    if provider in kind.providers or provider not in BUILTIN:
        return True
    return not kind.sure and not _shape_of(provider)


def _shape_of(provider: str) -> str:
    """Return how this provider's keys begin, or an empty string."""
    kinds = [kind for kind in _KINDS if provider in kind.providers]
    shortest = [
        kind.prefix for kind in kinds if not any(kind.prefix.startswith(o.prefix) for o in kinds if o is not kind)
    ]
    return f"{provider}'s keys begin with {' or '.join(shortest)}" if shortest else ""
