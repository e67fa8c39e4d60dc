"""DoReFa against the paper's formulas in NumPy."""

import numpy as np
import pytest
import torch

from quantable.methods.dorefa import DoReFa

W = np.linspace(-2, 1.5, 41)


def to_unit_grid(r: np.ndarray, bits: int) -> np.ndarray:
    return np.round((2**bits - 1) * r) / (2**bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_weights(bits: int) -> None:
    t = np.tanh(W)
    expected = 2 * to_unit_grid(t / (2 * np.abs(t).max()) + 0.5, bits) - 1
    ours = DoReFa(bits, signed=True, batched=False)(torch.tensor(W))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_one_bit_weights_are_sign_times_mean() -> None:
    w = torch.tensor([-1.0, 0.0, 3.0], requires_grad=True)
    out = DoReFa(1, signed=True, batched=False)(w)
    torch.testing.assert_close(out, torch.tensor([-4 / 3, 4 / 3, 4 / 3]))
    out.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert w.grad.tolist() == [1.0, 2.0, 3.0]


def test_weight_gradient_passes_the_rounding_only() -> None:
    w = torch.tensor(W, requires_grad=True)
    upstream = np.cos(np.arange(W.size))
    DoReFa(3, signed=True, batched=False)(w).backward(torch.tensor(upstream))
    # y = tanh(w) / m with m = |tanh(w_j)| at the peak j: dy_i/dw_i = (1 - t_i^2) / m, and the peak
    # gets -sum(g_i t_i) / m^2 times dm/dw_j as well.
    t = np.tanh(W)
    j = np.abs(t).argmax()
    m = abs(t[j])
    expected = upstream * (1 - t**2) / m
    expected[j] -= (upstream * t).sum() / m**2 * np.sign(t[j]) * (1 - t[j] ** 2)
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_activations_clip_to_one_and_pass_gradients_inside() -> None:
    x = torch.tensor([-0.5, 0.2, 0.49, 0.9, 3.0], dtype=torch.float64, requires_grad=True)
    out = DoReFa(2, signed=False, batched=True)(x)
    np.testing.assert_allclose(out.detach().numpy(), [0, 1 / 3, 1 / 3, 1, 1], atol=1e-12)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0, 1, 1, 1, 0], atol=1e-12)


def test_signed_activations_have_as_many_levels_from_minus_one() -> None:
    x = torch.linspace(-2, 2, 999)
    levels = DoReFa(2, signed=True, batched=True)(x).unique()
    torch.testing.assert_close(levels, torch.tensor([-1, -1 / 3, 1 / 3, 1]))


def test_each_channel_has_its_maximum() -> None:
    w = torch.tensor([[0.1, -0.05], [1.0, 2.0]])
    out = DoReFa(8, signed=True, batched=False, per_channel=True, channels=2)(w)
    assert out.abs().amax(1).tolist() == [1.0, 1.0]
