"""config.json of a pruned checkpoint, where the source's says more than one number."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import moeits
from moeits.errors import CheckpointError, SettingError
from tests.masked import TOLERANCE, logits, routers_masked
from tests.toys import make_toy, read_config
from tests.wrappers import make_wrapper

TOKENS = torch.arange(2, 26).view(2, 12)
OWN_TOP_K = {"1": {"sliding_window": 7, "num_experts_per_tok": 1}, "2": {"num_experts_per_tok": 2}}


def test_a_layer_that_picks_fewer_experts_leaves_the_other_layers_theirs(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", per_layer_config=OWN_TOP_K)
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["num_experts_per_tok"] == 2
    own = {"sliding_window": 7, "num_experts": 4, "num_experts_per_tok": 1}
    assert config["per_layer_config"] == {"0": {"num_experts": 4}, "1": own, "2": {"num_experts": 4}}
    assert [row.top_k for row in moeits.inspect(tmp_path / "out").layers] == [2, 1, 2]


def test_layers_that_pick_different_numbers_have_no_uniform_layout(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", per_layer_config=OWN_TOP_K)
    with pytest.raises(SettingError, match="one top_k for all layers, but those of this checkpoint have 1 and 2"):
        moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", layout="uniform")


@pytest.mark.parametrize(("chosen", "left"), [([2, 2, 2], [2, 2, 2]), ([4, 4, 4], [3, 3, 3])])
def test_a_top_k_that_is_a_list_stays_one_and_is_read_by_the_stock_class(
    tmp_path: Path, chosen: list[int], left: list[int]
) -> None:
    """As Hunyuan's config has it, with a number for each layer."""
    toy = make_toy(tmp_path / "toy", "hunyuan_v1_moe", dtype="float32", moe_topk=chosen)
    plan = moeits.simplify(toy, experts_per_layer=3, min_experts=1, output=tmp_path / "out")
    assert read_config(tmp_path / "out")["moe_topk"] == left
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert [layer.mlp.gate.top_k for layer in model.model.layers] == left
    if chosen == left:
        original = moeits.load(toy).eval()
        with routers_masked(original, plan.kept, 6):
            expected = logits(original, TOKENS)
        assert (logits(model, TOKENS) - expected).abs().max() < TOLERANCE * max(1.0, float(expected.abs().max()))


def test_layers_of_a_list_of_top_k_keep_each_their_own(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "hunyuan_v1_moe", dtype="float32", moe_topk=[1, 4, 2])
    assert [row.top_k for row in moeits.inspect(toy).layers] == [1, 4, 2]
    plan = moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "same")
    assert [row.top_k for row in moeits.inspect(tmp_path / "same").layers] == [1, 4, 2]
    original, ours = moeits.load(toy).eval(), moeits.load(tmp_path / "same").eval()
    with routers_masked(original, plan.kept, 6):
        expected = logits(original, TOKENS)
    assert (logits(ours, TOKENS) - expected).abs().max() < TOLERANCE * max(1.0, float(expected.abs().max()))
    moeits.simplify(toy, experts_per_layer=3, min_experts=1, output=tmp_path / "fewer")
    assert [row.top_k for row in moeits.inspect(tmp_path / "fewer").layers] == [1, 3, 2]


def test_other_settings_of_single_layers_stay_in_a_uniform_layout(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", per_layer_config={"1": {"sliding_window": 7, "num_experts_per_tok": 2}})
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", layout="uniform")
    config = read_config(tmp_path / "out")
    assert config["per_layer_config"] == {"1": {"sliding_window": 7}}
    assert (config["num_experts"], config["num_experts_per_tok"]) == (4, 2)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_every_key_that_says_how_many_experts_there_are_says_how_many_are_left(tmp_path: Path, layout: str) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe", num_local_experts=6)
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout=layout)
    config = read_config(tmp_path / "out")
    if layout == "uniform":
        assert config["num_experts"] == config["num_local_experts"] == len(plan.kept[0])
    else:
        counts = {key: len(kept) for key, kept in plan.kept.items()}
        for key in ("num_experts", "num_local_experts"):
            assert {int(i): own[key] for i, own in config["per_layer_config"].items()} == counts
    model = moeits.load(tmp_path / "out")
    assert [layer.mlp.gate.weight.shape[0] for layer in model.model.layers] == [len(k) for k in plan.kept.values()]


def test_unequal_layers_are_listed_as_others_publish_them_with_0_where_there_are_no_experts(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "deepseek_v2")
    assert read_config(toy)["first_k_dense_replace"] == 1
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout="per-layer")
    wanted = [0, *(len(kept) for kept in plan.kept.values())]
    assert read_config(tmp_path / "out")["num_experts_per_layer"] == wanted
    _, *layers = moeits.load(tmp_path / "out").model.layers
    assert [0, *(layer.mlp.gate.weight.shape[0] for layer in layers)] == wanted


def test_a_list_of_counts_is_of_the_checkpoint_beside_it_or_not_there(tmp_path: Path) -> None:
    moeits.simplify(make_toy(tmp_path / "toy"), tau=0.5, output=tmp_path / "first", layout="per-layer")
    again = moeits.simplify(tmp_path / "first", experts_per_layer=2, output=tmp_path / "again", layout="per-layer")
    counts = [len(kept) for kept in again.kept.values()]
    assert read_config(tmp_path / "again")["num_experts_per_layer"] == counts
    assert counts != read_config(tmp_path / "first")["num_experts_per_layer"]
    moeits.simplify(tmp_path / "first", experts_per_layer=2, output=tmp_path / "even", layout="uniform")
    assert "num_experts_per_layer" not in read_config(tmp_path / "even")


def test_a_model_in_a_wrapper_has_the_list_where_it_has_the_count(tmp_path: Path) -> None:
    toy = make_wrapper(tmp_path / "toy", "qwen3_5_moe")
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout="per-layer")
    config = read_config(tmp_path / "out")
    assert config["text_config"]["num_experts_per_layer"] == [len(kept) for kept in plan.kept.values()]
    assert "num_experts_per_layer" not in config


def test_two_keys_that_disagree_on_the_number_of_experts_are_a_sentence(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    (toy / "config.json").write_text(json.dumps({**read_config(toy), "num_local_experts": 8}))
    with pytest.raises(CheckpointError, match="twice and not alike: num_experts 6, num_local_experts 8"):
        moeits.inspect(toy)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_other_names_of_the_count_are_rewritten_with_it(tmp_path: Path, layout: str) -> None:
    toy = make_toy(tmp_path / "toy", "deepseek_v3", num_experts=6, num_local_experts=6)
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", layout=layout)
    config = read_config(tmp_path / "out")
    for values in [config] if layout == "uniform" else config["per_layer_config"].values():
        assert [values[key] for key in ("n_routed_experts", "num_experts", "num_local_experts")] == [4, 4, 4]


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_a_top_k_that_only_the_layers_have_is_kept(tmp_path: Path, layout: str) -> None:
    toy = make_toy(tmp_path / "toy", "olmoe")
    config = read_config(toy)
    top_k = config.pop("num_experts_per_tok")
    config["per_layer_config"] = {str(layer): {"num_experts_per_tok": top_k} for layer in range(3)}
    (toy / "config.json").write_text(json.dumps(config))
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", layout=layout)
    assert [row.top_k for row in moeits.inspect(tmp_path / "out").layers] == [top_k] * 3


@pytest.mark.parametrize("name", ["x--payload.MixtralForCausalLM", "a/b.C", "os.system", "../x", "", "_Private"])
def test_architectures_never_becomes_the_code_of_another_repository(tmp_path: Path, name: str) -> None:
    toy = make_toy(tmp_path / "toy", architectures=[name])
    with pytest.raises(CheckpointError, match="is not the name of a class"):
        moeits.simplify(toy, tau=1.0, output=tmp_path / "out", layout="per-layer")
    assert not (tmp_path / "out").exists()


def test_an_output_that_contradicts_its_config_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy")
    monkeypatch.setattr("moeits.surgery.carried_out.pruned_config", lambda config, *_: dict(config))
    with pytest.raises(CheckpointError, match="contradict its own config"):
        moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
