r"""DFQ: bit-widths of weights as real numbers, found by gradient descent.

Cheng et al., 2018, arXiv:1810.10351, of which only the abstract is known: the idea is the paper's,
every equation here is this project's (``docs/methods/dfq.md``); that of real widths stands in
``quantable.quantization.relaxed``. Symbols: weight :math:`w`, bit-width :math:`b`, layer :math:`l`
with :math:`n_l` weights, target :math:`T` in bits.

.. math:: s = (\max(0, \max w) - \min(0, \min w)) / n, \quad n = 2^b - 2, \quad
    lo = s \lfloor \min(0, \min w) / s \rceil, \quad hi = lo + s n
.. math:: Q_b(w) = lo + s \lfloor (\mathrm{clip}(w, lo, hi) - lo) / s \rceil
.. math:: Q_1(w) = \mathrm{sign}(w) \langle |w| \rangle
.. math:: L = \mathrm{CE} + \lambda \max(0, \bar b / T - 1), \quad
    \bar b = \textstyle\sum_l n_l b_l / \sum_l n_l
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantable.allocation.rounding import round_widths
from quantable.quantization.relaxed import Grid, RealBits, two_to
from quantable.quantization.searched import Operand, SearchedBits
from quantable.quantization.ste import sign, straight_through


def narrow_grid(w: Tensor, bits: int | Tensor, dims: list[int]) -> Grid:
    """``2**bits - 1`` levels, 0 among them, over the range of ``w`` and 0, shared by ``dims``.

    >>> low, scale, high = narrow_grid(torch.tensor([-0.4, 1.1]), bits=3, dims=[0])
    >>> low, scale, high
    (tensor([-0.5000]), tensor([0.2500]), tensor([1.]))
    """
    n = two_to(bits) - 2
    low = w.amin(dims, keepdim=True).clamp(max=0)
    high = w.amax(dims, keepdim=True).clamp(min=0)
    scale = torch.where(high == low, 1, (high - low) / n)
    low = (low / scale).round() * scale
    return Grid(low, scale, low + scale * n)


class NarrowRange(RealBits):
    """DFQ's quantizer of a weight: 2 to 16 bits, integer or real; 1 bit is its sign alone."""

    @torch.no_grad()
    def grid(self, x: Tensor, bits: int | Tensor) -> Grid:
        """``narrow_grid``."""
        return narrow_grid(x, bits, self.reduced(x))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` on its grid, or between two; at 1 bit its sign times its mean magnitude."""
        if self.bits == 1:
            return straight_through(sign(x.detach()) * self._magnitude(x.detach()), grad_of=x)
        return super().fake_quantize(x)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the levels, and 0: it is one of them, or midway between both."""
        scale = self._magnitude(x) if self.bits == 1 else self.grid(x, self.bits).scale
        return scale, torch.zeros_like(scale)

    def _magnitude(self, x: Tensor) -> Tensor:
        return x.abs().mean(self.reduced(x), keepdim=True)


class DFQ(SearchedBits):
    """Searches for the bit-widths of all weights under a budget of bits; inputs keep theirs."""

    narrowest = 2  # of one bit there are two levels, none of them 0

    def operands(self, inner: Sequence[str]) -> list[Operand]:
        """The weights."""
        return [(name, "weight") for name in inner]

    def penalty_of(self, spent: Tensor) -> Tensor:
        """Presses no longer once the budget is met: the loss alone then moves bits about."""
        return self.strength * (spent - 1).relu()

    def rounded(self, real: Mapping[Operand, float]) -> Mapping[Operand, int]:
        """Within the budget, by one offset for all and then one by one."""
        return round_widths(real, self.cost_of, self.limit, least=self.least, most=self.most)
