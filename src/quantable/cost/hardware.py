"""Measured constants of one chip, from ``conf/hardware/<name>.yaml``: the only reader of the files.

Each number stands there as ``{value, source, confidence}``; an unknown or missing key is an error.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from quantable.base.errors import UserError, unknown
from quantable.base.places import CONF
from quantable.cost.energy import OpEnergy
from quantable.cost.pim import PimEnergy, Rounding

CONFIDENCE = ("published", "proved", "derived", "recollected: high", "recollected: medium")


@dataclass(frozen=True)
class Hardware:
    """Constants the cost models use."""

    energy: OpEnergy
    pim: PimEnergy
    pim_rounding: Rounding


def hardware_of(config: Mapping[str, Any]) -> Hardware:
    """Load the constants that a run config names."""
    names = config["hardware"]
    return _hardware(names["energy"], names["pim"], names["pim_rounding"])


@cache  # a table asks for each of its rows
def _hardware(energy_name: str, pim_name: str, rounding: Rounding) -> Hardware:
    energy = load_hardware(CONF / "hardware" / f"{energy_name}.yaml")
    pim = load_hardware(CONF / "hardware" / f"{pim_name}.yaml")
    if not isinstance(energy, OpEnergy) or not isinstance(pim, PimEnergy):
        raise UserError(
            f"hardware.energy={energy_name}, hardware.pim={pim_name}: of the wrong kind; "
            "the first holds energies per operation, the second energies per PIM MAC"
        )
    return Hardware(energy, pim, rounding)


def load_hardware(path: Path) -> OpEnergy | PimEnergy:
    """Read one hardware file; its ``kind`` says which of the two it is.

    >>> load_hardware(Path("conf/hardware/vasquez_45nm.yaml"))
    OpEnergy(memory_pj_per_bit=2.5, mult_32bit_pj=3.1, add_pj=0.1)
    """
    entry = _read(path)
    where = str(path)
    if "kind" not in entry:
        raise UserError(f"{where}: missing key 'kind'; it is one of {', '.join(KINDS)}")
    kind = str(entry["kind"])
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, where)
    return KINDS[kind](entry, where)


def _op_energy(entry: Mapping[Any, Any], where: str) -> OpEnergy:
    numbers = ("memory_pj_per_bit", "mult_32bit_pj", "add_pj")
    _check_keys(entry, ("kind", "paper", "node_nm", *numbers), where)
    return OpEnergy(
        memory_pj_per_bit=_number(entry["memory_pj_per_bit"], f"{where}: memory_pj_per_bit"),
        mult_32bit_pj=_number(entry["mult_32bit_pj"], f"{where}: mult_32bit_pj"),
        add_pj=_number(entry["add_pj"], f"{where}: add_pj"),
    )


def _pim_energy(entry: Mapping[Any, Any], where: str) -> PimEnergy:
    _check_keys(entry, ("kind", "paper", "mac_fj"), where)
    mac_fj = _mapping(entry["mac_fj"], f"{where}: mac_fj")
    for width in mac_fj:
        if type(width) is not int or width < 1:
            raise UserError(f"{where}: mac_fj: '{width}' is no bit-width; write whole numbers")
    return PimEnergy(
        {width: _number(mac_fj[width], f"{where}: mac_fj.{width}") for width in mac_fj}
    )


KINDS: Mapping[str, Callable[[Mapping[Any, Any], str], OpEnergy | PimEnergy]] = {
    "op_energy": _op_energy,
    "pim_energy": _pim_energy,
}


def _read(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        known = [other.stem for other in path.parent.glob("*.yaml")]
        raise unknown("hardware", path.stem, known, str(path.parent))
    try:
        # OmegaConf rather than plain YAML: it refuses a key that stands twice.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    return _mapping(content, str(path))


def _mapping(content: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: expected keys with values, found {content!r}")
    return content


def _check_keys(entry: Mapping[Any, Any], required: Collection[str], where: str) -> None:
    for key in entry:
        if key not in required:
            raise unknown("key", str(key), required, where)
    for key in required:
        if key not in entry:
            raise UserError(f"{where}: missing key '{key}'")


def _number(content: object, where: str) -> float:
    """The value of a ``{value, source, confidence}`` entry."""
    entry = _mapping(content, where)
    _check_keys(entry, ("value", "source", "confidence"), where)
    if entry["confidence"] not in CONFIDENCE:
        raise unknown("confidence", str(entry["confidence"]), CONFIDENCE, where)
    if not isinstance(entry["source"], str) or not entry["source"].strip():
        raise UserError(
            f"{where}: source={entry['source']!r} does not say where the number is from"
        )
    value = entry["value"]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{where}: value={value!r} is not a positive number")
    return float(value)
