"""LongCat-Flash, whose router has rows for experts that compute nothing: they stay, behind those of the kept experts.

transformers' class asks for weights of these experts, which the files on the hub do not have and nothing is computed
with: they are filled in to open what was pruned.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import moeits
from moeits.errors import CheckpointError
from tests.masked import TOLERANCE, logits, routers_masked
from tests.toys import read_config, read_tensors, write_checkpoint

EXPERTS, ZERO, WIDTH, HIDDEN = 6, 2, 12, 32
TOKENS = torch.arange(2, 26).view(2, 12)
NUMBER = re.compile(r"\.experts\.(\d+)\.")


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A toy as the stock class saves it, with weights that nothing is computed with."""
    torch.manual_seed(0)
    small = {
        "vocab_size": 64, "hidden_size": HIDDEN, "num_layers": 2, "num_attention_heads": 4, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "head_dim": 8, "v_head_dim": 8,
        "ffn_hidden_size": 40, "expert_ffn_hidden_size": WIDTH, "moe_topk": 3, "n_routed_experts": EXPERTS,
        "zero_expert_num": ZERO, "max_position_embeddings": 64,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("longcat_flash", **small), dtype=torch.float32)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in name:
                value.copy_(torch.randn_like(value) * (1.0 if "classifier" in name else 0.3))
    model.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture
def hub(stock: Path, tmp_path: Path) -> Path:
    """The same as files on the hub have it: weights of experts that compute something only."""
    tensors = {
        name: value
        for name, value in read_tensors(stock).items()
        if not (found := NUMBER.search(name)) or int(found[1]) < EXPERTS
    }
    return write_checkpoint(tmp_path / "hub", read_config(stock), tensors)


def filled_in(pruned: Path, folder: Path, kept: Mapping[int, tuple[int, ...]]) -> Path:
    """With weights for the experts that compute nothing, under the numbers behind those that do."""
    more = {
        f"model.layers.{layer}.mlp.experts.{len(ids) + at}.{name}_proj.weight": np.ones((WIDTH, HIDDEN), np.float32)
        for layer, ids in kept.items()
        for at in range(ZERO)
        for name in ("gate", "up")
    }
    return write_checkpoint(folder, read_config(pruned), read_tensors(pruned) | more)


def test_what_is_pruned_computes_what_the_masked_original_computes(stock: Path, hub: Path, tmp_path: Path) -> None:
    plan = moeits.simplify(hub, experts_per_layer=4, output=tmp_path / "out")
    assert plan.counts == {0: 4, 1: 4}
    original = AutoModelForCausalLM.from_pretrained(stock).eval()
    with routers_masked(original, plan.kept, EXPERTS, ZERO):
        expected = logits(original, TOKENS)
    ours = AutoModelForCausalLM.from_pretrained(filled_in(tmp_path / "out", tmp_path / "filled", plan.kept))
    largest = float(expected.abs().max())
    assert (logits(ours, TOKENS) - expected).abs().max() < TOLERANCE * largest
    other = {**plan.kept, 0: tuple(expert for expert in range(EXPERTS) if expert not in plan.kept[0])}
    with routers_masked(original, other, EXPERTS, ZERO):
        assert (logits(original, TOKENS) - expected).abs().max() > 100 * TOLERANCE * largest


def test_rows_of_experts_that_compute_nothing_stay_behind_those_of_the_kept(hub: Path, tmp_path: Path) -> None:
    plan = moeits.simplify(hub, experts_per_layer=4, output=tmp_path / "out")
    before, after = read_tensors(hub), read_tensors(tmp_path / "out")
    for layer, kept in plan.kept.items():
        for name in ("classifier.weight", "e_score_correction_bias"):
            router = f"model.layers.{layer}.mlp.router.{name}"
            assert np.array_equal(after[router], before[router][[*kept, EXPERTS, EXPERTS + 1]])
    config = read_config(tmp_path / "out")
    assert (config["n_routed_experts"], config["zero_expert_num"], config["num_layers"]) == (4, ZERO, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero_expert_num": 1}, "has 8 entries, but layer 0 has 6 experts and 1 entries for others"),
        ({"zero_expert_num": None}, r"has shape \[8, 32\], but layer 0 has 6 experts"),
        ({"num_layers": "two"}, "should give num_layers as a number from 1 on; it has 'two'"),
    ],
)
def test_what_config_json_does_not_explain_is_a_sentence(hub: Path, changes: dict[str, object], said: str) -> None:
    (hub / "config.json").write_text(json.dumps(read_config(hub) | changes))
    with pytest.raises(CheckpointError, match=said):
        moeits.score(hub)


def test_what_transformers_itself_saves_is_a_sentence_that_says_what_to_leave_out(
    stock: Path, hub: Path, tmp_path: Path
) -> None:
    said = r"Layer 0 has weights of 8 experts, of which the last 2 compute nothing .* as it lies on the hub"
    for stage, budget in ((moeits.score, {}), (moeits.simplify, {"experts_per_layer": 4})):
        with pytest.raises(CheckpointError, match=said):
            stage(stock, output=tmp_path / "out", **budget)
    assert not (tmp_path / "out").exists()
    assert moeits.score(hub).inventory.num_experts == {0: EXPERTS, 1: EXPERTS}, "and then it is scored"
