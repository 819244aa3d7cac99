"""Settings, written once: a field of a frozen dataclass is a keyword argument, and so a flag.

    @dataclass(frozen=True, kw_only=True)
    class Scoring:
        bins: str = setting("auto", help="Bins of a weight's histogram: auto, or a number.", panel=EXPERT)

    @with_settings
    def score(model: str, *, scoring: Scoring, fresh: bool = False) -> Evidence: ...

is called as `score(model, bins=64)`, and `--bins` appears at the command line by itself. Whoever already has a
`Scoring` passes it as `scoring=`.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

from moeits.errors import SettingError

# Panels of --help, in the order in which they are shown.
PANELS = ("What to remove", "What to ask", "At every point", "Scoring", "Healing", "Output", "Cost", "Expert")
WHAT, ASKED, POINTS, SCORING, HEALING, OUTPUT, COST, EXPERT = PANELS

S = TypeVar("S")


class Given(dict[str, Any], Generic[S]):
    """Of the settings `S` those that were given; the others keep a default that is not known here.

    As a parameter's annotation: every field becomes a keyword argument whose default is None.
    """


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What `--help` says of a setting."""

    help: str
    panel: str = EXPERT
    choices: tuple[str, ...] = ()
    """The values it may have; the function itself refuses another. A flag with a single choice is not shown."""
    metavar: str | None = None
    shown_default: str | None = None
    """What is said of a default of None."""
    parse: Callable[[str], Any] | None = None
    """Text of a command line -> the value, where the type does not say."""
    negatable: bool = False
    """Of a switch: whether it can also be switched off, by --no-..."""


def setting(default: Any, *, help: str, **facts: Any) -> Any:
    """A field of a settings dataclass; `facts` are those of a `Flag`."""
    return field(default=default, metadata={"flag": Flag(help=help, **facts)})


def same_as(settings: type, name: str, **differing: Any) -> Any:
    """A field that other settings have as well, described once; `differing` are facts of its `Flag` that are not alike.

    `default` among them is another default.
    """
    other = next(each for each in fields(settings) if each.name == name)
    default = differing.pop("default", other.default)
    return field(default=default, metadata={"flag": replace(other.metadata["flag"], **differing)})


def at_least(name: str, value: int | None, least: int) -> None:
    """A setting is not smaller than it can be. Raises SettingError."""
    if value is not None and value < least:
        raise SettingError(f"--{name.replace('_', '-')} {value} is out of range: give {least} or more.")


@dataclass(frozen=True)
class Keyword:
    """One keyword argument of a function that takes settings."""

    name: str
    annotation: Any
    default: Any
    flag: Flag | None
    """None if the field does not describe itself."""


def keywords_of(settings: type, *, known_default: bool = True) -> list[Keyword]:
    """The fields of a settings dataclass as keyword arguments; without a known default, each may be None."""
    hints = get_type_hints(settings)
    return [
        Keyword(
            name=each.name,
            annotation=hints[each.name] if known_default else hints[each.name] | None,
            default=_default(each) if known_default else None,
            flag=each.metadata.get("flag"),
        )
        for each in fields(settings)
        if each.init
    ]


@functools.cache  # asked for once per flag, and the hints of a signature take their time
def flags_of(function: Callable[..., Any]) -> dict[str, Flag]:
    """The flags that the settings of a function describe, by name of the keyword argument."""
    keywords = (keyword for each in _settings_of(function).values() for keyword in each.keywords())
    return {keyword.name: keyword.flag for keyword in keywords if keyword.flag is not None}


_MOST_DIGITS = 30


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest known name; nothing if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Named(Protocol):
    """What a flag can name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def one_named(name: str, known: Iterable[N], what: str) -> N:
    """The one of that name among `known`, which are called `what`. Raises SettingError, with the nearest known name."""
    by_name = {each.name: each for each in known}
    if name not in by_name:
        raise SettingError(
            f"There is no {what} {name!r:.60}.{did_you_mean(name, by_name)} Known: {', '.join(by_name)}."
        )
    return by_name[name]


def with_settings(function: Callable[..., S]) -> Callable[..., S]:
    """A function whose parameters of a settings dataclass are given field by field, as keyword arguments.

    `help()`, IDEs and the command line see the fields in its signature. Raises SettingError for an unknown name.
    """
    settings = _settings_of(function)
    shown = _flattened(inspect.signature(function), settings)
    known = [name for name, parameter in shown.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def call(*positional: Any, **given: Any) -> S:
        for name in given:
            if name not in shown.parameters and name not in settings:
                raise SettingError(f"{function.__name__} takes no {name!r}.{did_you_mean(name, known)}")
        return function(*positional, **_gathered(given, settings))

    call.__signature__ = shown  # type: ignore[attr-defined]
    call.__annotations__ = {name: parameter.annotation for name, parameter in shown.parameters.items()}
    return call


def check_settings(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Keyword arguments of a function that takes settings are what these allow. Raises what they raise."""
    _gathered(given, _settings_of(function))


@dataclass(frozen=True)
class _Group:
    """A parameter that stands for the fields of a settings dataclass."""

    settings: type
    only_given: bool

    def keywords(self) -> list[Keyword]:
        return keywords_of(self.settings, known_default=not self.only_given)

    def value(self, given: Mapping[str, Any]) -> Any:
        if self.only_given:
            return Given({name: value for name, value in given.items() if value is not None})
        return self.settings(**given)


def _settings_of(function: Callable[..., Any]) -> dict[str, _Group]:
    """The parameters of a function that are settings."""
    groups = {}
    for name, annotation in get_type_hints(inspect.unwrap(function)).items():
        if get_origin(annotation) is Given:
            groups[name] = _Group(get_args(annotation)[0], only_given=True)
        elif isinstance(annotation, type) and is_dataclass(annotation) and _describes_flags(annotation):
            groups[name] = _Group(annotation, only_given=False)
    groups.pop("return", None)
    return groups


def _describes_flags(settings: type) -> bool:
    return any("flag" in each.metadata for each in fields(settings))


def _default(each: "Field[Any]") -> Any:
    if each.default is not MISSING:
        return each.default
    return inspect.Parameter.empty if each.default_factory is MISSING else each.default_factory()


def _flattened(signature: inspect.Signature, settings: Mapping[str, _Group]) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in settings:
            parameters.append(parameter)
            continue
        for keyword in settings[name].keywords():
            parameters.append(
                inspect.Parameter(
                    keyword.name, parameter.KEYWORD_ONLY, default=keyword.default, annotation=keyword.annotation
                )
            )
    names = [parameter.name for parameter in parameters]
    assert len(names) == len(set(names)), f"two settings have one name: {sorted(names)}"
    return signature.replace(parameters=parameters)


def _check_digits(name: str, value: Any) -> None:
    """No setting is a number that a float cannot hold, or that Python refuses to print. Raises SettingError."""
    digits = isinstance(value, str) and len(value) > _MOST_DIGITS and value.strip("+-").isdecimal()
    if digits or (isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS):
        flag = "--" + name.replace("_", "-")
        raise SettingError(f"{flag} is out of range: it is a number of more than {_MOST_DIGITS} digits.")


def _gathered(given: Mapping[str, Any], settings: Mapping[str, _Group]) -> dict[str, Any]:
    """Keyword arguments as the function itself takes them: the fields of each settings dataclass as its value."""
    arguments = dict(given)
    for name, group in settings.items():
        own = {each.name for each in group.keywords()} & arguments.keys()
        for each in own:
            _check_digits(each, arguments[each])
        if name not in arguments:
            arguments[name] = group.value({each: arguments.pop(each) for each in own})
        elif own:
            raise SettingError(f"Give either {name}, or {', '.join(sorted(own))}.")
    return arguments
