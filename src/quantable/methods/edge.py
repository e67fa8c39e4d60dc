r"""Learned bit-widths under a memory budget, in three phases.

Schaefer et al., WACV 2024, arXiv:2206.07741; the quantizer after Uhlich et al., ICLR 2020,
arXiv:1905.11452. Symbols: step :math:`d`, clip :math:`x_{max}` (here ``clip``), value :math:`x`,
rounding :math:`R`, intervals :math:`n`, bit-width :math:`b`, sizes :math:`S` and targets :math:`T`
in kB (1000 bytes) of weights and activations.

.. math:: \hat x = d\, R(\mathrm{clip}(x, x_{lo}, x_{max}) / d), \quad
    x_{lo} = -x_{max} \text{ if signed, else } 0
.. math:: n = \lfloor x_{max} / d \rceil, \quad
    b = \max(\lceil \log_2(n + 1) \rceil + \mathrm{signed}, 1)
.. math:: L = \mathrm{CE} + \rho(t) \lambda \left( \max(S_w - T_w, 0)^2 + \max(S_a - T_a, 0)^2
    \right)
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.base.bits import FLOAT_BITS, Bits
from quantable.base.chunks import pieces
from quantable.base.devices import gathered
from quantable.base.errors import UserError
from quantable.cost.memory import kb_targets, memory_bytes
from quantable.networks.layers import LayerShape
from quantable.networks.trace import layer_shapes
from quantable.quantization.face import TrainerFace, face
from quantable.quantization.quantize import Factory, Quantize
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, round_ste, rounding_gradient, straight_through

MARGIN = 1e-5  # between step and clip, and of both to the ends of their ranges
MIN_STEP, MIN_CLIP, MAX_CLIP = 2.0**-12, 2.0**-8, 127.0
MAX_STEP = {False: 1.0, True: 8.0}  # of weights, of batched activations
PERCENTILE = 0.999  # of an activation's magnitudes: its first clip


def step_and_clip(
    x: Tensor, step: Tensor, clip: Tensor, *, signed: bool, rounding: Rounding = round_ste
) -> Tensor:
    """Fake-quantize ``x`` onto the multiples of ``step`` up to ``clip``, from ``-clip`` if signed.

    >>> x = torch.tensor([-9.0, 0.2, 0.9, 9.0])
    >>> step_and_clip(x, torch.tensor(0.5), torch.tensor(1.5), signed=True)
    tensor([-1.5000,  0.0000,  1.0000,  1.5000])
    """
    low = -clip if signed else torch.zeros_like(clip)
    return rounding(x.clamp(low, clip) / step) * step


def step_and_clip_eager(
    x: Tensor, step: Tensor, clip: Tensor, *, signed: bool, rounding: Rounding = round_ste
) -> Tensor:
    """The same as ``step_and_clip``, faster where no compiler fuses its operations.

    >>> x = torch.tensor([-9.0, 0.2, 0.9, 9.0])
    >>> step_and_clip_eager(x, torch.tensor(0.5), torch.tensor(1.5), signed=True)
    tensor([-1.5000,  0.0000,  1.0000,  1.5000])
    """
    result: Tensor = _Eager.apply(x, step, clip, signed, rounding)  # type: ignore[no-untyped-call]
    return result


def learned_bits(step: Tensor, clip: Tensor, *, signed: bool) -> Tensor:
    """Bit-width of each step and clip; ceil and round pass the gradient straight through.

    >>> learned_bits(torch.tensor([0.5, 0.1]), torch.tensor([1.5, 1.5]), signed=True)
    tensor([3., 5.])
    """
    n = round_ste(clip / step)
    # The exponent of frexp is ceil(log2(n + 1)) of an integer, exactly; log2 may be off by a digit.
    exact = torch.frexp(n.detach()).exponent.to(n.dtype)
    return (straight_through(exact, grad_of=torch.log2(n + 1)) + signed).clamp(min=1)


def projected(step: Tensor, clip: Tensor, *, max_step: float) -> tuple[Tensor, Tensor]:
    """Step and clip in their ranges, the step below the clip: what is not so changes places.

    >>> projected(torch.tensor(0.5), torch.tensor(0.25), max_step=1.0)
    (tensor(0.2500), tensor(0.5000))
    """
    smaller = torch.minimum(step, clip - MARGIN).clamp(MIN_STEP + MARGIN, max_step - MARGIN)
    larger = torch.maximum(step + MARGIN, clip).clamp(MIN_CLIP + MARGIN, MAX_CLIP - MARGIN)
    return smaller, larger


class StepAndClip(Quantizer):
    """One tensor's learned step and clip; ``per_channel`` has one pair for each channel.

    ``bits`` given from outside is where the first training batch puts step and clip. From then on
    it is a result, the width of the widest channel, and ``mean_bits`` is differentiable. Before
    training, evaluation uses what its own batch would set, and keeps nothing.
    """

    def make_state(self) -> None:
        """One step and one clip, or one of each for each channel."""
        self.step = nn.Parameter(torch.ones(self.shape))  # (c,) or scalar: d
        self.clip = nn.Parameter(torch.ones(self.shape))  # (c,) or scalar: x_max

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``step_and_clip`` with the learned step and clip."""
        step, clip = self._usable(x)
        step, clip = self.spread(step, x), self.spread(clip, x)
        function = step_and_clip if torch.compiler.is_compiling() else step_and_clip_eager
        return function(x, step, clip, signed=self.signed, rounding=self.rounding)

    def scale_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The step; every integer stands for a multiple of it."""
        step = self.spread(self._usable(x)[0], x)
        return step, torch.zeros_like(step)

    def _usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.initialized:
            joint = self.training and self.batched
            step, clip = self.first(gathered(x) if joint else x)
            if not self.training:
                return step, clip
            with torch.no_grad():  # in place: the optimizer already holds these Parameters
                self.step.copy_(step)
                self.clip.copy_(clip)
            self.initialized = True
        return self.step, self.clip

    @torch.no_grad()
    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step and clip that training would start from with ``x`` as its first batch.

        Signed tensors of 1 bit hold nothing but 0, by the formula of the bits.
        """
        if self.batched:
            rows = x.movedim(1, 0).flatten(1) if self.per_channel else x.flatten()
            clip = percentile(rows.abs())
        else:
            mean = x.mean(self.reduced(x))
            spread = 3 * x.std(self.reduced(x), correction=0)
            clip = torch.maximum((mean - spread).abs(), (mean + spread).abs())
        clip = torch.where(clip > 0, clip, 1)
        n = 2 ** (self.bits - self.signed) - 1
        return (clip / n if n else 2 * clip), clip

    def mean_bits(self) -> Tensor:
        """Bit-width, on average over the channels; a scalar with gradients to step and clip."""
        return learned_bits(self.step, self.clip, signed=self.signed).mean()

    @property
    def bits(self) -> int:
        """Width of the widest channel. A new one makes the next training batch set the step."""
        if not self.initialized:
            return self._bits
        return int(learned_bits(self.step.detach(), self.clip.detach(), signed=self.signed).max())

    @bits.setter
    def bits(self, bits: int) -> None:
        Quantizer.bits.fset(self, bits)  # type: ignore[attr-defined]
        self.initialized = False


@torch.no_grad()
def project(quantizers: Sequence[StepAndClip]) -> None:
    """Put steps and clips back into their ranges: together, as most are single numbers."""
    for batched, max_step in MAX_STEP.items():
        some = [quantizer for quantizer in quantizers if quantizer.batched == batched]
        if not some:
            continue
        both = [quantizer.step for quantizer in some], [quantizer.clip for quantizer in some]
        joined = [torch.cat([part.flatten() for part in parts]) for parts in both]
        for parts, new in zip(both, projected(*joined, max_step=max_step), strict=True):
            sizes = [part.numel() for part in parts]
            for part, values in zip(parts, torch.split(new, sizes), strict=True):
                part.copy_(values.view_as(part))


StepAndEnds = tuple[Tensor, Tensor, Tensor] | tuple[float, float, float]


def _levels(step: Tensor, clip: Tensor, signed: bool) -> StepAndEnds:
    """Step and both ends; as plain numbers, which are several times faster, where that is free."""
    if clip.dim() == 0 and clip.device.type == "cpu":  # other devices would be waited for
        high = clip.item()
        return step.item(), -high if signed else 0.0, high
    return step, -clip if signed else torch.zeros_like(clip), clip


class _Eager(torch.autograd.Function):
    """Keeps what the next layer keeps anyway, and looks for no gradient that nobody wants."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        step: Tensor,
        clip: Tensor,
        signed: bool,
        rounding: Rounding,
    ) -> Tensor:
        out = torch.empty_like(x)
        for out_, x_, step_, low_, clip_ in pieces(out, x, *_levels(step, clip, signed)):
            torch.clamp(x_, low_, clip_, out=out_).div_(step_).round_().mul_(step_)
        plain = rounding is round_ste and not any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(x, step, clip, None if plain else out)
        ctx.signed, ctx.rounding = signed, rounding
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, step, clip, out = ctx.saved_tensors
        _, by_step, by_clip, *_ = ctx.needs_input_grad
        levels = _levels(step, clip, ctx.signed)
        if not (by_step or by_clip):
            return _plain_backward(grad, x, out, levels, ctx.rounding), None, None, None, None
        grad_x, of_step, of_clip = map(torch.empty_like, (x, step, clip))
        of_step.zero_()
        of_clip.zero_()
        every = pieces(grad_x, grad, x, out, *levels, of_step, of_clip)
        for grad_x_, grad_, x_, out_, step_, low_, clip_, of_step_, of_clip_ in every:
            inside = x_.clamp(low_, clip_)
            error = torch.sub(inside, out_, out=grad_x_)
            changed = rounding_gradient(ctx.rounding, error, step_, grad_)
            level = (grad_ * out_).addcmul_(inside, changed, value=-1)
            of_step_ += level.sum_to_size(of_step_.shape)
            # Of the clip: 1 beyond it and, where the lower end is learned too, -1 below that.
            side = (
                torch.sub(x_, inside, out=level).sign_()
                if ctx.signed
                else torch.gt(x_, clip_, out=level)
            )
            of_clip_ += side.mul_(changed).sum_to_size(of_clip_.shape)
            _inside_only(changed, x_, low_, clip_, grad_x_)
        of_step.div_(step)
        return grad_x, of_step if by_step else None, of_clip if by_clip else None, None, None


def _plain_backward(
    grad: Tensor, x: Tensor, out: Tensor | None, levels: StepAndEnds, rounding: Rounding
) -> Tensor:
    """The gradient of ``x`` alone, in as few passes as can be; ``out`` is None for STE."""
    grad_x = torch.empty_like(x)
    if out is None:
        _inside_only(grad, x, levels[1], levels[2], grad_x)
        return grad_x
    for grad_x_, grad_, x_, out_, step_, low_, clip_ in pieces(grad_x, grad, x, out, *levels):
        # What comes of values outside is selected away, whatever it is, or multiplied by 0.
        inside = x_ if isinstance(clip_, float) else x_.clamp(low_, clip_)
        error = torch.sub(inside, out_, out=grad_x_)
        changed = rounding_gradient(rounding, error, step_, grad_)
        _inside_only(changed, x_, low_, clip_, grad_x_)
    return grad_x


def _inside_only(
    grad: Tensor, x: Tensor, low: Tensor | float, high: Tensor | float, out: Tensor
) -> None:
    """``grad`` where ``low <= x <= high``, else 0."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        torch.mul(grad, x.ge(low).logical_and_(x.le(high)), out=out)
        return
    # One pass instead of three. It takes both ends for outside, so they are moved to the numbers
    # next to them: 0.7 eps more is rounded to one digit more, whatever the mantissa.
    kind = torch.finfo(x.dtype)
    below = low - max(0.7 * kind.eps * abs(low), kind.eps * kind.tiny)
    above = high + 0.7 * kind.eps * abs(high)
    torch.ops.aten.hardtanh_backward.grad_input(grad, x, below, above, grad_input=out)


def percentile(x: Tensor) -> Tensor:
    """The 99.9 percentile of a vector, or of each row of a matrix; linear between neighbours.

    >>> percentile(torch.arange(2001.0))
    tensor(1998.)
    """
    last = x.shape[-1] - 1
    position = PERCENTILE * last
    below = int(position)
    # kthvalue, since torch.quantile takes at most 2**24 elements
    low, high = (x.kthvalue(i + 1, dim=-1).values for i in (below, min(below + 1, last)))
    return low.lerp(high, position - below)


def ramp(progress: float) -> float:
    """Weight of the size penalty at a place in [0, 1] of the search: up to 1 in its first half.

    >>> ramp(0.0), ramp(0.25), ramp(0.75)
    (0.01, 0.505, 1.0)
    """
    return 0.01 + 0.99 * min(1.0, 2 * progress)


class Sizes(NamedTuple):
    """Of a network's weights and activations, in kB (1000 bytes)."""

    weight: Tensor
    act: Tensor


def size_penalty(sizes: Sizes, targets: Sequence[float], strength: float) -> Tensor:
    """Squared excess of both sizes over their ``targets`` (kB), times ``strength`` (1/kB^2).

    >>> sizes = Sizes(weight=torch.tensor(13.0), act=torch.tensor(5.0))
    >>> size_penalty(sizes, targets=[10.0, 6.0], strength=0.5)
    tensor(4.5000)
    """
    over = [(size - target).relu() for size, target in zip(sizes, targets, strict=True)]
    return strength * (over[0].square() + over[1].square())


class _SoftBits(NamedTuple):
    """Stands for ``Bits`` in a cost model, which only multiplies and adds."""

    weight: Tensor
    act: Tensor


PRETRAIN, SEARCH, FINETUNE = range(3)


class LearnedBits(Quantize):
    """Learns steps, clips and with them bit-widths under two budgets, in three phases of one run.

    ``epochs`` are the phases' lengths. The first keeps the widths at ``inner``, the second trains
    steps and clips too, in every ``update_every``-th step, with the size penalty of ``target``,
    ``kb_per_bit``, ``accounting`` (see ``kb_targets``) and ``strength``; the third keeps the
    widths it found. Each begins with the best weights of the one before, by held-out accuracy: of
    the first phase over all epochs; of the second over those from the share ``select_from`` on
    whose sizes meet both targets, else with its last ones. The optimizer begins anew each time.
    Phases of 0 epochs end the run: with ``[n, 0, 0]`` the widths stay as they are.

    The network's input stays in float. Linear layers have one step and clip, whatever the
    convolutions have. ``weight_decay`` is for all parameters but those of batch norms and
    quantizers; the optimizer's own is to be 0.
    """

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        epochs: Sequence[int],
        target: Sequence[float],
        kb_per_bit: Sequence[float] | None,
        accounting: str,
        strength: float,
        update_every: int,
        select_from: float,
        weight_decay: float,
    ) -> None:
        super().__init__(weight=weight, act=act, inner=inner, ends=ends, layers=layers)
        search_too = len(epochs) == 3 and min(epochs) >= 1
        if not search_too and (list(epochs[1:]) != [0, 0] or epochs[0] < 1):
            raise UserError(
                f"quantizer.callback.epochs={list(epochs)}: three phases, each >= 1, or [n, 0, 0]"
            )
        if len(target) != 2 or (kb_per_bit is not None and len(kb_per_bit) != 2):
            raise UserError("quantizer.callback: target and kb_per_bit are pairs [weight, act]")
        if update_every < 1:
            raise UserError(f"quantizer.callback.update_every={update_every}: it is at least 1")
        self.epochs = epochs
        self.target = target
        self.kb_per_bit = kb_per_bit
        self.accounting = accounting
        self.strength = strength
        self.update_every = update_every
        self.select_from = select_from
        self.weight_decay = weight_decay
        self.shapes: list[LayerShape] = []
        self.targets = (0.0, 0.0)  # kB of weights, of activations
        self.decayed: list[nn.Parameter] = []
        self.updating: bool | None = None  # whether this step updates the quantizers
        self.best: dict[str, Any] | None = None  # state of the network, in this phase so far
        self.best_top1_pct = -1.0

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``, none of them on its input."""
        c, h, w = input_size
        self.shapes = layer_shapes(net, (c, h, w))
        for shape in self.shapes[:1]:
            start = self.layers.get(shape.name, self.ends or self.inner)
            self.layers = self.layers | {shape.name: Bits(start.weight, FLOAT_BITS)}
        self.targets = kb_targets(
            self.shapes, self.target, kb_per_bit=self.kb_per_bit, accounting=self.accounting
        )
        self.decayed = [
            parameter
            for module in net.modules()
            if not isinstance(module, _BatchNorm)
            for parameter in module.parameters(recurse=False)
        ]
        super().attach(net, input_size)
        if any(quantizer.signed and quantizer.bits == 1 for quantizer in self.quantizers):
            raise UserError("quantizer: signed tensors start at 2 bits or more; 1 bit holds only 0")

    def factory_of_weight(self, layer: nn.Module) -> Factory:
        """Only convolutions have channels of their own."""
        if isinstance(layer, nn.Linear):
            return partial(self.weight, per_channel=False)  # type: ignore[call-arg]
        return self.weight

    @property
    def quantizers(self) -> list[StepAndClip]:
        """Those of all weights, then those of all activations."""
        both = [*self.weight_quantizers.values(), *self.act_quantizers.values()]
        return cast(list[StepAndClip], both)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, add the penalty to the loss, and plan the first phase."""
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        if module.epoch == module.batch == 0:
            module.phase_epochs = self.epochs[PRETRAIN]
        module.penalties.append(lambda: self.penalty(_progress(module)))

    def sizes(self) -> Sizes:
        """Of the network with its widths of now, by the cost model; differentiable."""

        def width(quantizers: Mapping[str, Quantizer], name: str) -> Tensor:
            if name not in quantizers:
                return torch.tensor(float(FLOAT_BITS))
            return cast(StepAndClip, quantizers[name]).mean_bits()

        soft = {
            shape.name: _SoftBits(
                width(self.weight_quantizers, shape.name), width(self.act_quantizers, shape.name)
            )
            for shape in self.shapes
        }
        parts: Mapping[str, Any] = memory_bytes(
            self.shapes,
            cast(Mapping[str, Bits], soft),
            batch_norm_channels=0,
            accounting=self.accounting,
        )
        return Sizes(parts["weights"] / 1000, parts["activations"] / 1000)

    def penalty(self, progress: float) -> Tensor:
        """Of the sizes, in a step that updates the quantizers; nothing else depends on it."""
        if not self.updating:
            return torch.zeros(())
        return ramp(progress) * size_penalty(self.sizes(), self.targets, self.strength)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Let gradients reach steps and clips only where they will be used."""
        module = face(pl_module)
        step = (module.epoch - module.phase_start) * module.batches + module.batch
        updating = module.phase == SEARCH and (step + 1) % self.update_every == 0
        if updating != self.updating:
            self.updating = updating
            for quantizer in self.quantizers:
                quantizer.requires_grad_(updating)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the weight decay; clip the gradients of steps and clips, or let them coast on 0."""
        for parameter in self.decayed:
            if parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=self.weight_decay)
        module = face(pl_module)
        if module.phase != SEARCH:
            return
        for quantizer in self.quantizers:
            for parameter in (quantizer.step, quantizer.clip):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                else:
                    bound = quantizer.step.abs()
                    parameter.grad.clamp_(-bound, bound)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Put steps and clips back into their ranges."""
        module = face(pl_module)
        if module.phase == SEARCH:
            project(self.quantizers)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write widths and sizes down, keep the best weights, and begin the next phase."""
        module = face(pl_module)
        line = module.history[-1]
        line["bits"] = {name: [bits.weight, bits.act] for name, bits in self.bits.items()}
        with torch.no_grad():
            weight_kb, act_kb = (float(size) for size in self.sizes())
        module.note(weight_kb=weight_kb, act_kb=act_kb)
        done = module.epoch + 1 - module.phase_start
        if self._selectable(line, done / module.phase_epochs):
            self._keep_best(module.net, line["val_top1_pct"])
        if done < module.phase_epochs or not any(self.epochs[module.phase + 1 :]):
            return
        if self.best is not None:
            module.net.load_state_dict(self.best)
        self.best, self.best_top1_pct = None, -1.0
        trainer.optimizers[0].state.clear()
        module.start_phase(module.epoch + 1, self.epochs[module.phase + 1])

    def _selectable(self, line: Mapping[str, Any], progress: float) -> bool:
        """Whether the next phase may begin with the weights of this epoch."""
        if line["phase"] == SEARCH:
            sizes = line["own"]["weight_kb"], line["own"]["act_kb"]
            fits = all(size <= most for size, most in zip(sizes, self.targets, strict=True))
            return fits and progress >= self.select_from
        return bool(line["phase"] == PRETRAIN)

    def _keep_best(self, net: nn.Module, top1_pct: float) -> None:
        if top1_pct > self.best_top1_pct:
            self.best, self.best_top1_pct = deepcopy(net.state_dict()), top1_pct

    def state_dict(self) -> dict[str, Any]:
        """The best weights of the unfinished phase."""
        return {"best": self.best, "best_top1_pct": self.best_top1_pct}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the phase where a checkpoint left it."""
        self.best, self.best_top1_pct = state_dict["best"], state_dict["best_top1_pct"]


def _progress(module: TrainerFace) -> float:
    """Place of the coming step in its phase, from 0 to 1."""
    done = module.epoch - module.phase_start + module.batch / module.batches
    return done / module.phase_epochs
