"""Where the bytes of a checkpoint are: a shard can be opened wherever it lies, and read by ranges.

Files of this machine (`local_files.py`) and of the hub (`hub_files.py`) are. Another place is a file here with what
fulfils `Shard`.
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


class Fetched(RawIOBase):
    """A stream whose bytes have to be asked for elsewhere, so that it matters how many are asked for at once."""

    def expect(self, length: int) -> None:
        """So many bytes will be read from here on, in pieces."""
        raise NotImplementedError


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
    go_to(file, offset, length)
    while filled < length:
        read = file.readinto(content.data[filled:])
        if not read:
            break
        filled += read
    return content[:filled]


def go_to(file: RawIOBase, offset: int, length: int) -> None:
    """Seek to where so many bytes will be read."""
    file.seek(offset)
    if isinstance(file, Fetched):
        file.expect(length)
