"""Filters: which passages a search may find, said in plain data and asked of columns, before anything is scored.

``{"lang": ["en", "de"], "year": {"gte": 2020, "lt": 2024}, "open": True}``: a field holds a value, one of several, or
one between bounds, and all fields named must. Of a field that holds several texts one is enough. A passage without the
field does not pass.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.errors import InputError, shown
from d2llm.index.columns import Column
from d2llm.index.snapshot import Snapshot
from d2llm.metadata import TRUTH, kind_of

# Bounds by name, and how the first value that is within, or no longer, is found.
_LOWER = {"gte": bisect_left, "gt": bisect_right}
_UPPER = {"lt": bisect_left, "lte": bisect_right}

Filters: TypeAlias = Mapping[str, Any]
Bounds: TypeAlias = Mapping[str, Any]


def check_filters(filters: Filters, kinds: Mapping[str, str]) -> dict[str, list[Bounds]]:
    """Of each field the bounds of which a value must be within one.

    Args:
        filters: as a user says them.
        kinds: kind of each field of the index.

    Raises:
        InputError: for no fields, values or bounds, an unknown field or bound, or a value of another kind than the
            field.
    """
    if not isinstance(filters, Mapping):
        raise InputError(f"filters: expected fields and what they must hold, got {shown(filters)}")
    if not filters:
        raise InputError("filters: expected at least one field, got none; leave filters out to search all passages")
    checked = {}
    for name, wanted in filters.items():
        if name not in kinds:
            known = f"one of {', '.join(sorted(kinds))!s:.200}" if kinds else "none, since no passage has metadata"
            raise InputError(f"filters: {name!s:.200}: unknown field; expected {known}")
        checked[name] = _alternatives(f"filters.{name:.200}", wanted, kinds[name])
    return checked


def passing(snapshot: Snapshot, filters: Filters) -> Tensor:
    """Positions (N,) int64, ascending, of the passages that are not deleted and pass.

    Raises:
        InputError: as :func:`check_filters`.
    """
    conditions = check_filters(filters, snapshot.manifest.fields)
    kept = snapshot.deleted.logical_not().numpy()
    for segment, start in zip(snapshot.segments, snapshot.starts[:-1].tolist(), strict=True):
        part = kept[start : start + segment.rows]
        for name, alternatives in conditions.items():
            holds = np.zeros(segment.rows, np.bool_)
            if name in segment.columns:
                for bounds in alternatives:
                    holds[_rows(segment.columns[name], bounds)] = True
            part &= holds
    return torch.from_numpy(np.flatnonzero(kept))


def _alternatives(where: str, wanted: Any, kind: str) -> list[Bounds]:
    if isinstance(wanted, Mapping):
        names = (*_LOWER, *_UPPER)
        if not wanted or not wanted.keys() <= set(names):
            raise InputError(f"{where}: expected some of {', '.join(names)}, got {shown(list(wanted))}")
        if kind == TRUTH:
            raise InputError(f"{where}: expected true or false, got bounds: {shown(wanted)}")
        values, alternatives = list(wanted.values()), [wanted]
    else:
        several = isinstance(wanted, Sequence) and not isinstance(wanted, str)
        values = list(wanted) if several else [wanted]
        if not values:
            raise InputError(f"{where}: expected at least one value, got none")
        alternatives = [{"gte": value, "lte": value} for value in values]
    for value in values:
        if isinstance(value, list) or kind_of(value) != kind:
            raise InputError(f"{where}: expected a {kind}, as the field holds, got {shown(value)}")
    return alternatives


def _rows(column: Column, bounds: Bounds) -> NDArray[np.int32]:
    low = max((find(column.values, bounds[name]) for name, find in _LOWER.items() if name in bounds), default=0)
    ends = [find(column.values, bounds[name]) for name, find in _UPPER.items() if name in bounds]
    return column.between(low, min(ends, default=len(column.values)))
