"""Runs without training: what they measure, what calibration changes, and what it leaves alone."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.config.composition import compose_run
from quantable.config.signature import signature
from quantable.cost.hardware import hardware_of
from quantable.data.images import Images
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.networks.cifar import resnet8_cifar
from quantable.run import _arithmetic, run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.calibration import Evenly, calibrate
from quantable.training.finished import load_network

SMALL = [
    *("recipe=post_training", "recipe.epochs=0", "recipe.batch_size=16"),
    *("data.train_images=40", "data.val_images=24", "data.test_images=50"),
    *("trainer.threads=1", "trainer.accelerator=cpu"),
]
ANEW = "recipe.batch_norms=null"
QUANTIZED = ["quantizer=minmax", "quantizer.callback.weight.per_channel=true", "bits.inner=[4,4]"]


def run(store: Store, *words: str) -> Record:
    cell = Cell(None, "single", 0, compose_run([*SMALL, *words]) | {"seed": 0}, words)
    record = run_cell(cell, store, "", lambda *_: None)
    store.add(record)
    return record


def predictions(record: Record, store: Store, images: Images) -> tuple[Any, Any]:
    """Class scores (n, classes) of the kept network on the test images, and their labels."""
    net = load_network(record, store.weights(record.name))
    with torch.no_grad():
        parts = [(net(x), y) for x, y in images.eval_batches("test", 16, "cpu")]
    scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return scores.double().numpy(), labels.numpy()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Images, Record, Record]:
    """A store with a float run, and a quantized one of it."""
    store = Store(tmp_path_factory.mktemp("runs"))
    first = run(store)
    words = [f"start={first.signature}", f"teacher={first.signature}", *QUANTIZED, ANEW]
    images = instantiate(compose_run(SMALL)["data"]["loader"])
    return store, images, first, run(store, *words)


def test_metrics_are_those_of_the_kept_network(
    runs: tuple[Store, Images, Record, Record],
) -> None:
    store, images, *records = runs
    for record in records:
        scores, labels = predictions(record, store, images)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        (line,) = record.history
        right = scores.argmax(axis=1) == labels
        assert line.test_top1_pct == pytest.approx(100 * right.mean())
        assert line.test_loss == pytest.approx(-log_p[range(50), labels].mean(), rel=1e-5)
        assert (line.epoch, line.learning_rate, line.train_loss) == (0, None, None)
        assert record.metrics["last"] == record.metrics["best"]
        assert set(record.metrics["last"]) == {
            *("epoch", "test_top1_pct", "val_top1_pct", "test_loss")
        }


def test_agreement_is_the_share_of_equal_predictions(
    runs: tuple[Store, Images, Record, Record],
) -> None:
    store, images, first, quantized = runs
    theirs, ours = (predictions(r, store, images)[0].argmax(axis=1) for r in (first, quantized))
    assert quantized.history[0].agreement_pct == pytest.approx(100 * (theirs == ours).mean())
    assert 0 < (theirs == ours).mean() < 1
    assert first.history[0].agreement_pct is None


def test_weights_stay_bit_by_bit(runs: tuple[Store, Images, Record, Record]) -> None:
    store, _, first, quantized = runs
    before, after = (
        torch.load(store.weights(record.name), weights_only=True) for record in (first, quantized)
    )
    plain = {
        name.replace(".parametrizations.weight.original", ".weight"): value
        for name, value in after.items()
    }
    learned = [name for name in before if name.endswith(("weight", "bias"))]
    assert len(learned) == len([*load_network(first, store.weights(first.name)).parameters()])
    for name in learned:
        assert torch.equal(before[name], plain[name]), name
    assert not torch.equal(before["bn1.running_var"], after["bn1.running_var"])


def test_columns_know_that_nothing_was_trained(
    runs: tuple[Store, Images, Record, Record],
) -> None:
    *_, record = runs
    phase = record.phases[0]
    config = compose_run([*SMALL, *QUANTIZED])
    facts = Facts(None, phase.bit_map, hardware_of(config), record, phase)
    assert COLUMNS["epochs"].value(facts) == 0
    assert COLUMNS["top1_pct"].value(facts) == record.history[0].test_top1_pct
    assert COLUMNS["agreement_pct"].value(facts) == record.history[0].agreement_pct
    assert COLUMNS["training_complexity"].value(facts) is None
    assert COLUMNS["training_macs"].value(facts) is None
    assert record.history[0].training_complexity is None


def test_a_record_says_how_many_images_calibrated(
    runs: tuple[Store, Images, Record, Record],
) -> None:
    *_, first, quantized = runs
    assert first.calibration is None
    assert quantized.calibration is not None
    # 40 images in batches of at most 16
    assert quantized.calibration.model_dump() == {
        **{"images": 40, "batches": 3, "weighed_by": "images"}
    }


def test_batch_norms_are_kept_unless_that_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = run(store)
    kept = run(store, f"start={first.signature}", *QUANTIZED)
    before, after = (
        torch.load(store.weights(record.name), weights_only=True) for record in (first, kept)
    )
    norms = [name for name in before if "running" in name]
    assert len(norms) > 10
    assert all(torch.equal(before[name], after[name]) for name in norms)


def test_without_held_out_images_their_number_is_null(tmp_path: Path) -> None:
    record = run(Store(tmp_path), "data.val_images=0")
    assert record.history[0].val_top1_pct is None
    assert record.data.sizes == {"train": 40, "val": 0, "test": 50}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.epochs=1"], "recipe.optimizer: there is none; choose a recipe that trains"),
        (
            ["model=timm", "model.net.name=resnet18.tv_in1k", "model.net.weights_sha256=abc"],
            "model.net.weights: the run reads a file of SHA-256 abc: name it, or set",
        ),
        (
            [*QUANTIZED, ANEW, "data.train_images=1"],
            "data.train_images=1: batch norms are not measured anew on one image; take more, or",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(Store(tmp_path), *words)


MODULE = """
from safetensors.torch import load_file

from quantable.networks.cifar import resnet8_cifar


def net(weights, **more):
    network = resnet8_cifar(**more)
    if weights is not None:
        network.load_state_dict(load_file(weights))
    return network
"""


def test_other_weights_of_a_users_network_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "whose_network.py").write_text(MODULE)
    store, kept = Store(tmp_path), {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = resnet8_cifar(10, 1, 0.25, "plain").state_dict()
        path = tmp_path / f"{seed}.safetensors"
        save_file(state, path)
        words = ["model.net._target_=whose_network.net", "model.net.width=0.25"]
        record = run(store, *words, f"model.net.weights={path}")
        again = load_network(record, store.weights(record.name)).state_dict()
        assert all(torch.equal(again[name], value) for name, value in state.items())
        kept[record.signature] = record
    assert len(kept) == 2
    assert len({record.history[0].test_loss for record in kept.values()}) == 2


def test_a_record_says_what_rounds_its_sums(
    runs: tuple[Store, Images, Record, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs[3].provenance
    assert (made.threads, made.devices) == (torch.get_num_threads(), 1)
    assert {"MKL", "oneDNN"} <= made.arithmetic.keys()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert _arithmetic(torch.device("cpu"))["ONEDNN_MAX_CPU_ISA"] == "AVX2"


# Calibration alone


def batches(*sizes: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for n in sizes:
        yield 3 + torch.randn(n, 2, 4, 4, generator=generator), torch.zeros(n)


@pytest.mark.parametrize(
    ("sizes", "seen"),
    [
        ((5, 3), (5, 3)),
        ((5, 5, 2), (5, 5, 2)),
        ((6, 1), (7,)),
        ((4, 4, 1), (4, 5)),
        ((1, 4), (5,)),
        ((4, 1, 3), (4, 4)),
        ((1, 1, 1, 1, 1), (2, 3)),
    ],
)
def test_batch_norms_get_the_mean_of_the_statistics_by_images(
    sizes: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    """Of the batches that are ``seen``: one image alone has gone to its neighbour."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean = torch.full((2,), 9.0)
    found = calibrate(nn.Sequential(nn.Dropout(0.5), norm), batches(*sizes))
    assert (found.images, found.batches) == (sum(sizes), len(seen))
    images = np.concatenate([x.numpy() for x, _ in batches(*sizes)])
    parts = np.split(images, np.cumsum(seen)[:-1])
    means = [x.mean(axis=(0, 2, 3)) for x in parts]
    variances = [x.var(axis=(0, 2, 3), ddof=1) for x in parts]
    np.testing.assert_allclose(norm.running_mean, images.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.running_mean, np.average(means, 0, seen), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, np.average(variances, 0, seen), rtol=1e-5)
    assert (norm.momentum, norm.training) == (0.1, False)


def test_equal_batches_are_the_mean_that_torch_takes_bit_by_bit() -> None:
    ours, torchs = nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None)
    calibrate(nn.Sequential(ours), batches(*(3,) * 7))
    for x, _ in batches(*(3,) * 7):
        torchs(x)
    assert torchs.state_dict().keys() == ours.state_dict().keys()
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_norm_in_two_places_has_the_mean_over_both() -> None:
    norm = nn.BatchNorm2d(2, affine=False)
    calibrate(nn.Sequential(norm, nn.Hardtanh(0, 1), norm), batches(5, 3))
    means = []
    for x, _ in batches(5, 3):
        a = x.numpy()
        normed = (a - a.mean((0, 2, 3), keepdims=True)) / a.std((0, 2, 3), keepdims=True)
        means.append((a.mean((0, 2, 3)) + normed.clip(0, 1).mean((0, 2, 3))) / 2)
    np.testing.assert_allclose(norm.running_mean, np.average(means, 0, (5, 3)), rtol=1e-4)


def test_one_image_at_the_end_ends_nothing() -> None:
    calibrate(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32)), batches(4, 1))  # 1x1 maps
    alone = calibrate(nn.Sequential(LSQ(4, signed=True, batched=True)), batches(4, 1))
    assert (alone.images, alone.batches) == (5, 2)  # nothing is measured that needs a neighbour


@pytest.mark.parametrize(("n", "at_most"), [(9000, 256), (257, 256), (10, 4), (7, 7), (5, 1)])
def test_batches_are_cut_evenly(n: int, at_most: int) -> None:
    x = torch.arange(n)
    parts = list(Evenly(zip(x.split(at_most), x.split(at_most), strict=True), n, at_most))
    sizes = [len(part) for part, _ in parts]
    assert max(sizes) <= at_most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == math.ceil(n / at_most)
    assert torch.equal(torch.cat([part for part, _ in parts]), x)
    assert all(torch.equal(part, labels) for part, labels in parts)


def test_a_range_counts_every_image_alike() -> None:
    """Six images at most 4 in a batch: two batches of 3, where 4 and 2 would weigh 2 as much."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    quantizer = MinMax(8, signed=False, batched=True)
    calibrate(nn.Sequential(quantizer), Evenly(zip(x.split(4), x.split(4), strict=True), 6, 4))
    assert quantizer.high.item() == pytest.approx(3 + 0.1 * (6 - 3))  # the batches' maxima


def test_batch_norms_are_kept_where_that_is_asked_for() -> None:
    norm, quantizer = nn.BatchNorm2d(2), LSQ(4, signed=True, batched=True)
    norm.running_mean = torch.full((2,), 9.0)
    calibrate(nn.Sequential(norm, quantizer), batches(5, 3), keep_batch_norms=True)
    assert norm.running_mean.tolist() == [9.0, 9.0]
    assert norm.running_var is not None
    assert norm.running_var.tolist() == [1.0, 1.0]
    x, _ = next(batches(5))
    seen = (x - 9) / (1 + norm.eps) ** 0.5  # what the quantizer got: the kept statistics were used
    assert quantizer.step.item() == pytest.approx(2 * seen.abs().mean().item() / 7**0.5, rel=1e-5)


def test_null_batch_norms_ask_the_same_question_as_before() -> None:
    """Records from before the key are found again."""
    config = compose_run([*SMALL, ANEW, "recipe.version=null"])
    assert config["recipe"].pop("batch_norms") is None
    assert config["recipe"].pop("version") is None
    old = signature(config)
    assert old == signature(compose_run([*SMALL, ANEW, "recipe.version=null"]))
    assert old != signature(compose_run([*SMALL, ANEW]))
    assert old != signature(compose_run([*SMALL, "recipe.version=null"]))


def test_the_first_batch_sets_a_learned_step() -> None:
    quantizer = LSQ(4, signed=True, batched=True)
    calibrate(nn.Sequential(quantizer), batches(5, 3))
    x, _ = next(batches(5))
    assert quantizer.step.item() == pytest.approx(2 * x.abs().mean().item() / 7**0.5, rel=1e-5)
    assert quantizer.initialized
    assert not quantizer.training
