"""The Lightning module every run trains, and the two callbacks that evaluate it and keep it safe.

Progress is this project's own (``epoch``, ``batch``): the order and augmentation of a batch are a
function of seed, epoch and batch, the learning rate of the place within the phase, so that a run
taken up in the middle of an epoch goes on as if it had never stopped.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import is_parametrized
from torchmetrics.classification import MulticlassAccuracy

from quantable import ranks
from quantable.channels import shrink_to
from quantable.data.images import Images, TrainBatches
from quantable.names import UserError
from quantable.preempt import Preempted, heeding, listen_before_others, noted, stop
from quantable.quantize import Quantize
from quantable.tick import Tell, Tick

Batch = tuple[Tensor, Tensor]  # images (n, c, h, w), labels (n,)
READ_SECONDS = 2.0  # between two looks at the loss, for which the device must be waited for


class Classifier(pl.LightningModule):
    """Image classifier: cross-entropy plus whatever penalties a method appends."""

    def __init__(
        self,
        net: nn.Module,
        *,
        input_size: tuple[int, int, int],
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[float, int], float],
        epochs: int,
        weight_decay: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.weight_decay = weight_decay or {}  # by layer, instead of the optimizer's own
        self.input_size = input_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.penalties: list[Callable[[], Tensor]] = []
        self.teacher: list[nn.Module] = []  # in a list, so that it is no submodule
        self.epoch = 0
        self.batch = 0
        self.batches = 0  # per epoch
        self.phase = 0
        self.phase_start = 0
        self.phase_epochs = epochs  # planned length of the phase, which the schedule spans
        self.finished = False
        self.history: list[dict[str, Any]] = []
        self.networks: list[dict[str, Any]] = []  # sizes, of a network that a method cuts
        self.optimizer_state: dict[str, Any] | None = None  # to be restored
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.sums: Tensor  # of this epoch so far: loss x images, correct, images

    def start_phase(self, first_epoch: int, epochs: int) -> None:
        """Begin a new phase of at most ``epochs``; the schedule starts anew."""
        self.phase += 1
        self.phase_start, self.phase_epochs = first_epoch, epochs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over the network with its quantizers, and restore its state."""
        try:
            optimizer = self.optimizer(self._parameter_groups())
        except (TypeError, ValueError) as error:
            raise UserError(f"recipe.optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
            if group.get("foreach", False) is None:
                group["foreach"] = True  # torch chooses it on CUDA alone; on a CPU it saves calls
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; the weights of layers with their own weight decay in a group for each."""
        own: dict[float, list[nn.Parameter]] = {}
        for name, decay in self.weight_decay.items():
            layer = self.net.get_submodule(name)
            parametrized = is_parametrized(layer, "weight")
            weight = layer.parametrizations.weight.original if parametrized else layer.weight  # type: ignore[union-attr]
            own.setdefault(decay, []).append(weight)  # type: ignore[arg-type]
        apart = {id(weight) for weights in own.values() for weight in weights}
        others = [p for p in self.net.parameters() if id(p) not in apart]
        groups: list[dict[str, Any]] = [{"params": others}]
        return groups + [{"params": weights, "weight_decay": d} for d, weights in own.items()]

    def teach(self, teacher: nn.Module) -> None:
        """Learn the outputs of ``teacher`` too: its loss and that of the labels weigh the same.

        Temperature 1 (LSQ, arXiv:1902.08153, Sec. 3.7). The teacher is no part of the state.
        """
        self.teacher.append(teacher)

    def learning_rate_factor(self) -> float:
        """Schedule at the middle of the coming step."""
        done = self.epoch - self.phase_start + (self.batch + 0.5) / self.batches
        return self.schedule(min(done / self.phase_epochs, 1.0), self.phase)

    def on_train_start(self) -> None:
        """Hear the scheduler first: by now Lightning has put a handler of its own before ours."""
        listen_before_others()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        factor = self.learning_rate_factor()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; sums are kept on the device without synchronizing."""
        x, y = batch  # x: (n, c, h, w)
        with ranks.JointNorms() if ranks.count() > 1 else nullcontext():
            logits = self.net(x)
        loss = cross_entropy(logits, y)
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == y).sum()
            n = torch.tensor(len(y), device=y.device)
            self.sums += ranks.total(torch.stack([loss.detach().double() * n, correct, n]))
        for teacher in self.teacher:
            with torch.no_grad():
                target = teacher.to(x.device)(x).softmax(dim=1)
            loss = (loss + cross_entropy(logits, target)) / 2
        for penalty in self.penalties:
            loss = loss + penalty()
        return loss

    def on_after_backward(self) -> None:
        """Average the gradients over the devices, before anything looks at them."""
        ranks.average_gradients(self.parameters())

    def check_finite(self) -> None:
        """End a diverged run with a message instead of a useless record."""
        if not torch.isfinite(self.sums[0]):
            raise UserError(
                f"loss is not finite (epoch {self.epoch}, before batch {self.batch}): the run "
                "diverged; lower recipe.optimizer.lr or use more bits"
            )


class Stream:
    """Training batches of the module's current epoch, from its current batch on."""

    def __init__(self, module: Classifier, batches: TrainBatches) -> None:
        self.module = module
        self.batches = batches
        module.batches = len(batches)

    def __iter__(self) -> Iterator[Batch]:
        self.batches.epoch, self.batches.start = self.module.epoch, self.module.batch
        return iter(self.batches)


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
    loss_sum, agreeing, seen = ranks.total(found).tolist()
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

    Loss and agreement with ``teacher`` are of the test images alone. In float32 whatever the
    precision of the training: an accuracy is that of the weights. Ends by ``Preempted`` between two
    batches when a signal has come; with several devices, the next batch of training does.
    """
    line: dict[str, float | None] = {}
    for split, of_split in batches.items():
        compared = teacher if split == "test" else None
        size = images.sizes[split]
        heard = heeding(of_split) if ranks.count() == 1 else of_split
        found = evaluate(net, heard, images.classes, size, compared)
        line[f"{split}_top1_pct"] = found.top1_pct
        if split == "test":
            line |= {"test_loss": found.loss, "agreement_pct": found.agreement_pct}
    return line


class Evaluate(pl.Callback):
    """Evaluates held-out and test images after every epoch and writes the history line."""

    def __init__(self, images: Images, tell: Tell, loading: Mapping[str, Any]) -> None:
        self.images = images
        self.tell = tell
        # One loader for each split, kept: building it copies the pixels to the device.
        self.batches = {split: images.eval_batches(split, **loading) for split in SPLITS}
        self.began = time.perf_counter()
        self.loss: float | None = None
        self.read = -READ_SECONDS - 1

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
            val_top1_pct=module.history[-1]["val_top1_pct"] if module.history else None,
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
        line |= measured(module.net, self.images, self.batches, teacher)
        now = time.perf_counter()
        line["seconds"], self.began = now - self.began, now
        module.history.append(line)


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
        asked, due = ranks.any_rank(noted(), overdue) if ranks.count() > 1 else (noted(), overdue)
        if asked:
            stop()
        if due and pl_module.batch < pl_module.batches:
            pl_module.check_finite()
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance to the next epoch, save, and stop when no phase is left."""
        module = pl_module
        assert isinstance(module, Classifier)
        module.epoch, module.batch = module.epoch + 1, 0
        module.sums.zero_()
        module.finished |= module.epoch >= module.phase_start + module.phase_epochs
        ranks.check_equal(module.net)
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
            "optimizer": trainer.optimizers[0].state_dict(),
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
        if ranks.rank() == 0:
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
        module.optimizer_state = state["optimizer"]
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


SPLITS = ("val", "test")
PROGRESS = (
    *("epoch", "batch", "phase", "phase_start", "phase_epochs"),
    *("finished", "history", "networks"),
)
