"""Writes the typed methods of ``proxy.lava`` from its table: ``python tests/lava_methods.py``.

``methods`` has the methods to await, ``blocking_methods`` wraps each of them for scripts. They are files, and not made
while running, so that editors and type checkers know them; a test compares them with what this writes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from proxy.lava.resources import ParameterKind, names, parameters, resources, rows

FOLDER = Path(__file__).parent.parent / "proxy" / "lava"

TYPES = {
    ParameterKind.TEXT: "str",
    ParameterKind.WHOLE: "int",
    ParameterKind.MONEY: "Decimal | str",
    ParameterKind.TIME: "datetime | str",
    ParameterKind.FLAG: "bool",
    ParameterKind.NAMES: "Sequence[str]",
    ParameterKind.PAIRS: "Mapping[str, str]",
    ParameterKind.TABLE: "Mapping[str, Any]",
    ParameterKind.TABLES: "Sequence[Mapping[str, Any]]",
}

HEAD = '''"""The typed methods of the account API, {face}.

Written by ``tests/lava_methods.py`` from the table in ``resources``: change the table, not this file.
"""

from __future__ import annotations
'''

IMPORTS = """
from typing import TYPE_CHECKING, Any, Literal

from proxy.lava import records
from proxy.lava.paging import PagedResource
from proxy.lava.wire import UNSET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from proxy.lava.paging import Pages
    from proxy.lava.wire import Unset
"""

BLOCKING_IMPORTS = """
from typing import TYPE_CHECKING

from proxy.lava import methods
from proxy.lava.waiting import BlockingResource, lists, waits

if TYPE_CHECKING:
    from proxy.lava.waiting import Waiter
"""

DOCS = {
    "checkout_sessions": "Checkouts: how a customer buys a plan or credit.",
    "connections": "Customers, under the name of SDK 8.",
    "customers": "Customers (SDK 9 and later).",
    "requests": "Requests through the gateway, and reported ones.",
    "usage": "Usage and costs by day.",
    "subscriptions": "The plans of customers.",
    "subscription_configs": "Plans, under the name of SDK 8.",
    "plans": "Plans (SDK 9 and later).",
    "meters": "The rates by which usage is charged.",
    "credit_bundles": "Credit that is sold in addition to a plan.",
    "webhooks": "Addresses to which Lava sends events.",
    "secret_keys": "The merchant's keys.",
    "spend_keys": "Keys for one tool each, with limits.",
    "wallet_keys": "Keys that manage a wallet's spend keys (gone in SDK 11).",
    "models": "The models of the gateway.",
    "wallet": "The wallet behind the key.",
    "fallback": "The account's chain of fallbacks.",
    "auth": "The end of the login flow.",
}


def class_of(resource: str) -> str:
    """``credit_bundles`` → ``CreditBundles``."""
    return "".join(word.capitalize() for word in resource.split("_"))


def method(key: str) -> str:
    """Return one method to await."""
    row = rows(key)[0]
    params = parameters(key)
    signature = ["self", *(f"{name}: str" for name in row.ids)]
    if params or row.method == "POST":
        signature.append("*")
    for param in sorted(params, key=lambda each: not each.required):
        kind = TYPES[param.kind]
        if param.choices:
            kind = f"Literal[{', '.join(repr(choice) for choice in param.choices)}]"
        if param.required:
            signature.append(f"{param.name}: {kind}")
        elif param.nullable:
            signature.append(f"{param.name}: {kind} | Unset | None = UNSET")
        else:
            signature.append(f"{param.name}: {kind} | None = None")
    if row.body is not None:
        signature.append("extra_body: Mapping[str, Any] | None = None")
    if row.method == "POST":
        signature.append("idempotency_key: str | None = None")
    record = f"records.{row.record}"
    define, kind, call = (
        ("def", f"Pages[{record}]", "self._pages") if row.paged else ("async def", record, "await self._one")
    )
    return (
        f"""
    {define} {row.name}({", ".join(signature)}) -> {kind}:
        """
        + f'''"""{row.doc} (``{row.method} {row.path}``)."""
        return {call}({record}, {key!r}, locals())
'''
    )


def source() -> str:
    """Return the methods to await."""
    parts = [HEAD.format(face="to be awaited"), IMPORTS]
    for resource in resources():
        parts.append(f'\n\nclass {class_of(resource)}(PagedResource):\n    """{DOCS[resource]}"""\n')
        parts += [method(f"{resource}.{name}") for name in names(resource)]
    parts.append('\n\nclass Resources:\n    """Every resource, as attributes of the client."""\n')
    parts.append("\n    def __init__(self, lava: Any) -> None:\n")
    parts += [f"        self.{resource} = {class_of(resource)}(lava)\n" for resource in resources()]
    return formatted("".join(parts))


def blocking_source() -> str:
    """Return the methods for scripts."""
    parts = [HEAD.format(face="for scripts: each waits for its answer"), BLOCKING_IMPORTS]
    for resource in resources():
        name = class_of(resource)
        parts.append(f"\n\nclass _{name}(BlockingResource):\n")
        for action in names(resource):
            wrap = "lists" if rows(f"{resource}.{action}")[0].paged else "waits"
            parts.append(f"    {action} = {wrap}(methods.{name}.{action})\n")
    parts.append('\n\nclass BlockingResources:\n    """Every resource, as attributes of the client."""\n')
    parts.append("\n    def __init__(self, lava: methods.Resources, waiter: Waiter) -> None:\n")
    parts += [f"        self.{each} = _{class_of(each)}(lava.{each}, waiter)\n" for each in resources()]
    return formatted("".join(parts))


def formatted(text: str) -> str:
    """Return the text in the format of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FOLDER / "methods.py"), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


FILES = {"methods.py": source, "blocking_methods.py": blocking_source}

if __name__ == "__main__":
    for name, write in FILES.items():
        (FOLDER / name).write_text(write(), encoding="utf-8")
