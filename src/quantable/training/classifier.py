"""The Lightning module every run trains, and what it trains on.

Progress is this project's own (``epoch``, ``batch``): the order and augmentation of a batch are a
function of seed, epoch and batch, the learning rate of the place within the phase, so that a run
taken up in the middle of an epoch goes on as if it had never stopped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base import devices
from quantable.base.errors import UserError
from quantable.base.signals import listen_before_others
from quantable.config.schema import OwnNumber
from quantable.data.images import TrainBatches
from quantable.integers.by_layer import ByLayer
from quantable.networks.counting import COUNTED
from quantable.quantization.face import OwnOptimizer, TrainerFace
from quantable.training.optimizers import (
    make_optimizer,
    parameter_groups,
    set_rates,
    taken_parameters,
)
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
        decay_all: bool = True,
        small_images: Mapping[str, Any] | None = None,
        numbers: Mapping[str, OwnNumber] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.weight_decay = weight_decay or {}  # by layer, instead of the optimizer's own
        self.decay_all = decay_all  # or the weights of layers alone
        self.small_images = small_images  # pixels and share, as the recipe has them
        self.numbers = numbers or {}  # the method's own, as it declares them
        self.input_size = input_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.penalties: list[Callable[[], Tensor]] = []
        self.own_optimizers: list[OwnOptimizer] = []  # of the method, appended in its setup
        self.optimizers_beside: list[torch.optim.Optimizer] = []  # made of them, in their order
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
        self.optimizer_states: list[dict[str, Any]] | None = None  # of all, to be restored
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
        """Build the optimizer over the network with its quantizers, and restore its state.

        The method's own optimizers have their parameters to themselves.
        """
        taken = taken_parameters(self.net, self.own_optimizers)
        groups = parameter_groups(self.net, self.weight_decay, taken, decay_all=self.decay_all)
        optimizer = make_optimizer(self.optimizer, groups, "recipe.optimizer")
        self.optimizers_beside = [
            make_optimizer(own.optimizer, own.parameters, "own_optimizers")
            for own in self.own_optimizers
        ]
        if self.optimizer_states is not None:
            every = (optimizer, *self.optimizers_beside)
            for each, state in zip(every, self.optimizer_states, strict=True):
                each.load_state_dict(state)
        return optimizer

    def teach(self, teacher: nn.Module) -> None:
        """Learn the outputs of ``teacher`` too: its loss and that of the labels weigh the same.

        Temperature 1 (LSQ, arXiv:1902.08153, Sec. 3.7). The teacher is no part of the state.
        """
        self.teacher.append(teacher)

    def place(self) -> float:
        """Place of the middle of the coming step in its phase, 0 to 1: what schedules are asked."""
        done = self.epoch - self.phase_start + (self.batch + 0.5) / self.batches
        return min(done / self.phase_epochs, 1.0)

    def planned_end(self) -> bool:
        """Whether the phase is planned to end with this epoch."""
        return self.epoch + 1 >= self.phase_start + self.phase_epochs

    def pixels(self) -> int | None:
        """Pixels a side of this epoch's images; None: as they are."""
        small = self.small_images
        if small is None or self.phase > 0 or self.epoch >= small["share"] * self.phase_epochs:
            return None
        return int(small["pixels"])

    def on_train_start(self) -> None:
        """Hear the scheduler first: by now Lightning has put a handler of its own before ours."""
        listen_before_others()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates of this step."""
        place = self.place()
        set_rates(self.trainer.optimizers[0], self.schedule(place, self.phase))
        for own, beside in zip(self.own_optimizers, self.optimizers_beside, strict=True):
            set_rates(beside, own.schedule(place, self.phase))

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

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the method's own optimizers right after the recipe's, on gradients that all saw."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for beside in self.optimizers_beside:
            beside.step()

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Forget the gradients of the step before, in all optimizers."""
        for each in (optimizer, *self.optimizers_beside):
            each.zero_grad()

    def check_finite(self) -> None:
        """End a diverged run with a message instead of a useless record."""
        if not torch.isfinite(self.sums[0]):
            raise UserError(
                f"loss is not finite (epoch {self.epoch}, before batch {self.batch}): the run "
                "diverged; lower recipe.optimizer.lr or use more bits"
            )


if TYPE_CHECKING:  # a method may use what the face says, and mypy sees that it is there

    def _has_the_face(module: Classifier) -> TrainerFace:
        return module


class Remaining:
    """Training batches of the module's current epoch, from its current batch on."""

    def __init__(self, module: Classifier, batches: TrainBatches) -> None:
        self.module = module
        self.batches = batches
        module.batches = len(batches)

    def __iter__(self) -> Iterator[Batch]:
        self.batches.epoch, self.batches.start = self.module.epoch, self.module.batch
        self.batches.pixels = self.module.pixels()
        return iter(self.batches)
