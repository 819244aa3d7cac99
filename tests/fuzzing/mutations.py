"""Mutants of JSON values, of bytes and of command lines, drawn from a seeded random."""

import copy
import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

_RAW = re.compile(r'"@raw (\w+) (\d+)@"')
_TWICE = "\x00twice"
_BRACKETS = {"brackets": ("[", "]"), "braces": ('{"a":', "}")}

_STRANGE_TEXTS = (
    "",
    " ",
    "\x1b[2J\x1b]0;title\x07",
    "\r\n\n",
    "\x00",
    "\ud800",
    "a\udfff",
    "../../etc/passwd",
    "/dev/zero",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "| a | b |",
    "%s%n{0}{x!r}",
    "name--file.Class",
    "é" * 300,
    "x" * 5000,
    "9" * 5000,
)
_STRANGE_NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400)
_STRANGE_FLOATS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 0.1, -0.0, 1e16)
_STRANGE_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1b[31m",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"{",
    b"]",
    b'"',
    b"\n",
)


def strange_value(random: Random, *, holds: bool = True) -> Any:
    """A JSON value that nobody expects; numbers of thousands of digits and deep nesting as marks for `as_json`."""
    kind = random.randrange(9 if holds else 5)
    if kind == 0:
        return random.choice(_STRANGE_TEXTS)
    if kind == 1:
        return random.choice(_STRANGE_NUMBERS)
    if kind == 2:
        return random.choice(_STRANGE_FLOATS)
    if kind == 3:
        return f"@raw digits {random.choice((400, 5000, 20_000))}@"
    if kind == 4:
        return f"@raw {random.choice(tuple(_BRACKETS))} {random.choice((50, 1000, 100_000))}@"
    if kind == 5 and holds:
        return [strange_value(random, holds=False) for _ in range(random.choice((0, 1, 3, 300)))]
    if kind == 6:
        return {random.choice(_STRANGE_TEXTS): strange_value(random, holds=False) for _ in range(random.randrange(3))}
    return random.choice((None, True, False, [], {}, "", [[]], [None], {"": None}))


def strange_text(random: Random) -> str:
    """A text for a place where only a text can stand: a flag, a size."""
    return random.choice(
        (*_STRANGE_TEXTS, *map(str, _STRANGE_FLOATS), *map(str, _STRANGE_NUMBERS), "-", "--", "1e999999999")
    )


def as_json(value: Any) -> bytes:
    """JSON with the marks of this module replaced by what Python would not write."""

    def raw(found: re.Match[str]) -> str:
        kind, count = found[1], int(found[2])
        if kind == "digits":
            return "9" * count
        before, after = _BRACKETS[kind]
        return before * count + "1" + after * count

    text = json.dumps(value).replace("\\u0000twice", "")
    return _RAW.sub(raw, text).encode()


def mutated(value: Any, random: Random, times: int | None = None) -> Any:
    """A copy of a JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(times or random.choice((1, 1, 1, 2, 3))):
        value = _one_change(value, random)
    return value


def mutated_json(value: Any, random: Random) -> bytes:
    """A JSON file that is wrong in its structure, and one time in five in its bytes too."""
    content = as_json(mutated(value, random))
    return mutated_bytes(content, random) if random.random() < 0.2 else content


def _one_change(value: Any, random: Random) -> Any:
    places = [place for place in _places(value) if place]
    if not places or random.random() < 0.01:
        return strange_value(random)
    *way, last = random.choice(places)
    holder = value
    for step in way:
        holder = holder[step]
    kind = random.randrange(8)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{last}{_TWICE}"] = strange_value(random)
    elif kind == 1:
        holder.insert(last, copy.deepcopy(holder[last]))
    elif kind == 2 and isinstance(holder, dict):
        holder[random.choice((*_STRANGE_TEXTS, *holder))] = holder.pop(last)
    elif kind in (2, 3):
        holder[last] = _near(holder[last], random)
    elif kind == 4:
        holder[last] = copy.deepcopy(_at(value, random.choice(places)))
    else:
        holder[last] = strange_value(random)
    return value


def _near(value: Any, random: Random) -> Any:
    """A value of the same type, or the same value as another type."""
    if isinstance(value, bool):
        return random.choice((not value, str(value), int(value)))
    if isinstance(value, int) and abs(value) > 2**1000:  # no float holds it
        return str(value)
    if isinstance(value, int | float):
        return random.choice(
            (value + 1, value - 1, -value, value * 2, float(value), str(value), value + 0.5, value * 1000)
        )
    if isinstance(value, str):
        return random.choice((value + random.choice(_STRANGE_TEXTS), value[: len(value) // 2], [value], value.upper()))
    if isinstance(value, list):
        return random.choice((value[::-1], value * 2, value[:-1], value[1:], dict(enumerate(map(str, value)))))
    return [value]


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a value; of long lists the first few only."""
    inside = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:6]
        if isinstance(value, list)
        else []
    )
    return [here, *(place for key, below in inside for place in _places(below, (*here, key)))]


def _at(value: Any, way: Sequence[Any]) -> Any:
    for step in way:
        value = value[step]
    return value


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Truncated, with bits flipped, pieces doubled, removed or put in; or empty."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        at, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
        kind = random.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : min(end, at + 20)]
        elif kind == 2:
            data[at:at] = data[at : min(end, at + 200)]
        elif kind == 3:
            data[at:at] = random.choice(_STRANGE_BYTES)
        elif kind == 4 and random.random() < 0.05:
            data.clear()
        elif data and at < len(data):
            data[at] ^= 1 << random.randrange(8)
    return bytes(data)


def mutated_words(words: Sequence[str], random: Random) -> list[str]:
    """A command line with words left out, doubled, swapped, replaced or changed."""
    words = list(words)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(words) + 1)
        kind = random.randrange(6)
        if kind == 0 and words[at:]:
            del words[at]
        elif kind == 1 and words[at:]:
            words.insert(at, words[at])
        elif kind == 2:
            words.insert(at, strange_text(random))
        elif kind == 3 and words[at:]:
            cut = random.randrange(len(words[at]) + 1)
            words[at] = words[at][:cut] + strange_text(random)[:50] + words[at][cut:]
        elif words[at:]:
            words[at] = strange_text(random)
    # The system hands over no zero bytes, and no arguments of any length.
    return [word.replace("\x00", "")[:100_000] for word in words]
