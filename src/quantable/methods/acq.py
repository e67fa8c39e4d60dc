r"""ACQ: fixed point with power-of-two scales, for accumulators of P bits.

De Bruin, Zivkovic, Corporaal, Microprocessors and Microsystems 72 (2020) 102872, arXiv:2004.11783.
The paper's body is not recovered: bounds are mathematics, the rest is this project's (card). A
value :math:`x` with exponent :math:`F`, levels :math:`lo` to :math:`hi`, halves to even:

.. math:: \hat x = \mathrm{clip}(\mathrm{round}(x 2^F), lo, hi) / 2^F

:math:`F` is the better, by squared error, of :math:`F_0`, the largest at which nothing clips, and
:math:`F_0 + 1`. Weights of :math:`B` bits have the levels :math:`\pm(2^{B-1} - 1)`. A bias is
:math:`\mathrm{round}(b 2^{F_w + F_d}) / 2^{F_w + F_d}`: an integer that the sum begins with.
"""

from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from quantable.base.bits import Bits
from quantable.base.devices import greatest, least, total
from quantable.base.errors import UserError
from quantable.cost.accumulators import bits_of
from quantable.networks.fold import fold_batch_norms
from quantable.quantization.channels import raw_bias, raw_weight
from quantable.quantization.face import face
from quantable.quantization.grid import BINARY, int_range
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, round_ste, sign_ste
from quantable.quantization.sums import sum_range

MOST = 126  # of an exponent's magnitude: float32 has 2^F and 2^-F
NARROWEST = 2  # of a weight there is 0 beside one level on each side


def fixed_point(
    x: Tensor, exponent: Tensor, low: int, high: int, rounding: Rounding = round_ste
) -> Tensor:
    """Fake-quantize ``x`` onto the multiples of ``2**-exponent`` from ``low`` to ``high`` of them.

    >>> fixed_point(torch.tensor([-9.0, 0.25, 0.75, 0.8]), torch.tensor(1.0), low=-3, high=3)
    tensor([-1.5000,  0.0000,  1.0000,  1.0000])
    """
    clipped = (x * power_of_two(exponent).to(x.dtype)).clamp(low, high)
    return rounding(clipped) * power_of_two(-exponent).to(x.dtype)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` of whole numbers from -126 to 126 to the last bit, as float32.

    >>> power_of_two(torch.tensor([-1.0, 0.0, 10.0]))
    tensor([5.0000e-01, 1.0000e+00, 1.0240e+03])
    """
    known = exponent.nan_to_num(0.0).int()
    return torch.where(exponent.isnan(), torch.nan, ((known + 127) << 23).view(torch.float32))


def unclipped_exponent(smallest: Tensor, largest: Tensor, low: int, high: int) -> Tensor:
    """``F_0``: the largest exponent at which no value from ``smallest`` to ``largest`` is clipped.

    Where the levels begin at 0 values below are not looked at. 0 for a tensor of zeros.

    >>> unclipped_exponent(torch.tensor(0.0), torch.tensor(7.75), low=0, high=15)  # 15.5 goes to 16
    tensor(0.)
    """
    found = _unclipped(largest, high)
    if low < 0:
        found = torch.minimum(found, _unclipped(-smallest, -low))
    return torch.where(found.isposinf(), 0.0, found.clamp(-MOST, MOST))


def _unclipped(value: Tensor, end: int) -> Tensor:
    """Largest F with ``round(value * 2**F) <= end``; infinite where ``value`` is not above 0."""
    wide = value.double()
    guess = torch.log2((end + 0.5) / wide).floor()
    # The logarithm may be off by a digit, and a half goes to even: the next exponents are tried.
    tried = torch.stack([guess - 1, guess, guess + 1])
    fits = torch.ldexp(wide, tried).round() <= end
    found = torch.where(fits, tried, -torch.inf).amax(0)
    found = torch.where(wide > 0, found, torch.inf)
    return torch.where(wide.isfinite(), found, torch.nan).float()


class FixedPoint(Quantizer):
    """One tensor's fixed-point quantizer.

    A calibration looks twice at the same images, through the network in float: at the range, then
    at the squared errors of both exponents, which are summed over all images; so an exponent does
    not depend on how the images are cut into batches. Without one, the first training batch sets
    it, as that of a weight, and again after ``bits`` was assigned; from then on it is kept. Before
    that, evaluation uses the exponent that its own batch would set, and keeps nothing.

    ``through`` hands the tensor on in float.
    """

    looks = 2
    anew = True
    exponent: Tensor

    def make_state(self) -> None:
        """The exponent F, or one for each channel."""
        self.register_buffer("exponent", torch.zeros(self.shape))  # (c,) or scalar
        self.through = False
        self._looking: int | None = None
        self._range: tuple[Tensor, Tensor] | None = None  # of the images so far
        self._errors: Tensor | None = None  # of F_0 and F_0 + 1, (2, ...)

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest level."""
        low, high = int_range(self.bits, signed=self.signed)
        narrow = self.signed and not self.batched and self.bits > 1
        return (-high, high) if narrow else (low, high)

    @property
    def ready(self) -> bool:
        """Whether the exponent is set and in use."""
        return self.initialized and not self.through and self._looking is None

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``fixed_point`` with the exponent that the class describes."""
        if self._looking is not None:
            self._see(x.detach())
        if self.through or self._looking is not None:
            return x
        return self._fixed(x, self._usable(x.detach()), self.rounding)

    def _fixed(self, x: Tensor, exponent: Tensor, rounding: Rounding = round_ste) -> Tensor:
        if self.ends == BINARY and self.bits == 1:  # its two levels have no 0 between them
            rounding = sign_ste
        return fixed_point(x, self.spread(exponent, x), *self.ends, rounding)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """A power of two; every integer stands for a multiple of it."""
        if self.through:
            return None
        scale = power_of_two(-self.spread(self._usable(x), x)).to(x.dtype)
        return scale, torch.zeros_like(scale)

    def fix(self, exponent: Tensor) -> None:
        """Set the exponent, and keep it."""
        self.exponent.copy_(exponent)
        self.initialized = True

    def _usable(self, x: Tensor) -> Tensor:
        if self.initialized:
            return self.exponent
        found = self.best_exponent(x)
        if self.training:
            self.fix(found)
        return found

    @torch.no_grad()
    def best_exponent(self, x: Tensor) -> Tensor:
        """The better exponent for ``x`` alone, of ``self.shape``."""
        first = unclipped_exponent(*self._seen_range(x), *self.ends)
        return self._better(first, self._seen_errors(x, first))

    def _seen_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        smallest, largest = x.amin(self.reduced(x)), x.amax(self.reduced(x))
        shared = self.batched and self.training
        return (least(smallest), greatest(largest)) if shared else (smallest, largest)

    def _seen_errors(self, x: Tensor, first: Tensor) -> Tensor:
        """Sum of squared errors of ``x`` at ``first`` and at the next exponent: (2, ...)."""
        found = []
        for exponent in (first, (first + 1).clamp(max=MOST)):
            error = x - self._fixed(x, exponent)
            found.append(error.square().sum(self.reduced(x), dtype=torch.float64))
        errors = torch.stack(found)
        return total(errors) if self.batched and self.training else errors

    def _better(self, first: Tensor, errors: Tensor) -> Tensor:
        return (first + (errors[1] < errors[0])).clamp(max=MOST)

    def look(self, number: int | None) -> None:
        """Begin to look at the range, then at errors; at the end keep the better exponent."""
        if number == 0:
            self.initialized, self._range = False, None
        if number == 1:
            self._errors = None
        self._looking = number

    @torch.no_grad()
    def _see(self, x: Tensor) -> None:
        if not self.batched:
            self.fix(self.best_exponent(x))
        elif self._looking == 0:
            smallest, largest = self._seen_range(x)
            if self._range is not None:
                smallest = torch.minimum(smallest, self._range[0])
                largest = torch.maximum(largest, self._range[1])
            self._range = smallest, largest
        else:
            assert self._range is not None, "the first look was at the same images"
            first = unclipped_exponent(*self._range, *self.ends)
            errors = self._seen_errors(x, first)
            self._errors = errors if self._errors is None else self._errors + errors
            self.fix(self._better(first, self._errors))


class BiasGrid(nn.Module):
    """Rounds a layer's bias to the scale of its sums, once weight and input have their exponents.

    It has no state; its gradient is straight through.
    """

    def __init__(self, weight: FixedPoint, act: FixedPoint) -> None:
        super().__init__()
        self.of = (weight, act)  # in a tuple, so that they are no submodules

    def forward(self, bias: Tensor) -> Tensor:
        """The bias as its layer adds it."""
        if not all(quantizer.ready for quantizer in self.of):
            return bias
        for quantizer in self.of:
            bias = bias * power_of_two(quantizer.exponent).to(bias.dtype)
        bias = round_ste(bias)
        for quantizer in self.of:
            bias = bias * power_of_two(-quantizer.exponent).to(bias.dtype)
        return bias


class ACQ(Quantize):
    """Folds batch norms, quantizes weights, inputs and biases, and keeps sums in P bits.

    ``accumulator``: P, in two's complement; None: as wide as need be. Behind the last batch of a
    training every output channel's sum is bounded again, with the weights as they have become, and
    a layer in which one does not fit loses bits of its weights until all do. Training is without
    dropout: exponents are those of the whole network.
    """

    def __init__(
        self,
        *,
        accumulator: int | None,
        **more: Any,  # noqa: ANN401 - what every callback has
    ) -> None:
        super().__init__(**more)
        self.accumulator = accumulator

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``, also on biases."""
        super().attach(net, input_size)
        for name in self.integer_layers:
            weight, act = self.quantizers_of(name)
            if act.per_channel:
                raise UserError(
                    f"layer '{name}': sums of integers need one exponent for all of its inputs: "
                    "quantizer.callback.act.per_channel=false"
                )
            layer = net.get_submodule(name)
            if layer.bias is not None:
                grid = BiasGrid(weight, act)
                parametrize.register_parametrization(layer, "bias", grid, unsafe=True)

    def prepare(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Fold the batch norms of ``net``, if there are any left."""
        c, h, w = input_size
        fold_batch_norms(net, (c, h, w))

    @property
    def integer_layers(self) -> list[str]:
        """Layers whose weight and input are both quantized, in execution order."""
        return [name for name in self.weight_quantizers if name in self.act_quantizers]

    def quantizers_of(self, name: str) -> tuple[FixedPoint, FixedPoint]:
        """Quantizers of the weight and of the input of an integer layer."""
        weight, act = self.weight_quantizers[name], self.act_quantizers[name]
        return cast(FixedPoint, weight), cast(FixedPoint, act)

    def integer_bias(self, name: str) -> Tensor | None:
        """The integers that the sums of layer ``name`` begin with: int64 (c_out,), on its scale."""
        layer = cast(nn.Module, self._net).get_submodule(name)
        if layer.bias is None or name not in self.integer_layers:
            return None
        scaled = raw_bias(layer).detach().double()
        for quantizer in self.quantizers_of(name):
            if not quantizer.initialized:
                raise UserError(f"{quantizer.place}: it has no exponent before its first batch")
            scaled = scaled * power_of_two(quantizer.exponent).double()
        return scaled.round().long()

    @torch.no_grad()
    def needed_bits(self, name: str) -> int:
        """Accumulator bits that no input of integer layer ``name`` can exceed, of all channels.

        Known weights, with the signs of both operands and the bias; every partial sum fits, too.
        """
        weight, act = self.quantizers_of(name)
        found = weight.levels(raw_weight(cast(nn.Module, self._net).get_submodule(name)).detach())
        assert found is not None
        low, high = sum_range(found.integers, act.ends, self.integer_bias(name))
        return bits_of(int(low.min()), int(high.max()))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, and drop nothing."""
        super().setup(trainer, pl_module, stage)
        for module in face(pl_module).net.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Behind the last batch, before the network is evaluated, make every sum fit."""
        module = face(pl_module)
        if module.batch + 1 == module.batches and module.planned_end():
            self.narrow()

    def narrow(self) -> None:
        """Take bits from the weights of layers whose sums do not fit, until they do.

        Raises UserError where even the least width does not fit.
        """
        if self.accumulator is None:
            return
        for name in self.integer_layers:
            weight, _ = self.quantizers_of(name)
            raw = raw_weight(cast(nn.Module, self._net).get_submodule(name)).detach()
            while (needed := self.needed_bits(name)) > self.accumulator:
                width = self.bits[name]
                if width.weight <= NARROWEST:
                    raise UserError(
                        f"layer '{name}': infeasible: its sums need {needed} bits at "
                        f"{width.weight}-bit weights and {width.act}-bit inputs, and "
                        f"bits.accumulator is {self.accumulator}"
                    )
                self.set_bits({name: Bits(width.weight - 1, width.act)})
                weight.fix(weight.best_exponent(raw))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the widths down, which the last batch may have changed."""
        line: dict[str, Any] = face(pl_module).history[-1]
        line["bits"] = {name: [bits.weight, bits.act] for name, bits in self.bits.items()}
