"""Strings of records and tables come out of every format as the text they are."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from quantable.report.escape import HIDDEN, LATEX, LATEX_MATH, latex_text, visible
from quantable.report.latex import latex
from quantable.report.render import FORMATS, VECTORS, reasons
from quantable.report.schema import ClaimLine, Entry, MeasuredOut, PublishedOut, Report, Vector

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "&lt;b&gt; &#106;",
    "[a](javascript:alert(1)) ![b](http://c)",
    "| a | b |\n|---|---|\n| c | d |",
    "#",
    "C # ##",
    "# heading\n\n- list\n1. one\n> quote\n```\ncode",
    "`{include}` {{ x }} $y$ ~~z~~ **w** _v_ __u__ \\",
    "[x]: http://c",
    "(target)=",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    'a,"b";c\nd',
    "\x1b[31mred\x1b[0m\x07\x9b2J",
    "\u202etxt.exe\u2066\u200b\ufeff",
    r"\input{/etc/passwd}\write18{ls}",
    r"\end{table}\newpage 100% $x_1^2$ #1 a&b ~{",
    "[1ex] row",
    "* row",
    "--, ''quoted``, <<x>>, ?`",
    "Müller, Å, ç, ±3 °C, α ≤ Ω, 快, 🙂, e\u0301, \u0301",
    "{'; DROP TABLE runs; --",
    "[bold red]rich[/]",
    "%(x)s {x} ${x}",
]
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("ab1 \\`*_{}[]()<>#+-.!|~$&;:'\"@=%^\n\t\x1b\u202e"), max_size=25),
    st.text(max_size=15),
)


def hostile_report(text: str) -> Report:
    """Return a report with ``text`` wherever a table or a record can put a string of its own."""
    said = PublishedOut(value=91.0, source=text, confidence="published")
    ours = MeasuredOut(mean=90.0, std=0.5, n=3, budget="cpu", data=text, records=[text])
    cells = [
        Entry(
            row=row,
            label=text,
            column="top1_pct",
            unit="%",
            published=said,
            hint=None,
            measured=ours,
            verdict="not comparable",
            reason=text,
        )
        for row in (text, f"{text} 2")
    ]
    claimed = ClaimLine(
        claim=text,
        text=text,
        source=text,
        kind="value",
        row=text,
        column="top1_pct",
        reference=None,
        over=None,
        unit="1",
        claimed=None,
        measured=ours,
        bound="at least 1",
        verdict="holds",
        reason=text,
    )
    layers = Vector(row=text, label=text, seed=0, layers=[text], bits=[(4, 8)], channels=None)
    return Report(
        table="hostile",
        title=text,
        paper=text,
        source=text,
        budget="cpu",
        rows=cells,
        claims=[claimed],
        vectors=[layers],
        notes=[text, text],
    )


def each_example(test):
    for text in HOSTILE:
        test = example(text=text)(test)
    return settings(max_examples=40, deadline=None)(given(text=TEXT)(test))


def hidden(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in HIDDEN} - {"\n"}


@each_example
def test_no_format_prints_a_hidden_character(text: str) -> None:
    report = hostile_report(text)
    for face in (*FORMATS.values(), latex):
        assert hidden(face(report)) == set()


@each_example
def test_json_says_exactly_what_was_there(text: str) -> None:
    report = hostile_report(text)
    assert Report.model_validate(json.loads(FORMATS["json"](report))) == report


FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # also as East Asian spreadsheets read it


@each_example
@pytest.mark.parametrize(("form", "separator"), [("csv", ","), ("csv_semicolon", ";")])
def test_csv_has_each_text_in_its_cell_and_no_formula(form: str, separator: str, text: str) -> None:
    written = FORMATS[form](hostile_report(text))
    lines = list(csv.DictReader(io.StringIO(written), delimiter=separator))
    assert len(lines) == 2
    for line in lines:
        for key in ("reason", "published_source", "measured_data"):
            assert line[key].replace("'", "") == visible(text).replace("'", "")
            assert not line[key].lstrip().startswith(FORMULA)
        assert line["measured_mean"] == {",": "90.0", ";": "90,0"}[separator]
    # Nor where a spreadsheet of another locale splits it otherwise.
    for line in csv.reader(io.StringIO(written), delimiter={",": ";", ";": ","}[separator]):
        assert not any(cell.lstrip(' "').startswith(FORMULA) for cell in line)


BLOCKS = re.compile(
    r"(heading|paragraph|bullet_list|list_item|table|thead|tbody|tr|th|td)_(open|close)|inline"
)


def spoken(tokens: list[Token]) -> Iterator[tuple[str, str]]:
    """Read the texts of a Markdown document, each with the block that it is in."""
    for before, token in pairwise(tokens):
        assert BLOCKS.fullmatch(token.type), token
        if token.type == "inline":
            assert {child.type for child in token.children or ()} <= {"text"}, token
            yield before.type, "".join(child.content for child in token.children or ())


@each_example
def test_markdown_reads_as_the_text_itself(text: str) -> None:
    report = hostile_report(text)
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    said = list(spoken(reader.parse(FORMATS["markdown"](report))))
    own = visible(text).strip()
    cells = [words for block, words in said if block == "td_open"]
    assert len(cells) == 2 * 4 + 7  # two rows, and a claim
    assert [cells[0], cells[4], cells[8], cells[9]] == [own] * 4
    (head,) = (words for block, words in said if block == "heading_open")
    assert head == visible(f"hostile: {text}").strip()
    items = [words for block, words in said if block == "paragraph_open"]
    notes = [visible(note).strip() for note in (*reasons(report), text, text)]
    assert [words for words in items[3:] if words] == [note for note in notes if note]
    assert items[1] == f"{VECTORS}:"


@each_example
def test_latex_obeys_nothing_in_a_text(text: str) -> None:
    own = latex_text(visible(text))
    known = "".join([*LATEX.values(), *LATEX_MATH.values(), r"\texttt{} \c \r \u \v"])
    words = re.compile(r"\\[A-Za-z]+")
    assert set(words.findall(own)) <= set(words.findall(known))
    bare = re.sub(r"\\([A-Za-z]+|.)", "", own)  # without commands
    assert not set(bare) & set('$&#_\\%|<>"')
    assert bare.isascii()
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_the_terminal_shows_markup_as_it_is(text: str) -> None:
    shown = "".join(FORMATS["terminal"](hostile_report(text)).split())
    assert "".join(visible(text).split()) in shown
