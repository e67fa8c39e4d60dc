"""Real bit-widths: the gradient against finite differences, integers to the last bit."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantable.methods.dfq import NarrowRange
from quantable.methods.fracbits import ClippedAct, TanhWeight
from quantable.quantization.relaxed import (
    Grid,
    RealBits,
    mixed,
    mixed_eager,
    on_grid,
    on_grid_eager,
)
from quantable.quantization.ste import rounding

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 5 * 5, 7)),
}
METHODS = {
    "narrow": (partial(NarrowRange, signed=True, batched=False), "weight"),
    "tanh": (partial(TanhWeight, signed=True, batched=False), "weight"),
    "clipped": (partial(ClippedAct, signed=False, batched=True, clip_init=1.5), "act"),
    "clipped-signed": (partial(ClippedAct, signed=True, batched=True, clip_init=1.5), "act"),
}


class Task:
    """Cross-entropy of one layer, of whose operands one has a real bit-width; float64."""

    def __init__(self, layer: str, method: str) -> None:
        torch.manual_seed(0)
        self.net = LAYERS[layer]().double()
        make, self.which = METHODS[method]
        self.quantizer: RealBits = make(4)
        self.quantizer.relax(4.0)
        self.quantizer.double()
        self.layer = self.net[1] if layer == "linear" else self.net
        self.x = torch.randn(8, 4, 5, 5, dtype=torch.float64)
        if method == "clipped":
            self.x = self.x.relu()
        self.labels = torch.arange(8) % 4

    def output(self) -> Tensor:
        weight, x = self.layer.weight, self.x
        if self.which == "weight":
            weight = self.quantizer(weight)
        else:
            x = self.quantizer(x)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x.flatten(1), weight, self.layer.bias)
        return F.conv2d(x, weight, self.layer.bias, groups=self.layer.groups).mean((2, 3))

    def loss(self, width: float) -> Tensor:
        with torch.no_grad():
            self.quantizer.real_bits.fill_(width)
        return F.cross_entropy(self.output(), self.labels)


@pytest.fixture(params=[(x, y) for x in LAYERS for y in METHODS], ids="-".join)
def task(request) -> Task:
    return Task(*request.param)


def test_gradient_of_the_width_is_that_of_central_differences(task: Task) -> None:
    draw = torch.Generator().manual_seed(1)
    h = 1e-5
    for _ in range(20):
        whole = int(torch.randint(2, 8, (), generator=draw))
        width = whole + 0.01 + 0.98 * torch.rand((), generator=draw).item()
        task.quantizer.zero_grad()
        task.loss(width).backward()
        by_hand = (task.loss(width + h) - task.loss(width - h)).item() / (2 * h)
        found = task.quantizer.real_bits.grad.item()
        assert found == pytest.approx(by_hand, rel=1e-5, abs=1e-10)  # of double digits over 2 h


def test_loss_is_continuous_at_every_integer(task: Task) -> None:
    for edge in range(2, 17):
        here = task.loss(edge).item()
        for near in (1e-3, 1e-6, 1e-9):
            inside = [width for width in (edge - near, edge + near) if 2 <= width <= 16]
            for loss in map(task.loss, inside):
                assert loss.item() == pytest.approx(here, rel=0, abs=10 * near)  # slopes are less


def test_an_integer_width_is_the_plain_quantizer_to_the_last_bit(task: Task) -> None:
    for bits in range(2, 17):
        task.loss(bits)
        relaxed = task.output()
        task.quantizer.settle()
        task.quantizer.bits = bits
        assert torch.equal(task.output(), relaxed)
        task.quantizer.mixing = True


def test_the_width_has_a_gradient_at_both_limits() -> None:
    task = Task("convolution", "narrow")
    for edge in (2, 16):
        task.quantizer.zero_grad()
        task.loss(edge).backward()
        inner = 2 + 1e-6 if edge == 2 else 16 - 1e-6
        by_hand = (task.loss(edge) - task.loss(inner)).item() / (edge - inner)
        assert task.quantizer.real_bits.grad.item() == pytest.approx(by_hand, rel=1e-3)


def test_evaluation_has_the_integer_width() -> None:
    quantizer = NarrowRange(3, signed=True, batched=False)
    w = torch.linspace(-1, 2, 50)
    plain = quantizer(w)
    quantizer.relax(4.6)
    assert w.unique().numel() == 50
    assert quantizer(w).unique().numel() > 7  # 2^3 - 1
    assert torch.equal(quantizer.eval()(w), plain)
    quantizer.train().settle()
    assert torch.equal(quantizer(w), plain)


# Kernel


def grids(*shape: int) -> tuple[Grid, Grid]:
    """Two grids with other ends; all of ``shape``."""
    low, high = -torch.rand(shape, dtype=torch.float64), 1 + torch.rand(shape, dtype=torch.float64)
    return tuple(
        Grid(end.requires_grad_(), (high - end.detach()) / n, (high + 0.1 * n).requires_grad_())
        for end, n in ((low.clone(), 3), (low - 0.3, 7))
    )


@pytest.mark.parametrize("shape", [(), (1, 5, 1, 1), (6, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("equal_ends", [False, True], ids=["other-ends", "equal-ends"])
def test_kernel_is_the_formula(shape: tuple[int, ...], equal_ends: bool) -> None:
    torch.manual_seed(3)
    lower, upper = grids(*shape)
    if equal_ends:
        upper = Grid(lower.low, upper.scale, lower.high)
    x = (2 * torch.randn(6, 5, 4, 4, dtype=torch.float64)).requires_grad_()
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    found = []
    for function in (mixed, mixed_eager):
        out = function(x, lower, upper, share)
        ends = {lower.low, lower.high, upper.low, upper.high}
        gradients = torch.autograd.grad(out, [x, share, *sorted(ends, key=id)], upstream)
        found.append([out, *gradients])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for ours, plain in zip(on_grid(x, lower), on_grid_eager(x, lower), strict=True):
        assert torch.equal(ours, plain)


def test_a_gradient_of_rounding_of_its_own_is_mixed_too() -> None:
    x = torch.linspace(-1, 1, 40, requires_grad=True)
    of_both = []
    for bits in (3, 4):
        plain = NarrowRange(bits, signed=True, batched=False, rounding=rounding("psgd", 0.3))
        of_both.append(torch.autograd.grad(plain(x).sum(), x)[0])
    quantizer = NarrowRange(3, signed=True, batched=False, rounding=rounding("psgd", 0.3))
    quantizer.relax(3.25)
    (found,) = torch.autograd.grad(quantizer(x).sum(), x)
    torch.testing.assert_close(found, 0.75 * of_both[0] + 0.25 * of_both[1])


def test_nan_stays_nan_between_two_widths() -> None:
    for make, _ in METHODS.values():
        quantizer = make(4)
        quantizer.relax(4.5)
        assert quantizer(torch.tensor([[0.1, torch.nan, 0.7]]))[0, 1].isnan()
