"""Unequal layers in vLLM's backend that serves what transformers itself builds (`--model-impl transformers`).

vLLM takes that way for architectures for which it has no classes of its own, and for all when asked. It has
transformers build the model without weights, and then puts its own kernels in the place of the experts. Before that,
layers of another size are built anew, as when transformers loads such a checkpoint; then each is given its own count.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

from moeits.servers.unequal import in_place_of, is_ours, is_unequal

_NUMBER = re.compile(r"\.layers\.(\d+)\.")


def is_of_transformers(model: Any) -> bool:
    """Whether a class, or what vLLM notes of it when it looks at it, is one of that backend."""
    name = str(getattr(model, "architecture", None) or getattr(model, "__name__", ""))
    return name.startswith("Transformers") and "MoE" in name


def give_own_layers(refuse: Callable[[], None]) -> None:
    """Have that backend build unequal layers; `refuse` raises where something of vLLM's settings stands against it."""
    backend: Any = importlib.import_module("vllm.model_executor.models.transformers.moe")
    if not is_ours(backend.FusedMoEFactory):
        backend.MoEMixin.pipeline_parallel = _of_own_sizes(backend.MoEMixin.pipeline_parallel)
        backend.FusedMoEFactory = _of_own_count(backend.FusedMoEFactory, refuse)


def _of_own_sizes(stock: Callable[..., None]) -> Callable[..., None]:
    """What follows upon the model's having been built, after its layers were built anew."""

    @in_place_of(stock)
    def own(mixin: Any) -> None:
        from moeits.modeling_moeits import rebuild_layers

        if is_unequal(mixin.config):
            utilities = importlib.import_module("vllm.model_executor.models.transformers.utils")
            rebuild_layers(mixin.model, utilities.init_on_device_without_buffers)
        stock(mixin)

    return own


def _of_own_count(stock: Callable[..., Any], refuse: Callable[[], None]) -> Callable[..., Any]:
    """What makes the kernel of a layer's experts, with its number of them."""

    @in_place_of(stock)
    def own(**arguments: Any) -> Any:
        from vllm.config import get_current_vllm_config

        model_config = get_current_vllm_config().model_config
        if is_unequal(model_config.hf_config):
            refuse()
            count = model_config.hf_text_config.num_experts_per_layer[int(_NUMBER.findall(arguments["prefix"])[-1])]
            arguments |= {"num_experts": count, "top_k": min(arguments["top_k"], count)}
        return stock(**arguments)

    return own
