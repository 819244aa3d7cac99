"""Healing shared out among processes: the same training, written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.healing_toys import make_pruned, texts, write_rows

ROOT = Path(__file__).parents[1]
# Processes add up their gradients in another order than one process does.
TOLERANCE = 1e-4


def _heal(launcher: list[str], pruned: Path, data: Path, output: Path, *, batch_size: int) -> float:
    """Heal from the command line; the held-out loss of what was written."""
    recipe = ["--recipe", "small", "--steps", "4", "--sequence-length", "16", "--no-packing"]
    command = [*launcher, "-m", "moeits", "heal", str(pruned), "--data", str(data), "--output", str(output), *recipe]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "--batch-size", str(batch_size)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written:") == 1
    # What torchrun itself says of several processes is its own affair.
    assert len(launcher) > 1 or done.stderr == ""
    return json.loads((output / "healing.json").read_text())["loss_merged"]


@pytest.mark.slow
def test_two_processes_train_what_one_process_of_twice_the_batch_trains(tmp_path):
    pruned = make_pruned(tmp_path)
    data = write_rows(tmp_path / "data.jsonl", texts(40))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = _heal(launcher, pruned, data, tmp_path / "two", batch_size=2)
    one = _heal([sys.executable], pruned, data, tmp_path / "one", batch_size=4)
    other = _heal([sys.executable], pruned, data, tmp_path / "other", batch_size=2)
    assert two == pytest.approx(one, abs=TOLERANCE)
    assert other != pytest.approx(one, abs=TOLERANCE)
    assert not (tmp_path / "two.healing").exists()
