"""Every family of timm: its layers multiply what quantizers return, or it is refused by name.

`timm_families.json` has the smallest member of each of timm's modules, at its own size, and further
members with layers of their own kind; five that would take over 2 GB are less deep or wide, one of
them with smaller images. ``outcome`` is how the refusal begins, or ``exact``.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from quantable.methods.lsq import LSQ
from quantable.networks.counting import count
from quantable.quantization.quantize import Quantize

FAMILIES = json.loads(Path(__file__).with_name("timm_families.json").read_text())
# Its embedding of positions multiplies constants, at each image anew: these are counted by torch.
WITH_CONSTANTS = "gemma4_vit_167m"


def test_every_module_is_here() -> None:
    assert len(timm.list_modules()) == 98
    assert {family["module"] for family in FAMILIES} == set(timm.list_modules())
    for family in FAMILIES:
        assert family["model"] in timm.list_models(module=family["module"])
    assert sum(family["outcome"] == "exact" for family in FAMILIES) == 88


class Levels(TorchDispatchMode):
    """The number of values in each factor of the products of layers, in a sample of many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: dict[str, list[list[int]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        first = {"convolution": 0, "mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1}.get(name)
        if self.running and first is not None:
            levels = [values_of(factor) for factor in args[first : first + 2]]
            self.found.setdefault(self.running[-1], []).append(levels)
        return func(*args, **(kwargs or {}))


def values_of(x: Tensor) -> int:
    return x[:: 1 + x.numel() // 10**6].unique().numel()


def levels_of(net: nn.Module, quantize: Quantize, x: Tensor) -> dict[str, list[list[int]]]:
    levels = Levels()
    for name in quantize.bits:
        layer = net.get_submodule(name)
        layer.register_forward_pre_hook(lambda *_, name=name: levels.running.append(name))
        layer.register_forward_hook(lambda *_: levels.running.pop() and None)
    with torch.no_grad(), levels:
        net(x)
    return levels.found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["model"])
def test_a_family_is_exact_or_refused(family: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = timm.create_model(family["model"], pretrained=False, **family["arguments"]).eval()
    quantize = Quantize(
        weight=partial(LSQ, batched=False),
        act=partial(LSQ, batched=True),
        inner=[2, 2],
        ends=None,
        layers={},
    )
    if family["outcome"] != "exact":
        with pytest.raises(NotImplementedError) as error:
            quantize.attach(net, family["size"])
        assert str(error.value).startswith(family["outcome"])
        return
    x = torch.randn(1, *family["size"])
    found = count(net, family["size"])
    if family["model"] != WITH_CONSTANTS:
        net.requires_grad_(False)  # torch's counter cannot follow gradients into all networks
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            net(x)
        macs = sum(layer.macs for layer in found.layers) + found.activation_macs
        assert 2 * macs == flops.get_total_flops()
    quantize.attach(net, family["size"])
    levels = levels_of(net, quantize, x)
    assert levels.keys() == quantize.bits.keys() == {layer.name for layer in found.layers}
    for name, products in levels.items():
        assert len(products) == 1, name
        assert max(products[0]) <= 5, (name, products)  # 2 bits, and zeros as padding
