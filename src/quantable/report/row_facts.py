"""What a row shows of a run: one of its phases, and the bit-widths at which its costs are counted.

A row's phase is a number, counted from the end where it is below 0, or ``final``: the run's result,
chosen by the images held out from training. It is the last phase, after the first one, whose
accuracy there is at most ``final_within_pp`` percentage points below that of the last epoch of the
row ``reference``; where none is, the most accurate there. Test images play no part in the choice.

A row's ``cost_bits`` counts the costs of every layer at one width, as a network that keeps the
widths of a reference would cost, whatever the run had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantable.base.bits import Bits
from quantable.columns.facts import Facts
from quantable.config.widths import planned_bits
from quantable.networks.layers import LayerShape, uniform
from quantable.report.verdict import at_most
from quantable.store.record import Phase, Record
from quantable.tables.cells import Cell
from quantable.tables.schema import Row


@dataclass(frozen=True)
class RowFacts:
    """A row's facts over its seeds."""

    by_seed: dict[int, Facts]
    missing: str | None  # why there is no record
    given: bool  # whether its bit-widths are the paper's, as no run has found any

    @property
    def facts(self) -> list[Facts]:
        """Facts of every seed that has some."""
        return list(self.by_seed.values())


def phase_of(
    row: Row, record: Record, reference: Record | None, within_pp: float | None
) -> Phase | None:
    """The phase that ``row`` shows; None where the run has no such phase, or the reference no run.

    ``within_pp``: how far below the reference a final one may be.
    """
    if row.phase != "final":
        return record.phases[row.phase] if row.phase < len(record.phases) else None
    assert within_pp is not None, "checked when the table was read"
    if reference is None or len(record.phases) < 2:
        return None
    least = reference.history[-1].held_out_pct - within_pp
    later = record.phases[:0:-1]  # the last one first
    found = [record.history[p.first_epoch + p.epochs - 1].held_out_pct for p in later]
    close = [at_most(least, held_out_pct) for held_out_pct in found]
    return later[close.index(True) if any(close) else found.index(max(found))]


def batch_norms_of(facts: Facts) -> str | None:
    """What became of the batch norms of a run without training; None where there is none."""
    record, network = facts.record, facts.network
    if record is None or not record.history or record.config["recipe.epochs"]:
        return None
    if network is not None and network.batch_norm_channels == 0:
        return None
    quantized = "quantizer.callback._target_" in record.config
    if quantized and record.config.get("recipe.batch_norms") is None:
        return f"measured anew on {record.data.sizes['train']:,} images"
    return "kept"


def bits_of(
    row: Row, cell: Cell, shapes: Sequence[LayerShape] | None, phase: Phase | None
) -> dict[str, Bits] | None:
    """Bit-widths by layer: of the phase, or as planned where there is none; None: not known."""
    if shapes is None or row.sizes is not None:  # published sizes are of bits that are not
        return None
    if cell.search is not None or cell.impossible or cell.config["search"] is not None:
        return None
    if row.cost_bits is not None:
        return uniform(shapes, row.cost_bits)
    return planned_bits(cell.config, shapes) if phase is None else phase.bit_map
