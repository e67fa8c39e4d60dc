"""PACT against the paper's Eq. 1 to 3."""

import numpy as np
import pytest
import torch

from quantable.methods.pact import PACT, pact

X = np.array([-3.0, 0.0, 0.4, 1.1, 1.999, 2.0, 2.5, 40.0])
ALPHA = 2.0


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_forward_and_gradients(bits: int) -> None:
    x = torch.tensor(X, requires_grad=True)
    clip = torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True)
    upstream = np.arange(1.0, 9.0)
    out = pact(x, clip, bits)
    out.backward(torch.tensor(upstream))

    y = 0.5 * (np.abs(X) - np.abs(X - ALPHA) + ALPHA)  # Eq. 1
    n = 2**bits - 1
    expected = np.round(y * n / ALPHA) * ALPHA / n  # Eq. 2
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(clip.grad.numpy(), upstream[X >= ALPHA].sum())  # Eq. 3
    inside = (X > 0) & (X < ALPHA)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(inside, upstream, 0))


def test_signed_inputs_clip_at_both_ends() -> None:
    x = torch.tensor([-9.0, -0.5, 0.5, 9.0], requires_grad=True)
    clip = torch.tensor(3.0, requires_grad=True)
    out = pact(x, clip, 2, signed=True)
    assert out.tolist() == [-3.0, -1.0, 1.0, 3.0]
    out.backward(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert clip.grad.item() == 10.0 - 1.0
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


def test_clip_is_a_parameter_from_the_start_and_stays_usable() -> None:
    quantizer = PACT(4, signed=False, batched=True, clip_init=10.0)
    assert [name for name, _ in quantizer.named_parameters()] == ["clip"]
    assert quantizer.clip.item() == 10.0
    with torch.no_grad():
        quantizer.clip.fill_(-1.0)  # too large a step of the optimizer: it begins anew
    quantizer(torch.linspace(0, 50, 11)).sum().backward()
    assert quantizer.clip.item() == 10.0
    assert quantizer.clip.grad == 9  # of the elements at or above it


def test_each_channel_has_its_clip() -> None:
    quantizer = PACT(8, signed=False, batched=True, clip_init=4.0, per_channel=True, channels=3)
    with torch.no_grad():
        quantizer.clip.copy_(torch.tensor([1.0, 2.0, 3.0]))
    out = quantizer(torch.full((2, 3, 4, 4), 9.0))
    assert out.amax((0, 2, 3)).tolist() == [1.0, 2.0, 3.0]
