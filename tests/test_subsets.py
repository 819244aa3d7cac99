"""Criteria that choose a set of experts for each count: all subsets tried, and clusters of which one expert stays."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

import moeits
from moeits.calibration.routing import Router, best_subsets
from moeits.choosing.criteria.stun import merged_clusters
from moeits.errors import EvidenceError, PlanError, SettingError
from moeits.evidence import Evidence
from moeits.signals import MOST_ENUMERATED
from tests.evaluation_toys import make_speaking_toy
from tests.toys import make_toy, random_redundancy, read_config, read_tensors, toy_evidence, write_checkpoint

PARTS = ("gate", "up", "down")

# ---------------------------------------------------------------------------------------------- all subsets


class Softmax(torch.nn.Module):
    """A router as qwen2_moe's is: softmax of the kept logits, top-k, not renormalised."""

    def __init__(self, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k, self.num_experts, self.hidden_dim = top_k, experts, experts
        self.weight = torch.nn.Parameter(torch.eye(experts), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = hidden @ self.weight.T
        gates, chosen = logits.softmax(-1).topk(self.top_k)
        return logits, gates, chosen


def by_hand(logits: np.ndarray, outputs: np.ndarray, kept: tuple[int, ...], top_k: int) -> np.ndarray:
    """(T, H): what a layer of these experts gives, token by token, in plain loops."""
    given = np.zeros(outputs[:, 0].shape)
    for t, row in enumerate(logits):
        powers = {expert: np.exp(row[expert]) for expert in kept}
        first = sorted(kept, key=lambda expert: -powers[expert])[:top_k]
        for expert in first:
            given[t] += powers[expert] / sum(powers.values()) * outputs[t, expert]
    return given


def test_the_subset_of_every_count_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    logits, outputs = rng.standard_normal((60, 5)), rng.standard_normal((60, 5, 7))
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    found, errors = best_subsets(gram, Router(Softmax(5, 2), torch.tensor(logits, dtype=torch.float32)))
    whole = by_hand(logits, outputs, (0, 1, 2, 3, 4), 2)
    for count in range(1, 6):
        losses = {
            kept: float(((by_hand(logits, outputs, kept, min(2, count)) - whole) ** 2).sum())
            for kept in combinations(range(5), count)
        }
        best = min(losses, key=losses.__getitem__)
        assert tuple(np.flatnonzero(found[count - 1])) == best
        assert errors[count - 1] == pytest.approx(losses[best] / (whole**2).sum(), abs=1e-5)


def test_an_expert_that_is_never_chosen_goes_first_at_no_loss() -> None:
    rng = np.random.default_rng(1)
    logits, outputs = rng.standard_normal((40, 4)), rng.standard_normal((40, 4, 6))
    logits[:, 2] = -1e9
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    found, errors = best_subsets(gram, Router(Softmax(4, 2), torch.tensor(logits, dtype=torch.float32)))
    assert np.flatnonzero(found[2]).tolist() == [0, 1, 3]
    assert errors[2:] == [pytest.approx(0, abs=1e-12), 0]


def test_a_router_that_needs_several_experts_is_not_asked_about_fewer() -> None:
    rng = np.random.default_rng(2)
    logits, outputs = rng.standard_normal((40, 4)), rng.standard_normal((40, 4, 6))
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    found, errors = best_subsets(gram, Router(Softmax(4, 2), torch.tensor(logits, dtype=torch.float32)), least=3)
    assert found.sum(axis=1).tolist() == [1, 2, 3, 4]
    assert set(np.flatnonzero(found[0])) < set(np.flatnonzero(found[1])) < set(np.flatnonzero(found[2]))
    assert errors[:2] == [1.0, 1.0]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    """A toy of few experts, calibrated."""
    model = make_speaking_toy(tmp_path_factory.mktemp("few") / "model", model_type="mixtral")
    return model, moeits.calibrate(model, tokens=3200, held_out=1600, window=64, selection=256, device="cpu")


def test_by_all_subsets_no_count_loses_more_than_one_by_one(few: tuple[Path, Evidence]) -> None:
    _, evidence = few
    for layer, facts in evidence.layers.items():
        assert facts.num_experts <= MOST_ENUMERATED
        steps = evidence.of_experts("reconstruction")[layer]
        one_by_one = evidence.of_experts("reconstruction-error")[layer][np.argsort(steps)][:-1]
        of_subsets = evidence.of_experts("naee-error")[layer][:-1][::-1]
        assert (of_subsets <= one_by_one + 1e-6).all()
        assert of_subsets[0] == pytest.approx(one_by_one[0], abs=1e-6)


def test_signals_without_subsets_are_made_again(few: tuple[Path, Evidence]) -> None:
    _, evidence = few
    known = {name: values for name, values in evidence.signals.items() if not name.startswith("naee")}
    older = Evidence(inventory=evidence.inventory, settings=evidence.settings, signals=known)
    with pytest.raises(EvidenceError, match=r"needs a subset of layer 0 for each count.*moeits calibrate MODEL"):
        moeits.plan(older, criterion="naee", experts_per_layer=3)


def test_a_plan_of_sets_is_not_evened_out_along_an_order_that_it_has_not(
    few: tuple[Path, Evidence], tmp_path: Path
) -> None:
    model, evidence = few
    plan = moeits.plan(evidence, criterion="naee", allocation="global", reduction=0.3, output=tmp_path / "plan.json")
    assert plan.order == {}
    if len(set(plan.counts.values())) > 1:
        with pytest.raises(PlanError, match="needs the order of removal"):
            moeits.prune(model, plan=plan, layout="uniform", output=tmp_path / "out")
    moeits.prune(model, plan=tmp_path / "plan.json", output=tmp_path / "pruned")


def test_of_more_experts_it_is_the_backward_elimination() -> None:
    rng = np.random.default_rng(3)
    known = toy_evidence({0: random_redundancy(rng, MOST_ENUMERATED + 1)}, top_k=2)
    ranks = {0: rng.permutation(MOST_ENUMERATED + 1).astype(float)}
    evidence = Evidence(inventory=known.inventory, signals={"reconstruction": ranks, "reconstruction-error": ranks})
    plans = [moeits.plan(evidence, criterion=name, experts_per_layer=5) for name in ("naee", "reconstruction")]
    assert plans[0].kept == plans[1].kept
    assert plans[0].order == plans[1].order


# ---------------------------------------------------------------------------------------------- clusters


@pytest.mark.parametrize("experts", [1, 2, 9, 24])
def test_clusters_are_those_of_scipy(experts: int) -> None:
    rows = np.random.default_rng(experts).standard_normal((experts, 5))
    distance = squareform(pdist(rows, "sqeuclidean")) if experts > 1 else np.zeros((1, 1))
    steps, merges = merged_clusters(distance)
    assert [len(clusters) for clusters in steps] == [*range(experts, 0, -1)]
    if experts == 1:
        return
    tree = linkage(squareform(distance, checks=False), "complete")
    assert merges == pytest.approx(tree[:, 2].tolist())
    for clusters in steps:
        labels = fcluster(tree, len(clusters), "maxclust")
        assert {frozenset(np.flatnonzero(labels == n)) for n in set(labels)} == {frozenset(c) for c in clusters}


def stun_evidence(model: Path) -> Evidence:
    return moeits.score(model, signals="router-nearness,weight-nearness")


def test_of_each_cluster_the_expert_nearest_to_its_mean_stays(tmp_path: Path) -> None:
    model = make_toy(tmp_path / "model", "qwen2_moe", experts=9)
    evidence, tensors = stun_evidence(model), read_tensors(model)
    layer, facts = next(iter(evidence.layers.items()))
    block = f"model.layers.{layer}.mlp"
    rows = np.asarray(tensors[f"{block}.gate.weight"], np.float64)
    names = [[f"{block}.experts.{e}.{part}_proj.weight" for part in PARTS] for e in range(facts.num_experts)]
    flat = np.array([np.concatenate([np.float64(tensors[name]).ravel() for name in each]) for each in names])
    count = facts.num_experts // 2
    labels = fcluster(linkage(pdist(rows), "complete"), count, "maxclust")
    wanted = []
    for label in sorted(set(labels)):
        members = np.flatnonzero(labels == label)
        wanted.append(int(members[((flat[members] - flat[members].mean(axis=0)) ** 2).sum(axis=1).argmin()]))
    # Of two members both are as near, and then it is the first.
    plan = moeits.plan(evidence, criterion="stun", experts_per_layer=count)
    assert plan.kept[layer] == tuple(sorted(wanted))


def test_experts_of_one_router_row_are_one_cluster(tmp_path: Path) -> None:
    model = make_toy(tmp_path / "plain", "qwen2_moe", experts=9)
    tensors = read_tensors(model)
    name = "model.layers.0.mlp.gate.weight"
    rows = tensors[name].copy()
    rows[[1, 4, 6]] = rows[4]
    evidence = stun_evidence(write_checkpoint(tmp_path / "model", read_config(model), {**tensors, name: rows}))
    kept = moeits.plan(evidence, criterion="stun", experts_per_layer=evidence.layers[0].num_experts - 2).kept[0]
    assert len({1, 4, 6} & set(kept)) == 1


def test_groups_are_not_cut_by_clusters(tmp_path: Path) -> None:
    evidence = stun_evidence(make_toy(tmp_path / "model", "deepseek_v3", experts=8, n_group=2, topk_group=1))
    with pytest.raises(SettingError, match=r"is limited to .* groups, which must stay of equal size: choose by"):
        moeits.plan(evidence, criterion="stun", reduction=0.2)
