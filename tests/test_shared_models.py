"""The paper's three architectures, as models that were really trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeits
from tests.masked import TOLERANCE, continuation, logits, routers_masked
from tests.test_prune import file_hashes
from tests.toys import assert_same_model, fuse, num_experts, read_config, read_tensors, reshard

TEXT = "The history of the village begins with a mill by the river, which the"


@pytest.fixture(scope="module")
def evidence_of() -> Any:
    """Scores of each model, computed once for all tests of this file."""
    scored: dict[Path, moeits.Evidence] = {}

    def score(folder: Path) -> moeits.Evidence:
        if folder not in scored:
            scored[folder] = moeits.score(folder)
        return scored[folder]

    return score


def stock(folder: Path, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs)


def tokens(folder: Path) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids


@pytest.mark.parametrize("layout", ["per-layer", "uniform"])
@pytest.mark.parametrize("tau", [2.0, 1.0, 0.25])
def test_a_pruned_model_computes_what_the_masked_original_computes(
    trained: Path, evidence_of: Any, tmp_path: Path, tau: float, layout: str
) -> None:
    planned = moeits.plan(evidence_of(trained), tau=tau)
    plan = moeits.prune(trained, plan=planned, output=tmp_path / "pruned", layout=layout)
    assert plan.summary["experts_kept"] < plan.summary["experts_before"]
    text, original = tokens(trained), stock(trained)
    with routers_masked(original, plan.kept, num_experts(read_config(trained))):
        expected, written = logits(original, text), continuation(original, text)
    ours = moeits.load(tmp_path / "pruned", dtype=torch.float32)
    remote = stock(tmp_path / "pruned", trust_remote_code=layout == "per-layer")
    for model in (ours, remote):
        # Relative to the largest logit, 10 to 14 here: of it float32 rounds off 1e-6 at each of many sums.
        assert (logits(model, text) - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert torch.equal(continuation(ours, text), written)


def test_experts_stored_as_factors_compute_what_whole_matrices_of_that_rank_do(
    trained: Path, evidence_of: Any, tmp_path: Path
) -> None:
    asked = {"edit": "low-rank", "mean_rank": "25%", "rank_power": 0.0}
    plan = moeits.plan(evidence_of(trained), tau=1.0, **asked)
    moeits.prune(trained, plan=plan, output=tmp_path / "whole")
    made = moeits.prune(trained, plan=plan, output=tmp_path / "thin", factors=True)
    nbytes = [sum(t.nbytes for t in read_tensors(tmp_path / name).values()) for name in ("whole", "thin")]
    assert [plan.summary["bytes_after"], made.summary["bytes_after"]] == nbytes
    assert nbytes[1] < nbytes[0]
    text = tokens(trained)
    whole, thin = (logits(moeits.load(tmp_path / name, dtype=torch.float32), text) for name in ("whole", "thin"))
    # Products were rounded to bfloat16 in one, factors in the other: to 2^-9, and more where many are summed.
    assert (thin - whole).abs().max() < 2**-6 * whole.abs().max()
    assert torch.equal(logits(stock(tmp_path / "thin", trust_remote_code=True), text), thin)


def test_the_difference_to_the_masked_original_is_rounding_alone(
    trained: Path, evidence_of: Any, tmp_path: Path
) -> None:
    """In float64 it is gone but for the routers' softmax, which the stock classes always take in float32."""
    plan = moeits.prune(trained, plan=moeits.plan(evidence_of(trained), tau=1.0), output=tmp_path / "pruned")
    text = tokens(trained)
    original = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float64, experts_implementation="eager")
    keep_routers(original, torch.float32 if "deepseek" in trained.name else torch.float64)
    with routers_masked(original, plan.kept, num_experts(read_config(trained))):
        expected = original(text).logits
    ours = moeits.load(tmp_path / "pruned", dtype=torch.float64, experts_implementation="eager")
    assert (ours(text).logits - expected).abs().max() < TOLERANCE / 2


def keep_routers(model: Any, dtype: torch.dtype) -> None:
    """DeepSeek's stock router casts its weight on every call; cast once, the mask can recognise it."""
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.weight.data = layer.mlp.gate.weight.data.to(dtype)


def test_removing_one_other_expert_computes_something_else(trained: Path, evidence_of: Any, tmp_path: Path) -> None:
    plan = moeits.plan(evidence_of(trained), tau=1.0)
    moeits.prune(trained, plan=plan, output=tmp_path / "pruned", layout="per-layer")
    layer = max(plan.kept)
    experts = num_experts(read_config(trained))
    spare = next(expert for expert in range(experts) if expert not in plan.kept[layer])
    other = {**plan.kept, layer: (*plan.kept[layer][1:], spare)}
    text, original = tokens(trained), stock(trained)
    with routers_masked(original, other, experts):
        differing = logits(original, text)
    ours = logits(moeits.load(tmp_path / "pruned", dtype=torch.float32), text)
    assert (ours - differing).abs().max() > 100 * TOLERANCE
    assert (ours - logits(original, text)).abs().max() > 100 * TOLERANCE, "and so does removing none"


def test_in_its_own_dtype_a_pruned_model_agrees_to_the_bit_or_the_last_one(
    trained: Path, evidence_of: Any, tmp_path: Path
) -> None:
    plan = moeits.prune(trained, plan=moeits.plan(evidence_of(trained), tau=1.0), output=tmp_path / "pruned")
    text = tokens(trained)
    original = AutoModelForCausalLM.from_pretrained(trained, dtype="auto")
    keep_routers(original, torch.float32 if "deepseek" in trained.name else torch.bfloat16)
    ours = moeits.load(tmp_path / "pruned", dtype="auto")
    assert ours.dtype == original.dtype == torch.bfloat16
    with routers_masked(original, plan.kept, num_experts(read_config(trained))):
        expected = logits(original, text)
    # bfloat16 has 8 bits: an entry of the logits may round to its neighbour where sums are taken in another order.
    assert torch.allclose(logits(ours, text), expected, rtol=2**-7, atol=2**-4)


def test_storage_changes_no_score_no_plan_and_no_tensor(trained: Path, evidence_of: Any, tmp_path: Path) -> None:
    one = evidence_of(trained)
    plan = moeits.plan(one, tau=1.0)
    moeits.prune(trained, plan=plan, output=tmp_path / "one")
    for name, folder in (
        ("shards", reshard(trained, tmp_path / "shards", shards=3)),
        ("fused", fuse(trained, tmp_path / "fused", shards=2)),
    ):
        found = moeits.score(folder)
        assert all(np.array_equal(found.redundancy[layer], matrix) for layer, matrix in one.redundancy.items())
        other = moeits.plan(found, tau=1.0)
        assert (other.kept, other.order, other.summary) == (plan.kept, plan.order, plan.summary)
        moeits.prune(folder, plan=other, output=tmp_path / f"pruned-{name}")
        assert_same_model(tmp_path / f"pruned-{name}", tmp_path / "one")


def test_the_same_command_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        moeits.simplify(trained, reduction=0.4, output=tmp_path / name)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")


def test_keeping_all_experts_copies_every_tensor_and_the_tokenizer(
    trained: Path, evidence_of: Any, tmp_path: Path
) -> None:
    plan = moeits.prune(trained, plan=moeits.plan(evidence_of(trained), reduction=0.0), output=tmp_path / "out")
    assert plan.summary["reduction"] == 0
    before, after = read_tensors(trained), read_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()


def test_one_plan_serves_both_layouts(trained: Path, evidence_of: Any, tmp_path: Path) -> None:
    plan = moeits.plan(evidence_of(trained), tau=1.0)
    uneven = moeits.prune(trained, plan=plan, output=tmp_path / "uneven", layout="per-layer")
    even = moeits.prune(trained, plan=tmp_path / "uneven" / "plan.json", output=tmp_path / "even", layout="uniform")
    assert uneven.kept == plan.kept
    assert even.summary["bytes_after"] <= uneven.summary["bytes_after"], "evening out never makes it larger"


def test_a_plan_of_one_model_is_refused_by_another(shared: Path, evidence_of: Any, tmp_path: Path) -> None:
    plan = moeits.plan(evidence_of(shared / "models" / "moe-tiny-mixtral"), tau=1.0)
    with pytest.raises(moeits.MoeitsError, match="The plan was made for moe-tiny-mixtral"):
        moeits.prune(shared / "models" / "moe-tiny-qwen2moe", plan=replace(plan), output=tmp_path / "out")
