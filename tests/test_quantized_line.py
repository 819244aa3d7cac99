"""One command from a quantized release to a pruned one, as it stands in docs/releases.md, with what it would take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import moeits
from tests.packed import packed_copies, raw_tensors
from tests.quantizers import quantized_copy
from tests.toys import make_toy, read_config

FORMS = ("fp8", "compressed-tensors int4", "bitsandbytes, nested")


@pytest.fixture(scope="module", params=FORMS)
def release(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    toy = make_toy(folder / "toy", "qwen3_moe", layers=2, hidden_size=64, moe_intermediate_size=64)
    if request.param == "fp8":
        return packed_copies(toy, folder)["fp8"]
    return quantized_copy(toy, folder, request.param)[0]


def test_a_release_is_simplified_by_one_command_in_the_memory_that_it_is_given(release: Path, tmp_path: Path) -> None:
    asked = f"simplify {release} --reduction 0.5 --output {tmp_path / 'out'} --memory 256MB"
    command = [sys.executable, "-m", "moeits", *asked.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(len(kept) for kept in moeits.PruningPlan.load(tmp_path / "out/plan.json").kept.values()) == 6
    assert read_config(tmp_path / "out")["quantization_config"] == read_config(release)["quantization_config"]


def test_a_rehearsal_says_the_bytes_that_are_written(release: Path, tmp_path: Path) -> None:
    choice = {"experts_per_layer": 3, "output": tmp_path / "out"}
    rehearsed = moeits.simplify(release, **choice, dry_run=True)
    moeits.simplify(release, **choice)
    written = sum(tensor.nbytes for tensor in raw_tensors(tmp_path / "out").values())
    assert rehearsed.bytes_after == written
    assert rehearsed.bytes_before == sum(tensor.nbytes for tensor in raw_tensors(release).values())
    assert json.loads((tmp_path / "out/plan.json").read_text())["summary"]["bytes_after"] == written
