"""Surgery: four fates, every tensor exactly one, and not a number recomputed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from safetensors import safe_open
from safetensors.numpy import save_file

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.sources import read_range
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CheckpointError, PlanError
from moeits.evidence import Evidence
from moeits.experts import families
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.surgery.fates import fates
from tests.toys import (
    fuse,
    make_toy,
    read_config,
    read_tensors,
    toy_config,
    toy_tensors,
    write_checkpoint,
)

EXPERTS = 6


def file_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def plan_keeping(model: Path, kept: Mapping[int, tuple[int, ...]]) -> PruningPlan:
    """A plan as edited by hand: exactly these experts."""
    evidence = Evidence(inventory=Inventory.of(Checkpoint.open(model), MoELayout.of(Checkpoint.open(model))))
    made = moeits.plan(evidence, criterion="random", experts_per_layer=EXPERTS)
    return replace(made, kept={layer: kept[layer] for layer in made.kept}, order={})


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toys with shared experts."""
    folder = tmp_path_factory.mktemp("toys")
    return {name: make_toy(folder / name, name, shards=2) for name in ("qwen2_moe", "deepseek_v2")}


kept_sets = st.fixed_dictionaries(
    {layer: st.sets(st.integers(0, EXPERTS - 1), min_size=1).map(lambda s: tuple(sorted(s))) for layer in range(3)}
)


# ------------------------------------------------------------------------------------------------------ properties


@settings(max_examples=20)
@given(first=kept_sets, data=st.data())
def test_pruning_twice_equals_pruning_once_by_the_composed_plan(
    tmp_path_factory: pytest.TempPathFactory,
    toys: dict[str, Path],
    first: Mapping[int, tuple[int, ...]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("twice")
    second = {
        layer: tuple(sorted(data.draw(st.sets(st.sampled_from(range(len(ids))), min_size=1))))
        for layer, ids in first.items()
    }
    composed = {layer: tuple(ids[at] for at in second[layer]) for layer, ids in first.items()}
    once = folder / "once"
    moeits.prune(toys["qwen2_moe"], plan=plan_keeping(toys["qwen2_moe"], composed), output=once, layout="per-layer")
    moeits.prune(
        toys["qwen2_moe"], plan=plan_keeping(toys["qwen2_moe"], first), output=folder / "a", layout="per-layer"
    )
    made = plan_of_pruned(folder / "a", second)
    moeits.prune(folder / "a", plan=made, output=folder / "b", layout="per-layer")
    one, two = read_tensors(once), read_tensors(folder / "b")
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    configs = [read_config(once), read_config(folder / "b")]
    assert configs[0]["per_layer_config"] == configs[1]["per_layer_config"]
    for config in configs:
        config.pop("moeits")
    assert configs[0] == configs[1], "nothing piles up in config.json"


def plan_of_pruned(model: Path, kept: Mapping[int, tuple[int, ...]]) -> PruningPlan:
    checkpoint = Checkpoint.open(model)
    return PruningPlan(
        model_type="qwen2_moe",
        source=checkpoint.source,
        fingerprint=checkpoint.fingerprint,
        criterion="by hand",
        settings={},
        kept=kept,
    )


def test_a_tensor_with_two_fates_is_an_error_before_anything_is_written(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(each for each in families.ARCHITECTURES if each.model_type == "qwen2_moe")
    greedy = structs.replace(known, shared=(*known.shared, "experts.0."))
    monkeypatch.setattr(families, "FAMILIES", (greedy,))
    with pytest.raises(CheckpointError, match=r"experts\.0\.\S+ would be of a routed expert and of what is shared"):
        moeits.simplify(toy, criterion="random", experts_per_layer=4, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fates_are_counted_and_not_merged(toy: Path) -> None:
    layer = MoELayout.of(Checkpoint.open(toy)).layers[0]
    assert fates(layer, (0, 1))
    with pytest.raises(AssertionError, match="two things at once"):
        fates(replace(layer, shared=(*layer.shared, layer.experts[3]["up_proj.weight"])), (0, 1))


def test_shared_experts_are_never_touched(tmp_path: Path, toys: dict[str, Path]) -> None:
    for model_type in ("qwen2_moe", "deepseek_v2"):
        few = dict.fromkeys(range(3), (4,))
        moeits.prune(toys[model_type], plan=plan_keeping(toys[model_type], few), output=tmp_path / model_type)
        before, after = read_tensors(toys[model_type]), read_tensors(tmp_path / model_type)
        shared = [name for name in before if "shared_expert" in name]
        assert shared
        assert all(before[name].tobytes() == after[name].tobytes() for name in shared)


# ------------------------------------------------------------------------------------- the same inputs, the same bytes


@pytest.mark.parametrize("layout", ["per-layer", "uniform"])
def test_the_same_command_twice_gives_the_same_bytes(tmp_path: Path, toy: Path, layout: str) -> None:
    for name in ("one", "two"):
        moeits.simplify(toy, tau=0.5, output=tmp_path / name, layout=layout, threads=1 if name == "one" else 2)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")


def test_stages_by_themselves_write_what_simplify_writes(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "one")
    moeits.score(toy, output=tmp_path / "evidence.safetensors")
    moeits.plan(tmp_path / "evidence.safetensors", tau=0.5, output=tmp_path / "plan.json")
    moeits.prune(toy, plan=tmp_path / "plan.json", output=tmp_path / "two")
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "two" / "plan.json").read_bytes()


def test_no_file_tells_where_or_when_it_was_made(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


# ----------------------------------------------------------------------------------------- dtypes and odd tensors


def with_dtype(folder: Path, dtype: str, itemsize: int, halve: bool = False) -> Path:
    """A toy whose expert tensors claim another dtype; their bytes are any bytes."""
    toy = make_toy(folder)
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, value in read_tensors(toy).items():
        is_expert = ".experts." in name
        tensors[name] = (
            rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] * itemsize), np.uint8) if is_expert else value
        )
    save_file(tensors, toy / "model.safetensors")
    data = (toy / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if ".experts." in name:
            entry["dtype"] = dtype
            entry["shape"] = [*entry["shape"][:-1], entry["shape"][-1] * (2 if halve else 1) // itemsize]
    text = json.dumps(header).encode()
    (toy / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return toy


@pytest.mark.parametrize(
    ("dtype", "itemsize", "halve"),
    [
        ("F8_E4M3", 1, False),
        ("F8_E5M2", 1, False),
        ("U8", 1, False),
        ("F4", 1, True),
        ("F8_E8M0", 1, False),
        ("XX9", 4, False),
    ],
)
def test_dtypes_that_cannot_be_computed_with_move_unharmed(
    tmp_path: Path, dtype: str, itemsize: int, halve: bool
) -> None:
    toy = with_dtype(tmp_path / "toy", dtype, itemsize, halve)
    kept = {0: (1, 4), 1: (0, 5), 2: (2, 3)}
    moeits.prune(toy, plan=plan_keeping(toy, kept), output=tmp_path / "out")
    before, after = Checkpoint.open(toy), Checkpoint.open(tmp_path / "out")
    raw = {
        name: (tmp_path / "toy" / "model.safetensors").read_bytes()[i.offset : i.offset + i.nbytes]
        for name, i in before.tensors.items()
    }
    for name, info in after.tensors.items():
        source = name
        if ".experts." in name:
            layer, number = int(name.split(".")[2]), int(name.split(".")[5])
            source = name.replace(f".experts.{number}.", f".experts.{kept[layer][number]}.")
            assert info.dtype == dtype
            assert info.shape == before.tensors[source].shape
            data = read_range(info.shard, info.offset, info.nbytes).tobytes()
            assert data == raw[source]


def test_fp8_scales_follow_the_experts_they_scale(tmp_path: Path, toy: Path) -> None:
    tensors = read_tensors(toy)
    scales = {
        name.replace(".weight", ".weight_scale_inv"): np.full((1, 1), number, np.float32)
        for number, name in enumerate(sorted(name for name in tensors if ".experts." in name))
    }
    both = write_checkpoint(tmp_path / "scaled", read_config(toy), tensors | scales)
    kept = {0: (1, 4), 1: (0, 5), 2: (2, 3)}
    moeits.prune(both, plan=plan_keeping(both, kept), output=tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    for layer, ids in kept.items():
        for number, expert in enumerate(ids):
            new = after[f"model.layers.{layer}.mlp.experts.{number}.up_proj.weight_scale_inv"]
            assert new == scales[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight_scale_inv"]


def test_biases_of_fused_experts_follow_row_by_row(tmp_path: Path, toy: Path) -> None:
    fused = fuse(toy, tmp_path / "fused")
    tensors = read_tensors(fused)
    for layer in range(3):
        block = f"model.layers.{layer}.mlp.experts."
        tensors[block + "gate_up_proj_bias"] = np.arange(EXPERTS * 24, dtype=np.float32).reshape(EXPERTS, 24)
        tensors[block + "down_proj_bias"] = np.arange(EXPERTS * 32, dtype=ml_dtypes.bfloat16).reshape(EXPERTS, 32)
    save_file(tensors, fused / "model.safetensors")
    kept = {0: (1, 4), 1: (0, 5), 2: (2, 3)}
    plan = plan_keeping(fused, kept)
    moeits.prune(fused, plan=plan, output=tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    for name in [name for name in tensors if name.endswith("_bias")]:
        assert after[name].tobytes() == tensors[name][list(kept[int(name.split(".")[2])])].tobytes()
    matrices = moeits.score(fused).redundancy
    assert all(np.array_equal(matrices[layer], matrix) for layer, matrix in moeits.score(toy).redundancy.items())


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    config = toy_config("mixtral", tie_word_embeddings=True, dtype="float32")
    tensors = toy_tensors(config)
    assert "lm_head.weight" not in tensors
    tied = write_checkpoint(tmp_path / "tied", config, tensors)
    moeits.simplify(tied, tau=0.5, output=tmp_path / "out", layout="uniform")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")
    assert read_config(tmp_path / "out")["tie_word_embeddings"] is True
    model = moeits.load(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_tensors_without_entries_are_copied(tmp_path: Path, toy: Path) -> None:
    tensors = read_tensors(toy) | {"model.empty": np.zeros((0, 4), np.float32), "model.scalar": np.float32(3)}
    odd = write_checkpoint(
        tmp_path / "odd", read_config(toy), {name: np.asarray(value) for name, value in tensors.items()}
    )
    moeits.simplify(odd, tau=0.5, output=tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    assert after["model.empty"].shape == (0, 4)
    assert after["model.scalar"] == 3


def test_layers_beyond_the_decoder_are_left_alone(tmp_path: Path, toy: Path) -> None:
    """Multi-token prediction brings a layer that the stock class does not load, with experts of its own."""
    tensors = read_tensors(toy)
    extra = {name.replace("layers.0.", "layers.3."): value for name, value in tensors.items() if "layers.0." in name}
    more = write_checkpoint(tmp_path / "more", read_config(toy), tensors | extra)
    moeits.simplify(more, tau=0.5, output=tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    assert all(after[name].tobytes() == value.tobytes() for name, value in extra.items())


# ----------------------------------------------------------------------------------------------- what is written


def test_the_index_says_where_every_tensor_is_and_how_large_all_are(tmp_path: Path, toy: Path) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out", max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    found, total = {}, 0
    for file in files:
        with safe_open(tmp_path / "out" / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118 - not a dict
                found[name] = file
                total += opened.get_tensor(name).nbytes
    assert found == index["weight_map"]
    assert index["metadata"]["total_size"] == total
    assert moeits.inspect(tmp_path / "out").nbytes == total


@pytest.mark.parametrize("size", [1, 1000, 5000, 20_000, 10**9])
def test_shards_hold_at_most_what_is_asked_or_one_larger_tensor(tmp_path: Path, toy: Path, size: int) -> None:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out", max_shard_size=size)
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
            assert len(names) == 1 or sum(opened.get_tensor(name).nbytes for name in names) <= size
    assert read_tensors(tmp_path / "out").keys() == read_tensors_once(tmp_path, toy).keys()


def read_tensors_once(tmp_path: Path, toy: Path) -> dict[str, np.ndarray]:
    moeits.simplify(toy, tau=0.5, output=tmp_path / "whole", overwrite=True)
    return read_tensors(tmp_path / "whole")


def test_tensors_are_aligned_to_their_dtype(tmp_path: Path, toy: Path) -> None:
    tensors = {
        "a": np.zeros(3, np.uint8),
        "b": np.zeros(2, np.float64),
        **read_tensors(toy),
        "c": np.zeros(1, np.float32),
    }
    mixed = write_checkpoint(tmp_path / "mixed", read_config(toy), tensors)
    moeits.simplify(mixed, tau=0.5, output=tmp_path / "out")
    sizes = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}
    for info in Checkpoint.open(tmp_path / "out").tensors.values():
        assert info.offset % sizes[info.dtype] == 0


@pytest.mark.parametrize(
    ("layout", "name"), [("per-layer", "modeling_moeits.py"), ("uniform", None), ("auto", "modeling_moeits.py")]
)
def test_only_a_per_layer_checkpoint_carries_its_loader(
    tmp_path: Path, toy: Path, layout: str, name: str | None
) -> None:
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout=layout)
    assert len(set(map(len, plan.kept.values()))) == (1 if layout == "uniform" else 3), "this toy prunes unevenly"
    assert [path.name for path in (tmp_path / "out").glob("*.py")] == ([name] if name else [])


def test_a_uniform_config_changes_one_key(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", note="é", max_window_layers=7)
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    before, after = read_config(toy), read_config(tmp_path / "out")
    ours = after.pop("moeits")
    assert ours["source"] == "toy"
    assert {key for key in after if after[key] != before.get(key)} == {"num_experts", *ours["added_keys"]}
    assert list(after) == [*before, *(key for key in after if key in ours["added_keys"])], "in the order of the source"


def test_what_belongs_to_the_checkpoint_is_copied_and_nothing_else(tmp_path: Path, toy: Path) -> None:
    wanted = [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "generation_config.json",
        "LICENSE",
        "License.txt",
        "NOTICE.md",
        "qwen.tiktoken",
    ]
    unwanted = [
        "pytorch_model.bin",
        "model.gguf",
        "optimizer.pt",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
        "modeling_toy.py",
        "tokenization_toy.py",
        "training_args.bin",
        "trainer_state.json",
        ".gitattributes",
    ]
    for name in wanted + unwanted:
        (toy / name).parent.mkdir(exist_ok=True)
        (toy / name).write_text(json.dumps({"of": name}))
    moeits.simplify(toy, experts_per_layer=4, output=tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*wanted, "config.json", "model.safetensors", "plan.json", "README.md"}
    for name in wanted:
        assert (tmp_path / "out" / name).read_bytes() == (toy / name).read_bytes()


def test_prune_returns_the_plan_that_it_wrote(tmp_path: Path, toy: Path) -> None:
    plan = moeits.simplify(toy, tau=0.5, output=tmp_path / "out", layout="uniform")
    assert PruningPlan.load(tmp_path / "out" / "plan.json") == plan
    again = moeits.prune(toy, plan=tmp_path / "out" / "plan.json", output=tmp_path / "again")
    assert again == plan
    assert file_hashes(tmp_path / "again") == file_hashes(tmp_path / "out"), (
        "the recipe beside the weights repeats them"
    )


def test_groups_of_unequal_size_are_refused(tmp_path: Path) -> None:
    toy = make_toy(
        tmp_path / "toy",
        "deepseek_v2",
        topk_method="group_limited_greedy",
        n_group=2,
        topk_group=1,
        first_k_dense_replace=0,
    )
    kept = {0: (0, 1, 3, 4), 1: (0, 2, 3, 5), 2: (0, 1, 2, 3)}
    with pytest.raises(PlanError, match=r"layer 2 chooses among 2 groups .* this plan keeps \[3, 1\]"):
        moeits.prune(toy, plan=plan_keeping(toy, kept), output=tmp_path / "out")
    moeits.prune(toy, plan=plan_keeping(toy, {**kept, 2: (1, 2, 4, 5)}), output=tmp_path / "out")


def test_progress_counts_every_byte(tmp_path: Path, toy: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    moeits.simplify(toy, tau=0.5, output=tmp_path / "out", progress=lambda *call: calls.append(call))
    written = [(done, total) for what, done, total in calls if what == "writing tensors"]
    total = moeits.inspect(tmp_path / "out").nbytes
    assert written[-1] == (total, total)
    assert written == sorted(written)
