"""The settings: their values, their limits, their example file, and that they keep their secrets."""

from __future__ import annotations

import copy
import json
import pickle
import re
import ssl
import subprocess
import sys
import tomllib
import traceback
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from configurations import LAVA_KEY, LOCAL_KEY, faults, loaded, only_fault
from pydantic import ValidationError

from proxy.config.settings import (
    ConfigError,
    CustomProvider,
    LavaAccount,
    LogSettings,
    Project,
    Server,
    Settings,
    Upstream,
    known_keys,
    load,
)
from proxy.protocol.dialects import Dialect
from proxy.protocol.redaction import Secret, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"

# One file with every key of the contract; its secrets come from variables.
WHOLE = """
default_project = "website"
[server]
host = ["0.0.0.0", "::1"]
port = 9000
unix_socket = "/run/lava.sock"
allowed_hosts = ["Lava-Proxy:5282", "box", "[::1]:80"]
allowed_origins = ["https://App.example.com:443", "http://localhost:3000", "vscode-webview://*", "tauri://localhost"]
keys = ["env:ADMIN_KEY"]
max_body_bytes = 1
max_concurrent = 2
drain_seconds = 1
[lava]
secret_key = "env:KEY"
base_url = "https://Sandbox-api.lava.so/"
[upstream]
connect = 1
first_byte = 2.5
idle = 3
total = 4
write_stall = 5
ca_file = ""
proxy = "http://me:hunter%32two@proxy.example.com:3128/"
[log]
level = "WARNING"
format = "json"
file = ""
[projects.website]
connection_id = "conn_abc123"
meter = "website-chat"
keys = ["env:WEB_KEY"]
metadata = { team = "web" }
byok = { openai = "env:OPENAI", anthropic = "client" }
default_provider = "acme"
secret_key = "env:KEY2"
[projects.trial]
customer_id = "conn_abc123"
meter = "website-chat"
disable_billing = true
[projects.lab]
byok = "client"
[projects.ready]
forward_token = "env:TOKEN"
[projects.agent]
spend_key = "env:SPEND"
[models]
zeta = "groq/llama"
alpha = ["anthropic/claude", "acme/gpt"]
"qwen-*" = "together"
[providers.acme]
base_url = "https://llm.acme.com:8443/v1/"
dialect = "anthropic"
via = "lava"
"""
WHOLE_SECRETS = {
    "ADMIN_KEY": LOCAL_KEY + "1",
    "WEB_KEY": LOCAL_KEY + "2",
    "KEY": LAVA_KEY + "1",
    "KEY2": LAVA_KEY + "2",
    "OPENAI": "provider-key-" + "g7Qp" * 5,
    "TOKEN": "ready-token-" + "Zk3x" * 6,
    "SPEND": "lava_spend_" + "n5Tq" * 6,
}


@pytest.fixture
def whole(tmp_path: Path) -> Settings:
    """Settings with every key set."""
    return loaded(tmp_path, WHOLE, WHOLE_SECRETS)


def test_defaults() -> None:
    """Without a file and without variables the settings are those of the contract."""
    settings = load(None, {})
    assert settings == Settings()
    assert settings.server == Server(
        host=("127.0.0.1", "::1"), port=5282, max_body_bytes=52_428_800, max_concurrent=1000, drain_seconds=60.0
    )
    assert settings.lava == LavaAccount(secret_key=None, base_url="auto")
    assert settings.upstream == Upstream(connect=10.0, first_byte=600.0, idle=300.0, total=3600.0, write_stall=120.0)
    assert settings.log == LogSettings(level="info", format="auto", file="")
    assert (settings.projects, settings.models, settings.providers) == ({}, {}, {})
    assert (settings.path, settings.warnings, list(settings.secrets())) == (None, (), [])


def test_every_key(whole: Settings, tmp_path: Path) -> None:
    """Every key of a file arrives, references resolved and addresses in their normal form."""
    assert whole.path == tmp_path / "config.toml"
    assert whole.default_project == "website"
    server = whole.server
    assert server.host == ("0.0.0.0", "::1")
    assert server.port == 9000
    assert server.allowed_hosts == ("lava-proxy:5282", "box", "[::1]:80")
    assert server.allowed_origins == (
        "https://app.example.com",
        "http://localhost:3000",
        "vscode-webview://*",
        "tauri://localhost",
    )
    assert server.keys == (Secret(LOCAL_KEY + "1"),)
    assert whole.lava.base_url == "https://sandbox-api.lava.so/v1"
    assert whole.upstream.connect == 1.0
    assert whole.upstream.proxy == "http://proxy.example.com:3128"
    assert whole.upstream.proxy_url() == "http://me:hunter%32two@proxy.example.com:3128"
    assert whole.log.level == "warning"
    assert whole.projects["website"].byok == {"openai": Secret(WHOLE_SECRETS["OPENAI"]), "anthropic": "client"}
    assert whole.projects["website"].metadata == {"team": "web"}
    assert whole.projects["website"].default_provider == "acme"
    assert whole.projects["trial"].disable_billing is True
    assert whole.projects["lab"].byok == {"*": "client"}
    assert list(whole.models) == ["zeta", "alpha", "qwen-*"]
    assert whole.models["zeta"] == ("groq/llama",)
    assert whole.models["alpha"] == ("anthropic/claude", "acme/gpt")
    assert whole.providers == {
        "acme": CustomProvider(base_url="https://llm.acme.com:8443/v1", dialect=Dialect.ANTHROPIC)
    }
    assert sorted(whole.secrets()) == sorted([*WHOLE_SECRETS.values(), "me:hunter%32two", "hunter%32two", "hunter2two"])


def test_default_secret_key() -> None:
    """LAVA_SECRET_KEY is used by itself, as it is; unset or empty it is no fault, for the daemon starts and says so."""
    assert load(None, {"LAVA_SECRET_KEY": "env:" + LAVA_KEY}).lava.secret_key == Secret("env:" + LAVA_KEY)
    assert load(None, {"LAVA_SECRET_KEY": ""}).lava.secret_key is None
    assert load(None, {"LAVA_SECRET_KEY": LAVA_KEY, "OWN": "x", "LAVA_PROXY_LAVA__SECRET_KEY": "env:OWN"}).lava == (
        LavaAccount(secret_key=Secret("x"))
    )


def test_default_secret_key_with_a_line_end() -> None:
    """A key that could not travel is refused by the variable's name, without the key."""
    with pytest.raises(ConfigError, match=r"^LAVA_SECRET_KEY: must not hold control characters") as caught:
        load(None, {"LAVA_SECRET_KEY": LAVA_KEY + "\n"})
    assert LAVA_KEY not in str(caught.value)


# Key, written value, and words of the fault.
WRONG = [
    ("server.host", "[]", "names no address"),
    ("server.host", "1", "must be a list"),
    ("server.host", '["127.0.0.1", 2]', "must be a string"),
    ("server.host", '""', "must be an IP address"),
    ("server.host", '"*"', '"0.0.0.0" means every address'),
    ("server.host", '"127.0.0.1:80"', "without a port"),
    ("server.host", '"a b"', "must be an IP address"),
    ("server.port", "-1", "at least 0"),
    ("server.port", "65536", "at most 65535"),
    ("server.port", "true", "whole number"),
    ("server.port", "1.0", "whole number"),
    ("server.port", '"1"', "without quotes"),
    ("server.unix_socket", '"' + "/x" * 60 + '"', "at most 103 bytes"),
    ("server.unix_socket", "true", "must be a string"),
    ("server.max_body_bytes", "0", "at least 1"),
    ("server.max_body_bytes", "1" * 40, "at most"),
    ("server.max_concurrent", "false", "whole number"),
    ("server.drain_seconds", "0", "more than 0"),
    ("server.drain_seconds", "true", "must be a number"),
    ("upstream.connect", '"10"', "without quotes"),
    ("upstream.first_byte", "-1.5", "more than 0"),
    ("upstream.idle", "nan", "finite"),
    ("upstream.total", "inf", "finite"),
    ("upstream.write_stall", "604801", "at most 604800"),
    ("lava.diagnose", "1", "true or false"),
    ("lava.diagnose", '"yes"', "true or false"),
    ("upstream.proxy", "false", "must be a string"),
    ("upstream.proxy", '"proxy:3128"', "http"),
    ("upstream.proxy", '"socks5://proxy:1080"', "http"),
    ("upstream.proxy", '"http://proxy.example.com/path"', "without a path"),
    ("upstream.proxy", '"http://a b@proxy.example.com"', "spaces"),
    ("log.level", '"loud"', "'debug', 'info', 'warning', 'error' or 'critical'"),
    ("log.level", "1", "must be 'debug'"),
    ("log.format", '"xml"', "'auto', 'console' or 'json'"),
    ("log.file", "[]", "must be a string"),
    ("lava.base_url", '"http://api.example.com"', "http is for loopback hosts only"),
    ("lava.base_url", '"http://10.0.0.1/v1"', "must be https"),
    ("lava.base_url", '"https://user:hunter2@api.example.com"', "user name or password"),
    ("lava.base_url", '"https://api.example.com?u=x"', "query"),
    ("lava.base_url", '"Auto"', "https://"),
    ("lava.base_url", "1", "must be a string"),
    ("default_project", "1", "must be a string"),
    ("projects", "1", "must be a table"),
    ("projects.a", '"x"', "must be a table"),
    ("projects.a.meter", '""', "must not be empty"),
    ("projects.a.meter", "1", "must be a string"),
    ("projects.a.meter", '"a\\nb"', "control characters"),
    ("projects.a.disable_billing", '"true"', "true or false"),
    ("projects.a.keys", "true", "must be a list"),
    ("projects.a.metadata", '"x"', "must be a table"),
    ("projects.a.metadata", "{ a = 1 }", "must be a string, in quotes"),
    ("projects.a.metadata", '{ "a-b" = "c" }', "'a-b'"),
    ("projects.a.metadata", '{ "" = "c" }', "a key that Lava does not take"),
    ("projects.a.metadata", "{ " + "k" * 256 + ' = "c" }', "a key that Lava does not take"),
    ("projects.a.metadata", '{ a = "" }', "1 to 255"),
    ("projects.a.metadata", '{ a = "' + "x" * 256 + '" }', "256 characters"),
    ("projects.a.metadata", "{ " + ", ".join(f'k{n} = "v"' for n in range(101)) + " }", "at most 100"),
    ("projects.a.byok", "1", "must be a table"),
    ("projects.a.byok", "{ openai = 1 }", "must be a string"),
    ("models", "[]", "must be a table"),
    ("models.fast", "1", "a string or a list of strings"),
    ("models.fast", "[1]", "must be a string"),
    ("providers.acme", "1", "must be a table"),
    ("providers.acme.dialect", '"gemini"', "'openai', 'anthropic', 'google' or 'other'"),
    ("providers.acme.via", '"tor"', "'lava' or 'direct'"),
    ("providers.acme.via", '"direct"', "comes in a later version"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG, ids=[f"{key}={value[:20]}" for key, value, _ in WRONG])
def test_wrong_value(tmp_path: Path, key: str, value: str, words: str) -> None:
    """A value of a wrong type, or beyond its limits, is a fault at its key; types are strict, no value is converted."""
    base = 'providers.acme.base_url = "https://llm.acme.com"\n' if key.startswith("providers.acme.") else ""
    needed = 'projects.a.customer_id = "c"\nprojects.a.meter = "m"\n' if key.endswith("billing") else ""
    fault = only_fault(tmp_path, f"{base}{needed}{key} = {value}")
    line = (base + needed).count("\n") + 1
    assert re.match(rf"{re.escape(str(tmp_path))}/config\.toml:{line}: {re.escape(key)}[^ ]*: ", fault)
    assert words in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example.com",
        "https://*",
        "http://*",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/x",
        "https://u@app.example.com",
        "https://app.example.com ",
        "https://",
        "vscode-webview:*",
        "",
    ],
)
def test_wrong_origin(tmp_path: Path, origin: str) -> None:
    """An origin that no browser sends, or that would let every web page in, is refused."""
    fault = only_fault(tmp_path, f'[server]\nallowed_origins = ["{origin}"]')
    assert ":2: server.allowed_origins: m" in fault


@pytest.mark.parametrize(
    "host", ["*", "http://box", "box:", "box:0", "box:65536", "box:x", "a b", "", "box/", "::1", "*.x"]
)
def test_wrong_allowed_host(tmp_path: Path, host: str) -> None:
    """What cannot stand in a Host header, and any wildcard, is refused."""
    fault = only_fault(tmp_path, f'[server]\nallowed_hosts = ["{host}"]')
    assert ":2: server.allowed_hosts: must hold names" in fault


@pytest.mark.parametrize(
    ("written", "base"),
    [
        ("auto", "auto"),
        ("https://api.example.com", "https://api.example.com/v1"),
        ("https://api.example.com/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/lava/v2", "https://api.example.com/lava/v2"),
        ("https://10.0.0.1:8443", "https://10.0.0.1:8443/v1"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/v1"),
        ("http://localhost:9/x/", "http://localhost:9/x"),
        ("http://[::1]:9", "http://[::1]:9/v1"),
    ],
)
def test_base_url(tmp_path: Path, written: str, base: str) -> None:
    """Lava's address gets /v1 where it has no path, and loses the slash at its end; http is for loopback."""
    assert loaded(tmp_path, f'[lava]\nbase_url = "{written}"').lava.base_url == base


@pytest.mark.parametrize(
    "url",
    [
        "http://llm.acme.com/v1",
        "https://10.0.0.1/v1",
        "https://8.8.8.8/v1",
        "https://[2001:db8::1]/v1",
        "https://localhost/v1",
        "https://127.0.0.1:8443/v1",
        "https://2130706433/v1",
        "https://0x7f000001/v1",
        "https://llm/v1",
        "https://llm.local/v1",
        "https://user:hunter2@llm.acme.com/v1",
        "https://hunter2@llm.acme.com/v1",
        "https://llm.acme.com/a/../v1",
        "https://llm.acme.com/a/%2e%2e/v1",
        "https://llm.acme.com/v1?key=hunter2",
        "https://llm.acme.com/v1#hunter2",
        "ftp://llm.acme.com",
        "llm.acme.com",
        "",
    ],
)
def test_provider_that_lava_cannot_reach(tmp_path: Path, url: str) -> None:
    """A provider's address must be https and a public name, without tricks: refused at its field, its value untold."""
    fault = only_fault(tmp_path, f'[providers.acme]\nbase_url = "{url}"')
    assert ":2: providers.acme.base_url: must" in fault
    assert "hunter2" not in fault
    assert not url or url not in fault


@pytest.mark.parametrize("url", ["https://llm.acme.com", "https://llm.acme.com:8443/v1/", "https://a.b.c.acme.com:1/x"])
def test_provider_on_any_port(tmp_path: Path, url: str) -> None:
    """Any https port will do; dialect and via have defaults."""
    provider = loaded(tmp_path, f'[providers.acme]\nbase_url = "{url}"').providers["acme"]
    assert provider == CustomProvider(base_url=url.rstrip("/"), dialect=Dialect.OPENAI, via="lava")


def test_provider_without_address(tmp_path: Path) -> None:
    """The one required key is missed at its table's line."""
    assert only_fault(tmp_path, "\n[providers.acme]").endswith(":2: providers.acme.base_url: is required")


def test_port_zero(tmp_path: Path) -> None:
    """Port 0 means any free port, which tests and demos use."""
    assert loaded(tmp_path, "[server]\nport = 0").server.port == 0


# --- files and the outside ---


def test_ca_file(tmp_path: Path) -> None:
    """A file of certificates is checked at start: it must be there and hold PEM."""
    verify = ssl.get_default_verify_paths()
    trusted = next(
        (Path(p) for p in (verify.cafile, "/etc/ssl/certs/ca-certificates.crt") if p and Path(p).exists()), None
    )
    if trusted is None:
        import certifi

        trusted = Path(certifi.where())
    assert loaded(tmp_path, f'[upstream]\nca_file = "{trusted}"').upstream.ca_file == str(trusted)
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "der.pem").write_bytes(b"\x30\x82\x00\xff")
    for name, words in (
        ("no.pem", "no such file"),
        (".", "is a directory"),
        ("empty.pem", "no certificate in PEM form"),
        ("bad.pem", "no certificate in PEM form"),
        ("der.pem", "NUL"),
    ):
        fault = only_fault(tmp_path, f'[upstream]\nca_file = "{name}"')
        assert ":2: upstream.ca_file: " in fault
        assert words in fault


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_proxy_variable_is_not_followed_silently(tmp_path: Path, name: str) -> None:
    """A proxy variable that is ignored is a warning with its name and what to write, without its value."""
    environ = {name: "http://user:hunter2@proxy:3128"}
    (warning,) = load(None, environ).warnings
    assert name in warning
    assert 'proxy = "env"' in warning
    assert "hunter2" not in warning
    assert loaded(tmp_path, '[upstream]\nproxy = "env"', environ).warnings == ()
    assert loaded(tmp_path, '[upstream]\nproxy = "http://proxy:1"', environ).warnings == ()


def test_proxy_credentials_need_no_password(tmp_path: Path) -> None:
    """A proxy with a user name only keeps it."""
    upstream = loaded(tmp_path, '[upstream]\nproxy = "https://me@proxy.example.com"').upstream
    assert (upstream.proxy, upstream.proxy_url()) == ("https://proxy.example.com", "https://me@proxy.example.com")


def test_warnings_of_file_secrets(tmp_path: Path) -> None:
    """A file: secret that others may read is used, and the settings carry the warning."""
    (tmp_path / "key").write_text(LAVA_KEY + "\n")
    (tmp_path / "key").chmod(0o444)
    settings = loaded(tmp_path, '[lava]\nsecret_key = "file:key"')
    assert settings.lava.secret_key == Secret(LAVA_KEY)
    (warning,) = settings.warnings
    assert "0444" in warning


# --- secrets stay secret ---


def dumps(settings: Settings) -> Iterator[str | bytes]:
    """Everything that a careless program might write of settings."""
    yield repr(settings)
    yield str(settings)
    yield f"{settings}"
    yield str(settings.__dict__)
    yield str(vars(settings.lava))
    yield str(list(settings))
    yield str(settings.model_dump())
    yield settings.model_dump_json()
    yield json.dumps(settings.model_dump(mode="json"))
    yield str(settings.__repr_args__())
    yield repr(copy.deepcopy(settings))
    yield repr(settings.model_copy(update={"default_project": None}))
    for part in (settings.server, settings.lava, settings.upstream, *settings.projects.values()):
        yield repr(part)
        yield part.model_dump_json()
    try:
        yield pickle.dumps(settings)
    except TypeError as error:
        yield str(error)


def test_no_dump_shows_a_secret(whole: Settings) -> None:
    """No way to print, dump or pickle settings gives a secret, in any encoding."""
    for dump in dumps(whole):
        assert leaks(dump, list(whole.secrets())) == []


def frozen(part: object, name: str, value: Any) -> None:
    """Setting this attribute fails."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, name, value)


def test_frozen(whole: Settings) -> None:
    """Nobody changes settings; a reload makes new ones."""
    frozen(whole, "default_project", "x")
    frozen(whole.server, "port", 1)
    frozen(whole.projects["website"], "meter", "x")


CANARY = "c4n4ry-" + "Wq7z" * 8


@pytest.mark.parametrize(
    "text",
    [
        '[lava]\nsecret_key = "{}\\n"',
        '[lava]\nsecret_key = ["{}"]',
        "[lava]\nsecret_key = {{ a = '{}' }}",
        "[lava]\nsecret_key = {}",
        '[lava]\nsecret_key = "{}',
        '[lava]\nsecret_kye = "{}"',
        '[lava]\nbase_url = "https://{}@api.example.com"',
        '[lava]\nbase_url = "{}"',
        '[server]\nkeys = "{}"',
        '[server]\nkeys = {{ a = "{}" }}',
        '[server]\nkeys = ["{}", "{}"]',
        '[server]\nkeys = ["{} "]',
        '[server]\nport = "{}"',
        '[server]\nhost = "{} "',
        '[server]\nallowed_origins = ["{}"]',
        '[server]\nallowed_hosts = ["{} "]',
        '[upstream]\nproxy = "{}"',
        '[upstream]\nproxy = "http://me:{}@proxy.example.com:x"',
        '[upstream]\nproxy = "http://me:{} @proxy.example.com"',
        '[lava]\ndiagnose = "{}"',
        '[log]\nlevel = "{}"',
        'projects = "{}"',
        'lava = "{}"',
        '[projects.a]\nspend_key = "{} "',
        '[projects.a]\nforward_token = "env:{}"',
        '[projects.a]\nforward_token = "file:{}"',
        '[projects.a]\nforward_token = "keyring:{}"',
        '[projects.a]\nbyok = "{}"',
        '[projects.a]\nbyok = ["{}"]',
        '[projects.a]\nbyok = {{ opneai = "{}" }}',
        '[projects.a]\nbyok = {{ openai = ["{}"] }}',
        '[projects.a]\nkeys = [["{}"]]',
        '[projects.a]\nmetadata = "{}"',
        '[projects.a]\ndefault_provider = "{}"',
        '[providers.acme]\nbase_url = "https://{}:x@llm.acme.com"',
        '[models]\nfast = "{}"',
        'default_project = "{}"',
    ],
)
def test_no_fault_shows_a_value(tmp_path: Path, text: str) -> None:
    """Whatever is wrong, and wherever a secret was put by mistake, no fault and no traceback shows it."""
    path = tmp_path / "config.toml"
    path.write_text(text.replace("{}", CANARY).replace("{{", "{").replace("}}", "}"))
    path.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.faults)
    assert leaks(shown, [CANARY]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LAVA__SECRET_KEY", "{}\n"),
        ("LAVA", '{"secret_key": "{}"'),
        ("LAVA", '{"secret_key": ["{}"]}'),
        ("SERVER__KEYS", "{}"),
        ("SERVER__KEYS", '["{}"'),
        ("SERVER__PORT", "{}"),
        ("PROJECTS__A__BYOK", "{}"),
        ("PROJECTS__A__BYOK", '{"openai": "{}"'),
        ("PROJECTS", '{"a": "{}"}'),
        ("UPSTREAM__PROXY", "http://{}@proxy.example.com/x"),
        ("SECRET_KEY", "{}"),
    ],
)
def test_no_fault_shows_a_variable(name: str, value: str) -> None:
    """Nor the value of a variable: wrong type, bad JSON, unknown name."""
    with pytest.raises(ConfigError) as caught:
        load(None, {f"LAVA_PROXY_{name}": value.replace("{}", CANARY)})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert leaks(shown, [CANARY]) == []


def test_models_refuse_without_showing() -> None:
    """A model filled by hand keeps its input to itself as well."""
    with pytest.raises(ValidationError) as caught:
        Project.model_validate({"spend_key": [CANARY], "meter": {"x": CANARY}})
    assert leaks(str(caught.value), [CANARY]) == []


# --- the example ---


def uncommented() -> str:
    """The example with every setting taken out of its comment."""
    return re.sub(r"(?m)^#(?=[a-z\"\[])", "", EXAMPLE.read_text(encoding="utf-8"))


def example_environ() -> dict[str, str]:
    """A value for each variable that the example refers to."""
    names = re.findall(r"env:([A-Z_]+)\b", uncommented())
    return {name: f"{name}-{LOCAL_KEY}" for name in names if name != "NAME"}


def value_at(settings: object, key: str) -> object:
    """A setting by its dotted key."""
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def test_example_loads_as_it_is() -> None:
    """The example changes nothing as long as nothing is taken out of its comments."""
    settings = load(EXAMPLE, {})
    assert settings.model_copy(update={"path": None}) == Settings()
    assert settings.warnings == ()


def test_example_loads_uncommented(tmp_path: Path) -> None:
    """All its settings at once make a valid configuration, and no default in it differs from the real one."""
    environ = example_environ()
    settings = loaded(tmp_path, uncommented(), environ)
    expected = Settings(lava=LavaAccount(secret_key=Secret(environ["LAVA_SECRET_KEY"])))
    for key in known_keys():
        if "*" not in key and key not in ("default_project", "models"):
            assert value_at(settings, key) == value_at(expected, key), key
    assert set(settings.projects) == {"website", "trial", "lab", "ready", "agent"}
    assert settings.providers["acme"].dialect == Dialect.OPENAI


def test_example_has_every_key() -> None:
    """The example names each setting there is, and none that there is not."""
    parsed = tomllib.loads(uncommented())
    found = set()
    for name, value in parsed.items():
        if name in ("projects", "providers"):
            found |= {f"{name}.*.{key}" for table in value.values() for key in table if key != "budget"}
            found |= {f"{name}.*.budget.{key}" for table in value.values() for key in table.get("budget", ())}
        elif isinstance(value, dict) and name != "models":
            found |= {f"{name}.{key}" for key in value}
        else:
            found.add(name)
    assert found == known_keys()


def test_example_says_why() -> None:
    """Each setting has a line above it that says what it is for (the second mention of one in an example may not)."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    explained = set()
    for above, line in pairwise(lines):
        key = re.match(r"#(?:\"[^\"]+\"|[a-z_0-9]+)(?= =)", line)
        if key and key.group() not in explained:
            before = lines[lines.index(above) - 1] if above.startswith("#[") else above
            assert before.startswith("# "), line
            explained.add(key.group())


def test_known_keys_are_dotted() -> None:
    """Keys are dotted, with a star for names that the user chooses; what we add ourselves is none."""
    assert {"server.port", "default_project", "projects.*.meter", "providers.*.via", "models"} <= known_keys()
    assert not {"path", "warnings", "upstream.proxy_credentials"} & known_keys()


def test_import_is_light() -> None:
    """Reading settings does not load what only some need: keyring, rich, TLS clients, pydantic-settings."""
    script = (
        "import sys; from proxy.config.settings import load; load(None, {});"
        "print([m for m in ('keyring', 'rich', 'httpx2', 'pydantic_settings', 'platformdirs') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_faults_are_strings(tmp_path: Path) -> None:
    """The error is its faults, one a line."""
    found = faults(tmp_path, "a = 1\nb = 2")
    assert str(ConfigError(found)) == "\n".join(found)
    assert len(found) == 2
