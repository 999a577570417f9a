"""compose.example.yaml as Docker Compose judges it: the format's schema, and what Compose refuses beyond it.

The schema is compose-spec's own, as the package check-jsonschema has it. It says what a document may look like; a document
that fits can still be one that Compose does not start, and those rules are written down in ``refusals``.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from proxy.config.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "compose.example.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))

_SOURCES = ("file", "environment", "content", "external")
# Compose replaces $NAME and ${NAME}; $$ is a dollar sign, and anything else behind one is a fault.
_DOLLAR = re.compile(r"\$(?!\$|\{?[A-Za-z_])")


def refusals(compose: dict[str, Any]) -> Iterator[str]:
    """Why Compose would not start this, beyond what the schema says."""
    services = compose.get("services") or {}
    for kind in ("configs", "secrets"):
        for name, source in (compose.get(kind) or {}).items():
            given = [each for each in _SOURCES if (source or {}).get(each)]
            if len(given) != 1:
                yield f"{kind}.{name}: exactly one of {', '.join(_SOURCES)} has to be given"
    for text in strings(compose):
        if _DOLLAR.search(text.replace("$$", "")):
            yield f"invalid interpolation format: {text!r}"
    for name, service in services.items():
        yield from (f"services.{name}: {fault}" for fault in service_refusals(compose, service))


def service_refusals(compose: dict[str, Any], service: dict[str, Any]) -> Iterator[str]:
    """The same for one service."""
    services = compose["services"]
    if not service.get("image") and not service.get("build"):
        yield "neither an image nor a build context"
    if service.get("network_mode") and service.get("networks"):
        yield "network_mode and networks exclude each other"
    targets = []
    for kind, folder in (("configs", "/"), ("secrets", "/run/secrets/")):
        for use in service.get(kind) or []:
            source, target = (use, None) if isinstance(use, str) else (use["source"], use.get("target"))
            targets.append(target if target and target.startswith("/") else folder + (target or source))
            known = (compose.get(kind) or {}).get(source)
            if known is None:
                yield f"refers to undefined {kind} {source}"
            elif service.get("read_only") and (known.get("content") or known.get("environment")):
                yield f"cannot create {kind} {source} in a read-only service: `file` is the sole supported option"
    for volume in service.get("volumes") or []:
        source, target = (volume.get("source"), volume["target"]) if isinstance(volume, dict) else volume.split(":")[:2]
        targets.append(target)
        if source and not source.startswith((".", "/", "~")) and source not in (compose.get("volumes") or {}):
            yield f"refers to undefined volume {source}"
    for network in service.get("networks") or []:
        if network != "default" and network not in (compose.get("networks") or {}):
            yield f"refers to undefined network {network}"
    if len(set(targets)) < len(targets):
        yield "two mounts have the same target"
    for other in service.get("depends_on") or []:
        if other not in services:
            yield f"depends on undefined service {other}"


def strings(value: Any) -> Iterator[str]:
    """Every string of a document that Compose looks for variables in."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def test_the_example_fits_the_schema(tmp_path: Path) -> None:
    """By the schema of compose-spec; the same check finds a key that does not exist."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("no check-jsonschema: pip install check-jsonschema")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(EXAMPLE.read_text(encoding="utf-8").replace("stop_grace_period", "stop_grace_periods"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    for path, code in ((EXAMPLE, 0), (wrong, 1)):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == code, done.stdout + done.stderr


def test_compose_would_refuse_nothing_of_the_example() -> None:
    """None of the known reasons not to start it."""
    assert list(refusals(COMPOSE)) == []


def _inline(compose: dict[str, Any]) -> None:
    compose["configs"]["lava-proxy"] = {"content": "default_project = 'main'"}


def _from_a_variable(compose: dict[str, Any]) -> None:
    compose["secrets"]["local_key"] = {"environment": "LOCAL_KEY"}


def _two_sources(compose: dict[str, Any]) -> None:
    compose["configs"]["lava-proxy"]["content"] = "x"


def _no_source(compose: dict[str, Any]) -> None:
    compose["secrets"]["local_key"] = {}


def _undefined_secret(compose: dict[str, Any]) -> None:
    del compose["secrets"]["local_key"]


def _undefined_volume(compose: dict[str, Any]) -> None:
    del compose["volumes"]


def _undefined_service(compose: dict[str, Any]) -> None:
    del compose["services"]["lava-proxy"]


def _undefined_network(compose: dict[str, Any]) -> None:
    compose["services"]["tool"]["networks"] = ["inner"]


def _both_networks(compose: dict[str, Any]) -> None:
    compose["networks"] = {"inner": None}
    compose["services"]["tool"] |= {"network_mode": "host", "networks": ["inner"]}


def _nothing_to_run(compose: dict[str, Any]) -> None:
    del compose["services"]["tool"]["image"]


def _one_target_twice(compose: dict[str, Any]) -> None:
    compose["services"]["lava-proxy"]["volumes"].append("./x:/etc/lava-proxy/config.toml")


def _a_dollar_sign(compose: dict[str, Any]) -> None:
    compose["services"]["tool"]["command"] = "echo $(date)"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_inline, "`file` is the sole supported option"),
        (_from_a_variable, "`file` is the sole supported option"),
        (_two_sources, "exactly one of"),
        (_no_source, "exactly one of"),
        (_undefined_secret, "undefined secrets"),
        (_undefined_volume, "undefined volume"),
        (_undefined_service, "undefined service"),
        (_undefined_network, "undefined network"),
        (_both_networks, "exclude each other"),
        (_nothing_to_run, "neither an image nor a build"),
        (_one_target_twice, "same target"),
        (_a_dollar_sign, "interpolation"),
    ],
)
def test_a_known_refusal_is_found(spoil: Callable[[dict[str, Any]], None], told: str) -> None:
    """Each rule finds the fault it is there for."""
    compose = copy.deepcopy(COMPOSE)
    spoil(compose)
    assert [fault for fault in refusals(compose) if told in fault]


def test_a_service_that_may_write_takes_an_inline_config() -> None:
    """The rule is about a read-only root, not about inline configs."""
    compose = copy.deepcopy(COMPOSE)
    _inline(compose)
    compose["services"]["lava-proxy"]["read_only"] = False
    assert list(refusals(compose)) == []


def test_the_sidecar_is_locked_down_and_waits_for_streams() -> None:
    """No privileges, no ports; Compose's own limit is longer than what the daemon takes to drain."""
    sidecar, tool = COMPOSE["services"]["lava-proxy"], COMPOSE["services"]["tool"]
    assert sidecar["read_only"] is True
    assert sidecar["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in sidecar["security_opt"]
    assert sidecar["healthcheck"]["test"] == ["CMD", "lava-proxy", "health"]
    assert "ports" not in sidecar
    assert set(sidecar["secrets"]) == set(COMPOSE["secrets"])
    drain = load(None, environ={}).server.drain_seconds
    assert int(sidecar["stop_grace_period"].removesuffix("s")) >= drain + 10
    hosts = {url.split("/")[2] for url in tool["environment"].values() if url.startswith("http")}
    assert hosts == {"lava-proxy:5282"}
    assert tool["depends_on"] == {"lava-proxy": {"condition": "service_healthy"}}


def test_the_sidecars_configuration_loads(tmp_path: Path) -> None:
    """With the files that the comments make, under the names at which Compose mounts them; without a warning."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for name, source in COMPOSE["secrets"].items():
        assert source["file"] == f"./secrets/{name}"
        assert f"> secrets/{name}" in text
        (tmp_path / name).write_text("not-a-real-secret-" + name)
        (tmp_path / name).chmod(0o400)
    assert COMPOSE["services"]["lava-proxy"]["configs"] == [
        {"source": "lava-proxy", "target": "/etc/lava-proxy/config.toml"}
    ]
    source = ROOT / COMPOSE["configs"]["lava-proxy"]["file"]
    config = tmp_path / "config.toml"
    config.write_text(source.read_text(encoding="utf-8").replace("file:/run/secrets/", f"file:{tmp_path}/"))
    config.chmod(0o400)
    settings = load(config, environ={}, flags={"server.host": ("0.0.0.0",)})
    assert "lava-proxy:5282" in settings.server.allowed_hosts
    assert not settings.warnings
