"""Numbers, verdicts and columns of a page's tables, as text."""

from dataclasses import dataclass

from quantable.columns import COLUMNS
from quantable.report.render import number, origin
from quantable.report.schema import ClaimLine, Entry, MeasuredOut, PublishedOut
from quantable.tables.schema import Tolerance

SIGNS = {  # the word always stands beside the sign
    "match": ("✓", "good"),
    "holds": ("✓", "good"),
    "above": ("▲", "off"),
    "below": ("▼", "off"),
    "does not hold": ("✗", "off"),
    "incomplete": ("◐", "open"),
    "not comparable": ("◇", "open"),
    "not judged": ("◇", "open"),
    "not run": ("○", "none"),
    "no published value": ("·", "none"),
}


@dataclass(frozen=True)
class Verdict:
    """A verdict's word, sign and class, and the reason that its hover text gives."""

    word: str
    reason: str | None = None

    @property
    def sign(self) -> str:
        """One character."""
        return SIGNS.get(self.word, ("?", "open"))[0]

    @property
    def css(self) -> str:
        """Class of the style sheet."""
        return SIGNS.get(self.word, ("?", "open"))[1]


@dataclass(frozen=True)
class Number:
    """A number with its spread, as text."""

    text: str
    std: str = ""
    n: str = ""
    about: str = ""  # where it comes from
    hint: bool = False


@dataclass(frozen=True)
class Field:
    """One row and column: published, ours, difference, verdict."""

    ours: Number | None
    published: Number | None = None
    difference: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table; one with published numbers takes four."""

    heading: str
    kind: str  # both: published and ours; published: ours is nobody's to run; ours
    tolerance: str
    n: str  # seeds behind every trained number of ours, where all have as many


@dataclass(frozen=True)
class Said:
    """A claim."""

    line: ClaimLine
    claimed: Number | None
    ours: Number | None
    origin: str
    difference: str
    verdict: Verdict


def tolerance_text(tolerance: Tolerance | None) -> str:
    """Word a tolerance.

    >>> tolerance_text(Tolerance(abs=0.5)), tolerance_text(Tolerance(rel=0.05))
    ('±0.5', '±5 %')
    """
    if tolerance is None:
        return ""
    return (
        f"±{tolerance.abs:g}" if tolerance.abs is not None else f"±{(tolerance.rel or 0) * 100:g} %"
    )


def _ours(measured: MeasuredOut | None, decimals: int, *, counted: bool = False) -> Number | None:
    if measured is None:
        return None
    std = number(measured.std, decimals) if measured.std is not None else ""
    n = f"n={measured.n}" if measured.data is not None and counted else ""
    return Number(number(measured.mean, decimals), std, n, origin(measured))


def _said_by(published: PublishedOut | None, decimals: int, *, hint: bool) -> Number | None:
    if published is None:
        return None
    std = number(published.std, decimals) if published.std is not None else ""
    n = f"n={published.n}" if published.n is not None else ""
    about = f"{published.source} ({published.confidence})"
    return Number(number(published.value, decimals), std, n, about, hint)


def field(entry: Entry, *, alike: bool) -> Field:
    """One row and column; ``alike`` where all rows have as many seeds."""
    decimals = COLUMNS[entry.column].decimals
    said = entry.published or entry.hint
    difference = ""
    if entry.published is not None and entry.measured is not None:
        difference = _signed(entry.measured.mean - entry.published.value, decimals)
    return Field(
        ours=_ours(entry.measured, decimals, counted=not alike),
        published=_said_by(said, decimals, hint=entry.published is None),
        difference=difference,
        verdict=Verdict(entry.verdict, entry.reason),
    )


def _signed(value: float, decimals: int) -> str:
    """A difference with its sign; none where it rounds to zero.

    >>> _signed(0.04, 1), _signed(-1.25, 2), _signed(3, 0)
    ('0.0', '−1.25', '+3')
    """
    text = number(round(value, decimals) + 0.0, decimals)
    return f"+{text}" if round(value, decimals) > 0 else text


def said(claim: ClaimLine) -> Said:
    """One claim."""
    decimals = COLUMNS[claim.column].decimals
    unit = "" if claim.unit == "1" else f" {claim.unit}"
    difference = ""
    if claim.measured is not None and claim.claimed is not None:
        difference = _signed(claim.measured.mean - claim.claimed, decimals)
    ours = _ours(claim.measured, decimals)
    return Said(
        line=claim,
        claimed=None if claim.claimed is None else Number(f"{claim.claimed:g}{unit}"),
        ours=None if ours is None else Number(ours.text + unit, ours.std, ours.n, ours.about),
        origin=origin(claim.measured),
        difference=difference,
        verdict=Verdict(claim.verdict, claim.reason),
    )
