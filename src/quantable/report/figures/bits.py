"""Bit-widths by layer in the table's rows, rows of one search budget together."""

from collections.abc import Iterator

from quantable.report.figures.frontier import Budget, records_behind
from quantable.report.reporter import Reporter
from quantable.report.schema import Vector
from quantable.report.shapes import Grid, Group
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Grid | str]]:
    """A grid for each network; rows whose inner layers agree are left out."""
    rows = reporter.asked.chosen_rows(reporter.table)
    vectors = [vector for row in rows if (vector := reporter.vector(row)) is not None]
    if not vectors:
        yield name, "no row with different bits by layer is known"
        return
    networks: dict[tuple[str, ...], list[Vector]] = {}
    for vector in vectors:
        networks.setdefault(tuple(vector.layers), []).append(vector)
    for i, (layers, own) in enumerate(networks.items()):
        groups: dict[Budget, dict[str, list[float | None]]] = {}
        for vector in own:
            groups.setdefault(budget_of(reporter, vector.row), {}).update(_lines(vector))
        parts = [Group("bits", lines) for lines in groups.values()]
        note = "Layers in execution order; the first seed's."
        records = records_behind(reporter, asked.y)
        own_name = f"{name}_{i + 1}" if i else name
        yield (
            own_name,
            Grid(
                "Bits per layer", note, parts, layers, "layer, in execution order", records=records
            ),
        )


def budget_of(reporter: Reporter, row: str) -> Budget:
    """What a search could spend on a row's bits; empty where none chose them."""
    chosen = reporter.table.rows[row].chosen
    return tuple(sorted(chosen.budgets.items())) if chosen is not None else ()


def _lines(vector: Vector) -> dict[str, list[float | None]]:
    weights, acts = ([float(pair[i]) for pair in vector.bits] for i in (0, 1))
    if weights == acts:
        return {vector.label: [*weights]}
    return {f"{vector.label}, weights": [*weights], f"{vector.label}, acts": [*acts]}
