"""Runs that begin with another run's weights, decay weights by their bits, learn from a teacher."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base.errors import UserError
from quantable.methods.lsq import LSQ
from quantable.networks.cifar import resnet8_cifar
from quantable.quantization.quantize import Quantize
from quantable.training.classifier import Classifier
from quantable.training.finished import final_weights, load_plain, load_quantizers
from quantable.training.schedule import constant

GREY = (1, 28, 28)


def network(seed: int = 0, width: float = 0.25) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8_cifar(classes=10, in_channels=1, width=width, shortcuts="plain")


def quantized(net: nn.Module, *, per_channel: bool = False, **layers: tuple[int, int]) -> Quantize:
    quantize = Quantize(
        weight=partial(LSQ, batched=False, per_channel=per_channel),
        act=partial(LSQ, batched=True),
        inner=[4, 4],
        ends=[8, 8],
        layers={name.replace("__", "."): bits for name, bits in layers.items()},
    )
    quantize.attach(net, GREY)
    return quantize


def trained(net: nn.Module) -> dict[str, Any]:
    """Set every step and batch norm by one training pass, and return the state."""
    net.train()(torch.randn(8, *GREY))
    return net.state_dict()


def begun(state: dict[str, Any], **changes: Any) -> tuple[nn.Module, Quantize]:
    net = network(seed=9)
    load_plain(net, state)
    quantize = quantized(net, **changes)
    load_quantizers(quantize, state)
    return net, quantize


def test_the_same_bits_begin_as_the_same_network() -> None:
    start = network()
    quantized(start)
    state = trained(start)
    net, _ = begun(state)
    x = torch.randn(4, *GREY)
    assert torch.equal(net.eval()(x), start.eval()(x))


def test_other_bits_begin_with_a_step_of_their_own() -> None:
    start = network()
    quantized(start)
    state = trained(start)
    net, quantize = begun(state, layer1__0__conv1=(2, 2))
    down, kept = (quantize.weight_quantizers[f"layer1.0.conv{i}"] for i in (1, 2))
    assert (down.bits, down.initialized, kept.bits, kept.initialized) == (2, False, 4, True)
    net.train()(torch.randn(8, *GREY))
    w = state["layer1.0.conv1.parametrizations.weight.original"].numpy()
    assert down.step.item() == pytest.approx(2 * np.abs(w).mean(), rel=1e-6)  # Q_P is 1 at 2 bit
    assert torch.equal(kept.step, state["layer1.0.conv2.parametrizations.weight.0.step"])


def test_steps_of_another_granularity_begin_anew() -> None:
    start = network()
    quantized(start)
    _, quantize = begun(trained(start), per_channel=True)
    assert not any(q.initialized for q in quantize.weight_quantizers.values())
    assert all(q.initialized for q in quantize.act_quantizers.values())


def test_signs_are_compared_where_a_state_is_taken_over() -> None:
    start = network()
    quantized(start)
    state = trained(start)
    assert {k: v.tolist() for k, v in state.items() if k.startswith("fc.") and "_extra" in k} == {
        "fc.parametrizations.weight.0._extra_state": [8, True, True, False],
        "fc.act_quantizer._extra_state": [8, True, False, False],  # behind a ReLU
    }
    net = network(seed=9)
    net.get_submodule("layer3.0").relu2 = nn.Hardswish()
    load_plain(net, state)
    quantize = quantized(net)
    message = (
        r"^layer 'fc': the layer's input is signed in this network and was unsigned in the one "
        "whose state is loaded: they compute different things; train it anew$"
    )
    with pytest.raises(UserError, match=message):  # the weight comes first
        load_quantizers(quantize, state)
    with pytest.raises(UserError, match=message):
        net.load_state_dict(state)
    older = {k: v[:2] if k.endswith("_extra_state") else v for k, v in state.items()}
    net.load_state_dict(older)  # of a store that did not keep signs
    assert quantize.act_quantizers["fc"].signed


def test_a_quantized_network_begins_with_float_weights_and_back() -> None:
    start = network()
    state = trained(start)
    net, quantize = begun(state)
    assert not any(q.initialized for q in quantize.act_quantizers.values())
    weight = net.get_submodule("layer1.0.conv1").parametrizations.weight.original
    assert torch.equal(weight, state["layer1.0.conv1.weight"])
    back = network(seed=5)
    load_plain(back, trained(net))
    assert torch.equal(back.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_weights_of_another_network_or_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another network: \d+ of its tensors .* such as \S+"):
        load_plain(network(), network(width=0.5).state_dict())
    with pytest.raises(UserError, match=r"start=0123456789ab: .* is missing"):
        final_weights(tmp_path / "0123456789ab-jpeg.pt", "start")


def classifier(net: nn.Module, **changes: Any) -> Classifier:
    optimizer = partial(torch.optim.SGD, lr=0.5, weight_decay=0.25)
    arguments = {"input_size": GREY, "optimizer": optimizer, "schedule": constant, "epochs": 1}
    return Classifier(net, **arguments | changes)


def test_weight_decay_by_layer_leaves_all_else_the_optimizers_own() -> None:
    net = network()
    quantized(net, layer1__0__conv1=(2, 2))
    decay = {"layer1.0.conv1": 0.5, "layer1.0.conv2": 1.0, "layer2.0.conv1": 0.5}
    module = classifier(net, weight_decay=decay)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = module.configure_optimizers()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        own = decay.get(name.removesuffix(".parametrizations.weight.original"), 0.25)
        torch.testing.assert_close(p, before[name] * (1 - 0.5 * own))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


def test_a_decay_of_a_float_layer_finds_its_weight() -> None:
    net = network()
    module = classifier(net, weight_decay={"fc": 1.0})
    (rest, fc) = module.configure_optimizers().param_groups
    assert (len(fc["params"]), fc["weight_decay"]) == (1, 1.0)
    assert fc["params"][0] is net.get_submodule("fc").weight
    assert len(rest["params"]) == len(list(net.parameters())) - 1


class Scores(nn.Module):
    """A network whose outputs are its parameters."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x: Tensor) -> Tensor:
        return self.values[: len(x)]


def test_a_teachers_loss_weighs_as_much_as_the_labels() -> None:
    torch.manual_seed(0)
    own, teacher = Scores(torch.randn(3, 5)), Scores(torch.randn(3, 5))
    y = torch.tensor([0, 4, 2])
    module = classifier(own)
    module.teach(teacher)
    loss = module.training_step((torch.zeros(3, 1), y), 0)
    loss.backward()
    a, b = (net.values.detach().double().numpy() for net in (own, teacher))
    log_p = a - np.log(np.exp(a).sum(1, keepdims=True))
    soft = np.exp(b) / np.exp(b).sum(1, keepdims=True)
    by_hand = (-log_p[range(3), y].mean() - (soft * log_p).sum(1).mean()) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert teacher.values.grad is None
    assert module.sums[0].item() / 3 == pytest.approx(cross_entropy(own.values, y).item())
    assert not any(name.startswith("teacher") for name in module.state_dict())
