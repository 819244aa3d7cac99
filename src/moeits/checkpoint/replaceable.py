"""What moeits may replace or remove: an empty folder, or a checkpoint that it made, with nothing else in its folder.

A folder is removed as a whole, so whatever no checkpoint has (notes, results, a repository) stops it, by name. That
moeits made a checkpoint is known by the plan or the record of a healing that lies in it.
"""

import shutil
from pathlib import Path

from moeits.checkpoint.parts import FOLDERS, INDEX_NAME, SINGLE_NAME, is_part, names_a_model
from moeits.checkpoint.side_code import code_files
from moeits.errors import OutputError
from moeits.files import is_artefact

_MARKS = ("plan.json", "healing.json")


def check_replaceable(output: Path) -> None:
    """What is there is an empty folder, or a checkpoint of moeits with nothing else in it. Raises OutputError."""
    why = why_not_ours(output)
    if why is not None:
        raise OutputError(f"{output} {why}, so --overwrite does not replace it. Choose another --output.")


def remove_checkpoint(folder: Path) -> bool:
    """Remove a checkpoint that moeits made; whether it is gone. Anything else stays as it is."""
    if why_not_ours(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def why_not_ours(folder: Path) -> str | None:
    """Why a folder is neither empty nor a checkpoint of moeits alone, to follow its name; None if it is."""
    if folder.is_symlink() or not folder.is_dir():
        return "is not a checkpoint"
    if not any(folder.iterdir()):
        return None
    foreign = _foreign_entry(folder)
    if not _has_model(folder):
        return "is not a checkpoint"
    if foreign is not None:
        return f"holds {foreign}, which is not part of a checkpoint"
    if not any(is_artefact(folder / name) for name in _MARKS):
        return "is not a checkpoint that moeits made"
    return None


def _has_model(folder: Path) -> bool:
    """Whether a folder holds tensors, and a config.json that says of which model."""
    return names_a_model(folder) and any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME))


def _foreign_entry(folder: Path) -> str | None:
    """The first file or folder that belongs to no checkpoint, by its name."""
    code = code_files(folder)  # of its tokenizer, under any name
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name not in FOLDERS if is_folder else not (is_part(name) or name in code):
            return name
    return None
