"""The finished layers of a scoring that is under way, so that a killed one goes on where it was.

They lie in `EVIDENCE.partial/` beside the evidence, in a folder that the fingerprint of the checkpoint and the settings
give its name, and are removed when the evidence is complete. There is no other cache anywhere.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from moeits.errors import OutputError
from moeits.files import write_whole

# Goes up whenever a release computes other numbers from the same weights and settings, or keeps them in another way.
FORMAT = 1


class FinishedLayers:
    """Matrices of finished layers on disk; nothing at all when there is no output to keep them beside."""

    def __init__(
        self, output: Path | None, *, fingerprint: str, settings: Mapping[str, Any], fresh: bool, of_pairs: bool = True
    ) -> None:
        """With `of_pairs` each matrix is symmetric, and one that is not was damaged."""
        self._of_pairs = of_pairs
        if output is not None and output.exists() and not output.is_file():
            output = None  # beside a pipe or /dev/null there is no place for a folder
        self._all = None if output is None else output.with_name(output.name + ".partial")
        what = json.dumps([FORMAT, fingerprint, dict(settings)], sort_keys=True)
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        self._mine = None if self._all is None else self._all / key
        if fresh:
            self.remove()

    def get(self, layer: int) -> dict[str, np.ndarray] | None:
        """The matrices of a layer by name, if an earlier run of the same scoring finished it."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self._path(layer)
        if path is None or not path.exists():
            return None
        try:
            matrices = load_file(path)
        except (SafetensorError, OSError, ValueError):
            matrices = {}  # a machine that lost its power can leave an empty file: that layer was not finished
        whole = all(
            np.isfinite(matrix).all()
            and (not self._of_pairs or (matrix.ndim == 2 and np.array_equal(matrix, matrix.T)))
            for matrix in matrices.values()
        )
        return matrices if matrices and whole else None

    def put(self, layer: int, matrices: Mapping[str, np.ndarray]) -> None:
        """Keep the matrices of a finished layer. Raises OutputError if they cannot be written."""
        from safetensors.numpy import save

        path = self._path(layer)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made: {error.strerror}. Choose another --output.") from None
        write_whole(path, save(dict(matrices)))

    def remove(self) -> None:
        """Forget what was kept of this scoring. What another one keeps beside it stays."""
        if self._all is None or self._mine is None:
            return
        shutil.rmtree(self._mine, ignore_errors=True)
        with suppress(OSError):  # there is none, or another scoring has layers in it
            self._all.rmdir()

    def _path(self, layer: int) -> Path | None:
        return None if self._mine is None else self._mine / f"layer-{layer}.safetensors"
