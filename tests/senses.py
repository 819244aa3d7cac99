"""What a wrapper sees or hears: one picture, or one sound, in the middle of a text, for each family of several models.

Numbers are random: what processors make of real pictures is not ours, and a tower is copied byte for byte.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.toys import read_config

Given = Mapping[str, torch.Tensor]

SENSED, MOVING, BEFORE, AFTER, OTHER = 5, 6, 7, 8, 9
"""Tokens in the place of the picture or the sound, of a film, before and after them, and of a sense not used."""

_GRID = {"image_grid_thw": torch.tensor([[1, 2, 2]])}


def _flat(patches: int, *shape: int) -> Callable[[torch.Tensor], Given]:
    """Four patches of four by four by three, as most processors lay them, and their grid."""
    return lambda noise: {"pixel_values": noise[: 4 * patches].reshape(4, *shape), **_GRID}


def _image(side: int, **beside: torch.Tensor) -> Callable[[torch.Tensor], Given]:
    return lambda noise: {"pixel_values": noise[: 3 * side * side].reshape(1, 3, side, side), **beside}


_PATCHES = _flat(48, 48)
_SIZED = _image(8, image_sizes=torch.tensor([[8, 8]]))

# Family -> (tokens that the picture or sound takes, its tensors made of noise).
SENSES: Mapping[str, tuple[int, Callable[[torch.Tensor], Given]]] = {
    "aria": (2, _image(8)),
    "deepseek_ocr2": (145, _image(32)),
    "dots3_note": (4, _PATCHES),
    "gemma4": (
        1,
        lambda noise: {
            "pixel_values": noise[:192].reshape(1, 4, 48),
            "image_position_ids": torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]]),
        },
    ),
    "glm4v_moe": (4, _PATCHES),
    "glm5_next": (4, _PATCHES),
    "inkling2": (4, _flat(48, 4, 4, 3)),
    "inkling_mm_model": (1, lambda noise: {"pixel_values": noise[:384].reshape(1, 2, 8, 8, 3)}),
    "internvl": (1, _image(8)),
    "kimi_k25": (1, _flat(48, 3, 4, 4)),
    "lfm2_vl": (
        1,
        lambda noise: {
            "pixel_values": noise[:192].reshape(1, 4, 48),
            "spatial_shapes": torch.tensor([[2, 2]]),
            "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long),
        },
    ),
    "llama4": (1, _image(8)),
    "minimax_m3_vl": (4, _PATCHES),
    "mistral3": (4, _SIZED),
    "mistral_large4": (4, _SIZED),
    "muse_spark": (1, _flat(96, 96)),
    "nemo_speechlm": (
        2,
        lambda noise: {
            "input_features": noise[:128].reshape(1, 16, 8),
            "input_features_mask": torch.ones(1, 16, dtype=torch.bool),
        },
    ),
    "nemotron_h_omni": (
        1,
        lambda noise: {"pixel_values": noise[:192].reshape(4, 48), "image_grid_hw": torch.tensor([[2, 2]])},
    ),
    "qwen3_5_moe": (4, _PATCHES),
    "qwen3_omni_moe_thinker": (4, _PATCHES),
    "qwen3_vl_moe": (4, _PATCHES),
    "qwen4_exp": (4, _PATCHES),
    "step3p7": (1, _image(8)),
    "unlimited_ocr": (7, _image(32)),
}
ASKS_FOR_KINDS = {"glm4v_moe", "glm5_next", "qwen3_5_moe", "qwen3_vl_moe", "qwen4_exp"}
"""Whose stock class must be told which tokens are of a picture."""


def with_small_tokens(wrapper: Path, folder: Path) -> Path:
    """A copy whose config has the tokens of its senses within the small vocabulary of a toy."""
    shutil.copytree(wrapper, folder)
    config = read_config(folder)
    sense = "audio" if config["model_type"] == "nemo_speechlm" else "image"
    for key in config:
        if key.endswith(("_token_id", "_token_index")):
            config[key] = _token(key, sense)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _token(key: str, sense: str) -> int:
    """By what the key of config.json is called."""
    if key.startswith(f"{sense}_token"):
        return SENSED
    if key.startswith("video_token"):
        return MOVING
    if not key.startswith(("vision_", f"{sense}_", "boi_", "eoi_")):
        return OTHER
    return BEFORE if "start" in key or "bo" in key else AFTER


def sensed(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of the stock class: a text with a picture or a sound in it, which the seed makes another one."""
    tokens, given = SENSES[model_type]
    ids = torch.tensor([[2, BEFORE, *[SENSED] * tokens, AFTER, 10, 11, 12]])
    noise = torch.randn(3 * 32 * 32, generator=torch.Generator().manual_seed(seed))
    kinds = {"mm_token_type_ids": (ids == SENSED).long()} if model_type in ASKS_FOR_KINDS else {}
    return {"input_ids": ids, **given(noise), **kinds}


@torch.no_grad()
def sensed_and_told(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of such a text, and what the model writes next, greedily, with its cache."""
    told = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    return model(**inputs).logits.float(), told
