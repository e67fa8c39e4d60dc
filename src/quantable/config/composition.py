"""Command-line words to one complete, checked run config, and the signature that names it.

Hydra composes; pydantic checks types and ranges; nothing below ``quantable.run`` sees a config.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from quantable.base.bits import MAX_BITS, Bits
from quantable.base.errors import UserError, unknown
from quantable.base.places import CONF, ROOT
from quantable.config.files import with_hashes
from quantable.config.schema import RunConfig
from quantable.config.signature import belongs, flat
from quantable.networks.input_sizes import check_input_size, kept_sizes
from quantable.networks.shapes import PACKAGED, read_shapes, shape_key
from quantable.store.bits_file import check_layers, check_network, read_bits

SLURM_TEXT = tuple(f"executor.{key}" for key in ("partition", "account", "qos", "constraint"))
PAIRS = re.compile(r"""(?:[^,["']|\[[^]]*\]|'[^']*'|"[^"]*")+""")
REFERENCE = re.compile(r"\$\{(?P<dots>\.*)(?P<key>[a-z_][\w.]*)(\[(?P<place>\d+)\])?\}")


def compose_run(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/run.yaml`` with ``overrides`` (later ones win) into a plain, checked dict."""
    _refuse_derived(overrides)
    # Under ``-m`` Hydra is there already, with the same conf; otherwise only for this composition.
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(CONF), version_base="1.3"):
        return _checked(overrides)


def _checked(overrides: Sequence[str]) -> dict[str, Any]:
    config = _compose(overrides)
    assert isinstance(config, dict)
    plain: dict[str, Any] = {str(key): value for key, value in config.items()}
    try:
        RunConfig.model_validate(plain)
    except ValidationError as error:
        raise _worded(overrides, error) from error
    plain = with_hashes(plain)
    for place in ("inner", "ends"):
        for width in plain["bits"][place] or ():
            Bits(width, width)
    for widths in plain["bits"]["layers"].values():
        Bits(*widths)
    tag = plain["data"].get("tag")
    if tag in kept_sizes():  # else the run asks timm
        check_input_size(plain["data"]["input_size"], tag, kept_sizes()[tag])
    if plain["bits"]["file"] is not None:
        key = shape_key(plain["model"], plain["data"]["input_size"])
        shapes = read_shapes(key, [PACKAGED, ROOT / plain["store"] / "shapes"])
        if shapes is not None:  # else the run checks, which traces the network
            check_layers(plain["bits"]["layers"], [s.name for s in shapes], plain["bits"]["file"])
    return plain


def _compose(overrides: Sequence[str]) -> object:
    words = [_hydra_word(word) for word in overrides]
    try:
        config = _quick(words) or _plain(compose("run", overrides=words))
        if config["bits"]["file"] is not None:
            _read_bits(config)
        try:
            return _resolved(config)
        except LookupError:
            made = OmegaConf.create(config)
            return OmegaConf.to_container(made, resolve=True, throw_on_missing=True)
    except HydraException as error:
        raise _explain(overrides, error) from error
    except OmegaConfBaseException as error:
        place = f"conf: {error.full_key}" if error.full_key else "conf"
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from error


def _quick(words: Sequence[str]) -> dict[str, Any] | None:
    """What Hydra composes of ``words``, in a tenth of the time: options of groups are kept.

    None where words are no plain ``key=value``, or do not fit: Hydra composes or refuses them.
    """
    groups = _groups()
    choices = [word for word in words if word.partition("=")[0] in groups]
    # Budgets change a few values of the others, and a report looks a table up at several.
    budget = next(
        (word for word in reversed(choices) if word.startswith("budget=")), "budget=paper"
    )
    file = CONF / "budget" / f"{budget.partition('=')[2]}.yaml"
    if not file.is_file():
        return None
    others = [word for word in choices if not word.startswith("budget=")]
    values = [_parsed(word) for word in words if word not in choices]
    plain = (OverrideType.CHANGE, OverrideType.FORCE_ADD)
    if any(value.is_sweep_override() or value.type not in plain for value in values):
        return None
    config = deepcopy(_budgeted(tuple(others), file))
    try:
        for value in values:
            new = value.type == OverrideType.FORCE_ADD
            _put(config, value.key_or_group.split("."), value.value(), new)
    except (LookupError, TypeError):
        return None
    return config


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    return plain


@cache
def _budgeted(choices: tuple[str, ...], budget: Path) -> dict[str, Any]:
    config = _defaults() | {}
    for choice in choices:
        config |= _option(choice)
    config = deepcopy(config)
    _merge(config, _read(budget))
    return config


@cache
def _defaults() -> dict[str, Any]:
    """What ``run.yaml`` and the options that it names are together."""
    own = dict(_read(CONF / "run.yaml"))
    config: dict[str, Any] = {}
    for entry in own.pop("defaults"):
        choice = "" if entry == "_self_" else "=".join(*entry.items())
        _merge(config, _option(choice) if choice else own)
    return config


@cache
def _option(choice: str) -> dict[str, Any]:
    """An option below the name of its group, or at the top where its file says so."""
    group, _, option = choice.partition("=")
    path = CONF / group / f"{option}.yaml"
    try:
        found = _with_defaults(path)
    except LookupError:
        return _plain(compose(f"{group}/{option}"))
    return found if path.read_text().startswith("# @package _global_") else {group: found}


def _with_defaults(path: Path) -> dict[str, Any]:
    """An option with the others of its group that it names as its defaults.

    LookupError for what is more than that: Hydra composes or refuses it.
    """
    if not path.is_file() or ".." in path.parts:
        raise LookupError(path)
    own = dict(_read(path))
    found: dict[str, Any] = {}
    for name in own.pop("defaults", ["_self_"]):
        if not isinstance(name, str) or "@" in name.removesuffix("@_here_"):
            raise LookupError(name)
        other = path.parent / f"{name.removesuffix('@_here_')}.yaml"
        _merge(found, own if name == "_self_" else _with_defaults(other))
    return found


@cache
def _read(path: Path) -> dict[str, Any]:
    return _plain(OmegaConf.load(path))  # type: ignore[arg-type]


@cache  # a report composes thousands of rows of the same few words
def _parsed(word: str) -> Override:
    (value,) = OverridesParser.create().parse_overrides([word])
    return value


def default_choices() -> dict[str, str]:
    """Option of each group of ``conf`` that a run has which names none."""
    entries = [entry for entry in _read(CONF / "run.yaml")["defaults"] if entry != "_self_"]
    return {group: choice for entry in entries for group, choice in entry.items()}


def written(word: str) -> str:
    """Value of a word as Hydra writes it: without spaces, quotes, and zeros that say nothing.

    >>> written("bits.inner=[4, 4]"), written("recipe.optimizer.lr=0.10"), written("start=0123")
    ('[4,4]', '0.1', '0123')
    """
    try:
        return _parsed(_hydra_word(word)).get_value_element_as_str().strip("'")
    except HydraException:  # such as of a place on a machine, which no grammar has to fit
        return word.partition("=")[2]


def _put(node: dict[str, Any], keys: Sequence[str], value: object, new: bool) -> None:
    """Set a value below ``node``; a dict is merged. KeyError for a key that is not there.

    >>> node = {"a": {"b": 1}}
    >>> _put(node, ["a", "b"], 2, False), _put(node, ["c"], {"d": [3]}, True), node
    (None, None, {'a': {'b': 2}, 'c': {'d': [3]}})
    """
    key, *below = keys
    if key not in node and not new:
        raise KeyError(key)
    if below:
        _put(node.setdefault(key, {}), below, value, new)
    elif isinstance(value, dict) and isinstance(node.get(key), dict):
        _merge(node[key], value, new)
    else:
        node[key] = deepcopy(value)


def _merge(node: dict[str, Any], more: Mapping[str, Any], new: bool = True) -> None:
    for name, part in more.items():
        _put(node, [name], part, new)


def _resolved(root: Any, path: tuple[str | int, ...] = ()) -> Any:  # noqa: ANN401
    """Value at ``path`` with its references ``${key}``, ``${key[i]}`` and ``${..key}`` followed.

    LookupError for other interpolations and for gaps.

    >>> _resolved({"a": {"b": "${..c[1]}", "d": "${.b}"}, "c": [3, "${a}"]}, ("c", 0))
    3
    >>> _resolved({"a": {"b": "${..c[1]}", "d": "${.b}"}, "c": [3, 4]})
    {'a': {'b': 4, 'd': 4}, 'c': [3, 4]}
    """
    node = root
    for key in path:
        node = node[key]
    if isinstance(node, dict):
        return {key: _resolved(root, (*path, key)) for key in node}
    if isinstance(node, list):
        return [_resolved(root, (*path, i)) for i in range(len(node))]
    if node == "???":
        raise LookupError(node)
    if not isinstance(node, str) or "${" not in node:
        return node
    if not (found := REFERENCE.fullmatch(node)):
        raise LookupError(node)
    place = () if found["place"] is None else (int(found["place"]),)
    start = path[: -len(found["dots"])] if found["dots"] else ()
    return _resolved(root, (*start, *found["key"].split("."), *place))


def _read_bits(config: dict[str, Any]) -> None:
    """Put the content of the bits file where the method reads bit-widths."""
    bits = config["bits"]
    if bits["layers"]:
        raise UserError("command line: bits.file gives every layer's bits; leave bits.layers out")
    path = ROOT / Path(bits["file"]).expanduser()
    file = read_bits(path)
    check_network(file, path, _resolved(config, ("model",)))
    bits["layers"] = {name: list(pair) for name, pair in file.layers.items()}
    if file.accumulator is not None:
        if bits["accumulator"] not in (None, file.accumulator):
            raise UserError(
                f"bits.accumulator={bits['accumulator']}: {path} is made for sums of "
                f"{file.accumulator} bits; leave the word out"
            )
        bits["accumulator"] = file.accumulator


def _refuse_derived(overrides: Sequence[str]) -> None:
    """Refuse keys that only repeat signed ones: setting them would change numbers unsigned."""
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if belongs(key, ("data.loader",)) and key != "data.loader.workers":
            raise UserError(
                f"command line: '{key}' only repeats keys of data; set those, such as "
                "data.augment.flip or data.val_images"
            )


def _hydra_word(word: str) -> str:
    """Let ``bits.layers={...}`` and ``executor.more={...}`` name what no config can list.

    Signatures are words, whatever digits they consist of.

    >>> _hydra_word("start=123456789012")
    "start='123456789012'"
    """
    key, _, value = word.partition("=")
    if key in ("start", "teacher") and value not in ("", "null"):
        return f"{key}='{value}'"
    if key in SLURM_TEXT or belongs(key, ("executor.more",)):
        word = f"{key}={_slurm_text(value)}"
    return f"++{word}" if belongs(key, ("bits.layers", "executor.more")) else word


def _slurm_text(value: str) -> str:
    """Quote what SLURM reads as text and Hydra's grammar would not: node lists, several partitions.

    >>> _slurm_text("3090"), _slurm_text("short,long"), _slurm_text("[short,long]")
    ("'3090'", "'short,long'", '[short,long]')
    >>> _slurm_text("{exclude:node[01-04],reservation: 42, hold:true}")
    "{exclude:'node[01-04]',reservation:'42',hold:true}"
    """
    if value.startswith("{") and value.endswith("}"):
        pairs = (pair.partition(":") for pair in PAIRS.findall(value[1:-1]))
        return "{" + ",".join(f"{k.strip()}:{_slurm_text(v.strip())}" for k, _, v in pairs) + "}"
    if value in ("null", "true", "false", "") or value[0] in "'\"[":
        return value
    return "'" + value.replace("'", "\\'") + "'"


def _worded(overrides: Sequence[str], error: ValidationError) -> UserError:
    """Turn pydantic's findings into one line per key: where, what came, what is allowed."""
    lines = []
    for fault in error.errors():
        tagged = fault["loc"][0] == "executor"  # by its name, which is no key
        loc = [part for i, part in enumerate(fault["loc"]) if not (tagged and i == 1)]
        place = ".".join(map(str, loc))
        if fault["loc"][0] == "bits" and fault["type"] in ("less_than_equal", "greater_than_equal"):
            lines.append(
                f"{place}={fault['input']}: a quantization grid has 1 to {MAX_BITS} bits; "
                "use `quantizer=none` for full precision"
            )
        elif fault["type"] == "extra_forbidden":
            lines.append(str(unknown("key", place, _known_keys(overrides), "command line")))
        else:
            lines.append(f"conf: {place}={fault['input']!r}: {fault['msg']}")
    return UserError("\n".join(lines))


def _groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def _explain(overrides: Sequence[str], error: HydraException) -> UserError:
    """Find the override that Hydra refused and word it with the nearest right name."""
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if not equals:
            return UserError(f"command line: '{override}' is not of the form key=value")
        if key in _groups():
            options = [path.stem for path in (CONF / key).glob("*.yaml")]
            if value not in options:
                return unknown(key, value, options, "command line")
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        known = set(_known_keys(overrides)) | set(_groups())
        if key not in known:
            return unknown("key", key, known, "command line")
    return UserError(f"command line: {str(error).splitlines()[0]}")


def _known_keys(overrides: Sequence[str]) -> Iterator[str]:
    """Yield every dotted key of the config that the group choices alone compose."""
    choices = [word for word in overrides if word.partition("=")[0] in _groups()]
    for key, _ in flat(OmegaConf.to_container(compose("run", overrides=choices))):
        parts = key.split(".")
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
