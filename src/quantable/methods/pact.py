r"""PACT: activations with a learned clipping level.

Choi et al., 2018, arXiv:1805.06085. Symbols: activation :math:`x`, clipping level :math:`\alpha`
(here ``clip``), bit-width :math:`k`.

.. math:: y = \mathrm{clip}(x, 0, \alpha) = (|x| - |x - \alpha| + \alpha) / 2 \qquad \text{(Eq. 1)}
.. math:: y_q = \lfloor y (2^k - 1) / \alpha \rceil \, \alpha / (2^k - 1) \qquad \text{(Eq. 2)}
.. math:: \partial y_q / \partial \alpha = 0 \text{ where } x < \alpha, \text{ else } 1
    \qquad \text{(Eq. 3)}
"""

import torch
from torch import Tensor, nn

from quantable.quantization.grid import intervals
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, gradient_side, round_ste, straight_through


def pact(
    x: Tensor,
    clip: Tensor,
    bits: int,
    *,
    signed: bool = False,
    rounding: Rounding = round_ste,
) -> Tensor:
    """Fake-quantize ``x`` onto ``2**bits`` even levels from 0 to ``clip`` (from ``-clip``: signed).

    ``clip`` gets the gradient of Eq. 3: 1 from every element at or above it (signed: and -1 from
    those at or below ``-clip``).

    >>> pact(torch.tensor([-1.0, 0.4, 2.6, 9.0]), torch.tensor(3.0), bits=2)
    tensor([0., 0., 3., 3.])
    """
    n = intervals(bits)
    low = -clip if signed else torch.zeros_like(clip)
    y = torch.where(x >= clip, clip, torch.where(x <= low, low, x))  # NaN stays
    with torch.no_grad():
        span = clip - low
        y_q = (y - low).mul_(n).div_(span).round_().mul_(span).div_(n).add_(low)
    return straight_through(y_q, grad_of=gradient_side(y, low, span / n, rounding))


class PACT(Quantizer):
    """One activation's PACT quantizer; ``clip_init`` is the clipping level at the start.

    The paper's L2 penalty on the clipping level is the optimizer's weight decay.
    """

    positive = "clip"

    def __init__(
        self,
        bits: int,
        *,
        signed: bool,
        batched: bool,
        clip_init: float,
        per_channel: bool = False,
        channels: int | None = None,
        rounding: Rounding = round_ste,
    ) -> None:
        super().__init__(
            bits,
            signed=signed,
            batched=batched,
            per_channel=per_channel,
            channels=channels,
            rounding=rounding,
        )
        self.clip_init = clip_init
        self.clip = nn.Parameter(torch.full(self.shape, clip_init))  # (c,) or scalar: alpha

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``pact`` with the learned clipping level."""
        return pact(x, self._clip(x), self.bits, signed=self.signed, rounding=self.rounding)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A part of the range, and its low end."""
        clip = self._clip(x)
        low = -clip if self.signed else torch.zeros_like(clip)
        return (clip - low) / intervals(self.bits), low

    def _clip(self, x: Tensor) -> Tensor:
        return self.spread(self.kept_positive(lambda: self.clip_init), x)
