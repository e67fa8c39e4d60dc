"""What the quantizers of all methods share: bit-width, axes, saved state, float32 arithmetic."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from quantable.base.bits import FLOAT_BITS
from quantable.base.chunks import widened
from quantable.base.devices import mean_gradient, rank
from quantable.base.errors import UserError
from quantable.quantization import grid
from quantable.quantization.ste import Rounding, round_ste, straight_through

LEAST = 1e-8
"""A learned step or clip is not used below this."""


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


def layer_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which a convolution or linear layer reads ``x``: that of autocast where it is on.

    Rounded to it once, from float32: by the quantizer, so that autocast has nothing to convert.
    """
    kind = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class Quantizer(nn.Module, ABC):
    """Fake quantizer of one tensor; a method defines ``fake_quantize`` and ``scale_and_offset``.

    ``bits``: 1 to 16. ``signed``: whether the tensor has values below 0. ``batched``: dimension 0
    is the batch (an activation), otherwise the tensor is a weight. ``per_channel``: one range or
    step for each of ``channels`` channels, which are dimension ``channel_dim``: 0 of a weight and 1
    of an activation, unless a layer has them elsewhere and sets it.
    ``rounding``: rounds to levels, with a gradient of its own (``ste.rounding``).

    ``bits`` may be assigned during training. It and ``initialized`` (the first training batch was
    seen) are part of the ``state_dict``; they are plain values, so that reading them neither waits
    for the device nor breaks a compiled graph, which is rebuilt when they change. So are ``signed``
    and, within a network, the sign of the layer's input: a state in which they differ is refused.

    Parameters and buffers of a method are made in ``make_state``.

    ``layer`` is what it may know of its layer, once it is in a network.

    NaN comes out as NaN, in training and evaluation: a run that diverged must not look like one
    that did not. An infinite value is clipped to the end of a range that is set, as by ``clamp``,
    and makes NaN of a range that is taken from the tensor itself.
    """

    narrow = False  # whether ``fake_quantize`` itself reads and writes 16-bit floats in eager mode
    bits_follow = False  # whether ``bits`` are read off parameters: assigning them always counts
    positive: str | None = None  # name of the learned step or clip that is ``kept_positive``
    anew = False  # whether the next training batch sets the state again after ``bits`` changed
    looks = 1  # passes over the same images that a calibration makes

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
        self.fallen = False  # whether ``kept_positive`` has to look at its parameter
        self._said = False
        self.rounding = rounding
        self.bits = bits
        self.signed = signed
        self.batched = batched
        self.per_channel = per_channel
        self.channel_dim = int(batched)
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
        """Fake-quantize ``x``: computed at least in float32, returned in the layer's dtype."""
        dtype = layer_dtype(x)
        ste = self.rounding is round_ste
        as_it_is = self.narrow and ste and not torch.compiler.is_compiling()
        if not (as_it_is or x.dtype in (torch.float32, torch.float64)):
            x = widened(x)
        quantized = self.fake_quantize(x)
        if not (self.batched or ste):  # a rounding may look at the sign of a weight's gradient
            quantized = mean_gradient(quantized)
        return quantized.to(dtype)

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """The method's own function of ``x``, in the dtype of ``x``.

        A ``narrow`` one computes in float32 what it is given in 16 bits, and returns the layer's
        dtype.
        """

    @abstractmethod
    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Distance of the levels that ``fake_quantize(x)`` has, and the value of the integer 0.

        Both broadcast against ``x``. None where this width leaves ``x`` as it is.
        """

    def look(self, number: int | None) -> None:
        """A calibration begins its pass ``number``, from 0; None: it is over."""

    @torch.no_grad()
    def levels(self, x: Tensor) -> Levels | None:
        """What evaluation makes of ``x``, as integers; None where it leaves ``x`` as it is.

        Exact where the method multiplies an integer by a step; else the last bit may differ.
        Raises UserError where ``x`` or a level is not finite: no integer stands for that.
        """
        self._check_finite(x)
        found = self.unchecked_levels(x)
        if found is None:
            return None
        self._check_finite(found.integers)
        return found._replace(integers=found.integers.long())

    @torch.no_grad()
    def unchecked_levels(self, x: Tensor) -> Levels | None:
        """The same, several times faster: integers in floating point, whatever ``x`` is."""
        was_training, wide = self.training, x.to(torch.promote_types(x.dtype, torch.float32))
        self.eval()
        found = self.scale_and_offset(wide)
        level = wide
        if found is not None:
            scale, offset = found
            with torch.autocast(x.device.type, enabled=False):
                level = self.fake_quantize(wide)
                level = level.clone() if level is wide else level
                level.sub_(offset).div_(scale).round_()
        self.train(was_training)
        return None if found is None else Levels(level, *found)

    def kept_positive(self, anew: Callable[[], Tensor | float]) -> Tensor:
        """The learned step or clip, of at least ``LEAST``, with the parameter's gradient.

        Where the optimizer took it to 0 or below, the layer gives 0, nothing in front of it learns,
        and its own gradient may lead on downwards for ever: there the next training batch sets it
        ``anew``, and the first time this is said.
        """
        assert self.positive is not None
        parameter: Tensor = getattr(self, self.positive)
        looked = parameter.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked and not self.fallen and parameter.min().item() > LEAST:
            return parameter
        if self.training and (self.fallen or self._seen_to_fall(parameter)):
            with torch.no_grad():  # in place: the optimizer holds this Parameter
                parameter.copy_(torch.where(parameter <= LEAST, anew(), parameter))
            self.fallen = False
        return straight_through(parameter.detach().clamp(min=LEAST), grad_of=parameter)

    def _seen_to_fall(self, parameter: Tensor) -> bool:
        """Whether a part is 0 or less, where looking costs nothing; else ``Fallen`` looks."""
        if parameter.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        fallen = bool((parameter <= LEAST).any())
        if fallen:
            self.say_fallen()
        return fallen

    def say_fallen(self) -> None:
        """Say that the learned step or clip fell to 0."""
        self.say_once(
            f"the {self.positive} fell to 0 in training and is set anew by the next batch; "
            "lower recipe.optimizer.lr or use more bits"
        )

    def say_once(self, words: str) -> None:
        """Say ``words`` of this quantizer on the error stream, unless it had something to say."""
        if not self._said and rank() == 0:
            print(f"{self.place}: {words}", file=sys.stderr, flush=True)
        self._said = True

    @property
    def place(self) -> str:
        """Which tensor this quantizes, in words."""
        operand = "input" if self.batched else "weight"
        of = f" of layer '{self.layer.name}'" if self.layer else ""
        return f"{type(self).__name__}, {operand}{of}"

    def _check_finite(self, x: Tensor) -> None:
        if not x.isfinite().all():
            raise UserError(f"{self.place}: a value is not finite: the network has diverged")

    @property
    def bits(self) -> int:
        """Bit-width, 1 to 16."""
        return self._bits

    @bits.setter
    def bits(self, bits: int) -> None:
        self._bits = grid.check(bits)
        if self.anew:
            self.initialized = False

    def reduced(self, x: Tensor) -> list[int]:
        """Dimensions of ``x`` that share one range: all, or all but the channels."""
        channel = self.channel_dim % x.dim()
        return [dim for dim in range(x.dim()) if not self.per_channel or dim != channel]

    def spread(self, statistic: Tensor, x: Tensor) -> Tensor:
        """View a statistic, (c,) or a scalar, so that it broadcasts against ``x``."""
        if not self.per_channel:
            return statistic
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        return statistic.view(shape)

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
