"""YAML that says what JSON could say, and nothing twice."""

from pathlib import Path
from typing import Any

import yaml

from d2llm.errors import FormatError, MissingError

#: What JSON has; YAML's dates are texts then, its sets and bytes an error.
_TAG = "tag:yaml.org,2002:"
_TAGS = [_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")]
_LARGEST_BITS = 64


def _refused(problem: str, what: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=what.start_mark)


class _Strict:
    """What both loaders refuse: aliases, which make a small file a large one, and names that stand twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            raise _refused("found an alias", self.peek_event())  # type: ignore[attr-defined]
        return super().compose_node(parent, index)  # type: ignore[misc]

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != f"{_TAG}str":
                raise _refused("expected a text as name", key)
            if key.value in names:
                raise _refused(f"found {key.value!r:.200} twice", key)
            names.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Plain(_Strict, yaml.SafeLoader):
    yaml_constructors = {  # noqa: RUF012 - as the base declares it
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in found if tag in _TAGS]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > _LARGEST_BITS:
            raise _refused(f"expected a number of at most {_LARGEST_BITS} bits", node)
        return value


_Plain.add_constructor(f"{_TAG}int", _Plain.construct_yaml_int)


class _Texts(_Strict, yaml.BaseLoader):
    """Makes texts of everything, where the other reads a bare yes or no as true or false."""


def parse_yaml(text: str, where: str, *, texts: bool = False) -> Any:
    """What a YAML text holds: null, numbers, texts, lists, and mappings by text.

    Args:
        text: the text.
        where: it stands, for messages.
        texts: take every scalar as a text.

    Raises:
        FormatError: if it is not YAML, holds anything else, an alias, or a name twice in a mapping.
    """
    try:
        return yaml.load(text, Loader=_Texts if texts else _Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid YAML ({error!s:.500})") from None


def read_yaml(path: Path, what: str, *, texts: bool = False) -> Any:
    """What a YAML file holds, as :func:`parse_yaml` reads it; ``what`` it is, for messages.

    Raises:
        MissingError: if there is no such file.
        FormatError: as :func:`parse_yaml`.
    """
    if not path.is_file():
        raise MissingError(f"{path}: {what} file not found")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path), texts=texts)
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not valid YAML (expected UTF-8)") from None
