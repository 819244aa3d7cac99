"""Makes what the clients open: `python scripts/clients/models.py MODELS`, with moeits and its extras installed.

For each family a small model of random weights in float32, configured as the family's releases are, as transformers
saves it, and what moeits prunes of it: the same number of experts in every layer, and unequal ones. Beside each lies
what it should compute, by stock transformers alone: of a pruned model the logits of the *unpruned* one whose router
cannot choose the removed experts.
"""

import copy
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from cases import CHOICES, PROMPT, ROOT, WRITTEN, Case, Reference, cases
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(ROOT))

import moeits
from tests.masked import continuation, logits, routers_masked

EXPERTS, LAYERS, LENGTH = 8, 3, 24
KEPT: Mapping[str, Sequence[tuple[int, ...]]] = {
    "uniform": ((0, 2, 3, 5), (1, 4, 6, 7), (0, 1, 3, 6)),
    "per-layer": ((0, 2, 3, 5), (1, 4, 7), (0, 1, 3, 4, 6)),
}
# Of a router that chooses a group of experts first, all groups keep as many.
KEPT_OF_TWO_GROUPS: Mapping[str, Sequence[tuple[int, ...]]] = {
    "uniform": ((0, 2, 5, 6), (1, 2, 4, 7), (0, 3, 5, 6)),
    "per-layer": ((0, 2, 5, 6), (1, 2, 4, 7), (0, 1, 3, 4, 5, 7)),
}
TOKENS = torch.arange(2 * LENGTH).reshape(2, LENGTH) * 97 % 4000 + 50
TOKENIZER = ROOT / "src" / "moeits" / "demo" / "demo-qwen2moe"

_ALL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,  # large enough that one expert more or less is seen in the logits
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    # Nobody's default: a client that overlooks it computes other logits.
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
_GROUPED = {"num_key_value_heads": 2, "intermediate_size": 256}
_DEEPSEEK = {
    "intermediate_size": 256,
    "num_key_value_heads": 4,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    # The sizes of the release, since vLLM's attention on the CPU knows no other.
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 50000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
}
# Of the kind that the releases are, at another size: what a client asks for or has only one way for (a rank of the
# queries, scaled rotary embeddings, groups of experts, as many key heads as query heads, gates that sum to one, heads
# wider than the model's width over their number) is here as there.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": EXPERTS, "sliding_window": None},
    "qwen2_moe": {
        **_GROUPED,
        "num_experts": EXPERTS,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
    },
    # DeepSeek-V2.
    "deepseek_v2": {
        **_DEEPSEEK,
        "moe_intermediate_size": 256,
        "q_lora_rank": 128,
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 4.0,
    },
    # DeepSeek-V2-Lite. By its 27 layers llama.cpp knows that it has no rank of the queries.
    "deepseek_v2_lite": {
        **_DEEPSEEK,
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "moe_intermediate_size": 128,
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    },
    "olmoe": {"num_key_value_heads": 4, "intermediate_size": 256, "num_experts": EXPERTS, "norm_topk_prob": False},
    "qwen3_moe": {
        **_GROUPED,
        "num_experts": EXPERTS,
        "moe_intermediate_size": 256,
        "head_dim": 128,
        "norm_topk_prob": True,
    },
}

_WITH_BIASES = {
    **_GROUPED,
    "head_dim": 64,
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_LINEAR = {
    **_GROUPED,
    "head_dim": 64,
    "num_experts": EXPERTS,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 256,
    "num_position_embeddings": 16,
}
FAMILIES_OF_SERVERS: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {
        **_WITH_BIASES,
        **_DEEPSEEK,
        "n_shared_experts": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "q_lora_rank": 96,
    },
    "glm4_moe": {**_WITH_BIASES, "use_qk_norm": True},
    "minimax_m2": {
        **_GROUPED,
        "head_dim": 64,
        "rotary_dim": 64,
        "num_local_experts": EXPERTS,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "ernie4_5_moe": {
        **_GROUPED,
        "moe_num_experts": EXPERTS,
        "moe_k": 2,
        "moe_intermediate_size": 256,
        "moe_num_shared_experts": 1,
    },
    "phimoe": {**_GROUPED, "num_local_experts": EXPERTS, "attention_bias": True, "lm_head_bias": True},
    "qwen3_next": _LINEAR,
    "dots1": _WITH_BIASES,
    "hunyuan_v1_moe": {**_GROUPED, "head_dim": 64, "num_experts": EXPERTS, "moe_topk": 2},
    "glm4_moe_lite": {**_WITH_BIASES, **_DEEPSEEK, "n_shared_experts": 1, "q_lora_rank": 96, "norm_topk_prob": True},
    "granitemoe": {
        **_GROUPED,
        "num_local_experts": EXPERTS,
        "embedding_multiplier": 2.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
    },
    "gpt_oss": {
        **_GROUPED,
        "head_dim": 64,
        "num_local_experts": EXPERTS,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 50000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    # Takes pictures too; served as a model of text.
    "qwen3_vl_moe": {
        "text_config": {
            **_ALL,
            **_GROUPED,
            "num_experts": EXPERTS,
            "moe_intermediate_size": 256,
            "head_dim": 128,
            "norm_topk_prob": True,
            "rope_parameters": {**_ALL["rope_parameters"], "mrope_section": [24, 20, 20]},
        },
        "vision_config": {**_VISION, "deepstack_visual_indexes": [0]},
    },
    "qwen3_5_moe": {"text_config": {**_ALL, **_LINEAR}, "vision_config": _VISION},
}
"""As FAMILIES, given to servers alone."""


def settings_of(family: str) -> Mapping[str, Any]:
    return {**FAMILIES, **FAMILIES_OF_SERVERS}[family]


def source_of(family: str, folder: Path) -> Any:
    """The unpruned model, saved as stock transformers does it, with a tokenizer."""
    torch.manual_seed(0)
    settings = settings_of(family)
    # A config of transformers writes into what it is given.
    small = copy.deepcopy(dict(settings) if "text_config" in settings else {**_ALL, **settings})
    config = transformers.AutoConfig.for_model(**{"model_type": family, **small})
    stock = transformers.AutoModelForImageTextToText if "text_config" in settings else transformers.AutoModelForCausalLM
    model = stock.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # Norms start at one and biases at zero, as no release has them.
        biases = (each for name, each in model.named_buffers() if name.endswith("correction_bias"))
        for weight in (each for each in (*model.parameters(), *biases) if each.ndim == 1):
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    as_released(family, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return model


def as_released(family: str, folder: Path) -> None:
    """What transformers writes otherwise than the makers of a release."""
    if family == "phimoe":
        file = folder / "config.json"
        written = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**written, "architectures": ["PhiMoEForCausalLM"]}, indent=2), encoding="utf-8")
    elif family == "qwen3_vl_moe":
        tensors = load_file(folder / "model.safetensors")
        turned = {name: each.mT.contiguous() if ".experts." in name else each for name, each in tensors.items()}
        save_file(turned, folder / "model.safetensors", {"format": "pt"})


def kept_of(family: str, layout: str, layers: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Of each layer that has experts, those that a layout keeps; empty for the unpruned model."""
    turns = (KEPT_OF_TWO_GROUPS if settings_of(family).get("n_group") == 2 else KEPT).get(
        "per-layer" if layout == "padded" else layout
    )
    return {layer: turns[layer % len(turns)] for layer in layers} if turns else {}


def made(family: str, models: Path) -> Iterator[Case]:
    """The unpruned model and its pruned ones, each with what it should compute."""
    source = Case(family, "unpruned").folder(models)
    stock = source_of(family, source)
    inner = SimpleNamespace(model=getattr(stock.model, "language_model", stock.model))
    unpruned = logits(stock, TOKENS).numpy()
    plan = moeits.plan(moeits.score(source), experts_per_layer=EXPERTS)
    for case in (each for each in cases() if each.family == family):
        kept = kept_of(family, case.layout, plan.kept)
        if kept:
            moeits.prune(source, plan=replace(plan, kept=kept), output=case.folder(models), layout=case.layout)
        with routers_masked(inner, kept, EXPERTS) if kept else nullcontext():
            computed_by(stock, unpruned).write(case, models)
        yield case


def computed_by(model: Any, unpruned: np.ndarray) -> Reference:
    """What a model makes of the tokens and of the prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    prompt = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    choices = [tokenizer(PROMPT + choice)["input_ids"] for choice in CHOICES]
    return Reference(
        tokens=TOKENS.numpy(),
        logits=logits(model, TOKENS).numpy(),
        written=continuation(model, TOKENS[:1], WRITTEN)[0, LENGTH:].numpy(),
        unpruned=unpruned,
        after_prompt=continuation(model, prompt, WRITTEN)[0, prompt.shape[1] :].numpy(),
        loglikelihoods=np.array([_loglikelihood(model, ids, prompt.shape[1]) for ids in choices]),
    )


def _loglikelihood(model: Any, ids: Sequence[int], given: int) -> float:
    """Of the tokens after the first `given` ones."""
    scores = logits(model, torch.tensor([ids]))[0].log_softmax(-1)
    return float(sum(scores[at - 1, ids[at]] for at in range(given, len(ids))))


if __name__ == "__main__":
    for family in (*FAMILIES, *FAMILIES_OF_SERVERS):
        for case in made(family, Path(sys.argv[1])):
            print(case.name, flush=True)
