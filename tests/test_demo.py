"""``lava-proxy demo``: what it shows is what happened, and what it could not do it does not show."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from daemons import clean_environment
from ports import free_port
from test_cli import at_terminal, command, lava_proxy

from proxy.cli import demo
from proxy.cli.demo_client import DemoRequest, DemoResponse
from proxy.emulator import World
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = ["plain", "stream", "anthropic", "unauthorized", "payment-required"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a person sees in a pipe."""
    started = time.monotonic()
    ran = lava_proxy(tmp_path_factory.mktemp("home"), "demo", "--port", str(free_port()))
    assert ran.code == 0, ran
    assert ran.err == ""
    # «Within ten seconds», with room for a busy machine; on an idle one it is two.
    assert time.monotonic() - started < 20
    return ran.out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script gets."""
    ran = lava_proxy(tmp_path_factory.mktemp("home"), "demo", "--json", "--port", "0")
    assert ran.code == 0, ran
    assert ran.err == ""
    document: dict[str, Any] = json.loads(ran.out)
    return document


def test_every_step_is_told_with_its_command_and_answer(told: str) -> None:
    """Five steps: a curl line to repeat each, the answer, the 401's and the 402's sentence; plain text in a pipe."""
    titles = ["A plain request", "A streamed answer", "An Anthropic client", "A clear 401", "A clear 402"]
    assert [title for title in titles if re.search(rf"^\d  {title}$", told, re.MULTILINE)] == titles
    assert told.count("curl -s") == 5
    assert "You said: Hello, Lava!" in told
    assert "Every word of this sentence comes back" in told.partition("-d '")[2].partition("→")[2]
    flat = " ".join(told.split())
    # What Lava's account says is part of the sentence; what Lava answered comes last.
    assert '401 Project "wrong-lava-key": Lava does not know the secret key …' in flat
    assert (
        '402 Lava says the wallet behind connection conn_empty (project "empty-wallet", meter "website-chat") is out of funds: '
        "it holds no credit, and there is no plan beside it. Top up that customer's wallet, or"
    ) in flat
    assert flat.count("Lava said: «") == 2
    assert "FAILED" not in told
    assert "\x1b" not in told


def test_the_token_is_shown_decoded_and_masked(told: str) -> None:
    """The token that arrived, its fields readable, its key not."""
    shown = json.loads(told[told.index("   {\n") : told.index("   }\n") + 5])
    assert list(shown) == ["secret_key", "connection_id", "meter_slug"]
    assert re.fullmatch(r"aks_live_….{4}", shown["secret_key"])
    assert not re.search(r"aks_live_[0-9a-f]{8}", told)


def test_it_ends_with_the_two_lines_for_an_own_tool(told: str) -> None:
    """The lines to copy, and that they need ``--keep``."""
    tail = told.partition("Point your own tool here")[2]
    assert re.search(r"export OPENAI_BASE_URL=http://127\.0\.0\.1:\d+/v1\n +export OPENAI_API_KEY=\S+\n", tail)
    assert "demo --keep" in tail
    assert "lava-proxy login, then lava-proxy serve" in tail


def test_the_balances_are_what_the_emulator_charged(report: dict[str, Any], told: str) -> None:
    """The customer paid exactly what the steps say; nobody else paid anything."""
    charged = sum(Decimal(step["charged"]) for step in report["steps"])
    balances = report["balances"]
    assert charged > 0
    assert Decimal(balances["connection conn_demo"]["charged"]) == charged
    assert Decimal(balances["connection conn_demo"]["left"]) == Decimal("5.00") - charged
    assert Decimal(balances["connection conn_empty"]["charged"]) == 0
    assert Decimal(balances["merchant wallet"]["charged"]) == 0
    assert re.search(r"connection conn_demo +5\.000000 +0\.000\d{3} +4\.999\d{3}\n", told)


def test_the_report_has_every_step(report: dict[str, Any]) -> None:
    """Names, statuses, texts, payers, the stream's pieces and our error codes; no key anywhere."""
    assert report["ok"] is True
    steps = {step["name"]: step for step in report["steps"]}
    assert list(steps) == STEPS
    assert [step["status"] for step in steps.values()] == [200, 200, 200, 401, 402]
    assert all(step["ok"] and step["fault"] is None for step in steps.values())
    assert steps["stream"]["pieces"] > 5
    assert steps["plain"]["payer"] == "customer"
    assert steps["plain"]["token"]["connection_id"] == "conn_demo"
    assert steps["unauthorized"]["error"]["lava_proxy"]["code"] == "lava_unauthorized"
    assert steps["payment-required"]["error"]["lava_proxy"]["code"] == "lava_insufficient_balance"
    assert not re.search(r"aks_(live|test)_[0-9a-f]{8}", json.dumps(report))


def test_the_stream_is_printed_as_it_arrives(tmp_path: Path) -> None:
    """The words of the streamed answer come one after the other, over the time that the stream takes."""
    process = subprocess.Popen(
        command("demo", "--port", "0"), env=clean_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    text, arrivals = b"", []
    while piece := os.read(process.stdout.fileno(), 65536):
        text += piece
        if b"A streamed answer" in text and b"An Anthropic client" not in text:
            arrivals.append(time.monotonic())
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(20) == 0
    assert len(arrivals) > 5
    assert arrivals[-1] - arrivals[0] > demo.PACE_S * 5


def test_at_a_terminal_it_has_colours(tmp_path: Path) -> None:
    """Styled for a terminal, and no line of a command is broken there, so that it can be copied."""
    text = at_terminal(tmp_path, {"TERM": "xterm-256color", "COLUMNS": "60"}, "demo", "--port", "0")
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
    assert re.search(r"""-d '\{"model": "gpt-5", "stream": true, .*own\."\}\]\}'\n""", plain)
    assert "conn_demo" in plain.partition("What Lava charged")[2]


def test_no_color_is_respected(tmp_path: Path) -> None:
    """``NO_COLOR`` at a terminal: not one escape."""
    text = at_terminal(tmp_path, {"TERM": "xterm-256color", "NO_COLOR": "1"}, "demo", "--port", "0")
    assert "\x1b" not in text


def test_the_users_own_configuration_is_left_alone(tmp_path: Path) -> None:
    """Neither the user's key nor their variables nor their file have a part in it, even where they are wrong."""
    folder = tmp_path / ".config" / "lava-proxy"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("nonsense = 1\n")
    env = {
        "LAVA_SECRET_KEY": "aks_live_" + "u" * 24,
        "LAVA_PROXY_SERVER__PROT": "1",
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    ran = lava_proxy(tmp_path, "demo", "--port", "0", env=env)
    assert ran.code == 0, ran
    assert not leaks(ran.out + ran.err, [env["LAVA_SECRET_KEY"]])
    assert ran.out.count("--noproxy") == 5  # or curl would ask that proxy for an address of this machine


def test_a_port_in_use(tmp_path: Path) -> None:
    """A port that was asked for and is taken is 75; without ``--port`` another one is found."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = lava_proxy(tmp_path, "demo", "--port", str(taken.getsockname()[1]))
    assert ran.code == 75
    assert "in use" in ran.err
    assert ran.out == ""


def test_the_usual_port_in_use(tmp_path: Path) -> None:
    """Where 5282 is taken (by the user's own daemon, say), the demo takes a free one and says so in its commands."""
    try:
        taken: socket.socket | None = socket.create_server(("127.0.0.1", demo.PORT))
    except OSError:
        taken = None  # somebody else has it: just as good
    try:
        ran = lava_proxy(tmp_path, "demo", "--json")
    finally:
        if taken is not None:
            taken.close()
    assert ran.code == 0, ran
    assert urlsplit(ran.json["base_url"]).port != demo.PORT


# --- honesty ---------------------------------------------------------------------------------------------------------


def test_a_step_that_goes_wrong_is_told_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    """With an empty wallet where the demo needs a full one, three steps fail: all are named, the code is 1."""
    world = World.demo()
    world.connections["conn_demo"].balance = Decimal(0)
    assert demo.run(keep=False, port=0, as_json=False, world=world) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED: expected 200, got 402") == 3
    assert "The demo FAILED at: A plain request, A streamed answer, An Anthropic client." in out


def test_an_error_that_does_not_come_is_a_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A 402 that was promised and is a 200 is not shown as a success."""
    world = World.demo()
    world.connections["conn_empty"].balance = Decimal(1)
    assert demo.run(keep=False, port=0, as_json=True, world=world) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [step["name"] for step in document["steps"] if not step["ok"]] == ["payment-required"]
    assert document["steps"][-1]["fault"] == "expected 402, got 200"


def test_a_lava_that_knows_no_key_fails_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything refused: every good step fails, the 402 as well; nothing is reported as charged."""
    world = World.demo()
    world.revoked_keys.add(world.secret_key)
    assert demo.run(keep=False, port=0, as_json=True, world=world) == 1
    document = json.loads(capsys.readouterr().out)
    assert [step["ok"] for step in document["steps"]] == [False, False, False, True, False]
    assert {row["charged"] for row in document["balances"].values()} == {"0.00"}


def test_nobody_there_is_a_fault_not_a_crash() -> None:
    """A call to a port without a listener raises OSError, which a step tells as its fault."""
    step = demo.steps(f"http://127.0.0.1:{free_port()}")[0]
    outcome = demo._perform(step, 1, None, World.demo(), demo._Interrupt())
    assert not outcome.ok
    assert "ConnectionRefusedError" in outcome.fault


@pytest.mark.parametrize(
    "line", [b"data: {", b"data: []", b'data: {"choices": [1]}', b'data: {"choices": [{"delta": 3}]}', b": ping", b"\n"]
)
def test_odd_events_are_no_text(line: bytes) -> None:
    """Whatever stands in a stream, the reader counts only pieces of text."""
    answer = DemoResponse(200, {})
    answer.take(line, 0.1, None)
    assert (answer.text, answer.pieces, answer.ended) == ("", 0, False)


# --- keep ------------------------------------------------------------------------------------------------------------


class Kept:
    """A ``demo --keep --json`` that has shown its report and runs."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            command("demo", "--keep", "--json", "--port", "0"),
            env=clean_environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = self.process.stdout.readline()
            assert line, text
            text += line
        self.report = json.loads(text)

    def commands(self) -> dict[str, str]:
        return {step["name"]: step["command"] for step in self.report["steps"]}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    running = Kept(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate(timeout=20)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_printed_commands_work_while_it_is_kept(kept: Kept) -> None:
    """Each curl line, given to a shell as it stands, gets the answer that the demo got."""
    answers = {}
    for name, line in kept.commands().items():
        done = subprocess.run(
            ["/bin/sh", "-c", line], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done
        answers[name] = done.stdout
    assert json.loads(answers["plain"])["choices"][0]["message"]["content"] == "You said: Hello, Lava!"
    assert answers["stream"].rstrip().endswith("data: [DONE]")
    assert json.loads(answers["anthropic"])["content"][0]["text"]
    assert json.loads(answers["unauthorized"])["error"]["lava_proxy"]["code"] == "lava_unauthorized"
    assert json.loads(answers["payment-required"])["error"]["lava_proxy"]["code"] == "lava_insufficient_balance"


def test_an_own_tool_works_while_it_is_kept(kept: Kept) -> None:
    """The two exported values are enough for a client; without the key it gets 401."""
    base, key = urlsplit(kept.report["openai_base_url"]), kept.report["local_key"]
    for sent, wanted in ((key, 200), ("another-key-altogether", 401)):
        connection = http.client.HTTPConnection(base.hostname or "", base.port, timeout=10)
        connection.request("GET", f"{base.path}/models", headers={"authorization": f"Bearer {sent}"})
        assert connection.getresponse().status == wanted
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_what_was_kept(kept: Kept, number: signal.Signals) -> None:
    """Both servers stop, the exit code is 0, and nothing ugly is said; the port is free again."""
    port = urlsplit(kept.report["base_url"]).port
    kept.process.send_signal(number)
    out, err = kept.process.communicate(timeout=20)
    assert kept.process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port or 0)) != 0


def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    """Interrupted while a stream is running: 1, no traceback, no pretended end."""
    process = subprocess.Popen(
        command("demo", "--port", "0"),
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "A streamed answer" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Point your own tool" not in out


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """``demo | head -1`` ends quietly."""
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" | head -1', "sh", *command("demo", "--port", "0")],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (done.stdout, done.stderr) == ("lava-proxy demo\n", "")


def test_the_command_says_what_is_sent() -> None:
    """The curl line and the request are made from one value: quotes and apostrophes survive a shell."""
    call = DemoRequest("http://127.0.0.1:1/v1/x", {"authorization": "Bearer it's"}, {"text": 'it\'s "so" $HOME `id`'})
    words = subprocess.run(
        ["/bin/sh", "-c", call.curl().replace("curl ", f"{sys.executable} -c 'import sys; print(sys.argv)' ", 1)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    assert json.dumps({"text": 'it\'s "so" $HOME `id`'}) in eval(words)
