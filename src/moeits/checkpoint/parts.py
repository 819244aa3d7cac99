"""What a checkpoint is made of, by name: one list for folders and the hub, for copying and for replacing."""

import json
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
REFIT_NAME = "refit.json"
HEALING_NAME = "healing.json"

# What quantizers write beside config.json: ModelOpt, GPTQ, AWQ. They name modules.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

# What belongs to a checkpoint beside its tensors and its config. Compared in lower case: licences come as LICENSE,
# License.txt, license.md and MODEL_LICENSE.
SIDE_FILES = (
    "tokenizer*",
    "tekken*",
    "vocab*",
    "*.bpe",
    "merges*.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.tiktoken",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    "*processor_config.json",
    "*license*",
    "*licence*",
    "copying*",
    "copyright*",
    "*notice*",
    "*use_policy*",
    "*use-policy*",
    "terms_of_use*",
    *QUANTIZATION_FILES,
)

# As this package and transformers write a checkpoint.
PARTS = (
    "config.json",
    "model*.safetensors",
    INDEX_NAME,
    "readme.md",
    ".gitattributes",
    "plan.json",
    REFIT_NAME,
    HEALING_NAME,
    "refit-*.json",
    "healing-*.json",
    "modeling_*.py",
    "configuration_*.py",
    "adapter/readme.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    *SIDE_FILES,
)

# What is fetched from the hub: weights by whatever names an index gives them, and all else that is read or copied. Code
# of the model never is; that of tokenizers by name (`side_code.py`).
WEIGHTS = "*.safetensors"
SMALL_FILES = ("*.json", "*.jinja", *(part for part in PARTS if not part.endswith((".py", ".safetensors"))))

# The folders of these parts.
FOLDERS = tuple(sorted({str(PurePosixPath(pattern).parent) for pattern in PARTS} - {"."}))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name within a checkpoint's folder is one of these; a star does not stand for a slash."""
    name = name.lower()
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def in_any_case(pattern: str) -> str:
    """A pattern for those who compare case by case, as the hub does: `l*` becomes `[lL]*`."""
    return "".join(f"[{each.lower()}{each.upper()}]" if each.isalpha() else each for each in pattern)


def is_part(name: str) -> bool:
    """Whether checkpoints have a file of this name (its path within the folder)."""
    return matches(name, PARTS)


def names_a_model(folder: Path) -> bool:
    """Whether the folder's config.json says of which model it is."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model's config or its tensors."""
    return names_a_model(folder) or any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME))
