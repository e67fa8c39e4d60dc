"""Fill the result tables of README.md and of the methods' cards from reproduce/evidence. No torch.

A table stands between two markers and belongs to this script; everything else is left as it is:

    <!-- results: <table> [budget=<budget>] [rows=<row>,...] [seed=<n>,...] -->
    <!-- end -->

is the report of a table; the words mean what they mean on the command line of
``reproduce/report.py``. ``<!-- coverage: <table> ... -->`` is a line for each table: how many of
its published numbers are measured, and match. ``<!-- picture: <table> <figure> [<options>] -->`` is
a figure of ``format=figures``, kept in docs/pictures.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.cli import EVIDENCE, entry, parse
from quantable.report.index import Listed, coverage_table, listed
from quantable.report.model import Reporter
from quantable.report.render import markdown
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))]
OPTIONS = ("budget", "rows", "seed")
KINDS = ("results", "coverage", "picture")
PICTURES = ROOT / "docs" / "pictures"
END = "<!-- end -->"
MARKER = re.compile(rf"^<!-- (?:{'|'.join(KINDS)}):", re.MULTILINE)
BLOCK = re.compile(
    rf"^<!-- ({'|'.join(KINDS)}): *(.*?) *-->\n(.*?)^{END}$", re.DOTALL | re.MULTILINE
)
HELP = """
Fill the result tables of README.md and docs/methods from reproduce/evidence.

  python tools/make_readme.py            write them
  python tools/make_readme.py --check    write nothing; exit status 1 where they differ
"""


def fill(text: str, render: Mapping[str, Callable[[str], str]], where: str) -> str:
    """``text`` with what ``render`` makes of each marker's words below that marker."""
    blocks = [match.group() for match in BLOCK.finditer(text)]
    nested = any(len(MARKER.findall(block)) > 1 for block in blocks)
    if nested or not len(blocks) == len(MARKER.findall(text)) == text.count(END):
        raise UserError(f"{where}: every '<!-- results: ... -->' needs its own '{END}' below it")
    return BLOCK.sub(
        lambda m: f"<!-- {m[1]}: {m[2]} -->\n\n{render[m[1]](m[2])}\n\n{END}",
        text,
    )


def results(words: str) -> str:
    """One marker's table as Markdown, from the evidence alone."""
    name, *options = words.split() or [""]
    report = _reporter(name, options).report()
    return f"#{markdown(report)}"  # one heading level deeper than a report of its own


def _reporter(table: str, options: Sequence[str]) -> Reporter:
    for option in options:
        key = option.partition("=")[0]
        if key not in OPTIONS:
            raise unknown("option", key, OPTIONS, f"marker of {table}")
    return Reporter(load_table(table), parse(options).asked, [Store(EVIDENCE)])


def picture(words: str, drawn: dict[Path, str]) -> str:
    """A link to one figure, which is put into ``drawn``."""
    table, figure, *options = [*words.split(), "", ""]
    reporter = _reporter(table, [option for option in options if option])
    with TemporaryDirectory() as folder:
        # matplotlib only where something is drawn
        from quantable.report.figures import write_figures

        lines = write_figures(reporter, Path(folder), kinds=["svg"])
        made = [path.stem for path in Path(folder).iterdir()]
        if figure not in made:
            raise unknown("figure", figure, made or lines, f"picture: {words}")
        path = PICTURES / f"{table}_{figure}.svg"
        drawn[path] = (Path(folder) / f"{figure}.svg").read_text()
    return f"![{figure} of {table}]({path.relative_to(ROOT).as_posix()})"


def coverage(words: str) -> str:
    """What the evidence says of some tables, a line for each."""
    return coverage_table([_listed(name) for name in words.split()])


@cache
def _listed(name: str) -> Listed:
    reporter = Reporter(load_table(name), Asked(), [Store(EVIDENCE)])
    return listed(reporter, reporter.report(), "")


def _keep(path: Path, text: str, *, write: bool) -> list[str]:
    """Write a file unless it is as it was; return its name if it was not."""
    if path.exists() and path.read_text() == text:
        return []
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return [path.name]


def main(words: Sequence[str]) -> int:
    """Write the pages, or compare them."""
    for word in words:
        if word != "--check":
            raise unknown("option", word, ["--check"], "command line")
    drawn: dict[Path, str] = {}
    render = {
        "results": results,
        "coverage": coverage,
        "picture": lambda marker: picture(marker, drawn),
    }
    differ = []
    for page in PAGES:
        made = fill(page.read_text(), render, page.name)
        differ += _keep(page, made, write=not words)
    for path, made in drawn.items():
        differ += _keep(path, made, write=not words)
    if words and differ:
        names = ", ".join(differ)
        print(f"{names}: other than reproduce/evidence: run `make report`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    entry(main, HELP)
