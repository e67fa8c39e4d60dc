"""Write conf/program and conf/bits/{hawqv3,limpq} from transcriptions of the authors' repositories.

Run `python tools/make_programs.py <folder>`: the folder has `hawqv3/<network>.json` and
`limpq/resnet50_w3a4.json`, which are not part of the project; a test marked `data` compares.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[1] / "conf"
KINDS = {"modelsize": "size", "bops": "bops", "latency": "latency"}  # authors' word: ours
HAWQ_CONVENTIONS = {
    "bits": "a layer's weights and its input activation have the same bit-width, 4 or 8",
    "trace": "Hutchinson trace of the layer's Hessian, divided by the number of its weights",
    "perturbation": "squared L2 norm of quantized minus float weights, summed over the layer",
    "objective": "least Omega, the sum of trace times perturbation at the layer's bits",
    "gain": "Omega with every layer at 4 bit, minus Omega; the notebook's objective",
    "size": "sum of weights x bits / 8, in byte",
    "bops": "sum of macs x bits^2",
    "latency": "sum of latency_ms at the layer's bits, measured on a T4 GPU",
    "limits": "by share: cost of all layers at 4 bit + share x (cost at 8 bit - cost at 4 bit)",
    "ties": "layers that read the same quantized tensor",
    "ends": "8 bit each, outside objective and limits",
}
LIMPQ_CONVENTIONS = {
    "importance": "learned LSQ step size of the operand at that bit-width; larger: more sensitive",
    "objective": "least sum of act_importance + alpha x weight_importance at the layer's bits",
    "outlier_rule": "a width whose importance is below that of the next higher one is forbidden",
    "size": "sum of weights x bits, ends at 8 bit included; at most 32-bit size / compression",
    "bops": "sum of macs x weight bits x activation bits; at most that with every layer at level",
    "macs_authors": "the published counter's: it multiplies the output sides before rounding them, "
    "so layers behind a stride have 812, 210 or 56 positions instead of 784, 196 or 49",
    "limits": "size in bit; bit operations by macs_authors (authors) and by macs (exact)",
    "ends": "weights 8 bit, outside objective and bit operations",
}


def contents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file's place below conf, and what it holds."""
    for network in ("resnet18", "resnet50"):
        paper = json.loads((folder / "hawqv3" / f"{network}.json").read_text())
        yield f"program/hawqv3_{network}.json", hawq_program(network, paper)
        for policy in paper["limits"]:
            yield f"bits/hawqv3/{network}_{policy}.json", hawq_bits(network, policy, paper)
    paper = json.loads((folder / "limpq" / "resnet50_w3a4.json").read_text())
    yield "program/limpq_resnet50.json", limpq_program(paper)
    yield "bits/limpq/resnet50_w3a4.json", limpq_bits(paper)


def source(paper: Mapping[str, Any], *files: str) -> str:
    """Repository, commit, files and licence in one line."""
    about = paper["source"]
    return f"{about['repository']} @ {about['commit']}: {', '.join(files)} ({about['licence']})"


def hawq_program(network: str, paper: Mapping[str, Any]) -> dict[str, Any]:
    """HAWQ-V3's program: sensitivities, costs, ties and the notebook's own limits."""
    names = [layer["torchvision_name"] for layer in paper["layers"]]
    first, last = paper["network"]["fixed_layers"]
    limits: dict[str, dict[str, float]] = {}
    for policy, limit in paper["limits"].items():
        kind, _, share = policy.partition("_")
        limits.setdefault(KINDS[kind], {})[share] = limit["value"]
    return {
        "method": "hawqv3",
        "network": network,
        "authors_network": paper["network"]["authors_model"],
        "source": source(paper, "ILP.ipynb"),
        "conventions": HAWQ_CONVENTIONS,
        "ties": [[names[index] for index in tie] for tie in paper["ties"]],
        "limits": limits,
        "ends": {
            layer["torchvision_name"]: {"weights": layer["parameters"], "macs": layer["macs"]}
            for layer in (first, last)
        },
        "layers": {
            layer["torchvision_name"]: {
                "weights": layer["parameters"],
                "macs": layer["macs"],
                "trace": layer["hessian_trace_avg"],
                "perturbation": layer["perturbation_sq"],
                "latency_ms": layer["latency_ms"],
            }
            for layer in paper["layers"]
        },
    }


def hawq_bits(network: str, policy: str, paper: Mapping[str, Any]) -> dict[str, Any]:
    """One published policy; the first and the last layer have 8 bit."""
    first, last = paper["network"]["fixed_layers"]
    names = [layer["torchvision_name"] for layer in paper["layers"]]
    bits = paper["policies"][policy]
    pairs = zip(bits["weight_bits"], bits["activation_bits"], strict=True)
    return {
        "schema_version": 1,
        "network": network,
        "source": source(paper, f"bit_config.py, bit_config_{network}_{policy}"),
        "layers": {
            first["torchvision_name"]: [first["weight_bits"], first["activation_bits"]],
            **dict(zip(names, map(list, pairs), strict=True)),
            last["torchvision_name"]: [last["weight_bits"], last["activation_bits"]],
        },
    }


def limpq_program(paper: Mapping[str, Any]) -> dict[str, Any]:
    """LIMPQ's program: importances, and MACs by both ways of counting."""
    budgets, files = paper["budgets"], paper["source"]["files"]
    # The transcription adds up the two ends; they are those of HAWQ-V3's ResNet-50.
    stem, head = {"weights": 9408, "macs": 118013952}, {"weights": 2048000, "macs": 2048000}
    assert stem["weights"] + head["weights"] == budgets["size"]["first_and_last_weights"]
    return {
        "method": "limpq",
        "network": "resnet50",
        "authors_network": "torchvision resnet50 (v1.5: stride 2 sits in the 3x3 convolution)",
        "source": source(paper, files["indicators"], "quantization_search/search.py"),
        "conventions": LIMPQ_CONVENTIONS,
        "alpha": paper["alpha"],
        "level": [budgets["bops"]["weight_bits"], budgets["bops"]["activation_bits"]],
        "compression": budgets["size"]["compression_ratio"],
        "limits": {
            "size": budgets["size"]["limit_bits"],
            "authors": budgets["bops"]["limit_quirk"],
            "exact": budgets["bops"]["limit"],
        },
        "ends": {"conv1": stem, "fc": head},
        "layers": {
            layer["name"]: {
                "weights": layer["parameters"],
                "macs": layer["macs"],
                "macs_authors": layer["macs_quirk"],
                "weight_importance": layer["weight_importance"],
                "act_importance": layer["activation_importance"],
            }
            for layer in paper["layers"]
        },
    }


def limpq_bits(paper: Mapping[str, Any]) -> dict[str, Any]:
    """The published policy; the image enters conv1 unquantized."""
    policy = paper["published_policy"]
    pairs = zip(policy["weight_bits"], policy["activation_bits"], strict=True)
    names = [layer["name"] for layer in paper["layers"]]
    return {
        "schema_version": 1,
        "network": "resnet50",
        "source": source(paper, "README.md", paper["source"]["files"]["first and last layer"]),
        "layers": {
            "conv1": [8, 32],
            **dict(zip(names, map(list, pairs), strict=True)),
            "fc": [8, 8],
        },
    }


def text(content: Mapping[str, Any]) -> str:
    """JSON with a line for each key and each layer."""
    lines = []
    for key, value in content.items():
        inner = json.dumps(value)
        if isinstance(value, dict):
            entries = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            inner = "{\n" + ",\n".join(entries) + "\n }"
        lines.append(f" {json.dumps(key)}: {inner}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(folder: Path) -> None:
    """Write every file and print its place."""
    for place, content in contents(folder):
        path = CONF / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(content))
        print(path.relative_to(CONF.parent))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
