"""One holder at a time, also on a file system that several machines share.

A lock is a file made with O_EXCL, which holds on NFS too, and kept young by its holder. It names
the holder, so that one left behind is known at once on the same machine and by a later attempt of
the same SLURM job, and elsewhere by its age.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # well above the 60 s for which NFS may show an old time


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. ``space`` is where ``pid`` means this process: a boot and a namespace."""

    token: str
    host: str
    space: str
    pid: int
    began: str  # when the process began, as the kernel counts: a pid comes again
    job: str | None  # of SLURM
    restart: int  # how often SLURM had queued the job again

    @property
    def here(self) -> bool:
        """Whether the holder is, or was, a process of this machine."""
        return self.space == _space()


def hold(path: Path) -> Holder | None:
    """Return the live holder of the lock ``path``, or None."""
    holder = _read(path)
    return None if holder is None or _left_behind(path, holder) else holder


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold the lock ``path``, or yield False when somebody else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    me = _me()
    if not (_create(path, me) or _take_over(path, me)):
        yield False
        return
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, me, released), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        released.set()
        beat.join()
        _release(path, me)


def _create(path: Path, me: Holder) -> bool:
    """Make the file; False where there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(me), file)
    return True


def _take_over(path: Path, me: Holder) -> bool:
    """Replace a lock that was left behind; of several takers at most one comes to it."""
    holder = _read(path)
    if holder is None:
        return _create(path, me)
    if not _left_behind(path, holder):
        return False
    with _exclusive(path, holder) as mine:
        if not mine or _read(path) != holder:  # somebody was faster
            return False
        temporary = path.with_name(f".{path.name}.{me.token}")
        temporary.write_text(json.dumps(asdict(me)))
        os.replace(temporary, path)
        return True


def _release(path: Path, me: Holder) -> None:
    """Remove the lock, unless it was taken over from a holder that slept too long."""
    with _exclusive(path, me) as mine:
        if mine and _read(path) == me:
            path.unlink(missing_ok=True)


@contextmanager
def _exclusive(path: Path, holder: Holder) -> Iterator[bool]:
    """Be the only one to end the lock of ``holder``; False where somebody else is at it."""
    for n in count():
        marker = path.with_name(f".{path.name}.{holder.token}.{n}")
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if _age(marker) < STALE_SECONDS:
                yield False
                return
            continue  # its maker died at it
        try:
            yield True
        finally:
            for i in range(n + 1):
                path.with_name(f".{path.name}.{holder.token}.{i}").unlink(missing_ok=True)
        return


def _beat(path: Path, me: Holder, released: threading.Event) -> None:
    """Touch the lock until it is released; the file server's clock sets the time."""
    while not released.wait(BEAT_SECONDS):
        try:
            if _read(path) != me:
                return
            os.utime(path)
        except OSError:
            continue  # a file server that is away comes back


def _left_behind(path: Path, holder: Holder) -> bool:
    """Whether the holder is gone: known at once here and in its own job, else by the lock's age."""
    if holder.here and holder.pid:
        return _began(holder.pid) != holder.began
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and holder.job == job and holder.restart < _restart():
        return True
    return _age(path) > STALE_SECONDS


def _read(path: Path) -> Holder | None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # being written, or its writer died at it
        return Holder(token="unwritten", host="", space="", pid=0, began="", job=None, restart=0)


def _me() -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        space=_space(),
        pid=os.getpid(),
        began=_began(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID"),
        restart=_restart(),
    )


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _space() -> str:
    """Name the set of processes that this one's pid is unique in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _began(pid: int) -> str:
    """When a process of this machine began; empty where there is none, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not _alive(pid) else "alive"
    return "" if fields[0] in ("Z", "X") else fields[19]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    """Seconds since the file was touched, both times by the file server's clock."""
    clock = path.with_name(f".{uuid.uuid4().hex}.clock")
    try:
        with path.open() as file:  # opening asks the server anew
            touched = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0
    try:
        clock.touch()
        return clock.stat().st_mtime - touched
    except OSError:  # a store that may only be read
        return time.time() - touched
    finally:
        clock.unlink(missing_ok=True)
