"""Two stores, or two commits' evidence, side by side: which numbers changed, and whether by chance.

scipy is loaded here, so the commands import this module only for ``compare=``.
"""

import csv
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import variance
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict
from scipy import stats

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.columns import COLUMNS
from quantable.report.escape import cell_text, each_string, markdown_text
from quantable.report.render import (
    as_json,
    console,
    heading,
    markdown_table,
    measured_text,
    number,
    ruled,
)
from quantable.report.reporter import Reporter
from quantable.report.schema import MeasuredOut
from quantable.report.stored import job_of, without_table
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import BUDGETS, SINGLE, Table
from quantable.tables.sweep import sweep_of

EVIDENCE = "reproduce/evidence"
LEVEL = 0.05  # a smaller p is called a difference
Word = Literal["only in A", "only in B", "arithmetic", "differs", "no difference", "cannot tell"]


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Change(_Out):
    """One row and column whose number is not the same in A and B.

    ``difference`` is B's mean minus A's; ``p`` is that of Welch's t-test over the seeds, two-sided,
    null where none can be made.
    """

    table: str
    row: str
    label: str
    column: str
    unit: str
    a: MeasuredOut | None
    b: MeasuredOut | None
    difference: float | None
    p: float | None
    word: Word
    statement: str
    verdict_a: str
    verdict_b: str


class Comparison(_Out):
    """What changed from A to B."""

    a: str
    b: str
    tables: list[str]
    changes: list[Change]
    unchanged: int  # rows and columns with a number that is the same in both
    notes: list[str]


class _Side(Reporter):
    """A reporter that knows a run by its row and seed too, when its question has changed since."""

    def __init__(self, table: Table, asked: Asked, store: Store) -> None:
        heads = (head for head in store.heads() if head.table not in (None, SINGLE))
        self._older = {(h.table, h.row, h.budget, h.seed): h.signature for h in heads}
        self.taken: set[str] = set()  # names of records that answer another question
        self.read: set[str] = set()  # names of all records that were found
        # Cells of their own: what a search chose may differ from store to store.
        super().__init__(table, replace(asked, _cells={}), [store])

    def find(self, cell: Cell) -> Record | None:
        """Return the cell's record, or else the one of its row, seed and budget."""
        found = super().find(cell)
        if found is None and cell.search is None:
            key = (cell.table, cell.row, cell.config["budget"]["name"], cell.seed)
            found = self.asked.find(self._older.get(key, ""), cell.config)
            if found is not None:
                self.taken.add(found.name)
        if found is not None:
            self.read.add(found.name)
        return found

    def has(self, budget: str) -> bool:
        """Whether there is a record of that budget."""
        cells = (self.cell(row, budget, seed) for row in self.table.rows for seed in self.seeds)
        return any(self.find(cell) for cell in cells)

    def runs(self, row: str, column: str) -> dict[str, str]:
        """Names of the runs behind a number, with the moment each ended."""
        records = (facts.record for facts, _ in self.known(row, column))
        return {r.name: r.provenance.finished for r in records if r is not None}


def compare(
    tables: Sequence[Table], asked: Asked, a: str, b: str, *, others: bool = False
) -> Comparison:
    """Set the numbers of ``b`` beside those of ``a``, each a folder of records or a commit.

    Both are read through the tables as they are now, and where no budget is asked for, at the
    largest one that both have records of. ``others``: runs without a table too, by signature.
    """
    with _store(a) as first, _store(b) as second:
        pairs = [_sides(table, asked, first, second) for table in tables]
        if others and (records := without_table([first, second], asked)):
            sweep, of_all = sweep_of(list(map(job_of, records)), stored=True)
            pairs.append((_Side(sweep, of_all, first), _Side(sweep, of_all, second)))
        found = [_changes(*pair) for pair in pairs]
        notes = [
            note
            for place, store in enumerate((first, second))
            for note in _read_of("AB"[place], store, [pair[place] for pair in pairs])
        ]
    changes = [change for listed, _ in found for change in listed]
    notes += [
        f"{side.table.id}: runs of {name} that answer an older question (recipe, method version, "
        f"data) than the table asks now: {len(side.taken)}."
        for pair in pairs
        for name, side in zip("AB", pair, strict=True)
        if side.taken
    ]
    if tests := sum(change.p is not None for change in changes):
        notes.append(
            f"{tests} t-tests, none corrected for the others: with no difference at all, about "
            f"{tests * LEVEL:.1f} would still be called one at p < {LEVEL}."
        )
    names = [side.table.id for side, _ in pairs]
    unchanged = sum(same for _, same in found)
    return Comparison(a=a, b=b, tables=names, changes=changes, unchanged=unchanged, notes=notes)


def _sides(table: Table, asked: Asked, a: Store, b: Store) -> tuple[_Side, _Side]:
    budget = asked.budget
    if budget is None:
        probes = [_Side(table, replace(asked, budget=table.budget), store) for store in (a, b)]
        present = {head.budget for store in (a, b) for head in store.heads()}
        known = {
            name: sum(probe.has(name) for probe in probes) for name in BUDGETS if name in present
        }
        most = max(known.values(), default=0)
        budget = next(name for name in known if known[name] == most) if most else table.budget
    fixed = replace(asked, budget=budget)
    return _Side(table, fixed, a), _Side(table, fixed, b)


def _read_of(name: str, store: Store, sides: Sequence[_Side]) -> Iterator[str]:
    """Say how many records of a store the numbers rest on, and which ones none does."""
    read = {record.partition("-")[0] for side in sides for record in side.read}
    left = [head for head in store.heads() if head.signature not in read]
    yield f"Records of {name} that were compared: {len(read)}, and {len(left)} were not."
    if left:
        kinds = Counter((SINGLE if h.table is None else h.table, h.budget) for h in left)
        of = (f"{n} of {table}, budget {budget}" for (table, budget), n in kinds.items())
        yield (
            f"Not compared, of {name}: {'; '.join(of)}. A table is compared at one budget, with "
            "its own rows and seeds; runs without a table by signature, where no table is named."
        )


def _changes(old: _Side, new: _Side) -> tuple[list[Change], int]:
    """Changed numbers of a table, and how many did not change."""
    rows = old.asked.chosen_rows(old.table)
    cells = [(row, column) for row in rows for column in old.table.columns]
    found = [_change(old, new, row, column) for row, column in cells]
    same = [cell for cell, change in zip(cells, found, strict=True) if change is None]
    changes = [change for change in found if change is not None]
    return changes, sum(old.measured(*cell) is not None for cell in same)


# Where records come from


@contextmanager
def _store(place: str) -> Iterator[Store]:
    """Yield the store at a folder, or that of the evidence at a commit."""
    folder = ROOT / Path(place).expanduser()
    if (folder / "records").is_dir():
        yield Store(folder)
        return
    if folder.exists():
        raise UserError(f"compare: {place}: no store: it has no folder 'records'")
    with TemporaryDirectory() as temporary:
        _unpack(place, Path(temporary))
        yield Store(Path(temporary) / EVIDENCE)


def _unpack(commit: str, folder: Path) -> None:
    """Write the evidence of ``commit`` below ``folder``."""
    git = ["git", "-C", str(ROOT)]
    name = [*git, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]
    known = subprocess.run(name, capture_output=True, text=True)
    if known.returncode != 0:
        raise UserError(f"compare: '{commit}' is neither a store (a folder) nor a commit")
    archive = [*git, "archive", "--format=tar", known.stdout.strip(), EVIDENCE]
    packed = subprocess.run(archive, capture_output=True)
    if packed.returncode != 0:
        raise UserError(f"compare: commit {commit} has no {EVIDENCE}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")


# One number


def _change(old: _Side, new: _Side, row: str, column: str) -> Change | None:
    """Compare one row and column; None where the number is the same, or nowhere."""
    a, b = old.measured(row, column), new.measured(row, column)
    if a == b:
        return None
    before, after = old.entry(row, column), new.entry(row, column)
    finding = judge(
        a.values if a else (),
        b.values if b else (),
        trained=bool((a and a.data) or (b and b.data)),
        shared=len(old.runs(row, column).items() & new.runs(row, column).items()),
    )
    return Change(
        table=old.table.id,
        row=row,
        label=after.label,
        column=column,
        unit=after.unit,
        a=before.measured,
        b=after.measured,
        difference=b.mean - a.mean if a is not None and b is not None else None,
        p=finding.p,
        word=finding.word,
        statement=finding.statement,
        verdict_a=before.verdict,
        verdict_b=after.verdict,
    )


@dataclass(frozen=True)
class Finding:
    """What can be said about two numbers."""

    word: Word
    statement: str
    p: float | None = None


def judge(a: Sequence[float], b: Sequence[float], *, trained: bool, shared: int) -> Finding:
    """Say whether two samples, a value for each seed, differ by more than chance.

    By Welch's t-test, two-sided. ``shared`` runs are in both samples, which the test forbids.

    >>> judge([90.1, 90.3, 90.2], [91.0, 91.2, 91.4], trained=True, shared=0).statement
    'differs: p = 0.0048 (Welch, n=3 and n=3)'
    >>> judge([90.1], [91.0, 91.2], trained=True, shared=0).statement
    'cannot tell: n=1 and n=2; both need at least 2 seeds'
    """
    if not a or not b:
        return Finding("only in A", "only in A") if a else Finding("only in B", "only in B")
    if not trained:
        return Finding("arithmetic", "changed: arithmetic, which has no seeds")
    n = f"n={len(a)} and n={len(b)}"
    if min(len(a), len(b)) < 2:
        return Finding("cannot tell", f"cannot tell: {n}; both need at least 2 seeds")
    if shared:
        return Finding("cannot tell", f"cannot tell: both contain the same runs, {shared} ({n})")
    if variance(a) == 0 == variance(b):
        return Finding("cannot tell", f"cannot tell: the seeds do not differ ({n})")
    p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    words = f"p = {p:.2g} (Welch, {n})"
    if p < LEVEL:
        return Finding("differs", f"differs: {words}", p)
    return Finding("no difference", f"no significant difference: {words}", p)


# Faces


HEAD = ["row", "number", "A", "B", "B − A", "statement", "verdict"]


def _lines(found: Comparison, table: str) -> list[list[str]]:
    lines = []
    for change in (change for change in found.changes if change.table == table):
        decimals = COLUMNS[change.column].decimals
        sides = [measured_text(side, decimals) for side in (change.a, change.b)]
        moved = "–" if change.difference is None else number(change.difference, decimals)
        if change.difference is not None and change.difference > 0:
            moved = f"+{moved}"
        verdict = " → ".join(dict.fromkeys((change.verdict_a, change.verdict_b)))
        label = [change.label, heading(change.column)]
        lines.append([*label, *sides, moved, change.statement, verdict])
    return lines


def _head(found: Comparison) -> list[str]:
    count = f"{len(found.changes)} numbers changed, {found.unchanged} did not"
    return [f"A: {found.a}", f"B: {found.b}", f"{count}; tables: {', '.join(found.tables)}"]


def terminal(found: Comparison) -> str:
    """Tables for a terminal."""
    found = shown(found)
    screen, out = console()
    for line in _head(found):
        screen.print(line, highlight=False, markup=False)
    for table in found.tables:
        if body := _lines(found, table):
            screen.print(ruled(table, HEAD, body))
    for note in found.notes:
        screen.print(f"- {note}", highlight=False, markup=False)
    return out.getvalue().rstrip("\n")


def markdown(found: Comparison) -> str:
    """Write the same tables as Markdown."""
    found = shown(found)
    parts = ["## What changed", "\n".join(f"- {markdown_text(line)}" for line in _head(found))]
    for table in found.tables:
        if body := _lines(found, table):
            parts += [f"### {markdown_text(table)}", markdown_table(HEAD, body)]
    if found.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in found.notes))
    return "\n\n".join(parts)


def comma_separated(found: Comparison) -> str:
    """One line per change."""
    found = shown(found)
    out = io.StringIO()
    sides = [f"{side}_{key}" for side in "ab" for key in ("mean", "std", "n", "budget", "data")]
    plain = [key for key in Change.model_fields if key not in ("a", "b")]
    writer = csv.DictWriter(out, [*plain, *sides], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for change in found.changes:
        line = change.model_dump()
        for side in "ab":
            line |= {f"{side}_{key}": value for key, value in (line[side] or {}).items()}
        writer.writerow({key: cell_text(value) for key, value in line.items()})
    return out.getvalue().rstrip("\n")


def shown(found: Comparison) -> Comparison:
    """Return ``found`` with all its strings visible."""
    return Comparison.model_validate(each_string(found.model_dump()))


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
}
