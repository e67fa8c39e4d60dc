"""A finished run read back is the same network: of every method, on every family, by any road."""

import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

import quantable.run
import quantable.training.build
import quantable.training.checkpoint
from quantable.base.signals import Preempted
from quantable.config.composition import compose_run
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.evaluation import evaluate
from quantable.training.finished import load_network

ROOT = Path(__file__).parents[2]
IMAGES = 1000
SMALL = [
    *("data.train_images=48", "data.val_images=16", "data.test_images=16"),
    *("trainer.threads=1", "trainer.accelerator=cpu"),
]
TRAINED = [
    *("recipe=sgd_one_cycle", "recipe.epochs=1", "recipe.batch_size=16"),
    "recipe.optimizer.lr=1e-3",
]
CALIBRATED = ["recipe=post_training", "recipe.batch_size=16"]
UPDATE = [f"quantizer.callback.{word}=1" for word in ("min_epochs", "max_epochs", "max_updates")]
OWN_WORDS = {  # so that in three steps an epoch a method does all that it does in a long run
    "none": [],
    "ad": ["bits.inner=[16,16]", "bits.ends=[16,16]", *UPDATE],
    "ad_pruning": ["bits.inner=[8,8]", "bits.ends=[16,16]", *UPDATE],
    "edge": [
        *("recipe=edge_short", "recipe.batch_size=16", "recipe.optimizer.lr=1e-3"),
        *("bits.inner=[5,5]", "bits.ends=null", "quantizer.callback.epochs=[1,1,1]"),
        *("quantizer.callback.update_every=2", "quantizer.callback.target=[3.5,3.5]"),
    ],
    "dfq": [
        *("bits.inner=[4,8]", "bits.ends=null", "quantizer.callback.epochs=[1,1]"),
        *("quantizer.callback.target=2.5", "quantizer.callback.optimizer.lr=0.1"),
    ],
    "fracbits": [
        *("bits.inner=[4,4]", "quantizer.callback.epochs=[1,1]"),
        *("quantizer.callback.target=3.5", "quantizer.callback.optimizer.lr=0.1"),
    ],
    "a2q": ["bits.inner=[4,4]", "bits.accumulator=12"],
    "a2q_plus": ["bits.inner=[4,4]", "bits.accumulator=12"],
}
METHODS = sorted(path.stem for path in (ROOT / "conf" / "quantizer").glob("*.yaml"))


def families() -> dict[str, list[str]]:
    """Every network that tables run, whatever its width and classes, and the words that choose it.

    They are those with packaged shapes, which ``test_tables`` asks of every row. Of NASNet-A mobile
    only the weights are counted, and AlexNet takes no image as small as these.
    """
    found: dict[str, list[str]] = {}
    for model, _ in runpy.run_path(str(ROOT / "tools" / "make_shapes.py"))["models"]():
        net, name = model["net"], model["name"]
        words = [f"model.net.name={net['name']}"] if "name" in net else []
        words += ["model.net.width=0.25"] if "width" in net else []
        shortcuts = ["model.net.shortcuts=all"] if net.get("shortcuts") == "all" else []
        found[net.get("name", name) + "-all" * len(shortcuts)] = [
            *(f"model={name}", *words, *shortcuts)
        ]
    for name in ("nasnet_mobile", "alexnet_groups", "alexnet_torchvision"):
        del found[name]
    return found


FAMILIES = families()
RESNET8 = FAMILIES["resnet8_cifar"]
PAIRS = [(method, family) for method in METHODS for family in FAMILIES]
PAIRS.remove(("ad_pruning", "lenet5"))  # refused: a map made a vector mixes positions and channels


def test_discovery() -> None:
    assert len(METHODS) == 13
    assert len(FAMILIES) == 15
    assert set(OWN_WORDS) <= set(METHODS)


@dataclass
class Finished:
    """A finished run: its record and weights as the store has them, and its network at the end."""

    record: Record
    weights: Path
    net: nn.Module

    def check(self) -> None:
        """Compare the network with the one read back, on every image."""
        mine, again = self.net.eval(), load_network(self.record, self.weights)
        last = self.record.config["recipe.channels_last"]
        images = instantiate(compose_run([f"data.test_images={IMAGES}"])["data"]["loader"])
        seen = 0
        assert self.accuracy(again) == self.record.metrics["last"]["test_top1_pct"]
        with torch.no_grad():
            for x, _ in images.eval_batches("test", 50, "cpu", channels_last=last):
                expected, got = mine(x), again(x)
                assert expected.isfinite().all()
                self.compare(expected, got)
                seen += len(x)
        assert seen == IMAGES

    def accuracy(self, net: nn.Module) -> float:
        """Of ``net`` on the run's own test images, in percent."""
        last = self.record.config["recipe.channels_last"]
        images = instantiate(compose_run(SMALL)["data"]["loader"])
        batches = images.eval_batches("test", 16, "cpu", channels_last=last)
        return evaluate(net, batches, images.classes, images.sizes["test"]).top1_pct

    def compare(self, expected: Tensor, got: Tensor) -> None:
        """Compare class scores to the last bit, and of a compiled network the classes alone."""
        if self.record.config["recipe.compile"]:
            expected, got = expected.argmax(1), got.argmax(1)
        assert torch.equal(expected, got)


class Runs:
    """Small runs in one store, each made once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done: dict[tuple[str, ...], Finished] = {}

    def __call__(self, *words: str, attempts: int = 1) -> Finished:
        if words not in self.done:
            self.done[words] = self._run(words, attempts)
        return self.done[words]

    def _run(self, words: tuple[str, ...], attempts: int) -> Finished:
        networks: list[nn.Module] = []
        part_of = quantable.training.build.part_of

        def noted(config, key):
            part = part_of(config, key)
            networks.extend([part] if key == "model.net" else [])
            return part

        config = compose_run([*SMALL, *words]) | {"seed": 0}
        start = next((word for word in words if word.startswith("start=")), "start=")
        config["start"] = start.removeprefix("start=") or None
        cell = Cell(None, "single", 0, config, words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantable.training.build, "part_of", noted)
            for _ in range(attempts - 1):
                with pytest.raises(Preempted):
                    quantable.run.run_cell(cell, self.store, "", lambda *_: None)
            record = quantable.run.run_cell(cell, self.store, "", lambda *_: None)
        self.store.add(record)
        assert record.provenance.resumed == attempts - 1
        found = self.store.find(cell.signature, "")
        assert found is not None
        return Finished(found, self.store.weights(found.name), networks[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    threads = torch.get_num_threads()
    yield Runs(Store(tmp_path_factory.mktemp("store")))
    torch.set_num_threads(threads)


def words_of(method: str) -> list[str]:
    own = OWN_WORDS.get(method, ["bits.inner=[4,4]"])
    return [*TRAINED, f"quantizer={method}", *own]


def calibrated_words_of(method: str, start: Finished, norms: str) -> list[str]:
    words = [word for word in words_of(method) if not word.startswith("recipe")]
    return [*words, *CALIBRATED, f"recipe.batch_norms={norms}", f"start={start.record.signature}"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method(runs: Runs, method: str) -> None:
    runs(*RESNET8, *words_of(method)).check()


LEARNING = ["ad", "dfq", "edge", "fracbits"]


@pytest.mark.parametrize("method", LEARNING)
def test_bit_widths_that_training_found_are_a_bits_file_of_any_other_run(
    runs: Runs, method: str
) -> None:
    found = runs(*RESNET8, *words_of(method)).record
    file = runs.store.bits(found.name)
    again = runs(*RESNET8, *TRAINED, "quantizer=lsq", f"bits.file={file}")
    again.check()
    assert again.record.phases[-1].bits == found.phases[-1].bits
    uniform = runs(*RESNET8, *words_of("lsq")).record
    assert not runs.store.bits(uniform.name).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), PAIRS, ids=[f"{f}-{m}" for m, f in PAIRS])
def test_every_method_on_every_family(runs: Runs, method: str, family: str) -> None:
    runs(*FAMILIES[family], *words_of(method)).check()


ROADS = {
    "channels_first": ["recipe.channels_last=false"],
    "bf16": ["recipe.precision=bf16-mixed"],
    "per_channel": ["quantizer.callback.weight.per_channel=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("road", ROADS)
def test_every_method_by_other_roads(runs: Runs, method: str, road: str) -> None:
    if (method, road) != ("none", "per_channel"):
        runs(*RESNET8, *words_of(method), *ROADS[road]).check()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_begun_from_other_runs(runs: Runs, method: str) -> None:
    for other in ("none", "lsq", "minmax", method):
        start = runs(*RESNET8, *words_of(other))
        if other == "ad_pruning":  # whose network has other channels
            continue
        runs(*RESNET8, *words_of(method), f"start={start.record.signature}").check()


@pytest.mark.parametrize("norms", ["null", "kept"])
@pytest.mark.parametrize("method", ["lsq", pytest.param("every", marks=pytest.mark.slow)])
def test_calibrated(runs: Runs, method: str, norms: str) -> None:
    for name in METHODS if method == "every" else [method]:
        for other in {"none", name} - {"ad_pruning"}:
            start = runs(*RESNET8, *words_of(other))
            runs(*RESNET8, *calibrated_words_of(name, start, norms)).check()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "dorefa", "lsq", "minmax", "pact"])
def test_a_run_calibrated_again_with_its_batch_norms_kept(runs: Runs, method: str) -> None:
    first = runs(*RESNET8, *words_of(method))
    again = runs(*RESNET8, *calibrated_words_of(method, first, "kept"))
    same = again.net.state_dict()
    for name, tensor in first.net.state_dict().items():  # ranges of activations go on running
        assert name.endswith((".low", ".high")) or torch.equal(same[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_after_every_second_batch(
    runs: Runs, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(range(1000))
    monkeypatch.setattr(quantable.training.checkpoint, "noted", lambda: next(batches) % 2 == 1)
    epochs = {"ad": 2, "ad_pruning": 2, "dfq": 2, "edge": 3, "fracbits": 2}.get(method, 1)
    stops = 3 * epochs // 2
    seed = ["data.val_images=17"]  # another run than those of the other tests
    runs(*RESNET8, *words_of(method), *seed, attempts=stops + 1).check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's, of torch itself
@pytest.mark.parametrize("method", METHODS)
def test_compiled(runs: Runs, method: str) -> None:
    runs(*RESNET8, *words_of(method), "recipe.compile=true").check()
