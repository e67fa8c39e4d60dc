"""Hand-made tables and records: numbers chosen in the test, nothing trained."""

from pathlib import Path
from typing import Any

from quantable.config.signature import portable
from quantable.report.reporter import Reporter
from quantable.store.record import DataFacts, Epoch, Phase, Provenance, Record
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import Table

# Layers of ResNet-8 with a convolution in every shortcut, in execution order.
LAYERS = [
    "conv1",
    *("layer1.0.conv1", "layer1.0.conv2", "layer1.0.shortcut.conv"),
    *("layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.conv"),
    *("layer3.0.conv1", "layer3.0.conv2", "layer3.0.shortcut.conv"),
    "fc",
]

Epochs = list[tuple[float, float]]  # held-out and test top-1 of each epoch, in percent


def record_of(
    cell: Cell, *phases: tuple[int, Epochs], variant: str = "", title: str = "Fashion-MNIST mini"
) -> Record:
    """Return a finished run of ``cell``; each phase: the width of every layer, and its epochs."""
    history: list[Epoch] = []
    kept = []
    for index, (width, epochs) in enumerate(phases):
        bits = dict.fromkeys(LAYERS, (width, width))
        first = len(history)
        kept.append(Phase(index=index, first_epoch=first, epochs=len(epochs), bits=bits))
        history += [
            epoch_of(first + i, index, val=val, test=test) for i, (val, test) in enumerate(epochs)
        ]
    return Record(
        signature=cell.signature,
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        budget=cell.config["budget"]["name"],
        config=portable(cell.config),
        data=DataFacts(title=title, variant=variant, sizes={"test": 2000}, sha256="0" * 64),
        metrics={"last": {"test_top1_pct": history[-1].test_top1_pct}, "best": {}},
        phases=kept,
        costs={"macs_m": 9.5},
        history=history,
        provenance=Provenance(
            commit="0" * 40,
            clean=True,
            command="made by hand",
            versions={},
            device="none",
            threads=1,
            wall_seconds=1.0,
            resumed=0,
            finished="2026-01-01T00:00:00+00:00",
        ),
    )


def epoch_of(epoch: int, phase: int, *, val: float, test: float) -> Epoch:
    return Epoch(
        epoch=epoch,
        phase=phase,
        learning_rate=0.1,
        train_loss=0.5,
        train_top1_pct=90.0,
        val_top1_pct=val,
        val_loss=0.6,
        test_top1_pct=test,
        test_loss=0.6,
        seconds=1.0,
    )


def hand_table(**changes: Any) -> Table:
    """Return a table of the paper's form over ResNet-8: float, 16 bit, AD, and three claims."""
    ad = {"label": "AD", "overrides": ["quantizer=ad", "bits.inner=[16,16]"], "phase": 0}
    known = {"value": 92.0, "source": "Table 9", "confidence": "published"}
    content = {
        "id": "hand",
        "paper": "none",
        "title": "made by hand",
        "source": "this test",
        "budget": "paper",
        "seeds": [0, 1, 2],
        "base": ["model=resnet8_cifar", "model.net.shortcuts=all", "recipe.epochs=5"],
        "columns": {"top1_pct": {"abs": 0.5}, "training_complexity": None, "pim_ratio": None},
        "figures": {
            "frontier": {"kind": "frontier", "x": ["pim_energy_uj", "energy_uj"]},
            "bits": {"kind": "phases"},
            "numbers": {"kind": "numbers"},
            "loss": {"kind": "epochs", "of": ["train_loss", "val_loss"]},
        },
        "rows": {
            "float": {
                "label": "float",
                "overrides": ["quantizer=none"],
                "published": {"top1_pct": known},
            },
            "bits16": {"label": "16 bit", "cell": "float", "cost_bits": 16},
            "ad": ad,
            "ad_1": {"label": "AD 1", "cell": "ad", "phase": 1},
            "ad_2": {"label": "AD 2", "cell": "ad", "phase": 2},
            "ad_final": {
                "label": "AD final",
                "cell": "ad",
                "phase": "final",
                "reference": "bits16",
            },
        },
        "final_within_pp": {"full": 1.0, "cpu": 3.0},
        "claims": {
            "drop": claim(kind="drop", reference="bits16", holds={"full": {"max": 1.0}}),
            "largest": claim(
                kind="largest",
                column="pim_ratio",
                rows=["ad_1", "ad_2"],
                holds={"full": {"min": 4.0, "rising": True}},
            ),
            "value": claim(
                column="training_complexity", holds={"full": {"max": 0.9}, "cpu": {"max": 0.9}}
            ),
        },
    }
    return Table.model_validate(content | changes)


def claim(**changes: Any) -> dict[str, Any]:
    """Return a claim's part of a table file; unless said otherwise, on the final row's accuracy."""
    content = {"text": "says so", "source": "abstract", "value": None, "unit": "1"}
    return content | {"kind": "value", "column": "top1_pct", "rows": ["ad_final"]} | changes


def reporter(folder: Path, table: Table | None = None, **asked: Any) -> Reporter:
    """Return a reporter over one store."""
    return Reporter(table or hand_table(), Asked(**{"budget": "paper"} | asked), [Store(folder)])


def keep(about: Reporter, row: str, seed: int, *phases: tuple[int, Epochs], **kw: Any) -> Record:
    """Put a hand-made record of the run behind ``row`` into the reporter's store."""
    record = record_of(about.cell(row, about.budget, seed), *phases, **kw)
    about.stores[0].add(record)
    return record
