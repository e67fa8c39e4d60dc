"""Hypothesis draws values of this project's models and dataclasses from their types."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from pydantic import BaseModel

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)  # JSON has no others
SIGNATURES = st.from_regex("[0-9a-f]{12}", fullmatch=True)
WIDTHS = st.sampled_from([*range(1, 17), 32])
PLAIN: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(max_size=12),
    int: st.integers(-(2**63), 2**63),
    float: NUMBERS | st.integers(-9, 9).map(float),
    bool: st.booleans(),
    NoneType: st.none(),
    Any: st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | NUMBERS | st.text(max_size=12),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2)
        ),
        max_leaves=5,
    ),
}


def of(kind: Any, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a type; ``known`` are fields of it that not every value of their type fits."""
    if kind in PLAIN:
        return PLAIN[kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        hints = {name: field.annotation for name, field in kind.model_fields.items()}
        needed = {name for name, field in kind.model_fields.items() if field.is_required()}
    elif is_dataclass(kind):
        hints = get_type_hints(kind)
        needed = {field.name for field in fields(kind) if field.default is MISSING}
    else:
        return _generic(get_origin(kind), get_args(kind))
    drawn = {name: known[name] if name in known else of(hint) for name, hint in hints.items()}
    optional = {name: drawn.pop(name) for name in hints.keys() - needed}
    return st.fixed_dictionaries(drawn, optional=optional).map(lambda values: kind(**values))


def _generic(origin: Any, arguments: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if origin is Literal:
        return st.sampled_from(arguments)
    several = [of(part) for part in arguments if part is not Ellipsis]
    if origin in (Union, UnionType):
        return st.one_of(several)
    if origin in (list, Sequence):
        return st.lists(*several, max_size=2)
    if origin in (dict, Mapping):
        return st.dictionaries(*several, max_size=2)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*several)
    if origin is tuple:
        return st.lists(*several, max_size=2).map(tuple)
    raise NotImplementedError(f"{origin}: say in tests/drawn.py how it is drawn")
