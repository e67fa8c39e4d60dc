"""Small charts as inline SVG: lines, points, and grids of layers. No matplotlib, no torch.

Every word is escaped. Colours are the methods' own (``marks``), handed to the page's style sheet
as ``--c``; the sheet lightens them on a dark page. A ``title`` inside a mark is its hover text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor, isfinite, log10

from markupsafe import Markup

from quantable.report.marks import Mark

WIDTH, HEIGHT = 420, 280  # user units: one is one pixel where the chart has its own width
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 42
MOST_POINTS = 80  # of a curve, which is as many as its width shows
LETTER = 6.4  # width of a wide letter of a label
SMALL_LETTER = 6.0
SHADES = 9  # steps of a heat map
MARKERS = {  # outlines around (0, 0), by matplotlib's letters
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "s": "M-4-4h8v8h-8z",
    "^": "M0-5.2L5 4h-10z",
    "v": "M0 5.2L5-4h-10z",
    ">": "M5.2 0L-4 5v-10z",
    "<": "M-5.2 0L4 5v-10z",
    "D": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "P": "M-1.8-5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    "X": "M-5-3L-3-5L0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
    "*": "M0-6L1.6-1.9L5.8-1.9L2.4.8L3.6 5L0 2.5L-3.6 5L-2.4.8L-5.8-1.9L-1.6-1.9z",
}


@dataclass(frozen=True)
class Spot:
    """A point: its words, place, method, and the standard deviations where there are some."""

    label: str
    tip: str
    x: float
    y: float
    mark: Mark
    x_std: float = 0.0
    y_std: float = 0.0
    hollow: bool = False  # the paper's own number


@dataclass(frozen=True)
class Curve:
    """A line: its words, points, method, and whether it is the second of its run."""

    label: str
    tip: str
    points: Sequence[tuple[float, float]]
    mark: Mark
    dashed: bool = False


@dataclass(frozen=True)
class _Axis:
    """A range of values on a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Place of a value."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / ((high - low) or 1)
        return self.start + share * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return log10(value) if self.log else value

    @property
    def ticks(self) -> list[float]:
        """Round values within the range, some five of them."""
        if self.log:
            found = _decades(self.low, self.high)
            if len(found) > 2:
                return found
        return _round_steps(self.low, self.high)


def _decades(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis.

    >>> _decades(0.5, 30)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    wide = log10(high / low) > 2.5
    values = [
        float(f"{base}e{power}") for power in powers for base in ((1,) if wide else (1, 2, 5))
    ]
    return [value for value in values if low <= value <= high]


def _round_steps(low: float, high: float) -> list[float]:
    """Multiples of a round step.

    >>> _round_steps(0.1, 0.92)
    [0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * base for base in (1, 2, 5, 10) if power * base >= rough * 0.8)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _around(
    values: Iterable[float], *, share: float = 0.06, log: bool = False
) -> tuple[float, float]:
    """Range of the values with a margin."""
    kept = [value for value in values if isfinite(value)] or [0.0, 1.0]
    low, high = min(kept), max(kept)
    if log:
        factor = max((high / low) ** share, 1.15)
        return low / factor, high * factor
    margin = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _wide(values: Sequence[float]) -> bool:
    """Whether values ask for a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 4


def _text(words: object, x: float, y: float, css: str = "", anchor: str = "middle") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, words
    )


def _frame(x: _Axis, y: _Axis, x_name: str, y_name: str) -> Markup:
    """Axes with ticks, thin lines across at the ticks of y, and the names."""
    parts = []
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(
            Markup('<path class="rule" d="M{:g} {:.1f}H{:g}"/>').format(x.start, at, x.end)
        )
        parts.append(_text(f"{tick:g}", x.start - 6, at + 4, "num", "end"))
    for tick in x.ticks:
        at = x.at(tick)
        parts.append(Markup('<path class="axis" d="M{:.1f} {:g}v4"/>').format(at, y.start))
        parts.append(_text(f"{tick:g}", at, y.start + 17, "num"))
    parts.append(Markup('<path class="axis" d="M{:g} {:g}H{:g}"/>').format(x.start, y.start, x.end))
    parts.append(_text(x_name, (x.start + x.end) / 2, y.start + 36, "name"))
    middle = (y.start + y.end) / 2
    parts.append(
        Markup(
            '<text class="name" text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)"'
            ">{}</text>"
        ).format(middle, y_name)
    )
    return Markup("").join(parts)


def _svg(inside: Markup, name: str, width: float, height: float, css: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" width="{:g}" height="{:g}" role="group" '
        'aria-label="{}">{}</svg>'
    ).format(css, width, height, width, height, name, inside)


def colour_of(mark: Mark) -> str:
    """Colour for the style sheet: black and white follow the page's ink and ground."""
    return {"#000000": "var(--ink)", "#FFFFFF": "var(--paper)"}.get(mark.colour, mark.colour)


def marker(mark: Mark, *, hollow: bool = False) -> Markup:
    """Outline of a method's mark around (0, 0)."""
    return Markup('<path class="mark{}" style="--c:{}" d="{}"/>').format(
        " hollow" if hollow else "", colour_of(mark), MARKERS[mark.marker]
    )


def swatch(mark: Mark) -> Markup:
    """A method's mark as a picture between words."""
    return Markup(
        '<svg class="swatch" viewBox="-7 -7 14 14" width="11" height="11" aria-hidden="true">'
        "{}</svg>"
    ).format(marker(mark))


def best_first(spots: Sequence[Spot]) -> list[Spot]:
    """Spots that no other beats in both directions (cheaper, more accurate), by rising cost."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.x, -s.y)):
        if not best or spot.y > best[-1].y:
            best.append(spot)
    return best


def scatter(spots: Sequence[Spot], x_name: str, y_name: str, name: str) -> Markup:
    """Points with error bars, the frontier as thin steps, labels where there is room.

    The first point can be focused; the page's script moves on by arrow keys.
    """
    log = _wide([spot.x for spot in spots])
    x_name += ", logarithmic" * log
    x = _Axis(*_around((s.x for s in spots), log=log), LEFT, WIDTH - RIGHT, log)
    ends = [s.y + side * s.y_std for s in spots for side in (-1, 1)]
    y = _Axis(*_around(ends), HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, x_name, y_name)]
    best = best_first(spots)
    steps = "".join(
        f"{'H' if i else 'M'}{x.at(s.x):.1f}{'V' if i else ' '}{y.at(s.y):.1f}"
        for i, s in enumerate(best)
    )
    parts.append(Markup('<path class="frontier" d="{}"/>').format(steps))
    for i, spot in enumerate(sorted(spots, key=lambda s: (s.x, s.y))):
        parts.append(_spot(spot, x, y, first=not i))
    parts.append(_labels(best if len(spots) > 24 else [*best, *spots], spots, x, y))
    return _svg(Markup("").join(parts), name, WIDTH, HEIGHT, "chart points")


def _spot(spot: Spot, x: _Axis, y: _Axis, *, first: bool) -> Markup:
    bars = Markup("")
    if spot.y_std:
        low, high = y.at(spot.y - spot.y_std), y.at(spot.y + spot.y_std)
        bars += Markup('<path class="bar" d="M0 {:.1f}V{:.1f}"/>').format(
            low - y.at(spot.y), high - y.at(spot.y)
        )
    if spot.x_std and spot.x_std < spot.x:
        low, high = x.at(spot.x - spot.x_std), x.at(spot.x + spot.x_std)
        bars += Markup('<path class="bar" d="M{:.1f} 0H{:.1f}"/>').format(
            low - x.at(spot.x), high - x.at(spot.x)
        )
    return Markup(
        '<g class="tip" role="img" tabindex="{}" transform="translate({:.1f} {:.1f})">'
        '<title>{}</title>{}<circle r="11" class="hit"/>{}</g>'
    ).format(
        0 if first else -1,
        x.at(spot.x),
        y.at(spot.y),
        spot.tip,
        bars,
        marker(spot.mark, hollow=spot.hollow),
    )


Box = tuple[float, float, float, float]


def _labels(wanted: Sequence[Spot], spots: Sequence[Spot], x: _Axis, y: _Axis) -> Markup:
    """Names beside the points where they cover neither a point nor another name."""
    taken: list[Box] = [_box(x.at(s.x), y.at(s.y), 6, 6) for s in spots]
    parts, named = [], set[str]()
    for spot in wanted:
        if spot.label in named:
            continue
        half = len(spot.label) * LETTER / 2
        at_x, at_y = x.at(spot.x), y.at(spot.y)
        for dx, dy in (
            (half + 9, 0),
            (-half - 9, 0),
            (0, -14),
            (0, 15),
            (half + 5, -13),
            (-half - 5, -13),
            (half + 5, 13),
            (-half - 5, 13),
        ):
            box = _box(at_x + dx, at_y + dy, half, 7)
            inside = x.start < box[0] and box[2] < x.end and y.end - 4 < box[1] and box[3] < y.start
            if inside and not any(_overlap(box, other) for other in taken):
                parts.append(_text(spot.label, at_x + dx, at_y + dy + 4, "label"))
                taken.append(box)
                named.add(spot.label)
                break
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("").join(parts))


def _box(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def lines(
    curves: Sequence[Curve], x_name: str, y_name: str, name: str, *, from_zero: bool = False
) -> Markup:
    """Lines over epochs with their names at the right end, where there is room for all.

    What spans more than a factor of four is drawn on a logarithmic axis, unless ``from_zero``.
    """
    values = [y for curve in curves for _, y in curve.points]
    labelled = [curve for curve in curves if not curve.dashed]
    room = max(len(_cut(curve.label)) for curve in labelled) * LETTER + 16
    room = room if len(labelled) <= 9 else 0.0
    end = WIDTH - RIGHT - room
    epochs = [x for curve in curves for x, _ in curve.points]
    x = _Axis(min(epochs), max(max(epochs), min(epochs) + 1), LEFT, end)
    log = not from_zero and _wide(values)
    low, high = _around(values, log=log)
    y = _Axis(0 if from_zero else low, high, HEIGHT - BOTTOM, TOP, log)
    y_name += ", logarithmic" * log
    parts = [_frame(x, y, x_name, y_name)]
    parts += [_curve(curve, x, y) for curve in curves]
    if room:
        parts.append(_ends(labelled, x, y))
    return _svg(Markup("").join(parts), name, WIDTH, HEIGHT, "chart")


def _curve(curve: Curve, x: _Axis, y: _Axis) -> Markup:
    step = -(-len(curve.points) // MOST_POINTS)
    kept = [p for i, p in enumerate(curve.points) if i % step == 0 or i == len(curve.points) - 1]
    places = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in kept)
    return Markup(
        '<g class="tip curve{}" role="img" style="--c:{}"><title>{}</title>'
        '<polyline class="under" points="{}"/><polyline class="line" points="{}"/></g>'
    ).format(" dashed" if curve.dashed else "", colour_of(curve.mark), curve.tip, places, places)


def _ends(curves: Sequence[Curve], x: _Axis, y: _Axis) -> Markup:
    """Names at the ends of lines, moved apart, each with its mark."""
    ends = sorted(((y.at(c.points[-1][1]), c) for c in curves), key=lambda end: end[0])
    places: list[float] = []
    for at, _ in ends:
        places.append(max(at, places[-1] + 14) if places else at)
    excess = max(0.0, places[-1] - (y.start - 4)) if places else 0.0
    parts = []
    for place, (_, curve) in zip(places, ends, strict=True):
        at = place - excess
        parts.append(
            Markup('<g transform="translate({:.1f} {:.1f})">{}</g>').format(
                x.end + 10, at, marker(curve.mark)
            )
        )
        parts.append(_text(_cut(curve.label), x.end + 19, at + 4, "label", "start"))
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("").join(parts))


def _cut(words: str, letters: int = 22) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"


def strips(rows: Sequence[tuple[str, Sequence[int]]], layers: Sequence[str], name: str) -> Markup:
    """Bit-widths as a grid: one line a row, one square a layer, with the number in it."""
    side, left, top = 21, 8 + max(len(label) for label, _ in rows) * LETTER, 6
    foot = 12 + max(len(layer) for layer in layers) * SMALL_LETTER
    parts = []
    for i, (label, bits) in enumerate(rows):
        y = top + i * (side + 3)
        parts.append(_text(label, left - 8, y + 15, "label", "end"))
        for j, width in enumerate(bits):
            parts.append(
                Markup(
                    '<g class="tip"><title>{}\n{}: {} bit</title>'
                    '<rect class="w{}" x="{:.1f}" y="{:g}" width="{}" height="{}"/>'
                ).format(
                    label, layers[j], width, _shade_of(width), left + j * side, y, side - 1, side
                )
            )
            parts.append(_text(width, left + j * side + (side - 1) / 2, y + 15, "num in"))
            parts.append(Markup("</g>"))
    bottom = float(top + len(rows) * (side + 3))
    for j, layer in enumerate(layers):
        parts.append(
            Markup(
                '<text class="small" text-anchor="end" transform="translate({:.1f} {:g}) '
                'rotate(-90)">{}</text>'
            ).format(left + j * side + 14, bottom + 6, layer)
        )
    right = left + len(layers) * side + 4
    return _svg(Markup("").join(parts), name, right, bottom + foot, "chart grid")


def _shade_of(bits: int) -> int:
    """Step of shade for a bit-width: 1 to 6.

    >>> [_shade_of(bits) for bits in (1, 2, 3, 4, 8, 16, 32)]
    [1, 1, 2, 3, 4, 5, 6]
    """
    return next((i for i, most in enumerate((2, 3, 4, 8, 16), 1) if bits <= most), 6)


def heat(
    layers: Mapping[str, Sequence[float | None]], changes: Mapping[int, str], name: str
) -> Markup:
    """Densities by layer and epoch: one line a layer, darker is denser.

    ``changes``: words to write above an epoch (from 0) where a phase begins.
    """
    epochs = max(len(values) for values in layers.values())
    cell = max(3.0, min(24.0, 380 / epochs))
    left, top = 8 + max(len(layer) for layer in layers) * SMALL_LETTER, 20
    bottom, right = top + len(layers) * HIGH, left + epochs * cell
    known = [v for values in layers.values() for v in values if v is not None]
    parts = [
        _text(layer, left - 6, top + i * HIGH + 11, "small", "end")
        for i, layer in enumerate(layers)
    ]
    parts.append(_shades(layers, min(known), max(known), (left, top, cell)))
    for epoch, words in changes.items():
        at = left + epoch * cell
        if epoch:
            line = Markup('<path class="change" d="M{:.1f} {}V{}"/>')
            parts.append(line.format(at, top - 4, bottom))
        parts.append(_text(words, at + 2, top - 7, "small", "start"))
    for tick in _round_steps(1, max(epochs, 2)):
        if 1 <= tick <= epochs and tick.is_integer():
            parts.append(_text(f"{tick:g}", left + (tick - 0.5) * cell, bottom + 14, "num small"))
    parts.append(_text("epoch", (left + right) / 2, bottom + 30, "name"))
    parts.append(_scale(min(known), max(known), right + 16, top))
    height = max(bottom + 36, top + SHADES * 12 + 8)
    return _svg(Markup("").join(parts), name, right + 66, height, "chart grid")


HIGH = 15  # of a layer's line in a heat map


def _shades(
    layers: Mapping[str, Sequence[float | None]],
    low: float,
    high: float,
    place: tuple[float, float, float],
) -> Markup:
    """Rectangles of a heat map, all of one shade in one path; neighbours are one rectangle."""
    left, top, cell = place
    paths: dict[int, list[str]] = {}
    for i, values in enumerate(layers.values()):
        j = 0
        for step, group in groupby(None if v is None else _step_of(v, low, high) for v in values):
            n = len(list(group))
            if step is not None:
                start = f"M{left + j * cell:.1f} {top + i * HIGH}"
                paths.setdefault(step, []).append(f"{start}h{n * cell:.1f}v14h-{n * cell:.1f}z")
            j += n
    return Markup("").join(
        Markup('<path class="d{}" d="{}"/>').format(step, "".join(drawn))
        for step, drawn in sorted(paths.items())
    )


def _scale(low: float, high: float, x: float, top: float) -> Markup:
    squares = [
        Markup('<rect class="d{}" x="{:.1f}" y="{}" width="12" height="12"/>').format(
            step, x, top + (SHADES - 1 - step) * 12
        )
        for step in range(SHADES)
    ]
    squares.append(_text(f"{high:.2f}", x + 17, top + 10, "num small", "start"))
    squares.append(_text(f"{low:.2f}", x + 17, top + SHADES * 12, "num small", "start"))
    return Markup("").join(squares)


def _step_of(value: float, low: float, high: float) -> int:
    """Step of shade, 0 to 8.

    >>> _step_of(0.1, 0.1, 1.0), _step_of(1.0, 0.1, 1.0)
    (0, 8)
    """
    return min(SHADES - 1, int(SHADES * (value - low) / ((high - low) or 1)))
