"""What is known about a row and seed, what a column is, and how one is made of a cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantable.allocation.program import Comparison
from quantable.base.bits import FLOAT_BITS, Bits
from quantable.cost.costs import CostModel
from quantable.cost.hardware import Hardware
from quantable.networks.layers import LayerShape, Network, uniform
from quantable.store.record import Epoch, Phase, Record

REFERENCE_BITS = 16  # efficiencies are ratios to the same network with every layer at 16 bit


@dataclass(frozen=True)
class Facts:
    """What is known about one row and seed; ``None`` is not known (yet)."""

    shapes: Sequence[LayerShape] | None  # of the whole network, before any channel is cut
    bits: Mapping[str, Bits] | None
    hardware: Hardware
    record: Record | None = None
    phase: Phase | None = None  # of the record; the row's accuracy is that of its last epoch
    cost_bits: int | None = None  # the row counts every layer at this width, whatever the run had
    whole_run: bool = False  # whether the training complexity is the whole run's, not the phase's
    baseline: Record | None = None  # the table's baseline run of the same seed
    network: Network | None = None  # whole, as kept: also what feeds what, and what is added
    sizes: Mapping[str, float] | None = None  # published kB by column, where bits are not known
    policy: Comparison | None = None  # the row's bits beside the table's program solved again
    uniform: "tuple[Facts, ...]" = ()  # of the rows of uniform bits that the row is set beside
    layer: str | None = None  # the row shows this layer alone
    accumulator: int | None = None  # bits of every sum, where the row says

    @property
    def now(self) -> Sequence[LayerShape] | None:
        """Shapes in the row's phase, where channels may have been cut."""
        if self.phase is not None and self.phase.shapes is not None:
            return self.phase.shapes
        return self.shapes

    @property
    def _epochs(self) -> list[Epoch]:
        """The phase's lines in the record's history; a run without training has one."""
        if self.record is None or self.phase is None:
            return []
        first = self.phase.first_epoch
        return self.record.history[first : first + max(self.phase.epochs, 1)]

    @property
    def epoch(self) -> Epoch | None:
        """The phase's last epoch in the record's history."""
        return self._epochs[-1] if self._epochs else None

    def number(self, name: str) -> float | None:
        """The method's own number ``name`` in the phase's last epoch."""
        return self.epoch.number(name) if self.epoch is not None else None


Value = Callable[[Facts], float | None]


@dataclass(frozen=True)
class Column:
    """Heading, unit, decimals shown, whether a run is needed, and the function."""

    title: str
    unit: str
    decimals: int
    trained: bool
    value: Value
    reason: Callable[[Facts], str | None] = lambda facts: None  # what the number does not say


def cost(model: CostModel) -> Value:
    """Make a column's function of a cost model: known as soon as shapes and bit-widths are."""

    def value(facts: Facts) -> float | None:
        if facts.now is None or facts.bits is None:
            return None
        return model(facts.now, facts.bits, facts.hardware)

    return value


def reduction(model: CostModel) -> Value:
    """Make a column's function of the whole network's cost at 16 bit over the row's."""

    def value(facts: Facts) -> float | None:
        if facts.shapes is None or facts.now is None or facts.bits is None:
            return None
        whole = model(facts.shapes, uniform(facts.shapes, REFERENCE_BITS), facts.hardware)
        return whole / model(facts.now, facts.bits, facts.hardware)

    return value


def of_epoch(number: Callable[[Epoch], float | None]) -> Value:
    """Make a column's function of the phase's last epoch."""
    return lambda facts: None if facts.epoch is None else number(facts.epoch)


def has_float(bits: Mapping[str, Bits]) -> bool:
    """Whether a layer has an operand in float."""
    return any(FLOAT_BITS in (b.weight, b.act) for b in bits.values())
