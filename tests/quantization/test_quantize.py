import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.methods.dorefa import DoReFa
from quantable.methods.edge import StepAndClip
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.methods.pact import PACT
from quantable.quantization.quantize import Quantize, _set_width
from quantable.quantization.quantizer import Quantizer

CONF = Path(__file__).parents[2] / "conf"
INPUT_SIZE = (1, 8, 8)


class Net(nn.Module):
    """Three convolutions, a residual addition and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1, bias=False)
        self.relu = nn.ReLU()
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu2(x + self.conv2(self.relu1(self.norm(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def build(method: type[Quantizer] = LSQ, **changes) -> Quantize:
    per_channel = changes.pop("per_channel", False)
    keywords = {
        "weight": partial(method, batched=False, per_channel=per_channel),
        "act": partial(method, batched=True, per_channel=per_channel),
        "inner": [4, 3],
        "ends": [8, 7],
        "layers": {},
    }
    return Quantize(**(keywords | changes))


def images(seed: int = 0) -> Tensor:
    return torch.randn(16, *INPUT_SIZE, generator=torch.Generator().manual_seed(seed))


def test_bits_follow_ends_inner_and_exceptions() -> None:
    quantize = build(layers={"conv2": [2, 16]})
    assert quantize.bits == {}
    quantize.attach(Net(), INPUT_SIZE)
    assert quantize.bits == {
        "stem": Bits(8, 7),
        "conv1": Bits(4, 3),
        "conv2": Bits(2, 16),
        "fc": Bits(8, 7),
    }


@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_compute_with_quantized_operands(per_channel: bool) -> None:
    net = Net()
    operands: dict[str, tuple[Tensor, Tensor]] = {}
    quantize = build(MinMax, inner=[2, 3], ends=None, per_channel=per_channel)
    quantize.attach(net, INPUT_SIZE)
    for name in quantize.bits:
        layer = net.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: operands.update({name: (args[0], layer.weight)})
        )
    net(images())
    for x, weight in operands.values():
        channels = (weight.unbind(0), x.unbind(1)) if per_channel else ([weight], [x])
        assert max(part.unique().numel() for part in channels[0]) <= 4
        assert max(part.unique().numel() for part in channels[1]) <= 8
    assert operands["conv1"][0].min() == 0  # behind a ReLU: unsigned
    assert operands["stem"][0].min() == images().min() or per_channel


def test_the_output_is_that_of_a_network_built_by_hand() -> None:
    net = Net()
    plain = deepcopy(net)
    build(MinMax, inner=[3, 3], ends=[32, 32]).attach(net, INPUT_SIZE)

    def on_grid(x: Tensor, low: Tensor) -> Tensor:
        scale = (x.max() - low) / 7
        return ((x - low) / scale).round() * scale + low

    zero = torch.tensor(0.0)
    x = F.relu(plain.stem(images()))
    weight = on_grid(plain.conv1.weight, plain.conv1.weight.min())
    h = F.conv2d(on_grid(x, zero), weight, padding=1, groups=2)
    h = F.relu(plain.norm(h))
    h = F.conv2d(on_grid(h, zero), on_grid(plain.conv2.weight, plain.conv2.weight.min()))
    expected = plain.fc(F.relu(x + h).mean((2, 3)))
    torch.testing.assert_close(net(images()), expected, rtol=1e-5, atol=1e-5)


def test_each_operand_is_quantized_once_per_forward(monkeypatch) -> None:
    calls: list[Quantizer] = []
    forward = Quantizer.forward
    monkeypatch.setattr(
        Quantizer, "forward", lambda self, x: (calls.append(self), forward(self, x))[1]
    )
    net = Net()
    build().attach(net, INPUT_SIZE)
    assert not calls  # attaching looks at no data
    net(images()).sum().backward()
    assert len(calls) == len(set(calls)) == 8


def test_only_the_quantizers_parameters_are_new() -> None:
    net = Net()
    before = {id(p) for p in net.parameters()}
    quantize = build(act=partial(PACT, batched=True, clip_init=6.0))
    quantize.attach(net, INPUT_SIZE)
    new = {name for name, p in net.named_parameters() if id(p) not in before}
    assert len(before) == 4 + 1 + 2  # weights, bias, batch norm
    assert len(new) == 8
    assert {name.rsplit(".", 1)[1] for name in new} == {"step", "clip"}
    assert net.conv1.act_quantizer.clip.item() == 6.0


def test_float_operands_stay_as_they_are() -> None:
    net = Net()
    quantize = build(inner=[32, 4], ends=[32, 32])
    quantize.attach(net, INPUT_SIZE)
    assert not hasattr(net.stem, "act_quantizer")
    assert not hasattr(net.conv1, "parametrizations")
    assert quantize.bits["conv1"] == Bits(32, 4)
    assert quantize.bits["fc"] == Bits(32, 32)


def test_set_bits_changes_widths() -> None:
    net = Net()
    quantize = build(MinMax, inner=[16, 16], ends=[16, 16])
    quantize.attach(net, INPUT_SIZE)
    float_like = net(images())
    quantize.set_bits({"conv2": Bits(2, 2)})
    assert quantize.bits["conv2"] == Bits(2, 2)
    assert quantize.bits["conv1"] == Bits(16, 16)
    assert net.conv2.weight.unique().numel() == 4
    assert not torch.equal(net(images()), float_like)


def test_sixteen_bit_min_max_is_the_float_network() -> None:
    net = Net()
    plain = deepcopy(net)
    build(MinMax, inner=[16, 16], ends=[16, 16]).attach(net, INPUT_SIZE)
    assert torch.equal(net(images()), plain(images()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {"conv_1": [8, 8]}}, "unknown layer 'conv_1'. Nearest: conv1"),
        ({"ties": [["conv1", "conv3"]]}, "ties: unknown layer 'conv3'. Nearest: conv"),
        (
            {"ties": [["conv1", "conv2"]], "layers": {"conv2": [2, 3]}},
            r"ties: these layers must have equal bit-widths: conv1 \[4, 3\], conv2 \[2, 3\]",
        ),
        ({"inner": [4]}, r"bits.inner: \[4\] is not a pair"),
        ({"inner": [4, 17]}, "bits=17: a quantization grid has 1 to 16 bits"),
        ({"layers": {"conv1": [0, 4]}}, "bits=0: a quantization grid has 1 to 16 bits"),
        ({"inner": [32, 32], "ends": None}, "every bit-width is 32; use `quantizer=none`"),
    ],
)
def test_mistakes_are_named(changes: dict, message: str) -> None:
    net = Net()
    with pytest.raises(UserError, match=message):
        build(**changes).attach(net, INPUT_SIZE)
    assert not any(isinstance(module, Quantizer) for module in net.modules())


def test_a_network_without_layers_and_a_second_callback_are_mistakes() -> None:
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        build().attach(nn.Sequential(nn.BatchNorm2d(1)), INPUT_SIZE)
    net = Net()
    quantize = build()
    quantize.attach(net, INPUT_SIZE)
    with pytest.raises(UserError, match="this network is quantized already"):
        build().attach(net, INPUT_SIZE)
    with pytest.raises(UserError, match="this callback has a network already"):
        quantize.attach(Net(), INPUT_SIZE)


class Shared(Net):
    """Its inner convolution runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.conv2(self.relu1(self.stem(x)))))
        return self.fc(self.relu2(self.norm(self.conv1(x))).mean((2, 3)))


def test_layers_off_the_grid_are_named_before_the_network_changes() -> None:
    net = Shared()
    with pytest.raises(NotImplementedError, match=r"layer 'conv2' \(Conv2d\) runs more than once"):
        build().attach(net, INPUT_SIZE)
    assert not any(isinstance(module, Quantizer) for module in net.modules())
    build(layers={"conv2": [2, 32]}).attach(net, INPUT_SIZE)  # its input in float, it passes
    assert net.conv2.weight.unique().numel() <= 4


UP = {
    "plain": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(4, 6, 3)),
    "depthwise": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4),
}


@pytest.mark.parametrize("kind", UP)
@pytest.mark.parametrize("method", [LSQ, MinMax, DoReFa, StepAndClip])
def test_each_output_channel_of_a_transposed_convolution_has_its_own_grid(method, kind) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), UP[kind]())
    act = partial(PACT, batched=True, clip_init=6.0)
    quantize = build(method, per_channel=True, inner=[3, 3], ends=None, act=act)
    quantize.attach(net, INPUT_SIZE)
    (layer,) = [m for m in net.modules() if isinstance(m, nn.ConvTranspose1d | nn.ConvTranspose2d)]
    with torch.no_grad():  # every other channel a hundred times smaller: no common grid has both
        raw = layer.parametrizations.weight.original
        outputs = raw if kind == "depthwise" else raw.transpose(0, 1)
        outputs *= 0.01 ** (torch.arange(len(outputs)) % 2).view(-1, *[1] * (raw.dim() - 1))
    net(images())
    quantized = layer.weight if kind == "depthwise" else layer.weight.transpose(0, 1)
    for channel in quantized:
        assert 2 < channel.unique().numel() <= 8
    last = list(quantize.final_layers())[-1]
    grouped = layer.groups if kind == "depthwise" else 1
    assert last.integers.shape[:2] == (layer.out_channels, layer.in_channels // grouped)
    torch.testing.assert_close(last.scale * last.integers + last.offset, quantized)


def test_transposed_convolutions_in_groups_have_one_grid_or_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=2))
    message = r"layer '2' \(ConvTranspose2d\) has 2 groups, .*: choose per_channel=false"
    with pytest.raises(NotImplementedError, match=message):
        build(per_channel=True).attach(net, INPUT_SIZE)
    assert not any(isinstance(module, Quantizer) for module in net.modules())
    quantize = build(MinMax)
    quantize.attach(net, INPUT_SIZE)
    whole = net[2].weight
    *_, last = quantize.final_layers()
    assert last.integers.shape == (6, 2, 3, 3)
    by_group = torch.stack([whole[:2].transpose(0, 1), whole[2:].transpose(0, 1)]).flatten(0, 1)
    torch.testing.assert_close(last.scale * last.integers + last.offset, by_group)


def test_channels_of_tokens_are_their_last_dimension() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(36, 5))
    quantize = build(MinMax, per_channel=True, inner=[8, 2], ends=None)
    quantize.attach(net, INPUT_SIZE)
    seen: list[Tensor] = []
    net[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(images())
    assert quantize.act_quantizers["2"].low.shape == (36,)
    assert all(feature.unique().numel() <= 4 for feature in seen[0].unbind(2))


class Blend(MinMax):
    """Reads its width off a parameter until one is set, as a search by gradients does."""

    bits_follow = True

    @property
    def bits(self) -> int:
        return self._bits if self.settled else math.ceil(self.width)

    @bits.setter
    def bits(self, bits: int) -> None:
        self._bits, self.settled = bits, self.made

    made, settled, width = False, False, 3.9


def test_set_bits_reaches_a_quantizer_that_only_reads_that_width_off_a_parameter() -> None:
    blend = Blend(8, signed=True, batched=False)
    blend.made = True
    assert (blend.bits, blend.settled) == (4, False)
    _set_width({"conv": blend}, "conv", 4)
    assert (blend.bits, blend.settled) == (4, True)


def test_set_bits_names_mistakes() -> None:
    quantize = build(inner=[32, 4], ties=[["conv1", "conv2"]])
    quantize.attach(Net(), INPUT_SIZE)
    with pytest.raises(UserError, match="set_bits: unknown layer 'conv'"):
        quantize.set_bits({"conv": Bits(2, 2)})
    with pytest.raises(UserError, match="layer 'conv1' is float"):
        quantize.set_bits({"conv1": Bits(2, 2)})
    with pytest.raises(UserError, match="must have equal bit-widths"):
        quantize.set_bits({"conv1": Bits(32, 2)})


@pytest.mark.parametrize("method", [LSQ, MinMax])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_read_under_autocast_what_float32_gives_them_rounded_once(method, dtype) -> None:
    net = Net()
    build(method, inner=[8, 8], ends=None).attach(net, INPUT_SIZE)
    read: list[Tensor] = []
    given: list[Tensor] = []
    before = deepcopy(net.conv2.act_quantizer)
    net.conv2.act_quantizer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    net.conv2.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.autocast("cpu", dtype=dtype):
        out = net(images())
        weight = net.conv1.weight
    assert out.dtype == given[0].dtype == dtype
    assert torch.equal(read[0], before(given[0].float()).to(dtype))
    assert torch.equal(weight, net.conv1.weight.to(dtype))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile itself does
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", [LSQ, MinMax])
def test_one_compiled_graph_is_the_eager_network(method, per_channel) -> None:
    torch.compiler.reset()
    eager = Net()
    build(method, per_channel=per_channel).attach(eager, INPUT_SIZE)
    compiled = deepcopy(eager)
    compiled.compile(fullgraph=True, backend="aot_eager")  # a graph break raises
    for seed in range(3):  # the first batch sets steps and ranges
        outs = [net(images(seed)) for net in (eager, compiled)]
        torch.testing.assert_close(*outs)
        for net, out in zip((eager, compiled), outs, strict=True):
            net.zero_grad()
            out.square().sum().backward()
        for ours, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile itself does
@pytest.mark.slow  # some 5 s each
@pytest.mark.parametrize("method", [LSQ, MinMax])
def test_every_width_is_compiled(method) -> None:
    torch.compiler.reset()
    net, quantize = Net(), build(method)
    quantize.attach(net, INPUT_SIZE)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    net.compile(backend=backend)
    compiled = []
    for width in (8, 6, 4, 2):  # the phases of a run
        quantize.set_bits({name: Bits(width, width) for name in quantize.bits})
        graphs.clear()
        for seed in range(2):
            net.train()(images(seed)).sum().backward()
            with torch.no_grad():
                net.eval()(images(seed))
                net(images(seed)[:3])  # the last batch of an evaluation
        compiled.append(len(graphs))
    # For training, evaluation and its last batch; the first training batch has one of its own.
    assert set(compiled) <= {3, 4}


class Module(pl.LightningModule):
    """Trains ``net`` with SGD, whose parameters are taken after ``Quantize.setup``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.input_size = INPUT_SIZE

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        self.net(100 * batch[0])  # must leave no trace in steps and ranges

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class LowerBits(pl.Callback):
    """Sets new bit-widths at the start of the second epoch."""

    def __init__(self, quantize: Quantize) -> None:
        self.quantize = quantize

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.quantize.set_bits({"conv1": Bits(3, 2)})


def quiet(test: Callable) -> Callable:
    """Let Lightning's advice and its use of a deprecated torch class pass."""
    for message in ("many workers", "logging interval", "GPU available", "LeafSpec"):
        test = pytest.mark.filterwarnings(f"ignore:.*{message}")(test)
    return test


def fit(folder: Path, method, max_epochs: int, resume: Path | None = None, **trainer) -> Module:
    quantize, module = build(method), Module()
    data = TensorDataset(torch.cat([images(1), images(2)]), torch.arange(32) % 3)
    runner = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[quantize, LowerBits(quantize)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    train, val = DataLoader(data, batch_size=8), DataLoader(data, batch_size=32)
    runner.fit(module, train, val, ckpt_path=resume, weights_only=True)
    runner.save_checkpoint(folder / f"{max_epochs}.ckpt")
    module.quantize = quantize
    return module


@quiet
@pytest.mark.parametrize("method", [LSQ, MinMax])
def test_a_resumed_fit_is_the_unbroken_one_to_the_bit(method, tmp_path: Path) -> None:
    unbroken = fit(tmp_path, method, max_epochs=4)
    fit(tmp_path, method, max_epochs=2)
    resumed = fit(tmp_path, method, max_epochs=4, resume=tmp_path / "2.ckpt")

    assert resumed.quantize.bits == unbroken.quantize.bits
    assert resumed.quantize.bits["conv1"] == Bits(3, 2)
    ours, theirs = resumed.state_dict(), unbroken.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name]
            assert value["initialized"] or "act" not in name, name
    if method is LSQ:
        steps = [value for name, value in ours.items() if name.endswith("step")]
        assert len(steps) == 8
        assert all(step != 1 for step in steps)
        optimizer = resumed.trainer.optimizers[0]
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in resumed.parameters()}


@quiet
def test_the_sanity_check_before_training_leaves_no_trace(tmp_path: Path) -> None:
    checked = fit(tmp_path, LSQ, max_epochs=1, num_sanity_val_steps=2)
    unchecked = fit(tmp_path, LSQ, max_epochs=1, num_sanity_val_steps=0)
    for name, value in checked.net.named_parameters():
        assert torch.equal(value, unchecked.net.get_parameter(name)), name


SHEETS = [path for path in sorted((CONF / "quantizer").glob("*.yaml")) if path.stem != "none"]


@pytest.mark.parametrize("path", SHEETS, ids=lambda path: path.stem)
def test_files_make_a_callback(path: Path) -> None:
    words = [f"quantizer={path.stem}", "bits.accumulator=16"]  # which some need
    group = compose_run(words)["quantizer"]
    quantize = instantiate(group["callback"])
    assert isinstance(quantize, Quantize)
    assert isinstance(group["version"], int)
    net = Net()
    quantize.attach(net, INPUT_SIZE)
    net(images()).sum().backward()
    assert quantize.bits.keys() == {"stem", "conv1", "conv2", "fc"}


def test_the_float_file_has_no_callback() -> None:
    assert OmegaConf.load(CONF / "quantizer" / "none.yaml").callback is None


# What a quantizer knows of its layer


def test_both_quantizers_of_a_layer_are_told_which_it_is() -> None:
    quantize = build(layers={"conv2": [32, 5]})
    quantize.attach(Net(), INPUT_SIZE)
    known = {
        name: (layer.name, layer.kind, layer.input_bits, layer.input_signed)
        for name, quantizer in quantize.act_quantizers.items()
        if (layer := quantizer.layer) is not None
    }
    assert known == {
        "stem": ("stem", "conv", 7, True),  # of images
        "conv1": ("conv1", "conv", 3, False),  # behind a ReLU
        "conv2": ("conv2", "conv", 5, False),  # whose weights are float
        "fc": ("fc", "linear", 7, False),
    }
    for name, quantizer in quantize.weight_quantizers.items():
        assert quantizer.layer is quantize.act_quantizers[name].layer
    assert LSQ(4, signed=True, batched=False).layer is None  # in no network


def test_the_width_of_a_layers_input_is_that_of_now() -> None:
    quantize = build(layers={"conv1": [4, 32]})
    quantize.attach(Net(), INPUT_SIZE)
    layers = {name: q.layer for name, q in quantize.weight_quantizers.items()}
    assert {name: layer.input_bits for name, layer in layers.items()} == {
        "stem": 7,
        "conv1": 32,  # float
        "conv2": 3,
        "fc": 7,
    }
    quantize.set_bits({"conv2": Bits(2, 6)})
    assert (layers["conv2"].input_bits, layers["fc"].input_bits) == (6, 7)


def test_the_width_of_a_layers_input_follows_a_learned_one() -> None:
    quantize = build(StepAndClip, inner=[4, 4], ends=None)
    net = Net()
    quantize.attach(net, INPUT_SIZE)
    net(images())
    layer, act = quantize.weight_quantizers["fc"].layer, quantize.act_quantizers["fc"]
    assert layer.input_bits == 4
    with torch.no_grad():
        act.clip.fill_(6.0)  # the levels 0, 2, 4 and 6
        act.step.fill_(2.0)
    assert layer.input_bits == 2


def test_a_copy_of_a_network_has_layers_of_its_own_and_the_same_state() -> None:
    quantize = build()
    net = Net()
    before = {name for name, _ in net.named_parameters()}
    quantize.attach(net, INPUT_SIZE)
    copied = deepcopy(net)
    own = copied.conv2.parametrizations.weight[0].layer
    assert own.act is copied.conv2.act_quantizer
    copied.conv2.act_quantizer.bits = 6
    assert (own.input_bits, quantize.weight_quantizers["conv2"].layer.input_bits) == (6, 3)
    assert not any("layer." in name for name in net.state_dict())
    assert len(before) + 8 == len(list(net.parameters()))  # a step for each operand, no more
