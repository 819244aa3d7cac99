"""A router that is limited by groups, pruned and run: what test_plan.py says of numbers, here of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import moeits
from tests.masked import TOLERANCE, logits, routers_masked
from tests.toys import VOCAB, make_toy

EXPERTS = 16
LIMITED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3"])
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens go to three experts of two of four groups of four, which are judged by their best or their best two."""
    folder = tmp_path_factory.mktemp("limited") / "toy"
    method = LIMITED if request.param == "deepseek_v2" else {"n_group": 4, "topk_group": 2}
    return make_toy(folder, request.param, dtype="float32", experts=EXPERTS, top_k=3, layers=3, **method)


@pytest.mark.parametrize(
    "budget",
    [
        {"tau": 0.0},
        {"reduction": 0.5},
        {"max_size": "200KiB"},
        {"experts_per_layer": 8},
        {"experts_per_layer": 8, "criterion": "random"},
        {"tau": 0.0, "layout": "uniform"},
        {"tau": -100.0, "min_experts": 1},
    ],
    ids=str,
)
def test_a_router_limited_by_groups_computes_what_the_masked_original_computes(
    tmp_path: Path, limited: Path, budget: dict[str, Any]
) -> None:
    made = moeits.simplify(limited, output=tmp_path / "pruned", **budget)
    assert made.summary["reduction"] > 0
    original = AutoModelForCausalLM.from_pretrained(limited, dtype=torch.float32)
    with routers_masked(original, made.kept, EXPERTS):
        expected = logits(original, TOKENS)
    assert (logits(moeits.load(tmp_path / "pruned", dtype=torch.float32), TOKENS) - expected).abs().max() < TOLERANCE
    layer, kept = next(iter(made.kept.items()))
    swapped = {**made.kept, layer: tuple(sorted({*kept[1:], *(set(range(4)) - set(kept))}))}
    with routers_masked(original, swapped, EXPERTS):
        assert (logits(original, TOKENS) - expected).abs().max() > 100 * TOLERANCE


def test_no_group_is_left_with_fewer_experts_than_its_router_judges_it_by(tmp_path: Path, limited: Path) -> None:
    made = moeits.simplify(limited, tau=-100.0, min_experts=1, output=tmp_path / "pruned")
    assert {len(kept) for kept in made.kept.values()} == {8}
