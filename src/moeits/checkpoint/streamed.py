"""A checkpoint on the hub that is worked on without being downloaded: its tensors come over the network when asked for.

Its small files are downloaded as ever. Of a commit nothing can change, so the commit tells it from others where
another checkpoint's sampled bytes would.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint import hub
from moeits.checkpoint.fingerprints import sampled_fingerprint, sampled_spans
from moeits.checkpoint.folder import check_names
from moeits.checkpoint.parts import INDEX_NAME, SINGLE_NAME
from moeits.checkpoint.reading import (
    Checkpoint,
    Describe,
    TensorInfo,
    described_config,
    needs_code,
    read_indexed,
    read_shard,
)
from moeits.checkpoint.sources import read_range
from moeits.checkpoint.sources.hub_files import HubFile
from moeits.checkpoint.stamps import stamps_of
from moeits.errors import SettingError

# Small requests, which mostly wait.
_CONNECTIONS = 16
# Up to here a tensor is fetched whole for its samples, which is one request and not eight.
_WHOLE_BYTES = 256 << 10


class Streamed(Checkpoint):
    """A commit of a model on the hub. `folder` has its small files, and no tensors.

    Of what is read the bytes that its fingerprint samples are kept, 5.5 kB for each tensor, so that they are not
    asked for a second time.
    """

    def __init__(
        self, folder: Path, *, source: str, tensors: Mapping[str, TensorInfo], describe: Describe | None = None
    ) -> None:
        super().__init__(folder, source=source, tensors=tensors, describe=describe)
        self.stamps = stamps_of(self.shards)
        self._sampled: dict[tuple[str, int], bytes] = {}

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        describe: Describe | None = None,
    ) -> "Streamed":
        """Open a model on the hub by its small files and the headers of its shards.

        Raises as `Checkpoint.open` does, and SettingError for a folder, or where the hub may not be asked.
        """
        if Path(model).exists():
            raise SettingError(f"--stream is of models on the hub, and {model} is here. Leave it out.")
        hub.check_online()
        folder, source = hub.download(
            str(model), revision, weights=False, needs_code=partial(needs_code, describe=describe)
        )
        if check is not None:
            check(described_config(folder, describe))
        return cls(folder, source=source, tensors=_read_headers(str(model), folder), describe=describe)

    @property
    def told_by(self) -> str:
        """The commit; with it go the ETags of the shards."""
        return self.source

    def known_as(self, source: str, fingerprint: str) -> None:
        """The same commit has the same fingerprint, which then need not be taken from samples of every tensor."""
        if source == self.source:
            self.__dict__.setdefault("fingerprint", fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """As of any checkpoint; what has not been read yet is asked for, in up to eight pieces of each tensor."""
        return sampled_fingerprint(self.tensors, self._samples)

    def _bytes_of(self, info: TensorInfo, first: int, length: int) -> np.ndarray:
        content = super()._bytes_of(info, first, length)
        for start, span in sampled_spans(info.nbytes):
            if first <= start and start + span <= first + content.size:
                self._sampled[info.name, start] = content[start - first :][:span].tobytes()
        return content

    def _samples(self, infos: Iterable[TensorInfo]) -> Iterator[bytes]:
        threads = ThreadPoolExecutor(_CONNECTIONS)
        try:
            yield from threads.map(self._sample, infos)
        finally:
            threads.shutdown(cancel_futures=True)

    def _sample(self, info: TensorInfo) -> bytes:
        spans = list(sampled_spans(info.nbytes))
        if info.nbytes <= _WHOLE_BYTES and any((info.name, start) not in self._sampled for start, _ in spans):
            self._bytes_of(info, 0, info.nbytes)
        return b"".join(
            self._sampled.get((info.name, start)) or read_range(info.shard, info.offset + start, span).tobytes()
            for start, span in spans
        )


def _read_headers(model: str, folder: Path) -> dict[str, TensorInfo]:
    def read(file: str) -> dict[str, TensorInfo]:
        return read_shard(HubFile.find(model, folder.name, file))

    def read_all(files: list[str]) -> Iterator[dict[str, TensorInfo]]:
        check_names(files)
        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            return threads.map(read, files)

    return read_indexed(folder, read_all) if (folder / INDEX_NAME).exists() else read(SINGLE_NAME)
