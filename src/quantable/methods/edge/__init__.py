r"""Learned bit-widths under a memory budget, in three phases.

Schaefer et al., WACV 2024, arXiv:2206.07741; the quantizer after Uhlich et al., ICLR 2020,
arXiv:1905.11452. Symbols: step :math:`d`, clip :math:`x_{max}` (here ``clip``), value :math:`x`,
rounding :math:`R`, intervals :math:`n`, bit-width :math:`b`, sizes :math:`S` and targets :math:`T`
in kB (1000 bytes) of weights and activations.

.. math:: \hat x = d\, R(\mathrm{clip}(x, x_{lo}, x_{max}) / d), \quad
    x_{lo} = -x_{max} \text{ if signed, else } 0
.. math:: n = \lfloor x_{max} / d \rceil, \quad
    b = \max(\lceil \log_2(n + 1) \rceil + \mathrm{signed}, 1)
.. math:: L = \mathrm{CE} + \rho(t) \lambda \left( \max(S_w - T_w, 0)^2 + \max(S_a - T_a, 0)^2
    \right)
"""

from quantable.methods.edge.kernel import step_and_clip_eager
from quantable.methods.edge.phases import (
    FINETUNE,
    PRETRAIN,
    SEARCH,
    LearnedBits,
    Sizes,
    ramp,
    size_penalty,
)
from quantable.methods.edge.quantizer import (
    StepAndClip,
    learned_bits,
    percentile,
    project,
    projected,
    step_and_clip,
)

__all__ = [
    "FINETUNE",
    "PRETRAIN",
    "SEARCH",
    "LearnedBits",
    "Sizes",
    "StepAndClip",
    "learned_bits",
    "percentile",
    "project",
    "projected",
    "ramp",
    "size_penalty",
    "step_and_clip",
    "step_and_clip_eager",
]
