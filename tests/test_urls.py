"""Addresses in the configuration: one strict reading."""

from __future__ import annotations

import pytest

from proxy.protocol.urls import is_loopback, is_public_name, parse_address


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("https://API.Example.com", "https://api.example.com"),
        ("HTTPS://api.example.com:8443/v1/", "https://api.example.com:8443/v1"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
        ("https://a_b.example.com/a%20b/~x", "https://a_b.example.com/a%20b/~x"),
    ],
)
def test_normal_form(text: str, base: str) -> None:
    """An address keeps its path and port, loses the slash at its end, and its host is lower-case."""
    assert parse_address(text).base() == base


def test_default_path() -> None:
    """A default path stands in only where there is none."""
    assert parse_address("https://a.example.com/").base("/v1") == "https://a.example.com/v1"
    assert parse_address("https://a.example.com/x/").base("/v1") == "https://a.example.com/x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api.example.com",
        "ftp://api.example.com",
        "https://",
        "https:///v1",
        "https://:80",
        "https://user@api.example.com",
        "https://user:hunter2@api.example.com",
        "https://api.example.com@evil.example",
        "https://api.example.com?x=1",
        "https://api.example.com/#x",
        "https://api.example.com?",
        "https://api.example.com:0",
        "https://api.example.com:65536",
        "https://api.example.com:80:80",
        "https://api.example.com:abc",
        "https://api.example.com/a/../b",
        "https://api.example.com/./b",
        "https://api.example.com/a/%2e%2E",
        "https://api.example.com/a%2fb",
        "https://api.example.com/a//b",
        "https://api.example.com/a%zz",
        "https://api.example.com\\@evil.example",
        "https://api.exa\tmple.com",
        "https://api.example.com/\n",
        " https://api.example.com",
        "https://bücher.example",
        "https://-a.example.com",
        "https://a..example.com",
        "https://a.example.com.",
        "https://0x7f.1",
        "https://2130706433",
        "https://127.1",
        "https://::1/",
        "https://[127.0.0.1]/",
        "https://[::1",
        "https://" + "a" * 64 + ".example.com",
        "https://" + "a." * 130 + "com",
    ],
)
def test_refused(text: str) -> None:
    """What two readers could read differently is no address, and the message repeats nothing of it."""
    with pytest.raises(ValueError, match="must") as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)
    assert "example" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    """The names and addresses of this machine alone."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "example.com", "", "127.1"])
def test_not_loopback(host: str) -> None:
    """A wildcard, and what only looks like loopback, reaches further."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["localhost", "a.localhost", "box.local", "x.internal", "nas.lan", "me.home.arpa", "single", "10.0.0.1", "::1"],
)
def test_no_public_name(host: str) -> None:
    """Nobody on the internet can resolve these."""
    assert not is_public_name(host)


def test_public_name() -> None:
    """A name with a dot is public, whatever private ending it has inside."""
    assert is_public_name("api.local.example.com")
    assert is_public_name("mylocal.com")
