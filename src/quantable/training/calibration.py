"""Calibration: what a quantized network takes from a few images where it is not trained."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.base.errors import UserError
from quantable.quantization.quantizer import Quantizer
from quantable.store.record import Calibration


@torch.no_grad()
def calibrate(
    net: nn.Module, batches: Iterable[tuple[Tensor, object]], *, keep_batch_norms: bool = False
) -> Calibration:
    """Set the quantizers of ``net`` and measure its batch norms anew, in one pass over ``batches``.

    Quantizers see the batches as in training: a learned step is set by the first one, a range runs
    along. A method that looks several times (``Quantizer.looks``) has as many passes. Batch norms
    get the mean of the batches' own statistics, each weighed by its images, as quantized layers
    feed them, unless they are kept. A batch of one image has no variance: it is
    joined to its neighbour where batch norms are measured. Weights stay as they are and labels are
    not used.
    """
    norms = [
        module
        for module in net.modules()
        if isinstance(module, _BatchNorm) and not keep_batch_norms
    ]
    quantizers = [module for module in net.modules() if isinstance(module, Quantizer)]
    net.eval()  # dropout and its like
    for module in (*norms, *quantizers):
        module.train()
    for number in range(max((quantizer.looks for quantizer in quantizers), default=1)):
        for quantizer in quantizers:
            quantizer.look(number)
        found = _one_pass(net, norms, (x for x, _ in batches))
    for quantizer in quantizers:
        quantizer.look(None)
    net.eval()
    return found


def _one_pass(net: nn.Module, norms: Sequence[_BatchNorm], every: Iterable[Tensor]) -> Calibration:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    hooks = [norm.register_forward_pre_hook(_Weigh()) for norm in norms]
    images = passes = 0
    for x in _joined(every) if norms else every:
        net(x)
        images, passes = images + len(x), passes + 1
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
    return Calibration(images=images, batches=passes, weighed_by="images")


@dataclass(frozen=True)
class Evenly:
    """The same ``images``, cut into as few batches of ``at_most`` as hold them, all about as large.

    What runs along from batch to batch, such as a range, then counts every image alike.

    >>> nine = [(torch.arange(4), torch.arange(4))] * 2 + [(torch.arange(1), torch.arange(1))]
    >>> [len(x) for x, _ in Evenly(nine, 9, at_most=4)]
    [3, 3, 3]
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    images: int
    at_most: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, stream = -(-self.images // self.at_most), iter(self.batches)
        x, y = next(stream)
        for i in range(count):
            size = self.images * (i + 1) // count - self.images * i // count
            while len(x) < size:
                more_x, more_y = next(stream)
                both = (torch.cat([x, more_x]), torch.cat([y, more_y]))
                x, y = both if len(x) else (more_x, more_y)
            yield x[:size], y[:size]
            x, y = x[size:], y[size:]


class _Weigh:
    """Before a batch norm sees a batch, give it the batch's share of all images so far.

    As often as the norm runs: one that stands in several places has the mean over all of them.
    """

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        """Set the weight of what ``norm`` is about to measure."""
        self.images += len(args[0])
        norm.momentum = len(args[0]) / self.images


def _joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Batches of two images at least: one alone goes to the batch behind it, the last before it."""
    held: list[Tensor] = []
    for x in batches:
        if held and len(held[-1]) == 1:
            held[-1] = torch.cat([held[-1], x])
        else:
            held.append(x)
        if len(held) == 3:
            yield held.pop(0)
    if len(held) == 2 and len(held[-1]) == 1:
        held = [torch.cat(held)]
    if held and len(held[-1]) == 1:
        raise UserError(
            "data.train_images=1: batch norms are not measured anew on one image; take more, "
            "or recipe.batch_norms=kept"
        )
    yield from held
