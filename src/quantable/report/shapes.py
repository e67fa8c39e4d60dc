"""What a figure shows, whatever draws it: panels of series, a grid, or bars. No matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from quantable.config.schema import Looks
from quantable.store.record import Record

MOST_LABELS = 14  # points of a panel that are named one by one
Place = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """What runs along one side of a panel."""

    name: str
    log: bool = False
    whole: bool = False  # only whole numbers have ticks
    from_zero: bool = False


@dataclass(frozen=True)
class Point:
    """A mark with its standard deviations; ``tip`` says more than fits beside it."""

    label: str
    tip: str
    x: float
    y: float
    x_std: float = 0.0
    y_std: float = 0.0
    hollow: bool = False  # no verdict may rest on it


@dataclass(frozen=True)
class Series:
    """Points and a line of one look; of several with one ``name`` the key has one.

    ``small``: published numbers; ``dashed``: the second of two that belong together; ``aside``:
    marks at about the same x stand side by side; ``label`` stands at the line's end.
    """

    name: str
    looks: Looks
    points: Sequence[Point] = ()
    line: Sequence[Place] = ()
    small: bool = False
    dashed: bool = False
    aside: bool = False
    label: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Level:
    """A number without a place on x, such as float's: a line across with its words beside it."""

    label: str
    tip: str
    y: float
    looks: Looks
    y_std: float = 0.0


@dataclass(frozen=True)
class Panel:
    """Series over two axes.

    ``best`` are the corners of the frontier; ``changes`` are places on x where something begins.
    """

    x: Axis
    y: Axis
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    best: Sequence[Place] = ()
    changes: Sequence[float] = ()

    @property
    def labelled(self) -> bool:
        """Whether there is room to name every point."""
        return sum(len(one.points) for one in self.series) <= MOST_LABELS

    @property
    def asides(self) -> list[float]:
        """How many marks each series stands beside its places, right of them or left."""
        beside = [i for i, one in enumerate(self.series) if one.aside]
        middle = (len(beside) - 1) / 2
        return [beside.index(i) - middle if i in beside else 0.0 for i in range(len(self.series))]


@dataclass(frozen=True)
class Plot:
    """Panels below each other, with one key."""

    title: str
    note: str
    panels: Sequence[Panel]
    records: Sequence[Record] = ()

    @property
    def keys(self) -> dict[str, Series]:
        """The first series of each name, over all panels."""
        found: dict[str, Series] = {}
        for panel in self.panels:
            for one in panel.series:
                found.setdefault(one.name, one)
        return found


@dataclass(frozen=True)
class Group:
    """Lines of a grid that share a scale: a number for each column, none where it is not known."""

    name: str
    rows: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Grid:
    """Numbers as shades: written into whole cells, or as a heat map with a scale.

    ``columns`` are names, or a number of epochs; ``changes`` are words above a column.
    """

    title: str
    note: str
    groups: Sequence[Group]
    columns: Sequence[str] | int
    x_name: str
    scale: str = ""
    changes: Mapping[int, str] | None = None
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class Bars:
    """A bar for each name, the first on top."""

    title: str
    note: str
    bars: Mapping[str, float]
    axis: str
    looks: Looks
    records: Sequence[Record] = ()


Shape = Plot | Grid | Bars


def without_shared(labels: Sequence[str]) -> list[str]:
    """Labels without the words that all of them begin with, or end with.

    >>> without_shared(["VGG19, AD, 1st update", "VGG19, AD, final"]), without_shared(["2 bit"])
    (['1st update', 'final'], ['2 bit'])
    >>> without_shared(["4 bit, min-max, anew", "2 bit, min-max, anew"])
    ['4 bit', '2 bit']
    """
    if len(set(labels)) < 2:
        return list(labels)
    parts = [label.split(", ") for label in labels]
    head = _alike(own[:-1] for own in parts)
    tail = _alike(own[:head:-1] for own in parts)
    shared = "".join(f"{word}, " for word in parts[0][:head])
    kept = [", ".join(own[head : len(own) - tail]) for own in parts]
    return [label.replace(shared, "") if shared else label for label in kept]


def _alike(parts: Iterable[Sequence[str]]) -> int:
    """How many words all begin with."""
    pairs = zip(*parts, strict=False)
    return sum(1 for _ in takewhile(lambda words: len({*words}) == 1, pairs))


def asks_for_log(values: Sequence[float]) -> bool:
    """Whether values ask for a logarithmic axis.

    >>> asks_for_log([1, 3]), asks_for_log([1, 5]), asks_for_log([0, 5])
    (False, True, False)
    """
    return bool(values) and min(values) > 0 and max(values) / min(values) > 4
