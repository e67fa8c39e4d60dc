"""Bits files: bit-widths of every layer of one network, as JSON, and where they come from.

Every search ends in one, published policies are kept as some (``conf/bits``), and
``bits.file=<path>`` hands one to a run, its costs and its report alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.base.files import write_json

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Spent(_Part):
    """A budget of the search, and how much of it the bit-widths need."""

    unit: str
    limit: float
    spent: float


class Choice(_Part):
    """How a search came to its bit-widths."""

    rule: str  # the metric
    run: str  # signature of the search, which its record describes
    start: str | None = None  # signature of the run whose network was searched; else first weights
    loss: dict[str, dict[str, float]]  # item -> "weight/activation" bits -> what the rule minimises
    budgets: dict[str, Spent]
    solver: str  # how it ended: Optimal only where that is proved
    objective: float
    bound: float | None = None  # no choice within the budgets has a smaller objective


class BitsFile(_Part):
    """One file; ``layers`` are ``[weight, activation]`` bits by the network's own layer names."""

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    network: str  # as ``network_name`` has it
    source: str
    layers: dict[str, tuple[int, int]] = Field(min_length=1)
    accumulator: int | None = None  # bits of every sum
    choice: Choice | None = None


def network_name(model: Mapping[str, Any]) -> str:
    """Name of the network of a ``model`` block; timm's without the tag, which names weights.

    >>> network_name({"name": "timm", "net": {"name": "resnet18.tv_in1k"}})
    'resnet18'
    """
    name: str = model["net"].get("name", model["name"])
    return name.partition(".")[0]


def read_bits(path: Path) -> BitsFile:
    """Read and check one bits file."""
    try:
        file = BitsFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"bits.file={path}: no such file") from None
    except OSError as error:
        raise UserError(f"bits.file={path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError("\n".join(_worded(path, fault) for fault in error.errors())) from error
    for name, (weight, act) in file.layers.items():
        try:
            Bits(weight, act)
        except UserError as error:
            raise UserError(f"{path}: layers.{name}: {error}") from error
    return file


def _worded(path: Path, fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return str(unknown("key", place, BitsFile.model_fields, str(path)))
    return f"{path}: {place or 'file'}: {fault['msg']}"


def check_network(file: BitsFile, path: Path, model: Mapping[str, Any]) -> None:
    """Raise where the file is of another network than a run's ``model`` block."""
    if file.network != network_name(model):
        raise UserError(
            f"{path}: its bit-widths are for network '{file.network}', "
            f"the run has '{network_name(model)}'"
        )


def check_layers(layers: Mapping[str, object], names: Sequence[str], where: str) -> None:
    """Raise unless ``layers`` names exactly the network's layers."""
    for name in layers:
        if name not in names:
            raise unknown("layer", name, names, where)
    if missing := [name for name in names if name not in layers]:
        raise UserError(
            f"{where}: {len(missing)} of {len(names)} layers are missing: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}"
        )


def write_bits(file: BitsFile, path: Path) -> None:
    """Write ``file`` by rename."""
    write_json(path, file.model_dump(mode="json", exclude_none=True))
