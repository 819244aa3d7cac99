"""SGLang's engine on the CPU, as a client: `by_sglang`, which starts this file as a program for each checkpoint.

A process of its own, since an engine whose scheduler fails ends the process that started it. What the engine says of
a text are log-probabilities, so those of the reference are compared.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import ROOT, WRITTEN, Case, Reference, Row, compared

PATIENCE = 900
"""Seconds that an engine may take, most of which are imports."""
_ERROR = re.compile(r"^(?:\w+\.)*\w+Error\b.*")
_SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "disable_radix_cache": True,  # the log-probabilities of a text that is in it would not be computed
    "skip_tokenizer_init": True,
    "context_length": 128,
    "max_total_tokens": 256,
    "mem_fraction_static": 0.1,
    "log_level": "warning",
}


def by_sglang(folder: Path, case: Case, reference: Reference) -> Row:
    """Log-probabilities of the texts, and how the first goes on.

    RuntimeError with the engine's own last error, TimeoutError.
    """
    with tempfile.TemporaryDirectory() as work:
        asked, told = Path(work) / "asked.json", Path(work) / "told.json"
        asked.write_text(json.dumps([reference.tokens.tolist(), reference.logits.shape[-1]]))
        command = [sys.executable, __file__, str(folder), str(asked), str(told)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no answer within {PATIENCE} s") from None
        if not told.is_file():
            raise RuntimeError(own_error(ran.stderr + ran.stdout))
        answers = json.loads(told.read_text())
    found = [logprobs(each["meta_info"], reference.logits.shape[-1]) for each in answers]
    return compared(case, reference.in_logprobs(), found, answers[0]["output_ids"])


def own_error(log: str) -> str:
    """The last error that a log names, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["nothing said"]
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])


def logprobs(told: Any, vocabulary: int) -> np.ndarray:
    """(length, vocabulary): of the token after each of a text; NaN for what the engine leaves out."""
    rows = [*told["input_top_logprobs"][1:], told["output_top_logprobs"][0]]
    found = np.full((len(rows), vocabulary), np.nan, np.float32)
    for at, row in enumerate(rows):
        for value, token, *_ in row:
            found[at, token] = value
    return found


def answered(folder: str, texts: Sequence[Sequence[int]], vocabulary: int) -> Any:
    """What the engine says of texts, greedily continued, in SGLang's own form."""
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    sys.path.insert(0, str(ROOT / "scripts" / "sglang_stand_in"))
    import sglang

    engine = sglang.Engine(model_path=folder, **_SETTINGS)
    try:
        greedy = {"temperature": 0, "max_new_tokens": WRITTEN, "ignore_eos": True}
        return engine.generate(
            input_ids=texts,
            sampling_params=greedy,
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=vocabulary,
        )
    finally:
        engine.shutdown()


if __name__ == "__main__":
    _, checkpoint, asked, told = sys.argv
    answers = answered(checkpoint, *json.loads(Path(asked).read_text()))
    Path(told).write_text(json.dumps(answers))
