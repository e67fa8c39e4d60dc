r"""DoReFa: weights through tanh, activations clipped to [0, 1].

Zhou et al., 2016, arXiv:1606.06160. Symbols: bit-width :math:`k`, weight :math:`w`, activation
:math:`x`; the gradients of this paper (6-bit ones and the like) are left in float.

.. math:: \mathrm{quantize}_k(r) = \lfloor (2^k - 1) r \rceil / (2^k - 1) \qquad \text{(Sec. 2.2)}
.. math:: \hat w = 2\, \mathrm{quantize}_k \left( \tanh(w) / (2 \max |\tanh(w)|) + 1/2 \right) - 1
    \qquad \text{(Sec. 2.3)}
.. math:: \hat w = \mathrm{sign}(w) \langle |w| \rangle \text{ for } k = 1 \qquad \text{(Sec. 2.3)}
.. math:: \hat x = \mathrm{quantize}_k (\mathrm{clip}(x, 0, 1)) \qquad \text{(Sec. 2.4)}
"""

import torch
from torch import Tensor

from quantable.quantization.grid import intervals
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, round_ste, sign, straight_through


def quantize_unit(r: Tensor, bits: int, rounding: Rounding = round_ste) -> Tensor:
    """Round ``r``, from 0 to 1, to ``2**bits`` even levels; the gradient is 1.

    >>> quantize_unit(torch.tensor([0.0, 0.4, 1.0]), bits=1)
    tensor([0., 0., 1.])
    """
    n = intervals(bits)
    return rounding(r * n) / n


def dorefa_weight(w: Tensor, bits: int, dims: list[int], rounding: Rounding = round_ste) -> Tensor:
    """Weights from -1 to 1, or ``+-mean|w|`` at 1 bit; ``dims`` share one maximum.

    >>> dorefa_weight(torch.tensor([-2.0, 0.1, 2.0]), bits=2, dims=[0])
    tensor([-1.0000,  0.3333,  1.0000])
    """
    if bits == 1:
        return straight_through(sign(w) * w.abs().mean(dims, keepdim=True).detach(), grad_of=w)
    t = w.tanh()
    peak = t.abs().amax(dims, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    return 2 * quantize_unit(t / (2 * peak) + 0.5, bits, rounding) - 1


def dorefa_act(x: Tensor, bits: int, *, signed: bool, rounding: Rounding = round_ste) -> Tensor:
    """Activations clipped to [0, 1]; signed ones to [-1, 1], on as many levels.

    >>> dorefa_act(torch.tensor([-0.3, 0.4, 7.0]), bits=2, signed=False)
    tensor([0.0000, 0.3333, 1.0000])
    """
    if not signed:
        return quantize_unit(x.clamp(0, 1), bits, rounding)
    return 2 * quantize_unit((x.clamp(-1, 1) + 1) / 2, bits, rounding) - 1


class DoReFa(Quantizer):
    """DoReFa quantizer of one tensor: of an activation where ``batched``, else of a weight.

    ``per_channel`` gives each output channel of a weight its own maximum. The range of activations
    is fixed, so that it changes nothing there.
    """

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``dorefa_act`` or ``dorefa_weight``."""
        if self.batched:
            return dorefa_act(x, self.bits, signed=self.signed, rounding=self.rounding)
        return dorefa_weight(x, self.bits, self.reduced(x), self.rounding)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The levels 0 to 1, or -1 to 1; those of a 1-bit weight are 1 and -1 times its mean."""
        if self.bits == 1 and not self.batched:
            scale = x.abs().mean(self.reduced(x), keepdim=True)
            return scale, torch.zeros_like(scale)
        two_sided = self.signed or not self.batched
        low = x.new_tensor(-1.0 if two_sided else 0.0)
        return (1 - low) / intervals(self.bits), low
