"""Columns of what fits an accumulator of P bits by widths alone (``cost.accumulators``).

A row that declares its accumulator (``bits.accumulator``) shows which norms of the weights that
allows; any other which widths each of some accumulators allows its layer, or where the row shows a
whole network, the layer with the longest sums. Data count as unsigned, which they are behind a
ReLU; a layer of signed data, as images are, has one bit more.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from quantable.base.bits import FLOAT_BITS
from quantable.columns.facts import Column, Facts, Value
from quantable.cost.accumulators import budget, centred_l1_limit, l1_limit, tight_pairs
from quantable.networks.layers import LayerShape

ACCUMULATORS = (32, 24, 16, 12, 8)
SEARCHED = (16, 12)  # accumulators whose tight pairs are counted
WIDTHS = range(2, 9)  # that ACQ's search tries, of weights and data


def shown_layers(facts: Facts) -> Sequence[LayerShape]:
    """The row's layer, or all; none where they are not known."""
    return [s for s in facts.now or () if facts.layer in (None, s.name)]


def _open(number: Callable[[Sequence[LayerShape]], int | None]) -> Value:
    """Make a column's function of the row's layers, of rows that declare no accumulator."""

    def value(facts: Facts) -> float | None:
        layers = shown_layers(facts)
        return number(layers) if layers and facts.accumulator is None else None

    return value


def _of_terms(number: Callable[[int], int]) -> Value:
    """Make a column's function of the most terms K; None where an older file lacks a layer's."""

    def most(layers: Sequence[LayerShape]) -> int | None:
        known = [k for layer in layers if (k := layer.terms) is not None]
        return number(max(known)) if len(known) == len(layers) else None

    return _open(most)


def pairs(accumulator_bits: int, terms: int) -> list[tuple[int, int]]:
    """Tight pairs of ACQ's search, (weight, data) bits, by data type; data unsigned.

    >>> pairs(16, 1728), pairs(12, 1728)
    ([(3, 2), (2, 3)], [])
    """
    most = budget(accumulator_bits, terms, data_signed=False)
    return tight_pairs(lambda weight, data: weight + data <= most, WIDTHS, WIDTHS)


def _limit(of: Callable[[int, int], Fraction]) -> Value:
    """Make a column's function of the row's accumulator and its widest data; None for float."""

    def value(facts: Facts) -> float | None:
        if facts.accumulator is None or facts.bits is None:
            return None
        data = max(facts.bits[shape.name].act for shape in shown_layers(facts))
        return None if data == FLOAT_BITS else float(of(facts.accumulator, data))

    return value


def _columns() -> Iterator[tuple[str, Column]]:
    def bits(title: str, value: Value) -> Column:
        return Column(title, "bit", 0, False, value)

    yield "sum_terms", Column("terms K", "1", 0, False, _of_terms(lambda k: k))
    yield "log2_terms", bits("log2 K, up", _of_terms(lambda k: (k - 1).bit_length()))
    for p in ACCUMULATORS:
        fits = _of_terms(lambda k, p=p: budget(p, k, data_signed=False))  # type: ignore[misc]
        yield f"budget_{p}_bits", bits(f"budget at {p}", fits)
    for p in SEARCHED:
        count = _of_terms(lambda k, p=p: len(pairs(p, k)))  # type: ignore[misc]
        yield f"tight_pairs_{p}_bits", Column(f"tight pairs at {p}", "1", 0, False, count)
    weights, macs = (
        _open(lambda s: sum(x.weights for x in s)),
        _open(lambda s: sum(x.macs for x in s)),
    )
    yield "weights", Column("weights", "1", 0, False, weights)
    yield "macs", Column("MACs", "1", 0, False, macs)
    unsigned = _limit(lambda p, data: l1_limit(p, data, data_signed=False))
    yield "l1_limit", Column("l1 limit", "1", 3, False, unsigned)
    yield "centred_l1_limit", Column("l1 limit if centred", "1", 3, False, _limit(centred_l1_limit))


COLUMNS = dict(_columns())
