"""Prices from the wire: what the biller charges for each token class of a model, learned from billed requests.

Theory. A billed cost is the sum of the counts by class, each times its price, rounded by the biller. So the prices are the
non-negative least-squares solution over some requests. It is computed exactly, with fractions: counts of one and of a million
stand beside each other in one system, and floats would lose the small ones. Published prices are short decimal numbers; the
solution is rounded to the shortest that still explains every request to the biller's last digit. That removes what its
rounding put in, and an estimate then equals the bill.

A class is learned when the requests determine it: it occurs in two of them, there are five with different counts, and the
biller's rounding cannot shift its price by more than ``_MAX_SHIFT``. Requests that no prices explain (another tier, a discount,
a count that is missing) teach nothing. Ten bills in a row that leave the learned price by more than 1 % are a change of price:
it is reported once, and learned again from these ten and later ones.

Counts are those of one upstream call. Costs are in billionths of a dollar, prices in billionths per million tokens. This module
has no database; ``price_store.py`` has its queries.
"""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.pricing import PER
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.ledger.pricing import Prices

MIN_ROWS: Final = 5
MAX_ROWS: Final = 64
"""Rows of a model that are kept: the newest with different counts."""
CHANGED_ROWS: Final = 10
CHANGED_PERCENT: Final = 1
_MAX_MODELS: Final = 4096
_MAX_SHIFT: Final = Fraction(1, 500)
_MIN_SHIFT: Final = 100_000  # a price of 0.0001 dollars per million tokens: no published price is finer
_GRIDS: Final = tuple(10**digits for digits in range(12, -1, -1))
_MAX_QUANTUM: Final = 10**7  # a biller that rounds to cents
_MAX_WAIT: Final = 256

# Reasoning is charged as output, of which it is a part.
COLUMNS: Final = tuple(name for name in TokenClasses._fields if name != "reasoning")
_INDEXES: Final = tuple(TokenClasses._fields.index(name) for name in COLUMNS)
_SIDES: Final = (COLUMNS.index("input"), COLUMNS.index("output"))


class Learned(NamedTuple):
    """Prices by class, and the number of requests that they explain."""

    prices: Mapping[str, int]
    rows: int


class PriceChange(NamedTuple):
    """The bills of a model left its learned price. ``expected`` and ``billed`` are sums of the last ten, in billionths."""

    provider: str
    model: str
    expected: int
    billed: int

    @property
    def percent(self) -> float:
        """How much more (or less) is billed."""
        return 100 * (self.billed - self.expected) / self.expected if self.expected else 100.0


class _BilledRow(NamedTuple):
    counts: tuple[int, ...]  # by column
    billed: int


class Learning:
    """Learns the prices of all models, and passes them to ``prices``."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._models: OrderedDict[tuple[str, str], _Model] = OrderedDict()
        self._changed: set[tuple[str, str]] = set()

    def load(self, provider: str, model: str, prices: Mapping[str, int], rows: int) -> None:
        """Take what was stored."""
        known = {name: price for name, price in prices.items() if name in COLUMNS}
        self._model(provider, model).learned = Learned(known, rows)
        self._prices.learn(provider, model, known)

    def observe(self, provider: str, model: str, classes: TokenClasses, billed: int) -> PriceChange | None:
        """Learn from one billed upstream call. Return a change of price, once for each change."""
        found = self._model(provider, model)
        before = found.learned
        change = found.add(classes, billed)
        if found.learned.prices != before.prices:
            self._changed.add((provider, model))
            self._prices.learn(provider, model, found.learned.prices)
        return PriceChange(provider, model, *change) if change is not None else None

    def changed(self) -> dict[tuple[str, str], Learned]:
        """Return what was learned since the last call, by provider and model. No prices: delete the stored ones."""
        changed, self._changed = self._changed, set()
        return {key: self._models[key].learned for key in changed if key in self._models}

    def _model(self, provider: str, model: str) -> _Model:
        key = provider, model
        found = self._models.get(key)
        if found is None:
            if len(self._models) >= _MAX_MODELS:
                self._models.popitem(last=False)
            found = self._models[key] = _Model()
        self._models.move_to_end(key)
        return found


class _Model:
    """The rows and the prices of one model."""

    __slots__ = ("_in_vain", "_leaving", "_rows", "_step", "_wait", "learned")

    def __init__(self) -> None:
        self.learned = Learned({}, 0)
        self._step: int | None = None  # in which the biller rounds; unknown for prices that were loaded
        self._rows: OrderedDict[tuple[int, ...], int] = OrderedDict()  # billed cost by counts, the newest last
        self._leaving: list[_BilledRow] = []  # in a row
        self._wait = 0  # rows until the next attempt to learn
        self._in_vain = 0

    def add(self, classes: TokenClasses, billed: int) -> tuple[int, int] | None:
        """Add a row; return the expected and the billed sum if it is the tenth that leaves the price."""
        if billed < 0 or all(classes[each] is None for each in _INDEXES):
            return None
        row = _BilledRow(tuple(classes[each] or 0 for each in _INDEXES), billed)
        if self._lacks_a_side(classes) or not any(row.counts):
            return None
        expected = self._expected(row.counts)
        if expected is None:
            self._keep(row)
            self._try()
        elif self._leaves(expected, billed):
            self._leaving.append(row)
            if len(self._leaving) == CHANGED_ROWS:
                return self._begin_again()
        else:
            self._leaving.clear()
            self._keep(row)
            if abs(billed - expected) > 1:
                self._try()
            elif self._step is None:
                self._step = 1
        return None

    def _leaves(self, expected: int, billed: int) -> bool:
        step = self._step or _quantum([billed])
        return 100 * abs(billed - expected) > CHANGED_PERCENT * expected + 100 * step

    def _begin_again(self) -> tuple[int, int]:
        """Forget the price and learn from the rows that left it. Return what was expected for them, and what was billed."""
        rows, self._leaving = self._leaving, []
        expected = sum(self._expected(each.counts) or 0 for each in rows)
        self._rows.clear()
        self.learned, self._step = Learned({}, 0), None
        for each in rows:
            self._keep(each)
        self._in_vain = 0
        self._learn()
        return expected, sum(each.billed for each in rows)

    def _lacks_a_side(self, classes: TokenClasses) -> bool:
        """Whether input or output is unknown here, but not in other rows: a stream that was cut is billed in full."""
        for column in _SIDES:
            if classes[_INDEXES[column]] is None:
                name = COLUMNS[column]
                if name in self.learned.prices or any(counts[column] for counts in self._rows):
                    return True
        return False

    def _expected(self, counts: tuple[int, ...]) -> int | None:
        """Return the cost by the learned prices, ``None`` if one of them is missing."""
        total = 0
        for name, count in zip(COLUMNS, counts, strict=True):
            if count:
                price = self.learned.prices.get(name)
                if price is None:
                    return None
                total += count * price
        return (total + PER // 2) // PER

    def _keep(self, row: _BilledRow) -> None:
        self._rows.pop(row.counts, None)
        self._rows[row.counts] = row.billed
        if len(self._rows) > MAX_ROWS:
            self._rows.popitem(last=False)

    def _try(self) -> None:
        self._wait -= 1
        if self._wait <= 0:
            self._learn()

    def _learn(self) -> None:
        """Learn from all rows, or from the newest that agree."""
        rows = list(self._rows.items())
        size = len(rows)
        while size >= MIN_ROWS:
            found = solve(rows[-size:])
            if found is not None:
                # What was learned before and does not occur in these rows stays.
                prices, self._step = found
                self.learned = Learned({**self.learned.prices, **prices}, size)
                self._wait = self._in_vain = 0
                return
            size //= 2
        if len(rows) >= MIN_ROWS:
            self._in_vain += 1
            self._wait = min(_MAX_WAIT, 2**self._in_vain)


# --- the solution ----------------------------------------------------------------------------------------------------


def solve(rows: Sequence[tuple[tuple[int, ...], int]]) -> tuple[dict[str, int], int] | None:
    """Return the prices by class that explain these rows, and the step in which the biller rounds; ``None`` if none do.

    A row is its counts, in the order of ``COLUMNS``, and its billed cost.
    """
    chosen, columns = _determined(list(rows))
    if not columns or len(chosen) < max(MIN_ROWS, len(columns)):
        return None
    matrix = [[counts[column] for column in columns] for counts, _ in chosen]
    billed = [cost for _, cost in chosen]
    products = [[sum(row[i] * row[j] for row in matrix) for j in range(len(columns))] for i in range(len(columns))]
    inverse = _inverse(products)
    if inverse is None:
        return None
    sums = [sum(row[i] * cost for row, cost in zip(matrix, billed, strict=True)) for i in range(len(columns))]
    exact = [price * PER for price in _non_negative(products, sums)]
    for step in sorted({1, _quantum(billed)}):
        prices = _shortest(exact, matrix, billed, step)
        if prices is not None and _is_precise(prices, inverse, len(chosen), step):
            return {COLUMNS[column]: price for column, price in zip(columns, prices, strict=True)}, step
    return None


def _determined(rows: list[tuple[tuple[int, ...], int]]) -> tuple[list[tuple[tuple[int, ...], int]], list[int]]:
    """Return the columns that occur in two rows or more, and the rows without other columns."""
    while True:
        occurring = [sum(1 for counts, _ in rows if counts[column]) for column in range(len(COLUMNS))]
        rare = [column for column, number in enumerate(occurring) if number == 1]
        if not rare:
            return rows, [column for column, number in enumerate(occurring) if number]
        rows = [row for row in rows if not any(row[0][column] for column in rare)]


def _non_negative(products: list[list[int]], sums: list[int]) -> list[Fraction]:
    """Solve the normal equations for the best non-negative solution (Lawson and Hanson, 1974), exactly."""
    size = len(sums)
    found = [Fraction(0)] * size
    free: list[int] = []
    while True:
        slopes = [sums[i] - sum(products[i][j] * found[j] for j in range(size)) for i in range(size)]
        best = max((i for i in range(size) if i not in free), key=lambda i: slopes[i], default=None)
        if best is None or slopes[best] <= 0:
            return found
        free.append(best)
        while True:
            tried = _solution([[products[i][j] for j in free] for i in free], [sums[i] for i in free])
            below = [(index, value) for index, value in zip(free, tried, strict=True) if value <= 0]
            if not below:
                break
            step = min(found[index] / (found[index] - value) for index, value in below)
            for index, value in zip(free, tried, strict=True):
                found[index] += step * (value - found[index])
            free = [index for index in free if found[index] > 0]
        found = [Fraction(0)] * size
        for index, value in zip(free, tried, strict=True):
            found[index] = value


def _solution(matrix: list[list[int]], right: list[int]) -> list[Fraction]:
    """Solve a regular system of equations by elimination."""
    inverse = _inverse(matrix)
    if inverse is None:
        raise ValueError("a part of a regular matrix of products is regular")
    return [sum((each * value for each, value in zip(row, right, strict=True)), start=Fraction(0)) for row in inverse]


def _inverse(matrix: list[list[int]]) -> list[list[Fraction]] | None:
    """Return the inverse of a symmetric matrix of products; ``None`` if there is none."""
    size = len(matrix)
    rows = [
        [Fraction(value) for value in row] + [Fraction(int(i == j)) for j in range(size)]
        for i, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = next((row for row in range(column, size) if rows[row][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        top = rows[column]
        scale = top[column]
        top = rows[column] = [value / scale for value in top]
        for other in range(size):
            factor = rows[other][column]
            if other != column and factor:
                rows[other] = [value - factor * above for value, above in zip(rows[other], top, strict=True)]
    return [row[size:] for row in rows]


def _shortest(
    exact: Sequence[Fraction], matrix: Sequence[Sequence[int]], billed: Sequence[int], step: int
) -> list[int] | None:
    """Return the prices with the fewest digits that explain every bill to its last digit; ``None`` if none do."""
    for grid in _GRIDS:
        prices = [grid * _half_up(price / grid) for price in exact]
        if all(
            abs(sum(count * price for count, price in zip(row, prices, strict=True)) - cost * PER) <= step * PER
            for row, cost in zip(matrix, billed, strict=True)
        ):
            return prices
    return None


def _is_precise(prices: Sequence[int], inverse: Sequence[Sequence[Fraction]], rows: int, step: int) -> bool:
    """Whether the biller's rounding cannot have shifted a price by more than ``_MAX_SHIFT``.

    The shift is at most the length of all roundings together, times the root of the inverse's diagonal.
    """
    for index, price in enumerate(prices):
        allowed = max(Fraction(_MIN_SHIFT), price * _MAX_SHIFT)
        if inverse[index][index] * rows * step * step * PER * PER / 4 > allowed * allowed:
            return False
    return True


def _quantum(billed: Sequence[int]) -> int:
    """Return the step in which the biller rounds: the largest power of ten that divides every bill."""
    quantum = 1
    while quantum < _MAX_QUANTUM and all(cost % (10 * quantum) == 0 for cost in billed):
        quantum *= 10
    return quantum


def _half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)
