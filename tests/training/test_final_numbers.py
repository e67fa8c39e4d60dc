"""What a record keeps of the integers of a run's final weights, phase by phase."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantable.config.composition import compose_run
from quantable.run import run_cell
from quantable.store.record import Phase, Record
from quantable.store.store import Store
from quantable.tables.cells import Cell

SMALL = [
    *("data.train_images=32", "data.val_images=16", "data.test_images=16"),
    *("trainer.threads=1", "trainer.accelerator=cpu", "bits.ends=[8,8]", "bits.inner=[3,4]"),
    "recipe.batch_size=16",
]
TRAINED = ["recipe=sgd_one_cycle", "recipe.epochs=1"]
CALIBRATED = ["recipe=post_training"]


def run(folder: Path, *words: str) -> tuple[Record, dict[str, torch.Tensor]]:
    """A finished run, its record read from the store, and its weights."""
    words = (*SMALL, *words)
    cell = Cell(None, "single", 0, compose_run(words) | {"seed": 0}, words)
    store = Store(folder)
    store.add(run_cell(cell, store, "", lambda *_: None))
    found = store.find(cell.signature, "")
    assert found is not None
    return found, torch.load(store.weights(found.name), weights_only=True)


@pytest.mark.parametrize("words", [TRAINED, CALIBRATED], ids=["trained", "calibrated"])
def test_numbers_are_those_of_the_weights_that_were_kept(tmp_path: Path, words: list[str]) -> None:
    record, state = run(tmp_path, "quantizer=lsq", *words)
    (phase,) = record.phases
    assert phase.layers is not None
    place = ".parametrizations.weight."
    for name, bits in phase.bit_map.items():
        w, step = (state[f"{name}{place}{part}"].numpy() for part in ("original", "0.step"))
        top = 2 ** (bits.weight - 1)
        integers = np.rint(np.clip(w / step, -top, top - 1))
        assert phase.layers["zero_pct"][name] == pytest.approx(100 * np.mean(integers == 0))
        by_channel = np.abs(integers).reshape(len(w), -1).sum(1)
        assert phase.layers["l1_norm"][name] == by_channel.max()
    assert phase.layers["zero_pct"].keys() == phase.bit_map.keys()


def test_each_phase_has_the_numbers_of_its_own_widths(tmp_path: Path) -> None:
    words = [*TRAINED, "quantizer=ad", "bits.inner=[16,16]", "bits.ends=[16,16]", "recipe.epochs=2"]
    one_epoch = ["quantizer.callback.min_epochs=1", "quantizer.callback.max_epochs=1"]
    record, _ = run(tmp_path, *words, *one_epoch, "quantizer.callback.max_updates=1")
    first, last = record.phases
    assert first.layers is None  # min-max leaves 16 bits in float
    lowered = {name for name, bits in last.bit_map.items() if bits.weight < 16}
    assert last.layers is not None
    assert len(lowered) > 3
    assert last.layers["l1_norm"].keys() == lowered


@pytest.mark.parametrize("words", [TRAINED, CALIBRATED], ids=["trained", "evaluated"])
def test_a_float_network_has_none(tmp_path: Path, words: list[str]) -> None:
    record, _ = run(tmp_path, "quantizer=none", *words)
    assert [phase.layers for phase in record.phases] == [None]


def test_a_record_from_before_is_read() -> None:
    old = {"index": 0, "first_epoch": 0, "epochs": 1, "bits": {"fc": [4, 4]}}
    assert Phase.model_validate(old).layers is None
