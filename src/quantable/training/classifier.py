"""The Lightning module every run trains, and what it trains on.

Progress is this project's own (``epoch``, ``batch``): the order and augmentation of a batch are a
function of seed, epoch and batch, the learning rate of the place within the phase, so that a run
taken up in the middle of an epoch goes on as if it had never stopped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import is_parametrized

from quantable.base import devices
from quantable.base.errors import UserError
from quantable.base.signals import listen_before_others
from quantable.config.schema import OwnNumber
from quantable.data.images import TrainBatches
from quantable.integers.by_layer import ByLayer
from quantable.networks.trace import COUNTED
from quantable.training.own_numbers import Number, checked

Batch = tuple[Tensor, Tensor]  # images (n, c, h, w), labels (n,)


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
        numbers: Mapping[str, OwnNumber] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.weight_decay = weight_decay or {}  # by layer, instead of the optimizer's own
        self.numbers = numbers or {}  # the method's own, as it declares them
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
        self.finals: dict[int, ByLayer] = {}  # what the weights at a phase's end say
        self.optimizer_state: dict[str, Any] | None = None  # to be restored
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.sums: Tensor  # of this epoch so far: loss x images, correct, images

    def start_phase(self, first_epoch: int, epochs: int) -> None:
        """Begin a new phase of at most ``epochs``; the schedule starts anew."""
        self.phase += 1
        self.phase_start, self.phase_epochs = first_epoch, epochs

    def note(self, **numbers: Number | Mapping[str, Number]) -> None:
        """Write the method's own ``numbers`` into the line of the epoch that has just ended."""
        if not self.history or self.history[-1]["epoch"] != self.epoch:
            raise UserError("note: this epoch has no line yet; call it in on_train_epoch_end")
        layers = [name for name, layer in self.net.named_modules() if isinstance(layer, COUNTED)]
        found = checked(numbers, self.numbers, layers)
        self.history[-1].setdefault("own", {}).update(found)

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
        with devices.JointNorms() if devices.count() > 1 else nullcontext():
            logits = self.net(x)
        loss = cross_entropy(logits, y)
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == y).sum()
            n = torch.tensor(len(y), device=y.device)
            self.sums += devices.total(torch.stack([loss.detach().double() * n, correct, n]))
        for teacher in self.teacher:
            with torch.no_grad():
                target = teacher.to(x.device)(x).softmax(dim=1)
            loss = (loss + cross_entropy(logits, target)) / 2
        for penalty in self.penalties:
            loss = loss + penalty()
        return loss

    def on_after_backward(self) -> None:
        """Average the gradients over the devices, before anything looks at them."""
        devices.average_gradients(self.parameters())

    def check_finite(self) -> None:
        """End a diverged run with a message instead of a useless record."""
        if not torch.isfinite(self.sums[0]):
            raise UserError(
                f"loss is not finite (epoch {self.epoch}, before batch {self.batch}): the run "
                "diverged; lower recipe.optimizer.lr or use more bits"
            )


class Remaining:
    """Training batches of the module's current epoch, from its current batch on."""

    def __init__(self, module: Classifier, batches: TrainBatches) -> None:
        self.module = module
        self.batches = batches
        module.batches = len(batches)

    def __iter__(self) -> Iterator[Batch]:
        self.batches.epoch, self.batches.start = self.module.epoch, self.module.batch
        return iter(self.batches)
