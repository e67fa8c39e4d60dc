"""Straight-through gradients: the only file with a gradient that is not the function's own.

Source: Bengio et al., 2013, arXiv:1308.3432.
"""

from typing import Any

import torch
from torch import Tensor


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


def sign_ste(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else -1; the gradient is that of the identity.

    >>> sign_ste(torch.tensor([-0.2, 0.0, 3.0]))
    tensor([-1.,  1.,  1.])
    """
    return straight_through(sign(x.detach()), grad_of=x)


def sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else -1, in the dtype of ``x``. No gradient."""
    return x.ge(0).to(x.dtype).mul_(2).sub_(1)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, grad_of: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        return None, grad
