"""The table of families: what an entry may say, what rules make of a config, and that it travels with the package."""

import re
import runpy
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers
from hatchling.builders.wheel import WheelBuilder
from huggingface_hub.errors import StrictDataclassError

from moeits.choosing.criteria import CRITERIA
from moeits.edits import EDITS
from moeits.errors import FamilyError, UnknownArchitecture
from moeits.experts.families import (
    ARCHITECTURES,
    COUNT_KEYS,
    FAMILIES,
    REFUSED,
    TABLE,
    Architecture,
    architecture_of,
    read_families,
)

ROOT = Path(__file__).parents[1]
DEFAULTS = "\n[".join(TABLE.read_text(encoding="utf-8").split("\n[")[:2])


def of(model_type: str) -> Architecture:
    return architecture_of({"model_type": model_type})


def moe_layers(model_type: str, layers: int = 6, **config: Any) -> list[int]:
    config["num_hidden_layers"] = layers
    return [layer for layer in range(layers) if of(model_type).is_moe_layer(config, layer)]


def read(folder: Path, text: str) -> tuple[Architecture, ...]:
    (folder / "families.toml").write_text(f"{DEFAULTS}\n{text}", encoding="utf-8")
    return read_families(folder / "families.toml")


# ------------------------------------------------------------------------------------- the table


def test_an_entry_is_its_own_keys_over_those_it_is_like_over_the_defaults(tmp_path: Path) -> None:
    beta, alpha = read(tmp_path, '[beta]\nshared = ["s."]\nmodels = "Beta"\n[gamma]\nlike = "beta"\nshared = []')
    assert (beta.model_type, beta.models, beta.shared, beta.router) == ("beta", "Beta", ("s.",), ("gate.weight",))
    assert (alpha.model_type, alpha.models, alpha.shared, alpha.blocks) == ("gamma", "", (), beta.blocks)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[beta]\nexpertz = 1", r"\[beta\] of .* object contains unknown field `expertz`"),
        ("[beta]\nlayers.form = 1", r"unknown field `form` - at `\$\.layers`"),
        ('[beta]\nlayers.from = "first"', r"got `str` - at `\$\.layers\.from`"),
        ('[beta]\nstacking = "heap"', r"invalid enum value 'heap' - at `\$\.stacking`"),
        ("[beta]\nrouter = 3", r"expected `array`, got `int` - at `\$\.router`"),
        ('[beta]\nlike = "alpha"', "like 'alpha', which is not an entry"),
        ('[beta]\nlike = "beta"', "like 'beta', which is like it"),
        ('[alpha]\nlike = "beta"\n[beta]\nlike = "alpha"', "like 'alpha', which is like it"),
        ("[beta]\nlike = 3", "like 3, which is not an entry"),
        ('[beta]\nlike = ["alpha"]', r"like \['alpha'\], which is not an entry"),
        ("[beta", "not a table of families"),
        ("beta = " + 20_000 * "[", "not a table of families"),
    ],
)
def test_what_is_not_an_entry_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FamilyError, match=said) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)
    assert "docs/extending.md" in str(error.value)


def test_a_table_that_is_not_there_or_not_text_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="No such file"):
        read_families(tmp_path / "nowhere.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FamilyError, match="is not a table of families"):
        read_families(tmp_path / "bytes.toml")


def test_every_family_says_which_models_are_of_it() -> None:
    assert all(architecture.models for architecture in ARCHITECTURES)
    names = [architecture.model_type for architecture in ARCHITECTURES]
    assert names == sorted(set(names))


def families_page() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "families_page.py"))


def test_the_page_of_families_is_what_the_table_makes() -> None:
    page = families_page()["page"]()
    assert (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8") == page


def test_the_page_of_families_names_all_that_asks_the_router_again() -> None:
    again = {"reconstruction", "drop-error"}
    asking = [each.name for each in CRITERIA if again & {*each.needs}]
    asking += [f"--edit {each.name}" for each in EDITS if again & {*each.needs}]
    said = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").split('"in part" is all but')[1]
    assert set(re.findall(r"`([^`]+)`", said.split("for which")[0])) == {*asking}


def names_experts(config: Any) -> bool:
    """Whether a config of transformers, or one in it, counts experts."""
    config.allow_global_per_layer_attribute_access = True
    inner = (getattr(config, name, None) for name in config.sub_configs)
    return any(getattr(config, key, None) for key in COUNT_KEYS) or any(
        names_experts(part) for part in inner if isinstance(part, transformers.PreTrainedConfig)
    )


OF_OTHER_SETTINGS = {
    **dict.fromkeys(("dots1", "gemma4", "gemma4_text"), "its own config is one of a dense model until told otherwise"),
    **dict.fromkeys(("internvl", "lfm2_vl", "mistral3"), "takes a text model of any family, by itself a dense one"),
    "diffusion_gemma": "opened by an Auto class of its own",
}
"""Families with experts whose config, as transformers makes it without being told more, counts none."""


def test_every_family_of_transformers_with_experts_is_known_or_told_why_not() -> None:
    autos = ("CausalLM", "ImageTextToText", "TokenClassification", "Seq2SeqLM")
    opened = {config for auto in autos for config in getattr(transformers, f"AutoModelFor{auto}")._model_mapping}
    there = set()
    for model_type, config in transformers.CONFIG_MAPPING.items():
        # A few configs have no defaults that their own class accepts, none of them of experts.
        with suppress(ValueError, StrictDataclassError):
            if config in opened and names_experts(config()):
                there.add(model_type)
    page, ours = families_page(), {architecture.model_type for architecture in ARCHITECTURES}
    assert {family.model_type for family in FAMILIES if family.class_on_hub} >= page["OF_TRANSFORMERS_TOO"]
    on_page = {*ours, *REFUSED, *page["OF_TRANSFORMERS_TOO"]} - page["CALLED_SO_ON_THE_HUB"]
    assert not there & OF_OTHER_SETTINGS.keys()
    assert there | OF_OTHER_SETTINGS.keys() == on_page
    assert len(on_page) == 87


def test_readme_counts_the_families() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", readme, re.M)
    assert set(named) <= {architecture.model_type for architecture in ARCHITECTURES}
    assert f"| {len(ARCHITECTURES) - len(named)} more |" in readme


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("moeits/")}
    package = ROOT / "src"
    ours = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert inside == {name for name in ours if "__pycache__" not in name}
    assert "moeits/experts/families.toml" in inside


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"thinker_config": {"text_config": {"model_type": "moe", "num_experts": 8}}},
            r"thinker_config.text_config \(moe\)",
        ),
        ({"llm_config": {"model_type": "moe", "num_experts": 8}}, r"in its llm_config \(moe\)"),
        ({"ffn_config": {"moe_num_experts": 8}}, "No architecture 'odd'"),
        ({"hidden_size": 8}, "is not a Mixture of Experts"),
    ],
)
def test_what_is_not_known_is_called_what_it_is(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownArchitecture, match=said):
        architecture_of({"model_type": "odd", **config})


@pytest.mark.parametrize(
    ("model_type", "hint"),
    [
        ("qwen2moe", "Did you mean 'qwen2_moe'?"),
        ("Kimi-K2", "Did you mean 'kimi_k2'?"),
        ("deepseek_v5", "It may be like 'deepseek_v"),
        ("minimax_m4", "It may be like 'minimax_m2', of the same makers"),
        *((name, "") for name in ("openmoe", "gemmoe", "arctic", "step_moe_9", "olmo_next", "9moe")),
    ],
)
def test_a_hint_is_a_name_spelt_otherwise_or_of_the_same_makers(model_type: str, hint: str) -> None:
    with pytest.raises(UnknownArchitecture) as error:
        architecture_of({"model_type": model_type, "num_experts": 8})
    said = str(error.value).removeprefix(f"No architecture '{model_type}'.").partition(" Known: ")[0].strip()
    assert said.startswith(hint) if hint else said == ""


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_that_cannot_be_described_is_told_why(model_type: str) -> None:
    assert model_type not in {architecture.model_type for architecture in ARCHITECTURES}
    # The hub's own name of ernie4_5_vl_moe.
    assert model_type in transformers.CONFIG_MAPPING or model_type == "ernie4_5_moe_vl"
    with pytest.raises(UnknownArchitecture, match=f"cannot prune a {model_type} checkpoint: .*[a-z]\\.$"):
        architecture_of({"model_type": model_type, "num_experts": 8})


# ------------------------------------------------------------------------------------- the rules


def test_layers_begin_and_end_where_the_config_says() -> None:
    assert moe_layers("lfm2_moe") == [2, 3, 4, 5]
    assert moe_layers("deepseek_v2") == [*range(6)]
    assert moe_layers("deepseek_v2", first_k_dense_replace=3) == [3, 4, 5]
    assert moe_layers("ernie4_5_moe") == [1, 2, 3, 4, 5]
    assert moe_layers("ernie4_5_moe", moe_layer_start_index=2, moe_layer_end_index=4) == [2, 3, 4]
    assert moe_layers("ernie4_5_moe", moe_layer_end_index=None) == moe_layers("ernie4_5_moe", moe_layer_end_index=-1)
    assert moe_layers("ernie4_5_moe", moe_layer_start_index=0, moe_layer_end_index=0) == [0]


def test_every_so_many_layers_are_counted_as_the_family_counts() -> None:
    assert moe_layers("deepseek_v3", first_k_dense_replace=0, moe_layer_freq=2) == [0, 2, 4]
    assert moe_layers("qwen2_moe", decoder_sparse_step=2) == [1, 3, 5]
    assert moe_layers("jamba", expert_layer_period=3, expert_layer_offset=2) == [2, 5]
    assert moe_layers("jamba") == [1, 3, 5]


def test_conditions_hold_together() -> None:
    assert moe_layers("deepseek_v3", first_k_dense_replace=1, moe_layer_freq=2) == [2, 4]
    assert moe_layers("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[3]) == [1, 5]
    assert moe_layers("ernie4_5_moe", moe_layer_start_index=2, moe_layer_interval=2) == [3, 5]


def test_a_list_of_layers_decides_alone() -> None:
    kinds = ["sparse", "dense", "sparse"]
    assert moe_layers("deepseek_v32", 3, mlp_layer_types=kinds, first_k_dense_replace=3) == [0, 2]
    assert moe_layers("minimax_m3_vl_text", 3, moe_layer_freq=[0, 1, 1]) == [1, 2]
    with pytest.raises(ValueError, match="mlp_layer_types ends before layer 3"):
        moe_layers("deepseek_v32", 4, mlp_layer_types=kinds)
    assert moe_layers("llama4_text", moe_layers=[0, 4], interleave_moe_layer_step=2) == [0, 4]
    assert moe_layers("llama4_text", moe_layers=None, interleave_moe_layer_step=2) == [1, 3, 5]
    assert moe_layers("llama4_text", moe_layers=[]) == []


@pytest.mark.parametrize("nothing", [None, 0])
def test_what_nothing_means_differs_from_family_to_family(nothing: int | None) -> None:
    assert moe_layers("deepseek_v3", moe_layer_freq=nothing) == [3, 4, 5]
    assert moe_layers("ernie4_5_moe", moe_layer_interval=nothing) == [1, 2, 3, 4, 5]
    for model_type, key in (
        ("qwen2_moe", "decoder_sparse_step"),
        ("llama4_text", "interleave_moe_layer_step"),
        ("jamba", "expert_layer_period"),
    ):
        with pytest.raises((TypeError, ZeroDivisionError)):
            moe_layers(model_type, **{key: nothing})


def test_groups_limit_v2_if_it_is_told_so_and_v3_always() -> None:
    config = {"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3}
    limited = {**config, "topk_method": "group_limited_greedy"}
    assert [of("deepseek_v2").groups(each) for each in (config, limited)] == [1, 8]
    assert [of("deepseek_v2").least_per_group(each) for each in (config, limited)] == [1, 2]
    assert [of("deepseek_v3").groups(each) for each in (config, limited)] == [8, 8]
    assert of("deepseek_v3").least_per_group({**config, "topk_group": 1}) == 6
    assert of("deepseek_v3").least_per_group({**config, "n_group": 1}) == 2


def test_the_fewest_experts_of_a_router_are_the_family_s() -> None:
    least = {each.model_type: each.least_per_group({each.top_k_key: 8}) for each in ARCHITECTURES}
    assert least["jamba"] == least["phimoe"] == least["glm4_moe"] == least["deepseek_v3"] == 2
    assert least["mixtral"] == least["deepseek_v2"] == 1
