"""Hidden states of all windows: in memory while they fit, else in a file that is gone with the block that made it."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from moeits.errors import OutputError


class Activations:
    """Room for streams of (windows, length, H) float32, `most_bytes` of them in memory, the others below `beside`."""

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

    def stream(self, windows: int, length: int, hidden: int) -> torch.Tensor:
        """An empty stream. Raises OutputError if it fits neither into the memory nor on the disk."""
        shape, nbytes = (windows, length, hidden), windows * length * hidden * 4
        if nbytes <= self._left:
            self._left -= nbytes
            return torch.empty(shape)
        try:
            if self._folder is None:
                self._beside.mkdir(parents=True, exist_ok=True)
                made = tempfile.TemporaryDirectory(prefix=".activations.", dir=self._beside, ignore_cleanup_errors=True)
                self._folder = Path(self._stack.enter_context(made))
            path = self._folder / f"{len(list(self._folder.iterdir()))}.f32"
            with path.open("wb") as file:
                # Written, not only declared: a disk that fills up later would kill the process without a word.
                for _ in range(windows):
                    file.write(bytes(length * hidden * 4))
            return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=shape))
        except OSError as error:
            raise OutputError(
                f"There is no room for {nbytes} bytes of activations in {self._beside} ({error.strerror}). Give a "
                "larger --memory, or fewer --tokens."
            ) from None


def batches(windows: int, length: int, *, tokens: int = 4096) -> Iterator[slice]:
    """Runs of whole windows of about so many tokens, all equal but the last."""
    rows = max(1, tokens // length)
    for start in range(0, windows, rows):
        yield slice(start, min(start + rows, windows))
