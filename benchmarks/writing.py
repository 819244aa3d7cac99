"""Writing a pruned checkpoint, against `cp` of as many bytes."""

import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measuring import in_turn, ratio, spread, table
from benchmarks.weights import one_layer_checkpoint
from moeits import prune
from moeits.checkpoint.reading import Checkpoint
from moeits.evidence import Evidence
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.stages.plan import plan

REPEATS, EXPERTS, LAYERS = 7, 24, 4


def run() -> str:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = one_layer_checkpoint(folder / "model", experts=EXPERTS, layers=LAYERS)
        checkpoint = Checkpoint.open(model)
        facts = Evidence(inventory=Inventory.of(checkpoint, MoELayout.of(checkpoint)))
        for kept in (EXPERTS, EXPERTS // 2):
            made = plan(facts, criterion="random", experts_per_layer=kept)
            prune(model, plan=made, output=folder / "pruned")

            ours = partial(prune, model, plan=made, output=folder / "again")

            def copy() -> None:
                subprocess.run(["cp", "-r", str(folder / "pruned"), str(folder / "copy")], check=True)

            writing, copying = in_turn(REPEATS, ours, copy, between=lambda: _clean(folder))
            nbytes = sum(path.stat().st_size for path in (folder / "pruned").iterdir())
            rows.append(
                (
                    f"{kept} of {EXPERTS}",
                    f"{nbytes / 2**30:.2f}",
                    spread(writing),
                    spread(copying),
                    spread(ratio(writing, copying)),
                )
            )
            shutil.rmtree(folder / "pruned")
    header = ("experts kept", "GiB", "moeits prune, s", "cp -r, s", "prune / cp")
    return (
        f"The whole `prune` of a checkpoint in the page cache to a new folder, beside `cp -r` of what it wrote; the "
        f"disk is synchronised before each. {REPEATS} repeats in turn.\n\n" + table(header, rows)
    )


def _clean(folder: Path) -> None:
    """Remove what was written and let the disk come to rest, so that neither side pays for the other's writes."""
    for name in ("again", "copy"):
        shutil.rmtree(folder / name, ignore_errors=True)
    os.sync()
