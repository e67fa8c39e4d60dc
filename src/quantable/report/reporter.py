"""Table and records to one report: every number with its source, budget and verdict. No torch."""

from collections.abc import Sequence
from typing import Any

from quantable.base.bits import FLOAT_BITS, Bits
from quantable.base.errors import unknown
from quantable.columns import COLUMNS
from quantable.report.row_facts import batch_norms_of
from quantable.report.rows import Rows
from quantable.report.schema import ClaimLine, Entry, MeasuredOut, PublishedOut, Report, Vector
from quantable.report.verdict import Measured, Verdict, at_most, holds, judge, paired_t
from quantable.store.trouble import trouble
from quantable.tables.claims import Bound, Claim
from quantable.tables.schema import Published
from quantable.tables.sweep import Sweep


class Reporter(Rows):
    """Judges what is known about a table's rows."""

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
            measured=self._out(measured, column, name),
            verdict=verdict.word,
            reason=reason or (published.reason if published else None),
        )

    def _out(self, measured: Measured | None, column: str, *rows: str) -> MeasuredOut | None:
        if measured is None:
            return None
        facts = [f for row in rows for f in self.row_facts(row).facts]
        kept = dict.fromkeys(f.record.name for f in facts if f.record is not None)
        said = [batch_norms_of(f) for f in facts] if COLUMNS[column].trained else []
        norms = dict.fromkeys(words for words in said if words is not None)
        return MeasuredOut(
            mean=measured.mean,
            std=measured.std,
            n=measured.n,
            budget=measured.budget,
            data=measured.data,
            records=list(kept) if measured.data else [],
            batch_norms="; ".join(norms) or None,
        )

    def claim(self, name: str, claim: Claim) -> ClaimLine:
        """Judge one claim over the mean values of its rows; the line names the row it rests on."""
        known = {row: self.mean(row, claim.column) for row in claim.rows}
        means = {row: mean for row, mean in known.items() if mean is not None}
        shown = claim.shown(means) if means else claim.rows[-1]
        measured = self.claimed(shown, claim) if means else None
        reference = claim.reference_of(self)
        bound = claim.holds.get(self.table.strictness(self.budget))
        verdict = self._judged(claim, bound, list(means.values()), measured)
        return ClaimLine(
            claim=name,
            text=claim.text,
            source=claim.source,
            kind=claim.kind,
            row=shown,
            column=claim.column,
            reference=reference,
            over=next(iter(claim.all_columns[1:]), None),
            unit=claim.unit,
            claimed=claim.value,
            measured=self._out(measured, claim.column, shown, *filter(None, [reference])),
            bound=str(bound) if bound else None,
            verdict=verdict.word,
            reason=verdict.reason,
        )

    def _judged(
        self, claim: Claim, bound: Bound | None, means: Sequence[float], measured: Measured | None
    ) -> Verdict:
        """Say whether a claim holds, or why nothing is said."""
        if bound is not None and claim.proof is not None:
            return Verdict("holds", claim.proof)
        if measured is None:
            return Verdict("not judged", "not run")
        if claim.report_only is not None:
            return Verdict("not judged", claim.report_only)
        if bound is None or self.budget == "smoke":
            return Verdict("not judged", f"budget {self.budget} proves nothing")
        if (doubt := claim.doubt(self)) is not None:
            return Verdict("not judged", doubt)
        good, reason = holds(means, measured.mean, bound), None
        if bound.t is not None:
            t = paired_t(measured.values)
            good &= at_most(bound.t, t)
            reason = f"paired t = {t:.2f}, {measured.n - 1} degrees of freedom"
        word = "holds" if good else "does not hold"
        if measured.data and measured.n < len(self.table.seeds):
            reason = f"{measured.n} of {len(self.table.seeds)} seeds"
            word = word if bound.t is None else "not judged"
        return Verdict(word, reason)

    def vector(self, name: str) -> Vector | None:
        """Layer by layer, the bit-widths of a row's first seed; None where its inner layers agree.

        None too where one layer alone is quantized, as the row's label says. Without a run they
        are those that are planned, or the paper's own.
        """
        if self.table.rows[name].layer is not None:  # its run's own row shows all layers
            return None
        known = [facts for facts in self.row_facts(name).facts if facts.bits is not None]
        facts = next((f for f in known if f.record is not None), known[0] if known else None)
        if facts is None or facts.bits is None:
            return None
        channels = facts.phase.channels if facts.phase is not None else None
        widths = list(facts.bits.values())
        quantized = [width for width in widths if width != Bits(FLOAT_BITS, FLOAT_BITS)]
        if channels is None and (len(set(widths[1:-1])) < 2 or len(quantized) < 2):
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
        strictness = self.table.strictness(self.budget)
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
                if {*claim.rows, *claim.compared} <= set(rows)
                and (strictness in claim.holds or claim.report_only)
            ],
            vectors=[vector for vector in vectors if vector is not None],
            notes=[*self.troubles(rows), *self.left_out(rows), *self.table.notes],
            words=self.table.words if isinstance(self.table, Sweep) else {},
        )

    def troubles(self, rows: Sequence[str]) -> list[str]:
        """Say which runs diverged, or have learned nothing."""
        said: dict[str, None] = {}
        for record in (f.record for row in rows for f in self.row_facts(row).facts if f.record):
            losses = [epoch.train_loss for epoch in record.history]
            if (found := trouble(losses, record.config["data.classes"])) is not None:
                said[f"{record.row} seed {record.seed} {found}."] = None
        return list(said)

    def left_out(self, rows: Sequence[str]) -> list[str]:
        """Say how much of the rows' networks no cost has: products of two activations."""
        networks = (facts.network for row in rows for facts in self.row_facts(row).facts)
        found = {n.activation_macs for n in networks if n is not None and n.activation_macs}
        return [
            "Products of two activations, as attention has, have no weights and are in no cost: "
            f"{macs:,} MACs for one input."
            for macs in sorted(found)
        ]


def in_order(reporter: Reporter, by: str) -> Reporter:
    """The same report with its rows sorted by a column or word, from high to low behind a minus.

    Rows that lack it come last. Raises UserError for what no row has.
    """
    name, table = by.removeprefix("-"), reporter.table
    values: dict[str, Any] = {}
    if name in table.columns:
        values = {row: reporter.mean(row, name) for row in table.rows}
    elif isinstance(table, Sweep):
        values = {row: _comparable(said.get(name)) for row, said in table.words.items()}
    if all(value is None for value in values.values()):
        words = {key for said in getattr(table, "words", {}).values() for key in said}
        raise unknown("column", name, {*table.columns, *words}, "sort")
    known = [row for row in table.rows if values[row] is not None]
    known.sort(key=lambda row: values[row], reverse=by.startswith("-"))
    order = [*known, *(row for row in table.rows if values[row] is None)]
    rows = {row: table.rows[row] for row in order}
    return Reporter(table.model_copy(update={"rows": rows}), reporter.asked, reporter.stores)


def _comparable(value: str | None) -> tuple[bool, float, str] | None:
    """A word's value as a key to sort by: numbers by size, before all else."""
    if value is None:
        return None
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


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
