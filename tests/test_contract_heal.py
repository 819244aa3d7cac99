"""What healing must do for every registered architecture: unequal layers, shared experts, any layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import HealingError
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.healing.targets import can_be_healed
from tests.healing_toys import make_pruned, texts, write_rows
from tests.toys import BY_THEMSELVES, MODEL_TYPES, read_config, read_tensors

torch = pytest.importorskip("torch")

# peft 0.21 asks transformers 5.23 for this by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TINY = {
    "recipe": "small",
    "rank": 4,
    "batch_size": 4,
    "steps": 12,
    "sequence_length": 16,
    "packing": False,
    "learning_rate": 1e-2,
    "dropout": 0.1,
}


# Whatever its files say, transformers opens their tokenizer as byte-level BPE, which cannot hold the words of a toy.
UNTOLD = {"qwen3_5_moe_text"}
REFUSED = tuple(architecture.model_type for architecture in BY_THEMSELVES if not can_be_healed(architecture))
HEALED = tuple(model_type for model_type in MODEL_TYPES if model_type not in {*REFUSED, *UNTOLD})


def of_each_kind() -> list[Any]:
    """The families, those marked that keep router, experts and shared experts as one before them does.

    The paper's own come first.
    """
    params, kinds = [], set()
    for model_type in sorted(HEALED, key=lambda name: name not in {"mixtral", "qwen2_moe", "deepseek_v2", "olmoe"}):
        family = architecture_of({"model_type": model_type})
        names = (family.blocks, tuple(family.projections.values()), family.router, family.router_in_memory)
        kind = (*names, family.shared, family.affinity)
        params.append(pytest.param(model_type, marks=[pytest.mark.every_family] if kind in kinds else []))
        kinds.add(kind)
    return params


@pytest.fixture(scope="module", params=of_each_kind())
def healed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(pruned checkpoint, healed checkpoint, what heal returned) of one architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    pruned = make_pruned(folder, request.param, layers=3)
    data = write_rows(folder / "data.jsonl", texts())
    healing = moeits.heal(pruned, data=data, output=folder / "healed", keep_adapter=True, **TINY)
    return pruned, folder / "healed", healing


def logits(model) -> np.ndarray:
    ids = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.numpy()


def adapted(folder: Path) -> set[str]:
    """Tensors of routed experts and the weights of their routers; no biases."""
    layers = MoELayout.of(Checkpoint.open(folder)).layers.values()
    return {name for layer in layers for name in (next(iter(layer.router)), *layer.fused.values())} | {
        name for layer in layers for tensors in layer.experts.values() for name in tensors.values()
    }


def test_only_router_and_experts_change_and_all_of_them_do(healed):
    pruned, output, _ = healed
    before, after = read_tensors(pruned), read_tensors(output)
    assert before.keys() == after.keys()
    asked = adapted(pruned)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert (after[name].tobytes() == value.tobytes()) != (name in asked), name


def test_the_healed_checkpoint_says_what_the_pruned_one_said(healed):
    pruned, output, _ = healed
    assert read_config(output) == read_config(pruned)
    assert (output / "plan.json").read_bytes() == (pruned / "plan.json").read_bytes()


def test_peft_loads_the_kept_adapter_onto_the_pruned_model_with_the_healed_logits(healed):
    peft = pytest.importorskip("peft")
    pruned, output, _ = healed
    merged = logits(moeits.load(output))
    base = moeits.load(pruned)
    plain = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, output / "adapter"))
    # float32 sums in another order; the model itself moved by far more.
    assert np.abs(adapted - merged).max() < 1e-5
    assert np.abs(plain - merged).max() > 1e-3


def test_the_loss_on_disk_is_the_loss_of_the_adapter(healed):
    _, _, healing = healed
    assert healing.loss_merged == pytest.approx(healing.loss_after, abs=1e-5)
    assert healing.loss_after < healing.loss_before


def test_a_reload_is_equal_to_the_bit(healed):
    _, output, _ = healed
    assert (logits(moeits.load(output)) == logits(moeits.load(output))).all()


def test_nothing_of_the_run_is_left_beside_the_output(healed):
    pruned, output, _ = healed
    beside = {path.name for path in output.parent.iterdir()}
    assert beside == {"toy", pruned.name, output.name, "data.jsonl"}


def test_the_record_names_recipe_data_and_curves(healed, tmp_path: Path):  # noqa: ARG001
    import json

    _, output, healing = healed
    record = json.loads((output / "healing.json").read_text())
    assert record["recipe"]["rank"] == 4
    assert record["data"]["fingerprint"] == healing.data["fingerprint"]
    assert [row["step"] for row in record["curves"]["training"]] == list(range(1, TINY["steps"] + 1))
    assert str(output.parent) not in (output / "healing.json").read_text()
    assert "## Healing" in (output / "README.md").read_text()


# As DeepSeek-V3 (arXiv 2412.19437, eq. 15) and those that follow it have it. All others take a softmax, but for V4.
SIGMOID = {
    *("afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "flint"),
    *("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hy_v3", "kimi_linear", "laguna", "lfm2_moe", "mimo_v2_flash"),
    *("dots3_note_text", "minimax_m2", "solar_open"),
}


def probabilities(logits: np.ndarray, model_type: str) -> np.ndarray:
    """s_i / sum_j s_j of a token's affinities s, as the paper of each family has them."""
    affinities = 1 / (1 + np.exp(-logits)) if model_type in SIGMOID else np.exp(logits)
    if model_type == "deepseek_v4":
        affinities = np.sqrt(np.log1p(np.exp(logits)))
    return affinities / affinities.sum(-1, keepdims=True)


def test_the_balance_term_is_that_of_the_papers_for_the_affinities_of_the_family(healed):
    from moeits.healing.objective import balance_of, choosing_module
    from moeits.healing.recipe import HealingRecipe
    from moeits.healing.targets import router_in_memory

    pruned, _, _ = healed
    model, layout = moeits.load(pruned).eval(), MoELayout.of(Checkpoint.open(pruned))
    balance = balance_of(model, layout, HealingRecipe(balance=1.0))
    seen: list[tuple[np.ndarray, ...]] = []
    for layer in layout.layers:
        router = choosing_module(model, router_in_memory(layout.architecture, layer))
        router.register_forward_hook(lambda _, __, out: seen.append(tuple(each.numpy() for each in out)))
    with torch.no_grad():
        model(input_ids=torch.arange(2, 26).view(2, 12), use_cache=False)
        found = float(balance({"attention_mask": torch.ones(2, 12)}))
    terms, model_type = [], layout.architecture.model_type
    for layer, (logits, gates, chosen) in zip(layout.layers.values(), seen, strict=True):
        p = probabilities(logits[:, : layer.num_experts].astype(float), model_type)
        f = np.bincount(chosen.ravel(), minlength=layer.num_experts) / chosen.size
        terms.append(layer.num_experts * (f * p.mean(0)).sum())
        # Phi-MoE's gates are of a softmax each, over what is left after jitter (Sparsemixer).
        if model_type != "phimoe":
            picked = np.take_along_axis(p, chosen, -1)
            shares = picked / picked.sum(-1, keepdims=True)
            assert np.allclose(gates / gates.sum(-1, keepdims=True), shares, atol=1e-5), "the affinity is another one"
    assert found == pytest.approx(np.mean(terms), abs=1e-5)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_that_cannot_be_healed_is_a_sentence(tmp_path: Path, model_type: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", texts())
    with pytest.raises(HealingError, match=f"{model_type} can be scored and pruned, but not healed"):
        moeits.heal(make_pruned(tmp_path, model_type, layers=3), data=data, output=tmp_path / "healed", **TINY)
