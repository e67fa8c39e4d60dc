"""Answers in integers, with hand-counted overflows; runs that are asked, and asked again."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.cli import run_main
from quantable.config.composition import compose_run
from quantable.integers.answers import BEHIND, first_difference, measure_answers
from quantable.integers.emulation import Product
from quantable.integers.view import integer_layers
from quantable.methods.lsq import LSQ
from quantable.quantization.quantize import Quantize
from quantable.run import asked_again, run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell

WORDS = [
    *("quantizer=minmax", "recipe=post_training", "recipe.epochs=0", "recipe.batch_size=16"),
    *("data.train_images=40", "data.val_images=24", "data.test_images=50"),
    *("bits.inner=[4,4]", "bits.ends=null", "trainer.threads=1", "trainer.accelerator=cpu"),
]


def by_hand() -> tuple[nn.Module, Quantize]:
    """Two classes, 2 q_0 + 3 q_1 and 4 q_1, of integers up to 15, behind a layer that is free."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)
    )
    for name, weight in (("1", [[1.0, 0.0], [0.0, 1.0]]), ("3", [[2.0, 3.0], [0.0, 4.0]])):
        net.get_submodule(name).weight = nn.Parameter(torch.tensor(weight))
    quantize = Quantize(
        weight=partial(LSQ, batched=False),
        act=partial(LSQ, batched=True),
        inner=(4, 4),
        ends=None,
        layers={"1": (8, 8)},
    )
    quantize.attach(net, (1, 1, 2))
    quantize.free_of_accumulator = ["1"]
    for quantizer in (*quantize.weight_quantizers.values(), *quantize.act_quantizers.values()):
        quantizer.step.data.fill_(1.0)
        quantizer.initialized = True
    return net.eval(), quantize


def batch(*pairs: tuple[int, int], labels: list[int]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor(pairs).float().view(-1, 1, 1, 2), torch.tensor(labels))]


def test_overflows_are_those_counted_by_hand() -> None:
    net, quantize = by_hand()
    # Sums (5, 4), (75, 60) and (30, 0); 7 bits hold -64 to 63, so that 75 wraps to -53.
    test = batch((1, 1), (15, 15), (15, 0), labels=[0, 0, 0])
    train = batch((3, 2), labels=[0])
    found = measure_answers(net, quantize, accumulator=7, train=train, test=test)
    free, layer = found.layers.values()
    assert free.declared is None
    assert free.wrapped == free.at_risk == 0
    assert layer.terms == 2
    assert layer.data_type == 10  # 2 x 8 x 16 = 256, and a sign
    assert layer.known_weights == [8, 7]  # 5 x 15 = 75, 4 x 15 = 60
    assert layer.observed == [5, 5]  # 12 and 8
    assert layer.declared == 7
    assert (layer.sums, layer.wrapped, layer.at_risk) == (6, 1, 1)
    assert found.images == 3
    assert found.observed_images == 1
    assert found.exact_top1_pct == found.agreement_pct == 100
    assert found.wrap_top1_pct == pytest.approx(200 / 3)  # -53 and 60: the wrong class
    assert found.saturate_top1_pct == 100  # 63 and 60
    assert found.first_differing == {}


def test_without_declared_bits_nothing_overflows() -> None:
    net, quantize = by_hand()
    test = batch((15, 15), labels=[0])
    found = measure_answers(net, quantize, accumulator=None, train=test, test=test)
    assert found.wrap_top1_pct is found.saturate_top1_pct is None
    assert {layer.declared for layer in found.layers.values()} == {None}


def test_the_first_differing_level_is_that_behind_other_sums() -> None:
    net, quantize = by_hand()
    first, second = layers = integer_layers(net, quantize)
    image = torch.ones(1, 1, 1, 2)
    assert first_difference(net, layers, image) == BEHIND
    second.product = Product(second.weight + 1, (0, 15), None, second.layer)
    assert first_difference(net, layers, image) == BEHIND  # its sums differ, and no level
    first.product = Product(first.weight + 1, (-128, 127), None, first.layer)
    assert first_difference(net, layers, image) == "3"


def one_run(store: Store, *words: str) -> Record:
    asked = [*WORDS, *words]
    cell = Cell(None, "single", 0, compose_run(asked) | {"seed": 0}, tuple(asked))
    record = run_cell(cell, store, "", lambda *_: None)
    store.add(record)
    return record


def test_declared_bits_are_asked_of_a_finished_run(tmp_path: Path) -> None:
    """Nothing is calibrated again, and the answers are those of a run that had them at once."""
    store, alone = Store(tmp_path / "both"), Store(tmp_path / "alone")
    plain, once = one_run(store), one_run(alone, "bits.accumulator=14")
    assert plain.integers is None
    later = one_run(store, "bits.accumulator=14")
    assert later.signature == once.signature != plain.signature
    assert later.integers is not None
    assert later.integers.later is not None
    assert later.provenance == plain.provenance
    assert later.integers.model_copy(update={"later": None}) == once.integers
    assert [p.model_dump() for p in later.phases] == [p.model_dump() for p in once.phases]
    kept = [torch.load(store.weights(r.name), weights_only=True) for r in (plain, later)]
    assert kept[0].keys() == kept[1].keys()


def test_a_finished_run_is_asked_by_a_word(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"store={tmp_path}", *WORDS]
    assert run_main([*words, "action=integers"]) == 1
    assert "its run is not finished" in capsys.readouterr().out
    assert run_main(words) == 0
    assert run_main([*words, "action=integers"]) == 0
    assert "sums of these weights need" in capsys.readouterr().out
    (record,) = Store(tmp_path).records()
    assert record.integers is not None
    assert record.integers.wrap_top1_pct is None
    assert run_main([*words, "action=integers", "bits.accumulator=12"]) == 0
    assert "with 12 bits" in capsys.readouterr().out
    assert len(Store(tmp_path).records()) == 2


def test_a_network_without_integers_is_told_by_its_layer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer 'conv1' has no integers: its input is float"):
        one_run(Store(tmp_path), "bits.inner=[4,32]", "bits.accumulator=16")


def test_weights_that_are_gone_are_not_asked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = one_run(store)
    store.weights(record.name).unlink()
    asked = [*WORDS]
    cell = Cell(None, "single", 0, compose_run(asked) | {"seed": 0}, tuple(asked))
    with pytest.raises(UserError, match="no such file"):
        asked_again(cell, record, store, "")
