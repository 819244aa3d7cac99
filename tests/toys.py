"""Tiny random checkpoints on disk, made in the test: kilobytes, good enough for stock transformers to load.

    make_toy(folder, "mixtral", experts=8, dtype="float16", shards=3)
    reshard(folder, other, shards=2)        the same tensors in other files
    fuse(folder, other)                     the same model as transformers 5 holds it in memory, experts as 3-D tensors
    read_tensors(folder)                    all tensors by name, through stock safetensors
    toy_evidence({0: redundancy})           evidence of a model that is nowhere on disk

Which tensors a toy has is asked of the family's stock class, built small; only their numbers are made here. A family
whose class cannot be made small by the keys of `_SMALL` gets its own few in `_PECULIAR`; nothing else is needed.

Expert e of a layer is a mix of what all experts of the layer share and of its own noise, with a share that differs from
expert to expert, so that redundancies have a spread and an order.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moeits.checkpoint.reading import Checkpoint
from moeits.evidence import Evidence
from moeits.experts.families import ARCHITECTURES, Architecture, architecture_of
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.experts.layer import ExpertSizes
from moeits.experts.layout import MoELayout
from tests.stock import auto_class, loaded_state, stock

HIDDEN, WIDTH, DENSE_WIDTH, HEADS, HEAD_DIM, VOCAB = 32, 12, 40, 4, 8, 64

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BY_THEMSELVES = tuple(architecture for architecture in ARCHITECTURES if not architecture.part)
MODEL_TYPES = tuple(architecture.model_type for architecture in BY_THEMSELVES)


def kind_of(architecture: Architecture) -> tuple[Any, ...]:
    """What surgery goes by: families that are alike in it differ in the stock class only."""
    names = (architecture.blocks, tuple(architecture.projections.values()), tuple(architecture.fused))
    router = (architecture.router, architecture.router_in_memory, tuple(architecture.extra_rows))
    return (*names, *router, architecture.stacking, architecture.shared, architecture.counts_apart)


def of_each_kind(model_types: Sequence[str]) -> list[Any]:
    """Families as parameters of a test, those marked that are described as one before them is."""
    params, kinds = [], set()
    for model_type in model_types:
        kind = kind_of(architecture_of({"model_type": model_type}))
        params.append(pytest.param(model_type, marks=[pytest.mark.every_family] if kind in kinds else []))
        kinds.add(kind)
    return params


NEVER_UNIFORM = tuple(architecture.model_type for architecture in BY_THEMSELVES if architecture.table_of_tokens)
"""Families with layers that keep all experts, so that no pruned model of theirs has one number for all."""

ONE_BY_ONE = tuple(architecture.model_type for architecture in BY_THEMSELVES if architecture.projections)
"""Families whose files have a tensor for each expert; of the others there is one form only."""
FORMS = (*MODEL_TYPES, *(f"{model_type} fused" for model_type in ONE_BY_ONE))

# What a config needs to be small, where its class has such a key. Tests may rely on these sizes.
_SMALL: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    "head_dim": HEAD_DIM,
    "moe_intermediate_size": WIDTH,
    "intermediate_size": DENSE_WIDTH,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_rope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "sliding_window": 8,
}
_PECULIAR: Mapping[str, Mapping[str, Any]] = {
    "axk1": {"q_lora_rank": 16},
    "axk2": {"q_lora_rank": 16},
    "bailing_hybrid": {"num_expert_group": 1, "layer_types": ["linear_attention", "full_attention"]},
    "beam": {"mlp_layer_types": ["sparse"]},
    "deepseek_v32": {"q_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 16,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "hc_mult": 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "partial_rotary_factor": 0.5,
    },
    "dots3_note_text": {
        "q_lora_rank": 16,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 64,
        "head_dim": 16,
        "shared_experts_intermediate_size": 16,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "per_layer_config": {"1": {"kv_lora_rank": 8}},
    },
    "dots1": {"n_shared_experts": 1},
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": WIDTH,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCAB,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {"2": {"head_dim": 16}},
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
        }
    },
    "glm_moe_dsa": {"q_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "shared_intermediate_size": 16,
    },
    "granitemoeshared": {"shared_intermediate_size": 16},
    "hunyuan_v1_moe": {"head_dim": HEAD_DIM},
    "hy_v4": {"q_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
    "jamba": {
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_heads": 2,
        "linear_head_dim": HEAD_DIM,
    },
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "inkling2_text": {
        "moe_intermediate_size": WIDTH,
        "swa_head_dim": HEAD_DIM,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "rel_extent": 8,
    },
    "inkling_text": {
        "swa_head_dim": HEAD_DIM,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "rel_extent": 8,
        "mlp_layer_types": ["sparse"],
    },
    "llama4_text": {"intermediate_size_mlp": DENSE_WIDTH, "intermediate_size": WIDTH, "attention_chunk_size": 32},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "minimax_m3_vl_text": {"dense_intermediate_size": DENSE_WIDTH, "shared_intermediate_size": 16},
    "mistral4": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 8192,
        },
        "head_dim": HEAD_DIM,
    },
    "nemotron_h": {
        "layers_block_type": ["moe", "moe", "full_attention"],
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen3_5_moe_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": HEADS,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": HEADS,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 64,
        "indexer_compress_ratio": 2,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8, "num_key_value_heads": 2},
    "qwen3_next": {
        "full_attention_interval": 2,
        "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": HEADS,
    },
}


@cache
def _small(model_type: str) -> Mapping[str, Any]:
    """The keys that make a config of this family small."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    config.allow_global_per_layer_attribute_access = True
    small = {
        key: value for key, value in _SMALL.items() if getattr(config, key, None) is not None or key == "pad_token_id"
    }
    if "moe_intermediate_size" not in small:
        small["intermediate_size"] = WIDTH
    name = auto_class(config)._model_mapping[type(config)].__name__
    return {**small, "pad_token_id": 1, **_PECULIAR.get(model_type, {}), "architectures": [name]}


def toy_config(
    model_type: str, *, experts: int = 6, top_k: int = 2, layers: int = 3, dtype: str = "bfloat16", **changes: Any
) -> dict[str, Any]:
    """config.json of a toy, as files on the hub have it; `changes` are further keys, or other values."""
    architecture = architecture_of({"model_type": model_type, "num_experts": experts})
    small = dict(_small(model_type))
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if kinds := small.get(key):
            small[key] = [kinds[layer % len(kinds)] for layer in range(layers)]
    return {
        "model_type": model_type,
        **small,
        architecture.num_experts_keys[0]: experts,
        architecture.top_k_key: small.get(architecture.top_k_key, top_k),
        "num_hidden_layers": layers,
        "dtype": dtype,
        **changes,
    }


def toy_tensors(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors of a model with this config, in the dtype and under the names that the stock class gives them."""
    rng = np.random.default_rng(seed)
    shares: dict[str, np.ndarray] = {}
    common: dict[str, np.ndarray] = {}
    tensors = {}
    for name, (dtype, shape) in stock(config).on_disk.items():
        if dtype == "I64":  # a table of the experts of each token
            tensors[name] = rng.integers(num_experts(config), size=shape)
            continue
        value = _numbers(rng, name, shape)
        layer = re.match(r".*?layers\.\d+\.", name)
        numbered = re.search(r"\.experts\.(\d+)\.", name)
        fused = len(shape) == 3 and shape[0] == num_experts(config)
        if layer and (numbered or fused):
            share = shares.setdefault(layer[0], rng.uniform(0.2, 0.95, num_experts(config)))
            share = share[int(numbered[1])] if numbered else share[:, None, None]
            alike = common.setdefault(re.sub(r"\.experts\.\d+\.", ".", name), _numbers(rng, name, shape[-2:]))
            value = share * alike + np.sqrt(1 - share**2) * value
        tensors[name] = value.astype(DTYPES[_NAMES[dtype]])
    return tensors


def _numbers(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1 and name.endswith("norm.weight"):
        return 1 + 0.1 * rng.standard_normal(shape, dtype=np.float32)
    # Routers that tell tokens apart, embeddings that are told apart.
    scale = 1.0 if re.search(r"embed_tokens|\.(gate|router|wg|layer)\.weight$", name) else 0.3
    return scale * rng.standard_normal(shape, dtype=np.float32)


def make_toy(
    folder: Path,
    model_type: str = "qwen2_moe",
    *,
    experts: int = 6,
    top_k: int = 2,
    layers: int = 3,
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a random checkpoint of any registered architecture; `changes` go into its config. Returns the folder."""
    config = toy_config(model_type, experts=experts, top_k=top_k, layers=layers, dtype=dtype, **changes)
    return write_checkpoint(folder, config, toy_tensors(config, seed=seed), shards=shards)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, shards: int = 1
) -> Path:
    """Write config.json and the tensors, in one file or dealt out over several in turn, with their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        names = list(tensors)[number::shards]
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    return json.loads((folder / "config.json").read_text())


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint by name, read by stock safetensors."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def reshard(source: Path, folder: Path, *, shards: int) -> Path:
    """The same tensors and config in another number of files."""
    return write_checkpoint(folder, read_config(source), read_tensors(source), shards=shards)


def mark_as_made_by_moeits(folder: Path) -> Path:
    """A checkpoint with the plan by which moeits knows its own, so that it may replace it."""
    (folder / "plan.json").write_text('{"format": 1, "kept": {}, "fingerprint": "x"}')
    return folder


def fuse(source: Path, folder: Path, *, shards: int = 1) -> Path:
    """The same model as transformers holds it in memory: experts of each layer as 3-D tensors."""
    return write_checkpoint(folder, read_config(source), loaded_state(source), shards=shards)


def assert_all_but_experts_are_alike(one: Path, other: Path) -> None:
    """To the byte, biases of experts included, which no edit touches."""
    tensors = read_tensors(one)
    for name, tensor in read_tensors(other).items():
        if ".experts" not in name or "bias" in name:
            assert tensors[name].tobytes() == tensor.tobytes(), name


def assert_same_model(one: Path, other: Path) -> None:
    """Two checkpoints hold the same numbers, whether their experts are stored one by one or fused."""
    a, b = Checkpoint.open(one), Checkpoint.open(other)
    here, there = MoELayout.of(a), MoELayout.of(b)
    assert here.layers.keys() == there.layers.keys()
    tensors, others = read_tensors(one), read_tensors(other)
    for layer, moe in here.layers.items():
        twin = there.layers[layer]
        assert moe.num_experts == twin.num_experts
        for expert in range(moe.num_experts):
            for projection in here.architecture.projection_names:
                mine, its = (of.read(at, layer, expert, projection) for of, at in ((here, a), (there, b)))
                assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
                assert mine.tobytes() == its.tobytes(), (layer, expert, projection)
        for name, its_name in zip(moe.router, twin.router, strict=True):
            assert tensors[name].tobytes() == others[its_name].tobytes(), name
        # One of them may have a tensor of the layer inside the block that the other has outside.
        shared, its_shared = (
            {of[name].tobytes() for name in at} for of, at in ((tensors, moe.shared), (others, twin.shared))
        )
        assert shared <= its_shared or its_shared <= shared
    outside = [
        {
            name: value.tobytes()
            for name, value in of.items()
            if not any(name.startswith(m.within) for m in its.values())
        }
        for of, its in ((tensors, here.layers), (others, there.layers))
    ]
    # A few families call some of these by other names in memory. That they are copied is another test's to show.
    shared = outside[0].keys() & outside[1].keys()
    assert {name: outside[0][name] for name in shared} == {name: outside[1][name] for name in shared}
    assert shared


def moe_layers(config: Mapping[str, Any]) -> list[int]:
    """Numbers of the decoder layers that have experts."""
    architecture = architecture_of(config)
    return [layer for layer in range(config["num_hidden_layers"]) if architecture.is_moe_layer(config, layer)]


def num_experts(config: Mapping[str, Any]) -> int:
    """Number of routed experts of every layer."""
    key = architecture_of(config).num_experts_key(config)
    assert key is not None
    return config[key]


def expert_name(config: Mapping[str, Any], layer: int, expert: int, projection: str) -> str:
    """Name of one projection of one expert in a toy with experts one by one."""
    architecture = architecture_of(config)
    inside = architecture.blocks[0].format(layer=layer) + "."
    return inside + architecture.expert.format(expert=expert, tensor=architecture.projections[projection])


def toy_evidence(
    redundancy: Mapping[int, np.ndarray],
    *,
    top_k: int = 1,
    groups: int = 1,
    expert_parameters: int = 100,
    router_row: int = 10,
    other_parameters: int = 1000,
    bytes_per_parameter: int = 2,
    floor: Mapping[int, np.ndarray] | None = None,
    **changes: Any,
) -> Evidence:
    """Evidence of a qwen2_moe model with these matrices and sizes, the same for every layer."""
    sizes = ExpertSizes(
        parameters=expert_parameters,
        nbytes=expert_parameters * bytes_per_parameter,
        router_parameters=router_row,
        router_nbytes=router_row * bytes_per_parameter,
    )
    facts: dict[str, Any] = {
        "model_type": "qwen2_moe",
        "source": "toy",
        "fingerprint": "0" * 64,
        "estimator": "nmi",
        "settings": {"bins": "auto", "diagonal": "zero"},
        "layers": {
            layer: LayerFacts(num_experts=len(matrix), top_k=top_k, groups=groups, sizes=sizes)
            for layer, matrix in redundancy.items()
        },
        "other_parameters": other_parameters,
        "other_bytes": other_parameters * bytes_per_parameter,
        "redundancy": redundancy,
        "floor": {} if floor is None else floor,
    }
    facts |= changes
    inventory = Inventory(**{each.name: facts.pop(each.name) for each in fields(Inventory) if each.name in facts})
    return Evidence(inventory=inventory, **facts)


def random_redundancy(rng: np.random.Generator, experts: int) -> np.ndarray:
    """A symmetric matrix with a zero diagonal and entries from 0 to 1, so short that any sum of them is exact."""
    upper = np.triu(rng.integers(1, 2**30, (experts, experts)) / 2**30, 1)
    return upper + upper.T
