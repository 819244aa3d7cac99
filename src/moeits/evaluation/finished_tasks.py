"""The finished tasks of an evaluation that is under way, so that a killed one goes on where it was.

They lie in `RESULTS.partial/` beside the results, under the fingerprint of the checkpoint and everything else the
numbers depend on, and are removed when the results are complete.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moeits.errors import OutputError
from moeits.files import write_whole


class FinishedTasks:
    """What finished tasks gave, on disk; nothing at all when there is no output to keep it beside."""

    def __init__(self, output: Path | None, *, made_with: Mapping[str, Any], fresh: bool) -> None:
        self._all = None if output is None else output.with_name(output.name + ".partial")
        self._folder = None if self._all is None else self._all / _key(dict(made_with))
        if fresh:
            self.remove()

    def get(self, name: str, **facts: Any) -> dict[str, Any] | None:
        """What the task gave, if an earlier run of the same evaluation finished it."""
        path = self._path(name, facts)
        if path is None or not path.exists():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None  # a machine that lost its power can leave an empty file: that task was not finished
        return value if isinstance(value, dict) and {"row", "samples"} <= set(value) else None

    def put(self, name: str, value: Mapping[str, Any], **facts: Any) -> None:
        """Keep what a finished task gave. Raises OutputError if it cannot be written."""
        path = self._path(name, facts)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made: {error.strerror}. Choose another --output.") from None
        write_whole(path, json.dumps(value).encode())

    def remove(self) -> None:
        """Forget what was kept of this evaluation. What another one keeps beside it stays."""
        if self._all is None or self._folder is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # there is none, or another evaluation has tasks in it
            self._all.rmdir()

    def _path(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}-{_key([name, facts])}.json"


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
