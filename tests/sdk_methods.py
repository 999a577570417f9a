"""Every method of the Python SDKs, found by looking at the SDK itself, and called with arguments that fit well enough.

A method that a new version adds is called like the others; one that cannot be called must be in a list of exceptions with its
reason, or the tests fail.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What a parameter of this name gets; others are filled by their annotation.
BY_NAME: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "input": "hello",
    "prompt": "hello",
    "max_tokens": 5,
    "contents": "hello",
    "src": "files/x",
    "operation": "operation",
    "body": {},
}


def methods(client: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each public method of each resource: its dotted name, and itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _public(client):
            if isinstance(inspect.getattr_static(type(client), name), cached_property | property):
                yield from _below(name, getattr(client, name))


def _below(path: str, resource: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in _public(resource):
        static = inspect.getattr_static(type(resource), name)
        if isinstance(static, cached_property | property):
            with contextlib.suppress(Exception):
                value = getattr(resource, name)
                if type(value).__module__.split(".")[0] == type(resource).__module__.split(".")[0]:
                    yield from _below(f"{path}.{name}", value)
        elif inspect.isfunction(static):
            yield f"{path}.{name}", getattr(resource, name)


def _public(thing: Any) -> list[str]:
    return [name for name in sorted(dir(type(thing))) if not name.startswith(("_", "with_"))]


def call(method: Callable[..., Any], names: dict[str, Any], given: dict[str, Any]) -> str | None:
    """Call it, with ``given`` in any case and ``names`` where it asks for them; what it makes of the made-up
    answer does not matter. Gives the error that it raised, if any."""
    fill = {**BY_NAME, **names}
    given = given | {
        name: _value(name, str(parameter.annotation), fill)
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in (2, 4) and name not in given
    }
    try:
        _use(method, given)
    except TypeError as wrong:
        # Of several sets of arguments the SDK names those that would do; without a signature, those that are missing.
        groups = re.findall(r"\(('[^()]*)\)", str(wrong))
        wanted = re.findall(r"'(\w+)'", groups[0] if groups else str(wrong).partition("missing")[2])
        if not wanted:
            return f"TypeError: {wrong}"
        try:
            _use(method, {**given, **{name: _value(name, "", fill) for name in wanted if name not in given}})
        except Exception as fault:  # noqa: BLE001  (the same)
            return f"{type(fault).__name__}: {fault}"
    except Exception as fault:  # noqa: BLE001  (after the request was sent anything may be wrong with the answer)
        return f"{type(fault).__name__}: {fault}"
    return None


def _use(method: Callable[..., Any], given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = method(**given)
        if hasattr(made, "__enter__"):
            with made:
                pass
        elif inspect.isgenerator(made):
            next(made, None)


def _value(name: str, annotation: str, fill: dict[str, Any]) -> Any:
    if name in fill:
        return fill[name]
    if "FileTypes" in annotation or name in ("file", "image", "video", "audio", "audio_sample"):
        return ("a.txt", io.BytesIO(b"content"), "text/plain")
    if re.search(r"\b(Iterable|List|Sequence|SequenceNotStr|list)\[", annotation):
        return []
    if re.search(r"Param|Dict|Mapping|object|TypedDict|Union", annotation):
        return {}
    if "int" in annotation or "float" in annotation:
        return 1
    return True if "bool" in annotation else "x"
