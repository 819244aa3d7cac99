"""A calibration that is interrupted, and goes on."""

from pathlib import Path
from typing import Any

import pytest

import moeits


def assert_calibration_goes_on(folder: Path, work: Path, **asked: Any) -> None:
    """With its activations on the disk, and after an interruption, it gives the bytes that it gives in one go."""
    one, two = work / "one.safetensors", work / "two.safetensors"
    moeits.calibrate(folder, output=one, **asked)

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "calibrating layers" and done == 2:
            raise Stop

    with pytest.raises(Stop):
        moeits.calibrate(folder, output=two, memory="16KiB", progress=stop, **asked)
    assert list(work.glob("two.safetensors.partial/*/layer-1.safetensors"))
    moeits.calibrate(folder, output=two, memory="16KiB", **asked)
    assert one.read_bytes() == two.read_bytes()
    assert {path.name for path in work.iterdir()} == {"one.safetensors", folder.name, "two.safetensors"}
