"""Matrices of a lower rank: the nearest there are, of ranks that differ by importance and keep to their mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.calibration.routing import Router, backward_elimination, drop_errors
from moeits.checkpoint.reading import Checkpoint
from moeits.edits.low_rank import LowRank, of_rank
from moeits.errors import SettingError
from moeits.experts.layout import MoELayout
from tests.evaluation_toys import give_tokenizer
from tests.test_calibrate import Stock
from tests.toys import HIDDEN, WIDTH, assert_all_but_experts_are_alike, fuse, make_toy, toy_evidence

SMALL: dict[str, Any] = {"tokens": 512, "held_out": 256, "window": 32}


@pytest.mark.parametrize("shape", [(12, 32), (32, 12), (8, 8)])
def test_full_rank_reproduces_a_matrix_and_less_is_the_nearest(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert (of_rank(weight, min(shape)).astype(np.float32) == weight).mean() > 0.99
    np.testing.assert_allclose(of_rank(weight, min(shape)), weight, rtol=1e-12, atol=1e-13)
    values = torch.linalg.svdvals(torch.from_numpy(weight).double()).numpy()
    for rank in range(1, min(shape)):
        made = of_rank(weight, rank)
        assert np.linalg.matrix_rank(made) == rank
        # Eckart and Young: no matrix of that rank is nearer than what the dropped singular values leave.
        np.testing.assert_allclose(np.linalg.norm(weight - made), np.sqrt((values[rank:] ** 2).sum()), rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.15, 1.0])
def test_ranks_sum_to_at_most_the_mean_and_follow_importance(power: float) -> None:
    rng = np.random.default_rng(1)
    importance = rng.random(9)
    importance[3] = 0.01
    evidence = toy_evidence({0: np.zeros((9, 9))}, top_k=2, signals={"drop-error": {0: importance}})
    kept = (0, 2, 3, 5, 8)
    edit = LowRank(mean_rank="400", rank_power=power)
    details = edit.details(evidence, 0, kept)
    ranks = {expert: edit.rank((2048, 1408), details.get(expert, {})) for expert in kept}
    raised = (importance[list(kept)] + 1e-12) ** power
    assert sum(ranks.values()) <= 400 * len(kept)
    for expert, wanted in zip(kept, raised / raised.sum() * 400 * len(kept), strict=True):
        assert ranks[expert] == min(int(wanted + 1e-3), 1408) or abs(ranks[expert] - wanted) <= 1
    if power:
        assert np.argsort([ranks[e] for e in kept]).tolist() == np.argsort(importance[list(kept)]).tolist()
    else:
        assert set(ranks.values()) == {400}
        assert not details


def test_the_importance_of_an_expert_is_the_first_step_of_the_elimination_tried_with_it() -> None:
    rng = torch.Generator().manual_seed(0)
    outputs, logits = torch.randn(40, 5, 6, generator=rng), torch.randn(40, 5, generator=rng)
    gram, router = outputs @ outputs.transpose(1, 2), Router(Stock(torch.eye(5), top_k=2, renormalise=False), logits)
    errors = drop_errors(gram, router)
    full = router.weights(range(5))
    whole = torch.einsum("te,teh->th", full, outputs)
    for out in range(5):
        others = router.weights([e for e in range(5) if e != out])
        change = torch.einsum("te,teh->th", others, outputs) - whole
        assert errors[out] == pytest.approx(float(change.norm() / whole.norm()), rel=1e-4)
    removed, _ = backward_elimination(gram, router)
    assert removed[0] == int(np.argmin(errors))
    assert drop_errors(gram[:, :1, :1], router) == [1.0]


@pytest.mark.parametrize("form", ["qwen2_moe", "qwen2_moe fused", "gpt_oss"])
def test_every_matrix_of_a_kept_expert_has_its_rank_and_all_else_its_bytes(form: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", form.removesuffix(" fused"), dtype="float32")
    toy = fuse(toy, tmp_path / "fused") if form.endswith("fused") else toy
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3, edit="low-rank", mean_rank="25%", rank_power=0.0)
    moeits.prune(toy, plan=plan, output=tmp_path / "made")
    moeits.prune(toy, plan=tmp_path / "made" / "plan.json", output=tmp_path / "again")
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
    moeits.prune(toy, plan=replace(plan, edit=None), output=tmp_path / "plain")
    made, plain = Checkpoint.open(tmp_path / "made"), Checkpoint.open(tmp_path / "plain")
    layout = MoELayout.of(made)
    for layer in layout.layers:
        for expert in range(3):
            for projection in ("gate", "up", "down"):
                new, old = (layout.read(each, layer, expert, projection) for each in (made, plain))
                assert np.linalg.matrix_rank(new, tol=1e-5) == WIDTH // 4
                np.testing.assert_allclose(new, of_rank(old, WIDTH // 4), rtol=1e-5, atol=1e-6)
    assert_all_but_experts_are_alike(tmp_path / "made", tmp_path / "plain")


def test_where_factors_save_nothing_the_matrix_stays_to_the_bit() -> None:
    weight = np.random.default_rng(0).standard_normal((WIDTH, HIDDEN)).astype(np.float32)
    border = WIDTH * HIDDEN / (WIDTH + HIDDEN)
    for rank in range(1, WIDTH + 1):
        same = np.array_equal(LowRank(mean_rank=str(rank)).changed("up", weight, {}), weight)
        assert same == (rank >= border)


def test_simplify_calibrates_what_it_needs_and_the_result_can_be_refitted(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    give_tokenizer(toy)
    plan = moeits.simplify(
        toy, criterion="reap", experts_per_layer=4, edit="low-rank", mean_rank="4", output=tmp_path / "out", **SMALL
    )
    assert plan.edit is not None
    assert all(set(details) == set(plan.kept[layer]) for layer, details in plan.edit.details.items())
    assert moeits.refit(tmp_path / "out", parent=toy, output=tmp_path / "refitted", device="cpu", **SMALL).layers


@pytest.mark.parametrize("rank", ["0", "0%", "101%", "-3", "many", "nan", "inf", ""])
def test_a_rank_out_of_range_is_one_sentence(rank: str) -> None:
    with pytest.raises(SettingError, match=r"--mean-rank '.*' is out of range: it is a rank such as 512"):
        LowRank(mean_rank=rank)


def test_a_rank_that_a_matrix_has_not_is_said_before_anything_is_written(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    known = moeits.score(toy)
    with pytest.raises(SettingError, match=r"needs drop-error, .* calibrate the model, and give moeits plan that file"):
        moeits.plan(known, experts_per_layer=3, edit="low-rank")
    with pytest.raises(SettingError, match=r"--rank-power -1\.0 is out of range"):
        moeits.plan(known, experts_per_layer=3, edit="low-rank", rank_power=-1.0)
    for rank, sentence in (
        ("13", "13 is more than the rank of a matrix of 12 x 32: give at most 12"),
        ("1%", "rank of 0"),
    ):
        plan = moeits.plan(known, experts_per_layer=3, edit="low-rank", rank_power=0.0, mean_rank=rank)
        with pytest.raises(SettingError, match=sentence):
            moeits.prune(toy, plan=plan, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
