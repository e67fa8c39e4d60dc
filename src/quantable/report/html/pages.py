"""Pages as files: one table, several below an index, or an index with a page for each table.

Templates escape every string; data for a page's script go through JSON without angle brackets.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quantable.report.escape import slug, visible
from quantable.report.html.fields import SIGNS
from quantable.report.html.section import Section, section
from quantable.report.index import Listed
from quantable.report.reporter import Reporter


def write_html(reporters: Sequence[Reporter], folder: Path, *, index: bool) -> list[Path]:
    """Write the tables' page into ``folder``; with ``index`` an index and a page for each table.

    Returns the files written. One page holds several tables below an index of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not index:
        sections = [section(reporter, f"#{slug(reporter.table.id)}") for reporter in reporters]
        name = "+".join(reporter.table.id for reporter in reporters[:3])
        if len(reporters) > 3:
            name += f"+{len(reporters) - 3}_more"
        home = (folder / "index.html").exists()
        return [_write(folder / f"{slug(name)}.html", sections, home=home)]
    lines, written = [], []
    for reporter in reporters:
        name = f"{slug(reporter.table.id)}.html"
        about = section(reporter, name)
        lines.append(about.listed)
        written.append(_write(folder / name, [about], home=True))
    return [_write(folder / "index.html", [], lines), *written]


def _write(
    path: Path, sections: Sequence[Section], lines: Sequence[Listed] = (), *, home: bool = False
) -> Path:
    """Write one page by rename."""
    if len(sections) > 1:
        lines = [about.listed for about in sections]
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            sections=sections,
            lines=lines,
            home=home,
            title=sections[0].report.table if len(sections) == 1 else "Tables",
            methods=sorted({m for line in lines for m in line.methods}),
            networks=sorted({n for line in lines for n in line.networks}),
            data=sorted({d for line in lines for d in line.data}),
            papers=dict.fromkeys(line.paper for line in lines),
            signs=SIGNS,
        )
    )
    unfinished = path.with_name(f".{path.name}.tmp")
    # What a browser would obey or hide, such as a change of direction, is shown instead.
    text = re.sub(r"[^\n -~]", lambda found: visible(found[0]), text)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


@cache
def environment() -> Environment:
    """Templates that escape every string; compiled once."""
    templates = Environment(
        loader=PackageLoader("quantable.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["slug"] = slug
    loader = templates.loader
    assert loader is not None, "set above"
    for name in ("page.css", "page.js"):  # our own files, kept as they are
        source, _, _ = loader.get_source(templates, name)
        templates.globals[name.replace(".", "_")] = Markup(source)
    return templates
