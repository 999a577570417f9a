"""What one key asks of another: every combination that makes no sense is refused, with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from configurations import LAVA_KEY, LOCAL_KEY, faults, loaded, only_fault

from proxy.config.rules import RESERVED
from proxy.config.settings import ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path

# text of a file, the key with its line, and words of the message: what is wrong and what to do.
WRONG = {
    "connection without meter": ('[projects.a]\nconnection_id = "c"', ":2: projects.a.connection_id:", "add meter"),
    "customer without meter": ('[projects.a]\ncustomer_id = "c"', ":2: projects.a.customer_id:", "[projects.a]"),
    "both ids": (
        '[projects.a]\nconnection_id = "c"\ncustomer_id = "c"\nmeter = "m"',
        ":3: projects.a.customer_id:",
        "keep one of them",
    ),
    "disable_billing alone": (
        "[projects.a]\ndisable_billing = true",
        ":2: projects.a.disable_billing:",
        "leave it out",
    ),
    "disable_billing false": (
        '[projects.a]\nmeter = "m"\ndisable_billing = false',
        ":3: projects.a.disable_billing:",
        "customer_id",
    ),
    "disable_billing with connection": (
        '[projects.a]\nmeter = "m"\nconnection_id = "c"\ndisable_billing = true',
        ":4: projects.a.disable_billing:",
        "customer_id instead of connection_id",
    ),
    "token beside meter": (
        '[projects.a]\nforward_token = "env:T"\nmeter = "m"',
        ":2: projects.a.forward_token:",
        "beside meter: a ready credential",
    ),
    "token beside customer": (
        '[projects.a]\nforward_token = "env:T"\nmeter = "m"\ncustomer_id = "c"\ndisable_billing = true',
        ":2: projects.a.forward_token:",
        "customer_id, meter, disable_billing",
    ),
    "token beside secret key": (
        '[projects.a]\nforward_token = "env:T"\nsecret_key = "env:T"',
        ":2: projects.a.forward_token:",
        "keep one or the other",
    ),
    "spend key beside byok": (
        '[projects.a]\nbyok = "client"\nspend_key = "env:T"',
        ":3: projects.a.spend_key:",
        "beside byok",
    ),
    "spend key beside connection": (
        '[projects.a]\nspend_key = "env:T"\nconnection_id = "c"\nmeter = "m"',
        ":2: projects.a.spend_key:",
        "connection_id, meter",
    ),
    "both ready ones": (
        '[projects.a]\nforward_token = "env:T"\nspend_key = "env:T"',
        ":3: projects.a.spend_key:",
        "beside forward_token",
    ),
    "project in capitals": ("[projects.Web]", ":1: projects.Web:", "not a name for a project"),
    "project with __": ("[projects.a__b]", ":1: projects.a__b:", "no __"),
    "project with a dot": ('[projects."a.b"]', ':1: projects."a.b":', "a to z"),
    "project beginning with -": ("[projects.-a]", ":1: projects.-a:", "the first"),
    "project with a long name": (f"[projects.{'a' * 65}]", ":1: projects.", "at most 64"),
    "project without a name": ('[projects.""]', ':1: projects."":', "not a name"),
    "provider in capitals": (
        '[providers.X]\nbase_url = "https://a.acme.com"',
        ":1: providers.X:",
        "not a name for a provider",
    ),
    "built-in provider": (
        '[providers.groq]\nbase_url = "https://a.acme.com"',
        ":1: providers.groq:",
        "built-in provider, and one name must not mean two places: take another name, such as my-groq",
    ),
    "built-in in small letters": (
        '[providers.googleopenaicompatible]\nbase_url = "https://a.acme.com"',
        ":1: providers.googleopenaicompatible:",
        "built-in",
    ),
    "built-in by its other name": (
        '[providers.google-openai]\nbase_url = "https://a.acme.com"',
        ":1: providers.google-openai:",
        "built-in",
    ),
    "unknown byok provider": (
        '[projects.a.byok]\nopenia = "client"',
        ":2: projects.a.byok.openia:",
        "did you mean openai?",
    ),
    "byok in two spellings": (
        '[projects.a.byok]\ngoogleOpenaiCompatible = "client"\ngoogle-openai = "client"',
        ":3: projects.a.byok.google-openai:",
        "another name of googleOpenaiCompatible",
    ),
    "byok as another word": ('[projects.a]\nbyok = "tool"', ":2: projects.a.byok:", 'must be "client" or a table'),
    "unknown default_provider": (
        '[projects.a]\ndefault_provider = "antropic"',
        ":2: projects.a.default_provider:",
        "did you mean anthropic?",
    ),
    "unknown default_project": (
        'default_project = "websit"\n[projects.website]\n[projects.b]',
        ":1: default_project:",
        "did you mean website?",
    ),
    "default_project of none": ('default_project = "main"', ":1: default_project:", "add a project of that name"),
    "alias that is empty": ('[models]\n"" = "groq/x"', ':2: models."":', "not a name for a model"),
    "alias that is too long": (f'[models]\n"{"a" * 201}" = "groq/x"', ":2: models.aaa", "1 to 200"),
    "alias beyond ASCII": ('[models]\n"schnäll" = "groq/x"', ":2: models.", "printable ASCII"),
    "alias with a control character": ('[models]\n"a\\tb" = "groq/x"', ":2: models.", "printable ASCII"),
    "pattern that is too long": (f'[models]\n"{"a" * 200}*" = "groq"', ":2: models.", "1 to 200"),
    "alias to an unknown provider": ('[models]\nfast = "grok/x"', ":2: models.fast:", "did you mean groq?"),
    "alias without a model": ('[models]\nfast = "groq"', ":2: models.fast:", "provider/model"),
    "alias with an empty model": ('[models]\nfast = "groq/"', ":2: models.fast:", "provider/model"),
    "alias to nothing": ("[models]\nfast = []", ":2: models.fast:", "names nothing"),
    "second choice unknown": (
        '[models]\nfast = [\n"groq/x",\n"opnai/x"]',
        ":4: models.fast[1]:",
        "did you mean openai?",
    ),
    "alias with a bare dot": ('[models]\ngpt-4.1 = "openai/x"', ":2: models.gpt-4:", "stands in quotes"),
    "pattern with a model": ('[models]\n"q-*" = "groq/x"', ':2: models."q-*":', "a provider only"),
    "pattern to an unknown provider": ('[models]\n"q-*" = "grok"', ':2: models."q-*":', "did you mean groq?"),
    "pattern with several": ('[models]\n"q-*" = ["groq", "openai"]', ':2: models."q-*":', "one provider"),
    "open without a key": ('[server]\nhost = "0.0.0.0"', ":2: server.host:", "bind to 127.0.0.1"),
    "one of two is open": ('[server]\nhost = ["127.0.0.1", "::"]', ":2: server.host:", 'add keys = ["env:NAME"]'),
    "a name may be anywhere": ('[server]\nhost = "box.example.com"', ":2: server.host:", "no local key"),
    "short local key": ('[server]\nkeys = ["shortkey"]', ":2: server.keys[0]:", "shorter than 16"),
    "local key with a space": (
        '[server]\nkeys = ["0123456789 0123456789"]',
        ":2: server.keys[0]:",
        "cannot stand in an HTTP header",
    ),
    "local key not in ASCII": ('[server]\nkeys = ["0123456789-schlüssel"]', ":2: server.keys[0]:", "non-ASCII"),
    "token with a line end": ('[projects.a]\nforward_token = "abc\\n"', ":2: projects.a.forward_token:", "a line end"),
    "key with a line end": ('[lava]\nsecret_key = "abc\\ndef"', ":2: lava.secret_key:", "a line end"),
    "empty secret": ('[lava]\nsecret_key = ""', ":2: lava.secret_key:", "is empty"),
    "secret that is no string": ("[lava]\nsecret_key = 12345678", ":2: lava.secret_key:", "must be a string"),
    "keys as a string": ('[server]\nkeys = "env:T"', ":2: server.keys:", "must be a list"),
    "key that is a number": ("[server]\nkeys = [\n1234567890123456789]", ":3: server.keys[0]:", "must be a string"),
    "unset reference": ('[projects.a]\nspend_key = "env:UNSET"', ":2: projects.a.spend_key:", "UNSET is not set"),
    "unset default, written": ('[lava]\nsecret_key = "env:LAVA_SECRET_KEY"', ":2: lava.secret_key:", "is not set"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(tmp_path: Path, case: str) -> None:
    """It is one fault that names file, line and key, and says what to do."""
    text, place, words = WRONG[case]
    fault = only_fault(tmp_path, text, {"T": "a-ready-credential"})
    assert fault.startswith(f"{tmp_path / 'config.toml'}{place}")
    assert words in fault


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_provider_names(tmp_path: Path, name: str) -> None:
    """A provider named like an address of ours could never be reached."""
    fault = only_fault(tmp_path, f'[providers.{name}]\nbase_url = "https://llm.acme.com"')
    assert f"/{name}" in fault


def test_same_key_twice(tmp_path: Path) -> None:
    """A local key that stands in two places, however it is written, is refused with both places and without the key."""
    text = f'[server]\nkeys = ["{LOCAL_KEY}"]\n[projects.a]\nkeys = ["env:SAME", "env:SAME"]'
    found = faults(tmp_path, text, {"SAME": LOCAL_KEY})
    assert [fault.partition("config.toml")[2].split(" ")[1] for fault in found] == [
        "projects.a.keys[0]:",
        "projects.a.keys[1]:",
    ]
    assert all("same key as server.keys[0]" in fault and LOCAL_KEY not in fault for fault in found)


RIGHT = {
    "nothing": "",
    "default without projects": 'default_project = "default"',
    "connection": '[projects.a]\nconnection_id = "c"\nmeter = "m"\nbyok = "client"',
    "customer": '[projects.a]\ncustomer_id = "c"\nmeter = "m"\ndisable_billing = false',
    "meter": '[projects.a]\nmeter = "m"\nsecret_key = "env:T"',
    "ready": '[projects.a]\nforward_token = "env:T"\nmetadata = { a = "b" }\nkeys = ["env:K"]\ndefault_provider = "groq"',
    "names": f"[projects.0]\n[projects.a-b_c]\n[projects.{'a' * 64}]",
    "open with a key": '[server]\nhost = "0.0.0.0"\nkeys = ["env:K"]',
    "open with a project's key": '[server]\nhost = "::"\n[projects.a]\nkeys = ["env:K"]',
    "loopback": '[server]\nhost = ["localhost", "127.0.0.9", "[::1]"]',
    "models": '[models]\n"a.b:c" = "acme/x/y:z"\n"*-q*" = "acme"\n[providers.acme]\nbase_url = "https://llm.acme.com"',
    "default_provider of one's own": (
        '[projects.a]\ndefault_provider = "acme"\n[providers.acme]\nbase_url = "https://llm.acme.com"'
    ),
    "odd secret key": '[lava]\nsecret_key = "aks ünïcødé-鍵 \\"$"',
    "odd provider key": '[projects.a.byok]\ngoogle = "{\\n \\"type\\": 1\\n}"',
}


@pytest.mark.parametrize("case", RIGHT)
def test_accepted(tmp_path: Path, case: str) -> None:
    """What makes sense is taken."""
    loaded(tmp_path, RIGHT[case], {"T": "a-ready-credential", "K": LOCAL_KEY})


def test_provider_names_are_canonical(tmp_path: Path) -> None:
    """The friendlier name of a provider means the same one everywhere."""
    text = (
        '[projects.a]\ndefault_provider = "google-openai"\nbyok = { google-openai = "client" }\n'
        '[models]\nx = ["google-openai/gemini", "groq/y"]\n"g-*" = "google-openai"'
    )
    settings = loaded(tmp_path, text)
    assert settings.projects["a"].default_provider == "googleOpenaiCompatible"
    assert settings.projects["a"].byok == {"googleOpenaiCompatible": "client"}
    assert settings.models == {"x": ("googleOpenaiCompatible/gemini", "groq/y"), "g-*": ("googleOpenaiCompatible",)}


def test_literal_secret_in_an_open_file(tmp_path: Path) -> None:
    """A secret written into a file that others may read is refused, with the path and the mode."""
    for text in (
        f'[lava]\nsecret_key = "{LAVA_KEY}"',
        f'[server]\nkeys = ["{LOCAL_KEY}"]',
        f'[projects.a.byok]\nopenai = "{LAVA_KEY}"',
        f'[upstream]\nproxy = "http://me:{LOCAL_KEY}@proxy.example.com"',
    ):
        path = tmp_path / "config.toml"
        for mode in (0o640, 0o604, 0o644):
            path.write_text(text)
            path.chmod(mode)
            with pytest.raises(ConfigError) as caught:
                load(path, {})
            (fault,) = caught.value.faults
            assert f"{path}:2: " in fault
            assert f"mode {mode:04o}" in fault
            assert "chmod 600" in fault
            assert LAVA_KEY not in fault
            assert LOCAL_KEY not in fault
        path.chmod(0o600)
        load(path, {})


def test_open_file_without_literals(tmp_path: Path) -> None:
    """A file with references only may be readable by everybody; a literal in a variable concerns no file."""
    path = tmp_path / "config.toml"
    path.write_text('[lava]\nsecret_key = "env:K"\n[projects.a]\nbyok = "client"')
    path.chmod(0o644)
    settings = load(path, {"K": LAVA_KEY, "LAVA_PROXY_PROJECTS__A__KEYS": f'["{LOCAL_KEY}"]'})
    assert settings.warnings == ()
    assert settings.projects["a"].keys[0].reveal() == LOCAL_KEY


def test_overridden_literal_still_counts(tmp_path: Path) -> None:
    """A variable that takes the key's place does not make the one in the open file unread."""
    path = tmp_path / "config.toml"
    path.write_text(f'[lava]\nsecret_key = "{LAVA_KEY}"')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        load(path, {"LAVA_PROXY_LAVA__SECRET_KEY": "env:K", "K": "other"})
