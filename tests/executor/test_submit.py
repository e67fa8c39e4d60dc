"""Submission: what reaches the cluster's commands, which stand-ins note down here."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from search.test_road import scored, selection  # a table with searches

from quantable.base.errors import UserError
from quantable.cli import run_main
from quantable.executor import submit as submitting
from quantable.executor.actions import cancel_all
from quantable.executor.board import Board, Work
from quantable.executor.status import Status, cancelled, read_status, write_status
from quantable.executor.submit import submit
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import load_table

# The nth call of sbatch makes job n; the queue is what a test has written into a file.
STAND_INS = {
    "sbatch": 'n=$(ls {0}/script.* 2>/dev/null | wc -l); n=$((n + 1)); cp "$1" {0}/script.$n\n'
    'echo "Submitted batch job $n"',
    "srun": "exit 1",
    "squeue": "cat {0}/queue",
    "scancel": 'echo "$@" >> {0}/cancelled',
    "scontrol": 'echo "$@" >> {0}/controlled',
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body.format(folder)}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def cells_of(*words: str, rows: Sequence[str] = ("float", "bits4"), seeds=(0, 1)) -> list[Cell]:
    asked = Asked(("executor=slurm", *words), "smoke", tuple(rows), tuple(seeds))
    return asked.cells(load_table("ad_quickstart"))


def in_queue(cluster: Path, states: Mapping[str, str]) -> None:
    """Let squeue list these jobs, by the names that they were submitted with."""
    lines = []
    for job, state in states.items():
        script = cluster / f"script.{job.partition('_')[0]}"
        name = options(cluster, int(job.partition("_")[0]))["job-name"] if script.exists() else "x"
        reason = "Resources" if state == "PENDING" else "None"
        lines.append(f"{job}|{state}|{name}|{reason}\n")
    (cluster / "queue").write_text("".join(lines))


def options(cluster: Path, n: int) -> dict[str, str]:
    """Options of the nth script."""
    text = (cluster / f"script.{n}").read_text()
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))


def test_one_array_for_all_cells_of_a_class(cluster: Path, store: Store) -> None:
    words = ("executor.partition=gpu", "executor.gpus=1", "executor.cpus=3", "executor.minutes=90")
    limits = ("executor.max_parallel=2", "executor.more={nice: 5}", "executor.memory_gib=1.5")
    assert submit(cells_of(*words, *limits), store, again=True) == 4
    said = options(cluster, 1)
    wanted = {"array": "0-3%2", "partition": "gpu", "gpus-per-node": "1", "cpus-per-task": "3"}
    wanted |= {"time": "90", "mem": "1536M", "nice": "5", "requeue": "", "signal": "USR2@120"}
    assert wanted.items() <= said.items()
    assert not {"account", "qos", "constraint", "dependency"} & said.keys()
    assert not (cluster / "script.2").exists()
    script = (cluster / "script.1").read_text()
    assert "export OMP_NUM_THREADS=3\n" in script
    place = re.search(r"export PYTHONPATH=(\S+)", script)
    assert place is not None
    assert (Path(place[1]) / "quantable" / "run.py").is_file()
    jobs = [read_status(store, path.stem) for path in (store.folder / "frozen").glob("*.yaml")]
    assert sorted(str(status.job) for status in jobs if status) == ["1_0", "1_1", "1_2", "1_3"]


def test_nothing_is_asked_for_that_nobody_set(cluster: Path, store: Store) -> None:
    submit(cells_of(), store, again=True)
    assert not {"time", "mem", "partition", "gpus-per-node"} & options(cluster, 1).keys()


def test_a_second_submitter_finds_the_first_ones_jobs(cluster: Path, store: Store) -> None:
    assert submit(cells_of(), store, again=True) == 4
    in_queue(cluster, {f"1_{i}": "PENDING" for i in range(4)})
    assert submit(cells_of(seeds=(0, 1, 2)), store, again=True) == 2
    lines = Board(store).lines(cells_of())
    assert [line.about and line.about.reason for line in lines] == ["Resources"] * 4
    in_queue(cluster, {"1_0": "RUNNING"})  # three went without a word
    assert submit(cells_of(), store, again=True) == 3


def test_a_cell_that_failed_is_submitted_again_only_when_asked_for(
    cluster: Path, store: Store
) -> None:
    (cell,) = cells_of(rows=("float",), seeds=(0,))
    write_status(store, cell.signature, Status("failed", error=("diverged",), deaths=3))
    assert submit([cell], store, again=False) == 0
    assert submit([cell], store, again=True) == 1
    status = read_status(store, cell.signature)
    assert status is not None
    assert (status.state, status.deaths) == ("queued", 0)


def test_what_is_needed_comes_in_an_earlier_array(cluster: Path, store: Store) -> None:
    words = ("executor=slurm", "data=fashion_mnist_mini")
    asked = Asked(words, "paper", ("first_80",), (0,), (store,))
    cells = asked.cells(selection())
    assert submit(cells, store, again=True) == 4
    assert [options(cluster, n).get("dependency") for n in (1, 2, 3, 4)] == [
        None,
        "afterany:1",
        "afterany:2",
        "afterany:2:3",  # the network that it starts from, and the search that chooses its bits
    ]
    store.add(scored(cells[2], "layer3.0.conv2"))
    in_queue(cluster, {"4": "PENDING"})
    decided = asked.cells(selection())[3]
    assert decided.signature != cells[3].signature
    assert Board(store).line(decided).word == "queued"  # as the one that was submitted


def test_a_failing_sbatch_leaves_nothing_queued(
    cluster: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2; exit 1\n")
    with pytest.raises(UserError, match="invalid partition"):
        submit(cells_of(), store, again=True)
    assert [line.word for line in Board(store).lines(cells_of())] == ["missing"] * 4


def test_cancelling_ends_jobs_and_marks_cells(cluster: Path, store: Store) -> None:
    cells = cells_of()
    submit(cells, store, again=True)
    in_queue(cluster, {"1_0": "RUNNING", "1_2": "PENDING"})
    asked = Asked(("executor=slurm",), "smoke")
    said = cancel_all([Work(load_table("ad_quickstart"), asked, cells)], store)
    assert said.startswith("2 cells cancelled")
    assert (cluster / "cancelled").read_text() == "1_0 1_2\n"
    assert [cancelled(store, cell.signature) for cell in cells] == [True, False, True, False]


def test_other_executors_have_nothing_to_submit_to(tmp_path: Path) -> None:
    words = ["+table=ad_quickstart", "action=submit", f"store={tmp_path}"]
    with pytest.raises(UserError, match=r"executor=inline has no queue .* executor=slurm"):
        run_main(words)


def test_submitting_needs_no_torch() -> None:
    assert submitting.__name__ in sys.modules
    import subprocess

    code = "import quantable.executor.submit, submitit, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
