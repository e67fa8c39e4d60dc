"""Columns of what a network answers in integers, for every method's rows; docs/integers.md.

Bits of the sums are those of the layer that needs most, of those that declare some where any does.
What a run did not record is unknown: ``action=integers`` asks finished runs.
"""

from collections.abc import Callable, Sequence

from quantable.columns.facts import Column, Facts, Value
from quantable.store.record import Integers, SumsOfLayer

NOT_RECORDED = "integers: not recorded; ask the finished run with action=integers"


def _integers(facts: Facts) -> Integers | None:
    """Of the run's end: another phase's weights are gone."""
    record = facts.record
    if record is None or facts.phase is None or facts.phase != record.phases[-1]:
        return None
    return record.integers


def _asked(facts: Facts) -> str | None:
    """Why nothing stands there, where a quantized run has a record."""
    record = facts.record
    if record is None or _integers(facts) is not None:
        return None
    return NOT_RECORDED if "quantizer.callback._target_" in record.config else None


def _of_run(number: Callable[[Integers], float | None]) -> Value:
    def value(facts: Facts) -> float | None:
        found = _integers(facts)
        return None if found is None else number(found)

    return value


def _most(bits: Callable[[SumsOfLayer], Sequence[int]]) -> Value:
    """The most bits that a channel of a layer has; of one layer where the row shows one."""

    def value(facts: Facts) -> float | None:
        found = _integers(facts)
        if found is None:
            return None
        layers = [found.layers[facts.layer]] if facts.layer else [*found.layers.values()]
        asked = [layer for layer in layers if layer.declared is not None] or layers
        return max((most for layer in asked for most in bits(layer)), default=None)

    return value


def _total(count: Callable[[SumsOfLayer], int]) -> Value:
    """A count over all layers, where bits are declared."""

    def number(found: Integers) -> float | None:
        declared = [layer for layer in found.layers.values() if layer.declared is not None]
        return sum(map(count, declared)) if declared else None

    return _of_run(number)


def _column(title: str, unit: str, decimals: int, value: Value) -> Column:
    return Column(title, unit, decimals, True, value, _asked)


def _declared(layer: SumsOfLayer) -> Sequence[int]:
    return [] if layer.declared is None else [layer.declared]


COLUMNS = {
    "declared_bits": _column("bits of the sums", "bit", 0, _most(_declared)),
    "data_type_bits": _column("needed by data type", "bit", 0, _most(lambda s: [s.data_type])),
    "known_weights_bits": _column(
        "needed by known weights", "bit", 0, _most(lambda s: s.known_weights)
    ),
    "observed_bits": _column("observed", "bit", 0, _most(lambda s: s.observed)),
    "wrapped": _column("wrapped sums", "1", 0, _total(lambda s: s.wrapped)),
    "at_risk": _column("sums at risk", "1", 0, _total(lambda s: s.at_risk)),
    "exact_top1_pct": _column(
        "top-1, wide sums", "%", 2, _of_run(lambda found: found.exact_top1_pct)
    ),
    "wrap_top1_pct": _column("top-1, wrapping", "%", 2, _of_run(lambda found: found.wrap_top1_pct)),
    "saturate_top1_pct": _column(
        "top-1, saturating", "%", 2, _of_run(lambda found: found.saturate_top1_pct)
    ),
    "integer_agreement_pct": _column(
        "integers' agreement", "%", 2, _of_run(lambda found: found.agreement_pct)
    ),
    "wrap_agreement_pct": _column(
        "wrapping, agreement with wide sums",
        "%",
        2,
        _of_run(lambda found: found.wrap_agreement_pct),
    ),
    "saturate_agreement_pct": _column(
        "saturating, agreement with wide sums",
        "%",
        2,
        _of_run(lambda found: found.saturate_agreement_pct),
    ),
}
