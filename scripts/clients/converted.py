"""llama.cpp: its converter, whose file is compared with the checkpoint, and what it then computes.

LLAMA_CPP is the folder of llama.cpp's source, which has the converter.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cases import WRITTEN, Case, Reference, Row, compared

_IN_GGUF = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")
_ROUTER = re.compile(r"model\.layers\.(\d+)\.\w+\.gate\.weight")


def by_gguf(folder: Path, case: Case, reference: Reference) -> Row:  # noqa: ARG001 - nothing is computed
    """Converted to f32 and to f16: counts, and every router and expert, compared with the checkpoint's."""
    row = Row(case.family, case.layout)
    for kind in ("f32", "f16"):
        counts, found = _converted(folder, kind)
        held = {len(tensor) for name, tensor in found.items() if name.endswith("_exps.weight")}
        if held != set(counts):
            row.error = f"{kind}: expert_count {counts} of layers that hold {sorted(held)}"
        seen = list(_of_experts(folder, found))
        worst = max(np.abs(part - expected.astype(part.dtype)).max() for part, expected in seen)
        if kind == "f32":
            row.facts = {"experts": counts[0], "tensors": len(seen), "tensors_differ": float(worst)}
        else:
            halves = sum(part.dtype == np.float16 for part, _ in seen)
            row.facts |= {"f16_halves": halves, "f16_tensors_differ": float(worst)}
    return row


def _converted(folder: Path, kind: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """The counts of experts that the file names, and its tensors."""
    from gguf import GGUFReader

    with tempfile.TemporaryDirectory() as work:
        _convert(folder, Path(work) / "made.gguf", kind)
        reader = GGUFReader(Path(work) / "made.gguf")
        counts = [field.contents() for name, field in reader.fields.items() if name.endswith(".expert_count")]
        return counts, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def _of_experts(folder: Path, found: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the GGUF file has of each router and of each matrix of an expert, and what the checkpoint has."""
    from safetensors.numpy import load_file

    for name, expected in (pair for file in folder.glob("*.safetensors") for pair in load_file(file).items()):
        if expert := _EXPERT.fullmatch(name):
            stacked = found[f"blk.{expert[1]}.{_IN_GGUF[expert[3]]}.weight"]
            yield stacked[int(expert[2])], expected
        elif router := _ROUTER.fullmatch(name):
            yield found[f"blk.{router[1]}.ffn_gate_inp.weight"], expected


def by_llama_cpp(folder: Path, case: Case, reference: Reference) -> Row:
    """Converted to f32 and to f16 by llama.cpp's own converter, made Q4_K_M of f32, and each opened."""
    with tempfile.TemporaryDirectory() as work:
        whole, half, small = (Path(work) / f"{kind}.gguf" for kind in ("f32", "f16", "q4_k_m"))
        _convert(folder, whole, "f32")
        logits, written = _in_llama_cpp(whole, reference)
        row = compared(case, reference, logits, written)
        _convert(folder, half, "f16")
        _quantized_by_llama_cpp(whole, small)
        for file in (half, small):
            row.facts |= _coarser(logits, _in_llama_cpp(file, reference)[0], file.stem)
    return row


def _coarser(logits: np.ndarray, coarse: np.ndarray, kind: str) -> dict[str, float]:
    """How far the logits of coarser weights are from those of float32, and how often the first choice is the same."""
    apart = np.abs(coarse - logits)
    same = float((coarse.argmax(-1) == logits.argmax(-1)).mean())
    seen = {"max_difference": apart.max(), "mean_difference": apart.mean(), "same_first": same}
    return {f"{kind}_{name}": float(f"{value:.2g}") for name, value in seen.items()}


# The converter knows tokenizers by a hash of what they do, and that of these models is not among them: it is told to
# take it for GPT-2's. The tokens of the comparison are numbers, so nothing depends on it.
_AS_GPT2 = """
import runpy, sys
sys.path[:0] = [{there!r}, {there!r} + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path({converter!r}, run_name="__main__")
"""


def _convert(folder: Path, output: Path, kind: str) -> None:
    converter = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    arguments = [str(folder), "--outfile", str(output), "--outtype", kind]
    program = _AS_GPT2.format(there=str(converter.parent), converter=str(converter))
    ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1])


def _in_llama_cpp(file: Path, reference: Reference) -> tuple[np.ndarray, list[int]]:
    """Logits of the first text, and its greedy continuation."""
    from llama_cpp import Llama

    length = reference.tokens.shape[1]
    # Keys and values in float32 (0), instead of halves.
    kept = {"type_k": 0, "type_v": 0, "n_threads": 1, "logits_all": True, "verbose": False}
    model: Any = Llama(str(file), n_ctx=length + WRITTEN, **kept)
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
