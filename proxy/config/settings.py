"""The settings as one frozen value: models with the configuration's keys, and `load` to fill them.

Theory. The three sources are merged as plain tables (flag > environment > file), and then checked in four
passes, each of which reports everything it finds: unknown keys (`sources.prune`), secrets, which are resolved
in place (`rules.Secrets`), rules between keys (`rules.Rules`), and last the shapes and ranges of the models
below. No pass stops at the first fault, and no fault contains a value. A fault has its position: the line of
the file, the variable or the command line.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from proxy.config.references import UnreadableReference, decode, read_file
from proxy.config.rules import Rules, Secrets
from proxy.config.sources import (
    Faults,
    Sources,
    Table,
    find_config,
    instead,
    key_tree,
    leaves,
    merge,
    prune,
    put_at,
    read_config,
    read_environment,
    table_at,
)
from proxy.protocol.dialects import Dialect
from proxy.protocol.money import NANO_PER_DOLLAR
from proxy.protocol.providers import ALIASES
from proxy.protocol.redaction import Secret
from proxy.protocol.urls import (
    Address,
    is_bindable,
    is_listed,
    is_loopback,
    is_public_name,
    lava_address,
    parse_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_CA_BYTES = 8 * 1024 * 1024
# Linux has 108 bytes for the path of a unix socket, macOS 104, both with the closing NUL.
MAX_SOCKET_PATH = 103

_METADATA_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_HOST = r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])"
_ALLOWED_HOST = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_ORIGIN = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://(\*|{_HOST}(?::[0-9]{{1,5}})?)")
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

Seconds = Annotated[float, Strict(), Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]
Count = Annotated[int, Strict(), Field(ge=1, le=2**53)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]


IMPLICIT_PROJECT = "default"
"""The name of the project of a configuration without one."""


class ConfigError(Exception):
    """The configuration is invalid. ``faults`` has one sentence for each fault, and no secret; ``files`` were read."""

    def __init__(self, faults: Iterable[str], files: Iterable[Path] = ()) -> None:
        self.faults = tuple(faults)
        self.files = tuple(files)
        super().__init__("\n".join(self.faults))


def _wrong(message: str) -> PydanticCustomError:
    """Return a fault for a validator. (The message is in the context, because pydantic interprets braces in it.)"""
    return PydanticCustomError("fault", "{message}", {"message": message})


class _Part(BaseModel):
    # hide_input_in_errors: pydantic puts the offending value, which may be a key, into its messages.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Part):
    """``[server]``: the addresses to listen on, and access."""

    host: tuple[str, ...] = ("127.0.0.1", "::1")
    port: Annotated[int, Strict(), Field(ge=0, le=65535)] = 5282
    unix_socket: str = ""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    keys: tuple[Secret, ...] = ()
    max_body_bytes: Count = 52_428_800
    max_concurrent: Count = 1000
    drain_seconds: Seconds = 60.0

    @field_validator("host", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _bindable(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not hosts:
            raise _wrong('names no address: write "127.0.0.1", or leave the key out')
        plain = tuple(host.removeprefix("[").removesuffix("]") for host in hosts)
        for host in plain:
            if not is_bindable(host):
                raise _wrong(
                    f'must be an IP address or a host name, without a port{instead(host)}; "0.0.0.0" means every address'
                )
        return tuple(dict.fromkeys(plain))

    @field_validator("unix_socket")
    @classmethod
    def _short_enough(cls, path: str) -> str:
        if path and os.name == "nt":
            raise _wrong("does not exist on Windows: leave it empty")
        if "\0" in path or len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise _wrong(f"is too long for a unix socket (at most {MAX_SOCKET_PATH} bytes)")
        return path

    @field_validator("allowed_hosts")
    @classmethod
    def _host_values(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            match = _ALLOWED_HOST.fullmatch(host)
            if match is None or not 1 <= int(match[2] or 1) <= 65535:
                raise _wrong(
                    f'must hold names as in a Host header: "name" or "name:port", no scheme, no "*"{instead(host)}'
                )
        return tuple(host.lower() for host in hosts)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(origin) for origin in origins)


class LavaAccount(_Part):
    """``[lava]``: the account, and the address of Lava (``auto`` or an address without a trailing slash)."""

    secret_key: Secret | None = None
    base_url: str = "auto"
    diagnose: Switch = True

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            return lava_address(value)
        except ValueError as fault:
            raise _wrong(str(fault)) from None


class Upstream(_Part):
    """``[upstream]``: time limits in seconds, and the outbound proxy."""

    connect: Seconds = 10.0
    first_byte: Seconds = 600.0
    idle: Seconds = 300.0
    total: Seconds = 3600.0
    write_stall: Seconds = 120.0
    ca_file: str = ""
    followed: str = Field(default="", exclude=True)
    """With ``proxy = "env"``: the address in ``HTTPS_PROXY``, without credentials."""
    no_proxy: str = Field(default="", exclude=True)
    """With ``proxy = "env"``: the hosts in ``NO_PROXY``."""
    proxy: str = ""
    """``""``, ``env`` or an address; a name and password in it are moved to ``proxy_credentials``."""
    proxy_credentials: Secret | None = Field(default=None, exclude=True)
    """``user:password`` of the proxy as written (percent-encoded). It has no key of its own."""

    @model_validator(mode="before")
    @classmethod
    def _split_credentials(cls, data: Any, info: ValidationInfo) -> Any:
        proxy = data.get("proxy") if isinstance(data, dict) else None
        if proxy == "env":
            environ: Mapping[str, str] = (info.context or {}).get("environ", os.environ)
            found, no_proxy = (
                environ.get(name.lower()) or environ.get(name, "") for name in ("HTTPS_PROXY", "NO_PROXY")
            )
            # As in curl, an address without a scheme is http.
            followed = f"http://{found}" if found and "://" not in found else found
            split = cls._split(followed, {})
            return {**data, "followed": split.pop("proxy", followed), "no_proxy": no_proxy, **split}
        return cls._split(proxy, data)

    @staticmethod
    def _split(proxy: object, data: Any) -> Any:
        """Return ``data`` with the credentials in ``proxy`` separated from its address."""
        if not isinstance(proxy, str) or "@" not in proxy or "://" not in proxy:
            return data
        scheme, _, rest = proxy.partition("://")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        credentials = authority.rpartition("@")[0]
        if not re.fullmatch(r"[\x21-\x7e]+", credentials):
            return data  # refused below, as an address
        place = rest[len(credentials) + 1 :]
        return {**data, "proxy": f"{scheme}://{place}", "proxy_credentials": Secret(credentials)}

    @field_validator("proxy")
    @classmethod
    def _proxy_address(cls, value: str, info: ValidationInfo) -> str:
        try:
            if value == "env":
                _outbound(info.data["followed"])
                return value
            return _outbound(value)
        except ValueError as error:
            raise _wrong("env means HTTPS_PROXY, which " * (value == "env") + str(error)) from None

    @field_validator("ca_file")
    @classmethod
    def _certificates(cls, value: str) -> str:
        if value:
            _check_certificates(Path(value))
        return value

    def proxy_url(self) -> str:
        """Return the proxy's address with its credentials, for the engine; never for a message."""
        address = self.followed if self.proxy == "env" else self.proxy
        if self.proxy_credentials is None:
            return address
        return address.replace("://", f"://{self.proxy_credentials.reveal()}@", 1)

    def proxy_for(self, scheme: str, host: str, port: int) -> str:
        """Return ``proxy_url`` if it is used for this address, else ``""``.

        It is not used for loopback, which means the proxy's own machine there. ``env`` is for https, and respects ``NO_PROXY``.
        """
        if not self.proxy or is_loopback(host) or host.endswith(".localhost"):
            return ""
        if self.proxy == "env":
            return self.proxy_url() if scheme == "https" and not is_listed(host, port, self.no_proxy) else ""
        return self.proxy_url()


class LogSettings(_Part):
    """``[log]``: an empty ``file`` means stderr."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    file: str = ""

    @field_validator("level", "format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


_KEEP = re.compile(r"([1-9][0-9]{0,5})(h|d|w|y)")
_KEEP_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_AMOUNT = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
Period = Literal["minute", "hour", "day", "week", "month"]


def _age(value: str) -> str:
    if _KEEP.fullmatch(value) is None:
        raise _wrong('must be a number and a unit, such as "12h", "90d", "8w" or "1y"')
    return value


Age = Annotated[str, AfterValidator(_age)]


def seconds_of(age: str) -> int:
    """Return the seconds of an ``Age``: ``"90d"`` is 7,776,000."""
    found = _KEEP.fullmatch(age)
    if found is None:
        raise ValueError(f"{age!r} is no age")
    return int(found[1]) * _KEEP_SECONDS[found[2]]


class LedgerSettings(_Part):
    """``[ledger]``: what ran and what it cost. An empty ``path`` is the default file in the user's data directory."""

    enabled: Switch = True
    path: str = ""
    url: Secret | None = None
    keep: Age = "90d"
    sessions: Literal["hashed", "plain"] = "hashed"
    correlate: Switch = True
    reconcile: Switch = True
    reconcile_seconds: Seconds = 300.0
    reconcile_since: Age = "30d"

    @field_validator("url", mode="before")
    @classmethod
    def _no_database(cls, url: object) -> object:
        return None if url == "" else url

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: Secret | None) -> Secret | None:
        if url is not None and not url.reveal().startswith("postgresql+psycopg://"):
            raise _wrong('must begin with "postgresql+psycopg://"; for a file, use path instead')
        return url

    def file(self) -> Path:
        """Return the path of the SQLite file."""
        if self.path:
            return Path(self.path)
        from platformdirs import user_data_path

        return user_data_path("lava-proxy", appauthor=False) / "ledger.sqlite"


class Budget(_Part):
    """``[projects.NAME.budget]``: limits by period. ``usd`` in billionths of a dollar."""

    usd: dict[Period, int] = {}
    requests: dict[Period, Count] = {}
    tokens: dict[Period, Count] = {}
    timezone: str = ""
    """An IANA name; empty is the machine's."""
    reset_hour: Annotated[int, Strict(), Field(ge=0, le=23)] = 0
    on_unknown_cost: Literal["count", "ignore", "refuse"] = "count"
    strict: Switch = False

    @field_validator("usd", mode="before")
    @classmethod
    def _dollars(cls, amounts: object) -> object:
        if not isinstance(amounts, dict):
            return amounts
        return {period: cls._nano(amount) for period, amount in amounts.items()}

    @staticmethod
    def _nano(amount: object) -> object:
        # As text, because a binary fraction is not exact; a whole number is.
        if isinstance(amount, int) and not isinstance(amount, bool):
            amount = str(amount)
        if not isinstance(amount, str) or _AMOUNT.fullmatch(amount) is None or not Decimal(amount):
            raise _wrong('must hold dollars as text, such as usd = { month = "50.00" }')
        return int(Decimal(amount) * NANO_PER_DOLLAR)

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        if name:
            from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

            try:
                ZoneInfo(name)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise _wrong('is no time zone: write an IANA name such as "Europe/Berlin"') from None
        return name


class Project(_Part):
    """``[projects.NAME]``: the payer, and the local keys that select it."""

    connection_id: Text | None = None
    customer_id: Text | None = None
    meter: Text | None = None
    disable_billing: Switch | None = None
    keys: tuple[Secret, ...] = ()
    max_concurrent: Count | None = None
    metadata: dict[str, str] = {}
    byok: dict[str, Literal["client"] | Secret] = {}
    secret_key: Secret | None = None
    forward_token: Secret | None = None
    spend_key: Secret | None = None
    default_provider: str | None = None
    include_usage: Switch = False
    budget: Budget | None = None

    @field_validator("metadata")
    @classmethod
    def _pairs(cls, pairs: dict[str, str]) -> dict[str, str]:
        # The limits are Lava's own.
        if len(pairs) > 100:
            raise _wrong(f"has {len(pairs)} pairs: at most 100 are allowed")
        for key, value in pairs.items():
            if not _METADATA_KEY.fullmatch(key):
                raise _wrong(f"has a key that Lava does not take ({key[:40]!r}): use A to Z, a to z, 0 to 9 and _")
            if not 1 <= len(value) <= 255:
                raise _wrong(f"has a value of {len(value)} characters for {key[:40]!r}: 1 to 255 are allowed")
        return pairs

    @field_validator("byok", mode="before")
    @classmethod
    def _for_all(cls, value: object) -> object:
        if value == "client":
            return {"*": "client"}
        if isinstance(value, dict):
            return {ALIASES.get(name, name): key for name, key in value.items()}
        return value

    @field_validator("default_provider")
    @classmethod
    def _canonical(cls, name: str | None) -> str | None:
        return None if name is None else ALIASES.get(name, name)


class CustomProvider(_Part):
    """``[providers.NAME]``: a custom provider; ``base_url`` has no trailing slash."""

    via: Literal["lava", "direct"] = "lava"
    base_url: str
    dialect: Dialect = Dialect.OPENAI

    @field_validator("via")
    @classmethod
    def _by_lava(cls, via: str) -> str:
        if via == "direct":
            raise _wrong(
                '"direct" comes in a later version: until then leave this provider out, or write '
                'via = "lava" with an https address that Lava can reach'
            )
        return via

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        address = _parse(value)
        if info.data.get("via") == "lava":
            if address.scheme != "https":
                raise _wrong('must be https with via = "lava": Lava calls it over the internet')
            if not is_public_name(address.host):
                raise _wrong(
                    'must have a public host name with via = "lava" (no IP address, no localhost, no name '
                    "without a dot): Lava calls it over the internet"
                )
        return address.base()


class Settings(_Part):
    """All settings, resolved.

    ``path`` is the configuration file, ``files`` are those of ``file:`` references; ``warnings`` are logged at start.
    """

    default_project: str | None = None
    server: Server = Server()
    lava: LavaAccount = LavaAccount()
    upstream: Upstream = Upstream()
    log: LogSettings = LogSettings()
    ledger: LedgerSettings = LedgerSettings()
    projects: dict[str, Project] = {}
    models: dict[str, tuple[str, ...]] = {}
    providers: dict[str, CustomProvider] = {}
    path: Path | None = Field(default=None, exclude=True)
    files: tuple[Path, ...] = Field(default=(), exclude=True)
    account_key_from: str = Field(default="", exclude=True)
    """The source of ``lava.secret_key``: the key of the configuration, the variable, or empty for a login."""
    warnings: tuple[str, ...] = Field(default=(), exclude=True)

    @field_validator("models", mode="before")
    @classmethod
    def _targets(cls, models: object) -> object:
        if not isinstance(models, dict):
            return models
        return {
            name: (_canonical_target(value),)
            if isinstance(value, str)
            else [_canonical_target(each) if isinstance(each, str) else each for each in value]
            if isinstance(value, list | tuple)
            else value
            for name, value in models.items()
        }

    def secrets(self) -> Iterator[str]:
        """Yield every secret value, for the redactor."""
        own = [self.lava.secret_key, self.upstream.proxy_credentials, self.ledger.url, *self.server.keys]
        for project in self.projects.values():
            own += (project.secret_key, project.forward_token, project.spend_key, *project.keys)
            own += (key for key in project.byok.values() if isinstance(key, Secret))
        for secret in own:
            if secret is not None:
                yield secret.reveal()
        if self.upstream.proxy_credentials is not None:
            # The password alone as well, as written and as sent.
            password = self.upstream.proxy_credentials.reveal().partition(":")[2]
            yield from {password, unquote(password)} - {""}


def load(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Load the settings.

    The sources are the file ``config`` (else the first existing default path), ``environ`` (else that of the process) and
    ``flags`` (dotted keys; None means not given). Raises ConfigError with every fault at once.
    """
    surroundings = os.environ if environ is None else environ
    faults = Faults(Sources())
    sources = faults.sources
    warnings: list[str] = []
    read_environment(Settings, surroundings, faults)
    for key, value in (flags or {}).items():
        if value is not None:
            where = tuple(key.split("."))
            sources.flags.add(where)
            put_at(sources.from_flags, where, value)
    named = config or surroundings.get("LAVA_PROXY_CONFIG")
    path = Path(named) if named else find_config(surroundings)
    if path is not None:
        read_config(path, faults)
    if sources.broken:
        raise ConfigError(
            faults.sentences(), sources.files
        )  # rules between keys would only report what could not be read

    data: Table = {}
    for source in (sources.from_file, sources.from_environment, sources.from_flags):
        merge(data, source)
    prune(data, key_tree(Settings), faults)
    secrets = Secrets(surroundings, faults, warnings)
    secrets.resolve(data)
    Rules(data, faults).check()
    if not table_at(data, "upstream").get("proxy"):
        ignored = [name for name in _PROXY_VARIABLES if surroundings.get(name)]
        if ignored:
            warnings.append(
                f'{" and ".join(ignored)} is set, but not followed: write proxy = "env" in [upstream] to follow it'
            )
    settings = None
    found = {
        "path": sources.path,
        "files": tuple(sources.files),
        "account_key_from": secrets.account_key_from,
        "warnings": tuple(warnings),
    }
    try:
        settings = Settings.model_validate({**data, **found}, context={"environ": surroundings})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        for detail in details:
            faults.add_shape(detail)
    # Raised here, so that no exception that contains the values is its context.
    if faults or settings is None:
        raise ConfigError(faults.sentences(), sources.files)
    return settings


def known_keys() -> frozenset[str]:
    """Return every key, dotted, with ``*`` for a name that the user chooses: ``server.port``, ``projects.*.meter``."""
    return frozenset(".".join(where) for where in leaves(key_tree(Settings)))


def _parse(url: str) -> Address:
    try:
        return parse_address(url)
    except ValueError as error:
        raise _wrong(str(error)) from None


def _outbound(proxy: str) -> str:
    """Return the normalised address of an outbound proxy. Raises ValueError with a sentence without any part of it."""
    if not proxy:
        return ""
    if proxy.lower().startswith("socks"):
        raise ValueError("must be an http:// or https:// proxy: SOCKS is not supported")
    address = parse_address(proxy)
    if address.path.strip("/"):
        raise ValueError("must be an address without a path, such as http://proxy.example.com:3128")
    return address.base()


def _canonical_target(target: str) -> str:
    provider, slash, model = target.partition("/")
    return f"{ALIASES.get(provider, provider)}{slash}{model}"


def _origin(written: str) -> str:
    match = _ORIGIN.fullmatch(written)
    if match is None:
        raise _wrong(
            'must hold origins as browsers send them: "https://app.example.com" or "http://localhost:3000", '
            f'without a path or a slash at the end{instead(written)}; "scheme://*" is for schemes other than http and https'
        )
    scheme, host = match[1].lower(), match[2]
    if scheme not in ("http", "https"):
        return f"{scheme}://{host}"
    if host == "*":
        raise _wrong('may not hold "*" for http or https: every web page could call; list the exact origins')
    # A browser omits the default port of the scheme.
    return f"{scheme}://{host.lower().removesuffix(':443' if scheme == 'https' else ':80')}"


def _check_certificates(path: Path) -> None:
    import ssl

    try:
        text = decode(read_file(path, MAX_CA_BYTES))
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except FileNotFoundError:
        raise _wrong("no such file") from None
    except UnreadableReference as error:
        raise _wrong(str(error)) from None
    except (ssl.SSLError, ValueError):
        raise _wrong("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None
