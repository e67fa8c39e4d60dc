r"""A quantized network's layers as integers: what is multiplied and added, and what that means.

A layer's weight is :math:`s_w p + o_w`, its input :math:`s_x q + o_x`, with integers :math:`p, q`
in two's complement and real :math:`s, o`; most methods' :math:`o` are 0. Its output is

.. math:: s_w s_x \sum p q + s_w o_x \sum p + o_w s_x \sum q + o_w o_x \sum 1 + b

where the sums run over what the kernel meets of the image, not over the zeros around it. An
accumulator holds :math:`\sum p q` (and :math:`b`, where a method makes it an integer); all else is
added behind it (docs/integers.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from quantable.base.bits import FLOAT_BITS
from quantable.base.errors import UserError
from quantable.integers.emulation import Product
from quantable.quantization.quantize import FinalLayer, Quantize
from quantable.quantization.quantizer import Levels, Quantizer

EXTREME = 1e30  # beyond every clip, and finite after a division by a step


def in_twos_complement(levels: Levels, bits: int) -> Levels:
    """A weight's integers from 0 on, as min-max has them, from ``-2**(bits - 1)`` on.

    Those of a grid around zero stay as they are.
    """
    half, low = 1 << (bits - 1), int(levels.integers.min())
    moved = bool(levels.offset.any()) or int(levels.integers.max()) >= half
    if low < 0 or not moved:
        return levels
    return Levels(levels.integers - half, levels.scale, levels.offset + half * levels.scale)


@dataclass(frozen=True)
class Data:
    """The integers that a quantizer makes of a layer's input, whatever that is."""

    low: int
    high: int
    shift: int  # what its own integers have more than these

    @classmethod
    def of(cls, act: Quantizer, device: torch.device) -> "Data | None":
        """Those of a quantizer that was trained or calibrated; None where it quantizes nothing."""
        ends = act.levels(torch.tensor([-EXTREME, EXTREME], device=device))
        if ends is None:
            return None
        low, high = ends.integers.tolist()
        shift = 1 << (act.bits - 1) if act.signed and low >= 0 else 0
        return cls(low - shift, high - shift, shift)


def data_of(layer: FinalLayer) -> Data | None:
    """Integers of a layer's input; None where it is float, or in several scales."""
    if layer.act is None or layer.act.per_channel:
        return None
    return Data.of(layer.act, layer.integers.device)


class IntegerLayer:
    """A layer of a network that is computed in integers.

    Raises UserError, with the layer's name, where there are none that a sum could hold.
    """

    def __init__(self, final: FinalLayer, layer: nn.Module, bias: Tensor | None) -> None:
        self.name, self.layer = final.name, layer
        self.weight_bits, self.input_bits = final.weight_bits, final.input_bits
        self.input_signed = final.input_signed
        if final.act is None:
            self._refuse("its input is float")
        if final.act.per_channel:
            self._refuse("its input has a scale for each channel, which no sum of integers has")
        data = Data.of(final.act, final.integers.device)
        if data is None:
            self._refuse(f"its input is left in float at {final.input_bits} bits")
        self.act, self.data = final.act, data
        weight = in_twos_complement(
            Levels(final.integers, final.scale, final.offset), final.weight_bits
        )
        self.weight = weight.integers  # int64 (c_out, c_in / groups, ...)
        self.scale, self.offset = (part.double().flatten() for part in weight[1:])  # (c_out,), (1,)
        if self.offset.any():
            values = cast(Tensor, layer.weight).detach()
            x, y = (part.reshape(len(self.scale), -1) for part in (self.weight, values))
            self.scale, self.offset = _line_through(x, y, self.scale)
        self.bias = bias  # of the sums
        self.real_bias = final.bias if bias is None else None  # behind them
        try:
            ends = (data.low, data.high)
            self.product = Product(self.weight, data=ends, bias=bias, layer=layer)
        except UserError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"layer '{self.name}' has no integers: {why}")

    @property
    def terms(self) -> int:
        """Products in a sum."""
        return self.weight[0].numel()

    def integers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input as integers in float32, what one is worth, and the worth of 0, in float64."""
        levels = self.act.unchecked_levels(x)
        assert levels is not None, "Data.of would have refused it"
        scale, offset = (part.double().reshape(()) for part in levels[1:])
        q = levels.integers.sub_(self.data.shift) if self.data.shift else levels.integers
        return q, scale, offset + self.data.shift * scale

    def answer(self, x: Tensor, sums_of: "SumsOf") -> Tensor:
        """The layer's output (n, c_out, ...) in float32 for its input, before any quantizer."""
        q, scale, offset = self.integers(x)
        sums, factor = sums_of(self, q), self._spread(self.scale * scale)
        if self.offset.any() or offset:  # large terms that nearly cancel: not in float32
            out = sums.double().mul_(factor).add_(self._behind(q, scale, offset)).float()
        else:
            out = sums.float().mul_(factor.float())
        return out if self.real_bias is None else out.add_(self._spread(self.real_bias))

    def _behind(self, q: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """The three terms of the offsets; exact sums, in float64."""
        there = torch.ones_like(q[:1])  # and 0 around the image
        behind = self._spread(self.scale) * offset * self._weights.sums(there).double()
        if self.offset.any():
            real = scale * self._ones.sums(q).double() + offset * self._ones.sums(there).double()
            behind = behind + self._spread(self.offset) * self._of_groups(real)
        return behind

    @cached_property
    def _weights(self) -> Product:
        """The weights alone, of whatever is there."""
        return Product(self.weight, data=(0, 1), bias=None, layer=self.layer)

    @cached_property
    def _ones(self) -> Product:
        """The sum of what a kernel meets, a channel for each group."""
        ones = torch.ones_like(self.weight[: self._groups])
        low, high = min(self.data.low, 0), max(self.data.high, 1)
        return Product(ones, data=(low, high), bias=None, layer=self.layer)

    @property
    def _groups(self) -> int:
        return cast(int, getattr(self.layer, "groups", 1))

    def _of_groups(self, sums: Tensor) -> Tensor:
        """A sum of each group, for each output channel of the group."""
        if self._groups == 1:
            return sums
        return sums.repeat_interleave(len(self.weight) // self._groups, dim=1)

    def _spread(self, by_channel: Tensor) -> Tensor:
        """View (c_out,) or (1,) so that it broadcasts against the output."""
        return by_channel.view(-1, *[1] * (self.weight.dim() - 2))


def _line_through(integers: Tensor, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset (c,) in float64 with which ``integers`` (c, n) are nearest to ``values``.

    A grid with an offset is computed in float32, where a level is off by as much as the rounding of
    the largest; what its own scale and offset would give is then off by as much for all weights
    alike, which adds up. Where there is one level alone, ``scale`` stays.
    """
    x, y = integers.double(), values.double()
    x_mean, y_mean = x.mean(1), y.mean(1)
    apart = x - x_mean[:, None]
    spread = apart.square().sum(1)
    fitted = (apart * (y - y_mean[:, None])).sum(1) / spread.clamp(min=1)
    slope = torch.where(spread > 0, fitted, scale)
    return slope, y_mean - slope * x_mean


SumsOf = Callable[[IntegerLayer, Tensor], Tensor]
"""A layer and its input's integers -> the sums that its accumulators end with."""


def integer_layers(net: nn.Module, quantize: Quantize) -> list[IntegerLayer]:
    """Every convolution and linear layer of ``net``, in execution order.

    Raises UserError with the name of a layer that has no integers: an operand is float, or the
    layer is of a kind that is not emulated. The weights are those that the network computes with.
    """
    for name, bits in quantize.bits.items():
        for operand, width in (("weight", bits.weight), ("input", bits.act)):
            if width == FLOAT_BITS:
                raise UserError(f"layer '{name}' has no integers: its {operand} is float")
    layers = []
    for final in quantize.final_layers():
        module = net.get_submodule(final.name)
        layer = IntegerLayer(final, module, quantize.integer_bias(final.name))
        _check_weight(layer, module)
        layers.append(layer)
    found = {layer.name for layer in layers}
    for name in quantize.bits:
        if name not in found:
            raise UserError(f"layer '{name}' has no integers: its weight is left in float")
    return layers


@torch.no_grad()
def _check_weight(layer: IntegerLayer, module: nn.Module) -> None:
    """The integers must be the very weights that the network computes with."""
    weight = cast(Tensor, module.weight).double()
    like = (-1, *[1] * (weight.dim() - 1))
    scale, offset = layer.scale.view(like), layer.offset.view(like)
    apart = (scale * layer.weight + offset - weight).abs().amax()
    largest = torch.maximum(weight.abs().amax(), scale.amax())
    if not apart <= 1e-5 * largest:
        raise UserError(
            f"layer '{layer.name}': its integers are not its weights, which differ by {apart:.3g} "
            f"where the largest is {largest:.3g}"
        )
