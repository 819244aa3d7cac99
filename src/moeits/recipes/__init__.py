"""recipe.yaml: from a model to a report in one file, each step by the settings of its command.

    model: MODEL
    output: RUN
    simplify: {reduction: 0.5}
    refit: {data: bundled}
    evaluate: {perplexity: texts.jsonl}
    report:

Keys are the keyword arguments of the stage functions, so what a command learns a recipe knows. Nothing of it is run
before all of it was read.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.errors import SettingError
from moeits.recipes.written_settings import checked, kinds_of, mapping_of, text_of
from moeits.settings import check_settings, did_you_mean, flags_of

OF_THE_WHOLE = ("model", "output")
STEPS = ("simplify", "refit", "heal", "evaluate", "report")
NAME = "recipe.yaml"
# What a run gives each step itself, and what belongs to a single call.
_OF_THE_RUN = {
    *("model", "output", "parent", "runs", "card", "progress"),
    *("dry_run", "overwrite", "fresh", "resume", "force", "revision", "architecture", "stream"),
}
_SECTIONS = {"simplify": {"refit", "heal", "recipe"}}
"""Keyword arguments of a step that have a section of their own."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file says, checked against the commands."""

    text: str
    """As it is written."""
    model: str
    output: Path | None
    steps: Mapping[str, Mapping[str, Any]]
    """Step -> its keyword arguments, in the order of the steps."""


def read_recipe(path: str | Path, stages: Mapping[str, Callable[..., Any]]) -> Recipe:
    """Read and check a recipe; `stages` are the functions of the steps.

    Raises SettingError for what cannot be read as one, for unknown keys, with the nearest known, and for two models.
    """
    text = text_of(Path(path), "a recipe")
    written = mapping_of(text, path, "a recipe", "model and simplify")
    known = (*OF_THE_WHOLE, *STEPS)
    for key in written:
        if key not in known:
            raise SettingError(f"{path} has a key {key!r:.60}.{did_you_mean(key, known)} Known: {', '.join(known)}.")
    steps = {name: _step(path, name, written[name], stages[name]) for name in STEPS if name in written}
    model, output = written.get("model"), written.get("output")
    if not isinstance(model, str) or not model:
        raise SettingError(f"{path} should name one model, a folder or a hub id, as in: model: org/name")
    if output is not None and not isinstance(output, str):
        raise SettingError(f"output in {path} should be the name of a folder.")
    if "simplify" not in steps:
        raise SettingError(f"{path} has no simplify, which makes what all other steps need.")
    return Recipe(text=text, model=model, output=Path(output) if output else None, steps=steps)


def _step(path: str | Path, name: str, written: Any, stage: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of one step; nothing and true stand for those that the command has by default."""
    given = {} if written is None or written is True else written
    if not isinstance(given, dict):
        raise SettingError(f"{name} in {path} should have the flags of `moeits {name}`, such as {name}: {{seed: 1}}.")
    own = _SECTIONS.get(name, set())
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(stage).parameters.items()
        if key not in _OF_THE_RUN and key not in own
    }
    for key in given:
        if key == "model":
            raise SettingError(f"{path} names a model for {name} too: a recipe is of one model, the one at its top.")
        if key in own:
            raise SettingError(f"{key} of {name} in {path} is said by a section heal or refit of its own.")
        if key in _OF_THE_RUN:
            raise SettingError(f"{name} in {path} cannot have {key}: the run sets it.")
        if key not in parameters:
            raise SettingError(f"{name} in {path} has no setting {key!r:.60}.{did_you_mean(key, parameters)}")
    kinds = {key: kinds_of(parameter.annotation) for key, parameter in parameters.items()}
    values = checked(lambda key: f"{name}.{key} in {path}", given, kinds, flags_of(stage))
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise SettingError(f"{name} in {path} lacks {key}.")
    check_settings(stage, values)
    return values
