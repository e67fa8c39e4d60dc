"""Min-max against NumPy, with the paper's formula."""

import numpy as np
import pytest
import torch

from quantable.methods.minmax import MinMax, minmax


@pytest.fixture(autouse=True, params=[2**17, 16], ids=["whole", "pieces"])
def piece(request, monkeypatch) -> None:
    """Every test runs once with tensors in one piece and once with them cut."""
    monkeypatch.setattr("quantable.base.chunks.PIECE", request.param)


def in_numpy(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The paper's Eq. 2 and back, in the dtype of ``x``."""
    n = x.dtype.type(2**bits - 1)
    low, high = x.dtype.type(low), x.dtype.type(high)
    q = np.round((np.clip(x, low, high) - low) * n / (high - low))
    return q * (high - low) / n + low


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_numpys(bits: int, dtype: torch.dtype) -> None:
    w = torch.linspace(-40, 60, 4001, dtype=dtype).sin() * 0.3 + 0.1
    ours = minmax(w, w.min(), w.max(), bits)
    np.testing.assert_array_equal(ours.numpy(), in_numpy(w.numpy(), w.min(), w.max(), bits))
    quantizer = MinMax(bits, signed=True, batched=False)
    assert torch.equal(quantizer(w), w if bits == 16 else ours)


def test_halves_go_to_even() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0])
    assert minmax(x, x.min(), x.max(), bits=2).tolist() == [0.0, 0.0, 2.0, 2.0, 3.0]


def test_zero_need_not_be_a_level_and_the_ends_are() -> None:
    w = torch.tensor([-1.0, 0.0, 2.0])
    assert MinMax(1, signed=True, batched=False)(w).tolist() == [-1.0, -1.0, 2.0]


def test_gradient_is_straight_through_and_the_range_has_none() -> None:
    w = torch.linspace(-1, 2, 50, dtype=torch.float64).requires_grad_()
    upstream = torch.arange(50.0, dtype=torch.float64)
    MinMax(2, signed=True, batched=False)(w).backward(upstream)
    assert torch.equal(w.grad, upstream)


def test_each_channel_has_its_range() -> None:
    x = torch.linspace(-3, 5, 4 * 3 * 6).cos().reshape(4, 3, 6) * torch.tensor([[[1], [10], [0.1]]])
    by_weight = MinMax(3, signed=True, batched=False, per_channel=True, channels=4)(x)
    by_act = MinMax(3, signed=True, batched=True, per_channel=True, channels=3)(x)
    for i in range(4):
        alone = in_numpy(x[i].numpy(), x[i].min(), x[i].max(), 3)
        np.testing.assert_array_equal(by_weight[i].numpy(), alone)
    for c in range(3):
        alone = in_numpy(x[:, c].numpy(), x[:, c].min(), x[:, c].max(), 3)
        np.testing.assert_array_equal(by_act[:, c].numpy(), alone)


def test_unsigned_activations_start_at_zero() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]])
    out = MinMax(1, signed=False, batched=True)(x)
    assert out.tolist() == [[0.0, 3.0, 3.0]]  # 1 rounds down, 2 up, on {0, 3}


def test_evaluation_uses_the_running_range() -> None:
    quantizer = MinMax(2, signed=True, batched=True)
    for low, high in [(-1.0, 2.0), (-3.0, 4.0), (-1.0, 0.0)]:
        quantizer(torch.tensor([[low, high]]))
    low = 0.9 * (0.9 * -1 + 0.1 * -3) + 0.1 * -1
    high = 0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 0
    x = torch.linspace(-5, 5.01, 101)  # no value is halfway between levels
    quantizer.eval()
    torch.testing.assert_close(quantizer(x).numpy(), in_numpy(x.numpy(), low, high, 2))
    quantizer(torch.full((1, 2), 99.0))
    torch.testing.assert_close(quantizer.high.item(), high)  # evaluation tracks nothing


def test_evaluation_before_training_uses_its_own_range_and_keeps_nothing() -> None:
    quantizer = MinMax(2, signed=True, batched=True).eval()
    x = torch.tensor([[-1.0, 0.2, 5.0]])
    assert quantizer(x).tolist() == [[-1.0, 1.0, 5.0]]
    assert (quantizer.low.item(), quantizer.high.item()) == (0.0, 0.0)
    assert not quantizer.initialized


def test_sixteen_bits_skip_a_grid_that_float32_hardly_shows() -> None:
    x = torch.linspace(-1, 1, 100001).tanh()
    on_grid = minmax(x, x.min(), x.max(), bits=16)
    half_a_level = (x.max() - x.min()) / 65535 / 2
    assert 0 < (on_grid - x).abs().max() <= 1.02 * half_a_level
    assert MinMax(16, signed=True, batched=True)(x) is x


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1])
@pytest.mark.parametrize("batched", [False, True])
def test_a_constant_tensor_comes_back(value: float, batched: bool) -> None:
    x = torch.full((2, 3), value)
    assert torch.equal(MinMax(4, signed=True, batched=batched)(x), x)


def test_bits_may_fall_during_training() -> None:
    quantizer = MinMax(16, signed=False, batched=True)
    x = torch.linspace(0, 1, 1000)[None]
    counts = []
    for bits in (16, 5, 2):
        quantizer.bits = bits
        counts.append(quantizer(x).unique().numel())
    assert counts == [1000, 32, 4]
