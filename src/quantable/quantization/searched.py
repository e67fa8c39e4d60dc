"""A search for real bit-widths under a budget, in two phases of one run, for several methods.

The quantizers stand in ``quantable.quantization.relaxed``. A method says which operands are
searched, what the penalty is and how their widths are rounded.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from quantable.base.bits import MAX_BITS, Bits
from quantable.base.errors import UserError, unknown
from quantable.cost.bops import bops
from quantable.cost.memory import weight_bytes
from quantable.networks.counting import layer_shapes
from quantable.networks.layers import LayerShape
from quantable.quantization.channels import raw_weight
from quantable.quantization.face import OwnOptimizer, face
from quantable.quantization.quantize import Factory, Quantize
from quantable.quantization.relaxed import RealBits

SEARCH, FINETUNE = range(2)

Operand = tuple[str, Literal["weight", "act"]]  # of the layer with this name

# Differentiable: products and sums of bit-widths.
COSTS: Mapping[str, Callable[..., Any]] = {
    "bops": bops,
    "weights": partial(weight_bytes, ends_bits=None, count_linear=True),
}


class _Widths(NamedTuple):
    """Stands for ``Bits`` in a cost model, which only multiplies and adds."""

    weight: Any
    act: Any


class SearchedBits(Quantize):
    """Trains real bit-widths with the weights, rounds them, and trains the weights with those.

    ``epochs`` are the lengths of both phases, search and fine-tuning; without a search, ``[0, n]``,
    the widths stay as they are. Of the operands that a method searches, those of layers with
    widths of their own (``ends``, ``layers``) and those that ``inner`` leaves in float are not.

    The budget is the ``cost`` of the network with ``target`` bits, which need not be whole, for
    every operand that is searched. Their widths begin ``start_above`` the target and stay in
    ``range``; the penalty has ``strength``; ``optimizer`` and ``schedule`` are of the widths alone.

    Within the search, evaluation has the widths that they would be rounded to at the last batch.
    """

    narrowest = 1  # width that a quantizer can have beside a wider one

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        epochs: Sequence[int],
        cost: str,
        target: float,
        start_above: float,
        range: Sequence[int],
        strength: float,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[float, int], float],
    ) -> None:
        super().__init__(weight=weight, act=act, inner=inner, ends=ends, layers=layers)
        where = "quantizer.callback"
        if len(epochs) != 2 or epochs[SEARCH] < 0 or epochs[FINETUNE] < 1:
            raise UserError(
                f"{where}.epochs={list(epochs)}: search and fine-tuning, such as [8, 12]; [0, n] "
                "searches nothing"
            )
        if cost not in COSTS:
            raise unknown("cost", cost, COSTS, f"{where}.cost")
        if len(range) != 2 or not self.narrowest <= range[0] < range[1] <= MAX_BITS:
            raise UserError(
                f"{where}.range={list(range)}: two widths from {self.narrowest} to {MAX_BITS}, "
                "rising"
            )
        if not range[0] <= target <= range[1]:
            raise UserError(f"{where}.target={target}: it lies in the range {list(range)}")
        self.epochs = epochs
        self.cost = COSTS[cost]
        self.target = target
        self.start_above = start_above
        self.least, self.most = range
        self.strength = strength
        self.optimizer = optimizer
        self.schedule = schedule
        self.shapes: list[LayerShape] = []
        self.asked: dict[str, Bits] = {}  # widths of all layers as the config says them
        self.searched: dict[Operand, RealBits] = {}
        self.limit = 0.0  # the budget

    @abstractmethod
    def operands(self, inner: Sequence[str]) -> list[Operand]:
        """What is searched, where it is quantized; ``inner`` have no widths of their own."""

    @abstractmethod
    def penalty_of(self, spent: Tensor) -> Tensor:
        """What the loss has for a network that needs ``spent`` times the budget."""

    @abstractmethod
    def rounded(self, real: Mapping[Operand, float]) -> Mapping[Operand, int]:
        """Integer widths for real ones."""

    def attach(self, net: Any, input_size: Sequence[int]) -> None:  # noqa: ANN401
        """Put quantizers into ``net``, and a real width into those that are searched."""
        c, h, w = input_size
        self.shapes = layer_shapes(net, (c, h, w))
        super().attach(net, input_size)
        self.asked = self.bits
        if self.epochs[SEARCH] == 0:
            return
        names = [shape.name for shape in self.shapes]
        own = set(self.layers) | set(() if self.ends is None else (names[0], names[-1]))
        by_kind = {"weight": self.weight_quantizers, "act": self.act_quantizers}
        for name, kind in self.operands([name for name in names if name not in own]):
            if name in by_kind[kind]:
                quantizer = cast(RealBits, by_kind[kind][name])
                quantizer.relax(self._start())
                quantizer.to(raw_weight(net.get_submodule(name)).device)
                self.searched[name, kind] = quantizer
        if not self.searched:
            raise UserError(
                "quantizer: there is nothing to search: every layer has bit-widths of its own "
                "(bits.file, bits.layers, bits.ends) or is in float (bits.inner); "
                "quantizer.callback.epochs=[0, n] trains with them"
            )
        self.limit = float(self.cost_of(dict.fromkeys(self.searched, self.target)))
        self._round()

    def _start(self) -> float:
        return min(max(self.target + self.start_above, self.least), self.most)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, plan the first phase, and train the real widths if there are any."""
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        fresh = module.epoch == module.batch == 0
        if not self.searched:
            if fresh:
                module.phase_epochs = self.epochs[FINETUNE]
            return
        if fresh:
            module.phase_epochs = self.epochs[SEARCH]
            with torch.no_grad():  # another search's quantizers may have been taken over
                for width in self._parameters():
                    width.fill_(self._start())
        module.penalties.append(self.penalty)
        own = OwnOptimizer(self._parameters(), self.optimizer, self.schedule)
        module.own_optimizers.append(own)
        if module.phase == FINETUNE:
            self.settle()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [cast(torch.nn.Parameter, found.real_bits) for found in self.searched.values()]

    def cost_of(self, widths: Mapping[Operand, Any]) -> Any:  # noqa: ANN401 - of what they are
        """Cost of the network with these widths for what is searched; differentiable."""
        every = {
            name: _Widths(
                widths.get((name, "weight"), asked.weight), widths.get((name, "act"), asked.act)
            )
            for name, asked in self.asked.items()
        }
        return self.cost(self.shapes, every)

    def real(self) -> dict[Operand, float]:
        """Real widths as they are now."""
        return dict(zip(self.searched, torch.stack([*self._parameters()]).tolist(), strict=True))

    def penalty(self) -> Tensor:
        """Of the cost, in the search."""
        widths = self._parameters()
        if not widths[0].requires_grad:
            return torch.zeros(())
        spent = self.cost_of(dict(zip(self.searched, widths, strict=True))) / self.limit
        return self.penalty_of(spent)

    def settle(self) -> None:
        """Train with the integer widths from now on."""
        for width in self._parameters():
            width.requires_grad_(False)
            width.grad = None
        for quantizer in self.searched.values():
            quantizer.settle()

    def _numbers(self) -> dict[str, float | dict[str, float]]:
        """A method's own numbers of an epoch: real widths by layer, and what they cost."""
        real = self.real()
        found: dict[str, float | dict[str, float]] = {}
        for kind, name in (("weight", "real_bits"), ("act", "real_act_bits")):
            if of := {layer: width for (layer, which), width in real.items() if which == kind}:
                found[name] = of
        return found | {"budget_pct": 100 * self.cost_of(real) / self.limit}

    def _round(self) -> None:
        """Give every quantizer the integer width that its real one would become now."""
        bits = self.bits
        for (name, kind), width in self.rounded(self.real()).items():
            old = bits[name]
            bits[name] = Bits(width, old.act) if kind == "weight" else Bits(old.weight, width)
        self.set_bits(bits)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Keep the real widths in their range; round them where an evaluation follows."""
        module = face(pl_module)
        if not self.searched or module.phase != SEARCH:
            return
        for width in self._parameters():
            width.clamp_(self.least, self.most)
        if module.batch + 1 == module.batches:
            self._round()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the widths down; at the end of the search begin to fine-tune."""
        module = face(pl_module)
        if not self.searched:
            return
        module.history[-1]["bits"] = {
            name: [bits.weight, bits.act] for name, bits in self.bits.items()
        }
        module.note(**self._numbers())
        if module.phase == SEARCH and module.planned_end():
            self.settle()
            module.start_phase(module.epoch + 1, self.epochs[FINETUNE])
