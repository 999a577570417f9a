"""The rules of the house: which way imports point, one door for each library, names, docstrings, nothing at import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy"

#: From the ground up: a room (a module or a folder) may import those above it in this list, and no other.
ORDER = (
    "__init__",
    # Facts and plain tools.
    "dialects",
    "documents",
    "wording",
    "keeping",
    "redaction",
    "errors",
    "headers",
    "usage",
    "providers",
    # What the user said: the settings and their parts.
    "urls",
    "toml_lines",
    "references",
    "sources",
    "credentials",
    "rules",
    "settings",
    "watching",
    # Decisions.
    "routing",
    "body",
    "tokens",
    "prefixes",
    # Lava's account, for people and scripts.
    "lava",
    "diagnosis",
    # The network, and what lives.
    "upstream",
    "inquiry",
    "flights",
    "holding",
    "generation",
    "gate",
    "record",
    "metrics",
    "catalog",
    "uploads",
    "forward",
    "express",
    "logs",
    "app",
    # The HTTP front.
    "framing",
    "guard",
    "server",
    # Products of their own.
    "emulator",
    "cli",
    "__main__",
)

#: The offline Lava must not know how the proxy works, only what it talks to.
EMULATOR_KNOWS = {"dialects", "providers", "emulator"}

#: Rooms that are one door together.
AREAS = {
    **dict.fromkeys(("urls", "toml_lines", "references", "sources", "credentials", "rules", "settings"), "settings"),
    **dict.fromkeys(("framing", "guard", "server"), "front"),
}

#: Third-party library -> the rooms that may know it.
DOORS: dict[str, set[str]] = {
    "brotli": {"body", "emulator"},
    "httptools": {"upstream"},
    "keyring": {"settings"},
    "msgspec": {"documents", "emulator"},
    "platformdirs": {"settings"},
    "prometheus_client": {"metrics"},
    "httpx2": {"lava"},
    "pydantic": {"settings", "lava"},
    # redaction has the one type of ours that pydantic reads.
    "pydantic_core": {"settings", "redaction"},
    "pydantic_settings": {"settings"},
    "python_multipart": {"body"},
    "rich": {"cli"},
    "starlette": {"app", "emulator"},
    "structlog": {"logs"},
    "truststore": {"upstream"},
    "typer": {"cli"},
    "uvicorn": {"front", "emulator"},
    "uvloop": {"front"},
    "zstandard": {"body", "emulator"},
}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "core", "base", "manager", "common", "misc", "lib", "tools"}


def sources() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """For messages and ids."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The module or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file; ``package`` is where the file lies."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """The same for a file of the package."""
    return imported(parsed(path), path.relative_to(ROOT).parent.parts)


def faults_of(room: str, imports: Iterable[tuple[int, str]]) -> list[str]:
    """What is wrong with a room's imports of other rooms."""
    found = []
    for line, name in imports:
        first, _, rest = name.partition(".")
        if first != "proxy":
            continue
        # ``from proxy import __version__`` asks the package itself.
        other = rest.partition(".")[0]
        if other not in ORDER:
            if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists():
                found.append(f"line {line}: {other} has no place in ORDER")
            other = "__init__"
        if other == room:
            continue
        if ORDER.index(other) > ORDER.index(room):
            found.append(f"line {line}: {room} imports {other}, which stands below it")
        if room == "emulator" and other not in EMULATOR_KNOWS:
            found.append(f"line {line}: the emulator imports {other}")
    return found


def test_every_room_has_its_place() -> None:
    """What is in the package is in the order, and what is in the order is there."""
    assert len(set(ORDER)) == len(ORDER)
    assert {room_of(path) for path in sources()} == set(ORDER)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    """Upward in the order, late imports and those for types included."""
    assert faults_of(room_of(path), imports_of(path)) == []


@pytest.mark.parametrize(
    ("room", "code", "wrong"),
    [
        ("errors", "from proxy.app import create_app", True),
        ("errors", "from proxy import settings", True),
        ("errors", "import proxy.cli.commands", True),
        ("errors", "def f():\n    from proxy.headers import read", True),
        ("errors", "from .headers import read", True),
        ("errors", "from . import gate", True),
        ("emulator", "from proxy.errors import Fault", True),
        ("emulator", "from proxy.emulator.state import World", False),
        ("emulator", "from proxy.providers import BUILTIN", False),
        ("app", "from proxy.errors import Fault", False),
        ("errors", "from proxy import __version__", False),
        ("errors", "from proxy.dialects import Dialect", False),
        ("__init__", "from proxy.dialects import Dialect", True),
    ],
)
def test_a_wrong_import_is_noticed(room: str, code: str, wrong: bool) -> None:
    """The check above does find what it looks for, however it is written."""
    assert bool(faults_of(room, imported(ast.parse(code), ("proxy",)))) is wrong


def third_party() -> dict[str, set[str]]:
    """Library -> areas of the package that import it."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for _, name in imports_of(path):
            library = name.partition(".")[0]
            if library not in sys.stdlib_module_names and library != "proxy":
                found.setdefault(library, set()).add(AREAS.get(room_of(path), room_of(path)))
    return found


def test_each_library_has_one_door() -> None:
    """Two at most, and exactly the ones that are written down: another one is a decision, not an accident."""
    found = third_party()
    assert found == DOORS
    assert all(len(rooms) <= 2 for rooms in found.values())


def test_no_room_is_a_lumber_room() -> None:
    """A module is called after what it does."""
    names = {part.removesuffix(".py") for path in sources() for part in path.relative_to(PACKAGE).parts}
    assert not names & FORBIDDEN_NAMES
    assert not [name for name in names if re.search(r"(^|_)(utils?|helpers?|common|misc)($|_)", name)]


def undocumented(tree: ast.Module) -> Iterator[str]:
    """The module, and its public classes and functions, where they have no docstring."""
    if ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {node.name}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_everything_public_says_what_it_is(path: Path) -> None:
    """Every module, class and public function has a docstring."""
    assert list(undocumented(parsed(path))) == []


def ends_or_prints(tree: ast.AST) -> Iterator[str]:
    """Calls of ``print`` and everything that ends the process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit", "sys.stdout.write"}:
                yield f"line {node.lineno}: {called}"
        elif isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc) == "SystemExit":
            yield f"line {node.lineno}: raise SystemExit"


@pytest.mark.parametrize("path", [path for path in sources() if room_of(path) not in ("cli", "__main__")], ids=name_of)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    """Everything else returns, raises or logs."""
    assert list(ends_or_prints(parsed(path))) == []


def test_printing_is_noticed() -> None:
    """The check above does find what it looks for."""
    for code in ("print(1)", "sys.exit()", "raise SystemExit", "raise SystemExit(2)", "sys.stdout.write('x')"):
        assert list(ends_or_prints(ast.parse(code)))


def state(tree: ast.Module) -> Iterator[str]:
    """Names that functions rebind, and empty containers at the top of a module: both wait to be filled."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global"
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        match value:
            case ast.List(elts=[]) | ast.Set(elts=[]) | ast.Dict(keys=[]):
                empty = True
            case ast.Call(func=ast.Name(id="dict" | "list" | "set" | "defaultdict" | "deque"), args=[]):
                empty = True
            case _:
                empty = False
        if empty:
            yield f"line {statement.lineno}: an empty container"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_state_lives_in_a_module(path: Path) -> None:
    """Everything with a lifetime is made somewhere and handed down."""
    assert list(state(parsed(path))) == []


#: Runs in an interpreter of its own. Reports what our own code opens, connects, starts or prints while it is imported.
_WATCH = """
import json, sys, threading
package, names = sys.argv[1], sys.argv[2:]
seen = []
def watch(event, args):
    if event in ("import", "compile", "exec", "marshal.loads", "object.__getattr__", "sys._getframe"):
        return
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    ours = frame is not None and frame.f_code.co_filename.startswith(package)
    if event == "open":
        if ours and not str(args[0]).endswith((".py", ".pyc", ".so", ".pyd")):
            seen.append([event, str(args[0])])
    elif event.startswith(("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.", "os.system", "os.fork")):
        seen.append([event, frame.f_code.co_filename if frame else ""])
    elif event.startswith(("_thread.start", "signal.", "os.putenv", "os.mkdir", "os.remove", "sys.settrace")) and ours:
        seen.append([event, ""])
sys.addaudithook(watch)
import importlib
for name in names:
    importlib.import_module(name)
print(json.dumps({"seen": seen, "threads": threading.active_count(), "modules": sorted(sys.modules)}))
"""


class Happened(TypedDict):
    """What an interpreter says of its imports."""

    seen: list[list[str]]
    threads: int
    modules: list[str]


def importing(*names: str) -> Happened:
    """What happens when these modules are imported, in this order, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WATCH, str(PACKAGE), *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: Happened = json.loads(done.stdout)  # and nothing else was printed
    return found


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.skipif(sys.platform == "win32", reason="not every module exists there")
def test_nothing_happens_at_import() -> None:
    """All modules imported at once: no file, socket, thread, process, signal or variable of ours; nothing printed."""
    names = [module_of(path) for path in sources() if room_of(path) != "__main__"]
    found = importing(*names)
    assert found["seen"] == []
    assert found["threads"] == 1
    assert set(names) <= set(found["modules"])


def test_what_start_up_does_not_need_is_imported_late() -> None:
    """The application is up before the slow libraries are: they load when a request or a command needs them."""
    modules = set(importing("proxy.app")["modules"])
    late = {"httpx2", "httpcore2", "rich", "typer", "keyring", "prometheus_client", "brotli", "zstandard"}
    late |= {
        "platformdirs",
        "pydantic_settings",
        "proxy.emulator",
        "proxy.cli",
        "proxy.lava.client",
        "proxy.lava.records",
    }
    assert not late & modules


def test_nothing_relies_on_writelines() -> None:
    """A transport's ``writelines`` does not pause the writer in CPython before 3.12.9 and 3.13.2 (CVE-2024-12254)."""
    assert [path for path in sources() if ".writelines(" in path.read_text("utf-8")] == []
