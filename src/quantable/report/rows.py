"""What is known about a table's rows: runs, numbers by column, numbers over seeds. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from quantable.allocation.program import Comparison, Program, compare, read_program
from quantable.base.bits import Bits
from quantable.base.errors import unknown
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.cost.hardware import hardware_of
from quantable.networks.layers import LayerShape, in_order
from quantable.report.row_facts import RowFacts, bits_of, phase_of
from quantable.report.verdict import COMPUTED, Measured
from quantable.store.record import Phase, Record, distance
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell, any_variant
from quantable.tables.claims import Claim
from quantable.tables.schema import BUDGETS, EVERY, Row, Table


class Rows:
    """Looks up what is known about a table's rows, each thing once."""

    def __init__(self, table: Table, asked: Asked, stores: Sequence[Store]) -> None:
        self.table = table
        self.asked = replace(asked, stores=tuple(stores), variant=any_variant)
        self.stores = stores
        self._rows: dict[str, RowFacts] = {}
        self._numbers: dict[tuple[str, str], Mapping[int, float]] = {}
        self.budget = asked.budget or self._largest_budget()
        self._take_every_layer()
        self._take_one_variant()

    def _take_every_layer(self) -> None:
        """Put a row for each layer into the place of an asked row of every layer."""
        asked = self.asked.chosen_rows(self.table)
        rows: dict[str, Row] = {}
        chosen: list[str] = []
        for name, row in self.table.rows.items():
            own = {name: row}
            if row.layer == EVERY and name in asked:  # else what the user changes may not fit it
                own = self._of_layers(name)
            rows |= own
            chosen += own if name in asked else []
        self.table = self.table.model_copy(update={"rows": rows})
        if self.asked.rows is not None:
            self.asked = replace(self.asked, rows=tuple(chosen))

    def _of_layers(self, name: str) -> dict[str, Row]:
        """The rows of a network's layers; the row itself, with the reason, where none is known."""
        row, config = self.table.rows[name], self.cell(name, self.budget, self.seeds[0]).config
        shapes = self.asked.shapes(config)
        if shapes is None:
            why = "the layers of its network are known once it has run"
            return {name: row.model_copy(update={"reason": why})}
        return {
            f"{name}.{shape.name}": row.model_copy(
                update={"layer": shape.name, "label": f"{row.label}: {shape.name}"}
            )
            for shape in shapes
        }

    def _take_one_variant(self) -> None:
        """Let all numbers come from one variant of each data set: no row and no claim mixes two.

        It is the original, or else the closest to it, of which there are the most records.
        """
        known = self._variants()
        taken = {
            data: min(found, key=lambda word: (*distance(word), -found[word], word))
            for data, found in known.items()
        }
        self.asked = replace(self.asked, variant=lambda config: taken.get(config["data"]["id"]))
        if any(len(found) > 1 for found in known.values()):  # then searches may have two results
            self.asked = replace(self.asked, _cells={})

    def _variants(self) -> dict[str, Counter[str]]:
        """Count records by data set and variant, of rows that are what they are without a search.

        All others begin with a search that is one of these rows. Rows that were not asked for are
        left alone: what the user changes may not fit them.
        """
        known: dict[str, Counter[str]] = {}
        for cell in replace(self.asked, budget=self.budget).cells(self.table):
            if self.table.rows[cell.row].chosen is None:
                words = [w for s in self.stores for w in s.variants(cell.signature)]
                if words:
                    known.setdefault(cell.config["data"]["id"], Counter()).update(words)
        return known

    def _largest_budget(self) -> str:
        """Return the largest budget with a current record, or the table's default."""
        present = {head.budget for store in self.stores for head in store.heads()}
        for budget in BUDGETS:
            if budget in present and any(
                self.find(self.cell(row, budget, seed))
                for row, about in self.table.rows.items()
                for seed in self.seeds
                if about.train
            ):
                return budget
        return self.table.budget

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds the report is over."""
        return self.asked.seeds if self.asked.seeds is not None else self.table.seeds

    def cell(self, row: str, budget: str, seed: int) -> Cell:
        """Return the run behind a row."""
        return self.asked.cell(self.table, row, budget, seed)

    def find(self, cell: Cell) -> Record | None:
        """Return the cell's record from the first store that has it."""
        return self.asked.find(cell.signature, cell.config)

    def row(self, name: str) -> RowFacts:
        """Collect the facts of one row for every seed that has a record, or those known without."""
        row, missing = self.table.rows[name], None
        cells = {seed: self.cell(name, self.budget, seed) for seed in self.seeds}
        records = {seed: self.find(cell) for seed, cell in cells.items()}
        # The paper's bit-widths belong to its own network, and never mix with those of our runs.
        given = row.bits if self.budget == "paper" and not any(records.values()) else None
        facts = {}
        for seed, cell in cells.items():
            record, phase = records[seed], None
            missing = cell.impossible or missing
            if cell.search is not None:
                missing = "the search that chooses its bit-widths is not run"
            if record is not None and record.scores is None:
                phase = self._phase(row, record, seed)
                if phase is None:
                    missing = f"no such phase: the run had {len(record.phases)}, or no reference"
                    continue
            shapes = self._shapes(cell)
            bits = bits_of(row, cell, shapes, phase)
            if given is not None and shapes is not None:
                bits = in_order(shapes, given, f"table {self.table.id}: rows.{name}.bits")
            facts[seed] = Facts(
                shapes,
                bits,
                hardware_of(cell.config),
                record,
                phase,
                row.cost_bits,
                # A run's result cost all of its epochs, also those of phases tried after it.
                whole_run=row.phase == "final",
                baseline=self._of_row(self.table.baseline, seed),
                network=self.asked.network(cell.config),
                sizes=row.published_sizes if row.sizes is not None else None,
                policy=self._solved(name, bits),
                uniform=self._beside(row, seed),
                layer=self._layer(name, shapes),
                accumulator=cell.config["bits"]["accumulator"],
            )
        return RowFacts(facts, row.reason or missing, given is not None)

    def _phase(self, row: Row, record: Record, seed: int) -> Phase | None:
        within_pp = (self.table.final_within_pp or {}).get(self.table.strictness(self.budget))
        return phase_of(row, record, self._of_row(row.reference, seed), within_pp)

    def _beside(self, row: Row, seed: int) -> tuple[Facts, ...]:
        """Facts of the rows of uniform bits beside a row, of the same seed; all of them or none."""
        found = [self.row_facts(name).by_seed.get(seed) for name in row.uniform]
        known = tuple(facts for facts in found if facts is not None)
        return known if len(known) == len(found) else ()

    def _layer(self, name: str, shapes: Sequence[LayerShape] | None) -> str | None:
        """The layer that a row shows; one that the network has not is an error."""
        layer, known = self.table.rows[name].layer, [shape.name for shape in shapes or ()]
        if layer is not None and known and layer not in known:
            raise unknown("layer", layer, known, f"table {self.table.id}: rows.{name}.layer")
        return layer

    def _of_row(self, name: str | None, seed: int) -> Record | None:
        """Return the run of another row with the same seed, where one is named."""
        return None if name is None else self.find(self.cell(name, self.budget, seed))

    def _shapes(self, cell: Cell) -> list[LayerShape] | None:
        """Layer shapes of a run's network, with the MACs that the table's program counts."""
        shapes = self.asked.shapes(cell.config)
        if shapes is None or self._program is None:
            return shapes
        return self._program.recount(shapes, f"conf/program/{self.table.program}.json")

    @cached_property
    def _program(self) -> Program | None:
        if self.table.program is None:
            return None
        return read_program(self.table.program)

    def _solved(self, name: str, bits: Mapping[str, Bits] | None) -> Comparison | None:
        """Set a row's bits beside the program's solution, where the row asks for one."""
        policy = self.table.rows[name].policy
        if policy is None or bits is None or self._program is None:
            return None
        where = f"table {self.table.id}: rows.{name}.policy"
        return compare(self._program, policy, bits, where)

    def by_seed(self, name: str, column: str) -> Mapping[int, float]:
        """A row's numbers, of the seeds that have one."""
        if (name, column) not in self._numbers:
            known = self.row_facts(name).by_seed
            numbers = {seed: COLUMNS[column].value(facts) for seed, facts in known.items()}
            found = {seed: number for seed, number in numbers.items() if number is not None}
            self._numbers[name, column] = found
        return self._numbers[name, column]

    def known(self, name: str, column: str) -> list[tuple[Facts, float]]:
        """A row's numbers, one for each seed that has one, with the facts behind it."""
        facts = self.row_facts(name).by_seed
        return [(facts[seed], number) for seed, number in self.by_seed(name, column).items()]

    def mean(self, name: str, column: str) -> float | None:
        """Mean of a row's numbers over its seeds."""
        measured = self.measured(name, column)
        return None if measured is None else measured.mean

    def impossible(self, name: str) -> bool:
        """Whether no seed of a row can have a number: a search found no bit-widths for it."""
        row = self.table.cell_of(name)
        return all(self.cell(row, self.budget, seed).impossible for seed in self.seeds)

    def measured(self, name: str, column: str) -> Measured | None:
        """A row's number over its seeds."""
        return self._over_seeds(self.by_seed(name, column), [(name, column)])

    def claimed(self, name: str, claim: Claim) -> Measured | None:
        """The number that ``claim`` makes of a row, over its seeds."""
        return self._over_seeds(claim.measured(name, self), claim.terms(name, self))

    def _over_seeds(
        self, numbers: Mapping[int, float], terms: Sequence[tuple[str, str]]
    ) -> Measured | None:
        """Make one number of several seeds'; without runs only searches make them differ.

        ``terms``: the rows and columns that the numbers are made of.
        """
        values, runs = tuple(numbers.values()), [r for term in terms for r in self._runs(*term)]
        runs = [run for run in runs if run.seed in numbers]
        if not values:
            return None
        if not runs:
            budget = COMPUTED if self.budget == "paper" else self.budget
            return Measured(values if len(set(values)) > 1 else values[:1], budget, None)
        titles = dict.fromkeys(record.data.title for record in runs)
        original = not any(record.data.variant for record in runs)
        budgets = dict.fromkeys(record.budget for record in runs)
        return Measured(values, ", ".join(budgets), ", ".join(titles), original_data=original)

    def _runs(self, name: str, column: str) -> list[Record]:
        """Return the records a number depends on; none where arithmetic alone gives it."""
        kept = [facts.record for facts, _ in self.known(name, column) if facts.record is not None]
        learned = bool(kept and kept[0].config["quantizer.learns_bits"])
        return kept if COLUMNS[column].trained or learned else []

    def row_facts(self, name: str) -> RowFacts:
        """Facts of a row, looked up once."""
        if name not in self._rows:
            self._rows[name] = self.row(name)
        return self._rows[name]
