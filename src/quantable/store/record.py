"""What happened in one run, as it is kept: a typed JSON document, written once by rename."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.networks.layers import LayerShape

SCHEMA = 1
# Numbers of two methods that stood among those of every run.
BEFORE_OWN = ("density", "total_density", "miscounted", "weight_kb", "act_kb")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Epoch(_Part):
    """One line of the history; percentages are top-1, losses cross-entropy in nat."""

    epoch: int
    phase: int
    learning_rate: float | None = None  # this and the next two are null where nothing was trained
    train_loss: float | None = None
    train_top1_pct: float | None = None
    val_top1_pct: float | None = None  # null where the set has no held-out images
    val_loss: float | None = None
    # Test images are seen at the end of a phase; in older records after every epoch.
    test_top1_pct: float | None = None
    test_loss: float | None = None
    agreement_pct: float | None = None  # test images with the class that the teacher predicts
    seconds: float
    bits: dict[str, tuple[int, int]] | None = None  # only where they change during training
    training_complexity: float | None = None  # of the epochs so far
    own: dict[str, int | float | dict[str, float]] = {}  # the method's numbers, some by layer

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, line: Any) -> Any:  # noqa: ANN401
        """Read lines from before methods had numbers of their own."""
        if not isinstance(line, dict) or line.keys().isdisjoint(BEFORE_OWN):
            return line
        found = {key: line[key] for key in BEFORE_OWN if line.get(key) is not None}
        kept = {key: value for key, value in line.items() if key not in BEFORE_OWN}
        return kept | {"own": found | kept.get("own", {})}

    def number(self, name: str) -> float | None:
        """The method's own number ``name`` in this epoch."""
        value = self.own.get(name)
        return None if isinstance(value, dict) else value

    def by_layer(self, name: str) -> dict[str, float] | None:
        """The method's own numbers ``name`` of each layer in this epoch."""
        value = self.own.get(name)
        return value if isinstance(value, dict) else None

    @property
    def held_out_pct(self) -> float:
        """Held-out top-1 to compare epochs by; where there are no such images, all are alike."""
        return self.val_top1_pct or 0.0


class Phase(_Part):
    """A stretch of epochs, of none where nothing was trained, with the bit-widths at its end."""

    index: int
    first_epoch: int
    epochs: int
    bits: dict[str, tuple[int, int]]
    # Where the method cuts channels, the network of this phase:
    channels: dict[str, int] | None = None  # output channels by layer
    parameters: int | None = None  # elements of all its parameters
    shapes: list[LayerShape] | None = None
    # What the weights at its end say: number -> layer -> value. Null where none are quantized, and
    # in records from before they were asked.
    layers: dict[str, dict[str, float]] | None = None

    @property
    def bit_map(self) -> dict[str, Bits]:
        """Bit-widths of every layer."""
        return {name: Bits(*pair) for name, pair in self.bits.items()}


class Calibration(_Part):
    """The pass over a few images that set a quantized network which was not trained.

    Records from before it was kept are of batches that were all as large, which count alike.
    """

    images: int  # each seen once
    batches: int
    weighed_by: Literal["images"]  # what counts in batch norms and ranges: batches do not


class SumsOfLayer(_Part):
    """A layer in integers: what its sums need, by channel, and what they did on the test images."""

    terms: int  # of a sum: c_in / groups times the kernel's elements
    data_type: int  # bits that any weights and data of these widths need
    known_weights: list[int]  # bits that these weights need with any data, by output channel
    observed: list[int]  # bits that the sums of some training images need, by output channel
    declared: int | None  # bits of the sums; null where they are as wide as need be
    sums: int = 0  # of the test images
    wrapped: int = 0  # of these, final sums that the declared bits cannot hold
    at_risk: int = 0  # of these, sums with a partial sum in some order that they cannot hold


class Integers(_Part):
    """What a network answers in integers: with sums wide enough, and with the declared bits."""

    images: int  # test images
    observed_images: int  # training images, of the observed bits
    layers: dict[str, SumsOfLayer]
    exact_top1_pct: float
    agreement_pct: float  # test images with the fake-quantized network's class, sums wide enough
    # Of those that have another one: how many have the first differing level in a layer's input.
    first_differing: dict[str, int] = {}
    wrap_top1_pct: float | None = None  # null where no bits are declared
    wrap_agreement_pct: float | None = None  # with the integers' own class, sums wide enough
    saturate_top1_pct: float | None = None
    saturate_agreement_pct: float | None = None
    # Commit, and whether all was committed, where a finished run was asked later.
    later: tuple[str, bool] | None = None


class DataFacts(_Part):
    """The images a run saw."""

    title: str
    variant: str
    sizes: dict[str, int]
    sha256: str


class Provenance(_Part):
    """Where and how a record was made."""

    commit: str  # when the run began
    clean: bool  # src/ and conf/ were as committed there, also whenever the run was taken up again
    command: str
    versions: dict[str, str]
    device: str
    threads: int  # of each device's process
    devices: int = 1  # records from before there could be several have no such line
    # What else decides how sums are rounded: libraries, and what they are told; of older records
    # not known.
    arithmetic: dict[str, str] = {}
    wall_seconds: float
    resumed: int  # how often the run was taken up again after an interruption
    finished: str  # UTC, ISO 8601


class Item(_Part):
    """Layers that share their bit-widths, and what a metric says of each choice for them."""

    layers: list[str]
    loss: dict[str, float]  # "weight/activation" bits -> what a selection adds up and minimises
    error: dict[str, float] = {}  # standard errors of those that are estimates; not kept before
    taken: str | None = None  # the choice of a rule that chooses itself


class Scores(_Part):
    """What a search measured: a number for every item and choice of bits, and what that took."""

    rule: str
    unit: str
    greedy: bool  # whether items go down in the order of their loss, instead of by a knapsack
    items: list[Item]  # in execution order
    seconds: float
    images: int  # passed through the network, each time counted
    epochs: float  # of training, over the images it trains on
    # Layers for which a rule that chooses itself has no choice; then no item has been tried.
    infeasible: list[str] = []

    @property
    def chooses(self) -> bool:
        """Whether the rule has chosen, and no budget has to."""
        return any(item.taken is not None for item in self.items)

    @property
    def why_nothing(self) -> str | None:
        """Why the search has no bit-widths to give."""
        if not self.infeasible:
            return None
        return f"infeasible: {self.rule} has no bit-widths for layer {', '.join(self.infeasible)}"


class Record(_Part):
    """One finished run; that of a search has scores instead of phases, metrics and a history."""

    schema_version: int = SCHEMA
    signature: str
    table: str | None
    row: str
    seed: int
    budget: str
    config: dict[str, Any]  # dotted keys, without what belongs to one machine
    data: DataFacts
    metrics: dict[str, dict[str, float]]  # "last" and "best" (by held-out accuracy) epoch
    phases: list[Phase]
    costs: dict[str, float | None]
    history: list[Epoch]
    scores: Scores | None = None
    calibration: Calibration | None = None
    integers: Integers | None = None  # null where they were not asked
    provenance: Provenance

    @property
    def name(self) -> str:
        """File name: the signature, and the data variant where it is not the original."""
        return cell_name(self.signature, self.data.variant)


class Head(BaseModel):
    """First lines of a record's file: which question it answers."""

    signature: str
    table: str | None
    row: str
    seed: int
    budget: str


def distance(variant: str) -> tuple[bool, bool]:
    """Sort key of data variants: the original, copies of which some images are worse, others.

    >>> sorted(["jpeg", "part", "jpeg121", ""], key=distance)
    ['', 'jpeg121', 'jpeg', 'part']
    """
    return variant != "", not variant[-1:].isdigit()


def cell_name(signature: str, variant: str | None) -> str:
    """Name of a cell's files.

    >>> cell_name("0f", "jpeg"), cell_name("0f", "")
    ('0f-jpeg', '0f')
    """
    return f"{signature}-{variant}" if variant else signature


def read_record(path: Path) -> Record:
    """Read and check one record file."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a record: {place}: {first['msg']}") from error


HEAD_BYTES = 1000  # of a file; what `Head` needs comes first


def read_head(path: Path) -> Head:
    """Read the first lines of a record file, or all of it where they do not suffice."""
    with path.open("rb") as file:
        start, found, _ = file.read(HEAD_BYTES).partition(b'"config":')
    try:
        if found:
            return Head.model_validate_json(start.rstrip().removesuffix(b",") + b"}")
    except ValidationError:
        pass
    return Head.model_validate(read_record(path), from_attributes=True)
