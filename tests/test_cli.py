"""The two commands: what they refuse, what they print, and what they do not import."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_records import record_of
from PIL import Image

from quantable.base.errors import UserError
from quantable.cli import asked_tables, parse, report_main, run_main, status_of, work_of
from quantable.config.signature import portable
from quantable.executor.board import Board
from quantable.executor.status import Status, write_status
from quantable.report.schema import Report
from quantable.store.record import read_record
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table, table_names

ROOT = Path(__file__).parents[1]
QUICK = ["+table=ad_quickstart", "budget=smoke"]


def command(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"reproduce/{script}", *words], cwd=ROOT, capture_output=True, text=True
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def cifar10_words(root: Path) -> list[str]:
    """A run on a set of 12 images."""
    counts = ["data.counts.train=12", "data.counts.test=12", "data.val_images=2"]
    few = ["data.train_images=null", "data.test_images=null", "trainer.accelerator=cpu"]
    return [*QUICK, "rows=float", "data=cifar10", f"data.root={root}", *counts, *few]


def write_images(root: Path, damage: int | None = None) -> None:
    """Write twelve PNG images as parquet files; image ``damage`` of the training set ends early."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        rows = []
        for i, image in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            whole = file.getvalue()
            ends_early = (split, i) == ("train", damage)
            rows.append({"bytes": whole[:200] if ends_early else whole, "path": None})
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"img": pa.array(rows, image_type), "label": pa.array(np.arange(12) % 10)}
        pq.write_table(pa.table(columns), root / f"{split}-00000-of-00001.parquet")


# What is refused: exit status 2, one message, nothing written


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["+table=ad_cifar"], ["unknown table 'ad_cifar'. Nearest: ad_cifar10"]),
        ([*QUICK, "rows=bit4"], ["unknown row 'bit4'. Nearest: bits4"]),
        ([*QUICK, "recipe.epoch=3"], ["unknown key 'recipe.epoch'. Nearest: recipe.epochs"]),
        (
            [*QUICK, "model=resnet9_cifar"],
            ["unknown model 'resnet9_cifar'. Nearest: resnet8_cifar"],
        ),
        ([*QUICK, "bits.inner=[17,17]"], ["bits=17: a quantization grid has 1 to 16 bits"]),
        ([*QUICK, "bits.inner=[0,0]"], ["bits.inner.0=0: a quantization grid has 1 to 16 bits"]),
        (
            ["+table=ad_cifar10", "data.root=no/such/folder"],
            [
                "python reproduce/prepare.py data=cifar10 data.root=no/such/folder",
                "Accepted layouts",
                "parquet of the public hubs",
                "class folders of images",
                "CIFAR",
            ],
        ),
        (
            [*QUICK, "hardware.energy=vasquez_45"],
            ["unknown hardware 'vasquez_45'. Nearest: vasquez_45nm"],
        ),
    ],
    ids=["table", "row", "key", "model", "17 bits", "0 bits", "data path", "hardware"],
)
def test_a_mistake_ends_with_status_2_and_one_message(
    tmp_path: Path, words: list[str], messages: list[str]
) -> None:
    refused(tmp_path, words, messages)


def refused(folder: Path, words: Sequence[str], messages: Sequence[str]) -> None:
    store = folder / "store"
    done = command("run.py", *words, f"store={store}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    for message in messages:
        assert message in done.stderr
    assert not files(store)


def test_a_corrupt_parquet_file_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    broken = tmp_path / "test-00000-of-00001.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    refused(tmp_path, cifar10_words(tmp_path), [f"{broken}: not a readable parquet file"])


def test_a_truncated_image_is_named_with_its_row(tmp_path: Path) -> None:
    write_images(tmp_path, damage=7)
    train = tmp_path / "train-00000-of-00001.parquet"
    done = command("run.py", *cifar10_words(tmp_path), f"store={tmp_path / 'store'}")
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert f"{train}, row 7: image cannot be decoded" in said[0]
    assert "Traceback" not in done.stderr
    left = {path.parent.name for path in files(tmp_path / "store")}
    assert left == {"status", "logs"}  # which say that it failed


def test_a_run_on_a_part_is_a_run_on_the_whole_set_that_says_so(tmp_path: Path) -> None:
    write_images(tmp_path)
    words = [*cifar10_words(tmp_path), "data.counts.train=200", "data.val_images=20"]
    words += ["seed=0", "recipe.batch_size=4", f"store={tmp_path / 'store'}"]
    (cell,), (of_part,) = (
        work_of(parse([*words, *more]))[0].cells for more in ([], ["data.part=true"])
    )
    assert cell.signature == of_part.signature
    assert run_main([*words, "data.part=true"]) == 0
    (record,) = Store(tmp_path / "store").records()
    assert record.name == f"{cell.signature}-part"
    assert record.data.title == "CIFAR-10 (12 of 200)"
    assert record.data.sizes == {"train": 11, "val": 1, "test": 12}  # 12 * 1500 / 11000 held out
    assert record.config == portable(cell.config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+tabel=ad_pim"], "unknown word 'tabel'. Nearest: table"),
        (["+table="], "table=: give at least one name"),
        ([*QUICK, "rows=[]"], "give at least one name"),
        ([*QUICK, "seed=first"], "seed=first: give integers from 0 on"),
        ([*QUICK, "seed=-1"], "seed=-1: give integers from 0 on"),
        (["+table=ad_quickstart", "budget=gpuu"], "unknown budget 'gpuu'. Nearest: gpu"),
        ([*QUICK, "action=plann"], "unknown action 'plann'. Nearest: plan"),
        ([*QUICK, "format=jsn"], "unknown format 'jsn'. Nearest: json"),
        ([*QUICK, "published="], "published=: give a file"),
        (["published=my.yaml"], "published=my.yaml: name its table: +table=<id>"),
        ([*QUICK, "published=no/my.yaml"], "published=no/my.yaml: No such file or directory"),
        ([*QUICK, "publishd=my.yaml"], "unknown word 'publishd'. Nearest: published"),
        ([*QUICK, "smoke"], "'smoke' is not of the form key=value"),
        ([*QUICK, "~model=x"], "unknown word '~model'. Nearest: model"),
        (
            [*QUICK, "action=plan", "bits.layers={layer1.0.conv_1:[8,8]}"],
            "bits.layers: unknown layer 'layer1.0.conv_1'. Nearest: layer1.0.conv1",
        ),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run_main([*words, f"store={tmp_path}"])
    assert message in str(caught.value)
    assert not files(tmp_path)


def test_a_report_needs_a_table() -> None:
    with pytest.raises(UserError, match=r"name a table: .*ad_cifar10.*ad_pim.*ad_quickstart"):
        report_main([])


def test_words_are_split_into_control_and_overrides(tmp_path: Path) -> None:
    words = ["+table=a,b", "rows=[x,y]", "seed=0,2", "budget=cpu", "format=csv", "data.root=a=b"]
    parsed = parse([*words, "+x.y=1", f"store={tmp_path}"])
    assert (parsed.tables, parsed.action, parsed.format) == (("a", "b"), "run", "csv")
    assert parsed.asked == Asked(("data.root=a=b", "+x.y=1"), "cpu", ("x", "y"), (0, 2))
    assert parsed.store == tmp_path
    assert parse([]).store == ROOT / "runs"


# What is printed


def test_the_pim_table_as_json_needs_no_data(tmp_path: Path) -> None:
    nothing_here = [f"data.root={tmp_path / 'none'}", f"store={tmp_path / 'store'}"]
    done = command("report.py", "+table=ad_pim", "format=json", *nothing_here)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)  # one document and nothing else
    report = Report.model_validate_json(done.stdout)
    for line in content["rows"]:
        assert {"row", "column", "unit", "published", "measured", "verdict"} <= set(line)
        for part, keys in (
            ("published", {"value", "source", "confidence"}),
            ("measured", {"mean", "std", "n", "budget", "data"}),
        ):
            assert line[part] is None or keys <= set(line[part])
    energy = {e.row: e for e in report.rows if e.column == "pim_energy_uj"}
    for row, value in (("vgg19_16", 110.154), ("resnet18_16", 159.501)):
        found = energy[row]
        assert found.published is not None
        assert found.measured is not None
        assert (found.published.value, found.published.confidence) == (value, "proved")
        assert found.measured.mean == pytest.approx(value, rel=1e-5)
        assert found.verdict == "match"
    for row, value in (("vgg19_ad", 21.506), ("resnet18_ad", 33.186)):
        found = energy[row]
        assert found.published is not None
        assert (found.published.value, found.measured) == (value, None)
        assert found.verdict == "not run"
        assert "bit vector" in str(found.reason)
        assert "could not be recovered" in str(found.reason)


def test_numbers_of_ones_own_turn_verdicts_on(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        """
        table: ad_pim
        rows:
          resnet18_100way:
            pim_energy_uj: {value: 159.487, unit: uJ, source: Table V}
          vgg19_ad:
            bits: [16, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16]
        """
    )
    # The path is relative to the working directory, which need not be the project's.
    words = ["+table=ad_pim", "format=json", f"store={tmp_path / 'store'}", "published=my.yaml"]
    done = subprocess.run(
        [sys.executable, ROOT / "reproduce" / "report.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = Report.model_validate_json(done.stdout)
    shown = {(e.row, e.column): e for e in report.rows}
    own = shown["resnet18_100way", "pim_energy_uj"]
    assert own.published is not None
    assert (own.published.confidence, own.verdict) == ("published", "match")
    ad = shown["vgg19_ad", "pim_ratio"]
    assert ad.measured is not None
    assert ad.measured.mean == pytest.approx(4.090, abs=6e-4)  # sheet 4.3, ends at 16 bit
    assert shown["vgg19_ad", "pim_energy_uj"].verdict == "above"  # of 21.506 uJ
    assert shown["vgg19_16", "pim_energy_uj"].verdict == "match"  # as without the file


def test_a_mistake_in_ones_own_numbers_ends_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("{table: ad_quickstart, rows: {ad_1: {top1: {value: 1}}}}")
    message = f"{path}: rows.ad_1: unknown column 'top1'. Nearest: top1_pct"
    refused(tmp_path, [*QUICK, f"published={path}"], [message])


LADDER = {  # sheet 4.3: PIM energy in uJ
    "vgg19": {2: 1.171, 4: 6.756, 8: 26.561, 16: 110.155},
    "resnet18": {2: 1.696, 4: 9.782, 8: 38.460, 16: 159.501},
}


def test_the_ladder_of_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_main(["+table=ad_pim", "format=json", f"store={tmp_path}"])
    report = Report.model_validate_json(capsys.readouterr().out)
    energy = {e.row: e.measured for e in report.rows if e.column == "pim_energy_uj"}
    for network, ladder in LADDER.items():
        for bits, value in ladder.items():
            found = energy[f"{network}_{bits}"]
            assert found is not None
            assert found.mean == pytest.approx(value, abs=6e-4)
    macs = {e.row: e.measured for e in report.rows if e.column == "macs_m"}
    for row, count in (("vgg19_16", 398.13632), ("resnet18_16", 576.49152)):
        found = macs[row]
        assert found is not None
        assert found.mean == pytest.approx(count, rel=1e-12)
    hints = [e for e in report.rows if e.column == "pim_mac_fj" and e.hint]
    assert len(hints) == 8
    assert {e.verdict for e in hints} == {"no published value"}
    assert not any(e.published for e in report.rows if e.column == "pim_mac_fj")


def test_user_words_reach_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+table=ad_pim", "rows=vgg19_16", "format=json", f"store={tmp_path}"]
    report_main([*words, "model.net.width=0.25"])
    report = Report.model_validate_json(capsys.readouterr().out)
    assert {e.row for e in report.rows} == {"vgg19_16"}
    energy = next(e for e in report.rows if e.column == "pim_energy_uj")
    assert energy.measured is not None
    assert energy.measured.mean == pytest.approx(6.977, abs=6e-4)  # sheet, section 5
    assert energy.verdict == "below"


# Where a cell stands


def test_states_of_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, table = Store(tmp_path), load_table("ad_quickstart")
    (cell,) = Asked(budget="smoke", rows=("float",), seeds=(5,)).cells(table)
    (changed,) = Asked(("recipe.epochs=3",), "smoke", ("float",), (5,)).cells(table)

    def word(of) -> str:
        return status_of(of, Board(store), store.heads()).word

    assert word(cell) == "missing"
    with store.claim(cell.signature):
        assert word(cell) == "running"
    store.add(record_of(cell, (32, [(80.0, 81.0)])))
    assert (word(cell), word(changed)) == ("done", "stale")

    plan = [*QUICK, "rows=float,bits8", "seed=5", "action=plan", f"store={tmp_path}"]
    assert run_main(plan) == 0
    shown = capsys.readouterr().out
    assert f"done     float seed 5 [{cell.signature}]" in shown
    assert "missing  bits8 seed 5" in shown
    assert [path.name for path in files(tmp_path)] == [f"{cell.signature}.json"]


def test_a_plan_knows_costs_and_that_the_data_set_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+table=ad_cifar10", "rows=bits16", "seed=0", f"data.root={tmp_path / 'none'}"]
    assert run_main([*words, "action=plan", f"store={tmp_path / 'store'}"]) == 0
    shown = capsys.readouterr().out
    assert "its data set is not on this machine" in shown
    assert "110.155" in shown  # PIM energy at 16 bit
    command_line = next(line for line in shown.splitlines() if "python reproduce/run.py" in line)
    again = parse(shlex.split(command_line)[2:])
    assert again.store == tmp_path / "store"
    assert again.asked.overrides == (f"data.root={tmp_path / 'none'}",)
    assert (again.tables, again.asked.rows, again.asked.seeds) == (
        ("ad_cifar10",),
        ("float",),
        (0,),
    )
    assert not files(tmp_path)


# Cells of several tables, from outside


def test_patterns_name_tables_and_rows_are_those_of_any(tmp_path: Path) -> None:
    words = parse(["+table=ad_quick*,ad_quickstart,ad_p?m", f"store={tmp_path}"])
    assert [table.id for table in asked_tables(words)] == ["ad_quickstart", "ad_pim"]
    two = ["+table=ad_quickstart,ad_cifar10", "seed=0", f"store={tmp_path}"]
    cells = [work.cells for work in work_of(parse([*two, "rows=bits4"]))]
    assert [[cell.row for cell in of_table] for of_table in cells] == [["bits4"], []]
    with pytest.raises(UserError, match="tables ad_quickstart, ad_cifar10: unknown row 'bits5'"):
        work_of(parse([*two, "rows=bits4,bits5"]))
    with pytest.raises(UserError, match=r"unknown table 'da_\*'"):
        asked_tables(parse(["+table=da_*"]))


def test_status_and_collect_say_what_misses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    cells = Asked(budget="smoke", rows=("float", "bits4", "ad")).cells(load_table("ad_quickstart"))
    done, failed, other = cells
    words = [*QUICK, "rows=float,bits4,ad", f"store={tmp_path}"]
    store.add(record_of(done, (4, [(80.0, 81.0)])))
    write_status(store, failed.signature, Status("failed", error=("diverged",)))
    assert run_main([*words, "action=status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ad_quickstart: 3 cells; 1 done, 1 failed, 1 missing",
        f"  done      float seed 0 [{done.signature}]",
        f"  failed    bits4 seed 0 [{failed.signature}]",
        "            diverged",
        f"  missing   ad seed 0 [{other.signature}]",
    ]
    assert run_main([*words, "action=collect"]) == 1
    said = capsys.readouterr()
    assert "not done: 2 cells; 1 failed, 1 missing" in said.err
    assert said.out == ""
    assert run_main([*words, "action=watch"]) == 1  # nobody has anything in hand: it ends
    capsys.readouterr()
    for cell in (failed, other):
        store.add(record_of(cell, *[(4, [(80.0, 81.0)])] * 3))
    assert run_main([*words, "action=collect"]) == 0
    assert "81.00" in capsys.readouterr().out


def test_a_plan_reads_no_record_and_a_report_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    cells = Asked(budget="smoke", seeds=tuple(range(5))).cells(load_table("ad_quickstart"))
    for cell in cells:
        store.add(record_of(cell, *[(4, [(80.0, 81.0)])] * 3))
    read: list[Path] = []
    monkeypatch.setattr(
        "quantable.store.store.read_record", lambda path: read.append(path) or read_record(path)
    )
    words = ["+table=ad_quickstart", "budget=smoke", "seed=0,1,2", f"store={tmp_path}"]
    run_main([*words, "action=status"])
    assert read == []
    report_main(words)
    assert len(read) == len(set(read)) == 15  # of the seeds asked for


# Imports

LOOK = """
import json, runpy, sys
for script, *words in json.loads(sys.argv[1]):
    sys.argv = [script, *words]
    try:
        runpy.run_path(f"reproduce/{script}", run_name="__main__")
    except SystemExit as stop:
        assert stop.code in (0, None), (script, words, stop.code)
    loaded = {"torch", "pytorch_lightning", "torchvision", "timm", "submitit"} & set(sys.modules)
    assert not loaded, (script, words, loaded)
print("looked")
"""


def test_help_plan_report_and_a_finished_table_load_no_torch(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = ("float", "bits4")
    for cell in Asked(budget="smoke", rows=rows).cells(load_table("ad_quickstart")):
        store.add(record_of(cell, (4, [(80.0, 81.0)])))
    before = files(tmp_path)
    assert len(before) == 2

    in_store = f"store={tmp_path}"
    commands = [["run.py", "--help"], ["report.py", "--help"]]
    commands += [["run.py", f"+table={name}", "action=plan", in_store] for name in table_names()]
    commands += [
        ["report.py", f"+table={name}", f"format={face}", in_store]
        for name, face in zip(
            ("ad_pim", "ad_pim", "ad_quickstart", "ad_cifar10"),
            ("json", "csv", "markdown", "terminal"),
            strict=True,
        )
    ]
    commands += [["run.py", *QUICK, f"rows={','.join(rows)}", in_store]]  # trains nothing
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.stderr == ""
    assert done.stdout.endswith("looked\n")
    assert "81.00" in done.stdout
    copy = tmp_path / "reports" / "ad_quickstart.md"
    assert f"Markdown: {copy}" in done.stdout
    assert set(files(tmp_path)) == {*before, copy}
    assert "| float | 81.00 |" in copy.read_text()
