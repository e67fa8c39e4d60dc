"""Columns of answers in integers, from records made by hand."""

from hand_records import record_of

from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.config.composition import compose_run
from quantable.cost.hardware import hardware_of
from quantable.store.record import Integers, SumsOfLayer
from quantable.tables.cells import Cell

NAMES = ("declared_bits", "data_type_bits", "known_weights_bits", "observed_bits", "wrapped")


def facts(*layers: SumsOfLayer, phase: int = -1, quantizer: str = "lsq") -> Facts:
    config = compose_run([f"quantizer={quantizer}"]) | {"seed": 0}
    record = record_of(Cell(None, "run", 0, config, ()), (4, [(50.0, 50.0)]), (3, [(40.0, 41.0)]))
    if layers:
        named = {f"layer{i}": layer for i, layer in enumerate(layers)}
        record.integers = Integers(
            images=10, observed_images=5, layers=named, exact_top1_pct=41.0, agreement_pct=99.0
        )
    return Facts(None, None, hardware_of(config), record, record.phases[phase])


def sums(declared: int | None, known: list[int], *, wrapped: int = 0) -> SumsOfLayer:
    return SumsOfLayer(
        terms=9,
        data_type=max(known) + 2,
        known_weights=known,
        observed=[bits - 1 for bits in known],
        declared=declared,
        sums=100,
        wrapped=wrapped,
        at_risk=0,
    )


def numbers(about: Facts) -> list[float | None]:
    return [COLUMNS[name].value(about) for name in NAMES]


def test_the_layer_that_needs_most_counts() -> None:
    about = facts(sums(14, [10, 12], wrapped=3), sums(14, [9, 11], wrapped=4))
    assert numbers(about) == [14, 14, 12, 11, 7]
    assert COLUMNS["wrapped"].reason(about) is None


def test_a_layer_that_is_free_counts_only_where_all_are() -> None:
    assert numbers(facts(sums(None, [20]), sums(12, [10]))) == [12, 12, 10, 9, 0]
    assert numbers(facts(sums(None, [20]), sums(None, [10]))) == [None, 22, 20, 19, None]


def test_what_was_not_asked_is_not_recorded() -> None:
    about = facts()
    assert numbers(about) == [None] * 5
    reason = COLUMNS["known_weights_bits"].reason(about)
    assert reason is not None
    assert "not recorded" in reason
    assert "action=integers" in reason


def test_a_float_network_has_none_to_record() -> None:
    assert COLUMNS["known_weights_bits"].reason(facts(quantizer="none")) is None


def test_weights_of_an_earlier_phase_are_gone() -> None:
    about = facts(sums(14, [10]), phase=0)
    assert numbers(about) == [None] * 5
