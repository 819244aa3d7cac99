"""What running a model shows: seconds, tokens per second, memory, FLOPs and joules. It happens in a process of its own,

    python -m moeits.measurement.running REQUEST ANSWER        two JSON files

so that its peak memory is the model's and not that of whoever asked.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from moeits.checkpoint.opening import Describing
from moeits.checkpoint.reading import Checkpoint
from moeits.devices import checked_device
from moeits.errors import EvaluationError, MoeitsError
from moeits.experts.families import Architecture
from moeits.measurement.energy import energy_of
from moeits.measurement.memory import peak_bytes, resident_bytes
from moeits.runtime import load_opened, need
from moeits.typed_json import convert_typed


def run_apart(request: dict[str, Any]) -> dict[str, Any]:
    """Run the model of a request in a process of its own. Raises EvaluationError if it cannot be run there."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(request))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(asked), str(answer)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.exists():
            raise EvaluationError(_why(done.returncode, done.stderr))
        found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise EvaluationError(found["error"])
    return found


def _why(code: int, stderr: str) -> str:
    if code == -9:
        return "The process that ran the model was killed, most likely for want of memory."
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), f"exit code {code}")
    return f"The model could not be run: {last}"


def run_here(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model and run it, in this process. All numbers of one call are of the same loaded model."""
    torch = need("torch", extra="measure")
    need("transformers", extra="measure")
    device = torch.device(checked_device(request["device"]))
    before, began = resident_bytes(), perf_counter()
    model = load_opened(_checkpoint(request), dtype=request["dtype"]).to(device).eval()
    load_seconds = perf_counter() - began
    experts = model.config._experts_implementation
    generator = torch.Generator().manual_seed(0)
    prompt, new = request["prompt_tokens"], request["new_tokens"]
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, prompt), generator=generator).to(device)
    with torch.inference_mode():
        _decode(torch, model, ids, 2)
        prefill = [_timed(torch, device, lambda: model(ids, use_cache=True)) for _ in range(request["repeats"])]
        decode = [_decode(torch, model, ids, new) for _ in range(request["repeats"])]
        peak = peak_bytes(device)
        energy = _energy_of_decoding(torch, model, ids, new, request)
        flops = _flops(model, ids)
    return {
        "load_seconds": load_seconds,
        "memory": {
            "peak_bytes": peak,
            "before_loading_bytes": before,
            "of": "device" if device.type == "cuda" else "process",
        },
        "prefill": _speed(prefill, prompt),
        "decode": _speed(decode, new),
        "flops": {"per_token": flops / prompt, "tokens": prompt},
        "energy": energy,
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "experts": experts,
        },
    }


def _checkpoint(request: dict[str, Any]) -> Checkpoint:
    """The checkpoint of a request, with what was known of its family."""
    family = convert_typed(request["family"], Architecture) if "family" in request else None
    return Describing().described(request["folder"], known=family)


def _timed(torch: Any, device: Any, work: Callable[[], Any]) -> float:
    """Seconds of the work, done and not only begun."""
    _wait(torch, device)
    began = perf_counter()
    work()
    _wait(torch, device)
    return perf_counter() - began


def _wait(torch: Any, device: Any) -> None:
    """An accelerator takes orders faster than it carries them out."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _decode(torch: Any, model: Any, ids: Any, new: int) -> float:
    """Seconds of `new` tokens after a prompt, whose own pass is not counted."""
    out = model(ids, use_cache=True)

    def tokens() -> None:
        _generate(model, out, new)

    return _timed(torch, ids.device, tokens)


def _generate(model: Any, state: Any, new: int) -> None:
    """`new` tokens, one after the other, the most likely each time."""
    for _ in range(new):
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, past_key_values=state.past_key_values, use_cache=True)


def _speed(seconds: list[float], tokens: int) -> dict[str, Any]:
    """Tokens per second: median over the repeats, and the slowest and the fastest of them."""
    speeds = sorted(tokens / each for each in seconds)
    return {
        "tokens_per_second": median(speeds),
        "slowest": speeds[0],
        "fastest": speeds[-1],
        "tokens": tokens,
        "repeats": len(speeds),
    }


def _energy_of_decoding(torch: Any, model: Any, ids: Any, new: int, request: dict[str, Any]) -> dict[str, Any]:
    """Generate for at least so many seconds: the counters behind the joules are slow."""
    passes = 0

    def work() -> None:
        nonlocal passes
        began = perf_counter()
        while request["energy"] and perf_counter() - began < request["energy_seconds"]:
            # The prompt is one token, whose pass is like that of any token that is generated.
            _generate(model, model(ids[:, :1], use_cache=True), new)
            _wait(torch, ids.device)
            passes += 1 + new

    _, found = energy_of(work, wanted=request["energy"], country=request["country"])
    joules = None if found.joules is None else found.joules / passes
    return {**asdict(found), "joules_per_token": joules, "tokens": passes}


def _flops(model: Any, ids: Any) -> int:
    """FLOPs of one pass over the prompt.

    torch does not count the fused kernels of experts and attention, so both are switched to the plain ones, which
    compute the same.
    """
    counter = need("torch.utils.flop_counter", extra="measure").FlopCounterMode(display=False)
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    with counter:
        model(ids, use_cache=False)
    return counter.get_total_flops()


def main(request: str, answer: str) -> None:
    """Answer one request, errors that a user can fix included."""
    try:
        found = run_here(json.loads(Path(request).read_text()))
    except MoeitsError as error:
        found = {"error": str(error)}
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
