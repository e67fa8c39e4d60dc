"""Where names of points go in a figure, so that they cover nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from quantable.report.page import SMALL

Boxes = NDArray[np.float64]  # (n, 4): left, lower, right and upper edges in pixels
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
RINGS = (8, 16, 26, 38, 52, 70, 90, 115)  # distances from the point, in points
LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 4}
CUT = 20  # how much worse it is to lose a piece of a name than to cover something with it
PASSES = 4  # of placing each name anew among all others
ALIGN = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
STEPS = np.linspace(0, 1, 40)  # places on a thin line that are looked at


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
    boxes, lines, costs = [], [], []  # of every label at every spot
    whole = np.array([axes.bbox.extents])
    fixed = np.array([box.extents for box in taken]).reshape(-1, 4)
    for words, anchor in labels:
        probe = axes.text(0, 0, words, fontsize=SMALL)
        size = probe.get_window_extent().size
        probe.remove()
        at = axes.transData.transform(anchor)
        own = np.array([_place(at, size, ring * scale, way) for ring, way in spots])
        boxes.append(own)
        middles = (own[:, :2] + own[:, 2:]) / 2
        lines.append(at + STEPS[None, :, None] * (middles - at)[:, None])  # (spots, steps, 2)
        lost = _area(own) - _common(own, whole)
        costs.append(CUT * lost + _common(own, fixed))
    chosen: dict[int, int] = {}
    for _ in range(PASSES):
        for i in range(len(labels)):
            others = [(j, k) for j, k in chosen.items() if j != i]
            names = np.array([boxes[j][k] for j, k in others]).reshape(-1, 4)
            leaders = np.array([lines[j][k] for j, k in others]).reshape(-1, len(STEPS), 2)
            crossed = _met(lines[i], names).sum(axis=1) + _met(leaders, boxes[i]).sum(axis=0)
            total = costs[i] + _common(boxes[i], names) + _area(boxes[i]) * crossed
            chosen[i] = int(total.argmin())  # the nearest of equals
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


def _place(at: Any, size: Any, far: float, direction: tuple[int, int]) -> Any:  # noqa: ANN401
    """Box of a text of ``size`` pixels whose near edge is ``far`` from the pixel ``at``."""
    corner = [
        start + far * side - length * (1 - side) / 2
        for start, length, side in zip(at, size, direction, strict=True)
    ]
    return Bbox.from_bounds(*corner, *size).padded(2).extents


def _area(boxes: Boxes) -> Boxes:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _common(boxes: Boxes, others: Boxes) -> Boxes:
    """Area that each of ``boxes`` shares with all of ``others``."""
    one, other = boxes[:, None], others[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared: Boxes = sides.clip(min=0).prod(axis=2).sum(axis=1)
    return shared


def _met(lines: Boxes, boxes: Boxes) -> NDArray[np.bool_]:
    """Which lines, (n, steps, 2), meet which boxes: (n, boxes)."""
    at, box = lines[:, None], boxes[None, :, None]  # (n, boxes, steps, ...)
    inside = np.logical_and(at > box[..., :2], at < box[..., 2:])
    met: NDArray[np.bool_] = np.any(np.all(inside, axis=3), axis=2)
    return met
