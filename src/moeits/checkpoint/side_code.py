"""Code that a checkpoint brings for its tokenizer and processor, and for a model that transformers has no class for.

It is copied as text, and never run by moeits.

`tokenizer_config.json` and the configs of processors name it under `auto_map`, as `FILE.Class`; FILE.py may import
other files of the folder. Code of the model itself, which `auto_map` of config.json names, is not among it where the
stock class replaces that. What is named in another repository, `OWNER/NAME--FILE.Class`, is not part of the checkpoint.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moeits.checkpoint.parts import matches
from moeits.errors import CheckpointError
from moeits.experts.families import has_class_on_hub

NAMING = ("tokenizer_config.json", "*processor_config.json")

_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*", re.ASCII)
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+\.(\w+)[ \t]+import\b|from[ \t]+\.[ \t]+import[ \t]+([\w, \t]+))", re.M | re.ASCII
)
_MOST_BYTES, _MOST_FILES = 1 << 20, 50


def code_files(folder: Path, *, of_model: bool | None = None) -> tuple[str, ...]:
    """Names of the code files that tokenizer, processors and such a model need, those that are not there too.

    `of_model` says whether the model is one that needs its code; by default config.json there says it.
    """
    naming = [path for path in folder.glob("*.json") if matches(path.name, NAMING)]
    config = _json(folder / "config.json")
    of_its_model = set(_modules(_named(config)))
    of_others = {module for path in naming for module in _modules(_named(_json(path)))}
    needs_code = _brings_its_class(config) if of_model is None else of_model
    waiting = sorted(of_others | of_its_model if needs_code else of_others - of_its_model)
    needed: list[str] = []
    while waiting and len(needed) < _MOST_FILES:
        name = f"{waiting.pop(0)}.py"
        if name not in needed:
            needed.append(name)
            waiting += _imports(folder / name)
    return tuple(sorted(needed))


def own_auto_map(auto_map: Mapping[str, Any], code: frozenset[str]) -> dict[str, Any]:
    """The entries whose classes all lie in these code files."""
    return {name: entry for name, entry in auto_map.items() if (files := _files_of(entry)) and files <= code}


def _brings_its_class(config: Mapping[str, Any]) -> bool:
    try:
        return has_class_on_hub(config)
    except CheckpointError:  # a description that was edited, which is said where the checkpoint is opened
        return False


def _json(path: Path) -> Mapping[str, Any]:
    """What is in a JSON file; nothing if it cannot be read."""
    try:
        config = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _named(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The code that a JSON file names."""
    auto_map = config.get("auto_map")
    return auto_map if isinstance(auto_map, dict) else {}


def _modules(auto_map: Mapping[str, Any]) -> Iterator[str]:
    for entry in auto_map.values():
        yield from (name.removesuffix(".py") for name in _files_of(entry) or ())


def _files_of(entry: object) -> set[str] | None:
    """The files that an entry of `auto_map` names, of which a tokenizer has two; None if one is not of this folder."""
    references = [each for each in (entry if isinstance(entry, list) else [entry]) if each is not None]
    found = [_REFERENCE.fullmatch(each) if isinstance(each, str) else None for each in references]
    return {f"{match[1]}.py" for match in found if match} if found and all(found) else None


def _imports(path: Path) -> list[str]:
    """Modules of the same folder that a file imports, as text: it is not run, and need not be Python."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [
        name.split()[0]
        for one, several in _IMPORT.findall(text)
        for name in ([one] if one else several.split(","))
        if name.split()
    ]
