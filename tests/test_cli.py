"""The command ``lava-proxy`` as a person or a script meets it: a process of its own, its exit code and its two outputs."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forked
import pytest
from configurations import LAVA_KEY, LOCAL_KEY, written
from daemons import clean_environment, run_command
from ports import free_port

import proxy
from proxy.cli import main
from proxy.config.settings import load
from proxy.emulator.faults import find
from proxy.lava.tokens import mint_token
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemons import StartDaemon

    from proxy.emulator import Emulator

PROVIDER_KEY = "provider-" + "Hx7k" * 6
SPEND_KEY = "lava_sk_" + "Zq3v" * 6
TEST_KEY = "aks_test_" + "Jp5w" * 6
SECRETS = (LAVA_KEY, LOCAL_KEY, PROVIDER_KEY, SPEND_KEY, TEST_KEY)

FULL = f"""
default_project = "website"
[server]
keys = ["{LOCAL_KEY}"]
[lava]
secret_key = "env:LAVA_SECRET_KEY"
[projects.website]
connection_id = "conn_abc123"
meter = "website-chat"
metadata = {{ team = "web" }}
[projects.trial]
customer_id = "cust_9"
meter = "trial-chat"
disable_billing = true
[projects.sandbox]
secret_key = "{TEST_KEY}"
[projects.lab.byok]
anthropic = "{PROVIDER_KEY}"
[projects.client]
byok = "client"
[projects.agent]
spend_key = "{SPEND_KEY}"
[models]
fast = "groq/llama-3.1-8b-instant"
smart = ["anthropic/claude-opus-4-6", "openai/gpt-5"]
"""


class Ran:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "proxy", *map(str, words)]


def lava_proxy(home: Path, *words: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Ran:
    """Run a command to its end, in a clean environment whose home is ``home``; no traceback, whatever happens."""
    done = run_command([str(word) for word in words], home=home, env=env, **options)
    ran = Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
    assert "Traceback" not in ran.out + ran.err, ran
    assert "Please report it" not in ran.err, ran
    return ran


def called(home: Path, *words: str | Path, env: Mapping[str, str] | None = None) -> Ran:
    """Run a command like `lava_proxy`, but in this process: for tests whose subject is not the process."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open(encoding="utf-8") as nothing:
        for name in list(os.environ):
            patch.delenv(name)
        for name, value in clean_environment(home, env).items():
            patch.setenv(name, value)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["lava-proxy", *map(str, words)])
        patch.setattr(sys, "stdin", nothing)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
    ran = Ran(int(ended.value.code or 0), *(each.buffer.getvalue().decode() for each in (out, err)))
    assert "Traceback" not in ran.out + ran.err, ran
    assert "Please report it" not in ran.err, ran
    return ran


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path, FULL)


KEY = {"LAVA_SECRET_KEY": LAVA_KEY}
COMMANDS = (
    *("serve", "demo", "init", "check", "token", "health", "emulator"),
    *("login", "logout", "whoami", "wallet", "connections", "usage", "models", "checkout"),
    *("logs", "stats", "cost", "export", "reconcile", "close", "stop", "resume", "api", "keys", "ledger"),
)


# --- help, version, wrong usage --------------------------------------------------------------------------------------


def test_version_is_the_packages(tmp_path: Path) -> None:
    """``--version`` says it, on standard output."""
    ran = lava_proxy(tmp_path, "--version")
    assert (ran.code, ran.out) == (0, f"lava-proxy {proxy.__version__}\n")


def test_help_names_every_command_in_a_whole_sentence(tmp_path: Path) -> None:
    """``--help`` lists every command; no line of it is cut off with dots."""
    ran = lava_proxy(tmp_path, "--help")
    assert ran.code == 0
    names = re.findall(r"^  (\w+)  +\w", ran.out.partition("Commands:")[2], re.MULTILINE)
    assert names == list(COMMANDS)
    assert "..." not in ran.out.partition("Commands:")[2]
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_config_and_explains_itself(tmp_path: Path, name: str) -> None:
    """Each command has a help of its own, with ``--config``; those that report have ``--json``."""
    ran = called(tmp_path, name, "-h")
    assert ran.code == 0
    assert "--config FILE" in ran.out
    assert ("--json" in ran.out) == (name != "serve")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    """``--help`` is quick because it loads no HTTP, no validation, no styling library: not by the machine's grace."""
    script = (
        "import sys; sys.argv = ['lava-proxy', '--help']\n"
        "from proxy.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(tmp_path), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert not loaded & {"pydantic", "rich", "httpx2", "uvicorn", "starlette", "asyncio", "keyring", "structlog", "ssl"}
    assert not loaded & {"sqlalchemy", "sqlite3", "pyarrow"}
    assert "typer" in loaded


def test_an_unknown_command_suggests_the_nearest(tmp_path: Path) -> None:
    """A typing error costs one look: exit code 2 and the right name."""
    ran = lava_proxy(tmp_path, "srve")
    assert ran.code == 2
    assert "Did you mean 'serve'" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    "words",
    [("--nonsense",), ("serve", "--prot", "1"), ("serve", "--port", "x"), ("serve", "--port", "70000"), ("token",)],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Unknown options, impossible values and missing arguments are told in a sentence."""
    ran = lava_proxy(tmp_path, *words)
    assert ran.code == 2
    assert "Error: " in ran.err


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    """``lava-proxy`` alone is a question, answered by the help."""
    ran = lava_proxy(tmp_path)
    assert ran.code == 2
    assert "lava-proxy demo" in ran.out + ran.err


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_says_for_each_project_what_a_person_needs(tmp_path: Path, config: Path) -> None:
    """Who pays, which Lava, the base URLs, the masked keys, the models used; and no secret."""
    ran = called(tmp_path, "check", "--config", config, env=KEY)
    assert ran.code == 0, ran
    assert ran.err == ""
    parts = {part.partition('"')[0]: part for part in ran.out.split('Project "')[1:]}
    assert set(parts) == {"website", "trial", "sandbox", "lab", "client", "agent"}
    website = parts["website"]
    assert "the wallet behind connection conn_abc123, metered as website-chat" in website
    assert "https://api.lavapayments.com/v1 (secret key aks_live_…" + LAVA_KEY[-4:] in website
    assert "http://127.0.0.1:5282/v1\n" in website
    assert "http://127.0.0.1:5282\n" in website
    assert "the local key …" + LOCAL_KEY[-4:] in website
    assert "the merchant wallet" in parts["trial"]
    assert "not charged" in parts["trial"]
    assert "http://127.0.0.1:5282/p/trial/v1" in parts["trial"]
    assert "https://sandbox-api.lavapayments.com/v1" in parts["sandbox"]
    assert "anthropic: your own account at the provider, key …" + PROVIDER_KEY[-4:] in parts["lab"]
    assert "other providers: no account" in parts["lab"]
    assert "x-lava-proxy-key" in parts["client"]
    assert "the account behind the spend key" in parts["agent"]
    assert "smart  anthropic/claude-opus-4-6   (not yet: openai/gpt-5)" in ran.out
    assert "only the first is used" in ran.out
    assert "fast" not in ran.out.partition("several choices")[2]
    assert not leaks(ran.out + ran.err, SECRETS)


def test_check_as_json_is_the_same_report(tmp_path: Path, config: Path) -> None:
    """``--json`` is one document on standard output, in ASCII, without a secret."""
    ran = called(tmp_path, "check", "--json", "--config", config, env=KEY)
    assert ran.code == 0
    assert ran.out.isascii()
    report = ran.json
    assert report["ok"] is True
    assert report["not_ready"] is None
    assert report["config"] == str(config)
    projects = {project["name"]: project for project in report["projects"]}
    assert projects["website"]["default"] is True
    assert projects["website"]["pays"][0]["payer"] == "customer"
    assert projects["lab"]["pays"][0] | {"words": ""} == {
        "providers": ["anthropic"],
        "payer": "provider_account",
        "words": "",
    }
    assert projects["lab"]["pays"][1]["payer"] is None
    assert projects["agent"]["pays"][0]["payer"] == "spend_key"
    assert projects["trial"]["base_urls"] == {
        "openai": "http://127.0.0.1:5282/p/trial/v1",
        "anthropic": "http://127.0.0.1:5282/p/trial",
        "google": "http://127.0.0.1:5282/p/trial",
    }
    assert {"name": "smart", "used": "anthropic/claude-opus-4-6", "later": ["openai/gpt-5"]} in report["models"]
    assert not leaks(ran.out, SECRETS)


def test_check_without_any_file_works_by_the_environment(tmp_path: Path) -> None:
    """No file is fine: with ``LAVA_SECRET_KEY`` the merchant wallet pays."""
    ran = called(tmp_path, "check", env=KEY)
    assert ran.code == 0
    assert "no file" in ran.out
    assert "the merchant wallet" in ran.out
    assert "any value" in ran.out


def test_check_without_a_key_fails_as_readyz_does(tmp_path: Path) -> None:
    """The default of ``lava.secret_key`` may be unset, so it is no configuration fault (78); but nobody pays yet."""
    ran = called(tmp_path, "check")
    assert ran.code == 1
    assert "The configuration is not ready" in ran.out
    assert "LAVA_SECRET_KEY" in ran.out
    report = called(tmp_path, "check", "--json")
    assert (report.code, report.json["ok"]) == (1, False)
    assert "LAVA_SECRET_KEY" in report.json["not_ready"]


@pytest.mark.parametrize(
    ("text", "env", "said"),
    [
        ("", {"LAVA_SECRET_KEY": SPEND_KEY}, "LAVA_SECRET_KEY begins with lava_sk_, as Lava's spend keys do"),
        (f'[lava]\nsecret_key = "sk-{"x" * 24}"\n', {}, "lava.secret_key begins with sk-, as OpenAI's keys do"),
        (f'[projects.a]\nspend_key = "{TEST_KEY}"\n', {}, "projects.a.spend_key begins with aks_"),
        (f'[projects.a.byok]\nopenai = "sk-ant-{"x" * 24}"\n', KEY, "projects.a.byok.openai begins with sk-ant-"),
    ],
)
def test_check_names_a_key_in_the_wrong_place(tmp_path: Path, text: str, env: dict[str, str], said: str) -> None:
    """By its prefix, with what to do; exit code 1. A prefix is a hint: the daemon starts all the same, and warns."""
    path = written(tmp_path, text)
    ran = called(tmp_path, "check", "--config", path, env=env)
    assert ran.code == 1, ran
    assert said in " ".join(ran.out.split())
    assert "The configuration is good" not in ran.out
    report = called(tmp_path, "check", "--config", path, "--json", env=env)
    assert (report.code, report.json["ok"]) == (1, False)
    assert [said in each for each in report.json["misplaced_keys"]] == [True]
    assert not leaks(ran.out + report.out, [*SECRETS, "x" * 24])


def test_serve_warns_of_a_key_in_the_wrong_place_and_starts(daemon: StartDaemon) -> None:
    """A prefix is a hint that may be wrong: it stops nobody."""
    running = daemon(env={"LAVA_SECRET_KEY": SPEND_KEY}, secrets=SECRETS, ready="/readyz")
    assert running.stop() == 0  # all lines are written then
    assert "LAVA_SECRET_KEY begins with lava_sk_" in running.output()


def test_check_warns_of_a_project_that_no_key_opens(tmp_path: Path) -> None:
    """Where keys are configured, a project without any good one is named: no request could ever reach it."""
    path = written(tmp_path, f'[projects.a]\nkeys = ["{LOCAL_KEY}"]\n[projects.b]\nmeter = "m"\n')
    report = called(tmp_path, "check", "--json", "--config", path, env=KEY).json
    assert [warning for warning in report["warnings"] if 'project "b"' in warning and "no local key" in warning]
    assert not [warning for warning in report["warnings"] if 'project "a"' in warning]


def test_check_shows_the_warnings_of_the_settings(tmp_path: Path, config: Path) -> None:
    """What the daemon would warn of at its start, ``check`` says too."""
    ran = called(tmp_path, "check", "--config", config, env={**KEY, "HTTPS_PROXY": "http://proxy.example:3128"})
    assert ran.code == 0
    assert "HTTPS_PROXY is set, but not followed" in ran.out


def test_config_may_stand_before_the_command_and_the_later_one_wins(tmp_path: Path, config: Path) -> None:
    """``lava-proxy --config F check`` works like ``check --config F``; named twice, the one nearer the command counts."""
    assert called(tmp_path, "--config", config, "check", env=KEY).code == 0
    missing = tmp_path / "missing.toml"
    assert called(tmp_path, "--config", missing, "check", "--config", config, env=KEY).code == 0
    assert called(tmp_path, "--config", missing, "check", env=KEY).code == 78


@pytest.mark.parametrize(
    ("host", "base"), [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:"), ("::1", "http://[::1]:")]
)
def test_base_urls_can_be_dialled(tmp_path: Path, host: str, base: str) -> None:
    """ "Every address" is shown as one that a tool can use."""
    path = written(tmp_path, f'[server]\nhost = "{host}"\nkeys = ["{LOCAL_KEY}"]\n')
    report = called(tmp_path, "check", "--json", "--config", path, env=KEY).json
    assert report["projects"][0]["base_urls"]["openai"] == f"{base}5282/v1"


# --- configuration faults --------------------------------------------------------------------------------------------


def test_all_faults_are_listed_at_once_and_no_secret(tmp_path: Path) -> None:
    """Exit code 78, every fault on standard error with its line, nothing on standard output, no value shown."""
    path = written(
        tmp_path,
        f'[server]\nport = "x"\nprot = 1\nkeys = ["short"]\n[lava]\nsecret_key = "{LAVA_KEY}"\n'
        '[projects.web]\nconnection_id = "c"\nkeys = ["env:NOT_THERE"]\n',
    )
    ran = lava_proxy(tmp_path, "check", "--config", path)
    assert ran.code == 78, ran
    assert ran.out == ""
    for piece in (":2: server.port", "server.prot", "did you mean port", "server.keys", "projects.web", "NOT_THERE"):
        assert piece in ran.err, (piece, ran)
    assert "faults)" in ran.err
    assert not leaks(ran.err, SECRETS)
    assert "short" not in ran.err.replace("shorter", "")


def test_faults_as_json_for_scripts(tmp_path: Path) -> None:
    """With ``--json`` the faults are a document, too."""
    path = written(tmp_path, "[server]\nprot = 1\n")
    ran = lava_proxy(tmp_path, "check", "--json", "--config", path)
    assert ran.code == 78
    assert ran.json["ok"] is False
    assert len(ran.json["faults"]) == 1


@pytest.mark.parametrize("words", [("serve",), ("check",), ("token", "website"), ("health",)])
def test_a_missing_file_is_a_configuration_fault(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A file that was named must be there: 78 and its path, for every command that reads it."""
    ran = called(tmp_path, *words, "--config", tmp_path / "nothing.toml")
    assert ran.code == 78
    assert "nothing.toml" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("case", ["directory", "bad TOML", "not UTF-8", "a pipe without a writer", "link to nothing"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, case: str) -> None:
    """A directory, broken text, wrong bytes, a pipe, a dead link: a sentence and 78, never a hang."""
    path = tmp_path / "odd.toml"
    if case == "directory":
        path.mkdir()
    elif case == "a pipe without a writer":
        os.mkfifo(path, 0o600)
    elif case == "link to nothing":
        path.symlink_to(tmp_path / "gone")
    else:
        path.write_bytes(b"[server\nport=" if case == "bad TOML" else b'x = "\xff\xfe"')
        path.chmod(0o600)
    ran = called(tmp_path, "check", "--config", path)
    assert ran.code == 78
    assert "odd.toml" in ran.err


def test_a_readable_file_with_a_secret_is_refused(tmp_path: Path) -> None:
    """A literal secret in a file for everybody's eyes: 78, path and mode, not the secret."""
    path = written(tmp_path, f'[lava]\nsecret_key = "{LAVA_KEY}"\n', mode=0o644)
    ran = lava_proxy(tmp_path, "serve", "--config", path)
    assert ran.code == 78
    assert "644" in ran.err
    assert str(path) in ran.err
    assert not leaks(ran.err, SECRETS)


def test_an_unknown_variable_is_refused_by_name(tmp_path: Path) -> None:
    """A typing error in a ``LAVA_PROXY_*`` variable does not pass in silence."""
    ran = lava_proxy(tmp_path, "serve", env={"LAVA_PROXY_SERVER__PROT": "1"})
    assert ran.code == 78
    assert "LAVA_PROXY_SERVER__PROT" in ran.err


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Whatever stands in names and paths is shown, not obeyed."""
    ran = lava_proxy(tmp_path, "check", "--config", tmp_path / "a\x1b[31m\u202eb.toml")
    assert ran.code == 78
    assert "\x1b" not in ran.err
    assert "\u202e" not in ran.err


def test_a_file_in_the_current_directory_is_not_read(tmp_path: Path) -> None:
    """A cloned repository cannot say where a key is sent."""
    for name in ("config.toml", "lava-proxy.toml"):
        (tmp_path / name).write_text("nonsense = 1\n")
    assert called(tmp_path, "check", env=KEY).code == 0


# --- token -----------------------------------------------------------------------------------------------------------


def test_token_is_shown_decoded_and_masked(tmp_path: Path, config: Path) -> None:
    """The default shows what the token says, and no key can be read out of it."""
    ran = called(tmp_path, "token", "website", "--config", config, env=KEY)
    assert ran.code == 0
    shown = json.loads(ran.out[ran.out.index("{") : ran.out.index("}") + 1])
    assert shown == {
        "secret_key": "aks_live_…" + LAVA_KEY[-4:],
        "connection_id": "conn_abc123",
        "meter_slug": "website-chat",
    }
    assert "the wallet behind connection conn_abc123" in ran.out
    assert not leaks(ran.out + ran.err, SECRETS)


def test_token_reveal_is_what_the_minting_function_makes(tmp_path: Path, config: Path) -> None:
    """``--reveal`` prints the token and nothing else, equal to the public function's."""
    wanted = mint_token(LAVA_KEY, connection_id="conn_abc123", meter_slug="website-chat")
    ran = called(tmp_path, "token", "website", "--reveal", "--config", config, env=KEY)
    assert (ran.code, ran.out, ran.err) == (0, wanted + "\n", "")
    both = called(tmp_path, "token", "website", "--reveal", "--json", "--config", config, env=KEY)
    assert both.json["token"] == wanted


@pytest.mark.parametrize(
    ("project", "provider", "fields"),
    [
        ("trial", "openai", ["secret_key", "customer_id", "meter_slug", "disable_billing"]),
        ("lab", "anthropic", ["secret_key", "connection_id", "meter_slug", "provider_key"]),
        ("lab", None, ["secret_key", "connection_id", "meter_slug", "provider_key"]),
        ("client", "google-openai", ["secret_key", "connection_id", "meter_slug", "provider_key"]),
        ("sandbox", None, ["secret_key"]),
    ],
)
def test_token_of_every_kind_of_project(
    tmp_path: Path, config: Path, project: str, provider: str | None, fields: list[str]
) -> None:
    """The fields in their order, as JSON, masked; without a provider, one that the project pays for."""
    ran = called(tmp_path, "token", project, *([provider] if provider else []), "--json", "--config", config, env=KEY)
    assert ran.code == 0, ran
    assert list(ran.json["decoded"]) == fields
    assert "token" not in ran.json
    assert not leaks(ran.out, SECRETS)


def test_a_spend_key_is_masked_and_revealed(tmp_path: Path, config: Path) -> None:
    """A spend key is sent as it is: masked by default, itself with ``--reveal``."""
    masked = called(tmp_path, "token", "agent", "--config", config, env=KEY)
    assert masked.code == 0
    assert "lava_sk_…" + SPEND_KEY[-4:] in masked.out
    assert not leaks(masked.out, SECRETS)
    assert called(tmp_path, "token", "agent", "--reveal", "--config", config, env=KEY).out == SPEND_KEY + "\n"


@pytest.mark.parametrize("odd", ["connection_secret", "\x1b[31mname"])
def test_a_ready_token_is_masked_whatever_it_holds(tmp_path: Path, odd: str) -> None:
    """Of a token made elsewhere, fields that are not known to be public are masked, and nothing reaches the terminal raw."""
    document = {"secret_key": LAVA_KEY, "connection_id": "conn_\x1b[2Jx", odd: PROVIDER_KEY, "more": {"a": SPEND_KEY}}
    ready = base64.b64encode(json.dumps(document).encode()).decode()
    path = written(tmp_path, f'[projects.ready]\nforward_token = "{ready}"\n')
    ran = called(tmp_path, "token", "ready", "--config", path)
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert not leaks(ran.out, [*SECRETS, ready])
    assert called(tmp_path, "token", "ready", "--reveal", "--config", path).out == ready + "\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("webste",), 'did you mean "website"'),
        (("zzz",), "website, trial"),
        (("website", "opnai"), 'did you mean "openai"'),
        (("lab", "openai"), "openai"),
        (("client", "--reveal"), "from the tool"),
    ],
)
def test_token_that_cannot_be_shown(tmp_path: Path, config: Path, words: tuple[str, ...], said: str) -> None:
    """An unknown name suggests the nearest; a project that does not pay for the provider says so. Exit code 1."""
    ran = called(tmp_path, "token", *words, "--config", config, env=KEY)
    assert ran.code == 1
    assert said in ran.err
    assert ran.out == ""
    as_json = called(tmp_path, "token", *words, "--json", "--config", config, env=KEY)
    assert as_json.code == 1
    assert as_json.json["ok"] is False


def test_token_without_a_key_says_how_to_give_one(tmp_path: Path) -> None:
    """No Lava key at all: 1, and where it goes."""
    ran = called(tmp_path, "token", "default")
    assert ran.code == 1
    assert "LAVA_SECRET_KEY" in ran.err


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_a_good_private_file_and_says_what_is_next(tmp_path: Path) -> None:
    """In the user's configuration directory, found by ``serve`` without a word, mode 0600, valid, with a fresh key."""
    ran = called(tmp_path, "init")
    assert ran.code == 0, ran
    path = tmp_path / ".config" / "lava-proxy" / "config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    settings = load(path, environ=KEY)
    assert settings.warnings == ()
    key = settings.server.keys[0].reveal()
    assert len(key) >= 32
    for piece in (str(path), "lava-proxy serve\n", "export OPENAI_BASE_URL=http://127.0.0.1:5282/v1", key):
        assert piece in ran.out
    checked = called(tmp_path, "check", "--json", env=KEY)
    assert checked.json["config"] == str(path)
    assert checked.json["warnings"] == []


@pytest.mark.parametrize("option", ["--config", "--path"])
def test_the_next_steps_of_init_work_when_they_are_copied(tmp_path: Path, option: str) -> None:
    """Where the file is none that is found by itself, each command names it, quoted for a shell, and finds it."""
    path = tmp_path / "my place" / "lava's.toml"
    ran = lava_proxy(tmp_path, "init", option, path)
    assert ran.code == 0, ran
    commands = re.findall(r"^ +(lava-proxy \w+.*)$", ran.out, re.MULTILINE)
    assert [line.split()[1] for line in commands] == ["login", "check", "serve"]
    assert all(shlex.split(line)[2:] == ["--config", str(path)] for line in commands)
    for line in commands:
        # What would wait for a browser or a client is asked for its help instead: the option must be known all the same.
        copied = line if " check " in line else f"{line} --help"
        script = copied.replace("lava-proxy", f"{sys.executable} -m proxy", 1) + " >/dev/null"
        done = subprocess.run(
            ["sh", "-c", script],
            env=clean_environment(tmp_path, KEY),
            cwd="/",
            capture_output=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), line
    assert lava_proxy(tmp_path, "check", "--json", "--config", path, env=KEY).json["config"] == str(path)


def test_every_setting_in_the_file_of_init_can_be_switched_on(tmp_path: Path) -> None:
    """Each commented setting is valid as soon as its ``#`` is taken away."""
    lava_proxy(tmp_path, "init", "--path", "a.toml")
    text = re.sub(r"^#(?=[^ \n])", "", (tmp_path / "a.toml").read_text(), flags=re.MULTILINE)
    assert tomllib.loads(text)["projects"]["website"]["meter"]
    settings = load(written(tmp_path, text), environ={**KEY, "OPENAI_API_KEY": PROVIDER_KEY})
    assert set(settings.projects) == {"main", "website", "costs", "lab"}


def test_init_never_overwrites(tmp_path: Path) -> None:
    """A second ``init`` refuses, and the file keeps every byte and its mode."""
    path = tmp_path / "mine.toml"
    assert called(tmp_path, "init", "--path", path).code == 0
    before, mode = path.read_bytes(), path.stat()
    again = called(tmp_path, "init", "--path", path)
    assert again.code == 1
    assert "exists" in again.err
    assert again.out == ""
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == mode.st_mtime_ns


@pytest.mark.parametrize("case", ["dead link", "link to a file", "directory", "under a file"])
def test_init_writes_nowhere_else(tmp_path: Path, case: str) -> None:
    """Links are not followed, directories not filled, files not taken for directories: 1 and a sentence."""
    path, other = tmp_path / "new.toml", tmp_path / "other"
    if case == "dead link":
        path.symlink_to(other)
    elif case == "link to a file":
        other.write_text("keep")
        path.symlink_to(other)
    elif case == "directory":
        path.mkdir()
    else:
        other.write_text("keep")
        path = other / "new.toml"
    ran = called(tmp_path, "init", "--path", path)
    assert ran.code == 1
    assert str(path) in ran.err
    assert not other.exists() if case in ("dead link", "directory") else other.read_text() == "keep"


@pytest.mark.parametrize("mask", [0o000, 0o777, 0o027])
def test_init_does_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    """Mode 0600 with every umask."""
    path = tmp_path / "mine.toml"
    ran = lava_proxy(tmp_path, "init", "--config", path, umask=mask)
    assert ran.code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_init_makes_another_key_each_time(tmp_path: Path) -> None:
    """``--json`` gives path, key and base URL; no two files share a key."""
    first = called(tmp_path, "init", "--json", "--path", "a.toml").json
    second = called(tmp_path, "init", "--json", "--path", "b.toml").json
    assert first["local_key"] != second["local_key"]
    assert first["config"] == str(tmp_path / "a.toml")


def test_init_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that takes no files is named, with the system's reason."""
    ran = called(tmp_path, "init", "--path", "/proc/lava-proxy/config.toml")
    assert ran.code == 1
    assert "/proc/lava-proxy/config.toml cannot be written" in ran.err


# --- health ----------------------------------------------------------------------------------------------------------


def test_health_of_nothing_is_1(tmp_path: Path) -> None:
    """No program listens: 1 and the address that was asked."""
    port = free_port()
    ran = called(tmp_path, "health", "--port", str(port), env=KEY)
    assert ran.code == 1
    assert "no answer" in ran.err
    assert str(port) in ran.err
    as_json = called(tmp_path, "health", "--json", "--port", str(port), env=KEY)
    assert as_json.code == 1
    assert as_json.json["ready"] is False


def test_health_names_every_address_that_it_asked(tmp_path: Path) -> None:
    """Whoever reads it must not guess which of them nobody answers at; and what to do."""
    port = free_port()
    text = f'[server]\nhost = ["127.0.0.1", "127.0.0.2"]\nport = {port}\nunix_socket = "{tmp_path}/s"\nkeys = ["{LOCAL_KEY}"]\n'
    ran = called(tmp_path, "health", "--config", written(tmp_path, text), env=KEY)
    assert ran.code == 1
    for place in (f"http://127.0.0.1:{port}", f"http://127.0.0.2:{port}", f"unix:{tmp_path}/s"):
        assert f"at {place}" in ran.err, ran
    assert "`lava-proxy serve` starts it" in ran.err


def test_health_of_a_running_daemon(tmp_path: Path, daemon: StartDaemon) -> None:
    """0 when it is ready; where it is comes from the configuration, and a proxy variable leads nobody astray."""
    port = free_port()
    running = daemon(f"[server]\nport = {port}\n", env=KEY, port=port)
    env = {**KEY, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    ran = called(tmp_path, "health", "--config", running.config, env=env)
    assert ran.code == 0, ran
    assert f"127.0.0.1:{port}" in ran.out
    assert called(tmp_path, "health", "--json", "--config", running.config, env=KEY).json["ready"] is True


def test_health_of_a_daemon_without_a_key(tmp_path: Path, daemon: StartDaemon) -> None:
    """Running but not ready: 1, with the daemon's own reason."""
    running = daemon()
    ran = called(tmp_path, "health", "--port", str(running.port))
    assert ran.code == 1
    assert "no Lava secret key" in ran.err


def test_health_by_the_unix_socket(tmp_path: Path, daemon: StartDaemon) -> None:
    """Where only the socket is known (port 0), the socket is asked."""
    path = tmp_path / "s"
    running = daemon(f'[server]\nunix_socket = "{path}"\n', env=KEY)
    text = f'[server]\nport = 0\nunix_socket = "{path}"\n'
    config = written(tmp_path, text)
    ran = called(tmp_path, "health", "--config", config, env=KEY)
    assert ran.code == 0, (ran, running.output())
    assert f"unix:{path}" in ran.out


def test_health_with_an_unknowable_port(tmp_path: Path) -> None:
    """Port 0 and no socket: 1, and what to do."""
    ran = called(tmp_path, "health", "--port", "0", env=KEY)
    assert ran.code == 1
    assert "--port" in ran.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "not lava-proxy"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]", "not lava-proxy"),
        (b"SSH-2.0-x\r\n", "does not speak HTTP"),
        (b"", "closes the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "not lava-proxy"),
    ],
)
def test_health_of_another_program(tmp_path: Path, answer: bytes, said: str) -> None:
    """Another program on the port is not taken for a ready daemon, whatever it says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        ran = called(tmp_path, "health", "--host", "127.0.0.1", "--port", str(port), env=KEY)
        thread.join()
    assert ran.code == 1
    assert said in ran.err


# --- serve -----------------------------------------------------------------------------------------------------------


def test_serve_says_where_it_listens_and_who_pays(daemon: StartDaemon) -> None:
    """On standard error, in plain words: addresses, projects, payers, warnings; no secret (the fixture looks)."""
    running = daemon(FULL, env={**KEY, "HTTPS_PROXY": "http://proxy.example:3128"}, secrets=SECRETS, ready="/readyz")
    _until(lambda: "listening on" in running.output(), running.output)  # the log is written a moment later
    said = running.output()
    for piece in (
        f"http://127.0.0.1:{running.port}",
        'project \\"website\\" (default), paid by the wallet behind connection conn_abc123',
        "the account behind the spend key",
        "HTTPS_PROXY is set, but not followed",
    ):
        assert piece in said, (piece, said)
    assert running.stop() == 0


def test_serve_stopped_while_it_is_still_loading_is_0(tmp_path: Path) -> None:
    """A service manager that changes its mind at once sees a clean stop, not a death by signal."""
    code = (
        "import os, sys, time, proxy.cli.serve as serve\n"
        "serve.run = lambda *_: (os.kill(os.getpid(), 15), time.sleep(20))\n"
        "sys.argv = ['lava-proxy', 'serve']\n"
        "from proxy.cli import main\nmain()\n"
    )
    environment = clean_environment(tmp_path)
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_serve_on_a_port_in_use_is_75(tmp_path: Path) -> None:
    """Port in use: 75 and the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = lava_proxy(tmp_path, "serve", "--host", "127.0.0.1", "--port", str(port), env=KEY)
    assert ran.code == 75
    assert f"port {port}" in ran.err
    assert "in use" in ran.err


def test_serve_beyond_loopback_without_keys_is_78(tmp_path: Path) -> None:
    """``--host 0.0.0.0`` alone would let the whole network spend: refused as a configuration fault."""
    ran = lava_proxy(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", env=KEY)
    assert ran.code == 78
    assert "keys" in ran.err


def test_serve_with_a_log_file_that_cannot_be_opened_is_78(tmp_path: Path) -> None:
    """The log's place is configuration: 78, with the path and the reason."""
    ran = lava_proxy(tmp_path, "serve", "--port", "0", env={**KEY, "LAVA_PROXY_LOG__FILE": str(tmp_path / "no/x.log")})
    assert ran.code == 78
    assert "no/x.log" in ran.err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without asking")
def test_serve_takes_host_more_than_once(tmp_path: Path, daemon: StartDaemon) -> None:
    """Two ``--host`` are two listeners, on one port, and ``health --host`` asks the named one."""
    running = daemon(env=KEY, args=["--host", "127.0.0.1", "--host", "127.0.0.2"])
    assert running.get("/readyz") == 200
    ran = lava_proxy(tmp_path, "health", "--host", "127.0.0.2", "--port", str(running.port), env=KEY)
    assert (ran.code, ran.out) == (0, f"ready: http://127.0.0.2:{running.port}\n")


def test_a_reload_keeps_the_flags_and_tells_its_faults(daemon: StartDaemon) -> None:
    """SIGHUP: a bad file changes nothing and is told; a good one is used, its new secret masked in the log."""
    running = daemon("[server]\n", env=KEY, secrets=[*SECRETS])
    running.config.write_text("[server]\nprot = 1\n")
    running.process.send_signal(signal.SIGHUP)
    _until(lambda: "prot" in running.output(), running.output)
    running.config.write_text(f'[projects.later]\nsecret_key = "{TEST_KEY}"\n')
    running.process.send_signal(signal.SIGHUP)
    _until(lambda: 'project \\"later\\"' in running.output(), running.output)
    assert running.get("/readyz") == 200
    assert "needs a restart" not in running.output()


def _until(condition: Any, told: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


def test_ctrl_c_ends_serve_cleanly(daemon: StartDaemon) -> None:
    """SIGINT is a clean stop: 0, no traceback (the fixture looks)."""
    running = daemon(env=KEY)
    assert running.stop(signal.SIGINT) == 0


# --- emulator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_emulator_introduces_itself_and_works_with_serve(
    tmp_path: Path, daemon: StartDaemon, number: signal.Signals
) -> None:
    """Its base URL and key, taken from ``--json``, make a daemon ready whose request reaches it; Ctrl-C ends it with 0."""
    process = subprocess.Popen(
        command("emulator", "--port", "0", "--json"),
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
            assert process.poll() is None, text
            if text.endswith("  }\n"):
                text = text.rstrip("\n") + " \n"
        said = json.loads(text)
        running = daemon(
            env={"LAVA_PROXY_LAVA__BASE_URL": said["base_url"], "LAVA_SECRET_KEY": said["secret_key"]}, ready="/readyz"
        )
        assert running.get("/v1/models") == 200
    finally:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_emulator_of_one_environment(tmp_path: Path) -> None:
    """``--environment``: a key of the other one is unknown, as at Lava's own addresses, and ``check --online`` says so."""
    process = subprocess.Popen(
        command("emulator", "--port", "0", "--environment", "live"),
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        text = ""
        while "lava-proxy serve" not in text:
            text += process.stdout.readline()
            assert process.poll() is None, text
        base_url, key = (re.search(rf"{name} *(\S+)", text) for name in ("listens on", "sandbox key"))
        assert base_url is not None
        assert key is not None
        env = {"LAVA_PROXY_LAVA__BASE_URL": base_url[1], "LAVA_SECRET_KEY": key[1]}
        ran = lava_proxy(tmp_path, "check", "--online", env=env)
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert ran.code == 1
    assert "another account or environment (it is a test key)" in " ".join(ran.out.split())


def test_the_emulator_says_how_to_point_lava_proxy_at_it(tmp_path: Path) -> None:
    """For people: three lines to copy, or one to log in."""
    process = subprocess.Popen(
        command("emulator", "--port", "0"), env=clean_environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("  lava-proxy login"):
        lines.append(process.stdout.readline())
        assert lines[-1] or process.poll() is None, lines
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    text = "".join(lines)
    assert re.search(r"export LAVA_PROXY_LAVA__BASE_URL=http://127.0.0.1:\d+/v1\n", text)
    assert "export LAVA_SECRET_KEY=aks_live_" in text
    assert re.search(r"^  lava-proxy serve$", text, re.MULTILINE)
    assert re.search(r"^  lava-proxy login --app http://127.0.0.1:\d+$", text, re.MULTILINE)


def test_the_emulators_help_names_faults_there_are(tmp_path: Path) -> None:
    """Each of its examples is in the table, and the one that is none gets the table."""
    told = re.findall(r"fault-([a-z0-9-]+)", lava_proxy(tmp_path, "emulator", "--help").out)
    assert [name for name in told if find(name) is None] == ["list"]
    assert len(told) > 3


def test_the_emulator_on_a_port_in_use_is_75(tmp_path: Path, emulator: Emulator) -> None:
    """Port in use: 75 and the port."""
    ran = lava_proxy(tmp_path, "emulator", "--port", str(emulator.port))
    assert ran.code == 75
    assert str(emulator.port) in ran.err


# --- odd surroundings ------------------------------------------------------------------------------------------------


def test_no_home(tmp_path: Path, config: Path) -> None:
    """Without HOME everything that needs none works; ``init`` wants a place only where the system knows no home either."""
    environment = clean_environment(tmp_path, KEY)
    del environment["HOME"]
    for words in (["check", "--config", str(config)], ["--version"], ["init", "--path", str(tmp_path / "new.toml")]):
        done = subprocess.run(
            command(*words), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr


# What the system answers for a number without an account, as in a container.
_NO_ACCOUNT = """
import pwd, sys
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
sys.argv[0] = "lava-proxy"
from proxy.cli import main
main()
"""


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("check", 0, "no file"),
        ("init", 1, "--path"),
    ],
)
def test_a_user_without_any_home(tmp_path: Path, word: str, code: int, said: str) -> None:
    """A numeric user whom the system does not know: ``check`` works by the environment, ``init`` asks for a place."""
    environment = clean_environment(tmp_path, KEY)
    del environment["HOME"]
    done = subprocess.run(
        [sys.executable, "-c", _NO_ACCOUNT, word],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_a_locale_without_our_letters(tmp_path: Path, config: Path, locale: dict[str, str]) -> None:
    """Where an output has no "…", dots are printed; nothing fails, for any command that reports."""
    for words in (["check"], ["token", "website"], ["token", "nobody"], ["--help"]):
        options = [] if words == ["--help"] else ["--config", str(config)]
        ran = lava_proxy(tmp_path, *words, *options, env={**KEY, **locale})
        assert ran.code == (1 if "nobody" in words else 0)
        if words == ["check"]:
            assert "aks_live_..." + LAVA_KEY[-4:] in ran.out


@pytest.mark.parametrize("words", [["--help"], ["check"], ["check", "--json"], ["token", "website"]])
@pytest.mark.parametrize("closed", ["stdout", "stdout from the start", "everything"])
def test_a_closed_output(tmp_path: Path, config: Path, words: list[str], closed: str) -> None:
    """``| head -1`` and ``>&-`` end a command quietly."""
    options = [] if words == ["--help"] else ["--config", str(config)]
    redirection = {"stdout": "| true", "stdout from the start": ">&-", "everything": "<&- >&- 2>&-"}[closed]
    script = f'"$@" {redirection}'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *command(*words, *options)],
        env=clean_environment(tmp_path, KEY),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(tmp_path: Path, config: Path) -> None:
    """An output that cannot be written is 1 and a sentence."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("check", "--config", config),
            env=clean_environment(tmp_path, KEY),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_colours_are_for_terminals_that_want_them(tmp_path: Path, config: Path, colour: bool) -> None:
    """At a terminal there is colour, with ``NO_COLOR`` none; the words are the same."""
    extra = {**KEY, "TERM": "xterm-256color"} | ({} if colour else {"NO_COLOR": "1"})
    text = at_terminal(tmp_path, extra, "check", "--config", config)
    assert ("\x1b[" in text) == colour
    assert "the wallet behind connection conn_abc123" in text


def at_terminal(home: Path, env: Mapping[str, str], *words: str | Path) -> str:
    """What a command prints when its standard output is a terminal; it must end with 0."""
    controller, terminal = pty.openpty()
    environment = clean_environment(home, env)
    process: subprocess.Popen[bytes] | forked.Forked
    with open(os.devnull, "rb") as nothing:
        if forked.possible(env):
            files = [nothing.fileno(), terminal, terminal]
            process = forked.start([str(word) for word in words], env=environment, folder=home, files=files)
        else:
            process = subprocess.Popen(
                command(*words), env=environment, cwd=home, stdout=terminal, stdin=nothing, stderr=terminal
            )
    os.close(terminal)
    text = b""
    try:
        while piece := os.read(controller, 65536):
            text += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(controller)
    assert process.wait(20) == 0, text
    return text.decode()


def test_an_unforeseen_failure_shows_no_message_of_its_own(tmp_path: Path) -> None:
    """A fault of ours ends with 1 and the places in the code, but without the exception's text, which may hold a key."""
    script = (
        "import sys, proxy.cli.commands as commands\n"
        f"def broken(): raise RuntimeError({LAVA_KEY!r})\n"
        "commands.application = broken\n"
        "from proxy.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(tmp_path), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "in broken" in done.stderr
    assert not leaks(done.stderr, [LAVA_KEY])


def test_the_console_script_is_this_main() -> None:
    """``lava-proxy`` and ``python -m proxy`` are the same program."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["scripts"] == {"lava-proxy": "proxy.cli:main"}
