"""The words of a command line: which tables, what to do with them, and overrides of run configs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.config.schema import RunConfig
from quantable.report.published import fill
from quantable.report.render import FORMATS
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import BUDGETS, SINGLE, Figure, Row, Table, load_table, table_names

RUNS = ROOT / "runs"  # the store of who names none
ACTIONS = (
    *("run", "plan", "hours", "submit", "status", "watch", "collect", "cancel"),
    *("integers", "wandb_replay"),
)
FACES = (*FORMATS, "html", "latex", "parquet", "figures", "wandb")
CONTROL = ("table", "action", "format", "rows", "seed", "budget", "store", "published", "compare")


@dataclass(frozen=True)
class Words:
    """A parsed command line."""

    tables: tuple[str, ...]
    action: str
    format: str
    store: Path
    published: Path | None  # a user's own numbers for one of the tables
    compare: tuple[str, str] | None  # two stores or commits
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
    if control.get("action") == "wandb_replay" or control.get("format") == "wandb":
        overrides = [word for word in overrides if not word.startswith("logger=")]
        overrides.append("logger=wandb")  # where to is a part of the run config
    store = ROOT / Path(control.get("store", RUNS)).expanduser()
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
        asked=asked,
    )


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


def asked_tables(words: Words) -> list[Table]:
    """Load the asked tables; without one, a single run stands as a table of one row."""
    if words.tables:
        tables = [load_table(name) for name in _meant(words.tables)]
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
        figures={
            "bits": Figure(kind="phases"),
            "numbers": Figure(kind="numbers"),
            "loss": Figure(kind="epochs", of=("train_loss", "val_loss")),
            "scores": Figure(kind="scores"),
        },
        rows={"run": Row(label="run", overrides=())},
    )
    return [single]


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
