"""A cell in W&B: one continuous history however often it was interrupted, watched or replayed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hand_records import keep, record_of, reporter
from stand_in import Server, serving

from quantable.base.errors import UserError
from quantable.cli import run_main
from quantable.config.composition import compose_run
from quantable.config.signature import portable, signature
from quantable.logger import wandb_run
from quantable.logger.wandb_run import (
    About,
    CellRun,
    library,
    metrics,
    ready,
    replay,
    send,
    steps_in,
    summary,
)
from quantable.store.record import Record

ROOT = Path(__file__).parents[2]
INTO = {"project": "quantable", "entity": None, "tags": ["mine"]}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """AD: 16 bit for three epochs, then 4 bit for two."""
    about = reporter(tmp_path)
    phases = (16, [(80.0, 81.0), (85.0, 86.0), (88.0, 87.0)]), (4, [(86.0, 85.0), (87.0, 86.5)])
    return record_of(about.cell("ad", "paper", 0), *phases)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as running:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield running


def attempt(record: Record, folder: Path, epochs: int) -> CellRun:
    """Take a run up and send its first epochs, as a checkpoint holds them."""
    run = CellRun(record.name, About.of(record), into=INTO, folder=folder)
    bits = {phase.index: phase.bit_map for phase in record.phases}
    for line in record.history[:epochs]:
        run.line(line, bits[line.phase])
    return run


def all_steps(folder: Path) -> list[list[int]]:
    """Steps in each offline attempt's file, in the order of the attempts."""
    return [sorted(steps_in(path)) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


# Offline


def test_offline_attempts_together_hold_every_epoch_once(record: Record, tmp_path: Path) -> None:
    attempt(record, tmp_path, 2).stop()
    attempt(record, tmp_path, 2).stop()  # nothing new was kept
    attempt(record, tmp_path, 4).finish(record)
    assert all_steps(tmp_path) == [[0, 1], [], [2, 3, 4]]


def test_epochs_that_a_killed_attempt_lost_are_sent_again(record: Record, tmp_path: Path) -> None:
    lost = attempt(record, tmp_path, 3)
    lost.stop()
    library().teardown()  # as when the process ends: only now all is written
    file = Path(lost.run.settings.sync_file)
    file.write_bytes(file.read_bytes()[:7])  # its head: all that a kill in the first seconds leaves
    assert steps_in(file) == set()
    attempt(record, tmp_path, 5).finish(record)
    assert [step for steps in all_steps(tmp_path) for step in steps] == [0, 1, 2, 3, 4]


def test_a_fault_of_wandb_does_not_end_the_run(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = attempt(record, tmp_path, 1)
    gone = ConnectionResetError("its process is gone")
    with monkeypatch.context() as patch:
        patch.setattr(run.run, "log", Mock(side_effect=gone))
        run.finish(record)
    assert capsys.readouterr().err.count("its process is gone: the run goes on") == 1
    assert run.lost
    run.run.finish()


# Replay


def test_a_replay_sends_each_epoch_once_also_the_second_time(
    record: Record, tmp_path: Path, server: Server
) -> None:
    for _ in range(2):
        replay([record], INTO, tmp_path)
    assert server.steps(record.name) == [0, 1, 2, 3, 4]
    assert server.received[record.name] == [0, 1, 2, 3, 4]  # over all requests
    about = server.begun[record.name]
    assert (about["groupName"], about["jobType"]) == ("hand ad", "ad")
    assert about["displayName"] == "hand ad seed 0"
    assert about["tags"] == ["paper", "mine"]
    config = {key: each["value"] for key, each in json.loads(about["config"]).items()}
    plain = {
        "table": "hand",
        "row": "ad",
        "seed": 0,
        "budget": "paper",
        "method": "activation_density",
    }
    assert {key: config[key] for key in plain} == plain
    assert (config["network"], config["data"]) == (config["model.name"], config["data.id"])
    lines = server.lines[record.name]
    assert [line["test/top1_pct"] for line in lines] == [81.0, 86.0, 87.0, 85.0, 86.5]
    assert [line["bits/weight/conv1"] for line in lines] == [16, 16, 16, 4, 4]
    assert [line["val/top1_pct"] for line in lines] == [80.0, 85.0, 88.0, 86.0, 87.0]
    assert server.artifacts[f"record-{record.name}"] == ["record.json"]
    assert Record.model_validate_json(server.files["record.json"]) == record
    (table,) = (name for name in server.files if name.startswith("results.table"))
    kept = json.loads(server.files[table])
    assert kept["columns"][:5] == ["table", "row", "seed", "budget", "which"]
    assert kept["data"][0][:5] == ["hand", "ad", 0, "paper", "last"]


def test_a_replay_goes_on_where_a_watched_run_broke_off(
    record: Record, tmp_path: Path, server: Server
) -> None:
    attempt(record, tmp_path, 2).stop()
    assert send(record, INTO, tmp_path) == 3
    assert server.received[record.name] == [0, 1, 2, 3, 4]


def test_replaying_a_table_takes_its_cells_from_the_store(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+table=ad_quickstart", "budget=smoke", "rows=float", f"store={tmp_path}"]
    from quantable.tables.schema import load_table

    about = reporter(tmp_path, load_table("ad_quickstart"), budget="smoke")
    kept = keep(about, "float", 1, (32, [(50.0, 51.0), (60.0, 61.0)]))
    assert run_main([*words, "seed=0,1", "action=wandb_replay", "logger.project=mine"]) == 0
    assert server.received == {kept.name: [0, 1]}
    assert server.begun[kept.name]["project"] == "mine"
    assert f"float seed 1 [{kept.name}]: 2 of 2 epochs sent" in capsys.readouterr().out


def test_a_replay_needs_a_server() -> None:
    with pytest.raises(UserError, match=r"offline; this needs its server: .*WANDB_MODE=online"):
        replay([], INTO, Path())


# A server that fails


def test_a_run_that_was_deleted_is_sent_anew_under_another_id(
    record: Record, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "BEGIN_SECONDS", 4.0)
    attempt(record, tmp_path, 2).stop()
    server.delete(record.name)
    anew = f"{record.name}.2"
    replay([record], INTO, tmp_path)
    assert server.steps(anew) == [0, 1, 2, 3, 4]
    server.asked.clear()
    replay([record], INTO, tmp_path)  # which knows it now
    assert server.received[anew] == [0, 1, 2, 3, 4]
    assert server.asked.count("UpsertBucket") <= 2


def test_a_run_deleted_while_it_is_watched_ends_nothing(
    record: Record, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "BEGIN_SECONDS", 4.0)
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 4.0)
    run = attempt(record, tmp_path, 2)
    server.delete(record.name)
    run.finish(record)
    replay([record], INTO, tmp_path)
    assert server.steps(f"{record.name}.2") == [0, 1, 2, 3, 4]


# A thread of W&B's that looks after a run whose end was given up outlives its service here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_goes_away_is_said_and_a_replay_completes_the_curves(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        place = {"into": INTO, "folder": tmp_path, "patience": 3.0}
        run = CellRun(record.name, About.of(record), **place)
        bits = {phase.index: phase.bit_map for phase in record.phases}
        for line in record.history[:2]:
            run.line(line, bits[line.phase])
        wait_for(lambda: server.steps(record.name) == [0, 1])
    run.finish(record)
    assert "goes on without it; action=wandb_replay sends" in capsys.readouterr().err
    library().teardown()
    # Nobody answers at the start either: the cell goes on, and the first command is told.
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(wandb_run, "BEGIN_SECONDS", 4.0)
    ready()
    assert send(record, INTO, tmp_path, 3.0) is None
    assert capsys.readouterr().err.count(": the run goes on without it") >= 1
    with pytest.raises(UserError, match=r"logger=wandb: |not sent whole"):
        replay([record], INTO, tmp_path)
    library().teardown()
    with serving(server) as again:
        monkeypatch.setenv("WANDB_BASE_URL", again.url)
        replay([record], INTO, tmp_path)
        assert again.received[record.name] == [0, 1, 2, 3, 4]  # no gap, no repeat


def wait_for(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What is said where W&B is not to be had


def test_without_a_key_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"`wandb login`.*WANDB_MODE=offline needs no key"):
        ready()


def test_without_the_package_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["+table=ad_quickstart", "rows=float", "budget=smoke", f"store={tmp_path}"]
    with pytest.raises(UserError, match=r"pip install 'quantable\[wandb\]'"):
        run_main([*words, "logger=wandb"])
    assert not list(tmp_path.glob("cells/*"))  # before anything was trained
    run_main([*words, "action=plan"])


def test_wandb_is_imported_only_when_it_is_used() -> None:
    check = (
        "import sys; from quantable.cli import run_main; "
        "run_main(['+table=ad_quickstart', 'action=plan', 'logger=wandb']); import quantable.run; "
        "sys.exit(any(name.startswith('wandb') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True)


# What is sent


def test_where_a_run_is_watched_changes_no_signature() -> None:
    plain = compose_run([])
    watched = compose_run(["logger=wandb", "logger.entity=somebody"])
    assert signature(watched) == signature(plain)
    assert portable(watched) == portable(plain)


def test_a_line_has_every_number_of_the_history(record: Record) -> None:
    line = record.history[3].model_copy(
        update={"own": {"density": {"conv1": 0.5}, "total": 0.25}, "bits": {"fc": (3, 5)}}
    )
    sent = metrics(line, record.phases[1].bit_map)
    kept = line.model_dump(exclude={"own", "bits"}, exclude_none=True)
    assert sorted(kept.values()) == sorted(
        value for name, value in sent.items() if not name.startswith(("density", "bits", "total"))
    )
    assert (sent["density/conv1"], sent["total"]) == (0.5, 0.25)
    assert {name: n for name, n in sent.items() if name.startswith("bits")} == {
        "bits/weight/fc": 3,  # the line's own go before those of the phase
        "bits/act/fc": 5,
    }


def test_a_summary_has_costs_results_and_origin(record: Record) -> None:
    sent = summary(record)
    assert (sent["cost/macs_m"], sent["last/test_top1_pct"], sent["resumed"]) == (9.5, 86.5, 0)
    assert sent["commit"] == "0" * 40
