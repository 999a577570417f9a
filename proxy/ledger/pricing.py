"""Estimates: what a request costs before it is billed, or if it is never billed.

Theory. An estimate is linear: the count of each token class times its price. The prices come from the biller where they were
learned (``learning.py``), else from the packaged tables of ``genai-prices``, which are never fetched. Those are turned into the
same form, once for each model: the price of a class is what the package charges for a million tokens of it. So its rules hold
(an audio token without a price of its own costs as much as text), and one estimate is ten multiplications.

Nothing is estimated if a part of it is unknown: a class without a price, or a side (input, output) that has a price but no
count. Prices are in billionths of a dollar per million tokens, whole numbers, as in the table ``prices``.

This module has no database. The tables cost 7 MiB and a tenth of a second when the first estimate needs them.
"""

from __future__ import annotations

import gc
import re
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.protocol.money import NANO_PER_DOLLAR
from proxy.protocol.token_classes import NOTHING, TokenClasses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

PER: Final = 1_000_000
"""Tokens that a price is for."""
LEARNED: Final = "learned"
_MAX_MODELS: Final = 4096  # remembered lookups; names of models come from clients

_CLASSES: Final = TokenClasses._fields
_REASONING: Final = _CLASSES.index("reasoning")
_IN: Final = tuple(
    _CLASSES.index(name)
    for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "audio_in", "characters")
)
_OUT: Final = tuple(_CLASSES.index(name) for name in ("output", "audio_out"))


class Estimate(NamedTuple):
    """An estimated cost in billionths of a dollar, and where its prices come from."""

    nano: int
    source: str


class PriceList:
    """Prices by class, in the order of ``TokenClasses``; ``None``: the class has no price. ``request``: beside all tokens.

    The price of ``reasoning`` is what it costs more (or less) than other output, because it is counted there too.
    """

    __slots__ = ("_needed", "by_class", "request")

    def __init__(self, by_class: tuple[int | None, ...], request: int = 0) -> None:
        self.by_class = by_class
        self.request = request
        # Of each of these classes, one must have been counted: a side with a price, or anything where all is free.
        sides = [side for side in (_IN, _OUT) if any(by_class[each] for each in side)]
        self._needed = sides or [tuple(each for each, price in enumerate(by_class) if price is not None)]

    def cost(self, classes: TokenClasses) -> int | None:
        """Return the cost in billionths of a dollar, rounded half up; ``None`` if a part of it is unknown."""
        total = self.request * PER
        for count, price in zip(classes, self.by_class, strict=True):
            if count:
                if price is None:
                    return None
                total += count * price
        for side in self._needed:
            for each in side:
                if classes[each] is not None:
                    break
            else:
                return None
        return (total + PER // 2) // PER


class Prices:
    """All known prices: learned ones first. The event loop and the ledger's writer use one object at the same time."""

    def __init__(self) -> None:
        # Replaced, never changed: another thread may be reading it.
        self._learned: Mapping[tuple[str, str], PriceList] = {}
        self._tables: _Tables | None = None
        self._loading = Lock()

    def load(self) -> None:
        """Read the packaged tables, if they have not been read."""
        self._packaged()

    def learn(self, provider: str, model: str, prices: Mapping[str, int]) -> None:
        """Use these learned prices for a model, by class; none of them: forget the model's prices."""
        if prices:
            found = [prices.get(name) for name in _CLASSES]
            found[_REASONING] = 0
            self._learned = {**self._learned, (provider, model): PriceList(tuple(found))}
        else:
            self._learned = {key: known for key, known in self._learned.items() if key != (provider, model)}

    def estimate(self, provider: str, model: str | None, classes: TokenClasses, at_us: int) -> Estimate | None:
        """Return the estimated cost at a time (microseconds UTC); ``None`` if it is unknown. Never raises."""
        if model is None or classes == NOTHING:
            return None
        key = provider, model
        learned = self._learned.get(key)
        if learned is not None:
            nano = learned.cost(classes)
            if nano is not None:
                return Estimate(nano, LEARNED)
        tables = self._tables or self._packaged()
        prices = tables.find(key, classes, at_us)
        nano = prices.cost(classes) if prices is not None else None
        return None if nano is None else Estimate(nano, tables.source)

    def highest(self, provider: str) -> int | None:
        """Return the highest price of any token class of any model of a provider; ``None`` if none is known."""
        prices = [
            price for (name, _), known in self._learned.items() if name == provider for price in known.by_class if price
        ]
        packaged = self._packaged().highest(provider)
        return max(prices if packaged is None else [*prices, packaged], default=None)

    def _packaged(self) -> _Tables:
        if self._tables is None:
            with self._loading:
                if self._tables is None:
                    self._tables = _Tables()
        return self._tables


# --- genai-prices ----------------------------------------------------------------------------------------------------

_IDS: Final = {"xai": "x-ai", "googleOpenaiCompatible": "google", "moonshot": "moonshotai"}
"""The names there of our providers; the others have the same name, or are not there."""

_CHECKED = re.compile(r"(?:verified|checked|as of|updated|added)\b[^.;]{0,40}?(20\d\d-\d\d-\d\d)")

# What the package calls a million tokens of each class. A part is reported beside the whole.
_UNITS: Final[dict[str, tuple[str, ...]]] = {
    "input": ("input_tokens",),
    "cache_read": ("input_tokens", "cache_read_tokens"),
    "cache_write_5m": ("input_tokens", "cache_write_tokens", "cache_write_5m_tokens"),
    "cache_write_1h": ("input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "output": ("output_tokens",),
    "audio_in": ("input_tokens", "input_audio_tokens"),
    "audio_out": ("output_tokens", "output_audio_tokens"),
    "characters": ("input_characters",),
}


class _Bands(NamedTuple):
    """Price lists by the number of input tokens: ``lists[n]`` holds above ``starts[n]``, for all tokens of the request."""

    starts: tuple[int, ...]
    lists: tuple[PriceList, ...]


class _Tables:
    """The packaged tables."""

    def __init__(self) -> None:
        # The snapshot in the package, whatever the environment: only `UpdatePrices` fetches, and nothing here starts it.
        from genai_prices import __version__
        from genai_prices.data import providers

        self._all = providers
        self._providers = {each.id: each for each in providers}
        # A model with dates or times of the day is looked up again for each estimate.
        self._models: dict[tuple[str, str], _Bands | ModelInfo | PriceList | None] = {}
        self._bands: dict[int, _Bands] = {}  # by the identity of a ModelPrice, which lives as long as the tables
        self._highest: dict[str, int | None] = {}
        # The newest date on which a table says that it was checked: the package has no date of its own.
        comments = [each.price_comments for each in providers]
        comments += [model.price_comments for each in providers for model in each.models]
        dates = [date for comment in comments if comment for date in _CHECKED.findall(comment)]
        self.source = f"genai-prices {__version__} {max(dates)}" if dates else f"genai-prices {__version__}"
        if gc.get_freeze_count():
            # As for the daemon's modules: they stay, and no collection shall traverse them (``daemon.py``).
            gc.freeze()

    def find(self, key: tuple[str, str], classes: TokenClasses, at_us: int) -> PriceList | None:
        """Return the prices of a model of a provider at a time, for a request of this size."""
        try:
            found = self._models[key]
        except KeyError:
            found = self._look_up(*key)
            if len(self._models) >= _MAX_MODELS:
                self._models.clear()
            self._models[key] = found
        if found is None or isinstance(found, PriceList):
            return found
        bands = found if isinstance(found, _Bands) else self._bands_at(found, at_us)
        size = sum(classes[each] or 0 for each in _IN[:-1])
        index = max(number for number, start in enumerate(bands.starts) if number == 0 or size > start)
        return bands.lists[index]

    def _bands_at(self, info: ModelInfo, at_us: int) -> _Bands:
        prices = info.get_prices(datetime.fromtimestamp(at_us / 1_000_000, UTC))
        bands = self._bands.get(id(prices))
        if bands is None:
            bands = self._bands[id(prices)] = _bands(prices)
        return bands

    def highest(self, provider: str) -> int | None:
        """Return the highest price of a token at a provider."""
        if provider not in self._highest:
            found = self._providers.get(_IDS.get(provider, provider))
            now = datetime.now(UTC)
            lists = [
                prices
                for model in (found.models if found is not None else ())
                for prices in _bands(model.get_prices(now)).lists
            ]
            prices = [
                price
                for each in lists
                for name, price in zip(_CLASSES, each.by_class, strict=True)
                if price and name != "characters"
            ]
            self._highest[provider] = max(prices, default=None)
        return self._highest[provider]

    def _look_up(self, provider: str, model: str) -> _Bands | ModelInfo | PriceList | None:
        found = self._providers.get(_IDS.get(provider, provider))
        # Not by the package's snapshot, which remembers every name that it was asked for.
        info = found.find_model(model.removeprefix("models/"), all_providers=self._all) if found is not None else None
        if info is None or isinstance(info.prices, list):
            return info
        bands = _bands(info.prices)
        return bands if len(bands.lists) > 1 else bands.lists[0]


def _bands(prices: ModelPrice) -> _Bands:
    from genai_prices.types import ModelPrice, TieredPrices

    written = {name: price for name, price in vars(prices).items() if price is not None}
    tiered = [price for price in written.values() if isinstance(price, TieredPrices)]
    starts = sorted({0, *(tier.start for each in tiered for tier in each.tiers)})
    return _Bands(
        tuple(starts),
        tuple(
            _price_list(ModelPrice(**{name: _in_band(price, start) for name, price in written.items()}))
            for start in starts
        ),
    )


def _in_band(price: Decimal | TieredPrices, start: int) -> Decimal:
    """Return the price of a request with more than ``start`` input tokens."""
    from genai_prices.types import TieredPrices

    if not isinstance(price, TieredPrices):
        return price
    below = [tier for tier in price.tiers if tier.start <= start]
    return below[-1].price if below else price.base  # the package sorts them


def _price_list(prices: ModelPrice) -> PriceList:
    """Return what a million tokens of each class cost. A side without a price of its own has none."""
    from genai_prices import Usage

    def charged(*units: str) -> int:
        dollars = prices.calc_price(Usage(**dict.fromkeys(units, PER)))["total_price"]
        return int((dollars * NANO_PER_DOLLAR).to_integral_value("ROUND_HALF_UP"))

    written = vars(prices)
    units = dict(_UNITS)
    sides = {"input_tokens": "input_mtok" in written, "input_characters": "input_mchars" in written}
    sides["output_tokens"] = "output_mtok" in written or "output_image_mtok" in written
    if "output_mtok" not in written:
        units["output"] = ("output_tokens", "output_image_tokens")  # a model whose output is images
    request = charged()
    found = {name: charged(*parts) - request for name, parts in units.items() if sides[parts[0]]}
    if sides["output_tokens"]:
        found["reasoning"] = charged("output_tokens", "output_reasoning_tokens") - charged("output_tokens")
    else:
        found["reasoning"] = 0
    return PriceList(tuple(found.get(name) for name in _CLASSES), request)
