"""The columns a table may have: each a function of what is known about a run, with its unit.

Every file of this folder has some of them in its own ``COLUMNS``, those of a method or paper in one
that is named like it: a new file is found by itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

from quantable.base.errors import UserError
from quantable.columns.facts import Column


def entries() -> Iterator[tuple[str, Mapping[str, Column]]]:
    """Name of each file of this folder, in alphabetical order, with its columns."""
    for name in sorted(module.name for module in iter_modules(__path__)):
        yield name, getattr(import_module(f"{__name__}.{name}"), "COLUMNS", {})


def together(files: Iterable[tuple[str, Mapping[str, Column]]]) -> dict[str, Column]:
    """The columns of all files.

    Raises UserError where two have one of the same name.
    """
    found: dict[str, Column] = {}
    place: dict[str, str] = {}
    for file, columns in files:
        for name, column in columns.items():
            if name in found:
                raise UserError(
                    f"column '{name}' stands in columns/{place[name]}.py and columns/{file}.py: "
                    "rename one"
                )
            found[name], place[name] = column, file
    return found


COLUMNS = together(entries())
