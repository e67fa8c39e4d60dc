"""Images in folders: one folder per class, and Tiny-ImageNet's original variant of it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from quantable.base.errors import UserError, unknown
from quantable.data.encodings import beginning
from quantable.data.known import in_order
from quantable.data.rows import Encoded

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FOREIGN = ("@eaDir", "__MACOSX")  # what servers and archives leave beside the images
SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")


def is_foreign(name: str) -> bool:
    """Whether an editor, a system or a server left it there: hidden names, and ``FOREIGN``.

    >>> [is_foreign(name) for name in (".ipynb_checkpoints", "._x.png", "x.png")]
    [True, True, False]
    """
    return name.startswith(".") or name in FOREIGN


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not is_foreign(p.name) and p.is_dir())


def is_image(name: str) -> bool:
    """Whether a file of this name is one of the images."""
    return not is_foreign(name) and os.path.splitext(name)[1].lower() in SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The image files in ``folder``, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image(path.name))


def beginnings(folder: Path) -> Iterator[bytes]:
    """The beginning of every image in ``folder``, in any order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                yield beginning(entry.path)


def encoded(pairs: Iterable[tuple[Path, int]], classes: Sequence[str]) -> Encoded:
    """Paths with labels as the rows of a split."""
    paths, labels = zip(*pairs, strict=True)
    return Encoded(paths, np.array(labels, np.int64), lambda row: str(paths[row]), classes)


@dataclass(frozen=True)
class ClassFolders:
    """``train/<class>/*.png`` and ``test/`` or ``val/``; classes in sorted order."""

    folder: Path
    kind: ClassVar[str] = "class folders of images (train/<class>/*, test/<class>/* or val/...)"

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """Recognize the folder by a class folder that holds an image."""
        layout = cls(folder)
        return layout if layout._first_path() else None

    def heads(self) -> Iterator[bytes]:
        """Beginning of every image."""
        classes = (path for n in SPLIT_FOLDERS for path in subfolders(self.folder / n))
        return (head for folder in classes for head in beginnings(folder))

    def read(self, names: Sequence[str]) -> Encoded:
        """Read the first split of ``names`` that is there."""
        split = next((self.folder / n for n in names if subfolders(self.folder / n)), None)
        if split is None:
            raise UserError(f"{self.folder}: no class folders under {' or '.join(names)}")
        classes = in_order([path.name for path in self._class_folders(split)])
        folders = {path.name: path for path in subfolders(split)}
        for name in folders.keys() - set(classes):
            raise unknown("class folder", name, classes, str(split))
        pairs = [
            (p, y) for y, n in enumerate(classes) if n in folders for p in image_files(folders[n])
        ]
        if not pairs:
            raise UserError(
                f"{split}: class folders without images ({', '.join(sorted(SUFFIXES))})"
            )
        return encoded(pairs, classes)

    def _class_folders(self, split: Path) -> list[Path]:
        return subfolders(self.folder / "train") or subfolders(split)

    def _first_path(self) -> Path | None:
        classes = (path for n in SPLIT_FOLDERS for path in subfolders(self.folder / n)[:1])
        return next((path for folder in classes for path in image_files(folder)[:1]), None)


@dataclass(frozen=True)
class TinyFolders:
    """Tiny-ImageNet's own folder: ``train/<wnid>/images`` and ``val/val_annotations.txt``."""

    folder: Path
    kind: ClassVar[str] = "Tiny-ImageNet's archive, unpacked (tiny-imagenet-200)"

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """Recognize the folder by its validation labels."""
        return cls(folder) if (folder / "val" / "val_annotations.txt").is_file() else None

    def heads(self) -> Iterator[bytes]:
        """Beginning of every image."""
        folders = [*subfolders(self.folder / "train"), self.folder / "val"]
        return (head for folder in folders for head in beginnings(folder / "images"))

    def read(self, names: Sequence[str]) -> Encoded:
        """Read the training split, or the validation split for any other name."""
        classes = {path.name: label for label, path in enumerate(subfolders(self.folder / "train"))}
        pairs = list(self._train(classes) if "train" in names else self._val(classes))
        if not pairs:
            raise UserError(f"{self.folder}: no images of the split {names[0]}")
        return encoded(pairs, list(classes))

    def _train(self, classes: dict[str, int]) -> Iterable[tuple[Path, int]]:
        for wnid, label in classes.items():
            for path in image_files(self.folder / "train" / wnid / "images"):
                yield path, label

    def _val(self, classes: dict[str, int]) -> Iterable[tuple[Path, int]]:
        notes = self.folder / "val" / "val_annotations.txt"
        for number, line in enumerate(notes.read_text().splitlines(), start=1):
            name, wnid, *_ = [*line.split("\t"), "", ""]
            if wnid not in classes:
                raise unknown("class", wnid, classes, f"{notes}, line {number}")
            yield self.folder / "val" / "images" / name, classes[wnid]
