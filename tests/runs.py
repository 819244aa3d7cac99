"""Run folders made up for the report: real plans of a toy, results and footprints in the shape of their files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

import moeits
from moeits.choosing.planner import Planner
from moeits.evidence import Evidence
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.experts.layer import ExpertSizes
from moeits.stages.sweep import choose_at_random, cut, parse_taus
from moeits.sweeping.run_folder import PointFolder, RunFolder


def results(accuracy: float, *, parameters: int, nbytes: int, seed: int = 0) -> dict[str, Any]:
    """Results as `moeits evaluate` writes them: two tasks, one of them without acc_norm, and a text; 400 items each."""
    row = {"num_fewshot": 15, "n_samples": {"original": 2376, "effective": 400}, "version": 1.0, "files": {}}
    prompts = {"requests": 1600, "requests_cut": 7, "items_cut": 3, "longest_tokens": 900, "room_tokens": 512}
    both = {"acc": accuracy, "acc_stderr": 0.025, "acc_norm": accuracy + 0.05, "acc_norm_stderr": 0.02}
    nats = 5 - accuracy
    return {
        "format": 1,
        "kind": "results",
        "model": {"source": "toy", "fingerprint": "0", "parameters": parameters, "bytes": nbytes},
        "settings": {"num_fewshot": 15, "batch_size": 40},
        "versions": {"lm_eval": "0.4.13"},
        "tasks": {
            "arc_easy_local": {**row, **both, "chance": 0.25, "prompts": prompts},
            "boolq_local": {**row, "acc": accuracy + 0.1, "acc_stderr": 0.025, "chance": 0.5, "prompts": None},
        },
        "perplexity": {
            **{"file": "valid.jsonl", "sha256": "a" * 64, "window_tokens": 64, "documents": 20, "tokens": 2000},
            **{"bytes": 8000, "nats_per_token": nats, "bits_per_byte": nats / 4 / 0.6931471805599453},
        },
        "samples": {
            "arc_easy_local": {**_right(accuracy, "acc", seed), **_right(accuracy + 0.05, "acc_norm", seed)},
            "boolq_local": _right(accuracy + 0.1, "acc", seed),
            "perplexity": {"nats": [100 * nats + 10 * (-1) ** i for i in range(20)], "tokens": [100] * 20},
        },
    }


def _right(share: float, metric: str, seed: int) -> dict[str, list[Any]]:
    """Which of 400 items are right: that share of them, drawn so that models of one seed agree on most."""
    order = np.random.default_rng(seed).permutation(400)
    return {"doc_hash": [f"item {i}" for i in range(400)], metric: [float(i < round(400 * share)) for i in order]}


def footprint(joules: float | None) -> dict[str, Any]:
    """A footprint as `moeits measure` writes it."""
    speed = {"tokens_per_second": 50.0, "slowest": 40.0, "fastest": 60.0, "repeats": 5, "tokens": 32}
    energy = None if joules is None else {"joules_per_token": joules, "mode": "cpu estimated (cpu_load)"}
    return {
        "format": 1,
        "kind": "footprint",
        "parameters": {"total": 1000, "active_per_token": 600, "routed": 500, "shared_experts": 10, "router": 5},
        "tensor_bytes": 2000,
        "folder_bytes": 3000,
        "sparsity": 0.0,
        "flops": {"per_token": 1200.0, "tokens": 128},
        "memory": {"peak_bytes": 2**28, "before_loading_bytes": 2**27, "of": "process"},
        "load_seconds": 1.5,
        "prefill": speed,
        "decode": speed,
        "energy": energy,
        "machine": {"device": "cpu", "threads": 2, "dtype": "float32", "experts": "grouped_mm"},
        "not_measured": {} if energy else {"energy": "codecarbon cannot measure here."},
    }


def healing() -> dict[str, Any]:
    """A healing.json as `moeits heal` writes it."""
    return {
        "recipe_name": "small",
        "recipe": {"steps": 40},
        "trainable_parameters": 1234,
        "loss_before": 5.5,
        "loss_merged": 4.5,
        "seconds": 12.0,
        "notes": ["The context is shorter than the recipe's."],
        "curves": {
            "training": [{"step": step, "loss": 5 - step / 50, "learning_rate": 1e-3} for step in range(1, 41, 3)],
            "held_out": [{"step": 0, "loss": 5.5}, {"step": 20, "loss": 4.8}, {"step": 40, "loss": 4.5}],
        },
    }


def evaluated(run: Path, *, seeds: int = 0) -> Path:
    """A sweep with made-up results beside its plans: accuracy falls with the experts, healing gives half of it back.

    With `seeds`, random choices of the same counts as well, the first of them healed.
    """
    swept_points = json.loads((run / "sweep.json").read_text())["points"]
    points = list({point["folder"]: point for point in swept_points}.values())
    evidence = Evidence.load(run / "evidence.safetensors")
    for point in points:
        s, folder = point["summary"], run / point["folder"]
        size = {"parameters": s["parameters_after"], "nbytes": s["bytes_after"]}
        lost = 0.3 * s["reduction"]
        _model(folder, 0.6 - lost, 0.6 - lost / 2, size)
        write(folder / "footprint.json", footprint(0.25))
        for chosen in choose_at_random(evidence, [PointFolder(folder)], seeds, None):
            own = 0.58 - lost - 0.02 * (chosen.seed or 0)
            _model(chosen.path, own, None if chosen.seed else own + lost / 2, size)
    before = {"parameters": s["parameters_before"], "nbytes": s["bytes_before"]}
    write(run / "unpruned" / "unhealed.json", results(0.6, **before))
    write(run / "unpruned" / "footprint.json", footprint(0.5))
    entries = [
        {"stage": "scoring", "point": None, "seconds": 3.0, "joules": 60.0, "mode": "cpu estimated (cpu_load)"},
        *(
            {"stage": "pruning", "point": point["folder"], "seconds": 1.0, "joules": 40.0, "mode": None}
            for point in points
        ),
    ]
    if seeds:
        folder = f"{points[0]['folder']}/random-0"
        own = {"stage": "control: evaluation", "point": folder, "seconds": 9.0, "joules": 900.0, "mode": None}
        entries.append(own)
    write(run / "ledger.json", {"format": 1, "kind": "ledger", "entries": entries})
    return run


def _model(folder: Path, unhealed: float, healed: float | None, size: dict[str, int]) -> None:
    write(folder / "unhealed.json", results(unhealed, **size))
    if healed is not None:
        write(folder / "healed.json", results(healed, **size))
        write(folder / "healing.json", healing())


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def large_run(folder: Path, *, layers: int = 24, experts: int = 60) -> Path:
    """A sweep over evidence as large as Qwen1.5-MoE's, its redundancies drawn at random."""
    rng = np.random.default_rng(0)
    matrices = {}
    for layer in range(layers):
        values = np.triu(0.01 + 0.002 * rng.standard_gamma(2, size=(experts, experts)), 1)
        matrices[layer] = values + values.T
    sizes = ExpertSizes(parameters=8650752, nbytes=17301504, router_parameters=2048, router_nbytes=4096)
    evidence = Evidence(
        inventory=Inventory(
            model_type="qwen2_moe",
            source="Qwen/Qwen1.5-MoE-A2.7B@0123",
            fingerprint="0" * 64,
            layers={i: LayerFacts(num_experts=experts, top_k=4, groups=1, sizes=sizes) for i in range(layers)},
            other_parameters=1855748096,
            other_bytes=3711496192,
        ),
        estimator="nmi",
        settings={"preset": "paper", "bins": "auto", "diagonal": "zero"},
        redundancy=matrices,
        floor={i: np.full((experts, experts), 0.009) * (1 - np.eye(experts)) for i in range(layers)},
    )
    folder.mkdir()
    evidence.save(folder / "evidence.safetensors")
    settings = {"scoring": {"preset": "paper"}, "min_experts": None, "evaluation": None, "healing": None, "control": 0}
    cut(Planner(evidence), parse_taus("0.5:5:0.25"), settings, RunFolder(folder))
    return folder


def swept(toy: Path, folder: Path, tau: str = "-1:2:1", **asked: Any) -> Path:
    """A sweep of a toy, not evaluated."""
    moeits.sweep(toy, tau=tau, output=folder, **asked)
    return folder
