"""What --overwrite may replace: a model checkpoint with nothing else in its folder, or an empty folder.

A folder is removed as a whole, so whatever no checkpoint has (notes, results, a repository) stops it, by name.
"""

from pathlib import Path

from moeits.checkpoint.parts import FOLDERS, INDEX_NAME, SINGLE_NAME, is_part, names_a_model
from moeits.errors import OutputError


def check_replaceable(output: Path) -> None:
    """What is there is an empty folder, or a model checkpoint with nothing else in it. Raises OutputError."""
    why = None
    if output.is_symlink() or not output.is_dir():
        why = f"{output} is no checkpoint"
    elif any(output.iterdir()):
        foreign = _foreign_entry(output)
        if not _has_model(output):
            why = f"{output} is no checkpoint"
        elif foreign is not None:
            why = f"{output} holds {foreign}, which is no part of a checkpoint"
    if why is not None:
        raise OutputError(f"{why}, so --overwrite does not replace it. Choose another --output.")


def _has_model(folder: Path) -> bool:
    """Whether a folder holds tensors, and a config.json that says of which model."""
    return names_a_model(folder) and any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME))


def _foreign_entry(folder: Path) -> str | None:
    """The first file or folder that belongs to no checkpoint, by its name."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name not in FOLDERS if is_folder else not is_part(name):
            return name
    return None
