"""Bit-widths learned under two memory budgets, in three phases of one run.

Equations and symbols stand in ``quantable.methods.edge``.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.base.bits import FLOAT_BITS, Bits
from quantable.base.errors import UserError
from quantable.cost.memory import kb_targets, memory_bytes
from quantable.methods.edge.quantizer import StepAndClip, project, say_floors
from quantable.networks.counting import layer_shapes
from quantable.networks.layers import LayerShape
from quantable.quantization.face import TrainerFace, face
from quantable.quantization.quantize import Factory, Quantize
from quantable.quantization.quantizer import Quantizer


def ramp(progress: float) -> float:
    """Weight of the size penalty at a place in [0, 1] of the search: up to 1 in its first half.

    >>> ramp(0.0), ramp(0.25), ramp(0.75)
    (0.01, 0.505, 1.0)
    """
    return 0.01 + 0.99 * min(1.0, 2 * progress)


class Sizes(NamedTuple):
    """Of a network's weights and activations, in kB (1000 bytes)."""

    weight: Tensor
    act: Tensor


def size_penalty(sizes: Sizes, targets: Sequence[float], strength: float) -> Tensor:
    """Squared excess of both sizes over their ``targets`` (kB), times ``strength`` (1/kB^2).

    >>> sizes = Sizes(weight=torch.tensor(13.0), act=torch.tensor(5.0))
    >>> size_penalty(sizes, targets=[10.0, 6.0], strength=0.5)
    tensor(4.5000)
    """
    over = [(size - target).relu() for size, target in zip(sizes, targets, strict=True)]
    return strength * (over[0].square() + over[1].square())


class _SoftBits(NamedTuple):
    """Stands for ``Bits`` in a cost model, which only multiplies and adds."""

    weight: Tensor
    act: Tensor


PRETRAIN, SEARCH, FINETUNE = range(3)


class LearnedBits(Quantize):
    """Learns steps, clips and with them bit-widths under two budgets, in three phases of one run.

    ``epochs`` are the phases' lengths. The first keeps the widths at ``inner``, the second trains
    steps and clips too, in every ``update_every``-th step, with the size penalty of ``target``,
    ``kb_per_bit``, ``accounting`` (see ``kb_targets``) and ``strength``; the third keeps the
    widths it found. Each begins with the best weights of the one before, by held-out accuracy: of
    the first phase over all epochs; of the second over those from the share ``select_from`` on
    whose sizes meet both targets, else with its last ones. The optimizer begins anew each time.
    Phases of 0 epochs end the run: with ``[n, 0, 0]`` the widths stay as they are.

    The network's input stays in float. Linear layers have one step and clip, whatever the
    convolutions have. ``weight_decay`` is for all parameters but those of batch norms and
    quantizers; the optimizer's own is to be 0.
    """

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        epochs: Sequence[int],
        target: Sequence[float],
        kb_per_bit: Sequence[float] | None,
        accounting: str,
        strength: float,
        update_every: int,
        select_from: float,
        weight_decay: float,
    ) -> None:
        super().__init__(weight=weight, act=act, inner=inner, ends=ends, layers=layers)
        search_too = len(epochs) == 3 and min(epochs) >= 1
        if not search_too and (list(epochs[1:]) != [0, 0] or epochs[0] < 1):
            raise UserError(
                f"quantizer.callback.epochs={list(epochs)}: three phases, each >= 1, or [n, 0, 0]"
            )
        if len(target) != 2 or (kb_per_bit is not None and len(kb_per_bit) != 2):
            raise UserError("quantizer.callback: target and kb_per_bit are pairs [weight, act]")
        if update_every < 1:
            raise UserError(f"quantizer.callback.update_every={update_every}: it is at least 1")
        self.epochs = epochs
        self.target = target
        self.kb_per_bit = kb_per_bit
        self.accounting = accounting
        self.strength = strength
        self.update_every = update_every
        self.select_from = select_from
        self.weight_decay = weight_decay
        self.shapes: list[LayerShape] = []
        self.targets = (0.0, 0.0)  # kB of weights, of activations
        self.decayed: list[nn.Parameter] = []
        self.updating: bool | None = None  # whether this step updates the quantizers
        self.best: dict[str, Any] | None = None  # state of the network, in this phase so far
        self.best_top1_pct = -1.0

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``, none of them on its input."""
        c, h, w = input_size
        self.shapes = layer_shapes(net, (c, h, w))
        for shape in self.shapes[:1]:
            start = self.layers.get(shape.name, self.ends or self.inner)
            self.layers = self.layers | {shape.name: Bits(start.weight, FLOAT_BITS)}
        self.targets = kb_targets(
            self.shapes, self.target, kb_per_bit=self.kb_per_bit, accounting=self.accounting
        )
        self.decayed = [
            parameter
            for module in net.modules()
            if not isinstance(module, _BatchNorm)
            for parameter in module.parameters(recurse=False)
        ]
        super().attach(net, input_size)
        if any(quantizer.signed and quantizer.bits == 1 for quantizer in self.quantizers):
            raise UserError("quantizer: signed tensors start at 2 bits or more; 1 bit holds only 0")

    def factory_of_weight(self, layer: nn.Module) -> Factory:
        """Only convolutions have channels of their own."""
        if isinstance(layer, nn.Linear):
            return partial(self.weight, per_channel=False)  # type: ignore[call-arg]
        return self.weight

    @property
    def quantizers(self) -> list[StepAndClip]:
        """Those of all weights, then those of all activations."""
        both = [*self.weight_quantizers.values(), *self.act_quantizers.values()]
        return cast(list[StepAndClip], both)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, add the penalty to the loss, and plan the first phase."""
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        if module.epoch == module.batch == 0:
            module.phase_epochs = self.epochs[PRETRAIN]
        module.penalties.append(lambda: self.penalty(_progress(module)))

    def sizes(self) -> Sizes:
        """Of the network with its widths of now, by the cost model; differentiable."""

        def width(quantizers: Mapping[str, Quantizer], name: str) -> Tensor:
            if name not in quantizers:
                return torch.tensor(float(FLOAT_BITS))
            return cast(StepAndClip, quantizers[name]).mean_bits()

        soft = {
            shape.name: _SoftBits(
                width(self.weight_quantizers, shape.name), width(self.act_quantizers, shape.name)
            )
            for shape in self.shapes
        }
        parts: Mapping[str, Any] = memory_bytes(
            self.shapes,
            cast(Mapping[str, Bits], soft),
            batch_norm_channels=0,
            accounting=self.accounting,
        )
        # of one layer alone no activation is quantized, and their size is no tensor
        return Sizes(*(torch.as_tensor(parts[of]) / 1000 for of in ("weights", "activations")))

    def penalty(self, progress: float) -> Tensor:
        """Of the sizes, in a step that updates the quantizers; nothing else depends on it."""
        if not self.updating:
            return torch.zeros(())
        return ramp(progress) * size_penalty(self.sizes(), self.targets, self.strength)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Let gradients reach steps and clips only where they will be used."""
        module = face(pl_module)
        step = (module.epoch - module.phase_start) * module.batches + module.batch
        updating = module.phase == SEARCH and (step + 1) % self.update_every == 0
        if updating != self.updating:
            self.updating = updating
            for quantizer in self.quantizers:
                quantizer.requires_grad_(updating)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the weight decay; clip the gradients of steps and clips, or let them coast on 0."""
        for parameter in self.decayed:
            if parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=self.weight_decay)
        module = face(pl_module)
        if module.phase != SEARCH:
            return
        for quantizer in self.quantizers:
            for parameter in (quantizer.step, quantizer.clip):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                else:
                    bound = quantizer.step.abs()
                    parameter.grad.clamp_(-bound, bound)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Put steps and clips back into their ranges."""
        module = face(pl_module)
        if module.phase == SEARCH:
            project(self.quantizers)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write widths and sizes down, keep the best weights, and begin the next phase."""
        module = face(pl_module)
        line = module.history[-1]
        line["bits"] = {name: [bits.weight, bits.act] for name, bits in self.bits.items()}
        with torch.no_grad():
            weight_kb, act_kb = (float(size) for size in self.sizes())
        module.note(weight_kb=weight_kb, act_kb=act_kb)
        if module.phase == SEARCH:
            say_floors(self.quantizers)
        done = module.epoch + 1 - module.phase_start
        if self._selectable(line, done / module.phase_epochs):
            self._keep_best(module.net, line["val_top1_pct"])
        if done < module.phase_epochs or not any(self.epochs[module.phase + 1 :]):
            return
        if self.best is not None:
            module.net.load_state_dict(self.best)
        self.best, self.best_top1_pct = None, -1.0
        trainer.optimizers[0].state.clear()
        module.start_phase(module.epoch + 1, self.epochs[module.phase + 1])

    def _selectable(self, line: Mapping[str, Any], progress: float) -> bool:
        """Whether the next phase may begin with the weights of this epoch."""
        if line["phase"] == SEARCH:
            sizes = line["own"]["weight_kb"], line["own"]["act_kb"]
            fits = all(size <= most for size, most in zip(sizes, self.targets, strict=True))
            return fits and progress >= self.select_from
        return bool(line["phase"] == PRETRAIN)

    def _keep_best(self, net: nn.Module, top1_pct: float) -> None:
        if top1_pct > self.best_top1_pct:
            self.best, self.best_top1_pct = deepcopy(net.state_dict()), top1_pct

    def state_dict(self) -> dict[str, Any]:
        """The best weights of the unfinished phase."""
        return {"best": self.best, "best_top1_pct": self.best_top1_pct}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the phase where a checkpoint left it."""
        self.best, self.best_top1_pct = state_dict["best"], state_dict["best_top1_pct"]


def _progress(module: TrainerFace) -> float:
    """Place of the coming step in its phase, from 0 to 1."""
    done = module.epoch - module.phase_start + module.batch / module.batches
    return done / module.phase_epochs
