"""What a checkpoint costs: parameters, bytes, FLOPs, seconds, memory and joules. What was not measured is None."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from moeits.checkpoint.opening import Source
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import SettingError
from moeits.experts.families import recorded_family
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output, write_whole
from moeits.foreseen import Foreseen, free_bytes
from moeits.measurement.files import Parameters, file_bytes, parameters_of, reduction_of, sparsity_of
from moeits.measurement.rehearsal import measuring
from moeits.measurement.running import run_apart
from moeits.measurement.settings import Workload
from moeits.progress import Progress, silent
from moeits.runtime import context_of, need
from moeits.settings import with_settings
from moeits.timed_layers import weights_in
from moeits.version import __version__

FORMAT = 1


RUN_FIELDS = ("flops", "load_seconds", "memory", "prefill", "decode", "energy", "machine")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one checkpoint costs. docs/measuring.md says how each number is found."""

    model: Mapping[str, Any]
    """source, fingerprint, model_type, plan_sha256."""
    parameters: Parameters
    tensor_bytes: int
    folder_bytes: int
    reduction: float | None
    """P(down) of the plan that the checkpoint carries."""
    sparsity: float | None
    """Share of weights that are zero."""
    flops: Mapping[str, Any] | None
    """per_token: FLOPs of a pass over `tokens` tokens, divided by them."""
    load_seconds: float | None
    memory: Mapping[str, Any] | None
    """peak_bytes and before_loading_bytes, of the process on a CPU, of the device on a GPU."""
    prefill: Mapping[str, Any] | None
    """tokens_per_second: the median of `repeats`, with the slowest and the fastest, over `tokens` tokens."""
    decode: Mapping[str, Any] | None
    energy: Mapping[str, Any] | None
    """joules_per_token while generating, with the mode it was found by, and grams of CO2 if a country was given."""
    machine: Mapping[str, Any] | None
    not_measured: Mapping[str, str]
    """What is None, and why: a sentence each."""
    versions: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """The footprint as the JSON value of its file."""
        return {"format": FORMAT, "kind": "footprint", **asdict(self)}


@with_settings
def measure(
    model: str | Path | Checkpoint,
    *,
    output: str | Path | None = None,
    workload: Workload,
    source: Source,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Footprint | Any:
    """Measure what a checkpoint costs, to store and to run.

    Parameters, bytes and zeros are read from its files. Then, unless `run` is off, a process of its own loads the model
    and reads a prompt of `prompt_tokens` random tokens and generates `new_tokens`, `repeats` times each. Energy is
    codecarbon's, counted over at least `energy_seconds` of generating, since the counters behind it tick slowly, and
    comes with the mode it was found by; `country` (ISO, three letters) gives its CO2 as well. With `dry_run` a
    `Foreseen` says what it would take, and nothing is done.

    Raises CheckpointError if the checkpoint is broken, SettingError for arguments out of range, EvaluationError
    if the model cannot be run, MissingExtra without torch.
    """
    checkpoint = source.open(model)
    if output is not None:
        check_file_output(Path(output), inputs=[checkpoint.folder])
    layout = MoELayout.of(checkpoint, padded=True)
    if workload.run:
        _check_context(checkpoint, workload)
    if dry_run:
        return _foreseen(checkpoint, output, workload)
    measured = _run(checkpoint, workload, progress) if workload.run else {}
    sparsity, reduction = sparsity_of(checkpoint, progress), reduction_of(checkpoint)
    footprint = Footprint(
        model={
            "source": checkpoint.source,
            "fingerprint": checkpoint.fingerprint,
            "model_type": layout.architecture.model_type,
            "plan_sha256": (checkpoint.config.get("moeits") or {}).get("plan_sha256"),
        },
        parameters=parameters_of(checkpoint, layout),
        tensor_bytes=checkpoint.nbytes,
        folder_bytes=file_bytes(checkpoint),
        reduction=reduction,
        sparsity=sparsity,
        not_measured=_not_measured(reduction, sparsity, measured),
        versions=_versions(),
        **{name: measured.get(name) for name in RUN_FIELDS},
    )
    if output is not None:
        write_whole(Path(output), (json.dumps(footprint.facts(), indent=2) + "\n").encode())
    return footprint


def _foreseen(checkpoint: Checkpoint, output: str | Path | None, workload: Workload) -> Foreseen:
    work, untold = measuring(checkpoint, workload)
    return Foreseen(
        source=checkpoint.source,
        output=None if output is None else str(output),
        reads_bytes=(2 if workload.run else 1) * checkpoint.nbytes,
        disk_bytes=0,
        disk_free_bytes=free_bytes(output),
        memory_bytes=weights_in(checkpoint, workload.dtype) if workload.run else None,
        work=work,
        not_foreseen=untold,
    )


def _check_context(checkpoint: Checkpoint, workload: Workload) -> None:
    """What is read and generated fits the model's context. Raises SettingError."""
    context, tokens = context_of(checkpoint), workload.prompt_tokens + workload.new_tokens
    if context and tokens > context:
        raise SettingError(
            f"--prompt-tokens {workload.prompt_tokens} and --new-tokens {workload.new_tokens} make {tokens} tokens, "
            f"but the model's context is {context}. Ask for fewer."
        )


def _run(checkpoint: Checkpoint, workload: Workload, progress: Progress) -> dict[str, Any]:
    """What running the model shows, in a process of its own."""
    need("torch", extra="measure")
    need("transformers", extra="measure")
    progress("running the model", 0, 1)
    family = recorded_family(checkpoint.config)
    described = {} if family is None else {"family": to_builtins(family)}
    measured = run_apart({**workload.request, "folder": str(checkpoint.folder.resolve()), **described})
    progress("running the model", 1, 1)
    return measured


def _not_measured(reduction: float | None, sparsity: float | None, found: dict[str, Any]) -> dict[str, str]:
    """A sentence for everything that is None; an energy without joules becomes None here."""
    reasons = {}
    if reduction is None:
        reasons["reduction"] = "There is no plan.json beside the tensors, so nothing says what was removed."
    if sparsity is None:
        reasons["sparsity"] = "Some tensor cannot be read as numbers: its dtype is not known, or it is quantized."
    if not found:
        return reasons | dict.fromkeys(RUN_FIELDS, "The model was not run.")
    if found["energy"]["joules"] is None:
        reasons["energy"] = found["energy"]["why_not"]
        found["energy"] = None
    if found["memory"]["peak_bytes"] is None:
        reasons["memory"] = "This operating system does not say how much memory a process has used."
        found["memory"] = None
    return reasons


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"moeits": __version__}
    for name in ("torch", "transformers", "codecarbon"):
        # Without the extra nothing was run, so there is nothing to say.
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
