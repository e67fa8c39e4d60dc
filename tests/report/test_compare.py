"""Compare: what changed between two stores or commits, and whether chance explains it."""

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest
from hand_records import hand_table, keep, record_of, reporter
from scipy import stats

from quantable.base.errors import UserError
from quantable.cli import report_main, run_main
from quantable.report.compare import FORMATS, Comparison, compare, judge
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import Table

OLD, NEW = (91.8, 92.0, 92.5), (93.0, 93.1, 93.4)


def small() -> Table:
    """A table of one trained row and one that costs it."""
    rows = {
        "float": {"label": "float", "overrides": ["quantizer=none"]},
        "bits16": {"label": "16 bit", "cell": "float", "cost_bits": 16},
    }
    columns = {"top1_pct": {"abs": 0.5}, "pim_ratio": None}
    return hand_table(rows=rows, columns=columns, claims={})


def fill(folder: Path, values: tuple[float, ...], finished: str = "2026-01-01") -> Path:
    """Put a float run for each value into a store."""
    about = reporter(folder, small())
    for seed, test in enumerate(values):
        record = record_of(about.cell("float", "paper", seed), (32, [(91.0, test)] * 5))
        record.provenance.finished = finished
        Store(folder).add(record)
    return folder


def compared(a: Path, b: Path, **asked: object) -> Comparison:
    return compare([small()], Asked(**asked), str(a), str(b))  # type: ignore[arg-type]


def test_a_difference_beyond_chance(tmp_path: Path) -> None:
    found = compared(fill(tmp_path / "a", OLD), fill(tmp_path / "b", NEW, "2026-02-02"))
    assert [(c.row, c.column) for c in found.changes] == [
        ("float", "top1_pct"),
        ("bits16", "top1_pct"),
    ]
    assert found.unchanged == 1  # the PIM ratio of the 16-bit row
    change = found.changes[0]
    assert change.difference == pytest.approx(sum(NEW) / 3 - sum(OLD) / 3)
    # Welch: t from the means and variances, its degrees of freedom by Satterthwaite
    va, vb = 0.13 / 3, (0.1667**2 + 0.0667**2 + 0.2333**2) / 2 / 3
    t = change.difference / (va + vb) ** 0.5
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    assert change.p == pytest.approx(2 * stats.t.sf(t, df), rel=1e-2)
    assert change.word == "differs"
    assert "n=3 and n=3" in change.statement
    assert any("2 t-tests" in note for note in found.notes)


def test_the_same_numbers_are_no_change(tmp_path: Path) -> None:
    found = compared(fill(tmp_path / "a", OLD), fill(tmp_path / "b", OLD, "2026-02-02"))
    assert (found.changes, found.unchanged) == ([], 3)


@pytest.mark.parametrize(
    ("a", "b", "word", "says"),
    [
        (OLD, (), "only in A", "only in A"),
        ((), OLD, "only in B", "only in B"),
        (OLD, NEW[:1], "cannot tell", "n=3 and n=1; both need at least 2 seeds"),
        ((92.0, 92.0), (93.0, 93.0), "cannot tell", "the seeds do not differ"),
        (OLD, (91.9, 92.1, 92.2), "no difference", "no significant difference: p = "),
    ],
    ids=["gone", "new", "one seed", "no spread", "chance"],
)
def test_what_can_be_said(
    tmp_path: Path, a: tuple[float, ...], b: tuple[float, ...], word: str, says: str
) -> None:
    for name in "ab":
        (tmp_path / name / "records").mkdir(parents=True)
    found = compared(fill(tmp_path / "a", a), fill(tmp_path / "b", b, "2026-02-02"))
    change = found.changes[0]
    assert change.word == word
    assert says in change.statement


def test_runs_in_both_forbid_the_test(tmp_path: Path) -> None:
    found = compared(fill(tmp_path / "a", OLD[:2]), fill(tmp_path / "b", OLD))
    assert found.changes[0].statement == "cannot tell: both contain the same runs, 2 (n=2 and n=3)"


def test_arithmetic_has_no_seeds() -> None:
    assert judge([1.0], [2.0], trained=False, shared=0).word == "arithmetic"


def test_a_run_of_an_older_question_is_found_by_its_row_and_seed(tmp_path: Path) -> None:
    old = fill(tmp_path / "a", OLD)
    for path in sorted((old / "records").glob("*.json")):
        content = json.loads(path.read_text())
        content["signature"] = content["signature"][::-1]
        path.with_name(f"{content['signature']}.json").write_text(json.dumps(content))
        path.unlink()
    found = compared(old, fill(tmp_path / "b", NEW, "2026-02-02"))
    assert found.changes[0].word == "differs"
    (note,) = (note for note in found.notes if "older question" in note)
    assert note.startswith("hand: runs of A that answer an older question")
    assert note.endswith(": 3.")


def test_the_largest_common_budget_is_compared(tmp_path: Path) -> None:
    a, b = fill(tmp_path / "a", OLD), fill(tmp_path / "b", ())
    for folder, test in ((a, 80.0), (b, 81.0)):
        keep(reporter(folder, small(), budget="cpu"), "float", 0, (32, [(91.0, test)] * 5))
    change = compared(a, b).changes[0]
    assert change.a is not None
    assert change.b is not None
    assert (change.a.mean, change.b.mean, change.a.budget) == (80.0, 81.0, "cpu")
    assert compared(a, b, budget="paper").changes[0].word == "only in A"


def test_every_face_says_it(tmp_path: Path) -> None:
    found = compared(fill(tmp_path / "a", OLD), fill(tmp_path / "b", NEW, "2026-02-02"))
    assert Comparison.model_validate_json(FORMATS["json"](found)) == found
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](found))))
    assert [line["word"] for line in lines] == ["differs", "differs"]
    assert float(lines[0]["b_mean"]) == pytest.approx(sum(NEW) / 3)
    for face in ("terminal", "markdown"):
        text = FORMATS[face](found)
        assert "92.10 ± 0.36 (n=3)" in text
        assert "+1.07" in text
        assert "differs: p = " in text
        assert "2 numbers changed, 1 did not" in text


def test_the_command_compares_the_evidence_of_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a repository of its own: one commit with ad_pim's evidence empty, and the next."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    records = tmp_path / "reproduce" / "evidence" / "records"
    records.mkdir(parents=True)
    (records / ".keep").touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr("quantable.report.compare.ROOT", tmp_path)
    words = ["+table=ad_pim", "rows=vgg19_16", "budget=paper"]
    assert report_main([f"compare=HEAD,{tmp_path / 'reproduce/evidence'}", *words]) == 0
    assert "0 numbers changed, 4 did not" in capsys.readouterr().out
    for wrong, message in [
        ("HEAD,nowhere", "'nowhere' is neither a store .* nor a commit"),
        (f"HEAD,{tmp_path}", "no store"),
        ("HEAD", "give two stores"),
        ("--output=x,HEAD", "neither a store"),
    ]:
        with pytest.raises(UserError, match=message):
            report_main([f"compare={wrong}", *words])
    with pytest.raises(UserError, match=r"unknown format 'latex'.*"):
        report_main(["compare=HEAD,HEAD", "format=latex", *words])
    with pytest.raises(UserError, match=r"belongs to reproduce/report\.py"):
        run_main(["compare=HEAD,HEAD", *words])
