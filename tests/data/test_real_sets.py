"""The real sets of the development machine, where they are."""

import numpy as np
import pytest
from development_data import shared
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.cli import work_of
from quantable.executor.board import Variants
from quantable.words import parse


def loader(set_id: str, root, **changes):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose(f"data/{set_id}", [f"data.root={root}"]).data.loader, **changes)


@pytest.mark.data
@pytest.mark.parametrize(
    ("set_id", "variant", "title"),
    [("cifar10", "jpeg121", "CIFAR-10 (121 of 60,000 JPEG)"), ("cifar100", "", "CIFAR-100")],
)
def test_cifar(set_id: str, variant: str, title: str) -> None:
    data = loader(set_id, shared(f"data/{set_id}"))
    assert (data.variant, data.title) == (variant, title)
    rows = {split: data.source.rows(split) for split in ("train", "test")}
    assert [len(found.labels) for found in rows.values()] == [50_000, 10_000]
    images = rows["train"].decode(range(0, 50_000, 11), data.input_size) / 255
    # Some of every class: the mean that the literature uses, as far as 4,546 images show it.
    np.testing.assert_allclose(images.mean((0, 1, 2)), data.mean, atol=5e-3)


@pytest.mark.data
def test_the_test_images_of_cifar100_are_the_original_pixels() -> None:
    rows = loader("cifar100", shared("data/cifar100")).source.rows("test")
    # The red mean, as measured on the original archive.
    red = rows.decode(range(10_000), [3, 32, 32])[..., 0]
    assert red.mean() / 255 == pytest.approx(0.5087964, abs=1e-7)


@pytest.mark.data
def test_the_imagenet_sample() -> None:
    data = loader(
        "imagenet", shared("data/imagenet-sample"), tag="tf_efficientnet_lite0.in1k", workers=0
    )
    assert data.title == "ImageNet (sample)"
    assert data.sizes["test"] == 1000
    x, y = next(iter(data.eval_batches("test", 50, "cpu")))
    assert x.shape == (50, 3, 224, 224)
    assert -1 <= float(x.min()) < float(x.max()) <= 1
    assert 0 <= int(y.min()) < int(y.max()) < 1000


@pytest.mark.data
def test_a_part_of_tiny_imagenet() -> None:
    root = shared("data/tiny-imagenet")
    words = ["+table=ad_tinyimagenet", "budget=cpu", f"data.root={root}", "seed=0"]
    (work,), (allowed,) = (work_of(parse([*words, *more])) for more in ([], ["data.part=true"]))
    assert [cell.signature for cell in work.cells] == [cell.signature for cell in allowed.cells]
    with pytest.raises(UserError, match=r"11000 train images, .* has 100000; .*: data\.part=true"):
        instantiate(work.cells[0].config["data"]["loader"]).load()
    data = instantiate(allowed.cells[0].config["data"]["loader"])
    assert Variants()(allowed.cells[0].config) == data.variant == "part"
    assert data.title == "Tiny-ImageNet (11,000 of 100,000)"
    train, test = data.source.rows("train"), data.source.rows("test")
    chosen = data.source.chosen(len(train.labels), len(test.labels))
    sizes = {split: len(rows) for split, rows in chosen.items()}
    assert sizes == {"train": 9_500, "val": 1_500, "test": 10_000}
    assert np.bincount(train.labels).tolist() == [55] * 200
    assert test.decode([0, 1, 2], [3, 64, 64]).shape == (3, 64, 64, 3)
