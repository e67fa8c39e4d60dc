"""A cell as it was when it was submitted: its resolved config, and the source that will run it.

``<store>/frozen/<name>.yaml`` has the config, ``<store>/source/<sha>`` a copy of src/quantable and
conf, shared by all cells with the same content: what is edited later changes no queued cell.
YAML, as configs have numbers as keys.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from quantable.base.errors import UserError
from quantable.base.places import CONF, ROOT
from quantable.config.files import absolute as absolute_files
from quantable.networks.shapes import PACKAGED, read_shapes, shape_key
from quantable.store.bits_file import write_bits
from quantable.store.provenance import checkout
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell

PACKAGE = Path(__file__).resolve().parents[1]


class Frozen(BaseModel):
    """One cell, complete.

    ``budgets``, ``layers``: of a cell whose bit-widths a search has yet to choose, what they may
    need, and the row's own bits by layer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    signature: str
    variant: str
    table: str | None
    row: str
    seed: int
    config: dict[str, Any]
    overrides: tuple[str, ...]
    search: str | None
    budgets: dict[str, float] | None
    layers: dict[str, Any] | None
    commit: str
    clean: bool
    source: str  # folder, relative to the store

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return cell_name(self.signature, self.variant)

    @property
    def cell(self) -> Cell:
        """The cell; it has the commit of when it was frozen."""
        return Cell(
            table=self.table,
            row=self.row,
            seed=self.seed,
            config=self.config,
            overrides=self.overrides,
            search=self.search,
            budgets=self.budgets,
            layers=self.layers,
            origin=(self.commit, self.clean),
        )


def freeze(cell: Cell, variant: str, store: Store, source: str, *, threads: int | None) -> Path:
    """Write a cell down; ``threads`` are its share of the machine where the user gives none."""
    config = absolute(cell.config, store)
    if config["trainer"]["threads"] is None:
        config["trainer"] = config["trainer"] | {"threads": threads}
    commit, clean = cell.origin or checkout()
    frozen = Frozen(
        signature=cell.signature,
        variant=variant,
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        config=config,
        overrides=cell.overrides,
        search=cell.search,
        budgets=None if cell.budgets is None else dict(cell.budgets),
        layers=None if cell.layers is None else dict(cell.layers),
        commit=commit,
        clean=clean,
        source=source,
    )
    path = frozen_path(store, frozen.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(yaml.dump(_plain(frozen.model_dump()), Dumper=_DUMPER, sort_keys=False))
    os.replace(temporary, path)
    if cell.bits is not None:
        write_bits(cell.bits, store.bits(cell.bits_name))
    return path


def frozen_path(store: Store, name: str) -> Path:
    """File of a frozen cell."""
    return store.folder / "frozen" / f"{name}.yaml"


def thaw(path: Path) -> Frozen:
    """Read a frozen cell."""
    frozen = Frozen.model_validate(yaml.load(path.read_bytes(), Loader=_LOADER))
    if frozen.cell.signature != frozen.signature:
        raise UserError(f"{path}: its config was changed; submit the cell again")
    return frozen


def decided(cell: Cell, store: Store, variant: str) -> Cell:
    """Give a cell that waited for a search the bit-widths that the search has chosen."""
    if cell.search is None:
        return cell
    record = store.find(cell.search, variant)
    key = shape_key(cell.config["model"], cell.config["data"]["input_size"])
    shapes = read_shapes(key, [PACKAGED, store.shapes])
    if record is None or shapes is None:
        raise UserError(f"{cell.row} seed {cell.seed}: its search {cell.search} is not done")
    return cell.decided(record, shapes)


def keep_source(store: Store) -> str:
    """Copy src/quantable and conf into the store, once for each content; its folder there."""
    files = sorted(_files())
    content = hashlib.sha256()
    for name, path in files:
        content.update(f"{name}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    source = f"source/{content.hexdigest()[:16]}"
    folder = store.folder / source
    if not folder.is_dir():
        temporary = folder.with_name(f".{uuid.uuid4().hex}")
        for name, path in files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        try:
            os.rename(temporary, folder)
        except OSError:  # another submitter was faster
            shutil.rmtree(temporary)
    return source


def _files() -> Iterator[tuple[str, Path]]:
    for top, place in ((PACKAGE, Path("src/quantable")), (CONF, Path("conf"))):
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in names:
                path = Path(folder, name)
                yield (place / path.relative_to(top)).as_posix(), path


def absolute(config: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Return ``config`` with places that hold anywhere; bundled images come with the source."""
    placed: dict[str, Any] = absolute_files(dict(config))
    placed["store"] = str(store.folder.resolve())
    data = dict(config["data"])
    root = (ROOT / Path(data["root"]).expanduser()).resolve()
    if not root.is_relative_to(PACKAGE):
        placed["data"] = _replaced(data, data["root"], str(root))
    return placed


def _replaced(node: Any, old: str, new: str) -> Any:  # noqa: ANN401
    """Replace ``old`` wherever it is the value of a key ``root``."""
    if not isinstance(node, dict):
        return node
    return {
        key: new if key == "root" and value == old else _replaced(value, old, new)
        for key, value in node.items()
    }


def _plain(node: Any) -> Any:  # noqa: ANN401
    """Tuples as lists: YAML has no other sequence."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
