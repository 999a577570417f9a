"""A file for Google goes through the daemon, bytes and all: the address that Google gives for them is led here."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from google import genai
from rawclient import ask
from upstream import Upstream, answer

if TYPE_CHECKING:
    from conftest import NodeSDK
    from daemons import StartDaemon

    from proxy.emulator import Emulator

LOCAL_KEY = "local-" + "k" * 20 + "/+="
SECRET = "aks_live_" + "s" * 24
GOOGLE = "https://generativelanguage.googleapis.com"
FILE = bytes(range(256)) * 40


@pytest.mark.parametrize("prefix", ["", "/p/website", "/google", "/p/website/google"])
@pytest.mark.parametrize("keys", ["", f'[server]\nkeys = ["{LOCAL_KEY}"]\n'], ids=["open", "local key"])
def test_googles_python_sdk_uploads_through_the_daemon(
    daemon: StartDaemon, emulator: Emulator, prefix: str, keys: str
) -> None:
    """Whatever its base URL is: both requests arrive at Lava, under the same project, and Lava gets no local key."""
    config = f'default_project = "main"\n{keys}[lava]\nsecret_key = "env:KEY"\nbase_url = "{emulator.base_url}"\n'
    config += '[projects.main]\n[projects.website]\nmeter = "website-chat"\n'
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[LOCAL_KEY])
    options = genai.types.HttpOptions(base_url=running.url + prefix)
    with genai.Client(api_key=LOCAL_KEY, http_options=options) as client:
        made = client.files.upload(file=io.BytesIO(FILE), config={"mime_type": "text/plain"})
    assert made.size_bytes == len(FILE)
    begun, sent = emulator.world.received
    assert sent.body == FILE
    assert sent.url is not None
    assert sent.url.startswith(f"{GOOGLE}/upload/v1")
    assert LOCAL_KEY not in unquote(sent.target)
    assert begun.credential == sent.credential


def test_googles_node_sdk_uploads_through_the_daemon(
    daemon: StartDaemon, emulator: Emulator, node_sdk: NodeSDK
) -> None:
    """With the bare base URL and with a project's."""
    config = f'default_project = "main"\n[server]\nkeys = ["{LOCAL_KEY}"]\n[lava]\nsecret_key = "env:KEY"\n'
    config += f'base_url = "{emulator.base_url}"\n[projects.main]\n[projects.website]\nmeter = "website-chat"\n'
    running = daemon(config, env={"KEY": emulator.world.secret_key}, secrets=[LOCAL_KEY])
    script = """
        import { GoogleGenAI } from '@google/genai';
        for (const baseUrl of JSON.parse(process.env.BASES)) {
            const ai = new GoogleGenAI({ apiKey: process.env.KEY, httpOptions: { baseUrl } });
            const file = new Blob([new Uint8Array(10240).fill(65)], { type: 'text/plain' });
            console.log((await ai.files.upload({ file, config: { mimeType: 'text/plain' } })).sizeBytes);
        }
    """
    bases = f'["{running.url}", "{running.url}/p/website", "{running.url}/google"]'
    done = node_sdk.run(script, BASES=bases, KEY=LOCAL_KEY)
    assert done.stdout.split() == ["10240"] * 3, done.stdout + done.stderr
    assert [len(each.body) for each in emulator.world.received][1::2] == [10_240] * 3
    assert all((each.url or "").startswith(f"{GOOGLE}/upload/") for each in emulator.world.received)


@pytest.mark.parametrize(
    ("request_line", "headers", "given", "told"),
    [
        # An address elsewhere, or of something else, is left alone; so is every other header.
        ("/google/upload/v1beta/files", {}, "https://elsewhere.example/upload/v1beta/files?upload_id=1", None),
        ("/google/upload/v1beta/files", {}, f"{GOOGLE}.evil.example/upload/v1beta/files?upload_id=1", None),
        ("/google/upload/v1beta/files", {}, f"{GOOGLE}/v1beta/files", None),
        ("/openai/v1/files", {}, f"{GOOGLE}/upload/v1beta/files?upload_id=1", None),
        # The project is named by the header, and stands in the address.
        (
            "/upload/v1beta/files",
            {"x-lava-proxy-project": "website"},
            f"{GOOGLE}/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable",
            "/p/website/google/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable",
        ),
        # The tool's own key, where the project uses it.
        (
            "/p/tool/upload/v1beta/files",
            {"x-goog-api-key": "AIza+x"},
            f"{GOOGLE}/upload/v1beta/files?upload_id=1",
            "/p/tool/google/upload/v1beta/files?upload_id=1&key=AIza%2Bx",
        ),
        (
            "/p/tool/upload/v1beta/files?key=AIza%2Bx",
            {},
            f"{GOOGLE}/upload/v1beta/files?upload_id=1",
            "/p/tool/google/upload/v1beta/files?upload_id=1&key=AIza%2Bx",
        ),
        ("/upload/v1beta/files", {}, f"{GOOGLE}/upload/v1beta/files", "/p/main/google/upload/v1beta/files"),
    ],
)
def test_which_addresses_are_led_here(
    daemon: StartDaemon, request_line: str, headers: dict[str, str], given: str, told: str | None
) -> None:
    """Google's own for an upload, in both headers that name one."""
    named = (b"x-goog-upload-url", b"x-goog-upload-control-url", b"x-elsewhere")
    with Upstream(answer(200, b"", [(name, given.encode()) for name in named])) as upstream:
        config = f'default_project = "main"\n[lava]\nsecret_key = "{SECRET}"\nbase_url = "{upstream.url}"\n'
        config += '[projects.main]\n[projects.website]\n[projects.tool]\nbyok = "client"\n'
        running = daemon(config)
        for _ in range(3):  # the first makes what the others find kept
            came: Any = ask(running.port, "POST", request_line, b"", headers=headers)
            expected = running.url + told if told is not None else given
            assert [came.header(name.decode()) for name in named] == [expected, expected, given]
