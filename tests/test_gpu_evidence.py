"""The command that adds a GPU's evidence, as a dry run on a CPU."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from quantable.base.places import ROOT
from quantable.store.record import Record


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "tools/gpu_evidence.py", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_dry_run_packs_records_of_both_tables(tmp_path: Path) -> None:
    done = command("smoke", f"store={tmp_path}")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "records.tar.gz") as file:
        found = [file.extractfile(one) for one in file if one.isfile()]
        records = [Record.model_validate_json(one.read()) for one in found if one is not None]
    rows = sorted((record.table, record.row) for record in records)
    assert rows == [(t, r) for t in ("ad_cifar10", "ad_cifar100") for r in ("ad", "float")]
    assert {record.budget for record in records} == {"smoke"}
    again = command("smoke", f"store={tmp_path}")
    assert (again.returncode, again.stderr) == (0, "")  # a cell that trains says so there


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("minute=3", "unknown word 'minute=3'. Nearest: minutes="),
        ("minutes=0", "minutes=0: give a whole number, at least 1"),
        ("data=", "unknown word 'data='"),
    ],
)
def test_a_mistake_is_one_message(word: str, message: str) -> None:
    done = command("smoke", word)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
