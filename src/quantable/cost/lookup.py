"""Which layers a cost model counts, and the bit-widths of each."""

from collections.abc import Iterator, Mapping, Sequence

from quantable.base.bits import Bits
from quantable.base.errors import unknown
from quantable.networks.layers import LayerShape


def counted(layers: Sequence[LayerShape], *, count_linear: bool) -> list[LayerShape]:
    """The layers, with or without the linear ones.

    >>> head = LayerShape("fc", macs=10, weights=10, inputs=5, kind="linear")
    >>> counted([head], count_linear=False)
    []
    """
    return [layer for layer in layers if count_linear or layer.kind != "linear"]


def with_bits(
    layers: Sequence[LayerShape], bits: Mapping[str, Bits]
) -> Iterator[tuple[LayerShape, Bits]]:
    """Each layer with its bit-widths; a layer that has none is an error.

    >>> conv = LayerShape("conv1", macs=1000, weights=90, inputs=100)
    >>> list(with_bits([conv], {"conv_1": Bits(4, 4)}))
    Traceback (most recent call last):
    quantable.base.errors.UserError: bits: unknown layer 'conv1'. Nearest: conv_1 (1 in all).
    """
    for layer in layers:
        if layer.name not in bits:
            raise unknown("layer", layer.name, bits, "bits")
        yield layer, bits[layer.name]
