"""``lava-proxy init``: a first configuration, with a local key of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from proxy.cli import addresses
from proxy.cli.terminal import Exit, Screen, failed, put_json

REFERENCE = "config.example.toml"

TEMPLATE = """\
# lava-proxy: your configuration. `lava-proxy check` says whether it holds together, and who pays for what;
# `lava-proxy init --reference` shows every setting there is.
#
# A line that begins with "#" and no space is a setting that is not used yet: take the "#" away.
# A secret is written as env:NAME, file:PATH, keyring:SERVICE/USER, or as it is. This file holds a key: it is
# readable by you alone (mode 0600), and lava-proxy refuses it when others can read it.

# The project of a request that names none.
default_project = "main"

[server]
#port = 5282
# Your tools send this as their API key; without it no program on this machine has access. It is valid for this daemon
# only. Each project may have keys of its own, too.
keys = ["{key}"]

[lava]
# Your Lava secret key. `lava-proxy login` brings one; or set the variable, or write another reference here.
#secret_key = "env:LAVA_SECRET_KEY"

# A project says who pays. With nothing in it: your own (merchant) wallet.
[projects.main]

# A customer pays, from the wallet behind a connection.
#[projects.website]
#connection_id = "conn_abc123"
#meter = "website-chat"

# You pay, and usage is attributed to a meter.
#[projects.costs]
#meter = "internal"

# Your own provider keys: Lava only meters.
#[projects.lab.byok]
#openai = "env:OPENAI_API_KEY"

# Names that tools may use as "model".
[models]
#fast = "groq/llama-3.1-8b-instant"
"""


def run(path: Path | None, config: Path | None, *, as_json: bool) -> int:
    """Write the first configuration, never over an existing file. Return the exit code."""
    wanted = path or config or _usual()
    if wanted is None:
        return failed(
            "there is no home directory to keep a configuration in: say where, with --path FILE", as_json=as_json
        )
    target = Path(os.path.abspath(wanted))
    # Not "sk-…": what looks like a provider's key gets pasted into a provider's form.
    key = "local_" + secrets.token_hex(20)
    try:
        _write(target, TEMPLATE.format(key=key))
    except FileExistsError:
        what = (
            "is a directory: name the file in it"
            if target.is_dir()
            else "exists and stays as it is: name another file with --path, or remove this one first"
        )
        return failed(f"{target} {what}", as_json=as_json)
    except OSError as error:
        why = f"{target} cannot be written ({os.strerror(error.errno or 0)}): name another file with --path"
        return failed(why, as_json=as_json)
    base = addresses.url("127.0.0.1", 5282)
    found_by_itself = target == _usual()
    if as_json:
        put_json({"ok": True, "config": str(target), "local_key": key, "openai_base_url": f"{base}/v1"})
        return Exit.OK
    screen = Screen()
    screen.write("Written: ", "good")
    screen.line(f"{target} (mode 0600)")
    option = "" if found_by_itself else f" --config {_quoted(target)}"
    has_key = _known_key()
    screen.title("Next")
    screen.line(
        "1. Your Lava secret key: "
        + (f"{has_key}, good." if has_key else "log in, or set it, or write it into the file.")
    )
    if not has_key:
        screen.line(f"lava-proxy login{option}", "code", indent=5)
        screen.line("export LAVA_SECRET_KEY=…", "code", indent=5)
    screen.line("2. Look whether it holds together, and start:")
    screen.line(f"lava-proxy check{option}", "code", indent=5)
    screen.line(f"lava-proxy serve{option}", "code", indent=5)
    screen.line("3. Point a tool at it (Anthropic and Google tools take the address without /v1):")
    screen.line(f"export OPENAI_BASE_URL={base}/v1", "code", indent=5)
    screen.line(f"export OPENAI_API_KEY={key}", "code", indent=5)
    return Exit.OK


def show_reference(*, as_json: bool) -> int:
    """Print config.example.toml, which has every setting. Return the exit code."""
    text = reference().read_text(encoding="utf-8")
    if as_json:
        put_json({"reference": text})
    else:
        Screen().line(text.rstrip("\n"))
    return Exit.OK


def reference() -> Path:
    """Return the file: in the package if that was installed from a wheel, else beside the package in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / REFERENCE
    return installed if installed.exists() else package.parent / REFERENCE


def _known_key() -> str:
    """Return where a key already comes from, or an empty string."""
    if os.environ.get("LAVA_SECRET_KEY"):
        return "LAVA_SECRET_KEY is set"
    from proxy.config.credentials import find
    from proxy.config.references import UnreadableReference

    try:
        return "you are logged in" if find(os.environ) is not None else ""
    except UnreadableReference:
        return ""


def _usual() -> Path | None:
    """Return the file that the daemon finds without --config, or None if there is no home directory."""
    named = os.environ.get("LAVA_PROXY_CONFIG")
    if named:
        return Path(os.path.abspath(named))
    from proxy.config.sources import user_config

    try:
        found = user_config(os.environ)
    except RuntimeError:  # from platformdirs, if the system has no home for this user
        return None
    return found if found is not None and found.is_absolute() else None


def _write(target: Path, text: str) -> None:
    """Create the file with mode 0600, whatever the umask. Raises ``FileExistsError`` for anything of that name."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_EXCL also refuses a link, wherever it leads.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            if hasattr(os, "fchmod"):  # a umask such as 0777 would have taken our own rights, too
                os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
