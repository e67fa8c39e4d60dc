"""Which images lie under a folder: found by looking, without torch and without reading them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.data.archives import CifarPickles, Idx
from quantable.data.folders import ClassFolders, TinyFolders, subfolders
from quantable.data.parquet import Parquet
from quantable.data.rows import Encoded, Pixels

JPEG_MAGIC = b"\xff\xd8"


class Layout(Protocol):
    """One way to keep an image set in a folder."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    def first(self) -> bytes:
        """First bytes of its first image; none where the images are plain arrays."""

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


def find_layout(root: str | Path) -> Layout | None:
    """The layout under ``root`` or one folder below it, else None."""
    folder = resolve_root(root)
    for candidate in (folder, *subfolders(folder)):
        for kind in LAYOUTS:
            if layout := kind.at(candidate):
                return layout
    return None


def set_present(root: str | Path) -> bool:
    """Whether images in an accepted layout lie under ``root``."""
    return find_layout(root) is not None


def probe_variant(root: str | Path, lossless: bool = True) -> str | None:
    """Variant of the set under ``root``, from the first image's first bytes; None without a set.

    "jpeg" for JPEG copies of a set whose originals are ``lossless`` (the set's key of that name);
    "sample" where only ``sample*.parquet`` is there; else "".
    """
    layout = find_layout(root)
    return None if layout is None else variant_of(layout, lossless=lossless)


def variant_of(layout: Layout, *, lossless: bool) -> str:
    """Variant of a set that was found."""
    if all(path.name.startswith("sample") for path in layout.folder.glob("*.parquet")) and any(
        layout.folder.glob("sample*.parquet")
    ):
        return "sample"
    return "jpeg" if lossless and layout.first().startswith(JPEG_MAGIC) else ""


def full_title(title: str, variant: str) -> str:
    """Title with the variant that every number from the set must name.

    >>> full_title("CIFAR-10", "jpeg"), full_title("CIFAR-10", "")
    ('CIFAR-10 (JPEG)', 'CIFAR-10')
    """
    return f"{title} ({ {'jpeg': 'JPEG'}.get(variant, variant) })" if variant else title


def missing(set_id: str, root: str | Path) -> UserError:
    """Say that a set is not there, how to get it and what is accepted."""
    accepted = "\n".join(f"  - {kind.kind}" for kind in LAYOUTS)
    return UserError(
        f"data={set_id}: no images in an accepted layout under {resolve_root(root)}\n"
        "Download them, or check a copy of yours, with\n"
        f"  python reproduce/prepare.py data={set_id} data.root={root}\n"
        f"Accepted layouts, in that folder or one below:\n{accepted}"
    )
