"""Sums in integers against a NumPy loop in int64, and the bound by known weights against qonnx."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from qonnx.core.datatype import DataType
from qonnx.util.basic import calculate_matvec_accumulator_range
from timm.layers import Conv2dSame, StdConv2d
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.cost.accumulators import bits_of, data_type_bits
from quantable.integers import emulation
from quantable.integers.emulation import Product, check_arithmetic, wrap

Integers = NDArray[np.int64]


def terms_of(layer: nn.Module, weight: Tensor, q: Tensor) -> Integers:
    """Every product of every sum, (n, c_out, *size, terms): channel, kernel row, kernel column."""
    if isinstance(layer, nn.Linear):
        return weight.numpy() * q.numpy().astype(np.int64)[..., None, :]
    kernel, stride, dilation = weight.shape[2:], layer.stride, layer.dilation
    size = q.shape[2:]
    if isinstance(layer, Conv2dSame) or layer.padding == "same":
        out = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        total = [
            max((o - 1) * s + (k - 1) * d + 1 - n, 0)
            for o, s, k, d, n in zip(out, stride, kernel, dilation, size, strict=True)
        ]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in layer.padding]
    x = np.pad(q.numpy().astype(np.int64), [(0, 0), (0, 0), *pads])
    out = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(x.shape[2:], dilation, kernel, stride, strict=True)
    ]
    c_out, per_group = weight.shape[:2]
    found = np.zeros((len(q), c_out, *out, per_group * int(np.prod(kernel))), np.int64)
    for o, c, at in product(range(c_out), range(per_group), np.ndindex(*kernel)):
        first = o // (c_out // layer.groups) * per_group
        starts = [a * d for a, d in zip(at, dilation, strict=True)]
        window = [
            slice(start, start + (n - 1) * s + 1, s)
            for start, n, s in zip(starts, out, stride, strict=True)
        ]
        term = c * int(np.prod(kernel)) + int(np.ravel_multi_index(at, kernel))
        found[:, o, ..., term] = x[:, first + c][(slice(None), *window)] * int(weight[o, c][at])
    return found


def saturating(bias: Integers, terms: Integers, bits: int) -> Integers:
    """Clip after each addition; ``bias`` broadcasts against sums."""
    sums = np.broadcast_to(bias, terms.shape[:-1]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for term in range(terms.shape[-1]):
        sums = (sums + terms[..., term]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return sums


LAYERS = {
    "3x3": (nn.Conv2d(19, 6, 3, padding=1), (2, 19, 5, 4)),
    "strided": (nn.Conv2d(5, 8, 3, stride=2, padding=1), (3, 5, 7, 8)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(2, 3), padding=(2, 0)), (2, 4, 7, 9)),
    "grouped": (nn.Conv2d(34, 6, 3, groups=2, stride=(1, 2)), (2, 34, 5, 6)),
    "depthwise": (nn.Conv2d(6, 12, 5, groups=6, padding=2), (2, 6, 6, 5)),
    "1x1": (nn.Conv2d(200, 3, 1), (2, 200, 3, 3)),
    "same": (nn.Conv2d(4, 5, 4, padding="same"), (2, 4, 6, 5)),
    "same as in TensorFlow": (Conv2dSame(4, 5, 3, stride=2), (2, 4, 6, 7)),
    "1d": (nn.Conv1d(7, 4, 3, padding=1, stride=2), (2, 7, 9)),
    "3d": (nn.Conv3d(2, 3, 2, padding=1), (1, 2, 3, 4, 3)),
    "linear": (nn.Linear(170, 9), (6, 170)),
    "tokens": (nn.Linear(24, 7), (2, 5, 24)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("signed", [False, True])
def test_sums_are_those_of_an_int64_loop(name: str, signed: bool, monkeypatch) -> None:
    """Exact, wrapped, at risk and saturated (by repair, and all added up), in 8 and more bits."""
    layer, size = LAYERS[name]
    random = torch.Generator().manual_seed(len(name) + signed)
    for weight_bits, data_bits in ((1, 8), (2, 4), (3, 1), (4, 4), (8, 8), (5, 2)):
        largest = max(2 ** (weight_bits - 1) - 1, 1)
        weight = torch.randint(-largest, largest + 1, layer.weight.shape, generator=random)
        least = -(2 ** (data_bits - 1)) if signed else 0
        q = torch.randint(least, least + 2**data_bits, size, generator=random).float()
        bias = torch.randint(-40, 40, (len(weight),), generator=random)
        sums_of = Product(weight, (least, least + 2**data_bits - 1), bias, layer)
        terms = terms_of(layer, weight, q)
        by_channel = bias.numpy().reshape(-1, *[1] * (weight.dim() - 2))
        exact = by_channel + terms.sum(-1)
        reach = by_channel + np.maximum(terms, 0).sum(-1), by_channel + np.minimum(terms, 0).sum(-1)
        sums = sums_of.sums(q)
        np.testing.assert_array_equal(sums.numpy(), exact)
        for bits in (8, 10, 13, 32):
            half = 2 ** (bits - 1)
            wrapped = (exact + half) % (2 * half) - half
            np.testing.assert_array_equal(wrap(sums, bits).numpy(), wrapped)
            at_risk = (reach[0] >= half) | (reach[1] < -half)
            np.testing.assert_array_equal(sums_of.at_risk(q, bits).numpy(), at_risk)
            expected = saturating(by_channel, terms, bits)
            for few in (0, 1):
                monkeypatch.setattr(emulation, "FEW", few)
                np.testing.assert_array_equal(sums_of.saturated(q, bits).numpy(), expected)


WIDE = nn.Conv2d(150, 5, 3, padding=1)


def gaussian(layer: nn.Module, weight_bits: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and biases of a layer that look like those of a network."""
    random = torch.Generator().manual_seed(seed)
    largest = 2 ** (weight_bits - 1) - 1
    weight = torch.randn(layer.weight.shape, generator=random) * largest / 4
    bias = torch.randint(-9, 9, (len(weight),), generator=random)
    return weight.round().clamp(-largest, largest).long(), bias


def noting(method: Callable, taken: list[str]) -> Callable:
    """A method that adds its name to ``taken``."""

    def noted(*args):
        taken.append(method.__name__)
        return method(*args)

    return noted


def test_each_way_to_saturate_is_taken(monkeypatch) -> None:
    weight, bias = gaussian(WIDE, 4, seed=0)
    q = torch.randint(16, (4, 150, 4, 4), generator=torch.Generator().manual_seed(1)).float()
    terms = terms_of(WIDE, weight, q)
    ways = ("_sums_at_risk", "_sums_at_risk_after", "_repaired", "_added_up")
    taken: list[str] = []
    for way in ways:
        monkeypatch.setattr(Product, way, noting(getattr(Product, way), taken))
    any_order, in_order, repaired, added_up = ways
    for few, bits, expected in (
        (0.01, 15, []),  # the bound excludes it
        (0.8, 13, [any_order, any_order, repaired]),
        (0.01, 13, [any_order, in_order, in_order]),  # on the first image; then none is
        (0.5, 12, [any_order, in_order, in_order, repaired]),
        (0.5, 11, [any_order, in_order, in_order, in_order, repaired]),  # in small chunks
        (0.01, 9, [any_order, in_order, in_order, added_up]),
    ):
        monkeypatch.setattr(emulation, "FEW", few)
        taken.clear()
        sums = Product(weight, (0, 15), bias, WIDE).saturated(q, bits)
        np.testing.assert_array_equal(
            sums.numpy(), saturating(bias.numpy()[:, None, None], terms, bits)
        )
        assert taken == expected, (few, bits)


@pytest.mark.parametrize(
    ("route", "terms", "weight", "datum", "bias"),
    [
        ("float32", 257, 255, 256, 255),  # 2^24 - 1 with the bias
        ("split", 257, 255, 256, 256),
        ("split", 1728, 127, 255, -70_000),
        ("split", 2000, 127, 255, 2**40),
        ("float64", 4608, 32_767, 65_535, 12_345),
        ("float64", 1, 2**27 - 1, 2**26, 2**25 - 1),  # 2^53 - 1 with it twice, as risk needs it
    ],
)
def test_each_arithmetic_is_exact_up_to_its_limit(route, terms, weight, datum, bias) -> None:
    weights = torch.full((2, terms), weight)
    weights[1, ::2] *= -1
    biases = torch.tensor([bias, -bias])
    sums_of = Product(weights, (0, datum), biases, nn.Linear(terms, 2))
    assert sums_of.route == route
    assert int(sums_of.high[0]) == terms * weight * datum + bias
    q = datum - torch.randint(2, (50, terms), generator=torch.Generator().manual_seed(0))
    q[0], q[1] = datum, datum * (weights[1] > 0)  # as large as can be
    exact = biases.numpy() + (weights.numpy() * q.numpy()[:, None]).sum(-1)
    sums = sums_of.sums(q.double())
    np.testing.assert_array_equal(sums.numpy(), exact)
    for bits in (8, 16, 31, 32):
        half = 2 ** (bits - 1)
        np.testing.assert_array_equal(wrap(sums, bits).numpy(), (exact + half) % (2 * half) - half)
        expected = saturating(biases.numpy(), weights.numpy() * q.numpy()[:, None], bits)
        np.testing.assert_array_equal(sums_of.saturated(q.double(), bits).numpy(), expected)


def test_sums_that_float64_would_round_are_refused() -> None:
    with pytest.raises(UserError, match=f"sums up to {2**53} are not exact in float64"):
        Product(torch.tensor([[2**26]]), (0, 2**26), torch.tensor([2**52]), nn.Linear(1, 1))


def test_risk_is_that_of_every_order() -> None:
    """What is not at risk saturates in no order; what is does in one of two."""
    weight, bias = gaussian(WIDE, 4, seed=2)
    random = np.random.default_rng(0)
    seen = set()
    for least in (0, -8):
        q = torch.from_numpy(random.integers(least, least + 16, (2, 150, 3, 3))).float()
        terms = terms_of(WIDE, weight, q)
        first = bias.numpy()[:, None, None]
        exact = first + terms.sum(-1)
        sums_of = Product(weight, (least, least + 15), bias, WIDE)
        for bits in (10, 11, 12, 13):
            at_risk = sums_of.at_risk(q, bits).numpy()
            seen |= set(at_risk.flatten().tolist())
            for _ in range(3):
                shuffled = random.permuted(terms, axis=-1)
                np.testing.assert_array_equal(
                    saturating(first, shuffled, bits)[~at_risk], exact[~at_risk]
                )
            up = np.sort(terms, axis=-1)  # those below zero first
            half = 2 ** (bits - 1)
            reached = np.stack(
                [first + up.cumsum(-1).min(-1), first + up[..., ::-1].cumsum(-1).max(-1)]
            )
            np.testing.assert_array_equal((reached[0] < -half) | (reached[1] >= half), at_risk)
    assert seen == {False, True}


def test_the_bound_is_that_of_qonnx_and_within_that_of_the_data_type() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        terms, weight_bits, data_bits = random.integers((1, 2, 1), (2001, 9, 9)).tolist()
        signed = bool(random.integers(2))
        largest = 2 ** (weight_bits - 1)
        weight = random.integers(-largest, largest, (4, terms))
        least = -(2 ** (data_bits - 1)) if signed else 0
        data = least, least + 2**data_bits - 1
        sums_of = Product(torch.from_numpy(weight), data, None, nn.Linear(terms, 4))
        of_qonnx = DataType[f"{'INT' if signed else 'UINT'}{data_bits}"]
        low, high = calculate_matvec_accumulator_range(weight.T, of_qonnx)
        assert (int(sums_of.low.min()), int(sums_of.high.max())) == (low, high)
        by_data_type = data_type_bits(terms, weight_bits, data_bits, data_signed=signed)
        assert bits_of(int(low), int(high)) <= by_data_type


def test_no_input_overflows_where_the_bound_says_that_none_can() -> None:
    """10,000 inputs, also those aligned with the weights' signs, each in an order of its own."""
    random = np.random.default_rng(0)
    for _ in range(200):
        terms = int(random.integers(1, 200))
        weight = random.integers(-8, 8, (3, terms))
        bias = random.integers(-300, 300, 3)
        least = int(random.integers(-8, 1))
        greatest = least + 15
        sums_of = Product(
            torch.from_numpy(weight), (least, greatest), torch.from_numpy(bias), nn.Linear(terms, 3)
        )
        q = random.integers(least, greatest + 1, (50, terms))
        for channel, sign in product(range(3), (1, -1)):
            q[2 * channel + (sign < 0)] = np.where(sign * weight[channel] > 0, greatest, least)
        partial = bias[:, None] + random.permuted(weight * q[:, None], axis=-1).cumsum(-1)
        reached = np.minimum(bias, partial.min((0, 2))), np.maximum(bias, partial.max((0, 2)))
        low, high = sums_of.low.numpy(), sums_of.high.numpy()
        assert (low <= reached[0]).all()
        assert (reached[1] <= high).all()
        final = partial[..., -1]
        np.testing.assert_array_equal(final[[1, 3, 5], [0, 1, 2]], low)
        np.testing.assert_array_equal(final[[0, 2, 4], [0, 1, 2]], high)
        bits = bits_of(int(low.min()), int(high.max()))
        x = torch.from_numpy(q).float()
        assert not sums_of.at_risk(x, bits).any()
        assert sums_of.at_risk(x, bits - 1).any()
        np.testing.assert_array_equal(wrap(sums_of.sums(x), bits).numpy(), final)
        np.testing.assert_array_equal(sums_of.saturated(x, bits).numpy(), final)


def test_a_partial_sum_lacks_terms_where_the_data_lack_zero() -> None:
    sums_of = Product(torch.tensor([[2, -1]]), (3, 7), torch.tensor([1]), nn.Linear(2, 1))
    assert (int(sums_of.low), int(sums_of.high)) == (1 - 7, 1 + 14)


def test_surroundings_change_nothing() -> None:
    """Autocast, inference mode, memory format, the data's dtype, a parametrized layer."""
    layer = nn.Conv2d(150, 5, 3, padding=1)
    weight, bias = gaussian(layer, 4, seed=3)
    q = torch.randint(16, (2, 150, 5, 5), generator=torch.Generator().manual_seed(4)).float()
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())

    def answers(q: Tensor) -> list[Tensor]:
        sums_of = Product(weight, (0, 15), bias, layer)
        sums = sums_of.sums(q)
        return [
            sums,
            wrap(sums, 9),
            sums_of.at_risk(q, 13),
            *map(sums_of.saturated, [q] * 2, (12, 9)),
        ]

    expected = answers(q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [answers(q), answers(q.bfloat16())]
    with torch.inference_mode():
        found.append(answers(q))
    found.append(answers(q.to(memory_format=torch.channels_last)))
    found.append(answers(q.double().requires_grad_()))
    for each in found:
        for got, right in zip(each, expected, strict=True):
            assert torch.equal(got, right)
            assert not got.requires_grad


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ConvTranspose2d(2, 2, 3), "ConvTranspose2d: sums in integers are not known of transp"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect': .*zeros"),
        (StdConv2d(2, 2, 3), "StdConv2d: it is not known how this class computes its sums"),
        (nn.Bilinear(2, 2, 2), "Bilinear: it is not known"),
    ],
    ids=["transposed", "padding", "standardized", "bilinear"],
)
def test_layers_with_other_sums_are_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Product(torch.ones(2, 2, 3, 3, dtype=torch.int64), (0, 3), None, layer)


def test_data_that_are_no_integers_of_their_range_are_no_data() -> None:
    sums_of = Product(torch.tensor([[2, -1]]), (0, 7), None, nn.Linear(2, 1))
    for q in ([1.0, 8.0], [-1.0, 0.0], [0.5, 1.0]):
        with pytest.raises(AssertionError, match="no integers in range"):
            sums_of.sums(torch.tensor([q]))


def test_an_arithmetic_that_is_not_exact_is_found(monkeypatch) -> None:
    """A convolution of operands in bfloat16, as some libraries choose for speed."""
    check = check_arithmetic.__wrapped__
    check(torch.device("cpu"))

    def rounded(q: Tensor, weight: Tensor, *others) -> Tensor:
        if not q.is_floating_point():
            return nn.functional.conv2d(q, weight, *others)
        return nn.functional.conv2d(q.bfloat16().to(q), weight.bfloat16().to(q), *others)

    monkeypatch.setattr(emulation, "CONVOLUTIONS", (None, rounded, None))
    with pytest.raises(UserError, match=r"12-bit data, are not exact on cpu \(float32\)"):
        check(torch.device("cpu"))


@pytest.mark.gpu
def test_a_gpu_answers_the_same() -> None:
    weight, bias = gaussian(WIDE, 8, seed=5)
    q = torch.randint(256, (4, 150, 6, 6), generator=torch.Generator().manual_seed(6)).float()
    here = Product(weight, (0, 255), bias, WIDE)
    there = Product(weight.cuda(), (0, 255), bias.cuda(), WIDE)
    assert (here.route, there.route) == ("split", "float64")
    assert torch.equal(there.sums(q.cuda()).cpu(), here.sums(q))
    for bits in (16, 20, 22):
        assert torch.equal(there.at_risk(q.cuda(), bits).cpu(), here.at_risk(q, bits))
        assert torch.equal(there.saturated(q.cuda(), bits).cpu(), here.saturated(q, bits))
