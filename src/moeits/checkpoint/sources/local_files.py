"""Files of this machine."""

from dataclasses import dataclass
from io import FileIO, RawIOBase
from pathlib import Path


@dataclass(frozen=True)
class LocalFile:
    """A shard in a folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def open(self) -> RawIOBase:
        return FileIO(self.path)

    def stamp(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return -1, 0
        return status.st_size, status.st_mtime_ns

    def __str__(self) -> str:
        return str(self.path)
