"""Cells: the runs a table stands for, each a complete config with its signature."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from quantable.allocation.choice import choose
from quantable.base.content import SHA256
from quantable.base.errors import UserError, unknown
from quantable.config.composition import compose_run
from quantable.config.signature import MACHINE, belongs, flat, signature
from quantable.config.widths import with_layers
from quantable.cost.hardware import hardware_of
from quantable.networks.layers import LayerShape, Network
from quantable.networks.shapes import PACKAGED, read_network, shape_key
from quantable.store.bits_file import BitsFile
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.schema import SINGLE, Table


@dataclass(frozen=True)
class Cell:
    """One run of a table: a row's complete config for one seed."""

    table: str | None
    row: str
    seed: int
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    search: str | None = None  # signature of the search that still has to choose the bit-widths
    budgets: Mapping[str, float] | None = None  # what they may need, as long as they are not chosen
    layers: Mapping[str, Any] | None = None  # the row's own bits by layer, as long as that
    draft: str | None = None  # signature that the cell had as long as that
    bits: BitsFile | None = None  # what a search has chosen
    impossible: str | None = None  # why there is nothing to run: a search found no bit-widths
    origin: tuple[str, bool] | None = None  # commit, and whether all was committed, when frozen

    @cached_property
    def signature(self) -> str:
        """Name of the question this cell asks."""
        return signature(self.config)

    @property
    def label(self) -> str:
        """What a message calls the cell."""
        return f"{self.row} seed {self.seed}"

    @property
    def bits_name(self) -> str:
        """Name of the bits file of a cell whose bit-widths a search has chosen."""
        return f"{self.table}-{self.row}-{self.signature}"

    @property
    def needs(self) -> list[str]:
        """Signatures of the runs that come before this one."""
        before = (self.search, self.config["start"], self.config["teacher"])
        return [name for name in before if name is not None]

    def decided(self, record: Record, shapes: Sequence[LayerShape]) -> "Cell":
        """The cell with the bit-widths that its search, which has this ``record``, chooses."""
        assert self.budgets is not None, "only a cell that waits is decided"
        assert self.layers is not None
        plain = with_layers(dict(self.config), dict(self.layers))
        file = choose(record, shapes, self.budgets, hardware_of(plain), plain)
        config = with_layers(plain, {layer: list(pair) for layer, pair in file.layers.items()})
        chosen = replace(self, config=config, bits=file, draft=self.signature)
        return replace(chosen, search=None, budgets=None, layers=None)

    @property
    def command(self) -> str:
        """Words that run this cell alone; places on a machine are left for the user to fill in."""
        own = [word for word in self.overrides if not belongs(word.partition("=")[0], MACHINE)]
        return self._command(_with_hashes(own, dict(flat(self.config))))

    def command_here(self, places: Sequence[str] = ()) -> str:
        """Words that run this cell alone on this machine: the user's own, and ``places``."""
        return self._command([*self.overrides, *places])

    def _command(self, own: Sequence[str]) -> str:
        words = [f"budget={self.config['budget']['name']}", f"seed={self.seed}", *own]
        if self.table not in (None, SINGLE):
            words = [f"+table={self.table}", f"rows={self.row}", *words]
        return shlex.join(["python", "reproduce/run.py", *words])


def _with_hashes(words: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Words that say the content of a file instead of its place.

    >>> config = {"model.net.weights": "a/b", "model.net.weights_sha256": "0f"}
    >>> _with_hashes(["model.net.width=2", "+model.net.weights=a/b"], config)
    ['model.net.width=2', '+model.net.weights_sha256=0f']
    """
    found = []
    for word in words:
        key = word.partition("=")[0]
        sha256 = config.get(f"{key.lstrip('+')}{SHA256}")
        found.append(word if sha256 is None else f"{key}{SHA256}={sha256}")
    return list(dict.fromkeys(found))


def any_variant(config: Mapping[str, Any]) -> str | None:
    """Ask for no data variant."""
    del config
    return None


@dataclass(frozen=True)
class Asked:
    """What the user asked of a table: overrides that win over everything, and filters.

    ``stores`` hold the finished searches, which decide what some rows are; ``variant`` says on
    which data variant a config's records are to be made (None: any, the original first).
    """

    overrides: tuple[str, ...] = ()
    budget: str | None = None
    rows: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    stores: tuple[Store, ...] = field(default=(), compare=False)
    variant: Callable[[Mapping[str, Any]], str | None] = field(default=any_variant, compare=False)
    _configs: dict[tuple[str, ...], dict[str, Any]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _cells: dict[tuple[str, str, str, int], Cell] = field(
        default_factory=dict, repr=False, compare=False
    )

    def cell(self, table: Table, row: str, budget: str, seed: int) -> Cell:
        """Return the run behind a row: run.yaml, table, its budget, row, its budget, user's words.

        Where a search that chooses its bit-widths is not done, the cell names it in ``search``.
        """
        name = table.cell_of(row)
        key = (table.id, name, budget, seed)
        if key not in self._cells:
            cell = self._cell(table, name, budget, seed)
            if cell.search is not None:  # its search may be done when asked again
                return cell
            self._cells[key] = cell
        return self._cells[key]

    def _cell(self, table: Table, name: str, budget: str, seed: int) -> Cell:
        run = table.rows[name]
        words = [f"budget={budget}", *table.base, *table.budgets.get(budget, ())]  # type: ignore[call-overload]
        words += [*(run.overrides or ()), *run.budgets.get(budget, ())]  # type: ignore[call-overload]
        try:
            config = self._config((*words, *self.overrides)) | {"seed": seed}
        except UserError as error:  # the words may be for other rows than one that these need
            where = "" if len(table.rows) == 1 else f"row {name}: "
            raise UserError(f"{where}{error}") from error
        impossible = None
        said = self.overrides
        if table.kept_as == SINGLE:  # without a table a row is nothing but its words
            more = (word for word in run.overrides or () if not word.startswith("budget="))
            said = (*more, *said)
        for key, other in (("start", run.start), ("teacher", run.teacher)):
            if other is not None:
                needed = self.cell(table, other, budget, seed)
                config[key], impossible = needed.signature, impossible or needed.impossible
        if run.chosen is None:
            return Cell(table.kept_as, name, seed, config, said, impossible=impossible)
        search = self.cell(table, run.chosen.by, budget, seed)
        record, shapes = self.find(search.signature, search.config), self.shapes(config)
        if record is not None and record.scores is not None:
            impossible = impossible or record.scores.why_nothing
        own = config["bits"]["layers"]
        waiting = with_layers(config, {f"{name} by {search.signature}": [1, 1]})  # no record's
        if impossible is not None:
            return Cell(table.kept_as, name, seed, waiting, said, impossible=impossible)
        wait = {"search": search.signature, "budgets": run.chosen.budgets, "layers": own}
        cell = Cell(table.kept_as, name, seed, waiting, said, **wait)
        return cell if record is None or shapes is None else cell.decided(record, shapes)

    def _config(self, words: tuple[str, ...]) -> dict[str, Any]:
        if words not in self._configs:  # seeds, and rows that a search tells apart, share one
            self._configs[words] = compose_run(words)
        return self._configs[words]

    def find(self, signature: str, config: Mapping[str, Any]) -> Record | None:
        """Return a run's record, on the images of ``config``, from the first store that has it."""
        variant = self.variant(config)
        found = (store.find(signature, variant) for store in self.stores)
        return next((record for record in found if record is not None), None)

    def network(self, config: Mapping[str, Any]) -> Network | None:
        """What is known of a config's network, packaged or traced by an earlier run."""
        key = shape_key(config["model"], config["data"]["input_size"])
        return read_network(key, [PACKAGED, *(store.shapes for store in self.stores)])

    def shapes(self, config: Mapping[str, Any]) -> list[LayerShape] | None:
        """Layer shapes of a config's network, where they are kept."""
        network = self.network(config)
        return None if network is None else network.layers

    def chosen_rows(self, table: Table) -> list[str]:
        """Rows the user asked for, in the table's order; an unknown one is an error."""
        for name in self.rows or ():
            if name not in table.rows:
                raise unknown("row", name, table.rows, f"table {table.id}")
        return [name for name in table.rows if self.rows is None or name in self.rows]

    def cells(self, table: Table) -> list[Cell]:
        """Every run that the asked rows need, each once, rows before seeds, starts first.

        Those that are known to be impossible are left out.
        """
        budget = self.budget or table.budget
        names: dict[str, None] = {}
        for row in self.chosen_rows(table):
            _add_with_needs(table, table.cell_of(row), names)
        trained = [name for name in names if table.rows[name].train]
        cells: dict[str, Cell] = {}
        for seed in self.seeds if self.seeds is not None else table.seeds:
            for name in trained:
                cell = self.cell(table, name, budget, seed)
                if cell.impossible is None:
                    cells.setdefault(cell.signature, cell)
        return list(cells.values())


def _add_with_needs(table: Table, name: str, names: dict[str, None]) -> None:
    """Add the row ``name`` to ``names`` behind the rows whose runs it needs."""
    for other in table.rows[name].needs:
        _add_with_needs(table, table.cell_of(other), names)
    names[name] = None
