"""Finished runs, asked again: what they answer in integers, from the weights they have left."""

from collections.abc import Sequence

from quantable.base.errors import UserError
from quantable.executor.board import Board, Work
from quantable.executor.inline import listening
from quantable.store.record import Record, cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell


def ask_all(works: Sequence[Work], store: Store) -> tuple[str, bool]:
    """A line for each cell, and whether all that could be asked was: floats cannot."""
    lines, well = [], True
    board = Board(store)
    with listening():
        for cell in (cell for work in works for cell in work.cells):
            try:
                line = _ask(cell, store, board.variant(cell))
            except UserError as error:
                line, well = f"not asked: {error}", False
            lines.append(f"{cell.label}: {line}")
    return "\n".join(lines), well


def _ask(cell: Cell, store: Store, variant: str | None) -> str:
    if cell.config["search"] is not None or cell.config["quantizer"]["callback"] is None:
        return "nothing to ask: no integers"
    if cell.search is not None or variant is None:
        raise UserError("its run is not finished")
    from quantable.run import asked_again, finished_twin  # torch only where something is asked

    finished = store.find(cell.signature, variant) or finished_twin(cell, store, variant)
    if finished is None:
        raise UserError("its run is not finished; train it first")
    with store.claim(cell_name(cell.signature, variant)) as claimed:
        if not claimed:
            raise UserError("another runner has it in hand")
        record = asked_again(cell, finished, store, variant)
        store.add(record)
    return _said(record)


def _said(record: Record) -> str:
    found = record.integers
    assert found is not None
    need = max(most for layer in found.layers.values() for most in layer.known_weights)
    said = (
        f"{found.exact_top1_pct:.2f} % of {found.images:,} test images in integers, "
        f"{found.agreement_pct:.2f} % as fake-quantized; sums of these weights need {need} bits"
    )
    if found.wrap_top1_pct is None:
        return said
    declared = max(layer.declared or 0 for layer in found.layers.values())
    return (
        f"{said}; with {declared} bits {found.wrap_top1_pct:.2f} % wrapping, "
        f"{found.saturate_top1_pct:.2f} % saturating"
    )
