"""The callback that keeps what the weights of each phase say, layer by layer."""

import pytorch_lightning as pl

from quantable.integers.by_layer import measure
from quantable.quantization.quantize import Quantize
from quantable.training.classifier import Classifier


class FinalNumbers(pl.Callback):
    """Measures every epoch's weights, so that the last of a phase stay.

    It comes before the method, which may change the widths for the next phase.
    """

    def __init__(self, quantize: Quantize) -> None:
        self.quantize = quantize

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the phase's numbers by those of now."""
        assert isinstance(pl_module, Classifier)
        if (found := measure(self.quantize.final_layers())) is not None:
            pl_module.finals[pl_module.phase] = found
