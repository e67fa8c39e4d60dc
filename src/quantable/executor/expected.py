"""Roughly how long a run of the paper's own size takes where no GPU is, said before it begins."""

from collections.abc import Sequence

from quantable.base.errors import UserError
from quantable.base.tick import duration
from quantable.tables.cells import Cell


def lasting(cells: Sequence[Cell]) -> list[Cell]:
    """Those that train at budget paper, and whose bit-widths are known."""
    return [
        cell
        for cell in cells
        if cell.config["budget"]["name"] == "paper"
        and cell.config["recipe"]["epochs"] > 0
        and cell.config["search"] is None
        and cell.search is None
    ]


def expected(cells: Sequence[Cell]) -> str | None:
    """What to say of the first of ``cells`` that lasts; None where none does, or on a GPU."""
    if not (long := lasting(cells)):
        return None
    from quantable.training.build import trainer_of  # torch only where something is trained
    from quantable.training.timing import timed_step

    first = long[0]
    try:
        if trainer_of(first.config).strategy.root_device.type != "cpu":
            return None
        step = timed_step(first.config)
    except (UserError, NotImplementedError):  # the run itself will say it
        return None
    steps = steps_of(first)
    phase = " of its first phase" if first.config["quantizer"]["learns_bits"] else ""
    others = f", one of {len(long)} cells to train," if len(long) > 1 else ""
    return (
        f"{first.label}{others} takes about {duration(step.seconds * steps * step.epochs)} at "
        f"budget paper on this machine's CPU ({duration(step.seconds)} a step, {steps} steps x "
        f"{step.epochs} epochs{phase}; evaluations not counted). Smaller: budget=cpu, for two "
        "cores, or budget=smoke, for minutes"
    )


def steps_of(cell: Cell) -> int:
    """Steps of an epoch, where the set on this machine is a complete copy."""
    data = cell.config["data"]
    left = data["counts"]["train"] - data["val_images"]
    images: int = left if data["train_images"] is None else min(data["train_images"], left)
    batch: int = cell.config["recipe"]["batch_size"]
    return images // batch
