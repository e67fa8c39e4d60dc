r"""FracBits: bit-widths of weights and activations as real numbers, under a budget of operations.

Yang and Jin, AAAI 2021, arXiv:2007.02017; real widths stand in
``quantable.quantization.relaxed``. Symbols: weight :math:`w`, activation :math:`x`, clip
:math:`\alpha`, bit-widths :math:`b^w, b^a`, expected cost :math:`C` and its target :math:`T`.

.. math:: \hat w = 2\, q_k \left( \tanh(w) / (2 \max |\tanh(w)|) + 1/2 \right) - 1, \quad
    q_k(r) = \lfloor (2^k - 1) r \rceil / (2^k - 1)
.. math:: \hat x = \alpha\, q_k(\mathrm{clip}(x, 0, \alpha) / \alpha)
.. math:: L = \mathrm{CE} + \kappa\, |C / T - 1|, \quad
    C = \textstyle\sum_l \mathrm{MACs}_l \, b^w_l \, b^a_l
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantable.allocation.rounding import round_widths
from quantable.base.bits import FLOAT_BITS, Bits
from quantable.networks.counting import layer_shapes
from quantable.quantization.relaxed import Grid, RealBits, two_to
from quantable.quantization.searched import Operand, SearchedBits


def even_grid(low: Tensor, high: Tensor, bits: int | Tensor) -> Grid:
    """``2**bits`` levels from ``low`` to ``high``.

    >>> even_grid(torch.tensor(-1.0), torch.tensor(2.0), bits=2).scale
    tensor(1.)
    """
    return Grid(low, (high - low) / (two_to(bits) - 1), high)


class TanhWeight(RealBits):
    """FracBits' quantizer of a weight, DoReFa's: levels from -1 to 1 for what tanh leaves."""

    def grid(self, x: Tensor, bits: int | Tensor) -> Grid:
        """From -1 to 1."""
        return even_grid(x.new_tensor(-1.0), x.new_tensor(1.0), bits)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` through tanh and divided by the greatest, both with their gradients."""
        t = x.tanh()
        peak = t.abs().amax(self.reduced(x), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return super().fake_quantize(t / peak)


class ClippedAct(RealBits):
    """FracBits' quantizer of an activation: levels up to a learned clip, ``clip_init`` at first.

    The clip has the gradient of what is above it; signed activations have the clip on both sides.
    """

    positive = "clip"

    def __init__(self, bits: int, *, clip_init: float, **more: Any) -> None:  # noqa: ANN401 - as every quantizer
        super().__init__(bits, **more)
        self.clip_init = clip_init
        self.clip = nn.Parameter(torch.full(self.shape, clip_init))  # (c,) or scalar: alpha

    def grid(self, x: Tensor, bits: int | Tensor) -> Grid:
        """From 0, or the negative clip, to the clip."""
        clip = self.spread(self.kept_positive(lambda: self.clip_init), x).to(x.dtype)
        return even_grid(-clip if self.signed else torch.zeros_like(clip), clip, bits)


class FracBits(SearchedBits):
    """Searches for the bit-widths of weights and activations under a budget.

    ``as_published`` repeats what the authors' code does and this method does not: the input of the
    first layer is float, and that of the last one is searched although its weight is not; rounding
    is ``rounded_as_published``; and activations train with real widths in fine-tuning too.
    """

    def __init__(self, *, as_published: bool, **search: Any) -> None:  # noqa: ANN401 - of SearchedBits
        super().__init__(**search)
        self.as_published = as_published
        self.last = ""  # layer

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``: as published, none on its input."""
        c, h, w = input_size
        names = [shape.name for shape in layer_shapes(net, (c, h, w))]
        self.last = "".join(names[-1:])
        for first in names[:1] if self.as_published else ():
            asked = self.layers.get(first, self.ends or self.inner)
            self.layers = self.layers | {first: Bits(asked.weight, FLOAT_BITS)}
        super().attach(net, input_size)

    def operands(self, inner: Sequence[str]) -> list[Operand]:
        """Weights and activations of each layer."""
        found: list[Operand] = []
        for name in inner:
            found += [(name, "weight"), (name, "act")]
        if self.as_published and self.last not in inner:
            found.append((self.last, "act"))
        return found

    def penalty_of(self, spent: Tensor) -> Tensor:
        """Of the distance from the budget, above or below."""
        return self.strength * (spent - 1).abs()

    def rounded(self, real: Mapping[Operand, float]) -> Mapping[Operand, int]:
        """Within the budget, by one offset for all and then one by one; or as published."""
        ends = {"least": self.least, "most": self.most}
        if self.as_published:
            return rounded_as_published(real, self.cost_of, self.limit, **ends)
        return round_widths(real, self.cost_of, self.limit, **ends)

    def settle(self) -> None:
        """Train with the integer widths from now on; as published, with those of the weights."""
        super().settle()
        if self.as_published:
            for (_, kind), quantizer in self.searched.items():
                quantizer.mixing = kind == "act"


def rounded_as_published(
    real: Mapping[Operand, float],
    cost: Callable[[Mapping[Operand, int]], float],
    limit: float,
    *,
    least: int,
    most: int,
) -> dict[Operand, int]:
    """The nearest integers behind one offset in [-1, 0], by ten halvings or to 1 % of the limit.

    So the widths may cost more than ``limit``, and what is too small by rounding stays so.

    >>> def cost(bits):
    ...     return float(sum(bits.values()))
    >>> real = {("a", "weight"): 3.4, ("b", "weight"): 4.6}
    >>> rounded_as_published(real, cost, 7.0, least=2, most=8)
    {('a', 'weight'): 3, ('b', 'weight'): 4}
    """
    low, high = -1.0, 0.0
    widths: dict[Operand, int] = {}
    for _ in range(10):
        offset = (low + high) / 2
        widths = {
            operand: min(max(round(width + offset), least), most) for operand, width in real.items()
        }
        spent = cost(widths)
        if abs(spent / limit - 1) <= 0.01:
            break
        low, high = (low, offset) if spent > limit else (offset, high)
    return widths
