"""Schedules against torch's own, and by hand at the points that define them."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from quantable.training.schedule import constant, one_cycle, steps


@pytest.mark.parametrize("phase", [0, 1, 5])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_constant(progress: float, phase: int) -> None:
    assert constant(progress, phase) == 1.0


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)],
)
@pytest.mark.parametrize(("phase", "peak"), [(0, 1.0), (1, 0.3), (4, 0.3)])
def test_one_cycle_by_hand(progress: float, expected: float, phase: int, peak: float) -> None:
    factor = one_cycle(progress, phase, warmup=0.2, restart=0.3)
    assert factor == pytest.approx(peak * expected, abs=1e-12)


def test_one_cycle_falls_as_torch_anneals() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = CosineAnnealingLR(optimizer, T_max=30)
    for step in range(31):
        ours = one_cycle(0.25 + 0.75 * step / 30, 0, warmup=0.25, restart=0.5)
        assert ours == pytest.approx(torchs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        torchs.step()


def test_one_cycle_without_warmup_starts_at_the_peak() -> None:
    assert one_cycle(0.0, 0, warmup=0.0, restart=0.5) == 1.0
    assert one_cycle(0.0, 1, warmup=0.0, restart=0.5) == 0.5


def test_steps_are_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = MultiStepLR(optimizer, milestones=[200, 250, 300], gamma=0.1)
    for epoch in range(350):
        ours = steps((epoch + 0.5) / 350, 0, at=[200, 250, 300], of=350, factor=0.1)
        assert ours == pytest.approx(torchs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        torchs.step()
