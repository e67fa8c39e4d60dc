"""The words of a command line: which tables, what to do with them, and overrides of run configs."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TypeVar

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.config.composition import compose_run
from quantable.config.schema import RunConfig
from quantable.report.objective import ON_TEST, directions, names_of
from quantable.report.published import fill
from quantable.report.render import FORMATS
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import BUDGETS, Table, load_table, table_names
from quantable.tables.sweep import Job, sweep_of

T = TypeVar("T")
RUNS = ROOT / "runs"  # the store of who names none
ACTIONS = (
    *("run", "plan", "hours", "submit", "status", "watch", "collect", "cancel"),
    *("integers", "wandb_replay"),
)
FACES = (*FORMATS, "html", "latex", "parquet", "figures", "wandb")
CONTROL = (
    *("table", "action", "format", "rows", "seed", "budget", "store", "published", "compare"),
    *("sweep", "sort", "named_by"),
)
SWEPT = ("table", "rows", "seed", "budget")  # words of the suite that a sweep splits into jobs


@dataclass(frozen=True)
class Words:
    """A parsed command line."""

    tables: tuple[str, ...]
    action: str
    format: str
    store: Path
    published: Path | None  # a user's own numbers for one of the tables
    compare: tuple[str, str] | None  # two stores or commits
    sweep: tuple[str, ...]  # folders whose runs without a table are to be shown
    sort: str | None  # column or word that the rows are sorted by
    named_by: tuple[str, ...]  # keys of the words that a run without a table is called by
    asked: Asked
    jobs: "tuple[Words, ...]" = ()  # of a sweep; all else is then the first one's
    variation: str = ""  # words that tell a table's report from others of the same sweep


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
    if control.get("action") == "wandb_replay" or control.get("format") == "wandb":
        overrides = [word for word in overrides if not word.startswith("logger=")]
        overrides.append("logger=wandb")  # where to is a part of the run config
    sweep = _names("sweep", control["sweep"]) if "sweep" in control else ()
    store = ROOT / Path(control.get("store", next(iter(sweep), RUNS))).expanduser()
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
        compare=_two(control["compare"]) if "compare" in control else None,
        sweep=sweep,
        sort=control.get("sort"),
        named_by=_names("named_by", control["named_by"]) if "named_by" in control else (),
        asked=asked,
    )


def parse_sweep(words: Sequence[str]) -> Words:
    """Split a command line into one for each combination of its words with several values."""
    return together([parse(job) for job in split(words)])


def together(jobs: Sequence[Words]) -> Words:
    """The jobs of one sweep as what is asked of them all."""
    first = jobs[0]
    for key in ("action", "format", "store", "published", "sort"):
        values = dict.fromkeys(str(getattr(job, key)) for job in jobs)
        if len(values) > 1:
            raise UserError(f"command line: {key}={','.join(values)}: a sweep has one of them")
    return replace(first, jobs=tuple(jobs))


def split(words: Sequence[str]) -> list[list[str]]:
    """Words of every job of a sweep, as Hydra's own sweeper splits them."""
    try:
        overrides = [_choices(word) for word in words]
    except HydraException as error:
        raise UserError(f"command line: {error}") from error
    return [list(job) for job in product(*overrides)]


def swept_keys(words: Sequence[str]) -> list[str]:
    """Keys of the words that have several values, of those that name a run."""
    found = (override for word in words if (override := _override(word)) is not None)
    keys = [o.key_or_group for o in found if o.is_sweep_override()]
    return [key for key in keys if key not in ("table", "rows", "seed")]


MULTIRUN = {"-m", "--multirun"}


def sweep_words(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Words for Hydra of a sweep that it launches, and the folder below which its jobs lie.

    Jobs are told by which of their words they are called; what is no sweep stays as it is.
    """
    if not MULTIRUN & set(words):
        return list(words), None
    added = []
    if (keys := swept_keys(words)) and not any(w.lstrip("+").startswith("table=") for w in words):
        added.append(f"named_by=[{','.join(keys)}]")
    folder = next((w.partition("=")[2] for w in words if w.startswith("hydra.sweep.dir=")), None)
    if folder is None:
        control = parse([w for w in words if w.startswith("store=")])
        folder = str(control.store / "multirun" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")
        added.append(f"hydra.sweep.dir='{folder}'")
    if "hydra/sweeper=optuna" in words:
        added += _direction(words)
    return [*words, *added], Path(folder)


def _direction(words: Sequence[str]) -> list[str]:
    """Word that tells Optuna which way is better; none where the user's own says the same.

    Raises UserError where it says another: the worst run would be taken for the best.
    """
    objective = [word for word in words if word.startswith("objective=")]
    names = names_of(compose_run(objective))
    wanted = directions(names)
    if any(name in ON_TEST for name in names):
        print(f"{objective[-1]}: chosen by test images; every report will say so", file=sys.stderr)
    own = [w.partition("=")[2] for w in words if w.startswith("hydra.sweeper.direction=")]
    if not own:
        value = wanted[0] if len(wanted) == 1 else f"[{','.join(wanted)}]"
        return [f"hydra.sweeper.direction={value}"]
    said = [part.strip("'\" ") for part in own[-1].strip("[]").split(",")]
    if said != wanted:
        raise UserError(
            f"hydra.sweeper.direction={own[-1]}: of objective={','.join(names)} better is to "
            f"{' and '.join(wanted)}; leave the word out"
        )
    return []


def jobs_of(words: Sequence[str], folder: Path | None) -> list[list[str]]:
    """Words of the jobs that Hydra has launched: all combinations, or what its sweeper chose."""
    if folder is None:
        return []
    ours = [word for word in words if not word.startswith(("-", "hydra"))]
    if not any(word.startswith("hydra/sweeper=") for word in words):
        return split(ours)
    paths = folder.rglob(".hydra/overrides.yaml")
    return [yaml.safe_load(path.read_text()) for path in sorted(paths, key=_by_number)]


def _by_number(path: Path) -> tuple[int, str]:
    """Sort key of a job's file: by the number that its folder is called, or else by its name."""
    name = path.parent.parent.name
    return (int(name) if name.isdigit() else -1), str(path)


def _override(word: str) -> Override | None:
    """A word as Hydra reads it, where it may have several values."""
    key, _, value = word.lstrip("+").partition("=")
    if (key in CONTROL and key not in SWEPT) or not set(",(") & set(value):
        return None  # such as a place on a machine, which no grammar has to fit
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


def _choices(word: str) -> list[str]:
    override = _override(word)
    if override is None or not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise UserError(
            f"command line: {word} names no values to go through: it is for a sweeper that chooses "
            "some, such as hydra/sweeper=optuna, and for action=run"
        )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _two(value: str) -> tuple[str, str]:
    places = _list(value)
    if len(places) != 2:
        raise UserError(f"command line: compare={value}: give two stores (folders) or two commits")
    return places[0], places[1]


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
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32:  # as numpy and Lightning take them
        raise UserError(
            f"command line: seed={value}: give integers from 0 on, below 2**32, such as seed=0,1,2"
        )
    return seeds


def asked_of(words: Words) -> list[tuple[Table, Asked]]:
    """Every table that a command line asks for, with what it asks of that one."""
    if words.jobs and not words.tables:
        return [sweep_of([job.asked for job in words.jobs])]
    found = []
    for one in _by_words(words.jobs) if words.jobs else [words]:
        tables = asked_tables(one)
        found += [(table, narrowed(one.asked, table, tables)) for table in tables]
    return found


def _by_words(jobs: Sequence[Words]) -> list[Words]:
    """Jobs with tables that differ in tables, rows and seeds alone, as one each."""
    groups: dict[tuple[object, ...], list[Words]] = {}
    for job in jobs:
        groups.setdefault((job.asked.overrides, job.asked.budget), []).append(job)
    known = [Job(own[0].asked).said for own in groups.values()]
    keys = dict.fromkeys(key for said in known for key in said)
    differ = [key for key in keys if len({said.get(key) for said in known}) > 1]
    found = []
    for said, own in zip(known, groups.values(), strict=True):
        asked = own[0].asked
        found.append(
            replace(
                own[0],
                tables=tuple(dict.fromkeys(name for job in own for name in job.tables)),
                asked=replace(
                    asked,
                    rows=_joined([job.asked.rows for job in own]),
                    seeds=_joined([job.asked.seeds for job in own]),
                    _cells={},
                ),
                variation=" ".join(said[key] for key in differ if key in said),
                jobs=(),
            )
        )
    return found


def _joined(lists: Sequence[tuple[T, ...] | None]) -> tuple[T, ...] | None:
    """All of several filters, each once; None, which filters nothing, where one is."""
    known = [each for each in lists if each is not None]
    if len(known) < len(lists):
        return None
    return tuple(dict.fromkeys(one for each in known for one in each))


def asked_tables(words: Words) -> list[Table]:
    """Load the asked tables; without one, a single run stands as a table of one row."""
    if words.tables:
        tables = [load_table(name) for name in _meant(words.tables)]
        if words.published is not None:
            tables = fill(tables, words.published)
        return [_varied(table, words.variation) for table in tables]
    if words.published is not None:
        raise UserError(f"published={words.published}: name its table: +table=<id>")
    return [sweep_of([words.asked], named_by=words.named_by)[0]]


def _varied(table: Table, words: str) -> Table:
    """A table whose report is one of several: it is called by the words that tell it apart."""
    if not words:
        return table
    return table.model_copy(
        update={"id": f"{table.id} {words}", "title": f"{table.title}, {words}"}
    )


def _meant(patterns: Sequence[str]) -> list[str]:
    """Tables that names and patterns such as ``ad_*`` mean, each once, in the order they come."""
    known = table_names()
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            raise unknown("table", pattern, known, "command line")
        names |= dict.fromkeys(found)
    return list(names)


def narrowed(asked: Asked, table: Table, tables: Sequence[Table]) -> Asked:
    """What is asked of one table: of several, each has only some of the rows asked for."""
    if asked.rows is None or len(tables) == 1:
        return asked
    for name in asked.rows:
        if not any(name in other.rows for other in tables):
            known = [row for other in tables for row in other.rows]
            raise unknown("row", name, known, f"tables {', '.join(t.id for t in tables)}")
    return replace(asked, rows=tuple(name for name in asked.rows if name in table.rows))
