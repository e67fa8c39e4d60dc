"""Write the packaged input sizes of timm's weights, and print how many there are.

Run `python tools/make_input_sizes.py` after a change of timm; a test compares the file with it.
"""

import json

import timm
from timm.data.config import resolve_data_config

from quantable.networks.input_sizes import FILE


def main() -> None:
    """Write the file: of each pair of sizes, trained and tested, the weights that have it."""
    groups: dict[str, list[str]] = {}
    for tag in timm.list_pretrained():
        known = timm.get_pretrained_cfg(tag).to_dict()
        pair = (
            resolve_data_config(pretrained_cfg=known, use_test_size=tested)["input_size"]
            for tested in (False, True)
        )
        groups.setdefault(" ".join("x".join(map(str, size)) for size in pair), []).append(tag)
    content = {"timm": timm.__version__, "sizes": dict(sorted(groups.items()))}
    FILE.write_text(json.dumps(content, indent=0) + "\n")
    print(f"{sum(map(len, groups.values()))} weights  {FILE.name}")


if __name__ == "__main__":
    main()
