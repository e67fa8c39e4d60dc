"""What the commands do: plan, run cells wherever they are to run, tell how they do, report.

No torch here, and what runs cells is imported where something runs: a report needs none of it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.base.signals import Preempted
from quantable.columns import COLUMNS
from quantable.cost.hardware import hardware_of
from quantable.report.escape import slug
from quantable.report.objective import names_of, values
from quantable.report.render import FORMATS
from quantable.report.reporter import Reporter, in_order
from quantable.report.schema import Report
from quantable.report.stored import swept
from quantable.store.record import Head, cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.tables.schema import load_table, table_names
from quantable.words import RUNS, Words, asked_of, asked_tables, parse, parse_sweep, together

if TYPE_CHECKING:
    from quantable.executor.board import Board, Work
    from quantable.executor.inline import Failures

EVIDENCE = ROOT / "reproduce" / "evidence"
STOPPED = 75  # exit status: stopped by a scheduler, the same command goes on (EX_TEMPFAIL)


def work_of(words: Words) -> "list[Work]":
    """What a command line asks for, table by table."""
    from quantable.executor.board import Variants, Work

    here = Variants()  # what runs here begins with a search on the images that are here
    asked = [
        (table, replace(own, budget=own.budget or table.budget, variant=here))
        for table, own in asked_of(words)
    ]
    return [Work(table, own, own.cells(table)) for table, own in asked]


@dataclass(frozen=True)
class CellStatus:
    """Where a cell stands."""

    cell: Cell
    variant: str | None  # of the data on this machine; None where the set is not here
    word: str  # done | running | queued | failed | ... | stale | missing | waiting


def status_of(cell: Cell, board: "Board", known: Sequence[Head]) -> CellStatus:
    """Look a cell up: as the board has it, or stale (only a record of an older question).

    One that waits has bit-widths that a search has yet to find.
    """
    line = board.line(cell)
    if line.word == "missing":
        same = (cell.table, cell.row, cell.seed, cell.config["budget"]["name"])
        if any((r.table, r.row, r.seed, r.budget) == same for r in known):
            return CellStatus(cell, line.variant, "stale")
    return CellStatus(cell, line.variant, line.word)


def plan(words: Words) -> int:
    """Print the cells with their status and commands, and the costs known without training."""
    from quantable.executor.board import Board

    store = Store(words.store)
    places = [] if words.store == RUNS else [f"store={words.store}"]
    board, known = Board(store), store.heads()
    for work in work_of(words):
        table = work.table
        print(f"{table.id}: {table.title}")
        for cell in work.cells:
            now = status_of(cell, board, known)
            where = "" if now.variant is not None else "; its data set is not on this machine"
            name = f"after search {cell.search}" if cell.search is not None else cell.signature
            print(f"  {now.word:8} {cell.label} [{name}]{where}")
            if now.word != "done":
                print(f"           {cell.command_here(places)}")
        costs = [name for name in table.columns if not COLUMNS[name].trained]
        only_costs = table.model_copy(update={"columns": dict.fromkeys(costs)})
        report = Reporter(only_costs, work.asked, [store]).report()
        notes = [note for note in report.notes if note not in table.notes]
        print(FORMATS["terminal"](report.model_copy(update={"claims": [], "notes": notes})))
    return 0


def hours(words: Words) -> int:
    """Say how long the cells take that are not done; nothing is trained but a few timed steps."""
    from quantable.executor.board import Board
    from quantable.executor.expected import hours as said

    board = Board(Store(words.store))
    for work in work_of(words):
        left = [cell for cell in work.cells if board.line(cell).word != "done"]
        print(f"{work.table.id}: {len(left)} of {len(work.cells)} cells are not done")
        print(said(left, work.asked))
    return 0


def run(words: Words) -> int:
    """Train what misses, waiting for cells that another runner holds, and report.

    A sweep is reported also where some of its runs have failed.
    """
    store, works, failures = Store(words.store), work_of(words), dict[str, str]()
    for part, failed in _trained(works, store):
        failures |= failed
        if failures and not words.jobs:
            break
        for work in part:
            _report(work, words, store)
    if failures:
        raise UserError("\n".join(failures.values()))
    return 0


def job(works: "Sequence[Work]", store: Store) -> None:
    """Train what misses of one of a sweep's jobs, whose report is the sweep's."""
    failures = dict[str, str]()
    for _, failed in _trained(works, store):
        failures |= failed
    if failures:
        raise UserError("\n".join(failures.values()))


def _trained(works: "Sequence[Work]", store: Store) -> "Iterator[tuple[Sequence[Work], Failures]]":
    """Bring the cells of tables to their end: of each in turn, or of all of them side by side."""
    from quantable.executor import actions, inline, pool

    for work in works:
        _check(work.cells, store)
        _ask_again(work.cells, store)
    everything = [cell for work in works for cell in work.cells]
    kinds = {cell.config["executor"]["name"] for cell in everything} or {"inline"}
    if len(kinds) > 1:
        raise UserError(f"executor: one command has one, and here are {', '.join(sorted(kinds))}")
    if kinds == {"inline"}:
        for work in works:
            yield [work], inline.run_inline(work, store)
    else:
        yield works, (pool.run_pool if "pool" in kinds else actions.run_jobs)(works, store)


def _report(work: "Work", words: Words, store: Store) -> Report:
    """Show a finished table and keep a copy."""
    report = show(Reporter(work.table, work.asked, [store]), words)
    store.reports.mkdir(parents=True, exist_ok=True)
    copy = store.reports / f"{slug(work.table.id)}.md"
    copy.write_text(FORMATS["markdown"](report) + "\n")
    if words.format == "terminal":
        print(f"Markdown: {copy}\nRecords:  {store.folder / 'records'}")
    return report


def show(reporter: Reporter, words: Words) -> Report:
    """Print a report in the asked form, or write its files and print where they are."""
    if words.sort is not None:
        reporter = in_order(reporter, words.sort)
    report = reporter.report()
    if words.format in FORMATS:
        print(FORMATS[words.format](report))
    else:
        print(*_made(words.format, reporter, Store(words.store).reports), sep="\n")
    return report


def _made(face: str, reporter: Reporter, folder: Path) -> list[str]:
    """What the faces print that need more than the standard ones: each loads its own library."""
    match face:
        case "html":
            from quantable.report.html.pages import write_html

            return list(map(str, write_html([reporter], folder, index=False)))
        case "latex":
            from quantable.report.latex import latex

            return [latex(reporter.report())]
        case "parquet":
            from quantable.report.parquet import write_parquet

            return [str(write_parquet(reporter, folder))]
        case "figures":
            from quantable.report.draw_paper import write_figures

            return write_figures(reporter, folder / slug(reporter.table.id))
        case "wandb":
            from quantable.report.wandb_report import publish

            return [publish(reporter, folder.parent)]
    raise AssertionError(f"{face} is checked by parse")


def _check(cells: Sequence[Cell], store: Store) -> None:
    """Refuse before the first training what would fail after it.

    That is: constants, a missing data set, a run to begin with that is neither here nor planned.
    """
    from quantable.data.layouts import missing
    from quantable.executor.board import Board

    planned, board = {cell.signature for cell in cells}, Board(store)
    for cell in cells:
        hardware_of(cell.config)
        variant = board.variant(cell)
        for need in cell.needs:
            if need not in planned and not store.has(need, variant):
                raise UserError(
                    f"{cell.label}: it begins with run {need}, which is not in "
                    f"{store.folder}; train that first, into the same store"
                )
        if variant is None and not store.has(cell.signature, variant):
            raise missing(cell.config["data"]["id"], cell.config["data"]["root"])
    if any(c.config["logger"] and not store.has(c.signature, board.variant(c)) for c in cells):
        # wandb only where a run is streamed
        from quantable.logger.wandb_run import ready

        ready()


def _ask_again(cells: Sequence[Cell], store: Store) -> None:
    """Forget that cells were cancelled before."""
    from quantable.executor.board import Board
    from quantable.executor.status import uncancel

    board = Board(store)
    uncancel(store, [cell_name(cell.signature, board.variant(cell)) for cell in cells])


def submit(words: Words) -> int:
    """Hand what misses to the cluster and return."""
    from quantable.executor import actions

    store = Store(words.store)
    works = work_of(words)
    for work in works:
        _check(work.cells, store)
    print(actions.submit_all(works, store))
    return 0


def status(words: Words) -> int:
    """Print where every cell stands."""
    from quantable.executor import actions

    store = Store(words.store)
    print(actions.overview(work_of(words), store))
    return 0


def watch(words: Words) -> int:
    """Show where every cell stands until nobody has one in hand; hand over what is left."""
    from quantable.executor import actions

    store = Store(words.store)
    return actions.watch(work_of(words), store)


def collect(words: Words) -> int:
    """Report once every cell is done; else say what misses, with exit status 1."""
    from quantable.executor import actions

    store = Store(words.store)
    works = work_of(words)
    if said := actions.unfinished(works, store):
        print(said, file=sys.stderr)
        return 1
    for work in works:
        _report(work, words, store)
    return 0


def cancel(words: Words) -> int:
    """Stop the cells that anybody has in hand; they keep their checkpoints."""
    from quantable.executor import actions

    store = Store(words.store)
    print(actions.cancel_all(work_of(words), store))
    return 0


def wandb_replay(words: Words) -> int:
    """Send the stored histories of the cells that are done to Weights & Biases."""
    from quantable.logger.wandb_run import replay

    store = Store(words.store)
    for work in work_of(words):
        found = (store.find(cell.signature, None) for cell in work.cells if cell.search is None)
        records = [record for record in found if record is not None]
        print(f"{work.table.id}: {len(records)} of {len(work.cells)} cells are in {store.folder}")
        replay(records, work.cells[0].config["logger"], store.folder)
    return 0


def integers(words: Words) -> int:
    """Ask finished runs what they answer in integers; nothing is trained."""
    from quantable.executor.finished import ask_all

    store = Store(words.store)
    works = work_of(words)
    for work in works:
        _check(work.cells, store)
    said, all_done = ask_all(works, store)
    print(said)
    return 0 if all_done else 1


DO: Mapping[str, Callable[[Words], int]] = {
    "run": run,
    "plan": plan,
    "hours": hours,
    "submit": submit,
    "status": status,
    "watch": watch,
    "collect": collect,
    "cancel": cancel,
    "integers": integers,
    "wandb_replay": wandb_replay,
}


def run_main(words: Sequence[str]) -> int:
    """Do what ``reproduce/run.py`` was asked."""
    return _done(parse(words))


def sweep_main(words: Sequence[str]) -> int:
    """Do what ``reproduce/run.py -m`` was asked, for all combinations of the words together."""
    return _done(parse_sweep(words))


def _done(words: Words) -> int:
    for key in ("compare", "sweep"):
        if getattr(words, key):
            raise UserError(f"{key}: it belongs to reproduce/report.py")
    return DO[words.action](words)


def job_main(words: Sequence[str], *, judged: bool) -> float | list[float] | None:
    """Do the work of one job that Hydra has launched, and leave its report to the sweep's.

    Returns what a sweeper judges it by, where one asks (``judged``): a number, or one for each
    objective.
    """
    parsed = parse(words)
    works = work_of(parsed)
    names = names_of(works[0].cells[0].config) if judged else []
    job(works, Store(parsed.store))
    if not judged:
        return None
    if len(works) > 1:
        raise UserError("objective: a job has one such number, and this one runs several tables")
    found = values(Reporter(works[0].table, works[0].asked, [Store(parsed.store)]), names)
    return found if len(found) > 1 else found[0]


def report_jobs(jobs: Sequence[Sequence[str]]) -> None:
    """Report a sweep whose jobs have ended, wherever they ran."""
    words = together([parse(words) for words in jobs])
    store = Store(words.store)
    for work in work_of(words):
        _report(work, words, store)


def report_main(words: Sequence[str]) -> int:
    """Do what ``reproduce/report.py`` was asked: print, train nothing."""
    parsed = parse(words)
    if parsed.compare is not None:
        return _compared(parsed, parsed.compare)
    if parsed.sweep:
        show(swept(parsed.sweep, parsed.asked), parsed)
        return 0
    stores = [Store(parsed.store), Store(EVIDENCE)]
    if parsed.format == "html":
        return _pages(parsed, stores)
    if not parsed.tables:
        raise UserError(f"report: name a table: +table=<{'|'.join(table_names())}>")
    for table in asked_tables(parsed):
        show(Reporter(table, parsed.asked, stores), parsed)
    return 0


def _compared(words: Words, places: tuple[str, str]) -> int:
    """Print what changed between two stores or commits, in the asked tables or in all."""
    from quantable.report.compare import FORMATS as FACES  # scipy only where something is tested
    from quantable.report.compare import compare

    if words.format not in FACES:
        raise unknown("format", words.format, FACES, "compare")
    tables = asked_tables(words) if words.tables else list(map(load_table, table_names()))
    found = compare(tables, words.asked, *places, others=not words.tables)
    print(FACES[words.format](found))
    return 0


def _pages(words: Words, stores: Sequence[Store]) -> int:
    """Write the asked tables as one page; without a table an index, and a page for each."""
    from quantable.report.html.pages import write_html

    index = not words.tables and words.published is None
    tables = map(load_table, table_names()) if index else asked_tables(words)
    reporters = [Reporter(table, words.asked, stores) for table in tables]
    print(*write_html(reporters, Store(words.store).reports, index=index), sep="\n")
    return 0


def usage(head: str) -> str:
    """Help text with the tables there are."""
    return f"{head.strip()}\n\nTables: {', '.join(table_names())}"


def entry(main: Callable[[Sequence[str]], int], help_text: str) -> NoReturn:
    """Run a command: help, exit status 2 and one message for the user's mistakes."""
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(usage(help_text))
        sys.exit(0)
    try:
        status = main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # a reader such as `head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Preempted as stop:
        print(f"{stop}: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(STOPPED)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
