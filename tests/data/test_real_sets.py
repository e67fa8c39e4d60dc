"""The real sets of the development machine, where they are."""

import pytest
import torch
from development_data import shared
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantable.base.places import ROOT
from quantable.data.layouts import probe_variant


def loader(set_id: str, root, **changes):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose(f"data/{set_id}", [f"data.root={root}"]).data.loader, **changes)


@pytest.mark.data
def test_cifar10_in_jpeg() -> None:
    root = shared("data/cifar10-jpeg")
    assert probe_variant(root) == "jpeg"
    data = loader("cifar10", root)
    assert data.title == "CIFAR-10 (JPEG)"
    assert data.sizes == {"train": 45_000, "val": 5_000, "test": 10_000}
    images = torch.from_numpy(data.load().images["train"][::5]).double() / 255
    # Of all training images: the mean that the literature uses; JPEG moves it by less than 0.005.
    torch.testing.assert_close(
        images.mean((0, 1, 2)), torch.tensor(data.mean).double(), rtol=0, atol=5e-3
    )


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
def test_tiny_imagenet_variant() -> None:
    root = shared("data/tiny-imagenet")
    assert probe_variant(root, lossless=False) == ""
    rows = loader("tiny_imagenet", root).source.rows("test")
    assert rows.decode([0, 1, 2], [3, 64, 64]).shape == (3, 64, 64, 3)
