"""How the emulated Lava bills: prices, and how records come late, get lost, double or fail.

Lava's documents leave open what these options decide, so a client must be right under each. A test
sets them on ``world.behaviour.biller`` at any time; ``lava-proxy emulator --biller`` sets them at
start. For one request, the faults ``record-lost``, ``record-doubled`` and ``record-unmetered``
decide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from proxy.emulator.records import Consumption

RecordOutcome = Literal["billed", "lost", "doubled", "unmetered"]
Repeated = Literal["conflict", "first", "twice"]

OPTIONS = (
    "lost, doubled, unmetered (shares from 0 to 1), delay_seconds, pending_seconds, keep, lost_in_usage (true or false), "
    f"repeated ({', '.join(get_args(Repeated))}), outcomes ({', '.join(get_args(RecordOutcome))}; several with commas), "
    "price.MODEL (dollars per 1M tokens: INPUT,CACHED,WRITE,OUTPUT)"
)


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Dollars per token of each class."""

    input: Decimal = Decimal("0.000001")
    cached_input: Decimal = Decimal("0.0000001")
    cache_write: Decimal = Decimal("0.00000125")
    output: Decimal = Decimal("0.000004")

    def cost(self, used: Consumption) -> tuple[Decimal, Decimal]:
        """Return the cost of input and of output."""
        uncached = used.input_tokens - used.cached_input_tokens - used.cache_write_tokens
        cached = self.cached_input * used.cached_input_tokens + self.cache_write * used.cache_write_tokens
        return self.input * uncached + cached, self.output * used.output_tokens


@dataclass
class Biller:
    """``delay_seconds``: a record is listed this long after its request, and is ``pending`` for
    ``pending_seconds`` more.

    ``lost``, ``doubled`` and ``unmetered`` are shares of the records of good responses, spread
    evenly: a lost record is charged and never listed, a doubled one is charged and listed twice
    with two ids, an unmetered one has the status ``error`` and is not charged. ``outcomes`` are used
    first, one for each good response. ``repeated`` is what a ``POST requests`` with a known
    ``request_id`` does: 409, return the first record, or bill twice, with a new id. ``lost_in_usage``:
    the usage report counts lost records as well. Lava does not document it; as their charges left
    the wallet, that is the default. ``keep`` bounds the records.
    """

    delay_seconds: float = 0.0
    pending_seconds: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    unmetered: float = 0.0
    outcomes: list[RecordOutcome] = field(default_factory=list)
    repeated: Repeated = "conflict"
    lost_in_usage: bool = True
    keep: int = 10_000
    _prices: dict[str, list[tuple[float, TokenPrices]]] = field(default_factory=dict)
    _due: dict[RecordOutcome, float] = field(default_factory=dict)

    def next_outcome(self) -> RecordOutcome:
        """Return the outcome of the next record."""
        if self.outcomes:
            return self.outcomes.pop(0)
        shares: dict[RecordOutcome, float] = {"lost": self.lost, "doubled": self.doubled, "unmetered": self.unmetered}
        for at, (outcome, share) in enumerate(shares.items()):
            # Each begins at another third, so that equal shares do not fall on the same requests.
            self._due[outcome] = round(self._due.get(outcome, at / 3) + share, 9)
        due: RecordOutcome = next((outcome for outcome in shares if self._due[outcome] >= 1), "billed")
        if due != "billed":
            self._due[due] -= 1
        return due

    def set_prices(self, prices: TokenPrices, model: str = "*", start: float = 0.0) -> None:
        """Bill requests of ``model`` (``*``: all others) by ``prices`` from ``start`` on."""
        periods = self._prices.setdefault(model, [])
        periods.append((start, prices))
        periods.sort(key=lambda period: period[0])

    def prices(self, model: str | None, now: float) -> TokenPrices:
        for name in (model or "", "*"):
            for start, prices in reversed(self._prices.get(name, ())):
                if start <= now:
                    return prices
        return TokenPrices()

    def set(self, option: str) -> None:
        """Set one ``NAME=VALUE`` of ``OPTIONS``; raise ``ValueError``."""
        name, _, value = option.partition("=")
        if name.startswith("price."):
            per_million = [_money(one) for one in value.split(",")]
            if len(per_million) != 4:
                raise ValueError(f"{name} has to be four prices")
            self.set_prices(TokenPrices(*per_million), name.removeprefix("price."))
        elif name in ("lost", "doubled", "unmetered"):
            if not 0 <= float(value) <= 1:
                raise ValueError(f"{name} has to be from 0 to 1")
            setattr(self, name, float(value))
        elif name in ("delay_seconds", "pending_seconds"):
            setattr(self, name, abs(float(value)))
        elif name == "keep":
            self.keep = max(1, int(value))
        elif name == "lost_in_usage" and value in ("true", "false"):
            self.lost_in_usage = value == "true"
        elif name == "repeated" and value in get_args(Repeated):
            self.repeated = value  # type: ignore[assignment]
        elif name == "outcomes" and all(one in get_args(RecordOutcome) for one in value.split(",")):
            self.outcomes += value.split(",")  # type: ignore[arg-type]
        else:
            raise ValueError(f"{option!r} is unknown. There are {OPTIONS}")


def _money(text: str) -> Decimal:
    try:
        return Decimal(text) / 1_000_000
    except ArithmeticError:
        raise ValueError(f"{text!r} is not a price") from None
