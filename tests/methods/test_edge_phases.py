"""Sizes, budgets and the three phases of learned bits."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.numbers import own_numbers
from quantable.cost.memory import kb_targets, memory_bytes
from quantable.methods.edge import LearnedBits, Sizes, StepAndClip, ramp, size_penalty
from quantable.networks.layers import LayerShape
from quantable.quantization.ste import rounding
from quantable.run import _phases
from quantable.store.record import Epoch
from quantable.training.build import fit, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

SIZE = (1, 8, 8)
NUMBERS = own_numbers(compose_run(["quantizer=edge"]))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


def method(**changes: Any) -> LearnedBits:
    per_channel = changes.pop("per_channel", True)
    noisy = rounding("gaussian", 0.1)
    return LearnedBits(
        **{
            "weight": partial(StepAndClip, batched=False, per_channel=per_channel, rounding=noisy),
            "act": partial(StepAndClip, batched=True),
            "inner": [4, 5],
            "ends": None,
            "layers": {},
            "epochs": [2, 2, 2],
            "target": [3.0, 3.0],
            "kb_per_bit": None,
            "accounting": "edge",
            "strength": 10.0,
            "update_every": 2,
            "select_from": 0.9,
            "weight_decay": 0.01,
        }
        | changes
    )


def attached(**changes: Any) -> tuple[LearnedBits, Classifier]:
    """Put the method on a small network that has seen one batch."""
    optimizer = partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9)
    module = Classifier(
        network(),
        input_size=SIZE,
        optimizer=optimizer,
        schedule=constant,
        epochs=9,
        numbers=NUMBERS,
    )
    ours = method(**changes)
    ours.setup(None, module, "fit")
    module.net(torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1)))
    module.batches = 4
    return ours, module


# Sizes and budgets


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((9.0, 5.0), 0.0), ((13.0, 5.0), 9.0), ((9.0, 8.0), 4.0), ((13.0, 8.0), 13.0)],
)
def test_penalty_is_the_squared_excess_of_each(sizes: tuple, expected: float) -> None:
    tensors = Sizes(*(torch.tensor(size) for size in sizes))
    assert size_penalty(tensors, (10.0, 6.0), strength=1.0).item() == expected
    assert size_penalty(tensors, (10.0, 6.0), strength=0.5).item() == expected / 2


@pytest.mark.parametrize(
    ("step", "published"),
    [(256, 0.0140), (2048, 0.0708), (4096, 0.1356), (8192, 0.2652), (16384, 0.5246)],
)
def test_ramp_is_that_of_the_published_trace(step: int, published: float) -> None:
    """Each traced value is the mean over the 256 steps before it, of 62,550."""
    mean = sum(ramp(i / 62_550) for i in range(step - 256, step)) / 256
    assert mean == pytest.approx(published, abs=1e-4)
    assert ramp(31_275 / 62_550) == ramp(1.0) == 1.0


def test_targets_in_bits_and_kilobytes() -> None:
    first = LayerShape("first", macs=1, weights=4000, inputs=48)
    head = LayerShape("fc", macs=1, weights=3000, inputs=16000, kind="linear", bias=1000)
    of = partial(kb_targets, [first, head], [3.0, 2.5], accounting="edge")
    assert of(kb_per_bit=None) == (3.0 * 1.0, 2.5 * 2.0)  # 8,000 elements are 1 kB per bit
    assert of(kb_per_bit=[1, 1]) == (3.0, 2.5)
    assert of(kb_per_bit=[434, 993]) == (3 * 434, 2.5 * 993)


@pytest.mark.parametrize("accounting", ["edge", "edge_largest"])
def test_sizes_of_one_step_per_tensor_are_the_cost_models(accounting: str) -> None:
    ours, _ = attached(per_channel=False, accounting=accounting, layers={"3": [2, 3]})
    assert ours.bits == {"0": Bits(4, 32), "3": Bits(2, 3), "6": Bits(4, 5)}
    sizes = ours.sizes()
    parts = memory_bytes(ours.shapes, ours.bits, batch_norm_channels=0, accounting=accounting)
    assert sizes.weight.item() == pytest.approx(parts["weights"] / 1000, rel=1e-6)
    assert sizes.act.item() == pytest.approx(parts["activations"] / 1000, rel=1e-6)


def test_a_single_layer_has_sizes_too() -> None:
    ours = method(inner=[4, 4])
    ours.attach(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SIZE), 3)), SIZE)
    ours.updating = True
    assert torch.isfinite(ours.penalty(1.0))


def test_sizes_of_slices_count_each_channel_at_its_own_bits() -> None:
    ours, _ = attached()
    with torch.no_grad():
        ours.weight_quantizers["3"].step[0] *= 3.5  # 7 intervals become 2: 3 bits instead of 4
    elements = {"0": 4 * (9 + 1), "6": 96 * 3 + 3}  # weights and biases
    bits = 4 * sum(elements.values()) + 6 * (36 + 1) * (5 * 4 + 3) / 6
    assert ours.sizes().weight.item() == pytest.approx(bits / 8000, rel=1e-6)
    assert ours.bits["3"].weight == 4


def test_gradient_of_the_size_is_the_sheets() -> None:
    ours, _ = attached()
    ours.sizes().act.backward()
    for name, elements in (("3", 4 * 6 * 6), ("6", 96)):
        quantizer = ours.act_quantizers[name]
        step, clip = quantizer.step.item(), quantizer.clip.item()
        n = 2 ** (5 - quantizer.signed) - 1
        scale = elements / 8000 / 0.6931471805599453 / (n + 1)
        assert quantizer.clip.grad.item() == pytest.approx(scale / step, rel=1e-5)
        assert quantizer.step.grad.item() == pytest.approx(-scale * clip / step**2, rel=1e-5)


# What is quantized


def test_the_image_is_not_quantized_and_linear_layers_have_one_step() -> None:
    ours, _ = attached()
    assert set(ours.act_quantizers) == {"3", "6"}
    shapes = {name: tuple(q.step.shape) for name, q in ours.weight_quantizers.items()}
    assert shapes == {"0": (4,), "3": (6,), "6": ()}
    assert all(q.step.shape == () for q in ours.act_quantizers.values())


def test_one_signed_bit_and_wrong_phases_are_refused() -> None:
    with pytest.raises(UserError, match="start at 2 bits or more"):
        method(inner=[1, 4]).attach(network(), SIZE)
    for epochs in ([2, 2], [0, 0, 0], [2, 0, 2], [2, 2, 0], [2, 2, 2, 2]):
        with pytest.raises(
            UserError, match=r"epochs=\[.*\]: three phases, each >= 1, or \[n, 0, 0\]"
        ):
            method(epochs=epochs)
    with pytest.raises(UserError, match=r"update_every=0"):
        method(update_every=0)


# Steps


def step_of(ours: LearnedBits, module: Classifier, phase: int, batch: int) -> torch.optim.Optimizer:
    """Run one training step's hooks up to the optimizer's step."""
    module.phase, module.batch = phase, batch
    optimizer = module.configure_optimizers()
    ours.on_train_batch_start(None, module, None, batch)
    x = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(2))
    loss = module.net(x).square().mean() + sum(penalty() for penalty in module.penalties)
    optimizer.zero_grad()
    loss.backward()
    return optimizer


@pytest.mark.parametrize("phase", [0, 2])
def test_outside_the_search_nothing_reaches_the_quantizers(phase: int) -> None:
    ours, module = attached()
    optimizer = step_of(ours, module, phase, batch=1)
    ours.on_before_optimizer_step(None, module, optimizer)
    assert all(p.grad is None for q in ours.quantizers for p in q.parameters())


def test_every_second_step_updates_and_the_others_coast() -> None:
    ours, module = attached()
    optimizer = step_of(ours, module, phase=1, batch=0)
    ours.on_before_optimizer_step(None, module, optimizer)
    assert all(p.grad.eq(0).all() for q in ours.quantizers for p in q.parameters())

    optimizer = step_of(ours, module, phase=1, batch=1)
    raw = [(q, [p.grad.clone() for p in (q.step, q.clip)]) for q in ours.quantizers]
    ours.on_before_optimizer_step(None, module, optimizer)
    clipped = 0
    for quantizer, grads in raw:
        bound = quantizer.step.detach()
        for parameter, grad in zip((quantizer.step, quantizer.clip), grads, strict=True):
            assert torch.equal(parameter.grad, torch.minimum(torch.maximum(grad, -bound), bound))
            clipped += int((parameter.grad != grad).sum())
    assert clipped > 0


def test_the_penalty_is_in_the_loss_of_an_updating_step_only() -> None:
    ours, module = attached(target=[2.0, 3.0])
    module.phase, module.batch = 1, 1
    ours.on_train_batch_start(None, module, None, 1)
    (penalty,) = module.penalties
    weight, act = (size.item() for size in ours.sizes())
    over = (weight - ours.targets[0]) ** 2 + (act - ours.targets[1]) ** 2
    progress = 1 / 4 / 9  # second of 4 batches, 9 epochs planned
    module.phase_epochs = 9
    assert penalty().item() == pytest.approx(10.0 * ramp(progress) * over, rel=1e-4)
    module.batch = 2
    ours.on_train_batch_start(None, module, None, 2)
    assert penalty().item() == 0


def test_weight_decay_leaves_batch_norms_and_quantizers_out() -> None:
    ours, module = attached()
    optimizer = step_of(ours, module, phase=0, batch=0)
    before = {
        name: p.grad.clone() for name, p in module.net.named_parameters() if p.grad is not None
    }
    ours.on_before_optimizer_step(None, module, optimizer)
    for name, parameter in module.net.named_parameters():
        if parameter.grad is not None:
            decay = 0.0 if name.startswith("1.") else 0.01
            torch.testing.assert_close(parameter.grad, before[name] + decay * parameter.detach())
    assert len(before) == 8  # weights and biases of three layers and of the batch norm


# Phases


def end_epoch(ours: LearnedBits, module: Classifier, trainer: object, top1_pct: float) -> None:
    line = {"epoch": module.epoch, "phase": module.phase, "val_top1_pct": top1_pct}
    module.history.append(line)
    ours.on_train_epoch_end(trainer, module)
    module.epoch += 1


def mark(module: Classifier, value: float) -> None:
    with torch.no_grad():
        module.net[0].bias.fill_(value)


@pytest.mark.parametrize(("fits", "taken"), [(True, 12.0), (False, 13.0)])
def test_phases_begin_with_the_best_weights_that_may_be_taken(fits: bool, taken: float) -> None:
    ours, module = attached(target=[9.0, 9.0] if fits else [1.0, 9.0], epochs=[2, 4, 2])
    ours.select_from = 0.5
    optimizer = module.configure_optimizers()
    trainer = SimpleNamespace(optimizers=[optimizer])
    module.net(torch.zeros(2, *SIZE)).sum().backward()
    optimizer.step()
    module.phase_epochs = 2
    for epoch, top1_pct in enumerate([40.0, 30.0]):
        mark(module, epoch)
        end_epoch(ours, module, trainer, top1_pct)
    assert (module.phase, module.phase_start, module.phase_epochs) == (1, 2, 4)
    assert module.net[0].bias[0].item() == 0.0  # the first epoch was better
    assert not optimizer.state
    for epoch, top1_pct in enumerate([90.0, 50.0, 60.0, 55.0]):
        mark(module, 10.0 + epoch)
        end_epoch(ours, module, trainer, top1_pct)
    assert (module.phase, module.phase_start, module.phase_epochs) == (2, 6, 2)
    # 90 % came too early; where the sizes never fit, the last epoch's weights stay
    assert module.net[0].bias[0].item() == taken
    assert module.history[-1]["own"]["weight_kb"] == pytest.approx(ours.sizes().weight.item())


def test_without_later_phases_the_first_ends_the_run_with_its_last_weights() -> None:
    ours, module = attached(epochs=[2, 0, 0])
    trainer = SimpleNamespace(optimizers=[module.configure_optimizers()])
    module.phase_epochs = 2
    for epoch, top1_pct in enumerate([40.0, 30.0]):
        mark(module, epoch)
        end_epoch(ours, module, trainer, top1_pct)
    assert (module.phase, module.phase_start, module.phase_epochs) == (0, 0, 2)
    assert module.net[0].bias[0].item() == 1.0
    assert ours.bits["3"] == Bits(4, 5)


class Batches:
    """Five random batches for each epoch, functions of epoch and place alone."""

    epoch, start = 0, 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(self.start, 5):
            generator = torch.Generator().manual_seed(100 * self.epoch + batch)
            x = torch.randn(16, *SIZE, generator=generator)
            yield x, x.mean((1, 2, 3)).gt(0).long()


class History(pl.Callback):
    """Stands for the evaluation: some accuracy, different in every epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        top1_pct = float(pl_module.epoch * 37 % 11)
        line = {"epoch": pl_module.epoch, "phase": pl_module.phase, "val_top1_pct": top1_pct}
        pl_module.history.append(line | {"test_top1_pct": 0.0})


class Killed(Exception):  # noqa: N818
    pass


class Kill(pl.Callback):
    def __init__(self, place: tuple[int, int] | None) -> None:
        self.place = place

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: object) -> None:
        if (pl_module.epoch, pl_module.batch) == self.place:
            raise Killed


def train(path: Path, kill: tuple[int, int] | None) -> tuple[LearnedBits, Classifier]:
    torch.manual_seed(7)
    ours, net = method(strength=1e4), network()
    optimizer = partial(torch.optim.RMSprop, lr=0.01, momentum=0.9)
    module = Classifier(
        net, input_size=SIZE, optimizer=optimizer, schedule=constant, epochs=1, numbers=NUMBERS
    )
    ours.attach(net, SIZE)
    keep = Keep(path, every_seconds=0, quantize=ours, commit="", clean=True)
    keep.restore(module)
    trainer = trainer_of({"trainer": {"accelerator": "cpu"}, "recipe": {"precision": "32-true"}})
    trainer.callbacks.extend([History(), ours, keep, Kill(kill)])
    fit(trainer, module, Batches())
    return ours, module


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[LearnedBits, Classifier]:
    return train(tmp_path_factory.mktemp("unbroken") / "last.ckpt", None)


def test_widths_change_in_the_search_only(unbroken) -> None:
    _, module = unbroken
    sizes = [(line["own"]["weight_kb"], line["own"]["act_kb"]) for line in module.history]
    assert [line["phase"] for line in module.history] == [0, 0, 1, 1, 2, 2]
    assert sizes[0] == sizes[1]
    assert sizes[2] != sizes[1]
    assert sizes[4] == sizes[5]
    assert sum(sizes[4]) < sum(sizes[0])


@pytest.mark.parametrize("place", [(0, 3), (1, 4), (2, 2), (3, 1), (5, 2)], ids=str)
def test_killed_in_any_phase_it_ends_as_unbroken(unbroken, tmp_path: Path, place) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        train(path, place)
    ours, module = train(path, None)
    whole, whole_module = unbroken
    assert module.history == whole_module.history
    assert ours.bits == whole.bits
    state, expected = module.net.state_dict(), whole_module.net.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        same = (
            torch.equal(value, expected[name])
            if isinstance(value, Tensor)
            else (value == expected[name])
        )
        assert same, name


def test_published_constants_are_chosen_by_name() -> None:
    word = "quantizer.callback.kb_per_bit=${quantizer.published_kb_per_bit.mobilenetv2}"
    config = compose_run(["quantizer=edge", "recipe=edge", "bits.inner=[4,4]", word])
    assert config["quantizer"]["callback"]["kb_per_bit"] == [434, 993]
    assert config["recipe"]["optimizer"]["alpha"] == 0.9


def test_a_record_has_the_bits_that_a_search_ended_with() -> None:
    """Those which the fine-tuning keeps."""
    lines = [
        Epoch(
            epoch=i, phase=phase, train_loss=1, test_top1_pct=1, test_loss=1, seconds=1, bits=bits
        )
        for i, (phase, bits) in enumerate(
            [(0, {"fc": (4, 4)}), (1, {"fc": (3, 4)}), (1, {"fc": (2, 3)}), (2, {"fc": (2, 3)})]
        )
    ]
    phases = _phases(lines, {}, [], {})
    assert [phase.bits["fc"] for phase in phases] == [(4, 4), (2, 3), (2, 3)]
    assert [phase.epochs for phase in phases] == [1, 2, 1]
