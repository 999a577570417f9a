"""Writes the typed methods of ``proxy.lava`` from its table: ``python tests/lava_methods.py``.

Two faces of one table: ``methods`` for ``await``, ``blocking_methods`` for scripts. They are files, not made while
running, so that editors and type checkers know them; a test compares them with what this writes.
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

from typing import TYPE_CHECKING, Any, Literal

from proxy.lava import records
from proxy.lava.{base} import {resource}
{late}
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from proxy.lava.{base} import {pages}
{types}'''

DOCS = {
    "checkout_sessions": "Checkouts: how a customer buys a plan or credit.",
    "connections": "Customers, under the name of SDK 8.",
    "customers": "Customers (SDK 9 and later).",
    "requests": "What went through the gateway, and what you report.",
    "usage": "Usage and costs by day.",
    "subscriptions": "Who has which plan.",
    "subscription_configs": "Plans, under the name of SDK 8.",
    "plans": "Plans (SDK 9 and later).",
    "meters": "What usage is charged by.",
    "credit_bundles": "Credit that is sold beside a plan.",
    "webhooks": "Addresses that Lava tells of events.",
    "secret_keys": "The merchant's keys.",
    "spend_keys": "Keys for one tool each, with limits.",
    "wallet_keys": "Keys that manage a wallet's spend keys (gone in SDK 11).",
    "models": "What the gateway knows.",
    "wallet": "The wallet behind the key.",
    "fallback": "The account's chain of fallbacks.",
    "auth": "The end of the login flow.",
}


def class_of(resource: str, blocking: bool) -> str:
    """``credit_bundles`` → ``CreditBundles``, or ``BlockingCreditBundles``."""
    return ("Blocking" if blocking else "") + "".join(word.capitalize() for word in resource.split("_"))


def method(key: str, blocking: bool) -> str:
    """One method."""
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
    fields = f"{{{', '.join(f'{param.name!r}: {param.name}' for param in params)}}}"
    record = f"records.{row.record}"
    text = f'"""{row.doc} (``{row.method} {row.path}``)."""'
    if row.paged:
        return f"""
    def {row.name}({", ".join(signature)}) -> {"BlockingPages" if blocking else "Pages"}[{record}]:
        {text}
        return self._pages({record}, {key!r}, {fields})
"""
    given = [record, repr(key), *row.ids]
    given += [f"fields={fields}"] if params else []
    given += ["extra=extra_body"] if row.body is not None else []
    given += ["idempotency_key=idempotency_key"] if row.method == "POST" else []
    define, wait = ("def", "") if blocking else ("async def", "await ")
    return f"""
    {define} {row.name}({", ".join(signature)}) -> {record}:
        {text}
        return {wait}self._one({", ".join(given)})
"""


def source(blocking: bool) -> str:
    """The whole module, formatted as the project is."""
    base = "waiting" if blocking else "paging"
    kind = "BlockingResource" if blocking else "PagedResource"
    face = "for scripts: each waits for its answer" if blocking else "to be awaited"
    parts = [
        HEAD.format(
            face=face,
            base=base,
            resource=kind,
            pages="BlockingPages" if blocking else "Pages",
            late="from proxy.lava.wire import UNSET\n",
            types="    from proxy.lava.wire import Unset\n",
        )
    ]
    for resource in resources():
        parts.append(f'\n\nclass {class_of(resource, blocking)}({kind}):\n    """{DOCS[resource]}"""\n')
        parts += [method(f"{resource}.{name}", blocking) for name in names(resource)]
    parts.append(
        f'\n\nclass {class_of("resources", blocking)}:\n    """Every resource, as attributes of the client."""\n'
    )
    parts.append("\n    def __init__(self, lava: Any) -> None:\n")
    parts += [f"        self.{resource} = {class_of(resource, blocking)}(lava)\n" for resource in resources()]
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FOLDER / "methods.py"), "-"],
        input="".join(parts),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return formatted.stdout


FILES = {"methods.py": False, "blocking_methods.py": True}

if __name__ == "__main__":
    for name, blocking in FILES.items():
        (FOLDER / name).write_text(source(blocking), encoding="utf-8")
