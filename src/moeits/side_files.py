"""What belongs to a checkpoint beside its tensors and its config: tokenizer, chat template, generation config, licence.

Modelling code, other weight formats and training leftovers are not copied.
"""

import json
from pathlib import Path

from moeits.checkpoint import read_json
from moeits.checkpoint_writer import CheckpointWriter

COPIED = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.tiktoken",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    "*processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


def copy_side_files(folder: Path, writer: CheckpointWriter) -> list[str]:
    """Copy what belongs to the checkpoint; returns the names of code files that were left out."""
    paths = sorted({path for pattern in COPIED for path in folder.glob(pattern) if path.is_file()})
    for path in paths:
        if path.suffix == ".py":
            continue
        name = path.relative_to(folder).as_posix()
        if name == "tokenizer_config.json" and "auto_map" in (config := read_json(path)):
            # It names tokenizer code that is left out; with it, loading would look for that code.
            writer.write_text(name, json.dumps({k: v for k, v in config.items() if k != "auto_map"}, indent=2) + "\n")
        else:
            writer.copy(path, name)
    return sorted(path.name for path in folder.glob("*.py"))
