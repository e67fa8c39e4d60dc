"""Columns lie in files that are found by themselves, and stand every method's records."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hand_records import LAYERS, keep, reporter

from quantable import columns
from quantable.base.errors import UserError
from quantable.columns import COLUMNS, together
from quantable.columns.edge import targets_kb
from quantable.columns.facts import Column, Facts
from quantable.networks.layers import LayerShape, uniform

HERE = Path(columns.__file__).parent
ENERGY = COLUMNS["energy_uj"]
FOREIGN = {"_target_": "mine.Wider", "target": 0.9, "weight_kb": "a word", "layers": {}}


def test_every_file_of_the_folder_brings_its_columns() -> None:
    files = {path.stem for path in HERE.glob("*.py")} - {"__init__", "facts"}
    own = {file: vars(sys.modules[f"quantable.columns.{file}"])["COLUMNS"] for file in files}
    assert sorted(COLUMNS) == sorted(name for found in own.values() for name in found)
    assert list(COLUMNS) == [name for file in sorted(own) for name in own[file]]
    for name in ("top1_pct", "energy_uj", "total_mb", "policy", "compute_of_4bit"):
        assert name in COLUMNS


def test_a_name_twice_names_both_files() -> None:
    def files() -> Iterator[tuple[str, Mapping[str, Column]]]:
        yield from (("energy", {"energy_uj": ENERGY}), ("mine", {"energy_uj": ENERGY}))

    with pytest.raises(UserError, match=r"'energy_uj' stands in columns/energy.py and .*/mine.py"):
        together(files())


def test_a_new_file_is_found_without_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from quantable.columns.facts import Column\n"
        "COLUMNS = {'answer': Column('answer', '1', 0, False, lambda facts: 42)}\n"
    )
    monkeypatch.setattr(columns, "__path__", [*columns.__path__, str(tmp_path)])
    found = together(columns.entries())
    monkeypatch.delitem(sys.modules, "quantable.columns.mine")
    assert {*found} - {*COLUMNS} == {"answer"}


def test_another_methods_keywords_are_no_columns_numbers(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "float", 0, (8, [(90.0, 89.0)] * 5))
    facts = about.row("float").facts[0]
    assert facts.shapes is not None
    assert [shape.name for shape in facts.shapes] == LAYERS
    foreign = record.model_copy(
        update={
            "config": {k: v for k, v in record.config.items() if "callback" not in k}
            | {f"quantizer.callback.{key}": value for key, value in FOREIGN.items()}
        }
    )
    known = Facts(facts.shapes, facts.bits, facts.hardware, foreign, record.phases[-1])
    values = {name: column.value(known) for name, column in COLUMNS.items()}
    assert targets_kb(foreign, facts.shapes) is None
    assert values["target_off_pct"] is None
    assert values["farther_off_pct"] is None
    assert values["top1_pct"] == 89.0


@pytest.mark.parametrize("count", [1, 2])
def test_a_network_without_inner_layers_has_its_costs(tmp_path: Path, count: int) -> None:
    about = reporter(tmp_path)
    layers = [LayerShape(f"l{i}", macs=8, weights=4, inputs=2) for i in range(count)]
    facts = Facts(layers, uniform(layers, 4), about.row("float").facts[0].hardware)
    values = {name: column.value(facts) for name, column in COLUMNS.items()}
    assert (values["compute_of_4bit"], values["bops_of_4bit"]) == (None, None)
    assert values["bops_g"] == count * 8 * 4 * 4 * 1e-9
