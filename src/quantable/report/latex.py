r"""A report as LaTeX: one file that compiles alone and can be ``\input`` into a paper."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap

from quantable.columns import COLUMNS
from quantable.report.escape import latex_text, shown
from quantable.report.render import (
    VECTORS,
    batch_norms,
    by_row,
    claim_lines,
    protocol,
    reasons,
    vector_text,
    verdicts,
    word_keys,
)
from quantable.report.schema import Entry, MeasuredOut, PublishedOut, Report

ALONE = r"""% {id}, made by reproduce/report.py format=latex. Compile it alone with pdflatex,
% or \input it into a document that loads booktabs, graphicx and siunitx (version 3).
\expandafter\ifx\csname @nodocument\endcsname\relax
  \let\quantableend\relax % inside a document
\else
  \documentclass{{article}}
  \usepackage{{booktabs,graphicx,siunitx}}
  \makeatletter
  \renewenvironment{{table}}[1][]% a page as large as the table
    {{\setbox1\vbox\bgroup\hsize={width}mm\linewidth\hsize\textwidth\hsize\columnwidth\hsize
     \parindent0pt\def\@captype{{table}}}}
    {{\par\egroup\pdfpagewidth\dimexpr\wd1+20mm\relax
     \pdfpageheight\dimexpr\ht1+\dp1+20mm\relax
     \hoffset\dimexpr10mm-1in\relax\voffset\hoffset\shipout\box1}}
  \makeatother
  \begin{{document}}
  \def\quantableend{{\end{{document}}}}
\fi
"""
FIT = r"""\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"""
NARROW, WIDE = 170, 267  # mm: what A4 leaves upright, and on its side
UNITS = {"uJ": "µJ", "x": "×"}
SPREAD = "uncertainty-mode=separate,table-align-uncertainty=false,retain-zero-uncertainty"
LONG = 34  # characters from which on a cell of words is wrapped
WRAPPED = r">{{\raggedright\arraybackslash}}p{{{width}mm}}"
CLAIM_WIDTHS = (12, 54, 16, 24, 68, 28, 32)  # mm


@dataclass(frozen=True)
class _Column:
    """One column as it is printed; neighbours with the same ``group`` share that heading."""

    spec: str
    head: str
    cells: list[str]
    group: str = ""


def latex(report: Report) -> str:
    r"""Write the tables, published numbers beside ours, as a LaTeX ``table`` of booktabs' rules.

    Columns of numbers are siunitx's, so that points and plus-minus signs are aligned. A table wider
    than the text is scaled down to it; compiled alone it is one page, as large as its content.
    """
    report = shown(report)
    columns = _columns(report)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", report.table)
    wide = len(columns) > 6 or bool(report.claims)
    notes = [f"{report.source}. Protocol: {protocol(report)}.", *reasons(report), *report.notes]
    if any(entry.hint is not None and _said(entry) is entry.hint for entry in report.rows):
        notes.append("Published numbers in parentheses are doubtful; no verdict rests on them.")
    if report.vectors:
        notes.append(f"{VECTORS}: " + "; ".join(f"({vector_text(v)})" for v in report.vectors))
    parts = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{latex_text(report.title)}.}}",
        rf"\label{{tab:{name}}}",
        r"\medskip",
        rf"\sbox0{{{_numbers_table(columns)}}}%",
        FIT,
    ]
    if report.claims:
        parts += ["", r"\bigskip", rf"\sbox0{{{_claims_table(report)}}}%", FIT]
    parts += ["", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
    parts += [rf"\hangindent1em {latex_text(note)}\par" for note in notes]
    parts += [r"\end{minipage}", r"\end{table}", r"\quantableend"]
    return ALONE.format(id=name, width=WIDE if wide else NARROW) + "\n".join(parts)


# The main table


def _columns(report: Report) -> list[_Column]:
    rows = by_row(report)
    labels = [latex_text(entries[0].label) for entries in rows.values()]
    keys = word_keys(report)
    columns = [
        _Column("l", latex_text(key), [latex_text(report.words[row][key]) for row in rows])
        for key in keys
    ] or [_Column("l", "", labels)]
    for column in dict.fromkeys(entry.column for entry in report.rows):
        columns += _of_metric(column, [e for e in report.rows if e.column == column])
    if any(entry.measured and entry.measured.data for entry in report.rows):
        columns.append(_Column("r", "seeds", [_seeds(entries) for entries in rows.values()]))
    if any(norms := [batch_norms(entries) for entries in rows.values()]):
        columns.append(_Column("l", "batch norms", [latex_text(said or "–") for said in norms]))
    if keys:  # nobody has published a sweep
        return columns
    words = []
    for name, entries in rows.items():
        claims = [claim for claim in report.claims if claim.row == name]
        words.append(_grouped(verdicts(entries, claims), alone=not claims))
    long = max(map(len, words), default=0) > LONG
    spec = WRAPPED.format(width=64) if long else "l"
    return [*columns, _Column(spec, "verdict", list(map(latex_text, words)))]


def _of_metric(column: str, entries: Sequence[Entry]) -> list[_Column]:
    """Our numbers in one column of the report, behind the published ones where it has any."""
    about = COLUMNS[column]
    unit = UNITS.get(about.unit, about.unit)
    title = about.title if unit == "1" else f"{about.title} [{unit}]"
    ours, said = [entry.measured for entry in entries], [_said(entry) for entry in entries]
    cells = [_number(number, column) for number in ours]
    spec = _aligned(ours, column)
    if not any(said):
        return [_Column(spec, _stacked(title), cells)]
    published = [_number(number, column) for number in said]
    for i, entry in enumerate(entries):
        if said[i] is not None and said[i] is entry.hint:
            published[i] = f"{{({published[i]})}}"
    group = latex_text(title)
    return [
        _Column(_aligned(said, column), "{published}", published, group),
        _Column(spec, "{ours}", cells, group),
    ]


def _numbers_table(columns: Sequence[_Column]) -> str:
    spec = " ".join(column.spec for column in columns)
    lines = [rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule"]
    if any(column.group for column in columns):
        top, rules, first = [], "", 1
        for group, members in groupby(columns, lambda column: column.group):
            last = first + len(list(members)) - 1
            top.append(rf"\multicolumn{{{last - first + 1}}}{{c}}{{{group}}}")
            rules += rf"\cmidrule(lr){{{first}-{last}}}" if group else ""
            first = last + 1
        lines += [_line(top), rules]
    lines += [_line(column.head for column in columns), r"\midrule"]
    lines += [_line(cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r"\\"


def _said(entry: Entry) -> PublishedOut | None:
    """Return the paper's number, also where it is doubtful, as its row's notes say."""
    doubtful = entry.hint is not None and entry.hint.confidence == "doubtful"
    return entry.hint if doubtful else entry.published


def _stacked(title: str) -> str:
    """Words above each other, in braces as a column of numbers needs them."""
    lines = r"\\".join(map(latex_text, wrap(title, 13)))
    return rf"{{\begin{{tabular}}[b]{{@{{}}c@{{}}}}{lines}\end{{tabular}}}}"


def _value(number: PublishedOut | MeasuredOut) -> float:
    return number.value if isinstance(number, PublishedOut) else number.mean


def _number(number: PublishedOut | MeasuredOut | None, column: str) -> str:
    """Return a number as siunitx reads it, or a dash.

    >>> _number(PublishedOut(value=65.741, std=0.28, source="", confidence=""), "top1_pct")
    '65.74 +- 0.28'
    """
    if number is None:
        return "{--}"
    decimals = COLUMNS[column].decimals
    text = f"{_value(number):.{decimals}f}"
    return text if number.std is None else f"{text} +- {number.std:.{decimals}f}"


def _aligned(numbers: Iterable[PublishedOut | MeasuredOut | None], column: str) -> str:
    """Return the siunitx column that holds ``numbers``: digits before and behind the point.

    >>> kept = PublishedOut(value=-65.741, std=0.28, source="", confidence="")
    >>> _aligned([kept, None], "top1_pct")
    'S[table-format=-2.2 +- 1.2,uncertainty-mode=separate,table-align-uncertainty=false,\
retain-zero-uncertainty]'
    """
    known = [number for number in numbers if number is not None]
    if not known:
        return "c"
    decimals = COLUMNS[column].decimals
    sign = "-" if any(_value(number) < 0 for number in known) else ""
    form = f"{sign}{_digits((_value(number) for number in known), decimals)}"
    spreads = [number.std for number in known if number.std is not None]
    if not spreads:
        return f"S[table-format={form}]"
    return f"S[table-format={form} +- {_digits(spreads, decimals)},{SPREAD}]"


def _digits(values: Iterable[float], decimals: int) -> str:
    before = max(len(f"{abs(value):.{decimals}f}".partition(".")[0]) for value in values)
    return f"{before}.{decimals}"


def _seeds(entries: Iterable[Entry]) -> str:
    """How many runs are behind a row's numbers."""
    counts = sorted({e.measured.n for e in entries if e.measured and e.measured.data})
    return "--".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "--"


def _grouped(judged: Iterable[tuple[str, str]], *, alone: bool) -> str:
    """Say each verdict once, with what it is on; ``alone`` where it is the only one.

    >>> _grouped([("weights", "match"), ("BOPs", "match"), ("top-1", "not run")], alone=True)
    'match: weights, BOPs; not run: top-1'
    >>> _grouped([("weights", "match"), ("BOPs", "match")], alone=True)
    'match'
    """
    groups: dict[str, list[str]] = {}
    for name, verdict in judged:
        groups.setdefault(verdict, []).append(name)
    if len(groups) == 1 and alone:
        return next(iter(groups))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items())


# The claims


def _claims_table(report: Report) -> str:
    head, body = claim_lines(report)
    spec = " ".join(WRAPPED.format(width=width) for width in CLAIM_WIDTHS)
    lines = [rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule"]
    lines += [_line(map(latex_text, head)), r"\midrule"]
    lines += [_line(map(latex_text, line)) for line in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
