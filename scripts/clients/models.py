"""Makes what the clients open: `python scripts/clients/models.py MODELS`, with moeits and its extras installed.

For each family a small model of random weights in float32, configured as the family's releases are, as transformers
saves it, and what moeits prunes of it: the same number of experts in every layer, and unequal ones. Beside each lies
what it should compute, by stock transformers alone: of a pruned model the logits of the *unpruned* one whose router
cannot choose the removed experts.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from cases import CHOICES, LAYOUTS, PROMPT, ROOT, WRITTEN, Case, Reference

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


def source_of(family: str, folder: Path) -> Path:
    """The unpruned model, as stock transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{"model_type": family, **_ALL, **FAMILIES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Norms start at one and biases at zero, as no release has them.
        for weight in (each for each in model.parameters() if each.ndim == 1):
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def kept_of(family: str, layout: str) -> dict[int, tuple[int, ...]]:
    """Decoder layer -> experts that a layout keeps; empty for the unpruned model."""
    settings = {**_ALL, **FAMILIES[family]}
    turns = (KEPT_OF_TWO_GROUPS if settings.get("n_group") == 2 else KEPT).get(layout)
    layers = range(settings.get("first_k_dense_replace", 0), settings["num_hidden_layers"])
    return {layer: turns[layer % len(turns)] for layer in layers} if turns else {}


def made(family: str, models: Path) -> Iterator[Case]:
    """The unpruned model and its two pruned ones, each with what it should compute."""
    source = source_of(family, Case(family, "unpruned").folder(models))
    stock = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    unpruned = logits(stock, TOKENS).numpy()
    plan = moeits.plan(moeits.score(source), experts_per_layer=EXPERTS)
    for layout in LAYOUTS:
        case = Case(family, layout)
        kept = kept_of(family, layout)
        if kept:
            moeits.prune(source, plan=replace(plan, kept=kept), output=case.folder(models), layout=layout)
        with routers_masked(stock, kept, EXPERTS) if kept else nullcontext():
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
    for family in FAMILIES:
        for case in made(family, Path(sys.argv[1])):
            print(case.name, flush=True)
