"""The documentation names only what exists, and its commands are ones that the suite takes.

What is found is compared with another list of the same things, so that an addition edits no count;
a floor, today's number, says that it was found at all.
"""

import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from quantable.allocation.program import program_names
from quantable.base.errors import UserError
from quantable.cli import asked_tables, parse
from quantable.tables.schema import Chosen, Row, Table, read_table, table_names
from quantable.words import asked_of, parse_sweep, sweep_words

ROOT = Path(__file__).parents[1]
CARDS = sorted(ROOT.glob("docs/methods/*.md"))
RESULTS = sorted(ROOT.glob("docs/results/*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *CARDS, *RESULTS])
FOLDERS = "conf|src|docs|tests|tools|benchmarks|reproduce"
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w")
CODE_FILE = re.compile(r"`(quantable/[\w/.]+)`")  # of a card, below src
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^python reproduce/(?:run|report)\.py .*$", re.MULTILINE)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing_paths(text: str, page: Path) -> list[str]:
    """Paths and relative links in a page's text that lead nowhere."""
    links = [link for link in LINK.findall(text) if "://" not in link]
    lost = [link for link in links if not (page.parent / link).exists()]
    lost += [path for path in CODE_FILE.findall(text) if not (ROOT / "src" / path).exists()]
    return lost + [path for path in PATH.findall(text) if not (ROOT / path).exists()]


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
        if "://" not in link
    }
    roots = {ROOT / "README.md", ROOT / "docs" / "index.md"}
    assert set(PAGES) - linked - roots - set(CARDS) == set()  # cards: see below
    assert len(PAGES) >= 47


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_and_link_exists(page: Path) -> None:
    assert missing_paths(page.read_text(), page) == []


def test_a_path_that_leads_nowhere_is_found() -> None:
    text = (
        "see `conf/table/nowhere.yaml`, [gone](docs/gone.md), src/quantable/run.py, conf/<x>.yaml, "
        "`quantable/gone.py`, `quantable/run.py`"
    )
    lost = missing_paths(text, ROOT / "README.md")
    assert lost == ["docs/gone.md", "quantable/gone.py", "conf/table/nowhere.yaml", "docs/gone.md"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_page_names_a_machine(page: Path) -> None:
    assert not re.search(r"(?<!\w)/(work|tmp|root|home)/", page.read_text())


def commands() -> Iterator[str]:
    for page in PAGES:
        for _, block in CODE.findall(page.read_text()):
            yield from COMMAND.findall(block)


def test_commands_are_found() -> None:
    assert len(list(commands())) >= 29


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_every_command_in_the_pages_composes(command: str) -> None:
    words = shlex.split(command)[2:]
    if "-m" in words:
        sweep_words(words)  # what Hydra is told
        ours = (w for w in words if w != "-m" and not w.startswith("hydra"))
        parsed = parse_sweep([word for word in ours if "interval(" not in word])
    else:
        parsed = parse(words)
    for table, asked in asked_of(parsed):
        assert asked.cells(table) or "+table=ad_pim" in command


@pytest.mark.slow
def test_the_commands_of_the_page_on_sweeps_run(tmp_path: Path) -> None:
    """All but those that need a cluster, on few images and into a store of their own."""
    few = ["data.train_images=128", "data.val_images=64", "data.test_images=64"]
    store, installed = tmp_path / "runs", {module.name for module in pkgutil.iter_modules()}
    page = (ROOT / "docs/sweeps.md").read_text()
    asked = [c for _, block in CODE.findall(page) for c in COMMAND.findall(block)]
    assert len(asked) >= 12
    for command in asked:
        command = command.replace("submitit_slurm", "submitit_local")
        missing = {"launcher=joblib": "joblib", "sweeper=optuna": "optuna"}
        if "executor=slurm" in command or any(
            word in command and package not in installed for word, package in missing.items()
        ):
            continue
        words = shlex.split(command.replace("sweep=runs", f"sweep={store}"))[1:]
        if words[0].endswith("run.py"):
            words += [*few, f"store={store}", "trainer.accelerator=cpu"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout, command


def yaml_names(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / folder).glob("*.yaml"))


def test_every_method_has_one_card_and_every_card_its_config() -> None:
    cards = {}
    for path in CARDS:
        config = path.read_text().partition("**Config**")[2].partition("**Tables**")[0]
        cards[path.name] = re.findall(r"`(quantizer|search|program)(?:=|: )(\w+)`", config)
        assert cards[path.name], f"{path.name}: no **Config** `quantizer=...`, search or program"
    methods = [name for name in yaml_names("quantizer") if name != "none"]
    assert len(methods) >= 7
    assert sorted(name for (kind, name), *_ in cards.values() if kind == "quantizer") == methods
    others = sorted(name for named in cards.values() for kind, name in named if kind != "quantizer")
    searches = [name for name in yaml_names("search") if name != "none"]
    assert others == sorted([*searches, *program_names()])


def targets(node: object) -> Iterator[str]:
    """Every ``_target_`` in a config."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from targets(value)


def test_every_method_has_a_config_that_names_it_and_a_test() -> None:
    from hydra.utils import get_object

    from quantable import methods

    named = set()
    for name in yaml_names("quantizer"):
        config = yaml.safe_load((ROOT / f"conf/quantizer/{name}.yaml").read_text())
        for target in targets(config):
            assert get_object(target), name
            named |= set(re.findall(r"^quantable\.methods\.(\w+)\.", target))
    there = {module.name for module in pkgutil.iter_modules(methods.__path__)}
    assert named == there
    tests = "".join(path.read_text() for path in ROOT.glob("tests/methods/test_*.py"))
    assert {name for name in there if f"quantable.methods.{name} import" not in tests} == set()


def test_every_paper_is_in_the_bibliography_and_has_a_card() -> None:
    bibliography = (ROOT / "docs/papers.bib").read_text()
    known = set(re.findall(r"^@\w+\{(\w+),", bibliography, re.MULTILINE))
    asked = {
        path.stem: yaml.safe_load(path.read_text())["paper"]
        for folder in ("table", "hardware")
        for path in sorted((ROOT / "conf" / folder).glob("*.yaml"))
    }
    assert len(asked) >= 26  # tables and sets of constants
    assert {name: paper for name, paper in asked.items() if paper not in known} == {}
    sources = "".join(re.findall(r"^\*\*Source\*\* .*$", "".join(map(Path.read_text, CARDS)), re.M))
    numbers = re.findall(r"^ *eprint = \{([\d.]+)\}", bibliography, re.MULTILINE)
    assert {number for number in numbers if f"arXiv:{number}" not in sources} == set()
    assert set(re.findall(r"arXiv:(\d+\.\d+)", sources)) <= set(numbers)


def test_add_a_method_quotes_lsq_as_it_is() -> None:
    blocks = CODE.findall((ROOT / "docs/add-a-method.md").read_text())
    source = (ROOT / "src/quantable/methods/lsq.py").read_text()
    config = (ROOT / "conf/quantizer/lsq.yaml").read_text()
    assert [language for language, _ in blocks] == ["python", "python", "yaml", ""]
    assert blocks[0][1] in source
    assert blocks[1][1] in source
    assert blocks[2][1] == config


def test_add_a_table_shows_a_table_that_can_be_read(tmp_path: Path) -> None:
    block, *_ = yaml_blocks("docs/add-a-table.md")
    path = tmp_path / "ad_example.yaml"
    path.write_text(block)
    table = read_table(path)
    assert table.id == "ad_example"
    assert table.model_fields_set == set(Table.model_fields)  # every key is shown
    shown = set().union(*(row.model_fields_set for row in table.rows.values()))
    explained_below = {"train", "reason", "bits", "sizes", "policy", "start", "teacher", "chosen"}
    explained_below |= {"layer", "uniform"}
    assert set(Row.model_fields) - shown == explained_below


def test_add_a_table_shows_families_that_can_be_read(tmp_path: Path) -> None:
    block, families, _ = yaml_blocks("docs/add-a-table.md")
    content, more = yaml.safe_load(block), yaml.safe_load(families)
    for key in ("rows", "claims"):
        content[key] |= more[key]
    path = tmp_path / "ad_example.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    table = read_table(path)
    assert list(table.rows)[-6:] == ["eagl", "hawq", "eagl_90", "eagl_80", "hawq_90", "hawq_80"]
    assert table.rows["hawq_80"].label == "HAWQ trace, 80 %"
    assert table.rows["hawq_80"].chosen == Chosen(by="hawq", budgets={"linear": 0.8})
    assert table.claims["EA-2 80 %"].others == ("hawq_80",)


def test_add_a_table_shows_published_numbers_that_can_be_read(tmp_path: Path) -> None:
    *_, block = yaml_blocks("docs/add-a-table.md")
    path = tmp_path / "my.yaml"
    path.write_text(block)
    (table,) = asked_tables(parse(["+table=ad_cifar10", f"published={path}"]))
    row = table.rows["ad_1"]
    assert row.published["top1_pct"].value == 91.2
    assert row.bits is not None


def yaml_blocks(page: str) -> list[str]:
    return [text for kind, text in CODE.findall((ROOT / page).read_text()) if kind == "yaml"]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tools/make_results.py working on a README of its own, where there is one table."""
    names = runpy.run_path(str(ROOT / "tools" / "make_results.py"))
    (tmp_path / "docs").mkdir()
    monkeypatch.setitem(names["main"].__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(names["main"].__globals__, "table_names", lambda: ["ad_pim"])
    page = tmp_path / "README.md"
    page.write_text("")
    return names, page


def test_fill_replaces_only_what_is_between_the_markers(tool) -> None:
    names, _ = tool
    text = (
        "a\n<!-- results: one -->\n<!-- end -->\n"
        "b\n<!-- results: two x=1 -->\nold\n<!-- end -->\nc\n"
    )
    rendered = {"one": "| 1 |", "two x=1": r"| \1 \g<0> |"}  # no template language
    render = {"results": rendered.__getitem__}
    once = names["fill"](text, render, "a.md")
    assert once == (
        "a\n<!-- results: one -->\n\n| 1 |\n\n<!-- end -->\n"
        "b\n<!-- results: two x=1 -->\n\n| \\1 \\g<0> |\n\n<!-- end -->\nc\n"
    )
    assert names["fill"](once, render, "a.md") == once


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results: one -->\n",
        "<!-- end -->\n",
        "<!-- results: one -->\n<!-- results: two -->\n<!-- end -->\n",
        "<!-- results: one -->\n<!-- results: two -->\n<!-- end -->\n<!-- end -->\n",
        "<!-- results: one -->\nx <!-- end -->\n",
    ],
    ids=["no end", "no begin", "one end for two", "nested", "end within a line"],
)
def test_markers_out_of_order_are_an_error(tool, text: str) -> None:
    names, _ = tool
    with pytest.raises(UserError, match=r"a\.md: .* needs its own '<!-- end -->'"):
        names["fill"](text, dict.fromkeys(names["KINDS"], str), "a.md")


def test_check_tells_a_difference_and_writes_nothing(tool, capsys) -> None:
    names, page = tool
    assert names["main"]([]) == 0
    empty = "<!-- main: ad_pim rows=vgg19_16 -->\n<!-- end -->\n"
    page.write_text(empty)
    assert names["main"](["--check"]) == 1
    assert capsys.readouterr().err == (
        "README.md: other than reproduce/evidence: run `make report`\n"
    )
    assert page.read_text() == empty

    assert names["main"]([]) == 0
    assert "| VGG19, 16 bit | 398.136 | 276.676 | 110.155 |" in page.read_text()
    assert names["main"](["--check"]) == 0

    page.write_text(page.read_text().replace("110.155", "110.15"))
    assert names["main"](["--check"]) == 1


@pytest.mark.parametrize("number", ["| 4 | 2 | 2 |", "arithmetic"])
def test_check_finds_a_word_of_the_list_of_papers_changed_by_hand(tool, number: str) -> None:
    names, page = tool
    page.write_text("<!-- papers: -->\n<!-- end -->\n")
    assert names["main"]([]) == 0
    # a table, 4 published values, 2 judged, both match; no claims, and nothing was trained
    line = "| 1 | 4 | 2 | 2 | 0 | 0 | 0 | arithmetic | – |"
    assert f"(docs/results/index.md#vasquez-et-al-2021) {line}" in page.read_text()
    page.write_text(page.read_text().replace(number, number[:-1]))
    assert names["main"](["--check"]) == 1


def test_check_finds_a_tables_page_that_is_missing_or_changed_by_hand(tool, capsys) -> None:
    names, readme = tool
    page = readme.parent / "docs/results/ad_pim.md"
    for _ in range(2):
        assert names["main"](["--check"]) == 1
        assert capsys.readouterr().err.startswith("docs/results/ad_pim.md: ")
        assert names["main"]([]) == 0
        made = page.read_text()
        assert made.startswith("<!-- results: ad_pim -->\n\n# ad_pim: energy on the PIM platform\n")
        assert names["main"](["--check"]) == 0
        page.write_text(made.replace("110.155", "110.15"))
    page.unlink()
    assert names["main"](["--check"]) == 1


@pytest.mark.parametrize("words", [[], ["--check"]], ids=["write", "check"])
def test_a_page_for_no_table_is_an_error(tool, words: list[str]) -> None:
    names, readme = tool
    assert names["main"]([]) == 0
    (readme.parent / "docs/results/ad_pin.md").write_text("# a table that was taken away\n")
    with pytest.raises(UserError, match=r"ad_pin\.md: unknown table 'ad_pin'. Nearest: ad_pim"):
        names["main"](words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ad_pim formt=json", "unknown option 'formt'"),
        ("ad_pim format=json", "unknown option 'format'"),
        ("ad_pin", "unknown table 'ad_pin'. Nearest: ad_pim"),
        ("", "unknown table ''"),
        ("ad_pim budget=cpus", "unknown budget 'cpus'. Nearest: cpu"),
        ("ad_pim rows=vgg19_17", "unknown row 'vgg19_17'"),
        ("ad_pim budget", "not of the form key=value"),
    ],
    ids=lambda value: value if "'" not in value else "",
)
def test_wrong_marker_words_are_an_error(tool, words: str, message: str) -> None:
    names, page = tool
    page.write_text(f"<!-- results: {words} -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=re.escape(message)):
        names["main"]([])


def test_an_unknown_option_is_an_error(tool) -> None:
    names, _ = tool
    with pytest.raises(UserError, match="unknown option '--chek'"):
        names["main"](["--chek"])


def asked_by(page: Path, kind: str, tools: dict) -> list[str]:
    """What stands behind the markers of one kind in a page."""
    asked: dict[str, list[str]] = {key: [] for key in tools["KINDS"]}
    render = {key: lambda words, key=key: asked[key].append(words) or "" for key in asked}
    tools["fill"](page.read_text(), render, page.name)
    return asked[kind]


def test_the_front_page_lists_papers_and_has_one_picture(tool) -> None:
    for kind in ("papers", "picture", "main"):
        assert len(asked_by(ROOT / "README.md", kind, tool[0])) == 1


def test_every_table_has_a_page_that_shows_it_and_every_page_its_table(tool) -> None:
    shown = {
        page.stem: [words.split()[0] for words in asked_by(page, "results", tool[0])]
        for page in RESULTS
        if page.stem != "index"
    }
    assert shown == {name: [name] for name in yaml_names("table")}
    assert len(shown) >= 24
    assert asked_by(ROOT / "docs/results/index.md", "index", tool[0]) == [""]


def test_every_picture_is_shown_and_every_one_shown_is_there(tool) -> None:
    asked = [words.split() for page in PAGES for words in asked_by(page, "picture", tool[0])]
    kept = {path.name for path in ROOT.glob("docs/pictures/*")}
    assert {f"{table}_{figure}.svg" for table, figure, *_ in asked} == kept


def test_every_table_is_on_a_card() -> None:
    found = "".join(map(Path.read_text, CARDS))
    named = " ".join(re.findall(r"\*\*Tables\*\* (.*)", found))
    assert set(re.findall(r"\w+", named)) >= set(yaml_names("table"))


@pytest.mark.parametrize("page", CARDS, ids=lambda p: p.stem)
def test_a_card_says_what_is_known_of_each_of_its_tables(tool, page: Path) -> None:
    (named,) = re.findall(r"\*\*Tables\*\* (.*)", page.read_text())
    tables = [word for word in re.findall(r"\w+", named) if word in table_names()]
    assert " ".join(asked_by(page, "coverage", tool[0])).split() == tables


def test_coverage_counts_published_measured_and_matching_numbers(tool) -> None:
    names, page = tool
    page.write_text("<!-- coverage: ad_pim -->\n<!-- end -->\n")
    assert names["main"]([]) == 0
    # Table V prints four energies; those of the two AD rows need bit-widths nobody could recover
    assert "| energy on the PIM platform | paper | 4 | 2 | 2 | – |" in page.read_text()


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "generated")
    )
    words = ["-q", "-W", "--keep-going", str(tmp_path / "docs"), str(tmp_path / "html")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in table_names():
        assert f"<h1>{name}:" in (tmp_path / "html/results" / f"{name}.html").read_text()
    index = (tmp_path / "html/results/index.html").read_text()
    assert 'href="ad_pim.html"' in index
    assert "vasquez_2021" in (tmp_path / "html/generated/papers.html").read_text()


NAME = re.compile(r"`(quantable(?:\.\w+)+)")


def lies_nowhere(name: str) -> bool:
    """Whether a dotted name is no module, and nothing that a module of this project says."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        place = ROOT / "src" / Path(*parts[:end])
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if path.is_file():
            rest = parts[end:]
            return bool(rest) and not re.search(rf"\b{rest[0]}\b", path.read_text())
    return True


def test_every_dotted_name_in_the_pages_lies_where_they_say() -> None:
    named = {name: page for page in PAGES for name in NAME.findall(page.read_text())}
    assert len(named) >= 12
    assert {name: page.name for name, page in named.items() if lies_nowhere(name)} == {}
    assert lies_nowhere("quantable.networks.nothing")
    assert lies_nowhere("quantable.base.errors.Nothing")
