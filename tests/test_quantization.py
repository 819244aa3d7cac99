"""Expert numbers in what a quantizer wrote: they are those of the kept experts, or the pattern is refused.

The oracle is Python's `re` and `fnmatch`, asked as the loaders ask: on the names of the modules, before and after.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from moeits.experts.layout import MoELayout
from moeits.surgery.quantization import renumbered_settings
from tests.toys import make_toy, read_config

EXPERTS, LAYERS = 6, 3
ALIKE = dict.fromkeys(range(LAYERS), (0, 3, 5))
UNLIKE = {0: (0, 3, 5), 1: (1, 2, 3, 4), 2: (5,)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("quantized") / "toy", "qwen3_moe", experts=EXPERTS, layers=LAYERS)


def renumbered(toy: Path, kept: Mapping[int, Sequence[int]], value: Any) -> Any:
    """As `quantization_config` of config.json."""
    checkpoint, config = Checkpoint.open(toy), {"quantization_config": {"of": value}}
    return renumbered_settings(checkpoint, MoELayout.of(checkpoint), kept, config)[0]["quantization_config"]["of"]


def module(layer: int, expert: int, tail: str = "down_proj") -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{tail}"


def modules_of(counts: Mapping[int, int]) -> list[str]:
    return [
        module(layer, expert, tail)
        for layer, count in counts.items()
        for expert in range(count)
        for tail in ("gate_proj", "up_proj", "down_proj")
    ]


def new_names(kept: Mapping[int, Sequence[int]]) -> dict[str, str]:
    """Old name of every module of a kept expert -> its new name."""
    return {
        module(layer, old, tail): module(layer, new, tail)
        for layer, experts in kept.items()
        for new, old in enumerate(experts)
        for tail in ("gate_proj", "up_proj", "down_proj")
    }


def matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


@pytest.mark.parametrize("kept", [ALIKE, UNLIKE])
def test_names_follow_their_experts_and_those_of_removed_experts_go(toy: Path, kept: dict[int, Any]) -> None:
    every = modules_of(dict.fromkeys(range(LAYERS), EXPERTS))
    other = [
        "lm_head",
        "model.layers.1.mlp.gate",
        "model.layers.2.self_attn.q_proj",
        "model.layers.7.mlp.experts.3.up_proj",
    ]
    new = renumbered(toy, kept, {"quant_method": "compressed-tensors", "bits": 4, "ignore": [*other, *every]})
    wanted = [new_names(kept)[name] for name in every if name in new_names(kept)]
    assert new == {"quant_method": "compressed-tensors", "bits": 4, "ignore": [*other, *wanted]}


@pytest.mark.parametrize("key", ["ignore", "modules_to_not_convert", "exclude_modules"])
def test_numbers_of_a_pattern_are_replaced_in_place_where_layers_agree(toy: Path, key: str) -> None:
    patterns = [r"re:.*experts\.(3|5)\..*", r"re:.*experts\.[0-3]\.up_proj", r"re:.*experts\.4\..*", "*.experts.5.*"]
    assert renumbered(toy, ALIKE, {key: patterns}) == {
        key: [r"re:.*experts\.(?:1|2)\..*", r"re:.*experts\.(?:0|1)\.up_proj", "*.experts.2.*"]
    }


@pytest.mark.parametrize(
    "pattern",
    [
        "re:.*lm_head", r"re:.*mlp\.experts\.\d+\.down_proj", r"re:.*self_attn.*", "*self_attn*", "model.layers.0*",
        "*.mlp.gate", r"re:model\.layers\.1\..*", "Linear", "re:.*experts.*",
    ],
)  # fmt: skip
def test_what_names_no_expert_by_number_stays(toy: Path, pattern: str) -> None:
    for kept in (ALIKE, UNLIKE):
        assert renumbered(toy, kept, {"ignore": [pattern]}) == {"ignore": [pattern]}


@pytest.mark.parametrize(
    "pattern",
    [
        r"re:.*experts\.(3|5)\..*", r"re:.*\.3\..*proj", r"re:.*experts\.[^0]\.(gate|up)_proj$", "*.experts.3.*",
        r"re:.*(experts\.5|self_attn)\..*", r"re:.*experts\.2\.|.*experts\.4\.", "*experts.[1-4].up_proj",
        r"re:model\.layers\.(1|2)\.mlp\.experts\.4\..*", r"re:model.layers.1.mlp.experts.3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [ALIKE, UNLIKE])
def test_a_pattern_matches_afterwards_what_it_matched_before(toy: Path, kept: dict[int, Any], pattern: str) -> None:
    assert_same_modules(toy, kept, pattern)


def assert_same_modules(toy: Path, kept: Mapping[int, Sequence[int]], pattern: str) -> None:
    new = renumbered(toy, kept, {"ignore": [pattern]})["ignore"]
    wanted = {after for before, after in new_names(kept).items() if matches(pattern, before)}
    left = modules_of({layer: len(experts) for layer, experts in kept.items()})
    assert {name for name in left if any(matches(each, name) for each in new)} == wanted
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.gate", "lm_head"):
        assert any(matches(each, name) for each in new) == matches(pattern, name)


@given(
    kept=st.fixed_dictionaries(
        {layer: st.sets(st.integers(0, EXPERTS - 1), min_size=1).map(sorted).map(tuple) for layer in range(LAYERS)}
    ),
    numbers=st.sampled_from(["{}", "({}|{})", "(?:{}|{})", "[{}-{}]", "[^{}]", r"(?!{})\d"]),
    digits=st.tuples(st.integers(0, EXPERTS - 1), st.integers(0, EXPERTS - 1)).map(sorted),
    before=st.sampled_from([".*", r"model\.layers\.(0|2)\.mlp\.", r"model\.layers\.1\.mlp\.", "(?:model|x).*"]),
    after=st.sampled_from([r"\..*", r"\.down_proj", r"\.(gate|up)_proj$", "", r"\D"]),
)
@settings(deadline=None, max_examples=60)
def test_any_kept_sets_and_any_numbers(
    toy: Path, kept: Any, numbers: str, digits: Any, before: str, after: str
) -> None:
    assert_same_modules(toy, kept, rf"re:{before}experts\.{numbers.format(*digits)}{after}")


def test_gptq_keeps_the_order_and_the_settings_of_its_dynamic_patterns(toy: Path) -> None:
    dynamic = {
        r"-:.*\.experts\.4\..*": {},
        r"-:.*\.experts\.3\..*": {},
        r"+:.*\.experts\.(3|5)\..*": {"bits": 8},
        r".*\.3\..*down.*": {"bits": 2},
        "lm_head": {"bits": 4},
    }
    new = renumbered(toy, ALIKE, {"bits": 4, "dynamic": dynamic})["dynamic"]
    assert list(new)[:2] == [r"-:.*\.experts\.1\..*", r"+:.*\.experts\.(?:1|2)\..*"]
    assert list(new.values()) == [{}, {"bits": 8}, *[{"bits": 2}] * (len(new) - 3), {"bits": 4}]
    of_three = [key for key, value in new.items() if value == {"bits": 2}]
    assert [any(re.match(key, module(1, expert)) for key in of_three) for expert in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("re:.*experts\\.(3|5", "not a regular expression"),
        ("mlp.experts.3.down_proj", "different numbers in different layers"),
        ("re:" + "x" * 3000, "longer than"),
        ("re:(.*?.*?.*?.*?.*?.*?.*?.*?)[A-Z]", "takes too long"),
        ("re:(?:(?:(?:a{1000}){1000}){1000}){1000}", "repeats more than"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_the_pattern(
    toy: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, why: str
) -> None:
    monkeypatch.setattr("moeits.surgery.quantization._SECONDS_OF_ONE", 0.2)
    with pytest.raises(CheckpointError, match=why) as error:
        renumbered(toy, UNLIKE, {"ignore": [pattern]})
    assert json.dumps(pattern[:40])[1:-1] in str(error.value)


def test_patterns_that_take_too_long_together_are_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeits.surgery.quantization._SECONDS", 0.0)
    with pytest.raises(CheckpointError, match="matching all patterns takes too long"):
        renumbered(toy, ALIKE, {"ignore": [r"re:.*experts\.3\..*"]})


def test_all_files_of_a_checkpoint_share_the_time_for_their_patterns(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("moeits.surgery.quantization.process_time", lambda: float(next(ticks)))
    monkeypatch.setattr("moeits.surgery.quantization._SECONDS", 1e9)
    pattern = {"ignore": [r"re:.*experts\.3\..*"]}
    renumbered(toy, ALIKE, pattern)
    monkeypatch.setattr("moeits.surgery.quantization._SECONDS", 1.5 * next(ticks))
    renumbered(toy, ALIKE, pattern)
    checkpoint = Checkpoint.open(toy)
    config = {"quantization_config": pattern, "compression_config": pattern}
    with pytest.raises(CheckpointError, match=r"^compression_config .* takes too long"):
        renumbered_settings(checkpoint, MoELayout.of(checkpoint), ALIKE, config)


def test_the_settings_of_a_part_of_a_model_are_renumbered_where_they_are(toy: Path) -> None:
    """Kimi-K2.5 has them in its text_config, and some have them in both."""
    checkpoint, names = Checkpoint.open(toy), {"ignore": [module(0, 5), "lm_head"]}
    config = {"quantization_config": names, "text_config": {"quantization_config": names, "hidden_size": 7}}
    new, _ = renumbered_settings(checkpoint, MoELayout.of(checkpoint), ALIKE, config)
    expected = {"ignore": [module(0, 2), "lm_head"]}
    assert new == {
        "quantization_config": expected,
        "text_config": {"quantization_config": expected, "hidden_size": 7},
    }


def test_settings_nested_too_deeply_are_a_sentence(toy: Path) -> None:
    nested: Any = ["lm_head"]
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(CheckpointError, match=r"config\.json is nested too deeply"):
        renumbered(toy, ALIKE, nested)


def test_a_name_without_its_layer_follows_its_expert_where_layers_agree(toy: Path) -> None:
    assert renumbered(toy, ALIKE, [["mlp.experts.3.up_proj", "mlp.experts.4.up_proj"]]) == [["mlp.experts.1.up_proj"]]


def test_config_and_side_files_of_the_output_name_the_kept_experts(tmp_path: Path) -> None:
    ignore = ["lm_head", module(0, 5), module(1, 0), r"re:.*experts\.\d+\.up_proj"]
    toy = make_toy(tmp_path / "toy", "qwen3_moe", quantization_config={"quant_method": "fp8", "ignore": ignore})
    side = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*experts.3.*"]}}
    (toy / "hf_quant_config.json").write_text(json.dumps(side))
    (toy / "quantize_config.json").write_text(json.dumps({"bits": 4, "dynamic": {r"-:.*experts\.(0|5)\..*": {}}}))
    plan = moeits.plan(moeits.score(toy), experts_per_layer=3)
    plan = replace(plan, kept=ALIKE, order={})
    moeits.prune(toy, plan=plan, output=tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["quantization_config"]["ignore"] == ["lm_head", module(0, 2), module(1, 0), ignore[3]]
    assert json.loads((tmp_path / "out/hf_quant_config.json").read_text()) == {
        "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*experts.1.*"]}
    }
    new = json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert new == {"bits": 4, "dynamic": {r"-:.*experts\.(?:0|2)\..*": {}}}


def test_a_pattern_that_cannot_be_translated_is_said_before_anything_is_written(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    (toy / "quant_config.json").write_text(json.dumps({"modules_to_not_convert": ["mlp.experts.3.up_proj"]}))
    plan = replace(moeits.plan(moeits.score(toy), experts_per_layer=3), kept=UNLIKE, order={})
    plan = replace(plan, kept={**UNLIKE, 2: (4, 5)})
    with pytest.raises(CheckpointError, match=r"quant_config.json names experts by 'mlp.experts.3.up_proj'"):
        moeits.prune(toy, plan=plan, output=tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
