"""Writing a checkpoint: shards of safetensors and small files, all or nothing.

Everything is written into a folder beside the output, which gets its name only when it is complete. Tensors are moved
as bytes, from file to file, so no dtype needs to be understood and no tensor needs to fit into memory.
"""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from moeits.checkpoint.parts import INDEX_NAME, SINGLE_NAME
from moeits.checkpoint.replaceable import check_replaceable
from moeits.checkpoint.sources import Shard, go_to, unreadable
from moeits.checkpoint.staging import clear_leftovers, exchange, staging_folder
from moeits.errors import CheckpointError, OutputError
from moeits.progress import Progress, silent
from moeits.sizes import format_size

_PAGE_BYTES = 4096
# Small enough to stay in the cache between reading and writing. Measured against copy_file_range, which is slower
# wherever the two files are not aligned alike.
# Writes of a mebibyte and more took up to four times as long in every second run here: the kernel then looks for memory
# in pieces of that size.
_BUFFER_BYTES = 512 << 10


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes of a shard that will become (a part of) a tensor."""

    shard: Shard
    offset: int
    length: int

    def is_before(self, other: "ByteRange") -> bool:
        """Whether the other begins where this one ends."""
        return self.shard == other.shard and self.offset + self.length == other.offset


Part = ByteRange | bytes | Callable[[], bytes]
"""A callable makes its bytes when they are written, so that computed tensors need not be in memory together."""


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """One tensor to be written: its header entry, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: tuple[Part, ...]


class CheckpointWriter:
    """A checkpoint being written. Use `new_checkpoint`; what is in `folder` when its block ends is the result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """One JSON file, two spaces of indent and only ASCII, as transformers writes them."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """One text file in UTF-8, whatever a name of the file system may have put into it."""
        (self.folder / name).write_text(text, encoding="utf-8", errors="replace")

    def copy(self, path: Path, name: str) -> None:
        """Copy a small file, following links (a hub cache is made of links).

        Raises CheckpointError if it cannot be read.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}. Mend or remove this file.") from None
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def write_tensors(self, tensors: Sequence[NewTensor], *, max_shard_bytes: int, progress: Progress = silent) -> None:
        """Write shards of at most `max_shard_bytes` each (a larger tensor gets one of its own), and their index."""
        shards = list(split_into_shards(tensors, max_shard_bytes))
        total, done = sum(tensor.nbytes for tensor in tensors), 0
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            weight_map |= {tensor.name: name for tensor in shard}
            for written in _write_shard(self.folder / name, shard):
                done += written
                progress("writing tensors", done, total)
        if len(shards) > 1:
            parameters = {"total_size": total}
            self.write_json(INDEX_NAME, {"metadata": parameters, "weight_map": dict(sorted(weight_map.items()))})


@contextmanager
def new_checkpoint(
    output: Path, *, sources: Iterable[Path], nbytes: int, overwrite: bool = False, progress: Progress = silent
) -> Iterator[CheckpointWriter]:
    """A folder that becomes `output` when the block ends well, and vanishes when it does not.

    Checked before anything is written: what `check_output` checks, and that `nbytes` fit on the disk. Raises
    OutputError.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 - links above the output stay as they were given
    missing: list[Path] = []
    try:
        clear_leftovers(output, progress)
        check_output(output, sources=sources, overwrite=overwrite)
        missing = [parent for parent in output.parents if not parent.exists()]
        with _termination_as_exit():
            output.parent.mkdir(parents=True, exist_ok=True)
            check_space(output, nbytes)
            with staging_folder(output) as folder:
                yield CheckpointWriter(folder)
                folder.chmod(0o777 & ~_umask())
                _put_in_place(folder, output, overwrite=overwrite)
    except BaseException as error:
        for parent in missing:
            with suppress(OSError):  # never made, or not empty any more
                parent.rmdir()
        if isinstance(error, OSError):
            raise OutputError(why_not_written(output, error)) from None
        raise


def split_into_shards(tensors: Sequence[NewTensor], max_shard_bytes: int) -> Iterator[list[NewTensor]]:
    """Fill shards in order. Within one, wide dtypes come first, so that every tensor is aligned to its own dtype."""
    shard: list[NewTensor] = []
    filled = 0
    for tensor in tensors:
        if shard and filled + tensor.nbytes > max_shard_bytes:
            yield sorted(shard, key=_entry_bytes, reverse=True)
            shard, filled = [], 0
        shard.append(tensor)
        filled += tensor.nbytes
    if shard:
        yield sorted(shard, key=_entry_bytes, reverse=True)


def _entry_bytes(tensor: NewTensor) -> float:
    entries = 1
    for size in tensor.shape:
        entries *= size
    return tensor.nbytes / entries if entries else 0


def _write_shard(path: Path, tensors: Sequence[NewTensor]) -> Iterator[int]:
    """Write one safetensors file; yields the bytes of each tensor as it is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Tensors begin on a page, which makes writing them a third faster; the format allows spaces after the header.
    text += b" " * (-(8 + len(text)) % _PAGE_BYTES)
    sources: dict[Shard, RawIOBase] = {}
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            runs = iter(_runs([part for tensor in tensors for part in tensor.parts]))
            for tensor in tensors:
                for part in tensor.parts:
                    _append(file, part, next(runs), sources, buffer)
                yield tensor.nbytes
    finally:
        for source in sources.values():
            source.close()


def _runs(parts: Sequence[Part]) -> list[int]:
    """Of each part how many bytes are read from there on without a gap, by it and by those after it."""
    runs: list[int] = []
    after: Part = b""
    for part in reversed(parts):
        length = part.length if isinstance(part, ByteRange) else 0
        goes_on = isinstance(part, ByteRange) and isinstance(after, ByteRange) and part.is_before(after)
        runs.append(length + runs[-1] if goes_on else length)
        after = part
    return runs[::-1]


def _append(file: BinaryIO, part: Part, run: int, sources: dict[Shard, RawIOBase], buffer: memoryview) -> None:
    """Append bytes, or a range of a shard through the buffer; `run` bytes are read from its beginning on."""
    if not isinstance(part, ByteRange):
        file.write(part if isinstance(part, bytes) else part())
        return
    left = part.length
    source = _opened(part, run, sources)
    while left:
        try:
            read = source.readinto(buffer[:left])
        except OSError as error:
            raise unreadable(part.shard, error) from None
        if not read:
            raise CheckpointError(
                f"{part.shard.name} became shorter while it was read. Wait until nothing writes to the source, or "
                "download this file again."
            )
        file.write(buffer[:read])
        left -= read


def _opened(part: ByteRange, run: int, sources: dict[Shard, RawIOBase]) -> RawIOBase:
    try:
        if part.shard not in sources:
            sources[part.shard] = part.shard.open()
        go_to(sources[part.shard], part.offset, run)
    except OSError as error:
        raise unreadable(part.shard, error) from None
    return sources[part.shard]


# ------------------------------------------------------------------------------------------------ where it may go


def check_output(output: Path, *, sources: Iterable[Path], overwrite: bool) -> None:
    """`output` is neither inside nor around a folder of `sources` or a file linked from there, and does not exist (with
    `overwrite`: is a checkpoint or an empty folder that may be replaced). Raises OutputError.
    """
    try:
        real = output.resolve()
        for source in sources:
            own = source.resolve()
            if own in {real, *real.parents} or any(
                real in Path(os.path.realpath(path)).parents for path in (own, *own.iterdir())
            ):
                raise OutputError(
                    f"--output {output} and the source {source} overlap. The source is never touched: choose "
                    "another --output."
                )
        if not os.path.lexists(output):
            return
        if not overwrite:
            raise OutputError(f"{output} exists. Choose another --output, or replace it with --overwrite.")
        check_replaceable(output)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        raise OutputError(f"{output} cannot be written: {error}. Choose another --output.") from None


def check_space(output: Path, nbytes: int) -> None:
    """A checkpoint of so many bytes fits on the disk of `output`. Raises OutputError."""
    disk = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if nbytes > free:
        raise OutputError(
            f"{output.parent} has {format_size(free)} free, the checkpoint needs {format_size(nbytes)}. Make room, or "
            "choose another --output."
        )


def why_not_written(output: Path, error: OSError) -> str:
    """What the system refused, as a sentence for the person who must act."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"The disk of {output.parent} became full while writing. Make room, or choose another --output."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"No permission to write {output}. Choose another --output."
    return f"{output} cannot be written: {error.strerror or error}. Choose another --output."


def _put_in_place(partial: Path, output: Path, *, overwrite: bool) -> None:
    """Give the finished folder its name; what it replaces goes only after that.

    What has come to be there since the output was checked is looked at again: it may be of another run.
    """
    if not overwrite or not os.path.lexists(output):
        _rename(partial, output)
        return
    check_replaceable(output)
    # Syncing takes twice as long as writing. What is new can be made again, what is replaced cannot.
    _sync(partial)
    exchange(partial, output)


def _rename(partial: Path, output: Path) -> None:
    """Rename a folder to a name that is free. Raises OutputError if it was taken meanwhile."""
    try:
        if os.path.lexists(output):  # to an empty folder the system would rename
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        partial.rename(output)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise OutputError(
                f"{output} was created by another process in the meantime. Is another run at work? Choose another "
                "--output."
            ) from None
        raise


def _sync(folder: Path) -> None:
    """Put a finished folder on the disk, so that its name still promises its content after a loss of power."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() and os.name == "nt":  # Windows opens no folders, and syncs what can be written only
            continue
        number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Let a polite kill, or a terminal that closes, unwind the stack, so that nothing half-written is left behind."""

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    # Who has other plans for a signal (nohup ignores SIGHUP) keeps them; only the main thread may set any.
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Windows has no SIGHUP.
    polite = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in polite if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in ours if in_main_thread else ():
            signal.signal(number, stop)
        yield
    finally:
        for number in ours if in_main_thread else ():
            signal.signal(number, signal.SIG_DFL)
