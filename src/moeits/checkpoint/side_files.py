"""What belongs to a checkpoint beside its tensors and its config: tokenizer, chat template, generation config, licence.

Modelling code, other weight formats and training leftovers are not copied, and no file from elsewhere on this machine.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moeits.checkpoint.parts import SIDE_FILES, matches
from moeits.checkpoint.reading import read_json
from moeits.checkpoint.writing import CheckpointWriter
from moeits.errors import CheckpointError
from moeits.surgery.pruned_config import LOADER_FILE


def copy_side_files(
    folder: Path, writer: CheckpointWriter, *, rewritten: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> list[str]:
    """Copy what belongs to the checkpoint; returns the names of code files that were left out.

    `rewritten` are the JSON files that are not copied but written with these values. Raises CheckpointError as
    `side_files` does, before anything is written.
    """
    for name, path in side_files(folder).items():
        if name in rewritten:
            writer.write_json(name, rewritten[name])
        elif name == "tokenizer_config.json" and "auto_map" in (config := read_json(path)):
            # It names tokenizer code that is left out; with it, loading would look for that code.
            writer.write_json(name, {key: value for key, value in config.items() if key != "auto_map"})
        else:
            writer.copy(path, name)
    return sorted(path.name for path in folder.glob("*.py") if path.name != LOADER_FILE)


def side_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the files beside the tensors that a checkpoint made from this one gets too.

    Raises CheckpointError for a link that leads out of the folder, or nowhere: what is made is made to be shared, and a
    link of a stranger's checkpoint could put any file of this machine into it.
    """
    root = Path(os.path.realpath(folder))
    files = {}
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".py" or not matches(name, SIDE_FILES):
            continue
        _check_link(path, root)
        if path.is_file():
            files[name] = path
    return files


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
