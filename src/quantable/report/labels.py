"""Where names of points go in a figure, so that they cover nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox

from quantable.report.page import SMALL

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
RINGS = (8, 16, 26, 38, 52, 70, 90, 115)  # distances from the point, in points
LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 4}
CUT = 20  # how much worse it is to lose a piece of a name than to cover something with it
PASSES = 4  # of placing each name anew among all others
ALIGN = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}


def place_labels(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]], taken: Sequence[Bbox]
) -> None:
    """Write each label by its point where it covers nothing else; a thin line leads to a far one.

    ``labels``: words, and the point (x, y) they belong to. ``taken``: pixels already covered, so
    the page's layout must be settled.
    """
    assert axes.figure is not None
    scale = axes.figure.dpi / 72  # pixels in a point
    spots = [(ring, direction) for ring in RINGS for direction in DIRECTIONS]
    boxes, lines = [], []  # of every label at every spot
    for words, anchor in labels:
        probe = axes.text(0, 0, words, fontsize=SMALL)
        size = probe.get_window_extent().size
        probe.remove()
        at = axes.transData.transform(anchor)
        boxes.append([_place(at, size, ring * scale, direction) for ring, direction in spots])
        lines.append([Line(np.array([at, box.get_points().mean(axis=0)])) for box in boxes[-1]])
    chosen: dict[int, int] = {}
    for _ in range(PASSES):
        for i in range(len(labels)):
            others = [(boxes[j][k], lines[j][k]) for j, k in chosen.items() if j != i]
            names, leaders = [box for box, _ in others], [line for _, line in others]
            costs = [
                CUT * _uncovered(box, axes.bbox)
                + sum(_common(box, other) for other in (*taken, *names))
                + box.width * box.height * _crossings(box, line, names, leaders)
                for box, line in zip(boxes[i], lines[i], strict=True)
            ]
            chosen[i] = costs.index(min(costs))  # the nearest of equals
    for i, (words, anchor) in enumerate(labels):
        ring, (right, up) = spots[chosen[i]]
        axes.annotate(
            words,
            anchor,
            xytext=(ring * right, ring * up),
            textcoords="offset points",
            ha=ALIGN[right][0],
            va=ALIGN[up][1],
            fontsize=SMALL,
            arrowprops=LEADER if ring > RINGS[0] else None,
        )


def _place(at: Any, size: Any, far: float, direction: tuple[int, int]) -> Bbox:  # noqa: ANN401
    """Box of a text of ``size`` pixels whose near edge is ``far`` from the pixel ``at``."""
    corner = [
        start + far * side - length * (1 - side) / 2
        for start, length, side in zip(at, size, direction, strict=True)
    ]
    return Bbox.from_bounds(*corner, *size).padded(2)


def _crossings(box: Bbox, line: Line, names: Sequence[Bbox], leaders: Sequence[Line]) -> int:
    """Count names that ``line`` would cross, and lines that ``box`` would cover."""
    over = sum(line.intersects_bbox(name, filled=False) for name in names)
    return over + sum(leader.intersects_bbox(box, filled=False) for leader in leaders)


def _uncovered(box: Bbox, bounds: Bbox) -> float:
    """Area of ``box`` outside ``bounds``."""
    return float(box.width * box.height) - _common(box, bounds)


def _common(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return float(both.width * both.height) if both is not None else 0.0
