"""Columns of final weights, counted by hand."""

import pytest

from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.cost.hardware import Hardware
from quantable.networks.layers import LayerShape
from quantable.store.record import Phase

SHAPES = [LayerShape(name, 1, weights, 1) for name, weights in (("a", 300), ("b", 100), ("c", 9))]
HARDWARE: Hardware = {}  # type: ignore[assignment]  # no column here asks for it


def facts(layers: dict[str, dict[str, float]] | None) -> Facts:
    phase = Phase(index=0, first_epoch=0, epochs=1, bits={}, layers=layers)
    return Facts(SHAPES, None, HARDWARE, phase=phase)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"zero_pct": {"a": 10.0, "b": 50.0}}, 20.0),  # 30 and 50 of 400; c stays in float
        ({"zero_pct": {"a": 10.0}, "l1_norm": {"a": 3.0}}, 10.0),
        ({"l1_norm": {"a": 3.0}}, None),  # a record from before the number was asked for
        (None, None),
    ],
)
def test_zero_weights_are_weighted_by_the_layers_sizes(layers, expected) -> None:
    assert COLUMNS["zero_weights_pct"].value(facts(layers)) == expected


def test_without_a_run_nothing_is_known() -> None:
    assert COLUMNS["zero_weights_pct"].value(Facts(SHAPES, None, HARDWARE)) is None
