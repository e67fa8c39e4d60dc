"""Step and clip on tensors in few passes, for where no compiler fuses operations."""

from typing import Any

import torch
from torch import Tensor

from quantable.base.chunks import pieces
from quantable.quantization.ste import Rounding, round_ste, rounding_gradient

StepAndEnds = tuple[Tensor, Tensor, Tensor] | tuple[float, float, float]


def step_and_clip_eager(
    x: Tensor, step: Tensor, clip: Tensor, *, signed: bool, rounding: Rounding = round_ste
) -> Tensor:
    """The same as ``step_and_clip``, faster where no compiler fuses its operations.

    >>> x = torch.tensor([-9.0, 0.2, 0.9, 9.0])
    >>> step_and_clip_eager(x, torch.tensor(0.5), torch.tensor(1.5), signed=True)
    tensor([-1.5000,  0.0000,  1.0000,  1.5000])
    """
    result: Tensor = _Eager.apply(x, step, clip, signed, rounding)  # type: ignore[no-untyped-call]
    return result


def _levels(step: Tensor, clip: Tensor, signed: bool) -> StepAndEnds:
    """Step and both ends; as plain numbers, which are several times faster, where that is free."""
    if clip.dim() == 0 and clip.device.type == "cpu":  # other devices would be waited for
        high = clip.item()
        return step.item(), -high if signed else 0.0, high
    return step, -clip if signed else torch.zeros_like(clip), clip


class _Eager(torch.autograd.Function):
    """Keeps what the next layer keeps anyway, and looks for no gradient that nobody wants."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        step: Tensor,
        clip: Tensor,
        signed: bool,
        rounding: Rounding,
    ) -> Tensor:
        out = torch.empty_like(x)
        for out_, x_, step_, low_, clip_ in pieces(out, x, *_levels(step, clip, signed)):
            torch.clamp(x_, low_, clip_, out=out_).div_(step_).round_().mul_(step_)
        plain = rounding is round_ste and not any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(x, step, clip, None if plain else out)
        ctx.signed, ctx.rounding = signed, rounding
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, step, clip, out = ctx.saved_tensors
        _, by_step, by_clip, *_ = ctx.needs_input_grad
        levels = _levels(step, clip, ctx.signed)
        if not (by_step or by_clip):
            return _plain_backward(grad, x, out, levels, ctx.rounding), None, None, None, None
        grad_x, of_step, of_clip = map(torch.empty_like, (x, step, clip))
        of_step.zero_()
        of_clip.zero_()
        every = pieces(grad_x, grad, x, out, *levels, of_step, of_clip)
        for grad_x_, grad_, x_, out_, step_, low_, clip_, of_step_, of_clip_ in every:
            inside = x_.clamp(low_, clip_)
            error = torch.sub(inside, out_, out=grad_x_)
            changed = rounding_gradient(ctx.rounding, error, step_, grad_)
            level = (grad_ * out_).addcmul_(inside, changed, value=-1)
            of_step_ += level.sum_to_size(of_step_.shape)
            # Of the clip: 1 beyond it and, where the lower end is learned too, -1 below that.
            side = (
                torch.sub(x_, inside, out=level).sign_()
                if ctx.signed
                else torch.gt(x_, clip_, out=level)
            )
            of_clip_ += side.mul_(changed).sum_to_size(of_clip_.shape)
            _inside_only(changed, x_, low_, clip_, grad_x_)
        of_step.div_(step)
        return grad_x, of_step if by_step else None, of_clip if by_clip else None, None, None


def _plain_backward(
    grad: Tensor, x: Tensor, out: Tensor | None, levels: StepAndEnds, rounding: Rounding
) -> Tensor:
    """The gradient of ``x`` alone, in as few passes as can be; ``out`` is None for STE."""
    grad_x = torch.empty_like(x)
    if out is None:
        _inside_only(grad, x, levels[1], levels[2], grad_x)
        return grad_x
    for grad_x_, grad_, x_, out_, step_, low_, clip_ in pieces(grad_x, grad, x, out, *levels):
        # What comes of values outside is selected away, whatever it is, or multiplied by 0.
        inside = x_ if isinstance(clip_, float) else x_.clamp(low_, clip_)
        error = torch.sub(inside, out_, out=grad_x_)
        changed = rounding_gradient(rounding, error, step_, grad_)
        _inside_only(changed, x_, low_, clip_, grad_x_)
    return grad_x


def _inside_only(
    grad: Tensor, x: Tensor, low: Tensor | float, high: Tensor | float, out: Tensor
) -> None:
    """``grad`` where ``low <= x <= high``, else 0."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        torch.mul(grad, x.ge(low).logical_and_(x.le(high)), out=out)
        return
    # One pass instead of three. It takes both ends for outside, so they are moved to the numbers
    # next to them: 0.7 eps more is rounded to one digit more, whatever the mantissa.
    kind = torch.finfo(x.dtype)
    below = low - max(0.7 * kind.eps * abs(low), kind.eps * kind.tiny)
    above = high + 0.7 * kind.eps * abs(high)
    torch.ops.aten.hardtanh_backward.grad_input(grad, x, below, above, grad_input=out)
