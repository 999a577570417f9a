"""Storage of the credentials of a login: in the system's keyring if there is one, else in a file.

``credentials.json`` beside the user's configuration names the account, and contains the keys (mode 0600) or refers to the
keyring. Without a login, no keyring is opened, which may take half a second or ask for a password. No message of this module
contains a value.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from proxy.config.references import MAX_SECRET_BYTES, UnreadableReference, decode, read_file
from proxy.config.sources import user_config
from proxy.protocol.redaction import Secret
from proxy.protocol.urls import is_loopback, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SERVICE = "lava-proxy"
"""The service name in the keyring."""

_IDS = ("merchant_id", "account_id", "wallet_id", "secret_key_id", "wallet_key_id", "logged_in_at")
_SECRETS = ("secret_key", "wallet_key")
_NO_CONTROL = re.compile(r"[^\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Login:
    """A login. ``base_url`` is the Lava for its key: ``auto`` (by its prefix) or an address; ``logged_in_at`` is ISO 8601."""

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
    """A stored login. The file ``path`` always exists; the keys are in it or in the keyring."""

    login: Login
    path: Path
    where: Literal["keyring", "file"]


def place(environ: Mapping[str, str]) -> Path | None:
    """Return the path of the file, whether it exists or not; None if there is no home directory."""
    config = user_config(environ)
    return None if config is None else config.with_name("credentials.json")


def find(environ: Mapping[str, str]) -> Kept | None:
    """Return the stored login, or None. Raises ``UnreadableReference`` if there is one that cannot be used."""
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
        raise UnreadableReference(f"{path} holds no login")
    base_url = document.get("base_url", "auto")
    if base_url != "auto" and not _is_sound(base_url):
        raise UnreadableReference(f"{path} names no address where a key may be sent")
    ids = {name: str(document[name]) for name in _IDS if document.get(name)}
    wallet = Secret(wallet_key) if isinstance(wallet_key, str) and wallet_key else None
    return Kept(Login(Secret(key), base_url, wallet_key=wallet, **ids), path, where)


def keep(login: Login, environ: Mapping[str, str], *, keyring: bool = True) -> Kept:
    """Store this login and replace any other; ``keyring=False`` uses the file.

    Raises ``OSError`` if the file cannot be written, ``UnreadableReference`` if there is no home directory for it.
    """
    path = place(environ)
    if path is None:
        raise UnreadableReference("there is no home directory to keep a login in")
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
    """Delete the stored login, readable or not. Return False if there was none.

    Raises ``OSError``, and ``UnreadableReference`` if the keyring entry cannot be deleted (the file is deleted nevertheless).
    """
    path = place(environ)
    if path is None or not os.path.lexists(path):
        return False
    entry = _entry_of(path)
    path.unlink()
    if entry is not None and not _drop(entry):
        raise UnreadableReference(f"the keyring of this machine still holds the key: remove {SERVICE}/{entry} there")
    return True


def _document(path: Path) -> dict[str, Any]:
    try:
        file = read_file(path, MAX_SECRET_BYTES)
        if file.readable_by_others or file.writable_by_others:
            raise UnreadableReference(f"is open to group or others (mode {file.mode:04o}): chmod 600 it")
        file.require_own()
        found = json.loads(decode(file))
    except FileNotFoundError:
        raise UnreadableReference(f"{path} leads nowhere") from None
    except UnreadableReference as error:
        raise UnreadableReference(f"{path} {error}") from None
    except (ValueError, RecursionError):
        raise UnreadableReference(f"{path} is not JSON") from None
    if not isinstance(found, dict):
        raise UnreadableReference(f"{path} holds no login")
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
    """Return the name of the keyring entry, if the file contains one."""
    try:
        found = _document(path).get("keyring_user")
    except UnreadableReference:
        return None
    return found if isinstance(found, str) and found else None


def _from_keyring(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    import keyring  # late: half a second on some machines

    user = document.get("keyring_user")
    if not isinstance(user, str) or not user:
        raise UnreadableReference(f"{path} does not say where in the keyring the key is")
    try:
        text = keyring.get_password(SERVICE, user)
    except Exception as error:  # noqa: BLE001 - a backend is foreign code (D-Bus, the system's own) and raises anything
        raise UnreadableReference(f"the keyring of this machine cannot be used ({type(error).__name__})") from None
    if text is None:
        raise UnreadableReference("the keyring of this machine no longer holds the key")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _to_keyring(user: str, text: str) -> bool:
    """Store it in the keyring, if the library recommends that keyring: others store plain text. Return whether it did."""
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
    """Write the file in one step; mode 0600 in a folder of mode 0700, with any umask. Raises ``OSError``."""
    _make(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(draft, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            if hasattr(os, "fchmod"):  # a umask such as 0777 would have removed our own rights, too
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
    """Create it and its missing parents, each for the user alone (``parents=True`` gives parents the default mode)."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if os.name == "posix":
            folder.chmod(0o700)
