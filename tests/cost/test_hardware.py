"""Hardware files: every shipped one loads and names its paper; every mistake has a message."""

import re
from pathlib import Path

import pytest
import yaml

from quantable.base.errors import UserError
from quantable.cost.energy import OpEnergy
from quantable.cost.hardware import load_hardware
from quantable.cost.pim import PimEnergy

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "conf/hardware").glob("*.yaml"))
NUMBER = "{value: 1.5, source: Table I, confidence: published}"
OP = f"""
kind: op_energy
paper: vasquez_2021
node_nm: 45
memory_pj_per_bit: {NUMBER}
mult_32bit_pj: {NUMBER}
add_pj: {NUMBER}
"""
PIM = f"kind: pim_energy\npaper: vasquez_2021\nmac_fj: {{2: {NUMBER}}}\n"


def test_discovery() -> None:
    assert len(FILES) == 2  # raise this by one with each file


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_names_a_known_paper(path: Path) -> None:
    load_hardware(path)
    paper = yaml.safe_load(path.read_text())["paper"]
    assert f"{{{paper}," in (ROOT / "docs/papers.bib").read_text()


def test_constants_of_the_ad_paper() -> None:
    assert load_hardware(ROOT / "conf/hardware/vasquez_45nm.yaml") == OpEnergy(2.5, 3.1, 0.1)
    table_iv = PimEnergy({2: 2.942, 4: 16.968, 8: 66.714, 16: 276.676})
    assert load_hardware(ROOT / "conf/hardware/vasquez_pim.yaml") == table_iv


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OP.replace("add_pj", "ad_pj"), "unknown key 'ad_pj'. Nearest: add_pj"),
        (OP.replace(f"add_pj: {NUMBER}\n", ""), "missing key 'add_pj'"),
        (OP + f"add_pj: {NUMBER}\n", "duplicate key add_pj"),
        (OP.replace("kind: op_energy", ""), "missing key 'kind'; it is one of op_energy"),
        (OP.replace("op_energy", "op_energie"), "unknown kind 'op_energie'. Nearest: op_energy"),
        (OP.replace("value: 1.5", "value: -1"), "memory_pj_per_bit: value=-1 is not a positive"),
        (OP.replace("value: 1.5", "value: true"), "value=True is not a positive number"),
        (OP.replace("value: 1.5", "value: .nan"), "value=nan is not a positive number"),
        (OP.replace("source: Table I", "source: ''"), "source='' does not say"),
        (OP.replace("published", "publishd"), "unknown confidence 'publishd'. Nearest: published"),
        (OP.replace(NUMBER, "1.5"), "memory_pj_per_bit: expected keys with values, found 1.5"),
        (PIM.replace("{2:", "{two:"), "'two' is no bit-width"),
        (PIM.replace(f"{{2: {NUMBER}}}", "{}"), "mac_fj: expected keys with values"),
        ("[1, 2]", "expected keys with values"),
        ("kind: [", "not readable as YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_hardware(path)
    assert str(path) in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "vasquez_pim.yaml").write_text(PIM)
    with pytest.raises(UserError, match=r"unknown hardware 'vasques_pim'\. Nearest: vasquez_pim"):
        load_hardware(tmp_path / "vasques_pim.yaml")
