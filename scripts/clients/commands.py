"""Clients that are command lines: lm_eval by itself, and under `accelerate launch`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cases import CHOICES, PROMPT, Case, Reference, Row

_TASK = """\
task: of_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def by_lm_eval(folder: Path, case: Case, reference: Reference) -> Row:
    return _evaluated([sys.executable, "-m", "lm_eval"], folder, case, reference)


def by_accelerate_launch(folder: Path, case: Case, reference: Reference) -> Row:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    command = [sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lm_eval"]
    return _evaluated(command, folder, case, reference)


def _evaluated(command: Sequence[str], folder: Path, case: Case, reference: Reference) -> Row:
    """The log-likelihood of each choice, as the harness notes it in its samples."""
    own_code = ",trust_remote_code=True" if case.layout == "per-layer" else ""
    row = Row(case.family, case.layout)
    with tempfile.TemporaryDirectory() as work:
        there = Path(work)
        (there / "data.jsonl").write_text(json.dumps({"prompt": PROMPT, "choices": CHOICES}) + "\n")
        (there / "task.yaml").write_text(_TASK.format(data=there / "data.jsonl"))
        arguments = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=float32{own_code}"]
        arguments += ["--tasks", "of_choices", "--include_path", work, "--device", "cpu", "--batch_size", "1"]
        arguments += ["--log_samples", "--output_path", str(there / "out")]
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(ran.stderr.strip().splitlines()[-1])
        (samples,) = there.rglob("samples_of_choices*.jsonl")
        sample = json.loads(samples.read_text().splitlines()[0])
    found = [float(each[0][0] if isinstance(each[0], list) else each[0]) for each in sample["resps"]]
    worst = max(abs(one - other) for one, other in zip(found, reference.loglikelihoods, strict=True))
    row.facts = {"loglikelihoods_differ": float(f"{worst:.2g}"), "of": float(f"{min(reference.loglikelihoods):.3g}")}
    return row
