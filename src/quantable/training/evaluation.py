"""Accuracy and loss over whole splits, and the callback that writes the history with them."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from quantable.base import devices
from quantable.base.signals import heeding
from quantable.base.tick import Tell, Tick
from quantable.data.images import Images
from quantable.quantization.face import face
from quantable.quantization.quantize import Quantize
from quantable.store.trouble import trouble
from quantable.training.classifier import Batch, Classifier

READ_SECONDS = 2.0  # between two looks at the loss, for which the device must be waited for


class Measures(NamedTuple):
    """What ``evaluate`` finds; shares of images are in percent."""

    loss: float  # cross-entropy in nat
    top1_pct: float
    agreement_pct: float | None  # images with the class that the teacher predicts


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[Batch],
    classes: int,
    size: int,
    teacher: nn.Module | None = None,
) -> Measures:
    """Measure ``net`` over all ``size`` images, each seen exactly once; each device has a share."""
    was_training = net.training
    net.eval()
    accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
    found = torch.zeros(3, dtype=torch.float64)  # loss x images, agreeing, images
    for x, y in batches:
        logits = net(x).float()
        accuracy.to(x.device).update(logits, y)
        loss = cross_entropy(logits, y, reduction="sum").double()
        same = loss.new_zeros(())
        if teacher is not None:
            same += (logits.argmax(dim=1) == teacher.to(x.device)(x).argmax(dim=1)).sum()
        found = found.to(x.device) + torch.stack([loss, same, loss.new_tensor(len(y))])
    net.train(was_training)
    loss_sum, agreeing, seen = devices.total(found).tolist()
    assert seen == size, f"saw {seen:.0f} images, the set has {size}"
    return Measures(
        loss_sum / seen,
        100 * float(accuracy.compute()),  # also sums over the devices
        None if teacher is None else 100 * agreeing / seen,
    )


def measured(
    net: nn.Module,
    images: Images,
    batches: Mapping[str, Iterable[Batch]],
    teacher: nn.Module | None,
) -> dict[str, float | None]:
    """Measure ``net`` on each split of ``batches``, under the names of a history line.

    Agreement with ``teacher`` is of the test images alone. In float32 whatever the precision of the
    training: an accuracy is that of the weights. Ends by ``Preempted`` between two batches when a
    signal has come; with several devices, the next batch of training does.
    """
    line: dict[str, float | None] = {}
    for split, of_split in batches.items():
        compared = teacher if split == "test" else None
        size = images.sizes[split]
        heard = heeding(of_split) if devices.count() == 1 else of_split
        found = evaluate(net, heard, images.classes, size, compared)
        line |= {f"{split}_top1_pct": found.top1_pct, f"{split}_loss": found.loss}
        if split == "test":
            line["agreement_pct"] = found.agreement_pct
    return line


class Evaluate(pl.Callback):
    """Writes the history line of every epoch: held-out images, at a phase's end test images too."""

    def __init__(
        self,
        images: Images,
        quantize: Quantize | None,
        tell: Tell,
        loading: Mapping[str, Any],
    ) -> None:
        self.images = images
        self.quantize = quantize
        self.tell = tell
        # One loader for each split, kept: building it copies the pixels to the device.
        present = [split for split in SPLITS if images.sizes[split]]
        self.batches = {split: images.eval_batches(split, **loading) for split in present}
        self.began = time.perf_counter()
        self.loss: float | None = None
        self.trouble: str | None = None
        self.read = -READ_SECONDS - 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know what was wrong when the run stopped."""
        assert isinstance(pl_module, Classifier)
        self._judge(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Show progress; the loss is that of the last look."""
        module = pl_module
        assert isinstance(module, Classifier)
        if (now := time.perf_counter()) - self.read >= READ_SECONDS:
            loss, _, n = module.sums.tolist()
            self.read, self.loss = now, loss / n
        tick = Tick(
            module.epoch,
            module.phase_start + module.phase_epochs,
            module.batch + 1,
            module.batches,
            loss=self.loss,
            val_top1_pct=module.history[-1].get("val_top1_pct") if module.history else None,
            trouble=self.trouble,
        )
        self.tell(tick)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Append one line to the history."""
        module = pl_module
        assert isinstance(module, Classifier)
        module.check_finite()
        line: dict[str, Any] = {"epoch": module.epoch, "phase": module.phase}
        line["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        loss, correct, n = module.sums.tolist()
        line |= {"train_loss": loss / n, "train_top1_pct": 100 * correct / n}
        teacher = module.teacher[0] if module.teacher else None
        method = self.quantize
        over = module.planned_end() if method is None else method.phase_over(face(module))
        seen = {split: self.batches[split] for split in self.batches if over or split != "test"}
        line |= measured(module.net, self.images, seen, teacher)
        now = time.perf_counter()
        line["seconds"], self.began = now - self.began, now
        module.history.append(line)
        self._judge(module)

    def _judge(self, module: Classifier) -> None:
        losses = [line.get("train_loss") for line in module.history]
        self.trouble = trouble(losses, self.images.classes)


SPLITS = ("val", "test")
