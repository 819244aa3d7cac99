"""Another program that prunes experts, compressed-tensors' MagnitudeExpertPruner, given the same question: the experts
with the smallest router rows, by the sum of their absolute values. Every tensor that it writes, moeits writes too."""

from pathlib import Path
from typing import Any

import pytest

import moeits
from tests.toys import make_toy, read_config, read_tensors

convert = pytest.importorskip("compressed_tensors.entrypoints.convert", reason="compressed-tensors is in the extra dev")

# model type -> its patterns of router and of experts, and the entry of config.json that has their number.
FAMILIES = {
    "mixtral": (r"block_sparse_moe\.gate\.weight$", r"block_sparse_moe\.experts\.\d+\.", "num_local_experts"),
    "qwen2_moe": (r"mlp\.gate\.weight$", r"mlp\.experts\.\d+\.", "num_experts"),
    "deepseek_v2": (r"mlp\.gate\.weight$", r"mlp\.experts\.\d+\.", "n_routed_experts"),
    "glm4_moe": (r"mlp\.gate\.weight$", r"mlp\.experts\.\d+\.", "n_routed_experts"),
    "olmoe": (r"mlp\.gate\.weight$", r"mlp\.experts\.\d+\.", "num_experts"),
}


def theirs(source: Path, folder: Path, model_type: str, share: float) -> None:
    """Prune as its documentation does."""
    router, expert, key = FAMILIES[model_type]
    pruner: Any = convert.converters.MagnitudeExpertPruner.from_pretrained(
        source, router_pattern=router, expert_pattern=expert, sparsity=share, num_experts_config_key=key
    )
    convert.convert_checkpoint(str(source), str(folder), pruner, max_workers=1, device="cpu")


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_both_write_the_same_tensors(model_type: str, share: float, tmp_path: Path) -> None:
    # float32, since the other sums rows in the dtype in which they are stored, and bfloat16 rounds two alike.
    source = make_toy(tmp_path / "toy", model_type, experts=8, shards=2, dtype="float32")
    theirs(source, tmp_path / "theirs", model_type, share)
    ours = tmp_path / "ours"
    moeits.simplify(source, output=ours, reduction=share, criterion="router-norm", router_norm="l1")
    expected, found = read_tensors(tmp_path / "theirs"), read_tensors(ours)
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    key = FAMILIES[model_type][2]
    assert read_config(ours)[key] == read_config(tmp_path / "theirs")[key] == 8 - 8 * share
