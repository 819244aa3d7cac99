"""Clients that open a checkpoint and compute: transformers, its pipeline, mlx-lm, OpenVINO, llama.cpp."""

import os
import subprocess
import sys
import tempfile
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


def by_llama_cpp(folder: Path, case: Case, reference: Reference) -> Row:
    """Converted by llama.cpp's own converter, which lies where LLAMA_CPP says, then opened; and as Q4_K_M.

    The converter knows tokenizers by a hash of what they do, and that of these models is not among them: it is told to
    take it for GPT-2's. The tokens of the comparison are numbers, so nothing depends on it.
    """
    converter = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    with tempfile.TemporaryDirectory() as work:
        whole, small = Path(work) / "f32.gguf", Path(work) / "q4.gguf"
        arguments = [str(folder), "--outfile", str(whole), "--outtype", "f32"]
        program = _AS_GPT2.format(there=str(converter.parent), converter=str(converter))
        ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(ran.stderr.strip().splitlines()[-1])
        logits, written = _in_llama_cpp(whole, reference)
        row = compared(case, reference, logits, written)
        _quantized_by_llama_cpp(whole, small)
        logits, _ = _in_llama_cpp(small, reference)
        row.facts = {"q4_k_m_max_difference": compared(case, reference, logits).max_difference}
    return row


_AS_GPT2 = """
import runpy, sys
sys.path[:0] = [{there!r}, {there!r} + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path({converter!r}, run_name="__main__")
"""


def _in_llama_cpp(file: Path, reference: Reference) -> tuple[np.ndarray, list[int]]:
    """Logits of the first text, and its greedy continuation."""
    from llama_cpp import Llama

    length = reference.tokens.shape[1]
    model = Llama(str(file), n_ctx=length + WRITTEN, logits_all=True, verbose=False, n_threads=1)
    model.eval(reference.tokens[0].tolist())
    logits, written = np.array(model.scores[:length]), []
    for at in range(length, length + WRITTEN):
        written.append(int(np.argmax(model.scores[at - 1])))
        model.eval(written[-1:])
    return logits, written


def _quantized_by_llama_cpp(file: Path, output: Path) -> None:
    import llama_cpp

    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(str(file).encode(), str(output).encode(), wanted):
        raise RuntimeError("llama_model_quantize failed")
