"""The callback that streams a cell's history to Weights & Biases while it is trained."""

from collections.abc import Callable, Mapping, Sequence

import pytorch_lightning as pl
import torch

from quantable.base.bits import FLOAT_BITS, Bits
from quantable.logger.wandb_run import CellRun
from quantable.networks.layers import LayerShape, uniform
from quantable.quantization.grid import intervals
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Quantizer
from quantable.store.record import Epoch
from quantable.training.classifier import Classifier


class Stream(pl.Callback):
    """Sends every line of the history, after the checkpoint that holds it was written.

    So a line is never sent of an epoch that will be trained again, and one that was kept but not
    sent follows when the run is taken up. ``begin`` starts the run. Of several processes
    that train together, one has this callback.
    """

    def __init__(
        self,
        begin: Callable[[], CellRun],
        quantize: Quantize | None,
        shapes: Sequence[LayerShape],
    ) -> None:
        self.begin = begin
        self.quantize = quantize
        self.floats = uniform(shapes, FLOAT_BITS)
        self.run: CellRun | None = None

    @property
    def bits(self) -> Mapping[str, Bits]:
        """Bits of every layer, where the history's lines have none."""
        return self.floats if self.quantize is None else self.quantize.bits

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin or take up the run, and send what misses."""
        self.run = self.begin()
        self._send(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the epoch's line."""
        self._send(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave a run that can be taken up again."""
        if self.run is not None:
            self.run.stop()

    def _send(self, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        if self.run is None:
            return
        for line in module.history:
            now = line is module.history[-1] and module.batch == 0  # the quantizers are as it ended
            sizes = steps(self.quantize) if now and self.quantize is not None else {}
            self.run.line(Epoch.model_validate(line), self.bits, sizes)


@torch.no_grad()
def steps(quantize: Quantize) -> dict[str, float]:
    """Step sizes that quantizers have learned or tracked, means over channels.

    >>> steps(Quantize(weight=None, act=None, inner=[4, 4], ends=None, layers={}))  # not attached
    {}
    """
    found: dict[str, torch.Tensor] = {}
    operands = {"weight": quantize.weight_quantizers, "act": quantize.act_quantizers}
    for operand, quantizers in operands.items():
        for layer, quantizer in quantizers.items():
            if (step := step_of(quantizer)) is not None:
                found[f"step/{operand}/{layer}"] = step.float().mean()
    if not found:
        return {}
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))  # one wait


def step_of(quantizer: Quantizer) -> torch.Tensor | None:
    """Step of a quantizer that has one, or a clip or a range of even steps; (c,) or a scalar."""
    span: torch.Tensor
    if hasattr(quantizer, "step"):
        return quantizer.step.detach() if quantizer.initialized else None  # type: ignore[operator]
    if hasattr(quantizer, "clip"):
        span = quantizer.clip.detach() * (2 if quantizer.signed else 1)  # type: ignore[operator]
    elif hasattr(quantizer, "high") and quantizer.initialized:
        span = quantizer.high - quantizer.low  # type: ignore[operator]
    else:
        return None
    return span / intervals(quantizer.bits)
