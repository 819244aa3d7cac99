"""What a sweep was asked for, as its file says it: data by name and content, never by where they lay on a machine."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moeits.evaluation.tasks import task_names


def facts_of(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a stage as JSON values; None if there are none.

    A file that is here is said by its name and its SHA-256, a data folder by the files of the tasks; so data that have
    changed are other data, whatever their name. What is not here, such as a data set of the hub, keeps its name.
    """
    shown = {}
    for name, value in arguments.items():
        path = Path(value) if name in _PATHS and value is not None else None
        if path is None or not path.exists():
            shown[name] = value if path is None else str(value)
        else:
            files = _files(path, arguments.get("tasks"))
            shown[name] = {"name": path.name, "sha256": _sha256(path, files)}
    return shown or None


_PATHS = ("data", "data_dir", "perplexity")


def _files(path: Path, tasks: str | None) -> list[Path]:
    """The file itself; of a data folder the files of these tasks, or all where a task has no folder of its own."""
    if path.is_file():
        return [path]
    own = [path / name for name in task_names(tasks or "")]
    folders = own if own and all(folder.is_dir() for folder in own) else [path]
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def _sha256(path: Path, files: Iterable[Path]) -> str:
    """SHA-256 of a file; of a folder that of its listing, a line with name and SHA-256 for each file."""
    hashes = {file: _of_file(file) for file in files}
    if path.is_file():
        return hashes[path]
    listing = "".join(f"{file.relative_to(path).as_posix()} {digest}\n" for file, digest in hashes.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
