"""Numbers of each quantized layer, from the integers of its weights; a record keeps them.

Each file of this folder has some in ``NUMBERS``, by name. They are found by listing the folder, so
that a paper adds a file and edits none.
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from math import isfinite

from quantable.base.errors import UserError
from quantable.quantization.quantize import FinalLayer

ByLayer = dict[str, dict[str, float]]
"""Number -> layer -> value."""


LayerNumber = Callable[[FinalLayer], float | None]
"""A number of a layer; None where it is not defined. The name ends in its unit."""


@cache
def layer_numbers() -> dict[str, LayerNumber]:
    """All numbers by name, in the order of the files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return joined({name: import_module(f"{__name__}.{name}").NUMBERS for name in names})


def joined(files: Mapping[str, Mapping[str, LayerNumber]]) -> dict[str, LayerNumber]:
    """The numbers of all files; a name twice is an error.

    >>> one = {"sum": lambda layer: float(layer.integers.sum())}
    >>> joined({"a": one, "b": one})
    Traceback (most recent call last):
    quantable.base.errors.UserError: integers/by_layer/b.py: 'sum' is in another file too
    """
    found: dict[str, LayerNumber] = {}
    for file, numbers in files.items():
        if both := sorted(found.keys() & numbers.keys()):
            raise UserError(f"integers/by_layer/{file}.py: '{both[0]}' is in another file too")
        found |= numbers
    return found


def measure(layers: Iterable[FinalLayer]) -> ByLayer | None:
    """Every number of each layer that has it; None where there is no layer.

    Raises UserError where a number is none that a record can hold.
    """
    numbers = layer_numbers()
    found: ByLayer = {name: {} for name in numbers}
    measured = False
    for layer in layers:  # one at a time: the integers of a layer are large
        measured = True
        for name, number in numbers.items():
            if (value := number(layer)) is None:
                continue
            if not isfinite(value):
                raise UserError(f"number by layer '{name}': {value} of layer '{layer.name}'")
            found[name][layer.name] = value
    return found if measured else None
