"""BOPs: hand counts, missing layers, and the gradient by the bit-widths."""

import pytest
import torch
from hand_shapes import uniform, vgg19

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.cost.bops import bops
from quantable.networks.layers import LayerShape

LAYERS = [LayerShape("a", macs=1000, weights=90, inputs=100), LayerShape("b", 50, 50, 10)]


def test_each_layer_has_its_own_product() -> None:
    assert bops(LAYERS, {"a": Bits(2, 4), "b": Bits(8, 8)}) == 1000 * 8 + 50 * 64


def test_vgg19_at_w4a4() -> None:
    layers = vgg19()
    assert bops(layers, uniform(layers, 4)) == 16 * 398_136_320


def test_missing_layer_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown layer 'conv16'\. Nearest: conv_16"):
        bops([LayerShape("conv16", 1, 1, 1)], {"conv_16": Bits(2, 2), "fc": Bits(2, 2)})


def test_gradient_by_a_bit_width_is_macs_times_the_other() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    act = torch.tensor(5.0, requires_grad=True)
    bops(LAYERS, {"a": Bits(weight, act), "b": Bits(8, 8)}).backward()
    assert (weight.grad, act.grad) == (1000 * 5, 1000 * 3)
