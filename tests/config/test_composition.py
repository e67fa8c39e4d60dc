"""Composition, checks and the signature of a run config."""

import hashlib
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from quantable.base.errors import UserError
from quantable.base.places import CONF
from quantable.config.composition import compose_run
from quantable.config.signature import portable, signature

LSQ = ("quantizer=lsq", "bits.inner=[4,4]", "recipe=sgd_one_cycle")

UNSIGNED = [
    "trainer.threads=3",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_seconds=1",
    "store=elsewhere",
    "data.root=elsewhere",
    "data.part=true",
    "hardware.pim_rounding=down",
    "hardware.energy=other_chip",
    "data.title=Other",
]
SIGNED = [
    "seed=1",
    "budget=smoke",
    "budget=gpu",
    "recipe.epochs=13",
    "recipe.batch_size=64",
    "recipe.precision=bf16-mixed",
    "recipe.compile=true",
    "recipe.channels_last=false",
    "recipe.optimizer.lr=0.3",
    "recipe.schedule.restart=0.4",
    "recipe=adam",
    "quantizer.version=2",
    "quantizer=dorefa",
    "quantizer=none",
    "bits.inner=[4,8]",
    "bits.ends=null",
    "bits.layers={fc:[2,2]}",
    "model.net.width=0.5",
    "model.net.shortcuts=all",
    "model.net.shortcuts=pad",
    "data.val_images=500",
    "data.train_images=500",
    "data.augment.flip=false",
    "data.version=2",
]


def test_a_signature_is_the_start_of_the_sha256_of_the_sorted_json() -> None:
    text = '{"a.b": [1, 2], "seed": 0}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert signature({"seed": 0, "a": {"b": [1, 2]}}) == expected
    assert signature({"a": {"b": [1, 2]}, "seed": 0, "store": "x"}) == expected


@pytest.mark.parametrize("word", UNSIGNED)
def test_machine_keys_and_later_arithmetic_are_not_signed(word: str) -> None:
    assert signature(compose_run([*LSQ, word])) == signature(compose_run(LSQ))


def test_everything_that_can_change_a_number_is_signed() -> None:
    signatures = {word: signature(compose_run([*LSQ, word])) for word in SIGNED}
    assert signature(compose_run(LSQ)) not in signatures.values()
    assert len(set(signatures.values())) == len(SIGNED)


OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("table", "hardware")
)


@pytest.mark.parametrize("choice", OPTIONS)
def test_an_option_is_what_hydra_composes(choice: str) -> None:
    timm = ["model=timm", "data=imagenet", "model.net.name=resnet18"]
    words = [*(timm if choice in timm else [choice]), "seed=3"]
    quick = compose_run(words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("run", overrides=words), resolve=True)
    assert json.dumps(quick) == json.dumps(config)  # in the same order


def test_the_last_word_wins() -> None:
    assert compose_run(["seed=1", "seed=2", "bits.inner=[2,3]"])["seed"] == 2
    assert compose_run(["budget=smoke", "recipe.epochs=7"])["recipe"]["epochs"] == 7


def test_a_config_is_plain_and_a_record_keeps_nothing_of_the_machine(tmp_path: Path) -> None:
    config = compose_run([*LSQ, f"data.root={tmp_path}", f"store={tmp_path}"])
    assert json.loads(json.dumps(config)) == config
    kept = portable(config)
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["recipe.optimizer.lr"] == 0.2
    assert kept["hardware.pim_rounding"] == "up"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=resnet9_cifar"], "unknown model 'resnet9_cifar'. Nearest: resnet8_cifar"),
        (["quantizer=lqs"], "unknown quantizer 'lqs'. Nearest: lsq"),
        (["data=cifar11"], "unknown data 'cifar11'. Nearest: cifar10"),
        (["recipe.epoch=3"], "unknown key 'recipe.epoch'. Nearest: recipe.epochs"),
        (["+recipe.epoch=3"], "unknown key 'recipe.epoch'. Nearest: recipe.epochs"),
        (["model.net.with=0.5"], "unknown key 'model.net.with'. Nearest: model.net.width"),
        (
            ["quantizer=ad", "quantizer.callback.windw=2"],
            "unknown key 'quantizer.callback.windw'. Nearest: quantizer.callback.window",
        ),
        (["bits.inner=[17,17]"], "bits=17: a quantization grid has 1 to 16 bits"),
        (["bits.inner=[4,0]"], "bits.inner.1=0: a quantization grid has 1 to 16 bits"),
        (["bits.ends=[33,8]"], "bits.ends.0=33: a quantization grid has 1 to 16 bits"),
        (["bits.layers={fc:[20,8]}"], "bits=20: a quantization grid has 1 to 16 bits"),
        (["bits.inner=4"], "bits.inner=4: "),
        (["recipe.epochs=-1"], "recipe.epochs=-1: "),
        (["recipe.epochs=many"], "recipe.epochs='many': "),
        (["recipe.optimizer.lr=-1"], "recipe.optimizer.lr=-1: "),
        (["recipe.precision=16"], "recipe.precision=16: "),
        (["seed=-1"], "seed=-1: "),
        (["trainer.accelerator=tpu"], "trainer.accelerator='tpu': .* 'cpu'"),
        (["hardware.pim_rounding=sideways"], "hardware.pim_rounding='sideways': .* 'up'"),
        (["model=timm"], "model.net.name"),
        (["recipe.epochs=[1"], "command line: "),
        (["recipe"], "'recipe' is not of the form key=value"),
        (["data.loader.flip=false"], "only repeats keys of data"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_wrong_word_is_named_with_the_nearest_right_one(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        compose_run(words)


@pytest.mark.parametrize("model", ["resnet8_cifar", "resnet18_cifar", "resnet20_cifar"])
def test_null_weights_ask_the_same_question_as_before_there_were_any(model: str) -> None:
    """Records from before the keys are found again."""
    config = compose_run([f"model={model}"])
    assert (
        config["model"]["net"].pop("weights"),
        config["model"]["net"].pop("weights_sha256"),
    ) == (
        None,
        None,
    )
    assert signature(config) == signature(compose_run([f"model={model}"]))


def test_looks_are_neither_signed_nor_kept_in_records() -> None:
    plain = compose_run([*LSQ, "search=eagl"])
    words = ["quantizer.looks.colour='#000000'", "search.looks.short=other"]
    other = compose_run([*LSQ, "search=eagl", *words])
    assert other["quantizer"]["looks"] != plain["quantizer"]["looks"]
    assert signature(other) == signature(plain)
    assert not [key for key in portable(plain) if "looks" in key]
