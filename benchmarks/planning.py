"""Planning: the elimination orders of a whole-size model, then 1,000 values of tau."""

from functools import partial

import numpy as np

from benchmarks.measuring import seconds, spread, table
from moeits.choosing.planner import Planner
from moeits.evidence import Evidence
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.experts.layer import ExpertSizes

REPEATS = 5
SHAPES = {
    "Qwen1.5-MoE": (24, 60, 4),
    "DeepSeek-V2-Lite": (26, 64, 6),
    "Mixtral 8x7B": (32, 8, 2),
    "512 experts": (48, 512, 10),
}


def run() -> str:
    rows = []
    for name, (layers, experts, top_k) in SHAPES.items():
        evidence = _evidence(layers, experts, top_k)
        orders = [seconds(partial(Planner, evidence)) for _ in range(REPEATS)]
        planner = Planner(evidence)
        taus = np.linspace(-2, 8, 1000)
        plans = [seconds(lambda: [planner.plan(tau=tau) for tau in taus]) for _ in range(REPEATS)]  # noqa: B023
        budget = [seconds(lambda: planner.plan(reduction=0.4)) for _ in range(REPEATS)]  # noqa: B023
        rows.append((name, f"{layers} x {experts}", spread(orders, 1e-3, 1), spread(plans), spread(budget, 1e-3, 1)))
    header = ("", "layers x experts", "orders, ms", "1,000 plans, s", "--reduction 0.4, ms")
    return f"Random symmetric matrices; {REPEATS} repeats.\n\n" + table(header, rows)


def _evidence(layers: int, experts: int, top_k: int) -> Evidence:
    rng = np.random.default_rng(0)
    sizes = ExpertSizes(parameters=8_650_752, nbytes=17_301_504, router_parameters=2048, router_nbytes=4096)
    facts = LayerFacts(num_experts=experts, top_k=top_k, groups=1, sizes=sizes)
    matrices = {}
    for layer in range(layers):
        upper = np.triu(rng.random((experts, experts)), 1)
        matrices[layer] = upper + upper.T
    return Evidence(
        inventory=Inventory(
            model_type="qwen2_moe",
            source="random",
            fingerprint="0",
            layers=dict.fromkeys(range(layers), facts),
            other_parameters=10**9,
            other_bytes=2 * 10**9,
        ),
        estimator="nmi",
        settings={"diagonal": "zero"},
        redundancy=matrices,
        floor={layer: np.full((experts, experts), 0.5) for layer in range(layers)},
    )
