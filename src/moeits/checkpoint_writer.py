"""Writing a checkpoint: shards of safetensors and small files, all or nothing.

Everything is written into a folder beside the output, which gets its name only when it is complete. Tensors are moved
as bytes, from file to file, so no dtype needs to be understood and no tensor needs to fit into memory.
"""

import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moeits.checkpoint import INDEX_NAME, SINGLE_NAME
from moeits.errors import OutputError
from moeits.progress import Progress, silent
from moeits.sizes import format_size


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes of a file that will become (a part of) a tensor."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """One tensor to be written: its header entry, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: tuple[ByteRange | bytes, ...]


class CheckpointWriter:
    """A checkpoint being written. Use `new_checkpoint`; what is in `folder` when its block ends is the result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """One JSON file, two spaces of indent, as transformers writes them."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def copy(self, path: Path, name: str) -> None:
        """Copy a small file, following links (a hub cache is made of links)."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

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
    output: Path, *, sources: Iterable[Path], nbytes: int, overwrite: bool = False
) -> Iterator[CheckpointWriter]:
    """A folder that becomes `output` when the block ends well, and vanishes when it does not.

    Checked before anything is written: `output` is neither inside nor around a folder of `sources`, does not exist
    (with `overwrite`: is a checkpoint that may be replaced), and `nbytes` fit on its disk. Raises OutputError.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 - a link at the output is replaced, not followed
    _check_output(output, sources, overwrite)
    partial: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _check_space(output, nbytes)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        with _termination_as_exit():
            yield CheckpointWriter(partial)
            partial.chmod(0o777 & ~_umask())
            _put_in_place(partial, output)
        partial = None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_why_not_written(output, error)) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


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
    text += b" " * (-len(text) % 8)
    sources: dict[Path, BinaryIO] = {}
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            for tensor in tensors:
                for part in tensor.parts:
                    _append(file, part, sources)
                yield tensor.nbytes
    finally:
        for source in sources.values():
            source.close()


def _append(file: BinaryIO, part: ByteRange | bytes, sources: dict[Path, BinaryIO]) -> None:
    if isinstance(part, bytes):
        file.write(part)
        file.flush()
        return
    if part.path not in sources:
        sources[part.path] = part.path.open("rb")
    _copy_range(sources[part.path].fileno(), part.offset, part.length, file.fileno())


# What copy_file_range answers where the kernel or a pair of file systems cannot do it.
_NO_RANGE_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


def _copy_range(source: int, offset: int, length: int, target: int) -> None:
    """Append a range of one file to another, inside the kernel where it can."""
    end, in_kernel = offset + length, hasattr(os, "copy_file_range")
    while offset < end:
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, end - offset, offset)
            except OSError as error:
                if error.errno not in _NO_RANGE_COPY:
                    raise
                in_kernel = False
                continue
        else:
            copied = os.write(target, os.pread(source, min(end - offset, 16 << 20), offset))
        if copied == 0:
            raise OSError(errno.EIO, "the source became shorter while it was read")
        offset += copied


# ------------------------------------------------------------------------------------------------ where it may go


def _check_output(output: Path, sources: Iterable[Path], overwrite: bool) -> None:
    real = output.resolve()
    for source in (source.resolve() for source in sources):
        if real == source or source in real.parents or real in source.parents:
            raise OutputError(
                f"--output {output} and the source {source} lie in each other. The source is never touched: choose "
                "another --output."
            )
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise OutputError(f"{output} exists. Choose another --output, or replace it with --overwrite.")
    if output.is_symlink() or not output.is_dir() or (any(output.iterdir()) and not (output / "config.json").exists()):
        raise OutputError(f"{output} is no checkpoint, so --overwrite does not replace it. Choose another --output.")


def _check_space(output: Path, nbytes: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if nbytes > free:
        raise OutputError(
            f"{output.parent} has {format_size(free)} free, the checkpoint needs {format_size(nbytes)}. Make room, or "
            "choose another --output."
        )


def _why_not_written(output: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"The disk of {output.parent} became full while writing. Make room, or choose another --output."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"No permission to write {output}. Choose another --output."
    return f"{output} cannot be written: {error.strerror or error}."


def _put_in_place(partial: Path, output: Path) -> None:
    """Give the finished folder its name; what it replaces goes only after that."""
    if not output.exists():
        partial.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".replaced", dir=output.parent))
    output.rename(old / "checkpoint")
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Let a polite kill (SIGTERM) unwind the stack, so that nothing half-written is left behind."""

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
