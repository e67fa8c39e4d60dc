"""Download an image set, or check a local copy: counts, variant, fingerprint. Loads no torch."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantable.base.errors import UserError, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"
HELP = """
Download an image set, or check a copy that is there; runs themselves never download.

  python reproduce/prepare.py data=cifar10
  python reproduce/prepare.py data=cifar10 data.root=<folder of your copy>

Words:
  data=<id>            the set (below)
  data.root=<folder>   where it is or goes; a relative path counts from the project root
  data.<key>=<value>   any other key of conf/data/<id>.yaml
"""


def set_ids() -> list[str]:
    """The sets that conf/data describes."""
    return sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def set_id(words: Sequence[str]) -> str:
    """The set asked for."""
    asked = [word.removeprefix("data=") for word in words if word.startswith("data=")]
    if len(asked) != 1:
        raise UserError(f"name one set with data=<id>: {', '.join(set_ids())}")
    if asked[0] not in set_ids():
        raise unknown("set", asked[0], set_ids(), "data")
    return asked[0]


def settings(words: Sequence[str]) -> Any:  # noqa: ANN401 - an OmegaConf node
    """conf/data/<id>.yaml with the user's overrides; an unknown key is an error."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = set_id(words)
    overrides = [word for word in words if word != f"data={name}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(f"data/{name}"))
        known = list(keys(plain))
        for word in overrides:
            key, equals, _ = word.partition("=")
            if not equals or key not in known:
                raise unknown("key", key, known, "command line")
        try:
            return compose(f"data/{name}", overrides=overrides).data
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"command line: {str(error).splitlines()[0]}") from error


def keys(node: Any, prefix: str = "") -> Iterator[str]:  # noqa: ANN401 - any YAML value
    """Dotted names of every value in nested dicts."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        yield prefix + str(key)
        yield from keys(value, f"{prefix}{key}.")


def obtain(conf: Any) -> None:  # noqa: ANN401 - an OmegaConf node
    """Download what the set consists of."""
    from quantable.data.download import SourceFile, download, unpack
    from quantable.data.layouts import missing, resolve_root

    if conf.source is None:
        raise UserError(f"{missing(conf.id, conf.root)}\n{conf.title} has no public download.")
    for entry in conf.source.files:
        source = SourceFile(**entry)
        print(f"downloading {source.name} to {resolve_root(conf.root)}", flush=True)
        path = download(source, resolve_root(conf.root))
        if source.sha256 is None:
            print(f"{source.name}: no SHA-256 is known; only counts and images are checked")
        if source.unpack:
            unpack(path)


def check(conf: Any) -> None:  # noqa: ANN401 - an OmegaConf node
    """Read every image that a run would use, and print what was found."""
    from hydra.utils import instantiate

    from quantable.data.sets import ImageSet

    source: ImageSet = instantiate(conf.loader.source, _convert_="all")
    print(f"{source.full_title}: {source.layout().folder} ({type(source.layout()).__name__})")
    if conf.id == "imagenet":  # too large to be decoded for a check; its reader needs torch
        streamed = instantiate(conf.loader, tag="")
        sizes, sha256, of = streamed.sizes, streamed.sha256, "names, sizes and labels"
    else:
        arrays = source.read()
        sizes = {split: len(labels) for split, labels in arrays.labels.items()}
        sha256, of = arrays.sha256, "decoded images and labels"
    for split, size in sizes.items():
        print(f"  {split}: {size} images")
    print(f"  sha256 of the {of}: {sha256}")


def main(words: Sequence[str]) -> None:
    """Obtain the set where it is missing, then check it."""
    from quantable.data.layouts import set_present

    conf = settings(words)
    if not set_present(conf.root):
        obtain(conf)
    check(conf)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{HELP.strip()}\n\nSets: {', '.join(set_ids())}")
        sys.exit(0)
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
