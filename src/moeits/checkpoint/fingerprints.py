"""What tells the weights of a checkpoint from others: a fingerprint of sampled bytes, and the SHA-256 of every byte.

Both are the same for any sharding of the same tensors. The fingerprint of a checkpoint of 100 GB takes seconds, and
does not see a change between its samples; how much it has seen is its `Coverage`, which goes with it everywhere.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from moeits.checkpoint.sources import go_to, opened, read_from
from moeits.errors import CheckpointError
from moeits.progress import Progress, silent

if TYPE_CHECKING:
    from moeits.checkpoint.reading import TensorInfo

# The fingerprint reads a tensor whole up to this many bytes, and beyond that this many spans of this many bytes.
_WHOLE_BYTES, _SPANS, _SPAN_BYTES = 4096, 8, 512
_BUFFER_BYTES, _MOST_THREADS = 1 << 20, 8

_Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a checkpoint was read to tell it from others."""

    nbytes: _Bytes
    """Bytes of tensors that the fingerprint was taken of."""
    of: _Bytes
    """Bytes of all tensors."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """Over every byte; None if only samples were read."""

    @property
    def full(self) -> bool:
        """Whether every byte was read."""
        return self.sha256 is not None

    def facts(self) -> dict[str, Any]:
        """As plans and evidence keep it."""
        kind = "full" if self.full else "sampled"
        return {"kind": kind, "nbytes": self.nbytes, "of": self.of, **({"sha256": self.sha256} if self.full else {})}

    def __str__(self) -> str:
        if self.full:
            return f"SHA-256 of all {self.of:,} bytes: {self.sha256}"
        return f"fingerprint is sampled: {self.nbytes:,} bytes of {self.of:,}"


def sampled_coverage(tensors: "Mapping[str, TensorInfo]") -> Coverage:
    """What the fingerprint of these tensors sees, from their headers alone."""
    seen = sum(length for info in tensors.values() for _, length in sampled_spans(info.nbytes))
    return Coverage(nbytes=seen, of=sum(info.nbytes for info in tensors.values()))


def _samples(infos: "Iterable[TensorInfo]") -> Iterator[bytes]:
    for info in infos:
        with opened(info.shard) as file:
            spans = sampled_spans(info.nbytes)
            yield b"".join(read_from(file, info.offset + start, length).tobytes() for start, length in spans)


def sampled_fingerprint(
    tensors: "Mapping[str, TensorInfo]", samples: "Callable[[Iterable[TensorInfo]], Iterable[bytes]]" = _samples
) -> str:
    """SHA-256 over names, dtypes, shapes and sampled bytes of all tensors.

    Small tensors enter whole, large ones with eight evenly spaced spans. `samples` gives those of each tensor, joined.
    """
    digest, infos = hashlib.sha256(), [tensors[name] for name in sorted(tensors)]
    for info, sample in zip(infos, samples(infos), strict=True):
        digest.update(_what(info) + sample)
    return digest.hexdigest()


def sampled_spans(nbytes: int) -> Iterator[tuple[int, int]]:
    """(first byte, bytes) of what the fingerprint reads of a tensor."""
    if nbytes <= _WHOLE_BYTES:
        yield 0, nbytes
        return
    for span in range(_SPANS):
        yield span * (nbytes - _SPAN_BYTES) // (_SPANS - 1), _SPAN_BYTES


def full_sha256(tensors: "Mapping[str, TensorInfo]", progress: Progress = silent) -> str:
    """SHA-256 over names, dtypes, shapes and the SHA-256 of the bytes of every tensor.

    Tensors are read a buffer at a time, by a few threads. Raises CheckpointError if a file ends early.
    """
    names, total, done = sorted(tensors), sum(info.nbytes for info in tensors.values()), 0
    digest, given_up = hashlib.sha256(), Event()
    threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        for name, own in zip(names, threads.map(lambda name: _sha256_of(tensors[name], given_up), names), strict=True):
            digest.update(_what(tensors[name]) + own)
            done += tensors[name].nbytes
            progress("hashing every byte", done, total)
    finally:
        given_up.set()  # whoever interrupts does not wait for tensors of gigabytes
        threads.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _sha256_of(info: "TensorInfo", given_up: Event) -> bytes:
    digest, left = hashlib.sha256(), info.nbytes
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, max(left, 1))))
    with opened(info.shard) as file:
        go_to(file, info.offset, left)
        while left and not given_up.is_set():
            read = file.readinto(buffer[:left]) or 0
            if not read:
                raise CheckpointError(f"{info.shard.name} ends in the middle of {info.name}. Download this file again.")
            digest.update(buffer[:read])
            left -= read
    return digest.digest()


def _what(info: "TensorInfo") -> bytes:
    return json.dumps([info.name, info.dtype, info.shape]).encode()
