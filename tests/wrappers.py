"""Tiny random checkpoints in which the model with experts is one of several, made by the stock class."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from moeits.experts.families import ARCHITECTURES, architecture_of
from tests.toys import _PECULIAR, _SMALL, WIDTH, read_tensors

WRAPPERS = tuple(architecture.model_type for architecture in ARCHITECTURES if architecture.part)
EXPERTS, LAYERS = 6, 3

REOPENED_UNDER_HUB_NAMES_ONLY = {"kimi_k25"}
"""What transformers 5.23 saves of these, it does not open again: it takes the text model's layers for the tower's."""

# What makes the config of a vision tower small, where its class has such a key.
_SMALL_TOWER: Mapping[str, Any] = {
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_heads": 2,
    "depth": 1,
    "num_hidden_layers": 1,
    "patch_size": 4,
    "image_size": 8,
    "spatial_merge_size": 1,
    "temporal_patch_size": 1,
    "out_hidden_size": 32,
    "num_position_embeddings": 4,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "vision_output_dim": 16,
    "deepstack_visual_indexes": [0],
}

_PECULIAR_TEXT: Mapping[str, Mapping[str, Any]] = {"kimi_k25": {"q_lora_rank": 16}}


def _small(config: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if getattr(config, key, None) is not None}


def _small_text(config: Any) -> dict[str, Any]:
    small = _small(config, _SMALL)
    if "moe_intermediate_size" not in small:
        small["intermediate_size"] = WIDTH
    counts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    small |= _small(config, dict.fromkeys(counts, EXPERTS))
    small |= _small(config, dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2))
    small |= {"num_hidden_layers": LAYERS, "pad_token_id": 1, **_PECULIAR.get(config.model_type, {})}
    if kinds := small.get("layer_types"):
        small["layer_types"] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    return small


def stock_class(model_type: str) -> Any:
    """The Auto class that opens checkpoints of a wrapper."""
    import transformers

    return getattr(transformers, architecture_of({"model_type": model_type}).auto_class)


@cache
def _config(model_type: str) -> Any:
    from transformers import AutoConfig

    usual = AutoConfig.for_model(model_type)
    own = _PECULIAR_TEXT.get(model_type, {})
    parts = {
        name: {**_small_text(part), **own} if name == "text_config" else _small(part, _SMALL_TOWER)
        for name in usual.sub_configs
        if (part := getattr(usual, name, None)) is not None
    }
    return AutoConfig.for_model(model_type, **json.loads(json.dumps(parts)), tie_word_embeddings=False)


def make_wrapper(folder: Path, model_type: str) -> Path:
    """A checkpoint of several models, as the stock class writes it, whose routers tell tokens apart."""
    torch.manual_seed(0)
    model = stock_class(model_type).from_config(_config(model_type), dtype=torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (1.0 if name.endswith("embed_tokens.weight") else 0.3))
        for name, value in model.named_buffers():
            if "bias" in name:
                value.copy_(torch.rand_like(value) * 0.1)
    model.save_pretrained(folder)
    if model_type in REOPENED_UNDER_HUB_NAMES_ONLY:
        tensors = {
            name.replace(".model.blocks.", ".model.layers."): value for name, value in read_tensors(folder).items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
