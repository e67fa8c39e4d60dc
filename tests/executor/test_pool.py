"""The pool: who runs when, what is tried again, what stops it. Most workers here train nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hand_records import record_of

from quantable.base.files import write_json
from quantable.base.signals import Preempted
from quantable.executor import forks, pool, progress
from quantable.executor.board import Work
from quantable.executor.pool import run_pool
from quantable.executor.status import cancel, read_status
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

ROOT = Path(__file__).parents[2]
TABLE = load_table("ad_quickstart")
# Instead of training: what the file <store>/orders/<name> says, one word for each attempt.
STAND_IN = """
import json, os, shutil, signal, time
from pathlib import Path
from quantable.executor.forks import serve

class Told(Exception):
    pass

def tell(*_):
    raise Told

def stand_in(path):
    store, name = path.parents[1], path.stem
    said = [name, os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")]
    signal.signal(signal.SIGTERM, tell)
    with open(store / "began", "a") as file:
        print(json.dumps(said), file=file)
    orders = store / "orders" / name
    word, _, rest = orders.read_text().partition(" ") if orders.exists() else ("", "", "")
    orders.parent.mkdir(exist_ok=True)
    orders.write_text(rest)
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    if word in ("2", "75"):
        return int(word)
    try:
        while word == "stay":
            time.sleep(0.01)
    except Told:
        return 75
    if word == "train":
        told = {"epoch": 1, "epochs": 4, "batch": 3, "batches": 6, "loss": 0.5}
        told |= {"val_top1_pct": 50.0, "seconds_left": 90, "state": "running", "pid": os.getpid()}
        (store / "status" / f"{name}.new").write_text(json.dumps(told))
        os.replace(store / "status" / f"{name}.new", store / "status" / f"{name}.json")
        time.sleep(1)
    time.sleep(0.2)
    (store / "records").mkdir(exist_ok=True)
    shutil.copy(store / "made" / f"{name}.json", store / "records" / f"{name}.json")
    return 0

serve(stand_in)
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(forks, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(pool, "keep_source", lambda store: "source/0")
    return Store(tmp_path / "store")


def work_of(store: Store, *words: str, rows=("float", "bits4", "ad")) -> Work:
    """The table's cells, with records lying ready for the stand-in."""
    asked = Asked(("executor=pool", "trainer.accelerator=cpu", *words), "smoke", rows, (0,))
    cells = asked.cells(TABLE)
    for cell in cells:
        record = record_of(cell, (4, [(80.0, 81.0)]))
        write_json(store.folder / "made" / f"{record.name}.json", record.model_dump(mode="json"))
    return Work(TABLE, asked, cells)


def order(store: Store, name: str, words: str) -> None:
    (store.folder / "orders").mkdir(parents=True, exist_ok=True)
    (store.folder / "orders" / name).write_text(words)


def began(store: Store) -> list[list[str]]:
    path = store.folder / "began"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def test_each_cell_runs_once_with_its_share_of_the_cores(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    work = work_of(store, "executor.workers=2")
    assert run_pool([work], store) == {}
    lines = began(store)
    assert sorted(line[0] for line in lines) == sorted(cell.signature for cell in work.cells)
    assert {line[1] for line in lines} == {"3"}
    assert work.cells[2].signature in {line[0] for line in lines[:2]}  # the longest begins early
    assert run_pool([work], store) == {}
    assert len(began(store)) == 3


def test_lines_name_the_cells_that_train(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    work = work_of(store, "executor.workers=2", rows=("float", "bits4"))
    for cell in work.cells:
        order(store, cell.signature, "train")
    assert run_pool([work], store) == {}
    said = capsys.readouterr().err.splitlines()
    for cell in work.cells:
        planned = cell.config["recipe"]["epochs"]
        assert f"{cell.label} begins: run {cell.signature}, {planned} epochs planned" in said
        place = "epoch 2 of at most 4, loss 0.5000, held-out 50.00 %, about 1 min left"
        assert f"{cell.label}: {place}" in said


def test_a_killed_cell_is_tried_again_and_one_that_fails_is_not(store: Store) -> None:
    work = work_of(store, "executor.workers=1", "executor.retries=2")
    killed, failing, hopeless = (cell.signature for cell in work.cells)
    order(store, killed, "die 75 die")
    order(store, failing, "2")
    order(store, hopeless, "die die die die die")
    failures = run_pool([work], store)
    assert set(failures) == {failing, hopeless}
    assert "signal 9" in failures[hopeless]
    names = [line[0] for line in began(store)]
    assert [names.count(n) for n in (killed, failing, hopeless)] == [4, 1, 3]


def test_a_cancelled_cell_is_left_alone(store: Store) -> None:
    work = work_of(store, "executor.workers=1")
    first = work.cells[0].signature
    cancel(store, first)
    failures = run_pool([work], store)
    assert list(failures) == [first]
    assert failures[first] == "float seed 0: cancelled"


def test_a_signal_stops_the_workers_with_their_checkpoints(store: Store) -> None:
    work = work_of(store, "executor.workers=2")
    for cell in work.cells:
        order(store, cell.signature, "stay")

    def stop() -> None:
        deadline = time.monotonic() + 60
        while len(began(store)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Preempted):
        run_pool([work], store)
    stopper.join()
    assert len(began(store)) == 2
    statuses = [read_status(store, cell.signature) for cell in work.cells]
    assert [status.state for status in statuses if status] == ["queued"] * 3


def test_without_the_process_that_starts_workers_it_stops(store: Store) -> None:
    work = work_of(store, "executor.workers=1")
    order(store, work.cells[0].signature, "orphan")
    with pytest.raises(ChildProcessError, match="ended with status -9"):
        run_pool([work], store)


@pytest.mark.parametrize(("free_gib", "at_once"), [(1.0, 1), (4.1, 2), (100.0, 3)])
def test_no_further_worker_starts_without_memory_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, free_gib: float, at_once: int
) -> None:
    monkeypatch.setattr(pool, "_free", lambda: free_gib * pool.GIB)
    monkeypatch.setattr(pool, "_resident", lambda pid: 0.0)  # they have not taken theirs yet
    most = 0
    show: Callable[..., None] = pool._show

    def count(of: pool.Pool, worker: pool.Worker) -> None:
        nonlocal most
        most = max(most, len(of.running))
        show(of, worker)

    monkeypatch.setattr(pool, "_show", count)
    work = work_of(store, "executor.workers=3", "executor.memory_gib=2")
    assert run_pool([work], store) == {}
    assert most == at_once


def test_each_worker_has_a_gpu_of_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(pool, "_free", lambda: 1e12)
    assert run_pool([work_of(store, "trainer.accelerator=auto")], store) == {}
    assert {line[2] for line in began(store)} == {"4", "7"}


@pytest.mark.slow
def test_side_by_side_is_as_one_after_the_other(tmp_path: Path) -> None:
    small = ["data.train_images=256", "data.val_images=64", "data.test_images=64"]
    words = ["+table=ad_quickstart", "budget=smoke", "rows=float,bits4", *small]
    records = {}
    for more in (["executor=inline", "trainer.threads=1"], ["executor=pool", "executor.workers=2"]):
        store = Store(tmp_path / more[0])
        command = [sys.executable, "reproduce/run.py", *words, *more, "trainer.accelerator=cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        affinity = f"store={store.folder}"
        subprocess.run([*command, affinity], cwd=ROOT, env=environment, check=True)
        records[more[0]] = store.records()
    alone, together = records.values()
    for one, other in zip(alone, together, strict=True):
        assert one.metrics == other.metrics
        assert one.config == other.config
        assert one.provenance.command == other.provenance.command
        assert one.provenance.commit == other.provenance.commit
        lines = ([e.model_copy(update={"seconds": 0.0}) for e in r.history] for r in (one, other))
        assert next(lines) == next(lines)
