"""Sums in integers against a NumPy loop in int64, and the bound by known weights against qonnx."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.layers import Conv2dSame
from torch import Tensor, nn

from quantable.cost.accumulators import bits_of
from quantable.integers.emulation import Product, wrap

Integers = NDArray[np.int64]


def terms_of(layer: nn.Module, weight: Tensor, q: Tensor) -> Integers:
    """Every product of every sum, (n, c_out, *size, terms): channel, kernel row, kernel column."""
    if isinstance(layer, nn.Linear):
        return weight.numpy() * q.numpy().astype(np.int64)[..., None, :]
    dims = weight.dim() - 2
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
            slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, out, stride, strict=True)
        ]
        term = c * int(np.prod(kernel)) + int(np.ravel_multi_index(at, kernel))
        found[:, o, ..., term] = x[:, first + c][(slice(None), *window)] * int(weight[o, c][at])
    assert dims == len(out)
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
def test_sums_are_those_of_an_int64_loop(name: str, signed: bool) -> None:
    """Exact, wrapped, at risk and saturated, of 1 to 8 bit and in 8 and more bits."""
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
        for bits in (8, bits_of(int(exact.min()), int(exact.max())) - 1, 11, 13, 16, 32):
            if bits < 8:
                continue
            half = 2 ** (bits - 1)
            wrapped = (exact + half) % (2 * half) - half
            np.testing.assert_array_equal(wrap(sums, bits).numpy(), wrapped)
            at_risk = (reach[0] >= half) | (reach[1] < -half)
            np.testing.assert_array_equal(sums_of.at_risk(q, bits).numpy(), at_risk)
            expected = saturating(by_channel, terms, bits)
            np.testing.assert_array_equal(sums_of.saturated(q, bits).numpy(), expected)
