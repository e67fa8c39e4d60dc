"""Numbers of a layer from the integers of its weights, counted by hand."""

from collections.abc import Sequence

import pytest
import torch

from quantable.base.errors import UserError
from quantable.integers import by_layer
from quantable.integers.by_layer import layer_numbers, measure
from quantable.integers.by_layer.weights import l1_norm, zero_pct
from quantable.quantization.quantize import FinalLayer


def layer(integers: Sequence, *, scale: float = 0.5, offset: float = 0.0) -> FinalLayer:
    return FinalLayer(
        name="conv",
        kind="conv",
        integers=torch.tensor(integers),
        scale=torch.tensor(scale),
        offset=torch.tensor(offset),
        weight_bits=4,
        act=None,
        input_bits=4,
        input_signed=False,
        bias=None,
    )


@pytest.mark.parametrize(
    ("integers", "offset", "expected"),
    [
        ([[0, 1, -2, 0]], 0.0, 50.0),
        ([[1], [2], [3]], 0.0, 0.0),
        ([[0, 1, 2, 3]], -1.0, 25.0),  # the integer 2 is real zero
        ([[0, 1, 2, 3]], -0.75, 0.0),  # no level is
    ],
)
def test_zero_weights_are_those_of_the_value_zero(integers, offset, expected) -> None:
    assert zero_pct(layer(integers, offset=offset)) == expected


def test_the_norm_is_that_of_the_largest_output_channel() -> None:
    assert l1_norm(layer([[[1, -2]], [[-3, 4]], [[5, 0]]])) == 7.0


def test_each_number_is_of_each_layer() -> None:
    found = measure([layer([[0, 3]])])
    assert found is not None
    assert found.keys() == layer_numbers().keys()
    assert found["zero_pct"] == {"conv": 50.0}
    assert found["l1_norm"] == {"conv": 3.0}


def test_without_quantized_weights_there_are_none() -> None:
    assert measure([]) is None


def test_every_file_of_the_folder_has_its_numbers() -> None:
    assert layer_numbers().keys() >= {"zero_pct", "l1_norm"}


def test_a_number_that_is_not_defined_is_left_out_and_one_that_is_none_refused(monkeypatch) -> None:
    def of(value: float | None) -> dict | None:
        monkeypatch.setattr(by_layer, "layer_numbers", lambda: {"mine": lambda layer: value})
        return measure([layer([[1]])])

    assert of(None) == {"mine": {}}
    with pytest.raises(UserError, match="number by layer 'mine': nan of layer 'conv'"):
        of(float("nan"))
