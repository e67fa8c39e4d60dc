"""Bits files: what one says reaches the run; what is wrong with one is said by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.signature import signature
from quantable.networks.shapes import PACKAGED, read_shapes
from quantable.store.bits_file import BitsFile, network_name, read_bits, write_bits

NET = ["model=resnet20_cifar", "data=cifar10", "quantizer=lsq"]
SHAPES = read_shapes(
    "resnet20_cifar-classes=10-in_channels=3-shortcuts=plain-width=1-3x32x32", [PACKAGED]
)
assert SHAPES is not None
NAMES = [shape.name for shape in SHAPES]


def content(**changes: Any) -> dict[str, Any]:
    """A file with 8-bit ends, weights at 4 and activations at 2 bit."""
    layers = {name: [4, 2] for name in NAMES} | {"conv1": [8, 8], "fc": [8, 8]}
    return {
        "schema_version": 1,
        "network": "resnet20_cifar",
        "source": "a test",
        "layers": layers,
    } | changes


def write(folder: Path, **changes: Any) -> str:
    path = folder / "bits.json"
    path.write_text(json.dumps(content(**changes)))
    return f"bits.file={path}"


def test_a_run_has_the_bits_of_its_file(tmp_path: Path) -> None:
    config = compose_run([*NET, write(tmp_path)])
    assert config["bits"]["layers"] == content()["layers"]
    assert config["quantizer"]["callback"]["layers"] == content()["layers"]


def test_the_content_is_signed_and_the_place_is_not(tmp_path: Path) -> None:
    words = [f"{name}:{bits}".replace(" ", "") for name, bits in content()["layers"].items()]
    by_hand = compose_run([*NET, f"bits.layers={{{','.join(words)}}}"])
    (tmp_path / "other").mkdir()
    files = [write(tmp_path), write(tmp_path / "other", source="elsewhere")]
    assert {signature(compose_run([*NET, word])) for word in files} == {signature(by_hand)}
    other = write(tmp_path, layers=content()["layers"] | {"fc": [8, 4]})
    assert signature(compose_run([*NET, other])) != signature(by_hand)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    file = BitsFile.model_validate(content())
    write_bits(file, tmp_path / "again.json")
    assert read_bits(tmp_path / "again.json") == file


def without(name: str) -> dict[str, Any]:
    return {layer: bits for layer, bits in content()["layers"].items() if layer != name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": without("fc")}, "1 of 22 layers are missing: fc"),
        (
            {"layers": without("layer1.0.conv1") | {"layer1.0.conv1x": [4, 4]}},
            "unknown layer 'layer1.0.conv1x'. Nearest: layer1.0.conv1",
        ),
        ({"layers": content()["layers"] | {"fc": [8, 17]}}, "layers.fc: bits=17"),
        ({"layers": content()["layers"] | {"fc": [8]}}, "layers.fc"),
        ({"layers": {}}, "layers: Dictionary should have at least 1 item"),
        ({"network": "resnet8_cifar"}, "for network 'resnet8_cifar', the run has 'resnet20_cifar'"),
        ({"netwrk": "resnet20_cifar"}, "unknown key 'netwrk'. Nearest: network"),
        ({"schema_version": 2}, "schema_version: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    word = write(tmp_path, **changes)
    with pytest.raises(UserError) as refused:
        compose_run([*NET, word])
    assert message in str(refused.value)
    assert str(tmp_path / "bits.json") in str(refused.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        compose_run([*NET, f"bits.file={tmp_path / 'no.json'}"])
    (tmp_path / "bits.json").write_text("{")
    with pytest.raises(UserError, match=r"bits.json: file: Invalid JSON"):
        compose_run([*NET, f"bits.file={tmp_path / 'bits.json'}"])
    with pytest.raises(UserError, match=r"leave bits.layers out"):
        compose_run([*NET, write(tmp_path), "bits.layers={fc:[8,8]}"])


def test_the_tag_of_weights_is_no_part_of_a_networks_name() -> None:
    model = compose_run(["model=timm", "model.net.name=resnet18.tv_in1k", "data=imagenet"])["model"]
    assert network_name(model) == "resnet18"
