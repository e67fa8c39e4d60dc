"""Sweeps: one table of all jobs, wherever they ran, and the number that a sweeper gets."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import pytest
from hand_records import record_of

from quantable.base.errors import UserError
from quantable.cli import report_jobs, report_main, run_main, sweep_main, work_of
from quantable.report.objective import names_of, values
from quantable.report.reporter import Reporter
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.words import asked_of, jobs_of, parse, parse_sweep, split, sweep_words

ROOT = Path(__file__).parents[1]
SWEEP = ["quantizer=lsq,minmax", "bits.inner=[4,4],[2,2]", "seed=0,1", "budget=smoke"]
NAMES = [
    f"quantizer={quantizer}, bits.inner={bits}"
    for quantizer in ("lsq", "minmax")
    for bits in ("[4,4]", "[2,2]")
]
FEW = ["data.train_images=128", "data.val_images=64", "data.test_images=64", "recipe.epochs=1"]
TINY = [*FEW, "budget=smoke", "trainer.accelerator=cpu"]


def kept(store: Path, *words: str) -> dict[tuple[str, int], Record]:
    """A made-up record of every run of a sweep, by row and seed: top-1 is 60 + its number."""
    found = {}
    (work,) = work_of(parse_sweep([*words, f"store={store}"]))
    for i, cell in enumerate(work.cells):
        width = cell.config["bits"]["inner"][0]
        record = record_of(cell, (width, [(50.0 + i, 60.0 + i)]))
        record.provenance.command = cell.command
        Store(store).add(record)
        found[cell.row, cell.seed] = record
    return found


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    report_main(words)
    return capsys.readouterr().out


# A sweep is a table


def test_a_row_is_a_combination_of_the_words_that_differ_and_seeds_are_its_n(tmp_path, capsys):
    records = kept(tmp_path, *SWEEP)
    assert len(records) == 8
    report = json.loads(printed(capsys, f"sweep={tmp_path}", "format=json"))
    assert list(report["words"]) == sorted(NAMES, key=list(report["words"]).index)
    assert sorted(report["words"]) == sorted(NAMES)
    assert report["words"][NAMES[1]] == {"quantizer": "lsq", "bits.inner": "[2,2]"}
    columns = dict.fromkeys(entry["column"] for entry in report["rows"])
    assert list(columns) == [
        *("top1_pct", "val_top1_pct", "mean_bits", "bops_m", "weights_kb", "energy_uj")
    ]
    for name in NAMES:
        of_row = {e["column"]: e["measured"] for e in report["rows"] if e["row"] == name}
        top1 = [records[name, seed].history[-1].test_top1_pct for seed in (0, 1)]
        assert of_row["top1_pct"]["mean"] == mean(top1)
        assert of_row["top1_pct"]["std"] == stdev(top1)
        assert of_row["top1_pct"]["n"] == 2
        assert of_row["bops_m"]["n"] == 1  # arithmetic has no seeds


def test_the_sweep_itself_and_its_store_give_the_same_rows(tmp_path, capsys) -> None:
    kept(tmp_path, *SWEEP)
    assert sweep_main([*SWEEP, f"store={tmp_path}"]) == 0  # all are done: it reports
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "(n=2)" in line]
    assert len(lines) == 4
    again = printed(capsys, f"sweep={tmp_path}", "sort=top1_pct")
    assert sorted(lines) == sorted(line for line in again.splitlines() if "(n=2)" in line)


def test_no_run_overwrites_the_report_of_another(tmp_path) -> None:
    kept(tmp_path, *SWEEP)
    sweep_main([*SWEEP, f"store={tmp_path}"])
    for words in (["quantizer=lsq", "seed=0"], ["quantizer=lsq", "seed=1"], ["quantizer=minmax"]):
        run_main([*words, "bits.inner=[4,4]", "budget=smoke", f"store={tmp_path}"])
    names = sorted(path.name for path in (tmp_path / "reports").iterdir())
    assert len(names) == 4
    assert [name.partition("-")[0] for name in names] == ["single"] * 3 + ["sweep"]
    signatures = {record.signature for record in Store(tmp_path).records()}
    assert {name[7:19] for name in names[:3]} <= signatures


def test_with_a_table_all_of_its_cells_are_reported_once(tmp_path, capsys) -> None:
    words = ["+table=ad_quickstart", "rows=bits4,bits2", "seed=0,1", "budget=smoke"]
    kept(tmp_path, *words)
    for jobs in (split(words), split([*words[1:], words[0]])):
        report_jobs([[*job, f"store={tmp_path}"] for job in jobs])
        out = capsys.readouterr().out
        assert out.count("ad_quickstart:") == 1
        assert len([line for line in out.splitlines() if "(n=2)" in line]) == 2
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["ad_quickstart.md"]


def test_words_beside_a_table_give_it_a_report_for_each_value(tmp_path) -> None:
    words = ["+table=ad_quickstart", "rows=bits4", "recipe.epochs=1,2", "budget=smoke", "seed=0"]
    works = work_of(parse_sweep(words))
    assert [work.table.id for work in works] == [f"ad_quickstart recipe.epochs={n}" for n in (1, 2)]
    assert {cell.table for work in works for cell in work.cells} == {"ad_quickstart"}
    plain = work_of(parse([*words[:2], "recipe.epochs=2", *words[3:]]))
    assert works[1].cells[0].signature == plain[0].cells[0].signature


def test_a_budget_may_differ_too(tmp_path, capsys) -> None:
    kept(tmp_path, "quantizer=lsq", "bits.inner=[4,4]", "budget=cpu,smoke")
    report = json.loads(printed(capsys, f"sweep={tmp_path}", "format=json"))
    budgets = {e["row"]: e["measured"]["budget"] for e in report["rows"] if "top1" in e["column"]}
    assert budgets == {"budget=cpu": "cpu", "budget=smoke": "smoke"}


def test_a_word_left_out_has_the_value_that_it_has_without(tmp_path, capsys) -> None:
    """One run says recipe.epochs, another leaves it out; a third chooses another method."""
    for words in (["recipe.epochs=1"], [], ["quantizer=lsq"]):
        kept(tmp_path, *words, "bits.inner=[4,4]", "budget=smoke")
    report = json.loads(printed(capsys, f"sweep={tmp_path}", "format=json"))
    assert list(report["words"].values()) == [
        said for said in report["words"].values() if set(said) <= {"recipe.epochs", "quantizer"}
    ]
    assert {said["quantizer"] for said in report["words"].values()} == {"none", "lsq"}


def test_several_stores_and_only_some_of_their_runs(tmp_path, capsys) -> None:
    kept(tmp_path / "all" / "a", "quantizer=lsq", *SWEEP[1:])
    kept(tmp_path / "all" / "b", "quantizer=minmax", *SWEEP[1:])
    both = f"{tmp_path / 'all' / 'a'},{tmp_path / 'all' / 'b'}"
    for place in (both, str(tmp_path / "all")):
        report = json.loads(printed(capsys, f"sweep={place}", "format=json"))
        assert sorted(report["words"]) == sorted(NAMES)
    words = ["quantizer=lsq", "seed=1"]
    report = json.loads(printed(capsys, f"sweep={both}", *words, "format=json"))
    assert sorted(report["words"]) == ["bits.inner=[2,2]", "bits.inner=[4,4]"]
    assert {e["measured"]["n"] for e in report["rows"]} == {1}
    with pytest.raises(UserError, match="no record that was made without a table fits"):
        report_main([f"sweep={both}", "quantizer=pact"])
    with pytest.raises(UserError, match="no folder 'records' is in or below it"):
        report_main([f"sweep={tmp_path / 'none'}"])


def test_what_answers_an_older_question_is_named(tmp_path, capsys) -> None:
    records = kept(tmp_path, *SWEEP)
    old = records[NAMES[0], 0]
    (tmp_path / "records" / f"{old.name}.json").unlink()
    Store(tmp_path).add(old.model_copy(update={"signature": "0" * 12}))
    report = json.loads(printed(capsys, f"sweep={tmp_path}", "format=json"))
    assert any("older question" in note and "0" * 12 in note for note in report["notes"])
    found = {e["row"]: e["measured"]["n"] for e in report["rows"] if e["column"] == "top1_pct"}
    assert found[NAMES[0]] == 1


@pytest.mark.parametrize("by", ["top1_pct", "-top1_pct", "bops_m", "-bops_m", "-quantizer", "lr"])
def test_rows_are_sorted_by_any_column_or_word(tmp_path, capsys, by: str) -> None:
    by = by.replace("lr", "recipe.optimizer.lr")
    kept(tmp_path, *SWEEP, "recipe.optimizer.lr=0.1,1e-3,0.02")
    out = printed(capsys, f"sweep={tmp_path}", f"sort={by}", "format=csv")
    lines, name = list(csv.DictReader(io.StringIO(out))), by.removeprefix("-")
    if name in lines[0]:
        found = [line[name] for line in lines]
        order = sorted(found, key=float if "lr" in name else str, reverse=by != name)
    else:
        found = [line["measured_mean"] for line in lines if line["column"] == name]
        order = sorted(found, key=float, reverse=by != name)
    assert len(set(found)) > 1
    assert found == order


def test_what_no_row_has_cannot_sort(tmp_path) -> None:
    kept(tmp_path, *SWEEP)
    with pytest.raises(UserError, match=r"sort: unknown column 'top_pct'. Nearest: top1_pct"):
        report_main([f"sweep={tmp_path}", "sort=top_pct"])


def test_every_format_has_the_rows_and_html_the_frontier(tmp_path, capsys) -> None:
    kept(tmp_path, *SWEEP)
    (page,) = printed(capsys, f"sweep={tmp_path}", "format=html").split()
    text = Path(page).read_text()
    assert "against BOPs" in text
    assert text.count("[2,2]</td>") == 2
    for form in ("markdown", "latex"):
        assert printed(capsys, f"sweep={tmp_path}", f"format={form}").count("minmax") >= 2


def test_a_command_of_a_record_runs_its_cell_again(tmp_path) -> None:
    for record in kept(tmp_path, *SWEEP, "recipe.epochs=1,2").values():
        words = shlex.split(record.provenance.command)[2:]
        (work,) = work_of(parse(words))
        assert [cell.signature for cell in work.cells] == [record.signature]


# What is split into jobs, and how


def test_lists_places_and_ranges() -> None:
    words = ["store=a,b/c(1)", "data.root=/x", "bits.inner=[4,4],[2,2]", "seed=range(0,2)"]
    assert split(words) == [
        ["store=a,b/c(1)", "data.root=/x", f"bits.inner={bits}", f"seed={seed}"]
        for bits in ("[4,4]", "[2,2]")
        for seed in (0, 1)
    ]
    with pytest.raises(UserError, match=r"names no values to go through.*hydra/sweeper=optuna"):
        split(["recipe.optimizer.lr=interval(0.1,1)"])


def test_jobs_that_hydra_launches_are_told_what_they_are_called_by(tmp_path) -> None:
    words = ["-m", *SWEEP, f"store={tmp_path}", "hydra/launcher=joblib"]
    told, folder = sweep_words(words)
    assert told[: len(words)] == words
    assert told[len(words)] == "named_by=[quantizer,bits.inner]"
    assert folder is not None
    assert folder.parent == tmp_path / "multirun"
    assert len(jobs_of(words, folder)) == 8
    job = ["quantizer=lsq", "bits.inner=[4,4]", "+named_by=[quantizer,bits.inner]", "seed=1"]
    ((table, asked),) = asked_of(parse(job))
    assert list(table.rows) == ["quantizer=lsq, bits.inner=[4,4]"]
    assert asked.cells(table)[0].table == "single"


# The number that a sweeper gets


def test_the_objective_is_of_held_out_images_unless_it_says_test(tmp_path) -> None:
    ((_, record),) = kept(tmp_path, "quantizer=lsq", "bits.inner=[4,4]", "budget=smoke").items()
    (work,) = work_of(parse(["quantizer=lsq", "bits.inner=[4,4]", "budget=smoke"]))
    config = work.cells[0].config
    about = Reporter(work.table, work.asked, [Store(tmp_path)])
    assert names_of(config) == ["val_top1_pct"]
    assert values(about, ["val_top1_pct"]) == [record.history[-1].val_top1_pct]
    assert values(about, ["test_top1_pct"]) == [record.history[-1].test_top1_pct]
    (bops,) = values(about, ["bops_m"])
    macs_m = 9.34592  # of ResNet-8 with a convolution in two shortcuts
    assert bops == pytest.approx(macs_m * 4 * 4)
    with pytest.raises(UserError, match="this is the accuracy on test images"):
        names_of({**config, "objective": "top1_pct"})
    with pytest.raises(UserError, match="no images are held out"):
        names_of({**config, "data": config["data"] | {"val_images": 0}})
    with pytest.raises(UserError, match=r"unknown objective 'val_top1'. Nearest: val_top1_pct"):
        names_of({**config, "objective": ["bops_m", "val_top1"]})


def test_a_choice_by_test_images_is_marked_wherever_its_runs_are_shown(tmp_path, capsys) -> None:
    words = ["bits.inner=[4,4]", "budget=smoke", "quantizer=lsq,minmax"]
    plain = kept(tmp_path / "plain", *words)
    marked = kept(tmp_path / "marked", *words, "objective=test_top1_pct")
    assert [r.signature for r in plain.values()] == [r.signature for r in marked.values()]
    assert "Chosen by test images" not in printed(capsys, f"sweep={tmp_path / 'plain'}")
    assert "Chosen by test images" in printed(capsys, f"sweep={tmp_path / 'marked'}")


def test_optuna_is_told_which_way_is_better() -> None:
    words = ["-m", "hydra/sweeper=optuna", "recipe.optimizer.lr=interval(0.1,1)"]
    assert "hydra.sweeper.direction=maximize" in sweep_words(words)[0]
    both = [*words, "objective=[val_top1_pct,bops_m]"]
    assert "hydra.sweeper.direction=[maximize,minimize]" in sweep_words(both)[0]
    with pytest.raises(UserError, match="better is to maximize; leave the word out"):
        sweep_words([*words, "hydra.sweeper.direction=minimize"])


def run_py(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "reproduce/run.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def rows_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("│")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["joblib"], ["submitit_local"]], ids=str)
def test_every_launcher_ends_in_the_same_table(tmp_path, launcher: Sequence[str]) -> None:
    words = ["-m", *SWEEP[:3], *TINY, f"store={tmp_path / 'runs'}"]
    done = run_py(*words, *(f"hydra/launcher={name}" for name in launcher), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(done.stdout)) == 4
    assert all("(n=2)" in row for row in rows_of(done.stdout))
    records = Store(tmp_path / "runs").records()
    assert {record.row for record in records} == set(NAMES)
    assert [path.suffix for path in (tmp_path / "runs/reports").iterdir()] == [".md"]


@pytest.mark.slow
def test_optuna_finds_the_better_of_two_learning_rates(tmp_path) -> None:
    rates = ["recipe.optimizer.lr=0.003,1e-9", "hydra.sweeper.n_trials=3"]
    words = ["-m", "hydra/sweeper=optuna", *rates, "hydra.sweeper.sampler.seed=0", *TINY[:3]]
    words += ["recipe.epochs=3", *TINY[4:], f"store={tmp_path / 'runs'}"]
    done = run_py(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = (tmp_path / "sweep/optimization_results.yaml").read_text()
    assert "recipe.optimizer.lr: 0.003" in best
    assert len(rows_of(done.stdout)) == 2  # the third trial repeats one of them


@pytest.mark.slow
def test_optuna_with_two_objectives_ends_in_a_frontier(tmp_path, capsys) -> None:
    store = tmp_path / "runs"
    words = ["-m", "hydra/sweeper=optuna", "quantizer=lsq", "bits.inner=[2,2],[4,4],[8,8]"]
    words += ["objective=[val_top1_pct,bops_m]", "hydra.sweeper.n_trials=3", *TINY]
    words += ["hydra.sweeper.sampler.seed=0", f"store={store}"]
    done = run_py(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "solutions" in (tmp_path / "sweep/optimization_results.yaml").read_text()
    (page,) = printed(capsys, f"sweep={store}", "format=html").split()
    assert "against BOPs" in Path(page).read_text()
