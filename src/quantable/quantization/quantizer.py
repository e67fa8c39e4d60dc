"""What the quantizers of all methods share: bit-width, axes, saved state, float32 arithmetic."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from quantable.base.bits import FLOAT_BITS
from quantable.base.devices import mean_gradient
from quantable.base.errors import UserError
from quantable.quantization import grid
from quantable.quantization.ste import Rounding, round_ste


class Levels(NamedTuple):
    """A tensor as integers: its values are ``scale * integers + offset``."""

    integers: Tensor  # int64, of the tensor's shape
    scale: Tensor  # this and the next broadcast against it: scalars, or one for each channel
    offset: Tensor  # real value of the integer 0


@dataclass(frozen=True)
class Layer:
    """What the quantizers of a layer's weight and of its input may know of the layer."""

    name: str
    kind: Literal["conv", "linear"]
    input_signed: bool  # whether the layer's input has values below 0
    act: "Quantizer | None" = field(repr=False)  # of the input; None where that is float

    @property
    def input_bits(self) -> int:
        """Width of the layer's input as it is now, whether set or learned; 32 for float."""
        return FLOAT_BITS if self.act is None else self.act.bits


class Quantizer(nn.Module, ABC):
    """Fake quantizer of one tensor; a method defines ``fake_quantize`` and ``scale_and_offset``.

    ``bits``: 1 to 16. ``signed``: whether the tensor has values below 0. ``batched``: dimension 0
    is the batch (an activation), otherwise the tensor is a weight. ``per_channel``: one range or
    step for each of ``channels`` channels: dimension 0 of a weight and 1 of an activation.
    ``rounding``: rounds to levels, with a gradient of its own (``ste.rounding``).

    ``bits`` may be assigned during training. It and ``initialized`` (the first training batch was
    seen) are part of the ``state_dict``; they are plain values, so that reading them neither waits
    for the device nor breaks a compiled graph, which is rebuilt when they change. So are ``signed``
    and, within a network, the sign of the layer's input: a state in which they differ is refused.

    Parameters and buffers of a method are made in ``make_state``.

    ``layer`` is what it may know of its layer, once it is in a network.
    """

    bits_follow = False  # whether ``bits`` are read off parameters: assigning them always counts

    def __init__(
        self,
        bits: int,
        *,
        signed: bool,
        batched: bool,
        per_channel: bool = False,
        channels: int | None = None,
        rounding: Rounding = round_ste,
    ) -> None:
        super().__init__()
        self.layer: Layer | None = None
        self.rounding = rounding
        self.bits = bits
        self.signed = signed
        self.batched = batched
        self.per_channel = per_channel
        self.shape: tuple[int, ...] = ()  # of a step, clip or range: scalar, or (c,)
        if per_channel:
            if channels is None:
                raise UserError(f"{type(self).__name__}: per_channel needs the number of channels")
            self.shape = (channels,)
        self.initialized = False
        self.make_state()

    def make_state(self) -> None:
        """Make the method's parameters and buffers, each of ``self.shape``; here there are none."""

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``: computed at least in float32, returned in the dtype of ``x``."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        quantized = self.fake_quantize(wide).to(x.dtype)
        if self.batched or self.rounding is round_ste:
            return quantized
        return mean_gradient(quantized)  # a rounding may look at the sign of a weight's gradient

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """The method's own function of ``x``, in the dtype of ``x``."""

    @abstractmethod
    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Distance of the levels that ``fake_quantize(x)`` has, and the value of the integer 0.

        Both broadcast against ``x``. None where this width leaves ``x`` as it is.
        """

    @torch.no_grad()
    def levels(self, x: Tensor) -> Levels | None:
        """What evaluation makes of ``x``, as integers; None where it leaves ``x`` as it is.

        Exact where the method multiplies an integer by a step; else the last bit may differ.
        """
        was_training, wide = self.training, x.to(torch.promote_types(x.dtype, torch.float32))
        self.eval()
        found = self.scale_and_offset(wide)
        if found is not None:
            scale, offset = found
            integers = ((self.fake_quantize(wide) - offset) / scale).round_().long()
        self.train(was_training)
        return None if found is None else Levels(integers, scale, offset)

    @property
    def bits(self) -> int:
        """Bit-width, 1 to 16."""
        return self._bits

    @bits.setter
    def bits(self, bits: int) -> None:
        self._bits = grid.check(bits)

    def reduced(self, x: Tensor) -> list[int]:
        """Dimensions of ``x`` that share one range: all, or all but the channels."""
        channel = int(self.batched)
        return [dim for dim in range(x.dim()) if not self.per_channel or dim != channel]

    def spread(self, statistic: Tensor, x: Tensor) -> Tensor:
        """View a statistic, (c,) or a scalar, so that it broadcasts against ``x``."""
        if not self.per_channel:
            return statistic
        return statistic.view([-1 if dim == int(self.batched) else 1 for dim in range(x.dim())])

    def get_extra_state(self) -> Tensor:
        """Bits, whether initialized, and ``signs``: a tensor, as torch.jit takes nothing else."""
        return torch.tensor([self.bits, self.initialized, *self.signs().values()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what ``get_extra_state`` returned; older states have no signs."""
        bits, initialized, *signs = state.tolist()
        for (whose, here), saved in zip(self.signs().items(), signs, strict=False):
            if here != saved:
                raise UserError(
                    f"layer '{self.layer.name if self.layer else type(self).__name__}': {whose} is "
                    f"{'signed' if here else 'unsigned'} in this network and was "
                    f"{'signed' if saved else 'unsigned'} in the one whose state is loaded: they "
                    "compute different things; train it anew"
                )
        self._bits = grid.check(bits)
        self.initialized = bool(initialized)

    def signs(self) -> dict[str, bool]:
        """What the network told of this tensor and of its layer's input."""
        whose = f"the {'input' if self.batched else 'weight'}"
        told = {} if self.layer is None else {"the layer's input": self.layer.input_signed}
        return {whose: self.signed} | told

    def extra_repr(self) -> str:
        """The line that ``print(network)`` shows."""
        return f"bits={self.bits}, signed={self.signed}, per_channel={self.per_channel}"
