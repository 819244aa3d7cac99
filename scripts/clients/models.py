"""Makes what the clients open: `python scripts/clients/models.py MODELS`, with moeits and its extras installed.

For each family a small model of random weights in float32, as transformers saves it, and what moeits prunes of it: the
same number of experts in every layer, and unequal ones. Beside each lies what it should compute, by stock transformers
alone: of a pruned model the logits of the *unpruned* one whose router cannot choose the removed experts.
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
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": EXPERTS, "sliding_window": None},
    "qwen2_moe": {
        **_GROUPED,
        "num_experts": EXPERTS,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
    },
    "deepseek_v2": {
        "intermediate_size": 256,
        "num_key_value_heads": 4,
        "n_routed_experts": EXPERTS,
        "moe_intermediate_size": 256,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "routed_scaling_factor": 1.0,
    },
    "olmoe": {**_GROUPED, "num_experts": EXPERTS},
    "qwen3_moe": {**_GROUPED, "num_experts": EXPERTS, "moe_intermediate_size": 256, "head_dim": 64},
}


def source_of(family: str, folder: Path) -> Path:
    """The unpruned model, as stock transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **_ALL, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def made(family: str, models: Path) -> Iterator[Case]:
    """The unpruned model and its two pruned ones, each with what it should compute."""
    source = source_of(family, Case(family, "unpruned").folder(models))
    dense = FAMILIES[family].get("first_k_dense_replace", 0)
    stock = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    unpruned = logits(stock, TOKENS).numpy()
    plan = moeits.plan(moeits.score(source), experts_per_layer=EXPERTS)
    for layout in LAYOUTS:
        case = Case(family, layout)
        kept = {i: KEPT[layout][i] for i in range(dense, LAYERS)} if layout in KEPT else {}
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
