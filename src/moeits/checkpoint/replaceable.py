"""What --overwrite may replace: a model checkpoint with nothing else in its folder, or an empty folder.

A folder is removed as a whole, so whatever no checkpoint has (notes, results, a repository) stops it, by name.
"""

import json
from fnmatch import fnmatch
from pathlib import Path

from moeits.checkpoint.reading import INDEX_NAME, SIDE_FILES, SINGLE_NAME
from moeits.errors import OutputError

# As this package and transformers write a checkpoint.
_PARTS_OF_A_CHECKPOINT = (
    "config.json",
    "model*.safetensors",
    INDEX_NAME,
    "README.md",
    ".gitattributes",
    "plan.json",
    "healing.json",
    "modeling_*.py",
    "configuration_*.py",
    "adapter/README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    *SIDE_FILES,
)


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
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    names_a_model = isinstance(config, dict) and isinstance(config.get("model_type"), str)
    return names_a_model and any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME))


def _foreign_entry(folder: Path) -> str | None:
    """The first file or folder that belongs to no checkpoint, by its name."""
    folders = {pattern.rpartition("/")[0] for pattern in _PARTS_OF_A_CHECKPOINT}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name not in folders if is_folder else not _is_part(name):
            return name
    return None


def _is_part(name: str) -> bool:
    # A pattern's star also stands for a slash.
    return any(
        fnmatch(name.lower(), pattern.lower()) and name.count("/") == pattern.count("/")
        for pattern in _PARTS_OF_A_CHECKPOINT
    )
