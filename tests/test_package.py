"""The package as it is shipped: the wheel, its metadata, the locks, the Python versions, and no key in any file."""

from __future__ import annotations

import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daemons import clean_environment

import proxy

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

#: The copies of what the project was given: made-up keys, known to everyone. Nothing else may look like a key.
KEYS_ALLOWED_IN = (re.compile(r"tests/vectors/[^/]+\.json"), re.compile(r"tests/hostile-cases\.json"))
KEY_SHAPED = re.compile(rb"(aks_live_|aks_test_|lava_sk_|lava_wk_|sk-)[A-Za-z0-9_-]{6,}")


def committed_files() -> list[Path]:
    """What is in the repository, or would be with the next commit: tracked, or new and not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    return [path for name in listed.split(b"\0") if name and (path := ROOT / name.decode()).is_file()]


def pinned(lock: str) -> dict[str, str]:
    """Package name → version of a lock file."""
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)(?:\[[a-z0-9,-]+\])?==([^ ;\\]+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by the project's own backend from a copy of its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "config.example.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "proxy", folder / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").iterdir()
    return zipfile.ZipFile(built)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Every source file of ``proxy``, the typing marker, the licence; no tests, no benchmarks, no leftovers."""
    names = set(wheel.namelist())
    info = f"lava_proxy-{proxy.__version__}.dist-info/"
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "proxy").rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    assert "proxy/py.typed" in names
    assert info + "licenses/LICENSE" in names
    assert {name for name in names if not name.startswith(info)} == sources | {"proxy/config.example.toml"}


def test_the_wheel_has_the_reference_of_the_settings(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """``init --reference`` of what is installed from it prints the very file that is held against the settings' model."""
    wheel.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "proxy", "init", "--reference"]
    for place in (tmp_path / "installed", ROOT):
        env = clean_environment(tmp_path, {"PYTHONPATH": str(place)})
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (ROOT / "config.example.toml").read_text(encoding="utf-8")
    assert not (tmp_path / ".config").exists()


def test_links_of_the_readme_work_where_it_is_shown(wheel: zipfile.ZipFile) -> None:
    """An index shows the README without the files beside it: every link in it is a whole address, or one of its headings."""
    said = str(metadata(wheel).get_payload())
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", said, re.MULTILINE)
    }
    links = re.findall(
        r"\]\(([^)]+)\)|<(?:a|img) [^>]*(?:href|src)=\"([^\"]+)\"|^\[[^]]+\]: *(\S+)", said, re.MULTILINE
    )
    for link in ("".join(groups) for groups in links):
        assert link.startswith("https://") or link.removeprefix("#") in headings, link


def test_the_metadata_links_to_what_there_is(wheel: zipfile.ZipFile) -> None:
    """An index shows these beside the description; each is an https address."""
    links = dict(link.split(", ", 1) for link in metadata(wheel).get_all("Project-URL", []))
    assert "Homepage" in links
    assert all(re.fullmatch(r"https://[a-z0-9.-]+(/\S*)?", address) for address in links.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_can_be_made_anew(lock: str) -> None:
    """By the command in its head, which is that of the script, which the README names."""
    (made_by,) = re.findall(r"^#    (uv pip compile .*)$", (ROOT / lock).read_text(), re.MULTILINE)
    script = (ROOT / ".ci/lock").read_text(encoding="utf-8")
    (common,) = re.findall(r'^common=\(--quiet (.*) "\$@"\)$', script, re.MULTILINE)
    commands = re.findall(r"uv pip compile .*", script.replace('"${common[@]}"', common))
    assert made_by in commands
    assert made_by.endswith(f"-o {lock}")
    assert os.access(ROOT / ".ci/lock", os.X_OK)
    assert "`.ci/lock`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_locks_have_what_is_declared_and_what_that_needs() -> None:
    """Each name of pyproject.toml, each name that follows from it, and no other: a lock made for another list shows here."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def closure(texts: list[str], lock: dict[str, str]) -> set[str]:
        found: set[str] = set()
        waiting = [Requirement(text) for text in texts]
        while waiting:
            one = waiting.pop()
            name = canonicalize_name(one.name)
            for extra in ("", *one.extras):
                if (key := f"{name}[{extra}]") in found:
                    continue
                found.add(key)
                try:
                    needed = [Requirement(text) for text in requires(name) or []]
                except PackageNotFoundError:  # of another system: what it needs is not known here
                    continue
                for each in needed:
                    ours = (
                        f'extra == "{extra}"' in str(each.marker).replace("'", '"')
                        if extra
                        else "extra ==" not in str(each.marker)
                    )
                    if ours and canonicalize_name(each.name) in lock:
                        waiting.append(each)
        return {key.partition("[")[0] for key in found}

    runtime = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["postgres"]]
    everything = [*runtime, *PROJECT["optional-dependencies"]["dev"]]
    for texts, name in ((runtime, "requirements.lock"), (everything, "requirements-dev.lock")):
        lock = pinned(name)
        declared = {canonicalize_name(Requirement(text).name) for text in texts}
        assert declared <= set(lock), name
        # What follows from a package that is for older Pythons alone is only known where that package is installed.
        older = set(
            re.findall(r"^([a-z0-9.-]+)==\S+ ; python_full_version < '3\.12'", (ROOT / name).read_text(), re.MULTILINE)
        )
        unknown = older if sys.version_info >= (3, 12) else set()
        assert set(lock) - unknown <= closure(texts, lock), name


def test_the_metadata_says_what_a_user_must_know(wheel: zipfile.ZipFile) -> None:
    """Name, version, Python versions, licence, and the command that is installed."""
    said = metadata(wheel)
    assert said["Name"] == "lava-proxy"
    assert said["Version"] == proxy.__version__
    assert said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "MIT"
    assert str(said.get_payload()).startswith("#"), "the README is the description"
    classifiers = said.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: {version}" for version in PYTHONS} <= set(classifiers)
    (points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert wheel.read(points).decode().split() == ["[console_scripts]", "lava-proxy", "=", "proxy.cli:main"]


def test_every_dependency_has_a_lower_bound_that_is_locked() -> None:
    """What is declared is what is tested: the bound of each dependency is a version the lock has, or an older one."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    declared = [(each, "requirements.lock") for each in PROJECT["dependencies"]]
    declared += [(each, "requirements-dev.lock") for each in PROJECT["optional-dependencies"]["dev"]]
    for text, lock in declared:
        requirement = Requirement(text)
        ((operator, bound),) = ((each.operator, each.version) for each in requirement.specifier)
        assert operator == ">=", text
        assert Version(bound) <= Version(pinned(lock)[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_and_hashes_only(lock: str) -> None:
    """No index, no address, no path: where packages come from is the installing machine's business."""
    for line in (ROOT / lock).read_text().splitlines():
        if line.startswith("#"):
            assert "://" not in line
            assert "index" not in line.replace("--no-emit-index-url", "")
            continue
        pin = re.fullmatch(r"[a-z0-9][a-z0-9.-]*(\[[a-z0-9,-]+\])?==[^\s;@]+( ; [^\\@]+)? \\", line)
        digest = re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)
        assert pin or digest, line


def test_a_lock_names_the_extras_that_are_asked_for() -> None:
    """pip judges ``name[extra]`` apart from ``name``: unless the lock pins that spelling, it takes the newest release,
    which has no hash here, and a fresh install fails from the day of that release on."""
    from importlib.metadata import distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = (ROOT / "requirements-dev.lock").read_text()
    asked = [Requirement(text) for each in distributions() for text in each.requires or ()]
    for each in asked:
        name = canonicalize_name(each.name)
        if (
            each.extras
            and name in pinned("requirements-dev.lock")
            and (not each.marker or each.marker.evaluate({"extra": ""}))
        ):
            assert f"\n{name}[{','.join(sorted(each.extras))}]==" in lock, each


def test_the_locks_agree() -> None:
    """The development lock and the build lock have the very versions that are shipped."""
    development = pinned("requirements-dev.lock")
    for lock in LOCKS:
        locked = pinned(lock)
        assert locked
        assert locked.items() <= development.items(), lock


def test_the_npm_lock_holds_no_address() -> None:
    """Versions and integrity hashes only; every package of package.json, exactly."""
    folder = Path(__file__).parent / "node"
    text = (folder / "package-lock.json").read_text()
    assert "://" not in text
    assert "resolved" not in text
    packages = json.loads(text)["packages"]
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert packages[""]["dependencies"] == wanted
    assert wanted["@lavapayments/nodejs"] == "11.2.0"
    for name, version in wanted.items():
        # An older SDK beside the newest one goes by another name: npm:PACKAGE@VERSION.
        assert packages[f"node_modules/{name}"]["version"] == version.rpartition("@")[2]
    assert all(entry["integrity"].startswith("sha512-") for place, entry in packages.items() if place)


def _python(version: str) -> Path | None:
    """A working interpreter of this version, from the PATH or from pyenv (whose launcher on the PATH may be empty)."""
    candidates = [shutil.which(f"python{version}")]
    if pyenv := shutil.which("pyenv"):
        listed = subprocess.run([pyenv, "prefix", version], capture_output=True, text=True, timeout=30, check=False)
        candidates.append(shutil.which("python", path=f"{listed.stdout.strip()}/bin"))
    for found in filter(None, candidates):
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
        if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return Path(found)
    return None


@pytest.mark.full
def test_every_python_here_compiles_the_package(tmp_path: Path) -> None:
    """Each supported Python that this machine has accepts every source file, without a warning."""
    pythons = {version: found for version in PYTHONS if (found := _python(version))}
    pythons[f"{sys.version_info[0]}.{sys.version_info[1]}"] = Path(sys.executable)
    for version, python in pythons.items():
        prefix = f"pycache_prefix={tmp_path / version}"
        command = [str(python), "-W", "error", "-X", prefix, "-m", "compileall", "-q", "-f", str(ROOT / "proxy")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, f"Python {version}: {done.stdout}{done.stderr}"


def test_no_committed_file_holds_a_key() -> None:
    """Nothing in the repository looks like a key, but for the copies of the given cases and vectors."""
    found = []
    for path in committed_files():
        name = path.relative_to(ROOT).as_posix()
        if not any(allowed.fullmatch(name) for allowed in KEYS_ALLOWED_IN):
            content = path.read_bytes()
            # The place only: should it ever be a real key, it is not to stand in a test's output as well.
            starts = [hit.start() for hit in KEY_SHAPED.finditer(content)]
            found += [f"{name}, line {content[:start].count(10) + 1}" for start in starts]
    assert not found


def test_keys_are_recognised() -> None:
    """The scan above does find what it looks for (else it would pass on anything)."""
    for prefix in (b"aks_live_", b"aks_test_", b"lava_sk_", b"lava_wk_", b"sk-"):
        assert KEY_SHAPED.search(b'key = "' + prefix + b"x" * 6 + b'"')
        assert not KEY_SHAPED.search(prefix + b"x" * 5)
