"""Reports as self-contained HTML: tables, claims, figures, and every run behind them. No torch.

A page holds one table, several below an index, or only the index with links to pages beside it.
Templates escape every string; data for the page's script go through JSON without angle brackets.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quantable.columns import COLUMNS
from quantable.config.signature import portable
from quantable.report import svg
from quantable.report.escape import shown, visible
from quantable.report.index import Listed, Paper, listed, paper
from quantable.report.marks import MARKS, SEARCH_MARKS, Mark, method_of_config, metric_of_config
from quantable.report.render import heading, number, origin, reasons
from quantable.report.reporter import Reporter
from quantable.report.schema import ClaimLine, Entry, MeasuredOut, PublishedOut, Report
from quantable.store.bits_file import network_name
from quantable.store.record import Epoch, Phase, Record
from quantable.tables.cells import Cell
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
COSTS = (  # of a frontier, the first two that a table has
    "compute_of_4bit",
    "bops_of_4bit",
    "pim_energy_uj",
    "energy_uj",
    "total_mb",
    "bops_g",
    "bops_inner_g",
    "weights_mib",
    "weights_mb",
)
EPOCH_COLUMNS = {  # of a history: heading and decimals
    "epoch": ("epoch", 0),
    "phase": ("phase", 0),
    "learning_rate": ("learning rate", 6),
    "train_loss": ("training loss", 4),
    "train_top1_pct": ("training top-1 %", 2),
    "val_top1_pct": ("held-out top-1 %", 2),
    "test_loss": ("test loss", 4),
    "test_top1_pct": ("test top-1 %", 2),
    "agreement_pct": ("agreement %", 2),
    "total_density": ("total AD", 4),
    "training_complexity": ("training complexity", 4),
    "seconds": ("seconds", 1),
}
MOST_EPOCHS = 80  # lines of a history; a longer one is thinned
MOST_MAPS = 4  # density maps of one table


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
    label: str
    method: str
    swatch: Markup
    fields: Sequence[Field]
    runs: Sequence[Run]
    summary: str


@dataclass(frozen=True)
class Said:
    """A claim."""

    line: ClaimLine
    claimed: Number | None
    ours: Number | None
    origin: str
    difference: str
    verdict: Verdict


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; a wide one scrolls in its own box."""

    title: str
    chart: Markup
    note: str
    wide: bool = False
    keys: Sequence[tuple[str, Markup]] = ()


@dataclass(frozen=True)
class Section:
    """Everything a page shows of one table."""

    report: Report
    listed: Listed
    paper: Paper
    differences: Sequence[str]
    columns: Sequence[Column]
    lines: Sequence[Line]
    keys: Sequence[tuple[str, Markup]]  # how methods look
    claims: Sequence[Said]
    figures: Sequence[Figure]
    protocol: Sequence[tuple[str, str]]
    notes: Sequence[str]
    data: Markup
    done: int  # runs with a record
    planned: int


def write_html(reporters: Sequence[Reporter], folder: Path, *, index: bool) -> list[Path]:
    """Write the tables' page into ``folder``; with ``index`` an index and a page for each table.

    Returns the files written. One page holds several tables below an index of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not index:
        sections = [section(reporter, f"#{slug(reporter.table.id)}") for reporter in reporters]
        name = "+".join(reporter.table.id for reporter in reporters[:3])
        if len(reporters) > 3:
            name += f"+{len(reporters) - 3}_more"
        home = (folder / "index.html").exists()
        return [_write(folder / f"{slug(name)}.html", sections, home=home)]
    lines, written = [], []
    for reporter in reporters:
        name = f"{slug(reporter.table.id)}.html"
        about = section(reporter, name)
        lines.append(about.listed)
        written.append(_write(folder / name, [about], home=True))
    return [_write(folder / "index.html", [], lines), *written]


def _write(
    path: Path, sections: Sequence[Section], lines: Sequence[Listed] = (), *, home: bool = False
) -> Path:
    """Write one page by rename."""
    if len(sections) > 1:
        lines = [about.listed for about in sections]
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            sections=sections,
            lines=lines,
            home=home,
            title=sections[0].report.table if len(sections) == 1 else "Tables",
            methods=sorted({m for line in lines for m in line.methods}),
            networks=sorted({n for line in lines for n in line.networks}),
            data=sorted({d for line in lines for d in line.data}),
            papers=dict.fromkeys(line.paper for line in lines),
            signs=SIGNS,
        )
    )
    unfinished = path.with_name(f".{path.name}.tmp")
    # What a browser would obey or hide, such as a change of direction, is shown instead.
    text = re.sub(r"[^\n -~]", lambda found: visible(found[0]), text)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


@cache
def environment() -> Environment:
    """Templates that escape every string; compiled once."""
    templates = Environment(
        loader=PackageLoader("quantable.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = templates.loader
    assert loader is not None, "set above"
    for name in ("page.css", "page.js"):  # our own files, kept as they are
        source, _, _ = loader.get_source(templates, name)
        templates.globals[name.replace(".", "_")] = Markup(source)
    return templates


def slug(words: str) -> str:
    """Words as a part of an address.

    >>> slug("ad 2/3+more")
    'ad-2-3+more'
    """
    return re.sub(r"[^\w.+-]+", "-", words)


def section(reporter: Reporter, href: str) -> Section:
    """Collect what a page shows of one table; ``href`` leads to it."""
    report = shown(reporter.report())
    about = _About(reporter, report)
    methods = dict(about.method(name) for name in about.rows)
    return Section(
        report=report,
        listed=listed(reporter, report, href),
        paper=paper(report.paper),
        differences=about.differences(),
        columns=about.columns(),
        lines=[about.line(name) for name in about.rows],
        keys=[(name, svg.swatch(mark)) for name, mark in methods.items()],
        claims=[_said(claim) for claim in report.claims],
        figures=list(about.figures()),
        protocol=about.protocol(),
        notes=[*reasons(report), *report.notes],
        data=about.data(),
        done=len(about.kept),
        planned=sum(about.trained(run) for run, _ in about.records),
    )


class _About:
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

    def run_label(self, run: str) -> str:
        """Name of a run; where rows show its phases, what comes before the phase."""
        label = self.table.rows[run].label
        phases = any(row.cell == run and row.cost_bits is None for row in self.table.rows.values())
        return label.partition(",")[0] if phases else label

    def record(self, row: str, seed: int) -> Record | None:
        """Return the record behind a row."""
        return self.records[self.table.cell_of(row), seed]

    def method(self, row: str) -> tuple[str, Mark]:
        """Name of a row's method, and how it looks."""
        about = self.table.rows[row]
        if about.sizes is not None:  # a published point: series of one source look alike
            series = about.label.partition(", target")[0]
            known = dict.fromkeys(
                r.label.partition(", target")[0] for r in self.table.rows.values() if r.sizes
            )
            return series, list(SEARCH_MARKS.values())[list(known).index(series) % 7]
        config = portable(self.cell(row, self.reporter.seeds[0]).config)
        searched = about.chosen.by if about.chosen is not None else None
        if searched is not None:
            config = portable(self.cell(searched, self.reporter.seeds[0]).config)
        if "search.rule._target_" in config:
            name = metric_of_config(config)
            return name, SEARCH_MARKS.get(name, MARKS["other"])
        name = "uniform" if about.cost_bits is not None else method_of_config(config)
        return name, MARKS[name]

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
            found.append(Column(heading(name), kind, _tolerance(tolerance), self.seeds(name)))
        return found

    def seeds(self, column: str) -> str:
        """Say over how many seeds a column's numbers are, where all trained ones agree."""
        entries = [self.entries[row, column].measured for row in self.rows]
        counts = {measured.n for measured in entries if measured and measured.data is not None}
        return f"n={counts.pop()}" if len(counts) == 1 else ""

    def line(self, row: str) -> Line:
        """One row with the runs behind it."""
        name, mark = self.method(row)
        runs = [self.run(row, seed) for seed in self.reporter.seeds]
        done = sum(run.word == "measured" for run in runs)
        return Line(
            id=slug(f"{self.table.id}--{row}"),
            label=self.table.rows[row].label,
            method=name,
            swatch=svg.swatch(mark),
            fields=[
                _field(self.entries[row, column], alike=bool(self.seeds(column)))
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
            facts += _provenance(record)
        word = "measured" if record is not None else "not run"
        if not trained and record is None:
            word = "not trained here"
        return Run(seed, cell.command if trained or record is not None else None, word, facts)

    # Protocol

    def differences(self) -> list[str]:
        """What a reader must know before the numbers: how the runs differ from the paper's."""
        report, kept = self.report, list(self.kept.values())
        found = []
        if not kept:
            return []
        if report.budget != "paper":
            words = self.table.budgets.get(report.budget, ())  # type: ignore[call-overload]
            changed = f" (with {', '.join(words)})" if words else ""
            found.append(f"Budget {report.budget}, not the paper's size{changed}.")
        copies = dict.fromkeys(record.data.title for record in kept if record.data.variant)
        found += [f"{title} is not an exact copy of the paper's images." for title in copies]
        sizes = dict.fromkeys(_subset(record) for record in kept)
        found += [words for words in sizes if words]
        seeds = {record.seed for record in kept}
        wanted = len(self.table.seeds)
        if len(seeds) < wanted or len(seeds) == 1:
            of = f"of {wanted} seeds" if wanted > 1 else "seed"
            found.append(f"{len(seeds)} {of}, so little is known about the spread.")
        if any(not record.provenance.clean for record in kept):
            found.append("Some runs were made with uncommitted changes.")
        return found

    def protocol(self) -> list[tuple[str, str]]:
        """How the numbers were obtained, name by name."""
        kept = list(self.kept.values())
        found = [("budget", self.report.budget)]
        if not kept:
            return found
        found.append(("network", _several(str(network_of(record)) for record in kept)))
        for record in {record.data.sha256: record for record in kept}.values():
            sizes = ", ".join(f"{n:,} {name}" for name, n in record.data.sizes.items())
            found.append(("data", f"{record.data.title}: {sizes}; sha256 {record.data.sha256}"))
        found += _recipe(kept)
        found.append(("seeds", _several(str(r.seed) for r in sorted(kept, key=lambda r: r.seed))))
        found.append(("versions", _several(_versions(record) for record in kept)))
        commits = (_commit(record) for record in kept)
        found.append(("commits", _several(commits)))
        found.append(("devices", _several(record.provenance.device for record in kept)))
        hours = sum(record.provenance.wall_seconds for record in kept) / 3600
        found.append(("time", f"{hours:.1f} hours for {len(kept)} runs"))
        return found

    # Figures

    def figures(self) -> Iterable[Figure]:
        """Charts of what the table's runs hold."""
        for column in [cost for cost in COSTS if cost in self.table.columns][:2]:
            yield from self._frontier(column)
        yield from self._bits()
        yield from self._widths()
        yield from self._losses()
        yield from self._densities()

    def _frontier(self, column: str) -> Iterable[Figure]:
        if "top1_pct" not in self.table.columns:
            return
        found: dict[tuple[str, float, float], svg.Spot] = {}
        keys: dict[str, Markup] = {}
        for row in self.rows:
            spot, (name, mark) = self._spot(row, column), self.method(row)
            if spot is not None:
                place = (name, spot.x, spot.y)
                label = f"{found[place].label} = {spot.label}" if place in found else spot.label
                found[place] = svg.Spot(**vars(spot) | {"label": label})
                keys[name] = svg.swatch(mark)
        spots = list(found.values())
        if len({spot.x for spot in spots}) < 2:
            return
        note = "Up and to the left is better; the dashed line joins what nothing beats."
        if any(spot.hollow for spot in spots):
            note += " Hollow: the paper's own numbers."
        if any(spot.y_std for spot in spots):
            note += " Bars: one standard deviation over seeds."
        name = f"Accuracy against {COLUMNS[column].title}"
        chart = svg.scatter(spots, heading(column), heading("top1_pct"), name)
        yield Figure(name, chart, note, keys=list(keys.items()))

    def _spot(self, row: str, column: str) -> svg.Spot | None:
        """A row's point: ours, or the paper's where we have no accuracy."""
        cost, accuracy = self.entries[row, column], self.entries[row, "top1_pct"]
        label = self.table.rows[row].label
        hollow = accuracy.measured is None
        said = accuracy.published or accuracy.hint
        y = said.value if accuracy.measured is None and said else None
        y = accuracy.measured.mean if accuracy.measured is not None else y
        x = cost.measured.mean if cost.measured is not None else None
        if x is None and hollow and cost.published is not None:
            x = cost.published.value
        if x is None or y is None:
            return None
        stds = [e.measured.std if e.measured and e.measured.std else 0.0 for e in (cost, accuracy)]
        about = "published accuracy" if hollow else origin(accuracy.measured)
        tip = f"{label}\n{_with_unit(y, 'top1_pct')}, {_with_unit(x, column)}\n{about}"
        return svg.Spot(label, tip, x, y, self.method(row)[1], stds[0], stds[1], hollow)

    def _bits(self) -> Iterable[Figure]:
        """Bit-widths by layer, a grid for each network."""
        by_layers: dict[tuple[str, ...], list[tuple[str, list[int]]]] = {}
        for vector in self.report.vectors:
            weights, acts = ([pair[i] for pair in vector.bits] for i in (0, 1))
            own = by_layers.setdefault(tuple(vector.layers), [])
            if weights == acts:
                own.append((vector.label, weights))
            else:
                own += [(f"{vector.label}, weights", weights), (f"{vector.label}, acts", acts)]
        for layers, strips in by_layers.items():
            name = "Bits per layer"
            chart = svg.strips(strips, layers, name)
            yield Figure(name, chart, "Layers in execution order; the first seed's.", wide=True)

    def _first_runs(self) -> dict[str, Record]:
        """Record of each run's first seed, by the run's row."""
        found: dict[str, Record] = {}
        for (run, _), record in self.records.items():
            if record is not None and record.history:
                found.setdefault(run, record)
        return found

    def _widths(self) -> Iterable[Figure]:
        """Mean bit-width over epochs, of runs that change it."""
        curves = []
        for run, record in self._first_runs().items():
            widths = _mean_widths(record)
            if len({width for _, width in widths}) > 1:
                label, mark = self.run_label(run), self.method(run)[1]
                tip = f"{label}: from {widths[0][1]:.2f} to {widths[-1][1]:.2f} bit"
                curves.append(svg.Curve(label, tip, widths, mark))
        if curves:
            name = "Mean weight bits over epochs"
            chart = svg.lines(curves, "epoch", "mean bits [bit]", name, from_zero=True)
            yield Figure(name, chart, "Mean over layers; the first seed of each run.")

    def _losses(self) -> Iterable[Figure]:
        curves = []
        for run, record in self._first_runs().items():
            label, mark = self.run_label(run), self.method(run)[1]
            for test in (False, True):
                points = [
                    (epoch.epoch + 1.0, loss)
                    for epoch in record.history
                    if (loss := epoch.test_loss if test else epoch.train_loss) is not None
                ]
                if len(points) > 1:
                    kind = "test loss" if test else "training loss"
                    tip = f"{label}, seed {record.seed}\n{kind}: {points[-1][1]:.3f} at the end"
                    curves.append(svg.Curve(label, tip, points, mark, dashed=test))
        if any(not curve.dashed for curve in curves):
            name = "Loss over epochs"
            chart = svg.lines(curves, "epoch", "cross-entropy [nat]", name)
            note = "Solid: training; dashed: test. The first seed of each run."
            yield Figure(name, chart, note)

    def _densities(self) -> Iterable[Figure]:
        runs = {
            run: record
            for run, record in self._first_runs().items()
            if any(epoch.by_layer("density") for epoch in record.history)
        }
        for run, record in list(runs.items())[:MOST_MAPS]:
            seen = {name for epoch in record.history for name in epoch.by_layer("density") or ()}
            names = [name for name in record.phases[0].bits if name in seen]
            grid = {
                name: [(e.by_layer("density") or {}).get(name) for e in record.history]
                for name in names
            }
            changes = {p.first_epoch: f"{_mean_bits(p.bits):.2f} bit" for p in _changes(record)}
            title = f"Activation density: {self.run_label(run)}"
            note = f"Share of non-zero activations behind each layer, seed {record.seed}; above, "
            note += "the mean bit-width of each phase."
            if len(runs) > MOST_MAPS:
                note += f" {len(runs) - MOST_MAPS} more runs: format=figures."
            yield Figure(title, svg.heat(grid, changes, title), note, wide=True)

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
        runs = {name: _history(record) for name, record in self.kept.items()}
        text = json.dumps(
            {"layers": list(layers), "rows": rows, "runs": runs}, separators=(",", ":")
        )
        for letter in "<>&":  # so that no string ends the element, or begins a comment in it
            text = text.replace(letter, f"\\u{ord(letter):04x}")
        return Markup(text)


def network_of(record: Record) -> str:
    """Name of a record's network, with its width where it is not whole."""
    name = record.config.get("model.net.name", record.config["model.name"])
    width = record.config.get("model.net.width", 1)
    return f"{name}" + (f", width {width:g}" if width != 1 else "")


def _subset(record: Record) -> str:
    """Say where a run saw fewer images than its set has."""
    cut = []
    for split, have in record.data.sizes.items():
        if record.config.get(f"data.{split}_images") is not None and split != "val":
            cut.append(f"{have:,} {split} images")
    return f"Only {' and '.join(cut)} of {record.data.title}." if cut else ""


def _provenance(record: Record) -> list[tuple[str, str]]:
    made = record.provenance
    return [
        ("record", f"records/{record.name}.json"),
        ("commit", _commit(record)),
        ("finished", made.finished.replace("T", " ").partition("+")[0].partition(".")[0] + " UTC"),
        ("device", f"{made.device}, {made.threads} threads"),
        (
            "time",
            f"{made.wall_seconds / 60:.1f} min"
            + f", resumed {made.resumed} times" * bool(made.resumed),
        ),
        ("data", f"{record.data.title}; sha256 {record.data.sha256}"),
    ]


def _commit(record: Record) -> str:
    made = record.provenance
    return made.commit[:12] + ("" if made.clean else ", with uncommitted changes")


def _recipe(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Recipes of the runs, key by key; a key whose value differs lists all of them."""
    keys = dict.fromkeys(
        key for r in records for key in r.config if key.startswith("recipe.") and key[-1] != "_"
    )
    found = []
    for key in keys:
        values = dict.fromkeys(str(r.config[key]) for r in records if r.config.get(key) is not None)
        if values:
            found.append((key, ", ".join(values)))
    return found


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {number}" for name, number in record.provenance.versions.items())


def _several(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def _tolerance(tolerance: Tolerance | None) -> str:
    """Word a tolerance.

    >>> _tolerance(Tolerance(abs=0.5)), _tolerance(Tolerance(rel=0.05)), _tolerance(None)
    ('±0.5', '±5 %', '')
    """
    if tolerance is None:
        return ""
    return (
        f"±{tolerance.abs:g}" if tolerance.abs is not None else f"±{(tolerance.rel or 0) * 100:g} %"
    )


def _with_unit(value: float, column: str) -> str:
    about = COLUMNS[column]
    unit = "" if about.unit == "1" else f" {about.unit}"
    return f"{about.title} {number(value, about.decimals)}{unit}"


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


def _field(entry: Entry, *, alike: bool) -> Field:
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


def _said(claim: ClaimLine) -> Said:
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


def _mean_bits(bits: Mapping[str, tuple[int, int]]) -> float:
    return fmean(weight for weight, _ in bits.values())


def _mean_widths(record: Record) -> list[tuple[float, float]]:
    """Mean weight bits as steps: the ends (epoch, from 0) of each stretch with the same mean."""
    means = []
    for i, epoch in enumerate(record.history):
        own = (p for p in record.phases if p.first_epoch <= i < p.first_epoch + p.epochs)
        phase = next(own, None)
        bits = epoch.bits or (phase.bits if phase is not None else None)
        means.append(_mean_bits(bits) if bits else None)
    found, start = [], 0.0
    for mean, group in groupby(means):
        end = start + len(list(group))
        if mean is not None:
            found += [(start, mean), (end, mean)]
        start = end
    return found


def _changes(record: Record) -> list[Phase]:
    """The first phase, and every one that begins with other bit-widths or channels."""
    return record.phases[:1] + [
        after
        for before, after in pairwise(record.phases)
        if before.bits != after.bits or before.channels != after.channels
    ]


def _history(record: Record) -> dict[str, Any]:
    """A run's history, line by line; a long one keeps each k-th epoch and the last."""
    step = -(-len(record.history) // MOST_EPOCHS) or 1
    last = len(record.history) - 1
    kept = [e for i, e in enumerate(record.history) if i % step == 0 or i == last]
    columns = [name for name in EPOCH_COLUMNS if any(_of(e, name) is not None for e in kept)]
    return {
        "every": step,
        "head": [EPOCH_COLUMNS[name][0] for name in columns],
        "decimals": [EPOCH_COLUMNS[name][1] for name in columns],
        "lines": [[_short(epoch, name) for name in columns] for epoch in kept],
    }


def _of(epoch: Epoch, name: str) -> float | None:
    value: float | None = getattr(epoch, name, epoch.number(name))
    return value


def _short(epoch: Epoch, name: str) -> float | int | None:
    value = _of(epoch, name)
    if value is None:
        return None
    decimals = EPOCH_COLUMNS[name][1]
    return round(value, decimals) if decimals else int(value) + (name == "epoch")
