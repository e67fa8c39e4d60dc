"""Bits that weights and data may have together, by layer and accumulator, of each whole network."""

from collections.abc import Iterator, Sequence

from quantable.columns.acq import ACCUMULATORS
from quantable.cost.accumulators import budget
from quantable.networks.layers import LayerShape
from quantable.report.reporter import Reporter
from quantable.report.shapes import Grid, Group
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Grid | str]]:
    """``<name>_<row>``: a grid for each row of a whole network that declares no accumulator."""
    del asked
    for row in reporter.asked.chosen_rows(reporter.table):
        known = reporter.row_facts(row).facts
        if known and known[0].layer is None and known[0].accumulator is None:
            yield f"{name}_{row}", grid(known[0].now or (), reporter.table.rows[row].label)


def grid(layers: Sequence[LayerShape], label: str) -> Grid | str:
    """A line for each accumulator; a layer with less than 2 + 2 bits has no pair of widths."""
    terms = [layer.terms for layer in layers]
    if not layers or None in terms:
        return "its layers are known once it has run"
    lines = {
        f"P = {p}": [budget(p, k, data_signed=False) for k in terms if k is not None]
        for p in ACCUMULATORS
    }
    return Grid(
        f"Bits of weight and data together: {label}",
        "By data type, data unsigned; signed data, as images are, have one bit more.",
        [Group("bits", lines)],
        [layer.name for layer in layers],
        "layer, in execution order",
    )
