"""Learned steps and clips that an optimizer took to 0: the run says so, and they come back."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.methods.dorefa import DoReFa
from quantable.methods.lsq import LSQ
from quantable.methods.pact import PACT
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Quantizer
from quantable.training.build import fit, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.classifier import Classifier
from quantable.training.fallen import EVERY, Fallen
from quantable.training.schedule import constant

SIZE = (1, 4, 4)
PARTS: dict[str, Any] = {
    "lsq": (partial(LSQ, batched=False), partial(LSQ, batched=True)),
    "pact": (partial(DoReFa, batched=False), partial(PACT, batched=True, clip_init=3.0)),
}


def images(n: int) -> tuple[Tensor, Tensor]:
    """Images whose class is the place of the greatest of their first four pixels."""
    x = torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(0))
    return x, x.flatten(1)[:, :4].argmax(1)


def quantized(method: str) -> tuple[nn.Sequential, Quantize]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    weight, act = PARTS[method]
    quantize = Quantize(weight=weight, act=act, inner=(2, 2), ends=None, layers={})
    quantize.attach(net, SIZE)
    return net, quantize


def learned(quantizer: Quantizer) -> nn.Parameter:
    assert quantizer.positive is not None
    return getattr(quantizer, quantizer.positive)


def loss_after(net: nn.Module, rate: float, steps: int = 200) -> float:
    x, y = images(512)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("method", PARTS)
@pytest.mark.parametrize("value", [-0.01, -5.0, 0.0])
def test_a_network_learns_on_after_one_fell(method: str, value: float, capsys) -> None:
    net, quantize = quantized(method)
    net(images(512)[0])
    with torch.no_grad():
        learned(quantize.act_quantizers["3"]).fill_(value)
    assert loss_after(net, rate=0.05) < 0.7 < math.log(4)
    assert learned(quantize.act_quantizers["3"]) > 0.1
    assert capsys.readouterr().err.count("input of layer '3': the ") == 1


def test_a_network_learns_after_a_first_batch_of_zeros(capsys) -> None:
    net, _ = quantized("lsq")
    with torch.no_grad():
        net[1].bias.zero_()
    net(0 * images(512)[0])
    assert loss_after(net, rate=0.05) < 0.7
    assert capsys.readouterr().err == ""  # nothing fell


def test_a_rate_that_is_too_high_is_said_by_layer(capsys) -> None:
    net, _ = quantized("lsq")
    loss_after(net, rate=4.0, steps=50)
    said = capsys.readouterr().err.splitlines()
    assert said
    assert len(said) == len(set(said))
    assert all("of layer '" in line and "lower recipe.optimizer.lr" in line for line in said)


class Batches:
    """One batch over and over."""

    epoch, start = 0, 0

    def __len__(self) -> int:
        return 2 * EVERY

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([images(64)] * (len(self) - self.start))


@pytest.fixture
def elsewhere(monkeypatch) -> None:
    """As on another device than the CPU, where a quantizer does not look by itself."""
    monkeypatch.setattr(Quantizer, "_seen_to_fall", lambda *_: False)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("method", PARTS)
@pytest.mark.parametrize("falls", [3, 2 * EVERY - 1], ids=["early", "in-the-last-step"])
def test_a_run_looks_now_and_then(method: str, falls: int, tmp_path, capsys) -> None:
    net, quantize = quantized(method)
    module = Classifier(
        net,
        input_size=SIZE,
        optimizer=partial(torch.optim.SGD, lr=0.0),
        schedule=constant,
        epochs=1,
    )
    seen: list[float] = []

    def note(*_: object) -> None:
        quantizer = quantize.act_quantizers["3"]
        seen.append(learned(quantizer).item())
        if len(seen) == falls + 1:
            with torch.no_grad():
                learned(quantizer).fill_(-0.01)

    keep = Keep(tmp_path / "kept", every_seconds=1e9, quantize=quantize, commit="", clean=True)
    trainer = trainer_of({"trainer": {"accelerator": "cpu"}, "recipe": {"precision": "32-true"}})
    trainer.callbacks.extend([LambdaCallback(on_train_batch_end=note), Fallen(quantize), keep])
    fit(trainer, module, Batches())
    first = seen[1]
    below = [i for i, value in enumerate(seen) if value < 0]
    assert below == list(range(falls + 1, EVERY)) if falls < EVERY else below == []
    assert seen[-1] == first
    assert capsys.readouterr().err.count("LSQ" if method == "lsq" else "PACT") == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile itself does
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # and this
def test_a_compiled_network_sets_anew_what_a_run_saw() -> None:
    torch.compiler.reset()
    net, quantize = quantized("lsq")
    net.compile(fullgraph=True, backend="aot_eager")
    quantizer = quantize.act_quantizers["3"]
    kept = [net(images(64)[0]), learned(quantizer).item()]
    with torch.no_grad():
        learned(quantizer).fill_(-0.01)
    net(images(64)[0])
    assert learned(quantizer) < 0
    quantizer.fallen = True
    assert torch.equal(net(images(64)[0]), kept[0])
    assert learned(quantizer).item() == kept[1]
    assert not quantizer.fallen
