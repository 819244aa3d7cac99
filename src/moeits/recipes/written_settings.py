"""Settings that somebody wrote in YAML, checked against the function that takes them; keys are its keyword arguments.

Nothing is code there: plain values only, and no key twice.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from moeits.errors import SettingError
from moeits.settings import Flag

_LARGEST = 1 << 20
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping to numbers",
    list: "a list of texts",
}
_PLAIN = {*_WORDS, NoneType}
# Of those that say what they hold: texts in a list, numbers in a mapping.
_GENERIC: Mapping[Any, Any] = {list: list, tuple: list, Sequence: list, dict: dict, Mapping: dict}


def text_of(path: Path, what: str) -> str:
    """What a file says that should be `what`. Raises SettingError."""
    try:
        if path.stat().st_size > _LARGEST:
            raise SettingError(f"{path} is too large for {what}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read as {what}: {getattr(error, 'strerror', None) or error}.") from None


def mapping_of(text: str, path: str | Path, what: str, keys: str) -> dict[str, Any]:
    """The mapping that is written there, with keys such as `keys`; SettingError for anything else."""
    import yaml  # huggingface_hub brings it

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise SettingError(f"{path} has {twice[0]!r:.60} twice. Leave one.")
            return super().construct_mapping(node, deep)

    try:
        written = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        said = " ".join(str(error).split())[:200]
        raise SettingError(f"{path} is not YAML that {what} can be read from: {said}.") from None
    if not isinstance(written, dict) or not all(isinstance(key, str) for key in written):
        raise SettingError(f"{path} should have keys such as {keys}.")
    return written


def checked(
    names: Callable[[str], str],
    given: Mapping[str, Any],
    kinds: Mapping[str, Collection[Any]],
    flags: Mapping[str, Flag],
) -> dict[str, Any]:
    """Values as their function takes them; `kinds` are the types that each may have, `names` says a key in a complaint.

    Raises SettingError for a value of another type.
    """
    values = {}
    for key, value in given.items():
        parse = flags[key].parse if key in flags else None
        if not (parse and isinstance(value, str)):
            _check_kind(names(key), value, kinds[key])
        values[key] = parse(value) if parse and isinstance(value, str) else value
    return values


def kinds_of(annotation: Any) -> set[Any]:
    """The types that a value may have where it is written, by those that a function takes: a path is a text."""
    several = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {_GENERIC.get(get_origin(each), each if each in _PLAIN else str) for each in several}


def _check_kind(what: str, value: Any, kinds: Collection[Any]) -> None:
    """A value is of one of the types. Raises SettingError."""
    known = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in known or not _holds_its_kind(value):
        wanted = " or ".join(word for kind, word in _WORDS.items() if kind in known)
        quoted = " Write it in quotes." if str in known and isinstance(value, int | float) else ""
        raise SettingError(f"{what} should be {wanted}; it is {value!r:.60}.{quoted}")


def _holds_its_kind(value: Any) -> bool:
    """Whether a list is of texts and a mapping is from texts to numbers; true of anything else."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and type(each) in (int, float) for key, each in value.items())
    return not isinstance(value, list) or all(isinstance(each, str) for each in value)
