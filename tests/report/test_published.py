"""A user's own published numbers: what they fill, and what is wrong in the file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_records import hand_table, keep, reporter

from quantable.base.errors import UserError
from quantable.report.published import fill
from quantable.report.reporter import Reporter
from quantable.report.schema import Entry
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import Table, load_table

PIM = load_table("ad_pim")
CIFAR = load_table("ad_cifar10")
GIVEN: dict[str, Any] = {
    "table": "ad_pim",
    "rows": {
        "resnet18_100way": {"pim_energy_uj": {"value": 159.487, "unit": "uJ", "source": "p. 5"}}
    },
}


def written(folder: Path, content: object) -> Path:
    path = folder / "my.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def rows(**given: Any) -> dict[str, Any]:
    return {"table": "ad_pim", "rows": given}


def number(value: object = 1.0, **changes: Any) -> dict[str, Any]:
    return {"value": value, "unit": "uJ", "source": "Table V"} | changes


def filled(folder: Path, content: object, table: Table = PIM) -> Table:
    (table,) = fill([table], written(folder, content))
    return table


def entry(table: Table, folder: Path, row: str, column: str) -> Entry:
    return Reporter(table, Asked(), [Store(folder)]).entry(row, column)


# What is filled


def test_a_null_is_filled_and_judged(tmp_path: Path) -> None:
    before = entry(PIM, tmp_path, "resnet18_100way", "pim_energy_uj")
    assert (before.published, before.verdict) == (None, "no published value")
    after = entry(filled(tmp_path, GIVEN), tmp_path, "resnet18_100way", "pim_energy_uj")
    assert after.published is not None
    assert after.published.model_dump() == {
        "value": 159.487,
        "source": "p. 5",
        "confidence": "published",
        "std": None,
        "n": None,
    }
    assert (after.verdict, after.reason) == ("match", None)  # 159.4872 uJ: sheet 4.2


@pytest.mark.parametrize(
    ("value", "verdict"), [(159.4872, "match"), (159.0, "above"), (160, "below")]
)
def test_the_number_decides_the_verdict(tmp_path: Path, value: float, verdict: str) -> None:
    table = filled(tmp_path, rows(resnet18_100way={"pim_energy_uj": number(value)}))
    assert entry(table, tmp_path, "resnet18_100way", "pim_energy_uj").verdict == verdict


def test_where_a_run_is_missing_it_says_so(tmp_path: Path) -> None:
    content = {
        "table": "ad_cifar10",
        "rows": {"ad_1": {"top1_pct": number(91.2, unit="%")}},
    }
    shown = entry(filled(tmp_path, content, CIFAR), tmp_path, "ad_1", "top1_pct")
    assert shown.published is not None
    assert (shown.published.value, shown.verdict) == (91.2, "not run")


def test_json_and_a_unit_of_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(
        '{"table": "ad_cifar10", "rows": {"ad": {"total_density":'
        ' {"value": 1, "unit": 1, "source": "x"}}}}'
    )
    (table,) = fill([CIFAR], path)
    assert table.rows["ad"].published["total_density"].value == 1.0


def test_an_equal_number_is_fine_and_changes_nothing(tmp_path: Path) -> None:
    table = filled(tmp_path, rows(vgg19_16={"pim_energy_uj": number(110.154)}))
    assert table == PIM


def test_a_hint_gives_way_to_the_paper(tmp_path: Path) -> None:
    assert not PIM.rows["vgg19_8"].published["pim_mac_fj"].counts  # recollected
    table = filled(tmp_path, rows(vgg19_8={"pim_mac_fj": number(66.714, unit="fJ")}))
    assert entry(table, tmp_path, "vgg19_8", "pim_mac_fj").verdict == "match"


def test_other_tables_stay_as_they_are(tmp_path: Path) -> None:
    first, second = fill([CIFAR, PIM], written(tmp_path, GIVEN))
    assert first == CIFAR
    assert second != PIM


# Bit-widths

VGG19_MMACS = [1.769472, 37.748736, 18.874368, 37.748736, 18.874368, *[37.748736] * 3, 18.874368]
VGG19_MMACS += [*[37.748736] * 3, *[9.437184] * 4, 0.00512]  # sheet 4.1
VECTOR = [16, 8, 8, 4, 5, 8, 8, 8, 3, 4, 4, 4, 2, 2, 2, 2, 16]
FEMTOJOULE = {2: 2.942, 3: 16.968, 4: 16.968, 5: 66.714, 8: 66.714, 16: 276.676}  # 2.7 and Table IV


def test_the_papers_bit_widths_give_the_costs_of_a_row_without_a_run(tmp_path: Path) -> None:
    table = filled(tmp_path, rows(vgg19_ad={"bits": VECTOR}))
    report = Reporter(table, Asked(), [Store(tmp_path)]).report()
    shown = {e.column: e for e in report.rows if e.row == "vgg19_ad"}
    energy = shown["pim_energy_uj"]
    by_hand = sum(m * FEMTOJOULE[k] for m, k in zip(VGG19_MMACS, VECTOR, strict=True)) * 1e-3
    assert energy.measured is not None
    assert energy.measured.mean == pytest.approx(by_hand, rel=1e-9)
    assert (energy.measured.n, energy.measured.budget, energy.measured.data) == (
        1,
        "computed",
        None,
    )
    assert by_hand < 21.506
    assert energy.verdict == "below"
    assert energy.reason == "computed from the paper's bit-widths, not from a run"
    (vector,) = report.vectors
    assert (vector.row, vector.seed, vector.channels) == ("vgg19_ad", None, None)
    assert vector.bits == [(k, k) for k in VECTOR]
    assert vector.layers[-1] == "fc"


AD = {"label": "AD", "overrides": ["quantizer=ad", "bits.inner=[16,16]"], "bits": [4] * 11}


@pytest.mark.parametrize("budget", ["gpu", "cpu"])
def test_the_papers_bit_widths_are_for_the_papers_network(tmp_path: Path, budget: str) -> None:
    table = hand_table(rows={"ad": AD}, claims={})
    assert reporter(tmp_path, table).measured("ad", "pim_ratio") is not None
    assert reporter(tmp_path, table, budget=budget).measured("ad", "pim_ratio") is None


def test_they_never_mix_with_those_of_a_run(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(rows={"ad": AD}, claims={}))
    keep(about, "ad", 1, (8, [(90.0, 90.0)]))  # one seed of three
    found = about.measured("ad", "pim_ratio")
    assert found is not None
    assert found.values == pytest.approx((276.676 / 66.714,))  # 8 bit: sheet 4.3


def test_a_table_whose_bit_widths_do_not_fit_its_network_says_so(tmp_path: Path) -> None:
    table = hand_table(rows={"ad": AD | {"bits": [4] * 3}}, claims={})
    with pytest.raises(
        UserError, match=r"table hand: rows.ad.bits: 3 bit-widths for .* 11 layers: conv1, layer1"
    ):
        reporter(tmp_path, table).report()


# What is wrong in a file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: {", "not readable as YAML"),
        ("", "the file: None is no mapping; needed are table, rows"),
        ("[1, 2]", "the file: [1, 2] is no mapping; needed are table, rows"),
        (GIVEN | {"tabel": "x"}, "unknown key 'tabel'. Nearest: table"),
        ({"rows": {}}, "table: missing; needed are table, rows"),
        ({"table": "ad_pim"}, "rows: missing; needed are table, rows"),
        (GIVEN | {"table": "ad_pin"}, "table: unknown table 'ad_pin'. Nearest: ad_pim"),
        (GIVEN | {"table": "ad_cifar10"}, "'ad_cifar10' is not asked for; the command asks for"),
        (GIVEN | {"table": 3}, "table: 3: Input should be a valid string"),
        (GIVEN | {"rows": [1]}, "rows: [1]: Input should be a valid dictionary"),
        (rows(vgg19_6={}), "rows: unknown row 'vgg19_6'. Nearest: vgg19_16"),
        (rows(vgg19_8=None), "rows.vgg19_8: None: Input should be a valid dictionary"),
        (
            rows(vgg19_8={"pim_enregy_uj": number()}),
            "rows.vgg19_8: unknown column 'pim_enregy_uj'. Nearest: pim_energy_uj",
        ),
        (rows(vgg19_8={"top1_pct": number()}), "rows.vgg19_8: unknown column 'top1_pct'"),
        (rows(vgg19_8={"bit": [1]}), "rows.vgg19_8: unknown column 'bit'. Nearest: bits"),
        (
            rows(vgg19_8={"pim_energy_uj": 26.5}),
            "rows.vgg19_8.pim_energy_uj: 26.5 is no mapping; needed are value, unit, source",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(unit="mJ")}),
            "rows.vgg19_8.pim_energy_uj.unit: 'mJ' is not the column's unit, 'uJ'",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number("26.5")}),
            "rows.vgg19_8.pim_energy_uj.value: '26.5': Input should be a valid number",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(True)}),
            "rows.vgg19_8.pim_energy_uj.value: True: Input should be a valid number",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(None)}),
            "rows.vgg19_8.pim_energy_uj.value: None: Input should be a valid number",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(float("nan"))}),
            "rows.vgg19_8.pim_energy_uj.value: nan: Input should be a finite number",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(float("inf"))}),
            "rows.vgg19_8.pim_energy_uj.value: inf: Input should be a finite number",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": {"value": 1.0, "unit": "uJ"}}),
            "rows.vgg19_8.pim_energy_uj.source: missing; needed are value, unit, source",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(source=" ")}),
            "rows.vgg19_8.pim_energy_uj.source: ' ': String should have at least 1 character",
        ),
        (
            rows(vgg19_8={"pim_energy_uj": number(vlaue=1)}),
            "rows.vgg19_8.pim_energy_uj: unknown key 'vlaue'. Nearest: value",
        ),
        (
            rows(vgg19_ad={"pim_energy_uj": number(21.6)}),
            "rows.vgg19_ad.pim_energy_uj.value: 21.6 uJ contradicts the table's 21.506 uJ "
            "(proved: Table V)",
        ),
        (
            rows(vgg19_ad={"bits": VECTOR[:-1]}),
            "rows.vgg19_ad.bits: 16 bit-widths for the network's 17 layers: ",
        ),
        (rows(vgg19_ad={"bits": 4}), "rows.vgg19_ad.bits: 4: Input should be a valid tuple"),
        (
            rows(vgg19_ad={"bits": [17, *VECTOR[1:]]}),
            "rows.vgg19_ad.bits.0: 17: Input should be less than or equal to 16",
        ),
        (
            rows(vgg19_ad={"bits": [4.5, *VECTOR[1:]]}),
            "rows.vgg19_ad.bits.0: 4.5: Input should be a valid integer",
        ),
        (
            rows(vgg19_8={"bits": VECTOR}),
            "rows.vgg19_8.bits: the row's own config fixes its bit-widths already",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named_with_file_and_place(
    tmp_path: Path, content: object, message: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        fill([PIM], path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_several_mistakes_in_a_number_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        filled(tmp_path, rows(vgg19_8={"pim_energy_uj": {"value": "x"}}))
    assert len(str(caught.value).splitlines()) == 3  # value, unit, source


@pytest.mark.parametrize("kind", ["missing", "folder", "no text"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "my.yaml"
    if kind == "folder":
        path.mkdir()
    if kind == "no text":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"published=.*my.yaml: (No such|Is a dir|not readable)"):
        fill([PIM], path)
