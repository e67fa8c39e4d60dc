"""Fill docs/results, README.md and the methods' cards from reproduce/evidence. No torch.

What is generated stands between two markers, and everything else is left as it is:

    <!-- results: <table> [budget=<budget>] [rows=<row>,...] [seed=<n>,...] -->
    <!-- end -->

is the report of a table; the words mean what they mean on the command line of
``reproduce/report.py``. What a page shows of its table is said there and nowhere else.

| marker | is |
|---|---|
| ``results: <table> [<options>]`` | a table's report |
| ``main: <table> [<options>]`` | its rows alone |
| ``picture: <table> <figure> [<options>]`` | a figure of ``format=figures``; docs/pictures has it |
| ``coverage: <table> ...`` | for each table how many published numbers are measured, and match |
| ``claims: <table> ... [<options>]`` | the tables' claims beside each other |
| ``index:`` | the same for every table, by paper |
| ``papers:`` | a line for each paper |

docs/results has a page for each table of conf/table. One that is missing is begun with a report of
all rows at the largest budget that has a record; one for no table is an error.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.cli import EVIDENCE, entry, parse
from quantable.report.index import (
    Listed,
    claims_table,
    coverage_table,
    index_text,
    listed,
    papers_table,
)
from quantable.report.render import main_table, markdown
from quantable.report.reporter import Reporter
from quantable.report.schema import Report
from quantable.store.store import Store
from quantable.tables.schema import load_table, table_names

OPTIONS = ("budget", "rows", "seed")
KINDS = ("results", "main", "picture", "coverage", "claims", "index", "papers")
RESULTS, PICTURES = Path("docs/results"), Path("docs/pictures")
INDEX = RESULTS / "index.md"
END = "<!-- end -->"
NEW = f"<!-- results: {{}} -->\n{END}\n"
MARKER = re.compile(rf"^<!-- (?:{'|'.join(KINDS)}):", re.MULTILINE)
BLOCK = re.compile(
    rf"^<!-- ({'|'.join(KINDS)}): *(.*?) *-->\n(.*?)^{END}$", re.DOTALL | re.MULTILINE
)
STORE = Store(EVIDENCE)
HELP = """
Fill docs/results, README.md and docs/methods from reproduce/evidence.

  python tools/make_results.py            write them
  python tools/make_results.py --check    write nothing; exit status 1 where they differ
"""


def fill(text: str, render: Mapping[str, Callable[[str], str]], where: str) -> str:
    """``text`` with what ``render`` makes of each marker's words below that marker."""
    blocks = [match.group() for match in BLOCK.finditer(text)]
    nested = any(len(MARKER.findall(block)) > 1 for block in blocks)
    if nested or not len(blocks) == len(MARKER.findall(text)) == text.count(END):
        raise UserError(f"{where}: every '<!-- results: ... -->' needs its own '{END}' below it")
    return BLOCK.sub(
        lambda m: f"<!-- {f'{m[1]}: {m[2]}'.rstrip()} -->\n\n{render[m[1]](m[2])}\n\n{END}",
        text,
    )


def renderers(page: Path, drawn: dict[Path, str]) -> dict[str, Callable[[str], str]]:
    """What each kind of marker becomes in ``page``; figures are put into ``drawn``."""
    return {
        "results": lambda words: markdown(_report(words))[1:],  # a page's own title
        "main": lambda words: main_table(_report(words)),
        "picture": partial(picture, page=page, drawn=drawn),
        "coverage": lambda words: coverage_table([_listed(name, page) for name in words.split()]),
        "claims": _claims,
        "index": lambda _: index_text(_every(page)),
        "papers": lambda _: papers_table(_every(page), _link(page, INDEX)),
    }


@cache
def _reporter(words: str) -> Reporter:
    table, *options = words.split() or [""]
    for option in options:
        key = option.partition("=")[0]
        if key not in OPTIONS:
            raise unknown("option", key, OPTIONS, f"marker of {table}")
    return Reporter(load_table(table), parse(options).asked, [STORE])


@cache
def _report(words: str) -> Report:
    return _reporter(words).report()


def _claims(words: str) -> str:
    options = [word for word in words.split() if "=" in word]
    tables = [word for word in words.split() if "=" not in word]
    return claims_table([_report(" ".join([table, *options])) for table in tables])


def _every(page: Path) -> list[Listed]:
    return [_listed(name, page) for name in table_names()]


def _listed(name: str, page: Path) -> Listed:
    return listed(_reporter(name), _report(name), _link(page, RESULTS / f"{name}.md"))


def _link(page: Path, path: Path) -> str:
    """The way from a page to a path of the project."""
    return Path(os.path.relpath(ROOT / path, page.parent)).as_posix()


def picture(words: str, page: Path, drawn: dict[Path, str]) -> str:
    """A link to one figure, which is put into ``drawn``."""
    table, figure, *options = [*words.split(), "", ""]
    path = PICTURES / f"{table}_{figure}.svg"
    drawn[path] = _drawn(" ".join([table, *options]), figure)
    return f"![{figure} of {table}]({_link(page, path)})"


@cache
def _drawn(words: str, figure: str) -> str:
    """One figure of a table as SVG."""
    # matplotlib only where something is drawn
    from quantable.report.draw_paper import write_figures

    with TemporaryDirectory() as name:
        draw = partial(write_figures, _reporter(words), Path(name), kinds=["svg"])
        made = Path(name) / f"{figure}.svg"
        draw(only=figure)
        if not made.exists():
            known = [Path(line).stem for line in draw() if line.endswith(".svg")]
            raise unknown("figure", figure, known, f"picture: {words}")
        return made.read_text()


def pages() -> dict[Path, str]:
    """The text of every page, with that of the tables' pages which are missing."""
    kept = sorted(ROOT.glob(f"{RESULTS}/*.md"))
    for page in kept:
        if page != ROOT / INDEX and page.stem not in table_names():
            raise unknown("table", page.stem, table_names(), f"{RESULTS / page.name}")
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/methods/*.md")), *kept]
    texts = {page: page.read_text() for page in found}
    for name in table_names():
        texts.setdefault(ROOT / RESULTS / f"{name}.md", NEW.format(name))
    return texts


def _keep(path: Path, text: str, *, write: bool) -> list[str]:
    """Write a file unless it is as it was; return its name if it was not."""
    if path.exists() and path.read_text() == text:
        return []
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return [path.relative_to(ROOT).as_posix()]


def main(words: Sequence[str]) -> int:
    """Write the pages, or compare them."""
    for word in words:
        if word != "--check":
            raise unknown("option", word, ["--check"], "command line")
    drawn: dict[Path, str] = {}
    made = {
        page: fill(text, renderers(page, drawn), page.relative_to(ROOT).as_posix())
        for page, text in pages().items()
    }
    made |= {ROOT / path: svg for path, svg in drawn.items()}
    differ = [name for path, text in made.items() for name in _keep(path, text, write=not words)]
    if words and differ:
        names = ", ".join(differ)
        print(f"{names}: other than reproduce/evidence: run `make report`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    entry(main, HELP)
