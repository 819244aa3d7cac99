"""Clients that open a checkpoint and compute: transformers, its pipeline, mlx-lm, OpenVINO."""

from pathlib import Path
from typing import Any

import numpy as np
from cases import PROMPT, WRITTEN, Case, Reference, Row, compared


def stock(folder: Path, case: Case) -> Any:
    """The model in transformers, in float32; unequal layers by the file that the checkpoint carries."""
    import torch
    import transformers

    own_code = {"trust_remote_code": True} if case.layout == "per-layer" else {}
    precision = "dtype" if transformers.__version__ >= "4.56" else "torch_dtype"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **{precision: torch.float32}, **own_code).eval()


def computed(model: Any, case: Case, reference: Reference) -> Row:
    """Logits and greedy tokens of a model of torch."""
    import torch

    tokens = torch.from_numpy(reference.tokens)
    with torch.no_grad():
        logits = model(tokens).logits.float().numpy()
        mask = torch.ones_like(tokens[:1])
        texts = model.generate(
            tokens[:1], attention_mask=mask, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False
        )
    return compared(case, reference, logits, texts[0, tokens.shape[1] :].numpy())


def by_transformers(folder: Path, case: Case, reference: Reference) -> Row:
    return computed(stock(folder, case), case, reference)


def by_pipeline(folder: Path, case: Case, reference: Reference) -> Row:
    import transformers

    own_code = {"trust_remote_code": True} if case.layout == "per-layer" else {}
    writes = transformers.pipeline("text-generation", model=str(folder), device="cpu", **own_code)
    (made,) = writes(PROMPT, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False, return_tensors=True)
    row = Row(case.family, case.layout)
    row.same_text = made["generated_token_ids"][-WRITTEN:] == reference.after_prompt.tolist()
    return row


def by_mlx(folder: Path, case: Case, reference: Reference) -> Row:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(str(folder))
    logits = np.array(model(mx.array(reference.tokens)).astype(mx.float32))
    steps = generate_step(mx.array(reference.tokens[0]), model, max_tokens=WRITTEN)
    return compared(case, reference, logits, [int(token) for token, _ in steps])


def by_openvino(folder: Path, case: Case, reference: Reference) -> Row:
    from optimum.intel import OVModelForCausalLM

    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    own_code = {"trust_remote_code": True} if case.layout == "per-layer" else {}
    model = OVModelForCausalLM.from_pretrained(folder, export=True, load_in_8bit=False, ov_config=exact, **own_code)
    return computed(model, case, reference)
