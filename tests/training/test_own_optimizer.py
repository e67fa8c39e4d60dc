"""A method's own parameters: their optimizer and schedule against a loop written by hand."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base.errors import UserError
from quantable.methods.lsq import LSQ
from quantable.quantization.face import OwnOptimizer, face
from quantable.quantization.quantize import Quantize
from quantable.training.build import fit, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

SIZE = (1, 8, 8)
EPOCHS, BATCHES = 3, 4


def falling(progress: float, phase: int) -> float:
    return 1 - progress / 2


class Widths(Quantize):
    """A toy: its quantizers' steps have an Adam at 0.002, which pulls them down by a penalty."""

    def __init__(self) -> None:
        super().__init__(
            weight=partial(LSQ, batched=False),
            act=partial(LSQ, batched=True),
            inner=[4, 4],
            ends=None,
            layers={},
        )
        self.seen: list[bool] = []

    @property
    def steps(self) -> list[nn.Parameter]:
        both = [*self.weight_quantizers.values(), *self.act_quantizers.values()]
        return [quantizer.step for quantizer in both]

    def penalty(self) -> Tensor:
        return 0.1 * torch.stack(self.steps).square().sum()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        module = face(pl_module)
        module.penalties.append(self.penalty)
        module.own_optimizers.append(
            OwnOptimizer(self.steps, partial(torch.optim.Adam, lr=0.002), falling)
        )

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
        self.seen.append(all(step.grad is not None for step in self.steps))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


class Batches:
    """Random batches, functions of epoch and place alone."""

    epoch, start = 0, 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(self.start, BATCHES):
            generator = torch.Generator().manual_seed(100 * self.epoch + batch)
            x = torch.randn(16, *SIZE, generator=generator)
            yield x, x.mean((1, 2, 3)).gt(0).long()


class Killed(Exception):  # noqa: N818
    pass


class Kill(pl.Callback):
    def __init__(self, place: tuple[int, int] | None) -> None:
        self.place = place

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: object) -> None:
        if (pl_module.epoch, pl_module.batch) == self.place:
            raise Killed


def train(
    path: Path, kill: tuple[int, int] | None = None, precision: str = "32-true"
) -> tuple[Widths, Classifier]:
    net, method = network(), Widths()
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
    module = Classifier(net, input_size=SIZE, optimizer=sgd, schedule=constant, epochs=EPOCHS)
    method.attach(net, SIZE)
    keep = Keep(path, every_seconds=0, quantize=method, commit="", clean=True)
    keep.restore(module)
    trainer = trainer_of({"trainer": {"accelerator": "cpu"}, "recipe": {"precision": precision}})
    trainer.callbacks.extend([method, keep, Kill(kill)])
    fit(trainer, module, Batches())
    return method, module


def by_hand() -> nn.Module:
    net, method = network(), Widths()
    method.attach(net, SIZE)
    steps = method.steps
    others = [p for p in net.parameters() if all(p is not step for step in steps)]
    sgd = torch.optim.SGD(others, lr=0.1, momentum=0.9, weight_decay=0.01)
    adam = torch.optim.Adam(steps, lr=0.002)
    for epoch in range(EPOCHS):
        batches = Batches()
        batches.epoch = epoch
        for batch, (x, y) in enumerate(batches):
            progress = (epoch + (batch + 0.5) / BATCHES) / EPOCHS
            adam.param_groups[0]["lr"] = 0.002 * (1 - progress / 2)
            loss = cross_entropy(net(x), y) + method.penalty()
            sgd.zero_grad()
            adam.zero_grad()
            loss.backward()
            sgd.step()
            adam.step()
    return net


def assert_same(net: nn.Module, other: nn.Module) -> None:
    state, expected = net.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Widths, Classifier]:
    return train(tmp_path_factory.mktemp("unbroken") / "last.ckpt")


def test_it_trains_as_a_loop_written_by_hand(unbroken) -> None:
    method, module = unbroken
    assert_same(module.net, by_hand())
    assert method.seen == [True] * EPOCHS * BATCHES  # nobody hid a gradient


@pytest.mark.parametrize("place", [(0, 1), (1, 3), (2, 2)], ids=str)
def test_killed_it_ends_as_unbroken(unbroken, tmp_path: Path, place: tuple[int, int]) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        train(path, place)
    _, module = train(path)
    _, whole = unbroken
    assert_same(module.net, whole.net)


def test_it_trains_in_mixed_precision(unbroken, tmp_path: Path) -> None:
    mixed, _ = train(tmp_path / "last.ckpt", precision="bf16-mixed")
    whole, _ = unbroken
    for step, expected in zip(mixed.steps, whole.steps, strict=True):
        assert step.dtype == torch.float32
        assert not torch.equal(step, expected)
        # The same way, if not to the same place: how far off depends on the processor's bfloat16.
        assert 0.5 < step / expected < 2


# Who has which parameters


def classifier(**changes: Any) -> Classifier:
    sgd = partial(torch.optim.SGD, lr=0.1)
    arguments = {"input_size": SIZE, "optimizer": sgd, "schedule": constant, "epochs": 1}
    return Classifier(network(), **arguments | changes)


def own(*parameters: nn.Parameter, lr: float = 0.002) -> OwnOptimizer:
    return OwnOptimizer(parameters, partial(torch.optim.Adam, lr=lr), constant)


def test_the_recipes_optimizer_leaves_them_out() -> None:
    module = classifier()
    bias = module.net[4].bias
    module.own_optimizers.append(own(bias))
    (group,) = module.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module.net.parameters()} - {id(bias)}
    (beside,) = module.optimizers_beside
    assert beside.param_groups[0]["params"] == [bias]


def test_a_parameter_that_is_not_the_networks_is_refused() -> None:
    module = classifier()
    module.own_optimizers.append(own(nn.Parameter(torch.zeros(2, 3))))
    with pytest.raises(UserError, match=r"a parameter of size \[2, 3\] is not of the network"):
        module.configure_optimizers()


@pytest.mark.parametrize("decay", [{}, {"4": 0.5}], ids=["own-twice", "own-decay"])
def test_a_parameter_in_two_optimizers_is_refused(decay: dict[str, float]) -> None:
    module = classifier(weight_decay=decay)
    module.own_optimizers += [own(module.net[4].weight)] * (1 if decay else 2)
    with pytest.raises(UserError, match=r"'4.*' is in two optimizers"):
        module.configure_optimizers()


def test_a_wrong_argument_of_its_optimizer_is_the_users_mistake() -> None:
    module = classifier()
    module.own_optimizers.append(own(module.net[4].weight, lr=-1.0))
    with pytest.raises(UserError, match="own_optimizers: Invalid learning rate"):
        module.configure_optimizers()
