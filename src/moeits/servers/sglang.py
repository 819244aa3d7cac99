"""The SGLang plug-in for checkpoints whose layers keep unequal numbers of experts.

Run on a CPU, by SGLang's own engine (docs/serving.md); never on a GPU.

SGLang calls `register` in each of its processes (entry point group `sglang.srt.plugins`), which asks for hooks. The
config of such a checkpoint refuses to give one count for all layers, so it is opened as soon as SGLang looks at it:
whatever asks the whole model gets the count before pruning, which is at least that of any layer. Decoder layers are
built from the config of their own layer, which transformers makes: the same classes, the same weights loader, which
fills the experts that a layer has. Nothing changes for any other checkpoint.
"""

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeits.errors import CheckpointError, SettingError
from moeits.servers.unequal import MARK, in_place_of, is_ours, is_unequal, refuse_factors, spelt, warn_of_version

logger = logging.getLogger(__name__)

FIRST, FIRST_UNTRIED = (0, 5, 23), (0, 5, 24)
"""The versions of SGLang whose sources this was written against: from the first on, before the second."""


@dataclass(frozen=True)
class DecoderLayers:
    """The classes of SGLang that build a decoder layer of an architecture."""

    module: str
    """In sglang.srt.models."""
    names: tuple[str, ...]
    """Each takes `config` and `layer_id`."""
    count: str
    """The config attribute that is read as the number of experts of a layer."""
    fuses: str | None = None
    """The module that says whether the shared expert is computed as one more routed one, where the layers ask that."""


DECODER_LAYERS = {
    "DeepseekV2ForCausalLM": DecoderLayers("deepseek_v2", ("DeepseekV2DecoderLayer",), "n_routed_experts"),
    "DeepseekV3ForCausalLM": DecoderLayers("deepseek_v2", ("DeepseekV2DecoderLayer",), "n_routed_experts"),
    "Ernie4_5_MoeForCausalLM": DecoderLayers("ernie4", ("Ernie4DecoderLayer",), "moe_num_experts"),
    "Glm4MoeForCausalLM": DecoderLayers("glm4_moe", ("Glm4MoeDecoderLayer",), "n_routed_experts"),
    "MiniMaxM2ForCausalLM": DecoderLayers("minimax_m2", ("MiniMaxM2DecoderLayer",), "num_local_experts"),
    "MixtralForCausalLM": DecoderLayers("mixtral", ("MixtralDecoderLayer",), "num_local_experts"),
    "OlmoeForCausalLM": DecoderLayers("olmoe", ("OlmoeDecoderLayer",), "num_experts"),
    "PhiMoEForCausalLM": DecoderLayers("phimoe", ("PhiMoEDecoderLayer",), "num_local_experts"),
    "Qwen2MoeForCausalLM": DecoderLayers("qwen2_moe", ("Qwen2MoeDecoderLayer",), "num_experts"),
    "Qwen3MoeForCausalLM": DecoderLayers("qwen3_moe", ("Qwen3MoeDecoderLayer",), "num_experts"),
    "Qwen3NextForCausalLM": DecoderLayers(
        "qwen3_next", ("Qwen3HybridLinearDecoderLayer", "Qwen3HybridAttentionDecoderLayer"), "num_experts", "qwen2_moe"
    ),
}
"""architecture in config.json -> its decoder layers."""


def register() -> None:
    """What SGLang calls when it starts; harmless when called again.

    A SGLang that has not what this builds on is left as it is, with a warning: it must go on serving all other models.
    """
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        for target in HOOKS:
            pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        known = spelt(FIRST, FIRST_UNTRIED)
        logger.warning("moeits' plug-in for unequal layers is off: it is for SGLang %s, and here is %s.", known, error)
        return
    if not is_ours(HookRegistry):
        setattr(HookRegistry, MARK, True)
        for target, (when, hook) in HOOKS.items():
            HookRegistry.register(target, hook, HookType[when])


def check(architecture: str, config: Any) -> None:
    """Whether layers of this architecture can have counts of their own; CheckpointError if not."""
    refuse_factors(config, "SGLang")
    if architecture not in DECODER_LAYERS or not getattr(config, "is_heterogeneous", False):
        raise CheckpointError(
            f"The layers of this checkpoint keep unequal numbers of experts, which moeits' plug-in for SGLang does for "
            f"{', '.join(DECODER_LAYERS)} and not for {architecture}. Prune again from the same plan with --layout "
            f"uniform."
        )


def opened(config: Any) -> None:
    """Before SGLang reads a config: one of unequal layers gives its count before pruning. Raises as `check` does."""
    if is_unequal(config):
        check((config.architectures or ["an architecture without a name"])[0], config)
        config.allow_global_per_layer_attribute_access = True


def serve(found: tuple[Any, str], model_config: Any) -> None:
    """After SGLang has found a class: its layers are built from their own configs. Raises as `check` does."""
    _, architecture = found
    if not is_unequal(model_config.hf_config):
        return
    check(architecture, model_config.hf_config)
    _warn_of_version()
    layers = DECODER_LAYERS[architecture]
    module = importlib.import_module(f"sglang.srt.models.{layers.module}")
    for layer_class in (getattr(module, name) for name in layers.names):
        if not is_ours(layer_class.__init__):
            layer_class.__init__ = _of_own_config(layer_class.__init__)
    if layers.fuses:
        fuses = importlib.import_module(f"sglang.srt.models.{layers.fuses}")
        says = fuses.can_fuse_shared_expert
        if not is_ours(says):
            fuses.can_fuse_shared_expert = _never_where_unequal(says)  # type: ignore[attr-defined]


def shared_apart(found: Any, _model_class: Any, hf_config: Any, *_others: Any) -> Any:
    """After SGLang has settled whether shared experts are computed as further routed ones: here they stay apart.

    Their place would be behind the count of all layers.
    """
    return type(found)(fusion_disabled=True) if is_unequal(hf_config) else None


def layers_last(stock: Callable[..., None], config: Any, *args: Any, **kwargs: Any) -> None:
    """For the `__init__` of a config class of SGLang's own, which says too late how many layers there are."""
    of_layers = kwargs.pop("per_layer_config", None)
    stock(config, *args, **kwargs)
    if of_layers is not None:
        config.per_layer_config = of_layers


HOOKS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sglang.srt.configs.qwen3_next.Qwen3NextConfig.__init__": ("AROUND", layers_last),
    "sglang.srt.utils.hf_transformers.common.get_hf_text_config": ("BEFORE", opened),
    "sglang.srt.model_loader.utils.get_model_architecture": ("AFTER", serve),
    "sglang.srt.layers.moe.utils.resolve_shared_experts_config": ("AFTER", shared_apart),
}
"""A function of SGLang -> when it calls one of this module, and which; what that returns, if not None, counts."""


def _never_where_unequal(stock: Callable[..., bool]) -> Callable[..., bool]:
    """What says whether a shared expert is fused, of the config of a model or of a layer."""

    @in_place_of(stock)
    def fused(config: Any, *others: Any) -> bool:
        return not is_unequal(config) and stock(config, *others)

    return fused


def _of_own_config(stock: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of a decoder layer, given the config of its own layer where layers differ."""
    signature = inspect.signature(stock)

    @in_place_of(stock)
    def own(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        whole = bound.arguments["config"]
        if getattr(whole, "is_heterogeneous", False):
            _refuse_expert_parallel()
            bound.arguments["config"] = whole.per_layer_config[bound.arguments["layer_id"]]
        stock(*bound.args, **bound.kwargs)

    return own


def _refuse_expert_parallel() -> None:
    """Where experts lie, and which have copies, is one table with a row of equal length for each layer."""
    from sglang.srt.runtime_context import get_exec, get_parallel

    moe = get_exec().moe
    if get_parallel().moe_ep_size > 1 or moe.enable_eplb or moe.ep_num_redundant_experts:
        raise SettingError(
            "Layers that keep unequal numbers of experts cannot be served with expert parallelism: leave out "
            "--ep-size, --enable-eplb and --ep-num-redundant-experts, and use --tp-size."
        )


def _warn_of_version() -> None:
    from sglang.version import __version__ as version

    warn_of_version("SGLang", version, FIRST, FIRST_UNTRIED)
