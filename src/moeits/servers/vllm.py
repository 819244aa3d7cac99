"""The vLLM plug-in for checkpoints whose layers keep unequal numbers of experts. Not run on a GPU.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). vLLM knows from transformers
that layers may differ (`config.per_layer_config`), and sizes what is common to all for the largest. Only the decoder
layers still read the one count of all layers. So each is built from the config of its own layer, which transformers
makes: the same classes, the same weights loader, which asks every layer for its own experts. Where vLLM serves what
transformers builds, see `vllm_of_transformers`. Nothing changes for any other checkpoint.
"""

import copy
import importlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeits.errors import CheckpointError, SettingError
from moeits.servers.unequal import (
    config_of_layer,
    in_place_of,
    is_ours,
    is_unequal,
    refuse_factors,
    spelt,
    warn_of_version,
)
from moeits.servers.vllm_of_transformers import give_own_layers, is_of_transformers

logger = logging.getLogger(__name__)

FIRST, FIRST_UNTRIED = (0, 32), (0, 34)
"""The versions of vLLM whose sources this was written against: from the first on, before the second. 0.32 served."""


@dataclass(frozen=True)
class DecoderLayer:
    """The class of vLLM that builds a decoder layer of an architecture."""

    module: str
    """In vllm.model_executor.models."""
    name: str
    """It takes `prefix`, which ends in the layer's number, and `config` or `vllm_config`."""
    count: str
    """The config attribute that the module reads as the number of experts of a layer."""


DECODER_LAYERS = {
    "DeepseekV2ForCausalLM": DecoderLayer("deepseek_v2", "DeepseekV2DecoderLayer", "n_routed_experts"),
    "DeepseekV3ForCausalLM": DecoderLayer("deepseek_v2", "DeepseekV2DecoderLayer", "n_routed_experts"),
    "Ernie4_5_MoeForCausalLM": DecoderLayer("ernie45_moe", "Ernie4_5_MoeDecoderLayer", "moe_num_experts"),
    "Glm4MoeForCausalLM": DecoderLayer("glm4_moe", "Glm4MoeDecoderLayer", "n_routed_experts"),
    "Glm4MoeLiteForCausalLM": DecoderLayer("glm4_moe_lite", "Glm4MoeLiteDecoderLayer", "n_routed_experts"),
    "GptOssForCausalLM": DecoderLayer("gpt_oss", "TransformerBlock", "num_local_experts"),
    "GraniteMoeForCausalLM": DecoderLayer("granitemoe", "GraniteMoeDecoderLayer", "num_local_experts"),
    "MiniMaxM2ForCausalLM": DecoderLayer("minimax_m2", "MiniMaxM2DecoderLayer", "num_local_experts"),
    "MixtralForCausalLM": DecoderLayer("mixtral", "MixtralDecoderLayer", "num_local_experts"),
    "OlmoeForCausalLM": DecoderLayer("olmoe", "OlmoeDecoderLayer", "num_experts"),
    "PhiMoEForCausalLM": DecoderLayer("phimoe", "PhiMoEDecoderLayer", "num_local_experts"),
    "Qwen2MoeForCausalLM": DecoderLayer("qwen2_moe", "Qwen2MoeDecoderLayer", "num_experts"),
    "Qwen3_5MoeForCausalLM": DecoderLayer("qwen3_5", "Qwen3_5DecoderLayer", "num_experts"),
    "Qwen3_5MoeForConditionalGeneration": DecoderLayer("qwen3_5", "Qwen3_5DecoderLayer", "num_experts"),
    "Qwen3MoeForCausalLM": DecoderLayer("qwen3_moe", "Qwen3MoeDecoderLayer", "num_experts"),
    "Qwen3NextForCausalLM": DecoderLayer("qwen3_next", "Qwen3NextDecoderLayer", "num_experts"),
    "Qwen3VLMoeForConditionalGeneration": DecoderLayer("qwen3_vl_moe", "Qwen3VLMoeDecoderLayer", "num_experts"),
}
"""architecture in config.json -> its decoder layer."""


def register() -> None:
    """What vLLM calls when it starts; harmless when called again.

    The door is the registry, which every model passes before it is built: what cannot be served is refused there, when
    vLLM looks at the config (CheckpointError), and again when it fetches the class. A vLLM that has not what this
    builds on is left as it is, with a warning: it must go on serving all other models.
    """
    try:
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase as Convertor

        registry = type(ModelRegistry)
        inspect_model, resolve_model = registry.inspect_model_cls, registry.resolve_model_cls
        per_layer = Convertor.get_per_layer_hf_configs
    except (ImportError, AttributeError) as error:
        known = spelt(FIRST, FIRST_UNTRIED)
        logger.warning("moeits' plug-in for unequal layers is off: it is for vLLM %s, and here is %s.", known, error)
        return
    if not is_ours(resolve_model):
        registry.inspect_model_cls = _looked_at(check, inspect_model)
        registry.resolve_model_cls = _looked_at(serve, resolve_model)
        Convertor.get_per_layer_hf_configs = _one_of_mla(per_layer)


def _looked_at(look: Callable[[str, Any, Any], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the registry; then `look` sees architecture, config and class of a checkpoint of unequal layers."""

    @in_place_of(method)
    def found(registry: Any, architectures: Any, model_config: Any) -> Any:
        model, architecture = method(registry, architectures, model_config)
        if is_unequal(model_config.hf_config):
            look(architecture, model_config.hf_config, model)
        return model, architecture

    return found


def _one_of_mla(method: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM reads a config layer by layer, but not one of DeepSeek's attention, of which it mends a key in place.

    Since only counts of experts differ here, such a config is read as a whole, with the count before pruning.
    """

    @in_place_of(method)
    def per_layer(convertor: Any) -> Any:
        if is_unequal(convertor.hf_config) and convertor.is_deepseek_mla():
            convertor.hf_config.allow_global_per_layer_attribute_access = True
            return None
        return method(convertor)

    return per_layer


def check(architecture: str, config: Any, model: Any = None) -> None:
    """Whether layers of this architecture, or of the class that vLLM took for it, can have counts of their own.

    Raises CheckpointError if not.
    """
    refuse_factors(config, "vLLM")
    known = architecture in DECODER_LAYERS or is_of_transformers(model)
    if not known:
        raise CheckpointError(
            f"The layers of this checkpoint keep unequal numbers of experts, which moeits' plug-in for vLLM does for "
            f"{', '.join(DECODER_LAYERS)} and not for {architecture}. Serve it with --model-impl transformers, or "
            f"prune again from the same plan with --layout uniform."
        )


def serve(architecture: str, config: Any, model: Any) -> None:
    """Have the layers of a class built from their own configs; CheckpointError as in `check`."""
    check(architecture, config, model)
    _warn_of_version()
    # Loaders ask the whole model how many experts a layer has at most. The config then gives the unpruned number.
    config.get_text_config().allow_global_per_layer_attribute_access = True
    if is_of_transformers(model):
        give_own_layers(_refuse_settings)
        return
    layer = DECODER_LAYERS[architecture]
    layer_class = getattr(importlib.import_module(f"vllm.model_executor.models.{layer.module}"), layer.name)
    if not is_ours(layer_class.__init__):
        layer_class.__init__ = _of_own_config(layer_class.__init__)


def _of_own_config(stock: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of a decoder layer, given the config of its own layer where layers differ."""
    signature = inspect.signature(stock)

    @in_place_of(stock)
    def own(*args: Any, **kwargs: Any) -> None:
        from vllm.config import get_current_vllm_config

        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        model_config = get_current_vllm_config().model_config
        if is_unequal(model_config.hf_config):
            _refuse_settings()
            whole = given.get("config") or model_config.hf_text_config
            single = config_of_layer(model_config.hf_config, whole, int(given["prefix"].rpartition(".")[2]))
            if "vllm_config" in given:
                given["vllm_config"] = _with_config(given["vllm_config"], single)
            if "config" in signature.parameters:
                given["config"] = single
        stock(*bound.args, **bound.kwargs)

    return own


def _with_config(vllm_config: Any, single: Any) -> Any:
    """The same VllmConfig but for the model's config; all else in it stays shared."""
    of_layer = copy.copy(vllm_config)
    of_layer.model_config = copy.copy(vllm_config.model_config)
    of_layer.model_config.hf_config = of_layer.model_config.hf_text_config = single
    return of_layer


def _refuse_settings() -> None:
    """Ranks would share out each layer by itself, but buffers between them and the balancer know one number only.

    Nor is a draft model told apart from the served one here.
    """
    from vllm.config import get_current_vllm_config

    vllm_config = get_current_vllm_config()
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise SettingError(
            "Layers that keep unequal numbers of experts cannot be served with speculative decoding: leave out "
            "--speculative-config."
        )
    parallel = vllm_config.parallel_config
    if parallel.enable_expert_parallel or parallel.enable_eplb:
        raise SettingError(
            "Layers that keep unequal numbers of experts cannot be served with expert parallelism: leave out "
            "--enable-expert-parallel and --enable-eplb, and use --tensor-parallel-size."
        )


def _warn_of_version() -> None:
    from vllm import __version__ as version

    warn_of_version("vLLM", version, FIRST, FIRST_UNTRIED)
