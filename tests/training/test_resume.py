"""A run killed at any moment and started again ends as one never killed, to the last bit."""

from pathlib import Path

import pytest
from killed_runs import (
    A2Q,
    DFQ,
    EDGE,
    FRACBITS,
    JOINT,
    ONLY_EPOCHS,
    assert_same,
    checkpoint,
    finish,
    kill_after,
    kill_at_once,
    start,
)

from quantable.store.store import Store

pytestmark = pytest.mark.slow  # each test starts several runs


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("unbroken")
    finish(start(store))
    return store


@pytest.mark.parametrize(
    "places", [[(0, 2)], [(1, 3), (2, 1)]], ids=["mid-epoch", "twice-after-updates"]
)
def test_killed_run_ends_as_unbroken(
    unbroken: Path, tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    for epoch, batch in places:
        kill_after(tmp_path, epoch, batch)
    finish(start(tmp_path))

    whole = assert_same(unbroken, tmp_path, resumed=len(places))
    assert len(whole.phases) == 3  # the widths were really updated twice


@pytest.fixture(scope="module")
def unbroken_joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("unbroken_joint")
    finish(start(store, JOINT))
    return store


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, JOINT),
        ((1, 3), JOINT),
        ((2, 0), [*JOINT, ONLY_EPOCHS]),
        ((2, 2), JOINT),
        ((3, 2), JOINT),
    ],
    ids=["at-once", "before-cut", "right-after-cut", "after-cut", "last-phase"],
)
def test_killed_run_that_cuts_channels_ends_as_unbroken(
    unbroken_joint: Path, tmp_path: Path, place: tuple[int, int] | None, words: list[str]
) -> None:
    if place is None:
        kill_at_once(tmp_path, words)
    else:
        kill_after(tmp_path, *place, words)
        state = checkpoint(tmp_path)
        assert state is not None
        done = state["module"]["epoch"], state["module"]["batch"]
        assert done == place if ONLY_EPOCHS in words else done >= place
        assert len(state["module"]["networks"]) == 1 + sum(done >= (e, 0) for e in (2, 3))
    finish(start(tmp_path, JOINT))
    whole = assert_same(unbroken_joint, tmp_path, resumed=int(place is not None))
    counts = [phase.parameters for phase in whole.phases]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3  # channels were really cut twice


@pytest.fixture(scope="module")
def unbroken_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("unbroken_search")
    finish(start(store, EDGE))
    return store


@pytest.mark.parametrize(
    "places",
    [[(0, 2)], [(1, 3)], [(2, 2)], [(3, 2)], [(0, 3), (1, 1), (3, 1)]],
    ids=["fixed-bits", "search", "search-later", "fine-tuning", "once-in-each"],
)
def test_search_for_bits_killed_in_any_phase_ends_as_unbroken(
    unbroken_search: Path, tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    for epoch, batch in places:
        kill_after(tmp_path, epoch, batch, EDGE)
    finish(start(tmp_path, EDGE))
    whole = assert_same(unbroken_search, tmp_path, resumed=len(places))
    assert [phase.epochs for phase in whole.phases] == [1, 2, 1]
    first, *_, last = whole.history
    assert first.number("weight_kb") is not None
    assert last.number("weight_kb") is not None
    assert last.number("weight_kb") != first.number("weight_kb")  # the widths were really learned


@pytest.fixture(scope="module", params=[DFQ, FRACBITS], ids=["dfq", "fracbits"])
def unbroken_real(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    store = tmp_path_factory.mktemp("unbroken_real")
    finish(start(store, request.param))
    return store, request.param


@pytest.mark.parametrize(
    "places",
    [[(0, 2)], [(1, 4)], [(2, 0)], [(2, 3)], [(0, 1), (1, 2), (2, 1)]],
    ids=["search", "epoch-of-rounding", "right-after-rounding", "fine-tuning", "once-in-each"],
)
def test_search_for_real_widths_killed_anywhere_ends_as_unbroken(
    unbroken_real: tuple[Path, list[str]], tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    unbroken, words = unbroken_real
    for epoch, batch in places:
        kill_after(tmp_path, epoch, batch, [*words, ONLY_EPOCHS] if batch == 0 else words)
    finish(start(tmp_path, words))
    whole = assert_same(unbroken, tmp_path, resumed=len(places))
    assert [phase.epochs for phase in whole.phases] == [2, 1]
    first, rounded, tuned = whole.history
    assert first.by_layer("real_bits") != rounded.by_layer("real_bits")
    assert rounded.bits == tuned.bits
    searched = list(tuned.bits.values())[1:-1]
    assert len(set(searched)) > 1  # the layers really differ
    files = [next(store.glob("bits/*.json")).read_text() for store in (unbroken, tmp_path)]
    assert files[0] == files[1]


def test_run_of_limited_sums_killed_and_started_again_projects_no_weight_twice(
    tmp_path: Path,
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(unbroken, A2Q))
    for place in [(0, 1), (1, 2)]:
        kill_after(broken, *place, A2Q)
    finish(start(broken, A2Q))
    whole = assert_same(unbroken, broken, resumed=2)
    for epoch in whole.history:
        assert 0 < max(epoch.by_layer("l1_limit_pct").values()) <= 100


def test_finished_cell_is_not_trained_again(unbroken: Path) -> None:
    (path,) = (unbroken / "records").glob("*.json")
    written = path.stat().st_mtime_ns
    _, err = finish(start(unbroken))
    assert path.stat().st_mtime_ns == written
    assert err == ""


def test_two_runners_train_each_cell_once(tmp_path: Path) -> None:
    runners = [start(tmp_path, ["rows=float,bits8", "seed=0,1"]) for _ in range(2)]
    said = [finish(runner)[1] for runner in runners]
    trained = [line for err in said for line in err.splitlines() if "top-1" in line]
    assert len(trained) == len(Store(tmp_path).records()) == 4
