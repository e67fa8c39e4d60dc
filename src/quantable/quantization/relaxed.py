r"""Real bit-widths: a quantizer that lies between those of the two neighbouring integers.

Symbols: real width :math:`b`, :math:`k = \lfloor b \rfloor`, :math:`f = b - k`, quantizer
:math:`Q_k` of :math:`k` bits, whose levels are :math:`lo + s\,\{0, \ldots, n\}`.

.. math:: Q_b(x) = (1 - f)\, Q_k(x) + f\, Q_{k+1}(x)
.. math:: \partial L / \partial b = \sum_i \partial L / \partial Q_b(x)_i \;
    (Q_{k+1}(x_i) - Q_k(x_i))

The gradient of :math:`b` is exact between integers and that from the right on them; at 16 bit,
where :math:`k` is 15 and :math:`f` is 1, that from the left. :math:`x` passes its gradient as far
as it is within the levels' ends.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantable.base.bits import MAX_BITS
from quantable.base.chunks import pieces
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, gradient_side, round_ste, straight_through


class Grid(NamedTuple):
    """Even levels from ``low`` to ``high``, ``scale`` apart; all broadcast against the tensor."""

    low: Tensor
    scale: Tensor
    high: Tensor


def two_to(bits: int | Tensor) -> int | Tensor:
    """``2**bits``, exact also of a tensor with a whole number.

    >>> two_to(3), two_to(torch.tensor(16.0))
    (8, tensor(65536))
    """
    return 1 << (bits.long() if isinstance(bits, Tensor) else bits)


def on_grid(x: Tensor, grid: Grid, rounding: Rounding = round_ste) -> Tensor:
    """Round ``x`` to the levels of ``grid``, whose ends get the gradient of what is beyond them.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> on_grid(torch.tensor([-9.0, 0.4, 0.6]), Grid(zero, one / 2, one))
    tensor([0.0000, 0.5000, 0.5000])
    """
    low, scale, high = grid
    inside = torch.where(x > high, high, torch.where(x < low, low, x))  # NaN stays
    with torch.no_grad():
        value = ((inside - low) / scale).round_().mul_(scale).add_(low)
    return straight_through(value, grad_of=gradient_side(inside, low, scale, rounding))


def mixed(
    x: Tensor, lower: Grid, upper: Grid, share: Tensor, rounding: Rounding = round_ste
) -> Tensor:
    """The part ``share`` of ``x`` on the grid ``upper``, the rest of it on ``lower``.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> grids = Grid(zero, one, one), Grid(zero, one / 2, one)
    >>> mixed(torch.tensor([0.4, 0.9]), *grids, share=torch.tensor(0.25))
    tensor([0.1250, 1.0000])
    """
    return on_grid(x, lower, rounding).lerp(on_grid(x, upper, rounding), share)


def mixed_eager(x: Tensor, lower: Grid, upper: Grid, share: Tensor) -> Tensor:
    """The same as ``mixed``, in less time and memory where no compiler fuses operations."""
    result: Tensor = _Eager.apply(x, share, *lower, *upper)  # type: ignore[no-untyped-call]
    return result


def on_grid_eager(x: Tensor, grid: Grid) -> Tensor:
    """The same as ``on_grid``, in less time and memory where no compiler fuses operations."""
    result: Tensor = _Eager.apply(x, None, *grid)  # type: ignore[no-untyped-call]
    return result


class RealBits(Quantizer):
    """A quantizer that can have a real bit-width; a method defines ``grid``.

    Without ``relax`` it is that of ``bits``. Afterwards training has the real width, a parameter,
    and evaluation that of ``bits``, which may be set meanwhile; after ``settle`` training has that
    too, and the parameter stays as it is.
    """

    real_bits: nn.Parameter | None

    def __init__(self, bits: int, **more: Any) -> None:  # noqa: ANN401 - as every quantizer
        super().__init__(bits, **more)
        self.register_parameter("real_bits", None)
        self.mixing = False  # whether training has the real width

    @abstractmethod
    def grid(self, x: Tensor, bits: int | Tensor) -> Grid:
        """Levels of ``x`` at ``bits``: an integer, or a tensor that holds one."""

    def relax(self, width: float) -> None:
        """Train with a real width from now on, a parameter that is ``width`` at first."""
        self.real_bits = nn.Parameter(torch.tensor(float(width)))
        self.mixing = True

    def settle(self) -> None:
        """Train with ``bits`` from now on."""
        self.mixing = False

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` on the levels of ``bits`` or, in the training of a real width, between two such."""
        plain = torch.compiler.is_compiling() or self.rounding is not round_ste
        if not (self.training and self.mixing):
            grid = self.grid(x, self.bits)
            return on_grid(x, grid, self.rounding) if plain else on_grid_eager(x, grid)
        assert self.real_bits is not None
        # Detached, or the share and with it the width would have no gradient.
        below = self.real_bits.detach().floor().clamp(max=MAX_BITS - 1)
        share = (self.real_bits - below).to(x.dtype)
        grids = self.grid(x, below), self.grid(x, below + 1)
        return mixed(x, *grids, share, self.rounding) if plain else mixed_eager(x, *grids, share)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of the levels, and the lowest one."""
        low, scale, _ = self.grid(x, self.bits)
        return scale, low


class _Eager(torch.autograd.Function):
    """One new tensor each way; keeps ``x``, which the layer before keeps anyway.

    Where two grids have the same ends, those of the first get the gradient of both.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor | None, *ends: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, share, *ends)
        out = torch.empty_like(x)
        for out_, x_, share_, *ends_ in pieces(out, x, *_numbers(share, *ends)):
            _put(x_, ends_[:3], out=out_)
            if share is not None:
                out_.lerp_(_put(x_, ends_[3:], out=torch.empty_like(x_)), share_)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, share, *ends = ctx.saved_tensors
        wanted = zip((share, *ends), ctx.needs_input_grad[1:], strict=True)
        sums: list[Any] = [torch.zeros_like(number) if want else None for number, want in wanted]
        grad_x = torch.empty_like(x)
        for grad_x_, grad_, x_, *both in pieces(grad_x, grad, x, *_numbers(share, *ends), *sums):
            share_, *ends_ = both[: len(sums)]
            of_share, *of_ends = both[len(sums) :]
            if of_share is not None:
                difference = _put(x_, ends_[3:], out=torch.empty_like(x_))
                difference.sub_(_put(x_, ends_[:3], out=grad_x_))
                of_share += _sum_product(difference, grad_, of_share)
            _inside(x_, grad_, share_, ends_, of_ends, out=grad_x_)
        return grad_x, *sums


def _numbers(*parts: Tensor | None) -> list[Any]:
    """Plain numbers, which are several times faster, where that is free and all are single."""
    tensors = [part for part in parts if part is not None]
    if any(part.numel() > 1 or part.device.type != "cpu" for part in tensors):
        return [*parts]  # other devices would be waited for
    return [None if part is None else part.item() for part in parts]


def _put(x: Tensor, grid: Sequence[Any], out: Tensor) -> Tensor:
    """Write ``x`` on a grid to ``out``."""
    low, scale, high = grid
    torch.clamp(x, low, high, out=out)
    if isinstance(low, float) and low == 0:
        return out.div_(scale).round_().mul_(scale)
    return out.sub_(low).div_(scale).round_().mul_(scale).add_(low)


def _inside(
    x: Tensor,
    grad: Tensor,
    share: Tensor | float | None,
    ends: Sequence[Any],
    of_ends: Sequence[Tensor | None],
    out: Tensor,
) -> None:
    """Write ``grad`` to ``out`` where ``x`` is within the ends; add what is beyond to theirs."""
    plain = isinstance(share, float)
    if share is None or (plain and ends[0] == ends[3] and ends[2] == ends[5]):
        ranges: list[tuple[int, Any]] = [(0, 1.0)]
    else:
        ranges = [(0, 1 - share), (3, share)]
    for first, part in ranges:
        low, high = ends[first], ends[first + 2]
        within = out if first == 0 else torch.empty_like(x)
        torch.clamp(x, low, high, out=within).eq_(x).mul_(grad)
        if len(ranges) == 2:
            within.mul_(part)
        if within is not out:
            out.add_(within)
        for end, beyond in ((first, torch.lt), (first + 2, torch.gt)):
            if (total := of_ends[end]) is not None:
                outside = beyond(x, ends[end], out=torch.empty_like(x))
                total += part * _sum_product(outside, grad, total)


def _sum_product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of ``a * b``, in the size of ``like``; of all without a temporary."""
    if like.dim() > 0:
        return (a * b).sum_to_size(like.shape)
    order = sorted(range(a.dim()), key=a.stride, reverse=True)  # as in memory: flattens for free
    return torch.dot(a.permute(order).flatten(), b.permute(order).flatten())
