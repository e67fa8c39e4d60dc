"""Bits of a layer's sums: what each layer needs by three bounds, and what fewer bits cost."""

from collections.abc import Iterator, Mapping, Sequence

from quantable.config.schema import Looks
from quantable.report.history import first_runs, run_label
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Level, Panel, Plot, Point, Series
from quantable.store.record import Integers, Record, SumsOfLayer
from quantable.tables.schema import Figure

DATA_TYPE = Looks(short="by data type", colour="#888888", marker="s")
KNOWN = Looks(short="by known weights", colour="#0072B2", marker="o")
OBSERVED = Looks(short="observed", colour="#009E73", marker="^", dash=(3, 1.5))
DECLARED = Looks(short="declared", colour="#D55E00", marker="D", dash=(6, 1.5))
WRAPPING = Looks(short="wrapping", colour="#D55E00", marker="s")
SATURATING = Looks(short="saturating", colour="#0072B2", marker="^", dash=(6, 1.5))
WIDE = Looks(short="wide sums", colour="#000000", marker="o")


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Plot | str]]:
    """For each network in integers what its layers need, and its accuracy over declared bits."""
    del asked
    runs = first_runs(reporter)
    known = {run: record for run, record in runs.items() if record.integers is not None}
    if not known:
        yield name, "no run has answered in integers"
        return
    networks: dict[Needs, dict[str, Record]] = {}
    for run, record in known.items():
        networks.setdefault(_needs(record), {})[run] = record
    for i, own in enumerate(networks.values()):
        label = run_label(reporter, next(iter(own)))
        suffix = f"_{i + 1}" if i else ""
        yield f"{name}_needed{suffix}", needed(own, label)
        if len(_declaring(own)) > 1:
            yield f"{name}_accuracy{suffix}", accuracy(own, label)


Needs = tuple[tuple[str, int, int], ...]


def _needs(record: Record) -> Needs:
    """What tells networks apart: rows that only declare other bits are one network."""
    layers = _layers(record)
    return tuple((name, max(s.known_weights), max(s.observed)) for name, s in layers.items())


def _layers(record: Record) -> Mapping[str, SumsOfLayer]:
    assert record.integers is not None
    return record.integers.layers


def _declaring(records: Mapping[str, Record]) -> dict[int, Integers]:
    """Answers by declared bits."""
    found = {}
    for record in records.values():
        widths = [s.declared for s in _layers(record).values() if s.declared is not None]
        if widths and record.integers is not None:
            found[max(widths)] = record.integers
    return dict(sorted(found.items()))


def needed(records: Mapping[str, Record], label: str) -> Plot:
    """Bits by layer, of each layer's worst channel, and the declared ones as lines across."""
    record = next(iter(records.values()))
    layers = _layers(record)
    series = [
        _by_layer(DATA_TYPE, [(name, s.data_type) for name, s in layers.items()]),
        _by_layer(KNOWN, [(name, max(s.known_weights)) for name, s in layers.items()]),
        _by_layer(OBSERVED, [(name, max(s.observed)) for name, s in layers.items()]),
    ]
    levels = [
        Level(f"declared {bits}", f"{bits} bits declared", float(bits), DECLARED)
        for bits in _declaring(records)
    ]
    panel = Panel(Axis("layer, in execution order", whole=True), Axis("bits"), series, levels)
    note = "Of each layer's worst output channel; the first seed's."
    return Plot(f"Bits that sums need: {label}", note, [panel], [record])


def _by_layer(looks: Looks, bits: Sequence[tuple[str, int]]) -> Series:
    points = [
        Point("", f"{name}: {need} bits {looks.short}", i + 1.0, float(need))
        for i, (name, need) in enumerate(bits)
    ]
    return Series(looks.short, looks, points, [(point.x, point.y) for point in points])


def accuracy(records: Mapping[str, Record], label: str) -> Plot:
    """Top-1 over declared bits, in both arithmetics."""
    found = _declaring(records)
    series = [
        _by_bits(WRAPPING, [(bits, one.wrap_top1_pct) for bits, one in found.items()]),
        _by_bits(SATURATING, [(bits, one.saturate_top1_pct) for bits, one in found.items()]),
    ]
    wide = next(iter(found.values())).exact_top1_pct
    levels = [Level(f"wide sums {wide:.2f}", f"{wide:.2f} % with wide sums", wide, WIDE)]
    panel = Panel(Axis("bits of the sums", whole=True), Axis("top-1 [%]"), series, levels)
    note = f"{next(iter(found.values())).images:,} test images; the first seed's."
    return Plot(f"Accuracy over bits of the sums: {label}", note, [panel], list(records.values()))


def _by_bits(looks: Looks, places: Sequence[tuple[int, float | None]]) -> Series:
    points = [
        Point("", f"{bits} bits, {looks.short}: {top1:.2f} %", float(bits), top1)
        for bits, top1 in places
        if top1 is not None
    ]
    return Series(looks.short, looks, points, [(point.x, point.y) for point in points])
