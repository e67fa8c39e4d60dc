"""What the commands do: parse, plan, run cells in order, report. No torch here."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from quantable.bits_file import write_bits
from quantable.columns import COLUMNS, hardware_of
from quantable.config import ROOT, RunConfig
from quantable.data.layouts import missing, probe_variant
from quantable.names import UserError, unknown
from quantable.progress import Progress
from quantable.published import fill
from quantable.record import Record, cell_name
from quantable.report.model import Report, Reporter
from quantable.report.render import FORMATS
from quantable.store import Store, wait
from quantable.table import (
    BUDGETS,
    SINGLE,
    Asked,
    Cell,
    Row,
    Table,
    load_table,
    table_names,
)

EVIDENCE = ROOT / "reproduce" / "evidence"
ACTIONS = ("run", "plan")
FACES = (*FORMATS, "figures")  # figures are files, the others text
CONTROL = ("table", "action", "format", "rows", "seed", "budget", "store", "published")


@dataclass(frozen=True)
class Words:
    """A parsed command line."""

    tables: tuple[str, ...]
    action: str
    format: str
    store: Path
    published: Path | None  # a user's own numbers for one of the tables
    asked: Asked


def parse(words: Sequence[str]) -> Words:
    """Split the command line into what concerns the suite and overrides of the run config."""
    control: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"command line: '{word}' is not of the form key=value")
        if key in CONTROL:
            control[key] = value
        elif "." in key or key in RunConfig.model_fields:
            overrides.append(word)
        else:
            raise unknown("word", key, {*CONTROL, *RunConfig.model_fields}, "command line")
    for key, allowed in (("action", ACTIONS), ("format", FACES), ("budget", BUDGETS)):
        if key in control and control[key] not in allowed:
            raise unknown(key, control[key], allowed, "command line")
    store = ROOT / Path(control.get("store", "runs")).expanduser()
    asked = Asked(
        overrides=tuple(overrides),
        budget=control.get("budget"),
        rows=_names("rows", control["rows"]) if "rows" in control else None,
        seeds=_seeds(control["seed"]) if "seed" in control else None,
        stores=(Store(store),),
    )
    return Words(
        tables=_names("table", control["table"]) if "table" in control else (),
        action=control.get("action", "run"),
        format=control.get("format", "terminal"),
        store=store,
        published=_file(control["published"]) if "published" in control else None,
        asked=asked,
    )


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.strip("[]").split(",") if part.strip())


def _names(key: str, value: str) -> tuple[str, ...]:
    names = _list(value)
    if not names:
        raise UserError(f"command line: {key}={value}: give at least one name")
    return names


def _file(value: str) -> Path:
    if not value:
        raise UserError("command line: published=: give a file")
    return Path(value).expanduser()


def _seeds(value: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in _list(value))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise UserError(f"command line: seed={value}: give integers from 0 on, such as seed=0,1,2")
    return seeds


def asked_tables(words: Words) -> list[Table]:
    """Load the asked tables; without one, a single run stands as a table of one row."""
    if words.tables:
        tables = [load_table(name) for name in words.tables]
        return fill(tables, words.published) if words.published is not None else tables
    if words.published is not None:
        raise UserError(f"published={words.published}: name its table: +table=<id>")
    single = Table(
        id=SINGLE,
        paper="none",
        title="a single run",
        source="no table",
        budget="paper",
        seeds=(0,),
        base=(),
        columns=dict.fromkeys(
            ("top1_pct", "mean_bits", "macs_m", "energy_uj", "pim_energy_uj", "training_complexity")
        ),
        rows={"run": Row(label="run", overrides=())},
    )
    return [single]


@dataclass(frozen=True)
class State:
    """Where a cell stands."""

    cell: Cell
    variant: str | None  # of the data on this machine; None where the set is not here
    word: str  # done | running | missing | stale | waiting
    record: Record | None


def state(cell: Cell, store: Store, known: Sequence[Record]) -> State:
    """Look a cell up: done, running, stale (only a record of an older question), or missing.

    One that waits has bit-widths that a search has yet to find.
    """
    data = cell.config["data"]
    variant = probe_variant(data["root"], lossless=data["lossless"])
    if cell.search is not None:
        return State(cell, variant, "waiting", None)
    record = store.find(cell.signature, variant)
    if record is not None:
        return State(cell, variant, "done", record)
    if store.running(cell_name(cell.signature, variant)):
        return State(cell, variant, "running", None)
    same = (cell.table, cell.row, cell.seed, cell.config["budget"]["name"])
    older = any(
        (r.table, r.row, r.seed, r.budget) == same and r.signature != cell.signature for r in known
    )
    return State(cell, variant, "stale" if older else "missing", None)


def plan(table: Table, words: Words) -> None:
    """Print the cells with their state and commands, and the costs known without training."""
    store = Store(words.store)
    known = store.records()
    print(f"{table.id}: {table.title}")
    for cell in words.asked.cells(table):
        now = state(cell, store, known)
        where = "" if now.variant is not None else "; its data set is not on this machine"
        name = f"after search {cell.search}" if cell.search is not None else cell.signature
        line = f"  {now.word:8} {cell.row} seed {cell.seed} [{name}]{where}"
        print(line)
        if now.word != "done":
            print(f"           {cell.command}")
    asked = replace(words.asked, budget=words.asked.budget or table.budget)
    costs = [name for name in table.columns if not COLUMNS[name].trained]
    reporter = Reporter(table.model_copy(update={"columns": dict.fromkeys(costs)}), asked, [store])
    report = reporter.report().model_copy(update={"claims": [], "notes": []})
    print(FORMATS["terminal"](report))


def run(table: Table, words: Words) -> Report:
    """Train what misses, waiting for cells that another runner holds, and report."""
    store = Store(words.store)
    asked = replace(words.asked, budget=words.asked.budget or table.budget)
    waiting = asked.cells(table)
    _check(waiting, store)
    failures: dict[str, str] = {}  # by signature
    if any(state(cell, store, ()).word != "done" for cell in waiting):
        with Progress(len(waiting)) as progress:
            while waiting:
                now = (_again(cell, table, asked) for cell in waiting)
                left = [cell for cell in now if not _settle(cell, store, progress, failures)]
                if len(left) == len(waiting):
                    wait()
                waiting = left
    if failures:
        raise UserError("\n".join(failures.values()))
    report = show(Reporter(table, asked, [store]), words)
    store.reports.mkdir(parents=True, exist_ok=True)
    copy = store.reports / f"{table.id}.md"
    copy.write_text(FORMATS["markdown"](report) + "\n")
    if words.format == "terminal":
        print(f"Markdown: {copy}\nRecords:  {store.folder / 'records'}")
    return report


def show(reporter: Reporter, words: Words) -> Report:
    """Print a report in the asked form, or draw its figures and print where they are."""
    report = reporter.report()
    if words.format == "figures":
        # matplotlib only where something is drawn
        from quantable.report.figures import write_figures

        print("\n".join(write_figures(reporter, Store(words.store).reports / report.table)))
    else:
        print(FORMATS[words.format](report))
    return report


def _check(cells: Sequence[Cell], store: Store) -> None:
    """Refuse before the first training what would fail after it.

    That is: constants, a missing data set, a run to begin with that is neither here nor planned.
    """
    planned = {cell.signature for cell in cells}
    for cell in cells:
        hardware_of(cell.config)
        now = state(cell, store, ())
        for need in cell.needs:
            if need not in planned and store.find(need, now.variant) is None:
                raise UserError(
                    f"{cell.row} seed {cell.seed}: it begins with run {need}, which is not in "
                    f"{store.folder}; train that first, into the same store"
                )
        if now.variant is None and now.record is None:
            raise missing(cell.config["data"]["id"], cell.config["data"]["root"])


def _again(cell: Cell, table: Table, asked: Asked) -> Cell:
    """Look again at a cell that waited for a search."""
    if cell.search is None:
        return cell
    return asked.cell(table, cell.row, cell.config["budget"]["name"], cell.seed)


def _settle(cell: Cell, store: Store, progress: Progress, failures: dict[str, str]) -> bool:
    """Bring one cell to its end; False while another runner holds it, or one that it needs."""
    for need in cell.needs:
        if need in failures:
            failures[cell.signature] = (
                f"{cell.row} seed {cell.seed}: needs run {need}, which failed"
            )
            progress.failed(cell)
            return True
    now = state(cell, store, ())
    if any(store.find(need, now.variant) is None for need in cell.needs):
        return False
    name = cell_name(cell.signature, now.variant)
    with store.claim(name) as claimed:
        if not claimed:
            return False
        if state(cell, store, ()).record is None:  # may be there since we looked
            from quantable.run import run_cell  # torch only where something is trained

            assert now.variant is not None
            progress.start(cell)
            try:
                record = run_cell(cell, store, now.variant, progress.tell)
            except (UserError, NotImplementedError) as error:
                failures[cell.signature] = f"{cell.row} seed {cell.seed}: {error}"
                progress.failed(cell)
                return True
            store.add(record)
            progress.finish(cell, record)
        else:
            progress.skip()
    if cell.bits is not None:
        write_bits(cell.bits, store.bits(f"{cell.table}-{cell.row}-{cell.signature}"))
    return True


def run_main(words: Sequence[str]) -> int:
    """Do what ``reproduce/run.py`` was asked."""
    parsed = parse(words)
    for table in asked_tables(parsed):
        if parsed.action == "plan":
            plan(table, parsed)
        else:
            run(table, parsed)
    return 0


def report_main(words: Sequence[str]) -> int:
    """Do what ``reproduce/report.py`` was asked: print, train nothing."""
    parsed = parse(words)
    if not parsed.tables:
        raise UserError(f"report: name a table: +table=<{'|'.join(table_names())}>")
    for table in asked_tables(parsed):
        stores = [Store(parsed.store), Store(EVIDENCE)]
        show(Reporter(table, parsed.asked, stores), parsed)
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
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
