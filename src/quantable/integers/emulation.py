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

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import product
from math import prod
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import type_before_parametrizations

from quantable.base.errors import UserError

FLOAT32, FLOAT64 = 2**24, 2**53  # below, integers and their sums are exact
FEW = 0.01  # share of a layer's sums that are repaired one by one; above, all are added anew
CHUNK = 144  # terms between two looks at a sum in the stated order: 16 channels of 3x3
BLOCK = 2**18  # numbers of a working set that stays in a core's cache
CONVOLUTIONS: Sequence[Callable[..., Tensor]] = (F.conv1d, F.conv2d, F.conv3d)
# Layers that compute the sums of their weights and of their input with zeros around it.
PLAIN = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, nn.Linear)}


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
        low, high = extremes(weight, self._data)
        self.low, self.high = low + self._bias, high + self._bias
        reach = max(_reach(low, high), _reach(self.low, self.high))  # the bias may be added last
        self.route, self._shift = _route(weight, self._data, reach)
        self._dtype = torch.float32 if self.route == "float32" else torch.float64
        self._factors = (
            [part.float() for part in _parts(weight, self._shift)]
            if self.route == "split"
            else [weight.to(self._dtype)]
        )

    def sums(self, q: Tensor) -> Tensor:
        """Exact sums of data ``q``: integers in float32 or float64."""
        check_arithmetic(q.device)
        return self._sums(self._checked(q))

    def at_risk(self, q: Tensor, bits: int) -> Tensor:
        """Whether a sum leaves ``bits`` bits in some order of its terms, the bias first.

        Partial sums reach b + p and b - m, where p and -m are the sums of the terms above and below
        zero. Both stay within P bits where |2 b + p - m + 1| + (p + m) < 2^P; p - m and p + m are
        two products.
        """
        check_arithmetic(q.device)
        return self._at_risk(self._checked(q), bits)[1]

    def saturated(self, q: Tensor, bits: int) -> Tensor:
        """Sums clipped to ``bits`` bits after each addition, in the stated order.

        Where no partial sum leaves the range, clipping changes nothing. So sums at risk alone are
        added one term after the other, unless they are more than a hundredth. Where many are in
        some order, those that are in the stated order are looked for.
        """
        check_arithmetic(q.device)
        self._checked(q)
        if not self._geometry.stride and q.dim() > 2:
            return self.saturated(q.flatten(0, -2), bits).view(*q.shape[:-1], -1)
        with torch.no_grad():
            if self._fits(bits):
                return self._sums(q)
            if _share(self._at_risk(q[:1], bits)[1]) <= FEW:
                sums, at_risk = self._at_risk(q, bits)
            else:
                sums, at_risk = self._at_risk_in_order(q, bits)
            if _share(at_risk) > FEW:
                return self._added_up(sums, q, bits)
            return self._repaired(sums, at_risk, q, bits)

    def _checked(self, q: Tensor) -> Tensor:
        low, high = q.aminmax()
        assert self._data[0] <= float(low) <= float(high) <= self._data[1], "data leave their range"
        return q

    @torch.no_grad()
    def _sums(self, q: Tensor) -> Tensor:
        if self.route == "split":
            q = q.float()
            high, low = (self._multiply(q, factor, None) for factor in self._factors)
            sums = low.double().add_(high, alpha=2**self._shift)
            return sums.add_(self._by_channel(self._bias))
        sums = self._multiply(q.to(self._dtype), self._factors[0], self._bias.to(self._dtype))
        return sums.round_() if q.is_cuda else sums

    def _multiply(self, q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of = self._geometry
        with torch.autocast(q.device.type, enabled=False):
            if not of.stride:
                return F.linear(q, weight, bias)
            if of.pads_ahead:
                q = self._padded(q)
            convolve = CONVOLUTIONS[len(of.stride) - 1]
            return convolve(q, weight, bias, of.stride, of.padding, of.dilation, of.groups)

    def _padded(self, q: Tensor) -> Tensor:
        """``q`` with the zeros around it that the layer adds."""
        of = self._geometry
        if isinstance(self._layer, Conv2dSame):
            kernel, stride, dilation = map(list, (self._weight.shape[2:], of.stride, of.dilation))
            return cast(Tensor, pad_same(q, kernel, stride, dilation))
        return F.pad(q, of.border)

    def _by_channel(self, values: Tensor) -> Tensor:
        """``values``, (c_out,), so that they broadcast against sums."""
        return values.view(-1, *[1] * (self._weight.dim() - 2))

    def _fits(self, bits: int) -> bool:
        """Whether no partial sum of any data leaves ``bits`` bits."""
        least, greatest = _range(bits)
        return least <= int(self.low.min()) and int(self.high.max()) <= greatest

    # Risk. In float32, P is at most 24 or all sums fit; and what is rounded has at least the
    # magnitude 2^24 before and after, so that its comparison with 2^P is right.

    @torch.no_grad()
    def _at_risk(self, q: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Sums, and which of them are at risk in some order."""
        sums = self._sums(q)
        if self._fits(bits):
            return sums, torch.zeros_like(sums, dtype=torch.bool)
        middle = sums + self._by_channel(self._bias + 1).to(sums.dtype)  # 2 b + p - m + 1
        return sums, middle.abs_().add_(self._sum_magnitudes(q)) >= 2**bits

    def _sum_magnitudes(self, q: Tensor) -> Tensor:
        """Sums of the terms without their signs and without the bias: p + m."""
        return self._magnitudes._sums(q if self._data[0] == 0 else q.abs())

    @cached_property
    def _magnitudes(self) -> "Product":
        largest = max(self._data[1], -self._data[0])
        return Product(self._weight.abs(), (0, largest), None, self._layer)

    def _at_risk_in_order(self, q: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Sums, and which of them are at risk with chunks of input channels in order.

        Within a chunk, p and m are those of its terms, and b is the sum before it.
        """
        by_group = q.reshape(len(q), self._geometry.groups, -1, *q.shape[2:])
        twice = self._by_channel(2 * self._bias + 1).to(self._dtype)  # 2 b + 1
        worst = twice.abs()
        for channels, chunk in self._chunks:
            x = by_group[:, :, channels].flatten(1, 2)
            sums = chunk._sums(x)
            twice = twice + sums
            worst = torch.maximum(worst, twice.abs().add_(chunk._sum_magnitudes(x)))
            twice.add_(sums)
        return twice.sub_(1).mul_(0.5), worst >= 2**bits

    @cached_property
    def _chunks(self) -> list[tuple[slice, "Product"]]:
        """Products of consecutive input channels of each group."""
        size = max(1, CHUNK // prod(self._weight.shape[2:]))
        slices = [slice(c, c + size) for c in range(0, self._weight.shape[1], size)]
        return [(of, Product(self._weight[:, of], self._data, None, self._layer)) for of in slices]

    # Saturation, term by term.

    def _added_up(self, sums: Tensor, q: Tensor, bits: int) -> Tensor:
        """All sums again, clipped after each term; as many images at a time as a cache holds."""
        groups, (weight, start) = self._geometry.groups, self._for_clipping(bits)
        x, taps = self._data_by_tap(q.to(weight.dtype), sums)
        start = start.view(groups, -1, 1)
        weight = weight.view(groups, start.shape[1], -1)
        images = max(1, BLOCK // sums[0].numel())
        found = []
        for some in x.split(images):  # type: ignore[no-untyped-call]
            columns = some[..., taps].permute(1, 2, 3, 0, 4)  # (groups, channels, taps, n, place)
            columns = columns.reshape(groups, weight.shape[2], -1)
            added = start.repeat(1, 1, columns.shape[2])
            for term in range(weight.shape[2]):
                added.addcmul_(columns[:, None, term], weight[:, :, term, None])
                added.clamp_(*_range(bits))
            added = added.view(len(start) * start.shape[1], len(some), *sums.shape[2:])
            found.append(added.transpose(0, 1))
        return torch.cat(found).to(sums.dtype)

    def _repaired(self, sums: Tensor, at_risk: Tensor, q: Tensor, bits: int) -> Tensor:
        """``sums`` with those at risk added again, clipped after each term."""
        weight, start = self._for_clipping(bits)
        x, taps = self._data_by_tap(q.to(weight.dtype), sums)
        channels = torch.arange(x.shape[2], device=q.device)[:, None]
        per_group = len(weight) // self._geometry.groups
        found = []
        where = at_risk.reshape(*at_risk.shape[:2], -1).nonzero()
        rows = max(1, BLOCK // weight.shape[1])
        for some in where.split(rows):  # type: ignore[no-untyped-call]
            image, channel, place = some.T[..., None, None]
            terms = x[image, channel // per_group, channels, taps.T[place[:, :, 0]]]
            terms = (terms.flatten(1) * weight[some[:, 1]]).T.contiguous()
            added = start[some[:, 1]]
            for term in terms:
                added.add_(term).clamp_(*_range(bits))
            found.append(added)
        return sums.masked_scatter(at_risk, torch.cat(found).to(sums.dtype)) if found else sums

    def _for_clipping(self, bits: int) -> tuple[Tensor, Tensor]:
        """Weights, (c_out, terms), and clipped biases in a dtype that holds a sum and a term."""
        least, greatest = _range(bits)
        term = int(self._weight.abs().max()) * max(self._data[1], -self._data[0])
        dtype = torch.float32 if term - least < FLOAT32 else torch.float64
        return self._weight.flatten(1).to(dtype), self._bias.clamp(least, greatest).to(dtype)

    def _data_by_tap(self, q: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Padded data, and where they are multiplied.

        The first are (n, groups, channels, places). The others are for each tap of the kernel and
        each sum of a channel the place of its datum, (taps, sums).
        """
        of, padded = self._geometry, self._padded(q)
        x = padded.reshape(len(q), of.groups, self._weight.shape[1], -1)
        places = torch.arange(x.shape[3], device=q.device).view(padded.shape[2:])
        found = []
        for tap in product(*map(range, self._weight.shape[2:])):
            window = tuple(
                slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
                for at, dilation, stride, count in zip(
                    tap, of.dilation, of.stride, sums.shape[2:], strict=True
                )
            )
            found.append(places[window].flatten())
        return x, torch.stack(found)


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
        for weight_bits, data_bits in ((4, 8), (8, 8), (16, 16)):
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
    if getattr(kind, "forward", None) not in PLAIN:
        raise UserError(f"{kind.__name__}: it is not known how this class computes its sums")
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _Geometry()
    if layer.padding_mode != "zeros":
        raise UserError(
            f"padding_mode={layer.padding_mode!r}: sums in integers are known with zeros around"
        )
    border = layer._reversed_padding_repeated_twice
    pads_ahead = isinstance(layer, Conv2dSame) or border[::2] != border[1::2]
    padding = (0,) * len(layer.stride) if pads_ahead else tuple(border[::-2])
    return _Geometry(layer.stride, padding, layer.dilation, layer.groups, border, pads_ahead)


def extremes(weight: Tensor, data: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Least and greatest sum of each output channel with data in a range around 0."""
    flat = weight.flatten(1)
    above = flat.clamp(min=0).sum(1)
    below = above - flat.sum(1)
    return data[0] * above - data[1] * below, data[1] * above - data[0] * below


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
        if all(_reach(*extremes(part, data)) < FLOAT32 for part in _parts(weight, shift)):
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
