"""Cells side by side on this machine, each in a process of its own with its share of the cores."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from quantable.base.signals import heed, ignore
from quantable.executor.attempt import note_done
from quantable.executor.board import Board, Work
from quantable.executor.expected import expected, lasting
from quantable.executor.forks import Fork, Forks
from quantable.executor.frozen import freeze, keep_source
from quantable.executor.inline import Failures, failed_need, listening
from quantable.executor.progress import Progress
from quantable.executor.status import cancelled, note_death, queued, read_status, write_status
from quantable.executor.work import AGAIN, THREAD_VARIABLES
from quantable.store.bits_file import write_bits
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell

LOOK_SECONDS = 0.2  # between two looks at the workers
SCAN_SECONDS = 2.0  # between two looks at all that is left
GIB = 2**30


@dataclass
class Worker:
    """A running process and its cell; ``slot`` counts from 0, and names its GPU."""

    process: Fork
    work: Work
    cell: Cell
    name: str
    slot: int


@dataclass
class Pool:
    """The processes of one command, and what is left for them."""

    store: Store
    forks: Forks
    workers: int
    threads: int
    gpus: Sequence[str]
    memory_gib: float
    retries: int
    source: str
    progress: Progress
    failures: Failures = field(default_factory=dict)
    running: list[Worker] = field(default_factory=list)


def run_pool(works: Sequence[Work], store: Store) -> Failures:
    """Train what misses, as many cells at once as there are workers."""
    board = Board(store)
    left = {cell.signature: (work, cell) for work in works for cell in work.cells}
    todo = [c for _, c in left.values() if not store.has(c.signature, board.variant(c))]
    if not todo:
        return {}
    config = next(iter(left.values()))[1].config
    options, gpus = config["executor"], _gpus(config["trainer"]["accelerator"])
    cores = len(os.sched_getaffinity(0))
    workers = options["workers"] or len(gpus) or max(cores // 2, 1)
    threads, source = max(cores // workers, 1), keep_source(store)
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
    variables["PYTHONPATH"] = str((store.folder / source / "src").resolve())
    with listening(), Progress(len(left)) as progress, closing(Forks(variables)) as forks:
        pool = Pool(
            store,
            forks,
            workers=workers,
            threads=threads,
            gpus=gpus,
            memory_gib=options["memory_gib"],
            retries=options["retries"],
            source=source,
            progress=progress,
        )
        try:
            if not gpus and (said := _expected(todo, threads)) is not None:
                progress.say(said)
            _run(pool, board, list(left.values()))
        except BaseException:
            _stop(pool)
            raise
    return pool.failures


def _expected(cells: Sequence[Cell], threads: int) -> str | None:
    """What ``expected`` says of a worker's share of the machine; torch stays out of this process.

    Threads that the user gives are the worker's.
    """
    if not (long := lasting(cells)):
        return None
    trainer = long[0].config["trainer"]
    shared = trainer | {"threads": trainer["threads"] or threads}
    first = replace(long[0], config={**long[0].config, "trainer": shared})
    with (
        suppress(BrokenProcessPool),  # the memory was not enough; a worker will say so
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=ignore) as apart,
    ):
        return apart.submit(expected, [first, *long[1:]]).result()
    return None


def _run(pool: Pool, board: Board, left: list[tuple[Work, Cell]]) -> None:
    for _, cell in left:
        _queue(pool.store, cell, cell_name(cell.signature, board.variant(cell)))
    scan = 0.0  # when to look at all cells next: others may finish some too
    while left or pool.running:
        heed()
        running = len(pool.running)
        left += _reap(pool)
        if len(pool.running) < running or time.monotonic() >= scan:
            scan = time.monotonic() + SCAN_SECONDS
            left = [(work, work.again(cell)) for work, cell in left]
            left = [(work, cell) for work, cell in left if not _settled(pool, board, cell)]
            _start_some(pool, board, left)
        for worker in pool.running:
            _show(pool, worker)
        time.sleep(LOOK_SECONDS)


def _start_some(pool: Pool, board: Board, left: list[tuple[Work, Cell]]) -> None:
    """Start what can be started, as long as there is room, and take it off the list."""
    needed = Counter(need for _, cell in left for need in cell.needs)
    for work, cell in sorted(left, key=lambda pair: _rank(pair[1], needed)):
        if not _room(pool):
            break
        if _ready(pool, board, cell):
            _start(pool, board, work, cell)
            left.remove((work, cell))


def _rank(cell: Cell, needed: Counter[str]) -> tuple[int, int, int]:
    """What to start first: what others wait for, then what takes longest, as far as one can see."""
    several = cell.config["quantizer"]["learns_bits"]  # trains in several phases
    return -needed[cell.signature], -several, -cell.config["recipe"]["epochs"]


def _settled(pool: Pool, board: Board, cell: Cell) -> bool:
    """Whether a cell that no worker has needs none."""
    if cell.impossible is not None:
        pool.progress.leave_out(cell)
        return True
    variant = board.variant(cell)
    if pool.store.has(cell.signature, variant):
        note_done(pool.store, cell_name(cell.signature, variant))
        if cell.bits is not None:
            write_bits(cell.bits, pool.store.bits(cell.bits_name))
        pool.progress.skip(cell)
        return True
    message = failed_need(cell, pool.failures)
    if message is None and cancelled(pool.store, cell_name(cell.signature, variant)):
        message = f"{cell.label}: cancelled"
    if message is not None:
        _failed(pool, cell, message)
    return message is not None


def _failed(pool: Pool, cell: Cell, message: str) -> None:
    pool.failures[cell.signature] = message
    pool.progress.failed(cell)


def _ready(pool: Pool, board: Board, cell: Cell) -> bool:
    """Whether a cell can start: what it needs is there, and no other runner has it."""
    variant = board.variant(cell)
    if cell.search is not None or any(not pool.store.has(need, variant) for need in cell.needs):
        return False
    return not pool.store.running(cell_name(cell.signature, variant))


def _room(pool: Pool) -> bool:
    """Whether a further worker may start; one always may."""
    if len(pool.running) >= pool.workers:
        return False
    to_come = sum(
        max(pool.memory_gib * GIB - _resident(worker.process.pid), 0) for worker in pool.running
    )
    return not pool.running or _free() - to_come >= pool.memory_gib * GIB


def _start(pool: Pool, board: Board, work: Work, cell: Cell) -> None:
    variant = board.variant(cell)
    assert variant is not None
    path = freeze(cell, variant, pool.store, pool.source, threads=pool.threads)
    slot = min(set(range(pool.workers)) - {worker.slot for worker in pool.running})
    gpu = pool.gpus[slot % len(pool.gpus)] if pool.gpus else None
    process = pool.forks.start(path.resolve(), gpu)
    pool.progress.start(cell)
    pool.running.append(Worker(process, work, cell, cell_name(cell.signature, variant), slot))


def _reap(pool: Pool) -> list[tuple[Work, Cell]]:
    """Take workers that have ended off the list; the cells that are to begin again."""
    again = []
    pool.forks.look()
    for worker in pool.running[:]:
        code, cell = worker.process.code, worker.cell
        if code is None:
            continue
        pool.running.remove(worker)
        if code == 0:
            record = pool.store.find(cell.signature, worker.name.partition("-")[2])
            assert record is not None
            pool.progress.finish(cell, record)
        elif code == AGAIN and not cancelled(pool.store, worker.name):
            _queue(pool.store, cell, worker.name)
            again.append((worker.work, cell))
        elif code == AGAIN:
            _failed(pool, cell, f"{cell.label}: cancelled")
        elif code < 0 and note_death(pool.store, worker.name, pool.retries, f"signal {-code}"):
            again.append((worker.work, cell))
        else:
            _failed(pool, cell, _said(pool.store, worker))
        if again and again[-1][1] is cell:
            pool.progress.stop(cell)
    return again


def _said(store: Store, worker: Worker) -> str:
    status = read_status(store, worker.name)
    error = "\n".join(status.error) if status is not None else ""
    return f"{worker.cell.label}: {error or f'exit status {worker.process.code}'}"


def _queue(store: Store, cell: Cell, name: str) -> None:
    """Let others see that this process has the cell in hand."""
    if not store.running(name):
        write_status(store, name, queued(cell, read_status(store, name)))


def _show(pool: Pool, worker: Worker) -> None:
    status = read_status(pool.store, worker.name)
    if status is not None and status.pid == worker.process.pid and status.tick is not None:
        pool.progress.move(worker.cell, status.tick)


def _stop(pool: Pool) -> None:
    """Let every worker write its checkpoint and end."""
    for worker in pool.running:
        with suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGTERM)
    pool.forks.wait()


def _gpus(accelerator: str) -> list[str]:
    """Names of the GPUs that workers may have, without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if accelerator == "cpu":
        return []
    if given is not None:
        return [name for name in given.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def _free() -> float:
    """Bytes that this machine, or the container around this process, has left."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:  # no Linux
        return float("inf")
    free = float(fields["MemAvailable"].split()[0]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        used = float((group / "memory.current").read_text())
    except OSError:
        return free
    return free if most == "max" else min(free, float(most) - used)


def _resident(pid: int) -> float:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0.0
    return float(pages) * os.sysconf("SC_PAGE_SIZE")
