"""Bits that a layer's sums need: by the widths of what is multiplied, and with its very weights."""

from collections.abc import Mapping

from quantable.cost.accumulators import bits_of, data_type_bits
from quantable.integers.by_layer import LayerNumber
from quantable.integers.view import data_of, in_twos_complement
from quantable.quantization.quantize import FinalLayer
from quantable.quantization.quantizer import Levels
from quantable.quantization.sums import sum_range


def by_data_type(layer: FinalLayer) -> float | None:
    """Bits that any weights and inputs of these widths need; None where the input is float."""
    if data_of(layer) is None:
        return None
    terms = layer.integers[0].numel()
    return data_type_bits(
        terms, layer.weight_bits, layer.input_bits, data_signed=layer.input_signed
    )


def by_known_weights(layer: FinalLayer) -> float | None:
    """Bits that these weights need with any input, in the worst channel, without a bias."""
    if (data := data_of(layer)) is None:
        return None
    levels = Levels(layer.integers, layer.scale, layer.offset)
    weight = in_twos_complement(levels, layer.weight_bits).integers
    low, high = sum_range(weight, (min(data.low, 0), max(data.high, 0)), None)
    return bits_of(int(low.min()), int(high.max()))


NUMBERS: Mapping[str, LayerNumber] = {
    "data_type_bits": by_data_type,
    "known_weights_bits": by_known_weights,
}
"""Bits of an accumulator."""
