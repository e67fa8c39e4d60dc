"""What a report says: the schema of ``report.py format=json``."""

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class PublishedOut(_Out):
    """A number of the paper."""

    value: float
    source: str
    confidence: str
    std: float | None = None  # of ``n`` runs
    n: int | None = None


class MeasuredOut(_Out):
    """Our number; ``std`` is null for one seed.

    ``batch_norms`` says what became of them where nothing was trained, and is left out elsewhere.
    """

    mean: float
    std: float | None
    n: int
    budget: str
    data: str | None
    records: list[str]
    batch_norms: str | None = None

    @model_serializer(mode="wrap")
    def _known(self, all_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = all_of(self)
        if self.batch_norms is None:
            del found["batch_norms"]
        return found


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

    ``measured`` is what the claim's ``kind`` says (``quantable.tables.claims``) of ``row``.
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
    """Everything a rendered report shows.

    ``words``: of runs without a table, what tells each row from the others, by key.
    """

    table: str
    title: str
    paper: str
    source: str
    budget: str
    rows: list[Entry]
    claims: list[ClaimLine]
    vectors: list[Vector]
    notes: list[str]
    words: dict[str, dict[str, str]] = {}
