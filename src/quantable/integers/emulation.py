r"""What a layer's sums of integer products are, exactly, in accumulators of P bits.

A sum begins with the bias and adds the products of weights and data in the order of the weight's
dimensions: input channel, kernel row, kernel column. In two's complement it wraps around, where
only the final sum decides (:func:`wrap`). An accumulator that saturates clips after every addition
(:meth:`Product.saturated`).

For data in [lo, hi] around 0, a channel's weights above and below zero, which add up to :math:`S^+`
and :math:`-S^-`, and its bias b, every partial sum in every order lies within

.. math:: [b + lo\,S^+ - hi\,S^-,\; b + hi\,S^+ - lo\,S^-]

the bound by known weights. Below :math:`2^{24}` one float32 convolution is therefore exact, in
whatever order it adds. Else the weights are split, :math:`w = 2^k h + l`, into two of them, and
else it is one in float64; so it always is on CUDA, where a convolution may transform its operands
and leaves a rest that is rounded away.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, partial
from itertools import product
from math import prod
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import type_before_parametrizations

from quantable.base.errors import UserError
from quantable.quantization.sums import sum_range

FLOAT32, FLOAT64 = 2**24, 2**53  # below, integers and their sums are exact
FEW = 0.01  # share of a layer's sums that are repaired one by one; above, all are added anew
CHUNKS = (432, 72)  # terms between two looks at a sum in the stated order: 48 channels of 3x3, 8
SUMS, TERMS = 2**18, 2**22  # numbers that are worked on at a time: in a core's cache, in memory
CONVOLUTIONS: Sequence[Callable[..., Tensor]] = (F.conv1d, F.conv2d, F.conv3d)
# Layers that compute the sums of their weights and of their input with zeros around it.
PLAIN = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)}
SAME = "timm.layers.conv2d_same.Conv2dSame"  # by name: timm takes seconds to load, few need it


class Product:
    """Sums of a layer's integer weights and data, exactly.

    Args:
        weight: int64 (c_out, c_in / groups, *kernel); of a linear layer (c_out, c_in).
        data: least and greatest integer that the data can be.
        bias: int64 (c_out,), or None.
        layer: whose stride, padding, dilation and groups they are.

    ``low`` and ``high``, int64 (c_out,), are the bound by known weights, bias included; ``route``
    is the arithmetic that it allows. Data ``q`` are integers of that range in any floating dtype,
    of size (n, c_in, *size) or, for a linear layer, (..., c_in).

    Raises UserError, without the layer's name, for a layer that computes other sums and for sums
    that float64 would round.
    """

    def __init__(
        self, weight: Tensor, data: tuple[int, int], bias: Tensor | None, layer: nn.Module
    ) -> None:
        self._layer = layer
        self._geometry = _geometry(layer)
        self._data = min(data[0], 0), max(data[1], 0)  # a partial sum lacks terms, as a border does
        self._weight = weight
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias
        low, high = sum_range(weight, self._data, None)
        self.low, self.high = low + self._bias, high + self._bias
        self._range = int(self.low.min()), int(self.high.max())
        reach = max(_reach(low, high), _reach(self.low, self.high))  # the bias may be added last
        self.route, shift = _route(weight, self._data, reach)
        self._dtype = torch.float32 if self.route == "float32" else torch.float64
        self._parts = [(1, weight.to(self._dtype))]
        if self.route == "split":
            upper, lower = _parts(weight, shift)
            self._parts = [(1, lower.float()), (2**shift, upper.float())]
        self._start = self._bias.to(self._dtype)
        self._chunked: dict[int, list[tuple[slice, Product]]] = {}

    def sums(self, q: Tensor) -> Tensor:
        """Exact sums of data ``q``: integers in float32 or float64."""
        with self._exact(q):
            return self._sums(q)

    def at_risk(self, q: Tensor, bits: int) -> Tensor:
        """Whether a sum leaves ``bits`` bits in some order of its terms, the bias first.

        Partial sums reach b + p and b - m, where p and -m are the sums of the terms above and below
        zero. Both stay within P bits where |2 b + p - m + 1| + (p + m) < 2^P; p - m and p + m are
        two products.
        """
        with self._exact(q):
            if self._fits(bits):
                size = self._sums(q[:1]).shape[1:]
                return torch.zeros(len(q), *size, dtype=torch.bool, device=q.device)
            return self._middle_at_risk(q, bits)[1]

    def saturated(self, q: Tensor, bits: int) -> Tensor:
        """Sums clipped to ``bits`` bits after each addition, in the stated order.

        Where no partial sum leaves the range, clipping changes nothing. So only sums at risk are
        added one term after the other, unless they are more than a hundredth. They are at risk in
        some order or, where that is most of them, in the stated one, at which is looked after each
        chunk of input channels: the first image tells how closely.
        """
        if not self._geometry.stride and q.dim() > 2:
            return self.saturated(q.flatten(0, -2), bits).view(*q.shape[:-1], -1)
        with self._exact(q):
            if self._fits(bits):
                return self._sums(q)
            looks: list[Callable[[Tensor, int], tuple[Tensor, Tensor]]] = [self._sums_at_risk]
            looks += [partial(self._sums_at_risk_after, terms) for terms in CHUNKS]
            for look in looks:
                if _share(look(q[:1], bits)[1]) <= FEW:
                    sums, at_risk = look(q, bits)
                    share = _share(at_risk)
                    if share <= FEW:
                        return self._repaired(sums, at_risk, q, bits) if share else sums
                    break
            return self._added_up(q, bits)

    @contextmanager
    def _exact(self, q: Tensor) -> Iterator[None]:
        """Let only exact arithmetic run, on data that are as declared: the first ones tell."""
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            check_arithmetic(q.device)
            first = q[:1].float()  # to look at all takes a thirtieth of the time of their sums
            assert first.equal(first.round().clamp(*self._data)), "data are no integers in range"
            yield

    def _sums(self, q: Tensor) -> Tensor:
        if self.route != "split":
            sums = self._multiply(q.to(self._dtype), self._parts[0][1], self._start)
            return sums.round_() if q.is_cuda else sums
        q, sums = q.float(), self._by_channel(self._start)
        for factor, part in self._parts:
            sums = torch.add(sums, self._multiply(q, part, None), alpha=factor)
        return sums

    def _multiply(self, q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of = self._geometry
        if not of.stride:
            return F.linear(q, weight, bias)
        if of.pads_ahead:
            q = self._padded(q)
        convolve = CONVOLUTIONS[len(of.stride) - 1]
        return convolve(q, weight, bias, of.stride, of.padding, of.dilation, of.groups)

    def _padded(self, q: Tensor) -> Tensor:
        """``q`` with the zeros around it that the layer adds."""
        of = self._geometry
        if _is_same(self._layer):
            from timm.layers.padding import pad_same

            kernel, stride, dilation = map(list, (self._weight.shape[2:], of.stride, of.dilation))
            return cast(Tensor, pad_same(q, kernel, stride, dilation))
        return F.pad(q, of.border)

    def _by_channel(self, values: Tensor) -> Tensor:
        """``values``, (c_out,), so that they broadcast against sums."""
        return values.view(-1, *[1] * (self._weight.dim() - 2))

    def _fits(self, bits: int) -> bool:
        """Whether no partial sum of any data leaves ``bits`` bits."""
        least, greatest = _range(bits)
        return least <= self._range[0] and self._range[1] <= greatest

    # Risk. In float32, P is at most 24 or all sums fit; and what is rounded has at least the
    # magnitude 2^24 before and after, so that its comparison with 2^P is right.

    def _middle_at_risk(self, q: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """The 2 b + p - m + 1 of sums, and which of them are at risk in some order."""
        middle = self._middle._sums(q)
        return middle, middle.abs().add_(self._sum_magnitudes(q)) >= 2**bits

    def _sums_at_risk(self, q: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Sums, and which of them are at risk in some order."""
        middle, at_risk = self._middle_at_risk(q, bits)
        return middle.sub_(self._by_channel(self._bias + 1)), at_risk

    @cached_property
    def _middle(self) -> "Product":
        return Product(self._weight, self._data, 2 * self._bias + 1, self._layer)

    def _sum_magnitudes(self, q: Tensor) -> Tensor:
        """Sums of the terms without their signs and without the bias: p + m."""
        return self._magnitudes._sums(q if self._data[0] == 0 else q.abs())

    @cached_property
    def _magnitudes(self) -> "Product":
        largest = max(self._data[1], -self._data[0])
        return Product(self._weight.abs(), (0, largest), None, self._layer)

    def _sums_at_risk_after(self, terms: int, q: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Sums, and which of them are at risk with chunks of ``terms`` terms in order.

        Within a chunk, p and m are those of its terms, and b is the sum before it.
        """
        by_group = q.reshape(len(q), self._geometry.groups, -1, *q.shape[2:])
        twice = self._by_channel(2 * self._start + 1)  # 2 b + 1
        worst = twice.abs()
        for channels, chunk in self._chunks(terms):
            x = by_group[:, :, channels].flatten(1, 2).contiguous()
            sums = chunk._sums(x)
            twice = twice + sums
            reach = chunk._sum_magnitudes(x).add_(twice.abs())
            worst = reach if worst.dim() < reach.dim() else torch.maximum(worst, reach, out=reach)
            twice.add_(sums)
        return twice.sub_(1).mul_(0.5), worst >= 2**bits

    def _chunks(self, terms: int) -> list[tuple[slice, "Product"]]:
        """Products of consecutive input channels of each group."""
        if terms not in self._chunked:
            size = max(1, terms // prod(self._weight.shape[2:]))
            slices = [slice(c, c + size) for c in range(0, self._weight.shape[1], size)]
            self._chunked[terms] = [
                (of, Product(self._weight[:, of], self._data, None, self._layer)) for of in slices
            ]
        return self._chunked[terms]

    # Saturation, term by term.

    def _added_up(self, q: Tensor, bits: int) -> Tensor:
        """All sums, clipped after each term."""
        (weight, start), groups = self._for_clipping(bits), self._geometry.groups
        weight = weight.view(groups, -1, weight[0].numel()).permute(2, 0, 1)[..., None].contiguous()
        start = start.view(groups, -1, 1)
        x, taps, size = self._data_by_place(q.to(weight.dtype))
        images = min(SUMS // (start.numel() * prod(size)), TERMS // (x[0, 0].numel() * len(taps)))
        found = []
        for some in x.split(max(1, images)):  # type: ignore[no-untyped-call]
            data = some[:, taps].permute(4, 1, 3, 0, 2)  # (channels, taps, groups, n, sums)
            data = data.reshape(len(weight), groups, 1, -1)
            sums = start.repeat(1, 1, data.shape[3])
            for datum, w in zip(data, weight, strict=True):
                sums.addcmul_(datum, w).clamp_(*_range(bits))
            found.append(sums.view(-1, len(some), *size).transpose(0, 1))
        return torch.cat(found)

    def _repaired(self, sums: Tensor, at_risk: Tensor, q: Tensor, bits: int) -> Tensor:
        """``sums`` with those at risk added again, clipped after each term."""
        (weight, start), groups = self._for_clipping(bits), self._geometry.groups
        weight = weight.transpose(1, 2)  # (c_out, taps, channels)
        x, taps, _ = self._data_by_place(q.to(weight.dtype))
        found = []
        where = (
            at_risk.flatten(2).nonzero() if at_risk.dim() > 2 else F.pad(at_risk.nonzero(), (0, 1))
        )
        for some in where.split(max(1, TERMS // weight[0].numel())):  # type: ignore[no-untyped-call]
            image, channel, place = some.T
            group = channel // (len(weight) // groups)
            terms = x[image[:, None], taps[:, place].T, group[:, None]] * weight[channel]
            again = start[channel]
            for term in terms.permute(2, 1, 0).flatten(0, 1):
                again.add_(term).clamp_(*_range(bits))
            found.append(again)
        return sums.masked_scatter(at_risk, torch.cat(found).to(sums.dtype))

    def _for_clipping(self, bits: int) -> tuple[Tensor, Tensor]:
        """Weights, (c_out, channels, taps), and clipped biases, in a dtype that a step fits."""
        least, greatest = _range(bits)
        term = int(self._weight.abs().max()) * max(self._data[1], -self._data[0])
        dtype = torch.float32 if term - least < FLOAT32 else torch.float64
        weight = self._weight.reshape(*self._weight.shape[:2], -1)
        return weight.to(dtype), self._bias.clamp(least, greatest).to(dtype)

    def _data_by_place(self, q: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Padded data by place, (n, places, groups, channels), and where they are multiplied.

        That is, for each tap of the kernel and each sum of a channel, the place of the datum,
        (taps, sums). The last are the sizes of a channel's sums.
        """
        of, kernel, padded = self._geometry, self._weight.shape[2:], self._padded(q)
        walk = list(zip(padded.shape[2:], kernel, of.stride, of.dilation, strict=True))
        size = [(n - (k - 1) * dilation - 1) // stride + 1 for n, k, stride, dilation in walk]
        x = padded.reshape(len(q), of.groups, self._weight.shape[1], -1)
        places = torch.arange(x.shape[3], device=q.device).view(padded.shape[2:])
        found = []
        for tap in product(*map(range, kernel)):
            window = tuple(
                slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
                for at, count, (*_, stride, dilation) in zip(tap, size, walk, strict=True)
            )
            found.append(places[window].flatten())
        return x.permute(0, 3, 1, 2).contiguous(), torch.stack(found), size


def wrap(sums: Tensor, bits: int) -> Tensor:
    """Integers as two's complement of ``bits`` bits, 32 at most, keeps them; in the same dtype.

    >>> wrap(torch.tensor([127.0, 128.0, -129.0, 300.0]), 8).tolist()
    [127.0, -128.0, 127.0, 44.0]
    """
    dtype, width = (torch.int32, 32) if sums.dtype == torch.float32 else (torch.int64, 64)
    high_bits = sums.to(dtype, copy=True).bitwise_left_shift_(width - bits)
    return high_bits.bitwise_right_shift_(width - bits).to(sums.dtype)


@cache
def check_arithmetic(device: torch.device) -> None:
    """Compare products of extreme values with int64 ones, in each arithmetic; once on a device.

    Raises UserError where one differs, as with a library that multiplies fewer bits or transforms
    what it multiplies.
    """
    random = torch.Generator().manual_seed(0)
    layers: dict[str, nn.Conv2d | nn.Linear] = {
        "3x3 convolution": nn.Conv2d(64, 64, 3, padding=1, device="meta"),
        "1x1 convolution": nn.Conv2d(64, 64, 1, device="meta"),
        "depthwise convolution": nn.Conv2d(64, 64, 3, padding=1, groups=64, device="meta"),
        "linear layer": nn.Linear(64, 64, device="meta"),
    }
    for name, layer in layers.items():
        for weight_bits, data_bits in ((3, 12), (6, 12), (16, 16)):  # float32, split, float64
            greatest = 2 ** (weight_bits - 1), 2**data_bits - 1
            signs = torch.randint(2, layer.weight.shape, generator=random) * 2 - 1
            weight = signs * (greatest[0] - torch.randint(2, signs.shape, generator=random))
            size = (2, 64) if isinstance(layer, nn.Linear) else (2, 64, 8, 8)
            q = greatest[1] - torch.randint(2, size, generator=random)
            exact = Product(weight, (0, greatest[1]), None, layer)._multiply(q, weight, None)
            there = Product(weight.to(device), (0, greatest[1]), None, layer)
            sums = there._sums(q.to(device, torch.float64))
            if wrong := int((sums.cpu().long() != exact).sum()):
                raise UserError(
                    f"integers: {wrong} of {exact.numel()} sums of a {name}, {weight_bits}-bit "
                    f"weights and {data_bits}-bit data, are not exact on {device} "
                    f"({there.route}): use another device or another build of torch"
                )


class _Geometry(NamedTuple):
    """How a convolution walks; a linear layer's stride has no dimension."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    border: Sequence[int] = ()  # zeros around the input, as `F.pad` takes them
    pads_ahead: bool = False  # where left and right differ


def _geometry(layer: nn.Module) -> _Geometry:
    """Read it off a layer whose sums are those of its weights and its input among zeros."""
    kind = type_before_parametrizations(layer)
    if isinstance(layer, _ConvTransposeNd):
        raise UserError(f"{kind.__name__}: sums in integers are not known of transposed ones")
    if getattr(kind, "forward", None) not in PLAIN and not _is_same(layer):
        raise UserError(f"{kind.__name__}: it is not known how this class computes its sums")
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _Geometry()
    if layer.padding_mode != "zeros":
        raise UserError(
            f"padding_mode={layer.padding_mode!r}: sums in integers are known with zeros around"
        )
    border = layer._reversed_padding_repeated_twice
    pads_ahead = _is_same(layer) or border[::2] != border[1::2]
    padding = (0,) * len(layer.stride) if pads_ahead else tuple(border[::-2])
    return _Geometry(layer.stride, padding, layer.dilation, layer.groups, border, pads_ahead)


def _is_same(layer: nn.Module) -> bool:
    """Whether it is timm's convolution that pads by the size of its input, as TensorFlow does."""
    kind = type_before_parametrizations(layer)
    return f"{kind.__module__}.{kind.__qualname__}" == SAME


def _reach(low: Tensor, high: Tensor) -> int:
    return max(-int(low.min()), int(high.max()))


def _route(
    weight: Tensor, data: tuple[int, int], reach: int
) -> tuple[Literal["float32", "split", "float64"], int]:
    """The fastest arithmetic in which sums up to ``reach`` are exact, and k of split weights."""
    if reach >= FLOAT64:
        raise UserError(f"sums up to {reach} are not exact in float64: use fewer bits")
    if weight.is_cuda:
        return "float64", 0
    if reach < FLOAT32:
        return "float32", 0
    for shift in range(1, int(weight.abs().max()).bit_length()):
        if all(_reach(*sum_range(part, data, None)) < FLOAT32 for part in _parts(weight, shift)):
            return "split", shift
    return "float64", 0


def _parts(weight: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The h and l of w = 2^shift h + l, with l around 0."""
    high = (weight + 2 ** (shift - 1)) >> shift
    return high, weight - (high << shift)


def _range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _share(chosen: Tensor) -> float:
    return int(chosen.count_nonzero()) / chosen.numel()
