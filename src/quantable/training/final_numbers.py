"""The callback that keeps what the weights of each phase say, layer by layer."""

import pytorch_lightning as pl

from quantable.integers.by_layer import measure
from quantable.quantization.quantize import Quantize
from quantable.training.classifier import Classifier


class FinalNumbers(pl.Callback):
    """Measures the weights at the end of a phase, where the test images are seen.

    It comes before the method, which may change the widths for the next phase.
    """

    def __init__(self, quantize: Quantize) -> None:
        self.quantize = quantize

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the phase's numbers."""
        assert isinstance(pl_module, Classifier)
        if "test_top1_pct" not in pl_module.history[-1]:
            return
        if (found := measure(self.quantize.final_layers())) is not None:
            pl_module.finals[pl_module.phase] = found
