"""The one door through which every small artefact is written: complete or not at all, and never over what is not ours.

Evidence, plans, results, footprints, comparisons, reports, the ledger and finished work go through `write_whole`.
"""

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from moeits.checkpoint.parts import FOLDERS, is_checkpoint, is_part
from moeits.errors import OutputError
from moeits.locks import can_tell, lock

_LONGEST_JSON = 1 << 30
_TEMPORARY = re.compile(r"[0-9a-f]{16}\.writing")
# The fields that tell JSON of moeits: most of it says its kind; a plan and the record of a healing do not.
_MARKS = ({"kind"}, {"kept", "fingerprint"}, {"recipe_name", "fingerprint"})


def write_whole(path: Path, content: bytes, *, inputs: Iterable[Any] = (), card_of: Path | None = None) -> None:
    """Write a small file so that it is either complete or not there, under a temporary name that no other process has.

    What is not a regular file (a pipe, /dev/null) is written to and stays what it is; a link stays a link. `card_of` is
    a checkpoint whose own card this is. Raises OutputError if it cannot be written, and where `check_file_output` does.
    """
    check_file_output(path, inputs=inputs, card_of=card_of)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        _replace(path.resolve() if path.is_symlink() else path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {_reason(error)}. Choose another --output.") from None


def check_file_output(path: Path, *, inputs: Iterable[Any] = (), card_of: Path | None = None) -> None:
    """Whether a small file may be written here. Raises OutputError where it would take the place of something.

    That is: a folder; one of the `inputs` of the same command, a file within one of them that moeits did not write, or
    anything at all within those of them that are checkpoints; a file of any checkpoint, or a file in its folder that
    moeits did not write; anything in the hub's cache. `inputs` are files and folders; what is not a path, or not there,
    is passed over.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder. Give the name of a file to --output, such as {path}.json.")
        real = path.resolve()
        for source in _paths(inputs):
            _check_input(path, real, source)
        for place in dict.fromkeys((Path(os.path.abspath(path)), real)):  # noqa: PTH100 - resolve follows links
            _check_place(path, place, card_of)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a NUL
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} cannot be written: {_reason(error)}. Choose another --output.") from None


def _paths(inputs: Iterable[Any]) -> Iterator[Path]:
    for item in inputs:
        if isinstance(item, str | Path) and os.path.exists(item):  # noqa: PTH110 - a str may be anything
            yield Path(item)


def _check_input(path: Path, real: Path, source: Path) -> None:
    """Neither an input itself, nor within a source checkpoint or one of the files that it links to."""
    if real.exists() and real.samefile(source):
        raise OutputError(f"{path} is what the output is made from. Choose another --output.")
    if not source.is_dir():
        return
    folder = source.resolve()
    if not is_checkpoint(source):
        if folder in real.parents and real.exists() and not is_artefact(real):
            raise OutputError(f"{path} lies in {source}, from which the output is made. Choose another --output.")
        return
    if folder in real.parents or any(real == entry.resolve() for entry in folder.iterdir()):
        raise OutputError(f"{path} lies in the source {source}, which is never touched: choose another --output.")


def _check_place(path: Path, place: Path, card_of: Path | None) -> None:
    """Nothing of a checkpoint is replaced, in a folder or in the hub's cache."""
    if place.parent.name == "blobs" and (place.parent.parent / "snapshots").is_dir():
        raise OutputError(f"{path} is a file of the hub's cache, which is not written over. Choose another --output.")
    if not os.path.lexists(place) or (card_of is not None and place.parent.samefile(card_of)):
        return
    for folder in (place.parent, place.parent.parent):
        name = place.relative_to(folder).as_posix()
        in_folder = "/" not in name or name.rpartition("/")[0].lower() in FOLDERS
        if in_folder and is_checkpoint(folder) and (is_part(name) or not is_artefact(place)):
            raise OutputError(f"{path} is a file of a checkpoint, which is not written over. Choose another --output.")


def is_artefact(path: Path) -> bool:
    """Whether moeits wrote this file: its mark is in the JSON, or in the metadata of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length < min(path.stat().st_size, _LONGEST_JSON):
                return "moeits" in json.loads(file.read(length))["__metadata__"]
        value = json.loads(path.read_bytes())
        return type(value["format"]) is int and any(mark <= set(value) for mark in _MARKS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _replace(path: Path, content: bytes) -> None:
    # Cut, as the name itself may be as long as the file system allows.
    stem = f".{path.name[:40]}."
    _remove_left_over(path.parent, stem)
    partial, file = _temporary_file(path.parent, stem)
    try:
        with file:
            file.write(content)
            file.flush()
            partial.replace(path)
    except BaseException:
        with suppress(OSError):  # what could not be written is mostly not there
            partial.unlink()
        raise


def _temporary_file(folder: Path, stem: str) -> tuple[Path, BinaryIO]:
    """A new file that is locked while it is written, so that nobody takes it for left over."""
    while True:
        path = folder / f"{stem}{secrets.token_hex(8)}.writing"
        file = path.open("xb")
        # Between the two lines before this one another process may have locked it, or even removed it.
        if lock(file) and path.exists():
            return path, file
        file.close()


def _remove_left_over(folder: Path, stem: str) -> None:
    """Remove temporary files of killed runs: of a name that only moeits gives, and held by no process."""
    names: list[str] = []
    with suppress(OSError):  # a folder may be written to, but not listed
        names = [path.name for path in folder.iterdir()] if can_tell() else []
    for name in names:
        if name.startswith(stem) and _TEMPORARY.fullmatch(name[len(stem) :]):
            with suppress(OSError), (folder / name).open("rb+") as file:
                if lock(file):
                    (folder / name).unlink()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
