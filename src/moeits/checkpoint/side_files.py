"""What belongs to a checkpoint beside its tensors and its config: tokenizer, chat template, generation config, licence.

Modelling code, other weight formats and training leftovers are not copied.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moeits.checkpoint.parts import SIDE_FILES, matches
from moeits.checkpoint.reading import read_json
from moeits.checkpoint.writing import CheckpointWriter
from moeits.surgery.pruned_config import LOADER_FILE


def copy_side_files(
    folder: Path, writer: CheckpointWriter, *, rewritten: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> list[str]:
    """Copy what belongs to the checkpoint; returns the names of code files that were left out.

    `rewritten` are the JSON files that are not copied but written with these values.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".py" or not path.is_file() or not matches(name, SIDE_FILES):
            continue
        if name in rewritten:
            writer.write_json(name, rewritten[name])
        elif name == "tokenizer_config.json" and "auto_map" in (config := read_json(path)):
            # It names tokenizer code that is left out; with it, loading would look for that code.
            writer.write_json(name, {key: value for key, value in config.items() if key != "auto_map"})
        else:
            writer.copy(path, name)
    return sorted(path.name for path in folder.glob("*.py") if path.name != LOADER_FILE)
