"""Secret references and the files they point to."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import keyring
import pytest
from keyring.backend import KeyringBackend

from proxy.config.references import MAX_SECRET_BYTES, UnreadableReference, locate, read_file, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and FIFOs are POSIX")


def held(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """A file with these bytes."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "literal", ["plain", "with spaces ", "{braces}", "$HOME", "ünïcødé-鍵", "environment:X", "File:x", "a:b", '"\\']
)
def test_literal_is_kept_exactly(tmp_path: Path, literal: str) -> None:
    """What is no reference is the secret itself, whatever characters it has."""
    assert resolve(literal, tmp_path, {}) == (literal, None)


def test_environment(tmp_path: Path) -> None:
    """env:NAME is the variable's value, unchanged."""
    assert resolve("env:A_KEY", tmp_path, {"A_KEY": " env:B \n"}) == (" env:B \n", None)


@pytest.mark.parametrize(("environ", "state"), [({}, "not set"), ({"A_KEY": ""}, "empty")])
def test_environment_unset(tmp_path: Path, environ: dict[str, str], state: str) -> None:
    """A variable that is unset or empty is named, with what is wrong."""
    with pytest.raises(UnreadableReference, match=f"A_KEY is {state}"):
        resolve("env:A_KEY", tmp_path, environ)


def test_pasted_key_is_not_repeated(tmp_path: Path) -> None:
    """A key written after a scheme by mistake is not a name, and does not stand in the message."""
    pasted = "aks_live_" + "Pasted77"
    for scheme in ("env", "file", "keyring"):
        with pytest.raises(UnreadableReference) as caught:
            resolve(f"{scheme}:{pasted}", tmp_path, {})
        assert pasted not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"key", "key"),
        (b"key\n", "key"),
        (b"key\r\n", "key"),
        (b"key\n\n", "key\n"),
        (b"key\r", "key\r"),
        (b" key ", " key "),
        (b"\xef\xbb\xbfkey", "key"),
    ],
)
def test_file(tmp_path: Path, data: bytes, value: str) -> None:
    """file:PATH is the file's text without one line end."""
    path = held(tmp_path / "key", data)
    assert resolve(f"file:{path}", tmp_path, {}) == (value, None)


def test_paths(tmp_path: Path) -> None:
    """A relative path starts beside the configuration, and ~/ at home."""
    held(tmp_path / "key", b"near")
    home = tmp_path / "home"
    home.mkdir()
    held(home / "key", b"home")
    assert resolve("file:key", tmp_path, {})[0] == "near"
    assert resolve("file:~/key", tmp_path, {"HOME": str(home)})[0] == "home"
    assert locate("/etc/x", tmp_path, {}).parts[1:] == ("etc", "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\0b", "NUL"),
        (b"line\n\xff\xfe", r"not UTF-8 text \(line 2\)"),
        (b"x" * (MAX_SECRET_BYTES + 1), "larger than 64 KiB"),
    ],
)
def test_file_without_a_secret(tmp_path: Path, data: bytes, reason: str) -> None:
    """A file that cannot hold a secret is refused, by its path and with the reason."""
    path = held(tmp_path / "key", data)
    with pytest.raises(UnreadableReference, match=reason) as caught:
        resolve(f"file:{path}", tmp_path, {})
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named, and so is one below something that is no directory."""
    held(tmp_path / "key", b"x")
    for path in (tmp_path / "no", tmp_path / "key" / "below", tmp_path / "no" / "where"):
        with pytest.raises(UnreadableReference, match="does not exist") as caught:
            resolve(f"file:{path}", tmp_path, {})
        assert str(path) in str(caught.value)


def test_directory(tmp_path: Path) -> None:
    """A directory is no file."""
    with pytest.raises(UnreadableReference, match="is a directory, not a file"):
        resolve(f"file:{tmp_path}", tmp_path, {})


@posix
def test_fifo_socket_device(tmp_path: Path) -> None:
    """What would block or never end is refused at once."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnreadableReference, match="is a FIFO"):
        read_file(tmp_path / "fifo", 10)
    with pytest.raises(UnreadableReference, match="is a device"):
        read_file(type(tmp_path)("/dev/zero"), 10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(UnreadableReference):
            read_file(tmp_path / "s", 10)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    """A secret that group or others may read is used (Docker mounts it so), with a warning that names path and mode."""
    path = held(tmp_path / "key", b"the value", mode)
    value, warning = resolve(f"file:{path}", tmp_path, {})
    assert value == "the value"
    assert warning is not None
    assert str(path) in warning
    assert f"{mode:04o}" in warning
    assert "the value" not in warning


@posix
def test_link(tmp_path: Path) -> None:
    """A symbolic link is followed (Kubernetes mounts secrets so), and the mode of the file itself counts."""
    held(tmp_path / "key", b"value")
    (tmp_path / "link").symlink_to("key")
    assert resolve("file:link", tmp_path, {}) == ("value", None)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnreadableReference, match="cannot be read"):
        resolve("file:loop", tmp_path, {})


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_secret_of_another_user(tmp_path: Path) -> None:
    """A secret file that belongs to somebody else, who can change it, is refused with the owner and what to do."""
    path = held(tmp_path / "key", b"value")
    os.chown(path, 4321, -1)
    with pytest.raises(UnreadableReference, match=r"uid 4321, mode 0600.*chown") as caught:
        resolve(f"file:{path}", tmp_path, {})
    assert "value" not in str(caught.value)


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o664, 0o666, 0o777])
def test_a_secret_that_others_may_write(tmp_path: Path, mode: int) -> None:
    """It is refused with path, mode and the command that repairs it, and used once that was done."""
    path = held(tmp_path / "key", b"value", mode)
    (tmp_path / "link").symlink_to(path)
    for written in (f"file:{path}", "file:link"):
        with pytest.raises(UnreadableReference) as caught:
            resolve(written, tmp_path, {})
        assert f"(mode {mode:04o}): chmod go-w {tmp_path}" in str(caught.value)
    path.chmod(mode & ~0o022)
    assert resolve("file:link", tmp_path, {})[0] == "value"


class Box(KeyringBackend):
    """A real keyring backend that keeps its passwords in memory."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library has no types here
        self.kept = {("my/service", "me"): "from the ring"}
        self.broken = False

    def get_password(self, service: str, username: str) -> str | None:
        """As the library asks."""
        if self.broken:
            raise RuntimeError("locked: from the ring")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        """As the library asks."""
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        """As the library asks."""
        del self.kept[service, username]


@pytest.fixture
def ring() -> Iterator[Box]:
    """A keyring of this test's own."""
    before = keyring.get_keyring()
    box = Box()
    keyring.set_keyring(box)
    yield box
    keyring.set_keyring(before)


def test_keyring(tmp_path: Path, ring: Box) -> None:
    """keyring:SERVICE/USER is that password; the service may have slashes."""
    assert resolve("keyring:my/service/me", tmp_path, {}) == ("from the ring", None)


def test_keyring_without_it(tmp_path: Path, ring: Box) -> None:
    """A missing password is named by service and user; a broken keyring is said to be that, without its words."""
    with pytest.raises(UnreadableReference, match="no password of 'me' for 'other'"):
        resolve("keyring:other/me", tmp_path, {})
    ring.broken = True
    with pytest.raises(UnreadableReference, match=r"cannot be used \(RuntimeError\)") as caught:
        resolve("keyring:my/service/me", tmp_path, {})
    assert "from the ring" not in str(caught.value)


@pytest.mark.parametrize(
    "written", ["keyring:", "keyring:service", "keyring:/user", "keyring:service/", "file:", "env:"]
)
def test_half_a_reference(tmp_path: Path, written: str) -> None:
    """A scheme without its parts is refused, not taken as a literal secret."""
    with pytest.raises(UnreadableReference):
        resolve(written, tmp_path, {})
