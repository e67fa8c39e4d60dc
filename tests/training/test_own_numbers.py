"""A method's own numbers: declared in its YAML, refused in the first line where they are not so."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.numbers import own_numbers
from quantable.config.schema import OwnNumber, QuantizerConfig
from quantable.config.signature import portable, signature
from quantable.store.record import Epoch
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

DECLARED = {
    "loss_scale": OwnNumber(title="scale", unit="1", decimals=2),
    "share": OwnNumber(title="share of ones", unit="%", decimals=1, by="layer"),
}


def module() -> Classifier:
    """A classifier with the layers 0 and 2 at the end of its first epoch."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    optimizer = partial(torch.optim.SGD, lr=0.1)
    made = Classifier(
        net, input_size=(1, 8, 8), optimizer=optimizer, schedule=constant, epochs=1,
        numbers=DECLARED,
    )  # fmt: skip
    made.history.append({"epoch": 0, "phase": 0})
    return made


def test_numbers_come_into_the_line_beside_those_that_are_there() -> None:
    made = module()
    made.note(share={"0": 50.0, "2": 0.5})
    made.note(loss_scale=3)
    assert made.history == [
        {"epoch": 0, "phase": 0, "own": {"share": {"0": 50.0, "2": 0.5}, "loss_scale": 3}}
    ]
    line = made.history[0] | {"test_top1_pct": 1, "test_loss": 1, "seconds": 1}
    assert Epoch.model_validate(line).by_layer("share") == {"0": 50.0, "2": 0.5}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"shares": 1.0}, "quantizer.numbers: unknown own number 'shares'. Nearest: share"),
        ({"share": 1.0}, "quantizer.numbers.share: by layer it is {layer: number}, not 1.0"),
        ({"share": {}}, "quantizer.numbers.share: by layer"),
        ({"share": {"1": 1.0}}, "quantizer.numbers.share: unknown layer '1'. Nearest: "),
        ({"share": {"0": math.nan}}, "quantizer.numbers.share.0: nan is not one finite number"),
        ({"loss_scale": {"0": 1.0}}, "quantizer.numbers.loss_scale: {'0': 1.0} is not one finite"),
        ({"loss_scale": math.inf}, "quantizer.numbers.loss_scale: inf is not one finite"),
        ({"loss_scale": torch.ones(2)}, "tensor([1., 1.]) is not one finite number"),
        ({"loss_scale": True}, "True is not one finite number"),
    ],
    ids=["undeclared", "no-layers", "empty", "no-such-layer", "nan", "by-layer", "inf", "tensor",
         "truth"],
)  # fmt: skip
def test_what_is_not_as_declared_is_refused(numbers: dict[str, Any], message: str) -> None:
    made = module()
    with pytest.raises(UserError) as error:
        made.note(**numbers)
    assert message in str(error.value)
    assert made.history == [{"epoch": 0, "phase": 0}]


def test_a_number_of_an_epoch_that_has_no_line_yet_is_refused() -> None:
    made = module()
    made.epoch = 1
    with pytest.raises(UserError, match="this epoch has no line yet"):
        made.note(loss_scale=1.0)


# Declarations


def test_declarations_are_kept_but_not_signed() -> None:
    config = compose_run(["quantizer=ad"])
    without = {key: value for key, value in config["quantizer"].items() if key != "numbers"}
    assert signature(config | {"quantizer": without}) == signature(config)
    declared = own_numbers(config)
    assert {name: about.by for name, about in declared.items()} == {
        "density": "layer",
        "total_density": None,
        "miscounted": None,
    }
    assert own_numbers(portable(config)) == declared  # as a record keeps it


def test_a_method_that_extends_another_has_its_numbers() -> None:
    declared = own_numbers(compose_run(["quantizer=ad"]))
    assert own_numbers(compose_run(["quantizer=ad_pruning"])) == declared


def test_a_method_without_numbers_needs_no_key() -> None:
    config = compose_run(["quantizer=lsq"])
    assert "numbers" not in config["quantizer"]
    assert own_numbers(config) == own_numbers(portable(config)) == {}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"seconds": {"title": "s", "unit": "s", "decimals": 1}}, "every epoch's line has"),
        ({"a b": {"title": "s", "unit": "s", "decimals": 1}}, "match pattern"),
        ({"a": {"title": "s", "unit": "s"}}, "Field required"),
        ({"a": {"title": "s", "unit": "s", "decimals": 1, "by": "epoch"}}, "should be 'layer'"),
    ],
)
def test_wrong_declarations_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizerConfig(version=1, learns_bits=False, callback=None, numbers=numbers)
