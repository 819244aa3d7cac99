"""Large arrays, such as hidden states: in memory while they fit, else in files that are gone with their block."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from moeits.errors import OutputError

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_PIECE = 1 << 24


class Activations:
    """Room for arrays, `most_bytes` of them in memory, the others below `beside`."""

    def __init__(self, *, most_bytes: int, beside: Path) -> None:
        self._left = most_bytes
        self._beside = beside
        self._folder: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Activations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take(self, nbytes: int) -> bool:
        """Whether so much is left of the memory; it is then no longer."""
        if nbytes > self._left:
            return False
        self._left -= nbytes
        return True

    def array(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Zeros, in memory or on disk. Raises OutputError if they fit neither into the one nor on the other."""
        nbytes = prod(shape) * dtype.itemsize
        if self.take(nbytes) or not nbytes:
            return torch.zeros(shape, dtype=dtype)
        try:
            return torch.from_numpy(np.memmap(self._file(nbytes), _NUMPY[dtype], "r+", shape=shape))
        except OSError as error:
            raise OutputError(
                f"There is no room for {nbytes} bytes in {self._beside} ({error.strerror}). Give a larger --memory, "
                "or fewer --tokens."
            ) from None

    def _file(self, nbytes: int) -> Path:
        """A new file of so many zeros."""
        if self._folder is None:
            self._beside.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix=".activations.", dir=self._beside, ignore_cleanup_errors=True)
            self._folder = Path(self._stack.enter_context(made))
        path = self._folder / f"{len(list(self._folder.iterdir()))}.array"
        with path.open("wb") as file:
            # Written, not only declared: a disk that fills up later would kill the process without a word.
            for begin in range(0, nbytes, _PIECE):
                file.write(bytes(min(_PIECE, nbytes - begin)))
        return path


def batches(windows: int, length: int, *, tokens: int = 4096) -> Iterator[slice]:
    """Runs of whole windows of about so many tokens, all equal but the last."""
    rows = max(1, tokens // length)
    for start in range(0, windows, rows):
        yield slice(start, min(start + rows, windows))
