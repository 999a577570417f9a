"""What a login brought, kept between programs: in the system's keyring where there is one, else in a file.

``credentials.json`` beside the user's configuration says who is logged in, and where the keys are: in itself (mode 0600)
or in the keyring. So nobody who has never logged in waits for a keyring, which may take half a second or ask for a
password. No message of this module holds a value.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from proxy.redaction import Secret
from proxy.references import MAX_SECRET_BYTES, Unreadable, decode, read_file
from proxy.sources import user_config
from proxy.urls import is_loopback, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SERVICE = "lava-proxy"
"""The keyring's name for us."""

_IDS = ("merchant_id", "account_id", "wallet_id", "secret_key_id", "wallet_key_id", "logged_in_at")
_SECRETS = ("secret_key", "wallet_key")
_NO_CONTROL = re.compile(r"[^\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Login:
    """Who is logged in. ``base_url`` is where the key is good: ``auto`` (by its prefix) or an address; ``logged_in_at`` is
    ISO 8601."""

    secret_key: Secret
    base_url: str = "auto"
    merchant_id: str | None = None
    account_id: str | None = None
    wallet_id: str | None = None
    secret_key_id: str | None = None
    wallet_key_id: str | None = None
    wallet_key: Secret | None = None
    logged_in_at: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A login and where it is: ``path`` is always there, the keys are in it or in the keyring."""

    login: Login
    path: Path
    where: Literal["keyring", "file"]


def place(environ: Mapping[str, str]) -> Path | None:
    """The file, whether it exists or not; None where there is no home."""
    config = user_config(environ)
    return None if config is None else config.with_name("credentials.json")


def find(environ: Mapping[str, str]) -> Kept | None:
    """The login that is kept, or None. Raises ``Unreadable`` where there is one that cannot be used."""
    path = place(environ)
    if path is None or not os.path.lexists(path):
        return None
    document = _document(path)
    where: Literal["keyring", "file"] = "file"
    values = document
    if document.get("kept") == "keyring":
        where = "keyring"
        values = _from_keyring(path, document)
    key, wallet_key = (values.get(name) for name in _SECRETS)
    if not isinstance(key, str) or not _NO_CONTROL.fullmatch(key):
        raise Unreadable(f"{path} holds no login")
    base_url = document.get("base_url", "auto")
    if base_url != "auto" and not _is_sound(base_url):
        raise Unreadable(f"{path} names no address where a key may be sent")
    ids = {name: str(document[name]) for name in _IDS if document.get(name)}
    wallet = Secret(wallet_key) if isinstance(wallet_key, str) and wallet_key else None
    return Kept(Login(Secret(key), base_url, wallet_key=wallet, **ids), path, where)


def keep(login: Login, environ: Mapping[str, str], *, keyring: bool = True) -> Kept:
    """Keep this login instead of any other; ``keyring=False`` wants the file.

    Raises ``OSError`` where the file cannot be written, ``Unreadable`` where there is no home for one.
    """
    path = place(environ)
    if path is None:
        raise Unreadable("there is no home directory to keep a login in")
    values = {"secret_key": login.secret_key.reveal()}
    if login.wallet_key is not None:
        values["wallet_key"] = login.wallet_key.reveal()
    document: dict[str, Any] = {"base_url": login.base_url}
    document |= {name: getattr(login, name) for name in _IDS if getattr(login, name) is not None}
    before = _entry_of(path)
    user = f"login-{secrets.token_hex(8)}"
    in_keyring = keyring and _to_keyring(user, json.dumps(values))
    try:
        found = document | ({"kept": "keyring", "keyring_user": user} if in_keyring else values)
        replace_file(path, (json.dumps(found, indent=2) + "\n").encode())
    except BaseException:
        if in_keyring:
            _drop(user)
        raise
    if before is not None:
        _drop(before)
    return Kept(login, path, "keyring" if in_keyring else "file")


def forget(environ: Mapping[str, str]) -> bool:
    """Drop what is kept, readable or not; False when nothing was. Raises ``OSError``, and ``Unreadable`` where the keyring
    does not give its part away (the file is gone then all the same)."""
    path = place(environ)
    if path is None or not os.path.lexists(path):
        return False
    entry = _entry_of(path)
    path.unlink()
    if entry is not None and not _drop(entry):
        raise Unreadable(f"the keyring of this machine still holds the key: remove {SERVICE}/{entry} there")
    return True


def _document(path: Path) -> dict[str, Any]:
    try:
        file = read_file(path, MAX_SECRET_BYTES)
        if file.readable_by_others or file.writable_by_others:
            raise Unreadable(f"is open to group or others (mode {file.mode:04o}): chmod 600 it")
        file.require_own()
        found = json.loads(decode(file))
    except FileNotFoundError:
        raise Unreadable(f"{path} leads nowhere") from None
    except Unreadable as error:
        raise Unreadable(f"{path} {error}") from None
    except (ValueError, RecursionError):
        raise Unreadable(f"{path} is not JSON") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path} holds no login")
    return found


def _is_sound(base_url: object) -> bool:
    if not isinstance(base_url, str):
        return False
    try:
        address = parse_address(base_url)
    except ValueError:
        return False
    return address.scheme == "https" or is_loopback(address.host)


def _entry_of(path: Path) -> str | None:
    """The name of the entry in the keyring, where the file tells one."""
    try:
        found = _document(path).get("keyring_user")
    except Unreadable:
        return None
    return found if isinstance(found, str) and found else None


def _from_keyring(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    import keyring  # late: half a second on some machines

    user = document.get("keyring_user")
    if not isinstance(user, str) or not user:
        raise Unreadable(f"{path} does not say where in the keyring the key is")
    try:
        text = keyring.get_password(SERVICE, user)
    except Exception as error:  # noqa: BLE001 - a backend is foreign code (D-Bus, the system's own) and raises anything
        raise Unreadable(f"the keyring of this machine cannot be used ({type(error).__name__})") from None
    if text is None:
        raise Unreadable("the keyring of this machine no longer holds the key")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _to_keyring(user: str, text: str) -> bool:
    """Whether a keyring took it. Only one that the library itself would recommend: others keep it in the clear."""
    import keyring

    try:
        # -1 and 0 are "none" and "refuses", below 1 are files.
        if keyring.get_keyring().priority < 1:
            return False
        keyring.set_password(SERVICE, user, text)
        return keyring.get_password(SERVICE, user) == text
    except Exception:  # noqa: BLE001 - as above; the file takes it
        return False


def _drop(user: str) -> bool:
    import keyring

    try:
        keyring.delete_password(SERVICE, user)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Write the file in one step; mode 0600 in a folder of mode 0700, whatever the umask. Raises ``OSError``."""
    _make(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(draft, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            if hasattr(os, "fchmod"):  # a umask such as 0777 would have taken our own rights, too
                os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _make(folder: Path) -> None:
    """Make it and what is missing above it, each for the user alone (``parents=True`` would open the upper ones)."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if os.name == "posix":
            folder.chmod(0o700)
