"""Arguments of AD that the tests of both of its methods begin with."""

from functools import partial
from typing import Any

from quantable.config.composition import compose_run
from quantable.config.numbers import own_numbers
from quantable.methods.minmax import MinMax

ONE_EPOCH_PHASES: dict[str, Any] = {  # and nothing that ends the run early
    "weight": partial(MinMax, batched=False, per_channel=False),
    "act": partial(MinMax, batched=True, per_channel=False),
    "inner": [16, 16],
    "ends": [16, 16],
    "layers": {},
    "min_epochs": 1,
    "max_epochs": 1,
    "max_updates": 99,
    "window": 1,
    "flat_within": 0.02,
    "enough_density": 0.95,
    "min_bits": 2,
}
NUMBERS = own_numbers(compose_run(["quantizer=ad"]))
