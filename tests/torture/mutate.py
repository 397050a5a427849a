"""Inputs that are nearly right: bytes flipped, cut, moved and doubled; values exchanged for odd ones."""

import json
import random
from typing import Any

#: What a field of JSON or YAML may turn out to be. None costs much to hold.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "é是", "\x00", "nan", "1e999", "0x10", "1_0", "../../x", "/", "yes", "null", "\u2028", "a" * 300),
    *([], [[]], [0], ["x"], [None], [["x", "y"]], {}, {"x": 1}, {"": {}}, [1, 2, 3], {"name": "../x"}),
)
#: Pieces of text that mean something to a parser.
_PIECES = (
    *(b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\t", b",", b'"', b"'", b"\\ud800"),
    *(b"[" * 200, b"{" * 200, b"9" * 400, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b"null", b"{}", b"[]", b"0"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/name:os.system", b"2001-99-99", b": ", b"- ", b"# ", b"---\n", b"%YAML 9\n"),
)


def mutated_bytes(generator: random.Random, content: bytes) -> bytes:
    """The content with one to four changes."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        start = generator.randrange(len(changed) + 1)
        end = min(len(changed), start + generator.choice((0, 1, 1, 2, 8, 50)))
        kind = generator.randrange(6)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[start:end] = generator.choice(_PIECES)
        elif kind == 2:
            changed[start:end] = b""
        elif kind == 3:
            changed[start:start] = changed[start:end] * generator.choice((1, 2, 30))
        elif kind == 4:
            del changed[start:]
        else:
            changed[start:end] = generator.randbytes(end - start)
    return bytes(changed)


def mutated_value(generator: random.Random, value: Any) -> Any:
    """A value of JSON with one node exchanged, left out, doubled or renamed."""
    places = list(_places(value))
    if not places or generator.random() < 0.02:
        return generator.choice(VALUES)
    holder, key = generator.choice(places)
    kind = generator.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 1:
        holder[key + generator.choice(("s", "_", " ", ""))] = holder.pop(key)
    elif kind == 2:
        other, place = generator.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = json.loads(json.dumps(generator.choice(VALUES)))
    return value


def _places(value: Any) -> Any:
    """(container, key) of every node below a value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children):
        yield value, key
        yield from _places(child)
