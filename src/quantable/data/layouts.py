"""Which images lie under a folder: found by looking, without torch and without decoding one."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.data.archives import CifarPickles, Idx
from quantable.data.encodings import JPEG, WEBP, loss
from quantable.data.folders import ClassFolders, TinyFolders, subfolders
from quantable.data.parquet import Parquet, parquet_files
from quantable.data.rows import Encoded, Pixels


class Layout(Protocol):
    """One way to keep an image set in a folder."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    def __hash__(self) -> int:
        """Hash of its place."""

    def heads(self) -> Iterator[bytes]:
        """At least the beginning of every image; none where the images are plain arrays."""

    def read(self, names: Sequence[str]) -> Pixels | Encoded:
        """Read the first split of ``names`` that is there."""


# Tiny-ImageNet's folder also looks like class folders: the more special layout comes first.
LAYOUTS = (CifarPickles, Idx, TinyFolders, Parquet, ClassFolders)


def resolve_root(root: str | Path) -> Path:
    """The folder meant by ``root``: a relative path counts from the project root.

    >>> resolve_root("data/cifar10").relative_to(ROOT).as_posix()
    'data/cifar10'
    """
    return (ROOT / Path(root).expanduser()).resolve()


def find_layouts(root: str | Path) -> Iterator[Layout]:
    """The layouts in ``root`` and in the folders below it, one of each folder."""
    folder = resolve_root(root)
    for candidate in (folder, *subfolders(folder)):
        found = (layout for kind in LAYOUTS if (layout := kind.at(candidate)))
        yield from itertools.islice(found, 1)


def find_layout(root: str | Path) -> Layout | None:
    """The first layout in ``root`` or one folder below it, else None."""
    return next(find_layouts(root), None)


def set_present(root: str | Path) -> bool:
    """Whether images in an accepted layout lie under ``root``."""
    return find_layout(root) is not None


@dataclass(frozen=True)
class Copy:
    """How a copy differs from the original set: one word for names of files, and what titles say.

    Two copies with different words are different data: no row and no claim mixes them.
    """

    variant: str = ""
    words: str = ""

    def title(self, title: str) -> str:
        """Title that every number from the copy must show.

        >>> Copy("jpeg121", "121 of 60,000 JPEG").title("CIFAR-10"), Copy().title("CIFAR-10")
        ('CIFAR-10 (121 of 60,000 JPEG)', 'CIFAR-10')
        """
        return f"{title} ({self.words})" if self.words else title


def copy_of(
    layout: Layout,
    *,
    lossless: bool,
    splits: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
    part: bool,
) -> Copy:
    """Compare a copy with what the set is: ``lossless`` or not, and ``counts`` of images.

    "sample" where only ``sample*.parquet`` is there; "part" where images are missing, looked for
    only where the user allows a ``part``; then what lossy encodings did to ``lossless`` originals:
    "jpeg" if to all images, "jpeg121" if to so many.
    """
    if is_sample(layout):
        return Copy("sample", "sample")
    found = [Copy("part", words)] if part and (words := _fewer(layout, splits, counts)) else []
    found += _lossy(layout) if lossless else ()
    return Copy("-".join(c.variant for c in found), "; ".join(c.words for c in found))


def is_sample(layout: Layout) -> bool:
    """Whether only ``sample*.parquet`` is there."""
    files = parquet_files(layout.folder)
    return bool(files) and all(path.name.startswith("sample") for path in files)


def _fewer(layout: Layout, splits: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> str:
    """Say how many images of a split there are where those are not all."""
    said = []
    for split, complete in counts.items():
        here = count(layout, splits[split]) if complete else 0
        if here < complete:
            said.append(f"{here:,} of {complete:,}{'' if split == 'train' else f' {split}'}")
    return ", ".join(said)


def count(layout: Layout, names: Sequence[str]) -> int:
    """Number of images of the first split of ``names`` that is there."""
    if isinstance(layout, Parquet):
        return layout.count(names)
    return len(layout.read(names).labels)


def labels_of(layout: Layout, names: Sequence[str]) -> Pixels | Encoded:
    """The first split of ``names`` that is there, where it is cheaper without its images."""
    return layout.labels(names) if isinstance(layout, Parquet) else layout.read(names)


@cache  # 60,000 images: 0.1 s of parquet, 0.5 s of single files
def _lossy(layout: Layout) -> list[Copy]:
    """The lossy encodings that occur, each with its number of images."""
    found = Counter(map(loss, layout.heads()))
    total = found.total()
    return [
        Copy(word, title)
        if found[title] == total
        else Copy(f"{word}{found[title]}", f"{found[title]:,} of {total:,} {title}")
        for word, title in (("jpeg", JPEG), ("webp", WEBP))
        if found[title]
    ]


def missing(set_id: str, root: str | Path) -> UserError:
    """Say that a set is not there, how to get it and what is accepted."""
    accepted = "\n".join(f"  - {kind.kind}" for kind in LAYOUTS)
    return UserError(
        f"data={set_id}: no images in an accepted layout under {resolve_root(root)}\n"
        "Download them, or check a copy of yours, with\n"
        f"  python reproduce/prepare.py data={set_id} data.root={root}\n"
        f"Accepted layouts, in that folder or one below:\n{accepted}"
    )
