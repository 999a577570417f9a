"""Routing: from a request to a ``Target``. Pure decisions over raw bytes.

There are two steps, because ``model`` may be in a body that is not read yet: ``locate`` returns the ``Endpoint`` of an address,
``route`` returns its ``Target``. The raw bytes of the path are both routed and forwarded; they are never decoded and encoded
again. The host of the target is always the provider's own: a path is only appended, after a literal ``/``, to a base address
from the configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_from_bytes, unquote, unquote_plus, unquote_to_bytes

from proxy.config.settings import IMPLICIT_PROJECT, Project, Settings
from proxy.protocol import providers
from proxy.protocol.dialects import (
    BEFORE_ENDPOINTS,
    OPENAI_WORDS,
    VERSION,
    Dialect,
    Ending,
    at_google,
    at_provider,
    ending_of,
    of_endpoint,
    of_headers,
    words_of,
)
from proxy.protocol.errors import ProxyError
from proxy.protocol.providers import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

# The characters that encodeURIComponent does not encode, beside letters and digits (ECMA-262, 19.2.6.4).
_URI_COMPONENT = "!~*'()-_."

_BAD_BYTE = re.compile(rb"[\x00-\x20\x7f-\xff\\#]|%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]|%5[Cc]")
_DOT_SEGMENT = re.compile(rb"(?:^|/)(?:\.|%2[eE]){1,2}(?=/|$)")
_BAD_QUERY_BYTE = re.compile(rb"[\x00-\x20\x7f]")

# A model in one of Google's addresses. It does not affect routing and is only logged.
_IN_GOOGLES_PATH = re.compile(rb"(?:[^/]+/)?models/([^/:]+)")

_BUILT_IN_MODELS: tuple[tuple[str, str], ...] = (
    ("claude-", "anthropic"),
    ("gemini-", "google"),
    *(
        (prefix, "openai")
        for prefix in ("gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-", "dall-e-", "gpt-image-")
    ),
    *((prefix, "openai") for prefix in ("tts-", "whisper-", "omni-moderation-")),
    *((prefix, "mistral") for prefix in ("mistral-", "codestral-", "ministral-", "pixtral-")),
    ("deepseek-", "deepseek"),
    ("grok-", "xai"),
    ("command-", "cohere"),
    *((prefix, "moonshot") for prefix in ("kimi-", "moonshot-")),
)
"""Prefixes of model names and their provider, for names that the configuration does not cover."""


@dataclass(frozen=True)
class RoutingTable:
    """Everything that routing needs from one configuration."""

    providers: Mapping[bytes, Provider]
    projects: Mapping[str, Project]
    default_project: str | None
    aliases: Mapping[str, tuple[str, ...]]
    """All targets of a name, in order of preference. Today the first one is used (``alias``)."""
    patterns: tuple[tuple[re.Pattern[str], str], ...]
    names: tuple[str, ...] = field(default=())
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Names of providers by their lower-case form."""
    known: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """Lower-case beginnings of model names: the name for messages, and the provider (``None`` for an alias)."""

    @classmethod
    def of(cls, settings: Settings) -> RoutingTable:
        """Return the table of these settings."""
        table: dict[str, Provider] = dict(providers.BUILTIN)
        for name, custom in settings.providers.items():
            table[name] = Provider(name, custom.base_url, Dialect(custom.dialect), custom.via)
        for alias, name in providers.ALIASES.items():
            table.setdefault(alias, table[name])
        by_bytes = {name.encode("ascii"): provider for name, provider in table.items()}
        projects = dict(settings.projects) or {IMPLICIT_PROJECT: Project()}
        default = settings.default_project or (next(iter(projects)) if len(projects) == 1 else None)
        aliases: dict[str, tuple[str, ...]] = {}
        patterns: list[tuple[re.Pattern[str], str]] = []
        for name, targets in settings.models.items():
            if "*" in name:
                patterns.append((_glob(name), targets[0]))
            else:
                aliases[name] = tuple(targets)
        return cls(
            by_bytes,
            projects,
            default,
            aliases,
            tuple(patterns),
            tuple(table),
            {name.lower(): name for name in table},
            {
                **{start.rstrip("-"): (f"{start}*", provider) for start, provider in _BUILT_IN_MODELS},
                **{
                    name.partition("*")[0].lower().rstrip("-_.:/"): (name, targets[0])
                    for name, targets in settings.models.items()
                    if "*" in name
                },
                **{alias.lower(): (alias, None) for alias in aliases},
                **{name.lower(): ("a model", name) for name in table},
            },
        )

    def alias(self, name: str) -> str | None:
        """Return the target that an alias means, ``None`` if it is none."""
        targets = self.aliases.get(name)
        return targets[0] if targets is not None else None

    def provider(self, name: str) -> Provider | None:
        """Return the provider with this name, or ``None``."""
        return self.providers.get(name.encode("utf-8", "surrogatepass"))


def _glob(name: str) -> re.Pattern[str]:
    """Compile a pattern of ``[models]``.

    Each piece matches at its first position only (an atomic group). There is no backtracking, so no model name can make the
    search slow.
    """
    first, *pieces = map(re.escape, name.split("*"))
    last = pieces.pop()
    middle = "".join(f"(?>.*?{piece})" for piece in pieces if piece)
    return re.compile(rf"{first}{middle}.*{last}\Z", re.DOTALL)


class EndpointKind(Enum):
    """The kind of an endpoint."""

    PROVIDER = "provider"  # the address names the provider
    MODEL = "model"  # the model's name decides the provider
    CATALOG = (
        "catalog"  # the list of models or one of them, served here; an unlisted model is requested from its provider
    )
    INFO = "info"  # a bare base address: a description of this daemon


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What an address determines without the body. ``rest`` is the raw remainder without a leading slash."""

    kind: EndpointKind
    dialect: Dialect
    rest: bytes = b""
    project: str | None = None
    provider: Provider | None = None
    model: str | None = None
    """A model in the path (``GET /v1/models/<model>``)."""

    @property
    def reads_body(self) -> bool:
        """Whether the body must be searched for ``model``."""
        return self.kind is EndpointKind.MODEL and self.model is None


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request. ``target`` is the request target below Lava's base path (``b"forward?u=…"``)."""

    project: str
    provider: Provider
    dialect: Dialect
    ending: Ending
    target: bytes
    model: str | None = None
    replace: str | None = None
    """The model name that replaces the client's in the body, or ``None``."""
    hint: str | None = None
    """A suggestion for an unknown model name: printable ASCII, and no text from the client."""

    @property
    def wants_anthropic_version(self) -> bool:
        """Whether ``anthropic-version`` is required: Anthropic refuses requests without it, and Lava does not add it."""
        if self.target.startswith((b"forward?", b"rewrite/")):
            return self.provider.dialect is Dialect.ANTHROPIC
        return self.dialect is Dialect.ANTHROPIC  # Lava's own endpoint: what it speaks is the client's dialect


def check_target(path: bytes) -> None:
    """Refuse a raw path that two programs could interpret differently. Raises ``ProxyError`` ``bad_target``."""
    bad = _BAD_BYTE.search(path)
    if bad is not None:
        raise _bad_target("a control character, a backslash, a bare non-ASCII byte or a broken % escape")
    if _DOT_SEGMENT.search(path) is not None:
        raise _bad_target('a segment "." or ".."')
    if b"%" in path:
        try:
            unquote_to_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            raise _bad_target("escapes that are not valid UTF-8") from None


def _bad_target(what: str) -> ProxyError:
    return ProxyError(
        "bad_target",
        f"The address has {what} in its path.",
        "Send the plain address, with other characters percent-encoded.",
    )


def locate(method: str, path: bytes, headers: Mapping[bytes, bytes], table: RoutingTable) -> Endpoint:
    """Return the endpoint of the raw ``path``.

    ``headers`` (lower-case names) matter only for ``dialects.of_headers``: the dialect of an endpoint that several companies
    have. Raises ``ProxyError`` ``method_not_allowed``, ``bad_target``, ``provider_not_found`` or ``path_not_found``.
    """
    if method not in METHODS:
        raise ProxyError(
            "method_not_allowed",
            f"The method {method[:20]} is not served here.",
            "Use GET, HEAD, POST, PUT, PATCH or DELETE.",
            headers=[(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE")],
        )
    check_target(path)
    project: str | None = None
    first, rest = _word(path)
    if first == b"p":
        named, rest = _word(rest)
        if not named:
            raise _no_path(path, "Put the project's name after /p/, as in /p/website/v1.")
        project = named.decode("ascii")
        first, rest = _word(rest)
    if not first:
        return _info(method, path, project)
    provider = table.providers.get(first)
    if provider is not None:
        return _at_provider(method, path, project, provider, rest)
    words = [first, *words_of(rest)]
    google = at_google(words)
    if google is not None:
        return _at_google(method, path, project, google, table)
    if first == b"v1":
        while words[:1] == [b"v1"]:  # a base URL with /v1, in a tool that adds its own
            words = words[1:]
        return _by_model(method, path, project, words, headers, table) if words else _info(method, path, project)
    if first == b"messages" or (
        first in OPENAI_WORDS
        and (words[1:2] == [b"completions"] if first == b"chat" else len(words) > 1 or first not in _FOLDERS)
    ):
        return _by_model(method, path, project, words, headers, table)
    raise _unknown(path, first, words[1:], table)


_FOLDERS = frozenset({b"chat", b"images", b"audio"})  # no endpoints themselves


def _word(path: bytes) -> tuple[bytes, bytes]:
    """Return the first segment of ``path`` (doubled slashes are accepted) and what follows its slash."""
    word, _, rest = path.lstrip(b"/").partition(b"/")
    return word, rest


def _info(method: str, path: bytes, project: str | None, provider: Provider | None = None) -> Endpoint:
    if method not in ("GET", "HEAD"):
        raise _no_path(path, "This is a base URL: append an endpoint, such as /v1/chat/completions.")
    return Endpoint(EndpointKind.INFO, Dialect.OPENAI, project=project, provider=provider)


def _at_provider(method: str, path: bytes, project: str | None, provider: Provider, rest: bytes) -> Endpoint:
    words = words_of(rest)
    face, behind = provider.face(words)
    base = "/".join(["", provider.name, *(word.decode("ascii") for word in words[: len(words) - len(behind)])])
    if face is not provider:
        rest = rest.lstrip(b"/")
        for _ in range(len(words) - len(behind)):
            rest = _word(rest)[1]
        provider, words = face, behind
    below = _below_base(provider, rest.lstrip(b"/"))
    squeezed = _below_base(provider, b"/".join(words))
    version, _, endpoint = squeezed.partition(b"/")
    if squeezed in _ENDPOINTS or (VERSION.match(version) and endpoint in _ENDPOINTS):
        below = squeezed  # a well-known endpoint: doubled and trailing slashes in it are a mistake
    if not squeezed or (provider.dialect is not Dialect.OPENAI and VERSION.match(squeezed)):
        return _info(method, path, project, provider)
    words = words_of(squeezed)
    dialect = at_provider(provider.dialect, words)
    if provider.dialect is not Dialect.OTHER and _stands_twice(words):
        raise _twice(path, project, base + "/v1" if dialect is Dialect.OPENAI else base)
    return Endpoint(EndpointKind.PROVIDER, dialect, below, project, provider)


_ENDPOINTS = frozenset(
    {
        *(b"chat/completions", b"completions", b"responses", b"embeddings", b"models", b"moderations", b"files"),
        *(b"batches", b"images/generations", b"images/edits", b"images/variations", b"audio/speech"),
        *(b"audio/transcriptions", b"audio/translations", b"messages", b"messages/count_tokens", b"messages/batches"),
        b"realtime",
    }
)


def _below_base(provider: Provider, rest: bytes) -> bytes:
    """Return ``rest`` without what the base address already has, or what a tool added twice."""
    own = _path_of(provider.base_url)
    if provider.dialect is not Dialect.OPENAI:
        own = _VERSION_AT_END.sub(b"", own)
    if own and (rest == own or rest.startswith(own + b"/")):
        rest = rest[len(own) :].lstrip(b"/")
    if provider.dialect is Dialect.OPENAI:
        # More than one if the base URL has /v1 and the tool adds its own.
        while rest == b"v1" or rest.startswith(b"v1/"):
            rest = rest[2:].lstrip(b"/")
        return rest
    while True:  # the tool's own version counts, not the base URL's
        version, _, tail = rest.partition(b"/")
        tail = tail.lstrip(b"/")
        if not (VERSION.match(version) and _is_versioned(provider, tail)):
            return rest
        rest = tail


_VERSION_AT_END = re.compile(rb"(?:^|/)v\d+[a-z]*\d*\Z")


def _is_versioned(provider: Provider, rest: bytes) -> bool:
    """Whether ``rest`` begins with a version. Google's uploads have it as their second segment."""
    word, _, tail = rest.partition(b"/")
    if word == b"upload" and provider.dialect is Dialect.GOOGLE:
        word = tail.partition(b"/")[0]
    return VERSION.match(word) is not None


def _by_model(
    method: str,
    path: bytes,
    project: str | None,
    words: list[bytes],
    headers: Mapping[bytes, bytes],
    table: RoutingTable,
) -> Endpoint:
    rest = b"/".join(words)
    owner = of_endpoint(method, words)
    if owner is None:
        _refuse_provider(path, project, words[0], table)
    dialect = owner or of_headers(headers)
    if _stands_twice(words):
        raise _twice(path, project, "/" if dialect is Dialect.ANTHROPIC else "/v1")
    named: str | None = None
    # An operation of a model is not a model: Google's clients poll it until it is done.
    listed = words[0] == b"models" and method in ("GET", "HEAD") and b"operations" not in words
    if words[0] == b"models" and (listed or dialect is not Dialect.GOOGLE):
        named = unquote(rest.partition(b"/")[2].decode("ascii")) or None
    if dialect is Dialect.GOOGLE and not (listed and named is None):
        kind = EndpointKind.CATALOG if listed else EndpointKind.PROVIDER
        return Endpoint(kind, dialect, b"v1/" + rest, project, table.providers[b"google"], named)
    return Endpoint(EndpointKind.CATALOG if listed else EndpointKind.MODEL, dialect, rest, project, model=named)


def _at_google(method: str, path: bytes, project: str | None, words: list[bytes], table: RoutingTable) -> Endpoint:
    if len(words) == 1:
        return _info(method, path, project)
    dialect = Dialect.OPENAI if words[1] == b"openai" else Dialect.GOOGLE
    if dialect is Dialect.GOOGLE and words[0] != b"upload":
        owner = of_endpoint(method, words[1:])
        if owner not in (None, Dialect.GOOGLE):
            base = _base_url(project, "/" if owner is Dialect.ANTHROPIC else "/v1")
            raise _no_path(path, f"This endpoint is not Google's: use {base} as the base URL.")
        _refuse_provider(path, project, words[1], table)
    if _stands_twice(words):
        raise _twice(path, project, "/" if dialect is Dialect.GOOGLE else f"/{words[0].decode('ascii')}/openai")
    return Endpoint(EndpointKind.PROVIDER, dialect, b"/".join(words), project, table.providers[b"google"])


def _path_of(base_url: str) -> bytes:
    return base_url.partition("://")[2].partition("/")[2].encode("ascii")


# --- refusals with the right address in them -------------------------------------------------------------------------


def maker(model: str) -> str | None:
    """Return the provider of models with this name: ``xai`` for ``grok`` or ``grok-4``."""
    name = f"{model.lower()}-"
    return next((provider for start, provider in _BUILT_IN_MODELS if name.startswith(start)), None)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to ``name``, or ``None`` if none is similar."""
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def _no_path(path: bytes, hint: str) -> ProxyError:
    return ProxyError("path_not_found", f"Nothing is served at {path.decode('ascii', 'replace')[:200]}. {hint}", hint)


def _base_url(project: str | None, base: str) -> str:
    """Return ``base`` below the project in the address."""
    return base if project is None else f"/p/{project}{base.rstrip('/')}"


def _twice(path: bytes, project: str | None, base: str) -> ProxyError:
    return _no_path(path, f"An endpoint stands twice in this address: use {_base_url(project, base)} as the base URL.")


def _stands_twice(words: list[bytes]) -> bool:
    """Whether an endpoint follows an endpoint: the base URL has one, and the tool added its own."""
    words = _without_base(words)
    length = 2 if b"/".join(words[:2]) in _ENDPOINTS else 1
    begun, behind = b"/".join(words[:length]), words[length:]
    again = _without_base(behind)
    if begun in _FOLDERS:
        return again[:1] == [begun]
    if begun == b"models" and any(b":" in word and word[:3] != b"ft:" for word in words[1:-1]):
        return True  # after a method of Google's, which is the last segment of a path
    if begun not in _ENDPOINTS or not {b"/".join(again[:1]), b"/".join(again[:2])} & _ENDPOINTS:
        return False
    # What follows "models" is a name, which may have slashes, unless it is an endpoint and nothing else.
    versioned = any(VERSION.match(word) for word in behind[: len(behind) - len(again)])
    return begun != b"models" or versioned or b"/".join(again) in _ENDPOINTS


def _without_base(words: list[bytes]) -> list[bytes]:
    """Return ``words`` without those that base URLs have before an endpoint."""
    index = 0
    while index < len(words) and (VERSION.match(words[index]) or words[index] in BEFORE_ENDPOINTS):
        index += 1
    return words[index:]


def _refuse_provider(path: bytes, project: str | None, word: bytes, table: RoutingTable) -> None:
    """Raise ``ProxyError`` ``path_not_found`` if a provider's name, in any spelling, follows a version."""
    if word == b"p":
        raise _no_path(path, "A project stands before everything else: use /p/<project>/v1 as the base URL.")
    name = table.spellings.get(unquote(word.decode("ascii")).lower())
    if name is not None:
        raise _no_path(
            path, f"A provider stands before the version: use {_base_url(project, f'/{name}/v1')} as the base URL."
        )


def _unknown(path: bytes, first: bytes, words: list[bytes], table: RoutingTable) -> ProxyError:
    name = first.decode("ascii", "replace")[:100]
    if first in OPENAI_WORDS:
        return _no_path(path, f"OpenAI's endpoints begin with /v1, as in /v1/{name}/…")
    if VERSION.match(first) or first == b"upload":
        return _no_path(
            path,
            "Use /v1 for OpenAI's and Anthropic's interface, /v1beta for Google's, or put a provider in front.",
        )
    close = nearest(name, table.names)
    if not words and close is None:
        return _no_path(path, "Use /v1 as the base URL, or /<provider>/v1 for one provider.")
    meant = f'Did you mean "{close}"? ' if close else ""
    advice = f"Use /{close or 'openai'}/v1 as the base URL."
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        advice = f"Use /{close or 'openai'}/v1 as the base URL, or add [providers.{name}] to the configuration."
    return ProxyError("provider_not_found", f'There is no provider "{name}". {meant}{advice}', advice)


def choose_project(bound: str | None, in_path: str | None, in_header: bytes | None, table: RoutingTable) -> str:
    """Return the project of a request: of the local key, the path, the header, or the default one, in this order.

    ``bound`` is the project of the local key. Raises ``ProxyError`` ``project_not_allowed`` (a bound key used for another
    project, whether it exists or not) or ``project_not_found``.
    """
    wanted = in_path if in_path is not None else in_header.decode("utf-8", "replace") if in_header is not None else None
    if bound is not None:
        if wanted is not None and wanted != bound:
            raise ProxyError(
                "project_not_allowed",
                f'This local key belongs to project "{bound}" and cannot be used for another one.',
                f"Leave the project out of the address, use /p/{bound}, or use the other project's key.",
            )
        return bound
    if wanted is not None:
        if wanted in table.projects:
            return wanted
        raise unknown_project(wanted, table)
    if table.default_project is not None:
        return table.default_project
    raise ProxyError(
        "project_not_found",
        f"No project was chosen, and there are several: {_listed(table.projects)}.",
        "Use /p/<project>/v1 as the base URL, that project's local key, or set default_project.",
    )


def unknown_project(wanted: str, table: RoutingTable) -> ProxyError:
    """Return the error for a project that is not configured, with the nearest name."""
    close, known = nearest(wanted, table.projects), f"Configured projects: {_listed(table.projects)}."
    meant = f'Did you mean "{close}"?' if close else known
    return ProxyError("project_not_found", f'There is no project "{wanted[:100]}". {meant}', known)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:20]) + (" …" if len(shown) > 20 else "")


# --- the target ------------------------------------------------------------------------------------------------------


def route(
    method: str, endpoint: Endpoint, query: bytes, project_name: str, model: str | None, table: RoutingTable
) -> Target:
    """Return the target of a request. ``model`` is the model in its body (``None``: no readable one).

    ``query`` is raw, without ``?``. Raises ``ProxyError`` ``crossing_unsupported``, or ``bad_target`` for a query with control
    bytes.
    """
    if _BAD_QUERY_BYTE.search(query) is not None:
        raise ProxyError(
            "bad_target",
            "The address has a control character or a space in its query.",
            "Send the plain address, with such characters percent-encoded.",
        )
    if endpoint.provider is not None:
        url = _target_url(endpoint.provider, endpoint.rest, query)
        ending = ending_of(endpoint.rest)
        named = _IN_GOOGLES_PATH.match(endpoint.rest) if endpoint.dialect is Dialect.GOOGLE else None
        model_in_path = unquote(named[1].decode("ascii")) if named is not None else None
        return Target(project_name, endpoint.provider, endpoint.dialect, ending, _forward(url), model_in_path)

    project = table.projects[project_name]
    model = endpoint.model if endpoint.model is not None else model
    provider, name, hint = _by_name(model, endpoint.dialect, project, table)
    rest = endpoint.rest
    ending = ending_of(rest)
    if project.spend_key is not None and method == "POST" and rest in (b"chat/completions", b"messages"):
        # Lava's own endpoints accept the provider's prefix in the model: only an alias is expanded for them.
        expanded = table.alias(model) if model is not None else None
        target = rest + _question(_less(query, _LAVAS_OWN))
        return Target(project_name, provider, endpoint.dialect, ending, target, model, expanded)

    replace = name if name != model else None
    if endpoint.model is not None and replace is not None:
        rest, replace = b"models/" + _raw_name(rest.partition(b"/")[2], replace), None
        check_target(rest)  # after a prefix with an encoded slash, the name may be a segment of its own: "groq%2F.."
    if provider.name == "google" and endpoint.dialect is not Dialect.GOOGLE:
        provider = table.providers[b"googleOpenaiCompatible"]
    if provider.dialect is endpoint.dialect:
        url = _target_url(provider, _versioned(provider, rest), query)
        return Target(project_name, provider, endpoint.dialect, ending, _forward(url), model, replace, hint)
    crossing = _CROSSINGS.get((method, endpoint.dialect, rest, provider.dialect))
    if crossing is None:
        raise ProxyError(
            "crossing_unsupported",
            f'Provider "{provider.name}" does not speak the interface of /v1/{rest.decode("ascii")[:100]}, and only '
            "chat completions and messages are translated into each other.",
            f"Use {provider.name}'s own interface at /{provider.name}, or a model of a provider that speaks this one.",
        )
    url = _target_url(provider, _versioned(provider, crossing), b"")
    target = b"rewrite/" + endpoint.dialect.value.encode("ascii") + b"/" + url
    return Target(project_name, provider, endpoint.dialect, ending, target, model, replace)


def _raw_name(raw: bytes, name: str) -> bytes:
    """Return ``name`` for a path: in the client's spelling ``raw`` if only a prefix was removed, else encoded."""
    for slash in (b"/", b"%2F", b"%2f"):
        _, found, tail = raw.partition(slash)
        if found and unquote(tail.decode("ascii")) == name:
            return tail
    return quote(name, safe=_URI_COMPONENT + "/").encode("ascii")


_CROSSINGS: Mapping[tuple[str, Dialect, bytes, Dialect], bytes] = {
    ("POST", Dialect.OPENAI, b"chat/completions", Dialect.ANTHROPIC): b"messages",
    ("POST", Dialect.ANTHROPIC, b"messages", Dialect.OPENAI): b"chat/completions",
}
"""(method, client's dialect, endpoint, provider's dialect) -> the endpoint at the provider."""


def _by_name(
    model: str | None, dialect: Dialect, project: Project, table: RoutingTable
) -> tuple[Provider, str | None, str | None]:
    """Return the provider of a model, its name there, and a hint if the name is unknown."""
    fallback = table.providers[b"anthropic" if dialect is Dialect.ANTHROPIC else b"openai"]
    own = table.provider(project.default_provider) if project.default_provider is not None else None
    own = own if own is not None and own.dialect is dialect else None
    if model is None:
        return own or fallback, None, None
    expanded = table.alias(model) or model
    prefix, slash, name = expanded.partition("/")
    if slash and name:
        provider = table.provider(prefix)
        if provider is not None:
            return provider, name, None
    for pattern, provider_name in table.patterns:
        if pattern.match(model):
            provider = table.provider(provider_name)
            if provider is not None:
                return provider, model, None
    if own is not None:
        return own, model, _hint(model, own, table) if slash else None
    for start, provider_name in _BUILT_IN_MODELS:
        if model.startswith(start):
            return table.providers[provider_name.encode("ascii")], model, None
    return fallback, model, _hint(model, fallback, table) or _unplaced(model, fallback)


_NEAR = 0.75
_MAX_WORD_LENGTH = 64


def _hint(model: str, chosen: Provider, table: RoutingTable) -> str | None:
    """Return a suggestion for an unknown model name: a provider for its prefix, an alias, or a pattern."""
    from difflib import get_close_matches

    prefix, slash, _ = model.lower().partition("/")
    word = prefix if slash else _NO_LETTER.split(prefix, 1)[0]
    for name in (model.lower(), word):
        near = get_close_matches(name, table.known, 1, _NEAR) if 2 < len(name) <= _MAX_WORD_LENGTH else []
        if near:
            meant, provider = table.known[near[0]]
            if provider is None:
                return _sent(chosen, f'did you mean "{meant}"?')
            if slash:
                return _sent(chosen, f'did you mean "{provider}/..."?')
            if provider != chosen.name:
                return _sent(chosen, f'did you mean {meant} of provider "{provider}"?')
    return None


_NO_LETTER = re.compile(r"[^a-z]")


def _unplaced(model: str, chosen: Provider) -> str | None:
    """Return a hint for a name with an unknown prefix or a tag (``llama3.2:latest``) without a similar known name."""
    if "/" not in model and (":" not in model or model.startswith("ft:")):
        return None
    return _sent(chosen, 'write "provider/model", or name it under [models] in the configuration.')


def _sent(chosen: Provider, advice: str) -> str:
    return f'No alias, provider or pattern fits this model\'s name, so it went to "{chosen.name}": {advice}'


def _versioned(provider: Provider, endpoint: bytes) -> bytes:
    """Return ``endpoint`` with the version that Anthropic's addresses have, whether the base address has one or not."""
    return b"v1/" + endpoint if provider.dialect is Dialect.ANTHROPIC else endpoint


def _target_url(provider: Provider, rest: bytes, query: bytes) -> bytes:
    """Return the whole URL at the provider.

    In another dialect than OpenAI's, a version at the start of ``rest`` replaces one at the end of the base address, so that
    the URL has it once.
    """
    base = provider.base_url.encode("ascii")
    if provider.dialect is not Dialect.OPENAI:
        scheme, _, address = base.partition(b"://")
        host, _, path = address.partition(b"/")
        bare = _VERSION_AT_END.sub(b"", path)
        if bare == path and rest.partition(b"/")[0] == b"messages":
            rest = _versioned(provider, rest)
        if _is_versioned(provider, rest):
            base = scheme + b"://" + host + (b"/" + bare if bare else b"")
    return base + b"/" + rest + _question(without_key(query))


def _forward(url: bytes) -> bytes:
    return b"forward?u=" + quote_from_bytes(url, safe=_URI_COMPONENT).encode("ascii")


def without_key(query: bytes) -> bytes:
    """Return ``query`` without ``key``, in which Google's tools send their key."""
    return _less(query, _KEY_ONLY) if b"k" in query or b"%" in query else query


def key_in(query: bytes) -> list[bytes]:
    """Return the decoded values of ``key`` in a raw query. A plus stays a plus: a key may have one, but no space."""
    items = [item.partition(b"=") for item in query.split(b"&")]
    return [unquote_to_bytes(value) for name, _, value in items if unquote_to_bytes(name) == b"key"]


_KEY_ONLY = frozenset({"key"})
_LAVAS_OWN = frozenset({"key", "u", "metadata"})


def _less(query: bytes, names: frozenset[str]) -> bytes:
    """Return ``query`` without the items with these names (compared decoded), every other byte unchanged."""
    if not query:
        return query
    kept = [item for item in query.split(b"&") if unquote_plus(item.partition(b"=")[0].decode("latin-1")) not in names]
    return b"&".join(kept)


def _question(query: bytes) -> bytes:
    return b"?" + query if query else b""
