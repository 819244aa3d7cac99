"""A source that changes under a run: nothing is made of two models."""

import os
from pathlib import Path

import numpy as np
import pytest

import moeits
from moeits.checkpoint.fingerprints import sampled_spans
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from tests.toys import make_toy


class Killed(BaseException):
    """As a kill: nothing catches it."""


def change_what_no_fingerprint_sees(model: Path) -> int:
    """Flip a bit of every byte that is not sampled; returns how many."""
    content, flipped = bytearray((model / "model.safetensors").read_bytes()), 0
    for info in Checkpoint.open(model).tensors.values():
        sampled = {at for start, length in sampled_spans(info.nbytes) for at in range(start, start + length)}
        for at in set(range(info.nbytes)) - sampled:
            content[info.offset + at] ^= 1
            flipped += 1
    (model / "model.safetensors").write_bytes(content)
    return flipped


def later(model: Path) -> None:
    path = model / "model.safetensors"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_finished_layers_of_a_source_that_changed_since_are_not_used(tmp_path: Path) -> None:
    model, evidence = make_toy(tmp_path / "toy", "mixtral", hidden_size=96), tmp_path / "e.safetensors"

    def kill(what: str, done: int, total: int) -> None:  # noqa: ARG001
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        moeits.score(model, output=evidence, threads=1, progress=kill)
    before = Checkpoint.open(model).fingerprint
    assert change_what_no_fingerprint_sees(model)
    later(model)
    assert Checkpoint.open(model).fingerprint == before
    resumed, fresh = moeits.score(model, output=evidence, threads=1), moeits.score(model, threads=1)
    for layer, values in fresh.redundancy.items():
        np.testing.assert_array_equal(resumed.redundancy[layer], values)


@pytest.mark.parametrize("verb", ["score", "prune"])
def test_a_source_that_changes_while_it_is_read_is_a_sentence(tmp_path: Path, verb: str) -> None:
    model, output = make_toy(tmp_path / "toy", "mixtral"), tmp_path / "out"
    plan = moeits.plan(moeits.score(model, threads=1), tau=0.5)

    def change(what: str, done: int, total: int) -> None:  # noqa: ARG001
        later(model)

    run = {"score": lambda: moeits.score(model, output=output, threads=1, progress=change)}
    run["prune"] = lambda: moeits.prune(model, plan=plan, output=output, progress=change)
    with pytest.raises(CheckpointError, match=r"changed while it was read: model\.safetensors"):
        run[verb]()
    assert not output.exists()
