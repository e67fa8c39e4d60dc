"""A user's own file of published numbers: fills, for one command, what a table file has not.

Whoever has the paper at hand need not edit conf/: the numbers count as published, and a row's
bit-widths, layer by layer, let its costs be computed without a run.
"""

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from quantable.base.errors import UserError, unknown
from quantable.columns import COLUMNS
from quantable.config.widths import planned_bits
from quantable.networks.layers import in_order
from quantable.tables.cells import Asked
from quantable.tables.schema import Published, Row, Table, Width, table_names

M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class File(_Strict):
    """The file: one table, and by row and column its numbers."""

    table: str
    rows: dict[str, dict[str, Any]]


class Number(_Strict):
    """A number as it stands in the paper, in the column's unit, and where it stands."""

    value: float = Field(strict=True, allow_inf_nan=False)
    unit: str = Field(coerce_numbers_to_str=True)  # 1 without quotes is a number to YAML
    source: str = Field(min_length=1)


class Widths(_Strict):
    """A row's bit-widths in execution order, weights and activations alike."""

    bits: tuple[Width, ...]


def fill(tables: Sequence[Table], path: Path) -> list[Table]:
    """Return ``tables``, the one that the file at ``path`` names filled with its numbers.

    Every mistake in the file is a ``UserError`` that names the file and the place in it.
    """
    file = _checked(File, _read(path), path, "")
    if file.table not in table_names():
        raise unknown("table", file.table, table_names(), f"{path}: table")
    asked = [table.id for table in tables]
    if file.table not in asked:
        raise UserError(
            f"{path}: table: '{file.table}' is not asked for; the command asks for "
            f"{', '.join(asked)}"
        )
    return [_filled(t, file, path) if t.id == file.table else t for t in tables]


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"published={path}: {error.strerror}: {path.absolute()}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"published={path}: not readable as YAML: {error}") from error


def _filled(table: Table, file: File, path: Path) -> Table:
    rows = dict(table.rows)
    for name, given in file.rows.items():
        if name not in rows:
            raise unknown("row", name, rows, f"{path}: rows")
        rows[name] = _row(table, name, given, path)
    return table.model_copy(update={"rows": rows})


def _row(table: Table, name: str, given: dict[str, Any], path: Path) -> Row:
    row, place = table.rows[name], f"rows.{name}"
    published, bits = dict(row.published), row.bits
    for column, content in given.items():
        if column == "bits":
            bits = _checked(Widths, {"bits": content}, path, place).bits
            _check_bits(table, name, bits, f"{path}: {place}.bits")
        elif column in table.columns:
            number = _checked(Number, content, path, f"{place}.{column}")
            published[column] = _number(
                number, column, row.published.get(column), f"{path}: {place}.{column}"
            )
        else:
            raise unknown("column", column, [*table.columns, "bits"], f"{path}: {place}")
    return row.model_copy(update={"published": published, "bits": bits})


def _number(number: Number, column: str, there: Published | None, where: str) -> Published:
    """Accept a number in the column's unit that agrees with the one that is there, if any."""
    unit = COLUMNS[column].unit
    if number.unit != unit:
        raise UserError(f"{where}.unit: '{number.unit}' is not the column's unit, '{unit}'")
    if there is None or not there.counts:  # a hint gives way to the paper
        return Published(value=number.value, source=number.source, confidence="published")
    if number.value != there.value:
        raise UserError(
            f"{where}.value: {number.value} {unit} contradicts the table's {there.value} "
            f"{unit} ({there.confidence}: {there.source}); a file fills only what is missing"
        )
    return there


def _check_bits(table: Table, name: str, bits: tuple[int, ...], where: str) -> None:
    """Refuse bit-widths for a row that has its own, and too many or too few of them."""
    asked = Asked()
    cell = asked.cell(table, name, "paper", table.seeds[0])
    shapes = asked.shapes(cell.config)
    if shapes is None:  # a network whose layers are not known before its first run
        return
    if table.rows[name].cost_bits is not None or planned_bits(cell.config, shapes) is not None:
        raise UserError(f"{where}: the row's own config fixes its bit-widths already")
    in_order(shapes, bits, where)


def _checked(model: type[M], content: object, path: Path, place: str) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = [_worded(model, fault, path, place) for fault in error.errors()]
        raise UserError("\n".join(faults)) from error


def _worded(model: type[BaseModel], fault: ErrorDetails, path: Path, place: str) -> str:
    """Word one finding of pydantic: file, place, what came, what is allowed."""
    parts = [str(part) for part in fault["loc"]]
    keys = ", ".join(model.model_fields)
    if fault["type"] == "extra_forbidden":
        where = f"{path}: {place}" if place else str(path)
        return str(unknown("key", parts[-1], model.model_fields, where))
    where = f"{path}: {'.'.join([place, *parts] if place else parts) or 'the file'}"
    if fault["type"] == "missing":
        return f"{where}: missing; needed are {keys}"
    if fault["type"] in ("model_type", "dict_type") and not parts:
        return f"{where}: {short(fault['input'])} is no mapping; needed are {keys}"
    return f"{where}: {short(fault['input'])}: {fault['msg']}"
