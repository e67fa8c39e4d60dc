"""How methods look in every figure, and which one a run is of. No matplotlib, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantable.store.record import Record


@dataclass(frozen=True)
class Mark:
    """How a method looks in every figure; ``marker`` and ``dash`` in matplotlib's words."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]] = "-"  # of a line through its points


# Colours of Okabe and Ito (jfly.uni-koeln.de/color), chosen so that their greys differ as well.
MARKS: Mapping[str, Mark] = {
    "float": Mark("#000000", "o"),
    "uniform": Mark("#0072B2", "s"),
    "AD": Mark("#E69F00", "^"),
    "AD pruned": Mark("#F0E442", "D"),
    "AD joint": Mark("#009E73", "P"),
    "other": Mark("#FFFFFF", "X"),
}
# Metrics of a search, beside float and uniform: hues of Okabe and Ito, as light or dark as it takes
# for their greys to differ, and a neutral grey for chance.
SEARCH_MARKS: Mapping[str, Mark] = {
    "EAGL": Mark("#D55E00", "^", "-"),
    "ALPS": Mark("#5DB7EA", "v", (0, (6, 1.5))),
    "HAWQ trace": Mark("#CE7EAA", "D", (0, (6, 1.5, 1, 1.5))),
    "magnitude": Mark("#00654A", "P", (0, (3, 1.5))),
    "random": Mark("#444444", "*", (0, (1, 1.2))),
    "first to last": Mark("#D5CA3A", ">", (0, (9, 2))),
    "last to first": Mark("#432837", "<", (0, (3, 1.2, 1, 1.2, 1, 1.2))),
}
METHODS: Mapping[str, str] = {  # of the class that quantizes a run
    "quantable.quantize.Quantize": "uniform",
    "quantable.methods.activation_density.ActivationDensity": "AD",
    "quantable.methods.density_pruning.DensityPruning": "AD joint",
}
METRICS: Mapping[str, str] = {  # of the class that searches; of several, what it goes by
    "quantable.search.eagl.Eagl": "EAGL",
    "quantable.search.alps.Alps": "ALPS",
    "quantable.search.hessian.HessianTrace": "HAWQ trace",
    "quantable.search.magnitude.Magnitude": "magnitude",
    "random": "random",
    "first_to_last": "first to last",
    "last_to_first": "last to first",
}


def method_of_run(record: Record) -> str:
    """Name a run's method: a key of ``MARKS``, ``other`` for one without a mark of its own."""
    return method_of_config(record.config)


def method_of_config(config: Mapping[str, Any]) -> str:
    """Name the method of a config with dotted keys, as a record keeps it: a key of ``MARKS``."""
    key = "quantizer.callback"
    if key in config:  # a leaf only where it is null
        return "float"
    method = METHODS.get(config[f"{key}._target_"], "other")
    if method == "AD joint" and max(config[f"{key}.inner"]) <= config[f"{key}.min_bits"]:
        return "AD pruned"  # the widths begin at their least
    return method


def metric_of_search(record: Record) -> str:
    """Name a search's metric: a key of ``SEARCH_MARKS``, ``other`` for one without a mark."""
    return metric_of_config(record.config)


def metric_of_config(config: Mapping[str, Any]) -> str:
    """Name the metric of a search's config with dotted keys."""
    rule = config["search.rule._target_"]
    return METRICS.get(config.get("search.rule.by", rule), "other")
