"""A method's own numbers, checked against what its YAML declares before they are written down."""

import math
from collections.abc import Iterable, Mapping

from quantable.base.errors import UserError, unknown
from quantable.config.schema import OwnNumber

Number = int | float
Written = Number | dict[str, Number]


def checked(
    numbers: Mapping[str, Number | Mapping[str, Number]],
    declared: Mapping[str, OwnNumber],
    layers: Iterable[str],
) -> dict[str, Written]:
    """``numbers`` as an epoch's line keeps them; UserError where one is not as ``declared``.

    A number that is declared ``by: layer`` is a mapping from some of the network's ``layers``.

    >>> declared = {"density": OwnNumber(title="AD", unit="1", decimals=3, by="layer")}
    >>> checked({"density": {"fc": 0.5}}, declared, ["conv", "fc"])
    {'density': {'fc': 0.5}}
    """
    found: dict[str, Written] = {}
    for name, value in numbers.items():
        if name not in declared:
            raise unknown("own number", name, declared, "quantizer.numbers")
        if declared[name].by == "layer":
            found[name] = _by_layer(name, value, list(layers))
        else:
            found[name] = _finite(name, value)
    return found


def _by_layer(name: str, value: object, layers: list[str]) -> dict[str, Number]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"quantizer.numbers.{name}: by layer it is {{layer: number}}, not {value}")
    for layer in value:
        if layer not in layers:
            raise unknown("layer", layer, layers, f"quantizer.numbers.{name}")
    return {layer: _finite(f"{name}.{layer}", number) for layer, number in value.items()}


def _finite(name: str, value: object) -> Number:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value):  # type: ignore[arg-type]
        raise UserError(f"quantizer.numbers.{name}: {value!r} is not one finite number")
    return value  # type: ignore[return-value]
