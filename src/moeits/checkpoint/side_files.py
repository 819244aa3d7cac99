"""What belongs to a checkpoint beside its tensors and its config: tokenizer, chat template, generation config, licence.

The list of names is in `parts.py`, for folders and the hub alike. Code that a tokenizer needs is copied and never run.
Modelling code, other weight formats and training leftovers are not copied, and no file from elsewhere on this machine.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moeits.checkpoint.parts import SIDE_FILES, matches
from moeits.checkpoint.reading import Checkpoint, read_json
from moeits.checkpoint.side_code import NAMING, code_files, own_auto_map
from moeits.checkpoint.writing import CheckpointWriter
from moeits.errors import CheckpointError
from moeits.experts.families import has_class_on_hub
from moeits.surgery.pruned_config import LOADER_FILE


def copy_side_files(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    *,
    rewritten: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[str]:
    """Copy what belongs to the checkpoint; returns the names of code files that were left out.

    `rewritten` are the JSON files that are not copied but written with these values. Raises CheckpointError as
    `side_files` does, before anything is written.
    """
    files = side_files(checkpoint)
    code = frozenset(name for name in files if name.endswith(".py"))
    for name, path in files.items():
        if name in rewritten:
            writer.write_json(name, rewritten[name])
        elif matches(name, NAMING) and (config := _without_other_code(path, code)) is not None:
            writer.write_json(name, config)
        else:
            writer.copy(path, name)
    return sorted({path.name for path in checkpoint.folder.glob("*.py")} - {LOADER_FILE} - code)


def side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> path of the files beside the tensors that a checkpoint made from this one gets too.

    Raises CheckpointError for a link that leads out of the folder, or nowhere: what is made is made to be shared, and a
    link of a stranger's checkpoint could put any file of this machine into it.
    """
    folder = checkpoint.folder
    code = code_files(folder, of_model=has_class_on_hub(checkpoint.config))
    root = Path(os.path.realpath(folder))
    files = {}
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        wanted = name in code and name != LOADER_FILE if path.suffix == ".py" else matches(name, SIDE_FILES)
        if not wanted:
            continue
        _check_link(path, root)
        if path.is_file():
            files[name] = path
    return files


def _without_other_code(path: Path, code: frozenset[str]) -> dict[str, Any] | None:
    """A JSON file without the names of code that is not copied, which loading would look for; None if it names none."""
    config = read_json(path)
    named = config.get("auto_map")
    if "auto_map" not in config or (isinstance(named, dict) and own_auto_map(named, code) == named):
        return None
    own = own_auto_map(named, code) if isinstance(named, dict) else {}
    rest = {key: value for key, value in config.items() if key != "auto_map"}
    return rest | ({"auto_map": own} if own else {})


def _check_link(path: Path, root: Path) -> None:
    target = Path(os.path.realpath(path))  # unlike Path.resolve, it also takes links that go in a circle
    if path.is_symlink() and not target.exists():
        raise CheckpointError(f"{path} is a link that leads nowhere. Mend or remove it.")
    if root not in target.parents and not _is_blob(target):
        raise CheckpointError(
            f"{path} is a link out of the checkpoint's folder, to a file that may not be meant to be shared. Replace "
            "it by the file itself, or remove it."
        )


def _is_blob(target: Path) -> bool:
    """Whether a file lies in a cache of huggingface_hub, whose snapshots are links to blobs."""
    model = target.parent.parent
    return target.parent.name == "blobs" and model.name.startswith("models--") and (model / "snapshots").is_dir()
