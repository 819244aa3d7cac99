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
from tests.masked import TOLERANCE, logits
from tests.toys import VOCAB, make_toy, moe_layers, read_config, read_tensors, write_checkpoint

EXPERTS = 6
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
UNEVEN = {0: (0, 2, 3, 5), 1: (1, 4), 2: (0, 1, 3, 4, 5)}
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


def test_a_class_of_the_hub_s_own_is_opened_by_the_one_of_transformers(tmp_path: Path) -> None:
    """Phi-3.5-MoE: the hub's config names PhiMoEForCausalLM, and code; transformers has PhimoeForCausalLM."""
    toy = make_toy(tmp_path / "toy", "phimoe", dtype="float32")
    ours = read_config(toy)
    assert ours["architectures"] == ["PhimoeForCausalLM"]
    own = {
        "AutoConfig": "configuration_phimoe.PhiMoEConfig",
        "AutoModelForCausalLM": "modeling_phimoe.PhiMoEForCausalLM",
    }
    of_hub = ours | {"architectures": ["PhiMoEForCausalLM"], "auto_map": own}
    hub = write_checkpoint(tmp_path / "hub", of_hub, read_tensors(toy))
    wanted = logits(loaded(keep(toy, UNEVEN, tmp_path / "pruned")), TOKENS)
    pruned = keep(hub, UNEVEN, tmp_path / "hub-pruned")
    assert read_config(pruned)["architectures"] == ["PhiMoEForCausalLM"]
    assert torch.equal(logits(loaded(pruned), TOKENS), wanted)
    assert torch.equal(logits(stock(pruned, trust_remote_code=True), TOKENS), wanted)


def test_a_config_of_transformers_4_which_keeps_the_key_as_it_is_written_is_understood() -> None:
    from transformers import Qwen2MoeConfig

    from moeits.modeling_moeits import _per_layer_config

    written = {"0": {"num_experts": 3}, "2": {"num_experts": 5}}
    config = Qwen2MoeConfig()
    assert _per_layer_config(config, config) == {}
    config.__dict__["per_layer_config"] = written
    assert _per_layer_config(config, config) == {0: {"num_experts": 3}, 2: {"num_experts": 5}}


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
    with pytest.raises(SettingError, match="WORLD_SIZE=many is not a number of processes"):
        processes()
