"""A checkpoint -> one GGUF file for llama.cpp, by llama.cpp's own converter. moeits converts nothing itself."""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, OutputError, SettingError
from moeits.experts.families import has_class_on_hub
from moeits.experts.promises import check_not_factored, needs_loader
from moeits.files import check_file_output
from moeits.printable import printable

CONVERTER = "convert_hf_to_gguf.py"
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_LONGEST_REASON = 300


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written."""

    source: str
    outtype: str
    nbytes: int
    caution: str | None = None
    """Why llama.cpp will compute something else of it, of the unpruned model too, where that is known."""


def export(
    model: str | Path,
    *,
    gguf: str | Path,
    outtype: str = "auto",
    converter: str | Path | None = None,
    overwrite: bool = False,
) -> Export:
    """Convert a checkpoint to a GGUF file by `convert_hf_to_gguf.py` of llama.cpp.

    `model` is a local folder whose layers keep the same number of experts: a GGUF file says one number for all.
    `outtype` is the converter's: auto keeps the 16-bit type of the weights. `converter` is that script, or the folder
    of llama.cpp's source; otherwise it is looked for on PATH. An existing file is replaced with `overwrite` only.

    Raises CheckpointError if the folder is not a checkpoint, SettingError for unequal layers, an unknown type or where
    there is no converter, OutputError if the file is there or the converter stops, with its own last words.
    """
    if outtype not in OUTTYPES:
        raise SettingError(f"--outtype {outtype} is not one of {', '.join(OUTTYPES)}.")
    if not Path(model).is_dir():
        raise CheckpointError(f"There is no folder {model}: export takes a checkpoint on this machine.")
    source = Checkpoint.open(Path(model))
    _check_one_count(source)
    output = Path(gguf)
    check_file_output(output, inputs=[model])
    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already. Choose another --gguf, or give --overwrite.")
    command = [*_converter(converter, source=model, output=output, outtype=outtype), str(model), "--outtype", outtype]
    partial = output.with_name(f".{output.name}.{secrets.token_hex(8)}.writing")
    try:
        _run([*command, "--outfile", str(partial)], output)
        partial.replace(output)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return Export(
        source=source.source, outtype=outtype, nbytes=output.stat().st_size, caution=_computed_otherwise(source.config)
    )


def _computed_otherwise(config: Mapping[str, Any]) -> str | None:
    """Seen of llama-cpp-python 0.3.36 (docs/clients.md)."""
    groups = config.get("n_group") or 1
    if config.get("topk_method") == "group_limited_greedy" and (config.get("topk_group") or 1) < groups:
        return (
            "llama.cpp takes the groups of experts whose best two have the largest sum, and this model was trained to "
            "take those of the best one, so it computes other logits than the model's, of its unpruned parent too."
        )
    return None


def _check_one_count(source: Checkpoint) -> None:
    check_not_factored(source.config, source.source)
    if needs_loader(source.config) and not has_class_on_hub(source.config):
        raise SettingError(
            f"The layers of {source.source} keep different numbers of experts, and a GGUF file says one number for "
            "all: prune again from its plan.json with --layout uniform, and export that."
        )


def _converter(given: str | Path | None, *, source: str | Path, output: Path, outtype: str) -> list[str]:
    """How the converter is called, without its arguments. Raises SettingError, with the command, if there is none."""
    if given is not None:
        script = Path(given) / CONVERTER if Path(given).is_dir() else Path(given)
        if not script.is_file():
            raise SettingError(f"--converter {given} is neither {CONVERTER} nor a folder that has it.")
        return [sys.executable, str(script)]
    if found := shutil.which(CONVERTER):
        return [sys.executable, found]
    raise SettingError(
        f"{CONVERTER} of llama.cpp is not on PATH. Get llama.cpp's source and give its folder as --converter, or run: "
        f"python llama.cpp/{CONVERTER} {source} --outfile {output} --outtype {outtype}"
    )


def _run(command: list[str], output: Path) -> None:
    """Let the converter write a file. Raises OutputError with the last line that it said."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        ran = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}. Choose another --gguf.") from None
    if ran.returncode or not Path(command[-1]).is_file():
        lines = [line.strip() for line in ran.stderr.decode(errors="replace").splitlines() if line.strip()]
        said = printable(lines[-1])[:_LONGEST_REASON] if lines else f"it exits with {ran.returncode} and says nothing"
        raise OutputError(f"llama.cpp's converter did not write {output}: {said.rstrip('.')}.")
