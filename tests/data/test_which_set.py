"""Which set lies under a root, and which number each of its classes has."""

import hashlib

import numpy as np
import pytest
from written_sets import (
    class_folders,
    file_bytes,
    idx_set,
    parquet_set,
    write_cifar10,
    write_cifar100,
    write_parquet,
)

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.data.imagenet import StreamedImages
from quantable.data.known import (
    IDX_LABELS,
    MNIST_COUNTS,
    OF_SET,
    TRAINED_ON,
    check_mean,
    class_numbers,
    classes_of,
)

CIFAR10, FASHION = classes_of("CIFAR-10"), classes_of("Fashion-MNIST")


@pytest.fixture
def described(image_set):
    """A public set of ``n`` training images and as many test images."""

    def describe(root, set_id, n, **changes):
        title = OF_SET[set_id]
        size = [1, 28, 28] if "MNIST" in title else [3, 32, 32]
        facts = {"id": set_id, "title": title, "classes": len(classes_of(title))}
        facts |= {"input_size": size, "counts": {"train": n, "test": n}}
        return image_set(root, **facts | changes)

    return describe


def grey(n, value=0, size=32, channels=3):
    return np.full((n, size, size, channels), value, np.uint8)


def test_the_known_classes_are_complete() -> None:
    found = {title: len(set(classes_of(title))) for title in {*OF_SET.values(), "STL-10"}}
    assert found == {
        **{"CIFAR-10": 10, "CIFAR-100": 100, "Fashion-MNIST": 10, "STL-10": 10},
        **{"Tiny-ImageNet": 200, "ImageNet": 1000},
    }
    # The published counts of the training images of each digit are those of 60,000.
    assert sum(MNIST_COUNTS) == 60_000
    for title in ("CIFAR-10", "CIFAR-100", "Tiny-ImageNet", "ImageNet"):
        assert list(classes_of(title)) == sorted(classes_of(title))


# Numbers of n02102040 and n03028079 as ImageNet's own list has them.
@pytest.mark.parametrize("folders", [["n01440764", "n02102040", "n03028079"], ["n03028079"]])
def test_some_classes_of_imagenet_keep_their_numbers(tmp_path, described, folders) -> None:
    class_folders(tmp_path, grey(3), np.arange(len(folders)).repeat(3)[:3], ["val"], "png", folders)
    numbers = {"n01440764": 0, "n02102040": 217, "n03028079": 497}
    source = described(
        tmp_path,
        "imagenet",
        3,
        counts={"train": 0, "test": 3},
        splits={"train": ["train"], "test": ["val"]},
        lossless=False,
        val_images=0,
    )
    expected = {numbers[name] for name in folders[: len(np.unique(source.rows("test").labels))]}
    assert set(source.rows("test").labels.tolist()) == expected
    streamed = StreamedImages(source=source, tag="resnet18.tv_in1k", workers=0)
    assert set(streamed._rows["test"].labels.tolist()) == expected


@pytest.mark.parametrize("folders", [[str(i) for i in range(12)], ["a", "b"]])
def test_some_classes_without_a_name_have_no_number(tmp_path, described, folders) -> None:
    class_folders(tmp_path, grey(12), np.arange(12) % len(folders), ["val"], "png", folders)
    counts, splits = {"train": 0, "test": 12}, {"train": ["train"], "test": ["val"]}
    with pytest.raises(UserError, match=rf"{len(folders)} classes, ImageNet has 1000; without all"):
        described(tmp_path, "imagenet", 12, counts=counts, splits=splits).rows("test")


@pytest.mark.parametrize("name", ["{}", "class{}", "{:03}"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbered_folders_are_in_the_order_of_their_numbers(
    tmp_path, image_set, name, first
) -> None:
    folders = [name.format(first + i) for i in range(12)]
    class_folders(tmp_path, grey(12), np.arange(12), classes=folders)
    rows = image_set(tmp_path, classes=12).rows("train")
    assert [path.parent.name for path in rows.items] == folders
    assert rows.labels.tolist() == list(range(12))


def test_names_have_the_numbers_of_the_set_in_every_layout(tmp_path, described) -> None:
    images, labels = grey(10, size=28, channels=1)[..., 0], np.arange(10)
    folders = [name.replace("/", " ") for name in FASHION]
    class_folders(tmp_path / "folders", images, labels, classes=folders)
    rows = described(tmp_path / "folders", "fashion_mnist", 10).rows("test")
    assert {path.parent.name: y for path, y in zip(rows.items, rows.labels, strict=True)} == {
        name: i for i, name in enumerate(folders)
    }
    hub = ["T - shirt / top", *FASHION[1:9], "Ankle boot"]
    for order in (range(10), range(9, -1, -1)):  # the hub's own, and another
        parquet_set(tmp_path / "hub", images, labels, classes=[hub[i] for i in order])
        assert described(tmp_path / "hub", "fashion_mnist", 10).rows("test").labels.tolist() == [
            *order
        ]


@pytest.mark.parametrize("write", [class_folders, parquet_set])
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (classes_of("STL-10"), "its classes are those of STL-10, expected those of CIFAR-10"),
        (classes_of("CIFAR-100"), "its classes are those of CIFAR-100, expected those of CIFAR-10"),
        (["plane", *CIFAR10[1:]], r"unknown class 'plane'\. Nearest: airplane"),
        ([*"abcdefghijk"], "11 classes, CIFAR-10 has 10$"),
    ],
)
def test_names_of_another_set_are_refused(tmp_path, described, write, classes, message) -> None:
    n = len(classes)
    write(tmp_path, grey(n), np.arange(n), classes=list(classes))
    with pytest.raises(UserError, match=f"{tmp_path}: {message}"):
        described(tmp_path, "cifar10", n).read()


@pytest.mark.parametrize(
    "classes",
    [
        # EuroSAT's, and those of ten classes of ImageNet that are known as Imagenette.
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop "
        "Residential River SeaLake",
        "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 "
        "n03445777 n03888257",
    ],
)
def test_names_that_are_not_the_sets_number_no_folders(tmp_path, described, classes) -> None:
    class_folders(tmp_path / "folders", grey(10), np.arange(10), classes=classes.split())
    with pytest.raises(UserError, match=r"are not those of CIFAR-10, such as 'airplane': give the"):
        described(tmp_path / "folders", "cifar10", 10).read()
    # Labels that are stored are not of the order of their names: other languages are possible.
    parquet_set(tmp_path / "hub", grey(10), np.arange(10), classes=classes.split())
    assert described(tmp_path / "hub", "cifar10", 10).read().labels["test"].tolist() == [*range(10)]


def test_a_complete_set_of_other_pixels_is_refused(tmp_path, described) -> None:
    labels = np.arange(60_000) % 10
    for name, value in (("fashion", 73), ("kuzushiji", 49)):  # 0.286 and 0.192, the published means
        idx_set(tmp_path / name, grey(60_000, value, size=1, channels=1), labels)
    changes = {"input_size": [1, 1, 1], "val_images": 1}
    described(tmp_path / "fashion", "fashion_mnist", 60_000, **changes).read()
    other = described(tmp_path / "kuzushiji", "fashion_mnist", 60_000, **changes)
    with pytest.raises(UserError, match=r"is 0\.192, that of Fashion-MNIST 0\.286: it is another"):
        other.read()
    few = np.full((8, 1, 1, 1), 49, np.uint8)
    check_mean("fashion_mnist", "Fashion-MNIST", few, 8, "")  # of a part nothing is known
    few[::2] = 0  # of mean 0.096, where chance moves the mean of eight as far
    check_mean("fashion_mnist", "Fashion-MNIST", few, 60_000, "")


def test_known_means_are_those_that_pixels_are_normalized_by() -> None:
    for set_id, (images, mean) in TRAINED_ON.items():
        data = compose_run([f"data={set_id}"])["data"]
        assert (data["counts"]["train"], data["mean"]) == (images, [*mean])


def test_names_of_a_set_of_ones_own_are_free() -> None:
    assert class_numbers("mine", "Mine", 10, classes_of("STL-10"), "") == list(range(10))


def test_files_that_number_their_classes_otherwise_are_refused(tmp_path, described) -> None:
    items = [file_bytes(image, "PNG") for image in grey(10)]
    for name, classes in (("train", CIFAR10), ("test", CIFAR10[::-1])):
        write_parquet(tmp_path / f"{name}.parquet", items, [*range(10)], classes=classes)
    # Files are looked at in the order of their names.
    with pytest.raises(UserError, match=r"train\.parquet: its classes are numbered otherwise than"):
        described(tmp_path, "cifar10", 10).read()


@pytest.mark.parametrize("without_names", [write_cifar100, parquet_set])
def test_labels_of_another_set_are_refused(tmp_path, described, without_names) -> None:
    without_names(tmp_path / "set", grey(100), np.arange(100))
    with pytest.raises(UserError, match=r"label 10 is out of range.*these are labels of CIFAR-100"):
        described(tmp_path, "cifar10", 100).read()


def test_the_labels_of_mnist_are_refused(tmp_path, described) -> None:
    labels = np.arange(10).repeat(MNIST_COUNTS)
    idx_set(tmp_path, grey(60_000, size=28, channels=1), labels)
    with pytest.raises(UserError, match="labels are those of MNIST, expected Fashion-MNIST's"):
        described(tmp_path, "fashion_mnist", 60_000).rows("train")


def test_the_set_that_fits_is_taken(tmp_path, described) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", grey(100, 1), np.arange(100) % 10)
    write_cifar100(tmp_path / "cifar-100-python", grey(100, 2), np.arange(100))
    idx_set(tmp_path / "a", grey(100, 3, size=28, channels=1), np.arange(100) % 10)
    parquet_set(tmp_path / "b", grey(100, 4), np.arange(100), classes=[*classes_of("CIFAR-100")])
    for set_id, value in (("cifar10", 1), ("fashion_mnist", 3)):
        source = described(tmp_path, set_id, 100)
        assert source.is_here()
        assert (source.read().images["test"] == value).all()
    with pytest.raises(UserError, match="b and cifar-100-python could each be CIFAR-100; name"):
        described(tmp_path, "cifar100", 100).read()
    nothing = described(tmp_path, "cifar10", 90)
    assert not nothing.is_here()
    with pytest.raises(UserError, match=f"no set under {tmp_path} is CIFAR-10:\n  - .*\n  - ") as e:
        nothing.read()
    assert str(e.value).count("\n") == 4


def test_two_sets_that_nothing_tells_apart_are_not_guessed(tmp_path, described) -> None:
    for folder in ("KMNIST", "fashion"):
        idx_set(tmp_path / folder, grey(20, size=28, channels=1), np.arange(20) % 10)
    with pytest.raises(UserError, match="KMNIST and fashion could each be Fashion-MNIST; name the"):
        described(tmp_path, "fashion_mnist", 20).read()
    idx_set(tmp_path, grey(20, 7, size=28, channels=1), np.arange(20) % 10)
    assert (described(tmp_path, "fashion_mnist", 20).read().images["test"] == 7).all()


def test_a_complete_copy_with_other_labels_is_named(tmp_path, described, monkeypatch) -> None:
    labels = np.arange(60_000) % 10
    idx_set(tmp_path / "other", grey(60_000, size=1, channels=1), labels)
    source = described(tmp_path / "other", "fashion_mnist", 60_000)
    assert source.variant == "other"
    assert source.full_title == "Fashion-MNIST (other labels than published)"
    idx_set(tmp_path / "set", grey(60_000, size=1, channels=1), labels[::-1])
    published = hashlib.sha256(bytes(labels[::-1].tolist())).hexdigest()
    monkeypatch.setitem(IDX_LABELS, "fashion_mnist", published)
    assert described(tmp_path / "set", "fashion_mnist", 60_000).variant == ""
    both = described(tmp_path, "fashion_mnist", 60_000, input_size=[1, 1, 1])
    assert (both.layout().folder.name, both.variant) == ("set", "")
