"""LaTeX: what stands in the table, and that pdflatex makes one page of it."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hand_records import hand_table, keep, reporter
from programs import MAY_LACK
from test_hostile import HOSTILE, hostile_report

from quantable.cli import report_main
from quantable.report.latex import latex
from quantable.report.schema import Report

needs_latex = pytest.mark.skipif(
    MAY_LACK and not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="needs Debian's texlive-latex-recommended, texlive-science and poppler-utils",
)


def hand_report(folder: Path, label: str = "float") -> Report:
    """Three seeds of a float row: 92.1 on average, with a standard deviation of 0.36."""
    rows = {
        "float": {
            "label": label,
            "overrides": ["quantizer=none"],
            "published": {
                "top1_pct": {"value": 92.0, "source": "Table 9", "confidence": "published"}
            },
        },
        "bits16": {"label": "16 bit", "cell": "float", "cost_bits": 16},
    }
    about = reporter(folder, hand_table(rows=rows, claims={}))
    for seed, test in enumerate((91.8, 92.0, 92.5)):
        keep(about, "float", seed, (32, [(91.0, test)] * 5))
    return about.report()


def line_of(text: str, label: str) -> list[str]:
    (line,) = re.findall(rf"^{label} & (.*)\\\\$", text, flags=re.MULTILINE)
    return line.split(" & ")


def test_our_numbers_stand_beside_the_published_ones(tmp_path: Path) -> None:
    text = latex(hand_report(tmp_path))
    assert line_of(text, "float") == ["92.00", "92.10 +- 0.36", "{--}", "{--}", "3", "match"]
    # the paper says nothing of it; training complexity and PIM reduction are those of the reference
    row = ["{--}", "92.10 +- 0.36", "1.000 +- 0.000", "1.000", "3", "no published value"]
    assert line_of(text, "16 bit") == row
    assert r"\multicolumn{2}{c}{top-1 [\%]}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert " & {published} & {ours} & " in text
    numbers = "S[table-format=2.2] S[table-format=2.2 +- 1.2,uncertainty-mode=separate,"
    assert rf"\begin{{tabular}}{{@{{}}l {numbers}" in text
    assert r"\caption{made by hand.}" in text
    assert r"\label{tab:hand}" in text


def test_claims_and_notes_stand_below(tmp_path: Path) -> None:
    report = reporter(tmp_path, hand_table(notes=["half of 50%"])).report()
    text = latex(report)
    assert len(re.findall(r"^(?:drop|largest|value) & says so & ", text, flags=re.MULTILINE)) == 3
    assert "half of 50\\%\\par" in text


def test_a_doubtful_number_is_in_parentheses(tmp_path: Path) -> None:
    report = hand_report(tmp_path)
    entry = report.rows[0]
    assert entry.published is not None
    hint = entry.published.model_copy(update={"confidence": "doubtful"})
    report.rows[0] = entry.model_copy(update={"published": None, "hint": hint})
    text = latex(report)
    assert line_of(text, "float")[0] == "{(92.00)}"
    assert "in parentheses are doubtful" in text


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_main(["+table=ad_pim", "format=latex"]) == 0
    printed = capsys.readouterr().out
    assert line_of(printed, "VGG19, 16 bit")[2:4] == ["110.154", "110.155"]
    assert r"PIM energy [\(\mu\)J]" in printed


def pages(source: Path) -> list[str]:
    """Compile a file; the text of each page."""
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    done = subprocess.run([*words, source.name], cwd=source.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    shown = ["pdftotext", "-layout", str(source.with_suffix(".pdf")), "-"]
    text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    return text.split("\f")[:-1]


@needs_latex
@pytest.mark.latex
def test_alone_it_is_one_page(tmp_path: Path) -> None:
    source = tmp_path / "hand.tex"
    source.write_text(latex(hand_report(tmp_path, label="3 × 3 convolutions — Müller's (α)")))
    (page,) = pages(source)
    words = unicodedata.normalize("NFC", " ".join(page.split()))
    assert "3 × 3 convolutions — Müller’s (α) 92.00 92.10 ± 0.36" in words
    assert "match" in words
    assert "this test. Protocol: budget paper; data Fashion-MNIST mini; 3 seeds." in words


@needs_latex
@pytest.mark.latex
def test_it_can_be_put_into_a_paper(tmp_path: Path) -> None:
    (tmp_path / "hand.tex").write_text(latex(hand_report(tmp_path)))
    (tmp_path / "hostile.tex").write_text(latex(hostile_report("a&b")))
    paper = tmp_path / "paper.tex"
    paper.write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx,siunitx}"
        r"\begin{document}Before. \input{hand}\input{hostile}After.\end{document}"
    )
    text = " ".join(" ".join(pages(paper)).split())
    assert "Table 1: made by hand." in text
    assert "Table 2: a&b." in text
    assert "After." in text


@needs_latex
@pytest.mark.latex
def test_hostile_strings_are_printed(tmp_path: Path) -> None:
    report = hostile_report("x").model_copy(update={"notes": HOSTILE})
    source = tmp_path / "hostile.tex"
    source.write_text(latex(report))
    (page,) = pages(source)
    # The standard fonts draw an underscore as a line and have spacing accents of their own.
    words = re.sub(r"[\s_]", "", page).translate(str.maketrans("ˆ˜’", "^~'"))
    assert r"\input{/etc/passwd}\write18{ls}" in words
    assert r"\end{table}\newpage100%$x1^2$#1a&b~{" in words
    assert "<script>alert(1)</script>" in words
    assert "U+5FEB" in words
