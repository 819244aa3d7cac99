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

LIKE_THEIR_TEXT_MODEL = {
    *(
        "dots3_note",
        "glm5_next",
        "inkling2",
        "inkling_mm_model",
        "internvl",
        "lfm2_vl",
        "mistral3",
        "nemotron_h_omni",
        "qwen4_exp",
    ),
    *("inkling_mm_model", "nemo_speechlm", "qwen3_omni_moe_thinker", "unlimited_ocr"),
}
"""Those whose text model is pruned by itself in test_contract_surgery, or is described as another wrapper's."""

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

_PECULIAR_TEXT: Mapping[str, Mapping[str, Any]] = {
    "deepseek_ocr2": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "glm5_next": {
        "q_lora_rank": 16,
        "qk_rope_head_dim": 0,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 16,
        "index_kpool": 2,
        "hc_mult": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    },
    "internvl": {"model_type": "qwen3_moe"},
    "kimi_k25": {"q_lora_rank": 16},
    "lfm2_vl": {"model_type": "lfm2_moe"},
    "mistral3": {"model_type": "mistral4"},
    "muse_spark": {"moe_hidden_size": 16},
    "step3p7": {
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
        "share_expert_dim": 12,
        "per_layer_config": {},
    },
    "mistral_large4": {"q_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
}
_SAM: Mapping[str, Any] = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "window_size": 2,
    "global_attn_indexes": [0],
    "mlp_dim": 16,
    "downsample_channels": [8, 16],
}
_SPEECH: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_mel_bins": 8,
}
_PECULIAR_PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "aria": {"": {"projector_patch_to_query_dict": {"4": 2}}},
    "dots3_note": {
        "vision_config": {
            "moe_intermediate_size": 8,
            "mlp_layer_types": ["sparse"],
            "num_local_experts": 4,
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
            "adapter_merge_size": 1,
            "per_layer_config": {},
        },
        "audio_config": {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "downsample_hidden_size": 4,
            "adapter_input_size": 16,
            "adapter_out_dim": 32,
            "conv_output_size": 64,
        },
    },
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": _SAM,
            "encoder_config": {
                "vocab_size": 8,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
            },
        }
    },
    "gemma4": {
        "": {
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 4,
            }
        }
    },
    "glm5_next": {"vision_config": {"projection_intermediate_size": 16}},
    "inkling2": {"vision_config": {"text_hidden_size": 32, "projection_hidden_dim": 16, "posemb_grid_size": 2}},
    "inkling_mm_model": {
        "vision_config": {"num_hidden_layers": 4, "patch_size": 8, "temporal_patch_size": 2},
        "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8},
    },
    "kimi_k25": {"": {"projection_hidden_size": 16}},
    "llama4": {"vision_config": {"intermediate_size": 64}},
    "mistral3": {"": {"spatial_merge_size": 1}},
    "mistral_large4": {"": {"spatial_merge_size": 1}},
    "muse_spark": {
        "": {"out_hidden_size": 64, "projector_hidden_size": 16},
        "vision_config": {"pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4},
        "audio_config": {
            "patch_sizes": [4],
            "hidden_sizes": [8],
            "depths": [1],
            "num_hidden_layers": 1,
            "out_hidden_size": 32,
        },
    },
    "nemo_speechlm": {
        "audio_config": {
            "asr_config": _SPEECH,
            "diarization_config": {
                "audio_config": _SPEECH,
                "head_config": {"hidden_size": 8, "audio_hidden_size": 16},
            },
        },
        "word_timestamp_config": {**_SPEECH, "vocab_size": 8, "blank_token_id": 7},
    },
    "nemotron_h_omni": {
        "": {"projector_hidden_size": 16, "vision_hidden_size": 16},
        "vision_config": {"max_img_size": 16, "video_temporal_patch_size": 2, "patch_dim": 48, "video_patch_dim": 96},
    },
    "qwen3_omni_moe_thinker": {"": {"vision_start_token_id": 61}},
    "step3p7": {"vision_config": {"max_position_embeddings": 4}},
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": _SAM,
            "encoder_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
        }
    },
}


def _small(config: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    worked_out = {key for key in keys if isinstance(getattr(type(config), key, None), property)}
    return {key: keys[key] for key in keys if key not in worked_out and getattr(config, key, None) is not None}


def _small_text(config: Any) -> dict[str, Any]:
    config.allow_global_per_layer_attribute_access = True
    small = _small(config, _SMALL)
    if "moe_intermediate_size" not in small:
        small["intermediate_size"] = WIDTH
    counts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    small |= _small(config, dict.fromkeys(counts, EXPERTS))
    small |= _small(config, dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2))
    small |= {"num_hidden_layers": LAYERS, "pad_token_id": 1, **_PECULIAR.get(config.model_type, {})}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if kinds := small.get(key):
            small[key] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    return small


def stock_class(model_type: str) -> Any:
    """The Auto class that opens checkpoints of a wrapper."""
    import transformers

    return getattr(transformers, architecture_of({"model_type": model_type}).auto_class)


@cache
def _config(model_type: str) -> Any:
    from transformers import AutoConfig

    usual = AutoConfig.for_model(model_type)
    own, others = _PECULIAR_TEXT.get(model_type, {}), _PECULIAR_PARTS.get(model_type, {})
    text = AutoConfig.for_model(own["model_type"]) if "model_type" in own else usual.text_config
    parts = {
        name: {**_small_text(text), **own}
        if name == "text_config"
        else {**_small(part, _SMALL_TOWER), **others.get(name, {})}
        for name in usual.sub_configs
        if (part := getattr(usual, name, None)) is not None
    }
    parts |= others.get("", {})
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
