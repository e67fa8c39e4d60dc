"""Learned step and clip, and the bit-width that follows from both.

Equations and symbols stand in ``quantable.methods.edge``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantable.base.devices import gathered
from quantable.methods.edge.kernel import step_and_clip_eager
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import Rounding, round_ste, straight_through

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

    bits_follow = True

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
        clip = torch.where(clip == 0, 1, clip)  # NaN stays
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


def say_floors(quantizers: Sequence[StepAndClip]) -> None:
    """Say of which tensors every clip lies at the least that ``project`` leaves it."""
    for quantizer in quantizers:
        if bool((quantizer.clip <= MIN_CLIP + MARGIN).all()):
            quantizer.say_once(
                f"the clip fell to its least, {MIN_CLIP + MARGIN:.6f}: the layer gives next to "
                "nothing; lower recipe.optimizer.lr or quantizer.callback.strength"
            )


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
