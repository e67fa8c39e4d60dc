import random

import numpy as np
import pytest
import torch
from written_sets import class_folders, file_bytes, parquet_set, write_parquet

from quantable.base.errors import UserError
from quantable.data.imagenet import StreamedImages, preprocessing

TAG = "resnet18.tv_in1k"


@pytest.fixture
def streamed(image_set):
    def make(root, tag=TAG, workers=0, **changes) -> StreamedImages:
        facts = {
            "title": "ImageNet",
            "input_size": [3, 224, 224],
            "lossless": False,
            "splits": {"train": ["train"], "test": ["val", "sample"]},
        }
        return StreamedImages(source=image_set(root, **facts | changes), tag=tag, workers=workers)

    return make


def test_preprocessing_is_the_tags_own() -> None:
    # Values of the weights' pages: torchvision's first ImageNet recipe, and timm's inception one.
    found = preprocessing(TAG, tested=True)
    assert found["input_size"] == (3, 224, 224)
    assert found["mean"] == (0.485, 0.456, 0.406)
    assert (found["interpolation"], found["crop_pct"]) == ("bilinear", 0.875)
    assert preprocessing("tf_efficientnet_lite0.in1k", tested=True)["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"unknown timm weights 'resnet18.tv_1k'.*resnet18.tv_in1k"):
        preprocessing("resnet18.tv_1k", tested=True)


@pytest.mark.parametrize(
    ("tag", "trained", "tested"),
    [  # sizes and crops of the weights' pages
        ("resnet18.tv_in1k", (224, 0.875), (224, 0.875)),
        ("resnet50.tv_in1k", (224, 0.875), (224, 0.875)),
        ("resnet101.tv_in1k", (224, 0.875), (224, 0.875)),
        ("mobilenetv2_100.ra_in1k", (224, 0.875), (224, 0.875)),
        ("mobilenetv3_large_100.ra_in1k", (224, 0.875), (224, 0.875)),
        ("tf_efficientnet_lite0.in1k", (224, 0.875), (224, 0.875)),
        ("resnet10t.c3_in1k", (176, 0.875), (224, 0.95)),
        ("resnet50.a1_in1k", (224, 0.95), (288, 1.0)),
        ("fasternet_t0.in1k", (224, 1.0), (224, 0.9)),
    ],
)
def test_accuracy_is_measured_as_it_is_published(
    tag: str, trained: tuple[int, float], tested: tuple[int, float]
) -> None:
    before, found = (preprocessing(tag, tested=test) for test in (False, True))
    for config, (size, crop) in ((before, trained), (found, tested)):
        assert config["input_size"] == (3, size, size)
        assert config["crop_pct"] == crop
    same = ("mean", "std", "interpolation", "crop_mode")
    assert [before[key] for key in same] == [found[key] for key in same]


def test_training_images_have_the_size_of_the_training(tmp_path, pixels, labels, streamed) -> None:
    class_folders(tmp_path, pixels, labels, splits=("train", "val"))
    data = streamed(tmp_path, tag="resnet10t.c3_in1k")
    assert (data.train_size, data.input_size) == ((3, 176, 176), (3, 224, 224))
    assert next(iter(data.train_batches(2, 0, "cpu")))[0].shape == (2, 3, 176, 176)
    for split, size in (("train", 176), ("val", 224), ("test", 224)):
        x, _ = next(iter(data.eval_batches(split, 2, "cpu")))
        assert x.shape[1:] == (3, size, size), split
    wrong = streamed(tmp_path, tag="resnet10t.c3_in1k", input_size=[3, 176, 176])
    message = r"data\.input_size=\[3, 176, 176\]: .* evaluated at \[3, 224, 224\] and trained at"
    with pytest.raises(UserError, match=message):
        wrong.eval_batches("test", 2, "cpu")
    with pytest.raises(UserError, match=message):
        _ = wrong.train_size


def test_a_crop_is_cut_as_the_accuracy_is_published(tmp_path, streamed) -> None:
    """A ramp of 256 columns: at crop 1.0 all of it is seen, at 0.95 its ends are cut off."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3)).copy()
    class_folders(tmp_path, [ramp] * 4, [0, 1, 0, 1], splits=("train", "val"))
    counts = {"train": 4, "test": 4}
    facts = {"input_size": [3, 288, 288], "counts": counts, "classes": 2, "val_images": 1}
    data = streamed(tmp_path, tag="resnet50.a1_in1k", **facts)
    for split, crop in (("train", 0.95), ("val", 1.0), ("test", 1.0)):
        x, _ = next(iter(data.eval_batches(split, 2, "cpu")))
        seen = (x[0, 0] * 0.229 + 0.485) * 255
        width = float(seen[:, -1].mean() - seen[:, 0].mean())
        assert width == pytest.approx(255 * crop, abs=2), split


def test_sample_is_normalized_and_nothing_else(tmp_path, streamed) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    items = [file_bytes(crop, "PNG") for crop in crops]
    write_parquet(tmp_path / "sample.parquet", items, [0, 1, 2], image="image", row_group_size=2)
    data = streamed(tmp_path)
    assert data.title == "ImageNet (sample)"
    assert data.sizes == {"train": 0, "val": 0, "test": 3}
    x, y = (torch.cat(part) for part in zip(*data.eval_batches("test", 2, "cpu"), strict=True))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((crops / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert y.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="at most the 0 training images"):
        data.train_batches(1, 0, "cpu")
    with pytest.raises(UserError, match=r"ImageNet \(sample\) has no images of the split val"):
        data.eval_batches("val", 1, "cpu")


def test_a_sample_gives_calibration_images_away(tmp_path, streamed) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    items = [file_bytes(crop, "PNG") for crop in crops]
    write_parquet(tmp_path / "sample.parquet", items, [0, 1, 0, 1, 1], image="image")
    data = streamed(tmp_path, train_images=2)
    assert data.sizes == {"train": 2, "val": 0, "test": 3}
    apart, left = (rows(data.eval_batches(split, 2, "cpu")) for split in ("train", "test"))
    assert sorted(apart + left) == list(range(5))
    assert left == sorted(left)
    assert streamed(tmp_path, train_images=2, test_images=1).sizes["test"] == 1
    x, _ = next(iter(data.eval_batches("train", 2, "cpu")))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((crops[apart] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"data\.train_images=5: 1 to 4 images can be used"):
        streamed(tmp_path, train_images=5).load()


@pytest.mark.parametrize("write", [class_folders, parquet_set], ids=["folders", "parquet"])
def test_epochs_are_a_function_of_seed_and_epoch(tmp_path, pixels, labels, streamed, write) -> None:
    kw = {"row_group_size": 5} if write is parquet_set else {}
    names = ("train", "val")
    write(tmp_path, pixels, labels, **({"splits": names} if not kw else {"names": names}), **kw)
    data = streamed(tmp_path)
    data.load()
    assert data.sizes == {"train": 10, "val": 2, "test": 12}

    def epoch(number, start=0):
        batches = data.train_batches(3, 5, "cpu", channels_last=True)
        batches.epoch, batches.start = number, start
        return list(batches)

    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    whole, tail, other = epoch(2), epoch(2, start=1), epoch(3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    np.testing.assert_array_equal(before[2], np.random.get_state()[1])
    assert len(whole) == 3
    assert whole[0][0].shape == (3, 3, 224, 224)
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)
    for (x, y), (x_all, y_all) in zip(tail, whole[1:], strict=True):
        assert torch.equal(x, x_all)
        assert torch.equal(y, y_all)
    assert not torch.equal(whole[0][0], other[0][0])


def rows(batches) -> list[int]:
    plan = batches.keys()
    return [row for batch in plan for row, _ in batch]


def test_train_val_and_test_rows_are_each_used_once(tmp_path, pixels, labels, streamed) -> None:
    parquet_set(tmp_path, pixels, labels, names=("train", "val"), row_group_size=5)
    data = streamed(tmp_path)
    batches = data.train_batches(10, 0, "cpu")
    trained, held_out = rows(batches), rows(data.eval_batches("val", 2, "cpu"))
    assert sorted(trained + held_out) == list(range(12))
    assert rows(data.eval_batches("test", 5, "cpu")) == list(range(12))
    assert streamed(tmp_path, train_images=4).sizes["train"] == 4
    assert streamed(tmp_path, train_images=4).sha256 != data.sha256


def test_wrong_sets_are_named(tmp_path, pixels, labels, streamed) -> None:
    with pytest.raises(UserError, match=r"python reproduce/prepare\.py"):
        streamed(tmp_path).load()
    items = [file_bytes(image, "JPEG") for image in pixels]
    items[4] = items[4][:300]
    for name in ("train", "val"):
        write_parquet(tmp_path / f"{name}.parquet", items, labels.tolist(), row_group_size=3)
    for workers in (0, 1):
        with pytest.raises(UserError) as error:
            list(streamed(tmp_path, workers=workers).eval_batches("test", 5, "cpu"))
        assert str(error.value).startswith(f"{tmp_path / 'val.parquet'}, row group 1, row 1: image")
        assert "Traceback" not in str(error.value)
    with pytest.raises(UserError, match="12 train images, a complete set has 13"):
        streamed(tmp_path, counts={"train": 13, "test": 12}).load()
    with pytest.raises(UserError, match="label 2 is out of range"):
        streamed(tmp_path, classes=2).load()
    assert streamed(tmp_path, counts={"train": 0, "test": 12}).sizes["train"] == 0
