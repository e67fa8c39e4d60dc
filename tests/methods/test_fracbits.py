"""FracBits: quantizers against their formulas, expected operations, and what is as published."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.methods.fracbits import ClippedAct, FracBits, TanhWeight, rounded_as_published
from quantable.networks.counting import layer_shapes
from quantable.training.schedule import constant

# Quantizers


def to_unit_grid(r: np.ndarray, bits: int) -> np.ndarray:
    """The authors' scheme "original"."""
    return np.round((2**bits - 1) * r) / (2**bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_weights_are_rounded_behind_tanh(bits: int) -> None:
    w = np.linspace(-2, 1.5, 41)
    t = np.tanh(w)
    expected = 2 * to_unit_grid(t / np.abs(t).max() / 2 + 0.5, bits) - 1
    ours = TanhWeight(bits, signed=True, batched=False)(torch.tensor(w))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_a_real_width_mixes_both_neighbours() -> None:
    w = np.linspace(-2, 1.5, 41)
    r = np.tanh(w) / np.tanh(2) / 2 + 0.5
    ours = TanhWeight(3, signed=True, batched=False)
    ours.relax(3.25)
    expected = 2 * (0.75 * to_unit_grid(r, 3) + 0.25 * to_unit_grid(r, 4)) - 1
    np.testing.assert_allclose(ours(torch.tensor(w)).detach().numpy(), expected, rtol=0, atol=1e-7)


def act(bits: int, *, signed: bool) -> ClippedAct:
    return ClippedAct(bits, signed=signed, batched=True, clip_init=2.0).double()


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activations_are_clipped_and_rounded(bits: int, signed: bool) -> None:
    x = np.linspace(-3, 3, 53)
    if signed:
        expected = 2.0 * (2 * to_unit_grid((np.clip(x / 2.0, -1, 1) + 1) / 2, bits) - 1)
    else:
        expected = 2.0 * to_unit_grid(np.clip(x, 0, 2.0) / 2.0, bits)
    ours = act(bits, signed=signed)(torch.tensor(x))
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [None, 3.4], ids=["integer", "real"])
def test_clip_has_the_gradient_of_what_is_beyond_it(width: float | None) -> None:
    x = torch.tensor([-5.0, -0.3, 0.4, 1.9, 2.5, 7.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    for signed, expected in ((False, 16 + 32), (True, 16 + 32 - 1)):
        ours = act(3, signed=signed)
        if width is not None:
            ours.relax(width)
            ours.double()
        x.grad = None
        ours(x).backward(upstream)
        assert ours.clip.grad.item() == expected
        assert x.grad.tolist() == [0, 2.0 if signed else 0, 4, 8, 0, 0]


# Budget

SIZE = (3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def method(**changes: Any) -> FracBits:
    return FracBits(
        **{
            "weight": partial(TanhWeight, batched=False),
            "act": partial(ClippedAct, batched=True, clip_init=8.0),
            "inner": [4, 4],
            "ends": [8, 8],
            "layers": {},
            "epochs": [4, 1],
            "cost": "bops",
            "target": 3.0,
            "start_above": 0.5,
            "range": [2, 8],
            "strength": 1.0,
            "optimizer": partial(torch.optim.Adam, lr=0.1),
            "schedule": constant,
            "as_published": False,
        }
        | changes
    )


def attached(**changes: Any) -> tuple[FracBits, nn.Module]:
    ours, net = method(**changes), network()
    ours.attach(net, SIZE)
    return ours, net


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SIZE)), 3))


def test_a_network_of_one_layer_is_searched_but_not_as_published() -> None:
    ours = method(ends=None)
    ours.attach(one_layer(), SIZE)
    assert set(ours.searched) == {("1", "weight"), ("1", "act")}
    with pytest.raises(UserError, match="nothing to search"):  # its input is float there
        method(ends=None, as_published=True).attach(one_layer(), SIZE)


@pytest.mark.parametrize("as_published", [False, True])
def test_a_network_without_layers_is_refused(as_published: bool) -> None:
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        method(as_published=as_published).attach(nn.BatchNorm2d(SIZE[0]), SIZE)


def test_expected_operations_are_bilinear_over_the_four_neighbouring_pairs() -> None:
    ours, _ = attached()
    draw = np.random.default_rng(0)
    real = {operand: draw.uniform(2, 8) for operand in ours.searched}
    expected = 0.0
    for shape in layer_shapes(network(), SIZE):
        widths = [real.get((shape.name, which), 8.0) for which in ("weight", "act")]
        below = [int(np.floor(width)) for width in widths]
        for up in product((0, 1), repeat=2):
            chance = [
                width - k if one else 1 - width + k
                for width, k, one in zip(widths, below, up, strict=True)
            ]
            pair = [k + one for k, one in zip(below, up, strict=True)]
            expected += shape.macs * chance[0] * chance[1] * pair[0] * pair[1]
    assert ours.cost_of(real) == pytest.approx(expected)


def test_the_budget_is_the_uniform_networks() -> None:
    macs = {shape.name: shape.macs for shape in layer_shapes(network(), SIZE)}
    ours, _ = attached(target=3)
    assert ours.limit == 64 * (macs["0"] + macs["7"]) + 9 * (macs["2"] + macs["4"])
    ours, _ = attached(target=2.5, cost="weights")
    assert ours.limit == (8 * (216 + 160) + 2.5 * (576 + 72)) / 8
    assert set(ours.real().values()) == {3.0}  # half a bit above it


def test_penalty_is_the_distance_on_both_sides() -> None:
    ours, _ = attached(strength=3.0)
    above, below = (ours.penalty_of(torch.tensor(spent)) for spent in (1.2, 0.9))
    assert above.item() == pytest.approx(0.6)
    assert below.item() == pytest.approx(0.3)


def test_first_input_and_last_layer_keep_their_widths() -> None:
    ours, _ = attached()
    assert set(ours.real()) == {(name, which) for name in "24" for which in ("weight", "act")}
    assert ours.bits["0"] == ours.bits["7"] == Bits(8, 8)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cost", ["bops", "weights"])
def test_rounding_keeps_the_budget(cost: str, seed: int) -> None:
    ours, _ = attached(cost=cost, target=3.3)
    draw = np.random.default_rng(seed)
    bits = ours.rounded({operand: draw.uniform(2, 8) for operand in ours.searched})
    assert ours.cost_of(bits) <= ours.limit
    assert set(bits.values()) <= set(range(2, 9))


# As published


def test_as_published_the_image_is_float_and_the_last_input_searched() -> None:
    ours, net = attached(as_published=True)
    assert ours.bits["0"] == Bits(8, 32)
    assert set(ours.real()) - {(name, which) for name in "24" for which in ("weight", "act")} == {
        ("7", "act")
    }
    assert not hasattr(net[0], "act_quantizer")


def test_as_published_activations_keep_their_real_widths_in_fine_tuning() -> None:
    for published in (True, False):
        ours, _ = attached(as_published=published)
        ours.settle()
        mixing = {which: found.mixing for (_, which), found in ours.searched.items()}
        assert mixing == {"weight": False, "act": published}
        assert not any(found.real_bits.requires_grad for found in ours.searched.values())


def test_as_published_an_offset_lowers_widths_and_never_raises_them() -> None:
    real = {(str(i), "weight"): width for i, width in enumerate((2.6, 3.4, 4.4, 6.2))}

    def total(bits) -> float:
        return float(sum(bits.values()))

    nearest = [3, 3, 4, 6]
    most = rounded_as_published(real, total, 100.0, least=2, most=8)
    assert list(most.values()) == nearest  # ours has 8 8 8 8 there
    lower = rounded_as_published(real, total, 14.0, least=2, most=8)
    assert list(lower.values()) == [2, 3, 4, 5]  # an offset of -0.75
    least = rounded_as_published(real, total, 4.0, least=2, most=8)
    assert list(least.values()) == [2, 2, 3, 5]  # a whole bit lower, and above the limit
