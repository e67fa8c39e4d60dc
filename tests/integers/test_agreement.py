"""Trained networks answer in integers as they do fake-quantized, image by image."""

from pathlib import Path

import pytest
from development_data import shared

from quantable.config.composition import compose_run
from quantable.run import run_cell
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.build import part_of

WORDS = [
    *("model=resnet20_cifar", "model.net.shortcuts=pad"),
    "model.net.weights_sha256=3148b9c6525d27dba37779e83df6deada2ecc9f710e9a89c6ad58738f89f36ba",
    *("data=cifar10", "data.mean=[0.485,0.456,0.406]", "data.std=[0.229,0.224,0.225]"),
    *("data.train_images=2000", "data.val_images=500", "data.test_images=2000"),
    *("recipe=cpu", "recipe.small_images=null", "recipe.epochs=1", "recipe.optimizer.lr=0.01"),
    *("bits.inner=[4,4]", "bits.ends=[8,8]", "bits.accumulator=32"),
    *("trainer.threads=1", "trainer.accelerator=cpu"),
]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("quantizer", ["lsq", "minmax", "dorefa", "pact"])
def test_at_most_four_of_2000_images_get_another_class(quantizer: str, tmp_path: Path) -> None:
    words = [
        *WORDS,
        f"quantizer={quantizer}",
        f"model.net.weights={shared('weights/resnet20_cifar10.safetensors')}",
        f"data.root={shared('data/cifar10')}",
    ]
    config = compose_run(words) | {"seed": 0}
    cell = Cell(None, "run", 0, config, tuple(words))
    variant = part_of(config, "data.loader").variant
    found = run_cell(cell, Store(tmp_path), variant, lambda *_: None).integers
    assert found is not None
    assert found.images == 2000
    assert found.agreement_pct >= 100 * 1996 / 2000
    # Each of the others is traced to the layer where a float32 sum fell on the other side.
    assert sum(found.first_differing.values()) == round(20 * (100 - found.agreement_pct))
    assert sum(layer.wrapped for layer in found.layers.values()) == 0
