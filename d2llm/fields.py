"""Fields of dataclasses and typed dictionaries out of plain values."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from d2llm.errors import InputError, shown


def build(kind: Any, values: Any, prefix: str = "") -> Any:
    """A dataclass from a mapping of its fields, nested ones included.

    Args:
        kind: the dataclass.
        values: plain values, as YAML or JSON gives them.
        prefix: the dotted name so far, for messages.

    Raises:
        InputError: naming an unknown or missing field, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{prefix.rstrip('.')}: expected a mapping of fields, got {shown(values)}")
    hints = typing.get_type_hints(kind)
    made = {name: convert(hints, name, value, prefix) for name, value in values.items()}
    for each in fields(kind):
        if each.name not in made and each.default is MISSING and each.default_factory is MISSING:
            raise InputError(f"{prefix}{each.name}: expected a value, got none")
    return kind(**made)


def convert(hints: Mapping[str, Any], name: str, value: Any, prefix: str = "") -> Any:
    """A plain value as the type that ``hints`` gives a field.

    Raises:
        InputError: for an unknown field, or a value that is no such thing.
    """
    if name not in hints:
        raise InputError(f"{prefix}{name!s:.200}: unknown field; expected one of {', '.join(hints)}")
    hint = hints[name]
    if is_dataclass(hint):
        return build(hint, value, f"{prefix}{name}.")
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        fits, converted = _fit(option, value)
        if fits:
            return converted
    plain = isinstance(hint, type) and not typing.get_args(hint)
    expected = hint.__name__ if plain else str(hint).replace("typing.", "")
    raise InputError(f"{prefix}{name}: expected {expected}, got {shown(value)}")


def _fit(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether a YAML value is of a plain type, and the value as that type."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is float:
        return _fit_float(value)
    if origin in (tuple, list) and isinstance(value, (tuple, list)):
        kinds = arguments if origin is tuple else arguments * len(value)
        parts = [_fit(each, item) for each, item in zip(kinds, value, strict=False)]
        return len(value) == len(kinds) and all(fits for fits, _ in parts), origin(item for _, item in parts)
    if origin is int and isinstance(value, bool):
        return False, value
    return isinstance(value, origin), dict(value) if origin is dict and isinstance(value, dict) else value


def _fit_float(value: Any) -> tuple[bool, Any]:
    # YAML 1.1 reads 1e-4 (no point) as a text.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False, value
    try:
        return True, float(value)
    except (ValueError, OverflowError):  # OverflowError: a whole number beyond the largest float.
        return False, value
