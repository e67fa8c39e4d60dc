r"""A2Q and A2Q+: weights whose sums cannot overflow an accumulator of P bits.

Colbert, Pappalardo, Petri-Koenig, ICCV 2023, arXiv:2308.13504 (A2Q), and Colbert, Pappalardo,
Petri-Koenig, Umuroglu, ICML 2024, arXiv:2401.10432 (A2Q+ and the initialization by projection);
the equations as their code has them (``docs/methods/a2q.md``). Symbols, of each output channel:
weight :math:`v`, step :math:`s`, norm :math:`g`, both learned as logarithms; :math:`M` bits of a
weight, :math:`N` of a datum, :math:`P` of a sum; :math:`\sigma` is 1 with signed data, else 0.

.. math:: \hat v = s \; \mathrm{clip}\left(
    \left[ \min(g / s, T) \, v / \lVert v \rVert_1 \right], \pm(2^{M-1} - 1) \right)
.. math:: T = (2^{P-1} - 1) \, 2^{\sigma - N} \text{ (A2Q)}, \quad
    T_+ = (2^P - 2) / (2^N - 1), \; v \to v - \langle v \rangle \text{ (A2Q+)}
.. math:: L = \mathrm{CE} + \lambda \textstyle\sum \max(g - s T, 0)
.. math:: s_0 = \max |v| / (2^{M-1} - 1), \quad g_0 = \min(\lVert v \rVert_1, s_0 T), \quad
    v_0 = \mathrm{sign}(v) \max(|v| - \theta, 0)

:math:`[\cdot]` rounds toward zero, so that the integers' norm is at most :math:`T`. :math:`v_0`,
which training begins with, is the nearest point to :math:`v` of norm :math:`s_0 T`, where its own
is larger.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from quantable.base.bits import FLOAT_BITS
from quantable.base.errors import UserError
from quantable.cost.accumulators import centred_l1_limit, l1_limit
from quantable.networks.counting import layer_shapes
from quantable.quantization.channels import raw_weight
from quantable.quantization.face import face
from quantable.quantization.quantize import Factory, Quantize
from quantable.quantization.quantizer import Layer, Quantizer
from quantable.quantization.ste import Rounding, round_ste, straight_through


def a2q(
    v: Tensor,
    length: Tensor,
    step: Tensor,
    norm: Tensor,
    limit: float,
    q_max: int,
    rounding: Rounding = round_ste,
) -> Tensor:
    """Fake-quantize ``v``, of l1 norm ``length``, onto ``step * {-q_max, ..., q_max}``.

    ``v`` is scaled to the l1 norm ``norm``, of at most ``limit`` steps, and rounded toward zero;
    ``rounding`` says with which gradient. Where ``v`` is 0, it learns as if it were not scaled.

    >>> v, step = torch.tensor([1.5, -0.75, 0.5]), torch.tensor(0.25)
    >>> length = v.abs().sum()  # 2.75, or 11 steps
    >>> a2q(v, length=length, step=step, norm=length, limit=5.5, q_max=7)  # to 3, -1.5 and 1 steps
    tensor([ 0.7500, -0.2500,  0.2500])
    """
    in_step = torch.where(length == 0, step, length / (norm / step).clamp(max=limit))
    levels = v / in_step
    levels = straight_through(levels.detach().trunc(), grad_of=rounding(levels))
    return levels.clamp(-q_max, q_max) * step


def project_onto_l1_ball(v: Tensor, radius: Tensor) -> Tensor:
    """Nearest point of l1 norm ``radius``, (c,), to each row of ``v``, (c, k); rows inside stay.

    Duchi et al., ICML 2008: every magnitude is lowered by the same number, as far as to 0.

    >>> project_onto_l1_ball(torch.tensor([[3.0, -1.0, 0.5]]), radius=torch.tensor([2.5]))
    tensor([[ 2.2500, -0.2500,  0.0000]])
    """
    u = v.double().abs().sort(dim=1, descending=True).values
    over = u.cumsum(dim=1) - radius[:, None]
    place = torch.arange(1, v.shape[1] + 1, device=v.device)
    kept = (u * place > over).sum(dim=1, keepdim=True).clamp(min=1)
    lower_by = (over.gather(1, kept - 1) / kept).clamp(min=0)
    outside = (over[:, -1:] > 0).expand_as(v)
    lowered = (v.abs() - lower_by).clamp(min=0).to(v.dtype)
    return torch.where(outside, torch.copysign(lowered, v) + 0, v)


class A2Q(Quantizer):
    """One weight's A2Q quantizer, whose sums have ``accumulator_bits``; None: as wide as need be.

    Its limit is known in a network only, where its input is. With ``per_channel`` each output
    channel has a norm and a step; else the norm is the whole tensor's, which limits each channel's
    all the more.

    The first training batch sets step and norm from the weight, and projects the weight in place;
    so does the first one after ``bits`` was assigned. Before that, evaluation uses what training
    would set, and keeps nothing.
    """

    anew = True

    def __init__(
        self,
        bits: int,
        *,
        accumulator_bits: int | None,
        **more: Any,  # noqa: ANN401 - what every quantizer has
    ) -> None:
        super().__init__(bits, **more)
        self.accumulator_bits = accumulator_bits

    def make_state(self) -> None:
        """Base-2 logarithms of a step and a norm, or of one for each channel."""
        self.log2_step = nn.Parameter(torch.zeros(self.shape))  # (c,) or scalar: log2 s
        self.log2_norm = nn.Parameter(torch.zeros(self.shape))  # (c,) or scalar: log2 g

    @property
    def l1_limit(self) -> Fraction | None:
        """Largest l1 norm of a channel's integers, T; None where nothing limits it."""
        if self.accumulator_bits is None or self.layer is None:
            return None
        if self.layer.input_bits == FLOAT_BITS:
            raise UserError(
                f"layer '{self.layer.name}': its input is in float, and the limit of its sums "
                "follows from the input's bits: quantize it (bits.inner, bits.layers)"
            )
        return self.limit_of(self.accumulator_bits, self.layer)

    def limit_of(self, accumulator_bits: int, layer: Layer) -> Fraction:
        """The limit in sums of ``accumulator_bits`` with the input that ``layer`` has."""
        return l1_limit(accumulator_bits, layer.input_bits, data_signed=layer.input_signed)

    def centred(self, v: Tensor) -> Tensor:
        """What is scaled and rounded: ``v`` itself."""
        return v

    def fake_quantize(self, v: Tensor) -> Tensor:
        """``a2q`` with the learned step and norm."""
        log2_step, log2_norm, v = self._state(v)
        v = self.centred(v)
        return a2q(
            v,
            self.spread(self._length(v), v),
            self.spread(2.0**log2_step, v),
            self.spread(2.0**log2_norm, v),
            self._limit(),
            self._q_max(),
            self.rounding,
        )

    def scale_and_offset(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The step; every integer stands for a multiple of it."""
        log2_step, *_ = self._state(v)
        step = self.spread(2.0**log2_step, v)
        return step, torch.zeros_like(step)

    def excess(self) -> Tensor:
        """Sum over the channels of how far the norm is above its limit, in real units."""
        return (2.0**self.log2_norm - 2.0**self.log2_step * self._limit()).relu().sum()

    def l1_limit_pct(self, v: Tensor) -> float:
        """Largest l1 norm of a channel's integers, in percent of the limit."""
        levels, limit = self.levels(v), self.l1_limit
        assert levels is not None
        assert limit is not None
        return float(100 * int(self._rows(levels.integers).abs().sum(dim=1).max()) / limit)

    def _state(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of step and norm, and the weight; what training begins with where it has not.

        Training keeps that.
        """
        if self.initialized:
            return self.log2_step, self.log2_norm, v
        log2_step, log2_norm, projected = self._first(v)
        if not self.training:
            return log2_step, log2_norm, projected
        with torch.no_grad():  # in place: the optimizer already holds these Parameters
            self.log2_step.copy_(log2_step)
            self.log2_norm.copy_(log2_norm)
            if projected is not v:
                v.copy_(projected)
        self.initialized = True
        return self.log2_step, self.log2_norm, v

    @torch.no_grad()
    def _first(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training begins with; a channel of zeros has step and norm 1, and learns from them.

        As in the authors' code, A2Q+ too projects a weight that is not centred yet.
        """
        rows, limit = self._rows(v), self._limit()
        largest = rows.abs().amax(dim=1).view(self.shape)
        log2_step = torch.where(largest == 0, 1, largest / max(1, self._q_max())).log2()
        radius = 2.0**log2_step * limit
        norm = torch.where(largest == 0, 1, self._length(v)).clamp(max=radius)
        if math.isinf(limit):
            return log2_step, norm.log2(), v
        projected = project_onto_l1_ball(rows, radius.view(-1))
        return log2_step, norm.log2(), self._as_rows_of(v, projected)

    def _length(self, v: Tensor) -> Tensor:
        """The l1 norm of each channel."""
        length: Tensor = torch.linalg.vector_norm(self._rows(v), ord=1, dim=1)
        return length.view(self.shape)

    def _rows(self, v: Tensor) -> Tensor:
        """What has one norm as a row: (c, k) or (1, k)."""
        return v.movedim(self.channel_dim, 0).flatten(1) if self.per_channel else v.flatten()[None]

    def _as_rows_of(self, v: Tensor, rows: Tensor) -> Tensor:
        """Undo ``_rows(v)``."""
        if not self.per_channel:
            return rows.view(v.shape)
        return rows.view(v.movedim(self.channel_dim, 0).shape).movedim(0, self.channel_dim)

    def _limit(self) -> float:
        limit = self.l1_limit
        return math.inf if limit is None else float(limit)

    def _q_max(self) -> int:
        """Largest level, of both signs; of one bit there is 0 alone."""
        return (1 << self.bits - 1) - 1


class A2QPlus(A2Q):
    """One weight's A2Q+ quantizer: centred channels may have about twice A2Q's norm."""

    def limit_of(self, accumulator_bits: int, layer: Layer) -> Fraction:
        """The limit of weights that sum to zero; data of N bits lie ``2**N - 1`` steps apart."""
        if layer.input_signed and layer.input_bits == 1:
            raise UserError(
                f"layer '{layer.name}': the limit of A2Q+ is for inputs of 2 bits or more where "
                "they are signed: the two levels of one bit, -1 and 1, are 2 apart"
            )
        return centred_l1_limit(accumulator_bits, layer.input_bits)

    def centred(self, v: Tensor) -> Tensor:
        """Each channel minus its mean, in float64: it must sum to zero, also where all is equal."""
        wide = v.double()
        return (wide - wide.mean(self.reduced(v), keepdim=True)).to(v.dtype)


class AccumulatorAware(Quantize):
    """Limits the sums of all layers but those that ``ends`` gives bit-widths of their own.

    ``free`` makes the quantizers of their weights. ``strength`` is that of the penalty on norms
    above their limit.
    """

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        free: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        strength: float,
    ) -> None:
        super().__init__(weight=weight, act=act, inner=inner, ends=ends, layers=layers)
        self.free = free
        self.strength = strength
        self.limited: dict[str, A2Q] = {}
        self._free_layers: list[nn.Module] = []

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``, all of whose limits are known and leave room for weights."""
        c, h, w = input_size
        if self.ends is not None:
            names = [shape.name for shape in layer_shapes(net, (c, h, w))]
            self.free_of_accumulator = frozenset({*names[:1], *names[-1:]})
        self._free_layers = [net.get_submodule(name) for name in self.free_of_accumulator]
        super().attach(net, input_size)
        self.limited = {
            name: cast(A2Q, quantizer)
            for name, quantizer in self.weight_quantizers.items()
            if name not in self.free_of_accumulator
        }
        for name, quantizer in self.limited.items():
            _check_room(name, quantizer)

    def factory_of_weight(self, layer: nn.Module) -> Factory:
        """Free layers have another."""
        return self.free if any(layer is one for one in self._free_layers) else self.weight

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, and add the penalty to the loss."""
        super().setup(trainer, pl_module, stage)
        face(pl_module).penalties.append(self.penalty)

    def penalty(self) -> Tensor:
        """Of norms above their limit: they are cut there, where they would not learn."""
        excess = [quantizer.excess() for quantizer in self.limited.values()]
        return self.strength * torch.stack(excess).sum() if excess else torch.zeros(())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write down how near to the limit each layer's integers are."""
        module = face(pl_module)
        module.note(
            l1_limit_pct={
                name: quantizer.l1_limit_pct(raw_weight(module.net.get_submodule(name)).detach())
                for name, quantizer in self.limited.items()
            }
        )


def _check_room(name: str, quantizer: A2Q) -> None:
    """Refuse a layer whose weights could be nothing but 0, or whose limit is not known."""
    limit, layer = quantizer.l1_limit, quantizer.layer
    if limit is None or layer is None:
        raise UserError("bits.accumulator: say how many bits the sums have, such as 16")
    if quantizer.bits == 1:
        raise UserError(
            f"layer '{name}': of one bit there is the level 0 alone; its weights need 2 or more"
        )
    if limit < 1:
        raise UserError(
            f"bits.accumulator={quantizer.accumulator_bits}: too few for layer '{name}', whose "
            f"input has {layer.input_bits} bits: the l1 norm of its integers would be at most "
            f"{float(limit):.3g}, and all of them 0"
        )
