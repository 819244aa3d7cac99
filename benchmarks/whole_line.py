"""The whole line, from a checkpoint on the disk to a smaller one: `python -m benchmarks.whole_line --folder SCRATCH`.

    python -m benchmarks.whole_line [--models Mixtral-8x7B,Qwen1.5-MoE-A2.7B,DeepSeek-V2-Lite] [--growth] [--tails]

One layer of each model, as `benchmarks.whole_layers` writes it, is scored exactly, planned and pruned to half of its
experts. What the same commands take of two tiny experts is subtracted before a layer is multiplied by the layers of the
model. The floor of a stage is what it cannot do without: `score` reads the experts once and counts all pairs, here in
a plain C loop on two cores; `prune` reads what stays and writes it, here by `cp`.

`--growth` asks how seconds of CPU grow with the layers, the experts and the entries of a weight; `--tails` how long
weights with Student-t(4) entries take beside normal ones.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.measuring import machine, spread, table
from benchmarks.whole_layers import (
    BLOCK,
    COUNTS,
    MEMORY,
    MODELS,
    NOISY,
    Model,
    c_seconds,
    read_seconds,
    run,
    write_layer,
)
from moeits.choosing.pruning_plan import PruningPlan

PAPER = ("Mixtral-8x7B", "Qwen1.5-MoE-A2.7B", "DeepSeek-V2-Lite")
REPEATS = 3
HEADER = (
    "model",
    "one layer, GB",
    "score, CPU s (clock)",
    "plan",
    "prune",
    "peak memory, GiB: score, prune",
    "floor: read + C loop / 2; cp",
    "score CPU / 2 over floor; prune CPU over cp",
    "layers",
    "the model, min of CPU / 2: score + plan + prune",
)


def line(folder: Path, work: Path) -> dict[str, dict[str, float]]:
    """What each command takes of a checkpoint, half of whose experts go."""
    evidence, plan = work / "evidence.safetensors", work / "plan.json"
    shutil.rmtree(work / "out", ignore_errors=True)
    taken = {"score": run("score", folder, "-o", evidence, "--memory", MEMORY, "--verify", "sampled")}
    taken["plan"] = run("plan", evidence, "--reduction", "0.5", "-o", plan)
    taken["prune"] = run("prune", folder, "--plan", plan, "-o", work / "out")
    return taken


def tiny_of(model: Model) -> Model:
    """Two experts of it, a block wide."""
    fewer = {key: 2 if key in (*COUNTS, "num_experts_per_tok") else value for key, value in model.config.items()}
    config = {
        **fewer,
        "num_experts_per_tok": 1,
        "hidden_size": BLOCK,
        "num_hidden_layers": 1,
        "n_group": 1,
        "topk_group": 1,
    }
    return replace(model, layers=1, experts=2, shape=(BLOCK, BLOCK), config=config)


def row(name: str, scratch: Path) -> tuple[str, ...]:
    model, work = MODELS[name], scratch / "work"
    work.mkdir()
    nbytes = write_layer(scratch / "layer", model)
    write_layer(scratch / "tiny", tiny_of(model))
    line(scratch / "tiny", work)  # compiles the kernels
    start, own = line(scratch / "tiny", work), line(scratch / "layer", work)
    check_copies(work / "plan.json")
    reading, counting = read_seconds(scratch / "layer"), model.pairs * c_seconds(model)
    copying = cp_seconds(work / "out", scratch)
    net = {stage: own[stage]["cpu"] - start[stage]["cpu"] for stage in own}
    whole = {stage: (start[stage]["cpu"] + model.layers * net[stage]) / 120 for stage in own}
    shutil.rmtree(work)
    return (
        name,
        f"{nbytes / 1e9:.1f}",
        *(f"{own[stage]['cpu']:.1f} ({own[stage]['seconds']:.1f})" for stage in own),
        ", ".join(f"{own[stage]['memory'] / 2**30:.2f}" for stage in ("score", "prune")),
        f"{reading:.1f} + {counting:.1f} / 2; {copying:.2f}",
        f"{net['score'] / 2 / (reading + counting / 2):.2f}; {net['prune'] / copying:.2f}",
        f"{model.layers}",
        " + ".join(f"{minutes:.2f}" for minutes in whole.values()),
    )


def check_copies(plan: Path) -> None:
    """Of the exact copy and of the noisy one, one expert each goes before all others."""
    (steps,) = PruningPlan.load(plan).order.values()
    first, second = (expert for expert, _ in steps[:2])
    assert first in {0, 1}, f"{first} went first, and not the copy"
    assert second in {NOISY - 1, NOISY}, f"{second} went second, and not the noisy copy"


def cp_seconds(folder: Path, scratch: Path) -> float:
    """CPU seconds of copying what was written."""
    times = []
    for _ in range(REPEATS):
        began = os.times()
        os.system(f"cp -r '{folder}' '{scratch / 'copy'}'")
        ended = os.times()
        times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
        shutil.rmtree(scratch / "copy")
    return median(times)


# ------------------------------------------------------------------------------------------------ how it grows

SMALL = Model(1, 16, (256, 512), MODELS["Qwen1.5-MoE-A2.7B"].config)


def small(experts: int = 16, rows: int = 256, freedom: int = 8, layers: int = 1) -> Model:
    """What is scored in seconds; rows count for entries."""
    config = {**SMALL.config, "num_experts": experts, "hidden_size": 512, "num_hidden_layers": layers}
    return replace(SMALL, experts=experts, shape=(rows, 512), config=config, freedom=freedom)


def growth(scratch: Path) -> Iterator[tuple[str, ...]]:
    """Of CPU seconds, each from a size to four times that."""
    for name, models in {
        "layers": [small(experts=64, layers=layers) for layers in (2, 4, 8)],
        "experts": [small(experts=experts) for experts in (64, 128, 256)],
        "entries": [small(experts=32, rows=rows) for rows in (1024, 2048, 4096)],
    }.items():
        taken = [median(cpu_of(model, scratch / f"{name}-{number}")) for number, model in enumerate(models)]
        slope = np.log2(taken[-1] / taken[0]) / 2
        yield name, ", ".join(f"{seconds:.2f}" for seconds in taken), f"{slope:.2f}"


def tails(scratch: Path) -> Iterator[tuple[str, ...]]:
    """A layer of Qwen1.5-MoE's shape with 16 experts."""
    models = {"normal": 0, "Student-t(8)": 8, "Student-t(4)": 4}
    shape = MODELS["Qwen1.5-MoE-A2.7B"].shape
    whole = {
        name: replace(small(freedom=freedom), shape=shape, config={**SMALL.config, "num_experts": 16})
        for name, freedom in models.items()
    }
    taken = {name: cpu_of(model, scratch / f"tails-{models[name]}") for name, model in whole.items()}
    for name, seconds in taken.items():
        beside = [own / normal for own, normal in zip(seconds, taken["normal"], strict=True)]
        yield name, spread(seconds), spread(beside)


def cpu_of(model: Model, folder: Path) -> list[float]:
    """CPU seconds of scoring a layer, less what starting takes."""
    write_layer(folder / "layer", model)
    write_layer(folder / "tiny", tiny_of(model))
    times = []
    for _ in range(REPEATS):
        start, own = (run("score", folder / each, "-o", folder / "e") for each in ("tiny", "layer"))
        times.append(own["cpu"] - start["cpu"])
    shutil.rmtree(folder)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(PAPER), help="by commas; nothing for none")
    parser.add_argument("--folder", type=Path, default=None, help="where layers are written")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--tails", action="store_true")
    asked = parser.parse_args(argv)
    scratch = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        print(f"{machine()}\n\n{table(HEADER, [])}", flush=True)
        for name in filter(None, asked.models.split(",")):
            (scratch / name).mkdir()
            print("| " + " | ".join(row(name, scratch / name)) + " |", flush=True)
            shutil.rmtree(scratch / name)
        if asked.growth:
            print("\n" + table(("grows", "CPU s", "exponent"), growth(scratch)), flush=True)
        if asked.tails:
            print("\n" + table(("entries", "CPU s", "beside normal ones"), tails(scratch)), flush=True)
        print(f"\nLoad of the machine at the end {os.getloadavg()[0]:.1f}.")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
