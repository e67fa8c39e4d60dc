"""Signs of layer inputs by reading the graph, and never against what a forward pass shows."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantable.networks.counting import layer_shapes
from quantable.networks.shapes import shape_key
from quantable.networks.signs import RULES
from quantable.networks.trace import signed_inputs

TOOL = Path(__file__).parents[2] / "tools" / "make_shapes.py"
MODELS = list(runpy.run_path(str(TOOL))["models"]())


class Between(nn.Module):
    """Two convolutions and, between them, a function of the first one's result."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.parameter = nn.Parameter(torch.ones(1))
        self.register_buffer("buffer", torch.ones(1))
        self.buffer: Tensor
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x)))


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)


class NegateInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.neg_()


def written(x: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    """ReLU of ``x``, into which ``write`` has written."""
    y = x.relu()
    write(y)
    return y


relu = F.relu
UNSIGNED: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "relu": lambda net, x: relu(x),
    "relu6": lambda net, x: F.relu6(x),
    "clamp": lambda net, x: x.clamp(min=0),
    "clamp_both": lambda net, x: x.clamp(torch.zeros(1), net.parameter.abs()),
    "clamp_max": lambda net, x: relu(x).clamp(max=2),
    "hardtanh": lambda net, x: F.hardtanh(x, 0, 1),
    "threshold": lambda net, x: F.threshold(x, 0.5, 0),
    "maximum": lambda net, x: torch.maximum(x, torch.tensor(0.0)),
    "sigmoid": lambda net, x: x.sigmoid(),
    "hardsigmoid": lambda net, x: F.hardsigmoid(x),
    "softmax": lambda net, x: x.softmax(1),
    "softplus": lambda net, x: F.softplus(x),
    "exp": lambda net, x: x.exp(),
    "abs": lambda net, x: x.abs(),
    "square": lambda net, x: x.square(),
    "power": lambda net, x: x**2,
    "times_itself": lambda net, x: x * x,
    "norm": lambda net, x: x.norm(dim=1, keepdim=True).expand_as(x),
    "variance": lambda net, x: x.var(1, keepdim=True).expand_as(x),
    "comparison": lambda net, x: (x > net.parameter).float(),
    "norm_then_relu": lambda net, x: relu(net.norm(x)),
    "gelu_of_relu": lambda net, x: F.gelu(relu(x)),
    "prelu_of_relu": lambda net, x: F.prelu(relu(x), net.parameter),
    "by_a_number": lambda net, x: relu(x) * 2 / 3 + 0.5,
    "by_a_square": lambda net, x: relu(x) * net.parameter**2,
    "gated": lambda net, x: relu(x) * x.mean((2, 3), keepdim=True).sigmoid(),
    "masked": lambda net, x: relu(x) * (x > 1),
    "sum_of_two": lambda net, x: relu(x).add(x.sigmoid(), alpha=2),
    "where": lambda net, x: torch.where(net.parameter > 0, relu(x), x.exp()),
    "filled": lambda net, x: relu(x).masked_fill(x > 1, 0.5),
    "max_pool": lambda net, x: F.max_pool2d(relu(x), 2, 1),
    "avg_pool": lambda net, x: F.avg_pool2d(relu(x), 2, 1),
    "lp_pool": lambda net, x: F.lp_pool2d(relu(x), 2, 2, 1),
    "adaptive_avg_pool": lambda net, x: F.adaptive_avg_pool2d(relu(x), 5),
    "adaptive_max_pool": lambda net, x: F.adaptive_max_pool2d(relu(x), 5),
    "mean_and_amax": lambda net, x: relu(x).amax(3, True) * relu(x).mean(2, True),
    "padded": lambda net, x: F.pad(relu(x), (1, 1), value=0.5),
    "reflected": lambda net, x: F.pad(relu(x), (1, 1, 1, 1), mode="reflect"),
    "nearest": lambda net, x: F.interpolate(relu(x), scale_factor=2),
    "bilinear": lambda net, x: F.interpolate(relu(x), scale_factor=2, mode="bilinear"),
    "concatenated": lambda net, x: torch.cat(relu(x).chunk(2, 1)[::-1], 1),
    "stacked": lambda net, x: torch.stack([relu(x), x.exp()]).sum(0),
    "split": lambda net, x: torch.cat(relu(x).split([1, 3], 1), 1),
    "indexed": lambda net, x: relu(x)[:, [3, 2, 1, 0]],
    "gathered": lambda net, x: relu(x).gather(1, (x * 0).long()),
    "flipped": lambda net, x: relu(x).roll(1, 2).flip(3),
    "shuffled": lambda net, x: F.channel_shuffle(relu(x), 2),
    "pixel_shuffled": lambda net, x: F.pixel_unshuffle(F.pixel_shuffle(relu(x), 2), 2),
    "unfolded": lambda net, x: F.fold(F.unfold(relu(x), 3), (9, 9), 3),
    "copied": lambda net, x: relu(x).double().float().mT.contiguous().clone().detach(),
    "in_place": lambda net, x: x.relu_().mul_(2).add_(1),
    "set_to_zero": lambda net, x: written(x, lambda y: y.__setitem__((..., 0), 0)),
    "out": lambda net, x: torch.mul(relu(x), 2, out=torch.empty_like(x)),
    "dropout": lambda net, x: F.dropout2d(F.dropout(relu(x), 0.5, net.training), training=True),
    "attention": lambda net, x: F.scaled_dot_product_attention(x, x, relu(x)),
    "attention_by_hand": lambda net, x: (x @ x.mT).softmax(-1) @ relu(x),
    "response_norm": lambda net, x: F.local_response_norm(relu(x), 2),
    "gated_linear_unit": lambda net, x: F.glu(relu(x).repeat(1, 2, 1, 1), 1),
    "own_function": lambda net, x: Clip.apply(x),
    "checkpoint": lambda net, x: checkpoint(relu, x, use_reentrant=False),
}
SIGNED: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "nothing": lambda net, x: x,
    "norm": lambda net, x: net.norm(relu(x)),
    "layer_norm": lambda net, x: F.layer_norm(relu(x), (9, 9)),
    "instance_norm": lambda net, x: F.instance_norm(relu(x)),
    "by_a_parameter": lambda net, x: relu(x) * net.parameter,
    "by_a_buffer": lambda net, x: relu(x) * net.buffer,
    "by_a_parameters_number": lambda net, x: relu(x) * net.parameter.item(),
    "shifted_by_a_parameter": lambda net, x: relu(x) + net.parameter,
    "shifted_down": lambda net, x: relu(x) - 0.5,
    "negative": lambda net, x: -relu(x),
    "by_a_negative_number": lambda net, x: relu(x) * -2,
    "difference": lambda net, x: relu(x).add(x.exp(), alpha=-1),
    "sum_with_signed": lambda net, x: relu(x) + x,
    "hardtanh": lambda net, x: F.hardtanh(x),
    "clamp_below_zero": lambda net, x: relu(x).clamp(max=-2),
    "maximum": lambda net, x: torch.maximum(x, torch.tensor(-1.0)),
    "minimum": lambda net, x: torch.minimum(relu(x), x),
    "threshold": lambda net, x: F.threshold(x, 0, -1),
    "cube": lambda net, x: x**3,
    "silu": lambda net, x: F.silu(x),
    "gelu": lambda net, x: F.gelu(x),
    "leaky_relu": lambda net, x: F.leaky_relu(x),
    "log_softmax": lambda net, x: x.log_softmax(1),
    "where": lambda net, x: torch.where(x > net.parameter, x, relu(x)),
    "filled": lambda net, x: relu(x).masked_fill(x > 1, -1),
    "padded": lambda net, x: F.pad(relu(x), (1, 1), value=-1),
    "bicubic": lambda net, x: F.interpolate(relu(x), scale_factor=2, mode="bicubic"),
    "concatenated": lambda net, x: torch.cat([relu(x)[:, :2], x[:, 2:]], 1),
    "relu_on_a_part": lambda net, x: (x[:, :2].relu_(), x)[1],
    "written_through_a_view": lambda net, x: written(x, lambda y: y.view(-1).sub_(1)),
    "written_into_a_part": lambda net, x: written(x, lambda y: y[:, 0].copy_(x[:, 0])),
    "set_to_a_number": lambda net, x: written(x, lambda y: y.__setitem__((..., 0), -1)),
    "out": lambda net, x: torch.mul(relu(x), -1, out=torch.zeros_like(x)),
    "alpha_dropout": lambda net, x: F.alpha_dropout(relu(x), 0.5, training=True),
    "attention": lambda net, x: F.scaled_dot_product_attention(relu(x), relu(x), x),
    "reread": lambda net, x: relu(x).view(torch.int32).view(torch.float32),
    "complex": lambda net, x: torch.complex(relu(x), relu(x)).mul(1j).real,
    "by_way_of_numpy": lambda net, x: torch.from_numpy(relu(x).numpy().copy()),
    "own_function": lambda net, x: NegateInPlace.apply(relu(x)),
}


def test_cases() -> None:
    assert (len(UNSIGNED), len(SIGNED)) == (60, 39)
    assert len(RULES) >= 150
    assert all(any(hasattr(torch.ops.aten, f"{n}{end}") for end in ("", "_")) for n in RULES)


@pytest.mark.parametrize("name", UNSIGNED)
def test_what_cannot_be_negative(name: str) -> None:
    assert signed_inputs(Between(UNSIGNED[name]), (3, 9, 9)) == {"first"}


@pytest.mark.parametrize("name", SIGNED)
def test_what_can_be_negative_whatever_the_weights_are(name: str) -> None:
    net = Between(SIGNED[name])
    for convolution in (net.first, net.second):  # as if nothing ever was negative
        nn.init.constant_(convolution.weight, 0.0)
        nn.init.constant_(convolution.bias, 9.0)
    assert signed_inputs(net, (3, 9, 9)) == {"first", "second"}


def test_behind_a_batch_norm_before_and_after_training() -> None:
    def layers() -> list[nn.Module]:
        return [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)]

    net = nn.Sequential(*layers(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4608, 10))
    assert signed_inputs(net, (1, 28, 28)) == {"0", "3"}
    for _ in range(3):
        net.train()(torch.randn(8, 1, 28, 28))
    assert signed_inputs(net, (1, 28, 28)) == {"0", "3"}
    assert signed_inputs(net.eval(), (1, 28, 28)) == {"0", "3"}


def test_a_last_batch_norm_that_begins_as_zero() -> None:
    net = timm.create_model("seresnet50", zero_init_last=True)
    squeezes = {name for name, _ in net.named_modules() if name.endswith("se.fc1")}
    assert len(squeezes) == 16
    assert signed_inputs(net, (3, 32, 32)) == {"conv1"} | squeezes  # of a batch norm's means


def test_convmixer_is_signed_throughout() -> None:
    net = timm.create_model("convmixer_768_32")  # each convolution reads GELU -> batch norm
    shapes = layer_shapes(net, (3, 32, 32))
    assert signed_inputs(net, (3, 32, 32)) == {shape.name for shape in shapes}
    assert len(shapes) == 66


class Training(Between):
    """What the second convolution reads is signed in training alone, and it runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x))
        return self.second(self.second(x).exp() - 1 if self.training else x)


def test_any_mode_and_any_call_counts() -> None:
    net = Training(SIGNED["nothing"])
    state = torch.get_rng_state()
    assert signed_inputs(net, (3, 9, 9)) == {"first", "second"}
    net.register_forward_pre_hook(lambda net, args: net.eval() and None)
    assert signed_inputs(net, (3, 9, 9)) == {"first"}
    assert torch.equal(torch.get_rng_state(), state)


class SetByTheFirstBatch(Between):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches = 1
            self.parameter.data.copy_(x.mean())
        return super().forward(x)


def test_asking_leaves_even_what_only_training_changes() -> None:
    net = SetByTheFirstBatch(lambda net, x: F.dropout(net.norm(x), 0.5, net.training))
    assert signed_inputs(net, (3, 9, 9)) == {"first", "second"}
    assert not hasattr(net, "batches")
    assert (net.parameter.item(), net.norm.num_batches_tracked) == (1, 0)


class NotInTraining(Between):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("labels are missing")
        return super().forward(x)


def test_a_network_that_cannot_run_in_training_mode_here() -> None:
    assert signed_inputs(NotInTraining(UNSIGNED["relu"]), (3, 9, 9)) == {"first"}


# Networks of the tables


@pytest.mark.parametrize(
    ("model", "input_size"), MODELS, ids=[shape_key(*arguments) for arguments in MODELS]
)
def test_signs_of_the_tables_networks(model, input_size) -> None:
    net = instantiate(model["net"])
    first, *_, last = (shape.name for shape in layer_shapes(net, input_size))
    name = model["net"].get("name", model["name"]).partition(".")[0]
    expected = {first}
    if name in ("mobilenetv2_100", "tf_efficientnet_lite0"):  # behind linear bottlenecks
        expected |= {n for n, _ in net.named_modules() if n.endswith("conv_pw")}
        expected |= {"conv_head"}
        expected -= {"blocks.0.0.conv_pw"}  # the separable block's pointwise layer, behind a ReLU6
        assert len(expected) == {"mobilenetv2_100": 18, "tf_efficientnet_lite0": 17}[name]
    if name == "nasnet_mobile":  # separable layers without a ReLU within
        expected |= {n for n, _ in net.named_modules() if n.endswith("pointwise_conv2d")}
        assert len(expected) == 161
    assert signed_inputs(net, input_size) == expected
    assert len(MODELS) >= 24
    assert last not in expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "seresnet50", "mobilenetv3_large_100", "efficientnet_b0", "densenet121"),
        *("convnextv2_atto", "ghostnet_100", "inception_v3", "nfnet_f0", "repvgg_a0", "hrnet_w18"),
        *("mobileone_s0", "poolformer_s12", "res2net50_26w_4s", "tinynet_e", "xception41"),
    ],
)
def test_no_weights_make_an_unsigned_input_negative(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    size = (3, 96, 96)
    layers = {shape.name for shape in layer_shapes(net, size)}
    unsigned = layers - signed_inputs(net, size)
    seen: set[str] = set()

    def look(name: str) -> Callable[..., None]:
        return lambda layer, args: seen.update({name} if (args[0] < 0).any() else ())

    for name in unsigned:
        net.get_submodule(name).register_forward_pre_hook(look(name))
    for _ in range(3):
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.3 if tensor.dim() > 1 else 1.0)
        for norm in net.modules():
            if getattr(norm, "running_var", None) is not None:
                norm.running_var.abs_()
        with torch.no_grad():
            net(torch.randn(2, *size))
    assert not seen
