"""What is read from a file is signed by its content, whoever's builder reads it."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.config.files import absolute, unnamed
from quantable.config.signature import portable, signature
from quantable.config.targets import make
from quantable.networks.shapes import shape_key
from quantable.tables.cells import Cell

TIMM = ["model=timm", "model.net.name=resnet18.tv_in1k"]
OWN = {
    "timm": TIMM,
    **{name: [f"model={name}"] for name in ("resnet8_cifar", "resnet18_cifar", "resnet20_cifar")},
}
MINE = ["model.net._target_=my_networks.small"]  # in place of resnet8_cifar
MODULE = """
def small(classes, in_channels, width, shortcuts, weights=None, **more):
    return {"weights": weights, **more}


def plain(classes, in_channels, width, shortcuts):
    return shortcuts


def strict(classes, in_channels, width, shortcuts, weights, weights_sha256):
    return weights_sha256
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, with files a and b of two contents, c like a, and a user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_networks.py").write_text(MODULE)
    (tmp_path / "folder").mkdir()
    for name, content in (("a", "one"), ("b", "two"), ("folder/c", "one")):
        (tmp_path / name).write_text(content)
    sys.modules.pop("my_networks", None)


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def composed(*words: str) -> tuple[str, str, dict[str, Any]]:
    """Signature, key of the shapes, and config."""
    config = compose_run(words)
    key = shape_key(config["model"], config["data"]["input_size"])
    return signature(config), key, config


@pytest.mark.parametrize("words", OWN.values(), ids=OWN)
def test_weights_of_own_networks_are_signed_by_the_hash_that_their_user_gives(
    words: list[str],
) -> None:
    def named(path: str, content: str) -> list[str]:
        given = sha256(content)
        return [*words, f"model.net.weights={path}", f"model.net.weights_sha256={given}"]

    random, key, _ = composed(*words)
    first, *_ = composed(*named("a", "one"))
    assert first not in (random, composed(*named("b", "two"))[0])
    # The same content at another place, or at none that is here, such as for a report.
    assert composed(*named("folder/c", "one"))[:2] == (first, key)
    assert composed(*named("not/here", "one"))[:2] == (first, key)
    assert composed(*words, f"model.net.weights_sha256={sha256('one')}")[:2] == (first, key)


@pytest.mark.parametrize("words", OWN.values(), ids=OWN)
@pytest.mark.parametrize("wrong", ["null", sha256("two")])
def test_a_wrong_hash_and_the_right_one_are_said(words: list[str], wrong: str) -> None:
    words = [*words, "model.net.weights=a", f"model.net.weights_sha256={wrong}"]
    with pytest.raises(UserError) as refused:
        compose_run(words)
    assert f"model.net.weights_sha256={wrong}: the SHA-256 of 'a' is {sha256('one')}" in str(
        refused.value
    )


def test_weights_that_are_nowhere_are_not_taken_for_random_ones() -> None:
    with pytest.raises(UserError, match=r"model\.net\.weights: no file 'not/here'"):
        compose_run([*TIMM, "model.net.weights=not/here"])


@pytest.mark.parametrize("keyword", ["weights", "checkpoint", "options.path", "layers"])
def test_any_file_of_a_users_builder_is_signed_by_its_content(keyword: str) -> None:
    def named(path: str) -> tuple[str, str, dict[str, Any]]:
        value = f"[{path},4]" if keyword == "layers" else path
        return composed(*MINE, f"+model.net.{keyword}={value}")

    (first, key, config), (again, key_again, other) = named("a"), named("folder/c")
    assert (first, key) == (again, key_again)
    assert portable(config) == portable(other)
    assert "folder" not in str(portable(other))
    assert {first, key}.isdisjoint(named("b")[:2])
    assert {first, key}.isdisjoint(composed(*MINE)[:2])
    # A file whose content changes in its place.
    Path("a").write_text("six")
    assert {first, key}.isdisjoint(named("a")[:2])


def test_a_file_written_anew_within_a_tick_of_the_clock_is_read_anew() -> None:
    first = composed(*MINE, "+model.net.weights=a")[0]
    stat = os.stat("a")
    Path("a").write_text("two")
    os.utime("a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert composed(*MINE, "+model.net.weights=a")[0] != first


def test_a_users_builder_without_such_keywords_gets_none_of_them() -> None:
    """A model of this project whose function is exchanged, as its YAML has weights by now."""
    assert "weights" in compose_run(MINE)["model"]["net"]
    words = ["model.net._target_=my_networks.plain"]
    assert make(compose_run(words)["model"]["net"]) == "plain"


def test_what_names_no_file_is_signed_as_it_is() -> None:
    words = [[], ["+model.net.weights=x"], ["+model.net.weights=y"], ["+model.net.weights=[a,x]"]]
    words += [["+model.net.weights=[a,y]"], ["+model.net.weights=[b,y]"]]
    assert len({composed(*MINE, *more)[0] for more in words}) == len(words)


def test_files_do_not_stand_for_keywords_of_own_networks() -> None:
    first = composed("model=resnet8_cifar")[0]
    Path("plain").write_text("a file that is called like a word")
    assert composed("model=resnet8_cifar")[0] == first


def test_a_users_quantizer_and_rule_are_looked_at_too() -> None:
    place = "quantizer.callback.weight"
    words = ["quantizer=lsq", f"{place}._target_=my_networks.small"]
    first, other = (composed(*words, f"+{place}.table={path}")[0] for path in "ab")
    assert first != other
    assert first == composed(*words, f"+{place}.table=folder/c")[0]
    rule = ["quantizer=lsq", "search=eagl", "search.rule._target_=my_networks.small"]
    first, other = (composed(*rule, f"+search.rule.table={path}")[0] for path in "ab")
    assert first != other


def test_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.net.weights: './folder' is a folder"):
        compose_run([*MINE, "+model.net.weights=./folder"])
    assert compose_run([*MINE, "+model.net.shape=folder"])  # a word all the same


def test_a_builder_gets_its_files_and_only_the_hashes_that_it_asks_for() -> None:
    config = compose_run([*MINE, "+model.net.weights=a", "+model.net.more={path:b,n:3}"])
    made = make(config["model"]["net"])
    assert made == {"weights": "a", "more": {"path": "b", "n": 3}}
    words = ["model.net._target_=my_networks.strict", "+model.net.weights=a"]
    assert make(compose_run(words)["model"]["net"]) == sha256("one")


def test_a_file_that_has_changed_since_it_was_asked_for_is_refused() -> None:
    config = compose_run([*MINE, "+model.net.weights=a"])
    Path("a").write_text("two")
    with pytest.raises(UserError, match=r"weights_sha256=.*the SHA-256 of 'a' is"):
        make(config["model"]["net"])


def test_keys_may_be_numbers() -> None:
    words = ["quantizer=lsq", "recipe.weight_decay_by_bits={2:1e-5}"]
    recipe = compose_run(words)["recipe"]
    assert list(unnamed(recipe, "recipe")) == []
    net = {"_target_": "builtins.dict", "by_bits": recipe["weight_decay_by_bits"]}
    assert make(net) == {"by_bits": {2: 1e-5}}


def test_a_record_describes_a_network_without_its_files() -> None:
    kept = portable(compose_run([*MINE, "+model.net.weights=a", "+model.net.more={n:3}"]))
    net = {
        "_target_": kept["model.net._target_"],
        "weights_sha256": kept["model.net.weights_sha256"],
        **dict.fromkeys(("classes", "in_channels", "width", "shortcuts"), 1),
    }
    assert make(net) == {"weights": None}
    assert list(unnamed({"net": net}, "model")) == [("model.net.weights", sha256("one"))]


def test_the_command_of_a_cell_says_the_content_and_not_the_place() -> None:
    words = (*MINE, "+model.net.weights=folder/c")
    cell = Cell(None, "run", 0, compose_run(words), words)
    assert f"+model.net.weights_sha256={sha256('one')}" in cell.command
    assert "folder" not in cell.command
    again = cell.command.split()[2:]
    assert signature(compose_run(again)) == cell.signature


def test_places_are_made_absolute(tmp_path: Path) -> None:
    words = ["+model.net.weights=folder/c", "+model.net.more={path:[a,x]}"]
    net = absolute(compose_run([*MINE, *words]))["model"]["net"]
    assert net["weights"] == str(tmp_path / "folder/c")
    assert net["more"]["path"] == [str(tmp_path / "a"), "x"]
    assert net["shortcuts"] == "plain"
