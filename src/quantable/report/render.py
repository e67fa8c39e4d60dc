"""One report, several faces: terminal, Markdown, CSV, JSON, all from the same entries."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from math import isfinite

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from quantable.columns import COLUMNS
from quantable.report.escape import cell_text, markdown_text, shown, visible
from quantable.report.schema import ClaimLine, Entry, MeasuredOut, PublishedOut, Report, Vector
from quantable.report.verdict import COMPUTED, Measured

COLOURS = {  # the first word that occurs decides, so that the worst verdict of a row shows
    "does not hold": "red",
    "above": "yellow",
    "below": "yellow",
    "match": "green",
    "holds": "green",
}


TEXT = {  # columns of words
    *("published or claimed", "verdict", "what the paper says", "seeds, data, budget"),
    *("number", "statement", "batch norms"),
}


def number(value: float, decimals: int) -> str:
    """Fixed decimals, thousands in groups, a true minus.

    >>> number(-1234.5, 1)
    '−1,234.5'
    """
    return f"{value:,.{decimals}f}".replace("-", "−")


def measured_text(measured: MeasuredOut | None, decimals: int) -> str:
    """Mean, standard deviation and number of seeds; a dash where nothing was measured.

    >>> ours = MeasuredOut(mean=67.4, std=0.1, n=3, budget="cpu", data="CIFAR-10", records=[])
    >>> measured_text(ours, 1)
    '67.4 ± 0.1 (n=3)'
    """
    if measured is None:
        return "–"
    text = number(measured.mean, decimals)
    if measured.std is not None:
        text += f" ± {number(measured.std, decimals)} (n={measured.n})"
    return text


def heading(column: str) -> str:
    """Title of a column with its unit."""
    about = COLUMNS[column]
    return f"{about.title} [{about.unit}]" if about.unit != "1" else about.title


def by_row(report: Report) -> dict[str, list[Entry]]:
    """Entries of each row, in the table's order."""
    rows: dict[str, list[Entry]] = {}
    for entry in report.rows:
        rows.setdefault(entry.row, []).append(entry)
    return rows


def _references(entries: Iterable[Entry], claims: Iterable[ClaimLine]) -> tuple[str, list[str]]:
    """Say what the paper says about one row, and how we judge it."""
    entries, claims = list(entries), list(claims)
    said = []
    for entry in entries:
        if entry.published:
            said.append(_said(entry.column, entry.published))
        elif entry.hint and entry.hint.confidence == "doubtful":
            said.append(f"{_said(entry.column, entry.hint)} (doubtful)")
    said += [f"{c.claim} {_claimed(c)}" if c.claimed else c.claim for c in claims]
    single = sum(entry.published is not None for entry in entries) <= 1
    words = []
    for name, verdict in verdicts(entries, claims):
        if any(claim.claim == name for claim in claims):
            words.append(f"{name} {verdict}")
        else:
            words.append(verdict if single else f"{name}: {verdict}")
    return "; ".join(said) or "none", words


def verdicts(entries: Iterable[Entry], claims: Iterable[ClaimLine]) -> list[tuple[str, str]]:
    """Verdicts on one row's numbers and claims, each with its column's title or claim's name.

    Where there is nothing to judge, one of them says so, and has no name.
    """
    entries = list(entries)
    judged = [(COLUMNS[e.column].title, e.verdict) for e in entries if e.published]
    judged += [(claim.claim, claim.verdict) for claim in claims]
    if judged:
        return judged
    ran = any(COLUMNS[entry.column].trained and entry.measured for entry in entries)
    trained = any(COLUMNS[entry.column].trained for entry in entries)
    return [("", "no published value" if ran or not trained else "not run")]


def _said(column: str, published: PublishedOut) -> str:
    """Say a published number with its unit, and its spread where it has one.

    >>> study = PublishedOut(value=65.741, source="a", confidence="published", std=0.288, n=20)
    >>> _said("top1_pct", study)
    'top-1 65.74 ± 0.29 (n=20) %'
    """
    place = COLUMNS[column]
    text = number(published.value, place.decimals)
    if published.std is not None:
        text += f" ± {number(published.std, place.decimals)}"
    if published.n is not None:
        text += f" (n={published.n})"
    return f"{place.title} {text} {place.unit}"


def _grid(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and body of the main table, as text."""
    rows = by_row(report)
    columns = list(dict.fromkeys(entry.column for entry in report.rows))
    norms = {name: batch_norms(entries) for name, entries in rows.items()}
    said_of_norms = ["batch norms"] if any(norms.values()) else []
    keys = word_keys(report)
    judged = [] if keys else ["published or claimed", "verdict"]  # nobody has published a sweep
    head = [*(keys or ["row"]), *map(heading, columns), *said_of_norms, *judged]
    body = []
    for name, entries in rows.items():
        values = [measured_text(e.measured, COLUMNS[e.column].decimals) for e in entries]
        claims = [claim for claim in report.claims if claim.row == name]
        values += [norms[name] or "–" for _ in said_of_norms]
        said, words = _references(entries, claims)
        names = [report.words[name][key] for key in keys] or [entries[0].label]
        body.append([*names, *values, *([said, "; ".join(words)] if judged else [])])
    return head, body


def word_keys(report: Report) -> list[str]:
    """Keys of the words that tell the rows of a sweep apart."""
    return list(dict.fromkeys(key for said in report.words.values() for key in said))


def batch_norms(entries: Iterable[Entry]) -> str | None:
    """What became of the batch norms behind a row's numbers, where nothing was trained."""
    said = (e.measured.batch_norms for e in entries if e.measured is not None)
    return next((words for words in said if words is not None), None)


def _unit(claim: ClaimLine) -> str:
    return "" if claim.unit == "1" else claim.unit


def _claimed(claim: ClaimLine) -> str:
    return "–" if claim.claimed is None else f"{claim.claimed:g} {_unit(claim)}".strip()


def _of_claim(claim: ClaimLine) -> str:
    text = measured_text(claim.measured, COLUMNS[claim.column].decimals)
    return f"{text} {_unit(claim)}".strip() if claim.measured else text


def _verdict(claim: ClaimLine) -> str:
    return f"{claim.verdict} ({claim.reason})" if claim.reason else claim.verdict


def claim_cell(claim: ClaimLine) -> str:
    """A claim's number, its seeds and its verdict, as text of one cell."""
    return f"{_of_claim(claim)}: {_verdict(claim)}" if claim.measured else _verdict(claim)


def claim_lines(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and body of the table of claims, as text."""
    head = ["claim", "what the paper says", "claimed", "measured"]
    head += ["seeds, data, budget", "holds when", "verdict"]
    body = []
    for claim in report.claims:
        body.append(
            [
                *(claim.claim, claim.text, _claimed(claim), _of_claim(claim)),
                *(origin(claim.measured), claim.bound or "–", _verdict(claim)),
            ]
        )
    return head, body


def origin(measured: MeasuredOut | Measured | None) -> str:
    """What a number was obtained with; one seed has no standard deviation.

    >>> ours = MeasuredOut(mean=67.4, std=None, n=1, budget="cpu", data="CIFAR-10", records=[])
    >>> origin(ours)
    'n=1, so no std; CIFAR-10; budget cpu'
    """
    if measured is None:
        return "–"
    if measured.data is None:
        return "arithmetic" + ("" if measured.budget == COMPUTED else f"; budget {measured.budget}")
    n = "n=1, so no std" if measured.n == 1 else f"n={measured.n}"
    text = f"{n}; {measured.data}; budget {measured.budget}"
    if isinstance(measured, MeasuredOut) and measured.batch_norms:
        text += f"; batch norms {measured.batch_norms}"
    return text


VECTORS = "Bits per layer, in execution order"


def vector_text(vector: Vector) -> str:
    """One row's bit-widths in one line, and its channels where some were pruned.

    >>> about = {"row": "ad", "label": "AD", "seed": 0, "layers": ["a", "b"], "channels": None}
    >>> vector_text(Vector(bits=[(16, 16), (9, 9)], **about))
    'AD, seed 0: 16 9'
    >>> vector_text(Vector(bits=[(16, 16), (4, 8)], **about | {"channels": [64, None]}))
    'AD, seed 0: weights 16 4; activations 16 8; channels 64 –'
    """
    weights, acts = ([str(pair[i]) for pair in vector.bits] for i in (0, 1))
    if weights == acts:
        parts = [" ".join(weights)]
    else:
        parts = [f"weights {' '.join(weights)}", f"activations {' '.join(acts)}"]
    if vector.channels is not None:
        parts.append("channels " + " ".join("–" if c is None else str(c) for c in vector.channels))
    seed = "" if vector.seed is None else f", seed {vector.seed}"
    return f"{vector.label}{seed}: {'; '.join(parts)}"


def protocol(report: Report) -> str:
    """One line: under which budget and on which data the numbers were obtained."""
    seen = [entry.measured for entry in report.rows if entry.measured]
    data = sorted({m.data for m in seen if m.data}) or ["no data needed or none run"]
    seeds = sorted({m.n for m in seen if m.data})
    words = f"budget {report.budget}; data {', '.join(data)}"
    if seeds:
        counts = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
        words += f"; {counts} seed{'s' if seeds[-1] > 1 else ''}"
    return words


MOST_NAMED = 4  # rows that a reason lists


def reasons(report: Report) -> list[str]:
    """Say once for each reason in which rows a number is missing or cannot be judged."""
    found: dict[str, dict[str, None]] = {}  # reason -> labels, in order
    for entry in report.rows:
        if entry.reason and (entry.measured is None or entry.published):
            found.setdefault(entry.reason, {})[entry.label] = None
    rows = {entry.label for entry in report.rows}
    return [f"{_rows(list(labels), len(rows))}: {reason}." for reason, labels in found.items()]


def _rows(labels: Sequence[str], of: int) -> str:
    """Name rows; of many the first and the last.

    >>> _rows(["a", "b"], 3), _rows(["a", "b"], 2)
    ('a; b', 'every row')
    >>> _rows(["EAGL, 90 %", "b", "c", "d", "random, 60 %"], 9)
    '5 of 9 rows, from EAGL, 90 % to random, 60 %'
    """
    if 1 < of == len(labels):
        return "every row"
    if len(labels) <= MOST_NAMED:
        return "; ".join(labels)
    return f"{len(labels)} of {of} rows, from {labels[0]} to {labels[-1]}"


def console() -> tuple[Console, io.StringIO]:
    """Return a console as wide and as colourful as the user's, and where it writes."""
    out, screen = io.StringIO(), Console()
    width = screen.width if screen.is_terminal else 200
    return Console(file=out, width=width, force_terminal=screen.is_terminal, emoji=False), out


def ruled(title: str, head: Sequence[str], body: Iterable[Sequence[str]], names: int = 1) -> Grid:
    """Table for a terminal; the first ``names`` columns name a row, the last one colours it."""
    grid = Grid(title=escape(title), title_justify="left", title_style="bold")
    for i, name in enumerate(head):
        words = i < names or name in TEXT
        grid.add_column(escape(name), justify="left" if words else "right", overflow="fold")
    for line in body:
        colour = next((c for word, c in COLOURS.items() if word in line[-1]), None)
        *cells, verdict = map(escape, line)
        grid.add_row(*cells, f"[{colour}]{verdict}[/]" if colour else verdict)
    return grid


def terminal(report: Report) -> str:
    """Tables for a terminal, as text with colour codes where it has colours."""
    report = shown(report)
    screen, out = console()
    for title, (head, body) in [
        (f"{report.table}: {report.title}", _grid(report)),
        ("Claims", claim_lines(report)),
    ]:
        if body:
            screen.print(ruled(title, head, body, len(word_keys(report)) or 1))
    if report.vectors:
        screen.print(f"{VECTORS}:", highlight=False, markup=False)
    for vector in report.vectors:
        screen.print(f"  {vector_text(vector)}", highlight=False, markup=False)
    screen.print(f"Protocol: {protocol(report)}.", highlight=False, markup=False)
    for note in [*reasons(report), *report.notes]:
        screen.print(f"- {note}", highlight=False, markup=False)
    return out.getvalue().rstrip("\n")


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Table of Markdown; the cells of its body are text."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "---|" * len(head)
    escaped = ([markdown_text(cell) for cell in cells] for cells in body)
    return "\n".join([line(head), rule, *map(line, escaped)])


def main_table(report: Report) -> str:
    """Write the table of rows alone, as Markdown."""
    return markdown_table(*_grid(shown(report)))


def markdown(report: Report) -> str:
    """Write the same tables as Markdown."""
    report = shown(report)
    parts = [
        f"## {markdown_text(f'{report.table}: {report.title}')}",
        markdown_text(f"{report.source}. Protocol: {protocol(report)}."),
    ]
    parts.append(markdown_table(*_grid(report)))
    if report.claims:
        parts.append(markdown_table(*claim_lines(report)))
    if report.vectors:
        parts.append(f"{VECTORS}:")
        lines = (markdown_text(vector_text(vector)) for vector in report.vectors)
        parts.append("\n".join(f"- {line}" for line in lines))
    notes = [*reasons(report), *report.notes]
    if notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in notes))
    return "\n\n".join(parts)


def comma_separated(report: Report, separator: str = ",") -> str:
    """One line per row and column, nested fields flattened; text is never a formula.

    A sweep has a column for each word too. With ``separator=";"`` decimals have commas, as
    spreadsheets read them wherever a comma is the decimal sign.
    """
    report, out, keys = shown(report), io.StringIO(), word_keys(report)
    fields = ["row", *keys, "column", "unit"]
    fields += [f"published_{key}" for key in PublishedOut.model_fields]
    fields += [f"measured_{key}" for key in ("mean", "std", "n", "budget", "data", "batch_norms")]
    fields += ["verdict", "reason"]
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow([cell_text(field, separator) for field in fields])
    for entry in report.rows:
        line: dict[str, object] = entry.model_dump(
            include={"row", "column", "unit", "verdict", "reason"}
        )
        for part in ("published", "measured"):
            nested = getattr(entry, part)
            line |= {f"{part}_{k}": v for k, v in (nested.model_dump() if nested else {}).items()}
        line |= {key: as_number(report.words[entry.row][key]) for key in keys}
        writer.writerow([cell_text(line.get(field), separator) for field in fields])
    return out.getvalue().rstrip("\n")


def semicolons(report: Report) -> str:
    """Write the same for spreadsheets whose decimal sign is the comma."""
    return comma_separated(report, ";")


def as_number(word: str) -> float | str:
    """A word that is a number as such: a spreadsheet sorts it by size.

    >>> as_number("0.10"), as_number("4"), as_number("lsq"), as_number("nan")
    (0.1, 4, 'lsq', 'nan')
    """
    for kind in (int, float):
        try:
            value = kind(word)
        except ValueError:
            continue
        if isfinite(value):
            return value
    return word


def as_json(found: BaseModel) -> str:
    """Write all of a `Report`, or another model, as one JSON document: its class is the schema."""
    written = found.model_dump_json(indent=1)
    # Also what JSON allows in strings but a terminal obeys; the document means the same.
    return re.sub(
        r"[^\n -~]", lambda c: c[0] if visible(c[0]) == c[0] else json.dumps(c[0])[1:-1], written
    )


FORMATS: dict[str, Callable[[Report], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "csv_semicolon": semicolons,
    "json": as_json,
}
