"""`--config FILE`: flags of one command from a YAML file, or from the section of that command's name in a recipe.

Keys are the names of flags, with `_` or `-`. What the command line says as well wins.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

import moeits
from moeits.command_line.flags import WAYS, flag
from moeits.errors import SettingError
from moeits.recipes import OF_THE_WHOLE
from moeits.recipes.written_settings import checked, kinds_of, mapping_of, text_of
from moeits.settings import did_you_mean, flags_of

WHAT = "a config file"


def takes_config(stage: Callable[..., Any]) -> Callable[[typer.Context, Path | None], None]:
    """What typer calls with the value of --config: the file's values become the command's defaults."""

    def configured(context: typer.Context, config: Path | None) -> None:
        if config is not None:
            context.default_map = configured_by(config, stage)

    return configured


def configured_by(path: Path, stage: Callable[..., Any]) -> dict[str, Any]:
    """What a config file says for the command of a stage, by name of the argument.

    Raises SettingError for what cannot be read as one, an unknown key, with the nearest known, and a value of another
    type.
    """
    command = stage.__name__.replace("_", "-")
    given = _of_command(path, stage.__name__)
    parameters = {name: each for name, each in inspect.signature(stage).parameters.items() if name != "progress"}
    annotations = {name: get_args(flag(stage, name))[0] for name in [*parameters, *WAYS]}
    for key in given:
        if key not in annotations:
            near = did_you_mean(key, annotations)
            raise SettingError(f"{path} has a key {key!r:.60}, but moeits {command} has no such flag.{near}")
    kinds = {name: kinds_of(annotation) for name, annotation in annotations.items()}
    for name, parameter in parameters.items():
        kinds[name] |= kinds_of(parameter.annotation)
    said = {key: value for key, value in given.items() if value is not None}
    values = checked(lambda key: f"{key} in {path}", said, kinds, flags_of(stage))
    return {name: _as_typed(value, annotations[name]) for name, value in values.items()}


def _of_command(path: Path, name: str) -> Mapping[str, Any]:
    """What a file has for a command, by name of the argument: all of it, or the section of that name."""
    given = mapping_of(text_of(path, WHAT), path, WHAT, "output")
    sections = sorted({name, name.replace("_", "-")} & given.keys())
    if len(sections) > 1:
        raise SettingError(f"{path} has both {' and '.join(sections)}. Leave one.")
    for section in sections:
        _check_beside(path, section, given)
        given = {} if given[section] is None else given[section]
        if not isinstance(given, dict):
            raise SettingError(f"{section} in {path} should have flags below it, such as {section}: {{json: true}}.")
    named: dict[str, Any] = {}
    for key, value in given.items():
        if (plain := str(key).replace("-", "_")) in named:
            raise SettingError(f"{path} has {plain!r:.60} twice. Leave one.")
        named[plain] = value
    return named


def _check_beside(path: Path, section: str, given: Mapping[str, Any]) -> None:
    """Beside a section stand others, and what a recipe has for all of them. Raises SettingError for anything else."""
    sections = {name for name in moeits.__all__ if name.islower()} - {"__version__", "load"}
    known = [*OF_THE_WHOLE, *sorted({*sections, *(name.replace("_", "-") for name in sections)})]
    for key in given:
        if key not in known:
            raise SettingError(
                f"{path} has {key!r:.60} beside {section}, where only other commands may stand: "
                f"put a flag of {section} below it.{did_you_mean(key, known)}"
            )


def _as_typed(value: Any, annotation: Any) -> Any:
    """As a command line would give it: one text, with commas, unless the flag itself is a list."""
    if get_origin(annotation) is list:
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) and annotation is not dict else value
