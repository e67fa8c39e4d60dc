import random

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from written_sets import parquet_set

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.data.images import Images
from quantable.data.sets import Arrays, fingerprint

N, BATCH = 50, 8
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def in_memory(image_set, padding=2, flip=True, n=N) -> Images:
    """Images of which each is one constant colour, its number."""
    data = Images(source=image_set("nowhere"), mean=MEAN, std=STD, crop_padding=padding, flip=flip)
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 6, 5, 3)).copy()
    splits = dict.fromkeys(("train", "val", "test"), images)
    data._arrays = Arrays(splits, dict.fromkeys(splits, np.arange(n)), "")
    return data


def numbers(x: torch.Tensor) -> list[int]:
    """Number of each image, from the colour of its middle, by the definition of normalizing."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    middle = x[:, :, x.shape[2] // 2, x.shape[3] // 2]
    return ((middle * std + mean) * 255).mean(dim=1).round().int().tolist()


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalizing_is_the_definition(image_set, channels_last) -> None:
    data = in_memory(image_set)
    ((x, y),) = data.eval_batches("test", N, "cpu", channels_last=channels_last)
    pixels = torch.from_numpy(data.load().images["test"]).double().permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(x.double(), (pixels / 255 - mean) / std, rtol=0, atol=1e-6)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_shows_each_image_once_in_order(image_set, split, batch_size) -> None:
    batches = in_memory(image_set).eval_batches(split, batch_size, "cpu")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert numbers(x) == y.tolist() == list(range(N))
    assert len(list(batches)) == len(batches) == -(-N // batch_size)


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_epoch_shows_each_image_at_most_once(image_set, channels_last) -> None:
    batches = in_memory(image_set).train_batches(BATCH, 0, "cpu", channels_last=channels_last)
    seen = []
    for x, y in batches:
        assert x.shape == (BATCH, 3, 6, 5)
        assert numbers(x) == y.tolist()
        seen += y.tolist()
    assert len(batches) == N // BATCH == len(seen) // BATCH
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("start", [0, 1, 3, 6])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_epoch_is_the_tail_of_an_unbroken_one(image_set, start, channels_last) -> None:
    def batches():
        return in_memory(image_set).train_batches(BATCH, 7, "cpu", channels_last=channels_last)

    unbroken, resumed = batches(), batches()
    unbroken.epoch = resumed.epoch = 3
    resumed.start = start
    tail = list(resumed)
    for (x, y), (x_all, y_all) in zip(tail, list(unbroken)[start:], strict=True):
        assert torch.equal(x, x_all)
        assert torch.equal(y, y_all)
    assert resumed.start == 0
    assert len(list(resumed)) == len(resumed)


def test_epochs_and_seeds_differ_and_repeat(image_set) -> None:
    def epoch(seed, number):
        batches = in_memory(image_set).train_batches(BATCH, seed, "cpu")
        batches.epoch = number
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    (x, y), (x_again, y_again) = epoch(0, 0), epoch(0, 0)
    assert torch.equal(x, x_again)
    assert torch.equal(y, y_again)
    for other in (epoch(0, 1), epoch(1, 0)):
        assert not torch.equal(y, other[1])


def test_augmentation_differs_between_epochs(image_set) -> None:
    data = in_memory(image_set, n=1)
    data.load().images["train"][:] = 200
    batches = data.train_batches(1, 0, "cpu")
    looks = set()
    for batches.epoch in range(40):
        ((x, _),) = batches
        looks.add(x.numpy().tobytes())
    assert len(looks) > 10  # of 5 x 5 windows; a constant image hides its flip


def test_flip_mirrors_half_of_the_images_as_a_whole(image_set) -> None:
    data = in_memory(image_set, padding=0, n=200)
    ramp = np.arange(5, dtype=np.uint8)[None, None, :, None]
    data._arrays = Arrays(
        {"train": np.broadcast_to(ramp, (200, 6, 5, 3)).copy()}, data._arrays.labels, ""
    )
    ((x, _),) = data.train_batches(200, 0, "cpu")
    rising = x[:, :, :, 0] < x[:, :, :, 4]  # (n, c, h)
    assert torch.equal(rising.flatten(1).all(dim=1), rising.flatten(1).any(dim=1))
    assert 70 < int(rising[:, 0, 0].sum()) < 130
    ((still, _),) = in_memory(image_set, padding=0, flip=False).train_batches(N, 0, "cpu")
    assert torch.equal(still[..., 0], still[..., 4])


def test_the_global_generators_are_left_alone(image_set) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    data = in_memory(image_set)
    list(data.train_batches(BATCH, 0, "cpu"))
    list(data.eval_batches("test", BATCH, "cpu"))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    np.testing.assert_array_equal(before[2], np.random.get_state()[1])


def test_impossible_requests_are_errors(image_set) -> None:
    data = in_memory(image_set)
    with pytest.raises(UserError, match="batch_size=51: at least 1, at most the 50"):
        data.train_batches(51, 0, "cpu")
    with pytest.raises(UserError, match="batch_size=0"):
        data.eval_batches("test", 0, "cpu")
    with pytest.raises(UserError, match=r"unknown split 'valid'\. Nearest: val"):
        data.eval_batches("valid", 8, "cpu")
    data.mean = [0.5]
    with pytest.raises(UserError, match="3 values each"):
        data.eval_batches("test", 8, "cpu")


def test_equal_sets_are_decoded_once(tmp_path, pixels, labels, image_set, monkeypatch) -> None:
    def loader(**changes) -> Images:
        source = image_set(tmp_path, **changes)
        return Images(source=source, mean=MEAN, std=STD, crop_padding=2, flip=True)

    parquet_set(tmp_path, pixels, labels)
    first = loader().load()
    monkeypatch.setattr("quantable.data.rows.open_image", None)  # nothing more can be decoded
    assert loader().load() is first
    monkeypatch.undo()
    for change in ({"val_images": 3}, {"train_images": 4}, {"test_images": 5}):
        other = loader(**change)
        assert other.sha256 != first.sha256


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_leave_the_pixels_as_they_are_for_the_next_cell(image_set, channels_last) -> None:
    data = in_memory(image_set)
    before = fingerprint(data.load().images, data.load().labels)
    train = data.train_batches(BATCH, 0, "cpu", channels_last=channels_last)
    test = data.eval_batches("test", BATCH, "cpu", channels_last=channels_last)
    for x, _ in [*train, *test]:
        x.zero_()  # whatever a network does with its input
    assert fingerprint(data.load().images, data.load().labels) == before


IDS = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))


def test_discovery() -> None:
    assert len(IDS) == 6  # raise this by one with each set


@pytest.mark.parametrize("set_id", IDS)
def test_every_set_is_described(set_id) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        conf = compose(f"data/{set_id}").data
    assert conf.id == set_id
    assert conf.root == f"data/{set_id}" or set_id == "fashion_mnist_mini"
    loader = {"tag": "resnet18.tv_in1k"} if set_id == "imagenet" else {}
    data = instantiate(conf.loader, **loader)
    assert data.input_size == tuple(conf.input_size)
    assert data.classes == conf.classes


def test_the_bundled_set_is_complete_and_balanced() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        conf = compose("data/fashion_mnist_mini").data
    data: Images = instantiate(conf.loader)
    assert data.title == "Fashion-MNIST mini"
    assert data.sizes == {"train": 9000, "val": 1000, "test": 2000}
    labels = data.load().labels
    train = np.concatenate([labels["train"], labels["val"]])
    assert np.bincount(train).tolist() == [1000] * 10
    assert np.bincount(labels["test"]).tolist() == [200] * 10
    folder = ROOT / conf.root
    assert (folder / "LICENSE").is_file()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    x, _ = next(iter(data.train_batches(64, 0, "cpu")))
    assert x.shape == (64, 1, 28, 28)
