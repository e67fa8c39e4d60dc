"""Kinds of claims: a class each, which alone knows what it needs and how it is measured.

What a kind measures is what its docstring says, and docs/add-a-table.md after it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from quantable.base.strict import Strict

Strictness = Literal["full", "cpu"]  # full: budgets paper and gpu; cpu: cpu and smoke


class Numbers(Protocol):
    """What a claim asks about a table's rows."""

    def by_seed(self, row: str, column: str) -> Mapping[int, float]:
        """A row's numbers, of the seeds that have one."""

    def mean(self, row: str, column: str) -> float | None:
        """Mean over the seeds that have one."""

    def impossible(self, row: str) -> bool:
        """Whether the row has no number and will have none: a search found no bit-widths."""


class Bound(Strict):
    """When a claim holds: closed bounds, and whether the rows must rise from each to the next.

    ``positive``: in how many of the rows, at least, the column's mean is above 0.
    ``t``: least paired t of a comparison seed by seed, mean over its standard error; the critical
    value of a one-sided test with as many seeds as the table has.
    """

    min: float | None = None
    max: float | None = None
    rising: bool = False
    positive: int | None = Field(default=None, gt=0)
    t: float | None = Field(default=None, gt=0)

    def __str__(self) -> str:
        """Word the bound.

        >>> print(Bound(min=1.8, rising=True), Bound(min=0.4, max=0.6, t=2.132), sep="; ")
        at least 1.8, rising; 0.4 to 0.6, paired t at least 2.132
        """
        least, most = self.min, self.max
        if least is not None and most is not None:
            words = [f"{least:.10g} to {most:.10g}"]
        else:
            words = [f"at least {least:.10g}"] if least is not None else []
            words += [f"at most {most:.10g}"] if most is not None else []
        words += ["rising"] if self.rising else []
        words += [f"above 0 in {self.positive} or more"] if self.positive is not None else []
        words += [f"paired t at least {self.t:g}"] if self.t is not None else []
        return ", ".join(words)


class _Claim(Strict):
    """A sentence of the paper as a check over rows; each kind adds what it alone needs."""

    compares: ClassVar[bool] = True  # two numbers, seed by seed

    text: str
    source: str
    value: float | None  # what the paper says, null where it gives no number
    unit: str
    column: str
    rows: tuple[str, ...]
    # a claim without a bound for a budget is not shown there
    holds: dict[Strictness, Bound] = Field(default_factory=dict)
    report_only: str | None = None  # why the number is shown and not judged

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.compares and any(bound.t is not None for bound in self.holds.values()):
            raise ValueError("holds: t belongs to a comparison of rows")
        if not self.holds and not self.report_only:
            raise ValueError("give holds, or report_only with its reason")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        """Rows that the claim compares with, or the best of which it does."""
        return ()

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column that the claim mentions; of a second one its number is a share."""
        return (self.column,)

    def shown(self, means: Mapping[str, float]) -> str:
        """Row that the claim rests on, of those that have a number."""
        return list(means)[-1]

    def reference_of(self, about: Numbers) -> str | None:
        """Row that the claim compares with."""
        del about
        return next(iter(self.compared), None)

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """Rows and columns whose numbers make the claim's; none where that cannot be said yet."""
        reference = self.reference_of(about)
        return [(row, self.column), *([(reference, self.column)] if reference else [])]

    def measured(self, row: str, about: Numbers) -> dict[int, float]:
        """The claim's number of each seed that has all of its terms."""
        terms = [about.by_seed(*term) for term in self.terms(row, about)]
        common = sorted(set.intersection(*map(set, terms))) if terms else []
        found = {seed: self.number(*(numbers[seed] for numbers in terms)) for seed in common}
        return {seed: number for seed, number in found.items() if number is not None}

    def number(self, *terms: float) -> float | None:
        """The claim's number of one seed, from its terms'."""
        return terms[0]

    def doubt(self, about: Numbers) -> str | None:
        """Why the rows, although measured, say nothing about the claim."""
        del about
        return None

    @property
    def proof(self) -> str | None:
        """What shows, without any run, that the claim holds."""
        return None


class Value(_Claim):
    """``column`` of the last of ``rows`` that has one."""

    compares = False
    kind: Literal["value"]


class Largest(_Claim):
    """The largest of ``rows``."""

    compares = False
    kind: Literal["largest"]

    def shown(self, means: Mapping[str, float]) -> str:
        """Row of the largest number."""
        return max(means, key=lambda row: means[row])


class Smallest(_Claim):
    """The smallest of ``rows``, once all have a number."""

    compares = False
    kind: Literal["smallest"]

    def shown(self, means: Mapping[str, float]) -> str:
        """Row of the smallest number."""
        return min(means, key=lambda row: means[row])

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """The row's; the smallest of some is not the smallest of all."""
        known = all(about.mean(other, self.column) is not None for other in self.rows)
        return super().terms(row, about) if known else []


class Spread(_Claim):
    """The largest of ``rows`` minus the smallest, seed by seed."""

    compares = False
    kind: Literal["spread"]

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """The column of every row."""
        del row, about
        return [(name, self.column) for name in self.rows]

    def number(self, *terms: float) -> float | None:
        """How far apart the rows lie."""
        return max(terms) - min(terms)


class Fall(_Claim):
    """How far one of ``rows``, infeasible ones left out, is below an earlier one, seed by seed."""

    compares = False
    kind: Literal["fall"]
    feasible: int = Field(ge=2)  # rows that are needed

    def _possible(self, about: Numbers) -> list[str]:
        return [row for row in self.rows if not about.impossible(row)]

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """The column of every row that can have one, once all of these do."""
        del row
        possible = self._possible(about)
        known = all(about.mean(name, self.column) is not None for name in possible)
        return [(name, self.column) for name in possible] if known else []

    def number(self, *terms: float) -> float | None:
        """The largest fall; below 0 where all rise."""
        return max(
            (a - b for i, a in enumerate(terms) for b in terms[i + 1 :]),
            default=None,
        )

    def doubt(self, about: Numbers) -> str | None:
        """Whether too few rows are left."""
        left = len(self._possible(about))
        if left >= self.feasible:
            return None
        return f"{left} of {len(self.rows)} rows are feasible, {self.feasible} are needed"


class Differ(_Claim):
    """How many of ``rows`` are off their numbers in ``values`` by more than ``within`` (else 0)."""

    compares = False
    kind: Literal["differ"]
    values: tuple[float, ...]
    within: float = Field(default=0.0, ge=0)  # the numbers' own rounding

    @model_validator(mode="after")
    def _each(self) -> Self:
        if len(self.values) != len(self.rows):
            raise ValueError(f"values: {len(self.values)} numbers for {len(self.rows)} rows")
        return self

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """The column of every row."""
        del row, about
        return [(name, self.column) for name in self.rows]

    def number(self, *terms: float) -> float | None:
        """Count the rows that are off."""
        pairs = zip(terms, self.values, strict=True)
        return sum(abs(own - listed) > self.within for own, listed in pairs)


class Tested(_Claim):
    """None: ``tests``, this project's own, fail where the claim does not hold."""

    compares = False
    kind: Literal["tested"]
    tests: tuple[str, ...] = Field(min_length=1)  # as pytest names them

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """No number of a run."""
        del row, about
        return []

    @property
    def proof(self) -> str | None:
        """The tests' names."""
        return f"exact, by {' and '.join(self.tests)}"


class Drop(_Claim):
    """``reference`` minus that last row, seed by seed."""

    kind: Literal["drop"]
    reference: str
    float_at_least: float | None = None  # mean of ``reference`` below which nothing is judged

    @property
    def compared(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)

    def number(self, *terms: float) -> float | None:
        """How far the row drops below the reference."""
        own, reference = terms
        return reference - own

    def doubt(self, about: Numbers) -> str | None:
        """Whether there is hardly anything to lose."""
        mean, least = about.mean(self.reference, self.column), self.float_at_least
        if mean is None or least is None or mean >= least:
            return None
        return f"float too weak: {mean:.2f}, below {least:g}"


class Behind(_Claim):
    """The best of ``others``, by mean, minus that last row, seed by seed."""

    kind: Literal["behind"]
    others: tuple[str, ...] = Field(min_length=1)

    @property
    def compared(self) -> tuple[str, ...]:
        """All others."""
        return self.others

    def reference_of(self, about: Numbers) -> str | None:
        """The best of the others that have a number."""
        means = [(about.mean(row, self.column), row) for row in self.others]
        known = [(mean, row) for mean, row in means if mean is not None]
        return max(known)[1] if known else None

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """The row's and the best one's; the best of some is not the best of all."""
        known = all(about.mean(other, self.column) is not None for other in self.others)
        return super().terms(row, about) if known else []

    def number(self, *terms: float) -> float | None:
        """How far the row is behind the best."""
        own, best = terms
        return best - own


class Times(_Claim):
    """That last row divided by ``reference``, seed by seed."""

    kind: Literal["times"]
    reference: str

    @property
    def compared(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)

    def number(self, *terms: float) -> float | None:
        """The row as a multiple of the reference."""
        own, reference = terms
        return own / reference if reference != 0 else None


class Over(_Claim):
    """``column`` divided by the column ``over`` of that last row."""

    kind: Literal["over"]
    over: str

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The column, and that by which it is divided."""
        return (self.column, self.over)

    def terms(self, row: str, about: Numbers) -> list[tuple[str, str]]:
        """Both columns of the row."""
        del about
        return [(row, column) for column in self.all_columns]

    def number(self, *terms: float) -> float | None:
        """One column as a multiple of the other."""
        own, other = terms
        return own / other if other != 0 else None


AnyClaim = (
    Value | Largest | Smallest | Spread | Fall | Differ | Tested | Drop | Behind | Times | Over
)
KINDS: Mapping[str, type[_Claim]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(AnyClaim)
}


def _of_its_kind(content: Any) -> Any:  # noqa: ANN401 - whatever the file has
    """Name the kind where a claim lacks what its kind needs, or has what only another needs."""
    kind = str(content.get("kind")) if isinstance(content, dict) else ""
    if kind not in KINDS:
        return content
    fields = KINDS[kind].model_fields
    own = {name for name in fields.keys() - _Claim.model_fields if fields[name].is_required()}
    others = {name for other in KINDS.values() for name in other.model_fields}
    for name in sorted(own - content.keys()):
        raise ValueError(f"kind: {kind} needs {name}")
    for name in sorted(content.keys() & others - fields.keys()):
        raise ValueError(f"kind: {kind} has no {name}")
    return content


Claim = Annotated[AnyClaim, Field(discriminator="kind"), BeforeValidator(_of_its_kind)]
