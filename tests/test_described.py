"""A family that moeits does not know, described in a file of the user's: `--architecture my-family.toml`."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeits
from moeits.command_line.app import COMMANDS, stage_of
from moeits.errors import BudgetOutOfReach, CheckpointError, FamilyError, PlanError, SettingError, UnknownArchitecture
from moeits.experts.described import read_described
from tests.healing_toys import write_rows, write_tokenizer
from tests.masked import TOLERANCE, logits, routers_masked
from tests.toys import make_toy, read_config, read_tensors, write_checkpoint
from tests.unknown import forget

TOKENS = torch.arange(2, 26).view(2, 12)
OPENS_NONE = {"plan", "gather", "compare", "report", "push", "run", "export"}
"""Commands that read files of numbers only, or what moeits made, which says itself how it is described."""


@pytest.fixture
def unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint of a family that the table does not have, and a file that describes it."""
    toy = make_toy(tmp_path / "toy", "qwen3_moe", dtype="float32")
    entry = forget(monkeypatch, tmp_path / "table", "qwen3_moe")
    (tmp_path / "mine.toml").write_text(entry)
    return toy, tmp_path / "mine.toml"


def described(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def test_every_command_that_opens_a_checkpoint_takes_a_description() -> None:
    for name in COMMANDS:
        assert ("architecture" in inspect.signature(stage_of(name)).parameters) == (name not in OPENS_NONE), name


def test_without_a_description_it_is_refused_and_the_way_out_is_named(unknown: tuple[Path, Path]) -> None:
    with pytest.raises(UnknownArchitecture, match=r"inspect MODEL --explain prints .* for --architecture\.$"):
        moeits.score(unknown[0])


@pytest.mark.parametrize("counts", [{0: (1, 4), 1: (0, 2, 3, 5), 2: (2, 5)}, dict.fromkeys(range(3), (1, 2, 4))])
def test_its_pruned_model_computes_what_the_masked_original_computes(
    unknown: tuple[Path, Path], tmp_path: Path, counts: dict[int, tuple[int, ...]]
) -> None:
    toy, mine = unknown
    plan = moeits.plan(moeits.score(toy, architecture=mine), experts_per_layer=4).facts()
    plan |= {"kept": {str(layer): list(kept) for layer, kept in counts.items()}, "order": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out", architecture=mine)
    original = moeits.load(toy, architecture=mine).eval()
    with routers_masked(original, counts, 6):
        expected = logits(original, TOKENS)
    ours = logits(moeits.load(tmp_path / "out").eval(), TOKENS)
    assert (ours - expected).abs().max() < TOLERANCE * max(1.0, float(expected.abs().max()))


def test_evidence_plan_and_output_remember_it_so_that_nobody_needs_the_file_again(
    unknown: tuple[Path, Path], tmp_path: Path
) -> None:
    toy, mine = unknown
    moeits.score(toy, architecture=mine, output=tmp_path / "evidence.safetensors")
    mine.unlink()
    moeits.plan(tmp_path / "evidence.safetensors", experts_per_layer=4, output=tmp_path / "plan.json")
    moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "out")
    assert moeits.inspect(tmp_path / "out").layers[0].experts == 4
    again = moeits.simplify(tmp_path / "out", experts_per_layer=3, output=tmp_path / "again")
    assert [*again.counts.values()] == [3, 3, 3]
    assert (
        read_config(tmp_path / "again")["moeits"]["family"]
        == json.loads((tmp_path / "plan.json").read_text())["family"]
    )
    assert moeits.load(tmp_path / "again").eval() is not None


def test_a_family_of_the_table_leaves_no_description_behind(tmp_path: Path) -> None:
    plan = moeits.simplify(make_toy(tmp_path / "toy"), experts_per_layer=4, output=tmp_path / "out")
    assert plan.family is None
    assert "family" not in plan.facts()
    assert "family" not in read_config(tmp_path / "out")["moeits"]


def test_one_that_transformers_does_not_know_either_is_pruned_byte_for_byte(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": "mine"}))
    mine = described(tmp_path, '[mine]\nlike = "qwen3_moe"\nmodels = "Mine"')
    plan = moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", architecture=mine)
    before, after = read_tensors(toy), read_tensors(tmp_path / "out")
    for layer, kept in plan.kept.items():
        block = f"model.layers.{layer}.mlp."
        assert (after[block + "gate.weight"] == before[block + "gate.weight"][list(kept)]).all()
        for number, expert in enumerate(kept):
            name = block + "experts.{}.up_proj.weight"
            assert (after[name.format(number)] == before[name.format(expert)]).all()


def test_an_entry_may_be_like_another_of_the_file_or_one_of_ours(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "minimax_m2")
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": "mine"}))
    both = described(tmp_path, '[mine]\nlike = "base"\n[base]\nlike = "minimax_m2"\nmodels = "Base"')
    assert moeits.inspect(toy, architecture=both).model_type == "mine"


@pytest.mark.parametrize(
    ("block", "below"),
    [
        ("model.layers.{layer}.mlp", "layers.{layer}.mlp"),
        ("layers.{layer}", "layers.{layer}"),
        ("transformer.h.{layer}.moe", "h.{layer}.moe"),
        ("model.decoder_layers.{layer}.moe", "decoder_layers.{layer}.moe"),
        ("model.layers.blocks.{layer}.moe", "blocks.{layer}.moe"),
        ("{layer}.moe", "{layer}.moe"),
    ],
)
def test_prefixes_are_in_the_place_of_what_comes_before_the_list_of_layers_whatever_it_is_called(
    tmp_path: Path, block: str, below: str
) -> None:
    mine = described(tmp_path, f'[mine]\nblocks = ["{block}"]\npart = "text_config"\nprefixes = ["a.", "model.b."]')
    (family,) = read_described(mine)
    assert family.blocks == (f"a.{below}", f"model.b.{below}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mine]\nexpertz = 1", r"\[mine\] of .*mine.toml is not a family: object contains unknown field `expertz`"),
        ("[mine]\n[mine]", "mine.toml is not a table of families: .*(twice|more than once)"),
        ('[qwen2_moe]\nmodels = "x"', r"has an entry \[qwen2_moe\], and moeits has one already"),
        ("[defaults]\nrouter = []", r"has an entry \[defaults\], and moeits has one already"),
        ('[mine]\nlike = "theirs"', "like 'theirs', which is not an entry"),
        ('[other]\nlike = "qwen3_moe"', "describes other, and the checkpoint is of type mine"),
        ("", "describes nothing, and the checkpoint is of type mine"),
        ("mine = 3", "it is like 'mine', which is not an entry"),
        ('[mine]\nmodel_type = "other"', "has a key model_type, which is its heading already"),
        ('[mine]\nblocks = ["model.layers.mlp"]', r"should have \{layer\} in it once"),
        ('[mine]\nblocks = ["model.{layer}.{x}"]', r"should have \{layer\} in it once"),
        ("[mine]\nrouter = []", "at least one name each"),
        ('[mine]\nexpert = "experts.{tensor}"', r"should have \{expert\} in it once"),
        ('[mine]\nexpert = "experts.{expert}.{foo}.{tensor}"', "then {tensor} once, and no other braces"),
        ("[mine]\nfused = {}", "fused should name every projection once"),
        ('[mine.fused]\na = []\nb = ["gate", "up"]\nc = ["down"]', "and one or more at each tensor"),
        ("[mine]\nwithin = []", "within should have at least one name"),
        ("[mine]\nleast_experts = 0", "least_experts is 0, and should be 1 or more"),
        ('[mine]\nexpert_axis = { "gate.weight" = -1 }', "expert_axis of 'gate.weight' is -1, and should be 0 or more"),
        ('[mine]\nexpert_axis = { "gate.wait" = 1 }', "expert_axis is of 'gate.wait', which is not among the names of"),
        ('[mine]\nextra_rows = { "gate.weight" = -1 }', "extra_rows of 'gate.weight' is -1, and should be 0 or more"),
        ('[mine]\nextra_rows = { "gate.wait" = 1 }', "extra_rows is of 'gate.wait', which is not among the names of"),
        (
            '[mine.extra_rows]\n"gate.weight" = { key = "others", absent = -1 }',
            "gives gate.weight -1 entries for others",
        ),
        ("[mine]\nlayers.frm = 3", r"object contains unknown field `frm` - at `\$\.layers`"),
        ('[mine]\nprojections = { gate = "g.weight" }', "projections are gate, in fused gate, up, down"),
        ('[mine]\nmodel_class = "a.b"', "'a.b' is not the name of a class"),
        ('[mine]\nrouter = ["router.weight"]', r"Layer 0 should be a MoE layer .*mlp\.router\.weight"),
        ('[mine]\nshared = ["experts."]', "would be of a routed expert and of what is shared"),
        ("[mine]\nlayers.from = 1", "Layer 0 has a router, but no experts by config.json"),
        ('[mine]\nnum_experts_keys = ["experts"]', "config.json has no experts"),
        ('[mine]\npart = "text_config"', "has no text_config"),
    ],
)
def test_a_description_that_does_not_do_is_a_sentence_before_any_work(tmp_path: Path, text: str, said: str) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": "mine"}))
    mine = described(tmp_path, text)
    for stage, arguments in ((moeits.score, {}), (moeits.simplify, {"experts_per_layer": 4})):
        with pytest.raises((FamilyError, CheckpointError), match=said) as error:
            stage(toy, output=tmp_path / "out", architecture=mine, **arguments)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "toy"]


def as_mine(toy: Path, **changes: Any) -> Path:
    """A toy of a type that nobody knows."""
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"model_type": "mine"} | changes))
    return toy


@pytest.mark.parametrize("more", [1, 5])
def test_more_rows_of_a_router_than_experts_and_explained_others_are_a_sentence(tmp_path: Path, more: int) -> None:
    toy = make_toy(tmp_path / "toy", "qwen3_moe")
    tensors = {
        name: np.concatenate([value, value[: 1 + more]]) if name.endswith("mlp.gate.weight") else value
        for name, value in read_tensors(toy).items()
    }
    wide = write_checkpoint(tmp_path / "wide", read_config(toy) | {"model_type": "mine"}, tensors)
    mine = described(tmp_path, '[mine]\nlike = "qwen3_moe"\nextra_rows = { "gate.weight" = 1 }')
    said = f"gate.weight has {7 + more} entries, but layer 0 has 6 experts and 1 entries for others by config.json"
    for stage in (moeits.inspect, moeits.score):
        with pytest.raises(CheckpointError, match=said):
            stage(wide, architecture=mine)
    plain = described(tmp_path, '[mine]\nlike = "qwen3_moe"')
    with pytest.raises(CheckpointError, match=rf"gate.weight has shape \[{7 + more}, 32\], but layer 0 has 6 experts"):
        moeits.score(wide, architecture=plain)


def two_parts(folder: Path) -> Path:
    """A wrapper of two models with experts, which number their layers alike."""
    toy = make_toy(folder / "toy", "qwen3_moe")
    config, tensors = read_config(toy), read_tensors(toy)
    both = {name.replace("model.", part, 1): value for part in ("one.", "two.") for name, value in tensors.items()}
    return write_checkpoint(folder / "both", {"model_type": "mine", "text_config": config, "ear_config": config}, both)


def test_of_a_wrapper_with_two_moe_parts_the_described_one_is_pruned_and_the_other_is_copied(tmp_path: Path) -> None:
    both = two_parts(tmp_path)
    mine = described(tmp_path, '[mine]\nlike = "qwen3_moe"\npart = "text_config"\nprefixes = ["one."]')
    plan = moeits.simplify(both, experts_per_layer=4, output=tmp_path / "out", architecture=mine)
    before, after = read_tensors(both), read_tensors(tmp_path / "out")
    beside = {name for name in before if name.startswith("two.")}
    assert beside == {name for name in after if name.startswith("two.")}
    assert all(after[name].tobytes() == before[name].tobytes() for name in beside)
    assert len(after["one.layers.0.mlp.gate.weight"]) == len(plan.kept[0]) == 4
    config = read_config(tmp_path / "out")
    assert (config["text_config"]["num_experts"], config["ear_config"]["num_experts"]) == (4, 6)


def test_two_moe_parts_under_one_description_are_a_sentence(tmp_path: Path) -> None:
    both = two_parts(tmp_path)
    mine = described(tmp_path, '[mine]\nlike = "qwen3_moe"\npart = "text_config"\nprefixes = ["one.", "two."]')
    with pytest.raises(CheckpointError, match=r"under one\.layers\.0\.mlp and another under two\.layers\.0\.mlp, and"):
        moeits.simplify(both, experts_per_layer=4, output=tmp_path / "out", architecture=mine)
    assert not (tmp_path / "out").exists()


GROUPED = """
[mine]
like = "deepseek_v3"
layers = {}
groups.number = { key = "n_group" }
groups.chosen = { key = "topk_group" }
"""


def test_counts_that_break_the_groups_of_a_description_are_a_sentence(tmp_path: Path) -> None:
    mine = described(tmp_path, GROUPED)
    toy = as_mine(make_toy(tmp_path / "toy", "deepseek_v3", first_k_dense_replace=0), n_group=4, topk_group=2)
    with pytest.raises(CheckpointError, match="puts 6 experts into 4 groups, which cannot be of equal size"):
        moeits.score(toy, architecture=mine)
    as_mine(toy, n_group=2, topk_group=1)
    with pytest.raises(BudgetOutOfReach, match="--experts-per-layer 5"):
        moeits.simplify(toy, experts_per_layer=5, output=tmp_path / "out", architecture=mine)
    plan = moeits.plan(moeits.score(toy, architecture=mine), experts_per_layer=4)
    uneven = replace(plan, kept={**plan.kept, 0: (0, 1, 2, 3)}, order={})
    with pytest.raises(PlanError, match="group"):
        moeits.prune(toy, plan=uneven, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("groups.number = { key = 'a', absnt = 1 }\ngroups.chosen = { key = 'b' }", "`absnt` - at `$.groups.number`"),
        ("layers.every = { key = 'a', offset = { key = 'b', nul = 0 } }", "`nul` - at `$.layers.every.offset`"),
        (
            "layers.kinds = [{ key = 'a', with_experts = ['b'], without = ['c'] }]",
            "`without` - at `$.layers.kinds[0]`",
        ),
        ("layers.but = { key = 'a', absnt = [1] }", "`absnt` - at `$.layers.but`"),
        ("extra_rows.'gate.weight' = { ky = 'a', key = 'b' }", "`ky` - at `$.extra_rows"),
    ],
)
def test_an_unknown_key_within_a_key_is_named_with_its_place(tmp_path: Path, keys: str, said: str) -> None:
    mine = described(tmp_path, f"[mine]\n{keys}")
    with pytest.raises(FamilyError, match="object contains unknown field " + re.escape(said)):
        moeits.score(as_mine(make_toy(tmp_path / "toy", "qwen3_moe")), architecture=mine)


def test_a_described_class_of_the_hub_has_no_unequal_layers(tmp_path: Path) -> None:
    """Its code reads one number of experts."""
    toy = as_mine(make_toy(tmp_path / "toy", "qwen3_moe"))
    mine = described(tmp_path, '[mine]\nlike = "qwen3_moe"\nclass_on_hub = true')
    plan = moeits.plan(moeits.score(toy, architecture=mine), experts_per_layer=4)
    uneven = replace(plan, kept={**plan.kept, 0: (0, 1, 2)}, order={})
    needs = "A uniform layout needs the order of removal, but the experts kept in layer 0 do not follow"
    with pytest.raises(PlanError, match=needs):
        moeits.prune(toy, plan=uneven, output=tmp_path / "out")
    with pytest.raises(SettingError, match="--layout per-layer needs a class of transformers"):
        moeits.prune(toy, plan=uneven, output=tmp_path / "out", layout="per-layer")
    assert not (tmp_path / "out").exists()
    done = moeits.simplify(toy, tau=0.5, output=tmp_path / "even", architecture=mine)
    assert len({*done.counts.values()}) == 1


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (3, "but not as a family: expected `object`"),
        ({"model_type": "qwen2_moe"}, "but not as a family: object missing required field"),
    ],
)
def test_a_recorded_description_that_was_edited_is_a_sentence(tmp_path: Path, family: Any, said: str) -> None:
    toy = make_toy(tmp_path / "toy")
    (toy / "config.json").write_text(json.dumps(read_config(toy) | {"moeits": {"family": family}}))
    with pytest.raises(UnknownArchitecture, match=said):
        moeits.inspect(toy)


def test_a_recorded_description_of_another_family_is_a_sentence(unknown: tuple[Path, Path], tmp_path: Path) -> None:
    toy, mine = unknown
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out", architecture=mine)
    config = read_config(tmp_path / "out") | {"model_type": "mixtral"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitecture, match="is of type 'mixtral', and describes 'qwen3_moe'"):
        moeits.inspect(tmp_path / "out")


def test_all_that_is_done_with_a_model_is_done_with_it(unknown: tuple[Path, Path], tmp_path: Path) -> None:
    toy, mine = unknown
    write_tokenizer(toy)
    words = np.random.default_rng(0).integers(62, size=(200, 12))
    data = write_rows(tmp_path / "data.jsonl", [{"text": " ".join(f"w{word}" for word in row)} for row in words])
    (tmp_path / "text.txt").write_text(" ".join(f"w{at % 62}" for at in range(200)))
    some: dict[str, Any] = {"data": str(data), "tokens": 256, "held_out": 256, "window": 16}
    signals = moeits.calibrate(toy, architecture=mine, output=tmp_path / "signals.safetensors", **some)
    plan = moeits.plan(signals, criterion="reap", experts_per_layer=4, output=tmp_path / "plan.json")
    pruned = tmp_path / "pruned"
    moeits.prune(toy, plan=plan, output=pruned)
    moeits.refit(pruned, parent=toy, output=tmp_path / "refitted", **some)
    moeits.heal(tmp_path / "refitted", data=data, output=tmp_path / "healed", recipe="small", steps=2, batch_size=2)
    found = moeits.evaluate(toy, perplexity=tmp_path / "text.txt", window=16, architecture=mine)
    assert found.model["experts"] == {"0": 6, "1": 6, "2": 6}
    found = moeits.evaluate(tmp_path / "healed", perplexity=tmp_path / "text.txt", window=16, parent=toy)
    assert found.model["experts"] == {"0": 4, "1": 4, "2": 4}
    sizes = moeits.forecast(toy, reductions="0.3", criterion="reap", architecture=mine, **some).sizes
    assert [size.reduction for size in sizes] == [0.3]
