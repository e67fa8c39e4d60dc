"""Write the packaged layer shapes: one JSON for each network that the tables need.

Run `python tools/make_shapes.py` after a change of NETWORKS or of a network; a test compares the
files with the networks.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from quantable.networks.shapes import PACKAGED, shape_key, write_network
from quantable.networks.trace import trace

CONF = Path(__file__).parents[1] / "conf" / "model"

# (conf/model, arguments of net that differ from its file, classes, input size c, h, w)
NETWORKS: list[tuple[str, dict[str, Any], int, tuple[int, int, int]]] = [
    ("resnet8_cifar", {}, 10, (1, 28, 28)),
    ("resnet8_cifar", {"shortcuts": "all"}, 10, (1, 28, 28)),
    ("resnet20_cifar", {}, 10, (3, 32, 32)),
    ("resnet20_cifar", {"shortcuts": "all"}, 10, (3, 32, 32)),
    ("resnet20_cifar", {"shortcuts": "pad"}, 10, (3, 32, 32)),
    ("vgg19_cifar", {}, 10, (3, 32, 32)),
    ("vgg19_cifar", {"width": 0.25}, 10, (3, 32, 32)),
    ("vgg19_cifar", {"width": 0.25}, 10, (1, 28, 28)),
    ("resnet18_cifar", {}, 10, (3, 32, 32)),
    ("resnet18_cifar", {"width": 0.25}, 10, (3, 32, 32)),
    ("resnet18_cifar", {}, 100, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all"}, 10, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all"}, 100, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all"}, 200, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all"}, 200, (3, 64, 64)),
    ("resnet18_cifar", {"shortcuts": "all", "width": 0.25}, 10, (1, 28, 28)),
    ("resnet18_cifar", {"shortcuts": "all", "width": 0.25}, 10, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all", "width": 0.25}, 100, (3, 32, 32)),
    ("resnet18_cifar", {"shortcuts": "all", "width": 0.25}, 200, (3, 64, 64)),
    ("allcnn_c", {}, 10, (3, 32, 32)),
    ("allcnn_c", {"width": 0.25}, 10, (3, 32, 32)),
    ("allcnn_c", {"width": 0.25, "dropout": False}, 10, (3, 32, 32)),
    ("timm", {"name": "resnet18.tv_in1k"}, 1000, (3, 224, 224)),
    ("timm", {"name": "resnet50.tv_in1k"}, 1000, (3, 224, 224)),
    ("timm", {"name": "resnet101.tv_in1k"}, 1000, (3, 224, 224)),
    ("timm", {"name": "mobilenetv2_100.ra_in1k"}, 1000, (3, 224, 224)),
    ("timm", {"name": "tf_efficientnet_lite0.in1k"}, 1000, (3, 224, 224)),
    ("sqnxt23_w2", {}, 1000, (3, 224, 224)),
    ("nasnet_mobile", {}, 1001, (3, 224, 224)),  # the authors' classifier has a background class
    ("alexnet_groups", {}, 1000, (3, 227, 227)),
    ("alexnet_torchvision", {}, 1000, (3, 224, 224)),
    ("lenet5", {}, 10, (1, 28, 28)),
]


def models() -> Iterator[tuple[Mapping[str, Any], tuple[int, int, int]]]:
    """The resolved ``model`` group and the input size of every network in NETWORKS."""
    for name, net, classes, input_size in NETWORKS:
        model = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"net": net})
        data = {"classes": classes, "input_size": input_size}
        config = OmegaConf.create({"data": data, "model": model})
        yield OmegaConf.to_container(config, resolve=True)["model"], input_size


def main() -> None:
    """Trace every network and print what was written."""
    for model, input_size in models():
        network = trace(instantiate(model["net"]), input_size)
        path = write_network(shape_key(model, input_size), network, PACKAGED)
        print(f"{sum(layer.macs for layer in network.layers):>13,} MACs  {path.name}")


if __name__ == "__main__":
    main()
