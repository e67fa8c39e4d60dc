"""Sphinx configuration, and the pages made of tables, records and papers.bib when it is built."""

import logging
from pathlib import Path

from sphinx.application import Sphinx

from quantable.base.places import ROOT
from quantable.report.escape import markdown_text
from quantable.report.figures import write_figures
from quantable.report.index import Listed, coverage_table, listed, papers
from quantable.report.model import Reporter
from quantable.report.render import markdown
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table, table_names

project = "quantable"
author = "the authors of quantable"
copyright = "the authors of quantable, Apache-2.0"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "quantable"
html_copy_source = False

logging.getLogger("fontTools").setLevel(logging.WARNING)  # Sphinx prints what others log
EVIDENCE = ROOT / "reproduce" / "evidence"
GENERATED = Path(__file__).parent / "generated"


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for pages."""
    app.connect("builder-inited", lambda _: write_pages(GENERATED))


def write_pages(folder: Path) -> None:
    """Write a page for each table, their index and the bibliography below ``folder``."""
    tables = folder / "tables"
    lines = []
    for name in table_names():
        line, page = table_page(name, tables / name)
        write(tables / f"{name}.md", page)
        lines.append(line)
    index = [
        "# Tables",
        "Made from `conf/table` and the records in `reproduce/evidence`.",
        with_links(coverage_table(lines), lines),
        ":::{toctree}\n:hidden:\n\n" + "\n".join(table_names()) + "\n:::",
    ]
    write(tables / "index.md", "\n\n".join(index))
    write(folder / "papers.md", bibliography())


def table_page(name: str, figures: Path) -> tuple[Listed, str]:
    """A table's line in the index, and its page; its figures go to a folder of their own."""
    reporter = Reporter(load_table(name), Asked(), [Store(EVIDENCE)])
    report = reporter.report()
    line = listed(reporter, report, f"{name}.md")
    text = markdown(report)[1:]  # the heading one level up
    if any(entry.measured and entry.measured.data for entry in report.rows):
        lines = write_figures(reporter, figures, kinds=["svg"])
        drawn = [line for line in lines if line.endswith(".svg")]
        pictures = [f"![{path.stem}]({name}/{path.name})" for path in map(Path, drawn)]
        text = "\n\n".join([text, "## Figures", *pictures])
    return line, text


def with_links(text: str, lines: list[Listed]) -> str:
    """The list of tables, each leading to its page."""
    for line in lines:
        text = text.replace(f"| {line.id} |", f"| [{line.id}]({line.href}) |", 1)
    return text


def bibliography() -> str:
    """The papers of ``papers.bib`` as a list."""
    found = sorted(papers().values(), key=lambda paper: paper.short)
    lines = []
    for paper in found:
        words = f"{paper.short}: {paper.title}. {paper.number}"
        lines.append(f"- {markdown_text(words)} (`{paper.key}`)")
    return "\n".join(["# Papers", "", *lines])


def write(path: Path, text: str) -> None:
    """Write a page unless it is as it was, so that Sphinx reads only what changed."""
    if not path.exists() or path.read_text() != f"{text}\n":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
