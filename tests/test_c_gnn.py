"""C-GNN-Prune as it is reconstructed here: communities of a graph of experts, and slots by their size."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import networkx
import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

import moeits
from moeits.choosing.criteria.c_gnn import CRITERION, alike, communities, edges, passed_on, slots
from moeits.errors import SettingError
from moeits.evidence import Evidence
from tests.evaluation_toys import make_speaking_toy
from tests.test_bad_input import Shell
from tests.toys import random_redundancy, toy_evidence

SMALL = {"tokens": 1600, "held_out": 800, "window": 64, "device": "cpu"}


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All of them."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for at in range(len(rest)):
            yield [*rest[:at], [items[0], *rest[at]], *rest[at + 1 :]]


def blocks(*sizes: int, between: float = 0.0) -> np.ndarray:
    graph = np.full((sum(sizes), sum(sizes)), between)
    begin = 0
    for size in sizes:
        graph[begin : begin + size, begin : begin + size] = 1
        begin += size
    np.fill_diagonal(graph, 0)
    return graph


def made_up(groups: list[int], top_k: int = 2) -> Evidence:
    """Experts of a group answer alike and are chosen together; those of different groups do neither."""
    rng, of, count = np.random.default_rng(0), np.array(groups), len(groups)
    scored = toy_evidence({layer: random_redundancy(rng, count) for layer in range(2)}, top_k=top_k)
    # Cosine 1 within a group and -1 across two of them: no edge is left between them.
    outputs = np.where(of == 0, 1.0, -1.0)[:, None] * np.ones(7)
    together = np.where(of[:, None] == of, 50.0, 0.0) * (1 - np.eye(count))
    gates = rng.random(count) + 0.1
    signals = {
        "mean-output": outputs,
        "coactivation": together,
        "frequency": np.full(count, 1 / count),
        "router-score": gates,
    }
    return replace(scored, signals={name: dict.fromkeys(scored.layers, values) for name, values in signals.items()})


def test_a_graph_of_blocks_falls_into_its_blocks() -> None:
    assert communities(blocks(3, 5, 2)) == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9]]
    assert communities(blocks(3, 4, between=0.05)) == [[0, 1, 2], [3, 4, 5, 6]]
    assert communities(np.zeros((3, 3))) == [[0], [1], [2]]


@pytest.mark.parametrize("seed", range(4))
def test_no_partition_of_a_graph_of_two_blocks_has_a_larger_modularity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = blocks(3, 4) * (1 + rng.random((7, 7))) + 0.1 * rng.random((7, 7))
    graph = (graph + graph.T) * (1 - np.eye(7))
    known = networkx.from_numpy_array(graph)
    found = {
        json.dumps(parts): networkx.community.modularity(known, parts, weight="weight")
        for parts in partitions([*range(7)])
    }
    best = max(found, key=found.__getitem__)
    assert communities(graph) == sorted(map(sorted, json.loads(best)))


def test_edges_are_half_cosine_and_half_the_share_chosen_together() -> None:
    rng = np.random.default_rng(1)
    chosen = np.array([[i in rng.choice(5, 2, replace=False) for i in range(5)] for _ in range(200)], float)
    together, outputs = chosen.T @ chosen, rng.standard_normal((5, 9))
    counts = together.diagonal().copy()
    found = edges(outputs, together * (1 - np.eye(5)), counts)
    wanted = (1 + cosine_similarity(outputs)) / 4 + together / np.sqrt(counts[:, None] * counts) / 2
    np.testing.assert_allclose(found, wanted * (1 - np.eye(5)), atol=1e-12)
    assert alike(np.zeros((2, 3))).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_features_pass_two_edges_of_the_normalised_graph() -> None:
    rng = np.random.default_rng(2)
    graph, rows = random_redundancy(rng, 6), rng.standard_normal((6, 3))
    loops = np.asarray(networkx.to_numpy_array(networkx.from_numpy_array(graph + np.eye(6))))
    root = np.diag(loops.sum(axis=1) ** -0.5)
    np.testing.assert_allclose(passed_on(graph, rows), root @ loops @ root @ (root @ loops @ root @ rows), atol=1e-12)


@pytest.mark.parametrize("sizes", [[8], [5, 3], [1, 1, 6], [2, 2, 2, 2]])
def test_slots_are_by_size_and_every_community_has_one_where_there_are_enough(sizes: list[int]) -> None:
    for count in range(sum(sizes) + 1):
        given = slots(sizes, count)
        assert sum(given) == count
        assert all(0 <= own <= size for own, size in zip(given, sizes, strict=True))
        if count >= len(sizes):
            assert min(given) >= 1
    assert slots([6, 2], 4) == [3, 1]


def test_of_each_community_those_with_the_largest_gates_stay() -> None:
    groups = [0, 1, 0, 0, 1, 1, 0, 1]
    evidence = made_up(groups)
    gates = evidence.signals["router-score"][0]
    for count in (2, 4, 6):
        kept = moeits.plan(evidence, criterion="c-gnn", experts_per_layer=count).kept[0]
        for group in (0, 1):
            members = [expert for expert, own in enumerate(groups) if own == group]
            best = sorted(members, key=lambda expert: -gates[expert])[: count // 2]
            assert {*kept} & {*members} == {*best}


def test_layers_keep_by_the_entropy_of_frequencies_or_against_it() -> None:
    evidence, steep = made_up([0, 1] * 4), np.array([0.9, 0.04, 0.02, 0.01, 0.01, 0.01, 0.005, 0.005])
    frequency = {0: steep, 1: evidence.signals["frequency"][1]}
    evidence = replace(evidence, signals={**evidence.signals, "frequency": frequency})
    by = moeits.plan(evidence, criterion="c-gnn", reduction=0.5)
    against = moeits.plan(evidence, criterion="c-gnn", allocation="entropy-reversed", reduction=0.5)
    assert by.settings["allocation"] == "entropy"
    assert by.counts[0] < by.counts[1]
    assert against.counts[0] > against.counts[1]
    assert all(sum(plan.counts.values()) <= 8 for plan in (by, against))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_toy(tmp_path_factory.mktemp("model") / "toy", model_type="qwen2_moe")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_it_is_always_called_a_reconstruction(model: Path, tmp_path: Path, shell: Shell) -> None:
    evidence = moeits.calibrate(model, mean_outputs=True, selection=0, output=tmp_path / "signals", **SMALL)
    _, said, _ = shell.run("plan", "signals", "--criterion", "c-gnn", "--reduction", 0.3, "--output", "plan.json")
    assert "c-gnn is reconstructed from an abstract" in said
    moeits.prune(model, plan=moeits.plan(evidence, criterion="c-gnn", reduction=0.3), output=tmp_path / "out")
    assert "c-gnn (reconstructed from an abstract)" in (tmp_path / "out" / "README.md").read_text()
    assert "reconstruct" in (CRITERION.__doc__ or "") + (CRITERION.caveat)


def test_simplify_finds_out_what_it_needs(model: Path, tmp_path: Path) -> None:
    asked = {"tokens": 1600, "held_out": 800, "window": 64}
    plan = moeits.simplify(model, criterion="c-gnn", experts_per_layer=4, output=tmp_path / "out", **asked)
    assert {*plan.counts.values()} == {4}


def test_without_mean_outputs_the_command_says_how_to_get_them(model: Path, tmp_path: Path, shell: Shell) -> None:
    evidence = moeits.calibrate(model, selection=0, output=tmp_path / "signals", **SMALL)
    asked = ("--criterion", "c-gnn", "--experts-per-layer", 4, "--output", "plan.json")
    shell.refuses(
        "plan", "signals", *asked, saying=("needs mean-output", "moeits calibrate MODEL --mean-outputs --out")
    )
    below = {
        **evidence.signals,
        "mean-output": {i: np.ones((facts.num_experts, 2)) for i, facts in evidence.layers.items()},
    }
    below["frequency"] = {i: -values for i, values in evidence.signals["frequency"].items()}
    replace(evidence, signals=below).save(tmp_path / "below")
    shell.refuses("plan", "below", *asked, saying="are below 0 in the evidence. Calibrate the model again.")


def test_a_sweep_by_it_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match="--criterion c-gnn chooses a set of experts for each count and has no scores for a tau"
    ):
        moeits.sweep(model, tau="1:2:1", criterion="c-gnn", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
