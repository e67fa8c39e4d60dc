r"""AD: mixed precision from activation density, found during one training run.

Vasquez et al., DATE 2021, arXiv:2101.04354. The activation density of layer :math:`l` is the share
of non-zero values behind its ReLU, taken over the training images of one epoch. When every density
is flat, the widths are multiplied by them and training goes on.

.. math:: AD_l = \frac{\#\{a \ne 0\}}{\#\{a\}}, \qquad k_l \leftarrow \mathrm{round}(k_l \cdot AD_l)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from quantable.base.bits import Bits
from quantable.base.chunks import pieces
from quantable.base.devices import rank, total
from quantable.base.errors import UserError
from quantable.networks.counting import counted_layers
from quantable.networks.trace import Activations, activations
from quantable.quantization.face import TrainerFace, face
from quantable.quantization.quantize import Factory, Quantize


def next_bits(bits: int, density: float, *, min_bits: int) -> int:
    """Width after an update: ``bits * density``, halves up, at least ``min_bits``.

    >>> [next_bits(bits, 0.5, min_bits=2) for bits in (16, 9, 4, 2)]
    [8, 5, 2, 2]
    """
    return max(min_bits, math.floor(bits * density + 0.5))


def is_flat(series: Sequence[Mapping[str, float]], *, window: int, within: float) -> bool:
    """Whether every layer's mean over ``window`` epochs is ``within`` that of those before.

    >>> is_flat([{"conv": 0.50}, {"conv": 0.51}], window=1, within=0.02)
    True
    """
    if len(series) < 2 * window:
        return False
    last, before = series[-window:], series[-2 * window : -window]
    return all(
        abs(sum(e[name] for e in last) - sum(e[name] for e in before)) <= within * window
        for name in series[-1]
    )


def of_phase(epochs: int | Sequence[int], phase: int) -> int:
    """Entry of a phase, where the last one serves all later phases.

    >>> [of_phase([16, 5], phase) for phase in (0, 1, 2)], of_phase(20, 1)
    ([16, 5, 5], 20)
    """
    return epochs if isinstance(epochs, int) else epochs[min(phase, len(epochs) - 1)]


class ActivationDensity(Quantize):
    """Quantizes like ``Quantize`` and lowers the widths when the densities are flat.

    A phase lasts ``min_epochs`` to ``max_epochs``, each one number, or a list with one for every
    phase whose last entry serves all later phases. There are at most ``max_updates``; training ends
    early when no width changes or the mean density reaches ``enough_density``. The first and the
    last layer, and layers without an activation behind them or with a gate (sigmoid), keep their
    widths; other activations than modules ReLU and ReLU6 are refused. A shortcut shares the ReLU,
    and so the width, of the layer it is added into.
    """

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        min_epochs: int | Sequence[int],
        max_epochs: int | Sequence[int],
        max_updates: int,
        window: int,
        flat_within: float,
        enough_density: float,
        min_bits: int,
    ) -> None:
        super().__init__(weight=weight, act=act, inner=inner, ends=ends, layers=layers)
        if min([max_epochs] if isinstance(max_epochs, int) else max_epochs) < 1:
            raise UserError(  # else a run may end with widths that it never trained with
                f"quantizer.callback.max_epochs={max_epochs}: each phase has at least one epoch"
            )
        self.min_epochs = min_epochs
        self.max_epochs = max_epochs
        self.max_updates = max_updates
        self.window = window
        self.flat_within = flat_within
        self.enough_density = enough_density
        self.min_bits = min_bits
        self.series: list[
            dict[str, float]
        ] = []  # densities per layer, one entry per epoch of a phase
        self.meter: Callable[[nn.Module], DensityMeter] = DensityMeter
        self.meters: dict[str, DensityMeter] = {}  # by activation module
        self.meter_of: dict[str, str] = {}  # layer -> activation module

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net`` and meters behind its ReLUs."""
        c, h, w = input_size
        found = activations(net, (c, h, w))
        _check_activations(found, layers=len(counted_layers(net)))
        self.meter_of = found.relus
        super().attach(net, input_size)
        for name in dict.fromkeys(self.meter_of.values()):
            self.meters[name] = self.meter(net.get_submodule(name))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, and plan the first phase."""
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        for meter in self.meters.values():
            meter.to(module.device)
        if module.epoch == module.batch == 0:
            module.phase_epochs = of_phase(self.max_epochs, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the densities; at the end of a phase update the widths or end the run."""
        module = face(pl_module)
        by_meter = {name: meter.read() for name, meter in self.meters.items()}
        density = {layer: by_meter[meter] for layer, meter in self.meter_of.items()}
        mean = sum(by_meter.values()) / len(by_meter)
        self.series.append(density)
        miscounted = sum(meter.miscounted for meter in self.meters.values())
        module.note(
            density=density, total_density=mean, miscounted=int(total(torch.tensor(miscounted)))
        )
        module.history[-1]["bits"] = {
            name: [bits.weight, bits.act] for name, bits in self.bits.items()
        }
        if not self._over(self.series, module.phase):
            return
        enough = module.phase == self.max_updates or mean >= self.enough_density
        if enough or not self.update(trainer, module, density):
            module.finished = True
            return
        self.series.clear()
        module.start_phase(module.epoch + 1, of_phase(self.max_epochs, module.phase + 1))

    def phase_over(self, module: TrainerFace) -> bool:
        """Whether all densities are flat with this epoch's, or the phase was long enough."""
        by_meter = {name: meter.density() for name, meter in self.meters.items()}
        density = {layer: by_meter[meter] for layer, meter in self.meter_of.items()}
        return self._over([*self.series, density], module.phase)

    def _over(self, series: Sequence[Mapping[str, float]], phase: int) -> bool:
        epochs = len(series)
        if epochs < of_phase(self.min_epochs, phase):
            return False
        flat = is_flat(series, window=self.window, within=self.flat_within)
        return flat or epochs >= of_phase(self.max_epochs, phase)

    def update(
        self, trainer: pl.Trainer, module: TrainerFace, density: Mapping[str, float]
    ) -> bool:
        """Change what the densities ask for; False where that is nothing."""
        changed = self.updated_bits(density)
        self.set_bits(changed)
        return bool(changed)

    def updated_bits(self, density: Mapping[str, float]) -> dict[str, Bits]:
        """Return the layers whose width changes, with their new widths."""
        names = list(self.bits)
        changed = {}
        for name in names[1:-1]:
            if name in density:
                old = self.bits[name].weight
                new = next_bits(old, density[name], min_bits=self.min_bits)
                if new != old:
                    changed[name] = Bits(new, new)
        return changed

    def state_dict(self) -> dict[str, Any]:
        """Counts of the unfinished epoch and densities of the unfinished phase."""
        meters = {
            name: [*meter.totals(), meter.fresh, meter.miscounted]
            for name, meter in self.meters.items()
        }
        return {"series": self.series, "meters": meters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts where a checkpoint left them: of several devices, the first one."""
        self.series = state_dict["series"]
        for name, (nonzero, elements, fresh, miscounted) in state_dict["meters"].items():
            meter = self.meters[name]
            meter.nonzero, meter.elements = nonzero, elements
            meter.fresh, meter.miscounted = fresh, miscounted
            if rank() > 0:
                meter.nonzero, meter.elements = nonzero * 0, elements * 0
                meter.miscounted = 0


GATES = {"Hardsigmoid", "LogSoftmax", "Sigmoid", "Softmax"}
"""Nonlinearities whose results scale those of other layers or are probabilities."""


def _check_activations(found: Activations, layers: int) -> None:
    """Refuse a network with activations whose zeros no meter sees."""
    unseen = {name: sorted(kinds - GATES) for name, kinds in found.others.items() if kinds - GATES}
    if not found.relus:
        said = f"no ReLU module is behind any of the network's {layers} layers"
    elif unseen:
        named = [f"{name} ({', '.join(kinds)})" for name, kinds in unseen.items()]
        said = f"{len(named)} of the network's {layers} layers have none: {', '.join(named)}"
    else:
        return
    raise UserError(
        f"quantizer: AD counts zeros behind nn.ReLU and nn.ReLU6 modules, and {said}. A function "
        "such as relu(x) is no module, and other activations have no zeros to count: choose a "
        "network with a ReLU module for each, or another quantizer"
    )


def _sum_images(x: Tensor) -> Tensor:
    """Zeros and ones, summed over dimension 0.

    In the order of memory, which is 40 times as fast where channels are last.
    """
    order = sorted(range(1, x.dim()), key=x.stride, reverse=True)
    places = [order.index(dim) for dim in range(1, x.dim())]
    dtype = x.dtype if len(x) < 2**15 else torch.int64  # 16 bits hold no greater count
    return x.permute(0, *order).sum(0, dtype=dtype).permute(places)


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What a float of so many bytes is read as."""


class DensityMeter:
    """Counts non-zero outputs of a module in training, on its device, without synchronizing.

    The first batch of every epoch is counted a second time by ``torch.count_nonzero``;
    ``miscounted`` is the difference. In a compiled graph that alone counts: one reduction over all
    elements, which the compiler does within the pass that computes them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.nonzero = torch.zeros((), dtype=torch.int64)
        self.elements = torch.zeros((), dtype=torch.int64)
        self.fresh = True  # nothing counted yet in this epoch
        self.miscounted = 0
        module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: object, output: Tensor) -> None:
        if not module.training:
            return
        output = output.detach()
        self.elements += output.numel()
        if torch.compiler.is_compiling():
            # Not in place: the first batch of an epoch turns a channel meter's zero into (c,).
            self.nonzero = self.nonzero + self._count_compiled(output)
        else:
            # Read as an integer, a positive float is positive and 0 is 0, or, as -0, the least one:
            # far fewer cycles than a comparison of floats, and count_nonzero takes ten times those.
            for (images,) in pieces(output):
                ones = images.view(INTEGERS[images.itemsize]).clamp(0, 1)
                self._add(_sum_images(ones))
            if self.fresh:
                self.fresh = False
                self.miscounted = abs(int(self.nonzero.sum() - torch.count_nonzero(output)))

    def _count_compiled(self, output: Tensor) -> Tensor:
        return torch.count_nonzero(output)

    def _add(self, counts: Tensor) -> None:
        """Count what has no dimension of images any more."""
        self.nonzero += counts.sum()

    def to(self, device: torch.device) -> None:
        """Keep the counts where the activations are."""
        self.nonzero, self.elements = self.nonzero.to(device), self.elements.to(device)

    def totals(self) -> tuple[Tensor, Tensor]:
        """Non-zero outputs and all, since the last reading, over all devices."""
        return total(self.nonzero), total(self.elements)

    def density(self) -> float:
        """Density since the last reading."""
        return self._density(*self.totals())

    def read(self) -> float:
        """Density since the last reading; starts counting anew."""
        density = self.density()
        self.nonzero, self.elements = self.nonzero.new_zeros(()), self.elements.new_zeros(())
        self.fresh = True
        return density

    def _density(self, nonzero: Tensor, elements: Tensor) -> float:
        return float(nonzero.sum().item() / elements.item())
