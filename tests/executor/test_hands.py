"""A cluster that refuses, forgets or does not answer: each is said, and nothing is lost or doubled.

Stand-ins play its commands. ``sbatch`` takes arrays of at most ``limit/array`` tasks, and in all as
many as ``limit/jobs`` says; what it took is in the queue, until a test says otherwise.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hand_records import record_of

from quantable.base.errors import UserError
from quantable.base.signals import Preempted, heed, listen
from quantable.base.tick import Tick
from quantable.cli import run_main
from quantable.executor import actions, attempt, slurm
from quantable.executor.actions import Hands, cancel_all, overview, watch
from quantable.executor.board import Board, Work
from quantable.executor.cluster import ask_queue
from quantable.executor.requeue import again
from quantable.executor.status import (
    Status,
    cancel,
    cancelled,
    queued,
    read_status,
    uncancel,
    write_status,
)
from quantable.executor.submit import Refused, submit
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import load_table

TICK = Tick(1, 4, 3, 6, loss=0.5, val_top1_pct=50.0)
DOWN = "Unable to contact slurm controller (connect failure)"
COMMANDS = """
import os, re, shutil, sys
from pathlib import Path

here = Path(__file__).parent
name, words = Path(sys.argv[0]).name, sys.argv[1:]
if (here / "down").exists() and name != "srun":
    sys.exit(f"{name}: error: " + (here / "down").read_text())
jobs = {}
for line in (here / "queue").read_text().splitlines():
    job, state, called = line.split("|")
    jobs[job] = [state, called]

def keep():
    lines = ["|".join([job, *about]) for job, about in jobs.items()]
    (here / "queue").write_text("".join(line + chr(10) for line in lines))

def limit(kind):
    path = here / "limit" / kind
    return int(path.read_text()) if path.exists() else 10**6

alive = [job for job, about in jobs.items() if about[0] in ("PENDING", "RUNNING")]
if name == "sbatch":
    text = Path(words[0]).read_text()
    found = re.search(r"--array=0-([0-9]+)", text)
    n = int(found[1]) + 1 if found else 1
    if n > limit("array"):
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    if len(alive) + n > limit("jobs"):
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit" + chr(10) + "sbatch: error: refused")
    number = len(list(here.glob("script.*"))) + 1
    shutil.copy(words[0], here / f"script.{number}")
    (here / f"environ.{number}").write_text(chr(10).join(sorted(os.environ)))
    called = re.search(r"--job-name=(.*)", text)[1]
    for i in range(n):
        jobs[f"{number}_{i}" if found else str(number)] = ["PENDING", called]
    keep()
    if (here / "slow").exists():
        sys.exit("sbatch: error: Socket timed out on send/recv operation")
    print(f"Submitted batch job {number}")
if name == "squeue":
    for job, (state, called) in jobs.items():
        print(f"{job}|{state}|{called}|" + ("Resources" if state == "PENDING" else "None"))
if name == "scancel":
    wrong = [job for job in words if job not in alive]
    for job in set(words) & set(alive):
        jobs[job][0] = "CANCELLED"
    keep()
    if wrong:
        sys.exit(f"scancel: error: Kill job error on job id {wrong[0]}: Invalid job id specified")
if name == "scontrol" and words == ["show", "config"] and (here / "limit" / "array").exists():
    print(f"MaxArraySize            = {limit('array')}")
if name == "scontrol" and words[:2] == ["show", "job"]:
    print(f"JobId=1 JobState={jobs[words[-1]][0]} Reason=None")
"""


class Cluster:
    """The stand-ins' folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "limit").mkdir(parents=True)
        (folder / "commands.py").write_text(COMMANDS)
        for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
            path = folder / name
            path.write_text(f"#!{sys.executable} -S\n" + COMMANDS)
            path.chmod(0o755)
        (folder / "queue").touch()

    def limit(self, **kinds: int) -> None:
        for kind, n in kinds.items():
            (self.folder / "limit" / kind).write_text(str(n))

    def down(self, *, down: bool = True) -> None:
        if down:
            (self.folder / "down").write_text(DOWN)
        else:
            (self.folder / "down").unlink()

    def jobs(self) -> dict[str, str]:
        lines = (self.folder / "queue").read_text().splitlines()
        return {job: state for job, state, _ in (line.split("|") for line in lines)}

    def turn(self, job: str, state: str | None) -> None:
        """Let a job be in another state, or forgotten."""
        lines = (self.folder / "queue").read_text().splitlines()
        kept = [line for line in lines if line.split("|")[0] != job]
        (was,) = [line for line in lines if line.split("|")[0] == job]
        kept += [f"{job}|{state}|{was.split('|')[2]}"] if state else []
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in kept))

    def script(self, n: int) -> str:
        return (self.folder / f"script.{n}").read_text()

    def arrays(self) -> list[str | None]:
        """What each call of sbatch asked for as its array."""
        scripts = range(1, len(list(self.folder.glob("script.*"))) + 1)
        found = (re.search(r"--array=(\S+)", self.script(n)) for n in scripts)
        return [None if array is None else array[1] for array in found]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


TABLE = load_table("ad_quickstart")


def work_of(n: int, *words: str) -> Work:
    """The cells of ``n`` seeds."""
    asked = Asked(("executor=slurm", *words), "smoke", ("float",), tuple(range(n)))
    return Work(TABLE, asked, asked.cells(TABLE))


def words_of(work: Work, store: Store) -> list[str]:
    return [line.word for line in Board(store).lines(work.cells)]


def status_of(store: Store, cell: Cell) -> Status:
    status = read_status(store, cell.signature)
    assert status is not None
    return status


# Submitting


def test_arrays_are_split_to_what_the_cluster_takes(cluster: Cluster, store: Store) -> None:
    cluster.limit(array=4)
    assert submit(work_of(9, "executor.max_parallel=8").cells, store, again=True) == 9
    assert cluster.arrays() == ["0-3%2", "0-3%2", None]  # 8 at a time, shared by three
    assert len(cluster.jobs()) == 9
    jobs = [status_of(store, cell).job for cell in work_of(9).cells]
    assert sorted(str(job) for job in jobs) == sorted(cluster.jobs())


def test_as_many_are_submitted_as_a_user_may_have_and_watch_hands_in_the_rest(
    cluster: Cluster, store: Store
) -> None:
    cluster.limit(jobs=5)
    work = work_of(9)
    with pytest.raises(Refused, match=r"QOSMaxSubmitJobPerUserLimit.*: 5 of 9 cells are submitted"):
        submit(work.cells, store, again=True)
    assert words_of(work, store) == ["queued"] * 5 + ["missing"] * 4
    assert len(cluster.jobs()) == 5
    said: list[str] = []
    hands = Hands(store, said.append)
    assert not hands.over(Board(store).lines(work.cells))
    assert not hands.over(Board(store).lines(work.cells))
    assert len(said) == 1  # it waits until a job has ended
    for cell in work.cells[:2]:
        store.add(record_of(cell, (32, [(80.0, 81.0)])))
        cluster.turn(str(status_of(store, cell).job), "COMPLETED")
    assert hands.over(Board(store).lines(work.cells))
    assert words_of(work, store) == ["done"] * 2 + ["queued"] * 5 + ["missing"] * 2


def test_a_refused_array_leaves_the_jobs_of_the_one_before_known(
    cluster: Cluster, store: Store
) -> None:
    cluster.limit(array=2, jobs=2)
    work = work_of(4)
    with pytest.raises(Refused, match="2 of 4 cells are submitted; the same command again"):
        submit(work.cells, store, again=True)
    assert words_of(work, store) == ["queued", "queued", "missing", "missing"]
    cluster.limit(jobs=100)
    assert submit(work.cells, store, again=True) == 2  # nothing twice
    assert len(cluster.jobs()) == 4
    assert cancel_all([work], store).startswith("4 cells cancelled")
    assert set(cluster.jobs().values()) == {"CANCELLED"}  # nothing lives on


def test_an_answer_that_came_too_late_leaves_no_job(cluster: Cluster, store: Store) -> None:
    (cluster.folder / "slow").touch()
    work = work_of(2)
    with pytest.raises(Refused, match=r"Socket timed out.*none of 2 cells is submitted"):
        submit(work.cells, store, again=True)
    assert set(cluster.jobs().values()) == {"CANCELLED"}
    assert words_of(work, store) == ["missing"] * 2


def test_a_job_is_known_though_its_submitter_was_killed_before_it_had_the_id(
    cluster: Cluster, store: Store
) -> None:
    work = work_of(2)
    submit(work.cells, store, again=True)
    for cell in work.cells:
        write_status(
            store, cell.signature, replace(status_of(store, cell), job=None, pid=2**22 + 1)
        )
    assert words_of(work, store) == ["queued"] * 2
    assert [line.job for line in Board(store).lines(work.cells)] == ["1_0", "1_1"]
    assert submit(work.cells, store, again=True) == 0
    cancel_all([work], store)
    assert set(cluster.jobs().values()) == {"CANCELLED"}


def test_a_limit_that_takes_nothing_is_named(cluster: Cluster, store: Store) -> None:
    cluster.limit(jobs=0)
    work = work_of(3)
    message = r"executor=slurm: sbatch: QOSMaxSubmitJobPerUserLimit.*: none of 3 cells is submitted"
    with pytest.raises(UserError, match=message):
        watch([work], store)
    assert words_of(work, store) == ["missing"] * 3


def test_a_job_in_a_job_knows_nothing_of_the_outer_one(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "mask_cpu:0x3", "SLURM_MEM_PER_NODE": "2048"}
    outer |= {"SLURM_ARRAY_JOB_ID": "1", "SBATCH_PARTITION": "debug", "SRUN_CPUS_PER_TASK": "1"}
    outer |= {"CUDA_VISIBLE_DEVICES": "0", "SLURM_CONF": "/etc/slurm.conf", "MINE": "1"}
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    submit(work_of(1).cells, store, again=True)
    seen = (cluster.folder / "environ.1").read_text().split()
    assert {name for name in seen if name in outer} == {"SLURM_CONF", "MINE"}
    assert outer.items() <= os.environ.items()


def test_what_slurm_reads_as_text_and_truth_values(cluster: Cluster, store: Store) -> None:
    names = ["executor.account=12345", "executor.partition=short,long", "executor.cpus=4"]
    more = "executor.more={exclude:node[01-04],reservation:42,requeue:false,exclusive:false}"
    submit(work_of(1, *names, more).cells, store, again=True)
    script = cluster.script(1)
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    wanted = {"account": "12345", "partition": "short,long", "exclude": "'node[01-04]'"}
    wanted |= {"reservation": "42", "no-requeue": "", "cpus-per-task": "4"}
    assert wanted.items() <= found.items()
    assert not {"requeue", "exclusive"} & found.keys()
    assert "scontrol requeue" not in script
    assert script.index("SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-4}") < script.index("\nsrun ")


def test_a_job_too_short_to_work_is_refused_before_anything_else(capsys) -> None:
    words = ["+table=ad_quickstart", "executor=slurm", "executor.minutes=2", "action=plan"]
    with pytest.raises(UserError, match=r"executor.minutes=2 a job is told to stop after 0 s.*=4"):
        run_main(words)
    assert run_main([*words[:2], "executor.minutes=4", *words[3:]]) == 0
    with pytest.raises(UserError, match=r"seed=4294967296: give integers from 0 on, below 2\*\*32"):
        run_main([*words[:1], "seed=4294967296", "action=plan"])


# Cancelling


def test_a_cluster_that_is_down_is_not_said_to_have_cancelled(
    cluster: Cluster, store: Store
) -> None:
    work = work_of(2)
    submit(work.cells, store, again=True)
    cluster.down()
    with pytest.raises(UserError, match=rf"^scancel: error: {re.escape(DOWN)}: 2 of 2 cells may"):
        cancel_all([work], store)
    assert set(cluster.jobs().values()) == {"PENDING"}
    cluster.down(down=False)
    said = overview([work], store)
    assert said.startswith("ad_quickstart: 2 cells; 2 cancelled\n")
    assert said.count("is still in the queue; action=cancel tries again") == 2
    assert cancel_all([work], store).startswith("2 cells cancelled")
    assert set(cluster.jobs().values()) == {"CANCELLED"}
    assert "still in the queue" not in overview([work], store)


def test_a_job_that_had_ended_by_itself_is_no_fault(cluster: Cluster, store: Store) -> None:
    work = work_of(2)
    submit(work.cells, store, again=True)
    board = Board(store)
    assert len(board.lines(work.cells)) == 2
    cluster.turn("1_0", "COMPLETED")  # between the look and scancel
    assert actions.end(["1_0", "1_1"]) == ([], None)
    assert cluster.jobs() == {"1_0": "COMPLETED", "1_1": "CANCELLED"}


def test_a_running_cell_looks_whether_it_was_cancelled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a machine that cannot signal it, as when the cluster does not answer."""
    monkeypatch.setattr(attempt, "EVERY_SECONDS", 0.0)
    (cell,) = work_of(1).cells
    heard = listen()
    try:
        look = attempt._Watch(store, cell.signature, Status("running"), ())
        look(TICK)
        heed()
        cancel(store, cell.signature)
        look(TICK)
        with pytest.raises(Preempted):
            heed()
    finally:
        listen()  # and forget that
        for number, handler in heard.items():
            signal.signal(number, handler)


def run_stopped(store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Status:
    """Let an attempt be told to stop after a batch; its status."""

    def stopped(cell: Cell, store: Store, variant: str, tell) -> None:
        tell(TICK)
        raise Preempted("stopped by SIGTERM")

    monkeypatch.setattr("quantable.run.run_cell", stopped)
    with pytest.raises(Preempted):
        attempt.attempt(cell, store, "", lambda tick: None)
    return status_of(store, cell)


def test_words_for_who_stopped_a_run(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(1)
    (cell,) = work.cells
    assert run_stopped(store, cell, monkeypatch).state == "stopped"  # at a keyboard
    submit([cell], store, again=True)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    status = run_stopped(store, cell, monkeypatch)
    assert (status.state, status.preempted, status.lost) == ("preempted", 1, 0)
    assert again(store, 3, 75)
    cluster.turn("1", "CANCELLED")  # scancel: its processes hear SIGTERM, and ask
    status = run_stopped(store, cell, monkeypatch)
    assert (status.state, status.preempted) == ("cancelled", 1)
    assert not again(store, 3, 75)
    monkeypatch.delenv("SLURM_JOB_ID")
    cluster.turn("1", None)  # the cluster has forgotten it; the store has not
    assert words_of(work, store) == ["cancelled"]
    assert overview([work], store).endswith(
        "epoch 2 of at most 4, loss 0.5000, held-out 50.00 %, preempted once"
    )


# Looking


def test_a_status_says_that_the_cluster_does_not_answer(cluster: Cluster, store: Store) -> None:
    work = work_of(2)
    submit(work.cells, store, again=True)
    began = status_of(store, work.cells[1])
    write_status(store, work.cells[1].signature, replace(began, state="running", attempts=1))
    cluster.down()
    assert ask_queue().fault == f"squeue: error: {DOWN}"
    said = overview([work], store).splitlines()
    assert said[0] == "ad_quickstart: 2 cells; 1 queued, 1 unknown"
    assert said[-1].startswith(f"squeue: error: {DOWN}: of jobs it says what they last wrote")
    assert submit(work.cells, store, again=True) == 0  # nothing twice


def test_watch_hands_in_what_was_lost_and_leaves_what_a_person_cancelled(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    work = work_of(3)
    submit(work.cells, store, again=True)
    lost, by_hand, done = work.cells
    for cell, place in ((lost, 1), (by_hand, 2)):
        begun = replace(status_of(store, cell), state="running", attempts=1, epoch=place, epochs=9)
        write_status(store, cell.signature, begun)
    cluster.turn("1_0", "NODE_FAIL")
    cluster.turn("1_1", "CANCELLED")
    store.add(record_of(done, (32, [(80.0, 81.0)])))

    def turn(seconds: float) -> None:
        """The second job ends well."""
        assert cluster.jobs()["2"] == "PENDING"
        store.add(record_of(lost, (32, [(80.0, 81.0)])))

    monkeypatch.setattr(actions, "wait", turn)
    assert watch([work], store) == 1
    said = capsys.readouterr()
    assert "float seed 0: lost; handed in again" in said.err
    assert "float seed 1: cancelled (job 1_1); left alone" in said.err
    assert "2 done, 1 cancelled" in said.out
    cluster.turn("1_1", None)
    assert watch([work], store) == 1  # remembered
    assert len(cluster.arrays()) == 2
    uncancel(store, [by_hand.signature])
    assert submit([by_hand], store, again=True) == 1


def test_a_cell_that_does_not_get_on_is_left_alone_and_that_is_said_once(
    cluster: Cluster, store: Store
) -> None:
    work, said = work_of(1), list[str]()
    hands = Hands(store, said.append)
    for n in range(1, 7):
        hands.over(Board(store).lines(work.cells))
        if str(n) in cluster.jobs():
            cluster.turn(str(n), "NODE_FAIL")
            status = status_of(store, work.cells[0])
            write_status(store, work.cells[0].signature, replace(status, attempts=n, epoch=1))
    assert len(cluster.jobs()) == 4  # it got on once
    assert said[-1] == "float seed 0: lost 3 times; left alone"
    assert len(said) == 5


def test_an_interactive_job_is_not_cancelled_with_the_cell_that_runs_in_it(
    cluster: Cluster, store: Store
) -> None:
    work = work_of(1)
    (cell,) = work.cells
    write_status(store, cell.signature, replace(queued(cell, None), state="running", job="77"))
    (cluster.folder / "queue").write_text("77|RUNNING|bash\n")
    cancel_all([work], store)
    assert cancelled(store, cell.signature)  # where it looks
    assert cluster.jobs() == {"77": "RUNNING"}


def sizes(arrays: Sequence[slurm.Array]) -> list[tuple[int, int]]:
    return [(len(array.cells), array.parallel) for array in arrays]


def test_parts_of_a_class_share_what_may_run_at_a_time() -> None:
    options = {"max_parallel": 6}
    cells = [slurm.Ready(str(i), options, "s") for i in range(10)]
    behind = slurm.Ready("last", options, "s", behind=("3",))
    assert sizes(slurm.arrays([*cells, behind], 4)) == [(4, 2), (4, 2), (2, 2), (1, 6)]
    assert sizes(slurm.arrays(cells, None)) == [(10, 6)]
    assert sizes(slurm.halves(slurm.arrays(cells, None)[0])) == [(5, 3), (5, 3)]
