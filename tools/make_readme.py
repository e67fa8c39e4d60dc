"""Fill the result tables of README.md from the records in reproduce/evidence. Loads no torch.

A table stands between two markers and belongs to this script; everything else is left as it is:

    <!-- results: <table> [budget=<budget>] [rows=<row>,...] [seed=<n>,...] -->
    <!-- end -->

The words mean what they mean on the command line of ``reproduce/report.py``.
"""

import re
import sys
from collections.abc import Callable, Sequence

from quantable.cli import EVIDENCE, entry, parse
from quantable.config import ROOT
from quantable.names import UserError, unknown
from quantable.report.model import Reporter
from quantable.report.render import markdown
from quantable.store import Store
from quantable.table import load_table

README = ROOT / "README.md"
OPTIONS = ("budget", "rows", "seed")
BEGIN, END = "<!-- results:", "<!-- end -->"
BLOCK = re.compile(rf"^{BEGIN} *(.*?) *-->\n(.*?)^{END}$", re.DOTALL | re.MULTILINE)
HELP = """
Fill the result tables of README.md from reproduce/evidence.

  python tools/make_readme.py            write them
  python tools/make_readme.py --check    write nothing; exit status 1 where they differ
"""


def fill(text: str, render: Callable[[str], str]) -> str:
    """``text`` with what ``render`` makes of each marker's words below that marker."""
    blocks = [match.group() for match in BLOCK.finditer(text)]
    nested = any(block.count(BEGIN) > 1 for block in blocks)
    if nested or not len(blocks) == text.count(BEGIN) == text.count(END):
        raise UserError(f"README.md: every '{BEGIN} ... -->' needs its own '{END}' below it")
    return BLOCK.sub(lambda m: f"{BEGIN} {m[1]} -->\n\n{render(m[1])}\n\n{END}", text)


def results(words: str) -> str:
    """One marker's table as Markdown, from the evidence alone."""
    name, *options = words.split() or [""]
    for option in options:
        key = option.partition("=")[0]
        if key not in OPTIONS:
            raise unknown("option", key, OPTIONS, f"README.md: results: {words}")
    reporter = Reporter(load_table(name), parse(options).asked, [Store(EVIDENCE)])
    return f"#{markdown(reporter.report())}"  # one heading level deeper than a report of its own


def main(words: Sequence[str]) -> int:
    """Write README.md, or compare it."""
    for word in words:
        if word != "--check":
            raise unknown("option", word, ["--check"], "command line")
    old = README.read_text()
    new = fill(old, results)
    if not words:
        README.write_text(new)
    elif new != old:
        print("README.md differs from reproduce/evidence: run `make report`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    entry(main, HELP)
