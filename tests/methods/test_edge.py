"""Learned step and clip against NumPy and the sheet's closed forms, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quantable.methods.edge import (
    StepAndClip,
    learned_bits,
    percentile,
    project,
    projected,
    step_and_clip,
    step_and_clip_eager,
)
from quantable.methods.edge.quantizer import say_floors
from quantable.quantization.ste import rounding

PAIRS = [(0.25, 1.75), (0.1, 0.73), (0.3, 0.32), (2.0**-12, 127.0), (0.5, 0.2)]  # step, clip


FUNCTIONS = [step_and_clip, step_and_clip_eager]


@pytest.fixture(autouse=True, params=[2**17, 16], ids=["whole", "pieces"])
def piece(request, monkeypatch) -> None:
    """Every test runs once with tensors in one piece and once with them cut."""
    monkeypatch.setattr("quantable.base.chunks.PIECE", request.param)


def leaf(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def bits_by_hand(step: float, clip: float, *, signed: bool) -> int:
    return max(int(np.ceil(np.log2(np.round(clip / step) + 1))) + signed, 1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("step", "clip"), PAIRS)
def test_values_and_gradients_are_the_closed_form(function, step, clip, signed) -> None:
    at = np.concatenate([np.linspace(-3, 3, 121), [clip + 1, -clip - 1, clip / 2, 0.0]])
    upstream = np.cos(np.arange(at.size))
    x, d, c = leaf(at.tolist()), leaf(step), leaf(clip)
    out = function(x, d, c, signed=signed)
    out.backward(torch.tensor(upstream))

    low = -clip if signed else 0.0
    u = np.clip(at, low, clip) / step
    np.testing.assert_allclose(out.detach().numpy(), np.round(u) * step, rtol=1e-15)
    above, below = at > clip, at < low
    np.testing.assert_allclose(x.grad.numpy(), np.where(above | below, 0, upstream))
    np.testing.assert_allclose(d.grad.item(), (upstream * (np.round(u) - u)).sum(), atol=1e-9)
    by_clip = upstream[above].sum() - (upstream[below].sum() if signed else 0)
    np.testing.assert_allclose(c.grad.item(), by_clip, atol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("step", "clip"), PAIRS)
def test_bits_and_their_gradients_are_the_sheets(step: float, clip: float, signed: bool) -> None:
    d, c = leaf(step), leaf(clip)
    bits = learned_bits(d, c, signed=signed)
    assert bits.item() == bits_by_hand(step, clip, signed=signed)
    bits.backward()
    n = np.round(clip / step)
    floor = n == 0 and not signed  # held up by "at least 1": no gradient
    by_clip = 0 if floor else 1 / (np.log(2) * (n + 1) * step)
    by_step = 0 if floor else -clip / (np.log(2) * (n + 1) * step**2)
    np.testing.assert_allclose(c.grad.item(), by_clip, rtol=1e-12)
    np.testing.assert_allclose(d.grad.item(), by_step, rtol=1e-12)


def test_bits_are_exact_on_either_side_of_every_power_of_two() -> None:
    for k in range(1, 17):
        n = torch.tensor([2.0**k - 1, 2.0**k])
        assert learned_bits(torch.ones(2), n, signed=False).tolist() == [k, k + 1]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_ends_behind_the_last_number_inside(kind: type, signed: bool) -> None:
    for clip in (1.0, np.nextafter(kind(2), kind(0)), 0.3, 2.0**-8, 127.0):
        high = kind(clip)
        low = -high if signed else kind(0)
        ends = [np.nextafter(end, side) for end in (low, high) for side in (-kind(np.inf), end)]
        x = np.array([*ends, np.nextafter(high, kind(np.inf)), np.nextafter(low, kind(np.inf))])
        leaf_x, step = torch.tensor(x, requires_grad=True), torch.tensor(high / kind(3))
        step_and_clip_eager(leaf_x, step, torch.tensor(high), signed=signed).sum().backward()
        assert leaf_x.dtype == step.dtype == torch.tensor(high).dtype
        assert leaf_x.grad is not None
        assert leaf_x.grad.tolist() == [0, 1, 1, 1, 0, 1]
        np.testing.assert_array_equal(leaf_x.grad, (low <= x) & (x <= high))


@pytest.mark.parametrize(("batched", "signed"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("name", ["ste", "invtanh"])
def test_slices_equal_a_loop_over_channels(batched: bool, signed: bool, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    x = torch.randn(3, 3, 40, generator=generator, dtype=torch.float64)
    x = x * (scale[None, :, None] if batched else scale[:, None, None])
    x = (x if signed else x.abs()).requires_grad_()
    make = {"bits": 3, "signed": signed, "batched": batched, "rounding": rounding(name, 0.1)}
    whole = StepAndClip(per_channel=True, channels=3, **make).double()
    out = whole(x)
    (out.pow(3).sum() + whole.mean_bits()).backward()
    widths = []
    for channel in range(3):
        part = x.detach().select(int(batched), channel).clone().requires_grad_()
        alone = StepAndClip(**make).double()
        out_alone = alone(part)
        (out_alone.pow(3).sum() + alone.mean_bits() / 3).backward()
        exact = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(out.select(int(batched), channel), out_alone, **exact)
        torch.testing.assert_close(x.grad.select(int(batched), channel), part.grad, **exact)
        for parameter in ("step", "clip"):
            ours, theirs = getattr(whole, parameter), getattr(alone, parameter)
            torch.testing.assert_close(ours[channel], theirs, **exact)
            torch.testing.assert_close(ours.grad[channel], theirs.grad, **exact)
        widths.append(alone.bits)
    assert whole.mean_bits().item() == np.mean(widths)
    assert whole.bits == max(widths)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["ste", "psgd", "ewgs", "acos", "tanh", "invtanh"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fast_form_is_the_plain_form(layout, name: str, signed: bool) -> None:
    values = torch.linspace(-3, 3, 4 * 6 * 5 * 7, dtype=torch.float64).sin().reshape(4, 6, 5, 7)
    results = []
    for function in FUNCTIONS:
        x = values.to(memory_format=layout).requires_grad_()
        d, c = leaf(0.11), leaf([[[0.3 + 0.1 * i]] for i in range(6)])
        out = function(x, d, c, signed=signed, rounding=rounding(name, 0.3))
        out.backward(torch.arange(840.0, dtype=torch.float64).cos().reshape(4, 6, 5, 7))
        assert out.is_contiguous(memory_format=layout)
        results.append([out, x.grad, d.grad, c.grad])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-12, atol=1e-12)


def test_weights_start_from_three_standard_deviations() -> None:
    w = torch.tensor([-1.0, -3.0, 0.5, 0.25], dtype=torch.float64)
    quantizer = StepAndClip(3, signed=True, batched=False).double()
    held_by_optimizer = quantizer.step, quantizer.clip
    quantizer(w)
    assert (quantizer.step, quantizer.clip) == held_by_optimizer
    clip = abs(np.mean(w.numpy()) - 3 * np.std(w.numpy()))
    assert quantizer.clip.item() == pytest.approx(clip, rel=1e-12)
    assert quantizer.step.item() == pytest.approx(clip / 3, rel=1e-12)
    quantizer(100 * w)
    assert quantizer.clip.item() == pytest.approx(clip, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 1000, 1001, 4321])
def test_activations_start_from_the_percentile(n: int) -> None:
    x = torch.linspace(-40, 60, n, dtype=torch.float64).sin()
    expected = np.percentile(np.abs(x.numpy()), 99.9)
    assert percentile(x.abs()).item() == pytest.approx(expected, rel=1e-12)
    quantizer = StepAndClip(4, signed=False, batched=True).double()
    quantizer(x.abs().reshape(n, 1))
    assert quantizer.clip.item() == pytest.approx(expected, rel=1e-12)
    assert quantizer.step.item() == pytest.approx(expected / 15, rel=1e-12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bits", range(2, 17))
def test_bits_start_where_they_were_asked_to(bits: int, batched: bool, signed: bool) -> None:
    quantizer = StepAndClip(bits, signed=signed, batched=batched)
    assert quantizer.bits == bits
    quantizer(torch.linspace(0.1, 1.3, 50).reshape(5, 10))
    assert quantizer.initialized
    assert quantizer.bits == bits == quantizer.mean_bits().item()


def test_zero_tensors_get_a_clip_of_one() -> None:
    for batched in (False, True):
        quantizer = StepAndClip(4, signed=False, batched=batched)
        assert quantizer(torch.zeros(4, 3)).count_nonzero() == 0
        assert quantizer.clip.item() == 1.0
        assert quantizer.bits == 4


@pytest.mark.parametrize(
    ("step", "clip", "expected"),
    [
        (0.1, 0.9, (0.1, 0.9)),  # as they should be
        (0.5, 0.2, (0.2 - 1e-5, 0.5 + 1e-5)),  # change places
        (0.3, 0.3, (0.3 - 1e-5, 0.3 + 1e-5)),
        (-2.0, 0.5, (2**-12 + 1e-5, 0.5)),
        (1e-9, 1e-9, (2**-12 + 1e-5, 2**-8 + 1e-5)),
        (5.0, 9.0, (1 - 1e-5, 9.0)),
        (0.5, 900.0, (0.5, 127 - 1e-5)),
        (0.5, -0.3, (2**-12 + 1e-5, 0.5 + 1e-5)),  # the optimizer made the clip negative
    ],
)
def test_projection_by_hand(step: float, clip: float, expected: tuple[float, float]) -> None:
    found = projected(leaf(step), leaf(clip), max_step=1.0)
    np.testing.assert_allclose([x.item() for x in found], expected, rtol=1e-12)


def test_gradients_bring_step_and_clip_back_from_their_least() -> None:
    quantizer = StepAndClip(4, signed=False, batched=True)
    x = torch.linspace(0, 2, 99)
    quantizer(x)
    with torch.no_grad():
        quantizer.step.fill_(-0.5)
        quantizer.clip.fill_(-0.5)
    project([quantizer])
    least = pytest.approx([2**-12 + 1e-5, 2**-8 + 1e-5])
    assert [quantizer.step.item(), quantizer.clip.item()] == least
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        ((quantizer(x) - x).square().mean() + 1e-4 * quantizer.mean_bits()).backward()
        optimizer.step()
        project([quantizer])
    assert quantizer.clip > 1
    assert quantizer.step > 2**-11


def test_a_tensor_whose_clips_are_all_at_their_least_is_named_once(capsys) -> None:
    some, all_of_it = (
        StepAndClip(4, signed=True, batched=False, per_channel=True, channels=2) for _ in range(2)
    )
    with torch.no_grad():
        some.step[0] = some.clip[0] = -1.0
        all_of_it.step.fill_(-1.0)
        all_of_it.clip.fill_(-1.0)
    project([some, all_of_it])
    for _ in range(2):
        say_floors([some, all_of_it])
    assert capsys.readouterr().err.count("StepAndClip, weight: the clip fell to its least") == 1


def test_steps_of_activations_may_be_larger_than_those_of_weights() -> None:
    weight = StepAndClip(4, signed=True, batched=False, per_channel=True, channels=2)
    act = StepAndClip(4, signed=True, batched=True)
    with torch.no_grad():
        for quantizer in (weight, act):
            quantizer.step.fill_(50.0)
            quantizer.clip.fill_(100.0)
        weight.step[1] = 0.25
    held_by_optimizer = weight.step, act.step
    project([act, weight])
    assert weight.step is held_by_optimizer[0]
    assert act.step is held_by_optimizer[1]
    assert weight.step.tolist() == pytest.approx([1 - 1e-5, 0.25])
    assert act.step.item() == pytest.approx(8 - 1e-5)
    assert weight.clip.tolist() == [100.0, 100.0]
    assert act.clip.item() == 100.0
