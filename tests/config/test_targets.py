"""Own targets keep the name they were first signed as, wherever their code lies."""

import pytest

from quantable.config import targets
from quantable.config.composition import compose_run
from quantable.config.signature import portable, signature

FIRST, TODAY = "quantable.old.Place", "collections.Counter"


@pytest.fixture(autouse=True)
def _moved(monkeypatch) -> None:
    monkeypatch.setattr(targets, "MOVED", {FIRST: TODAY})


@pytest.mark.parametrize("name", [FIRST, TODAY])
def test_both_names_of_a_moved_target_make_it_and_are_signed_alike(name: str) -> None:
    config = {"rule": {"_target_": name, "a": 2}, "inner": [{"_target_": name, "_partial_": True}]}
    assert targets.make(config)["rule"]["a"] == 2
    assert signature(config) == signature(targets.signed_as(config))
    assert portable(config)["rule._target_"] == FIRST
    assert portable(config)["inner"] == [{"_target_": FIRST, "_partial_": True}]


def test_a_user_may_name_a_target_as_it_was_signed() -> None:
    words = ["quantizer=lsq", "data=fashion_mnist_mini", "bits.inner=[4,4]"]
    place = "quantizer.callback.weight._target_"
    old, new = (compose_run([*words, f"{place}={name}"]) for name in (FIRST, TODAY))
    assert signature(old) == signature(new) != signature(compose_run(words))
