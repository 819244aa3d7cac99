"""The finished tasks of an evaluation that is under way, so that a killed one goes on where it was.

They lie in `RESULTS.partial/` beside the results, under the fingerprint of the checkpoint and everything else the
numbers depend on, and are removed when the results are complete.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeits.errors import OutputError
from moeits.files import write_whole


class FinishedTasks:
    """What finished tasks gave, on disk; nothing at all when there is no output to keep it beside."""

    def __init__(self, output: Path | None, *, made_with: Mapping[str, Any], fresh: bool) -> None:
        self._folder = None if output is None else output.with_name(output.name + ".partial")
        self._made_with = made_with
        if fresh:
            self.remove()

    def get(self, name: str, **facts: Any) -> dict[str, Any] | None:
        """What the task gave, if an earlier run of the same evaluation finished it."""
        path = self._path(name, facts)
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else None

    def put(self, name: str, value: Mapping[str, Any], **facts: Any) -> None:
        """Keep what a finished task gave. Raises OutputError if it cannot be written."""
        path = self._path(name, facts)
        if path is None:
            return
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made: {error.strerror}. Choose another --output.") from None
        write_whole(path, json.dumps(value).encode())

    def remove(self) -> None:
        """Forget everything that was kept."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        key = json.dumps([name, facts, self._made_with], sort_keys=True)
        return self._folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
