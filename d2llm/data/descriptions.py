"""What a docstring says beside its first sentence: of parameters and of the result, in the three usual layouts."""

import re

#: Google (``Args:``), NumPy (underlined ``Parameters``); the section is what is indented below, or up to a blank line.
_SECTION = r"^[ \t]*(?:{names}):?[ \t]*\n(?:[ \t]*-+[ \t]*\n)?((?:[ \t]*\S[^\n]*(?:\n|\Z))+)"
_PARAMETERS = re.compile(_SECTION.format(names="Args|Arguments|Parameters"), re.MULTILINE)
_RESULT = re.compile(_SECTION.format(names="Returns?|Yields?"), re.MULTILINE)
_FIELD = r":{names}[^:\n]*:[ \t]*([^\n]+(?:\n[ \t]+[^:\s][^\n]*)*)"
_PARAMETER_FIELD = re.compile(_FIELD.format(names="param(?:eter)?"))
_RESULT_FIELD = re.compile(_FIELD.format(names="returns?"))
#: A line of a section that opens an entry: ``name: text``, ``name (type): text`` or ``name : type``.
_ENTRY = re.compile(r"^\*{0,2}\w+(?:, \*{0,2}\w+)*(?: \([^)]*\))?(?:: +(?P<text>.*)| : .*)$")


def parameter_descriptions(docstring: str) -> list[str]:
    """The description of each parameter, white space collapsed; none where the layout is another."""
    if fields := _PARAMETER_FIELD.findall(docstring):
        return [" ".join(text.split()) for text in fields]
    section = _PARAMETERS.search(docstring)
    return _entries(section[1]) if section else []


def result_description(docstring: str) -> str:
    """What is returned or yielded, white space collapsed; empty where nothing tells."""
    if field := _RESULT_FIELD.search(docstring):
        return " ".join(field[1].split())
    section = _RESULT.search(docstring)
    if section is None:
        return ""
    entries = _entries(section[1])
    return entries[0] if entries else " ".join(section[1].split())


def _entries(section: str) -> list[str]:
    """Descriptions of the entries of a section."""
    lines = section.splitlines()
    outer = len(lines[0]) - len(lines[0].lstrip())
    found: list[list[str]] = []
    for line in lines:
        entry = _ENTRY.match(line.strip()) if len(line) - len(line.lstrip()) == outer else None
        if entry:
            found.append([entry["text"] or ""])
        elif found:
            found[-1].append(line)
    return [" ".join(" ".join(each).split()) for each in found]
