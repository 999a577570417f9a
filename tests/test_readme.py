"""The README is part of the product: its tables, commands and examples are checked against the program."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from daemons import clean_environment
from ledger_rows import Filler, writable
from rawclient import ask, listening
from readme_ledger import morning
from test_cli import called

from proxy.config.settings import Settings, load
from proxy.ledger.costs import Source
from proxy.protocol.errors import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemons import StartDaemon

    from proxy.emulator import Emulator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:5282"


def tables() -> Iterator[list[list[str]]]:
    """Every table as rows of cells, without the line under its head."""
    for block in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def table(first_cell: str) -> list[list[str]]:
    """The rows of the one table whose head begins with this cell."""
    found = [rows[1:] for rows in tables() if rows[0][0] == first_cell]
    assert len(found) == 1, first_cell
    return found[0]


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_table_of_errors_is_the_programs() -> None:
    """Every code stands there once, with its status, and no other."""
    rows = table("code")
    told = {row[0].strip("`"): row[1] for row in rows}
    own = {code: kind for code, kind in TABLE.items() if code != "internal_error"}
    assert set(told) == set(own)
    for code, status in told.items():
        expected = "as Lava's" if code in ("lava_error", "lava_spend_limit") else str(own[code].status)
        assert status == expected, code
    assert all(row[2] for row in rows)


def test_the_table_of_commands_is_the_programs(tmp_path: Path) -> None:
    """Every command of the table answers --help, and every command that --help lists stands in the table."""
    told = {row[0].strip("`").split()[1] for row in table("command")}
    listed = subprocess.run(
        [sys.executable, "-m", "proxy", "--help"],
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path, {"COLUMNS": "200"}),
        timeout=30,
        check=True,
    ).stdout
    for command in told:
        assert re.search(rf"\b{command}\b", listed), command
    shown = set(re.findall(r"^\W*([a-z]+)\s{2,}\S", listed, re.MULTILINE))
    assert shown & {"serve", "demo"}, listed
    assert shown - {"lava", "version", "help"} <= told | {"options", "commands"}, shown - told


def test_every_base_url_of_the_table_works(emulator: Emulator, daemon: StartDaemon) -> None:
    """Each base URL, with what its SDK appends, reaches Lava."""
    config = (
        f'default_project = "website"\n[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
        '[projects.website]\nconnection_id = "conn_demo"\nmeter = "website-chat"\n'
    )
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[emulator.world.secret_key])
    appended = {
        "OpenAI SDKs and tools": "/chat/completions",
        "Anthropic SDKs, Claude Code": "/v1/messages",
        "Google GenAI SDK": "/v1beta/models/gemini-2.5-flash:generateContent",
        "one provider, any SDK": "/chat/completions",
        "a given project": "/chat/completions",
    }
    rows = table("client")
    assert {row[0] for row in rows} == set(appended)
    for client, base in rows:
        path = base.strip("`").removeprefix(BASE) + appended[client]
        body = (
            b'{"model": "claude-opus-4-6", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}],'
            b' "contents": [{"parts": [{"text": "hi"}]}]}'
        )
        if "/chat/" in path:
            body = body.replace(b"claude-opus-4-6", b"gpt-4o")
        came = ask(running.port, "POST", path, body, {"Content-Type": "application/json"})
        assert came.status == 200, (client, came.body)


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_toml_example_is_sound(block: str, tmp_path: Path) -> None:
    """Configurations for lava-proxy load as they stand; those for other tools are at least TOML."""
    document = tomllib.loads(block)
    if "projects" not in document:
        return
    path = tmp_path / "config.toml"
    path.write_text(block, encoding="utf-8")
    path.chmod(0o600)
    environ = {
        "LAVA_SECRET_KEY": "aks_live_" + "x" * 20,
        "WEBSITE_PROXY_KEY": "local-key-" + "x" * 20,
        "OPENAI_API_KEY": "own-key-" + "x" * 20,
    }
    settings = load(path, environ)
    assert set(settings.projects) == {"main", "website", "lab"}


def test_the_variables_of_the_examples_are_the_ones_it_sets() -> None:
    """Codex stops where its ``env_key`` is not set, and the daemon where ``LAVA_PROXY_*`` is no setting of its own."""
    exported = set(re.findall(r"\b([A-Z_]+)=", next(block for block in blocks("sh") if "export NO_PROXY" in block)))
    named = {
        provider["env_key"]
        for document in map(tomllib.loads, blocks("toml"))
        for provider in document.get("model_providers", {}).values()
    }
    assert named
    assert named <= exported
    assert not [name for name in exported if name.startswith("LAVA_PROXY_")]


def test_the_settings_for_gemini_cli_are_json() -> None:
    """The line for its settings file can be copied as it stands."""
    (line,) = re.findall(r"`(\{.*?\})`\. Without that line", README)
    assert json.loads(line)["security"]["auth"]["selectedType"] == "gemini-api-key"


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_example_runs(block: str, emulator: Emulator, daemon: StartDaemon, tmp_path: Path) -> None:
    """The examples run as they stand (but for the port), with the official SDKs."""
    config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[emulator.world.secret_key])
    assert BASE in block
    done = subprocess.run(
        [sys.executable, "-c", block.replace(BASE, running.url)],
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path, {"PYTHONWARNINGS": "ignore"}),
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "You said: Hello"


def test_the_curl_example_runs(emulator: Emulator, daemon: StartDaemon) -> None:
    """The curl line runs as it stands (but for the port)."""
    config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[emulator.world.secret_key])
    (block,) = [block for block in blocks("sh") if block.startswith("curl")]
    done = subprocess.run(
        ["sh", "-c", block.replace(BASE, running.url)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "You said: Hello" in done.stdout, done.stderr


def test_the_docker_command_starts_a_daemon_that_answers(emulator: Emulator, daemon: StartDaemon) -> None:
    """What it gives to the container makes a daemon that listens everywhere and answers under the published address."""
    line = README.split("<!-- docker-command -->\n```sh\n", 1)[1].split("```", 1)[0].replace("\\\n", "")
    build, run = (shlex.split(each) for each in line.strip().splitlines())
    assert build == ["docker", "build", "-t", "lava-proxy", "."]
    assert run[:2] == ["docker", "run"]
    assert run[-1] == "lava-proxy"
    options = argparse.ArgumentParser()
    options.add_argument("-e", action="append")
    options.add_argument("-p")
    options.add_argument("--rm", action="store_true")
    options.add_argument("--read-only", action="store_true")
    options.add_argument("--stop-timeout", type=int)
    given = options.parse_args(run[2:-1])
    assert given.p == "127.0.0.1:5282:5282"
    assert given.stop_timeout >= Settings().server.drain_seconds + 10
    mine = {"LAVA_SECRET_KEY": emulator.world.secret_key, "LOCAL_KEY": "local-" + "k" * 20}
    env = {name: value if equals else mine[name] for name, equals, value in (each.partition("=") for each in given.e)}
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (.*)$", image, re.MULTILINE)
    running = daemon(
        env=env | {"LAVA_PROXY_LAVA__BASE_URL": emulator.base_url}, args=json.loads(command)[1:], secrets=mine.values()
    )
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {mine['LOCAL_KEY']}"}
    assert ask(running.port, "POST", "/v1/chat/completions", body, headers).status == 200
    assert ask(running.port, "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}).status == 401


def test_the_two_commands_stand_where_the_gate_looks_for_them() -> None:
    """One line installs and shows the main job, one installs and runs the tests (.ci/run takes it from here)."""
    for marker, last in (("demo-command", ".venv/bin/lava-proxy demo"), ("test-command", ".venv/bin/python -m pytest")):
        block = README.split(f"<!-- {marker} -->\n```sh\n", 1)[1].split("```", 1)[0]
        assert len(block.splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
        assert block.strip().endswith(last)


def comparable(output: str) -> list[str]:
    """Lines without what depends on the clock: times, and where in the window a sparkline stands."""
    dated = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", re.sub(r"(\d\d:\d\d):\d\d", r"\1", output))
    return [re.sub(r"[\s▁▂▃▄▅▆▇█]+$", "", line) for line in dated.strip().splitlines()]


def test_the_output_about_cost_is_the_programs(tmp_path: Path) -> None:
    """Each command there prints what stands below it, on the ledger of ``readme_ledger.py``."""
    engine = writable(tmp_path / "ledger.sqlite")
    Filler(engine).fill(morning(time.time_ns() // 1000))
    engine.dispose()
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    config.write_text(f'[ledger]\npath = "{tmp_path}/ledger.sqlite"\n', encoding="utf-8")
    block = README.split("<!-- ledger-commands -->\n```console\n", 1)[1].split("```", 1)[0]
    shown = re.findall(r"^\$ lava-proxy (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert [command.split()[0] for command, _ in shown] == ["logs", "stats", "cost"]
    for command, output in shown:
        ran = called(tmp_path, *shlex.split(command), "--config", config)
        assert comparable(ran.out) == comparable(output), command


def test_the_sources_of_a_cost_are_the_programs() -> None:
    """Every source stands there once; ``none`` is no cost."""
    assert {row[0].strip("`") for row in table("source")} == {each.word for each in Source} - {"none"}


def test_its_links_lead_somewhere() -> None:
    """Every relative link is a file of this repository, every address is https or our own."""
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_the_command_for_stock_uvicorn_serves_an_sdk(tmp_path: Path, emulator: Emulator, free_port: int) -> None:
    """The line as it stands there, but for the port; an OpenAI SDK chats and streams through it."""
    found = re.search(r"<!-- uvicorn-command -->\n```sh\n(.*)\n```", README)
    assert found is not None
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    config.write_text(f'[lava]\nbase_url = "{emulator.base_url}"\n', encoding="utf-8")
    words = shlex.split(found[1].replace("5282", str(free_port)))
    assert words[0] == "uvicorn"
    env = {"LAVA_SECRET_KEY": emulator.world.secret_key, "LAVA_PROXY_CONFIG": str(config)}
    log = tmp_path / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=clean_environment(tmp_path, env),
        )
    try:
        end = time.monotonic() + 20
        while not listening(free_port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{free_port}/v1", api_key="unused", max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": "hello"}]
            plain = client.chat.completions.create(model="gpt-4o", messages=messages)
            assert plain.choices[0].message.content == "You said: hello"
            pieces = client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            assert "".join(each.choices[0].delta.content or "" for each in pieces if each.choices) == "You said: hello"
        assert ask(free_port, "GET", "/readyz").status == 200
    finally:
        process.terminate()
        process.wait(20)
    assert process.returncode == -signal.SIGTERM, log.read_text()  # uvicorn raises the signal again
    assert "Traceback" not in log.read_text()
    assert emulator.world.secret_key not in log.read_text()
