"""Where the bytes of a checkpoint are: a shard can be opened wherever it lies, and read by ranges.

Files of this machine are the only place so far (`local_files.py`). Another is a file here with what fulfils `Shard`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import Protocol

import numpy as np

from moeits.errors import CheckpointError


class Shard(Protocol):
    """One file of tensors. Two are equal if they are the same file; as text it says where it is."""

    @property
    def name(self) -> str:
        """As the index of the checkpoint calls it."""
        ...

    def open(self) -> RawIOBase:
        """Its bytes, to seek in and to read into a buffer; whoever opens it closes it. Raises OSError."""
        ...

    def stamp(self) -> tuple[int, int]:
        """Its bytes, and a number that is another one once it has been written to; (-1, 0) where it is gone."""
        ...


@contextmanager
def opened(shard: Shard) -> Iterator[RawIOBase]:
    """A shard to read from. Raises CheckpointError, which says where it is, if it cannot be opened or read."""
    try:
        with shard.open() as file:
            yield file
    except OSError as error:
        raise unreadable(shard, error) from None


def unreadable(shard: Shard, error: OSError) -> CheckpointError:
    return CheckpointError(f"{shard} cannot be read: {error.strerror or error}. Mend this file of the source.")


def read_range(shard: Shard, offset: int, length: int) -> np.ndarray:
    """(length,) uint8, or fewer where the shard ends early. Raises CheckpointError as `opened` does."""
    with opened(shard) as file:
        return read_from(file, offset, length)


def read_from(file: RawIOBase, offset: int, length: int) -> np.ndarray:
    """What `read_range` reads, of an opened shard."""
    content, filled = np.empty(length, np.uint8), 0
    file.seek(offset)
    while filled < length:
        read = file.readinto(content.data[filled:])
        if not read:
            break
        filled += read
    return content[:filled]
