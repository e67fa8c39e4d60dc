"""Sphinx configuration, and what the pages get when they are built: figures, a bibliography."""

import logging
from pathlib import Path

from sphinx.application import Sphinx

from quantable.base.places import ROOT
from quantable.report.draw_paper import write_figures
from quantable.report.escape import markdown_text
from quantable.report.index import papers
from quantable.report.reporter import Reporter
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
TABLES = ":::{toctree}\n:hidden:\n:glob:\n\n*\n:::"


def setup(app: Sphinx) -> None:
    """Write what is generated before Sphinx looks for pages; add to the pages of docs/results."""
    app.connect("builder-inited", lambda _: write_generated(GENERATED))
    app.connect("source-read", lambda _, page, source: add_to(page, source))


def write_generated(folder: Path) -> None:
    """Write the figures of each table, in a folder of its own, and the bibliography."""
    for name in table_names():
        reporter = Reporter(load_table(name), Asked(), [Store(EVIDENCE)])
        if any(entry.measured and entry.measured.data for entry in reporter.report().rows):
            write_figures(reporter, folder / name, kinds=["svg"])
    write(folder / "papers.md", bibliography())


def add_to(page: str, source: list[str]) -> None:
    """Give a table's page all of its figures that it does not show yet, and the index its pages."""
    folder, _, name = page.rpartition("/")
    if folder != "results":
        return
    if name == "index":
        source[0] += f"\n{TABLES}\n"
    drawn = [path.name for path in sorted((GENERATED / name).glob("*.svg"))]
    more = [file for file in drawn if f"{name}_{file}" not in source[0]]
    if more:
        pictures = [f"![{Path(file).stem}](../generated/{name}/{file})" for file in more]
        source[0] += "\n\n".join(["\n## Figures", *pictures])


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
