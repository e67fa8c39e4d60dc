r"""AD pruning: channels are removed during training by the densities that lower the bit-widths.

Vasquez et al., DATE 2021, arXiv:2101.04354, after Foldy-Porto et al., arXiv:2002.02949. At every
update a layer keeps the share of its channels that its activation density says.

.. math:: C_l \leftarrow \mathrm{round}(C_l \cdot AD_l)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from quantable.base.errors import UserError, unknown
from quantable.methods.activation_density import ActivationDensity, DensityMeter
from quantable.networks.counting import layer_shapes
from quantable.networks.layers import LayerShape
from quantable.quantization.channels import Group, channel_groups, cut, raw_weight
from quantable.quantization.face import TrainerFace, face
from quantable.quantization.quantize import forget_graphs

KEEP_BY = ("density", "magnitude")


def next_channels(channels: int, density: float, *, min_channels: int) -> int:
    """Channels after an update: ``channels * density``, halves up, at least ``min_channels``.

    >>> [next_channels(channels, 0.5, min_channels=4) for channels in (64, 9, 6, 3)]
    [32, 5, 4, 3]
    """
    return max(min(channels, min_channels), math.floor(channels * density + 0.5))


class DensityPruning(ActivationDensity):
    """Lowers bit-widths like ``ActivationDensity`` and cuts channels at the same updates.

    Layers that share channels (around an addition, a depthwise convolution) are cut together, by
    the mean density of the ReLUs behind them; channels with no ReLU behind any of their layers
    (linear bottlenecks) stay. Of each group the channels with the highest density of the last epoch
    stay, or with ``keep_by="magnitude"`` those with the largest mean absolute weight. With
    ``min_bits: 16`` the widths stay and the method only prunes.
    """

    def __init__(
        self,
        *,
        keep_by: Literal["density", "magnitude"],
        min_channels: int,
        **quantization: Any,  # noqa: ANN401 - the keywords of ActivationDensity
    ) -> None:
        super().__init__(**quantization)
        if keep_by not in KEEP_BY:
            raise unknown("keep_by", keep_by, KEEP_BY, "quantizer.callback")
        if min_channels < 1:
            raise UserError(f"quantizer.callback.min_channels={min_channels}: it is at least 1")
        self.keep_by = keep_by
        self.min_channels = min_channels
        self.meter = ChannelMeter
        self.groups: list[Group] = []
        self.first: dict[str, Any] = {}  # the network before any update

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Find the channels that belong together, then attach as without pruning."""
        c, h, w = input_size
        self.groups = channel_groups(net, (c, h, w))
        self.first = network_facts(net, layer_shapes(net, (c, h, w)), phase=0)
        super().attach(net, input_size)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, plan the first phase, and note the size it begins with."""
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        if not module.networks:
            module.networks.append(self.first)

    def update(
        self, trainer: pl.Trainer, module: TrainerFace, density: Mapping[str, float]
    ) -> bool:
        """Lower the widths and cut the channels; False where neither changes."""
        bits_changed = super().update(trainer, module, density)
        net = module.net
        was = _channels_out(net, self.groups)
        for group in self.groups:
            meters = self._meters_behind(group)
            if not meters:
                continue
            channels = was[group.producers[0]]
            share = sum(float(meter.by_channel.mean()) for meter in meters) / len(meters)
            count = next_channels(channels, share, min_channels=self.min_channels)
            if count < channels:
                order = self._score(net, group, meters).argsort(descending=True, stable=True)
                cut(net, group, order[:count].sort().values, trainer.optimizers[0])
        pruned = _channels_out(net, self.groups) != was
        if pruned:
            shapes = layer_shapes(net, module.input_size)
            module.networks.append(network_facts(net, shapes, phase=module.phase + 1))
            forget_graphs(net)
        return bits_changed or pruned

    def _meters_behind(self, group: Group) -> list["ChannelMeter"]:
        names = dict.fromkeys(self.meter_of[p] for p in group.producers if p in self.meter_of)
        return [meter for name in names if isinstance(meter := self.meters[name], ChannelMeter)]

    def _score(self, net: nn.Module, group: Group, meters: Sequence["ChannelMeter"]) -> Tensor:
        """Rank of each channel of a group, (c,): the highest stay."""
        if self.keep_by == "density":
            return torch.stack([meter.by_channel for meter in meters]).mean(0)
        weights = [raw_weight(net.get_submodule(name)).detach() for name in group.producers]
        return torch.stack([weight.abs().flatten(1).mean(1) for weight in weights]).mean(0)


class ChannelMeter(DensityMeter):
    """Counts the non-zero outputs of every channel apart."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.by_channel = torch.zeros(0, dtype=torch.float64)  # (c,), of the last reading

    def _count_compiled(self, output: Tensor) -> Tensor:
        return torch.count_nonzero(output, [dim for dim in range(output.dim()) if dim != 1])

    def _add(self, counts: Tensor) -> None:
        # Not in place: the first batch of an epoch turns the zero scalar into (c,) counts.
        self.nonzero = self.nonzero + counts.reshape(len(counts), -1).sum(1)

    def _density(self, nonzero: Tensor, elements: Tensor) -> float:
        self.by_channel = nonzero * len(nonzero) / elements.double()
        return super()._density(nonzero, elements)


def network_facts(net: nn.Module, shapes: Sequence[LayerShape], *, phase: int) -> dict[str, Any]:
    """What a record keeps of a network that changes: from which phase on, and its size."""
    return {
        "phase": phase,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "channels": {s.name: len(raw_weight(net.get_submodule(s.name))) for s in shapes},
        "shapes": [vars(shape) for shape in shapes],
    }


def _channels_out(net: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
    return {g.producers[0]: len(raw_weight(net.get_submodule(g.producers[0]))) for g in groups}
