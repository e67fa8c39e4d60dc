"""Which images a run looks at, and when; and what its optimizer decays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.methods.activation_density import ActivationDensity
from quantable.quantization.face import TrainerFace
from quantable.run import run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.classifier import Classifier

SMALL = [
    *("data.train_images=64", "data.val_images=16", "data.test_images=16"),
    *("trainer.threads=1", "trainer.accelerator=cpu", "model.net.width=0.25"),
    *("recipe=sgd_one_cycle", "recipe.batch_size=32"),
]
AD = [
    *("quantizer=ad", "bits.inner=[16,16]", "bits.ends=[16,16]"),
    *("quantizer.callback.min_epochs=[3,2]", "quantizer.callback.max_epochs=[3,2]"),
    "quantizer.callback.max_updates=1",
]
LOSSES = ("val_loss", "test_loss", "val_top1_pct", "test_top1_pct")


def run(folder: Path, *words: str) -> Record:
    words = (*SMALL, *words)
    cell = Cell(None, "single", 0, compose_run(words) | {"seed": 0}, words)
    return run_cell(cell, Store(folder), "", lambda *_: None)


@pytest.mark.parametrize(
    ("words", "ends"),
    [(["quantizer=none", "recipe.epochs=3"], [2]), ([*AD, "recipe.epochs=9"], [2, 4])],
    ids=["float", "two phases"],
)
def test_test_images_are_seen_at_the_end_of_a_phase(
    tmp_path: Path, words: list[str], ends: list[int]
) -> None:
    record = run(tmp_path, *words)
    assert [line.epoch for line in record.history if line.test_top1_pct is not None] == ends
    assert [line.epoch for line in record.history if line.test_loss is not None] == ends
    assert all(line.val_top1_pct is not None for line in record.history)
    assert all(line.val_loss is not None for line in record.history)
    last = [phase.first_epoch + phase.epochs - 1 for phase in record.phases]
    assert last == ends
    assert record.metrics["last"]["test_top1_pct"] == record.history[-1].test_top1_pct


def test_a_set_without_held_out_images_trains(tmp_path: Path) -> None:
    record = run(tmp_path, "quantizer=none", "recipe.epochs=2", "data.val_images=0")
    found = [[getattr(line, name) is not None for name in LOSSES] for line in record.history]
    assert found == [[False] * 4, [False, True, False, True]]


def test_an_end_that_was_not_announced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: ActivationDensity, module: TrainerFace) -> bool:
        return False

    monkeypatch.setattr(ActivationDensity, "phase_over", never)
    message = "phase 0 ended with epoch 2, which the method's `phase_over` had not announced"
    with pytest.raises(UserError, match=message):
        run(tmp_path, *AD, "recipe.epochs=9")


def test_early_images_are_small_up_to_their_share_of_the_first_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step: Callable[..., Tensor] = Classifier.training_step

    def looking(self: Classifier, batch: tuple[Tensor, Tensor], i: int) -> Tensor:
        seen.append(batch[0].shape[-1])
        return step(self, batch, i)

    monkeypatch.setattr(Classifier, "training_step", looking)
    run(tmp_path, *AD, "recipe.epochs=9", "+recipe.small_images={pixels: 20, share: 0.5}")
    two = [[20, 20]] * 2 + [[28, 28]] * 3  # epochs 0 and 1 of 3 begin within the first half
    assert seen == [pixels for epoch in two for pixels in epoch]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.mark.parametrize("decay_all", [True, False])
def test_what_decays(decay_all: bool) -> None:
    net = network()
    module = Classifier(
        net,
        input_size=(3, 3, 3),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0, weight_decay=0.5),
        schedule=lambda place, phase: 1.0,
        epochs=1,
        weight_decay={"4": 0.25},
        decay_all=decay_all,
    )
    before: dict[str, Any] = {
        name: parameter.detach().clone() for name, parameter in net.named_parameters()
    }
    optimizer = module.configure_optimizers()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    left = {"0.weight": 0.5, "4.weight": 0.75}
    for name, parameter in net.named_parameters():
        share = left.get(name, 0.5 if decay_all else 1.0)
        torch.testing.assert_close(parameter.detach(), share * before[name])
