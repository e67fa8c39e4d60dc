import gzip
import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written_sets import (
    class_folders,
    file_bytes,
    parquet_set,
    write_cifar10,
    write_idx,
    write_parquet,
)

from quantable.base.errors import UserError
from quantable.data import layouts
from quantable.data.encodings import beginning, loss
from quantable.data.images import Images
from quantable.data.layouts import find_layout, missing, set_present


def by_place(arrays):
    """Training images back in the order on disk: the split is a permutation of 12 rows."""
    order = np.random.RandomState(0).permutation(12)
    images = np.concatenate([arrays.images["train"], arrays.images["val"]])
    labels = np.concatenate([arrays.labels["train"], arrays.labels["val"]])
    back = np.argsort(order)
    return images[back], labels[back]


def test_cifar_pickles_hold_the_pixels_of_the_format(tmp_path, pixels, labels, image_set) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", pixels, labels)
    arrays = image_set(tmp_path).read()
    images, found = by_place(arrays)
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(arrays.images["test"], pixels)
    assert image_set(tmp_path).variant == ""


def test_cifar100_reads_the_fine_labels(tmp_path, pixels, labels, image_set) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    flat = pixels.transpose(0, 3, 1, 2).reshape(12, -1).copy()
    batch = {b"data": flat, b"fine_labels": labels.tolist(), b"coarse_labels": [0] * 12}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    np.testing.assert_array_equal(by_place(image_set(folder).read())[1], labels)


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_parquet_of_the_hubs(tmp_path, pixels, labels, image_set, column, label) -> None:
    parquet_set(tmp_path / "plain_text", pixels, labels, image=column, label=label)
    images, found = by_place(image_set(tmp_path).read())
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(found, labels)


def test_class_folders_number_classes_in_sorted_order(tmp_path, pixels, labels, image_set) -> None:
    class_folders(tmp_path, pixels, labels, splits=("train", "val"))
    images, found = by_place(image_set(tmp_path).read())
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(images, pixels[order])
    np.testing.assert_array_equal(found, labels[order])


def test_idx(tmp_path, pixels, labels, image_set) -> None:
    grey = pixels[..., 0]
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", grey)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    images, found = by_place(image_set(tmp_path, input_size=[1, 32, 32]).read())
    np.testing.assert_array_equal(images[..., 0], grey)
    np.testing.assert_array_equal(found, labels)


def test_tiny_imagenet_folder(tmp_path, pixels, labels, image_set) -> None:
    root = tmp_path / "tiny-imagenet-200"
    notes = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        train = root / "train" / f"n0{label}" / "images"
        val = root / "val" / "images"
        for folder in (train, val):
            folder.mkdir(parents=True, exist_ok=True)
        # An uncompressed format, under a name that Tiny-ImageNet would have.
        (train / f"n0{label}_{i:02}.JPEG").write_bytes(file_bytes(image, "PNG"))
        (val / f"val_{i}.JPEG").write_bytes(file_bytes(image, "PNG"))
        notes.append(f"val_{i}.JPEG\tn0{label}\t0\t0\t1\t1\n")
    (root / "val" / "val_annotations.txt").write_text("".join(notes))
    source = image_set(tmp_path, splits={"train": ["train"], "test": ["val"]})
    arrays = source.read()
    np.testing.assert_array_equal(arrays.images["test"], pixels)
    np.testing.assert_array_equal(arrays.labels["test"], labels)


def test_grey_images_of_a_colour_set_become_rgb(tmp_path, pixels, labels, image_set) -> None:
    items = [file_bytes(pixels[0, ..., 0], "PNG")] * 12
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", items, labels.tolist())
    image = image_set(tmp_path).read().images["test"][0]
    np.testing.assert_array_equal(image, pixels[0, ..., :1].repeat(3, axis=-1))


KINDS = {"PNG": {}, "JPEG": {}, "WEBP": {"lossless": True}, "lossy": {"lossless": False}}


def encoded(image: np.ndarray, kind: str) -> bytes:
    """One image; "lossy" is WebP with loss."""
    return file_bytes(image, "WEBP" if kind == "lossy" else kind, **KINDS[kind])


def with_profile(webp: bytes) -> bytes:
    """The same WebP image in a container (VP8X), behind a colour profile of an odd length."""
    flags, place = b"\x20" + bytes(3), bytes([31, 0, 0]) * 2
    chunks = b"VP8X" + (10).to_bytes(4, "little") + flags + place
    chunks += b"ICCP" + (301).to_bytes(4, "little") + b"VP8 " * 75 + b"V\0" + webp[12:]
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


@pytest.mark.parametrize("write", ["parquet", "folders"])
@pytest.mark.parametrize(
    ("first", "last", "lossless", "variant", "title"),
    [
        ("JPEG", "JPEG", True, "jpeg", "CIFAR-10 (JPEG)"),
        ("PNG", "PNG", True, "", "CIFAR-10"),
        ("JPEG", "JPEG", False, "", "CIFAR-10"),
        ("WEBP", "WEBP", True, "", "CIFAR-10"),
        ("lossy", "lossy", True, "webp", "CIFAR-10 (lossy WebP)"),
        ("WEBP", "JPEG", True, "jpeg1", "CIFAR-10 (1 of 24 JPEG)"),
        ("JPEG", "PNG", True, "jpeg23", "CIFAR-10 (23 of 24 JPEG)"),
        ("PNG", "lossy", True, "webp1", "CIFAR-10 (1 of 24 lossy WebP)"),
        (
            *("lossy", "JPEG", True, "jpeg1-webp23"),
            "CIFAR-10 (1 of 24 JPEG; 23 of 24 lossy WebP)",
        ),
    ],
)
def test_every_image_that_lost_something_is_counted(
    tmp_path, pixels, labels, image_set, write, first, last, lossless, variant, title
) -> None:
    items = [encoded(image, first) for image in pixels]
    for name in ("train", "test"):
        if name == "test":
            items[-1] = encoded(pixels[-1], last)
        if write == "parquet":
            write_parquet(tmp_path / f"{name}.parquet", items, labels.tolist(), row_group_size=5)
            continue
        for i, (item, label) in enumerate(zip(items, labels, strict=True)):
            path = tmp_path / name / f"class{label}" / f"{i:02}.png"  # whatever it is
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item)
    found = image_set(tmp_path, lossless=lossless)
    assert (found.variant, found.full_title) == (variant, title)
    assert [len(found.read().labels[split]) for split in ("train", "val", "test")] == [10, 2, 12]


@pytest.mark.parametrize("kind", ["lossy", "WEBP"])
def test_webp_in_a_container_is_seen_through(tmp_path, pixels, kind) -> None:
    webp = with_profile(encoded(pixels[0], kind))
    with Image.open(io.BytesIO(webp)) as image:
        assert len(image.info["icc_profile"]) == 301  # Pillow reads it as what it is meant to be
    path = tmp_path / "image.webp"
    path.write_bytes(webp)
    assert loss(webp) == loss(beginning(path)) == ("lossy WebP" if kind == "lossy" else None)
    frames = [Image.fromarray(image) for image in pixels[:2]]
    frames[0].save(path, save_all=True, append_images=frames[1:], **KINDS[kind])
    assert b"ANMF" in path.read_bytes()
    assert loss(beginning(path)) == ("lossy WebP" if kind == "lossy" else None)
    assert loss(webp[:20]) is None


def test_a_sample_is_named(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path, pixels, labels, "JPEG", names=["sample"])
    assert image_set(tmp_path).variant == "sample"


# 12 training and 12 test images are here.
@pytest.mark.parametrize("write", [parquet_set, class_folders])
@pytest.mark.parametrize(
    ("train", "test", "variant", "words"),
    [
        (12, 12, "", ""),
        (1200, 12, "part", " (12 of 1,200)"),
        (12, 50, "part", " (12 of 50 test)"),
        (24, 50, "part", " (12 of 24, 12 of 50 test)"),
    ],
)
def test_a_part_is_named_where_it_is_allowed(
    tmp_path, pixels, labels, image_set, write, train, test, variant, words
) -> None:
    write(tmp_path, pixels, labels)
    source = image_set(tmp_path, counts={"train": train, "test": test}, part=True)
    assert (source.variant, source.full_title) == (variant, f"CIFAR-10{words}")
    assert sum(map(len, source.read().labels.values())) == 24
    refused = image_set(tmp_path, counts={"train": train, "test": test})
    assert refused.variant == ""
    if variant:
        with pytest.raises(UserError, match=r"smaller on purpose: data\.part=true"):
            refused.read()


def test_a_part_that_lost_something_says_both(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path, pixels, labels, "JPEG")
    source = image_set(tmp_path, counts={"train": 50, "test": 12}, part=True)
    assert (source.variant, source.full_title) == ("part-jpeg", "CIFAR-10 (12 of 50; JPEG)")


def test_more_than_all_images_are_no_part(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path, pixels, labels)
    with pytest.raises(UserError, match=r"12 train images, a complete set has 11$"):
        image_set(tmp_path, counts={"train": 11, "test": 12}, part=True).read()


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        ((10_000, None, None), (9_500, 1_500, 600)),  # Tiny-ImageNet's own
        ((10_000, 10_000, None), (9_500, 1_500, 600)),  # as ad_tinyimagenet has it at budget cpu
        ((1_000, 4_000, 500), (4_000, 1_000, 500)),  # what it has is used as asked for
        ((0, None, 900), (11_000, 0, 600)),
        (("abc", 1, None), "val_images=abc"),
        ((0, "abc", None), "train_images=abc"),
    ],
)
def test_sizes_of_a_part(image_set, wanted, sizes) -> None:
    val, train, test = wanted
    counts = {"train": 100_000, "test": 10_000}
    asked = {"val_images": val, "train_images": train, "test_images": test}
    part = image_set("nowhere", counts=counts, part=True, **asked)
    if isinstance(sizes, str):
        with pytest.raises(UserError, match=sizes):
            part.chosen(11_000, 600)
        return
    chosen = part.chosen(11_000, 600)
    assert tuple(len(chosen[split]) for split in ("train", "val", "test")) == sizes
    assert not set(chosen["train"]) & set(chosen["val"])


def test_nothing_there(tmp_path, image_set) -> None:
    assert not set_present(tmp_path / "nowhere")
    assert find_layout(tmp_path) is None
    with pytest.raises(UserError) as error:
        image_set(tmp_path).read()
    message = str(error.value)
    assert f"python reproduce/prepare.py data=cifar10 data.root={tmp_path}" in message
    assert message == str(missing("cifar10", tmp_path))
    for kind in layouts.LAYOUTS:
        assert kind.kind in message


def test_relative_roots_count_from_the_project(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert set_present("src/quantable/data/fashion_mnist_mini")


def test_looking_loads_no_torch(tmp_path, pixels, labels) -> None:
    parquet_set(tmp_path, pixels, labels, "JPEG")
    code = (
        "import sys; from quantable.data.layouts import copy_of, find_layout; "
        f"copy = copy_of(find_layout({str(tmp_path)!r}), "
        "lossless=True, splits={'train': ['train']}, counts={'train': 12}, part=True); "
        "assert copy.variant == 'jpeg'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return (Path.touch, (self.sentinel,))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_something_is_refused(tmp_path, image_set, protocol) -> None:
    folder, sentinel = tmp_path / "cifar-10-batches-py", tmp_path / "called"
    folder.mkdir()
    path = folder / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Malicious(sentinel)}, protocol=protocol))
    with pytest.raises(
        UserError, match=r"data_batch_1: not a CIFAR batch: it asks for .* not plain"
    ):
        image_set(tmp_path).read()
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 3072), np.float32),
        np.array([[None]], dtype=object),
        np.zeros((2, 100), np.uint8),
        [1, 2],
    ],
)
def test_a_pickle_of_other_data_is_refused(tmp_path, image_set, data) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = pickle.dumps({b"data": data, b"labels": [0, 1]}, protocol=2)
    (folder / "data_batch_1").write_bytes(batch)
    with pytest.raises(UserError, match="data_batch_1"):
        image_set(tmp_path).read()


def test_a_cut_pickle_names_its_file(tmp_path, pixels, labels, image_set) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder, pixels, labels)
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="data_batch_3: not a CIFAR batch"):
        image_set(tmp_path).read()
    path.unlink()
    with pytest.raises(UserError, match="data_batch_3: cannot be read"):
        image_set(tmp_path).read()


def test_a_truncated_image_names_file_and_row(tmp_path, pixels, labels, image_set) -> None:
    items = [file_bytes(image, "JPEG") for image in pixels]
    items[5] = items[5][: len(items[5]) // 2]
    write_parquet(tmp_path / "train.parquet", items, labels.tolist())
    write_parquet(tmp_path / "test.parquet", items[:5] * 2 + items[:2], labels.tolist())
    with pytest.raises(
        UserError, match=r"train\.parquet, row 5: image cannot be decoded .*(?i:trunc)"
    ):
        image_set(tmp_path).read()


def test_an_image_that_is_none_names_its_file(tmp_path, pixels, labels, image_set) -> None:
    class_folders(tmp_path, pixels, labels)
    (tmp_path / "test" / "class1" / "04.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"class1.04\.png: image cannot be decoded"):
        image_set(tmp_path).read()


def deep_rgb_png(value: int, size: int = 32) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write, by the format's definition."""
    rows = b"".join(b"\0" + np.full((size, 3), value, ">u2").tobytes() for _ in range(size))
    head = struct.pack(">IIBBBBB", size, size, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize("write", ["parquet", "folders"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (file_bytes(np.full((32, 32), 300, np.uint16), "PNG"), "16 bits per channel .PNG, mode I;"),
        (deep_rgb_png(300), "16 bits per channel .PNG, mode RGB.*at most 8 bits"),
        (file_bytes(np.full((32, 32), 300, np.uint16), "TIFF"), "no PNG or JPEG or BMP or WEBP"),
        (file_bytes(np.full((32, 32), 0.5, np.float32), "TIFF"), "no PNG or JPEG or BMP or WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "no PNG or JPEG or BMP or WEBP"),
    ],
)
def test_images_of_more_than_8_bits_are_refused(
    tmp_path, labels, image_set, write, channels, image, message
) -> None:
    class_folders(tmp_path, np.zeros((12, 32, 32, 3), np.uint8), labels)
    path = tmp_path / "test" / "class1" / "04.png"
    path.write_bytes(image)
    where = r"class1.04\.png: image "
    if write == "parquet":
        tmp_path, where = tmp_path / "parquet", r"test\.parquet, row 4: image "
        items = [file_bytes(np.zeros((32, 32, 3), np.uint8), "PNG")] * 12
        write_parquet(tmp_path / "train.parquet", items, labels.tolist())
        write_parquet(tmp_path / "test.parquet", [*items[:4], image, *items[5:]], labels.tolist())
    with pytest.raises(UserError, match=where + ".*" + message):
        image_set(tmp_path, input_size=[channels, 32, 32]).read()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_of_8_bits_or_fewer_is_read(tmp_path, labels, image_set, mode) -> None:
    image = Image.new("RGB", (32, 32), "white").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [buffer.getvalue()] * 12, labels.tolist())
    assert (image_set(tmp_path).read().images["test"] == 255).all()


def test_what_editors_and_systems_leave_is_looked_past(tmp_path, pixels, labels, image_set) -> None:
    for write in (class_folders, parquet_set):
        write(tmp_path / write.__name__, pixels, labels)
        clean = image_set(tmp_path / write.__name__).read()
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
            (tmp_path / write.__name__ / "train" / name).mkdir(parents=True)
        for place in ("._train-0.parquet", "train/class0/._00.png"):
            path = tmp_path / write.__name__ / place
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\0\5\x16\7" + bytes(78))
        assert image_set(tmp_path / write.__name__).read().sha256 == clean.sha256


def test_an_image_of_another_size_names_both(tmp_path, pixels, labels, image_set) -> None:
    items = [file_bytes(image, "PNG") for image in pixels]
    items[7] = file_bytes(pixels[7, :20], "PNG")
    write_parquet(tmp_path / "train.parquet", items, labels.tolist())
    write_parquet(tmp_path / "test.parquet", items, labels.tolist())
    with pytest.raises(UserError, match="row 7: image is 32x20, expected 32x32"):
        image_set(tmp_path).read()


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_corrupt_parquet_names_its_file(tmp_path, pixels, labels, image_set, cut) -> None:
    parquet_set(tmp_path, pixels, labels)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: not a readable parquet"):
        image_set(tmp_path).read()


def test_parquet_columns_are_checked(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path, pixels, labels, image="picture")
    with pytest.raises(UserError, match="columns picture, label; expected one of img, image"):
        image_set(tmp_path).read()


@pytest.mark.parametrize(
    ("items", "labels", "message"),
    [
        ([None] * 12, [0] * 12, "row 0: no image bytes"),
        ([b"x"] * 12, [0] * 11 + [None], "row 11: no label"),
        ([b"x"] * 12, [0] * 11 + [3], r"row 11: label 3 is out of range 0\.\.2 \(3 classes\)"),
        ([b"x"] * 12, [-1] + [0] * 11, "row 0: label -1 is out of range"),
        ([b"x"] * 12, [0, 1] * 6, "2 classes occur, CIFAR-10 has 3"),
        ([b"x"] * 11, [0, 1, 2] * 3 + [0, 1], "11 train images, a complete set has 12"),
    ],
)
def test_wrong_rows_are_named(tmp_path, image_set, items, labels, message) -> None:
    write_parquet(tmp_path / "train.parquet", items, labels)
    with pytest.raises(UserError, match=message):
        image_set(tmp_path).read()


def test_a_missing_split_is_named(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path / "a", pixels, labels, names=["train"])
    with pytest.raises(UserError, match=r"no test\*\.parquet or val\*\.parquet"):
        image_set(tmp_path / "a").read()
    class_folders(tmp_path / "b", pixels, labels, splits=["train"])
    with pytest.raises(UserError, match="no class folders under test or val"):
        image_set(tmp_path / "b").read()


def test_a_class_that_was_not_trained_is_an_error(tmp_path, pixels, labels, image_set) -> None:
    class_folders(tmp_path, pixels, labels)
    (tmp_path / "test" / "clas0").mkdir()
    with pytest.raises(UserError, match=r"unknown class folder 'clas0'\. Nearest: class0"):
        image_set(tmp_path).read()


@pytest.mark.parametrize("damage", ["cut", "magic", "size"])
def test_a_damaged_idx_file_is_named(tmp_path, pixels, labels, image_set, damage) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, pixels[..., 0])
    raw = gzip.decompress(path.read_bytes())
    damaged = {
        "cut": path.read_bytes()[:-200],
        "magic": gzip.compress(b"\x00" + raw[1:2] + b"\x09" + raw[3:]),
        "size": gzip.compress(raw[:-1]),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: "):
        image_set(tmp_path, input_size=[1, 32, 32]).read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": 12}, "val_images=12: 0 to 11"),
        ({"val_images": -1}, "val_images=-1"),
        ({"val_images": "abc"}, "val_images=abc"),
        ({"train_images": 11}, "train_images=11: 1 to 10 images"),
        ({"train_images": 0}, "train_images=0: 1 to 10"),
        ({"test_images": 13}, "test_images=13: 1 to 12"),
    ],
)
def test_limits_are_checked(tmp_path, pixels, labels, image_set, changes, message) -> None:
    parquet_set(tmp_path, pixels, labels)
    with pytest.raises(UserError, match=message):
        image_set(tmp_path, **changes).read()


def test_budgets_do_not_touch_the_held_out_images(tmp_path, pixels, labels, image_set) -> None:
    parquet_set(tmp_path, pixels, labels)
    whole = image_set(tmp_path).read()
    small = image_set(tmp_path, train_images=4, test_images=5).read()
    np.testing.assert_array_equal(small.images["val"], whole.images["val"])
    np.testing.assert_array_equal(small.images["train"], whole.images["train"][:4])
    assert {split: len(y) for split, y in small.labels.items()} == {"train": 4, "val": 2, "test": 5}
    assert small.sha256 != whole.sha256
    assert image_set(tmp_path).read().sha256 == whole.sha256
    everything = np.concatenate([whole.images["train"], whole.images["val"]])
    assert len(np.unique(everything.reshape(12, -1), axis=0)) == 12


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_of_an_archive_are_those_of_encoded_images(
    tmp_path, pixels, labels, image_set, channels_last
) -> None:
    write_cifar10(tmp_path / "archive", pixels, labels)
    parquet_set(tmp_path / "parquet", pixels, labels)

    def batches(name: str) -> list[torch.Tensor]:
        source = image_set(tmp_path / name)
        data = Images(source=source, mean=[0.5] * 3, std=[0.2] * 3, crop_padding=2, flip=True)
        found = (
            data.train_batches(4, 0, "cpu", channels_last=channels_last),
            data.eval_batches("val", 4, "cpu", channels_last=channels_last),
            data.eval_batches("test", 5, "cpu", channels_last=channels_last),
        )
        return [tensor for each in found for batch in each for tensor in batch]

    for a, b in zip(batches("archive"), batches("parquet"), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
