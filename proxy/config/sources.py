"""The sources of the settings: file, environment and flags as plain tables, each key with its position.

A table here is the result of `tomllib`: nested dicts. The tree of known keys is made from the settings models,
which this module gets as an argument. Faults are collected, never raised, because a person who fixes a
configuration needs the whole list. A sentence quotes a wrong value only if the key holds no secret and the value
does not look like one: any value may be a misplaced secret.

pydantic-settings reads the environment and ignores unknown variables; those are refused here.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import BaseModel

from proxy.config.references import File, UnreadableReference, decode, read_file
from proxy.config.toml_lines import Where, key_lines
from proxy.protocol.providers import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic_core import ErrorDetails
    from pydantic_settings import BaseSettings

PREFIX = "LAVA_PROXY_"
SYSTEM_CONFIG = Path("/etc/lava-proxy/config.toml")
MAX_CONFIG_BYTES = 1024 * 1024

# The variables that Kubernetes sets for a Service named lava-proxy (and values of tcp://, see below).
_KUBERNETES = re.compile(r"LAVA_PROXY_(SERVICE_(HOST|PORT(_.+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR))")

# Keys that hold a table of names the user chooses, with plain values.
_FREE_TABLES = ("models", "metadata", "byok")

# Keys of earlier versions.
GONE: Mapping[Where, str] = {
    (
        "upstream",
        "http2",
    ): "is gone: HTTP/2 was slower here, and HTTP/1.1 is all that is spoken with Lava now; remove it",
}

Table = dict[str, Any]


def key_tree(model: type[BaseModel]) -> Table:
    """Return the keys as nested tables: None for a key with a value, ``*`` for names that the user chooses."""
    tree: Table = {}
    for name, field in model.model_fields.items():
        if field.exclude:  # not a key of the configuration
            continue
        inner = get_args(field.annotation) if field.annotation is not None else ()
        if _is_part(field.annotation):
            tree[name] = key_tree(cast("type[BaseModel]", field.annotation))
        elif inner and _is_part(inner[0]):  # a table that may be left out
            tree[name] = key_tree(inner[0])
        elif inner and _is_part(inner[-1]):
            tree[name] = {"*": key_tree(inner[-1])}
        else:
            tree[name] = None
    return tree


def _is_part(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def leaves(tree: Table, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of the tree without keys below it."""
    for name, inner in tree.items():
        if inner is None:
            yield (*above, name)
        else:
            yield from leaves(inner, (*above, name))


def prune(data: Table, tree: Table, faults: Faults, root: Table | None = None, above: Where = ()) -> None:
    """Remove unknown keys from ``data``, each with a fault. (``root`` is the whole tree, for suggestions.)"""
    root = root or tree
    for name in list(data):
        inner = tree.get(name, tree.get("*", ...))
        where = (*above, name)
        if inner is ...:
            del data[name]
            nearest = _nearest_key(name, tree, root)
            unknown = "unknown key" + (f"; did you mean {nearest}?" if nearest else "")
            faults.add(where, GONE.get(where, unknown))
        elif isinstance(inner, dict) and isinstance(data[name], dict):
            prune(data[name], inner, faults, root, where)


def _nearest_key(name: str, siblings: Table, root: Table) -> str | None:
    close = difflib.get_close_matches(name, siblings, 1, 0.6)
    if close:
        return close[0]
    # Perhaps the right key in the wrong table.
    # Of two such keys, prefer the one without a name that the user chooses.
    others = sorted(leaves(root), key=lambda leaf: "*" not in leaf)
    elsewhere = {leaf[-1]: ".".join(leaf).replace("*", "NAME") for leaf in others}
    close = difflib.get_close_matches(name, elsewhere, 1, 0.85)
    return elsewhere[close[0]] if close else None


def _nearest_variable(where: tuple[str, ...], tree: Table) -> str | None:
    names = list(leaves(tree))
    if len(where) > 1:
        names = [tuple(where[1] if part == "*" else part for part in leaf) for leaf in names]
    variables = [_variable(name) for name in names if "*" not in name]
    close = difflib.get_close_matches(_variable(where), variables, 1, 0.7)
    return close[0] if close else None


def _variable(where: tuple[str, ...]) -> str:
    return PREFIX + "__".join(where).upper()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the known name most similar to ``name``; empty if there is none."""
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


_AFTER_KEY = re.compile(r"""\s*(?:[\w.\s-]|"[^"]*"|'[^']*')+=\s*""")
_QUOTED = re.compile(r""""[^"]*"|'[^']*'|#.*""")
_BARE = r"(?!(?:true|false|inf|nan)\b)[A-Za-z~./]"
_BARE_INSIDE = re.compile(rf"[\[=]\s*{_BARE}|,\s*{_BARE}[^=]*[,\]]")
_BARE_ALONE = re.compile(rf"\s*{_BARE}[^=]*")

# Keys whose value may be a secret, or contain one.
_SECRET = frozenset(("secret_key", "spend_key", "forward_token", "keys", "byok", "proxy", "base_url", "metadata"))
_WORDS = re.compile(r"[A-Za-z0-9*._:/@-][A-Za-z0-9*._:/@ -]{0,63}")
_LIKE_A_KEY = re.compile(r"(?i)sk[-_]|aks_|lava_|gsk_|xai-|aiza|eyj|local[-_]|bearer")


def shown(value: object) -> str:
    """Return a wrong value as written; empty if it might be a misplaced secret."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)[:20]
    if not isinstance(value, str) or not _WORDS.fullmatch(value) or _LIKE_A_KEY.match(value):
        return ""
    # Keys are long, with digits and capitals; names that people choose are not.
    odd = sum(letter.isdigit() or letter.isupper() for letter in value)
    return f'"{value}"' if len(value) <= 12 or odd <= 4 else ""


def instead(value: object) -> str:
    """Return the end of a sentence about an expected value: ``, not "loud"``, or nothing."""
    text = shown(value)
    return f", not {text}" if text else ""


class Sources:
    """The three sources as tables, with the position of each key."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.file: File | None = None
        self.files: list[Path] = []  # those behind ``file:``, readable or not
        self.broken = False
        self.lines: dict[Where, int] = {}
        self.variables: dict[tuple[str, ...], str] = {}
        self.flags: set[Where] = set()
        self.from_file: Table = {}
        self.from_environment: Table = {}
        self.from_flags: Table = {}

    def says(self, where: Where) -> Literal["flag", "environment", "file"] | None:
        """Return the source that sets a key."""
        for flag in self.flags:
            if where[: len(flag)] == flag:
                return "flag"
        if value_at(self.from_environment, where) is not None:
            return "environment"
        return "file" if where in self.lines else None

    def value(self, where: Where) -> object:
        """Return the value in the source that sets a key; ``None`` if it may be a secret."""
        if not _SECRET.isdisjoint(where):
            return None
        said = self.says(where)
        return value_at(
            {"flag": self.from_flags, "environment": self.from_environment, "file": self.from_file}.get(said or "", {}),
            where,
        )

    def label(self, where: Where) -> tuple[int, str]:
        """Return a sort key for a fault at ``where``, and its position in words."""
        said = self.says(where)
        if said == "flag":
            return 2**31, "command line"
        if said == "environment":
            above = [key for key in self.variables if where[: len(key)] == key]
            below = [key for key in self.variables if key[: len(where)] == where]
            return 2**30, self.variables[max(above, key=len) if above else min(below, key=len)]
        return self.line(where)

    def line(self, where: Where) -> tuple[int, str]:
        """Return the same for the file alone: the line of the key, or of the nearest table around it."""
        for length in range(len(where), 0, -1):
            if where[:length] in self.lines:
                line = self.lines[where[:length]]
                return line, f"{self.path}:{line}"
        return 0, str(self.path) if self.path else "configuration"


class Faults:
    """All faults so far, each with its position."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.places: set[Where] = set()
        self.found: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def sentences(self) -> list[str]:
        """Return one sentence per fault, in the order of the file, then variables, then flags."""
        return [sentence for _, sentence in sorted(dict.fromkeys(self.found), key=lambda fault: fault[0])]

    def add(self, where: Where, message: str) -> None:
        order, place = self.sources.label(where)
        self.places.add(where)
        self.found.append((order, f"{place}: {dotted(where)}: {message}"))

    def add_in_file(self, where: Where, message: str) -> None:
        """Add a fault in the file, whichever source sets the key."""
        order, place = self.sources.line(where)
        self.found.append((order, f"{place}: {dotted(where)}: {message}"))

    def add_file(self, message: str, line: int | None = None) -> None:
        self.sources.broken = True
        place = f"{self.sources.path}:{line}" if line else str(self.sources.path)
        self.found.append((line or 0, f"{place}: {message}"))

    def add_variable(self, name: str, message: str) -> None:
        self.found.append((2**30, f"{name}: {message}"))

    def add_shape(self, detail: ErrorDetails) -> None:
        """Add a fault found by pydantic, unless a more precise one of ours has the same position."""
        where = detail["loc"]
        if where not in self.places:
            self.add(where, _plain_words(detail, self.sources.value(where), self.sources.says(where) == "environment"))


def dotted(where: Where) -> str:
    """Return a path as people write it: ``projects.website.keys[0]``."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = (
                part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + part.encode("unicode_escape").decode() + '"'
            )
            text += f".{shown}" if text else shown
    return text


def _plain_words(detail: ErrorDetails, value: object, in_variable: bool) -> str:
    context = detail.get("ctx", {})
    kind = detail["type"]
    as_json = "; in a variable it is written as JSON" if in_variable else ""
    words = {
        "missing": "is required",
        "int_type": "must be a whole number, without quotes",
        "int_parsing_size": "is too large",
        "float_type": "must be a number of seconds, without quotes",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false, without quotes",
        "string_type": "must be a string, in quotes",
        "string_too_short": "must not be empty",
        "string_pattern_mismatch": "must not hold control characters",
        "tuple_type": f"must be a list{as_json}",
        "dict_type": f"must be a table{as_json}",
        "model_type": f"must be a table{as_json}",
    }
    if in_variable:
        words |= {
            "int_type": "must be a whole number",
            "float_type": "must be a number",
            "bool_type": "must be true or false",
        }
    if kind in words:
        return words[kind] + (instead(value) if kind.endswith("_type") else "")
    if kind == "fault":
        return str(context["message"])
    if kind in ("literal_error", "enum"):
        close = did_you_mean(str(value).lower(), re.findall(r"'([^']+)'", context["expected"])) if shown(value) else ""
        return f"must be {context['expected']}{instead(value)}{close}"
    for bound, comparison in (
        ("ge", "at least"),
        ("gt", "more than"),
        ("le", "at most"),
        ("lt", "less than"),
    ):
        if bound in context:
            return f"must be {comparison} {int(context[bound])}{instead(value)}"
    return f"is not valid ({kind})"


def user_config(environ: Mapping[str, str]) -> Path | None:
    """Return the file in the user's configuration directory, whether it exists or not; None without a home directory."""
    if environ is os.environ:
        import platformdirs

        try:
            return platformdirs.user_config_path("lava-proxy", appauthor=False) / "config.toml"
        except RuntimeError:  # a numeric user of a container, without a passwd entry and without HOME
            return None
    # platformdirs reads only the environment of the process. Another mapping is from a test or an embedding program, and
    # must not lead to the file of the user who runs it.
    home = environ.get("XDG_CONFIG_HOME") or (environ.get("HOME") and f"{environ['HOME']}/.config")
    return Path(home) / "lava-proxy" / "config.toml" if home else None


def find_config(environ: Mapping[str, str], system: Path = SYSTEM_CONFIG) -> Path | None:
    """Return the first existing default configuration file.

    Never one in the current directory: a cloned repository must not decide where a key is sent.
    """
    places = [user_config(environ)]
    if os.name == "posix":  # on Windows any user may create \\etc
        places.append(system)
    # lexists: a dangling link is the user's mistake, and reading it reports it.
    return next((place for place in places if place is not None and os.path.lexists(place)), None)


def read_config(path: Path, faults: Faults) -> None:
    """Read the file, and the line of each of its keys."""
    sources = faults.sources
    sources.path = path.absolute()
    try:
        sources.file = read_file(sources.path, MAX_CONFIG_BYTES)
        sources.file.require_own()
        text = decode(sources.file)
    except FileNotFoundError:
        faults.add_file("no such file")
        return
    except UnreadableReference as error:
        faults.add_file(str(error))
        return
    try:
        sources.from_file = tomllib.loads(text)
        sources.lines = key_lines(text)
    except (ValueError, RecursionError) as error:
        message = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value that cannot be read"
        at = re.search(r"\(at line (\d+), column (\d+)\)", message)
        # A message of tomllib quotes at most one character, never a value.
        end = text.count("\n") + 1 if "(at end of document)" in message else None
        unquoted = at is not None and _lacks_quotes(text.split("\n")[int(at[1]) - 1])
        quotes = '; a string stands in quotes, as in name = "text"' if unquoted else ""
        faults.add_file(f"not valid TOML: {message}{quotes}", int(at[1]) if at else end)
        return


def _lacks_quotes(line: str) -> bool:
    """Whether this line of invalid TOML has a string without its quotes."""
    value = _AFTER_KEY.sub("", line, count=1)
    if value == line:  # perhaps an element of a list
        return _BARE_ALONE.fullmatch(line) is not None
    if value[:1] in ("[", "{"):
        return _BARE_INSIDE.search(_QUOTED.sub("0", value)) is not None
    if value[:1] in ("", "#", '"', "'"):
        return False
    try:
        tomllib.loads(f"value = {value}")
    except ValueError:
        return True
    return False


def read_environment(model: type[BaseModel], environ: Mapping[str, str], faults: Faults) -> None:
    """Read the ``LAVA_PROXY_*`` variables of ``model``'s keys; an unknown or contradictory one is a fault."""
    tree = key_tree(model)
    wanted: dict[str, str] = {}
    sources = faults.sources
    # By depth, so that a table given as JSON is applied before the keys that are set in it one by one.
    for name in sorted(environ, key=lambda name: (name.count("__"), name)):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper == "LAVA_PROXY_CONFIG" or _is_kubernetes(upper, environ[name]):
            continue
        where = tuple(name[len(PREFIX) :].lower().split("__"))
        if not _is_known(where, tree):
            nearest = _nearest_variable(where, tree)
            unknown = "unknown setting" + (f"; did you mean {nearest}?" if nearest else "")
            faults.add_variable(name, GONE.get(where, unknown))
            continue
        sources.variables[where] = name
        wanted[name.lower()] = environ[name]
    if not wanted:
        return

    from pydantic_settings import EnvSettingsSource  # late: most starts have no such variable

    class Variables(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return wanted

        def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
            # A list may be a single string ("0.0.0.0"), so a value that is not JSON is left to the later checks:
            # they know what is allowed, and report it without the value (JSONDecodeError contains it).
            try:
                decoded = super().decode_complex_value(field_name, field, value)
            except (ValueError, RecursionError):
                return value
            return decoded if isinstance(decoded, list | dict) else value

    # The source uses only the fields of the class; a BaseSettings would also read the environment by itself.
    variables = Variables(cast("type[BaseSettings]", model), env_prefix=PREFIX, env_nested_delimiter="__")
    sources.from_environment = variables()
    for where in sources.variables:
        _type_variable(model, sources.from_environment, where)
        shadowing = next((key for key in sources.variables if key != where and where[: len(key)] == key), None)
        if shadowing and value_at(sources.from_environment, where) is None:
            faults.add_variable(
                sources.variables[where],
                f"contradicts {sources.variables[shadowing]}, which is no table: unset one",
            )
    _restore_case(sources)


def _is_kubernetes(name: str, value: str) -> bool:
    if name.startswith("LAVA_PROXY_PORT") and value.startswith("tcp://"):
        return True
    return _KUBERNETES.fullmatch(name) is not None


def _is_known(where: tuple[str, ...], tree: Table | None) -> bool:
    for number, part in enumerate(where):
        if not part:
            return False
        if tree is None:
            return where[number - 1] in _FREE_TABLES and number == len(where) - 1
        if part not in tree and "*" not in tree:
            return False
        tree = tree.get(part, tree.get("*"))
    return True


def _type_variable(model: type[BaseModel], data: Table, where: tuple[str, ...]) -> None:
    """Convert the text of a variable to a number or a boolean if the key has that type."""
    text = value_at(data, where)
    if not isinstance(text, str):
        return
    kinds = _kinds(model, where)
    number = text.strip().replace("_", "")
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}", number):
        put_at(data, where, int(number))
    elif float in kinds and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", number):
        put_at(data, where, float(number))
    elif bool in kinds and number.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        put_at(data, where, number.lower() in ("true", "1", "yes", "on"))


def _kinds(model: type[BaseModel], where: tuple[str, ...]) -> set[object]:
    """Return the type of a known key, with the members of a union."""
    kind: object = model
    for part in where:
        # In a plain table this part is a name that the user chose.
        fields = cast("type[BaseModel]", kind).model_fields if _is_part(kind) else None
        kind = get_args(kind)[-1] if fields is None else fields[part].annotation
    members = get_args(kind)
    return {kind, *members, *(inner for member in members for inner in get_args(member)[:1])}


def _restore_case(sources: Sources) -> None:
    """Restore the capitals of the one provider that has them: variable names do not distinguish case."""
    spelling = {name.lower(): name for name in BUILTIN}
    for project in table_at(sources.from_environment, "projects").values():
        byok = table_at(project, "byok")
        for name in list(byok):
            byok[spelling.get(name, name)] = byok.pop(name)
    for where, variable in list(sources.variables.items()):
        if where[2:3] == ("byok",) and len(where) == 4:
            sources.variables[(*where[:3], spelling.get(where[3], where[3]))] = variable


def table_at(data: object, *path: str) -> Table:
    """Return the table at ``path``, or an empty one if there is none."""
    found = value_at(data, path)
    return found if isinstance(found, dict) else {}


def value_at(data: object, where: Where) -> Any:
    """Return the value at a path, or None."""
    for part in where:
        if isinstance(data, list):
            data = dict(enumerate(data))
        data = data.get(part) if isinstance(data, dict) else None
    return data


def put_at(data: Any, where: Where, value: object) -> None:
    """Set the value at a path, and create missing tables. Do nothing if a part of the path is no table."""
    *above, last = where
    for part in above:
        data = data.setdefault(part, {}) if isinstance(data, dict) else None
    if isinstance(data, dict | list):
        data[last] = value  # type: ignore[index]  # a path with a number ends in a list


def merge(below: Table, above: Table) -> None:
    """Merge one source over another: tables key by key, anything else as a whole. Copies what changes later."""
    for key, value in above.items():
        if isinstance(value, dict):
            inner = below.get(key)
            below[key] = inner = inner if isinstance(inner, dict) else {}
            merge(inner, value)
        elif value is None:  # a JSON null removes the value of the source below
            below.pop(key, None)
        else:
            below[key] = list(value) if isinstance(value, list) else value
