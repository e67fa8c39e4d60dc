"""Write conf/points/edge_<network>.json from transcriptions of the edge paper's published points.

Run `python tools/make_edge_points.py <folder>`: the folder has one CSV for each series, which is
not part of the project; a test marked `data` compares.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[1] / "conf"
NETWORKS = ("lite0", "mobilenetv2", "squeezenext", "resnet18")
COLUMNS = {  # ours: the CSV's
    "top1_pct": "top1_pct",
    "act_kb": "act_sum_kb",
    "act_max_kb": "act_max_kb",
    "weight_kb": "weight_kb",
    "bn_kb": "bn_half_kb",
    "total_mb": "total_mb",
}
MORE = ("eval_loss", "on_hull")
VARIANTS = {  # the paper's four, and how a report calls them
    "mixed": "mixed",
    "granular": "granular",
    "surrogate": "surrogate",
    "granular_surrogate": "full method",
}
OTHERS = {  # further series of a network
    "lite0": {
        "mixed_fulleval": "mixed, all images",
        "granular_surrogate_older": "full method, older file",
    },
    "mobilenetv2": {
        "surrogate_subset6144": "surrogate, 6,144 images",
        "granular_surrogate_subset6144": "full method, 6,144 images",
    },
}
SUBSET = "measured on 6,144 of the 50,000 validation images: its standard error is about 0.6 points"
COPY = (
    "15 of the series' 16 points are those of the full method, and the 16th differs in accuracy "
    "alone: copied by mistake"
)
DOUBTS = {
    ("lite0", "mixed"): {"top1_pct": SUBSET},
    ("mobilenetv2", "surrogate_subset6144"): {"top1_pct": SUBSET},
    ("mobilenetv2", "granular_surrogate_subset6144"): {"top1_pct": SUBSET},
    ("mobilenetv2", "surrogate"): dict.fromkeys(
        ("top1_pct", "act_kb", "act_max_kb", "weight_kb"), COPY
    ),
}
LABELS = {
    ("lite0", "mixed"): "mixed, 6,144 images",
    ("mobilenetv2", "surrogate"): "surrogate, copy",
}
SOURCE = "github.com/Intelligent-Microsystems-Lab/HeterogeneousQuantization"


def contents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file's place below conf, and what it holds."""
    for network in NETWORKS:
        series = VARIANTS | OTHERS.get(network, {})
        yield (
            f"points/edge_{network}.json",
            {
                "source": SOURCE,
                "columns": list(COLUMNS),
                "more": list(MORE),
                "series": {
                    name: _series(folder / f"{network}_{name}.csv", network, name, label)
                    for name, label in series.items()
                },
            },
        )


def _series(path: Path, network: str, name: str, label: str) -> dict[str, Any]:
    with path.open(newline="") as file:
        points = list(csv.DictReader(file))
    (source,) = {point["source"] for point in points}
    kept = ["target_bits", *COLUMNS.values(), *MORE]
    doubts = DOUBTS.get((network, name), {})
    return {
        "label": LABELS.get((network, name), label),
        "source": source,
        **({"doubts": doubts} if doubts else {}),
        "points": [[json.loads(point[key] or "null") for key in kept] for point in points],
    }


def main(folder: Path) -> None:
    """Write all files, one point a line."""
    for place, content in contents(folder):
        path = CONF / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content).replace("[[", "[\n[").replace("], [", "],\n["))
        print(path.relative_to(CONF.parent))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
