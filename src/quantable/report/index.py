"""What a list of tables says of each: paper, method, network, data set, coverage. No torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from quantable.base.places import ROOT
from quantable.report.escape import markdown_text
from quantable.report.render import claim_cell, markdown_table
from quantable.report.reporter import Reporter
from quantable.report.schema import MeasuredOut, Report
from quantable.store.bits_file import network_name
from quantable.tables.cells import Cell
from quantable.tables.schema import BUDGETS

ARITHMETIC = "arithmetic"  # shapes and bit-widths alone
BIBLIOGRAPHY = ROOT / "docs" / "papers.bib"


@dataclass(frozen=True)
class Paper:
    """A paper as a list names it."""

    key: str
    short: str  # authors and year
    title: str
    number: str = ""  # arXiv or DOI; no link, so that a page asks nothing of a network


@dataclass(frozen=True)
class Coverage:
    """How much of a table is known: its published numbers, those we measured, those that match."""

    known: int
    measured: int
    matched: int
    off: int  # above or below
    claims: int
    hold: int
    fail: int

    @property
    def judged(self) -> int:
        """Published numbers with a verdict: ours is a match, above or below."""
        return self.matched + self.off

    @property
    def open(self) -> int:
        """Measured, and not to be compared yet: another budget, a copy of the data, few seeds."""
        return self.measured - self.judged

    @property
    def left(self) -> int:
        """Claims that nothing has judged yet."""
        return self.claims - self.hold - self.fail


@dataclass(frozen=True)
class Listed:
    """One line of the index."""

    id: str
    href: str
    title: str
    paper: Paper
    budget: str
    coverage: Coverage
    methods: tuple[str, ...]
    networks: tuple[str, ...]
    data: tuple[str, ...]
    grounds: tuple[str, ...]  # what its numbers rest on: arithmetic, budgets of runs
    images: tuple[str, ...]  # data sets of the runs there are; all that it asks for are ``data``

    @property
    def words(self) -> str:
        """What a search looks through, in small letters."""
        parts = (self.id, self.title, self.paper.short, self.paper.title, self.budget)
        return " ".join([*parts, *self.methods, *self.networks, *self.data]).lower()


def listed(reporter: Reporter, report: Report, href: str) -> Listed:
    """Return a table's line; ``href`` leads to its report."""
    cells = cells_of(reporter)
    configs = [cell.config for cell in cells]
    rows = [reporter.table.rows[cell.row] for cell in cells]
    methods = (
        ["published points"] if row.sizes is not None else methods_of(config)
        for row, config in zip(rows, configs, strict=True)
    )
    return Listed(
        id=report.table,
        href=href,
        title=report.title,
        paper=paper(report.paper),
        budget=report.budget,
        coverage=coverage(report),
        methods=_unique(name for names in methods for name in names),
        networks=_unique(network_name(config["model"]) for config in configs),
        data=_unique(str(config["data"]["title"]) for config in configs),
        grounds=_grounds(report),
        images=_unique(ours.data for ours in _measured(report) if ours.data),
    )


def cells_of(reporter: Reporter) -> list[Cell]:
    """One run behind each of the asked rows, at the report's budget."""
    seed = reporter.seeds[0]
    rows = reporter.asked.chosen_rows(reporter.table)
    names = dict.fromkeys(reporter.table.cell_of(row) for row in rows)
    return [reporter.cell(name, reporter.budget, seed) for name in names]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _measured(report: Report) -> list[MeasuredOut]:
    return [entry.measured for entry in report.rows if entry.measured]


def _grounds(report: Report) -> tuple[str, ...]:
    """Budgets of the runs behind a report, behind arithmetic where a published number is judged."""
    computed = any(e.published and e.measured and not e.measured.data for e in report.rows)
    budgets = {ours.budget for ours in _measured(report) if ours.data}
    return tuple([ARITHMETIC] * computed + [name for name in BUDGETS if name in budgets])


def coverage(report: Report) -> Coverage:
    """Count a report's published numbers, and what became of them."""
    known = [entry for entry in report.rows if entry.published]
    verdicts = [entry.verdict for entry in known]
    said = [claim.verdict for claim in report.claims]
    return Coverage(
        known=len(known),
        measured=sum(entry.measured is not None for entry in known),
        matched=verdicts.count("match"),
        off=verdicts.count("above") + verdicts.count("below"),
        claims=len(said),
        hold=said.count("holds"),
        fail=said.count("does not hold"),
    )


def methods_of(config: Mapping[str, Any]) -> list[str]:
    """Name what quantizes a run, and the search that chooses its bits where there is one.

    >>> none = {"callback": None, "looks": {"short": "float"}}
    >>> methods_of({"quantizer": none, "search": None})
    ['float']
    >>> methods_of({"quantizer": none, "search": {"looks": {"short": "EAGL"}}})
    ['EAGL']
    """
    found = [config["search"]["looks"]["short"]] if config["search"] is not None else []
    if config["quantizer"]["callback"] is None and found:
        return found
    return [*found, config["quantizer"]["looks"]["short"]]


@cache
def papers() -> dict[str, Paper]:
    """Return the papers of ``docs/papers.bib`` by their keys."""
    if not BIBLIOGRAPHY.is_file():  # installed without the documentation
        return {}
    entries = re.split(r"^@\w+\{", BIBLIOGRAPHY.read_text(encoding="utf-8"), flags=re.M)
    found = (_entry(text) for text in entries[1:])
    return {paper.key: paper for paper in found}


def _entry(text: str) -> Paper:
    key = text.partition(",")[0].strip()
    fields = {
        name: re.sub(r"[{}]", "", value)
        for name, value in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", text, flags=re.M)
    }
    authors = [name.partition(",")[0].strip() for name in fields.get("author", key).split(" and ")]
    short = authors[0] + (" et al." if len(authors) > 2 else "")
    if len(authors) == 2:
        short = " and ".join(authors)
    number = f"arXiv:{fields['eprint']}" if "eprint" in fields else ""
    if not number and "doi" in fields:
        number = f"doi:{fields['doi']}"
    return Paper(key, f"{short} {fields.get('year', '')}".strip(), fields.get("title", ""), number)


def paper(key: str) -> Paper:
    """Return a paper of ``docs/papers.bib``; one that is not there is its key."""
    return papers().get(key) or Paper(key, key, "")


def coverage_table(lines: Sequence[Listed]) -> str:
    """Return a Markdown table with a line for each table: how much of it is known."""
    head = ["table", "title", "budget", "published numbers", "measured", "match", "claims"]
    body = []
    for line in lines:
        known = line.coverage
        counts = [known.known, known.measured, known.matched]
        said = {"hold": known.hold, "do not hold": known.fail, "not judged": known.left}
        claims = ", ".join(f"{count} {word}" for word, count in said.items() if count)
        body.append([line.id, line.title, line.budget, *map(str, counts), claims or "–"])
    return _linked(markdown_table(head, body), {line.id: line.href for line in lines})


def claims_table(reports: Sequence[Report]) -> str:
    """Return a Markdown table of claims by reports: measured, verdict and seeds of each.

    Claims of one name are one line, whose words are those of the first report that has it.
    """
    said = {line.claim: line for report in reversed(reports) for line in report.claims}
    names = _unique(line.claim for report in reports for line in report.claims)
    head = ["claim", "what the paper says", *(f"{r.table}, budget {r.budget}" for r in reports)]
    body = []
    for name in names:
        own = [next((c for c in r.claims if c.claim == name), None) for r in reports]
        cells = ["–" if line is None else claim_cell(line) for line in own]
        body.append([name, said[name].text, *cells])
    return markdown_table(head, body)


def _linked(text: str, hrefs: Mapping[str, str]) -> str:
    """Make a link of the first cell of each line of a Markdown table."""
    for name, href in hrefs.items():
        cell = markdown_text(name)
        text = text.replace(f"\n| {cell} |", f"\n| [{cell}]({href}) |", 1)
    return text


def by_paper(lines: Iterable[Listed]) -> dict[Paper, list[Listed]]:
    """Tables of each paper, papers by authors and year."""
    found: dict[Paper, list[Listed]] = {}
    for line in sorted(lines, key=lambda line: (line.paper.short, line.id)):
        found.setdefault(line.paper, []).append(line)
    return found


def index_text(lines: Iterable[Listed]) -> str:
    """Every table under its paper, as Markdown."""
    parts = []
    for about, tables in by_paper(lines).items():
        parts.append(f"## {markdown_text(about.short)}")
        parts.append(markdown_text(f"{about.title}. {about.number}"))
        parts.append(coverage_table(tables))
    return "\n\n".join(parts)


def papers_table(lines: Iterable[Listed], href: str) -> str:
    """Return a Markdown table with a line for each paper: how close we are to it.

    Each leads to its heading in ``index_text``, the page at ``href``.
    """
    head = ["paper", "tables", "published values", "judged", "match", "claims that hold"]
    head += ["do not hold", "not judged", "obtained by", "images"]
    papers = by_paper(lines)
    body = []
    for about, tables in papers.items():
        known = [line.coverage for line in tables]
        counts = [len(tables), *(sum(c) for c in zip(*map(_counts, known), strict=True))]
        used = {word for line in tables for word in line.grounds}
        grounds = [word for word in (ARITHMETIC, *BUDGETS) if word in used]
        images = _unique(title for line in tables for title in line.images)
        rest = [", ".join(words) or "–" for words in (grounds, images)]
        body.append([about.short, *map(str, counts), *rest])
    links = {about.short: f"{href}#{_anchor(about.short)}" for about in papers}
    return _linked(markdown_table(head, body), links)


def _counts(known: Coverage) -> tuple[int, ...]:
    return (known.known, known.judged, known.matched, known.hold, known.fail, known.left)


def _anchor(heading: str) -> str:
    """Name that a heading has in a link to it.

    >>> _anchor("Vasquez et al. 2021")
    'vasquez-et-al-2021'
    """
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
