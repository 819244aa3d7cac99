"""Finished parts of work that is under way, so that a run that was killed goes on where it was. The one store of such.

    OUTPUT.partial/moeits.json               the mark: who works here; locked while the process lives
    OUTPUT.partial/KEY/layer-3.safetensors   a finished part: arrays, or a JSON value (NAME.json)

KEY is made of all that the numbers of the parts depend on: settings, fingerprint, sizes and times of the shards. Each
part is written whole or not at all, with its SHA-256: a damaged one was not finished. The folder goes when its output
is complete, and with it what killed runs with other settings left there. A run that fails before it has finished
anything leaves nothing. There is no other cache anywhere.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moeits.checkpoint.writing import why_not_written
from moeits.errors import OutputError
from moeits.files import write_whole
from moeits.locks import can_tell, lock
from moeits.progress import Note, Progress, silent

# Goes up whenever a release computes other numbers from the same weights and settings, or keeps them in another way.
FORMAT = 2
_MARK, _SCRATCH, _KIND = "moeits.json", "scratch", "finished parts"
_KEY = re.compile(r"[0-9a-f]{16}")


class FinishedParts:
    """What is finished of one piece of work, by name; nothing at all where there is no place to keep it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part, if an earlier run of the same work finished it."""
        from safetensors import SafetensorError, safe_open

        path = self._path(name, "safetensors")
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                whole = (file.metadata() or {}).get("sha256") == _sha256(arrays)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # a machine that lost its power can leave an empty file: that part was not finished
        return arrays if whole else None

    def keep_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a finished part. Raises OutputError if they cannot be written."""
        from safetensors.numpy import save

        if path := self._path(name, "safetensors"):
            self._write(path, save(dict(arrays), metadata={"sha256": _sha256(arrays)}))

    def value(self, name: str, **depends_on: Any) -> dict[str, Any] | None:
        """The JSON value of a part, which may depend on more than the whole work does."""
        path = self._path(_with_key(name, depends_on), "json")
        if path is None or not path.exists():
            return None
        try:
            kept = json.loads(path.read_bytes())
            whole = kept["sha256"] == _key(kept["value"]) and isinstance(kept["value"], dict)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return kept["value"] if whole else None

    def keep_value(self, name: str, value: Mapping[str, Any], **depends_on: Any) -> None:
        """Keep the JSON value of a finished part. Raises OutputError if it cannot be written."""
        if path := self._path(_with_key(name, depends_on), "json"):
            value = json.loads(json.dumps(value))  # as it will be read: a tuple becomes a list, a key a text
            self._write(path, json.dumps({"sha256": _key(value), "value": value}).encode())

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(why_not_written(path.parent, error)) from None
        write_whole(path, content)

    def _path(self, name: str, suffix: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.{suffix}"


class Workplace:
    """The folder beside an output that is being made."""

    def __init__(
        self, folder: Path | None, *, taken_over: bool = False, fresh: bool = False, progress: Progress = silent
    ) -> None:
        """`taken_over` from a run that was killed: otherwise what is in the folder is not ours."""
        self._folder, self._taken_over, self._fresh, self._progress = folder, taken_over, fresh, progress
        self._keys: set[str] = set()

    def parts(self, **depends_on: Any) -> FinishedParts:
        """What is finished of the work whose numbers depend on these values, and on nothing else."""
        if self._folder is None:
            return FinishedParts(None)
        if self._fresh:  # only now, when all that was asked for has been looked at
            self.forget_all()
            self._fresh = False
        key = _key([FORMAT, depends_on])
        self._keys.add(key)
        if count := len([*(self._folder / key).glob("*")]):
            self._say(f"going on after an interrupted run, which left {count} finished parts in {self._folder}.")
        return FinishedParts(self._folder / key)

    def kept(self) -> set[str]:
        """Keys of all work of which something is finished."""
        if self._folder is None or not self._folder.is_dir():
            return set()
        keys = {path.name for path in self._folder.iterdir() if _KEY.fullmatch(path.name) and path.is_dir()}
        return keys if self._taken_over else keys & self._keys

    def scratch(self) -> Path:
        """A folder for what does not fit into memory, gone with this run; the current one where nothing is kept."""
        if self._folder is None:
            return Path.cwd()
        self.clear_scratch()  # of a run that was killed
        return self._folder / _SCRATCH

    def clear_scratch(self) -> None:
        """Remove what did not fit into memory."""
        if self._folder is not None:
            shutil.rmtree(self._folder / _SCRATCH, ignore_errors=True)

    def forget(self) -> None:
        """Remove what was finished of the work of this run."""
        self._remove(self._keys)

    def forget_all(self) -> None:
        """Remove what was finished of any work, by whichever run."""
        if self.kept() - self._keys:
            self._say(f"removed what interrupted runs with other settings had finished in {self._folder}.")
        self._remove(self.kept())

    def _remove(self, keys: set[str]) -> None:
        if self._folder is not None:
            for key in keys:
                shutil.rmtree(self._folder / key, ignore_errors=True)

    def _say(self, what: str) -> None:
        self._progress(Note(what), 1, 1)


@contextmanager
def workplace(
    output: Path | None, *, fresh: bool = False, forget_on: type[Exception] | None = None, progress: Progress = silent
) -> Iterator[Workplace]:
    """Where parts of an output are kept until it is complete, which it is when the block ends well.

    `fresh` forgets what earlier runs finished; an error of the kind `forget_on` what this one did. Without an output,
    or beside a pipe or /dev/null, nothing is kept. Raises OutputError if another process works on this output, or if
    it cannot be written.
    """
    if output is None or (output.exists() and not output.is_file() and not output.is_dir()):
        yield Workplace(None)
        return
    folder = output.with_name(output.name + ".partial")
    missing = [parent for parent in folder.absolute().parents if not parent.exists()]
    mark, taken_over = _begin(folder, output, missing)
    place = Workplace(folder, taken_over=taken_over, fresh=fresh, progress=progress)
    try:
        with mark:
            try:
                yield place
                place.forget_all()
            except BaseException as error:
                if forget_on is not None and isinstance(error, forget_on):
                    place.forget()
                raise
            finally:
                if can_tell():  # under the lock, so that nobody else has begun here
                    _end(folder, place, missing)
    finally:
        if not can_tell():
            _end(folder, place, missing)


def forget_finished(output: Path) -> None:
    """Remove what interrupted runs have finished of an output. Raises OutputError if a run works on it."""
    if output.with_name(output.name + ".partial").is_dir():
        with workplace(output):
            pass


def _begin(folder: Path, output: Path, missing: list[Path]) -> tuple[BinaryIO, bool]:
    """Make the folder, or take over what a killed run left of it. Its mark is open, and locked, from here on."""
    path = folder / _MARK
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk does not take is said here, and not when the file is closed.
            mark: BinaryIO = path.open("ab+", buffering=0)
            try:
                before = _take(mark, output)
                if _is_at(mark, path):
                    _check_ours(folder, before)
                    mark.truncate(0)
                    mark.write(json.dumps({"kind": _KIND, "format": FORMAT, "process": os.getpid()}).encode())
                    return mark, before.get("kind") == _KIND
            except BaseException:
                mark.close()
                raise
            mark.close()  # whoever had it ended, and removed it, in between
    except OSError as error:
        _remove_empty(folder, missing)
        raise OutputError(why_not_written(folder if folder.is_file() else output, error)) from None


def _check_ours(folder: Path, before: Mapping[str, Any]) -> None:
    """A folder of this name is ours by its mark, or by holding nothing else than we put there. Raises OutputError.

    A kill while the mark was written leaves an empty or a cut one.
    """
    known = {_MARK, _SCRATCH}
    foreign = any(path.name not in known and not _KEY.fullmatch(path.name) for path in folder.iterdir())
    if before.get("kind") == _KIND or (not foreign and before.keys() <= {"format", "process"}):
        return
    if (folder / _MARK).stat().st_size == 0:
        (folder / _MARK).unlink()
    raise OutputError(f"{folder} was not made by moeits. Move it, or choose another --output.")


def _take(mark: BinaryIO, output: Path) -> dict[str, Any]:
    """Lock a mark; gives what it said before. Raises OutputError if another process holds it."""
    taken = lock(mark)
    mark.seek(0)
    before = _read_mark(mark.read())
    if not taken:
        raise OutputError(
            f"{output} is being made by another run (process {before.get('process', 'unknown')}). Wait for it, or "
            "choose another --output."
        )
    return before


def _end(folder: Path, place: Workplace, missing: list[Path]) -> None:
    """Remove the folder, and those above that were made for it, unless something finished is in it."""
    place.clear_scratch()
    if not place.kept():
        _remove_empty(folder, missing)


def _remove_empty(folder: Path, above: list[Path]) -> None:
    with suppress(OSError):
        (folder / _MARK).unlink()
    for path in (folder, *above):
        with suppress(OSError):  # something else is in it
            path.rmdir()


def _read_mark(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _with_key(name: str, depends_on: Mapping[str, Any]) -> str:
    """A file's name for a part, whatever a stranger called it."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:60]}-{_key([name, depends_on])}"


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
