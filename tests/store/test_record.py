"""Records from before a change of form are read into the new one."""

import json

from quantable.base.places import ROOT
from quantable.networks.layers import LayerShape
from quantable.store.record import Epoch, Phase, read_record

LINE = {"epoch": 0, "phase": 0, "test_top1_pct": 50.0, "test_loss": 1.0, "seconds": 2.0}
EVIDENCE = sorted((ROOT / "reproduce/evidence/records").glob("*.json"))


def test_numbers_of_two_methods_are_read_as_their_own() -> None:
    old = LINE | {"density": {"conv": 0.5}, "miscounted": 0, "weight_kb": 1.5, "act_kb": None}
    epoch = Epoch.model_validate(old)
    assert epoch.own == {"density": {"conv": 0.5}, "miscounted": 0, "weight_kb": 1.5}
    assert (epoch.number("miscounted"), epoch.number("density")) == (0, None)
    assert (epoch.by_layer("density"), epoch.by_layer("miscounted")) == ({"conv": 0.5}, None)
    assert Epoch.model_validate(epoch.model_dump()) == epoch


def test_no_number_of_the_evidence_is_lost() -> None:
    assert len(EVIDENCE) >= 187
    for path in EVIDENCE:
        lines = json.loads(path.read_text())["history"]
        for line, epoch in zip(lines, read_record(path).history, strict=True):
            read = epoch.model_dump(mode="json", exclude_none=True)
            read |= read.pop("own")
            line |= line.pop("own", {})
            assert read == {name: value for name, value in line.items() if value is not None}


def test_shapes_of_a_phase_are_read_with_and_without_facts_about_channels() -> None:
    known = LayerShape("a", 3456, 216, 243, "conv", 8, 3, 8, 1, (3, 3), (2, 2), (4, 4))
    phase = Phase(index=0, first_epoch=0, epochs=1, bits={}, shapes=[known])
    assert Phase.model_validate_json(phase.model_dump_json()).shapes == [known]
    text = (
        '{"index": 0, "first_epoch": 0, "epochs": 1, "bits": {}, "shapes": '
        '[{"name": "a", "macs": 3456, "weights": 216, "inputs": 243, "kind": "conv", "bias": 8}]}'
    )
    assert Phase.model_validate_json(text).shapes == [LayerShape("a", 3456, 216, 243, "conv", 8)]
