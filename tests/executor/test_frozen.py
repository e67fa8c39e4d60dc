"""Frozen cells: what they keep, and that nothing edited afterwards reaches them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.signature import flat
from quantable.executor import frozen
from quantable.executor.frozen import decided, freeze, frozen_path, keep_source, thaw
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import load_table

TABLE = load_table("ad_quickstart")


def cell_of(*words: str) -> Cell:
    return Asked(words, "smoke", ("bits4",), (3,)).cells(TABLE)[0]


def test_a_cell_comes_back_as_it_was_frozen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # Weight decay by bits has numbers as keys, which JSON would turn into words.
    cell = cell_of("recipe.weight_decay_by_bits={2: 2.5e-5, 4: 1e-4}", "trainer.accelerator=cpu")
    path = freeze(cell, "", store, "source/0", threads=2)
    assert path == frozen_path(store, cell.signature)
    again = thaw(path).cell
    assert again.signature == cell.signature
    assert again.config["recipe"]["weight_decay_by_bits"] == {2: 2.5e-5, 4: 1e-4}
    assert again.command == cell.command
    assert again.config["trainer"]["threads"] == 2  # its share of the machine
    assert again.config["store"] == str(tmp_path)
    assert again.origin is not None
    own = thaw(freeze(cell_of("trainer.threads=1"), "", store, "source/0", threads=2))
    assert own.config["trainer"]["threads"] == 1  # the user's word


def test_places_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=cifar10", "data.root=pictures", "model=timm", "model.net.name=resnet18"]
    words += ["model.net.weights=w.pt", "model.net.weights_sha256=0f"]
    config = frozen.absolute(compose_run(words), Store(tmp_path))
    root = str(frozen.ROOT / "pictures")
    assert config["data"]["root"] == root
    assert dict(flat(config["data"]["loader"]))["source.root"] == root
    assert config["model"]["net"]["weights"] == str(tmp_path / "w.pt")
    bundled = frozen.absolute(cell_of().config, Store(tmp_path))
    assert bundled["data"]["root"] == "src/quantable/data/fashion_mnist_mini"  # of the copy


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = freeze(cell_of(), "", Store(tmp_path), "source/0", threads=None)
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(UserError, match="its config was changed"):
        thaw(path)


def test_the_source_is_copied_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, conf, store = tmp_path / "p", tmp_path / "c", Store(tmp_path / "store")
    for folder in (package, conf):
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "__pycache__" / "x.pyc").touch()
        (folder / "a.txt").write_text("one")
    monkeypatch.setattr(frozen, "PACKAGE", package)
    monkeypatch.setattr(frozen, "CONF", conf)
    first = keep_source(store)
    assert keep_source(store) == first
    (conf / "a.txt").write_text("two")
    second = keep_source(store)
    assert second != first

    def files(source: str) -> dict[str, str]:
        top = store.folder / source
        paths = (path for path in top.rglob("*") if path.is_file())
        return {path.relative_to(top).as_posix(): path.read_text() for path in paths}

    assert files(first) == {"src/quantable/a.txt": "one", "conf/a.txt": "one"}
    assert files(second) == {"src/quantable/a.txt": "one", "conf/a.txt": "two"}


def test_a_worker_looks_everything_up_in_the_copy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    place = tmp_path / keep_source(store)
    code = (
        "import quantable.base.places as p, quantable.networks.shapes as s; "
        "print(p.ROOT, p.CONF, s.PACKAGED)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(place / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        str(place),
        str(place / "conf"),
        str(place / "src" / "quantable" / "networks" / "traced"),
    ], done.stderr


def test_a_frozen_cell_takes_the_bits_that_its_search_has_chosen(tmp_path: Path) -> None:
    from search.test_road import scored, selection  # the table and search of those tests

    store, table = Store(tmp_path), selection()
    asked = Asked(rows=("first_80",), seeds=(0,), stores=(store,))
    search, waiting = asked.cells(table)[2:]
    path = freeze(waiting, "", store, "source/0", threads=None)
    with pytest.raises(UserError, match="is not done"):
        decided(thaw(path).cell, store, "")
    store.add(scored(search, "layer3.0.conv2"))
    again, now = decided(thaw(path).cell, store, ""), asked.cells(table)[3]
    assert again.signature == now.signature
    assert again.bits == now.bits
    assert now.draft == waiting.signature  # by which a status finds what was submitted
