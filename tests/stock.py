"""What stock transformers makes of a config: which tensors a model has, on disk and in memory, and in which layers.

The other voice in the tests of architectures: it knows nothing of moeits, so that a name, a shape or an axis that a
description of ours has wrong is found out.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

# What only moeits, or a loader of unequal layers, reads in a config.json.
_NOT_OF_THE_CLASS = {"architectures", "auto_map", "dtype", "moeits", "per_layer_config"}

_OPENED_AS = ("CausalLM", "ImageTextToText", "TokenClassification", "Seq2SeqLM", "MultimodalLM")

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> dtype as safetensors calls it, shape."""


@dataclass(frozen=True)
class Stock:
    """The stock model of one config."""

    model: Any

    @cached_property
    def on_disk(self) -> Shapes:
        """As `save_pretrained` writes them."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            with safe_open(Path(folder) / "model.safetensors", "numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (of.get_dtype(), tuple(of.get_shape())) for name, of in slices.items()}

    @cached_property
    def in_memory(self) -> Shapes:
        """As the modules hold them."""
        names = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.int64": "I64"}
        return {name: (names[str(value.dtype)], tuple(value.shape)) for name, value in state_of(self.model).items()}


def stock(config: Mapping[str, Any]) -> Stock:
    """The stock model of a config.json, with whatever weights it begins with."""
    own = {key: value for key, value in config.items() if key not in _NOT_OF_THE_CLASS}
    of_layers = config.get("per_layer_config") or {}
    if not any("expert" in key for values in of_layers.values() for key in values):
        own["per_layer_config"] = config.get("per_layer_config")
    return _stock(json.dumps(own, sort_keys=True), config.get("dtype", "float32"))


@lru_cache(maxsize=64)
def _stock(text: str, dtype: str) -> Stock:
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.for_model(**json.loads(text))
    model = auto_class(config).from_config(config, dtype=getattr(torch, dtype)).eval()
    _widen(model, model._get_dtype_plan(getattr(torch, dtype)))
    return Stock(model)


def auto_class(config: Any) -> Any:
    """What opens a model of this config's class: that of language models, where there is one."""
    import transformers

    autos = (getattr(transformers, f"AutoModelFor{name}") for name in _OPENED_AS)
    return next(auto for auto in autos if type(config) in auto._model_mapping)


def _widen(model: Any, dtypes: Mapping[str, Any]) -> None:
    """Some tensors are always loaded as float32, whatever the others are; a file that has them so keeps them so."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if wide := next((dtype for part, dtype in dtypes.items() if part in name), None):
            value.data = value.data.to(wide)


def state_of(model: Any) -> dict[str, Any]:
    """The state of a model, each tensor under one name."""
    seen: set[int] = set()
    return {
        name: value
        for name, value in model.state_dict().items()
        if value.data_ptr() not in seen and not seen.add(value.data_ptr())  # type: ignore[func-returns-value]
    }


def loaded_state(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint as they are called and shaped once stock transformers has loaded it."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as other:
        auto = auto_class(AutoConfig.from_pretrained(folder))
        save_file(state_of(auto.from_pretrained(folder, dtype="auto")), f"{other}/state")
        return load_file(f"{other}/state")


def experts_by_shape(
    config: Mapping[str, Any], count_key: str, *, fused: bool
) -> tuple[dict[str, tuple[int, str]], dict[str, int]]:
    """What a model of one expert less lacks: ({tensor of one expert: (its number, name with a hole)}, {tensor: axis}).

    All that is taken for granted is that of numbered experts the last one goes.
    """
    count = config[count_key]
    both = [stock({**config, count_key: count - less}) for less in (0, 1)]
    more, less = ((each.in_memory if fused else each.on_disk) for each in both)
    own, axes = {}, {}
    for name, (_, shape) in more.items():
        if name not in less:
            before, after = name.rsplit(f".{count - 1}.", 1)
            own |= {f"{before}.{expert}.{after}": (expert, f"{before}.{{}}.{after}") for expert in range(count)}
        elif less[name][1] != shape:
            (axes[name],) = (axis for axis, size in enumerate(shape) if size != less[name][1][axis])
    return own, axes


def moe_layers_of(config: Mapping[str, Any], count_key: str) -> list[int]:
    """Numbers of the decoder layers that have experts."""
    own, axes = experts_by_shape(config, count_key, fused=False)
    return sorted({int(re.search(r"layers\.(\d+)\.", name)[1]) for name in (*own, *axes)})  # type: ignore[index]


def what_is_left(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], count_key: str, kept: Mapping[int, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """What pruning should leave of a checkpoint, said a second time, on whole arrays and without a name of ours."""
    own, axes = experts_by_shape(config, count_key, fused=not tensors.keys() <= stock(config).on_disk.keys())
    left = {}
    for name, value in tensors.items():
        found = re.search(r"layers\.(\d+)\.", name)
        # A layer of which nothing is said keeps all.
        of_experts = found and (name in own or name in axes)
        ids = list(kept.get(int(found[1]), range(config[count_key]))) if found and of_experts else []
        if name in own:
            expert, numbered = own[name]
            if expert in ids:
                left[numbered.format(ids.index(expert))] = value
        else:
            # Rows behind those of the experts, which a model of one expert less has too, are not an expert's.
            rest = [*range(config[count_key], value.shape[axes[name]])] if name in axes else []
            left[name] = value.take([*ids, *rest], axes[name]) if name in axes else value
    return left
