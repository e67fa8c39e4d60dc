"""Table and records to one report: every number with its source, budget and verdict. No torch.

The classes here are also the schema of ``report.py format=json``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from quantable.allocation.program import Comparison, Program, compare, read_program
from quantable.base.bits import Bits
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.config.widths import planned_bits
from quantable.cost.hardware import hardware_of
from quantable.networks.layers import LayerShape, in_order, uniform
from quantable.report.verdict import COMPUTED, Measured, at_most, holds, judge, paired_t
from quantable.store.record import Phase, Record, distance
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell, any_variant
from quantable.tables.schema import BUDGETS, Bound, Claim, Published, Table


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PublishedOut(_Out):
    """A number of the paper."""

    value: float
    source: str
    confidence: str
    std: float | None = None  # of ``n`` runs
    n: int | None = None


class MeasuredOut(_Out):
    """Our number; ``std`` is null for one seed."""

    mean: float
    std: float | None
    n: int
    budget: str
    data: str | None
    records: list[str]


class Entry(_Out):
    """One row and column of the table. ``hint`` is a number no verdict may rest on."""

    row: str
    label: str
    column: str
    unit: str
    published: PublishedOut | None
    hint: PublishedOut | None
    measured: MeasuredOut | None
    verdict: str
    reason: str | None


class ClaimLine(_Out):
    """One claim of the paper: holds, does not hold, or not judged.

    ``measured`` is, by ``kind``: ``column`` of ``row`` (value, largest), ``reference`` minus
    ``row`` (drop), ``row`` divided by ``reference`` (times), ``column`` by ``over`` (over).
    """

    claim: str
    text: str
    source: str
    kind: str
    row: str
    column: str
    reference: str | None
    over: str | None
    unit: str
    claimed: float | None
    measured: MeasuredOut | None
    bound: str | None
    verdict: str
    reason: str | None


class Vector(_Out):
    """Bit-widths ``[weight, activation]`` of every layer, in execution order, behind one row.

    ``seed`` is null where no run was needed; ``channels`` are output channels where some were
    pruned, null for a layer that was not.
    """

    row: str
    label: str
    seed: int | None
    layers: list[str]
    bits: list[tuple[int, int]]
    channels: list[int | None] | None


class Report(_Out):
    """Everything a rendered report shows."""

    table: str
    title: str
    paper: str
    source: str
    budget: str
    rows: list[Entry]
    claims: list[ClaimLine]
    vectors: list[Vector]
    notes: list[str]


@dataclass(frozen=True)
class _RowFacts:
    """A row's facts over its seeds."""

    by_seed: dict[int, Facts]
    missing: str | None  # why there is no record
    given: bool  # whether its bit-widths are the paper's, as no run has found any

    @property
    def facts(self) -> list[Facts]:
        """Facts of every seed that has some."""
        return list(self.by_seed.values())


class Reporter:
    """Looks up what is known about a table's rows."""

    def __init__(self, table: Table, asked: Asked, stores: Sequence[Store]) -> None:
        self.table = table
        self.asked = replace(asked, stores=tuple(stores), variant=any_variant)
        self.stores = stores
        self._rows: dict[str, _RowFacts] = {}
        self.budget = asked.budget or self._largest_budget()
        self._take_one_variant()

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

        All others begin with a search that is one of these rows.
        """
        known: dict[str, Counter[str]] = {}
        for name in dict.fromkeys(map(self.table.cell_of, self.table.rows)):
            if self.table.rows[name].chosen is None and self.table.rows[name].train:
                for seed in self.seeds:
                    cell = self.cell(name, self.budget, seed)
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

    def row(self, name: str) -> _RowFacts:
        """Collect the facts of one row for every seed that has a record, or those known without."""
        row, missing = self.table.rows[name], None
        cells = {seed: self.cell(name, self.budget, seed) for seed in self.seeds}
        records = {seed: self.find(cell) for seed, cell in cells.items()}
        # The paper's bit-widths belong to its own network, and never mix with those of our runs.
        given = row.bits if self.budget == "paper" and not any(records.values()) else None
        facts = {}
        for seed, cell in cells.items():
            record, phase = records[seed], None
            if cell.search is not None:
                missing = "the search that chooses its bit-widths is not run"
            if record is not None and record.scores is None:
                phase = self._phase(name, record, seed)
                if phase is None:
                    missing = f"no such phase: the run had {len(record.phases)}, or no reference"
                    continue
            shapes = self._shapes(cell)
            bits = self._bits(cell, shapes, record, phase, row.cost_bits)
            if row.sizes is not None:
                bits = None  # the paper's, which are not published
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
                baseline=self._baseline(seed),
                batch_norm_channels=self.asked.batch_norm_channels(cell.config),
                sizes=row.published_sizes if row.sizes is not None else None,
                policy=self._solved(name, bits),
            )
        return _RowFacts(facts, row.reason or missing, given is not None)

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

    def _baseline(self, seed: int) -> Record | None:
        """Return the run of the table's baseline row with the same seed."""
        if self.table.baseline is None:
            return None
        return self.find(self.cell(self.table.baseline, self.budget, seed))

    def _phase(self, name: str, record: Record, seed: int) -> Phase | None:
        wanted, reference = self.table.rows[name].phase, self.table.rows[name].reference
        if wanted == "final":
            assert reference is not None, "checked when the table was read"
            return self._final(reference, record, seed)
        if wanted >= len(record.phases):
            return None
        return record.phases[wanted]

    def _final(self, reference: str, record: Record, seed: int) -> Phase | None:
        """Choose the run's result: the last phase close enough to the reference on held-out images.

        Where none is, the first quantized phase; test images play no part (AD's card, 11).
        """
        assert self.table.final_within_pp is not None, "checked when the table was read"
        found = self.find(self.cell(reference, self.budget, seed))
        if found is None or len(record.phases) < 2:
            return None
        allowed = self.table.final_within_pp[self.table.scale(self.budget)]
        least = found.history[-1].held_out_pct - allowed
        for phase in reversed(record.phases[1:]):
            if at_most(least, record.history[phase.first_epoch + phase.epochs - 1].held_out_pct):
                return phase
        return record.phases[1]

    def _bits(
        self,
        cell: Cell,
        shapes: list[LayerShape] | None,
        record: Record | None,
        phase: Phase | None,
        cost_bits: int | None,
    ) -> dict[str, Bits] | None:
        if shapes is None or cell.search is not None or cell.config["search"] is not None:
            return None
        if cost_bits is not None:
            return uniform(shapes, cost_bits)
        if record is not None and phase is not None:
            return phase.bit_map
        return planned_bits(cell.config, shapes)

    def known(self, name: str, column: str) -> list[tuple[Facts, float]]:
        """Return a row's numbers, one for each seed that has one, with the facts behind it."""
        numbers = [(f, COLUMNS[column].value(f)) for f in self.row_facts(name).facts]
        return [(facts, number) for facts, number in numbers if number is not None]

    def measured(self, name: str, column: str) -> Measured | None:
        """Return a row's number over its seeds."""
        values = [value for _, value in self.known(name, column)]
        return self._over_seeds(values, self._runs(name, column)) if values else None

    def _runs(self, name: str, column: str) -> list[Record]:
        """Return the records a number depends on; none where arithmetic alone gives it."""
        kept = [facts.record for facts, _ in self.known(name, column) if facts.record is not None]
        learned = bool(kept and kept[0].config["quantizer.learns_bits"])
        return kept if COLUMNS[column].trained or learned else []

    def _over_seeds(self, values: Sequence[float], runs: Sequence[Record]) -> Measured:
        """Make one number of several seeds'; without ``runs`` only searches make them differ."""
        if not runs:
            budget = COMPUTED if self.budget == "paper" else self.budget
            return Measured(tuple(values) if len(set(values)) > 1 else (values[0],), budget, None)
        titles = dict.fromkeys(record.data.title for record in runs)
        original = not any(record.data.variant for record in runs)
        return Measured(tuple(values), self.budget, ", ".join(titles), original_data=original)

    def claimed(self, name: str, claim: Claim) -> Measured | None:
        """Return the number that ``claim`` makes of a row, seed by seed where it compares two."""
        if claim.kind in ("value", "largest"):
            return self.measured(name, claim.column)
        if any(self.measured(row, claim.column) is None for row in claim.others):
            return None  # the best of some is not the best of all
        other = self._reference(claim) or name
        first, second = (name, claim.column), (other, claim.over or claim.column)
        own, others = self._by_seed(*first), self._by_seed(*second)
        common = own.keys() & others.keys()
        if claim.kind in ("drop", "behind"):
            values = [others[seed] - own[seed] for seed in sorted(common)]
        else:
            values = [own[seed] / others[seed] for seed in sorted(common) if others[seed] != 0]
        if not values:
            return None
        runs = [*self._runs(*first), *self._runs(*second)]
        return self._over_seeds(values, [run for run in runs if run.seed in common])

    def _reference(self, claim: Claim) -> str | None:
        """Return the row that ``claim`` compares with: its own, or the best of several by mean."""
        known = [(m.mean, row) for row in claim.others if (m := self.measured(row, claim.column))]
        return max(known)[1] if known else claim.reference

    def _by_seed(self, name: str, column: str) -> dict[int, float]:
        numbers = {s: COLUMNS[column].value(f) for s, f in self.row_facts(name).by_seed.items()}
        return {seed: number for seed, number in numbers.items() if number is not None}

    def row_facts(self, name: str) -> _RowFacts:
        """Facts of a row, looked up once."""
        if name not in self._rows:
            self._rows[name] = self.row(name)
        return self._rows[name]

    def entry(self, name: str, column: str) -> Entry:
        """Judge one row and column."""
        row = self.table.rows[name]
        measured = self.measured(name, column)
        published = row.published.get(column)
        verdict = judge(published, measured, self.table.columns[column], len(self.table.seeds))
        facts = self.row_facts(name)
        own = next((COLUMNS[column].reason(known) for known in facts.facts), None)
        reason = verdict.reason or own
        if measured is None:
            reason = own or facts.missing or reason
        elif facts.given:
            reason = reason or "computed from the paper's bit-widths, not from a run"
        if published is not None and published.confidence == "doubtful":
            reason = f"{COLUMNS[column].title}: doubtful, {published.reason}"
        elif measured is not None and row.sizes is not None:
            reason = reason or "computed from the published sizes, not from bit-widths"
        return Entry(
            row=name,
            label=row.label,
            column=column,
            unit=COLUMNS[column].unit,
            published=_published(published) if published and published.counts else None,
            hint=_published(published) if published and not published.counts else None,
            measured=self._out(measured, name),
            verdict=verdict.word,
            reason=reason or (published.reason if published else None),
        )

    def _out(self, measured: Measured | None, *rows: str) -> MeasuredOut | None:
        if measured is None:
            return None
        facts = [f for row in rows for f in self.row_facts(row).facts]
        kept = dict.fromkeys(f.record.name for f in facts if f.record is not None)
        return MeasuredOut(
            mean=measured.mean,
            std=measured.std,
            n=measured.n,
            budget=measured.budget,
            data=measured.data,
            records=list(kept) if measured.data else [],
        )

    def claim(self, name: str, claim: Claim) -> ClaimLine:
        """Judge one claim over the mean values of its rows; the line names the row it rests on."""
        scale, reference = self.table.scale(self.budget), self._reference(claim)
        bound = claim.holds.get(scale)
        reached = [(row, m) for row in claim.rows if (m := self.measured(row, claim.column))]
        shown, out = reached[-1] if reached else (claim.rows[-1], None)
        if reached and claim.kind == "largest":
            shown, out = max(reached, key=lambda found: found[1].mean)
        if out is not None:
            out = self.claimed(shown, claim)
        reason = None
        if out is None:
            verdict, reason = "not judged", "not run"
        elif claim.report_only is not None:
            verdict, reason = "not judged", claim.report_only
        elif bound is None or self.budget == "smoke":
            verdict, reason = "not judged", f"budget {self.budget} proves nothing"
        else:
            good = holds([m.mean for _, m in reached], out.mean, bound)
            if bound.t is not None:
                t = paired_t(out.values)
                good &= at_most(bound.t, t)
                reason = f"paired t = {t:.2f}, {out.n - 1} degrees of freedom"
            verdict = "holds" if good else "does not hold"
            if out.data and out.n < len(self.table.seeds):
                reason = f"{out.n} of {len(self.table.seeds)} seeds"
                verdict = verdict if bound.t is None else "not judged"
        return ClaimLine(
            claim=name,
            text=claim.text,
            source=claim.source,
            kind=claim.kind,
            row=shown,
            column=claim.column,
            reference=reference,
            over=claim.over,
            unit=claim.unit,
            claimed=claim.value,
            measured=self._out(out, shown, *filter(None, [reference])),
            bound=_bound(bound) if bound else None,
            verdict=verdict,
            reason=reason,
        )

    def vector(self, name: str) -> Vector | None:
        """Layer by layer, the bit-widths of a row's first seed; None where its inner layers agree.

        Without a run they are those that are planned, or the paper's own.
        """
        known = [facts for facts in self.row_facts(name).facts if facts.bits is not None]
        facts = next((f for f in known if f.record is not None), known[0] if known else None)
        if facts is None or facts.bits is None:
            return None
        channels = facts.phase.channels if facts.phase is not None else None
        widths = list(facts.bits.values())
        if channels is None and len(set(widths[1:-1])) < 2:
            return None
        return Vector(
            row=name,
            label=self.table.rows[name].label,
            seed=facts.record.seed if facts.record is not None else None,
            layers=list(facts.bits),
            bits=[(width.weight, width.act) for width in widths],
            channels=None if channels is None else [channels.get(name) for name in facts.bits],
        )

    def report(self) -> Report:
        """Build the whole report."""
        rows = self.asked.chosen_rows(self.table)
        scale = self.table.scale(self.budget)
        vectors = [self.vector(row) for row in rows]
        return Report(
            table=self.table.id,
            title=self.table.title,
            paper=self.table.paper,
            source=self.table.source,
            budget=self.budget,
            rows=[self.entry(row, column) for row in rows for column in self.table.columns],
            claims=[
                self.claim(name, claim)
                for name, claim in self.table.claims.items()
                if {*claim.rows, *claim.others, *filter(None, [claim.reference])} <= set(rows)
                and (scale in claim.holds or claim.report_only)
            ],
            vectors=[vector for vector in vectors if vector is not None],
            notes=list(self.table.notes),
        )


def _published(published: Published) -> PublishedOut | None:
    if published.value is None:
        return None
    return PublishedOut(
        value=published.value,
        source=str(published.source),
        confidence=str(published.confidence),
        std=published.std,
        n=published.n,
    )


def _bound(bound: Bound) -> str:
    """Word a bound.

    >>> _bound(Bound(min=1.8, rising=True)), _bound(Bound(min=0.4, max=0.6, t=2.132))
    ('at least 1.8, rising', '0.4 to 0.6, paired t at least 2.132')
    """
    least, most = bound.min, bound.max
    if least is not None and most is not None:
        words = [f"{least:g} to {most:g}"]
    else:
        words = [f"at least {least:g}"] if least is not None else []
        words += [f"at most {most:g}"] if most is not None else []
    words += ["rising"] if bound.rising else []
    words += [f"paired t at least {bound.t:g}"] if bound.t is not None else []
    return ", ".join(words)
