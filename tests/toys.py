"""Tiny random checkpoints on disk, made in the test: kilobytes, no torch, good enough for stock transformers to load.

    make_toy(folder, "mixtral", experts=8, dtype="float16", shards=3)
    reshard(folder, other, shards=2)        the same tensors in other files
    fuse(folder, other)                     the same experts as 3-D tensors, as transformers 5 holds them in memory
    read_tensors(folder)                    all tensors by name, through stock safetensors
    toy_evidence({0: redundancy})           evidence of a model that is nowhere on disk

Expert e of a layer is a mix of what all experts of the layer share and of its own noise, with a share that differs from
expert to expert, so that redundancies have a spread and an order.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from moeits.architectures import ARCHITECTURES, Architecture, architecture_of
from moeits.evidence import Evidence, LayerFacts
from moeits.layout import ExpertSizes

HIDDEN, WIDTH, DENSE_WIDTH, HEADS, HEAD_DIM, VOCAB = 32, 12, 40, 4, 8, 64

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
MODEL_TYPES = tuple(architecture.model_type for architecture in ARCHITECTURES)

_COMMON = {
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
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {"architectures": ["MixtralForCausalLM"], "intermediate_size": WIDTH, "head_dim": HEAD_DIM},
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "moe_intermediate_size": WIDTH,
        "intermediate_size": DENSE_WIDTH,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "moe_intermediate_size": WIDTH,
        "intermediate_size": DENSE_WIDTH,
        "head_dim": HEAD_DIM,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "olmoe": {"architectures": ["OlmoeForCausalLM"], "intermediate_size": WIDTH},
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "moe_intermediate_size": WIDTH,
        "intermediate_size": DENSE_WIDTH,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": HEAD_DIM,
        "qk_rope_head_dim": HEAD_DIM,
        "v_head_dim": HEAD_DIM,
        "head_dim": HEAD_DIM,
        "topk_method": "greedy",
        "n_group": None,
        "topk_group": None,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
    },
}


def toy_config(
    model_type: str, *, experts: int = 6, top_k: int = 2, layers: int = 3, dtype: str = "bfloat16", **changes: Any
) -> dict[str, Any]:
    """config.json of a toy, as files on the hub have it; `changes` are further keys, or other values."""
    architecture = architecture_of({"model_type": model_type, "num_experts": experts})
    return {
        "model_type": model_type,
        **_COMMON,
        **_OWN[model_type],
        architecture.num_experts_keys[0]: experts,
        architecture.top_k_key: top_k,
        "num_hidden_layers": layers,
        "dtype": dtype,
        **changes,
    }


def toy_tensors(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors of a model with this config, experts one by one, in the config's dtype."""
    architecture, rng = architecture_of(config), np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": _normal(rng, VOCAB, HIDDEN, scale=1.0)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        tensors |= {at + name: value for name, value in _attention(config, rng)}
        tensors |= {
            at + name: _norm(rng, HIDDEN) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
        }
        if architecture.is_moe_layer(config, layer):
            tensors |= dict(_moe_block(architecture, config, layer, rng))
        else:
            tensors |= dict(_mlp(at + "mlp.", DENSE_WIDTH, rng))
    tensors["model.norm.weight"] = _norm(rng, HIDDEN)
    tensors["lm_head.weight"] = _normal(rng, VOCAB, HIDDEN)
    return {name: value.astype(DTYPES[config["dtype"]]) for name, value in tensors.items()}


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


def fuse(source: Path, folder: Path, *, shards: int = 1) -> Path:
    """The same model with the experts of each layer as (E, 2I, H) and (E, H, I) tensors, under their name in memory."""
    config, tensors = read_config(source), read_tensors(source)
    architecture = architecture_of(config)
    for layer in moe_layers(config):
        inside, fused_inside = (architecture.blocks[at].format(layer=layer) + "." for at in (0, -1))
        for name, projections in architecture.fused.items():
            stacked = [
                [
                    tensors.pop(inside + architecture.expert.format(expert=e, tensor=architecture.projections[p]))
                    for p in projections
                ]
                for e in range(num_experts(config))
            ]
            tensors[fused_inside + name] = np.stack([np.concatenate(parts) for parts in stacked])
        for name in [name for name in tensors if name.startswith(inside)]:
            tensors[fused_inside + name.removeprefix(inside)] = tensors.pop(name)
    return write_checkpoint(folder, config, tensors, shards=shards)


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
    facts = {
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
    return Evidence(**{**facts, **changes})


def random_redundancy(rng: np.random.Generator, experts: int) -> np.ndarray:
    """A symmetric matrix with a zero diagonal and entries from 0 to 1, so short that any sum of them is exact."""
    upper = np.triu(rng.integers(1, 2**30, (experts, experts)) / 2**30, 1)
    return upper + upper.T


# ---------------------------------------------------------------------------------------------- parts of a model


def _normal(rng: np.random.Generator, *shape: int, scale: float = 0.3) -> np.ndarray:
    return scale * rng.standard_normal(shape, dtype=np.float32)


def _norm(rng: np.random.Generator, size: int) -> np.ndarray:
    return 1 + _normal(rng, size, scale=0.1)


def _mlp(at: str, width: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    yield at + "gate_proj.weight", _normal(rng, width, HIDDEN)
    yield at + "up_proj.weight", _normal(rng, width, HIDDEN)
    yield at + "down_proj.weight", _normal(rng, HIDDEN, width)


def _attention(config: Mapping[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    size = HEADS * HEAD_DIM
    if config["model_type"] == "deepseek_v2":
        yield from _latent_attention(rng)
        return
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"self_attn.{name}.weight", _normal(rng, size, HIDDEN)
        if config["model_type"] == "qwen2_moe":
            yield f"self_attn.{name}.bias", _normal(rng, size)
    yield "self_attn.o_proj.weight", _normal(rng, HIDDEN, size)
    norms = {"qwen3_moe": HEAD_DIM, "olmoe": size}
    if width := norms.get(config["model_type"]):
        yield "self_attn.q_norm.weight", _norm(rng, width)
        yield "self_attn.k_norm.weight", _norm(rng, width)


def _latent_attention(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    rank = _OWN["deepseek_v2"]["kv_lora_rank"]
    yield "self_attn.q_proj.weight", _normal(rng, HEADS * 2 * HEAD_DIM, HIDDEN)
    yield "self_attn.kv_a_proj_with_mqa.weight", _normal(rng, rank + HEAD_DIM, HIDDEN)
    yield "self_attn.kv_a_layernorm.weight", _norm(rng, rank)
    yield "self_attn.kv_b_proj.weight", _normal(rng, HEADS * 2 * HEAD_DIM, rank)
    yield "self_attn.o_proj.weight", _normal(rng, HIDDEN, HEADS * HEAD_DIM)


def _moe_block(
    architecture: Architecture, config: Mapping[str, Any], layer: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    count = num_experts(config)
    inside = architecture.blocks[0].format(layer=layer) + "."
    for name in architecture.router:
        yield inside + name, _normal(rng, count, HIDDEN, scale=1.0) if name.endswith("weight") else _normal(rng, count)
    shares = rng.uniform(0.2, 0.95, count)
    for projection, tensor in architecture.projections.items():
        shape = (HIDDEN, WIDTH) if projection == "down" else (WIDTH, HIDDEN)
        common = _normal(rng, *shape)
        for expert, share in enumerate(shares):
            weight = share * common + np.sqrt(1 - share**2) * _normal(rng, *shape)
            yield inside + architecture.expert.format(expert=expert, tensor=tensor), weight
    if config["model_type"] == "qwen2_moe":
        yield from _mlp(inside + "shared_expert.", config["shared_expert_intermediate_size"], rng)
        yield inside + "shared_expert_gate.weight", _normal(rng, 1, HIDDEN)
    if config["model_type"] == "deepseek_v2":
        yield from _mlp(inside + "shared_experts.", config["n_shared_experts"] * WIDTH, rng)
