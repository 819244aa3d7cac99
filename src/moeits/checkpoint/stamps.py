"""Sizes and times of files, which tell whether somebody wrote to them since."""

from collections.abc import Sequence
from pathlib import Path

from moeits.errors import CheckpointError

Stamps = tuple[tuple[str, int, int], ...]


def stamps_of(files: Sequence[Path]) -> Stamps:
    """Name, bytes and time of the last change (ns) of every file; -1 bytes where there is none any more."""
    return tuple((path.name, *_size_and_time(path)) for path in files)


def check_stamps(files: Sequence[Path], before: Stamps) -> None:
    """The files are as they were; those without stamps are not looked at. Raises CheckpointError if they changed."""
    changed = sorted({stamp[0] for stamp in set(before) ^ set(stamps_of(files))}) if before else []
    if changed:
        raise CheckpointError(
            f"{files[0].parent} changed while it was read: {', '.join(changed[:3])}. Wait until nothing writes to it, "
            "then start again."
        )


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
