"""Releases that people prune, as they lie on the hub: names, shapes and config keys written down by hand, made tiny.

None of it is taken from `families.toml`, which is what it is to be held against. No real file was seen: the names are
those of the makers' own code, of transformers' conversions, and of public quantized releases.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tests.packed import FP8_BLOCK, write_packed
from tests.quantizers import QUANTIZERS, Parts

EXPERTS, TOP_K, WIDTH = 8, 2, 64
Shape = tuple[int, ...]
GATE, UP, DOWN = "experts.{e}.gate_proj", "experts.{e}.up_proj", "experts.{e}.down_proj"
W1, W3, W2 = "experts.{e}.w1", "experts.{e}.w3", "experts.{e}.w2"
PER_EXPERT, BY_NUMBER = (GATE, UP, DOWN), (W1, W3, W2)
ROUTER = {"gate.weight": (EXPERTS, WIDTH)}
BIASED = {**ROUTER, "gate.e_score_correction_bias": (EXPERTS,)}
ROWS = {"experts.gate_up_proj": (EXPERTS, 2 * WIDTH, WIDTH), "experts.down_proj": (EXPERTS, WIDTH, WIDTH)}
COLUMNS = {"experts.gate_up_proj": (EXPERTS, WIDTH, 2 * WIDTH), "experts.down_proj": (EXPERTS, WIDTH, WIDTH)}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release, or several that lie alike."""

    name: str
    config: Mapping[str, Any]
    experts: tuple[str, ...] = PER_EXPERT
    """Modules of an expert within the block, with its number as {e}; (outputs, inputs) are WIDTH and WIDTH."""
    fused: Mapping[str, Shape] = field(default_factory=dict)
    """Tensors of all experts within the block."""
    router: Mapping[str, Shape] = field(default_factory=lambda: ROUTER)
    expert_axis: Mapping[str, int] = field(default_factory=dict)
    """Of tensors of the router, where it is not the first."""
    layers: str = "model.layers.{l}."
    block: str = "mlp."
    shared: tuple[str, ...] = ()
    """Linear modules of the block beside its experts."""
    dense: int = 0
    """Layers before the first with experts."""
    beside: tuple[str, ...] = ()
    """Further tensors, of which nothing is removed; those of a layer with {l}."""
    mtp: str = ""
    """Prefix of a block for multi-token prediction, with experts of its own."""
    form: str = ""
    """How the experts' weights are quantized."""
    expected: Literal["scored", "moved", "refused"] = "scored"
    sentence: str = ""
    """Of a refusal, what it says."""

    @property
    def model_type(self) -> str:
        """By which its family is found."""
        return str(self.config["model_type"])

    @property
    def moe_layers(self) -> range:
        """The layers with experts."""
        return range(self.dense, self.dense + 2)


def _text(model_type: str, *, dense: int = 0, **keys: Any) -> dict[str, Any]:
    usual = {"num_hidden_layers": dense + 2, "hidden_size": WIDTH, "vocab_size": 32, "torch_dtype": "bfloat16"}
    return {"model_type": model_type, **usual, "num_experts_per_tok": TOP_K, **keys}


def _with(key: str, model_type: str, part: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """A model of several parts, one of which has the experts."""
    return {"model_type": model_type, key: part, **keys}


def _deepseek(model_type: str, **keys: Any) -> dict[str, Any]:
    usual = {
        "n_routed_experts": EXPERTS,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
    }
    return _text(model_type, dense=1, **{**usual, "moe_layer_freq": 1, **keys})


_SHARED = ("shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj")
_SHARED_ONE = ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj")
_LIKE_DEEPSEEK: Mapping[str, Any] = {"router": BIASED, "shared": _SHARED, "dense": 1}
_NEXTN: Mapping[str, Any] = {**_LIKE_DEEPSEEK, "mtp": "model.layers.3."}
_QWEN3 = _text("qwen3_moe", num_experts=EXPERTS, decoder_sparse_step=1, mlp_only_layers=[])
_QWEN2_KEYS = {"num_experts": EXPERTS, "decoder_sparse_step": 1}
_TOWER = ("model.visual.blocks.0.attn.qkv.weight", "model.visual.merger.linear_fc1.weight")
_INT4 = QUANTIZERS["compressed-tensors int4"].config
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(FP8_BLOCK), "activation_scheme": "dynamic"}
_FP8_ROWS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
    "ignore": ["lm_head", "re:.*mlp.gate$"],
}
_KIMI_K25_TEXT = {**_deepseek("kimi_k2"), "quantization_config": _INT4}
_QWEN_OMNI = _with(
    "thinker_config",
    "qwen3_omni_moe",
    _with("text_config", "qwen3_omni_moe_thinker", {**_QWEN3, "model_type": "qwen3_omni_moe_text"}),
    talker_config={"model_type": "qwen3_omni_moe_talker", "text_config": {"num_experts": 4}},
)
_STEP = _text(
    "step3p5", dense=1, moe_num_experts=EXPERTS, moe_top_k=TOP_K, moe_layers_enum="1,2", moe_intermediate_size=WIDTH
)
_STEP_LIES: Mapping[str, Any] = {
    "block": "moe.",
    "experts": (),
    "router": {"gate.weight": (EXPERTS, WIDTH), "router_bias": (EXPERTS,)},
    "fused": {f"{name}_proj.weight": (EXPERTS, WIDTH, WIDTH) for name in ("gate", "up", "down")},
    "beside": ("model.layers.{l}.share_expert.gate_proj.weight",),
    "dense": 1,
}

RELEASES: tuple[Release, ...] = (
    Release(name="Qwen3-30B-A3B, 235B, Coder", config=_QWEN3),
    Release(name="Qwen3-30B-A3B-FP8", config={**_QWEN3, "quantization_config": _FP8}, form="fp8 blocks"),
    Release(
        name="Qwen3-30B-A3B-GPTQ-Int4",
        config={**_QWEN3, "torch_dtype": "float16", "quantization_config": QUANTIZERS["gptq"].config},
        form="gptq",
    ),
    Release(
        name="Qwen3-Next-80B-A3B",
        config=_text("qwen3_next", **_QWEN2_KEYS, mlp_only_layers=[]),
        shared=(*_SHARED_ONE, "shared_expert_gate"),
        mtp="mtp.layers.0.",
    ),
    Release(
        name="Qwen3.5-35B-A3B, Qwen3.6",
        config=_with("text_config", "qwen3_5_moe", _text("qwen3_5_moe_text", num_experts=EXPERTS)),
        layers="model.language_model.layers.{l}.",
        experts=(),
        fused=ROWS,
        shared=(*_SHARED_ONE, "shared_expert_gate"),
        beside=(*_TOWER, "mtp.fc.weight"),
    ),
    Release(
        name="Qwen3-VL-30B-A3B",
        config=_with("text_config", "qwen3_vl_moe", {**_QWEN3, "model_type": "qwen3_vl_moe_text"}),
        layers="model.language_model.layers.{l}.",
        experts=(),
        fused=COLUMNS,
        beside=_TOWER,
    ),
    Release(
        name="Qwen3-Omni-30B-A3B",
        config=_QWEN_OMNI,
        layers="thinker.model.layers.{l}.",
        beside=("talker.model.layers.0.mlp.experts.0.gate_proj.weight", "talker.model.layers.0.mlp.gate.weight"),
        expected="refused",
        sentence=r"several models in one, with a Mixture of Experts in its thinker_config\.text_config",
    ),
    Release(
        name="Qwen1.5-MoE-A2.7B, Qwen2-57B",
        config=_text("qwen2_moe", **_QWEN2_KEYS),
        shared=(*_SHARED_ONE, "shared_expert_gate"),
    ),
    Release(name="GLM-4.5-Air, 4.6, 4.7", config=_deepseek("glm4_moe", num_nextn_predict_layers=1), **_NEXTN),
    Release(
        name="GLM-4.6-FP8",
        config={**_deepseek("glm4_moe", num_nextn_predict_layers=1), "quantization_config": _FP8_ROWS},
        form="fp8 rows",
        **_NEXTN,
    ),
    Release(name="GLM-4.7-Flash", config=_deepseek("glm4_moe_lite", num_nextn_predict_layers=1), **_NEXTN),
    Release(name="GLM-5", config=_deepseek("glm_moe_dsa", num_nextn_predict_layers=1), **_NEXTN),
    Release(
        name="GLM-4.5V",
        config=_with("text_config", "glm4v_moe", _deepseek("glm4v_moe_text")),
        layers="model.language_model.layers.{l}.",
        beside=_TOWER,
        **_LIKE_DEEPSEEK,
    ),
    Release(
        name="DeepSeek-V2-Lite",
        config=_deepseek("deepseek_v2", topk_method="greedy"),
        shared=_SHARED,
        dense=1,
    ),
    Release(
        name="DeepSeek-V3, R1, V3.1",
        config={**_deepseek("deepseek_v3", num_nextn_predict_layers=1), "quantization_config": _FP8},
        form="fp8 blocks",
        **_NEXTN,
    ),
    Release(name="DeepSeek-V3 in bf16", config=_deepseek("deepseek_v3", num_nextn_predict_layers=1), **_NEXTN),
    Release(
        name="DeepSeek-V3.2",
        config={**_deepseek("deepseek_v32", num_nextn_predict_layers=1), "quantization_config": _FP8},
        form="fp8 blocks",
        **_NEXTN,
    ),
    Release(
        name="DeepSeek-V4-Flash",
        config=_text(
            "deepseek_v4", dense=1, n_routed_experts=EXPERTS, num_hash_layers=1,
            architectures=["DeepseekV4ForCausalLM"],
        ),
        layers="layers.{l}.",
        block="ffn.",
        experts=BY_NUMBER,
        router={"gate.weight": (EXPERTS, WIDTH), "gate.bias": (EXPERTS,)},
        shared=("shared_experts.w1", "shared_experts.w2", "shared_experts.w3"),
        dense=1,
        beside=("layers.0.ffn.gate.weight", "layers.0.ffn.gate.tid2eid", "layers.0.ffn.experts.0.w1.weight"),
        mtp="mtp.0.",
        form="mxfp4 rows",
    ),
    Release(name="Moonlight-16B-A3B", config=_deepseek("deepseek_v3"), **_LIKE_DEEPSEEK),
    Release(
        name="Kimi-K2-Instruct",
        config={**_deepseek("kimi_k2"), "quantization_config": _FP8},
        form="fp8 blocks",
        **_LIKE_DEEPSEEK,
    ),
    Release(
        name="Kimi-K2-Thinking",
        config={**_deepseek("kimi_k2"), "quantization_config": _INT4},
        form="compressed-tensors int4",
        **_LIKE_DEEPSEEK,
    ),
    Release(
        name="Kimi-K2.5, K2.6",
        config=_with("text_config", "kimi_k25", _KIMI_K25_TEXT),
        layers="language_model.model.layers.{l}.",
        form="compressed-tensors int4",
        beside=("vision_tower.encoder.blocks.0.wqkv.weight", "mm_projector.proj.0.weight"),
        **_LIKE_DEEPSEEK,
    ),
    Release(
        name="Kimi-Linear-48B-A3B",
        config=_text(
            "kimi_linear", dense=1, num_experts=EXPERTS, num_experts_per_token=TOP_K, first_k_dense_replace=1,
            moe_layer_freq=1, num_expert_group=1, topk_group=1,
        ),
        block="block_sparse_moe.",
        experts=BY_NUMBER,
        **_LIKE_DEEPSEEK,
    ),
    Release(
        name="gpt-oss-20b, 120b",
        config=_text("gpt_oss", num_local_experts=EXPERTS, quantization_config={"quant_method": "mxfp4"}),
        experts=(),
        router={"router.weight": (EXPERTS, WIDTH), "router.bias": (EXPERTS,)},
        fused={
            "experts.gate_up_proj_blocks": (EXPERTS, 2 * WIDTH, WIDTH // 32, 16),
            "experts.gate_up_proj_scales": (EXPERTS, 2 * WIDTH, WIDTH // 32),
            "experts.gate_up_proj_bias": (EXPERTS, 2 * WIDTH),
            "experts.down_proj_blocks": (EXPERTS, WIDTH, WIDTH // 32, 16),
            "experts.down_proj_scales": (EXPERTS, WIDTH, WIDTH // 32),
            "experts.down_proj_bias": (EXPERTS, WIDTH),
        },
        form="mxfp4 blocks",
    ),
    Release(
        name="MiniMax-M2, M2.1, M2.5",
        config={**_text("minimax_m2", num_local_experts=EXPERTS), "quantization_config": _FP8},
        block="block_sparse_moe.",
        experts=BY_NUMBER,
        router={**ROUTER, "e_score_correction_bias": (EXPERTS,)},
        form="fp8 blocks",
    ),
    Release(
        name="MiniMax-M3",
        config=_with("text_config", "minimax_m3_vl", _text("minimax_m3_vl_text", num_local_experts=EXPERTS)),
        layers="language_model.model.layers.{l}.",
        block="block_sparse_moe.",
        experts=BY_NUMBER,
        router={**ROUTER, "e_score_correction_bias": (EXPERTS,)},
        shared=_SHARED,
        beside=("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",),
    ),
    Release(
        name="Llama-4-Scout, Maverick",
        config=_with("text_config", "llama4", _text("llama4_text", num_local_experts=EXPERTS, moe_layers=[0, 1])),
        layers="language_model.model.layers.{l}.",
        block="feed_forward.",
        experts=(),
        fused=COLUMNS,
        router={"router.weight": (EXPERTS, WIDTH)},
        shared=_SHARED_ONE,
        beside=("vision_model.model.layers.0.mlp.fc1.weight", "multi_modal_projector.linear_1.weight"),
    ),
    Release(
        name="Mixtral-8x7B, 8x22B",
        config=_text("mixtral", num_local_experts=EXPERTS),
        block="block_sparse_moe.",
        experts=BY_NUMBER,
    ),
    Release(name="OLMoE-1B-7B", config=_text("olmoe", num_experts=EXPERTS)),
    Release(name="FlexOlmo-7x7B", config=_text("flex_olmo", num_experts=EXPERTS)),
    Release(
        name="Phi-3.5-MoE",
        config=_text("phimoe", num_local_experts=EXPERTS, architectures=["PhiMoEForCausalLM"]),
        block="block_sparse_moe.",
        experts=BY_NUMBER,
    ),
    Release(
        name="Granite-3.1-3B-A800M",
        config=_text("granitemoe", num_local_experts=EXPERTS),
        block="block_sparse_moe.",
        experts=(),
        fused={"input_linear.weight": (EXPERTS, 2 * WIDTH, WIDTH), "output_linear.weight": (EXPERTS, WIDTH, WIDTH)},
        router={"router.layer.weight": (EXPERTS, WIDTH)},
    ),
    Release(
        name="Granite-4.0-H-Tiny, Small",
        config=_text("granitemoehybrid", num_local_experts=EXPERTS, layer_types=["mamba", "attention"]),
        block="block_sparse_moe.",
        experts=(),
        fused={"input_linear.weight": (EXPERTS, 2 * WIDTH, WIDTH), "output_linear.weight": (EXPERTS, WIDTH, WIDTH)},
        router={"router.layer.weight": (EXPERTS, WIDTH)},
        beside=("model.layers.{l}.shared_mlp.input_linear.weight", "model.layers.0.mamba.in_proj.weight"),
    ),
    Release(
        name="ERNIE-4.5-21B-A3B, 300B",
        config=_text(
            "ernie4_5_moe", dense=1, moe_num_experts=EXPERTS, moe_k=TOP_K, moe_layer_start_index=1,
            moe_layer_interval=1, num_nextn_predict_layers=1,
        ),
        router={**ROUTER, "moe_statics.e_score_correction_bias": (1, EXPERTS)},
        expert_axis={"moe_statics.e_score_correction_bias": 1},
        shared=_SHARED,
        dense=1,
        beside=("model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight"),
    ),
    Release(
        name="ERNIE-4.5-VL-28B-A3B",
        config=_text("ernie4_5_moe_vl", moe_num_experts=[EXPERTS, EXPERTS], moe_k=TOP_K),
        router={**ROUTER, "gate.weight_1": (EXPERTS, WIDTH), "moe_statics.e_score_correction_bias": (2, EXPERTS)},
        shared=_SHARED,
        expected="refused",
        sentence="text and vision experts of two widths are in one list",
    ),
    Release(
        name="Hunyuan-A13B",
        config=_text("hunyuan_v1_moe", num_experts=EXPERTS, moe_topk=[TOP_K, TOP_K], num_experts_per_tok=None),
        router={"gate.wg.weight": (EXPERTS, WIDTH)},
        shared=("shared_mlp.gate_proj", "shared_mlp.up_proj", "shared_mlp.down_proj"),
    ),
    Release(
        name="Nemotron-3-Nano-30B-A3B",
        config=_text(
            "nemotron_h", dense=1, n_routed_experts=EXPERTS, hybrid_override_pattern="MEE", n_group=1, topk_group=1
        ),
        layers="backbone.layers.{l}.",
        block="mixer.",
        experts=(UP, DOWN),
        router=BIASED,
        shared=("shared_experts.up_proj", "shared_experts.down_proj"),
        dense=1,
    ),
    Release(
        name="Jamba-1.5-Mini, Jamba2",
        config=_text("jamba", num_experts=EXPERTS, expert_layer_period=1, expert_layer_offset=0),
        block="feed_forward.",
        router={"router.weight": (EXPERTS, WIDTH)},
    ),
    Release(
        name="LFM2-8B-A1B, 24B-A2B",
        config=_text("lfm2_moe", dense=1, num_experts=EXPERTS, num_dense_layers=1),
        block="feed_forward.",
        experts=BY_NUMBER,
        router={**ROUTER, "expert_bias": (EXPERTS,)},
        dense=1,
    ),
    Release(
        name="Gemma-4-26B-A4B",
        config=_with(
            "text_config",
            "gemma4",
            _text("gemma4_text", num_experts=EXPERTS, top_k_experts=TOP_K, enable_moe_block=True),
        ),
        layers="model.language_model.layers.{l}.",
        block="",
        experts=(),
        fused=ROWS,
        router={"router.proj.weight": (EXPERTS, WIDTH), "router.per_expert_scale": (EXPERTS,)},
        beside=("model.language_model.layers.{l}.router.scale", "model.vision_tower.encoder.layers.0.mlp.up.weight"),
    ),
    Release(name="dots.llm1", config=_deepseek("dots1"), **_LIKE_DEEPSEEK),
    Release(name="Step-3.5-Flash", config=_STEP, **_STEP_LIES),
    Release(
        name="Step-3.5-Flash-FP8",
        config={**_STEP, "quantization_config": _FP8},
        form="fp8 blocks",
        **_STEP_LIES,
    ),
    Release(
        name="MiMo-V2-Flash",
        config={
            **_text(
                "mimo_v2_flash", dense=1, n_routed_experts=EXPERTS, moe_layer_freq=[0, 1, 1], n_group=1, topk_group=1
            ),
            "quantization_config": _FP8,
        },
        form="fp8 blocks",
        router=BIASED,
        dense=1,
        beside=("model.mtp.layers.0.eh_proj.weight",),
    ),
    Release(
        name="Ling-lite, Ling-plus, Ring-lite",
        config=_text(
            "bailing_moe", num_experts=EXPERTS, num_shared_experts=1, first_k_dense_replace=0,
            auto_map={"AutoModelForCausalLM": "modeling_bailing_moe.BailingMoeForCausalLM"},
        ),
        shared=_SHARED,
    ),
    Release(
        name="Ling-mini-2.0, Ring-2.0",
        config=_text(
            "bailing_moe_v2", dense=1, num_experts=EXPERTS, n_group=1, topk_group=1, first_k_dense_replace=1,
            auto_map={"AutoModelForCausalLM": "modeling_bailing_moe_v2.BailingMoeV2ForCausalLM"},
        ),
        router={**ROUTER, "gate.expert_bias": (EXPERTS,)},
        shared=_SHARED,
        dense=1,
    ),
    Release(
        name="Ling-3.0",
        config=_text(
            "bailing_hybrid", dense=1, num_experts=EXPERTS, num_experts_per_token=TOP_K, num_expert_group=1,
            topk_group=1, first_k_dense_replace=1,
        ),
        router={**ROUTER, "gate.expert_bias": (EXPERTS,)},
        shared=_SHARED,
        dense=1,
    ),
    Release(
        name="Solar-Open-100B",
        config={**_deepseek("solar_open"), "num_hidden_layers": 2},
        **{**_LIKE_DEEPSEEK, "dense": 0},
    ),
    Release(
        name="Trinity-Mini, Nano",
        config=_text("afmoe", dense=1, num_experts=EXPERTS, num_dense_layers=1),
        router={"router.gate.weight": (EXPERTS, WIDTH), "expert_bias": (EXPERTS,)},
        shared=_SHARED,
        dense=1,
    ),
    Release(
        name="K-EXAONE-236B-A23B",
        config=_text("exaone_moe", dense=1, num_experts=EXPERTS, first_k_dense_replace=1, n_group=1, topk_group=1),
        router={**ROUTER, "e_score_correction_bias": (EXPERTS,)},
        shared=_SHARED,
        dense=1,
        mtp="mtp.layers.0.",
    ),
    Release(
        name="LongCat-Flash",
        config=_text("longcat_flash", n_routed_experts=EXPERTS, zero_expert_num=2, moe_topk=TOP_K, num_layers=2),
        router={"router.classifier.weight": (EXPERTS + 2, WIDTH), "router.e_score_correction_bias": (EXPERTS + 2,)},
    ),
    Release(
        name="Mistral-Small-4-119B",
        config=_with(
            "text_config", "mistral3", {**_deepseek("mistral4", first_k_dense_replace=0), "num_hidden_layers": 2}
        ),
        layers="language_model.model.layers.{l}.",
        experts=(),
        fused=ROWS,
        shared=_SHARED,
        beside=("vision_tower.transformer.layers.0.feed_forward.gate_proj.weight",),
    ),
    Release(
        name="InternVL3.5-30B-A3B-HF",
        config=_with("text_config", "internvl", _QWEN3),
        layers="language_model.model.layers.{l}.",
        beside=("vision_tower.encoder.layer.0.mlp.fc1.weight",),
    ),
    Release(
        name="InternVL3.5-30B-A3B",
        config=_with(
            "llm_config", "internvl_chat", _QWEN3, auto_map={"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
        ),
        layers="language_model.model.layers.{l}.",
        beside=("vision_model.encoder.layers.0.mlp.fc1.weight", "mlp1.0.weight"),
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- written down


def write(release: Release, folder: Path) -> Path:
    """The release as a checkpoint with random numbers."""
    rng = np.random.default_rng(0)
    return write_packed(folder, release.config, dict(_tensors(release, rng)))


def _tensors(release: Release, rng: np.random.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    yield "model.embed_tokens.weight", _numbers(rng, (32, WIDTH))
    yield "lm_head.weight", _numbers(rng, (32, WIDTH))
    for index in range(release.moe_layers.stop):
        layer = release.layers.format(l=index)
        yield f"{layer}input_layernorm.weight", _numbers(rng, (WIDTH,))
        if index in release.moe_layers:
            yield from _block(release, layer + release.block, rng)
        else:
            yield f"{layer}{release.block}up_proj.weight", _numbers(rng, (WIDTH, WIDTH))
    if release.mtp:
        yield from _block(release, release.mtp + release.block, rng)
    for name in release.beside:
        for index in release.moe_layers if "{l}" in name else [0]:
            yield name.format(l=index), _numbers(rng, (WIDTH, 3))


def _block(release: Release, block: str, rng: np.random.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in release.router.items():
        yield block + name, _numbers(rng, shape)
    for module in release.shared:
        yield f"{block}{module}.weight", _numbers(rng, (WIDTH, WIDTH))
    for expert in range(EXPERTS):
        for module in release.experts:
            for part, value in _FORMS[release.form](rng).items():
                yield block + module.format(e=expert) + part, value
    for name, shape in release.fused.items():
        yield from _fused(release, block + name, shape, rng)


def _fused(release: Release, name: str, shape: Shape, rng: np.random.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    if release.form == "fp8 blocks":
        yield name, _fp8(rng, *shape)
        yield f"{name}_scale_inv", torch.rand(shape[0], *(n // m for n, m in zip(shape[1:], FP8_BLOCK, strict=True)))
    elif name.endswith("_blocks"):
        yield name, torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    elif name.endswith("_scales"):
        yield name, torch.from_numpy(rng.integers(118, 124, shape, np.uint8))
    else:
        yield name, _numbers(rng, shape)


def _numbers(rng: np.random.Generator, shape: Shape) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).bfloat16()


def _fp8(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape) * 100).to(torch.float8_e4m3fn)


def _plain(rng: np.random.Generator) -> Parts:
    return {".weight": _numbers(rng, (WIDTH, WIDTH))}


def _fp8_blocks(rng: np.random.Generator) -> Parts:
    grid = (WIDTH // FP8_BLOCK[0], WIDTH // FP8_BLOCK[1])
    return {".weight": _fp8(rng, WIDTH, WIDTH), ".weight_scale_inv": torch.from_numpy(rng.random(grid)).float()}


def _fp8_rows(rng: np.random.Generator) -> Parts:
    return {".weight": _fp8(rng, WIDTH, WIDTH), ".weight_scale": torch.from_numpy(rng.random((WIDTH, 1))).bfloat16()}


def _mxfp4_rows(rng: np.random.Generator) -> Parts:
    return {
        ".weight": torch.from_numpy(rng.integers(-128, 128, (WIDTH, WIDTH // 2)).astype(np.int8)),
        ".scale": torch.from_numpy(rng.integers(118, 124, (WIDTH, WIDTH // 32), np.uint8)).view(torch.float8_e8m0fnu),
    }


_FORMS: Mapping[str, Callable[[np.random.Generator], Parts]] = {
    "": _plain,
    "fp8 blocks": _fp8_blocks,
    "fp8 rows": _fp8_rows,
    "mxfp4 rows": _mxfp4_rows,
    "mxfp4 blocks": _plain,
    **{name: (lambda rng, form=form: form.write(rng, WIDTH, WIDTH)) for name, form in QUANTIZERS.items()},
}
