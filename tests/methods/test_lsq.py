"""LSQ against the closed form of the paper, written out in NumPy and float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quantable.base.errors import UserError
from quantable.methods.lsq import LSQ, lsq, lsq_eager
from quantable.quantization.grid import int_range

STEP = 0.25  # a power of two: v / s hits bounds and halves exactly
GRIDS = [(bits, signed) for bits in (1, 2, 3, 8, 16) for signed in (False, True)]
FUNCTIONS = [lsq, lsq_eager]


@pytest.fixture(autouse=True, params=[2**17, 16], ids=["whole", "pieces"])
def piece(request, monkeypatch) -> None:
    """Every test runs once with tensors in one piece and once with them cut."""
    monkeypatch.setattr("quantable.base.chunks.PIECE", request.param)


def points(q_min: int, q_max: int) -> np.ndarray:
    """Inside, on and beyond the range, and halves between levels, in units of the step."""
    inside = np.linspace(q_min - 1.5, q_max + 1.5, 97)
    return STEP * np.concatenate([inside, [q_min, q_max, 0.0, 0.5, 1.5, -0.5, q_max - 0.5]])


def closed_form(v: np.ndarray, q_min: int, q_max: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v_hat (Eq. 1, 2), its derivative by the step (Eq. 3) and by v (Sec. 2.3)."""
    r = v / STEP
    clipped = np.clip(r, q_min, q_max)
    binary = (q_min, q_max) == (-1, 1)
    level = np.where(clipped >= 0, 1.0, -1.0) if binary else np.round(clipped)
    inside = (r > q_min) & (r < q_max)
    return level * STEP, np.where(inside, level - r, level), inside.astype(np.float64)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_forward_and_gradients_are_the_closed_form(function, bits, signed) -> None:
    q_min, q_max = int_range(bits, signed=signed)
    at = points(q_min, q_max)
    v = torch.tensor(at, requires_grad=True)
    step = torch.tensor(STEP, dtype=torch.float64, requires_grad=True)
    upstream = np.cos(np.arange(at.size))  # every element has its own weight

    out = function(v, step, q_min, q_max, grad_scale=0.125)
    out.backward(torch.tensor(upstream))

    value, by_step, by_v = closed_form(at, q_min, q_max)
    np.testing.assert_array_equal(out.detach().numpy(), value)
    np.testing.assert_array_equal(v.grad.numpy(), upstream * by_v)
    expected = 0.125 * (upstream * by_step).sum()
    np.testing.assert_allclose(step.grad.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 3, 1, 1)])
def test_each_channel_has_the_gradient_it_has_alone(function, shape) -> None:
    v = torch.linspace(-2, 2, 3 * 3 * 5 * 5, dtype=torch.float64).reshape(3, 3, 5, 5)
    step = torch.tensor([0.1, 0.25, 0.7], dtype=torch.float64)
    whole = step.clone().requires_grad_()
    function(v, whole.view(shape), -4, 3).square().sum().backward()
    for channel in range(3):
        alone = step[channel].clone().requires_grad_()
        function(v.select(shape.index(3), channel), alone, -4, 3).square().sum().backward()
        torch.testing.assert_close(whole.grad[channel], alone.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fast_form_is_the_plain_form(layout) -> None:
    x = torch.linspace(-3, 3, 4 * 6 * 5 * 7).sin().reshape(4, 6, 5, 7)
    results = []
    for function in FUNCTIONS:
        v = x.to(memory_format=layout).requires_grad_()
        step = torch.tensor(0.11, requires_grad=True)
        out = function(v, step, -8, 7)
        out.pow(3).sum().backward()
        assert out.is_contiguous(memory_format=layout)
        results.append((out, v.grad, step.grad))
    (plain, plain_v, plain_step), (fast, fast_v, fast_step) = results
    assert torch.equal(plain, fast)
    assert torch.equal(plain_v, fast_v)
    torch.testing.assert_close(plain_step, fast_step, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_transposed_upstream_is_right() -> None:
    v = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 6)
    weight = torch.arange(24.0, dtype=torch.float64).reshape(6, 4)
    gradients = []
    for function in FUNCTIONS:
        step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (function(v, step, -4, 3).t() * weight).sum().backward()
        gradients.append(step.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_division_is_by_the_step_not_by_its_inverse() -> None:
    step = torch.tensor(0.7)
    v = (torch.arange(20000) + 0.5) * step  # halfway between levels, as float32 has it
    exact = np.round(v.numpy() / step.numpy())
    by_inverse = np.round(v.numpy() * (np.float32(1) / step.numpy()))
    assert (exact != by_inverse).any()
    for function in FUNCTIONS:
        level = (function(v, step, 0, 65535) / step).round()
        np.testing.assert_array_equal(level.numpy(), exact)


def test_gradient_scale_counts_elements_of_one_sample_and_channel() -> None:
    v = torch.full((8, 3, 5, 5), 10.0)  # beyond the range: each element's gradient is Q_P = 3

    def gradient(*, batched: bool, per_channel: bool) -> Tensor:
        quantizer = LSQ(2, signed=False, batched=batched, per_channel=per_channel, channels=3)
        quantizer.initialized = True  # keep the step at 1
        x = v if batched else v[:3]
        quantizer(x).sum().backward()
        return quantizer.step.grad.max()

    act = 8 * 75 * 3 / (75 * 3) ** 0.5
    torch.testing.assert_close(
        gradient(batched=True, per_channel=False).item(), act, rtol=1e-5, atol=0
    )
    act_channel = 8 * 25 * 3 / (25 * 3) ** 0.5
    torch.testing.assert_close(
        gradient(batched=True, per_channel=True).item(), act_channel, rtol=1e-5, atol=0
    )
    weight_channel = 75 * 3 / (75 * 3) ** 0.5  # dim 0 of a weight is its output channel
    torch.testing.assert_close(
        gradient(batched=False, per_channel=True).item(), weight_channel, rtol=1e-5, atol=0
    )


def test_step_gradient_does_not_depend_on_batch_size() -> None:
    sample = torch.tensor([[0.1, 0.4, 0.7, 2.0]])  # (1, c)

    def gradient(batch_size: int) -> Tensor:
        quantizer = LSQ(bits=2, signed=False, batched=True)
        quantizer(sample.expand(batch_size, -1)).mean(dim=0).sum().backward()
        return quantizer.step.grad

    torch.testing.assert_close(gradient(1), gradient(64))


def test_first_training_batch_sets_the_step_in_place() -> None:
    quantizer = LSQ(2, signed=False, batched=True)
    held_by_optimizer = quantizer.step
    quantizer(torch.full((4, 3), 2.0))
    assert quantizer.step is held_by_optimizer
    assert quantizer.step.item() == pytest.approx(2 * 2.0 / 3**0.5)  # 2 mean|v| / sqrt(Q_P)
    quantizer(torch.full((4, 3), 9.0))
    assert quantizer.step.item() == pytest.approx(2 * 2.0 / 3**0.5)


def test_evaluation_before_training_keeps_nothing() -> None:
    quantizer = LSQ(4, signed=False, batched=True).eval()
    x = torch.linspace(0, 1, 100)
    step = 2 * x.mean() / 15**0.5
    torch.testing.assert_close(quantizer(x), (x / step).round().clamp(max=15) * step)
    assert quantizer.step.item() == 1.0
    assert not quantizer.initialized


def test_new_bits_make_the_next_batch_set_the_step() -> None:
    quantizer = LSQ(8, signed=False, batched=True)
    quantizer(torch.ones(4, 3))
    quantizer.bits = 2
    quantizer(torch.ones(4, 3))
    assert quantizer.step.item() == pytest.approx(2 / 3**0.5)


def test_a_step_below_zero_is_set_by_the_next_training_batch() -> None:
    quantizer = LSQ(2, signed=False, batched=True, per_channel=True, channels=2)
    quantizer(torch.full((4, 2), 2.0))
    with torch.no_grad():
        quantizer.step[0] = -0.5
    quantizer(torch.full((4, 2), 3.0)).sum().backward()
    assert quantizer.step.tolist() == pytest.approx([2 * 3.0 / 3**0.5, 2 * 2.0 / 3**0.5])
    assert (quantizer.step.grad != 0).all()


def test_a_first_batch_of_zeros_leaves_a_step_that_others_can_learn_from() -> None:
    quantizer = LSQ(2, signed=False, batched=True, per_channel=True, channels=2)
    quantizer(torch.tensor([[0.0, 2.0]]))
    assert quantizer.step.tolist() == pytest.approx([1.0, 2 * 2.0 / 3**0.5])
    x = torch.full((4, 2), 0.7, requires_grad=True)
    quantizer(x).sum().backward()
    assert (x.grad == 1).all()
    assert (quantizer.step.grad != 0).all()


def test_per_channel_needs_the_number_of_channels() -> None:
    with pytest.raises(UserError, match="LSQ: per_channel needs the number of channels"):
        LSQ(4, signed=True, batched=False, per_channel=True)
