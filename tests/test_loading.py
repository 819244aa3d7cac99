"""Pruned checkpoints in the stock classes, for toys of every registered architecture.

A pruned model computes what the original computes when its router cannot choose the removed experts.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import moeits
from moeits.errors import CheckpointError, SettingError
from tests.masked import TOLERANCE, continuation, logits, routers_masked
from tests.toys import MODEL_TYPES, VOCAB, fuse, make_toy, moe_layers, read_config

EXPERTS = 6
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
UNEVEN = {0: (0, 2, 3, 5), 1: (1, 4), 2: (0, 1, 3, 4, 5)}
EQUAL = {0: (0, 2, 3), 1: (1, 4, 5), 2: (2, 3, 4)}
FEW = {0: (3,), 1: (1, 4), 2: (0, 1, 3)}


def stock(folder: Path, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs)


def loaded(folder: Path) -> Any:
    return moeits.load(folder, dtype=torch.float32)


def keep(toy: Path, kept: Mapping[int, tuple[int, ...]], output: Path, layout: str = "auto") -> Path:
    """Prune to exactly these experts (those of the toy's MoE layers), by a plan edited by hand."""
    from dataclasses import replace

    made = moeits.plan(moeits.score(toy), experts_per_layer=EXPERTS)
    edited = replace(made, kept={layer: kept[layer] for layer in moe_layers(read_config(toy))})
    moeits.prune(toy, plan=edited, output=output, layout=layout)
    return output


def kept_of(toy: Path, kept: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    return {layer: kept[layer] for layer in moe_layers(read_config(toy))}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
class TestEveryArchitecture:
    """The same specification for whatever is registered."""

    @pytest.mark.parametrize("kept", [UNEVEN, EQUAL, FEW], ids=["uneven", "equal", "fewer than top_k"])
    def test_a_pruned_model_computes_what_the_masked_original_computes(
        self, tmp_path: Path, model_type: str, kept: Mapping[int, tuple[int, ...]]
    ) -> None:
        toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
        pruned = keep(toy, kept, tmp_path / "pruned")
        original, ours = stock(toy), loaded(pruned)
        with routers_masked(original, kept_of(toy, kept), EXPERTS):
            expected, expected_text = logits(original, TOKENS), continuation(original, TOKENS)
        assert (logits(ours, TOKENS) - expected).abs().max() < TOLERANCE
        assert torch.equal(continuation(ours, TOKENS), expected_text)
        remote = stock(pruned, trust_remote_code=kept is not EQUAL)
        assert torch.equal(logits(remote, TOKENS), logits(ours, TOKENS)), "both ways of loading build the same model"
        assert type(remote).__name__ == type(original).__name__

    def test_removing_another_expert_computes_something_else(self, tmp_path: Path, model_type: str) -> None:
        toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
        ours = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
        original, other = stock(toy), {**UNEVEN, 1: (1, 5)}
        with routers_masked(original, kept_of(toy, other), EXPERTS):
            assert (logits(ours, TOKENS) - logits(original, TOKENS)).abs().max() > 100 * TOLERANCE

    def test_an_uneven_plan_can_be_evened_out_for_stock_loaders(self, tmp_path: Path, model_type: str) -> None:
        toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
        plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "pruned", layout="uniform")
        assert len(set(map(len, plan.kept.values()))) == 1
        original = stock(toy)
        with routers_masked(original, plan.kept, EXPERTS):
            expected = logits(original, TOKENS)
        assert (logits(stock(tmp_path / "pruned"), TOKENS) - expected).abs().max() < TOLERANCE
        assert not list((tmp_path / "pruned").glob("*.py"))

    def test_a_fused_checkpoint_loads_as_its_per_expert_twin_does(self, tmp_path: Path, model_type: str) -> None:
        toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
        one = loaded(keep(toy, UNEVEN, tmp_path / "one"))
        other = loaded(keep(fuse(toy, tmp_path / "fused"), UNEVEN, tmp_path / "other"))
        assert torch.equal(logits(one, TOKENS), logits(other, TOKENS))

    def test_what_was_loaded_can_be_saved_and_loaded_again(self, tmp_path: Path, model_type: str) -> None:
        toy = make_toy(tmp_path / "toy", model_type, dtype="float32")
        ours = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
        ours.save_pretrained(tmp_path / "saved")
        again = loaded(tmp_path / "saved")
        assert torch.equal(logits(again, TOKENS), logits(ours, TOKENS))
        assert torch.equal(logits(stock(tmp_path / "saved", trust_remote_code=True), TOKENS), logits(ours, TOKENS))


def test_where_fewer_experts_than_top_k_are_kept_the_layer_picks_them_all(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "mixtral", dtype="float32", top_k=3)
    config = read_config(keep(toy, FEW, tmp_path / "pruned"))
    assert config["num_experts_per_tok"] == 3
    assert config["per_layer_config"]["0"] == {"num_local_experts": 1, "num_experts_per_tok": 1}
    assert config["per_layer_config"]["2"] == {"num_local_experts": 3}


def test_stock_loaders_refuse_unequal_counts_instead_of_loading_something_wrong(tmp_path: Path) -> None:
    pruned = keep(make_toy(tmp_path / "toy"), UNEVEN, tmp_path / "pruned")
    with pytest.raises((RuntimeError, ValueError)):
        stock(pruned, trust_remote_code=False)


def test_training_a_model_of_unequal_counts_reaches_its_routers(tmp_path: Path) -> None:
    ours = loaded(keep(make_toy(tmp_path / "toy", "mixtral"), UNEVEN, tmp_path / "pruned")).train()
    ours(TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    for layer in ours.model.layers:
        assert layer.mlp.gate.weight.grad.abs().sum() > 0


def test_unequal_layers_run_the_same_kernels_as_the_stock_class(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", dtype="float32")
    pruned = loaded(keep(toy, UNEVEN, tmp_path / "pruned"))
    assert pruned.config._experts_implementation == stock(toy).config._experts_implementation
    assert pruned.config._attn_implementation == stock(toy).config._attn_implementation
    pruned.set_experts_implementation("batched_mm")
    assert pruned.config._experts_implementation == "batched_mm"


def test_attention_can_still_be_exchanged_after_loading(tmp_path: Path) -> None:
    ours = loaded(keep(make_toy(tmp_path / "toy", dtype="float32"), UNEVEN, tmp_path / "pruned"))
    before = logits(ours, TOKENS)
    ours.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in ours.model.layers} == {"eager"}
    assert (logits(ours, TOKENS) - before).abs().max() < TOLERANCE


def test_a_model_can_be_built_from_the_config_alone(tmp_path: Path) -> None:
    from transformers import AutoConfig

    pruned = keep(make_toy(tmp_path / "toy"), UNEVEN, tmp_path / "pruned")
    config = AutoConfig.from_pretrained(pruned)
    built = AutoModelForCausalLM.from_config(config, trust_remote_code=True, code_revision=None)
    assert [layer.mlp.gate.weight.shape[0] for layer in built.model.layers] == [4, 2, 5]


def test_load_takes_no_trust_remote_code(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="leave trust_remote_code out"):
        moeits.load(make_toy(tmp_path / "toy"), trust_remote_code=True)


def test_a_class_that_transformers_does_not_have_is_a_sentence(tmp_path: Path) -> None:
    pruned = keep(make_toy(tmp_path / "toy", architectures=["pipeline"]), UNEVEN, tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="no model class pipeline"):
        moeits.load(pruned)


def test_a_missing_folder_is_a_sentence_and_no_traceback() -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        moeits.load("no/such/folder/anywhere")


def test_how_many_processes_a_launcher_started_is_asked_when_it_matters_and_not_at_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moeits.runtime import processes

    for said, meant in {"": 1, "1": 1, "4": 4}.items():
        monkeypatch.setenv("WORLD_SIZE", said)
        assert processes() == meant
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert subprocess.run([sys.executable, "-c", "import moeits"], check=False).returncode == 0
    with pytest.raises(SettingError, match="WORLD_SIZE=many makes no sense"):
        processes()
