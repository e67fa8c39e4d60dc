"""The callback that finds learned steps and clips that fell to 0, on any device."""

import pytorch_lightning as pl
import torch

from quantable.quantization.face import face
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import LEAST

EVERY = 16
"""Batches between two looks: each makes the program wait for the device."""


class Fallen(pl.Callback):
    """Says which layers' steps or clips fell to 0, and has the coming batch set them anew."""

    def __init__(self, quantize: Quantize) -> None:
        self.quantize = quantize

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Look before some batches: at the same ones in a run that was taken up again."""
        if face(pl_module).batch % EVERY == 0:
            self._look()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what the epoch, perhaps the last, has left."""
        self._look()

    def _look(self) -> None:
        both = [*self.quantize.weight_quantizers.values(), *self.quantize.act_quantizers.values()]
        learned = [(q, getattr(q, q.positive).detach().flatten()) for q in both if q.positive]
        if learned and bool((torch.cat([value for _, value in learned]) <= LEAST).any()):
            for quantizer, value in learned:
                if bool((value <= LEAST).any()):
                    quantizer.say_fallen()
                    quantizer.fallen = True
