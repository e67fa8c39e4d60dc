"""The parts of a chart as inline SVG: axes, marks and words. No matplotlib, no torch.

Every word is escaped. Colours are the series' own looks, handed to the page's style sheet
as ``--c``; the sheet lightens them on a dark page. A ``title`` inside a mark is its hover text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from markupsafe import Markup

from quantable.config.schema import Looks

LETTER = 6.4  # width of a wide letter of a label
SMALL_LETTER = 6.0
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
class Range:
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
            found = decades(self.low, self.high)
            if len(found) > 2:
                return found
        return round_steps(self.low, self.high)


def decades(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis.

    >>> decades(0.5, 30)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    wide = log10(high / low) > 2.5
    values = [
        float(f"{base}e{power}") for power in powers for base in ((1,) if wide else (1, 2, 5))
    ]
    return [value for value in values if low <= value <= high]


def round_steps(low: float, high: float) -> list[float]:
    """Multiples of a round step.

    >>> round_steps(0.1, 0.92)
    [0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * base for base in (1, 2, 5, 10) if power * base >= rough * 0.8)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def around(
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


def text(words: object, x: float, y: float, css: str = "", anchor: str = "middle") -> Markup:
    """Write words at a place."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, words
    )


def frame(x: Range, y: Range, x_name: str, y_name: str) -> Markup:
    """Axes with ticks, thin lines across at the ticks of y, and the names."""
    parts = []
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(
            Markup('<path class="rule" d="M{:g} {:.1f}H{:g}"/>').format(x.start, at, x.end)
        )
        parts.append(text(f"{tick:g}", x.start - 6, at + 4, "num", "end"))
    free = -1e9  # where the next number may begin
    for tick in x.ticks:
        at, half = x.at(tick), len(f"{tick:g}") * SMALL_LETTER / 2
        parts.append(Markup('<path class="axis" d="M{:.1f} {:g}v4"/>').format(at, y.start))
        if at - half > free:
            parts.append(text(f"{tick:g}", at, y.start + 17, "num"))
            free = at + half + 4
    parts.append(Markup('<path class="axis" d="M{:g} {:g}H{:g}"/>').format(x.start, y.start, x.end))
    parts.append(text(x_name, (x.start + x.end) / 2, y.start + 36, "name"))
    middle = (y.start + y.end) / 2
    parts.append(
        Markup(
            '<text class="name" text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)"'
            ">{}</text>"
        ).format(middle, y_name)
    )
    return Markup("").join(parts)


def svg(inside: Markup, name: str, width: float, height: float, css: str) -> Markup:
    """Picture of the parts ``inside``, with its name for who does not see it."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" width="{:g}" height="{:g}" role="group" '
        'aria-label="{}">{}</svg>'
    ).format(css, width, height, width, height, name, inside)


def colour_of(looks: Looks) -> str:
    """Colour for the style sheet: black and white follow the page's ink and ground."""
    return {"#000000": "var(--ink)", "#FFFFFF": "var(--paper)"}.get(looks.colour, looks.colour)


def marker(looks: Looks, *, hollow: bool = False, small: bool = False) -> Markup:
    """Outline of a series' mark around (0, 0)."""
    css = " hollow" * hollow + " tiny" * small
    return Markup('<path class="mark{}" style="--c:{}" d="{}"/>').format(
        css, colour_of(looks), MARKERS[looks.marker]
    )


def swatch(looks: Looks) -> Markup:
    """A series' mark as a picture between words."""
    return Markup(
        '<svg class="swatch" viewBox="-7 -7 14 14" width="11" height="11" aria-hidden="true">'
        "{}</svg>"
    ).format(marker(looks))
