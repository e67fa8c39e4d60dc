"""An image set as its YAML describes it, checked and decoded to uint8 arrays (no torch)."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from quantable.base.errors import UserError, unknown
from quantable.data.archives import Idx
from quantable.data.folders import ClassFolders
from quantable.data.known import (
    IDX_LABELS,
    MNIST_COUNTS,
    OF_SET,
    check_mean,
    class_numbers,
    looks_like,
)
from quantable.data.layouts import (
    Copy,
    Layout,
    copy_of,
    find_layouts,
    is_sample,
    labels_of,
    missing,
    resolve_root,
)
from quantable.data.parquet import Parquet
from quantable.data.rows import Array, Encoded, Pixels

SPLITS = ("train", "val", "test")
MNIST_IMAGES = sum(MNIST_COUNTS)  # of every set that is like it
PART_HELD_OUT = Fraction(1500, 11_000)  # of the training images of a part, at most


class Labelled(Protocol):
    """Rows with labels, and a name for each row in an error message."""

    @property
    def labels(self) -> Array:
        """(n,) int64."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Name of each label, where the copy has names."""

    @property
    def where(self) -> Callable[[int], str]:
        """Name of a row."""


@dataclass(frozen=True)
class Arrays:
    """Decoded splits: ``images[split]`` (n, h, w, c) uint8 and ``labels[split]`` (n,) int64."""

    images: Mapping[str, Array]
    labels: Mapping[str, Array]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What an image set is and how much of it is used.

    ``splits``: for "train" and "test" the names to look for, in order of preference; ``counts``:
    images that a complete copy has; ``part``: whether a copy may have fewer; ``lossless``: whether
    the originals are; ``val_images``: held out of the training images; ``train_images``,
    ``test_images``: use only so many (None: all).
    """

    id: str
    title: str
    classes: int
    input_size: Sequence[int]  # (c, h, w)
    root: str
    splits: Mapping[str, Sequence[str]]
    counts: Mapping[str, int]
    part: bool
    lossless: bool
    val_images: int
    train_images: int | None
    test_images: int | None

    def __hash__(self) -> int:
        return hash(self.root)  # the other facts include dicts, which have no hash

    def layout(self) -> Layout:
        """The layout found under ``root``; without one, an error that says what to do."""
        return self._layout

    def is_here(self) -> bool:
        """Whether images under ``root`` could be this set's."""
        try:
            self.layout()
        except UserError:
            return False
        return True

    @cached_property
    def _layout(self) -> Layout:
        found = list(find_layouts(self.root))
        if not found:
            raise missing(self.id, self.root)
        return found[0] if len(found) == 1 else self._fitting(found)

    def _fitting(self, found: Sequence[Layout]) -> Layout:
        """The one of several layouts that is of this set; that of ``root`` itself comes first."""
        reasons = {layout: self._misfit(layout) for layout in found}
        fitting = [layout for layout in found if not reasons[layout]]
        root = resolve_root(self.root)
        if not fitting:
            said = "\n".join(f"  - {reason}" for reason in reasons.values())
            raise UserError(f"data={self.id}: no set under {root} is {self.title}:\n{said}")
        if len(fitting) > 1 and fitting[0].folder != root:
            names = " and ".join(layout.folder.name for layout in fitting)
            raise UserError(
                f"data={self.id}: under {root}, {names} could each be {self.title}; "
                "name the folder of one with data.root="
            )
        return fitting[0]

    def _misfit(self, layout: Layout) -> str | None:
        """Why the images of ``layout`` are not this set's; None where nothing speaks against it."""
        sample = is_sample(layout)
        splits = ["test"] if sample or self.counts["train"] == 0 else ["train", "test"]
        try:
            for split in splits:
                rows = labels_of(layout, self.splits[split])
                rows = replace(rows, labels=self._numbered(layout, rows))
                self._check(layout, split, rows, None if sample else self.counts[split])
                if isinstance(rows, Pixels):
                    rows.decode([0], self.input_size)
        except UserError as error:
            return str(error)
        strange = self._has_other_labels(layout)
        return f"{layout.folder}: other labels than {self.title} has" if strange else None

    @cached_property
    def copy(self) -> Copy:
        """How the copy under ``root`` differs from the original set."""
        found = copy_of(
            self.layout(),
            lossless=self.lossless,
            splits=self.splits,
            counts=self.counts,
            part=self.part,
        )
        strange = not found.variant and self._has_other_labels(self.layout())
        return Copy("other", "other labels than published") if strange else found

    def _has_other_labels(self, layout: Layout) -> bool:
        """Whether a complete copy in IDX files, which name no classes, is of another set."""
        if not isinstance(layout, Idx) or self.id not in IDX_LABELS:
            return False
        labels = layout.labels("train")
        complete = len(labels) == MNIST_IMAGES
        return complete and hashlib.sha256(labels.tobytes()).hexdigest() != IDX_LABELS[self.id]

    @property
    def variant(self) -> str:
        """The copy's word: 'jpeg', 'jpeg121', 'part', 'sample', ..., or '' for the original."""
        return self.copy.variant

    @property
    def full_title(self) -> str:
        """Title with the variant, to be shown beside every number."""
        return self.copy.title(self.title)

    def rows(self, split: str) -> Pixels | Encoded:
        """The "train" or "test" rows as they lie on disk, count and labels checked."""
        rows = self.layout().read(self.splits[split])
        rows = replace(rows, labels=self.numbered(rows))
        if isinstance(self.layout(), ClassFolders) and isinstance(rows, Encoded):
            rows = rows.taken(np.argsort(rows.labels, kind="stable"))  # not by the folders' names
        self.check(split, rows, expected=self.counts[split])
        return rows

    def numbered(self, rows: Labelled) -> Array:
        """The labels of ``rows`` as the set numbers its classes."""
        return self._numbered(self.layout(), rows)

    def _numbered(self, layout: Layout, rows: Labelled) -> Array:
        if rows.classes is None:
            return rows.labels
        numbers = class_numbers(
            self.id,
            self.title,
            self.classes,
            rows.classes,
            str(layout.folder),
            by_name=not isinstance(layout, Parquet),
        )
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= len(numbers)))
        if wrong.size:
            raise UserError(
                f"{rows.where(int(wrong[0]))}: label {rows.labels[wrong[0]]} is out of range "
                f"0..{len(numbers) - 1} ({len(numbers)} classes)"
            )
        labels: Array = np.array(numbers, np.int64)[rows.labels]
        return labels

    def check(self, split: str, rows: Labelled, *, expected: int | None) -> None:
        """Raise where the number of images is not ``expected`` (None: any) or a label is wrong."""
        self._check(self.layout(), split, rows, expected)

    def _check(self, layout: Layout, split: str, rows: Labelled, expected: int | None) -> None:
        where, count = layout.folder, len(rows.labels)
        other = looks_like(rows.labels) if self.id in OF_SET else None
        hint = f"; these are labels of {other}" if other not in (None, self.title) else ""
        if expected is not None and (count > expected or (count < expected and not self.part)):
            allow = "; for a copy that is smaller on purpose: data.part=true"
            raise UserError(
                f"{where}: {count} {split} images, a complete set has {expected}"
                f"{allow if count < expected else ''}"
            )
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= self.classes))
        if wrong.size:
            raise UserError(
                f"{rows.where(int(wrong[0]))}: label {rows.labels[wrong[0]]} is out of range "
                f"0..{self.classes - 1} ({self.classes} classes){hint}"
            )
        found = np.unique(rows.labels).size
        if split == "train" and found != self.classes:
            message = f"{where}: {found} classes occur, {self.title} has {self.classes}{hint}"
            raise UserError(message)
        if other == "MNIST":
            raise UserError(f"{where}: the labels are those of MNIST, expected {self.title}'s")

    def chosen(self, n_train: int, n_test: int) -> dict[str, Array]:
        """Rows of each split that are used, of so many that are there.

        The sizes asked for are those of the whole set. Of a part fewer are held out where it has
        too few images, and those that are left are used where it has less than asked for.
        """
        val, train, test = self.val_images, self.train_images, self.test_images
        if self.part and n_train < self.counts["train"]:
            val = _at_most(val, int(n_train * PART_HELD_OUT))
            train = _at_most(train, n_train - val) if type(val) is int else train
        if self.part and n_test < self.counts["test"]:
            test = _at_most(test, n_test)
        return choose(n_train, n_test, val_images=val, train_images=train, test_images=test)

    def read(self) -> Arrays:
        """Decode the images that are used, and fingerprint them."""
        train, test = self.rows("train"), self.rows("test")
        chosen = self.chosen(len(train.labels), len(test.labels))
        rows = {"train": train, "val": train, "test": test}
        images = {s: rows[s].decode(chosen[s].tolist(), self.input_size) for s in SPLITS}
        labels = {s: rows[s].labels[chosen[s]] for s in SPLITS}
        folder = str(self.layout().folder)
        check_mean(self.id, self.title, images["train"], len(train.labels), folder)
        return Arrays(images, labels, fingerprint(images, labels))


@lru_cache(maxsize=1)
def read_once(source: ImageSet) -> Arrays:
    """``source.read()``, kept until another set is read: the cells of a table use the same one."""
    return source.read()


@dataclass(kw_only=True)
class SetFacts(ABC):
    """What every loader of batches says of its image set."""

    source: ImageSet

    @property
    def title(self) -> str:
        """Title with the variant, to be shown beside every number."""
        return self.source.full_title

    @property
    def variant(self) -> str:
        """The copy's word: 'jpeg', 'jpeg121', 'part', 'sample', ..., or '' for the original."""
        return self.source.variant

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.source.classes

    @property
    def input_size(self) -> tuple[int, ...]:
        """(c, h, w) of the images that accuracy is measured on."""
        return tuple(self.source.input_size)

    @property
    def train_size(self) -> tuple[int, ...]:
        """(c, h, w) of the images that are trained and calibrated on."""
        return self.input_size

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Number of images used of train, val and test."""

    def require(self, split: str) -> None:
        """Raise for a split that does not exist or has no images."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, "data")
        if not self.sizes[split]:
            raise UserError(
                f"data={self.source.id}: {self.title} has no images of the split {split}"
            )


def choose(
    n_train: int,
    n_test: int,
    *,
    val_images: int,
    train_images: int | None,
    test_images: int | None,
) -> dict[str, Array]:
    """Rows of each split. Held out are the last of a fixed permutation, used the first of it.

    The permutation depends on the count only; NumPy promises ``RandomState`` never to change.

    >>> rows = choose(6, 3, val_images=2, train_images=3, test_images=None)
    >>> {split: sorted(chosen.tolist()) for split, chosen in rows.items()}
    {'train': [1, 2, 5], 'val': [0, 4], 'test': [0, 1, 2]}
    """
    if type(val_images) is not int or not 0 <= val_images < n_train:
        raise UserError(f"data.val_images={val_images}: 0 to {n_train - 1} can be held out")
    order = np.random.RandomState(0).permutation(n_train)
    left = order[: n_train - val_images]
    return {
        "train": left[: limit("train_images", train_images, len(left))],
        "val": order[n_train - val_images :],
        "test": rows_of_test(n_test, limit("test_images", test_images, n_test)),
    }


def rows_of_test(n_test: int, used: int) -> Array:
    """All test rows in order, or ``used`` of a fixed permutation: class folders are sorted."""
    return (
        np.arange(n_test) if used == n_test else np.random.RandomState(1).permutation(n_test)[:used]
    )


def _at_most(wanted: Any, most: int) -> Any:  # noqa: ANN401 - whatever is wrong stays so
    """``wanted`` or, where that is a larger number, ``most``."""
    return min(wanted, most) if type(wanted) is int else wanted


def limit(key: str, wanted: int | None, available: int) -> int:
    """How many images are used; a limit of none, or above what is there, is an error."""
    if wanted is None:
        return available
    if type(wanted) is not int or not 1 <= wanted <= available:
        raise UserError(f"data.{key}={wanted}: 1 to {available} images can be used (null: all)")
    return wanted


def fingerprint(images: Mapping[str, Array], labels: Mapping[str, Array]) -> str:
    """SHA-256 over the shapes, pixels and labels of all splits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split}{images[split].shape}".encode())
        digest.update(np.ascontiguousarray(images[split]).data)
        digest.update(labels[split].astype("<i8").data)
    return digest.hexdigest()
