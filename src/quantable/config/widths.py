"""Bit-widths that a config says, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantable.base.bits import FLOAT_BITS, Bits, bit_map
from quantable.networks.layers import LayerShape, uniform


def planned_bits(config: Mapping[str, Any], shapes: Sequence[LayerShape]) -> dict[str, Bits] | None:
    """Bit-widths that a config fixes before any training; None where training finds them."""
    if config["quantizer"]["learns_bits"]:
        return None
    if config["quantizer"]["callback"] is None:
        return uniform(shapes, FLOAT_BITS)
    bits = config["bits"]
    return bit_map(
        [layer.name for layer in shapes],
        inner=Bits(*bits["inner"]),
        ends=Bits(*bits["ends"]) if bits["ends"] else None,
        layers={name: Bits(*pair) for name, pair in bits["layers"].items()},
    )


def with_layers(config: dict[str, Any], layers: dict[str, list[int]]) -> dict[str, Any]:
    """Put bit-widths by layer where ``bits.layers`` is, and where the method reads it."""
    method = config["quantizer"]
    callback = method["callback"]
    if callback is not None:
        callback = callback | {"layers": layers}
    return config | {
        "bits": config["bits"] | {"layers": layers},
        "quantizer": method | {"callback": callback},
    }
