"""A checkpoint as it lies on disk: a folder of safetensors, read lazily and never written to.

Nothing here knows what an expert is. Only headers are read on opening; the numbers of a tensor, or of a part of it, are
read only on demand, so that a model larger than memory can be worked on.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from moeits.checkpoint import hub
from moeits.checkpoint.fingerprints import Coverage, full_sha256, sampled_coverage, sampled_fingerprint
from moeits.checkpoint.folder import check_files, why_no_safetensors
from moeits.checkpoint.parts import INDEX_NAME, SINGLE_NAME
from moeits.checkpoint.sources import Shard, opened, read_from, read_range
from moeits.checkpoint.sources.local_files import LocalFile
from moeits.checkpoint.stamps import check_stamps, stamps_of
from moeits.errors import CheckpointError, MoeitsError, SettingError, UnscorableWeight
from moeits.experts.families import has_class_on_hub
from moeits.printable import printable
from moeits.progress import Progress, silent

# safetensors name of a dtype -> numpy's. What is missing here can still be moved as bytes, but not read as numbers.
DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "I64": np.dtype(np.int64),
        "I32": np.dtype(np.int32),
        "I16": np.dtype(np.int16),
        "I8": np.dtype(np.int8),
        "U8": np.dtype(np.uint8),
        "BOOL": np.dtype(np.bool_),
    }
)

# What can be computed with as it is.
FLOATS = ("F64", "F32", "F16", "BF16")

# A header is names and numbers: stock safetensors refuses more than this too.
_MOST_HEADER_BYTES = 100_000_000
# The largest models have some hundred thousand tensors, of up to three axes. A tensor's entry opens three brackets; a
# header that opens far more only takes memory.
_MOST_BRACKETS, _MOST_AXES, _MOST_NAME = 3_000_000, 64, 1000


Describe = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""config.json -> the same, with what is known of the model from elsewhere."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a checkpoint: what it is, and where its bytes are."""

    name: str
    dtype: str
    """The safetensors name of the dtype: BF16, F32, F8_E4M3, ..."""
    shape: tuple[int, ...]
    shard: Shard
    offset: int
    """First byte of the tensor in its shard file."""
    nbytes: int

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return prod(self.shape)


class Checkpoint:
    """A read-only view of a folder of safetensors in Hugging Face form.

    Open one with `Checkpoint.open`. `source` is what the checkpoint is called in plans and cards: the hub id with its
    resolved commit, or the name of the folder; never a path of this machine.
    """

    _sha256: str | None = None

    def __init__(
        self,
        folder: Path,
        *,
        source: str,
        tensors: Mapping[str, TensorInfo] | None = None,
        describe: Describe | None = None,
    ) -> None:
        self.folder = folder
        self.source = source
        self.config: Mapping[str, Any] = described_config(folder, describe)
        self.tensors: Mapping[str, TensorInfo] = _read_tensors(folder) if tensors is None else tensors
        # The fingerprint is of sampled bytes; these tell other weights from those that were opened.
        # Tensors that are given lie elsewhere: there are no files here to look at.
        self.stamps = stamps_of(self.shards) if tensors is None else ()
        if not self.tensors:
            raise CheckpointError(f"{folder} holds no tensors. Download the checkpoint again.")

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        describe: Describe | None = None,
    ) -> "Checkpoint":
        """Open a local folder, or a model on the hub (`org/name`, at `revision`).

        `check` is asked of config.json before any weights are downloaded, and raises what it finds wrong. `describe`
        gives the config with what is known of the model from elsewhere. The hub is reached through huggingface_hub,
        which honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Raises CheckpointError if there is no such model, or if it
        is not what its index says, SettingError for a revision of a local folder.
        """
        local = cls._open_local(model, revision, describe)
        if local is not None:
            return local
        if check is not None:
            folder, _ = hub.download(str(model), revision, weights=False)
            check(described_config(folder, describe))
            revision = folder.name
        folder, source = hub.download(str(model), revision, needs_code=partial(needs_code, describe=describe))
        return cls(folder, source=source, describe=describe)

    @classmethod
    def look_at(
        cls, model: str | Path, *, revision: str | None = None, describe: Describe | None = None
    ) -> "Checkpoint":
        """Open as `open` does, but fetch only small files and headers from the hub: its tensors cannot be read.

        Offline it is opened from the cache of huggingface_hub.
        """
        local = cls._open_local(model, revision, describe)
        if local is not None:
            return local
        folder, source = hub.download(
            str(model), revision, weights=False, needs_code=partial(needs_code, describe=describe)
        )
        headers = hub.weight_headers(str(model), folder.name)
        if headers is None:
            return cls.open(model, revision=revision, describe=describe)
        tensors: dict[str, TensorInfo] = {}
        for file, entries in headers.items():
            tensors |= _tensor_infos(LocalFile(folder / file), entries, data_start=0)
        return cls(folder, source=source, tensors=tensors, describe=describe)

    @classmethod
    def _open_local(cls, model: str | Path, revision: str | None, describe: Describe | None) -> "Checkpoint | None":
        folder = Path(model)
        if folder.is_file():
            kind = "a GGUF file, which moeits does not read" if folder.suffix == ".gguf" else "a file"
            raise CheckpointError(f"{folder} is {kind}. Give the folder of the checkpoint, the one with config.json.")
        if not folder.is_dir():
            return None
        if revision is not None:
            raise SettingError(
                f"--revision {revision} is of models on the hub, and {folder} is a folder here. Leave it out."
            )
        return cls(folder, source=printable(folder.resolve().name), describe=describe)

    def read(self, name: str, where: tuple[int | slice, ...] = ()) -> np.ndarray:
        """The numbers of a tensor, or of one contiguous part of it, in the dtype they are stored in.

        `where` indexes the leading axes: integers, then at most one slice with step 1. Raises UnscorableWeight if
        numpy has no such dtype, CheckpointError if the file ends early.
        """
        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise UnscorableWeight(
                f"dtype {info.dtype} can be moved but not computed with; make the plan with a bf16 version, and "
                "prune with --any-fingerprint"
            )
        dtype = DTYPES[info.dtype]
        first, shape = contiguous(info.shape, where)
        raw = self._bytes_of(info, first * dtype.itemsize, prod(shape) * dtype.itemsize)
        if raw.size != prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{info.shard.name} ends in the middle of {name}. Download this file again.")
        return raw.view(dtype).reshape(shape)

    def _bytes_of(self, info: TensorInfo, first: int, length: int) -> np.ndarray:
        """(length,) uint8 of a tensor, or fewer where its shard ends early."""
        return read_range(info.shard, info.offset + first, length)

    def check_unchanged(self) -> None:
        """The shards are still the files that were opened, by size and time. Raises CheckpointError if not."""
        check_stamps(self.shards, self.stamps, where=str(self.folder))

    @property
    def told_by(self) -> str:
        """What tells it from others, together with its stamps, before anything of it is worked on."""
        return self.fingerprint

    def known_as(self, source: str, fingerprint: str) -> None:
        """Another file says which fingerprint the checkpoint of that name has; here it is taken from the bytes."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and sampled bytes of all tensors; the same for any sharding of them."""
        return sampled_fingerprint(self.tensors)

    def coverage(self, *, full: bool = False, progress: Progress = silent) -> Coverage:
        """How much tells this checkpoint from others; with `full` the SHA-256 of every byte, which is taken once.

        Raises CheckpointError if the shards change meanwhile.
        """
        if not full:
            return sampled_coverage(self.tensors)
        if self._sha256 is None:
            self._sha256 = full_sha256(self.tensors, progress)
            self.check_unchanged()
        return Coverage(nbytes=self.nbytes, of=self.nbytes, sha256=self._sha256)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The files that hold the tensors, by name."""
        return tuple(sorted({info.shard for info in self.tensors.values()}, key=lambda shard: shard.name))

    @property
    def largest_shard_bytes(self) -> int:
        """Bytes of the largest file of tensors, its header included."""
        return max(info.offset + info.nbytes for info in self.tensors.values())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        """Entries of all tensors."""
        return sum(info.parameters for info in self.tensors.values())


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of a checkpoint. Raises CheckpointError with the reason if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Is this the folder of a Hugging Face checkpoint?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}). Download this file again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(value).__name__}.")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{folder / 'config.json'} has no model_type, so nobody can tell what model this is.")
    return config


def described_config(folder: Path, describe: Describe | None) -> Mapping[str, Any]:
    config = _read_config(folder)
    return describe(config) if describe else config


def needs_code(folder: Path, describe: Describe | None) -> bool | None:
    """Whether a model is opened by code that it brings; None where its config is wrong, which is said on opening."""
    try:
        return has_class_on_hub(described_config(folder, describe))
    except MoeitsError:
        return None


def contiguous(shape: tuple[int, ...], where: tuple[int | slice, ...]) -> tuple[int, tuple[int, ...]]:
    """First entry and shape of the part `where` of a row-major tensor."""
    first, stride, rest = 0, prod(shape), shape
    for at in where:
        size, rest = rest[0], rest[1:]
        stride //= size
        if isinstance(at, slice):
            start, stop, step = at.indices(size)
            assert step == 1
            assert at is where[-1]
            return first + start * stride, (stop - start, *rest)
        assert 0 <= at < size
        first += at * stride
    return first, rest


# ------------------------------------------------------------------------------------------------ files of a folder


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / INDEX_NAME).exists():
        return read_indexed(folder, partial(_read_files, folder))
    if (folder / SINGLE_NAME).exists():
        check_files(folder, [SINGLE_NAME], named_by="the single-file form")
        return read_shard(LocalFile(folder / SINGLE_NAME))
    raise CheckpointError(why_no_safetensors(folder))


def _read_files(folder: Path, files: list[str]) -> Iterator[dict[str, TensorInfo]]:
    check_files(folder, files, named_by=INDEX_NAME)
    return (read_shard(LocalFile(folder / file)) for file in files)


def read_indexed(folder: Path, read: Callable[[list[str]], Iterable[dict[str, TensorInfo]]]) -> dict[str, TensorInfo]:
    """The tensors that the index of a folder names; `read` gives those of each of its files, by their headers.

    Raises CheckpointError where index and files disagree.
    """
    weight_map = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map. Download this file again.")
    files = sorted(set(map(str, weight_map.values())))
    tensors: dict[str, TensorInfo] = {}
    for file, own in zip(files, read(files), strict=True):
        for name, info in own.items():
            if weight_map.get(name) != file:
                raise CheckpointError(
                    f"{file} holds {name}, which {INDEX_NAME} puts in {weight_map.get(name, 'no file at all')}. "
                    "The shards are of another version than the index: download the checkpoint again."
                )
            tensors[name] = info
    for name, file in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{INDEX_NAME} promises {name} in {file}, but it is not there. Download this file again."
            )
    return tensors


def read_shard(shard: Shard) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by its header. The whole file must be accounted for."""
    with opened(shard) as file:
        size = file.seek(0, os.SEEK_END)
        header_bytes = int.from_bytes(read_from(file, 0, 8).tobytes(), "little")
        fits = header_bytes <= min(size - 8, _MOST_HEADER_BYTES)
        header = read_from(file, 8, header_bytes).tobytes() if fits else b""
    if header_bytes > size - 8:
        raise CheckpointError(f"{shard.name} is truncated ({size} bytes). Download this file again.")
    tensors = _parse_header(shard, header, data_start=8 + header_bytes)
    _check_extent(shard, tensors, 8 + header_bytes, size)
    return tensors


def _parse_header(shard: Shard, text: bytes, *, data_start: int) -> dict[str, TensorInfo]:
    try:
        if text.count(b"{") + text.count(b"[") > _MOST_BRACKETS:
            raise ValueError("its header names more than a million tensors")
        header = json.loads(text)
        header.pop("__metadata__", None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{shard.name} is not a safetensors file ({error}). Download this file again.") from None
    return _tensor_infos(shard, header, data_start=data_start)


def _tensor_infos(shard: Shard, header: Mapping[str, Any], *, data_start: int) -> dict[str, TensorInfo]:
    try:
        return {name: _tensor_info(shard, data_start, name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{shard.name} is not a safetensors file ({error}). Download this file again.") from None


def _tensor_info(shard: Shard, data_start: int, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    if len(name) > _MOST_NAME:
        raise ValueError(f"the name {name[:40]}... has {len(name)} characters")
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), str(entry["dtype"])
    if len(shape) > _MOST_AXES:
        raise ValueError(f"{name} has {len(shape)} axes")
    # Larger numbers than a file can have are not even printed: Python refuses to, from 4300 digits on.
    if not all(type(number) is int and 0 <= number < 2**63 for number in (begin, end, *shape)) or end < begin:
        raise ValueError(f"{name} has a shape or data_offsets that are not sizes")
    if prod(shape) >= 2**63:
        raise ValueError(f"{name} has more entries than a file can hold")
    if dtype in DTYPES and end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name} of shape {shape} cannot have {end - begin} bytes")
    return TensorInfo(name=name, dtype=dtype, shape=shape, shard=shard, offset=data_start + begin, nbytes=end - begin)


def _check_extent(shard: Shard, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    end = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise CheckpointError(
                f"{shard.name} is damaged: {info.name} does not begin where the tensor before it ends. Download this "
                "file again."
            )
        end += info.nbytes
    if size != end:
        verb = "is truncated" if size < end else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{shard.name} {verb}: its header promises {end} bytes, the file has {size}. Download this file again."
        )
