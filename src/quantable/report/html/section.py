"""One table on a page: its rows with the runs behind them, claims, figures, protocol, notes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from markupsafe import Markup

from quantable.columns import COLUMNS
from quantable.report.draw_page import charts
from quantable.report.escape import shown, slug
from quantable.report.history import declared
from quantable.report.html.data import history, script
from quantable.report.html.fields import Column, Field, Number, Said, field, said, tolerance_text
from quantable.report.html.protocol import differences, protocol, provenance
from quantable.report.index import Listed, Paper, listed, paper
from quantable.report.kinds import described
from quantable.report.looks import looks_of
from quantable.report.render import batch_norms, heading, reasons, word_keys
from quantable.report.reporter import Reporter
from quantable.report.schema import Report
from quantable.report.shapes import Bars, Grid, Plot, Shape
from quantable.report.svg import swatch
from quantable.store.bits_file import network_name
from quantable.store.record import Record
from quantable.tables.cells import Cell

MOST_OF_A_KIND = 3  # figures of runs that one entry of a table stands for


@dataclass(frozen=True)
class Run:
    """What a row's number rests on, for one seed."""

    seed: int
    command: str | None
    word: str
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    id: str
    row: str
    label: str
    norms: str | None
    swatch: Markup
    fields: Sequence[Field]
    runs: Sequence[Run]
    summary: str


@dataclass(frozen=True)
class Drawn:
    """Charts with their caption; a wide one ``scrolls`` in its own box."""

    title: str
    charts: Sequence[Markup]
    note: str
    scrolls: bool = False
    keys: Sequence[tuple[str, Markup]] = ()


@dataclass(frozen=True)
class Section:
    """Everything a page shows of one table."""

    report: Report
    listed: Listed
    paper: Paper
    differences: Sequence[str]
    keys_of_words: Sequence[str]  # of a sweep
    ems: int  # width of its longest row on paper, in letters' sizes
    broad: bool  # printed on a page's long side
    columns: Sequence[Column]
    lines: Sequence[Line]
    keys: Sequence[tuple[str, Markup]]  # how methods look
    claims: Sequence[Said]
    figures: Sequence[Drawn]
    protocol: Sequence[tuple[str, str]]
    notes: Sequence[str]
    data: Markup
    done: int  # runs with a record
    planned: int


def section(reporter: Reporter, href: str) -> Section:
    """Collect what a page shows of one table; ``href`` leads to it."""
    report = shown(reporter.report())
    about = _Behind(reporter, report)
    looks = [looks_of(reporter, name) for name in about.rows]
    columns, lines = about.columns(), [about.line(name) for name in about.rows]
    return Section(
        report=report,
        listed=listed(reporter, report, href),
        paper=paper(report.paper),
        differences=differences(reporter.table, report.budget, list(about.kept.values())),
        keys_of_words=word_keys(report),
        columns=columns,
        lines=lines,
        broad=(width := ems(columns, lines, word_keys(report), report.words)) > BROAD,
        ems=width,
        keys=[(name, swatch(own)) for name, own in {o.short: o for o in looks}.items()],
        claims=[said(claim) for claim in report.claims],
        figures=list(figures(reporter)),
        protocol=protocol(report.budget, list(about.kept.values())),
        notes=[*reasons(report), *report.notes],
        data=about.data(),
        done=len(about.kept),
        planned=sum(about.trained(run) for run, _ in about.records),
    )


LETTER = 0.66  # width of a letter, in its size: figures and bold letters of sans-serif fonts
PADDING = 0.8  # of a cell
BROAD = 70  # ems from which on a table is printed on a page's long side


def ems(
    columns: Sequence[Column],
    lines: Sequence[Line],
    keys: Sequence[str],
    words: Mapping[str, Mapping[str, str]],
) -> int:
    """Width that the table of numbers needs where it is broken between words, in letters' sizes."""
    head = ["row", *keys]
    body = [[line.label, *(words[line.row][key] for key in keys)] for line in lines]
    for column in columns:
        both = ["published", "ours", "difference", "verdict"]
        head += both if column.kind == "both" else [column.heading]
    for cells, line in zip(body, lines, strict=True):
        for column, one in zip(columns, line.fields, strict=True):
            ours, said = _text(one.ours), _text(one.published)
            verdict = one.verdict.word if one.verdict is not None else ""
            if column.kind == "both":
                cells += [said, ours, one.difference, verdict]
            else:
                cells.append(said if column.kind == "published" else ours)
    longest = [
        max(len(w) for text in x for w in text.split()) for x in zip(head, *body, strict=True)
    ]
    return ceil(sum(LETTER * letters + PADDING for letters in longest))


def _text(number: Number | None) -> str:
    return "–" if number is None else f"{number.text} ±{number.std} {number.n}"


class _Behind:
    """Looks up what stands behind a table's rows, each run once."""

    def __init__(self, reporter: Reporter, report: Report) -> None:
        self.reporter = reporter
        self.report = report
        self.table = reporter.table
        self.rows = reporter.asked.chosen_rows(reporter.table)
        self.entries = {(entry.row, entry.column): entry for entry in report.rows}
        self.records: dict[tuple[str, int], Record | None] = {}  # by run and seed
        for row in self.rows:
            facts = reporter.row_facts(row).by_seed
            for seed in reporter.seeds:
                key = (self.table.cell_of(row), seed)
                if key not in self.records:
                    own = facts.get(seed)
                    cell = self.cell(row, seed)
                    self.records[key] = own.record if own else reporter.find(cell)
        self.kept = {record.name: record for record in self.records.values() if record}

    def cell(self, row: str, seed: int) -> Cell:
        """Return the run behind a row."""
        return self.reporter.cell(row, self.reporter.budget, seed)

    def record(self, row: str, seed: int) -> Record | None:
        """Return the record behind a row."""
        return self.records[self.table.cell_of(row), seed]

    # The table

    def columns(self) -> list[Column]:
        """Columns in the table's order."""
        found = []
        for name, tolerance in self.table.columns.items():
            entries = [self.entries[row, name] for row in self.rows]
            kind = "both" if any(e.published or e.hint for e in entries) else "ours"
            runs = any(self.trained(row) for row in self.rows) if COLUMNS[name].trained else False
            if kind == "both" and not runs and all(e.measured is None for e in entries):
                kind = "published"
            found.append(Column(heading(name), kind, tolerance_text(tolerance), self.seeds(name)))
        return found

    def seeds(self, column: str) -> str:
        """Say over how many seeds a column's numbers are, where all trained ones agree."""
        entries = [self.entries[row, column].measured for row in self.rows]
        counts = {measured.n for measured in entries if measured and measured.data is not None}
        return f"n={counts.pop()}" if len(counts) == 1 else ""

    def line(self, row: str) -> Line:
        """One row with the runs behind it."""
        looks = looks_of(self.reporter, row)
        runs = [self.run(row, seed) for seed in self.reporter.seeds]
        done = sum(run.word == "measured" for run in runs)
        return Line(
            id=slug(f"{self.table.id}--{row}"),
            row=row,
            label=self.table.rows[row].label,
            norms=batch_norms(self.entries[row, column] for column in self.table.columns),
            swatch=swatch(looks),
            fields=[
                field(self.entries[row, column], alike=bool(self.seeds(column)))
                for column in self.table.columns
            ],
            runs=runs,
            summary=f"{done} of {len(runs)} seeds measured" if len(runs) > 1 else runs[0].word,
        )

    def trained(self, row: str) -> bool:
        """Whether the run behind a row is one that this table trains."""
        return self.table.rows[self.table.cell_of(row)].train

    def run(self, row: str, seed: int) -> Run:
        """The run behind a row for one seed."""
        cell, record = self.cell(row, seed), self.record(row, seed)
        trained = self.trained(row)
        facts = [("run", self.table.cell_of(row)), ("signature", cell.signature)]
        if cell.search is not None:
            facts[1] = ("after search", cell.search)
        if record is not None:
            facts += provenance(record)
        word = "measured" if record is not None else "not run"
        if not trained and record is None:
            word = "not trained here"
        return Run(seed, cell.command if trained or record is not None else None, word, facts)

    # What opens on click

    def data(self) -> Markup:
        """Histories and bit-widths, as JSON that a script element may hold."""
        layers: dict[tuple[str, ...], int] = {}
        rows = {}
        for row in self.rows:
            found = []
            facts = self.reporter.row_facts(row).by_seed
            for seed in self.reporter.seeds:
                record, own = self.record(row, seed), facts.get(seed)
                one: dict[str, Any] = {"seed": seed, "run": record.name if record else None}
                if own is not None and own.bits is not None:
                    names = tuple(own.bits)
                    one["layers"] = layers.setdefault(names, len(layers))
                    one["bits"] = [[width.weight, width.act] for width in own.bits.values()]
                    one["network"] = network_name(self.cell(row, seed).config["model"])
                    one["source"] = f"{self.table.id}, row {row}, seed {seed}"
                found.append(one)
            rows[slug(f"{self.table.id}--{row}")] = found
        histories = {
            record.name: history(record, declared(self.reporter, run))
            for (run, _), record in self.records.items()
            if record is not None
        }
        return script({"layers": list(layers), "rows": rows, "runs": histories})


def figures(reporter: Reporter) -> Iterable[Drawn]:
    """The table's figures; of many that one entry stands for, the first."""
    counts: dict[str, list[Drawn]] = {}
    for name, _, shape in described(reporter):
        if not isinstance(shape, str):
            counts.setdefault(name, []).append(_figure(shape))
    for own in counts.values():
        more = len(own) - MOST_OF_A_KIND
        for i, figure in enumerate(own[:MOST_OF_A_KIND]):
            if more > 0 and i == MOST_OF_A_KIND - 1:
                yield replace(figure, note=f"{figure.note} {more} more like it: format=figures.")
            else:
                yield figure


def _figure(shape: Shape) -> Drawn:
    keys: list[tuple[str, Markup]] = []
    if isinstance(shape, Plot):
        keys = [(name, swatch(one.looks)) for name, one in shape.keys.items()]
    scrolls = isinstance(shape, Grid | Bars)
    return Drawn(shape.title, charts(shape), shape.note, scrolls, keys)
