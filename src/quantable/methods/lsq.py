r"""LSQ: learned step size quantization.

Esser et al., ICLR 2020, arXiv:1902.08153. Symbols: step size :math:`s`, integer range
:math:`[-Q_N, Q_P]`, value :math:`v`, gradient scale :math:`g`, number of elements :math:`N`.

.. math:: \hat v = \lfloor \mathrm{clip}(v / s, -Q_N, Q_P) \rceil \cdot s \qquad \text{(Eq. 1, 2)}
.. math:: \partial \hat v / \partial s = \lfloor v/s \rceil - v/s \text{ where } -Q_N < v/s < Q_P,
    \text{ else } -Q_N \text{ or } Q_P \qquad \text{(Eq. 3)}
.. math:: \partial \hat v / \partial v = 1 \text{ where } -Q_N < v/s < Q_P,
    \text{ else } 0 \qquad \text{(Sec. 2.3)}
.. math:: g = 1 / \sqrt{N Q_P}, \quad s_0 = 2 \langle |v| \rangle / \sqrt{Q_P}
    \qquad \text{(Sec. 2.1, 2.2)}
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantable.base.chunks import pieces, widened, workplace
from quantable.base.devices import mean
from quantable.quantization.grid import BINARY, int_range
from quantable.quantization.quantizer import LEAST, Quantizer, layer_dtype
from quantable.quantization.ste import Rounding, round_ste, sign, sign_ste, straight_through


def lsq(
    v: Tensor,
    step: Tensor,
    q_min: int,
    q_max: int,
    grad_scale: float = 1.0,
    rounding: Rounding = round_ste,
) -> Tensor:
    """Fake-quantize ``v`` onto ``step * {q_min, ..., q_max}``; ``step`` gets Eq. 3's gradient.

    The signed 1-bit range, (-1, 1), has the two levels ``-step`` and ``step``; 0 goes to ``step``.

    >>> lsq(torch.tensor([-9.0, 0.2, 0.6]), torch.tensor(0.5), q_min=-4, q_max=3)
    tensor([-2.0000,  0.0000,  0.5000])
    """
    step = straight_through(step, grad_of=step * grad_scale)
    nearest = sign_ste if (q_min, q_max) == BINARY else rounding
    # hardtanh is a clip whose gradient is 0 on the bounds too, as the paper has it.
    return nearest(F.hardtanh(v / step, q_min, q_max)) * step


def lsq_eager(
    v: Tensor,
    step: Tensor,
    q_min: int,
    q_max: int,
    grad_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same as ``lsq``, several times faster where no compiler fuses its operations.

    ``v`` and its gradient may be bfloat16, and the result is rounded to ``dtype`` (None: that of
    ``v``), once; between them stands the float32 arithmetic of ``lsq``.

    >>> lsq_eager(torch.tensor([-9.0, 0.2, 0.6]), torch.tensor(0.5), q_min=-4, q_max=3)
    tensor([-2.0000,  0.0000,  0.5000])
    """
    result: Tensor = _LSQEager.apply(  # type: ignore[no-untyped-call]
        v, step, q_min, q_max, grad_scale, dtype or v.dtype
    )
    return result


class LSQ(Quantizer):
    """One tensor's LSQ quantizer. ``batched``: dim 0 is the batch and is not counted in ``N``.

    The first training batch sets the step, and again after ``bits`` was assigned. Before that,
    evaluation uses the step that its own batch would set, and keeps nothing.
    """

    narrow = True
    anew = True
    positive = "step"

    def make_state(self) -> None:
        """One step, or one for each channel."""
        self.step = nn.Parameter(torch.ones(self.shape))  # (c,) or scalar: step size s

    def fake_quantize(self, v: Tensor) -> Tensor:
        """``lsq`` with the learned step."""
        q_min, q_max = int_range(self.bits, signed=self.signed)
        step = self._usable_step(v)
        n = (v[0].numel() if self.batched else v.numel()) // step.numel()
        scale = (n * q_max) ** -0.5
        if torch.compiler.is_compiling() or self.rounding is not round_ste:
            return lsq(v, self.spread(step, v), q_min, q_max, scale, self.rounding)
        return lsq_eager(v, self.spread(step, v), q_min, q_max, scale, layer_dtype(v))

    def scale_and_offset(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The step; every integer stands for a multiple of it."""
        step = self.spread(self._usable_step(v), v)
        return step, torch.zeros_like(step)

    def _usable_step(self, v: Tensor) -> Tensor:
        if not self.initialized:
            first = self.first_step(v)
            if not self.training:
                return first
            with torch.no_grad():
                self.step.copy_(first)  # in place: the optimizer already holds this Parameter
            self.initialized = True
        return self.kept_positive(lambda: self.first_step(v))

    @torch.no_grad()
    def first_step(self, v: Tensor) -> Tensor:
        """Step that training would start from with ``v`` as its first batch; 1 where ``v`` is 0.

        At a step of 1, other values come through in later batches and the step learns from them.
        """
        _, q_max = int_range(self.bits, signed=self.signed)
        first: Tensor = 2 * widened(v).abs().mean(self.reduced(v)) / q_max**0.5
        if self.training:
            first = mean(first)
        return torch.where(first < LEAST, 1, first)


class _LSQEager(torch.autograd.Function):
    """Keeps v alone; all else is float32 and lives in one piece, which stays in cache."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        v: Tensor,
        step: Tensor,
        q_min: int,
        q_max: int,
        grad_scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        v_hat = torch.empty_like(v, dtype=dtype)
        for v_hat_, v_, step_ in pieces(v_hat, v, step):
            wide = widened(v_)
            work = workplace(v_hat_, v_, wide)
            _to_levels(torch.div(wide, step_, out=work), step_, q_min, q_max)
            if work is not v_hat_:
                v_hat_.copy_(work)
        ctx.save_for_backward(v, step)
        ctx.q_min, ctx.q_max, ctx.grad_scale = q_min, q_max, grad_scale
        return v_hat

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        v, step = ctx.saved_tensors
        q_min, q_max = ctx.q_min, ctx.q_max
        grad_v, grad_step = torch.empty_like(v), torch.zeros_like(step)
        for grad_v_, grad_, v_, step_, grad_step_ in pieces(grad_v, grad, v, step, grad_step):
            grad_, v_ = widened(grad_), widened(v_)
            inside = workplace(grad_v_, v_, v_)
            v_hat_ = v_ / step_
            # grad where -Q_N < v / s < Q_P, else 0 (Sec. 2.3)
            torch.ops.aten.hardtanh_backward.grad_input(
                grad_, v_hat_, q_min, q_max, grad_input=inside
            )
            _to_levels(v_hat_, step_, q_min, q_max)
            # s times Eq. 3: v_hat - v inside and v_hat outside, as the gradient is 0 there
            grad_step_ += _sum_product(grad_, v_hat_, step_) - _sum_product(inside, v_, step_)
            if inside is not grad_v_:
                grad_v_.copy_(inside)
        return grad_v, grad_step.div_(step).mul_(ctx.grad_scale), None, None, None, None


def _to_levels(ratio: Tensor, step: Tensor, q_min: int, q_max: int) -> None:
    """Turn ``v / step`` into the fake-quantized v, in place."""
    ratio.clamp_(q_min, q_max)
    if (q_min, q_max) == BINARY:
        ratio.copy_(sign(ratio)).mul_(step)
    else:
        ratio.round_().mul_(step)


def _sum_product(a: Tensor, b: Tensor, step: Tensor) -> Tensor:
    """Sum of ``a * b`` over the elements that share a step; per tensor without a temporary."""
    if step.dim() > 0:
        return (a * b).sum_to_size(step.shape)
    order = sorted(range(a.dim()), key=a.stride, reverse=True)  # as in memory: flattens for free
    return torch.dot(a.permute(order).flatten(), b.permute(order).flatten())
