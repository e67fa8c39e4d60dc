"""The callback that counts epochs, keeps a run safe, and takes it up again."""

import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from quantable.base import devices
from quantable.base.errors import UserError
from quantable.base.signals import Preempted, noted, stop
from quantable.quantization.channels import shrink_to
from quantable.quantization.quantize import Quantize
from quantable.training.classifier import Classifier


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain containers by rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of torch's generators: the CPU's, and a list with that of ``device`` if it is a GPU.

    All devices of a run draw the same: noise on a weight's gradient is that of one device.
    """
    on_gpu = device.type == "cuda"
    return {
        "cpu": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if on_gpu else [],
    }


class Keep(pl.Callback):
    """Counts epochs, ends the run with its last phase, and writes the checkpoint by rename.

    ``Preempted`` leaves a checkpoint of the very place: between two batches of training, or with
    all of an epoch's batches done and its evaluation still to come. Several devices decide
    together, and the first one writes.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_seconds: float,
        quantize: Quantize | None,
        commit: str,
        clean: bool,
    ) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.quantize = quantize
        self.commit = commit
        self.clean = clean
        self.resumed = 0
        self.wall_seconds = 0.0
        self.saved = self.began = time.perf_counter()
        self.random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random state last, when everything else has been built."""
        assert isinstance(pl_module, Classifier)
        if self.random is not None:
            torch.set_rng_state(self.random["cpu"])
            device = trainer.strategy.root_device
            if device.type == "cuda" and self.random["cuda"]:
                torch.cuda.set_rng_state(self.random["cuda"][0], device)
        trainer.should_stop = pl_module.finished

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Count the step; save when the interval is over (the end of an epoch saves itself)."""
        assert isinstance(pl_module, Classifier)
        pl_module.batch += 1
        overdue = time.perf_counter() - self.saved > self.every_seconds
        asked, due = (
            devices.any_rank(noted(), overdue) if devices.count() > 1 else (noted(), overdue)
        )
        if asked:
            stop()
        if due and pl_module.batch < pl_module.batches:
            pl_module.check_finite()
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance to the next epoch, save, and stop when no phase is left."""
        module = pl_module
        assert isinstance(module, Classifier)
        ended = module.planned_end()
        module.epoch, module.batch = module.epoch + 1, 0
        module.sums.zero_()
        module.finished |= ended
        _check_announced(module)
        devices.check_equal(module.net)
        self.save(trainer, module)
        trainer.should_stop = module.finished

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save when the scheduler wants the machine back."""
        if isinstance(exception, Preempted):
            assert isinstance(pl_module, Classifier)
            pl_module.check_finite()
            self.save(trainer, pl_module)

    def total_seconds(self) -> float:
        """Training time of this and the interrupted attempts, in seconds."""
        return self.wall_seconds + time.perf_counter() - self.began

    def save(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Write everything the rest of the run depends on; plain containers and tensors only."""
        state = {
            "net": module.net.state_dict(),
            "optimizers": [
                each.state_dict() for each in (trainer.optimizers[0], *module.optimizers_beside)
            ],
            "quantize": self.quantize.state_dict() if self.quantize else {},
            "module": {name: getattr(module, name) for name in PROGRESS},
            "sums": module.sums,
            "random": random_state(trainer.strategy.root_device),
            "origin": {
                "commit": self.commit,
                "clean": self.clean,
                "resumed": self.resumed,
                "wall_seconds": self.total_seconds(),
            },
        }
        if devices.rank() == 0:
            save(state, self.path)
        self.saved = time.perf_counter()

    def restore(self, module: Classifier) -> None:
        """Take up the run that the checkpoint, if there is one, left behind."""
        if not self.path.exists():
            return
        try:
            state: Mapping[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{self.path}: damaged; delete it to begin the cell anew") from error
        if not state["module"].keys() >= set(PROGRESS):
            raise UserError(f"{self.path}: of an older version; delete it to begin the cell anew")
        shrink_to(module.net, state["net"])
        module.net.load_state_dict(state["net"])
        module.optimizer_states = state["optimizers"]
        if self.quantize is not None:
            self.quantize.load_state_dict(state["quantize"])
        for name in PROGRESS:
            setattr(module, name, state["module"][name])
        module.sums.copy_(state["sums"])
        self.random = state["random"]
        origin = state["origin"]
        self.clean &= origin["clean"] and origin["commit"] == self.commit
        self.commit = origin["commit"]
        self.resumed = origin["resumed"] + 1
        self.wall_seconds = origin["wall_seconds"]


def _check_announced(module: Classifier) -> None:
    """Refuse a phase that ended although its test images were not seen."""
    for line in module.history[-1:]:
        ended = module.finished or module.phase != line["phase"]
        if ended and "test_top1_pct" not in line:
            raise UserError(
                f"quantizer: phase {line['phase']} ended with epoch {line['epoch']}, which the "
                "method's `phase_over` had not announced: the test images were not seen"
            )


PROGRESS = (
    *("epoch", "batch", "phase", "phase_start", "phase_epochs"),
    *("finished", "history", "networks", "finals"),
)
