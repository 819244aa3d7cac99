"""A checkpoint is worked on wherever its shards are, by ranges of their bytes."""

from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.sources import read_range
from moeits.errors import CheckpointError
from tests.toys import make_toy


class Trickle(RawIOBase):
    """Gives at most a hundred bytes at a time, as a network may."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        given = self._content[self._at : self._at + min(len(view), 100)]
        view[: len(given)] = given
        self._at += len(given)
        return len(given)


@dataclass(frozen=True)
class Elsewhere:
    """A shard that is nowhere on disk."""

    name: str
    content: bytes

    def open(self) -> RawIOBase:
        return Trickle(self.content)

    def stamp(self) -> tuple[int, int]:
        return len(self.content), 0


def moved_elsewhere(toy: Path) -> Checkpoint:
    """The checkpoint of a folder whose shards are in memory; the folder does not have them any more."""
    checkpoint = Checkpoint.open(toy)
    shards = {shard: Elsewhere(shard.name, (toy / shard.name).read_bytes()) for shard in checkpoint.shards}
    tensors = {name: replace(info, shard=shards[info.shard]) for name, info in checkpoint.tensors.items()}
    for shard in shards:
        (toy / shard.name).unlink()
    return Checkpoint(toy, source=checkpoint.source, tensors=tensors)


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])
def test_what_is_nowhere_on_disk_is_scored_and_pruned_to_the_same_bytes(tmp_path: Path, model_type: str) -> None:
    here, there = (make_toy(tmp_path / place / "toy", model_type, shards=2) for place in ("here", "there"))
    elsewhere = moved_elsewhere(there)
    assert elsewhere.fingerprint == Checkpoint.open(here).fingerprint
    assert elsewhere.coverage(full=True) == Checkpoint.open(here).coverage(full=True)
    plans = [moeits.plan(moeits.score(model), tau=0.5) for model in (here, elsewhere)]
    assert plans[0] == plans[1]
    for model, output in ((here, "one"), (elsewhere, "other")):
        moeits.prune(model, plan=plans[0], output=tmp_path / output)
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    assert any(name.endswith(".safetensors") for name in one)


def test_a_shard_that_ends_early_gives_what_it_has() -> None:
    shard = Elsewhere("a", bytes(range(250)))
    assert read_range(shard, 3, 240).tobytes() == bytes(range(3, 243))
    assert read_range(shard, 240, 100).tobytes() == bytes(range(240, 250))
    assert read_range(shard, 250, 100).size == read_range(shard, 0, 0).size == 0


def test_a_tensor_of_a_shard_that_ends_early_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = moved_elsewhere(make_toy(tmp_path / "toy"))
    info = max(checkpoint.tensors.values(), key=lambda info: info.offset)
    short = Elsewhere(info.shard.name, bytes(info.offset + info.nbytes - 1))
    cut = Checkpoint(checkpoint.folder, source="cut", tensors={info.name: replace(info, shard=short)})
    with pytest.raises(CheckpointError, match="ends in the middle"):
        cut.read(info.name)


def test_a_shard_that_goes_while_it_is_worked_on_is_a_sentence(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    checkpoint = Checkpoint.open(toy)
    (toy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: No such file"):
        moeits.score(checkpoint)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: No such file"):
        checkpoint.read(next(iter(checkpoint.tensors)))


def test_the_largest_shard_is_as_large_as_its_file(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", shards=3)
    largest = max(path.stat().st_size for path in toy.glob("*.safetensors"))
    assert Checkpoint.open(toy).largest_shard_bytes == largest
    assert np.all([shard.stamp()[0] <= largest for shard in Checkpoint.open(toy).shards])
