"""A quantized network in integers: its answers with sums wide enough, and with declared bits."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantable.cost.accumulators import bits_of, data_type_bits
from quantable.integers.emulation import wrap
from quantable.integers.view import IntegerLayer, SumsOf, integer_layers
from quantable.quantization.quantize import Quantize
from quantable.store.record import Integers, SumsOfLayer

Batch = tuple[Tensor, Tensor]
BEHIND = "behind the last layer"  # where two networks differ that have the same levels everywhere


@contextmanager
def in_integers(layers: Sequence[IntegerLayer], sums_of: SumsOf) -> Iterator[None]:
    """Within the block the layers' network computes in integers, with the sums of ``sums_of``.

    All that is not a layer (norms, activations, additions, pooling) stays as it is, in float32.
    """

    def forward_of(layer: IntegerLayer) -> Callable[[Tensor], Tensor]:
        return lambda x: layer.answer(x, sums_of)

    for layer in layers:
        layer.layer.act_quantizer = nn.Identity()  # the hook in front of the layer calls it
        layer.layer.forward = forward_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.layer.forward  # of the instance: the class's own is left
            layer.layer.act_quantizer = layer.act


def exact(layer: IntegerLayer, q: Tensor) -> Tensor:
    """Sums as wide as they need be."""
    return layer.product.sums(q)


class Observed:
    """The same; remembers the least and the greatest sum of each output channel."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: IntegerLayer, q: Tensor) -> Tensor:
        """Sums of one batch."""
        sums = layer.product.sums(q)
        channels = sums.movedim(-1 if isinstance(layer.layer, nn.Linear) else 1, 0).flatten(1)
        low, high = channels.amin(1), channels.amax(1)
        if layer.name in self.ends:
            before = self.ends[layer.name]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self.ends[layer.name] = low, high
        return sums

    def bits(self, name: str) -> list[int]:
        """Least bits of a final sum of each channel of a layer."""
        low, high = (end.long().tolist() for end in self.ends[name])
        return [bits_of(*ends) for ends in zip(low, high, strict=True)]


class Narrow:
    """Sums of ``widths`` bits, by layer; None is as wide as need be. Counts what does not fit."""

    def __init__(self, widths: Mapping[str, int | None], *, saturating: bool) -> None:
        self.widths, self.saturating = widths, saturating
        self.over: Counter[str] = Counter()  # final sums that wrap, or sums at risk on the way

    def __call__(self, layer: IntegerLayer, q: Tensor) -> Tensor:
        """Sums of one batch."""
        bits = self.widths[layer.name]
        if bits is None or max(known_bits(layer)) <= bits:
            return layer.product.sums(q)
        if self.saturating:
            sums = layer.product.saturated(q, bits)
            over = layer.product.at_risk(q, bits)
        else:
            wide = layer.product.sums(q)
            sums = wrap(wide, bits)
            over = sums != wide
        self.over[layer.name] += int(over.sum())
        return sums


def known_bits(layer: IntegerLayer) -> list[int]:
    """Least bits by output channel that hold every sum of the layer's weights with any data."""
    low, high = (end.tolist() for end in (layer.product.low, layer.product.high))
    return [bits_of(*ends) for ends in zip(low, high, strict=True)]


def declared_widths(
    layers: Iterable[IntegerLayer], quantize: Quantize, accumulator: int | None
) -> dict[str, int | None]:
    """Bits of each layer's sums; None where they are as wide as they need be."""
    free = quantize.free_of_accumulator
    return {layer.name: None if layer.name in free else accumulator for layer in layers}


@torch.no_grad()
def measure_answers(
    net: nn.Module,
    quantize: Quantize,
    *,
    accumulator: int | None,
    train: Iterable[Batch],
    test: Iterable[Batch],
) -> Integers:
    """What ``net``, trained or calibrated, answers in integers to ``test``; it stays as it is.

    ``train``: batches that the observed bits are of. ``accumulator``: declared bits of the sums.
    Raises UserError with the name of a layer that has no integers.
    """
    net.eval()
    layers = integer_layers(net, quantize)
    widths = declared_widths(layers, quantize, accumulator)
    observed, observed_images = Observed(), 0
    with in_integers(layers, observed):
        for x, _ in train:
            net(x)
            observed_images += len(x)
    narrow = {
        "wrap": Narrow(widths, saturating=False),
        "saturate": Narrow(widths, saturating=True),
    }
    fit = all((bits := widths[la.name]) is None or max(known_bits(la)) <= bits for la in layers)
    right: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    first: Counter[str] = Counter()  # where images of another class begin to differ
    sums: Counter[str] = Counter()
    images = 0

    def counted(layer: IntegerLayer, q: Tensor) -> Tensor:
        found = exact(layer, q)
        sums[layer.name] += found.numel()
        return found

    for x, y in test:
        images += len(x)
        fake = net(x).argmax(1)
        with in_integers(layers, counted):
            own = net(x).argmax(1)
        right["exact"] += int((own == y).sum())
        alike["exact"] += int((own == fake).sum())
        for i in (own != fake).nonzero().flatten().tolist():
            first[first_difference(net, layers, x[i : i + 1])] += 1
        for name, sums_of in narrow.items():
            found = own
            if not fit:
                with in_integers(layers, sums_of):
                    found = net(x).argmax(1)
            right[name] += int((found == y).sum())
            alike[name] += int((found == own).sum())

    def share(counts: Counter[str], name: str) -> float | None:
        known = name == "exact" or accumulator is not None
        return 100 * counts[name] / images if known else None

    return Integers(
        images=images,
        observed_images=observed_images,
        layers={
            layer.name: SumsOfLayer(
                terms=layer.terms,
                data_type=data_type_bits(
                    layer.terms,
                    layer.weight_bits,
                    layer.input_bits,
                    data_signed=layer.input_signed,
                ),
                known_weights=known_bits(layer),
                observed=observed.bits(layer.name),
                declared=widths[layer.name],
                sums=sums[layer.name],
                wrapped=narrow["wrap"].over[layer.name],
                at_risk=narrow["saturate"].over[layer.name],
            )
            for layer in layers
        },
        exact_top1_pct=100 * right["exact"] / images,
        agreement_pct=100 * alike["exact"] / images,
        first_differing=dict(first),
        wrap_top1_pct=share(right, "wrap"),
        wrap_agreement_pct=share(alike, "wrap"),
        saturate_top1_pct=share(right, "saturate"),
        saturate_agreement_pct=share(alike, "saturate"),
    )


@torch.no_grad()
def first_difference(net: nn.Module, layers: Sequence[IntegerLayer], x: Tensor) -> str:
    """Name of the first layer whose input has another level in integers than in float32.

    ``x``: images (n, c, h, w). The float32 sums of a fake-quantized network round, so that a value
    may fall on the other side of the middle between two levels.
    """
    fake: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}

    def keep(layer: IntegerLayer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            fake[layer.name] = layer.integers(args[0])[0]

        return hook

    def kept(layer: IntegerLayer, q: Tensor) -> Tensor:
        own[layer.name] = q
        return exact(layer, q)

    handles = [layer.layer.register_forward_pre_hook(keep(layer), prepend=True) for layer in layers]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    with in_integers(layers, kept):
        net(x)
    names = (name for name, q in own.items() if not torch.equal(fake[name], q))
    return next(names, BEHIND)
