"""The suite on a real SLURM of one machine: nothing is lost, nothing done twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from cluster import Cluster, cluster, missing
from programs import MAY_LACK

from quantable.executor.status import SETTLED, Status, read_status
from quantable.store.record import Record
from quantable.store.store import Store

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
reason = missing()
pytestmark = [
    *(pytest.mark.slow, pytest.mark.slurm),
    pytest.mark.skipif(MAY_LACK and reason is not None, reason=str(reason)),
]
# Cells of a few seconds, each on one core.
TINY = [
    *("+table=ad_quickstart", "budget=smoke", "trainer.accelerator=cpu"),
    *("data.train_images=256", "data.val_images=64", "data.test_images=64"),
]
# Long enough to be interrupted again and again; a kill loses at most a second.
LONG = [
    *("rows=bits2", "seed=0", "trainer.checkpoint_seconds=1"),
    *("data.train_images=512", "recipe.epochs=10"),
]
ON_SLURM = ["executor=slurm", "executor.cpus=1", "executor.minutes=20"]
SECONDS = 400.0  # until anything that is waited for has happened, on a busy machine too


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(nodes=3, cpus=4) as made:
        yield made


@pytest.fixture(autouse=True)
def _idle(slurm: Cluster) -> None:
    """Let the jobs of the test before be gone: a completing one is in the queue for a while."""
    wait_for(lambda: not slurm.queue() or None, slurm)


def run_py(
    slurm: Cluster, *words: str, cwd: Path = ROOT, checkout: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """What a user types, on the cluster's login node."""
    environ = os.environ | slurm.environ | {"PYTHONPATH": str(checkout / "src")}
    environ.pop("OMP_NUM_THREADS", None)  # a job's share is for the job to find out
    return subprocess.run(
        [sys.executable, str(checkout / "reproduce/run.py"), *words],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(look: Callable[[], T | None], slurm: Cluster) -> T:
    """What ``look`` finds at last; jobs that were queued again need not wait for their time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        slurm.let_go()
        time.sleep(0.3)
    raise AssertionError(f"nothing came of it; the queue: {slurm.queue()}")


def the_status(store: Store) -> Status | None:
    """Status of a store's only cell."""
    names = [path.stem for path in (store.folder / "status").glob("*.json")]
    return read_status(store, names[0]) if names else None


def log(store: Store) -> str:
    logs = [*store.folder.glob("logs/*.log"), *store.folder.glob("slurm/*.err")]
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(logs))


def numbers(record: Record) -> dict:
    """What must be equal to the last bit: all but times, and how the run went on its way."""
    plain = record.model_dump(exclude={"provenance"})
    for epoch in plain["history"]:
        del epoch["seconds"]
    return plain


def test_hydras_own_launcher_ends_with_all_records(slurm, tmp_path) -> None:
    sweep = ["-m", *TINY, "rows=bits2", "seed=0,1,2", "hydra/launcher=submitit_slurm"]
    good(run_py(slurm, *sweep, f"store={tmp_path / 'runs'}", cwd=tmp_path))
    records = Store(tmp_path / "runs").records()
    assert sorted(record.seed for record in records) == [0, 1, 2]
    # A job has one core: torch was told so before it was imported.
    assert {record.provenance.threads for record in records} == {1}


def test_a_mistake_in_a_job_is_one_message_and_exit_status_2(slurm, tmp_path) -> None:
    words = ["-m", "+table=ad_quickstart", "rows=bit2", "seed=0", "hydra/launcher=submitit_slurm"]
    done = run_py(slurm, *words, f"store={tmp_path / 'runs'}", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: table ad_quickstart: unknown row 'bit2'. Nearest: bits2")


def test_hydras_own_launcher_goes_on_after_a_preemption(slurm, tmp_path) -> None:
    store = Store(tmp_path / "runs")
    words = ["-m", *TINY, *LONG, "hydra/launcher=submitit_slurm", f"store={store.folder}"]
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(run_py, slurm, *words, cwd=tmp_path)
        signalled(store, slurm)
        wait_for(lambda: done.done() or None, slurm)
    good(done.result())
    (record,) = store.records()
    assert record.provenance.resumed == 1
    assert len(record.history) == 10


def test_what_is_edited_after_the_submit_changes_no_cell(slurm, tmp_path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("conf", "src", "reproduce"):
        skip = shutil.ignore_patterns("__pycache__", "evidence", "*.egg-info")
        shutil.copytree(ROOT / name, checkout / name, ignore=skip)
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "as submitted"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    store = Store(tmp_path / "runs")
    seeds = ",".join(str(seed) for seed in range(24))
    words = [*TINY, "rows=bits2", *ON_SLURM, f"store={store.folder}"]

    def on(*more: str) -> str:
        return good(run_py(slurm, *words, *more, checkout=checkout))

    on("action=submit", f"seed={seeds}", "executor.more={hold:true}")
    assert len(slurm.queue()) == 24
    assert on("action=status", f"seed={seeds}").count("queued") >= 24
    on("action=cancel", f"seed={seeds.removeprefix('0,')}")
    wait_for(lambda: len(slurm.queue()) == 1 or None, slurm)
    assert on("action=status", f"seed={seeds}").count("cancelled") >= 23

    smoke = checkout / "conf/budget/smoke.yaml"
    smoke.write_text(smoke.read_text().replace("epochs: 2", "epochs: 3"))
    (checkout / "src/quantable/run.py").write_text("raise RuntimeError('edited')\n")
    (job,) = slurm.queue()
    slurm.run("scontrol", "release", job)
    (record,) = wait_for(lambda: store.records() or None, slurm)
    assert record.seed == 0
    assert len(record.history) == 2
    assert (record.provenance.commit, record.provenance.clean) == (commit, True)


def running(store: Store, slurm: Cluster, after: Status | None = None) -> Status:
    """The cell's status once it is within an epoch and has a checkpoint.

    ``after`` another attempt, and beyond it.
    """

    def look() -> Status | None:
        status = the_status(store)
        assert status is None or status.state not in SETTLED, log(store)
        if status is None or status.state != "running" or status.place % 1 == 0:
            return None
        if status.seconds_left is None:  # the place is that of the attempt before
            return None
        if not [*(store.folder / "cells").glob("*/last.ckpt")]:
            return None
        if after is None or (status.pid != after.pid and status.place > after.place):
            return status
        return None

    return wait_for(look, slurm)


def requeue_three_times(store: Store, slurm: Cluster) -> int:
    status = None
    for _ in range(3):
        status = running(store, slurm, status)
        slurm.run("scontrol", "requeue", str(status.job))
    return 3


def signalled(store: Store, slurm: Cluster) -> int:
    slurm.run("scancel", "--signal=USR2", str(running(store, slurm).job))
    return 1


def kill_the_step(store: Store, slurm: Cluster) -> int:
    pid = running(store, slurm).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return 1


def reach_the_time_limit(store: Store, slurm: Cluster) -> int:
    """Hold the process until SLURM, which lets it go on for that, warns it of its limit."""
    status = running(store, slurm)
    pid, job = status.pid, f"JobId={status.job}"
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: stopped(pid) or None, slurm)
    slurm.run("scontrol", "update", job, "EndTime=now+2minutes")
    wait_for(lambda: not stopped(pid) or None, slurm)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or None, slurm)
    slurm.run("scontrol", "update", job, "TimeLimit=20")  # of the next attempt
    return 1


def stopped(pid: int) -> bool:
    """Whether a process is there and held by SIGSTOP."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def restart_the_node_daemon(store: Store, slurm: Cluster) -> int:
    node = slurm.node_of(str(running(store, slurm).job))
    slurm.stop_node(node)
    slurm.start_node(node)
    return 0  # its steps live on


def lose_the_node(store: Store, slurm: Cluster) -> int:
    """As when a machine goes and comes back: SLURM queues its jobs again."""
    node = slurm.node_of(str(running(store, slurm).job))
    slurm.lose_node(node)
    slurm.run("scontrol", "update", f"NodeName=n{node}", "State=DOWN", "Reason=lost")
    slurm.start_node(node)
    return 1


ELSEWHERE = "executor.more={exclude:n2}"
DISTURBANCES = {
    requeue_three_times: [ELSEWHERE],
    signalled: [ELSEWHERE],
    kill_the_step: [ELSEWHERE],
    reach_the_time_limit: [ELSEWHERE, "executor.signal_seconds=60"],
    restart_the_node_daemon: [ELSEWHERE],
    lose_the_node: ["executor.more={nodelist:n2}"],
}


def test_a_disturbed_cell_ends_as_an_undisturbed_one(slurm, tmp_path) -> None:
    words = [*TINY, *LONG]
    stores = {disturb: Store(tmp_path / disturb.__name__) for disturb in DISTURBANCES}
    for disturb, more in DISTURBANCES.items():
        store = f"store={stores[disturb].folder}"
        good(run_py(slurm, *words, *ON_SLURM, *more, store, "action=submit"))
    with ThreadPoolExecutor(len(DISTURBANCES) + 1) as threads:
        calm = threads.submit(
            run_py, slurm, *words, "trainer.threads=1", f"store={tmp_path / 'calm'}"
        )
        begun = {
            disturb: threads.submit(disturb, store, slurm) for disturb, store in stores.items()
        }
    good(calm.result())
    (expected,) = Store(tmp_path / "calm").records()
    for disturb, store in stores.items():
        times = begun[disturb].result()
        wait_for(lambda store=store: store.records() or None, slurm)
        (record,) = store.records()
        assert numbers(record) == numbers(expected), disturb.__name__
        assert record.provenance.resumed >= times, disturb.__name__
    # The cluster's own copies of the jobs are gone too, and nobody keeps a lock or a checkpoint.
    wait_for(lambda: not slurm.queue() or None, slurm)
    for store in stores.values():
        assert [path.name for path in (store.folder / "cells").iterdir()] == [], log(store)


def test_two_submitters_and_a_local_runner_run_each_cell_once(slurm, tmp_path) -> None:
    store = Store(tmp_path / "runs")
    words = [*TINY, "rows=bits2,bits4", "seed=0", f"store={store.folder}"]
    submit = [*words, *ON_SLURM, "action=submit"]
    with ThreadPoolExecutor(3) as threads:
        done = [
            threads.submit(run_py, slurm, *submit),
            threads.submit(run_py, slurm, *submit),
            threads.submit(run_py, slurm, *words, "trainer.threads=1"),
        ]
    for each in done:
        good(each.result())
    wait_for(lambda: not slurm.queue() or None, slurm)
    assert sorted(record.row for record in store.records()) == ["bits2", "bits4"]
    names = [record.name for record in store.records()]
    assert [getattr(read_status(store, name), "attempts", None) for name in names] == [1, 1]
