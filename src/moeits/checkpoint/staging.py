"""The hidden folder in which a checkpoint is written, and what killed runs left of theirs.

    .OUTPUT.xxxx.partial/moeits.json     the mark: who writes; locked while the process lives
    .OUTPUT.xxxx.partial/checkpoint/     what will get the name
    .OUTPUT.xxxx.partial/replaced/       what had it, where two folders cannot change places in one step

The next run on the same output clears away what no process holds any more. A folder without the mark is left alone.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moeits.errors import OutputError
from moeits.locks import can_tell, lock
from moeits.progress import Note, Progress, silent

_MARK, _CHECKPOINT, _REPLACED = "moeits.json", "checkpoint", "replaced"
# Of renameat2(2): both names change places in one step.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A marked hidden folder beside `output`, with an empty `checkpoint` in it; gone when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        with (folder / _MARK).open("wb") as mark:
            lock(mark)
            mark.write(json.dumps({"kind": "writing", "format": 1, "process": os.getpid()}).encode())
            mark.flush()
            (folder / _CHECKPOINT).mkdir()
            yield folder / _CHECKPOINT
    finally:
        _restore(folder, output)
        shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(output: Path, progress: Progress = silent) -> None:
    """Remove what killed runs left beside `output`; a checkpoint that lost its name on the way gets it back.

    Raises OutputError if another run is writing there at this moment.
    """
    if not can_tell() or not output.parent.is_dir():
        return
    for folder in sorted(output.parent.glob(f".{_escaped(output.name)}.*.partial")):
        if not folder.is_dir() or folder.is_symlink():
            continue
        if (process := _living_writer(folder)) is not None:
            raise OutputError(
                f"{output} is being written by another run (process {process}). Wait for it, or choose another "
                "--output."
            )
        if _is_marked(folder):
            _restore(folder, output)
            shutil.rmtree(folder, ignore_errors=True)
            progress(Note(f"removed {folder}, which an interrupted run left half-written."), 1, 1)
        else:
            with suppress(OSError):  # killed before its mark was there: empty, or not ours
                folder.rmdir()


def exchange(partial: Path, output: Path) -> None:
    """Give a finished folder the name of another. Afterwards the other is in the staging folder, to go with it.

    On Linux in one step, so that the name is never without a checkpoint; elsewhere in two, and a kill between them is
    made good by the next run.
    """
    if not _exchanged(partial, output):
        output.rename(partial.with_name(_REPLACED))
        partial.rename(output)


def _exchanged(one: Path, other: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:  # a disk that cannot
        return False
    raise OSError(number, os.strerror(number), str(other))


def _restore(folder: Path, output: Path) -> None:
    """Give the name back to what had it, if nothing has it now."""
    replaced = folder / _REPLACED
    if replaced.is_dir() and not os.path.lexists(output):
        replaced.rename(output)


def _is_marked(folder: Path) -> bool:
    return _mark(folder) is not None


def _mark(folder: Path) -> dict[str, object] | None:
    try:
        value = json.loads((folder / _MARK).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("kind") == "writing" else None


def _living_writer(folder: Path) -> object | None:
    """The process that still writes into a folder; None if there is none."""
    try:
        with (folder / _MARK).open("rb+") as mark:
            if lock(mark):
                return None
    except OSError:
        return None
    return (_mark(folder) or {}).get("process", "unknown")


def _escaped(name: str) -> str:
    """A name for `glob`, which takes some characters for patterns."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
