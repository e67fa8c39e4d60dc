"""The trainer's face: what a method may use of the Lightning module that trains the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OwnOptimizer:
    """Parameters of a method with an optimizer and a schedule of their own.

    The parameters are the network's, best of its quantizers (``make_state``), so that its state has
    them. ``optimizer`` is made of them when training begins; ``schedule`` is asked for a factor of
    its learning rates as the recipe's is: by the place in the phase, 0 to 1, and the phase.
    """

    parameters: Sequence[nn.Parameter]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[float, int], float]


class TrainerFace(Protocol):
    """The module that trains ``net``, as a method's hooks see it. All else is the suite's own."""

    net: nn.Module
    input_size: tuple[int, int, int]  # of one image, (c, h, w)
    epoch: int
    batch: int  # of this epoch, the coming one
    batches: int  # of an epoch; 0 before training begins
    phase: int
    phase_start: int  # the phase's first epoch
    phase_epochs: int  # its planned length, which the schedule spans; a method may set it
    finished: bool  # set it to end the run with this epoch, which ``phase_over`` announced
    history: list[dict[str, Any]]  # a line for each epoch; in on_train_epoch_end with this one's
    networks: list[dict[str, Any]]  # sizes of a network that the method cuts, by phase
    penalties: list[Callable[[], Tensor]]  # added to each batch's loss
    own_optimizers: list[OwnOptimizer]  # appended to in ``setup``

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    def planned_end(self) -> bool:
        """Whether the phase is planned to end with this epoch."""

    def start_phase(self, first_epoch: int, epochs: int) -> None:
        """Begin a new phase of at most ``epochs``; the schedules start anew.

        ``phase_over`` has announced the end of the one before.
        """

    def note(self, **numbers: float | Mapping[str, float]) -> None:
        """Write the method's own numbers, as its YAML declares them, into this epoch's line."""


def face(module: pl.LightningModule) -> TrainerFace:
    """The module of a hook, as a method may use it."""
    return cast(TrainerFace, module)
