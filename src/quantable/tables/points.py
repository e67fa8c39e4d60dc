"""Published points: a network's accuracy and sizes at many budgets, one row of a table each.

A file of conf/points has the points of one table, series by series. Bit-widths by layer are not
among them, so the parts of a size stand as published, and only what follows from them is computed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from quantable.base.errors import UserError, unknown
from quantable.base.places import CONF
from quantable.base.strict import Strict

POINTS = CONF / "points"
TARGET = "target_bits"  # the column that names a point


class Series(Strict):
    """Points from one source. ``doubts``: by column, why no verdict may rest on its numbers."""

    label: str
    source: str
    doubts: dict[str, str] = Field(default_factory=dict)
    points: list[list[float | None]]


class Points(Strict):
    """The file: what each number of a point is, and the series by name.

    ``more`` are columns that are kept with the points and are no column of a table.
    """

    source: str
    columns: list[str]
    more: list[str]
    series: dict[str, Series]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        known = [TARGET, *self.columns, *self.more]
        for name, series in self.series.items():
            for column in series.doubts:
                if column not in self.columns:
                    raise unknown("column", column, self.columns, f"series.{name}.doubts")
            for i, point in enumerate(series.points):
                if len(point) != len(known):
                    raise ValueError(
                        f"series.{name}.points.{i}: {len(point)} numbers for the {len(known)} "
                        f"columns {', '.join(known)}"
                    )
        return self

    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of a table, as its file would have them; a point is named by series and target."""
        rows = {}
        for name, series in self.series.items():
            runs: dict[str, int] = {}
            for target, *numbers in series.points:
                at = f"{name}_{target:g}"
                runs[at] = runs.get(at, 0) + 1
                again = runs[at] > 1
                rows[f"{at}_run{runs[at]}" if again else at] = {
                    "label": f"{series.label}, target {target:g}" + f" (run {runs[at]})" * again,
                    "series": name,
                    "overrides": [],
                    "sizes": "published",
                    "train": False,
                    "reason": UNTRAINED,
                    "published": {
                        column: _published(number, series, column, self.source)
                        for column, number in zip(self.columns, numbers, strict=False)
                        if number is not None
                    },
                }
        return rows


UNTRAINED = (
    "trained by the authors, not here; as the bits by layer are not published, accuracy, "
    "activations and weights stand as published, and only totals are computed from them"
)


def _published(number: float, series: Series, column: str, source: str) -> Mapping[str, Any]:
    doubt = series.doubts.get(column)
    return {
        "value": number,
        "source": f"{source}: {series.source}",
        "confidence": "doubtful" if doubt else "published",
        "reason": doubt,
    }


def points_names() -> list[str]:
    """Names of all files of published points."""
    return sorted(path.stem for path in POINTS.glob("*.json"))


def read_points(name: str, where: str) -> Points:
    """Read and check ``conf/points/<name>.json``; ``where`` names it."""
    if name not in points_names():
        raise unknown("points", name, points_names(), where)
    path = POINTS / f"{name}.json"
    try:
        return Points.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            place = [str(part) for part in fault["loc"]]
            if fault["type"] == "extra_forbidden":
                *block, key = place
                fields = (Series if block else Points).model_fields
                faults.append(str(unknown("key", key, fields, _at(path, block))))
            else:
                message = fault["msg"].removeprefix("Value error, ")
                faults.append(f"{_at(path, place)}: {message}")
        raise UserError("\n".join(faults)) from error


def _at(path: Path, place: Sequence[str]) -> str:
    return ": ".join([str(path), ".".join(place)] if place else [str(path)])
