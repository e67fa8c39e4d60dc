"""A finished run's numbers in integers, from the weights that it has left; nothing is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quantable.base.errors import UserError
from quantable.base.signals import heeding
from quantable.data.images import Images, first_images
from quantable.integers.answers import measure_answers
from quantable.integers.by_layer import measure
from quantable.store.record import Integers, Record
from quantable.training.build import loading_of, trainer_of
from quantable.training.finished import load_quantized

OBSERVED = 1000  # training images whose sums are looked at


def in_integers(
    record: Record, weights: Path, images: Images, config: Mapping[str, Any]
) -> tuple[Integers, dict[str, dict[str, float]]]:
    """What the run of ``record`` answers in integers, and what its layers' weights say.

    ``weights``: its state dict; ``config``: of the run, with the declared bits of its sums. Raises
    UserError where the network has no integers: a float one, or an operand in float.
    """
    net, quantize = load_quantized(record, weights)
    if quantize is None:
        raise UserError("integers: the network is float; choose a quantizer")
    device = trainer_of(config).strategy.root_device
    net.to(device)
    loading = loading_of(config, device)
    train, test = (images.eval_batches(split, **loading) for split in ("train", "test"))
    found = measure_answers(
        net,
        quantize,
        accumulator=config["bits"]["accumulator"],
        train=heeding(first_images(iter(train), OBSERVED)),
        test=heeding(test),
    )
    with torch.no_grad():
        by_layer = measure(quantize.final_layers())
    assert by_layer is not None, "a network with integers has layers"
    return found, by_layer
