"""Rules between keys, and the resolution of secrets: everything that is checked before the shapes.

Both work on merged tables (`sources.Table`) with unchecked shapes, so they assume nothing, and both continue
after a fault. A rule for a single key is a validator in `settings`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.config.credentials import find
from proxy.config.references import UnreadableReference, is_reference, locate, resolve
from proxy.config.sources import did_you_mean, dotted, put_at, shown, table_at, value_at
from proxy.protocol.providers import ALIASES, BUILTIN
from proxy.protocol.redaction import Secret
from proxy.protocol.urls import is_bindable, is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.config.sources import Faults, Table
    from proxy.config.toml_lines import Where

MIN_LOCAL_KEY = 16

# First segments of our own addresses: a provider with such a name could not be reached.
RESERVED = frozenset(
    {
        *("v1", "v1alpha", "v1beta", "upload", "p", "healthz", "readyz", "metrics", "dashboard", "api"),
        *("chat", "completions", "responses", "embeddings", "models", "images", "audio", "moderations"),
        *("files", "batches", "messages"),
    }
)

_NAME = re.compile(r"(?!.*__)[a-z0-9][a-z0-9_-]{0,63}")
_MODEL = re.compile(r"[\x20-\x7e]{1,200}")
_NAME_RULE = "a to z, 0 to 9, - and _ (no __), at most 64, the first a letter or a digit"
_MAX_NAMED = 10
_MINTING = ("connection_id", "customer_id", "meter", "byok", "disable_billing", "secret_key")

_ANY_CHARACTER = re.compile(r".+", re.DOTALL)
_NO_CONTROL = re.compile(r"[^\x00-\x1f\x7f]+")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


def _called(name: str) -> str:
    text = shown(name)
    return f"is called {text}" if text else "has this name"


def _secret_places(data: Table) -> Iterator[tuple[Where, re.Pattern[str]]]:
    """Yield the positions of secrets in the tables, each with its allowed characters."""
    places: list[tuple[Where, re.Pattern[str]]] = [(("lava", "secret_key"), _NO_CONTROL)]
    if table_at(data, "ledger").get("url") != "":  # "" means no database, unlike an empty key
        places.append((("ledger", "url"), _VISIBLE))
    local: list[Where] = [("server", "keys")]
    for name, project in table_at(data, "projects").items():
        above: Where = ("projects", name)
        local.append((*above, "keys"))
        places += (
            ((*above, "secret_key"), _NO_CONTROL),
            ((*above, "forward_token"), _VISIBLE),
            ((*above, "spend_key"), _VISIBLE),
        )
        # Any character: it is sent inside the token, and some providers' keys are JSON.
        places += (((*above, "byok", provider), _ANY_CHARACTER) for provider in table_at(project, "byok"))
    for where in local:
        keys = value_at(data, where)
        places += (((*where, index), _VISIBLE) for index in range(len(keys) if isinstance(keys, list) else 0))
    for where, allowed in places:
        written = value_at(data, where)
        if written is not None and not (written == "client" and "byok" in where):
            yield where, allowed


class Secrets:
    """Replaces each key, or reference to one, by a `Secret`, and expands the paths."""

    def __init__(self, environ: Mapping[str, str], faults: Faults, warnings: list[str]) -> None:
        self.environ = environ
        self.faults = faults
        self.warnings = warnings
        self.local: dict[Secret, Where] = {}
        self.account_key_from = ""

    def resolve(self, data: Table) -> None:
        """Change ``data`` in place. A secret that cannot be resolved is a fault, and is replaced by a placeholder."""
        for where, allowed in list(_secret_places(data)):
            value = self._value(where, value_at(data, where), allowed)
            # An empty placeholder, so that later checks find a secret and do not report it a second time.
            put_at(data, where, Secret(value or ""))
            if value is not None and where[-2] == "keys":
                self._local_key(where, value)
        if "secret_key" in table_at(data, "lava"):
            self.account_key_from = "lava.secret_key"
        elif self.environ.get("LAVA_SECRET_KEY"):
            self._default_key(data)
        else:
            self._key_of_login(data)
        self._paths(data)
        self._refuse_open_file()

    def _default_key(self, data: Table) -> None:
        # Only this default may be missing; if it exists it is a key like any other.
        value = self.environ["LAVA_SECRET_KEY"]
        self.account_key_from = "LAVA_SECRET_KEY"
        if _NO_CONTROL.fullmatch(value):
            put_at(data, ("lava", "secret_key"), Secret(value))
        else:
            message = "must not hold control characters (a line end, perhaps)"
            self.faults.add_variable("LAVA_SECRET_KEY", message)

    def _key_of_login(self, data: Table) -> None:
        # The key of `lava-proxy login`. The configuration does not name it, so an unusable one is no fault.
        try:
            kept = find(self.environ)
        except UnreadableReference as error:
            self.warnings.append(f"the login is not used: {error} (`lava-proxy login` makes a new one)")
            return
        if kept is None:
            return
        put_at(data, ("lava", "secret_key"), kept.login.secret_key)
        # A key is valid at the Lava that made it: a missing setting must not send it anywhere else.
        if table_at(data, "lava").get("base_url", "auto") == "auto":
            put_at(data, ("lava", "base_url"), kept.login.base_url)

    def _local_key(self, where: Where, value: str) -> None:
        if len(value) < MIN_LOCAL_KEY:
            message = f"is shorter than {MIN_LOCAL_KEY} characters, easy to guess: take a longer key"
            self.faults.add(where, message)
        elif (first := self.local.setdefault(Secret(value), where)) != where:
            message = f"is the same key as {dotted(first)}: each local key selects one thing, make another"
            self.faults.add(where, message)

    def _value(self, where: Where, written: object, allowed: re.Pattern[str]) -> str | None:
        """Return the value of a secret, or None after a fault."""
        if not isinstance(written, str):
            self.faults.add(where, "must be a string: a key, env:NAME, file:PATH or keyring:SERVICE/USER")
            return None
        if written.startswith("file:"):
            self.faults.sources.files.append(locate(written[5:], self._base(where), self.environ))
        try:
            value, warning = resolve(written, self._base(where), self.environ)
        except UnreadableReference as error:
            self.faults.add(where, f"cannot be resolved: {error}")
            return None
        if warning is not None:
            self.warnings.append(warning)
        if not value:
            self.faults.add(where, "is empty: write a key, or leave it out")
            return None
        if not allowed.fullmatch(value):
            kind = "spaces, control or non-ASCII" if allowed is _VISIBLE else "control"
            message = f"holds {kind} characters, which cannot stand in an HTTP header (a line end, perhaps)"
            self.faults.add(where, message)
            return None
        return value

    def _base(self, where: Where) -> Path:
        """Return the base of a relative path: the directory of the file that contains it, else the working directory."""
        sources = self.faults.sources
        if sources.path is not None and sources.says(where) == "file":
            return sources.path.parent
        return Path.cwd()

    def _paths(self, data: Table) -> None:
        for section, key in (("upstream", "ca_file"), ("server", "unix_socket"), ("log", "file"), ("ledger", "path")):
            written = table_at(data, section).get(key)
            if isinstance(written, str) and written:
                data[section][key] = str(locate(written, self._base((section, key)), self.environ))

    def _refuse_open_file(self) -> None:
        """Refuse a file with a literal secret that others may read, even if a variable overrides it."""
        file, said = self.faults.sources.file, self.faults.sources.from_file
        if file is None or not file.readable_by_others:
            return
        literal = [
            where
            for where, _ in _secret_places(said)
            if isinstance(written := value_at(said, where), str) and not is_reference(written)
        ]
        if "@" in str(table_at(said, "upstream").get("proxy", "")):
            literal.append(("upstream", "proxy"))
        if literal:
            self.faults.add_in_file(
                literal[0],
                f"is a secret written into a file that group or others may read (mode {file.mode:04o}): "
                f"chmod 600 {file.path}, or write a reference (env:NAME, file:PATH, keyring:SERVICE/USER)",
            )


class Rules:
    """The rules between keys."""

    def __init__(self, data: Table, faults: Faults) -> None:
        self.data = data
        self.say = faults.add
        self.providers = {*BUILTIN, *ALIASES, *table_at(data, "providers")}

    def check(self) -> None:
        projects = table_at(self.data, "projects")
        for name in projects:
            if not _NAME.fullmatch(name):
                self.say(("projects", name), f"is not a name for a project: {_NAME_RULE}")
            self._project(name, table_at(projects, name))
        self._default_project(projects)
        for name in table_at(self.data, "providers"):
            self._provider_name(name)
        for name, target in table_at(self.data, "models").items():
            self._model(name, target)
        self._bind(projects)

    def _project(self, name: str, project: Table) -> None:
        here: Where = ("projects", name)
        for payer in ("connection_id", "customer_id"):
            if payer in project and "meter" not in project:
                self.say((*here, payer), f'needs a meter beside it: add meter = "…" to [projects.{name}]')
        if "connection_id" in project and "customer_id" in project:
            self.say(
                (*here, "customer_id"),
                "stands beside connection_id: both name the customer, keep one of them",
            )
        if "disable_billing" in project and not ("customer_id" in project and "meter" in project):
            instead = " instead of connection_id" if "connection_id" in project else ""
            self.say(
                (*here, "disable_billing"),
                f"needs customer_id and meter: write customer_id{instead} (only such tokens have that "
                "field), or leave it out",
            )
        for ready in ("forward_token", "spend_key"):
            beside = [key for key in _MINTING if key in project]
            if ready in project and beside:
                self.say(
                    (*here, ready),
                    f"stands beside {', '.join(beside)}: a ready credential already says who pays, "
                    "keep one or the other",
                )
        if "budget" in project and table_at(self.data, "ledger").get("enabled", True) in (False, "false"):
            self.say(
                (*here, "budget"),
                "needs the ledger, which knows what was used before a restart: set enabled = true under [ledger], or leave the "
                "budget out",
            )
        if "forward_token" in project and "spend_key" in project:
            self.say((*here, "spend_key"), "stands beside forward_token: keep one of them")
        byok = project.get("byok")
        if isinstance(byok, str) and byok != "client":
            self.say((*here, "byok"), 'must be "client" or a table of provider = key')
        for provider in table_at(project, "byok"):
            self._known((*here, "byok", provider), provider)
        for alias, other in ALIASES.items():
            if alias in table_at(project, "byok") and other in table_at(project, "byok"):
                self.say((*here, "byok", alias), f"is another name of {other}: keep one of them")
        if isinstance(project.get("default_provider"), str):
            self._known((*here, "default_provider"), project["default_provider"])

    def _known(self, where: Where, provider: str) -> None:
        if provider not in self.providers:
            self.say(where, f"no provider {_called(provider)}{did_you_mean(provider, self.providers)}")

    def _default_project(self, projects: Table) -> None:
        chosen = self.data.get("default_project")
        if not isinstance(chosen, str) or chosen in (projects or {"default"}):
            return
        there = f"; there are: {', '.join([*projects][:_MAX_NAMED])}" if projects else ""
        hint = did_you_mean(chosen, projects) or f"{there}; add a project of that name, or leave default_project out"
        self.say(("default_project",), f"no project {_called(chosen)}{hint}")

    def _provider_name(self, name: str) -> None:
        here: Where = ("providers", name)
        if not _NAME.fullmatch(name):
            self.say(here, f"is not a name for a provider: {_NAME_RULE}")
        elif name in RESERVED:
            self.say(
                here,
                f"is an address of our own (/{name}), the provider could not be reached: take another name",
            )
        elif name in {known.lower() for known in (*BUILTIN, *ALIASES)}:
            self.say(
                here,
                f"is a built-in provider, and one name must not mean two places: take another name, such as my-{name}",
            )

    def _model(self, name: str, target: object) -> None:
        here: Where = ("models", name)
        is_pattern = "*" in name
        if not _MODEL.fullmatch(name):
            self.say(here, "is not a name for a model: 1 to 200 printable ASCII characters (* makes it a pattern)")
        if isinstance(target, dict):
            self.say(
                here,
                'must be a string or a list of strings (a name with a dot stands in quotes: "gpt-4.1" = …)',
            )
        elif isinstance(target, list | tuple) and not target:
            self.say(here, 'names nothing: write "provider/model"')
        elif isinstance(target, list | tuple) and is_pattern:
            self.say(here, 'a pattern names one provider, as a string: "together"')
        elif isinstance(target, str):
            self._target(here, target, is_pattern)
        elif isinstance(target, list | tuple):
            for index, each in enumerate(target):
                if isinstance(each, str):
                    self._target((*here, index), each, is_pattern)
        else:
            self.say(here, "must be a string or a list of strings")

    def _target(self, where: Where, target: str, is_pattern: bool) -> None:
        provider, slash, model = target.partition("/")
        if is_pattern:
            if slash:
                self.say(where, "a pattern names a provider only, without a model: drop the / and what follows it")
            else:
                self._known(where, provider)
        elif not provider or not model or not re.fullmatch(r"[\x21-\x7e]+", target):
            self.say(where, 'must be "provider/model", such as "groq/llama-3.1-8b-instant"')
        else:
            self._known(where, provider)

    def _bind(self, projects: Table) -> None:
        hosts = table_at(self.data, "server").get("host", ())
        hosts = (hosts,) if isinstance(hosts, str) else hosts if isinstance(hosts, list | tuple) else ()
        plain = [host.strip("[]") for host in hosts if isinstance(host, str)]
        beyond = [host for host in plain if is_bindable(host) and not is_loopback(host)]
        tables = [table_at(self.data, "server"), *(table_at(projects, name) for name in projects)]
        if beyond and not any(table.get("keys") for table in tables):
            self.say(
                ("server", "host"),
                "reaches beyond this machine, but no local key is configured, so anybody there could spend "
                'your money: add keys = ["env:NAME"] to [server] or to a project, or bind to 127.0.0.1',
            )
