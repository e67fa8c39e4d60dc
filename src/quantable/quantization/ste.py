r"""Straight-through gradients: the only file with a gradient that is not the function's own.

Source: Bengio et al., 2013, arXiv:1308.3432; the other gradients of rounding as compared by
Schaefer et al., WACV 2024, arXiv:2206.07741. They turn a gradient :math:`g` of the rounded
value into :math:`g (1 + \delta f)`, where :math:`f` depends on the rounding error and on
:math:`\mathrm{sign}(g)`, or is noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantable.base.errors import UserError, unknown

Rounding = Callable[[Tensor], Tensor]
"""Rounds half to even; only the gradient differs between two of these."""


def straight_through(value: Tensor, grad_of: Tensor) -> Tensor:
    """Return exactly ``value``; in the backward pass, behave as ``grad_of`` (of the same shape).

    The same as ``value.detach() + (grad_of - grad_of.detach())``, without its three passes over
    memory, and exact where ``grad_of`` is infinite.

    >>> x = torch.tensor(0.4, requires_grad=True)
    >>> y = straight_through(torch.tensor(7.0), grad_of=3 * x)
    >>> y.backward()
    >>> y.item(), x.grad.item()
    (7.0, 3.0)
    """
    result: Tensor = _StraightThrough.apply(value, grad_of)  # type: ignore[no-untyped-call]
    return result


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity.

    >>> round_ste(torch.tensor([0.5, 1.5, -0.6]))
    tensor([ 0.,  2., -1.])
    """
    return straight_through(x.detach().round(), grad_of=x)


def rounding(name: str, delta: float) -> Rounding:
    """Rounding with one of eight gradients, of which ``delta`` is the strength (>= 0).

    ``ste``, ``gaussian``, ``uniform``, ``psgd``, ``ewgs``, ``acos``, ``tanh`` or ``invtanh``. The
    two with noise draw from torch's default generator in each backward pass.

    >>> u = torch.tensor(1.25, requires_grad=True)
    >>> (3 * rounding("ewgs", delta=0.1)(u)).backward()
    >>> round(u.grad.item(), 6)
    3.075
    """
    if name not in ROUNDINGS:
        raise unknown("rounding", name, ROUNDINGS, "rounding.name")
    if not 0 <= delta < math.inf:
        raise UserError(f"rounding.delta={delta}: the strength is a number from 0 on")
    return round_ste if name == "ste" else _Rounded(ROUNDINGS[name], delta)


def rounding_gradient(
    rounding: Rounding, error: Tensor, unit: Tensor | float, grad: Tensor
) -> Tensor:
    """What ``rounding`` makes of the gradient ``grad`` at values ``error`` above their levels.

    ``unit`` is the distance of levels. For backward passes of their own: returns ``grad`` itself or
    ``error``, with the result in it.

    >>> error, grad = torch.tensor([0.5]), torch.tensor([3.0])
    >>> rounding_gradient(rounding("psgd", delta=0.1), error, 2.0, grad)
    tensor([3.0750])
    """
    if not isinstance(rounding, _Rounded):
        return grad
    return rounding.change(error, unit, grad, rounding.delta)


def gradient_side(x: Tensor, low: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """``x`` for ``grad_of``, where the value is ``x`` rounded to a level ``low + k * scale``.

    The gradient is that of ``rounding`` in units of ``scale``; ``low`` and ``scale`` get none.
    """
    if rounding is round_ste:
        return x
    low, scale = low.detach(), scale.detach()
    return rounding((x - low) / scale) * scale + low


def sign_ste(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, -1 below, NaN as ``sign``; the gradient is that of the identity.

    >>> sign_ste(torch.tensor([-0.2, 0.0, 3.0]))
    tensor([-1.,  1.,  1.])
    """
    return straight_through(sign(x.detach()), grad_of=x)


def sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, -1 below; NaN where ``x`` is NaN or infinite. No gradient."""
    return x.clone().ge_(0).mul_(2).sub_(1).add_(x, alpha=0)  # 0 x is 0 of every finite number


# Rounding error, unit of it, g, delta -> g (1 + delta f(error / unit)), written over the error: on
# a CPU each further pass, and each further place in memory, costs about as much as the function.
Change = Callable[[Tensor, Tensor | float, Tensor, float], Tensor]

ROUNDINGS: Mapping[str, Change] = {
    "ste": lambda e, unit, g, delta: g,
    "gaussian": lambda e, unit, g, delta: _plus(g, delta, e.normal_()),
    "uniform": lambda e, unit, g, delta: _plus(g, delta, e.uniform_(-0.5, 0.5)),
    "psgd": lambda e, unit, g, delta: _plus(g, delta, e.abs_().div_(unit)),
    "ewgs": lambda e, unit, g, delta: _plus_sized(g, delta, e.div_(unit)),
    "acos": lambda e, unit, g, delta: _plus(g, delta / 2, e.mul_(math.pi / unit).sin_()),
    "tanh": lambda e, unit, g, delta: _plus_sized(g, delta / 2, e.mul_(4 / unit).tanh_()),
    "invtanh": lambda e, unit, g, delta: _plus_sized(
        g, delta / (4 * math.atanh(0.95)), _twice_atanh(e, unit / 1.9)
    ),
}


def _plus(grad: Tensor, factor: float, change: Tensor) -> Tensor:
    """``grad + factor * grad * change``, written over ``change``."""
    return torch.addcmul(grad, grad, change, value=factor, out=change)


def _plus_sized(grad: Tensor, factor: float, change: Tensor) -> Tensor:
    """``grad + factor * |grad| * change``, written over ``change``."""
    # change * sign(grad), with no place in memory for |grad|
    torch.ops.aten.leaky_relu_backward.grad_input(change, grad, -1.0, False, grad_input=change)
    return _plus(grad, factor, change)


def _twice_atanh(x: Tensor, unit: Tensor | float) -> Tensor:
    """``2 atanh(x / unit)`` in a fraction of the time of ``torch.atanh``. Overwrites ``x``."""
    if isinstance(unit, Tensor):
        below = torch.sub(unit / 2, x, alpha=0.5)
    else:
        below = torch.rsub(x, unit / 2, alpha=0.5)
    return x.div_(below).log1p_()


@dataclass(frozen=True)
class _Rounded:
    """A rounding whose gradient is not straight through."""

    change: Change
    delta: float

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = _Round.apply(x, self)  # type: ignore[no-untyped-call]
        return result


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: _Rounded) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x)
        ctx.rounding = rounding
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        return rounding_gradient(ctx.rounding, x - x.round(), 1.0, grad), None


class _StraightThrough(torch.autograd.Function):
    # A `setup_context`, which torch.func alone needs, would cost more than all of this: with it,
    # each call inspects the signature of `forward`.
    @staticmethod
    def forward(ctx: Any, value: Tensor, grad_of: Tensor) -> Tensor:  # noqa: ANN401
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        return None, grad
