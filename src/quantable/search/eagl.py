r"""EAGL: what an item loses at fewer bits, read off the entropy of its quantized weights. No data.

Bablani et al., arXiv:2301.13330. Share :math:`p_j` of the item's weights on level :math:`j` of the
:math:`2^b` levels, with the learned step :math:`s` of LSQ:

.. math:: G = H = -\sum_j p_j \log_2 p_j \text{ bits}, \qquad 0 \le H \le b

High entropy keeps the bits. An item is a group of layers that share their bits: the histograms of
its members are added, each with its own step, and have one entropy. The bins are the levels, so
their number depends neither on the weights nor on their granularity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantable.base.chunks import pieces
from quantable.base.errors import UserError
from quantable.methods.lsq import LSQ
from quantable.quantization.grid import BINARY, int_range
from quantable.quantization.quantizer import LEAST, Quantizer
from quantable.quantization.ste import sign
from quantable.search.run import Found, Start

CANDIDATE_RATIO = 1.01
"""Ratio of neighbouring steps that ``mse_step`` compares."""


@dataclass(frozen=True)
class Eagl:
    """The rule: an item loses its entropy."""

    name = "EAGL"
    unit = "bit"
    greedy = False

    def __call__(self, start: Start) -> Found:
        """Entropy of every item, in bits."""
        return Found([item_entropy(start.weights(item)) for item in start.items])


def item_entropy(members: Sequence[tuple[Tensor, Quantizer]]) -> float:
    """Entropy in bits of an item's float weights on the levels of their quantizers, pooled.

    Raises UserError where the quantizers' bit-widths differ.
    """
    if len(widths := sorted({quantizer.bits for _, quantizer in members})) > 1:
        raise UserError(f"eagl: the layers of one item have {widths} bits; they must share theirs")
    return entropy(torch.stack([levels(*member) for member in members]).sum(dim=0))


def levels(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Number of weights on each level of ``quantizer``, the least level first: (2**bits,), int64.

    ``weight`` is the float one. The step is the learned one (or one for each channel); before
    training, the one that training would start from.
    """
    if not isinstance(quantizer, LSQ):
        raise UserError(f"eagl: {type(quantizer).__name__} has no learned step; use quantizer=lsq")
    step = quantizer.step if quantizer.initialized else quantizer.first_step(weight)
    q_min, q_max = int_range(quantizer.bits, signed=quantizer.signed)
    return histogram(weight, quantizer.spread(step, weight), q_min, q_max)


@torch.no_grad()
def histogram(weight: Tensor, step: Tensor, q_min: int, q_max: int) -> Tensor:
    """Number of elements of ``weight`` on each level: ``round(clip(w / step, q_min, q_max))``.

    ``step`` is positive and broadcasts against ``weight``. Raises UserError where a weight is not
    finite.

    >>> histogram(torch.tensor([-9.0, 0.2, 0.6]), torch.tensor(0.5), q_min=-2, q_max=1)
    tensor([1, 0, 1, 1])
    """
    if not weight.sum().isfinite():
        raise UserError("eagl: a weight is not finite: the network has diverged")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    counts = torch.zeros(q_max - q_min + 1, dtype=torch.int64, device=weight.device)
    for w, s in pieces(wide, step.clamp(min=LEAST)):
        ratio = (w / s).clamp_(q_min, q_max)
        level = sign(ratio) if (q_min, q_max) == BINARY else ratio.round_()
        # On a CPU, bincount is faster on int32 than on int64 or uint8, and than histc on floats.
        counts += torch.bincount(level.sub_(q_min).int().flatten(), minlength=len(counts))
    return counts[::2] if (q_min, q_max) == BINARY else counts  # the 1-bit grid has no 0


def entropy(counts: Tensor) -> float:
    """Entropy in bits of shares given by ``counts``; empty levels contribute 0.

    >>> entropy(torch.tensor([1, 2, 1, 0]))
    1.5
    """
    p = counts.double() / counts.sum()
    p = p[p > 0]
    return float((p * (1 / p).log2()).sum())


def first_step(weight: Tensor, bits: int) -> Tensor:
    """LSQ's starting step for a float weight: a scalar ().

    >>> first_step(torch.tensor([-1.0, 2.0, 3.0]), bits=1)
    tensor(4.)
    """
    return LSQ(bits, signed=True, batched=False).first_step(weight)


def mse_step(weight: Tensor, bits: int) -> Tensor:
    """Step of least squared error between a float weight and its quantized self: a scalar ().

    Every candidate's error is exact, from sorted weights and running sums. Candidates lie 1 % apart
    from mean ``|w|`` over the number of levels up to max ``|w|``; each is replaced by the best step
    for its levels.

    >>> mse_step(torch.tensor([-0.6, 0.0, 0.3, 0.3]), bits=2)
    tensor(0.3000)
    """
    w = np.sort(weight.detach().cpu().double().numpy(), axis=None)
    q_min, q_max = int_range(bits, signed=True)
    grid = np.array(BINARY if bits == 1 else range(q_min, q_max + 1))
    edges = (grid[1:] + grid[:-1]) / 2
    sums = np.concatenate([[0.0], np.cumsum(w)])

    def fit(step: float) -> tuple[float, float]:
        """Squares that the levels at ``step`` explain, and the best step for these levels."""
        below = np.searchsorted(w, step * edges)
        w_q = grid[0] * sums[-1] + np.diff(grid) @ (sums[-1] - sums[below])  # sum of w q
        q_q = grid[0] ** 2 * len(w) + np.diff(grid**2) @ (len(w) - below)  # sum of q^2
        return w_q**2 / q_q, w_q / q_q

    largest = max(abs(w[0]), abs(w[-1]))
    if largest < LEAST:
        return weight.new_tensor(1.0)
    smallest = np.abs(w).mean() / 2**bits
    count = 2 + int(np.log(largest / smallest) / np.log(CANDIDATE_RATIO))
    # The error is the sum of w^2 less what the levels explain.
    _, step = max(fit(step) for step in np.geomspace(smallest, largest, count))
    return weight.new_tensor(step)
