r"""Uniform min-max quantization, the quantizer of activation-density quantization (AD).

Vasquez et al., DATE 2021, arXiv:2101.04354, Eq. 2. Symbols: value :math:`x`, range
:math:`[x_{min}, x_{max}]`, bit-width :math:`k`, integer level :math:`q`.

.. math:: q = \lfloor (x - x_{min}) (2^k - 1) / (x_{max} - x_{min}) \rceil
.. math:: \hat x = q (x_{max} - x_{min}) / (2^k - 1) + x_{min}
"""

import torch
from torch import Tensor

from quantable.base.bits import MAX_BITS
from quantable.base.chunks import pieces, widened, workplace
from quantable.base.devices import greatest, least
from quantable.quantization.grid import intervals
from quantable.quantization.quantizer import Quantizer, layer_dtype
from quantable.quantization.ste import Rounding, gradient_side, round_ste, straight_through

MOMENTUM = 0.1  # weight of a new batch in the running range; the paper gives none


def minmax(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    bits: int,
    rounding: Rounding = round_ste,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Fake-quantize ``x`` onto ``2**bits`` even levels from ``low`` to ``high``; halves go to even.

    Values outside the range are clipped to it. The gradient of ``x`` is that of ``rounding``, which
    is 1 everywhere, and the range has none. An empty range (``low == high``) gives ``low``, so that
    a constant tensor stays as it is. The result is rounded to ``dtype`` (None: that of ``x``),
    once: whatever that of ``x`` is, the arithmetic is at least float32.

    >>> minmax(torch.tensor([-1.0, 0.1, 0.4, 2.0]), torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    tensor([-1.,  0.,  0.,  2.])
    """
    n = intervals(bits)
    with torch.no_grad():
        span = torch.where(high > low, high - low, 1)
        value = torch.empty_like(x, dtype=dtype)
        for value_, x_, low_, high_, span_ in pieces(value, x, low, high, span):
            wide = widened(x_)
            part = workplace(value_, x_, wide)
            if part is not wide:
                part.copy_(wide)
            part.clamp_(*_ends(low_, high_)).sub_(low_).mul_(n).div_(span_).round_()  # q
            part.mul_(span_).div_(n).add_(low_)
            if part is not value_:
                value_.copy_(part)
    if rounding is round_ste:
        return straight_through(value, grad_of=x)
    inside = straight_through(x.detach().clamp(low, high), grad_of=x)
    return straight_through(value, grad_of=gradient_side(inside, low, span / n, rounding))


def _ends(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """As plain numbers, between which ``clamp`` is seven times as fast, where reading is free."""
    if low.dim() > 0 or low.device.type != "cpu" or torch.compiler.is_compiling():
        return low, high
    return low.item(), high.item()


class MinMax(Quantizer):
    """Min-max quantizer of one tensor.

    A weight's range is its own, at every step; zero need not be a level. An activation's range is
    the batch's in training and the running average (momentum 0.1, from the first training batch on)
    in evaluation; its low end is 0 where ``signed`` is false. Evaluation before any training batch
    uses its own batch's range, and keeps nothing. At 16 bits the tensor comes back unchanged:
    65,535 intervals cannot be told from float32 in training, and only costs say 16.
    """

    narrow = True
    low: Tensor
    high: Tensor

    def make_state(self) -> None:
        """The running range of an activation."""
        if self.batched:
            self.register_buffer("low", torch.zeros(self.shape))  # (c,) or scalar
            self.register_buffer("high", torch.zeros(self.shape))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``minmax`` with the range that the class describes."""
        if self.bits == MAX_BITS:
            return x
        low, high = self._range(x.detach())
        low, high = self.spread(low, x), self.spread(high, x)
        return minmax(x, low, high, self.bits, self.rounding, layer_dtype(x))

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """A part of the range, and its low end."""
        if self.bits == MAX_BITS:
            return None
        low, high = (self.spread(end, x) for end in self._range(x))
        return torch.where(high > low, high - low, 1) / intervals(self.bits), low

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.batched and self.initialized and not self.training:
            return self.low, self.high
        dims = self.reduced(x)
        two_sided = self.signed or not self.batched
        if x.itemsize == 2 and not two_sided:
            # 16-bit floats from 0 on have the order of their bits, which are compared far sooner.
            high = x.view(torch.int16).amax(dims).view(x.dtype)
        else:
            high = x.amax(dims)
        high = widened(high)
        low = widened(x.amin(dims)) if two_sided else torch.zeros_like(high)
        if self.batched and self.training:
            low, high = least(low), greatest(high)
            self._track(low, high)
        return low, high

    def _track(self, low: Tensor, high: Tensor) -> None:
        momentum = MOMENTUM if self.initialized else 1.0
        self.low.lerp_(low.to(self.low.dtype), momentum)
        self.high.lerp_(high.to(self.high.dtype), momentum)
        self.initialized = True
