"""Calibration: what a quantized network takes from a few images where it is not trained."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.quantization.quantizer import Quantizer


@torch.no_grad()
def calibrate(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, keep_batch_norms: bool = False
) -> None:
    """Set the quantizers of ``net`` and measure its batch norms anew, in one pass over ``batches``.

    Quantizers see the batches as in training: a learned step is set by the first one, a range runs
    along. Batch norms get the mean of the batches' own statistics, as quantized layers feed them,
    unless they are kept. Weights stay as they are and labels are not used.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    norms = [] if keep_batch_norms else norms
    quantizers = [module for module in net.modules() if isinstance(module, Quantizer)]
    momenta = [norm.momentum for norm in norms]
    net.eval()  # dropout and its like
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for module in (*norms, *quantizers):
        module.train()
    for x, _ in batches:
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
