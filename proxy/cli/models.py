"""``lava-proxy models``: the models of the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.cli import account
from proxy.cli.terminal import Exit, Screen, misused, put_json

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.lava import LavaSync
    from proxy.lava.records import ApiModel


def run(config: Path | None, provider: str | None, *, as_json: bool) -> int:
    """List the models, of one provider or of all. Return the exit code: 2 for a provider that has none."""

    def show(lava: LavaSync) -> int:
        from proxy.cli.rendering import plain, show_many
        from proxy.gateway.routing import maker, nearest

        models = list(lava.models.list())
        if provider is not None:
            chosen = [model for model in models if _is_of(model, provider.lower())]
            if models and not chosen:
                known = sorted({model.owned_by for model in models if model.owned_by})
                close = maker(provider) or nearest(provider, known)
                hint = f"did you mean {close}?" if close else f"there are: {', '.join(known) or 'none named'}"
                return misused(f"Lava lists no model of {provider!r}; {hint}")
            models = chosen
        if as_json:
            put_json({"data": [plain(model) for model in models]})
        else:
            models.sort(key=lambda model: (model.owned_by or "", model.id))
            show_many(Screen(), models, ("id", "owned_by"))
        return Exit.OK

    return account.ask(config, show, as_json=as_json)


def _is_of(model: ApiModel, provider: str) -> bool:
    return (model.owned_by or "").lower() == provider or model.id.lower().startswith(f"{provider}/")
