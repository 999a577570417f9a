"""What is measured: lava-proxy of this checkout in its configurations, the C proxies, and the upstreams behind them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import processes
from processes import Process, Unavailable, find, free_port
from upstreams import ANSWER
from windows import Target

if TYPE_CHECKING:
    from pathlib import Path

#: Key-shaped text is put together here, so that no file of this repository looks as if it held a key.
LAVA_KEY = "aks_live_" + "b3nchm4rk" * 3
LOCAL_KEY = "local-key-of-the-benchmark"
SERVER_KEY = "server-key-of-the-benchmark"
TOKEN = "fixed-token-of-the-c-proxies-" + "x" * 120
DESCRIPTORS = 65_536


@dataclass(frozen=True)
class Features:
    """What of a default configuration is switched on."""

    keys: bool = True
    logging: bool = True
    routing: bool = True
    #: A project with connection and meter, metadata and all; else the bare merchant key.
    project: bool = True
    ledger: bool = True

    @property
    def path(self) -> str:
        """The address that asks for it: routing by model, or the provider named."""
        return "/v1/chat/completions" if self.routing else "/openai/v1/chat/completions"


EVERYTHING = Features()
NOTHING = Features(keys=False, logging=False, routing=False, project=False, ledger=False)

WITHOUT_LEDGER = Features(ledger=False)

VARIANTS = {
    "everything on": EVERYTHING,
    "without local keys": Features(keys=False),
    "without the request log": Features(logging=False),
    "without routing by model": Features(routing=False),
    "without project, meter and metadata": Features(project=False),
    "without the ledger": WITHOUT_LEDGER,
    "everything off": NOTHING,
}
"""Name -> what is on. Usage counting and metrics have no switch: they are in every row."""


def configuration(
    features: Features, upstream: str, folder: Path, ca_file: str = "", max_concurrent: int | None = None
) -> str:
    """The TOML of one daemon. ``upstream`` is the URL that plays Lava, without a path."""
    lines = ['default_project = "bench"'] if features.project else []
    lines += ["[server]", 'host = "127.0.0.1"']
    if features.keys:
        # Good for /metrics, which a project's own key is not.
        lines += [f'keys = ["{SERVER_KEY}"]' if features.project else f'keys = ["{SERVER_KEY}", "{LOCAL_KEY}"]']
    if max_concurrent is not None:
        lines += [f"max_concurrent = {max_concurrent}"]
    lines += ["[lava]", f'secret_key = "{LAVA_KEY}"', f'base_url = "{upstream}/v1"']
    lines += ["[log]", f'level = "{"info" if features.logging else "error"}"', f'file = "{folder / "requests.log"}"']
    if not features.ledger:
        lines += ["[ledger]", "enabled = false"]
    if ca_file:
        lines += ["[upstream]", f'ca_file = "{ca_file}"']
    if features.project:
        lines += ["[projects.bench]", 'connection_id = "conn_benchmark"', 'meter = "benchmark"']
        lines += ['metadata = { team = "bench" }', *([f'keys = ["{LOCAL_KEY}"]'] if features.keys else [])]
    return "\n".join([*lines, ""])


def lava_proxy(
    folder: Path,
    upstream: str,
    features: Features = EVERYTHING,
    ca_file: str = "",
    name: str = "lava-proxy",
    max_concurrent: int | None = None,
) -> Target:
    """A running daemon of this checkout, started and ready."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = folder / "config.toml"
    config.touch(mode=0o600)
    config.write_text(configuration(features, upstream, folder, ca_file, max_concurrent), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config), "--port", str(port)]
    process = Process(name, command, folder, env={"HOME": str(folder)})
    try:
        process.wait_for(port, "/readyz")
    except Unavailable:
        process.stop()
        raise
    headers = {"authorization": f"Bearer {LOCAL_KEY if features.keys else 'unused'}"}
    return Target(name, port, headers, features.path, process)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key. Raises `Unavailable`."""
    openssl = find("openssl")
    if openssl is None:
        raise Unavailable("openssl is not installed: no certificate for the TLS row")
    chain, key = folder / "certificate.pem", folder / "key.pem"
    what = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    whom = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    done = subprocess.run(
        [openssl, "req", *what, *whom, "-keyout", str(key), "-out", str(chain)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"openssl made no certificate: {done.stderr.strip()[-300:]}")
    return chain, key


# --- nginx and HAProxy -----------------------------------------------------------------------------------------------

_NGINX = """\
daemon off; master_process off; worker_rlimit_nofile {descriptors};
pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; tcp_nodelay on; client_max_body_size 64m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{content}
}}
"""

_NGINX_MOCK = """\
  server {{
    listen 127.0.0.1:{port} backlog=4096;{tls}
    location / {{ default_type application/json; return 200 '{answer}'; }}
  }}
"""

_NGINX_PROXY = """\
  upstream {name} {{ server 127.0.0.1:{upstream}; keepalive 1200; keepalive_requests 1000000000; keepalive_timeout 600s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass {scheme}://{name}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer {token}";
      {more}
    }}
  }}
"""

_STREAMING = "proxy_buffering off; proxy_request_buffering off;"
_BODIES = "proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_max_temp_file_size 0; proxy_request_buffering off;"

_HAPROXY = """\
global
  maxconn 4096
  nbthread 1
defaults
  mode http
  timeout connect 10s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  http-request set-header Authorization "Bearer {token}"
  default_backend back
backend back
  server mock 127.0.0.1:{upstream} pool-max-conn -1
"""


def _nginx(name: str, folder: Path, content: str, core: int | None, port: int) -> Process:
    program = find("nginx")
    if program is None:
        raise Unavailable("nginx is not installed")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, content=content, descriptors=DESCRIPTORS), encoding="utf-8")
    process = Process(name, [program, "-p", str(folder), "-c", str(config)], folder, core)
    try:
        process.wait_for(port)
    except Unavailable:
        process.stop()
        raise
    return process


class Stage:
    """Everything that runs during a benchmark: the upstreams, and proxies that are started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unavailable: dict[str, str] = {}
        self._stack = ExitStack()
        self._targets: dict[str, Target] = {}
        self._mock: Target | None = None
        self._json: Target | None = None
        self._tls: tuple[int, Path] | None = None

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()

    def _keep(self, process: Process | None) -> None:
        if process is not None:
            self._stack.callback(process.stop)

    def mock(self) -> Target:
        """Our own upstream, for everything that is not the small JSON answer."""
        if self._mock is None:
            self._mock = self.fresh_mock()
        return self._mock

    def fresh_mock(self) -> Target:
        """Another one, for whoever counts its connections."""
        port = free_port()
        command = [sys.executable, str(processes.HERE / "upstreams.py"), str(port)]
        process = Process("upstream", command, self.folder / "upstream", processes.load_core())
        self._keep(process)
        process.wait_for(port)
        return Target("direct", port, {}, process=process)

    def json(self) -> Target:
        """The upstream of the plain rows: nginx with the answer in its configuration where there is one, else ours."""
        if self._json is None:
            port, tls_port = free_port(), free_port()
            try:
                blocks = [_NGINX_MOCK.format(port=port, tls="", answer=ANSWER.decode("ascii"))]
                with_tls = None
                try:
                    chain, key = certificate(self.folder)
                    tls = f"\n    listen 127.0.0.1:{tls_port} ssl backlog=4096; ssl_certificate {chain}; ssl_certificate_key {key};"
                    blocks = [_NGINX_MOCK.format(port=port, tls=tls, answer=ANSWER.decode("ascii"))]
                    with_tls = (tls_port, chain)
                except Unavailable as why:
                    self.unavailable["TLS upstream"] = str(why)
                process = _nginx("upstream", self.folder / "mock-nginx", "".join(blocks), processes.load_core(), port)
                self._keep(process)
                self._json, self._tls = Target("direct", port, {}, process=process), with_tls
            except Unavailable as why:
                self.unavailable.setdefault("TLS upstream", str(why))
                self._json = self.mock()
        return self._json

    def tls(self) -> tuple[int, Path] | None:
        """Port and certificate of the TLS upstream; ``None`` where there is none (`unavailable` says why)."""
        self.json()
        return self._tls

    def target(self, name: str) -> Target | None:
        """A proxy by its name, started if it is not; ``None`` where it cannot be had (`unavailable` says why)."""
        if name in self.unavailable:
            return None
        if name not in self._targets:
            try:
                self._targets[name] = self._start(name)
            except Unavailable as why:
                self.unavailable[name] = str(why)
                return None
            self._keep(self._targets[name].process)
        return self._targets[name]

    def add(self, name: str, target: Target) -> None:
        """A target from elsewhere (peers.py); stopped with the others."""
        self._targets[name] = target
        self._keep(target.process)

    def _start(self, name: str) -> Target:
        folder = self.folder / name.replace(" ", "-").replace("/", "-").replace(",", "")
        if name == "direct":
            return self.json()
        if name == "direct streams":
            return self.mock()
        if name in VARIANTS:
            return lava_proxy(folder, f"http://127.0.0.1:{self.json().port}", VARIANTS[name], name=name)
        match name:
            case "lava-proxy":
                return lava_proxy(folder, f"http://127.0.0.1:{self.json().port}")
            case "lava-proxy streams":
                return lava_proxy(folder, f"http://127.0.0.1:{self.mock().port}", name=name)
            case "lava-proxy TLS":
                port, chain = self._need_tls()
                return lava_proxy(folder, f"https://127.0.0.1:{port}", ca_file=str(chain), name=name)
            case "nginx":
                return self._nginx_proxy(name, folder, self.json().port, "")
            case "nginx streams":
                return self._nginx_proxy(name, folder, self.mock().port, _STREAMING)
            case "nginx bodies":
                return self._nginx_proxy(name, folder, self.mock().port, _BODIES)
            case "nginx TLS":
                return self._nginx_proxy(name, folder, self._need_tls()[0], "", scheme="https")
            case "haproxy":
                return self._haproxy(name, folder, self.json().port)
            case "haproxy streams" | "haproxy bodies":
                return self._haproxy(name, folder, self.mock().port)
        raise Unavailable(f"nothing is called {name}")

    def _need_tls(self) -> tuple[int, Path]:
        found = self.tls()
        if found is None:
            raise Unavailable(self.unavailable["TLS upstream"])
        return found

    def _nginx_proxy(self, name: str, folder: Path, upstream: int, more: str, scheme: str = "http") -> Target:
        port = free_port()
        content = _NGINX_PROXY.format(name="mock", upstream=upstream, port=port, scheme=scheme, token=TOKEN, more=more)
        return Target(name, port, {}, process=_nginx(name, folder, content, processes.measured_core(), port))

    def _haproxy(self, name: str, folder: Path, upstream: int) -> Target:
        program = find("haproxy")
        if program is None:
            raise Unavailable("HAProxy is not installed")
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = folder / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=port, upstream=upstream, token=TOKEN), encoding="utf-8")
        process = Process(name, [program, "-f", str(config)], folder)
        try:
            process.wait_for(port)
        except Unavailable:
            process.stop()
            raise
        return Target(name, port, {}, process=process)


def versions() -> dict[str, str]:
    """Of what takes part, as the programs say them."""
    asked = {
        "nginx": ["nginx", "-v"],
        "HAProxy": ["haproxy", "-v"],
        "wrk": ["wrk", "-v"],
        "node": ["node", "--version"],
    }
    found = {}
    for name, (program, flag) in asked.items():
        path = find(program)
        found[name] = processes.version_of([path, flag]) if path else "not installed"
    git = shutil.which("git")
    if git:
        describe = [git, "-C", str(processes.ROOT), "describe", "--always", "--dirty"]
        found["lava-proxy"] = processes.version_of(describe)
    return found
