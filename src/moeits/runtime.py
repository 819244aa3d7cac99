"""The only door to torch and transformers: a pruned checkpoint in the stock model class."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from moeits.checkpoint import read_json
from moeits.errors import CheckpointError, MissingExtra
from moeits.layout import per_layer_config


def load(path: str | Path, **kwargs: Any) -> Any:
    """The stock transformers model of a checkpoint, whether its layers keep equal counts or not.

    Keyword arguments (dtype, device_map, ...) go to `from_pretrained`. Code that a checkpoint brings along is never
    run. Raises MissingExtra without torch and transformers, CheckpointError if transformers has no such class.
    """
    transformers = need("transformers", extra="load")
    need("torch", extra="load")
    config = read_json(Path(path) / "config.json")
    if not per_layer_config(config):
        return transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **kwargs)
    from moeits.modeling_moeits import per_layer_class

    name = (config.get("architectures") or ["?"])[0]
    stock = getattr(transformers, name, None)
    if stock is None:
        raise CheckpointError(f"This transformers has no class {name}, which {path} was made for. Update transformers.")
    return per_layer_class(stock).from_pretrained(path, **kwargs)


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency. Raises MissingExtra, naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs {error.name or module}, which is not installed: pip install 'moeits[{extra}]'"
        ) from None
