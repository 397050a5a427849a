"""Metadata of passages: fields that filters ask for.

A field holds one text or several, a number, or true or false, the same kind for all passages of an index. A passage may
lack any field.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from d2llm.errors import InputError, shown

#: What a field holds for a passage.
Value: TypeAlias = str | list[str] | int | float | bool
Metadata: TypeAlias = dict[str, Value]

#: Kinds of fields.
TEXT, NUMBER, TRUTH = "text", "number", "truth"
KINDS = (TEXT, NUMBER, TRUTH)
# Whole numbers up to this are floats too.
_EXACT = 2**53


def check_metadata(fields: Any, where: str) -> Metadata:
    """The metadata of a passage as plain values, without fields that hold None or an empty list.

    Raises:
        InputError: naming ``where`` and the field, for a name or a value that is none.
    """
    if not isinstance(fields, Mapping):
        raise InputError(f"{where}: expected fields and their values, got {shown(fields)}")
    checked: Metadata = {}
    for name, given in fields.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: expected non-empty texts as names of fields, got {shown(name)}")
        value = given.item() if isinstance(given, np.generic) else given
        value = list(value) or None if isinstance(value, (list, tuple)) else value
        if value is not None:
            if kind_of(value) is None:
                expected = "a text, a list of texts, a finite number up to 2^53, true or false"
                raise InputError(f"{where}.{name:.200}: expected {expected}, got {shown(given)}")
            checked[name] = value
    return checked


def kind_of(value: Any) -> str | None:
    """The kind of a field that can hold a value, None where none can."""
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int):
        return NUMBER if abs(value) <= _EXACT else None
    if isinstance(value, float):
        return NUMBER if np.isfinite(value) else None
    texts = value if isinstance(value, list) and value else [value]
    return TEXT if all(isinstance(each, str) for each in texts) else None


def kinds(passages: Iterable[Metadata], known: Mapping[str, str], first: int = 0) -> dict[str, str]:
    """The kind of every field that is known or that these passages have.

    Args:
        passages: their checked metadata.
        known: kinds of fields, from passages before.
        first: number of the first passage, for messages.

    Raises:
        InputError: for a value of another kind than its field has in passages before.
    """
    found = dict(known)
    for number, fields in enumerate(passages, start=first):
        for name, value in fields.items():
            kind = kind_of(value) or ""
            if found.setdefault(name, kind) != kind:
                where = f"metadata[{number}].{name:.200}"
                raise InputError(f"{where}: expected a {found[name]}, as in passages before, got {shown(value)}")
    return found
