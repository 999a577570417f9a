"""The gateways that a user would pick instead, installed for the occasion from their registries.

Each goes into a folder of its own below the one given (a temporary one unless ``--peers-folder`` keeps it), is started on
one core like lava-proxy, and forwards to the same upstream. What cannot be installed or started is skipped, and the report
says why. None of them is asked for anything but to pass the request on: no database, no logging of their own. LiteLLM does not
start without a key of its own, so it checks one, as lava-proxy does.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

from processes import Process, Unavailable, find, free_port
from windows import Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HTTP_PROXY_VERSION = "1.18.1"
PORTKEY_VERSION = "1.15.2"
LITELLM_VERSION = "1.106.2"
INSTALL_SECONDS = 900

_NODE = """\
const http = require('http'), httpProxy = require('http-proxy');
const agent = new http.Agent({ keepAlive: true, maxSockets: 2048 });
const headers = { authorization: 'Bearer fixed' };
const proxy = httpProxy.createProxyServer({ target: process.argv[3], agent, headers });
proxy.on('error', (error, request, response) => { if (response.writeHead) response.writeHead(502); response.end(); });
http.createServer((request, response) => proxy.web(request, response)).listen(Number(process.argv[2]), '127.0.0.1');
"""

_LITELLM = """\
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: unused
litellm_settings:
  num_retries: 0
  telemetry: false
general_settings:
  master_key: {key}
"""


def _install(command: list[str]) -> None:
    """Run an installer with the user's own environment: it knows the registries. Raises `Unavailable`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the installation took longer than {INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Unavailable(f"it cannot be installed: {lines[-1] if lines else 'no reason given'}")


def _npm(folder: Path, package: str, version: str) -> Path:
    """The installed package's folder."""
    npm = find("npm")
    if npm is None or find("node") is None:
        raise Unavailable("node or npm is not installed")
    installed = folder / "node_modules" / package
    if not (installed / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}\n", encoding="utf-8")
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
        _install([npm, "install", *options, f"{package}@{version}"])
    return installed


def _node() -> str:
    node = find("node")
    assert node is not None
    return node


def _started(process: Process, target: Target, path: str | None = None) -> Target:
    try:
        process.wait_for(target.port, path)
    except Unavailable:
        process.stop()
        raise
    return target


def node_http_proxy(folder: Path, upstream: int) -> Target:
    """The usual reverse proxy of Node programs, with kept-alive connections and a fixed header."""
    _npm(folder, "http-proxy", HTTP_PROXY_VERSION)
    script = folder / "proxy.js"
    script.write_text(_NODE, encoding="utf-8")
    port = free_port()
    process = Process("node http-proxy", [_node(), str(script), str(port), f"http://127.0.0.1:{upstream}"], folder)
    return _started(process, Target("node http-proxy", port, {}, process=process))


def portkey(folder: Path, upstream: int) -> Target:
    """Portkey's gateway on Node."""
    installed = _npm(folder, "@portkey-ai/gateway", PORTKEY_VERSION)
    port = free_port()
    script = installed / "build" / "start-server.js"
    # It refuses hosts that it does not trust; its own default list has localhost.
    process = Process(
        "Portkey", [_node(), str(script), f"--port={port}", "--headless"], folder, env={"NODE_ENV": "production"}
    )
    headers = {
        "authorization": "Bearer unused",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    return _started(process, Target("Portkey", port, headers, process=process))


def litellm(folder: Path, upstream: int) -> Target:
    """LiteLLM's proxy server, one worker."""
    python = folder / "venv" / "bin" / "python"
    program = folder / "venv" / "bin" / "litellm"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install([sys.executable, "-m", "venv", str(folder / "venv")])
        package = f"litellm[proxy]=={LITELLM_VERSION}"
        _install([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", package])
    config = folder / "config.yaml"
    key = "sk-" + secrets.token_hex(32)
    config.touch(mode=0o600)
    config.write_text(_LITELLM.format(upstream=upstream, key=key), encoding="utf-8")
    port = free_port()
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Without the last one it fetches a list of prices at its start.
    environment = {"HOME": str(folder), "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = Process("LiteLLM", command, folder, env={**environment, "LITELLM_LOG": "ERROR"})
    return _started(
        process, Target("LiteLLM", port, {"authorization": f"Bearer {key}"}, process=process), "/health/liveliness"
    )


PEERS: dict[str, Callable[[Path, int], Target]] = {
    "node http-proxy": node_http_proxy,
    "Portkey": portkey,
    "LiteLLM": litellm,
}
"""Name -> how to install (where it is not yet) and start it, given its folder and the upstream's port."""

VERSIONS = {"node http-proxy": HTTP_PROXY_VERSION, "Portkey": PORTKEY_VERSION, "LiteLLM": LITELLM_VERSION}
