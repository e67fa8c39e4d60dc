"""Each kind of claim measures what its words say: numbers by hand."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

import pytest
from pydantic import TypeAdapter

from quantable.base.places import ROOT
from quantable.tables.claims import KINDS, Claim
from quantable.tables.schema import load_table, table_names

READER: TypeAdapter[Any] = TypeAdapter(Claim)
KNOWN: dict[tuple[str, str], dict[int, float]] = {
    ("a", "top1_pct"): {0: 80.0, 1: 82.0, 2: 84.0},
    ("b", "top1_pct"): {0: 81.0, 2: 88.0},
    ("c", "top1_pct"): {0: 86.0, 1: 86.0},
    ("a", "energy_uj"): {0: 40.0, 1: 0.0, 2: 21.0},
}


class Hand:
    """Numbers by hand."""

    def by_seed(self, row: str, column: str) -> Mapping[int, float]:
        return KNOWN.get((row, column), {})

    def mean(self, row: str, column: str) -> float | None:
        numbers = self.by_seed(row, column)
        return mean(numbers.values()) if numbers else None

    def impossible(self, row: str) -> bool:
        return row.startswith("infeasible")


def claim(**own: Any) -> Any:
    said = {"text": "so", "source": "here", "value": None, "unit": "1", "column": "top1_pct"}
    return READER.validate_python(said | {"rows": ["a"], "report_only": "an example"} | own)


@pytest.mark.parametrize(
    ("own", "number", "reference"),
    [
        ({"kind": "value"}, {0: 80, 1: 82, 2: 84}, None),
        ({"kind": "largest"}, {0: 80, 1: 82, 2: 84}, None),
        ({"kind": "smallest", "rows": ["a", "b"]}, {0: 80, 1: 82, 2: 84}, None),
        ({"kind": "smallest", "rows": ["a", "none"]}, {}, None),  # the smallest of some only
        ({"kind": "spread", "rows": ["a", "b", "c"]}, {0: 6}, None),  # seed 0 alone has all three
        ({"kind": "spread", "rows": ["a", "b"]}, {0: 1, 2: 4}, None),
        ({"kind": "spread", "rows": ["a", "none"]}, {}, None),
        ({"kind": "fall", "rows": ["a", "b"], "feasible": 2}, {0: -1, 2: -4}, None),
        ({"kind": "fall", "rows": ["c", "a", "infeasible", "b"], "feasible": 3}, {0: 6}, None),
        ({"kind": "fall", "rows": ["a", "b", "none"], "feasible": 2}, {}, None),  # one is to come
        ({"kind": "differ", "rows": ["a", "b"], "values": [80, 81]}, {0: 0, 2: 2}, None),
        ({"kind": "differ", "values": [81], "within": 1.0}, {0: 0, 1: 0, 2: 1}, None),
        ({"kind": "differ", "rows": ["a", "none"], "values": [80, 81]}, {}, None),
        ({"kind": "tested", "tests": ["tests/a.py::test_a"]}, {}, None),
        ({"kind": "drop", "reference": "b"}, {0: 1, 2: 4}, "b"),
        ({"kind": "drop", "reference": "none"}, {}, "none"),
        ({"kind": "behind", "others": ["b", "c"]}, {0: 6, 1: 4}, "c"),  # means 84.5 and 86
        ({"kind": "behind", "others": ["b", "none"]}, {}, "b"),  # the best of some only
        ({"kind": "times", "reference": "c"}, {0: 80 / 86, 1: 82 / 86}, "c"),
        ({"kind": "over", "over": "energy_uj"}, {0: 2, 2: 4}, None),  # nothing over 0
    ],
)
def test_the_number_of_a_kind(
    own: dict[str, Any], number: dict[int, float], reference: str | None
) -> None:
    made = claim(**own)
    assert made.measured("a", Hand()) == number
    assert made.reference_of(Hand()) == reference


def test_a_claim_rests_on_its_last_row_and_largest_on_the_largest() -> None:
    means = {"a": 80.0, "b": 85.0, "c": 82.0}
    assert claim(kind="value").shown(means) == "c"
    assert claim(kind="largest").shown(means) == "b"
    assert claim(kind="smallest", rows=["a", "b", "c"]).shown(means) == "a"


def test_a_fall_over_too_few_feasible_rows_is_doubtful() -> None:
    rows = ["infeasible 1", "infeasible 2", "a", "b", "c"]
    assert claim(kind="fall", rows=rows, feasible=3).doubt(Hand()) is None
    said = claim(kind="fall", rows=rows, feasible=4).doubt(Hand())
    assert said == "3 of 5 rows are feasible, 4 are needed"


def test_every_kind_is_documented_in_its_own_words() -> None:
    words = {
        kind: (made.__doc__ or "").replace("``", "`").rstrip(".").lower()
        for kind, made in KINDS.items()
    }
    lines = (ROOT / "docs" / "add-a-table.md").read_text().splitlines()
    for kind, said in words.items():
        found = [line for line in lines if line.startswith(f"| `{kind}` |")]
        assert [line.lower() for line in found] == [f"| `{kind}` | {said.rstrip('.').lower()} |"]


def test_what_a_claim_is_tested_by_is_a_test() -> None:
    tables = (load_table(name) for name in table_names())
    claims = [c for table in tables for c in table.claims.values() if c.kind == "tested"]
    tests = {test for made in claims for test in made.tests}
    assert len(tests) >= 1
    for name in tests:
        path, _, function = name.partition("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text(), name
