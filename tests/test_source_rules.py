"""Rules for the source: which way imports point, one place for each library, names, docstrings, nothing at import."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy"

#: Third-party library -> the folders (or modules beside them) that may import it.
LIBRARIES: dict[str, set[str]] = {
    "brotli": {"protocol", "emulator"},
    "genai_prices": {"ledger"},
    "httptools": {"upstream"},
    "keyring": {"config"},
    "msgspec": {"protocol", "emulator"},
    "platformdirs": {"config"},
    "prometheus_client": {"observe"},
    "httpx2": {"lava"},
    "pydantic": {"config", "lava"},
    # redaction has the one type of ours that pydantic reads.
    "pydantic_core": {"config", "protocol"},
    "pydantic_settings": {"config"},
    "psycopg": {"ledger"},
    # Writes the file of one command, from what the queries return.
    "pyarrow": {"cli"},
    "python_multipart": {"protocol"},
    "rich": {"cli"},
    "sqlalchemy": {"ledger"},
    "starlette": {"app", "gateway", "emulator"},
    "structlog": {"observe"},
    "truststore": {"upstream"},
    "typer": {"cli"},
    "uvicorn": {"daemon", "http", "emulator"},
    "uvloop": {"daemon"},
    "zstandard": {"protocol", "emulator"},
}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "core", "base", "manager", "common", "misc", "lib", "tools"}


def sources() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """For messages and ids."""
    return path.relative_to(ROOT).as_posix()


def folder_of(path: Path) -> str:
    """The folder of the package that a file belongs to, or its own name if it lies beside the folders."""
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


def test_imports_point_one_way() -> None:
    """The contracts in pyproject.toml hold, and the tool does find what breaks them."""
    lint = Path(sys.executable).with_name("lint-imports")
    kept = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert kept.returncode == 0, kept.stdout
    assert "1 kept, 0 broken" in kept.stdout


def test_a_wrong_import_is_noticed(tmp_path: Path) -> None:
    """A copy of the package in which a fact imports the gateway breaks the contract."""
    shutil.copytree(PACKAGE, tmp_path / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    dialects = tmp_path / "proxy" / "protocol" / "dialects.py"
    dialects.write_text(dialects.read_text("utf-8") + "\n\nfrom proxy.gateway import serve\n", "utf-8")
    lint = Path(sys.executable).with_name("lint-imports")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    broken = subprocess.run(
        [lint, "--no-cache"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert broken.returncode == 1
    assert "proxy.protocol.dialects -> proxy.gateway.serve" in broken.stdout


def test_a_class_name_stands_once() -> None:
    """One name for one thing, in the whole package."""
    places: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def untyped(tree: ast.Module) -> Iterator[str]:
    """Public functions and methods with ``Any`` in their signature."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            hints = [each.annotation for each in arguments if each is not None] + [node.returns]
            if any(
                isinstance(part, ast.Name) and part.id == "Any" for hint in hints if hint for part in ast.walk(hint)
            ):
                yield f"line {node.lineno}: {node.name}"


@pytest.mark.parametrize(
    "path", [path for path in sources() if folder_of(path) in ("http", "upstream", "gateway", "app")], ids=name_of
)
def test_what_crosses_a_folder_is_typed(path: Path) -> None:
    """On a request's way no public signature says Any."""
    assert list(untyped(parsed(path))) == []


def test_the_top_level_is_small() -> None:
    """A newcomer sees it at one glance."""
    units = {path.relative_to(PACKAGE).parts[0] for path in sources()}
    assert len(units) <= 15


def third_party() -> dict[str, set[str]]:
    """Library -> folders of the package that import it."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for _, name in imports_of(path):
            library = name.partition(".")[0]
            if library not in sys.stdlib_module_names and library != "proxy":
                found.setdefault(library, set()).add(folder_of(path))
    return found


def test_each_library_has_its_place() -> None:
    """Exactly those that are written down: another one is a decision, not an accident."""
    assert third_party() == LIBRARIES


def test_no_module_is_for_everything() -> None:
    """A module is called after what it does."""
    names = {part.removesuffix(".py") for path in sources() for part in path.relative_to(PACKAGE).parts}
    assert not names & FORBIDDEN_NAMES
    assert not [name for name in names if re.search(r"(^|_)(utils?|helpers?|common|misc)($|_)", name)]


def names_for_others() -> set[str]:
    """Dotted names that a file of another folder imports."""
    names = set()
    for path in sources():
        package = ("proxy", *path.relative_to(PACKAGE).parts[:-1])
        names |= {
            name
            for _, name in imported(parsed(path), package)
            if name.startswith("proxy.") and name.split(".")[1] != folder_of(path)
        }
    return names


def undocumented(tree: ast.Module, module: str, names: set[str]) -> Iterator[str]:
    """The module, if it has no docstring, and those of its classes and functions that are among ``names``."""
    if ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if f"{module}.{node.name}" in names and ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {node.name}"


def test_what_crosses_a_folder_is_documented() -> None:
    """Every module has a docstring, and so has each class and function that another folder imports."""
    names = names_for_others()
    missing = [
        f"{name_of(path)}: {what}"
        for path in sources()
        for what in undocumented(
            parsed(path), ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), names
        )
    ]
    assert missing == []


def test_a_missing_docstring_is_noticed() -> None:
    """The check above does find what it looks for."""
    tree = ast.parse("def a(): ...\ndef b(): ...\ndef _c(): ...\n")
    assert list(undocumented(tree, "proxy.x.y", {"proxy.x.y.a"})) == ["the module", "line 1: a"]
    assert "proxy.gateway.gateway.Gateway" in names_for_others()


def ends_or_prints(tree: ast.AST) -> Iterator[str]:
    """Calls of ``print`` and everything that ends the process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit", "sys.stdout.write"}:
                yield f"line {node.lineno}: {called}"
        elif isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc) == "SystemExit":
            yield f"line {node.lineno}: raise SystemExit"


@pytest.mark.parametrize(
    "path", [path for path in sources() if folder_of(path) not in ("cli", "__main__")], ids=name_of
)
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
        [sys.executable, "-B", "-W", "error", "-c", _WATCH, str(PACKAGE), *names],
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
    names = [module_of(path) for path in sources() if folder_of(path) != "__main__"]
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


def test_no_request_goes_around_the_budget() -> None:
    """One place forwards, after the hold. The two others that send something ask Lava for its list of models and for the account."""
    sending = {name_of(path) for path in sources() if "engine.open(" in path.read_text("utf-8")}
    assert sending == {f"proxy/gateway/{name}.py" for name in ("dispatch", "model_list", "destinations/account_probe")}
    forwarding = [path for path in sources() if "await dispatch(" in path.read_text("utf-8")]
    assert list(map(name_of, forwarding)) == ["proxy/gateway/serve.py"]
    text = forwarding[0].read_text("utf-8")
    assert text.count("await dispatch(") == 1
    assert text.index("active.budget.hold(") < text.index("await dispatch(")


#: Lava in a name that belongs to this product: its own name, and its headers.
_OWN_NAME = re.compile(r"lava-proxy|x-lava-[a-z-]*", re.IGNORECASE)


def names_of_lava(source: str) -> list[str]:
    """The string literals that name Lava, with their lines. Docstrings are no such literals."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if "lava" in _OWN_NAME.sub("", text).lower():
                found.append(f"{node.lineno}: {text}")
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in sources() if folder_of(path) == "gateway" and "destinations" not in path.parts],
    ids=name_of,
)
def test_only_a_destination_names_lava(path: Path) -> None:
    """Everything else in the gateway uses the destination's name, so that it holds for a second destination."""
    assert names_of_lava(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise Error("Lava refused")', ["1: Lava refused"]),
        ('raise Error(f"{x} at Lava")', ["1:  at Lava"]),
        ('provider = b"lava"', ["1: lava"]),
        ('code = "x-lava-proxy-error of lava_error"', ["1: x-lava-proxy-error of lava_error"]),
        ('"""Lava."""\ndef f():\n    """Lava."""', []),
        ('header, name = b"x-lava-metadata", "lava-proxy"  # of Lava', []),
    ],
    ids=["sentence", "f-string", "bytes", "code beside a header", "docstrings", "own names"],
)
def test_a_name_of_lava_is_noticed(source: str, found: list[str]) -> None:
    assert names_of_lava(source) == found
