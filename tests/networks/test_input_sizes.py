"""Packaged input sizes: equal to timm's, asked without torch."""

import subprocess
import sys

import pytest
import timm

from quantable.base.errors import UserError
from quantable.networks import input_sizes
from quantable.networks.input_sizes import Sizes, check_input_size, kept_sizes


def test_the_file_has_every_weight_of_timm() -> None:
    """On failure: python tools/make_input_sizes.py."""
    kept = kept_sizes()
    assert len(kept) == len(timm.list_pretrained()) > 1800
    for tag, sizes in kept.items():
        known = timm.get_pretrained_cfg(tag)
        assert known is not None
        assert sizes.trained == tuple(known.input_size), tag
        assert sizes.tested == tuple(known.test_input_size or known.input_size), tag


def test_another_timm_is_not_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_sizes, "version", lambda _: "1.0.99")
    assert kept_sizes.__wrapped__() == {}


def test_a_wrong_size_is_told_with_the_right_ones() -> None:
    sizes = Sizes((3, 224, 224), (3, 288, 288))
    check_input_size([3, 288, 288], "resnet50.a1_in1k", sizes)
    with pytest.raises(UserError) as error:
        check_input_size([3, 224, 224], "resnet50.a1_in1k", sizes)
    assert str(error.value) == (
        "data.input_size=[3, 224, 224]: the weights resnet50.a1_in1k are evaluated at "
        "[3, 288, 288] and trained at [3, 224, 224]; set 'data.input_size=[3,288,288]', or "
        "data.tag to weights of your size"
    )


def test_a_plan_refuses_it_without_torch() -> None:
    code = (
        "import sys; from quantable.base.errors import UserError\n"
        "from quantable.config.composition import compose_run\n"
        "words = ['model=timm', 'model.net.name=resnet50.a1_in1k', 'data=imagenet']\n"
        "compose_run([*words, 'data.input_size=[3,288,288]'])\n"
        "try: compose_run(words)\n"
        "except UserError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("data.input_size=[3, 224, 224]: the weights resnet50.a1_in1k")
