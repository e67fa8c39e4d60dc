"""Roughly how long runs take, from a timed step: said before long ones begin, or when asked."""

from collections.abc import Sequence

from quantable.base.errors import UserError
from quantable.base.tick import duration
from quantable.tables.cells import Asked, Cell

GPU_MACS = 5e12
"""MACs a second that a GPU is taken to train with: ResNet18-CIFAR at 3,000 images a second."""


def hours(cells: Sequence[Cell], asked: Asked) -> str:
    """What training a table's ``cells`` takes, row by row and in all, by a timed step of each row.

    A run whose method decides how long it goes on is taken to be as long as the recipe says, or as
    its first phase. Evaluations, searches and what waits for one are not in it.
    """
    from quantable.training.build import on_gpus
    from quantable.training.timing import timed_step

    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.config["recipe"]["epochs"] > 0 and cell.config["search"] is None:
            rows.setdefault(cell.row, []).append(cell)
    seconds, macs, lines = 0.0, 0.0, []
    for row, own in rows.items():
        if own[0].search is not None:
            lines.append(f"  {row}: waits for a search, not counted")
            continue
        config, steps = own[0].config, steps_of(own[0])
        step = timed_step(config)
        epochs = max(step.epochs, config["recipe"]["epochs"])
        of_one = step.phase_seconds(steps) + step.seconds * steps * (epochs - step.epochs)
        images = steps * config["recipe"]["batch_size"] * epochs
        for_one = sum(shape.macs for shape in asked.shapes(config) or ())
        macs += 3 * for_one * images * len(own)
        seconds += of_one * len(own)
        lines.append(
            f"  {row}: {len(own)} x about {duration(of_one)} ({duration(step.seconds)} a step, "
            f"{steps} steps x {epochs} epochs)"
        )
    device = "a GPU" if any(on_gpus(cell.config) for cell in cells) else "this machine's CPU"
    lines.append(
        f"  about {duration(seconds)} on {device}, evaluations and searches not counted; "
        f"{macs:.2g} MACs, {macs / GPU_MACS / 3600:.2g} GPU-hours at {GPU_MACS / 1e12:g} TMAC/s"
    )
    return "\n".join(lines)


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
        f"{first.label}{others} takes about {duration(step.phase_seconds(steps))} at "
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
