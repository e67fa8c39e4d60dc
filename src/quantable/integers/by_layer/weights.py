"""How many of a layer's weights are zero, and how large its output channels' sums can get."""

from collections.abc import Mapping

from quantable.integers.by_layer import LayerNumber
from quantable.quantization.quantize import FinalLayer


def zero_pct(layer: FinalLayer) -> float:
    """Weights whose level is real zero, in percent; 0 on a grid without such a level."""
    zero = layer.scale * layer.integers + layer.offset == 0
    return 100 * int(zero.sum()) / zero.numel()


def l1_norm(layer: FinalLayer) -> float:
    r"""Largest :math:`\sum_i |q_i|` of an output channel's integers :math:`q_i`."""
    return float(layer.integers.abs().flatten(1).sum(1).max())


NUMBERS: Mapping[str, LayerNumber] = {"zero_pct": zero_pct, "l1_norm": l1_norm}
