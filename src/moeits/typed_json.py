"""JSON files of strangers, read by type: what comes out of here is what its type says, or a sentence was raised.

A format is described once, as a type (a dataclass, a msgspec Struct, `dict[str, float]`), beside the noun that it
holds; fields that the type does not name are passed over, so that a newer file is read by an older program. Nothing
that JSON allows and Python chokes on gets through: text that is not UTF-8, half of a surrogate pair, numbers too large
for a float, nesting without end.
"""

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from moeits.errors import MoeitsError

Typed = TypeVar("Typed")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""How many of something. JSON has integers of any length, and a float overflows at 310 digits."""

MOST_BYTES = 2**26

_LONGEST_REASON = 120


class NotOfItsType(ValueError):
    """JSON that is not what its type says; the message is one short line that ends in the place (`$.points[3].tau`)."""


class _Heading(msgspec.Struct):
    """What a file of moeits says of itself."""

    kind: str | None = None
    format: Any = None


def read_typed(
    path: str | Path,
    of: type[Typed],
    *,
    error: type[MoeitsError],
    what: str,
    remedy: str,
    missing: str | None = None,
    kind: str | None = None,
    format: int | None = None,
    most_bytes: int = MOST_BYTES,
) -> Typed:
    """The JSON value of a file, of type `of`.

    Raises `error`: `missing` if there is no such file, otherwise "PATH is not `what`: why. `remedy`". With `kind` and
    `format` the file must say those of itself. NaN and infinity are not JSON, and refused.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise error(missing or f"There is no {path}. {remedy}") from None
    except (OSError, ValueError) as reason:  # ValueError: a name with a zero in it
        raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}. {remedy}") from None
    try:
        if len(text) > most_bytes:
            raise NotOfItsType(f"it is larger than {most_bytes:,} bytes")
        if kind is not None or format is not None:
            _check_heading(decode_typed(text, _Heading), kind, format)
        return decode_typed(text, of)
    except NotOfItsType as reason:
        raise error(f"{path} is not {what}: {reason}. {remedy}") from None


def decode_typed(text: bytes | str, of: type[Typed]) -> Typed:
    """A JSON text as a value of type `of`. Raises NotOfItsType."""
    try:
        return msgspec.json.decode(text, type=of)
    except RecursionError:
        raise NotOfItsType("it is nested too deeply") from None
    except msgspec.ValidationError as error:
        _refuse(error)
    except (msgspec.DecodeError, ValueError):
        _refuse(_why_malformed(text))


def convert_typed(value: object, of: type[Typed]) -> Typed:
    """A value that was read already (JSON within JSON, YAML) as one of type `of`. Raises NotOfItsType."""
    try:
        return msgspec.convert(value, type=of, str_keys=True)
    except RecursionError:
        raise NotOfItsType("it is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        _refuse(error)


def _why_malformed(text: bytes | str) -> Exception:
    """Why a text is not JSON, as Python's reader says it: with the line, and of NaN by name."""

    def constant(name: str) -> NoReturn:
        raise ValueError(f"it holds {name}, which is not a number")

    try:
        value = json.loads(text, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return ValueError("it holds half of a surrogate pair, which is not a character")
    except (ValueError, RecursionError) as error:
        return error
    return ValueError("it is not JSON")


def _check_heading(heading: _Heading, kind: str | None, format: int | None) -> None:
    if kind is not None and heading.kind != kind:
        raise NotOfItsType("it does not say so" if heading.kind is None else f"it says it is {heading.kind!r:.40}")
    if format is not None and heading.format != format:
        named = "no format" if heading.format is None else f"format {heading.format!r:.40}"
        raise NotOfItsType(f"it has {named}, and this moeits reads format {format}")


def _refuse(error: Exception) -> NoReturn:
    """The reason in one short line: msgspec quotes no more than a type and a place, Python may quote the input."""
    reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error).partition("\n")[0].rstrip(".")
    raise NotOfItsType(_shortened(reason[:1].lower() + reason[1:])) from None


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
