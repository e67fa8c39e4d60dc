"""DFQ: the quantizer against the formula in NumPy, its objective, and the two phases of a run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.numbers import own_numbers
from quantable.methods.dfq import DFQ, NarrowRange
from quantable.methods.minmax import MinMax
from quantable.quantization.searched import FINETUNE, SEARCH
from quantable.training.build import fit, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant, one_cycle

# The quantizer

TENSORS = {
    "both signs": np.linspace(-0.31, 1.07, 211),
    "above 0": np.linspace(0.2, 1.3, 57),
    "below 0": np.linspace(-1.3, -0.2, 57),
    "constant": np.full(9, 0.7),
    "constant below 0": np.full(9, -0.7),
    "zero": np.zeros(9),
    "one outlier": np.append(np.linspace(-0.02, 0.02, 101), 30.0),
    "one": np.array([-0.4]),
}


def narrow_range(w: np.ndarray, bits: int) -> np.ndarray:
    """The formula of the card, word by word."""
    low, high, n = min(0.0, w.min()), max(0.0, w.max()), 2**bits - 2
    if low == high:
        return np.zeros_like(w)
    s = (high - low) / n
    z = np.round(low / s)
    lo, hi = s * z, s * z + s * n
    return lo + s * np.round((np.clip(w, lo, hi) - lo) / s)


def quantizer(bits: int) -> NarrowRange:
    return NarrowRange(bits, signed=True, batched=False)


@pytest.mark.parametrize("w", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_values_are_those_of_the_formula(bits: int, w: np.ndarray) -> None:
    np.testing.assert_array_equal(quantizer(bits)(torch.tensor(w)).numpy(), narrow_range(w, bits))


@pytest.mark.parametrize("w", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_zero_is_a_level_and_there_are_two_to_the_bits_less_one(bits: int, w: np.ndarray) -> None:
    values = torch.tensor(np.append(w, 0.0), dtype=torch.float32)
    assert quantizer(bits)(values)[-1] == 0.0
    found = quantizer(bits).levels(values)
    assert found.integers.max() - found.integers.min() <= 2**bits - 2
    assert found.offset == 0.0


def test_levels_at_2_3_and_4_bits_are_3_7_and_15() -> None:
    w = torch.linspace(-1, 1, 2001)
    assert [quantizer(bits)(w).unique().numel() for bits in (2, 3, 4)] == [3, 7, 15]


def test_gradient_is_1_within_the_ends_and_0_beyond() -> None:
    w = torch.tensor([-0.35, -0.3, 0.0, 0.99, 1.0, 0.95], dtype=torch.float64, requires_grad=True)
    # 2 bits: s = 1.35 / 2, z = round(-0.35 / 0.675) = -1, levels -0.675, 0, 0.675
    out = quantizer(2)(w)
    out.backward(torch.arange(1.0, 7.0, dtype=torch.float64))
    np.testing.assert_allclose(out.detach().numpy(), [-0.675, 0, 0, 0.675, 0.675, 0.675])
    assert w.grad.tolist() == [1, 2, 3, 0, 0, 0]


def test_a_weight_on_an_end_has_its_gradient() -> None:
    w = torch.tensor([-1.0, 0.2, 1.0], requires_grad=True)  # at 2 bits both ends are levels
    quantizer(2)(w).sum().backward()
    assert w.grad.tolist() == [1, 1, 1]


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    w = torch.tensor([-1.0, 0.5, 3.0, -1.5], requires_grad=True)
    out = quantizer(1)(w)
    assert out.tolist() == [-1.5, 1.5, 1.5, -1.5]
    out.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert w.grad.tolist() == [1, 2, 3, 4]
    assert quantizer(1).levels(w.detach()).integers.tolist() == [-1, 1, 1, -1]


# The search

SIZE = (1, 8, 8)
COUNTS = {"0": 36, "3": 72, "6": 576}  # weights: 4 x 1 x 3 x 3, depthwise 8 x 1 x 3 x 3, 2 x 288
NUMBERS = own_numbers(compose_run(["quantizer=dfq"]))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Linear(288, 2),
    )


def method(**changes: Any) -> DFQ:
    return DFQ(
        **{
            "weight": partial(NarrowRange, batched=False),
            "act": partial(MinMax, batched=True),
            "inner": [4, 32],
            "ends": None,
            "layers": {},
            "epochs": [3, 2],
            "cost": "weights",
            "target": 3.0,
            "start_above": 1.0,
            "range": [2, 16],
            "strength": 2.0,
            "optimizer": partial(torch.optim.Adam, lr=0.1),
            "schedule": partial(one_cycle, warmup=0.0, restart=0.0),
        }
        | changes
    )


def attached(**changes: Any) -> tuple[DFQ, Classifier]:
    ours, net = method(**changes), network()
    module = Classifier(
        net,
        input_size=SIZE,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
        schedule=constant,
        epochs=1,
        numbers=NUMBERS,
    )
    ours.attach(net, SIZE)
    return ours, module


def mean_bits(bits: dict[str, float]) -> float:
    return sum(COUNTS[name] * width for name, width in bits.items()) / sum(COUNTS.values())


def test_penalty_is_the_hinge_on_the_mean_bits() -> None:
    ours, module = attached(target=3.0)
    ours.setup(None, module, "fit")
    widths = {"0": 5.5, "3": 4.25, "6": 2.75}
    for name, width in widths.items():
        with torch.no_grad():
            ours.weight_quantizers[name].real_bits.fill_(width)
    over = mean_bits(widths) / 3.0 - 1
    penalty = ours.penalty()
    assert penalty.item() == pytest.approx(2.0 * max(0, over), abs=1e-6)
    penalty.backward()
    for name, count in COUNTS.items():
        expected = 2.0 * count / (3.0 * sum(COUNTS.values())) if over > 0 else 0.0
        assert ours.weight_quantizers[name].real_bits.grad.item() == pytest.approx(expected)


def test_penalty_is_0_within_the_budget() -> None:
    ours, module = attached(target=4.0)
    ours.setup(None, module, "fit")
    for found in ours.weight_quantizers.values():
        with torch.no_grad():
            found.real_bits.fill_(3.9)
    assert ours.penalty().item() == 0.0


def test_a_search_begins_above_its_target_in_every_layer() -> None:
    ours, _ = attached(target=2.5)
    assert set(ours.real().values()) == {3.5}
    assert {name for name, _ in ours.real()} == set(COUNTS)  # the classifier too
    assert mean_bits({name: bits.weight for name, bits in ours.bits.items()}) <= 2.5


def test_widths_that_are_said_are_not_searched() -> None:
    ours, _ = attached(ends=[8, 32], target=3.0)
    assert set(ours.real()) == {("3", "weight")}
    assert ours.bits == {"0": Bits(8, 32), "3": Bits(3, 32), "6": Bits(8, 32)}
    with pytest.raises(UserError, match="there is nothing to search"):
        attached(layers={name: [4, 32] for name in COUNTS})


def test_without_a_search_there_are_no_real_widths() -> None:
    ours, module = attached(inner=[3, 8], epochs=[0, 2])
    ours.setup(None, module, "fit")
    assert (module.phase_epochs, module.own_optimizers, module.penalties) == (2, [], [])
    assert ours.bits == dict.fromkeys(COUNTS, Bits(3, 8))
    assert not any("real_bits" in name for name in module.net.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": [8]}, r"epochs=\[8\]: search and fine-tuning"),
        ({"epochs": [8, 0]}, r"epochs=\[8, 0\]"),
        ({"cost": "weight"}, "unknown cost 'weight'. Nearest: weights"),
        ({"range": [1, 16]}, r"range=\[1, 16\]: two widths from 2 to 16, rising"),
        ({"range": [2, 17]}, r"range=\[2, 17\]: two widths from 2 to 16, rising"),
        ({"target": 1.5}, r"target=1.5: it lies in the range \[2, 16\]"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**changes)


# Phases


class Batches:
    """Five random batches for each epoch, functions of epoch and place alone."""

    epoch, start = 0, 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(self.start, 5):
            generator = torch.Generator().manual_seed(100 * self.epoch + batch)
            x = torch.randn(16, *SIZE, generator=generator)
            yield x, x.mean((1, 2, 3)).gt(0).long()


class Steps(pl.Callback):
    """Keeps the real widths behind each step."""

    def __init__(self, ours: DFQ) -> None:
        self.ours = ours
        self.widths: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: object) -> None:
        self.widths.append({name: width for (name, _), width in self.ours.real().items()})


class History(pl.Callback):
    """Stands for the evaluation; keeps the widths that one would have."""

    def __init__(self, ours: DFQ) -> None:
        self.ours = ours
        self.bits: list[dict[str, int]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        bits = {name: found.bits for name, found in self.ours.weight_quantizers.items()}
        self.bits.append(bits)
        over = {"test_top1_pct": 0.0} if self.ours.phase_over(pl_module) else {}
        line = {"epoch": pl_module.epoch, "phase": pl_module.phase}
        pl_module.history.append(line | over)


def train(path: Path, **changes: Any) -> tuple[DFQ, Classifier, History, Steps]:
    torch.manual_seed(7)
    ours, module = attached(**changes)
    keep = Keep(path / "last.ckpt", every_seconds=1e9, quantize=ours, commit="", clean=True)
    trainer = trainer_of({"trainer": {"accelerator": "cpu"}, "recipe": {"precision": "32-true"}})
    history, steps = History(ours), Steps(ours)
    trainer.callbacks.extend([history, ours, steps, keep])
    fit(trainer, module, Batches())
    return ours, module, history, steps


def test_a_run_searches_rounds_and_fine_tunes(tmp_path: Path) -> None:
    _, module, history, steps = train(tmp_path, target=2.5)
    lines = module.history
    assert [line["phase"] for line in lines] == [SEARCH] * 3 + [FINETUNE] * 2
    assert [i for i, line in enumerate(lines) if "test_top1_pct" in line] == [2, 4]
    found = [{name: bits for name, (bits, _) in line["bits"].items()} for line in lines]
    assert found == history.bits  # evaluation had them already
    assert found[2] == found[3] == found[4]  # frozen behind the search
    assert all(mean_bits(bits) <= 2.5 for bits in found)  # never more than the uniform network
    learned = steps.widths[14]
    assert len(set(learned.values())) == 3  # really, layer by layer
    assert steps.widths[14:] == [learned] * 11
    assert lines[-1]["own"]["real_bits"] == learned
    spent = 100 * mean_bits(learned) / 2.5
    assert lines[-1]["own"]["budget_pct"] == pytest.approx(spent)
    assert [width.grad for width in module.own_optimizers[0].parameters] == [None] * 3


def test_widths_are_clamped_after_the_step(tmp_path: Path) -> None:
    ours, _, _, steps = train(tmp_path, target=2.0, start_above=0.05, epochs=[2, 1])
    assert min(width for step in steps.widths for width in step.values()) == 2.0
    assert set(ours.bits.values()) == {Bits(2, 32)}  # at the lower limit mixed is uniform
    ours, _, _, steps = train(tmp_path / "up", target=16, start_above=1.0, epochs=[2, 1])
    assert set(steps.widths[0].values()) != {16.0}  # the upper limit lets them go
    assert max(width for step in steps.widths for width in step.values()) <= 16.0


def test_widths_have_no_weight_decay_and_their_own_rate(tmp_path: Path) -> None:
    """Adam's first step is its rate, whatever the gradient: here the schedule's first factor."""
    _, _, _, steps = train(tmp_path, epochs=[1, 1])
    rate = 0.1 * one_cycle(0.1, 0, warmup=0.0, restart=0.0)  # the middle of the first of 5 steps
    for width in steps.widths[0].values():
        assert abs(width - 4.0) == pytest.approx(rate, rel=1e-3)


def test_activations_at_8_bits_are_not_searched(tmp_path: Path) -> None:
    ours, *_ = train(tmp_path, inner=[4, 8])
    assert {bits.act for bits in ours.bits.values()} == {8}
    assert {which for _, which in ours.real()} == {"weight"}
