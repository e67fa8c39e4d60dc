"""Training complexity of the AD card"""

import pytest

from quantable.base.errors import UserError
from quantable.cost.training import training_complexity


@pytest.mark.parametrize(
    ("mac_pj", "expected"),
    [(0.4875, "0.507"), (0.390625, "0.466")],  # uniform 4 and 3 bit
)
def test_60_epochs_at_16_bit_then_140_quantized(mac_pj: float, expected: str) -> None:
    phases = [(60, 1.0), (140, 1.65 / mac_pj)]
    assert f"{training_complexity(phases, baseline_epochs=200):.3f}" == expected


def test_the_baseline_costs_one() -> None:
    assert training_complexity([(200, 1.0)], baseline_epochs=200) == 1


@pytest.mark.parametrize(
    ("phases", "baseline_epochs", "message"),
    [
        ([(1, 1.0)], 0, "baseline_epochs=0"),
        ([(1, 0.0)], 1, "efficiency 0.0"),
        ([(-1, 1.0)], 1, "-1 epochs"),
        ([(1, float("nan"))], 1, "efficiency nan"),
    ],
)
def test_impossible_phases(phases: list, baseline_epochs: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_complexity(phases, baseline_epochs=baseline_epochs)
