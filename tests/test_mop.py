"""MoP: its parts against scipy and scikit-learn, and whole sets against plain loops over tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr
from sklearn.cluster import AgglomerativeClustering, KMeans

import moeits
from moeits.calibration.routing import Router, Tried
from moeits.calibration.specialists import (
    alike_by_rank,
    errors_alone,
    first_centres,
    k_means,
    particularity,
    profiles_of,
    sets_of_specialists,
)
from moeits.errors import MissingExtra, SettingError
from moeits.evidence import Evidence
from tests.evaluation_toys import make_speaking_toy
from tests.test_bad_input import Shell
from tests.test_subsets import Softmax, by_hand

SMALL: dict[str, Any] = {"tokens": 1600, "held_out": 800, "window": 64, "selection": 128, "device": "cpu"}

# ---------------------------------------------------------------------------------------------- its parts


def test_an_expert_of_one_token_is_most_particular_and_an_even_one_not_at_all() -> None:
    logits = np.zeros((64, 3))
    logits[:, 2] = -1e4
    logits[5] = [-1e4, -1e4, 0]
    found = particularity(torch.tensor(logits))
    assert found[2] == pytest.approx(np.log2(64))
    assert particularity(torch.zeros(64, 3)) == pytest.approx([0, 0, 0], abs=1e-12)
    # One that no token would ever choose is not particular about any.
    assert particularity(torch.tensor([[0.0, -np.inf]] * 8))[1] == 0


def test_particularity_is_what_the_entropy_over_tokens_lacks() -> None:
    logits = np.random.default_rng(0).standard_normal((200, 7)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.log2(200) - entropy(probabilities, base=2, axis=0)
    np.testing.assert_allclose(particularity(torch.tensor(logits)), wanted, atol=1e-10)


def made_up(experts: int, tokens: int = 80, seed: int = 0, top_k: int = 2) -> tuple[Tried, np.ndarray, np.ndarray]:
    """A layer on some tokens, with its logits and the outputs of all experts."""
    rng = np.random.default_rng(seed)
    logits, outputs = rng.standard_normal((tokens, experts)) * 2, rng.standard_normal((tokens, experts, 6))
    scores = torch.tensor(logits, dtype=torch.float32)
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    hidden = torch.tensor(rng.standard_normal((tokens, 5)))
    return Tried(gram, Router(Softmax(experts, top_k), scores), scores, hidden, 1), logits, outputs


def literal_errors(logits: np.ndarray, outputs: np.ndarray, top_k: int) -> np.ndarray:
    whole = by_hand(logits, outputs, tuple(range(logits.shape[1])), top_k)
    alone = [by_hand(logits, outputs, (expert,), 1) for expert in range(logits.shape[1])]
    return np.stack([((each - whole) ** 2).sum(axis=1) for each in alone], axis=1)


def test_the_error_of_an_expert_alone_is_that_of_the_layer_with_all_others_gone() -> None:
    tried, logits, outputs = made_up(6)
    np.testing.assert_allclose(errors_alone(tried), literal_errors(logits, outputs, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("domains", [1, 2, 5, 9])
def test_domains_are_those_of_scikit_learn(domains: int) -> None:
    rng = np.random.default_rng(domains)
    inputs = rng.standard_normal((300, 8)) + 3 * rng.integers(0, 4, (300, 1))
    centres = first_centres(inputs, 9, rng)
    assert len(np.unique(centres, axis=0)) == 9
    known = KMeans(domains, init=centres[:domains], n_init=1, tol=0, max_iter=100, algorithm="lloyd").fit(inputs)
    assert k_means(inputs, centres[:domains]).tolist() == known.labels_.tolist()


def test_fewer_different_tokens_than_domains_are_no_harm() -> None:
    inputs = np.repeat(np.eye(2), 4, axis=0)
    centres = first_centres(inputs, 5, np.random.default_rng(0))
    labels = k_means(inputs, centres)
    assert len(np.unique(labels)) == 2
    assert profiles_of(np.ones((8, 3)), labels).shape == (3, 2)


def test_clusters_are_those_of_ward_on_ranks_whose_distances_are_spearman_correlations() -> None:
    profiles = np.random.default_rng(1).random((14, 6))
    ranks = profiles.argsort(axis=1).argsort(axis=1).astype(float)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    apart = ((ranks[:, None] - ranks) ** 2).sum(axis=2)
    np.testing.assert_allclose(apart, 2 * (1 - spearmanr(profiles, axis=1).statistic), atol=1e-12)
    for count in range(1, 15):
        labels = AgglomerativeClustering(count, linkage="ward").fit(ranks).labels_ if count < 14 else np.arange(14)
        wanted = {frozenset(np.flatnonzero(labels == label)) for label in set(labels)}
        assert {frozenset(own.tolist()) for own in alike_by_rank(profiles, count)} == wanted


def test_experts_with_proportional_profiles_share_a_cluster() -> None:
    profiles = np.random.default_rng(2).random((6, 8))
    both = np.concatenate([profiles, 3 * profiles, profiles**2])
    found = alike_by_rank(both, 6)
    assert {frozenset(own.tolist()) for own in found} == {frozenset((row, row + 6, row + 12)) for row in range(6)}


def test_there_are_as_many_clusters_as_asked_for_also_where_profiles_are_equal() -> None:
    for profiles in (np.ones((7, 3)), np.random.default_rng(3).random((7, 2)), np.ones((7, 1))):
        for count in range(1, 8):
            found = alike_by_rank(profiles, count)
            assert len(found) == count
            assert sorted(np.concatenate(found).tolist()) == [*range(7)]


# ---------------------------------------------------------------------------------------------- whole sets


def core(count: int) -> list[int]:
    """Some order of generalists."""
    return [3, 0, 5, 1, 4, 2, 6, 7, 8, 9, 10, 11, 12][:count]


@pytest.mark.parametrize("experts", [1, 2, 7, 13])
def test_a_set_of_every_count_is_what_plain_loops_find(experts: int) -> None:
    order = [expert for expert in core(13) if expert < experts]
    tried, logits, outputs = made_up(experts, seed=experts, top_k=min(2, experts))
    found = sets_of_specialists(tried, lambda count: order[:count], np.random.default_rng(7))
    errors = literal_errors(logits, outputs, min(2, experts))
    inputs = tried.hidden.float().numpy()
    starts = first_centres(inputs, max(experts // 2, 1), np.random.default_rng(7))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    spread = -entropy(probabilities, axis=0)
    for count in range(1, experts + 1):
        kept = {*np.flatnonzero(found[count - 1]).tolist()}
        generalists = {*order[: -(-count // 2)]}
        assert len(kept) == count
        assert generalists <= kept
        if count == 1:
            continue
        labels = KMeans(count // 2, init=starts[: count // 2], n_init=1, tol=0).fit(inputs).labels_
        profiles = np.array([[errors[labels == k, e].mean() for k in range(count // 2)] for e in range(experts)])
        others = [expert for expert in range(experts) if expert not in generalists]
        special = {
            max((others[row] for row in own), key=lambda expert: spread[expert])
            for own in alike_by_rank(profiles[others], count // 2)
        }
        assert kept == generalists | special


def test_a_domain_of_tokens_keeps_the_expert_that_is_for_it() -> None:
    # Two kinds of token; experts 2 and 3 each serve one kind and are chosen there alone, 4 and 5 are worse twins.
    kinds = np.repeat([0, 1], 30)
    inputs = np.eye(2)[kinds] * 10
    logits = np.zeros((60, 6))
    logits[:, 2], logits[:, 3] = np.where(kinds == 0, 6, -6), np.where(kinds == 1, 6, -6)
    logits[:, 4], logits[:, 5] = np.where(kinds == 0, 1, 0), np.where(kinds == 1, 1, 0)
    outputs = np.tile(np.array([[1.0, 1], [1, 1], [4, 0], [0, 4], [3, 0], [0, 3]]), (60, 1, 1))
    scores = torch.tensor(logits, dtype=torch.float32)
    gram = torch.tensor(outputs @ outputs.transpose(0, 2, 1), dtype=torch.float32)
    tried = Tried(gram, Router(Softmax(6, 1), scores), scores, torch.tensor(inputs), 1)
    found = sets_of_specialists(tried, lambda count: [0, 1][:count], np.random.default_rng(0))
    assert np.flatnonzero(found[3]).tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_toy(tmp_path_factory.mktemp("model") / "toy", experts=12)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_half_of_a_plan_are_those_that_reconstruction_keeps(model: Path, tmp_path: Path) -> None:
    evidence = moeits.calibrate(model, specialists=True, output=tmp_path / "signals", **SMALL)
    assert Evidence.load(tmp_path / "signals").signals["mop"].keys() == evidence.layers.keys()
    for count in (2, 5, 8):
        generalists = moeits.plan(evidence, criterion="reconstruction", experts_per_layer=-(-count // 2), min_experts=1)
        kept = moeits.plan(evidence, criterion="mop", experts_per_layer=count).kept
        assert all({*generalists.kept[layer]} <= {*kept[layer]} for layer in kept)
        assert {*map(len, kept.values())} == {count}


def test_of_few_experts_they_are_the_best_subset(tmp_path: Path) -> None:
    few = make_speaking_toy(tmp_path / "few", model_type="mixtral", experts=6)
    evidence = moeits.calibrate(few, specialists=True, **SMALL)
    for layer in evidence.layers:
        subset = {*np.flatnonzero(evidence.signals["naee"][layer][1]).tolist()}
        assert subset <= {*moeits.plan(evidence, criterion="mop", experts_per_layer=4).kept[layer]}


def test_signals_are_the_same_after_an_interruption_and_with_specialists_among_them(
    model: Path, tmp_path: Path
) -> None:
    one, two, plain = tmp_path / "one", tmp_path / "two", moeits.calibrate(model, **SMALL)

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "calibrating layers" and done == 2:
            raise Stop

    whole = moeits.calibrate(model, specialists=True, output=one, **SMALL)
    with pytest.raises(Stop):
        moeits.calibrate(model, specialists=True, output=two, progress=stop, **SMALL)
    moeits.calibrate(model, specialists=True, output=two, **SMALL)
    assert one.read_bytes() == two.read_bytes()
    assert whole.signals.keys() - plain.signals.keys() == {"mop"}


def test_simplify_finds_out_what_it_needs(model: Path, tmp_path: Path) -> None:
    asked = {"tokens": 1600, "held_out": 800, "window": 64}
    plan = moeits.simplify(model, criterion="mop", experts_per_layer=6, output=tmp_path / "out", **asked)
    assert {*plan.counts.values()} == {6}


def test_without_its_sets_the_command_says_how_to_get_them(model: Path, tmp_path: Path, shell: Shell) -> None:
    evidence = moeits.calibrate(model, output=tmp_path / "plain", **SMALL)
    of = ("--criterion", "mop", "--experts-per-layer", 4, "--output", "plan.json")
    shell.refuses("plan", "plain", *of, saying="moeits calibrate MODEL --specialists --output signals.safetensors")
    wrong = {**evidence.signals, "mop": dict.fromkeys(evidence.layers, np.ones((12, 12)))}
    Evidence(inventory=evidence.inventory, settings=evidence.settings, signals=wrong).save(tmp_path / "wrong")
    shell.refuses("plan", "wrong", *of, saying="has sets of other sizes than its rows have in the evidence")
    without = ("--specialists", "--selection", 0, "--output", "signals")
    shell.refuses("calibrate", model, *without, saying="--specialists chooses them on the tokens of --selection")


def test_without_scipy_it_is_refused_before_any_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtra, match=r"This needs scipy.*pip install '.\[aligned\]'"):
        moeits.calibrate(model, specialists=True, **SMALL)


def test_a_sweep_by_it_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match="--criterion mop chooses a set of experts for each count and has no scores for a tau"
    ):
        moeits.sweep(model, tau="1:2:1", criterion="mop", output=tmp_path / "run")
