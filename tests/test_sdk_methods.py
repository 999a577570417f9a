"""SDK methods × base URLs × where they arrived: every request goes to the company whose SDK sent it, to the very address that
the SDK would have asked there.

Both sides are real: each method of an unmodified SDK is called twice, once with the upstream itself as its base URL, which
tells what the SDK asks, and once with the daemon's, which must ask Lava for the same at that SDK's company. At every other
base URL one method of each resource and HTTP method does so.
"""

from __future__ import annotations

import io
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anthropic
import openai
import pytest
from daemons import Daemon
from google import genai
from sdk_methods import call, methods
from upstream import Upstream, answer

from proxy.protocol.dialects import OPENAI_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import NodeSDK


KEY = "aks_live_" + "m" * 24
ANSWER = {"id": "i", "object": "o", "status": "completed", "data": [], "type": "x", "name": "files/x", "done": True}
COMPANY = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com",
}
#: Where the SDK's own default base URL has a path: what the direct base URL needs as well.
PATH = {"openai": "/v1", "anthropic": "", "google": ""}
BASES = {
    "openai": ["/v1", "", "/openai", "/openai/v1", "/p/main/v1", "/p/main/openai/v1"],
    "anthropic": ["", "/v1", "/anthropic", "/p/main", "/p/main/anthropic"],
    "google": ["", "/v1beta", "/google", "/google/v1beta", "/p/main", "/p/main/google"],
}
MODEL = {"openai": "gpt-5", "anthropic": "claude-opus-4-6", "google": "gemini-2.5-flash"}

#: What sends nothing that could arrive, by the end of its name: (pattern, reason).
EXCEPTIONS: dict[str, list[tuple[str, str]]] = {
    "openai": [
        (r".*connect", "a WebSocket, which the daemon refuses by 426"),
        (r".*(poll|wait_for_processing|upload_file_chunked)", "repeats methods that are here by themselves"),
        (
            r".*(create_and_run_stream|create_and_stream|responses\.stream)",
            "the streaming form of a method that is here",
        ),
        (r"webhooks\.(unwrap|verify_signature)", "reads what it is given; asks nobody"),
        (r"(base_url|qs)\..*", "no resource"),
    ],
    "anthropic": [
        (r".*(thread|tool_runner)", "makes an object; asks nobody yet"),
        (r".*webhooks\.(unwrap|parse_unverified)", "reads what it is given; asks nobody"),
        (r"(base_url|qs)\..*", "no resource"),
    ],
    "google": [
        (r"aio\..*", "the same methods once more, as coroutines"),
        (r".*do_request", "what the others are made of"),
        (r"chats\.create", "makes an object; asks nobody yet"),
        (r"models\.(compute_tokens|edit_image|generate_images|generate_videos|recontext_image)", "Vertex AI alone"),
        (r"models\.(segment_image|upscale_image)|tunings\.(list|validate_reward)", "Vertex AI alone"),
        (r"(credentials|decisions|triggers|voices|webhooks)\.create|credentials\.update", "wants a whole document"),
        (r"files\.register_files", "wants credentials of Google Cloud"),
    ],
}
#: Google's names say what they are names of.
NAMED: dict[str, dict[str, Any]] = {
    "batches": {"name": "batches/x"},
    "batches.create_embeddings": {"src": {"file_name": "files/x"}},
    "caches": {"name": "cachedContents/x"},
    "files": {"name": "files/x", "file": "files/x"},
    "file_search_stores": {"name": "fileSearchStores/x", "file_search_store_name": "fileSearchStores/x"},
    "file_search_stores.documents": {"name": "fileSearchStores/x/documents/y", "parent": "fileSearchStores/x"},
    "file_search_stores.download_media": {"media_id": "fileSearchStores/x/media/y"},
    "operations.get": {
        "operation": genai.types.GenerateVideosOperation.model_validate({"name": "models/x/operations/y"})
    },
    "tunings": {"name": "tunedModels/x"},
}


def _upload() -> dict[str, Any]:
    return {"file": io.BytesIO(b"content"), "config": {"mime_type": "text/plain"}}


#: What a method gets though its signature does not ask for it, or in place of the above.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "files.upload": _upload,
    "file_search_stores.upload_to_file_search_store": _upload,
    "interactions.create": lambda: {"model": "gemini-2.5-flash", "input": "hello"},
}


def client(sdk: str, base_url: str) -> Any:
    """As a user would make it, but that it tries once."""
    if sdk == "openai":
        return openai.OpenAI(base_url=base_url, api_key="unused", admin_api_key="unused", max_retries=0, timeout=10)
    if sdk == "anthropic":
        return anthropic.Anthropic(base_url=base_url, api_key="unused", max_retries=0, timeout=10)
    return genai.Client(api_key="unused", http_options=genai.types.HttpOptions(base_url=base_url, timeout=10_000))


def arguments(sdk: str, name: str) -> dict[str, Any]:
    given: dict[str, Any] = {"model": MODEL[sdk]}
    if sdk == "google":
        for prefix, values in NAMED.items():
            if name == prefix or name.startswith(prefix + "."):
                given.update(values)
    return given


def excepted(sdk: str, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern, _ in EXCEPTIONS[sdk])


@pytest.fixture(scope="module")
def lava() -> Iterator[Upstream]:
    """Lava, and the company itself: it answers whatever it is asked."""
    raw = answer(200, json.dumps(ANSWER).encode(), [(b"content-type", b"application/json")])
    with Upstream(raw) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def running(lava: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all of them."""
    config = f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{lava.url}"\n[projects.main]\n'
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), config, env={"KEY": KEY})
    try:
        daemon.wait_until_up()
        yield daemon
    finally:
        daemon.close()


Asked = dict[str, tuple[str, str]]


class EveryResource:
    """Chooses each method of what tools use, and one of each deeper resource (the administration of an organization, say)."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, name: str) -> bool:
        resource = name.rpartition(".")[0]
        deep = name.count(".") > 2 or "organization" in name or name.startswith("admin.")
        new = resource not in self._seen
        self._seen.add(resource)
        return new or not deep


def asked(lava: Upstream, sdk: str, base_url: str, chosen: Callable[[str], bool]) -> tuple[Asked, list[str]]:
    """Method and address that each chosen method asked for (its last request), and those that asked nothing."""
    found: Asked = {}
    silent = []
    for name, method in methods(client(sdk, base_url)):
        if not excepted(sdk, name) and chosen(name):
            before = len(lava.requests)
            said = call(method, arguments(sdk, name), GIVEN[name]() if sdk == "google" and name in GIVEN else {})
            if len(lava.requests) == before:
                silent.append(f"{name}: {said}")
            else:
                last = lava.requests[-1]
                found[name] = last.method.decode(), last.target.decode()
    return found, silent


@pytest.fixture(scope="module")
def direct(lava: Upstream) -> Callable[[str], Asked]:
    """What each SDK asks its own company for."""

    @cache
    def of(sdk: str) -> Asked:
        found, silent = asked(lava, sdk, lava.url + PATH[sdk], EveryResource())
        assert not silent, "give these methods arguments, or a reason among the exceptions:\n" + "\n".join(silent)
        return found

    return of


def wrong(sdk: str, base: str, expected: Asked, found: Asked) -> list[str]:
    """The rows of the table that are not as they should be."""
    rows = []
    for name, (method, target) in expected.items():
        came = found.get(name)
        url = COMPANY[sdk] + target
        ours = method == "GET" and re.fullmatch(r"/v1/models(\?.*)?", target)  # the daemon's own list, for every SDK
        allowed = {f"{method} /v1/forward?u={url}"} | ({"GET /v1/models"} if ours else set())
        if sdk == "openai" and not base and target.split("/")[2].partition("?")[0].encode() not in OPENAI_WORDS:
            allowed = {"nothing arrived"}  # without /v1 only the best known endpoints are served; the 404 says so
        told = f"{came[0]} {unquote(came[1])}" if came else "nothing arrived"
        if told not in {unquote(each) for each in allowed}:
            rows.append(f"{name} | {method} {url} | {told}")
    return rows


def one_of_each(asks: Asked) -> set[str]:
    """One method for each first word of an address and HTTP method."""
    chosen: dict[tuple[str, ...], str] = {}
    for name, (method, target) in asks.items():
        words = [word for word in target.partition("?")[0].split("/") if word]
        chosen.setdefault((method, *words[:2], words[2] if words[2:3] == ["versions"] else ""), name)
    return set(chosen.values())


def without_v1(target: str) -> str:
    """The 404 at the bare address for an endpoint of OpenAI that is served below /v1 alone: more than one word could be meant for
    a provider."""
    _, word, *rest = target.partition("?")[0].removeprefix("/v1").split("/")
    if rest:
        return f'There is no provider "{word}". Use /openai/v1 as the base URL, or add [providers.{word}] to'
    return f"Nothing is served at /{word}. Use /v1 as the base URL,"


TABLE = [
    # The usual base URL of each SDK, with every method, is in the default tier.
    pytest.param(sdk, base, id=f"{sdk} P{base}", marks=[pytest.mark.full] if place else [])
    for sdk, bases in BASES.items()
    for place, base in enumerate(bases)
]


@pytest.mark.parametrize(("sdk", "base"), TABLE)
@pytest.mark.timeout(180)
def test_every_method_arrives_at_its_own_company(
    lava: Upstream, running: Daemon, direct: Callable[[str], Asked], sdk: str, base: str
) -> None:
    """Python, at each base URL."""
    expected = direct(sdk)
    if base != BASES[sdk][0]:
        few = one_of_each(expected)
        expected = {name: asks for name, asks in expected.items() if name in few}
    found, silent = asked(lava, sdk, running.url + base, lambda name: name in expected)
    rows = wrong(sdk, base, expected, found)
    assert not rows, f"{len(rows)} of {len(expected)}:\n" + "\n".join(rows)
    # What did not arrive was refused, with the base URL that it needs.
    told = dict(each.split(": NotFoundError: Error code: 404 - ") for each in silent)
    assert told.keys() == expected.keys() - found.keys()
    assert not [name for name, message in told.items() if not message.startswith(without_v1(expected[name][1]))]
    assert bool(silent) is ((sdk, base) == ("openai", ""))


# --- Node ------------------------------------------------------------------------------------------------------------

#: Calls methods of an SDK at each base URL, one after the other, each named by a header of its own.
NODE = r"""
import OpenAI from 'openai';
import Anthropic from '@anthropic-ai/sdk';
import { GoogleGenAI } from '@google/genai';

const { sdk, bases } = JSON.parse(process.env.WHAT);
const file = () => new File(['content'], 'a.txt', { type: 'text/plain' });
const messages = [{ role: 'user', content: 'x' }];
const openai = {
    'chat.completions.create': (ai) => ai.chat.completions.create({ model: 'gpt-5', messages }),
    'responses.create': (ai) => ai.responses.create({ model: 'gpt-5', input: 'x' }),
    'responses.retrieve': (ai) => ai.responses.retrieve('x'),
    'embeddings.create': (ai) => ai.embeddings.create({ model: 'text-embedding-3-small', input: 'x' }),
    'images.generate': (ai) => ai.images.generate({ model: 'gpt-image-1', prompt: 'x' }),
    'audio.speech.create': (ai) => ai.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: 'x' }),
    'audio.transcriptions.create': (ai) => ai.audio.transcriptions.create({ model: 'whisper-1', file: file() }),
    'moderations.create': (ai) => ai.moderations.create({ input: 'x' }),
    'models.list': (ai) => ai.models.list(),
    'models.retrieve': (ai) => ai.models.retrieve('gpt-5'),
    'files.create': (ai) => ai.files.create({ file: file(), purpose: 'batch' }),
    'files.content': (ai) => ai.files.content('x'),
    'batches.list': (ai) => ai.batches.list(),
    'fineTuning.jobs.list': (ai) => ai.fineTuning.jobs.list(),
    'vectorStores.list': (ai) => ai.vectorStores.list(),
    'uploads.create': (ai) => ai.uploads.create({ bytes: 1, filename: 'x', mime_type: 'x', purpose: 'batch' }),
    'evals.list': (ai) => ai.evals.list(),
    'containers.list': (ai) => ai.containers.list(),
    'conversations.retrieve': (ai) => ai.conversations.retrieve('x'),
};
const anthropic = {
    'messages.create': (ai) => ai.messages.create({ model: 'claude-opus-4-6', max_tokens: 5, messages }),
    'messages.countTokens': (ai) => ai.messages.countTokens({ model: 'claude-opus-4-6', messages }),
    'messages.batches.list': (ai) => ai.messages.batches.list(),
    'models.list': (ai) => ai.models.list(),
    'models.retrieve': (ai) => ai.models.retrieve('claude-opus-4-6'),
    'beta.files.list': (ai) => ai.beta.files.list(),
    'beta.files.upload': (ai) => ai.beta.files.upload({ file: file() }),
    'beta.files.download': (ai) => ai.beta.files.download('x'),
    'beta.skills.list': (ai) => ai.beta.skills.list(),
    'beta.skills.create': (ai) => ai.beta.skills.create({ files: [file()] }),
};
const google = {
    'models.generateContent': (ai) => ai.models.generateContent({ model: 'gemini-2.5-flash', contents: 'x' }),
    'models.countTokens': (ai) => ai.models.countTokens({ model: 'gemini-2.5-flash', contents: 'x' }),
    'models.embedContent': (ai) => ai.models.embedContent({ model: 'gemini-2.5-flash', contents: 'x' }),
    'models.get': (ai) => ai.models.get({ model: 'gemini-2.5-flash' }),
    'models.list': (ai) => ai.models.list(),
    'files.upload': (ai) => ai.files.upload({ file: file(), config: { mimeType: 'text/plain' } }),
    'files.get': (ai) => ai.files.get({ name: 'files/x' }),
    'files.list': (ai) => ai.files.list(),
    'files.delete': (ai) => ai.files.delete({ name: 'files/x' }),
    'caches.create': (ai) => ai.caches.create({ model: 'gemini-2.5-flash', config: {} }),
    'caches.list': (ai) => ai.caches.list(),
    'caches.get': (ai) => ai.caches.get({ name: 'cachedContents/x' }),
    'batches.create': (ai) => ai.batches.create({ model: 'gemini-2.5-flash', src: 'files/x' }),
    'batches.get': (ai) => ai.batches.get({ name: 'batches/x' }),
    'batches.list': (ai) => ai.batches.list(),
    'fileSearchStores.create': (ai) => ai.fileSearchStores.create({}),
    'fileSearchStores.list': (ai) => ai.fileSearchStores.list(),
    'fileSearchStores.uploadToFileSearchStore': (ai) => ai.fileSearchStores.uploadToFileSearchStore(
        { fileSearchStoreName: 'fileSearchStores/x', file: file(), config: { mimeType: 'text/plain' } }),
    'interactions.create': (ai) => ai.interactions.create({ model: 'gemini-2.5-flash', input: 'x' }),
    'interactions.get': (ai) => ai.interactions.get('x'),
    'tunings.get': (ai) => ai.tunings.get({ name: 'tunedModels/x' }),
    'authTokens.create': (ai) => ai.authTokens.create({}),
};

for (const [index, baseURL] of bases.entries())
    for (const [name, ask] of Object.entries({ openai, anthropic, google }[sdk])) {
        const headers = { 'x-case': `${index} ${name}` };
        const options = { baseURL, apiKey: 'unused', maxRetries: 0, defaultHeaders: headers };
        const ai = sdk === 'openai' ? new OpenAI(options) : sdk === 'anthropic' ? new Anthropic(options)
            : new GoogleGenAI({ apiKey: 'unused', httpOptions: { baseUrl: baseURL, headers } });
        try { await ask(ai); } catch { /* the answer is made up */ }
    }
"""
FEWEST = {"openai": 19, "anthropic": 10, "google": 20}


@pytest.mark.parametrize("sdk", list(BASES))
def test_each_resource_of_node_arrives_at_its_own_company(
    lava: Upstream, running: Daemon, node_sdk: NodeSDK, sdk: str
) -> None:
    """Node, at its own base URL and below a project."""
    bases = BASES[sdk][0], BASES[sdk][-1], *(["/v1beta"] if sdk == "google" else [])
    urls = [lava.url + PATH[sdk], *(running.url + base for base in bases)]
    before = len(lava.requests)
    what = json.dumps({"sdk": sdk, "bases": urls})
    done = node_sdk.run(NODE, WHAT=what, limit=120)
    assert done.returncode == 0, done.stderr
    found: list[Asked] = [{} for _ in urls]
    for request in lava.requests[before:]:
        index, _, name = (request.header(b"x-case") or b"").decode().partition(" ")
        if name:
            found[int(index)][name] = request.method.decode(), request.target.decode()
    expected, *arrived = found
    for base, came in zip(bases, arrived, strict=True):
        if f"{base}/v1/models" != "/v1beta/v1/models":
            came["models.list"] = "GET", "/v1/models"  # the daemon's own question has no such header
    assert len(expected) >= FEWEST[sdk], sorted(expected)
    for base, came in zip(bases, arrived, strict=True):
        rows = wrong(sdk, base, expected, came)
        assert not rows, f"P{base}: {len(rows)} of {len(expected)}:\n" + "\n".join(rows)
