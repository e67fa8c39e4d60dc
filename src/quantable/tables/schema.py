"""Table files: what a paper's table claims, row by row, and the run configs it stands for.

This is the only reader of ``conf/table``; its schema is the documentation of the format.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from quantable.allocation.program import Policy, program_names
from quantable.base.bits import MAX_BITS
from quantable.base.errors import UserError, unknown
from quantable.base.places import CONF
from quantable.base.strict import Strict
from quantable.columns import COLUMNS
from quantable.columns.edge import SIZES
from quantable.config.schema import Looks
from quantable.cost.costs import COSTS
from quantable.tables.claims import KINDS, Bound, Claim, Strictness
from quantable.tables.families import expanded
from quantable.tables.points import read_points

TABLES = CONF / "table"
SINGLE = "single"  # what runs without a table call theirs
BUDGETS = ("paper", "gpu", "cpu", "smoke")  # from the largest to the smallest

EVERY = "*"  # as a row's layer: in a report the row is one for each layer of its network

Budget = Literal["paper", "gpu", "cpu", "smoke"]
# doubtful: published, and known to be unfit for a verdict
Confidence = Literal["published", "proved", "recollected", "derived", "doubtful"]
Width = Annotated[int, Field(strict=True, ge=1, le=MAX_BITS)]


class Tolerance(Strict):
    """How far apart matching numbers may be: absolute (in the column's unit) or relative."""

    abs: float | None = Field(default=None, gt=0)
    rel: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.abs is None) == (self.rel is None):
            raise ValueError("give exactly one of abs and rel")
        return self

    def around(self, value: float) -> float:
        """Half width of the matching interval around ``value``."""
        return self.abs if self.abs is not None else abs(value) * (self.rel or 0.0)


class Published(Strict):
    """A number of the paper, or why there is none.

    ``std`` and ``n``: standard deviation as the paper gives it, and number of runs, of a mean.
    ``tolerance``: of this number, instead of its column's.
    """

    value: float | None
    std: float | None = None
    n: int | None = None
    source: str | None = None
    confidence: Confidence | None = None
    reason: str | None = None
    tolerance: Tolerance | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.value is None and not self.reason:
            raise ValueError("a null value needs its reason")
        if self.value is not None and not (self.source and self.confidence):
            raise ValueError("a value needs source and confidence")
        if self.confidence == "doubtful" and not self.reason:
            raise ValueError("a doubtful value needs its reason")
        return self

    @property
    def counts(self) -> bool:
        """Whether a verdict may rest on it: any other number is a hint only."""
        return self.value is not None and self.confidence in ("published", "proved")


class Chosen(Strict):
    """Bit-widths that a search finds: the search's row, and what they may need of each cost.

    Budgets are shares of the cost that the searched layers have before it; a search whose rule
    chooses itself takes none.
    """

    by: str
    budgets: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.budgets:
            if name not in COSTS:
                raise unknown("cost", name, COSTS, "chosen.budgets")
        return self


class Row(Strict):
    """One line: a run of its own (``overrides``), or a phase of another row's run (``cell``)."""

    label: str
    series: str | None = None  # of the table's ``series``; without one the method's own looks
    overrides: tuple[str, ...] | None = None
    budgets: dict[Budget, tuple[str, ...]] = Field(default_factory=dict)  # after the table's own
    start: str | None = None  # the row whose final weights this one's run begins with
    teacher: str | None = None  # the row whose network this one's learns from, and is compared with
    chosen: Chosen | None = None  # bit-widths that another row's search finds
    policy: Policy | None = None  # the row's bits are published, and the table's program is solved
    cell: str | None = None
    phase: int | Literal["final"] = -1  # of the run; -1 is the last one
    reference: str | None = None  # with phase final: the row whose held-out accuracy is the measure
    layer: str | None = None  # with cell: the one layer of that run which the row shows, or EVERY
    # the row of uniform bits that this one is set beside, or the two between which it lies
    uniform: tuple[str, ...] = Field(default=(), max_length=2)
    cost_bits: int | None = Field(default=None, ge=1, le=16)  # cost every layer at this width
    bits: tuple[Width, ...] | None = None  # the paper's, layer by layer; costs a row without a run
    sizes: Literal["published"] | None = None  # totals follow from the published act_kb, weight_kb
    train: bool = True  # false: only arithmetic, or a run that another table trains
    reason: str | None = None  # shown where a number is missing
    published: dict[str, Published] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.overrides is None) == (self.cell is None):
            raise ValueError("give exactly one of overrides and cell")
        if self.cell is not None and self.needs:
            raise ValueError("start, teacher and chosen belong to the row whose run this one shows")
        if self.layer is not None and self.cell is None:
            raise ValueError("layer needs cell, the row whose run it is of")
        if (self.phase == "final") != (self.reference is not None):
            raise ValueError("phase: final and reference go together")
        if sum(given is not None for given in (self.cost_bits, self.bits, self.sizes)) > 1:
            raise ValueError("give at most one of cost_bits, bits and sizes")
        if self.sizes is not None and not self.published_sizes.keys() >= {"act_kb", "weight_kb"}:
            raise ValueError("sizes: published needs published act_kb and weight_kb")
        return self

    @property
    def published_sizes(self) -> dict[str, float]:
        """The paper's sizes, by column."""
        known = {name: self.published[name].value for name in SIZES if name in self.published}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def needs(self) -> list[str]:
        """Rows whose runs come before this row's own."""
        by = self.chosen.by if self.chosen is not None else None
        return [row for row in (self.start, self.teacher, by) if row is not None]


class Figure(Strict):
    """A figure; ``kind`` is a module of ``quantable.report.figures``, which knows what it takes."""

    kind: str
    x: tuple[str, ...] = ()  # columns, a panel each
    y: str = "top1_pct"  # a column
    of: tuple[str, ...] = ()  # numbers of each epoch
    base: str | None = None  # the row whose series others are compared with


class Table(Strict):
    """One table of a paper (``conf/table/<id>.yaml``)."""

    id: str
    paper: str  # key in docs/papers.bib
    title: str
    source: str
    budget: Budget  # the default
    seeds: tuple[int, ...]
    base: tuple[str, ...]
    budgets: dict[Budget, tuple[str, ...]] = Field(default_factory=dict)
    columns: dict[str, Tolerance | None]
    series: dict[str, Looks] = Field(
        default_factory=dict
    )  # of rows that have no looks of their own
    figures: dict[str, Figure] = Field(default_factory=dict)
    rows: dict[str, Row]
    points: str | None = None  # published points, a row each below the others: conf/points
    program: str | None = None  # published integer program: conf/program; its MACs are counted
    baseline: str | None = None  # the row whose run others are costed against, seed by seed
    # how far, at most, a row with phase: final lies below its reference on held-out images
    final_within_pp: dict[Strictness, float] | None = None
    claims: dict[str, Claim] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        rows, where = list(self.rows), f"conf/table/{self.id}.yaml"
        asked: list[tuple[str, str, Sequence[str]]] = [
            ("column", name, list(COLUMNS)) for name in self.columns
        ]
        asked += [("row", self.baseline, rows)] if self.baseline else []
        for row in self.rows.values():
            others = (row.cell, row.reference, *row.needs, *row.uniform)
            asked += [("row", name, rows) for name in others if name]
            asked += [("column", name, list(self.columns)) for name in row.published]
            asked += [("series", row.series, list(self.series))] if row.series else []
        for figure in self.figures.values():
            asked += [("column", name, list(COLUMNS)) for name in (*figure.x, figure.y)]
            asked += [("row", figure.base, rows)] if figure.base else []
        for claim in self.claims.values():
            asked += [("row", name, rows) for name in (*claim.rows, *claim.compared)]
            asked += [("column", name, list(COLUMNS)) for name in claim.all_columns]
        for kind, name, known in asked:
            if name not in known:
                raise unknown(kind, name, known, where)
        if self.final_within_pp is None and any(r.phase == "final" for r in self.rows.values()):
            raise ValueError("a row with phase: final needs final_within_pp")
        return self

    @model_validator(mode="after")
    def _program(self) -> Self:
        if self.program is None and any(row.policy for row in self.rows.values()):
            raise ValueError("a row with policy needs the table's program")
        if self.program is not None and self.program not in program_names():
            where = f"conf/table/{self.id}.yaml"
            raise unknown("program", self.program, program_names(), where)
        return self

    @model_validator(mode="after")
    def _uniform(self) -> Self:
        for name, row in self.rows.items():
            for other in row.uniform:
                if self.rows[other].uniform:
                    raise ValueError(f"rows.{name}.uniform: {other} is itself set beside others")
        return self

    @model_validator(mode="after")
    def _order(self) -> Self:
        rows = list(self.rows)
        for i, row in enumerate(self.rows.values()):
            for needed in row.needs:
                if needed not in rows[:i]:
                    raise ValueError(f"rows.{rows[i]}: row {needed}, which it needs, stands below")
        return self

    @property
    def kept_as(self) -> str:
        """What its runs and their records call it: its id without the words of a sweep over it."""
        return self.id.partition(" ")[0]

    def cell_of(self, row: str) -> str:
        """Name of the row whose run ``row`` shows."""
        return self.rows[row].cell or row

    def strictness(self, budget: str) -> Strictness:
        """Which bounds belong to a budget."""
        return "full" if budget in ("paper", "gpu") else "cpu"


BLOCKS: Mapping[str, type[BaseModel]] = {  # what the values of a mapping in the file are
    "rows": Row,
    "columns": Tolerance,
    "series": Looks,
    "figures": Figure,
    "published": Published,
    "holds": Bound,
}
ROW_BLOCKS: Mapping[str, type[BaseModel]] = {"policy": Policy, "chosen": Chosen}


def table_names() -> list[str]:
    """Names of all table files."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load_table(name: str) -> Table:
    """Read ``conf/table/<name>.yaml``; an unknown or missing key is an error."""
    if name not in table_names():
        raise unknown("table", name, table_names(), "command line")
    return read_table(TABLES / f"{name}.yaml")


def read_table(path: Path) -> Table:
    """Read and check one table file."""
    try:
        content = yaml.load(path.read_text(), _OneOfEach)
        table = Table.model_validate(_with_points(_with_families(content, path), path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    except ValidationError as error:
        raise UserError("\n".join(_worded(path, fault) for fault in error.errors())) from error
    if table.id != path.stem:
        raise UserError(f"{path}: id: '{table.id}' is not the file's name, {path.stem}")
    return table


class _OneOfEach(yaml.SafeLoader):
    """Reads YAML in which no mapping has a key twice: PyYAML would forget the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"a second entry of the name '{name}'", key.start_mark
                )
        return super().construct_mapping(node, deep)


def _with_families(content: object, path: Path) -> object:
    """The file's content, with a row or claim for each member of a family (``for:``)."""
    if not isinstance(content, dict):
        return content
    families = {
        block: expanded(content[block], f"{path}: {block}")
        for block in ("rows", "claims")
        if isinstance(content.get(block), dict)
    }
    return content | families


def _with_points(content: object, path: Path) -> object:
    """The file's content, with a row for each published point that it names."""
    if not isinstance(content, dict) or not isinstance(content.get("points"), str):
        return content
    rows = read_points(content["points"], str(path)).rows()
    return content | {"rows": {**(content.get("rows") or {}), **rows}}


def _worded(path: Path, fault: ErrorDetails) -> str:
    """Word one finding of pydantic: file, place, and the nearest right name for a wrong key."""
    place, kind = [str(part) for part in fault["loc"]], None
    if place[:1] == ["claims"] and len(place) > 2:
        kind = KINDS[place.pop(2)]  # pydantic puts it into the place, the file does not
    message = fault["msg"].removeprefix("Value error, ")
    if message.startswith("conf/"):
        return message
    if fault["type"] == "extra_forbidden":
        block = BLOCKS.get(place[-3], kind or Table) if len(place) > 2 else Table
        if place[0] == "rows" and len(place) == 4:
            block = ROW_BLOCKS[place[2]]
        where = ": ".join([str(path), *[".".join(place[:-1])][: len(place) - 1]])
        return str(unknown("key", place[-1], block.model_fields, where))
    return f"{path}: {'.'.join(place)}: {message}"
