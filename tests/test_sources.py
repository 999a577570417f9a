"""The file, the environment and the flags: which is read, what wins, and where a fault is said to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from configurations import LAVA_KEY, faults, loaded, only_fault, written

from proxy.config.settings import ConfigError, load
from proxy.config.sources import MAX_CONFIG_BYTES, find_config, user_config

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and FIFOs are POSIX")


def environment_faults(environ: dict[str, str]) -> tuple[str, ...]:
    """What is wrong with these variables, without a file."""
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    assert caught.value.__context__ is None
    return caught.value.faults


# --- which file ---


def test_search_order(tmp_path: Path) -> None:
    """The flag, then the variable, then the user's file, then the system's; the first alone is read."""
    flag, variable = tmp_path / "flag.toml", tmp_path / "variable.toml"
    user, system = tmp_path / "home" / "lava-proxy" / "config.toml", tmp_path / "system.toml"
    user.parent.mkdir(parents=True)
    for port, path in enumerate((flag, variable, user, system), 9001):
        path.write_text(f"[server]\nport = {port}")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "LAVA_PROXY_CONFIG": str(variable)}
    assert load(flag, environ).server.port == 9001
    assert load(None, environ).server.port == 9002
    del environ["LAVA_PROXY_CONFIG"]
    assert load(None, environ).server.port == 9003
    assert load(None, environ).path == user
    assert find_config(environ, system) == user
    user.unlink()
    assert find_config(environ, system) == system
    system.unlink()
    assert find_config(environ, system) is None


def test_no_file_at_all() -> None:
    """Without any file the defaults hold, and no path is claimed."""
    settings = load(None, {})
    assert settings.path is None
    assert settings.server.port == 5282


def test_an_empty_variable_names_no_file() -> None:
    """LAVA_PROXY_CONFIG without a value is as if unset (Compose passes unset variables so)."""
    assert load(None, {"LAVA_PROXY_CONFIG": ""}).path is None


def test_never_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a cloned repository cannot say where a key is sent."""
    (tmp_path / "config.toml").write_text("[server]\nport = 1")
    (tmp_path / "lava-proxy").mkdir()
    (tmp_path / "lava-proxy" / "config.toml").write_text("[server]\nport = 2")
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).server.port == 5282


def test_user_directory_of_the_process(tmp_path: Path) -> None:
    """Started for real, the user's file is where platformdirs says."""
    script = "import platformdirs, os; from proxy.config.sources import user_config; print(user_config(os.environ))"
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    out = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert Path(out.stdout.strip()).parts[-2:] == ("lava-proxy", "config.toml")
    assert out.stdout.startswith(str(tmp_path))
    assert user_config({"HOME": str(tmp_path)}) == tmp_path / ".config" / "lava-proxy" / "config.toml"
    assert user_config({}) is None


# --- what the file is ---


def test_named_file_must_exist(tmp_path: Path) -> None:
    """A file that was asked for and is not there is a fault that names it."""
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "no.toml", {})
    assert str(tmp_path / "no.toml") in str(caught.value)
    assert "no such file" in environment_faults({"LAVA_PROXY_CONFIG": str(tmp_path / "no.toml")})[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a = 1\n\0", "NUL"),
        (b"# fine\na = '\xff'", "not UTF-8 text (line 2)"),
        ("[server]".encode("utf-16"), "NUL"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "larger than 1024 KiB"),
        (b"[server]\nport =\n", ":2: not valid TOML"),
        (b"[server]\n\nport = 1\nport = 2", ":4: not valid TOML"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
        (b"a = 2026-99-99", ":1: not valid TOML"),
    ],
    ids=["nul", "latin", "utf-16", "large", "syntax", "twice", "deep", "number", "date"],
)
def test_broken_file(tmp_path: Path, data: bytes, words: str) -> None:
    """A file that is no TOML text is one clear fault with its path, and with its line where there is one."""
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    (fault,) = caught.value.faults
    assert fault.startswith(str(path))
    assert words in fault
    assert caught.value.__context__ is None


@pytest.mark.skipif(os.name != "posix", reason="modes and owners mean something on POSIX only")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o664, 0o666, 0o777])
def test_a_file_that_others_may_write(tmp_path: Path, mode: int) -> None:
    """It is refused, even without a secret in it: whoever writes it says where the key goes."""
    path = tmp_path / "config.toml"
    path.write_text("[server]\nport = 1234\n")
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert caught.value.faults == (f"{path}: can be changed by other users (mode {mode:04o}): chmod go-w {path}",)
    path.chmod(mode & ~0o022)
    assert load(path, {}).server.port == 1234


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user(tmp_path: Path) -> None:
    """It is refused as well, whatever its mode."""
    path = tmp_path / "config.toml"
    path.write_text("[server]\nport = 1234\n")
    path.chmod(0o600)
    os.chown(path, 4321, -1)
    with pytest.raises(ConfigError, match=r"uid 4321, mode 0600"):
        load(path, {})


def test_ten_megabytes(tmp_path: Path) -> None:
    """A file far too large is refused without being read as a whole."""
    with (tmp_path / "config.toml").open("wb") as stream:
        stream.truncate(10 * 1024 * 1024 * 1024)
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path / "config.toml", {})


def test_broken_syntax_keeps_the_secret(tmp_path: Path) -> None:
    """A key without its quotes is a fault that does not repeat it."""
    fault = only_fault(tmp_path, f"[lava]\nsecret_key = {LAVA_KEY}\n")
    assert ":2: not valid TOML" in fault
    assert LAVA_KEY[:12] not in fault


@posix
def test_no_regular_file(tmp_path: Path) -> None:
    """A directory and a FIFO are refused at once, by kind."""
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path, "a directory"), (tmp_path / "fifo", "a FIFO"), (Path("/dev/null"), "a device")):
        with pytest.raises(ConfigError, match=kind) as caught:
            load(path, {})
        assert str(path) in str(caught.value)


@posix
def test_link(tmp_path: Path) -> None:
    """A linked file is read (dotfile managers, Kubernetes); a link into nothing is a fault, also where nobody named it."""
    written(tmp_path, "[server]\nport = 7")
    folder = tmp_path / "home" / "lava-proxy"
    folder.mkdir(parents=True)
    (folder / "config.toml").symlink_to(tmp_path / "config.toml")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert load(None, environ).server.port == 7
    (tmp_path / "config.toml").unlink()
    assert "no such file" in environment_faults(environ)[0]


def test_windows_text(tmp_path: Path) -> None:
    """A byte order mark and Windows line ends do no harm, and lines are counted right."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n\r\nprt = 2\r\n")
    with pytest.raises(ConfigError, match=r":4: server\.prt: unknown key"):
        load(path, {})


# --- unknown keys ---


@pytest.mark.parametrize(
    ("text", "place", "suggestion"),
    [
        ("defalt_project = 'a'", ":1: defalt_project:", "did you mean default_project?"),
        ("[sever]\nport = 1", ":1: sever:", "did you mean server?"),
        ("[server]\n\nprt = 1", ":3: server.prt:", "did you mean port?"),
        ("server.prt = 1", ":1: server.prt:", "did you mean port?"),
        ("server = { port = 1, prt = 2 }", ":1: server.prt:", "did you mean port?"),
        ("[server]\nkeys = [\n'''\n[log]\nlevle = 1\n''']\nkees = 1", ":7: server.kees:", "did you mean keys?"),
        ("[projects.a]\nmetter = 'x'", ":2: projects.a.metter:", "did you mean meter?"),
        ("[projects]\n'a'.metter = 'x'", ":2: projects.a.metter:", "did you mean meter?"),
        ("[providers.x]\nbase_ulr = 'x'", ":2: providers.x.base_ulr:", "did you mean base_url?"),
        ("secret_key = 'env:X'", ":1: secret_key:", "did you mean lava.secret_key?"),
        ("[upstream]\nlevel = 'info'", ":2: upstream.level:", "did you mean log.level?"),
        ("[server]\nzzzzzz = 1", ":2: server.zzzzzz:", "unknown key"),
        ("path = '/'", ":1: path:", "unknown key"),
        ("warnings = []", ":1: warnings:", "unknown key"),
        ("[upstream]\nproxy_credentials = 'x'", ":2: upstream.proxy_credentials:", "unknown key"),
    ],
)
def test_unknown_key(tmp_path: Path, text: str, place: str, suggestion: str) -> None:
    """An unknown key is refused with its file, line and name, and with the nearest key there is."""
    found = faults(tmp_path, text)
    fault = next(fault for fault in found if "unknown key" in fault)
    assert fault.startswith(f"{tmp_path / 'config.toml'}{place} unknown key")
    assert suggestion in fault


def test_all_faults_at_once(tmp_path: Path) -> None:
    """A file with faults of every sort has them all reported, in the order of its lines."""
    text = """\
default_project = "mian"
[server]
prt = 1
port = "x"
drain_seconds = -1
allowed_origins = ["*"]
keys = ["short", "env:UNSET"]
[upstream]
http2 = "yes"
[projects.Bad]
customer_id = "x"
[projects.main]
byok = { opena = "x" }
metadata = { "a-b" = "c" }
[providers.openai]
base_url = "http://10.0.0.1"
[models]
fast = "grok/x"
"""
    found = faults(tmp_path, text, {"LAVA_PROXY_LOG__LEVEL": "loud", "LAVA_PROXY_NOPE": "1"})
    lines = [int(fault.split(":")[1]) if fault.startswith("/") else 0 for fault in found]
    assert lines == [1, 3, 4, 5, 6, 7, 7, 9, 10, 11, 13, 14, 15, 16, 18, 0, 0]
    assert len(set(found)) == len(found)


# --- the environment ---


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("SERVER__PORT", "9000", "server.port", 9000),
        ("server__port", "9000", "server.port", 9000),
        ("SERVER__HOST", "127.0.0.2", "server.host", ("127.0.0.2",)),
        ("SERVER__HOST", '["127.0.0.2", "::1"]', "server.host", ("127.0.0.2", "::1")),
        ("SERVER__ALLOWED_HOSTS", '["a:1"]', "server.allowed_hosts", ("a:1",)),
        ("SERVER__MAX_BODY_BYTES", "52_428_801", "server.max_body_bytes", 52_428_801),
        ("SERVER__DRAIN_SECONDS", "5", "server.drain_seconds", 5.0),
        ("SERVER", '{"port": 9000}', "server.port", 9000),
        ("UPSTREAM__IDLE", "0.5", "upstream.idle", 0.5),
        ("LAVA__DIAGNOSE", "true", "lava.diagnose", True),
        ("LAVA__DIAGNOSE", "0", "lava.diagnose", False),
        ("LOG__LEVEL", "DEBUG", "log.level", "debug"),
        ("LOG__FILE", "", "log.file", ""),
        ("DEFAULT_PROJECT", "default", "default_project", "default"),
        ("MODELS__FAST", "groq/x", "models.fast", ("groq/x",)),
        ("MODELS__SMART", '["groq/x", "openai/y"]', "models.smart", ("groq/x", "openai/y")),
        ("MODELS", '{"q-*": "together"}', "models.q-*", ("together",)),
        ("PROJECTS__WEBSITE__METER", "chat", "projects.website.meter", "chat"),
        ("PROJECTS__MY-SITE__METER", "123", "projects.my-site.meter", "123"),
        ("PROJECTS__MY_SITE__METER", "true", "projects.my_site.meter", "true"),
        ("PROJECTS__A__METADATA__TEAM", "1", "projects.a.metadata.team", "1"),
        ("PROJECTS__A__METADATA__DISABLE_BILLING", "true", "projects.a.metadata.disable_billing", "true"),
        ("PROJECTS__A__METADATA", '{"Team": "web"}', "projects.a.metadata.Team", "web"),
        ("PROJECTS__A__BYOK", "client", "projects.a.byok.*", "client"),
        ("PROJECTS__A__BYOK__OPENAI", "client", "projects.a.byok.openai", "client"),
        (
            "PROJECTS__A__BYOK__GOOGLEOPENAICOMPATIBLE",
            "client",
            "projects.a.byok.googleOpenaiCompatible",
            "client",
        ),
        ("PROJECTS", '{"a": {"meter": "m"}}', "projects.a.meter", "m"),
        ("PROVIDERS__ACME__BASE_URL", "https://llm.acme.com/", "providers.acme.base_url", "https://llm.acme.com"),
    ],
)
def test_variable(name: str, value: str, attribute: str, expected: object) -> None:
    """Every key is a variable: numbers and booleans as text, lists and tables as JSON, names in any case."""
    found: object = load(None, {f"LAVA_PROXY_{name}": value})
    for part in attribute.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == expected


def test_disable_billing_as_variable() -> None:
    """A boolean that may be absent is read from text too."""
    environ = {"LAVA_PROXY_PROJECTS__A__" + key: value for key, value in (("CUSTOMER_ID", "c"), ("METER", "m"))}
    environ["LAVA_PROXY_PROJECTS__A__DISABLE_BILLING"] = "false"
    assert load(None, environ).projects["a"].disable_billing is False


def test_order_of_sources(tmp_path: Path) -> None:
    """A flag wins over a variable, a variable over the file, the file over the default; tables are merged."""
    text = (
        '[server]\nport = 1\nmax_concurrent = 1\ndrain_seconds = 1\n[projects.a]\nmeter = "file"\nconnection_id = "c"'
    )
    environ = {
        "LAVA_PROXY_SERVER__PORT": "2",
        "LAVA_PROXY_SERVER__MAX_CONCURRENT": "2",
        "LAVA_PROXY_PROJECTS__A__METER": "variable",
        "LAVA_PROXY_PROJECTS": '{"a": {"meter": "json"}, "b": {"meter": "json"}}',
    }
    settings = load(written(tmp_path, text), environ, {"server.port": 3, "server.host": None})
    assert (settings.server.port, settings.server.max_concurrent, settings.server.drain_seconds) == (3, 2, 1.0)
    assert settings.server.host == ("127.0.0.1", "::1")
    assert settings.projects["a"].meter == "variable"
    assert settings.projects["a"].connection_id == "c"
    assert settings.projects["b"].meter == "json"


def test_null_takes_back(tmp_path: Path) -> None:
    """A JSON null in a variable removes what the file says."""
    environ = {"LAVA_PROXY_PROJECTS__A": '{"connection_id": null, "meter": "m"}'}
    settings = loaded(tmp_path, '[projects.a]\nconnection_id = "c"', environ)
    assert settings.projects["a"].connection_id is None


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("LAVA_PROXY_PROT", ""),
        ("LAVA_PROXY_SERVER_PORT", "LAVA_PROXY_SERVER__PORT"),
        ("LAVA_PROXY_SERVER__PRT", "LAVA_PROXY_SERVER__PORT"),
        ("LAVA_PROXY_LAVA_SECRET_KEY", "LAVA_PROXY_LAVA__SECRET_KEY"),
        ("LAVA_PROXY_PROJECTS__WEB__METTER", "LAVA_PROXY_PROJECTS__WEB__METER"),
        ("LAVA_PROXY_PROVIDERS__ACME__BASEURL", "LAVA_PROXY_PROVIDERS__ACME__BASE_URL"),
        ("LAVA_PROXY_SERVICE__PORT", "LAVA_PROXY_SERVER__PORT"),
        ("LAVA_PROXY_SERVER__PORT__X", ""),
        ("LAVA_PROXY_PROJECTS__A__METER__BYOK__X", ""),
        ("LAVA_PROXY_SERVER__", ""),
        ("LAVA_PROXY___PORT", ""),
        ("LAVA_PROXY_", ""),
        ("LAVA_PROXY_PATH", ""),
        ("LAVA_PROXY_WARNINGS", ""),
        ("LAVA_PROXY_UPSTREAM__PROXY_CREDENTIALS", ""),
        ("LAVA_PROXY_PORT", ""),
    ],
)
def test_unknown_variable(name: str, suggestion: str) -> None:
    """A variable with our prefix that means nothing is refused by name, with the nearest one, and without its value."""
    (fault,) = environment_faults({name: LAVA_KEY})
    assert fault.startswith(f"{name}: unknown setting")
    assert f"did you mean {suggestion}?" in fault if suggestion else True
    assert LAVA_KEY not in fault


def test_kubernetes() -> None:
    """What Kubernetes injects beside a Service of our name is ignored."""
    environ = {
        "LAVA_PROXY_SERVICE_HOST": "10.0.0.7",
        "LAVA_PROXY_SERVICE_PORT": "5282",
        "LAVA_PROXY_SERVICE_PORT_HTTP": "5282",
        "LAVA_PROXY_PORT": "tcp://10.0.0.7:5282",
        "LAVA_PROXY_PORT_5282_TCP": "tcp://10.0.0.7:5282",
        "LAVA_PROXY_PORT_5282_TCP_PROTO": "tcp",
        "LAVA_PROXY_PORT_5282_TCP_PORT": "5282",
        "LAVA_PROXY_PORT_5282_TCP_ADDR": "10.0.0.7",
    }
    assert load(None, environ) == load(None, {})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SERVER__PORT", "nine", "server.port: must be a whole number"),
        ("SERVER__PORT", "", "server.port: must be a whole number"),
        ("SERVER__PORT", "70000", "server.port: must be at most 65535"),
        ("UPSTREAM__IDLE", "nan", "upstream.idle: must be a number"),
        ("LAVA__DIAGNOSE", "maybe", "lava.diagnose: must be true or false"),
        ("SERVER", "[broken", "server: must be a table; in a variable it is written as JSON"),
        ("SERVER__KEYS", '["broken', "server.keys: must be a list; in a variable it is written as JSON"),
        ("SERVER__ALLOWED_HOSTS", "a,b", "server.allowed_hosts: must be a list; in a variable it is written as JSON"),
        ("PROJECTS", '{"a": {"metter": "x"}}', "projects.a.metter: unknown key; did you mean meter?"),
        ("PROJECTS", "{" * 100_000, "projects: must be a table"),
        ("PROJECTS__A__CONNECTION_ID", "c", "projects.a.connection_id: needs a meter"),
        ("PROJECTS__A__BYOK__GOOGLEOPENAICOMPATIBLE", "env:UNSET", "byok.googleOpenaiCompatible: cannot be resolved"),
        (
            "PROJECTS__A__BYOK__OPENIA",
            "client",
            'projects.a.byok.openia: no provider is called "openia"; did you mean openai?',
        ),
        ("DEFAULT_PROJECT", "x", 'default_project: no project is called "x"; add a project'),
    ],
)
def test_wrong_variable(name: str, value: str, words: str) -> None:
    """A fault in a variable names the variable and the key, and repeats nothing of the value."""
    (fault,) = environment_faults({f"LAVA_PROXY_{name}": value})
    assert fault.startswith(f"LAVA_PROXY_{name}: ")
    assert words in fault


def test_contradicting_variables() -> None:
    """Two variables of which one leaves no room for the other are refused, not half used."""
    environ = {"LAVA_PROXY_PROJECTS__A__BYOK": "client", "LAVA_PROXY_PROJECTS__A__BYOK__OPENAI": "env:X"}
    (fault,) = environment_faults(environ)
    assert fault.startswith("LAVA_PROXY_PROJECTS__A__BYOK__OPENAI: contradicts LAVA_PROXY_PROJECTS__A__BYOK")


def test_wrong_flag() -> None:
    """A fault in a flag is said to be on the command line."""
    with pytest.raises(ConfigError, match=r"^command line: server\.port: must be at most 65535, not 70000$"):
        load(None, {}, {"server.port": 70000})
    with pytest.raises(ConfigError, match=r"^command line: server\.prot: unknown key; did you mean port\?$"):
        load(None, {}, {"server.prot": 1})


def test_fault_belongs_to_the_source_that_wins(tmp_path: Path) -> None:
    """Where a variable overrides the file, the fault is the variable's."""
    (fault,) = faults(tmp_path, "[server]\nport = 1", {"LAVA_PROXY_SERVER__PORT": "x"})
    assert fault.startswith("LAVA_PROXY_SERVER__PORT: ")


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in the file starts beside the file, one in a variable in the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    settings = loaded(tmp_path, '[log]\nfile = "a.log"', {"LAVA_PROXY_SERVER__UNIX_SOCKET": "~/s", "HOME": "/h"})
    assert settings.log.file == str(tmp_path / "a.log")
    assert settings.server.unix_socket == str(Path("/h/s"))
    assert load(None, {"LAVA_PROXY_LOG__FILE": "a.log"}).log.file == str(tmp_path / "work" / "a.log")


@pytest.mark.parametrize(
    "line",
    [
        "level = loud",
        "host = 127.0.0.1",
        "secret_key = env:NAME",
        "keys = [env:A]",
        "keys = ['a', env:B]",
        "keys = [\n    env:A,\n]",
        "metadata = { team = web }",
        "base_url = https://llm.acme.com/v1",
        "ca_file = /etc/ca.pem  # ours",
        "projects.a.meter = chat",
        "meter = 2026-chat",
        "disable_billing = True",
        "meter = \u201cchat\u201d",
    ],
)
def test_a_string_without_quotes(tmp_path: Path, line: str) -> None:
    """The commonest slip in TOML gets a word about it; what was written is not shown."""
    fault = only_fault(tmp_path, line + "\n")
    assert "not valid TOML" in fault
    assert "a string stands in quotes" in fault
    assert line.rpartition("= ")[2] not in fault


@pytest.mark.parametrize(
    "line", ["port =", "[server", "port = 1\nport = 2", 'level = "info', "= 3", "hosts = [1, true"]
)
def test_other_slips_are_not_taken_for_it(tmp_path: Path, line: str) -> None:
    """Where quotes are not what is missing, nothing is said of them."""
    assert "quotes" not in only_fault(tmp_path, line)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[log]\nlevel = "loud"\n', "or 'critical', not \"loud\""),
        ('[log]\nlevel = "warn"\n', 'not "warn"; did you mean warning?'),
        ('[log]\nformat = "jsno"\n', 'not "jsno"; did you mean json?'),
        ('default_project = "nonesuch"\n[projects.main]\n', 'no project is called "nonesuch"; there are: main; add'),
        ('default_project = "mian"\n[projects.main]\n', 'no project is called "mian"; did you mean main?'),
        ('[projects.a]\ndefault_provider = "opneai"\n', 'no provider is called "opneai"; did you mean openai?'),
        ('[models]\nfast = "gorq/llama"\n', 'no provider is called "gorq"; did you mean groq?'),
        ("[server]\nport = 99999\n", "at most 65535, not 99999"),
        ('[server]\nport = "http"\n', 'without quotes, not "http"'),
        ("[server]\ndrain_seconds = -1\n", "more than 0, not -1"),
        ('[projects.a]\ncustomer_id = "c"\nmeter = "m"\ndisable_billing = "yes"\n', 'not "yes"'),
        ('[server]\nhost = "127.0.0.1:80"\n', 'without a port, not "127.0.0.1:80"'),
        ('[server]\nallowed_hosts = ["http://a"]\n', 'not "http://a"'),
        ('[server]\nallowed_origins = ["a.example.com"]\n', 'not "a.example.com"'),
        ('[providers.acme]\nbase_url = "https://a.example.com"\ndialect = "opanai"\n', "did you mean openai?"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, named: str) -> None:
    """Where the key can hold no secret: the value, and the right one that is nearest."""
    assert named in only_fault(tmp_path, text)


@pytest.mark.parametrize("prefix", ["aks_live_", "lava_sk_", "sk-", "local_", "AIza", "eyJ", "Bearer ", "canary"])
@pytest.mark.parametrize(
    "text",
    [
        '[log]\nlevel = "{}"\n',
        'default_project = "{}"\n[projects.main]\n',
        '[projects.a]\ndefault_provider = "{}"\n',
        '[server]\nport = "{}"\n',
        '[server]\nhost = "{}!"\n',
        '[models]\nfast = "{}/m"\n',
    ],
)
def test_a_key_in_the_wrong_place_is_not_named(tmp_path: Path, text: str, prefix: str) -> None:
    """What looks like a key is not shown, wherever it stands."""
    fault = only_fault(tmp_path, text.replace("{}", prefix + "Qx7vT2nB" * 3))
    assert "Qx7" not in fault
    assert prefix not in fault
