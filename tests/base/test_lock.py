"""Locks on a shared file system: one holder at a time, and none for ever."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from quantable.base import lock
from quantable.base.lock import STALE_SECONDS, Holder, claim, hold

ELSEWHERE = Holder(
    token="theirs", host="node7", space="another boot", pid=4711, began="1", job="12", restart=0
)
TAKE = """
import sys, time
from pathlib import Path
from quantable.base.lock import claim
sys.stdin.readline()
with claim(Path(sys.argv[1])) as claimed:
    print(claimed, flush=True)
    sys.stdin.readline()
"""


def leave(path: Path, holder: Holder, age: float = 0.0) -> None:
    """Write a lock as ``holder`` would have, last touched ``age`` seconds ago."""
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age,) * 2)


def is_free(path: Path) -> bool:
    with claim(path) as claimed:
        return claimed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell.lock"


def test_another_machines_lock_holds_while_it_is_touched(path: Path) -> None:
    leave(path, ELSEWHERE, age=STALE_SECONDS - 20)
    assert hold(path) == ELSEWHERE
    assert not is_free(path)
    leave(path, ELSEWHERE, age=STALE_SECONDS + 20)
    assert hold(path) is None
    assert is_free(path)
    assert list(path.parent.iterdir()) == []  # nothing is left of the takeover either


def test_the_age_is_by_the_file_servers_clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(path, ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is wrong by decades
    assert hold(path) == ELSEWHERE


def test_a_later_attempt_of_the_same_job_takes_over_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(path, ELSEWHERE)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert not is_free(path)  # another process of the same attempt
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_free(path)


def test_a_pid_that_has_come_again_is_no_holder(path: Path) -> None:
    with claim(path):
        me = hold(path)
    assert me is not None
    leave(path, replace(me, began="0"))
    assert hold(path) is None
    leave(path, me)
    assert hold(path) == me


def test_a_lock_being_written_holds(path: Path) -> None:
    path.touch()
    assert not is_free(path)
    os.utime(path, (0, 0))
    assert is_free(path)


def test_of_several_takers_one_wins(path: Path) -> None:
    leave(path, ELSEWHERE, age=STALE_SECONDS + 20)
    command = [sys.executable, "-c", TAKE, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    takers = [subprocess.Popen(command, text=True, **pipes) for _ in range(5)]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    said = [taker.stdout.readline().strip() for taker in takers if taker.stdout]
    for taker in takers:
        taker.communicate("end\n")
    assert sorted(said) == ["False"] * 4 + ["True"]
    assert list(path.parent.iterdir()) == []


def test_who_slept_too_long_does_not_remove_the_next_holders_lock(path: Path) -> None:
    with claim(path) as claimed:
        assert claimed
        leave(path, ELSEWHERE)  # taken over meanwhile
    assert hold(path) == ELSEWHERE


def test_a_taker_that_died_at_it_does_not_block_the_lock_for_ever(path: Path) -> None:
    leave(path, ELSEWHERE, age=STALE_SECONDS + 20)
    marker = path.with_name(f".{path.name}.theirs.0")
    marker.touch()
    assert not is_free(path)
    os.utime(marker, (0, 0))
    assert is_free(path)
    assert list(path.parent.iterdir()) == []


def test_a_holder_keeps_its_lock_young(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with claim(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
